//! Golden bytes of a sector, a record and a superblock: `spec/vectors/store.json`.

use crate::kv::wal;
use crate::record::{self, Head, Layout, Step};
use crate::scrub;
use crate::sector::Seal;
use crate::segment::{Kind, SegmentId, Spot};
use crate::superblock::{Flushed, Superblock};
use keelstone_codec::{Encode, Hash, Height, Key, Namespace, Root, Value};
use keelstone_tree::{Diff, HashKind, Place};
use serde_json::{Value as Json, json};

const STORE: [u8; 16] = [0x5a; 16];

fn found() -> Json {
    let log = SegmentId::first(Kind::Log);
    let spot = Spot { segment: log, offset: 504 };
    let name = Namespace::new("agents").unwrap();
    let key = |bytes: &[u8]| Key::new(bytes).unwrap();
    let diff: Diff = [(name.clone(), key(b"a"), Some(Value::new(b"new".to_vec()).unwrap())), (name, key(b"b"), None)]
        .into_iter()
        .collect();
    let layout = Layout::of(&diff).unwrap();
    let head = Head {
        len: layout.len,
        step: Step::Commit,
        epoch: 1,
        height: Height(7),
        root_before: Root(Hash([0x11; 32])),
        previous: Hash([0x22; 32]),
        parent: Some(spot),
    };
    let mut commit = record::encode_commit(&head, &diff, &[None, Some(Place(spot.to_u64()))]);
    record::finish(&STORE, &mut commit);
    let mut rollback = record::encode_small(Head { step: Step::Rollback, epoch: 2, ..head }, Root(Hash([0x33; 32])));
    record::finish(&STORE, &mut rollback);
    let head = Head { step: Step::Base, epoch: 0, previous: Hash::ZERO, parent: None, ..head };
    let mut base = record::encode_small(head, Root(Hash([0x33; 32])));
    record::finish(&STORE, &mut base);
    let head = Head { step: Step::Mark, epoch: 1, previous: Hash([0x22; 32]), ..head };
    let mut mark = record::encode_small(head, Root(Hash([0x33; 32])));
    record::finish(&STORE, &mut mark);
    let mut sector = Vec::new();
    Seal::new(&STORE, log.code()).write(1, 3, true, &commit, &mut sector);
    let places: Vec<_> = layout.places(spot).map(|place| place.map(|place| place.0)).collect();
    let flushed = Flushed {
        height: Some(Height(7)),
        root: Root(Hash([0x44; 32])),
        table: Some((Spot { segment: SegmentId::first(Kind::Pages), offset: 504 }, 77, Hash([0x55; 32]))),
        record: Some(spot),
        log_hash: Hash([0x66; 32]),
        log: Spot { offset: 1008, ..spot },
        pages: Some(Spot { segment: SegmentId::first(Kind::Pages), offset: 1008 }),
    };
    let superblock = Superblock {
        store: STORE,
        hasher: HashKind::Blake3,
        sequence: 4,
        generation: 3,
        epoch: 1,
        low: Some(Height(2)),
        flushed,
    };
    let changes = [(b"body".to_vec(), Some(vec![7; 3])), (b"old".to_vec(), None)].into_iter().collect();
    json!({
        "commit record": hex::encode(commit),
        "places of its new values": places,
        "rollback record": hex::encode(rollback),
        "base record": hex::encode(base),
        "mark": hex::encode(mark),
        "sector 1 of log segment 1 with the commit record, session 3": hex::encode(sector),
        "superblock": hex::encode(superblock.to_bytes()),
        "scrub, in the log": hex::encode(scrub::golden(Some(log)).to_bytes()),
        "scrub, in the entries": hex::encode(scrub::golden(None).to_bytes()),
        "record of the log in front of a database": hex::encode(wal::record(3, &changes).unwrap()),
        "file name of log segment 1": log.file_name(&STORE),
    })
}

/// spec: STORE-1, STORE-2, STORE-3, STORE-4, STORE-7, STORE-11, STORE-13, STORE-15. The bytes are those that were released; change them only with the format.
#[test]
fn golden_bytes_have_not_changed() {
    golden::check("store.json", &found());
}

/// spec: STORE-3. A record reads back as it was written, and no byte of it can change unnoticed.
#[test]
fn a_record_reads_back_and_every_change_of_it_is_refused() {
    let bytes = hex::decode(found()["commit record"].as_str().unwrap()).unwrap();
    let start = Spot { segment: SegmentId::first(Kind::Log), offset: 504 };
    let record = record::Record::decode(&STORE, start, &bytes.clone().into()).unwrap();
    assert_eq!((record.head.height, record.writes.len()), (Height(7), 2));
    assert_eq!(record.writes[1].new, None);
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert!(record::Record::decode(&STORE, start, &changed.into()).is_err(), "byte {at}");
        assert!(record::Record::decode(&STORE, start, &bytes[..at].to_vec().into()).is_err(), "cut at {at}");
    }
    assert!(record::Record::decode(&[1; 16], start, &bytes.into()).is_err(), "another store's record");
}

/// spec: STORE-3. A record whose keys do not ascend is refused, even under a hash that matches.
#[test]
fn a_record_out_of_order_is_refused() {
    let mut body = hex::decode(found()["commit record"].as_str().unwrap()).unwrap();
    body.truncate(body.len() - 32);
    assert!(crate::hostile::log_record(&body));
    let at = body.windows(3).position(|part| part == [1, b'a', 0]).unwrap() + 1;
    for key in *b"bc" {
        body[at] = key;
        assert!(!crate::hostile::log_record(&body), "{key} before b");
    }
}

/// spec: STORE-4. A slot with bytes behind the superblock, or of another session than its sector, is not good.
#[test]
fn a_slot_says_nothing_but_its_superblock() {
    let mut slot = hex::decode(found()["superblock"].as_str().unwrap()).unwrap();
    slot.resize(504, 0);
    slot.extend_from_slice(&(3u32 << 1).to_le_bytes());
    assert!(crate::hostile::superblock(&slot));
    for at in 502..508 {
        let mut changed = slot.clone();
        changed[at] ^= 8;
        assert!(!crate::hostile::superblock(&changed), "byte {at}");
    }
}
