//! What peers ask one another, and what they answer.
//!
//! Requests name what they want by its place under a root: the height and root of a version, and a number or a key in it
//! (spec: SNAP-10). Nothing is asked for by a bare hash, and nothing an answer says is believed: what can be proven is
//! proven by the caller, the rest is a claim. Every bound comes with the read, so a frame reserves no more than its
//! own length.
//!
//! Layout and rules: `spec/peers.md`, PEER-1 to PEER-4. Vectors: `spec/vectors/peers.json`.

use crate::snapshot::WIRE_BYTES_MAX;
use keelstone_codec::{
    Blob, BoundedList, BoundedSet, ChainId, Decode, DecodeError, Encode, Height, KEY_LEN_MAX, Key, Namespace, Reader,
    Root,
};
use keelstone_macros::{Decode, Encode};
use keelstone_tree::{Diff, HashKind};

/// Most bytes of a request's frame (spec: PEER-1).
pub const REQUEST_BYTES_MAX: usize = 8 << 10;
/// Most bytes of a response's frame (spec: PEER-1).
pub const RESPONSE_BYTES_MAX: usize = WIRE_BYTES_MAX + 64;
/// Most units one request asks for (spec: PEER-3).
pub const UNITS_MAX: usize = 1024;
/// Most heights one request asks for (spec: PEER-3).
pub const HEIGHTS_MAX: usize = 1024;
/// Most bytes of a proof in a response (spec: PEER-4): the longest value and its way.
pub const PROOF_BYTES_MAX: usize = 9 << 20;

/// Most bytes of what certifies a version (spec: PEER-14, PEER-21).
pub const CERTIFICATE_BYTES_MAX: usize = 1024;

/// Most bytes of a block in a response (spec: PEER-15).
pub const BLOCK_BYTES_MAX: usize = WIRE_BYTES_MAX;

/// One state of the chain: its height and its root. In a request it is what the asker trusts; in a response, a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode)]
#[codec(shapeless)]
pub struct Version {
    /// The height.
    pub height: Height,
    /// The root of the state there.
    pub root: Root,
}

// spec: PEER-3
impl Decode for Version {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (height, root) = (Height::decode(input)?, Root::decode(input)?);
        // Whoever looks for what certifies it, or for what comes behind it, asks for the height after.
        match height.0 == u64::MAX {
            true => Err(DecodeError::Invalid { what: "version: no height can follow its own" }),
            false => Ok(Self { height, root }),
        }
    }
}

/// Heights from the first to the last, both included: 1 to [`HEIGHTS_MAX`] of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heights {
    first: Height,
    last: Height,
}

impl Heights {
    /// The heights from `first` on up to `last`, but no more than may be asked for at once; none if there are none.
    #[must_use]
    pub fn new(first: Height, last: Height) -> Option<Self> {
        let count = last.0.checked_sub(first.0)?.min(HEIGHTS_MAX as u64 - 1);
        Some(Self { first, last: Height(first.0 + count) })
    }

    /// The first of them.
    #[must_use]
    pub fn first(self) -> Height {
        self.first
    }

    /// The last of them.
    #[must_use]
    pub fn last(self) -> Height {
        self.last
    }
}

impl Encode for Heights {
    fn encode(&self, out: &mut Vec<u8>) {
        self.first.encode(out);
        self.last.encode(out);
    }
}
impl Decode for Heights {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (first, last) = (Height::decode(input)?, Height::decode(input)?);
        match Self::new(first, last) {
            Some(heights) if heights.last == last => Ok(heights),
            _ => Err(DecodeError::Invalid { what: "heights: they end before they begin, or are too many" }),
        }
    }
}

