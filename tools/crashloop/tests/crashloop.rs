//! The loop, as often as the test command has time for.

use golden::count;
use keelstone_crashloop::strace::left_out;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// spec: STORE-3, STORE-4, STORE-5. Killed at any moment of commits, flushes, compactions, prunes and rollbacks, and of
/// opening what another kill left: every acknowledged step is there, and nothing else. `cargo xtask crashloop` kills
/// 100,000 times.
#[test]
fn no_acknowledged_step_is_lost_to_kill_9() {
    let (kills, seed) = (count("KEELSTONE_KILLS", 2000).to_string(), count("KEELSTONE_SEED", 1).to_string());
    let output =
        Command::new(env!("CARGO_BIN_EXE_crashloop")).args(["--cycles", &kills, "--seed", &seed]).output().unwrap();
    let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{wrong}");
    assert!(said.contains("nothing was lost"), "{said}");
    println!("{said}");
}

/// spec: STORE-1, STORE-4. Killed at every single call that changes the disk, and again at one of recovery. Only where `strace` can
/// kill nothing is it left out; on a CI machine, if `.ci/run` found that too.
#[test]
fn no_acknowledged_step_is_lost_to_a_kill_at_any_system_call() {
    let output = Command::new(env!("CARGO_BIN_EXE_crashloop")).arg("--syscalls").output().unwrap();
    let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{wrong}");
    if let Some(reason) = said.strip_prefix("no calls were killed: ") {
        return left_out(reason);
    }
    // Of how many is looked at by the program: all of those it counted.
    assert!(said.contains("calls killed") && said.contains("nothing was lost"), "{said}");
    println!("{said}");
}

/// What cannot be asked for is refused, and no kill at all finds nothing.
#[test]
fn what_it_does_not_know_is_refused() {
    for arguments in [["--cycle", "1"], ["--cycles", "0"], ["--cycles", "many"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_crashloop")).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}

/// Processes that work in a directory.
fn at_work(directory: &Path) -> usize {
    let works = |process: &std::fs::DirEntry| {
        let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).into_owned();
        command.contains("--child") && command.contains(directory.to_str().expect("a temporary name is text"))
    };
    std::fs::read_dir("/proc").expect("there is /proc").flatten().filter(works).count()
}

/// Waits until something is so.
fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// However the loop ends, no child goes on without it; if it is asked to end, nothing stays on the disk either.
#[test]
fn a_loop_that_is_ended_leaves_no_child_and_one_that_is_asked_to_end_no_directory() {
    for (signal, left) in [("INT", 0), ("TERM", 0), ("KILL", 1)] {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_crashloop"));
        command.args(["--cycles", "100000", "--dir"]).arg(directory.path()).stderr(Stdio::null());
        let mut running = command.spawn().unwrap();
        until("a child is at work", || at_work(directory.path()) > 0);
        let pid = running.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
        assert!(!running.wait().unwrap().success());
        until("no child is at work", || at_work(directory.path()) == 0);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), left, "{signal}");
    }
}
