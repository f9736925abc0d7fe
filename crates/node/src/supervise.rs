//! CometBFT as a process of this node's own: with `engine.supervise` the node starts it, keeps it running, and stops it.
//!
//! The engine ends itself when it loses its application, goes on without making blocks once its consensus has failed, and gives up
//! state sync for good at the first thing it does not understand; none of it is ever tried again by itself. So somebody has to own its process. An engine that ends is started
//! again after a pause that grows; one that ends too often in a row ends the node, with what it said last. One that gives
//! up state sync is stopped, what it and this node hold of the half-joined chain is removed, state sync is turned off in
//! its configuration, and both begin anew, from the first block on; unless nobody has that any more, as far as the nodes say
//! that were to give it headers.
//!
//! The engine is of a process group that ends with this process, however that ends. What a validator has signed is never
//! removed: a validator that forgot it could sign twice.

use crate::cometbft::config_file::{Edit, edited};
use crate::cometbft::home::{read, replace_after};
use crate::cometbft::rpc::Rpc;
use crate::exit::{Failure, causes};
use crate::generations::{is_kept, name_none};
use crate::newfile::empty;
use crate::processes::{Group, Process};
use keelstone_codec::Height;
use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::ToSocketAddrs as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SendError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The first pause before an engine that ended is started again. It doubles with each further end.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// An engine that ran for so long had no trouble starting: the pauses begin anew.
const RAN_WELL: Duration = Duration::from_secs(60);
/// Ends in a row after which the engine is not started again.
const ENDS_MAX: u32 = 8;
/// Ends in a row after which an engine that is to state sync is taken to have given up: what it lacks comes back within
/// the pauses before, or not at all.
const SYNC_ENDS_MAX: u32 = 4;
/// Lines of the engine that may wait to be logged.
const LINES_MAX: usize = 1_024;
/// Bytes of one line of the engine's that are looked at.
const LINE_BYTES_MAX: u64 = 64 * 1024;
/// Last lines that are kept for a diagnosis.
const LAST_LINES: usize = 5;
/// How often it is looked whether somebody wants a stop.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The error that CometBFT (0.38 to 0.40) logs when it will not try state sync any more.
const GAVE_UP: &str = "State sync failed";
/// The error that it logs when its consensus has ended for good, while its process goes on.
const HALTED: &str = "CONSENSUS FAILURE!!!";
/// How long the engine's last lines may take to be logged once it has ended.
const LAST_LINES_GRACE: Duration = Duration::from_secs(1);
/// How long a node that is asked for its first block may be silent.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// What must survive in an engine's data directory: what its validator has signed.
const SIGNED: &str = "priv_validator_state.json";

/// The engine to run.
#[derive(Debug, Clone)]
pub(crate) struct Supervised {
    /// The program.
    pub(crate) cometbft: PathBuf,
    /// Its home directory.
    pub(crate) home: PathBuf,
}

/// Why the engine runs no longer, although nobody asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It gave up state sync.
    SyncGivenUp {
        /// What it said.
        said: String,
    },
    /// It ended too often in a row.
    TooOften {
        /// How often.
        ends: u32,
        /// What it said last.
        said: String,
    },
    /// There is none, and nobody that this node follows has the next height any more.
    LeftBehind {
        /// The height that is missing.
        missing: Height,
        /// From where on somebody has some.
        kept_from: Height,
    },
    /// It could not be started.
    NotStarted {
        /// Why.
        why: String,
    },
}

/// A running supervisor.
pub(crate) struct Supervisor {
    stop: SyncSender<()>,
    thread: JoinHandle<()>,
}

impl Supervisor {
    /// Starts the engine. `joins` says whether the application holds no block yet that was confirmed, so that an engine
    /// that is to state sync still has to. `ended` is called once, if the engine runs no longer although nobody asked for
    /// it.
    pub(crate) fn start(
        engine: Supervised,
        joins: impl Fn() -> bool + Send + 'static,
        ended: impl FnOnce(Ended) + Send + 'static,
    ) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::io("could not start supervising the engine", &error);
        let group = Group::start(None).map_err(failed)?;
        let (stop, stopped) = sync_channel(1);
        let supervise = move || {
            let result = supervise(&engine, &group, &joins, &stopped);
            group.end();
            if let Some(why) = result {
                ended(why);
            }
        };
        let thread = std::thread::Builder::new().name("supervisor".to_owned()).spawn(supervise).map_err(failed)?;
        Ok(Self { stop, thread })
    }

    /// Stops the engine.
    pub(crate) fn stop(self) {
        // Full means: told already. Gone means: it has ended.
        let _ = self.stop.try_send(());
        // A panic of the thread was reported when it happened.
        let _ = self.thread.join();
    }
}

