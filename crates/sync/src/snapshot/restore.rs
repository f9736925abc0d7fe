//! Receiving a snapshot: offers and chunks come in, verdicts go out, and what was proven is kept on disk.
//!
//! Nothing in an offer is believed but the root, which the caller trusts: it comes from a verified header. Every chunk is
//! proven before it is written. The files it is written to are not: nothing is synced, a crash may leave anything in
//! them, and whatever is read back after one is proven again. So a power cut costs chunks, never truth.
//!
//! The verdicts are those CometBFT knows. It hands out chunks in order, the least that is not done first; one that comes
//! too early is sent back without blame and comes again.
//!
//! Rules: `spec/snapshot.md`, SNAP-14 to SNAP-16.

use super::skeleton::{PageError, Place, Skeleton, hand_on};
use super::staging::{StagingError, StagingFiles};
use super::{CHUNKS_MAX, FORMAT, METADATA_BYTES_MAX, Metadata, SnapshotParams, WIRE_BYTES_MAX, snapshot_hash, unpack};
use keelstone_codec::{Decode, Encode, Hash, Height, Key, Namespace, Reader, Root, Tag, TaggedHasher};
use keelstone_store::files::Files;
use keelstone_tree::{Hasher, Totals};
use std::fmt;
use std::sync::Arc;

/// A snapshot as a peer offers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The height it claims to be of.
    pub height: u64,
    /// The format it claims to have.
    pub format: u32,
    /// The number of chunks it claims to have.
    pub chunks: u32,
    /// Its hash.
    pub hash: Vec<u8>,
    /// Its metadata.
    pub metadata: Vec<u8>,
}

/// What to answer to an offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OfferVerdict {
    /// Send its chunks. What was proven of it before is kept.
    Accept,
    /// Our own machine failed, or our side is misused. Nobody is to blame; state sync ends.
    Abort {
        /// What failed.
        reason: String,
    },
    /// Not this one.
    Reject {
        /// What is wrong with it.
        reason: String,
    },
    /// None of this format.
    RejectFormat,
    /// Not this one, and none of who offered it: no honest peer can have made it.
    RejectSender {
        /// What is wrong with it.
        reason: String,
    },
}

/// What to answer to a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChunkVerdict {
    /// It is proven and kept.
    Accept,
    /// Our own machine failed. Nobody is to blame; state sync ends.
    Abort {
        /// What failed.
        reason: String,
    },
    /// Send it again: it was bad, or came before what it is checked against.
    Retry {
        /// Which chunks to fetch anew, from others.
        refetch: Vec<u32>,
        /// From whom to take nothing more.
        reject_senders: Vec<String>,
        /// Why.
        reason: String,
    },
    /// This snapshot cannot be restored: what its offer said is not true, or too many bad chunks came.
    RejectSnapshot {
        /// Why.
        reason: String,
    },
}

/// What bounds the patience of a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoreLimits {
    /// After so many bad chunks a snapshot is given up (spec: SNAP-15).
    pub bad_chunks_max: u32,
    /// After so many bad first pages, with no good one, a snapshot is given up: its offer may be all there is of it
    /// (spec: SNAP-15).
    pub bad_first_pages_max: u32,
}

impl Default for RestoreLimits {
    fn default() -> Self {
        Self { bad_chunks_max: 1_000, bad_first_pages_max: 3 }
    }
}

/// How far a restore is. All figures are exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestoreProgress {
    /// Chunks proven and kept, pages included.
    pub chunks_done: u32,
    /// Chunks in all, as the offer said; proven when all pages are.
    pub chunks: u32,
    /// Entries in the chunks kept.
    pub done: Totals,
    /// Entries in all; none before the first page.
    pub total: Option<Totals>,
}

/// Why a restore did not do what it was asked. Each variant says who has to act.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// Chunks are missing. Apply them first.
    #[error("{done} of {chunks} chunks are there")]
    Incomplete {
        /// How many are there.
        done: u32,
        /// How many it takes.
        chunks: u32,
    },
    /// A chunk on our own disk is no longer what was proven. It is forgotten; fetch it again.
    #[error("chunk {index} was proven, but its file now holds something else")]
    Lost {
        /// Which chunk.
        index: u32,
    },
    /// That happened again and again. Look at the disk.
    #[error("chunk {index} was proven, but its file holds something else, as {times} did before")]
    Unreliable {
        /// Which chunk.
        index: u32,
        /// How many were lost before.
        times: u32,
    },
    /// Every chunk is proven, yet keys do not stand where the tree would have put them: the root itself is of no tree.
    /// Give the snapshot up.
    #[error("chunk {index} does not follow the one before: {what}")]
    Misplaced {
        /// Which chunk.
        index: u32,
        /// What is wrong.
        what: String,
    },
    /// The machine failed: disk full, I/O error, no permission.
    #[error(transparent)]
    Io(#[from] StagingError),
}

