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
/// Times in a row that a peer may be busy: so often, and it is not counted on; more often, and that is a failure.
const BUSY_MAX: u32 = 8;
/// Longest that a peer which failed is left alone, in milliseconds.
const SILENT_MS_MAX: u64 = 30_000;
/// Requests one peer has to answer at once, at most.
pub(super) const PEER_REQUESTS_MAX: u32 = 4;
/// How many times the way to a peer and back what it is asked for beforehand should last: so it is idle for a fifth of its
/// time at most, and others have work meanwhile.
const WAYS: u64 = 2;
/// A request asks for this part of the most that one may ask for, at least, or for this part of the state.
const REQUEST_PARTS: u64 = 32;
const STATE_PARTS: u64 = 1 << 14;
/// For so many milliseconds parts are counted before it is said how many there are.
const PACED_MS: u64 = 250;
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
    /// Failures in a row.
    pub(super) failures: u32,
    busy: u32,
    silent_until: Tick,
    /// A version that it said it does not have, though its status says otherwise.
    refuses: Option<Version>,
    /// Jobs that it could not help with.
    lacks: BTreeSet<JobId>,
    /// The version of which it gave parts last, until it gives that up.
    gave: Option<Version>,
    /// The same, until there is a part of it that it could not help with.
    gave_since: Option<Version>,
    /// How long the parts it gives take, in milliseconds; zero before the first.
    pub(super) latency_ms: u64,
    /// How long it took at best to answer anything, in milliseconds; zero before it did. What it says first may have waited
    /// for us, so that counts as little as any other answer.
    pub(super) reply_ms: u64,
    /// How long it lately was from one part that it gave to the next, in milliseconds; zero before that is known.
    pace_ms: u64,
    /// Since when parts are counted to know that anew, and how many there were.
    paced: Option<(Tick, u64)>,
    /// Bytes of the parts that it gives; zero before the first.
    part_bytes: u64,
    /// A mirror: what it has are files of whole chunks.
    pub(super) gives_whole_chunks: bool,
}

impl Peer {
    /// One whose first requests may ask for so many bytes.
    pub(super) fn new(window: u64) -> Self {
        Self { window, ..Self::default() }
    }

    /// One whose parts are files of whole chunks.
    pub(super) fn mirror(window: u64) -> Self {
        Self { gives_whole_chunks: true, ..Self::new(window) }
    }

    /// Whether it says that it has a version, or was giving it: what it keeps for those who ask about it may be below what it
    /// says of itself (spec: PEER-2). Only its word.
    pub(super) fn claims(&self, version: &Version) -> bool {
        let gave = self.gave == Some(*version);
        self.refuses != Some(*version) && self.status.as_ref().is_some_and(|status| gave || status.has(version))
    }

    /// Whether it may be asked for more now.
    pub(super) fn is_ready(&self, now: Tick) -> bool {
        self.silent_until <= now && self.requests < PEER_REQUESTS_MAX
    }

