//! State sync through the library: a snapshot is made, kept, served by two sources of which one lies, received, interrupted
//! and resumed; then a delta, a part with its proof, and the configuration that makes a CometBFT node join. Nothing leaves
//! this machine.
//!
//! ```sh
//! cargo run --example state_sync
//! ```
//!
//! The same from the command line: `docs/snapshots.md`. Rules: `spec/snapshot.md` and `spec/library.md`.
#![forbid(unsafe_code)]

use keelstone::codec::{Encode as _, Key, Namespace, Root};
use keelstone::ledger::{Committed, Genesis, Ledger, PoolLimits, SecretKey, Transaction};
use keelstone::node::{Application, Exit};
use keelstone::prelude::*;
use keelstone::store::files::Directory;
use keelstone::store::kv::MemoryKv;
use keelstone::store::{Options, Store};
use keelstone::sync::delta::Delta;
use keelstone::sync::library::{Expected, Info, Library, Making, Origin, Pin};
use keelstone::sync::snapshot::{
    ChunkVerdict, Metadata, Offer, OfferVerdict, Restore, RestoreLimits, SnapshotParams, snapshot_hash,
};
use keelstone::tree::{Blake3, HashKind, ProofLimits, Query, RangeAnswer, Verifier};
use std::error::Error;
use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// The state that is to travel: texts by number.
#[namespace("notes")]
pub(crate) struct Notes {
    by_number: Map<u64, Text<200>>,
}

/// Writes a note in the place of the one that was there.
#[transition("notes.write/1")]
pub(crate) struct WriteNote {
    number: u64,
    text: Text<200>,
}

impl Transition<Notes> for WriteNote {
    type Output = ();

    fn apply(&self, notes: &mut Draft<Notes>, _: &mut Context) -> Result<(), Denied> {
        Ok(notes.by_number.insert(&self.number, &self.text)?)
    }
}

fn registry() -> Registry {
    Registry::new().with::<Notes, WriteNote>()
}

fn main() -> Outcome {
    let directory = tempfile::tempdir()?;
    run(directory.path())
}

/// The whole story, in an empty directory.
pub(crate) fn run(directory: &Path) -> Outcome {
    let at = |name: &str| Directory::new(directory.join(name)).map(Arc::new);

    println!("1. A chain with some state");
    let mut genesis = Genesis::new(ChainId::new("notes-1")?);
    // All nodes cut alike, so this is a limit of the chain. Small here, so that there is something to see.
    genesis.limits.snapshot_chunk_bytes = 64 << 10;
    let params = SnapshotParams {
        chain_id: genesis.chain_id.clone(),
        hasher: genesis.hasher,
        chunk_weight_max: genesis.limits.snapshot_chunk_bytes,
    };
    let store = Store::<Blake3>::create(at("chain")?, Options::default())?;
    let chain = Ledger::create(store, Arc::new(MemoryKv::new()), registry(), &genesis, PoolLimits::default())?;
    for nonce in 0..4 {
        write_notes(&chain, nonce, nonce * 3_000..(nonce + 1) * 3_000, "as it was")?;
    }
    let (height, root) = (chain.height(), chain.root());
    println!("   height {height}, {} entries, root {root}", chain.view().totals().count);

    println!("2. A snapshot of it, in a library");
    let (library, _) = Library::open(at("library")?)?;
    // Made from a view, which never changes: blocks go on meanwhile. Read back and proven before it is listed.
    let making = Making { reserve_percent: 0, ..Making::default() };
    let mut go_on = |_| ControlFlow::Continue(());
    let info = library.create(&chain.view(), &params, height, root, &making, &mut go_on)?;
    for listed in library.list() {
        println!(
            "   height {}: {} chunks, {} of them pages of the tree",
            listed.id.height, listed.chunks, listed.pages
        );
    }
    let metadata = Metadata::from_bytes(&info.metadata)?;
    println!("   metadata: {metadata:?}");
    // Both sides know everything that is hashed, so nobody has to be believed.
    assert_eq!(info.hash, snapshot_hash(&params, height, root));

    println!("3. Received from two sources, one of which lies, and interrupted in the middle");
    let pin = library.pin(info.id).ok_or("the snapshot is there")?;
    // The root is all a receiver trusts: it comes from a header that consensus certified.
    receive_half(&pin, &info, &params, root, at("staging")?)?;
    let restored = receive_rest(&pin, &info, &params, root, at("staging")?, at("restored")?)?;
    assert_eq!((restored.root(), restored.height()), (root, Some(height)));
    println!("   restored: root {}", restored.root());

    println!("4. The restored node goes on with the chain");
    let heir = Ledger::open(restored, Arc::new(MemoryKv::new()), registry(), PoolLimits::default())?;
    let ours = write_notes(&chain, 4, 100..110, "as it is now")?;
    let theirs = write_notes(&heir, 4, 100..110, "as it is now")?;
    assert_eq!(ours.root, theirs.root);
    println!("   block {}: both come to root {}", ours.block.height, ours.root);

    println!("5. What changed since, as a delta over the old snapshot");
    let (older, later) = (chain.view_at(height)?, chain.view());
    let (from, to) = ((height, root), (chain.height(), chain.root()));
    let delta = Delta::between(params.chain_id.clone(), HashKind::Blake3, (&older, from), (&later, to))?.to_bytes();
    println!("   {} bytes", delta.len());
    let delta = Delta::from_bytes(&delta)?;
    delta.check(&params.chain_id, HashKind::Blake3, from, to)?;
    let mut building = Store::<Blake3>::build(at("forward")?, Options::default(), to.0)?;
    let mut applying = delta.apply();
    let mut push = |namespace: &Namespace, key: &Key, value: &[u8]| building.push(namespace, key, value);
    let mut failed = None;
    let mut each = |namespace: &Namespace, key: &[u8], value: &[u8]| {
        let key = Key::new(key).expect("a proven entry has a key");
        applying.entry(namespace, &key, value, &mut push).map_err(|error| {
            failed = Some(error);
            keelstone::sync::library::LibraryError::Stopped
        })
    };
    let read = Origin::Kept(&pin).entries(&trusting(&params, root), &mut each, &mut go_on);
    match failed {
        Some(error) => return Err(error.into()),
        None => drop(read?),
    }
    applying.finish(&mut push)?;
    // There is no store unless the root it comes to is the one that is trusted.
    assert_eq!(building.finish(to.1)?.root(), chain.root());
    println!("   snapshot and delta come to root {}", to.1);

    println!("6. One namespace alone, with the proof that it is all of it");
    let notes = Namespace::new("notes")?;
    let taken = Origin::Kept(&pin).extract(&trusting(&params, root), &notes, b"")?;
    let mut verifier = Verifier::<Blake3>::new(root, ProofLimits { bytes: 64 << 20, nodes: 1 << 20 });
    let verified = verifier.verify(&taken.proof, &[Query::Prefix(notes.clone(), Vec::new())])?;
    let RangeAnswer::Complete(proven) = verified.prefix(&notes, b"") else { return Err("the proof is whole".into()) };
    assert_eq!(proven, taken.entries);
    println!("   {} entries, proven by {} bytes under the root alone", proven.len(), taken.proof.len());

    println!("7. CometBFT's configuration, from what two nodes agree on");
    configure(directory)
}

