//! What an owner may do about a bundle in flight, as functions of the chain: registered and metered like any other.
//!
//! Rules: `spec/chain.md`, EXEC-10 to EXEC-12.

use super::engine::{FORGET_ENTRIES_MAX, Forget, end};
use super::record::{Before, BundleId, BundleRecord, Bundles, Changer, Status, StopReason, Writer, key_hash};
use crate::block::is_application;
use crate::merkle::list_root;
use crate::meter::cost;
use crate::world::{Draft, Transition, World};
use crate::{
    Context, Denied, Operation, Registry, SessionId, Sessions, Stop, denied, ensure, event, rollback_link, transition,
};
use keelstone_codec::{Encode, Hash, Key, Namespace, StateHash, Value};

/// A bundle runs again.
#[event("bundles.resumed")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resumed {
    /// Which.
    pub bundle: BundleId,
    /// The operation it goes on with.
    pub operation: u32,
    /// How often an operation was replaced.
    pub revision: u32,
}

/// What a bundle did was taken back.
#[event("bundles.rolled_back")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolledBack {
    /// Which.
    pub bundle: BundleId,
    /// The session it ran in, whose chain the rollback extends.
    pub session: SessionId,
    /// That session's state hash before.
    pub before: StateHash,
    /// Its state hash afterwards (spec: EXEC-11).
    pub after: StateHash,
    /// How many keys hold something else now.
    pub restored: u64,
    /// The digest of the restoring changes.
    pub digest: Hash,
}

/// A bundle was left as it stood.
#[event("bundles.abandoned")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abandoned {
    /// Which.
    pub bundle: BundleId,
    /// How many operations took effect.
    pub operation: u32,
}

/// Lets a stopped bundle run again from its checkpoint. The chain goes on with it at once, if the block has gas for as
/// much as one bundle may use: so it also hurries one that runs.
#[transition("bundles.resume/1", needs = "bundles.manage")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resume {
    /// Which.
    pub bundle: BundleId,
}

/// Replaces an operation that did not take effect yet, and lets the bundle run again.
// spec: EXEC-12
#[transition("bundles.retry/1", needs = "bundles.manage")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Which.
    pub bundle: BundleId,
    /// The operation's index.
    pub operation: u32,
    /// What stands there from now on.
    pub replacement: Operation,
    /// One more than the bundle's.
    pub revision: u32,
    /// The root of the list of operations as it becomes.
    pub operations: Hash,
}

/// Takes back all that a bundle did: only while nobody else wrote to its keys since. Costs a read of each key it wrote, a unit
/// for each byte kept, and what [`Abandon`] does.
// spec: EXEC-10
#[transition("bundles.roll_back/1", needs = "bundles.manage")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RollBack {
    /// Which.
    pub bundle: BundleId,
}

/// Ends a bundle and leaves what its batches did. Costs [`cost::FORGET`] for each key it wrote, up to as many as are forgotten
/// at a time.
#[transition("bundles.abandon/1", needs = "bundles.manage")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abandon {
    /// Which.
    pub bundle: BundleId,
}

/// Registers the functions and their events, in every registry: whatever chain takes async bundles in can end them. The
/// capability [`super::HOLD`] is reserved: whoever holds keys keeps everybody else off them.
// spec: EXEC-10, EXEC-12
pub(crate) fn register(registry: &mut Registry) {
    registry
        .reserve(super::HOLD)
        .register_system::<Bundles, Resume>()
        .register_system::<Bundles, Retry>()
        .register_system::<Bundles, RollBack>()
        .register_system::<Bundles, Abandon>()
        .event::<Resumed>()
        .event::<RolledBack>()
        .event::<Abandoned>();
}

