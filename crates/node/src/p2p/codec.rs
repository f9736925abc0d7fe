//! How frames travel: each request has a stream of its own, on which its answer comes back.
//!
//! A frame is preceded by its length. The length is compared with the limit before anything of the frame is read, and
//! memory grows with what comes, not with what is announced. What a frame says is not looked at here.
//!
//! Rules: `spec/peers.md`, PEER-1 and PEER-13.

use futures_util::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use keelstone_sync::peers::{REQUEST_BYTES_MAX, RESPONSE_BYTES_MAX};
use libp2p::StreamProtocol;
use libp2p::request_response::Codec;
use std::io;

/// What the protocol is called (spec: PEER-1).
pub(super) const PROTOCOL: StreamProtocol = StreamProtocol::new("/keelstone/peers/1");

/// Reads and writes frames as they are.
#[derive(Debug, Clone, Default)]
pub(super) struct Frames;

impl Codec for Frames {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io, REQUEST_BYTES_MAX).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io, RESPONSE_BYTES_MAX).await
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, frame: Vec<u8>) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write(io, &frame).await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, io: &mut T, frame: Vec<u8>) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write(io, &frame).await
    }
}

// spec: PEER-13
pub(super) async fn read(io: &mut (impl AsyncRead + Unpin + Send), limit: usize) -> io::Result<Vec<u8>> {
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut head = [0; 4];
    io.read_exact(&mut head).await?;
    let announced = u32::from_le_bytes(head);
    if u64::from(announced) > limit as u64 {
        return Err(invalid(format!("a frame of {announced} bytes, the limit is {limit}")));
    }
    let mut frame = Vec::new();
    io.take(u64::from(announced)).read_to_end(&mut frame).await?;
    if frame.len() as u64 != u64::from(announced) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    match io.read(&mut head[..1]).await? {
        0 => Ok(frame),
        _ => Err(invalid("bytes follow the frame".to_owned())),
    }
}

pub(super) async fn write(io: &mut (impl AsyncWrite + Unpin + Send), frame: &[u8]) -> io::Result<()> {
    let len = u32::try_from(frame.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    io.write_all(&len.to_le_bytes()).await?;
    io.write_all(frame).await?;
    io.close().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::io::Cursor;

    fn read_all(bytes: &[u8], limit: usize) -> io::Result<Vec<u8>> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(read(&mut Cursor::new(bytes), limit))
    }

    /// spec: PEER-13.
    #[test]
    fn a_frame_is_read_whole_and_nothing_follows_it() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let mut wire = Vec::new();
        runtime.block_on(write(&mut wire, b"frame")).expect("written");
        assert_eq!(wire, b"\x05\0\0\0frame");
        assert_eq!(read_all(&wire, 5).expect("whole"), b"frame");
        assert!(read_all(&wire, 4).is_err(), "above the limit");
        assert!(read_all(&[&wire[..], b"x"].concat(), 5).is_err(), "a byte too many");
        for cut in 0..wire.len() {
            assert!(read_all(&wire[..cut], 5).is_err(), "cut at {cut}");
        }
    }

    /// Y-03: a frame that announces 4 GB and has one byte costs neither time nor memory.
    #[test]
    fn y03_an_announced_length_reserves_nothing() {
        let error = read_all(b"\xff\xff\xff\xffx", RESPONSE_BYTES_MAX).expect_err("too long");
        assert!(error.to_string().contains("4294967295"), "{error}");
        let announced = u32::try_from(RESPONSE_BYTES_MAX).expect("it fits").to_le_bytes();
        assert!(read_all(&[&announced[..], b"x"].concat(), RESPONSE_BYTES_MAX).is_err());
    }
}
