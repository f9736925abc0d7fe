//! What is offered, and what may be believed of it: nothing but the root.

use super::*;
use keelstone_codec::Decode as _;
use keelstone_tree::Sha256;

/// The verdict on a changed offer, which must leave nothing behind unless it was accepted.
fn verdict(change: impl FnOnce(&mut Offer)) -> OfferVerdict {
    let made = Made::new::<Blake3>(state(50), 500);
    let (files, mut offer) = (MemoryFiles::new(), made.offer.clone());
    change(&mut offer);
    let mut restore = made.restore::<Blake3>(&files);
    let verdict = restore.offer(&offer, made.root.as_bytes());
    if verdict != OfferVerdict::Accept {
        assert!(files.image().is_empty() && restore.target().is_none(), "a refused offer leaves a trace");
    }
    verdict
}

fn with_metadata(change: impl FnOnce(&mut Metadata)) -> OfferVerdict {
    verdict(|offer| {
        let mut metadata = Made::new::<Blake3>(state(50), 500).plan.metadata().clone();
        change(&mut metadata);
        offer.metadata = metadata.to_bytes();
    })
}

#[track_caller]
fn assert_rejected(verdict: &OfferVerdict, word: &str) {
    let OfferVerdict::Reject { reason } = verdict else { panic!("{verdict:?}") };
    assert!(reason.contains(word), "{reason}");
}

/// spec: SNAP-14. An offer that follows from the root is accepted.
#[test]
fn an_honest_offer_is_accepted() {
    assert_eq!(verdict(|_| {}), OfferVerdict::Accept);
}

/// SS-02, S-14.
#[test]
fn ss02_an_unknown_format_is_rejected_as_a_format() {
    for format in [0, FORMAT + 1, 9999, u32::MAX] {
        assert_eq!(verdict(|offer| offer.format = format), OfferVerdict::RejectFormat);
    }
}

/// SS-03.
#[test]
fn ss03_metadata_that_is_cut_or_garbage_or_too_long_is_rejected() {
    let whole = Made::new::<Blake3>(state(50), 500).offer.metadata;
    for len in 0..whole.len() {
        assert_rejected(&verdict(|offer| offer.metadata.truncate(len)), "metadata");
    }
    assert_rejected(&verdict(|offer| offer.metadata.push(0)), "1 bytes follow");
    assert_rejected(&verdict(|offer| offer.metadata = vec![0xff; 200]), "metadata");
}

/// SS-04. There is one encoding, so a second one does not decode: no length is free and no integer has two forms.
#[test]
fn ss04_metadata_has_no_second_encoding() {
    let made = Made::new::<Blake3>(state(50), 500);
    for at in 0..made.offer.metadata.len() {
        for bit in 0..8 {
            let mut bytes = made.offer.metadata.clone();
            bytes[at] ^= 1 << bit;
            let read = <Metadata as keelstone_codec::Decode>::from_bytes(&bytes).ok();
            if let Some(read) = &read {
                assert_eq!(read.to_bytes(), bytes, "a second encoding was read");
            }
            // Whether k is true nobody can tell before the pages are there; all else is known.
            let pages = made.plan.pages();
            let only_k_differs = read.is_some_and(|read| Metadata { pages, ..read } == *made.plan.metadata());
            let accepted = verdict(|offer| offer.metadata = bytes) == OfferVerdict::Accept;
            assert_eq!(accepted, only_k_differs, "byte {at}, bit {bit}");
        }
    }
}

/// SS-05.
#[test]
fn ss05_another_chain_is_rejected() {
    let other = ChainId::new("test-2").unwrap();
    assert_rejected(&with_metadata(|metadata| metadata.chain_id = other), "test-2");
}

/// A snapshot cut by another W or hashed otherwise shares nothing with ours.
#[test]
fn another_weight_or_hasher_is_rejected() {
    assert_rejected(&with_metadata(|metadata| metadata.chunk_weight_max = 501), "501");
    assert_rejected(&with_metadata(|metadata| metadata.hasher = HashKind::Sha256), "sha256");
}

/// SS-06.
#[test]
fn ss06_another_height_in_the_metadata_is_rejected() {
    assert_rejected(&with_metadata(|metadata| metadata.height = Height(8)), "height 8");
}

/// S-07. Heights that no block has.
#[test]
fn s07_a_height_no_block_has_is_rejected() {
    for height in [0, 1 << 63, u64::MAX] {
        let made = Made::new::<Blake3>(state(50), 500);
        let metadata = Metadata { height: Height(height), ..made.plan.metadata().clone() };
        let offer = offer(&made.params, &metadata, made.root);
        let verdict = made.restore::<Blake3>(&MemoryFiles::new()).offer(&offer, made.root.as_bytes());
        assert_rejected(&verdict, "height");
        // spec: SNAP-6. None can follow the last there is, so it is not read at all, whoever reads it.
        assert_eq!(Metadata::from_bytes(&metadata.to_bytes()).is_ok(), height < u64::MAX);
    }
}

/// SS-07. What is hashed is known to both sides, so a hash that does not follow was made up.
#[test]
fn ss07_a_hash_that_does_not_follow_from_the_app_hash_rejects_its_senders() {
    for hash in [vec![], vec![0; 32], vec![7; 1000], Made::new::<Blake3>(state(50), 500).root.as_bytes().to_vec()] {
        let verdict = verdict(|offer| offer.hash = hash);
        assert!(matches!(verdict, OfferVerdict::RejectSender { .. }), "{verdict:?}");
    }
}

