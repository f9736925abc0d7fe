//! A state of 10 GB: a snapshot of it is made, and restored, within stated limits of time and memory.
//!
//! Each step is a process of its own, so that its memory is that of the step. The limits are those of `docs/snapshots.md`;
//! they are far below what an idle machine does, because machines that test are often busy.

use super::cargo;
use std::fs;
use std::path::Path;
use std::process::{ExitCode, Stdio};

/// Keys of a state of 10 GB: each has 32 bytes, and 100 of value.
pub(crate) const KEYS: u32 = 76_000_000;
/// Megabytes of keys and values a second, at least: a snapshot made, written and proven.
const CREATE_MB: u64 = 20;
/// The same, restored: proven, staged, built, durable.
const RESTORE_MB: u64 = 20;
/// Megabytes of memory that making one may hold at its highest: the store's caches, which a node has anyway, and 300.
const CREATE_MEMORY_MB: u64 = 2_750;
/// The same of restoring one.
const RESTORE_MEMORY_MB: u64 = 300;

/// What a step came to.
struct Figures {
    mb_per_second: u64,
    memory_mb: u64,
}

/// Makes and restores a snapshot of so many keys under the target directory, prints the figures and removes it all.
pub(crate) fn run(keys: u32) -> ExitCode {
    let directory = super::outside::target().join("bigstate");
    let _ = fs::remove_dir_all(&directory);
    let outcome = measure(&directory, keys);
    let _ = fs::remove_dir_all(&directory);
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

fn measure(directory: &Path, keys: u32) -> Result<bool, String> {
    fs::create_dir_all(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let keys = keys.to_string();
    // The first builds the state; the second finds it there, so its memory is that of making a snapshot alone.
    let create = ["create", path(directory)?, &keys, "0"];
    bench(&create, "create in all")?;
    let made = bench(&create, "create in all")?;
    // What is restored comes from the snapshot alone, and a disk need not hold the state twice.
    fs::remove_dir_all(directory.join("store")).map_err(|error| format!("{}: {error}", directory.display()))?;
    let restored = bench(&["restore", path(directory)?], "restore in all")?;
    let mut held = true;
    let steps = [("made", made, CREATE_MB, CREATE_MEMORY_MB), ("restored", restored, RESTORE_MB, RESTORE_MEMORY_MB)];
    for (what, Figures { mb_per_second, memory_mb }, least, most) in steps {
        let kept = mb_per_second >= least && memory_mb <= most;
        held &= kept;
        let verdict = if kept { "ok" } else { "BEYOND ITS LIMITS" };
        println!("{what}: {mb_per_second} MB/s of at least {least}, {memory_mb} MB of at most {most}  {verdict}");
    }
    Ok(held)
}

fn path(directory: &Path) -> Result<&str, String> {
    directory.to_str().ok_or_else(|| format!("{} is no text", directory.display()))
}

/// Runs the bench of snapshots, and reads the line of this name and the memory after it.
fn bench(arguments: &[&str], line: &str) -> Result<Figures, String> {
    let mut command =
        cargo(&["run", "--release", "--locked", "-p", "keelstone-sync", "--example", "snapshot_bench", "--"]);
    let output = command.args(arguments).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| format!("could not start the bench: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    let found = output.status.success().then(|| figures(&said, line)).flatten();
    found.ok_or_else(|| format!("the bench did not end with {line:?}"))
}

/// `LINE: N keys/s, N MB/s, …` and the next `VmHWM: N kB`.
fn figures(said: &str, line: &str) -> Option<Figures> {
    let mut lines = said.lines().skip_while(|found| !found.starts_with(line));
    let rate = lines.next()?.split(", ").find_map(|part| part.strip_suffix(" MB/s"))?;
    let memory = lines.find_map(|found| found.strip_prefix("VmHWM:"))?.trim().strip_suffix(" kB")?;
    Some(Figures { mb_per_second: rate.parse().ok()?, memory_mb: memory.parse::<u64>().ok()? / 1_000 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_the_step_that_is_named() {
        let said = "read: 9 keys/s, 8 MB/s, 1 ns\ncreate in all: 700000 keys/s, 92 MB/s, 1400 ns a key\n\
                    VmHWM:\t   41000 kB\nplan: 1 keys/s, 1 MB/s\nVmHWM: 9 kB\n";
        let found = figures(said, "create in all").expect("it is there");
        assert_eq!((found.mb_per_second, found.memory_mb), (92, 41));
        assert!(figures(said, "restore in all").is_none());
    }
}
