//! The ledger: a chain of blocks over a store.
//!
//! [`Ledger`] takes transactions in, makes blocks of them or runs those it is given, commits each to the store and
//! keeps what the state does not hold (bodies, receipts, the index of transactions) in a key-value database. It has no
//! clock, no thread and no socket: whoever drives it says what time it is.
//!
//! A block's body goes to the database while its changes go to the store, and it is acknowledged once both are durable. A
//! crash may leave either without the other; neither was acknowledged, so opening takes it back: what the database has
//! above the store's height is dropped, and a last height without a body is rolled back. So a crash at any point, also in
//! the middle of a rollback, leaves one history. Nothing read from the database is believed: bodies and receipts are
//! checked against the record in the state.
//!
//! Rules: `spec/ledger.md`, LEDGER-1 to LEDGER-6 and HISTORY-1 to HISTORY-4.

mod error;
mod kept;

use crate::audit::{Appended, forget_audit, keep_audit};
use crate::block::{Block, BlockRecord, Continuation, Receipt};
use crate::bodies::block_in;
use crate::chain::{Chain, ChainFacts};
use crate::check::{self, Entrance, Refusal};
use crate::genesis::{Genesis, GenesisError};
use crate::keys::{Point, SignatureError};
use crate::limits::ChainLimits;
use crate::mempool::{Mempool, PoolLimits};
use crate::nonces;
use crate::packed::{Known, pack};
use crate::parallel::{InParallel, Threads};
use crate::run::{self, Executed, Refused};
use crate::transaction::{SignedTransaction, TxId};
use crate::vouched::Vouched;
pub use error::{LedgerError, ProposalError};
use keelstone_codec::{Decode, Encode, Hash, Height, OrderedKey, Root, Timestamp};
use keelstone_execution::{Activity, Changes, ListProof, PublicKey, Registry};
use keelstone_store::kv::{Batch, Kv, Range};
use keelstone_store::{Prepared, Store, StoreError, View};
use keelstone_tree::{Hasher, ReadError};
use kept::indexed;
use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// A chain of blocks over a store. Shared freely between threads; one block is made at a time.
pub struct Ledger<H: Hasher> {
    store: Store<H>,
    pub(crate) kv: Arc<dyn Kv>,
    registry: Registry,
    chain: Chain,
    pool: Mutex<Mempool>,
    /// Signatures that need not be verified again.
    vouched: Mutex<Vouched>,
    /// The right to commit the next block.
    writer: Mutex<()>,
    /// The time of the last block.
    time: AtomicU64,
    listeners: RwLock<Vec<Listener>>,
    /// What another engine certified, to be written with the next block.
    certificates: Mutex<BTreeMap<Height, Vec<u8>>>,
    /// What the block that runs is at.
    activity: Activity,
    /// The height that opening took back.
    taken_back: Option<Height>,
    /// The threads that transactions are run on.
    threads: Threads,
}

type Listener = Box<dyn Fn(&Arc<Committed>) + Send + Sync>;

/// A block that is durable.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The block.
    pub block: Block,
    /// Whether it is kept here. Of a height that was taken in without its block there are no transactions here, and no receipts.
    pub is_kept: bool,
    /// The root of the state after it.
    pub root: Root,
    /// Its record; none for an empty block.
    pub record: Option<BlockRecord>,
    /// One for each of its transactions.
    pub receipts: Vec<Receipt>,
    /// What it did for async bundles.
    pub continuations: Vec<Continuation>,
    /// Everything it changed, for what is kept up with the state outside it.
    pub changes: Changes,
}

/// A block that was run and has a root, and that nobody has committed. Dropped, it never happened (spec: STORE-9).
#[derive(Debug)]
pub struct Pending<H: Hasher> {
    executed: Executed,
    prepared: Prepared<H>,
}

impl<H: Hasher> Pending<H> {
    /// The root the state will have.
    #[must_use]
    pub fn root(&self) -> Root {
        self.prepared.root()
    }

    /// What the block came to.
    #[must_use]
    pub fn executed(&self) -> &Executed {
        &self.executed
    }
}

