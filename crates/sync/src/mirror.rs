//! Mirrors: a snapshot in static files that answers like a peer.
//!
//! A mirror is a library's files, wherever they are, and one more that says which snapshot is there. It answers the
//! requests that a joiner makes, page by page and unit by unit, from files it reads by name; so mirrors and peers can
//! be asked at once, and what both send meets one verifier. Nothing it says is believed by whoever asks, and it
//! believes nothing but what it proved itself under the root its index names: what it needs to find units in chunks.
//! A library at hand is a mirror too, and so is a snapshot that a node serves chunk by chunk.
//!
//! Rules: `spec/library.md`, LIB-10.

use crate::library::{INDEX_BYTES_MAX, Index, SnapshotId, Stored, chunk_file, index_file};
use crate::peers::{
    CERTIFICATE_BYTES_MAX, Effect, Event, Frame, Joiner, PeerId, Request, Response, Settings, StagingError, Status,
    Tick, UNITS_MAX, Version, Why,
};
use crate::snapshot::{
    FORMAT, Metadata, PageError, PartOf, Skeleton, SnapshotParams, UnpackError, WIRE_BYTES_MAX, pack, unpack,
};
use keelstone_codec::{
    Blob, BoundedSet, Decode, DecodeError, Encode, Hash, Height, KEY_LEN_MAX, Namespace, Reader, Root, Tag,
    TaggedHasher,
};
use keelstone_store::files::Files;
use keelstone_tree::{Hasher, Totals};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What the file is called that says what a mirror has.
pub const HEAD_FILE: &str = "mirror";
/// Most bytes of that file.
pub const HEAD_BYTES_MAX: u64 = 4 << 10;

const MAGIC: [u8; 8] = *b"keelmirr";
const VERSION: u32 = 2;

/// What a mirror says of itself. Only claims.
// spec: LIB-10
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Which height its snapshot is of.
    pub height: Height,
    /// What certifies that version, not read yet; empty if nothing does.
    pub certificate: Blob<CERTIFICATE_BYTES_MAX>,
    /// Of which it has no more than this, if it has not all.
    pub part: Option<PartOf>,
}

impl Encode for Head {
    fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&MAGIC);
        VERSION.encode(out);
        self.height.encode(out);
        self.certificate.encode(out);
        let part = self.part.as_ref().map(|part| {
            let prefix: Blob<KEY_LEN_MAX> =
                Blob::new(part.prefix.clone()).expect("no key begins with more than a key has");
            (part.namespace.clone(), prefix)
        });
        part.encode(out);
        let checksum = checksum(&out[start..]);
        checksum.encode(out);
    }
}
impl Decode for Head {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        if input.take(MAGIC.len())? != MAGIC {
            return Err(DecodeError::Invalid { what: "mirror: it is none" });
        }
        if u32::decode(input)? != VERSION {
            return Err(DecodeError::Invalid { what: "mirror: another version" });
        }
        let (height, certificate) = (Height::decode(input)?, Blob::decode(input)?);
        let part: Option<(Namespace, Blob<KEY_LEN_MAX>)> = Option::decode(input)?;
        let part = part.map(|(namespace, prefix)| PartOf { namespace, prefix: prefix.to_vec() });
        let head = Self { height, certificate, part };
        let mut covered = head.to_bytes();
        covered.truncate(covered.len() - 32);
        match Hash::decode(input)? == checksum(&covered) {
            true => Ok(head),
            false => Err(DecodeError::Invalid { what: "mirror: another checksum" }),
        }
    }
}

/// Guards against accidents only.
fn checksum(covered: &[u8]) -> Hash {
    const HEAD: Tag = Tag::new("mirror-head");
    TaggedHasher::new(HEAD).update(covered).finish()
}

/// Why a mirror does not answer. It is of no use; whoever asked asks another.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError<E> {
    /// A file could not be read, or is not there.
    #[error("{file}: {error}")]
    Read {
        /// Which.
        file: String,
        /// Why.
        error: E,
    },
    /// A file came in part. It may be whole the next time.
    #[error("{file} has {found} bytes, not {expected}")]
    Cut {
        /// Which.
        file: String,
        /// How much came.
        found: u64,
        /// How much the index says.
        expected: u64,
    },
    /// A file is not what it must be.
    #[error("{file} is no file of a mirror: {what}")]
    Damaged {
        /// Which.
        file: String,
        /// What is wrong.
        what: String,
    },
}

