//! What puts another state in a home's place, or carries one, is killed at system calls that change the disk, or has them
//! fail. Whatever it had come to, the old state is there whole or the new one, and the same command makes it the new one
//! and leaves nothing else behind.
//!
//! The test takes a few calls of each command, by a seed; `cargo xtask syscalls` takes all of them.
#![expect(clippy::unwrap_used, reason = "these are parts of tests: what fails here fails a test")]

use crate::support::{chain, copy, expect, post, program, register, send};
use golden::count;
use keelstone::codec::splitmix64;
use keelstone_crashloop::life::{Ended, Life, PATIENCE, Running};
use keelstone_crashloop::strace::{Call, Happens, calls, left_out, strace, to_count, to_happen, unable};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// The calls by which these commands change a disk.
const CALLS: [&str; 21] = [
    "write",
    "writev",
    "pwrite64",
    "fdatasync",
    "fsync",
    "rename",
    "renameat",
    "fallocate",
    "ftruncate",
    "open",
    "openat",
    "mkdir",
    "unlink",
    "unlinkat",
    "rmdir",
    "link",
    "linkat",
    "copy_file_range",
    "sendfile",
    "chmod",
    "fchmod",
];
const HAPPENS: [Happens; 3] = [Happens::Kill, Happens::Fails("EIO"), Happens::Fails("ENOSPC")];
/// Of each command, how many calls the test takes.
const CALLS_EACH: u64 = 2;
/// The height of the chain, and of its snapshots.
const LAST: u64 = 4;
const SNAPSHOTS: [u64; 2] = [3, 4];

/// Where the homes lie that commands begin with, and one of them works.
struct Place {
    place: TempDir,
    /// The root at the height of the earlier snapshot.
    earlier: String,
}

/// A command, and in which home it works.
struct Operation {
    name: &'static str,
    home: &'static str,
    arguments: Vec<String>,
    /// It runs until it is told to end.
    stays: bool,
}

/// What a home says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stands {
    /// The exit code of who asks, and height and root.
    state: (Option<i32>, Value, Value),
    /// Whether the first block and the last one are there.
    blocks: [bool; 2],
    snapshots: BTreeSet<String>,
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn generation(home: &Path) -> PathBuf {
    home.join("data").join(fs::read_to_string(home.join("data/CURRENT")).unwrap().trim())
}

