//! The application as an engine meets it: over a real socket, with messages as CometBFT sends them.

use super::{Application, Server};
use crate::api::Refusal;
use crate::config::{AbciAddress, Config};
use crate::engine::statesync::SyncStanding;
use crate::engine::{self, Engine};
use crate::exit::Exit;
use crate::generations::Fault;
use crate::health::Health;
use crate::home::Home;
use crate::library::open_library;
use crate::metrics::Metrics;
use crate::snapshots::{Service, making};
use bytes::Bytes;
use keelstone_codec::{
    BoundedSet, ChainId, Encode as _, Fixed, Hash, Height, Key, Namespace, Root, Text, Timestamp, Value,
};
use keelstone_execution::{
    Batching, Bundle, Context, Denied, Draft, Item, Mode, Operation, Registry, Transition, denied, event, namespace,
    transition,
};
use keelstone_ledger::modules::limits::{SET_LIMITS, SetLimits};
use keelstone_ledger::modules::validators::{SET_VALIDATOR, SetValidator};
use keelstone_ledger::modules::{agents, standard};
use keelstone_ledger::{ChainLimits, Genesis, Inherited, SecretKey, Transaction, Validator};
use prost::Message as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tendermint_proto::google::protobuf::Timestamp as EngineTime;
use tendermint_proto::v0_38::abci::request::Value as Call;
use tendermint_proto::v0_38::abci::response::Value as Answer;
use tendermint_proto::v0_38::abci::response_apply_snapshot_chunk::Result as ChunkResult;
use tendermint_proto::v0_38::abci::response_offer_snapshot::Result as OfferResult;
use tendermint_proto::v0_38::abci::response_process_proposal::ProposalStatus;
use tendermint_proto::v0_38::abci::{self as proto, Request, Response};
use tendermint_proto::v0_38::types::{BlockParams, ConsensusParams, EvidenceParams, ValidatorParams};
use tokio::sync::watch;

pub(super) fn key(number: u8) -> SecretKey {
    SecretKey::from_seed(&[number; 32])
}

/// Who proposes all blocks here.
const PROPOSER: u8 = 100;
const GENESIS_SECONDS: i64 = 1_700_000_000;

/// A home directory of a chain with one validator, where person 9 may change the validators.
pub(super) struct Place {
    directory: tempfile::TempDir,
    genesis: Genesis,
    config: Config,
}

impl Place {
    pub(super) fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Genesis)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut genesis = Genesis::new(ChainId::new("abci-test").unwrap());
        genesis.time = Timestamp(GENESIS_SECONDS as u64 * 1_000);
        genesis.validators = vec![Validator { key: key(PROPOSER).public(), power: 10 }];
        genesis.grants.insert(key(9).public(), [SET_VALIDATOR].into());
        change(&mut genesis);
        Home::new(directory.path().to_owned()).write_genesis(&genesis).unwrap();
        let mut config = Config::default();
        config.store.cache_bytes = 1 << 20;
        // How full the machine's disk is is none of these tests' business.
        config.snapshots.reserve_percent = 0;
        Self { directory, genesis, config }
    }

    fn home(&self) -> Home {
        Home::new(self.directory.path().to_owned())
    }

    pub(super) fn start(&self) -> Node {
        Node::start(self)
    }

    /// A place for another node of the same chain.
    fn another(&self) -> Self {
        let genesis = self.genesis.clone();
        Self::with(|own| *own = genesis)
    }

    /// What lies here at this moment, as a process that is killed now would leave it.
    fn copy(&self) -> Self {
        let other = Self {
            directory: tempfile::tempdir().unwrap(),
            genesis: self.genesis.clone(),
            config: self.config.clone(),
        };
        copy_directory(self.directory.path(), other.directory.path());
        other
    }

    /// The names in the data directory.
    fn names(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.home().data()).unwrap();
        let mut names: Vec<String> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| !["LOCK", "abci.sock", "snapshots"].contains(&name.as_str()));
        names.sort();
        names
    }
}