/// Writes notes in one block.
fn write_notes(
    chain: &Ledger<Blake3>,
    nonce: u64,
    numbers: std::ops::Range<u64>,
    text: &str,
) -> Outcome<Arc<Committed>> {
    let key = SecretKey::from_seed(&[7; 32]);
    let write = |number| Ok(Operation::of(&WriteNote { number, text: Text::new(format!("note {number}, {text}"))? }));
    let transaction = Transaction {
        chain_id: chain.facts().chain_id.clone(),
        sender: key.public(),
        nonce,
        expiry_height: Height(1_000),
        session: None,
        bundle: Bundle::new(Mode::Sync, numbers.map(write).collect::<Outcome<_>>()?)?,
    };
    chain.submit(&transaction.sign(&key).to_bytes())?;
    let committed = chain.produce(Timestamp(nonce), key.public())?;
    assert!(committed.receipts.iter().all(|receipt| receipt.succeeded()));
    Ok(committed)
}

/// What a snapshot must be of to be read.
fn trusting(params: &SnapshotParams, root: Root) -> Expected {
    Expected { params: Some(params.clone()), root: Some(root) }
}

/// What is offered by whoever has the snapshot.
fn offer(info: &Info) -> Offer {
    Offer {
        height: info.id.height.0,
        format: info.id.format,
        chunks: info.chunks,
        hash: info.hash.as_bytes().to_vec(),
        metadata: info.metadata.clone(),
    }
}

/// A source that changes one bit of what it sends.
fn lie(chunk: &[u8]) -> Vec<u8> {
    let mut chunk = chunk.to_vec();
    let middle = chunk.len() / 2;
    chunk[middle] ^= 1;
    chunk
}

