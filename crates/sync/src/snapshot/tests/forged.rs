//! Forgeries that agree with themselves: skeletons of other states, of no tree, of trees too deep, and units that are
//! almost right.
#![expect(clippy::cast_possible_truncation, reason = "numbers in tests are small")]

use super::super::{body, page};
use super::*;
use keelstone_codec::{Hash, put_varint};
use keelstone_tree::{Bulk, Level, Totals, preimage};

/// Keys and values.
type Entries = Vec<(Vec<u8>, Vec<u8>)>;

/// The entries of the first chunk of entries of a snapshot with one namespace, to be changed.
fn single() -> (Made, Entries) {
    let entries = (0..40u32).map(|number| {
        let key = HashKind::Blake3.hash(&number.to_le_bytes()).0[..4].to_vec();
        (Key::new(key).unwrap(), Value::new(vec![number as u8 + 1; 10]).unwrap())
    });
    let made = Made::new::<Blake3>(State::from([(name("only"), entries.collect())]), 800);
    let mut found = Vec::new();
    let index = made.plan.pages();
    let skeleton = made.skeleton::<Blake3>();
    let checked = skeleton.check(index, &made.raw[index as usize]).unwrap();
    checked
        .entries(|_, key, value| {
            found.push((key.to_vec(), value.to_vec()));
            Ok::<_, Infallible>(())
        })
        .unwrap();
    assert!(found.len() > 3);
    (made, found)
}

fn encode(entries: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    entries.iter().for_each(|(key, value)| body::put_entry(&mut out, key, value));
    out
}

fn refused(made: &Made, raw: &[u8]) -> Fault {
    let index = made.plan.pages();
    made.skeleton::<Blake3>().check(index, raw).expect_err("a forgery was taken").fault
}

/// SS-25.
#[test]
fn ss25_a_chunk_that_drops_a_key_is_refused() {
    let (made, entries) = single();
    assert!(made.skeleton::<Blake3>().check(made.plan.pages(), &encode(&entries)).is_ok());
    for drop in 0..entries.len() {
        let mut less = entries.clone();
        less.remove(drop);
        refused(&made, &encode(&less));
    }
}

/// SS-26. A key more, inside its range or outside.
#[test]
fn ss26_a_chunk_that_adds_a_key_is_refused() {
    let (made, entries) = single();
    for key in [vec![0], vec![0xff; 9], [entries[0].0.as_slice(), &[1]].concat()] {
        let mut more = entries.clone();
        more.push((key, vec![1]));
        more.sort();
        refused(&made, &encode(&more));
        // In the place of another, so that the count is right.
        more.retain(|(key, _)| *key != entries[2].0);
        refused(&made, &encode(&more));
    }
}

/// SS-28.
#[test]
fn ss28_keys_twice_or_out_of_order_are_refused() {
    let (made, mut entries) = single();
    entries[1] = entries[0].clone();
    assert!(matches!(refused(&made, &encode(&entries)), Fault::OutOfOrder(_)));
    let (made, mut entries) = single();
    entries.swap(0, 1);
    assert!(matches!(refused(&made, &encode(&entries)), Fault::OutOfOrder(_)));
}

/// A value under another key, and a byte moved from key to value: the sums stay, the hash does not.
#[test]
fn bytes_moved_between_keys_and_values_are_refused() {
    let (made, mut entries) = single();
    let (first, second) = (entries[0].1.clone(), entries[1].1.clone());
    (entries[0].1, entries[1].1) = (second, first);
    assert!(matches!(refused(&made, &encode(&entries)), Fault::Hash { .. }));
    let (made, mut entries) = single();
    let moved = entries[0].0.pop().unwrap();
    entries[0].1.insert(0, moved);
    assert!(matches!(refused(&made, &encode(&entries)), Fault::Hash { .. }));
}

