//! Golden bytes of an index and of an archive: `spec/vectors/library.json`.

use crate::support::{content, create, go_on, id, open, params, version};
use keelstone_codec::{Decode, Encode};
use keelstone_store::files::MemoryFiles;
use keelstone_sync::library::{Expected, Index, Info, Origin};
use serde_json::{Value as Json, json};

fn found() -> Json {
    let files = MemoryFiles::new();
    let library = open(&files);
    // The empty state: one page of a few bytes, which no compressor touches.
    create(&library, &version(0, 0, 0), 1000).unwrap();
    let mut tar = Vec::new();
    library.export_tar(id(1000), &mut tar, &mut go_on).unwrap();
    let name = "00000000000000001000-1.snapshot";
    let index = Index::from_bytes(&content(&files, name)).unwrap();
    json!({
        "index file of the empty state at height 1000 (LIB-1)": name,
        "index of the empty state (LIB-2)": hex::encode(index.to_bytes()),
        "its chunk file (LIB-1)": format!("{}.chunk", index.chunks[0].name),
        "bytes of its chunk file": hex::encode(content(&files, &format!("{}.chunk", index.chunks[0].name))),
        "tar of the empty state (LIB-7)": hex::encode(tar),
    })
}

/// spec: LIB-1, LIB-2, LIB-7. The bytes are those that were released; change them only with the format.
#[test]
fn golden_bytes_have_not_changed() {
    let golden = golden::check("library.json", &found());
    let tar = hex::decode(golden["tar of the empty state (LIB-7)"].as_str().unwrap()).unwrap();
    let info = Origin::Tar(&mut std::io::Cursor::new(&*tar)).verify(&Expected::default(), &mut go_on).unwrap();
    assert_eq!((info.chain_id, info.totals.count), (params().chain_id, 0));
}

/// spec: LIB-2. No other bytes are the same index, and an index reads back as it was written.
#[test]
fn an_index_has_one_encoding() {
    let bytes = hex::decode(found()["index of the empty state (LIB-2)"].as_str().unwrap()).unwrap();
    let index = Index::from_bytes(&bytes).unwrap();
    assert_eq!(index.to_bytes(), bytes);
    assert_eq!(Info::of(&index).bytes, u64::from(index.chunks[0].bytes));
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert!(Index::from_bytes(&changed).is_err(), "byte {at}");
        assert!(Index::from_bytes(&bytes[..at]).is_err(), "cut at {at}");
    }
    assert!(Index::from_bytes(&[bytes.as_slice(), &[0]].concat()).is_err());
    // Under a checksum that matches: a chunk of no bytes, of too many, twice with two sizes, and one chunk too many.
    let with = |change: &dyn Fn(&mut Index)| {
        let mut index = index.clone();
        change(&mut index);
        Index::from_bytes(&index.to_bytes())
    };
    assert!(with(&|_| {}).is_ok());
    assert!(with(&|index| index.chunks[0].bytes = 0).is_err());
    assert!(with(&|index| index.chunks[0].bytes = 15_999_937).is_err());
    assert!(with(&|index| index.chunks.push(index.chunks[0])).is_err());
    let twice = |index: &mut Index| {
        index.metadata.chunks = 2;
        index.chunks.push(index.chunks[0]);
    };
    assert!(with(&twice).is_ok());
    let differently = |index: &mut Index| {
        twice(index);
        index.chunks[1].bytes += 1;
    };
    assert!(with(&differently).is_err());
}
