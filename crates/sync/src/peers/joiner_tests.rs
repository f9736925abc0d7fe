//! How a joiner judges peers, and how a sync ends that cannot succeed. Whole syncs are simulated in `tools/sim`.

use super::joiner::PEERS_MAX;
use super::{
    Effect, Ended, EntriesError, Event, Frame, Joiner, Misconduct, PeerId, Request, Response, Settings, Status, Tick,
    Version, Why,
};
use crate::snapshot::{SMALL, SnapshotParams, pack, two_units};
use keelstone_codec::{Blob, ChainId, Encode, Hash, Height, Root};
use keelstone_store::files::{Files as _, MemoryFiles};
use keelstone_tree::{Blake3, HashKind};
use std::convert::Infallible;
use std::sync::Arc;

const PEER: PeerId = PeerId(1);

fn params() -> SnapshotParams {
    SnapshotParams { chain_id: ChainId::new("test-1").unwrap(), hasher: HashKind::Blake3, chunk_weight_max: SMALL }
}

fn joiner(root: Root) -> Joiner<Blake3> {
    let (files, target) = (Arc::new(MemoryFiles::new()), Version { height: Height(5), root });
    Joiner::open(files, params(), Settings::default(), target, Tick(0), 1).unwrap()
}

fn status(root: Root, chunk_weight_max: u32) -> Response {
    let SnapshotParams { chain_id, hasher, .. } = params();
    let (newest, oldest, diffs_from) = (Version { height: Height(5), root }, Height(5), Height(6));
    Response::Status(Status { chain_id, hasher, chunk_weight_max, newest, oldest, diffs_from })
}

fn asked(effects: &[Effect]) -> Vec<Frame<Request>> {
    let ask = |effect: &Effect| match effect {
        Effect::Ask(PEER, frame) => Some(frame.clone()),
        _ => None,
    };
    effects.iter().filter_map(ask).collect()
}

fn banned(effects: Vec<Effect>) -> Option<Misconduct> {
    effects.into_iter().find_map(|effect| match effect {
        Effect::Ban(PEER, why) => Some(why),
        _ => None,
    })
}

/// spec: PEER-7. An answer that comes too late is no misconduct, whatever is in it and however often it comes: the request
/// is not waited for any more.
#[test]
fn a_late_answer_is_no_misconduct() {
    let root = Root(Hash([1; 32]));
    let mut joiner = joiner(root);
    let frame = asked(&joiner.step(Tick(0), Event::Connected(PEER))).remove(0);
    let now = Tick(u64::from(Settings::default().request_timeout_ms));
    joiner.step(now, Event::Tick);
    let late = Frame { id: frame.id, body: status(root, SMALL) }.to_bytes();
    for answer in [&late[..], &late, &[], &[0xff; 100]] {
        assert_eq!(banned(joiner.step(now, Event::Answered(PEER, frame.id, answer))), None);
    }
}

/// spec: PEER-7. An answer under another number than its request's cannot be true, and is found when it comes: what was asked
/// for is asked for again at once, and three of them are enough.
#[test]
fn an_answer_under_another_number_is_a_lie() {
    let root = Root(Hash([1; 32]));
    let mut joiner = joiner(root);
    let mut effects = joiner.step(Tick(0), Event::Connected(PEER));
    let mut lies = 0;
    let why = loop {
        let Frame { id, body } = asked(&effects).pop().expect("it is asked again at once");
        let answer = if body == Request::Status {
            Frame { id, body: status(root, SMALL) }
        } else {
            lies += 1;
            Frame { id: id + 1, body: Response::Nodes(Blob::new([]).unwrap()) }
        };
        effects = joiner.step(Tick(lies), Event::Answered(PEER, id, &answer.to_bytes()));
        if let Some(why) = banned(effects.clone()) {
            break why;
        }
    };
    assert_eq!(why, Misconduct::FalseAnswers { times: 3, last: "an answer to another question".to_owned() });
}

