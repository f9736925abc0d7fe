//! Files that people give: read whole, up to a bound, and those with a secret only where nobody else can read them.

use crate::exit::{Exit, Failure};
use crate::out::bytes;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;
use zeroize::Zeroizing;

/// Bytes of a file that is read whole: a proof of the longest value and its way, in hexadecimal, with the value beside it.
pub(crate) const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A file, or standard input for `-`, up to a bound.
pub(crate) fn read_input(file: &Path) -> Result<Vec<u8>, Failure> {
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => Failure::usage(format!("there is no file {}", file.display())),
        std::io::ErrorKind::IsADirectory => {
            Failure::usage(format!("{} is a directory, a file is expected", file.display()))
        }
        _ => Failure::io(format_args!("could not read {}", file.display()), &error),
    };
    let mut text = Vec::new();
    if file == Path::new("-") {
        std::io::stdin().lock().take(FILE_BYTES_MAX + 1).read_to_end(&mut text).map_err(failed)?;
    } else {
        std::fs::File::open(file)
            .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text))
            .map_err(failed)?;
    }
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(Failure::usage(format!("{} is longer than {}", file.display(), bytes(FILE_BYTES_MAX))));
    }
    Ok(text)
}

/// Reads a file that holds a secret, after checking that only its owner can.
///
/// # Errors
/// A usage failure if others can read it, or if it is longer.
pub(crate) fn read_private(path: &Path, what: &str, bytes_max: u64) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let shown = path.display();
    let file = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Failure::new(Exit::NotFound, format!("there is no {what} {shown}")),
        _ => Failure::io(format_args!("could not open {shown}"), &error),
    })?;
    let metadata = file.metadata().map_err(|error| Failure::io(format_args!("could not look at {shown}"), &error))?;
    if !metadata.is_file() {
        return Err(Failure::usage(format!("{shown} is not a file")));
    }
    check_private(path, &metadata)?;
    if metadata.len() > bytes_max {
        let bytes = metadata.len();
        return Err(Failure::usage(format!("{shown} has {bytes} bytes, a {what} at most {bytes_max}")));
    }
    // With room for all of it: text that grew would leave copies behind.
    let room = usize::try_from(bytes_max.min(1 << 16)).unwrap_or_default();
    let mut text = Zeroizing::new(Vec::with_capacity(room + 64));
    file.take(bytes_max)
        .read_to_end(&mut text)
        .map_err(|error| Failure::io(format_args!("could not read {shown}"), &error))?;
    Ok(text)
}

#[cfg(unix)]
fn check_private(path: &Path, metadata: &fs::Metadata) -> Result<(), Failure> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(Failure::usage(format!("{} has mode {mode:03o}: others can read it", path.display()))
        .hint(format!("if nobody did: chmod 600 {}", path.display())))
}
#[cfg(not(unix))]
fn check_private(_: &Path, _: &fs::Metadata) -> Result<(), Failure> {
    Ok(())
}
