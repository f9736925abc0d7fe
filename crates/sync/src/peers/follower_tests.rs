//! Followers of a chain in memory, over peers of which some lie: what they come to, and what they do not.

use super::follower::{AHEAD_BYTES_MAX, AHEAD_MAX, PEERS_MAX, RECORDS_MAX};
use super::{
    Change, Diverged, FollowEffect, FollowEvent, Follower, Frame, Gap, HeightDiff, Heights, Manner, Misconduct, PeerId,
    Request, Response, Server, ServerLimits, Status, Tick, Version, Versions, Why,
};
use crate::snapshot::SnapshotParams;
use keelstone_codec::{
    Blob, BoundedList, ChainId, Encode as _, Fixed, Hash, Height, Key, Namespace, Root, Text, Timestamp, Value,
};
use keelstone_ledger::modules::{agents, memes, standard};
use keelstone_ledger::{
    Bundle, Genesis, Ledger, LedgerError, Mode, Operation, PoolLimits, SecretKey, TakeError, Transaction,
};
use keelstone_store::files::MemoryFiles;
use keelstone_store::kv::MemoryKv;
use keelstone_store::{Options, Retention, Store, StoreError, View};
use keelstone_tree::{Blake3, Diff, HashKind, KeyRange, Read as _, ReadError};
use std::collections::BTreeMap;
use std::sync::Arc;

type Chain = Arc<Ledger<Blake3>>;

fn genesis() -> Genesis {
    let mut genesis = Genesis::new(ChainId::new("followed-1").unwrap());
    genesis.producers = vec![key().public()];
    genesis
}

fn key() -> SecretKey {
    SecretKey::from_seed(&[200; 32])
}

fn params() -> SnapshotParams {
    let chunk_weight_max = genesis().limits.snapshot_chunk_bytes;
    SnapshotParams { chain_id: genesis().chain_id, hasher: HashKind::Blake3, chunk_weight_max }
}

/// A chain in memory that keeps so many heights, all if none is given.
fn chain(heights: Option<u64>) -> Chain {
    let history = heights.map_or(Retention::All, Retention::Heights);
    let options = Options {
        segment_bytes: 1 << 20,
        page_segment_bytes: 1 << 20,
        background: false,
        history,
        ..Options::default()
    };
    let store = Store::create(Arc::new(MemoryFiles::new()), options).unwrap();
    Arc::new(Ledger::create(store, Arc::new(MemoryKv::new()), standard(), &genesis(), PoolLimits::default()).unwrap())
}

/// Makes blocks up to a height. Every third is empty.
fn grow(chain: &Chain, to: u64) {
    while chain.height().0 < to {
        let height = chain.height().0 + 1;
        if !height.is_multiple_of(3) {
            let nonce = chain.next_nonce(&key().public()).unwrap().unwrap();
            let operation = match nonce {
                0 => Operation::of(&agents::Register {
                    name: Text::new("Ada").unwrap(),
                    personality: agents::Personality::even(Fixed::from_micros(800_000)),
                    traits: Default::default(),
                }),
                _ => Operation::of(&memes::Post { text: Text::new(format!("at {height}")).unwrap() }),
            };
            let transaction = Transaction {
                chain_id: genesis().chain_id,
                sender: key().public(),
                nonce,
                expiry_height: Height(100_000),
                session: None,
                bundle: Bundle::new(Mode::Sync, vec![operation]).unwrap(),
            };
            chain.submit(&transaction.sign(&key()).to_bytes()).unwrap();
        }
        chain.produce(Timestamp(height * 1_000), key().public()).unwrap();
    }
}

fn stands(chain: &Chain) -> Version {
    Version { height: chain.height(), root: chain.root() }
}

struct Kept(Chain);

impl Versions for Kept {
    type View = View<Blake3>;

