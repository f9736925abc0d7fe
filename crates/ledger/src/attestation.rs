//! What a chain without another engine certifies its versions with: a producer's signature.
//!
//! It says that a height of this chain had this root, and when that was said. Whoever joins trusts the producers that the
//! genesis names, or keys of its own choice, and believes nobody else. When it was said is what tells an old truth from
//! a new one: a chain on which nothing happens has an old last block and a fresh attestation.
//!
//! Rules: `spec/snapshot.md`, SNAP-12.

use crate::keys::{self, SecretKey, Signature, SignatureError, verify};
use keelstone_codec::{ChainId, Hash, Height, Root, Tag, Timestamp};
use keelstone_execution::PublicKey;
use keelstone_macros::{Decode, Encode};

const ATTESTATION: Tag = Tag::new("attestation");

/// What is said of a version.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub struct Attestation {
    /// The chain.
    pub chain_id: ChainId,
    /// The hash of its genesis.
    pub genesis_hash: Hash,
    /// The height.
    pub height: Height,
    /// The root of the state there.
    pub root: Root,
    /// When this was said, by the signer's clock.
    pub said_at: Timestamp,
}

/// An attestation with the signature of whoever says so. Made from strangers' bytes, it is a claim until it is verified.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub struct SignedAttestation {
    /// What is said.
    pub attestation: Attestation,
    /// Who says so.
    pub signer: PublicKey,
    /// The signature over [`Attestation::sign_bytes`].
    pub signature: Signature,
}

impl Attestation {
    /// The bytes that are signed: `keelstone/attestation`, a zero byte, and the encoding.
    // spec: SNAP-12
    #[must_use]
    pub fn sign_bytes(&self) -> Vec<u8> {
        keys::sign_bytes(ATTESTATION, self)
    }

    /// Signs it.
    #[must_use]
    pub fn sign(self, key: &SecretKey) -> SignedAttestation {
        let signature = key.sign(&self.sign_bytes());
        SignedAttestation { attestation: self, signer: key.public(), signature }
    }
}

impl SignedAttestation {
    /// Verifies the signature. Whether the signer is one to believe is the reader's to know.
    ///
    /// # Errors
    /// [`SignatureError`].
    pub fn verify(&self) -> Result<(), SignatureError> {
        verify(&self.signer, &self.attestation.sign_bytes(), &self.signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelstone_codec::{Decode as _, Encode as _};

    fn attestation() -> Attestation {
        Attestation {
            chain_id: ChainId::new("test-1").expect("a name"),
            genesis_hash: Hash([1; 32]),
            height: Height(7),
            root: Root(Hash([2; 32])),
            said_at: Timestamp(3),
        }
    }

    /// spec: SNAP-12. The signature is over all of it, and over nothing else that is signed.
    #[test]
    fn an_attestation_is_believed_as_it_was_signed_or_not_at_all() {
        let key = SecretKey::from_seed(&[9; 32]);
        let signed = attestation().sign(&key);
        assert_eq!(signed.verify(), Ok(()));
        assert_eq!(SignedAttestation::from_bytes(&signed.to_bytes()), Ok(signed.clone()));
        assert!(attestation().sign_bytes().starts_with(b"keelstone/attestation\0"));
        for byte in 0..signed.to_bytes().len() {
            let mut bytes = signed.to_bytes();
            bytes[byte] ^= 1;
            let other = SignedAttestation::from_bytes(&bytes);
            assert!(other.is_err() || other.is_ok_and(|other| other.verify().is_err()), "byte {byte}");
        }
    }
}
