//! `keelstone sync`: takes a state of the chain from peers and mirrors, none of which is trusted, and makes it the home's.
//!
//! What is trusted is a height and its root: given, or certified by a producer's key or by CometBFT's validators.
//! Everything that comes is proven under that root before it is written, waits in a staging directory that outlives a
//! crash, and becomes the home's by one rename once a state was built of it whose root was computed anew.

mod part;
pub(crate) mod target;

use super::db::confirmed;
use super::snapshot::extract::Prefix;
use super::snapshot::{complete_genesis, genesis_for};
use crate::config::{Config, PeerAddress, Place};
use crate::context::Context;
use crate::engine::{self, Aside, Engine};
use crate::exit::{Exit, Failure};
use crate::generations::Generations;
use crate::interrupt::Stop;
use crate::library::{forget_above, hold_library, snapshot_params};
use crate::metrics::Metrics;
use crate::out::{Ink, Out, bytes, grouped};
use crate::own_log::{OwnLog, Stood, Who};
use crate::p2p::{
    self, Bans, Ends, Follow, Following, Joining, MirrorSource, Network, Opened, Over, Seen, Sources, Trust, Until,
    joiner_settings,
};
use crate::room;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use keelstone_codec::{Height, Root};
use keelstone_ledger::{Genesis, NodeEvent, NodeStep, Standing, cut};
use keelstone_store::Store;
use keelstone_store::files::Directory;
use keelstone_sync::library::LibraryError;
use keelstone_sync::peers::{EntriesError, Event, Joiner, Manner, Progress, Version};
use keelstone_sync::snapshot::PartOf;
use keelstone_tree::{Blake3, HashKind, Hasher, Sha256};
use serde_json::json;
use std::io::Write as _;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use target::{By, Target, Word};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

/// How long threads that still ask somebody may hold up the end.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(200);
/// Most bans that are named where nobody certified anything.
const BANS_TOLD_MAX: usize = 8;

/// Take the state of the chain from peers and mirrors, and prove all of it
#[derive(Debug, Default, Args)]
pub(crate) struct Options {
    /// Where to take it from: peers, a mirror's directory or http://HOST:PORT/PATH, or all: peers and the mirrors of
    /// p2p.mirrors; may be repeated
    #[arg(long, value_name = "SOURCE", default_value = "peers")]
    from: Vec<Source>,
    /// A peer to dial, beside those of p2p.peers: HOST:PORT or ID@HOST:PORT; may be repeated
    #[arg(long, value_name = "PEER")]
    peer: Vec<PeerAddress>,
    /// The genesis of the chain, for a home that has none
    #[arg(long)]
    genesis: Option<PathBuf>,
    #[command(flatten)]
    trust: target::Trusted,
    /// Take no more than this namespace, with the proof that it is all of it, into a file; the home's state stays as it is
    #[arg(long, requires = "out", conflicts_with = "yes")]
    namespace: Option<String>,
    #[command(flatten)]
    prefix: Prefix,
    /// The file of --namespace, which must not exist; `keelstone proof verify` checks it
    #[arg(long, requires = "namespace", value_name = "FILE")]
    out: Option<PathBuf>,
    /// Yes, put it in the place of the state that is here
    #[arg(long)]
    yes: bool,
    /// Say on standard error how far it is, every so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    progress: Option<u64>,
}

impl Options {
    /// To take a later state in the place of the one here, as the configuration says.
    pub(super) fn anew() -> Self {
        Self { from: vec![Source::Peers], yes: true, ..Self::default() }
    }
}

/// Where a state is taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Peers,
    All,
    Mirror(Place),
}

impl FromStr for Source {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "peers" => Ok(Self::Peers),
            "all" => Ok(Self::All),
            other => other.parse().map(Self::Mirror),
        }
    }
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    run_until(options, context, &Stop::on_signal()?)
}

/// As [`run`], until told to stop: what was fetched waits for the next one then, and a state that counts already stays.
pub(super) fn run_until(options: Options, context: &Context<'_>, stop: &Stop) -> Result<Exit, Failure> {
    let (genesis, fresh) = genesis_for(&context.home, options.genesis.as_deref())?;
    let (config, _) = context.config()?;
    let sync = Sync { options, genesis, fresh, config, context, stop: stop.clone() };
    match sync.genesis.hasher {
        HashKind::Blake3 => sync.run::<Blake3>(),
        HashKind::Sha256 => sync.run::<Sha256>(),
    }
}