    fn kept(&self) -> Option<(Version, Height)> {
        Some((stands(&self.0), self.0.store().low()?))
    }
    fn diffs_from(&self) -> Height {
        self.0.store().low().unwrap().next()
    }
    fn view(&self, height: Height) -> Result<Option<(Root, View<Blake3>)>, ReadError> {
        match self.0.view_at(height) {
            Ok(view) => Ok(Some((view.root(), view))),
            Err(StoreError::NotRetained { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
    fn diff(&self, height: Height) -> Result<Option<Diff>, ReadError> {
        match self.0.store().diff_at(height) {
            Ok(found) => Ok(Some(found.diff())),
            Err(StoreError::NotRetained { .. } | StoreError::NoDiff { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
    fn block(&self, height: Height) -> Result<Option<Vec<u8>>, ReadError> {
        match self.0.block(height) {
            Ok(block) => Ok(Some(block.to_bytes())),
            Err(LedgerError::NoBlock { .. } | LedgerError::NotYet { .. }) => Ok(None),
            Err(error) => panic!("{error}"),
        }
    }
}

/// What a peer makes of an honest answer; none for silence.
type Way = fn(&Request, Response) -> Option<Response>;

fn honest(_: &Request, answer: Response) -> Option<Response> {
    Some(answer)
}

fn mute(_: &Request, answer: Response) -> Option<Response> {
    matches!(answer, Response::Status(_)).then_some(answer)
}

fn empty(_: &Request, answer: Response) -> Option<Response> {
    Some(match answer {
        Response::Diffs(_) => Response::Diffs(BoundedList::default()),
        Response::Blocks(_) => Response::Blocks(BoundedList::default()),
        other => other,
    })
}

/// One value of each diff is another, each block has another time, and each proof another byte.
fn lies(_: &Request, answer: Response) -> Option<Response> {
    Some(match answer {
        Response::Diffs(diffs) => {
            let mut diffs = diffs.into_vec();
            for found in &mut diffs {
                let more = (Namespace::new("agents").unwrap(), Key::new(*b"mine").unwrap(), Value::new(vec![7]).ok());
                found.diff = found.diff.clone().then([more].into_iter().collect());
            }
            Response::Diffs(BoundedList::new(diffs).unwrap())
        }
        Response::Blocks(blocks) => {
            let changed = |bytes: Blob<{ super::BLOCK_BYTES_MAX }>| {
                let mut bytes = bytes.to_vec();
                bytes[8] ^= 1; // The time.
                Blob::new(bytes).unwrap()
            };
            Response::Blocks(BoundedList::new(blocks.into_vec().into_iter().map(changed).collect()).unwrap())
        }
        other => other,
    })
}

/// Not even where it stands.
fn silent(_: &Request, _: Response) -> Option<Response> {
    None
}

/// Each height changed a mebibyte.
fn bloats(_: &Request, answer: Response) -> Option<Response> {
    Some(match answer {
        Response::Diffs(diffs) => {
            let mut diffs = diffs.into_vec();
            diffs.truncate(4);
            for found in &mut diffs {
                let more = Value::new(vec![7; 1 << 20]).unwrap();
                found.diff = [(Namespace::new("agents").unwrap(), Key::new(*b"mine").unwrap(), Some(more))]
                    .into_iter()
                    .collect();
            }
            Response::Diffs(BoundedList::new(diffs).unwrap())
        }
        other => other,
    })
}

/// Records that are not proven.
fn forges_records(_: &Request, answer: Response) -> Option<Response> {
    Some(match answer {
        Response::Header(proof) => {
            let mut bytes = proof.to_vec();
            *bytes.last_mut().unwrap() ^= 1;
            Response::Header(Blob::new(bytes).unwrap())
        }
        other => other,
    })
}

/// It says that it has everything and gives nothing.
fn withholds(request: &Request, answer: Response) -> Option<Response> {
    Some(match (request, answer) {
        (Request::Status, Response::Status(status)) => {
            let newest = Version { height: Height(1_000), ..status.newest };
            Response::Status(Status { newest, diffs_from: Height(1), ..status })
        }
        _ => Response::Unavailable(Why::NotKept),
    })
}

/// A follower over peers, in one thread: time passes when nobody has anything to say.
struct World {
    follower: Follower,
    manner: Manner,
    own: Chain,
    peers: BTreeMap<PeerId, (Server<Kept>, Way)>,
    now: u64,
    banned: Vec<(PeerId, Misconduct)>,
    stopped: Option<Diverged>,
    taken: Vec<&'static str>,
}

impl World {
    fn new(own: Chain, manner: Manner, peers: &[(&Chain, Way)]) -> Self {
        let follower = Follower::new(params(), manner, stands(&own), 1_000);
        let serve = |(chain, way): &(&Chain, Way)| {
            (Server::new(Kept(Chain::clone(chain)), params(), ServerLimits::default(), Tick(0)), *way)
        };
        let peers: BTreeMap<PeerId, _> = (1..).map(PeerId).zip(peers.iter().map(serve)).collect();
        let (banned, taken) = (Vec::new(), Vec::new());
        let mut world = Self { follower, manner, own, peers, now: 0, banned, stopped: None, taken };
        for peer in world.peers.keys().copied().collect::<Vec<_>>() {
            world.tell(FollowEvent::Connected(peer));
        }
        world
    }

    fn tell(&mut self, event: FollowEvent<'_>) {
        let mut effects = self.follower.step(Tick(self.now), event);
        while !effects.is_empty() {
            for effect in std::mem::take(&mut effects) {
                effects.extend(self.perform(effect));
            }
        }
    }

    fn perform(&mut self, effect: FollowEffect) -> Vec<FollowEffect> {
        match effect {
            FollowEffect::Ask(peer, frame) => {
                let Some((server, way)) = self.peers.get_mut(&peer) else {
                    return self.follower.step(Tick(self.now), FollowEvent::Failed(peer, frame.id));
                };
                let honest = server.answer(Tick(self.now), peer, &frame.body);
                let Some(body) = way(&frame.body, honest) else { return Vec::new() };
                let answer = Frame { id: frame.id, body }.to_bytes();
                self.follower.step(Tick(self.now), FollowEvent::Answered(peer, frame.id, &answer))
            }
            FollowEffect::Ban(peer, why) => {
                self.banned.push((peer, why));
                Vec::new()
            }
            FollowEffect::Stop(why) => {
                self.stopped = Some(why);
                Vec::new()
            }
            FollowEffect::Take(step) => {
                let (what, taken) = match step.change {
                    Change::Nothing if self.manner == Manner::Blocks => {
                        ("nothing", self.own.take_block(&step.certified, None))
                    }
                    Change::Nothing => ("nothing", self.own.take_diff(&step.certified, &Diff::default())),
                    Change::Diff(diff) => ("diff", self.own.take_diff(&step.certified, &diff)),
                    Change::Block(block) => ("block", self.own.take_block(&step.certified, Some(block))),
                };
                match taken {
                    Ok(committed) => {
                        assert_eq!(committed.root, step.certified.root);
                        self.taken.push(what);
                        self.follower.step(Tick(self.now), FollowEvent::Taken)
                    }
                    Err(TakeError::NotIt { what, .. }) => {
                        self.follower.step(Tick(self.now), FollowEvent::Refused(what))
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }

    /// Lets time pass until the follower is where it is to be, or for a while.
    fn run(&mut self, target: Version) -> bool {
        self.tell(FollowEvent::Target(target));
        for _ in 0..2_000 {
            if self.own.height() == target.height || self.stopped.is_some() {
                break;
            }
            self.now += 100;
            self.tell(FollowEvent::Tick);
        }
        stands(&self.own) == target
    }
}

/// spec: SNAP-11. Whoever begins at the genesis comes to where the chain is, by diffs and by blocks, and goes on from there
/// with each new target; what has a body where, and what has not, is told apart.
#[test]
fn a_follower_catches_up_and_keeps_up() {
    for manner in [Manner::Diffs, Manner::Blocks] {
        let producer = chain(None);
        grow(&producer, 40);
        let mut world = World::new(chain(None), manner, &[(&producer, honest)]);
        assert!(world.run(stands(&producer)));
        for height in 41..50 {
            grow(&producer, height);
            assert!(world.run(stands(&producer)), "height {height}, {manner:?}");
        }
        let expected = if manner == Manner::Diffs { "diff" } else { "block" };
        assert!(world.taken.iter().all(|what| ["nothing", expected].contains(what)), "{:?}", world.taken);
        for height in (1..=49).map(Height) {
            assert_eq!(world.own.root_at(height).unwrap(), producer.root_at(height).unwrap());
            match (manner, height.0 % 3) {
                (Manner::Diffs, _) => assert!(matches!(world.own.block(height), Err(LedgerError::NoBlock { .. }))),
                (Manner::Blocks, 0) => assert!(world.own.block(height).unwrap().transactions.is_empty()),
                (Manner::Blocks, _) => {
                    assert_eq!(world.own.block(height).unwrap(), producer.block(height).unwrap());
                    assert_eq!(world.own.receipts(height).unwrap(), producer.receipts(height).unwrap());
                }
            }
        }
        // Whoever follows can be followed.
        let mut behind = World::new(chain(None), Manner::Diffs, &[(&world.own, honest)]);
        assert!(behind.run(stands(&producer)));
    }
}

/// S-01, S-03, S-11. With one honest peer among liars of every kind the follower comes to the certified state, never to
/// another, and who sent what cannot be true is banned; who sent nothing is not.
#[test]
fn s01_a_follower_among_liars_comes_to_the_certified_state() {
    for manner in [Manner::Diffs, Manner::Blocks] {
        let producer = chain(None);
        grow(&producer, 30);
        let ways: [Way; 6] = [lies, mute, empty, withholds, forges_records, honest];
        let peers: Vec<(&Chain, Way)> = ways.iter().map(|way| (&producer, *way)).collect();
        let mut world = World::new(chain(None), manner, &peers);
        assert!(world.run(stands(&producer)), "{manner:?}: {:?}", world.follower);
        for height in 31..60 {
            grow(&producer, height);
            assert!(world.run(stands(&producer)), "height {height}, {manner:?}: {:?}", world.follower);
        }
        let banned: Vec<u64> = world.banned.iter().map(|(peer, _)| peer.0).collect();
        assert!(banned.iter().all(|peer| [1, 5].contains(peer)), "{:?}", world.banned);
    }
}

/// S-01. Alone with a liar nothing is taken in, and it is banned.
#[test]
fn s01_alone_with_a_liar_nothing_is_taken_in() {
    for (manner, way) in [
        (Manner::Diffs, lies as Way),
        (Manner::Blocks, lies),
        (Manner::Diffs, forges_records),
        (Manner::Blocks, forges_records),
    ] {
        let producer = chain(None);
        grow(&producer, 2);
        let mut world = World::new(chain(None), manner, &[(&producer, way)]);
        assert!(!world.run(stands(&producer)));
        assert_eq!(world.own.height(), Height(0));
        assert!(
            matches!(world.banned[..], [(PeerId(1), Misconduct::FalseAnswers { times: 3, .. })]),
            "{:?}",
            world.banned
        );
    }
}

/// spec: PEER-15. What no peer has the block of any more is taken as a diff, and blocks again from where there are some.
#[test]
fn heights_without_a_block_are_taken_as_diffs() {
    let producer = chain(None);
    grow(&producer, 20);
    let mut relay = World::new(chain(None), Manner::Diffs, &[(&producer, honest)]);
    assert!(relay.run(stands(&producer)));
    let mut world = World::new(chain(None), Manner::Blocks, &[(&relay.own, honest)]);
    assert!(world.run(stands(&producer)));
    assert!(world.taken.iter().all(|what| ["nothing", "diff"].contains(what)), "{:?}", world.taken);
    // An executing follower goes on with blocks on what it took as diffs.
    grow(&producer, 30);
    let mut on = World::new(world.own, Manner::Blocks, &[(&producer, honest)]);
    assert!(on.run(stands(&producer)));
    assert!(on.taken.contains(&"block") && !on.taken.contains(&"diff"), "{:?}", on.taken);
    assert_eq!(on.own.verify_audit(&mut |_| {}).unwrap().fault, None);
}

/// spec: PEER-15, PEER-7. S-11: who never answers, and who never says where he stands, is not waited for, neither where a diff
/// is to be taken because the blocks are gone, nor where there is a gap.
#[test]
fn s11_who_answers_nothing_does_not_hide_what_nobody_has() {
    let (producer, pruned) = (chain(None), chain(Some(3)));
    for chain in [&producer, &pruned] {
        grow(chain, 20);
    }
    let mut relay = World::new(chain(None), Manner::Diffs, &[(&producer, honest)]);
    assert!(relay.run(stands(&producer)));
    let peers: [(&Chain, Way); 3] = [(&relay.own, honest), (&producer, mute), (&producer, silent)];
    let mut world = World::new(chain(None), Manner::Blocks, &peers);
    assert!(world.run(stands(&producer)), "{:?}", world.follower);
    assert!(world.taken.contains(&"diff") && !world.taken.contains(&"block"), "{:?}", world.taken);

    let mut world =
        World::new(chain(None), Manner::Diffs, &[(&pruned, honest), (&producer, mute), (&producer, silent)]);
    assert!(!world.run(stands(&producer)));
    assert_eq!(world.follower.gap().map(|gap| gap.missing), Some(Height(1)));
    assert!(world.banned.is_empty(), "silence is no crime: {:?}", world.banned);
}

/// Everything that a follower asks for while nothing of what it hands out is taken in.
fn asked_ahead(producer: &Chain, way: Way) -> Vec<Request> {
    let peer = PeerId(1);
    let mut server = Server::new(Kept(producer.clone()), params(), ServerLimits::default(), Tick(0));
    let mut follower = Follower::new(params(), Manner::Diffs, stands(&chain(None)), 1_000);
    let mut effects = follower.step(Tick(0), FollowEvent::Connected(peer));
    effects.extend(follower.step(Tick(0), FollowEvent::Target(stands(producer))));
    let mut asked = Vec::new();
    for now in (0..60_000).step_by(100).map(Tick) {
        while let Some(effect) = effects.pop() {
            let FollowEffect::Ask(_, frame) = effect else { continue };
            let answer = way(&frame.body, server.answer(now, peer, &frame.body)).unwrap();
            let answer = Frame { id: frame.id, body: answer }.to_bytes();
            asked.push(frame.body);
            assert!(asked.len() < 10_000, "it asks without end");
            effects.extend(follower.step(now, FollowEvent::Answered(peer, frame.id, &answer)));
        }
        effects = follower.step(now, FollowEvent::Tick);
    }
    asked
}

/// However far the chain is ahead, and however much each height changed, what waits to be taken in has a bound.
#[test]
fn what_is_held_ahead_is_bounded() {
    let producer = chain(None);
    grow(&producer, 2 * RECORDS_MAX as u64 + 100);
    let asked = asked_ahead(&producer, honest);
    let records: Vec<_> = asked
        .iter()
        .filter_map(|request| if let Request::GetHeader { heights, .. } = request { Some(*heights) } else { None })
        .collect();
    // Two of three heights have a record: after two answers there are more than enough.
    assert_eq!(records.iter().map(|heights| heights.last().0).max(), Some(2 * RECORDS_MAX as u64));
    assert_eq!(records.len(), 2);
    let diffs = |asked: &[Request]| -> Vec<Height> {
        let last =
            |request: &Request| if let Request::GetDiffs { heights } = request { Some(heights.last()) } else { None };
        asked.iter().filter_map(last).collect()
    };
    assert!(diffs(&asked).into_iter().max().is_some_and(|last| (AHEAD_MAX - 2..=AHEAD_MAX).contains(&last.0)));

    let times = diffs(&asked_ahead(&producer, bloats)).len() as u64;
    assert_eq!(times * (4 << 20), AHEAD_BYTES_MAX, "each answer has four heights of a mebibyte");
}

/// spec: PEER-15, PEER-7. What one peer sent of the next height is thrown away when as much lies ahead of it as may, of another: the
/// height is asked for again, alone, and what it changed is handed out.
#[test]
fn the_next_height_is_asked_for_however_much_is_held_ahead() {
    let producer = chain(None);
    grow(&producer, 30);
    let (bloating, garbling) = (PeerId(1), PeerId(2));
    let mut server = Server::new(Kept(producer.clone()), params(), ServerLimits::default(), Tick(0));
    let mut ahead = 0;
    let mut answer = |now, peer, request: &Request| {
        let honest = server.answer(now, peer, request);
        match request {
            // Records come when enough is held.
            Request::GetHeader { .. } if peer == garbling => None,
            Request::GetDiffs { heights } if peer == garbling && heights.first() > Height(1) => {
                Some(Response::Busy { retry_after_ms: 10_000 })
            }
            Request::GetDiffs { .. } if peer == garbling => {
                let Some(Response::Diffs(diffs)) = lies(request, honest) else { panic!("it has them") };
                Some(Response::Diffs(BoundedList::new(diffs.into_vec().into_iter().take(1).collect()).unwrap()))
            }
            Request::GetDiffs { heights } if heights.first() > Height(1) => {
                ahead += 4 << 20;
                bloats(request, honest)
            }
            _ => Some(honest),
        }
    };
    let mut follower = Follower::new(params(), Manner::Diffs, stands(&chain(None)), 1_000);
    let mut effects = follower.step(Tick(0), FollowEvent::Target(stands(&producer)));
    effects.extend(follower.step(Tick(0), FollowEvent::Connected(garbling)));
    let (mut asked, mut handed_out) = (Vec::new(), 0);
    for now in (0..1_000).step_by(100).map(Tick) {
        while let Some(effect) = effects.pop() {
            match effect {
                FollowEffect::Ask(peer, frame) => {
                    if let (Request::GetDiffs { heights }, 1) = (&frame.body, handed_out) {
                        asked.push(*heights);
                    }
                    let Some(body) = answer(now, peer, &frame.body) else { continue };
                    let frame = Frame { id: frame.id, body };
                    effects.extend(follower.step(now, FollowEvent::Answered(peer, frame.id, &frame.to_bytes())));
                }
                FollowEffect::Take(step) => {
                    assert_eq!(step.certified.height, Height(1));
                    handed_out += 1;
                    if handed_out == 1 {
                        effects.extend(follower.step(now, FollowEvent::Refused("it is another".to_owned())));
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        effects = follower.step(now, FollowEvent::Connected(bloating));
    }
    assert_eq!(ahead, AHEAD_BYTES_MAX);
    assert_eq!(
        asked.iter().map(|heights| (heights.first(), heights.last())).collect::<Vec<_>>(),
        [(Height(1), Height(1))]
    );
    assert_eq!(handed_out, 2);
}

/// S-11. An answer without anything in it is a failure: whoever gives no other is asked now and then, and not on and on.
#[test]
fn s11_an_empty_answer_is_not_asked_for_on_and_on() {
    let producer = chain(None);
    grow(&producer, 2);
    let asked = asked_ahead(&producer, empty);
    let diffs = asked.iter().filter(|request| matches!(request, Request::GetDiffs { .. })).count();
    assert!((2..=120).contains(&diffs), "{diffs} times within a minute");
}

/// S-01, spec: PEER-4, PEER-7. Changes come of the heights that were asked for, in order; else who sent them has lied.
#[test]
fn s01_changes_of_other_heights_are_their_senders_fault() {
    fn changed(answer: Response, change: fn(&mut Vec<HeightDiff>)) -> Option<Response> {
        let Response::Diffs(diffs) = answer else { return Some(answer) };
        let mut diffs = diffs.into_vec();
        change(&mut diffs);
        Some(Response::Diffs(BoundedList::new(diffs).unwrap()))
    }
    fn swapped(_: &Request, answer: Response) -> Option<Response> {
        changed(answer, |diffs| diffs.swap(0, 1))
    }
    fn beyond(_: &Request, answer: Response) -> Option<Response> {
        changed(answer, |diffs| diffs.push(HeightDiff { height: Height(3), diff: Diff::default() }))
    }
    let producer = chain(None);
    grow(&producer, 2);
    for (way, what) in [(swapped as Way, "height 2 in the place of 1"), (beyond, "height 3 in the place of 3")] {
        let mut world = World::new(chain(None), Manner::Diffs, &[(&producer, way)]);
        world.run(stands(&producer));
        let [(PeerId(1), Misconduct::FalseAnswers { times: 3, last })] = &world.banned[..] else {
            panic!("{what}: {:?}", world.banned)
        };
        assert_eq!(last, what);
    }
}

/// A follower to which one peer answers as `answer` says; until that is banned, or for a minute. What it says to do, but for its
/// questions.
fn alone_with(
    follower: &mut Follower,
    target: Version,
    mut answer: impl FnMut(Tick, &Frame<Request>) -> Frame<Response>,
) -> Vec<FollowEffect> {
    let peer = PeerId(1);
    let mut effects = follower.step(Tick(0), FollowEvent::Target(target));
    effects.extend(follower.step(Tick(0), FollowEvent::Connected(peer)));
    let mut said = Vec::new();
    for now in (0..60_000).step_by(100).map(Tick) {
        while let Some(effect) = effects.pop() {
            match effect {
                FollowEffect::Ask(peer, frame) => {
                    let answer = answer(now, &frame).to_bytes();
                    effects.extend(follower.step(now, FollowEvent::Answered(peer, frame.id, &answer)));
                }
                other => said.push(other),
            }
        }
        effects = follower.step(now, FollowEvent::Tick);
    }
    said
}

/// S-01, spec: PEER-7, SNAP-11. An answer under another number, and a proof of fewer records than were asked for, are lies: nothing is
/// learnt from either, and who is banned for them is not taken back. A target below the one that is known is no target.
#[test]
fn s01_what_answers_another_question_is_a_lie() {
    let producer = chain(None);
    grow(&producer, 5);
    let mut server = Server::new(Kept(producer.clone()), params(), ServerLimits::default(), Tick(0));
    for fewer in [false, true] {
        let mut follower = Follower::new(params(), Manner::Diffs, stands(&chain(None)), 1_000);
        let said = alone_with(&mut follower, stands(&producer), |now, Frame { id, body }| {
            let (id, body) = match body {
                Request::GetHeader { at, heights } if fewer => {
                    let first = Heights::new(heights.first(), heights.first()).unwrap();
                    (*id, Request::GetHeader { at: *at, heights: first })
                }
                body if fewer => (*id, body.clone()),
                body => (id + 1, body.clone()),
            };
            Frame { id, body: server.answer(now, PeerId(1), &body) }
        });
        let [FollowEffect::Ban(PeerId(1), Misconduct::FalseAnswers { times: 3, .. })] = &said[..] else {
            panic!("{said:?}")
        };
        assert_eq!(follower.step(Tick(60_000), FollowEvent::Connected(PeerId(1))), []);
        let lower = Version { height: Height(3), root: producer.root_at(Height(3)).unwrap().unwrap() };
        assert_eq!(follower.step(Tick(60_000), FollowEvent::Target(lower)), []);
        assert_eq!(follower.target(), stands(&producer));
    }
}

/// spec: PEER-5. A question is asked of one peer, of a second once that takes long, and of no third.
#[test]
fn a_question_is_asked_of_two_peers_at_most() {
    let producer = chain(None);
    grow(&producer, 5);
    let mut server = Server::new(Kept(producer.clone()), params(), ServerLimits::default(), Tick(0));
    let mut follower = Follower::new(params(), Manner::Diffs, stands(&chain(None)), 1_000);
    let mut effects = follower.step(Tick(0), FollowEvent::Target(stands(&producer)));
    effects.extend((1..=4).flat_map(|peer| follower.step(Tick(0), FollowEvent::Connected(PeerId(peer)))));
    let mut asked = Vec::new();
    for now in [0, 100, 125, 130, 999].map(Tick) {
        effects.extend(follower.step(now, FollowEvent::Tick));
        while let Some(effect) = effects.pop() {
            let FollowEffect::Ask(peer, frame) = effect else { panic!("{effect:?}") };
            match frame.body {
                Request::Status => {
                    let answer = Frame { id: frame.id, body: server.answer(now, peer, &frame.body) }.to_bytes();
                    effects.extend(follower.step(now, FollowEvent::Answered(peer, frame.id, &answer)));
                }
                Request::GetHeader { .. } => asked.push((now.0, peer)),
                _ => {}
            }
        }
    }
    let [(0, first), (125, second)] = asked[..] else { panic!("{asked:?}") };
    assert_ne!(first, second);
}

/// No more peers are asked than may be known, however many come.
#[test]
fn peers_beyond_the_limit_are_not_asked() {
    let mut follower = Follower::new(params(), Manner::Blocks, stands(&chain(None)), 1_000);
    let asked = (0..PEERS_MAX as u64 + 50).map(PeerId).filter(|peer| {
        let effects = follower.step(Tick(0), FollowEvent::Connected(*peer));
        effects.iter().any(|effect| matches!(effect, FollowEffect::Ask(asked, _) if asked == peer))
    });
    assert_eq!(asked.count(), PEERS_MAX);
}

/// spec: PEER-15. When nobody has the next height any more that is said, with what is left; and no longer once somebody
/// has it.
#[test]
fn a_gap_is_said_and_ends_when_somebody_can_fill_it() {
    let (pruned, whole) = (chain(Some(3)), chain(None));
    for chain in [&pruned, &whole] {
        grow(chain, 20);
    }
    assert_eq!(stands(&pruned), stands(&whole));
    let mut world = World::new(chain(None), Manner::Diffs, &[(&pruned, honest)]);
    assert!(!world.run(stands(&pruned)));
    let kept_from = pruned.store().low().unwrap().next();
    assert_eq!(world.follower.gap(), Some(Gap { missing: Height(1), kept_from }));
    world.peers.insert(PeerId(9), (Server::new(Kept(whole), params(), ServerLimits::default(), Tick(0)), honest));
    world.tell(FollowEvent::Connected(PeerId(9)));
    assert!(world.run(stands(&pruned)));
    assert_eq!(world.follower.gap(), None);
}

/// A state that is not the one the certified records stand on ends it, before anything is taken in.
#[test]
fn a_state_that_is_not_the_chains_stops_the_follower() {
    let (producer, other) = (chain(None), chain(None));
    grow(&producer, 5);
    // The same operations at other times.
    other.produce(Timestamp(1), key().public()).unwrap();
    grow(&other, 4);
    let mut world = World::new(other.clone(), Manner::Diffs, &[(&producer, honest)]);
    assert!(!world.run(stands(&producer)));
    let Some(Diverged::Root { height, certified, own }) = world.stopped else { panic!("it goes on") };
    assert_eq!((height, own), (Height(4), other.root()));
    assert_eq!(Some(certified), producer.root_at(Height(4)).unwrap());
    assert_eq!(world.own.height(), Height(4));
    assert!(world.banned.is_empty(), "nobody is to blame");
}

/// A peer of another chain is left.
#[test]
fn a_peer_of_another_chain_is_banned() {
    fn foreign(_: &Request, answer: Response) -> Option<Response> {
        Some(match answer {
            Response::Status(status) => {
                Response::Status(Status { chain_id: ChainId::new("other-1").unwrap(), ..status })
            }
            other => other,
        })
    }
    let producer = chain(None);
    grow(&producer, 2);
    let mut world = World::new(chain(None), Manner::Diffs, &[(&producer, foreign)]);
    assert!(!world.run(stands(&producer)));
    assert!(matches!(world.banned[..], [(_, Misconduct::OtherChain { .. })]));
}

/// spec: SNAP-11. What a ledger takes in is what is certified, to the last write, or nothing of it.
#[test]
fn a_diff_is_the_one_its_record_names_or_nothing_of_it_is_taken() {
    let producer = chain(None);
    grow(&producer, 1);
    let record = keelstone_ledger::BlockRecord::read(&producer.view(), Height(1)).unwrap();
    let certified = keelstone_ledger::Certified { height: Height(1), record, root: producer.root() };
    let diff = producer.store().diff_at(Height(1)).unwrap().diff();
    let own = chain(None);
    let refused = |diff: &Diff| match own.take_diff(&certified, diff) {
        Err(TakeError::NotIt { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    assert!(refused(&Diff::default()).contains("record"));
    let (blocks, _) = keelstone_ledger::BlockRecord::place(Height(1));
    let without_one = |out: usize| -> Diff {
        let writes = diff.iter().filter(|(name, _)| **name != blocks).enumerate().filter(|(at, _)| *at != out);
        let writes = writes.map(|(_, write)| write).chain(diff.iter().filter(|(name, _)| **name == blocks));
        writes.map(|(name, write)| (name.clone(), write.key.clone(), write.value.clone())).collect()
    };
    for out in 0..diff.len() - 1 {
        assert!(refused(&without_one(out)).contains("digest"));
    }
    let and = |name: &Namespace, key: &Key, value: Value| -> Diff {
        diff.clone().then([(name.clone(), key.clone(), Some(value))].into_iter().collect())
    };
    let place = keelstone_ledger::BlockRecord::place(Height(1));
    let mut forged = certified.record.as_ref().unwrap().to_bytes();
    *forged.last_mut().unwrap() ^= 1;
    assert!(refused(&and(&place.0, &place.1, Value::new(forged).unwrap())).contains("does not write the record"));
    let written = |name: &Namespace, key: &Key| diff.iter().any(|(at, write)| at == name && write.key == *key);
    let kept = own.view().namespaces().into_iter().find_map(|(name, _)| {
        let entries = own.view().scan(&name, KeyRange::all()).map(Result::unwrap).collect::<Vec<_>>();
        let kept = entries.into_iter().find(|(key, _)| !written(&name, key));
        kept.map(|(key, value)| (name, key, value))
    });
    let (name, key, value) = kept.unwrap();
    assert!(refused(&and(&name, &key, value)).contains("what is there already"));
    // A height that changed nothing, of which somebody says that it did, is his lie as well.
    let nothing = keelstone_ledger::Certified { height: Height(1), record: None, root: own.root() };
    assert!(matches!(own.take_diff(&nothing, &diff), Err(TakeError::NotIt { .. })));
    // And a block that its record does not name.
    let mut block = producer.block(Height(1)).unwrap();
    block.time = Timestamp(block.time.0 + 1);
    assert!(matches!(own.take_block(&certified, Some(block)), Err(TakeError::NotIt { .. })));
    // A record that stands on another state than the one here says that this is not the chain's.
    let mut elsewhere = certified.clone();
    elsewhere.record.as_mut().unwrap().previous_root = Root(Hash([8; 32]));
    assert!(
        matches!(own.take_diff(&elsewhere, &diff), Err(TakeError::Differs { certified, .. }) if certified.0.0 == [8; 32])
    );
    // Another root is certified for it: this is no liar's work.
    let other = keelstone_ledger::Certified { root: Root(Hash([7; 32])), ..certified.clone() };
    assert!(matches!(own.take_diff(&other, &diff), Err(TakeError::Differs { height: Height(1), .. })));
    assert_eq!((own.height(), own.root()), (Height(0), chain(None).root()));
    own.take_diff(&certified, &diff).unwrap();
    assert_eq!(stands(&own), stands(&producer));
    assert!(matches!(own.take_diff(&certified, &diff), Err(TakeError::Ledger(LedgerError::NotNext { .. }))));
}
