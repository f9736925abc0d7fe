//! The command line: what can be said, and which command it goes to.

use crate::alone::Alone;
use crate::api::{Chain, Named, Status};
use crate::client::{Elsewhere, Remote};
use crate::commands;
use crate::config::{Config, Origins};
use crate::engine::{self, Engine};
use crate::exit::{Exit, Failure};
use crate::failures::ANOTHER_PROGRAM;
use crate::generations::{Holder, holder};
use crate::home::{Home, Program};
use crate::keyfile::KeyDir;
use crate::out::report;
use crate::out::{NAME, Out};
use crate::passphrase::Source;
use crate::tls::{Fingerprint, Identity, Trust};
use crate::tokens;
use crate::watchdog::{Look, Watchdog, halt};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use keelstone_execution::{Activity, Registry, runs_function};
use keelstone_store::kv::catches_panics;
use std::cell::RefCell;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The option that overrides a setting, which stands wherever its user likes and counts each time.
const SETTINGS: &str = "settings";
/// The variable that holds a token for a node elsewhere.
const TOKEN_ENV: &str = "KEELSTONE_TOKEN";
/// The variable that holds the passphrase of encrypted keys.
const PASSPHRASE_ENV: &str = "KEELSTONE_PASSPHRASE";

/// A chain with its functions, and the command line around it.
///
/// ```no_run
/// # use keelstone_execution::Registry;
/// let registry = Registry::new(); // with the functions of one's own
/// let _ = keelstone_node::Application::new(registry).name("my-chain").main();
/// ```
#[derive(Debug, Clone)]
pub struct Application {
    pub(crate) name: String,
    version: Option<String>,
    pub(crate) registry: Registry,
}

/// A verifiable state engine: execute bundles, commit roots, prove state.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, disable_help_subcommand = true, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command understands.
#[derive(Debug, Args)]
struct Global {
    /// Directory of the chain: configuration, keys and data
    #[arg(long, global = true, value_name = "DIR", env = "KEELSTONE_HOME")]
    home: Option<PathBuf>,
    /// Whether the command line says it, and not only the environment.
    #[arg(skip)]
    home_given: bool,
    /// Print JSON for programs instead of text for people
    #[arg(long, global = true)]
    json: bool,
    /// Override one setting, as section.name=value; may be repeated
    #[arg(id = SETTINGS, long = "set", value_name = "SETTING")]
    settings: Vec<String>,
    #[command(flatten)]
    elsewhere: ElsewhereOptions,
    #[command(flatten)]
    passphrase: PassphraseOptions,
}

