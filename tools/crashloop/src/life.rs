//! A child as its parent has it: what it says, how long that may take, and its end.
//!
//! Each is in a process group of its own, which ends with whatever the child has started: `strace` leaves what it traced
//! behind when it is killed. What hangs is a failure as what is missing is, so nothing here waits for ever.

use rustix::process::{Pid, Signal, kill_process_group};
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How long a child may be silent, and a look may take: each takes milliseconds, or seconds on a machine with much to do.
pub const PATIENCE: Duration = Duration::from_secs(60);

const SIGKILL: i32 = 9;

/// The child that runs, if one does: whoever ends this process ends that first.
#[derive(Debug, Clone, Default)]
pub struct Running(Arc<Mutex<Option<Pid>>>);

impl Running {
    /// Kills the child when this process is asked to end, removes the directory, and ends this process.
    ///
    /// # Errors
    /// If signals cannot be heard.
    pub fn end_when_told(&self, place: PathBuf) -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listen = |kind| runtime.block_on(async { signal(kind) });
        let [mut hangup, mut interrupt, mut terminate] =
            [listen(SignalKind::hangup())?, listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?];
        let running = self.clone();
        std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = hangup.recv() => {}
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            });
            // Held to the end: nobody starts another child, or judges the end of this one.
            let child = running.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(group) = *child {
                let _ = kill_process_group(group, Signal::KILL);
            }
            // A look may write into it meanwhile, and fails once what it is in has gone.
            while matches!(std::fs::remove_dir_all(&place), Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty)
            {
            }
            std::process::exit(1);
        });
        Ok(())
    }
}

/// A child at work. Killed when let go of.
#[derive(Debug)]
pub struct Life {
    child: Child,
    group: Pid,
    lines: Receiver<String>,
    running: Running,
}

/// What a child came to.
#[derive(Debug)]
pub struct Ended {
    /// What it said that was not heard before.
    pub said: Vec<String>,
    /// How it ended.
    pub status: ExitStatus,
    /// What it said on standard error.
    pub complaint: String,
}

impl Ended {
    /// Whether SIGKILL ended it.
    #[must_use]
    pub fn is_killed(&self) -> bool {
        self.status.signal() == Some(SIGKILL)
    }
}

impl Life {
    /// Starts a child.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(command: &mut Command, running: &Running) -> Result<Self, String> {
        let mut runs = running.0.lock().unwrap_or_else(PoisonError::into_inner);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().map_err(|error| format!("{command:?} could not be started: {error}"))?;
        let (tell, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().ok_or("a child without an output")?);
        // Ends with the child.
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
        let group = Pid::from_child(&child);
        *runs = Some(group);
        Ok(Self { child, group, lines, running: running.clone() })
    }

    /// So many of its next lines, or fewer if it ends before.
    ///
    /// # Errors
    /// If it is silent for longer than `patience`.
    pub fn hear(&self, count: usize, patience: Duration) -> Result<Vec<String>, String> {
        let mut said = Vec::new();
        while said.len() < count {
            match self.lines.recv_timeout(patience) {
                Ok(line) => said.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    return Err(format!(
                        "a child hangs: it was silent for {} s after {:?}",
                        patience.as_secs(),
                        said.last()
                    ));
                }
            }
        }
        Ok(said)
    }

    /// Kills it.
    ///
    /// # Errors
    /// If it had ended by itself.
    pub fn kill(mut self) -> Result<Ended, String> {
        let ended = self.child.try_wait().map_err(|error| error.to_string())?;
        if ended.is_none() {
            let killed = kill_process_group(self.group, Signal::KILL);
            killed.map_err(|error| format!("a child could not be killed: {error}"))?;
        }
        let ended_by_itself = ended.is_some();
        let ended = self.end()?;
        if ended_by_itself || !ended.is_killed() || !ended.complaint.is_empty() {
            let Ended { said, status, complaint } = ended;
            return Err(format!("a child ended by itself, {status}: {complaint} {:?}", said.last()));
        }
        Ok(ended)
    }

    /// Asks it to end, as whoever stops a service does.
    ///
    /// # Errors
    /// If it has ended already.
    pub fn ask_to_end(&self) -> Result<(), String> {
        kill_process_group(self.group, Signal::TERM)
            .map_err(|error| format!("a child could not be asked to end: {error}"))
    }

    /// Waits until it ends.
    ///
    /// # Errors
    /// If it is silent for longer than [`PATIENCE`].
    pub fn end(mut self) -> Result<Ended, String> {
        let said = self.hear(usize::MAX, PATIENCE)?;
        let status = self.child.wait().map_err(|error| error.to_string())?;
        let mut complaint = Vec::new();
        let mut stderr = self.child.stderr.take().ok_or("a child without a second output")?;
        stderr.read_to_end(&mut complaint).map_err(|error| error.to_string())?;
        Ok(Ended { said, status, complaint: String::from_utf8_lossy(&complaint).into_owned() })
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let mut runs = self.running.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Not waited for yet, or its number could be another's: then there is nobody left in the group.
        if let Ok(None) = self.child.try_wait() {
            let _ = kill_process_group(self.group, Signal::KILL);
            let _ = self.child.wait();
        }
        *runs = None;
    }
}

/// Does what may hang. If it does, this process says so and ends: a thread cannot be ended.
pub fn in_time<T>(what: String, act: impl FnOnce() -> T) -> T {
    let (done, waits) = channel::<()>();
    std::thread::spawn(move || {
        if waits.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            eprintln!("crashloop: {what} hangs: it takes more than {} s", PATIENCE.as_secs());
            std::process::exit(1);
        }
    });
    let out = act();
    drop(done);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Life {
        Life::start(Command::new("sh").args(["-c", script]), &Running::default()).unwrap()
    }

    #[test]
    fn a_child_that_hangs_is_told() {
        let life = shell("echo one; sleep 600");
        assert_eq!(life.hear(1, PATIENCE).unwrap(), ["one"]);
        let told = life.hear(1, Duration::from_millis(50)).unwrap_err();
        assert!(told.contains("hangs"), "{told}");
    }

    /// A child that the store's own bug ends is not taken for one that was killed here.
    #[test]
    fn a_child_that_ends_by_itself_is_told() {
        for script in ["kill -s SEGV $$", "kill -s KILL $$", "exit 0", "echo oh >&2; sleep 600"] {
            let life = shell(script);
            if script.contains("sleep") {
                std::thread::sleep(Duration::from_millis(200));
            } else {
                assert_eq!(life.hear(1, PATIENCE).unwrap(), [""; 0]);
                std::thread::sleep(Duration::from_millis(50));
            }
            let told = life.kill().unwrap_err();
            assert!(told.contains("ended by itself"), "{script}: {told}");
        }
        assert!(shell("echo one; sleep 600").kill().is_ok());
    }
}