/// What a peer asks for.
// spec: PEER-3
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub enum Request {
    /// Where do you stand?
    Status,
    /// The records of blocks, proven under a version: of these heights, those that have one.
    GetHeader {
        /// Under which root.
        at: Version,
        /// Of which heights.
        heights: Heights,
    },
    /// A page of a version's skeleton (spec: SNAP-5).
    GetNodes {
        /// Of which version.
        at: Version,
        /// Which page.
        page: u32,
    },
    /// Units of a version (spec: SNAP-7), by their number in the order of their keys.
    GetChunks {
        /// Of which version.
        at: Version,
        /// Which units.
        units: BoundedSet<u32, UNITS_MAX>,
    },
    /// What heights changed.
    GetDiffs {
        /// Which heights.
        heights: Heights,
    },
    /// The entries of a range, proven under a version.
    GetRange {
        /// Under which root.
        at: Version,
        /// In which namespace.
        namespace: Namespace,
        /// From which key on; empty for the first.
        start: Blob<KEY_LEN_MAX>,
        /// Up to before which key; none for the end.
        end: Option<Blob<KEY_LEN_MAX>>,
    },
    /// The root of a height, as you have it.
    GetRootAt {
        /// Which height.
        height: Height,
    },
    /// One entry or its absence, proven under a version.
    GetEntry {
        /// Under which root.
        at: Version,
        /// In which namespace.
        namespace: Namespace,
        /// Which key.
        key: Key,
    },
    /// What certifies the newest version you can certify.
    GetCertificate,
    /// The blocks of heights, as they are kept beside the state.
    // spec: PEER-15
    GetBlocks {
        /// Which heights.
        heights: Heights,
    },
    /// Hear that there is a new version, and what certifies it.
    // spec: PEER-21
    Announce {
        /// Not read yet.
        certificate: Blob<CERTIFICATE_BYTES_MAX>,
    },
}

/// Where a peer says it stands. Only claims: a target never comes from here.
// spec: PEER-2
#[derive(Clone, Debug, PartialEq, Eq, Encode)]
#[codec(shapeless)]
pub struct Status {
    /// The chain it follows.
    pub chain_id: ChainId,
    /// The hasher of the chain's tree.
    pub hasher: HashKind,
    /// W, by which it cuts versions (spec: SNAP-3).
    pub chunk_weight_max: u32,
    /// The last state it has.
    pub newest: Version,
    /// The first height whose state it serves.
    pub oldest: Height,
    /// The first height whose diff it serves. Above the newest height: none.
    pub diffs_from: Height,
}

impl Status {
    /// Whether it says that it has a version.
    #[must_use]
    pub fn has(&self, version: &Version) -> bool {
        let height = self.oldest <= version.height && version.height <= self.newest.height;
        height && (self.newest.height != version.height || self.newest.root == version.root)
    }
}

impl Decode for Status {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (chain_id, hasher) = (ChainId::decode(input)?, HashKind::decode(input)?);
        let (chunk_weight_max, newest) = (u32::decode(input)?, Version::decode(input)?);
        let (oldest, diffs_from) = (Height::decode(input)?, Height::decode(input)?);
        if oldest > newest.height {
            return Err(DecodeError::Invalid { what: "status: its oldest height is above its newest" });
        }
        Ok(Self { chain_id, hasher, chunk_weight_max, newest, oldest, diffs_from })
    }
}

/// What one height changed, as a peer has it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub struct HeightDiff {
    /// The height.
    pub height: Height,
    /// What it changed.
    pub diff: Diff,
}

/// A pruned tree (spec: TREE-7), not read yet.
pub type ProofBytes = Blob<PROOF_BYTES_MAX>;

