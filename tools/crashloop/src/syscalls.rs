//! Kills a child at every call that changes the disk, by `strace`, and the next one at a call of its recovery.

use crate::child::{ARGUMENT, SCRIPT};
use crate::parent::{Promise, look};
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The calls by which the store changes a disk.
const CALLS: [&str; 7] = ["pwrite64", "fdatasync", "fsync", "rename", "fallocate", "unlink", "openat"];

const SIGKILL: i32 = 9;
/// What [`run`] says first if it could kill nothing here.
const UNABLE: &str = "no calls were killed";

fn program() -> Result<std::path::PathBuf, String> {
    std::env::current_exe().map_err(|error| error.to_string())
}

/// A child that does the script under `strace` with these options.
fn trace(options: &[&str], path: &Path, seed: u64) -> Result<Output, String> {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq"]).args(options).arg(program()?).arg(ARGUMENT).arg(path);
    let output = command.args([seed.to_string(), SCRIPT.to_string()]).stdin(Stdio::null()).output();
    output.map_err(|error| format!("strace could not be started: {error}"))
}

/// Why this machine cannot do it, if so: a process that opens a file, as all do that are linked to something, is killed there.
fn unable() -> Option<String> {
    match Command::new("strace").args(["-qq", "-o", "/dev/null", "-e", "inject=openat:signal=KILL", "true"]).output() {
        Ok(output) if output.status.signal() == Some(SIGKILL) => None,
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
            Some(format!("strace ended with {}: {said}", output.status))
        }
        Err(error) => Some(format!("strace: {error}")),
    }
}

/// Calls of each name that the script makes in a new directory.
fn counts(path: &Path, seed: u64) -> Result<BTreeMap<&'static str, u64>, String> {
    let (work, log) = (path.join("whole"), path.join("calls"));
    let (trace_calls, log_name) = (format!("trace={}", CALLS.join(",")), log.display().to_string());
    let output = trace(&["-e", &trace_calls, "-o", &log_name], &work, seed)?;
    if !output.status.success() {
        return Err(format!("the script failed untouched: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let text = std::fs::read_to_string(&log).map_err(|error| error.to_string())?;
    let called = |name: &&str| text.lines().filter(|line| line.contains(&format!(" {name}("))).count() as u64;
    Ok(CALLS.into_iter().map(|name| (name, called(&name))).collect())
}

/// Lets one child be killed at a call. Says whether it came that far.
fn kill_at(call: &str, when: u64, path: &Path, seed: u64, promise: &mut Promise) -> Result<bool, String> {
    let (trace_call, inject) = (format!("trace={call}"), format!("inject={call}:signal=KILL:when={when}"));
    let output = trace(&["-e", &trace_call, "-e", &inject, "-o", "/dev/null"], path, seed)?;
    let said = String::from_utf8_lossy(&output.stdout);
    said.lines().try_for_each(|line| promise.hear(line))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    if complaint.contains("panicked") {
        return Err(format!("a child panicked: {complaint}"));
    }
    match output.status.signal() {
        Some(SIGKILL) => Ok(true),
        // `strace` ends as what it traces does.
        None if output.status.success() => Ok(false),
        _ => Err(format!("a child was not killed and ended with {}: {said}{complaint}", output.status)),
    }
}

pub(crate) fn run(path: &Path, seed: u64) -> Result<String, String> {
    if let Some(reason) = unable() {
        return Ok(format!("{UNABLE}: {reason}"));
    }
    let counts = counts(path, seed)?;
    let (mut killed, mut again, all) = (0, 0, counts.values().sum::<u64>());
    for (call, count) in &counts {
        for when in 1..=*count {
            let what = |wrong: String| format!("{call} number {when}: {wrong}");
            let work = path.join(format!("{call}-{when}"));
            let mut promise = Promise::new(seed);
            killed += u64::from(kill_at(call, when, &work, seed, &mut promise).map_err(what)?);
            // The first calls of the next child are those of its recovery.
            again += u64::from(kill_at(call, 1 + when % 6, &work, seed, &mut promise).map_err(what)?);
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
