//! Replay, transitions checked without a store, and what crashes and damage do to history.

use crate::tools::*;
use keelstone_codec::{BoundedSet, Decode, Encode, Fixed, Hash, Height, Key, Root, StateHash, Text, Timestamp};
use keelstone_execution::{Capability, Operation};
use keelstone_ledger::modules::{agents, contracts, memes, sessions, social, standard};
use keelstone_ledger::{
    Genesis, Ledger, LedgerError, PoolLimits, ReplayError, TransitionError, TransitionProof, verify_transition,
};
use keelstone_store::files::{Fault, FaultyFiles, MemoryFiles};
use keelstone_store::kv::{Batch, Kv, MemoryKv, Range, Record};
use keelstone_store::{Store, StoreError};
use keelstone_tree::Blake3;
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// One thing somebody may try. Many of these fail on most chains, which is as it should be.
fn operation() -> impl Strategy<Value = Operation> {
    let fixed = (-1_200_000i64..1_200_000).prop_map(Fixed::from_micros);
    let person = (1u8..6).prop_map(|number| key(number).public());
    let agent = (1u8..6).prop_map(who);
    prop_oneof![
        4 => "[a-z]{0,6}".prop_map(|name| register(&name)),
        1 => "[a-z]{0,6}".prop_map(|name| {
            op(&agents::Update { name: Some(Text::new(name).unwrap()), personality: None, traits: None })
        }),
        1 => (0u8..3).prop_map(|status| {
            let status = agents::Status::from_bytes(&[status]).unwrap();
            op(&agents::SetStatus { status })
        }),
        3 => "[a-z]{0,9}".prop_map(|text| op(&memes::Post { text: Text::new(text).unwrap() })),
        3 => (0u64..6, fixed.clone()).prop_map(|(meme, reaction)| {
            op(&memes::React { meme: memes::MemeId(meme), reaction })
        }),
        2 => "[a-z]{0,6}".prop_map(|name| {
            propose(&name, &[])
        }),
        2 => (0u64..4).prop_map(|id| op(&social::JoinAlliance { alliance: social::AllianceId(id) })),
        2 => (0u64..4).prop_map(|id| op(&social::LeaveAlliance { alliance: social::AllianceId(id) })),
        2 => (agent, fixed.clone(), fixed).prop_map(|(other, trust, sentiment)| {
            op(&social::SetRelationship { other, relationship: social::Relationship { trust, sentiment } })
        }),
        1 => person.prop_map(|owner| {
            let capabilities = BoundedSet::new([Capability::new("memes.post")]).unwrap();
            let (name, expires, init) = (Text::default(), None, StateHash::default());
            op(&sessions::Delegate { owner, name, capabilities, expires, init })
        }),
        1 => (1u8..6, "[0-9]{1,3}").prop_map(|(to, amount)| {
            let to = Text::new(key(to).public().to_string()).unwrap();
            op(&contracts::Transfer { to, amount: Text::new(amount).unwrap() })
        }),
    ]
}

type Story = Vec<Vec<(u8, Vec<Operation>)>>;

fn story() -> impl Strategy<Value = Story> {
    let transaction = (1u8..6, prop::collection::vec(operation(), 1..4));
    prop::collection::vec(prop::collection::vec(transaction, 0..5), 1..7)
}

