//! Xian's exports come in whole and go out whole, and its currency is counted exactly.

use crate::tools::*;
use keelstone_codec::{BoundedList, Decode, Encode as _, Text};
use keelstone_ledger::modules::contracts::{self, PATCH, balance_name};
use keelstone_ledger::xian::{self, Decimal, EntryKey, Import, ImportError, NameError, Record};
use keelstone_ledger::{Genesis, Json, JsonFault, Receipt, Refusal, Verdict};
use keelstone_tree::{Answer, Blake3, Proof, ProofLimits, Query};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Instant;

/// The real export, where it lies beside the repository.
fn real() -> Option<Vec<u8>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/xian-devnet-genesis.json");
    let place = std::env::var_os("KEELSTONE_XIAN_EXPORT").map_or(path, PathBuf::from);
    let file = std::fs::read(&place).ok();
    if file.is_none() {
        println!("skipped: no export at {}", place.display());
    }
    file
}

/// The small exports of other layouts, which lie beside the tests.
const OTHERS: [(&str, &[u8]); 4] = [
    ("bare", include_bytes!("../data/xian-bare.json")),
    ("odd values", include_bytes!("../data/xian-odd-values.json")),
    ("objects", include_bytes!("../data/xian-objects.json")),
    ("long names", include_bytes!("../data/xian-long-names.json")),
];

/// Imports, exports, and asks for every entry by its name.
fn there_and_back(file: &[u8]) -> (Genesis, Chain) {
    let mut genesis = Genesis::new(chain_id());
    let import = genesis.import_xian(file).unwrap();
    let chain = chain_of(&genesis);
    let original = Json::parse(file, 40).unwrap();
    let exported = xian::export(&chain.view()).unwrap();
    assert!(exported.same_data(&original), "{exported}");
    assert_eq!(Json::parse(exported.to_pretty().as_bytes(), 40).unwrap(), exported);
    for (name, value) in import.entries() {
        assert_eq!(xian::entry(&chain.view(), name).unwrap().as_ref(), Some(value), "{name}");
    }
    // The genesis file repeats the import whole, too.
    assert_eq!(Genesis::parse(genesis.to_json().to_pretty().as_bytes()).unwrap(), genesis);
    (genesis, chain)
}

/// spec: XIAN-1, XIAN-5, XIAN-6.
#[test]
fn real_export_comes_in_and_goes_out_equal() {
    let Some(file) = real() else { return };
    let begun = Instant::now();
    let (_, chain) = there_and_back(&file);
    println!("there and back in {:?}", begun.elapsed());
    let original = Json::parse(&file, 40).unwrap();
    assert_eq!(xian::export(&chain.view()).unwrap(), original, "down to the order of members");
    let import = Import::parse(&file).unwrap();
    assert_eq!((import.entries().len(), import.nonces().len()), (5_278, 72));
}

/// spec: XIAN-1, XIAN-3, XIAN-5, XIAN-6. Other layouts, other orders, odd values, names longer than keys.
#[test]
fn exports_of_other_layouts_come_in_and_go_out_equal() {
    for (name, file) in OTHERS {
        println!("{name}");
        there_and_back(file);
    }
}

/// Whatever other exports lie in the directory that `KEELSTONE_XIAN_EXPORTS` names.
#[test]
fn further_exports_come_in_and_go_out_equal() {
    let Some(directory) = std::env::var_os("KEELSTONE_XIAN_EXPORTS") else {
        println!("skipped: KEELSTONE_XIAN_EXPORTS is not set");
        return;
    };
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            println!("{}", path.display());
            there_and_back(&std::fs::read(path).unwrap());
        }
    }
}

/// An import is the state it brings, however its file is written: order and spaces do not change an entry.
#[test]
fn entries_of_one_state_have_one_root() {
    let roots: BTreeSet<_> = [
        r#"{"genesis":[{"key":"a.b","value":1},{"key":"a.c","value":2}]}"#,
        r#"{ "genesis" : [ {"value":1, "key":"a.b"}, {"key":"a.c", "value":2} ] }"#,
    ]
    .map(|file| there_and_back(file.as_bytes()).1.root())
    .into();
    assert_eq!(roots.len(), 1);
}

