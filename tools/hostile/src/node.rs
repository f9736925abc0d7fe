//! What people write, arguments in JSON and configuration files; what an engine, its servers and the network send; and what is
//! handed on of audit logs.

use crate::{Target, canonical};
use keelstone_codec::{Blob, BoundedSet, ChainId, Describe, Encode, Fixed, Hash, Height, Key, Namespace, Text};
use keelstone_ledger::SecretKey;
use keelstone_node::{Config, FRAME_BYTES_MAX, Frames, arguments, check_size, hostile, key_file, shown};
use std::collections::BTreeMap;

type Arguments = ((bool, u8, u128, i64), (Fixed, Hash, Height), (Key, Namespace, ChainId), Collections);
type Collections = (Text<9>, Blob<9>, BTreeMap<String, Vec<u16>>, (BoundedSet<i8, 3>, Option<Box<u32>>));

pub(crate) const ARGUMENTS: Target = Target { name: "arguments", run: from_json, seeds: json };

/// JSON that fits a shape gives bytes that show as JSON which gives them again. The type itself may refuse more: a shape
/// knows no alphabets.
fn from_json(input: &[u8]) -> bool {
    let shape = Arguments::shape();
    let Ok(bytes) = arguments(&shape, input) else { return false };
    let again = shown(&shape, &bytes).expect("what was written has the shape");
    assert_eq!(arguments(&shape, again.as_bytes()).as_ref(), Ok(&bytes), "{again}");
    canonical::<Arguments>(&bytes).is_some()
}

fn json() -> Vec<Vec<u8>> {
    let fits = "within the limits of its type";
    let value: Arguments = (
        (true, 7, 1 << 90, -3),
        (Fixed::from_micros(-1_500_000), Hash([1; 32]), Height(4)),
        (Key::new(*b"k").expect(fits), Namespace::new("social").expect(fits), ChainId::new("Test-1").expect(fits)),
        (
            Text::new("tüt").expect(fits),
            Blob::new([0, 1]).expect(fits),
            BTreeMap::from([("a".to_owned(), vec![1, 2]), (String::new(), vec![])]),
            (BoundedSet::new([3, -1]).expect(fits), Some(Box::new(5))),
        ),
    );
    vec![shown(&Arguments::shape(), &value.to_bytes()).expect("a shape fits its type").into_bytes()]
}

pub(crate) const CONFIG: Target = Target { name: "config", run: config, seeds: configs };

/// A configuration that is accepted and written out again is the same configuration.
fn config(input: &[u8]) -> bool {
    let Ok(config) = Config::parse(input) else { return false };
    assert_eq!(Config::parse(config.to_toml().as_bytes()).expect("what is written reads back"), config);
    true
}

fn configs() -> Vec<Vec<u8>> {
    vec![Vec::new(), Config::default().to_toml().into_bytes()]
}

pub(crate) const ABCI_FRAMES: Target = Target { name: "abci_frames", run: abci_frames, seeds: abci_streams };

/// What comes in on an engine's connection is cut into the same frames however it arrives, holds no more than came, and
/// ends at the first byte that cannot be right.
fn abci_frames(input: &[u8]) -> bool {
    let (whole, end) = cut(input, input.len().max(1));
    let (bytes, same_end) = cut(input, 1);
    assert_eq!((&whole, end), (&bytes, same_end), "the frames depend on how the bytes arrive");
    assert!(whole.iter().map(Vec::len).sum::<usize>() <= input.len());
    let fits = whole.iter().filter(|frame| check_size(frame).is_ok()).count();
    end && fits == whole.len()
}

/// The frames of a stream that arrives in pieces, and whether it ends between two.
fn cut(input: &[u8], piece: usize) -> (Vec<Vec<u8>>, bool) {
    let (mut frames, mut found) = (Frames::default(), Vec::new());
    for piece in input.chunks(piece) {
        frames.buffer().extend_from_slice(piece);
        loop {
            match frames.next_frame() {
                Ok(Some(frame)) => found.push(frame.to_vec()),
                Ok(None) => break,
                Err(_) => return (found, false),
            }
        }
        assert!(frames.buffer().capacity() <= FRAME_BYTES_MAX, "room is made on the word of a length");
    }
    (found, frames.is_between())
}

fn abci_streams() -> Vec<Vec<u8>> {
    // An echo and a flush; a FinalizeBlock of two transactions and a height.
    let echo = [vec![9, 0x0a, 7, 0x0a, 5], b"hello".to_vec(), vec![2, 0x12, 0]].concat();
    let block = vec![13, 0xa2, 0x01, 10, 0x0a, 2, 1, 2, 0x0a, 2, 3, 4, 0x28, 9];
    vec![Vec::new(), echo, block]
}

pub(crate) const KEY_FILE: Target = Target { name: "key_file", run: from_key_file, seeds: key_files };

/// A key file whose form is right is written as a file that is read as the same (spec: KEY-1). It is not opened.
fn from_key_file(input: &[u8]) -> bool {
    let Ok(written) = key_file(input) else { return false };
    assert_eq!(key_file(&written).expect("what is written reads back"), written);
    true
}

fn key_files() -> Vec<Vec<u8>> {
    let public = SecretKey::from_seed(&[7; 32]).public();
    let file =
        |rest: &str| format!("{{\"version\":1,\"algorithm\":\"ed25519\",\"public\":\"{public}\",{rest}}}").into_bytes();
    let digits = |bytes: usize| "07".repeat(bytes);
    let costs = "\"kdf\":\"argon2id\",\"memory_kib\":65536,\"passes\":3";
    let (salt, nonce, sealed) = (digits(16), digits(24), digits(48));
    let rest = format!("\"cipher\":\"xchacha20-poly1305\",\"nonce\":\"{nonce}\",\"sealed\":\"{sealed}\"");
    vec![
        file(&format!("\"secret\":\"{}\"", digits(32))),
        file(&format!("\"encryption\":{{{costs},\"salt\":\"{salt}\",{rest}}}")),
    ]
}

pub(crate) const ABCI_REQUEST: Target =
    Target { name: "abci_request", run: hostile::abci_request, seeds: hostile::abci_request_seeds };

pub(crate) const ENGINE_HEADER: Target =
    Target { name: "engine_header", run: hostile::engine_header, seeds: hostile::engine_header_seeds };

pub(crate) const LIGHT_BLOCK: Target =
    Target { name: "light_block", run: hostile::light_block, seeds: hostile::light_block_seeds };

pub(crate) const NEARBY_PACKET: Target =
    Target { name: "nearby_packet", run: hostile::nearby_packet, seeds: hostile::nearby_packet_seeds };

pub(crate) const PEER_FRAME: Target =
    Target { name: "peer_frame", run: hostile::peer_frame, seeds: hostile::peer_frame_seeds };

pub(crate) const HTTP_ANSWER: Target =
    Target { name: "http_answer", run: hostile::http_answer, seeds: hostile::http_answer_seeds };

pub(crate) const AUDIT_EXPORT: Target =
    Target { name: "audit_export", run: hostile::audit_export, seeds: hostile::audit_export_seeds };

pub(crate) const NODE_LOG_EXPORT: Target =
    Target { name: "node_log_export", run: hostile::node_log_export, seeds: hostile::node_log_export_seeds };
