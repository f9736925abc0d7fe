//! Transactions, blocks and what the ledger keeps of them; genesis files and Xian's exports.

use crate::{Target, canonical};
use keelstone_codec::{Blob, ChainId, Encode, Fixed, Hash, Height, Root, StateHash, Tag, Text, Timestamp};
use keelstone_execution::mmr::{Domain, Mmr, MmrConsistency, MmrInclusion, Place, Subtrees};
use keelstone_execution::{Bundle, BundleId, FunctionHash, Mode, Operation, Recorder, Registry, SessionId, Summary};
use keelstone_ledger::xian::{self, Import};
use keelstone_ledger::{
    Attestation, AuditEvent, AuditOperation, AuditProof, AuditRecord, AuditWalk, Block, BlockAudit, BlockRecord,
    BundleProof, Checkpoint, Continuation, Failure, Genesis, Inherited, Ledger, ListProof, NodeCheckpoint, NodeEvent,
    NodeLog, NodeLogLimits, NodeRecord, NodeStep, OperationProof, PoolLimits, Progress, Receipt, SecretKey, Setting,
    SignedAttestation, SignedCheckpoint, SignedNodeRecord, SignedTransaction, Standing, Transaction, Verdict, foresee,
    list_root, modules,
};
use keelstone_store::files::MemoryFiles;
use keelstone_store::kv::MemoryKv;
use keelstone_store::{Options, Store};
use keelstone_tree::{Blake3, Diff, MemoryTree};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, LazyLock};

static SIGNED: LazyLock<SignedTransaction> = LazyLock::new(|| {
    let key = SecretKey::from_seed(&[1; 32]);
    let operation = Operation {
        function: FunctionHash::of("memes.post", 1),
        args: Blob::new(*b"arguments").expect("short"),
        expected_diff: None,
        expected_own_diff: None,
    };
    let transaction = Transaction {
        chain_id: ChainId::new("Test-1").expect("a chain id"),
        sender: key.public(),
        nonce: 3,
        expiry_height: Height(9),
        session: None,
        bundle: Bundle::new(Mode::Sync, vec![operation]).expect("one operation"),
    };
    transaction.sign(&key)
});

pub(crate) const TRANSACTION: Target = Target { name: "transaction", run: transaction, seeds: transactions };

/// A transaction that verifies and is not the honest one was not changed in what it says.
fn transaction(input: &[u8]) -> bool {
    let Some(signed) = canonical::<SignedTransaction>(input) else { return false };
    let verdict = signed.verify();
    if signed.transaction.sender == SIGNED.transaction.sender {
        assert_eq!(verdict.is_ok(), signed == *SIGNED, "a signature over another transaction: {signed:?}");
    }
    verdict.is_ok()
}

fn transactions() -> Vec<Vec<u8>> {
    vec![SIGNED.to_bytes()]
}

pub(crate) const BUNDLE_PROOF: Target = Target { name: "bundle_proof", run: bundle_proof, seeds: bundle_proofs };

/// The chain's functions, and an honest proof of what a bundle comes to on it.
static PROVEN: LazyLock<(Registry, BundleProof)> = LazyLock::new(|| {
    let (registry, key) = (modules::standard(), SecretKey::from_seed(&[1; 32]));
    let genesis = Genesis::new(ChainId::new("Test-1").expect("a chain id"));
    let first = genesis.first_state().expect("nothing special");
    let mut state = MemoryTree::<Blake3>::new();
    let old_root = state.apply(&first.diff);
    let operation = Operation::of(&modules::memes::Post { text: Text::new("hello").expect("short") });
    let bundle = Bundle::new(Mode::Sync, vec![operation]).expect("one operation");
    let transaction = Transaction { bundle, nonce: 0, ..SIGNED.transaction.clone() }.sign(&key);
    let setting = Setting { old_root, height: Height(1), time: Timestamp(5), proposer: key.public() };
    let recorder = Recorder::new(state.clone());
    let foreseen = foresee(&registry, recorder.clone(), &setting, &transaction.transaction).expect("it can be run");
    let mut queries = recorder.take().queries();
    queries.extend(foreseen.changes.to_diff().queries());
    let witness = Blob::new(state.prove(&queries).encode()).expect("short");
    let proof = BundleProof::make::<Blake3>(&registry, setting, transaction, witness).expect("an honest one");
    (registry, proof)
});