/// spec: PEER-7. One that cuts versions otherwise is of another chain, and says so itself.
#[test]
fn a_peer_of_another_chain_is_banned_at_once() {
    let root = Root(Hash([1; 32]));
    let mut joiner = joiner(root);
    let frame = asked(&joiner.step(Tick(0), Event::Connected(PEER))).remove(0);
    let answer = Frame { id: frame.id, body: status(root, SMALL + 1) }.to_bytes();
    let why = banned(joiner.step(Tick(1), Event::Answered(PEER, frame.id, &answer)));
    assert!(matches!(why, Some(Misconduct::OtherChain { .. })), "{why:?}");
    assert_eq!(joiner.step(Tick(2), Event::Connected(PEER)), [], "it stays banned");
}

/// No more peers are known than there may be, however many come.
#[test]
fn peers_beyond_the_limit_are_not_known() {
    let mut joiner = joiner(Root(Hash([1; 32])));
    let peers = (0..PEERS_MAX as u64 + 50).map(PeerId);
    let asked = peers.filter(|peer| {
        let effects = joiner.step(Tick(0), Event::Connected(*peer));
        effects.iter().any(|effect| matches!(effect, Effect::Ask(asked, _) if asked == peer))
    });
    assert_eq!(asked.count(), PEERS_MAX);
    assert_eq!(joiner.progress(Tick(0)).peers as usize, PEERS_MAX);
}

/// spec: PEER-5. Peers that never say where they stand take no request away from one that does.
#[test]
fn silent_peers_leave_room_for_parts() {
    let root = Root(Hash([1; 32]));
    let mut joiner = joiner(root);
    for silent in 0..100 {
        joiner.step(Tick(0), Event::Connected(PeerId(100 + silent)));
    }
    let frame = asked(&joiner.step(Tick(0), Event::Connected(PEER))).remove(0);
    let answer = Frame { id: frame.id, body: status(root, SMALL) }.to_bytes();
    let asked = asked(&joiner.step(Tick(1), Event::Answered(PEER, frame.id, &answer)));
    assert!(matches!(asked[..], [Frame { body: Request::GetNodes { page: 0, .. }, .. }]), "{asked:?}");
}

/// spec: PEER-10. Where nothing is proven for long, the sync ends and says so, and is not woken for anything any more.
#[test]
fn a_sync_that_gets_nothing_ends() {
    let mut joiner = joiner(Root(Hash([1; 32])));
    let for_ms = u64::from(Settings::default().stall_timeout_ms);
    joiner.step(Tick(0), Event::Connected(PEER));
    let early = joiner.step(Tick(for_ms - 1), Event::Tick);
    assert!(!early.iter().any(|effect| matches!(effect, Effect::End(_))), "{early:?}");
    let ended = joiner.step(Tick(for_ms), Event::Tick);
    assert_eq!(ended, [Effect::End(Ended::Stalled { for_ms, peers: 1 })]);
    assert_eq!(joiner.wakeup(Tick(for_ms)), None);
}

/// spec: PEER-8. A peer that says it has a version, is busy as often as it may be and then says nothing keeps nobody at it until
/// the sync ends, where a newer version is served.
#[test]
fn a_peer_that_is_busy_for_ever_is_not_waited_for() {
    let root = Root(Hash([1; 32]));
    let mut joiner = joiner(root);
    let newest = Version { height: Height(9), root: Root(Hash([2; 32])) };
    let (busy, other) = (PEER, PeerId(2));
    let mut effects = joiner.step(Tick(0), Event::Connected(busy));
    effects.extend(joiner.step(Tick(0), Event::Connected(other)));
    effects.extend(joiner.step(Tick(0), Event::Target(newest)));
    let (mut now, mut times) = (Tick(0), 0);
    while joiner.target() != newest {
        if effects.is_empty() {
            now = joiner.wakeup(now).expect("it has not ended");
            effects = joiner.step(now, Event::Tick);
            continue;
        }
        // In their order: the busy one is the first to say where it stands.
        let Effect::Ask(peer, Frame { id, body }) = effects.remove(0) else { continue };
        let answer = match body {
            Request::Status if peer == busy => status(root, SMALL),
            Request::Status => {
                let Response::Status(said) = status(root, SMALL) else { continue };
                Response::Status(Status { newest, oldest: newest.height, ..said })
            }
            _ if times < 8 => {
                times += 1;
                Response::Busy { retry_after_ms: 30_000 }
            }
            _ => continue,
        };
        effects.extend(joiner.step(now, Event::Answered(peer, id, &Frame { id, body: answer }.to_bytes())));
    }
    assert_eq!(times, 8);
}

