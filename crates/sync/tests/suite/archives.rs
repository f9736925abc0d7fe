//! Archives from strangers.

use crate::support::{content, create, flip, go_on, heights, id, names, open, params, version};
use keelstone_codec::{ChainId, Decode, Encode, Hash, Root, Tag, TaggedHasher};
use keelstone_store::files::{Act, Directory, Files, Interposed, MemoryFiles, Room};
use keelstone_sync::library::{Expected, Index, Info, LibraryError, Origin, TarError};
use keelstone_sync::snapshot::SnapshotParams;
use std::io::Cursor;
use std::sync::Arc;

const BLOCK: usize = 512;

fn verify_tar(tar: &[u8], expected: &Expected) -> Result<Info, LibraryError> {
    Origin::Tar(&mut Cursor::new(tar)).verify(expected, &mut go_on)
}

fn verify_directory(files: &dyn Files, expected: &Expected) -> Result<Info, LibraryError> {
    Origin::Directory(files).verify(expected, &mut go_on)
}

fn expected() -> Expected {
    Expected { params: Some(params()), root: None }
}

/// A snapshot of 200 entries, as files and as a tar.
fn archive() -> (MemoryFiles, Vec<u8>) {
    let files = MemoryFiles::new();
    let library = open(&files);
    create(&library, &version(200, 0, 0), 12).unwrap();
    let (mut tar, directory) = (Vec::new(), MemoryFiles::new());
    library.export_tar(id(12), &mut tar, &mut go_on).unwrap();
    library.export_directory(id(12), &directory, 0, &mut go_on).unwrap();
    (directory, tar)
}

/// Tries a tar and returns why it was refused. Nothing of it may stay.
fn refused(tar: &[u8]) -> LibraryError {
    let files = MemoryFiles::new();
    let library = open(&files);
    let error = library.import(Origin::Tar(&mut Cursor::new(tar)), &expected(), 0, &mut go_on).unwrap_err();
    assert!(library.list().is_empty());
    assert_eq!(names(&files), [""; 0], "something of a refused archive stays");
    let verified = verify_tar(tar, &expected()).unwrap_err();
    assert_eq!(verified.to_string(), error.to_string(), "verifying says what importing says");
    error
}

/// Changes a header and puts its checksum right again, as a careful adversary would.
fn with_header(tar: &[u8], block: usize, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut tar = tar.to_vec();
    let header = &mut tar[block * BLOCK..(block + 1) * BLOCK];
    change(header);
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar
}

/// Where the headers of a tar are, in blocks.
fn headers(tar: &[u8]) -> Vec<usize> {
    let mut out = Vec::new();
    let mut at = 0;
    while tar[at * BLOCK] != 0 {
        out.push(at);
        let size = std::str::from_utf8(&tar[at * BLOCK + 124..at * BLOCK + 135]).unwrap();
        at += 1 + usize::from_str_radix(size, 8).unwrap().div_ceil(BLOCK);
    }
    out
}

/// spec: LIB-7, LIB-8. Out as a tar or a directory, in elsewhere, and it is the same snapshot with the same bytes.
#[test]
fn an_archive_goes_out_and_comes_in_unchanged() {
    let (directory, tar) = archive();
    let (one, two) = (MemoryFiles::new(), MemoryFiles::new());
    let (from_tar, from_directory) = (open(&one), open(&two));
    let expected = Expected { root: Some(version(200, 0, 0).root()), ..expected() };
    let first = from_tar.import(Origin::Tar(&mut Cursor::new(&*tar)), &expected, 0, &mut go_on).unwrap();
    let second = from_directory.import(Origin::Directory(&directory), &expected, 0, &mut go_on).unwrap();
    assert_eq!(first, second);
    assert_eq!(one.image().into_iter().filter(|(name, _)| name != "LOCK").collect::<Vec<_>>().len(), names(&one).len());
    for name in names(&directory) {
        assert_eq!(content(&one, &name), content(&directory, &name));
        assert_eq!(content(&two, &name), content(&directory, &name));
    }
    let mut again = Vec::new();
    from_directory.export_tar(id(12), &mut again, &mut go_on).unwrap();
    assert_eq!(again, tar, "a tar of the same snapshot is the same file");
    assert_eq!(verify_tar(&tar, &expected).unwrap(), first);
    assert_eq!(verify_directory(&directory, &expected).unwrap(), first);
}

