//! Event streams: what happens on the chain, told to whoever listens, at the listener's own risk.
//!
//! A subscriber has a queue of its own with a bound. One that does not read until its queue is full is dropped and
//! its connection closed, so a reader that stops reading costs a bounded amount of memory and never holds up a block.

use super::limits::Limits;
use super::server::Connection;
use crate::metrics::Metrics;
use crate::origin::counted_as;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// One event: its kind and its JSON.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) height: u64,
    pub(crate) kind: &'static str,
    pub(crate) json: Arc<str>,
}

/// Who listens.
#[derive(Debug)]
pub(crate) struct Hub {
    subscribers: Mutex<Subscribers>,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct Subscribers {
    next: u64,
    all: BTreeMap<u64, Subscriber>,
    closed: bool,
}

#[derive(Debug)]
struct Subscriber {
    queue: mpsc::Sender<Event>,
    connection: Arc<Connection>,
}

/// A place in the hub; leaving it frees the place.
pub(crate) struct Subscription {
    pub(crate) queue: mpsc::Receiver<Event>,
    id: u64,
    hub: Arc<Hub>,
}

/// Why one may not listen now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// There are as many streams as there may be.
    Full(usize),
    /// This client has as many as it may.
    ClientFull(usize),
    /// The node is stopping.
    Stopping,
}

impl Hub {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { subscribers: Mutex::default(), metrics })
    }

    fn lock(&self) -> MutexGuard<'_, Subscribers> {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a listener in, within the limits.
    pub(crate) fn subscribe(
        self: &Arc<Self>,
        connection: Arc<Connection>,
        limits: &Limits,
    ) -> Result<Subscription, Refused> {
        let mut subscribers = self.lock();
        let of_client = |client: IpAddr| {
            let same = |one: &&Subscriber| counted_as(one.connection.client()) == counted_as(client);
            subscribers.all.values().filter(same).count()
        };
        if subscribers.closed {
            return Err(Refused::Stopping);
        }
        if subscribers.all.len() >= limits.subscriptions_max {
            return Err(Refused::Full(limits.subscriptions_max));
        }
        if of_client(connection.client()) >= limits.client_subscriptions_max {
            return Err(Refused::ClientFull(limits.client_subscriptions_max));
        }
        let (sender, queue) = mpsc::channel(limits.subscription_events_max);
        let id = subscribers.next;
        subscribers.next += 1;
        connection.set_streaming(true);
        subscribers.all.insert(id, Subscriber { queue: sender, connection });
        self.metrics.subscriptions_open.inc();
        Ok(Subscription { queue, id, hub: self.clone() })
    }

    /// Tells everybody. Never waits: who cannot take it now is dropped.
    pub(crate) fn tell(&self, event: &Event) {
        let mut subscribers = self.lock();
        subscribers.all.retain(|_, subscriber| {
            let taken = subscriber.queue.try_send(event.clone()).is_ok();
            if !taken {
                self.metrics.subscriptions_dropped.inc();
                self.metrics.subscriptions_open.dec();
                subscriber.connection.close();
            }
            taken
        });
    }

    /// Ends all streams and takes no more.
    pub(crate) fn close(&self) {
        let mut subscribers = self.lock();
        subscribers.closed = true;
        let count = i64::try_from(subscribers.all.len()).unwrap_or(i64::MAX);
        self.metrics.subscriptions_open.dec_by(count);
        subscribers.all.clear();
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(ended) = self.hub.lock().all.remove(&self.id) {
            // Whoever asked for the head alone has the connection still.
            ended.connection.set_streaming(false);
            self.hub.metrics.subscriptions_open.dec();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    /// a connection is held to what streams are only while one runs there. Whoever asks for the head alone is left with the
    /// connection.
    #[test]
    fn r11_a_stream_that_ends_at_once_leaves_a_connection_like_any_other() {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let limits = Limits::new(&crate::config::Config::default().http, address);
        let (hub, connection) = (Hub::new(Arc::new(Metrics::new())), Arc::new(Connection::new(address, false)));
        let stream = hub.subscribe(connection.clone(), &limits).unwrap_or_else(|_| panic!("there is room"));
        assert!(connection.is_streaming());
        drop(stream);
        assert!(!connection.is_streaming());
    }
}