/// How to reach a node that is not this home's.
#[derive(Debug, Args)]
#[command(next_help_heading = "A node elsewhere")]
struct ElsewhereOptions {
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
struct PassphraseOptions {
    /// The file with the passphrase, readable by its owner only; KEELSTONE_PASSPHRASE holds the passphrase itself
    #[arg(long, global = true, value_name = "FILE", env = "KEELSTONE_PASSPHRASE_FILE")]
    passphrase_file: Option<PathBuf>,
    /// An open file descriptor to read the passphrase from
    #[arg(long, global = true, value_name = "N", conflicts_with = "passphrase_file")]
    passphrase_fd: Option<u32>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Audit(commands::audit::Options),
    Bench(commands::bench::Options),
    Bundle(commands::bundle::Options),
    Check(commands::check::Options),
    Completions(commands::completions::Options),
    Config(commands::config::Options),
    Conflict(commands::conflict::Options),
    Db(commands::db::Options),
    Demo(commands::demo::Options),
    Export(commands::export::Options),
    History(commands::history::Options),
    Import(commands::import::Options),
    Init(commands::init::Options),
    Keys(commands::keys::Options),
    Mirror(commands::mirror::Options),
    Node(commands::node::Options),
    Proof(commands::proof::Options),
    Query(commands::query::Options),
    Rebuild(commands::rebuild::Options),
    Recover(commands::recover::Options),
    Replay(commands::replay::Options),
    Rollback(commands::rollback::Options),
    Session(commands::session::Options),
    Snapshot(commands::snapshot::Options),
    Statesync(commands::statesync::Options),
    Status(commands::status::Options),
    Sync(commands::sync::Options),
    Testnet(commands::testnet::Options),
    Token(commands::token::Options),
    Tx(commands::tx::Options),
}

impl Command {
    /// Whether it asks a chain for what it says, or sends it something: the node that was named, or this home's. What does
    /// not works here, and must not where a node elsewhere was named.
    fn asks(&self) -> bool {
        match self {
            Self::Audit(options) => options.asks(),
            Self::Bundle(options) => options.asks(),
            Self::Tx(options) => options.asks(),
            Self::Conflict(_) | Self::History(_) | Self::Query(_) | Self::Session(_) | Self::Status(_) => true,
            Self::Bench(_)
            | Self::Check(_)
            | Self::Completions(_)
            | Self::Config(_)
            | Self::Db(_)
            | Self::Demo(_)
            | Self::Export(_)
            | Self::Import(_)
            | Self::Init(_)
            | Self::Keys(_)
            | Self::Mirror(_)
            | Self::Node(_)
            | Self::Proof(_)
            | Self::Rebuild(_)
            | Self::Recover(_)
            | Self::Replay(_)
            | Self::Rollback(_)
            | Self::Snapshot(_)
            | Self::Statesync(_)
            | Self::Sync(_)
            | Self::Testnet(_)
            | Self::Token(_) => false,
        }
    }
}

/// Has each command below this one take an option of its own: of one that is global the parser keeps what stands after a command and
/// forgets what stands before it.
fn taking(command: clap::Command, option: &Arg) -> clap::Command {
    command.mut_subcommands(|below| taking(below.arg(option.clone()), option))
}

/// All settings of a command line, in the order in which they stand there.
fn settings(mut matches: &ArgMatches) -> Vec<String> {
    let mut settings = Vec::new();
    loop {
        settings.extend(matches.get_many::<String>(SETTINGS).unwrap_or_default().cloned());
        match matches.subcommand() {
            Some((_, below)) => matches = below,
            None => return settings,
        }
    }
}

/// What a command works with.
pub(crate) struct Context<'a> {
    pub(crate) application: &'a Application,
    pub(crate) out: &'a Out,
    pub(crate) home: Home,
    /// Whether the command line names the home directory: it is not the default, and not that of the environment.
    pub(crate) home_given: bool,
    settings: Vec<String>,
    elsewhere: ElsewhereOptions,
    passphrase: PassphraseOptions,
    /// Those over the chains that this command opened.
    watchdogs: RefCell<Vec<Watchdog>>,
}

