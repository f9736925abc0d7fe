//! The calls of ABCI, each turned into what it asks of the chain and its answer back into the engine's terms.
//!
//! Every call is synchronous and may read the disk; whoever serves a connection runs it where that is allowed.

use super::patience::Patience;
use crate::api::SnapshotFigures;
use crate::bundle::{hook_of, progress_name};
use crate::cometbft::keys::address_of;
use crate::cometbft::rpc::RpcError;
use crate::engine::Engine;
use crate::engine::consensus::{Begin, Decided, Finalized, ProveError, TRANSACTION_OVERHEAD, TxResult};
use crate::engine::statesync::SyncStanding;
use crate::exit::{Exit, Failure, causes};
use crate::health::Health;
use crate::metrics::Metrics;
use crate::snapshots::Service;
use bytes::Bytes;
use keelstone_codec::{Hash, Height, Key, LIST_MAX, Namespace, Timestamp};
use keelstone_execution::PublicKey;
use keelstone_ledger::{BLOCK_BYTES_MAX, ChainLimits, Continuation, Validator};
use keelstone_store::StoreError;
use keelstone_sync::library::Info;
use keelstone_sync::snapshot::{ChunkVerdict, Offer, OfferVerdict};
use keelstone_tree::HashKind;
use keelstone_tree::ics23::ConvertError;
use prost::Message as _;
use serde_json::json;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tendermint_proto::google::protobuf::Timestamp as EngineTime;
use tendermint_proto::v0_38::abci::request::Value as Request;
use tendermint_proto::v0_38::abci::response::Value as Response;
use tendermint_proto::v0_38::abci::response_apply_snapshot_chunk::Result as ChunkResult;
use tendermint_proto::v0_38::abci::response_offer_snapshot::Result as OfferResult;
use tendermint_proto::v0_38::abci::response_process_proposal::ProposalStatus;
use tendermint_proto::v0_38::abci::response_verify_vote_extension::VerifyStatus;
use tendermint_proto::v0_38::abci::{
    CheckTxType, Event, EventAttribute, ExecTxResult, Misbehavior, MisbehaviorType, RequestApplySnapshotChunk,
    RequestFinalizeBlock, RequestInitChain, RequestLoadSnapshotChunk, RequestOfferSnapshot, RequestPrepareProposal,
    RequestQuery, ResponseApplySnapshotChunk, ResponseCheckTx, ResponseCommit, ResponseEcho, ResponseException,
    ResponseExtendVote, ResponseFinalizeBlock, ResponseFlush, ResponseInfo, ResponseInitChain, ResponseListSnapshots,
    ResponseLoadSnapshotChunk, ResponseOfferSnapshot, ResponsePrepareProposal, ResponseProcessProposal, ResponseQuery,
    ResponseVerifyVoteExtension, Snapshot, ValidatorUpdate,
};
use tendermint_proto::v0_38::crypto::{ProofOp, ProofOps, PublicKey as EngineKey, public_key};
use tendermint_proto::v0_38::types::{BlockParams, ConsensusParams, VersionParams};

/// The version of the application's rules, which stands in every header of the engine's.
const APP_VERSION: u64 = keelstone_ledger::SCHEMA as u64;
/// What the numbers in results are of.
const CODESPACE: &str = "keelstone";
/// Bytes of a block that the engine allows at least, once it is told of a chain's limits: the evidence it has in a block, which it
/// bounds for itself, may not be more.
const ENGINE_BLOCK_BYTES_LEAST: i64 = 21 << 20;
/// Bytes of a block beside its transactions: header, evidence, and the signatures of all who vote.
const ENGINE_BLOCK_BYTES_BESIDE: i64 = 2 << 20;
/// The most that CometBFT can be told.
const ENGINE_BLOCK_BYTES_MAX: u64 = 100 << 20;
const _: () = assert!(
    BLOCK_BYTES_MAX + LIST_MAX as u64 * TRANSACTION_OVERHEAD as u64 + ENGINE_BLOCK_BYTES_BESIDE as u64
        <= ENGINE_BLOCK_BYTES_MAX,
    "the largest block of a chain is one of the engine's"
);
/// What the engine calls the keys of this chain's validators.
const ED25519: &str = "ed25519";
/// Codes of answers to queries.
const BAD_QUERY: u32 = 1;
const NOT_KEPT: u32 = 2;
const NO_PROOF: u32 = 3;
const FAILED: u32 = 4;

