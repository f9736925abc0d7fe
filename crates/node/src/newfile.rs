//! Files that are written whole or not at all: those that a command writes for somebody, under a name that must be free,
//! those of the home that take the place of older ones, and those with secrets. What a function here wrote, and the name
//! it has, outlive a power cut once it returns.

use crate::exit::Failure;
use keelstone_store::files::Directory;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Writes a file. One that could not be finished is removed; whoever is killed leaves none either, where a file can be without
/// a name until it is whole.
///
/// # Errors
/// A usage failure if there is such a file already; what `write` says, or the machine.
pub(crate) fn create<T>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    // Told before anything is made of what is to stand there.
    if path.symlink_metadata().is_ok() {
        return Err(failed(path, &io::ErrorKind::AlreadyExists.into()));
    }
    create_of(path, nameless(path, 0o666), write)
}

/// As [`create`], of a file that has no name yet, or of one that has it from the start.
fn create_of<T>(
    path: &Path,
    nameless: Option<File>,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let failed = |error: io::Error| failed(path, &error);
    let is_named = nameless.is_none();
    let file = nameless.map_or_else(|| File::create_new(path), Ok).map_err(failed)?;
    let mut out = BufWriter::new(file);
    let written = write(&mut out).and_then(|done| {
        let synced = out.flush().and_then(|()| out.get_ref().sync_all());
        let named = synced.and_then(|()| if is_named { Ok(()) } else { name(out.get_ref(), path) });
        named.map_err(failed).map(|()| done)
    });
    if written.is_err() && is_named {
        // Half a file is of no use; that it cannot be removed is no worse.
        let _ = fs::remove_file(path);
    }
    let done = written?;
    // It is whole by now, and stays.
    sync_parent(path).map_err(failed)?;
    Ok(done)
}

/// Fills a directory, which is made if it is not there. What could not be filled at all is not left behind empty; whatever is in it
/// by then stays, to be gone on with.
pub(crate) fn directory<T>(path: &Path, fill: impl FnOnce(&Directory) -> Result<T, Failure>) -> Result<T, Failure> {
    let is_there = path.symlink_metadata().is_ok();
    let directory = Directory::new(path).map_err(|error| Failure::io(path.display(), &error))?;
    let filled = fill(&directory);
    if filled.is_err() && !is_there {
        // It goes only if nothing is in it.
        let _ = fs::remove_dir(path);
    }
    filled
}

/// A file that has no name yet, to be called `path` with [`name`]. None where there is no such thing.
#[cfg(target_os = "linux")]
fn nameless(path: &Path, mode: u32) -> Option<File> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = open(parent(path), flags, Mode::from_raw_mode(mode)).ok().map(File::from)?;
    // The way to its name.
    descriptor(&file).exists().then_some(file)
}

#[cfg(not(target_os = "linux"))]
fn nameless(_: &Path, _: u32) -> Option<File> {
    None
}

/// Gives a file of [`nameless`] its name, which must be free.
#[cfg(target_os = "linux")]
fn name(file: &File, path: &Path) -> io::Result<()> {
    use rustix::fs::{AtFlags, CWD, linkat};
    Ok(linkat(CWD, descriptor(file), CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

#[cfg(not(target_os = "linux"))]
fn name(_: &File, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(target_os = "linux")]
fn descriptor(file: &File) -> std::path::PathBuf {
    use std::os::fd::AsRawFd as _;
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// As [`create`], of bytes that are at hand.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    create(path, |out| out.write_all(bytes).map_err(|error| failed(path, &error)))
}

/// Writes a file in the place of the one there is, if there is one. Whoever reads it, also after a crash, finds the old or
/// the new one. For files that one process at a time writes: what is left of one that was killed, the next takes for its own.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let written = (|| {
        let mut file = File::create(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    })();
    finished(written, &fresh, path)
}

/// As [`replace`], of a file that its owner alone can read at any moment, and that several processes may write at once: one of
/// them is the last.
pub(crate) fn replace_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_as(path, bytes, |_| Ok(()), || Ok(()))
}

