//! The golden bytes of `spec/vectors/ledger.json`, which pin every layout of `spec/ledger.md`.

use crate::tools::*;
use keelstone_codec::{Blob, BoundedSet, Encode, Hash, Height, Root, StateHash, Text, Timestamp};
use keelstone_execution::{Batching, Bundle, BundleId, Mode, SessionId};
use keelstone_ledger::modules::{agents, contracts, standard};
use keelstone_ledger::xian::{Decimal, EntryKey, Record};
use keelstone_ledger::{
    Attestation, Block, BundleProof, Continuation, Genesis, JSON_DEPTH_MAX, Json, Ledger, PoolLimits, Progress,
    Receipt, Signature, SignedTransaction, Transaction, TxId, Validator, Validators, Verdict, Witness, list_root,
    nonce_place, verify,
};
use keelstone_store::kv::{Batch, Kv, MemoryKv};
use keelstone_tree::Blake3;
use serde_json::{Value, json};
use std::sync::Arc;

fn bytes(value: &impl Encode) -> String {
    hex::encode(value.to_bytes())
}

fn transactions() -> Value {
    let operations =
        vec![op(&contracts::Transfer { to: Text::new("bob").unwrap(), amount: Text::new("0.5").unwrap() })];
    let session = SessionId::root(&chain_id(), &key(1).public());
    let plain = Transaction { expiry_height: Height(9), ..unsigned(1, 7, operations) };
    let in_session = Transaction { session: Some(session), ..plain.clone() };
    let show = |transaction: Transaction| {
        let signed = transaction.clone().sign(&key(1));
        json!({
            "rules": ["TX-1", "TX-2", "TX-3"],
            "seed": hex::encode([1; 32]),
            "encoding": bytes(&transaction),
            "sign_bytes": hex::encode(transaction.sign_bytes()),
            "id": transaction.id().to_string(),
            "signature": signed.signature.to_string(),
            "signed": bytes(&signed),
            "list_hash": signed.list_hash().to_string(),
        })
    };
    json!([show(plain), show(in_session)])
}

/// Signatures on which implementations of plain Ed25519 disagree, with this chain's verdict.
fn signatures() -> Value {
    let mut universal = Signature([0; 64]);
    universal.0[0] = 1;
    let signer = key(1).public();
    let good = key(1).sign(b"message");
    let identity = "0100000000000000000000000000000000000000000000000000000000000000";
    let not_canonical = "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f";
    let no_point = "0200000000000000000000000000000000000000000000000000000000000000";
    let keys = [identity, not_canonical, no_point].map(|key| keelstone_ledger::PublicKey::from_hex(key).unwrap());
    let mut above = good;
    let order = hex::decode("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010").unwrap();
    let mut carry = 0;
    for (byte, add) in above.0[32..].iter_mut().zip(order) {
        let sum = u16::from(*byte) + u16::from(add) + carry;
        (*byte, carry) = (sum.to_le_bytes()[0], sum >> 8);
    }
    let all = [
        ("good", signer, good),
        ("S + L", signer, above),
        ("key of small order", keys[0], universal),
        ("key of small order, not canonical", keys[1], universal),
        ("no point", keys[2], universal),
    ];
    let show = |(what, key, signature): (&str, keelstone_ledger::PublicKey, Signature)| {
        let verdict = verify(&key, b"message", &signature);
        json!({ "rule": "TX-4", "what": what, "key": key.to_string(), "message": hex::encode("message"),
            "signature": signature.to_string(), "good": verdict.is_ok() })
    };
    Value::Array(all.into_iter().map(show).collect())
}

fn lists() -> Value {
    let items: Vec<Hash> = (0..7u8).map(|number| Hash([number; 32])).collect();
    let show = |count: usize| json!({ "rule": "BLOCK-3", "items": items[..count], "root": list_root(&items[..count]).to_string() });
    Value::Array((0..=7).map(show).collect())
}

