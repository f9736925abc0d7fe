//! The files of CometBFT's home directory, which are whoever's runs it: read within bounds, and replaced so that they stay
//! where and whose they were.

use super::config_file::Edit;
use super::rpc::Rpc;
use super::trust::{Trust, TrustPeriod};
use crate::exit::Failure;
use crate::newfile;
use serde_json::Value;
use std::fs::{self, File, Metadata};
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::Path;

/// No honest `config.toml` is longer.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// What lets a node join from a snapshot.
pub(crate) fn enable(nodes: &[Rpc], trust: &Trust, period: &TrustPeriod) -> Vec<Edit> {
    let servers: Vec<String> = nodes.iter().map(|node| format!("http://{}", node.authority())).collect();
    vec![
        Edit::new("statesync", "enable", true),
        Edit::new("statesync", "rpc_servers", servers.join(",")),
        Edit::new("statesync", "trust_height", i64::try_from(trust.height).unwrap_or(i64::MAX)),
        Edit::new("statesync", "trust_hash", trust.block_hash.as_str()),
        Edit::new("statesync", "trust_period", period.to_string()),
    ]
}

/// Compares the chain of CometBFT's genesis, if there is one, with that of `others`: a node with another chain's would fail later
/// and say less.
pub(crate) fn check_genesis(cometbft_home: &Path, chain_id: &str, others: &str) -> Result<(), Failure> {
    let path = cometbft_home.join("config").join("genesis.json");
    let Ok(text) = fs::read(&path) else { return Ok(()) };
    let genesis: Value =
        serde_json::from_slice(&text).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
    match genesis.get("chain_id").and_then(Value::as_str) {
        Some(found) if found == chain_id => Ok(()),
        found => {
            let (found, path) = (found.unwrap_or("none"), path.display());
            Err(Failure::usage(format!("{path} is of chain {found}, {others} of chain {chain_id}")))
        }
    }
}

/// The text of a `config.toml`.
pub(crate) fn read(config: &Path) -> Result<String, Failure> {
    let shown = config.display();
    let length = fs::metadata(config).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            Failure::usage(format!("there is no {shown}")).hint("cometbft init --home DIR makes one")
        }
        _ => Failure::io(format_args!("could not read {shown}"), &error),
    })?;
    if length.len() > FILE_BYTES_MAX {
        return Err(Failure::usage(format!("{shown} has {} bytes, at most {FILE_BYTES_MAX} are read", length.len())));
    }
    fs::read_to_string(config).map_err(|error| Failure::io(format_args!("could not read {shown}"), &error))
}

/// Puts a new text in the place of a file at once: a crash leaves the old one or the new one. The file is not ours: behind a
/// link it is the file that is replaced and not the link, and it stays its owner's, who may be another user.
pub(crate) fn replace(path: &Path, text: &str) -> Result<(), Failure> {
    replace_after(path, text, || Ok(()))
}

/// As [`replace`], with something done before that, once the new text is on disk and nothing but its name is left to change:
/// what cannot be written at all is known by then.
pub(crate) fn replace_after(
    path: &Path,
    text: &str,
    before: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::io(format_args!("could not write {}", path.display()), &error);
    let path = fs::canonicalize(path).map_err(failed)?;
    let old = fs::metadata(&path).map_err(failed)?;
    let mut stopped = None;
    let before = || {
        before().map_err(|failure| {
            let error = std::io::Error::other(failure.message.clone());
            stopped = Some(failure);
            error
        })
    };
    let written = newfile::replace_as(&path, text.as_bytes(), |fresh| keep(fresh, &old), before);
    match stopped {
        Some(failure) => Err(failure),
        None => written.map_err(failed),
    }
}

/// Gives a file the owner, the group and the mode of the one whose place it takes.
fn keep(fresh: &File, before: &Metadata) -> std::io::Result<()> {
    let now = fresh.metadata()?;
    let (uid, gid) = (before.uid(), before.gid());
    if (now.uid(), now.gid()) != (uid, gid) {
        fchown(fresh, Some(uid), Some(gid)).map_err(|error| {
            let message = format!("it would not stay that of user {uid} and group {gid}: {error}");
            std::io::Error::new(error.kind(), message)
        })?;
    }
    fresh.set_permissions(before.permissions())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    /// A `config.toml` may be a link to where an operator keeps it, belong to the user who runs CometBFT, and be read by
    /// others: all of that stays, and nothing is left beside it.
    #[test]
    fn a_file_that_is_edited_stays_where_and_whose_it_was() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (kept, config) = (dir.path().join("kept"), dir.path().join("home"));
        for directory in [&kept, &config] {
            fs::create_dir(directory).expect("made");
        }
        let (file, link) = (kept.join("real.toml"), config.join("config.toml"));
        fs::write(&file, "a = 1\n").expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("set");
        // Who is not root has no other owner to give it.
        let is_root = chown(&file, Some(12_345), Some(54_321)).is_ok();
        symlink(&file, &link).expect("made");

        replace(&link, "a = 2\n").expect("written");
        assert!(fs::symlink_metadata(&link).expect("there").is_symlink(), "the link is one no more");
        assert_eq!(fs::read_to_string(&file).expect("readable"), "a = 2\n");
        let after = fs::metadata(&file).expect("there");
        assert_eq!(after.permissions().mode() & 0o777, 0o640);
        assert!(!is_root || (after.uid(), after.gid()) == (12_345, 54_321), "it is another's now");
        for directory in [&kept, &config] {
            assert_eq!(
                fs::read_dir(directory).expect("listed").count(),
                1,
                "something is left in {}",
                directory.display()
            );
        }
    }
}
