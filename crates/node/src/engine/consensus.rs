//! A chain as another consensus engine drives it: what the engine asks, and what a decided block comes to.
//!
//! The engine decides which transactions stand in which block; what they do is the ledger's. A decided block is run as
//! often as the engine asks and always gives the same answer; nothing of it is durable before [`Consensus::commit`]. So
//! a process that dies in between is simply told the block again.
//!
//! Rules: `spec/ledger.md`, LEDGER-1, LEDGER-6 and LEDGER-8; STORE-9.

use super::{Engine, Local};
use crate::cometbft::certificate;
use crate::cometbft::genesis::rfc3339;
use crate::cometbft::keys::address_of;
use crate::exit::Failure;
use bytes::Bytes;
use keelstone_codec::{ChainId, Decode as _, Encode as _, Height, Key, Namespace, Root, Timestamp};
use keelstone_execution::PublicKey;
use keelstone_ledger::{
    Block, BlockError, ChainLimits, Committed, Continuation, LedgerError, Pending, PoolError, ProposalError, Receipt,
    Refusal, Refused, SignedTransaction, TxId, Validator, Validators, Verdict,
};
use keelstone_store::StoreError;
use keelstone_tree::ics23::{ConvertError, Ics23Proof, prove_ics23};
use keelstone_tree::{HashKind, Hasher, Read as _, ReadError};
use prost::Message as _;
use std::sync::{Arc, MutexGuard, PoisonError};
use tendermint_proto::v0_38::types::SignedHeader;

/// Bytes that a transaction takes in a block beside its own: a tag, and a length of at most five bytes.
pub(crate) const TRANSACTION_OVERHEAD: u8 = 6;
/// Numbers of failures in results begin here, so that they differ from those of refusals.
const FAILURE_CODES: u32 = 1_000;

/// Where the chain stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    /// The last block; none before the first.
    pub(crate) last: Option<Height>,
    /// The root of the state.
    pub(crate) root: Root,
}

/// What the engine says of a chain that begins.
#[derive(Debug, Clone)]
pub(crate) struct Begin {
    pub(crate) chain_id: String,
    pub(crate) time: Timestamp,
    pub(crate) initial_height: Height,
    /// The engine's own validators, if its genesis has any.
    pub(crate) validators: Vec<Validator>,
    /// The application's part of the engine's genesis: JSON.
    pub(crate) app_state: Vec<u8>,
}

/// What the chain begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Begun {
    pub(crate) root: Root,
    pub(crate) validators: Vec<Validator>,
}

/// A block the engine decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decided {
    pub(crate) height: Height,
    pub(crate) time: Timestamp,
    pub(crate) proposer: Vec<u8>,
    /// The hash of who votes on the next block, in the engine's form; empty if it does not say.
    pub(crate) next_validators: Vec<u8>,
    pub(crate) transactions: Vec<Bytes>,
}

/// What a decided block comes to.
#[derive(Debug)]
pub(crate) struct Finalized {
    pub(crate) root: Root,
    pub(crate) results: Vec<TxResult>,
    /// What it does for async bundles.
    pub(crate) continuations: Vec<Continuation>,
    pub(crate) validators: Vec<Validator>,
    /// The chain's limits from the next block on, if it changes them.
    pub(crate) limits: Option<ChainLimits>,
}

/// What one transaction of it comes to.
#[derive(Debug)]
pub(crate) struct TxResult {
    /// 0 if it took effect, below 1,000 if it was refused (TX-5), 1,000 and more if it failed (EXEC-5).
    pub(crate) code: u32,
    /// Why not.
    pub(crate) reason: String,
    pub(crate) gas_used: u64,
    pub(crate) gas_wanted: u64,
    pub(crate) id: TxId,
    pub(crate) sender: PublicKey,
    /// The receipt, encoded.
    pub(crate) receipt: Vec<u8>,
}

/// A block that was run, with what was asked and what was answered.
pub(crate) struct Ran<H: Hasher> {
    decided: Decided,
    pending: Pending<H>,
    answer: Arc<Finalized>,
}

/// One entry with its ICS-23 proof.
#[derive(Debug)]
pub(crate) struct Proven {
    pub(crate) height: Height,
    pub(crate) value: Option<Vec<u8>>,
    /// If one was asked for.
    pub(crate) proof: Option<Ics23Proof>,
    pub(crate) hasher: HashKind,
}

/// Why a question about the state has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProveError {
    /// The height is not kept, or the store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no such proof.
    #[error(transparent)]
    Convert(#[from] ConvertError),
}