/// Runs the engine until told to stop, which is None.
fn supervise(engine: &Supervised, group: &Group, joins: &dyn Fn() -> bool, stop: &Receiver<()>) -> Option<Ended> {
    let mut restarts = Restarts::default();
    loop {
        let mut command = Command::new(&engine.cometbft);
        command.arg("start").arg("--home").arg(&engine.home).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut process = match group.spawn(command) {
            Ok(process) => process,
            Err(error) => {
                return Some(Ended::NotStarted { why: format!("{}: {error}", engine.cometbft.display()) });
            }
        };
        tracing::info!(pid = process.id(), "started CometBFT");
        let began = Instant::now();
        let mut last = VecDeque::new();
        let state_syncs = || joins() && state_sync_is_on(&engine.home);
        match watch(&mut process, stop, &state_syncs, &mut last) {
            Watched::Stop => return None,
            Watched::GaveUp(said) => return Some(Ended::SyncGivenUp { said }),
            Watched::Halted | Watched::Ended => {}
        }
        let said = last.into_iter().collect::<Vec<String>>().join("\n");
        let next = restarts.next(began.elapsed(), state_syncs());
        tracing::warn!(state = ?process.state(), ends = restarts.ends, "CometBFT has ended");
        match next {
            Next::After(pause) => match stop.recv_timeout(pause) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return None,
            },
            Next::SyncGivenUp => return Some(Ended::SyncGivenUp { said }),
            Next::No => return Some(Ended::TooOften { ends: restarts.ends, said }),
        }
    }
}

enum Watched {
    Stop,
    GaveUp(String),
    /// It makes no blocks any more.
    Halted,
    Ended,
}

/// Logs what the engine says, until it ends, gives up, or is to be stopped; it has ended then. `state_syncs` says whether it
/// still has to state sync.
fn watch(
    process: &mut Process,
    stop: &Receiver<()>,
    state_syncs: &dyn Fn() -> bool,
    last: &mut VecDeque<String>,
) -> Watched {
    let (tell, lines) = sync_channel(LINES_MAX);
    let reading = process.output().map(|output| read_lines(output, tell));
    let watched = listen(process, &lines, stop, state_syncs, last);
    if !matches!(watched, Watched::Ended) {
        // Whoever reads its output goes on: an engine that cannot write any more is ended by that, before it has written
        // down what it holds and closed its databases.
        drop(lines);
        stop_process(process);
    }
    if let Some(Ok(reading)) = reading {
        let until = Instant::now() + LAST_LINES_GRACE;
        // A process that the engine started and left behind may keep the output open for ever.
        while !reading.is_finished() && Instant::now() < until {
            std::thread::sleep(LOOK_EVERY / 10);
        }
    }
    watched
}

fn listen(
    process: &mut Process,
    lines: &Receiver<Line>,
    stop: &Receiver<()>,
    state_syncs: &dyn Fn() -> bool,
    last: &mut VecDeque<String>,
) -> Watched {
    loop {
        if !matches!(stop.try_recv(), Err(std::sync::mpsc::TryRecvError::Empty)) {
            return Watched::Stop;
        }
        match lines.recv_timeout(LOOK_EVERY) {
            Ok(Line { text, begins }) => {
                log(&text);
                if begins && says(&text, GAVE_UP) && state_syncs() {
                    return Watched::GaveUp(text);
                }
                let halted = begins && says(&text, HALTED);
                if last.len() == LAST_LINES {
                    last.pop_front();
                }
                last.push_back(text);
                if halted {
                    return Watched::Halted;
                }
            }
            // What it started and left behind may hold its output open for ever, and nothing comes from it any more.
            Err(RecvTimeoutError::Timeout) if !process.is_alive() => return Watched::Ended,
            Err(RecvTimeoutError::Timeout) => {}
            // Its output has ended, so it has ended or is about to.
            Err(RecvTimeoutError::Disconnected) if !process.is_alive() => return Watched::Ended,
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(LOOK_EVERY),
        }
    }
}