/// What a peer answers.
// spec: PEER-4
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub enum Response {
    /// To [`Request::Status`].
    Status(Status),
    /// To [`Request::GetHeader`].
    Header(ProofBytes),
    /// To [`Request::GetNodes`]: the page in its wire form (spec: SNAP-3).
    Nodes(Blob<WIRE_BYTES_MAX>),
    /// To [`Request::GetChunks`]: the first of the units that were asked for, one behind the other.
    Chunks {
        /// How many of them.
        units: u32,
        /// Their bytes in wire form (spec: SNAP-3).
        wire: Blob<WIRE_BYTES_MAX>,
    },
    /// To [`Request::GetDiffs`]: the first of the heights that were asked for, without a gap.
    Diffs(BoundedList<HeightDiff, HEIGHTS_MAX>),
    /// To [`Request::GetRange`].
    Range {
        /// Before which key the proven part ends; none if the whole range is proven.
        next: Option<Key>,
        /// All entries up to there.
        proof: ProofBytes,
    },
    /// To [`Request::GetRootAt`].
    RootAt(Version),
    /// To [`Request::GetEntry`].
    Entry(ProofBytes),
    /// Honest, but of no help with this.
    Unavailable(Why),
    /// Honest, but not now.
    Busy {
        /// In how many milliseconds it is worth asking again.
        retry_after_ms: u32,
    },
    /// To [`Request::GetCertificate`], not read yet.
    Certificate(Blob<CERTIFICATE_BYTES_MAX>),
    /// To [`Request::GetBlocks`]: the first of the heights that were asked for, without a gap, not read yet.
    Blocks(BoundedList<Blob<BLOCK_BYTES_MAX>, HEIGHTS_MAX>),
    /// To [`Request::Announce`]: it came, whatever becomes of it.
    Heard,
}

/// Why a peer cannot help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub enum Why {
    /// It does not have this version, height or diff, or no longer.
    NotKept,
    /// It has another root at this height.
    OtherRoot,
    /// There is no such page, unit or range.
    NoSuchPart,
    /// It is larger than a response may be.
    TooLarge,
    /// It could not read it.
    Unreadable,
}

/// A frame: what is said, behind the number by which a request finds its response.
// spec: PEER-1
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame<T> {
    /// Chosen by whoever asks, repeated by whoever answers.
    pub id: u64,
    /// What is said.
    pub body: T,
}

/// What a frame can hold.
pub trait Body: Encode + Decode {
    /// Most bytes of a frame that holds it.
    const FRAME_BYTES_MAX: usize;
    /// What it is called in errors.
    const NAME: &'static str;
}

impl Body for Request {
    const FRAME_BYTES_MAX: usize = REQUEST_BYTES_MAX;
    const NAME: &'static str = "frame of a request";
}
impl Body for Response {
    const FRAME_BYTES_MAX: usize = RESPONSE_BYTES_MAX;
    const NAME: &'static str = "frame of a response";
}

