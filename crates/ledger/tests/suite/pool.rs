//! The pool of waiting transactions, against a model that knows no better than a list.

use crate::tools::*;
use keelstone_codec::{Encode, Height, Text};
use keelstone_ledger::modules::memes;
use keelstone_ledger::{Mempool, PoolError, PoolLimits, PublicKey, SignedTransaction, Transaction};
use proptest::prelude::*;
use std::collections::BTreeMap;

const LIMITS: PoolLimits = PoolLimits { count_max: 12, bytes_max: 3_000, per_sender_max: 5 };

fn waiting(person: u8, nonce: u64, expiry: u64, text: &str) -> SignedTransaction {
    let post = op(&memes::Post { text: Text::new(text).unwrap() });
    Transaction { expiry_height: Height(expiry), ..unsigned(person, nonce, vec![post]) }.sign(&key(person))
}

/// What waits, in the order of arrival, and each account's next nonce.
#[derive(Default)]
struct Model {
    list: Vec<SignedTransaction>,
    next: BTreeMap<PublicKey, u64>,
}

impl Model {
    fn next(&self, sender: &PublicKey) -> u64 {
        self.next.get(sender).copied().unwrap_or(0)
    }

    /// Whether a nonce is missing before this one.
    fn is_gapped(&self, of: &SignedTransaction) -> bool {
        let (sender, nonce) = (of.transaction.sender, of.transaction.nonce);
        let waits = |nonce| self.list.iter().any(|t| (t.transaction.sender, t.transaction.nonce) == (sender, nonce));
        !(self.next(&sender)..nonce).all(waits)
    }

    /// How many there are, and their bytes: of all, or of those behind gaps, or of the others.
    fn size(&self, gapped: Option<bool>) -> (usize, usize) {
        let counted = self.list.iter().filter(|t| gapped.is_none_or(|gapped| gapped == self.is_gapped(t)));
        counted.fold((0, 0), |(count, bytes), t| (count + 1, bytes + t.to_bytes().len()))
    }

    /// Takes one in, and whatever has to go for it out; or says that it does not.
    fn takes(&mut self, new: &SignedTransaction) -> bool {
        let of_sender = self.list.iter().filter(|t| t.transaction.sender == new.transaction.sender);
        let (nonce, next) = (new.transaction.nonce, self.next(&new.transaction.sender));
        let may_wait = (next..next + LIMITS.per_sender_max as u64).contains(&nonce)
            && of_sender.clone().count() < LIMITS.per_sender_max
            && of_sender.clone().all(|t| t.transaction.nonce != nonce);
        if !may_wait {
            return false;
        }
        let is_within = |(count, bytes): (usize, usize), part: usize| {
            count <= LIMITS.count_max.div_ceil(part) && bytes <= LIMITS.bytes_max.div_ceil(part)
        };
        self.list.push(new.clone());
        let fits = match self.is_gapped(new) {
            true => is_within(self.size(Some(true)), 4) && is_within(self.size(None), 1),
            false => is_within(self.size(Some(false)), 1),
        };
        if !fits {
            self.list.pop();
            return false;
        }
        while !is_within(self.size(None), 1) {
            let youngest = self.list.iter().rposition(|t| self.is_gapped(t)).unwrap();
            self.list.remove(youngest);
        }
        true
    }

    /// The first that is ready, again and again, until one does not fit.
    fn ready(&self, count_max: usize, bytes_max: usize) -> Vec<SignedTransaction> {
        let (mut next, mut taken, mut bytes) = (self.next.clone(), Vec::new(), 0);
        loop {
            let ready =
                |t: &&SignedTransaction| t.transaction.nonce == next.get(&t.transaction.sender).copied().unwrap_or(0);
            let Some(first) = self.list.iter().find(ready) else { return taken };
            bytes += first.to_bytes().len();
            if taken.len() == count_max || bytes > bytes_max {
                return taken;
            }
            next.insert(first.transaction.sender, first.transaction.nonce + 1);
            taken.push(first.clone());
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u8, u64, u64, usize),
    Block(usize, usize, u64),
    Forget(usize),
    Clear,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (1u8..5, 0u64..9, 0u64..20, 0usize..200).prop_map(|(p, n, e, t)| Step::Insert(p, n, e, t)),
        3 => (0usize..6, 0usize..2_000, 0u64..12).prop_map(|(c, b, h)| Step::Block(c, b, h)),
        1 => (0usize..12).prop_map(Step::Forget),
        1 => Just(Step::Clear),
    ]
}

proptest! {
    /// spec: POOL-1, POOL-2, POOL-3, POOL-4, POOL-5. Whatever arrives and whatever blocks take, the pool holds what
    /// the list holds and gives what the list gives.
    #[test]
    fn pool_does_what_a_list_does(steps in prop::collection::vec(step(), 1..80)) {
        let (mut pool, mut model) = (Mempool::new(LIMITS), Model::default());
        for step in steps {
            match step {
                Step::Insert(person, nonce, expiry, len) => {
                    let new = waiting(person, nonce, expiry, &"x".repeat(len + 1));
                    let takes = model.takes(&new);
                    let next = model.next(&new.transaction.sender);
                    let found = pool.insert(new.clone(), new.to_bytes().len(), next);
                    prop_assert_eq!(found.is_ok(), takes, "{:?}", found);
                }
                Step::Forget(at) if !model.list.is_empty() => {
                    let gone = model.list.remove(at % model.list.len());
                    pool.forget(&gone.id());
                }
                Step::Forget(_) => {}
                Step::Block(count, bytes, height) => {
                    let taken = pool.ready::<()>(count, bytes, |sender| Ok(model.next(sender))).unwrap();
                    prop_assert_eq!(&taken, &model.ready(count, bytes));
                    for transaction in &taken {
                        model.next.insert(transaction.transaction.sender, transaction.transaction.nonce + 1);
                    }
                    pool.settle(model.next.clone(), Height(height));
                    let next = model.next.clone();
                    model.list.retain(|t| {
                        let next = next.get(&t.transaction.sender).copied().unwrap_or(0);
                        t.transaction.nonce >= next && t.transaction.expiry_height >= Height(height)
                    });
                }
                Step::Clear => {
                    pool.clear();
                    model.list.clear();
                }
            }
            prop_assert_eq!(pool.len(), model.list.len());
            prop_assert_eq!(pool.bytes(), model.list.iter().map(|t| t.to_bytes().len()).sum::<usize>());
            prop_assert!(model.list.iter().all(|t| pool.find(&t.id()) == Some(t)));
        }
    }
}