/// What other tools make of it: GNU tar reads it, where there is one.
#[test]
fn other_tools_read_the_tar() {
    let directory = tempfile::tempdir().unwrap();
    let (files, tar) = archive();
    std::fs::write(directory.path().join("snapshot.tar"), &tar).unwrap();
    let unpacked = std::process::Command::new("tar").args(["-xf", "snapshot.tar"]).current_dir(&directory).status();
    let Ok(unpacked) = unpacked else { return println!("there is no tar here") };
    assert!(unpacked.success());
    std::fs::remove_file(directory.path().join("snapshot.tar")).unwrap();
    let unpacked = Directory::existing(directory.path()).unwrap();
    assert_eq!(names(&unpacked), names(&files));
    verify_directory(&unpacked, &expected()).unwrap();
}

/// A-01, SS-45: no name of an archive is ever a path. What is not the name of a file of a snapshot refuses all of it.
#[test]
fn a01_ss45_a_name_that_is_none_of_ours_refuses_the_archive() {
    let (_, tar) = archive();
    let chunk = headers(&tar)[1];
    let long = "a".repeat(100);
    let names: [&[u8]; 11] = [
        b"../x",
        b"/etc/passwd",
        b"C:\\x",
        b"..",
        b".chunk",
        b"a/b.chunk",
        b"\xff\xfe.chunk",
        long.as_bytes(),
        b"CON",
        b"",
        b"a\nb",
    ];
    for name in names {
        let tar = with_header(&tar, chunk, |header| {
            header[..100].fill(0);
            header[..name.len()].copy_from_slice(name);
        });
        assert!(matches!(refused(&tar), LibraryError::Tar(TarError::Name { .. })), "{}", name.escape_ascii());
    }
    // A name that is cut short by a zero, with more behind it.
    let hidden = with_header(&tar, chunk, |header| header[80..83].copy_from_slice(b"\0/x"));
    assert!(matches!(refused(&hidden), LibraryError::Tar(TarError::Header { .. })));
    // A prefix, which other tools put before the name.
    let prefixed = with_header(&tar, chunk, |header| header[345..352].copy_from_slice(b"../../x"));
    assert!(matches!(refused(&prefixed), LibraryError::Tar(TarError::Name { .. })));
    // The same name in another case, as a further file.
    let upper = with_header(&tar, chunk, |header| header[..64].make_ascii_uppercase());
    let doubled = [&tar[..chunk * BLOCK], &upper[chunk * BLOCK..(chunk + 1) * BLOCK], &tar[chunk * BLOCK..]].concat();
    assert!(matches!(refused(&doubled), LibraryError::Tar(TarError::Name { .. })));
}

/// the same in a directory: names that differ in case only, and files that are none of the snapshot's.
#[test]
fn a01_a_directory_with_another_file_is_refused() {
    let (directory, _) = archive();
    let chunk = names(&directory).into_iter().find(|name| name.ends_with(".chunk")).unwrap();
    let other = format!("{}.chunk", Hash([7; 32]));
    for name in [chunk.to_uppercase(), "README".to_owned(), other, "00000000000000000013-1.snapshot".to_owned()] {
        let files = MemoryFiles::from_image(&directory.image());
        files.create(&name, 3).unwrap();
        let library = open(&MemoryFiles::new());
        let error = library.import(Origin::Directory(&files), &expected(), 0, &mut go_on).unwrap_err();
        assert!(matches!(error, LibraryError::Archive(_)), "{name}: {error}");
        assert!(library.list().is_empty());
    }
}