impl RestoreError {
    /// What to answer to the chunk at hand.
    #[must_use]
    pub fn verdict(&self) -> ChunkVerdict {
        let reason = self.to_string();
        match self {
            Self::Lost { index } => ChunkVerdict::Retry { refetch: vec![*index], reject_senders: Vec::new(), reason },
            Self::Misplaced { .. } => ChunkVerdict::RejectSnapshot { reason },
            Self::Incomplete { .. } | Self::Unreliable { .. } | Self::Io { .. } => ChunkVerdict::Abort { reason },
        }
    }
}

/// Why the entries were not all handed out.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EntriesError<E> {
    /// They could not be had.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// Whoever took them said so.
    #[error("{0}")]
    Taker(E),
}

/// Receives one snapshot at a time. The skeleton and one chunk are in memory, all else is in the staging directory.
pub struct Restore<H: Hasher> {
    files: StagingFiles,
    params: SnapshotParams,
    limits: RestoreLimits,
    /// What the staging directory holds chunks of, as a crash left it.
    staged: Option<Target>,
    active: Option<Active<H>>,
}

/// Which snapshot is being received.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    metadata: Metadata,
    root: Root,
}

struct Active<H> {
    target: Target,
    skeleton: Skeleton<H>,
    /// Of each chunk that is proven and kept, the digest of its file.
    kept: Vec<Option<Hash>>,
    progress: RestoreProgress,
    bad_chunks: u32,
    bad_first_pages: u32,
    /// Chunks whose files no longer held what was proven.
    lost: u32,
}

/// After so many chunks lost on our own disk it is not asked again.
const LOST_MAX: u32 = 16;

impl<H: Hasher> Restore<H> {
    /// Takes over a staging directory, which nobody else may use. What a crash left there of a snapshot is kept until the
    /// next offer says whether it is of use; everything else in it that is ours is removed.
    ///
    /// # Errors
    /// [`RestoreError::Io`].
    ///
    /// # Panics
    /// If the chain has another hasher.
    pub fn open(files: Arc<dyn Files>, params: SnapshotParams, limits: RestoreLimits) -> Result<Self, RestoreError> {
        assert_eq!(params.hasher, H::KIND, "the hasher of the chain");
        let mut restore = Self { files: StagingFiles(files), params, limits, staged: None, active: None };
        // A file that cannot be read is of no more use than one that is torn.
        restore.staged =
            restore.files.read(TARGET_FILE, WIRE_BYTES_MAX).ok().flatten().and_then(|bytes| Target::open(&bytes));
        if restore.staged.is_none() {
            restore.clear()?;
        }
        Ok(restore)
    }

    /// Judges an offer for a root from a verified header, and gets ready for its chunks. The same offer again keeps what
    /// was proven, also over a restart; another one discards it. Reads and proves what a crash left, so it may take as
    /// long as reading that.
    pub fn offer(&mut self, offer: &Offer, app_hash: &[u8]) -> OfferVerdict {
        let target = match self.judge(offer, app_hash) {
            Ok(target) => target,
            Err(verdict) => return verdict,
        };
        if self.active.as_ref().is_some_and(|active| active.target == target) {
            return OfferVerdict::Accept;
        }
        match self.begin(target) {
            Ok(()) => OfferVerdict::Accept,
            Err(error) => OfferVerdict::Abort { reason: error.to_string() },
        }
    }

