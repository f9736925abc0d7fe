//! What we know of a peer: what it says it has, how quick it is, how often it failed.
//!
//! Failures and lies are kept apart. A peer that is slow, empty-handed or busy is asked less and less often, and never
//! banned; one that sends what cannot be true is banned after a few times. A score only says whom to ask first.
//!
//! How much a peer is asked for at once follows the way to it: whatever is under way when a joiner dies has to come again.

use super::jobs::JobId;
use super::{Status, Tick, Version};
use std::collections::BTreeSet;

/// So many answers that cannot be true, and a peer is banned (spec: PEER-7).
pub(super) const BAD_ANSWERS_MAX: u32 = 3;
/// So many answers to nothing that was asked, and a peer is banned (spec: PEER-7).
const UNASKED_MAX: u32 = 64;
/// Times in a row that a peer may be busy before it counts as a failure.
const BUSY_MAX: u32 = 8;
/// Longest that a peer which failed is left alone, in milliseconds.
const SILENT_MS_MAX: u64 = 30_000;
/// Requests one peer has to answer at once, at most.
pub(super) const PEER_REQUESTS_MAX: u32 = 4;
/// How many times the way to a peer and back what it is asked for beforehand should last: so it is never idle for more than
/// an eighth of its time, however unsteady it is.
const WAYS: u64 = 4;
/// What a score can reach, either way.
const SCORE_MAX: i32 = 64;

/// A peer's standing.
#[derive(Debug, Default)]
pub(super) struct Peer {
    pub(super) status: Option<Status>,
    /// When the status was asked for last.
    pub(super) status_asked: Option<Tick>,
    pub(super) requests: u32,
    /// Those of them that are for parts.
    pub(super) parts: u32,
    pub(super) bytes_asked: u64,
    /// Bytes that may be asked for at once: grows with answers, shrinks with failures.
    window: u64,
    score: i32,
    bad: u32,
    unasked: u32,
    /// Failures in a row.
    pub(super) failures: u32,
    busy: u32,
    silent_until: Tick,
    /// A version that it said it does not have, though its status says otherwise.
    refuses: Option<Version>,
    /// Jobs that it could not help with.
    pub(super) lacks: BTreeSet<JobId>,
    /// The version of which it gave parts last, until it gives that up.
    gave: Option<Version>,
    /// How long the parts it gives take, in milliseconds; zero before the first.
    pub(super) latency_ms: u64,
    /// How long it took at best to say where it stands, in milliseconds; zero before it did.
    pub(super) reply_ms: u64,
    /// How long it is from one part that it gives to the next while it is asked for some, in milliseconds; zero before the
    /// first.
    pace_ms: u64,
    /// When it gave the last.
    gave_at: Tick,
}

impl Peer {
    /// One whose first requests may ask for so many bytes.
    pub(super) fn new(window: u64) -> Self {
        Self { window, ..Self::default() }
    }

    /// Whether it says that it has a version. Only its word.
    pub(super) fn claims(&self, version: &Version) -> bool {
        self.refuses != Some(*version)
            && self.status.as_ref().is_some_and(|status| {
                let height = status.oldest <= version.height && version.height <= status.newest.height;
                height && (status.newest.height != version.height || status.newest.root == version.root)
            })
    }

    /// Whether it may be asked for more now.
    pub(super) fn is_ready(&self, now: Tick) -> bool {
        self.silent_until <= now && self.requests < PEER_REQUESTS_MAX
    }

    /// Until when it is left alone.
    pub(super) fn silent_until(&self) -> Tick {
        self.silent_until
    }