/// A-02, SS-45: links, devices, FIFOs, directories and sparse files are refused by their kind.
#[test]
fn a02_ss45_what_is_no_regular_file_refuses_the_archive() {
    let (_, tar) = archive();
    for block in [0, headers(&tar)[2]] {
        for (flag, kind) in [
            (b'1', "hard link"),
            (b'2', "symbolic link"),
            (b'3', "device"),
            (b'4', "device"),
            (b'5', "directory"),
            (b'6', "FIFO"),
            (b'7', "unknown"),
            (b'S', "sparse"),
            (b'L', "long name"),
            (0, "unknown"),
        ] {
            let tar = with_header(&tar, block, |header| {
                header[156] = flag;
                header[157..168].copy_from_slice(b"/etc/shadow");
            });
            let error = refused(&tar);
            let named = matches!(&error, LibraryError::Tar(TarError::Kind { kind: found }) if found.contains(kind));
            assert!(named, "{}: {error}", flag.escape_ascii());
        }
    }
    // A link's target on a file that says it is none.
    let tar = with_header(&tar, 0, |header| header[157..168].copy_from_slice(b"/etc/shadow"));
    assert!(matches!(refused(&tar), LibraryError::Tar(TarError::Header { .. })));
}

/// links and directories in a directory.
#[cfg(unix)]
#[test]
fn a02_a_directory_with_a_link_is_refused() {
    let (files, _) = archive();
    let directory = tempfile::tempdir().unwrap();
    for (name, bytes) in files.image() {
        std::fs::write(directory.path().join(name), bytes).unwrap();
    }
    let source = Directory::existing(directory.path()).unwrap();
    let library = open(&MemoryFiles::new());
    verify_directory(&source, &expected()).unwrap();
    let chunk = names(&files).into_iter().find(|name| name.ends_with(".chunk")).unwrap();
    let moved = directory.path().join(&chunk);
    let outside = tempfile::tempdir().unwrap();
    std::fs::rename(&moved, outside.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("elsewhere"), &moved).unwrap();
    let error = library.import(Origin::Directory(&source), &expected(), 0, &mut go_on).unwrap_err();
    assert!(error.to_string().contains("no regular file"), "{error}");
}

/// two sizes for one file, one of them in an extended header.
#[test]
fn a03_a_second_size_refuses_the_archive() {
    let (_, tar) = archive();
    let chunk = headers(&tar)[1];
    for flag in [b'x', b'g'] {
        let mut extended = tar[chunk * BLOCK..(chunk + 1) * BLOCK].to_vec();
        let record = b"13 size=1000\n";
        extended[124..136].copy_from_slice(format!("{:011o}\0", record.len()).as_bytes());
        let mut body = [0; BLOCK];
        body[..record.len()].copy_from_slice(record);
        let tar = [&tar[..chunk * BLOCK], &extended, &body, &tar[chunk * BLOCK..]].concat();
        let tar = with_header(&tar, chunk, |header| header[156] = flag);
        assert!(matches!(refused(&tar), LibraryError::Tar(TarError::Kind { kind: "an extended header" })));
    }
    // A size that is not the one the index says; a size in another spelling; one that is none.
    let more = with_header(&tar, chunk, |header| header[134] = b'7');
    assert!(matches!(refused(&more), LibraryError::Archive(_)));
    let spaces = with_header(&tar, chunk, |header| header[124] = b' ');
    assert!(matches!(refused(&spaces), LibraryError::Tar(TarError::Header { at: 124, .. })));
    let binary =
        with_header(&tar, chunk, |header| header[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0]));
    assert!(matches!(refused(&binary), LibraryError::Tar(TarError::Header { .. })));
}

/// spec: LIB-7. No byte of a tar can change: each is part of a header, a proven chunk, the index, or must be zero.
#[test]
fn every_changed_byte_of_a_tar_is_found() {
    let files = MemoryFiles::new();
    let library = open(&files);
    create(&library, &version(12, 0, 0), 3).unwrap();
    let mut tar = Vec::new();
    library.export_tar(id(3), &mut tar, &mut go_on).unwrap();
    for at in 0..tar.len() {
        let mut changed = tar.clone();
        changed[at] ^= 0x20;
        assert!(verify_tar(&changed, &expected()).is_err(), "byte {at}");
    }
    for len in (0..tar.len()).step_by(97) {
        assert!(verify_tar(&tar[..len], &expected()).is_err(), "cut at {len}");
    }
    tar.push(0);
    let error = verify_tar(&tar, &expected()).unwrap_err();
    assert!(matches!(error, LibraryError::Tar(TarError::Stray { .. })), "{error}");
}

