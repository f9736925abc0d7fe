//! Signals that ask this process to end, and the directories that go with it.

use crate::exit::{Exit, Failure};
use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How often the removal of a directory is tried that is still written into, and how far apart.
const REMOVALS_MAX: u32 = 50;
const REMOVAL_PAUSE: Duration = Duration::from_millis(20);

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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let hear = |kind| runtime.block_on(async { signal(kind) });
    let signals = [hear(SignalKind::interrupt())?, hear(SignalKind::terminate())?, hear(SignalKind::hangup())?];
    Ok((runtime, signals))
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