/// The chain as the engine sees it.
pub(crate) struct Application {
    engine: Arc<dyn Engine>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    snapshots: Option<Arc<Service>>,
    /// Blocks the engine is to keep; 0 for all.
    retain_blocks: u64,
    sync: Mutex<Patience>,
    /// Whether it was said that the engine does not answer where it would have to say how state sync goes on.
    asked_in_vain: AtomicBool,
    /// How long the block that is decided took to run.
    ran_for: Mutex<Duration>,
}

impl Application {
    pub(crate) fn new(
        engine: Arc<dyn Engine>,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
        snapshots: Option<Arc<Service>>,
        retain_blocks: u64,
    ) -> Self {
        let sync = match engine.sync_standing() {
            SyncStanding::Whole { unconfirmed: true } => Patience::restored(Instant::now()),
            _ => Patience::default(),
        };
        let (sync, asked_in_vain, ran_for) = (Mutex::new(sync), AtomicBool::new(false), Mutex::default());
        Self { engine, metrics, health, snapshots, retain_blocks, sync, asked_in_vain, ran_for }
    }

    /// The engine opened a connection.
    pub(super) fn connected(&self) {
        self.sync.lock().unwrap_or_else(PoisonError::into_inner).connected(Instant::now());
    }

    /// The engine closed a connection.
    pub(super) fn disconnected(&self) {
        self.sync.lock().unwrap_or_else(PoisonError::into_inner).disconnected();
    }

    /// Why this node is of no use yet, if it is not: its engine is not there, or has blocks to come. Where the first block has
    /// still to be made, the engine is asked how high its peers are.
    pub(crate) fn is_not_ready(
        &self,
        address: &str,
        peers_at: impl FnOnce() -> Result<u64, RpcError>,
    ) -> Option<String> {
        if !self.sync.lock().unwrap_or_else(PoisonError::into_inner).is_connected() {
            return Some(format!("CometBFT is not connected: its proxy_app must be {address}"));
        }
        // In this order, as a state may be put in place meanwhile.
        match self.engine.standing().last {
            Some(height) if self.engine.is_unconfirmed() => {
                Some(format!("the state of {height} was restored, and has no block on it yet"))
            }
            Some(_) => None,
            // All begin a chain together: none of them has a block, and none would be ready if each waited for that.
            None => match peers_at() {
                Ok(height) if height <= self.engine.first_height().0 => None,
                Ok(height) => Some(format!("there is no block yet, and CometBFT's peers are at {height}")),
                Err(error) => Some(format!("there is no block yet, and CometBFT does not say why: {}", causes(&error))),
            },
        }
    }

    /// Why state sync will not come to an end, if it will not: asked again and again while the node runs.
    pub(crate) fn gave_up(&self, patience: Duration, engine_height: impl FnOnce() -> Option<u64>) -> Option<String> {
        let sync = self.sync.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut said = None;
        let why = sync.gave_up(Instant::now(), patience, || {
            let height = engine_height();
            said = Some(height);
            height
        });
        match said {
            Some(None) if !self.asked_in_vain.swap(true, Ordering::Relaxed) => {
                let confirmed = self.engine.standing().last.filter(|_| !self.engine.is_unconfirmed());
                tracing::warn!("{}", unanswered(confirmed));
            }
            Some(Some(1..)) => self.sync.lock().unwrap_or_else(PoisonError::into_inner).has_blocks(&sync),
            _ => {}
        }
        why
    }

    /// Answers one call. A call that cannot be answered is an exception, which stops the engine.
    pub(crate) fn answer(&self, request: Request) -> Response {
        let name = name_of(&request);
        self.answered(request).unwrap_or_else(|failure| {
            tracing::error!(call = name, %failure, "the engine's call failed, so the engine stops");
            // What an engine asks for that is not to be had is its own doing; what is stored here is sound.
            if failure.exit != Exit::Usage {
                self.health.failed.store(true, Ordering::Relaxed);
                self.metrics.store_failed.set(1);
            }
            let hint = failure.hint.map_or_else(String::new, |hint| format!(" ({hint})"));
            exception(format!("{}{hint}", failure.message))
        })
    }

