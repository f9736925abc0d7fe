//! For fuzzing only: what the network around sends, fed with any bytes. See [`crate::hostile`].

use super::codec;
use super::nearby::{self, Heard, PACKET_BYTES_MAX, Seen};
use futures_util::{AsyncRead, FutureExt as _};
use keelstone_codec::ChainId;
use keelstone_sync::peers::RESPONSE_BYTES_MAX;
use libp2p::identity::Keypair;
use simple_dns::Packet;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

fn chain() -> ChainId {
    ChainId::new("near-1").expect("a name")
}

/// Reads a packet of multicast DNS and says whether it is of use to a node (spec: PEER-23).
///
/// # Panics
/// If it names a peer that cannot be, or one that says of itself something else.
#[must_use]
pub fn nearby_packet(input: &[u8]) -> bool {
    let chain = chain();
    let heard = nearby::read(&input[..input.len().min(PACKET_BYTES_MAX)], &chain);
    if let Heard::There(Seen { peer, port }) = heard {
        assert!(port > 0, "{peer} listens on no port");
        assert_eq!(nearby::read(&nearby::here(&peer, port, &chain), &chain), heard);
    }
    heard != Heard::Nothing
}

/// Inputs that [`nearby_packet`] accepts.
#[must_use]
pub fn nearby_packet_seeds() -> Vec<Vec<u8>> {
    let key = Keypair::ed25519_from_bytes([7; 32]).expect("a key");
    let said = nearby::here(&key.public().to_peer_id(), 26_690, &chain());
    // Others shorten names that come again; this program does not.
    let packet = Packet::parse(&said).expect("a packet");
    let short = packet.build_bytes_vec_compressed().expect("as before, but shorter");
    vec![nearby::question(), said, short]
}

/// What is read of a stream: the frame, or the kind of error.
fn read(mut io: impl AsyncRead + Unpin + Send, limit: usize) -> Result<Vec<u8>, io::ErrorKind> {
    let done = codec::read(&mut io, limit).now_or_never().expect("nothing is waited for");
    done.map_err(|error| error.kind())
}

/// A stream whose bytes come one by one.
struct OneByOne<'a>(&'a [u8]);

impl AsyncRead for OneByOne<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let (Some((first, rest)), Some(place)) = (self.0.split_first(), into.first_mut()) else {
            return Poll::Ready(Ok(0));
        };
        *place = *first;
        self.0 = rest;
        Poll::Ready(Ok(1))
    }
}

/// Reads a stream that a peer opened and says whether it is one frame (spec: PEER-13).
///
/// # Panics
/// If that depends on how the bytes arrive, if one frame has two forms, or if room is made on the word of a length.
#[must_use]
pub fn peer_frame(input: &[u8]) -> bool {
    const SHORT: usize = 16;
    let frame = read(input, RESPONSE_BYTES_MAX);
    assert_eq!(frame, read(OneByOne(input), RESPONSE_BYTES_MAX), "the frame depends on how its bytes arrive");
    let short = read(input, SHORT);
    let Ok(frame) = frame else {
        assert!(short.is_err(), "more is accepted below a lower limit");
        return false;
    };
    assert_eq!(short.is_ok(), frame.len() <= SHORT, "the limit is another");
    assert!(frame.capacity() <= 2 * input.len() + 64, "room is made on the word of a length");
    let mut again = futures_util::io::Cursor::new(Vec::new());
    codec::write(&mut again, &frame).now_or_never().expect("nothing is waited for").expect("in memory");
    assert_eq!(again.into_inner(), input, "a second form was accepted");
    true
}

/// Inputs that [`peer_frame`] accepts.
#[must_use]
pub fn peer_frame_seeds() -> Vec<Vec<u8>> {
    vec![vec![0; 4], b"\x05\0\0\0frame".to_vec(), [&[40, 0, 0, 0][..], &[7; 40]].concat()]
}