/// Reads a file by its name, at most so many bytes.
pub trait Shelf {
    /// What the place the files are in says when it fails.
    type Error;

    /// Reads a whole file.
    ///
    /// # Errors
    /// Whatever goes wrong, or that it is longer.
    fn read(&self, file: &str, bytes_max: u64) -> Result<Vec<u8>, Self::Error>;
}

/// Answers from the files of one snapshot. It holds the index, 68 bytes a chunk, the skeleton, some 200 bytes a unit,
/// and the chunk that was read last.
#[derive(Debug)]
pub struct Mirror<H> {
    params: SnapshotParams,
    version: Version,
    totals: Totals,
    bytes: u64,
    /// Chunks that are pages, which come first.
    pages: u32,
    chunks: Chunks,
    certificate: Blob<CERTIFICATE_BYTES_MAX>,
    part: Option<PartOf>,
    skeleton: Mutex<Grown<H>>,
    last: Mutex<Option<(u32, Arc<Vec<u8>>)>>,
}

/// What the chunks are called where they are.
#[derive(Debug)]
enum Chunks {
    /// By what is in them, as in a library.
    Named(Vec<Stored>),
    /// By their places, so many.
    Numbered(u32),
}

#[derive(Debug)]
enum Grown<H> {
    /// Pages come one by one.
    Growing(Box<Skeleton<H>>),
    Whole(Arc<Whole<H>>),
}

/// The whole skeleton, and the chunks that are there.
#[derive(Debug)]
struct Whole<H> {
    skeleton: Skeleton<H>,
    there: Range<u32>,
}

impl<H: Hasher> Mirror<H> {
    /// Reads what the mirror has: its head and the index, two small files.
    ///
    /// # Errors
    /// [`MirrorError`]; also if its tree is hashed otherwise.
    pub fn open<S: Shelf>(shelf: &S) -> Result<Self, MirrorError<S::Error>> {
        let head: Head = read(shelf, HEAD_FILE, HEAD_BYTES_MAX)?;
        let file = index_file(&SnapshotId { height: head.height, format: FORMAT });
        let index: Index = read(shelf, &file, INDEX_BYTES_MAX)?;
        if index.metadata.hasher != H::KIND || index.metadata.height != head.height {
            let found = format!("it is of height {}, hashed with {}", index.metadata.height, index.metadata.hasher);
            return Err(MirrorError::Damaged { file, what: found });
        }
        Ok(Self { certificate: head.certificate, part: head.part, ..Self::of_index(&index) })
    }

    /// A snapshot of a library that is at hand, whose tree is hashed with `H`.
    #[must_use]
    pub fn of_index(index: &Index) -> Self {
        let chunks = Chunks::Named(index.chunks.clone());
        Self::of(&index.metadata, index.root, (index.totals, index.bytes()), chunks)
    }

    /// A snapshot that somebody serves chunk by chunk, whose tree is hashed with `H`: on the shelf chunks are called by their
    /// places, from `0` on. What is said of it are claims, its bytes among them.
    #[must_use]
    pub fn numbered(metadata: &Metadata, root: Root, totals: Totals, bytes: u64) -> Self {
        Self::of(metadata, root, (totals, bytes), Chunks::Numbered(metadata.chunks))
    }

    fn of(metadata: &Metadata, root: Root, (totals, bytes): (Totals, u64), chunks: Chunks) -> Self {
        let Metadata { chain_id, hasher, chunk_weight_max, height, pages, .. } = metadata.clone();
        let params = SnapshotParams { chain_id, hasher, chunk_weight_max };
        let skeleton = Skeleton::without_offer(root, &params);
        Self {
            params,
            version: Version { height, root },
            totals,
            bytes,
            pages,
            chunks,
            certificate: Blob::default(),
            part: None,
            skeleton: Mutex::new(Grown::Growing(Box::new(skeleton))),
            last: Mutex::new(None),
        }
    }

    /// The version it says it has.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Of which it has no more than this, as it says; none if it has all.
    #[must_use]
    pub fn part(&self) -> Option<&PartOf> {
        self.part.as_ref()
    }

