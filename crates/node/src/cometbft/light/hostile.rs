//! For fuzzing only: what a server says of a header, fed with any bytes. See [`crate::hostile`].

use super::Settings;
use super::block::{Block, Voters, read_header};
use super::step::{Sha, Step, step};
use crate::cometbft::base64::base64;
use crate::cometbft::certificate::header_hash;
use crate::cometbft::hostile::{CHAIN, VOTERS, header, voted};
use crate::strict_json;
use keelstone_codec::{Hash, Height, Timestamp};
use serde_json::{Value, json};
use std::sync::LazyLock;
use std::time::Duration;
use tendermint_proto::v0_38::types::SignedHeader;

/// The height of the header that is trusted, and of the one that is read.
const TRUSTED: Height = Height(2);
const READ: Height = Height(4);

/// The page of those who vote at a height.
fn page(height: Height) -> Value {
    let one = |key: &keelstone_ledger::SecretKey| {
        let key = base64(key.public().as_bytes());
        json!({ "pub_key": { "type": "tendermint/PubKeyEd25519", "value": key }, "voting_power": "10" })
    };
    let validators: Vec<Value> = VOTERS.iter().map(one).collect();
    json!({ "block_height": height.to_string(), "validators": validators, "total": VOTERS.len().to_string() })
}

/// The header of a height, as a server gives it.
fn commit(height: Height) -> Value {
    let mut voters = Voters::default();
    assert_eq!(voters.add(page(height), height), Ok(true));
    let hash = voters.into_set().hash_with::<Sha>().as_bytes().to_vec();
    let height = i64::try_from(height.0).expect("small");
    json!({ "signed_header": voted(header(height, hash)), "canonical": true })
}

/// A block out of answers: the header with its votes, then those who vote there and go on to.
fn read(mut answers: impl Iterator<Item = Value>, height: Height) -> Option<Block> {
    let signed = read_header(answers.next()?, height).ok()?;
    let mut voters = Voters::default();
    while !voters.add(answers.next()?, height).ok()? {}
    let validators = voters.into_set();
    Some(Block { signed, next_validators: validators.clone(), validators })
}

/// What is trusted, and what an honest server has at the height that is read.
static HONEST: LazyLock<[Block; 2]> = LazyLock::new(|| {
    [TRUSTED, READ].map(|height| read([commit(height), page(height)].into_iter(), height).expect("an honest server"))
});

/// Reads what a server says of a header, an answer a line, and says whether the light client believes it (spec: SNAP-18).
///
/// # Panics
/// If it does and the header is not the one that was voted for, or if a header is another when it is written again, or
/// has two hashes.
#[must_use]
pub fn light_block(input: &[u8]) -> bool {
    let answers = input.split(|byte| *byte == b'\n').map_while(|line| strict_json::parse::<Value>(line).ok());
    let Some(block) = read(answers, READ) else { return false };
    let raw = SignedHeader::from(block.signed.clone());
    let hash = raw.header.as_ref().map(header_hash);
    assert_eq!(hash.map(Hash), Some(block.hash()), "a header with two hashes");
    let again = read_header(json!({ "signed_header": raw }), READ);
    assert_eq!(again.as_ref(), Ok(&block.signed), "another header when it is written again");
    let [trusted, honest] = &*HONEST;
    let settings = Settings {
        servers: vec![],
        chain_id: CHAIN.to_owned(),
        height: TRUSTED,
        hash: trusted.hash(),
        period: Duration::from_secs(86_400),
        patience: Duration::ZERO,
        way_max: Duration::ZERO,
    };
    let now = Timestamp(honest.time().0 + 60_000);
    if !matches!(step(trusted, &block, &settings, now), Ok(Step::Trusted)) {
        return false;
    }
    assert_eq!((block.hash(), block.app_hash()), (honest.hash(), honest.app_hash()), "votes for another header");
    assert_eq!(block.validators, honest.validators, "a header of other validators");
    true
}

/// Inputs that [`light_block`] accepts.
#[must_use]
pub fn light_block_seeds() -> Vec<Vec<u8>> {
    vec![format!("{}\n{}", commit(READ), page(READ)).into_bytes()]
}
