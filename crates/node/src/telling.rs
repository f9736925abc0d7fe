//! What is told of a block: its events, each with its place on the chain, by which a stream of them is taken up again.

use crate::api::decimal;
use crate::bundle::{show_continuation, show_receipt};
use keelstone_codec::{Encode as _, Height, Root, Timestamp};
use keelstone_execution::Registry;
use keelstone_ledger::{BlockRecord, Continuation, Header, Receipt};
use serde_json::json;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// One event: its kind and its JSON.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) id: Id,
    pub(crate) kind: &'static str,
    pub(crate) json: Arc<str>,
}

/// What a reader that comes back after an event says it has read last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Id {
    /// This event.
    At(EventPlace),
    /// Nothing: it is of a height that has no block here, so nothing could go on from it.
    Nothing,
    /// What it would have said without: this is not of the chain, and is told as it happens only.
    AsBefore,
}

/// The place of an event on the chain, by which a stream is taken up again: its height, and its index among the events of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EventPlace {
    pub(crate) height: Height,
    pub(crate) index: u32,
}

impl EventPlace {
    /// The first of a height.
    pub(crate) fn first_of(height: Height) -> Self {
        Self { height, index: 0 }
    }

    /// The one behind it of the same height, if there is one. No height has an event at the last index.
    pub(crate) fn next(self) -> Self {
        Self { index: self.index.saturating_add(1), ..self }
    }
}

impl fmt::Display for EventPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.height, self.index)
    }
}

/// A text is no place of an event.
#[derive(Debug, thiserror::Error)]
#[error("expected HEIGHT.INDEX, the id of an event")]
pub(crate) struct NoPlace;

impl FromStr for EventPlace {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        let (height, index) = text.split_once('.').ok_or(NoPlace)?;
        let (height, index) = (decimal(height).map_err(|_| NoPlace)?, decimal(index).map_err(|_| NoPlace)?);
        Ok(Self { height: Height(height), index })
    }
}

/// What is told of a block: its transactions, what it did for async bundles, and last the block. Told of the same block later,
/// it is the same.
pub(crate) struct Telling<'a> {
    pub(crate) registry: &'a Registry,
    pub(crate) height: Height,
    pub(crate) time: Timestamp,
    /// None if it is not on record here.
    pub(crate) root: Option<Root>,
    /// Whether the block is here, so that all of this can be told again.
    pub(crate) is_kept: bool,
    pub(crate) record: Option<&'a BlockRecord>,
    /// None of a height that was taken in without its block.
    pub(crate) receipts: &'a [Receipt],
    pub(crate) continuations: &'a [Continuation],
}

impl Telling<'_> {
    /// The event at an index; none behind the last, which is the block's own.
    fn event(&self, index: u32) -> Option<Event> {
        let (height, at) = (self.height, index as usize);
        let (kind, json) = if let Some(receipt) = self.receipts.get(at) {
            ("transaction", json!(show_receipt(self.registry, receipt, height, index)))
        } else if let Some(continuation) = self.continuations.get(at - self.receipts.len()) {
            let mut shown = json!(show_continuation(self.registry, continuation));
            shown["height"] = json!(height.0);
            ("continuation", shown)
        } else if at == self.receipts.len() + self.continuations.len() {
            let transactions = self.record.map_or(0, |record| record.transactions);
            let root = self.root.map(|root| root.0);
            ("block", json!({ "height": height.0, "time": self.time.0, "root": root, "transactions": transactions }))
        } else {
            return None;
        };
        let id = if self.is_kept { Id::At(EventPlace { height, index }) } else { Id::Nothing };
        Some(Event { id, kind, json: json.to_string().into() })
    }

    /// The events from an index on, until they have so many bytes or there are no more.
    pub(crate) fn events(&self, first: u32, bytes_max: usize) -> Vec<Event> {
        let mut bytes = 0;
        let mut events = Vec::new();
        for event in (first..=u32::MAX).map_while(|index| self.event(index)) {
            bytes += event.json.len();
            events.push(event);
            if bytes >= bytes_max {
                break;
            }
        }
        events
    }
}

/// A block that was read to be told of, which takes all of it: as it is stored, it is proven whole.
pub(crate) struct Told {
    pub(crate) header: Header,
    pub(crate) receipts: Vec<Receipt>,
    pub(crate) continuations: Vec<Continuation>,
}

impl Told {
    /// Its events from an index on, until they have so many bytes or there are no more.
    pub(crate) fn events(&self, registry: &Registry, first: u32, bytes_max: usize) -> Vec<Event> {
        let telling = Telling {
            registry,
            height: self.header.height,
            time: self.header.time,
            root: self.header.root,
            is_kept: true,
            record: self.header.record.as_ref(),
            receipts: &self.receipts,
            continuations: &self.continuations,
        };
        telling.events(first, bytes_max)
    }

    /// About how much memory it takes: in that, what is decoded has up to twice the bytes of its encoding.
    pub(crate) fn bytes(&self) -> usize {
        let mut encoded = Vec::new();
        let mut bytes = |encode: &dyn Fn(&mut Vec<u8>)| {
            encoded.clear();
            encode(&mut encoded);
            2 * encoded.len()
        };
        let receipts: usize = self.receipts.iter().map(|receipt| bytes(&|out| receipt.encode(out))).sum();
        receipts + self.continuations.iter().map(|one| bytes(&|out| one.encode(out))).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_an_event_has_one_reading() {
        let place = EventPlace { height: Height(17), index: 3 };
        assert_eq!(place.to_string().parse::<EventPlace>().ok(), Some(place));
        for text in [
            "",
            "17",
            "17.",
            ".3",
            "17.3.1",
            "17.-1",
            "a.b",
            "18446744073709551616.0",
            "+17.3",
            "17.+3",
            "017.3",
            "17.03",
        ] {
            assert!(text.parse::<EventPlace>().is_err(), "{text:?}");
        }
    }

    /// The parts of a height that nobody reads are not told again, whatever index is asked for.
    #[test]
    fn behind_the_last_event_of_a_height_is_nothing() {
        let registry = Registry::default();
        let height = Height(17);
        let (time, root) = (Timestamp::default(), None);
        let telling = Telling {
            registry: &registry,
            height,
            time,
            root,
            is_kept: true,
            record: None,
            receipts: &[],
            continuations: &[],
        };
        assert_eq!(telling.events(0, usize::MAX).len(), 1, "the block's own");
        for index in [1, u32::MAX - 1, u32::MAX] {
            assert!(telling.events(index, usize::MAX).is_empty(), "{index}");
        }
        let untold = Telling { is_kept: false, ..telling }.events(0, usize::MAX);
        assert_eq!(untold[0].id, Id::Nothing, "nothing could go on from it");
    }
}
