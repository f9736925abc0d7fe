//! Whether state sync will ever come to its end.
//!
//! CometBFT tries one snapshot after another and then, for some reasons, never again: it idles at height 0 and says so
//! in its own log only. From here that looks like silence. So this keeps in mind when something last moved, what was
//! last wrong, and whether a state is whole; a node that sees no end ends itself with a plain word about why.
//!
//! An engine that finds no snapshot at all (the block it trusts has expired, say) asks for nothing either. What tells it from
//! one that waits for its first block is that the chain was not begun: CometBFT does that as soon as it has connected,
//! unless it is to state sync.
//!
//! Knows no clock but the moments it is given.

use keelstone_sync::snapshot::RestoreProgress;
use std::time::{Duration, Instant};

/// What is known of a state sync.
#[derive(Debug, Clone, Default)]
pub(crate) struct Patience {
    phase: Phase,
    /// Connections of the engine that are open.
    connections: u32,
    /// Since when the engine is connected without having begun the chain or made a block.
    idle_since: Option<Instant>,
    /// When the first chunk could come.
    since: Option<Instant>,
    /// When something last went well.
    moved: Option<Instant>,
    /// Chunks that were there when it began: a restart does not begin from nothing.
    first_chunks: Option<u32>,
    /// What was last wrong.
    wrong: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    /// No snapshot was accepted, or a block was made.
    #[default]
    Quiet,
    /// Chunks are coming.
    Receiving,
    /// The state is whole; no block was made on it.
    Whole,
    /// This node answered that it cannot go on, at which the engine ends state sync for good.
    Aborted,
}

impl Patience {
    /// At the start of a node whose state nothing but a snapshot speaks for: its engine, too, may have given up.
    pub(crate) fn restored(now: Instant) -> Self {
        Self { phase: Phase::Whole, moved: Some(now), ..Self::default() }
    }

    /// The engine opened a connection.
    pub(crate) fn connected(&mut self, now: Instant) {
        if self.connections == 0 {
            self.idle_since = Some(now);
        }
        self.connections = self.connections.saturating_add(1);
    }

    /// The engine closed a connection. Once it has none, it is another engine that opens the next.
    pub(crate) fn disconnected(&mut self) {
        self.connections = self.connections.saturating_sub(1);
        if self.connections == 0 {
            self.idle_since = None;
        }
    }

    /// Whether the engine has a connection open.
    pub(crate) fn is_connected(&self) -> bool {
        self.connections > 0
    }

    /// The engine began the chain at its genesis.
    pub(crate) fn chain_begun(&mut self) {
        self.idle_since = None;
    }

    /// The engine says that it has blocks, asked as things stood in `asked`: it needs no snapshot any more, and until another
    /// one connects there is nothing to ask.
    pub(crate) fn has_blocks(&mut self, asked: &Self) {
        if self.phase == Phase::Quiet && self.idle_since == asked.idle_since {
            self.idle_since = None;
        }
    }

    /// A snapshot was accepted.
    pub(crate) fn began(&mut self, now: Instant) {
        self.phase = Phase::Receiving;
        (self.since, self.moved, self.first_chunks) = (Some(now), Some(now), None);
    }

    /// A chunk was accepted.
    pub(crate) fn moved(&mut self, now: Instant) {
        self.moved = Some(now);
    }

    /// The state is whole.
    pub(crate) fn whole(&mut self) {
        self.phase = Phase::Whole;
    }

    /// A block was made.
    pub(crate) fn confirmed(&mut self) {
        *self = Self { connections: self.connections, ..Self::default() };
    }

    /// Something was not accepted.
    pub(crate) fn refused(&mut self, reason: String) {
        self.wrong = Some(reason);
    }

    /// This node cannot go on.
    pub(crate) fn aborted(&mut self, reason: String) {
        self.phase = Phase::Aborted;
        self.wrong = Some(reason);
    }

    /// Seconds until all chunks are there, if they go on coming as they did.
    pub(crate) fn left_seconds(&mut self, now: Instant, progress: &RestoreProgress) -> u64 {
        let first = *self.first_chunks.get_or_insert(progress.chunks_done.saturating_sub(1));
        let came = u64::from(progress.chunks_done.saturating_sub(first));
        let left = u64::from(progress.chunks.saturating_sub(progress.chunks_done));
        let passed = self.since.map_or(Duration::ZERO, |since| now.duration_since(since));
        let millis = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
        millis.saturating_mul(left).checked_div(came).unwrap_or(0).div_ceil(1_000)
    }