    /// Whether it is to be expected that it gives what it says it has: it failed no more often than it may, and is not busy for ever.
    // spec: PEER-7, PEER-8
    pub(super) fn is_counted_on(&self, retries_max: u32) -> bool {
        self.failures <= retries_max && self.busy < BUSY_MAX
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

    /// How many bytes of a state of so many one request asks it for, of at most so many: what comes while a word goes to it
    /// and back, but so much that a request is little beside it, or next to nothing of the state. A mirror reads whole chunks,
    /// whatever it is asked for.
    // spec: PEER-5
    pub(super) fn request_bytes(&self, bytes_max: u64, state_bytes: u64) -> u64 {
        if self.gives_whole_chunks {
            return bytes_max;
        }
        let on_the_way = (self.part_bytes * self.reply_ms).checked_div(self.pace_ms).unwrap_or(0);
        let least = (bytes_max / REQUEST_PARTS).max(state_bytes / STATE_PARTS);
        on_the_way.max(least).min(bytes_max)
    }

    /// Whom to ask first: the greater, the sooner.
    pub(super) fn rank(&self) -> (i32, std::cmp::Reverse<u64>) {
        (self.score, std::cmp::Reverse(self.latency_ms))
    }

    /// It answered with something of use to what it was asked since then.
    pub(super) fn helped(&mut self, now: Tick, since: Tick, bytes: u64, window_max: u64) {
        let took_ms = now.0.saturating_sub(since.0);
        // Several that come together say nothing about how soon another would.
        let paced = self.paced.get_or_insert((since, 0));
        paced.1 += 1;
        let paced_ms = now.0.saturating_sub(paced.0.0);
        if paced_ms >= PACED_MS {
            self.pace_ms = paced_ms.div_ceil(paced.1);
            self.paced = Some((now, 0));
        }
        self.part_bytes = if self.part_bytes == 0 { bytes } else { (self.part_bytes * 3 + bytes) / 4 };
        self.answered_in(took_ms);
        (self.failures, self.busy) = (0, 0);
        self.score = (self.score + 1).min(SCORE_MAX);
        self.window = (self.window + bytes).min(window_max);
        self.latency_ms = if self.latency_ms == 0 { took_ms.max(1) } else { (self.latency_ms * 7 + took_ms) / 8 };
    }

    fn answered_in(&mut self, took_ms: u64) {
        let best = if self.reply_ms == 0 { took_ms } else { self.reply_ms.min(took_ms) };
        self.reply_ms = best.max(1);
    }

    /// It gave a part of a version.
    pub(super) fn gives(&mut self, version: Version) {
        (self.gave, self.gave_since) = (Some(version), Some(version));
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

    /// It could not help with a job of a version. Says whether it gave a part of that version since the last such job: one with
    /// a damaged disk may have all the rest.
    // spec: PEER-7
    pub(super) fn could_not_help(&mut self, job: JobId, version: Version) -> bool {
        self.lacks.insert(job);
        self.gave_since.take() == Some(version)
    }

    /// Whether it is not known that it could not help with a job.
    pub(super) fn may_help(&self, job: JobId) -> bool {
        !self.lacks.contains(&job)
    }

    /// Jobs have new numbers: what is known of the old ones says nothing.
    pub(super) fn forget_jobs(&mut self) {
        self.lacks.clear();
    }

    /// It said anew where it stands.
    pub(super) fn says(&mut self, status: Status, took_ms: u64) {
        self.answered_in(took_ms);
        self.status = Some(status);
        self.refuses = None;
        self.forget_jobs();
    }

    /// It sent what cannot be true. Says whether that was once too often. It is not left alone for that: whoever lies should be
    /// found out soon.
    pub(super) fn lied(&mut self, window_min: u64) -> bool {
        self.bad += 1;
        self.was_of_no_use(window_min);
        self.bad >= BAD_ANSWERS_MAX
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

    /// spec: PEER-7. One unit that cannot be read among many that are given is no failure, so a damaged disk does no harm to a peer;
    /// whoever refuses one after the other is of no use, however politely it says so.
    #[test]
    fn who_refuses_part_after_part_fails() {
        let version = |height| Version { height: Height(height), root: Root(Hash([7; 32])) };
        let mut peer = Peer::new(1000);
        assert!(!peer.could_not_help(1, version(4)), "it gave nothing of it");
        peer.gives(version(4));
        assert!(peer.could_not_help(2, version(4)), "it gives the rest");
        assert!(!peer.could_not_help(3, version(4)), "it gave nothing since");
        assert!((1..4).all(|job| !peer.may_help(job)) && peer.may_help(4));
        peer.gives(version(4));
        assert!(!peer.could_not_help(4, version(5)), "it gave nothing of that");
        peer.gives(version(4));
        peer.could_not_help(5, version(4));
        assert!(peer.refuses(version(4)), "what it gave it gave, and gives that up now");
    }

    /// spec: PEER-2, PEER-8. Whoever gives a version is asked on for it, though what it says it keeps begins above by now, until it
    /// says that it has it no more.
    #[test]
    fn whoever_gives_a_version_has_it_until_it_says_otherwise() {
        let version = |height| Version { height: Height(height), root: Root(Hash([7; 32])) };
        let status = |oldest, newest| Status {
            chain_id: keelstone_codec::ChainId::new("test").unwrap(),
            hasher: keelstone_tree::HashKind::Blake3,
            chunk_weight_max: 1000,
            newest: version(newest),
            oldest: Height(oldest),
            diffs_from: Height(newest),
        };
        let mut peer = Peer::new(1000);
        peer.says(status(1, 9), 1);
        assert!(peer.claims(&version(4)) && !peer.claims(&version(10)));
        peer.gives(version(4));
        peer.says(status(6, 12), 1);
        assert!(peer.claims(&version(4)) && !peer.claims(&version(5)));
        peer.refuses(version(4));
        peer.says(status(6, 12), 1);
        assert!(!peer.claims(&version(4)));
    }

    /// spec: PEER-5. Near peers are asked for one part at a time, far ones for as many as fill the way to them.
    #[test]
    fn what_a_peer_is_asked_for_at_once_follows_the_way_to_it() {
        let parts_max = |reply_ms: u64, pace_ms: u64| {
            let mut peer = Peer { reply_ms, ..Peer::new(1000) };
            assert_eq!(peer.parts_max(), 1, "nothing is known of it yet");
            for part in 1..=20 {
                peer.helped(Tick(reply_ms + part * pace_ms), Tick(part * pace_ms), 10, 1000);
            }
            peer.parts_max()
        };
        assert_eq!(parts_max(1, 25), 1, "the next room, which takes 25 ms for each part");
        assert_eq!(parts_max(5, 240), 1, "a thin line to the next town: it is idle for 2 % of the time");
        assert_eq!(parts_max(100, 240), 2, "a thin line across the ocean: the next is on its way while one comes");
        assert_eq!(parts_max(100, 30), PEER_REQUESTS_MAX, "a thick one");
    }

    /// spec: PEER-5. Near peers are asked for little at a time, far ones for what the way to them holds, mirrors for all there is;
    /// little is more where the state is large.
    #[test]
    fn how_much_one_request_asks_for_follows_the_way_and_the_state() {
        const MOST: u64 = 4 << 20;
        let asked = |reply_ms: u64, pace_ms: u64, part_bytes: u64, state_bytes: u64| {
            let mut peer = Peer { reply_ms, ..Peer::new(MOST) };
            assert_eq!(peer.request_bytes(MOST, 0), MOST / REQUEST_PARTS, "nothing is known of it yet");
            for part in 1..=200 {
                peer.helped(Tick(reply_ms + part * pace_ms), Tick(part * pace_ms), part_bytes, MOST);
            }
            peer.request_bytes(MOST, state_bytes)
        };
        assert_eq!(asked(1, 3, 128 << 10, 1 << 30), 128 << 10, "the next room");
        assert_eq!(asked(100, 100, 512 << 10, 1 << 30), 512 << 10, "across the ocean, at 5 MiB a second");
        assert_eq!(asked(100, 10, 4 << 20, 1 << 30), MOST, "no more than one may ask for");
        assert_eq!(asked(1, 3, 128 << 10, 1 << 34), 1 << 20, "a state of 16 GiB");
        assert_eq!(Peer::mirror(MOST).request_bytes(MOST, 0), MOST);
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
            chunk_weight_max: 1000,
            newest: at,
            oldest: at.height,
            diffs_from: at.height,
        };
        peer.says(status, 1);
        assert_eq!((peer.latency_ms, peer.reply_ms), (800, 1));
    }
}
