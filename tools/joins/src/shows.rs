//! What is shown, one after the other, each with its line.

use crate::Arguments;
use crate::chain::Chain;
use crate::figures::{mib, mib_per_second, percent, seconds, share, times};
use crate::hosts::Hosts;
use crate::liar::{Liar, Manner};
use crate::processes::{Joined, Joiner, Server, ask};
use keelstone_codec::splitmix64;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What can be shown, in order: the last leaves the chain at another height, and so at another root, than those before compare with.
pub(crate) const NAMES: [&str; 5] = ["plain", "kills", "servers", "liars", "moving"];
/// Nodes that give.
const SERVERS: u8 = 4;
/// All nodes: those that give, and the one that joins.
pub(crate) const NODES: u8 = SERVERS + 1;
/// The number of the one that joins.
const JOINER: u8 = SERVERS;

/// MiB in a second, at least; or as quick as `rsync` of the same store, which is what the disk gives.
const MIB_PER_SECOND: u64 = 150;
/// Memory of the joiner, at most.
const MEMORY: u64 = 300 << 20;
/// Bytes that come for each 10,000 of the state, at most.
const WIRE: u64 = 10_500;
/// How far the forecast may be off, in ten-thousandths of what was left.
const FORECAST: u64 = 1_000;
/// A join that has less than this left is over before it can be foretold.
const FORECAST_LEAST: Duration = Duration::from_secs(3);
/// What may come again, in ten-thousandths of one transfer, however often a joiner is killed.
const AGAIN: u64 = 100;
/// How long a request may take beside a liar, in milliseconds; one that lied is left alone for a part of this.
const LIARS_TIMEOUT_MS: u64 = 2_000;
/// By how much a liar may slow a join down, in ten-thousandths.
const SLOWER: u64 = 3_000;
/// A liar that lied so often must be banned.
const LIES_MAX: u32 = 3;
/// How often the chain makes a block while the target moves.
const MOVES_EVERY: Duration = Duration::from_secs(5);
/// How long its peers take to give all of it.
const MOVES_FOR: Duration = Duration::from_secs(25);
/// The least they may be told to give in a second.
const SLOW_LEAST: u64 = 65_536;
/// How many heights a joiner may be behind when it is done.
const LAG: u64 = 3;

/// All there is to show.
pub(crate) struct Shows<'a> {
    pub(crate) arguments: &'a Arguments,
    pub(crate) place: &'a Path,
    pub(crate) chain: &'a Chain,
    pub(crate) hosts: &'a Hosts,
}

/// One line, and whether it holds.
struct Shown {
    line: String,
    broken: Vec<String>,
}

impl Shown {
    fn new(line: String) -> Self {
        Self { line, broken: Vec::new() }
    }

    fn holds(&mut self, is_so: bool, what: impl FnOnce() -> String) {
        if !is_so {
            self.broken.push(what());
        }
    }
}

