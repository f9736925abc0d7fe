//! What holds for every state.

use super::*;
use keelstone_tree::{Sha256, Write};
use proptest::prelude::*;

fn round_trip<H: Hasher>(state: State, weight: u32, level: i32) {
    let made = Made::new::<H>(state, weight);
    let mut restore = made.accepted::<H>(&MemoryFiles::new());
    let skeleton = made.skeleton::<H>();
    for index in 0..made.plan.chunks() {
        let raw = &made.raw[index as usize];
        assert!(raw.len() <= super::super::cut::chunk_bytes_max(weight) as usize);
        assert_eq!(restore.apply(index, &pack(raw, level).unwrap(), "peer"), ChunkVerdict::Accept);
        assert_eq!(skeleton.name(index), made.plan.name(index), "both sides know a chunk by the same name");
    }
    assert_eq!(received(&mut restore), made.state);
}

proptest! {
    /// spec: SNAP-1, SNAP-2, SNAP-5, SNAP-7. Whatever the state and however small W, every chunk is accepted and the
    /// state comes out, under both hashers.
    #[test]
    fn every_state_makes_the_round_trip(state in states(), weight in 1u32..32_000, level in 0..4) {
        round_trip::<Blake3>(state.clone(), weight, level);
        round_trip::<Sha256>(state, weight, level);
    }

    /// spec: SNAP-7. No change of a byte of any chunk is accepted, by the verifier alone too.
    #[test]
    fn no_changed_byte_is_accepted(state in states(), weight in 1u32..4800, at in any::<prop::sample::Index>(), byte in 1u8..) {
        let made = Made::new::<Blake3>(state, weight);
        let skeleton = made.skeleton::<Blake3>();
        for index in 0..made.plan.chunks() {
            let mut raw = made.raw[index as usize].clone();
            prop_assert!(skeleton.check(index, &raw).is_ok());
            let at = at.index(raw.len());
            raw[at] ^= byte;
            prop_assert!(skeleton.check(index, &raw).is_err(), "byte {} of chunk {}", at, index);
        }
    }

    /// SS-51 for what is made here: however a state came about, its snapshot is the same, every byte of it.
    #[test]
    fn ss51_equal_states_of_different_histories_have_equal_snapshots(
        state in states(), noise in states(), cut in 1usize..30, weight in 1u32..16_000,
    ) {
        let straight = Made::new::<Blake3>(state.clone(), weight);
        // Everything of the noise comes first and goes again, the rest in pieces and backwards.
        let mut tree = MemoryTree::<Blake3>::new();
        let writes = |state: &State, keep: bool| -> Vec<_> {
            state.iter().flat_map(|(name, entries)| entries.iter().map(move |(key, value)| {
                (name.clone(), key.clone(), keep.then(|| value.clone()))
            })).collect()
        };
        tree.apply(&writes(&noise, true).into_iter().collect());
        let mut all = writes(&state, true);
        all.reverse();
        for piece in all.chunks(cut) {
            tree.apply(&piece.iter().cloned().collect());
        }
        let gone = writes(&noise, false).into_iter().filter(|(name, key, _)| {
            state.get(name).is_none_or(|entries| !entries.contains_key(key))
        });
        tree.apply(&gone.collect());
        let mut found = State::new();
        for (name, _) in tree.namespaces() {
            found.insert(name.clone(), tree.scan(&name, KeyRange::all()).map(Result::unwrap).collect());
        }
        let winding = Made::new::<Blake3>(found, weight);
        prop_assert_eq!(&winding.raw, &straight.raw);
        prop_assert_eq!(&winding.offer, &straight.offer);
        for (index, raw) in (0..).zip(&straight.raw) {
            prop_assert_eq!(winding.plan.name(index), straight.plan.name(index));
            prop_assert_eq!(pack(raw, 3).unwrap(), pack(&winding.raw[index as usize], 3).unwrap());
        }
    }
}

