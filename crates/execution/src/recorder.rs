//! What a run reads, so that a witness of it can be made.
//!
//! A [`Recorder`] stands between execution and a version of the state and notes every key that was asked for, present
//! or absent, and every range that was scanned, as far as the scan went. A proof of these reads is a witness: the same
//! bundles run over it to the same hashes (spec: EXEC-15, EXEC-17).

use keelstone_codec::{Key, Namespace, Value};
use keelstone_tree::{KeyRange, Query, Read, ReadError, Scan};
use std::cell::RefCell;
use std::collections::BTreeSet;
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
    /// Whether a key was asked for, or lies in a range that was scanned.
    pub(crate) fn holds(&self, namespace: &Namespace, key: &Key) -> bool {
        let within = |(of, start, end): &(Namespace, Vec<u8>, Option<Vec<u8>>)| {
            of == namespace && **start <= **key && end.as_ref().is_none_or(|end| **key < **end)
        };
        self.keys.contains(&(namespace.clone(), key.to_vec())) || self.ranges.iter().any(within)
    }

    /// Adds what was read besides.
    pub(crate) fn add(&mut self, more: Self) {
        self.keys.extend(more.keys);
        self.ranges.extend(more.ranges);
    }

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

/// A version of the state that notes what is read of it. Clones share the notes.
#[derive(Clone)]
pub struct Recorder {
    state: Rc<dyn Read>,
    reads: Rc<RefCell<ReadSet>>,
}

impl Recorder {
    /// Notes what is read of `state`.
    #[must_use]
    pub fn new(state: impl Read + 'static) -> Self {
        Self { state: Rc::new(state), reads: Rc::default() }
    }

    /// Takes note of a key that something above the state answered for.
    pub(crate) fn note(&self, namespace: &Namespace, key: &[u8]) {
        self.reads.borrow_mut().keys.insert((namespace.clone(), key.to_vec()));
    }

    /// What was read since the last time this was asked.
    #[must_use]
    pub fn take(&self) -> ReadSet {
        self.reads.take()
    }

    /// What was read so far.
    #[must_use]
    pub fn reads(&self) -> ReadSet {
        self.reads.borrow().clone()
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
        self.recorder.reads.borrow_mut().ranges.insert((self.namespace.clone(), start, end));
    }
}
