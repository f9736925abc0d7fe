//! CometBFT's key files: `priv_validator_key.json`, with which a validator signs, and `node_key.json`, by which peers
//! know a node.
//!
//! Both hold an Ed25519 key as base64 of seed and public key. An address, and a node's id, is the first 20 bytes of
//! SHA-256 over the public key.

use super::base64::base64;
use keelstone_execution::PublicKey;
use keelstone_ledger::SecretKey;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// The state of a validator that has signed nothing yet.
pub(crate) const NOTHING_SIGNED: &str = "{\n  \"height\": \"0\",\n  \"round\": 0,\n  \"step\": 0\n}";

/// How an engine names a validator: the first 20 bytes of the SHA-256 of its key.
pub(crate) type Address = [u8; 20];

/// The address of a validator.
pub(crate) fn address_of(key: &PublicKey) -> Address {
    let digest = Sha256::digest(key.as_bytes());
    digest[..20].try_into().expect("a digest has 32 bytes")
}

/// The address of a validator: 40 hexadecimal digits, upper case.
pub(crate) fn address(key: &PublicKey) -> String {
    hex::encode_upper(&Sha256::digest(key.0.0)[..20])
}

/// The id of a node: as an address, lower case.
pub(crate) fn node_id(key: &PublicKey) -> String {
    address(key).to_lowercase()
}

/// A public key as it stands in key files and genesis.
pub(crate) fn public_json(key: &PublicKey) -> Value {
    json!({ "type": "tendermint/PubKeyEd25519", "value": base64(&key.0.0) })
}

/// The text of `priv_validator_key.json`.
pub(crate) fn validator_file(key: &SecretKey) -> Zeroizing<String> {
    let public = key.public();
    Zeroizing::new(format!(
        "{{\n  \"address\": \"{}\",\n  \"pub_key\": {},\n  \"priv_key\": {}\n}}\n",
        address(&public),
        public_json(&public),
        *secret_json(key)
    ))
}

/// The text of `node_key.json`.
pub(crate) fn node_file(key: &SecretKey) -> Zeroizing<String> {
    Zeroizing::new(format!("{{ \"priv_key\": {} }}\n", *secret_json(key)))
}

/// A secret key as text. Written by hand, so that no copy of it is left in a JSON value.
fn secret_json(key: &SecretKey) -> Zeroizing<String> {
    let mut both = Zeroizing::new([0; 64]);
    both[..32].copy_from_slice(key.seed().as_ref());
    both[32..].copy_from_slice(&key.public().0.0);
    let text = Zeroizing::new(base64(both.as_ref()));
    Zeroizing::new(format!("{{ \"type\": \"tendermint/PrivKeyEd25519\", \"value\": \"{}\" }}", *text))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values are OpenSSL's for the seed of 32 bytes 07.
    #[test]
    fn files_and_ids_are_cometbfts() {
        let key = SecretKey::from_seed(&[7; 32]);
        let public = key.public();
        assert_eq!(address(&public), "FE812C12F3AB4CE6AC5DB69AC352F906CB1B11EF");
        assert_eq!(node_id(&public), address(&public).to_lowercase());
        let file: Value = serde_json::from_str(&validator_file(&key)).expect("JSON");
        assert_eq!(file["address"], address(&public));
        assert_eq!(file["pub_key"]["value"], "6kpsY+KcUgq+9VB7Ey7F+ZVHdq6+vnuSQh7qaRRG0iw=");
        let secret = [[7; 32], public.0.0].concat();
        assert_eq!(file["priv_key"]["value"], base64(&secret));
        let node: Value = serde_json::from_str(&node_file(&key)).expect("JSON");
        assert_eq!(node["priv_key"], file["priv_key"]);
    }
}