/// A small chain: its genesis, its first block, the record, receipts and root.
fn chains() -> Value {
    let mut genesis = Genesis::new(chain_id());
    genesis.grants.insert(key(1).public(), ["contracts.patch".into()].into());
    let chain = chain_of(&genesis);
    let update = op(&agents::Update { name: None, personality: None, traits: Some(BoundedSet::default()) });
    let made = block(&chain, &[signed(1, 0, vec![register("ada")]), signed(2, 0, vec![update])]);
    let record = made.record.clone().unwrap();
    let (namespace, nonce_key) = nonce_place(&key(1).public());
    json!({
        "rules": ["BLOCK-1", "BLOCK-4", "LEDGER-2", "LEDGER-4", "GENESIS-3", "TX-6"],
        "genesis": Genesis::to_json(&genesis).to_string(),
        "facts": bytes(chain.facts()),
        "genesis_hash": chain.genesis_hash().to_string(),
        "genesis_root": record.previous_root.to_string(),
        "block": bytes(&made.block),
        "empty_block": bytes(&Block {
            height: Height(2), time: Timestamp(3), proposer: proposer(), transactions: vec![],
        }),
        "receipts": made.receipts.iter().map(bytes).collect::<Vec<_>>(),
        "record": bytes(&record),
        "record_hash": record.hash().to_string(),
        "root": made.root.to_string(),
        "nonce_place": format!("{namespace}/{}", hex::encode(nonce_key)),
    })
}

/// A small chain with an async bundle: what its transaction and its batches come to.
fn bundles() -> Value {
    let chain = chain();
    let update = op(&agents::Update { name: None, personality: None, traits: None });
    let operations = vec![register("ada"), update, register("ada")];
    let borders = BoundedSet::new([2]).unwrap();
    let mode = Mode::Async(Batching { borders, ..Batching::until(Height(9)) });
    let bundle = Bundle::new(mode, operations.clone()).unwrap();
    let transaction = Transaction { bundle, ..unsigned(1, 0, operations) }.sign(&key(1));
    let submitted = block(&chain, std::slice::from_ref(&transaction));
    let made: Vec<_> = (0..2).map(|_| chain.produce(Timestamp(5), proposer()).unwrap()).collect();
    let record = made[1].record.clone().unwrap();
    json!({
        "rules": ["BLOCK-4", "BLOCK-6", "LEDGER-2"],
        "transaction": bytes(&transaction),
        "receipt": bytes(&submitted.receipts[0]),
        "advanced": bytes(&made[0].continuations[0]),
        "stopped": bytes(&made[1].continuations[0]),
        "list_hash": made[1].continuations[0].list_hash().to_string(),
        "record": bytes(&record),
        "root": made[1].root.to_string(),
    })
}

/// What no small chain comes to by itself.
fn forms() -> Value {
    let (id, session) = (Hash([1; 32]), SessionId::root(&chain_id(), &key(1).public()));
    let receipt = |verdict| Receipt { transaction: TxId(id), verdict, gas_used: 7 };
    let refused = receipt(Verdict::Refused { code: 5, reason: Text::new("no").unwrap() });
    let taken_in = receipt(Verdict::Submitted { bundle: BundleId(id), session, operations: 2 });
    let continuation = |progress| Continuation {
        bundle: BundleId(id),
        by: None,
        session,
        first: 2,
        progress,
        state_hash: StateHash(Hash([3; 32])),
        gas_used: 4,
    };
    let validators = [(1, 10), (2, 20)].map(|(seed, power)| Validator { key: key(seed).public(), power });
    let validators = Validators::new(validators.to_vec(), Height(0)).unwrap();
    let attestation = Attestation {
        chain_id: chain_id(),
        genesis_hash: Hash([1; 32]),
        height: Height(2),
        root: Root(Hash([3; 32])),
        said_at: Timestamp(4),
    };
    json!([
        { "rule": "BLOCK-4", "what": "refused: 5, no; gas 7", "encoding": bytes(&refused) },
        { "rule": "BLOCK-4", "what": "taken in; two operations, gas 7", "encoding": bytes(&taken_in) },
        { "rule": "BLOCK-6", "what": "past its last height", "encoding": bytes(&continuation(Progress::Expired)) },
        { "rule": "BLOCK-6", "what": "abandoned", "encoding": bytes(&continuation(Progress::Abandoned)) },
        { "rule": "LEDGER-8", "what": "keys of seeds 1 and 2, powers 10 and 20", "encoding": bytes(&validators) },
        { "rule": "SNAP-12", "what": "signed by the key of seed 1", "sign_bytes": hex::encode(attestation.sign_bytes()),
          "encoding": bytes(&attestation.sign(&key(1))) },
    ])
}