    /// Whether a request of so many bytes fits into its window. One always does.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.bytes_asked == 0 || self.bytes_asked + bytes <= self.window
    }

    /// How many parts it may be asked for at once: one, and those that would be on their way while one is.
    // spec: PEER-5
    pub(super) fn parts_max(&self) -> u32 {
        let on_the_way = (WAYS * self.reply_ms + self.pace_ms / 2).checked_div(self.pace_ms).unwrap_or(0);
        u32::try_from(on_the_way).unwrap_or(u32::MAX).saturating_add(1).min(PEER_REQUESTS_MAX)
    }

    /// Whom to ask first: the greater, the sooner.
    pub(super) fn rank(&self) -> (i32, std::cmp::Reverse<u64>) {
        (self.score, std::cmp::Reverse(self.latency_ms))
    }

    /// It answered with something of use to what it was asked since then.
    pub(super) fn helped(&mut self, now: Tick, since: Tick, bytes: u64, window_max: u64) {
        let took_ms = now.0.saturating_sub(since.0);
        let pace_ms = now.0.saturating_sub(since.max(self.gave_at).0).max(1);
        self.pace_ms = if self.pace_ms == 0 { pace_ms } else { (self.pace_ms * 3 + pace_ms) / 4 };
        self.gave_at = now;
        (self.failures, self.busy) = (0, 0);
        self.score = (self.score + 1).min(SCORE_MAX);
        self.window = (self.window + bytes).min(window_max);
        self.latency_ms = if self.latency_ms == 0 { took_ms.max(1) } else { (self.latency_ms * 7 + took_ms) / 8 };
    }

    /// It gave a part of a version.
    pub(super) fn gives(&mut self, version: Version) {
        self.gave = Some(version);
    }

    /// It did not answer in time, or with nothing.
    pub(super) fn failed(&mut self, now: Tick, timeout_ms: u64, window_min: u64) {
        self.was_of_no_use(window_min);
        let pause = (timeout_ms / 8).max(1) << self.failures.min(16);
        self.silent_until = Tick(now.0 + pause.min(SILENT_MS_MAX));
    }

    fn was_of_no_use(&mut self, window_min: u64) {
        self.failures = self.failures.saturating_add(1);
        self.score = (self.score - 8).max(-SCORE_MAX);
        self.window = (self.window / 2).max(window_min);
    }

    /// It has no time now.
    pub(super) fn is_busy(&mut self, now: Tick, retry_after_ms: u64, timeout_ms: u64, window_min: u64) {
        self.busy += 1;
        if self.busy > BUSY_MAX {
            return self.failed(now, timeout_ms, window_min);
        }
        self.silent_until = Tick(now.0 + retry_after_ms.clamp(1, SILENT_MS_MAX));
    }

    /// It does not have a version any more, or has another. Says whether it just gave up what it was giving, which is its
    /// right: a chain goes on. Where it stands now is asked at once.
    pub(super) fn refuses(&mut self, version: Version) -> bool {
        self.refuses = Some(version);
        self.status_asked = None;
        self.gave.take() == Some(version)
    }

    /// It said anew where it stands.
    pub(super) fn says(&mut self, status: Status, took_ms: u64) {
        self.reply_ms = if self.reply_ms == 0 { took_ms.max(1) } else { self.reply_ms.min(took_ms.max(1)) };
        self.status = Some(status);
        self.refuses = None;
        self.lacks.clear();
    }

    /// It sent what cannot be true. Says whether that was once too often. It is not left alone for that: whoever lies should be
    /// found out soon.
    pub(super) fn lied(&mut self, window_min: u64) -> bool {
        self.bad += 1;
        self.was_of_no_use(window_min);
        self.bad >= BAD_ANSWERS_MAX
    }

    /// It answered what nobody asked. Says whether that was once too often.
    pub(super) fn answered_unasked(&mut self) -> bool {
        self.unasked += 1;
        self.unasked >= UNASKED_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelstone_codec::{Hash, Height, Root};

    /// spec: PEER-7, PEER-8. Whoever gives up a version that it was giving has done no wrong and is asked at once where it
    /// stands; whoever says that it does not have what it has never given is no help.
    #[test]
    fn giving_up_what_was_given_is_no_failure_the_first_time() {
        let version = |height| Version { height: Height(height), root: Root(Hash([7; 32])) };
        let mut peer = Peer::new(1000);
        assert!(!peer.refuses(version(4)), "it gave nothing of it");
        peer.gives(version(4));
        peer.status_asked = Some(Tick(9));
        assert!(peer.refuses(version(4)));
        assert_eq!(peer.status_asked, None);
        assert!(!peer.refuses(version(4)), "it gave nothing since");
        peer.gives(version(4));
        assert!(!peer.refuses(version(5)), "it gave nothing of that");
    }

    /// spec: PEER-5. Near peers are asked for one part at a time, far ones for as many as fill the way to them.
    #[test]
    fn what_a_peer_is_asked_for_at_once_follows_the_way_to_it() {
        let parts_max = |reply_ms: u64, pace_ms: u64| {
            let mut peer = Peer { reply_ms, ..Peer::new(1000) };
            assert_eq!(peer.parts_max(), 1, "nothing is known of it yet");
            for part in 1..=20 {
                peer.helped(Tick(part * pace_ms), Tick(0), 10, 1000);
            }
            peer.parts_max()
        };
        assert_eq!(parts_max(1, 25), 1, "the next room, which takes 25 ms for each part");
        assert_eq!(parts_max(5, 240), 1, "a thin line to the next town: it is idle for 2 % of the time");
        assert_eq!(parts_max(100, 240), 3, "a thin line across the ocean");
        assert_eq!(parts_max(100, 30), PEER_REQUESTS_MAX, "a thick one");
    }

    /// spec: PEER-7. A failure is a reason to leave a peer alone for a while, a lie is none: it is soon known what to think of
    /// it.
    #[test]
    fn whoever_lies_is_not_left_alone() {
        let mut peer = Peer::new(1000);
        assert!(!peer.lied(10) && peer.is_ready(Tick(0)) && !peer.lied(10) && peer.is_ready(Tick(0)));
        assert!(peer.lied(10), "the third time");
        let mut peer = Peer::new(1000);
        peer.failed(Tick(0), 800, 10);
        assert!(!peer.is_ready(Tick(199)) && peer.is_ready(Tick(200)));
    }

    /// How soon it says where it stands says nothing about how long parts take.
    #[test]
    fn a_quick_word_makes_no_part_late() {
        let mut peer = Peer::new(1000);
        peer.helped(Tick(800), Tick(0), 10, 1000);
        let at = Version { height: Height(4), root: Root(Hash([7; 32])) };
        let status = Status {
            chain_id: keelstone_codec::ChainId::new("test").unwrap(),
            hasher: keelstone_tree::HashKind::Blake3,
            unit_weight_max: 1000,
            newest: at,
            oldest: at.height,
            diffs_from: at.height,
        };
        peer.says(status, 1);
        assert_eq!((peer.latency_ms, peer.reply_ms), (800, 1));
    }
}
