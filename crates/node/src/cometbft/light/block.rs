//! A header as a server gives it: with its votes, who votes for it, and who votes for the next. Nothing of it is proven
//! here but that it is one.

use super::step::{Flaw, Sha, block_height};
use super::{LightError, Time};
use crate::cometbft::base64::from_base64;
use crate::cometbft::certificate;
use crate::cometbft::keys::address_of;
use crate::cometbft::rpc::Rpc;
use keelstone_codec::{Hash, Height, Root, Timestamp};
use keelstone_execution::PublicKey;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeSet;
use tendermint::block::signed_header::SignedHeader;
use tendermint::validator::{Info, Set};

/// Validators of one height. CometBFT has no more votes to a commit.
const VALIDATORS_MAX: usize = 10_000;
/// Validators of one answer; CometBFT gives no more.
const PAGE: usize = 100;
/// Bytes of that answer, which has some 300 for each.
const PAGE_BYTES_MAX: u64 = 128 * 1024;
/// Bytes of a header with its votes, which has some 350 for each.
const COMMIT_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// All validators' votes together. CometBFT's limit, and with it no sum of them is too large for a number.
const POWER_MAX: u64 = i64::MAX as u64 / 8;
/// The kind of key that signs here.
const KEY_KIND: &str = "tendermint/PubKeyEd25519";

/// Why what a server sent is not what was asked for. The server is to blame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FormError {
    /// A part is missing, or is something else.
    #[error("{what} is none: {problem}")]
    None {
        /// Of what.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// It is of another height.
    #[error("{what} of height {found} came instead")]
    OtherHeight {
        /// Of what.
        what: &'static str,
        /// Which height.
        found: String,
    },
    /// More validators than there can be, none, or more or fewer than it said.
    #[error("{found} of {total} validators, at least 1 and at most {VALIDATORS_MAX} there can be")]
    Count {
        /// How many came.
        found: usize,
        /// How many it says there are.
        total: String,
    },
    /// One is listed twice.
    #[error("validator {key} is there twice")]
    Twice {
        /// Who.
        key: PublicKey,
    },
    /// Votes add up to more than there can be.
    #[error("the validators' power is above {POWER_MAX}")]
    Power,
}

/// A header with its votes, who votes for it, and who votes for the next.
#[derive(Debug, Clone)]
pub(super) struct Block {
    pub(super) signed: SignedHeader,
    pub(super) validators: Set,
    pub(super) next_validators: Set,
}

impl Block {
    /// Asks a server for all of it, and begins no exchange once its time is up.
    pub(super) fn fetch(server: &Rpc, height: Height, time: Time) -> Result<Self, LightError> {
        time.check(server, height)?;
        let signed = signed_header(server, height)?;
        let validators = validators(server, height, time)?;
        let next_validators = match signed.header.validators_hash == signed.header.next_validators_hash {
            true => validators.clone(),
            false => self::validators(server, height.next(), time)?,
        };
        Ok(Self { signed, validators, next_validators })
    }

    pub(super) fn height(&self) -> Height {
        block_height(&self.signed)
    }

    pub(super) fn hash(&self) -> Hash {
        hash_of(&self.signed)
    }

    /// When it was agreed on, by its voters' clocks; before 1970 it is 0.
    pub(super) fn time(&self) -> Timestamp {
        let millis = self.signed.header.time.unix_timestamp_nanos() / 1_000_000;
        Timestamp(u64::try_from(millis).unwrap_or(0))
    }

    /// The root that it certifies.
    pub(super) fn app_hash(&self) -> Result<Root, Flaw> {
        let bytes = self.signed.header.app_hash.as_bytes();
        let root = <[u8; 32]>::try_from(bytes).map_err(|_| Flaw::AppHash { bytes: bytes.len() })?;
        Ok(Root(Hash(root)))
    }

    /// Whether it is of a chain, and its validators are those it names: all there is to check of one that is trusted.
    pub(super) fn check_alone(&self, chain_id: &str) -> Result<(), Flaw> {
        let header = &self.signed.header;
        if header.chain_id.as_str() != chain_id {
            let (found, expected) = (header.chain_id.to_string(), chain_id.to_owned());
            return Err(Flaw::OtherChain { found, expected });
        }
        let sets = [(&self.validators, header.validators_hash), (&self.next_validators, header.next_validators_hash)];
        for (set, expected) in sets {
            let found = set.hash_with::<Sha>();
            if found != expected {
                return Err(Flaw::Validators { found: found.to_string(), expected: expected.to_string() });
            }
        }
        Ok(())
    }
}

fn hash_of(signed: &SignedHeader) -> Hash {
    match signed.header.hash_with::<Sha>() {
        tendermint::Hash::Sha256(hash) => Hash(hash),
        tendermint::Hash::None => unreachable!("the hash of a header is one"),
    }
}

/// The hash of the header that a server has at a height.
pub(super) fn header_hash(server: &Rpc, height: Height) -> Result<Hash, LightError> {
    Ok(hash_of(&signed_header(server, height)?))
}

