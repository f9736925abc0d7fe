//! A node that follows: it has joined, and goes on by what each height changed or by its block, into a real ledger on the
//! simulated disk. After each height its root has to be the chain's.

use crate::PEERS;
use crate::blocks::{BLOCKS, Blocks, HEIGHTS, KeptBlocks};
use crate::chain::{built, options, read_all};
use crate::dice::Dice;
use crate::world::{Life, STORM_MS, Trouble};
use keelstone_codec::Height;
use keelstone_ledger::modules::standard;
use keelstone_ledger::{BlockError, Ledger, LedgerError, PoolLimits, TakeError};
use keelstone_store::files::FaultyFiles;
use keelstone_store::kv::MemoryKv;
use keelstone_store::{Options, Store};
use keelstone_sync::peers::{
    Change, Effect, Event, FollowEffect, FollowEvent, Follower, Manner, Settings, Step, Tick, Version,
};
use keelstone_sync::snapshot::SnapshotParams;
use keelstone_tree::{Blake3, Diff};
use std::collections::VecDeque;
use std::sync::Arc;

/// How often it looks what time it is, in milliseconds.
const LOOK_MS: u64 = 100;

/// What is tried out: the machine of the product and the way a node takes in what it hands out, or one with a bug.
pub trait Follows: Sized {
    /// As [`Follower::new`].
    fn begin(params: SnapshotParams, manner: Manner, own: Version, request_timeout_ms: u32) -> Self;
    /// As [`Follower::step`].
    fn step(&mut self, now: Tick, event: FollowEvent<'_>) -> Vec<FollowEffect>;
    /// Takes in a height, as a node does.
    ///
    /// # Errors
    /// [`TakeError`].
    fn take(ledger: &Ledger<Blake3>, manner: Manner, Step { certified, change }: Step) -> Result<(), TakeError> {
        let taken = match (change, manner) {
            (Change::Block(block), _) => ledger.take_block(&certified, Some(block)),
            (Change::Nothing, Manner::Blocks) => ledger.take_block(&certified, None),
            (Change::Nothing, Manner::Diffs) => ledger.take_diff(&certified, &Diff::default()),
            (Change::Diff(diff), _) => ledger.take_diff(&certified, &diff),
        };
        taken.map(drop)
    }
}

impl Follows for Follower {
    fn begin(params: SnapshotParams, manner: Manner, own: Version, request_timeout_ms: u32) -> Self {
        Self::new(params, manner, own, request_timeout_ms)
    }

    fn step(&mut self, now: Tick, event: FollowEvent<'_>) -> Vec<FollowEffect> {
        Self::step(self, now, event)
    }
}

/// A node that follows.
pub(crate) struct Following<F> {
    chain: &'static Blocks,
    manner: Manner,
    disk: FaultyFiles,
    /// What lies beside the state: a database that keeps what it was told, whatever becomes of the disk.
    beside: Arc<MemoryKv>,
    home: Option<(Ledger<Blake3>, F)>,
    /// The last height that is certified.
    newest: Height,
    /// The last height that was said to be durable.
    taken: Height,
    /// How many were taken in.
    heights: u64,
    /// Whether the disk was made to fail, so that the store may say so.
    is_excused: bool,
}

/// Segments so small, and flushes so soon, that a run has many of both.
fn store_options() -> Options {
    let (segment_bytes, flush_bytes, value_cache_bytes) = (32 << 10, 16 << 10, 64 << 10);
    Options { segment_bytes, page_segment_bytes: segment_bytes, flush_bytes, value_cache_bytes, ..options() }
}

fn stands(ledger: &Ledger<Blake3>) -> Version {
    Version { height: ledger.height(), root: ledger.root() }
}

impl<F: Follows> Life for Following<F> {
    type Kept = KeptBlocks;

    const HEIGHT_MAX: u64 = HEIGHTS;
    const BUSY_MS: u64 = STORM_MS;
    /// It counts its requests from zero in each life. What was meant for one before is the transport's to drop.
    const HEARS_THE_PAST: bool = false;

    fn chains() -> usize {
        BLOCKS.len()
    }

    fn kept(chain: usize, oldest: u64, newest: u64, is_whole: bool) -> KeptBlocks {
        KeptBlocks { chain: &BLOCKS[chain], oldest, newest, is_whole }
    }

    fn new(chain: usize, newest: u64, dice: &mut Dice) -> Self {
        let chain = &BLOCKS[chain];
        let manner = dice.one_of(&[Manner::Diffs, Manner::Blocks]);
        let (disk, at) = (FaultyFiles::new(dice.roll()), chain.at(dice.between(1, newest)));
        let state = chain.state(at.height);
        let entries = state.iter().map(|((name, key), value)| (name, key, &value[..]));
        built(Arc::new(disk.clone()), store_options(), entries, at).expect("the disk does not fail yet");
        Self {
            chain,
            manner,
            disk,
            beside: Arc::new(MemoryKv::new()),
            home: None,
            newest: Height(newest),
            taken: at.height,
            heights: 0,
            is_excused: false,
        }
    }