/// SS-30, S-12. A whole snapshot of another state under a true root, with hashes that agree among themselves, ends at its
/// first page, and the honest one is accepted afterwards.
#[test]
fn ss30_a_forged_snapshot_of_a_true_height_ends_at_its_first_page() {
    let (truth, forged) = (Made::new::<Blake3>(state(300), 500), Made::new::<Blake3>(state(299), 500));
    let offer = offer(&truth.params, forged.plan.metadata(), truth.root);
    let files = MemoryFiles::new();
    let mut restore = truth.restore::<Blake3>(&files);
    assert_eq!(restore.offer(&offer, truth.root.as_bytes()), OfferVerdict::Accept, "nothing is wrong with it yet");
    assert_bad(&restore.apply(0, &forged.wire(0), "first liar"), 0, "first liar");
    assert_bad(&restore.apply(0, &forged.wire(0), "second liar"), 0, "second liar");
    let verdict = restore.apply(0, &forged.wire(0), "third liar");
    assert!(matches!(verdict, ChunkVerdict::RejectSnapshot { .. }), "{verdict:?}");
    assert!(files.image().is_empty(), "nothing of it is left");
    assert_eq!(restore.offer(&truth.offer, truth.root.as_bytes()), OfferVerdict::Accept);
    for index in 0..truth.plan.chunks() {
        assert_eq!(restore.apply(index, &truth.wire(index), "honest"), ChunkVerdict::Accept);
    }
    assert_eq!(received(&mut restore), truth.state);
}

/// SS-31, S-12. The last chunk cannot make a wrong root: it is refused like any other.
#[test]
fn ss31_the_last_chunk_cannot_make_another_root() {
    let made = Made::new::<Blake3>(state(300), 500);
    let last = made.plan.chunks() - 1;
    let mut restore = made.with_chunks::<Blake3>(&MemoryFiles::new(), last);
    let mut wire = made.wire(last);
    *wire.last_mut().unwrap() ^= 1;
    assert_bad(&restore.apply(last, &wire, "liar"), last, "liar");
    assert!(!restore.is_complete());
    let entries = restore.entries(|_, _, _| Ok::<_, Infallible>(()));
    assert!(matches!(entries, Err(EntriesError::Restore(RestoreError::Incomplete { .. }))));
    assert_eq!(restore.apply(last, &made.wire(last), "honest"), ChunkVerdict::Accept);
    assert!(restore.is_complete());
}

/// W of [`two_units`]: room for one node in a page.
pub(crate) const SMALL: u32 = 64;

/// The root, the two pages and the two units of a state whose two keys part at bit 1, under a node that says `crit`. They
/// differ in bit 8 as well.
pub(crate) fn two_units(crit: u16) -> (Root, [Vec<u8>; 4]) {
    let unit = |key: &[u8]| {
        let mut bulk = Bulk::<Blake3>::new(Level::Entries);
        bulk.entry(key, &[1; 60]).unwrap();
        (bulk.finish().unwrap(), encode(&[(key.to_vec(), vec![1; 60])]))
    };
    let (left, right) = (unit(&[0x00]), unit(&[0x81]));
    let hashes = [&left.0.hash, &right.0.hash];
    let totals = left.0.totals + right.0.totals;
    let entries = Blake3::hash_node(&preimage::inner(Level::Entries, crit, [left.0.totals, right.0.totals], hashes));
    let node = preimage::namespace(1, totals, &Blake3::hash(b"n"), &Blake3::hash(&entries.0));
    let mut first = Vec::new();
    put_varint(&mut first, totals.count);
    put_varint(&mut first, totals.bytes);
    first.push(1);
    name("n").encode(&mut first);
    entries.encode(&mut first);
    let mut second = crit.to_le_bytes().to_vec();
    put_varint(&mut second, left.0.totals.count);
    put_varint(&mut second, left.0.totals.bytes);
    left.0.hash.encode(&mut second);
    right.0.hash.encode(&mut second);
    (Root(Blake3::hash_node(&node)), [first, second, left.1, right.1])
}

