//! A verifier with a memory, for those who check many proofs of one state.
//!
//! Proofs of one state share the upper part of their ways. A verifier that has hashed a node once need not hash it
//! again: it keeps preimages with their hashes and compares. That changes what checking costs and nothing else; a
//! forger gains nothing by it, for a hash is taken from memory only for the very preimage it was computed from.

use crate::proof::{Every, read};
use crate::verify::{Hashes, Verified, check};
use crate::{Half, Hasher, ProofError, ProofLimits, Query};
use keelstone_codec::{Hash, Root};
use std::marker::PhantomData;

/// Checks proofs of the state under one root, one after another.
#[derive(Debug)]
pub struct Verifier<H> {
    root: Root,
    limits: ProofLimits,
    memory: Memory<H>,
    last: Option<Verified<H>>,
}

impl<H: Hasher> Verifier<H> {
    /// A verifier for a root its caller trusts. It takes about 0.7 MB.
    #[must_use]
    pub fn new(root: Root, limits: ProofLimits) -> Self {
        Self { root, limits, memory: Memory::new(), last: None }
    }

    /// As [`crate::Proof::decode_within`] and [`crate::Proof::verify`] in one. What it returns is good until the next
    /// call; clone it to keep it.
    ///
    /// # Errors
    /// [`ProofError`].
    pub fn verify(&mut self, bytes: &[u8], queries: &[Query]) -> Result<&Verified<H>, ProofError> {
        let room = self.last.take().map(|last| last.proof.nodes).unwrap_or_default();
        let proof = read(bytes, &self.limits, Every, room)?;
        let verified = check(proof, self.root, Some(queries), Every, &mut self.memory)?;
        Ok(self.last.insert(verified))
    }
}

/// Places for nodes: 2^12, about the upper twelve levels of a tree. More would not stay in a core's own cache.
const PLACES: usize = 1 << 12;

/// Nodes with fewer entries below them are seldom met twice, and would push out others.
const COUNT_MIN: u64 = 32;

/// Preimages and their hashes. Each has one place, and takes it from whatever was there.
#[derive(Debug)]
struct Memory<H> {
    nodes: Vec<([Half; 2], Hash)>,
    namespace: Option<([Vec<u8>; 2], [Hash; 2])>,
    _hasher: PhantomData<H>,
}

impl<H: Hasher> Memory<H> {
    fn new() -> Self {
        let hash = H::hash_node(&[0xff; 128]);
        Self { nodes: vec![([[0xff; 64]; 2], hash); PLACES], namespace: None, _hasher: PhantomData }
    }
}

/// Bytes of one of the children's hashes: as good as random, so nodes spread over all places.
fn place(tail: &Half) -> usize {
    let from = |at: usize| usize::from(u16::from_le_bytes([tail[at], tail[at + 1]]));
    (from(0) ^ from(32)) % PLACES
}

impl<H: Hasher> Hashes for Memory<H> {
    type Hasher = H;

    fn node(&mut self, head: &Half, mid: &H::Mid, tail: &Half, count: u64) -> Hash {
        if count < COUNT_MIN {
            return H::hash_tail(mid, tail);
        }
        let (known, hash) = &mut self.nodes[place(tail)];
        if known[1] != *tail || known[0] != *head {
            *hash = H::hash_tail(mid, tail);
            *known = [*head, *tail];
        }
        *hash
    }

    fn bytes(&mut self, bytes: &[u8]) -> Hash {
        H::hash(bytes)
    }

    fn namespace(&mut self, name: &[u8], root: &Hash) -> [Hash; 2] {
        match &self.namespace {
            Some(([known_name, known_root], hashes)) if known_name == name && known_root == &root.0 => *hashes,
            _ => {
                let hashes = [H::hash(name), H::hash(&root.0)];
                self.namespace = Some(([name.to_vec(), root.0.to_vec()], hashes));
                hashes
            }
        }
    }
}