    /// Why state sync will not come to its end, if it will not. `engine_height` asks the engine where it stands; none if
    /// it does not answer.
    pub(crate) fn gave_up(
        &self,
        now: Instant,
        patience: Duration,
        engine_height: impl FnOnce() -> Option<u64>,
    ) -> Option<String> {
        let moved = if self.phase == Phase::Quiet { self.idle_since } else { self.moved };
        let still = moved.map_or(Duration::ZERO, |moved| now.duration_since(moved));
        let wrong = self.wrong.as_ref().map_or_else(String::new, |wrong| format!("; what was last wrong: {wrong}"));
        let seconds = still.as_secs();
        match self.phase {
            Phase::Quiet if self.idle_since.is_none() => None,
            Phase::Aborted => Some(format!("state sync ended because this node cannot go on{wrong}")),
            _ if still < patience => None,
            Phase::Receiving => Some(format!("state sync has stood still for {seconds} s: no good chunk came{wrong}")),
            // A chain may be idle for days, which only the engine can tell from having given up, or never having begun.
            _ if engine_height() != Some(0) => None,
            Phase::Quiet => Some(format!(
                "the engine was connected {seconds} s ago, is still at height 0, and has offered no good snapshot{wrong}"
            )),
            Phase::Whole => Some(format!(
                "the state was restored {seconds} s ago and the engine is still at height 0: it gave state sync up{wrong}"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(600);

    fn no_answer() -> Option<u64> {
        None
    }

    #[test]
    fn silence_is_a_failure_only_once_state_sync_has_begun() {
        let start = Instant::now();
        let later = start + PATIENCE * 2;
        let mut sync = Patience::default();
        sync.refused("format 9".to_owned());
        assert_eq!(sync.gave_up(later, PATIENCE, no_answer), None, "the engine looks for another");
        sync.began(start);
        assert_eq!(sync.gave_up(start + PATIENCE / 2, PATIENCE, no_answer), None);
        let why = sync.gave_up(later, PATIENCE, no_answer).unwrap();
        assert!(why.contains("1200 s") && why.contains("format 9"), "{why}");
        sync.moved(later);
        assert_eq!(sync.gave_up(later, PATIENCE, no_answer), None);
    }

    /// It is the chain's beginning that tells an engine that looks for a snapshot from one that waits for its first block.
    #[test]
    fn an_engine_that_finds_no_snapshot_has_failed_and_one_that_waits_for_blocks_has_not() {
        let start = Instant::now();
        let later = start + PATIENCE;
        let mut sync = Patience::default();
        assert_eq!(sync.gave_up(later, PATIENCE, || Some(0)), None, "there is no engine");
        sync.connected(start);
        sync.connected(later);
        assert_eq!(sync.gave_up(later - Duration::from_secs(1), PATIENCE, || Some(0)), None);
        let why = sync.gave_up(later, PATIENCE, || Some(0)).unwrap();
        assert!(why.contains("600 s") && why.contains("height 0"), "{why}");
        sync.refused("format 9".to_owned());
        assert!(sync.gave_up(later, PATIENCE, || Some(0)).unwrap().contains("format 9"), "a bad offer is none");
        assert_eq!(sync.gave_up(later, PATIENCE, no_answer), None, "what it does is not known");
        assert_eq!(sync.gave_up(later, PATIENCE, || Some(70)), None, "it has blocks, and the chain is idle");

        sync.disconnected();
        assert!(sync.gave_up(later, PATIENCE, || Some(0)).is_some(), "it has another connection");
        sync.disconnected();
        assert_eq!(sync.gave_up(later, PATIENCE, || Some(0)), None, "it is gone");
        sync.connected(later);
        assert_eq!(sync.gave_up(later, PATIENCE, || Some(0)), None, "and back");
        for done in [Patience::chain_begun as fn(&mut Patience), Patience::confirmed] {
            let mut sync = sync.clone();
            done(&mut sync);
            sync.connected(later);
            assert_eq!(sync.gave_up(later + PATIENCE, PATIENCE, || Some(0)), None, "no snapshot is needed any more");
        }
    }

    /// What an engine with blocks waits for is the next of them: it is asked once, until another connects.
    #[test]
    fn an_engine_that_has_blocks_is_not_asked_again() {
        let start = Instant::now();
        let later = start + PATIENCE;
        let mut sync = Patience::default();
        sync.connected(start);
        let asked = sync.clone();
        sync.has_blocks(&asked);
        assert_eq!(sync.gave_up(later, PATIENCE, || panic!("it has said that it has blocks")), None);
        sync.disconnected();
        sync.connected(later);
        sync.has_blocks(&asked);
        assert!(sync.gave_up(later + PATIENCE, PATIENCE, || Some(0)).is_some(), "this is another engine");
    }

    #[test]
    fn a_restored_state_is_a_failure_only_if_the_engine_stays_at_nothing() {
        let start = Instant::now();
        let later = start + PATIENCE * 2;
        let mut sync = Patience::default();
        sync.began(start);
        sync.whole();
        assert_eq!(sync.gave_up(later, PATIENCE, no_answer), None, "it may merely be down");
        assert_eq!(sync.gave_up(later, PATIENCE, || Some(70)), None, "the chain is idle");
        assert!(sync.gave_up(later, PATIENCE, || Some(0)).unwrap().contains("height 0"));
        sync.confirmed();
        assert_eq!(sync.gave_up(later, PATIENCE, || Some(0)), None);
    }

    #[test]
    fn an_abort_is_the_end_at_once() {
        let mut sync = Patience::default();
        sync.began(Instant::now());
        sync.aborted("disk full".to_owned());
        assert!(sync.gave_up(Instant::now(), PATIENCE, no_answer).unwrap().contains("disk full"));
    }

    #[test]
    fn the_time_left_follows_from_what_came_since_the_start() {
        let start = Instant::now();
        let mut sync = Patience::default();
        sync.began(start);
        let at = |chunks_done| RestoreProgress { chunks_done, chunks: 100, ..RestoreProgress::default() };
        assert_eq!(sync.left_seconds(start + Duration::from_secs(1), &at(51)), 49);
        assert_eq!(sync.left_seconds(start + Duration::from_secs(10), &at(60)), 40);
    }
}