/// What another consensus engine asks of a chain.
pub(crate) trait Consensus {
    /// Where the chain stands.
    fn standing(&self) -> Standing;
    /// Begins the chain, whose genesis the engine must agree with.
    fn begin(&self, begin: &Begin) -> Result<Begun, Failure>;
    /// Who votes.
    fn validators(&self) -> Result<Validators, Failure>;
    /// Takes a transaction into the pool; `again` after a block, without looking at the signature.
    fn check_transaction(&self, transaction: &[u8], again: bool) -> Result<TxId, Refusal>;
    /// Picks what a proposed block should have, in order.
    fn choose(&self, transactions: &[Bytes], bytes_max: usize) -> Result<Vec<usize>, Failure>;
    /// Says whether a proposed block may be voted for.
    fn judge(&self, transactions: &[Bytes]) -> Result<(), ProposalError>;
    /// Runs a decided block. Nothing of it is durable.
    fn finalize(&self, decided: Decided) -> Result<Arc<Finalized>, Failure>;
    /// Makes the block that was run last durable.
    fn commit_decided(&self) -> Result<Arc<Committed>, Failure>;
    /// An entry of the state at a height, the last if none is given.
    fn prove_entry(
        &self,
        namespace: &Namespace,
        key: &Key,
        at: Option<Height>,
        prove: bool,
    ) -> Result<Proven, ProveError>;
    /// Who votes at a height; none if the version that says so is not kept.
    fn voters_at(&self, height: Height) -> Result<Option<Vec<Validator>>, Failure>;
    /// The root after a height; none if that version is not kept.
    fn root_after(&self, height: Height) -> Result<Option<Root>, Failure>;
    /// Keeps what the engine certified of a height.
    fn keep_certificate(&self, height: Height, certificate: Vec<u8>);
    /// What is kept of what the engine certified of a height.
    fn certificate(&self, height: Height) -> Result<Option<Vec<u8>>, Failure>;
    /// Whether nothing the engine certified is kept of a height whose root is.
    fn lacks_certificate(&self, height: Height) -> Result<bool, Failure>;
    /// Writes what was kept and waits for the next block to be written with.
    fn write_certificates(&self) -> Result<(), Failure>;
    /// The most gas a bundle of the next block may use.
    fn gas_wanted(&self) -> Result<u64, ReadError>;
    /// The height of the chain's first block.
    fn first_height(&self) -> Height;
}

/// The block the chain stands at; none before the first, nor while nothing but a snapshot speaks for its state. Does not
/// wait for a snapshot that is being taken in, as a stop would have to then.
pub(crate) fn stands_at(engine: &dyn Engine) -> Option<Height> {
    // In this order: a state that is put in place meanwhile is not taken for one that a block was made on.
    let last = engine.standing().last?;
    (!engine.is_unconfirmed()).then_some(last)
}

