//! Frames of an ABCI connection: a length as a varint, and so many bytes of protobuf.
//!
//! The other end should be the engine. It is taken to be anything: bytes may come one at a time or a thousand frames at
//! once, lengths may be absurd, and a few bytes of protobuf may ask for a list of millions. What a frame may make this
//! process allocate is bounded before it is decoded, and memory for it is taken as its bytes come, never on the word of
//! its length.
//!
//! The engine may be honest and what it hands on not: the transactions of a proposal are whatever its proposer chose. So
//! a proposal that would decode to too much is no reason to close the connection, at which the engine would end, on every
//! node that is asked and again after every start; it is told apart, for a refusal without being decoded.

use bytes::{Buf as _, Bytes, BytesMut};

/// Bytes of one frame: the largest block CometBFT takes from anybody (100 MiB, whatever a chain's parameters say) and what
/// goes with it. So no proposer can make a frame that is longer.
pub const FRAME_BYTES_MAX: usize = 104 << 20;
/// Bytes of a request beside transactions, chunks and other contents that are one piece: votes of 10,000 validators,
/// which is the most CometBFT has, take less than half.
pub const STRUCTURE_BYTES_MAX: usize = 4 << 20;
/// Fields of a request, transactions most of all, that may be small.
pub const FIELDS_MAX: usize = 1 << 18;
/// Bytes of the frame that each field above those takes: twice what it decodes to. A signature alone has as many, so
/// neither a pool nor a block of transactions that decode comes to the limit.
const FIELD_BYTES_MIN: usize = 64;
/// Bytes a length may take: more than five never stand before a frame that is let in.
const LENGTH_BYTES_MAX: usize = 10;

/// Why a connection is closed: the other end does not speak the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// A length that no varint is.
    #[error("the length of a frame is no number: more than {LENGTH_BYTES_MAX} bytes, or more than 64 bits")]
    Length,
    /// A frame that is too long.
    #[error("a frame of {found} bytes, the limit is {limit}")]
    TooLong {
        /// The length it claims.
        found: u64,
        /// The limit.
        limit: usize,
    },
    /// The frame would decode to more than its bytes are worth.
    #[error("a request with more {what} than {limit}")]
    TooMany {
        /// `fields`, `calls`, or `bytes beside its contents`.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The frame is no protobuf.
    #[error("a frame that is no request: {0}")]
    Malformed(String),
}

/// Cuts what comes in into frames.
#[derive(Debug, Default)]
pub struct Frames {
    buffer: BytesMut,
}

impl Frames {
    /// The buffer to read into.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Whether the connection may end here: nothing is left of a frame that began.
    #[must_use]
    pub fn is_between(&self) -> bool {
        self.buffer.is_empty()
    }

    /// The next whole frame; none if more bytes must come first.
    ///
    /// # Errors
    /// [`FrameError::Length`], [`FrameError::TooLong`]: nothing after it can be read.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some((length, head)) = varint(&self.buffer)? else { return Ok(None) };
        if length > FRAME_BYTES_MAX as u64 {
            return Err(FrameError::TooLong { found: length, limit: FRAME_BYTES_MAX });
        }
        let length = usize::try_from(length).expect("checked against the limit");
        if self.buffer.len() - head < length {
            return Ok(None);
        }
        self.buffer.advance(head);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }
}

/// A varint at the beginning of `bytes` and how many of them it takes; none if it goes on behind them.
fn varint(bytes: &[u8]) -> Result<Option<(u64, usize)>, FrameError> {
    let mut value = 0u64;
    for (index, byte) in bytes.iter().take(LENGTH_BYTES_MAX).enumerate() {
        let bits = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit.
        if index == LENGTH_BYTES_MAX - 1 && bits > 1 {
            return Err(FrameError::Length);
        }
        value |= bits << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(Some((value, index + 1)));
        }
    }
    if bytes.len() < LENGTH_BYTES_MAX { Ok(None) } else { Err(FrameError::Length) }
}

// Wire types of protobuf.
const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const BYTES: u64 = 2;
const FIXED_32: u64 = 5;