    // spec: SNAP-14
    fn judge(&self, offer: &Offer, app_hash: &[u8]) -> Result<Target, OfferVerdict> {
        let reject = |reason: String| Err(OfferVerdict::Reject { reason });
        if offer.format != FORMAT {
            return Err(OfferVerdict::RejectFormat);
        }
        let Ok(root) = <[u8; 32]>::try_from(app_hash) else {
            return reject(format!("an app hash has 32 bytes, this one has {}", app_hash.len()));
        };
        let root = Root(Hash(root));
        if offer.metadata.len() > METADATA_BYTES_MAX {
            return reject(format!(
                "metadata has at most {METADATA_BYTES_MAX} bytes, this has {}",
                offer.metadata.len()
            ));
        }
        let metadata = match Metadata::from_bytes(&offer.metadata) {
            Ok(metadata) => metadata,
            Err(error) => return reject(format!("metadata: {error}")),
        };
        let Metadata { chain_id, height, chunk_weight_max, hasher, pages: _, chunks } = &metadata;
        let ours = &self.params;
        if *chain_id != ours.chain_id {
            return reject(format!("it is of chain {chain_id}, this is {}", ours.chain_id));
        }
        if height.0 != offer.height || height.0 == 0 || i64::try_from(height.0).is_err() {
            return reject(format!("its metadata says height {height}, the offer {}", offer.height));
        }
        if (*chunk_weight_max, *hasher) != (ours.chunk_weight_max, ours.hasher) {
            let found = format!("chunks of {chunk_weight_max} hashed with {hasher}");
            return reject(format!("{found}; this chain has {} and {}", ours.chunk_weight_max, ours.hasher));
        }
        if *chunks != offer.chunks || *chunks > CHUNKS_MAX {
            let limit = CHUNKS_MAX;
            return reject(format!(
                "its metadata says {chunks} chunks, the offer {}; {limit} is the limit",
                offer.chunks
            ));
        }
        let expected = snapshot_hash(ours, *height, root);
        if offer.hash != expected.as_bytes() {
            // All that is hashed is known to both sides, so nobody honest comes to another hash.
            let reason = format!("its hash is not {expected}, which follows from the app hash");
            return Err(OfferVerdict::RejectSender { reason });
        }
        Ok(Target { metadata, root })
    }

    /// Gets ready for the chunks of a target, with what is staged of it.
    fn begin(&mut self, target: Target) -> Result<(), RestoreError> {
        let resumes = self.staged.as_ref() == Some(&target);
        if !resumes {
            self.clear()?;
            self.files.write(TARGET_FILE, &target.seal())?;
        }
        self.staged = None;
        let chunks = target.metadata.chunks;
        let mut active = Active {
            skeleton: Skeleton::new(target.root, &target.metadata),
            target,
            kept: vec![None; chunks as usize],
            progress: RestoreProgress { chunks, ..RestoreProgress::default() },
            bad_chunks: 0,
            bad_first_pages: 0,
            lost: 0,
        };
        if resumes {
            self.resume(&mut active)?;
        }
        self.active = Some(active);
        Ok(())
    }

    /// Proves again what a crash left, and removes what does not stand.
    fn resume(&self, active: &mut Active<H>) -> Result<(), RestoreError> {
        for name in self.files.list()? {
            let Some(index) = chunk_number(&name) else { continue };
            // One that cannot be read is fetched again, or nobody could sync over a bad sector.
            let read = || self.files.read(&name, WIRE_BYTES_MAX).ok().flatten();
            let bytes = if index < active.target.metadata.chunks { read() } else { None };
            // Names sort by number, so pages come first; one that is missing leaves no use for those behind it.
            let stands = bytes.is_some_and(|wire| {
                active.prove(index, &wire).is_ok_and(|()| {
                    active.keep(index, digest(&wire));
                    true
                })
            });
            if !stands {
                self.files.remove(&name)?;
            }
        }
        Ok(())
    }

