//! A stream of events: what happened before is read a piece at a time, what happens is told as it does.

use super::error::ApiError;
use super::events::Subscription;
use super::routes::{ASKING, Served, in_turn};
use crate::api::Refusal;
use crate::engine::Engine;
use crate::telling::{Event, EventPlace, Id, Told};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Bytes of earlier events that a stream holds at a time, and one event more.
const PAST_BYTES_MAX: usize = 256 << 10;

/// Kibibytes of blocks that streams hold to read on in them: of all streams together, since any may be left unread. The largest
/// block has room (BLOCK-7). Who finds none reads its block again for each piece.
const HELD_KIB_MAX: usize = 256 << 10;
static HELD: Semaphore = Semaphore::const_new(HELD_KIB_MAX);

/// A block that is being told, and the room it takes.
pub(super) struct Held {
    pub(super) block: Told,
    pub(super) room: SemaphorePermit<'static>,
}

/// Events from a place on, and the block they are of, if there is more of it and room for it.
pub(super) fn piece(
    chain: &dyn Engine,
    next: EventPlace,
    bytes_max: usize,
    held: Option<Held>,
) -> Result<(Vec<Event>, Option<Held>), Refusal> {
    let held = held.filter(|held| held.block.header.height == next.height);
    let (mut block, room) = held.map(|Held { block, room }| (block, room)).unzip();
    let events = chain.events(next, bytes_max, &mut block)?;
    // The block's own is the last of its height.
    let goes_on = events.last().is_some_and(|event| event.kind != "block");
    let held = block.filter(|_| goes_on).and_then(|block| {
        let kib = || u32::try_from(block.bytes().div_ceil(1 << 10)).unwrap_or(u32::MAX);
        let room = room.or_else(|| HELD.try_acquire_many(kib()).ok())?;
        Some(Held { block, room })
    });
    Ok((events, held))
}

/// A stream of events.
pub(super) struct Listening {
    pub(super) served: Served,
    pub(super) subscription: Subscription,
    /// None once it has come to what is told.
    pub(super) past: Option<Past>,
}

/// Where a stream stands that reads what happened before.
pub(super) struct Past {
    pub(super) next: EventPlace,
    pub(super) read: std::vec::IntoIter<Event>,
    /// The block it is in.
    pub(super) held: Option<Held>,
}

impl Listening {
    /// The next event; none if the stream ends.
    pub(super) async fn next(&mut self) -> Option<Event> {
        // Whether it could not join because a height was told meanwhile, which is there to be read then.
        let mut has_to_read = false;
        while let Some(past) = &mut self.past {
            if let Some(event) = past.read.next() {
                // The block's own is the last of its height.
                past.next = match event.id {
                    Id::At(place) if event.kind != "block" => place.next(),
                    _ => EventPlace::first_of(past.next.height.next()),
                };
                self.subscription.took_earlier();
                return Some(event);
            }
            let (next, held) = (past.next, past.held.take());
            match self.read(next, held).await {
                Ok(Some((read, held))) => {
                    // Nothing behind the last event of its height: the next begins.
                    let next = if read.is_empty() { EventPlace::first_of(next.height.next()) } else { next };
                    self.past = Some(Past { next, read: read.into_iter(), held });
                    has_to_read = false;
                }
                Ok(None) if has_to_read => return None,
                Ok(None) if self.subscription.joins(next.height) => self.past = None,
                Ok(None) => has_to_read = true,
                // Whoever comes back is told why, with a status.
                Err(_) => return None,
            }
        }
        self.subscription.next().await
    }

    /// The [`piece`] from a place on; none if its height is the next one, which is not there yet.
    pub(super) async fn read(
        &self,
        next: EventPlace,
        held: Option<Held>,
    ) -> Result<Option<(Vec<Event>, Option<Held>)>, ApiError> {
        let chain = self.served.chain.clone();
        in_turn(&ASKING, move || match piece(&*chain, next, PAST_BYTES_MAX, held) {
            Err(Refusal::Height { asked, highest, .. }) if asked == highest.saturating_add(1) => Ok(None),
            read => read.map(Some),
        })
        .await?
        .map_err(ApiError::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::engine;
    use crate::home::Home;
    use keelstone_codec::{ChainId, Encode as _, Hash, Height, Timestamp};
    use keelstone_execution::bundles::Resume;
    use keelstone_execution::{Bundle, BundleId, Mode, Operation};
    use keelstone_ledger::modules::standard;
    use keelstone_ledger::{Genesis, SecretKey, Transaction};

    /// A block is read and proven once for all pieces of its that a stream takes, as long as streams hold no more than they may.
    #[test]
    fn r11_a_block_is_read_once_however_many_pieces_it_is_told_in() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let home = Home::new(dir.path().to_owned());
        let genesis = Genesis::new(ChainId::new("test").expect("a name"));
        let key = SecretKey::from_seed(&[7; 32]);
        let nothing = Operation::of(&Resume { bundle: BundleId(Hash([0; 32])) });
        let signed = |nonce| {
            let transaction = Transaction {
                chain_id: genesis.chain_id.clone(),
                sender: key.public(),
                nonce,
                expiry_height: Height(10),
                session: None,
                bundle: Bundle::new(Mode::Sync, vec![nothing.clone()]).expect("a short bundle"),
            };
            transaction.sign(&key).to_bytes()
        };
        let sent: Vec<_> = (0..3).map(signed).collect();
        home.write_genesis(&genesis).expect("written");
        let chain = engine::open(&home, &Config::default(), &standard()).expect("begun");
        for transaction in sent {
            chain.submit(&transaction).expect("taken in");
        }
        chain.produce(Timestamp(1), key.public(), false).expect("made");

        let one = |index, held| piece(&*chain, EventPlace { height: Height(1), index }, 1, held).expect("there");
        let place = |held: &Option<Held>| held.as_ref().map(|held| held.block.receipts.as_ptr());
        let (events, mut held) = one(0, None);
        assert_eq!((events.len(), HELD.available_permits() < HELD_KIB_MAX), (1, true));
        let first = place(&held);
        for index in 1..3 {
            let (events, next) = one(index, held);
            assert!(events.len() == 1 && first.is_some() && place(&next) == first, "{index}: it was read again");
            held = next;
        }
        let (events, held) = one(3, held);
        assert!(events[0].kind == "block" && held.is_none(), "that was all of it");
        let all = HELD.try_acquire_many(u32::try_from(HELD_KIB_MAX).expect("so many")).expect("nobody holds any");
        let (events, held) = one(0, None);
        assert!(events.len() == 1 && held.is_none(), "there is no room to hold it");
        drop(all);
    }
}
