//! The catalogue of peers: honest ones, useless ones, and liars.
//!
//! A liar knows what the honest answer would be and what another chain is, and spoils the one or sends the other. None of them can make bytes that hash to what they do not hold; everything else they can do.

use crate::chain::Keeps;
use crate::dice::Dice;
use keelstone_codec::{Blob, BoundedList, BoundedSet, Encode, Hash, Height, Root};
use keelstone_sync::peers::{
    Frame, Heights, PeerId, RESPONSE_BYTES_MAX, Request, Response, Server, ServerLimits, Status, Tick, Version, Why,
};
use keelstone_sync::snapshot::{WIRE_BYTES_MAX, pack, unpack};
use std::mem::discriminant;
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
    /// It gives one unit or height of those asked for: slow, and no lie.
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
pub(crate) struct Node<K: Keeps> {
    pub(crate) manner: Manner,
    server: Server<K>,
    forger: Server<K>,
    first: Vec<Response>,
    before: Option<Response>,
    asked: u64,
}

/// What a peer sends, and how long it takes beyond what the network does.
pub(crate) struct Sent {
    pub(crate) bytes: Vec<u8>,
    pub(crate) delay_ms: u64,
}

impl<K: Keeps> Node<K> {
    /// One that keeps this, and knows what is kept of another chain.
    pub(crate) fn new(manner: Manner, kept: K, forged: K, limits: ServerLimits) -> Self {
        let params = kept.params().clone();
        let server = Server::new(kept, params.clone(), limits, Tick(0));
        let forger = Server::new(forged, params, limits, Tick(0));
        Self { manner, server, forger, first: Vec::new(), before: None, asked: 0 }
    }

    /// The chain grew.
    pub(crate) fn grow(&mut self, newest: u64, keep: u64) {
        self.server.versions().grow(newest, keep);
        self.forger.versions().grow(newest, u64::MAX);
    }

