//! A light client: trust in one header of a chain under CometBFT, carried forward to later ones.
//!
//! What is trusted is one header, by its height and hash, and for a time: those who voted for it can be held to that. A
//! later header is believed if enough of them have voted for it too, or have for one in between, step by step.
//! Everything is asked of one server and proven here, so that it may lie; that it does not keep to a fork of its own is
//! what another one, run by somebody else, is asked for: where the two differ nobody is believed.
//!
//! The steps are judged by `tendermint-light-client-verifier`, over hashes and signatures of this project's own; what is
//! asked of whom, how much is read, and when it ends is decided here. The header of block H + 1 says which root the
//! state has after block H.
//!
//! Rule: `spec/snapshot.md`, SNAP-18. Why so: `docs/decisions/0025-a-light-client-of-its-own.md`.

mod block;
pub(crate) mod hostile;
mod step;
#[cfg(test)]
pub(crate) mod tests;

use super::rpc::{Rpc, RpcError};
use super::trust::SameNode;
use crate::exit::causes;
use block::Block;
pub(crate) use block::FormError;
use keelstone_codec::{Hash, Height, Timestamp};
use keelstone_sync::peers::Version;
use std::fmt;
use std::time::{Duration, Instant};
pub(crate) use step::Flaw;
use step::{Step, step};

/// Headers that one way from a trusted header to another may take. Each halves what is left of the way, so only a chain
/// whose validators all change again and again takes more than a few dozen.
const HEADERS_MAX: u32 = 1_000;
/// How often it is asked whether a header is there by now.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Where a light client begins, and whom it asks.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The first is asked for everything, the others what they say of its last header.
    pub(crate) servers: Vec<Rpc>,
    /// The chain.
    pub(crate) chain_id: String,
    /// The header that is trusted.
    pub(crate) height: Height,
    /// Its hash.
    pub(crate) hash: Hash,
    /// How long those who voted for a header can be held to it.
    pub(crate) period: Duration,
    /// How long a header is waited for that is not there yet.
    pub(crate) patience: Duration,
    /// How long the way from a trusted header to another may take.
    pub(crate) way_max: Duration,
}

impl Settings {
    fn time(&self) -> Time {
        Time { began: Instant::now(), limit: self.way_max }
    }
}

/// When a way was begun, and how long it may take: a server that answers each question just in time is not waited for without end.
#[derive(Debug, Clone, Copy)]
struct Time {
    began: Instant,
    limit: Duration,
}

impl Time {
    fn check(self, server: &Rpc, height: Height) -> Result<(), LightError> {
        match self.began.elapsed() < self.limit {
            true => Ok(()),
            false => {
                let (server, limit_s) = (server.authority().to_owned(), self.limit.as_secs());
                Err(LightError::Slow { server, height, limit_s })
            }
        }
    }
}

/// Why a root is not certified. Each variant says who has to act.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LightError {
    /// Whoever named the servers: with one there is nobody to compare it with.
    #[error("{count} server was named; a light client asks one and compares it with at least one other")]
    TooFew {
        /// How many were named.
        count: usize,
    },
    /// Whoever named the servers.
    #[error(transparent)]
    SameNode(#[from] SameNode),
    /// The server is of no use, or lies.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// What the server sent is no header, or no set of validators.
    #[error("http://{server}, height {height}: {error}")]
    Form {
        /// Which server.
        server: String,
        /// Of which height.
        height: Height,
        /// What is wrong.
        error: FormError,
    },
    /// Whoever chose what to trust, or the server: one of them is of another chain.
    #[error("http://{server} has header {found} at height {height}, {expected} is to be trusted")]
    OtherAnchor {
        /// Which server.
        server: String,
        /// The height that is trusted.
        height: Height,
        /// What it has there.
        found: Hash,
        /// What it has to be.
        expected: Hash,
    },
    /// Whoever chose what to trust: it must be newer.
    #[error(
        "expired: header {height} is {age_s} s old, and those who voted for it can be held to it for {limit_s} s only"
    )]
    Expired {
        /// Which header.
        height: Height,
        /// How old it is.
        age_s: u64,
        /// How old it may be.
        limit_s: u64,
    },
    /// Whoever said that there is a state of this height.
    #[error("height {height} is certified by no header: none can be above it")]
    NoneAbove {
        /// The height whose root was asked for.
        height: Height,
    },
    /// Whoever chose what to trust: a light client goes forward.
    #[error("height {height} is certified by header {}, which is below {anchor}, the one that is trusted", .height.next())]
    Below {
        /// The height whose root was asked for.
        height: Height,
        /// The header that is trusted.
        anchor: Height,
    },
    /// Nobody: the chain has not come that far.
    #[error("http://{server} is at height {tip}, header {height} is not there yet")]
    NotThere {
        /// Which server.
        server: String,
        /// The header.
        height: Height,
        /// Where it stands.
        tip: Height,
    },
    /// The server lies: what it has is not what the validators agreed on.
    #[error("http://{server}, header {height}: {flaw}")]
    Refused {
        /// Which server.
        server: String,
        /// Which header.
        height: Height,
        /// Why it is not believed.
        flaw: Flaw,
    },
    /// The server, or the way to it, is too slow.
    #[error("the way to header {height} of http://{server} took more than {limit_s} s")]
    Slow {
        /// Which server.
        server: String,
        /// Which header.
        height: Height,
        /// How long it may take.
        limit_s: u64,
    },
    /// The chain's validators change so much that no way was found.
    #[error("{HEADERS_MAX} headers of http://{server} did not lead from {from} to {to}")]
    TooFar {
        /// Which server.
        server: String,
        /// From which header.
        from: Height,
        /// To which.
        to: Height,
    },
    /// A person: somebody shows a history that is not the chain's, and this cannot say who. Until it is known nothing is
    /// believed.
    #[error(transparent)]
    Forked(Box<Fork>),
    /// Whoever named the servers: none but the first could say anything.
    #[error("nobody confirms header {height} of http://{server}:{}", reasons(.heard))]
    Unconfirmed {
        /// Which header.
        height: Height,
        /// The server that was asked.
        server: String,
        /// Those it was to be compared with, and what came of it.
        heard: Vec<(String, String)>,
    },
}