impl Place {
    fn new() -> Self {
        // Syncs cost nothing there, and nothing is lost with the power here.
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let home = chain();
        send(home.path(), 0, &json!([register(), post("first")]));
        let make = |height: u64| {
            expect(
                home.path(),
                0,
                &["snapshot", "--set", "snapshots.reserve_percent=0", "create", "--height", &height.to_string()],
            )
        };
        for height in 2..=LAST {
            send(home.path(), 0, &json!([post(&format!("post {height} {}", "x".repeat(200)))]));
        }
        let earlier = SNAPSHOTS.map(make)[0]["root"].as_str().unwrap().to_owned();

        let this = Self { place, earlier };
        let of = |name: &str| this.path(name);
        copy(home.path(), &of("whole"));
        copy(home.path(), &of("lost"));
        let superblock = generation(&of("lost")).join("state/superblock");
        fs::write(&superblock, vec![0x5a; usize::try_from(fs::metadata(&superblock).unwrap().len()).unwrap()]).unwrap();
        copy(home.path(), &of("without blocks"));
        let blocks = generation(&of("without blocks")).join("blocks.redb");
        let mut bytes = fs::read(&blocks).unwrap();
        bytes[..20].fill(0x5a);
        fs::write(&blocks, bytes).unwrap();
        copy(home.path(), &of("without snapshots"));
        fs::remove_dir_all(of("without snapshots").join("data/snapshots")).unwrap();
        fs::create_dir(of("empty")).unwrap();
        fs::copy(home.path().join("genesis.json"), of("genesis.json")).unwrap();
        let export =
            |what: &[&str]| expect(home.path(), 0, &[what, &["--set", "snapshots.reserve_percent=0"]].concat());
        export(&["snapshot", "export", "3", text(&of("state.tar"))]);
        export(&["mirror", "export", text(&of("mirror")), "--height", "3"]);
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn home(&self) -> PathBuf {
        self.path("home")
    }

    /// Where commands write that write beside the home.
    fn out(&self) -> PathBuf {
        self.path("out")
    }

    fn operations(&self) -> Vec<Operation> {
        let operation = |name, home, arguments: &[&str]| {
            let settings = ["--set", "snapshots.reserve_percent=0", "--set", "http.listen=127.0.0.1:0"];
            let arguments = arguments.iter().chain(&settings).map(|&word| word.to_owned()).collect();
            Operation { name, home, arguments, stays: false }
        };
        let (tar, genesis, mirror) = (self.path("state.tar"), self.path("genesis.json"), self.path("mirror"));
        let (made, earlier) = (self.out().join("mirror"), self.earlier.as_str());
        let trust = ["--genesis", text(&genesis), "--trust-height", "3", "--trust-hash", earlier];
        vec![
            operation("recover from a snapshot", "lost", &["recover", "--yes", "--strategy", "local_snapshot"]),
            operation("recover an earlier height", "lost", &["recover", "--yes", "--to", "3"]),
            operation("recover from blocks", "lost", &["recover", "--yes", "--strategy", "block_replay"]),
            operation("recover without blocks", "without blocks", &["recover", "--yes"]),
            Operation { stays: true, ..operation("a node that recovers", "lost", &["node"]) },
            operation("restore over a state", "whole", &["snapshot", "restore", "3", "--yes"]),
            operation("restore", "empty", &["snapshot", "restore", text(&tar), "--genesis", text(&genesis)]),
            operation("sync", "empty", &[&["sync", "--from", text(&mirror)][..], &trust].concat()),
            operation("roll back", "whole", &["rollback", "2", "--yes"]),
            operation("import", "without snapshots", &["snapshot", "import", text(&tar)]),
            operation("export a mirror", "whole", &["mirror", "export", text(&made)]),
        ]
    }

    /// Has the home it begins with, and nothing beside it.
    fn begin(&self, operation: &Operation) {
        for path in [self.home(), self.out()] {
            if path.exists() {
                fs::remove_dir_all(&path).unwrap();
            }
        }
        fs::create_dir(self.out()).unwrap();
        copy(&self.path(operation.home), &self.home());
    }

    /// Does it under `strace` with these options.
    fn run(&self, operation: &Operation, options: &[&str], log: &str) -> Result<Ended, String> {
        let mut command = strace(options, log);
        // Who is killed here is killed where it would be without a home of its own.
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", "/nonexistent");
        command.arg(program().get_program()).args(&operation.arguments);
        self.end(operation, command.args(["--json", "--home"]).arg(self.home()))
    }

    fn end(&self, operation: &Operation, command: &mut Command) -> Result<Ended, String> {
        let life = Life::start(command, &Running::default())?;
        // What a node says first is that it runs.
        if operation.stays && !life.hear(1, PATIENCE)?.is_empty() {
            life.ask_to_end()?;
        }
        life.end()
    }

    /// Does it with nothing in its way.
    fn again(&self, operation: &Operation) -> Result<Ended, String> {
        let mut command = program();
        command.args(&operation.arguments);
        self.end(operation, command.args(["--json", "--home"]).arg(self.home()))
    }

    /// What the home says of itself, and whether what it holds is sound.
    fn stands(&self) -> Result<Stands, String> {
        let ask = |arguments: &[&str]| -> Result<(Option<i32>, Value), String> {
            let mut command = program();
            let output = command.args(arguments).args(["--json", "--home"]).arg(self.home()).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            if said.contains("panicked") {
                return Err(format!("{arguments:?} panicked: {said}"));
            }
            Ok((output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)))
        };
        let (code, status) = ask(&["status"])?;
        let mut blocks = [false; 2];
        if code == Some(0) {
            let last = status["height"].to_string();
            for (there, height) in blocks.iter_mut().zip(["1", &last]) {
                *there = ask(&["query", "block", height])?.0 == Some(0);
            }
            let checked = ask(&["db", "check"])?;
            if checked.0 != Some(0) {
                return Err(format!("the state is damaged: {checked:?}"));
            }
        }
        let snapshots = lies(&self.home().join("data/snapshots")).into_iter();
        Ok(Stands {
            state: (code, status["height"].clone(), status["root"].clone()),
            blocks,
            snapshots: snapshots.filter(|name| name.ends_with(".snapshot")).collect(),
        })
    }

