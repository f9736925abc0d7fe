//! What a chain in this process gives its peers: the states it keeps, and what each height changed.

use super::Local;
use crate::clock::now;
use crate::library::snapshot_params;
use keelstone_codec::{Blob, Encode as _, Height, Root};
use keelstone_ledger::{Attestation, LedgerError, SecretKey, SignedAttestation};
use keelstone_store::{StoreError, View};
use keelstone_sync::peers::{
    CERTIFICATE_BYTES_MAX, PeerId, Request, Response, Server, ServerLimits, Tick, Version, Versions,
};
use keelstone_tree::{Diff, Hasher, ReadError};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Whoever gives answers: a server over a chain, whatever its hasher.
pub(crate) trait Answers: Send {
    /// As [`Server::answer`].
    fn answer(&mut self, now: Tick, peer: PeerId, request: &Request) -> Response;
    /// As [`Server::worked`].
    fn worked(&mut self, peer: PeerId, took: Duration);
    /// As [`Server::gone`].
    fn gone(&mut self, peer: PeerId);
}

impl<V: Versions> Answers for Server<V>
where
    Self: Send,
{
    fn answer(&mut self, now: Tick, peer: PeerId, request: &Request) -> Response {
        Self::answer(self, now, peer, request)
    }

    fn worked(&mut self, peer: PeerId, took: Duration) {
        Self::worked(self, peer, took);
    }

    fn gone(&mut self, peer: PeerId) {
        Self::gone(self, peer);
    }
}

/// What certifies the newest version here; none before there is one.
pub(crate) type Word = Option<Arc<SignedAttestation>>;

/// Whose signature certifies the versions that a node gives.
pub(crate) enum Attests {
    /// Nobody's: they are certified elsewhere.
    Nobody,
    /// Its own, made when it is asked for.
    Key(Arc<SecretKey>),
    /// A producer's, which it has from others.
    Carried(watch::Receiver<Word>),
}

/// An attestation as it travels.
pub(crate) fn carried(signed: &SignedAttestation) -> Option<Blob<CERTIFICATE_BYTES_MAX>> {
    Blob::new(signed.to_bytes()).ok()
}

/// The versions of a chain. Which state counts may change while it is asked.
struct Kept<H: Hasher> {
    chain: Arc<Local<H>>,
    attests: Attests,
}

/// A server over a chain.
pub(crate) fn answers<H: Hasher>(chain: Arc<Local<H>>, limits: ServerLimits, attests: Attests) -> Box<dyn Answers> {
    let params = snapshot_params(&chain.genesis);
    Box::new(Server::new(Kept { chain, attests }, params, limits, Tick(0)))
}

/// The newest version of a chain; none while it is the state of nothing.
fn newest<H: Hasher>(chain: &Local<H>) -> Option<Version> {
    // One that lacks what its chain inherited is the state of nothing.
    chain.check_whole().ok()?;
    let view = chain.ledger().view();
    Some(Version { height: view.height()?, root: view.root() })
}

/// A producer's word for the newest version.
// spec: SNAP-12
pub(crate) fn attest<H: Hasher>(chain: &Local<H>, key: &SecretKey) -> Option<SignedAttestation> {
    let version = newest(chain)?;
    let attestation = Attestation {
        chain_id: chain.genesis.chain_id.clone(),
        genesis_hash: chain.ledger().genesis_hash(),
        height: version.height,
        root: version.root,
        said_at: now(),
    };
    Some(attestation.sign(key))
}

/// What is not kept is nobody's failure.
fn if_kept<T>(read: Result<T, StoreError>) -> Result<Option<T>, ReadError> {
    match read {
        Ok(found) => Ok(Some(found)),
        Err(StoreError::NotRetained { .. } | StoreError::NoDiff { .. } | StoreError::Empty) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl<H: Hasher> Versions for Kept<H> {
    type View = View<H>;

    fn kept(&self) -> Option<(Version, Height)> {
        let newest = newest(&self.chain)?;
        Some((newest, self.chain.ledger().store().low()?.min(newest.height)))
    }

    fn diffs_from(&self) -> Height {
        self.chain.ledger().store().low().map_or(Height(u64::MAX), Height::next)
    }

    fn view(&self, height: Height) -> Result<Option<(Root, View<H>)>, ReadError> {
        Ok(if_kept(self.chain.ledger().view_at(height))?.map(|view| (view.root(), view)))
    }

    fn diff(&self, height: Height) -> Result<Option<Diff>, ReadError> {
        Ok(if_kept(self.chain.ledger().store().diff_at(height))?.map(|found| found.diff()))
    }

    fn block(&self, height: Height) -> Result<Option<Vec<u8>>, ReadError> {
        match self.chain.ledger().block(height) {
            Ok(block) => Ok(Some(block.to_bytes())),
            Err(LedgerError::NoBlock { .. } | LedgerError::NotYet { .. }) => Ok(None),
            Err(LedgerError::Store(error)) => Err(error.into()),
            Err(error) => Err(ReadError::damaged(error.to_string())),
        }
    }

    // spec: SNAP-12
    fn certificate(&self) -> Option<Blob<CERTIFICATE_BYTES_MAX>> {
        match &self.attests {
            Attests::Nobody => None,
            Attests::Key(key) => carried(&attest(&self.chain, key)?),
            Attests::Carried(word) => carried(word.borrow().as_deref()?),
        }
    }
}