#[test]
fn gaps_wait_until_they_are_filled() {
    let mut pool = Mempool::new(LIMITS);
    let sender = key(1).public();
    for nonce in [2, 1, 4] {
        pool.insert(waiting(1, nonce, 9, "x"), 200, 0).unwrap();
    }
    let ready = |pool: &Mempool| {
        let taken = pool.ready::<()>(9, 9_999, |_| Ok(0)).unwrap();
        taken.iter().map(|t| t.transaction.nonce).collect::<Vec<_>>()
    };
    assert_eq!((ready(&pool), pool.next_nonce(&sender, 0)), (vec![], 0));
    pool.insert(waiting(1, 0, 9, "x"), 200, 0).unwrap();
    assert_eq!((ready(&pool), pool.next_nonce(&sender, 0)), (vec![0, 1, 2], 3));
    let found = pool.insert(waiting(1, 1, 9, "another"), 200, 0);
    assert!(matches!(found, Err(PoolError::NonceTaken { nonce: 1, .. })));
    let found = pool.insert(waiting(1, 1, 9, "x"), 200, 0);
    assert!(matches!(found, Err(PoolError::Known { .. })));
}

/// spec: POOL-1. However many accounts leave gaps, they fill a quarter of the pool, in number and in bytes; and what is ready
/// is let in beside them, and in the end in their place.
#[test]
fn what_waits_behind_gaps_keeps_nothing_ready_out() {
    for (count_max, bytes_max) in [(40, 1 << 20), (1_000, 40 * 300)] {
        let limits = PoolLimits { count_max, bytes_max, per_sender_max: 256 };
        let mut pool = Mempool::new(limits);
        let quarter = |pool: &Mempool| (pool.len() * 4 <= count_max) && (pool.bytes() * 4 <= bytes_max);
        for person in 1..=40 {
            for nonce in 1..=5 {
                let found = pool.insert(waiting(person, nonce, 9, "x"), 300, 0);
                let full = matches!(found, Err(PoolError::Full { what, .. }) if what.ends_with("behind gaps"));
                assert_eq!(found.is_err(), full, "{found:?}");
                assert!(quarter(&pool));
            }
        }
        assert_eq!(pool.len(), 10);
        for person in 41..=80 {
            pool.insert(waiting(person, 0, 9, "ready"), 300, 0).unwrap();
            assert!(pool.len() <= count_max && pool.bytes() <= bytes_max);
        }
        let ready = pool.ready::<()>(99, usize::MAX, |_| Ok(0)).unwrap();
        assert_eq!((ready.len(), pool.len(), pool.bytes()), (40, 40, 40 * 300));
        // Nothing that is ready makes room, and the refused leave no trace.
        for refused in [waiting(90, 0, 9, "ready"), waiting(41, 1, 9, "ready"), waiting(1, 1, 9, "x")] {
            assert!(matches!(pool.insert(refused, 300, 0), Err(PoolError::Full { .. })));
        }
        assert_eq!(pool.ready::<()>(99, usize::MAX, |_| Ok(0)).unwrap(), ready);
    }
}

/// spec: POOL-1. What a gap was in front of is ready once it is closed, keeps its place against what is ready, and makes room
/// again when it waits behind a gap once more.
#[test]
fn what_a_gap_was_in_front_of_is_ready_when_it_is_closed() {
    let mut pool = Mempool::new(PoolLimits { count_max: 8, bytes_max: 1 << 20, per_sender_max: 256 });
    for nonce in [1, 2] {
        pool.insert(waiting(1, nonce, 9, "x"), 300, 0).unwrap();
    }
    let first = pool.insert(waiting(1, 0, 9, "x"), 300, 0).unwrap();
    pool.insert(waiting(2, 1, 9, "x"), 300, 0).unwrap();
    for person in 3..=6 {
        pool.insert(waiting(person, 0, 9, "x"), 300, 0).unwrap();
    }
    assert_eq!(pool.len(), 8);
    pool.insert(waiting(7, 0, 9, "x"), 300, 0).unwrap();
    assert!(!pool.contains(&waiting(2, 1, 9, "x").id()), "the only one behind a gap");
    let full = |found| matches!(found, Err(PoolError::Full { what: "transactions", found: 9, limit: 8 }));
    assert!(full(pool.insert(waiting(8, 0, 9, "x"), 300, 0)));
    pool.forget(&first);
    for person in 8..=10 {
        pool.insert(waiting(person, 0, 9, "x"), 300, 0).unwrap();
    }
    assert!(full(pool.insert(waiting(11, 0, 9, "x"), 300, 0)));
    let ready = pool.ready::<()>(99, usize::MAX, |_| Ok(0)).unwrap();
    assert_eq!((ready.len(), pool.len(), pool.bytes()), (8, 8, 8 * 300));
}
