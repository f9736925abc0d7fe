//! A node's storage is what its export says, and what is not a node's storage is refused by name.
//!
//! The files are made by `tests/data/xian-storage/make.py` with the library that Xian uses.

use super::*;
use hdf5_pure::{AttrValue, FileBuilder};
use keelstone_codec::ChainId;
use keelstone_ledger::{Genesis, JSON_DEPTH_MAX};
use keelstone_tree::{Blake3, MemoryTree};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/xian-storage").join(name)
}

/// A copy of a storage directory, to spoil.
fn copy(layout: &str) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for below in ["contract_state", "run_state"] {
        fs::create_dir(to.path().join(below)).unwrap();
        for entry in fs::read_dir(data(layout).join(below)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), to.path().join(below).join(entry.file_name())).unwrap();
        }
    }
    fs::copy(data(layout).join("__latest_block.json"), to.path().join("__latest_block.json")).unwrap();
    to
}

fn refused(directory: &Path) -> StorageError {
    read(directory, |_| {}).err().expect("it is no storage of a Xian node")
}

fn hostile(name: &str) -> Result<Keys, FileError> {
    keys_of_bytes(fs::read(data("hostile").join(format!("{name}.h5"))).unwrap())
}

/// spec: XIAN-9. Both layouts of HDF5 give the document that Xian's export gives, and the state has the same root.
#[test]
fn a_storage_directory_is_what_its_export_says() {
    let export = fs::read(data("export.json")).unwrap();
    let root = |json: Json| {
        let mut genesis = Genesis::new(ChainId::new("xian").unwrap());
        genesis.import_xian_json(json).unwrap();
        MemoryTree::<Blake3>::new().apply(&genesis.first_state().unwrap().diff)
    };
    let exported = Json::parse(&export, JSON_DEPTH_MAX + 4).unwrap();
    for layout in ["earliest", "latest"] {
        let mut files = 0;
        let storage = read(&data(layout), |total| {
            files += 1;
            assert_eq!(total, 3);
        });
        let storage = storage.unwrap();
        assert_eq!((files, storage.contracts, storage.compiled), (3, 3, 1), "{layout}");
        assert_eq!(storage.document, exported, "{layout}, down to the order of members");
        assert_eq!(root(storage.document), root(exported.clone()), "{layout}");
    }
}

/// A node that has made no block yet has no nonces and no last block.
#[test]
fn a_storage_directory_may_be_new() {
    let home = copy("earliest");
    fs::remove_file(home.path().join("__latest_block.json")).unwrap();
    fs::remove_file(home.path().join("run_state/__n")).unwrap();
    let document = read(home.path(), |_| {}).unwrap().document;
    assert_eq!(document.member("hash"), Some(&Json::Text(String::new())));
    assert_eq!(document.member("number"), Some(&Json::Number(Number::from(0))));
    assert_eq!(document.member("nonces"), Some(&Json::List(Vec::new())));
}

