//! What a library keeps through crashes, full disks and rot.

use crate::support::{content, create, flip, go_on, heights, id, names, open, params, version};
use keelstone_codec::{Decode, Height};
use keelstone_store::files::{Act, Directory, Fault, FaultyFiles, Files, Interposed, MemoryFiles};
use keelstone_sync::library::{INDEX_BYTES_MAX, Index, Library, LibraryError, Making, Phase, Progress};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, mpsc};

/// spec: LIB-1, LIB-2. What a library lists is what the index on the disk says, in the order of heights.
#[test]
fn a_snapshot_is_listed_read_and_found_again() {
    let files = MemoryFiles::new();
    let library = open(&files);
    let (old, new) = (version(200, 0, 0), version(200, 3, 1));
    let first = create(&library, &old, 10).unwrap();
    let second = create(&library, &new, 20).unwrap();
    assert_eq!((first.root, second.root), (old.root(), new.root()));
    assert_eq!((first.totals.count, first.chunks > 5), (200, true), "{first:?}");
    assert_eq!(library.list(), [second.clone(), first.clone()]);
    assert_eq!(create(&library, &new, 20).unwrap(), second, "made once");
    drop(library);
    let library = open(&files);
    assert_eq!(library.list(), [second.clone(), first]);
    library.verify(id(20), &mut go_on).unwrap();
    let index = Index::from_bytes(&content(&files, "00000000000000000020-1.snapshot")).unwrap();
    assert_eq!((index.hash(), index.id(), index.params()), (second.hash, id(20), params()));
    for (number, stored) in (0..).zip(&index.chunks) {
        let chunk = library.chunk(id(20), number).unwrap().unwrap();
        assert_eq!(chunk, content(&files, &format!("{}.chunk", stored.name)));
    }
}

/// spec: SNAP-8, LIB-3, LIB-5. A small change shares most files, and they go with the last snapshot that needs them.
#[test]
fn snapshots_share_what_they_have_in_common() {
    let files = MemoryFiles::new();
    let library = open(&files);
    create(&library, &version(400, 0, 0), 1).unwrap();
    let alone = names(&files);
    let second = create(&library, &version(400, 2, 1), 2).unwrap();
    let added = names(&files).len() - alone.len();
    assert!(added < second.chunks as usize / 2, "{added} new files for {} chunks", second.chunks);
    library.delete(id(2)).unwrap();
    assert_eq!(names(&files), alone);
    create(&library, &version(400, 2, 1), 2).unwrap();
    library.delete(id(1)).unwrap();
    library.verify(id(2), &mut go_on).unwrap();
    assert!(matches!(library.delete(id(1)), Err(LibraryError::NotFound(_))));
    library.delete(id(2)).unwrap();
    assert_eq!(names(&files), [""; 0]);
}

/// SS-43: an index out of range, an unknown height or format is no chunk, and no error.
#[test]
fn ss43_what_is_not_there_is_none() {
    let files = MemoryFiles::new();
    let library = open(&files);
    let info = create(&library, &version(50, 0, 0), 7).unwrap();
    assert!(library.chunk(id(7), info.chunks - 1).unwrap().is_some());
    let mut other = id(7);
    other.format = 9999;
    for (id, index) in [(id(7), info.chunks), (id(7), u32::MAX), (id(8), 0), (other, 0)] {
        assert_eq!(library.chunk(id, index).unwrap(), None);
    }
}

/// A snapshot that is being read stays, and goes the next time. The newest are kept.
#[test]
fn what_is_being_read_is_not_removed() {
    let files = MemoryFiles::new();
    let library = open(&files);
    for height in 1..=4u8 {
        create(&library, &version(60, 60, height), height.into()).unwrap();
    }
    let pin = library.pin(id(1)).unwrap();
    assert!(matches!(library.delete(id(1)), Err(LibraryError::Pinned(_))));
    assert_eq!(library.keep(2).unwrap(), [id(2)]);
    assert_eq!(heights(&library), [4, 3, 1]);
    for number in 0..pin.info().chunks {
        assert!(pin.chunk(number).unwrap().is_some());
    }
    drop(pin);
    assert_eq!(library.keep(2).unwrap(), [id(1)]);
    assert_eq!(heights(&library), [4, 3]);
}

