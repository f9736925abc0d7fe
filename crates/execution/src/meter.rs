//! Metering: what work costs, counted in host calls and bytes and never measured (spec: EXEC-13).
//!
//! One unit of gas is about a nanosecond of the machine this was written on, so that limits can be thought of in time;
//! the count itself is the same on every machine. The prices are part of the chain's rules: changing one changes which
//! bundles succeed.

use crate::{Emitted, Stop};
use std::cell::Cell;

/// The prices.
pub mod cost {
    /// Running an operation at all: its link, its session's record.
    pub const OPERATION: u64 = 10_000;
    /// Reading and decoding one byte of arguments.
    pub const ARGS_BYTE: u64 = 2;
    /// Hashing and keeping one byte of a result.
    pub const RESULT_BYTE: u64 = 4;
    /// A point read, of a present or an absent key.
    pub const READ: u64 = 1_000;
    /// Opening a scan, whatever it finds: the way to where its first entry would be, in the state and in every layer above.
    pub const SCAN_OPENED: u64 = 2_000;
    /// One entry of a scan, also one that the draft deleted or replaced.
    pub const SCAN: u64 = 500;
    /// One byte of a key or value that was read, or of a bound of a scan.
    pub const READ_BYTE: u64 = 1;
    /// A write or a deletion, beside reading what was there.
    pub const WRITE: u64 = 5_000;
    /// One byte of a written key: each may put nine more levels on the way to the entry.
    pub const WRITE_KEY_BYTE: u64 = 100;
    /// One byte of a written value.
    pub const WRITE_VALUE_BYTE: u64 = 10;
    /// A name of a capability in the record of a session that is read: to decode, and to write again where it is the session
    /// at work.
    pub const CAPABILITY: u64 = 300;
    /// A bundle in flight that wrote a key, when another writes it: its entry in the list of those that did is written anew.
    pub const WRITER: u64 = 500;
    /// An event.
    pub const EVENT: u64 = 1_000;
    /// One byte of an event.
    pub const EVENT_BYTE: u64 = 10;
    /// Beginning part of an operation that may be taken back by itself: its layer, which every read within it looks into.
    pub const ATTEMPT: u64 = 1_000;
    /// The first write of an async bundle to a key: keeping what was there, forgetting it again, and restoring it.
    pub const UNDO: u64 = 40_000;
    /// One byte of what is kept of such a write.
    pub const UNDO_BYTE: u64 = 25;
    /// A later write of an async bundle to a key.
    pub const UNDO_AGAIN: u64 = 10_000;
    /// Decoding and hashing one operation of a bundle that is retried: the list of all of them has another root then.
    pub const LISTED: u64 = 1_000;
    /// Forgetting what was kept of one key, in the operation by which its owner ends a bundle: a deletion. The first write
    /// has paid for the work, and this keeps the work out of one block.
    pub const FORGET: u64 = 5_000;
}

/// Bytes that one bundle may change: what it may write by default, and 16 MiB for what the engine writes of it. A block has
/// room for that beside what others change, and for a bundle that restores what another kept by default.
pub const CHANGE_BYTES_MAX: u64 = 80 << 20;

/// Most attempts within one another: every read looks into the layer of each, and what is kept is merged into each.
pub const ATTEMPTS_WITHIN_MAX: u64 = 8;

/// Most bytes of one result, encoded: what a receipt holds.
pub const RESULT_BYTES_MAX: usize = 1 << 20;

/// Most bytes of one event, encoded, beside its name: what a receipt holds.
pub const EVENT_BYTES_MAX: usize = 1 << 20;

/// How many changed bytes a byte of a result or an event counts as, where the room of a block is counted: blocks are read and
/// packed as a whole, and what is given in them, unlike what is changed, is asked for again and again.
const GIVEN_WEIGHT: u64 = 4;