/// The record of a bundle in flight that is the sender's, and is not the one at work: that one's record is written when its
/// batch ends, so what one of its own operations did to it would be undone in part.
// spec: EXEC-12
fn owned(world: &Draft<Bundles>, cx: &Context, id: &BundleId) -> Result<BundleRecord, Denied> {
    ensure!(cx.bundle != Some(*id), "bundle {id} is at work, and its own operations do not manage it");
    let record = world.records.get(id)?.ok_or_else(|| denied!("there is no bundle {id}"))?;
    ensure!(record.owner == cx.sender(), "bundle {id} is not yours");
    ensure!(record.is_in_flight(), "bundle {id} has ended");
    Ok(record)
}

/// Lets a bundle run, unless its time is over.
fn run_again(world: &mut Draft<Bundles>, cx: &mut Context, id: BundleId, record: BundleRecord) -> Result<u32, Denied> {
    let expired = record.status == Status::Stopped(StopReason::Expired);
    ensure!(!expired, "the last height of bundle {id}, {}, went by", record.last_height);
    let record = BundleRecord { status: Status::Running, updated: cx.system_height(), ..record };
    world.records.insert(&id, &record)?;
    world.queue.insert(&id)?;
    cx.emit(&Resumed { bundle: id, operation: record.current_operation, revision: record.revision })?;
    Ok(record.current_operation)
}

impl Transition<Bundles> for Resume {
    type Output = u32;

    fn apply(&self, world: &mut Draft<Bundles>, cx: &mut Context) -> Result<u32, Denied> {
        let record = owned(world, cx, &self.bundle)?;
        run_again(world, cx, self.bundle, record)
    }
}

impl Transition<Bundles> for Retry {
    type Output = u32;

    fn apply(&self, world: &mut Draft<Bundles>, cx: &mut Context) -> Result<u32, Denied> {
        let id = self.bundle;
        let mut record = owned(world, cx, &id)?;
        ensure!(record.session == cx.session(), "bundle {id} runs in {}", record.session);
        let (at, done, count) = (self.operation, record.current_operation, record.total_operations);
        ensure!(at >= done, "operation {at} of bundle {id} took effect: {done} did");
        ensure!(at < count, "bundle {id} has {count} operations");
        let next = record.revision.checked_add(1).ok_or_else(|| denied!("bundle {id} has no revision left"))?;
        ensure!(self.revision == next, "the next revision of bundle {id} is {next}, not {}", self.revision);

        cx.step(cost::LISTED.saturating_mul(u64::from(count)))?;
        let mut hashes = Vec::with_capacity(count as usize);
        let (mut replaced, mut changed) = (None, None);
        for piece in world.operations.prefix(&id) {
            let ((_, first), mut piece) = piece?;
            for (index, operation) in (first..).zip(&mut piece.operations) {
                if index == at {
                    replaced = Some((first, operation.to_bytes().len() as u64));
                    *operation = self.replacement.clone();
                }
                hashes.push(operation.list_hash());
            }
            if replaced.is_some_and(|(of, _)| of == first) {
                changed = Some(piece);
            }
        }
        let ((first, old), piece) =
            replaced.zip(changed).ok_or_else(|| denied!("bundle {id} has no operation {at}"))?;
        world.operations.insert(&(id, first), &piece)?;
        let new = self.replacement.to_bytes().len() as u64;
        record.bytes = record.bytes.saturating_sub(old).saturating_add(new);
        let (bytes, room) = (record.bytes, record.room);
        ensure!(bytes <= room, "the operations of bundle {id} would have {bytes} bytes, there is room for {room}");
        let found = list_root(&hashes);
        ensure!(found == self.operations, "the operations of bundle {id} become {found}, not {}", self.operations);
        (record.revision, record.operations) = (next, found);
        run_again(world, cx, id, record)
    }
}

/// One key of a bundle that is taken back.
struct Kept {
    place: (Namespace, Key),
    before: Option<Value>,
    writer: Option<Writer>,
}

impl Transition<Bundles> for RollBack {
    type Output = Hash;