/// SS-31. Two units whose keys do not part where their node says, under a root that commits to exactly that: of no
/// tree, and found where the chunks meet.
#[test]
fn ss31_a_root_of_no_tree_is_found_where_chunks_meet() {
    for (crit, is_tree) in [(1u16, true), (8, false)] {
        let (root, chunks) = two_units(crit);
        let metadata = Metadata {
            chain_id: ChainId::new("test-1").unwrap(),
            height: HEIGHT,
            chunk_weight_max: SMALL,
            hasher: HashKind::Blake3,
            pages: 2,
            chunks: 4,
        };
        let params = params::<Blake3>(SMALL);
        let mut restore =
            Restore::<Blake3>::open(Arc::new(MemoryFiles::new()), params.clone(), RestoreLimits::default()).unwrap();
        assert_eq!(restore.offer(&offer(&params, &metadata, root), root.as_bytes()), OfferVerdict::Accept);
        for (index, raw) in (0..).zip(&chunks) {
            assert_eq!(restore.apply(index, &pack(raw, 0).unwrap(), "peer"), ChunkVerdict::Accept, "chunk {index}");
        }
        let mut handed_out = 0;
        let found = restore.entries(|_, _, _| {
            handed_out += 1;
            Ok::<_, Infallible>(())
        });
        match found {
            Ok(()) => assert!(is_tree),
            Err(EntriesError::Restore(error)) => {
                assert!(!is_tree && handed_out == 1);
                assert!(matches!(error, RestoreError::Misplaced { index: 3, .. }), "{error}");
                assert!(matches!(error.verdict(), ChunkVerdict::RejectSnapshot { .. }));
            }
            Err(EntriesError::Taker(never)) => match never {},
        }
    }
}

/// A page of a state with one namespace, whose nodes an adversary makes; the root is then that of what it made.
struct Forgery {
    page: Vec<u8>,
    root: Root,
}

/// Puts nodes one below the other, each the left child of the one before, the last with a made-up left child. Hashes and
/// sums agree all the way up.
fn spine(crits: &[u16]) -> Forgery {
    let heavy = Totals { count: 1 << 20, bytes: 1 << 30 };
    let leaf = Totals { count: 1, bytes: 2 };
    let opaque = Hash([7; 32]);
    let (mut totals, mut hash) = (heavy, opaque);
    let mut nodes = Vec::new();
    for crit in crits.iter().rev() {
        let mut node = crit.to_le_bytes().to_vec();
        put_varint(&mut node, totals.count);
        put_varint(&mut node, totals.bytes);
        hash.encode(&mut node);
        opaque.encode(&mut node);
        nodes.push(node);
        hash = Blake3::hash_node(&preimage::inner(Level::Entries, *crit, [totals, leaf], [&hash, &opaque]));
        totals += leaf;
    }
    let namespace = preimage::namespace(1, totals, &Blake3::hash(b"n"), &Blake3::hash(&hash.0));
    let mut page = Vec::new();
    put_varint(&mut page, totals.count);
    put_varint(&mut page, totals.bytes);
    page.push(1);
    name("n").encode(&mut page);
    hash.encode(&mut page);
    page.extend(nodes.into_iter().rev().flatten());
    Forgery { page, root: Root(Blake3::hash_node(&namespace)) }
}

fn first_page(forgery: &Forgery, root: Root) -> Result<(), PageError> {
    let metadata = Metadata {
        chain_id: ChainId::new("test-1").unwrap(),
        height: HEIGHT,
        chunk_weight_max: 10 << 20,
        hasher: HashKind::Blake3,
        pages: 1,
        chunks: 2,
    };
    Skeleton::<Blake3>::new(root, &metadata).add_page(&forgery.page)
}

