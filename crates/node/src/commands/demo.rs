//! `keelstone demo`: what this software does, shown on a chain of its own in a minute.
//!
//! Nothing is staged: every transaction is signed, goes through the pool into a block, and is committed to disk; the
//! proofs are verified with nothing but a root; the process that commits is killed in the middle; the whole chain is
//! run again. Each claim is a check, and the exit code is 0 only if every one of them held.

use super::init::fresh_genesis;
use super::node::{Maker, Node};
use super::proof;
use crate::api::{Entry, Page};
use crate::clock::now;
use crate::context::Context;
use crate::engine::{self, Engine};
use crate::exit::{Exit, Failure};
use crate::home::Home;
use crate::interrupt::passing;
use crate::keyfile::{KeyDir, PRODUCER};
use crate::out::{Ink, Out, bytes, grouped, short};
use crate::story::{Cast, Story, worker_bundle};
use clap::Args;
use keelstone_codec::{Encode as _, Hash, Key, Namespace, Root, Tag, TaggedHasher, unhex};
use keelstone_ledger::{Committed, SecretKey, Verdict};
use serde_json::json;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Blocks of the story.
const BLOCKS: u64 = 300;
/// The story is told in about so many lines.
const LINES: u64 = 18;
/// Blocks that must be durable before the process that makes them is killed.
const BLOCKS_BEFORE_KILL: usize = 25;
/// How long that may take.
const KILL_DEADLINE: Duration = Duration::from_secs(60);
/// The namespaces the story writes to.
const NAMESPACES: [&str; 3] = ["agents", "memes", "social"];

/// Show what a chain does: a story, a failure, proofs, a crash and a replay
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// End when everything is shown, instead of serving the chain; exit code 0 only if every check held
    #[arg(long)]
    once: bool,
    /// With --once, leave the directory that was made, which else is removed
    #[arg(long, requires = "once")]
    keep: bool,
    /// Commit blocks until killed, printing each height and root once durable
    #[arg(long, hide = true)]
    until_killed: bool,
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    if options.until_killed {
        return commit_until_killed(context);
    }
    context.takes("the story of the demo", "memes.post/1")?;
    // A directory that was asked for is somebody's; one that is made here goes with the demo.
    if context.home_given {
        return show(&context.home, &options, false, context);
    }
    if !options.once || options.keep {
        return show(&Home::new(fresh_directory()?), &options, false, context);
    }
    let dir = passing(fresh_directory, || ())?;
    let home = Home::new(dir.clone());
    let kept = format!("what it made is in {}", dir.display());
    let exit = show(&home, &options, true, context).map_err(|failure| match failure.hint {
        None => failure.hint(&kept),
        Some(_) => failure,
    })?;
    match exit {
        Exit::Ok => std::fs::remove_dir_all(&dir)
            .map_err(|error| Failure::io(format_args!("could not remove {}", dir.display()), &error))?,
        // For a look at what did not hold.
        _ => context.out.say(kept),
    }
    Ok(exit)
}

/// The demonstration in a home directory, which is to be removed if all of it holds, or else stays.
fn show(home: &Home, options: &Options, passing: bool, context: &Context<'_>) -> Result<Exit, Failure> {
    let started = Instant::now();
    let mut demo = Demo::begin(home, passing, context)?;
    demo.tell_story()?;
    demo.fail_one()?;
    demo.prove_two()?;
    let mut demo = demo.kill_and_reopen()?;
    demo.replay()?;
    demo.finish(options.once, started.elapsed())
}

/// A demonstration under way.
struct Demo<'a> {
    context: &'a Context<'a>,
    out: &'a Out,
    home: Home,
    /// Whether the home is to be removed if all checks hold.
    passing: bool,
    engine: Arc<dyn Engine>,
    producer: SecretKey,
    story: Story,
    checks: Vec<(&'static str, bool)>,
}

