//! Event streams: what happens on the chain, told to whoever listens, at the listener's own risk.
//!
//! What a height brings is told at once and every subscriber's queue takes it whole, so a large block costs nobody who reads an
//! event. Whoever has left as many unread, or as many bytes of them, as may wait when the next height comes is dropped and its
//! connection closed: a reader that stops reading never holds up a block, and costs at most those bytes and one height's. What
//! waits is the end of what was told and is shared, so all of them together cost no more than the slowest.
//!
//! A stream may begin in the past. Then it reads what is stored, a block at a time which it puts in words piece by piece, and is told
//! of heights like the others from the last one it read on.

use super::limits::Limits;
use super::server::Connection;
use crate::metrics::Metrics;
use crate::origin::counted_as;
use crate::telling::Event;
use keelstone_codec::Height;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

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
    /// The height that was told last.
    told: Option<Height>,
    closed: bool,
}

#[derive(Debug)]
struct Subscriber {
    queue: mpsc::UnboundedSender<Arc<[Event]>>,
    /// The first height it is told of; none while it reads earlier ones.
    from: Option<Height>,
    waiting: Arc<Waiting>,
    events_max: usize,
    bytes_max: usize,
    connection: Arc<Connection>,
}

/// What was told and not taken yet; of one that reads earlier heights, what was told since it last took something.
#[derive(Debug, Default)]
struct Waiting {
    events: AtomicUsize,
    bytes: AtomicUsize,
}

impl Waiting {
    fn take(&self, event: &Event) {
        self.events.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(event.json.len(), Ordering::Relaxed);
    }

    fn forget(&self) {
        self.events.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
    }
}

impl Subscriber {
    /// Hands over what happened, at a height or at none. False if so much waits that it is dropped.
    fn takes(&self, height: Option<Height>, events: &Arc<[Event]>) -> bool {
        if self.from.zip(height).is_some_and(|(from, height)| height < from) {
            return true; // It has read that.
        }
        let bytes = events.iter().map(|event| event.json.len()).sum();
        let waited = (
            self.waiting.events.fetch_add(events.len(), Ordering::Relaxed),
            self.waiting.bytes.fetch_add(bytes, Ordering::Relaxed),
        );
        if waited.0 >= self.events_max || waited.1 >= self.bytes_max {
            return false;
        }
        self.from.is_none() || self.queue.send(events.clone()).is_ok()
    }
}

/// A place in the hub; leaving it frees the place.
pub(crate) struct Subscription {
    queue: mpsc::UnboundedReceiver<Arc<[Event]>>,
    /// What was taken from the queue, and how many of these were handed on.
    taken: (Arc<[Event]>, usize),
    waiting: Arc<Waiting>,
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

    /// Takes a listener in, within the limits. One that reads `earlier` heights first is told of nothing before
    /// [`Subscription::joins`].
    pub(crate) fn subscribe(
        self: &Arc<Self>,
        connection: Arc<Connection>,
        limits: &Limits,
        earlier: bool,
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
        // The bound is on what waits when there is more, so that a block is taken whole.
        let (queue, taking) = mpsc::unbounded_channel();
        let waiting = Arc::new(Waiting::default());
        let id = subscribers.next;
        subscribers.next += 1;
        connection.set_streaming(true);
        let subscriber = Subscriber {
            queue,
            from: (!earlier).then(Height::default),
            waiting: waiting.clone(),
            events_max: limits.subscription_events_max,
            bytes_max: limits.subscription_bytes_max,
            connection,
        };
        subscribers.all.insert(id, subscriber);
        self.metrics.subscriptions_open.inc();
        Ok(Subscription { queue: taking, taken: (Arc::default(), 0), waiting, id, hub: self.clone() })
    }

