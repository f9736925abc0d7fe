//! Text from outside and signatures.

use crate::{Target, canonical};
use keelstone_codec::Hash;
use keelstone_execution::PublicKey;
use keelstone_ledger::xian::Decimal;
use keelstone_ledger::{JSON_DEPTH_MAX, Json, SecretKey, Signature, hostile, verify, verify_batch};

pub(crate) const JSON: Target = Target { name: "json", run: json, seeds: json_seeds };

/// What is read and written reads back as the same data.
fn json(input: &[u8]) -> bool {
    canonical::<Json>(input);
    let Ok(value) = Json::parse(input, JSON_DEPTH_MAX) else { return false };
    for text in [value.to_string(), value.to_pretty()] {
        assert_eq!(Json::parse(text.as_bytes(), JSON_DEPTH_MAX).as_ref(), Ok(&value), "{text}");
    }
    true
}

fn json_seeds() -> Vec<Vec<u8>> {
    let texts = [
        r#"{"a":[1,-2.50,1e9,true,null],"b":{"c":"d\u00fc\ud83d\ude00\n"}}"#,
        "[[[[]]],{},\"\",0,-0,123456789012345678901234567890.00001]",
    ];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}

pub(crate) const PACKED: Target = Target { name: "packed", run: hostile::packed, seeds: hostile::packed_seeds };

pub(crate) const DECIMAL: Target = Target { name: "decimal", run: decimal, seeds: decimal_seeds };

/// One number has one form, and arithmetic undoes itself.
fn decimal(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else { return false };
    let Ok(number) = Decimal::parse(text) else { return false };
    assert_eq!(Decimal::parse(&number.to_string()).as_ref(), Ok(&number));
    if let Ok(sum) = number.add(&number) {
        assert_eq!(sum.sub(&number), Ok(number));
    }
    true
}

fn decimal_seeds() -> Vec<Vec<u8>> {
    ["0", "-12.3400", "1E+20", "99999999999999999999.000000000001", ".5"].map(|text| text.as_bytes().to_vec()).to_vec()
}

pub(crate) const SIGNATURE: Target = Target { name: "signature", run: signature, seeds: signature_seeds };

/// A key (32 bytes), a signature (64) and a message: alone and in a batch with an honest one the verdict is the same.
fn signature(input: &[u8]) -> bool {
    let Some((key, rest)) = input.split_first_chunk::<32>() else { return false };
    let Some((signature, message)) = rest.split_first_chunk::<64>() else { return false };
    let (key, signature) = (PublicKey(Hash(*key)), Signature(*signature));
    let alone = verify(&key, message, &signature);
    let honest = SecretKey::from_seed(&[7; 32]);
    let beside = (honest.public(), &b"honest"[..], honest.sign(b"honest"));
    let batch = verify_batch(&[beside, (key, message, signature)]);
    assert_eq!(alone.is_ok(), batch.is_ok(), "alone {alone:?}, in a batch {batch:?}");
    alone.is_ok()
}

fn signature_seeds() -> Vec<Vec<u8>> {
    let key = SecretKey::from_seed(&[1; 32]);
    vec![[&key.public().0.0[..], &key.sign(b"message").0, b"message"].concat()]
}
