//! One step of trust, from a header to a later one: judged by `tendermint-light-client-verifier`, with hashes and
//! signatures of this project's own beneath.

use super::Settings;
use super::block::Block;
use keelstone_codec::{Hash, Height, Timestamp};
use keelstone_execution::PublicKey;
use keelstone_ledger::{Signature, verify};
use sha2::{Digest as _, Sha256};
use std::time::Duration;
use tendermint::block::signed_header::SignedHeader;
use tendermint::crypto::signature::Error as SignatureError;
use tendermint::merkle::MerkleHash;
use tendermint_light_client_verifier::errors::VerificationErrorDetail as Detail;
use tendermint_light_client_verifier::operations::ProvidedVotingPowerCalculator;
use tendermint_light_client_verifier::operations::commit_validator::ProdCommitValidator;
use tendermint_light_client_verifier::options::Options;
use tendermint_light_client_verifier::predicates::VerificationPredicates;
use tendermint_light_client_verifier::types::{Time, TrustThreshold, TrustedBlockState, UntrustedBlockState};
use tendermint_light_client_verifier::{PredicateVerifier, Verdict, Verifier as _};

/// How far a header's time may be ahead of this machine's clock.
const AHEAD_MAX: Duration = Duration::from_secs(60);

/// What came of a step.
pub(super) enum Step {
    /// The later header is believed.
    Trusted,
    /// Too few of those who vote at the trusted one have voted for it. One in between may do.
    TooFar,
}

/// Why a header is not believed, whoever sent it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Flaw {
    /// It is of another chain.
    #[error("it is of chain {found}, not of {expected}")]
    OtherChain {
        /// Its chain.
        found: String,
        /// Ours.
        expected: String,
    },
    /// It is from the future, or this machine's clock is wrong.
    #[error("it is of {time}, here it is {now}")]
    Future {
        /// Its time.
        time: String,
        /// This machine's.
        now: String,
    },
    /// It is not later than the one that is trusted.
    #[error("it is not later than a header below it: {0}")]
    NotLater(String),
    /// Those who are said to vote for it, or for the next, are not those it names.
    #[error("its validators have hash {found}, it names {expected}")]
    Validators {
        /// Of those who came with it.
        found: String,
        /// Of those it names.
        expected: String,
    },
    /// The votes are for another header.
    #[error("the votes are for {voted}, its hash is {found}")]
    OtherVote {
        /// What was voted for.
        voted: String,
        /// What came.
        found: String,
    },
    /// Not more than two thirds have voted for it.
    #[error("votes with power {found} of {total}, which is not more than two thirds")]
    TooFew {
        /// The power of its votes.
        found: u64,
        /// Of all validators.
        total: u64,
    },
    /// A vote is not signed by whom it says.
    #[error("a vote is not signed by its validator: {0}")]
    Signature(String),
    /// Its votes are not what votes are.
    #[error("its votes are none: {0}")]
    Votes(String),
    /// It certifies no root of this project's.
    #[error("its app hash has {bytes} bytes, a root has 32")]
    AppHash {
        /// How many.
        bytes: usize,
    },
}

/// The hash of a header and of a set, for what computes them elsewhere.
#[derive(Debug, Default)]
pub(super) struct Sha;

impl tendermint::crypto::Sha256 for Sha {
    fn digest(data: impl AsRef<[u8]>) -> [u8; 32] {
        Sha256::digest(data).into()
    }
}

impl MerkleHash for Sha {
    fn empty_hash(&mut self) -> [u8; 32] {
        Sha256::digest([]).into()
    }

    fn leaf_hash(&mut self, bytes: &[u8]) -> [u8; 32] {
        Sha256::new().chain_update([0]).chain_update(bytes).finalize().into()
    }

    fn inner_hash(&mut self, left: [u8; 32], right: [u8; 32]) -> [u8; 32] {
        Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
    }
}

/// Signatures by the rule of the chain (spec: TX-4), which is CometBFT's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Zip215;

