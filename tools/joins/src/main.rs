//! Lets nodes join others over real sockets, kills some of them on the way, and measures what it comes to.
//!
//! `joins --keelstone PROGRAM [--keys N] [--chunk BYTES] [--kills N] [--seed S] [--only NAME,..] [--hosts loopback|namespaces]
//! [--transport tcp|quic] [--dir DIR] [--set SETTING]..`
//!
//! Every node is a process of its own, as people run them: four that hold one state, and one that takes it from them. What
//! is shown, each with its line:
//!
//! | name | holds if |
//! | --- | --- |
//! | plain | the state is there, verified and durable, at the asked speed and within the asked memory, bytes and forecast |
//! | kills | a joiner that is killed again and again fetches next to nothing twice |
//! | servers | half of the servers are killed midway, and it ends |
//! | liars | one of the four lies, in one way after the other: it is banned, and costs little time |
//! | moving | the chain goes on all the time, and it ends at a recent height |
//!
//! With `--transport quic` the joiner dials by QUIC, but beside liars, which speak TCP alone.
//!
//! The exit code is 0 if all that was run holds, 1 if something does not, and 2 if the command is none. Speed is for an idle
//! machine; everything else holds on a busy one too.
#![forbid(unsafe_code)]

mod chain;
mod figures;
mod hosts;
mod liar;
mod processes;
mod shows;

use hosts::Hosts;
use processes::Group;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str = "joins --keelstone PROGRAM [--keys N] [--chunk BYTES] [--kills N] [--seed S] [--only NAME,..] \
                     [--hosts loopback|namespaces] [--transport tcp|quic] [--dir DIR] [--set SETTING]..";

/// What was asked for.
#[derive(Debug)]
struct Arguments {
    keelstone: PathBuf,
    keys: u64,
    chunk_bytes: u64,
    kills: usize,
    seed: u64,
    only: Option<Vec<String>>,
    namespaces: bool,
    /// Whether the joiner dials by QUIC.
    quic: bool,
    directory: PathBuf,
    /// Settings of the joiner.
    set: Vec<String>,
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Option<Arguments> {
    let mut parsed = Arguments {
        keelstone: PathBuf::new(),
        keys: 1_000_000,
        chunk_bytes: 4 << 20,
        kills: 20,
        seed: 1,
        only: None,
        namespaces: false,
        quic: false,
        directory: std::env::temp_dir(),
        set: Vec::new(),
    };
    while let Some(name) = arguments.next() {
        let value = arguments.next()?;
        match name.as_str() {
            "--keelstone" => parsed.keelstone = value.into(),
            "--keys" => parsed.keys = value.parse().ok().filter(|keys| (1..=chain::KEYS_MAX).contains(keys))?,
            "--chunk" => parsed.chunk_bytes = value.parse().ok()?,
            "--kills" => parsed.kills = value.parse().ok()?,
            "--seed" => parsed.seed = value.parse().ok()?,
            "--only" => parsed.only = Some(value.split(',').map(str::to_owned).collect()),
            "--hosts" => parsed.namespaces = ["loopback", "namespaces"].iter().position(|known| *known == value)? == 1,
            "--transport" => parsed.quic = ["tcp", "quic"].iter().position(|known| *known == value)? == 1,
            "--set" => parsed.set.push(value),
            "--dir" => parsed.directory = value.into(),
            _ => return None,
        }
    }
    let known = |names: &Vec<String>| names.iter().all(|name| shows::NAMES.contains(&name.as_str()));
    (parsed.only.as_ref().is_none_or(known) && parsed.keelstone.is_file()).then_some(parsed)
}

fn main() -> ExitCode {
    let Some(arguments) = parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(wrong) => {
            eprintln!("joins: seed {}: {wrong}", arguments.seed);
            ExitCode::FAILURE
        }
    }
}

/// A signal that asks for the end leaves neither nodes nor gigabytes behind. One that cannot be heard leaves the files.
fn end_when_told(group: &Arc<Group>, place: &Path) -> Result<(), String> {
    let deaf = |error: std::io::Error| format!("signals cannot be heard: {error}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(deaf)?;
    let listen = |kind| runtime.block_on(async { signal(kind) }).map_err(deaf);
    let [mut hangup, mut interrupt, mut terminate] =
        [listen(SignalKind::hangup())?, listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?];
    let (group, place) = (group.clone(), place.to_owned());
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = hangup.recv() => {}
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        group.end();
        let _ = std::fs::remove_dir_all(place);
        std::process::exit(1);
    });
    Ok(())
}

fn run(arguments: &Arguments) -> Result<bool, String> {
    let place = tempfile::Builder::new().prefix("joins-").tempdir_in(&arguments.directory);
    let place = place.map_err(|error| format!("cannot work in {}: {error}", arguments.directory.display()))?;
    let group = Arc::new(Group::start(&arguments.keelstone)?);
    end_when_told(&group, place.path())?;
    let hosts = match arguments.namespaces {
        true => Hosts::namespaces(group)?,
        false => Hosts::loopback(group),
    };
    let wants_liars = arguments.only.as_ref().is_none_or(|only| only.iter().any(|name| name == "liars"));
    let chain = chain::make(&arguments.keelstone, place.path(), arguments.keys, arguments.chunk_bytes, wants_liars)?;
    println!(
        "{} keys on {hosts}: a state of {} in four nodes; seed {}",
        figures::grouped(arguments.keys),
        figures::mib(chain.bytes),
        arguments.seed
    );
    let shows = shows::Shows { arguments, place: place.path(), chain: &chain, hosts: &hosts };
    shows.run()
}
