//! `keelstone check`: whether the state here is the chain's; `check status`, `check pause`, and `check diverge`, which
//! finds where another node parts from this one.
//!
//! A running node makes the check itself; without one the directory is looked at. Nothing of the state is written, unless
//! damage is to be repaired.

use crate::check::{self, Asked, Depth};
use crate::config::HttpAddress;
use crate::context::Context;
use crate::control::{self, Request};
use crate::damage::Damage;
use crate::engine::{self, MendedHere};
use crate::exit::{Exit, Failure};
use crate::interrupt::Stop;
use crate::mend::{self, Places};
use crate::out::{Ink, grouped, short};
use crate::own_log::{OwnLog, Who};
use clap::{Args, Subcommand};
use keelstone_store::Progress;
use keelstone_sync::consistency::Checker;
use keelstone_sync::peers::Tick;
use serde_json::{Value, json};

/// Compare the state with its own bytes, with what certifies it, and with peers
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    #[command(subcommand)]
    action: Option<Action>,
    /// Every stored byte, page and value, and the peers
    #[arg(long, group = "depth")]
    full: bool,
    /// Only peers' roots and a sample of entries
    #[arg(long, group = "depth")]
    peers: bool,
    /// Only superblocks, segment headers, the unflushed log and the certified root
    #[arg(long, group = "depth")]
    quick: bool,
    /// Look at every stored byte, and mend what is damaged: to what it must be under this node's own root, and nothing else
    #[arg(long, group = "depth")]
    repair: bool,
    /// What may be asked besides memory: peers, snapshots (of this home), the height of one, or the path of an archive
    #[arg(long, requires = "repair", value_name = "WHERE", default_values = ["snapshots", "peers"])]
    from: Vec<mend::Supply>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show where the checker of the running node stands, and what it found last
    Status,
    /// Have the running node make no checks by itself
    Pause,
    /// Have it make them again
    Resume,
    /// Find the first height and the first entry in which another node differs
    Diverge {
        /// The other node's API, as http://HOST:PORT
        #[arg(long, value_name = "PEER")]
        with: String,
    },
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    match options.action {
        Some(Action::Status) => status(context),
        Some(Action::Pause) => pause(true, context),
        Some(Action::Resume) => pause(false, context),
        Some(Action::Diverge { with }) => diverge(&with, context),
        None if options.repair => repair(options.from, context),
        None => {
            let depth = match (options.full, options.peers, options.quick) {
                (true, ..) => Depth::Full,
                (_, true, _) => Depth::Peers,
                (.., true) => Depth::Quick,
                _ => Depth::Usual,
            };
            check(depth, context)
        }
    }
}

/// Refuses settings of the check that a running node would not hear of: it checks by its own.
fn heard(context: &Context<'_>) -> Result<(), Failure> {
    let Some(setting) = context.settings().iter().find(|setting| setting.trim_start().starts_with("check.")) else {
        return Ok(());
    };
    match control::ask(&context.home, &Request::Check(Asked::Status {}), &mut |_| ())? {
        None => Ok(()),
        Some(_) => Err(Failure::usage(format!(
            "--set {setting} is not heard by the node that runs here, which makes the check by its own settings"
        ))
        .hint("write it into keelstone.toml and start the node again, or ask while it is stopped")),
    }
}

fn check(depth: Depth, context: &Context<'_>) -> Result<Exit, Failure> {
    context.home.check_chain()?;
    heard(context)?;
    let shown = match control::ask(&context.home, &Request::Check(Asked::Now { depth }), &mut |_| ())? {
        Some(shown) => shown,
        None => alone(depth, context)?,
    };
    show(&shown, context);
    context.out.emit(&shown);
    Ok(match shown["verdict"].as_str() {
        Some("consistent") => Exit::Ok,
        Some("inconsistent") => Exit::Integrity,
        _ => Exit::Unknown,
    })
}

