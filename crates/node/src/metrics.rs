//! What a node counts, for Prometheus at `/metrics`.
//!
//! Names are `<component>_<noun>_<unit>`. Labels take values from fixed lists in this file only, never from a
//! request, so the number of series is known before the first request comes. Each is something a person acts on; the
//! list with what to do stands in `docs/http.md`.

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
    pub(crate) waiting: Gauge,
    pub(crate) store_entries: Gauge,
    pub(crate) store_disk_bytes: Gauge,
    pub(crate) store_failed: Gauge,
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
            waiting: Gauge::default(),
            store_entries: Gauge::default(),
            store_disk_bytes: Gauge::default(),
            store_failed: Gauge::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("http_requests", "Requests answered, by route and status class", metrics.requests.clone());
        registry.register("http_request_seconds", "Time to answer a request", metrics.request_seconds.clone());
        registry.register("http_refused", "Connections and streams refused, by reason", metrics.refused.clone());
        registry.register("http_connections_open", "Open connections", metrics.connections_open.clone());
        registry.register("http_subscriptions_open", "Open event streams", metrics.subscriptions_open.clone());
        registry.register(
            "http_subscriptions_dropped",
            "Event streams dropped because their reader was too slow",
            metrics.subscriptions_dropped.clone(),
        );
        registry.register("chain_transactions", "Transactions, by what became of them", metrics.transactions.clone());
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
        registry.register("store_entries_count", "Entries in the state", metrics.store_entries.clone());
        registry.register("store_disk_bytes", "Bytes the store takes on disk", metrics.store_disk_bytes.clone());
        registry.register(
            "store_failed_flag",
            "1 once a write failed and the node must restart",
            metrics.store_failed.clone(),
        );
        metrics
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

    /// Counts a connection or stream that was refused.
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