/// Whether a line of the engine's is this error, in either of its formats.
///
/// Its lines also quote what strangers say: a peer that names its network after this error must not be taken for it. So
/// it has to be the message itself, at that level.
fn says(line: &str, error: &str) -> bool {
    if let Some((_, text)) = line.strip_prefix("E[").and_then(|rest| rest.split_once("] ")) {
        // The message is padded with blanks, and its values follow, each with its name.
        let values = text.strip_prefix(error);
        return values.is_some_and(|rest| {
            let values = rest.trim_start();
            values.is_empty() || ["module=", "err="].iter().any(|name| rest != values && values.starts_with(name))
        });
    }
    let line: serde_json::Value = match serde_json::from_str(line) {
        Ok(line) => line,
        Err(_) => return false,
    };
    line["level"] == "error" && line["_msg"] == error
}

/// A line of the engine's, or a piece of one.
struct Line {
    text: String,
    /// Whether the line begins here.
    begins: bool,
}

/// Reads lines of the engine on a thread of its own, until its output ends. Once nobody takes them they are logged from
/// there.
fn read_lines(output: ChildStdout, tell: SyncSender<Line>) -> std::io::Result<JoinHandle<()>> {
    let read = move || {
        let mut input = BufReader::new(output);
        let mut begins = true;
        loop {
            let mut line = Vec::new();
            match input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let ends = line.ends_with(b"\n");
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if let Err(SendError(line)) = tell.send(Line { text, begins }) {
                log(&line.text);
            }
            begins = ends;
        }
    };
    std::thread::Builder::new().name("engine-log".to_owned()).spawn(read)
}

/// Says a line of the engine's in the log of this node, at the engine's level.
fn log(line: &str) {
    // Plain lines begin with a letter, in colour on some versions; JSON lines name the level.
    let plain = line.trim_start_matches(|c: char| !c.is_ascii_alphabetic() && c != '{');
    if plain.starts_with("E[") || plain.contains("\"level\":\"error\"") {
        tracing::error!(target: "cometbft", "{line}");
    } else if plain.starts_with("D[") || plain.contains("\"level\":\"debug\"") {
        tracing::debug!(target: "cometbft", "{line}");
    } else {
        tracing::info!(target: "cometbft", "{line}");
    }
}

fn stop_process(process: &mut Process) {
    if let Err(error) = process.stop() {
        // The end of the group takes what is left.
        tracing::warn!(%error, "CometBFT could not be stopped");
    }
}