/// A chain with a little money on it.
fn genesis() -> Genesis {
    let mut genesis = Genesis::new(chain_id());
    let balances: Vec<String> = (1u8..4)
        .map(|number| format!(r#"{{"key":"currency.balances:{}","value":{}}}"#, key(number).public(), 500))
        .collect();
    genesis.import_xian(format!("[{}]", balances.join(",")).as_bytes()).unwrap();
    genesis
}

fn tell(chain: &Chain, story: &Story) {
    for transactions in story {
        for (person, operations) in transactions {
            let nonce = chain.next_nonce(&key(*person).public()).unwrap().unwrap();
            chain.submit(&signed(*person, nonce, operations.clone()).to_bytes()).unwrap();
        }
        chain.produce(Timestamp(chain.height().0 * 1_000), proposer()).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: scale(24), ..ProptestConfig::default() })]

    /// spec: HISTORY-4, HISTORY-5, HISTORY-6. Whatever happened, a replay of any part comes to the same, every step
    /// verifies from its witness alone, and a second chain told the same story has the same roots.
    #[test]
    fn replay_and_witnesses_agree_with_the_chain(story in story(), cut in 0usize..7) {
        let chain = chain_of(&genesis());
        tell(&chain, &story);
        let mut roots = Vec::new();
        let whole = chain.replay(Height(1)..=chain.height(), &mut |height, root| roots.push((height, root))).unwrap();
        prop_assert_eq!(whole.root, chain.root());
        for (height, root) in &roots {
            prop_assert_eq!(chain.root_at(*height).unwrap(), Some(*root));
            let claim = chain.transition(*height).unwrap();
            let executed = verify_transition::<Blake3>(chain.registry(), &claim).unwrap();
            prop_assert_eq!(executed.receipts, chain.receipts(*height).unwrap());
        }
        let from = Height(1 + (cut % story.len()) as u64);
        prop_assert_eq!(chain.replay(from..=chain.height(), &mut |_, _| ()).unwrap().root, chain.root());
        prop_assert_eq!(chain.replay_from_genesis(&genesis(), chain.height(), &mut |_, _| ()).unwrap(), whole);
        let twin = chain_of(&genesis());
        tell(&twin, &story);
        prop_assert_eq!(twin.root(), chain.root());
    }
}

/// How many cases, times what the environment asks for.
fn scale(cases: u32) -> u32 {
    cases * u32::try_from(golden::count("KEELSTONE_TEST_SCALE", 1)).unwrap()
}

fn claim() -> (Chain, TransitionProof) {
    let chain = chain_of(&genesis());
    block(&chain, &[signed(1, 0, vec![register("ada")]), signed(2, 0, vec![register("bob")])]);
    let post = op(&memes::Post { text: Text::new("hello").unwrap() });
    let to = Text::new(key(2).public().to_string()).unwrap();
    let pay = op(&contracts::Transfer { to, amount: Text::new("0.5").unwrap() });
    block(&chain, &[signed(1, 1, vec![post.clone(), pay]), signed(2, 1, vec![post])]);
    let claim = chain.transition(Height(2)).unwrap();
    (chain, claim)
}

/// spec: HISTORY-6. The verifier names the first thing that is wrong, whichever it is.
#[test]
fn tampered_transition_is_refused_by_name() {
    let (_, claim) = claim();
    let registry = standard();
    let verdict = |claim: &TransitionProof| verify_transition::<Blake3>(&registry, claim).map(|_| ());
    assert!(verdict(&claim).is_ok());
    let changed = |change: &dyn Fn(&mut TransitionProof)| {
        let mut claim = claim.clone();
        change(&mut claim);
        verdict(&claim).expect_err("it was changed")
    };
    let wrong = Root(Hash([7; 32]));
    assert!(matches!(
        changed(&|c| c.block.transactions[1].signature.0[3] ^= 1),
        TransitionError::Signature { index: 1, .. }
    ));
    assert!(matches!(
        changed(&|c| c.block.transactions[0].transaction.nonce = 9),
        TransitionError::Signature { index: 0, .. }
    ));
    assert!(matches!(changed(&|c| c.old_root = wrong), TransitionError::Witness(_)));
    assert!(matches!(changed(&|c| c.new_root = wrong), TransitionError::Root { .. }));
    assert!(matches!(changed(&|c| c.record = None), TransitionError::Record { field: "existence", .. }));
    assert!(matches!(
        changed(&|c| c.record.as_mut().unwrap().receipts_root = Hash::ZERO),
        TransitionError::Record { field: "receipts root", .. }
    ));
    assert!(matches!(changed(&|c| c.block.time = Timestamp(u64::MAX)), TransitionError::Record { field: "time", .. }));
    assert!(matches!(changed(&|c| c.block.height = Height(1)), TransitionError::Block(_)));
    assert!(matches!(
        changed(&|c| c.block.time = Timestamp(0)),
        TransitionError::Record { .. } | TransitionError::Block(_)
    ));
    assert!(matches!(
        changed(&|c| drop(c.block.transactions.pop())),
        TransitionError::Record { field: "number of transactions", .. }
    ));
    // Out of order the second's nonce is good and so is the first's: only the record tells.
    assert!(matches!(
        changed(&|c| c.block.transactions.reverse()),
        TransitionError::Record { field: "transactions root", .. }
    ));
    // A replay within the block is a transaction that would not have been run.
    assert!(matches!(
        changed(&|c| c.block.transactions.push(c.block.transactions[0].clone())),
        TransitionError::Refused { index: 2, .. }
    ));
}