/// Mends what is damaged: the node that runs here does, or this process if none does.
fn repair(from: Vec<mend::Supply>, context: &Context<'_>) -> Result<Exit, Failure> {
    context.home.check_chain()?;
    heard(context)?;
    let request = Request::Check(Asked::Repair { from: from.clone() });
    let mut is_of_blocks = false;
    let shown = match control::ask(&context.home, &request, &mut |_| ())? {
        Some(shown) => shown,
        None => {
            let stop = Stop::on_signal()?;
            let (config, _) = context.config()?;
            let hint = "keelstone recover --yes has the state again as a whole, db check --repair makes another of it";
            let bar = context.out.progress("checking", 0);
            let own = OwnLog::of(&context.home);
            let places = Places { from: &from, peers: &config.check.peers, network: None, stopping: stop.flag() };
            let mut progress = |progress: Progress| {
                bar.set_message(progress.what);
                bar.set_length(progress.total);
                bar.set_position(progress.done);
                !stop.is_asked()
            };
            let mended = engine::mend_here(&context.home, &config, &mut progress, |state, problems| {
                mend::mend(state, (&context.home, &own), Who::User, problems, &places)
            });
            bar.finish_and_clear();
            // What was mended by then stays so.
            stop.check().map_err(|stopped| stopped.hint("nothing is lost: the same again goes on"))?;
            let MendedHere { problems, done, blocks } = mended.map_err(|failure| match failure.exit {
                Exit::Integrity => failure.hint(hint),
                _ => failure,
            })?;
            let mut shown = mend::show(&problems, &done.unwrap_or_default());
            for list in ["found", "left"] {
                let damaged = blocks.iter().map(|damaged| json!(Damage::of(damaged)));
                shown[list].as_array_mut().expect("it is a list").extend(damaged);
            }
            is_of_blocks = blocks.is_some();
            shown
        }
    };
    let out = context.out;
    let listed = |name: &str| shown[name].as_array().map_or(&[][..], Vec::as_slice);
    for left in listed("left") {
        let what = left["message"].as_str().unwrap_or_default();
        out.say(format_args!("{} {what}", out.ink(Ink::Bad, "✗")));
    }
    let number = |name: &str| grouped(shown[name].as_u64().unwrap_or_default());
    match (listed("found").len(), listed("left").len()) {
        (0, _) => out.say(out.ink(
            Ink::Good,
            out.called("✓ nothing of the state is damaged; keelstone db check looks at blocks and receipts as well"),
        )),
        (_, 0) => out.say(out.ink(Ink::Good, "✓ mended, and looked at again")),
        _ if is_of_blocks => out.say(out.ink(
            Ink::Quiet,
            "blocks and receipts are not mended here: db check says what goes on without them; of the state, db check --repair",
        )),
        _ => out.say(
            out.ink(Ink::Quiet, "what is left is history or more than could be had: db check --repair, or recover"),
        ),
    }
    out.row("problems found", grouped(listed("found").len() as u64));
    out.row("from elsewhere", format_args!("{} entries", number("supplied_entries")));
    out.row("pieces from memory", number("kept_pieces"));
    out.row("sectors", number("sectors"));
    if shown["given_up"].as_u64().is_some_and(|count| count > 0) {
        out.row("given up", format_args!("{} sectors that only old heights may need", number("given_up")));
    }
    for asked in listed("asked") {
        let text = |name: &str| asked[name].as_str().unwrap_or_default();
        let detail = if text("detail").is_empty() { String::new() } else { format!(": {}", text("detail")) };
        out.row("asked", format_args!("{} gave {}{detail}", text("from"), text("said")));
    }
    out.emit(&shown);
    Ok(mend::exit(&shown))
}

/// A check by this process, of a chain that no node runs.
fn alone(depth: Depth, context: &Context<'_>) -> Result<Value, Failure> {
    let stop = Stop::on_signal()?;
    let (config, _) = context.config()?;
    let chain = context.open_chain()?;
    let mut checker = Checker::new(check::settings(&config.check), check::read_cursor(&context.home), Tick(0));
    let due = checker.take(Tick(0));
    let bar = context.out.progress("checking", 0);
    // Who opens it says what was damaged: it is good again, and no check finds it any more.
    let met = chain.stats().superblock_repaired;
    let checked = check::check(&*chain, &due, depth, &config.check.peers, met, &mut |progress| {
        bar.set_message(progress.what);
        bar.set_length(progress.total);
        bar.set_position(progress.done);
        !stop.is_asked()
    });
    bar.finish_and_clear();
    stop.check()?;
    let (sample, report) = checked?;
    checker.found(&sample, report.clone());
    check::write_cursor(&context.home, checker.cursor())?;
    let mut shown = check::show_checked(&report, depth, checker.cursor());
    shown["warnings"] = check::warnings(&*chain, depth);
    Ok(shown)
}

fn show(shown: &Value, context: &Context<'_>) {
    let out = context.out;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let number = |value: &Value| grouped(value.as_u64().unwrap_or_default());
    for found in shown["discrepancies"].as_array().into_iter().flatten() {
        out.say(format_args!("{} {}", out.ink(Ink::Bad, "✗"), sentence(found)));
    }
    let verdict = text(&shown["verdict"]);
    match verdict.as_str() {
        "consistent" => out.say(out.ink(Ink::Good, "✓ nothing that was compared differs")),
        "unknown" => out.say(out.ink(Ink::Quiet, "? nothing certifies this root yet, and no peer could say")),
        _ => {}
    }
    out.row("verdict", &verdict);
    out.row("height", number(&shown["height"]));
    out.row("root", text(&shown["root"]));
    let certified = match shown["certified"]["by"].as_str() {
        Some("consensus") => "by consensus".to_owned(),
        Some("given") => "by the root that was given when the state was put here".to_owned(),
        Some(_) => "by the blocks made here".to_owned(),
        None => "not yet".to_owned(),
    };
    out.row("certified", certified);
    let of_all = if shown["every_value_read"] == json!(true) { "; every stored value was read" } else { ", a sample" };
    out.row("entries read", format_args!("{}{of_all}", number(&shown["entries_read"])));
    out.row("whole passes", number(&shown["cursor"]["passes"]));
    for opinion in shown["peers"].as_array().into_iter().flatten() {
        let detail = opinion["detail"].as_str().map_or_else(String::new, |detail| format!(": {detail}"));
        let said = match opinion["said"].as_str() {
            Some("agrees") => format!("agrees, also on {} entries", number(&opinion["entries_agreed"])),
            Some("differs") => format!("has another root{detail}"),
            Some("nothing") => format!("says nothing{detail}"),
            _ => format!("misbehaved{detail}"),
        };
        out.row("peer", format_args!("{} {said}", text(&opinion["peer"])));
    }
    let warnings = shown["warnings"].as_array().into_iter().flatten().map(&text);
    out.warn(&warnings.collect::<Vec<_>>());
}

