//! The catalogue of peers: honest ones, useless ones, and liars.
//!
//! A liar knows what the honest answer would be and what the state of another chain is, and spoils the one or sends the
//! other. None of them can make bytes that hash to what they do not hold; everything else they can do.

use crate::chain::{Chain, Kept};
use crate::dice::Dice;
use keelstone_codec::{Blob, BoundedSet, Encode, Hash, Height, Root};
use keelstone_sync::peers::{
    Frame, PeerId, RESPONSE_BYTES_MAX, Request, Response, Server, ServerLimits, Status, Tick, Version, Why,
};
use keelstone_sync::snapshot::{pack, unpack};
use std::sync::LazyLock;

/// How a peer behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// As it should.
    Honest,
    /// One bit of every part is wrong.
    WrongBytes,
    /// A bit is wrong now and then: most of what it sends is right.
    SometimesWrong,
    /// All its parts are empty, politely.
    Empty,
    /// It gives one unit of those asked for: slow, and no lie.
    Stingy,
    /// It says that it gives all, and gives less.
    Truncated,
    /// It gives more than was asked for.
    Trailing,
    /// It answers, and goes on sending what nobody asked for.
    Endless,
    /// It says that it has the newest version, and sends parts of an old one.
    Stale,
    /// Its first answer of each kind, again and again.
    Replayed,
    /// It answers when it is nearly too late, or just too late.
    Slow,
    /// Frames above the limit, and frames that unpack to more than was asked for.
    Oversized,
    /// What the request before asked for.
    OthersAnswer,
    /// Another root with each status, and a state that belongs to it: of another chain, whole and consistent.
    MovingRoot,
    /// The right answer under another number.
    WrongNumber,
    /// It has everything, and never what is asked for.
    NotKept,
    /// It has no time, ever.
    Busy,
    /// It never answers.
    Silent,
    /// Noise.
    Noise,
    /// It follows another chain and says so.
    OtherChain,
}

impl Manner {
    /// All that are not honest.
    pub const LIARS: [Self; 19] = [
        Self::WrongBytes,
        Self::SometimesWrong,
        Self::Empty,
        Self::Stingy,
        Self::Truncated,
        Self::Trailing,
        Self::Endless,
        Self::Stale,
        Self::Replayed,
        Self::Slow,
        Self::Oversized,
        Self::OthersAnswer,
        Self::MovingRoot,
        Self::WrongNumber,
        Self::NotKept,
        Self::Busy,
        Self::Silent,
        Self::Noise,
        Self::OtherChain,
    ];

    /// Whether it never sends what cannot be true: such a peer must not be banned.
    #[must_use]
    pub fn is_blameless(self) -> bool {
        matches!(
            self,
            Self::Honest | Self::Empty | Self::Stingy | Self::Slow | Self::NotKept | Self::Busy | Self::Silent
        )
    }
}

/// A frame that is too long by one byte.
static TOO_LONG: LazyLock<Vec<u8>> = LazyLock::new(|| vec![0; RESPONSE_BYTES_MAX + 1]);

/// A peer: its server, and how it behaves.
pub(crate) struct Node {
    pub(crate) manner: Manner,
    pub(crate) server: Server<Kept>,
    forger: Server<Kept>,
    first: Vec<Response>,
    before: Option<Response>,
    asked: u64,
}

/// What a peer sends, and how long it takes beyond what the network does.
pub(crate) struct Sent {
    pub(crate) bytes: Vec<u8>,
    pub(crate) delay_ms: u64,
}

impl Node {
    pub(crate) fn new(manner: Manner, kept: Kept, other: &'static Chain, limits: ServerLimits) -> Self {
        let newest = kept.newest;
        let params = kept.chain.params.clone();
        let forger = Kept { chain: other, oldest: 1, newest };
        let server = Server::new(kept, params.clone(), limits, Tick(0));
        let forger = Server::new(forger, params, limits, Tick(0));
        Self { manner, server, forger, first: Vec::new(), before: None, asked: 0 }
    }

    /// The chain grew.
    pub(crate) fn grow(&mut self, newest: u64, keep: u64) {
        let kept = self.server.versions();
        kept.newest = newest;
        kept.oldest = kept.oldest.max(newest.saturating_sub(keep).max(1));
        self.forger.versions().newest = newest;
    }

