//! What the engine certifies: a header of block H + 1, signed by more than two thirds of those who vote, says which root
//! the state has after block H.
//!
//! Checked here from the ground up: the header's hash, the votes' bytes, the signatures, and that they are of the
//! validators this chain itself knows. Where a header came from is of no matter, so it is asked of whoever is at hand.
//! Pure: no clock, no network.
//!
//! Rule: `spec/ledger.md`, LEDGER-7. Why not a light client's crate: `docs/decisions/0010-own-certificates.md`.

use crate::cometbft::base64::from_base64;
use crate::cometbft::keys::{Address, address_of};
use keelstone_codec::{Hash, Height, Root};
use keelstone_ledger::{Signature, Validator, verify as verify_signature};
use prost::Message as _;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use tendermint_proto::v0_38::crypto::{PublicKey, public_key::Sum};
use tendermint_proto::v0_38::types::{
    BlockId, BlockIdFlag, CanonicalBlockId, CanonicalPartSetHeader, CanonicalVote, Commit, CommitSig, Header,
    SignedHeader, SignedMsgType, SimpleValidator,
};

/// Why a header certifies nothing. Whoever sent it has to act.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum CertificateError {
    /// A part is missing, or not what it should be.
    #[error("the header is none: {0}")]
    Form(&'static str),
    /// It is of another chain or height.
    #[error("the header's {what} is {found}, {expected} was asked for")]
    Other {
        /// `chain` or `height`.
        what: &'static str,
        /// What was asked for.
        expected: String,
        /// What it says.
        found: String,
    },
    /// The votes are for another header.
    #[error("the votes are for {voted}, the header is {found}")]
    Hash {
        /// The hash that was voted for.
        voted: String,
        /// The hash of the header.
        found: String,
    },
    /// A vote is not what it says it is.
    #[error("vote {index} is not {what}")]
    Vote {
        /// Its place.
        index: usize,
        /// What it fails to be.
        what: &'static str,
    },
    /// Too few voted.
    #[error("votes with power {found} of {total}, which is not more than two thirds")]
    TooFew {
        /// The power of the votes.
        found: u64,
        /// Of all validators.
        total: u64,
    },
}

/// A header that was verified, and what it certifies.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Certificate {
    /// The height whose state it certifies: one below the header's.
    pub(crate) height: Height,
    /// The certified root of that state.
    pub(crate) root: Root,
    /// The header with its signatures, for whoever wants to check again.
    pub(crate) signed: SignedHeader,
}

/// The header with its votes in what CometBFT answers to `/commit`. A server's word: nothing of it is verified.
///
/// # Errors
/// What it is not.
pub(crate) fn of_answer(mut answer: Value) -> Result<SignedHeader, String> {
    let signed = answer.get_mut("signed_header").map(Value::take).unwrap_or_default();
    let votes = signed.pointer("/commit/signatures").and_then(Value::as_array).ok_or("it has no votes")?;
    // What reads base64 for these messages panics at some that is none. It takes a list for an object, too.
    let is_base64 = |text: &Value| text.is_null() || text.as_str().is_some_and(|text| from_base64(text).is_some());
    for (index, vote) in votes.iter().enumerate() {
        let vote = vote.as_object().ok_or_else(|| format!("vote {index} is none"))?;
        if vote.get("signature").is_some_and(|text| !is_base64(text)) {
            return Err(format!("the signature of vote {index} is no base64"));
        }
    }
    serde_json::from_value(signed).map_err(|error| error.to_string())
}