impl Shows<'_> {
    /// Shows what was asked for. Whether all of it holds.
    pub(crate) fn run(&self) -> Result<bool, String> {
        for node in 1..SERVERS {
            self.chain.copy(&self.home(node))?;
        }
        let mut held = true;
        for name in NAMES {
            if self.arguments.only.as_ref().is_some_and(|only| !only.iter().any(|wanted| wanted == name)) {
                continue;
            }
            let shown = match name {
                "plain" => self.plain(),
                "kills" => self.kills(),
                "servers" => self.servers(),
                "moving" => self.moving(),
                _ => self.liars(),
            };
            let Shown { line, broken } = shown.map_err(|wrong| format!("{name}: {wrong}"))?;
            let verdict = if broken.is_empty() { "ok".to_owned() } else { format!("NOT SO: {}", broken.join("; ")) };
            println!("{name:8} {line}  {verdict}");
            held &= broken.is_empty();
            let _ = fs::remove_dir_all(self.joining());
        }
        Ok(held)
    }

    /// Where a node that gives lives.
    fn home(&self, node: u8) -> PathBuf {
        match node {
            0 => self.chain.home.clone(),
            _ => self.place.join(format!("node{node}")),
        }
    }

    /// Where the joiner lives.
    fn joining(&self) -> PathBuf {
        self.place.join("joiner")
    }

    /// All that give. Nobody makes blocks unless asked to, so all stand at the same height.
    fn start(&self) -> Result<Vec<Server>, String> {
        (0..SERVERS).map(|node| self.serve(node, &[])).collect()
    }

    /// One that gives, with further settings.
    fn serve(&self, node: u8, settings: &[&str]) -> Result<Server, String> {
        self.serve_in(&self.home(node), node, settings)
    }

    /// One that gives what is in a home, where a node lives.
    fn serve_in(&self, home: &Path, node: u8, settings: &[&str]) -> Result<Server, String> {
        let mut command = self.hosts.command(node, &self.arguments.keelstone);
        command.args(["node", "--json", "--home"]).arg(home);
        let listen = format!("p2p.listen={}:0", self.hosts.address(node));
        let quic = format!("p2p.quic={}", self.arguments.quic);
        for setting in ["http.listen=127.0.0.1:0", "p2p.enabled=true", &listen, &quic].iter().chain(settings) {
            command.args(["--set", setting]);
        }
        Server::start(command)
    }

    /// A joiner of these peers, with further arguments.
    fn joiner(&self, servers: &[Server], further: &[&str]) -> Result<Joiner, String> {
        let quic = if self.arguments.quic { "/quic" } else { "" };
        let addresses: Vec<_> = servers.iter().map(|server| format!("{}{quic}", server.address)).collect();
        self.joiner_of(addresses.iter(), further)
    }

    /// The same of whoever is at these addresses.
    fn joiner_of<'s>(&self, peers: impl Iterator<Item = &'s String>, further: &[&str]) -> Result<Joiner, String> {
        let mut command = self.hosts.command(JOINER, &self.arguments.keelstone);
        command.args(["sync", "--json", "--progress", "1", "--set", "snapshots.reserve_percent=0"]);
        for address in peers {
            command.args(["--peer", address]);
        }
        for setting in &self.arguments.set {
            command.args(["--set", setting]);
        }
        command.args(further).arg("--genesis").arg(self.chain.genesis()).arg("--home").arg(self.joining());
        Joiner::start(command, &self.joining())
    }

    /// Has the producer make a block.
    fn make_block(&self, calls: &Value) -> Result<u64, String> {
        let file = self.place.join("bundle.json");
        fs::write(&file, json!({ "operations": calls }).to_string()).map_err(|error| error.to_string())?;
        let mut command = self.hosts.command(0, &self.arguments.keelstone);
        command.args(["tx", "send", "--json", "--from", "producer", "--home"]).arg(self.home(0)).arg(&file);
        let sent = ask(&mut command)?;
        sent["receipt"]["height"].as_u64().ok_or_else(|| format!("no height in {sent}"))
    }

    /// The root of the producer's last block. Of earlier heights it keeps none.
    fn root_of(&self, height: u64) -> Result<String, String> {
        let mut command = self.hosts.command(0, &self.arguments.keelstone);
        command.args(["query", "block", &height.to_string(), "--json", "--home"]).arg(self.home(0));
        let block = ask(&mut command)?;
        block["root"].as_str().map(str::to_owned).ok_or_else(|| format!("no root in {block}"))
    }

    fn same(&self, shown: &mut Shown, joined: &Joined) {
        shown.holds(joined.root == self.chain.root, || format!("root {} and not {}", joined.root, self.chain.root));
    }

    /// Nobody dies and nobody lies.
    fn plain(&self) -> Result<Shown, String> {
        let servers = self.start()?;
        let before = self.hosts.received(JOINER);
        let worked = || servers.iter().map(Server::worked).sum::<Duration>();
        let worked_before = worked();
        let joined = self.joiner(&servers, &[])?.join()?;
        let worked = worked() - worked_before;
        let wire = self.hosts.received(JOINER).zip(before).map(|(after, before)| after - before);
        let bytes = self.chain.bytes;
        drop(servers);
        let rsync = self.beside("rsync", &["-a"])?;
        let cp = self.beside("cp", &["-r"])?;
        let speed = mib_per_second(bytes, joined.took);
        let came = share(wire.unwrap_or(joined.received), bytes);
        let forecast = forecast(&joined);
        let said = |time: Option<Duration>| {
            time.map_or("none here".to_owned(), |took| format!("{} MiB/s", mib_per_second(bytes, took)))
        };
        let mut shown = Shown::new(format!(
            "{} in {}: {speed} MiB/s verified and durable (rsync {}, cp {}); \
             {} of processor time here and {} there; {} of memory; {} times the state came; {}",
            mib(bytes),
            seconds(joined.took),
            said(rsync),
            said(cp),
            seconds(joined.worked),
            seconds(worked),
            mib(joined.memory),
            times(came),
            forecast.map_or("too short to foretell".to_owned(), |(off, left)| {
                format!("{} left was foretold to {}", seconds(left), percent(off))
            }),
        ));
        self.same(&mut shown, &joined);
        let disk = rsync.is_some_and(|took| joined.took <= took);
        shown.holds(speed >= MIB_PER_SECOND || disk, || format!("slower than {MIB_PER_SECOND} MiB/s and than rsync"));
        shown.holds(joined.memory < MEMORY, || format!("more than {}", mib(MEMORY)));
        shown.holds(came < WIRE, || format!("more than {} times the state", times(WIRE)));
        shown.holds(forecast.is_none_or(|(off, _)| off <= FORECAST), || {
            format!("off by more than {}", percent(FORECAST))
        });
        Ok(shown)
    }

    /// How long it takes to copy the store's files durably with a program, if that is there.
    fn beside(&self, program: &str, arguments: &[&str]) -> Result<Option<Duration>, String> {
        let to = self.place.join("copied");
        let started = Instant::now();
        let mut command = Command::new(program);
        command.args(arguments).arg(self.chain.store()).arg(&to).stdin(Stdio::null());
        let copied = match command.status() {
            Ok(status) if status.success() => {
                let synced = Command::new("sync").arg("-f").arg(&to).status();
                synced.map_err(|error| format!("sync: {error}"))?;
                Some(started.elapsed())
            }
            Ok(status) => return Err(format!("{program}: {status}")),
            Err(_) => None,
        };
        let _ = fs::remove_dir_all(&to);
        Ok(copied)
    }

    /// Bytes that have come to the joiner so far, in all its lives: over its link, or as those that give count them.
    fn came(&self, servers: &[Server]) -> Result<u64, String> {
        let counted = || servers.iter().map(Server::served).sum::<Option<u64>>();
        self.hosts.received(JOINER).or_else(counted).ok_or_else(|| "nobody says what was sent".to_owned())
    }

    /// The joiner is killed again and again.
    fn kills(&self) -> Result<Shown, String> {
        let servers = self.start()?;
        let before = self.came(&servers)?;
        self.joiner(&servers, &[])?.join()?;
        fs::remove_dir_all(self.joining()).map_err(|error| error.to_string())?;
        let once = self.came(&servers)? - before;
        let mut seed = self.arguments.seed;
        let bytes = self.chain.bytes;
        let mut points: Vec<u64> = (0..self.arguments.kills).map(|_| splitmix64(&mut seed) % bytes).collect();
        points.sort_unstable();
        for point in points {
            let mut joiner = self.joiner(&servers, &[])?;
            joiner.reaches(point)?;
            joiner.kill()?;
        }
        let joined = self.joiner(&servers, &[])?.join()?;
        let again = share((self.came(&servers)? - before - once).saturating_sub(once), once);
        let mut shown = Shown::new(format!(
            "{} kills: {} of one transfer came again, in all lives together, {} a kill; the last life took {}",
            self.arguments.kills,
            percent(again),
            percent(again / self.arguments.kills.max(1) as u64),
            seconds(joined.took),
        ));
        self.same(&mut shown, &joined);
        shown.holds(again < AGAIN, || format!("more than {}", percent(AGAIN)));
        Ok(shown)
    }

    /// Half of those that give are killed midway.
    fn servers(&self) -> Result<Shown, String> {
        let mut servers = self.start()?;
        let mut joiner = self.joiner(&servers, &["--set", "p2p.request_timeout_ms=3000"])?;
        joiner.reaches(self.chain.bytes / 2)?;
        servers.truncate(usize::from(SERVERS / 2));
        let joined = joiner.join()?;
        let mut shown =
            Shown::new(format!("{} of {SERVERS} killed at the half: done in {}", SERVERS / 2, seconds(joined.took)));
        self.same(&mut shown, &joined);
        Ok(shown)
    }
}