/// A proof that verifies under the honest old root, of the honest bundle in the honest block, says what the honest one says.
fn bundle_proof(input: &[u8]) -> bool {
    let Some(proof) = canonical::<BundleProof>(input) else { return false };
    let (registry, honest) = &*PROVEN;
    if proof.verify::<Blake3>(registry).is_err() {
        return false;
    }
    if (proof.setting, proof.transaction.id()) == (honest.setting, honest.transaction.id()) {
        assert_eq!((&proof.receipt, proof.new_root), (&honest.receipt, honest.new_root), "two truths of one bundle");
    }
    true
}

fn bundle_proofs() -> Vec<Vec<u8>> {
    vec![PROVEN.1.to_bytes()]
}

pub(crate) const OPERATION_PROOF: Target =
    Target { name: "operation_proof", run: operation_proof, seeds: operation_proofs };

/// An honest proof of an operation in the first block of a chain.
static TOOK_EFFECT: LazyLock<OperationProof> = LazyLock::new(|| {
    let store = Store::<Blake3>::create(Arc::new(MemoryFiles::new()), Options::default()).expect("in memory");
    let genesis = Genesis::new(ChainId::new("Test-1").expect("a chain id"));
    let (registry, kv) = (modules::standard(), Arc::new(MemoryKv::new()));
    let ledger = Ledger::create(store, kv, registry, &genesis, PoolLimits::default()).expect("an empty store");
    let operation = || Operation::of(&modules::memes::Post { text: Text::new("hello").expect("short") });
    let person = modules::agents::Register {
        name: Text::new("Ada").expect("short"),
        personality: modules::agents::Personality::even(Fixed::from_micros(800_000)),
        traits: Default::default(),
    };
    let operations = vec![Operation::of(&person), operation(), operation()];
    let bundle = Bundle::new(Mode::Sync, operations).expect("three operations");
    let key = SecretKey::from_seed(&[1; 32]);
    let transaction = Transaction { bundle, nonce: 0, ..SIGNED.transaction.clone() }.sign(&key);
    ledger.submit(&transaction.to_bytes()).expect("a good one");
    ledger.produce(Timestamp(5), key.public()).expect("a block");
    let proof = ledger.operation_proof(&BundleId(transaction.id().0), 1).expect("kept");
    proof.expect("it took effect")
});

/// What verifies under the honest root, of the honest place, is the honest operation.
fn operation_proof(input: &[u8]) -> bool {
    let Some(proof) = canonical::<OperationProof>(input) else { return false };
    if proof.verify::<Blake3>().is_err() {
        return false;
    }
    let honest = &*TOOK_EFFECT;
    if (proof.root, proof.block, proof.index()) == (honest.root, honest.block, honest.index()) {
        let said = |proof: &OperationProof| {
            (proof.operation.clone(), proof.together.clone(), proof.sequence, proof.before, proof.args)
        };
        assert_eq!(said(&proof), said(honest), "two truths of one operation");
        assert_eq!(proof.chain_id, honest.chain_id, "an operation of two chains");
    }
    true
}

fn operation_proofs() -> Vec<Vec<u8>> {
    vec![TOOK_EFFECT.to_bytes()]
}

pub(crate) const BLOCK: Target = Target { name: "block", run: block, seeds: blocks };

fn block(input: &[u8]) -> bool {
    let (record, receipt) = (canonical::<BlockRecord>(input).is_some(), canonical::<Receipt>(input).is_some());
    let continuation = canonical::<Continuation>(input).is_some();
    let Some(block) = canonical::<Block>(input) else { return record || receipt || continuation };
    let _ = block.transactions_root();
    true
}

fn blocks() -> Vec<Vec<u8>> {
    let proposer = SecretKey::from_seed(&[2; 32]).public();
    let block = |transactions| Block { height: Height(5), time: Timestamp(1_000), proposer, transactions }.to_bytes();
    let failure = Failure {
        operation: 0,
        function: FunctionHash::of("memes.post", 1),
        code: 7,
        expected: Some(Hash([1; 32])),
        actual: Some(Hash([2; 32])),
        reason: Text::new("the state hash differs").expect("short"),
    };
    let stopped = Continuation {
        bundle: BundleId(Hash([3; 32])),
        by: Some(SIGNED.id()),
        session: SessionId(Hash([4; 32])),
        first: 5,
        progress: Progress::Stopped(failure.clone()),
        state_hash: StateHash::default(),
        gas_used: 7,
    };
    let receipt = Receipt { transaction: SIGNED.id(), verdict: Verdict::Failed(failure), gas_used: 9 };
    vec![block(vec![]), block(vec![SIGNED.clone(), SIGNED.clone()]), receipt.to_bytes(), stopped.to_bytes()]
}