    pub(crate) fn answer(&mut self, now: Tick, frame: &Frame<Request>, timeout_ms: u64, dice: &mut Dice) -> Vec<Sent> {
        let peer = PeerId(0);
        let honest = self.server.answer(now, peer, &frame.body);
        self.asked += 1;
        let mut delay_ms = 0;
        let is_part = matches!(honest, Response::Nodes(_) | Response::Chunks { .. });
        let mut id = frame.id;
        let body = match self.manner {
            Manner::Silent => return vec![],
            Manner::Noise => {
                let bytes = (0..dice.between(0, 200)).map(|_| dice.roll().to_le_bytes()[0]).collect::<Vec<_>>();
                let bytes = if dice.percent(50) { [&frame.id.to_le_bytes()[..], &bytes].concat() } else { bytes };
                return vec![Sent { bytes, delay_ms }];
            }
            Manner::Slow => {
                delay_ms = dice.between(timeout_ms / 2, timeout_ms * 3 / 2);
                honest.clone()
            }
            Manner::OtherChain => match honest.clone() {
                Response::Status(status) => Response::Status(Status { chunk_weight_max: 4001, ..status }),
                other => other,
            },
            Manner::MovingRoot => match honest.clone() {
                Response::Status(status) => {
                    let height = Height(status.newest.height.0 + 1 + self.asked % 3);
                    let root = Root(Hash([dice.roll().to_le_bytes()[0]; 32]));
                    Response::Status(Status { newest: Version { height, root }, oldest: Height(1), ..status })
                }
                _ => self.forge(now, &frame.body),
            },
            _ if !is_part => honest.clone(),
            manner => self.spoil(manner, now, frame, &honest, dice),
        };
        if self.manner == Manner::WrongNumber && is_part {
            id = id.wrapping_add(dice.between(1, 5));
        }
        if is_part {
            self.before = Some(honest);
        }
        if self.manner == Manner::Oversized && is_part && dice.percent(10) {
            let mut bytes = TOO_LONG.clone();
            bytes[..8].copy_from_slice(&id.to_le_bytes());
            return vec![Sent { bytes, delay_ms }];
        }
        let mut out = vec![Sent { bytes: Frame { id, body: body.clone() }.to_bytes(), delay_ms }];
        if self.manner == Manner::Endless {
            for number in 0..dice.between(3, 30) {
                let frame = Frame { id: dice.roll(), body: body.clone() };
                out.push(Sent { bytes: frame.to_bytes(), delay_ms: number * 20 });
            }
        }
        out
    }

    /// The same part of the state of another chain.
    fn forge(&mut self, now: Tick, request: &Request) -> Response {
        let mut request = request.clone();
        if let Request::GetNodes { at, .. } | Request::GetChunks { at, .. } = &mut request {
            *at = self.forger.versions().chain.at(at.height.0);
        }
        self.forger.answer(now, PeerId(0), &request)
    }

    /// The honest answer to a request for a part, made worse.
    fn spoil(
        &mut self,
        manner: Manner,
        now: Tick,
        frame: &Frame<Request>,
        honest: &Response,
        dice: &mut Dice,
    ) -> Response {
        match manner {
            Manner::SometimesWrong if !dice.percent(30) => honest.clone(),
            Manner::WrongBytes | Manner::SometimesWrong => on_raw(honest, |raw| {
                if let Some(at) = raw.len().checked_sub(1).map(|last| dice.place(last + 1)) {
                    raw[at] ^= 1 << dice.below(8);
                }
            }),
            Manner::Empty => match honest {
                Response::Chunks { .. } => Response::Chunks { units: 0, wire: Blob::new([]).expect("nothing") },
                // There is no empty page: it does what comes nearest without a lie.
                _ => Response::Busy { retry_after_ms: 0 },
            },
            Manner::Stingy => match &frame.body {
                Request::GetChunks { at, units } => {
                    let first = units.iter().next().copied().into_iter();
                    let units = BoundedSet::new(first).expect("one unit");
                    self.server.answer(now, PeerId(0), &Request::GetChunks { at: *at, units })
                }
                _ => honest.clone(),
            },
            Manner::Truncated => on_raw(honest, |raw| raw.truncate(raw.len().saturating_sub(1) / 2)),
            Manner::Trailing => on_raw(honest, |raw| raw.extend_from_within(..raw.len().min(40))),
            Manner::Stale => {
                let mut request = frame.body.clone();
                if let Request::GetNodes { at, .. } | Request::GetChunks { at, .. } = &mut request {
                    let kept = self.server.versions();
                    *at = kept.chain.at((at.height.0.saturating_sub(2)).max(kept.oldest).min(kept.newest));
                }
                self.server.answer(now, PeerId(0), &request)
            }
            Manner::Replayed => {
                let is_page = matches!(honest, Response::Nodes(_));
                let before = self.first.iter().find(|first| matches!(first, Response::Nodes(_)) == is_page);
                let before = before.cloned();
                before.unwrap_or_else(|| {
                    self.first.push(honest.clone());
                    honest.clone()
                })
            }
            Manner::Oversized => on_raw(honest, |raw| raw.extend(vec![0; 100_000])),
            Manner::OthersAnswer => self.before.clone().unwrap_or_else(|| honest.clone()),
            Manner::NotKept => Response::Unavailable(Why::NotKept),
            Manner::Busy => Response::Busy { retry_after_ms: 100 },
            _ => honest.clone(),
        }
    }
}

/// The answer with its part changed, in a wire form that is right.
fn on_raw(response: &Response, change: impl FnOnce(&mut Vec<u8>)) -> Response {
    let changed = |wire: &[u8]| {
        let mut raw = unpack(wire, 1 << 24).expect("an honest part").into_owned();
        change(&mut raw);
        Blob::new(pack(&raw, 1).expect("a small part")).expect("a small part")
    };
    match response {
        Response::Nodes(wire) => Response::Nodes(changed(wire)),
        Response::Chunks { units, wire } => Response::Chunks { units: *units, wire: changed(wire) },
        other => other.clone(),
    }
}