impl<'a> Demo<'a> {
    fn begin(home: &Home, passing: bool, context: &'a Context<'a>) -> Result<Self, Failure> {
        let (out, home) = (context.out, home.clone());
        let keys = KeyDir::new(home.path());
        let mut genesis = fresh_genesis("keelstone-demo", "blake3")?;
        let producer = SecretKey::generate().map_err(|error| Failure::io("no randomness for a new key", &error))?;
        genesis.producers = vec![producer.public()];
        home.write_genesis(&genesis)?;
        keys.save(PRODUCER, &producer)?;
        let cast = Cast::gather(&keys)?;
        let engine = engine::open(&home, &context.config_of(&home)?.0, &context.application.registry)?;

        out.say(out.ink(Ink::Title, "Keelstone") + ": a chain of agents, alliances and memes");
        let until = if passing { ", and is removed at the end" } else { "" };
        out.say(out.ink(Ink::Quiet, format_args!("everything is in {}{until}", home.path().display())));
        let story = Story::new(cast, &genesis.chain_id);
        let demo = Self { context, out, home, passing, engine, producer, story, checks: Vec::new() };
        demo.heading(1, "A chain begins, with nothing in it but its own rules");
        let status = demo.engine.status()?;
        out.row("genesis", short(&status.genesis_hash));
        out.row("root", short(&status.root));
        Ok(demo)
    }

    fn heading(&self, number: u32, text: &str) {
        self.out.say("");
        self.out.say(self.out.ink(Ink::Title, format_args!("{number}  {text}")));
    }

    /// Says whether something held, and remembers it.
    fn check(&mut self, claim: &'static str, held: bool) {
        let mark = if held { self.out.ink(Ink::Good, "✓") } else { self.out.ink(Ink::Bad, "✗") };
        self.out.say(format_args!("  {mark} {claim}"));
        self.checks.push((claim, held));
    }

    fn block(&self) -> Result<Arc<Committed>, Failure> {
        let made = self.engine.produce(now(), self.producer.public(), true)?;
        made.ok_or_else(|| Failure::error("no block was made"))
    }

    fn tell_story(&mut self) -> Result<(), Failure> {
        self.heading(2, "A story, told in signed bundles");
        let (mut bundles, mut operations, mut failed) = (0u64, 0u64, 0u64);
        let started = Instant::now();
        let bar = self.out.progress("blocks", BLOCKS);
        for number in 1..=BLOCKS {
            for transaction in self.story.next_block() {
                self.engine.submit(&transaction.to_bytes())?;
            }
            let committed = self.block()?;
            self.story.learn(&committed);
            bundles += committed.receipts.len() as u64;
            for receipt in &committed.receipts {
                match &receipt.verdict {
                    Verdict::Succeeded { operations: done, .. } => operations += done.len() as u64,
                    _ => failed += 1,
                }
            }
            if number <= 4 || number % (BLOCKS / (LINES - 4)) == 0 {
                bar.suspend(|| self.tell(&committed));
            }
            bar.set_position(number);
        }
        bar.finish_and_clear();
        let took = started.elapsed();
        let rate = u128::from(bundles) * 1000 / took.as_millis().max(1);
        self.out.say(format_args!(
            "  {} blocks, {} bundles, {} operations; {} bundles/s, every block on disk before the next",
            grouped(BLOCKS),
            grouped(bundles),
            grouped(operations),
            grouped(u64::try_from(rate).unwrap_or(u64::MAX))
        ));
        self.check("every bundle of the story took effect", failed == 0 && bundles >= BLOCKS);
        Ok(())
    }

    /// One line of the story: what happened, the link of the hash chain it made, and the root that commits to it.
    fn tell(&self, committed: &Committed) {
        let height = committed.block.height.0;
        let what = self.story.describe(committed);
        let link = committed.receipts.last().and_then(|receipt| match &receipt.verdict {
            Verdict::Succeeded { operations, .. } => operations.last().map(|last| short(last.state_hash.0)),
            _ => None,
        });
        let out = self.out;
        let hashes = format!("link {}  root {}", link.unwrap_or_default(), short(committed.root.0));
        out.say(format_args!("  {height:>4}  {what:<56} {}", out.ink(Ink::Quiet, hashes)));
    }