/// What a sync is of.
struct Sync<'a> {
    options: Options,
    genesis: Genesis,
    /// Whether the home has none yet.
    fresh: bool,
    config: Config,
    context: &'a Context<'a>,
    stop: Stop,
}

impl Sync<'_> {
    fn run<H: Hasher>(&self) -> Result<Exit, Failure> {
        let part = match (&self.options.namespace, &self.options.out) {
            (Some(namespace), Some(file)) => Some((self.options.prefix.of(namespace)?, file.as_path())),
            _ => None,
        };
        let stands = if part.is_some() { None } else { self.stands()? };
        let word = self.options.trust.word(&self.genesis, &self.config)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|error| Failure::io("could not start the threads of the network", &error))?;
        let sources = self.sources::<H>(&runtime, part.as_ref().map(|(part, _)| part))?;
        let done = match &part {
            Some((part, file)) => self.take_part::<H>(&runtime, &sources, &word, (part, *file)),
            None => self.run_with::<H>(&runtime, &sources, &word, stands),
        };
        if let Some(network) = &sources.network {
            runtime.block_on(network.stop());
        }
        // Whoever is still asked holds nothing up.
        runtime.shutdown_timeout(SHUTDOWN_GRACE);
        done.map_err(|failure| self.explained(failure))
    }

    /// Why this did not come to its end: where it was told to stop that is why, whatever broke off for it; and whoever is banned is not
    /// asked, and may be the one who would have had an answer.
    fn explained(&self, mut failure: Failure) -> Failure {
        if let Err(stopped) = self.stop.check() {
            return stopped.hint("what was fetched stays, and the same again goes on with it");
        }
        let asks_peers = self.options.from.iter().any(|from| matches!(from, Source::Peers | Source::All));
        let asked = failure.exit == Exit::SyncFailed && asks_peers;
        let bans = asked.then(|| Bans::open(&self.context.home.bans()).ok()).flatten();
        let told = bans.iter().flat_map(|bans| bans.told(BANS_TOLD_MAX)).map(|(peer, why)| format!("\n{peer}: {why}"));
        let told: String = told.collect();
        if !told.is_empty() {
            failure.message += &told;
            failure = failure.hint(
                "a ban ends once it is taken out of that file; or give other peers, or --trust-height and --trust-hash",
            );
        }
        failure
    }

    fn run_with<H: Hasher>(
        &self,
        runtime: &Runtime,
        sources: &Sources,
        word: &Word,
        stands: Option<Version>,
    ) -> Result<Exit, Failure> {
        let (context, home) = (self.context, &self.context.home);
        let started = Instant::now();
        let target = self.target(runtime, sources, word)?;
        self.stop.check()?;
        let begun = self.agrees(&target, stands)?;
        if begun == Begun::There {
            // One that could not be removed with what was in it; another process may use it by now.
            if let Ok(_held) = Generations::open(&home.data()) {
                let _ = std::fs::remove_dir(home.joining());
            }
            context.out.say(context.out.ink(Ink::Good, "✓ this node has that state already"));
            context
                .out
                .emit(&json!({ "height": target.version.height, "root": target.version.root, "fetched": false }));
            return Ok(Exit::Ok);
        }
        let aside = Aside::of(home)?;
        // Another may have begun a chain here before this one held the home. From here on nobody does.
        if self.fresh && home.genesis().exists() {
            aside.give_up();
            return Err(home.is_taken());
        }
        // Without a genesis nothing says how far what is here came, or whose it is.
        if begun == Begun::Replaces || self.fresh && aside.replaces() {
            let Version { height, .. } = target.version;
            let what = format!(
                "this forgets the state, the blocks and the receipts here, and puts height {height} or a later one in their place"
            );
            confirmed(self.options.yes, &what).inspect_err(|_| aside.give_up())?;
        }
        // Held from before anything is fetched: snapshots above that may be of a history that is no more.
        let held = hold_library(home).inspect_err(|_| aside.give_up())?;
        // spec: AUDIT-10
        let (own, before) = (OwnLog::of(home), stands.map(stood));
        let event = NodeEvent::Restored { source: cut("peers and mirrors".to_owned()) };
        own.note(Who::User, event.clone(), NodeStep::Begun, Stood { before, after: None })?;
        let fetched = self.fetch::<H>(runtime, sources.clone(), target.version, word, &aside);
        let fetched = fetched.and_then(|(version, progress)| {
            self.stop.check()?;
            aside.mark_given(version.height, version.root)?;
            if self.fresh {
                complete_genesis(home, &self.genesis)?;
            }
            Ok((version, progress))
        });
        let (version, progress) = match fetched {
            Ok(fetched) => fetched,
            Err(failure) => {
                aside.give_up();
                let reason = self.stop.check().map_or_else(|stopped| stopped.message, |()| failure.message.clone());
                let reason = cut(reason);
                own.note(Who::User, event, NodeStep::Failed { reason }, Stood { before, after: before })?;
                return Err(failure);
            }
        };
        let left = aside.settle_at(version.height)?;
        let staged = home.clear_joining();
        // Once the state counts nothing that fails undoes that.
        let forgotten = forget_above(held, home, version.height);
        let noted = own.note(Who::User, event, NodeStep::Done, Stood { before, after: Some(stood(version)) });
        let failed = forgotten.err().into_iter().chain(noted.err()).map(|failure| failure.message);
        let warnings: Vec<String> = left.into_iter().chain(staged).chain(failed).collect();
        let engine = engine::open(home, &self.config, &context.application.registry)?;
        let stands = self.catch_up(runtime, sources, word, &*engine)?;
        self.report(&version, &stands, &progress, &target, started.elapsed(), &warnings);
        Ok(Exit::Ok)
    }

    fn target(&self, runtime: &Runtime, sources: &Sources, word: &Word) -> Result<Target, Failure> {
        word.target(runtime, sources, Duration::from_millis(self.config.p2p.request_timeout_ms))
    }

    /// Goes on from the state that was taken to what a producer certified while it was, by what each height changed, as far
    /// as peers have that. Says where that ended.
    // spec: SNAP-11
    fn catch_up(
        &self,
        runtime: &Runtime,
        sources: &Sources,
        word: &Word,
        engine: &dyn Engine,
    ) -> Result<Version, Failure> {
        let (Some(network), Word::Producers(trust)) = (&sources.network, word) else { return engine.stands() };
        // Who certifies nothing any more has nothing newer either.
        let Ok(newest) = self.target(runtime, sources, word) else { return engine.stands() };
        let request_timeout = Duration::from_millis(self.config.p2p.request_timeout_ms);
        let (params, trust) = (snapshot_params(&self.genesis), Trust::clone(trust));
        let follow = Follow { params, trust, manner: Manner::Diffs, request_timeout, producer_api: None };
        let (tell, stop) = watch::channel(false);
        let asked = self.stop.clone();
        runtime.spawn(async move {
            asked.asked().await;
            // Nobody follows any more: then it was over by itself.
            let _ = tell.send(true);
        });
        let (_nobody_tells, heard) = mpsc::channel(1);
        let (word, seen, metrics) = (watch::channel(None).0, Seen::new(&follow), Arc::new(Metrics::new()));
        let ends = Ends { heard, stop, word, seen, metrics };
        let mut following = Following::new(runtime.handle(), engine, network.clone(), follow, ends)?;
        following.begin_with(newest.version);
        match following.run(Until::Newest(request_timeout)) {
            Over::Done | Over::Gap(_) => Ok(following.stands()),
            Over::Diverged(failure) | Over::Failed(failure) => Err(failure),
        }
    }

    /// Where this home stands; none if it has no state, or none but that of its genesis.
    fn stands(&self) -> Result<Option<Version>, Failure> {
        if self.fresh || !self.context.home.data().exists() {
            return Ok(None);
        }
        let engine = engine::open_to_join(&self.context.home, &self.config, &self.context.application.registry)?;
        let status = engine.status()?;
        let root = Root::from_hex(&status.root).map_err(|error| Failure::error(error.to_string()))?;
        let first = self.genesis.first_state().map_err(|error| Failure::usage(error.to_string()))?.height;
        let stands = Version { height: Height(status.height), root };
        Ok((stands.height > first).then_some(stands))
    }

    /// Compares the target with what is here.
    fn agrees(&self, target: &Target, stands: Option<Version>) -> Result<Begun, Failure> {
        let Some(stands) = stands else { return Ok(Begun::Empty) };
        let Version { height, root } = target.version;
        if height < stands.height {
            let message = format!("stale: the target is height {height}, this node stands at {}", stands.height);
            return Err(Failure::usage(message).hint("keelstone rollback goes back in one's own history"));
        }
        if height > stands.height {
            return Ok(Begun::Replaces);
        }
        if root == stands.root {
            return Ok(Begun::There);
        }
        let message = format!("forked: the root of height {height} is to be {root}, here it is {}", stands.root);
        Err(Failure::integrity(message).hint("find out which of the two is the chain's before either is built on"))
    }

    /// The peers and mirrors that were named. A mirror that cannot be opened, or lacks what is wanted, is only missed if
    /// there is nobody else.
    fn sources<H: Hasher>(&self, runtime: &Runtime, part: Option<&PartOf>) -> Result<Sources, Failure> {
        let from = &self.options.from;
        let mut places: Vec<Place> = Vec::new();
        for source in from {
            match source {
                Source::Peers => {}
                Source::All => places.extend(self.config.p2p.mirrors.iter().cloned()),
                Source::Mirror(place) => places.push(place.clone()),
            }
        }
        let timeout = Duration::from_millis(self.config.p2p.request_timeout_ms);
        let (mut mirrors, mut failed): (Vec<Arc<dyn MirrorSource>>, _) = (Vec::new(), None);
        for place in places {
            match Opened::<H>::open(place, timeout) {
                Ok(opened) if opened.mirror().part().is_some_and(|has| !part.is_some_and(|part| has.covers(part))) => {
                    let has = opened.mirror().part().map_or_else(String::new, ToString::to_string);
                    tracing::warn!(mirror = opened.name(), has, "a mirror has not all that is wanted");
                    failed = Some(Failure::not_found(format!("{} has {has} alone", opened.name())));
                }
                Ok(opened) => {
                    let (mirror, version) = (opened.mirror(), opened.mirror().version());
                    let (height, entries) = (grouped(version.height.0), grouped(mirror.totals().count));
                    let size = bytes(mirror.bytes());
                    let name = opened.name();
                    self.context.out.row("mirror", format_args!("{name}: height {height}, {entries} entries, {size}"));
                    mirrors.push(Arc::new(opened));
                }
                Err(failure) => {
                    tracing::warn!(%failure, "a mirror cannot be used");
                    failed = Some(failure);
                }
            }
        }
        let mut network = None;
        if from.iter().any(|source| matches!(source, Source::Peers | Source::All)) {
            let (home, keys, metrics) = (&self.context.home, self.context.keys(), Arc::new(Metrics::new()));
            let mut setup = p2p::setup(&self.config.p2p, &self.genesis.chain_id, home, &keys, metrics)?;
            // Who only takes needs nobody to come in.
            setup.listen = None;
            setup.peers.extend(self.options.peer.iter().cloned());
            if !setup.peers.is_empty() || setup.nearby.is_some() {
                network = Some(Network::start(runtime.handle(), setup, None)?.0);
            }
        }
        match (mirrors.is_empty() && network.is_none(), failed) {
            (false, _) => Ok(Sources { network, mirrors, stop: self.stop.clone() }),
            (true, Some(failure)) => Err(failure),
            (true, None) => {
                Err(Failure::usage("there is nobody to ask")
                    .hint("name peers with --peer or in p2p.peers, or a mirror"))
            }
        }
    }

    fn fetch<H: Hasher>(
        &self,
        runtime: &Runtime,
        sources: Sources,
        wanted: Version,
        word: &Word,
        aside: &Aside,
    ) -> Result<(Version, Progress), Failure> {
        let path = self.context.home.joining();
        let staging = Directory::new(&path).map_err(|error| Failure::io(path.display(), &error))?;
        let staging = Arc::new(staging);
        let mut joining = Joining::new(runtime.handle(), sources);
        let (params, settings) = (snapshot_params(&self.genesis), joiner_settings(&self.config.p2p));
        let opened = Joiner::<H>::open(staging.clone(), params, settings, wanted, joining.now(), p2p::seed()?);
        let mut joiner = opened.map_err(|error| Failure::io("the staging directory failed", &error))?;
        let mut shown = Shown::new(self.context.out, self.options.progress);
        let mut room = room::PerVersion::new(&staging, self.config.snapshots.reserve_percent);
        let newer = word.newer();
        loop {
            let mut last = Progress::default();
            let mut rehearse = |joiner: &mut Joiner<H>, bytes| rehearse(joiner, bytes, aside);
            let version =
                joining.fetch(&mut joiner, newer.as_ref(), Some(&mut rehearse), &mut |progress, version| {
                    if let Some(total) = progress.total {
                        room.check(version, room::of_the_rest(total, progress.done))?;
                    }
                    last = *progress;
                    shown.show(progress, version);
                    Ok(())
                })?;
            let progress = joiner.progress(joining.now());
            // All may have been staged before, or another version since the last word: then nobody has looked yet.
            room.check(version, room::of_the_rest(progress.total.unwrap_or_default(), progress.done))?;
            shown.show(&progress, version);
            let mut lost = false;
            let directory = aside.directory()?;
            let built = engine::build_state(
                Some(&self.genesis),
                self.genesis.hasher,
                directory,
                (version.height, version.root),
                &mut |each| {
                    let handed = joiner.entries(|name, key, value| match self.stop.is_asked() {
                        true => Err(LibraryError::Stopped),
                        false => each(name, key, value),
                    });
                    handed.map_err(|error| match error {
                        EntriesError::Incomplete { missing } => {
                            lost = true;
                            Failure::error(format!("{missing} units were lost on our own disk"))
                        }
                        EntriesError::Ended(ended) => ended.into(),
                        EntriesError::Taker(error) => LibraryError::into(error),
                    })
                },
            );
            match built {
                Ok(_) => {
                    shown.done();
                    drop(joiner.step(joining.now(), Event::Built));
                    return Ok((version, progress));
                }
                Err(_) if lost => aside.begin_again()?,
                Err(failure) => return Err(failure),
            }
        }
    }

    fn report(
        &self,
        fetched: &Version,
        stands: &Version,
        progress: &Progress,
        target: &Target,
        took: Duration,
        warnings: &[String],
    ) {
        let out = self.context.out;
        let total = progress.total.unwrap_or_default();
        out.say(out.ink(Ink::Good, "✓ synced, and the root is what it must be"));
        let caught_up = stands.height.0 - fetched.height.0;
        out.row("height", grouped(stands.height.0));
        out.row("root", stands.root);
        if caught_up > 0 {
            out.row("caught up", format_args!("{} heights, by what each changed", grouped(caught_up)));
        }
        out.row("state", format_args!("{} entries, {}", grouped(total.count), bytes(total.bytes)));
        out.row("received", bytes(progress.received_bytes));
        let (signer, header) = self.say_by(target, fetched.height);
        out.warn(warnings);
        out.emit(&json!({
            "height": stands.height, "root": stands.root, "caught_up": caught_up, "fetched": true, "entries": total.count,
            "bytes": total.bytes, "received_bytes": progress.received_bytes, "nodes": progress.nodes,
            "certified_by": signer, "certified_by_header": header, "seconds": took.as_secs_f64(),
            "warnings": warnings,
        }));
    }

    /// Says what made a version the one to fetch: a producer, or a header.
    fn say_by(&self, target: &Target, height: Height) -> (Option<String>, Option<Height>) {
        let out = self.context.out;
        match target.by {
            By::Given => out.row("trusted", "the root that was given"),
            By::Producer(signer) => out.row("certified by", signer),
            By::Header => {
                out.row("certified by", format_args!("header {}, and those who voted for it", height.next()));
            }
        }
        let signer = if let By::Producer(signer) = target.by { Some(signer.to_string()) } else { None };
        let header = if let By::Header = target.by { Some(height.next()) } else { None };
        (signer, header)
    }
}