/// What is known of a block without its transactions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its height.
    pub height: Height,
    /// Its time.
    pub time: Timestamp,
    /// Who made it.
    pub proposer: PublicKey,
    /// The root of the state after it; none if neither that version nor the root is kept here.
    pub root: Option<Root>,
    /// Its record; none for an empty block.
    pub record: Option<BlockRecord>,
}

/// A transaction in its block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The block's height.
    pub height: Height,
    /// Its place in the block.
    pub index: u32,
    /// The transaction.
    pub transaction: SignedTransaction,
    /// What became of it.
    pub receipt: Receipt,
    /// Where the transaction, and where its receipt, stands under the roots of the block's record (spec: BLOCK-3).
    pub places: (ListProof, ListProof),
}

/// What the pool holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolStatus {
    /// Transactions that wait.
    pub count: usize,
    /// Of these, those that a block could take: no earlier nonce of their sender is missing.
    pub ready: usize,
    /// The bytes of all.
    pub bytes: usize,
}

// What lies where in the database.
pub(crate) const BODY: u8 = b'b';
pub(crate) const RECEIPTS: u8 = b'r';
pub(crate) const CONTINUATIONS: u8 = b'n';
const INDEX: u8 = b't';
pub(crate) const CERTIFICATE: u8 = b'c';
/// The root a block came to.
pub(crate) const ROOT: u8 = b'o';

/// Certificates that wait to be written. A chain that stands still has one.
const CERTIFICATES_MAX: usize = 256;

pub(crate) fn at(kind: u8, height: Height) -> Vec<u8> {
    let mut key = vec![kind];
    height.encode_key(&mut key);
    key
}

/// The height in a key that [`at`] made; none in any other.
pub(crate) fn height_in(key: &[u8]) -> Option<Height> {
    <[u8; 8]>::try_from(key.get(1..)?).ok().map(u64::from_be_bytes).map(Height)
}

impl<H: Hasher> Ledger<H> {
    /// Begins a chain in an empty store. The first state of one that inherits another's is built beforehand, and opened.
    ///
    /// # Errors
    /// [`LedgerError::Exists`], [`LedgerError::Genesis`], [`LedgerError::WrongHasher`], [`LedgerError::Registry`], or
    /// what the store says.
    // spec: GENESIS-2
    pub fn create(
        store: Store<H>,
        kv: Arc<dyn Kv>,
        registry: Registry,
        genesis: &Genesis,
        pool: PoolLimits,
    ) -> Result<Self, LedgerError> {
        if let Some(height) = store.height() {
            return Err(LedgerError::Exists { height });
        }
        right_hasher::<H>(&genesis.facts())?;
        // spec: GENESIS-4. What the file itself says is not all of it.
        if let Some(inherited) = &genesis.inherits {
            return Err(GenesisError::Inherits(inherited.clone()).into());
        }
        let first = genesis.first_state()?;
        store.commit(first.height, first.diff)?;
        Self::open(store, kv, registry, pool)
    }

    /// Opens a chain, and takes back what a crash left in the store or in the database alone ([`Ledger::taken_back`]).
    ///
    /// # Errors
    /// [`LedgerError::NoGenesis`], [`LedgerError::WrongHasher`], [`LedgerError::Registry`], or what the store says.
    // spec: HISTORY-1
    pub fn open(store: Store<H>, kv: Arc<dyn Kv>, registry: Registry, pool: PoolLimits) -> Result<Self, LedgerError> {
        registry.check()?;
        let activity = registry.activity().clone();
        let view = store.view();
        let chain = Chain::read(&view)?.ok_or(LedgerError::NoGenesis)?;
        right_hasher::<H>(&chain.facts)?;
        let mut ledger = Self {
            store,
            kv,
            registry,
            chain,
            pool: Mutex::new(Mempool::new(pool)),
            vouched: Mutex::default(),
            writer: Mutex::new(()),
            time: AtomicU64::new(0),
            listeners: RwLock::default(),
            certificates: Mutex::default(),
            activity,
            taken_back: None,
            threads: Threads::new(NonZeroUsize::MIN),
        };
        ledger.taken_back = ledger.take_back_bodiless()?;
        ledger.drop_blocks_above(ledger.height())?;
        ledger.time.store(ledger.last_time()?.0, Ordering::Release);
        Ok(ledger)
    }

