//! The host: what typed collections and contexts reach the state through.
//!
//! A host stands over one immutable version of the state and keeps three layers of changes on top of it: the block's,
//! the bundle's and the operation's; and one more for each attempt within that (spec: EXEC-24). A read sees the topmost layer that knows the key. Dropping a layer leaves no
//! trace, which is all that the rollback of a transition is. Every call is charged to the meter, and the first call
//! that cannot be answered stops the operation for good.
//!
//! Rules: `spec/chain.md`, EXEC-2, EXEC-13, EXEC-17.

use crate::ahead::Touched;
use crate::changes::Changes;
use crate::meter::{ATTEMPTS_WITHIN_MAX, Limits, Meter, cost};
use crate::recorder::Marks;
use crate::{BlockContext, Recorder, Stop};
use keelstone_codec::{Key, Namespace, Value};
use keelstone_tree::{KeyRange, Read, ReadError};
use std::cell::{Cell, Ref, RefCell};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

/// What a collection is bound to. Cheap to clone; one thread.
#[derive(Clone)]
pub struct Handle(Rc<Host>);

struct Host {
    base: Box<dyn Read>,
    block: Option<BlockContext>,
    /// From the oldest to the newest; reads go from the newest down. Never empty. Others may look at them where they lie
    /// for as long as nothing is written.
    layers: RefCell<Vec<Arc<Changes>>>,
    meter: RefCell<Meter>,
    stop: RefCell<Option<Stop>>,
    spaces: RefCell<BTreeMap<&'static str, Namespace>>,
    /// Hears of reads that one of the lowest layers answers, of so many; the state below tells it of those it answers.
    recorder: RefCell<Option<(Recorder, usize)>>,
    /// Attempts that are under way.
    attempts: Cell<u64>,
    /// Keys written, by whomever and whatever became of it, since somebody began to ask.
    touched: RefCell<Option<Touched>>,
}

impl Handle {
    pub(crate) fn new(base: Box<dyn Read>, block: Option<BlockContext>) -> Self {
        Self::over(base, block, vec![Arc::default()])
    }

    /// A host that begins on layers of another's.
    pub(crate) fn over(base: Box<dyn Read>, block: Option<BlockContext>, layers: Vec<Arc<Changes>>) -> Self {
        let unlimited = Limits { gas_max: u64::MAX, ..Limits::default() };
        Self(Rc::new(Host {
            base,
            block,
            layers: RefCell::new(layers),
            meter: RefCell::new(Meter::new(unlimited)),
            stop: RefCell::new(None),
            spaces: RefCell::default(),
            recorder: RefCell::default(),
            attempts: Cell::default(),
            touched: RefCell::default(),
        }))
    }

    /// The namespace of this name, made once for each host. The macros check names when they compile.
    ///
    /// # Panics
    /// For a name that is none, which only a hand-written `Space` can hold.
    #[doc(hidden)]
    #[must_use]
    pub fn space(&self, name: &'static str) -> Namespace {
        let mut spaces = self.0.spaces.borrow_mut();
        let make = || Namespace::new(name).expect("the name of a namespace is checked where it is declared");
        spaces.entry(name).or_insert_with(make).clone()
    }

    pub(crate) fn block(&self) -> Option<&BlockContext> {
        self.0.block.as_ref()
    }

    // ---- layers

    pub(crate) fn push(&self) {
        self.0.layers.borrow_mut().push(Arc::default());
    }

    /// Drops the newest layer: what it held never happened.
    pub(crate) fn pop(&self) -> Changes {
        let mut layers = self.0.layers.borrow_mut();
        assert!(layers.len() > 1, "the block's layer is never popped");
        layers.pop().map(Arc::unwrap_or_clone).unwrap_or_default()
    }

    /// Puts the newest layer into the one below.
    pub(crate) fn merge(&self) {
        let top = self.pop();
        self.on_top(|layer| layer.merge(top));
    }