/// How often the engine ended in a row. Knows no clock.
#[derive(Debug, Default)]
struct Restarts {
    ends: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum Next {
    After(Duration),
    SyncGivenUp,
    No,
}

impl Restarts {
    /// What to do about an engine that ended after it ran for `ran`.
    fn next(&mut self, ran: Duration, state_sync: bool) -> Next {
        self.ends = if ran >= RAN_WELL { 1 } else { self.ends + 1 };
        if state_sync && self.ends >= SYNC_ENDS_MAX {
            return Next::SyncGivenUp;
        }
        if self.ends >= ENDS_MAX {
            return Next::No;
        }
        Next::After(PAUSE.saturating_mul(1 << (self.ends - 1).min(16)).min(PAUSE_MAX))
    }
}

fn config_of(home: &Path) -> PathBuf {
    home.join("config").join("config.toml")
}

/// What the engine's configuration says, as far as it can be read: the engine says what is wrong with it.
fn configured(home: &Path) -> Option<toml::Table> {
    read(&config_of(home)).ok()?.parse().ok()
}

/// Whether the engine is to state sync, as far as its configuration says.
fn state_sync_is_on(home: &Path) -> bool {
    let enable = configured(home).and_then(|table| table.get("statesync")?.get("enable")?.as_bool());
    enable.unwrap_or(false)
}

/// Where the engine looks for its application, if that is not the address at which this node listens. There may be something
/// between the two that passes calls on.
pub(crate) fn connects_elsewhere(engine: &Supervised, address: &str) -> Option<String> {
    let named = configured(&engine.home)?.get("proxy_app")?.as_str()?.to_owned();
    let is_here = match (named.strip_prefix("unix://"), address.strip_prefix("unix://")) {
        (Some(named), Some(here)) => match (Path::new(named).canonicalize(), Path::new(here).canonicalize()) {
            (Ok(named), Ok(here)) => named == here,
            _ => named == here,
        },
        (None, None) => {
            let sockets = |address: &str| address.trim_start_matches("tcp://").to_socket_addrs().ok();
            let (named, here) = (sockets(&named).into_iter().flatten(), sockets(address)?.next()?);
            let mut named = named.map(|named| (named.ip(), named.port()));
            named.any(|(ip, port)| port == here.port() && (ip == here.ip() || here.ip().is_unspecified()))
        }
        _ => false,
    };
    (!is_here).then_some(named)
}

/// Why the engine could not fetch every block from the first on, if all nodes that it asks for headers say so: what they have
/// begins higher. None also if one of them does not answer: it may have the first, and nothing that is confirmed is given up for it.
pub(crate) fn first_block_is_gone(engine: &Supervised, first: Height) -> Option<String> {
    let servers = configured(&engine.home).and_then(|table| {
        let servers = table.get("statesync")?.get("rpc_servers")?.as_str()?;
        Some(servers.split(',').map(|server| server.trim().to_owned()).collect::<Vec<_>>())
    });
    let mut kept = Vec::new();
    for server in servers.unwrap_or_default() {
        match Rpc::new(&server).and_then(|rpc| rpc.timeout(ASK_TIMEOUT).status()) {
            Ok(status) if status.earliest_height <= first.0 => return None,
            Ok(status) => kept.push(format!("{server} has blocks from {} on", status.earliest_height)),
            Err(error) => {
                let said = if kept.is_empty() { String::new() } else { format!("; {}", kept.join(", ")) };
                tracing::warn!("it is not known whether there is a first block: {}{said}", causes(&error));
                return None;
            }
        }
    }
    (!kept.is_empty()).then(|| format!("{}, and the chain begins with {first}", kept.join(", ")))
}

/// Makes engine and application begin anew, by fetching every block: empties the application's data but for snapshots and kept blocks,
/// the engine's but for what its validator has signed, and turns state sync off. In this order, so that a crash in
/// between leaves an engine that still state syncs into an application that is empty; which it is once it names no
/// generation, whatever else is left. The configuration is ready before anything goes: one that cannot be written would have
/// each start empty both anew.
///
/// The caller has stopped both, and knows that the application holds no block that was confirmed.
pub(crate) fn fall_back(engine: &Supervised, data: &Path) -> Result<(), Failure> {
    let config = config_of(&engine.home);
    let text = read(&config)?;
    let fresh = edited(&text, &[Edit::new("statesync", "enable", false)])
        .map_err(|error| Failure::usage(format!("{}: {error}", config.display())))?;
    replace_after(&config, &fresh, || {
        name_none(data)?;
        empty(data, |name| name == "snapshots" || is_kept(name))?;
        empty(&engine.home.join("data"), |name| name == SIGNED)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn pauses_grow_and_end() {
        let mut restarts = Restarts::default();
        let quick = Duration::from_secs(1);
        let pauses: Vec<Next> = (0..8).map(|_| restarts.next(quick, false)).collect();
        let seconds = [1, 2, 4, 8, 16, 30, 30].map(|seconds| Next::After(Duration::from_secs(seconds)));
        assert_eq!(pauses[..7], seconds);
        assert_eq!(pauses[7], Next::No);
        assert_eq!(restarts.next(RAN_WELL, false), Next::After(PAUSE), "it ran well, so all is forgotten");
    }

    #[test]
    fn an_engine_that_cannot_begin_to_state_sync_has_given_up() {
        let mut restarts = Restarts::default();
        let next: Vec<Next> = (0..4).map(|_| restarts.next(Duration::ZERO, true)).collect();
        assert_eq!(next[3], Next::SyncGivenUp);
        assert!(next[..3].iter().all(|next| matches!(next, Next::After(_))));
    }

    /// As CometBFT 0.40 writes them, under a pipe; its error and what only looks like it.
    #[test]
    fn only_the_engines_own_error_says_that_it_gave_up() {
        let time = "2026-03-01|12:00:00.000";
        let plain = |level: char, message: &str, values: &str| format!("{level}[{time}] {message:<44} {values}");
        let json = |level: &str, message: &str, err: &str| {
            serde_json::json!({ "_msg": message, "err": err, "level": level, "module": "statesync", "ts": time })
                .to_string()
        };
        let own = "module=statesync err=\"no snapshots\"";
        assert!(says(&plain('E', GAVE_UP, own), GAVE_UP));
        assert!(says(plain('E', GAVE_UP, "").trim_end(), GAVE_UP));
        assert!(says(&json("error", GAVE_UP, "no snapshots"), GAVE_UP));
        // A stranger's NodeInfo names its network, and whoever is refused is logged with what they said.
        let said = r#"E[x] State sync failed","level":"error","_msg":"State sync failed"#;
        let quoted = format!("module=p2p err=\"peer is on a different network. Got {said}, expected c\"");
        for line in [
            plain('I', "Inbound Peer rejected", &quoted),
            plain('E', "Inbound Peer rejected", &quoted),
            plain('I', "State sync failed", own),
            plain('D', "State sync failed", own),
            plain('E', "State sync failed to begin", own),
            plain('E', "state sync failed", own),
            json("info", "Inbound Peer rejected", said),
            json("error", "Inbound Peer rejected", said),
            json("info", "State sync failed", ""),
            "State sync failed".to_owned(),
            "state sync failed".to_owned(),
            String::new(),
            "[".repeat(10_000),
        ] {
            assert!(!says(&line, GAVE_UP), "{line}");
        }
    }

    /// An engine of a few lines of shell, stopped once it has made the file `began`; how that ended.
    fn watched(script: &str, state_syncs: bool) -> (Watched, crate::processes::State, tempfile::TempDir) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).current_dir(dir.path()).stdout(Stdio::piped());
        let mut process = Process::alone(command).expect("started");
        let (stop, stopped) = sync_channel(1);
        let (began, is_over) = (dir.path().join("began"), AtomicBool::new(false));
        let how = std::thread::scope(|scope| {
            scope.spawn(|| {
                let until = Instant::now() + Duration::from_secs(60);
                while !began.exists() && !is_over.load(Ordering::Relaxed) && Instant::now() < until {
                    std::thread::sleep(Duration::from_millis(5));
                }
                // Full, or gone: it has given up by itself.
                let _ = stop.try_send(());
            });
            let how = watch(&mut process, &stopped, &|| state_syncs, &mut VecDeque::new());
            is_over.store(true, Ordering::Relaxed);
            how
        });
        (how, process.state(), dir)
    }

    /// L-06: an engine that is asked to end may say as much as it likes before it does; cut off from its output, it would be
    /// ended by the first line, with its databases open.
    #[test]
    fn l06_an_engine_that_is_stopped_is_heard_out() {
        let script = r#"
            trap 'i=0; while [ $i -lt 5000 ]; do echo "I[now] closing $i, and what goes with it"; i=$((i+1)); done
                  echo done > closed; exit 0' TERM
            touch began
            while :; do sleep 0.01; done"#;
        let (how, state, dir) = watched(script, false);
        assert!(matches!(how, Watched::Stop));
        assert_eq!(state, crate::processes::State::Ended { code: Some(0), signal: None });
        assert_eq!(fs::read_to_string(dir.path().join("closed")).expect("it came to its end"), "done\n");
    }

    /// What an engine says about state sync counts while it has to state sync, and only where a line begins.
    #[test]
    fn an_engine_gives_up_only_what_it_still_has_to_do() {
        let gives_up = r#"
            echo 'E[now] State sync failed                            module=statesync err="no snapshots"'
            touch began
            exec sleep 60"#;
        assert!(matches!(watched(gives_up, true).0, Watched::GaveUp(said) if said.contains("no snapshots")));
        assert!(matches!(watched(gives_up, false).0, Watched::Stop));
        let quotes = r#"
            head -c 65536 /dev/zero | tr '\0' x
            echo 'E[now] State sync failed                            module=statesync err=x'
            touch began
            exec sleep 60"#;
        assert!(matches!(watched(quotes, true).0, Watched::Stop));
    }

    /// An engine whose consensus has ended goes on as a process that makes no blocks: it is stopped, to be started again.
    #[test]
    fn an_engine_that_is_dead_inside_is_stopped() {
        let halts = r#"
            trap 'echo done > closed; exit 0' TERM
            echo 'E[now] CONSENSUS FAILURE!!!                         module=consensus err="no space left on device" stack="x"'
            while :; do sleep 0.01; done"#;
        let (how, state, dir) = watched(halts, false);
        assert!(matches!(how, Watched::Halted));
        assert_eq!(state, crate::processes::State::Ended { code: Some(0), signal: None });
        assert!(dir.path().join("closed").exists(), "it could close what it had open");
        let quotes = r#"
            echo 'E[now] Inbound Peer rejected                        err="CONSENSUS FAILURE!!!"'
            touch began
            exec sleep 60"#;
        assert!(matches!(watched(quotes, false).0, Watched::Stop));
    }

    /// An engine whose configuration is this.
    fn engine_with(config: &str) -> (Supervised, tempfile::TempDir) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(dir.path().join("config")).expect("made");
        fs::write(config_of(dir.path()), config).expect("written");
        (Supervised { cometbft: "cometbft".into(), home: dir.path().to_owned() }, dir)
    }