/// Long enough that a sync would end, and every request be given up.
const LONG_MS: u64 = 400_000;

/// What an honest peer with a state of two units answers.
fn two_units_of(root: Root, pages: &[&[u8]; 2], units: &[&[u8]; 2], request: &Request) -> Response {
    let wire = |raw: &[u8]| Blob::new(pack(raw, 0).unwrap()).unwrap();
    match request {
        Request::Status => status(root, SMALL),
        Request::GetNodes { page, .. } => Response::Nodes(wire(pages[*page as usize])),
        Request::GetChunks { units: asked, .. } => {
            let unit = *asked.iter().next().unwrap();
            Response::Chunks { units: 1, wire: wire(units[unit as usize]) }
        }
        other => panic!("{other:?}"),
    }
}

/// Answers whatever is asked at a time, until something else is said.
fn converse(joiner: &mut Joiner<Blake3>, now: Tick, effects: Vec<Effect>, answer: &Answers<'_>) -> Vec<Effect> {
    let mut waiting = effects;
    let mut said = Vec::new();
    while let Some(effect) = waiting.pop() {
        match effect {
            Effect::Ask(peer, Frame { id, body }) => {
                let Some(body) = answer(&body) else { continue };
                waiting.extend(joiner.step(now, Event::Answered(peer, id, &Frame { id, body }.to_bytes())));
            }
            Effect::Seek(_) => {}
            other => said.push(other),
        }
    }
    said
}

type Answers<'a> = dyn Fn(&Request) -> Option<Response> + 'a;

/// spec: PEER-5, PEER-7. As many peers as are worked with at once say that they cannot read one unit: they give their places to
/// one who can, also where each may say so once because it may be who gave what is staged.
#[test]
fn who_refuses_units_makes_room_for_who_has_them() {
    let (root, [first, second, left, right]) = two_units(1);
    let honest = |request: &Request| two_units_of(root, &[&first, &second], &[&left, &right], request);
    let one_unit = |request: &Request| match request {
        Request::GetChunks { units, .. } if units.iter().next() != Some(&0) => None,
        other => Some(honest(other)),
    };
    let target = Version { height: Height(5), root };
    let settings = Settings { peer_count_target: 2, ..Settings::default() };
    for is_begun in [false, true] {
        let files = Arc::new(MemoryFiles::new());
        let open = || Joiner::<Blake3>::open(files.clone(), params(), settings, target, Tick(0), 1).unwrap();
        if is_begun {
            let mut joiner = open();
            let effects = joiner.step(Tick(0), Event::Connected(PEER));
            assert_eq!(converse(&mut joiner, Tick(0), effects, &one_unit), []);
        }
        let (mut joiner, mut now, mut refused) = (open(), Tick(0), 0);
        let peers = (1..=3).map(PeerId);
        let mut effects: Vec<Effect> = peers.flat_map(|peer| joiner.step(now, Event::Connected(peer))).collect();
        let ended = loop {
            if effects.is_empty() {
                now = joiner.wakeup(now).expect("it has not ended");
                effects = joiner.step(now, Event::Tick);
                continue;
            }
            match effects.remove(0) {
                Effect::Ask(peer, Frame { id, body }) => {
                    let answer = match &body {
                        Request::GetChunks { .. } if peer != PeerId(3) => {
                            refused += 1;
                            Response::Unavailable(Why::Unreadable)
                        }
                        request => honest(request),
                    };
                    let answer = Frame { id, body: answer }.to_bytes();
                    effects.extend(joiner.step(now, Event::Answered(peer, id, &answer)));
                }
                Effect::Seek(_) => {}
                other => break other,
            }
        };
        assert_eq!(ended, Effect::Build(target));
        assert!(refused >= 2 && now.0 < u64::from(settings.request_timeout_ms), "{refused} refused, {now:?}");
    }
}

