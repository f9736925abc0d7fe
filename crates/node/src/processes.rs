//! Processes that end with the one that started them, however that ends.
//!
//! All of them are put into one process group before they run. Its leader is a process that only reads a pipe whose other
//! end its starter holds: when that end closes, by a clean stop or because the starter was killed, it removes what was
//! registered with it and kills the whole group with a signal nobody can refuse. A process that is added is in the
//! group from its first instruction on, so there is no moment at which it could be left behind.

use crate::exit::Failure;
use crate::interrupt::listen;
use rustix::process::{Pid, Signal, getpgrp, kill_process, kill_process_group};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a process may take to end by itself once asked to.
pub(crate) const STOP: Duration = Duration::from_secs(10);
/// How often it is looked whether a process has ended.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Bytes of a log that are searched for its last lines.
const TAIL_BYTES: u64 = 16 * 1024;

/// A group of processes that ends with this one.
pub(crate) struct Group {
    leader: i32,
    reaper: Mutex<Child>,
    /// Closed when dropped, and by the system when this process dies.
    alive: Mutex<Option<ChildStdin>>,
}

impl Group {
    /// Starts the group's leader: this program, which runs [`reap`]. A file that is locked stays so until it has ended, too:
    /// who finds it free finds nothing of the group.
    pub(crate) fn start(locked: Option<&File>) -> std::io::Result<Self> {
        let mut program = Command::new(std::env::current_exe()?);
        // What it says is said when nobody listens any more, so its output is free to hold a file open.
        let output = match locked {
            Some(file) => file.try_clone()?.into(),
            None => Stdio::null(),
        };
        program.args(["testnet", "reap"]).stdin(Stdio::piped()).stdout(output).stderr(Stdio::null());
        let mut reaper = program.process_group(0).spawn()?;
        let leader = i32::try_from(reaper.id()).map_err(std::io::Error::other)?;
        let alive = Mutex::new(reaper.stdin.take());
        Ok(Self { leader, reaper: Mutex::new(reaper), alive })
    }

    /// Registers what is to be removed when the group ends: arguments of `ip`.
    pub(crate) fn remove_at_end(&self, arguments: &[String]) -> std::io::Result<()> {
        let mut alive = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        let pipe = alive.as_mut().ok_or(std::io::ErrorKind::BrokenPipe)?;
        pipe.write_all(format!("{}\n", arguments.join(" ")).as_bytes())
    }

    /// Starts a process in the group, with its output as the command has it and no input.
    pub(crate) fn spawn(&self, mut command: Command) -> std::io::Result<Process> {
        let child = command.stdin(Stdio::null()).process_group(self.leader).spawn()?;
        Ok(Process { child, paused: false, ended: None })
    }

    /// As [`Self::spawn`], its output appended to a log.
    pub(crate) fn spawn_logged(&self, mut command: Command, log: &Path) -> std::io::Result<Process> {
        let file = OpenOptions::new().create(true).append(true).open(log)?;
        command.stdout(file.try_clone()?).stderr(file);
        self.spawn(command)
    }

    /// Ends everything that is left of the group, which nobody can be added to any more.
    pub(crate) fn end(&self) {
        *self.alive.lock().unwrap_or_else(PoisonError::into_inner) = None;
        // A reaper that cannot be waited for is gone already.
        let _ = self.reaper.lock().unwrap_or_else(PoisonError::into_inner).wait();
    }
}

/// What the leader of a group does: waits for the end of its input, then removes what it was told and kills the group,
/// itself included.
pub(crate) fn reap() -> Failure {
    // When the starter dies while a process of the group is stopped, the system sends SIGHUP to all of the group, which
    // would end its leader before it has done what it is there for.
    let deaf = match listen() {
        Ok(deaf) => deaf,
        Err(error) => return Failure::io("could not set signals aside", &error),
    };
    let lines: Vec<String> = std::io::stdin().lock().lines().map_while(Result::ok).collect();
    // Stopped processes hold nothing that is removed here; links go at once, namespaces with their last process.
    for line in lines {
        let arguments: Vec<&str> = line.split(' ').collect();
        // What was registered and never made cannot be removed, and there is nobody left to tell.
        let _ = ip(&arguments);
    }
    let killed = kill_process_group(getpgrp(), Signal::KILL);
    drop(deaf);
    Failure::error(format!("the group could not be killed: {killed:?}"))
}

