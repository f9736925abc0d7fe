//! A store that has again from peers what is damaged: whichever byte it is, and whoever lies.

use crate::peer::Peer;
use golden::count;
use keelstone_codec::{Blob, Height, Key, Namespace, Root, Value, splitmix64};
use keelstone_store::files::{Files, MemoryFiles};
use keelstone_store::{CheckLevel, Options, Store, StoreError, Supplier, View, Wanted};
use keelstone_sync::consistency::{Ask, Asked, Gave, Silence};
use keelstone_sync::peers::{Request, Response, Version};
use keelstone_tree::{Blake3, KeyRange, Read, Totals};
use std::collections::BTreeMap;
use std::sync::Arc;

const HEIGHTS: u64 = 40;

/// A peer whose answers another changes.
struct Liar<F>(Peer, F);

impl<F: FnMut(Response) -> Response> Ask for Liar<F> {
    fn ask(&mut self, request: &Request) -> Result<Response, Silence> {
        let honest = self.0.ask(request)?;
        Ok((self.1)(honest))
    }
}

/// Nothing of it stays in memory, so that what is lost on the disk is lost.
fn options() -> Options {
    Options {
        segment_bytes: 48 << 10,
        page_segment_bytes: 48 << 10,
        flush_bytes: 24 << 10,
        cache_bytes: 0,
        value_cache_bytes: 0,
        recent_versions: 1,
        background: false,
        id: Some([9; 16]),
        ..Options::default()
    }
}

fn write(number: u64, height: u64, salt: u8) -> (Namespace, Key, Option<Value>) {
    let mut seed = number;
    let hash = splitmix64(&mut seed).to_be_bytes();
    let name = Namespace::new(["accounts", "names", "one"][(hash[0] as usize % 16).saturating_sub(13)]).unwrap();
    let value = !(number + height).is_multiple_of(11);
    let value =
        value.then(|| Value::new(vec![hash[1] ^ height.to_le_bytes()[0] ^ salt; 1 + hash[2] as usize % 90]).unwrap());
    (name, Key::new(&hash[..3 + hash[3] as usize % 6]).unwrap(), value)
}

/// A chain of some heights. With another salt it is another chain's.
fn chain(files: &MemoryFiles, salt: u8) -> Store<Blake3> {
    let store = Store::create(Arc::new(files.clone()), options()).unwrap();
    for height in 0..HEIGHTS {
        let writes = (0..60).map(|number| write(number * 7 + height * 29, height, salt));
        // A key may come twice in a block: the last counts.
        let writes: BTreeMap<_, _> = writes.map(|(name, key, value)| ((name, key), value)).collect();
        store
            .commit(Height(height), writes.into_iter().map(|((name, key), value)| (name, key, value)).collect())
            .unwrap();
    }
    store
}

type Contents = Vec<(Namespace, Key, Value)>;

fn contents(view: &View<Blake3>) -> Contents {
    let of = |name: Namespace| {
        let entries: Vec<_> = view.scan(&name, KeyRange::all()).map(Result::unwrap).collect();
        entries.into_iter().map(move |(key, value)| (name.clone(), key, value))
    };
    view.namespaces().into_iter().flat_map(|(name, _)| of(name)).collect()
}

fn roots(store: &Store<Blake3>) -> Vec<Root> {
    (0..HEIGHTS).rev().map(|height| store.view_at(Height(height)).unwrap().root()).collect()
}

fn open(files: &MemoryFiles) -> Store<Blake3> {
    Store::open(Arc::new(files.clone()), options()).unwrap()
}

fn full(store: &Store<Blake3>) -> Vec<StoreError> {
    store.check(CheckLevel::Full, &mut |_| {}).unwrap().problems
}

/// Four peers of another state, all of one root, and an honest one.
fn four_of_five_lie() -> Vec<(String, Box<dyn Ask>)> {
    let mut peers: Vec<(String, Box<dyn Ask>)> = Vec::new();
    for liar in 0..4 {
        peers.push((format!("liar-{liar}"), Box::new(Peer::of(chain(&MemoryFiles::new(), 0x55)))));
    }
    peers.push(("honest".to_owned(), Box::new(Peer::of(chain(&MemoryFiles::new(), 0)))));
    peers
}

