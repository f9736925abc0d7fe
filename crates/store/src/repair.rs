//! Repair: of what is left of a damaged store a new one is made, at the very root the old one stood at, or none.
//!
//! The damaged store is only read. What it stood at is what its log says last: a record's root stands in the record behind
//! it, that of the last in its mark. There are many ways to get there: the log from its beginning, a version that a
//! superblock slot names, or one from before it, and a state from elsewhere at a height that the log still has the root of; and
//! from each of them the records behind. Every one is read and checked as a store is, each root on the way is compared, and
//! the first that comes to the end counts. So a repair is never wrong; if none gets there, it says what is lost.
//!
//! Rules: `spec/store.md`, STORE-14.

use crate::files::{Files, SECTOR_BYTES, remove_if_there};
use crate::history::{self, Index};
use crate::log;
use crate::look;
use crate::record::{Head, Record, Step};
use crate::recover::{list, lock_error, open_aside, sweep};
use crate::sector::{Found, PAYLOAD_BYTES, Seal, StoreId};
use crate::segment::{self, Kind, SegmentId, Spot};
use crate::segments::Segments;
use crate::store::Progress;
use crate::superblock::{self, Superblock, SuperblockFile};
use crate::version::Version;
use crate::{Options, Store, StoreError};
use keelstone_codec::{Hash, Height, Key, Namespace, Root};
use keelstone_tree::{Hasher, Read, Tree};
use std::sync::Arc;

/// Problems named at most; beyond, there is no use in more.
const PROBLEMS_MAX: usize = 1000;

/// Takes entries in order: namespaces ascend, and in each the keys.
pub type Take<'a> = &'a mut dyn FnMut(&Namespace, &[u8], &[u8]) -> Result<(), StoreError>;

/// A whole state from elsewhere: a snapshot, another store. It is not believed; the root it comes to is compared.
pub struct Source<'a> {
    /// Its height.
    pub height: Height,
    /// Its root. Of use only if the log of the damaged store says the same of that height.
    pub root: Root,
    /// Hands over its entries, in order.
    pub entries: &'a mut dyn FnMut(Take<'_>) -> Result<(), StoreError>,
}

/// What a store was made from anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RepairedFrom {
    /// Its own log, from the first record on. Nothing is lost.
    Log,
    /// A version of its own at this height, and the log behind.
    Version(Height),
    /// A state from elsewhere at this height, and the log behind.
    Source(Height),
}

/// A store that was made anew.
#[derive(Debug)]
pub struct Repaired<H: Hasher> {
    /// It, open. Its height and root are those that the damaged one stood at.
    pub store: Store<H>,
    /// From what.
    pub from: RepairedFrom,
    /// Heights whose states could be asked for and are lost: from the first to before the second.
    pub lost: Option<(Height, Height)>,
}

/// Something that is lost.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Loss {
    /// Entries of the last version the superblock names.
    Entries(StoreError),
    /// The superblock names no version, or none that can be opened.
    Version(StoreError),
    /// Records of the log: of the heights above the first and up to the second, as far as what is around them says.
    Records {
        /// The last height before them, none if they are the first.
        after: Option<Height>,
        /// The last of them, if anything behind them says so.
        to: Option<Height>,
        /// What is wrong.
        problem: StoreError,
    },
}

/// Why there is no repaired store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepairError {
    /// No way leads to the root the store stood at. Nothing was made. A snapshot of one of the heights that are whole in the
    /// log may help, or peers.
    #[error("the store cannot be made whole from what is here: {} of it are lost", pieces(losses.len()))]
    Lost {
        /// The height and root that are to be reached, as far as anything says so.
        target: Option<(Height, Option<Root>)>,
        /// What is lost.
        losses: Vec<Loss>,
    },
    /// The new store could not be written, or the damaged one is in use, of another hasher, or too new.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn pieces(count: usize) -> String {
    if count == 1 { "1 piece".to_owned() } else { format!("{count} pieces") }
}

/// Why a way was given up.
enum Stop {
    /// What it reads is damaged or leads elsewhere: another way may do.
    Unfit(StoreError),
    /// The new store could not be written: no other way could either.
    Broken(StoreError),
    /// Whoever asked for the store wants it no more.
    CutOff,
}

