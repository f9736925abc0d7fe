//! Taking a state from peers and mirrors: the world around a [`Joiner`].
//!
//! The joiner decides whom to ask for what and proves what comes; here its requests are carried, its clock is kept, and
//! whoever it bans is banned. A mirror is a peer like any other to it, and trusted as little.

use super::{AskError, Everybody, Network, NodeId};
use crate::exit::{Exit, Failure};
use crate::interrupt::Stop;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use keelstone_codec::Encode as _;
use keelstone_sync::peers::{
    Effect, Ended, Event, Frame, Joiner, PeerId, Progress, Request, Response, Status, Tick, Version,
};
use keelstone_tree::Hasher;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::watch;

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(250);
/// How often it is asked for a newer version.
const NEWER_EVERY: Duration = Duration::from_secs(3);
/// Mirrors have numbers from here on, which no peer reaches.
const MIRRORS_FROM: u64 = 1 << 63;
/// Most that are named with what they have, where nobody has what is wanted.
const OFFERS_TOLD_MAX: usize = 8;

/// Static files that answer like a peer.
pub(crate) trait MirrorSource: Send + Sync {
    /// Where they are, for people.
    fn name(&self) -> &str;

    /// Answers a request, which may take as long as reading a file from far away does.
    ///
    /// # Errors
    /// [`AskError`].
    fn ask(&self, request: &Request) -> Result<Response, AskError>;
}

/// Whoever can be asked.
#[derive(Clone, Default)]
pub(crate) struct Sources {
    pub(crate) network: Option<Network>,
    pub(crate) mirrors: Vec<Arc<dyn MirrorSource>>,
    /// Nobody is asked any more once this was.
    pub(crate) stop: Stop,
}

/// One of them.
#[derive(Clone)]
enum Source {
    Peer(NodeId),
    Mirror(Arc<dyn MirrorSource>),
}

/// Says which newer versions are certified, from what peers answer to one question.
pub(crate) trait Certifies: Send + Sync {
    /// What they are asked.
    fn question(&self) -> Request;

    /// The version that an answer leads to, if it is certified. May take as long as asking others does.
    fn judge(&self, answer: &Response) -> Option<Version>;
}

/// What is told of progress, and where it may be refused to go on.
pub(crate) type Tell<'a> = &'a mut dyn FnMut(&Progress, Version) -> Result<(), Failure>;

/// Builds so many bytes of what is there and throws them away: says how long how many take, beyond what any state does.
pub(crate) type Rehearse<'a, H> = &'a mut dyn FnMut(&mut Joiner<H>, u64) -> Result<(u64, Duration), Failure>;

type Answer = (PeerId, u64, Result<Vec<u8>, AskError>);

/// The world around a joiner.
pub(crate) struct Joining<'a> {
    runtime: &'a Handle,
    sources: Sources,
    start: Instant,
    told: Option<Instant>,
    /// The version of which it was told how much it is.
    sized: Option<Version>,
    everybody: Option<watch::Receiver<Everybody>>,
    /// Whom the joiner knows.
    known: BTreeMap<PeerId, Source>,
    /// Bounded by the joiner: its settings limit what is under way.
    asked: FuturesUnordered<BoxFuture<'static, Answer>>,
    /// Questions for a newer version, one at a time.
    newer: FuturesUnordered<BoxFuture<'static, Option<Version>>>,
    newer_asked: Instant,
    turn: usize,
    /// Why somebody was of no use, the last time.
    useless: Option<String>,
}

enum Happening {
    Answered(Answer),
    Newer(Option<Version>),
    Peers,
    Time,
}

impl<'a> Joining<'a> {
    pub(crate) fn new(runtime: &'a Handle, sources: Sources) -> Self {
        let everybody = sources.network.as_ref().map(Network::everybody);
        let now = Instant::now();
        Self {
            runtime,
            sources,
            start: now,
            told: None,
            sized: None,
            everybody,
            known: BTreeMap::new(),
            asked: FuturesUnordered::new(),
            newer: FuturesUnordered::new(),
            newer_asked: now,
            turn: 0,
            useless: None,
        }
    }

