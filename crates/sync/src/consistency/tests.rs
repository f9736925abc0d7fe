//! What a comparison says, what follows from it, and where two states part.

use super::*;
use crate::peers::{PeerId, Server, ServerLimits, Status, Tick, Version, Versions, Why};
use crate::snapshot::SnapshotParams;
use crate::testing::{State, name, state, states};
use keelstone_codec::{Blob, ChainId, Decode, Encode, Hash, Height, Key, Namespace, Root, Value};
use keelstone_tree::{Blake3, Grown, HashKind, Hasher, KeyRange, Read, ReadError, Scan};
use proptest::prelude::*;
use serde_json::json;
use std::collections::BTreeMap;

/// Versions in memory, by height.
struct Memory(BTreeMap<Height, &'static Grown>);

impl Versions for Memory {
    type View = &'static Grown;

    fn kept(&self) -> Option<(Version, Height)> {
        let (newest, view) = self.0.last_key_value()?;
        Some((Version { height: *newest, root: view.root() }, *self.0.first_key_value()?.0))
    }
    fn diffs_from(&self) -> Height {
        Height(u64::MAX)
    }
    fn view(&self, height: Height) -> Result<Option<(Root, Self::View)>, ReadError> {
        Ok(self.0.get(&height).map(|view| (view.root(), *view)))
    }
}

/// A peer with real trees behind the real server. It counts what it is asked.
struct Honest {
    server: Server<Memory>,
    asked: u32,
}

impl Honest {
    fn with(versions: impl IntoIterator<Item = (u64, &'static Grown)>) -> Self {
        let chain_id = ChainId::new("test-1").unwrap();
        let params = SnapshotParams { chain_id, hasher: HashKind::Blake3, chunk_weight_max: 400 };
        let versions = Memory(versions.into_iter().map(|(height, view)| (Height(height), view)).collect());
        let limits =
            ServerLimits { peer_bytes_per_second: 1 << 40, bytes_per_second: 1 << 40, ..ServerLimits::default() };
        Self { server: Server::new(versions, params, limits, Tick(0)), asked: 0 }
    }
}

impl Ask for Honest {
    fn ask(&mut self, request: &Request) -> Result<Response, Silence> {
        self.asked += 1;
        Ok(self.server.answer(Tick(0), PeerId(1), request))
    }
}

/// A peer that answers as it is told.
struct Says<F>(F);

impl<F: FnMut(&Request) -> Result<Response, Silence>> Ask for Says<F> {
    fn ask(&mut self, request: &Request) -> Result<Response, Silence> {
        (self.0)(request)
    }
}

fn grown(state: &State) -> &'static Grown {
    Box::leak(Box::new(Grown::new::<Blake3>(state)))
}

fn at(height: u64, view: &Grown) -> Version {
    Version { height: Height(height), root: view.root() }
}

fn key(bytes: &[u8]) -> Key {
    Key::new(bytes).unwrap()
}

fn value(bytes: &[u8]) -> Value {
    Value::new(bytes.to_vec()).unwrap()
}

/// The first difference, found by looking at everything.
fn naive(ours: &State, theirs: &State) -> Option<Divergence> {
    let flat = |state: &State| -> BTreeMap<(Namespace, Key), Hash> {
        let entries = state.iter().flat_map(|(name, entries)| {
            entries.iter().map(move |(key, value)| ((name.clone(), key.clone()), Blake3::hash(value)))
        });
        entries.collect()
    };
    let (ours, theirs) = (flat(ours), flat(theirs));
    let keys: std::collections::BTreeSet<_> = ours.keys().chain(theirs.keys()).cloned().collect();
    let first = keys.into_iter().find(|key| ours.get(key) != theirs.get(key))?;
    let (ours, theirs) = (ours.get(&first).copied(), theirs.get(&first).copied());
    Some(Divergence { namespace: first.0, key: first.1, ours, theirs })
}

fn search(ours: &State, theirs: &State) -> Result<(Divergence, u32), DivergeError> {
    let (ours, theirs) = (grown(ours), grown(theirs));
    let mut peer = Honest::with([(5, theirs)]);
    let found = first_difference::<Blake3, _>(ours, at(5, theirs), &mut peer);
    if let Ok((_, asked)) = &found {
        assert_eq!(*asked, peer.asked, "every question is counted");
    }
    found
}

proptest! {
    /// spec: CHECK-5. Whatever two states look like, names and keys that are prefixes of others included, the key that
    /// is found is the one a look at everything finds.
    #[test]
    fn the_first_difference_of_any_two_states_is_found(ours in states(), theirs in states()) {
        match (naive(&ours, &theirs), search(&ours, &theirs)) {
            (None, Err(DivergeError::Same)) => {}
            (Some(expected), Ok((found, _))) => prop_assert_eq!(found, expected),
            (expected, found) => prop_assert!(false, "expected {expected:?}, found {found:?}"),
        }
    }

    /// spec: CHECK-5. The same for states that are nearly the same, where most of the trees have equal parts.
    #[test]
    fn the_first_of_few_differences_is_found(
        ours in states(), at in any::<prop::sample::Index>(), more in prop::collection::vec((any::<prop::sample::Index>(), 0u8..3), 0..3),
    ) {
        let entries: Vec<(Namespace, Key)> =
            ours.iter().flat_map(|(name, entries)| entries.keys().map(move |key| (name.clone(), key.clone()))).collect();
        prop_assume!(!entries.is_empty());
        let mut theirs = ours.clone();
        for (index, kind) in more.into_iter().chain([(at, 0)]) {
            let (name, key) = &entries[index.index(entries.len())];
            let space = theirs.entry(name.clone()).or_default();
            match kind {
                0 => drop(space.insert(key.clone(), value(b"another value"))),
                1 => drop(space.remove(key)),
                _ => {
                    let longer = Key::new([key.as_slice(), b"x"].concat()).unwrap();
                    drop(space.insert(longer, value(b"one more")));
                }
            }
        }
        theirs.retain(|_, entries| !entries.is_empty());
        match (naive(&ours, &theirs), search(&ours, &theirs)) {
            (None, Err(DivergeError::Same)) => {}
            (Some(expected), Ok((found, _))) => prop_assert_eq!(found, expected),
            (expected, found) => prop_assert!(false, "expected {expected:?}, found {found:?}"),
        }
    }
}

/// spec: CHECK-5. One key among 4,000 in many namespaces, changed, missing here and missing there, takes a number of
/// questions that grows with the logarithm.
#[test]
fn one_key_among_many_takes_few_questions() {
    let ours = state(4_000);
    let mut most = 0;
    for seed in 0u64..9 {
        let hash = HashKind::Blake3.hash(&seed.to_le_bytes());
        let spaces: Vec<&Namespace> = ours.keys().collect();
        let space = spaces[usize::from(hash.0[0]) % spaces.len()].clone();
        let keys: Vec<&Key> = ours[&space].keys().collect();
        let chosen = keys[usize::from(u16::from_le_bytes([hash.0[1], hash.0[2]])) % keys.len()].clone();
        let mut theirs = ours.clone();
        let entries = theirs.get_mut(&space).unwrap();
        match seed % 3 {
            0 => drop(entries.insert(chosen.clone(), value(b"changed"))),
            1 => drop(entries.remove(&chosen)),
            _ => drop(entries.insert(Key::new([chosen.as_slice(), b"-"].concat()).unwrap(), value(b"more"))),
        }
        theirs.retain(|_, entries| !entries.is_empty());
        for (ours, theirs) in [(&ours, &theirs), (&theirs, &ours)] {
            let (found, asked) = search(ours, theirs).unwrap();
            assert_eq!(Some(found), naive(ours, theirs), "seed {seed}");
            most = most.max(asked);
        }
    }
    assert!(most <= 28, "{most} questions; log2 of 4,000 is below 12, and the names are found first");
}

/// spec: CHECK-5. A tree that is one long spine, the worst shape there is, is no reason to ask once for every turn of it.
#[test]
fn a_spine_of_keys_takes_no_question_a_turn() {
    let mut entries: BTreeMap<Key, Value> = BTreeMap::new();
    for length in 1..=255 {
        entries.insert(key(&vec![0xff; length]), value(b"v"));
    }
    for length in [1, 2, 128, 254, 255] {
        let ours = State::from([(name("n"), entries.clone())]);
        let mut theirs = ours.clone();
        drop(theirs.get_mut(&name("n")).unwrap().insert(key(&vec![0xff; length]), value(b"w")));
        let (found, asked) = search(&ours, &theirs).unwrap();
        assert_eq!((found.key.len(), found.ours.is_some()), (length, true));
        assert!(asked <= 4, "{asked} questions for the key of {length} bytes");
    }
}

/// spec: CHECK-6. Where two histories of 1,000 heights part, at whichever height, is found in as many questions as
/// there are halvings, and three more.
#[test]
fn the_first_height_of_a_thousand_is_found_by_halving() {
    let (same, others) = (grown(&state(3)), grown(&state(4)));
    let own = |parts: u64| move |height: Height| Ok(Some(if height.0 < parts { same.root() } else { others.root() }));
    for parts in [1, 2, 3, 499, 500, 501, 999, 1000] {
        let mut peer = Honest::with((1..=1000).map(|height| (height, same)));
        let (found, asked) = first_height((Height(1), Height(1000)), &mut own(parts), &mut peer).unwrap();
        assert_eq!((found.ours, found.theirs), (at(parts, others), same.root()));
        assert_eq!(found.last_same, (parts > 1).then(|| at(parts - 1, same)));
        assert_eq!(asked, peer.asked);
        assert!(asked <= 13, "{asked} questions for height {parts}");
    }
    let mut peer = Honest::with((1..=9).map(|height| (height, same)));
    let error = first_height((Height(1), Height(9)), &mut own(10), &mut peer).unwrap_err();
    assert!(matches!(error, DivergeError::Same), "{error}");
    let error = first_height((Height(10), Height(20)), &mut own(10), &mut peer).unwrap_err();
    assert!(matches!(error, DivergeError::NothingInCommon { .. }), "{error}");
}

/// spec: CHECK-5. Answers that lead nowhere end it, however many there would be.
#[test]
fn answers_that_lead_nowhere_end_a_search() {
    let (ours, theirs) = (grown(&state(400)), grown(&state(401)));
    let version = at(5, theirs);
    let ended = |answer: &mut dyn FnMut(&Request) -> Result<Response, Silence>| {
        let mut asked = 0;
        let mut peer = Says(|request: &Request| {
            asked += 1;
            assert!(asked <= QUESTIONS_MAX, "it asks for ever");
            answer(request)
        });
        first_difference::<Blake3, _>(ours, version, &mut peer).unwrap_err()
    };
    let entry = |bytes: Vec<u8>| Ok(Response::Entry(Blob::new(bytes).unwrap()));
    // All of it hidden behind the root's own hash: true, and of no use.
    let hidden = [vec![0, 0], version.root.0.0.to_vec()].concat();
    let error = ended(&mut |_| entry(hidden.clone()));
    assert!(matches!(&error, DivergeError::Misbehaved(what) if what.contains("leaves out")), "{error}");
    let error = ended(&mut |_| entry(Vec::new()));
    assert!(matches!(error, DivergeError::Misbehaved(_)), "{error}");
    let error = ended(&mut |_| Ok(Response::RootAt(version)));
    assert!(matches!(&error, DivergeError::Misbehaved(what) if what.contains("another kind")), "{error}");
    let error = ended(&mut |_| Ok(Response::Unavailable(Why::NotKept)));
    assert!(matches!(error, DivergeError::Unavailable(Why::NotKept)), "{error}");
    let error = ended(&mut |_| Ok(Response::Busy { retry_after_ms: 5 }));
    assert!(matches!(error, DivergeError::Busy { retry_after_ms: 5 }), "{error}");
    let error = ended(&mut |_| Err(Silence("gone".to_owned())));
    assert!(matches!(error, DivergeError::Silent(_)), "{error}");
    // A proof of the state here is none of the state there.
    let mut other = Honest::with([(5, ours)]);
    let own = at(5, ours);
    let error = ended(&mut |request| match request {
        Request::GetEntry { namespace, key, .. } => {
            other.ask(&Request::GetEntry { at: own, namespace: namespace.clone(), key: key.clone() })
        }
        request => other.ask(request),
    });
    assert!(matches!(&error, DivergeError::Misbehaved(what) if what.contains("leads to root")), "{error}");
}

/// spec: CHECK-6. A peer that says it keeps all heights there are is asked no more than an honest one; and what cannot be
/// read here is nobody else's fault.
#[test]
fn a_search_for_a_height_has_an_end_too() {
    let view = grown(&state(3));
    let status = Status {
        chain_id: ChainId::new("test-1").unwrap(),
        hasher: HashKind::Blake3,
        chunk_weight_max: 400,
        newest: at(u64::MAX, view),
        oldest: Height(0),
        diffs_from: Height(1),
    };
    let mut asked = 0;
    let mut peer = Says(|request: &Request| {
        asked += 1;
        Ok(match request {
            Request::GetRootAt { height } => Response::RootAt(at(height.0, view)),
            _ => Response::Status(status.clone()),
        })
    });
    let all = (Height(0), Height(u64::MAX));
    let mut own = |height: Height| Ok(Some(if height.0 == 0 { view.root() } else { Root(Hash([1; 32])) }));
    let error = first_height(all, &mut own, &mut peer).unwrap_err();
    assert!(matches!(error, DivergeError::TooMany { limit: QUESTIONS_MAX }), "{error}");
    let error = first_height(all, &mut |_| Err(ReadError::damaged("a page")), &mut peer).unwrap_err();
    assert!(matches!(error, DivergeError::Own(_)), "{error}");
    assert_eq!(asked, QUESTIONS_MAX + 1, "and once where the heights are kept");
}

/// spec: CHECK-6. A peer that answers for another height than the one it was asked for is not believed.
#[test]
fn a_root_of_another_height_is_no_answer() {
    let view = grown(&state(3));
    let status = Status {
        chain_id: ChainId::new("test-1").unwrap(),
        hasher: HashKind::Blake3,
        chunk_weight_max: 400,
        newest: at(9, view),
        oldest: Height(1),
        diffs_from: Height(1),
    };
    let mut peer = Says(|request: &Request| match request {
        Request::Status => Ok(Response::Status(status.clone())),
        _ => Ok(Response::RootAt(at(1, view))),
    });
    let error = first_height((Height(1), Height(9)), &mut |_| Ok(Some(view.root())), &mut peer).unwrap_err();
    assert!(matches!(&error, DivergeError::Misbehaved(what) if what.contains("height 9")), "{error}");
}

// ---- comparing ---------------------------------------------------------------------------------------------------

fn all_of(view: &Grown, state: &State, count: u32) -> Sample {
    let names: Vec<Namespace> = state.keys().cloned().collect();
    sample::<Blake3>(view, &names, None, count).unwrap()
}

fn asked(peers: &mut [Box<dyn Ask>]) -> Vec<(String, &mut dyn Ask)> {
    peers.iter_mut().enumerate().map(|(number, peer)| (format!("peer-{number}"), &mut **peer as &mut dyn Ask)).collect()
}

/// spec: CHECK-1, CHECK-3. What each peer says stands in the report by its name, and what cannot be said is unknown, not
/// consistent.
#[test]
fn a_report_says_what_each_peer_said() {
    let own_state = state(50);
    let own = grown(&own_state);
    let mut other_state = own_state.clone();
    let (space, entries) = other_state.iter_mut().next().unwrap();
    let (changed, missing) = (entries.keys().next().unwrap().clone(), entries.keys().nth(1).unwrap().clone());
    entries.insert(changed.clone(), value(b"other"));
    entries.remove(&missing);
    let space = space.clone();
    let other = grown(&other_state);
    let (version, picked) = (at(7, own), all_of(own, &own_state, 10));
    assert_eq!(picked.entries.len(), 10);

    let mut peers: Vec<Box<dyn Ask>> = vec![
        Box::new(Honest::with([(7, own)])),
        Box::new(Honest::with([(7, other)])),
        Box::new(Honest::with([(8, own)])),
        Box::new(Says(|_: &Request| Err(Silence("no route".to_owned())))),
        Box::new(Says(move |request: &Request| match request {
            Request::GetRootAt { .. } => Ok(Response::RootAt(version)),
            _ => Ok(Response::Entry(Blob::new(Vec::new()).unwrap())),
        })),
    ];
    let report = compare::<Blake3>(version, Certified::Nothing, &picked, &mut asked(&mut peers));
    assert_eq!(report.verdict, Verdict::Inconsistent);
    assert_eq!((report.peers[0].said.clone(), report.peers[0].entries_agreed), (Said::Agrees, 10));
    assert_eq!((report.peers[1].said.clone(), report.peers[1].entries_agreed), (Said::Differs(other.root()), 8));
    assert!(matches!(&report.peers[2].said, Said::Nothing(why) if why.contains("height")), "{:?}", report.peers[2]);
    assert!(matches!(&report.peers[3].said, Said::Nothing(why) if why.contains("no route")));
    assert!(matches!(report.peers[4].said, Said::Misbehaved(_)));
    let hash_of = |state: &State, key: &Key| state[&space].get(key).map(|value| Blake3::hash(value));
    let entry = |key: &Key| Discrepancy::Entry {
        peer: "peer-1".to_owned(),
        namespace: space.clone(),
        key: key.clone(),
        ours: hash_of(&own_state, key),
        theirs: hash_of(&other_state, key),
    };
    let root = Discrepancy::StateRoot { peer: "peer-1".to_owned(), ours: version, theirs: other.root() };
    assert_eq!(report.discrepancies, [root, entry(&changed), entry(&missing)]);

    let verdict = |certified, peers: &mut [Box<dyn Ask>]| {
        compare::<Blake3>(version, certified, &picked, &mut asked(peers)).verdict
    };
    assert_eq!(verdict(Certified::Nothing, &mut peers[2..4]), Verdict::Unknown);
    assert_eq!(verdict(Certified::Here, &mut peers[2..4]), Verdict::Unknown, "whoever was to answer did not");
    assert_eq!(verdict(Certified::Here, &mut []), Verdict::Consistent);
    assert_eq!(verdict(Certified::Given, &mut []), Verdict::Consistent);
    assert_eq!(verdict(Certified::Given, &mut peers[2..4]), Verdict::Unknown, "as who makes the blocks");
    assert_eq!(verdict(Certified::Nothing, &mut []), Verdict::Unknown);
    assert_eq!(verdict(Certified::Nothing, &mut peers[..1]), Verdict::Consistent);
    assert_eq!(verdict(Certified::Root(own.root()), &mut peers[2..4]), Verdict::Consistent);
    assert_eq!(verdict(Certified::Root(other.root()), &mut []), Verdict::Inconsistent);
}

/// spec: CHECK-3. Roots of earlier heights are compared as well; a height that a peer no longer keeps is no reason to
/// mistrust it.
#[test]
fn roots_of_earlier_heights_are_compared() {
    let (view, other) = (grown(&state(3)), grown(&state(4)));
    let mut picked = Sample { roots: (1..=3).map(|height| at(height, view)).collect(), ..Sample::default() };
    let mut peers: Vec<Box<dyn Ask>> = vec![Box::new(Honest::with([(2, other), (3, view), (9, view)]))];
    let report = compare::<Blake3>(at(9, view), Certified::Nothing, &picked, &mut asked(&mut peers));
    let expected = Discrepancy::StateRoot { peer: "peer-0".to_owned(), ours: at(2, view), theirs: other.root() };
    assert_eq!((report.peers[0].said.clone(), report.discrepancies), (Said::Agrees, vec![expected]));
    picked.roots.remove(1);
    let report = compare::<Blake3>(at(9, view), Certified::Nothing, &picked, &mut asked(&mut peers));
    assert_eq!(report.verdict, Verdict::Consistent);

    let seen: std::collections::BTreeSet<u64> =
        (0..40).flat_map(|number| heights(Height(10), Height(50), 4, number)).map(|height| height.0).collect();
    assert_eq!(seen, (10..50).collect(), "in time every height is looked at");
    assert!(heights(Height(5), Height(5), 4, 1).is_empty());
}

/// spec: CHECK-3, CHECK-4. Who has another root has it, whatever becomes of a question about an earlier height; who has the same
/// agrees only if it answers all of them, and a lie is a lie.
#[test]
fn another_root_is_told_of_though_an_earlier_one_is_not_said() {
    let (view, other) = (grown(&state(3)), grown(&state(4)));
    let version = at(9, view);
    let picked = Sample { roots: vec![at(3, view)], ..Sample::default() };
    let said = |root: Root, earlier: Response| {
        let mut peer = Says(|request: &Request| match request {
            Request::GetRootAt { height: Height(9) } => Ok(Response::RootAt(Version { height: Height(9), root })),
            Request::GetRootAt { .. } => Ok(earlier.clone()),
            other => panic!("{other:?}"),
        });
        let mut peers = [("peer".to_owned(), &mut peer as &mut dyn Ask)];
        let report = compare::<Blake3>(version, Certified::Root(view.root()), &picked, &mut peers);
        (report.peers[0].said.clone(), report.is_contradicted(), report.discrepancies.len())
    };
    let busy = || Response::Busy { retry_after_ms: 5 };
    assert_eq!(said(other.root(), busy()), (Said::Differs(other.root()), true, 1));
    assert!(matches!(said(view.root(), busy()), (Said::Nothing(_), false, 0)));
    let of_another_height = || Response::RootAt(at(4, view));
    assert!(matches!(said(other.root(), of_another_height()), (Said::Misbehaved(_), false, 1)));
}

/// spec: CHECK-2. The whole state is read, in pieces, and once only: sample after sample, whatever the size of each.
#[test]
fn samples_go_on_where_the_last_one_ended() {
    let whole = state(120);
    let view = grown(&whole);
    let names: Vec<Namespace> = whole.keys().cloned().collect();
    let expected: Vec<(Namespace, Key)> =
        whole.iter().flat_map(|(name, entries)| entries.keys().map(move |key| (name.clone(), key.clone()))).collect();
    for count in [1, 7, 119, 120, 121] {
        let (mut cursor, mut found) = (Cursor::default(), Vec::new());
        while cursor.passes == 0 {
            let piece = sample::<Blake3>(view, &names, cursor.next.as_ref(), count).unwrap();
            assert!(piece.entries.len() <= count as usize);
            found.extend(piece.entries.iter().map(|(name, key, _)| (name.clone(), key.clone())));
            cursor.advance(count, piece.next);
        }
        assert_eq!(found, expected, "{count} at once");
    }
}

/// A state of which one namespace cannot be read.
struct Damaged(&'static Grown, Namespace);

impl Read for Damaged {
    fn get(&self, namespace: &Namespace, key: &[u8]) -> Result<Option<Value>, ReadError> {
        self.0.get(namespace, key)
    }
    fn scan<'a>(&'a self, namespace: &Namespace, range: KeyRange) -> Scan<'a> {
        match *namespace == self.1 {
            true => Box::new(std::iter::once(Err(ReadError::damaged("a page is damaged")))),
            false => self.0.scan(namespace, range),
        }
    }
}