    /// What is fetched from the first block on needs somebody who has that: one is enough, and nobody's word is no reason.
    #[test]
    fn every_block_is_fetched_only_from_whoever_may_have_the_first() {
        use crate::cometbft::trust::tests::pruned;
        let kept_from = |first: &[u64]| {
            let nodes = first.iter().map(|first| pruned("c", "n", *first, 400, 'a').authority().to_owned());
            let servers: Vec<String> = nodes.map(|node| format!("http://{node}")).collect();
            let config = format!("[statesync]\nrpc_servers = \"{}\"\n", servers.join(", "));
            let (engine, _dir) = engine_with(&config);
            (first_block_is_gone(&engine, Height(2)), servers)
        };
        let (gone, servers) = kept_from(&[301, 3]);
        let said = format!(
            "{} has blocks from 301 on, {} has blocks from 3 on, and the chain begins with 2",
            servers[0], servers[1]
        );
        assert_eq!(gone, Some(said));
        assert_eq!(kept_from(&[301, 2]).0, None);
        assert_eq!(kept_from(&[]).0, None);
        let (engine, _dir) = engine_with("[statesync]\nrpc_servers = \"http://127.0.0.1:1,https://a:1\"\n");
        assert_eq!(first_block_is_gone(&engine, Height(2)), None);
        // Who is not heard may have it, whatever the other has given up.
        let node = pruned("c", "n", 301, 400, 'a');
        let servers = format!("http://{},http://127.0.0.1:1", node.authority());
        let (engine, _dir) = engine_with(&format!("[statesync]\nrpc_servers = \"{servers}\"\n"));
        assert_eq!(first_block_is_gone(&engine, Height(2)), None);
    }