/// spec: SNAP-2, SNAP-4. One change leaves the chunks of other groups as they were, names and bytes.
#[test]
fn one_change_leaves_the_chunks_of_other_groups_alone() {
    let before = Made::new::<Blake3>(state(20_000), 600);
    let mut changed = before.state.clone();
    let (namespace, entries) = changed.iter_mut().nth(3).unwrap();
    let key = entries.keys().next().unwrap().clone();
    // A longer value shifts every border behind it, as far as a shift can go.
    entries.insert(key.clone(), Value::new(vec![1; 150]).unwrap());
    let namespace = namespace.clone();
    let after = Made::new::<Blake3>(changed, 600);
    let names = |made: &Made| -> std::collections::BTreeMap<_, _> {
        (made.plan.pages()..made.plan.chunks())
            .map(|index| (made.plan.name(index), made.raw[index as usize].clone()))
            .collect()
    };
    let (before, after) = (names(&before), names(&after));
    let changed = after.iter().filter(|(name, _)| !before.contains_key(*name)).count();
    assert!(
        changed <= 64 && after.len() > 1000,
        "{changed} of {} chunks changed with {namespace}/{key:?}",
        after.len()
    );
    for (name, raw) in &after {
        assert!(before.get(name).is_none_or(|other| other == raw), "equal names, equal bytes");
    }
}

/// A version that is not the one that was planned is noticed, not packed.
#[test]
fn a_plan_reads_from_no_other_version() {
    let made = Made::new::<Blake3>(state(400), 700);
    let mut other = made.state.clone();
    let entries = other.values_mut().last().unwrap();
    let last = entries.keys().last().unwrap().clone();
    entries.remove(&last);
    let version = Grown::new::<Blake3>(&other);
    let bodies: Vec<_> = (0..made.plan.chunks()).map(|index| made.plan.body(&version, index)).collect();
    assert!(matches!(bodies.last(), Some(Err(PlanError::OtherVersion { .. }))));
    assert!(matches!(Plan::of(&version, &made.params, HEIGHT, made.root), Err(PlanError::OtherVersion { .. })));
    let empty = MemoryTree::<Blake3>::new()
        .apply(&Diff::new(vec![(name("a"), vec![Write { key: Key::new([1]).unwrap(), value: None }])]).unwrap());
    assert_eq!(Plan::of(&Grown::new::<Blake3>(&State::new()), &made.params, HEIGHT, empty).unwrap().chunks(), 1);
}

/// spec: SNAP-1. No chunk has more bytes than W, however the state is cut, and larger entries stand alone.
#[test]
fn no_chunk_has_more_bytes_than_its_weight() {
    for weight in [64, 300, 1000, 5000, 1 << 20] {
        let made = Made::new::<Blake3>(state(700), weight);
        for (index, raw) in (0..).zip(&made.raw) {
            let entry = index >= made.plan.pages() && made.skeleton::<Blake3>().chunk_totals(index).count == 1;
            assert!(raw.len() <= weight.max(96 + 20) as usize || entry, "{} bytes at {weight}", raw.len());
        }
    }
}

/// spec: SNAP-1. A chunk is many units where keys part evenly: none is heavier than U but single entries.
#[test]
fn chunks_are_cut_into_units_that_are_much_smaller() {
    for (weight, unit) in [(8_000u32, 1_000u64), (1 << 20, 64 << 10), (4 << 20, 128 << 10)] {
        let entries = (0..2 * weight / 160).map(|number| {
            let key = HashKind::Blake3.hash(&number.to_le_bytes()).0.to_vec();
            (Key::new(key).unwrap(), Value::new(vec![7; 100]).unwrap())
        });
        let version = Grown::new::<Blake3>(&State::from([(name("even"), entries.collect())]));
        let plan = Plan::of(&version, &params::<Blake3>(weight), HEIGHT, version.root()).unwrap();
        let units = u32::try_from(plan.units()).unwrap();
        assert!((0..units).all(|number| plan.unit_bytes_max(number).unwrap() <= unit));
        let chunks = u64::from(plan.chunks() - plan.pages());
        assert!(
            u64::from(units) >= chunks * u64::from(weight) / unit / 2,
            "{units} units in {chunks} chunks of {weight}"
        );
    }
}

/// spec: SNAP-6. Metadata has one encoding, and stays within its limit for the longest chain id.
#[test]
fn metadata_has_one_encoding_within_its_limit() {
    let version = Grown::new::<Blake3>(&state(100));
    let long = ChainId::new(&"c".repeat(50)).unwrap();
    let params = SnapshotParams { chain_id: long, ..params::<Blake3>(200) };
    let plan = Plan::of(&version, &params, HEIGHT, version.root()).unwrap();
    let bytes = plan.metadata().to_bytes();
    assert!(bytes.len() <= METADATA_BYTES_MAX);
    assert_eq!(<Metadata as keelstone_codec::Decode>::from_bytes(&bytes).as_ref(), Ok(plan.metadata()));
}