/// spec: CHECK-2. Damage is in the sample and does not end it: what is behind is read all the same.
#[test]
fn damage_does_not_end_a_sample() {
    let whole = state(120);
    let names: Vec<Namespace> = whole.keys().cloned().collect();
    let view = Damaged(grown(&whole), names[1].clone());
    let found = sample::<Blake3>(&view, &names, None, 1000).unwrap();
    assert_eq!(found.damaged, ["a page is damaged"]);
    let read: std::collections::BTreeSet<&Namespace> = found.entries.iter().map(|(name, ..)| name).collect();
    assert_eq!(read.len(), names.len() - 1);
}

fn settings() -> Settings {
    Settings {
        check_interval_ms: 1000,
        state_root_sample_size: 3,
        peer_sample_size: 5,
        account_sample_size: 10,
        auto_repair: true,
    }
}

/// C-03, spec: CHECK-4. Four of five peers agree on a false root. The root here is certified, so nothing is repaired
/// towards theirs, also where own bytes are damaged and repairs are made without asking; it is an alarm, and what is
/// repaired is repaired to the certified root.
#[test]
fn c03_four_of_five_peers_on_a_false_root_change_nothing() {
    let own_state = state(60);
    let own = grown(&own_state);
    let mut false_state = own_state.clone();
    false_state.get_mut(&name("n0")).unwrap().insert(key(b"account"), value(b"stolen"));
    let forged = grown(&false_state);
    let version = at(7, own);
    let mut peers: Vec<Box<dyn Ask>> = (0..4).map(|_| Box::new(Honest::with([(7, forged)])) as Box<dyn Ask>).collect();
    peers.push(Box::new(Honest::with([(7, own)])));
    for damaged in [false, true] {
        let mut picked = all_of(own, &own_state, 20);
        picked.damaged.extend(damaged.then(|| "a page is damaged".to_owned()));
        for certified in [Certified::Root(own.root()), Certified::Here, Certified::Nothing] {
            let report = compare::<Blake3>(version, certified, &picked, &mut asked(&mut peers));
            assert_eq!(report.verdict, Verdict::Inconsistent);
            assert_eq!(report.is_contradicted(), certified != Certified::Nothing);
            let mut checker = Checker::new(settings(), Cursor::default(), Tick(0));
            let effects = checker.found(&picked, report);
            let mut alarms = effects.iter().filter(|effect| matches!(effect, Effect::Alarm(_)));
            assert!(alarms.next().is_some(), "it is an alarm");
            let repairs: Vec<&Effect> = effects.iter().filter(|effect| matches!(effect, Effect::Repair(_))).collect();
            match damaged && certified != Certified::Nothing {
                true => assert_eq!(repairs, [&Effect::Repair(version)]),
                false => assert!(repairs.is_empty(), "{repairs:?}"),
            }
        }
    }
    // Were it the certified root that is theirs, this state is the false one: it is kept for whoever looks into it.
    let picked = Sample { damaged: vec!["a page is damaged".to_owned()], ..Sample::default() };
    let report = compare::<Blake3>(version, Certified::Root(forged.root()), &picked, &mut asked(&mut peers));
    assert_eq!(report.repairable_to(), None);
}