    fn fail_one(&mut self) -> Result<(), Failure> {
        self.heading(3, "A bundle that expects another outcome than it gets");
        let before = self.picture()?;
        let (sender, transaction) = self.story.doomed();
        let nonce = self.engine.account(&sender)?.nonce;
        self.engine.submit(&transaction.to_bytes())?;
        let committed = self.block()?;
        self.story.learn(&committed);
        let after = self.picture()?;
        let nonce_after = self.engine.account(&sender)?.nonce;
        let failure = committed.receipts.first().and_then(|receipt| match &receipt.verdict {
            Verdict::Failed(failure) => Some(failure.clone()),
            _ => None,
        });
        let out = self.out;
        out.say("  three operations, one bundle; the third carries an expected_diff that cannot be met");
        if let Some(failure) = &failure {
            let text = |hash: Option<Hash>| hash.map(short).unwrap_or_default();
            out.row("failed at", format_args!("operation {}, counted from 0", failure.operation));
            out.row("expected", text(failure.expected));
            out.row("actual", text(failure.actual));
        }
        out.row("state before", short(before));
        out.row("state after", short(after));
        let told = failure.is_some_and(|failure| {
            failure.operation == 2 && failure.expected.is_some() && failure.expected != failure.actual
        });
        self.check("the receipt names the operation, what it expected and what it found", told);
        self.check(
            "nothing of the bundle remains: agents, memes and society are byte for byte as before",
            before == after,
        );
        self.check("its nonce is used, so it cannot be sent again", nonce_after == nonce + 1);
        Ok(())
    }

    /// A digest of everything the story's namespaces hold.
    fn picture(&self) -> Result<Hash, Failure> {
        let mut digest = TaggedHasher::new(Tag::new("demo-picture"));
        for name in NAMESPACES {
            let namespace = namespace(name);
            let mut page = Page { limit: 1000, ..Page::default() };
            loop {
                let entries = self.engine.entries(&namespace, &page, None, false)?;
                for pair in &entries.entries {
                    digest.value(&pair.key).value(&pair.value);
                }
                let Some(next) = entries.next else { break };
                page.after = unhex(next).ok();
            }
        }
        Ok(digest.finish())
    }

    fn prove_two(&mut self) -> Result<(), Failure> {
        self.heading(4, "Proofs that need no database");
        let agents = namespace("agents");
        let someone = self.story.someone();
        let entries = self.engine.entries(&agents, &Page { limit: 1000, ..Page::default() }, None, false)?;
        let found = entries.entries.iter().find(|pair| pair.key.ends_with(&someone.to_string()));
        let key = found.map(|pair| unhex(&pair.key)).transpose().ok().flatten();
        let key = key.ok_or_else(|| Failure::integrity("an agent that registered is not in the state"))?;
        // The same place with the last byte changed: nobody is registered there.
        let mut other = key.clone();
        if let Some(last) = other.last_mut() {
            *last ^= 1;
        }
        let key_of = |bytes: Vec<u8>| Key::new(bytes).map_err(|error| Failure::error(error.to_string()));
        let present = self.engine.entry(&agents, &key_of(key)?, None, true)?;
        let absent = self.engine.entry(&agents, &key_of(other)?, None, true)?;
        // From here on only the root and the proofs are used, as a light client would.
        let root = Root::from_hex(&present.root).map_err(|error| Failure::error(error.to_string()))?;
        for (name, claim) in [("present", &present), ("absent", &absent)] {
            let size = claim.proof.as_ref().map_or(0, |proof| proof.len() as u64 / 2);
            self.out.row(name, format_args!("agents {}  proof of {}", short(&claim.key), bytes(size)));
        }
        self.check(
            "an agent's record is proven present",
            proof::verify(&present, root).is_ok_and(|value| value.is_some()),
        );
        self.check(
            "a neighbouring key is proven absent",
            proof::verify(&absent, root).is_ok_and(|value| value.is_none()),
        );
        let forged = flip_a_bit(&present);
        self.check("the same proof with one bit changed is refused", proof::verify(&forged, root).is_err());
        Ok(())
    }