/// SS-59. Under a root that commits to it, a path is followed only as deep as keys can be; under any other root not at
/// all. Nothing recurses: the stack of this thread would not hold 100,000 calls.
#[test]
fn ss59_a_path_too_deep_for_keys_is_refused() {
    let run = || {
        let deep: Vec<u16> = (0..100_000u32).map(|level| (level / 50) as u16 + 1).collect();
        let forgery = spine(&deep);
        let error = first_page(&forgery, forgery.root).unwrap_err();
        assert!(matches!(error, PageError::Forged { fault: Fault::CriticalBit { .. }, .. }), "{error}");
        let error = first_page(&forgery, Root(Hash([1; 32]))).unwrap_err();
        assert!(matches!(error, PageError::Forged { fault: Fault::Hash { .. }, .. }), "the root comes first: {error}");

        // As skewed as keys allow: 9 bits for each of 255 bytes.
        let skewed: Vec<u16> = (1..9 * 255).collect();
        let forgery = spine(&skewed);
        let error = first_page(&forgery, forgery.root).unwrap_err();
        assert!(matches!(error, PageError::Forged { fault: Fault::Decode(_), .. }), "its end is still open: {error}");
        for crit in [0, 9 * 255, u16::MAX] {
            let forgery = spine(&[crit]);
            assert!(matches!(
                first_page(&forgery, forgery.root),
                Err(PageError::Forged { fault: Fault::CriticalBit { .. }, .. })
            ));
        }
    };
    std::thread::Builder::new().stack_size(256 << 10).spawn(run).unwrap().join().unwrap();
}

/// SS-59, S-04. Nodes beyond those that are open have no place in a page: there is no writing a child under a hash.
#[test]
fn s04_nodes_nobody_asked_for_are_refused() {
    let made = Made::new::<Blake3>(state(60), 8000);
    assert_eq!(made.plan.pages(), 1);
    let mut skeleton = Skeleton::<Blake3>::new(made.root, made.plan.metadata());
    for more in [&[0u8; 1][..], &made.raw[0], &[0; 100]] {
        let error = skeleton.add_page(&[&made.raw[0], more].concat()).unwrap_err();
        assert!(matches!(error, PageError::Forged { fault: Fault::Decode(_), .. }), "{error}");
        assert_eq!(skeleton.pages_done(), 0);
    }
    skeleton.add_page(&made.raw[0]).unwrap();
}

/// spec: SNAP-5. Totals that cannot be are refused before a hash is computed, whatever commits to them.
#[test]
fn totals_that_no_tree_has_are_refused() {
    for (count, bytes) in [(0, 1), (2, 3), (u64::MAX, u64::MAX), (1 << 63, u64::MAX)] {
        let mut page = Vec::new();
        put_varint(&mut page, count);
        put_varint(&mut page, bytes);
        let forgery = Forgery { page, root: Root(Hash([1; 32])) };
        let error = first_page(&forgery, forgery.root).unwrap_err();
        assert!(matches!(error, PageError::Forged { fault: Fault::ImpossibleTotals { .. }, .. }), "{error}");
    }
    // A left child that has more than both.
    let mut forgery = spine(&[5, 6]);
    let node = forgery.page.len() - (2 + 64);
    forgery.page[node] ^= 0x40;
    assert!(first_page(&forgery, forgery.root).is_err());
}

/// Every changed byte of every page is refused, and leaves the skeleton as it was.
#[test]
fn a_refused_page_leaves_no_trace() {
    let made = Made::new::<Blake3>(state(300), 500);
    let mut skeleton = Skeleton::<Blake3>::new(made.root, made.plan.metadata());
    for page in &made.raw[..made.plan.pages() as usize] {
        for at in 0..page.len() {
            let mut changed = page.clone();
            changed[at] ^= 0x10;
            let error = skeleton.add_page(&changed).unwrap_err();
            assert!(matches!(error, PageError::Forged { .. }), "byte {at}: {error}");
        }
        skeleton.add_page(page).unwrap();
    }
    assert!(skeleton.is_complete());
    assert_eq!(page::name(&made.raw[0]), skeleton.name(0));
}
