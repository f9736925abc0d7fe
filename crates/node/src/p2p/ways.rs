//! Answers on their way: how much memory those may take that nobody has read yet.
//!
//! Whoever asks and does not read has its answers held until the request is given up. So what is held has a bound for each
//! peer, for each address and for all, and is looked at twice: when something is asked, lest it be made for nothing, and when it is made,
//! since many may ask before the first answer is. Whoever holds all of it keeps nobody else from being answered: an
//! address of which nothing is on its way has one answer beside.
//!
//! Rules: `spec/peers.md`, PEER-24.

use super::NodeId;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;

/// Bytes of answers that are on their way, at most, but for those of [`ALONE_BYTES_MAX`].
const BYTES_MAX: usize = 64 << 20;
/// The same of all peers of one address.
const ADDRESS_BYTES_MAX: usize = 32 << 20;
/// The same of one peer.
const PEER_BYTES_MAX: usize = 20 << 20;
/// Bytes that the one answer of an address may have of which nothing else is on its way: a little more than one has that is no
/// single part.
const ALONE_BYTES_MAX: usize = 5 << 20;

/// An answer on its way.
#[derive(Debug)]
struct Way {
    peer: NodeId,
    address: Option<IpAddr>,
    /// How long it is; none until it is made.
    bytes: usize,
}

/// Answers on their way, by request.
#[derive(Debug)]
pub(super) struct Ways<K>(HashMap<K, Way>);

impl<K> Default for Ways<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Hash + Eq> Ways<K> {
    /// Whether one more of so many bytes has room for this peer.
    // spec: PEER-24
    pub(super) fn has_room(&self, peer: &NodeId, address: Option<IpAddr>, bytes: usize) -> bool {
        let sum = |is_of: &dyn Fn(&Way) -> bool| -> usize {
            self.0.values().filter(|way| is_of(way)).map(|way| way.bytes).sum()
        };
        let of_address = sum(&|way| way.address == address);
        let is_within = sum(&|_| true) <= BYTES_MAX
            && of_address <= ADDRESS_BYTES_MAX
            && sum(&|way| way.peer == *peer) <= PEER_BYTES_MAX;
        is_within || (of_address == 0 && bytes <= ALONE_BYTES_MAX)
    }

    /// Somebody asked for something.
    pub(super) fn begin(&mut self, request: K, peer: NodeId, address: Option<IpAddr>) {
        self.0.insert(request, Way { peer, address, bytes: 0 });
    }

    /// An answer is made. Says whether it may go: if not, nothing is on its way. Of whoever has gone nothing is.
    pub(super) fn is_made(&mut self, request: &K, bytes: usize) -> bool {
        let Some(Way { peer, address, .. }) = self.0.get(request) else { return true };
        let has_room = self.has_room(peer, *address, bytes);
        if let (true, Some(way)) = (has_room, self.0.get_mut(request)) {
            way.bytes = bytes;
        }
        has_room
    }

    /// An answer has gone, or nobody takes it any more. Says how long it was.
    pub(super) fn ended(&mut self, request: &K) -> usize {
        self.0.remove(request).map_or(0, |way| way.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEGABYTE: usize = 1 << 20;

    fn from(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, last]))
    }

    /// Asks for many answers before the first is made, and reads none. Says how many bytes of them went.
    fn hoard(ways: &mut Ways<u64>, first: u64, address: Option<IpAddr>, bytes: usize) -> usize {
        let peer = NodeId::random();
        let requests = first..first + 32;
        let asked: Vec<u64> = requests.filter(|_| ways.has_room(&peer, address, 0)).collect();
        asked.iter().for_each(|request| ways.begin(*request, peer, address));
        asked.iter().filter(|request| ways.is_made(request, bytes)).count() * bytes
    }

    /// spec: PEER-24. Y-03: whoever asks for much at once and never reads has no more held than its share, whatever ids it
    /// makes up; who comes from elsewhere is answered all the same, and has it all once that was given up.
    #[test]
    fn y03_answers_that_nobody_reads_are_bounded_and_keep_nobody_else_waiting() {
        let mut ways = Ways::default();
        let held: Vec<usize> = (0..8).map(|id| hoard(&mut ways, id * 100, from(1), 4 * MEGABYTE)).collect();
        assert_eq!(held[0], 24 * MEGABYTE, "the last one goes over the bound");
        assert_eq!(held.iter().sum::<usize>(), 36 * MEGABYTE);
        // So do others, until nobody has room.
        let more: usize = (2..9).map(|last| hoard(&mut ways, u64::from(last) * 1_000, from(last), 4 * MEGABYTE)).sum();
        assert_eq!(more, (24 + 8 + 5 * 4) * MEGABYTE, "two as much as there is, each of the others one");
        let (honest, home) = (NodeId::random(), from(77));
        for request in 50_000..50_010 {
            assert!(ways.has_room(&honest, home, 0));
            ways.begin(request, honest, home);
            assert!(ways.is_made(&request, 4 * MEGABYTE));
            assert!(!ways.has_room(&honest, home, 0), "one at a time");
            assert_eq!(ways.ended(&request), 4 * MEGABYTE);
        }
        ways.begin(60_000, honest, home);
        assert!(!ways.is_made(&60_000, 16 * MEGABYTE), "a larger one waits for room");
        assert_eq!(ways.ended(&60_000), 0);
        assert_eq!((0..9_000).map(|request| ways.ended(&request)).sum::<usize>(), 88 * MEGABYTE);
        assert_eq!(hoard(&mut ways, 70_000, from(1), 4 * MEGABYTE), 24 * MEGABYTE);
        assert!(ways.is_made(&1, 4 * MEGABYTE) && ways.ended(&1) == 0, "nobody waits for it any more");
    }
}