impl Shows<'_> {
    /// The chain goes on, and gives up the versions it had.
    fn moving(&self) -> Result<Shown, String> {
        // What is held for a joiner ends with age, and no other version is kept: it has to go over to the next.
        let age = format!("p2p.pin_age_ms_max={}", MOVES_EVERY.as_millis() * 3 / 2);
        // And it takes long enough for the chain to do so a few times.
        let each = self.chain.bytes / u64::from(SERVERS) / MOVES_FOR.as_secs();
        let slow = format!("p2p.peer_bytes_per_second={}", each.max(SLOW_LEAST));
        let forgets = ["store.history=1", &age, &slow];
        let producer = self.serve(0, &forgets)?;
        let peers = format!("p2p.peers={}", producer.address);
        let follows = [&forgets[..], &["engine.kind=follow", &peers]].concat();
        let mut servers = vec![producer];
        for node in 1..SERVERS {
            servers.push(self.serve(node, &follows)?);
        }
        let register = json!({ "call": "agents.register/1", "args": { "name": "Ada", "traits": [], "personality": {
            "openness": "0.5", "conscientiousness": "0.5", "extraversion": "0.5", "agreeableness": "0.5",
            "neuroticism": "0.5",
        } } });
        // The roots of the chain, by height, from the one that it stands at when the join begins.
        let mut roots = BTreeMap::new();
        let mut newest = self.make_block(&json!([register]))?;
        roots.insert(newest, self.root_of(newest)?);
        let mut joiner = self.joiner(&servers, &[])?;
        while joiner.runs_for(MOVES_EVERY)? {
            let post = json!({ "call": "memes.post/1", "args": { "text": format!("block {newest}") } });
            newest = self.make_block(&json!([post]))?;
            roots.insert(newest, self.root_of(newest)?);
        }
        let Joined { took, height, root, received, .. } = joiner.join()?;
        let first = roots.first_key_value().map_or(newest, |(first, _)| *first);
        let mut shown = Shown::new(format!(
            "from height {first} to {newest} meanwhile: height {height} in {}, {} times the state came",
            seconds(took),
            times(share(received, self.chain.bytes)),
        ));
        shown.moved(&roots, height, &root);
        Ok(shown)
    }
}