    fn apply(&self, world: &mut Draft<Bundles>, cx: &mut Context) -> Result<Hash, Denied> {
        let id = self.bundle;
        let mut record = owned(world, cx, &id)?;
        // Restoring was paid for when the keys were written; what is charged here is for looking at them once more.
        cx.step(cost::READ.saturating_mul(u64::from(record.undo_entries)).saturating_add(record.undo_bytes))?;
        forgetting(cx, &record)?;
        let handle = cx.handle.clone();
        let mut kept = handle.bundles(|bundles| {
            let mut kept = Vec::new();
            for entry in bundles.undo.prefix(&id) {
                let (_, Before { namespace, key, value }) = entry?;
                let written = bundles.written.get(&key_hash(&namespace, &key))?.unwrap_or_default();
                let writer = written.writers.iter().find(|writer| writer.bundle == id).cloned();
                kept.push(Kept { place: (namespace, key), before: value, writer });
            }
            Ok(kept)
        })?;
        kept.sort_by(|a, b| a.place.cmp(&b.place));
        // All are compared before the first is restored: all or nothing, and the first key that differs is named.
        for Kept { place: (namespace, key), writer, .. } in &kept {
            let found = handle.unmetered(|| handle.get(namespace, key))?;
            let left = writer.as_ref().and_then(|writer| writer.after);
            let same = found.as_ref().map(crate::value_hash) == left;
            if !same || writer.as_ref().is_none_or(|writer| writer.overlaid) {
                let by = writer.as_ref().and_then(|writer| writer.changed);
                return Err(denied!("{}: {namespace}/{}; nothing was restored", said(by), key.escape_ascii()));
            }
        }
        for Kept { place: (namespace, key), before, .. } in kept {
            handle.unmetered(|| handle.put(&namespace, key, before))?;
        }
        let restoring = handle.top().summary_of(is_application);
        // spec: EXEC-11
        let before = handle.unmetered(|| -> Result<StateHash, Stop> {
            let mut sessions = Sessions::bind(&handle);
            let chain_id = cx.chain_id();
            let mut before = record.state_hash;
            if let Some(mut session) = sessions.find(chain_id, &record.session, &record.owner)? {
                before = session.state_hash;
                session.state_hash = rollback_link(&session.state_hash, &id.0, &restoring.digest);
                record.state_hash = session.state_hash;
                sessions.records.insert(&record.session, &session)?;
            }
            Ok(before)
        })?;
        record.updated = cx.system_height();
        handle.bundles(|bundles| end(bundles, id, &mut record, Status::RolledBack, &mut Forget::default()))?;
        let (session, after) = (record.session, record.state_hash);
        let (restored, digest) = (restoring.entries, restoring.digest);
        cx.emit(&RolledBack { bundle: id, session, before, after, restored, digest })?;
        Ok(restoring.digest)
    }
}

/// Charges for what is forgotten of a bundle by the operation that ends it. The rest is the chain's.
// spec: EXEC-9
fn forgetting(cx: &mut Context, record: &BundleRecord) -> Result<(), Stop> {
    cx.step(cost::FORGET.saturating_mul(u64::from(record.undo_entries).min(FORGET_ENTRIES_MAX)))
}

/// Who changed a key, as the reason says it: before the key, which may be long.
fn said(by: Option<Changer>) -> String {
    match by {
        Some(Changer { height, bundle: Some(bundle) }) => format!("changed since, at height {height} by {bundle}"),
        Some(Changer { height, bundle: None }) => format!("changed since, at height {height}"),
        None => "changed since, by the chain itself".to_owned(),
    }
}

impl Transition<Bundles> for Abandon {
    type Output = u32;

    fn apply(&self, world: &mut Draft<Bundles>, cx: &mut Context) -> Result<u32, Denied> {
        let id = self.bundle;
        let mut record = owned(world, cx, &id)?;
        record.updated = cx.system_height();
        let operation = record.current_operation;
        forgetting(cx, &record)?;
        cx.handle.bundles(|bundles| end(bundles, id, &mut record, Status::Abandoned, &mut Forget::default()))?;
        cx.emit(&Abandoned { bundle: id, operation })?;
        Ok(operation)
    }
}