    /// Lets another process commit, kills it in the middle, and opens what it left.
    fn kill_and_reopen(mut self) -> Result<Self, Failure> {
        self.heading(5, "Kill -9 in the middle of committing, and open again");
        // The directory has one owner: this process lets go of it first.
        let Self { context, out, home, passing, producer, story, checks, engine } = self;
        drop(engine);
        let acknowledged = run_and_kill(&home)?;
        let opened = Instant::now();
        let engine = engine::open(&home, &context.config_of(&home)?.0, &context.application.registry)?;
        let took = opened.elapsed();
        self = Self { context, out, home, passing, producer, story, checks, engine };

        let status = self.engine.status()?;
        let last = acknowledged.last().map_or(0, |(height, _)| *height);
        out.row("acknowledged", format_args!("up to block {}", grouped(last)));
        out.row("found", format_args!("block {}, opened in {} ms", grouped(status.height), took.as_millis()));
        let mut same = !acknowledged.is_empty();
        for (height, root) in &acknowledged {
            let block = self.engine.block(Some(keelstone_codec::Height(*height)))?;
            same &= block.root.as_deref() == Some(root);
        }
        self.check("no acknowledged block is lost", status.height >= last && last > 0);
        self.check("every acknowledged root is found again", same);
        Ok(self)
    }

    fn replay(&mut self) -> Result<(), Failure> {
        self.heading(6, "The whole chain, run again from its genesis");
        let bar = self.out.progress("blocks", 0);
        let replayed = self.engine.replay(None, None, &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        });
        bar.finish_and_clear();
        let status = self.engine.status()?;
        match &replayed {
            Ok(engine::Replayed { replayed, .. }) => {
                let (blocks, transactions) = (grouped(replayed.blocks), grouped(replayed.transactions));
                self.out.row("ran", format_args!("{blocks} blocks, {transactions} transactions"));
                self.out.row("root", replayed.root.0);
            }
            Err(failure) => self.out.row("failed", failure),
        }
        let same = replayed.is_ok_and(|replayed| replayed.replayed.root.0.to_string() == status.root);
        self.check("the replay ends in the same root, and every root on the way is the same", same);
        Ok(())
    }

    fn finish(self, once: bool, took: Duration) -> Result<Exit, Failure> {
        let Self { context, out, home, passing, engine, producer, checks, .. } = self;
        let held = checks.iter().filter(|(_, held)| *held).count();
        let all = held == checks.len();
        let status = engine.status()?;
        out.say("");
        let summary =
            format!("{held} of {} checks held, in {}.{} s", checks.len(), took.as_secs(), took.subsec_millis() / 100);
        out.say(out.ink(if all { Ink::Good } else { Ink::Bad }, summary));
        let shown: Vec<_> = checks.iter().map(|(claim, held)| json!({ "claim": claim, "held": held })).collect();
        let exit = if all { Exit::Ok } else { Exit::Integrity };
        let kept = (!passing || !all).then(|| home.path());
        out.emit(&json!({
            "home": kept, "height": status.height, "root": status.root, "all_held": all, "checks": shown,
        }));
        if once {
            return Ok(exit);
        }
        let mut config = context.config_of(&home)?.0;
        if std::net::TcpListener::bind(config.http.listen).is_err() {
            config.http.listen = SocketAddr::new(config.http.listen.ip(), 0);
        }
        let node = Node::start(engine, &config, &home, Maker::Solo(producer.public()), context)?;
        let (program, at) = (context.application.program(), format!("--home {}", home.path().display()));
        out.say("");
        out.say(out.ink(Ink::Title, "The chain goes on. Its HTTP API listens at") + &format!(" {}", node.url()));
        for line in [
            format!("curl {}/v1/status", node.url()),
            format!("curl -N {}/v1/events", node.url()),
            format!("{program} {at} query functions"),
            format!("{program} {at} query list memes"),
            format!(
                "echo '{{\"operations\":[{{\"call\":\"memes.post/1\",\"args\":{{\"text\":\"hello\"}}}}]}}' | {program} {at} tx send - --from ada"
            ),
        ] {
            out.say(format_args!("  {}", out.ink(Ink::Value, line)));
        }
        out.say(out.ink(Ink::Quiet, "Ctrl-C stops it; nothing is lost."));
        node.run_until_signal()?;
        Ok(exit)
    }
}

