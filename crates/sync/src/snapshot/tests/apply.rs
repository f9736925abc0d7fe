//! Chunks as they come: in order and out of it, twice, unasked, and from whomever.

use super::*;

/// spec: SNAP-7, SNAP-14. All chunks in order give the state, and every figure on the way is exact.
#[test]
fn chunks_in_order_give_the_state_and_progress_is_exact() {
    let made = Made::new::<Blake3>(state(500), 700);
    let mut restore = made.accepted::<Blake3>(&MemoryFiles::new());
    assert_eq!(restore.target(), Some((HEIGHT, made.root)));
    assert_eq!(restore.progress().total, None);
    for index in 0..made.plan.chunks() {
        assert!(!restore.is_complete());
        assert_eq!(restore.apply(index, &made.wire(index), "peer"), ChunkVerdict::Accept);
        let progress = restore.progress();
        assert_eq!((progress.chunks_done, progress.chunks), (index + 1, made.plan.chunks()));
        assert_eq!(progress.total, Some(made.plan.totals()));
    }
    assert_eq!(restore.progress().done, made.plan.totals());
    assert_eq!(received(&mut restore), made.state);
    restore.clear().unwrap();
    assert_eq!((restore.target(), restore.progress()), (None, RestoreProgress::default()));
}

/// spec: SNAP-5. An empty state is one page and nothing else.
#[test]
fn an_empty_state_is_one_page() {
    let made = Made::new::<Blake3>(State::new(), 500);
    assert_eq!((made.plan.pages(), made.plan.chunks()), (1, 1));
    let mut restore = made.with_chunks::<Blake3>(&MemoryFiles::new(), 1);
    assert!(restore.is_complete() && received(&mut restore).is_empty());
    // A page that says so of another state is refused.
    let full = Made::new::<Blake3>(state(3), 500);
    assert_bad(&full.accepted::<Blake3>(&MemoryFiles::new()).apply(0, &made.wire(0), "liar"), 0, "liar");
}

/// S-01, SS-17. Each single bit of each chunk, page or not, matters; a bad chunk is asked for again, its sender is
/// rejected, and nothing of it is written.
#[test]
fn s01_every_flipped_bit_of_a_chunk_is_refused() {
    let made = Made::new::<Blake3>(state(60), 400);
    let limits = RestoreLimits { bad_chunks_max: u32::MAX, bad_first_pages_max: u32::MAX };
    let files = MemoryFiles::new();
    let mut restore = Restore::<Blake3>::open(Arc::new(files.clone()), made.params.clone(), limits).unwrap();
    assert_eq!(restore.offer(&made.offer, made.root.as_bytes()), OfferVerdict::Accept);
    for index in 0..made.plan.chunks() {
        let (wire, before) = (made.wire(index), files.image());
        for bit in 0..wire.len() * 8 {
            let mut flipped = wire.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_bad(&restore.apply(index, &flipped, "liar"), index, "liar");
        }
        for len in 0..wire.len() {
            assert_bad(&restore.apply(index, &wire[..len], "liar"), index, "liar");
        }
        assert_bad(&restore.apply(index, &[&wire[..], &[0]].concat(), "liar"), index, "liar");
        assert_eq!(files.image(), before, "nothing bad is written");
        assert_eq!(restore.apply(index, &wire, "liar"), ChunkVerdict::Accept, "what is true is taken from anybody");
    }
    assert_eq!(received(&mut restore), made.state);
}

/// SS-17, S-01. The same through compression: the flipped bit is in what travels.
#[test]
fn ss17_a_flipped_bit_in_a_compressed_chunk_is_refused() {
    let made = Made::new::<Blake3>(state(300), 4000);
    let index = made.plan.pages();
    let mut restore = made.with_chunks::<Blake3>(&MemoryFiles::new(), index);
    let wire = pack(&made.raw[index as usize], 3).unwrap();
    assert_eq!(wire[0], 1, "it compresses");
    for at in [0, 1, 5, 6, 9, wire.len() / 2, wire.len() - 1] {
        let mut flipped = wire.clone();
        flipped[at] ^= 4;
        let verdict = restore.apply(index, &flipped, "liar");
        assert_bad(&verdict, index, "liar");
    }
    assert_eq!(restore.apply(index, &wire, "honest"), ChunkVerdict::Accept);
}

