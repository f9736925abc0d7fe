//! What a chain in this process gives its peers: the states it keeps, and what each height changed.

use super::Answers;
use crate::commands::init::now;
use crate::engine::{Local, snapshot_params};
use keelstone_codec::{Blob, Encode as _, Height, Root};
use keelstone_ledger::{Attestation, LedgerError, SecretKey};
use keelstone_store::{StoreError, View};
use keelstone_sync::peers::{CERTIFICATE_BYTES_MAX, Server, ServerLimits, Tick, Version, Versions};
use keelstone_tree::{Diff, Hasher, ReadError};
use std::sync::Arc;

/// The versions of a chain. Which state counts may change while it is asked.
struct Kept<H: Hasher> {
    chain: Arc<Local<H>>,
    /// The key of a producer, if this node is one.
    producer: Option<SecretKey>,
}

/// A server over a chain. A producer's key certifies what it serves.
pub(crate) fn answers<H: Hasher>(
    chain: Arc<Local<H>>,
    limits: ServerLimits,
    producer: Option<SecretKey>,
) -> Box<dyn Answers> {
    let params = snapshot_params(&chain.genesis);
    Box::new(Server::new(Kept { chain, producer }, params, limits, Tick(0)))
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
        let ledger = self.chain.ledger();
        // One that lacks what its chain inherited is the state of nothing.
        self.chain.check_whole().ok()?;
        let view = ledger.view();
        let newest = Version { height: view.height()?, root: view.root() };
        Some((newest, ledger.store().low()?.min(newest.height)))
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
        let key = self.producer.as_ref()?;
        let (version, _) = self.kept()?;
        let attestation = Attestation {
            chain_id: self.chain.genesis.chain_id.clone(),
            genesis_hash: self.chain.ledger().genesis_hash(),
            height: version.height,
            root: version.root,
            said_at: now(),
        };
        Blob::new(attestation.sign(key).to_bytes()).ok()
    }
}
