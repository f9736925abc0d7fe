//! Signed transactions: who asks for which bundle, on which chain, once.
//!
//! A transaction is bound to its chain by name, to its place in its account's order by a nonce, and to a time by the
//! last height at which it may enter a block. The account signs all of it. What a stranger's bytes can say is checked
//! here as far as that needs no state.
//!
//! Layout and rules: `spec/ledger.md`, TX-1 to TX-5. Vectors: `spec/vectors/ledger.json`.

use crate::keys::{self, Point, SecretKey, Signature, SignatureError};
use keelstone_codec::{ChainId, Hash, Height, Tag, TaggedHasher};
use keelstone_execution::{Bundle, PublicKey, SessionId};
use keelstone_macros::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::fmt;

const TRANSACTION: Tag = Tag::new("transaction");

/// What an account asks for.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub struct Transaction {
    /// The network it is for.
    pub chain_id: ChainId,
    /// The account, by its key.
    pub sender: PublicKey,
    /// How many transactions of the account came before it.
    pub nonce: u64,
    /// The last height at which it may enter a block.
    pub expiry_height: Height,
    /// The session it runs in; none for the account's own.
    pub session: Option<SessionId>,
    /// What it does.
    pub bundle: Bundle,
}

/// A transaction with its account's signature.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub struct SignedTransaction {
    /// What was signed.
    pub transaction: Transaction,
    /// The signature over [`Transaction::sign_bytes`].
    pub signature: Signature,
}

/// The identity of a transaction: the hash of exactly the bytes that were signed, so the signature does not change it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TxId(pub keelstone_codec::Hash);

impl TxId {
    /// Reads 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`keelstone_codec::DecodeError`].
    pub fn from_hex(text: &str) -> Result<Self, keelstone_codec::DecodeError> {
        Hash::from_hex(text).map(Self)
    }
}
impl fmt::Display for TxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
impl fmt::Debug for TxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TxId({})", self.0)
    }
}

impl Transaction {
    /// The bytes that are signed: `keelstone/transaction`, a zero byte, and the encoding.
    // spec: TX-3
    #[must_use]
    pub fn sign_bytes(&self) -> Vec<u8> {
        keys::sign_bytes(TRANSACTION, self)
    }

    /// The identity: the tagged hash of the transaction, which is the hash of its [`Transaction::sign_bytes`].
    // spec: TX-2
    #[must_use]
    pub fn id(&self) -> TxId {
        TxId(TaggedHasher::new(TRANSACTION).value(self).finish())
    }

    /// Signs the transaction with its sender's key.
    ///
    /// # Panics
    /// If the key is not the sender's: a signature that no node would take helps nobody.
    #[must_use]
    pub fn sign(self, key: &SecretKey) -> SignedTransaction {
        assert_eq!(self.sender, key.public(), "a transaction is signed by its sender");
        let signature = key.sign(&self.sign_bytes());
        SignedTransaction { transaction: self, signature }
    }
}

impl SignedTransaction {
    /// The identity, which does not depend on the signature.
    #[must_use]
    pub fn id(&self) -> TxId {
        self.transaction.id()
    }

    /// Verifies the signature.
    ///
    /// # Errors
    /// [`SignatureError`].
    pub fn verify(&self) -> Result<(), SignatureError> {
        keys::verify(&self.transaction.sender, &self.transaction.sign_bytes(), &self.signature)
    }

    /// As [`Self::verify`], by the sender's point.
    pub(crate) fn verify_by(&self, sender: &Point) -> Result<(), SignatureError> {
        sender.verify(&self.transaction.sign_bytes(), &self.signature)
    }

    /// The hash under which the transaction stands in its block's list, signature included.
    // spec: BLOCK-3
    #[must_use]
    pub fn list_hash(&self) -> Hash {
        const LISTED: Tag = Tag::new("transaction-signed");
        TaggedHasher::new(LISTED).value(self).finish()
    }
}