/// The fields of requests that hold contents in one piece, as (request, field): they decode to no more than a pointer
/// into the frame. Transactions of PrepareProposal, ProcessProposal, FinalizeBlock and CheckTx; the application's state
/// of InitChain; a snapshot that is offered; a chunk; what a stranger asks for in a query.
const CONTENTS: [(u64, u64); 8] = [(16, 2), (PROCESS_PROPOSAL, 1), (20, 1), (8, 1), (5, 5), (13, 1), (15, 2), (6, 1)];
/// The field of a request that is a proposal to be judged.
const PROCESS_PROPOSAL: u64 = 17;

/// Whether a frame is nothing but a proposal to be judged.
#[must_use]
pub(super) fn is_proposal(frame: &[u8]) -> bool {
    let mut calls = Vec::new();
    let whole = each_field(frame, &mut |request, _| {
        // The last of several would count; the engine never sends any.
        calls.push(request);
        if calls.len() > 1 { Err(FrameError::TooMany { what: "calls", limit: 1 }) } else { Ok(()) }
    });
    whole.is_ok() && calls == [PROCESS_PROPOSAL]
}

/// Says whether a frame decodes to an amount of memory in proportion to its bytes: contents lie in the frame itself,
/// everything else is small.
///
/// # Errors
/// [`FrameError::TooMany`], [`FrameError::Malformed`].
pub fn check_size(frame: &[u8]) -> Result<(), FrameError> {
    let (mut fields, mut structure) = (0, 0);
    let fields_max = FIELDS_MAX.max(frame.len() / FIELD_BYTES_MIN);
    each_field(frame, &mut |request, body| {
        each_field(body, &mut |field, contents| {
            fields += 1;
            if !CONTENTS.contains(&(request, field)) {
                structure += contents.len();
            }
            for (what, found, limit) in
                [("fields", fields, fields_max), ("bytes beside its contents", structure, STRUCTURE_BYTES_MAX)]
            {
                if found > limit {
                    return Err(FrameError::TooMany { what, limit });
                }
            }
            Ok(())
        })
    })
}

/// Takes the number and content of a field.
type Each<'a> = dyn FnMut(u64, &[u8]) -> Result<(), FrameError> + 'a;