/// spec: CHECK-8. A check is due once an interval, also if the one before it never came back or failed: nothing that goes
/// wrong leaves the checker paused. Only its owner does that.
#[test]
fn a_check_that_fails_leaves_nothing_paused() {
    let mut checker = Checker::new(settings(), Cursor::default(), Tick(0));
    assert_eq!(checker.due(Tick(999)), None);
    let due = checker.due(Tick(1000)).unwrap();
    assert_eq!((due.entries, due.peers, due.roots, due.number), (10, 5, 3, 1));
    assert_eq!(checker.due(Tick(1001)), None);
    assert_eq!(checker.waits_ms(Tick(1500)), Some(500));
    assert!(checker.due(Tick(2000)).is_some(), "what became of the first is of no matter");
    checker.pause(true);
    assert_eq!((checker.due(Tick(9000)), checker.waits_ms(Tick(9000)), checker.is_paused()), (None, None, true));
    assert_eq!(checker.take(Tick(9000)).number, 3, "whoever asks gets one");
    checker.pause(false);
    assert!(checker.due(Tick(10_000)).is_some());
}

/// spec: CHECK-8. Not to know is no alarm once, and one when it goes on, which lasts until somebody agrees; the cursor goes on
/// meanwhile. A check that was to ask nobody has nothing to do with it.
#[test]
fn to_know_nothing_for_long_is_an_alarm() {
    let whole = state(30);
    let view = grown(&whole);
    let names: Vec<Namespace> = whole.keys().cloned().collect();
    let mut checker = Checker::new(settings(), Cursor::default(), Tick(0));
    let mut alarms = Vec::new();
    for check in 1..=12 {
        let due = checker.take(Tick(check));
        let picked = sample::<Blake3>(view, &names, due.from.as_ref(), due.entries).unwrap();
        let report = compare::<Blake3>(at(7, view), Certified::Nothing, &picked, &mut []);
        assert_eq!(report.verdict, Verdict::Unknown);
        for certified in [Certified::Nothing, Certified::Root(view.root())] {
            let glance = compare::<Blake3>(at(7, view), certified, &Sample::default(), &mut []);
            assert_eq!(checker.glanced(glance), []);
        }
        let effects = checker.found(&picked, report);
        assert_eq!(checker.alarmed().is_some(), check >= 5, "check {check}");
        assert_eq!(effects[0], Effect::Save(checker.cursor().clone()));
        alarms.extend(effects.into_iter().filter(|effect| matches!(effect, Effect::Alarm(_))).map(|_| check));
    }
    assert_eq!(alarms, [5], "said once");
    assert_eq!(checker.cursor().passes, 4);
    let damaged = Sample { damaged: vec!["a page is damaged".to_owned()], ..Sample::default() };
    let glance = compare::<Blake3>(at(7, view), Certified::Nothing, &damaged, &mut []);
    assert!(checker.glanced(glance).iter().any(|effect| matches!(effect, Effect::Alarm(_))), "damage is damage");
    assert!(checker.alarmed().is_some_and(|alarm| alarm.contains("discrepancies")));
    let picked = sample::<Blake3>(view, &names, None, 5).unwrap();
    let report = compare::<Blake3>(at(7, view), Certified::Root(view.root()), &picked, &mut []);
    checker.found(&picked, report);
    assert_eq!(checker.alarmed(), None);
}