impl Context<'_> {
    /// Ends this command when a function runs for too long that is told on `activity`, until what is returned is dropped.
    // spec: EXEC-13
    pub(crate) fn watch(&self, activity: &Activity) -> Result<Watchdog, Failure> {
        let limit = Duration::from_millis(self.config()?.0.execution.watchdog_ms);
        let json = self.out.is_json();
        let told = move |Look { ran, over }| {
            if let Some(function) = over {
                halt("command", function, ran, &Out::new(json), || {});
            }
        };
        Watchdog::start(activity.clone(), limit, told)
            .map_err(|error| Failure::io("could not start the watchdog", &error))
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
            None => Ok(Arc::new(Alone::new(self.open_chain()?, self)?)),
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
    fn stay_here(&self) -> Result<(), Failure> {
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
    pub(crate) fn open_to_join(&self) -> Result<Arc<dyn Engine>, Failure> {
        let (config, _) = self.config()?;
        engine::open_to_join(&self.home, &config, &self.application.registry).map(|chain| self.noting(chain))
    }

    /// The chain of this home directory, for a node that watches over its functions itself. Fails if another process has it.
    pub(crate) fn open_to_run(&self) -> Result<Arc<dyn Engine>, Failure> {
        let (config, _) = self.config()?;
        engine::open(&self.home, &config, &self.application.registry).map(|chain| self.noting(chain))
    }

    /// The chain of this home directory, in this process, which ends when a function of it does not. Fails if another process
    /// has it.
    pub(crate) fn open_chain(&self) -> Result<Arc<dyn Engine>, Failure> {
        let chain = self.open_to_run()?;
        let watchdogs = [self.watch(&chain.activity())?, self.watch(self.application.registry.activity())?];
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

impl Application {
    /// A chain with the functions of this registry.
    #[must_use]
    pub fn new(registry: Registry) -> Self {
        Self { name: NAME.to_owned(), version: None, registry }
    }

    /// The name of the program, in its help and completions; and of the directory in the user's own that its chain lives in if
    /// nobody names another: `.NAME`.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The version of the program, which is shown beside Keelstone's: `env!("CARGO_PKG_VERSION")` in its own crate.
    #[must_use]
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = Some(version.into());
        self
    }

    /// The program and its version, if it says one.
    pub(crate) fn named(&self) -> Option<Named> {
        let version = self.version.clone()?;
        Some(Named { name: self.name.clone(), version })
    }

    /// Runs the command this process was started with and says how it ended.
    #[must_use]
    pub fn main(self) -> ExitCode {
        let arguments: Vec<OsString> = std::env::args_os().collect();
        let (json, main) = (asks_for_json(&arguments), std::thread::current().id());
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            // Programs are told once, in JSON, by `run`; a panic of another thread is not what the command ends with.
            let is_told = json && std::thread::current().id() == main;
            let place = || panic.location().map(ToString::to_string).unwrap_or_default();
            if catches_panics() {
                tracing::warn!(place = place(), "the database of blocks panicked, which is told as damage");
            } else if runs_function() {
                tracing::warn!(place = place(), "a function panicked, which ends its bundle");
            } else if !is_told {
                others(panic);
            }
        }));
        self.run(arguments).into()
    }

    /// Runs one command line. The first argument is the program's name, as in `argv`.
    pub fn run(&self, arguments: impl IntoIterator<Item = OsString>) -> Exit {
        let arguments: Vec<OsString> = arguments.into_iter().collect();
        let out = Out::new(asks_for_json(&arguments)).of(&self.name);
        let result = caught(|| {
            self.parse(&out, arguments)
                .and_then(|cli| cli.map_or(Ok(Exit::Ok), |cli| self.dispatch(&out, cli)))
                .and_then(|exit| out.finish().map(|()| exit))
        });
        result.unwrap_or_else(|failure| {
            report(&out, &failure);
            failure.exit
        })
    }

    /// How this program is called, for what to try next.
    pub(crate) fn program(&self) -> String {
        std::env::args().next().unwrap_or_else(|| self.name.clone())
    }

    /// The command line's grammar under the name of this application.
    pub(crate) fn grammar(&self) -> clap::Command {
        let home =
            format!("Directory of the chain: configuration, keys and data [default: ~/{}]", home_name(&self.name));
        let command = Cli::command().name(self.name.clone()).bin_name(self.name.clone());
        let mut command = command.mut_arg("home", |option| option.help(home));
        if let Some(own) = &self.version {
            command = command.version(format!("{own} (Keelstone {})", env!("CARGO_PKG_VERSION")));
        }
        let option = command.get_arguments().find(|option| option.get_id() == SETTINGS).cloned();
        taking(command, &option.expect("every command takes it"))
    }

    /// Reads the command line. `None` if it only asked for help or the version, which are then printed.
    fn parse(&self, out: &Out, arguments: Vec<OsString>) -> Result<Option<Cli>, Failure> {
        use clap::error::ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion};
        let parsed = self.grammar().try_get_matches_from(arguments).and_then(|matches| {
            let mut cli = Cli::from_arg_matches(&matches)?;
            cli.global.home_given = matches.value_source("home") == Some(ValueSource::CommandLine);
            cli.global.settings = settings(&matches);
            Ok(cli)
        });
        match parsed {
            Ok(cli) => Ok(Some(cli)),
            Err(error) if matches!(error.kind(), DisplayHelp | DisplayVersion) => {
                out.write(&if out.has_colour() {
                    error.render().ansi().to_string()
                } else {
                    error.render().to_string()
                });
                Ok(None)
            }
            Err(error) if error.kind() == DisplayHelpOnMissingArgumentOrSubcommand => {
                Err(Failure::usage(error.render().to_string().trim_end()))
            }
            Err(error) => {
                let text = error.render().to_string();
                Err(Failure::usage(text.trim_end().trim_start_matches("error: ")))
            }
        }
    }

    fn dispatch(&self, out: &Out, cli: Cli) -> Result<Exit, Failure> {
        let home_given = cli.global.home_given;
        // A program that is none starts nothing, and so leaves nothing half begun.
        self.registry.check().map_err(|error| Failure::usage(error.to_string()))?;
        let home = Home::new(home(cli.global.home.clone(), &self.name)?);
        let Global { settings, elsewhere, passphrase, .. } = cli.global;
        let watchdogs = RefCell::default();
        let context = Context { application: self, out, home, home_given, settings, elsewhere, passphrase, watchdogs };
        if !cli.command.asks() {
            context.stay_here()?;
        }
        match cli.command {
            Command::Audit(options) => commands::audit::run(options, &context),
            Command::Bench(options) => commands::bench::run(options, &context),
            Command::Bundle(options) => commands::bundle::run(options, &context),
            Command::Check(options) => commands::check::run(options, &context),
            Command::Completions(options) => commands::completions::run(options, &context),
            Command::Config(options) => commands::config::run(options, &context),
            Command::Conflict(options) => commands::conflict::run(options, &context),
            Command::Db(options) => commands::db::run(options, &context),
            Command::Demo(options) => commands::demo::run(options, &context),
            Command::Export(options) => commands::export::run(options, &context),
            Command::History(options) => commands::history::run(options, &context),
            Command::Import(options) => commands::import::run(options, &context),
            Command::Init(options) => commands::init::run(options, &context),
            Command::Keys(options) => commands::keys::run(options, &context),
            Command::Mirror(options) => commands::mirror::run(options, &context),
            Command::Node(options) => commands::node::run(options, &context),
            Command::Proof(options) => commands::proof::run(options, &context),
            Command::Query(options) => commands::query::run(options, &context),
            Command::Rebuild(options) => commands::rebuild::run(options, &context),
            Command::Recover(options) => commands::recover::run(options, &context),
            Command::Replay(options) => commands::replay::run(options, &context),
            Command::Rollback(options) => commands::rollback::run(options, &context),
            Command::Session(options) => commands::session::run(options, &context),
            Command::Snapshot(options) => commands::snapshot::run(options, &context),
            Command::Statesync(options) => commands::statesync::run(options, &context),
            Command::Status(options) => commands::status::run(options, &context),
            Command::Sync(options) => commands::sync::run(options, &context),
            Command::Testnet(options) => commands::testnet::run(options, &context),
            Command::Token(options) => commands::token::run(options, &context),
            Command::Tx(options) => commands::tx::run(options, &context),
        }
    }
}