/// A chain that was rolled back makes another state of the same height: the newer takes the older's place.
#[test]
fn another_state_of_the_same_height_takes_the_place_of_the_first() {
    let files = MemoryFiles::new();
    let library = open(&files);
    create(&library, &version(80, 80, 1), 5).unwrap();
    let info = create(&library, &version(80, 80, 2), 5).unwrap();
    assert_eq!(library.list(), [info]);
    library.verify(id(5), &mut go_on).unwrap();
    let before = names(&files);
    drop(library);
    assert_eq!(Library::open(Arc::new(files.clone())).unwrap().1, Default::default());
    assert_eq!(names(&files), before, "nothing of the first is left to sweep");
}

/// SS-37, A-06, spec: LIB-3. The power goes at every change of the disk while a snapshot is made beside another: after it
/// there is the old one alone or both, each whole, and nothing half made.
#[test]
fn ss37_a06_a_power_cut_while_making_leaves_a_whole_snapshot_or_none() {
    let (old, new) = (version(60, 0, 0), version(60, 4, 1));
    let prepare = || {
        let files = FaultyFiles::new(7);
        let library = open(&files);
        create(&library, &old, 1).unwrap();
        (files, library)
    };
    let (files, library) = prepare();
    let begin = files.changes();
    create(&library, &new, 2).unwrap();
    let end = files.changes();
    let mut found = [0, 0];
    for (change, background) in (begin..=end).flat_map(|change| [(change, false), (change, true)]) {
        let (files, library) = prepare();
        files.fail_at(change, Fault::PowerCut);
        let making = Making { background, ..Making::default() };
        let made = library.create(&new, &params(), Height(2), new.root(), &making, &mut go_on).is_ok();
        for seed in 0..3 {
            let after = files.after_power_cut(change * 31 + seed);
            let library = open(&after);
            let listed = heights(&library);
            assert!(listed == [1] || listed == [2, 1], "change {change}, seed {seed}: {listed:?}");
            assert!(!made || listed.len() == 2, "change {change}, seed {seed}: what was made is gone");
            for height in &listed {
                library.verify(id(*height), &mut go_on).unwrap();
            }
            let unneeded = names(&after).into_iter().filter(|name| name.ends_with(".tmp")).count();
            assert_eq!(unneeded, 0);
            let before = names(&after);
            assert_eq!(library.gc().unwrap(), Default::default(), "change {change}, seed {seed}: left behind");
            assert_eq!(names(&after), before);
            found[listed.len() - 1] += 1;
            // And the next attempt succeeds.
            create(&library, &new, 2).unwrap();
        }
    }
    assert!(found[0] > 0 && found[1] > 0, "{found:?}");
}

/// SS-38: a snapshot that was listed verifies after the power went, whatever of the unsynced is lost.
#[test]
fn ss38_a_snapshot_that_was_made_survives_a_power_cut() {
    let files = FaultyFiles::new(3);
    let library = open(&files);
    let info = create(&library, &version(300, 0, 0), 9).unwrap();
    for seed in 0..40 {
        let after = files.after_power_cut(seed);
        let library = open(&after);
        assert_eq!(library.list(), std::slice::from_ref(&info), "seed {seed}");
        library.verify(id(9), &mut go_on).unwrap();
    }
}

/// A deletion that the power cuts off leaves the snapshot whole or gone.
#[test]
fn a_power_cut_while_deleting_leaves_a_whole_snapshot_or_none() {
    let prepare = || {
        let files = FaultyFiles::new(11);
        let library = open(&files);
        create(&library, &version(60, 0, 0), 1).unwrap();
        create(&library, &version(60, 4, 1), 2).unwrap();
        (files, library)
    };
    let (files, library) = prepare();
    let begin = files.changes();
    library.delete(id(1)).unwrap();
    for change in begin..files.changes() {
        let (files, library) = prepare();
        files.fail_at(change, Fault::PowerCut);
        library.delete(id(1)).unwrap_err();
        for seed in 0..4 {
            let library = open(&files.after_power_cut(change * 17 + seed));
            for height in heights(&library) {
                library.verify(id(height), &mut go_on).unwrap();
            }
            assert!(heights(&library).contains(&2), "change {change}, seed {seed}");
        }
    }
}