impl tendermint::crypto::signature::Verifier for Zip215 {
    fn verify(
        key: tendermint::PublicKey,
        message: &[u8],
        signature: &tendermint::Signature,
    ) -> Result<(), SignatureError> {
        let tendermint::PublicKey::Ed25519(key) = key else { return Err(SignatureError::UnsupportedKeyType) };
        let key = <[u8; 32]>::try_from(key.as_bytes()).map_err(|_| SignatureError::MalformedPublicKey)?;
        let signature = <[u8; 64]>::try_from(signature.as_bytes()).map_err(|_| SignatureError::MalformedSignature)?;
        verify(&PublicKey(Hash(key)), message, &Signature(signature)).map_err(|_| SignatureError::VerificationFailed)
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Predicates;

impl VerificationPredicates for Predicates {
    type Sha256 = Sha;
}

type Judge = PredicateVerifier<Predicates, ProvidedVotingPowerCalculator<Zip215>, ProdCommitValidator>;

pub(super) fn block_height(signed: &SignedHeader) -> Height {
    Height(signed.header.height.value())
}

/// Judges whether a header that is trusted makes a later one so.
// spec: SNAP-18
pub(super) fn step(trusted: &Block, later: &Block, settings: &Settings, now: Timestamp) -> Result<Step, Flaw> {
    later.check_alone(&settings.chain_id)?;
    let (before, header) = (&trusted.signed.header, &later.signed.header);
    let given = UntrustedBlockState {
        signed_header: &later.signed,
        validators: &later.validators,
        next_validators: Some(&later.next_validators),
    };
    let known = TrustedBlockState {
        chain_id: &before.chain_id,
        header_time: before.time,
        height: before.height,
        next_validators: &trusted.next_validators,
        next_validators_hash: before.next_validators_hash,
    };
    let options = Options {
        trust_threshold: TrustThreshold::default(),
        trusting_period: settings.period,
        clock_drift: AHEAD_MAX,
    };
    let now = time(now).ok_or_else(|| Flaw::Votes("this machine's clock shows no time".to_owned()))?;
    match Judge::default().verify_update_header(given, known, &options, now) {
        Verdict::Success => Ok(Step::Trusted),
        Verdict::NotEnoughTrust(_) => Ok(Step::TooFar),
        Verdict::Invalid(detail) => Err(flaw(detail, header.time, now)),
    }
}

/// A time as the verifier has it; none beyond the year 9999.
fn time(at: Timestamp) -> Option<Time> {
    let nanos = u32::try_from(at.0 % 1_000 * 1_000_000).ok()?;
    Time::from_unix_timestamp(i64::try_from(at.0 / 1_000).ok()?, nanos).ok()
}

fn flaw(detail: Detail, time: Time, now: Time) -> Flaw {
    match detail {
        Detail::HeaderFromTheFuture(_) => Flaw::Future { time: time.to_rfc3339(), now: now.to_rfc3339() },
        Detail::InsufficientSignersOverlap(error) => {
            Flaw::TooFew { found: error.tally.tallied, total: error.tally.total }
        }
        Detail::NoSignatureForCommit(_) => Flaw::Votes("there are none".to_owned()),
        Detail::InvalidSignature(error) => {
            Flaw::Signature(PublicKey(Hash(key(&error.validator.pub_key).unwrap_or_default())).to_string())
        }
        Detail::InvalidCommitValue(error) => {
            Flaw::OtherVote { voted: error.commit_hash.to_string(), found: error.header_hash.to_string() }
        }
        Detail::InvalidNextValidatorSet(error) => Flaw::Validators {
            found: error.header_next_validators_hash.to_string(),
            expected: error.next_validators_hash.to_string(),
        },
        detail @ (Detail::NonMonotonicBftTime(_) | Detail::NonIncreasingHeight(_)) => {
            Flaw::NotLater(detail.to_string())
        }
        detail => Flaw::Votes(detail.to_string()),
    }
}

/// A key of the only kind that is read.
fn key(key: &tendermint::PublicKey) -> Option<[u8; 32]> {
    key.ed25519()?.as_bytes().try_into().ok()
}