/// C-01, C-03, spec: STORE-16, CHECK-9. One byte changed anywhere in a store, so many times: each is found by the full check,
/// which says where it is; each is mended, what the state lost of it from the one peer of five that does not lie; and what is
/// there then is what was there, at every height, now and after opening it anew. `cargo xtask mends` takes 1,000 of them.
#[test]
fn c01_whichever_byte_changes_it_is_found_and_mended_and_never_wrongly() {
    let (seed, tries) = (count("KEELSTONE_SEED", 1), count("KEELSTONE_MENDS", 60));
    let files = MemoryFiles::new();
    chain(&files, 0).close().unwrap();
    let image = files.image();
    let store = open(&files);
    let (right, history) = (contents(&store.view()), roots(&store));
    drop(store);
    assert!(right.len() > 1000 && image.values().map(Vec::len).sum::<usize>() > 256 << 10);
    let bytes: Vec<(&str, usize)> = image.iter().map(|(name, bytes)| (name.as_str(), bytes.len())).collect();
    let all: u64 = bytes.iter().map(|(_, len)| *len as u64).sum();
    let mut peers = four_of_five_lie();
    let (mut found, mut mended, mut supplied) = (0, 0, 0);
    for number in 0..tries {
        let mut random = seed << 32 | number;
        let mut at = splitmix64(&mut random) % all;
        let (name, _) = bytes
            .iter()
            .find(|(_, len)| {
                at < *len as u64 || {
                    at -= *len as u64;
                    false
                }
            })
            .unwrap();
        let flip = 1 + (splitmix64(&mut random) % 255) as u8;
        let what = format!("seed {seed}, try {number}: {name} byte {at} changed by {flip:#x}");

        let files = MemoryFiles::from_image(&image);
        let store = open(&files);
        let file = files.open(name).unwrap();
        let mut byte = [0];
        file.read_at(at, &mut byte).unwrap();
        file.write_at(at, &[byte[0] ^ flip]).unwrap();

        let problems = full(&store);
        let names_it = |problem: &StoreError| {
            matches!(problem, StoreError::Damaged { file, offset, .. }
            if file == name && (offset / 512 == at / 512 || *name == "superblock"))
        };
        found += u64::from(problems.iter().any(names_it));
        let mut asked: Vec<(String, &mut dyn Ask)> =
            peers.iter_mut().map(|(name, peer)| (name.clone(), &mut **peer as &mut dyn Ask)).collect();
        let (height, root) = (store.height(), store.root());
        let mut root_at = |height: Height| history.get(usize::try_from(HEIGHTS - 1 - height.0).unwrap()).copied();
        let mut from = Asked::<Blake3>::new(&mut asked, &mut root_at);
        let done = store.mend(&problems, &mut from).unwrap();
        for (peer, gave) in from.gave() {
            assert!(peer == "honest" || matches!(gave, Gave::Nothing(_)), "{what}: {peer} gave {gave:?}");
        }
        assert_eq!((store.height(), store.root()), (height, root), "{what}");
        supplied += u64::from(done.supplied_entries > 0);
        mended += u64::from(done.left.is_empty() && full(&store).is_empty());
        assert!(done.left.is_empty(), "{what}: {:?}", done.left);
        assert_eq!(contents(&store.view()), right, "{what}");
        let again = open(&MemoryFiles::from_image(&files.image()));
        assert_eq!(contents(&again.view()), right, "{what}");
        assert_eq!(roots(&again), history, "{what}");
    }
    println!("{tries} tries: {found} found, {mended} mended, {supplied} of them from a peer");
    assert_eq!((found, mended), (tries, tries));
    assert!(supplied * 20 >= tries, "a state without what was damaged was had from a peer in {supplied} tries only");
}