/// spec: LIB-3. Whatever reads back otherwise than it was written, whichever chunk it is of, is never listed.
#[test]
fn what_does_not_read_back_is_not_listed() {
    for background in [false, true] {
        for step in 0u64.. {
            let files = FaultyFiles::new(step);
            let library = open(&files);
            let state = version(60, 0, 0);
            let begin = files.reads();
            files.flip_reads(begin + step, 1);
            let making = Making { background, ..Making::default() };
            match library.create(&state, &params(), Height(1), state.root(), &making, &mut go_on) {
                Err(error) => assert!(error.is_damage(), "read {step}: {error}"),
                Ok(info) => {
                    assert!(files.reads() <= begin + step, "read {step} went unseen");
                    assert_eq!(step, u64::from(info.chunks), "each chunk is read back");
                    break;
                }
            }
            assert!(library.list().is_empty() && names(&files).is_empty(), "read {step}: {:?}", names(&files));
        }
    }
}

/// A disk that fails or is full fails the attempt alone, and leaves nothing of it.
#[test]
fn a_write_that_fails_leaves_nothing_and_the_next_attempt_succeeds() {
    for fault in [Fault::Io, Fault::NoSpace] {
        let files = FaultyFiles::new(5);
        let library = open(&files);
        let first = create(&library, &version(60, 0, 0), 1).unwrap();
        let begin = files.changes();
        create(&library, &version(60, 60, 1), 2).unwrap();
        let end = files.changes();
        library.delete(id(2)).unwrap();
        let before = names(&files);
        for step in 0..end - begin {
            files.fail_at(files.changes() + step, fault);
            match create(&library, &version(60, 60, 1), 2) {
                Err(LibraryError::Io { .. }) => {
                    assert_eq!(library.list(), std::slice::from_ref(&first));
                    library.gc().unwrap();
                    assert_eq!(names(&files), before, "{fault:?} at step {step}");
                }
                Ok(_) => library.delete(id(2)).unwrap(),
                Err(other) => panic!("{fault:?} at step {step}: {other}"),
            }
        }
    }
}

/// SS-41, spec: LIB-4. A byte that changed on the disk is never served: the snapshots that need the chunk leave the
/// list, and those that do not stay.
#[test]
fn ss41_a_damaged_chunk_takes_its_snapshots_off_the_list() {
    let files = MemoryFiles::new();
    let library = open(&files);
    create(&library, &version(200, 0, 0), 1).unwrap();
    create(&library, &version(200, 1, 1), 2).unwrap();
    create(&library, &version(200, 200, 2), 3).unwrap();
    let index = library.pin(id(1)).unwrap().index().clone();
    let number = index.chunks.len() - 1;
    let file = format!("{}.chunk", index.chunks[number].name);
    flip(&files, &file, 9);
    let number = u32::try_from(number).unwrap();
    let error = library.chunk(id(2), number).unwrap_err();
    assert!(error.is_damage() && error.to_string().contains(&file), "{error}");
    assert_eq!(heights(&library), [3], "both that share it are off the list");
    assert_eq!(library.chunk(id(1), 0).unwrap(), None);
    let aside: Vec<String> = names(&files).into_iter().filter(|name| name.ends_with(".bad")).collect();
    assert_eq!(aside.len(), 3, "two indexes and a chunk are set aside: {aside:?}");
    // It is made anew, and verifies.
    create(&library, &version(200, 0, 0), 1).unwrap();
    library.verify(id(1), &mut go_on).unwrap();
    assert_eq!(library.gc().unwrap().set_aside, 3);
}