/// Verifies a signed header of `height` against those who vote at that height.
///
/// # Errors
/// [`CertificateError`]: the first thing that is wrong.
// spec: LEDGER-7
pub(crate) fn verify(
    signed: SignedHeader,
    chain_id: &str,
    height: Height,
    validators: &[Validator],
) -> Result<Certificate, CertificateError> {
    use CertificateError::{Form, Hash as WrongHash, Other, TooFew, Vote};
    let header = signed.header.as_ref().ok_or(Form("no header"))?;
    let commit = signed.commit.as_ref().ok_or(Form("no commit"))?;
    if header.chain_id != chain_id {
        let (expected, found) = (chain_id.to_owned(), header.chain_id.clone());
        return Err(Other { what: "chain", expected, found });
    }
    for found in [header.height, commit.height] {
        if u64::try_from(found) != Ok(height.0) {
            return Err(Other { what: "height", expected: height.to_string(), found: found.to_string() });
        }
    }
    let block_id = commit.block_id.as_ref().ok_or(Form("no block id"))?;
    let found = header_hash(header);
    if block_id.hash != found {
        return Err(WrongHash { voted: hex::encode(&block_id.hash), found: hex::encode(found) });
    }
    let total = validators.iter().map(|validator| validator.power).sum();
    // Each address is a hash: there are as many as validators, and not as many again for each vote.
    let known: BTreeMap<Address, &Validator> =
        validators.iter().map(|validator| (address_of(&validator.key), validator)).collect();
    let (mut power, mut voted) = (0u64, BTreeSet::new());
    for (index, vote) in commit.signatures.iter().enumerate() {
        // Votes for nothing, and none at all, do not count and do no harm.
        if vote.block_id_flag != BlockIdFlag::Commit as i32 {
            continue;
        }
        let validator = known.get(vote.validator_address.as_slice()).ok_or(Vote { index, what: "of a validator" })?;
        if !voted.insert(validator.key) {
            return Err(Vote { index, what: "of another validator than one before" });
        }
        let bytes = <[u8; 64]>::try_from(vote.signature.as_slice()).map_err(|_| Vote { index, what: "signed" })?;
        verify_signature(&validator.key, &vote_bytes(chain_id, commit, block_id, vote), &Signature(bytes))
            .map_err(|_| Vote { index, what: "signed by its validator" })?;
        power += validator.power;
    }
    if u128::from(power) * 3 <= u128::from(total) * 2 {
        return Err(TooFew { found: power, total });
    }
    let root = <[u8; 32]>::try_from(header.app_hash.as_slice()).map_err(|_| Form("an app hash of 32 bytes"))?;
    let height = height.prev().ok_or(Form("no height below"))?;
    Ok(Certificate { height, root: Root(Hash(root)), signed })
}

/// What a validator signs: its vote in the one encoding that all agree on.
pub(crate) fn vote_bytes(chain_id: &str, commit: &Commit, block_id: &BlockId, vote: &CommitSig) -> Vec<u8> {
    let parts = block_id.part_set_header.clone().unwrap_or_default();
    let vote = CanonicalVote {
        r#type: SignedMsgType::Precommit.into(),
        height: commit.height,
        round: i64::from(commit.round),
        block_id: Some(CanonicalBlockId {
            hash: block_id.hash.clone(),
            part_set_header: Some(CanonicalPartSetHeader { total: parts.total, hash: parts.hash }),
        }),
        // What is not optional there is encoded even where it is empty.
        timestamp: Some(vote.timestamp.unwrap_or_default()),
        chain_id: chain_id.to_owned(),
    };
    vote.encode_length_delimited_to_vec()
}

/// The hash of a header: the root of a tree over its fields, each encoded by itself.
pub(crate) fn header_hash(header: &Header) -> [u8; 32] {
    let last_block = header.last_block_id.clone().unwrap_or_default();
    let last_block =
        BlockId { part_set_header: Some(last_block.part_set_header.clone().unwrap_or_default()), ..last_block };
    let fields: [Vec<u8>; 14] = [
        header.version.unwrap_or_default().encode_to_vec(),
        header.chain_id.encode_to_vec(),
        header.height.encode_to_vec(),
        header.time.unwrap_or_default().encode_to_vec(),
        last_block.encode_to_vec(),
        header.last_commit_hash.encode_to_vec(),
        header.data_hash.encode_to_vec(),
        header.validators_hash.encode_to_vec(),
        header.next_validators_hash.encode_to_vec(),
        header.consensus_hash.encode_to_vec(),
        header.app_hash.encode_to_vec(),
        header.last_results_hash.encode_to_vec(),
        header.evidence_hash.encode_to_vec(),
        header.proposer_address.encode_to_vec(),
    ];
    merkle(&fields)
}