    /// The number and bytes of its version's entries, as it says.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Bytes of its version's files, as it says.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Answers a request. Reads at most one chunk, and the pages the first time a chunk is asked for.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub fn answer<S: Shelf>(&self, shelf: &S, request: &Request) -> Result<Response, MirrorError<S::Error>> {
        Ok(match request {
            Request::Status => Response::Status(self.status()),
            Request::GetRootAt { height } if *height == self.version.height => Response::RootAt(self.version),
            Request::GetCertificate if !self.certificate.is_empty() => Response::Certificate(self.certificate.clone()),
            Request::GetNodes { at, .. } | Request::GetChunks { at, .. } if *at != self.version => {
                let other = at.height == self.version.height;
                Response::Unavailable(if other { Why::OtherRoot } else { Why::NotKept })
            }
            Request::GetNodes { page, .. } if *page < self.pages && self.has(*page) => {
                wire(self.chunk(shelf, *page)?, Response::Nodes)
            }
            Request::GetNodes { .. } => Response::Unavailable(Why::NoSuchPart),
            Request::GetChunks { units, .. } => self.units(shelf, units, false)?,
            _ => Response::Unavailable(Why::NotKept),
        })
    }

    fn status(&self) -> Status {
        let SnapshotParams { chain_id, hasher, chunk_weight_max } = self.params.clone();
        Status {
            chain_id,
            hasher,
            chunk_weight_max,
            newest: self.version,
            oldest: self.version.height,
            // None. Its height is what somebody says, and may be the last there is.
            diffs_from: Height(self.version.height.0.saturating_add(1)),
        }
    }

    /// Whether it says that there is such a chunk.
    fn has(&self, chunk: u32) -> bool {
        match &self.chunks {
            Chunks::Named(chunks) => (chunk as usize) < chunks.len(),
            Chunks::Numbered(count) => chunk < *count,
        }
    }

    /// What the file of a chunk that is there is called.
    fn file(&self, chunk: u32) -> String {
        match &self.chunks {
            Chunks::Named(chunks) => chunk_file(&chunks[chunk as usize].name),
            Chunks::Numbered(_) => chunk.to_string(),
        }
    }

    /// The bytes of a chunk that is there, as they are sent.
    fn chunk<S: Shelf>(&self, shelf: &S, chunk: u32) -> Result<Vec<u8>, MirrorError<S::Error>> {
        let file = self.file(chunk);
        let expected = match &self.chunks {
            Chunks::Named(chunks) => Some(u64::from(chunks[chunk as usize].bytes)),
            Chunks::Numbered(_) => None,
        };
        match shelf.read(&file, expected.unwrap_or(WIRE_BYTES_MAX as u64)) {
            Ok(bytes) => match expected.filter(|expected| bytes.len() as u64 != *expected) {
                Some(expected) => Err(MirrorError::Cut { file, found: bytes.len() as u64, expected }),
                None => Ok(bytes),
            },
            Err(error) => Err(MirrorError::Read { file, error }),
        }
    }

    /// The first of the units that are asked for, as many as are in one chunk. Whole chunks go out as they are, unless all is
    /// to be proven.
    fn units<S: Shelf>(
        &self,
        shelf: &S,
        asked: &BoundedSet<u32, UNITS_MAX>,
        proven: bool,
    ) -> Result<Response, MirrorError<S::Error>> {
        let whole = self.whole(shelf)?;
        let Whole { skeleton, there } = &*whole;
        let count = skeleton.unit_count();
        let Some(first) = asked.iter().next().copied().filter(|first| *first < count) else {
            return Ok(Response::Unavailable(Why::NoSuchPart));
        };
        let (chunk, _) = skeleton.chunk_of(first);
        if !there.contains(&chunk) || !self.has(chunk) {
            return Ok(Response::Unavailable(Why::NoSuchPart));
        }
        let all = skeleton.chunk_units(chunk);
        let given: Vec<u32> = asked.iter().copied().take_while(|unit| all.contains(unit)).collect();
        let units = u32::try_from(given.len()).expect("no more units are asked for at once");
        if !proven && given.len() == all.len() {
            let bytes = self.chunk(shelf, chunk)?;
            return Ok(wire(bytes, |wire| Response::Chunks { units, wire }));
        }
        let damaged = |what: String| MirrorError::Damaged { file: self.file(chunk), what };
        let known = self.last().clone().filter(|(last, _)| *last == chunk);
        let raw = match known {
            Some((_, raw)) => raw,
            None => {
                let bytes = self.chunk(shelf, chunk)?;
                let raw = unpack(&bytes, skeleton.chunk_bytes_max());
                let raw = Arc::new(raw.map_err(|error: UnpackError| damaged(error.to_string()))?.into_owned());
                *self.last() = Some((chunk, raw.clone()));
                raw
            }
        };
        let every: Vec<u32> = all.clone().collect();
        let places = skeleton.check_units(&every, &raw).map_err(|error| damaged(error.to_string()))?;
        let bodies = given.iter().map(|unit| &raw[places[(unit - all.start) as usize].clone()]);
        let packed = pack(&bodies.collect::<Vec<_>>().concat(), 0).map_err(|error| damaged(error.to_string()))?;
        Ok(wire(packed, |wire| Response::Chunks { units, wire }))
    }

    fn last(&self) -> MutexGuard<'_, Option<(u32, Arc<Vec<u8>>)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The whole skeleton, proven from its pages under the root of the index.
    fn whole<S: Shelf>(&self, shelf: &S) -> Result<Arc<Whole<H>>, MirrorError<S::Error>> {
        let mut grown = self.skeleton.lock().unwrap_or_else(PoisonError::into_inner);
        let skeleton = match &mut *grown {
            Grown::Whole(whole) => return Ok(whole.clone()),
            Grown::Growing(skeleton) => skeleton,
        };
        while !skeleton.is_complete() {
            let page = skeleton.pages_done();
            if !self.has(page) {
                let what = "its index has too few pages".to_owned();
                return Err(MirrorError::Damaged { file: HEAD_FILE.to_owned(), what });
            }
            let damaged = |what: String| MirrorError::Damaged { file: self.file(page), what };
            let bytes = self.chunk(shelf, page)?;
            let raw = unpack(&bytes, skeleton.chunk_bytes_max()).map_err(|error| damaged(error.to_string()))?;
            skeleton.add_page(&raw).map_err(|error: PageError| damaged(error.to_string()))?;
        }
        let fresh = Box::new(Skeleton::without_offer(self.version.root, &self.params));
        let Grown::Growing(skeleton) = std::mem::replace(&mut *grown, Grown::Growing(fresh)) else {
            unreachable!("it was growing just now")
        };
        let all = skeleton.pages()..skeleton.chunks();
        let there = self.part.as_ref().map_or(all, |part| skeleton.chunks_of(part));
        let whole = Arc::new(Whole { skeleton: *skeleton, there });
        *grown = Grown::Whole(whole.clone());
        Ok(whole)
    }

    /// Stages whatever is whole of a snapshot at hand, and waits for nothing: what cannot be read, or is not what it must be,
    /// is left out. Whoever fetches a state into the same directory afterwards does not fetch those parts again.
    ///
    /// Costs about what a restore costs. Returns how many bytes of entries are staged.
    ///
    /// # Errors
    /// [`StagingError`].
    // spec: RECOVER-7
    pub fn salvage<S: Shelf>(&self, shelf: &S, staging: Arc<dyn Files>) -> Result<u64, StagingError> {
        const HERE: PeerId = PeerId(0);
        let (params, settings, now) = (self.params.clone(), Settings::default(), Tick(0));
        let mut joiner = Joiner::<H>::open(staging, params, settings, self.version, now, 0)?;
        let mut effects = joiner.step(now, Event::Mirror(HERE));
        while let Some(effect) = effects.pop() {
            let Effect::Ask(_, Frame { id, body }) = effect else { continue };
            let answer = match &body {
                // A part that is damaged would be taken for a lie, and a liar is asked no more.
                Request::GetChunks { units, .. } => self.units(shelf, units, true),
                body => self.answer(shelf, body),
            };
            let body = answer.unwrap_or(Response::Unavailable(Why::NoSuchPart));
            let answer = Frame { id, body }.to_bytes();
            effects.append(&mut joiner.step(now, Event::Answered(HERE, id, &answer)));
        }
        Ok(joiner.progress(now).done.bytes)
    }
}