#[test]
fn what_is_no_storage_directory_is_refused_by_name() {
    let layout = |error: StorageError| match error {
        StorageError::Layout { path, what } => (path, what),
        other => panic!("{other}"),
    };
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(layout(refused(empty.path())).0, empty.path().join("contract_state"));
    fs::write(empty.path().join("contract_state"), "a file").unwrap();
    assert!(layout(refused(empty.path())).1.contains("not a directory"));

    // Never through a link, wherever it leads.
    for (link, to) in [
        ("contract_state/con_link", "con_odd"),
        ("contract_state/con_link", "nowhere"),
        ("contract_state/con_link", "/etc/passwd"),
        ("run_state/__n", "__pn"),
        ("__latest_block.json", "contract_state/currency"),
    ] {
        let home = copy("earliest");
        let path = home.path().join(link);
        let _ = fs::remove_file(&path);
        symlink(to, &path).unwrap();
        let (at, what) = layout(refused(home.path()));
        assert_eq!((at, what), (path, "is not a file of its own"), "{link} to {to}");
    }
    for below in ["contract_state", "run_state"] {
        let home = copy("earliest");
        fs::rename(home.path().join(below), home.path().join("elsewhere")).unwrap();
        symlink("elsewhere", home.path().join(below)).unwrap();
        assert_eq!(layout(refused(home.path())), (home.path().join(below), "is not a directory of its own"));
    }
    let home = copy("earliest");
    fs::create_dir(home.path().join("contract_state/con_dir")).unwrap();
    assert_eq!(layout(refused(home.path())).0, home.path().join("contract_state/con_dir"));
    // What waits for a writer would hold the command for ever.
    let home = copy("earliest");
    let fifo = home.path().join("contract_state/con_fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    assert_eq!(layout(refused(home.path())).0, fifo);

    for name in [b"con.x".as_slice(), b"con:x", b"__n", b".hidden", b"\xff\xfe", b"..."] {
        let home = copy("earliest");
        let path = home.path().join("contract_state").join(std::ffi::OsStr::from_bytes(name));
        fs::copy(data("earliest/contract_state/con_odd"), path).unwrap();
        assert!(matches!(refused(home.path()), StorageError::Name { .. }), "{}", name.escape_ascii());
    }

    for (text, what) in [
        ("{\"hash\":1,\"height\":1}", "`hash` is not hexadecimal text"),
        ("{\"hash\":\"0g\",\"height\":1}", "`hash` is not hexadecimal text"),
        ("{\"hash\":\"\",\"height\":\"1\"}", "`height` is not an integer"),
        ("{\"hash\":\"\",\"height\":1.5}", "`height` is not an integer"),
        (&format!("{:5000}", 1), "is longer than what a node writes there"),
    ] {
        let home = copy("earliest");
        fs::write(home.path().join("__latest_block.json"), text).unwrap();
        assert_eq!(layout(refused(home.path())).1, what);
    }
    let home = copy("earliest");
    fs::write(home.path().join("__latest_block.json"), "{\"hash\":").unwrap();
    assert!(matches!(refused(home.path()), StorageError::Block { .. }));
    // An account's nonce has no parts.
    fs::copy(home.path().join("contract_state/currency"), home.path().join("run_state/__n")).unwrap();
    assert_eq!(layout(refused(home.path())).1, "a group below that of an account");
}

/// The state that is read is one that was: a file written to meanwhile ends the import.
#[test]
fn a_node_that_writes_meanwhile_is_noticed() {
    for change in [
        (|home: &Path| drop(fs::write(home.join("contract_state/con_odd"), "other"))) as fn(&Path),
        |home| fs::remove_file(home.join("contract_state/con_empty")).unwrap(),
        |home| {
            fs::copy(home.join("contract_state/currency"), home.join("contract_state/con_new")).unwrap();
        },
    ] {
        let home = copy("earliest");
        let mut files = 0;
        let found = read(home.path(), |_| {
            files += 1;
            if files == 3 {
                change(home.path());
            }
        });
        assert!(matches!(found.err(), Some(StorageError::Changed { .. })));
    }
}

#[test]
fn a_file_that_no_node_writes_is_refused_by_name() {
    for layout in ["earliest", "latest"] {
        let of = |name: &str| hostile(&format!("{name}-{layout}")).expect_err(name);
        // Circles and second names: each group has one.
        for name in ["circle", "own-parent", "twice"] {
            let found = of(name);
            assert!(matches!(found, FileError::LinkedTwice { .. }), "{name}, {layout}: {found}");
        }
        // Groups nested as deep as one likes end where keys do.
        assert!(matches!(of("deep"), FileError::KeyTooLong { found: 4_099.., .. }), "{}", of("deep"));
        let named = |error: FileError| match error {
            FileError::Name { why, .. } => why,
            other => panic!("{other}"),
        };
        // In the old layout the library itself refuses such a name.
        let not_text = of("name-not-utf8");
        assert!(matches!(&not_text, FileError::Damaged { .. }) || named(not_text) == "it is not UTF-8");
        assert_eq!(named(of("name-colon")), "Xian ends a part there");
        assert!(matches!(of("dataset"), FileError::NotAGroup { what: "dataset", .. }));
        assert!(matches!(of("datatype"), FileError::NotAGroup { what: "named datatype", .. }));
    }
    let attribute = |name: &str| match hostile(&format!("{name}-earliest")).expect_err(name) {
        FileError::Attribute { name, found, .. } => format!("{name}: {found}"),
        other => panic!("{name}: {other}"),
    };
    assert_eq!(attribute("value-not-utf8"), "value: not UTF-8");
    assert_eq!(attribute("value-integer"), "value: an integer");
    assert_eq!(attribute("value-float"), "value: a float");
    assert_eq!(attribute("value-list"), "value: a list");
    assert_eq!(attribute("value-null"), "value: a list");
    assert_eq!(attribute("value-opaque"), "value: not to be read");
    assert_eq!(attribute("block-text"), "block: of variable length");
    assert_eq!(attribute("block-float"), "block: a float");
    assert_eq!(attribute("block-list"), "block: a list");
    assert_eq!(attribute("attribute-other"), "author: of variable length");
    for name in ["not-json", "nan", "twice", "nested"] {
        let found = hostile(&format!("value-{name}-earliest")).expect_err(name);
        assert!(matches!(found, FileError::Value { .. }), "{name}: {found}");
    }
    assert_eq!(hostile("value-fixed-earliest").unwrap().values, [("a".to_owned(), Json::Text("fixed".to_owned()))]);
    // More attributes than any group of Xian's, in a heap of their own.
    assert!(matches!(hostile("dense-latest"), Err(FileError::Attribute { .. })));
}

/// A link that names a place in this file or in another is not followed: what stands there is none of the contract's.
/// The old layout lists such links as groups that are nowhere, the new one as what they are.
#[test]
fn links_that_name_another_place_are_not_followed() {
    for name in ["soft", "dangling"] {
        let found = hostile(&format!("{name}-earliest")).expect_err(name);
        assert!(matches!(found, FileError::Damaged { .. }), "{name}: {found}");
    }
    for name in ["soft", "dangling", "external"] {
        let found = hostile(&format!("{name}-latest")).unwrap().values;
        assert_eq!(found, [("a".to_owned(), Json::Number(Number::from(1)))], "{name}");
    }
}

/// Cut at any length a file is refused, and quickly: the first bytes say how long it should be.
#[test]
fn a_file_cut_short_is_refused() {
    for layout in ["earliest", "latest"] {
        let whole = fs::read(data(layout).join("contract_state/currency")).unwrap();
        for len in (0..whole.len()).step_by(97).chain([whole.len() - 1]) {
            let found = keys_of_bytes(whole[..len].to_vec());
            // The last bytes may be room that nothing stands in.
            let same = found.as_ref().is_ok_and(|keys| *keys == keys_of_bytes(whole.clone()).unwrap());
            assert!(same || matches!(found, Err(FileError::Damaged { .. })), "{layout}, {len} bytes: {found:?}");
        }
    }
}

/// A value beyond what a read may be is refused before room is made for it, whatever the file claims or has.
#[test]
fn a_value_beyond_the_limit_is_refused() {
    let file = |len: usize| {
        let mut file = FileBuilder::new();
        let mut group = file.create_group("a");
        group.set_attr(VALUE_NAME, AttrValue::VarLenString(format!("\"{}\"", "x".repeat(len))));
        file.add_group(group.finish());
        file.finish().unwrap()
    };
    assert_eq!(keys_of_bytes(file(100_000)).unwrap().values.len(), 1);
    let limit = usize::try_from(READ_BYTES_MAX).unwrap();
    assert!(matches!(keys_of_bytes(file(limit)), Err(FileError::TooLarge { .. })));

    // The length in the reference to the value's text, four bytes that precede the heap's address.
    let mut claims = file(1_000);
    let at = claims.windows(4).position(|bytes| bytes == 1_002u32.to_le_bytes()).unwrap();
    claims[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(keys_of_bytes(claims).is_err());
}

/// What a file may cost beyond a value is bounded too, and each bound has its name.
#[test]
fn a_file_that_costs_more_than_it_may_is_refused_by_what_it_costs() {
    let honest = fs::read(data("earliest/run_state/__n")).unwrap();
    let places = |mark: &[u8]| -> Vec<usize> {
        honest.windows(mark.len()).enumerate().filter(|(_, bytes)| *bytes == mark).map(|(at, _)| at).collect()
    };
    let (tree, heap, node) = (places(b"TREE")[0], places(b"HEAP")[0], places(b"SNOD")[0]);
    let put = |file: &mut Vec<u8>, at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    let address = |at: usize| (at as u64).to_le_bytes();

    // The list of a group's children fans out: each of thirty levels names the one below it twice.
    let mut file = honest.clone();
    let leaf = file.len();
    let of_root: Vec<u8> = honest[tree..heap].to_vec();
    file.extend(&of_root);
    let mut below = leaf;
    for level in 1..=30u8 {
        let at = file.len();
        let mut fan = of_root.clone();
        put(&mut fan, 5, &[level, 2, 0]);
        put(&mut fan, 32, &address(below));
        put(&mut fan, 48, &address(below));
        match level {
            30 => put(&mut file, tree, &fan),
            _ => file.extend(fan),
        }
        below = at;
    }
    let limit = file.len() as u64 * 8 + (1 << 20);
    let found = keys_of_bytes(file);
    assert!(matches!(found, Err(FileError::Endless { limit: found, .. }) if found == limit), "{found:?}");

    // As many children as a list can say, with room for long names.
    let mut file = honest.clone();
    put(&mut file, node + 6, &u16::MAX.to_le_bytes());
    let names = file.len();
    put(&mut file, heap + 8, &20_001u64.to_le_bytes());
    put(&mut file, heap + 24, &address(names));
    file.extend([[b'n'; 20_000].as_slice(), &[0]].concat());
    let found = keys_of_bytes(file);
    assert!(
        matches!(found, Err(FileError::Names { children: 65_535, longest: 20_000, .. })),
        "{found:?}, the limit is {NAMES_BYTES_MAX}"
    );

    // Two children of one group with one name.
    let mut file = honest.clone();
    let (one, other) = ("ab".repeat(32), "0155b1cab2bc9e626b5d05be6354d2972f8223dca5f0872fede68cce7582f535");
    put(&mut file, places(other.as_bytes())[0], one.as_bytes());
    let found = keys_of_bytes(file);
    assert!(matches!(&found, Err(FileError::KeyTwice { at }) if at.to_string().contains("abab")), "{found:?}");

    // More than is left for this file, and a disk that has less than it said.
    let path = data("earliest/run_state/__n");
    let of_file = |len: u64, left: u64| file::keys_of_file(File::open(&path).unwrap(), len, left);
    let whole = of_file(honest.len() as u64, 1_000).unwrap();
    assert_eq!(whole, keys_of_bytes(honest.clone()).unwrap());
    assert_eq!(of_file(honest.len() as u64, whole.text).unwrap(), whole);
    let found = of_file(honest.len() as u64, whole.text - 1);
    assert!(matches!(found, Err(FileError::TooMuch { limit, .. }) if limit == whole.text - 1), "{found:?}");
    let cut = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut &cut, &honest[..500]).unwrap();
    let found = file::keys_of_file(cut, honest.len() as u64, 1_000);
    assert!(matches!(found, Err(FileError::Io(_))), "{found:?}");
}

/// A directory of more contracts than may be is refused before any is read; a file that is none is named.
#[test]
fn a_directory_that_is_too_much_or_holds_no_contract_is_refused() {
    let home = copy("earliest");
    let odd = home.path().join("contract_state/con_strange");
    fs::copy(data("hostile/dataset-earliest.h5"), &odd).unwrap();
    match refused(home.path()) {
        StorageError::File { path, source: FileError::NotAGroup { .. } } => assert_eq!(path, odd),
        other => panic!("{other}"),
    }
    for number in 0..CONTRACTS_MAX {
        File::create(home.path().join(format!("contract_state/con_{number}"))).unwrap();
    }
    let found = refused(home.path());
    assert!(matches!(found, StorageError::TooMany { limit: 65_536, .. }), "{found}");
}

/// Many keys in one file: each group is read a few times, and the limits of reading leave that much room and more.
#[test]
fn a_large_contract_is_within_the_limits() {
    let mut file = FileBuilder::new();
    let mut balances = file.create_group("balances");
    for number in 0..3_000u64 {
        let mut group = balances.create_group(&format!("{number:064x}"));
        group.set_attr(VALUE_NAME, AttrValue::VarLenString(number.to_string()));
        group.set_attr("block", AttrValue::I64(-1));
        balances.add_group(group.finish());
    }
    file.add_group(balances.finish());
    let keys = keys_of_bytes(file.finish().unwrap()).unwrap();
    assert_eq!(keys.values.len(), 3_000);
    assert!(keys.values.is_sorted_by(|a, b| a.0 < b.0));
}

const VALUE_NAME: &str = "value";