/// Calls `each` with number and content of every field; the content of one that is no byte string is empty.
fn each_field(mut message: &[u8], each: &mut Each<'_>) -> Result<(), FrameError> {
    let cut = || FrameError::Malformed("it ends in the middle of a field".to_owned());
    while !message.is_empty() {
        let (key, taken) = varint(message)?.ok_or_else(cut)?;
        message = &message[taken..];
        let (skip, contents) = match key & 7 {
            VARINT => (varint(message)?.ok_or_else(cut)?.1, 0),
            FIXED_64 => (8, 0),
            FIXED_32 => (4, 0),
            BYTES => {
                let (length, taken) = varint(message)?.ok_or_else(cut)?;
                message = &message[taken..];
                let length = usize::try_from(length).map_err(|_| cut())?;
                (length, length)
            }
            other => return Err(FrameError::Malformed(format!("wire type {other}"))),
        };
        let contents = message.get(..contents).ok_or_else(cut)?;
        each(key >> 3, contents)?;
        message = message.get(skip..).ok_or_else(cut)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;
    use tendermint_proto::v0_38::abci::{
        Request, RequestCheckTx, RequestEcho, RequestFinalizeBlock, RequestInitChain, RequestPrepareProposal,
        RequestProcessProposal, RequestQuery, ValidatorUpdate, request::Value,
    };

    fn request(value: Value) -> Request {
        Request { value: Some(value) }
    }

    fn echo(message: &str) -> Vec<u8> {
        request(Value::Echo(RequestEcho { message: message.to_owned() })).encode_length_delimited_to_vec()
    }

    #[test]
    fn ss60_frames_come_out_whole_however_their_bytes_arrive() {
        let sent: Vec<Vec<u8>> = ["", "a", &"x".repeat(300)].iter().map(|text| echo(text)).collect();
        let stream = sent.concat();
        for step in [1, 2, 3, 7, stream.len()] {
            let (mut frames, mut found) = (Frames::default(), Vec::new());
            for piece in stream.chunks(step) {
                frames.buffer().extend_from_slice(piece);
                while let Some(frame) = frames.next_frame().unwrap() {
                    found.push(Request::decode(frame).unwrap().encode_length_delimited_to_vec());
                }
            }
            assert_eq!(found, sent, "in pieces of {step}");
            assert!(frames.is_between());
        }
    }

    #[test]
    fn ss60_a_length_that_is_none_or_too_much_ends_the_connection_and_reserves_nothing() {
        let next = |bytes: &[u8]| {
            let mut frames = Frames::default();
            frames.buffer().extend_from_slice(bytes);
            let next = frames.next_frame();
            (next, frames.buffer().capacity())
        };
        assert_eq!(next(&[0x80; 11]).0, Err(FrameError::Length));
        assert_eq!(next(&[0xff; 10]).0, Err(FrameError::Length));
        assert_eq!(next(&[0x80; 9]).0, Ok(None), "the tenth byte may still come");
        let two_gib = [0x80, 0x80, 0x80, 0x80, 0x08];
        let (error, held) = next(&two_gib);
        assert_eq!(error, Err(FrameError::TooLong { found: 1 << 31, limit: FRAME_BYTES_MAX }));
        assert!(held < 1024, "{held} bytes are held");
        // A length within the limit whose bytes never come holds nothing either.
        let (waiting, held) = next(&[0x80, 0x80, 0x80, 0x20]);
        assert_eq!(waiting, Ok(None));
        assert!(held < 1024, "{held} bytes are held");
    }

    #[test]
    fn ss60_a_request_that_would_decode_to_much_more_than_its_bytes_is_refused() {
        let many = request(Value::FinalizeBlock(RequestFinalizeBlock {
            txs: vec![Bytes::new(); FIELDS_MAX + 1],
            ..Default::default()
        }));
        assert_eq!(check_size(&many.encode_to_vec()), Err(FrameError::TooMany { what: "fields", limit: FIELDS_MAX }));
        let update = ValidatorUpdate { pub_key: None, power: i64::MAX };
        let validators = vec![update; STRUCTURE_BYTES_MAX / 10 + 1];
        let many = request(Value::InitChain(RequestInitChain { validators, ..Default::default() }));
        assert!(matches!(check_size(&many.encode_to_vec()), Err(FrameError::TooMany { .. })));
        assert!(matches!(check_size(&[0x0a, 0x7f]), Err(FrameError::Malformed(_))));
        assert!(matches!(check_size(&[0x0b]), Err(FrameError::Malformed(_))));
    }

    /// What a pool or a block holds of transactions that could be honest passes, however many they are.
    #[test]
    fn ss60_a_request_with_many_fields_is_let_through_if_it_has_the_bytes_for_them() {
        let of = |bytes: usize| vec![Bytes::from(vec![7; bytes]); FIELDS_MAX + 1];
        let prepare = |txs| request(Value::PrepareProposal(RequestPrepareProposal { txs, ..Default::default() }));
        assert_eq!(check_size(&prepare(of(FIELD_BYTES_MIN)).encode_to_vec()), Ok(()));
        let small = prepare(of(FIELD_BYTES_MIN / 2)).encode_to_vec();
        assert_eq!(check_size(&small), Err(FrameError::TooMany { what: "fields", limit: FIELDS_MAX }));
    }

    /// Only a call that can be refused is told apart: whatever follows it in the frame could be another.
    #[test]
    fn ss60_a_proposal_is_one_call_and_nothing_else() {
        let proposal = request(Value::ProcessProposal(RequestProcessProposal {
            txs: vec![Bytes::new(); 3],
            ..Default::default()
        }))
        .encode_to_vec();
        assert!(is_proposal(&proposal));
        let check = request(Value::CheckTx(RequestCheckTx::default())).encode_to_vec();
        for other in [&[][..], &check, &[&proposal[..], &check].concat(), &proposal[..proposal.len() - 1]] {
            assert!(!is_proposal(other), "{other:?}");
        }
    }

    #[test]
    fn contents_of_any_size_are_let_through() {
        let tx = Bytes::from(vec![7; STRUCTURE_BYTES_MAX * 2]);
        let check = request(Value::CheckTx(RequestCheckTx { tx: tx.clone(), r#type: 0 }));
        assert_eq!(check_size(&check.encode_to_vec()), Ok(()));
        let query = request(Value::Query(RequestQuery { data: tx.clone(), ..Default::default() }));
        assert_eq!(check_size(&query.encode_to_vec()), Ok(()));
        let block = request(Value::FinalizeBlock(RequestFinalizeBlock { txs: vec![tx; 3], ..Default::default() }));
        assert_eq!(check_size(&block.encode_to_vec()), Ok(()));
    }
}
