//! Generations of the data directory: a state that is built anew stands aside until it is whole.
//!
//! ```text
//! data/LOCK            held by the one process that uses the directory
//! data/CURRENT         the name of the generation that counts
//! data/gen-000001/     a generation: state/, blocks.redb and its blocks.wal; `counted`, once it counts; and `unconfirmed`,
//!                      if nothing but a snapshot speaks for it, `given`, if its root was trusted, or `hollow`, if it lacks
//!                      the state that its chain inherited;
//!                      `put-back`, as long as snapshots may lie here of a history that it had above
//! data/blocks-of-gen-000001/   blocks of a generation that is gone, which nothing removes
//! ```
//!
//! A generation counts once `CURRENT` names it, and `CURRENT` changes by one rename. So a crash at any moment leaves the
//! old generation or the new one whole; whatever else lies there is swept away at the next start (spec: STORE-10). Where
//! `CURRENT` is lost, a generation that counted is the chain: that is damage, and nothing is swept.

use crate::exit::{Exit, Failure};
use crate::newfile;
use keelstone_codec::{Height, Root};
use keelstone_store::files::{Directory, Files as _, Guard, LockError};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

const CURRENT: &str = "CURRENT";
/// `CURRENT` before it is renamed.
const NEXT: &str = "CURRENT.next";
const PREFIX: &str = "gen-";
/// Begins the name of a directory of blocks that are kept, before that of their generation.
const KEPT: &str = "blocks-of-";
/// There is such a file in a generation that counts, or did and was not given up: without `CURRENT` nothing else tells it from
/// one that was being built.
const COUNTED: &str = "counted";
/// A directory is tried so many times more before it is said to be in use, so far apart.
const LOCK_TRIES: u32 = 3;
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// The height of a restored state, as long as no block was made on it.
const UNCONFIRMED: &str = "unconfirmed";
/// A height that a state was put back to, as long as snapshots may lie here of the history that it had above.
const PUT_BACK: &str = "put-back";
/// The height and the root of a state whose root was trusted by whoever had it put here.
const GIVEN: &str = "given";
/// There is no such file in a state that is whole.
const HOLLOW: &str = "hollow";

/// The data directory, locked for this process.
#[derive(Debug)]
pub(crate) struct Generations {
    data: PathBuf,
    _lock: Box<dyn Guard>,
}

/// One generation: a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Generation {
    number: u32,
    path: PathBuf,
}

/// Whether something in a data directory is blocks that are kept, which nothing removes.
// spec: RECOVER-9
pub(crate) fn is_kept(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(KEPT.as_bytes())
}

/// What a state from elsewhere takes the place of.
#[derive(Debug)]
pub(crate) struct Replaced {
    /// The generation that counts; where nothing says which one does, the only one that did.
    pub(crate) generation: Option<Generation>,
    /// Why it is not known what counts.
    pub(crate) damage: Option<Failure>,
}

/// What `CURRENT` says.
enum Named {
    /// There is none.
    Absent,
    Generation(Generation),
    /// Something that is no name.
    Nonsense(String),
}

impl Generations {
    /// Takes a data directory for this process and sweeps away what no crash should have left.
    pub(crate) fn open(data: &Path) -> Result<Self, Failure> {
        let generations = Self::locked(data)?;
        if let Some(failure) = generations.sweep()? {
            tracing::warn!(%failure, "a generation that does not count stays, and is in nobody's way");
        }
        Ok(generations)
    }

    /// As [`Self::open`], to put another state in the place of what is there, which may be damaged. Nothing is swept.
    pub(crate) fn open_to_replace(data: &Path) -> Result<(Self, Replaced), Failure> {
        let generations = Self::locked(data)?;
        let replaced = match generations.current() {
            Ok(generation) => Replaced { generation, damage: None },
            Err(failure) if failure.exit == Exit::Integrity => {
                // A name that leads nowhere says as little of those which are there as one that is none: a changed bit makes either.
                Replaced { generation: generations.only_counted()?, damage: Some(failure) }
            }
            Err(failure) => return Err(failure),
        };
        Ok((generations, replaced))
    }