// ---- the cursor --------------------------------------------------------------------------------------------------

fn cursors() -> [Cursor; 2] {
    let next = Some((name("agents"), key(b"key")));
    [Cursor::default(), Cursor { passes: 2, entries: 300, next }]
}

/// spec: CHECK-7.
#[test]
fn golden_bytes_of_a_cursor_have_not_changed() {
    let [first, later] = cursors().map(|cursor| hex::encode(cursor.to_bytes()));
    golden::check("consistency.json", &json!({ "cursor at the beginning": first, "cursor": later }));
}

/// spec: CHECK-7. A cursor reads back as it was, and with any byte changed, missing or added it is none.
#[test]
fn a_cursor_with_any_byte_changed_is_refused() {
    for cursor in cursors() {
        let bytes = cursor.to_bytes();
        assert_eq!(Cursor::from_bytes(&bytes), Ok(cursor));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            assert!(Cursor::from_bytes(&changed).is_err(), "byte {at}");
            assert!(Cursor::from_bytes(&bytes[..at]).is_err(), "cut at {at}");
        }
        assert!(Cursor::from_bytes(&[bytes.as_slice(), &[0]].concat()).is_err());
    }
    let long = vec![1; CURSOR_BYTES_MAX + 1];
    assert!(matches!(Cursor::from_bytes(&long), Err(keelstone_codec::DecodeError::TooLarge { .. })));
}
