//! Golden bytes of the messages between peers: `spec/vectors/peers.json`.

use super::{Frame, HeightDiff, Heights, Request, Response, Status, Version, Why};
use keelstone_codec::{
    Blob, BoundedList, BoundedSet, ChainId, Decode, Encode, Hash, Height, Key, Namespace, Root, Value,
};
use keelstone_tree::HashKind;
use serde_json::{Value as Json, json};

fn blob_of<const MAX: usize>(bytes: &[u8]) -> Blob<MAX> {
    Blob::new(bytes).unwrap()
}

fn requests() -> Vec<(&'static str, Request)> {
    let at = Version { height: Height(7), root: Root(Hash([0x11; 32])) };
    let heights = Heights::new(Height(5), Height(7)).unwrap();
    let namespace = Namespace::new("agents").unwrap();
    let blob = |bytes: &[u8]| Blob::new(bytes).unwrap();
    let units = BoundedSet::new([0, 1, 9]).unwrap();
    let range = |end| Request::GetRange { at, namespace: namespace.clone(), start: blob(b"a"), end };
    vec![
        ("status", Request::Status),
        ("header", Request::GetHeader { at, heights }),
        ("nodes", Request::GetNodes { at, page: 2 }),
        ("chunks", Request::GetChunks { at, units }),
        ("diffs", Request::GetDiffs { heights }),
        ("range", range(Some(blob(b"b")))),
        ("range to the end", range(None)),
        ("root at", Request::GetRootAt { height: Height(7) }),
        ("entry", Request::GetEntry { at, namespace: namespace.clone(), key: Key::new(*b"a").unwrap() }),
        ("certificate", Request::GetCertificate),
        ("blocks", Request::GetBlocks { heights }),
        ("announce", Request::Announce { certificate: blob_of(b"certificate") }),
    ]
}

fn responses() -> Vec<(&'static str, Response)> {
    let at = Version { height: Height(7), root: Root(Hash([0x11; 32])) };
    let status = Status {
        chain_id: ChainId::new("vectors-1").unwrap(),
        hasher: HashKind::Blake3,
        chunk_weight_max: 4 << 20,
        newest: at,
        oldest: Height(3),
        diffs_from: Height(4),
    };
    let name = Namespace::new("agents").unwrap();
    let changes = [
        (name.clone(), Key::new(*b"a").unwrap(), Some(Value::new(&b"new"[..]).unwrap())),
        (name, Key::new(*b"b").unwrap(), None),
    ];
    let diffs = vec![HeightDiff { height: Height(5), diff: changes.into_iter().collect() }];
    let whys = [Why::NotKept, Why::OtherRoot, Why::NoSuchPart, Why::TooLarge, Why::Unreadable];
    let mut all = vec![
        ("status", Response::Status(status)),
        ("header", Response::Header(Blob::new(&b"proof"[..]).unwrap())),
        ("nodes", Response::Nodes(Blob::new(&b"\0page"[..]).unwrap())),
        ("chunks", Response::Chunks { units: 2, wire: Blob::new(&b"\0units"[..]).unwrap() }),
        ("diffs", Response::Diffs(BoundedList::new(diffs).unwrap())),
        ("range", Response::Range { next: None, proof: Blob::new(&b"proof"[..]).unwrap() }),
        (
            "part of a range",
            Response::Range { next: Some(Key::new(*b"b").unwrap()), proof: Blob::new(&b"proof"[..]).unwrap() },
        ),
        ("root at", Response::RootAt(at)),
        ("entry", Response::Entry(Blob::new(&b"proof"[..]).unwrap())),
        ("busy", Response::Busy { retry_after_ms: 250 }),
        ("certificate", Response::Certificate(Blob::new(&b"certificate"[..]).unwrap())),
        ("blocks", Response::Blocks(BoundedList::new(vec![blob_of(b"block 5"), blob_of(b"block 6")]).unwrap())),
        ("heard", Response::Heard),
    ];
    all.extend(whys.map(|why| ("unavailable", Response::Unavailable(why))));
    all
}

fn found() -> Json {
    fn list<T: super::Body>(frames: Vec<(&'static str, T)>) -> Vec<Json>
    where
        Frame<T>: Encode,
    {
        let frame = |(name, body)| json!({ "what": name, "bytes": hex::encode(Frame { id: 0x0102, body }.to_bytes()) });
        frames.into_iter().map(frame).collect()
    }
    json!({ "requests": list(requests()), "responses": list(responses()) })
}

/// spec: PEER-1, PEER-2, PEER-3, PEER-4.
#[test]
fn golden_bytes_of_messages_have_not_changed() {
    golden::check("peers.json", &found());
}

/// spec: PEER-1. Every message reads back as what it was.
#[test]
fn golden_messages_read_back() {
    for (name, body) in requests() {
        let frame = Frame { id: 3, body };
        assert_eq!(Frame::from_bytes(&frame.to_bytes()), Ok(frame), "{name}");
    }
    for (name, body) in responses() {
        let frame = Frame { id: 3, body };
        assert_eq!(Frame::from_bytes(&frame.to_bytes()), Ok(frame), "{name}");
    }
}