    fn locked(data: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::io(data.display(), &error);
        newfile::create_dir(data).map_err(failed)?;
        let directory = Directory::new(data).map_err(failed)?;
        let mut tries = 0;
        let lock = loop {
            match directory.lock() {
                // Who looks whether a process holds it holds it for a moment.
                Err(LockError::InUse { .. }) if tries < LOCK_TRIES => {
                    tries += 1;
                    std::thread::sleep(LOCK_PAUSE);
                }
                tried => break tried,
            }
        };
        let lock = lock.map_err(|error| match error {
            LockError::InUse { .. } => Failure::new(Exit::InUse, format!("{} is {error}", data.display()))
                .hint("stop the node that runs there, or give another --home"),
            LockError::Io(error) => failed(error),
        })?;
        Ok(Self { data: data.to_owned(), _lock: lock })
    }

    fn named(&self) -> Result<Named, Failure> {
        let path = self.data.join(CURRENT);
        match fs::read(&path) {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                let number = text.strip_suffix('\n').and_then(number_of);
                Ok(number.map_or(Named::Nonsense(text), |number| Named::Generation(Generation::at(&self.data, number))))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Named::Absent),
            Err(error) => Err(Failure::io(path.display(), &error)),
        }
    }

    /// The generation that counts; none in a directory that has none yet.
    ///
    /// # Errors
    /// An integrity failure if nothing says which of those that are there counts.
    pub(crate) fn current(&self) -> Result<Option<Generation>, Failure> {
        let path = self.data.join(CURRENT);
        let damaged = match self.named()? {
            Named::Generation(generation) if generation.path.is_dir() => return Ok(Some(generation)),
            Named::Generation(generation) => format!("{} names {}, which is absent", path.display(), generation.name()),
            Named::Nonsense(text) => format!("{} names no generation: {text:?}", path.display()),
            Named::Absent => match self.counted()?.first() {
                None => return Ok(None),
                Some(counted) => format!("there is no {}, and {} counted", path.display(), counted.name()),
            },
        };
        let hint = match self.only_counted()? {
            Some(one) => {
                format!("if {} is to count, write its name and a line's end into that file; else ", one.name())
            }
            None => String::new(),
        };
        let hint = format!("{hint}keelstone recover, or keelstone snapshot restore, puts a state in its place");
        Err(Failure::integrity(damaged).hint(hint))
    }

    /// Those that count, or did and were not given up.
    pub(crate) fn counted(&self) -> Result<Vec<Generation>, Failure> {
        let mut counted = self.all()?;
        counted.retain(Generation::has_counted);
        Ok(counted)
    }

    fn only_counted(&self) -> Result<Option<Generation>, Failure> {
        let mut counted = self.counted()?;
        Ok(if counted.len() == 1 { counted.pop() } else { None })
    }

    /// Every generation that lies there, by number.
    fn all(&self) -> Result<Vec<Generation>, Failure> {
        all(&self.data).map_err(|error| Failure::io(self.data.display(), &error))
    }

    /// An empty directory for the next generation: none of those that are there is touched, whether it counts or not. Nor does it
    /// get the name of one that counts and is gone, or it would count before it is whole.
    // spec: STORE-10
    pub(crate) fn fresh(&self) -> Result<Generation, Failure> {
        let last = self.all()?.last().map_or(0, |last| last.number);
        let named = match self.named()? {
            Named::Generation(generation) => Some(generation.number),
            Named::Absent | Named::Nonsense(_) => None,
        };
        let next =
            last.checked_add(1).and_then(|next| if named == Some(next) { next.checked_add(1) } else { Some(next) });
        let next = next.ok_or_else(|| {
            Failure::integrity(format!("{} has a generation {last}, and none can follow", self.data.display()))
        })?;
        let generation = Generation::at(&self.data, next);
        fs::create_dir(&generation.path).map_err(|error| Failure::io(generation.path.display(), &error))?;
        Ok(generation)
    }

    /// Makes a generation the one that counts. Durable when this returns.
    // spec: STORE-10
    pub(crate) fn switch(&self, to: &Generation) -> Result<(), Failure> {
        let next = self.data.join(NEXT);
        let switched = (|| {
            // What the new name leads to must be on the disk before the name is.
            sync_directory(&to.path)?;
            sync_directory(&self.data)?;
            write_durable(&next, format!("{}\n", to.name()).as_bytes())?;
            fs::rename(&next, self.data.join(CURRENT))?;
            fault(&self.data, Fault::Switch)?;
            sync_directory(&self.data)
        })();
        switched.map_err(|error| Failure::io(format_args!("could not switch to {}", to.path.display()), &error))?;
        to.mark_counted();
        Ok(())
    }

    /// Gives what there is of a generation's blocks a second name in the data directory, which nothing removes once it does not
    /// count any more: it is about to go. Takes no room of its own. Returns the directory it lies in then.
    // spec: RECOVER-9
    pub(crate) fn keep_blocks(&self, of: &Generation) -> Result<PathBuf, Failure> {
        let first = self.data.join(kept_blocks(of));
        let mut kept = first.clone();
        let made = (|| {
            let mut again = 1u32;
            while let Err(error) = fs::create_dir(&kept) {
                if error.kind() != io::ErrorKind::AlreadyExists {
                    return Err(error);
                }
                // Of who was killed, or came to nothing, before another state counted.
                if of.has_blocks_of(&kept)? {
                    break;
                }
                again = again.saturating_add(1);
                kept = first.with_extension(again.to_string());
            }
            for (from, name) in of.block_files() {
                match fs::hard_link(&from, kept.join(name)) {
                    Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists) => {
                        return Err(error);
                    }
                    _ => {}
                }
            }
            sync_directory(&kept)?;
            sync_directory(&self.data)
        })();
        made.map_err(|error| Failure::io(format_args!("could not keep the blocks in {}", kept.display()), &error))?;
        Ok(kept)
    }

    /// Removes the second names of the blocks of a generation that counts after all.
    fn forget_kept_blocks(&self, of: &Generation) -> io::Result<()> {
        let name = kept_blocks(of);
        for entry in fs::read_dir(&self.data)? {
            let entry = entry?;
            let is_of_it = entry.file_name().to_str().and_then(|found| found.strip_prefix(&name)).is_some_and(|rest| {
                rest.is_empty() || rest.strip_prefix('.').is_some_and(|again| again.parse::<u32>().is_ok())
            });
            if is_of_it && of.has_blocks_of(&entry.path())? {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }

    /// Removes a generation that does not count.
    pub(crate) fn discard(&self, generation: &Generation) -> Result<(), Failure> {
        let removed = fs::symlink_metadata(&generation.path)
            .and_then(|_| fault(&self.data, Fault::Discard))
            .and_then(|()| fs::remove_dir_all(&generation.path));
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Failure::io(format_args!("could not remove {}", generation.path.display()), &error))
            }
            _ => Ok(()),
        }
    }

    /// Removes a generation that was built and is not taken. One that counts stays, and one that may count too: a switch
    /// that failed may have come as far as the rename.
    // spec: STORE-10
    pub(crate) fn discard_unless_current(&self, generation: &Generation) -> Result<(), Failure> {
        if self.current()?.as_ref() == Some(generation) { Ok(()) } else { self.discard(generation) }
    }

    /// Removes every generation but the one that counts. Says why one could not be removed, if so.
    ///
    /// The name that is read may be newer than the one on the disk, where a switch was cut off or failed: a power cut would
    /// bring that one back. So what it leads to is removed only once the name is durable.
    ///
    /// # Errors
    /// As [`Self::current`], and nothing is removed then.
    pub(crate) fn sweep(&self) -> Result<Option<Failure>, Failure> {
        let current = self.current()?;
        if let Some(current) = current.as_ref().filter(|current| !current.has_counted()) {
            // Killed between the switch and the mark.
            current.mark_counted();
        }
        if let Some(Err(error)) = current.as_ref().map(|current| self.forget_kept_blocks(current)) {
            tracing::warn!(%error, "blocks that count have a second name, which could not be removed");
        }
        let mut others = self.all()?;
        others.retain(|generation| current.as_ref() != Some(generation));
        if others.is_empty() {
            return Ok(None);
        }
        if let Err(error) = fault(&self.data, Fault::Switch).and_then(|()| sync_directory(&self.data)) {
            return Ok(Some(Failure::io(format_args!("could not sync {}", self.data.display()), &error)));
        }
        let mut left = None;
        for generation in others {
            tracing::info!(generation = generation.name(), "swept away a generation that does not count");
            left = self.discard(&generation).err().or(left);
        }
        Ok(left)
    }
}