/// A proof of what a bundle comes to on a small chain.
fn bundle_proof() -> Value {
    let chain = chain();
    let operation = op(&contracts::Transfer { to: Text::new("bob").unwrap(), amount: Text::new("0.5").unwrap() });
    let transaction = signed(1, 0, vec![operation]);
    let Witness { setting, proof } = chain.witness(&transaction.transaction, Timestamp(5)).unwrap();
    let witness = Blob::new(proof).unwrap();
    let proof = BundleProof::make::<Blake3>(chain.registry(), setting, transaction, witness).unwrap();
    proof.verify::<Blake3>(chain.registry()).unwrap();
    json!({
        "rule": "HISTORY-8",
        "setting": bytes(&proof.setting),
        "transaction": bytes(&proof.transaction),
        "receipt": bytes(&proof.receipt),
        "new_root": proof.new_root.to_string(),
        "proof": bytes(&proof),
    })
}

/// Proofs of one operation each: of a transaction's, and of a batch's.
fn operation_proofs() -> Value {
    let chain = chain();
    let operations = vec![register("ada"), post("one"), post("two")];
    let bundle = Bundle::new(Mode::Async(Batching::until(Height(9))), vec![post("three"), post("four")]).unwrap();
    let batched = Transaction { bundle, ..unsigned(1, 1, operations.clone()) }.sign(&key(1));
    let atom = signed(1, 0, operations);
    block(&chain, std::slice::from_ref(&atom));
    block(&chain, std::slice::from_ref(&batched));
    chain.produce(Timestamp(5), proposer()).unwrap();
    let show = |transaction: &SignedTransaction, index| {
        let proof = chain.operation_proof(&BundleId(transaction.id().0), index).unwrap().unwrap();
        json!({
            "rules": ["BLOCK-3", "HISTORY-10"],
            "index": index,
            "operation": bytes(&proof.operation),
            "list_hash": proof.operation.list_hash().to_string(),
            "root": proof.root.to_string(),
            "proof": bytes(&proof),
        })
    };
    json!([show(&atom, 2), show(&batched, 1)])
}

/// A small chain's first block as a database keeps it: body, receipts, audit records. These very bytes must be read for ever,
/// whatever else a later compressor makes of the same.
const PACKED: [(u8, &str); 3] = [
    (
        b'b',
        concat!(
            "019301000051b37e5b28b52ffd609300950800540f010097ffc883c80bee7237ef95d9b9b703d4ad63e60a21e605867682b7",
            "5b8b3f43030100000006746573742d318a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c00a0",
            "8604000000773609a4823a2bed84174269eba718f6bedf09101df1f8f4f873f44f83a198f633000000030000006164610035",
            "0c002b2951918555217e5afe3abd442a70c64bf7aa7cb53aae488c54a87bda186ef7076f6e6574776f090000000568726565",
            "000094fc2a81b1257efe0e053021c101e52b96209592a6fcd4b8a79efd2cfbf276412e621ae09db55e18fd90c9cff27ea565",
            "749edb8cb4e99e7d98b8d9813d206a0e0b0020d0c019a1c2112ee4831656301820002260159001d991411b",
        ),
    ),
    (
        b'r',
        concat!(
            "01740300008fc7cec228b52ffd607402350d0044150002000000d800000063052dd2f6f9f88ed4d3857d43ad1be1ecc6d7b",
            "820830551c6be9c4ad08d7de6a83ba0d5abb5fe1bfd0a24b2156ae66560d7c56b87fd59dc7b09d0aca04d16e11167656e74",
            "732e7265676973746572656427000000036461efad080000000500d700c9b0382f9ebcdc136893494438402afc037bdd2b6",
            "4bfeea551bcac0b7c1260b3068c1c905efefc9f5e1934137b5d5c0d2d3d44d40d28573ca75c2274fb68e6f46d656d65732e",
            "706f737465642f6f6e6527120102e88f73e84aaefa4258e051abc2f04b95e6a2a21bd86820deda173795385ba67a990a45a",
            "5b502951d00123b2e6a79973fd68895fa97312c9bad82e3cc70bf185e74776f4b03d92dcf5b59a7d1e1929cc57c3ebacd56",
            "523b5988f6e0118f5321590af6749a1182c85e9394de12c8d0944865b6fd834f82c75cfe43eae149f924c2147d5a37d7133",
            "1056872656577d8e40300000000002220e00291408e7a9b52590c6cf3980169e0b29d804913e0052068d4c2a1ea1401e6c7",
            "c71207b05d066e749ac3ce0d68d71c345010cfe0aa136401cb3700ed999bd0721e57eb0a1908f03b8661ca1220",
        ),
    ),
    (
        b'a',
        concat!(
            "000143030000c7adbe4128b52ffd604302050500f404010002d8010067eaa7f776d66edda3beaf9344c06c4e194f0a48146",
            "b71ca69d81b4ff6b8f8e5000102010301000005d701090001020203020a00000e0001020303030a000005d9011205000000",
            "0000190046052e45057e4405ce860a5c840afc72053a58933c4e3e815f7c02bf7b1221c62c2c13f85526f043551ea793c08",
            "f93c0d9298b91b89547f742e0e2428c706e76c0a73c424fd981bd02a1232bae",
        ),
    ),
];