    fn version(&self, height: u64) -> Version {
        self.chain.at(height)
    }

    fn open(&mut self, settings: Settings, target: Version, now: Tick, _seed: u64) -> Result<(), Trouble> {
        let store = Store::open(Arc::new(self.disk.clone()), store_options()).map_err(LedgerError::from);
        let opened =
            store.and_then(|store| Ledger::open(store, self.beside.clone(), standard(), PoolLimits::default()));
        let ledger = opened.map_err(|error| self.failed("opened", &error.into()))?;
        self.newest = target.height;
        self.judge(&ledger)?;
        let follower = F::begin(self.chain.params.clone(), self.manner, stands(&ledger), settings.request_timeout_ms);
        self.taken = ledger.height();
        self.home = Some((ledger, follower));
        // It knows nobody yet, so there is nothing to do.
        self.step(now, Event::Target(target)).map(drop)
    }

    /// Records and changes are asked for one at a time, and anew of another for each peer that is banned meanwhile.
    fn asked_max(_settings: &Settings) -> u32 {
        u32::try_from(2 * PEERS).expect("a few")
    }

    fn is_alive(&self) -> bool {
        self.home.is_some()
    }

    fn kill(&mut self) {
        self.home = None;
    }

    fn cut_power(&mut self, seed: u64) {
        self.disk = self.disk.after_power_cut(seed);
    }

    fn disk(&self) -> &FaultyFiles {
        &self.disk
    }

    fn excuse(&mut self) {
        self.is_excused = true;
    }

    fn step(&mut self, now: Tick, event: Event<'_>) -> Result<Vec<Effect>, Trouble> {
        let event = match event {
            Event::Tick | Event::Built => FollowEvent::Tick,
            Event::Connected(peer) | Event::Mirror(peer) => FollowEvent::Connected(peer),
            Event::Gone(peer) => FollowEvent::Gone(peer),
            Event::Answered(peer, id, bytes) => FollowEvent::Answered(peer, id, bytes),
            Event::Target(version) => {
                self.newest = version.height;
                FollowEvent::Target(version)
            }
        };
        let Some((ledger, mut follower)) = self.home.take() else { return Ok(vec![]) };
        let (mut effects, mut out) = (VecDeque::from(follower.step(now, event)), Vec::new());
        while let Some(effect) = effects.pop_front() {
            match effect {
                FollowEffect::Ask(peer, frame) => out.push(Effect::Ask(peer, frame)),
                FollowEffect::Ban(peer, why) => out.push(Effect::Ban(peer, why)),
                FollowEffect::Stop(why) => return Err(format!("it stops: {why}").into()),
                FollowEffect::Take(step) => {
                    let event = self.take(&ledger, *step)?;
                    effects.extend(follower.step(now, event));
                }
            }
        }
        // While the storm lasts there may be more to come.
        if now.0 >= STORM_MS && ledger.height() == self.newest {
            self.disk.mend();
            if read_all(&ledger.view()) != self.chain.state(self.newest) {
                return Err("the store holds something else".to_owned().into());
            }
            out.push(Effect::Switch(stands(&ledger)));
        }
        self.home = Some((ledger, follower));
        Ok(out)
    }

    fn wakeup(&self, now: Tick) -> Option<Tick> {
        self.home.as_ref().map(|_| Tick(now.0 + LOOK_MS))
    }

    fn amount(&self) -> u64 {
        self.heights
    }
}

impl<F: Follows> Following<F> {
    /// Takes in a height, and looks what that came to.
    fn take(&mut self, ledger: &Ledger<Blake3>, step: Step) -> Result<FollowEvent<'static>, Trouble> {
        let height = step.certified.height;
        let taken = F::take(ledger, self.manner, step);
        self.judge(ledger)?;
        match taken {
            Ok(()) if ledger.height() == height => {
                self.taken = height;
                self.heights += 1;
                Ok(FollowEvent::Taken)
            }
            Ok(()) => Err(format!("height {height} was taken in and is not there").into()),
            Err(TakeError::NotIt { what, .. }) => Ok(FollowEvent::Refused(what)),
            Err(error) => Err(self.failed("taken in", &error)),
        }
    }

    /// Whether what is there is the chain's, and all that was said to be durable.
    fn judge(&self, ledger: &Ledger<Blake3>) -> Result<(), Trouble> {
        let (own, taken, newest) = (stands(ledger), self.taken, self.newest);
        if own.height < taken || own.height > newest {
            return Err(format!("it stands at {}, {taken} was durable, {newest} is certified", own.height).into());
        }
        if own != self.chain.at(own.height.0) {
            return Err(format!("it stands at {own:?}, which is not the chain's").into());
        }
        Ok(())
    }

    /// A disk that was made to fail is mended; nothing else may fail.
    fn failed(&self, what: &str, error: &TakeError) -> Trouble {
        match error {
            TakeError::Ledger(LedgerError::Store(_) | LedgerError::Block(BlockError::Halt(_))) if self.is_excused => {
                Trouble::Disk
            }
            error => format!("it could not be {what}: {error}").into(),
        }
    }
}
