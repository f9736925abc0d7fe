//! What a server gives, and what it does not.

use super::server::PEERS_MAX;
use super::{
    CERTIFICATE_BYTES_MAX, Heights, PeerId, Request, Response, Server, ServerLimits, Tick, Version, Versions, Why,
    header_query,
};
use crate::snapshot::{Skeleton, SnapshotParams};
use crate::testing::{name, state};
use keelstone_codec::{Blob, BoundedSet, ChainId, Height, Key, Root, Value};
use keelstone_tree::{
    Answer, Blake3, Diff, Grown, HashKind, KeyRange, Proof, ProofLimits, Query, RangeAnswer, ReadError,
};
use std::time::Duration;

/// Versions in memory, one a height from the first on, of which those from a height on are kept.
struct Memory(Vec<&'static Grown>, Height);

impl Versions for Memory {
    type View = &'static Grown;

    fn kept(&self) -> Option<(Version, Height)> {
        let newest = self.0.len() as u64;
        Some((Version { height: Height(newest), root: self.0.last()?.root() }, self.1))
    }
    fn diffs_from(&self) -> Height {
        Height(2)
    }
    fn view(&self, height: Height) -> Result<Option<(Root, Self::View)>, ReadError> {
        let place = usize::try_from(height.0).unwrap().checked_sub(1).filter(|_| height >= self.1);
        Ok(place.and_then(|place| self.0.get(place)).map(|view| (view.root(), *view)))
    }
    fn diff(&self, height: Height) -> Result<Option<Diff>, ReadError> {
        let change = (name("n1"), Key::new(*b"k").unwrap(), Value::new(height.0.to_le_bytes().to_vec()).ok());
        Ok((2..=self.0.len() as u64).contains(&height.0).then(|| [change].into_iter().collect()))
    }
    fn block(&self, height: Height) -> Result<Option<Vec<u8>>, ReadError> {
        Ok((3..=self.0.len() as u64).contains(&height.0).then(|| vec![7; 40]))
    }
    fn certificate(&self) -> Option<Blob<CERTIFICATE_BYTES_MAX>> {
        Blob::new(&b"certificate"[..]).ok()
    }
}

fn params() -> SnapshotParams {
    SnapshotParams { chain_id: ChainId::new("test-1").unwrap(), hasher: HashKind::Blake3, chunk_weight_max: 3200 }
}

fn server(limits: ServerLimits) -> (Server<Memory>, Vec<Version>) {
    let grown: Vec<&'static Grown> =
        (0..6).map(|more| &*Box::leak(Box::new(Grown::new::<Blake3>(&state(200 + more))))).collect();
    let version = |(height, view): (u64, &&'static Grown)| Version { height: Height(height), root: view.root() };
    let versions = (1..).zip(&grown).map(version).collect();
    (Server::new(Memory(grown, Height(1)), params(), limits, Tick(0)), versions)
}

fn asks(unit: impl IntoIterator<Item = u32>, at: Version) -> Request {
    Request::GetChunks { at, units: BoundedSet::new(unit).unwrap() }
}

/// spec: PEER-14. What certifies the newest version is handed on as it is.
#[test]
fn a_certificate_is_handed_on() {
    let (mut server, _) = server(ServerLimits::default());
    let answer = server.answer(Tick(1), PeerId(1), &Request::GetCertificate);
    assert_eq!(answer, Response::Certificate(Blob::new(&b"certificate"[..]).unwrap()));
}

/// spec: PEER-3, PEER-4, SNAP-10. Pages and units are found by version and number, another root at the height is refused,
/// and an answer holds the first of what was asked for, as much as fits.
#[test]
fn parts_are_found_by_version_and_number() {
    let limits = ServerLimits { answer_bytes_max: 900, ..ServerLimits::default() };
    let (mut server, versions) = server(limits);
    let (peer, at) = (PeerId(1), versions[2]);
    let mut skeleton = Skeleton::<Blake3>::without_offer(at.root, &params());
    while !skeleton.is_complete() {
        let request = Request::GetNodes { at, page: skeleton.pages_done() };
        let Response::Nodes(wire) = server.answer(Tick(0), peer, &request) else { panic!("no page") };
        skeleton.add_page(&crate::snapshot::unpack(&wire, 1 << 20).unwrap()).unwrap();
    }
    let all: Vec<u32> = (0..skeleton.unit_count()).collect();
    let mut missing = all.as_slice();
    while !missing.is_empty() {
        let Response::Chunks { units, wire } = server.answer(Tick(0), peer, &asks(missing.iter().copied(), at)) else {
            panic!("no units")
        };
        let (given, rest) = missing.split_at(units as usize);
        assert!(!given.is_empty() && given.len() < all.len());
        skeleton.check_units(given, &crate::snapshot::unpack(&wire, 1 << 20).unwrap()).unwrap();
        missing = rest;
    }
    let mut no = |request: Request| match server.answer(Tick(0), peer, &request) {
        Response::Unavailable(why) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(no(asks([skeleton.unit_count()], at)), Why::NoSuchPart);
    assert_eq!(no(asks([], at)), Why::NoSuchPart);
    assert_eq!(no(Request::GetNodes { at, page: 99 }), Why::NoSuchPart);
    assert_eq!(no(asks([0], Version { height: Height(3), root: versions[0].root })), Why::OtherRoot);
    assert_eq!(no(asks([0], Version { height: Height(99), ..at })), Why::NotKept);
}

/// spec: PEER-4. Entries and ranges come with their proofs; a range that is too long is proven up to a key, from which one
/// asks on.
#[test]
fn entries_and_ranges_come_with_proofs() {
    let limits = ServerLimits { answer_bytes_max: 1_500, ..ServerLimits::default() };
    let (mut server, versions) = server(limits);
    let (peer, at) = (PeerId(1), versions[0]);
    let entries = state(200);
    let (namespace, expected) = entries.iter().max_by_key(|(_, entries)| entries.len()).unwrap();
    let verified = |proof: &[u8], query: &[Query]| {
        Proof::decode(proof).unwrap().verify::<Blake3>(at.root, query, &ProofLimits::default()).unwrap()
    };
    let (mut found, mut start, mut rounds) = (Vec::new(), Vec::new(), 0);
    loop {
        let first = Blob::new(start.clone()).unwrap();
        let request = Request::GetRange { at, namespace: namespace.clone(), start: first, end: None };
        let Response::Range { next, proof } = server.answer(Tick(0), peer, &request) else { panic!("no range") };
        let range = KeyRange { start: start.clone(), end: next.as_ref().map(|next| next.to_vec()), reverse: false };
        let query = [Query::Range(namespace.clone(), range.clone())];
        let RangeAnswer::Complete(part) = verified(&proof, &query).range(namespace, &range) else { panic!("a gap") };
        found.extend(part);
        rounds += 1;
        match next {
            Some(next) => start = next.to_vec(),
            None => break,
        }
    }
    assert!(rounds > 1);
    assert_eq!(found, expected.iter().map(|(key, value)| (key.clone(), value.clone())).collect::<Vec<_>>());

    let key = expected.keys().next().unwrap().clone();
    let request = Request::GetEntry { at, namespace: namespace.clone(), key: key.clone() };
    let Response::Entry(proof) = server.answer(Tick(0), peer, &request) else { panic!("no entry") };
    let query = [Query::Key(namespace.clone(), key.clone())];
    assert_eq!(verified(&proof, &query).get(namespace, &key), Answer::Present(expected[&key].clone()));

    let heights = Heights::new(Height(1), Height(9)).unwrap();
    let Response::Header(proof) = server.answer(Tick(0), peer, &Request::GetHeader { at, heights }) else {
        panic!("no header")
    };
    verified(&proof, &[header_query(Height(1), Height(9))]);
}

/// spec: PEER-4. Diffs come from the first height on without a gap, as many as fit.
#[test]
fn diffs_come_without_a_gap() {
    let (mut server, _) = server(ServerLimits { answer_bytes_max: 100, ..ServerLimits::default() });
    let mut ask = |first: u64| {
        let heights = Heights::new(Height(first), Height(90)).unwrap();
        match server.answer(Tick(0), PeerId(1), &Request::GetDiffs { heights }) {
            Response::Diffs(diffs) => diffs.iter().map(|diff| diff.height.0).collect(),
            _ => vec![],
        }
    };
    assert_eq!((ask(2), ask(6), ask(1), ask(7)), (vec![2, 3], vec![6], vec![], vec![]));
}

/// spec: PEER-12, PEER-15. Blocks come as diffs do, and proving records, entries and ranges of one version after the other pins
/// none of them.
#[test]
fn blocks_come_without_a_gap_and_what_is_one_answer_pins_nothing() {
    let (mut server, versions) = server(ServerLimits { answer_bytes_max: 100, ..ServerLimits::default() });
    let mut ask = |first: u64| {
        let heights = Heights::new(Height(first), Height(90)).unwrap();
        match server.answer(Tick(0), PeerId(1), &Request::GetBlocks { heights }) {
            Response::Blocks(blocks) => blocks.len(),
            _ => 0,
        }
    };
    assert_eq!((ask(2), ask(3), ask(6), ask(7)), (0, 1, 1, 0));
    for (peer, at) in (0..).zip(versions) {
        let heights = Heights::new(Height(1), Height(9)).unwrap();
        let answer = server.answer(Tick(0), PeerId(peer), &Request::GetHeader { at, heights });
        assert!(matches!(answer, Response::Header(_)));
        let key = Key::new(*b"k").unwrap();
        let answer = server.answer(Tick(0), PeerId(peer), &Request::GetEntry { at, namespace: name("n1"), key });
        assert!(matches!(answer, Response::Entry(_)));
        let start = Blob::new([]).unwrap();
        let request = Request::GetRange { at, namespace: name("n1"), start, end: None };
        assert!(matches!(server.answer(Tick(0), PeerId(peer), &request), Response::Range { .. }));
    }
    assert_eq!(server.pins(), 0);
}

/// spec: PEER-11. Who has used up what it may, in bytes or in time, is told when to come back, and is served then; the
/// others do not notice.
#[test]
fn a_budget_holds_one_peer_back_and_not_the_others() {
    let limits = ServerLimits { peer_bytes_per_second: 10_000, ..ServerLimits::default() };
    let (mut server, versions) = server(limits);
    let request = asks([0, 1, 2], versions[0]);
    let (greedy, modest) = (PeerId(1), PeerId(2));
    let mut given = 0;
    let wait = loop {
        match server.answer(Tick(0), greedy, &request) {
            Response::Busy { retry_after_ms } => break u64::from(retry_after_ms),
            _ => given += 1,
        }
        assert!(given < 100, "a budget without end");
    };
    assert!(given > 1 && (1..10_000).contains(&wait), "{given} answers, then {wait} ms");
    assert!(matches!(server.answer(Tick(wait - 1), greedy, &request), Response::Busy { .. }));
    assert!(matches!(server.answer(Tick(wait - 1), modest, &request), Response::Chunks { .. }));
    assert!(matches!(server.answer(Tick(wait), greedy, &request), Response::Chunks { .. }));

    // Many answers that each take less than a millisecond are work, too.
    (0..20_000).for_each(|_| server.worked(modest, Duration::from_micros(500)));
    assert!(matches!(server.answer(Tick(wait), modest, &request), Response::Busy { .. }));
    assert!(matches!(server.answer(Tick(wait + 20_000), modest, &request), Response::Chunks { .. }));
}

/// A server keeps accounts of so many peers; one more has to come back, and is served when another is gone.
#[test]
fn peers_beyond_the_limit_have_to_come_back() {
    let (mut server, _) = server(ServerLimits::default());
    let mut is_served = |peer: usize, gone: Option<usize>| {
        gone.into_iter().for_each(|gone| server.gone(PeerId(gone as u64)));
        matches!(server.answer(Tick(0), PeerId(peer as u64), &Request::Status), Response::Status(_))
    };
    assert!((0..PEERS_MAX).all(|peer| is_served(peer, None)));
    assert!(!is_served(PEERS_MAX, None) && is_served(7, None));
    assert!(is_served(PEERS_MAX, Some(7)) && !is_served(7, None));
}

/// spec: PEER-12. A peer has one pin at most, what others ask about is not taken from them, and a pin ends with idleness
/// and with age.
#[test]
fn pins_are_few_and_end() {
    let limits = ServerLimits { pins_max: 2, pin_idle_ms: 1_000, pin_age_ms_max: 5_000, ..ServerLimits::default() };
    let (mut server, versions) = server(limits);
    let mut ask = |now: u64, peer: u64, version: usize| {
        let response = server.answer(Tick(now), PeerId(peer), &asks([0], versions[version]));
        (matches!(response, Response::Chunks { .. }), server.pins())
    };
    // One peer that wanders through all versions holds two pins at most: the one it leaves gives its place away.
    for version in 0..6 {
        assert!(ask(0, 1, version).0);
    }
    assert_eq!(ask(0, 2, 0), (true, 2));
    assert_eq!(ask(0, 1, 5), (true, 2));
    // Both are asked about: a third version has to wait, and does not for long.
    assert!(!ask(900, 3, 3).0);
    assert_eq!(ask(1_000, 3, 3), (true, 1));
    for now in (1_500..6_000).step_by(500) {
        assert!(ask(now, 3, 3).0);
    }
    // However often it is asked about, it is made anew after a time.
    assert_eq!(ask(6_000, 4, 2), (true, 1));
}

/// spec: PEER-12. Peers that ask now and then, each about another version, keep nobody else out.
#[test]
fn a_question_now_and_then_holds_no_place_that_another_needs() {
    let (mut server, versions) = server(ServerLimits::default());
    let mut ask = |now: u64, peer: u64, version: usize| {
        matches!(server.answer(Tick(now), PeerId(peer), &asks([0], versions[version])), Response::Chunks { .. })
    };
    let idle = ServerLimits::default().pin_idle_ms - 1_000;
    for round in 0..3 {
        for hostile in 0..4 {
            let is_served = ask(round * idle, 100 + hostile, usize::try_from(hostile).unwrap());
            assert!(is_served || round > 0, "there are four places");
        }
        assert!(ask((round + 1) * idle - 1, 1, 5), "and one of them is needed");
    }
}

/// spec: PEER-12. Whoever joins while as many as there are places for join at other versions has its turn, as they have
/// theirs; what is kept for nobody else stays for those who ask about it.
#[test]
fn more_versions_than_places_are_served_in_turns() {
    let (mut server, versions) = server(ServerLimits::default());
    let mut served = [0; 5];
    let mut longest = [0; 5];
    let mut last = [0; 5];
    for now in (0..120_000).step_by(500) {
        for peer in 0..5usize {
            let answer = server.answer(Tick(now), PeerId(peer as u64), &asks([0], versions[peer]));
            if let Response::Busy { retry_after_ms } = answer {
                assert!((1..=10_000).contains(&retry_after_ms), "{retry_after_ms} ms");
            } else {
                longest[peer] = longest[peer].max(now - last[peer]);
                last[peer] = now;
                served[peer] += 1;
            }
        }
    }
    assert!(served.iter().all(|served| *served >= 120), "half of what they asked for: {served:?}");
    assert!(longest.iter().all(|longest| *longest <= 15_000), "{longest:?}");

    // Those from the sixth height on are kept: what is pinned below is nowhere else, and nobody takes it from who asks on.
    server.versions().1 = Height(6);
    let pinned: Vec<u64> = (0..5)
        .filter(|peer| {
            matches!(
                server.answer(Tick(120_000), PeerId(*peer), &asks([0], versions[usize::try_from(*peer).unwrap()])),
                Response::Chunks { .. }
            )
        })
        .collect();
    assert_eq!(pinned.len(), 4);
    for now in (120_000..200_000).step_by(500) {
        for peer in &pinned {
            let answer = server.answer(Tick(now), PeerId(*peer), &asks([0], versions[usize::try_from(*peer).unwrap()]));
            assert!(matches!(answer, Response::Chunks { .. }), "peer {peer} at {now}");
        }
        assert!(matches!(server.answer(Tick(now), PeerId(9), &asks([0], versions[5])), Response::Busy { .. }));
    }
}

/// spec: PEER-2. A server says which heights it keeps, whatever it has pinned below them for those who ask about that.
#[test]
fn a_pin_is_no_height_that_is_kept() {
    let (mut server, versions) = server(ServerLimits::default());
    let mut ask = |request: &Request, kept_from: u64| {
        server.versions().1 = Height(kept_from);
        server.answer(Tick(0), PeerId(1), request)
    };
    assert!(matches!(ask(&asks([0], versions[0]), 1), Response::Chunks { .. }));
    let Response::Status(status) = ask(&Request::Status, 4) else { panic!("no status") };
    assert_eq!((status.oldest, status.newest.height), (Height(4), Height(6)));
    assert!(matches!(ask(&asks([0], versions[0]), 4), Response::Chunks { .. }), "it is pinned");
    assert!(matches!(ask(&asks([0], versions[1]), 4), Response::Unavailable(Why::NotKept)));
}
