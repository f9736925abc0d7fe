//! How a joiner judges peers, and how a sync ends that cannot succeed. Whole syncs are simulated in `tools/sim`.

use super::joiner::PEERS_MAX;
use super::{
    Effect, Ended, EntriesError, Event, Frame, Joiner, Misconduct, PeerId, Request, Response, Settings, Status, Tick,
    Version,
};
use crate::snapshot::{SMALL, SnapshotParams, pack, two_units};
use keelstone_codec::{Blob, ChainId, Encode, Hash, Height, Root};
use keelstone_store::files::MemoryFiles;
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