    /// Puts changes that were made elsewhere into the newest layer.
    pub(crate) fn adopt(&self, changes: Changes) {
        if let Some(touched) = &mut *self.0.touched.borrow_mut() {
            changes.iter().for_each(|(namespace, key, _)| touched.note(namespace, key));
        }
        self.on_top(|layer| layer.merge(changes));
    }

    /// As [`Handle::adopt`], of keys whose marks are known.
    pub(crate) fn adopt_marked(&self, changes: Changes, marks: &[u64]) {
        if let Some(touched) = &mut *self.0.touched.borrow_mut() {
            touched.note_all(&changes, marks);
        }
        self.on_top(|layer| layer.merge(changes));
    }

    /// From now on this recorder, on which the host stands, hears also of what the lowest `layers` answer.
    pub(crate) fn note_in(&self, recorder: Recorder, layers: usize) {
        *self.0.recorder.borrow_mut() = Some((recorder, layers));
    }

    /// A layer within an operation, which is dropped or kept by itself.
    // spec: EXEC-24
    pub(crate) fn begin_attempt(&self) -> Result<(), Stop> {
        let (found, limit) = (self.0.attempts.get() + 1, ATTEMPTS_WITHIN_MAX);
        self.metered(|meter| match found > limit {
            true => Err(Stop::Limit { what: "attempts within one another", found, limit }),
            false => meter.charge(cost::ATTEMPT),
        })?;
        self.0.attempts.set(found);
        self.push();
        Ok(())
    }

    pub(crate) fn end_attempt(&self, is_kept: bool) {
        self.0.attempts.set(self.0.attempts.get() - 1);
        match is_kept {
            true => self.merge(),
            false => drop(self.pop()),
        }
    }

