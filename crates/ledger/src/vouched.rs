//! Signatures that were found good already: a transaction is verified when it is submitted and not again in its block.
//!
//! What is remembered is the identity, which is the hash of all that was signed and of who signed it, with the one
//! signature that was verified over it. So the verdict is the one that verifying again would come to; another signature
//! over the same transaction is verified for itself. The number is bounded, and what was forgotten costs time alone.

use crate::keys::Signature;
use crate::transaction::TxId;
use std::collections::{BTreeMap, VecDeque};

/// As many as a pool holds by default, each of about 200 bytes here.
const VOUCHED_MAX: usize = 10_000;

#[derive(Debug, Default)]
pub(crate) struct Vouched {
    good: BTreeMap<TxId, Signature>,
    /// The oldest first.
    order: VecDeque<TxId>,
}

impl Vouched {
    /// Whether this signature over this transaction was found good.
    pub(crate) fn is_good(&self, id: &TxId, signature: &Signature) -> bool {
        self.good.get(id) == Some(signature)
    }

    /// A signature was verified.
    pub(crate) fn remember(&mut self, id: TxId, signature: Signature) {
        if self.good.insert(id, signature).is_none() {
            self.order.push_back(id);
        }
        if self.order.len() > VOUCHED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.good.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelstone_codec::Hash;

    fn id(number: usize) -> TxId {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&(number as u64).to_be_bytes());
        TxId(Hash(hash))
    }

    #[test]
    fn one_signature_is_good_and_no_other_is() {
        let mut vouched = Vouched::default();
        vouched.remember(id(1), Signature([1; 64]));
        assert!(vouched.is_good(&id(1), &Signature([1; 64])));
        assert!(!vouched.is_good(&id(1), &Signature([2; 64])));
        assert!(!vouched.is_good(&id(2), &Signature([1; 64])));
        vouched.remember(id(1), Signature([2; 64]));
        assert!(vouched.is_good(&id(1), &Signature([2; 64])) && !vouched.is_good(&id(1), &Signature([1; 64])));
    }

    #[test]
    fn the_oldest_are_forgotten_first() {
        let mut vouched = Vouched::default();
        for number in 0..VOUCHED_MAX + 3 {
            vouched.remember(id(number), Signature([1; 64]));
        }
        assert_eq!((vouched.good.len(), vouched.order.len()), (VOUCHED_MAX, VOUCHED_MAX));
        for number in 0..6 {
            assert_eq!(vouched.is_good(&id(number), &Signature([1; 64])), number >= 3, "{number}");
        }
    }
}