/// SS-19, S-10. A true chunk in the place of another is as bad as any.
#[test]
fn ss19_a_true_chunk_in_the_place_of_another_is_refused() {
    let made = Made::new::<Blake3>(state(400), 700);
    let chunks = made.plan.chunks();
    for index in 0..chunks {
        let mut restore = made.with_chunks::<Blake3>(&MemoryFiles::new(), index);
        for other in (0..chunks).filter(|other| *other != index) {
            let verdict = restore.apply(index, &made.wire(other), "liar");
            if index > 0 {
                assert_bad(&verdict, index, "liar");
            } else if restore.target().is_none() {
                // After a few bad first pages the snapshot itself is given up.
                restore = made.accepted(&MemoryFiles::new());
            }
        }
        assert_eq!(restore.apply(index, &made.wire(index), "honest"), ChunkVerdict::Accept);
    }
}

/// SS-20, S-10. A second copy changes nothing, whatever is in it.
#[test]
fn ss20_a_duplicate_is_accepted_and_changes_nothing() {
    let made = Made::new::<Blake3>(state(400), 700);
    let files = MemoryFiles::new();
    let end = made.plan.chunks() - 1;
    let mut restore = made.with_chunks::<Blake3>(&files, end);
    let (before, progress) = (files.image(), restore.progress());
    for index in 0..end {
        assert_eq!(restore.apply(index, &made.wire(index), "again"), ChunkVerdict::Accept);
        assert_eq!(restore.apply(index, b"rubbish", "again"), ChunkVerdict::Accept);
    }
    assert_eq!((files.image(), restore.progress()), (before, progress));
}

/// SS-21, S-10, spec: SNAP-15. Whatever the order: what comes before it can be checked is sent back without blame, and the end is the
/// same. An engine that gives out the least missing chunk first is never sent in circles.
#[test]
fn ss21_any_order_ends_in_the_same_state() {
    let made = Made::new::<Blake3>(state(400), 700);
    let chunks = made.plan.chunks();
    for seed in 0..20u32 {
        let mut order: Vec<u32> = (0..chunks).collect();
        order.sort_by_key(|index| HashKind::Blake3.hash(&[seed.to_le_bytes(), index.to_le_bytes()].concat()));
        let mut restore = made.accepted::<Blake3>(&MemoryFiles::new());
        let mut rounds = 0;
        while !order.is_empty() {
            rounds += 1;
            assert!(rounds <= made.plan.pages() + 2, "seed {seed}: every round proves a page, and the last the rest");
            order.retain(|index| match restore.apply(*index, &made.wire(*index), "peer") {
                ChunkVerdict::Accept => false,
                ChunkVerdict::Retry { refetch, reject_senders, .. } => {
                    assert!(refetch.is_empty() && reject_senders.is_empty(), "coming early is no crime");
                    true
                }
                other => panic!("seed {seed}, chunk {index}: {other:?}"),
            });
        }
        assert_eq!(received(&mut restore), made.state, "seed {seed}");
    }
}

/// SS-22.
#[test]
fn ss22_an_empty_chunk_is_bad() {
    let made = Made::new::<Blake3>(state(100), 700);
    for index in [0, made.plan.pages()] {
        for empty in [&[][..], &[0], &[1], &[1, 0, 0, 0, 0]] {
            let mut restore = made.with_chunks::<Blake3>(&MemoryFiles::new(), index);
            assert_bad(&restore.apply(index, empty, "liar"), index, "liar");
        }
    }
}

