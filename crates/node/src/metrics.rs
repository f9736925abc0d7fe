//! What a node counts, for Prometheus at `/metrics`.
//!
//! Names are `<component>_<noun>_<unit>`. Labels take values from fixed lists in this file only, never from a
//! request, so the number of series is known before the first request comes. Each is something a person acts on; the
//! list with what to do stands in `docs/http.md`.

use crate::bundle::PROGRESS_NAMES;
use crate::engine::statesync::SyncStanding;
use keelstone_store::ScrubStanding;
use keelstone_sync::library::{Info, Phase, Progress};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    route: &'static str,
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// A number as a gauge holds it.
fn gauge(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// All counters of a node.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Request, Counter>,
    request_seconds: Histogram,
    refused: Family<Reason, Counter>,
    pub(crate) connections_open: Gauge,
    pub(crate) subscriptions_open: Gauge,
    pub(crate) subscriptions_dropped: Counter,
    transactions: Family<Outcome, Counter>,
    pub(crate) height: Gauge,
    pub(crate) block_seconds: Histogram,
    pub(crate) execution_running_ms: Gauge,
    continuations: Family<Outcome, Counter>,
    hooks: Family<Outcome, Counter>,
    pub(crate) waiting: Gauge,
    pub(crate) ready: Gauge,
    pub(crate) store_entries: Gauge,
    pub(crate) store_disk_bytes: Gauge,
    pub(crate) store_garbage_bytes: Gauge,
    pub(crate) store_view_bytes: Gauge,
    pub(crate) store_flush_waits: Gauge,
    pub(crate) store_compaction_waits: Gauge,
    pub(crate) store_failed: Gauge,
    pub(crate) store_scrubbed_bytes: Counter,
    store_scrub_passes: Gauge,
    store_scrub_done_bytes: Gauge,
    store_scrub_total_bytes: Gauge,
    store_damaged_problems: Gauge,
    snapshots_created: Counter,
    snapshots_failed: Family<Reason, Counter>,
    pub(crate) snapshot_interval: Gauge,
    pub(crate) snapshots_skipped: Counter,
    pub(crate) snapshots_damaged: Counter,
    snapshot_create_seconds: Histogram,
    snapshot_phase: Gauge,
    snapshot_chunks_done: Gauge,
    snapshot_chunks_total: Gauge,
    snapshot_height: Gauge,
    snapshot_bytes: Gauge,
    snapshots_kept: Gauge,
    snapshots_kept_bytes: Gauge,
    snapshot_chunks_served: Counter,
    snapshot_bytes_served: Counter,
    snapshot_chunks_refused: Family<Reason, Counter>,
    pub(crate) certified_height: Gauge,
    checks: Family<Outcome, Counter>,
    pub(crate) check_read_entries: Counter,
    pub(crate) check_passes: Gauge,
    pub(crate) check_discrepancies: Gauge,
    pub(crate) check_alarms: Counter,
    mendings: Family<Outcome, Counter>,
    certified: Family<Outcome, Counter>,
    statesync_phase: Gauge,
    statesync_chunks_done: Gauge,
    statesync_chunks_total: Gauge,
    statesync_entries_done: Gauge,
    statesync_entries_total: Gauge,
    statesync_bytes: Counter,
    statesync_left_seconds: Gauge,
    statesync_offers: Family<Outcome, Counter>,
    statesync_refused: Family<Reason, Counter>,
    pub(crate) peers: Gauge,
    pub(crate) peers_banned: Counter,
    pub(crate) peer_connections_refused: Counter,
    pub(crate) peer_requests_refused: Counter,
    pub(crate) peer_bytes_served: Counter,
    announced: Family<Outcome, Counter>,
    pub(crate) follow_certified_height: Gauge,
    pub(crate) follow_gap: Gauge,
    follow_behind: Gauge,
    follow_silent_seconds: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.000_5, 2.0, 16));
        let mut metrics = Self {
            registry: Registry::default(),
            requests: Family::default(),
            request_seconds: seconds(),
            refused: Family::default(),
            connections_open: Gauge::default(),
            subscriptions_open: Gauge::default(),
            subscriptions_dropped: Counter::default(),
            transactions: Family::default(),
            height: Gauge::default(),
            block_seconds: seconds(),
            execution_running_ms: Gauge::default(),
            continuations: Family::default(),
            hooks: Family::default(),
            waiting: Gauge::default(),
            ready: Gauge::default(),
            store_entries: Gauge::default(),
            store_disk_bytes: Gauge::default(),
            store_garbage_bytes: Gauge::default(),
            store_view_bytes: Gauge::default(),
            store_flush_waits: Gauge::default(),
            store_compaction_waits: Gauge::default(),
            store_failed: Gauge::default(),
            store_scrubbed_bytes: Counter::default(),
            store_scrub_passes: Gauge::default(),
            store_scrub_done_bytes: Gauge::default(),
            store_scrub_total_bytes: Gauge::default(),
            store_damaged_problems: Gauge::default(),
            snapshots_created: Counter::default(),
            snapshots_failed: Family::default(),
            snapshot_interval: Gauge::default(),
            snapshots_skipped: Counter::default(),
            snapshots_damaged: Counter::default(),
            snapshot_create_seconds: Histogram::new(exponential_buckets(0.01, 2.0, 18)),
            snapshot_phase: Gauge::default(),
            snapshot_chunks_done: Gauge::default(),
            snapshot_chunks_total: Gauge::default(),
            snapshot_height: Gauge::default(),
            snapshot_bytes: Gauge::default(),
            snapshots_kept: Gauge::default(),
            snapshots_kept_bytes: Gauge::default(),
            snapshot_chunks_served: Counter::default(),
            snapshot_bytes_served: Counter::default(),
            snapshot_chunks_refused: Family::default(),
            certified_height: Gauge::default(),
            checks: Family::default(),
            check_read_entries: Counter::default(),
            check_passes: Gauge::default(),
            check_discrepancies: Gauge::default(),
            check_alarms: Counter::default(),
            mendings: Family::default(),
            certified: Family::default(),
            statesync_phase: Gauge::default(),
            statesync_chunks_done: Gauge::default(),
            statesync_chunks_total: Gauge::default(),
            statesync_entries_done: Gauge::default(),
            statesync_entries_total: Gauge::default(),
            statesync_bytes: Counter::default(),
            statesync_left_seconds: Gauge::default(),
            statesync_offers: Family::default(),
            statesync_refused: Family::default(),
            peers: Gauge::default(),
            peers_banned: Counter::default(),
            peer_connections_refused: Counter::default(),
            peer_requests_refused: Counter::default(),
            peer_bytes_served: Counter::default(),
            announced: Family::default(),
            follow_certified_height: Gauge::default(),
            follow_gap: Gauge::default(),
            follow_behind: Gauge::default(),
            follow_silent_seconds: Gauge::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("http_requests", "Requests answered, by route and status class", metrics.requests.clone());
        registry.register("http_request_seconds", "Time to answer a request", metrics.request_seconds.clone());
        registry.register(
            "http_refused",
            "Connections, streams and requests refused, by reason",
            metrics.refused.clone(),
        );
        registry.register("http_connections_open", "Open connections", metrics.connections_open.clone());
        registry.register("http_subscriptions_open", "Open event streams", metrics.subscriptions_open.clone());
        registry.register(
            "http_subscriptions_dropped",
            "Event streams dropped because as much waited for their reader as may when a block came",
            metrics.subscriptions_dropped.clone(),
        );
        registry.register("chain_transactions", "Transactions, by what became of them", metrics.transactions.clone());
        registry.register(
            "chain_bundle_batches",
            "Batches of async bundles that blocks ran, by what they came to",
            metrics.continuations.clone(),
        );
        registry.register(
            "chain_hooks",
            "Functions that blocks called by themselves and that changed or told something or failed, by what became of them",
            metrics.hooks.clone(),
        );
        registry.register("chain_height_blocks", "The height of the last block", metrics.height.clone());
        registry.register("chain_block_seconds", "Time to execute and commit a block", metrics.block_seconds.clone());
        registry.register(
            "execution_running_ms",
            "Milliseconds for which the operation at work has run; at execution.watchdog_ms the node halts",
            metrics.execution_running_ms.clone(),
        );
        registry.register(
            "mempool_waiting_transactions",
            "Transactions that wait for a block",
            metrics.waiting.clone(),
        );
        registry.register(
            "mempool_ready_transactions",
            "Of these, those that a block could take: no earlier nonce of their sender is missing",
            metrics.ready.clone(),
        );
        registry.register("store_entries_count", "Entries in the state", metrics.store_entries.clone());
        registry.register("store_disk_bytes", "Bytes the store takes on disk", metrics.store_disk_bytes.clone());
        registry.register(
            "store_garbage_bytes",
            "Bytes on disk that the last state does not need",
            metrics.store_garbage_bytes.clone(),
        );
        registry.register(
            "store_view_bytes",
            "Bytes on disk that are kept for nothing but open views",
            metrics.store_view_bytes.clone(),
        );
        registry.register(
            "store_flush_waits_commits",
            "Commits since the start that waited for a flush",
            metrics.store_flush_waits.clone(),
        );
        registry.register(
            "store_compaction_waits_commits",
            "Commits since the start that waited for a compaction",
            metrics.store_compaction_waits.clone(),
        );
        registry.register(
            "store_failed_flag",
            "1 once a write failed and the node must restart",
            metrics.store_failed.clone(),
        );
        metrics.register_scrub();
        metrics.register_snapshots();
        metrics.register_statesync();
        metrics.register_checks();
        metrics.register_peers();
        metrics.begin_at_zero();
        metrics
    }

    fn register_checks(&mut self) {
        let registry = &mut self.registry;
        registry.register("check_made_checks", "Checks of the state, by what they came to", self.checks.clone());
        registry.register(
            "check_read_entries",
            "Entries that checks have read and proven",
            self.check_read_entries.clone(),
        );
        registry.register("check_whole_passes", "How often the whole state was read", self.check_passes.clone());
        registry.register(
            "check_discrepancies_count",
            "What the last check found to differ",
            self.check_discrepancies.clone(),
        );
        registry.register("check_raised_alarms", "Alarms that checks raised", self.check_alarms.clone());
        let what = "Mendings of stored bytes, by what they came to";
        registry.register("store_made_mendings", what, self.mendings.clone());
    }

    fn register_scrub(&mut self) {
        let registry = &mut self.registry;
        registry.register("store_scrubbed_bytes", "Stored bytes looked at again", self.store_scrubbed_bytes.clone());
        registry.register(
            "store_scrub_done_passes",
            "Times that all that is stored was looked at again",
            self.store_scrub_passes.clone(),
        );
        registry.register(
            "store_scrub_done_bytes",
            "Bytes the present pass has looked at",
            self.store_scrub_done_bytes.clone(),
        );
        registry.register(
            "store_scrub_total_bytes",
            "Bytes it will have looked at in the end",
            self.store_scrub_total_bytes.clone(),
        );
        registry.register(
            "store_damaged_problems",
            "Damage that is known; 0 once a whole pass has found none",
            self.store_damaged_problems.clone(),
        );
    }

    /// Shows where the scrub stands.
    pub(crate) fn scrub_stands(&self, standing: &ScrubStanding) {
        self.store_scrub_passes.set(gauge(standing.passes));
        self.store_scrub_done_bytes.set(gauge(standing.done_bytes));
        self.store_scrub_total_bytes.set(gauge(standing.total_bytes));
        self.store_damaged_problems.set(gauge(standing.problems));
    }

    fn register_statesync(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "certified_height_blocks",
            "The last height whose root the engine certified as it is here",
            self.certified_height.clone(),
        );
        registry.register(
            "certified_compared_roots",
            "Roots compared with what the engine certified, by outcome",
            self.certified.clone(),
        );
        registry.register(
            "statesync_phase_number",
            "State sync: 0 nothing was offered, 1 chunks are coming, 2 a state is built of them, 3 done",
            self.statesync_phase.clone(),
        );
        registry.register("statesync_done_chunks", "Chunks proven and kept", self.statesync_chunks_done.clone());
        registry.register(
            "statesync_total_chunks",
            "Chunks of the snapshot that is received",
            self.statesync_chunks_total.clone(),
        );
        registry.register("statesync_done_entries", "Entries in proven chunks", self.statesync_entries_done.clone());
        registry.register(
            "statesync_total_entries",
            "Entries of the snapshot; 0 before its first page",
            self.statesync_entries_total.clone(),
        );
        registry.register("statesync_received_bytes", "Bytes of chunks that came in", self.statesync_bytes.clone());
        registry.register(
            "statesync_left_seconds",
            "Seconds until all chunks are there, if they go on coming as they did",
            self.statesync_left_seconds.clone(),
        );
        registry.register(
            "statesync_offered_snapshots",
            "Snapshots that were offered, by what was answered",
            self.statesync_offers.clone(),
        );
        registry.register(
            "statesync_refused_chunks",
            "Chunks that were not accepted, by what was answered",
            self.statesync_refused.clone(),
        );
    }

    fn register_peers(&mut self) {
        let registry = &mut self.registry;
        registry.register("p2p_connected_peers", "Peers that are connected", self.peers.clone());
        registry.register("p2p_banned_peers", "Peers that were banned since the start", self.peers_banned.clone());
        registry.register(
            "p2p_refused_connections",
            "Connections that were refused: banned, or above a limit",
            self.peer_connections_refused.clone(),
        );
        registry.register(
            "p2p_refused_requests",
            "What peers sent that is no request",
            self.peer_requests_refused.clone(),
        );
        registry.register("p2p_served_bytes", "Bytes of answers to peers", self.peer_bytes_served.clone());
        registry.register(
            "follow_heard_words",
            "What peers said is certified, by what became of it",
            self.announced.clone(),
        );
        registry.register(
            "follow_certified_height_blocks",
            "The newest height that a producer has certified",
            self.follow_certified_height.clone(),
        );
        registry.register(
            "follow_behind_blocks",
            "Blocks between the state here and the newest that a producer has certified",
            self.follow_behind.clone(),
        );
        registry.register(
            "follow_silent_seconds",
            "How long ago a producer said what is certified, or since when this node follows if none has",
            self.follow_silent_seconds.clone(),
        );
        registry.register("follow_gap_flag", "1 while no peer has the next height any more", self.follow_gap.clone());
    }

    /// Shows where state sync stands.
    pub(crate) fn statesync(&self, standing: &SyncStanding, building: bool, left_seconds: u64) {
        let gauge = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        match standing {
            SyncStanding::Idle => drop(self.statesync_phase.set(0)),
            SyncStanding::Receiving { progress, .. } => {
                self.statesync_phase.set(if building { 2 } else { 1 });
                self.statesync_chunks_done.set(i64::from(progress.chunks_done));
                self.statesync_chunks_total.set(i64::from(progress.chunks));
                self.statesync_entries_done.set(gauge(progress.done.count));
                self.statesync_entries_total.set(gauge(progress.total.map_or(0, |total| total.count)));
                self.statesync_left_seconds.set(gauge(left_seconds));
            }
            SyncStanding::Whole { .. } => {
                self.statesync_phase.set(3);
                self.statesync_chunks_done.set(self.statesync_chunks_total.get());
                self.statesync_entries_done.set(self.statesync_entries_total.get());
                self.statesync_left_seconds.set(0);
            }
        }
    }

    /// Counts what a block did for an async bundle.
    pub(crate) fn continuation(&self, outcome: &'static str) {
        self.continuations.get_or_create(&Outcome { outcome }).inc();
    }

    /// Counts a function that a block called by itself: whether it succeeded.
    pub(crate) fn hook(&self, succeeded: bool) {
        let outcome = if succeeded { "succeeded" } else { "failed" };
        self.hooks.get_or_create(&Outcome { outcome }).inc();
    }

    /// Counts a check: `consistent`, `inconsistent`, `unknown` or `failed`.
    pub(crate) fn checked(&self, outcome: &'static str) {
        self.checks.get_or_create(&Outcome { outcome }).inc();
    }

    /// Counts a mending: `whole`, `left` if something is damaged still, `failed`, or `refused` if there were too many.
    pub(crate) fn mended(&self, outcome: &'static str) {
        self.mendings.get_or_create(&Outcome { outcome }).inc();
    }

    /// Counts so many roots: `agreed`, `unknown` or `differs`.
    pub(crate) fn certified(&self, outcome: &'static str, roots: u64) {
        self.certified.get_or_create(&Outcome { outcome }).inc_by(roots);
    }

    /// How a node that follows stands to what is certified.
    pub(crate) fn follows(&self, behind: u64, silent_seconds: u64) {
        self.follow_behind.set(gauge(behind));
        self.follow_silent_seconds.set(gauge(silent_seconds));
    }

    /// Counts what a peer said is certified: `taken`, `known`, or why it did not count.
    pub(crate) fn announced(&self, outcome: &'static str) {
        self.announced.get_or_create(&Outcome { outcome }).inc();
    }

    /// Counts what was answered to an offer.
    pub(crate) fn statesync_offer(&self, outcome: &'static str) {
        self.statesync_offers.get_or_create(&Outcome { outcome }).inc();
    }

    /// Counts a chunk that came in, and what was answered if it was not accepted.
    pub(crate) fn statesync_chunk(&self, bytes: usize, refused: Option<&'static str>) {
        self.statesync_bytes.inc_by(bytes as u64);
        if let Some(reason) = refused {
            self.statesync_refused.get_or_create(&Reason { reason }).inc();
        }
    }

    /// Makes every series whose labels are known. One that appeared with its first event would hide that event from
    /// whoever looks for an increase.
    fn begin_at_zero(&self) {
        for outcome in ["accepted", "refused", "succeeded", "failed"] {
            drop(self.transactions.get_or_create(&Outcome { outcome }));
        }
        for outcome in ["consistent", "inconsistent", "unknown", "failed"] {
            drop(self.checks.get_or_create(&Outcome { outcome }));
        }
        for outcome in ["succeeded", "failed"] {
            drop(self.hooks.get_or_create(&Outcome { outcome }));
        }
        for outcome in PROGRESS_NAMES {
            drop(self.continuations.get_or_create(&Outcome { outcome }));
        }
        for reason in
            ["accept", "answers", "bodies", "connections", "guesses", "handshake", "rate", "subscriptions", "token"]
        {
            drop(self.refused.get_or_create(&Reason { reason }));
        }
        for reason in ["room", "disk", "state", "unproven", "other"] {
            drop(self.snapshots_failed.get_or_create(&Reason { reason }));
        }
        for reason in ["busy", "damaged", "failed", "unknown"] {
            drop(self.snapshot_chunks_refused.get_or_create(&Reason { reason }));
        }
        for outcome in ["accepted", "aborted", "rejected", "format_rejected", "sender_rejected"] {
            drop(self.statesync_offers.get_or_create(&Outcome { outcome }));
        }
        for outcome in ["taken", "known", "forged", "foreign", "stranger", "stale", "differs", "too_many"] {
            drop(self.announced.get_or_create(&Outcome { outcome }));
        }
        for outcome in ["agreed", "unknown", "differs"] {
            drop(self.certified.get_or_create(&Outcome { outcome }));
        }
        for outcome in ["whole", "left", "failed", "refused"] {
            drop(self.mendings.get_or_create(&Outcome { outcome }));
        }
        for reason in ["aborted", "retried", "snapshot_rejected"] {
            drop(self.statesync_refused.get_or_create(&Reason { reason }));
        }
    }

    fn register_snapshots(&mut self) {
        let registry = &mut self.registry;
        registry.register("snapshot_created_snapshots", "Snapshots created", self.snapshots_created.clone());
        registry.register(
            "snapshot_failed_snapshots",
            "Snapshots that could not be created, by reason",
            self.snapshots_failed.clone(),
        );
        registry.register(
            "snapshot_skipped_snapshots",
            "Snapshots skipped because the one before was still being made",
            self.snapshots_skipped.clone(),
        );
        registry.register(
            "snapshot_damaged_snapshots",
            "Times a stored snapshot was found damaged and taken off the list",
            self.snapshots_damaged.clone(),
        );
        registry.register(
            "snapshot_create_seconds",
            "Time to create a snapshot and prove it",
            self.snapshot_create_seconds.clone(),
        );
        registry.register(
            "snapshot_phase_number",
            "What is being done: 0 nothing, 1 chunks are made, 2 chunks are read back and proven",
            self.snapshot_phase.clone(),
        );
        registry.register(
            "snapshot_done_chunks",
            "Chunks of the snapshot that is being made, done in this phase",
            self.snapshot_chunks_done.clone(),
        );
        registry.register(
            "snapshot_total_chunks",
            "Chunks of the snapshot that is being made",
            self.snapshot_chunks_total.clone(),
        );
        registry.register(
            "snapshot_interval_blocks",
            "Blocks between two snapshots; 0 if none are made",
            self.snapshot_interval.clone(),
        );
        registry.register("snapshot_height_blocks", "Height of the newest snapshot", self.snapshot_height.clone());
        registry.register("snapshot_newest_bytes", "Bytes of the newest snapshot", self.snapshot_bytes.clone());
        registry.register("snapshot_kept_snapshots", "Snapshots that are kept", self.snapshots_kept.clone());
        registry.register(
            "snapshot_kept_bytes",
            "Bytes of all snapshots, what they share counted for each",
            self.snapshots_kept_bytes.clone(),
        );
        registry.register("snapshot_served_chunks", "Chunks served", self.snapshot_chunks_served.clone());
        registry.register("snapshot_served_bytes", "Bytes of chunks served", self.snapshot_bytes_served.clone());
        registry.register(
            "snapshot_refused_chunks",
            "Chunks asked for that were not served, by reason",
            self.snapshot_chunks_refused.clone(),
        );
    }

    /// Counts a snapshot that was created.
    pub(crate) fn snapshot_created(&self, info: &Info, seconds: f64) {
        self.snapshots_created.inc();
        self.snapshot_create_seconds.observe(seconds);
        self.snapshot_bytes.set(gauge(info.bytes));
    }

    /// Counts a snapshot that could not be created.
    pub(crate) fn snapshot_failed(&self, reason: &'static str) {
        self.snapshots_failed.get_or_create(&Reason { reason }).inc();
    }

    /// How far the snapshot has come that is being made; none if none is.
    pub(crate) fn snapshot_progress(&self, progress: Option<Progress>) {
        let number = progress.map_or(0, |progress| match progress.phase {
            Phase::Making | Phase::Copying => 1,
            Phase::Proving => 2,
        });
        self.snapshot_phase.set(number);
        if let Some(progress) = progress {
            self.snapshot_chunks_done.set(i64::from(progress.done));
            self.snapshot_chunks_total.set(i64::from(progress.total));
        }
    }

    /// What is kept, the newest first.
    pub(crate) fn snapshots_kept(&self, list: &[Info]) {
        self.snapshots_kept.set(gauge(u64::try_from(list.len()).unwrap_or(u64::MAX)));
        self.snapshots_kept_bytes.set(gauge(list.iter().map(|info| info.bytes).sum()));
        self.snapshot_height.set(gauge(list.first().map_or(0, |info| info.id.height.0)));
    }

    /// Counts a chunk that was served.
    pub(crate) fn snapshot_served(&self, bytes: usize) {
        self.snapshot_chunks_served.inc();
        self.snapshot_bytes_served.inc_by(u64::try_from(bytes).unwrap_or(u64::MAX));
    }

    /// Counts a chunk that was asked for and not served: `unknown`, `busy`, `damaged` or `failed`.
    pub(crate) fn snapshot_refused(&self, reason: &'static str) {
        self.snapshot_chunks_refused.get_or_create(&Reason { reason }).inc();
    }

    /// Counts an answered request. `route` is the pattern of a route, never a path somebody sent.
    pub(crate) fn answered(&self, route: &'static str, status: u16, took: Duration) {
        let status = match status {
            0..=199 => "1xx",
            200..=299 => "2xx",
            300..=399 => "3xx",
            400..=499 => "4xx",
            _ => "5xx",
        };
        self.requests.get_or_create(&Request { route, status }).inc();
        self.request_seconds.observe(took.as_secs_f64());
    }

    /// Counts a connection, stream or request that was refused.
    pub(crate) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Reason { reason }).inc();
    }

    /// Counts a connection that could not be accepted, most often for want of file descriptors.
    pub(crate) fn accept_failed(&self) {
        self.refused("accept");
    }

    /// Counts a transaction: `accepted`, `refused`, `succeeded` or `failed`.
    pub(crate) fn transaction(&self, outcome: &'static str) {
        self.transactions.get_or_create(&Outcome { outcome }).inc();
    }

    /// Everything in the text format of Prometheus.
    pub(crate) fn render(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string cannot fail");
        text
    }
}