    fn answered(&self, request: Request) -> Result<Response, Failure> {
        Ok(match request {
            Request::Echo(echo) => Response::Echo(ResponseEcho { message: echo.message }),
            Request::Flush(_) => Response::Flush(ResponseFlush {}),
            Request::Info(_) => Response::Info(self.info()),
            Request::InitChain(call) => Response::InitChain(self.init_chain(call)?),
            Request::Query(call) => Response::Query(self.query(&call)),
            Request::CheckTx(call) => {
                Response::CheckTx(self.check_tx(&call.tx, call.r#type == CheckTxType::Recheck as i32))
            }
            Request::PrepareProposal(call) => Response::PrepareProposal(self.prepare_proposal(&call)?),
            Request::ProcessProposal(call) => self.process_proposal(&call.txs),
            Request::FinalizeBlock(call) => Response::FinalizeBlock(self.finalize_block(call)?),
            Request::ExtendVote(_) => Response::ExtendVote(ResponseExtendVote { vote_extension: Bytes::new() }),
            Request::VerifyVoteExtension(call) => {
                // None of ours has one.
                let empty = call.vote_extension.is_empty();
                let status = if empty { VerifyStatus::Accept } else { VerifyStatus::Reject };
                Response::VerifyVoteExtension(ResponseVerifyVoteExtension { status: status.into() })
            }
            Request::Commit(_) => Response::Commit(self.commit()?),
            Request::ListSnapshots(_) => Response::ListSnapshots(self.list_snapshots()),
            Request::LoadSnapshotChunk(call) => Response::LoadSnapshotChunk(self.load_chunk(&call)),
            Request::OfferSnapshot(call) => Response::OfferSnapshot(self.offer_snapshot(call)),
            Request::ApplySnapshotChunk(call) => Response::ApplySnapshotChunk(self.apply_chunk(&call)),
        })
    }

    fn info(&self) -> ResponseInfo {
        let standing = self.engine.standing();
        ResponseInfo {
            data: "keelstone".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            app_version: APP_VERSION,
            // Height 0 is what asks for InitChain, whatever the height of the genesis.
            last_block_height: standing.last.map_or(0, engine_height),
            last_block_app_hash: standing.last.map_or_else(Bytes::new, |_| bytes_of(&standing.root.0)),
        }
    }

    fn init_chain(&self, call: RequestInitChain) -> Result<ResponseInitChain, Failure> {
        self.sync.lock().unwrap_or_else(PoisonError::into_inner).chain_begun();
        can_run_under(call.consensus_params.as_ref(), self.engine.gas_wanted()?)?;
        let validators = call.validators.iter().map(|update| {
            let key = match update.pub_key.as_ref().and_then(|key| key.sum.as_ref()) {
                Some(public_key::Sum::Ed25519(key)) => <[u8; 32]>::try_from(key.as_slice()).ok(),
                _ => None,
            };
            let power = u64::try_from(update.power).ok();
            let (key, power) = key
                .zip(power)
                .ok_or_else(|| Failure::usage("the engine's genesis has a validator whose key is not Ed25519"))?;
            Ok(Validator { key: PublicKey(Hash(key)), power })
        });
        let begun = self.engine.begin(&Begin {
            chain_id: call.chain_id,
            time: timestamp(call.time.as_ref())?,
            initial_height: height(call.initial_height)?,
            validators: validators.collect::<Result<_, Failure>>()?,
            app_state: call.app_state_bytes.to_vec(),
        })?;
        tracing::info!(root = %begun.root, validators = begun.validators.len(), "the chain begins");
        // The engine's own parameters stay, with our version among them: `cometbft rollback` takes the version of the
        // headers from there, and refuses every further block if it is another than the one in them.
        let version = Some(VersionParams { app: APP_VERSION });
        Ok(ResponseInitChain {
            consensus_params: Some(ConsensusParams { version, ..Default::default() }),
            validators: begun.validators.iter().map(update).collect(),
            app_hash: bytes_of(&begun.root.0),
        })
    }

    fn check_tx(&self, transaction: &Bytes, again: bool) -> ResponseCheckTx {
        let checked = self.engine.check_transaction(transaction, again);
        if !again {
            self.metrics.transaction(if checked.is_ok() { "accepted" } else { "refused" });
        }
        match checked.and_then(|id| Ok((id, self.engine.gas_wanted()?))) {
            Ok((id, gas)) => ResponseCheckTx { data: bytes_of(&id.0), gas_wanted: signed(gas), ..Default::default() },
            Err(refusal) => ResponseCheckTx {
                code: u32::from(refusal.code()),
                log: refusal.to_string(),
                codespace: CODESPACE.to_owned(),
                ..Default::default()
            },
        }
    }

    // spec: LEDGER-6
    fn prepare_proposal(&self, call: &RequestPrepareProposal) -> Result<ResponsePrepareProposal, Failure> {
        let bytes_max = usize::try_from(call.max_tx_bytes).unwrap_or_default();
        let chosen = self.engine.choose(&call.txs, bytes_max)?;
        Ok(ResponsePrepareProposal { txs: chosen.into_iter().map(|index| call.txs[index].clone()).collect() })
    }

    // spec: LEDGER-6
    fn process_proposal(&self, transactions: &[Bytes]) -> Response {
        let accepted = ResponseProcessProposal { status: ProposalStatus::Accept.into() };
        match self.engine.judge(transactions) {
            Ok(()) => Response::ProcessProposal(accepted),
            Err(error) => refused(&error),
        }
    }

    fn finalize_block(&self, call: RequestFinalizeBlock) -> Result<ResponseFinalizeBlock, Failure> {
        let mut events: Vec<Event> = call.misbehavior.iter().map(|found| self.note_misbehavior(found)).collect();
        let started = Instant::now();
        let finalized = self.engine.finalize(Decided {
            height: height(call.height)?,
            time: timestamp(call.time.as_ref())?,
            proposer: call.proposer_address.to_vec(),
            next_validators: call.next_validators_hash.to_vec(),
            transactions: call.txs,
        })?;
        *self.ran_for.lock().unwrap_or_else(PoisonError::into_inner) = started.elapsed();
        let Finalized { root, results, continuations, validators, limits } = &*finalized;
        events.extend(continuations.iter().map(continuation));
        Ok(ResponseFinalizeBlock {
            events,
            tx_results: results.iter().map(result).collect(),
            validator_updates: validators.iter().map(update).collect(),
            consensus_param_updates: limits.as_ref().map(parameters_for),
            app_hash: bytes_of(&root.0),
        })
    }

    /// Who misbehaved is the engine's to find and this chain's to know of; it has no consequence in state.
    fn note_misbehavior(&self, found: &Misbehavior) -> Event {
        let kind = match MisbehaviorType::try_from(found.r#type) {
            Ok(MisbehaviorType::DuplicateVote) => "duplicate_vote",
            Ok(MisbehaviorType::LightClientAttack) => "light_client_attack",
            _ => "unknown",
        };
        let address = found.validator.as_ref().map_or(&[][..], |validator| &validator.address[..]);
        let known = self.engine.validators().ok();
        let key = known.and_then(|known| known.keys().find(|key| address_of(key) == *address).copied());
        let validator = key.map_or_else(|| hex::encode(address), |key| key.to_string());
        tracing::warn!(kind, validator, height = found.height, "a validator misbehaved");
        event(
            "keelstone.misbehavior",
            [("kind", kind.to_owned()), ("validator", validator), ("height", found.height.to_string())],
        )
    }

    fn commit(&self) -> Result<ResponseCommit, Failure> {
        let started = Instant::now();
        let height = self.engine.commit_decided()?.block.height;
        let ran_for = std::mem::take(&mut *self.ran_for.lock().unwrap_or_else(PoisonError::into_inner));
        self.metrics.block_seconds.observe((ran_for + started.elapsed()).as_secs_f64());
        self.sync.lock().unwrap_or_else(PoisonError::into_inner).confirmed();
        let oldest = self.snapshots.as_ref().map(|snapshots| snapshots.oldest_listed());
        let retain_height = retain_height(height, self.retain_blocks, oldest);
        Ok(ResponseCommit { retain_height: engine_height(retain_height) })
    }

    // ---- snapshots

    /// What other nodes may join from. Whatever is wrong here, the answer is none.
    fn list_snapshots(&self) -> ResponseListSnapshots {
        let listed = self.snapshots.as_ref().map(|snapshots| snapshots.listed()).unwrap_or_default();
        let snapshot = |info: Info| Snapshot {
            height: info.id.height.0,
            format: info.id.format,
            chunks: info.chunks,
            hash: bytes_of(&info.hash),
            metadata: info.metadata.into(),
        };
        ResponseListSnapshots { snapshots: listed.into_iter().map(snapshot).collect() }
    }

    /// A chunk, or nothing: whoever asks for what is not here may be wrong, late or hostile.
    fn load_chunk(&self, call: &RequestLoadSnapshotChunk) -> ResponseLoadSnapshotChunk {
        let found = self.snapshots.as_ref().and_then(|all| all.chunk(call.height, call.format, call.chunk).ok());
        ResponseLoadSnapshotChunk { chunk: found.unwrap_or_default().into() }
    }

    fn offer_snapshot(&self, call: RequestOfferSnapshot) -> ResponseOfferSnapshot {
        let Some(snapshot) = call.snapshot else {
            return ResponseOfferSnapshot { result: OfferResult::Reject.into() };
        };
        let Snapshot { height, format, chunks, hash, metadata } = snapshot;
        let offer = Offer { height, format, chunks, hash: hash.to_vec(), metadata: metadata.to_vec() };
        let verdict = self.engine.offer_snapshot(&offer, &call.app_hash);
        let (result, name, reason) = match &verdict {
            OfferVerdict::Accept => (OfferResult::Accept, "accepted", String::new()),
            OfferVerdict::Abort { reason } => (OfferResult::Abort, "aborted", reason.clone()),
            OfferVerdict::Reject { reason } => (OfferResult::Reject, "rejected", reason.clone()),
            OfferVerdict::RejectFormat => (OfferResult::RejectFormat, "format_rejected", format!("format {format}")),
            OfferVerdict::RejectSender { reason } => (OfferResult::RejectSender, "sender_rejected", reason.clone()),
        };
        self.metrics.statesync_offer(name);
        self.metrics.statesync(&self.engine.sync_standing(), false, 0);
        let mut sync = self.sync.lock().unwrap_or_else(PoisonError::into_inner);
        match verdict {
            OfferVerdict::Accept => {
                tracing::info!(height, chunks, "state sync: a snapshot is accepted");
                sync.began(Instant::now());
            }
            OfferVerdict::Abort { .. } => {
                tracing::error!(height, reason, "state sync: this node cannot go on");
                sync.aborted(reason);
            }
            _ => {
                tracing::warn!(height, format, verdict = name, reason = printable(&reason), "state sync: not this one");
                sync.refused(reason);
            }
        }
        ResponseOfferSnapshot { result: result.into() }
    }

    fn apply_chunk(&self, call: &RequestApplySnapshotChunk) -> ResponseApplySnapshotChunk {
        let before = self.engine.sync_standing();
        // The last chunk is answered when the whole state is built.
        let last = matches!(&before, SyncStanding::Receiving { progress, .. }
            if progress.chunks_done.saturating_add(1) >= progress.chunks);
        self.metrics.statesync(&before, last, 0);
        let verdict = self.engine.apply_chunk(call.index, &call.chunk, &call.sender);
        let standing = self.engine.sync_standing();
        let mut sync = self.sync.lock().unwrap_or_else(PoisonError::into_inner);
        let left_seconds = match &standing {
            SyncStanding::Receiving { progress, .. } => sync.left_seconds(Instant::now(), progress),
            _ => 0,
        };
        self.metrics.statesync(&standing, false, left_seconds);
        let (result, refetch_chunks, reject_senders, refused) = match verdict {
            ChunkVerdict::Accept => {
                sync.moved(Instant::now());
                if let SyncStanding::Whole { .. } = &standing {
                    if last {
                        let (height, root) =
                            (self.engine.standing().last.unwrap_or_default(), self.engine.standing().root);
                        tracing::info!(%height, %root, "state sync: the state is whole, and its root is the certified one");
                        self.metrics.height.set(engine_height(height));
                    }
                    // Also a state that was whole before this process began, and is offered once more.
                    sync.whole();
                }
                (ChunkResult::Accept, vec![], vec![], None)
            }
            ChunkVerdict::Abort { reason } => {
                tracing::error!(index = call.index, reason, "state sync: this node cannot go on");
                sync.aborted(reason);
                (ChunkResult::Abort, vec![], vec![], Some("aborted"))
            }
            ChunkVerdict::Retry { refetch, reject_senders, reason } => {
                let (index, sender) = (call.index, printable(&call.sender));
                if refetch.is_empty() {
                    tracing::debug!(index, sender, reason, "state sync: a chunk came too early");
                } else {
                    tracing::warn!(index, sender, reason, "state sync: a bad chunk");
                    sync.refused(reason);
                }
                (ChunkResult::Retry, refetch, reject_senders, Some("retried"))
            }
            ChunkVerdict::RejectSnapshot { reason } => {
                tracing::warn!(reason, "state sync: the snapshot is given up");
                sync.refused(reason);
                (ChunkResult::RejectSnapshot, vec![], vec![], Some("snapshot_rejected"))
            }
        };
        self.metrics.statesync_chunk(call.chunk.len(), refused);
        ResponseApplySnapshotChunk { result: result.into(), refetch_chunks, reject_senders }
    }

    // ---- questions

    fn query(&self, call: &RequestQuery) -> ResponseQuery {
        let refused = |code, log: String| ResponseQuery {
            code,
            log,
            codespace: CODESPACE.to_owned(),
            height: call.height,
            key: call.data.clone(),
            ..Default::default()
        };
        let parts: Vec<&str> = call.path.split('/').collect();
        match parts.as_slice() {
            ["", "store", namespace, "key"] => {
                let place = Namespace::new(namespace).and_then(|space| Ok((space, Key::new(call.data.to_vec())?)));
                match place {
                    Ok((namespace, key)) => self.entry(call, &namespace, &key).unwrap_or_else(|error| {
                        let code = match &error {
                            ProveError::Store(StoreError::NotRetained { .. }) => NOT_KEPT,
                            ProveError::Convert(ConvertError::EmptyState) => NO_PROOF,
                            _ => FAILED,
                        };
                        refused(code, causes(&error))
                    }),
                    Err(error) => refused(BAD_QUERY, error.to_string()),
                }
            }
            ["", "status"] => match self.engine.status() {
                Ok(mut status) => {
                    status.snapshots = self.snapshots.as_ref().map(|all| SnapshotFigures::of(&all.listed()));
                    answer_json(&json!(status), status.height)
                }
                Err(refusal) => refused(FAILED, refusal.to_string()),
            },
            ["", "snapshots"] => {
                let report = self.snapshots.as_ref().map(|all| all.report()).unwrap_or_default();
                let height = self.engine.standing().last.unwrap_or_default();
                answer_json(&json!(report), height.0)
            }
            // The engine's `filter_peers`: this application has nothing against anybody.
            ["", "p2p", "filter", "addr" | "id", _] => ResponseQuery { height: call.height, ..Default::default() },
            _ => refused(
                BAD_QUERY,
                "there are /store/NAMESPACE/key with the key as data, /status and /snapshots".to_owned(),
            ),
        }
    }

    fn entry(&self, call: &RequestQuery, namespace: &Namespace, key: &Key) -> Result<ResponseQuery, ProveError> {
        let at = u64::try_from(call.height).ok().filter(|height| *height > 0).map(Height);
        let proven = self.engine.prove_entry(namespace, key, at, call.prove)?;
        let proof_ops = proven.proof.map(|proof| {
            // Lowest first: the entry under its namespace, then the namespace under the app hash. An absent namespace
            // is proven by the second alone.
            let levels = [("entry", key.to_vec()), ("namespace", namespace.as_bytes().to_vec())];
            let skipped = levels.len() - proof.proofs.len().min(levels.len());
            let hasher = match proven.hasher {
                HashKind::Blake3 => "blake3",
                HashKind::Sha256 => "sha256",
            };
            let ops = levels.into_iter().skip(skipped).zip(&proof.proofs).map(|((level, key), proof)| ProofOp {
                r#type: format!("ics23:keelstone:{level}:{hasher}"),
                key,
                data: proof.encode_to_vec(),
            });
            ProofOps { ops: ops.collect() }
        });
        Ok(ResponseQuery {
            key: call.data.clone(),
            value: proven.value.unwrap_or_default().into(),
            proof_ops,
            height: engine_height(proven.height),
            ..Default::default()
        })
    }
}

/// What is known of an engine that makes no block and does not say where it stands, by the last block that was confirmed here.
pub(super) fn unanswered(confirmed: Option<Height>) -> String {
    match confirmed {
        None => {
            "the engine makes no block, and its RPC (engine.rpc) does not say whether state sync goes on".to_owned()
        }
        Some(height) => format!(
            "the engine has made no block since it connected, and its RPC (engine.rpc) does not say where it stands; the \
             last here is {height}"
        ),
    }
}

/// What a call is called, for the log.
fn name_of(request: &Request) -> &'static str {
    match request {
        Request::Echo(_) => "Echo",
        Request::Flush(_) => "Flush",
        Request::Info(_) => "Info",
        Request::InitChain(_) => "InitChain",
        Request::Query(_) => "Query",
        Request::CheckTx(_) => "CheckTx",
        Request::Commit(_) => "Commit",
        Request::ListSnapshots(_) => "ListSnapshots",
        Request::OfferSnapshot(_) => "OfferSnapshot",
        Request::LoadSnapshotChunk(_) => "LoadSnapshotChunk",
        Request::ApplySnapshotChunk(_) => "ApplySnapshotChunk",
        Request::PrepareProposal(_) => "PrepareProposal",
        Request::ProcessProposal(_) => "ProcessProposal",
        Request::ExtendVote(_) => "ExtendVote",
        Request::VerifyVoteExtension(_) => "VerifyVoteExtension",
        Request::FinalizeBlock(_) => "FinalizeBlock",
    }
}

/// Refuses parameters of the engine's genesis with which a chain would begin and never get anywhere: the engine keeps every
/// transaction out that may use more gas than a block may have, and halts at a validator whose key it does not take.
fn can_run_under(parameters: Option<&ConsensusParams>, gas_wanted: u64) -> Result<(), Failure> {
    let Some(parameters) = parameters else { return Ok(()) };
    if let Some(block) = &parameters.block
        && let Ok(max_gas) = u64::try_from(block.max_gas)
        && max_gas < gas_wanted
    {
        let message = format!(
            "the engine's genesis has block.max_gas {max_gas}, and each transaction may use {gas_wanted} \
             (limits.bundle_gas_max in genesis.json): none would ever be taken"
        );
        return Err(Failure::usage(message).hint("set block.max_gas to -1, or to at least that"));
    }
    if let Some(evidence) = &parameters.evidence
        && evidence.max_bytes > ENGINE_BLOCK_BYTES_LEAST
    {
        let message = format!(
            "the engine's genesis has evidence.max_bytes {}, which the block.max_bytes that it is told of when the chain \
             changes its limits may be below: it would halt then",
            evidence.max_bytes
        );
        return Err(Failure::usage(message).hint(format!("set it to at most {ENGINE_BLOCK_BYTES_LEAST}")));
    }
    if let Some(validator) = &parameters.validator
        && !validator.pub_key_types.is_empty()
        && !validator.pub_key_types.iter().any(|kind| kind == ED25519)
    {
        let message = format!(
            "the engine's genesis allows validators with keys of {}, and this chain's are {ED25519}",
            validator.pub_key_types.join(", ")
        );
        return Err(Failure::usage(message).hint(format!("add {ED25519} to validator.pub_key_types")));
    }
    Ok(())
}

/// What the engine has to allow for blocks within these limits. It is told whatever it allows now, which is not known here: so gas
/// is counted by the chain alone, and there is room for all transactions of a block, with what the engine puts beside them.
// spec: LEDGER-10
fn parameters_for(limits: &ChainLimits) -> ConsensusParams {
    let frames = i64::from(limits.block_transactions_max) * i64::from(TRANSACTION_OVERHEAD);
    let room = i64::from(limits.block_bytes_max) + frames + ENGINE_BLOCK_BYTES_BESIDE;
    let max_bytes = room.max(ENGINE_BLOCK_BYTES_LEAST);
    ConsensusParams { block: Some(BlockParams { max_bytes, max_gas: -1 }), ..Default::default() }
}

/// The lowest block the engine may not forget after block `height`: of the last ones as many as `retain` says (0: all),
/// and from that of the oldest snapshot on all: whoever joins from it verifies the headers of its height and the two above, and
/// fetches the blocks behind it. With snapshots to come and none there yet, everything is kept.
pub(super) fn retain_height(height: Height, retain: u64, oldest: Option<Option<Height>>) -> Height {
    if retain == 0 {
        return Height(0);
    }
    let wanted = height.0.saturating_sub(retain - 1);
    match oldest {
        None => Height(wanted),
        Some(None) => Height(0),
        Some(Some(snapshot)) => Height(wanted.min(snapshot.0)),
    }
}

/// A stranger's words as one short line of a log.
fn printable(text: &str) -> String {
    const CHARACTERS: usize = 80;
    text.chars().take(CHARACTERS).map(|c| if c.is_control() { '.' } else { c }).collect()
}

/// The answer to a proposed block that no honest node makes, whether it was decoded or not.
// spec: LEDGER-6
pub(super) fn refused(error: &dyn std::error::Error) -> Response {
    tracing::warn!(%error, "a proposed block is refused");
    Response::ProcessProposal(ResponseProcessProposal { status: ProposalStatus::Reject.into() })
}

/// The answer that stops the engine.
pub(crate) fn exception(error: String) -> Response {
    Response::Exception(ResponseException { error })
}

fn bytes_of(hash: &Hash) -> Bytes {
    Bytes::copy_from_slice(hash.as_bytes())
}

/// A number of ours in a signed field of the engine's. None comes near the end of either.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn engine_height(height: Height) -> i64 {
    signed(height.0)
}

