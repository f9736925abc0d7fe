//! The loop, as often as the test command has time for.

use std::process::Command;

fn count(name: &str, default: u64) -> String {
    let count = std::env::var(name).ok().and_then(|count| count.parse().ok());
    count.unwrap_or(default).to_string()
}

/// spec: STORE-3, STORE-4, STORE-5. Killed at any moment of commits, flushes, compactions, prunes and rollbacks, and of
/// opening what another kill left: every acknowledged step is there, and nothing else. `cargo xtask crashloop` kills
/// 100,000 times.
#[test]
fn no_acknowledged_step_is_lost_to_kill_9() {
    let (kills, seed) = (count("KEELSTONE_KILLS", 2000), count("KEELSTONE_SEED", 1));
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
        let excused = std::env::var("TESTS_LEFT_OUT").is_ok_and(|what| what.split(' ').any(|word| word == "strace"));
        assert!(excused || std::env::var_os("CI").is_none(), "nothing was killed on a CI machine: {reason}");
        return eprintln!("left out, no process was killed at a system call: {reason}");
    }
    // Of how many is looked at by the program: all of those it counted.
    assert!(said.contains("calls killed") && said.contains("nothing was lost"), "{said}");
    println!("{said}");
}

#[test]
fn what_it_does_not_know_is_refused() {
    let output = Command::new(env!("CARGO_BIN_EXE_crashloop")).args(["--cycle", "1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}