/// A discrepancy in words.
fn sentence(found: &Value) -> String {
    let text = |name: &str| found[name].as_str().unwrap_or_default().to_owned();
    let place = || check::place(&text("namespace"), &text("key"));
    match found["kind"].as_str() {
        Some("not_certified") => {
            format!("consensus certified root {}, this node has {}", text("certified"), text("ours"))
        }
        Some("state_root") => {
            let (ours, theirs) = (text("ours"), text("theirs"));
            let height = grouped(found["height"].as_u64().unwrap_or_default());
            format!("{} has root {} at height {height}, here it is {}", text("peer"), short(&theirs), short(&ours))
        }
        Some("missing_here") => format!("{} has {}, which is missing here", text("peer"), place()),
        Some("missing_there") => format!("{} lacks {}", text("peer"), place()),
        Some("entry") => format!("{} has another value at {}", text("peer"), place()),
        _ => text("what"),
    }
}

fn status(context: &Context<'_>) -> Result<Exit, Failure> {
    context.home.check_chain()?;
    let asked = control::ask(&context.home, &Request::Check(Asked::Status {}), &mut |_| ())?;
    let shown = asked.unwrap_or_else(
        || json!({ "running": false, "cursor": check::show_cursor(&check::read_cursor(&context.home)) }),
    );
    show_status(&shown, context);
    context.out.emit(&shown);
    Ok(Exit::Ok)
}

fn show_status(shown: &Value, context: &Context<'_>) {
    let out = context.out;
    let number = |value: &Value| grouped(value.as_u64().unwrap_or_default());
    let cursor = &shown["cursor"];
    let state = match (shown["running"].as_bool(), shown["paused"].as_bool()) {
        (Some(true), Some(true)) => "paused".to_owned(),
        (Some(true), _) => {
            format!("next check in {} s", number(&json!(shown["next_in_ms"].as_u64().unwrap_or_default() / 1000)))
        }
        _ => "no node runs here".to_owned(),
    };
    out.row("checker", state);
    if let Some(alarm) = shown["alarm"].as_str() {
        out.row("alarm", out.ink(Ink::Bad, alarm));
    }
    if let Some(stopped) = shown["repairs"]["stopped"].as_str() {
        out.row("repairs", out.ink(Ink::Bad, stopped));
    }
    if let Some(verdict) = shown["last"]["verdict"].as_str() {
        out.row("last", format_args!("{verdict} at height {}", number(&shown["last"]["height"])));
    }
    out.row("whole passes", number(&cursor["passes"]));
    out.row("in this pass", format_args!("{} entries", number(&cursor["entries"])));
}

fn pause(paused: bool, context: &Context<'_>) -> Result<Exit, Failure> {
    match control::ask(&context.home, &Request::Check(Asked::Pause { paused }), &mut |_| ())? {
        Some(shown) => {
            show_status(&shown, context);
            context.out.emit(&shown);
            Ok(Exit::Ok)
        }
        None => Err(Failure::usage("no node runs here, so nothing checks by itself")),
    }
}

fn diverge(with: &str, context: &Context<'_>) -> Result<Exit, Failure> {
    context.home.check_chain()?;
    let peer = HttpAddress::parse(with).map_err(|why| Failure::usage(format!("--with: {why}")))?;
    let request = Request::Check(Asked::Diverge { with: peer.to_string() });
    let shown = match control::ask(&context.home, &request, &mut |_| ())? {
        Some(shown) => shown,
        None => check::part(&*context.open_chain()?, &peer)?,
    };
    let out = context.out;
    let text = |name: &str| shown[name].as_str().map(str::to_owned);
    let number = |name: &str| shown[name].as_u64().map(grouped);
    if shown["differs"] == json!(false) {
        out.say(out.ink(Ink::Good, "✓ the last height that both keep has the same root"));
        out.emit(&shown);
        return Ok(Exit::Ok);
    }
    let none = || "none that both keep".to_owned();
    out.row("last same height", number("last_same_height").unwrap_or_else(none));
    out.row("first other", number("height").unwrap_or_default());
    out.row("root here", text("ours").unwrap_or_default());
    out.row("root there", text("theirs").unwrap_or_default());
    let entry = check::place(&text("namespace").unwrap_or_default(), &text("key").unwrap_or_default());
    out.row("first entry", entry);
    out.row("value here", text("our_value").unwrap_or_else(|| "missing".to_owned()));
    out.row("value there", text("their_value").unwrap_or_else(|| "missing".to_owned()));
    out.row("questions", number("questions").unwrap_or_default());
    out.emit(&shown);
    Ok(Exit::Integrity)
}