#[test]
fn imports_that_cannot_be_kept_whole_are_refused_by_name() {
    let refused = |file: &str| Import::parse(file.as_bytes()).expect_err(file);
    let entry = |name: &str| format!(r#"[{{"key":"{name}","value":1}}]"#);
    assert!(matches!(refused("{}"), ImportError::NoEntries));
    assert!(matches!(refused(r#"{"genesis":1}"#), ImportError::NoEntries));
    assert!(matches!(refused(r#"[1]"#), ImportError::Entry { list: "genesis", index: 0 }));
    assert!(matches!(refused(r#"[{"key":"a"}]"#), ImportError::Entry { .. }));
    assert!(matches!(refused(r#"[{"key":1,"value":1}]"#), ImportError::Entry { .. }));
    assert!(matches!(refused(r#"[{"key":"a","value":1,"comment":""}]"#), ImportError::Entry { .. }));
    let list = |name: &str| format!(r#"[{{"key":"{name}","value":1}}]"#);
    let two = [
        (format!(r#"{{"abci_genesis":{{"genesis":{}}},"nonces":{}}}"#, list("a"), list("b")), "nonces"),
        (format!(r#"{{"genesis":{},"abci_genesis":{{"genesis":{}}}}}"#, list("a"), list("b")), "genesis"),
        (format!(r#"{{"genesis":{},"abci_genesis":{{"nonces":{}}}}}"#, list("a"), list("b")), "nonces"),
        (r#"{"app_state":{"genesis":{}},"abci_genesis":{"genesis":{},"nonces":{}}}"#.to_owned(), "genesis"),
    ];
    for (file, name) in two {
        assert!(matches!(refused(&file), ImportError::Ambiguous { list, .. } if list == name), "{file}");
    }
    assert!(matches!(refused(r#"{"genesis":[],"nonces":3}"#), ImportError::List { list: "nonces" }));
    let twice = r#"[{"key":"a","value":1},{"key":"a","value":1}]"#;
    assert!(matches!(refused(twice), ImportError::Duplicate { list: "genesis", name } if name == "a"));
    assert!(matches!(refused(&entry("")), ImportError::Name { source: NameError::Empty, .. }));
    let long = "n".repeat(4_097);
    assert!(matches!(refused(&entry(&long)), ImportError::Name { source: NameError::TooLong { found: 4_097 }, .. }));
    assert!(Import::parse(entry(&long[1..]).as_bytes()).is_ok());
    let account = format!(r#"{{"genesis":[],"nonces":[{{"key":"{}","value":1}}]}}"#, "n".repeat(256));
    assert!(matches!(refused(&account), ImportError::Name { list: "nonces", .. }));
    let members = refused(r#"[{"key":"a","value":{"x":1,"x":1}}]"#);
    assert!(matches!(members, ImportError::Json(error) if matches!(error.what, JsonFault::DuplicateName { .. })));
    let deep = format!(r#"[{{"key":"a","value":{}1{}}}]"#, "[".repeat(25), "]".repeat(25));
    assert!(matches!(refused(&deep), ImportError::TooDeep { found: 25, .. }));
    assert!(matches!(refused("[NaN]"), ImportError::Json(_)));
    let large = format!(r#"[{{"key":"a","value":"{}"}}]"#, "x".repeat(8 << 20));
    assert!(matches!(Import::parse(large.as_bytes()).unwrap().writes(), Err(ImportError::TooLarge { .. })));
}

/// spec: XIAN-3. A long name is its own entry: its key is one no other name has, and the record repeats the name.
#[test]
fn long_names_do_not_meet() {
    let (a, b) = ("x".repeat(300), "x".repeat(301));
    let keys = [a.as_str(), b.as_str(), &a[..222], &a[..255]].map(|name| EntryKey::named(name).unwrap());
    assert_eq!(keys.iter().map(|key| key.key().clone()).collect::<BTreeSet<_>>().len(), 4);
    assert!(keys.iter().all(|key| key.key().starts_with(&a.as_bytes()[..222])), "they sort where they belong");
    assert_eq!(Record::entry(&a, Json::Null).value_of(&b), None, "a hash that collides is no entry of ours");
}

/// spec: XIAN-3. An entry is proven under its own name, and so is that there is none.
#[test]
fn entries_are_proven_by_their_own_names() {
    let (_, chain) = there_and_back(OTHERS[0].1);
    let namespace = keelstone_codec::Namespace::new(xian::CONTRACTS).unwrap();
    let [here, gone] = ["currency.balances:dao", "currency.balances:nobody"]
        .map(|name| keelstone_codec::Key::new(name.as_bytes()).unwrap());
    let queries = [Query::Key(namespace.clone(), here.clone()), Query::Key(namespace.clone(), gone.clone())];
    let bytes = chain.view().prove(&queries).unwrap().encode();
    let limits = ProofLimits::default();
    let shown = Proof::decode(&bytes).unwrap().verify::<Blake3>(chain.root(), &queries, &limits).unwrap();
    let Answer::Present(value) = shown.get(&namespace, &here) else { panic!("it is present") };
    let value = Record::from_bytes(&value).unwrap().value_of("currency.balances:dao").unwrap();
    assert_eq!(value.to_string(), r#"{"__fixed__":"10999999.989"}"#);
    assert!(matches!(shown.get(&namespace, &gone), Answer::Absent));
}

fn word(text: impl Into<String>) -> contracts::Word {
    Text::new(text).unwrap()
}

fn address(person: u8) -> String {
    key(person).public().to_string()
}

fn balance(chain: &Chain, address: &str) -> Option<String> {
    let name = balance_name(address).unwrap();
    xian::entry(&chain.view(), &name).unwrap().map(|value| value.to_string())
}

fn denied(receipt: &Receipt) -> String {
    let Verdict::Failed(failure) = &receipt.verdict else { panic!("{receipt:?}") };
    failure.reason.to_string()
}

fn patch(name: &str, value: Option<&str>) -> keelstone_execution::Operation {
    let entry = contracts::PatchEntry {
        key: Text::new(name).unwrap(),
        value: value.map(|value| Text::new(value).unwrap()),
        comment: Text::new("a test").unwrap(),
    };
    op(&contracts::Patch { entries: BoundedList::new(vec![entry]).unwrap() })
}

/// A chain where person 1 may patch.
fn patched(genesis: &mut Genesis) -> Chain {
    genesis.grants.insert(key(1).public(), [PATCH].into());
    chain_of(genesis)
}

/// spec: XIAN-7, XIAN-8. Real balances move as exact decimals, by approval, between addresses nobody here has keys of.
#[test]
fn transfers_between_real_addresses_are_exact() {
    let mut genesis = Genesis::new(chain_id());
    let from = "00aed9daacd1004e1072d8d487e910ff5f1faa69444c379f3ffe5196a30bc5ad";
    let to = "009a51940e0271d9e9e89a59114c772c30a59f5dc7b4dd6835b537873ce5bcf2";
    let (whose, file) = match real() {
        Some(file) => ("the real", file),
        None => {
            let balances = [(from, "0.00001"), (to, "13.91059900603940955793")];
            let entry = |(address, amount)| {
                format!(r#"{{"key":"currency.balances:{address}","value":{{"__fixed__":"{amount}"}}}}"#)
            };
            ("a synthetic", format!("[{}]", balances.map(entry).join(",")).into_bytes())
        }
    };
    println!("on {whose} export");
    genesis.import_xian(&file).unwrap();
    let chain = patched(&mut genesis);
    let before = xian::export(&chain.view()).unwrap();
    let approval = format!("currency.balances:{from}:{}", address(2));
    let receipt = one(&chain, 1, vec![patch(&approval, Some(r#"{"__fixed__":"0.000009"}"#))]);
    assert!(receipt.succeeded(), "{receipt:?}");
    let receipt = one(
        &chain,
        2,
        vec![op(&contracts::TransferFrom { owner: word(from), to: word(to), amount: word("0.0000043") })],
    );
    assert!(receipt.succeeded(), "{receipt:?}");
    assert_eq!(balance(&chain, from).unwrap(), r#"{"__fixed__":"0.0000057"}"#);
    assert_eq!(balance(&chain, to).unwrap(), r#"{"__fixed__":"13.91060330603940955793"}"#);
    let left = xian::entry(&chain.view(), &approval).unwrap().unwrap();
    assert_eq!(left.to_string(), r#"{"__fixed__":"0.0000047"}"#);
    let receipt = one(
        &chain,
        2,
        vec![op(&contracts::TransferFrom { owner: word(from), to: word(to), amount: word("0.0000048") })],
    );
    assert!(denied(&receipt).contains("which is less than"), "{}", denied(&receipt));
    // Taking it all back leaves the export as it was, but for the nonces of those who acted.
    let restore = [(from, "0.00001"), (to, "13.91059900603940955793")].map(|(address, amount)| {
        patch(&balance_name(address).unwrap(), Some(&format!(r#"{{"__fixed__":"{amount}"}}"#)))
    });
    let receipt = one(&chain, 1, [restore.to_vec(), vec![patch(&approval, None)]].concat());
    assert!(receipt.succeeded(), "{receipt:?}");
    let entries = |json: &Json| match json.member("abci_genesis") {
        Some(inner) => inner.member("genesis").cloned(),
        None => json.member("genesis").cloned().or_else(|| Some(json.clone())),
    };
    assert_eq!(entries(&xian::export(&chain.view()).unwrap()), entries(&before));
}

/// spec: XIAN-7.
#[test]
fn transfers_that_xian_would_refuse_are_refused() {
    let mut genesis = Genesis::new(chain_id());
    let file = format!(r#"[{{"key":"currency.balances:{}","value":100}}]"#, address(1));
    genesis.import_xian(file.as_bytes()).unwrap();
    let chain = patched(&mut genesis);
    let pay = |to: &str, amount: &str| vec![op(&contracts::Transfer { to: word(to), amount: word(amount) })];
    for (to, amount, why) in [
        ("bob", "0", "above zero"),
        ("bob", "-1", "above zero"),
        ("bob", "100.5", "less than"),
        ("bob", "NaN", "not a decimal"),
        ("bob", "1e-31", "31"),
        ("bob:eve", "1", "no ':'"),
        ("bob.eve", "1", "no ':'"),
        ("", "1", "at least one"),
    ] {
        let receipt = one(&chain, 1, pay(to, amount));
        assert!(denied(&receipt).contains(why), "{to:?} {amount}: {}", denied(&receipt));
    }
    assert_eq!(balance(&chain, &address(1)).unwrap(), "100");
    assert!(one(&chain, 1, pay("bob", "40")).succeeded());
    assert!(one(&chain, 1, pay("bob", "0.5")).succeeded());
    assert!(one(&chain, 1, pay(&address(1), "59.5")).succeeded(), "to oneself");
    assert_eq!(balance(&chain, "bob").unwrap(), r#"{"__fixed__":"40.5"}"#);
    assert_eq!(balance(&chain, &address(1)).unwrap(), r#"{"__fixed__":"59.5"}"#);
}

/// spec: XIAN-8. Only who was granted it patches; values are kept as they are written, or refused.
#[test]
fn patches_are_for_those_it_was_granted_to() {
    let chain = patched(&mut Genesis::new(chain_id()));
    let transaction = signed(2, 0, vec![patch("con_a.v", Some("1"))]);
    let found = chain.submit(&keelstone_codec::Encode::to_bytes(&transaction));
    assert!(matches!(found, Err(Refusal::Session(_))), "{found:?}");
    for value in ["1e400", r#"{"b":1,"a":[null]}"#, "\"\"", "null"] {
        assert!(one(&chain, 1, vec![patch("con_a.v", Some(value))]).succeeded());
        assert_eq!(xian::entry(&chain.view(), "con_a.v").unwrap().unwrap().to_string(), value);
    }
    for value in ["", "tru", r#"{"a":1,"a":1}"#, &"[".repeat(25)] {
        assert!(!denied(&one(&chain, 1, vec![patch("con_a.v", Some(value))])).is_empty());
    }
    assert!(one(&chain, 1, vec![patch("con_a.v", None)]).succeeded());
    assert_eq!(xian::entry(&chain.view(), "con_a.v").unwrap(), None);
    let long = "x".repeat(1_024);
    assert!(one(&chain, 1, vec![patch(&long, Some("5"))]).succeeded());
    assert_eq!(xian::entry(&chain.view(), &long).unwrap().unwrap().to_string(), "5");
}

/// Accounts that came with an import count on from where they were, and an export says so.
#[test]
fn imported_nonces_count_on() {
    let mut genesis = Genesis::new(chain_id());
    let file = format!(r#"{{"genesis":[],"nonces":[{{"key":"{}","value":41}}]}}"#, address(1));
    genesis.import_xian(file.as_bytes()).unwrap();
    let chain = chain_of(&genesis);
    block(&chain, &[signed(1, 42, vec![register("ada")])]);
    let exported = xian::export(&chain.view()).unwrap();
    assert_eq!(exported.to_string(), file.replace(":41}", ":42}"));
}

/// spec: XIAN-6, TX-6. A chain that begins again from its export takes no transaction again, whatever it began from the first
/// time.
#[test]
fn what_was_signed_before_an_export_is_no_good_after_it() {
    for file in ["[]", r#"{"genesis":[]}"#, r#"{"hash":"","genesis":[],"nonces":[]}"#] {
        let (_, chain) = there_and_back(file.as_bytes());
        let old = signed(1, 0, vec![register("ada")]);
        block(&chain, std::slice::from_ref(&old));
        let exported = xian::export(&chain.view()).unwrap().to_pretty();
        let (_, again) = there_and_back(exported.as_bytes());
        match again.submit(&old.to_bytes()) {
            Err(Refusal::NonceUsed { next: 1, found: 0 }) => {}
            other => panic!("{file}: {other:?}"),
        }
        block(&again, &[signed(1, 1, vec![register("ada")])]);
    }
}

proptest! {
    /// 0 floats in state: sums of balances are what whole numbers of the smallest part say, whatever is paid to whom.
    #[test]
    fn money_is_neither_made_nor_lost(payments in prop::collection::vec((1u8..4, 1u8..4, 0u64..2_000_000_000), 1..12)) {
        let mut genesis = Genesis::new(chain_id());
        let entry = |person: u8| {
            format!(r#"{{"key":"currency.balances:{}","value":{{"__fixed__":"1000.000000001"}}}}"#, address(person))
        };
        genesis.import_xian(format!("[{},{},{}]", entry(1), entry(2), entry(3)).as_bytes()).unwrap();
        let chain = chain_of(&genesis);
        for (from, to, amount) in payments {
            let amount = word(format!("{}.{:09}", amount / 1_000_000, amount % 1_000_000));
            one(&chain, from, vec![op(&contracts::Transfer { to: word(address(to)), amount })]);
        }
        let mut sum = Decimal::zero();
        for person in 1..4 {
            let value = xian::entry(&chain.view(), &balance_name(&address(person)).unwrap()).unwrap();
            let amount = xian::Amount::from_value(value.as_ref()).unwrap();
            prop_assert!(!amount.value().is_negative());
            sum = sum.add(amount.value()).unwrap();
        }
        prop_assert_eq!(sum.to_string(), "3000.000000003");
    }
}