/// Chunks in another order, one too few, one too many.
#[test]
fn s10_chunks_out_of_order_refuse_the_archive() {
    let (_, tar) = archive();
    let at = headers(&tar);
    let end = tar.len() - 2 * BLOCK;
    let bounds: Vec<usize> = at.iter().map(|block| block * BLOCK).chain([end]).collect();
    let part = |index: usize| &tar[bounds[index]..bounds[index + 1]];
    let head = &tar[..bounds[1]];
    let rest = |from: usize| &tar[bounds[from]..];
    assert!(matches!(refused(&[head, part(2), part(1), rest(3)].concat()), LibraryError::Archive(_)));
    assert!(matches!(refused(&[head, rest(2)].concat()), LibraryError::Archive(_)));
    assert!(matches!(refused(&[head, part(1), rest(1)].concat()), LibraryError::Archive(_)));
    let last = at.len() - 1;
    assert!(matches!(refused(&[&tar[..end], part(last), &tar[end..]].concat()), LibraryError::Archive(_)));
    assert!(matches!(refused(&[part(1), head, rest(2)].concat()), LibraryError::Archive(_)));
}

/// A disk that says how much room it has.
fn full(room: Room) -> Interposed {
    Interposed::new(Arc::new(MemoryFiles::new()), move |_, act, go_on| {
        if let Act::Room(told) = act {
            told.set(room);
        }
        go_on()
    })
}

/// A-05, spec: LIB-6. What an archive declares is compared with the free space, less the reserve, before a byte is written.
#[test]
fn a05_an_archive_that_does_not_fit_is_refused_before_it_is_written() {
    let (directory, tar) = archive();
    let declared = names(&directory).iter().map(|name| content(&directory, name).len() as u64).sum::<u64>();
    let attempt = |free_bytes, reserve| {
        let library = open(&full(Room { free_bytes, total_bytes: 1_000_000 }));
        library.import(Origin::Tar(&mut Cursor::new(&*tar)), &expected(), reserve, &mut go_on)
    };
    attempt(declared, 0).unwrap();
    attempt(declared + 100_000, 10).unwrap();
    for (free, reserve) in [(declared - 1, 0), (declared + 99_999, 10), (0, 0), (declared + 100_000, 11)] {
        let error = attempt(free, reserve).unwrap_err();
        assert!(matches!(error, LibraryError::NoRoom { needed, .. } if needed == declared), "{error}");
    }
    // An index that declares more than any disk has, and brings nothing of it.
    let index = names(&directory).into_iter().find(|name| name.ends_with(".snapshot")).unwrap();
    let mut index = Index::from_bytes(&content(&directory, &index)).unwrap();
    let last = index.chunks.len() - 1;
    index.chunks[last].bytes = 15_999_936;
    let files = MemoryFiles::from_image(&directory.image());
    replace(&files, "00000000000000000012-1.snapshot", &index.to_bytes());
    let library = open(&full(Room { free_bytes: 10_000_000, total_bytes: 20_000_000 }));
    let error = library.import(Origin::Directory(&files), &expected(), 0, &mut go_on).unwrap_err();
    assert!(matches!(error, LibraryError::NoRoom { .. }), "{error}");
    // And one that declares less than it brings, so that it seems to have room, or more.
    let true_bytes = content(&directory, &format!("{}.chunk", index.chunks[last].name)).len();
    for bytes in [1, true_bytes - 1, true_bytes + 1] {
        index.chunks[last].bytes = u32::try_from(bytes).unwrap();
        replace(&files, "00000000000000000012-1.snapshot", &index.to_bytes());
        let library = open(&MemoryFiles::new());
        let error = library.import(Origin::Directory(&files), &expected(), 0, &mut go_on).unwrap_err();
        let named = format!("it has {true_bytes} bytes, the index says {bytes}");
        assert!(matches!(&error, LibraryError::Damaged { what, .. } if *what == named), "{error}");
        let verified = verify_directory(&files, &expected()).unwrap_err();
        assert_eq!(verified.to_string(), error.to_string());
    }
}