/// As [`replace_private`], where nothing may be: of several that write it at once, one does.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] if there is such a file.
pub(crate) fn create_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // Whoever is killed leaves no secret under a name that nobody looks for.
    if let Some(mut file) = nameless(path, 0o600) {
        file.write_all(bytes)?;
        file.sync_all()?;
        name(&file, path)?;
        return sync_parent(path);
    }
    let name = |fresh: &Path| match fs::hard_link(fresh, path) {
        Ok(()) => fs::remove_file(fresh),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
        // Where a file has one name only.
        Err(_) => fs::rename(fresh, path),
    };
    write_private(path, bytes, |_| Ok(()), name)
}

/// As [`replace_private`], of a file that is its owner's alone until `prepare` makes it another's, with something done before
/// that, once the new text is on the disk and nothing but its name is left to change: what cannot be written at all is known
/// by then.
pub(crate) fn replace_as(
    path: &Path,
    bytes: &[u8],
    prepare: impl FnOnce(&File) -> io::Result<()>,
    before: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    write_private(path, bytes, prepare, |fresh| before().and_then(|()| fs::rename(fresh, path)))
}

/// Writes a file beside `path` and has `name` give it its name once it is whole. Nothing is left of one that failed, nor of one
/// that was being written when this process was killed, where a file can be without a name until it is whole.
fn write_private(
    path: &Path,
    bytes: &[u8],
    prepare: impl FnOnce(&File) -> io::Result<()>,
    name: impl FnOnce(&Path) -> io::Result<()>,
) -> io::Result<()> {
    let fresh = fresh_name(path);
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let nameless = nameless(&fresh, 0o600);
    let is_named = nameless.is_none();
    let mut out = nameless.map_or_else(|| private_options().write(true).create_new(true).open(&fresh), Ok)?;
    let written = prepare(&out)
        .and_then(|()| out.write_all(bytes))
        .and_then(|()| out.sync_all())
        .and_then(|()| if is_named { Ok(()) } else { self::name(&out, &fresh) })
        .and_then(|()| name(&fresh));
    finished(written, &fresh, path)
}

/// Removes what a file that could not be written was called until then, and syncs the name of one that was.
fn finished(written: io::Result<()>, fresh: &Path, path: &Path) -> io::Result<()> {
    match written {
        Ok(()) => sync_parent(path),
        Err(error) => {
            // The half-written file is of no use; if it cannot be removed either, the first error says more.
            let _ = fs::remove_file(fresh);
            Err(error)
        }
    }
}

/// Under which name this process writes a file before it has its own. Nobody else writes there, and what a process of the same
/// number has left there when it was killed is of no use to anybody.
fn fresh_name(path: &Path) -> PathBuf {
    static WRITTEN: AtomicU64 = AtomicU64::new(0);
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}-{}.new", std::process::id(), WRITTEN.fetch_add(1, Ordering::Relaxed)));
    path.with_file_name(name)
}

#[cfg(unix)]
fn private_options() -> OpenOptions {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}
#[cfg(not(unix))]
fn private_options() -> OpenOptions {
    OpenOptions::new()
}

/// Makes a directory and those above it, where they are missing.
pub(crate) fn create_dir(path: &Path) -> io::Result<()> {
    make_dirs(path, &DirBuilder::new())
}

/// As [`create_dir`], of those that their owner alone can look into.
#[cfg(unix)]
pub(crate) fn create_private_dir(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    make_dirs(path, DirBuilder::new().mode(0o700))
}
#[cfg(not(unix))]
pub(crate) fn create_private_dir(path: &Path) -> io::Result<()> {
    create_dir(path)
}

