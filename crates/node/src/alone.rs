//! A chain without a running node: what the command line uses when nobody else holds the directory.
//!
//! A transaction that is submitted goes into a block at once, made with the producer key of this home directory, so
//! that `tx send` works the same with and without a node.

use crate::api::{
    self, Account, Block, BundleStatus, Chain, DryRun, Entries, Entry, Function, Page, Refusal, Status, Submitted,
    Witness,
};
use crate::clock::now;
use crate::config::EngineKind;
use crate::engine::Engine;
use crate::exit::Failure;
use crate::keyfile::{KeyDir, PRODUCER};
use crate::out::{Out, caution};
use keelstone_codec::{Decode as _, Hash, Height, Key, Namespace};
use keelstone_execution::{PublicKey, SessionId};
use keelstone_ledger::{Refusal as TxRefusal, SignedTransaction, Transaction};
use std::sync::Arc;

pub(crate) struct Alone {
    engine: Arc<dyn Engine>,
    /// Who makes blocks; or why nobody here does, so that nothing can be submitted.
    producer: Result<PublicKey, String>,
    /// What is to be said before a block is made: another program made the last one.
    warning: Option<String>,
    /// Whether that is said to a program.
    json: bool,
}

impl Alone {
    /// A chain of this process, whose blocks are made as `kind` says, with one of these keys. `warning` is said before one is made.
    pub(crate) fn new(
        engine: Arc<dyn Engine>,
        kind: EngineKind,
        keys: &KeyDir,
        warning: Option<String>,
        json: bool,
    ) -> Result<Self, Failure> {
        let producer = if !engine.genesis().validators.is_empty() {
            Err("the blocks of this chain are made by CometBFT, and no node is running".to_owned())
        } else if kind == EngineKind::Follow {
            Err("this node follows a producer elsewhere (engine.kind), and no node is running".to_owned())
        } else if keys.names()?.iter().any(|name| name == PRODUCER) {
            // Whoever only looks needs none.
            keys.public(PRODUCER).map_err(|failure| failure.message)
        } else {
            Err(format!("there is no key {PRODUCER:?} here to make a block with, and no node is running"))
        };
        Ok(Self { engine, producer, warning, json })
    }

    /// What no block took in is forgotten when this process ends, so nobody may be left to wait for it.
    fn check_it_is_in_a_block(&self, transaction: &[u8]) -> Result<(), Refusal> {
        let signed = SignedTransaction::from_bytes(transaction);
        let signed = signed.map_err(|error| Refusal::Bad(format!("the bytes are no transaction: {error}")))?;
        match self.engine.transaction(&signed.id().0) {
            Err(Refusal::NotFound(_) | Refusal::Waiting(_)) => {}
            found => return found.map(|_| ()),
        }
        let Transaction { sender, nonce: found, .. } = signed.transaction;
        let next = self.engine.account(&sender)?.nonce;
        if found <= next {
            return Err(Refusal::Failed(format!("{} was taken in, but is in no block", signed.id())));
        }
        let gap = TxRefusal::NonceGap { next, found };
        let message = format!("{gap}; no node is running that could let it wait for those between");
        Err(Refusal::Refused { code: gap.code().to_string(), message })
    }
}

impl Chain for Alone {
    fn status(&self) -> Result<Status, Refusal> {
        self.engine.status()
    }

    fn misread(&self) -> Vec<String> {
        self.engine.misfits()
    }

    fn submit(&self, transaction: &[u8]) -> Result<Submitted, Refusal> {
        let producer = self.producer.clone().map_err(Refusal::Failed)?;
        if let Some(warning) = &self.warning {
            caution(&Out::new(self.json), warning);
        }
        let submitted = self.engine.submit(transaction)?;
        // Until nothing waits and nothing is due: an async bundle takes several blocks, each of which comes further.
        while self.engine.produce(now(), producer, false).map_err(|failure| Refusal::Failed(failure.message))?.is_some()
        {
        }
        self.check_it_is_in_a_block(transaction)?;
        Ok(submitted)
    }

    fn entry(&self, namespace: &Namespace, key: &Key, at: Option<Height>, prove: bool) -> Result<Entry, Refusal> {
        self.engine.entry(namespace, key, at, prove)
    }

    fn entries(&self, namespace: &Namespace, page: &Page, at: Option<Height>, prove: bool) -> Result<Entries, Refusal> {
        self.engine.entries(namespace, page, at, prove)
    }

    fn lookup(&self, by: api::By, of: &str, page: &Page) -> Result<Entries, Refusal> {
        self.engine.lookup(by, of, page)
    }

    fn block(&self, height: Option<Height>) -> Result<Block, Refusal> {
        self.engine.block(height)
    }

    fn transaction(&self, id: &Hash) -> Result<api::Transaction, Refusal> {
        self.engine.transaction(id)
    }

    fn account(&self, key: &PublicKey) -> Result<Account, Refusal> {
        self.engine.account(key)
    }

    fn session(&self, id: &SessionId) -> Result<api::Session, Refusal> {
        self.engine.session(id)
    }

    fn sessions(&self, wanted: &api::SessionsWanted) -> Result<api::SessionList, Refusal> {
        self.engine.sessions(wanted)
    }

    fn bundle(&self, id: &Hash) -> Result<BundleStatus, Refusal> {
        self.engine.bundle(id)
    }

    fn bundles(&self) -> Result<Vec<BundleStatus>, Refusal> {
        self.engine.bundles()
    }

    fn witness(&self, transaction: &[u8]) -> Result<Witness, Refusal> {
        self.engine.witness(transaction)
    }

    fn dry_run(&self, transaction: &[u8]) -> Result<DryRun, Refusal> {
        self.engine.dry_run(transaction)
    }

    fn operation_proof(
        &self,
        bundle: &Hash,
        index: u32,
        at: Option<api::HookAt>,
    ) -> Result<api::OperationAnswer, Refusal> {
        self.engine.operation_proof(bundle, index, at)
    }

    fn audit(&self, wanted: &api::AuditWanted) -> Result<api::Audit, Refusal> {
        self.engine.audit(wanted)
    }

    fn audit_proof(&self, index: u64) -> Result<api::AuditAnswer, Refusal> {
        self.engine.audit_proof(index)
    }

    fn audit_checkpoint(&self, since: Option<u64>) -> Result<api::AuditCheckpoint, Refusal> {
        self.engine.audit_checkpoint(since)
    }

    fn history(
        &self,
        namespace: &Namespace,
        key: &Key,
        heights: (Option<Height>, Option<Height>),
        limit: usize,
    ) -> Result<api::History, Refusal> {
        self.engine.history(namespace, key, heights, limit)
    }

    fn functions(&self) -> Result<Vec<Function>, Refusal> {
        self.engine.functions()
    }
}