/// spec: LIB-3, LIB-4. A snapshot that is there is proven before it is said to be; a damaged one is made anew, also while
/// somebody holds it. Who only looks hears of what was set aside.
#[test]
fn a_damaged_snapshot_is_made_anew_when_it_is_asked_for() {
    let files = MemoryFiles::new();
    let library = open(&files);
    let state = version(200, 0, 0);
    let made = create(&library, &state, 1).unwrap();
    let index = library.pin(id(1)).unwrap().index().clone();
    for chunk in [0, index.chunks.len() - 1] {
        let held = library.pin(id(1)).unwrap();
        flip(&files, &format!("{}.chunk", index.chunks[chunk].name), 9);
        assert_eq!(create(&library, &state, 1).unwrap(), made);
        library.verify(id(1), &mut go_on).unwrap();
        drop(held);
        assert_eq!(library.list(), std::slice::from_ref(&made));
        assert_eq!(Library::inspect(Arc::new(files.clone())).unwrap().1.damaged, []);
    }
    // One that is whole stays as it is.
    let before = files.image();
    assert_eq!(create(&library, &state, 1).unwrap(), made);
    assert_eq!(files.image(), before);
    flip(&files, &format!("{}.chunk", index.chunks[0].name), 9);
    assert!(library.verify(id(1), &mut go_on).unwrap_err().is_damage());
    let (looked, found) = Library::inspect(Arc::new(files.clone())).unwrap();
    assert!(looked.list().is_empty() && found.damaged.len() == 1 && found.damaged[0].0 == id(1), "{found:?}");
}

/// spec: LIB-4. A chunk whose file opens and cannot be read is damaged: the next snapshot writes it anew, and those that need
/// the file that is lost are off the list. A read that fails once is no damage.
#[test]
fn a_chunk_on_a_bad_sector_is_written_anew() {
    for background in [false, true] {
        let files = FaultyFiles::new(1);
        let library = open(&files);
        create(&library, &version(200, 0, 0), 1).unwrap();
        let index = library.pin(id(1)).unwrap().index().clone();
        let last = index.chunks.len() - 1;
        let file = format!("{}.chunk", index.chunks[last].name);
        files.fail_reads(files.reads(), 1);
        assert!(library.chunk(id(1), u32::try_from(last).unwrap()).unwrap().is_some());
        assert_eq!(heights(&library), [1]);

        files.spoil(&file);
        let (state, making) = (version(200, 1, 1), Making { background, ..Making::default() });
        let made = library.create(&state, &params(), Height(2), state.root(), &making, &mut go_on).unwrap();
        assert_eq!(library.list(), [made]);
        assert!(library.pin(id(2)).unwrap().index().chunks.contains(&index.chunks[last]), "it is shared");
        library.verify(id(2), &mut go_on).unwrap();
        assert!(names(&files).contains(&format!("{file}.bad")));
        // Whoever fetches one finds it out too.
        files.spoil(&file);
        let error = library.chunk(id(2), u32::try_from(last).unwrap()).unwrap_err();
        assert!(error.is_damage() && error.to_string().contains("cannot be read"), "{error}");
        assert!(library.list().is_empty());
    }
}

/// A process without descriptors has no damaged files: nothing leaves the list.
#[test]
fn a_chunk_that_does_not_open_is_no_damage() {
    let files = FaultyFiles::new(1);
    let library = open(&files);
    create(&library, &version(200, 0, 0), 1).unwrap();
    files.run_out_of_descriptors();
    let error = library.chunk(id(1), 0).unwrap_err();
    assert!(matches!(error, LibraryError::Io { .. }) && !error.is_damage(), "{error}");
    assert!(create(&library, &version(200, 1, 1), 2).is_err());
    assert_eq!(heights(&library), [1]);
    files.mend();
    library.verify(id(1), &mut go_on).unwrap();
}

/// The file, where the first reader of it says that it has its bytes, and from where it hears to go on.
type Stop = (String, mpsc::Sender<()>, mpsc::Receiver<()>);

/// Files of which one is read while others do things: the next reading of it has its bytes, and waits before it has
/// them.
fn slow(files: MemoryFiles, stop: Arc<Mutex<Option<Stop>>>) -> Interposed {
    Interposed::new(Arc::new(files), move |read, act, go_on| {
        go_on()?;
        let stop = stop.lock().unwrap().take_if(|(name, ..)| matches!(act, Act::Read) && name == read);
        if let Some((_, has_read, go_on)) = stop {
            has_read.send(()).unwrap();
            go_on.recv().unwrap();
        }
        Ok(())
    })
}

