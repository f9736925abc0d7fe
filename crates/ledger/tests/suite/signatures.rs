//! One verdict on every signature.

use crate::tools::*;
use keelstone_codec::{Encode, Hash, Height, Timestamp};
use keelstone_ledger::{
    Block, KeyError, PublicKey, Receipt, Refusal, Refused, SecretKey, Signature, SignatureError, SignedTransaction,
    Verdict, check_key, execute, verify, verify_batch,
};
use proptest::prelude::*;
use std::num::NonZeroUsize;

fn hex32(text: &str) -> [u8; 32] {
    hex::decode(text).unwrap().try_into().unwrap()
}

fn public(text: &str) -> PublicKey {
    PublicKey(Hash(hex32(text)))
}

/// The order of the group's large part, little-endian.
const ORDER: &str = "edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010";

/// Every encoding, canonical or not, of the eight points of small order: those ZIP-215 lists.
const SMALL_ORDER: [&str; 14] = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "0100000000000000000000000000000000000000000000000000000000000080",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
];

/// The verdict, which single and batch verification must share, alone and among others.
fn verdict(key: PublicKey, message: &[u8], signature: Signature) -> Result<(), SignatureError> {
    let single = verify(&key, message, &signature);
    assert_eq!(verify_batch(&[(key, message, signature)]).map_err(|(_, error)| error), single);
    let other = self::key(9);
    let good = (other.public(), b"other".as_slice(), other.sign(b"other"));
    let among = verify_batch(&[good, (key, message, signature), good]);
    assert_eq!(among, single.map_err(|error| (1, error)));
    single
}

/// spec: TX-4. Small-order keys may not act, in any of their encodings: anyone could sign for them.
#[test]
fn x01_small_order_and_all_zero_keys_are_refused() {
    let mut universal = [0; 64];
    universal[0] = 1;
    for key in SMALL_ORDER.map(public) {
        assert_eq!(check_key(&key), Err(KeyError::SmallOrder { key }));
        assert_eq!(verdict(key, b"anything", Signature(universal)), Err(KeyError::SmallOrder { key }.into()));
        let chain = chain();
        let mut transaction = unsigned(1, 0, vec![register("nobody")]);
        transaction.sender = key;
        let forged = keelstone_ledger::SignedTransaction { transaction, signature: Signature(universal) };
        let found = chain.submit(&forged.to_bytes());
        assert!(matches!(found, Err(Refusal::Signature(SignatureError::Key(_)))), "{key}: {found:?}");
    }
    for person in 0..20 {
        assert_eq!(check_key(&key(person).public()), Ok(()));
    }
}

/// spec: TX-4. What was verified when it was submitted is not verified again in its block, and that says nothing about
/// another signature over the same transaction.
#[test]
fn x01_a_signature_that_was_good_vouches_for_no_other() {
    let good: Vec<_> = (1..=12).map(|person| signed(person, 0, vec![register(&format!("agent {person}"))])).collect();
    let mut transactions = good.clone();
    for forged in [3, 7] {
        transactions[forged].signature.0[0] ^= 1;
    }
    let block = Block { height: Height(1), time: Timestamp(1), proposer: proposer(), transactions };
    for threads in [1, 2] {
        let chain = chain().on_threads(NonZeroUsize::new(threads).unwrap());
        for transaction in &good {
            chain.submit(&transaction.to_bytes()).unwrap();
        }
        let found = chain.run(block.clone(), Refused::Receipt).unwrap();
        let expected = execute(chain.registry(), chain.view(), chain.root(), block.clone(), Refused::Receipt).unwrap();
        assert_eq!(found.executed().receipts, expected.receipts, "{threads} threads");
        let refused = |receipt: &Receipt| matches!(receipt.verdict, Verdict::Refused { code: 5, .. });
        let refused: Vec<usize> = (0..12).filter(|at| refused(&expected.receipts[*at])).collect();
        assert_eq!(refused, [3, 7]);
    }
}

#[test]
fn x01_bytes_that_are_no_point_are_no_key() {
    // y = 2 is on no point of the curve.
    let key = public("0200000000000000000000000000000000000000000000000000000000000000");
    assert_eq!(check_key(&key), Err(KeyError::NotAPoint { key }));
    assert_eq!(verdict(key, b"", Signature([0; 64])), Err(KeyError::NotAPoint { key }.into()));
}

/// Adding the group's order to S gives a second signature of the same message to those who do not look.
#[test]
fn x01_s_plus_the_order_is_refused() {
    let signer = key(1);
    for message in [b"".as_slice(), b"a", b"a longer message"] {
        let good = signer.sign(message);
        assert_eq!(verdict(signer.public(), message, good), Ok(()));
        let (mut bytes, order, mut carry) = (good.0, hex32(ORDER), 0u16);
        for (byte, add) in bytes[32..].iter_mut().zip(order) {
            let sum = u16::from(*byte) + u16::from(add) + carry;
            (*byte, carry) = (sum.to_le_bytes()[0], sum >> 8);
        }
        assert_eq!(carry, 0, "S + L fits into 32 bytes");
        let found = verdict(signer.public(), message, Signature(bytes));
        assert_eq!(found, Err(SignatureError::Wrong { key: signer.public() }));
    }
}