/// Every change of a byte of a valid claim is refused: it does not decode, or the verifier says what is wrong.
#[test]
fn every_changed_byte_of_a_transition_is_refused() {
    let (_, claim) = claim();
    let registry = standard();
    let bytes = claim.to_bytes();
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        if let Ok(claim) = TransitionProof::from_bytes(&changed) {
            assert!(verify_transition::<Blake3>(&registry, &claim).is_err(), "byte {at} of {}", bytes.len());
        }
    }
}

#[test]
fn transition_without_a_part_of_its_witness_is_incomplete() {
    let (chain, mut claim) = claim();
    let queries =
        [keelstone_tree::Query::Key(keelstone_codec::Namespace::new("chain").unwrap(), Key::new(*b"facts").unwrap())];
    let proof = chain.view_at(Height(1)).unwrap().prove(&queries).unwrap();
    claim.witness = keelstone_codec::Blob::new(proof.encode()).unwrap();
    let found = verify_transition::<Blake3>(chain.registry(), &claim).expect_err("the witness lacks most of it");
    assert!(matches!(found, TransitionError::Incomplete { .. }), "{found}");
}

#[test]
fn replay_refuses_ranges_that_are_none() {
    let (chain, _) = claim();
    for (from, to) in [(0, 2), (1, 3), (2, 1), (u64::MAX, u64::MAX)] {
        let found = chain.replay(Height(from)..=Height(to), &mut |_, _| ());
        assert!(matches!(found, Err(ReplayError::Range { .. })), "{from} to {to}: {found:?}");
    }
}

#[test]
fn replay_from_genesis_needs_the_chains_own_and_a_height_it_has() {
    let (chain, _) = claim();
    let replay = |genesis: &Genesis, to| chain.replay_from_genesis(genesis, Height(to), &mut |_, _| ());
    assert_eq!(replay(&genesis(), 2).unwrap().root, chain.root());
    let none = replay(&genesis(), 0).unwrap();
    assert_eq!((none.blocks, none.compared), (0, 1));
    assert!(matches!(replay(&genesis(), 3), Err(ReplayError::Range { .. })));
    let other = Genesis { time: Timestamp(genesis().time.0 + 1), ..genesis() };
    assert!(matches!(replay(&other, 2), Err(ReplayError::Base { height: Height(0), .. })));
}

fn reopened(files: &MemoryFiles, kv: &Arc<MemoryKv>) -> Chain {
    let store = Store::open(Arc::new(files.clone()), options()).unwrap();
    Ledger::open(store, kv.clone(), standard(), PoolLimits::default()).unwrap()
}