/// Two headers of one height.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("forked: header {height} is {hash} at http://{server}, {other_hash} at http://{other}, {other_is}")]
pub(crate) struct Fork {
    /// Which header.
    height: Height,
    /// The server that was asked.
    server: String,
    /// What it has.
    hash: Hash,
    /// The server it was compared with.
    other: String,
    /// What that has.
    other_hash: Hash,
    /// Whether that one is signed.
    other_is: Other,
}

/// What is known of a header that contradicts a proven one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Other {
    /// The validators have voted for both.
    Proven,
    /// It is not proven, for this reason.
    Unproven(String),
}

impl fmt::Display for Other {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Proven => f.write_str("and the validators have voted for both"),
            Self::Unproven(why) => write!(f, "which is not proven ({why})"),
        }
    }
}

fn reasons(heard: &[(String, String)]) -> String {
    heard.iter().map(|(server, why)| format!("\nhttp://{server}: {why}")).collect()
}

/// A header that is trusted, and where it leads. It holds two headers with those who vote for them and for the next: some
/// 200 bytes for each validator.
#[derive(Debug)]
pub(crate) struct Light {
    settings: Settings,
    /// The header that trust began with.
    anchor: Block,
    /// The last that was reached from there, and confirmed.
    reached: Option<Block>,
}

impl Light {
    /// Fetches the header that is trusted. Takes a few exchanges with each server.
    ///
    /// # Errors
    /// [`LightError`]; if the first server has another header there, if it is too old, or if the servers are not two.
    // spec: SNAP-18
    pub(crate) fn begin(settings: Settings, now: Timestamp) -> Result<Self, LightError> {
        let [primary, others @ ..] = settings.servers.as_slice() else { return Err(LightError::TooFew { count: 0 }) };
        if others.is_empty() {
            return Err(LightError::TooFew { count: 1 });
        }
        let id = primary.status()?.node_id;
        // One that does not answer now may later, and does not count if it does not.
        let twin = others.iter().find(|other| other.status().is_ok_and(|status| status.node_id == id));
        if let Some(twin) = twin {
            return Err(SameNode::behind(primary, twin, &id).into());
        }
        let anchor = Block::fetch(primary, settings.height, settings.time())?;
        if anchor.hash() != settings.hash {
            return Err(LightError::OtherAnchor {
                server: primary.authority().to_owned(),
                height: settings.height,
                found: anchor.hash(),
                expected: settings.hash,
            });
        }
        let flawed = |flaw| Self::refused(primary, settings.height, flaw);
        anchor.check_alone(&settings.chain_id).map_err(flawed)?;
        let light = Self { anchor, reached: None, settings };
        light.check_age(&light.anchor, now)?;
        Ok(light)
    }

