//! Files that are written whole or not at all: those that a command writes for somebody, under a name that must be free,
//! and those of the home that take the place of older ones.

use crate::exit::Failure;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::path::Path;

/// Writes a file. One that could not be finished is removed.
///
/// # Errors
/// A usage failure if there is such a file already; what `write` says, or the machine.
pub(crate) fn create<T>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let failed = |error: io::Error| failed(path, &error);
    let mut out = BufWriter::new(File::create_new(path).map_err(failed)?);
    let written = write(&mut out).and_then(|done| {
        let synced = out.flush().and_then(|()| out.get_ref().sync_all());
        synced.map_err(failed).map(|()| done)
    });
    if written.is_err() {
        // Half a file is of no use; that it cannot be removed is no worse.
        let _ = fs::remove_file(path);
    }
    let done = written?;
    // It is whole by now, and stays.
    sync_parent(path).map_err(failed)?;
    Ok(done)
}

/// As [`create`], of bytes that are at hand.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    create(path, |out| out.write_all(bytes).map_err(|error| failed(path, &error)))
}

/// Writes a file in the place of the one there is, if there is one. Whoever reads it, also after a crash, finds the old or
/// the new one.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = File::create(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    sync_parent(path)
}

/// Has the name of a file outlive a power cut too, where directories can be opened and synced: not everywhere can they.
fn sync_parent(path: &Path) -> io::Result<()> {
    use io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    match File::open(parent.unwrap_or(Path::new("."))).and_then(|directory| directory.sync_all()) {
        Err(error) if matches!(error.kind(), InvalidInput | PermissionDenied | Unsupported) => Ok(()),
        synced => synced,
    }
}

/// Why a file that [`create`] writes could not be written.
pub(crate) fn failed(path: &Path, error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::AlreadyExists => Failure::usage(format!("{} exists already", path.display())),
        _ => Failure::io(format_args!("could not write {}", path.display()), error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    #[test]
    fn a_file_is_written_whole_or_not_at_all_and_never_over_another() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("file");
        let half = create(&path, |out| {
            out.write_all(b"half").expect("written");
            Err::<(), _>(Failure::integrity("damaged"))
        });
        assert_eq!(half.expect_err("it failed").exit, Exit::Integrity);
        assert!(!path.exists(), "half a file stayed");
        write(&path, b"whole").expect("the name is free");
        assert_eq!(write(&path, b"other").expect_err("taken").exit, Exit::Usage);
        assert_eq!(fs::read(&path).expect("there"), b"whole");
        replace(&path, b"another").expect("written");
        assert_eq!(fs::read(&path).expect("there"), b"another");
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 1, "nothing is left beside it");
    }
}
