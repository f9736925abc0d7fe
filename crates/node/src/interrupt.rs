//! Signals that ask this process to end: what is stopped then where it can be, and the directories that go with it.

use crate::exit::{Exit, Failure};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How often the removal of a directory is tried that is still written into, and how far apart.
const REMOVALS_MAX: u32 = 50;
const REMOVAL_PAUSE: Duration = Duration::from_millis(20);
/// How often whoever waits for [`Stop::asked`] looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Whether this process was asked to end, for work that takes long and has something to say and to put on record when it is cut
/// off. Clones are of the same; the default is never asked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// From here on SIGINT and SIGTERM ask this, and end the process no longer; a second one does, at once, as long as anybody
    /// holds this: not everything that takes long looks.
    ///
    /// SIGHUP is left as it is: whoever is to outlive a terminal was started to ignore it.
    pub(crate) fn on_signal() -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::io("could not listen to signals", &error);
        let runtime = waiting().map_err(failed)?;
        let hear = |kind| runtime.block_on(async { signal(kind) });
        let (mut interrupt, mut terminate) =
            (hear(SignalKind::interrupt()).map_err(failed)?, hear(SignalKind::terminate()).map_err(failed)?);
        let stop = Self::default();
        let told = Arc::downgrade(&stop.0);
        let wait = move || {
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                    }
                    let Some(asked) = told.upgrade() else { return };
                    if asked.swap(true, Ordering::Relaxed) {
                        std::process::exit(i32::from(Exit::Error as u8));
                    }
                }
            });
        };
        std::thread::Builder::new().name("signals".to_owned()).spawn(wait).map_err(failed)?;
        Ok(stop)
    }

    /// What says so, for whoever waits for others.
    pub(crate) fn flag(&self) -> &AtomicBool {
        &self.0
    }

    /// Whether it was.
    pub(crate) fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Asks, as a signal does.
    #[cfg(test)]
    pub(crate) fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// What to end with once it was.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.is_asked() { Err(Failure::error("stopped by a signal")) } else { Ok(()) }
    }

    /// Waits until it is.
    pub(crate) async fn asked(self) {
        while !self.is_asked() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// Makes a directory that is removed if this process is interrupted, which then ends. Who asked for it removes it otherwise.
/// `before` ends other processes that work in it: they would put back what is removed.
pub(crate) fn passing(
    make: impl FnOnce() -> Result<PathBuf, Failure>,
    before: impl FnOnce() + Send + 'static,
) -> Result<PathBuf, Failure> {
    let interrupted = wait_for_signals()?;
    let dir = make()?;
    remove_once(interrupted, dir.clone(), before)?;
    Ok(dir)
}

/// Is told once SIGINT, SIGTERM or SIGHUP has come. Listened to from here on.
pub(crate) fn wait_for_signals() -> Result<Receiver<()>, Failure> {
    let failed = |error: std::io::Error| Failure::io("could not listen to signals", &error);
    let (runtime, [mut interrupt, mut terminate, mut hangup]) = listen().map_err(failed)?;
    let (told, receiver) = std::sync::mpsc::channel();
    let wait = move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        });
        // Nobody listens any more: what was to be stopped is being stopped for another reason.
        let _ = told.send(());
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(wait).map_err(failed)?;
    Ok(receiver)
}

/// From here on SIGINT, SIGTERM and SIGHUP end this process no longer: they come here, in this order.
pub(crate) fn listen() -> std::io::Result<(Runtime, [Signal; 3])> {
    let runtime = waiting()?;
    let hear = |kind| runtime.block_on(async { signal(kind) });
    let signals = [hear(SignalKind::interrupt())?, hear(SignalKind::terminate())?, hear(SignalKind::hangup())?];
    Ok((runtime, signals))
}

/// What waits for signals.
fn waiting() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Removes a directory and ends this process once it is interrupted.
fn remove_once(interrupted: Receiver<()>, dir: PathBuf, before: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let remove = move || {
        if interrupted.recv().is_err() {
            return;
        }
        before();
        // The command may write into it meanwhile, but not for long: what it is in is going.
        for _ in 0..REMOVALS_MAX {
            match std::fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => std::thread::sleep(REMOVAL_PAUSE),
                _ => break,
            }
        }
        std::process::exit(i32::from(Exit::Error as u8));
    };
    std::thread::Builder::new()
        .name("interrupted".to_owned())
        .spawn(remove)
        .map(drop)
        .map_err(|error| Failure::io("could not wait for signals", &error))
}
