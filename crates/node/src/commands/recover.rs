//! `keelstone recover`: has a state that is lost or damaged again; `recover verify-report` checks what such a
//! recovery signed.

use super::db::confirmed;
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::input::read_input;
use crate::interrupt::Stop;
use crate::out::{Ink, grouped};
use crate::own_log::Who;
use crate::recovery::{self, Wanted, Wish};
use clap::{Args, Subcommand};
use keelstone_codec::{Decode as _, Height, Root, Timestamp};
use keelstone_execution::PublicKey;
use keelstone_sync::recovery::{Report, SignedReport, Strategy};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Have a state that is lost or damaged again, from snapshots, peers and blocks
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    #[command(subcommand)]
    action: Option<Action>,
    /// Up to this height, or the last block that is not after a time, as @MS in milliseconds since 1970 [default: the
    /// last height of which a root is known]
    #[arg(long, value_name = "HEIGHT|@MS")]
    to: Option<String>,
    /// The root to trust; without it what consensus certified, or on a chain of one's own what this node recorded
    #[arg(long, value_name = "HEX")]
    root: Option<String>,
    /// One way alone: local_snapshot, peer_state_sync, block_replay or network_snapshot
    #[arg(long, value_name = "STRATEGY")]
    strategy: Option<String>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Yes, put what is recovered in the place of what is here
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Check who signed the report of a recovery, and show it
    VerifyReport {
        /// The report
        file: PathBuf,
        /// The key it must be signed with
        #[arg(long, value_name = "HEX")]
        key: Option<String>,
    },
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    if let Some(Action::VerifyReport { file, key }) = &options.action {
        return verify_report(file, key.as_deref(), context);
    }
    let parsed = |what: &str, error: &dyn std::fmt::Display| Failure::usage(format!("--{what}: {error}"));
    let root = options.root.as_deref().map(Root::from_hex).transpose().map_err(|error| parsed("root", &error))?;
    let only = options.strategy.as_deref().map(strategy).transpose()?;
    let wanted = options.to.as_deref().map(wanted).transpose()?.unwrap_or(Wanted::Newest);
    let (config, _) = context.config()?;
    let (home, registry, keys) = (&context.home, &context.application.registry, &context.keys());
    if root.is_some() && !matches!(wanted, Wanted::Height(_)) {
        return Err(Failure::usage("--root is the root of a height: --to HEIGHT says which"));
    }
    if options.dry_run {
        let progress = &mut |_, _, _| {};
        let wish = Wish { wanted, root, only, keys, who: Who::User, stop: Stop::default(), progress };
        let plan = recovery::plan(home, &config, registry, wish)?;
        show_plan(&plan, context);
        return Ok(Exit::Ok);
    }
    // What a recovery runs are blocks.
    let _watched = context.watch(&config, registry.activity())?;
    confirmed(options.yes, "this puts what is recovered in the place of the state, the blocks and the receipts here")?;
    let bar = context.out.progress("recovering", 0);
    let mut progress = |strategy: Strategy, done, total| {
        bar.set_message(strategy.name());
        bar.set_length(total);
        bar.set_position(done);
    };
    let stop = Stop::on_signal()?;
    let wish = Wish { wanted, root, only, keys, who: Who::User, stop: stop.clone(), progress: &mut progress };
    let recovered = recovery::run(home, &config, registry, wish);
    bar.finish_and_clear();
    let recovered = recovered?;
    if recovered.outcome.recovered().is_none() {
        let failure = recovery::failure(&recovered, &stop);
        // Blocks that come to something else are no damage where another program made them.
        return Err(match (context.of_another_program(), &failure.hint) {
            (None, _) => failure,
            (Some(another), None) => failure.hint(another),
            (Some(another), Some(hint)) => {
                let hint = format!("{another}; {hint}");
                failure.hint(hint)
            }
        });
    }
    show(&recovered, context);
    Ok(Exit::Ok)
}