/// A file of a tar.
fn entry(tar: &[u8], name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut entry = with_header(&tar[..BLOCK], 0, |header| {
        header[..100].fill(0);
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..135].copy_from_slice(format!("{:011o}", bytes.len()).as_bytes());
    });
    entry.extend(bytes);
    entry.resize(entry.len().next_multiple_of(BLOCK), 0);
    entry
}

/// S-06, spec: SNAP-3. What may come out of a chunk follows from the chunk weight that the archive names, so a weight that
/// no chain has is refused before anything is unpacked, also where no chain is expected.
#[test]
fn s06_an_archive_that_names_its_own_cap_is_refused() {
    const MOST: u32 = 10 << 20;
    const BLOCK_BYTES: u32 = 128 << 10;
    let (directory, tar) = archive();
    let name = "00000000000000000012-1.snapshot";
    // A gibibyte of zeros in some kilobytes: blocks of one byte each that is to be repeated.
    let expanded: u32 = 1 << 30;
    let blocks = expanded / BLOCK_BYTES;
    let block = |number: u32| {
        [&(BLOCK_BYTES << 3 | 1 << 1 | u32::from(number + 1 == blocks)).to_le_bytes()[..3], &[0]].concat()
    };
    let head = [&[0x28, 0xb5, 0x2f, 0xfd, 0x80, 13 << 3], &expanded.to_le_bytes()[..]].concat();
    let frame = (0..blocks).fold(head, |frame, number| [frame, block(number)].concat());
    let bomb = [&[1], &expanded.to_le_bytes()[..], &frame].concat();
    for (weight, refused) in [(MOST, false), (MOST + 1, true), (u32::MAX, true)] {
        let mut index = Index::from_bytes(&content(&directory, name)).unwrap();
        index.metadata.chunk_weight_max = weight;
        (index.metadata.pages, index.metadata.chunks) = (1, 1);
        let mut hasher = TaggedHasher::new(Tag::new("library-chunk"));
        index.chunks.truncate(1);
        index.chunks[0].bytes = u32::try_from(bomb.len()).unwrap();
        index.chunks[0].digest = hasher.update(&bomb).finish();
        let chunk = format!("{}.chunk", index.chunks[0].name);
        let files = [entry(&tar, name, &index.to_bytes()), entry(&tar, &chunk, &bomb), vec![0; 2 * BLOCK]].concat();
        let error = verify_tar(&files, &Expected::default()).unwrap_err();
        let by_weight = matches!(&error, LibraryError::Archive(what) if what.contains("weight of a chunk"));
        assert_eq!(by_weight, refused, "{weight}: {error}");
        assert!(refused || error.to_string().contains("a chunk is 1073741824 bytes"), "{weight}: {error}");
    }
}

fn replace(files: &MemoryFiles, name: &str, bytes: &[u8]) {
    files.remove(name).unwrap();
    files.create(name, bytes.len() as u64).unwrap().write_at(0, bytes).unwrap();
}

/// a table of contents of a gigabyte, or one that nests without end, costs nothing: it is a flat list whose length
/// is compared with a limit before it is read.
#[test]
fn a07_a_huge_or_deep_index_is_refused_before_it_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let name = directory.path().join("00000000000000000012-1.snapshot");
    let file = std::fs::File::create(&name).unwrap();
    file.set_len(1 << 30).unwrap();
    let source = Directory::existing(directory.path()).unwrap();
    let library = open(&MemoryFiles::new());
    let error = library.import(Origin::Directory(&source), &expected(), 0, &mut go_on).unwrap_err();
    assert!(matches!(error, LibraryError::TooLarge { found, .. } if found == 1 << 30), "{error}");
    let (_, tar) = archive();
    let huge = with_header(&tar, 0, |header| header[124..135].copy_from_slice(b"10000000000"));
    assert!(matches!(refused(&huge), LibraryError::TooLarge { .. }));
    std::fs::write(&name, "[".repeat(100_000)).unwrap();
    let error = library.import(Origin::Directory(&source), &expected(), 0, &mut go_on).unwrap_err();
    assert!(matches!(error, LibraryError::Archive(_)), "{error}");
}

