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

    fn takes(&self, new: &SignedTransaction) -> bool {
        let of_sender = self.list.iter().filter(|t| t.transaction.sender == new.transaction.sender);
        let (nonce, next) = (new.transaction.nonce, self.next(&new.transaction.sender));
        let bytes: usize = self.list.iter().chain([new]).map(|t| t.to_bytes().len()).sum();
        (next..next + LIMITS.per_sender_max as u64).contains(&nonce)
            && of_sender.clone().count() < LIMITS.per_sender_max
            && of_sender.clone().all(|t| t.transaction.nonce != nonce)
            && self.list.len() < LIMITS.count_max
            && bytes <= LIMITS.bytes_max
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
    Clear,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (1u8..5, 0u64..9, 0u64..20, 0usize..200).prop_map(|(p, n, e, t)| Step::Insert(p, n, e, t)),
        3 => (0usize..6, 0usize..2_000, 0u64..12).prop_map(|(c, b, h)| Step::Block(c, b, h)),
        1 => Just(Step::Clear),
    ]
}

proptest! {
    /// spec: POOL-1, POOL-2, POOL-3, POOL-4, POOL-5. Whatever arrives and whatever blocks take, the pool holds what
    /// the list holds and gives what the list gives.
    #[test]
    fn pool_does_what_a_list_does(steps in prop::collection::vec(step(), 1..60)) {
        let (mut pool, mut model) = (Mempool::new(LIMITS), Model::default());
        for step in steps {
            match step {
                Step::Insert(person, nonce, expiry, len) => {
                    let new = waiting(person, nonce, expiry, &"x".repeat(len + 1));
                    let takes = model.takes(&new);
                    let next = model.next(&new.transaction.sender);
                    let found = pool.insert(new.clone(), new.to_bytes().len(), next);
                    prop_assert_eq!(found.is_ok(), takes, "{:?}", found);
                    if takes {
                        model.list.push(new);
                    }
                }
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