    /// The joiner's clock.
    pub(crate) fn now(&self) -> Tick {
        Tick(u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Fetches until all is there, and says of which version: the one that is wanted, or a newer one that is certified, if
    /// anybody says what is. Can be called again when something was lost on our own disk. Who has building rehearsed is told
    /// how long that will take too.
    ///
    /// # Errors
    /// Why the joiner ended, that nobody is left to ask, that this was to stop, or what `tell` says.
    pub(crate) fn fetch<H: Hasher>(
        &mut self,
        joiner: &mut Joiner<H>,
        certifies: Option<&Arc<dyn Certifies>>,
        mut rehearse: Option<Rehearse<'_, H>>,
        tell: Tell<'_>,
    ) -> Result<Version, Failure> {
        let mirrors: Vec<_> = (MIRRORS_FROM..).map(PeerId).zip(self.sources.mirrors.clone()).collect();
        for (number, mirror) in mirrors {
            self.known.insert(number, Source::Mirror(mirror));
            let effects = joiner.step(self.now(), Event::Mirror(number));
            if let Some(version) = self.perform(joiner, effects)? {
                return Ok(version);
            }
        }
        if let Some(version) = self.meet(joiner)? {
            return Ok(version);
        }
        loop {
            self.sources.stop.check()?;
            let now = self.now();
            let wake = joiner.wakeup(now).map_or(TELL_EVERY, |at| Duration::from_millis(at.0 - now.0));
            let runtime = self.runtime.clone();
            let effects = match runtime.block_on(self.next(wake.min(TELL_EVERY))) {
                Happening::Time => joiner.step(self.now(), Event::Tick),
                Happening::Answered((peer, id, answer)) => match answer {
                    Ok(bytes) => joiner.step(self.now(), Event::Answered(peer, id, &bytes)),
                    // Nothing: the joiner finds that this is no answer.
                    Err(AskError::Misbehaved(_)) => joiner.step(self.now(), Event::Answered(peer, id, &[])),
                    // The joiner's own clock ends the request.
                    Err(error) => {
                        self.useless = Some(self.named(peer, &error));
                        joiner.step(self.now(), Event::Tick)
                    }
                },
                Happening::Newer(Some(version)) => joiner.step(self.now(), Event::Target(version)),
                Happening::Newer(None) => Vec::new(),
                Happening::Peers => {
                    if let Some(version) = self.meet(joiner)? {
                        return Ok(version);
                    }
                    Vec::new()
                }
            };
            let (progress, target) = (joiner.progress(self.now()), joiner.target());
            // How much it is, is told before any of it is taken in: there may be no room.
            let is_sized = progress.total.is_some() && self.sized != Some(target);
            if is_sized || self.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
                self.told = Some(Instant::now());
                self.sized = progress.total.map(|_| target);
                tell(&progress, target)?;
            }
            if let Some(version) = self.perform(joiner, effects)? {
                return Ok(version);
            }
            // After a step: what a life before this one left may be all there is.
            if !self.is_anybody_left(joiner) {
                return Err(self.because(joiner, "nobody is left to ask".to_owned()));
            }
            if let Some(certifies) = certifies {
                self.ask_for_newer(certifies);
            }
            if let (Some(rehearse), Some(bytes)) = (&mut rehearse, joiner.to_rehearse()) {
                // What goes wrong there goes wrong again, and is told, when the state is built.
                let rehearsed = rehearse(joiner, bytes);
                if let Err(failure) = &rehearsed {
                    tracing::warn!(%failure, "building could not be rehearsed, the time left is told without it");
                }
                let (bytes, took) = rehearsed.unwrap_or_default();
                joiner.rehearsed(bytes, u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
            }
        }
    }

    async fn next(&mut self, wake: Duration) -> Happening {
        let Self { everybody, asked, newer, .. } = self;
        let changed = async {
            match everybody {
                // A network that has ended changes no more.
                Some(everybody) if everybody.has_changed().is_ok() => drop(everybody.changed().await),
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(answer) = asked.next() => Happening::Answered(answer),
            Some(answer) = newer.next() => Happening::Newer(answer),
            () = changed => Happening::Peers,
            () = tokio::time::sleep(wake) => Happening::Time,
        }
    }

    /// Tells the joiner who came and who went.
    fn meet<H: Hasher>(&mut self, joiner: &mut Joiner<H>) -> Result<Option<Version>, Failure> {
        let Some(everybody) = &mut self.everybody else { return Ok(None) };
        let now: BTreeMap<PeerId, NodeId> =
            everybody.borrow_and_update().iter().map(|(node, number)| (*number, *node)).collect();
        let is_peer = |source: &Source| matches!(source, Source::Peer(_));
        let gone: Vec<PeerId> = self
            .known
            .iter()
            .filter(|(number, source)| is_peer(source) && !now.contains_key(number))
            .map(|(number, _)| *number)
            .collect();
        let mut effects = Vec::new();
        for number in gone {
            self.known.remove(&number);
            effects.append(&mut joiner.step(self.now(), Event::Gone(number)));
        }
        for (number, node) in now {
            if self.known.insert(number, Source::Peer(node)).is_none() {
                effects.append(&mut joiner.step(self.now(), Event::Connected(number)));
            }
        }
        self.perform(joiner, effects)
    }

    /// Whether anybody may still give what is wanted. A mirror has one version, and never another.
    // spec: PEER-10
    fn is_anybody_left<H: Hasher>(&self, joiner: &Joiner<H>) -> bool {
        let may_give = |(peer, says): (PeerId, Option<&Status>)| match self.known.get(&peer) {
            Some(Source::Mirror(_)) => says.is_none_or(|status| status.newest == joiner.target()),
            Some(Source::Peer(_)) | None => false,
        };
        self.sources.network.as_ref().is_some_and(|network| !network.is_banned_all()) || joiner.offers().any(may_give)
    }

    /// Does what the joiner says. Says which version is whole, if one is.
    fn perform<H: Hasher>(&mut self, joiner: &Joiner<H>, effects: Vec<Effect>) -> Result<Option<Version>, Failure> {
        for effect in effects {
            match effect {
                Effect::Ask(peer, frame) => self.ask(peer, frame),
                Effect::Ban(peer, why) => match self.known.remove(&peer) {
                    Some(Source::Peer(node)) => {
                        self.useless = Some(format!("{node}: {why}"));
                        if let Some(network) = &self.sources.network {
                            self.runtime.block_on(network.ban(node, why.to_string()));
                        }
                    }
                    Some(Source::Mirror(mirror)) => {
                        tracing::warn!(mirror = mirror.name(), %why, "a mirror is not asked any more");
                        self.useless = Some(format!("{}: {why}", mirror.name()));
                    }
                    None => {}
                },
                // Whoever there is, is dialled already.
                Effect::Seek(_) | Effect::Switch(_) => {}
                Effect::Build(version) => return Ok(Some(version)),
                Effect::End(ended @ Ended::Stalled { .. }) => return Err(self.because(joiner, ended.to_string())),
                Effect::End(ended) => return Err(ended.into()),
            }
        }
        Ok(None)
    }

    /// Something with the name of whom it is about.
    fn named(&self, peer: PeerId, what: &dyn fmt::Display) -> String {
        match self.known.get(&peer) {
            Some(Source::Mirror(mirror)) => format!("{}: {what}", mirror.name()),
            Some(Source::Peer(node)) => format!("{node}: {what}"),
            None => what.to_string(),
        }
    }

    /// Nothing more comes, with the last that somebody did not do, and who has something else than what is wanted.
    fn because<H: Hasher>(&self, joiner: &Joiner<H>, what: String) -> Failure {
        let why = self.useless.as_ref().map_or_else(String::new, |why| format!("; {why}"));
        let Version { height, root } = joiner.target();
        let others = joiner.offers().filter_map(|(peer, says)| {
            let Status { newest, oldest, .. } = says.filter(|status| !status.has(&joiner.target()))?;
            let keeps =
                if *oldest < newest.height { format!(", and keeps heights from {oldest}") } else { String::new() };
            Some(self.named(peer, &format_args!("it has root {} at height {}{keeps}", newest.root, newest.height)))
        });
        let others: String = others.take(OFFERS_TOLD_MAX).map(|other| format!("\n{other}")).collect();
        let wanted = match others.is_empty() {
            true => String::new(),
            false => format!("\nwanted is root {root} at height {height}{others}"),
        };
        nothing_more(format!("{what}{why}{wanted}"))
    }

    fn ask(&mut self, peer: PeerId, frame: Frame<Request>) {
        let id = frame.id;
        match (self.known.get(&peer), &self.sources.network) {
            (Some(Source::Peer(node)), Some(network)) => {
                let (node, network) = (*node, network.clone());
                let bytes = frame.to_bytes();
                self.asked.push(Box::pin(async move { (peer, id, network.ask_frame(node, bytes).await) }));
            }
            (Some(Source::Mirror(mirror)), _) => {
                let mirror = mirror.clone();
                let read = self.runtime.spawn_blocking(move || mirror.ask(&frame.body));
                self.asked.push(Box::pin(async move {
                    let answer = match read.await {
                        Ok(answer) => answer.map(|body| Frame { id, body }.to_bytes()),
                        Err(error) => Err(AskError::Failed(error.to_string())),
                    };
                    (peer, id, answer)
                }));
            }
            // It went meanwhile: the joiner hears of that.
            _ => {}
        }
    }

    /// Asks one after the other what newer version there is.
    fn ask_for_newer(&mut self, certifies: &Arc<dyn Certifies>) {
        let Some(network) = self.sources.network.clone() else { return };
        if !self.newer.is_empty() || self.newer_asked.elapsed() < NEWER_EVERY {
            return;
        }
        let peers = network.connected();
        self.newer_asked = Instant::now();
        self.turn = self.turn.wrapping_add(1);
        if let Some(node) = peers.get(self.turn % peers.len().max(1)).copied() {
            let frame = Frame { id: 0, body: certifies.question() }.to_bytes();
            let (certifies, runtime) = (certifies.clone(), self.runtime.clone());
            self.newer.push(Box::pin(async move {
                let answer = network.ask_frame(node, frame).await.ok()?;
                let answer = super::response(&answer)?;
                runtime.spawn_blocking(move || certifies.judge(&answer)).await.ok()?
            }));
        }
    }
}

/// Nobody gives more.
fn nothing_more(message: String) -> Failure {
    Failure::new(Exit::SyncFailed, message)
        .hint("what was fetched stays; try again with other peers (p2p.peers, --peer) or a mirror")
}

impl From<Ended> for Failure {
    fn from(ended: Ended) -> Self {
        let message = ended.to_string();
        match ended {
            Ended::Stalled { .. } => nothing_more(message),
            Ended::Disk(error) => Self::io("the staging directory failed", &error),
            Ended::TooLarge(_) => Self::new(Exit::SyncFailed, message),
            Ended::FalseRoot { .. } => {
                Self::integrity(message).hint("the root that was trusted is of no tree: find out who certified it")
            }
        }
    }
}