/// spec: LIB-4. Who read a damaged chunk and comes late to say so sets nothing aside that was written anew since, with the
/// same bytes or with others, whether its snapshot is listed yet or not.
#[test]
fn a_chunk_that_was_written_anew_is_not_set_aside_for_the_old_one() {
    for (level, listed) in [(1, true), (0, true), (1, false), (0, false)] {
        let (files, stop) = (MemoryFiles::new(), Arc::default());
        let library = open(&slow(files.clone(), Arc::clone(&stop)));
        create(&library, &version(200, 0, 0), 1).unwrap();
        let pin = library.pin(id(1)).unwrap();
        let last = pin.info().chunks - 1;
        let file = format!("{}.chunk", pin.index().chunks[last as usize].name);
        flip(&files, &file, 9);
        let ((has_read, read), (let_go, gone)) = (mpsc::channel(), mpsc::channel());
        *stop.lock().unwrap() = Some((file.clone(), has_read, gone));
        std::thread::scope(|threads| {
            let late = threads.spawn(|| pin.chunk(last));
            read.recv().unwrap();
            let state = version(200, 1, 1);
            let making = Making { level, ..Making::default() };
            let mut done = 0;
            let mut late = Some(late);
            let mut listener = |progress: Progress| {
                done = progress.done;
                // All is written, and nothing is listed.
                if !listed && progress.done == progress.total {
                    let_go.send(()).unwrap();
                    drop(late.take().unwrap().join().unwrap());
                }
                ControlFlow::Continue(())
            };
            let made = library.create(&state, &params(), Height(2), state.root(), &making, &mut listener).unwrap();
            if listed {
                let_go.send(()).unwrap();
                let answer = late.take().unwrap().join().unwrap();
                assert_eq!(answer.is_ok(), level == 1, "the same bytes are there again, or others are");
            }
            assert_eq!(library.list(), [made], "level {level}, listed {listed}");
        });
        library.verify(id(2), &mut go_on).unwrap();
        drop((pin, library));
        assert_eq!(heights(&open(&files)), [2], "level {level}, listed {listed}: an index is set aside");
    }
}

/// A pin holds the snapshot it is of, and no other of that height: one that was damaged and made anew has pins of its own.
#[test]
fn a_pin_of_a_damaged_snapshot_does_not_let_go_of_the_one_in_its_place() {
    let files = MemoryFiles::new();
    let library = open(&files);
    let state = version(60, 0, 0);
    create(&library, &state, 1).unwrap();
    let old = library.pin(id(1)).unwrap();
    flip(&files, &format!("{}.chunk", old.index().chunks[0].name), 9);
    old.chunk(0).unwrap_err();
    create(&library, &state, 1).unwrap();
    let new = library.pin(id(1)).unwrap();
    drop(old);
    assert!(matches!(library.delete(id(1)), Err(LibraryError::Pinned(_))));
    drop(new);
    library.delete(id(1)).unwrap();
}

/// spec: LIB-2, LIB-4. An index that cannot be read, or is longer than any, costs its snapshot and not the library.
#[test]
fn an_index_that_cannot_be_read_is_set_aside_and_named() {
    let (first, second) = ("00000000000000000001-1.snapshot", "00000000000000000002-1.snapshot");
    let prepare = || {
        let files = FaultyFiles::new(1);
        let library = open(&files);
        create(&library, &version(30, 0, 0), 1).unwrap();
        create(&library, &version(30, 1, 1), 2).unwrap();
        files
    };
    let bad = prepare();
    bad.spoil(first);
    let long = prepare();
    long.remove(first).unwrap();
    long.create(first, INDEX_BYTES_MAX + 1).unwrap();
    for (files, named) in [(bad, "cannot be read"), (long, "the limit is")] {
        let (looked, found) = Library::inspect(Arc::new(files.clone())).unwrap();
        let (library, swept) = Library::open(Arc::new(files.clone())).unwrap();
        assert_eq!(swept.damaged, found.damaged);
        let [(damaged, why)] = &swept.damaged[..] else { panic!("{swept:?}") };
        assert!(*damaged == id(1) && why.contains(named), "{why}");
        assert_eq!((heights(&looked), heights(&library)), (vec![2], vec![2]));
        library.verify(id(2), &mut go_on).unwrap();
        let names = names(&files);
        assert!(names.contains(&format!("{first}.bad")) && names.contains(&second.to_owned()), "{names:?}");
    }
    // What does not even open may be whole.
    let files = prepare();
    files.run_out_of_descriptors();
    assert!(matches!(Library::open(Arc::new(files.clone())), Err(LibraryError::Io { .. })));
    files.mend();
    assert_eq!(heights(&open(&files)), [2, 1]);
}