/// C-03, spec: CHECK-9. Whatever lies peers tell about a piece, nothing of them is written; who tells them is named, and the
/// honest one after them is enough.
#[test]
fn c03_lies_about_a_piece_are_written_by_nobody() {
    let files = MemoryFiles::new();
    chain(&files, 0).close().unwrap();
    let image = files.image();
    // The last that was written are pages of the last version, and behind them the table. The top page of the largest namespace
    // is not among the nearest, and has to stay: what lies below it takes more questions than a peer is asked for one piece. A
    // segment that was just begun has too few.
    let (name, last) = image
        .iter()
        .rev()
        .filter(|(name, _)| name.ends_with(".pages"))
        .filter_map(|(name, bytes)| {
            Some((name, bytes.chunks(512).rposition(|sector| sector.iter().any(|byte| *byte != 0))?))
        })
        .find(|(_, last)| *last > 9)
        .unwrap();
    let last = last as u64;
    let honest = || Peer::of(chain(&MemoryFiles::new(), 0));
    let behind = || {
        let store = chain(&MemoryFiles::new(), 0);
        store.rollback(Height(HEIGHTS - 3)).unwrap();
        Peer::of(store)
    };
    let empty = |response| match response {
        Response::Range { .. } => Response::Range { next: None, proof: Blob::new(Vec::new()).unwrap() },
        other => other,
    };
    let flipped = |response| match response {
        Response::Range { next, proof } => {
            let mut bytes = proof.to_vec();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            Response::Range { next, proof: Blob::new(bytes).unwrap() }
        }
        other => other,
    };
    let endless = |response| match response {
        Response::Range { proof, .. } => Response::Range { next: Some(Key::new([0]).unwrap()), proof },
        other => other,
    };
    let busy = |_| Response::Busy { retry_after_ms: 9 };
    let other = |_| Response::RootAt(Version { height: Height(1), root: Root(keelstone_codec::Hash([1; 32])) });
    let mut peers: Vec<(&str, Box<dyn Ask>)> = vec![
        ("empty", Box::new(Liar(honest(), empty))),
        ("flipped", Box::new(Liar(honest(), flipped))),
        ("endless", Box::new(Liar(honest(), endless))),
        ("busy", Box::new(Liar(honest(), busy))),
        ("other", Box::new(Liar(honest(), other))),
        ("behind", Box::new(behind())),
        ("honest", Box::new(honest())),
    ];
    for with_honest in [false, true] {
        let files = MemoryFiles::from_image(&image);
        let store = open(&files);
        let (right, history) = (contents(&store.view()), roots(&store));
        for sector in last - 9..last - 1 {
            files.open(name).unwrap().write_at(sector * 512, &[0xa5; 512]).unwrap();
        }
        let count = peers.len() - 2 * usize::from(!with_honest);
        let mut asked: Vec<(String, &mut dyn Ask)> =
            peers[..count].iter_mut().map(|(name, peer)| ((*name).to_owned(), &mut **peer as &mut dyn Ask)).collect();
        let mut root_at = |height: Height| history.get(usize::try_from(HEIGHTS - 1 - height.0).unwrap()).copied();
        let mut from = Asked::<Blake3>::new(&mut asked, &mut root_at);
        let done = store.mend(&full(&store), &mut from).unwrap();
        let gave: BTreeMap<String, Gave> = from.gave().map(|(name, gave)| (name.to_owned(), gave.clone())).collect();
        for liar in ["empty", "flipped", "endless", "other"] {
            assert!(matches!(gave[liar], Gave::Misbehaved(_)), "{liar}: {:?}", gave[liar]);
        }
        assert!(matches!(gave["busy"], Gave::Nothing(_)));
        assert_eq!(done.left.is_empty(), with_honest, "{done:?}");
        assert_eq!(done.supplied_entries > 0, with_honest, "{done:?}");
        if with_honest {
            assert_eq!(contents(&store.view()), right);
            assert!(full(&store).is_empty());
        }
    }
}

/// A peer whose questions are counted.
struct Counted(Peer, u32);

impl Ask for Counted {
    fn ask(&mut self, request: &Request) -> Result<Response, Silence> {
        self.1 += 1;
        self.0.ask(request)
    }
}

/// spec: CHECK-9. A piece that takes more questions than a peer is asked for one is not had from it; nor is one of which it
/// proves more than was lost.
#[test]
fn a_peer_is_asked_so_many_questions_for_a_piece_and_no_more() {
    let store = chain(&MemoryFiles::new(), 0);
    let (version, namespace) = ((store.height().unwrap(), store.root()), Namespace::new("accounts").unwrap());
    let count = store.view().scan(&namespace, KeyRange::all()).count() as u64;
    let mut peer = Counted(Peer::of(store), 0);
    let mut gives = |count, bytes| {
        let totals = Totals { count, bytes };
        let wanted = Wanted { version, namespace: namespace.clone(), range: KeyRange::all(), totals };
        let before = peer.1;
        let mut peers: Vec<(String, &mut dyn Ask)> = vec![("peer".to_owned(), &mut peer)];
        let mut root_at = |_: Height| None;
        let mut from = Asked::<Blake3>::new(&mut peers, &mut root_at);
        from.offer(&wanted, &mut |_| panic!("it is not all of it"));
        let gave = from.gave().map(|(_, gave)| gave.clone()).collect::<Vec<_>>();
        let [Gave::Nothing(why)] = &gave[..] else { panic!("{gave:?}") };
        (why.clone(), peer.1 - before)
    };
    let (why, asked) = gives(count, 1 << 20);
    assert!(why.contains("more than 256 questions") && asked == 256, "{why}, {asked} for {count}");
    let (why, asked) = gives(3, 100);
    assert!(why.contains("more entries") && asked <= 3, "{why}, {asked}");
}