impl Shown {
    /// Whether a joiner went along with a chain, whose roots these are from the height on at which it began.
    fn moved(&mut self, roots: &BTreeMap<u64, String>, height: u64, root: &str) {
        let ends = roots.first_key_value().zip(roots.last_key_value());
        let Some(((first, _), (newest, _))) = ends else {
            return self.holds(false, || "there was no chain".to_owned());
        };
        self.holds(newest > first, || "the chain stood still: there is too little to join".to_owned());
        self.holds(height > *first, || format!("the state is that of height {height}, which was there from the start"));
        self.holds(newest.saturating_sub(height) <= LAG, || {
            format!("{} heights behind", newest.saturating_sub(height))
        });
        let expected = roots.get(&height).map_or("of no height", String::as_str);
        self.holds(root == expected, || format!("root {root}, the chain's is {expected}"));
    }
}

impl Shows<'_> {
    /// One of four lies, in one way after the other.
    fn liars(&self) -> Result<Shown, String> {
        let servers = self.start()?;
        let Some(one_behind) = &self.chain.behind else { return Err("nobody stayed behind".to_owned()) };
        let stale = self.serve_in(&one_behind.home, 0, &[])?;
        let timeout = format!("p2p.request_timeout_ms={LIARS_TIMEOUT_MS}");
        // Each way is compared with the joins right before and behind it: a machine is not as quick in one minute as in the next.
        let honest = || {
            let joined = self.joiner(&servers, &["--set", &timeout])?.join()?;
            fs::remove_dir_all(self.joining()).map_err(|error| error.to_string())?;
            Ok::<_, String>(joined.took)
        };
        let mut before = honest()?;
        let mut shown = Shown::new(format!("{} with nobody who lies", seconds(before)));
        for manner in Manner::ALL {
            let [others @ .., behind] = &servers[..] else { return Err("there is nobody to stand before".to_owned()) };
            let late = Duration::from_millis(LIARS_TIMEOUT_MS);
            let stale = (&*stale.address, one_behind.version);
            let liar = Liar::start(manner, self.hosts.own_address(), &behind.address, stale, late)?;
            let peers = others.iter().map(|server| &server.address).chain([&liar.address]);
            let joined = self.joiner_of(peers, &["--set", &timeout])?.join()?;
            self.same(&mut shown, &joined);
            let bans = fs::read_to_string(self.joining().join("bans.json")).unwrap_or_default();
            let id = liar.address.split('@').next().unwrap_or_default();
            let (is_banned, lies) = (bans.contains(id), liar.lies());
            let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            fs::remove_dir_all(self.joining()).map_err(|error| error.to_string())?;
            let after = honest()?;
            let usual = (before + after) / 2;
            before = after;
            let slower = share(millis(joined.took.saturating_sub(usual)), millis(usual));
            let banned = if is_banned { "banned" } else { "not banned" };
            let (took, usual) = (seconds(joined.took), seconds(usual));
            shown.line += &format!("\n         {manner:?}: {took} (else {usual}), {lies} lies, {banned}");
            shown.holds(is_banned == (lies >= LIES_MAX), || format!("{manner:?} after {lies} lies is {banned}"));
            shown.holds(!(is_banned && manner.is_blameless()), || format!("{manner:?} does not lie"));
            shown.holds(slower <= SLOWER, || format!("{manner:?} costs {}", percent(slower)));
        }
        Ok(shown)
    }
}