/// Builds stores of two parts of what was fetched, where the state will be built, and throws them away. Says how many bytes the
/// second has more, at most so many, and how much longer it took: what the first takes is mostly what any store does. The first is
/// built twice, and the quicker counts: what is done for the first time now and then takes longer than all of the second.
fn rehearse<H: Hasher>(joiner: &mut Joiner<H>, bytes: u64, aside: &Aside) -> Result<(u64, Duration), Failure> {
    let height = joiner.target().height;
    let mut build = |bytes_max: u64| -> Result<(u64, Duration), Failure> {
        let begun = Instant::now();
        let mut building = Store::<H>::build(aside.directory()?, keelstone_store::Options::default(), height)?;
        let handed = joiner.rehearse(bytes_max, |name, key, value| building.push(name, key, value));
        let bytes = handed.map_err(|error| Failure::error(error.to_string()))?;
        drop(building.finish_as_found()?);
        let took = begun.elapsed();
        aside.begin_again()?;
        Ok((bytes, took))
    };
    let (first, again, (much, took)) = (build(bytes / 8)?, build(bytes / 8)?, build(bytes)?);
    let (little, took_little) = if again.1 < first.1 { again } else { first };
    Ok((much.saturating_sub(little), took.saturating_sub(took_little)))
}

/// A version as it is put on record.
fn stood(Version { height, root }: Version) -> Standing {
    Standing { height, root }
}