    /// Takes a chunk in: proves it, and only then writes it. `sender` is whoever sent it, in whatever words.
    pub fn apply(&mut self, index: u32, wire: &[u8], sender: &str) -> ChunkVerdict {
        let Some(active) = &mut self.active else {
            return ChunkVerdict::Abort { reason: "no snapshot was accepted".to_owned() };
        };
        let retry = |refetch, reason| {
            let reject_senders = if sender.is_empty() { vec![] } else { vec![sender.to_owned()] };
            ChunkVerdict::Retry { refetch, reject_senders, reason }
        };
        match active.kept.get(index as usize) {
            Some(None) => {}
            Some(Some(_)) => return ChunkVerdict::Accept,
            None => return retry(vec![], format!("there are {} chunks, none is {index}", active.kept.len())),
        }
        match active.prove(index, wire) {
            Ok(()) => {}
            Err(Refusal::Early) => {
                let reason = format!("chunk {index} cannot be checked before the pages are there");
                return ChunkVerdict::Retry { refetch: vec![], reject_senders: vec![], reason };
            }
            Err(Refusal::Offer(reason)) => return self.give_up(reason),
            Err(Refusal::Bad(reason)) => {
                // spec: SNAP-15
                active.bad_chunks += 1;
                active.bad_first_pages += u32::from(index == 0);
                let RestoreLimits { bad_chunks_max, bad_first_pages_max } = self.limits;
                if active.bad_chunks >= bad_chunks_max || active.bad_first_pages >= bad_first_pages_max {
                    let reason = format!("{} bad chunks, the last one: {reason}", active.bad_chunks);
                    return self.give_up(reason);
                }
                return retry(vec![index], reason);
            }
        }
        if let Err(error) = self.files.write(&chunk_file(index), wire) {
            // What is on the disk counts from here on; another offer of this snapshot goes on from it.
            self.staged = self.active.take().map(|active| active.target);
            return ChunkVerdict::Abort { reason: error.to_string() };
        }
        let active = self.active.as_mut().expect("it was there before");
        active.keep(index, digest(wire));
        ChunkVerdict::Accept
    }

    fn give_up(&mut self, reason: String) -> ChunkVerdict {
        match self.clear() {
            Ok(()) => ChunkVerdict::RejectSnapshot { reason },
            Err(error) => ChunkVerdict::Abort { reason: error.to_string() },
        }
    }

    /// Whether every chunk is proven and kept.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.active.as_ref().is_some_and(|active| active.progress.chunks_done == active.progress.chunks)
    }

    /// How far it is; zeros if no snapshot was accepted.
    #[must_use]
    pub fn progress(&self) -> RestoreProgress {
        self.active.as_ref().map(|active| active.progress).unwrap_or_default()
    }

    /// Whether a chunk is still to be had.
    #[must_use]
    pub fn lacks(&self, index: u32) -> bool {
        let kept = self.active.as_ref().and_then(|active| active.kept.get(index as usize));
        kept.is_some_and(Option::is_none)
    }

    /// The height and root that are being restored.
    #[must_use]
    pub fn target(&self) -> Option<(Height, Root)> {
        self.active.as_ref().map(|active| (active.target.metadata.height, active.target.root))
    }

    /// Reads all entries back from the staging directory and hands them out in order. Each chunk is what was proven, and
    /// where chunks meet, their keys part as the skeleton says.
    ///
    /// # Errors
    /// [`EntriesError`]. A chunk that is lost is forgotten: apply it again.
    pub fn entries<E>(
        &mut self,
        mut each: impl FnMut(&Namespace, &Key, &[u8]) -> Result<(), E>,
    ) -> Result<(), EntriesError<E>> {
        let RestoreProgress { chunks_done: done, chunks, .. } = self.progress();
        if !self.is_complete() {
            return Err(RestoreError::Incomplete { done, chunks }.into());
        }
        let mut last: Option<(Namespace, Key)> = None;
        let pages = self.active.as_ref().map_or(0, |active| active.target.metadata.pages);
        for index in pages..chunks {
            let wire = self.read_back(index)?;
            let active = self.active.as_ref().expect("it is complete");
            let raw = unpack(&wire, active.skeleton.chunk_bytes_max()).expect("these bytes were unpacked before");
            let border = |last: Place<'_>, first: Place<'_>| {
                let border = active.skeleton.check_chunk_border(index, last, first);
                border.map_err(|fault| RestoreError::Misplaced { index, what: fault.to_string() }.into())
            };
            let take = |name: &Namespace, key: &Key, value: &[u8]| each(name, key, value).map_err(EntriesError::Taker);
            active.skeleton.proven(index, &raw).entries(hand_on(&mut last, border, take))?;
        }
        Ok(())
    }

    /// The wire form of a kept chunk, which must be what was proven.
    fn read_back(&mut self, index: u32) -> Result<Vec<u8>, RestoreError> {
        let name = chunk_file(index);
        let wire = self.files.read(&name, WIRE_BYTES_MAX)?;
        let active = self.active.as_mut().expect("a snapshot is active");
        let kept = active.kept[index as usize];
        match wire.filter(|wire| kept == Some(digest(wire))) {
            Some(wire) => Ok(wire),
            None => {
                active.forget(index);
                let times = active.lost;
                active.lost += 1;
                self.files.remove(&name)?;
                if times < LOST_MAX {
                    Err(RestoreError::Lost { index })
                } else {
                    Err(RestoreError::Unreliable { index, times })
                }
            }
        }
    }

    /// Forgets the snapshot and removes everything staged.
    ///
    /// # Errors
    /// [`RestoreError::Io`].
    pub fn clear(&mut self) -> Result<(), RestoreError> {
        (self.active, self.staged) = (None, None);
        // The target goes first: chunks without one are of nothing.
        self.files.remove(TARGET_FILE)?;
        for name in self.files.list()?.iter().filter(|name| chunk_number(name).is_some()) {
            self.files.remove(name)?;
        }
        Ok(())
    }
}

