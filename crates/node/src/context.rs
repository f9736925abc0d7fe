//! What a command works with: its home, its settings, and the chain that it asks, be that here or elsewhere.

use crate::alone::Alone;
use crate::api::{Chain, Status};
use crate::application::Application;
use crate::client::{Elsewhere, Remote};
use crate::config::{Config, Origins};
use crate::engine::{self, Engine};
use crate::exit::Failure;
use crate::failures::ANOTHER_PROGRAM;
use crate::generations::{Holder, holder};
use crate::home::{Home, Program};
use crate::keyfile::KeyDir;
use crate::out::{Out, end};
use crate::passphrase::Source;
use crate::tls::{Fingerprint, Identity, Trust};
use crate::tokens;
use crate::watchdog::{Look, Watchdog, endless};
use clap::Args;
use keelstone_execution::Activity;
use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The variable that holds a token for a node elsewhere.
const TOKEN_ENV: &str = "KEELSTONE_TOKEN";
/// The variable that holds the passphrase of encrypted keys.
const PASSPHRASE_ENV: &str = "KEELSTONE_PASSPHRASE";

/// How to reach a node that is not this home's.
#[derive(Debug, Args)]
#[command(next_help_heading = "A node elsewhere")]
pub(crate) struct ElsewhereOptions {
    /// Ask the node at http://HOST:PORT or https://HOST:PORT instead of the chain of this home
    #[arg(long = "node", global = true, value_name = "URL")]
    url: Option<String>,
    /// Believe a node with a certificate of an authority in this file, as PEM
    #[arg(long, global = true, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Believe the node whose certificate has this fingerprint
    #[arg(long, global = true, value_name = "SHA256")]
    pin: Option<String>,
    /// The certificate to show where the node asks for one, as PEM
    #[arg(long, global = true, value_name = "FILE")]
    client_certificate: Option<PathBuf>,
    /// Its key, as PEM, readable by its owner only
    #[arg(long, global = true, value_name = "FILE")]
    client_key: Option<PathBuf>,
    /// The file with the token to send, readable by its owner only; KEELSTONE_TOKEN holds the token itself
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Send the token over plain HTTP to another machine
    #[arg(long, global = true)]
    insecure: bool,
}

/// Where the passphrase of encrypted keys comes from.
#[derive(Debug, Args)]
#[command(next_help_heading = "Encrypted keys")]
pub(crate) struct PassphraseOptions {
    /// The file with the passphrase, readable by its owner only; KEELSTONE_PASSPHRASE holds the passphrase itself
    #[arg(long, global = true, value_name = "FILE", env = "KEELSTONE_PASSPHRASE_FILE")]
    passphrase_file: Option<PathBuf>,
    /// An open file descriptor to read the passphrase from
    #[arg(long, global = true, value_name = "N", conflicts_with = "passphrase_file")]
    passphrase_fd: Option<u32>,
}

/// What a command works with.
pub(crate) struct Context<'a> {
    pub(crate) application: &'a Application,
    pub(crate) out: &'a Out,
    pub(crate) home: Home,
    /// Whether the command line names the home directory: it is not the default, and not that of the environment.
    pub(crate) home_given: bool,
    pub(crate) settings: Vec<String>,
    pub(crate) elsewhere: ElsewhereOptions,
    pub(crate) passphrase: PassphraseOptions,
    /// Those over the chains that this command opened.
    pub(crate) watchdogs: RefCell<Vec<Watchdog>>,
}

