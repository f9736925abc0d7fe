//! Genesis files: what they mean, and what is none.

use crate::tools::*;
use keelstone_codec::{ChainId, Encode as _, Hash, Height, Key, Namespace, Root, Timestamp, Value};
use keelstone_execution::SYSTEM_NAMESPACES;
use keelstone_ledger::modules::standard;
use keelstone_ledger::{
    Chain as Facts, Genesis, GenesisError, HEIGHTS_MAX, InheritError, Inherited, Ledger, LedgerError, PoolLimits,
    Unfit, check_fits,
};
use keelstone_store::kv::MemoryKv;
use keelstone_store::{Store, files::MemoryFiles};
use keelstone_tree::{Blake3, KeyRange, MemoryTree, Read, Sha256};
use proptest::collection::btree_map;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

fn full() -> Genesis {
    let mut genesis = Genesis::new(chain_id());
    genesis.initial_height = Height(2_449);
    genesis.time = Timestamp(1_700_000_000_000);
    genesis.limits.block_transactions_max = 77;
    genesis.producers = vec![key(100).public(), key(101).public()];
    genesis.grants.insert(key(1).public(), ["contracts.patch".into()].into());
    let app = (Namespace::new("app").unwrap(), Key::new(*b"\x00\xff").unwrap());
    genesis.state.insert(app, Value::new(vec![1, 2, 3]).unwrap());
    genesis.import_xian(br#"[{"key":"a.b","value":{"__fixed__":"7.6E+20"}}]"#).unwrap();
    genesis
}

/// spec: GENESIS-1, GENESIS-2, GENESIS-3, LEDGER-4. A file is read back as what was written, and the state says it all.
#[test]
fn file_and_state_say_what_the_genesis_is() {
    let genesis = full();
    let file = genesis.to_json().to_pretty();
    assert_eq!(Genesis::parse(file.as_bytes()).unwrap(), genesis);
    let first = genesis.first_state().unwrap();
    assert_eq!(first.height, Height(2_448));
    let chain = chain_of(&genesis);
    assert_eq!((chain.height(), chain.genesis_hash(), chain.facts()), (Height(2_448), first.hash, &genesis.facts()));
    let read = Facts::read(&chain.view()).unwrap().unwrap();
    assert_eq!((read.facts, read.genesis_hash, read.tip), (genesis.facts(), first.hash, None));
    let app = chain.view().get(&Namespace::new("app").unwrap(), b"\x00\xff").unwrap().unwrap();
    assert_eq!(app.as_slice(), [1, 2, 3]);
    assert_eq!(chain.produce(Timestamp(0), key(100).public()).unwrap().block.height, Height(2_449));
}

/// spec: SNAP-19. A state is taken for that of its chain at a height only if the next block can be made on it.
#[test]
fn a_state_fits_the_heights_that_it_can_be_of() {
    let mut genesis = full();
    (genesis.producers, genesis.time) = (Vec::new(), Timestamp(0));
    let (facts, hash) = (genesis.facts(), genesis.first_state().unwrap().hash);
    let chain = chain_of(&genesis);
    let fits = |state: &dyn Read, height: u64| check_fits(state, Height(height), Some((&facts, hash)));
    let base = chain.height().0;
    for height in [base, base + 1, base + HEIGHTS_MAX] {
        assert_eq!(fits(&chain.view(), height).unwrap().tip, None, "height {height}");
    }
    for height in [base - 1, 0, base + HEIGHTS_MAX + 1, u64::MAX - 1, u64::MAX] {
        assert!(matches!(fits(&chain.view(), height), Err(Unfit::Height { .. })), "height {height}");
    }
    block(&chain, &[signed(1, 0, vec![register("ada")])]);
    chain.produce(chain.time(), proposer()).unwrap();
    let view = chain.view();
    for height in [base + 1, base + 2, base + 900] {
        assert_eq!(fits(&view, height).unwrap().tip, Some(Height(base + 1)), "height {height}");
    }
    assert!(matches!(fits(&view, base), Err(Unfit::Height { .. })), "below its last record");
    let other = check_fits(&view, chain.height(), Some((&facts, Hash([7; 32]))));
    assert!(matches!(other, Err(Unfit::OtherGenesis { .. })));
    let more = keelstone_ledger::ChainFacts { producers: vec![key(9).public()], ..facts.clone() };
    assert!(matches!(check_fits(&view, chain.height(), Some((&more, hash))), Err(Unfit::OtherFacts)));
    assert!(matches!(check_fits(&MemoryTree::<Blake3>::new(), chain.height(), None), Err(Unfit::NoChain)));

    // What of its own a state may say wrongly.
    let mut tree = MemoryTree::<Blake3>::new();
    let mut writes = Vec::new();
    for (namespace, _) in view.namespaces() {
        for entry in view.scan(&namespace, KeyRange::all()) {
            let (key, value) = entry.unwrap();
            writes.push((namespace.clone(), key, Some(value)));
        }
    }
    tree.apply(&writes.into_iter().collect());
    assert_eq!(fits(&tree, base + 2).unwrap().tip, Some(Height(base + 1)));
    let name = |name: &str| Namespace::new(name).unwrap();
    let key = |key: &[u8]| Key::new(key).unwrap();
    let height = |height: u64| Value::new(height.to_be_bytes().to_vec()).unwrap();
    let record = (base + 1).to_be_bytes();
    let kept = tree.get(&name("blocks"), &record).unwrap().unwrap();
    let wrong = [
        (
            "a last record above the height",
            name("chain"),
            key(b"tip"),
            Some(Value::new((base + 3).to_bytes()).unwrap()),
        ),
        ("no last record", name("chain"), key(b"tip"), None),
        (
            "a last record that is not there",
            name("chain"),
            key(b"tip"),
            Some(Value::new((base + 2).to_bytes()).unwrap()),
        ),
        ("a last record that does not decode", name("chain"), key(b"tip"), Some(Value::new(vec![1]).unwrap())),
        ("the record is gone", name("blocks"), key(&record), None),
        ("the record does not decode", name("blocks"), key(&record), Some(height(1))),
        ("a record behind the last", name("blocks"), key(&(base + 2).to_be_bytes()), Some(kept)),
        ("the log does not decode", name("audit"), key(b"log"), Some(Value::new(vec![1]).unwrap())),
        ("the validators do not decode", name("chain"), key(b"validators"), Some(Value::new(vec![1]).unwrap())),
        ("no facts", name("chain"), key(b"facts"), None),
    ];
    for (what, namespace, key, value) in wrong {
        let mut tree = tree.clone();
        tree.apply(&[(namespace, key, value)].into_iter().collect());
        assert!(fits(&tree, base + 2).is_err(), "{what}");
    }
}

/// spec: GENESIS-3. The hash follows the meaning: every part counts, spaces and order do not.
#[test]
fn hash_depends_on_the_meaning_alone() {
    let hash = |genesis: &Genesis| genesis.first_state().unwrap().hash;
    let original = full();
    let turned = r#"{"time":5,"hasher":"blake3","chain_id":"x"}"#;
    let plain = r#"{ "chain_id" : "x", "time" : 5 }"#;
    let read = |file: &str| hash(&Genesis::parse(file.as_bytes()).unwrap());
    assert_eq!(read(turned), read(plain));
    let changes: [fn(&mut Genesis); 8] = [
        |g| g.chain_id = keelstone_codec::ChainId::new("other").unwrap(),
        |g| g.hasher = keelstone_tree::HashKind::Sha256,
        |g| g.initial_height = Height(1),
        |g| g.time = Timestamp(0),
        |g| g.limits.bundle_gas_max += 1,
        |g| g.producers.truncate(1),
        |g| g.grants.clear(),
        |g| g.state.clear(),
    ];
    for (index, change) in changes.iter().enumerate() {
        let mut changed = original.clone();
        change(&mut changed);
        assert_ne!(hash(&changed), hash(&original), "change {index}");
    }
}

#[test]
fn files_that_are_no_genesis_are_refused_by_name() {
    let refused = |file: &str| Genesis::parse(file.as_bytes()).expect_err(file).to_string();
    let small = "0100000000000000000000000000000000000000000000000000000000000000";
    for (file, why) in [
        ("[]", "chain_id"),
        ("{}", "chain_id"),
        (r#"{"chain_id":""}"#, "chain_id"),
        (r#"{"chain_id":"x","chain_id":"x"}"#, "stands twice"),
        (r#"{"chain_id":"x","limit":{}}"#, "\"limit\""),
        (r#"{"chain_id":"x","limits":{"gas":1}}"#, "limits.gas"),
        (r#"{"chain_id":"x","limits":{"bundle_gas_max":0}}"#, "at least 1"),
        (r#"{"chain_id":"x","limits":{"bundle_gas_max":1e3}}"#, "2^64"),
        (r#"{"chain_id":"x","limits":{"block_bytes_max":4294967296}}"#, "2^32"),
        (r#"{"chain_id":"x","limits":{"block_bytes_max":5}}"#, "fit into a block"),
        (r#"{"chain_id":"x","limits":{"block_transactions_max":65537}}"#, "at most 65536"),
        (r#"{"chain_id":"x","limits":{"bundle_operations_max":65536}}"#, "at most 65535"),
        (r#"{"chain_id":"x","limits":{"block_bytes_max":67108865}}"#, "at most 67108864"),
        (
            r#"{"chain_id":"x","limits":{"block_bytes_max":4294967295,"transaction_bytes_max":4294967295}}"#,
            "at most 67108864",
        ),
        (r#"{"chain_id":"x","limits":{"bundle_blocks_max":18446744073709551615}}"#, "bundle_blocks_max is at most"),
        (r#"{"chain_id":"x","limits":{"bundle_gas_max":10000000000}}"#, "continuation_gas_max"),
        (
            r#"{"chain_id":"x","limits":{"bundle_gas_max":7500000001,"continuation_gas_max":2500000000}}"#,
            "continuation_gas_max",
        ),
        (r#"{"chain_id":"x","limits":{"continuation_gas_max":18446744073709551615}}"#, "continuation_gas_max"),
        (r#"{"chain_id":"x","initial_height":0}"#, "initial_height"),
        (r#"{"chain_id":"x","initial_height":-1}"#, "initial_height"),
        (r#"{"chain_id":"x","initial_height":9223372036854775808}"#, "initial_height"),
        (r#"{"chain_id":"x","hasher":"md5"}"#, "hasher"),
        (r#"{"chain_id":"x","producers":["00"]}"#, "producers"),
        (&format!(r#"{{"chain_id":"x","producers":["{small}"]}}"#), "small order"),
        (&format!(r#"{{"chain_id":"x","grants":{{"{small}":[]}}}}"#), "small order"),
        (r#"{"chain_id":"x","state":{"app":{"zz":"00"}}}"#, "hexadecimal"),
        (r#"{"chain_id":"x","state":{"app":{"0A":"00"}}}"#, "lower-case"),
        (r#"{"chain_id":"x","state":{"app":{"00":""}}}"#, "at least one byte"),
        (r#"{"chain_id":"x","xian":{}}"#, "no entries"),
    ] {
        assert!(refused(file).contains(why), "{file}: {}", refused(file));
    }
    for namespace in ["chain", "blocks", "nonces", "sessions"] {
        let file = format!(r#"{{"chain_id":"x","state":{{"{namespace}":{{"00":"01"}}}}}}"#);
        let found = Genesis::parse(file.as_bytes()).unwrap().first_state();
        assert!(matches!(found, Err(GenesisError::Reserved { .. })), "{namespace}");
    }
}

/// spec: GENESIS-1. Limits at their ends are taken, and a share that is not given is what one bundle leaves of a block.
#[test]
fn limits_at_their_ends_are_limits() {
    let limits = |limits: &str| {
        let file = format!(r#"{{"chain_id":"x","limits":{limits}}}"#);
        let genesis = Genesis::parse(file.as_bytes()).unwrap();
        genesis.first_state().unwrap();
        genesis.limits
    };
    limits(r#"{"block_bytes_max":67108864,"transaction_bytes_max":67108864}"#);
    limits(r#"{"bundle_blocks_max":4611686018427387904}"#);
    limits(r#"{"bundle_gas_max":7500000000,"continuation_gas_max":2500000000}"#);
    for (bundle, block, share) in [(75, 100, 25), (76, 100, 24), (99, 100, 1), (1, 2, 0), (1, 3, 0), (1, 4, 1)] {
        let given = format!(r#"{{"bundle_gas_max":{bundle},"block_gas_max":{block}}}"#);
        if share > 0 {
            assert_eq!(limits(&given).continuation_gas_max, share, "{given}");
        } else {
            let refused = Genesis::parse(format!(r#"{{"chain_id":"x","limits":{given}}}"#).as_bytes());
            assert!(refused.unwrap_err().to_string().contains("continuation_gas_max"), "{given}");
        }
    }
}

#[test]
fn store_and_chain_must_belong_together() {
    let open = |store| Ledger::<Sha256>::open(store, Arc::new(MemoryKv::new()), standard(), PoolLimits::default());
    let files = MemoryFiles::new();
    let store = Store::create(Arc::new(files.clone()), options()).unwrap();
    assert!(matches!(open(store), Err(LedgerError::NoGenesis)));
    let mut genesis = Genesis::new(chain_id());
    let create = |genesis: &Genesis| {
        let store = Store::create(Arc::new(MemoryFiles::new()), options()).unwrap();
        Ledger::<Sha256>::create(store, Arc::new(MemoryKv::new()), standard(), genesis, PoolLimits::default())
    };
    assert!(matches!(create(&genesis), Err(LedgerError::WrongHasher { .. })));
    genesis.hasher = keelstone_tree::HashKind::Sha256;
    let chain = create(&genesis).unwrap();
    chain.produce(Timestamp(1), proposer()).unwrap();
    assert_eq!(chain.facts().hasher, keelstone_tree::HashKind::Sha256);
}

fn inherited() -> Inherited {
    let root = Root(keelstone_codec::Hash([7; 32]));
    Inherited { chain_id: ChainId::new("old-1").unwrap(), height: Height(90), root, entries: 5, bytes: 100 }
}

/// spec: GENESIS-4. What a chain inherits is part of its file and its hash; the file alone makes no chain.
#[test]
fn an_inherited_state_is_named_by_the_file_and_its_hash() {
    let mut genesis = full();
    let without = genesis.first_state().unwrap().hash;
    genesis.inherits = Some(inherited());
    assert_eq!(Genesis::parse(genesis.to_json().to_string().as_bytes()).unwrap(), genesis);
    let mut hashes = vec![without, genesis.first_state().unwrap().hash];
    let changes: [fn(&mut Inherited); 5] = [
        |i| i.chain_id = ChainId::new("old-2").unwrap(),
        |i| i.height = Height(91),
        |i| i.root = Root(keelstone_codec::Hash([8; 32])),
        |i| i.entries = 6,
        |i| i.bytes = 101,
    ];
    for change in changes {
        let mut changed = genesis.clone();
        change(changed.inherits.as_mut().unwrap());
        hashes.push(changed.first_state().unwrap().hash);
    }
    let count = hashes.len();
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), count, "each counts");
    let kv = Arc::new(MemoryKv::new());
    let made = Ledger::create(store(), kv, standard(), &genesis, PoolLimits::default());
    assert!(matches!(made, Err(LedgerError::Genesis(GenesisError::Inherits(found))) if found == inherited()));
    for (file, why) in [
        (r#"{"chain_id":"x","inherits":[]}"#, "is an object"),
        (r#"{"chain_id":"x","inherits":{"chain_id":"y","height":1,"root":"00"}}"#, "inherits"),
        (r#"{"chain_id":"x","inherits":{"chain_id":"y","height":1}}"#, "has no \"root\""),
        (r#"{"chain_id":"x","inherits":{"file":"a"}}"#, "inherits.file"),
    ] {
        let said = Genesis::parse(file.as_bytes()).unwrap_err().to_string();
        assert!(said.contains(why), "{file}: {said}");
    }
}

proptest! {
    /// spec: GENESIS-4. A chain that inherits a state has of it what one has whose file lists the same entries: all but
    /// what the ledger keeps; and what both write is refused.
    #[test]
    fn what_is_inherited_is_what_a_file_would_list(
        old in btree_map((0usize..8, any::<u8>()), any::<u8>(), 0..40),
        own in btree_map((0usize..3, any::<u8>()), any::<u8>(), 0..6),
    ) {
        let spaces = ["a", "audit", "blocks", "c", "chain", "nonces", "sessions", "z"];
        let entry = |space: &str, key: u8, value: u8| {
            ((Namespace::new(space).unwrap(), Key::new([key]).unwrap()), Value::new(vec![value]).unwrap())
        };
        let old: BTreeMap<_, _> = old.iter().map(|((space, key), value)| entry(spaces[*space], *key, *value)).collect();
        let listed: BTreeMap<_, _> =
            own.iter().map(|((space, key), value)| entry(["a", "b", "z"][*space], *key, *value)).collect();
        let mut genesis = full();
        genesis.xian = None;
        genesis.state = listed.clone();
        genesis.inherits = Some(inherited());
        let first = genesis.first_state().unwrap();
        let mut found = Vec::new();
        let mut put = |namespace: &Namespace, key: &Key, value: &[u8]| {
            found.push((namespace.clone(), key.clone(), Some(Value::new(value.to_vec()).unwrap())));
            Ok::<(), Infallible>(())
        };
        let mut inheriting = first.inheriting();
        let taken = old.iter().try_for_each(|((namespace, key), value)| inheriting.entry(namespace, key, value, &mut put));
        let twice = old.keys().any(|place| listed.contains_key(place));
        if twice {
            let refused = matches!(taken, Err(InheritError::Genesis(GenesisError::Reserved { .. })));
            prop_assert!(refused);
            return Ok(());
        }
        taken.unwrap();
        let left = inheriting.finish(&mut put).unwrap();
        let of_ledger = |namespace: &Namespace| SYSTEM_NAMESPACES.contains(&namespace.as_str());
        prop_assert_eq!(left.count, old.keys().filter(|(namespace, _)| of_ledger(namespace)).count() as u64);
        prop_assert!(found.is_sorted_by(|a, b| (&a.0, &a.1) < (&b.0, &b.1)));

        genesis.inherits = None;
        genesis.state.extend(old.into_iter().filter(|((namespace, _), _)| !of_ledger(namespace)));
        let whole = genesis.first_state().unwrap();
        let is_hash = |namespace: &Namespace, key: &Key| namespace.as_str() == "chain" && **key == *b"genesis_hash";
        found.retain(|(namespace, key, _)| !is_hash(namespace, key));
        let expected: Vec<_> = whole
            .diff
            .iter()
            .map(|(namespace, write)| (namespace.clone(), write.key.clone(), write.value.clone()))
            .filter(|(namespace, key, _)| !is_hash(namespace, key))
            .collect();
        prop_assert_eq!(found, expected);
    }
}