/// spec: PEER-9, PEER-10. However long it takes to read and prove what a life before left, and to build a state that turns out
/// to lack something, peers are asked for the rest: what the own disk takes is nobody's silence.
#[test]
fn a_slow_disk_is_not_taken_for_silent_peers() {
    let (root, [first, second, left, right]) = two_units(1);
    let honest = |request: &Request| Some(two_units_of(root, &[&first, &second], &[&left, &right], request));
    let one_unit = |request: &Request| match request {
        Request::GetChunks { units, .. } if units.iter().next() != Some(&0) => None,
        other => honest(other),
    };
    let files = Arc::new(MemoryFiles::new());
    let target = Version { height: Height(5), root };
    let open = |now| Joiner::<Blake3>::open(files.clone(), params(), Settings::default(), target, now, 1).unwrap();

    // One that comes to an end with one unit of two.
    let mut joiner = open(Tick(0));
    let effects = joiner.step(Tick(0), Event::Connected(PEER));
    assert_eq!(converse(&mut joiner, Tick(0), effects, &one_unit), []);
    assert_eq!(joiner.progress(Tick(0)).done.count, 1);

    // The next reads its directory for so long that it would have ended..
    let mut joiner = open(Tick(0));
    let mut now = Tick(LONG_MS);
    let effects = joiner.step(now, Event::Connected(PEER));
    let status_asked = asked(&effects);
    assert!(matches!(status_asked[..], [Frame { body: Request::Status, .. }]), "{effects:?}");
    // ..and then, in that step, proves what is there for as long again. What it asked for meanwhile is not late.
    assert_eq!(joiner.wakeup(now), Some(Tick(now.0 + 1)));
    now.0 += LONG_MS;
    assert!(!joiner.step(now, Event::Tick).iter().any(|effect| matches!(effect, Effect::End(_))));
    let built = converse(&mut joiner, now, effects, &honest);
    assert_eq!(built, [Effect::Build(target)]);

    // Building takes as long, and finds that something is lost: it is fetched again.
    for name in files.image().into_keys().filter(|name| name.starts_with("units-")) {
        files.remove(&name).unwrap();
    }
    now.0 += LONG_MS;
    assert!(matches!(joiner.entries(|_, _, _| Ok::<_, Infallible>(())), Err(EntriesError::Incomplete { .. })));
    let effects = joiner.step(now, Event::Tick);
    assert_eq!(converse(&mut joiner, now, effects, &honest), [Effect::Build(target)]);
    joiner.entries(|_, _, _| Ok::<_, Infallible>(())).unwrap();
}

/// spec: PEER-2. Whoever comes back is asked for the rest of a version that it no longer says it keeps, since it may hold it for us, and
/// is asked once if it does not.
#[test]
fn who_comes_back_is_asked_for_what_it_was_giving() {
    let (root, [first, second, left, right]) = two_units(1);
    let later = |request: &Request| match request {
        Request::Status => {
            let Response::Status(said) = status(root, SMALL) else { panic!("a status") };
            let newest = Version { height: Height(9), root: Root(Hash([2; 32])) };
            Some(Response::Status(Status { newest, oldest: Height(8), diffs_from: Height(9), ..said }))
        }
        other => Some(two_units_of(root, &[&first, &second], &[&left, &right], other)),
    };
    let one_unit = |request: &Request| match request {
        Request::Status => Some(status(root, SMALL)),
        Request::GetChunks { units, .. } if units.iter().next() != Some(&0) => None,
        other => later(other),
    };
    let files = Arc::new(MemoryFiles::new());
    let target = Version { height: Height(5), root };
    let open = || Joiner::<Blake3>::open(files.clone(), params(), Settings::default(), target, Tick(0), 1).unwrap();
    let begun = |joiner: &mut Joiner<Blake3>| {
        let effects = joiner.step(Tick(0), Event::Connected(PEER));
        assert_eq!(converse(joiner, Tick(0), effects, &one_unit), []);
        assert_eq!(joiner.progress(Tick(0)).done.count, 1);
    };
    // In one life, and in another.
    let mut joiner = open();
    begun(&mut joiner);
    joiner.step(Tick(1), Event::Gone(PEER));
    let effects = joiner.step(Tick(2), Event::Connected(PEER));
    assert_eq!(converse(&mut joiner, Tick(2), effects, &later), [Effect::Build(target)]);
    for file in files.list().unwrap() {
        files.remove(&file).unwrap();
    }
    begun(&mut open());
    let mut joiner = open();
    let effects = joiner.step(Tick(3), Event::Connected(PEER));
    let mut said = converse(&mut joiner, Tick(3), effects, &later);
    // What is staged is read before anything is asked for.
    let effects = joiner.step(Tick(4), Event::Tick);
    said.extend(converse(&mut joiner, Tick(4), effects, &later));
    assert_eq!(said, [Effect::Build(target)]);
}

