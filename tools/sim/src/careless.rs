//! Followers that are the product's but for one slip each, such as whoever builds a node around one may make: to show that the
//! simulator finds it.

use crate::Follows;
use keelstone_codec::Decode as _;
use keelstone_ledger::{Ledger, TakeError};
use keelstone_sync::peers::{
    Change, FollowEffect, FollowEvent, Follower, Frame, Manner, Misconduct, PeerId, Response, Step, Tick, Version,
};
use keelstone_sync::snapshot::SnapshotParams;
use keelstone_tree::Blake3;

/// What is done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slip {
    /// Nothing.
    None,
    /// What a peer says that a height changed is committed, and the root is not compared.
    TakesUnproven,
    /// An empty answer is taken for the end of the chain.
    TrustsEmpty,
    /// What peers say is their newest version becomes the target.
    FollowsPeers,
    /// Whoever does not have what was asked for is banned.
    BansEmptyHanded,
    /// It waits for every answer, however long.
    NeverTimesOut,
    /// It speaks to the first peer that it meets and to no other.
    KeepsToOne,
    /// It does not say that what a peer sent was refused.
    BlamesNobody,
    /// It says that a height is durable which it never wrote.
    WritesNothing,
}

impl Slip {
    /// All slips; the number of a slip is its place.
    pub const ALL: [Self; 9] = [
        Self::None,
        Self::TakesUnproven,
        Self::TrustsEmpty,
        Self::FollowsPeers,
        Self::BansEmptyHanded,
        Self::NeverTimesOut,
        Self::KeepsToOne,
        Self::BlamesNobody,
        Self::WritesNothing,
    ];
}

/// A follower with the slip of a number.
pub struct Careless<const SLIP: usize> {
    follower: Follower,
    first: Option<PeerId>,
    /// It believes that there is nothing more.
    is_sated: bool,
}

impl<const SLIP: usize> Careless<SLIP> {
    fn has(slip: Slip) -> bool {
        Slip::ALL[SLIP] == slip
    }

    /// What it makes of an answer before the machine hears of it.
    fn hear(&mut self, now: Tick, peer: PeerId, bytes: &[u8]) -> Vec<FollowEffect> {
        match Frame::<Response>::from_bytes(bytes).map(|frame| frame.body) {
            Ok(Response::Diffs(diffs)) if Self::has(Slip::TrustsEmpty) => self.is_sated = diffs.is_empty(),
            Ok(Response::Blocks(blocks)) if Self::has(Slip::TrustsEmpty) => self.is_sated = blocks.is_empty(),
            Ok(Response::Status(status)) if Self::has(Slip::FollowsPeers) => {
                return self.follower.step(now, FollowEvent::Target(status.newest));
            }
            Ok(Response::Unavailable(why)) if Self::has(Slip::BansEmptyHanded) => {
                let why = Misconduct::FalseAnswers { times: 1, last: format!("{why:?}") };
                let mut out = self.follower.step(now, FollowEvent::Gone(peer));
                out.push(FollowEffect::Ban(peer, why));
                return out;
            }
            _ => {}
        }
        vec![]
    }
}

impl<const SLIP: usize> Follows for Careless<SLIP> {
    fn begin(params: SnapshotParams, manner: Manner, own: Version, request_timeout_ms: u32) -> Self {
        Self { follower: Follower::new(params, manner, own, request_timeout_ms), first: None, is_sated: false }
    }

    fn step(&mut self, now: Tick, event: FollowEvent<'_>) -> Vec<FollowEffect> {
        let now = if Self::has(Slip::NeverTimesOut) { Tick(0) } else { now };
        let mut out = match event {
            FollowEvent::Answered(peer, _, bytes) => self.hear(now, peer, bytes),
            FollowEvent::Target(_) => {
                self.is_sated = false;
                vec![]
            }
            FollowEvent::Connected(peer) if *self.first.get_or_insert(peer) != peer && Self::has(Slip::KeepsToOne) => {
                return vec![];
            }
            FollowEvent::Refused(_) if Self::has(Slip::BlamesNobody) => return vec![],
            _ => vec![],
        };
        if !self.is_sated {
            out.extend(self.follower.step(now, event));
        }
        out
    }

    fn take(ledger: &Ledger<Blake3>, manner: Manner, step: Step) -> Result<(), TakeError> {
        match &step.change {
            Change::Diff(diff) if Self::has(Slip::TakesUnproven) => {
                ledger.store().commit(step.certified.height, diff.clone())?;
                Ok(())
            }
            _ if Self::has(Slip::WritesNothing) => Ok(()),
            _ => Follower::take(ledger, manner, step),
        }
    }
}