/// What a result and events weigh, in changed bytes.
// spec: BLOCK-7
#[must_use]
pub fn given_weight(result: &[u8], events: &[Emitted]) -> u64 {
    let events: usize = events.iter().map(|event| event.name.len() + event.data.len()).sum();
    ((result.len() + events) as u64).saturating_mul(GIVEN_WEIGHT)
}

/// What one bundle may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Gas of the whole bundle.
    pub gas_max: u64,
    /// Bytes of keys and values written by the whole bundle, counting every write.
    pub write_bytes_max: u64,
    /// Bytes of keys and values that its operations change, each by itself: also those of the engine, of what is noted for
    /// the sake of bundles in flight, and of what is restored.
    pub change_bytes_max: u64,
    /// Events of the whole bundle.
    pub events_max: u64,
    /// Bytes of all events of the bundle.
    pub event_bytes_max: u64,
    /// Bytes of all results of the bundle.
    pub result_bytes_max: u64,
}

impl Default for Limits {
    /// About a second of one core, 64 MiB of writes, and a receipt of at most 8 MiB of results and events.
    fn default() -> Self {
        Self {
            gas_max: 1_000_000_000,
            write_bytes_max: 64 << 20,
            change_bytes_max: CHANGE_BYTES_MAX,
            events_max: 10_000,
            event_bytes_max: 4 << 20,
            result_bytes_max: 4 << 20,
        }
    }
}

/// What a bundle, or several operations, wrote, emitted and returned: what [`Limits`] bound beside gas.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Made {
    written: u64,
    events: u64,
    event_bytes: u64,
    result_bytes: u64,
}

impl Made {
    pub(crate) fn add(&mut self, more: Self) {
        self.written = self.written.saturating_add(more.written);
        self.events = self.events.saturating_add(more.events);
        self.event_bytes = self.event_bytes.saturating_add(more.event_bytes);
        self.result_bytes = self.result_bytes.saturating_add(more.result_bytes);
    }

    fn exceeds(&self, limits: &Limits) -> bool {
        self.written > limits.write_bytes_max
            || self.events > limits.events_max
            || self.event_bytes > limits.event_bytes_max
            || self.result_bytes > limits.result_bytes_max
    }

    /// Whether one of the limits is reached.
    pub(crate) fn reaches(&self, limits: &Limits) -> bool {
        self.written >= limits.write_bytes_max
            || self.events >= limits.events_max
            || self.event_bytes >= limits.event_bytes_max
            || self.result_bytes >= limits.result_bytes_max
    }
}

/// The running count of one bundle.
#[derive(Debug)]
pub(crate) struct Meter {
    limits: Limits,
    used: Cell<u64>,
    /// What `used` may reach: the bundle's limit, or what the operation at work may use if that is less.
    end: Cell<u64>,
    /// What the operation at work was allowed, for the error.
    allowed: Cell<u64>,
    written: Cell<u64>,
    changed: Cell<u64>,
    events: Cell<u64>,
    event_bytes: Cell<u64>,
    result_bytes: Cell<u64>,
}

impl Meter {
    pub(crate) fn new(limits: Limits) -> Self {
        let zero = || Cell::new(0);
        let (end, allowed) = (Cell::new(limits.gas_max), Cell::new(limits.gas_max));
        let (written, changed, events, event_bytes, result_bytes) = (zero(), zero(), zero(), zero(), zero());
        Self { limits, used: zero(), end, allowed, written, changed, events, event_bytes, result_bytes }
    }

    /// Begins an operation that may use at most `gas_max` of what is left.
    pub(crate) fn begin(&self, gas_max: u64) {
        let end = self.used.get().saturating_add(gas_max).min(self.limits.gas_max);
        self.end.set(end);
        self.allowed.set(gas_max.min(self.limits.gas_max));
    }