/// A step that can fail where no test could make the system do so.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// Making the new name durable, after it is there.
    Switch,
    /// Removing a generation.
    Discard,
    /// Emptying a data directory, once it names no generation.
    Empty,
}

#[cfg(test)]
impl Fault {
    /// The file that has it fail, as long as it is there.
    pub(crate) fn file(self, data: &Path) -> PathBuf {
        data.join(format!("{self:?}-fails"))
    }
}

/// What a test wants to go wrong in a data directory.
#[cfg(test)]
fn fault(data: &Path, fault: Fault) -> io::Result<()> {
    if fault.file(data).exists() { Err(io::Error::other(format!("{fault:?} is to fail"))) } else { Ok(()) }
}

#[cfg(not(test))]
#[expect(clippy::unnecessary_wraps, reason = "nothing goes wrong on purpose but in tests")]
fn fault(_: &Path, _: Fault) -> io::Result<()> {
    Ok(())
}

impl Generation {
    fn at(data: &Path, number: u32) -> Self {
        Self { number, path: data.join(format!("{PREFIX}{number:06}")) }
    }

    fn has_counted(&self) -> bool {
        self.path.join(COUNTED).exists()
    }

    /// Notes that it counts: after `CURRENT` names it, for one that a crash left unnamed never counted. Without the mark it
    /// counts all the same, and the next start makes up for it.
    fn mark_counted(&self) {
        let marked = write_durable(&self.path.join(COUNTED), b"").and_then(|()| sync_directory(&self.path));
        if let Err(error) = marked {
            tracing::warn!(%error, generation = self.name(), "a generation that counts could not be marked");
        }
    }

