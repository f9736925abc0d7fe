//! What a bundle comes to, foreseen with no store at hand: what the chain then finds, and a proof that anybody checks.

use crate::tools::*;
use keelstone_codec::{
    Blob, BoundedList, Decode, Encode, Fixed, Hash, Height, Namespace, Reader, Root, StateHash, Text, Timestamp, Value,
    put_varint,
};
use keelstone_execution::{
    Batching, Bundle, Capability, Emitted, ExpectError, FailureKind, Function, Meaning, Mode, Operation, SessionError,
};
use keelstone_ledger::modules::{agents, contracts, sessions, standard};
use keelstone_ledger::{
    BlockError, BundleProof, BundleProofError, Foreseen, ForesightError, Genesis, LedgerError, OperationReceipt,
    Refusal, Refused, Setting, SignedTransaction, Transaction, TransitionError, TransitionProof, Verdict,
    WITNESS_BYTES_MAX, execute, foresee, verify_transition, witness,
};
use keelstone_tree::{Blake3, HashKind, KeyRange, ProofError, Read, ReadError, Scan, Verified};

fn genesis() -> Genesis {
    let mut genesis = staked((1..6).map(|person| (person, 100)));
    let account = |person: u8| format!(r#"{{"key":"currency.balances:{}","value":50000}}"#, key(person).public());
    genesis.import_xian(format!("[{}]", (1..6).map(account).collect::<Vec<_>>().join(",")).as_bytes()).unwrap();
    genesis
}

/// A chain on which something has happened.
fn lived() -> Chain {
    let chain = chain_of(&genesis());
    block(&chain, &(1..6).map(|person| signed(person, 0, vec![post("before"), pay("all", 3)])).collect::<Vec<_>>());
    one(&chain, 5, vec![post("and then")]);
    chain
}

fn pay(to: &str, amount: u64) -> Operation {
    op(&contracts::Transfer { to: Text::new(to).unwrap(), amount: Text::new(amount.to_string()).unwrap() })
}

/// Where a transaction would be run, and a witness of it that came over the wire.
fn asked(chain: &Chain, transaction: &Transaction) -> (Setting, Verified<Blake3>, Blob<{ 64 << 20 }>) {
    let made = chain.witness(transaction, Timestamp(9_000)).unwrap();
    let state = witness::<Blake3>(&made.proof, made.setting.old_root).unwrap();
    (made.setting, state, Blob::new(made.proof).unwrap())
}

fn outcomes(foreseen: &Foreseen) -> &[OperationReceipt] {
    match &foreseen.receipt.verdict {
        Verdict::Succeeded { operations, .. } => operations,
        verdict => panic!("{verdict:?}"),
    }
}

fn proof(chain: &Chain, transaction: SignedTransaction) -> BundleProof {
    let (setting, _, witness) = asked(chain, &transaction.transaction);
    BundleProof::make::<Blake3>(&standard(), setting, transaction, witness).unwrap()
}

/// spec: HISTORY-8, EXEC-17. Over a witness a bundle gets the receipt that the chain then gives it, byte for byte, whether it
/// succeeds or fails, and the new root is that of the whole state with its changes.
#[test]
fn what_is_foreseen_over_a_witness_is_what_the_chain_finds() {
    let chain = lived();
    let bundles = [vec![pay("bob", 5), post("after"), pay("all", 1)], vec![pay("bob", 1), pay("bob", 1 << 60)]];
    for operations in bundles {
        let nonce = chain.next_nonce(&key(2).public()).unwrap().unwrap();
        let transaction = unsigned(2, nonce, operations);
        let (setting, state, _) = asked(&chain, &transaction);
        let foreseen = foresee(&standard(), state.clone(), &setting, &transaction).unwrap();
        let whole = chain.store().prepare(foreseen.changes.to_diff()).unwrap().root();
        assert_eq!(state.apply(&foreseen.changes.to_diff()).unwrap(), whole);
        let made = block(&chain, &[transaction.sign(&key(2))]);
        assert_eq!(made.receipts[0].to_bytes(), foreseen.receipt.to_bytes());
        // What the block changed beyond that is its own record, the audit log, and where the chain stands.
        for (namespace, place, change) in made.changes.iter() {
            match foreseen.changes.find(namespace, place) {
                Some(foreseen) => assert_eq!(foreseen, change),
                None => assert!(["audit", "blocks", "chain"].contains(&namespace.as_str()), "{namespace}"),
            }
        }
    }
}

/// spec: EXEC-4. A bundle that insists on what was foreseen, in either meaning, runs; once somebody was quicker it has no
/// effect, unless it insists on its own changes alone and those are still the same.
#[test]
fn a_bundle_insists_on_what_was_foreseen_in_either_meaning() {
    for (meaning, quick, code) in [
        (Meaning::Both, None, None),
        (Meaning::StateHash, Some(vec![pay("bob", 1)]), Some(7)),
        (Meaning::OwnDiff, Some(vec![pay("bob", 1)]), Some(8)),
        (Meaning::Both, Some(vec![pay("eve", 1)]), None),
    ] {
        let chain = lived();
        let transaction = unsigned(2, 1, vec![pay("bob", 5), pay("dan", 6)]);
        let (setting, state, _) = asked(&chain, &transaction);
        let foreseen = foresee(&standard(), state, &setting, &transaction).unwrap();
        transaction.bundle.check_foreseeable(&standard()).unwrap();
        let hashes = outcomes(&foreseen).iter().map(|outcome| (outcome.state_hash, outcome.diff.digest));
        let bundle = transaction.bundle.expecting(meaning, hashes);
        if let Some(operations) = quick {
            one(&chain, 3, operations);
        }
        let receipt = block(&chain, &[Transaction { bundle, ..transaction }.sign(&key(2))]).receipts[0].clone();
        let found = match receipt.verdict {
            Verdict::Failed(failure) => Some(failure.code),
            _ => None,
        };
        assert_eq!(found, code, "{meaning:?}");
    }
    let dated = unsigned(
        2,
        1,
        vec![pay("bob", 1), op(&sessions::Close { session: keelstone_execution::SessionId(Hash::ZERO) })],
    );
    dated.bundle.check_foreseeable(&standard()).unwrap();
    let functions = standard();
    let entry = functions.functions().into_iter().find(|entry| !entry.context.is_none()).unwrap();
    let dated = Operation { function: entry.hash, ..pay("bob", 1) };
    let error = unsigned(2, 1, vec![pay("bob", 1), dated]).bundle.check_foreseeable(&standard()).unwrap_err();
    assert!(matches!(error, ExpectError::Unforeseeable { operation: 1, .. }), "{error}");
}

fn receipt_field(error: &BundleProofError) -> &str {
    match error {
        BundleProofError::Receipt { field, .. } => field,
        error => panic!("{error}"),
    }
}

/// spec: HISTORY-9. Each thing that can be wrong with a proof, in turn, is what is named.
#[test]
fn an_outsider_names_the_first_thing_that_is_wrong() {
    let chain = lived();
    let good = proof(&chain, signed(2, 1, vec![pay("bob", 5), post("after")]));
    let registry = standard();
    let good = BundleProof::from_bytes(&good.to_bytes()).unwrap();
    good.verify::<Blake3>(&registry).unwrap();
    let wrong = |change: &dyn Fn(&mut BundleProof)| {
        let mut proof = good.clone();
        change(&mut proof);
        assert_ne!(proof, good);
        proof.verify::<Blake3>(&registry).unwrap_err()
    };
    // Changes of what is signed, and signed again by its sender.
    let resigned = |change: &dyn Fn(&mut Transaction)| {
        wrong(&|proof| {
            let mut transaction = proof.transaction.transaction.clone();
            change(&mut transaction);
            proof.transaction = transaction.sign(&key(2));
        })
    };

    let error = wrong(&|proof| proof.hasher = HashKind::Sha256);
    assert!(matches!(error, BundleProofError::Hasher { expected: "blake3", found: "sha256" }), "{error}");

    let error = wrong(&|proof| proof.transaction.signature.0[5] ^= 1);
    assert!(matches!(error, BundleProofError::Signature(_)), "{error}");
    let error = wrong(&|proof| proof.transaction.transaction.nonce = 2);
    assert!(matches!(error, BundleProofError::Signature(_)), "{error}");

    let error = wrong(&|proof| proof.setting.old_root = Root(Hash([7; 32])));
    assert!(matches!(error, BundleProofError::Witness(ProofError::WrongRoot { .. })), "{error}");
    let error = wrong(&|proof| proof.witness = Blob::new(proof.witness[..proof.witness.len() - 1].to_vec()).unwrap());
    assert!(matches!(error, BundleProofError::Witness(_)), "{error}");
    let other = proof(&chain, signed(2, 1, vec![pay("eve", 5)]));
    let error = wrong(&|proof| proof.witness = other.witness.clone());
    let BundleProofError::Foresight(ForesightError::Incomplete { namespace, key: place }) = error else {
        panic!("{error}");
    };
    assert_eq!((namespace.as_str(), place.as_slice()), ("contracts", &b"currency.balances:bob"[..]));

    let error = wrong(&|proof| proof.setting.height = Height(1));
    let height = matches!(error, BundleProofError::Foresight(ForesightError::Block(BlockError::Height { .. })));
    assert!(height, "{error}");
    let error = wrong(&|proof| proof.setting.time = Timestamp(0));
    assert!(matches!(error, BundleProofError::Foresight(ForesightError::Block(BlockError::Time { .. }))), "{error}");

    let refused = |error: BundleProofError| match error {
        BundleProofError::Foresight(ForesightError::Refused(refusal)) => refusal.code(),
        error => panic!("{error}"),
    };
    assert_eq!(refused(resigned(&|transaction| transaction.nonce = 0)), 8);
    assert_eq!(refused(resigned(&|transaction| transaction.nonce = 2)), 9);
    assert_eq!(refused(resigned(&|transaction| transaction.expiry_height = Height(1))), 6);
    assert_eq!(
        refused(resigned(&|transaction| transaction.chain_id = keelstone_codec::ChainId::new("other").unwrap())),
        3
    );

    let operation = |change: fn(&mut OperationReceipt)| {
        let error = wrong(&|proof| match &mut proof.receipt.verdict {
            Verdict::Succeeded { operations, .. } => change(&mut operations[1]),
            verdict => panic!("{verdict:?}"),
        });
        receipt_field(&error).to_owned()
    };
    assert_eq!(operation(|operation| operation.function.0.0[0] ^= 1), "function of operation 1");
    assert_eq!(operation(|operation| operation.result = Blob::new(vec![9]).unwrap()), "result of operation 1");
    assert_eq!(operation(|operation| operation.diff.digest.0[0] ^= 1), "diff of operation 1");
    assert_eq!(operation(|operation| operation.state_hash = StateHash::default()), "state hash of operation 1");
    assert_eq!(operation(|operation| drop(operation.events.pop())), "events of operation 1");
    let more = |operation: &mut OperationReceipt| {
        operation.events.push(Emitted { name: "x".to_owned(), data: Blob::default() })
    };
    assert_eq!(operation(more), "events of operation 1");
    assert_eq!(operation(|operation| operation.gas_used += 1), "gas of operation 1");
    let field = |change: &dyn Fn(&mut BundleProof)| receipt_field(&wrong(change)).to_owned();
    assert_eq!(field(&|proof| proof.receipt.transaction.0.0[0] ^= 1), "transaction");
    assert_eq!(field(&|proof| proof.receipt.gas_used += 1), "gas");
    let verdict = |change: &dyn Fn(&mut Verdict)| field(&|proof| change(&mut proof.receipt.verdict));
    assert_eq!(verdict(&|verdict| *verdict = Verdict::Refused { code: 1, reason: Text::default() }), "verdict");
    let shorter = |verdict: &mut Verdict| match verdict {
        Verdict::Succeeded { operations, .. } => drop(operations.pop()),
        verdict => panic!("{verdict:?}"),
    };
    assert_eq!(verdict(&shorter), "number of operations");
    let elsewhere = |verdict: &mut Verdict| match verdict {
        Verdict::Succeeded { session, .. } => session.0.0[0] ^= 1,
        verdict => panic!("{verdict:?}"),
    };
    assert_eq!(verdict(&elsewhere), "session");

    let error = wrong(&|proof| proof.new_root = proof.setting.old_root);
    assert!(matches!(error, BundleProofError::Root { found, .. } if found == good.setting.old_root), "{error}");
    // Whoever knows other functions runs something else, and says so.
    let error = good.verify::<Blake3>(&keelstone_execution::Registry::new()).unwrap_err();
    assert_eq!(refused(error), 13);
}

/// spec: HISTORY-9. A proof that a bundle fails says so, and a session that lacks a capability is refused.
#[test]
fn a_failure_is_proven_like_a_success() {
    let chain = lived();
    let failing = proof(&chain, signed(2, 1, vec![pay("bob", 1), pay("bob", 1 << 60)]));
    failing.verify::<Blake3>(&standard()).unwrap();
    let Verdict::Failed(failure) = &failing.receipt.verdict else { panic!("{:?}", failing.receipt) };
    assert_eq!((failure.operation, failure.code), (1, FailureKind::Denied(String::new()).code()));
    let patch = op(&contracts::Patch { entries: Default::default() });
    let transaction = unsigned(2, 1, vec![patch]);
    let (setting, state, _) = asked(&chain, &transaction);
    let error = foresee(&standard(), state, &setting, &transaction).unwrap_err();
    let ForesightError::Refused(Refusal::Session(SessionError::Lacks { capability, .. })) = error else {
        panic!("{error}");
    };
    assert_eq!(capability, Capability::new("contracts.patch"));
    assert_eq!(contracts::Patch::hash(), transaction.bundle.operations()[0].function);
}

/// A state of which something cannot be read.
struct Torn<R>(R, &'static str);

impl<R: Read> Read for Torn<R> {
    fn get(&self, namespace: &Namespace, key: &[u8]) -> Result<Option<Value>, ReadError> {
        match namespace.as_str() == self.1 {
            true => Err(ReadError::damaged("a page".to_owned())),
            false => self.0.get(namespace, key),
        }
    }
    fn scan<'a>(&'a self, namespace: &Namespace, range: KeyRange) -> Scan<'a> {
        self.0.scan(namespace, range)
    }
}

