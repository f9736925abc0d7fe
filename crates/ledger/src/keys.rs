//! Ed25519 keys and signatures under the rules of ZIP-215.
//!
//! Every verifier must come to the same verdict on every signature, or a chain splits. Plain Ed25519 does not promise
//! that: implementations differ on non-canonical points, and single and batch verification differ on points with a
//! small-order part. ZIP-215 settles both, so verdicts agree between nodes, between single and batch verification,
//! and with CometBFT. One thing it permits is refused on top: a key of small order, for which anyone can write a
//! signature of anything.
//!
//! Secrets are wiped when dropped and never printed. Key files belong to the node.
//!
//! Rules: `spec/ledger.md`, TX-3 and TX-4. Vectors: `spec/vectors/ledger.json`.

use curve25519_dalek::edwards::CompressedEdwardsY;
use ed25519_zebra::{SigningKey, VerificationKey, VerificationKeyBytes, batch};
use keelstone_codec::{Decode, DecodeError, Describe, Encode, Hash, Reader, Shape, Tag};
use keelstone_execution::PublicKey;
use rand_core::{TryCryptoRng, TryRng};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::convert::Infallible;
use std::fmt;
use zeroize::Zeroizing;

/// The bytes that are signed of a value: `keelstone/` and the tag, a zero byte, and the encoding. Their hash is the value's
/// tagged one.
pub(crate) fn sign_bytes(tag: Tag, value: &impl Encode) -> Vec<u8> {
    let mut bytes = [b"keelstone/", tag.name().as_bytes(), &[0]].concat();
    value.encode(&mut bytes);
    bytes
}

/// An Ed25519 signature. Any 64 bytes, until verified.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 64]);

/// A secret key. Wiped when dropped; `Debug` shows its public half only.
pub struct SecretKey(SigningKey);

/// Why bytes cannot be somebody's key. Whoever offers it has to act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The bytes are no point of the curve.
    #[error("{key} is not an Ed25519 public key")]
    NotAPoint {
        /// The key.
        key: PublicKey,
    },
    /// The key has small order: anyone could sign for it.
    #[error("{key} is a key of small order, for which anyone can sign")]
    SmallOrder {
        /// The key.
        key: PublicKey,
    },
}

/// Why a signature is refused. The sender has to act, or whoever passed it on has changed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// The key could sign nothing.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The signature is not one of this key over these bytes.
    #[error("the signature is not by {key} over these bytes")]
    Wrong {
        /// The key it should be by.
        key: PublicKey,
    },
}

impl SecretKey {
    /// A fresh key from the system's randomness.
    ///
    /// # Errors
    /// [`getrandom::Error`] if the system has none to give.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut())?;
        Ok(Self::from_seed(&seed))
    }

    /// The key that RFC 8032 derives from a seed.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The seed, to be written to a key file and nowhere else.
    #[must_use]
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(Hash(VerificationKeyBytes::from(&self.0).into()))
    }

    /// Signs bytes that begin with a domain of their own (spec: TX-3).
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Signature {
        Signature(self.0.sign(message).to_bytes())
    }
}
impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.public())
    }
}

/// Says whether a key may act at all: a point of the curve, and not one of small order.
///
/// # Errors
/// [`KeyError`].
// spec: TX-4
pub fn check_key(key: &PublicKey) -> Result<(), KeyError> {
    point(key).map(|_| ())
}

/// Verifies a signature over `message`.
///
/// # Errors
/// [`SignatureError`]; the same verdict as [`verify_batch`] would give.
// spec: TX-4
pub fn verify(key: &PublicKey, message: &[u8], signature: &Signature) -> Result<(), SignatureError> {
    point(key)?
        .verify(&ed25519_zebra::Signature::from_bytes(&signature.0), message)
        .map_err(|_| SignatureError::Wrong { key: *key })
}

fn point(key: &PublicKey) -> Result<VerificationKey, KeyError> {
    let point = CompressedEdwardsY(*key.as_bytes()).decompress().ok_or(KeyError::NotAPoint { key: *key })?;
    if point.is_small_order() {
        return Err(KeyError::SmallOrder { key: *key });
    }
    VerificationKey::try_from(*key.as_bytes()).map_err(|_| KeyError::NotAPoint { key: *key })
}

/// Verifies many signatures at once, at about half the cost of one by one, with the same verdict.
///
/// # Errors
/// The index of the first that is wrong, and what is wrong with it.
pub fn verify_batch(items: &[(PublicKey, &[u8], Signature)]) -> Result<(), (usize, SignatureError)> {
    // What a batch costs whatever is in it, an empty block need not pay.
    if items.is_empty() {
        return Ok(());
    }
    let mut transcript = blake3::Hasher::new();
    let mut verifier = batch::Verifier::new();
    for (index, (key, message, signature)) in items.iter().enumerate() {
        check_key(key).map_err(|error| (index, error.into()))?;
        transcript
            .update(key.as_bytes())
            .update(&signature.0)
            .update(&(message.len() as u64).to_le_bytes())
            .update(message);
        verifier.queue(((*key.as_bytes()).into(), ed25519_zebra::Signature::from_bytes(&signature.0), message));
    }
    if verifier.verify(Transcript(transcript.finalize_xof())).is_ok() {
        return Ok(());
    }
    // A batch that fails does not say where: find the first, which is also the verdict.
    for (index, (key, message, signature)) in items.iter().enumerate() {
        verify(key, message, signature).map_err(|error| (index, error))?;
    }
    Ok(())
}

/// The weights of a batch, drawn from a hash over all of it: whoever makes the signatures cannot choose them after
/// knowing the weights, and no randomness of this machine is needed.
struct Transcript(blake3::OutputReader);

impl TryRng for Transcript {
    type Error = Infallible;
    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.0.fill(&mut bytes);
        Ok(u32::from_le_bytes(bytes))
    }
    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        Ok(u64::from_le_bytes(bytes))
    }
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        self.0.fill(out);
        Ok(())
    }
}
impl TryCryptoRng for Transcript {}

impl Signature {
    /// Reads 128 hexadecimal digits.
    ///
    /// # Errors
    /// [`DecodeError::Invalid`].
    pub fn from_hex(text: &str) -> Result<Self, DecodeError> {
        let mut bytes = [0; 64];
        let invalid = DecodeError::Invalid { what: "signature, which is 128 hexadecimal digits" };
        hex::decode_to_slice(text, &mut bytes).map_err(|_| invalid)?;
        Ok(Self(bytes))
    }
}
impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}
impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({self})")
    }
}
impl Serialize for Signature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::from_hex(&text).map_err(D::Error::custom)
    }
}
impl Encode for Signature {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0);
    }
}
impl Decode for Signature {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self(input.array()?))
    }
}
impl Describe for Signature {
    fn shape() -> Shape {
        Shape::Array(64)
    }
}