/// spec: HISTORY-1. Whatever a crash leaves in the database above the store's height never happened.
#[test]
fn database_ahead_of_the_store_is_cut_back_at_open() {
    let (files, kv) = (MemoryFiles::new(), Arc::new(MemoryKv::new()));
    let store = Store::create(Arc::new(files.clone()), options()).unwrap();
    let chain = Ledger::create(store, kv.clone(), standard(), &genesis(), PoolLimits::default()).unwrap();
    block(&chain, &[signed(1, 0, vec![register("ada")])]);
    let (root, before) = (chain.root(), everything(&kv));
    let lost = signed(2, 0, vec![register("bob")]);
    block(&chain, std::slice::from_ref(&lost));
    let after = everything(&kv);
    // A rollback that crashed before it came to the database.
    chain.store().rollback(Height(1)).unwrap();
    drop(chain);
    assert_eq!(everything(&kv), after);
    let chain = reopened(&files, &kv);
    assert_eq!((chain.height(), chain.root()), (Height(1), root));
    assert_eq!(everything(&kv), before, "the database is as it was at height 1");
    assert!(chain.transaction(&lost.id()).unwrap().is_none());
    assert_eq!(block(&chain, &[lost]).block.height, Height(2));
}

/// A database that loses its power: of its writes only so many are done.
#[derive(Debug, Default)]
struct Fading {
    kv: MemoryKv,
    writes: AtomicU64,
    last: AtomicU64,
}

impl Fading {
    fn fade_after(&self, writes: u64) {
        self.last.store(self.writes.load(Ordering::Relaxed) + writes, Ordering::Relaxed);
    }
}

impl Kv for Fading {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.kv.get(key)
    }

    fn range(&self, range: &Range) -> Result<Vec<Record>, StoreError> {
        self.kv.range(range)
    }

    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        if self.writes.fetch_add(1, Ordering::Relaxed) >= self.last.load(Ordering::Relaxed) {
            let (file, source) = ("the database".to_owned(), Arc::new(std::io::Error::other("the power is off")));
            return Err(StoreError::Io { doing: "write", file, source });
        }
        self.kv.write(batch)
    }
}

/// spec: LEDGER-7. What another engine certified waits on when the block it was to be written with could not be.
#[test]
fn a_certificate_is_not_lost_with_the_block_it_waits_for() {
    let kv = Arc::new(Fading::default());
    kv.fade_after(u64::MAX / 2);
    let chain = Ledger::create(store(), kv.clone(), standard(), &genesis(), PoolLimits::default()).unwrap();
    block(&chain, &[signed(1, 0, vec![register("ada")])]);
    chain.keep_certificate(Height(1), vec![7]);
    kv.fade_after(0);
    chain.submit(&signed(2, 0, vec![register("bob")]).to_bytes()).unwrap();
    assert!(chain.produce(Timestamp(2_000), proposer()).is_err(), "the database is off");
    kv.fade_after(u64::MAX / 2);
    assert_eq!(chain.certificate(Height(1)).unwrap(), Some(vec![7]));
    chain.write_certificates().unwrap();
    let at = [b"c".as_slice(), 1u64.to_be_bytes().as_slice()].concat();
    assert_eq!(kv.get(&at).unwrap(), Some(vec![7]));
}

/// The blocks of the next test, by height. Two have no transactions and leave nothing in state.
fn told_blocks() -> Vec<Vec<keelstone_ledger::SignedTransaction>> {
    let name = |person: u8| signed(person, 0, vec![register(&format!("agent {person}"))]);
    vec![vec![name(1)], vec![], vec![name(2), name(3)], vec![], vec![name(4)], vec![name(5)]]
}

/// Makes the blocks that are missing; the number of those that were acknowledged.
fn tell_on(chain: &Chain, blocks: &[Vec<keelstone_ledger::SignedTransaction>]) -> usize {
    let mut told = usize::try_from(chain.height().0).unwrap();
    while let Some(transactions) = blocks.get(told) {
        for transaction in transactions {
            let _ = chain.submit(&transaction.to_bytes());
        }
        if chain.produce(Timestamp((told as u64 + 1) * 1_000), proposer()).is_err() {
            break;
        }
        told += 1;
    }
    told
}