/// A-08, spec: LIB-8. A snapshot of another chain, hasher, cut or root is refused before its chunks are looked at.
#[test]
fn a08_an_archive_of_another_chain_is_refused() {
    type Change = fn(&mut SnapshotParams);
    let (directory, _) = archive();
    let refused = |expected: &Expected| {
        let files = MemoryFiles::new();
        let error = open(&files).import(Origin::Directory(&directory), expected, 0, &mut go_on).unwrap_err();
        assert_eq!(names(&files), [""; 0]);
        error
    };
    let cases: [(&str, Change); 3] = [
        ("chain", |params| params.chain_id = ChainId::new("test-2").unwrap()),
        ("hasher", |params| params.hasher = keelstone_tree::HashKind::Sha256),
        ("chunk weight", |params| params.chunk_weight_max += 1),
    ];
    for (named, change) in cases {
        let mut params = params();
        change(&mut params);
        let error = refused(&Expected { params: Some(params), root: None });
        assert!(matches!(&error, LibraryError::Foreign { what, .. } if *what == named), "{named}: {error}");
    }
    let root = Root(Hash([1; 32]));
    let error = refused(&Expected { root: Some(root), ..expected() });
    assert!(matches!(&error, LibraryError::OtherRoot { expected, .. } if *expected == root), "{error}");
}

/// an index whose root or chain was changed, with its checksum put right: the chunks do not prove it.
#[test]
fn a08_an_index_that_says_another_root_is_not_proven() {
    let (directory, _) = archive();
    let name = "00000000000000000012-1.snapshot";
    let mut index = Index::from_bytes(&content(&directory, name)).unwrap();
    index.root = version(200, 1, 1).root();
    let files = MemoryFiles::from_image(&directory.image());
    replace(&files, name, &index.to_bytes());
    let library = open(&MemoryFiles::new());
    let error = library.import(Origin::Directory(&files), &expected(), 0, &mut go_on).unwrap_err();
    assert!(matches!(error, LibraryError::Unproven { index: 0, .. }), "{error}");
}

/// A chunk whose bytes and digest were both changed is refused by what it must hold.
#[test]
fn a_forged_chunk_with_a_matching_digest_is_not_proven() {
    let (directory, _) = archive();
    let (other, _) = {
        let files = MemoryFiles::new();
        let library = open(&files);
        create(&library, &version(200, 200, 9), 12).unwrap();
        let directory = MemoryFiles::new();
        library.export_directory(id(12), &directory, 0, &mut go_on).unwrap();
        (directory, ())
    };
    let index_of = |files: &MemoryFiles| Index::from_bytes(&content(files, "00000000000000000012-1.snapshot")).unwrap();
    let (mut index, theirs) = (index_of(&directory), index_of(&other));
    let last = index.chunks.len() - 1;
    // The chunk of another state, at the place and under the name of ours.
    let forged = content(&other, &format!("{}.chunk", theirs.chunks[last].name));
    index.chunks[last] = keelstone_sync::library::Stored { name: index.chunks[last].name, ..theirs.chunks[last] };
    let files = MemoryFiles::from_image(&directory.image());
    replace(&files, &format!("{}.chunk", index.chunks[last].name), &forged);
    replace(&files, "00000000000000000012-1.snapshot", &index.to_bytes());
    let target = MemoryFiles::new();
    let library = open(&target);
    let error = library.import(Origin::Directory(&files), &expected(), 0, &mut go_on).unwrap_err();
    assert!(matches!(error, LibraryError::Unproven { index, .. } if index as usize == last), "{error}");
    assert_eq!(names(&target), [""; 0]);
}