/// The hash by which a header names who votes: the root of a tree over their keys and powers, the most powerful first, of
/// equal power by address. There is at least one (LEDGER-8).
pub(crate) fn validators_hash(validators: &[Validator]) -> [u8; 32] {
    let mut order: Vec<(u64, Address, &Validator)> =
        validators.iter().map(|validator| (validator.power, address_of(&validator.key), validator)).collect();
    order.sort_unstable_by(|(power, address, _), (other, at, _)| other.cmp(power).then(address.cmp(at)));
    let encoded = |(power, _, validator): &(u64, Address, &Validator)| {
        let pub_key = PublicKey { sum: Some(Sum::Ed25519(validator.key.as_bytes().to_vec())) };
        let voting_power = i64::try_from(*power).expect("at most POWER_MAX");
        SimpleValidator { pub_key: Some(pub_key), voting_power }.encode_to_vec()
    };
    merkle(&order.iter().map(encoded).collect::<Vec<_>>())
}

/// The root of RFC 6962 over a list that is not empty.
fn merkle(items: &[Vec<u8>]) -> [u8; 32] {
    match items {
        [leaf] => Sha256::new().chain_update([0]).chain_update(leaf).finalize().into(),
        items => {
            let left = items.len().next_power_of_two() / 2;
            let (left, right) = (merkle(&items[..left]), merkle(&items[left..]));
            Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
        }
    }
}