fn height(height: i64) -> Result<Height, Failure> {
    let height = u64::try_from(height).ok().filter(|height| *height > 0);
    height.map(Height).ok_or_else(|| Failure::usage("the engine names a height below 1"))
}

/// The engine's time in milliseconds; it does not run backwards, so neither do these.
fn timestamp(time: Option<&EngineTime>) -> Result<Timestamp, Failure> {
    let millis = |time: &EngineTime| {
        let nanos = u64::try_from(time.nanos).ok()?;
        u64::try_from(time.seconds).ok()?.checked_mul(1_000)?.checked_add(nanos / 1_000_000)
    };
    let millis = time.and_then(millis).ok_or_else(|| Failure::usage("the engine names a time before 1970, or none"))?;
    Ok(Timestamp(millis))
}

fn update(validator: &Validator) -> ValidatorUpdate {
    let key = public_key::Sum::Ed25519(validator.key.as_bytes().to_vec());
    ValidatorUpdate { pub_key: Some(EngineKey { sum: Some(key) }), power: signed(validator.power) }
}

fn result(result: &TxResult) -> ExecTxResult {
    ExecTxResult {
        code: result.code,
        data: result.receipt.clone().into(),
        log: result.reason.clone(),
        gas_wanted: signed(result.gas_wanted),
        gas_used: signed(result.gas_used),
        events: vec![event(
            "keelstone.transaction",
            [("id", result.id.to_string()), ("sender", result.sender.to_string())],
        )],
        codespace: if result.code == 0 { String::new() } else { CODESPACE.to_owned() },
        info: String::new(),
    }
}

