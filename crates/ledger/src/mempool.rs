//! Transactions that wait for a block.
//!
//! Each account's transactions wait in the order of their nonces. What continues the account's nonce is ready; what
//! leaves a gap waits until the gap is filled. A block takes what is ready by the order of arrival, never before what
//! its account sent earlier, so one sequence of arrivals gives one sequence of blocks. All of it is bounded, and a full
//! pool refuses rather than forgets: nobody's ready transaction is pushed out by a stranger's. What waits behind a gap may
//! wait for ever and costs its senders nothing, so it has a part of the pool only, and makes room for what is ready.
//!
//! Pure: no clock, no state of its own but what it holds. Rules: `spec/ledger.md`, POOL-1 to POOL-5.

use crate::transaction::{SignedTransaction, TxId};
use keelstone_codec::Height;
use keelstone_execution::PublicKey;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

/// The part of a pool, one in so many, that is open to what waits behind gaps.
const GAPPED_PART: usize = 4;

/// What a pool may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolLimits {
    /// Transactions.
    pub count_max: usize,
    /// Bytes of encoded transactions.
    pub bytes_max: usize,
    /// Transactions of one account.
    pub per_sender_max: usize,
}

impl Default for PoolLimits {
    fn default() -> Self {
        Self { count_max: 10_000, bytes_max: 64 << 20, per_sender_max: 256 }
    }
}

/// Why a transaction was not taken in. The sender has to act; the pool is unchanged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// It waits here already.
    #[error("transaction {id} waits already")]
    Known {
        /// Its identity.
        id: TxId,
    },
    /// Another transaction of the account with this nonce waits. It is kept: first come, first served.
    #[error("transaction {waiting} with nonce {nonce} of this account waits already")]
    NonceTaken {
        /// The nonce.
        nonce: u64,
        /// The one that waits.
        waiting: TxId,
    },
    /// The nonce was used already.
    #[error("nonce {found} was used, the account's next is {next}")]
    NonceUsed {
        /// The account's next nonce.
        next: u64,
        /// The transaction's.
        found: u64,
    },
    /// The nonce is so far ahead that the account's share could never fill the gap.
    #[error("nonce {found} is too far ahead of the account's next, {next}: at most {limit} may wait")]
    NonceTooFar {
        /// The account's next nonce.
        next: u64,
        /// The transaction's.
        found: u64,
        /// Transactions one account may have waiting.
        limit: usize,
    },
    /// The account has as many waiting as it may.
    #[error("the account has {limit} transactions waiting, which is the limit")]
    SenderFull {
        /// The limit.
        limit: usize,
    },
    /// The pool holds as much as it may. Try again later.
    #[error("the pool is full: {what} would be {found}, the limit is {limit}")]
    Full {
        /// `transactions` or `bytes`, of all or of those behind gaps.
        what: &'static str,
        /// What it would be.
        found: usize,
        /// The limit.
        limit: usize,
    },
}

/// The pool.
#[derive(Debug, Default)]
pub struct Mempool {
    limits: PoolLimits,
    accounts: BTreeMap<PublicKey, Account>,
    ids: BTreeMap<TxId, (PublicKey, u64)>,
    bytes: usize,
    arrivals: u64,
    gapped: Gapped,
}

/// What waits of an account.
#[derive(Debug, Default)]
struct Account {
    /// Its next nonce, as last heard.
    next: u64,
    /// The first nonce from there on that is missing. What waits above it waits behind a gap.
    missing: u64,
    waiting: BTreeMap<u64, Waiting>,
}

impl Account {
    /// Hears of the account's next nonce: it never falls while anything waits, for a rollback of the chain clears the pool.
    fn hear(&mut self, next: u64, gapped: &mut Gapped) {
        self.next = self.next.max(next);
        self.missing = self.missing.max(self.next);
        self.close(gapped);
    }

    /// What follows without a gap is ready.
    fn close(&mut self, gapped: &mut Gapped) {
        while let Some(waiting) = self.waiting.get(&self.missing) {
            gapped.remove(waiting);
            let Some(after) = self.missing.checked_add(1) else { break };
            self.missing = after;
        }
    }

    fn insert(&mut self, sender: PublicKey, nonce: u64, waiting: Waiting, gapped: &mut Gapped) {
        if nonce > self.missing {
            gapped.insert(&waiting, sender, nonce);
        }
        self.waiting.insert(nonce, waiting);
        self.close(gapped);
    }