fn copy_directory(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (kind, to) = (entry.file_type().unwrap(), to.join(entry.file_name()));
        if kind.is_dir() {
            std::fs::create_dir_all(&to).unwrap();
            copy_directory(&entry.path(), &to);
        } else if kind.is_file() {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// The application, serving.
pub(super) struct Node {
    pub(super) engine: Arc<dyn Engine>,
    application: Arc<Application>,
    health: Arc<Health>,
    address: String,
    stop: watch::Sender<bool>,
    server: tokio::task::JoinHandle<super::Calls>,
    runtime: tokio::runtime::Runtime,
}

impl Node {
    fn start(place: &Place) -> Self {
        Self::of(place, &standard())
    }

    /// A node whose program has these functions.
    fn of(place: &Place, registry: &Registry) -> Self {
        let engine = engine::open_to_join(&place.home(), &place.config, registry).unwrap();
        let (health, metrics) = (Arc::new(Health::default()), Arc::new(Metrics::new()));
        let snapshots = place
            .config
            .snapshots
            .enabled
            .then(|| Service::start(&engine, &place.config, &place.home(), metrics.clone()).unwrap());
        let retain = place.config.engine.retain_blocks;
        let application = Arc::new(Application::new(engine.clone(), metrics, health.clone(), snapshots, retain));
        let asked = application.clone();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let server = runtime.block_on(Server::bind(&place.config.engine.abci, &place.home())).unwrap();
        let address = server.address().to_owned();
        let (stop, stopped) = watch::channel(false);
        let server = runtime.spawn(server.serve(application, stopped));
        Self { engine, application: asked, health, address, stop, server, runtime }
    }

    pub(super) fn connect(&self) -> Client {
        let stream: Box<dyn Stream> = match self.address.split_once("://").unwrap() {
            ("unix", path) => Box::new(UnixStream::connect(path).unwrap()),
            (_, address) => {
                let stream = TcpStream::connect(address).unwrap();
                stream.set_nodelay(true).unwrap();
                Box::new(stream)
            }
        };
        Client { stream }
    }

    /// Stops as a signal does.
    pub(super) fn stop(self) {
        let _ = self.stop.send(true);
        self.runtime.block_on(self.server).unwrap();
    }
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// The engine's end of a connection.
pub(super) struct Client {
    stream: Box<dyn Stream>,
}

impl Client {
    fn receive(&mut self) -> Option<Answer> {
        let (mut length, mut shift) = (0usize, 0);
        loop {
            let mut byte = [0];
            match self.stream.read(&mut byte) {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
            length |= usize::from(byte[0] & 0x7f) << shift;
            shift += 7;
            if byte[0] & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).ok()?;
        Response::decode(Bytes::from(body)).unwrap().value
    }

    /// A call as CometBFT makes it: the call, a flush, both answers.
    fn call(&mut self, call: Call) -> Answer {
        let flush = Call::Flush(proto::RequestFlush {});
        let both = [call, flush].map(|call| Request { value: Some(call) }.encode_length_delimited_to_vec());
        self.stream.write_all(&both.concat()).unwrap();
        let answer = self.receive().unwrap();
        if !matches!(answer, Answer::Exception(_)) {
            assert!(matches!(self.receive(), Some(Answer::Flush(_))));
        }
        answer
    }

    fn info(&mut self) -> proto::ResponseInfo {
        match self.call(Call::Info(proto::RequestInfo::default())) {
            Answer::Info(info) => info,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn init(&mut self, place: &Place) -> proto::ResponseInitChain {
        match self.call(Call::InitChain(init_chain(place))) {
            Answer::InitChain(begun) => begun,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn finalize(&mut self, block: proto::RequestFinalizeBlock) -> proto::ResponseFinalizeBlock {
        match self.call(Call::FinalizeBlock(block)) {
            Answer::FinalizeBlock(finalized) => finalized,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn commit(&mut self) -> proto::ResponseCommit {
        match self.call(Call::Commit(proto::RequestCommit {})) {
            Answer::Commit(committed) => committed,
            other => panic!("{other:?}"),
        }
    }

    fn check(&mut self, tx: &Bytes, again: bool) -> proto::ResponseCheckTx {
        let call = proto::RequestCheckTx { tx: tx.clone(), r#type: i32::from(again) };
        match self.call(Call::CheckTx(call)) {
            Answer::CheckTx(checked) => checked,
            other => panic!("{other:?}"),
        }
    }

    fn query(&mut self, call: proto::RequestQuery) -> proto::ResponseQuery {
        match self.call(Call::Query(call)) {
            Answer::Query(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn list_snapshots(&mut self) -> Vec<proto::Snapshot> {
        match self.call(Call::ListSnapshots(proto::RequestListSnapshots {})) {
            Answer::ListSnapshots(list) => list.snapshots,
            other => panic!("{other:?}"),
        }
    }

    fn load(&mut self, height: u64, format: u32, chunk: u32) -> Bytes {
        match self.call(Call::LoadSnapshotChunk(proto::RequestLoadSnapshotChunk { height, format, chunk })) {
            Answer::LoadSnapshotChunk(answer) => answer.chunk,
            other => panic!("{other:?}"),
        }
    }

    fn offer(&mut self, snapshot: &proto::Snapshot, app_hash: &Bytes) -> OfferResult {
        let call = proto::RequestOfferSnapshot { snapshot: Some(snapshot.clone()), app_hash: app_hash.clone() };
        match self.call(Call::OfferSnapshot(call)) {
            Answer::OfferSnapshot(answer) => answer.result(),
            other => panic!("{other:?}"),
        }
    }

    fn apply(&mut self, index: usize, chunk: &Bytes, sender: &str) -> proto::ResponseApplySnapshotChunk {
        let (index, chunk, sender) = (u32::try_from(index).unwrap(), chunk.clone(), sender.to_owned());
        match self.call(Call::ApplySnapshotChunk(proto::RequestApplySnapshotChunk { index, chunk, sender })) {
            Answer::ApplySnapshotChunk(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn exception(&mut self, call: Call) -> String {
        match self.call(call) {
            Answer::Exception(exception) => exception.error,
            other => panic!("{other:?}"),
        }
    }
}

fn init_chain(place: &Place) -> proto::RequestInitChain {
    let hash = place.genesis.first_state().unwrap().hash;
    proto::RequestInitChain {
        time: Some(EngineTime { seconds: GENESIS_SECONDS, nanos: 0 }),
        chain_id: "abci-test".to_owned(),
        consensus_params: None,
        validators: vec![],
        app_state_bytes: format!("\"{hash}\"").into(),
        initial_height: 1,
    }
}

pub(super) fn block(height: i64, txs: Vec<Bytes>) -> proto::RequestFinalizeBlock {
    proto::RequestFinalizeBlock {
        txs,
        height,
        time: Some(EngineTime { seconds: GENESIS_SECONDS + height, nanos: 5_000_000 }),
        proposer_address: crate::cometbft::keys::address_of(&key(PROPOSER).public()).to_vec().into(),
        ..Default::default()
    }
}

fn signed(person: u8, nonce: u64, operation: Operation) -> Bytes {
    bundled(person, nonce, Mode::Sync, vec![operation])
}

fn bundled(person: u8, nonce: u64, mode: Mode, operations: Vec<Operation>) -> Bytes {
    let transaction = Transaction {
        chain_id: ChainId::new("abci-test").unwrap(),
        sender: key(person).public(),
        nonce,
        expiry_height: Height(1_000),
        session: None,
        bundle: Bundle::new(mode, operations).unwrap(),
    };
    transaction.sign(&key(person)).to_bytes().into()
}

pub(super) fn register(person: u8, nonce: u64) -> Bytes {
    let personality = agents::Personality::even(Fixed::from_micros(500_000));
    let name = Text::new(format!("agent {person}")).unwrap();
    signed(person, nonce, Operation::of(&agents::Register { name, personality, traits: Default::default() }))
}

/// A place for each kind of socket that an engine may use.
fn on_each_socket() -> [Place; 2] {
    let tcp = SocketAddr::from(([127, 0, 0, 1], 0));
    [AbciAddress::Unix(PathBuf::from("data/abci.sock")), AbciAddress::Tcp(tcp)].map(|abci| {
        let mut place = Place::new();
        place.config.engine.abci = abci;
        place
    })
}

/// spec: LEDGER-1, STORE-9. From InitChain to a committed block with transactions, over either socket.
#[test]
fn a_chain_begins_and_makes_blocks_over_unix_and_tcp() {
    for place in on_each_socket() {
        let node = place.start();
        let mut client = node.connect();
        let info = client.info();
        assert_eq!((info.last_block_height, info.last_block_app_hash.len()), (0, 0));
        let begun = client.init(&place);
        assert_eq!(begun.validators.len(), 1);
        assert_eq!(begun.app_hash, client.init(&place).app_hash, "an engine that was killed asks again");

        let tx = register(1, 0);
        let checked = client.check(&tx, false);
        assert_eq!((checked.code, checked.data.len()), (0, 32));
        let again = client.finalize(block(1, vec![tx.clone(), tx.clone()]));
        let codes: Vec<u32> = again.tx_results.iter().map(|result| result.code).collect();
        assert_eq!(codes, [0, 8], "a nonce is used once: {:?}", again.tx_results[1].log);
        assert_ne!(again.app_hash, begun.app_hash);
        assert_eq!(client.info().last_block_height, 0, "nothing is durable yet");
        client.commit();
        let info = client.info();
        assert_eq!((info.last_block_height, info.last_block_app_hash), (1, again.app_hash.clone()));

        let empty = client.finalize(block(2, vec![]));
        client.commit();
        assert_eq!(empty.app_hash, again.app_hash, "an idle chain changes nothing");
        drop(client);
        node.stop();
    }
}

/// spec: STORE-9. FinalizeBlock can be asked twice and changes nothing that lasts; killed before Commit, the engine's
/// replay ends in the same state.
#[test]
fn a_crash_between_finalize_and_commit_leaves_the_state_before_and_a_replay_the_state_after() {
    let place = Place::new();
    let node = place.start();
    let mut client = node.connect();
    client.init(&place);
    client.finalize(block(1, vec![register(1, 0)]));
    client.commit();
    let before = client.info();
    let decided = block(2, vec![register(2, 0), register(1, 1)]);
    let first = client.finalize(decided.clone());
    assert_eq!(first, client.finalize(decided.clone()), "the same question has the same answer");
    let other = client.finalize(block(2, vec![]));
    assert_ne!(first.app_hash, other.app_hash, "another block is another question");
    assert_eq!(first, client.finalize(decided.clone()));
    drop(client);
    node.stop(); // Which commits nothing: what was not committed is lost.

    let node = place.start();
    let mut client = node.connect();
    assert_eq!(client.info(), before);
    assert_eq!(first, client.finalize(decided));
    client.commit();
    assert_eq!(client.info().last_block_app_hash, first.app_hash);
    node.stop();
}

/// The engine and this chain must begin with the same things.
#[test]
fn an_engine_of_another_chain_is_refused_by_name() {
    let place = Place::new();
    let node = place.start();
    let right = init_chain(&place);
    type Change = fn(&mut proto::RequestInitChain);
    let parameters = |block: Option<i64>, kinds: &[&str]| ConsensusParams {
        block: block.map(|max_gas| BlockParams { max_bytes: -1, max_gas }),
        validator: Some(ValidatorParams { pub_key_types: kinds.iter().map(ToString::to_string).collect() }),
        ..Default::default()
    };
    let wrong: [(&str, Change); 6] = [
        ("chain id", |call| call.chain_id = "other".to_owned()),
        ("initial height", |call| call.initial_height = 2),
        ("app_state", |call| call.app_state_bytes = "{}".into()),
        ("time", |call| call.time = Some(EngineTime { seconds: GENESIS_SECONDS - 1, nanos: 0 })),
        ("a time", |call| call.time = None),
        ("validators", |call| {
            let sum = tendermint_proto::v0_38::crypto::public_key::Sum::Ed25519(vec![1; 32]);
            let pub_key = Some(tendermint_proto::v0_38::crypto::PublicKey { sum: Some(sum) });
            call.validators = vec![proto::ValidatorUpdate { pub_key, power: 10 }];
        }),
    ];
    for (what, change) in wrong {
        let mut call = right.clone();
        change(&mut call);
        let error = node.connect().exception(Call::InitChain(call));
        assert!(error.contains(what), "{what}: {error}");
    }
    // With these a chain would begin, and take no transaction, or halt at its first new validator.
    for (what, parameters) in [
        ("block.max_gas 50000000", parameters(Some(50_000_000), &["ed25519"])),
        ("block.max_gas 0", parameters(Some(0), &["ed25519"])),
        ("secp256k1", parameters(Some(-1), &["secp256k1"])),
    ] {
        let call = proto::RequestInitChain { consensus_params: Some(parameters), ..right.clone() };
        let error = node.connect().exception(Call::InitChain(call));
        assert!(error.contains(what), "{what}: {error}");
    }
    assert!(!node.health.failed.load(Ordering::Relaxed), "this node is sound");
    for parameters in [parameters(Some(1_000_000_000), &["secp256k1", "ed25519"]), parameters(None, &[])] {
        let call = proto::RequestInitChain { consensus_params: Some(parameters), ..right.clone() };
        assert!(matches!(node.connect().call(Call::InitChain(call)), Answer::InitChain(_)));
    }
    node.connect().init(&place);
    node.stop();
}

/// spec: LEDGER-6, TX-5.
#[test]
fn proposals_hold_what_goes_on_and_are_refused_for_what_does_not_decode_alone() {
    let place = Place::new();
    let node = place.start();
    let mut client = node.connect();
    client.init(&place);
    let (late, early) = (register(1, 1), register(1, 0));
    let garbage = Bytes::from_static(b"garbage");
    let call = |txs, max_tx_bytes| {
        Call::PrepareProposal(proto::RequestPrepareProposal { txs, max_tx_bytes, height: 1, ..Default::default() })
    };
    let all = vec![late.clone(), garbage.clone(), early.clone()];
    let Answer::PrepareProposal(prepared) = client.call(call(all.clone(), 1 << 20)) else { panic!() };
    assert_eq!(prepared.txs, [early.clone(), late.clone()]);
    let Answer::PrepareProposal(prepared) = client.call(call(all, i64::try_from(early.len()).unwrap() + 6)) else {
        panic!()
    };
    assert_eq!(prepared.txs, std::slice::from_ref(&early));
    let mut judge = |txs| {
        let call = proto::RequestProcessProposal { txs, height: 1, ..Default::default() };
        let Answer::ProcessProposal(judged) = client.call(Call::ProcessProposal(call)) else { panic!() };
        judged.status == ProposalStatus::Accept as i32
    };
    assert!(judge(vec![late, early]), "what fails to execute is no reason against a block");
    assert!(judge(vec![]));
    assert!(!judge(vec![garbage]));
    node.stop();
}

/// spec: LEDGER-8. The engine is told of changes with the block that makes them, and names proposers by address.
#[test]
fn validators_change_by_transaction_and_misbehaviour_is_told() {
    let place = Place::new();
    let node = place.start();
    let mut client = node.connect();
    client.init(&place);
    let set =
        |nonce, person: u8, power| signed(9, nonce, Operation::of(&SetValidator { key: key(person).public(), power }));
    let mut decided = block(1, vec![set(0, 101, 7), set(1, PROPOSER, 0)]);
    decided.misbehavior = vec![proto::Misbehavior {
        r#type: proto::MisbehaviorType::DuplicateVote as i32,
        validator: Some(proto::Validator { address: decided.proposer_address.clone(), power: 10 }),
        height: 1,
        ..Default::default()
    }];
    let finalized = client.finalize(decided);
    let mut powers: Vec<i64> = finalized.validator_updates.iter().map(|update| update.power).collect();
    powers.sort_unstable();
    assert_eq!(powers, [0, 7]);
    let told = &finalized.events[0];
    assert_eq!(told.r#type, "keelstone.misbehavior");
    assert_eq!(told.attributes[1].value, key(PROPOSER).public().to_string());
    client.commit();
    client.finalize(block(2, vec![])); // The one who left still makes the next.
    client.commit();
    let error = client.exception(Call::FinalizeBlock(block(3, vec![])));
    assert!(error.contains("may not make blocks"), "{error}");
}

/// spec: LEDGER-10. The engine is told of limits with the block that sets them: it lets through what they let through, and never so
/// little that the evidence it puts into a block has no room.
#[test]
fn the_engine_is_told_of_limits_that_the_chain_changes() {
    let place = Place::with(|genesis| drop(genesis.grants.insert(key(9).public(), [SET_LIMITS].into())));
    let node = place.start();
    let mut client = node.connect();
    let mut call = init_chain(&place);
    let evidence = |max_bytes| Some(EvidenceParams { max_bytes, ..Default::default() });
    let parameters = |max_bytes| ConsensusParams { evidence: evidence(max_bytes), ..Default::default() };
    call.consensus_params = Some(parameters((21 << 20) + 1));
    let error = node.connect().exception(Call::InitChain(call.clone()));
    assert!(error.contains("evidence.max_bytes 22020097"), "{error}");
    call.consensus_params = Some(parameters(21 << 20));
    assert!(matches!(client.call(Call::InitChain(call)), Answer::InitChain(_)));

    let wanted = |client: &mut Client, nonce| client.check(&register(1, nonce), false).gas_wanted;
    assert_eq!(wanted(&mut client, 0), 1_000_000_000);
    let began_with = place.genesis.limits;
    let larger = ChainLimits { block_bytes_max: 32 << 20, bundle_gas_max: 2_000_000_000, ..began_with };
    let smaller = ChainLimits { block_bytes_max: 2 << 20, ..began_with };
    let frames = 6 * i64::from(began_with.block_transactions_max);
    for (height, limits, expected) in [(1, larger, (34 << 20) + frames), (2, smaller, 21 << 20)] {
        let nonce = u64::try_from(height).unwrap() - 1;
        let decided = block(height, vec![signed(9, nonce, Operation::of(&SetLimits { limits }))]);
        let finalized = client.finalize(decided);
        let result = &finalized.tx_results[0];
        assert_eq!(result.code, 0, "{}", result.log);
        let told = finalized.consensus_param_updates.expect("it is told");
        let block = told.block.expect("of blocks");
        assert_eq!((block.max_bytes, block.max_gas), (expected, -1));
        assert_eq!((told.evidence, told.validator, told.version), (None, None, None), "the rest stays the engine's");
        client.commit();
        assert_eq!(wanted(&mut client, 0), i64::try_from(limits.bundle_gas_max).unwrap());
    }
    let finalized = client.finalize(block(3, vec![register(1, 0)]));
    assert_eq!(finalized.consensus_param_updates, None);
    client.commit();
    drop(client);
    node.stop();
}

/// spec: BLOCK-6, LEDGER-3. What a block does for an async bundle stands in no transaction of it, so the block's own events
/// tell it; and it changes the app hash, which is why the engine makes a next block though it has no transactions.
#[test]
fn continuations_of_async_bundles_are_events_of_their_block() {
    let place = Place::new();
    let node = place.start();
    let mut client = node.connect();
    client.init(&place);
    let operations: Vec<Operation> =
        (101..104).map(|person| Operation::of(&SetValidator { key: key(person).public(), power: 7 })).collect();
    let borders = BoundedSet::new([1, 2]).unwrap();
    let mode = Mode::Async(Batching { borders, ..Batching::until(Height(50)) });
    let submitted = client.finalize(block(1, vec![bundled(9, 0, mode, operations)]));
    assert_eq!((submitted.tx_results[0].code, submitted.events.len()), (0, 0), "{}", submitted.tx_results[0].log);
    let id = submitted.tx_results[0].events[0].attributes[0].value.clone();
    client.commit();

    let (mut root, mut operations, mut height) = (submitted.app_hash, 0, 1);
    loop {
        height += 1;
        let finalized = client.finalize(block(height, vec![]));
        assert_eq!(client.finalize(block(height, vec![])), finalized);
        client.commit();
        assert_ne!(finalized.app_hash, root, "block {height} has a successor although nobody sends anything");
        root = finalized.app_hash;
        let mut progress = "";
        for event in &finalized.events {
            let of = |name: &str| &*event.attributes.iter().find(|attribute| attribute.key == name).unwrap().value;
            assert_eq!((&*event.r#type, of("bundle"), of("by")), ("keelstone.continuation", &*id, ""));
            assert_eq!(of("first"), operations.to_string());
            operations += of("operations").parse::<u32>().unwrap();
            progress = of("progress");
        }
        match progress {
            "advanced" => {}
            "complete" => break,
            other => panic!("block {height}: {other:?}"),
        }
    }
    assert_eq!(operations, 3);
    let idle = client.finalize(block(height + 1, vec![]));
    assert_eq!((idle.app_hash, idle.events.len()), (root, 0), "then nothing changes any more");
}

#[namespace("epochs")]
struct Epochs {
    begun: Item<u64>,
}

#[event("epochs.begun")]
struct Begun {
    number: u64,
}

/// Begins an epoch every third block; there is no fourth.
#[transition("epochs.turn/1", context = height)]
struct Turn;

impl Transition<Epochs> for Turn {
    type Output = ();
    fn apply(&self, epochs: &mut Draft<Epochs>, cx: &mut Context) -> Result<(), Denied> {
        if !cx.height()?.0.is_multiple_of(3) {
            return Ok(());
        }
        let number = epochs.begun.get_or_default()? + 1;
        epochs.begun.set(&number)?;
        cx.emit(&Begun { number })?;
        if number < 4 { Ok(()) } else { Err(denied!("there are three")) }
    }
}

/// spec: BLOCK-8, LEDGER-3. What a block does by itself is an event of it for the engine and for whoever asks for the block, and a
/// block in which nothing was due changes no app hash.
#[test]
fn what_a_block_does_by_itself_is_an_event_of_it() {
    let place = Place::new();
    let mut registry = standard();
    registry.end_block::<Epochs, Turn>().event::<Begun>();
    let node = Node::of(&place, &registry);
    let mut client = node.connect();
    let mut root = client.init(&place).app_hash;
    for height in 1..=12 {
        let finalized = client.finalize(block(height, vec![]));
        assert_eq!(client.finalize(block(height, vec![])), finalized);
        client.commit();
        let is_due = height % 3 == 0;
        assert_eq!((finalized.app_hash != root, finalized.events.len()), (is_due, usize::from(is_due)), "{height}");
        root = finalized.app_hash;
        if !is_due {
            continue;
        }
        let [event] = finalized.events.as_slice() else { panic!("one event") };
        let of = |name: &str| &*event.attributes.iter().find(|attribute| attribute.key == name).unwrap().value;
        let progress = if height < 12 { "complete" } else { "stopped" };
        assert_eq!((&*event.r#type, of("hook"), of("progress")), ("keelstone.hook", "end_block", progress));
        let shown = node.engine.block(Some(Height(height.unsigned_abs()))).unwrap();
        let [shown] = shown.continuations.as_slice() else { panic!("one continuation") };
        assert_eq!((shown.hook.as_deref(), shown.function.as_deref()), (Some("end_block"), Some("epochs.turn/1")));
        match &shown.failure {
            None => assert_eq!(shown.events[0]["data"]["number"], height / 3),
            Some(failure) => assert!(height == 12 && failure.reason.contains("there are three"), "{failure:?}"),
        }
    }
    let functions = node.engine.functions().unwrap();
    let turn = functions.iter().find(|function| function.name == "epochs.turn/1").unwrap();
    assert_eq!((turn.hook.as_deref(), turn.first_height, turn.last_height), (Some("end_block"), None, None));
}

/// spec: TREE-13. One entry with its proof at any height that is kept, in the form other chains check.
#[test]
fn questions_are_answered_with_proofs_of_both_levels() {
    let place = Place::new();
    let node = place.start();
    let (mut client, mut queries) = (node.connect(), node.connect());
    client.init(&place);
    client.finalize(block(1, vec![register(1, 0)]));
    client.commit();
    client.finalize(block(2, vec![register(2, 0)]));
    client.commit();
    let ask = |path: &str, data: &[u8], height| proto::RequestQuery {
        path: path.to_owned(),
        data: data.to_vec().into(),
        height,
        prove: true,
    };
    let types = |answer: &proto::ResponseQuery| -> Vec<String> {
        answer.proof_ops.iter().flat_map(|ops| &ops.ops).map(|op| op.r#type.clone()).collect()
    };
    let both = ["ics23:keelstone:entry:blake3", "ics23:keelstone:namespace:blake3"];
    let found = queries.query(ask("/store/blocks/key", &1u64.to_be_bytes(), 0));
    assert_eq!((found.code, found.height, types(&found)), (0, 2, both.map(str::to_owned).to_vec()));
    assert!(!found.value.is_empty());
    let absent = queries.query(ask("/store/blocks/key", &2u64.to_be_bytes(), 1));
    assert_eq!((absent.code, absent.height, absent.value.len()), (0, 1, 0), "block 2 was not there at height 1");
    assert_eq!(types(&absent), both);
    let nowhere = queries.query(ask("/store/nothing/key", b"x", 0));
    assert_eq!((nowhere.code, types(&nowhere)), (0, vec![both[1].to_owned()]));
    let ahead = queries.query(ask("/store/blocks/key", b"x", 99));
    assert_ne!(ahead.code, 0);
    assert!(ahead.log.contains("99"), "{}", ahead.log);
    for path in ["/p2p/filter/addr/192.0.2.1:26656", "/p2p/filter/id/0a0b"] {
        assert_eq!(queries.query(ask(path, b"", 0)).code, 0, "an engine that asks whom to let in hears no objection");
    }
    for path in ["", "/", "/store", "/store/UPPER/key", "/store/blocks/key/more", "/nothing", "/p2p/filter"] {
        assert_ne!(queries.query(ask(path, b"x", 0)).code, 0, "{path:?}");
    }
    let status = queries.query(ask("/status", b"", 0));
    let status: serde_json::Value = serde_json::from_slice(&status.value).unwrap();
    assert_eq!((status["height"].as_u64(), status["chain_id"].as_str()), (Some(2), Some("abci-test")));
    assert!(status.get("snapshots").is_none(), "this node makes none");
    let snapshots: serde_json::Value = serde_json::from_slice(&queries.query(ask("/snapshots", b"", 0)).value).unwrap();
    assert_eq!(snapshots["enabled"], false);
    node.stop();
}

/// What waits in the engine's pool is known here: the next nonce, and that a transaction waits.
#[test]
fn the_engines_pool_is_known_by_its_checks() {
    let place = Place::new();
    let node = place.start();
    let mut client = node.connect();
    client.init(&place);
    let nonce = |node: &Node| node.engine.account(&key(1).public()).unwrap().nonce;
    let (first, second, same) = (register(1, 0), register(1, 1), register(1, 1));
    assert_eq!(client.check(&first, false).code, 0);
    assert_eq!(client.check(&second, false).code, 0);
    assert_eq!(client.check(&same, false).code, 0, "the engine asks again for what it has forgotten");
    assert_eq!(nonce(&node), 2);
    client.finalize(block(1, vec![first.clone()]));
    client.commit();
    assert_ne!(client.check(&first, true).code, 0, "its nonce is used");
    assert_eq!(client.check(&second, true).code, 0);
    assert_eq!(nonce(&node), 2);
    client.finalize(block(2, vec![]));
    client.commit();
    assert_eq!(nonce(&node), 1, "what the engine does not name again does not wait any more");
    node.stop();
}

/// A question does not wait for a block, nor one connection for another.
#[test]
fn connections_do_not_wait_for_one_another() {
    let place = Place::new();
    let node = place.start();
    let (mut slow, mut quick) = (node.connect(), node.connect());
    // Half a frame: this connection waits for the rest.
    slow.stream.write_all(&[10, 1]).unwrap();
    assert_eq!(quick.info().last_block_height, 0);
    node.stop();
}

/// Whatever a connection says, it is closed cleanly and the others go on.
#[test]
fn ss60_hostile_frames_close_their_own_connection_and_nothing_else() {
    let place = Place::new();
    let node = place.start();
    let mut good = node.connect();
    let many = Request {
        value: Some(Call::FinalizeBlock(proto::RequestFinalizeBlock {
            txs: vec![Bytes::new(); super::FIELDS_MAX + 1],
            ..Default::default()
        })),
    };
    let frames: [&[u8]; 6] = [
        &[0x80; 11],
        &[0xff; 10],
        &[0x80, 0x80, 0x80, 0x80, 0x08], // 2 GiB
        &[3, 0x0b, 0x0c, 0x0d],          // no protobuf
        &[2, 0x0a, 0x7f],                // a field cut short
        &many.encode_length_delimited_to_vec(),
    ];
    for frame in frames {
        let mut client = node.connect();
        // The server may have closed before all was written.
        let _ = client.stream.write_all(frame);
        assert_eq!(client.receive(), None, "{:?}", &frame[..frame.len().min(12)]);
        assert_eq!(good.info().last_block_height, 0);
    }
    // A call of a later protocol is answered, not guessed at.
    let mut client = node.connect();
    client.stream.write_all(&[3, 0xaa, 0x01, 0x00]).unwrap();
    assert!(matches!(client.receive(), Some(Answer::Exception(_))));
    assert_eq!(client.receive(), None);

    // One byte at a time is slow, and fine.
    let mut client = node.connect();
    let info = Request { value: Some(Call::Info(proto::RequestInfo::default())) };
    for byte in info.encode_length_delimited_to_vec() {
        client.stream.write_all(&[byte]).unwrap();
        client.stream.flush().unwrap();
    }
    assert!(matches!(client.receive(), Some(Answer::Info(_))));
    node.stop();
}

/// spec: LEDGER-6. One proposer's block of so many transactions that it is not decoded is refused and the connection goes
/// on: closed, it would end every engine that is asked, and again after each start.
#[test]
fn ss60_a_proposal_of_too_many_transactions_is_refused_and_the_connection_goes_on() {
    let place = Place::new();
    let node = place.start();
    let mut client = node.connect();
    client.init(&place);
    for count in [super::FIELDS_MAX + 1, 300_000] {
        let txs = vec![Bytes::new(); count];
        let call = proto::RequestProcessProposal { txs, height: 1, ..Default::default() };
        let Answer::ProcessProposal(judged) = client.call(Call::ProcessProposal(call)) else { panic!() };
        assert_eq!(judged.status, ProposalStatus::Reject as i32, "{count} transactions");
    }
    client.finalize(block(1, vec![]));
    client.commit();
    assert_eq!(client.info().last_block_height, 1);
    node.stop();
}

/// L-06: whoever asks and does not take the answers cannot hold up a stop.
#[test]
fn l06_an_engine_that_does_not_read_its_answers_does_not_hold_up_a_stop() {
    for place in on_each_socket() {
        let node = place.start();
        let mut client = node.connect();
        let message = "x".repeat(1 << 20);
        let echo = Request { value: Some(Call::Echo(proto::RequestEcho { message })) }.encode_length_delimited_to_vec();
        let (sent, said) = std::sync::mpsc::channel();
        let asking = std::thread::spawn(move || {
            // Blocked once the server is, and ended with it. More than both ends of a socket hold.
            for _ in 0..64 {
                if client.stream.write_all(&echo).is_err() {
                    return client;
                }
                sent.send(()).unwrap();
            }
            client
        });
        // Nothing goes on any more: the server waits for the answers to be taken.
        while said.recv_timeout(Duration::from_secs(1)).is_ok() {}
        let (stopped, stops) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            node.stop();
            stopped.send(()).unwrap();
        });
        stops.recv_timeout(Duration::from_secs(5)).expect("no stop within 5 s");
        drop(asking.join().unwrap());
    }
}

/// A socket that a killed process left is taken over; one that somebody listens on, or a file, is not.
#[test]
fn a_stale_socket_is_no_obstacle() {
    let place = Place::new();
    let node = place.start();
    let path = place.home().path().join("data/abci.sock");
    let second = node.runtime.block_on(Server::bind(&place.config.engine.abci, &place.home()));
    assert!(second.is_err_and(|failure| failure.message.contains("another process listens")));
    node.stop();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "whoever is killed leaves it behind");
    place.start().stop();
    assert!(!path.exists(), "a clean stop leaves none");
    std::fs::write(&path, "a file").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let refused = runtime.block_on(Server::bind(&place.config.engine.abci, &place.home()));
    assert!(refused.is_err_and(|failure| failure.message.contains("no socket")));
}

// ---- state sync --------------------------------------------------------------------------------------------------

/// A snapshot with all its chunks, as a node serves it.
#[derive(Clone)]
struct Served {
    snapshot: proto::Snapshot,
    app_hash: Bytes,
    chunks: Vec<Bytes>,
}

/// A chain with a state of several chunks, and its snapshots at heights 1 and 2 of 4.
fn serving() -> (Place, Node, [Served; 2]) {
    serving_from(Place::with(|genesis| {
        genesis.limits.snapshot_chunk_bytes = 64 << 10;
        let namespace = Namespace::new("app").unwrap();
        for number in 0..2_000u32 {
            // Bytes that do not compress to nothing, the same in every run.
            let value: Vec<u8> =
                (0..160u32).map(|at| (number.wrapping_mul(2_654_435_761) >> (at % 24)).to_le_bytes()[0]).collect();
            let place = (namespace.clone(), Key::new(number.to_be_bytes()).unwrap());
            genesis.state.insert(place, Value::new(value).unwrap());
        }
    }))
}

fn serving_from(mut place: Place) -> (Place, Node, [Served; 2]) {
    let node = place.start();
    let mut client = node.connect();
    client.init(&place);
    let library = open_library(&place.home()).unwrap();
    let mut roots = Vec::new();
    for height in 1..=4u8 {
        roots.push(client.finalize(block(i64::from(height), vec![register(height, 0)])).app_hash);
        client.commit();
        if height <= 2 {
            let version = node.engine.version(None).unwrap();
            let mut go_on = |_| std::ops::ControlFlow::Continue(());
            version.snapshot(&library, &making(&place.config.snapshots), &mut go_on).unwrap();
        }
    }
    drop((client, library));
    node.stop();
    place.config.snapshots.enabled = true;
    let node = place.start();
    let mut client = node.connect();
    let served = [1u64, 2].map(|height| {
        let snapshot = client.list_snapshots().into_iter().find(|found| found.height == height).unwrap();
        let chunks = (0..snapshot.chunks).map(|index| client.load(height, snapshot.format, index)).collect();
        Served { snapshot, app_hash: roots[usize::try_from(height).unwrap() - 1].clone(), chunks }
    });
    assert!(served[1].chunks.len() > 4, "{} chunks show little", served[1].chunks.len());
    (place, node, served)
}

/// Joins by a snapshot and makes the next block, as the chain did.
fn joins(place: &Place, served: &Served) {
    let node = place.start();
    let mut client = node.connect();
    assert_eq!(client.offer(&served.snapshot, &served.app_hash), OfferResult::Accept);
    for (index, chunk) in served.chunks.iter().enumerate() {
        assert_eq!(client.apply(index, chunk, "peer").result(), ChunkResult::Accept, "chunk {index}");
    }
    is_restored(&mut client, served);
    node.stop();
}

fn is_restored(client: &mut Client, served: &Served) {
    let info = client.info();
    let height = i64::try_from(served.snapshot.height).unwrap();
    assert_eq!((info.last_block_height, &info.last_block_app_hash), (height, &served.app_hash));
}

fn is_empty(client: &mut Client) {
    assert_eq!(client.info().last_block_height, 0);
}

/// spec: SNAP-9, SNAP-13. A node joins, goes on from the snapshot, and serves it in turn; what others offer then changes
/// nothing, and what it never had it says it does not have.
#[test]
fn ss01_ss13_ss16_a_node_joins_by_a_snapshot_goes_on_and_is_never_overwritten() {
    let (origin, server, [_, served]) = serving();
    let mut place = origin.another();
    let node = place.start();
    let mut client = node.connect();
    is_empty(&mut client);
    assert_eq!(client.offer(&served.snapshot, &served.app_hash), OfferResult::Accept);
    is_empty(&mut client);
    let (last, others) = served.chunks.split_last().unwrap();
    for (index, chunk) in others.iter().enumerate() {
        assert_eq!(client.apply(index, chunk, "peer").result(), ChunkResult::Accept);
        is_empty(&mut client); // Live state is untouched until all of it is there.
    }
    assert_eq!(place.names(), ["CURRENT", "gen-000001", "staging"]);
    assert_eq!(client.apply(others.len(), last, "peer").result(), ChunkResult::Accept);
    is_restored(&mut client, &served);
    assert_eq!(place.names(), ["CURRENT", "gen-000002", "staging"]);
    assert_eq!(client.apply(0, last, "late").result(), ChunkResult::Accept, "a late chunk changes nothing");

    let refusal = node.engine.block(Some(Height(1))).unwrap_err();
    assert!(matches!(refusal, Refusal::Height { asked: 1, lowest: 3, highest: 2 }), "{refusal}");
    assert_eq!(node.engine.status().unwrap().time, server.engine.block(Some(Height(2))).unwrap().time);

    let third = client.finalize(block(3, vec![register(3, 0)]));
    client.commit();
    let fourth = client.finalize(block(4, vec![register(4, 0)]));
    client.commit();
    assert_eq!(fourth.app_hash, server.connect().info().last_block_app_hash);
    assert_ne!(third.app_hash, fourth.app_hash);
    for offer in [&served.snapshot, &proto::Snapshot { height: 99, ..served.snapshot.clone() }] {
        assert_eq!(client.offer(offer, &served.app_hash), OfferResult::Reject, "a confirmed state stands");
    }
    assert_eq!(client.info().last_block_app_hash, fourth.app_hash);
    assert_eq!(place.names(), ["CURRENT", "gen-000002"], "nothing is staged any more");
    // What it makes a snapshot of is, at one height, what the others make.
    let (own, library) = (node.engine.version(Some(Height(2))).unwrap(), open_library(&place.home()).unwrap());
    let mut go_on = |_| std::ops::ControlFlow::Continue(());
    let made = own.snapshot(&library, &making(&place.config.snapshots), &mut go_on).unwrap();
    assert_eq!(made.hash.as_bytes(), &served.snapshot.hash[..]);
    drop((client, library));
    node.stop();
    place.config.snapshots.enabled = true;
    let node = place.start();
    let mut client = node.connect();
    let listed = client.list_snapshots();
    assert_eq!(listed, vec![served.snapshot.clone()]);
    for (index, chunk) in (0u32..).zip(&served.chunks) {
        assert_eq!(&client.load(2, served.snapshot.format, index), chunk, "byte for byte");
    }
    node.stop();
    server.stop();
}

/// What is bad is asked for again and its sender named; what its sender is called is nobody's command.
#[test]
fn ss18_ss32_bad_chunks_name_their_sender_and_change_nothing() {
    let (origin, server, [_, served]) = serving();
    let place = origin.another();
    let node = place.start();
    let mut client = node.connect();
    let unasked = client.apply(0, &served.chunks[0], "eager");
    assert_eq!(unasked.result(), ChunkResult::Abort, "nothing was accepted yet");
    assert!(node.application.gave_up(Duration::from_secs(600), || None).is_some());
    assert_eq!(client.offer(&served.snapshot, &served.app_hash), OfferResult::Accept);
    let mut flipped = served.chunks[1].to_vec();
    flipped[served.chunks[1].len() / 2] ^= 1;
    assert_eq!(client.apply(0, &served.chunks[0], "good").result(), ChunkResult::Accept);
    for (index, bad) in [(1, Bytes::from(flipped)), (1, Bytes::new()), (1, served.chunks[2].clone())] {
        for sender in ["bad\nERROR the disk burns \u{1b}[31m", &"x".repeat(10_000), "\u{202e}"] {
            let answer = client.apply(index, &bad, sender);
            assert_eq!(answer.result(), ChunkResult::Retry);
            assert_eq!((answer.refetch_chunks, answer.reject_senders), (vec![1], vec![sender.to_owned()]));
        }
    }
    is_empty(&mut client);
    for (index, chunk) in served.chunks.iter().enumerate().skip(1) {
        assert_eq!(client.apply(index, chunk, "good").result(), ChunkResult::Accept);
    }
    is_restored(&mut client, &served);
    node.stop();
    server.stop();
}

/// spec: SNAP-16. A snapshot that the disk has no room for ends state sync as soon as its first page says how much it is, with
/// both numbers; also if that was staged before. What is staged goes with the first block that is made without it.
#[test]
fn a_snapshot_that_does_not_fit_is_refused_before_it_is_fetched_and_what_is_staged_of_it_goes() {
    let (origin, server, [_, served]) = serving();
    let mut place = origin.another();
    // More than all of the disk is to stay free.
    place.config.snapshots.reserve_percent = 101;
    let node = place.start();
    let mut client = node.connect();
    assert_eq!(
        client.offer(&served.snapshot, &served.app_hash),
        OfferResult::Accept,
        "nobody knows yet how much it is"
    );
    let results = served.chunks.iter().enumerate().map(|(index, chunk)| client.apply(index, chunk, "peer").result());
    let taken = results.take_while(|result| *result == ChunkResult::Accept).count();
    assert_eq!(taken, 0, "of {} chunks, of which the first says it", served.chunks.len());
    let why = node.application.gave_up(Duration::from_secs(600), || None).unwrap();
    assert!(why.contains("bytes are needed") && why.contains("are free"), "{why}");
    is_empty(&mut client);
    drop(client);
    node.stop();
    let node = place.start();
    let mut client = node.connect();
    assert_eq!(client.offer(&served.snapshot, &served.app_hash), OfferResult::Abort);
    assert_eq!(place.names(), ["CURRENT", "gen-000001", "staging"]);
    drop(client);
    node.stop();
    // With room again it goes on from there.
    let roomy = place.copy();
    joins(&Place { config: origin.another().config, ..roomy }, &served);
    // Or the chain is followed from its beginning.
    let node = place.start();
    let mut client = node.connect();
    client.init(&place);
    client.finalize(block(1, vec![register(1, 0)]));
    assert_eq!(place.names(), ["CURRENT", "gen-000001", "staging"]);
    client.commit();
    assert_eq!(place.names(), ["CURRENT", "gen-000001"]);
    node.stop();
    server.stop();
}

/// Whatever is offered that is not what the root says, nothing begins.
#[test]
fn ss02_ss08_offers_that_do_not_follow_from_the_app_hash_are_refused() {
    let (origin, server, [other, served]) = serving();
    let node = origin.another();
    let place = node;
    let node = place.start();
    let mut client = node.connect();
    let with = |change: fn(&mut proto::Snapshot)| {
        let mut snapshot = served.snapshot.clone();
        change(&mut snapshot);
        snapshot
    };
    let wrong: [(proto::Snapshot, &Bytes, OfferResult); 6] = [
        (with(|s| s.format = 9_999), &served.app_hash, OfferResult::RejectFormat),
        (with(|s| s.metadata = vec![0; 3_900_000].into()), &served.app_hash, OfferResult::Reject),
        (with(|s| s.chunks = u32::MAX), &served.app_hash, OfferResult::Reject),
        (with(|s| s.height = 7), &served.app_hash, OfferResult::Reject),
        (served.snapshot.clone(), &other.app_hash, OfferResult::RejectSender),
        (served.snapshot.clone(), &Bytes::from_static(b"short"), OfferResult::Reject),
    ];
    for (snapshot, app_hash, result) in &wrong {
        assert_eq!(client.offer(snapshot, app_hash), *result, "{snapshot:?}");
    }
    let none = Call::OfferSnapshot(proto::RequestOfferSnapshot { snapshot: None, app_hash: served.app_hash.clone() });
    assert!(matches!(client.call(none), Answer::OfferSnapshot(answer) if answer.result() == OfferResult::Reject));
    is_empty(&mut client);
    node.stop();
    server.stop();
}

/// Killed at any moment of a restore, the next start finds an empty state or the whole one, and state sync goes on.
#[test]
fn ss35_ss36_a_kill_at_any_step_leaves_nothing_or_the_whole_state_and_the_next_sync_succeeds() {
    let (origin, server, [_, served]) = serving();
    let place = origin.another();
    let node = place.start();
    let mut client = node.connect();
    client.offer(&served.snapshot, &served.app_hash);
    let mut left = vec![place.copy()];
    for (index, chunk) in served.chunks.iter().enumerate() {
        client.apply(index, chunk, "peer");
        left.push(place.copy());
    }
    node.stop();
    let (whole, received) = left.split_last().unwrap();
    for (killed, place) in received.iter().map(Place::copy).enumerate() {
        let node = place.start();
        is_empty(&mut node.connect());
        node.stop();
        joins(&place, &served);
        assert_eq!(place.names(), ["CURRENT", "gen-000002", "staging"], "killed after {killed} chunks");
    }
    // Between the last chunk and the switch: the new generation stands aside, with or without its mark, and the name of
    // the next current is written but not yet in its place.
    let before = received.last().unwrap();
    for step in 0..4 {
        let place = before.copy();
        let (data, built) = (place.home().data(), whole.home().data().join("gen-000002"));
        let aside = data.join("gen-000002");
        std::fs::create_dir(&aside).unwrap();
        copy_directory(&built, &aside);
        if step < 2 {
            std::fs::remove_file(aside.join("unconfirmed")).unwrap();
        }
        if step == 0 {
            std::fs::remove_dir_all(aside.join("state")).unwrap();
        }
        if step == 3 {
            std::fs::write(data.join("CURRENT.next"), "gen-000002\n").unwrap();
        }
        let node = place.start();
        is_empty(&mut node.connect());
        node.stop();
        joins(&place, &served);
    }
    // After the switch, before anything was removed.
    let place = whole.copy();
    let data = place.home().data();
    std::fs::create_dir(data.join("gen-000001")).unwrap();
    copy_directory(&before.home().data().join("gen-000001"), &data.join("gen-000001"));
    copy_directory(&before.home().data().join("staging"), &data.join("staging"));
    let node = place.start();
    is_restored(&mut node.connect(), &served);
    node.stop();
    assert!(!place.names().contains(&"gen-000001".to_owned()));
    joins(&place, &served);
    server.stop();
}

/// spec: STORE-10. What counts from the rename on is not taken back for anything that goes wrong after it.
#[test]
fn ss35_a_state_that_counts_stays_whatever_goes_wrong_after_the_switch() {
    let (origin, server, [_, served]) = serving();
    for (fault, verdict) in [(Fault::Discard, ChunkResult::Accept), (Fault::Switch, ChunkResult::Abort)] {
        let place = origin.another();
        let node = place.start();
        let mut client = node.connect();
        assert_eq!(client.offer(&served.snapshot, &served.app_hash), OfferResult::Accept);
        let (last, others) = served.chunks.split_last().unwrap();
        for (index, chunk) in others.iter().enumerate() {
            assert_eq!(client.apply(index, chunk, "peer").result(), ChunkResult::Accept, "chunk {index}");
        }
        let file = fault.file(&place.home().data());
        std::fs::write(&file, "").unwrap();
        assert_eq!(client.apply(others.len(), last, "peer").result(), verdict, "{fault:?}");
        if verdict == ChunkResult::Accept {
            is_restored(&mut client, &served);
        }
        std::fs::remove_file(&file).unwrap();
        drop(client);
        node.stop();
        let node = place.start();
        is_restored(&mut node.connect(), &served);
        node.stop();
        joins(&place, &served);
        assert_eq!(place.names(), ["CURRENT", "gen-000002", "staging"], "{fault:?}");
    }
    server.stop();
}

/// spec: SNAP-9. Until a block stands on it a restored state takes offers: the same is kept, another takes its place.
#[test]
fn ss63_an_unconfirmed_state_takes_offers_until_a_block_confirms_it() {
    let (origin, server, [first, second]) = serving();
    let place = origin.another();
    joins(&place, &first);
    // The engine was killed before its first own state: it begins again, with the same snapshot, without any work here.
    let node = place.start();
    let mut client = node.connect();
    assert_eq!(node.engine.sync_standing(), SyncStanding::Whole { unconfirmed: true });
    // Nor is an engine that stays at nothing waited for without end.
    assert_eq!(node.application.gave_up(Duration::from_secs(600), || Some(0)), None);
    assert!(node.application.gave_up(Duration::ZERO, || Some(0)).is_some());
    assert_eq!(client.offer(&first.snapshot, &first.app_hash), OfferResult::Accept);
    assert_eq!(node.engine.sync_standing(), SyncStanding::Whole { unconfirmed: true });
    is_restored(&mut client, &first);
    assert_eq!(client.apply(0, &Bytes::new(), "peer").result(), ChunkResult::Accept);
    // Or with another, which takes its place.
    assert_eq!(client.offer(&second.snapshot, &second.app_hash), OfferResult::Accept);
    is_empty(&mut client);
    node.stop();
    joins(&place, &second);
    let node = place.start();
    let mut client = node.connect();
    is_restored(&mut client, &second);
    client.finalize(block(3, vec![]));
    assert_eq!(client.offer(&second.snapshot, &second.app_hash), OfferResult::Accept, "nothing is durable yet");
    client.finalize(block(3, vec![]));
    client.commit();
    assert_eq!(client.offer(&second.snapshot, &second.app_hash), OfferResult::Reject);
    assert_eq!(node.engine.sync_standing(), SyncStanding::Idle);
    drop(client);
    node.stop();
    // Killed before the note that confirms it was gone: the height says so too.
    std::fs::write(place.home().data().join("gen-000004/unconfirmed"), "2\n").unwrap();
    let node = place.start();
    assert_eq!(node.engine.sync_standing(), SyncStanding::Idle);
    assert_eq!(node.connect().offer(&second.snapshot, &second.app_hash), OfferResult::Reject);
    node.stop();
    server.stop();
}

/// A home of another genesis is told so before its state changes, though name and root agree.
#[test]
fn a_snapshot_of_another_genesis_ends_state_sync_with_the_reason() {
    let (origin, server, [_, served]) = serving();
    let place = Place::with(|genesis| {
        genesis.limits = origin.genesis.limits;
        genesis.grants.clear();
    });
    let node = place.start();
    let mut client = node.connect();
    assert_eq!(client.offer(&served.snapshot, &served.app_hash), OfferResult::Accept);
    let results: Vec<_> =
        served.chunks.iter().enumerate().map(|(index, chunk)| client.apply(index, chunk, "peer").result()).collect();
    assert_eq!(results.last(), Some(&ChunkResult::Abort));
    is_empty(&mut client);
    let why = node.application.gave_up(Duration::from_secs(600), || None).unwrap();
    assert!(why.contains("genesis.json is of another chain"), "{why}");
    node.stop();
    assert_eq!(place.names(), ["CURRENT", "gen-000001", "staging"]);
    server.stop();
}

#[test]
fn ss43_chunks_that_are_not_there_are_empty_and_never_an_exception() {
    let (_origin, server, [_, served]) = serving();
    let mut client = server.connect();
    let proto::Snapshot { height, format, chunks, .. } = served.snapshot;
    for (height, format, chunk) in [
        (height, format, chunks),
        (height, format, u32::MAX),
        (height, format + 1, 0),
        (3, format, 0),
        (u64::MAX, 0, 0),
    ] {
        assert!(client.load(height, format, chunk).is_empty());
    }
    let without = Place::new();
    let node = without.start();
    assert!(node.connect().list_snapshots().is_empty());
    assert!(node.connect().load(1, 1, 0).is_empty());
    node.stop();
    server.stop();
}

/// Blocks from that of the oldest snapshot on are kept, whatever else may go: who joins from it asks for the header of its
/// height, too.
#[test]
fn ss52_the_engine_keeps_what_follows_the_oldest_snapshot() {
    let (mut origin, server, _) = serving();
    server.stop();
    origin.config.engine.retain_blocks = 1;
    let node = origin.start();
    let mut client = node.connect();
    client.finalize(block(5, vec![]));
    assert_eq!(client.commit().retain_height, 1, "the oldest snapshot is of height 1");
    node.stop();
    let height = |retain, oldest| super::application::retain_height(Height(100), retain, oldest).0;
    assert_eq!(height(0, None), 0);
    assert_eq!(height(10, None), 91);
    assert_eq!(height(1_000, None), 0);
    assert_eq!(height(10, Some(None)), 0, "the first snapshot is still to come");
    assert_eq!(height(10, Some(Some(Height(80)))), 80);
    assert_eq!(height(10, Some(Some(Height(95)))), 91);
}

/// spec: GENESIS-4. The engine's genesis names a hash, that names a root, and under the root stands the state that the
/// chain begins with; without the archive, or with another, it does not begin.
#[test]
fn a_chain_begins_with_the_state_of_another() {
    let entry = |number: u32| {
        let place = (Namespace::new("app").unwrap(), Key::new(number.to_be_bytes().to_vec()).unwrap());
        (place, Value::new(vec![7; 100]).unwrap())
    };
    let old = Place::with(|genesis| {
        genesis.chain_id = ChainId::new("old").unwrap();
        genesis.limits.snapshot_chunk_bytes = 64 << 10;
        genesis.state = (0..3_000).map(entry).collect();
    });
    let chain = engine::open(&old.home(), &old.config, &standard()).unwrap();
    let library = open_library(&old.home()).unwrap();
    let mut go_on = |_| std::ops::ControlFlow::Continue(());
    let version = chain.version(None).unwrap();
    let info = version.snapshot(&library, &making(&old.config.snapshots), &mut go_on).unwrap();
    let mut archive = Vec::new();
    library.export_tar(info.id, &mut archive, &mut go_on).unwrap();
    let inherited = Inherited {
        chain_id: info.chain_id.clone(),
        height: info.id.height,
        root: info.root,
        entries: info.totals.count,
        bytes: info.totals.bytes,
    };
    let heir = |change: fn(&mut Inherited)| {
        Place::with(|genesis| {
            let mut inherited = inherited.clone();
            change(&mut inherited);
            genesis.inherits = Some(inherited);
            genesis.limits.snapshot_chunk_bytes = 64 << 10;
        })
    };
    let refused = |place: &Place, archive: Option<&[u8]>, but: &str| {
        if let Some(archive) = archive {
            std::fs::write(place.home().inherited(), archive).unwrap();
        }
        let failure = engine::open(&place.home(), &place.config, &standard()).map(drop).unwrap_err();
        assert!(place.names().iter().all(|name| name != "CURRENT" || but == "CURRENT"), "nothing counts: {failure}");
        failure
    };
    let place = heir(|_| {});
    assert!(refused(&place, None, "").message.contains("inherits the state of old at height 0, which is not here"));
    let middle = archive.len() / 2;
    let mut damaged = archive.clone();
    damaged[middle] ^= 1;
    for bytes in [&damaged[..], &archive[..middle], &[]] {
        assert!(matches!(refused(&place, Some(bytes), "").exit, Exit::Integrity | Exit::Usage));
    }
    let more = heir(|inherited| inherited.entries += 1);
    assert!(refused(&more, Some(&archive), "").message.contains("number of entries"));
    let other = heir(|inherited| inherited.root = Root(Hash([9; 32])));
    assert!(refused(&other, Some(&archive), "").message.contains("root"));

    std::fs::write(place.home().inherited(), &archive).unwrap();
    let node = place.start();
    let mut client = node.connect();
    let begun = client.init(&place);
    let finalized = client.finalize(block(1, vec![register(1, 0)]));
    assert_eq!(finalized.tx_results[0].code, 0, "{}", finalized.tx_results[0].log);
    client.commit();
    let ((namespace, key), value) = entry(2_999);
    let found = node.engine.prove_entry(&namespace, &key, None, false).unwrap();
    assert_eq!(found.value.as_deref(), Some(value.as_slice()));
    let status = node.engine.status().unwrap();
    assert_eq!((status.chain_id.as_str(), status.height), ("abci-test", 1));
    drop(client);
    node.stop();
    // The archive is needed to begin, not to go on; whoever begins anew comes to the same.
    std::fs::remove_file(place.home().inherited()).unwrap();
    let node = place.start();
    assert_eq!(node.connect().info().last_block_app_hash, finalized.app_hash);
    node.stop();
    std::fs::write(place.home().inherited(), &archive).unwrap();
    std::fs::remove_dir_all(place.home().data()).unwrap();
    let (_place, server, [_, served]) = serving_from(place);
    assert_eq!(served.app_hash, server.engine.root_after(Height(2)).unwrap().unwrap().0.as_bytes().as_slice());

    // Whoever joins by state sync does without the archive, but begins nothing and shows no state of its own.
    let joiner = heir(|_| {});
    let node = joiner.start();
    assert!(node.connect().exception(Call::InitChain(init_chain(&joiner))).contains("which is not here"));
    assert!(node.engine.version(None).is_err());
    is_empty(&mut node.connect());
    node.stop();
    refused(&joiner, None, "CURRENT");
    joins(&joiner, &served);
    assert!(engine::open(&joiner.home(), &joiner.config, &standard()).is_ok(), "it is whole now");
    // One that is given the archive after all begins with it.
    let late = heir(|_| {});
    late.start().stop();
    std::fs::write(late.home().inherited(), &archive).unwrap();
    let node = late.start();
    assert_eq!(node.connect().init(&late).app_hash, begun.app_hash);
    node.stop();
    assert_eq!(late.names(), ["CURRENT", "gen-000002"]);
    server.stop();
}

/// A chain that makes no empty blocks is silent for days: its engine says once that it has blocks. What is said where it does not
/// answer is what is known.
#[test]
fn an_engine_that_has_blocks_is_asked_once() {
    let place = Place::new();
    let node = place.start();
    let mut client = node.connect();
    assert!(matches!(client.call(Call::Info(proto::RequestInfo::default())), Answer::Info(_)));
    let mut asked = 0;
    for _ in 0..3 {
        let height = || {
            asked += 1;
            Some(500)
        };
        assert_eq!(node.application.gave_up(Duration::ZERO, height), None);
    }
    assert_eq!(asked, 1);
    let said = super::application::unanswered;
    assert!(said(None).contains("state sync"));
    assert!(said(Some(Height(500))).contains("500") && !said(Some(Height(500))).contains("state sync"));
    drop(client);
    node.stop();
}

/// spec: LEDGER-8, LEDGER-9. An engine of another chain that stands where this one does, and has its proposer, has no block run:
/// others are to vote on its next.
#[test]
fn a_block_whose_voters_are_others_is_not_run() {
    use crate::cometbft::certificate::validators_hash;
    let place = Place::new();
    let node = place.start();
    node.connect().init(&place);
    let ours = &place.genesis.validators;
    let other = Validator { key: key(7).public(), power: 10 };
    let with = |voters: &[Validator]| proto::RequestFinalizeBlock {
        next_validators_hash: validators_hash(voters).to_vec().into(),
        ..block(1, vec![])
    };
    for voters in [&[other][..], &[ours[0], other], &[Validator { power: 11, ..ours[0] }]] {
        let why = node.connect().exception(Call::FinalizeBlock(with(voters)));
        assert!(why.contains("block 1 is of another chain: it names next validators"), "{why}");
        let why = node.connect().exception(Call::Commit(proto::RequestCommit {}));
        assert!(why.contains("has not decided"), "{why}");
    }
    assert!(!node.health.failed.load(Ordering::Relaxed));
    let mut again = node.connect();
    again.finalize(with(ours));
    again.commit();
    assert_eq!(again.info().last_block_height, 1);
    node.stop();
}

/// spec: LEDGER-9. A second engine on the socket is refused by name while the first is there, and one that starts again is let
/// in. What an engine decides that cannot follow is its own doing: nothing that is stored has failed.
#[test]
fn a_chain_has_one_engine_at_a_time_and_what_it_does_wrong_is_no_failure_of_the_store() {
    let place = Place::new();
    let node = place.start();
    let is_sound = || !node.health.failed.load(Ordering::Relaxed);
    let mut first = node.connect();
    first.init(&place);
    first.finalize(block(1, vec![]));
    first.commit();
    for call in [Call::FinalizeBlock(block(1, vec![])), Call::Commit(proto::RequestCommit {})] {
        let mut second = node.connect();
        assert_eq!(second.info().last_block_height, 1, "it may ask");
        let why = second.exception(call);
        assert!(why.contains("another engine makes this chain's blocks"), "{why}");
    }
    assert!(is_sound());
    first.finalize(block(2, vec![]));
    first.commit();

    drop(first);
    let mut again = node.connect();
    again.finalize(block(3, vec![]));
    again.commit();
    let why = again.exception(Call::FinalizeBlock(block(9, vec![])));
    assert!(why.contains("block 9 is not the next, which is 4"), "{why}");
    let mut again = node.connect();
    let why = again.exception(Call::Commit(proto::RequestCommit {}));
    assert!(why.contains("has not decided"), "{why}");
    let stranger = proto::RequestFinalizeBlock { proposer_address: vec![7; 20].into(), ..block(4, vec![]) };
    let why = node.connect().exception(Call::FinalizeBlock(stranger));
    assert!(why.contains("no validator of this state"), "{why}");
    assert!(is_sound());
    assert_eq!(node.connect().info().last_block_height, 3);
    node.stop();
}

/// However a connection ends, it is one no more: what counts is whether an engine is there.
#[test]
fn a_connection_that_meets_a_bug_no_longer_counts() {
    struct Buggy;
    impl Read for Buggy {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            panic!("a bug");
        }
    }
    impl Write for Buggy {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Ok(0)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let place = Place::new();
    let node = place.start();
    let application = node.application.clone();
    let met = std::thread::spawn(move || super::server::connection(Buggy, &application, || Ok(())).is_ok()).join();
    assert!(met.is_err(), "it met none");
    assert_eq!(node.application.gave_up(Duration::ZERO, || Some(0)), None, "no engine is connected");
    node.stop();
}