/// The root in a certificate that this node verified when it came, and kept: the state that says who votes is what is lost.
// spec: RECOVER-1
pub(crate) fn certified_by(certificate: &[u8]) -> Option<Root> {
    let header = SignedHeader::decode(certificate).ok()?.header?;
    <[u8; 32]>::try_from(header.app_hash.as_slice()).ok().map(|root| Root(Hash(root)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelstone_execution::PublicKey;
    use serde_json::json;

    /// A header and its commit as CometBFT 0.40.0 gave them, of a chain with one validator.
    const COMMIT: &str = include_str!("commit_0_40.json");
    const VALIDATOR: &str = "8dad81511fa4f225e2b01578dead5bd78f4ef658ea58c7e9190df5b9dbaa1e7b";

    fn signed() -> SignedHeader {
        serde_json::from_str(COMMIT).unwrap()
    }

    fn validators() -> Vec<Validator> {
        vec![Validator { key: PublicKey::from_hex(VALIDATOR).unwrap(), power: 10 }]
    }

    fn judged(change: impl FnOnce(&mut Header, &mut Commit)) -> Result<Certificate, CertificateError> {
        let mut signed = signed();
        change(signed.header.as_mut().unwrap(), signed.commit.as_mut().unwrap());
        verify(signed, "smoke", Height(3), &validators())
    }

    /// spec: LEDGER-7. The header of block 3 certifies the root after block 2.
    #[test]
    fn a_header_of_cometbft_certifies_the_root_below_it() {
        let certificate = judged(|_, _| ()).unwrap();
        assert_eq!(certificate.height, Height(2));
        let root = "bc17b615a5f3729a340fe688dd4ab84197d63856ead504f9fbb026ac797173e9";
        assert_eq!(certificate.root.0.to_string(), root);
    }

    /// spec: LEDGER-8. Who votes has the hash that CometBFT gave them.
    #[test]
    fn who_votes_has_the_hash_that_headers_name() {
        let header = signed().header.unwrap();
        assert_eq!(validators_hash(&validators()).to_vec(), header.validators_hash);
    }

    /// spec: LEDGER-7. Whatever is changed, it certifies nothing.
    #[test]
    fn a_header_that_was_touched_certifies_nothing() {
        type Change = fn(&mut Header, &mut Commit);
        let headers: [Change; 8] = [
            |header, _| header.app_hash[0] ^= 1,
            |header, _| header.data_hash[31] ^= 1,
            |header, _| header.evidence_hash.clear(),
            |header, _| header.proposer_address[3] ^= 1,
            |header, _| header.time.as_mut().unwrap().nanos += 1,
            |header, _| header.version.as_mut().unwrap().app += 1,
            |header, _| header.last_block_id.as_mut().unwrap().hash[0] ^= 1,
            |header, _| header.last_block_id = None,
        ];
        for change in headers {
            assert!(matches!(judged(change), Err(CertificateError::Hash { .. })));
        }
        let votes: [Change; 5] = [
            |_, commit| commit.signatures[0].signature[5] ^= 1,
            |_, commit| commit.signatures[0].timestamp.as_mut().unwrap().nanos += 1,
            |_, commit| commit.signatures[0].validator_address[0] ^= 1,
            |_, commit| commit.round = 1,
            |_, commit| commit.signatures.push(commit.signatures[0].clone()),
        ];
        for change in votes {
            assert!(matches!(judged(change), Err(CertificateError::Vote { .. })));
        }
        let few: [Change; 2] = [
            |_, commit| commit.signatures.clear(),
            |_, commit| commit.signatures[0].block_id_flag = BlockIdFlag::Nil as i32,
        ];
        for change in few {
            assert_eq!(judged(change), Err(CertificateError::TooFew { found: 0, total: 10 }));
        }
        assert!(matches!(judged(|_, commit| commit.height = 4), Err(CertificateError::Other { what: "height", .. })));
        assert!(matches!(judged(|header, _| header.height = 4), Err(CertificateError::Other { what: "height", .. })));
        let other = verify(signed(), "other", Height(3), &validators());
        assert!(matches!(other, Err(CertificateError::Other { what: "chain", .. })));
        assert_eq!(verify(SignedHeader::default(), "smoke", Height(3), &[]), Err(CertificateError::Form("no header")));
    }

    /// A signature that is no base64, of whatever length, is refused and reaches no reader that would panic at it.
    #[test]
    fn an_answer_whose_signatures_are_none_is_refused() {
        let whole: Value = serde_json::from_str(COMMIT).unwrap();
        assert_eq!(of_answer(json!({ "signed_header": whole })), Ok(signed()));
        for text in ["====", "=", "A", "Zg", "Zg=", "Zh==", "Zm9vZ", "Zm9vZg=", "Zm9vZm9v=", "\u{e9}"] {
            let mut changed = whole.clone();
            changed["commit"]["signatures"][0]["signature"] = json!(text);
            let refused = of_answer(json!({ "signed_header": changed })).unwrap_err();
            assert_eq!(refused, "the signature of vote 0 is no base64", "{text:?}");
        }
        let listed = json!([whole["header"], whole["commit"]]);
        let mut listing = whole.clone();
        listing["commit"]["signatures"][0] = json!([2, "", null, "===="]);
        for other in [Value::Null, json!({}), listed, listing] {
            assert!(of_answer(json!({ "signed_header": other })).is_err());
        }
    }

    /// spec: LEDGER-7. Exactly two thirds are too few.
    #[test]
    fn more_than_two_thirds_must_have_voted() {
        let with = |power| {
            let silent = Validator { key: keelstone_ledger::SecretKey::from_seed(&[1; 32]).public(), power };
            verify(signed(), "smoke", Height(3), &[validators(), vec![silent]].concat())
        };
        assert!(with(4).is_ok());
        assert_eq!(with(5), Err(CertificateError::TooFew { found: 10, total: 15 }));
        assert!(matches!(verify(signed(), "smoke", Height(3), &[]), Err(CertificateError::Vote { .. })));
    }
}