    pub(crate) fn answer(&mut self, now: Tick, frame: &Frame<Request>, timeout_ms: u64, dice: &mut Dice) -> Vec<Sent> {
        let peer = PeerId(0);
        let honest = self.server.answer(now, peer, &frame.body);
        self.asked += 1;
        let mut delay_ms = 0;
        let is_part = !matches!(honest, Response::Status(_) | Response::Unavailable(_) | Response::Busy { .. });
        let mut id = frame.id;
        let body: Vec<u8> = match self.manner {
            Manner::Silent => return vec![],
            Manner::Noise => {
                let bytes = (0..dice.between(0, 200)).map(|_| dice.roll().to_le_bytes()[0]).collect::<Vec<_>>();
                let bytes = if dice.percent(50) { [&frame.id.to_le_bytes()[..], &bytes].concat() } else { bytes };
                return vec![Sent { bytes, delay_ms }];
            }
            Manner::Slow => {
                delay_ms = dice.between(timeout_ms / 2, timeout_ms * 3 / 2);
                honest.to_bytes()
            }
            Manner::OtherChain => match honest.clone() {
                Response::Status(status) => {
                    let chunk_weight_max = status.chunk_weight_max + 1;
                    Response::Status(Status { chunk_weight_max, ..status }).to_bytes()
                }
                other => other.to_bytes(),
            },
            Manner::MovingRoot => match honest.clone() {
                Response::Status(status) => {
                    let height = Height(status.newest.height.0 + 1 + self.asked % 3);
                    let root = Root(Hash([dice.roll().to_le_bytes()[0]; 32]));
                    let newest = Version { height, root };
                    Response::Status(Status { newest, oldest: Height(1), ..status }).to_bytes()
                }
                _ => self.forge(now, &frame.body).to_bytes(),
            },
            _ if !is_part => honest.to_bytes(),
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
        let framed = |id: u64| [&id.to_le_bytes()[..], &body].concat();
        let mut out = vec![Sent { bytes: framed(id), delay_ms }];
        if self.manner == Manner::Endless {
            for number in 0..dice.between(3, 30) {
                out.push(Sent { bytes: framed(dice.roll()), delay_ms: number * 20 });
            }
        }
        out
    }

    /// The same part of another chain.
    fn forge(&mut self, now: Tick, request: &Request) -> Response {
        let mut request = request.clone();
        if let Some(at) = version(&mut request) {
            *at = self.forger.versions().at(at.height.0);
        }
        self.forger.answer(now, PeerId(0), &request)
    }

    /// The same part of two heights before; what those changed as if these had.
    fn of_old(&mut self, now: Tick, request: &Request) -> Response {
        let mut request = request.clone();
        let kept = self.server.versions();
        let (newest, oldest) = kept.kept().expect("it has versions");
        if let Some(at) = version(&mut request) {
            *at = kept.at(at.height.0.saturating_sub(2).max(oldest.0).min(newest.height.0));
        }
        let mut moved = 0;
        if let Request::GetDiffs { heights } | Request::GetBlocks { heights } = &mut request {
            moved = heights.first().0.saturating_sub(1).min(2);
            let below = |height: Height| Height(height.0 - moved);
            *heights = Heights::new(below(heights.first()), below(heights.last())).expect("there are as many");
        }
        match self.server.answer(now, PeerId(0), &request) {
            Response::Diffs(diffs) => {
                let mut diffs = diffs.into_vec();
                diffs.iter_mut().for_each(|diff| diff.height.0 += moved);
                Response::Diffs(BoundedList::new(diffs).expect("there are as many"))
            }
            other => other,
        }
    }

    /// The honest answer to a request for a part, made worse.
    fn spoil(
        &mut self,
        manner: Manner,
        now: Tick,
        frame: &Frame<Request>,
        honest: &Response,
        dice: &mut Dice,
    ) -> Vec<u8> {
        let spoilt = match manner {
            Manner::SometimesWrong if !dice.percent(30) => honest.clone(),
            Manner::WrongBytes | Manner::SometimesWrong => {
                return on_raw(honest, |raw| {
                    if let Some(at) = raw.len().checked_sub(1).map(|last| dice.place(last + 1)) {
                        raw[at] ^= 1 << dice.below(8);
                    }
                });
            }
            Manner::Empty => match honest {
                Response::Chunks { .. } => Response::Chunks { units: 0, wire: Blob::new([]).expect("nothing") },
                Response::Diffs(_) => Response::Diffs(BoundedList::default()),
                Response::Blocks(_) => Response::Blocks(BoundedList::default()),
                // There is no empty page, nor an empty proof: it does what comes nearest without a lie.
                _ => Response::Busy { retry_after_ms: 0 },
            },
            Manner::Stingy => {
                let mut request = frame.body.clone();
                match &mut request {
                    Request::GetChunks { units, .. } => {
                        let first = units.iter().next().copied().into_iter();
                        *units = BoundedSet::new(first).expect("one unit");
                    }
                    Request::GetDiffs { heights } | Request::GetBlocks { heights } => {
                        *heights = Heights::new(heights.first(), heights.first()).expect("one height");
                    }
                    _ => return honest.to_bytes(),
                }
                self.server.answer(now, PeerId(0), &request)
            }
            Manner::Truncated => return on_raw(honest, |raw| raw.truncate(raw.len().saturating_sub(1) / 2)),
            Manner::Trailing => return on_raw(honest, |raw| raw.extend_from_within(..raw.len().min(40))),
            Manner::Stale => self.of_old(now, &frame.body),
            Manner::Replayed => {
                let kind = discriminant(honest);
                let before = self.first.iter().find(|first| discriminant(*first) == kind).cloned();
                before.unwrap_or_else(|| {
                    self.first.push(honest.clone());
                    honest.clone()
                })
            }
            Manner::Oversized => return on_raw(honest, |raw| raw.extend(vec![0; 100_000])),
            Manner::OthersAnswer => self.before.clone().unwrap_or_else(|| honest.clone()),
            Manner::NotKept => Response::Unavailable(Why::NotKept),
            Manner::Busy => Response::Busy { retry_after_ms: 100 },
            _ => honest.clone(),
        };
        spoilt.to_bytes()
    }
}

/// The version that a request is about, if it is about one.
fn version(request: &mut Request) -> Option<&mut Version> {
    match request {
        Request::GetNodes { at, .. } | Request::GetChunks { at, .. } | Request::GetHeader { at, .. } => Some(at),
        _ => None,
    }
}

/// The answer with its part changed: of a snapshot's, in a wire form that is right; of others, as they are encoded.
fn on_raw(response: &Response, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    match response {
        Response::Nodes(wire) => Response::Nodes(repacked(wire, change)).to_bytes(),
        Response::Chunks { units, wire } => Response::Chunks { units: *units, wire: repacked(wire, change) }.to_bytes(),
        other => {
            let mut kind = other.to_bytes();
            let mut rest = kind.split_off(1);
            change(&mut rest);
            [kind, rest].concat()
        }
    }
}

fn repacked(wire: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Blob<WIRE_BYTES_MAX> {
    let mut raw = unpack(wire, 1 << 24).expect("an honest part").into_owned();
    change(&mut raw);
    Blob::new(pack(&raw, 1).expect("a small part")).expect("a small part")
}
