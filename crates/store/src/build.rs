//! Building a store whose first version is a given state: what a restore ends in.
//!
//! Entries come in order, so nothing is looked up and nothing is written twice: values go to value segments as they come,
//! pages are made from the bottom up behind them, and the log gets one record, the *base*, which says at which height
//! and with which root everything begins. The superblock comes last. Until then there is no store, and what a crash
//! leaves is swept away by the next attempt.
//!
//! The caller's thread gathers and hashes entries; a second one lays them down, a third syncs what was laid. So a caller
//! with work of its own (a restore that checks what it hands over) is not the one who waits.
//!
//! Rules: `spec/store.md`, STORE-11.

use crate::appender::{Appender, SyncAhead};
use crate::files::{Files, Guard};
use crate::flush::Table;
use crate::log::Log;
use crate::record::{self, Head, Step};
use crate::recover::{clear_ground, sweep};
use crate::segment::{Kind, Spot};
use crate::segments::Segments;
use crate::shared::Shared;
use crate::sync::mpsc;
use crate::sync::thread::{self, JoinHandle};
use crate::version::Version;
use crate::{Options, Store, StoreError};
use keelstone_codec::{Hash, Height, Key, Namespace, Root, VALUE_LEN_MAX, put_length};
use keelstone_tree::{Build, Hasher, Leaf, PageAt, Pages, Place, Totals, Tree};
use std::sync::Arc;
use std::{fmt, mem};

/// Entries hashed and handed on together: enough to fill lanes, few enough to stay in a near cache.
const BATCH_ENTRIES: usize = 2048;
/// Bytes of values after which a batch is handed on in any case.
const BATCH_BYTES: usize = 1 << 20;
/// Batches waiting to be laid down.
const BATCHES: usize = 2;
/// Everything is written in the store's first session.
const GENERATION: u32 = 1;

/// A store that is being built from its entries in order; see [`Store::build`].
///
/// It takes some megabytes of memory, whatever the size of the state. Dropped, it leaves no store, and removes what it
/// wrote as far as the disk lets it.
pub struct Building<H: Hasher> {
    height: Height,
    batch: Batch,
    /// Where the last entry lies, and its key.
    namespace: Option<Namespace>,
    last: Vec<u8>,
    totals: Totals,
    /// None when all is done.
    site: Option<Site>,
    /// None after a failure.
    crew: Option<Crew<H>>,
    failed: Option<String>,
}

impl<H: Hasher> Building<H> {
    pub(crate) fn begin(files: Arc<dyn Files>, options: Options, height: Height) -> Result<Self, StoreError> {
        if height == Height(u64::MAX) {
            return Err(StoreError::WrongHeight { expected: Height(0), found: height });
        }
        let (lock, segments) = clear_ground(&files, &options)?;
        let syncs = options.background.then(SyncAhead::start);
        let appender = |kind, bytes| {
            let appender = Appender::new(Arc::clone(&segments), kind, None, GENERATION, bytes)?;
            Ok::<_, StoreError>(appender.doubling().syncing_with(syncs.as_ref()))
        };
        let values = appender(Kind::Values, options.segment_bytes)?;
        let pages = appender(Kind::Pages, options.page_segment_bytes)?;
        let crew = Crew::start(Works { values, pages, build: Build::new() }, options.background);
        Ok(Self {
            height,
            batch: Batch::default(),
            namespace: None,
            last: Vec::new(),
            totals: Totals::default(),
            site: Some(Site { options, files, lock, segments, syncs }),
            crew: Some(crew),
            failed: None,
        })
    }

    /// Takes the next entry: namespaces strictly ascend, and in each the keys.
    ///
    /// # Errors
    /// [`StoreError::BadEntry`] if it does not follow the one before it or its value is none; it is then not taken. What
    /// the disk says, now or of entries taken before; after that everything answers [`StoreError::Poisoned`].
    pub fn push(&mut self, namespace: &Namespace, key: &Key, value: &[u8]) -> Result<(), StoreError> {
        self.check()?;
        let bad = |what| StoreError::BadEntry { namespace: namespace.clone(), key: key.clone(), what };
        if value.is_empty() || value.len() > VALUE_LEN_MAX {
            return Err(bad("a value has 1 byte to 8 MiB"));
        }
        if self.namespace.as_ref() == Some(namespace) {
            if *self.last >= **key {
                return Err(bad("its key does not come after the one before it"));
            }
        } else if self.namespace.as_ref() > Some(namespace) {
            return Err(bad("its namespace comes before that of the entry before it"));
        } else {
            self.namespace = Some(namespace.clone());
        }
        self.last.clear();
        self.last.extend_from_slice(key);
        self.totals += Totals { count: 1, bytes: (key.len() + value.len()) as u64 };
        self.batch.push(namespace, key, value);
        if self.batch.is_full() { self.attempt(Self::hand_over) } else { Ok(()) }
    }

