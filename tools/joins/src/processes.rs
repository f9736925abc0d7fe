//! The processes: nodes that give, and one that joins. Whatever is dropped while it runs is killed, and all of them end with
//! this process, however that ends.

use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read as _, Seek as _, Write as _};
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often it is looked where a process stands.
const LOOK_EVERY: Duration = Duration::from_millis(3);
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(1_800);

/// Of what a node that does not begin has logged, so many bytes are shown.
const LOG_BYTES_MAX: u64 = 4096;

/// What a command that ends says, as JSON.
pub(crate) fn ask(command: &mut Command) -> Result<Value, String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    let (said, why) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        return Err(format!("{command:?}: {}: {why}", output.status));
    }
    serde_json::from_str(said.trim()).map_err(|error| format!("{command:?} said {said:?}: {error}"))
}

/// The process group of all nodes. Its leader is the program, which waits for the end of a pipe whose other end is here: when
/// it closes, also because this process was killed, it removes what it was told to and kills the group.
#[derive(Debug)]
pub(crate) struct Group {
    leader: i32,
    reaper: Mutex<Child>,
    /// Closed when dropped, and by the system when this process dies.
    alive: Mutex<Option<ChildStdin>>,
}

impl Group {
    /// A group without nodes.
    pub(crate) fn start(program: &Path) -> Result<Self, String> {
        let failed = |error: &dyn std::fmt::Display| format!("{} testnet reap: {error}", program.display());
        let mut command = Command::new(program);
        command.args(["testnet", "reap"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut reaper = command.process_group(0).spawn().map_err(|error| failed(&error))?;
        let leader = i32::try_from(reaper.id()).map_err(|error| failed(&error))?;
        let alive = Mutex::new(reaper.stdin.take());
        Ok(Self { leader, reaper: Mutex::new(reaper), alive })
    }

    /// The group that a process is to be in.
    pub(crate) fn leader(&self) -> i32 {
        self.leader
    }

    /// What is to be removed when the group ends: arguments of `ip`.
    pub(crate) fn remove_at_end(&self, arguments: &str) -> Result<(), String> {
        let mut alive = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        let pipe = alive.as_mut().ok_or("the group has ended")?;
        pipe.write_all(format!("{arguments}\n").as_bytes()).map_err(|error| format!("the group's leader: {error}"))
    }

    /// Ends everything that is left of the group.
    pub(crate) fn end(&self) {
        *self.alive.lock().unwrap_or_else(PoisonError::into_inner) = None;
        // A leader that cannot be waited for is gone already.
        let _ = self.reaper.lock().unwrap_or_else(PoisonError::into_inner).wait();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.end();
    }
}

/// A node that gives.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    /// How peers call it.
    pub(crate) address: String,
    /// Where its API is.
    api: String,
}

impl Server {
    /// Starts a command that becomes a node.
    pub(crate) fn start(mut command: Command) -> Result<Self, String> {
        // A file and no pipe: a node says much in a long life, and nobody reads it while all goes well.
        let log = tempfile::tempfile().and_then(|log| Ok((log.try_clone()?, log)));
        let (told, mut log) = log.map_err(|error| format!("no file for what a node says: {error}"))?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(told)
            .spawn()
            .map_err(|error| format!("{command:?}: {error}"))?;
        let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let line = lines.map_while(Result::ok).find(|line| line.starts_with('{')).unwrap_or_default();
        let said: Value = serde_json::from_str(&line).unwrap_or_default();
        let text = |name: &str| said[name].as_str().map(str::to_owned);
        let (Some(address), Some(api)) = (text("p2p"), text("api")) else {
            let _ = child.kill();
            let _ = child.wait();
            let mut why = String::new();
            let _ = log.rewind().and_then(|()| log.take(LOG_BYTES_MAX).read_to_string(&mut why));
            return Err(format!("{command:?} said {line:?} and {:?}", why.trim()));
        };
        Ok(Self { child, address, api: api.trim_start_matches("http://").to_owned() })
    }

    /// How long it was on a processor.
    pub(crate) fn worked(&self) -> Duration {
        worked(self.child.id())
    }