    /// The root of the state after block `height`, as header `height` + 1 has it. Takes a few exchanges with the first
    /// server for each step, and one with each of the others.
    ///
    /// # Errors
    /// [`LightError`].
    // spec: SNAP-18
    pub(crate) fn certified(&mut self, height: Height, now: Timestamp) -> Result<Version, LightError> {
        // A height comes from whoever offers a state, and no header is above the last there can be.
        let Some(above) = height.0.checked_add(1).map(Height) else { return Err(LightError::NoneAbove { height }) };
        if above < self.anchor.height() {
            return Err(LightError::Below { height, anchor: self.anchor.height() });
        }
        let primary = &self.settings.servers[0];
        let from = match &self.reached {
            Some(reached) if reached.height() <= above => reached,
            _ => &self.anchor,
        };
        let block = match from.height() == above {
            true => from.clone(),
            false => {
                self.wait(primary, above)?;
                self.follow(primary, from, above, now)?
            }
        };
        let root = block.app_hash().map_err(|flaw| Self::refused(primary, above, flaw))?;
        self.confirm(&block, now)?;
        self.reached = Some(block);
        Ok(Version { height, root })
    }

    fn refused(server: &Rpc, height: Height, flaw: Flaw) -> LightError {
        LightError::Refused { server: server.authority().to_owned(), height, flaw }
    }

    fn check_age(&self, trusted: &Block, now: Timestamp) -> Result<(), LightError> {
        let age = Duration::from_millis(now.0.saturating_sub(trusted.time().0));
        match age < self.settings.period {
            true => Ok(()),
            false => Err(LightError::Expired {
                height: trusted.height(),
                age_s: age.as_secs(),
                limit_s: self.settings.period.as_secs(),
            }),
        }
    }

    /// Waits until a server has a header. Only for one that may come soon: an idle chain makes the block that certifies a
    /// state after it.
    fn wait(&self, server: &Rpc, height: Height) -> Result<(), LightError> {
        let began = Instant::now();
        loop {
            let tip = Height(server.height()?);
            if tip >= height {
                return Ok(());
            }
            if tip.next() < height || began.elapsed() >= self.settings.patience {
                return Err(LightError::NotThere { server: server.authority().to_owned(), height, tip });
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Goes from a trusted header to a later one of a server: at once, if enough of those who voted there vote here, or by
    /// one in between.
    fn follow(&self, server: &Rpc, from: &Block, height: Height, now: Timestamp) -> Result<Block, LightError> {
        let time = self.settings.time();
        let goal = Block::fetch(server, height, time)?;
        let mut reached: Option<Block> = None;
        let mut between: Option<Block> = None;
        for _ in 0..HEADERS_MAX {
            let trusted = reached.as_ref().unwrap_or(from);
            self.check_age(trusted, now)?;
            let next = between.as_ref().unwrap_or(&goal);
            let judged = step(trusted, next, &self.settings, now);
            match judged.map_err(|flaw| Self::refused(server, next.height(), flaw))? {
                Step::Trusted => match between.take() {
                    None => return Ok(goal),
                    stepped => reached = stepped,
                },
                Step::TooFar => {
                    let (low, high) = (trusted.height().0, next.height().0);
                    between = Some(Block::fetch(server, Height(low + (high - low) / 2), time)?);
                }
            }
        }
        let (server, from) = (server.authority().to_owned(), from.height());
        Err(LightError::TooFar { server, from, to: height })
    }

    /// Asks the others for the same header. One that has another one ends it; one at least must have the same.
    fn confirm(&self, block: &Block, now: Timestamp) -> Result<(), LightError> {
        let height = block.height();
        let mut heard = Vec::new();
        let mut confirmed = false;
        for other in &self.settings.servers[1..] {
            let hash = self.wait(other, height).and_then(|()| block::header_hash(other, height));
            match hash {
                Ok(hash) if hash == block.hash() => confirmed = true,
                Ok(other_hash) => {
                    let other_is = match self.follow(other, &self.anchor, height, now) {
                        Ok(_) => Other::Proven,
                        Err(error) => Other::Unproven(causes(&error)),
                    };
                    return Err(LightError::Forked(Box::new(Fork {
                        height,
                        server: self.settings.servers[0].authority().to_owned(),
                        hash: block.hash(),
                        other: other.authority().to_owned(),
                        other_hash,
                        other_is,
                    })));
                }
                Err(error) => heard.push((other.authority().to_owned(), causes(&error))),
            }
        }
        match confirmed {
            true => Ok(()),
            false => {
                Err(LightError::Unconfirmed { height, server: self.settings.servers[0].authority().to_owned(), heard })
            }
        }
    }
}