impl Context<'_> {
    /// Ends this command when a function runs for too long that is told on `activity`, until what is returned is dropped.
    // spec: EXEC-13
    pub(crate) fn watch(&self, config: &Config, activity: &Activity) -> Result<Watchdog, Failure> {
        let limit = Duration::from_millis(config.execution.watchdog_ms);
        let json = self.out.is_json();
        let told = move |Look { ran, over }| {
            if let Some(function) = over {
                end(&Out::new(json), &endless("command", function, ran), || {});
            }
        };
        Watchdog::start(activity.clone(), limit, told)
            .map_err(|error| Failure::io("could not start the watchdog", &error))
    }

    /// The name of a new chain; the program's own if none is given, so that what is signed for one application is nothing to another.
    pub(crate) fn chain_id(&self, given: Option<String>) -> String {
        given.unwrap_or_else(|| format!("{}-dev", self.application.name))
    }

    /// This program, as the homes know it that it makes blocks in.
    fn program(&self) -> Program {
        let Application { name, registry, .. } = self.application;
        Program { name: name.clone(), interface: registry.interface().to_string() }
    }

    /// What is to be said where another program, or another version of this one, made the last blocks of this home.
    pub(crate) fn of_another_program(&self) -> Option<String> {
        let (last, own) = (self.home.program()?, self.program());
        (last.interface != own.interface).then(|| {
            format!(
                "{} was last written to by {last}, and this is {own}: unless it is another version of the same application, \
                 give another --home",
                self.home.path().display()
            )
        })
    }

    /// What is to be said where this home has blocks of a chain and no word of which program made them. The next one that this program
    /// makes says so from then on.
    pub(crate) fn of_an_unknown_program(&self, chain: &dyn Chain) -> Option<String> {
        (self.home.program().is_none() && chain.block(None).is_ok()).then(|| {
            let own = self.program();
            format!(
                "{} has blocks, and nothing says which program made them (program.json): they are taken for those of {own}; \
                 keelstone replay says whether they come to the same with it",
                self.home.path().display()
            )
        })
    }

    /// Notes that this program makes the blocks here.
    pub(crate) fn note_program(&self) {
        note_program(&self.home, &self.program());
    }

    /// Says of blocks that came to something else than is kept of them who may have made them.
    pub(crate) fn of_whom(&self, failure: Failure) -> Failure {
        match self.of_another_program() {
            Some(another) if failure.hint.as_deref() == Some(ANOTHER_PROGRAM) => failure.hint(another),
            _ => failure,
        }
    }

    /// The configuration of this home directory, read now.
    pub(crate) fn config(&self) -> Result<(Config, Origins), Failure> {
        self.config_with(None)
    }

    /// The same with further settings over it, which an option of a command stands for.
    pub(crate) fn config_with(&self, more: impl IntoIterator<Item = String>) -> Result<(Config, Origins), Failure> {
        let settings: Vec<String> = self.settings.iter().cloned().chain(more).collect();
        Ok(Config::load(&self.home.config(), &settings)?)
    }

    /// The configuration of another home directory.
    pub(crate) fn config_of(&self, home: &Home) -> Result<(Config, Origins), Failure> {
        Ok(Config::load(&home.config(), &self.settings)?)
    }

    /// Refuses settings where no configuration is read: they would change nothing.
    pub(crate) fn reads_no_settings(&self) -> Result<(), Failure> {
        match self.settings.first() {
            Some(setting) => Err(Failure::usage(format!("--set {setting}: this reads no configuration"))),
            None => Ok(()),
        }
    }

    /// Refuses `what` calls functions of a built-in module, in a program that lacks it: that one is of it.
    pub(crate) fn takes(&self, what: &str, function: &str) -> Result<(), Failure> {
        if self.application.registry.find(function).is_some() {
            return Ok(());
        }
        let module = function.split('.').next().unwrap_or_default();
        let message =
            format!("{what} takes the built-in module {module:?}, which this program lacks: it has no {function}");
        Err(Failure::usage(message)
            .hint("keelstone query functions lists what can be called; keelstone_ledger::modules has the rest"))
    }

    /// Tells people where the chain is another program's than this one: what it says and takes may then be misread here.
    pub(crate) fn warn_of_another_interface(&self, status: &Status) {
        let own = self.application.registry.interface().to_string();
        if status.interface != own {
            let message = "the program of that node has another interface than this one (keelstone status): what lies where, and \
                           which functions there are, may differ";
            self.out.warn(&[self.out.called(message)]);
        }
    }

    /// The settings that were given on the command line.
    pub(crate) fn settings(&self) -> &[String] {
        &self.settings
    }

    /// The keys of this home directory, and where their passphrases come from.
    pub(crate) fn keys(&self) -> KeyDir {
        let PassphraseOptions { passphrase_file, passphrase_fd } = &self.passphrase;
        let source = Source::given(passphrase_file.as_deref(), *passphrase_fd, PASSPHRASE_ENV);
        KeyDir::new(self.home.path()).unlocked_by(source)
    }

    /// The chain of the node that was named, if one was; else that of this home directory: the node that runs over it if
    /// there is one, else the directory itself.
    pub(crate) fn chain(&self) -> Result<Arc<dyn Chain>, Failure> {
        if let Some(remote) = self.elsewhere()? {
            return Ok(Arc::new(remote));
        }
        self.home.check_chain()?;
        match self.node() {
            Some(remote) => Ok(Arc::new(remote)),
            None => {
                let (config, _) = self.config()?;
                let engine = self.open_watched(&config)?;
                let another = self.of_another_program().or_else(|| self.of_an_unknown_program(&*engine));
                Ok(Arc::new(Alone::new(engine, config.engine.kind, &self.keys(), another, self.out.is_json())?))
            }
        }
    }

    /// The node that runs over this home directory, if one answers. What a node that was killed has announced is of nobody:
    /// whoever listens there now is somebody else, and would be taken for this chain and sent its token.
    pub(crate) fn node(&self) -> Option<Remote> {
        let announced = self.home.announced_api()?;
        match holder(&self.home.data()) {
            Holder::Process(Some(process)) if process == announced.pid => {
                return Remote::own(&announced, tokens::own(&self.home));
            }
            Holder::Process(_) | Holder::Nobody => return None,
            // Whoever may not look has no business with the token, and goes by what is answered.
            Holder::Unknown => {}
        }
        let remote = Remote::own(&announced, None)?;
        let ours = self.home.read_genesis().ok()?.first_state().ok()?.hash.to_string();
        // One that does not say is asked all the same, and says why.
        let is_another = remote.status().is_ok_and(|status| status.genesis_hash != ours);
        (!is_another).then_some(remote)
    }

    /// Whether a node elsewhere was named.
    pub(crate) fn asks_elsewhere(&self) -> bool {
        self.elsewhere.url.is_some()
    }

    /// The node that was named, if one was.
    fn elsewhere(&self) -> Result<Option<Remote>, Failure> {
        let given = &self.elsewhere;
        let Some(url) = &given.url else { return self.stay_here().map(|()| None) };
        let trust = match (&given.ca, &given.pin) {
            (Some(_), Some(_)) => return Err(Failure::usage("give --ca or --pin, not both")),
            (Some(file), None) => Some(Trust::Authorities(file.clone())),
            (None, Some(text)) => Some(Trust::Pinned(Fingerprint::parse(text)?)),
            (None, None) => None,
        };
        let identity = match (&given.client_certificate, &given.client_key) {
            (Some(certificate), Some(key)) => Some(Identity { certificate: certificate.clone(), key: key.clone() }),
            (None, None) => None,
            _ => return Err(Failure::usage("--client-certificate and --client-key go together")),
        };
        let token = match (&given.token_file, std::env::var(TOKEN_ENV)) {
            (Some(file), _) => Some(tokens::read(file)?),
            (None, Ok(text)) => Some(tokens::given(text, TOKEN_ENV)?),
            (None, Err(std::env::VarError::NotPresent)) => None,
            (None, Err(error)) => return Err(Failure::usage(format!("{TOKEN_ENV}: {error}"))),
        };
        Remote::elsewhere(Elsewhere { url, trust, identity, token, insecure: given.insecure }).map(Some)
    }

    /// Refuses to work on this home where a node elsewhere was named, and what is said about one where none was.
    pub(crate) fn stay_here(&self) -> Result<(), Failure> {
        let given = &self.elsewhere;
        if let Some(url) = &given.url {
            let message = format!("this works on a home directory; the node at {url} cannot be asked");
            return Err(Failure::usage(message));
        }
        let others = [
            ("--ca", given.ca.is_some()),
            ("--pin", given.pin.is_some()),
            ("--client-certificate", given.client_certificate.is_some()),
            ("--client-key", given.client_key.is_some()),
            ("--token-file", given.token_file.is_some()),
            ("--insecure", given.insecure),
        ];
        match others.into_iter().find(|(_, is_given)| *is_given) {
            Some((name, _)) => Err(Failure::usage(format!("{name} is for --node URL"))),
            None => Ok(()),
        }
    }

    /// As [`Self::open_chain`], for an engine that may have the state from its peers.
    pub(crate) fn open_to_join(&self, config: &Config) -> Result<Arc<dyn Engine>, Failure> {
        engine::open_to_join(&self.home, config, &self.application.registry).map(|chain| self.noting(chain))
    }

    /// The chain of this home directory, for a node that watches over its functions itself. Fails if another process has it.
    pub(crate) fn open_to_run(&self, config: &Config) -> Result<Arc<dyn Engine>, Failure> {
        engine::open(&self.home, config, &self.application.registry).map(|chain| self.noting(chain))
    }

    /// The chain of this home directory, in this process, which ends when a function of it does not. Fails if another process
    /// has it.
    pub(crate) fn open_chain(&self) -> Result<Arc<dyn Engine>, Failure> {
        self.open_watched(&self.config()?.0)
    }

    fn open_watched(&self, config: &Config) -> Result<Arc<dyn Engine>, Failure> {
        let chain = self.open_to_run(config)?;
        let registry = &self.application.registry;
        let watchdogs = [self.watch(config, &chain.activity())?, self.watch(config, registry.activity())?];
        self.watchdogs.borrow_mut().extend(watchdogs);
        Ok(chain)
    }

    /// Has the home say which program makes its blocks, with the first that this one makes.
    fn noting(&self, chain: Arc<dyn Engine>) -> Arc<dyn Engine> {
        let (home, own, first) = (self.home.clone(), self.program(), AtomicBool::new(true));
        chain.on_commit(Box::new(move |_| {
            if first.swap(false, Ordering::Relaxed) {
                note_program(&home, &own);
            }
        }));
        chain
    }
}

/// Notes which program makes the blocks of a home. It is for people, and no reason not to make them.
fn note_program(home: &Home, program: &Program) {
    if let Err(error) = home.note_program(program) {
        tracing::warn!(%error, "which program makes the blocks here could not be noted in program.json");
    }
}