    /// Bytes of answers it has sent; none where it cannot be asked.
    pub(crate) fn served(&self) -> Option<u64> {
        let mut stream = TcpStream::connect(&self.api).ok()?;
        let request = format!("GET /metrics HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.api);
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let line = answer.lines().find_map(|line| line.strip_prefix("p2p_served_bytes_total "))?;
        line.trim().parse().ok()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a joiner said on its way, and when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Told {
    pub(crate) at: Duration,
    pub(crate) bytes: u64,
    pub(crate) total: u64,
    pub(crate) left: Option<Duration>,
}

/// What a join came to.
#[derive(Debug)]
pub(crate) struct Joined {
    pub(crate) took: Duration,
    pub(crate) height: u64,
    pub(crate) root: String,
    /// Bytes of answers that came.
    pub(crate) received: u64,
    pub(crate) told: Vec<Told>,
    /// The most memory it had.
    pub(crate) memory: u64,
    /// How long it was on a processor.
    pub(crate) worked: Duration,
}

/// A node that joins.
#[derive(Debug)]
pub(crate) struct Joiner {
    child: Child,
    started: Instant,
    staging: PathBuf,
    lines: Receiver<(Duration, String)>,
    end: Option<JoinHandle<String>>,
    told: Vec<Told>,
    /// What it said that is no progress.
    complaints: Vec<String>,
    memory: u64,
    worked: Duration,
    /// Batches that were seen, by name.
    batches: BTreeMap<std::ffi::OsString, u64>,
}

impl Joiner {
    /// Starts a command that joins, in a home.
    pub(crate) fn start(mut command: Command, home: &Path) -> Result<Self, String> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{command:?}: {error}"))?;
        let started = Instant::now();
        let (tell, lines) = channel();
        let stderr = BufReader::new(child.stderr.take().expect("it is piped"));
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = tell.send((started.elapsed(), line));
            }
        });
        let mut stdout = child.stdout.take().expect("it is piped");
        let end = std::thread::spawn(move || {
            let mut said = String::new();
            let _ = stdout.read_to_string(&mut said);
            said
        });
        Ok(Self {
            child,
            started,
            staging: home.join("data/joining"),
            lines,
            end: Some(end),
            told: Vec::new(),
            complaints: Vec::new(),
            memory: 0,
            worked: Duration::ZERO,
            batches: BTreeMap::new(),
        })
    }

    /// Bytes of units that are staged.
    pub(crate) fn staged(&mut self) -> u64 {
        staged(&self.staging, &mut self.batches)
    }

    /// Waits until so many bytes are staged. An error if it ends before.
    pub(crate) fn reaches(&mut self, bytes: u64) -> Result<(), String> {
        while self.staged() < bytes {
            self.look();
            if self.child.try_wait().map_err(|error| error.to_string())?.is_some() {
                return Err(format!("it ended before {bytes} bytes were staged: {}", self.complaints.join("; ")));
            }
            self.pause()?;
        }
        Ok(())
    }

    /// Waits for so long. Whether it still runs.
    pub(crate) fn runs_for(&mut self, time: Duration) -> Result<bool, String> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.look();
            if self.child.try_wait().map_err(|error| error.to_string())?.is_some() {
                return Ok(false);
            }
            self.pause()?;
        }
        Ok(true)
    }

    /// Waits for its end.
    pub(crate) fn join(mut self) -> Result<Joined, String> {
        let status = loop {
            self.look();
            if let Some(status) = self.child.try_wait().map_err(|error| error.to_string())? {
                break status;
            }
            self.pause()?;
        };
        let took = self.started.elapsed();
        let said = self.end.take().and_then(|end| end.join().ok()).unwrap_or_default();
        self.look();
        if !status.success() {
            return Err(format!("the joiner ended with {status}: {}", self.complaints.join("; ")));
        }
        let said: Value = serde_json::from_str(said.trim()).map_err(|error| format!("it said {said:?}: {error}"))?;
        let number = |name: &str| said[name].as_u64().ok_or_else(|| format!("no {name} in {said}"));
        Ok(Joined {
            took,
            height: number("height")?,
            root: said["root"].as_str().unwrap_or_default().to_owned(),
            received: number("received_bytes")?,
            told: std::mem::take(&mut self.told),
            memory: self.memory,
            worked: self.worked,
        })
    }

    /// Kills it, as hard as it goes.
    pub(crate) fn kill(mut self) -> Result<(), String> {
        self.child.kill().and_then(|()| self.child.wait()).map_err(|error| error.to_string())?;
        Ok(())
    }

    fn pause(&self) -> Result<(), String> {
        if self.started.elapsed() > PATIENCE {
            return Err(format!("the joiner had not ended after {} s", PATIENCE.as_secs()));
        }
        std::thread::sleep(LOOK_EVERY);
        Ok(())
    }

    /// Takes in what it said, and what memory it has.
    fn look(&mut self) {
        for (at, line) in self.lines.try_iter() {
            let said: Value = serde_json::from_str(&line).unwrap_or_default();
            let progress = &said["progress"];
            match (progress["bytes"].as_u64(), progress["bytes_total"].as_u64()) {
                (Some(bytes), Some(total)) => {
                    let left = progress["left_ms"].as_u64().map(Duration::from_millis);
                    self.told.push(Told { at, bytes, total, left });
                }
                _ if progress.is_null() => self.complaints.push(line),
                _ => {}
            }
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let most =
            status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
        self.memory = self.memory.max(most.unwrap_or(0) << 10);
        self.worked = self.worked.max(worked(self.child.id()));
    }
}

impl Drop for Joiner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How long a process was on a processor, to the hundredth of a second; zero once it is gone.
fn worked(process: u32) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // Behind the name, which may hold anything: user's and system's time are the twelfth and thirteenth.
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    Duration::from_millis(fields.filter_map(|field| field.parse::<u64>().ok()).sum::<u64>() * 10)
}

/// Bytes in the batches of a staging directory. Those that were seen before are not looked at again.
fn staged(directory: &Path, seen: &mut BTreeMap<std::ffi::OsString, u64>) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    let mut now = BTreeMap::new();
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let len = seen.get(&name).copied().or_else(|| entry.metadata().ok().map(|found| found.len()));
        now.insert(name, len.unwrap_or(0));
    }
    *seen = now;
    seen.values().sum()
}