/// S-02, S-10. A chunk nobody asked for: beyond the last, or of no snapshot at all.
#[test]
fn s02_a_chunk_beyond_the_last_or_without_an_offer_changes_nothing() {
    let made = Made::new::<Blake3>(state(100), 700);
    let files = MemoryFiles::new();
    let mut restore = made.restore::<Blake3>(&files);
    assert!(matches!(restore.apply(0, &made.wire(0), "peer"), ChunkVerdict::Abort { .. }));
    let mut restore = made.accepted::<Blake3>(&files);
    for index in [made.plan.chunks(), made.plan.chunks() + 1, u32::MAX] {
        let ChunkVerdict::Retry { refetch, reject_senders, .. } = restore.apply(index, &made.wire(0), "liar") else {
            panic!("chunk {index} is taken")
        };
        assert_eq!((refetch, reject_senders), (vec![], vec!["liar".to_owned()]), "it cannot be fetched again");
    }
    assert_eq!(files.image().len(), 1);
}

/// SS-32: whatever a sender calls itself comes back as it was and is in no reason.
#[test]
fn ss32_a_sender_of_ten_kilobytes_is_named_as_it_is_and_in_no_reason() {
    let made = Made::new::<Blake3>(state(100), 700);
    let sender = format!("\u{1b}[31m\n{}", "x".repeat(10_000));
    let verdict = made.accepted::<Blake3>(&MemoryFiles::new()).apply(0, b"\0bad", &sender);
    assert_bad(&verdict, 0, &sender);
    let ChunkVerdict::Retry { reason, .. } = verdict else { unreachable!() };
    assert!(!reason.contains('\n') && reason.len() < 200, "{reason}");
}

/// SS-29. Entries of one byte and of the greatest size make the round trip, each in its place.
#[test]
fn ss29_the_smallest_and_the_greatest_entries_round_trip() {
    let mut state = state(30);
    let entries = state.entry(name("a-name-of-thirty-two-bytes.in_al")).or_default();
    for (byte, key_len, value_len) in [(1, 1, 1), (2, 255, 1), (3, 1, 8 << 20), (4, 255, 8 << 20), (5, 254, 70_000)] {
        let key = Key::new(vec![byte; key_len]).unwrap();
        entries.insert(key, Value::new(vec![7; value_len]).unwrap());
    }
    let made = Made::new::<Blake3>(state, 64 << 10);
    let mut restore = made.accepted::<Blake3>(&MemoryFiles::new());
    for index in 0..made.plan.chunks() {
        let wire = pack(&made.raw[index as usize], 1).unwrap();
        assert_eq!(restore.apply(index, &wire, "peer"), ChunkVerdict::Accept, "chunk {index}");
    }
    assert_eq!(received(&mut restore), made.state);
}

/// S-03. Bad chunks for ever end the snapshot, and then it is the turn of the next.
#[test]
fn s03_bad_chunks_for_ever_end_the_snapshot() {
    let made = Made::new::<Blake3>(state(100), 700);
    let limits = RestoreLimits { bad_chunks_max: 5, ..RestoreLimits::default() };
    let mut restore = Restore::<Blake3>::open(Arc::new(MemoryFiles::new()), made.params.clone(), limits).unwrap();
    assert_eq!(restore.offer(&made.offer, made.root.as_bytes()), OfferVerdict::Accept);
    let pages = made.plan.pages();
    (0..pages).for_each(|page| assert_eq!(restore.apply(page, &made.wire(page), "peer"), ChunkVerdict::Accept));
    for _ in 1..5 {
        assert_bad(&restore.apply(pages, b"\0rubbish", "liar"), pages, "liar");
    }
    assert!(matches!(restore.apply(pages, b"\0rubbish", "liar"), ChunkVerdict::RejectSnapshot { .. }));
    assert!(matches!(restore.apply(pages, &made.wire(pages), "late"), ChunkVerdict::Abort { .. }));
    let next = Made::new::<Blake3>(state(99), 700);
    assert_eq!(restore.offer(&next.offer, next.root.as_bytes()), OfferVerdict::Accept);
}