    /// Takes the mark back.
    fn give_up(&self) -> io::Result<()> {
        match fs::remove_file(self.path.join(COUNTED)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => sync_directory(&self.path),
        }
    }

    /// Where the state lies.
    pub(crate) fn state(&self) -> PathBuf {
        self.path.join("state")
    }

    /// Where blocks and receipts lie.
    pub(crate) fn blocks(&self) -> PathBuf {
        self.path.join("blocks.redb")
    }

    /// Whether there is anything of them, or of their log.
    pub(crate) fn has_blocks(&self) -> bool {
        let blocks = self.blocks();
        blocks.exists() || blocks.with_extension("wal").exists()
    }

    /// What blocks and receipts lie in, and what it is called where they are kept.
    fn block_files(&self) -> [(PathBuf, &'static str); 2] {
        let blocks = self.blocks();
        [(blocks.with_extension("wal"), "blocks.wal"), (blocks, "blocks.redb")]
    }

    /// Whether there is nothing in a directory of kept blocks but names of the very files that lie here.
    fn has_blocks_of(&self, kept: &Path) -> io::Result<bool> {
        let which = |path: &Path| match fs::metadata(path) {
            Ok(found) => Ok(Some((found.dev(), found.ino()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        for (here, name) in self.block_files() {
            let there = which(&kept.join(name))?;
            if there.is_some() && there != which(&here)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The height of the state if nothing but a snapshot says that it is the chain's.
    // spec: SNAP-9
    pub(crate) fn unconfirmed(&self) -> Result<Option<Height>, Failure> {
        let path = self.path.join(UNCONFIRMED);
        match fs::read_to_string(&path) {
            Ok(text) => match text.strip_suffix('\n').and_then(|text| text.parse().ok()) {
                Some(height) => Ok(Some(Height(height))),
                None => Err(Failure::integrity(format!("{} names no height: {text:?}", path.display()))),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Failure::io(path.display(), &error)),
        }
    }

    /// Notes that only a snapshot says so. Durable once the generation is switched to.
    pub(crate) fn mark_unconfirmed(&self, height: Height) -> Result<(), Failure> {
        let path = self.path.join(UNCONFIRMED);
        write_durable(&path, format!("{height}\n").as_bytes()).map_err(|error| Failure::io(path.display(), &error))
    }

    /// Notes that a block was made on this state. A crash before this is durable is no harm: the state has a height
    /// above the one in the note by then.
    pub(crate) fn confirm(&self) -> Result<(), Failure> {
        let path = self.path.join(UNCONFIRMED);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Failure::io(path.display(), &error)),
            _ => Ok(()),
        }
    }

    /// Notes that the state is about to be put back to a height, so that snapshots above are of a history that is no more once it
    /// stands there. Durable when this returns, or once the generation is switched to.
    // spec: STORE-5
    pub(crate) fn mark_put_back(&self, to: Height) -> Result<(), Failure> {
        let path = self.path.join(PUT_BACK);
        let marked = write_durable(&path, format!("{to}\n").as_bytes()).and_then(|()| sync_directory(&self.path));
        marked.map_err(|error| Failure::io(path.display(), &error))
    }

    /// The height it was to be put back to, if snapshots may lie here that are above it.
    pub(crate) fn put_back(&self) -> Result<Option<Height>, Failure> {
        let path = self.path.join(PUT_BACK);
        match fs::read_to_string(&path) {
            // Cut short it was never put back.
            Ok(text) => Ok(text.strip_suffix('\n').and_then(|text| text.parse().ok()).map(Height)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Failure::io(path.display(), &error)),
        }
    }

    /// Takes the note back.
    pub(crate) fn settle_put_back(&self) -> Result<(), Failure> {
        let path = self.path.join(PUT_BACK);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Failure::io(path.display(), &error)),
            _ => Ok(()),
        }
    }

    /// The height and the root that somebody trusted when this state was put here; none where nobody did.
    // spec: CHECK-1
    pub(crate) fn given(&self) -> Result<Option<(Height, Root)>, Failure> {
        let path = self.path.join(GIVEN);
        match fs::read_to_string(&path) {
            Ok(text) => {
                let said = text.strip_suffix('\n').and_then(|text| text.split_once(' '));
                let said =
                    said.and_then(|(height, root)| Some((Height(height.parse().ok()?), Root::from_hex(root).ok()?)));
                let damaged = || Failure::integrity(format!("{} names no height and root: {text:?}", path.display()));
                said.map(Some).ok_or_else(damaged)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Failure::io(path.display(), &error)),
        }
    }

    /// Notes it. Durable once the generation is switched to.
    pub(crate) fn mark_given(&self, height: Height, root: Root) -> Result<(), Failure> {
        let path = self.path.join(GIVEN);
        let text = format!("{height} {root}\n");
        write_durable(&path, text.as_bytes()).map_err(|error| Failure::io(path.display(), &error))
    }

    /// Takes over the files of another generation, all that is not its state nor the mark that it counts, durably.
    pub(crate) fn take_over_files(&self, other: &Self) -> Result<(), Failure> {
        let copy = || -> io::Result<()> {
            for entry in fs::read_dir(&other.path)? {
                let entry = entry?;
                if entry.file_type()?.is_file() && entry.file_name() != COUNTED {
                    let to = self.path.join(entry.file_name());
                    fs::copy(entry.path(), &to)?;
                    fs::File::open(&to)?.sync_all()?;
                }
            }
            sync_directory(&self.path)
        };
        copy().map_err(|error| Failure::io(format_args!("could not copy {}", other.path.display()), &error))
    }

    /// Whether the state lacks what its chain inherited, and is only there to be replaced.
    // spec: GENESIS-4
    pub(crate) fn is_hollow(&self) -> bool {
        self.path.join(HOLLOW).exists()
    }

    /// Notes that it does. Durable once the generation is switched to.
    pub(crate) fn mark_hollow(&self) -> Result<(), Failure> {
        let path = self.path.join(HOLLOW);
        write_durable(&path, b"").map_err(|error| Failure::io(path.display(), &error))
    }

    fn name(&self) -> String {
        format!("{PREFIX}{:06}", self.number)
    }
}

/// Lets no generation of a data directory count any more, durably, before the rest of it is removed: what is left of that
/// is swept away at the next start, while a name that leads to nothing, or none beside what counted, would be damage. A
/// crash before the name is gone changes nothing: what it names counts, with the mark or without.
// spec: STORE-10
pub(crate) fn name_none(data: &Path) -> Result<(), Failure> {
    let emptied = (|| {
        all(data)?.iter().try_for_each(Generation::give_up)?;
        match fs::remove_file(data.join(CURRENT)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => sync_directory(data)?,
        }
        fault(data, Fault::Empty)
    })();
    emptied.map_err(|error| Failure::io(format_args!("could not empty {}", data.display()), &error))
}

/// Every generation in a data directory, by number.
fn all(data: &Path) -> io::Result<Vec<Generation>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(data)? {
        let number = entry?.file_name().to_str().and_then(number_of);
        all.extend(number.map(|number| Generation::at(data, number)));
    }
    all.sort_by_key(|generation| generation.number);
    Ok(all)
}

/// Who holds a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holder {
    Nobody,
    /// A process, by the number it wrote down.
    Process(Option<u32>),
    /// This user may not look.
    Unknown,
}

/// Looks who holds a data directory, and leaves it to them.
pub(crate) fn holder(data: &Path) -> Holder {
    let mut file = match fs::File::open(data.join("LOCK")) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Holder::Nobody,
        Err(_) => return Holder::Unknown,
    };
    match file.try_lock_shared() {
        Ok(()) => Holder::Nobody,
        Err(fs::TryLockError::WouldBlock) => {
            let mut text = String::new();
            let read = io::Read::read_to_string(&mut io::Read::take(&mut file, 32), &mut text);
            Holder::Process(read.ok().and_then(|_| text.trim().parse().ok()))
        }
        Err(fs::TryLockError::Error(_)) => Holder::Unknown,
    }
}

