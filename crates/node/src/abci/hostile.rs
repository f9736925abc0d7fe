//! For fuzzing only: what the engine sends, fed with any bytes. See [`crate::hostile`].

use super::frame::{check_size, is_proposal};
use bytes::Bytes;
use prost::Message as _;
use tendermint_proto::google::protobuf::Timestamp;
use tendermint_proto::v0_38::abci::request::Value as Call;
use tendermint_proto::v0_38::abci::{
    CommitInfo, Misbehavior, Request, RequestApplySnapshotChunk, RequestCheckTx, RequestEcho, RequestFinalizeBlock,
    RequestInitChain, RequestOfferSnapshot, RequestPrepareProposal, RequestProcessProposal, RequestQuery, Snapshot,
    Validator as Voter, ValidatorUpdate, VoteInfo,
};
use tendermint_proto::v0_38::crypto::{PublicKey, public_key};
use tendermint_proto::v0_38::types::{BlockIdFlag, BlockParams, ConsensusParams};

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
