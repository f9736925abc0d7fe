//! What others have of a state that is to be had again: peers over libp2p, nodes that serve snapshots over HTTP, mirrors and
//! archives.
//!
//! Whoever can be asked part by part is asked by one machine, several at once, and what any of them sends meets one
//! verifier and waits in one staging directory; so what one strategy came to is there for the next, and what is whole of a
//! damaged snapshot here is fetched from nobody. Archives are read from end to end. None of them is believed: a version
//! that is the target has its root, and the blocks on any other have to come to it.
//!
//! Rules: `spec/recovery.md`, RECOVER-7.

use super::here::version_of;
use super::{Place as Home, SNAPSHOTS_TRIED_MAX, machine};
use crate::api::Refusal;
use crate::client::Remote;
use crate::config::{HttpAddress, Place};
use crate::exit::{Exit, Failure, causes};
use crate::metrics::Metrics;
use crate::p2p::{self, Joining, MirrorSource, Network, Opened, Reach, Sources, ask_all, joiner_settings};
use crate::room;
use keelstone_codec::{Decode as _, Encode as _, Hash, Height, Root};
use keelstone_store::files::Directory;
use keelstone_sync::library::{Expected, LibraryError, Origin};
use keelstone_sync::mirror::{HEAD_FILE, Mirror, Shelf};
use keelstone_sync::peers::{EntriesError, Joiner, Request, Response, Settings, Status, Version};
use keelstone_sync::recovery::{Built, Failed, Strategy, World as _};
use keelstone_sync::snapshot::{FORMAT, Metadata, SnapshotParams, snapshot_hash};
use keelstone_tree::{Hasher, Totals};
use std::cmp::Reverse;
use std::fs;
use std::io::{self, BufReader};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// After how many times what an answer may take a strategy gives way to which nothing new has come.
const STALL_TIMEOUTS: u32 = 4;
/// Most bans that are named where nobody has anything.
const BANS_TOLD_MAX: usize = 8;
/// How long another node may take for an answer without a byte.
const PEER_TIMEOUT: Duration = Duration::from_secs(20);
/// How long threads that still ask somebody may hold up the end.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(200);

/// The threads that ask others, and the connections to peers if there are any.
pub(super) struct Others {
    /// None once it is over.
    runtime: Option<Runtime>,
    network: Option<Network>,
}

impl Others {
    fn start() -> Result<Self, Failed> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.map_err(|error| Failed::Machine(format!("no threads for the network: {error}")))?;
        Ok(Self { runtime: Some(runtime), network: None })
    }

    pub(super) fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("it runs until this is dropped")
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        if let Some(network) = &self.network {
            runtime.block_on(network.stop());
        }
        // Whoever is still asked holds nothing up.
        runtime.shutdown_timeout(SHUTDOWN_GRACE);
    }
}

/// What others have, the highest first, and why it is not more.
pub(super) struct Offers {
    list: Vec<Offer>,
    none: Failed,
}

/// A version that others have.
struct Offer {
    version: Version,
    /// What it takes on the way, about.
    bytes: u64,
    held: Held,
}

/// By whom.
enum Held {
    /// By any of these, and by peers that are connected.
    Many { peers: bool, mirrors: Vec<Arc<dyn MirrorSource>> },
    /// By a file or a directory, so much.
    Archive(PathBuf, Totals),
}

/// What was found so far.
#[derive(Default)]
struct Found {
    list: Vec<Offer>,
    /// Who has nothing of use, and why.
    useless: Vec<String>,
}

impl Found {
    /// Those who hold a version part by part.
    fn many(&mut self, version: Version, bytes: u64) -> (&mut bool, &mut Vec<Arc<dyn MirrorSource>>) {
        let is_it = |offer: &Offer| offer.version == version && matches!(offer.held, Held::Many { .. });
        let at = self.list.iter().position(is_it).unwrap_or_else(|| {
            let held = Held::Many { peers: false, mirrors: Vec::new() };
            self.list.push(Offer { version, bytes, held });
            self.list.len() - 1
        });
        match &mut self.list[at].held {
            Held::Many { peers, mirrors } => (peers, mirrors),
            Held::Archive(..) => unreachable!("it was looked at just now"),
        }
    }