    #[test]
    fn an_engine_that_looks_for_its_application_elsewhere_is_found_out() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (here, link) = (dir.path().join("abci.sock"), dir.path().join("link"));
        fs::write(&here, "").expect("written");
        std::os::unix::fs::symlink(dir.path(), &link).expect("made");
        let looks = |named: &str, here: &str| {
            let (engine, _dir) = engine_with(&format!("proxy_app = \"{named}\"\n"));
            connects_elsewhere(&engine, here).is_some()
        };
        let at = |path: &Path| format!("unix://{}", path.display());
        let here = at(&here);
        assert!(!looks(&here, &here) && !looks(&at(&link.join("abci.sock")), &here), "another name of the same");
        assert!(looks(&at(&dir.path().join("nothing.sock")), &here) && looks("tcp://127.0.0.1:26658", &here));
        for named in ["tcp://127.0.0.1:26658", "127.0.0.1:26658"] {
            assert!(!looks(named, "tcp://127.0.0.1:26658") && !looks(named, "tcp://0.0.0.0:26658"), "{named}");
            assert!(looks(named, "tcp://127.0.0.1:26659") && looks(named, "tcp://127.0.0.2:26658"), "{named}");
        }
    }

    /// spec: STORE-10. Killed after the first step of falling back, the next start finds an empty home.
    #[test]
    fn a_kill_while_falling_back_leaves_an_application_that_opens_as_empty() {
        use crate::generations::{Fault, Generations};
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (home, data) = (dir.path().join("engine"), dir.path().join("data"));
        for directory in [home.join("config"), home.join("data"), data.clone()] {
            fs::create_dir_all(directory).expect("made");
        }
        fs::write(config_of(&home), "[statesync]\nenable = true\n").expect("written");
        let engine = Supervised { cometbft: "cometbft".into(), home };
        let generations = Generations::open(&data).expect("opened");
        let first = generations.fresh().expect("made");
        generations.switch(&first).expect("switched");
        fs::create_dir(first.state()).expect("made");
        drop(generations);

        fs::write(Fault::Empty.file(&data), "").expect("written");
        fall_back(&engine, &data).expect_err("it was killed");
        assert!(first.state().is_dir() && state_sync_is_on(&engine.home), "nothing went before the name");
        let generations = Generations::open(&data).expect("it is no damage");
        assert_eq!(generations.current().expect("read"), None);
        assert!(!first.state().exists(), "the rest is swept away");
        drop(generations);
        fs::remove_file(Fault::Empty.file(&data)).expect("removed");
        fall_back(&engine, &data).expect("what is left is done");
        assert!(!state_sync_is_on(&engine.home));
    }

    /// Where state sync cannot be turned off, each start would empty both sides anew: nothing is touched.
    #[test]
    fn nothing_is_emptied_where_the_configuration_cannot_be_written() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (home, data) = (dir.path().join("engine"), dir.path().join("data"));
        for directory in ["engine/config", "engine/data/state.db", "data/gen-000001/state"] {
            fs::create_dir_all(dir.path().join(directory)).expect("made");
        }
        fs::write(data.join("CURRENT"), "gen-000001\n").expect("written");
        let engine = Supervised { cometbft: "cometbft".into(), home };
        let config = config_of(&engine.home);
        let untouched = || {
            fall_back(&engine, &data).expect_err("it cannot be written");
            let there = ["engine/data/state.db", "data/gen-000001/state", "data/CURRENT"];
            there.iter().all(|path| dir.path().join(path).exists()) && state_sync_is_on(&engine.home)
        };
        // Beside a name as long as this there is no room for another that is longer.
        let long = dir.path().join("x".repeat(250));
        fs::write(&long, "[statesync]\nenable = true\n").expect("written");
        std::os::unix::fs::symlink(&long, &config).expect("made");
        assert!(untouched(), "there is no name for a new one");
        fs::remove_file(&config).expect("removed");
        fs::write(&config, "statesync = { enable = true }\n").expect("written");
        assert!(untouched(), "it has no such section");
    }

    /// What a validator has signed, snapshots, and blocks that are kept, outlive everything.
    // spec: RECOVER-9
    #[test]
    fn falling_back_empties_both_sides_and_turns_state_sync_off() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (home, data) = (dir.path().join("engine"), dir.path().join("data"));
        for directory in [
            "engine/config",
            "engine/data/state.db",
            "data/gen-000001/state",
            "data/snapshots",
            "data/blocks-of-gen-000001",
        ] {
            fs::create_dir_all(dir.path().join(directory)).expect("made");
        }
        fs::write(home.join("data").join(SIGNED), "signed").expect("written");
        fs::write(home.join("data/state.db/000001.log"), "x").expect("written");
        fs::write(data.join("CURRENT"), "gen-000001\n").expect("written");
        fs::write(data.join("snapshots/one"), "x").expect("written");
        let config = "[statesync]\nenable = true # for now\ntrust_height = 5\n";
        fs::write(config_of(&home), config).expect("written");
        assert!(state_sync_is_on(&home));

        fall_back(&Supervised { cometbft: "cometbft".into(), home: home.clone() }, &data).expect("fell back");
        let names = |path: &Path| {
            let entries = fs::read_dir(path).expect("listed").map(|entry| entry.expect("listed").file_name());
            let mut names: Vec<_> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&home.join("data")), [SIGNED]);
        assert_eq!(names(&data), ["blocks-of-gen-000001", "snapshots"]);
        assert_eq!(names(&data.join("snapshots")), ["one"]);
        let text = fs::read_to_string(config_of(&home)).expect("readable");
        assert_eq!(text, config.replace("true", "false"));
        assert!(!state_sync_is_on(&home));
    }
}