impl<H: Hasher> fmt::Debug for Restore<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (target, progress) = (self.target(), self.progress());
        f.debug_struct("Restore").field("target", &target).field("progress", &progress).finish_non_exhaustive()
    }
}

/// Why a chunk was not proven.
enum Refusal {
    /// What it is checked against is not known yet.
    Early,
    /// Whoever sent it is to blame.
    Bad(String),
    /// The offer is to blame.
    Offer(String),
}

impl<H: Hasher> Active<H> {
    /// Proves a chunk; a page becomes part of the skeleton.
    fn prove(&mut self, index: u32, wire: &[u8]) -> Result<(), Refusal> {
        let early = if index < self.skeleton.pages() {
            index != self.skeleton.pages_done()
        } else {
            !self.skeleton.is_complete()
        };
        if early {
            return Err(Refusal::Early);
        }
        let raw = unpack(wire, self.skeleton.chunk_bytes_max()).map_err(|error| Refusal::Bad(error.to_string()))?;
        if index < self.skeleton.pages() {
            return self.skeleton.add_page(&raw).map_err(|error| match error {
                PageError::Forged { .. } => Refusal::Bad(error.to_string()),
                PageError::Counts { .. } | PageError::TooLarge(_) => Refusal::Offer(error.to_string()),
            });
        }
        self.skeleton.check(index, &raw).map(drop).map_err(|error| Refusal::Bad(error.to_string()))
    }

    /// Counts a chunk as done.
    fn keep(&mut self, index: u32, digest: Hash) {
        self.kept[index as usize] = Some(digest);
        self.progress.chunks_done += 1;
        self.progress.total = self.skeleton.totals();
        if index >= self.skeleton.pages() {
            self.progress.done += self.skeleton.chunk_totals(index);
        }
    }

    fn forget(&mut self, index: u32) {
        self.kept[index as usize] = None;
        self.progress.chunks_done -= 1;
        let lost = self.skeleton.chunk_totals(index);
        self.progress.done.count -= lost.count;
        self.progress.done.bytes -= lost.bytes;
    }
}

const TARGET_FILE: &str = "target";
const TARGET: Tag = Tag::new("snapshot-target");
const STAGED: Tag = Tag::new("snapshot-staged");

impl Target {
    /// The bytes of the file that says what is staged.
    fn seal(&self) -> Vec<u8> {
        let mut out = self.metadata.to_bytes();
        self.root.encode(&mut out);
        let hash = TaggedHasher::new(TARGET).update(&out).finish();
        hash.encode(&mut out);
        out
    }

    /// What the file says, if a crash left it whole.
    fn open(bytes: &[u8]) -> Option<Self> {
        let (body, hash) = bytes.split_last_chunk::<32>()?;
        if TaggedHasher::new(TARGET).update(body).finish().0 != *hash {
            return None;
        }
        let mut input = Reader::new(body);
        let target = Self { metadata: Metadata::decode(&mut input).ok()?, root: Root::decode(&mut input).ok()? };
        input.finish().is_ok().then_some(target)
    }
}

/// What a staged file must still come to when it is read back.
fn digest(wire: &[u8]) -> Hash {
    TaggedHasher::new(STAGED).update(wire).finish()
}

fn chunk_file(index: u32) -> String {
    format!("chunk-{index:06}")
}

fn chunk_number(name: &str) -> Option<u32> {
    let number = name.strip_prefix("chunk-")?.parse().ok()?;
    (chunk_file(number) == name).then_some(number)
}
