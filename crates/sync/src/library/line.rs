//! The line on which a snapshot's chunks are made: each is written, read back and proven, while the next is read from the
//! state.
//!
//! What comes off the line comes in the order in which it was put on, and whoever puts it on waits for what was put on
//! [`AHEAD`] before. So neither what is made nor the order in which files change depends on which thread is quicker, an
//! error is that of the first chunk that has one, and memory is bounded.

use super::create::Making;
use super::index::{Stored, digest};
use super::verify::Verifying;
use super::{LibraryError, disk};
use crate::snapshot::pack;
use keelstone_codec::Hash;
use keelstone_store::files::Files;
use std::io;
use std::sync::mpsc;
use std::thread;

/// Chunks on the line while another is read: one is written, one is proven, one waits.
const AHEAD: usize = 3;

/// A chunk that is put on the line.
pub(super) enum Work {
    /// To be packed and written under its name.
    Write(Hash, Vec<u8>),
    /// It is there already.
    There(Stored),
}

/// Where chunks are put on and come off.
pub(super) enum Line<'a> {
    /// Whoever puts it on does the work.
    Here(Writer<'a>, Prover<'a>),
    /// Two threads do.
    There { works: mpsc::SyncSender<Work>, proven: mpsc::Receiver<Result<Stored, LibraryError>>, busy: usize },
}

impl Line<'_> {
    /// Gives a line to `work`, and ends it after.
    pub(super) fn run<T>(
        files: &dyn Files,
        making: &Making,
        verifying: Verifying,
        work: impl FnOnce(&mut Line<'_>) -> Result<T, LibraryError>,
    ) -> Result<T, LibraryError> {
        let (writer, mut prover) = (Writer { files, level: making.level }, Prover { files, verifying });
        if !making.background {
            return work(&mut Line::Here(writer, prover));
        }
        thread::scope(|scope| {
            let (works, to_write) = mpsc::sync_channel(AHEAD);
            let (written, to_prove) = mpsc::sync_channel(AHEAD);
            let (done, proven) = mpsc::sync_channel(AHEAD + 1);
            scope.spawn(move || pass(to_write, &written, |work| writer.write(work)));
            scope.spawn(move || pass(to_prove, &done, |stored| prover.prove(stored?)));
            let mut line = Line::There { works, proven, busy: 0 };
            let out = work(&mut line);
            // Without it the threads end once they have done what is on it.
            drop(line);
            out
        })
    }

    /// Puts a chunk on the line. Returns the one that came off it, if one had to.
    pub(super) fn put(&mut self, work: Work) -> Result<Option<Stored>, LibraryError> {
        match self {
            Self::Here(writer, prover) => writer.write(work).and_then(|stored| prover.prove(stored)).map(Some),
            Self::There { works, busy, .. } => {
                if works.send(work).is_ok() {
                    *busy += 1;
                    if *busy <= AHEAD {
                        return Ok(None);
                    }
                }
                // Where nothing can be put on any more, one of those before it failed.
                self.next()
            }
        }
    }

    /// Whether something is on it.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self, Self::There { busy: 1.., .. })
    }

    /// Takes off the next chunk, which is written and proven; none if there is none.
    pub(super) fn next(&mut self) -> Result<Option<Stored>, LibraryError> {
        let Self::There { proven, busy, .. } = self else { return Ok(None) };
        let gone = |_| LibraryError::io("make", "a chunk")(io::Error::other("the thread is gone"));
        *busy = busy.saturating_sub(1);
        proven.recv().map_err(gone)?.map(Some)
    }
}

/// Does its part of the work on all that comes, up to the first that fails.
fn pass<T, U>(
    from: mpsc::Receiver<T>,
    to: &mpsc::SyncSender<Result<U, LibraryError>>,
    mut work: impl FnMut(T) -> Result<U, LibraryError>,
) {
    for thing in from {
        let done = work(thing);
        let failed = done.is_err();
        // Nobody takes what nobody waits for.
        if to.send(done).is_err() || failed {
            break;
        }
    }
}

/// Writes chunks, durably.
pub(super) struct Writer<'a> {
    files: &'a dyn Files,
    level: i32,
}

impl Writer<'_> {
    fn write(&self, work: Work) -> Result<Stored, LibraryError> {
        match work {
            Work::Write(name, body) => write(self.files, name, &pack(&body, self.level)?),
            Work::There(stored) => Ok(stored),
        }
    }
}

/// Writes a chunk under its name.
pub(super) fn write(files: &dyn Files, name: Hash, wire: &[u8]) -> Result<Stored, LibraryError> {
    let bytes = u32::try_from(wire.len()).expect("a chunk is below 16 MB");
    disk::write(files, &disk::chunk_file(&name), wire)?;
    Ok(Stored { name, bytes, digest: digest(wire) })
}

/// Reads chunks back: what is listed is what a stranger will find proven.
pub(super) struct Prover<'a> {
    files: &'a dyn Files,
    verifying: Verifying,
}

impl Prover<'_> {
    fn prove(&mut self, stored: Stored) -> Result<Stored, LibraryError> {
        self.verifying.take(&stored, &disk::read_chunk(self.files, &stored)?, None)?;
        Ok(stored)
    }
}