/// What makes a fault of form one of a server's.
fn at(server: &Rpc, height: Height) -> impl Fn(FormError) -> LightError {
    move |error| LightError::Form { server: server.authority().to_owned(), height, error }
}

fn signed_header(server: &Rpc, height: Height) -> Result<SignedHeader, LightError> {
    let answer = server.get_within(&format!("/commit?height={height}"), COMMIT_BYTES_MAX)?;
    read_header(answer, height).map_err(at(server, height))
}

/// The header with its votes in an answer.
pub(super) fn read_header(answer: Value, height: Height) -> Result<SignedHeader, FormError> {
    const WHAT: &str = "the header";
    let none = |problem: String| FormError::None { what: WHAT, problem };
    let raw = certificate::of_answer(answer).map_err(none)?;
    let signed = SignedHeader::try_from(raw).map_err(|error| none(error.to_string()))?;
    match block_height(&signed) == height {
        true => Ok(signed),
        false => Err(FormError::OtherHeight { what: WHAT, found: signed.header.height.to_string() }),
    }
}

#[derive(Deserialize)]
struct Page {
    block_height: String,
    validators: Option<Vec<Voter>>,
    total: String,
}

#[derive(Deserialize)]
struct Voter {
    pub_key: Key,
    voting_power: String,
}

#[derive(Deserialize)]
struct Key {
    #[serde(rename = "type")]
    kind: String,
    value: String,
}

/// Those who vote at a height, as a server says, page by page.
fn validators(server: &Rpc, height: Height, time: Time) -> Result<Set, LightError> {
    let mut voters = Voters::default();
    for page in 1.. {
        time.check(server, height)?;
        let path = format!("/validators?height={height}&page={page}&per_page={PAGE}");
        let answer = server.get_within(&path, PAGE_BYTES_MAX)?;
        if voters.add(answer, height).map_err(at(server, height))? {
            break;
        }
    }
    Ok(voters.into_set())
}

/// Those who vote at a height, as far as their pages came.
#[derive(Debug, Default)]
pub(super) struct Voters {
    all: Vec<Info>,
    known: BTreeSet<tendermint::account::Id>,
    power: u64,
}

impl Voters {
    /// Takes in the next page of an answer, and says whether it was the last.
    pub(super) fn add(&mut self, answer: Value, height: Height) -> Result<bool, FormError> {
        const WHAT: &str = "the set of validators";
        let none = |problem: String| FormError::None { what: WHAT, problem };
        let Page { block_height, validators, total } =
            serde_json::from_value(answer).map_err(|error| none(error.to_string()))?;
        if block_height.parse() != Ok(height.0) {
            return Err(FormError::OtherHeight { what: WHAT, found: block_height });
        }
        let listed = validators.unwrap_or_default();
        let expected = total.parse().ok().filter(|total| (1..=VALIDATORS_MAX).contains(total));
        let before = self.all.len();
        let found = before + listed.len();
        // Each page is full but the last: one voter at a time, a set would take as many exchanges as it has voters.
        let is_page = |expected: &usize| *expected > before && listed.len() == PAGE.min(*expected - before);
        let Some(expected) = expected.filter(is_page) else {
            return Err(FormError::Count { found, total });
        };
        for voter in listed {
            let info = read(&voter).map_err(none)?;
            self.power = self.power.saturating_add(info.power.value());
            if self.power > POWER_MAX {
                return Err(FormError::Power);
            }
            if !self.known.insert(info.address) {
                let key = from_base64(&voter.pub_key.value).and_then(|key| key.try_into().ok());
                return Err(FormError::Twice { key: PublicKey(Hash(key.expect("it was read just now"))) });
            }
            self.all.push(info);
        }
        Ok(self.all.len() == expected)
    }

    pub(super) fn into_set(self) -> Set {
        Set::without_proposer(self.all)
    }
}

/// A validator. Its address is computed: votes are found by it, and a set's hash does not cover what a server says it is.
fn read(voter: &Voter) -> Result<Info, String> {
    let Key { kind, value } = &voter.pub_key;
    if kind != KEY_KIND {
        return Err(format!("a key of the kind {kind:?}"));
    }
    let key = from_base64(value).and_then(|key| <[u8; 32]>::try_from(key).ok());
    let key = key.ok_or_else(|| format!("a key {value:?}"))?;
    let power = voter.voting_power.parse::<u64>().ok().filter(|power| *power > 0);
    let power = power.ok_or_else(|| format!("a power of {:?}", voter.voting_power))?;
    Ok(Info {
        address: tendermint::account::Id::new(address_of(&PublicKey(Hash(key)))),
        pub_key: tendermint::PublicKey::from_raw_ed25519(&key).ok_or_else(|| format!("a key {value:?}"))?,
        power: power.try_into().map_err(|_| format!("a power of {power}"))?,
        name: None,
        proposer_priority: 0.into(),
    })
}
