//! For fuzzing only: headers with their votes, fed with any bytes. See [`crate::hostile`].

use super::certificate::{self, certified_by, header_hash, vote_bytes};
use super::keys::address_of;
use keelstone_codec::{Hash, Height, Root};
use keelstone_ledger::{SecretKey, Validator};
use prost::Message as _;
use std::sync::LazyLock;
use tendermint_proto::google::protobuf::Timestamp;
use tendermint_proto::v0_38::types::{BlockId, BlockIdFlag, Commit, CommitSig, Header, PartSetHeader, SignedHeader};
use tendermint_proto::v0_38::version::Consensus;

/// The chain whose headers are read.
pub(crate) const CHAIN: &str = "hostile-1";

/// Those who vote there, each with the power of 10, in the order of a commit.
pub(crate) static VOTERS: LazyLock<Vec<SecretKey>> = LazyLock::new(|| {
    let mut voters: Vec<SecretKey> = (1..=4).map(|number| SecretKey::from_seed(&[number; 32])).collect();
    voters.sort_by_key(|key| address_of(&key.public()));
    voters
});

/// A header of a height with all that a header has; `voters` is the hash of those who vote.
pub(crate) fn header(height: i64, voters: Vec<u8>) -> Header {
    Header {
        version: Some(Consensus { block: 11, app: 1 }),
        chain_id: CHAIN.to_owned(),
        height,
        time: Some(Timestamp { seconds: 1_700_000_000 + height, nanos: 5 }),
        last_block_id: Some(id(vec![1; 32])),
        last_commit_hash: vec![2; 32],
        data_hash: vec![3; 32],
        validators_hash: voters.clone(),
        next_validators_hash: voters,
        consensus_hash: vec![4; 32],
        app_hash: vec![5; 32],
        last_results_hash: vec![6; 32],
        evidence_hash: vec![7; 32],
        proposer_address: vec![8; 20],
    }
}

fn id(hash: Vec<u8>) -> BlockId {
    BlockId { hash, part_set_header: Some(PartSetHeader { total: 1, hash: vec![9; 32] }) }
}

/// A header with the votes of all.
pub(crate) fn voted(header: Header) -> SignedHeader {
    let block_id = id(header_hash(&header).to_vec());
    let mut commit = Commit { height: header.height, round: 1, block_id: Some(block_id.clone()), signatures: vec![] };
    for key in VOTERS.iter() {
        let mut vote = CommitSig {
            block_id_flag: BlockIdFlag::Commit.into(),
            validator_address: address_of(&key.public()).to_vec(),
            timestamp: header.time.map(|time| Timestamp { seconds: time.seconds + 1, ..time }),
            signature: vec![],
        };
        vote.signature = key.sign(&vote_bytes(CHAIN, &commit, &block_id, &vote)).0.to_vec();
        commit.signatures.push(vote);
    }
    SignedHeader { header: Some(header), commit: Some(commit) }
}

/// A header of CometBFT's, and those who voted for it.
static HONEST: LazyLock<(SignedHeader, Vec<Validator>)> = LazyLock::new(|| {
    let validators = VOTERS.iter().map(|key| Validator { key: key.public(), power: 10 });
    (voted(header(3, vec![0; 32])), validators.collect())
});

/// Reads a header with its votes as it is kept, and says whether it certifies a root (spec: LEDGER-7).
///
/// # Panics
/// If it does and is not the header that was voted for, or a vote counts that nobody gave.
#[must_use]
pub fn engine_header(input: &[u8]) -> bool {
    let Ok(signed) = SignedHeader::decode(input) else { return false };
    assert_eq!(SignedHeader::decode(signed.encode_to_vec().as_slice()).as_ref(), Ok(&signed));
    let (honest, validators) = &*HONEST;
    let Ok(certificate) = certificate::verify(signed, CHAIN, Height(3), validators) else { return false };
    assert_eq!((certificate.height, certificate.root), (Height(2), Root(Hash([5; 32]))));
    assert_eq!(certified_by(input), Some(certificate.root), "it is read in two ways");
    let [found, expected] = [&certificate.signed, honest].map(|signed| {
        let (header, commit) = (signed.header.as_ref(), signed.commit.as_ref());
        (header.map(header_hash), commit.expect("it was verified"))
    });
    assert_eq!(found.0, expected.0, "votes for another header");
    assert_eq!((found.1.round, &found.1.block_id), (expected.1.round, &expected.1.block_id), "votes for another block");
    let counted = found.1.signatures.iter().filter(|vote| vote.block_id_flag == BlockIdFlag::Commit as i32);
    assert!(counted.clone().count() > 2, "three of four make more than two thirds");
    counted.for_each(|vote| assert!(expected.1.signatures.contains(vote), "nobody gave {vote:?}"));
    true
}

/// Inputs that [`engine_header`] accepts: with all votes, and with one for nothing.
#[must_use]
pub fn engine_header_seeds() -> Vec<Vec<u8>> {
    let all = HONEST.0.clone();
    let mut most = all.clone();
    let votes = &mut most.commit.as_mut().expect("made above").signatures;
    votes[1] = CommitSig { block_id_flag: BlockIdFlag::Absent.into(), ..CommitSig::default() };
    vec![all.encode_to_vec(), most.encode_to_vec()]
}