impl<T: Body> Encode for Frame<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.id.encode(out);
        self.body.encode(out);
    }
}
impl<T: Body> Decode for Frame<T> {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        if input.left() > T::FRAME_BYTES_MAX {
            let (found, limit) = (input.left() as u64, T::FRAME_BYTES_MAX as u64);
            return Err(DecodeError::TooLarge { what: T::NAME, found, limit });
        }
        Ok(Self { id: u64::decode(input)?, body: T::decode(input)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelstone_codec::{Hash, Value};

    fn version(height: u64) -> Version {
        Version { height: Height(height), root: Root(Hash([7; 32])) }
    }

    fn status() -> Status {
        Status {
            chain_id: ChainId::new("test-1").unwrap(),
            hasher: HashKind::Blake3,
            chunk_weight_max: 4 << 20,
            newest: version(9),
            oldest: Height(3),
            diffs_from: Height(1),
        }
    }

    /// spec: PEER-1. The bound of a frame is looked at before anything in it, and one byte more is one too many.
    #[test]
    fn a_frame_above_its_limit_is_refused_before_it_is_read() {
        let largest = |less: usize| {
            let wire = Blob::new(vec![0xff; WIRE_BYTES_MAX - less]).unwrap();
            Frame { id: 1, body: Response::Chunks { units: 1, wire } }.to_bytes()
        };
        let frame = largest(0);
        assert!(frame.len() <= RESPONSE_BYTES_MAX && Frame::<Response>::from_bytes(&frame).is_ok());
        let long = vec![0xff; RESPONSE_BYTES_MAX + 1];
        let error = Frame::<Response>::from_bytes(&long).unwrap_err();
        assert!(matches!(error, DecodeError::TooLarge { what: "frame of a response", .. }), "{error}");
        let error = Frame::<Request>::from_bytes(&long).unwrap_err();
        assert!(matches!(error, DecodeError::TooLarge { what: "frame of a request", .. }), "{error}");
    }

    /// spec: PEER-3. As many units and as long keys as a request may have fit into its frame.
    #[test]
    fn the_largest_requests_fit_into_a_frame() {
        let units = BoundedSet::new(0..1024).unwrap();
        let key = Blob::new(vec![0xff; KEY_LEN_MAX]).unwrap();
        let namespace = Namespace::new(&"n".repeat(32)).unwrap();
        for body in [
            Request::GetChunks { at: version(1), units },
            Request::GetRange { at: version(1), namespace, start: key.clone(), end: Some(key) },
        ] {
            let frame = Frame { id: u64::MAX, body }.to_bytes();
            assert!(frame.len() <= REQUEST_BYTES_MAX);
            assert!(Frame::<Request>::from_bytes(&frame).is_ok());
        }
    }

    /// spec: PEER-3. Units out of order or twice have no encoding, and heights that end before they begin have none.
    #[test]
    fn a_request_has_one_encoding() {
        let units = |list: &[u32]| {
            let mut bytes = vec![3];
            version(1).encode(&mut bytes);
            list.to_vec().encode(&mut bytes);
            Request::from_bytes(&bytes)
        };
        assert!(units(&[1, 2, 9]).is_ok());
        for list in [&[2, 1][..], &[1, 1]] {
            assert!(units(list).is_err(), "{list:?}");
        }
        let heights = |first: u64, last: u64| Heights::from_bytes(&[first.to_le_bytes(), last.to_le_bytes()].concat());
        assert!(heights(5, 5).is_ok() && heights(1, 1024).is_ok());
        assert!(heights(5, 4).is_err() && heights(1, 1025).is_err() && heights(0, u64::MAX).is_err());
    }

    /// spec: PEER-2. A status whose heights contradict one another says nothing.
    #[test]
    fn a_status_that_contradicts_itself_is_refused() {
        assert_eq!(Status::from_bytes(&status().to_bytes()), Ok(status()));
        let upside_down = Status { oldest: Height(10), ..status() };
        assert!(Status::from_bytes(&upside_down.to_bytes()).is_err());
    }

    /// spec: PEER-3. No height follows the last there is, so no version is of it: whoever asks for what certifies a version asks
    /// for the height after.
    #[test]
    fn a_version_of_the_last_height_there_is_is_refused() {
        for (height, is_one) in [(u64::MAX - 1, true), (u64::MAX, false)] {
            let newest = version(height);
            for response in [Response::Status(Status { newest, ..status() }), Response::RootAt(newest)] {
                assert_eq!(Response::from_bytes(&response.to_bytes()).is_ok(), is_one, "{response:?}");
            }
            let request = Request::GetNodes { at: newest, page: 0 };
            assert_eq!(Request::from_bytes(&request.to_bytes()).is_ok(), is_one, "{request:?}");
        }
    }

    /// spec: PEER-4. A count in a response reserves nothing that is not there.
    #[test]
    fn a_count_of_diffs_reserves_nothing() {
        let body =
            Response::Diffs(BoundedList::new(vec![HeightDiff { height: Height(1), diff: Diff::default() }]).unwrap());
        let honest = body.to_bytes();
        assert_eq!(Response::from_bytes(&honest), Ok(body));
        for count in [1025u32, u32::MAX] {
            let mut bytes = honest.clone();
            bytes[1..5].copy_from_slice(&count.to_le_bytes());
            assert!(matches!(Response::from_bytes(&bytes), Err(DecodeError::TooLarge { .. })));
        }
        let change = (Namespace::new("n").unwrap(), Key::new(*b"k").unwrap(), Some(Value::new(&b"v"[..]).unwrap()));
        let body = Response::Diffs(
            BoundedList::new(vec![HeightDiff { height: Height(2), diff: [change].into_iter().collect() }]).unwrap(),
        );
        assert_eq!(Response::from_bytes(&body.to_bytes()), Ok(body));
    }
}