impl<H: Hasher> Local<H> {
    fn ran(&self) -> MutexGuard<'_, Option<Ran<H>>> {
        self.ran.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<H: Hasher> Consensus for Local<H> {
    fn standing(&self) -> Standing {
        let ledger = self.ledger();
        let view = ledger.view();
        let height = view.height().unwrap_or_default();
        Standing { last: (height > ledger.genesis_height()).then_some(height), root: view.root() }
    }

    fn begin(&self, begin: &Begin) -> Result<Begun, Failure> {
        let (ledger, standing) = (self.ledger(), self.standing());
        if let Some(height) = standing.last {
            return Err(Failure::usage(format!("the engine begins a chain that stands at height {height} here")));
        }
        // spec: GENESIS-4
        self.check_whole()?;
        let (facts, hash) = (ledger.facts(), ledger.genesis_hash());
        agree("chain id", facts.chain_id.as_str(), &begin.chain_id)?;
        agree("initial height", &facts.initial_height.to_string(), &begin.initial_height.to_string())?;
        if begin.time < facts.genesis_time {
            let (found, expected) = (rfc3339(begin.time), rfc3339(facts.genesis_time));
            return Err(disagrees(format!("its genesis_time is {found}, before that of genesis.json, {expected}")));
        }
        let app_state: Option<String> = serde_json::from_slice(&begin.app_state).ok();
        if app_state.as_deref() != Some(hash.to_string().as_str()) {
            let found = String::from_utf8_lossy(&begin.app_state[..begin.app_state.len().min(80)]).into_owned();
            return Err(disagrees(format!("its app_state is {found:?}, the hash of genesis.json is \"{hash}\"")));
        }
        let ours = self.validators()?.active.into_vec();
        let mut theirs = begin.validators.clone();
        theirs.sort_unstable();
        if !theirs.is_empty() && theirs != ours {
            return Err(disagrees(format!(
                "it names {} validators, which are not the {} of genesis.json",
                theirs.len(),
                ours.len()
            )));
        }
        Ok(Begun { root: standing.root, validators: ours })
    }

    fn validators(&self) -> Result<Validators, Failure> {
        let found = Validators::read(&self.ledger().view())?;
        found.ok_or_else(|| {
            Failure::usage("the genesis of this chain has no validators: it makes its own blocks")
                .hint("keelstone init --validator KEY=POWER makes a chain that runs under CometBFT")
        })
    }

    fn check_transaction(&self, transaction: &[u8], again: bool) -> Result<TxId, Refusal> {
        let ledger = self.ledger();
        let taken = if again { ledger.submit_again(transaction) } else { ledger.submit(transaction) };
        match taken {
            // The engine asks again for one that it has forgotten and we have not.
            Err(Refusal::Pool(PoolError::Known { id })) => Ok(id),
            taken => taken,
        }
    }

    fn choose(&self, transactions: &[Bytes], bytes_max: usize) -> Result<Vec<usize>, Failure> {
        let candidates: Vec<&[u8]> = transactions.iter().map(AsRef::as_ref).collect();
        Ok(self.ledger().choose(&candidates, bytes_max, TRANSACTION_OVERHEAD.into())?)
    }

    fn judge(&self, transactions: &[Bytes]) -> Result<(), ProposalError> {
        self.ledger().judge(&transactions.iter().map(AsRef::as_ref).collect::<Vec<_>>())
    }

    // spec: STORE-9
    fn finalize(&self, decided: Decided) -> Result<Arc<Finalized>, Failure> {
        let _at_work = self.way.block();
        let mut ran = self.ran();
        if let Some(ran) = ran.as_ref().filter(|ran| ran.decided == decided) {
            return Ok(ran.answer.clone());
        }
        let ledger = self.ledger();
        let validators = self.validators()?;
        let proposer = proposer(&validators, &decided)?;
        if decided.height == ledger.height().next() {
            same_voters(&validators, &decided)?;
        }
        let decoded = decided.transactions.iter().enumerate().map(|(index, bytes)| {
            SignedTransaction::from_bytes(bytes).map_err(|error| {
                // No honest validator votes for such a block (LEDGER-6), so this chain cannot go on from here.
                Failure::usage(format!("block {}: transaction {index} does not decode: {error}", decided.height))
            })
        });
        let block = Block {
            height: decided.height,
            time: decided.time,
            proposer,
            transactions: decoded.collect::<Result<_, _>>()?,
        };
        let pending = ledger.run(block, Refused::Receipt).map_err(cannot_follow)?;
        let executed = pending.executed();
        let gas_wanted = self.gas_wanted()?;
        let results = executed.block.transactions.iter().zip(&executed.receipts);
        let answer = Arc::new(Finalized {
            root: pending.root(),
            results: results.map(|(signed, receipt)| result_of(signed, receipt, gas_wanted)).collect(),
            continuations: executed.continuations.clone(),
            validators: executed.validators.clone(),
            limits: executed.limits,
        });
        *ran = Some(Ran { decided, pending, answer: answer.clone() });
        Ok(answer)
    }

    fn commit_decided(&self) -> Result<Arc<Committed>, Failure> {
        let _at_work = self.way.block();
        let Some(Ran { pending, .. }) = self.ran().take() else {
            return Err(Failure::usage("the engine commits a block that it has not decided"));
        };
        let live = self.live();
        let committed = live.ledger.commit(pending).map_err(cannot_follow)?;
        // What waits is the engine's to say, and it does so next.
        live.ledger.forget_waiting();
        self.confirmed(&live.generation)?;
        Ok(committed)
    }

    fn prove_entry(
        &self,
        namespace: &Namespace,
        key: &Key,
        at: Option<Height>,
        prove: bool,
    ) -> Result<Proven, ProveError> {
        let ledger = self.ledger();
        let view = match at {
            None => ledger.view(),
            Some(height) => ledger.view_at(height)?,
        };
        let proof = if prove { Some(prove_ics23::<H, _>(&view, namespace, key)?) } else { None };
        let value = view.get(namespace, key).map_err(StoreError::from)?.map(|value| value.to_vec());
        Ok(Proven { height: view.height().unwrap_or_default(), value, proof, hasher: H::KIND })
    }

    // spec: LEDGER-7, LEDGER-8
    fn voters_at(&self, height: Height) -> Result<Option<Vec<Validator>>, Failure> {
        let ledger = self.ledger();
        // What block H changes counts from block H + 2 on; the first two have those of the genesis.
        let says = Height(height.0.saturating_sub(2)).max(ledger.genesis_height());
        match ledger.view_at(says) {
            Ok(view) => Ok(Validators::read(&view)?.map(|validators| validators.active.into_vec())),
            Err(StoreError::NotRetained { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn root_after(&self, height: Height) -> Result<Option<Root>, Failure> {
        Ok(self.ledger().root_at(height)?)
    }

    fn keep_certificate(&self, height: Height, certificate: Vec<u8>) {
        self.ledger().keep_certificate(height, certificate);
    }

    fn certificate(&self, height: Height) -> Result<Option<Vec<u8>>, Failure> {
        Ok(self.ledger().certificate(height)?)
    }

    fn lacks_certificate(&self, height: Height) -> Result<bool, Failure> {
        let ledger = self.ledger();
        Ok(ledger.certificate(height)?.is_none() && ledger.root_at(height)?.is_some())
    }

    fn write_certificates(&self) -> Result<(), Failure> {
        Ok(self.ledger().write_certificates()?)
    }

    fn gas_wanted(&self) -> Result<u64, ReadError> {
        Ok(self.ledger().limits()?.bundle_gas_max)
    }

    fn first_height(&self) -> Height {
        self.ledger().facts().initial_height
    }
}

/// Compares a part of the engine's genesis with ours.
fn agree(what: &str, ours: &str, theirs: &str) -> Result<(), Failure> {
    match ours == theirs {
        true => Ok(()),
        false => Err(disagrees(format!("its {what} is {theirs:?}, that of genesis.json is {ours:?}"))),
    }
}

fn disagrees(how: String) -> Failure {
    Failure::usage(format!("the engine's genesis is of another chain: {how}"))
        .hint("both must come from one source; docs/cometbft.md says what stands in the engine's genesis")
}

/// Why a decided block was not run. One that does not follow here is the engine's doing, and says nothing of what is stored.
fn cannot_follow(error: LedgerError) -> Failure {
    match error {
        LedgerError::NotNext { .. }
        | LedgerError::Time { .. }
        | LedgerError::Block(
            BlockError::Height { .. }
            | BlockError::Time { .. }
            | BlockError::Proposer { .. }
            | BlockError::TooLarge { .. },
        ) => Failure::usage(error.to_string())
            .hint("this engine is not the one that stands where this chain does; docs/cometbft.md says what to do"),
        error => error.into(),
    }
}

/// The key of a block's proposer, whom the engine names by address.
fn proposer(validators: &Validators, decided: &Decided) -> Result<PublicKey, Failure> {
    let found = validators.keys().find(|key| address_of(key) == *decided.proposer.as_slice());
    found.copied().ok_or_else(|| {
        let address = hex::encode(&decided.proposer);
        Failure::usage(format!("block {} is by {address}, which is no validator of this state", decided.height))
    })
}

/// Whether the engine counts on those to vote on the next block who do by the state below this one. Another chain's engine, which
/// may well stand at the same height and have a validator in common, does not.
// spec: LEDGER-8
fn same_voters(validators: &Validators, decided: &Decided) -> Result<(), Failure> {
    let (found, expected) = (decided.next_validators.as_slice(), certificate::validators_hash(&validators.active));
    if found.is_empty() || found == expected {
        return Ok(());
    }
    let (found, expected) = (hex::encode(found), hex::encode(expected));
    Err(Failure::usage(format!(
        "block {} is of another chain: it names next validators {found}, those of this state are {expected}",
        decided.height
    ))
    .hint("this engine is not the one of this chain; docs/cometbft.md says what to do"))
}

fn result_of(signed: &SignedTransaction, receipt: &Receipt, gas_wanted: u64) -> TxResult {
    let (code, reason) = match &receipt.verdict {
        Verdict::Succeeded { .. } | Verdict::Submitted { .. } => (0, String::new()),
        Verdict::Failed(failure) => (FAILURE_CODES + u32::from(failure.code), failure.reason.to_string()),
        Verdict::Refused { code, reason } => (u32::from(*code), reason.to_string()),
    };
    TxResult {
        code,
        reason,
        gas_used: receipt.gas_used,
        gas_wanted,
        id: receipt.transaction,
        sender: signed.transaction.sender,
        receipt: receipt.to_bytes(),
    }
}

/// The root that consensus certified of a height, as far as its header was kept here: verified again, for what is kept is
/// bytes on a disk. None without a header, or without the version that says who votes.
///
/// # Errors
/// What reading them says; an integrity failure if what is kept certifies nothing.
// spec: LEDGER-7, CHECK-1
pub(crate) fn certified_root(
    chain: &dyn Consensus,
    chain_id: &ChainId,
    height: Height,
) -> Result<Option<Root>, Failure> {
    let Some(kept) = chain.certificate(height)? else { return Ok(None) };
    let none = |error: &dyn std::error::Error| {
        Failure::integrity(format!("what is kept here of the header that certifies height {height} is none: {error}"))
    };
    let signed = SignedHeader::decode(kept.as_slice()).map_err(|error| none(&error))?;
    let Some(voters) = chain.voters_at(height.next())? else { return Ok(None) };
    let certificate = certificate::verify(signed, chain_id.as_str(), height.next(), &voters);
    certificate.map(|certificate| Some(certificate.root)).map_err(|error| none(&error))
}