/// What comes in is shared with what is here, and a damaged file of ours does not keep it out.
#[test]
fn an_import_shares_what_is_here_and_heals_what_is_damaged() {
    let (directory, _) = archive();
    let files = MemoryFiles::new();
    let library = open(&files);
    create(&library, &version(200, 1, 1), 11).unwrap();
    let before = names(&files).len();
    library.import(Origin::Directory(&directory), &expected(), 0, &mut go_on).unwrap();
    assert!(names(&files).len() - before < names(&directory).len() / 2);
    assert_eq!(heights(&library), [12, 11]);
    library.delete(id(12)).unwrap();
    let shared = names(&directory).into_iter().find(|name| files.open(name).is_ok()).unwrap();
    flip(&files, &shared, 5);
    library.import(Origin::Directory(&directory), &expected(), 0, &mut go_on).unwrap();
    library.verify(id(12), &mut go_on).unwrap();
    assert_eq!(heights(&library), [12], "the one that needed the damaged file is off the list");
}

fn read(files: &MemoryFiles, name: &str) -> Vec<u8> {
    let file = files.open(name).unwrap();
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    file.read_at(0, &mut bytes).unwrap();
    bytes
}

/// spec: LIB-7. What an export that was cut off has left is gone on with, whatever it was at: chunks that are there, one that is cut
/// short, one that was being written, the index that came last. What is of another snapshot refuses the directory, and stays.
#[test]
fn an_export_that_was_cut_off_is_gone_on_with() {
    let (files, whole) = (MemoryFiles::new(), MemoryFiles::new());
    let library = open(&files);
    create(&library, &version(200, 1, 1), 11).unwrap();
    create(&library, &version(200, 2, 1), 12).unwrap();
    library.export_directory(id(11), &whole, 0, &mut go_on).unwrap();
    let all = names(&whole);
    assert!(all.len() > 3, "there are several chunks");
    let put = |into: &MemoryFiles, name: &str, bytes: &[u8]| {
        into.create(name, bytes.len() as u64).unwrap().write_at(0, bytes).unwrap();
    };
    for kept in 0..=all.len() {
        let into = MemoryFiles::new();
        let is_chunk = |name: &&String| name.ends_with(".chunk");
        let (chunks, index): (Vec<_>, Vec<_>) = all.iter().partition(is_chunk);
        let order: Vec<_> = chunks.into_iter().chain(index).collect();
        for name in &order[..kept] {
            put(&into, name, &read(&whole, name));
        }
        if let Some(next) = order.get(kept) {
            put(&into, &format!("{next}.tmp"), b"half");
        }
        if kept > 0 && order[0].ends_with(".chunk") {
            replace(&into, order[0], b"cut short");
        }
        library.export_directory(id(11), &into, 0, &mut go_on).unwrap();
        assert_eq!(names(&into), all);
        assert!(all.iter().all(|name| read(&into, name) == read(&whole, name)), "after {kept} files");
        let before = names(&into);
        let other = library.export_directory(id(12), &into, 0, &mut go_on).unwrap_err();
        assert!(matches!(other, LibraryError::Archive(_)), "{other}");
        assert_eq!(names(&into), before);
    }
}

/// Nothing is exported over something.
#[test]
fn an_export_takes_an_empty_directory_only() {
    let files = MemoryFiles::new();
    let library = open(&files);
    create(&library, &version(20, 0, 0), 1).unwrap();
    let into = MemoryFiles::new();
    into.create("x", 1).unwrap();
    let error = library.export_directory(id(1), &into, 0, &mut go_on).unwrap_err();
    assert!(matches!(error, LibraryError::Archive(_)), "{error}");
    assert_eq!(into.list().unwrap(), ["x"]);
    let absent = library.export_tar(id(9), &mut Vec::new(), &mut go_on).unwrap_err();
    assert!(matches!(absent, LibraryError::NotFound(_)));
}