fn asks_for_json(arguments: &[OsString]) -> bool {
    arguments.iter().any(|argument| argument == "--json")
}

/// Runs a command. A panic is a bug, and ends it as any other failure does, so that who called it is told in the same way.
fn caught(command: impl FnOnce() -> Result<Exit, Failure>) -> Result<Exit, Failure> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(command)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Failure::error(format!("the program has a bug: {}", said.unwrap_or("it does not say which"))))
    })
}

/// What the home directory of a program's chain is called if nobody names one. Two applications share none.
fn home_name(program: &str) -> String {
    format!(".{}", program.replace(std::path::is_separator, "-"))
}

/// The home directory: as given, or the program's in the user's own.
fn home(given: Option<PathBuf>, program: &str) -> Result<PathBuf, Failure> {
    let home = match given {
        Some(home) => home,
        None => std::env::home_dir()
            .filter(|home| !home.as_os_str().is_empty())
            .ok_or_else(|| Failure::usage("there is no home directory to default to; give --home DIR"))?
            .join(home_name(program)),
    };
    check_utf8(&home)?;
    if std::fs::metadata(&home).is_ok_and(|found| !found.is_dir()) {
        let message = format!("{} is a file, the home of a chain is a directory", home.display());
        return Err(Failure::usage(message).hint("--home or KEELSTONE_HOME names another"));
    }
    Ok(home)
}