/// spec: HISTORY-9. Where the state cannot be read there is no verdict about the bundle, before it runs or in it.
#[test]
fn a_state_that_cannot_be_read_is_no_verdict() {
    let chain = lived();
    let transaction = unsigned(2, 1, vec![pay("bob", 5)]);
    let (setting, _, _) = asked(&chain, &transaction);
    for part in ["chain", "nonces", "contracts"] {
        let found = foresee(&standard(), Torn(chain.view(), part), &setting, &transaction);
        assert!(matches!(found, Err(ForesightError::Halt(_))), "{part}: {found:?}");
    }
    foresee(&standard(), Torn(chain.view(), "memes"), &setting, &transaction).unwrap();
}

/// spec: HISTORY-8. No witness is larger than a proof may hold: neither one that is made nor one that is given.
#[test]
fn a_witness_beyond_the_limit_is_neither_made_nor_taken() {
    const ENTRIES: usize = 9;
    let mut genesis = Genesis::new(chain_id());
    genesis.grants.insert(key(1).public(), ["contracts.patch".into()].into());
    (genesis.limits.bundle_gas_max, genesis.limits.block_gas_max) = (4_000_000_000, 16_000_000_000);
    let long = "x".repeat(8_000_000);
    let entries: Vec<String> = (0..ENTRIES).map(|n| format!(r#"{{"key":"long.{n}","value":"{long}"}}"#)).collect();
    genesis.import_xian(format!("[{}]", entries.join(",")).as_bytes()).unwrap();
    let chain = chain_of(&genesis);
    let removing = |count: usize| {
        let entry = |n| contracts::PatchEntry {
            key: Text::new(format!("long.{n}")).unwrap(),
            value: None,
            comment: Text::default(),
        };
        let entries = BoundedList::new((0..count).map(entry).collect()).unwrap();
        unsigned(1, 0, vec![op(&contracts::Patch { entries })])
    };
    assert!(chain.witness(&removing(ENTRIES - 1), Timestamp(9)).unwrap().proof.len() > 60_000_000);
    match chain.witness(&removing(ENTRIES), Timestamp(9)) {
        Err(LedgerError::WitnessTooLarge { found, limit }) => {
            assert!(found > limit && limit == WITNESS_BYTES_MAX, "{found} of {limit}");
        }
        other => panic!("{:?}", other.map(|made| made.proof.len())),
    }
    let longer = vec![0; WITNESS_BYTES_MAX + 1];
    assert!(matches!(witness::<Blake3>(&longer, chain.root()), Err(ProofError::TooLarge { .. })));
    assert!(Blob::<WITNESS_BYTES_MAX>::new(longer).is_err());
}

/// The next node of a proof (spec: TREE-7), of which the parent states these totals, with `more` bytes claimed of the first
/// opaque one; and its totals then.
fn inflated(input: &mut Reader<'_>, stated: [u64; 2], more: &mut u64) -> (Vec<u8>, [u64; 2]) {
    let mut out = vec![input.byte().unwrap()];
    let bytes = |input: &mut Reader<'_>, out: &mut Vec<u8>| {
        let len = input.varint().unwrap();
        put_varint(out, len);
        out.extend_from_slice(input.take(usize::try_from(len).unwrap()).unwrap());
        len
    };
    let put = |out: &mut Vec<u8>, numbers: [u64; 2]| numbers.into_iter().for_each(|number| put_varint(out, number));
    let two = |input: &mut Reader<'_>| [(); 2].map(|()| input.varint().unwrap());
    match out[0] {
        0 => {
            out.extend(input.array::<32>().unwrap());
            (out, [stated[0], stated[1] + std::mem::take(more)])
        }
        kind @ 1..=3 => {
            put_varint(&mut out, input.varint().unwrap());
            let (mut totals, mut children) = ([two(input), two(input)], Vec::new());
            if kind != 1 {
                totals[usize::from(kind == 3)][1] += std::mem::take(more);
                children.extend(input.array::<32>().unwrap());
            }
            for (at, totals) in totals.iter_mut().enumerate() {
                if kind != 2 + u8::from(at == 1) {
                    let node;
                    (node, *totals) = inflated(input, *totals, more);
                    children.extend(node);
                }
            }
            totals.into_iter().for_each(|totals| put(&mut out, totals));
            out.extend(children);
            (out, [totals[0][0] + totals[1][0], totals[0][1] + totals[1][1]])
        }
        4 => {
            let sum = bytes(input, &mut out) + bytes(input, &mut out);
            (out, [1, sum])
        }
        5 => {
            let (key, value) = (bytes(input, &mut out), input.varint().unwrap());
            put_varint(&mut out, value);
            out.extend(input.array::<32>().unwrap());
            (out, [1, key + value])
        }
        6 => {
            bytes(input, &mut out);
            let stated = two(input);
            let (node, totals) = inflated(input, stated, more);
            put(&mut out, totals);
            out.extend(node);
            (out, totals)
        }
        other => panic!("a node of kind {other}"),
    }
}

/// spec: HISTORY-9, TREE-5. A root that commits to as many bytes as can be counted is the root of no state: a bundle that adds one
/// more is not proven under it, and neither is its block.
#[test]
fn a_root_of_sums_that_no_state_has_proves_nothing() {
    let chain = lived();
    let good = proof(&chain, signed(2, 1, vec![pay("bob", 5)]));
    let forged = |witness: &[u8]| {
        let grown = |mut more: u64| {
            let mut input = Reader::new(&witness[1..]);
            let (node, totals) = inflated(&mut input, [0, 0], &mut more);
            input.finish().unwrap();
            ([&witness[..1], &node].concat(), totals[1])
        };
        let (same, bytes) = grown(0);
        assert_eq!(same, witness);
        let (forged, full) = grown(u64::MAX - bytes);
        assert_eq!(full, u64::MAX);
        // Whoever made the state would know its root.
        match keelstone_ledger::witness::<Blake3>(&forged, chain.root()) {
            Err(ProofError::WrongRoot { found, .. }) => (Blob::new(forged).unwrap(), found),
            other => panic!("{:?}", other.map(|_| ())),
        }
    };
    let (witness, old_root) = forged(&good.witness);
    let setting = Setting { old_root, ..good.setting };
    let made = BundleProof::make::<Blake3>(&standard(), setting, good.transaction.clone(), witness.clone());
    assert!(matches!(made, Err(BundleProofError::Overflow)), "{:?}", made.map(|_| ()));
    let claimed = BundleProof { setting, witness, ..good.clone() };
    assert!(matches!(claimed.verify::<Blake3>(&standard()), Err(BundleProofError::Overflow)));

    let made = block(&chain, &[good.transaction]);
    let good = chain.transition(made.block.height).unwrap();
    let (witness, old_root) = forged(&good.witness);
    // The record names the root before, so whoever forges that makes another.
    let state = keelstone_ledger::witness::<Blake3>(&witness, old_root).unwrap();
    let record = execute(&standard(), state, old_root, good.block.clone(), Refused::Receipt).unwrap().record;
    let claimed = TransitionProof { old_root, witness, record, ..good };
    let found = verify_transition::<Blake3>(&standard(), &claimed);
    assert!(matches!(found, Err(TransitionError::Overflow)), "{:?}", found.map(|_| ()));
}

const MANY: usize = 10_000;

/// spec: EXEC-1, EXEC-17, HISTORY-8. Ten thousand operations, foreseen from one witness, have the hashes that the chain finds:
/// every link, every diff, every result, and the root, as one atom and in batches over several blocks.
#[test]
fn ten_thousand_operations_are_foreseen_from_one_witness() {
    let mut genesis = genesis();
    genesis.limits.transaction_bytes_max = 8 << 20;
    (genesis.limits.bundle_gas_max, genesis.limits.block_gas_max) = (4_000_000_000, 16_000_000_000);
    let chain = chain_of(&genesis);
    let mood = |n: usize| op(&agents::SetMood { mood: Fixed::from_micros(i64::try_from(n).unwrap()) });
    let any = |n: usize| if n.is_multiple_of(10) { mood(n) } else { pay(&format!("account {}", n % 3_000), 1) };
    let operations: Vec<Operation> = (0..MANY).map(any).collect();

    let atom = unsigned(1, 0, operations.clone());
    let (setting, state, bytes) = asked(&chain, &atom);
    let foreseen = foresee(&standard(), state.clone(), &setting, &atom).unwrap();
    assert_eq!(outcomes(&foreseen).len(), MANY);
    let new_root = state.apply(&foreseen.changes.to_diff()).unwrap();
    let proof = BundleProof::make::<Blake3>(&standard(), setting, atom.clone().sign(&key(1)), bytes).unwrap();
    assert_eq!((&proof.receipt, proof.new_root), (&foreseen.receipt, new_root));
    proof.verify::<Blake3>(&standard()).unwrap();
    assert_eq!(chain.store().prepare(foreseen.changes.to_diff()).unwrap().root(), new_root);

    // In batches, on a chain that stands where the other stood, and whose blocks take some thousands.
    genesis.limits.bundle_gas_max = 100_000_000;
    genesis.limits.continuation_gas_max = 400_000_000;
    let batched = chain_of(&genesis);
    let bundle = Bundle::new(Mode::Async(Batching::until(Height(50))), operations).unwrap();
    let batches = Transaction { bundle, ..atom.clone() };
    let (setting, state, _) = asked(&batched, &batches);
    let as_one = foresee(&standard(), state, &setting, &batches).unwrap();
    let (mut links, mut blocks) = (Vec::new(), 0);
    block(&batched, &[batches.sign(&key(1))]);
    while batched.has_due_work().unwrap() {
        let made = batched.produce(Timestamp(1), proposer()).unwrap();
        links.extend(
            made.continuations.iter().flat_map(|batch| batch.operations()).map(|done| (done.state_hash, done.diff)),
        );
        blocks += 1;
    }
    let expected: Vec<_> = outcomes(&as_one).iter().map(|done| (done.state_hash, done.diff)).collect();
    assert!(links == expected && blocks > 1, "{} links in {blocks} blocks", links.len());

    let made = block(&chain, &[atom.sign(&key(1))]);
    assert_eq!(made.receipts[0], foreseen.receipt);
    let links: Vec<_> = outcomes(&foreseen).iter().map(|done| (done.state_hash, done.diff)).collect();
    assert_eq!(links, expected, "a session that begins alike has the same links, however the bundle is cut");
}