    /// What lies in the home and beside it, but for the files of the states.
    fn lies(&self) -> BTreeSet<String> {
        let beside = lies(&self.out()).into_iter().map(|name| format!("out/{name}"));
        lies(&self.home()).into_iter().chain(beside).collect()
    }
}

/// The names of all that lies in a directory: those that change from time to time by what they are.
fn lies(directory: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        // Of a record that was cut off, whose place the next takes; and what is written when another state counts already, and by who
        // is killed then never.
        if name == "HEAD.new" || name.ends_with(".report") {
            continue;
        }
        let digits = name.trim_start_matches(|c: char| c.is_ascii_digit());
        let kind = match name.strip_prefix("gen-") {
            Some(_) => "gen".to_owned(),
            None if name.ends_with(".audit") => digits.to_owned(),
            None => name,
        };
        if path.is_dir() && kind != "state" {
            names.extend(lies(&path).into_iter().map(|name| format!("{kind}/{name}")));
        }
        names.insert(kind);
    }
    names
}

/// Files of blocks in a generation that were not synced since they were written, at the moment in which it was named.
fn unsynced(calls: &[Call]) -> BTreeSet<String> {
    let mut written = BTreeSet::new();
    for Call { name, text, .. } in calls {
        // What a descriptor stands for is behind it.
        let files: Vec<_> = text.split('<').skip(1).filter_map(|rest| Some(rest.split_once('>')?.0)).collect();
        let (first, last) = (files.first().copied().unwrap_or_default(), files.last().copied().unwrap_or_default());
        match *name {
            "write" | "writev" | "pwrite64" | "ftruncate" | "sendfile" => drop(written.insert(first.to_owned())),
            "copy_file_range" => drop(written.insert(last.to_owned())),
            "fsync" | "fdatasync" => drop(written.remove(first)),
            "rename" if text.contains("/CURRENT\")") => break,
            _ => {}
        }
    }
    written.retain(|file| file.contains("/data/gen-") && file.contains("/blocks."));
    written
}

/// What a command makes of its home, and at which calls.
struct Whole {
    before: Stands,
    after: Stands,
    lies: BTreeSet<String>,
    calls: Vec<Call>,
    /// What a power cut could take from what counts.
    unsynced: BTreeSet<String>,
}

impl Whole {
    fn of(place: &Place, operation: &Operation) -> Result<Self, String> {
        place.begin(operation);
        // Who only looks takes in what the logs hold: the command is to find the same.
        let before = place.stands()?;
        place.begin(operation);
        let log = place.path("calls");
        let ended = place.run(operation, &["-y", "-e", &to_count()], text(&log))?;
        if !ended.status.success() {
            return Err(format!("it failed untouched: {}", ended.complaint));
        }
        let log = fs::read_to_string(&log).unwrap();
        let places = [text(&place.home()), text(&place.out())].map(|place| format!("{place}/"));
        let wanted = |name: &str, text: &str| {
            let opens_to_read =
                name.starts_with("open") && !["O_CREAT", "O_RDWR", "O_WRONLY"].iter().any(|how| text.contains(how));
            !opens_to_read && places.iter().any(|place| text.contains(place))
        };
        let mut seen = BTreeSet::new();
        let mut calls = calls(&CALLS, &log, wanted)?;
        let unsynced = unsynced(&calls);
        // Whichever thread comes to a number first has it happen.
        calls.retain(|call| seen.insert((call.name, call.number)));
        // Who looks completes what a command leaves to the next.
        let (after, lies) = (place.stands()?, place.lies());
        Ok(Self { before, after, lies, calls, unsynced })
    }

