//! What only the owner of a chain in this process may do to it: blocks, events, replay, export, rollback, upkeep.

use super::versions;
use super::versions::{Answers, Attests};
use super::{Engine, Forward, Forwarding, Held, Listener, Live, Local, Replayed, Untaken, Version};
use crate::api::{MadeBy, Refusal};
use crate::audit;
use crate::exit::Failure;
use crate::generations::Generations;
use crate::home::Home;
use crate::library::snapshot_params;
use crate::misfits;
use crate::telling::{Event, EventPlace, Told};
use crate::way::Way;
use keelstone_codec::{ChainId, Height, Root, Timestamp};
use keelstone_execution::{Activity, PublicKey};
use keelstone_ledger::{
    AuditVerdict, BlockRecord, Committed, Genesis, Json, KnownOfHeight, LedgerError, Rebuilt, SecretKey,
    SignedAttestation, Until, xian,
};
use keelstone_store::{CheckLevel, CheckReport, Compacted, Progress, ScrubStanding, Scrubbed, Stats};
use keelstone_sync::delta::Delta;
use keelstone_sync::peers::{Change, Manner, ServerLimits, Step, Version as At};
use keelstone_tree::{Diff, Hasher};
use std::io;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, PoisonError};

/// What says of a directory that a chain is being rebuilt in it.
const REBUILDING: &str = "rebuilding";

impl<H: Hasher> Engine for Local<H> {
    fn chain_id(&self) -> &ChainId {
        &self.genesis.chain_id
    }

    fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    fn misfits(&self) -> Vec<String> {
        misfits::of_state(&self.registry, &self.ledger().view())
    }

    fn produce(&self, time: Timestamp, producer: PublicKey, empty: bool) -> Result<Option<Arc<Committed>>, Failure> {
        let _at_work = self.way.block();
        let ledger = self.ledger();
        Ok(match empty {
            true => Some(ledger.produce(time, producer)?),
            false => ledger.produce_if_due(time, producer)?,
        })
    }

    fn on_commit(&self, listener: Listener) {
        self.shared.listeners.write().unwrap_or_else(PoisonError::into_inner).push(listener);
    }

    fn events(&self, from: EventPlace, bytes_max: usize, block: &mut Option<Told>) -> Result<Vec<Event>, Refusal> {
        let height = from.height;
        if block.as_ref().is_none_or(|block| block.header.height != height) {
            let ledger = self.ledger();
            let header = match ledger.header(height) {
                Ok(header) => header,
                // Whoever read all of a height misses nothing of it.
                Err(LedgerError::NoBlock { .. }) if height > ledger.genesis_height() => {
                    let record = BlockRecord::read(&ledger.view(), height)?;
                    let last = record.map_or(0, |record| record.transactions.saturating_add(record.continuations));
                    if from.index > last {
                        return Ok(Vec::new());
                    }
                    return Err(self.no_block(LedgerError::NoBlock { height }));
                }
                Err(error) => return Err(self.no_block(error)),
            };
            let (receipts, continuations) = (ledger.receipts(height)?, ledger.continuations(height)?);
            *block = Some(Told { header, receipts, continuations });
        }
        let block = block.as_ref().expect("it was read just now");
        Ok(block.events(self.registry(), from.index, bytes_max))
    }

    fn wake_on_submit(&self, waker: SyncSender<()>) {
        // A second waker is a bug of this crate; the first keeps working.
        let _ = self.waker.set(waker);
    }

    fn forward_to(&self, forward: Forwarding) {
        // As with the waker.
        let _ = self.forward.set(Forward::To(forward));
    }

    fn activity(&self) -> Activity {
        self.shared.activity.clone()
    }

    fn way(&self) -> Arc<Way> {
        self.way.clone()
    }