    pub(crate) fn top(&self) -> Ref<'_, Changes> {
        Ref::map(self.0.layers.borrow(), |layers| &**layers.last().expect("the block's layer is never popped"))
    }

    /// Takes the newest layer's changes out of it.
    pub(crate) fn take_top(&self) -> Changes {
        self.on_top(std::mem::take)
    }

    /// All layers as they are now.
    pub(crate) fn layers(&self) -> Vec<Arc<Changes>> {
        self.0.layers.borrow().clone()
    }

    fn on_top<T>(&self, change: impl FnOnce(&mut Changes) -> T) -> T {
        let mut layers = self.0.layers.borrow_mut();
        change(Arc::make_mut(layers.last_mut().expect("the block's layer is never popped")))
    }

    // ---- what is written while others know what was there

    /// From now on it is noted which keys are written; or no longer.
    pub(crate) fn note_touched(&self, note: Option<Touched>) {
        *self.0.touched.borrow_mut() = note;
    }

    /// Whether something of what was read has been written since it is noted.
    pub(crate) fn has_touched(&self, reads: &Marks) -> bool {
        self.0.touched.borrow().as_ref().is_some_and(|touched| touched.meets(reads))
    }

    pub(crate) fn depth(&self) -> usize {
        self.0.layers.borrow().len()
    }

    // ---- metering

    pub(crate) fn set_meter(&self, limits: Limits) {
        *self.0.meter.borrow_mut() = Meter::new(limits);
    }

    pub(crate) fn meter(&self) -> Ref<'_, Meter> {
        self.0.meter.borrow()
    }

    /// Takes note of what a host call comes to: the first stop is kept, and is the answer to every call after it.
    pub(crate) fn metered<T>(&self, call: impl FnOnce(&Meter) -> Result<T, Stop>) -> Result<T, Stop> {
        if let Some(stop) = &*self.0.stop.borrow() {
            return Err(stop.clone());
        }
        let result = call(&self.0.meter.borrow());
        if let Err(stop) = &result {
            *self.0.stop.borrow_mut() = Some(stop.clone());
        }
        result
    }

    /// Stops the operation.
    pub(crate) fn stop(&self, stop: Stop) -> Stop {
        self.0.stop.borrow_mut().get_or_insert(stop).clone()
    }

    pub(crate) fn take_stop(&self) -> Option<Stop> {
        self.0.stop.borrow_mut().take()
    }

    /// Runs the engine's own reads and writes through typed collections, on nobody's account. What it may do is bounded
    /// by whoever calls it; the count of the bundle at work goes on afterwards where it stood.
    pub(crate) fn unmetered<T>(&self, run: impl FnOnce() -> T) -> T {
        let unlimited = Limits { gas_max: u64::MAX, write_bytes_max: u64::MAX, ..Limits::default() };
        let saved = self.0.meter.replace(Meter::new(unlimited));
        let out = run();
        self.0.meter.replace(saved);
        out
    }

    // ---- state, not charged: for the engine itself

    pub(crate) fn peek(&self, namespace: &Namespace, key: &[u8]) -> Result<Option<Value>, ReadError> {
        let layers = self.0.layers.borrow();
        for (depth, layer) in layers.iter().enumerate().rev() {
            let Some(change) = layer.find(namespace, key) else { continue };
            if let Some((recorder, layers)) = &*self.0.recorder.borrow()
                && depth < *layers
            {
                recorder.note(namespace, key);
            }
            return Ok(change.after.clone());
        }
        self.0.base.get(namespace, key)
    }

    /// Writes to the newest layer. If that layer knows the key already, its first value before stands.
    pub(crate) fn poke(&self, namespace: &Namespace, key: Key, value: Option<Value>) -> Result<(), ReadError> {
        let before = self.peek(namespace, &key)?;
        self.write(namespace, key, before, value);
        Ok(())
    }

    pub(crate) fn write(&self, namespace: &Namespace, key: Key, before: Option<Value>, after: Option<Value>) {
        if let Some(touched) = &mut *self.0.touched.borrow_mut() {
            touched.note(namespace, &key);
        }
        self.on_top(|layer| layer.write(namespace, key, before, after));
    }

    // ---- state, charged: for transitions

    pub(crate) fn get(&self, namespace: &Namespace, key: &[u8]) -> Result<Option<Value>, Stop> {
        self.metered(|meter| {
            meter.charge_bytes(cost::READ, cost::READ_BYTE, key.len())?;
            let value = self.peek(namespace, key)?;
            meter.charge_bytes(0, cost::READ_BYTE, value.as_ref().map_or(0, |value| value.len()))?;
            Ok(value)
        })
    }

    pub(crate) fn put(&self, namespace: &Namespace, key: Key, value: Option<Value>) -> Result<(), Stop> {
        self.metered(|meter| {
            meter.write(key.len(), value.as_ref().map_or(0, |value| value.len()))?;
            let before = self.peek(namespace, &key)?;
            meter.charge_bytes(0, cost::READ_BYTE, before.as_ref().map_or(0, |value| value.len()))?;
            self.write(namespace, key, before, value);
            Ok(())
        })
    }

    pub(crate) fn scan(&self, namespace: &Namespace, range: KeyRange) -> Scan<'_> {
        self.scan_with(namespace, range, true)
    }

    /// As [`Handle::scan`], not charged: for the engine itself.
    pub(crate) fn scan_free(&self, namespace: &Namespace, range: KeyRange) -> keelstone_tree::Scan<'_> {
        Box::new(self.scan_with(namespace, range, false).map(|entry| match entry {
            Err(Stop::Read(error)) => Err(error),
            Err(stop) => unreachable!("a scan that is not charged stops at reads only: {stop}"),
            Ok(entry) => Ok(entry),
        }))
    }

    fn scan_with(&self, namespace: &Namespace, range: KeyRange, charged: bool) -> Scan<'_> {
        // spec: EXEC-13. Before anything is looked at: the way to where nothing is costs what the way to an entry does.
        let bounds = range.start.len().saturating_add(range.end.as_ref().map_or(0, Vec::len));
        let opened = if charged {
            self.metered(|meter| meter.charge_bytes(cost::SCAN_OPENED, cost::READ_BYTE, bounds))
        } else {
            Ok(())
        };
        let base = match opened {
            Ok(()) => self.0.base.scan(namespace, range.clone()),
            Err(_) => Box::new(std::iter::empty()),
        };
        let (namespace, refused) = (namespace.clone(), opened.err());
        let (head, cursor) = (None, None);
        Scan { handle: self, charged, namespace, range, refused, base, ended: false, head, cursor, done: false }
    }
}

