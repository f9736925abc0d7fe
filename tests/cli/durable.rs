//! What a command says that it wrote outlives a power cut: of each name that it gave, the directory is synced after that.
//!
//! Whether bytes are synced before they have their name is the business of `syscalls`, and of the power cuts that the
//! store's tests simulate.

use crate::support::program;
use keelstone_crashloop::strace::{Call, calls, left_out, strace, unable};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// The calls by which a name is given, and those by which it becomes durable.
const CALLS: [&str; 9] =
    ["rename", "renameat", "renameat2", "link", "linkat", "mkdir", "mkdirat", "fsync", "fdatasync"];

/// The names below a place that calls, logged with `-y`, give and do not sync.
fn unsynced(calls: &[Call], place: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for Call { name, text, .. } in calls {
        match *name {
            "fsync" | "fdatasync" => {
                let synced =
                    text.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map_or("", |(path, _)| path);
                names.retain(|name: &String| Path::new(name).parent() != Some(Path::new(synced)));
            }
            _ if text.contains("= -1 ") => {}
            // The last of its paths is the one that it gives.
            _ => names.extend(text.split('"').skip(1).step_by(2).last().map(str::to_owned)),
        }
    }
    names.retain(|name| name.starts_with(place));
    names
}

/// W-07. A key, a token that is removed, a genesis and a configuration: who was told that they are written, finds them so.
// spec: KEY-2
#[test]
fn w_07_what_a_command_says_it_wrote_has_a_name_that_outlives_a_power_cut() {
    if let Some(reason) = unable() {
        return left_out(&reason);
    }
    let place = tempfile::tempdir().unwrap();
    let (home, log, secret) = (place.path().join("new/home"), place.path().join("calls"), place.path().join("secret"));
    fs::write(&secret, "correct horse battery staple\n").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let secret = secret.to_str().unwrap();
    let given: [&[&str]; 7] = [
        &["init", "--chain-id", "test"],
        &["keys", "new", "alice"],
        &["keys", "passwd", "alice", "--new-passphrase-file", secret],
        &["token", "new", "reader"],
        &["token", "remove", "reader"],
        &["init", "--chain-id", "test", "--home"],
        &["keys", "new", "bob", "--home"],
    ];
    for arguments in given {
        // The last two in a home of their own, which each of them is the first to make.
        let own = place.path().join(arguments[0]).join("home");
        let home = if arguments.ends_with(&["--home"]) { &own } else { &home };
        let traced = format!("trace=?{}", CALLS.join(",?"));
        let mut command = strace(&["-y", "-s", "4096", "-e", &traced], log.to_str().unwrap());
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", "/nonexistent");
        command.arg(program().get_program()).args(arguments.strip_suffix(&["--home"]).unwrap_or(arguments));
        let output = command.arg("--home").arg(home).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        let text = fs::read_to_string(&log).unwrap();
        assert!(text.contains("sync("), "{arguments:?} syncs nothing: {text}");
        let made = calls(&CALLS, &text, |_, _| true).unwrap();
        assert_eq!(unsynced(&made, place.path().to_str().unwrap()), BTreeSet::new(), "{arguments:?}:\n{text}");
    }
}
