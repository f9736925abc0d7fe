//! What a run reads, so that a witness of it can be made.
//!
//! A [`Recorder`] stands between execution and a version of the state and notes every key that was asked for, present
//! or absent, and every range that was scanned, as far as the scan went. A proof of these reads is a witness: the same
//! bundles run over it to the same hashes (spec: EXEC-15, EXEC-17).

use keelstone_codec::{Key, Namespace, Value};
use keelstone_tree::{KeyRange, Query, Read, ReadError, Scan};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hasher};
use std::rc::Rc;

/// Everything that was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadSet {
    /// Keys that were asked for, also absent ones.
    pub keys: BTreeSet<(Namespace, Vec<u8>)>,
    /// Ranges that were scanned, each as (namespace, first key, first key behind it). A range says that there is
    /// nothing in it but what was seen.
    pub ranges: BTreeSet<(Namespace, Vec<u8>, Option<Vec<u8>>)>,
}

impl ReadSet {
    /// The questions whose proof is a witness of these reads, and of whatever is written to the keys among them.
    /// Execution reads every key before it writes it, so that is all that was written.
    #[must_use]
    pub fn queries(&self) -> Vec<Query> {
        // A key that no key can be is absent from every state: there is nothing to prove.
        let keys = self
            .keys
            .iter()
            .filter_map(|(namespace, key)| Some(Query::Key(namespace.clone(), Key::new(key.as_slice()).ok()?)));
        let ranges = self.ranges.iter().map(|(namespace, start, end)| {
            Query::Range(namespace.clone(), KeyRange { start: start.clone(), end: end.clone(), reverse: false })
        });
        keys.chain(ranges).collect()
    }
}

/// What was read, for whoever only asks whether something of it was written since.
///
/// Of a key its [`mark`] is kept. Two keys may have one: then what was read seems written, and is read again.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    /// Keys that were asked for, also absent ones.
    pub(crate) keys: Vec<u64>,
    /// Ranges that were scanned, as in a [`ReadSet`].
    pub(crate) ranges: Vec<(Namespace, Vec<u8>, Option<Vec<u8>>)>,
}

impl Marks {
    /// Whether a key was asked for, or lies in a range that was scanned.
    pub(crate) fn hold(&self, namespace: &Namespace, key: &Key) -> bool {
        let within = |(of, start, end): &(Namespace, Vec<u8>, Option<Vec<u8>>)| {
            of == namespace && **start <= **key && end.as_ref().is_none_or(|end| **key < **end)
        };
        self.keys.contains(&mark(namespace, key)) || self.ranges.iter().any(within)
    }
}

/// A short name of a key, which no other is likely to have. It never leaves the process.
pub(crate) fn mark(namespace: &Namespace, key: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(namespace.as_str().as_bytes());
    hasher.write_u8(0); // Which is in no name.
    hasher.write(key);
    hasher.finish()
}

/// A version of the state that notes what is read of it. Clones share the notes.
#[derive(Clone)]
pub struct Recorder {
    state: Rc<dyn Read>,
    notes: Rc<Notes>,
}

enum Notes {
    Whole(RefCell<ReadSet>),
    /// With the key that is passed over.
    Brief(RefCell<Marks>, RefCell<Option<(Namespace, Key)>>),
}

impl Recorder {
    /// Notes what is read of `state`.
    #[must_use]
    pub fn new(state: impl Read + 'static) -> Self {
        Self { state: Rc::new(state), notes: Rc::new(Notes::Whole(RefCell::default())) }
    }

    /// Notes what is read of `state` as [`Marks`], for [`Self::take_marks`].
    pub(crate) fn brief(state: impl Read + 'static) -> Self {
        Self { state: Rc::new(state), notes: Rc::new(Notes::Brief(RefCell::default(), RefCell::default())) }
    }

    /// Takes note of a key that something above the state answered for.
    pub(crate) fn note(&self, namespace: &Namespace, key: &[u8]) {
        match &*self.notes {
            Notes::Whole(reads) => drop(reads.borrow_mut().keys.insert((namespace.clone(), key.to_vec()))),
            // By the key itself: by its mark another might be passed over with it, and what was written there go unseen.
            Notes::Brief(_, but) if but.borrow().as_ref().is_some_and(|(of, but)| of == namespace && **but == *key) => {
            }
            Notes::Brief(marks, _) => marks.borrow_mut().keys.push(mark(namespace, key)),
        }
    }

    fn note_range(&self, range: (Namespace, Vec<u8>, Option<Vec<u8>>)) {
        match &*self.notes {
            Notes::Whole(reads) => drop(reads.borrow_mut().ranges.insert(range)),
            Notes::Brief(marks, _) => marks.borrow_mut().ranges.push(range),
        }
    }

    /// What was read since the last time this was asked.
    #[must_use]
    pub fn take(&self) -> ReadSet {
        match &*self.notes {
            Notes::Whole(reads) => reads.take(),
            Notes::Brief(..) => ReadSet::default(),
        }
    }

    /// What was read so far.
    #[must_use]
    pub fn reads(&self) -> ReadSet {
        match &*self.notes {
            Notes::Whole(reads) => reads.borrow().clone(),
            Notes::Brief(..) => ReadSet::default(),
        }
    }

    /// From now on takes no note of this key, or of every one again; of [`Self::brief`].
    pub(crate) fn pass_over(&self, key: Option<(Namespace, Key)>) {
        if let Notes::Brief(_, but) = &*self.notes {
            *but.borrow_mut() = key;
        }
    }

    /// What was read since the last time this was asked, of [`Self::brief`].
    pub(crate) fn take_marks(&self) -> Marks {
        match &*self.notes {
            Notes::Whole(_) => Marks::default(),
            Notes::Brief(marks, _) => marks.take(),
        }
    }
}

impl Read for Recorder {
    fn get(&self, namespace: &Namespace, key: &[u8]) -> Result<Option<Value>, ReadError> {
        self.note(namespace, key);
        self.state.get(namespace, key)
    }

    fn scan<'a>(&'a self, namespace: &Namespace, range: KeyRange) -> Scan<'a> {
        let scan = self.state.scan(namespace, range.clone());
        Box::new(Recorded { scan, recorder: self, namespace: namespace.clone(), range, reached: None, whole: false })
    }
}

/// A scan that notes, when it is dropped, how far it went.
struct Recorded<'a> {
    scan: Scan<'a>,
    recorder: &'a Recorder,
    namespace: Namespace,
    range: KeyRange,
    reached: Option<Key>,
    whole: bool,
}

impl Iterator for Recorded<'_> {
    type Item = Result<(Key, Value), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.scan.next();
        match &item {
            Some(Ok((key, _))) => self.reached = Some(key.clone()),
            // A scan that failed has shown nothing more; one that ended has seen the whole range.
            Some(Err(_)) => {}
            None => self.whole = true,
        }
        item
    }
}

impl Drop for Recorded<'_> {
    fn drop(&mut self) {
        let (mut start, mut end) = (self.range.start.clone(), self.range.end.clone());
        match (&self.reached, self.whole) {
            (_, true) => {}
            (None, false) => return,
            (Some(key), false) if self.range.reverse => start = key.to_vec(),
            (Some(key), false) => {
                let mut behind = key.to_vec();
                behind.push(0);
                end = Some(behind);
            }
        }
        self.recorder.note_range((self.namespace.clone(), start, end));
    }
}
