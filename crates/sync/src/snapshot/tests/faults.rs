//! Our own disk: full, failing, and without power at every step.

use super::*;
use keelstone_store::files::{Fault, FaultyFiles};

fn finish(made: &Made, files: &FaultyFiles, when: &str) {
    let mut restore = made.accepted::<Blake3>(files);
    for index in 0..made.plan.chunks() {
        assert_eq!(restore.apply(index, &made.wire(index), "peer"), ChunkVerdict::Accept, "{when}, chunk {index}");
    }
    assert_eq!(restore.progress().done, made.plan.totals(), "{when}");
    assert_eq!(received(&mut restore), made.state, "{when}");
}

/// Runs until the disk fails. Every answer up to there is ACCEPT, and the failure blames nobody.
fn run_until_failure(made: &Made, files: &FaultyFiles) -> Result<(), String> {
    let open = Restore::<Blake3>::open(Arc::new(files.clone()), made.params.clone(), RestoreLimits::default());
    let mut restore = open.map_err(|error| error.to_string())?;
    match restore.offer(&made.offer, made.root.as_bytes()) {
        OfferVerdict::Accept => {}
        OfferVerdict::Abort { reason } => return Err(reason),
        other => panic!("{other:?}"),
    }
    for index in 0..made.plan.chunks() {
        match restore.apply(index, &made.wire(index), "peer") {
            ChunkVerdict::Accept => {}
            ChunkVerdict::Abort { reason } => return Err(reason),
            other => panic!("chunk {index}: {other:?}"),
        }
    }
    Ok(())
}

/// S-13, spec: SNAP-16. The power goes at each change of the disk, and any part of what was not synced is there afterwards: the restore
/// goes on from it or anew, and ends in the state.
#[test]
fn s13_a_power_cut_at_every_change_loses_chunks_at_most() {
    let made = Made::new::<Blake3>(state(60), 500);
    let count = {
        let files = FaultyFiles::new(1);
        run_until_failure(&made, &files).unwrap();
        files.changes()
    };
    assert!(count > 20, "{count}");
    for cut in 0..count {
        let files = FaultyFiles::new(cut);
        files.fail_at(cut, Fault::PowerCut);
        run_until_failure(&made, &files).expect_err("the power went");
        for seed in 0..6 {
            let files = files.after_power_cut(seed);
            finish(&made, &files, &format!("cut at change {cut}, seed {seed}"));
        }
    }
}

/// S-13. A kill loses nothing: what was proven is there, is proven again, and counts.
#[test]
fn s13_a_kill_at_every_chunk_keeps_what_was_proven() {
    let made = Made::new::<Blake3>(state(200), 500);
    for killed_after in 0..made.plan.chunks() {
        let files = MemoryFiles::new();
        drop(made.with_chunks::<Blake3>(&files, killed_after));
        let mut restore = made.accepted::<Blake3>(&files);
        assert_eq!(restore.progress().chunks_done, killed_after);
        for index in killed_after..made.plan.chunks() {
            assert_eq!(restore.apply(index, &made.wire(index), "peer"), ChunkVerdict::Accept);
        }
        assert_eq!(received(&mut restore), made.state);
    }
}

/// SS-33. A full or failing disk ends the sync with a reason that names it, and blames no peer. After a restart the
/// leavings are of use or gone, and it succeeds.
#[test]
fn ss33_a_full_or_failing_disk_aborts_and_blames_nobody() {
    let made = Made::new::<Blake3>(state(60), 500);
    for fault in [Fault::NoSpace, Fault::Io] {
        for change in 0.. {
            let files = FaultyFiles::new(change);
            files.fail_at(change, fault);
            let Err(reason) = run_until_failure(&made, &files) else { break };
            assert!(reason.contains("staging"), "{reason}");
            finish(&made, &files, &format!("{fault:?} at change {change}"));
        }
    }
}

/// SS-33. After an abort the same process can go on too, if it is offered the snapshot again.
#[test]
fn an_abort_leaves_a_restore_that_can_go_on() {
    let made = Made::new::<Blake3>(state(60), 500);
    for change in 2..20 {
        let files = FaultyFiles::new(change);
        let mut restore = made.accepted::<Blake3>(&files);
        files.fail_at(change, Fault::NoSpace);
        for index in 0..made.plan.chunks() {
            while restore.apply(index, &made.wire(index), "peer") != ChunkVerdict::Accept {
                assert_eq!(restore.target(), None);
                assert_eq!(restore.offer(&made.offer, made.root.as_bytes()), OfferVerdict::Accept);
                assert_eq!(restore.progress().chunks_done, index, "change {change}");
            }
        }
        assert_eq!(received(&mut restore), made.state);
    }
}