/// spec: SNAP-4. The hash that names a snapshot covers what it is of, and nothing else.
#[test]
fn the_hash_covers_chain_height_root_and_weight() {
    let params = params::<Blake3>(500);
    let [root, other_root] = [Root(HashKind::Blake3.hash(b"a")), Root(HashKind::Blake3.hash(b"b"))];
    let other_chain = SnapshotParams { chain_id: ChainId::new("test-2").unwrap(), ..params.clone() };
    let other_weight = SnapshotParams { chunk_weight_max: 501, ..params.clone() };
    let hashes = [
        snapshot_hash(&params, HEIGHT, root),
        snapshot_hash(&params, HEIGHT, other_root),
        snapshot_hash(&params, Height(8), root),
        snapshot_hash(&other_chain, HEIGHT, root),
        snapshot_hash(&other_weight, HEIGHT, root),
    ];
    let different: std::collections::BTreeSet<_> = hashes.iter().collect();
    assert_eq!(different.len(), hashes.len());
}

/// SS-08, S-08.
#[test]
fn ss08_an_app_hash_that_is_no_root_is_rejected() {
    let made = Made::new::<Blake3>(state(50), 500);
    for app_hash in [&[][..], &[0; 31], &[0; 33], &[0; 64]] {
        let verdict = made.restore::<Blake3>(&MemoryFiles::new()).offer(&made.offer, app_hash);
        assert_rejected(&verdict, "app hash");
    }
}

/// SS-09, S-14.
#[test]
fn ss09_an_offer_without_chunks_is_rejected() {
    assert_rejected(&verdict(|offer| offer.chunks = 0), "chunks");
    assert_rejected(&with_metadata(|metadata| (metadata.chunks, metadata.pages) = (0, 0)), "pages and chunks");
    assert_rejected(&with_metadata(|metadata| metadata.pages = 0), "pages and chunks");
}

/// SS-10, S-14. The count is refused before anything is reserved for it.
#[test]
fn ss10_four_billion_chunks_are_rejected() {
    let made = Made::new::<Blake3>(state(50), 500);
    for chunks in [CHUNKS_MAX + 1, u32::MAX] {
        let metadata = Metadata { chunks, ..made.plan.metadata().clone() };
        let offer = offer(&made.params, &metadata, made.root);
        let mut restore = made.restore::<Blake3>(&MemoryFiles::new());
        assert_rejected(&restore.offer(&offer, made.root.as_bytes()), "chunks");
    }
}

/// SS-11. Numbers that agree with each other but not with the root are found out with the last page.
#[test]
fn ss11_chunks_other_than_the_pages_prove_reject_the_snapshot() {
    assert_rejected(&verdict(|offer| offer.chunks += 1), "chunks");
    let made = Made::new::<Blake3>(state(400), 500);
    let (k, n) = (made.plan.pages(), made.plan.chunks());
    assert!(k > 2, "a skeleton of several pages");
    for (pages, chunks) in [(k, n + 1), (k, n - 1), (k + 1, n), (k + 1, n + 1), (k - 1, n), (1, n), (n, n), (k, k)] {
        let metadata = Metadata { pages, chunks, ..made.plan.metadata().clone() };
        let offer = offer(&made.params, &metadata, made.root);
        let files = MemoryFiles::new();
        let mut restore = made.restore::<Blake3>(&files);
        assert_eq!(restore.offer(&offer, made.root.as_bytes()), OfferVerdict::Accept);
        let verdicts = (0..k.min(pages)).map(|page| restore.apply(page, &made.wire(page), "peer"));
        let last = verdicts.filter(|verdict| *verdict != ChunkVerdict::Accept).last();
        assert!(matches!(last, Some(ChunkVerdict::RejectSnapshot { .. })), "k {pages}, n {chunks}: {last:?}");
        assert!(files.image().is_empty() && restore.target().is_none(), "nothing of it is left");
        assert_eq!(restore.offer(&made.offer, made.root.as_bytes()), OfferVerdict::Accept, "the honest one comes next");
    }
}

/// SS-12, S-14. Megabytes of metadata are not even looked at.
#[test]
fn ss12_metadata_of_megabytes_is_rejected_by_its_length() {
    assert_rejected(&verdict(|offer| offer.metadata = vec![0x41; 3_900_000]), "3900000");
}

/// SS-15. The same snapshot again keeps what was proven; another one, or another root, keeps nothing.
#[test]
fn ss15_the_same_offer_again_keeps_chunks_and_another_discards_them() {
    let made = Made::new::<Blake3>(state(400), 500);
    let files = MemoryFiles::new();
    let mut restore = made.with_chunks::<Blake3>(&files, made.plan.chunks() - 3);
    let progress = restore.progress();
    assert_eq!(restore.offer(&made.offer, made.root.as_bytes()), OfferVerdict::Accept);
    assert_eq!(restore.progress(), progress);

    // Over a restart too, whatever is offered first that is refused.
    drop(restore);
    let mut restore = made.restore::<Blake3>(&files);
    assert_eq!(
        restore.offer(&Offer { format: 9, ..made.offer.clone() }, made.root.as_bytes()),
        OfferVerdict::RejectFormat
    );
    assert_eq!(restore.offer(&made.offer, made.root.as_bytes()), OfferVerdict::Accept);
    assert_eq!(restore.progress(), progress);

    let other = Made::new::<Blake3>(state(300), 500);
    assert_eq!(restore.offer(&other.offer, other.root.as_bytes()), OfferVerdict::Accept);
    assert_eq!((restore.progress().chunks_done, files.image().len()), (0, 1));
}

/// A chain with the other hasher restores in the same way.
#[test]
fn a_chain_that_hashes_with_sha256_restores_too() {
    let made = Made::new::<Sha256>(state(200), 500);
    let mut restore = made.with_chunks::<Sha256>(&MemoryFiles::new(), made.plan.chunks());
    assert_eq!(received(&mut restore), made.state);
}
