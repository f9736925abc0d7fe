//! One file that holds a snapshot: the plainest tar there is.
//!
//! Tools that read tar read it, yet only one form of it is accepted here: regular files whose headers are, byte for byte,
//! the one header [`header`] writes for a name and a size. So there is nothing to be clever about: no links, devices,
//! sparse files, extended headers or second sizes, no path, no owner, no time. Every byte read is an adversary's.
//!
//! Why not a crate: `docs/decisions/0013-one-narrow-tar.md`. Rules: `spec/library.md`, LIB-7. Vectors: `spec/vectors/library.json`.

use std::io::{self, Read, Seek, SeekFrom, Write};

/// What everything in a tar is a multiple of, in bytes.
const BLOCK_BYTES: usize = 512;
/// Bytes of a name, which a zero ends.
const NAME_BYTES_MAX: usize = 99;
/// Bytes of a file: eleven octal digits.
const SIZE_MAX: u64 = (1 << 33) - 1;

/// Why a tar is none of ours. But for [`TarError::Io`], whoever made it has to act: nothing of it is used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TarError {
    /// It could not be read.
    #[error("could not read the archive: {0}")]
    Io(#[from] io::Error),
    /// It ends in the middle of something.
    #[error("the archive ends early, in {what}")]
    Truncated {
        /// In what.
        what: &'static str,
    },
    /// An entry that is no plain file.
    #[error("the archive holds {kind}; only regular files are taken")]
    Kind {
        /// What it is.
        kind: &'static str,
    },
    /// A name no file of a snapshot has.
    #[error("the archive holds a file named {name:?}, which no file of a snapshot is")]
    Name {
        /// The name, as far as it can be shown.
        name: String,
    },
    /// A header that is not the one header of its name and size.
    #[error("the header of {name} differs at byte {at} from the one that is taken")]
    Header {
        /// The file.
        name: String,
        /// The first byte that differs.
        at: usize,
    },
    /// Bytes between files, or behind the end, that should be zero or absent.
    #[error("the archive has bytes {place}")]
    Stray {
        /// Where.
        place: &'static str,
    },
}

/// The one header of a file (spec: LIB-7).
///
/// # Panics
/// For a name above 99 bytes or a size above 8 GiB, which no file of a snapshot has.
pub(crate) fn header(name: &str, size: u64) -> [u8; BLOCK_BYTES] {
    assert!(name.len() <= NAME_BYTES_MAX && size <= SIZE_MAX, "files of snapshots have short names and are small");
    let mut block = [0; BLOCK_BYTES];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    put(329, b"0000000\0");
    put(337, b"0000000\0");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// What is missing to a whole block.
fn padding(size: u64) -> usize {
    let over = usize::try_from(size % BLOCK_BYTES as u64).expect("below 512");
    (BLOCK_BYTES - over) % BLOCK_BYTES
}

/// Writes a tar.
pub(crate) struct TarWriter<'a> {
    out: &'a mut dyn Write,
}

impl<'a> TarWriter<'a> {
    pub(crate) fn new(out: &'a mut dyn Write) -> Self {
        Self { out }
    }

    /// Writes one file.
    pub(crate) fn file(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let size = bytes.len() as u64;
        self.out.write_all(&header(name, size))?;
        self.out.write_all(bytes)?;
        self.out.write_all(&[0; BLOCK_BYTES][..padding(size)])
    }

    /// Writes the end.
    pub(crate) fn finish(self) -> io::Result<()> {
        self.out.write_all(&[0; 2 * BLOCK_BYTES])?;
        self.out.flush()
    }
}

/// What a tar is read from: from its beginning to its end, but for those who want a part of it only.
pub trait Stream: Read + Seek {}
impl<T: Read + Seek> Stream for T {}

/// Bytes of a file in a tar, with its header and what fills its last block.
pub(crate) fn file_bytes(size: u64) -> u64 {
    BLOCK_BYTES as u64 * (1 + size.div_ceil(BLOCK_BYTES as u64))
}

