//! Following a producer over peers: the world around a [`Follower`].
//!
//! The follower decides what is missing, whom to ask, and in which order heights are taken in; here its requests are
//! carried and its clock is kept. Up to which version it goes is decided by what a trusted key has signed: announced by a
//! peer, or asked of one. A word that does not count is refused with the reason, and counted; two words of one height
//! and two roots, or one that contradicts the state here, end it.
//!
//! Rules: `spec/peers.md`, PEER-15 and PEER-21; `spec/snapshot.md`, SNAP-11 and SNAP-12.

use super::{AskError, Distrust, Everybody, Network, NodeId, Trust, certified_version};
use crate::api::{FollowFigures, MadeBy};
use crate::clock::now;
use crate::engine::versions::Word;
use crate::engine::{Engine, Untaken};
use crate::exit::Failure;
use crate::metrics::Metrics;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use keelstone_codec::{Blob, Decode as _, Encode as _, Height, Root, Timestamp};
use keelstone_ledger::SignedAttestation;
use keelstone_sync::peers::{
    CERTIFICATE_BYTES_MAX, FollowEffect, FollowEvent, Follower, Frame, Gap, Manner, PeerId, Request, Response, Tick,
    Version,
};
use keelstone_sync::snapshot::SnapshotParams;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

/// An announcement: from whom, and what certifies the version it is of, not read yet.
pub(crate) type Heard = (NodeId, Blob<CERTIFICATE_BYTES_MAX>);

/// Announcements that may wait to be read.
pub(crate) const HEARD_MAX: usize = 256;
/// How often a peer is asked for its newest word, the next one each time: announcements may be lost.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// How often the follower's clock is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Words that are kept of heights that were not reached yet.
const WORDS_MAX: usize = 64;
/// Heights below the last whose roots are compared with what is said of them.
const RECENT_MAX: u64 = 64;
/// How much later a word must be said to be of use although it says the same, in milliseconds.
const RENEW_MS: u64 = 60_000;
/// So long after its last word a producer, or the way to it, is taken to be down. It is asked every few seconds, and what it says
/// anew counts after a minute.
pub(crate) const SILENT: Duration = Duration::from_secs(300);
/// So many times a request's time nobody may have the next height before there is said to be a gap for good.
const GAP_TIMEOUTS: u32 = 2;

/// Whom and how to follow.
#[derive(Debug, Clone)]
pub(crate) struct Follow {
    pub(crate) params: SnapshotParams,
    pub(crate) trust: Trust,
    pub(crate) manner: Manner,
    pub(crate) request_timeout: Duration,
    /// Where the producer takes transactions, if that was told.
    pub(crate) producer_api: Option<String>,
}

impl Follow {
    /// Who makes the blocks.
    pub(crate) fn made_by(&self) -> MadeBy {
        let keys = self.trust.keys.iter().map(ToString::to_string).collect();
        MadeBy { keys, api: self.producer_api.clone() }
    }
}

/// When to come to an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// When told to, or when nobody has the next height for good and that is an end.
    Stopped {
        /// Whether it is.
        gap_ends: bool,
    },
    /// When the state here is the newest that is certified, or nobody has what is missing, or nothing was taken in for so
    /// long.
    Newest(Duration),
}

/// Why it came to an end.
#[derive(Debug)]
pub(crate) enum Over {
    /// It was told to, or has all there is.
    Done,
    /// Nobody has the next height.
    Gap(Gap),
    /// The state here is not the one that is certified, or two are. Nothing may be built on it.
    Diverged(Failure),
    /// A height could not be taken in: this machine failed.
    Failed(Failure),
}

/// How it stands, for whoever asks the node.
#[derive(Debug, Default, Clone)]
pub(crate) struct Standing {
    /// The newest height that is certified.
    pub(crate) certified: Option<Height>,
    /// Blocks by which this node is behind that.
    pub(crate) behind: u64,
    /// When a producer last said what is certified, by its own clock.
    pub(crate) said_at: Option<Timestamp>,
    /// The height that nobody has, and from where on somebody has some.
    pub(crate) gap: Option<(Height, Height)>,
    /// Why the last word that did not count did not.
    pub(crate) refused: Option<String>,
    /// For how long no word has counted although some came that may be a producer's; none if the last of those counted.
    pub(crate) silent_for: Option<Duration>,
}