/// A scan over all layers at once, merged with the state below them.
///
/// The layers are asked anew at every step, by the last key given out, so that a transition may write while it scans:
/// what it writes ahead of the scan is found, what it writes behind is not.
pub(crate) struct Scan<'a> {
    handle: &'a Handle,
    charged: bool,
    namespace: Namespace,
    range: KeyRange,
    /// Why it was not opened, until that is told.
    refused: Option<Stop>,
    base: keelstone_tree::Scan<'a>,
    /// The base has no more entries.
    ended: bool,
    /// The next entry of the base, read ahead.
    head: Option<(Key, Value)>,
    /// The last key that was given out or skipped.
    cursor: Option<Key>,
    done: bool,
}

impl Scan<'_> {
    /// The next key that any layer knows, with what the topmost such layer holds there.
    fn overlay(&self) -> Option<(Key, Option<Value>)> {
        let layers = self.handle.0.layers.borrow();
        let mut best: Option<(&Key, &Option<Value>)> = None;
        for layer in layers.iter().rev() {
            let Some((key, change)) = layer.step(&self.namespace, &self.range, self.cursor.as_ref()) else { continue };
            // Layers come from the newest down: an older one wins by coming earlier, never by the same key.
            if best.is_none_or(|(found, _)| self.order(key, found) == Ordering::Less) {
                best = Some((key, &change.after));
            }
        }
        best.map(|(key, after)| (key.clone(), after.clone()))
    }

    fn order(&self, a: &Key, b: &Key) -> Ordering {
        if self.range.reverse { b.cmp(a) } else { a.cmp(b) }
    }

    fn read_ahead(&mut self) -> Result<Option<(Key, Value)>, Stop> {
        if !self.charged {
            return Ok(self.base.next().transpose()?);
        }
        self.handle.metered(|meter| {
            let Some(entry) = self.base.next().transpose()? else { return Ok(None) };
            meter.charge_bytes(cost::SCAN, cost::READ_BYTE, entry.0.len() + entry.1.len())?;
            Ok(Some(entry))
        })
    }

    fn step(&mut self) -> Result<Option<(Key, Value)>, Stop> {
        loop {
            if self.head.is_none() && !self.ended {
                self.head = self.read_ahead()?;
                self.ended = self.head.is_none();
            }
            let Some((key, value)) = self.overlay() else {
                let found = self.head.take();
                self.cursor = found.as_ref().map(|(key, _)| key.clone());
                return Ok(found);
            };
            let order = self.head.as_ref().map_or(Ordering::Less, |(head, _)| self.order(&key, head));
            if order == Ordering::Greater {
                let found = self.head.take();
                self.cursor = found.as_ref().map(|(key, _)| key.clone());
                return Ok(found);
            }
            if order == Ordering::Equal {
                self.head = None;
            }
            if self.charged {
                let bytes = key.len() + value.as_ref().map_or(0, |value| value.len());
                self.handle.metered(|meter| meter.charge_bytes(cost::SCAN, cost::READ_BYTE, bytes))?;
            }
            self.cursor = Some(key.clone());
            if let Some(value) = value {
                return Ok(Some((key, value)));
            }
        }
    }
}

impl Iterator for Scan<'_> {
    type Item = Result<(Key, Value), Stop>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let item = match self.refused.take() {
            Some(stop) => Some(Err(stop)),
            None => self.step().transpose(),
        };
        self.done = !matches!(item, Some(Ok(_)));
        item
    }
}