/// Paths end up in messages, JSON and configuration, which are text.
fn check_utf8(path: &Path) -> Result<(), Failure> {
    match path.to_str() {
        Some(_) => Ok(()),
        None => Err(Failure::usage(format!("--home: {} is not UTF-8", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bug_is_told_as_any_other_failure() {
        let failure = caught(|| panic!("height {}", 7)).expect_err("it panicked");
        assert_eq!((failure.exit, failure.message.as_str()), (Exit::Error, "the program has a bug: height 7"));
        assert_eq!(caught(|| panic!("plain")).expect_err("it panicked").message, "the program has a bug: plain");
        assert_eq!(caught(|| Ok(Exit::Refused)).expect("it did not"), Exit::Refused);
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    /// An application that says its version is told by it, and by that of what it is built with.
    #[test]
    fn a_program_names_its_own_version_beside_keelstones() {
        let application = Application::new(Registry::new()).name("market").version("7.1.0");
        let said = application.grammar().render_version();
        assert_eq!(said, format!("market 7.1.0 (Keelstone {})\n", env!("CARGO_PKG_VERSION")));
        let plain = Application::new(Registry::new()).grammar().render_version();
        assert_eq!(plain, format!("keelstone {}\n", env!("CARGO_PKG_VERSION")));
    }

    /// Whoever looks for an option finds it, and whoever adds one says what it does: in `docs/cli.md`, or on a page of its own.
    #[test]
    fn every_option_stands_in_the_documentation() {
        fn undocumented(command: &clap::Command, pages: &str, missing: &mut Vec<String>) {
            let stands = |long: &&str| {
                pages.match_indices(&format!("--{long}")).any(|(at, found)| {
                    !pages[at + found.len()..].starts_with(|next: char| next.is_ascii_alphanumeric() || next == '-')
                })
            };
            let options = command.get_arguments().filter(|argument| !argument.is_hide_set());
            let longs = options.filter_map(clap::Arg::get_long);
            missing.extend(longs.filter(|long| !stands(long)).map(|long| format!("{} --{long}", command.get_name())));
            let commands = command.get_subcommands().filter(|command| !command.is_hide_set());
            commands.for_each(|command| undocumented(command, pages, missing));
        }
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
        let page = |name: &str| std::fs::read_to_string(docs.join(name)).expect("a page of the documentation");
        let pages: String = PAGES.map(page).concat();
        let mut missing = Vec::new();
        undocumented(&Cli::command(), &pages, &mut missing);
        assert!(missing.is_empty(), "{missing:?}");
    }

    /// Where commands are described.
    const PAGES: [&str; 9] = [
        "cli.md",
        "audit.md",
        "bundles.md",
        "cometbft.md",
        "conflict.md",
        "recovery.md",
        "snapshots.md",
        "sync.md",
        "testnet.md",
    ];

    #[test]
    fn each_application_has_a_home_of_its_own() {
        assert_eq!((home_name("keelstone"), home_name("a/b")), (".keelstone".to_owned(), ".a-b".to_owned()));
        let said = |name: &str| Application::new(Registry::new()).name(name).grammar().render_help().to_string();
        assert!(
            said("market").contains("~/.market") && said("keelstone").contains("~/.keelstone"),
            "{}",
            said("market")
        );
    }
}
