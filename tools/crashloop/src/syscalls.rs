//! Kills a child at every call that changes the disk, by `strace`, and the next one at a call of its recovery.

use crate::child::{ARGUMENT, SCRIPT};
use crate::life::{Ended, Life, Running};
use crate::parent::{Promise, look};
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;

/// The calls by which the store changes a disk; by one of them the child speaks to its parent, too.
const CALLS: [&str; 10] =
    ["pwrite64", "write", "fdatasync", "fsync", "rename", "fallocate", "unlink", "openat", "mkdir", "ftruncate"];
/// All others that change a disk. A store that comes to make one of them would not be killed there, which is a failure. A
/// `?` lets `strace` do where a machine does not have one.
const OTHERS: &str = "?writev,?pwritev,?pwritev2,?creat,?open,?openat2,?truncate,?sync,?syncfs,\
                      ?sync_file_range,?msync,?renameat,?renameat2,?unlinkat,?rmdir,?mkdirat,?mknod,?mknodat,?link,?linkat,\
                      ?symlink,?symlinkat,?copy_file_range,?sendfile,?splice,?chmod,?fchmod,?fchmodat,?utimensat,\
                      ?setxattr,?fsetxattr,?io_uring_enter";

const SIGKILL: i32 = 9;
/// What [`run`] says first if it could kill nothing here.
const UNABLE: &str = "no calls were killed";

fn program() -> Result<std::path::PathBuf, String> {
    std::env::current_exe().map_err(|error| error.to_string())
}

/// A child that does the script under `strace` with these options.
fn trace(options: &[&str], path: &Path, seed: u64, running: &Running) -> Result<Ended, String> {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq"]).args(options).arg(program()?).arg(ARGUMENT).arg(path);
    Life::start(command.args([seed.to_string(), SCRIPT.to_string()]), running)?.end()
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
fn counts(path: &Path, seed: u64, running: &Running) -> Result<BTreeMap<&'static str, u64>, String> {
    let (work, log) = (path.join("whole"), path.join("calls"));
    let (trace_calls, log_name) = (format!("trace={},{OTHERS}", CALLS.join(",")), log.display().to_string());
    let ended = trace(&["-e", &trace_calls, "-o", &log_name], &work, seed, running)?;
    if !ended.status.success() {
        return Err(format!("the script failed untouched: {}", ended.complaint));
    }
    counted(&std::fs::read_to_string(&log).map_err(|error| error.to_string())?)
}

/// Calls of each name in a log of `strace`. An error if there is another than [`CALLS`].
fn counted(log: &str) -> Result<BTreeMap<&'static str, u64>, String> {
    let mut counts: BTreeMap<&str, u64> = CALLS.into_iter().map(|name| (name, 0)).collect();
    for line in log.lines() {
        // The number of the process stands first.
        let call = line.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start();
        let Some((name, _)) = call.split_once('(') else { continue };
        match counts.get_mut(name) {
            Some(count) => *count += 1,
            // What becomes of a signal, or of a process.
            None if name.starts_with(['-', '+']) => {}
            None => return Err(format!("nobody is killed at this call, which changes the disk: {call}")),
        }
    }
    Ok(counts)
}

/// Lets one child be killed at a call. Says whether it came that far.
fn kill_at(call: &str, when: u64, path: &Path, promise: &mut Promise, running: &Running) -> Result<bool, String> {
    let (trace_call, inject) = (format!("trace={call}"), format!("inject={call}:signal=KILL:when={when}"));
    let ended = trace(&["-e", &trace_call, "-e", &inject, "-o", "/dev/null"], path, promise.seed(), running)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_changes_the_disk_and_is_not_listed_is_told() {
        let known = "12 pwrite64(3, \"a\", 1, 0) = 1\n12 write(1, \"done\\n\", 5) = 5\n12 mkdir(\"db\", 0777) = 0\n";
        let counts = counted(known).unwrap();
        assert_eq!(["pwrite64", "write", "mkdir", "rename"].map(|name| counts[name]), [1, 1, 1, 0]);
        for other in ["12 writev(3, [], 1) = 1", "12 truncate(\"a\", 0) = 0"] {
            let told = counted(&format!("{known}{other}\n")).unwrap_err();
            assert!(told.contains(&other[3..]), "{told}");
        }
    }
}