/// What others look at while it runs.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    manner: Manner,
    made_by: Arc<MadeBy>,
    standing: Arc<Mutex<Standing>>,
}

impl FollowFigures {
    /// Of a node that stands at a height.
    pub(crate) fn of(seen: &Seen, height: u64) -> Self {
        let standing = seen.standing();
        let certified_height = standing.certified.map(|height| height.0);
        Self {
            manner: if seen.manner() == Manner::Blocks { "execute" } else { "apply" }.to_owned(),
            producer: seen.made_by().clone(),
            certified_height,
            behind_blocks: certified_height.map(|certified| certified.saturating_sub(height)),
            said_at: standing.said_at.map(|at| at.0),
            missing_height: standing.gap.map(|(missing, _)| missing.0),
            kept_from: standing.gap.map(|(_, from)| from.0),
            refused: standing.refused,
        }
    }
}

impl Seen {
    pub(crate) fn new(follow: &Follow) -> Self {
        Self { manner: follow.manner, made_by: Arc::new(follow.made_by()), standing: Arc::default() }
    }

    /// Who makes the blocks.
    pub(crate) fn made_by(&self) -> &MadeBy {
        &self.made_by
    }

    /// How heights are taken in.
    pub(crate) fn manner(&self) -> Manner {
        self.manner
    }

