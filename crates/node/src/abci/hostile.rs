//! For fuzzing only: what the engine sends, fed with any bytes. See [`crate::hostile`].

use super::certificate::{self, header_hash, vote_bytes};
use super::certifier::certified_by;
use super::frame::{check_size, is_proposal};
use crate::consensus::address_of;
use bytes::Bytes;
use keelstone_codec::{Hash, Height, Root};
use keelstone_ledger::{SecretKey, Validator};
use prost::Message as _;
use std::sync::LazyLock;
use tendermint_proto::google::protobuf::Timestamp;
use tendermint_proto::v0_38::abci::request::Value as Call;
use tendermint_proto::v0_38::abci::{
    CommitInfo, Misbehavior, Request, RequestApplySnapshotChunk, RequestCheckTx, RequestEcho, RequestFinalizeBlock,
    RequestInitChain, RequestOfferSnapshot, RequestPrepareProposal, RequestProcessProposal, RequestQuery, Snapshot,
    Validator as Voter, ValidatorUpdate, VoteInfo,
};
use tendermint_proto::v0_38::crypto::{PublicKey, public_key};
use tendermint_proto::v0_38::types::{
    BlockId, BlockIdFlag, BlockParams, Commit, CommitSig, ConsensusParams, Header, PartSetHeader, SignedHeader,
};
use tendermint_proto::v0_38::version::Consensus;

/// Reads what is in a frame of the engine's as a connection does, and says whether it is a call.
///
/// # Panics
/// If it is another call when it is written again, or decodes to far more than its bytes; or if something that is no
/// proposal counts as one, and could be refused without being decoded (spec: LEDGER-6).
#[must_use]
pub fn abci_request(input: &[u8]) -> bool {
    if check_size(input).is_err() {
        return false;
    }
    let Ok(request) = Request::decode(Bytes::copy_from_slice(input)) else { return false };
    assert!(!is_proposal(input) || matches!(request.value, Some(Call::ProcessProposal(_))), "{request:?}");
    let again = request.encode_to_vec();
    // A negative number of 32 bits may come in five bytes, and is written in ten.
    assert!(again.len() <= 2 * input.len(), "{} bytes decode to {}", input.len(), again.len());
    assert_eq!(check_size(&again), Ok(()), "what may be decoded may be sent");
    assert_eq!(Request::decode(again.as_slice()).as_ref(), Ok(&request));
    request.value.is_some()
}

/// Inputs that [`abci_request`] accepts: calls with everything an engine puts into them.
#[must_use]
pub fn abci_request_seeds() -> Vec<Vec<u8>> {
    let (txs, time) =
        (vec![Bytes::from_static(b"transaction"); 2], Some(Timestamp { seconds: 1_700_000_000, nanos: 5 }));
    let voter = Voter { address: vec![7; 20].into(), power: 10 };
    let vote = VoteInfo { validator: Some(voter.clone()), block_id_flag: BlockIdFlag::Commit.into() };
    let misbehavior = vec![Misbehavior { validator: Some(voter), height: 3, ..Default::default() }];
    let key = PublicKey { sum: Some(public_key::Sum::Ed25519(vec![7; 32])) };
    let snapshot = Snapshot {
        height: 5,
        format: 1,
        chunks: 3,
        hash: vec![1; 32].into(),
        metadata: Bytes::from_static(b"metadata"),
    };
    let calls = [
        Call::Echo(RequestEcho { message: "hello".to_owned() }),
        Call::InitChain(RequestInitChain {
            time,
            chain_id: "engine-1".to_owned(),
            consensus_params: Some(ConsensusParams {
                block: Some(BlockParams { max_bytes: 1 << 20, max_gas: -1 }),
                ..Default::default()
            }),
            validators: vec![ValidatorUpdate { pub_key: Some(key), power: 10 }],
            app_state_bytes: Bytes::from_static(b"\"state\""),
            initial_height: 1,
        }),
        Call::Query(RequestQuery {
            data: b"key".to_vec().into(),
            path: "/store/a/key".to_owned(),
            height: 3,
            prove: true,
        }),
        Call::CheckTx(RequestCheckTx { tx: txs[0].clone(), r#type: 1 }),
        Call::PrepareProposal(RequestPrepareProposal { max_tx_bytes: 1 << 20, txs: txs.clone(), ..Default::default() }),
        Call::ProcessProposal(RequestProcessProposal { txs: txs.clone(), height: 4, ..Default::default() }),
        Call::FinalizeBlock(RequestFinalizeBlock {
            txs,
            decided_last_commit: Some(CommitInfo { round: 1, votes: vec![vote] }),
            misbehavior,
            hash: vec![2; 32].into(),
            height: 4,
            time,
            ..Default::default()
        }),
        Call::OfferSnapshot(RequestOfferSnapshot { snapshot: Some(snapshot), app_hash: vec![3; 32].into() }),
        Call::ApplySnapshotChunk(RequestApplySnapshotChunk {
            index: 2,
            chunk: Bytes::from_static(b"chunk"),
            sender: "peer".to_owned(),
        }),
    ];
    calls.into_iter().map(|call| Request { value: Some(call) }.encode_to_vec()).collect()
}

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