fn namespace(name: &str) -> Namespace {
    Namespace::new(name).expect("the names are constants and valid")
}

/// The same claim with one bit of its proof changed.
fn flip_a_bit(claim: &Entry) -> Entry {
    let mut proof = claim.proof.as_ref().and_then(|digits| unhex(digits).ok()).unwrap_or_default();
    let middle = proof.len() / 2;
    if let Some(byte) = proof.get_mut(middle) {
        *byte ^= 1;
    }
    Entry { proof: Some(hex::encode(proof)), ..claim.clone() }
}

/// A directory that did not exist, here if that can be written to, else among temporary files.
pub(super) fn fresh_directory() -> Result<PathBuf, Failure> {
    let mut random = [0; 4];
    getrandom::fill(&mut random).map_err(|error| Failure::io("no randomness for a directory's name", &error))?;
    let name = format!("keelstone-demo-{}", hex::encode(random));
    let here = PathBuf::from(&name);
    let path = if std::fs::create_dir(&here).is_ok() { here } else { std::env::temp_dir().join(name) };
    std::fs::create_dir_all(&path)
        .map_err(|error| Failure::io(format_args!("could not make {}", path.display()), &error))?;
    std::path::absolute(&path).map_err(|error| Failure::io("no current directory", &error))
}

/// Starts this program on the directory, kills it once enough blocks are acknowledged, and returns those.
fn run_and_kill(home: &Home) -> Result<Vec<(u64, String)>, Failure> {
    let failed = |error: std::io::Error| Failure::io("could not run the process that is to be killed", &error);
    let mut child = Command::new(std::env::current_exe().map_err(failed)?)
        .args(["demo", "--until-killed", "--home"])
        .arg(home.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let stdout = child.stdout.take().ok_or_else(|| Failure::error("the process has no output"))?;
    let (lines, acknowledged) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                break;
            }
        }
    });
    let mut seen = Vec::new();
    let deadline = Instant::now() + KILL_DEADLINE;
    let parse = |line: &str| {
        let (height, root) = line.split_once(' ')?;
        Some((height.parse().ok()?, root.to_owned()))
    };
    while seen.len() < BLOCKS_BEFORE_KILL {
        match acknowledged.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => seen.extend(parse(&line)),
            Err(_) => break,
        }
    }
    // SIGKILL: no handler runs, nothing is flushed.
    child.kill().map_err(failed)?;
    child.wait().map_err(failed)?;
    // What it said before the signal reached it counts as acknowledged too.
    while let Ok(line) = acknowledged.recv_timeout(Duration::from_millis(200)) {
        seen.extend(parse(&line));
    }
    Ok(seen)
}

/// The process that is killed: commits blocks and says each height and root once it is durable.
fn commit_until_killed(context: &Context<'_>) -> Result<Exit, Failure> {
    let engine = context.open_to_run(&context.config()?.0)?;
    let keys = KeyDir::new(context.home.path());
    let producer = keys.public(PRODUCER)?;
    let writer = Cast::load_first(&keys)?;
    let chain_id = context.home.read_genesis()?.chain_id;
    let mut stdout = std::io::stdout().lock();
    loop {
        let (nonce, height) = (engine.account(&writer.public())?.nonce, engine.status()?.height);
        engine.submit(&worker_bundle(&chain_id, &writer, nonce, height).to_bytes())?;
        let Some(committed) = engine.produce(now(), producer, false)? else {
            return Err(Failure::error("a transaction was taken in, but is in no block"));
        };
        let line = format!("{} {}\n", committed.block.height, committed.root.0);
        if stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush()).is_err() {
            return Ok(Exit::Ok); // Whoever listened is gone.
        }
    }
}