/// What was left when a twentieth was there, and how far the forecast was off, in ten-thousandths of that.
fn forecast(joined: &Joined) -> Option<(u64, Duration)> {
    let told = joined.told.iter().find(|told| told.bytes.saturating_mul(20) >= told.total)?;
    let left = joined.took.saturating_sub(told.at);
    let foretold = told.left.filter(|_| left >= FORECAST_LEAST)?;
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Some((share(millis(left.abs_diff(foretold)), millis(left)), left))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A chain that stands still, a state that was there from the start and one that is not the chain's prove nothing.
    #[test]
    fn a_joiner_goes_along_with_a_chain_that_moves() {
        let broken = |heights: std::ops::RangeInclusive<u64>, height, root: &str| {
            let roots = heights.map(|height| (height, format!("r{height}"))).collect();
            let mut shown = Shown::new(String::new());
            shown.moved(&roots, height, root);
            shown.broken.len()
        };
        assert_eq!(broken(8..=13, 12, "r12"), 0);
        assert_eq!(broken(8..=13, 12, "r13"), 1);
        assert_eq!(broken(8..=13, 9, "r9"), 1);
        assert_eq!(broken(8..=9, 8, "r8"), 1);
        assert_eq!(broken(8..=8, 8, "r8"), 2);
        assert_eq!(broken(8..=13, 14, "r14"), 1);
    }
}