    /// Entries and bytes taken so far.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Makes it a store, durably, if its root is the one expected. It is then at its height, which is also the lowest
    /// it keeps.
    ///
    /// # Errors
    /// [`StoreError::WrongRoot`], and as [`Self::push`]. There is then no store, unless it was the very last sync that
    /// failed: then there may be one, and it is whole.
    pub fn finish(self, expected: Root) -> Result<Store<H>, StoreError> {
        self.finish_if(Some(expected))
    }

    /// As [`Self::finish`], whatever the root is: for entries that were each proven elsewhere, and make a state that
    /// nobody has seen yet.
    ///
    /// # Errors
    /// As [`Self::finish`], but for the root.
    pub fn finish_as_found(self) -> Result<Store<H>, StoreError> {
        self.finish_if(None)
    }

    fn finish_if(mut self, expected: Option<Root>) -> Result<Store<H>, StoreError> {
        self.check()?;
        self.attempt(Self::hand_over)?;
        let works = self.crew.take().expect("it did not fail").finish();
        let site = self.site.as_mut().expect("it is taken below only");
        let completed = works.and_then(|works| site.complete(works, self.height, expected));
        let (finished, version) = completed.map_err(|error| self.blame(error))?;
        let Site { options, lock, segments, .. } = self.site.take().expect("it was just used");
        let Finished { log, pages, table } = finished;
        Ok(Store::start(Shared::found(options, lock, segments, log, pages, Some(table), version)?))
    }