static LISTED: LazyLock<Vec<Hash>> = LazyLock::new(|| (0..11).map(|n| Hash([n; 32])).collect());

pub(crate) const LIST_PROOF: Target = Target { name: "list_proof", run: list_proof, seeds: list_proofs };

/// What verifies under the known root stands in the known list, at its place.
fn list_proof(input: &[u8]) -> bool {
    let Some(proof) = canonical::<ListProof>(input) else { return false };
    let root = list_root(&LISTED);
    let found: Vec<usize> = (0..LISTED.len()).filter(|&at| proof.verify(&root, &LISTED[at])).collect();
    assert!(found.is_empty() || found == [proof.index as usize], "{proof:?} proves {found:?}");
    assert!(!proof.verify(&root, &Hash([0xee; 32])), "{proof:?} proves what is not in the list");
    !found.is_empty()
}

fn list_proofs() -> Vec<Vec<u8>> {
    let of = |at| ListProof::of(&LISTED, at).expect("a place of the list").to_bytes();
    vec![of(0), of(7), of(10)]
}

struct Listed;
impl Domain for Listed {
    const LEAF: Tag = Tag::new("test/range-leaf");
    const INNER: Tag = Tag::new("test/range-inner");
    const ROOT: Tag = Tag::new("test/range-root");
}

impl Subtrees for Listed {
    type Error = Infallible;

    fn top(&self, place: Place) -> Result<Hash, Infallible> {
        Ok(match place.halves() {
            None => Mmr::<Self>::leaf(&LISTED[usize::try_from(place.index).expect("few items")]),
            Some([left, right]) => Mmr::<Self>::inner(&self.top(left)?, &self.top(right)?),
        })
    }
}

pub(crate) const RANGE_PROOF: Target = Target { name: "range_proof", run: range_proof, seeds: range_proofs };

/// What is proven stands in the known range at its place; what it goes on from is a range it begins with.
fn range_proof(input: &[u8]) -> bool {
    let whole = Mmr::<Listed>::of(&LISTED);
    let item = canonical::<MmrInclusion>(input).is_some_and(|proof| {
        let found: Vec<usize> = (0..LISTED.len()).filter(|&at| whole.includes(&LISTED[at], &proof)).collect();
        assert!(found.is_empty() || usize::try_from(proof.index) == Ok(found[0]), "{proof:?} proves {found:?}");
        assert!(found.len() < 2 && !whole.includes(&Hash([0xee; 32]), &proof));
        !found.is_empty()
    });
    let grown = canonical::<(Mmr<Listed>, MmrConsistency)>(input).is_some_and(|(range, proof)| {
        let grown = range.extends_to(&whole, &proof);
        let count = usize::try_from(range.count()).ok().filter(|count| *count <= LISTED.len());
        let is_part = count.is_some_and(|count| range == Mmr::of(&LISTED[..count]));
        assert!(!grown || is_part, "{range:?} is no part of the list");
        grown
    });
    item || grown
}

fn range_proofs() -> Vec<Vec<u8>> {
    let whole = Mmr::<Listed>::of(&LISTED);
    let item = |at| whole.prove(&Listed, at).map(|proof| proof.expect("a place of the range").to_bytes());
    let since = |count: usize| {
        let proof = whole.prove_since(&Listed, count as u64).map(|proof| proof.expect("a shorter range"));
        proof.map(|proof| (Mmr::<Listed>::of(&LISTED[..count]), proof).to_bytes())
    };
    [item(0), item(7), item(10), since(0), since(5), since(11)].map(|Ok(bytes)| bytes).into()
}

pub(crate) const ATTESTATION: Target = Target { name: "attestation", run: attestation, seeds: attestations };

/// What a producer says of a version has one encoding, and nobody else can say it in its name.
fn attestation(input: &[u8]) -> bool {
    canonical::<SignedAttestation>(input).is_some_and(|signed| {
        let is_honest = signed == *ATTESTED;
        assert!(is_honest || signed.signer != ATTESTED.signer || signed.verify().is_err());
        true
    })
}

static ATTESTED: LazyLock<SignedAttestation> = LazyLock::new(|| {
    let (chain_id, root) = (ChainId::new("Test-1").expect("a chain id"), Root(Hash([2; 32])));
    Attestation { chain_id, genesis_hash: Hash([1; 32]), height: Height(4), root, said_at: Timestamp(5) }
        .sign(&SecretKey::from_seed(&[5; 32]))
});