/// Receives half of the chunks, and is then cut off.
fn receive_half(pin: &Pin, info: &Info, params: &SnapshotParams, root: Root, staging: Arc<Directory>) -> Outcome {
    let mut restore = Restore::<Blake3>::open(staging, params.clone(), RestoreLimits::default())?;
    // An offer that cannot be of this root is refused with whoever made it.
    let forged = Offer { hash: vec![9; 32], ..offer(info) };
    assert!(matches!(restore.offer(&forged, root.as_bytes()), OfferVerdict::RejectSender { .. }));
    assert_eq!(restore.offer(&offer(info), root.as_bytes()), OfferVerdict::Accept);
    for index in 0..info.chunks / 2 {
        let chunk = pin.chunk(index)?.ok_or("an index below the number of chunks")?;
        // Every third is asked of the liar first.
        if index % 3 == 2 {
            match restore.apply(index, &lie(&chunk), "liar") {
                ChunkVerdict::Retry { refetch, reject_senders, reason } => {
                    println!(
                        "   chunk {index} refused ({reason}), asked for again {refetch:?}, not from {reject_senders:?}"
                    );
                }
                other => return Err(format!("a bad chunk was answered with {other:?}").into()),
            }
        }
        // Proven before it is written, whoever sends it.
        assert_eq!(restore.apply(index, &chunk, "honest"), ChunkVerdict::Accept);
    }
    println!("   interrupted: {:?}", restore.progress());
    Ok(())
}

/// Goes on where the staging directory says, and builds a store of what was proven.
fn receive_rest(
    pin: &Pin,
    info: &Info,
    params: &SnapshotParams,
    root: Root,
    staging: Arc<Directory>,
    into: Arc<Directory>,
) -> Outcome<Store<Blake3>> {
    let mut restore = Restore::<Blake3>::open(staging, params.clone(), RestoreLimits::default())?;
    // The same offer again: what the first half left is proven anew, and kept.
    assert_eq!(restore.offer(&offer(info), root.as_bytes()), OfferVerdict::Accept);
    let resumed = restore.progress().chunks_done;
    assert_eq!(resumed, info.chunks / 2);
    for index in resumed..info.chunks {
        let chunk = pin.chunk(index)?.ok_or("an index below the number of chunks")?;
        assert_eq!(restore.apply(index, &chunk, "honest"), ChunkVerdict::Accept);
    }
    println!("   resumed at chunk {resumed}: {:?}", restore.progress());
    let mut building = Store::<Blake3>::build(into, Options::default(), info.id.height)?;
    restore.entries(|namespace, key, value| building.push(namespace, key, value))?;
    let store = building.finish(root)?;
    restore.clear()?;
    Ok(store)
}

/// Has `keelstone statesync configure` edit a configuration file, as an application of one's own would: two stand-ins answer
/// as CometBFT's RPC does.
fn configure(directory: &Path) -> Outcome {
    let home = directory.join("cometbft");
    let file = home.join("config/config.toml");
    std::fs::create_dir_all(home.join("config"))?;
    std::fs::write(&file, "[p2p]\nsend_rate = 5120000\n\n[statesync]\nenable = false\n")?;
    let listeners = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
    let mut arguments: Vec<OsString> =
        ["state_sync", "statesync", "configure", "--cometbft-home"].map(Into::into).into();
    arguments.push(home.into());
    // Blocks of the stand-ins are as old as this example: they are trusted for as long as can be.
    arguments.extend(["--trust-period", "2562047h"].map(Into::into));
    for listener in &listeners {
        arguments.extend(["--rpc".into(), format!("http://{}", listener.local_addr()?).into()]);
    }
    let exit = std::thread::scope(|scope| {
        for (number, listener) in listeners.iter().enumerate() {
            scope.spawn(move || stand_in(number, listener));
        }
        let exit = Application::new(registry()).name("state_sync").run(arguments);
        for listener in &listeners {
            // A connection that asks nothing tells a stand-in to end.
            drop(listener.local_addr().and_then(std::net::TcpStream::connect));
        }
        exit
    });
    assert_eq!(exit, Exit::Ok);
    let written = std::fs::read_to_string(&file)?;
    assert!(written.contains("enable = true") && written.contains("trust_height = 3000"), "{written}");
    println!("{}", written.lines().map(|line| format!("   | {line}\n")).collect::<String>());
    Ok(())
}

/// A node of CometBFT, as far as it is asked here.
fn stand_in(number: usize, listener: &TcpListener) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { return };
        let mut request = [0; 4096];
        let got = stream.read(&mut request).unwrap_or(0);
        let asked = String::from_utf8_lossy(&request[..got]).into_owned();
        let result = match asked.split("height=").nth(1).and_then(|rest| rest.split(' ').next()) {
            _ if asked.is_empty() => return,
            None => format!(
                r#"{{"node_info":{{"network":"notes-1","id":"node{number}","version":"0.40.0"}},"sync_info":{{"latest_block_height":"5000","earliest_block_height":"1","catching_up":false}}}}"#
            ),
            Some(height) => format!(
                r#"{{"signed_header":{{"header":{{"chain_id":"notes-1","height":"{height}","app_hash":"00","time":"2026-01-01T00:00:00Z"}},"commit":{{"block_id":{{"hash":"{}"}}}}}}}}"#,
                "AB".repeat(32)
            ),
        };
        // Whoever hangs up does not want to know.
        let _ = write!(stream, "HTTP/1.0 200 OK\r\n\r\n{{\"jsonrpc\":\"2.0\",\"id\":-1,\"result\":{result}}}");
    }
}