/// What of the home's own a state would replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begun {
    /// Nothing.
    Empty,
    /// Blocks of its own.
    Replaces,
    /// It is that state.
    There,
}

/// How far it is, on a bar or in lines.
struct Shown<'a> {
    out: &'a Out,
    bar: ProgressBar,
    every: Option<Duration>,
    last: Option<Instant>,
}

impl<'a> Shown<'a> {
    fn new(out: &'a Out, every: Option<u64>) -> Self {
        let bar = out.progress("syncing", 0);
        let style = ProgressStyle::with_template("  {msg} {bar:30.cyan/dim} {bytes}/{total_bytes}")
            .expect("the template is a constant and valid");
        bar.set_style(style);
        Self { out, bar, every: every.map(Duration::from_secs), last: None }
    }

    fn show(&mut self, progress: &Progress, version: Version) {
        let total = progress.total.unwrap_or_default();
        let percent = format!("{}.{:02}", progress.done_per_ten_thousand / 100, progress.done_per_ten_thousand % 100);
        let speed = bytes(progress.bytes_per_second);
        let left = progress.left_ms.map_or_else(|| "unknown".to_owned(), |ms| format!("{} s", ms.div_ceil(1000)));
        self.bar.set_length(total.bytes);
        self.bar.set_position(progress.done.bytes);
        self.bar.set_message(format!("{percent} %, {speed}/s, {left} left, {} peers", progress.peers));
        let is_due = self.every.is_some_and(|every| self.last.is_none_or(|last| last.elapsed() >= every));
        if !is_due {
            return;
        }
        self.last = Some(Instant::now());
        let line = match self.out.is_json() {
            true => json!({ "progress": {
                "height": version.height, "nodes": progress.nodes, "entries": progress.done.count,
                "entries_total": progress.total.map(|total| total.count), "bytes": progress.done.bytes,
                "bytes_total": progress.total.map(|total| total.bytes), "received_bytes": progress.received_bytes,
                "nodes_per_second": progress.nodes_per_second, "bytes_per_second": progress.bytes_per_second,
                "percent": percent, "left_ms": progress.left_ms, "peers": progress.peers,
                "requests": progress.requests,
            } })
            .to_string(),
            false => format!(
                "{percent} %: {} nodes, {} of {} entries, {} of {}, {} nodes/s, {speed}/s, {left} left, {} peers",
                grouped(progress.nodes),
                grouped(progress.done.count),
                grouped(total.count),
                bytes(progress.done.bytes),
                bytes(total.bytes),
                grouped(progress.nodes_per_second),
                progress.peers,
            ),
        };
        // With standard error closed nobody wants to know.
        let _ = writeln!(std::io::stderr(), "{line}");
    }

    fn done(&self) {
        self.bar.finish_and_clear();
    }
}