fn attestations() -> Vec<Vec<u8>> {
    vec![ATTESTED.to_bytes()]
}

pub(crate) const AUDIT: Target = Target { name: "audit", run: audit, seeds: audits };

/// Records as they are kept, as they are hashed, and what is shown of them: one encoding each. A proof under a made-up root
/// proves nothing.
fn audit(input: &[u8]) -> bool {
    let chain = ChainId::new("Test-1").expect("a chain id");
    let packed = BlockAudit::unpack(&chain, input).is_ok_and(|block| {
        assert_eq!(block.pack(), input, "a second encoding was accepted");
        assert!(block.records().all(|record| match &record.event {
            AuditEvent::Operation(operation) => operation.link(&chain) == operation.after,
            _ => true,
        }));
        let mut walk = AuditWalk::begin(chain.clone(), Hash([1; 32]), block.first);
        let _ = block.records().try_for_each(|record| walk.step(&record).map(drop));
        true
    });
    assert!(CHECKPOINT.checkpoint.verify_state::<Blake3>(input).is_err(), "a made-up root holds a log");
    let checkpoint = canonical::<SignedCheckpoint>(input).is_some_and(|signed| {
        let is_honest = signed == *CHECKPOINT;
        assert!(is_honest || signed.signer != CHECKPOINT.signer || signed.verify().is_err());
        true
    });
    let proof = canonical::<AuditProof>(input).is_some_and(|proof| {
        assert!(proof.verify::<Blake3>().is_err());
        true
    });
    packed || checkpoint || proof || canonical::<AuditRecord>(input).is_some()
}

static CHECKPOINT: LazyLock<SignedCheckpoint> = LazyLock::new(|| {
    let log = Mmr::of(&LISTED);
    let chain_id = ChainId::new("Test-1").expect("a chain id");
    Checkpoint { chain_id, genesis_hash: Hash([1; 32]), height: Height(4), root: Root(Hash([2; 32])), log }
        .sign(&SecretKey::from_seed(&[5; 32]))
});

fn audits() -> Vec<Vec<u8>> {
    let sender = SecretKey::from_seed(&[1; 32]).public();
    let bundle = BundleId(Hash([3; 32]));
    let session = SessionId(Hash([4; 32]));
    let mut operation = AuditOperation {
        sender,
        bundle,
        operation: 0,
        session,
        sequence: 7,
        function: FunctionHash::of("memes.post", 1),
        args: Hash([5; 32]),
        result: Hash([6; 32]),
        diff: Summary { entries: 1, bytes: 40, digest: Hash([7; 32]) },
        before: StateHash(Hash([8; 32])),
        after: StateHash::default(),
    };
    operation.after = operation.link(&ChainId::new("Test-1").expect("a chain id"));
    let next = AuditEvent::Failed { sender, bundle, operation: 1, function: operation.function, code: 7 };
    let events = vec![AuditEvent::Operation(operation), next];
    let block = BlockAudit { height: Height(3), first: 300, events };
    let record = block.records().next().expect("two of them");
    let inclusion = Mmr::<Listed>::of(&LISTED).prove(&Listed, 0).map(|proof| proof.expect("a place"));
    let Ok(inclusion) = inclusion;
    let (log, root) = (Mmr::of(&LISTED), Root(Hash([2; 32])));
    let state = Blob::new(*b"no proof").expect("short");
    let proof = AuditProof { record: record.clone(), inclusion, log, height: Height(4), root, state };
    vec![block.pack(), record.to_bytes(), CHECKPOINT.to_bytes(), proof.to_bytes()]
}

pub(crate) const NODE_LOG: Target = Target { name: "node_log", run: node_log, seeds: node_logs };

/// An honest log of a node, of one record.
static OWN_LOG: LazyLock<(NodeRecord, BTreeMap<String, Vec<u8>>)> = LazyLock::new(|| {
    let standing = Some(Standing { height: Height(9), root: Root(Hash([2; 32])) });
    let record = NodeRecord {
        time: Timestamp(5),
        who: Text::new("uid 7").expect("short"),
        event: NodeEvent::RolledBack { to: Height(3) },
        step: NodeStep::Begun,
        before: standing,
        after: None,
    };
    let files = MemoryFiles::new();
    let log = NodeLog::new(Arc::new(files.clone()), NodeLogLimits::default());
    log.append(&SecretKey::from_seed(&[5; 32]), &record).expect("in memory");
    (record, files.image())
});