/// A staged file that can no longer be read costs its chunk, not the sync: after a restart it is removed and fetched again.
#[test]
fn a_staged_file_that_cannot_be_read_is_fetched_again() {
    let made = Made::new::<Blake3>(state(60), 500);
    for failing in 0..made.plan.chunks() + 1 {
        let files = FaultyFiles::new(1);
        run_until_failure(&made, &files).unwrap();
        files.fail_reads(files.reads() + u64::from(failing), 1);
        finish(&made, &files, &format!("read {failing} fails"));
    }
}

/// A flipped bit in any staged file is found: while it is read back, and after a restart.
#[test]
fn a_staged_file_that_changed_is_found_and_fetched_again() {
    let made = Made::new::<Blake3>(state(60), 500);
    let files = MemoryFiles::new();
    let mut restore = made.with_chunks::<Blake3>(&files, made.plan.chunks());
    for index in made.plan.pages()..made.plan.chunks() {
        let staged = files.open(&format!("chunk-{index:06}")).unwrap();
        staged.write_at(staged.len().unwrap() / 2, b"\xa5").unwrap();
        let lost = restore.entries(|_, _, _| Ok::<_, Infallible>(()));
        let Err(EntriesError::Restore(error)) = lost else { panic!("{lost:?}") };
        if !matches!(error, RestoreError::Lost { .. }) {
            // A disk that loses one chunk after the other is not asked for ever.
            assert!(matches!(error, RestoreError::Unreliable { times: 16, .. }), "{error}");
            assert!(matches!(error.verdict(), ChunkVerdict::Abort { .. }));
            break;
        }
        let verdict = error.verdict();
        let ChunkVerdict::Retry { refetch, reject_senders, .. } = verdict else { panic!("{verdict:?}") };
        assert_eq!((refetch, reject_senders), (vec![index], vec![]), "no peer is to blame");
        assert!(!restore.is_complete());
        assert_eq!(restore.apply(index, &made.wire(index), "peer"), ChunkVerdict::Accept);
        assert_eq!(received(&mut restore), made.state);
    }

    for changed in 0..made.plan.chunks() {
        let files = MemoryFiles::new();
        drop(made.with_chunks::<Blake3>(&files, made.plan.chunks()));
        let staged = files.open(&format!("chunk-{changed:06}")).unwrap();
        staged.write_at(1 + staged.len().unwrap() / 2, b"\xa5").unwrap();
        let mut restore = made.accepted::<Blake3>(&files);
        assert!(!restore.is_complete(), "chunk {changed} was changed");
        for index in 0..made.plan.chunks() {
            assert_eq!(restore.apply(index, &made.wire(index), "peer"), ChunkVerdict::Accept);
        }
        assert_eq!(received(&mut restore), made.state);
    }
}

/// Files of an older snapshot that a power cut brought back are not taken for those of this one, and files that are not
/// ours are left alone.
#[test]
fn staged_files_of_another_snapshot_are_removed_and_foreign_ones_are_not() {
    let (old, new) = (Made::new::<Blake3>(state(300), 500), Made::new::<Blake3>(state(200), 500));
    let (old_files, files) = (MemoryFiles::new(), MemoryFiles::new());
    drop(old.with_chunks::<Blake3>(&old_files, old.plan.chunks()));
    drop(new.with_chunks::<Blake3>(&files, new.plan.pages()));
    let mut mixed = old_files.image();
    mixed.extend(files.image());
    for foreign in ["LOCK", "chunk-1", "chunk-0000001", "target.old"] {
        mixed.insert(foreign.to_owned(), b"mine".to_vec());
    }
    let files = MemoryFiles::from_image(&mixed);
    let mut restore = new.accepted::<Blake3>(&files);
    assert!(restore.progress().chunks_done < new.plan.chunks());
    for index in 0..new.plan.chunks() {
        assert_eq!(restore.apply(index, &new.wire(index), "peer"), ChunkVerdict::Accept);
    }
    assert_eq!(received(&mut restore), new.state);
    restore.clear().unwrap();
    assert_eq!(files.list().unwrap(), ["LOCK", "chunk-0000001", "chunk-1", "target.old"]);

    // A target that was torn is no target, and chunks without one go.
    mixed.insert("target".to_owned(), vec![0; 80]);
    let files = MemoryFiles::from_image(&mixed);
    drop(new.restore::<Blake3>(&files));
    assert_eq!(files.list().unwrap(), ["LOCK", "chunk-0000001", "chunk-1", "target.old"]);
}
