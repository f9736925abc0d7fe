//! Kills a child at every call that changes the disk, by `strace`, and the next one at a call of its recovery.

use crate::child::{ARGUMENT, SCRIPT};
use crate::parent::{Promise, look};
use keelstone_crashloop::life::{Ended, Life, Running};
use keelstone_crashloop::strace::{Call, Happens, calls, strace, to_count, to_happen, unable};
use std::collections::BTreeMap;
use std::path::Path;

/// The calls by which the store changes a disk; by one of them the child speaks to its parent, too.
const CALLS: [&str; 10] =
    ["pwrite64", "write", "fdatasync", "fsync", "rename", "fallocate", "unlink", "openat", "mkdir", "ftruncate"];

/// What [`run`] says first if it could kill nothing here.
const UNABLE: &str = "no calls were killed";

fn program() -> Result<std::path::PathBuf, String> {
    std::env::current_exe().map_err(|error| error.to_string())
}

/// A child that does the script under `strace` with these options.
fn trace(options: &[&str], log: &str, path: &Path, seed: u64, running: &Running) -> Result<Ended, String> {
    let mut command = strace(options, log);
    command.arg(program()?).arg(ARGUMENT).arg(path);
    Life::start(command.args([seed.to_string(), SCRIPT.to_string()]), running)?.end()
}

/// Calls of each name that the script makes in a new directory.
fn counts(path: &Path, seed: u64, running: &Running) -> Result<BTreeMap<&'static str, u64>, String> {
    let (work, log) = (path.join("whole"), path.join("calls"));
    let ended = trace(&["-e", &to_count()], &log.display().to_string(), &work, seed, running)?;
    if !ended.status.success() {
        return Err(format!("the script failed untouched: {}", ended.complaint));
    }
    let log = std::fs::read_to_string(&log).map_err(|error| error.to_string())?;
    let mut counts: BTreeMap<&str, u64> = CALLS.into_iter().map(|name| (name, 0)).collect();
    for call in calls(&CALLS, &log, |_, _| true)? {
        *counts.entry(call.name).or_default() += 1;
    }
    Ok(counts)
}

/// Lets one child be killed at a call. Says whether it came that far.
fn kill_at(
    name: &'static str,
    number: u64,
    path: &Path,
    promise: &mut Promise,
    running: &Running,
) -> Result<bool, String> {
    let options = to_happen(&Call { name, number, text: String::new() }, Happens::Kill);
    let ended = trace(&options.each_ref().map(String::as_str), "/dev/null", path, promise.seed(), running)?;
    let Ended { said, status, complaint } = &ended;
    said.iter().try_for_each(|line| promise.hear(line))?;
    if complaint.contains("panicked") {
        return Err(format!("a child panicked: {complaint}"));
    }
    // `strace` ends as what it traces does.
    match ended.is_killed() {
        true => Ok(true),
        false if status.success() => Ok(false),
        false => Err(format!("a child was not killed and ended with {status}: {} {complaint}", said.join("; "))),
    }
}

pub(crate) fn run(path: &Path, seed: u64, running: &Running) -> Result<String, String> {
    if let Some(reason) = unable() {
        return Ok(format!("{UNABLE}: {reason}"));
    }
    let counts = counts(path, seed, running)?;
    let (mut killed, mut again, all) = (0, 0, counts.values().sum::<u64>());
    for (call, count) in &counts {
        for when in 1..=*count {
            let what = |wrong: String| format!("{call} number {when}: {wrong}");
            let work = path.join(format!("{call}-{when}"));
            let mut promise = Promise::new(seed);
            killed += u64::from(kill_at(call, when, &work, &mut promise, running).map_err(what)?);
            // The first calls of the next child are those of its recovery.
            again += u64::from(kill_at(call, 1 + when % 6, &work, &mut promise, running).map_err(what)?);
            look(&work, &mut promise, when % 8 == 0).map_err(what)?;
            std::fs::remove_dir_all(&work).map_err(|error| what(error.to_string()))?;
        }
    }
    // The script is the same each time, so each call that was counted comes.
    if all == 0 || killed != all || again == 0 {
        return Err(format!("{killed} of {all} calls were killed, and {again} in recovery: {counts:?}"));
    }
    Ok(format!("{killed} of {all} calls killed, {again} more in recovery, of {counts:?}: nothing was lost"))
}