    fn useless(&mut self, who: impl std::fmt::Display, why: impl std::fmt::Display) {
        tracing::warn!(%who, %why, "nothing of use is to be had there");
        self.useless.push(format!("{who}: {why}"));
    }

    fn into_offers(mut self, nobody: &str) -> Offers {
        let holders = |offer: &Offer| match &offer.held {
            Held::Many { peers, mirrors } => usize::from(*peers) + mirrors.len(),
            Held::Archive(..) => 1,
        };
        self.list.sort_by_key(|offer| Reverse((offer.version.height, holders(offer))));
        let none = if self.useless.is_empty() { nobody.to_owned() } else { self.useless.join("; ") };
        Offers { list: self.list, none: Failed::Unavailable(none) }
    }
}

impl<H: Hasher> Home<'_, H> {
    /// The height and the bytes of the best that others have.
    pub(super) fn best_offer(&mut self, strategy: Strategy, target: &Version) -> Option<(Height, u64)> {
        let offers = self.offers_of(strategy, target);
        let best = offers.list.first().map(|offer| (offer.version.height, offer.bytes));
        // Whoever builds does not ask again.
        self.offers.insert(strategy, offers);
        best
    }

    /// Builds the target from what others have, trying one version after the other.
    pub(super) fn had_elsewhere(&mut self, strategy: Strategy, target: &Version) -> Result<Built, Failed> {
        let Offers { list, none } = self.offers_of(strategy, target);
        let name = |offer: &Offer| format!("the state of height {} elsewhere", offer.version.height);
        self.first_of(list.into_iter().take(SNAPSHOTS_TRIED_MAX), none, name, |home, offer| match &offer.held {
            Held::Many { peers, mirrors } => home.take(strategy, offer.version, (*peers, mirrors), target),
            Held::Archive(path, totals) => home.unpack(strategy, offer.version, (path, *totals), target),
        })
    }

    fn offers_of(&mut self, strategy: Strategy, target: &Version) -> Offers {
        if let Some(known) = self.offers.remove(&strategy) {
            return known;
        }
        match strategy {
            Strategy::PeerStateSync => self.offers_of_peers(target),
            _ => self.offers_of_places(target),
        }
    }

    /// What nodes serve over HTTP, and what peers over libp2p have.
    fn offers_of_peers(&mut self, target: &Version) -> Offers {
        let (mut found, params) = (Found::default(), self.params());
        let config = self.config;
        let nodes = &config.check.peers;
        for node in nodes {
            let served = match served::<H>(node, &params) {
                Ok(served) => served,
                Err(failed) => {
                    found.useless(node, failed);
                    continue;
                }
            };
            if served.is_empty() {
                found.useless(node, "it serves no snapshot");
            }
            for snapshot in served {
                let (version, bytes) = (snapshot.mirror().version(), snapshot.mirror().bytes());
                match self.usable(version, target) {
                    Ok(()) => found.many(version, bytes).1.push(Arc::new(snapshot)),
                    Err(failed) => found.useless(node, failed),
                }
            }
        }
        if config.p2p.dials_nobody() && nodes.is_empty() {
            return found.into_offers("no peer is configured (p2p.peers, check.peers)");
        }
        if let Err(failed) = self.ask_peers(target, &mut found) {
            found.useless("peers", failed);
        }
        if found.list.is_empty() && !config.p2p.dials_nobody() {
            // Whoever is banned is not asked, and may be the one who has it.
            let bans = p2p::Bans::open(&self.home.bans());
            for (peer, why) in bans.iter().flat_map(|bans| bans.told(BANS_TOLD_MAX)) {
                found.useless(peer, why);
            }
        }
        found.into_offers("nobody could be reached")
    }

    fn ask_peers(&mut self, target: &Version, found: &mut Found) -> Result<(), Failed> {
        if self.config.p2p.dials_nobody() {
            return Ok(());
        }
        let network = self.meet()?;
        let sources = Sources { network: Some(network), mirrors: Vec::new(), stop: self.wish.stop.clone() };
        let patience = Duration::from_millis(self.config.p2p.request_timeout_ms);
        let bytes = self.state_bytes();
        let this = &*self;
        let runtime = this.others.as_ref().map(Others::runtime).expect("there is a network just now");
        ask_all(runtime, &sources, patience, &Request::Status, &mut |who, answer| {
            let led = match answer {
                Ok(Response::Status(status)) => this.leads(&status, target),
                Ok(_) => Err(Failed::Misbehaved("it does not say where it stands".to_owned())),
                Err(error) => Err(Failed::Unavailable(error.to_string())),
            };
            match led {
                Ok(version) => *found.many(version, bytes).0 = true,
                Err(failed) => {
                    found.useless(who, failed);
                    return false;
                }
            }
            true
        });
        Ok(())
    }

    /// Which version of a peer leads to a target: that itself, if the peer keeps it, or what it has last.
    fn leads(&self, status: &Status, target: &Version) -> Result<Version, Failed> {
        let SnapshotParams { chain_id, hasher, chunk_weight_max } = self.params();
        if (&status.chain_id, status.hasher, status.chunk_weight_max) != (&chain_id, hasher, chunk_weight_max) {
            return Err(Failed::Misbehaved(format!("it is of chain {}, this is {chain_id}", status.chain_id)));
        }
        if status.oldest > target.height {
            let (oldest, newest) = (status.oldest, status.newest.height);
            let message = format!("it keeps heights {oldest} to {newest}, the target is {}", target.height);
            return Err(Failed::Unavailable(message));
        }
        if status.newest.height > target.height {
            return Ok(*target);
        }
        self.usable(status.newest, target).map(|()| status.newest)
    }

    /// What is in the places of the configuration.
    fn offers_of_places(&self, target: &Version) -> Offers {
        let mut found = Found::default();
        let mut places: Vec<&Place> = Vec::new();
        for place in self.config.recovery.sources.iter().chain(&self.config.p2p.mirrors) {
            if !places.contains(&place) {
                places.push(place);
            }
        }
        let timeout = Duration::from_millis(self.config.p2p.request_timeout_ms);
        for place in places {
            let looked = match place {
                Place::Directory(path) if !path.join(HEAD_FILE).exists() => self.archive(path, target, &mut found),
                place => self.mirror(place, timeout, target, &mut found),
            };
            if let Err(failed) = looked {
                found.useless(place, failed);
            }
        }
        found.into_offers("no place is configured (recovery.sources, p2p.mirrors)")
    }

    fn archive(&self, path: &Path, target: &Version, found: &mut Found) -> Result<(), Failed> {
        let params = Expected { params: Some(self.params()), root: None };
        let info = from_archive(path, &mut |origin| origin.inspect(&params))?;
        let version = version_of(&info);
        self.usable(version, target)?;
        let held = Held::Archive(path.to_owned(), info.totals);
        found.list.push(Offer { version, bytes: info.bytes, held });
        Ok(())
    }

    fn mirror(&self, place: &Place, timeout: Duration, target: &Version, found: &mut Found) -> Result<(), Failed> {
        let opened =
            Opened::<H>::open(place.clone(), timeout).map_err(|failure| Failed::Unavailable(failure.message))?;
        if let Some(part) = opened.mirror().part() {
            return Err(Failed::Unavailable(format!("it has {part} alone")));
        }
        let (version, bytes) = (opened.mirror().version(), opened.mirror().bytes());
        self.usable(version, target)?;
        found.many(version, bytes).1.push(Arc::new(opened));
        Ok(())
    }

    pub(super) fn others(&mut self) -> Result<&mut Others, Failed> {
        if self.others.is_none() {
            self.others = Some(Others::start()?);
        }
        Ok(self.others.as_mut().expect("it was started just now"))
    }

    /// The connections to the peers of the configuration.
    pub(super) fn meet(&mut self) -> Result<Network, Failed> {
        let (config, home, keys) = (self.config, self.home, self.wish.keys);
        let others = self.others()?;
        if let Some(network) = &others.network {
            return Ok(network.clone());
        }
        let chain = home.read_genesis().map_err(machine)?.chain_id;
        let mut setup = p2p::setup(&config.p2p, &chain, home, keys, Arc::new(Metrics::new())).map_err(machine)?;
        // Who only takes needs nobody to come in.
        setup.listen = None;
        let (network, _) = Network::start(others.runtime().handle(), setup, None).map_err(machine)?;
        others.network = Some(network.clone());
        Ok(network)
    }

    /// Takes a version from whoever has it, each part proven before it is written, and runs the blocks since.
    // spec: RECOVER-7
    fn take(
        &mut self,
        strategy: Strategy,
        wanted: Version,
        (peers, mirrors): (bool, &[Arc<dyn MirrorSource>]),
        target: &Version,
    ) -> Result<Built, Failed> {
        let staging = Self::directory(&self.home.joining())?;
        self.salvage(&staging);
        let others = self.others()?;
        let network = others.network.clone().filter(|_| peers);
        let runtime = others.runtime().handle().clone();
        let stop = self.wish.stop.clone();
        let mut joining = Joining::new(&runtime, Sources { network, mirrors: mirrors.to_vec(), stop });
        let settings = joiner_settings(&self.config.p2p);
        let stall_timeout_ms =
            settings.stall_timeout_ms.min(settings.request_timeout_ms.saturating_mul(STALL_TIMEOUTS));
        let settings = Settings { stall_timeout_ms, ..settings };
        let seed = p2p::seed().map_err(machine)?;
        let opened = Joiner::<H>::open(staging, self.params(), settings, wanted, joining.now(), seed);
        let mut joiner = opened.map_err(|error| Failed::Machine(causes(&error)))?;
        loop {
            let mut room = None;
            let fetched = joining.fetch(&mut joiner, None, None, &mut |progress, _| {
                let Some(total) = progress.total else { return Ok(()) };
                let has_room = || self.check_room(room::of_the_rest(total, progress.done));
                if let Err(failed) = room.get_or_insert_with(has_room) {
                    return Err(Failure::error(failed.to_string()));
                }
                (self.wish.progress)(strategy, progress.done.bytes, total.bytes);
                Ok(())
            });
            if let Some(Err(failed)) = room {
                return Err(failed);
            }
            let Version { height, root } = fetched.map_err(of_sync)?;
            if room.is_none() {
                self.check_room(room::of(joiner.progress(joining.now()).total.unwrap_or_default()))?;
            }
            let generation = self.fresh()?;
            let mut lost = false;
            let built = self.build_store(&generation, (height, root), &mut |each| {
                let handed = joiner.entries(|name, key, value| each(name, key, value));
                handed.map_err(|error| match error {
                    EntriesError::Incomplete { missing } => {
                        lost = true;
                        Failed::Damaged(format!("{missing} units were lost on our own disk"))
                    }
                    EntriesError::Ended(ended) => of_sync(ended.into()),
                    EntriesError::Taker(error) => error.into(),
                })
            });
            match built {
                Ok(store) => return self.run_on(strategy, store, &generation, target),
                Err(_) if lost => self.discard(),
                Err(failed) => return Err(failed),
            }
        }
    }

    /// Stages what is whole of damaged snapshots here, as far as there is room.
    fn salvage(&mut self, staging: &Arc<Directory>) {
        for pin in std::mem::take(&mut self.damaged) {
            let (height, here) = (pin.info().id.height.0, Mirror::<H>::of_index(pin.index()));
            let shelf = Reach::directory(self.home.snapshots());
            let salvaged = self
                .check_room(pin.info().totals.bytes)
                .and_then(|()| here.salvage(&shelf, staging.clone()).map_err(|error| Failed::Machine(causes(&error))));
            match salvaged {
                Ok(bytes) => tracing::info!(height, bytes, "what is whole of a damaged snapshot is not fetched"),
                Err(failed) => tracing::warn!(height, %failed, "what is whole of a damaged snapshot is left"),
            }
        }
    }

    /// Reads a version from an archive, and runs the blocks since.
    fn unpack(
        &mut self,
        strategy: Strategy,
        Version { height, root }: Version,
        (path, totals): (&Path, Totals),
        target: &Version,
    ) -> Result<Built, Failed> {
        self.check_room(room::of(totals))?;
        let generation = self.fresh()?;
        let expected = Expected { params: Some(self.params()), root: Some(root) };
        let store = self.build_store(&generation, (height, root), &mut |each| {
            from_archive(path, &mut |origin| {
                origin.entries(&expected, &mut *each, &mut |_| ControlFlow::Continue(()))
            })?;
            Ok(())
        })?;
        self.run_on(strategy, store, &generation, target)
    }
}