fn make_dirs(path: &Path, how: &DirBuilder) -> io::Result<()> {
    let mut missing = Vec::new();
    let mut at = path;
    while !at.is_dir() {
        missing.push(at);
        // What is left above is where the process stands, which may be gone.
        match parent(at) {
            above if above == at => break,
            above => at = above,
        }
    }
    for directory in missing.into_iter().rev() {
        match how.create(directory) {
            // Of another who makes the same.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => {}
            made => made?,
        }
        sync_parent(directory)?;
    }
    Ok(())
}

/// Has the name of a file outlive a power cut too, where directories can be opened and synced: not everywhere can they.
fn sync_parent(path: &Path) -> io::Result<()> {
    use io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
    match File::open(parent(path)).and_then(|directory| directory.sync_all()) {
        Err(error) if matches!(error.kind(), InvalidInput | PermissionDenied | Unsupported) => Ok(()),
        synced => synced,
    }
}

/// The directory that a file is in.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Why a file that [`create`] writes could not be written.
pub(crate) fn failed(path: &Path, error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::AlreadyExists => Failure::usage(format!("{} exists already", path.display())),
        _ => Failure::io(format_args!("could not write {}", path.display()), error),
    }
}

/// Removes everything in a directory but what has a name that is kept.
pub(crate) fn empty(dir: &Path, is_kept: impl Fn(&OsStr) -> bool) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::io(format_args!("could not empty {}", dir.display()), &error);
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if is_kept(&entry.file_name()) {
            continue;
        }
        let path = entry.path();
        let is_dir = entry.file_type().map_err(failed)?.is_dir();
        if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    #[test]
    fn a_file_is_written_whole_or_not_at_all_and_never_over_another() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("file");
        for without_names in [true, false] {
            let made = || if without_names { nameless(&path, 0o666) } else { None };
            let half = create_of(&path, made(), |out| {
                out.write_all(b"half").expect("written");
                Err::<(), _>(Failure::integrity("damaged"))
            });
            assert_eq!(half.expect_err("it failed").exit, Exit::Integrity);
            assert!(!path.exists(), "half a file stayed");
            create_of(&path, made(), |out| out.write_all(b"whole").map_err(|error| failed(&path, &error)))
                .expect("free");
            let other = create_of(&path, made(), |out| out.write_all(b"other").map_err(|error| failed(&path, &error)));
            assert_eq!(other.expect_err("taken").exit, Exit::Usage);
            assert_eq!(write(&path, b"other").expect_err("taken").exit, Exit::Usage);
            assert_eq!(fs::read(&path).expect("there"), b"whole");
            replace(&path, b"another").expect("written");
            assert_eq!(fs::read(&path).expect("there"), b"another");
            assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 1, "nothing is left beside it");
            fs::remove_file(&path).expect("it was there");
        }
    }

    /// spec: KEY-2
    #[test]
    #[cfg(target_os = "linux")]
    fn a_file_that_takes_anothers_place_has_no_name_before_it_is_whole() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("file");
        let names = || fs::read_dir(dir.path()).expect("there").count();
        let mut meanwhile = None;
        let prepare = |_: &File| {
            meanwhile = Some(names());
            Ok(())
        };
        replace_as(&path, b"secret", prepare, || Ok(())).expect("written");
        // Where the place for temporary files knows no file without a name there is nothing to see.
        if nameless(&path, 0o600).is_some() {
            assert_eq!(meanwhile, Some(0));
        }
        assert_eq!((fs::read(&path).expect("written"), names()), (b"secret".to_vec(), 1));
    }

    /// Whoever is killed while it writes leaves nothing, neither in the way of who comes next nor beside it.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_file_has_no_name_before_it_is_whole() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("file");
        let count = || fs::read_dir(dir.path()).expect("there").count();
        create(&path, |out| {
            out.write_all(b"half").and_then(|()| out.flush()).expect("written");
            assert_eq!(count(), 0);
            out.write_all(b" and half").map_err(|error| failed(&path, &error))
        })
        .expect("the name is free");
        assert_eq!((fs::read(&path).expect("there"), count()), (b"half and half".to_vec(), 1));
    }
}