    fn remove(&mut self, sender: PublicKey, nonce: u64, gapped: &mut Gapped) -> Option<Waiting> {
        let gone = self.waiting.remove(&nonce)?;
        gapped.remove(&gone);
        if (self.next..self.missing).contains(&nonce) {
            let behind = self.waiting.range(nonce..self.missing);
            behind.for_each(|(nonce, waiting)| gapped.insert(waiting, sender, *nonce));
            self.missing = nonce;
        }
        Some(gone)
    }
}

/// All that waits behind gaps.
#[derive(Debug, Default)]
struct Gapped {
    by_arrival: BTreeMap<u64, (PublicKey, u64)>,
    bytes: usize,
}

impl Gapped {
    fn insert(&mut self, waiting: &Waiting, sender: PublicKey, nonce: u64) {
        if self.by_arrival.insert(waiting.arrival, (sender, nonce)).is_none() {
            self.bytes += waiting.bytes;
        }
    }

    fn remove(&mut self, waiting: &Waiting) {
        if self.by_arrival.remove(&waiting.arrival).is_some() {
            self.bytes -= waiting.bytes;
        }
    }
}

#[derive(Debug)]
struct Waiting {
    transaction: SignedTransaction,
    id: TxId,
    bytes: usize,
    arrival: u64,
}