fn packed() -> Value {
    let kv = Arc::new(MemoryKv::new());
    let genesis = Genesis::new(chain_id());
    let chain = Ledger::create(store(), kv.clone(), standard(), &genesis, PoolLimits::default()).unwrap();
    let made = block(&chain, &[signed(1, 0, vec![register("ada"), post("one"), post("two"), post("three")])]);
    let (height, audit) = (made.block.height, chain.block_audit(made.block.height).unwrap());
    let place = |kind: u8| [&[kind], height.0.to_be_bytes().as_slice()].concat();
    for (kind, packed) in PACKED {
        kv.write(std::mem::take(Batch::new().put(place(kind), hex::decode(packed).unwrap()))).unwrap();
    }
    assert_eq!(chain.block(height).unwrap(), made.block);
    assert_eq!(chain.receipts(height).unwrap(), made.receipts);
    assert_eq!(chain.block_audit(height).unwrap(), audit);
    let [(_, body), (_, receipts), (_, records)] = PACKED;
    json!({
        "rule": "HISTORY-11",
        "body": bytes(&made.block),
        "receipts": bytes(&made.receipts),
        "audit": hex::encode(audit.unwrap().pack()),
        "packed": { "body": body, "receipts": receipts, "audit": records },
    })
}

fn xian() -> Value {
    let values = ["null", "true", "0.780", "-1e400", r#""é""#, "[]", r#"{"z":1,"a":{"__fixed__":"7.6E+20"}}"#];
    let value = |text: &str| {
        let parsed = Json::parse(text.as_bytes(), JSON_DEPTH_MAX).unwrap();
        json!({ "rules": ["XIAN-1", "XIAN-2"], "json": text, "value": bytes(&parsed), "record": bytes(&Record::entry("a.b", parsed)) })
    };
    let long = "x".repeat(300);
    let name = |name: &str| {
        let key = EntryKey::named(name).unwrap();
        json!({ "rule": "XIAN-3", "name": name, "key": hex::encode(key.key()) })
    };
    let decimals = ["0.00", "20", "7.6E+20", "0.00000012", "-11111111.10", "1e-30"];
    let decimal =
        |text: &str| json!({ "rule": "XIAN-4", "read": text, "written": Decimal::parse(text).unwrap().to_string() });
    json!({
        "values": values.map(value),
        "names": (["currency.balances:bob", &long].map(name)),
        "decimals": decimals.map(decimal),
    })
}

/// spec: TX-1, TX-2, TX-3, TX-6, BLOCK-1, BLOCK-4, BLOCK-5, BLOCK-6, HISTORY-8, HISTORY-10, HISTORY-11,
/// XIAN-2, XIAN-4. Written anew with `KEELSTONE_BLESS=1` only.
#[test]
fn bytes_are_those_of_the_golden_vectors() {
    let found = json!({
        "transactions": transactions(),
        "signatures": signatures(),
        "lists": lists(),
        "chain": chains(),
        "bundles": bundles(),
        "forms": forms(),
        "bundle_proof": bundle_proof(),
        "operation_proofs": operation_proofs(),
        "packed": packed(),
        "xian": xian(),
    });
    golden::check("ledger.json", &found);
}

/// spec: BLOCK-2. A block that does not follow is refused, and the chain stands where it stood.
#[test]
fn blocks_that_do_not_follow_are_refused() {
    let chain = chain();
    block(&chain, &[signed(1, 0, vec![register("ada")])]);
    let (root, time) = (chain.root(), chain.time());
    let made = |height, time| Block {
        height: Height(height),
        time: Timestamp(time),
        proposer: proposer(),
        transactions: vec![],
    };
    for block in [made(1, 9_000), made(3, 9_000)] {
        assert!(chain.run(block, keelstone_ledger::Refused::Receipt).is_err());
    }
    chain.produce(Timestamp(50), proposer()).unwrap();
    let early = chain.run(made(3, 49), keelstone_ledger::Refused::Receipt).unwrap();
    assert!(chain.commit(early).is_err(), "before the empty block below it");
    assert!(chain.produce(Timestamp(3), proposer()).unwrap().block.time >= time, "a clock set back stops no chain");
    assert_eq!(chain.root(), root);
}