/// Why a version was not fetched.
fn of_sync(failure: Failure) -> Failed {
    match failure.exit {
        Exit::SyncFailed => Failed::Unavailable(failure.message),
        Exit::Integrity => Failed::Misbehaved(failure.message),
        _ => Failed::Machine(failure.message),
    }
}

/// Reads an archive, of either form.
fn from_archive<T>(path: &Path, read: &mut dyn FnMut(Origin<'_>) -> Result<T, LibraryError>) -> Result<T, Failed> {
    let missing = |error: io::Error| Failed::Unavailable(format!("{}: {error}", path.display()));
    match fs::metadata(path).map_err(missing)?.is_dir() {
        true => {
            let directory = Directory::to_read(path).map_err(missing)?;
            Ok(read(Origin::Directory(&directory))?)
        }
        false => {
            let mut file = BufReader::new(fs::File::open(path).map_err(missing)?);
            Ok(read(Origin::Tar(&mut file))?)
        }
    }
}

/// The chunks of a snapshot that a node serves over HTTP, called by their places.
struct Chunks {
    node: Remote,
    height: Height,
}

impl Shelf for Chunks {
    type Error = Refusal;

    fn read(&self, file: &str, bytes_max: u64) -> Result<Vec<u8>, Refusal> {
        let index = file.parse().map_err(|_| Refusal::NotFound(format!("{file} is no chunk")))?;
        let chunk = self.node.snapshot_chunk(self.height, index)?;
        match chunk.len() as u64 <= bytes_max {
            true => Ok(chunk),
            false => Err(Refusal::Failed(format!("chunk {index} is longer than {bytes_max} bytes"))),
        }
    }
}

/// The snapshots that a node says it serves, as far as they make sense. One whose parameters are not the chain's has
/// another hash.
fn served<H: Hasher>(node: &HttpAddress, params: &SnapshotParams) -> Result<Vec<Opened<H, Chunks>>, Failed> {
    let address = node.resolve().map_err(|error| Failed::Unavailable(error.to_string()))?;
    let list = Remote::at(address, PEER_TIMEOUT).snapshots();
    let list = list.map_err(|refusal| Failed::Unavailable(refusal.to_string()))?;
    let one = |snapshot: &crate::api::Snapshot| {
        let (root, hash) = (Root::from_hex(&snapshot.root).ok()?, Hash::from_hex(&snapshot.hash).ok()?);
        let height = Height(snapshot.height);
        let own = snapshot.format == FORMAT && snapshot_hash(params, height, root) == hash;
        let SnapshotParams { chain_id, hasher, chunk_weight_max } = params.clone();
        let (pages, chunks) = (snapshot.pages, snapshot.chunks);
        let metadata = Metadata { chain_id, height, chunk_weight_max, hasher, pages, chunks };
        // What would be no offer is none here either (spec: SNAP-6).
        let metadata = Metadata::from_bytes(&metadata.to_bytes()).ok()?;
        let totals = Totals { count: snapshot.entries, bytes: snapshot.entry_bytes };
        let mirror = Mirror::numbered(&metadata, root, totals, snapshot.bytes);
        let shelf = Chunks { node: Remote::at(address, PEER_TIMEOUT), height };
        own.then(|| Opened::over(node.to_string(), shelf, mirror))
    };
    Ok(list.snapshots.iter().filter_map(one).collect())
}
