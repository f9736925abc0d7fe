//! The process that owns a running network: does what it is asked, by the socket or from within, one thing at a time.

use super::control::{self, Request};
use super::layout::LOCK;
use super::network::Network;
use super::watch::{NodeStatus, observe};
use crate::exit::{Exit, Failure};
use serde_json::{Value, json};
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Connections of commands that are served at a time; further ones wait.
const COMMANDS_MAX: usize = 64;
/// How long an engine may take to answer once it was started, and how often it is looked.
const ENGINE_ANSWERS: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A running network and everything that may be asked of it.
#[derive(Clone)]
pub(crate) struct Owner {
    /// None once it was stopped.
    network: Arc<Mutex<Option<Network>>>,
    stopped: Sender<()>,
}

/// The directory of a network, held by one process. Released by the system when that process dies.
pub(crate) struct Held(File);

impl Held {
    /// The file that is locked.
    pub(crate) fn file(&self) -> &File {
        &self.0
    }

    /// Takes a directory.
    ///
    /// # Errors
    /// [`Exit::InUse`] if another process has it.
    pub(crate) fn take(dir: &Path) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::io(format_args!("could not lock {}", dir.display()), &error);
        crate::newfile::create_private_dir(dir).map_err(failed)?;
        let file = File::create(dir.join(LOCK)).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(std::fs::TryLockError::WouldBlock) => {
                let message = format!("the test network in {} runs already", dir.display());
                Err(Failure::new(Exit::InUse, message).hint("keelstone testnet status shows it, down stops it"))
            }
            Err(std::fs::TryLockError::Error(error)) => Err(failed(error)),
        }
    }
}

impl Owner {
    /// Owns a network that was started. The receiver is told once it is stopped on somebody's request.
    pub(crate) fn new(network: Network) -> (Self, Receiver<()>) {
        let (stopped, told) = channel();
        (Self { network: Arc::new(Mutex::new(Some(network))), stopped }, told)
    }

    /// Answers commands on the network's socket for as long as the process lives.
    pub(crate) fn serve(&self, dir: &Path) -> Result<(), Failure> {
        let listener = control::listen(dir)?;
        let owner = self.clone();
        let served = Arc::new(());
        let serve = move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { continue };
                while Arc::strong_count(&served) > COMMANDS_MAX {
                    std::thread::sleep(Duration::from_millis(10));
                }
                let (owner, one) = (owner.clone(), served.clone());
                let answered = std::thread::Builder::new().name("command".to_owned()).spawn(move || {
                    owner.answer(&stream);
                    drop(one);
                });
                if let Err(error) = answered {
                    tracing::warn!(%error, "a command could not be served");
                }
            }
        };
        std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(serve)
            .map(drop)
            .map_err(|error| Failure::io("could not start answering commands", &error))
    }

    fn answer(&self, stream: &UnixStream) {
        let request = control::read(stream);
        let down = matches!(request, Ok(Request::Down));
        control::answer(stream, request.and_then(|request| self.handle(request)));
        if down {
            // Nobody waits for it if the process is already about to end.
            let _ = self.stopped.send(());
        }
    }

    /// Does what is asked.
    pub(crate) fn handle(&self, request: Request) -> Result<Value, Failure> {
        match request {
            Request::Status => Ok(json!({ "nodes": self.status()? })),
            Request::Join { state_sync, supervised, engine_settings } => {
                self.with(|network| network.join(state_sync, supervised, &engine_settings))
            }
            Request::Kill { node, part } => self.with(|network| network.kill(&node, part)),
            Request::Pause { node, part, millis } => {
                let (pids, pause) = self.with(|network| network.pause(&node, part))?;
                self.later(millis, move |network| network.resume(&node, pause))?;
                Ok(json!(pids))
            }
            Request::Disconnect { node, millis } => {
                let disconnection = self.with(|network| network.disconnect(&node))?;
                self.later(millis, move |network| {
                    if let Err(failure) = network.reconnect(&node, disconnection) {
                        tracing::error!(%failure, node, "could not be joined again");
                    }
                })?;
                Ok(Value::Null)
            }
            Request::Restart { node, part } => self.with(|network| network.restart(&node, part)),
            Request::Wipe { node, part, state_sync } => {
                let wiped = self.with(|network| network.wipe(&node, part, state_sync))?;
                self.until_engine_answers(&node)?;
                Ok(wiped)
            }
            Request::Down => {
                self.stop();
                Ok(Value::Null)
            }
        }
    }

    /// Waits until a node's engine answers: one that cannot go on with what it finds ends before it does. Waits outside the
    /// lock, for whoever begins anew may have many blocks to run first.
    fn until_engine_answers(&self, name: &str) -> Result<(), Failure> {
        let rpc = self.with(|network| Ok(network.layout.node(name)?.rpc()))?;
        let deadline = Instant::now() + ENGINE_ANSWERS;
        while rpc.status().is_err() {
            self.with(|network| network.engine_ended(name))?;
            if Instant::now() >= deadline {
                let message = format!("cometbft of {name} has not answered for {} s", ENGINE_ANSWERS.as_secs());
                return Err(Failure::error(message).hint("keelstone testnet status shows whether it gets there"));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// How every node stands. Nodes are asked outside the lock: one that hangs holds up nobody else.
    pub(crate) fn status(&self) -> Result<Vec<NodeStatus>, Failure> {
        let known = self.with(|network| Ok(network.known()))?;
        Ok(observe(known))
    }

    /// Works with the network.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut Network) -> Result<T, Failure>) -> Result<T, Failure> {
        match self.lock().as_mut() {
            Some(network) => act(network),
            None => Err(Failure::new(Exit::NoChain, "the test network was stopped")),
        }
    }

    /// Stops everything, once.
    pub(crate) fn stop(&self) {
        // The lock is held until all has ended: whoever asks next finds a network that is gone, not one that goes.
        let mut held = self.lock();
        if let Some(network) = held.take() {
            network.stop();
        }
    }

    fn later(&self, millis: u64, act: impl FnOnce(&mut Network) + Send + 'static) -> Result<(), Failure> {
        let owner = self.clone();
        let wait = move || {
            std::thread::sleep(Duration::from_millis(millis));
            // Stopped meanwhile: nothing is left to be done.
            let _ = owner.with(|network| {
                act(network);
                Ok(())
            });
        };
        let started = std::thread::Builder::new().name("later".to_owned()).spawn(wait);
        started.map(drop).map_err(|error| Failure::io("could not start a timer", &error))
    }

    /// A thread that panicked while it worked with the network left processes that can still be stopped.
    fn lock(&self) -> MutexGuard<'_, Option<Network>> {
        self.network.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