/// ZIP-215 takes points in encodings that are not canonical, and points with a small-order part: the verdicts that
/// differ between implementations of plain Ed25519. A honest key with any small-order R, canonical or not, and the S
/// that belongs to it: `[8][S]B = [8]R + [8][k]A` holds, since `[8]R` vanishes.
#[test]
fn x01_zip215_takes_r_of_small_order_in_every_encoding() {
    use curve25519_dalek::scalar::Scalar;
    use sha2::{Digest, Sha512};
    let signer = key(3);
    let wide = Sha512::digest(signer.seed().as_slice());
    let mut low: [u8; 32] = wide[..32].try_into().unwrap();
    low[0] &= 248;
    low[31] = (low[31] & 127) | 64;
    let secret = Scalar::from_bytes_mod_order(low);
    for r in SMALL_ORDER.map(hex32) {
        let message = b"zip-215";
        let mut hash = Sha512::new();
        hash.update(r);
        hash.update(signer.public().as_bytes());
        hash.update(message);
        let k = Scalar::from_bytes_mod_order_wide(&hash.finalize().into());
        let s = k * secret;
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&r);
        bytes[32..].copy_from_slice(s.as_bytes());
        assert_eq!(verdict(signer.public(), message, Signature(bytes)), Ok(()), "R {}", hex::encode(r));
    }
}

/// The first vectors of RFC 8032, 7.1.
#[test]
fn rfc_8032_vectors_verify() {
    for (seed, key, message, signature) in [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
    ] {
        let (secret, message) = (SecretKey::from_seed(&hex32(seed)), hex::decode(message).unwrap());
        assert_eq!(secret.public(), public(key));
        assert_eq!(secret.sign(&message).to_string(), signature);
        assert_eq!(verdict(public(key), &message, Signature::from_hex(signature).unwrap()), Ok(()));
    }
}

/// A signature over the same bytes in another domain, or by another key, is none.
#[test]
fn x01_signature_of_another_context_is_refused() {
    let chain = chain();
    let transaction = unsigned(1, 0, vec![register("ada")]);
    for signature in [
        key(1).sign(&transaction.to_bytes()),
        key(1).sign(transaction.id().0.as_bytes()),
        key(2).sign(&transaction.sign_bytes()),
        Signature([0; 64]),
    ] {
        let signed = SignedTransaction { transaction: transaction.clone(), signature };
        let found = chain.submit(&signed.to_bytes());
        assert!(matches!(found, Err(Refusal::Signature(SignatureError::Wrong { .. }))), "{found:?}");
    }
    assert!(chain.submit(&transaction.sign(&key(1)).to_bytes()).is_ok());
}

/// spec: TX-5. Whatever else is wrong with its operations, a transaction that nobody signed costs a signature and is told so.
#[test]
fn a_signature_is_looked_at_before_the_operations() {
    let chain = chain();
    let mut unknown = register("ada");
    unknown.function = keelstone_execution::FunctionHash(keelstone_codec::Hash([3; 32]));
    let transaction = unsigned(1, 0, vec![unknown]);
    let unsigned = SignedTransaction { transaction: transaction.clone(), signature: Signature([0; 64]) };
    let found = chain.submit(&unsigned.to_bytes());
    assert!(matches!(found, Err(Refusal::Signature(_))), "{found:?}");
    let found = chain.submit(&transaction.sign(&key(1)).to_bytes());
    assert!(matches!(found, Err(Refusal::UnknownFunction { .. })), "{found:?}");
}

#[test]
fn secrets_are_not_shown() {
    let secret = key(7);
    let shown = format!("{secret:?}");
    assert!(!shown.contains(&hex::encode(secret.seed().as_slice())), "{shown}");
    assert_ne!(SecretKey::generate().unwrap().public(), SecretKey::generate().unwrap().public());
}

proptest! {
    /// Whatever bit of key, message or signature is changed, single and batch agree that it is no signature.
    #[test]
    fn x01_changed_signatures_are_refused_alike(seed: [u8; 32], message: Vec<u8>, at in 0usize..96, bit in 0u8..8) {
        let secret = SecretKey::from_seed(&seed);
        let (mut key, mut signature) = (secret.public(), secret.sign(&message));
        prop_assert_eq!(verdict(key, &message, signature), Ok(()));
        match at {
            0..64 => signature.0[at] ^= 1 << bit,
            _ => key.0.0[at - 64] ^= 1 << bit,
        }
        prop_assert!(verdict(key, &message, signature).is_err());
    }
}