impl Mempool {
    /// An empty pool.
    #[must_use]
    pub fn new(limits: PoolLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// How many transactions wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// How many of them wait for no earlier nonce of their sender.
    #[must_use]
    pub fn ready_len(&self) -> usize {
        self.len() - self.gapped.by_arrival.len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Bytes of all that wait.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a transaction waits here.
    #[must_use]
    pub fn contains(&self, id: &TxId) -> bool {
        self.ids.contains_key(id)
    }

    /// A waiting transaction.
    #[must_use]
    pub fn find(&self, id: &TxId) -> Option<&SignedTransaction> {
        let (sender, nonce) = self.ids.get(id)?;
        Some(&self.accounts.get(sender)?.waiting.get(nonce)?.transaction)
    }

    /// The nonce after an account's last waiting transaction without a gap, if any waits: what a wallet uses next.
    #[must_use]
    pub fn next_nonce(&self, sender: &PublicKey, committed: u64) -> u64 {
        let account = self.accounts.get(sender);
        let run = account.into_iter().flat_map(|account| account.waiting.range(committed..)).map(|(nonce, _)| *nonce);
        run.fold(committed, |next, nonce| if nonce == next { next.saturating_add(1) } else { next })
    }

    /// Takes in a transaction that was checked otherwise. `next` is its account's next nonce in the committed state.
    ///
    /// # Errors
    /// [`PoolError`].
    // spec: POOL-1, POOL-2
    pub fn insert(&mut self, transaction: SignedTransaction, bytes: usize, next: u64) -> Result<TxId, PoolError> {
        let id = transaction.id();
        let (sender, nonce) = (transaction.transaction.sender, transaction.transaction.nonce);
        if self.contains(&id) {
            return Err(PoolError::Known { id });
        }
        if nonce < next {
            return Err(PoolError::NonceUsed { next, found: nonce });
        }
        let limit = self.limits.per_sender_max;
        if nonce - next >= limit as u64 {
            return Err(PoolError::NonceTooFar { next, found: nonce, limit });
        }
        if let Some(Account { waiting, .. }) = self.accounts.get(&sender) {
            if let Some(taken) = waiting.get(&nonce) {
                return Err(PoolError::NonceTaken { nonce, waiting: taken.id });
            }
            if waiting.len() >= limit {
                return Err(PoolError::SenderFull { limit });
            }
        }
        self.arrivals += 1;
        let arrival = self.arrivals;
        let waiting = Waiting { transaction, id, bytes, arrival };
        let account = self.accounts.entry(sender).or_default();
        account.hear(next, &mut self.gapped);
        account.insert(sender, nonce, waiting, &mut self.gapped);
        self.ids.insert(id, (sender, nonce));
        self.bytes += bytes;
        // Looked at with it in its place: if it closes a gap, what was behind that is ready with it.
        let is_gapped = self.gapped.by_arrival.contains_key(&arrival);
        if let Err(full) = if is_gapped { self.gapped_fits() } else { self.ready_fits() } {
            self.remove(&sender, nonce);
            return Err(full);
        }
        while self.len() > self.limits.count_max || self.bytes > self.limits.bytes_max {
            let (_, (sender, nonce)) = self.gapped.by_arrival.last_key_value().expect("what is ready fits by itself");
            self.remove(&sender.clone(), *nonce);
        }
        Ok(id)
    }

    /// Whether what is ready fits by itself.
    fn ready_fits(&self) -> Result<(), PoolError> {
        within("transactions", self.ready_len(), self.limits.count_max)?;
        within("bytes", self.bytes - self.gapped.bytes, self.limits.bytes_max)
    }

    /// Whether all fits, and what waits behind gaps into its part.
    fn gapped_fits(&self) -> Result<(), PoolError> {
        let Self { gapped, limits, .. } = self;
        within("transactions behind gaps", gapped.by_arrival.len(), limits.count_max.div_ceil(GAPPED_PART))?;
        within("bytes behind gaps", gapped.bytes, limits.bytes_max.div_ceil(GAPPED_PART))?;
        within("transactions", self.len(), limits.count_max)?;
        within("bytes", self.bytes, limits.bytes_max)
    }

    /// What a block may take: ready transactions by arrival, each account's in the order of its nonces, until one does
    /// not fit. `next` says an account's next nonce. Nothing is removed: that is for [`Mempool::settle`].
    // spec: POOL-3
    pub fn ready<E>(
        &self,
        count_max: usize,
        bytes_max: usize,
        mut next: impl FnMut(&PublicKey) -> Result<u64, E>,
    ) -> Result<Vec<SignedTransaction>, E> {
        let mut heads = BinaryHeap::new();
        for (sender, Account { waiting, .. }) in &self.accounts {
            let nonce = next(sender)?;
            if let Some(head) = waiting.get(&nonce) {
                heads.push(Reverse((head.arrival, *sender, nonce)));
            }
        }
        let (mut taken, mut bytes) = (Vec::new(), 0usize);
        while let Some(Reverse((_, sender, nonce))) = heads.pop() {
            let waiting = &self.accounts[&sender].waiting;
            let head = &waiting[&nonce];
            if taken.len() >= count_max || bytes.saturating_add(head.bytes) > bytes_max {
                break;
            }
            bytes += head.bytes;
            taken.push(head.transaction.clone());
            if let Some((after, follower)) = nonce.checked_add(1).and_then(|after| Some((after, waiting.get(&after)?)))
            {
                heads.push(Reverse((follower.arrival, sender, after)));
            }
        }
        Ok(taken)
    }

    /// Removes what a committed block has made stale: of the `touched` accounts all below their next nonce, and
    /// everything that expires before `height`, the next block's.
    // spec: POOL-4
    pub fn settle(&mut self, touched: impl IntoIterator<Item = (PublicKey, u64)>, height: Height) {
        let mut stale = BTreeSet::new();
        for (sender, next) in touched {
            let Some(account) = self.accounts.get_mut(&sender) else { continue };
            account.hear(next, &mut self.gapped);
            stale.extend(account.waiting.range(..next).map(|(nonce, _)| (sender, *nonce)));
        }
        for (sender, Account { waiting, .. }) in &self.accounts {
            let expired = waiting.iter().filter(|(_, w)| w.transaction.transaction.expiry_height < height);
            stale.extend(expired.map(|(nonce, _)| (*sender, *nonce)));
        }
        for (sender, nonce) in stale {
            self.remove(&sender, nonce);
        }
    }

    /// Removes what does not fit any more, of which `fits` is told with its bytes: when the chain's limits changed.
    // spec: POOL-4
    pub fn keep(&mut self, fits: impl Fn(&SignedTransaction, usize) -> bool) {
        let mut gone = Vec::new();
        for (sender, Account { waiting, .. }) in &self.accounts {
            let unfit = waiting.iter().filter(|(_, waiting)| !fits(&waiting.transaction, waiting.bytes));
            gone.extend(unfit.map(|(nonce, _)| (*sender, *nonce)));
        }
        for (sender, nonce) in gone {
            self.remove(&sender, nonce);
        }
    }

    /// Removes a transaction that turned out not to belong in a block.
    pub fn forget(&mut self, id: &TxId) {
        if let Some((sender, nonce)) = self.ids.get(id).copied() {
            self.remove(&sender, nonce);
        }
    }

    /// Forgets everything, as after a rollback.
    pub fn clear(&mut self) {
        *self = Self { limits: self.limits, arrivals: self.arrivals, ..Self::default() };
    }

    fn remove(&mut self, sender: &PublicKey, nonce: u64) {
        let Some(account) = self.accounts.get_mut(sender) else { return };
        if let Some(gone) = account.remove(*sender, nonce, &mut self.gapped) {
            self.ids.remove(&gone.id);
            self.bytes -= gone.bytes;
        }
        if account.waiting.is_empty() {
            self.accounts.remove(sender);
        }
    }
}

fn within(what: &'static str, found: usize, limit: usize) -> Result<(), PoolError> {
    if found > limit { Err(PoolError::Full { what, found, limit }) } else { Ok(()) }
}
