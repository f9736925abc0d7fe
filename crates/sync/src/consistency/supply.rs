//! Peers that are asked for what is lost here.
//!
//! What is wanted is proven under a root that this node holds: that of the version it is lost of or, with a peer that does
//! not keep that one, this node's own root of a height that it keeps. No root a peer names has any part in it. And what a
//! peer proves is still only an offer: whoever takes it compares it with the hash that stands above the lost piece.
//!
//! Rules: `spec/consistency.md`, CHECK-9.

use super::Ask;
use crate::peers::{PROOF_BYTES_MAX, Request, Response, Version, Why};
use keelstone_codec::{Blob, Height, Key, Root, Value};
use keelstone_store::{Accept, Supplier, Wanted};
use keelstone_tree::{Hasher, KeyRange, Proof, ProofLimits, Query, RangeAnswer};
use std::marker::PhantomData;

/// Questions that one peer is asked for one piece.
const QUESTIONS_MAX: u32 = 256;
/// Proofs of more nodes are not looked at: a piece has a node above each entry, and the way down to it.
const NODES_MAX: usize = 1 << 20;

/// What came of asking a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gave {
    /// It had pieces, so many of them.
    Pieces(u32),
    /// Nothing that helps: it does not keep it, is busy or silent.
    Nothing(String),
    /// Its answer cannot be true.
    Misbehaved(String),
}

/// Peers to be asked for pieces. One that misbehaved is asked for nothing more.
pub struct Asked<'a, 'p, H> {
    peers: &'a mut [(String, &'p mut dyn Ask)],
    root_at: &'a mut dyn FnMut(Height) -> Option<Root>,
    gave: Vec<Option<Gave>>,
    _hasher: PhantomData<fn() -> H>,
}

impl<'a, 'p, H: Hasher> Asked<'a, 'p, H> {
    /// `root_at` says this node's own root of a height, if it has one.
    pub fn new(peers: &'a mut [(String, &'p mut dyn Ask)], root_at: &'a mut dyn FnMut(Height) -> Option<Root>) -> Self {
        let gave = peers.iter().map(|_| None).collect();
        Self { peers, root_at, gave, _hasher: PhantomData }
    }

    /// What came of asking each that was asked, by its name.
    pub fn gave(&self) -> impl Iterator<Item = (&str, &Gave)> {
        self.peers.iter().zip(&self.gave).filter_map(|((name, _), gave)| Some((name.as_str(), gave.as_ref()?)))
    }
}

impl<H: Hasher> Supplier for Asked<'_, '_, H> {
    // spec: CHECK-9
    fn offer(&mut self, wanted: &Wanted, take: Accept<'_>) {
        for ((_, peer), gave) in self.peers.iter_mut().zip(&mut self.gave) {
            if matches!(gave, Some(Gave::Misbehaved(_))) {
                continue;
            }
            let found = match piece::<H>(*peer, wanted, self.root_at) {
                Ok(entries) if take(&entries) => {
                    let before = match gave {
                        Some(Gave::Pieces(count)) => *count,
                        _ => 0,
                    };
                    *gave = Some(Gave::Pieces(before + 1));
                    return;
                }
                // Proven under a root of ours, and yet another piece: of another height, where it was another.
                Ok(_) => Gave::Nothing("it has the piece as it is at another height".to_owned()),
                Err(gave) => gave,
            };
            if !matches!((&gave, &found), (Some(Gave::Pieces(_)), Gave::Nothing(_))) {
                *gave = Some(found);
            }
        }
    }
}

fn nothing(what: impl Into<String>) -> Gave {
    Gave::Nothing(what.into())
}

fn misbehaved(what: impl Into<String>) -> Gave {
    Gave::Misbehaved(what.into())
}

/// What a peer proves to be in the range, under the root of the version it is lost of, or of one that the peer keeps.
fn piece<H: Hasher>(
    peer: &mut dyn Ask,
    wanted: &Wanted,
    root_at: &mut dyn FnMut(Height) -> Option<Root>,
) -> Result<Vec<(Key, Value)>, Gave> {
    let (height, root) = wanted.version;
    match entries::<H>(peer, Version { height, root }, wanted) {
        Ok(Some(entries)) => return Ok(entries),
        Ok(None) => {}
        Err(gave) => return Err(gave),
    }
    // It does not keep that version: perhaps it is behind, or has forgotten it. Which heights it has is its word; the root
    // there is ours.
    let Response::Status(status) = ask(peer, &Request::Status)? else {
        return Err(misbehaved("its answer is of another kind"));
    };
    let kept = height.clamp(status.oldest, status.newest.height);
    let root = (kept != height).then(|| root_at(kept)).flatten();
    let root = root.ok_or_else(|| nothing(format!("it does not keep height {height}")))?;
    let found = entries::<H>(peer, Version { height: kept, root }, wanted)?;
    found.ok_or_else(|| nothing(format!("it does not keep height {kept}, or has another root there")))
}

/// All entries of the wanted range under a version, proven; none if the peer does not have that version.
fn entries<H: Hasher>(peer: &mut dyn Ask, at: Version, wanted: &Wanted) -> Result<Option<Vec<(Key, Value)>>, Gave> {
    let blob = |bytes: &[u8]| Blob::new(bytes).map_err(|_| nothing("the range is longer than a key"));
    let end = wanted.range.end.as_deref().map(blob).transpose()?;
    let mut start = wanted.range.start.clone();
    let mut found: Vec<(Key, Value)> = Vec::new();
    for _ in 0..QUESTIONS_MAX {
        let namespace = wanted.namespace.clone();
        let request = Request::GetRange { at, namespace, start: blob(&start)?, end: end.clone() };
        let (next, proof) = match ask(peer, &request)? {
            Response::Range { next, proof } => (next, proof),
            Response::Unavailable(Why::NotKept | Why::OtherRoot) => return Ok(None),
            Response::Unavailable(why) => return Err(nothing(format!("{why:?}"))),
            _ => return Err(misbehaved("its answer is of another kind")),
        };
        let part = KeyRange {
            start: start.clone(),
            end: next.as_ref().map(|next| next.to_vec()).or_else(|| wanted.range.end.clone()),
            reverse: false,
        };
        let limits = ProofLimits { bytes: PROOF_BYTES_MAX, nodes: NODES_MAX };
        let query = Query::Range(wanted.namespace.clone(), part.clone());
        let shown = Proof::decode_within(&proof, &limits)
            .and_then(|proof| proof.verify::<H>(at.root, &[query], &limits))
            .map_err(|error| misbehaved(error.to_string()))?;
        let RangeAnswer::Complete(entries) = shown.range(&wanted.namespace, &part) else {
            return Err(misbehaved("its proof does not show the whole range"));
        };
        found.extend(entries);
        if found.len() as u64 > wanted.totals.count {
            return Err(nothing("it has more entries there"));
        }
        match next {
            None => return Ok(Some(found)),
            Some(next) if next.as_slice() > start.as_slice() => start = next.to_vec(),
            Some(_) => return Err(misbehaved("its answer leads nowhere")),
        }
    }
    Err(nothing(format!("the piece takes more than {QUESTIONS_MAX} questions")))
}

fn ask(peer: &mut dyn Ask, request: &Request) -> Result<Response, Gave> {
    match peer.ask(request) {
        Ok(Response::Busy { retry_after_ms }) => Err(nothing(format!("it is busy for {retry_after_ms} ms"))),
        Ok(response) => Ok(response),
        Err(silence) => Err(nothing(silence.to_string())),
    }
}