fn strategy(name: &str) -> Result<Strategy, Failure> {
    Strategy::named(name).ok_or_else(|| {
        let known = Strategy::ALL.map(Strategy::name).join(", ");
        Failure::usage(format!("--strategy: there is no {name:?}; there are {known}"))
    })
}

fn wanted(text: &str) -> Result<Wanted, Failure> {
    let number = text.strip_prefix('@').unwrap_or(text).parse();
    let number: u64 =
        number.map_err(|_| Failure::usage(format!("--to: {text:?} is neither a height nor @ and a time")))?;
    Ok(if text.starts_with('@') { Wanted::Time(Timestamp(number)) } else { Wanted::Height(Height(number)) })
}

fn show_plan(plan: &recovery::Plan, context: &Context<'_>) {
    let out = context.out;
    out.row("height", grouped(plan.target.height.0));
    out.row("root", plan.target.root);
    out.row("trusted by", plan.target.trust.name());
    out.row("checked", plan.depth.name());
    for (strategy, estimate) in &plan.order {
        let estimate = estimate.map_or_else(
            || out.ink(Ink::Quiet, "has nothing to work with").to_string(),
            |ms| format!("about {} s", grouped(ms.div_ceil(1000))),
        );
        out.row(strategy.name(), estimate);
    }
    let order: Vec<_> = plan
        .order
        .iter()
        .map(|(strategy, estimate)| json!({ "strategy": strategy.name(), "estimate_ms": estimate }))
        .collect();
    out.emit(&json!({
        "height": plan.target.height.0, "root": plan.target.root.to_string(), "trust": plan.target.trust.name(),
        "checked": plan.depth.name(), "order": order,
    }));
}

/// What a recovery came to, for people and programs.
fn show(recovered: &recovery::Recovered, context: &Context<'_>) {
    let out = context.out;
    for (strategy, result) in &recovered.outcome.attempts {
        match result {
            Ok(built) => {
                let (entries, blocks) = (grouped(built.entries), grouped(built.blocks));
                out.say(format_args!("{} {strategy}: {entries} entries, {blocks} blocks run", out.ink(Ink::Good, "✓")));
            }
            Err(failed) => out.say(format_args!("{} {strategy}: {failed}", out.ink(Ink::Bad, "✗"))),
        }
    }
    out.row("height", grouped(recovered.signed.report.height.0));
    out.row("root", recovered.signed.report.root);
    out.row("trusted by", recovered.signed.report.trust.name());
    out.row("report", recovered.path.display());
    out.warn(&recovered.warnings);
    let mut shown = recovery::show(&recovered.signed);
    shown["report"] = json!(recovered.path.display().to_string());
    shown["warnings"] = json!(recovered.warnings);
    out.emit(&shown);
}

fn verify_report(file: &Path, key: Option<&str>, context: &Context<'_>) -> Result<Exit, Failure> {
    let bytes = read_input(file)?;
    let signed = SignedReport::from_bytes(&bytes).map_err(|error| {
        let message = format!("{} is no report: {error}", file.display());
        // What begins as a report was one; anything else was given by mistake.
        match bytes.first() == Some(&Report::VERSION) {
            true => Failure::integrity(message),
            false => Failure::usage(message),
        }
    })?;
    let expected = key.map(PublicKey::from_hex).transpose();
    let expected = expected.map_err(|error| Failure::usage(format!("--key: {error}")))?;
    recovery::verify_report(&signed, expected.as_ref())?;
    let (out, report) = (context.out, &signed.report);
    out.say(out.ink(Ink::Good, "✓ the report is what its key signed"));
    out.row("signed by", PublicKey(signed.key));
    out.row("height", grouped(report.height.0));
    out.row("root", report.root);
    for attempt in report.attempts.iter() {
        let said = attempt.failed.as_ref().map_or_else(|| "done".to_owned(), ToString::to_string);
        out.row(attempt.strategy.name(), said);
    }
    out.emit(&recovery::show(&signed));
    Ok(Exit::Ok)
}
