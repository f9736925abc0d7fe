//! What is to be had again, and why its root is trusted: the record beside the blocks of this home, a certificate, the state that is
//! here, a producer, or whoever asks. What cannot be read of them is no word about what they hold.
//!
//! Rules: `spec/recovery.md`, RECOVER-1 and RECOVER-10.

use super::{Place, Wanted, of_blocks, of_failed, of_ledger};
use crate::cometbft::certificate::certified_by;
use crate::config::EngineKind;
use crate::engine;
use crate::exit::{Exit, Failure};
use crate::own_log::Who;
use crate::p2p::{self, Sources, attested};
use keelstone_codec::{Height, Root};
use keelstone_ledger::{Bodies, LedgerError};
use keelstone_store::Store;
use keelstone_sync::peers::Version;
use keelstone_sync::recovery::{Failed, Target, Trust};
use keelstone_tree::{Hasher, MemoryTree};
use std::time::Duration;

/// Heights below the last whose roots are looked for.
const ROOTS_LOOKED_AT_MAX: usize = 256;

impl<H: Hasher> Place<'_, H> {
    /// The root of a height as this home has it on record, and why it counts; none if no record says it, or there are no blocks to
    /// ask.
    pub(super) fn recorded(&self, height: Height) -> Result<Option<(Root, Trust)>, Failed> {
        let Ok(bodies) = self.bodies.as_ref() else { return Ok(None) };
        let found = match self.genesis.validators.is_empty() {
            true => bodies
                .root(height)
                .map_err(|error| match error {
                    LedgerError::Store(error) => of_blocks(error),
                    error => of_ledger(error),
                })?
                .map(|root| (root, Trust::OwnRecord)),
            false => {
                let certificate = bodies.certificate(height).map_err(of_blocks)?;
                certificate.and_then(|bytes| certified_by(&bytes)).map(|root| (root, Trust::Consensus))
            }
        };
        Ok(found)
    }

    /// The last height that the blocks here have a record of, also of one that is damaged.
    pub(super) fn last(&self) -> Result<Option<Height>, Failed> {
        self.bodies.as_ref().map_err(Failed::clone)?.last_named().map_err(of_blocks)
    }

    /// What is to be had again, and why its root is trusted.
    // spec: RECOVER-1
    pub(super) fn target(&mut self) -> Result<Target, Failure> {
        if let (Wanted::Height(height), Some(root)) = (self.wish.wanted, self.wish.root) {
            return Ok(Target { height, root, trust: Trust::Given });
        }
        // What the machine cannot read now says more than whatever else there is: nothing is begun without it.
        if let Err(failed @ Failed::Machine(_)) = &self.bodies {
            return Err(of_failed(failed));
        }
        let asked = match self.wish.wanted {
            Wanted::Newest => None,
            Wanted::Height(height) => Some(height),
            Wanted::Time(time) => {
                let bodies = self.bodies.as_ref().map_err(of_failed)?;
                let found = bodies.at_time(time, self.base())?;
                Some(found.ok_or_else(|| Failure::not_found(format!("there is no block at or before {}", time.0)))?)
            }
        };
        let found = match asked {
            Some(height) => self.known(height)?,
            None => self.newest()?,
        };
        found.ok_or_else(|| self.unknown(asked, self.bodies.as_ref().err()))
    }

    /// That no root is known of what was asked for, and what is wrong with what would say it.
    fn unknown(&self, asked: Option<Height>, why: Option<&Failed>) -> Failure {
        let asked = asked.map_or_else(|| "the last height".to_owned(), |height| format!("height {height}"));
        let exit = why.map_or(Exit::NotFound, |failed| of_failed(failed).exit);
        let why = why.map_or_else(String::new, |failed| format!(": {failed}"));
        let hint = match self.genesis.validators.is_empty() {
            true => "--to HEIGHT --root HEX names the root to trust",
            false => {
                "--to HEIGHT --root HEX names the root to trust: the one in the header of the height after, app_hash"
            }
        };
        Failure::new(exit, format!("nothing here says which root {asked} has{why}")).hint(hint)
    }

    /// A height, if its root is known.
    fn known(&mut self, height: Height) -> Result<Option<Target>, Failure> {
        let unread = match self.recorded(height) {
            Ok(Some((root, trust))) => return Ok(Some(Target { height, root, trust })),
            Ok(None) => None,
            Err(failed @ Failed::Machine(_)) => return Err(of_failed(&failed)),
            Err(failed) => Some(failed),
        };
        match self.state_here().filter(|state| state.height == height) {
            Some(Version { root, .. }) => Ok(Some(Target { height, root, trust: Trust::OwnRecord })),
            None if height == self.base() => self.beginning().map(Some),
            None => unread.map_or(Ok(None), |failed| Err(self.unknown(Some(height), Some(&failed)))),
        }
    }

    /// As much as there is a root for: the last height on record beside the blocks that can be read, or the state that is here, if it
    /// came further than they, which have lost some then. Else what a producer certifies, for a node that follows one; and last the
    /// genesis, for a chain of which it is certain that it never had a block.
    // spec: RECOVER-10
    fn newest(&mut self) -> Result<Option<Target>, Failure> {
        let base = self.base();
        let last = self.last();
        if let Err(failed @ Failed::Machine(_)) = &last {
            return Err(of_failed(failed));
        }
        let named = last.as_ref().ok().copied().flatten();
        let (mut recorded, mut unread) = (None, None);
        for height in (base.0 + 1..=named.unwrap_or(base).0).rev().take(ROOTS_LOOKED_AT_MAX).map(Height) {
            match self.recorded(height) {
                Ok(Some((root, trust))) => {
                    recorded = Some(Target { height, root, trust });
                    break;
                }
                Ok(None) => {}
                Err(failed @ Failed::Machine(_)) => return Err(of_failed(&failed)),
                Err(failed) => drop(unread.get_or_insert(failed)),
            }
        }
        let further =
            self.state_here().filter(|state| recorded.as_ref().is_none_or(|known| known.height < state.height));
        if let Some(Version { height, root }) = further {
            return Ok(Some(Target { height, root, trust: Trust::OwnRecord }));
        }
        if let Some(recorded) = recorded {
            return match unread {
                // A second block of a height that was acknowledged is made by nobody who was not told to.
                Some(unread) if self.wish.who == Who::Node && self.config.engine.kind == EngineKind::Solo => {
                    let ways = "keelstone db check --repair may make the state whole; keelstone recover --yes goes back to that \
                                height, and keeps what there is of the blocks above";
                    let height = recorded.height;
                    Err(Failure::integrity(format!(
                        "{unread}; the last root that can be read is of height {height}. {ways}"
                    )))
                }
                _ => Ok(Some(recorded)),
            };
        }
        let certified = self.certified();
        if let Ok(Some(certified)) = certified {
            return Ok(Some(certified));
        }
        if let Some(unread) = unread {
            return Err(self.unknown(None, Some(&unread)));
        }
        // Blocks that are gone or damaged, or a state that is here or once was, are no chain that never began.
        if last != Ok(None) {
            return certified;
        }
        let stands = self.here().ok().and_then(Store::height).map(|height| (height, self.home.data()));
        match stands.into_iter().chain(engine::height_on_record(self.home)?).find(|(height, _)| *height > base) {
            None => self.beginning().map(Some),
            Some((height, place)) => {
                let what = format!("{} says that the chain came to height {height}", place.display());
                Err(self.unknown(None, Some(&Failed::Damaged(format!("the blocks here have none, and {what}")))))
            }
        }
    }

    /// The state that counts, as far as it was acknowledged, on a chain whose roots nobody votes for. It is proven as it is taken.
    // spec: RECOVER-1, HISTORY-1
    fn state_here(&mut self) -> Option<Version> {
        if !self.genesis.validators.is_empty() {
            return None;
        }
        let last = self.bodies.as_ref().ok().map(Bodies::last_on_record);
        let store = self.here().ok()?;
        let version = Version { height: store.height()?, root: store.root() };
        // Where blocks can be read and have none of it, it was never acknowledged, and is taken back by whoever opens the chain. Where
        // they cannot, it may have been: to keep one that was not does no harm, to take one back that was loses it.
        let is_whole = store.in_doubt().is_none_or(|doubtful| match last {
            Some(Ok(last)) => last.is_some_and(|last| last >= doubtful),
            _ => true,
        });
        is_whole.then_some(version)
    }

    pub(super) fn here(&mut self) -> Result<&Store<H>, Failed> {
        if self.here.is_none() {
            let opened = match &self.replaced.generation {
                None => Err(Failed::Unavailable("there is no state here".to_owned())),
                Some(current) => engine::open_counted(&current.state(), self.options()).map_err(Failed::from),
            };
            self.here = Some(opened);
        }
        self.here.as_ref().expect("it was looked at just now").as_ref().map_err(Failed::clone)
    }

    /// What a producer certifies to this node, which follows one. Whoever makes blocks itself goes on from its own record alone: what
    /// others have last of it may be less than it made.
    // spec: SNAP-12
    fn certified(&mut self) -> Result<Option<Target>, Failure> {
        let p2p = &self.config.p2p;
        if self.config.engine.kind != EngineKind::Follow || p2p.dials_nobody() {
            return Ok(None);
        }
        let trust = p2p::Trust::of(&self.genesis, &p2p.trust_keys, p2p.trust_period_ms)?;
        if trust.keys.is_empty() {
            return Ok(None);
        }
        let patience = Duration::from_millis(p2p.request_timeout_ms);
        let network = self.meet().map_err(|failed| of_failed(&failed))?;
        let sources = Sources { network: Some(network), mirrors: Vec::new(), stop: self.wish.stop.clone() };
        let runtime = self.others().map_err(|failed| of_failed(&failed))?.runtime();
        let (version, producer) = attested(runtime, &sources, patience, &trust)?;
        tracing::info!(height = %version.height, %producer, "nothing here says what is to be had: a producer does");
        Ok(Some(Target { height: version.height, root: version.root, trust: Trust::Producer }))
    }

    /// The state that the chain began with.
    fn beginning(&self) -> Result<Target, Failure> {
        let first = self.genesis.first_state().map_err(|error| Failure::usage(error.to_string()))?;
        if self.genesis.inherits.is_some() {
            let message = "the chain inherits its first state, which is not in its genesis";
            return Err(Failure::not_found(message).hint("--to HEIGHT --root HEX names the root to trust"));
        }
        let root = MemoryTree::<H>::new().apply(&first.diff);
        Ok(Target { height: first.height, root, trust: Trust::OwnRecord })
    }
}