/// spec: PEER-10. While building is rehearsed nobody is heard, so what was asked for before is waited for after it; and then a
/// sync that gets nothing ends all the same.
#[test]
fn what_was_asked_for_before_a_rehearsal_is_not_late_after_it() {
    let root = Root(Hash([1; 32]));
    let mut joiner = joiner(root);
    let frame = asked(&joiner.step(Tick(0), Event::Connected(PEER))).remove(0);
    joiner.rehearsed(1, 1);
    let answer = Frame { id: frame.id, body: status(root, SMALL) }.to_bytes();
    let asked = asked(&joiner.step(Tick(LONG_MS), Event::Answered(PEER, frame.id, &answer)));
    assert!(asked.iter().any(|frame| matches!(frame.body, Request::GetNodes { page: 0, .. })), "{asked:?}");
    let for_ms = u64::from(Settings::default().stall_timeout_ms);
    let ended = joiner.step(Tick(LONG_MS + for_ms), Event::Tick);
    assert_eq!(ended, [Effect::End(Ended::Stalled { for_ms, peers: 1 })]);
}

/// spec: PEER-10, SNAP-7. All units are proven, and yet their keys do not part as the skeleton says: of no tree, found when
/// they are read in order.
#[test]
fn a_root_of_no_tree_is_found_where_units_meet() {
    for (crit, is_tree) in [(1, true), (8, false)] {
        let (root, [first, second, left, right]) = two_units(crit);
        let mut joiner = joiner(root);
        let wire = |raw: &[u8]| Blob::new(pack(raw, 0).unwrap()).unwrap();
        let mut waiting = asked(&joiner.step(Tick(0), Event::Connected(PEER)));
        let mut is_built = false;
        while let Some(Frame { id, body }) = waiting.pop() {
            let answer = match body {
                Request::Status => status(root, SMALL),
                Request::GetNodes { page, .. } => Response::Nodes(wire([&first, &second][page as usize])),
                Request::GetChunks { units, .. } => {
                    let raw: Vec<u8> = units.iter().flat_map(|unit| [&left, &right][*unit as usize].clone()).collect();
                    Response::Chunks { units: u32::try_from(units.iter().count()).unwrap(), wire: wire(&raw) }
                }
                other => panic!("{other:?}"),
            };
            let effects = joiner.step(Tick(0), Event::Answered(PEER, id, &Frame { id, body: answer }.to_bytes()));
            is_built |= effects.iter().any(|effect| matches!(effect, Effect::Build(_)));
            waiting.extend(asked(&effects));
        }
        assert!(is_built, "both units are proven");
        let mut handed_out = 0;
        let found = joiner.entries(|_, _, _| {
            handed_out += 1;
            Ok::<_, Infallible>(())
        });
        match found {
            Ok(()) => assert!(is_tree && handed_out == 2),
            Err(EntriesError::Ended(ended)) => {
                assert!(!is_tree && handed_out == 1 && matches!(ended, Ended::FalseRoot { unit: 1, .. }), "{ended}");
            }
            Err(error) => panic!("{error}"),
        }
    }
}