fn read<T: Decode, S: Shelf>(shelf: &S, file: &str, bytes_max: u64) -> Result<T, MirrorError<S::Error>> {
    let bytes = shelf.read(file, bytes_max).map_err(|error| MirrorError::Read { file: file.to_owned(), error })?;
    T::from_bytes(&bytes).map_err(|error| MirrorError::Damaged { file: file.to_owned(), what: error.to_string() })
}

/// What is sent as it is; a file that is longer than any answer is not.
fn wire<const MAX: usize>(bytes: Vec<u8>, answer: impl FnOnce(Blob<MAX>) -> Response) -> Response {
    Blob::new(bytes).map_or(Response::Unavailable(Why::TooLarge), answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::library::Taken;
    use crate::snapshot::Plan;
    use crate::testing::state;
    use keelstone_codec::ChainId;
    use keelstone_store::files::MemoryFiles;
    use keelstone_tree::{Blake3, Grown as Tree, HashKind, Proof, ProofLimits, Query, Sha256};
    use std::collections::BTreeMap;
    use std::convert::Infallible;

    /// Files in memory.
    struct Memory(BTreeMap<String, Vec<u8>>);

    impl Shelf for Memory {
        type Error = &'static str;
        fn read(&self, file: &str, bytes_max: u64) -> Result<Vec<u8>, &'static str> {
            let bytes = self.0.get(file).ok_or("there is none")?;
            if bytes.len() as u64 > bytes_max { Err("too long") } else { Ok(bytes.clone()) }
        }
    }

    fn params() -> SnapshotParams {
        SnapshotParams { chain_id: ChainId::new("test-1").unwrap(), hasher: HashKind::Blake3, chunk_weight_max: 5000 }
    }

    fn mirror() -> (Memory, Version, Totals) {
        mirror_of(None)
    }

    /// A mirror of a part has the pages, and of the other chunks those that hold the part.
    fn mirror_of(part: Option<PartOf>) -> (Memory, Version, Totals) {
        let tree = Tree::new::<Blake3>(&state(600));
        let plan = Plan::of(&&tree, &params(), Height(7), tree.root()).unwrap();
        let mut files = BTreeMap::new();
        let mut chunks = Vec::new();
        let mut skeleton = Skeleton::<Blake3>::new(plan.root(), plan.metadata());
        (0..plan.pages()).for_each(|page| skeleton.add_page(&plan.page(page).unwrap()).unwrap());
        let there = part.as_ref().map_or(plan.pages()..plan.chunks(), |part| skeleton.chunks_of(part));
        for number in 0..plan.chunks() {
            let wire = pack(&plan.body(&&tree, number).unwrap(), 1).unwrap();
            let (name, bytes) = (plan.name(number), u32::try_from(wire.len()).unwrap());
            chunks.push(Stored { name, bytes, digest: Hash([0; 32]) });
            if number < plan.pages() || there.contains(&number) {
                files.insert(chunk_file(&name), wire);
            }
        }
        let index = Index { metadata: plan.metadata().clone(), root: plan.root(), totals: plan.totals(), chunks };
        let head = Head { height: Height(7), certificate: Blob::new(&b"certificate"[..]).unwrap(), part };
        files.insert(index_file(&index.id()), index.to_bytes());
        files.insert(HEAD_FILE.to_owned(), head.to_bytes());
        (Memory(files), Version { height: Height(7), root: plan.root() }, plan.totals())
    }

    /// Takes a part from a mirror alone, over what is staged already.
    fn take_part(files: &Memory, staging: &MemoryFiles, target: Version, part: &PartOf) -> Result<Taken, String> {
        let mirror = Mirror::<Blake3>::open(files).map_err(|error| error.to_string())?;
        let (peer, now) = (PeerId(1), Tick(0));
        let opened = Joiner::open(Arc::new(staging.clone()), params(), Settings::default(), target, now, 1);
        let mut joiner: Joiner<Blake3> = opened.unwrap().only(part.clone());
        let mut effects = joiner.step(now, Event::Mirror(peer));
        while let Some(effect) = effects.pop() {
            match effect {
                Effect::Ask(_, frame) => {
                    let body = mirror.answer(files, &frame.body).map_err(|error| error.to_string())?;
                    assert!(!matches!(body, Response::Unavailable(_)), "{part} needs what it does not have");
                    let answer = Frame { id: frame.id, body }.to_bytes();
                    effects.append(&mut joiner.step(now, Event::Answered(peer, frame.id, &answer)));
                }
                Effect::Build(_) => return joiner.part().map_err(|error| error.to_string()),
                Effect::Ban(_, why) => return Err(why.to_string()),
                _ => {}
            }
        }
        Err("it has nothing more to ask".to_owned())
    }

    /// spec: LIB-11, PEER-20. Of every namespace and prefix that there is, and of some that there are not, a mirror of that
    /// part alone gives all entries and no others, with a proof under the root; so does what was staged before a restart.
    #[test]
    fn a_mirror_of_a_part_gives_all_of_that_part_and_its_proof() {
        let state = state(600);
        let of =
            |name: &str, prefix: &[u8]| PartOf { namespace: Namespace::new(name).unwrap(), prefix: prefix.to_vec() };
        let mut parts: Vec<PartOf> = ["a", "n", "n11", "zz"].iter().map(|name| of(name, &[])).collect();
        for (namespace, entries) in &state {
            for key in entries.keys().step_by(5) {
                parts.extend([1, 2, key.len()].map(|len| of(namespace.as_str(), &key[..len.min(key.len())])));
            }
            parts.extend([&[][..], &[0, 0, 0], &[0xff; 255]].map(|prefix| of(namespace.as_str(), prefix)));
        }
        let (mut fewest, all) = (usize::MAX, mirror().0.0.len());
        for part in parts {
            let (files, version, _) = mirror_of(Some(part.clone()));
            fewest = fewest.min(files.0.len());
            let staging = MemoryFiles::new();
            let taken = take_part(&files, &staging, version, &part).unwrap();
            let there = state.get(&part.namespace).into_iter().flatten();
            let there = there.filter(|(key, _)| key.starts_with(&part.prefix));
            assert_eq!(
                taken.entries,
                there.map(|(key, value)| (key.clone(), value.clone())).collect::<Vec<_>>(),
                "{part}"
            );
            let query = [Query::Prefix(part.namespace.clone(), part.prefix.clone())];
            let proof = Proof::decode(&taken.proof).unwrap();
            proof.verify::<Blake3>(version.root, &query, &ProofLimits::default()).unwrap();
            // What a crash leaves is enough: only the pages come again.
            let (mut pages, _, _) = mirror_of(Some(of("zz", &[])));
            pages.0.insert(HEAD_FILE.to_owned(), files.0[HEAD_FILE].clone());
            assert_eq!(take_part(&pages, &staging, version, &part).unwrap().entries, taken.entries, "{part}");
        }
        assert!(fewest * 3 < all, "{fewest} files where all are {all}");
        // Whoever wants all of it is told that it is not there.
        let (files, version, _) = mirror_of(Some(of("n1", &[])));
        assert!(join(&files, version, 150).is_err());
    }

    /// Joins with a mirror alone, and says which files it is banned or failed over.
    fn join(files: &Memory, target: Version, batch_bytes_max: u32) -> Result<u64, String> {
        let mirror = Mirror::<Blake3>::open(files).map_err(|error| error.to_string())?;
        let (peer, now) = (PeerId(1), Tick(0));
        let settings = Settings { batch_bytes_max, ..Settings::default() };
        let staging = Arc::new(MemoryFiles::new());
        let mut joiner = Joiner::<Blake3>::open(staging, params(), settings, target, now, 1).unwrap();
        let mut effects = joiner.step(now, Event::Mirror(peer));
        while let Some(effect) = effects.pop() {
            match effect {
                Effect::Ask(_, frame) => {
                    let body = mirror.answer(files, &frame.body).map_err(|error| error.to_string())?;
                    let answer = Frame { id: frame.id, body }.to_bytes();
                    effects.append(&mut joiner.step(now, Event::Answered(peer, frame.id, &answer)));
                }
                Effect::Build(_) => {
                    let mut entries = 0;
                    let handed = joiner.entries(|_, _, _| {
                        entries += 1;
                        Ok::<_, Infallible>(())
                    });
                    handed.unwrap();
                    return Ok(entries);
                }
                Effect::Ban(_, why) => return Err(why.to_string()),
                _ => {}
            }
        }
        Err("it has nothing more to ask".to_owned())
    }

    /// spec: LIB-10. A joiner takes a whole state from files alone, in requests for whole chunks or for parts of them.
    #[test]
    fn a_mirror_gives_what_a_peer_gives() {
        let (files, version, totals) = mirror();
        for batch_bytes_max in [64, 150, 4 << 20] {
            assert_eq!(join(&files, version, batch_bytes_max), Ok(totals.count), "{batch_bytes_max}");
        }
        let opened = Mirror::<Blake3>::open(&files).unwrap();
        assert_eq!((opened.version(), opened.totals()), (version, totals));
        let certificate = opened.answer(&files, &Request::GetCertificate).unwrap();
        assert_eq!(certificate, Response::Certificate(Blob::new(&b"certificate"[..]).unwrap()));
        let other = Version { height: Height(8), ..version };
        let answer = opened.answer(&files, &Request::GetNodes { at: other, page: 0 }).unwrap();
        assert_eq!(answer, Response::Unavailable(Why::NotKept));
        let otherwise = Mirror::<Sha256>::open(&files).unwrap_err().to_string();
        assert!(otherwise.contains("hashed with blake3"), "{otherwise}");
    }

    /// spec: PEER-5. A mirror is asked for whole chunks, one request each; a peer that has the same for a few units at a time.
    #[test]
    fn a_mirror_is_asked_for_whole_chunks_and_a_peer_for_parts() {
        type Meets = fn(PeerId) -> Event<'static>;
        let asked = |meets: Meets| {
            let (files, version, _) = mirror();
            let served = Mirror::<Blake3>::open(&files).unwrap();
            let settings = Settings { batch_bytes_max: params().chunk_weight_max, ..Settings::default() };
            let staging = Arc::new(MemoryFiles::new());
            let mut joiner = Joiner::<Blake3>::open(staging, params(), settings, version, Tick(0), 1).unwrap();
            let (mut effects, mut asked) = (joiner.step(Tick(0), meets(PeerId(1))), Vec::new());
            while let Some(effect) = effects.pop() {
                let Effect::Ask(peer, Frame { id, body }) = effect else { continue };
                if let Request::GetChunks { units, .. } = &body {
                    asked.push(units.iter().copied().collect::<Vec<u32>>());
                }
                let answer = Frame { id, body: served.answer(&files, &body).unwrap() }.to_bytes();
                effects.append(&mut joiner.step(Tick(0), Event::Answered(peer, id, &answer)));
            }
            let skeleton = &served.whole(&files).unwrap().skeleton;
            let chunks = skeleton.pages()..skeleton.chunks();
            let chunks: Vec<Vec<u32>> = chunks.map(|chunk| skeleton.chunk_units(chunk).collect()).collect();
            asked.sort_unstable();
            (asked, chunks)
        };
        let (asked_mirror, chunks) = asked(Event::Mirror);
        assert_eq!(asked_mirror, chunks);
        let (asked_peer, chunks) = asked(Event::Connected);
        assert_eq!(asked_peer.concat(), chunks.concat(), "each unit once");
        assert!(asked_peer.len() > 2 * chunks.len(), "{} requests for {} chunks", asked_peer.len(), chunks.len());
    }

    /// spec: LIB-10. A file that is changed, cut or missing is found, whichever it is, and nothing but the state comes out.
    #[test]
    fn a_mirror_with_one_bad_file_gives_nothing_wrong() {
        let (honest, version, totals) = mirror();
        let names: Vec<String> = honest.0.keys().cloned().collect();
        for name in names {
            for damage in 0..3 {
                let mut files = Memory(honest.0.clone());
                let bytes = files.0.get_mut(&name).unwrap();
                match damage {
                    0 => *bytes.last_mut().unwrap() ^= 1,
                    1 => drop(bytes.pop()),
                    _ => drop(files.0.remove(&name)),
                }
                let found = join(&files, version, 150);
                assert!(found.is_err(), "{name} with damage {damage} gave {found:?} of {totals:?}");
            }
        }
    }

    /// spec: LIB-10. A snapshot whose chunks are called by their places, with no index at hand, gives the same.
    #[test]
    fn chunks_that_are_called_by_their_places_are_as_good() {
        let (files, version, totals) = mirror();
        let index =
            Index::from_bytes(&files.0[&index_file(&SnapshotId { height: Height(7), format: FORMAT })]).unwrap();
        let chunks = index.chunks.iter().enumerate();
        let placed =
            Memory(chunks.map(|(at, stored)| (at.to_string(), files.0[&chunk_file(&stored.name)].clone())).collect());
        let numbered = |metadata: &Metadata| Mirror::<Blake3>::numbered(metadata, index.root, totals, index.bytes());
        let asked = |units| Request::GetChunks { at: version, units: BoundedSet::new(units).unwrap() };
        let (served, named) = (numbered(&index.metadata), Mirror::<Blake3>::open(&files).unwrap());
        for request in [asked(vec![0]), asked(vec![3, 4, 5, 6]), Request::GetNodes { at: version, page: 0 }] {
            assert_eq!(served.answer(&placed, &request).unwrap(), named.answer(&files, &request).unwrap());
        }
        // Of a claim there are as many chunks as it says, and no more.
        for (pages, chunks) in [(index.metadata.pages, 0), (0, index.metadata.chunks), (9_999, index.metadata.chunks)] {
            let false_claim = numbered(&Metadata { pages, chunks, ..index.metadata.clone() });
            let answer = false_claim.answer(&placed, &Request::GetNodes { at: version, page: 9_998 });
            assert!(!matches!(answer, Ok(Response::Nodes(_))));
            assert!(chunks > 0 || false_claim.answer(&placed, &asked(vec![0])).is_err());
        }
        // Whatever height it claims, it says so; what that is worth is for whoever asked to find out (spec: PEER-3).
        let last = numbered(&Metadata { height: Height(u64::MAX), ..index.metadata.clone() });
        let Response::Status(status) = last.answer(&placed, &Request::Status).unwrap() else { panic!("it is asked") };
        assert_eq!(status.newest.height, Height(u64::MAX));
        assert!(Response::from_bytes(&Response::Status(status).to_bytes()).is_err());
    }

    /// spec: RECOVER-7. What is whole of a damaged snapshot is staged whichever chunk is damaged, and nothing else; whoever goes
    /// on in the directory asks for what is missing alone.
    #[test]
    fn what_is_whole_of_a_damaged_snapshot_is_fetched_from_nobody() {
        let (honest, version, totals) = mirror();
        let index =
            Index::from_bytes(&honest.0[&index_file(&SnapshotId { height: Height(7), format: FORMAT })]).unwrap();
        for (place, stored) in index.chunks.iter().enumerate() {
            let mut files = Memory(honest.0.clone());
            match place % 2 {
                0 => *files.0.get_mut(&chunk_file(&stored.name)).unwrap().last_mut().unwrap() ^= 1,
                _ => drop(files.0.remove(&chunk_file(&stored.name))),
            }
            let staging = Arc::new(MemoryFiles::new());
            let here = Mirror::<Blake3>::of_index(&index);
            let salvaged = here.salvage(&files, staging.clone()).unwrap();
            let is_page = place < index.metadata.pages as usize;
            assert!(
                salvaged < totals.bytes && (salvaged > 0) != is_page,
                "chunk {place}: {salvaged} of {}",
                totals.bytes
            );
            let mut joiner =
                Joiner::<Blake3>::open(staging, params(), Settings::default(), version, Tick(0), 1).unwrap();
            let other = Mirror::<Blake3>::of_index(&index);
            let mut effects = joiner.step(Tick(0), Event::Mirror(PeerId(1)));
            let (mut built, mut given) = (false, 0);
            while let Some(effect) = effects.pop() {
                match effect {
                    Effect::Ask(peer, Frame { id, body }) => {
                        let body = other.answer(&honest, &body).unwrap();
                        given += if let Response::Chunks { units, .. } = &body { *units } else { 0 };
                        let answer = Frame { id, body }.to_bytes();
                        effects.append(&mut joiner.step(Tick(0), Event::Answered(peer, id, &answer)));
                    }
                    Effect::Build(_) => built = true,
                    _ => {}
                }
            }
            assert!(built, "chunk {place}");
            let all = other.whole(&honest).unwrap().skeleton.unit_count();
            assert!(is_page || given < all, "chunk {place}: {given} of {all} units were given");
            let mut entries = 0;
            joiner
                .entries(|_, _, _| {
                    entries += 1;
                    Ok::<_, Infallible>(())
                })
                .unwrap();
            assert_eq!(entries, totals.count);
        }
    }

    /// spec: LIB-10.
    #[test]
    fn golden_bytes_of_a_mirrors_head_have_not_changed() {
        let part = PartOf { namespace: Namespace::new("n1").unwrap(), prefix: vec![0xff, 0] };
        let head = |certificate: &[u8], part: Option<&PartOf>| {
            let (certificate, part) = (Blob::new(certificate).unwrap(), part.cloned());
            Head { height: Height(7), certificate, part }
        };
        let heads = [head(b"", None), head(b"certificate", None), head(b"certificate", Some(&part))];
        let bytes = |head: &Head| serde_json::json!({ "height": head.height, "bytes": hex::encode(head.to_bytes()) });
        golden::check("mirror.json", &serde_json::json!({ "heads": heads.iter().map(bytes).collect::<Vec<_>>() }));
        let whole = heads[2].to_bytes();
        assert_eq!(Head::from_bytes(&whole).as_ref(), Ok(&heads[2]));
        for at in 0..whole.len() {
            let mut other = whole.clone();
            other[at] ^= 1;
            assert!(Head::from_bytes(&other).is_err() && Head::from_bytes(&whole[..at]).is_err(), "byte {at}");
        }
    }
}