/// spec: HISTORY-1, STORE-2, STORE-3. Body and changes of a block go to two places at once, and the power fails: at every
/// change of the store's disk, with what was not synced there in part or whole, and with the body written or not. No
/// block that was acknowledged is missing, none is there by half, and the chain goes on to the same root.
#[test]
fn power_cut_between_body_and_changes_leaves_both_or_neither() {
    let blocks = told_blocks();
    let create = |files: &FaultyFiles, kv: &Arc<Fading>| -> Chain {
        kv.fade_after(u64::MAX / 2);
        let store = Store::create(Arc::new(files.clone()), options()).unwrap();
        Ledger::create(store, kv.clone(), standard(), &genesis(), PoolLimits::default()).unwrap()
    };
    let calm = FaultyFiles::new(0);
    let chain = create(&calm, &Arc::default());
    let first = calm.changes();
    assert_eq!(tell_on(&chain, &blocks), blocks.len());
    let (root, changes) = (chain.root(), calm.changes() - first);

    let (mut taken_back, mut bodies_dropped) = (0, 0);
    for (cut, bodies, seed) in (0..=changes)
        .flat_map(|cut| (0..=blocks.len() as u64).flat_map(move |bodies| (0..3).map(move |s| (cut, bodies, s))))
    {
        let (files, kv) = (FaultyFiles::new(seed), Arc::new(Fading::default()));
        let chain = create(&files, &kv);
        files.fail_at(files.changes() + cut, Fault::PowerCut);
        kv.fade_after(bodies);
        let acknowledged = tell_on(&chain, &blocks);
        let written = chain_bodies(&kv);
        drop(chain);

        kv.fade_after(u64::MAX / 2);
        let store = Store::open(Arc::new(files.after_power_cut(seed)), options()).unwrap();
        let found = store.height().unwrap();
        let chain: Chain = Ledger::open(store, kv.clone(), standard(), PoolLimits::default()).unwrap();
        let at = format!("cut {cut}, {bodies} bodies, seed {seed}: {acknowledged} acknowledged, found {found}");
        let height = usize::try_from(chain.height().0).unwrap();
        assert!(height == acknowledged || height == acknowledged + 1, "{at}, height {height}");
        match chain.taken_back() {
            Some(taken) => assert_eq!((taken, height), (found, acknowledged), "{at}"),
            None => assert_eq!(chain.height(), found, "{at}"),
        }
        taken_back += u32::from(chain.taken_back().is_some());
        bodies_dropped += u32::from(written > height);
        assert_eq!(chain_bodies(&kv), height, "{at}");
        for (height, transactions) in (1u64..).zip(&blocks[..height]) {
            assert_eq!(chain.block(Height(height)).unwrap().transactions, *transactions, "{at}");
            assert_eq!(chain.receipts(Height(height)).unwrap().len(), transactions.len(), "{at}");
        }
        assert_eq!(tell_on(&chain, &blocks), blocks.len(), "{at}");
        assert_eq!(chain.root(), root, "{at}");
    }
    assert!(taken_back > 10 && bodies_dropped > 10, "{taken_back} blocks taken back, {bodies_dropped} bodies dropped");
}

fn chain_bodies(kv: &Fading) -> usize {
    kv.range(&Range::prefix(b"b", usize::MAX)).unwrap().len()
}

/// spec: HISTORY-1. A body that is lost later takes no block with it: the store says that the block was acknowledged.
#[test]
fn lost_body_of_an_acknowledged_block_takes_nothing_back() {
    for closed in [false, true] {
        let (files, kv) = (MemoryFiles::new(), Arc::new(MemoryKv::new()));
        let store = Store::create(Arc::new(files.clone()), options()).unwrap();
        let chain = Ledger::create(store, kv.clone(), standard(), &genesis(), PoolLimits::default()).unwrap();
        block(&chain, &[signed(1, 0, vec![register("ada")])]);
        let root = block(&chain, &[signed(2, 0, vec![register("bob")])]).root;
        if closed {
            chain.store().flush().unwrap();
        }
        drop(chain);
        let body = [b"b".as_slice(), &2u64.to_be_bytes()].concat();
        kv.write(Batch::new().delete(body).clone()).unwrap();
        let chain = reopened(&files, &kv);
        assert_eq!((chain.height(), chain.root(), chain.taken_back()), (Height(2), root, None));
        assert!(matches!(chain.block(Height(2)), Err(LedgerError::NoBlock { .. })));
    }
}