/// What the directory is called that blocks of a generation are kept in.
fn kept_blocks(of: &Generation) -> String {
    format!("{KEPT}{}", of.name())
}

/// The number in a generation's name.
fn number_of(name: &str) -> Option<u32> {
    let digits = name.strip_prefix(PREFIX)?;
    (digits.len() >= 6 && digits.bytes().all(|digit| digit.is_ascii_digit())).then(|| digits.parse().ok())?
}

fn write_durable(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use io::Write as _;
    let mut file = fs::File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync_directory(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(data: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(data).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_generation_counts_once_current_names_it_and_the_others_are_swept() {
        let home = tempfile::tempdir().unwrap();
        let generations = Generations::open(home.path()).unwrap();
        assert_eq!(generations.current().unwrap(), None);
        let first = generations.fresh().unwrap();
        assert_eq!(generations.current().unwrap(), None, "nothing counts that was not switched to");
        generations.switch(&first).unwrap();
        assert_eq!(generations.current().unwrap(), Some(first.clone()));
        let second = generations.fresh().unwrap();
        assert_ne!(first, second);
        drop(generations);

        // Killed before the switch: the old one counts. The half-built one is gone.
        let generations = Generations::open(home.path()).unwrap();
        assert_eq!(generations.current().unwrap(), Some(first.clone()));
        assert_eq!(names(home.path()), ["CURRENT", "LOCK", "gen-000001"]);

        // Killed after the switch: the new one counts.
        let second = generations.fresh().unwrap();
        generations.switch(&second).unwrap();
        drop(generations);
        let generations = Generations::open(home.path()).unwrap();
        assert_eq!(generations.current().unwrap(), Some(second));
        assert_eq!(names(home.path()), ["CURRENT", "LOCK", "gen-000002"]);
    }

    /// spec: STORE-10. A switch that failed may have come as far as the rename: what counts by then stays.
    #[test]
    fn what_counts_is_not_discarded_as_what_was_not_taken() {
        let home = tempfile::tempdir().unwrap();
        let generations = Generations::open(home.path()).unwrap();
        let first = generations.fresh().unwrap();
        generations.switch(&first).unwrap();
        let second = generations.fresh().unwrap();
        generations.discard_unless_current(&second).unwrap();
        assert!(!second.path.exists(), "it was not taken");
        let second = generations.fresh().unwrap();
        generations.switch(&second).unwrap();
        generations.discard_unless_current(&second).unwrap();
        assert!(second.path.is_dir(), "it counts");
        // Nobody knows which one does.
        fs::write(home.path().join(CURRENT), "nonsense").unwrap();
        assert!(generations.discard_unless_current(&second).is_err());
        assert!(second.path.is_dir(), "it may count");
    }

    /// spec: STORE-10. A name that may not be on the disk yet could be taken back by a power cut: what the one before leads to
    /// stays until it is.
    #[test]
    fn nothing_is_swept_before_the_name_of_what_counts_is_durable() {
        let home = tempfile::tempdir().unwrap();
        let generations = Generations::open(home.path()).unwrap();
        let [first, second] = [(); 2].map(|()| generations.fresh().unwrap());
        generations.switch(&first).unwrap();
        fs::write(Fault::Switch.file(home.path()), "").unwrap();
        assert!(generations.switch(&second).is_err());
        assert_eq!(generations.current().unwrap(), Some(second.clone()), "it came as far as the name");
        drop(generations);
        drop(Generations::open(home.path()).unwrap());
        assert!(first.path.is_dir() && second.path.is_dir());
        fs::remove_file(Fault::Switch.file(home.path())).unwrap();
        drop(Generations::open(home.path()).unwrap());
        assert!(!first.path.exists() && second.path.is_dir());
    }

    /// spec: RECOVER-9. However often blocks are kept before another state counts, they are kept once; those of a state that
    /// counts after all not at all, and those of one that is gone for good.
    #[test]
    fn blocks_are_kept_once_and_only_of_what_is_gone() {
        let home = tempfile::tempdir().unwrap();
        let generations = Generations::open(home.path()).unwrap();
        let first = generations.fresh().unwrap();
        generations.switch(&first).unwrap();
        fs::write(first.blocks(), "blocks").unwrap();
        let kept = generations.keep_blocks(&first).unwrap();
        fs::write(first.blocks().with_extension("wal"), "their log").unwrap();
        assert_eq!(generations.keep_blocks(&first).unwrap(), kept, "killed between the two");
        assert_eq!(names(&kept), ["blocks.redb", "blocks.wal"]);
        drop(generations);
        let generations = Generations::open(home.path()).unwrap();
        assert!(!kept.exists(), "it counts after all, and has them");

        generations.keep_blocks(&first).unwrap();
        let second = generations.fresh().unwrap();
        generations.switch(&second).unwrap();
        generations.sweep().unwrap();
        assert_eq!(fs::read(kept.join("blocks.redb")).unwrap(), b"blocks");
        // Of another generation of that name.
        fs::create_dir(&first.path).unwrap();
        fs::write(first.blocks(), "others").unwrap();
        assert_eq!(generations.keep_blocks(&first).unwrap(), kept.with_extension("2"));
        assert_eq!(fs::read(kept.join("blocks.redb")).unwrap(), b"blocks");
    }

    #[test]
    fn ss39_a_second_process_is_told_who_holds_the_directory() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(holder(home.path()), Holder::Nobody);
        let held = Generations::open(home.path()).unwrap();
        let failure = Generations::open(home.path()).unwrap_err();
        assert_eq!(failure.exit, Exit::InUse);
        assert!(failure.message.contains(&std::process::id().to_string()), "{failure}");
        assert_eq!(holder(home.path()), Holder::Process(Some(std::process::id())));
        drop(held);
        assert_eq!(holder(home.path()), Holder::Nobody);
    }

    /// spec: STORE-10. What counted is the chain: that its name is lost removes nothing, and is no reason to begin anew.
    #[test]
    fn a_current_that_is_lost_is_damage_and_nothing_is_swept() {
        let home = tempfile::tempdir().unwrap();
        let generations = Generations::open(home.path()).unwrap();
        let never = generations.fresh().unwrap();
        drop(generations);
        let generations = Generations::open(home.path()).unwrap();
        assert!(!never.path.exists(), "it never counted");
        let first = generations.fresh().unwrap();
        generations.switch(&first).unwrap();
        drop(generations);
        fs::remove_file(home.path().join(CURRENT)).unwrap();
        for _ in 0..2 {
            let failure = Generations::open(home.path()).unwrap_err();
            assert_eq!(failure.exit, Exit::Integrity);
            assert!(failure.hint.as_deref().unwrap().contains("gen-000001"), "{:?}", failure.hint);
            assert!(first.path.is_dir());
        }
        fs::write(home.path().join(CURRENT), "gen-000001\n").unwrap();
        let generations = Generations::open(home.path()).unwrap();
        assert_eq!(generations.current().unwrap(), Some(first.clone()), "what the hint says helps");
        drop(generations);
        // Killed between the switch and the mark: the next start makes it.
        first.give_up().unwrap();
        drop(Generations::open(home.path()).unwrap());
        fs::remove_file(home.path().join(CURRENT)).unwrap();
        assert_eq!(Generations::open(home.path()).unwrap_err().exit, Exit::Integrity);
        // Given up on purpose it is swept.
        name_none(home.path()).unwrap();
        assert_eq!(Generations::open(home.path()).unwrap().current().unwrap(), None);
        assert!(!first.path.exists());
    }

    /// Whatever is damaged, another state can take its place: beside what is there until it counts, and of blocks only
    /// what did count before.
    #[test]
    fn what_is_damaged_can_be_replaced() {
        let home = tempfile::tempdir().unwrap();
        let current = home.path().join(CURRENT);
        let named = |text: &str| fs::write(&current, text).unwrap();
        let generations = Generations::open(home.path()).unwrap();
        let first = generations.fresh().unwrap();
        generations.switch(&first).unwrap();
        let never = generations.fresh().unwrap();
        drop(generations);
        for damage in ["", "nonsense", "gen-000009\n", "absent"] {
            if damage == "absent" {
                fs::remove_file(&current).unwrap()
            } else {
                named(damage)
            }
            let (generations, replaced) = Generations::open_to_replace(home.path()).unwrap();
            assert_eq!(replaced.damage.unwrap().exit, Exit::Integrity, "{damage:?}");
            assert_eq!(replaced.generation, Some(first.clone()), "{damage:?}");
            assert!(generations.fresh().unwrap().number > never.number, "{damage:?}");
        }
        // The one that counts is gone, and would have been the next: it must not count before it is whole.
        let gone = Generation::at(home.path(), all(home.path()).unwrap().last().unwrap().number + 1);
        named(&format!("{}\n", gone.name()));
        let (generations, _) = Generations::open_to_replace(home.path()).unwrap();
        let next = generations.fresh().unwrap();
        assert_ne!(next, gone);
        assert_eq!(generations.current().unwrap_err().exit, Exit::Integrity);
        generations.switch(&next).unwrap();
        generations.sweep().unwrap();
        assert_eq!(generations.all().unwrap(), std::slice::from_ref(&next));
        drop(generations);
        let (_, replaced) = Generations::open_to_replace(home.path()).unwrap();
        assert!(replaced.damage.is_none() && replaced.generation == Some(next));
    }

    #[test]
    fn a_current_that_names_nothing_is_damage_and_nothing_is_swept() {
        let home = tempfile::tempdir().unwrap();
        let first = Generations::open(home.path()).unwrap().fresh().unwrap();
        for text in ["gen-000009\n", "gen-000001", "../gen-000001\n", ""] {
            fs::write(home.path().join(CURRENT), text).unwrap();
            assert_eq!(Generations::open(home.path()).unwrap_err().exit, Exit::Integrity, "{text:?}");
            assert!(first.path.is_dir(), "swept on the word of {text:?}");
        }
    }

    /// spec: SNAP-9.
    #[test]
    fn a_restored_state_is_unconfirmed_until_it_is_confirmed() {
        let home = tempfile::tempdir().unwrap();
        let generation = Generations::open(home.path()).unwrap().fresh().unwrap();
        assert_eq!(generation.unconfirmed().unwrap(), None);
        generation.mark_unconfirmed(Height(70)).unwrap();
        assert_eq!(generation.unconfirmed().unwrap(), Some(Height(70)));
        generation.confirm().unwrap();
        generation.confirm().unwrap();
        assert_eq!(generation.unconfirmed().unwrap(), None);
        fs::write(generation.path.join(UNCONFIRMED), "7").unwrap();
        assert_eq!(generation.unconfirmed().unwrap_err().exit, Exit::Integrity);
        assert_eq!(generation.given().unwrap(), None);
        let root = Root(keelstone_codec::Hash([7; 32]));
        generation.mark_given(Height(70), root).unwrap();
        assert_eq!(generation.given().unwrap(), Some((Height(70), root)));
        for text in ["70", "70 07\n", "x 07\n", ""] {
            fs::write(generation.path.join(GIVEN), text).unwrap();
            assert_eq!(generation.given().unwrap_err().exit, Exit::Integrity, "{text:?}");
        }
    }
}
