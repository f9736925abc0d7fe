//! Processes whose system calls are counted, at which they are killed, or which fail, by `strace`.
//!
//! Of calls it is known by their names alone which change a disk. So what a process is killed at is listed, and a call
//! that is not listed and changes a disk is told: nobody would ever be killed there.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

/// The calls that change a disk. A `?` lets `strace` do where a machine does not have one.
const CHANGES: [&str; 41] = [
    "?write",
    "?writev",
    "?pwrite64",
    "?pwritev",
    "?pwritev2",
    "?creat",
    "?open",
    "?openat",
    "?openat2",
    "?truncate",
    "?ftruncate",
    "?fallocate",
    "?sync",
    "?syncfs",
    "?fsync",
    "?fdatasync",
    "?sync_file_range",
    "?msync",
    "?rename",
    "?renameat",
    "?renameat2",
    "?unlink",
    "?unlinkat",
    "?rmdir",
    "?mkdir",
    "?mkdirat",
    "?mknod",
    "?mknodat",
    "?link",
    "?linkat",
    "?symlink",
    "?symlinkat",
    "?copy_file_range",
    "?sendfile",
    "?splice",
    "?chmod",
    "?fchmod",
    "?fchmodat",
    "?utimensat",
    "?setxattr",
    "?fsetxattr",
];
/// By which a process could change one with none of them.
const BESIDE: &str = "?io_uring_enter";

const SIGKILL: i32 = 9;

/// What happens to a process at a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happens {
    /// It is killed before the call does anything.
    Kill,
    /// The call does nothing, and says that it failed with the error of this name.
    Fails(&'static str),
}

/// A call that a process made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Its name.
    pub name: &'static str,
    /// The how many-th of this name it is in its thread, from one on, as `strace` counts.
    pub number: u64,
    /// What it was called with, and what it came to.
    pub text: String,
}

/// `strace` with options, to be told what to trace. It ends as what it traces does, and signals of others do not end it.
#[must_use]
pub fn strace(options: &[&str], log: &str) -> Command {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", log]).args(options);
    command
}

/// The option that has all calls logged that change a disk.
#[must_use]
pub fn to_count() -> String {
    format!("trace={},{BESIDE}", CHANGES.join(","))
}

/// The options that have something happen at a call.
#[must_use]
pub fn to_happen(call: &Call, happens: Happens) -> [String; 2] {
    let (name, number) = (call.name, call.number);
    let what = match happens {
        Happens::Kill => "signal=KILL".to_owned(),
        Happens::Fails(error) => format!("error={error}"),
    };
    [format!("--trace={name}"), format!("--inject={name}:{what}:when={number}")]
}

/// Why this machine cannot do it, if so: a process that opens a file, as all do that are linked to something, is killed there.
#[must_use]
pub fn unable() -> Option<String> {
    match Command::new("strace").args(["-qq", "-o", "/dev/null", "-e", "inject=openat:signal=KILL", "true"]).output() {
        Ok(output) if output.status.signal() == Some(SIGKILL) => None,
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
            Some(format!("strace ended with {}: {said}", output.status))
        }
        Err(error) => Some(format!("strace: {error}")),
    }
}

/// Says that a test was left out because `strace` can kill nothing here.
///
/// # Panics
/// On a CI machine, unless `.ci/run` found that too.
pub fn left_out(reason: &str) {
    let excused = std::env::var("TESTS_LEFT_OUT").is_ok_and(|what| what.split(' ').any(|word| word == "strace"));
    assert!(excused || std::env::var_os("CI").is_none(), "nothing was killed on a CI machine: {reason}");
    eprintln!("left out, no process was killed at a system call: {reason}");
}

/// The calls in a log of [`to_count`], of those that are wanted.
///
/// # Errors
/// If a call that is wanted has another name than those that are listed.
pub fn calls(names: &[&'static str], log: &str, wanted: impl Fn(&str, &str) -> bool) -> Result<Vec<Call>, String> {
    let mut counts = std::collections::BTreeMap::<(&str, &str), u64>::new();
    let mut calls = Vec::new();
    for line in log.lines() {
        // The number of the thread stands first.
        let (thread, call) = line.trim_start().split_once(char::is_whitespace).unwrap_or(("", line));
        let call = call.trim_start();
        let Some((name, text)) = call.split_once('(') else { continue };
        // What becomes of a signal, of a process, or of a call that another thread's line came between.
        if name.starts_with(['-', '+', '<']) {
            continue;
        }
        let number = counts.entry((thread, name)).or_default();
        *number += 1;
        if !wanted(name, text) {
            continue;
        }
        match names.iter().find(|known| **known == name) {
            Some(name) => calls.push(Call { name, number: *number, text: text.to_owned() }),
            None => return Err(format!("nobody is killed at this call, which changes the disk: {call}")),
        }
    }
    Ok(calls)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 4] = ["pwrite64", "write", "mkdir", "rename"];

    #[test]
    fn a_call_that_changes_the_disk_and_is_not_listed_is_told() {
        let known = "12 pwrite64(3, \"a\", 1, 0) = 1\n12 write(1, \"done\\n\", 5) = 5\n12 mkdir(\"db\", 0777) = 0\n";
        let made: Vec<_> =
            calls(&NAMES, known, |_, _| true).unwrap().iter().map(|call| (call.name, call.number)).collect();
        assert_eq!(made, [("pwrite64", 1), ("write", 1), ("mkdir", 1)]);
        for other in ["12 writev(3, [], 1) = 1", "12 truncate(\"a\", 0) = 0"] {
            let log = format!("{known}{other}\n");
            let told = calls(&NAMES, &log, |_, _| true).unwrap_err();
            assert!(told.contains(&other[3..]), "{told}");
            assert_eq!(calls(&NAMES, &log, |name, _| NAMES.contains(&name)).unwrap().len(), 3, "it is of no interest");
        }
    }

    /// As `when` does: each thread by itself, whatever is wanted, and a call once that another thread's line came between.
    #[test]
    fn calls_are_counted_as_strace_does() {
        let log = "12 write(1, \"a\", 1) = 1\n13    write(3, \"b\", 1 <unfinished ...>\n12 write(3, \"c\", 1) = 1\n\
                   13 <... write resumed>) = 1\n13 --- SIGURG {si_signo=SIGURG, si_code=SI_TKILL (1)} ---\n\
                   13 write(3, \"d\", 1) = 1\n13 +++ exited with 0 +++\n";
        let made = calls(&NAMES, log, |_, text| text.starts_with('3')).unwrap();
        let made: Vec<_> = made.iter().map(|call| (call.number, &call.text[3..6])).collect();
        assert_eq!(made, [(1, "\"b\""), (2, "\"c\""), (2, "\"d\"")]);
    }
}
