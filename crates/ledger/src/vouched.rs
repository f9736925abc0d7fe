//! Signatures that were found good already: a transaction is verified when it is submitted and not again in its block. And
//! whose they were: the points of keys that have signed, so that they need not be computed again.
//!
//! What is remembered of a transaction is its identity, which is the hash of all that was signed and of who signed it, with
//! the one signature that was verified over it. So the verdict is the one that verifying again would come to; another
//! signature over the same transaction is verified for itself. The numbers are bounded, and what was forgotten costs time
//! alone.

use crate::keys::{Point, Signature};
use crate::transaction::{SignedTransaction, TxId};
use keelstone_execution::PublicKey;
use std::collections::{BTreeMap, VecDeque};

/// As many as a pool holds by default, each of some 200 bytes here.
const REMEMBERED_MAX: usize = 10_000;

#[derive(Debug, Default)]
pub(crate) struct Vouched {
    good: Recent<TxId, Signature>,
    points: Recent<PublicKey, Point>,
}

impl Vouched {
    /// Whether this signature over this transaction was found good.
    pub(crate) fn is_good(&self, id: &TxId, signature: &Signature) -> bool {
        self.good.found.get(id) == Some(signature)
    }

    /// The point of a key that has signed something.
    pub(crate) fn point(&self, key: &PublicKey) -> Option<Point> {
        self.points.found.get(key).copied()
    }

    /// The signature of the transaction of this identity was verified by this point.
    pub(crate) fn remember(&mut self, id: TxId, signed: &SignedTransaction, point: Point) {
        self.good.put(id, signed.signature);
        self.points.put(signed.transaction.sender, point);
    }
}

/// What was put in last, no more than [`REMEMBERED_MAX`].
#[derive(Debug)]
struct Recent<K, V> {
    found: BTreeMap<K, V>,
    /// The oldest first.
    order: VecDeque<K>,
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Self { found: BTreeMap::new(), order: VecDeque::new() }
    }
}

impl<K: Ord + Copy, V> Recent<K, V> {
    fn put(&mut self, key: K, value: V) {
        if self.found.insert(key, value).is_none() {
            self.order.push_back(key);
        }
        if self.order.len() > REMEMBERED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.found.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SecretKey, Transaction};
    use keelstone_codec::{ChainId, Hash, Height};
    use keelstone_execution::{Bundle, FunctionHash, Operation};

    #[test]
    fn one_signature_is_good_and_no_other_is() {
        let key = SecretKey::from_seed(&[1; 32]);
        let operation = Operation {
            function: FunctionHash(Hash::ZERO),
            args: Default::default(),
            expected_diff: None,
            expected_own_diff: None,
        };
        let transaction = Transaction {
            chain_id: ChainId::new("test-1").expect("a chain id"),
            sender: key.public(),
            nonce: 0,
            expiry_height: Height(9),
            session: None,
            bundle: Bundle::one(operation),
        };
        let signed = transaction.clone().sign(&key);
        let other = SignedTransaction { signature: Signature([2; 64]), ..signed.clone() };
        let (id, mut vouched) = (signed.id(), Vouched::default());
        assert!(vouched.point(&key.public()).is_none());
        let point = Point::of(&key.public()).expect("a key");
        vouched.remember(id, &signed, point);
        assert!(vouched.is_good(&id, &signed.signature));
        assert!(!vouched.is_good(&id, &other.signature));
        assert!(!vouched.is_good(&TxId(Hash::ZERO), &signed.signature));
        vouched.remember(id, &other, point);
        assert!(vouched.is_good(&id, &other.signature) && !vouched.is_good(&id, &signed.signature));

        let found = vouched.point(&key.public()).expect("it has signed");
        assert_eq!(signed.verify_by(&found), signed.verify());
        assert_eq!(other.verify_by(&found), other.verify());
        assert!(signed.verify().is_ok() && other.verify().is_err());
        assert!(vouched.point(&SecretKey::from_seed(&[2; 32]).public()).is_none());
    }

    #[test]
    fn the_oldest_are_forgotten_first() {
        let mut recent = Recent::default();
        for number in 0..REMEMBERED_MAX + 3 {
            recent.put(number, ());
        }
        assert_eq!((recent.found.len(), recent.order.len()), (REMEMBERED_MAX, REMEMBERED_MAX));
        for number in 0..6 {
            assert_eq!(recent.found.contains_key(&number), number >= 3, "{number}");
        }
    }
}
