//! Kills a process that works on a store, again and again, and looks whether anything is missing.
//!
//! `crashloop [--cycles N] [--seed S] [--dir DIR]`, or `crashloop --syscalls`
//!
//! The parent keeps the acknowledgements; the child commits, flushes, compacts, prunes and rolls back, says what it is
//! about to do and what was acknowledged, and is killed at a random moment with SIGKILL. Some children are killed while
//! they open what another left. An acknowledged step that is missing, a value or root that is wrong, a child that panics
//! or hangs or a store that does not open ends the loop with exit code 1 and the seed.
//!
//! A signal that asks for the end leaves neither a child nor its directory behind.
//!
//! With `--syscalls`, `strace` kills the child at every single call that changes the disk, once, and once more while the
//! next child recovers.
//!
//! A kill leaves what was written in the system's memory, so the loop runs where syncs cost nothing (`/dev/shm`) if it can.
//! What a power cut leaves is simulated by the tests of the store.
#![forbid(unsafe_code)]

mod child;
mod model;
mod parent;
mod syscalls;

use keelstone_crashloop::life::Running;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "crashloop [--syscalls | --cycles N] [--seed S] [--dir DIR]";

/// What was asked for.
#[derive(Debug)]
struct Arguments {
    cycles: u64,
    seed: u64,
    syscalls: bool,
    directory: Option<PathBuf>,
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Option<Arguments> {
    let mut parsed = Arguments { cycles: 2000, seed: 1, syscalls: false, directory: None };
    while let Some(name) = arguments.next() {
        if name == "--syscalls" {
            parsed.syscalls = true;
            continue;
        }
        let value = arguments.next()?;
        match name.as_str() {
            // None at all would find nothing, and say that nothing was lost.
            "--cycles" => parsed.cycles = value.parse().ok().filter(|cycles| *cycles > 0)?,
            "--seed" => parsed.seed = value.parse().ok()?,
            "--dir" => parsed.directory = Some(value.into()),
            _ => return None,
        }
    }
    Some(parsed)
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.next_if(|first| first == child::ARGUMENT).is_some() {
        return child::run(arguments);
    }
    let Some(arguments) = parse(arguments) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let place = arguments.directory.clone().unwrap_or_else(|| {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
    });
    let directory = match tempfile::Builder::new().prefix("crashloop-").tempdir_in(&place) {
        Ok(directory) => directory,
        Err(error) => {
            eprintln!("cannot work in {}: {error}", place.display());
            return ExitCode::from(2);
        }
    };
    let running = Running::default();
    if let Err(error) = running.end_when_told(directory.path().to_owned()) {
        eprintln!("signals cannot be heard: {error}");
        return ExitCode::from(2);
    }
    let done = match arguments.syscalls {
        true => syscalls::run(directory.path(), arguments.seed, &running),
        false => parent::run(directory.path(), arguments.seed, arguments.cycles, &running).map(|done| done.to_string()),
    };
    match done {
        Ok(done) => {
            println!("{done}");
            ExitCode::SUCCESS
        }
        Err(wrong) => {
            // What it was found in stays, to be looked at.
            let kept = directory.keep();
            eprintln!("crashloop: seed {}: {wrong}; the store is in {}", arguments.seed, kept.display());
            ExitCode::FAILURE
        }
    }
}