/// A process of a group.
pub(crate) struct Process {
    child: Child,
    paused: bool,
    ended: Option<ExitStatus>,
}

/// What a process is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub(crate) enum State {
    /// It runs.
    Running { pid: u32 },
    /// It was stopped with SIGSTOP.
    Paused { pid: u32 },
    /// It has ended, with this code or by this signal.
    Ended { code: Option<i32>, signal: Option<i32> },
    /// It was not started.
    Off,
}

impl Process {
    /// One of no group, for a test: a group's leader is this program's binary, which a test is not.
    #[cfg(test)]
    pub(crate) fn alone(mut command: Command) -> std::io::Result<Self> {
        let child = command.stdin(Stdio::null()).spawn()?;
        Ok(Self { child, paused: false, ended: None })
    }

    /// What it is doing now.
    pub(crate) fn state(&mut self) -> State {
        if self.ended.is_none() {
            // An error means that somebody else has waited for it: it is gone, how is not known.
            self.ended = self.child.try_wait().unwrap_or(Some(ExitStatus::from_raw(0)));
        }
        let pid = self.child.id();
        match self.ended {
            Some(status) => State::Ended { code: status.code(), signal: status.signal() },
            None if self.paused => State::Paused { pid },
            None => State::Running { pid },
        }
    }

    /// Whether it has not ended.
    pub(crate) fn is_alive(&mut self) -> bool {
        matches!(self.state(), State::Running { .. } | State::Paused { .. })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it says, if its command pipes that; once.
    pub(crate) fn output(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Stops it for as long as it is not resumed, as a machine does that has other things to do.
    pub(crate) fn pause(&mut self) -> std::io::Result<()> {
        self.signal(Signal::STOP)?;
        self.paused = true;
        Ok(())
    }

    /// Lets it go on.
    pub(crate) fn resume(&mut self) -> std::io::Result<()> {
        self.signal(Signal::CONT)?;
        self.paused = false;
        Ok(())
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) -> std::io::Result<()> {
        self.child.kill()?;
        self.ended = Some(self.child.wait()?);
        Ok(())
    }

    /// Waits for its end, for as long as that takes.
    pub(crate) fn wait(&mut self) -> std::io::Result<ExitStatus> {
        let status = self.child.wait()?;
        self.ended = Some(status);
        Ok(status)
    }

    /// Asks it to end.
    pub(crate) fn ask_to_end(&mut self) -> std::io::Result<()> {
        if self.paused {
            self.resume()?;
        }
        self.signal(Signal::TERM)
    }

    /// Waits until it has ended. False if it has not by then.
    pub(crate) fn wait_until(&mut self, deadline: Instant) -> bool {
        while self.is_alive() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        true
    }

    /// Asks it to end, and ends it if it does not.
    pub(crate) fn stop(&mut self) -> std::io::Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        self.ask_to_end()?;
        if self.wait_until(Instant::now() + STOP) { Ok(()) } else { self.kill() }
    }

    /// Sends a signal, unless it has ended: its number could be another's by then.
    fn signal(&mut self, signal: Signal) -> std::io::Result<()> {
        if !self.is_alive() {
            return Err(std::io::Error::new(std::io::ErrorKind::NotFound, "the process has ended"));
        }
        // Ours and not waited for, so the number still means it.
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| std::io::Error::other("a process without a number"))?;
        Ok(kill_process(pid, signal)?)
    }
}

/// The last lines of a file.
pub(crate) fn last_lines(path: &Path, count: usize) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(count)..].join("\n"))
}

/// Runs `ip`, and fails with what it said.
pub(crate) fn ip(arguments: &[&str]) -> Result<String, Failure> {
    let shown = format!("ip {}", arguments.join(" "));
    let output = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Failure::io(format_args!("could not run {shown}"), &error))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Failure::error(format!("{shown}: {said}")).hint("network namespaces need root and iproute2"))
}