/// What a block did for an async bundle, or by itself, which no transaction of the block tells.
// spec: BLOCK-6, BLOCK-8, BLOCK-9
fn continuation(continuation: &Continuation) -> Event {
    let by = continuation.by.map_or_else(String::new, |id| id.to_string());
    if let Some((when, function)) = hook_of(continuation) {
        let attributes = [
            ("hook", when.name().to_owned()),
            ("function", function.to_string()),
            ("by", by),
            ("progress", progress_name(&continuation.progress).to_owned()),
            ("state_hash", continuation.state_hash.0.to_string()),
            ("gas_used", continuation.gas_used.to_string()),
        ];
        return event("keelstone.hook", attributes);
    }
    event(
        "keelstone.continuation",
        [
            ("bundle", continuation.bundle.to_string()),
            ("by", by),
            ("progress", progress_name(&continuation.progress).to_owned()),
            ("first", continuation.first.to_string()),
            ("operations", continuation.operations().len().to_string()),
            ("state_hash", continuation.state_hash.0.to_string()),
            ("gas_used", continuation.gas_used.to_string()),
        ],
    )
}

fn event<const N: usize>(kind: &str, attributes: [(&str, String); N]) -> Event {
    let attribute = |(key, value): (&str, String)| EventAttribute { key: key.to_owned(), value, index: true };
    Event { r#type: kind.to_owned(), attributes: attributes.into_iter().map(attribute).collect() }
}

fn answer_json(value: &serde_json::Value, height: u64) -> ResponseQuery {
    ResponseQuery { value: value.to_string().into_bytes().into(), height: signed(height), ..Default::default() }
}