    /// Has something happen at a call, and looks what is left. Says whether it came to that.
    fn look(&self, place: &Place, operation: &Operation, call: &Call, happens: Happens) -> Result<bool, String> {
        place.begin(operation);
        let options = to_happen(call, happens);
        let ended = place.run(operation, &options.each_ref().map(String::as_str), "/dev/null")?;
        let Ended { status, complaint, .. } = &ended;
        if complaint.contains("panicked") {
            return Err(format!("it panicked: {complaint}"));
        }
        let happened = match happens {
            Happens::Kill => ended.is_killed(),
            Happens::Fails(_) => !status.success(),
        };
        if happened && happens != Happens::Kill {
            let last = complaint.lines().last().unwrap_or_default();
            let error = serde_json::from_str::<Value>(last).unwrap_or_default()["error"].clone();
            let message = error["message"].as_str().unwrap_or_default();
            // Of a state that was damaged before and is so still the code is that.
            let is_damaged = self.before.state.0 == Some(12);
            if !(status.code() == Some(1) || (status.code() == Some(12) && is_damaged)) || message.is_empty() {
                return Err(format!("it ended with {status}: {complaint}"));
            }
        } else if !happened && !status.success() {
            return Err(format!("it was not killed and ended with {status}: {complaint}"));
        }
        let found = place.stands()?;
        // With its genesis alone a home is that of a chain without a block.
        let is_begun = operation.home == "empty" && found.state.1 == 0;
        let is_old = found == self.before || is_begun;
        if !is_old && found != self.after {
            return Err(format!("{found:?} is neither {:?} nor {:?}", self.before, self.after));
        }
        if is_old && self.before != self.after && status.success() {
            return Err("it said that it is done, and it is not".to_owned());
        }
        let again = place.again(operation)?;
        if !again.status.success() {
            return Err(format!("the same command then ends with {}: {}", again.status, again.complaint));
        }
        let found = place.stands()?;
        if found != self.after {
            return Err(format!("the same command then comes to {found:?}, not to {:?}", self.after));
        }
        match place.lies() {
            lies if lies == self.lies => Ok(happened),
            lies => {
                let more: Vec<_> = lies.difference(&self.lies).collect();
                let less: Vec<_> = self.lies.difference(&lies).collect();
                Err(format!("in the end there is {more:?} too, and no {less:?}"))
            }
        }
    }
}

/// spec: STORE-10, RECOVER-3, LIB-3, LIB-8. Killed at a call that changes the disk, or told by it that the disk fails or is full.
/// `KEELSTONE_SYSCALLS` says how many calls of each command; only where `strace` can kill nothing is it left out.
#[test]
fn a_home_is_the_old_one_or_the_new_one_at_whichever_call_a_command_ends() {
    if let Some(reason) = unable() {
        return left_out(&reason);
    }
    let (each, seed) = (count("KEELSTONE_SYSCALLS", CALLS_EACH), count("KEELSTONE_SEED", 1));
    let (place, mut dice) = (Place::new(), seed);
    let mut done = BTreeMap::new();
    let mut wrong = Vec::new();
    for operation in &place.operations() {
        let of = |error: String| format!("{}: {error}", operation.name);
        let whole = Whole::of(&place, operation).map_err(of).unwrap();
        assert!(!whole.calls.is_empty(), "{}: it changes nothing", operation.name);
        if !whole.unsynced.is_empty() {
            wrong.push(of(format!("a power cut could take {:?} from what counts", whole.unsynced)));
        }
        let all = whole.calls.iter().flat_map(|call| HAPPENS.map(|happens| (call, happens)));
        let mut points: Vec<_> = all.collect();
        let total = points.len();
        let taken = usize::try_from(each).unwrap_or(usize::MAX).min(total);
        for at in 0..taken {
            let left = u64::try_from(total - at).unwrap();
            points.swap(at, at + usize::try_from(splitmix64(&mut dice) % left).unwrap());
        }
        let mut came = 0;
        for (call, happens) in &points[..taken] {
            match whole.look(&place, operation, call, *happens) {
                Ok(happened) => came += usize::from(happened),
                Err(error) => {
                    let Call { name, number, text } = call;
                    wrong.push(of(format!("{happens:?} at {name} number {number} ({text}): {error}")));
                }
            }
        }
        println!("{}: {taken} of {total} tried, {came} ended it", operation.name);
        done.insert(operation.name, taken);
    }
    assert!(wrong.is_empty(), "seed {seed}: {} wrong:\n{}", wrong.len(), wrong.join("\n"));
    println!(
        "seed {seed}: {} tried, and whatever ended was the old state or the new one",
        done.values().sum::<usize>()
    );
}
