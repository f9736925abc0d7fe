//! As many units as an adversary can buy.

use super::*;

/// A comb: long spines of keys, each tooth a small unit of its own because what hangs at the end of its spine is heavy.
fn comb(spines: u8, heavy: usize) -> State {
    let mut entries = BTreeMap::new();
    for spine in 0..spines {
        for len in 1..254usize {
            for bit in 1..9 {
                let mut key = vec![0xff; len];
                key[0] = spine;
                key.push(!(0xffu8 >> (bit - 1)));
                entries.insert(Key::new(key).unwrap(), Value::new(vec![bit; 1]).unwrap());
            }
        }
        for end in [0xfe, 0xff] {
            let mut key = vec![0xff; 255];
            (key[0], key[254]) = (spine, end);
            entries.insert(Key::new(key).unwrap(), Value::new(vec![1; heavy]).unwrap());
        }
    }
    State::from([(name("comb"), entries)])
}

/// S-16. A skeleton of 300,000 units is cut, paged, proven and restored.
#[test]
fn s16_a_comb_of_three_hundred_thousand_units_makes_the_round_trip() {
    let spines = 150;
    let state = comb(spines, 4000);
    let count = state.values().map(|entries| entries.len()).sum::<usize>();
    let made = Made::new::<Blake3>(state, 4000);
    assert!(made.plan.units() > 290_000 && made.plan.units() <= count, "{} units", made.plan.units());
    assert!(made.plan.pages() > 1000);
    let files = MemoryFiles::new();
    let mut restore = made.with_chunks::<Blake3>(&files, made.plan.chunks());
    assert_eq!(restore.progress().done, made.plan.totals());
    assert_eq!(received(&mut restore), made.state);
}

/// S-16. Where even that is not enough, the limit has a name.
#[test]
fn s16_a_state_beyond_a_limit_is_refused_by_its_name() {
    let state = comb(60, 100);
    let version = Grown::new::<Blake3>(&state);
    let error = Plan::of(&version, &params::<Blake3>(100), HEIGHT, version.root()).unwrap_err();
    assert!(error.to_string().contains("chunks, the limit is 100000"), "{error}");
}

/// S-16, spec: SNAP-2. A skeleton has as many nodes as it may have and no more; that limit has a name too.
#[test]
fn s16_a_skeleton_has_no_more_nodes_than_it_may() {
    use super::super::cut::{Child, Cut, Shape};
    use keelstone_tree::{Level, Totals};
    let child = Child { hash: keelstone_codec::Hash([7; 32]), totals: Totals { count: 1, bytes: 2 } };
    let mut cut = Cut::new(100, Totals { count: 2, bytes: 4 });
    let mut push = || cut.push(None, Level::Entries, Shape::Inner { crit: 1, children: [child, child] });
    assert!((0..NODES_MAX).all(|_| push().is_ok()));
    let error = push().unwrap_err();
    assert!(error.to_string().contains("nodes in its skeleton, the limit is 2097152"), "{error}");
}

/// S-16, spec: SNAP-1. Teeth above something heavy are no cheap nodes of a skeleton: below a weight of W a comb is opened a few
/// levels deep, however long it is.
#[test]
fn s16_a_comb_within_a_chunk_opens_a_few_nodes() {
    let state = comb(1, 70_000);
    let made = Made::new::<Blake3>(state, 1 << 20);
    assert!((3..=2 * 8 + 2).contains(&made.plan.units()), "{} units", made.plan.units());
    let mut restore = made.with_chunks::<Blake3>(&MemoryFiles::new(), made.plan.chunks());
    assert_eq!(received(&mut restore), made.state);
}