/// spec: LIB-2, LIB-4. An index of which one bit changed, or that lacks a chunk, is set aside when the library is opened.
#[test]
fn a_damaged_index_is_set_aside_and_named() {
    let name = "00000000000000000001-1.snapshot";
    let image = {
        let files = MemoryFiles::new();
        create(&open(&files), &version(30, 0, 0), 1).unwrap();
        files.image()
    };
    for at in 0..image[name].len() {
        let files = MemoryFiles::from_image(&image);
        flip(&files, name, at as u64);
        let (library, swept) = Library::open(Arc::new(files.clone())).unwrap();
        assert!(library.list().is_empty(), "byte {at}");
        assert_eq!(swept.damaged.len(), 1, "byte {at}");
        assert!(files.list().unwrap().contains(&format!("{name}.bad")));
    }
    let files = MemoryFiles::from_image(&image);
    let chunk = image.keys().find(|name| name.ends_with(".chunk")).unwrap();
    files.remove(chunk).unwrap();
    let (library, swept) = Library::open(Arc::new(files)).unwrap();
    assert!(library.list().is_empty() && swept.damaged[0].1.contains("missing"), "{swept:?}");
}

/// A library that another process owns can be looked at, and is not changed by that.
#[test]
fn looking_at_a_library_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let files = Directory::new(directory.path()).unwrap();
    let library = open(&files);
    let info = create(&library, &version(50, 0, 0), 1).unwrap();
    std::fs::write(directory.path().join("left.tmp"), "x").unwrap();
    let refused = Library::open(Arc::new(files.clone())).unwrap_err();
    assert!(matches!(refused, LibraryError::InUse { pid: Some(pid) } if pid == std::process::id()), "{refused}");
    let (looked, _) = Library::inspect(Arc::new(files.clone())).unwrap();
    assert_eq!(looked.list(), [info]);
    looked.verify(id(1), &mut go_on).unwrap();
    assert!(matches!(looked.delete(id(1)), Err(LibraryError::ReadOnly)));
    assert!(matches!(create(&looked, &version(9, 0, 0), 2), Err(LibraryError::ReadOnly)));
    assert!(directory.path().join("left.tmp").exists());
    library.delete(id(1)).unwrap();
    assert!(matches!(looked.chunk(id(1), 0), Err(LibraryError::NotFound(_))), "removed by its owner, not damaged");
}

/// Whoever asks to stop is heeded at the next chunk, and nothing of the attempt stays.
#[test]
fn making_stops_when_asked_to() {
    let files = MemoryFiles::new();
    let library = open(&files);
    let state = version(200, 0, 0);
    let mut heard = Vec::new();
    for (background, at) in [(false, 1), (false, 7), (true, 1), (true, 7)] {
        heard.clear();
        let mut stop = |progress: Progress| {
            heard.push((progress.phase, progress.done));
            if progress.done == at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let making = Making { background, ..Making::default() };
        let stopped = library.create(&state, &params(), Height(1), state.root(), &making, &mut stop);
        assert!(matches!(stopped, Err(LibraryError::Stopped)));
        assert_eq!(names(&files), [""; 0]);
        assert_eq!(heard, (1..=at).map(|done| (Phase::Making, done)).collect::<Vec<_>>());
    }
}

/// A state without entries, and one of a single entry, are snapshots too.
#[test]
fn the_smallest_states_have_snapshots() {
    let files = MemoryFiles::new();
    let library = open(&files);
    for (height, state) in [(1, version(0, 0, 0)), (2, version(1, 0, 0))] {
        let info = create(&library, &state, height).unwrap();
        library.verify(id(height), &mut go_on).unwrap();
        assert_eq!(info.totals.count, height - 1);
    }
}