    /// Counts an operation that was run elsewhere, within `gas_max`, and used this. False, and nothing is counted, if here
    /// it would have come to a limit.
    // spec: EXEC-15. Sums only grow: what ends within its limits was within them all the way.
    pub(crate) fn take(&self, gas_max: u64, gas: u64, made: &Made) -> bool {
        self.begin(gas_max);
        let used = self.used.get().saturating_add(gas);
        let mut sums = self.made();
        sums.add(*made);
        if used > self.end.get() || sums.exceeds(&self.limits) {
            return false;
        }
        self.used.set(used);
        self.written.set(sums.written);
        self.events.set(sums.events);
        self.event_bytes.set(sums.event_bytes);
        self.result_bytes.set(sums.result_bytes);
        true
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.get()
    }

    /// What was written, emitted and returned so far.
    pub(crate) fn made(&self) -> Made {
        let (written, events) = (self.written.get(), self.events.get());
        Made { written, events, event_bytes: self.event_bytes.get(), result_bytes: self.result_bytes.get() }
    }

    pub(crate) fn charge(&self, gas: u64) -> Result<(), Stop> {
        let used = self.used.get().saturating_add(gas);
        // What was refused is not counted as used: a receipt never says more than the limit.
        if used > self.end.get() {
            self.used.set(self.end.get());
            return Err(Stop::OutOfGas { limit: self.allowed.get() });
        }
        self.used.set(used);
        Ok(())
    }

    pub(crate) fn charge_bytes(&self, base: u64, rate: u64, bytes: usize) -> Result<(), Stop> {
        self.charge(base.saturating_add(rate.saturating_mul(bytes as u64)))
    }

    pub(crate) fn write(&self, key: usize, value: usize) -> Result<(), Stop> {
        self.charge_bytes(cost::WRITE, cost::WRITE_KEY_BYTE, key)?;
        self.charge_bytes(0, cost::WRITE_VALUE_BYTE, value)?;
        add("bytes written by a bundle", &self.written, key.saturating_add(value), self.limits.write_bytes_max)
    }

    /// Counts what an operation changed. Run or taken, it has changed the same.
    pub(crate) fn changed(&self, bytes: u64) -> Result<(), Stop> {
        self.may_change(bytes)?;
        self.changed.set(self.changed.get().saturating_add(bytes));
        Ok(())
    }

    /// Whether so much more may be changed.
    pub(crate) fn may_change(&self, bytes: u64) -> Result<(), Stop> {
        let (found, limit) = (self.changed.get().saturating_add(bytes), self.limits.change_bytes_max);
        match found > limit {
            true => Err(Stop::Limit { what: "bytes changed by a bundle", found, limit }),
            false => Ok(()),
        }
    }

    pub(crate) fn event(&self, name: usize, data: usize) -> Result<(), Stop> {
        self.charge_bytes(cost::EVENT, cost::EVENT_BYTE, name + data)?;
        bounded("bytes of an event", data, EVENT_BYTES_MAX)?;
        add("events of a bundle", &self.events, 1, self.limits.events_max)?;
        add("bytes of a bundle's events", &self.event_bytes, name + data, self.limits.event_bytes_max)
    }

    pub(crate) fn result(&self, bytes: usize) -> Result<(), Stop> {
        self.charge_bytes(0, cost::RESULT_BYTE, bytes)?;
        bounded("bytes of a result", bytes, RESULT_BYTES_MAX)?;
        add("bytes of a bundle's results", &self.result_bytes, bytes, self.limits.result_bytes_max)
    }
}

fn bounded(what: &'static str, found: usize, limit: usize) -> Result<(), Stop> {
    match found > limit {
        true => Err(Stop::Limit { what, found: found as u64, limit: limit as u64 }),
        false => Ok(()),
    }
}

/// Adds to a sum that has a limit.
fn add(what: &'static str, sum: &Cell<u64>, more: usize, limit: u64) -> Result<(), Stop> {
    let found = sum.get().saturating_add(more as u64);
    if found > limit {
        return Err(Stop::Limit { what, found, limit });
    }
    sum.set(found);
    Ok(())
}