    /// The height that [`Ledger::open`] found without a body, never acknowledged, and took back; none in most lives.
    #[must_use]
    pub fn taken_back(&self) -> Option<Height> {
        self.taken_back
    }

    /// Tells `activity` of the functions at work in blocks, in place of the registry's: for an owner that opens one ledger
    /// after another, and to whom a block that does not end is something else than a question that does not.
    #[must_use]
    pub fn watched(mut self, activity: &Activity) -> Self {
        self.activity = activity.clone();
        self
    }

    /// Runs the transactions of a block on so many threads, to the same results; one is how a ledger begins.
    // spec: EXEC-15
    #[must_use]
    pub fn on_threads(mut self, count: NonZeroUsize) -> Self {
        self.threads = Threads::new(count);
        self
    }

    /// Calls `listener` with every block once it is durable, in order, on the thread that committed it.
    pub fn on_commit(&self, listener: impl Fn(&Arc<Committed>) + Send + Sync + 'static) {
        self.listeners.write().unwrap_or_else(PoisonError::into_inner).push(Box::new(listener));
    }

    /// Which function is at work in [`Ledger::run`], for a watchdog of the owner's: a loop that makes no host call
    /// cannot be stopped the same everywhere, only noticed. Of several calls it says the one that has run longest.
    // spec: EXEC-13
    #[must_use]
    pub fn activity(&self) -> &Activity {
        &self.activity
    }

    // ---- what there is

    /// The chain's facts.
    #[must_use]
    pub fn facts(&self) -> &ChainFacts {
        &self.chain.facts
    }

    /// The limits under which the next block runs.
    ///
    /// # Errors
    /// [`ReadError`].
    // spec: LEDGER-10
    pub fn limits(&self) -> Result<ChainLimits, ReadError> {
        ChainLimits::read(&self.view(), self.facts())
    }

    /// The hash of the chain's genesis.
    #[must_use]
    pub fn genesis_hash(&self) -> Hash {
        self.chain.genesis_hash
    }