const OWN_SEGMENT: &str = "00000000000000000000.audit";

/// A segment of a node's log that verifies and is signed by the honest node says what the honest one says. So does what it is
/// made of.
fn node_log(input: &[u8]) -> bool {
    let (honest, key) = (&OWN_LOG.0, SecretKey::from_seed(&[5; 32]).public());
    let record = canonical::<SignedNodeRecord>(input).is_some();
    let checkpoint = canonical::<NodeCheckpoint>(input).is_some_and(|found| {
        assert!(found.verify().is_err() || found.key != key || found.state.log.count() < 2);
        true
    });
    let image = BTreeMap::from([(OWN_SEGMENT.to_owned(), input.to_vec())]);
    let log = NodeLog::new(Arc::new(MemoryFiles::from_image(&image)), NodeLogLimits::default());
    let mut found = Vec::new();
    let verdict = log.verify(Some(key), &mut |_, next| found.push(next.record.clone())).expect("in memory");
    let whole = verdict.fault.is_none() && !found.is_empty();
    assert!(!whole || found == [honest.clone()], "two truths of one node: {found:?}");
    record || checkpoint || whole
}

fn node_logs() -> Vec<Vec<u8>> {
    let image = &OWN_LOG.1;
    let segment = &image[OWN_SEGMENT];
    let used = segment.iter().rposition(|byte| *byte != 0).expect("a record") + 1;
    let start = u32::from_le_bytes(segment[..4].try_into().expect("four bytes")) as usize;
    vec![segment[..used].to_vec(), segment[4..4 + start].to_vec(), segment[8 + start..used].to_vec()]
}

pub(crate) const GENESIS: Target = Target { name: "genesis", run: genesis, seeds: geneses };

/// A genesis that is read and written again is the same genesis.
fn genesis(input: &[u8]) -> bool {
    let Ok(genesis) = Genesis::parse(input) else { return false };
    let again = Genesis::parse(genesis.to_json().to_string().as_bytes());
    assert_eq!(again.as_ref(), Ok(&genesis));
    if let Ok(first) = genesis.first_state() {
        assert_eq!(again.and_then(|again| again.first_state()).map(|first| first.hash), Ok(first.hash));
    }
    true
}

const EXPORT: &str = r#"{"chain_id":"x","abci_genesis":{"hash":"00","genesis":[
    {"key":"currency.balances:ab","value":{"__fixed__":"12.50"}},
    {"key":"con.S:a:b","value":[1,{"__time__":[2024,1,2,3,4,5,0]},null,"ü",123456789012345678901234567890]}
    ],"nonces":[]}}"#;

fn geneses() -> Vec<Vec<u8>> {
    let mut genesis = Genesis::new(ChainId::new("Test-1").expect("a chain id"));
    let plain = genesis.to_json().to_string();
    genesis.producers.push(SecretKey::from_seed(&[3; 32]).public());
    genesis.import_xian(EXPORT.as_bytes()).expect("an export of our own");
    let full = genesis.to_json().to_string();
    let (chain_id, root) = (ChainId::new("Old-1").expect("a chain id"), Root(Hash([7; 32])));
    genesis.inherits = Some(Inherited { chain_id, height: Height(9), root, entries: 1 << 40, bytes: u64::MAX });
    vec![plain.into_bytes(), full.into_bytes(), genesis.to_json().to_string().into_bytes()]
}

pub(crate) const XIAN: Target = Target { name: "xian_import", run: import, seeds: exports };

/// What is imported is exported as the same data.
fn import(input: &[u8]) -> bool {
    let Ok(import) = Import::parse(input) else { return false };
    let Ok(writes) = import.writes() else { return false };
    let mut state = MemoryTree::<Blake3>::new();
    let diff: Diff = writes.into_iter().map(|((namespace, key), value)| (namespace, key, Some(value))).collect();
    state.apply(&diff);
    let exported = xian::export(&state).expect("what was imported can be exported");
    let again = Import::parse(exported.to_string().as_bytes()).expect("an export can be imported");
    assert_eq!((again.entries(), again.nonces()), (import.entries(), import.nonces()));
    true
}

fn exports() -> Vec<Vec<u8>> {
    vec![EXPORT.as_bytes().to_vec(), br#"[{"key":"a.b","value":1}]"#.to_vec()]
}
