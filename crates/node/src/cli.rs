//! The command line: what can be said, and which command it goes to.

use crate::application::Application;
use crate::commands;
use crate::context::{Context, ElsewhereOptions, PassphraseOptions};
use crate::exit::{Exit, Failure};
use crate::home::Home;
use crate::out::{Out, report};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use keelstone_execution::runs_function;
use keelstone_store::kv::catches_panics;
use std::cell::RefCell;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The option that overrides a setting, which stands wherever its user likes and counts each time.
const SETTINGS: &str = "settings";

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

impl Application {
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
            Command::Completions(options) => commands::completions::run(options, self.grammar(), &context),
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
    use keelstone_execution::Registry;

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