    /// The functions.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Store<H> {
        &self.store
    }

    /// The last height; before the first block, that of the genesis.
    #[must_use]
    pub fn height(&self) -> Height {
        self.store.height().unwrap_or_else(|| self.genesis_height())
    }

    /// The height at which the genesis stands.
    #[must_use]
    pub fn genesis_height(&self) -> Height {
        self.chain.facts.initial_height.prev().unwrap_or_default()
    }

    /// The root of the last version.
    #[must_use]
    pub fn root(&self) -> Root {
        self.store.root()
    }

    /// The time of the last block.
    #[must_use]
    pub fn time(&self) -> Timestamp {
        Timestamp(self.time.load(Ordering::Acquire))
    }

    /// The last version of the state.
    #[must_use]
    pub fn view(&self) -> View<H> {
        self.store.view()
    }

    /// The state at a height.
    ///
    /// # Errors
    /// [`StoreError::NotRetained`].
    pub fn view_at(&self, height: Height) -> Result<View<H>, StoreError> {
        self.store.view_at(height)
    }

    // ---- transactions in

    /// What the pool holds.
    #[must_use]
    pub fn pool(&self) -> PoolStatus {
        let pool = self.pool_mut();
        PoolStatus { count: pool.len(), ready: pool.ready_len(), bytes: pool.bytes() }
    }

    /// A transaction that waits.
    #[must_use]
    pub fn waiting(&self, id: &TxId) -> Option<SignedTransaction> {
        self.pool_mut().find(id).cloned()
    }

    /// The nonce an account's next transaction should carry, after what waits; none if the account cannot act.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn next_nonce(&self, account: &PublicKey) -> Result<Option<u64>, ReadError> {
        let committed = nonces::next_nonce(&self.view(), account)?;
        Ok(committed.map(|committed| self.pool_mut().next_nonce(account, committed)))
    }

    /// Checks a transaction against the last state and changes nothing.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn check(&self, bytes: &[u8]) -> Result<SignedTransaction, Refusal> {
        self.checked(bytes)
    }

    /// Checks a transaction and lets it wait for a block.
    ///
    /// # Errors
    /// [`Refusal`].
    // spec: TX-5
    pub fn submit(&self, bytes: &[u8]) -> Result<TxId, Refusal> {
        self.wait(self.checked(bytes)?, bytes.len())
    }

    /// As [`Ledger::submit`], for a transaction whose signature was good before: only what a block may have changed is
    /// looked at again.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn submit_again(&self, bytes: &[u8]) -> Result<TxId, Refusal> {
        let (view, height) = (self.view(), self.height().next());
        let limits = ChainLimits::read(&view, self.facts())?;
        let transaction = decoded(&limits, bytes)?;
        check::before_signature(&view, self.facts(), &limits, &transaction, height)?;
        self.in_pool(view, &limits, &transaction, height)?;
        self.wait(transaction, bytes.len())
    }

    fn wait(&self, transaction: SignedTransaction, bytes: usize) -> Result<TxId, Refusal> {
        let mut pool = self.pool_mut();
        // Asked with the pool in hand: a block that came since the checks has settled it for another nonce, or other limits.
        let (view, height) = (self.view(), self.height().next());
        let limits = ChainLimits::read(&view, self.facts())?;
        self.may_wait(&limits, &transaction, bytes, height)?;
        let next = check::nonce(&view, &transaction.transaction.sender)?;
        Ok(pool.insert(transaction, bytes, next)?)
    }

    /// What a block may change for a transaction that waits, but for its account's nonce.
    // spec: POOL-4
    fn may_wait(
        &self,
        limits: &ChainLimits,
        transaction: &SignedTransaction,
        bytes: usize,
        height: Height,
    ) -> Result<(), Refusal> {
        check::size(limits, bytes)?;
        check::facts(self.facts(), limits, transaction, height)
    }

    /// Forgets what waits: for a chain whose pool is another engine's, which says after each block what waits still.
    pub fn forget_waiting(&self) {
        self.pool_mut().clear();
    }

    /// The cheapest checks first, and the signature before whatever costs more the more operations there are: nobody gets that
    /// done by bytes alone.
    // spec: TX-5
    fn checked(&self, bytes: &[u8]) -> Result<SignedTransaction, Refusal> {
        let (view, height) = (self.view(), self.height().next());
        let limits = ChainLimits::read(&view, self.facts())?;
        let transaction = decoded(&limits, bytes)?;
        check::before_signature(&view, self.facts(), &limits, &transaction, height)?;
        let id = transaction.id();
        let (good, known) = {
            let vouched = self.vouched();
            (vouched.is_good(&id, &transaction.signature), vouched.point(&transaction.transaction.sender))
        };
        if !good {
            let point = known.map_or_else(|| Point::of(&transaction.transaction.sender), Ok);
            let point = point.map_err(SignatureError::from)?;
            transaction.verify_by(&point)?;
            self.vouched().remember(id, &transaction, point);
        }
        self.in_pool(view, &limits, &transaction, height)?;
        Ok(transaction)
    }

    /// What is asked once the signature is good.
    // spec: TX-5
    fn in_pool(
        &self,
        view: View<H>,
        limits: &ChainLimits,
        transaction: &SignedTransaction,
        height: Height,
    ) -> Result<(), Refusal> {
        check::in_pool(&self.registry, view.clone(), self.facts(), limits, transaction, height)?;
        let next = (height, self.time());
        check::by_hooks(&self.registry, &self.activity, view, (self.facts(), limits), transaction, next)
    }

    // ---- blocks

    /// Picks, of transactions that wait elsewhere, those a block should have, as indices in the order they should
    /// stand in: whoever's nonces do not go on from the last state is left out, and of an account the lowest nonce comes
    /// first. So is who the program's own functions keep out behind those that are picked, which costs what they take, and no more
    /// than a block of them. `bytes_max` holds beside the chain's own limit; each counts with `overhead` bytes more.
    ///
    /// # Errors
    /// [`ReadError`].
    // spec: LEDGER-6
    pub fn choose(&self, candidates: &[&[u8]], bytes_max: usize, overhead: usize) -> Result<Vec<usize>, ReadError> {
        let (view, height) = (self.view(), self.height().next());
        let limits = ChainLimits::read(&view, self.facts())?;
        // Of each account, where what goes on from its nonce stands: the lowest nonce takes the account's first place.
        let mut accounts: BTreeMap<PublicKey, BTreeMap<u64, usize>> = BTreeMap::new();
        let mut senders = Vec::with_capacity(candidates.len());
        for (index, bytes) in candidates.iter().enumerate() {
            let decoded = decoded(&limits, bytes).ok();
            let sound = decoded.filter(|signed| check::facts(self.facts(), &limits, signed, height).is_ok());
            senders.push(sound.as_ref().map(|signed| signed.transaction.sender));
            if let Some(SignedTransaction { transaction, .. }) = sound {
                accounts.entry(transaction.sender).or_default().entry(transaction.nonce).or_insert(index);
            }
        }
        let mut next = BTreeMap::new();
        for sender in accounts.keys() {
            // An account that cannot act has no next nonce, so nothing goes on from it.
            next.insert(*sender, nonces::next_nonce(&view, sender)?);
        }
        let (mut chosen, mut bytes) = (Vec::new(), 0usize);
        let bytes_max = bytes_max.min(limits.block_bytes_max as usize);
        let (registry, activity, facts) = (&self.registry, &self.activity, (self.facts(), &limits));
        let mut entrance = Entrance::of(registry, activity, view.clone(), facts, (height, self.time()));
        for sender in senders.into_iter().flatten() {
            let Some(Some(nonce)) = next.get_mut(&sender) else { continue };
            let Some(index) = accounts.get_mut(&sender).and_then(|waiting| waiting.remove(nonce)) else { continue };
            let more = bytes.saturating_add(candidates[index].len()).saturating_add(overhead);
            if more > bytes_max || chosen.len() == limits.block_transactions_max as usize {
                break;
            }
            if let Some(entrance) = &mut entrance {
                if entrance.is_closed() {
                    break;
                }
                let signed = decoded(&limits, candidates[index]).ok();
                if !signed.map_or(Ok(false), |signed| entrance.lets_in(&signed))? {
                    continue; // Its nonce stays the next, so nothing of the account goes on without it.
                }
            }
            (bytes, *nonce) = (more, nonce.saturating_add(1));
            chosen.push(index);
        }
        Ok(chosen)
    }

    /// Takes a block's worth of waiting transactions, of at most `bytes_max` bytes beside the chain's own limit.
    ///
    /// # Errors
    /// [`ReadError`].
    // spec: LEDGER-6
    pub fn propose(&self, time: Timestamp, proposer: PublicKey, bytes_max: usize) -> Result<Block, LedgerError> {
        let view = self.view();
        let limits = ChainLimits::read(&view, self.facts())?;
        let bytes_max = bytes_max.min(limits.block_bytes_max as usize);
        // An account that cannot act has nothing waiting; its next nonce is one that nothing has.
        let next = |sender: &PublicKey| Ok(nonces::next_nonce(&view, sender)?.unwrap_or(u64::MAX));
        let transactions =
            self.pool_mut().ready::<ReadError>(limits.block_transactions_max as usize, bytes_max, next)?;
        Ok(Block { height: self.height().next(), time, proposer, transactions })
    }

    /// Says whether a proposed block may be voted for: every transaction decodes and all limits are kept. What fails
    /// to execute is no reason against a block.
    ///
    /// # Errors
    /// [`ProposalError`]: the first thing that is wrong.
    // spec: LEDGER-6
    pub fn judge(&self, transactions: &[&[u8]]) -> Result<(), ProposalError> {
        let limits = self.limits()?;
        for (what, found, limit) in [
            ("transactions", transactions.len(), limits.block_transactions_max),
            ("bytes of transactions", transactions.iter().map(|bytes| bytes.len()).sum(), limits.block_bytes_max),
        ] {
            if found as u64 > u64::from(limit) {
                return Err(ProposalError::TooLarge { what, found, limit });
            }
        }
        for (index, bytes) in transactions.iter().enumerate() {
            decoded(&limits, bytes).map_err(|source| ProposalError::Transaction { index, source })?;
        }
        Ok(())
    }

    /// Runs a block on the last state. Nothing is durable, and it can be repeated with the same answer.
    ///
    /// # Errors
    /// [`LedgerError::NotNext`], [`LedgerError::Time`], [`LedgerError::Block`], or what the store says.
    pub fn run(&self, block: Block, refused: Refused) -> Result<Pending<H>, LedgerError> {
        let view = self.view();
        let expected = view.height().map_or(self.genesis_height(), |height| height).next();
        if block.height != expected {
            return Err(LedgerError::NotNext { expected, found: block.height });
        }
        let root = view.root();
        let (activity, threads, vouched) = (&self.activity, &self.threads, &self.vouched);
        let way = InParallel { state: view.clone(), activity, threads, vouched };
        let executed = run::execute_with(&self.registry, view, root, block, refused, &way)?;
        self.threads.learn(&executed.beforehand);
        let prepared = self.store.prepare(executed.changes.to_diff())?;
        Ok(Pending { executed, prepared })
    }

    /// Commits a block that was run on the last state. When this returns, it is durable.
    ///
    /// # Errors
    /// [`StoreError::Stale`] if another block came between; [`LedgerError::Time`]; or what the store says.
    pub fn commit(&self, pending: Pending<H>) -> Result<Arc<Committed>, LedgerError> {
        let _writing = self.writer();
        let Pending { executed, prepared } = pending;
        let Executed { block, receipts, continuations, record, refused, nonces, changes, audit, limits, .. } = executed;
        let height = block.height;
        // spec: HISTORY-1. Side by side, so that a block waits for the slower of the two and not for both.
        let (to, logged) = (prepared.root(), audit.as_ref().zip(record.as_ref()));
        let body = || self.write_block(&block, to, &receipts, &continuations, logged);
        let root = self.put_in_place(height, block.time, prepared, body)?;
        {
            let mut pool = self.pool_mut();
            pool.settle(nonces, height.next());
            if let Some(limits) = &limits {
                pool.keep(|signed, bytes| self.may_wait(limits, signed, bytes, height.next()).is_ok());
            }
            for (id, refusal) in &refused {
                if !refusal.is_temporary() {
                    pool.forget(id);
                }
            }
        }
        Ok(self.tell(Committed { block, is_kept: true, root, record, receipts, continuations, changes }))
    }

    /// Makes the next height durable, with what belongs beside it. For whoever has the right to commit.
    pub(crate) fn put_in_place(
        &self,
        height: Height,
        time: Timestamp,
        prepared: Prepared<H>,
        beside: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<Root, LedgerError> {
        let expected = self.height().next();
        if height != expected {
            return Err(LedgerError::NotNext { expected, found: height });
        }
        let last = self.time();
        if time < last {
            return Err(LedgerError::Time { last, found: time });
        }
        let root = self.store.commit_prepared_with(height, prepared, beside)?;
        self.time.store(time.0, Ordering::Release);
        Ok(root)
    }

    /// Tells whoever listens of a height that is durable.
    pub(crate) fn tell(&self, committed: Committed) -> Arc<Committed> {
        let committed = Arc::new(committed);
        for listener in self.listeners.read().unwrap_or_else(PoisonError::into_inner).iter() {
            listener(&committed);
        }
        committed
    }

    /// Makes the next block of what is ready, and commits it. With nothing ready and no work due it is empty and
    /// writes no state.
    ///
    /// A time before the last block's is taken as the last block's: a clock that was set back must not stop a chain.
    ///
    /// # Errors
    /// As [`Ledger::run`] and [`Ledger::commit`].
    pub fn produce(&self, time: Timestamp, proposer: PublicKey) -> Result<Arc<Committed>, LedgerError> {
        let block = self.next_block(time, proposer)?;
        self.commit(self.run(block, Refused::LeaveOut)?)
    }

    /// As [`Ledger::produce`], but none with nothing ready and no work due.
    ///
    /// # Errors
    /// As [`Ledger::run`] and [`Ledger::commit`].
    pub fn produce_if_due(&self, time: Timestamp, proposer: PublicKey) -> Result<Option<Arc<Committed>>, LedgerError> {
        let block = self.next_block(time, proposer)?;
        if block.transactions.is_empty() && !self.has_due_work()? {
            return Ok(None);
        }
        self.commit(self.run(block, Refused::LeaveOut)?).map(Some)
    }

    fn next_block(&self, time: Timestamp, proposer: PublicKey) -> Result<Block, LedgerError> {
        self.propose(time.max(self.time()), proposer, usize::MAX)
    }

    /// Keeps what another engine said of a height, in its own words: who verified it has to say so. It is written with the
    /// next block, so that it costs no sync of its own, or by [`Ledger::write_certificates`]; a crash before that loses it.
    // spec: LEDGER-7
    pub fn keep_certificate(&self, height: Height, certificate: Vec<u8>) {
        let mut waiting = self.certificates();
        waiting.insert(height, certificate);
        if waiting.len() > CERTIFICATES_MAX {
            waiting.pop_first();
        }
    }

    /// Writes what waits for the next block: for a chain that is about to be closed.
    ///
    /// # Errors
    /// What the database says. What could not be written is not lost meanwhile.
    // spec: LEDGER-7
    pub fn write_certificates(&self) -> Result<(), StoreError> {
        let _writing = self.writer();
        let mut batch = Batch::new();
        let waiting = self.put_certificates(&mut batch);
        if !batch.is_empty() {
            self.kv.write(batch)?;
        }
        self.wrote(&waiting);
        Ok(())
    }

    /// Makes an earlier height the last one again, in the store and in the database. What waits is forgotten.
    ///
    /// # Errors
    /// [`StoreError::CannotRollBack`], or what store and database say. If the database fails after the store has rolled
    /// back, the next start finishes the work.
    // spec: HISTORY-3
    pub fn rollback(&self, to: Height) -> Result<Root, LedgerError> {
        let _writing = self.writer();
        let root = self.store.rollback(to)?;
        self.certificates().clear();
        self.drop_blocks_above(to)?;
        self.time.store(self.last_time()?.0, Ordering::Release);
        self.pool_mut().clear();
        Ok(root)
    }

    // ---- the database

    fn write_block(
        &self,
        block: &Block,
        root: Root,
        receipts: &Vec<Receipt>,
        continuations: &Vec<Continuation>,
        logged: Option<(&Appended, &BlockRecord)>,
    ) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        // A commit that failed after this write has left a body here; what the index says of it goes first.
        self.forget_block(block.height, &mut batch)?;
        let waiting = self.put_certificates(&mut batch);
        // spec: HISTORY-11. Each against what was known before it.
        let (body, received, continued) = (block.to_bytes(), receipts.to_bytes(), continuations.to_bytes());
        batch.put(at(BODY, block.height), pack(&body, &[]));
        let known = Known::body(&body, block, receipts.iter().map(|receipt| receipt.transaction));
        batch.put(at(RECEIPTS, block.height), pack(&received, known.bytes()));
        // spec: RECOVER-6
        batch.put(at(ROOT, block.height), root.to_bytes());
        if !continuations.is_empty() {
            batch.put(at(CONTINUATIONS, block.height), pack(&continued, &[]));
        }
        if let Some((audit, record)) = logged {
            let known = known.outcomes(block, (&received, receipts), (&continued, continuations)).record(record);
            keep_audit(&*self.kv, &mut batch, audit, &known)?;
        }
        for (index, receipt) in (0u32..).zip(receipts) {
            if !matches!(receipt.verdict, crate::Verdict::Refused { .. }) {
                batch.put(indexed(&receipt.transaction), (block.height, index).to_bytes());
            }
        }
        self.kv.write(batch)?;
        self.wrote(&waiting);
        Ok(())
    }

    /// Puts the certificates that wait into a batch: [`Self::wrote`] is told of them once it is written.
    fn put_certificates(&self, batch: &mut Batch) -> BTreeMap<Height, Vec<u8>> {
        let waiting = self.certificates().clone();
        for (height, certificate) in &waiting {
            batch.put(at(CERTIFICATE, *height), certificate.clone());
        }
        waiting
    }

    /// Forgets certificates that are written, but for those that others took the place of meanwhile.
    fn wrote(&self, written: &BTreeMap<Height, Vec<u8>>) {
        self.certificates().retain(|height, certificate| written.get(height) != Some(certificate));
    }

    /// Takes a block out of the database, and out of the index what points to it.
    fn forget_block(&self, height: Height, batch: &mut Batch) -> Result<(), StoreError> {
        let transactions = match block_in(&*self.kv, height) {
            Ok(block) => block.transactions,
            Err(LedgerError::NoBlock { .. }) => return Ok(()),
            Err(LedgerError::Store(error)) => return Err(error),
            // A body that does not decode has nothing in the index that a lookup would not find wrong by itself.
            Err(_) => Vec::new(),
        };
        for transaction in transactions {
            let key = indexed(&transaction.id());
            let found = self.kv.get(&key)?.and_then(|bytes| <(Height, u32)>::from_bytes(&bytes).ok());
            if found.is_some_and(|(found, _)| found == height) {
                batch.delete(key);
            }
        }
        batch.delete(at(BODY, height)).delete(at(RECEIPTS, height)).delete(at(CERTIFICATE, height));
        batch.delete(at(CONTINUATIONS, height)).delete(at(ROOT, height));
        forget_audit(&*self.kv, batch, height)
    }

    /// Rolls back the last height if a crash left its changes without its body. One that was acknowledged has both, and one
    /// whose body was lost later is marked in the store or has a successor: then the loss is told to who asks for it.
    // spec: HISTORY-1
    fn take_back_bodiless(&self) -> Result<Option<Height>, LedgerError> {
        let doubtful = self.store.in_doubt().filter(|height| *height > self.genesis_height());
        let Some((height, before)) = doubtful.and_then(|height| Some((height, height.prev()?))) else {
            return Ok(None);
        };
        // One taken in without its body has its root in that place.
        if self.kv.get(&at(BODY, height))?.is_some() || self.kv.get(&at(ROOT, height))?.is_some() {
            return Ok(None);
        }
        self.store.rollback(before)?;
        Ok(Some(height))
    }

    // spec: HISTORY-1, HISTORY-3
    fn drop_blocks_above(&self, height: Height) -> Result<(), StoreError> {
        // Heights without a body have a root alone.
        for kind in [BODY, ROOT] {
            loop {
                let range = Range { start: at(kind, height.next()), ..Range::prefix(&[kind], 64) }.reversed();
                let above = self.kv.range(&range)?;
                if above.is_empty() {
                    break;
                }
                let mut batch = Batch::new();
                for (key, _) in above {
                    if let Some(found) = height_in(&key) {
                        self.forget_block(found, &mut batch)?;
                    }
                    batch.delete(key);
                }
                self.kv.write(batch)?;
            }
        }
        Ok(())
    }

    /// The time of the last block: from its body, or for a node without it from the last record.
    // spec: SNAP-13
    fn last_time(&self) -> Result<Timestamp, LedgerError> {
        match self.block(self.height()) {
            Ok(block) => Ok(block.time),
            Err(LedgerError::NoBlock { .. }) => {
                let view = self.view();
                let tip = Chain::read(&view)?.ok_or(LedgerError::NoGenesis)?.tip;
                let record = tip.map_or(Ok(None), |tip| BlockRecord::read(&view, tip))?;
                Ok(record.map_or(self.facts().genesis_time, |record| record.time))
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) fn writer(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn certificates(&self) -> MutexGuard<'_, BTreeMap<Height, Vec<u8>>> {
        self.certificates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn vouched(&self) -> MutexGuard<'_, Vouched> {
        self.vouched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pool_mut(&self) -> MutexGuard<'_, Mempool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<H: Hasher> fmt::Debug for Ledger<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ledger({} at {})", self.facts().chain_id, self.height())
    }
}

/// The transaction in bytes, of which the chain takes so many.
fn decoded(limits: &ChainLimits, bytes: &[u8]) -> Result<SignedTransaction, Refusal> {
    check::size(limits, bytes.len())?;
    Ok(SignedTransaction::from_bytes(bytes)?)
}

fn right_hasher<H: Hasher>(facts: &ChainFacts) -> Result<(), LedgerError> {
    match facts.hasher == H::KIND {
        true => Ok(()),
        false => Err(LedgerError::WrongHasher { expected: facts.hasher.to_string(), found: H::KIND.name() }),
    }
}