/// Reads a tar, file by file.
pub(crate) struct TarReader<'a> {
    input: &'a mut dyn Stream,
}

impl<'a> TarReader<'a> {
    pub(crate) fn new(input: &'a mut dyn Stream) -> Self {
        Self { input }
    }

    /// Goes to the header at an offset from the beginning.
    pub(crate) fn seek(&mut self, offset: u64) -> Result<(), TarError> {
        self.input.seek(SeekFrom::Start(offset))?;
        Ok(())
    }

    /// The name and size of the next file; none at the end, behind which there must be nothing. The file's bytes are to
    /// be read with [`Self::body`] before anything else.
    pub(crate) fn next(&mut self) -> Result<Option<(String, u64)>, TarError> {
        let mut block = [0; BLOCK_BYTES];
        self.fill(&mut block, "a header")?;
        if block == [0; BLOCK_BYTES] {
            self.fill(&mut block, "its end")?;
            let ended = block == [0; BLOCK_BYTES] && self.input.read(&mut [0])? == 0;
            return if ended { Ok(None) } else { Err(TarError::Stray { place: "behind its end" }) };
        }
        parse(&block).map(Some)
    }

    /// The bytes of the file whose header was read last. The caller has compared `size` with a limit.
    pub(crate) fn body(&mut self, size: usize) -> Result<Vec<u8>, TarError> {
        let mut bytes = vec![0; size];
        self.fill(&mut bytes, "a file")?;
        let mut rest = [0; BLOCK_BYTES];
        let rest = &mut rest[..padding(size as u64)];
        self.fill(rest, "the space behind a file")?;
        match rest.iter().all(|byte| *byte == 0) {
            true => Ok(bytes),
            false => Err(TarError::Stray { place: "between two files" }),
        }
    }

    fn fill(&mut self, out: &mut [u8], what: &'static str) -> Result<(), TarError> {
        self.input.read_exact(out).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => TarError::Truncated { what },
            _ => TarError::Io(error),
        })
    }
}

/// The name and size of a header, if it is the one header of them.
pub(crate) fn parse(block: &[u8; BLOCK_BYTES]) -> Result<(String, u64), TarError> {
    if let Some(kind) = kind(block[156]) {
        return Err(TarError::Kind { kind });
    }
    let name = &block[..=NAME_BYTES_MAX];
    let name = &name[..name.iter().position(|byte| *byte == 0).unwrap_or(name.len())];
    // Ours are lower-case letters, digits, dots and dashes: no separators, no case to be confused, nothing hidden.
    let plain = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-');
    let fits = (1..=NAME_BYTES_MAX).contains(&name.len()) && name[0] != b'.' && name.iter().all(plain);
    let shown = || name.iter().take(NAME_BYTES_MAX).copied().map(char::from).collect::<String>();
    if !fits || block[345..500].iter().any(|byte| *byte != 0) {
        return Err(TarError::Name { name: shown() });
    }
    let digits = std::str::from_utf8(&block[124..135]).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    let size = digits.and_then(|text| u64::from_str_radix(text, 8).ok());
    let Some(size) = size else { return Err(TarError::Header { name: shown(), at: 124 }) };
    match header(&shown(), size).iter().zip(block).position(|(ours, found)| ours != found) {
        None => Ok((shown(), size)),
        Some(at) => Err(TarError::Header { name: shown(), at }),
    }
}

/// What an entry is by its type, if it is no plain file.
fn kind(flag: u8) -> Option<&'static str> {
    Some(match flag {
        b'0' => return None,
        b'1' => "a hard link",
        b'2' => "a symbolic link",
        b'3' | b'4' => "a device",
        b'5' => "a directory",
        b'6' => "a FIFO",
        b'S' => "a sparse file",
        b'x' | b'g' | b'X' => "an extended header",
        b'L' | b'K' => "a long name",
        _ => "an entry of an unknown kind",
    })
}