/// Records that follow one another.
#[derive(Debug)]
struct Run {
    start: Spot,
    /// The hash of the record before the first.
    previous: Hash,
    first: Head,
    last: Head,
    last_hash: Hash,
    /// The root after the last, if its mark is there.
    marked: Option<Root>,
    /// What ends it, unless the log does.
    broken: Option<StoreError>,
}

impl<H: Hasher> Store<H> {
    /// Makes of a damaged store, which is only read, a whole one in the empty directory `into`, at the root the damaged one
    /// stood at: from its log, from a version of its own, or from one of `sources`. Takes the time of reading what it is
    /// made from and of writing all of it.
    ///
    /// # Errors
    /// [`RepairError::Lost`] names what is lost if that root cannot be reached; `into` then holds no store.
    // spec: STORE-14
    pub fn repair(
        damaged: Arc<dyn Files>,
        into: Arc<dyn Files>,
        options: &Options,
        sources: &mut [Source<'_>],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Repaired<H>, RepairError> {
        let mut go_on = |done| {
            progress(done);
            true
        };
        let repaired = Self::repair_while(damaged, into, options, sources, &mut go_on)?;
        Ok(repaired.expect("nobody cuts it off"))
    }

    /// As [`Self::repair`], for as long as `go_on` says so; none if it was cut off, and `into` then holds no store.
    ///
    /// # Errors
    /// As [`Self::repair`].
    // spec: STORE-14
    pub fn repair_while(
        damaged: Arc<dyn Files>,
        into: Arc<dyn Files>,
        options: &Options,
        sources: &mut [Source<'_>],
        go_on: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<Option<Repaired<H>>, RepairError> {
        let _lock = damaged.lock().map_err(lock_error)?;
        let (old, mut losses) = Old::<H>::read(damaged, options)?;
        let Some(old) = old else { return Err(RepairError::Lost { target: None, losses }) };
        let mut making = Making { old: &old, into, options, go_on };
        let mut ways: Vec<Way<'_, '_>> = vec![Way::Log];
        ways.extend((0..old.slots.len()).flat_map(|slot| [Way::Early(slot), Way::Flushed(slot)]));
        ways.extend(sources.iter_mut().map(Way::Source));
        for way in ways {
            match making.go(way) {
                Ok((store, from)) => {
                    let (before, low) = (old.low(), store.low());
                    let lost = before.zip(low).filter(|(before, low)| before < low);
                    return Ok(Some(Repaired { store, from, lost }));
                }
                Err(Stop::Unfit(_)) => making.sweep()?,
                Err(Stop::Broken(error)) => return Err(error.into()),
                Err(Stop::CutOff) => {
                    making.sweep()?;
                    return Ok(None);
                }
            }
        }
        old.name_losses(&mut losses);
        Err(RepairError::Lost { target: old.target(), losses })
    }
}

/// A way to the root that is to be reached.
enum Way<'a, 'b> {
    /// All records from the first on.
    Log,
    /// The lowest height that can still be rebuilt from what a slot names.
    Early(usize),
    /// What a slot names.
    Flushed(usize),
    Source(&'a mut Source<'b>),
}

/// What is left of a store.
struct Old<H: Hasher> {
    segments: Arc<Segments>,
    /// The good slots, the later first.
    slots: Vec<Superblock>,
    runs: Vec<Run>,
    _hasher: std::marker::PhantomData<H>,
}

impl<H: Hasher> Old<H> {
    /// Reads all that says what is where. None if not even its id is left.
    fn read(files: Arc<dyn Files>, options: &Options) -> Result<(Option<Self>, Vec<Loss>), StoreError> {
        let mut losses = Vec::new();
        let slots = match SuperblockFile::good_slots(&*files) {
            Ok(slots) => slots,
            Err(error @ StoreError::Unsupported { .. }) => return Err(error),
            Err(error) => {
                losses.push(Loss::Version(error));
                Vec::new()
            }
        };
        if let Some(slot) = slots.iter().find(|slot| slot.hasher != H::KIND) {
            return Err(StoreError::WrongHasher { expected: H::KIND.to_string(), found: slot.hasher.to_string() });
        }
        let names = list(&*files)?;
        let id = slots.first().map(|slot| slot.store).or_else(|| names.iter().find_map(|name| id_in(&*files, name)));
        let Some(id) = id else { return Ok((None, losses)) };
        let segments = Arc::new(Segments::new(files, id, options.value_cache_bytes));
        let ids: Vec<SegmentId> = names.iter().filter_map(|name| SegmentId::of_file_name(&id, name)).collect();
        // What cannot be opened is met by whoever needs it.
        ids.iter().for_each(|id| drop(segments.open(*id)));
        let runs = runs(&segments, ids.iter().copied().filter(|id| id.kind == Kind::Log));
        Ok((Some(Self { segments, slots, runs, _hasher: std::marker::PhantomData }), losses))
    }

    /// The lowest height that was kept.
    fn low(&self) -> Option<Height> {
        let low = self.slots.first().and_then(|slot| slot.low);
        low.or_else(|| self.runs.first().map(|run| run.first.height))
    }

    /// The last height that anything speaks of, and its root if something does.
    fn target(&self) -> Option<(Height, Option<Root>)> {
        let flushed = self.slots.first().map(|slot| slot.flushed);
        let flushed = flushed.and_then(|flushed| flushed.height.map(|height| (height, Some(flushed.root))));
        match self.runs.last() {
            // Nothing of the log is behind the version that is flushed.
            Some(run) if flushed.is_none_or(|(height, _)| run.last.height != height) => {
                Some((run.last.height, run.marked))
            }
            _ => flushed,
        }
    }

    fn name_losses(&self, losses: &mut Vec<Loss>) {
        let mut heights = None;
        for (at, run) in self.runs.iter().enumerate() {
            heights = Some(run.last.height);
            if let Some(problem) = &run.broken {
                // The next record says what it follows: a commit the height before, a mark its own.
                let to = self.runs.get(at + 1).map(|next| match next.first.step {
                    Step::Commit => next.first.height.prev().unwrap_or_default(),
                    _ => next.first.height,
                });
                // What was given up leaves gaps too.
                if to.is_none_or(|to| Some(to) >= self.low()) {
                    losses.push(Loss::Records { after: heights, to, problem: problem.clone() });
                }
            }
        }
        if self.runs.is_empty() && self.slots.iter().any(|slot| slot.flushed.height.is_some()) {
            let problem = StoreError::damaged("the log", 0, "no record of it can be read");
            losses.push(Loss::Records { after: heights, to: None, problem });
        }
        let Some(slot) = self.slots.first() else { return };
        match open_aside::<H>(&self.segments, &slot.flushed) {
            Ok(tree) => drop(look::entries(&tree, None, u64::MAX, &mut |problem| {
                if losses.len() < PROBLEMS_MAX {
                    losses.push(Loss::Entries(problem));
                }
            })),
            Err(error) => losses.push(Loss::Version(error)),
        }
    }
}

/// The id of the store that a segment's file belongs to, if its header is whole.
fn id_in(files: &dyn Files, name: &str) -> Option<StoreId> {
    let mut sector = [0; SECTOR_BYTES];
    files.open(name).ok()?.read_at(0, &mut sector).ok()?;
    let (store, id) = segment::header_says(&sector[..PAYLOAD_BYTES])?;
    let whole = matches!(Seal::new(&store, id.code()).check(0, &sector), Found::Valid(_));
    (whole && id.file_name(&store) == name).then_some(store)
}

/// All records of the log that are whole, in runs.
fn runs(segments: &Segments, ids: impl Iterator<Item = SegmentId>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut broken = None;
    let mut expected = None;
    // The session of the last record: what is older behind it was left over and never counted.
    let mut floor = 0;
    for id in ids {
        let segment = match segments.open(id) {
            Ok(segment) => segment,
            Err(error) => {
                broken.get_or_insert(error);
                continue;
            }
        };
        if expected.is_some_and(|expected| expected != id) && broken.is_none() {
            let file = expected.unwrap_or(id).file_name(segments.store());
            broken = Some(StoreError::Lost { file, what: "the log goes on in it".into() });
        }
        expected = Some(id.next());
        let mut at = 1;
        while at < segment.sectors() {
            match log::whole_record(segments, &segment, at, floor) {
                Ok(Some((record, session))) => {
                    floor = session;
                    let spot = Spot::of_sector(id, at);
                    let (next, _) = log::follow(spot, &record, Hash::ZERO);
                    let is_end = record.head.step == Step::Continue;
                    take_in(&mut runs, spot, record, broken.take());
                    if is_end {
                        break;
                    }
                    at = next.sector();
                }
                // The end, or a hole in the log: whatever comes behind it shows which.
                Ok(None) => {
                    let Some(next) = log::next_start(&segment, at + 1, floor) else { break };
                    let what = "the sector is empty, but something was written behind it";
                    let offset = u64::from(at) * SECTOR_BYTES as u64;
                    broken.get_or_insert_with(|| StoreError::damaged(segment.name(), offset, what));
                    at = next;
                }
                Err(error) => {
                    broken.get_or_insert(error);
                    let Some(next) = log::next_start(&segment, at + 1, floor) else { break };
                    at = next;
                }
            }
        }
    }
    if let (Some(problem), Some(last)) = (broken, runs.last_mut()) {
        last.broken.get_or_insert(problem);
    }
    runs
}

/// Adds a record to the last run, or begins another with it.
fn take_in(runs: &mut Vec<Run>, spot: Spot, record: Record, broken: Option<StoreError>) {
    let (head, hash, root) = (record.head, record.hash, record.root);
    if let Some(last) = runs.last_mut() {
        let follows = head.previous == last.last_hash && broken.is_none();
        match head.step {
            Step::Mark if follows => return last.marked = root,
            // Of a record that was written over, or of what a crash left behind.
            Step::Mark if broken.is_none() => return,
            _ if follows => {
                (last.last, last.last_hash, last.marked) = (head, hash, None);
                return;
            }
            _ => {}
        }
        let problem = broken.unwrap_or_else(|| {
            StoreError::damaged("the log", u64::from(spot.offset), "a record does not follow the one before it")
        });
        last.broken.get_or_insert(problem);
    }
    let marked = root.filter(|_| head.step == Step::Mark);
    let (start, previous) = (spot, head.previous);
    runs.push(Run { start, previous, first: head, last: head, last_hash: hash, marked, broken: None });
}

/// A store that is being made of an old one.
struct Making<'a, H: Hasher> {
    old: &'a Old<H>,
    into: Arc<dyn Files>,
    options: &'a Options,
    go_on: &'a mut dyn FnMut(Progress) -> bool,
}

impl<H: Hasher> Making<'_, H> {
    /// Goes one way to its end.
    fn go(&mut self, way: Way<'_, '_>) -> Result<(Store<H>, RepairedFrom), Stop> {
        self.ask(Progress { done: 0, total: 0, what: "records" })?;
        match way {
            Way::Log => self.by_log(),
            Way::Flushed(slot) => self.by_slot(slot, false),
            Way::Early(slot) => self.by_slot(slot, true),
            Way::Source(source) => self.by_source(source),
        }
    }

    /// Tells how far it is.
    fn ask(&mut self, progress: Progress) -> Result<(), Stop> {
        if (self.go_on)(progress) { Ok(()) } else { Err(Stop::CutOff) }
    }

    /// Removes what a way that led nowhere has left.
    fn sweep(&self) -> Result<(), StoreError> {
        // Without its superblock it is no store, whatever becomes of the rest.
        remove_if_there(&*self.into, superblock::FILE).map_err(StoreError::io("remove", superblock::FILE))?;
        sweep(&*self.into).map(drop)
    }

    fn by_log(&mut self) -> Result<(Store<H>, RepairedFrom), Stop> {
        let first = Spot::of_sector(SegmentId::first(Kind::Log), 1);
        let whole = self.old.runs.first().filter(|run| {
            let begins = run.start == first && run.previous == Hash::ZERO && run.first.step == Step::Commit;
            begins && self.old.runs.len() == 1 && run.broken.is_none()
        });
        if whole.is_none() {
            return Err(unfit("the log does not reach back to the first commit"));
        }
        let store = Store::create(Arc::clone(&self.into), self.options.clone()).map_err(Stop::Broken)?;
        self.follow(&store, first, Hash::ZERO)?;
        Ok((store, RepairedFrom::Log))
    }

    fn by_slot(&mut self, slot: usize, early: bool) -> Result<(Store<H>, RepairedFrom), Stop> {
        let flushed = self.old.slots[slot].flushed;
        let (Some(last), Some(record)) = (flushed.height, flushed.record) else {
            return Err(unfit("the slot names no version"));
        };
        let segments = &self.old.segments;
        let tree = open_aside::<H>(segments, &flushed).map_err(Stop::Unfit)?;
        let version = Version::new(Some(last), 0, tree, Some(record), 0);
        let mut index = Index::default();
        index.push(last, record);
        let mut spot = |height| loop {
            if let Some(spot) = index.find(segments, &version, height)? {
                return Ok(spot);
            }
        };
        let base = match early {
            false => Arc::clone(&version),
            true => {
                let low = self.old.slots[slot].low.unwrap_or(last);
                let base = lowest(segments, low, last, &mut spot);
                if base == last {
                    return Err(unfit("no earlier version can be rebuilt"));
                }
                let root = log::record_at(segments, spot(base.next()).map_err(Stop::Unfit)?).map_err(Stop::Unfit)?;
                history::rebuild(segments, &version, base, &mut spot, root.head.root_before, &mut |_, _| {})
                    .map_err(Stop::Unfit)?
            }
        };
        let from = base.height.unwrap_or(last);
        let store = self.build(from, base.root, &mut |take| feed(&base.tree, take))?;
        for height in from.0 + 1..=last.0 {
            let record = spot(Height(height)).and_then(|spot| log::record_at(segments, spot)).map_err(Stop::Unfit)?;
            apply(&store, &record)?;
            self.ask(Progress { done: height - from.0, total: last.0 - from.0, what: "heights" })?;
        }
        if store.root() != flushed.root {
            return Err(unfit("the history does not lead to the version the superblock names"));
        }
        self.follow(&store, flushed.log, flushed.log_hash)?;
        Ok((store, RepairedFrom::Version(from)))
    }

    fn by_source(&mut self, source: &mut Source<'_>) -> Result<(Store<H>, RepairedFrom), Stop> {
        let behind = self.behind(source)?;
        let store = self.build(source.height, source.root, source.entries)?;
        if let Some((at, previous)) = behind {
            self.follow(&store, at, previous)?;
        }
        Ok((store, RepairedFrom::Source(source.height)))
    }

    /// Where the log goes on behind a state from elsewhere; none if it stands at the end. The log must say its root.
    fn behind(&self, source: &Source<'_>) -> Result<Option<(Spot, Hash)>, Stop> {
        let flushed = self.old.slots.first().map(|slot| slot.flushed);
        let Some(run) = self.old.runs.last().filter(|run| run.broken.is_none()) else {
            return Err(unfit("the end of the log is lost"));
        };
        if run.last.height == source.height && run.marked == Some(source.root) {
            return Ok(None);
        }
        let segments = &self.old.segments;
        let mut found = None;
        let (mut at, mut previous) = (run.start, run.previous);
        let mut before = (run.first.step == Step::Commit).then(|| run.first.height.prev()).flatten();
        // Nothing is committed behind a flush if the log ends there, and then the slot says the root.
        let ends_flushed = |at: Spot| {
            flushed
                .filter(|flushed| flushed.log == at)
                .is_some_and(|flushed| (flushed.height, flushed.root) == (Some(source.height), source.root))
        };
        while previous != run.last_hash {
            let record = log::record_at(segments, at).map_err(Stop::Unfit)?;
            if before == Some(source.height) && record.head.root_before == source.root {
                found = Some((at, previous));
            }
            if record.head.step != Step::Continue {
                before = Some(record.head.height);
            }
            (at, _) = log::follow(at, &record, previous);
            previous = record.hash;
        }
        if ends_flushed(at) {
            return Ok(None);
        }
        found.map(Some).ok_or_else(|| unfit("the log does not say the root of that height"))
    }

    /// Builds a store of a whole state.
    fn build(
        &mut self,
        height: Height,
        root: Root,
        entries: &mut dyn FnMut(Take<'_>) -> Result<(), StoreError>,
    ) -> Result<Store<H>, Stop> {
        let building = Store::build(Arc::clone(&self.into), self.options.clone(), height);
        let mut building = building.map_err(Stop::Broken)?;
        let (mut broken, mut is_cut_off, mut done) = (None, false, 0);
        let fed = entries(&mut |namespace, key, value| {
            let key = Key::new(key).map_err(|error| StoreError::damaged("a state", 0, error.to_string()))?;
            building.push(namespace, &key, value).inspect_err(|error| broken = Some(error.clone()))?;
            done += 1;
            is_cut_off = done % 4_096 == 0 && !(self.go_on)(Progress { done, total: 0, what: "entries" });
            if is_cut_off { Err(cut_off()) } else { Ok(()) }
        });
        match (fed, broken) {
            _ if is_cut_off => Err(Stop::CutOff),
            (Err(_), Some(error)) if !matches!(error, StoreError::BadEntry { .. }) => Err(Stop::Broken(error)),
            (Err(error), _) => Err(Stop::Unfit(error)),
            (Ok(()), _) => building.finish(root).map_err(|error| match error {
                StoreError::WrongRoot { .. } => Stop::Unfit(error),
                error => Stop::Broken(error),
            }),
        }
    }

    /// Does again what the log says from `start` on, to its end.
    fn follow(&mut self, store: &Store<H>, start: Spot, previous: Hash) -> Result<(), Stop> {
        let (mut broken, mut is_cut_off, mut done) = (None, false, 0);
        let replayed = log::replay(&self.old.segments, start, previous, &mut |_, record| {
            done += 1;
            is_cut_off = done % 64 == 0 && !(self.go_on)(Progress { done, total: 0, what: "records" });
            if is_cut_off {
                return Err(cut_off());
            }
            apply(store, &record).map_err(|stop| match stop {
                Stop::Unfit(error) => error,
                Stop::CutOff => cut_off(),
                Stop::Broken(error) => {
                    broken = Some(error.clone());
                    error
                }
            })
        });
        let tail = match (replayed, broken) {
            _ if is_cut_off => return Err(Stop::CutOff),
            (_, Some(error)) => return Err(Stop::Broken(error)),
            (replayed, None) => replayed.map_err(Stop::Unfit)?,
        };
        match tail.marked {
            Some(marked) if marked != store.root() => Err(unfit("the log ends with another root than its mark says")),
            _ => Ok(()),
        }
    }
}

/// Ends a walk that was cut off. Nobody is told.
fn cut_off() -> StoreError {
    StoreError::damaged("the store", 0, "it was cut off")
}

fn unfit(what: &str) -> Stop {
    Stop::Unfit(StoreError::damaged("the store", 0, what))
}

/// Does again what a record did.
fn apply<H: Hasher>(store: &Store<H>, record: &Record) -> Result<(), Stop> {
    if record.head.root_before != store.root() {
        return Err(unfit("a record follows another root"));
    }
    let done = match record.head.step {
        Step::Commit => store.commit(record.head.height, record.diff()),
        Step::Rollback => store.rollback(record.head.height),
        Step::Base | Step::Continue | Step::Mark => return Err(unfit("a history begins in the middle of another")),
    };
    match done {
        Ok(root) if record.root.is_some_and(|said| said != root) => Err(unfit("a rollback leads to another root")),
        Ok(_) => Ok(()),
        Err(error @ (StoreError::WrongHeight { .. } | StoreError::CannotRollBack { .. })) => Err(Stop::Unfit(error)),
        Err(error) => Err(Stop::Broken(error)),
    }
}

/// The lowest height from which all records up to `last` and the values they replaced can be read.
fn lowest(
    segments: &Segments,
    low: Height,
    last: Height,
    spot: &mut dyn FnMut(Height) -> Result<Spot, StoreError>,
) -> Height {
    let mut height = last;
    while height > low {
        let read = spot(height).and_then(|spot| log::record_at(segments, spot)).and_then(|record| {
            let mut olds = record.writes.iter().filter_map(|logged| logged.old);
            olds.try_for_each(|place| segments.value_at(place).map(drop))
        });
        match (read, height.prev()) {
            (Ok(()), Some(before)) => height = before,
            _ => break,
        }
    }
    height
}

/// Hands over all entries of a version.
fn feed<H: Hasher>(tree: &Tree<H>, take: Take<'_>) -> Result<(), StoreError> {
    let names: Vec<Namespace> = tree.namespaces().map(|(name, ..)| name.clone()).collect();
    for name in names {
        for entry in tree.scan(&name, keelstone_tree::KeyRange::all()) {
            let (key, value) = entry?;
            take(&name, &key, &value)?;
        }
    }
    Ok(())
}