    fn check(&self) -> Result<(), StoreError> {
        match &self.failed {
            Some(reason) => Err(StoreError::Poisoned { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    fn attempt(&mut self, work: impl FnOnce(&mut Self) -> Result<(), StoreError>) -> Result<(), StoreError> {
        work(self).map_err(|error| {
            let error = self.blame(error);
            self.failed = Some(error.to_string());
            error
        })
    }

    /// Ends all threads after a failure. If it was a sync that failed, that is the reason.
    fn blame(&mut self, error: StoreError) -> StoreError {
        if let Some(crew) = self.crew.take() {
            let _ = crew.finish();
        }
        self.site.as_mut().and_then(|site| site.end_syncs().err()).unwrap_or(error)
    }

    /// Hands the batch on to be laid down.
    fn hand_over(&mut self) -> Result<(), StoreError> {
        let mut batch = mem::take(&mut self.batch);
        batch.hash::<H>();
        match self.crew.as_mut().expect("it did not fail") {
            Crew::Here(works) => {
                works.lay(&batch)?;
                batch.clear();
                self.batch = batch;
            }
            Crew::There { batches, spent, .. } => {
                if batches.send(batch).is_err() {
                    // The thread ends before its time only if something failed.
                    let failed = self.crew.take().expect("it was just used").finish();
                    return Err(failed.err().unwrap_or_else(|| gone("lay down", "entries")));
                }
                self.batch = spent.try_recv().unwrap_or_default();
            }
        }
        Ok(())
    }
}

impl<H: Hasher> fmt::Debug for Building<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a store that is being built, {:?} so far", self.totals)
    }
}

impl<H: Hasher> Drop for Building<H> {
    fn drop(&mut self) {
        if let Some(crew) = self.crew.take() {
            let _ = crew.finish();
        }
        if let Some(mut site) = self.site.take() {
            let _ = site.end_syncs();
            // What cannot be removed now is removed by the next attempt.
            let _ = sweep(&*site.files);
        }
    }
}

/// The directory that is built in.
struct Site {
    options: Options,
    files: Arc<dyn Files>,
    lock: Box<dyn Guard>,
    segments: Arc<Segments>,
    syncs: Option<SyncAhead>,
}

/// What a superblock refers to, durable.
struct Finished {
    log: Log,
    pages: Appender,
    table: (Spot, u32, Hash),
}

impl Site {
    /// Writes what is left but for the superblock. All of it is durable after.
    fn complete<H: Hasher>(
        &mut self,
        works: Works<H>,
        height: Height,
        expected: Option<Root>,
    ) -> Result<(Finished, Arc<Version<H>>), StoreError> {
        let Works { mut values, mut pages, build } = works;
        let top = build.finish(&mut |page| write_page(&mut pages, page))?;
        let root = top.root::<H>();
        if let Some(expected) = expected.filter(|expected| *expected != root) {
            return Err(StoreError::WrongRoot { expected, found: root });
        }
        values.sync()?;
        drop(values);

        // spec: STORE-11
        let mut log = Log::create(Arc::clone(&self.segments), self.options.segment_bytes)?;
        let empty = Tree::<H>::empty(&Pages::new(self.segments.clone())).root();
        let (step, previous) = (Step::Base, log.hash());
        let head = Head { len: 0, step, epoch: 0, height, root_before: empty, previous, parent: None };
        let base = log.append(record::encode_small(head, root)).run()?;
        log.advance(&base);
        if let Some(usage) = self.segments.usage().get_mut(&base.start.segment) {
            usage.last_height = Some(height);
        }

        pages.count();
        let table = Table { top, segments: self.segments.usage().iter().map(|(id, usage)| (*id, *usage)).collect() };
        let place = table.write(&self.segments, &mut pages)?;
        let pages = pages.syncing_with(None).built();
        self.end_syncs()?;

        let arena = self.options.arena(&self.segments);
        let tree = Tree::open(&arena, &table.top, root)?;
        let version = Version::new(Some(height), 0, tree, Some(base.start), 0);
        Ok((Finished { log, pages, table: place }, version))
    }

    /// Waits for all syncs that are on their way.
    fn end_syncs(&mut self) -> Result<(), StoreError> {
        self.syncs.take().map_or(Ok(()), SyncAhead::finish)
    }
}

/// Where entries and pages are laid down.
struct Works<H> {
    values: Appender,
    pages: Appender,
    build: Build<H>,
}

impl<H: Hasher> Works<H> {
    fn lay(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let Self { values, pages, build } = self;
        let mut write = |page: &[u8]| write_page(pages, page);
        let mut entries = batch.entries().zip(&batch.leaves);
        for (namespace, count) in &batch.spaces {
            for ((key, field), leaf) in entries.by_ref().take(*count) {
                let place = Place(values.append(&[field])?.to_u64());
                build.push(namespace, key, leaf, place, &mut write)?;
            }
        }
        Ok(())
    }
}

fn write_page(pages: &mut Appender, page: &[u8]) -> Result<PageAt, StoreError> {
    let spot = pages.append(&[page])?;
    Ok(PageAt { place: spot.to_u64(), len: u32::try_from(page.len()).expect("pages are small") })
}

/// Who lays down what is handed over.
enum Crew<H: Hasher> {
    /// Whoever hands it over, at once.
    Here(Box<Works<H>>),
    /// A thread, which gives batches back to be filled again.
    There {
        batches: mpsc::SyncSender<Batch>,
        spent: mpsc::Receiver<Batch>,
        thread: JoinHandle<Result<Works<H>, StoreError>>,
    },
}

impl<H: Hasher> Crew<H> {
    fn start(mut works: Works<H>, background: bool) -> Self {
        if !background {
            return Self::Here(Box::new(works));
        }
        let (batches, inbox) = mpsc::sync_channel::<Batch>(BATCHES);
        let (returns, spent) = mpsc::channel();
        let thread = thread::spawn(move || {
            for mut batch in inbox {
                works.lay(&batch)?;
                batch.clear();
                // Whoever does not want it back is done.
                let _ = returns.send(batch);
            }
            Ok(works)
        });
        Self::There { batches, spent, thread }
    }

    /// Waits until all is laid down.
    fn finish(self) -> Result<Works<H>, StoreError> {
        match self {
            Self::Here(works) => Ok(*works),
            Self::There { batches, thread, .. } => {
                drop(batches);
                thread.join().unwrap_or_else(|_| Err(gone("lay down", "entries")))
            }
        }
    }
}

/// A thread of ours ended and cannot say why.
fn gone(doing: &'static str, what: &str) -> StoreError {
    StoreError::io(doing, what)(std::io::Error::other("the thread is gone"))
}

/// Entries on their way to the disk.
#[derive(Default)]
struct Batch {
    /// Namespaces in order, and how many entries are in each.
    spaces: Vec<(Namespace, usize)>,
    keys: Vec<u8>,
    /// Values with their lengths before them, as they will lie in a segment.
    fields: Vec<u8>,
    /// Where the key and the field of each entry end.
    ends: Vec<(usize, usize)>,
    leaves: Vec<Leaf>,
}

impl Batch {
    fn push(&mut self, namespace: &Namespace, key: &[u8], value: &[u8]) {
        match self.spaces.last_mut() {
            Some((last, count)) if last == namespace => *count += 1,
            _ => self.spaces.push((namespace.clone(), 1)),
        }
        self.keys.extend_from_slice(key);
        put_length(&mut self.fields, value.len());
        self.fields.extend_from_slice(value);
        self.ends.push((self.keys.len(), self.fields.len()));
    }

    fn is_full(&self) -> bool {
        self.ends.len() >= BATCH_ENTRIES || self.fields.len() >= BATCH_BYTES
    }

    /// Every key, and its value with the length before it.
    fn entries(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let starts = std::iter::once(&(0, 0)).chain(&self.ends);
        starts.zip(&self.ends).map(|(start, end)| (&self.keys[start.0..end.0], &self.fields[start.1..end.1]))
    }

    fn hash<H: Hasher>(&mut self) {
        let mut leaves = mem::take(&mut self.leaves);
        Leaf::of::<H>(self.entries().map(|(key, field)| (key, &field[4..])), &mut leaves);
        self.leaves = leaves;
    }

    fn clear(&mut self) {
        self.spaces.clear();
        self.keys.clear();
        self.fields.clear();
        self.ends.clear();
        self.leaves.clear();
    }
}