    /// Tells everybody all that happened at a height, or beside the chain; where nobody listens it is not even put in words. Never
    /// waits: whoever has too much waiting is dropped.
    pub(crate) fn tell(&self, height: Option<Height>, events: impl FnOnce() -> Vec<Event>) {
        let mut subscribers = self.lock();
        if subscribers.all.is_empty() {
            subscribers.told = height.or(subscribers.told);
            return;
        }
        drop(subscribers);
        let events: Arc<[Event]> = events().into();
        let mut subscribers = self.lock();
        subscribers.told = height.or(subscribers.told);
        subscribers.all.retain(|_, subscriber| {
            let stays = subscriber.takes(height, &events);
            if !stays {
                self.metrics.subscriptions_dropped.inc();
                self.metrics.subscriptions_open.dec();
                subscriber.connection.close();
            }
            stays
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

impl Subscription {
    /// The next event that is told; none once the stream ends.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        loop {
            let (events, handed_on) = &mut self.taken;
            if let Some(event) = events.get(*handed_on) {
                *handed_on += 1;
                self.waiting.take(event);
                return Some(event.clone());
            }
            self.taken = (self.queue.recv().await?, 0);
        }
    }

    /// Says that one that reads earlier heights took an event of those.
    pub(crate) fn took_earlier(&self) {
        self.waiting.forget();
    }

    /// Has one that has read all heights before `from` told of those from there on. False if that was told already: then it
    /// has to be read, too.
    pub(crate) fn joins(&self, from: Height) -> bool {
        let mut subscribers = self.hub.lock();
        if subscribers.told.is_some_and(|told| told >= from) {
            return false;
        }
        if let Some(subscriber) = subscribers.all.get_mut(&self.id) {
            subscriber.from = Some(from);
            self.took_earlier();
        }
        true
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
    use crate::telling::{EventPlace, Id};
    use std::net::SocketAddr;

    /// A hub, limits under which so many events may wait, and a connection.
    fn hub(events_max: u64) -> (Arc<Hub>, Limits, Arc<Connection>) {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let http = crate::config::Http { subscription_events_max: events_max, ..crate::config::Config::default().http };
        let connection = Arc::new(Connection::new(address, false));
        (Hub::new(Arc::new(Metrics::new())), Limits::new(&http, address), connection)
    }

    fn subscribe(hub: &Arc<Hub>, limits: &Limits, connection: &Arc<Connection>, earlier: bool) -> Subscription {
        hub.subscribe(connection.clone(), limits, earlier).unwrap_or_else(|_| panic!("there is room"))
    }

    fn told(hub: &Hub, height: u64, count: u32) {
        let height = Height(height);
        let event = |index| Event { id: Id::At(EventPlace { height, index }), kind: "transaction", json: "{}".into() };
        hub.tell(Some(height), || (0..count).map(event).collect());
    }

    /// What waits for a subscriber now.
    fn taken(subscription: &mut Subscription) -> Vec<String> {
        use futures_util::FutureExt as _;
        let mut places = Vec::new();
        while let Some(Some(event)) = subscription.next().now_or_never() {
            places.push(match event.id {
                Id::At(place) => place.to_string(),
                other => format!("{other:?}"),
            });
        }
        places
    }

    /// a connection is held to what streams are only while one runs there. Whoever asks for the head alone is left with the
    /// connection.
    #[test]
    fn r11_a_stream_that_ends_at_once_leaves_a_connection_like_any_other() {
        let (hub, limits, connection) = hub(256);
        let stream = subscribe(&hub, &limits, &connection, false);
        assert!(connection.is_streaming());
        drop(stream);
        assert!(!connection.is_streaming());
    }

    #[test]
    fn a_reader_that_takes_what_it_is_told_gets_every_event_of_a_large_block() {
        let (hub, limits, connection) = hub(2);
        let mut stream = subscribe(&hub, &limits, &connection, false);
        for height in 1..4 {
            told(&hub, height, 1_000);
            assert_eq!(taken(&mut stream).len(), 1_000, "height {height}");
        }
        assert_eq!(hub.metrics.subscriptions_dropped.get(), 0);
    }

    /// A block that nobody hears of is told all the same: whoever began before it has to read it.
    #[test]
    fn what_nobody_listens_to_is_not_put_in_words() {
        let (hub, limits, connection) = hub(2);
        hub.tell(Some(Height(5)), || panic!("nobody listens"));
        let stream = subscribe(&hub, &limits, &connection, true);
        assert!(!stream.joins(Height(5)), "5 was told");
        assert!(stream.joins(Height(6)));
        drop(stream);
        hub.tell(None, || panic!("nobody listens any more"));
    }

    #[test]
    fn r11_a_reader_that_left_too_much_unread_is_dropped_at_the_next_height() {
        for earlier in [false, true] {
            let (hub, limits, connection) = hub(2);
            let _stream = subscribe(&hub, &limits, &connection, earlier);
            told(&hub, 1, 1);
            told(&hub, 2, 5);
            assert_eq!(hub.metrics.subscriptions_dropped.get(), 0, "one waited, two may");
            told(&hub, 3, 1);
            assert_eq!((hub.metrics.subscriptions_dropped.get(), hub.lock().all.len()), (1, 0));
        }
    }

    /// Whoever reads earlier heights goes on with what is told where the last of them ended, whatever happens meanwhile.
    #[test]
    fn a_stream_from_the_past_joins_without_a_gap_and_tells_nothing_twice() {
        let (hub, limits, connection) = hub(2);
        let mut stream = subscribe(&hub, &limits, &connection, true);
        told(&hub, 5, 1);
        assert!(!stream.joins(Height(5)), "5 was told to others, and has to be read");
        // It has read 6 before that was told.
        assert!(stream.joins(Height(7)));
        told(&hub, 6, 1);
        told(&hub, 7, 2);
        assert_eq!(taken(&mut stream), ["7.0", "7.1"]);
    }

    #[test]
    fn r11_a_reader_that_left_too_many_bytes_unread_is_dropped_at_the_next_height() {
        let (hub, mut limits, connection) = hub(1_000);
        limits.subscription_bytes_max = 20;
        let mut stream = subscribe(&hub, &limits, &connection, false);
        for (height, count) in [(1, 30), (2, 9)] {
            told(&hub, height, count);
            assert_eq!(taken(&mut stream).len(), count as usize, "a height is taken whole");
        }
        told(&hub, 3, 9);
        told(&hub, 4, 1);
        assert_eq!(hub.metrics.subscriptions_dropped.get(), 0, "18 bytes waited, 19 may");
        told(&hub, 5, 1);
        assert_eq!((hub.metrics.subscriptions_dropped.get(), hub.lock().all.len()), (1, 0));
    }
}