    fn replay(
        &self,
        from: Option<Height>,
        to: Option<Height>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Replayed, Failure> {
        let first = self.ledger().facts().initial_height;
        let (from, to) = (from.unwrap_or(first), to.unwrap_or_else(|| self.ledger().height()));
        let total = to.0.saturating_add(1).saturating_sub(from.0);
        let mut done = 0;
        let mut progress = |_, _| {
            done += 1;
            progress(done, total);
        };
        // The genesis is at hand even where the state it gave is no longer kept.
        let replayed = match from == first {
            true => self.ledger().replay_from_genesis(&self.genesis, to, &mut progress)?,
            false => self.ledger().replay(from..=to, &mut progress)?,
        };
        Ok(Replayed { from, to, replayed })
    }

    fn verify_audit(&self, progress: &mut dyn FnMut(Height)) -> Result<AuditVerdict, Failure> {
        Ok(self.ledger().verify_audit(progress)?)
    }

    fn known_of(&self, height: Height) -> Result<KnownOfHeight, Failure> {
        Ok(self.ledger().known_of(height)?)
    }

    fn export_audit(
        &self,
        from: Option<u64>,
        to: Option<u64>,
        line: &mut dyn FnMut(&serde_json::Value) -> Result<(), Failure>,
    ) -> Result<std::ops::Range<u64>, Failure> {
        let ledger = self.ledger();
        let (kept, (checkpoint, state)) = (ledger.audit_range()?, ledger.prove_checkpoint()?);
        let range = from.unwrap_or(kept.start)..to.unwrap_or(kept.end);
        if range.start > range.end || range.end > kept.end {
            let message = format!("there are no records {} to {}: the log has {}", range.start, range.end, kept.end);
            return Err(Failure::not_found(message));
        }
        let shown = audit::show_checkpoint((&checkpoint, &state), None, H::KIND.name());
        line(&audit::export_head(&shown, range.start, range.end))?;
        ledger.export_audit(&checkpoint, range.clone(), &mut |logged, proof| {
            line(&audit::export_line(&self.registry, logged, proof))
        })?;
        Ok(range)
    }

    fn prune_audit(&self, before: Height) -> Result<u64, Failure> {
        Ok(self.ledger().prune_audit(before)?)
    }

    fn rebuild(&self, until: Until, home: &Home, progress: &mut dyn FnMut(u64, u64)) -> Result<Rebuilt, Failure> {
        let ledger = self.ledger();
        let to = ledger.height_until(until)?;
        let path = home.path();
        let failed = |error: io::Error| Failure::io(path.display(), &error);
        let begun = path.join(REBUILDING);
        let names: Vec<_> = match path.read_dir() {
            Ok(entries) => entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>().map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(failed(error)),
        };
        // What one that was cut off left there is nobody's.
        let is_left = names.iter().any(|name| *name == *REBUILDING) && !home.genesis().exists();
        if !names.is_empty() && !is_left {
            return Err(Failure::usage(format!("{} is not empty", path.display())));
        }
        std::fs::create_dir_all(path).and_then(|()| std::fs::write(&begun, "")).map_err(failed)?;
        let generations = Generations::open(&home.data())?;
        let generation = generations.fresh()?;
        let (store, kv) = Live::<H>::parts(&generation, &self.options, true)?;
        let mut first = None;
        let (made, rebuilt) = ledger.rebuild(&self.genesis, to, store, kv, &mut |height, _| {
            let first = *first.get_or_insert(height.0);
            progress(height.0 - first + 1, to.0.saturating_sub(first) + 1);
        })?;
        made.store().flush()?;
        drop(made);
        // The data is whole before the home is one: without its genesis it is no chain's.
        generations.switch(&generation)?;
        if let Some(failure) = generations.sweep()? {
            return Err(failure);
        }
        home.write_genesis(&self.genesis)?;
        std::fs::remove_file(&begun).map_err(failed)?;
        Ok(rebuilt)
    }

    fn rollback(&self, to: Height) -> Result<Root, Failure> {
        let live = self.live();
        live.generation.mark_put_back(to)?;
        Ok(live.ledger.rollback(to)?)
    }

    fn export_xian(&self, at: Option<Height>) -> Result<Json, Failure> {
        let view = self.view(at)?;
        xian::export(&view).map_err(|error| match error {
            xian::ExportError::Read(error) => error.into(),
            error => Failure::integrity(error.to_string()),
        })
    }

    fn version(&self, at: Option<Height>) -> Result<Box<dyn Version>, Failure> {
        self.check_whole()?;
        Ok(Box::new(Held { view: self.view(at)?, params: snapshot_params(&self.genesis), way: self.way.clone() }))
    }

    fn delta(&self, from: Height, to: Height) -> Result<Delta, Failure> {
        let (older, later) = (self.view(Some(from))?, self.view(Some(to))?);
        let chain_id = self.genesis.chain_id.clone();
        Ok(Delta::between(chain_id, H::KIND, (&older, (from, older.root())), (&later, (to, later.root())))?)
    }

    fn answers(self: Arc<Self>, limits: ServerLimits, attests: Attests) -> Box<dyn Answers> {
        versions::answers(self, limits, attests)
    }

    fn attest(&self, key: &SecretKey) -> Option<SignedAttestation> {
        versions::attest(self, key)
    }

    fn stands(&self) -> Result<At, Failure> {
        self.check_whole()?;
        let view = self.ledger().view();
        Ok(At { height: view.height().unwrap_or_default(), root: view.root() })
    }

    fn take(&self, step: Step, manner: Manner) -> Result<(), Untaken> {
        let _at_work = self.way.block();
        let (ledger, certified) = (self.ledger(), step.certified);
        let taken = match (step.change, manner) {
            (Change::Block(block), _) => ledger.take_block(&certified, Some(block)),
            (Change::Nothing, Manner::Blocks) => ledger.take_block(&certified, None),
            (Change::Nothing, Manner::Diffs) => ledger.take_diff(&certified, &Diff::default()),
            (Change::Diff(diff), _) => ledger.take_diff(&certified, &diff),
        };
        taken.map(drop).map_err(Into::into)
    }

    fn refuse(&self, made_by: MadeBy) {
        // As with the waker.
        let _ = self.forward.set(Forward::Refused(made_by));
    }

    fn stats(&self) -> Stats {
        self.ledger().store().stats()
    }

    fn check_while(
        &self,
        level: CheckLevel,
        go_on: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<Option<CheckReport>, Failure> {
        Ok(self.ledger().store().check_while(level, go_on)?)
    }

    fn scrub(&self, bytes: u64) -> Result<Scrubbed, Failure> {
        Ok(self.ledger().store().scrub(bytes)?)
    }

    fn scrub_standing(&self) -> ScrubStanding {
        self.ledger().store().scrub_standing()
    }

    fn prune(&self, before: Height) -> Result<(), Failure> {
        Ok(self.ledger().store().prune(before)?)
    }

    fn compact_while(&self, go_on: &mut dyn FnMut(Progress) -> bool) -> Result<Compacted, Failure> {
        Ok(self.ledger().store().compact_while(go_on)?)
    }

    fn flush(&self) -> Result<(), Failure> {
        Ok(self.ledger().store().flush()?)
    }
}
