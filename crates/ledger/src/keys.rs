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

use curve25519_dalek::constants::EIGHT_TORSION;
use ed25519_zebra::{SigningKey, VerificationKey, VerificationKeyBytes, batch};
use keelstone_codec::{Decode, DecodeError, Describe, Encode, Hash, Reader, Shape, Tag};
use keelstone_execution::PublicKey;
use rand_core::{TryCryptoRng, TryRng};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt;
use std::sync::LazyLock;
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
    Point::of(key).map(|_| ())
}

/// Whether anyone can sign for a key. Points of small order are few, so their bytes are known, and no point is computed
/// for it, which would take as long as a fifth of verifying a signature.
fn is_small_order(key: &PublicKey) -> bool {
    /// All that decode to one (spec: TX-4), but for the bit that says the sign.
    static SMALL: LazyLock<BTreeSet<[u8; 32]>> = LazyLock::new(|| {
        let torsion = EIGHT_TORSION.map(|point| unsigned(point.compress().to_bytes()));
        // Two of them are small enough for their sum with 2^255 - 19 to be written as well.
        let above = [0, 1].map(|y| {
            let mut sum = [0xff; 32];
            (sum[0], sum[31]) = (0xed + y, 0x7f);
            sum
        });
        torsion.into_iter().chain(above).collect()
    });
    SMALL.contains(&unsigned(*key.as_bytes()))
}

fn unsigned(mut bytes: [u8; 32]) -> [u8; 32] {
    bytes[31] &= 0x7f;
    bytes
}

/// Verifies a signature over `message`.
///
/// # Errors
/// [`SignatureError`]; the same verdict as [`verify_batch`] would give.
// spec: TX-4
pub fn verify(key: &PublicKey, message: &[u8], signature: &Signature) -> Result<(), SignatureError> {
    Point::of(key)?.verify(message, signature)
}

/// A key that may sign, and its point: finding that takes as long as a fifth of verifying a signature.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Point {
    key: PublicKey,
    point: VerificationKey,
}

impl Point {
    /// # Errors
    /// As [`check_key`].
    pub(crate) fn of(key: &PublicKey) -> Result<Self, KeyError> {
        if is_small_order(key) {
            return Err(KeyError::SmallOrder { key: *key });
        }
        match VerificationKey::try_from(*key.as_bytes()) {
            Ok(point) => Ok(Self { key: *key, point }),
            Err(_) => Err(KeyError::NotAPoint { key: *key }),
        }
    }

    /// # Errors
    /// As [`verify`].
    pub(crate) fn verify(&self, message: &[u8], signature: &Signature) -> Result<(), SignatureError> {
        let verdict = self.point.verify(&ed25519_zebra::Signature::from_bytes(&signature.0), message);
        verdict.map_err(|_| SignatureError::Wrong { key: self.key })
    }
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
        // One that is no point fails with the batch.
        if is_small_order(key) {
            return Err((index, KeyError::SmallOrder { key: *key }.into()));
        }
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
    /// Reads 128 hexadecimal digits in lower case.
    ///
    /// # Errors
    /// [`DecodeError::Invalid`].
    pub fn from_hex(text: &str) -> Result<Self, DecodeError> {
        let mut bytes = [0; 64];
        let invalid = DecodeError::Invalid { what: "signature, which is 128 lower-case hexadecimal digits" };
        keelstone_codec::unhex_into(text, &mut bytes).map_err(|_| invalid)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use curve25519_dalek::edwards::CompressedEdwardsY;
    use keelstone_codec::splitmix64;

    /// spec: TX-4. The keys that are known by their bytes are those whose point has small order, however it is written.
    #[test]
    fn keys_of_small_order_are_known_by_their_bytes() {
        let by_point = |bytes: [u8; 32]| CompressedEdwardsY(bytes).decompress().map(|point| point.is_small_order());
        let mut small = BTreeSet::new();
        // Every y from 2^255 - 19 on that 255 bits hold, and those it is written anew of.
        let above = (0..19u8).flat_map(|y| {
            let (mut low, mut high) = ([0; 32], [0xff; 32]);
            (low[0], high[0], high[31]) = (y, 0xed + y.min(18), 0x7f);
            [low, high]
        });
        let torsion = EIGHT_TORSION.map(|point| unsigned(point.compress().to_bytes()));
        for y in above.chain(torsion) {
            for sign in [0, 0x80] {
                let mut bytes = y;
                bytes[31] |= sign;
                let found = is_small_order(&PublicKey(Hash(bytes)));
                assert_eq!(found, by_point(bytes) == Some(true), "{}", hex::encode(bytes));
                if found {
                    small.insert(bytes);
                }
            }
        }
        assert_eq!(small.len(), 14, "seven y, two signs");
        let mut state = 1;
        for _ in 0..2_000 {
            let words = [(); 4].map(|()| splitmix64(&mut state).to_le_bytes());
            let bytes: [u8; 32] = words.concat().try_into().expect("four of eight");
            assert_eq!(is_small_order(&PublicKey(Hash(bytes))), by_point(bytes) == Some(true));
        }
    }
}