    /// How it stands now.
    pub(crate) fn standing(&self) -> Standing {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut Standing)) {
        change(&mut self.standing.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

type Answer = (PeerId, u64, Result<Vec<u8>, AskError>);
type Asked<T> = FuturesUnordered<BoxFuture<'static, T>>;

/// The world around a follower.
pub(crate) struct Following<'a> {
    runtime: &'a Handle,
    engine: &'a dyn Engine,
    network: Network,
    follow: Follow,
    follower: Follower,
    metrics: Arc<Metrics>,
    seen: Seen,
    heard: mpsc::Receiver<Heard>,
    stop: watch::Receiver<bool>,
    everybody: watch::Receiver<Everybody>,
    /// Where the word goes that the state here has come up to.
    word: watch::Sender<Word>,
    /// Words that count, of heights that were not reached yet, and the last that was.
    words: BTreeMap<Height, SignedAttestation>,
    known: BTreeMap<PeerId, NodeId>,
    /// Bounded by the follower, which has a few requests under way.
    asked: Asked<Answer>,
    /// Questions for a word: one for each peer that came, and one now and then.
    asked_words: Asked<(NodeId, Result<Vec<u8>, AskError>)>,
    word_asked: Instant,
    turn: usize,
    start: Instant,
    /// When a height was last taken in.
    taken_at: Instant,
    gap_since: Option<Instant>,
    /// When a producer last said something, or this began.
    said_at: Timestamp,
    /// When a word last counted, or this began.
    believed: Instant,
    looked: Instant,
    over: Option<Over>,
}

/// Ends that others hold of a [`Following`].
pub(crate) struct Ends {
    pub(crate) heard: mpsc::Receiver<Heard>,
    pub(crate) stop: watch::Receiver<bool>,
    pub(crate) word: watch::Sender<Word>,
    pub(crate) seen: Seen,
    pub(crate) metrics: Arc<Metrics>,
}

enum Happening {
    Answered(Answer),
    Word(NodeId, Result<Vec<u8>, AskError>),
    Heard(Heard),
    Peers,
    Stop,
    Time,
}

impl<'a> Following<'a> {
    /// Begins where the chain stands. Must be used on a thread of its own, not on one of the runtime's.
    pub(crate) fn new(
        runtime: &'a Handle,
        engine: &'a dyn Engine,
        network: Network,
        follow: Follow,
        ends: Ends,
    ) -> Result<Self, Failure> {
        let Ends { heard, stop, word, seen, metrics } = ends;
        let timeout_ms = u32::try_from(follow.request_timeout.as_millis()).unwrap_or(u32::MAX);
        let follower = Follower::new(follow.params.clone(), follow.manner, engine.stands()?, timeout_ms);
        let (everybody, now) = (network.everybody(), Instant::now());
        Ok(Self {
            runtime,
            engine,
            network,
            follow,
            follower,
            metrics,
            seen,
            heard,
            stop,
            everybody,
            word,
            words: BTreeMap::new(),
            known: BTreeMap::new(),
            asked: FuturesUnordered::new(),
            asked_words: FuturesUnordered::new(),
            word_asked: now,
            turn: 0,
            start: now,
            taken_at: now,
            gap_since: None,
            said_at: self::now(),
            believed: now,
            looked: now,
            over: None,
        })
    }

    fn now(&self) -> Tick {
        Tick(u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Where the state here stands.
    pub(crate) fn stands(&self) -> Version {
        self.follower.own()
    }

    /// Goes to a version that was certified elsewhere.
    pub(crate) fn begin_with(&mut self, version: Version) {
        self.tell(FollowEvent::Target(version));
    }

    /// Follows until there is an end.
    pub(crate) fn run(&mut self, until: Until) -> Over {
        self.meet();
        loop {
            if let Some(over) = self.over.take() {
                return over;
            }
            if let Some(over) = self.is_over(until) {
                return over;
            }
            match self.runtime.clone().block_on(self.next()) {
                Happening::Stop => return Over::Done,
                Happening::Time => {}
                Happening::Peers => self.meet(),
                Happening::Heard((peer, certificate)) => self.hear(peer, &certificate),
                Happening::Word(peer, answer) => {
                    if let Some(Response::Certificate(certificate)) =
                        answer.ok().and_then(|bytes| super::response(&bytes))
                    {
                        self.hear(peer, &certificate);
                    }
                }
                Happening::Answered((peer, id, answer)) => match answer {
                    Ok(frame) => self.tell(FollowEvent::Answered(peer, id, &frame)),
                    // Nothing: the follower finds that this is no answer.
                    Err(AskError::Misbehaved(_)) => self.tell(FollowEvent::Answered(peer, id, &[])),
                    Err(AskError::Gone | AskError::Failed(_)) => self.tell(FollowEvent::Failed(peer, id)),
                },
            }
            self.look();
            self.ask_for_words();
        }
    }

    /// Time passes for the follower however much is announced meanwhile, and others see how far it is.
    fn look(&mut self) {
        if self.looked.elapsed() < LOOK_EVERY {
            return;
        }
        self.looked = Instant::now();
        self.tell(FollowEvent::Tick);
        let behind = self.follower.target().height.0.saturating_sub(self.follower.own().height.0);
        self.seen.change(|standing| standing.behind = behind);
        self.metrics.follows(behind, now().0.saturating_sub(self.said_at.0) / 1000);
    }

    fn is_over(&mut self, until: Until) -> Option<Over> {
        let patience = self.follow.request_timeout * GAP_TIMEOUTS;
        let gap = self.follower.gap().filter(|_| self.gap_since.is_some_and(|since| since.elapsed() >= patience));
        match until {
            Until::Stopped { gap_ends: false } => None,
            Until::Stopped { gap_ends: true } => gap.map(Over::Gap),
            Until::Newest(_) if self.follower.own() == self.follower.target() => Some(Over::Done),
            Until::Newest(patience) if self.taken_at.elapsed() >= patience => Some(Over::Done),
            Until::Newest(_) => self.follower.gap().map(Over::Gap),
        }
    }

    async fn next(&mut self) -> Happening {
        let Self { everybody, asked, asked_words, heard, stop, .. } = self;
        let changed = async {
            match everybody.has_changed() {
                Ok(_) => drop(everybody.changed().await),
                // A network that has ended changes no more.
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => Happening::Stop,
            () = changed => Happening::Peers,
            Some(answer) = asked.next() => Happening::Answered(answer),
            Some(heard) = heard.recv() => Happening::Heard(heard),
            Some((peer, answer)) = asked_words.next() => Happening::Word(peer, answer),
            () = tokio::time::sleep(LOOK_EVERY) => Happening::Time,
        }
    }

    /// Tells the follower who came and who went, and asks whoever came for its word.
    fn meet(&mut self) {
        let now: BTreeMap<PeerId, NodeId> =
            self.everybody.borrow_and_update().iter().map(|(node, number)| (*number, *node)).collect();
        let gone: Vec<PeerId> = self.known.keys().filter(|number| !now.contains_key(number)).copied().collect();
        for number in gone {
            self.known.remove(&number);
            self.tell(FollowEvent::Gone(number));
        }
        for (number, node) in now {
            if self.known.insert(number, node).is_none() {
                self.tell(FollowEvent::Connected(number));
                self.ask_word(node);
            }
        }
    }

    fn ask_word(&mut self, node: NodeId) {
        let (network, frame) = (self.network.clone(), Frame { id: 0, body: Request::GetCertificate }.to_bytes());
        self.asked_words.push(Box::pin(async move { (node, network.ask_frame(node, frame).await) }));
    }

    fn ask_for_words(&mut self) {
        if self.word_asked.elapsed() < ASK_EVERY || !self.asked_words.is_empty() {
            return;
        }
        (self.word_asked, self.turn) = (Instant::now(), self.turn.wrapping_add(1));
        let node = self.known.values().nth(self.turn % self.known.len().max(1)).copied();
        node.into_iter().for_each(|node| self.ask_word(node));
    }

    // ---- words

    /// Reads what a peer says is certified. What cannot be true is its fault; the rest may be an honest node's mistake.
    // spec: PEER-21, SNAP-12
    fn hear(&mut self, from: NodeId, certificate: &[u8]) {
        if let Ok(signed) = SignedAttestation::from_bytes(certificate)
            && self.follow.trust.is_of_chain(&signed.attestation)
            && self.is_known(&signed)
        {
            return self.metrics.announced("known");
        }
        match self.follow.trust.judge(certificate, now()) {
            Ok(signed) => {
                self.metrics.announced("taken");
                self.believe(signed);
            }
            Err(distrust) => {
                let (outcome, is_fault) = match &distrust {
                    Distrust::NotOne | Distrust::Signature(_) => ("forged", true),
                    Distrust::OtherChain { .. } => ("foreign", true),
                    Distrust::Stranger { .. } => ("stranger", false),
                    Distrust::Stale { .. } | Distrust::Ahead { .. } | Distrust::Forked { .. } => ("stale", false),
                };
                self.metrics.announced(outcome);
                let refused = distrust.to_string();
                if is_fault {
                    // A few times: then the peer is banned.
                    tracing::warn!(peer = %from, %distrust, "a peer says what no producer has said");
                    self.runtime.block_on(self.network.blame(from, refused.clone()));
                } else {
                    let silent = self.believed.elapsed();
                    self.seen.change(|standing| standing.silent_for = Some(silent));
                }
                tracing::debug!(peer = %from, refused, "what a peer says is certified does not count");
                self.seen.change(|standing| standing.refused = Some(refused));
            }
        }
    }

    /// Whether a word says nothing new: then nobody's signature need be looked at. On an idle chain the word for where it
    /// stands is given anew, for those to whom an old one would be stale.
    fn is_known(&self, signed: &SignedAttestation) -> bool {
        let (height, root, said_at) = (signed.attestation.height, signed.attestation.root, signed.attestation.said_at);
        let own = self.follower.own().height;
        match self.words.get(&height) {
            Some(SignedAttestation { attestation: known, .. }) => {
                known.root == root && said_at.0 <= known.said_at.0.saturating_add(RENEW_MS)
            }
            None if height < own => self.root_here(height).is_none_or(|own| own == root),
            None => height != own && height <= self.follower.target().height,
        }
    }

    /// The root of a height that was reached lately, as far as it is kept. Finding an older one costs more than whoever
    /// names it should be able to spend, and the records under a newer root say the same.
    fn root_here(&self, height: Height) -> Option<Root> {
        let is_recent = self.follower.own().height.0 - height.0 <= RECENT_MAX;
        if is_recent { self.engine.root_after(height).ok().flatten() } else { None }
    }

    /// Takes in a word that counts.
    fn believe(&mut self, signed: SignedAttestation) {
        let (height, root) = (signed.attestation.height, signed.attestation.root);
        if let Some(known) = self.words.get(&height).filter(|known| known.attestation.root != root) {
            let said = [known, &signed].map(|signed| (signed.signer, signed.attestation.root));
            return self.diverged(&Distrust::Forked { height, said: Box::new(said) }.to_string());
        }
        self.said_at = self.said_at.max(signed.attestation.said_at);
        self.believed = Instant::now();
        self.seen.change(|standing| {
            standing.said_at = standing.said_at.max(Some(signed.attestation.said_at));
            standing.silent_for = None;
        });
        let stands = self.follower.own();
        if height <= stands.height {
            if let Some(own) = self.root_here(height).filter(|own| *own != root) {
                let signer = signed.signer;
                let what = format!("{signer} certifies root {root} for height {height}, this node has {own}");
                return self.diverged(&what);
            }
            if height < stands.height {
                return;
            }
        }
        self.seen.change(|standing| standing.certified = standing.certified.max(Some(height)));
        self.metrics.follow_certified_height.set(i64::try_from(height.0).unwrap_or(i64::MAX));
        let version = certified_version(&signed);
        self.words.insert(height, signed);
        while self.words.len() > WORDS_MAX {
            self.words.pop_first();
        }
        if height == stands.height {
            self.hand_on();
        }
        self.tell(FollowEvent::Target(version));
    }

    fn diverged(&mut self, what: &str) {
        self.metrics.announced("differs");
        let hint = "keep the data for whoever looks into it; find out which of the two is the chain's, and sync anew";
        self.over.get_or_insert(Over::Diverged(Failure::integrity(what).hint(hint)));
    }

    // ---- effects

    fn tell(&mut self, event: FollowEvent<'_>) {
        let mut effects: VecDeque<FollowEffect> = self.follower.step(self.now(), event).into();
        while let Some(effect) = effects.pop_front() {
            match effect {
                FollowEffect::Ask(peer, frame) => self.ask(peer, frame),
                FollowEffect::Ban(peer, why) => {
                    if let Some(node) = self.known.remove(&peer) {
                        self.runtime.block_on(self.network.ban(node, why.to_string()));
                    }
                }
                FollowEffect::Stop(why) => self.diverged(&why.to_string()),
                // Whoever is to stop begins nothing that takes long.
                FollowEffect::Take(_) if *self.stop.borrow() => {}
                FollowEffect::Take(step) => {
                    let event = match self.engine.take(*step, self.follow.manner) {
                        Ok(()) => FollowEvent::Taken,
                        Err(Untaken::NotIt(what)) => {
                            tracing::warn!(what, "what a peer sent for a height is not what is certified");
                            FollowEvent::Refused(what)
                        }
                        Err(Untaken::Diverged(what)) => return self.diverged(&what),
                        Err(Untaken::Failed(failure)) => return self.over = Some(Over::Failed(failure)),
                    };
                    effects.extend(self.follower.step(self.now(), event));
                    self.taken_at = Instant::now();
                    self.hand_on();
                }
            }
        }
        self.note_gap();
    }

    /// Hands on the newest word that the state here has come up to, and forgets those before it.
    fn hand_on(&mut self) {
        let own = self.follower.own().height;
        let later = self.words.split_off(&own.next());
        let reached = std::mem::replace(&mut self.words, later).pop_last();
        if let Some((height, signed)) = reached {
            self.word.send_replace(Some(Arc::new(signed.clone())));
            self.words.insert(height, signed);
        }
    }

    fn ask(&mut self, peer: PeerId, frame: Frame<Request>) {
        let (id, bytes, network) = (frame.id, frame.to_bytes(), self.network.clone());
        let node = self.known.get(&peer).copied();
        self.asked.push(Box::pin(async move {
            match node {
                Some(node) => (peer, id, network.ask_frame(node, bytes).await),
                None => (peer, id, Err(AskError::Gone)),
            }
        }));
    }

    /// Says once that nobody has the next height, and once that somebody has it after all.
    fn note_gap(&mut self) {
        let gap = self.follower.gap();
        match (gap, self.gap_since) {
            (Some(Gap { missing, kept_from }), None) => {
                self.gap_since = Some(Instant::now());
                tracing::error!(
                    missing = missing.0,
                    kept_from = kept_from.0,
                    "nobody has the next height any more: keelstone sync takes a later state (p2p.follow_resync)"
                );
            }
            (None, Some(_)) => {
                self.gap_since = None;
                tracing::info!("somebody has the next height after all");
            }
            _ => return,
        }
        self.metrics.follow_gap.set(i64::from(gap.is_some()));
        self.seen.change(|standing| standing.gap = gap.map(|gap| (gap.missing, gap.kept_from)));
    }
}