fn everything(kv: &MemoryKv) -> Vec<(Vec<u8>, Vec<u8>)> {
    kv.range(&Range::prefix(&[], usize::MAX)).unwrap()
}

/// spec: HISTORY-2. Nothing the database says is believed: a changed body or receipt is damage, and so is an index
/// entry that leads elsewhere.
#[test]
fn changed_bodies_and_receipts_are_damage() {
    let kv = Arc::new(MemoryKv::new());
    let chain = Ledger::create(store(), kv.clone(), standard(), &genesis(), PoolLimits::default()).unwrap();
    let first = signed(1, 0, vec![register("ada")]);
    let second = signed(2, 0, vec![register("bob")]);
    block(&chain, std::slice::from_ref(&first));
    block(&chain, std::slice::from_ref(&second));
    let records = everything(&kv);
    let find = |kind: u8, height: u64| {
        let place = [&[kind], height.to_be_bytes().as_slice()].concat();
        records.iter().find(|(key, _)| *key == place).cloned().unwrap()
    };
    for (kind, height) in [(b'b', 1), (b'r', 1)] {
        let (place, value) = find(kind, height);
        for at in 0..value.len() {
            let mut changed = value.clone();
            changed[at] ^= 0x10;
            kv.write(Batch::new().put(place.clone(), changed).clone()).unwrap();
            let found = match kind {
                b'b' => chain.block(Height(height)).map(|_| ()),
                _ => chain.receipts(Height(height)).map(|_| ()),
            };
            assert!(matches!(found, Err(LedgerError::Damaged { .. })), "byte {at} of {}", kind as char);
        }
        // Another height's, whole and well formed.
        let (_, other) = find(kind, 2);
        kv.write(Batch::new().put(place.clone(), other).clone()).unwrap();
        assert!(chain.transaction(&first.id()).is_err());
        kv.write(Batch::new().put(place.clone(), value.clone()).clone()).unwrap();
        assert!(chain.transaction(&first.id()).unwrap().is_some());
        kv.write(Batch::new().delete(place.clone()).clone()).unwrap();
        assert!(matches!(chain.transaction(&first.id()), Err(LedgerError::NoBlock { .. })));
        kv.write(Batch::new().put(place, value).clone()).unwrap();
    }
    let index = [b"t".as_slice(), first.id().0.as_bytes()].concat();
    kv.write(Batch::new().put(index, (Height(2), 0u32).to_bytes()).clone()).unwrap();
    assert!(matches!(chain.transaction(&first.id()), Err(LedgerError::Damaged { .. })));
}

/// On a real disk, with the real database: what was acknowledged is there when the chain is opened again.
#[test]
fn chain_on_a_disk_is_found_again() {
    let directory = tempfile::tempdir().unwrap();
    let open = |create: bool| {
        let files = Arc::new(keelstone_store::files::Directory::new(directory.path().join("state")).unwrap());
        let kv = Arc::new(keelstone_store::kv::RedbKv::open(&directory.path().join("history.redb")).unwrap());
        match create {
            true => {
                let store = Store::create(files, options()).unwrap();
                Ledger::create(store, kv, standard(), &genesis(), PoolLimits::default()).unwrap()
            }
            false => {
                let store = Store::open(files, options()).unwrap();
                Ledger::open(store, kv, standard(), PoolLimits::default()).unwrap()
            }
        }
    };
    let chain: Chain = open(true);
    let made = block(&chain, &[signed(1, 0, vec![register("ada")])]);
    drop(chain);
    let chain = open(false);
    assert_eq!((chain.root(), chain.time()), (made.root, made.block.time));
    assert_eq!(chain.receipts(Height(1)).unwrap(), made.receipts);
    block(&chain, &[signed(2, 0, vec![register("bob")])]);
    assert_eq!(chain.replay(Height(1)..=Height(2), &mut |_, _| ()).unwrap().root, chain.root());
}
