//! What a chain knows of itself: the namespace `chain`.
//!
//! A node that took its state from a snapshot never saw the genesis, so everything a genesis decides for all time
//! stands in state: name, hasher, limits, producers, and the hash of the genesis itself. `tip` says where the last
//! block record stands, so that the next one can name it. Written by the ledger alone, but for what functions change of a
//! running chain: the validators ([`crate::Validators`]) and its limits ([`ChainLimits`]).
//!
//! Layout: `spec/ledger.md`, LEDGER-4 and GENESIS-2.

use crate::audit::read_log;
use crate::block::BlockRecord;
use crate::inherit::Inherited;
use crate::limits::ChainLimits;
use crate::validators::Validators;
use keelstone_codec::{
    ChainId, Decode, DecodeError, Encode, Hash, Height, Key, Namespace, Tag, Timestamp, Value, tagged,
};
use keelstone_execution::{Item, PublicKey};
use keelstone_macros::{Decode, Encode, namespace};
use keelstone_tree::{HashKind, KeyRange, Read, ReadError};

/// The namespace of the chain's own facts.
pub const CHAIN: &str = "chain";
/// The namespace of block records.
pub const BLOCKS: &str = "blocks";
/// The version of the layout of all system namespaces (spec: LEDGER-4).
pub const SCHEMA: u32 = 1;

/// What the state says of its chain.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ChainFacts {
    /// The layout of the system namespaces.
    pub schema: u32,
    /// The network's name.
    pub chain_id: ChainId,
    /// The hasher of its tree.
    pub hasher: HashKind,
    /// The height of its first block.
    pub initial_height: Height,
    /// The time of its genesis; no block is earlier.
    pub genesis_time: Timestamp,
    /// The limits it began with; those in force are what [`ChainLimits::read`] gives.
    pub limits: ChainLimits,
    /// The keys that may make blocks on a chain without another consensus. None: anybody's, for development.
    pub producers: Vec<PublicKey>,
}

/// The part of the namespace `chain` that functions of the chain may have in their worlds: what they change by its methods, and
/// what those read.
#[namespace("chain")]
pub struct ChainSpace {
    /// What the genesis said.
    pub(crate) facts: Item<ChainFacts>,
    /// The limits, once they were changed.
    pub(crate) limits: Item<ChainLimits>,
    /// The validators of a chain under another engine.
    pub(crate) validators: Item<Validators>,
}

/// The hash of a genesis: its facts and everything it puts into state. A state that it inherits is in it by its root.
// spec: GENESIS-3, GENESIS-4
#[must_use]
pub(crate) fn genesis_hash(facts: &ChainFacts, state: &Hash, inherited: Option<&Inherited>) -> Hash {
    const GENESIS: Tag = Tag::new("genesis");
    const INHERITING: Tag = Tag::new("genesis-inheriting");
    match inherited {
        None => tagged(GENESIS, &(facts, *state)),
        Some(inherited) => tagged(INHERITING, &(facts, *state, inherited)),
    }
}

/// What the chain's namespace says, read at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Facts since genesis.
    pub facts: ChainFacts,
    /// The genesis they are from.
    pub genesis_hash: Hash,
    /// The limits under which the next block runs.
    pub limits: ChainLimits,
    /// The height of the last block record; none before the first.
    pub tip: Option<Height>,
}

impl Chain {
    /// Reads the facts of the chain a state belongs to; none if the state has none, as before genesis.
    ///
    /// # Errors
    /// [`ReadError`]; a record that does not decode is damage.
    pub fn read(state: &dyn Read) -> Result<Option<Self>, ReadError> {
        let Some(facts) = fact::<ChainFacts>(state, FACTS)? else { return Ok(None) };
        let genesis_hash =
            fact(state, GENESIS_HASH)?.ok_or_else(|| ReadError::damaged("chain/genesis_hash is absent"))?;
        let limits = ChainLimits::read(state, &facts)?;
        Ok(Some(Self { facts, genesis_hash, limits, tip: fact(state, TIP)? }))
    }
}

/// Most heights above that of its genesis at which a state is taken for a chain's. A chain that made a block every nanosecond would
/// take 146 years for them, and behind the highest there is room for as many.
pub const HEIGHTS_MAX: u64 = 1 << 62;

/// Why a state is not that of its chain at a height. Whoever says that it is has to act.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unfit {
    /// The state has no facts of a chain.
    #[error("the state is that of no chain")]
    NoChain,
    /// It is of another genesis.
    #[error("the genesis has hash {expected}, the state belongs to {found}")]
    OtherGenesis {
        /// The hash of the genesis.
        expected: Hash,
        /// What the state says.
        found: Hash,
    },
    /// It has the hash of the genesis and not its facts.
    #[error("the state has other facts of the chain than its genesis, whose hash it names")]
    OtherFacts,
    /// No block could be made on it, or it says of itself that the height is another.
    #[error("the state is not one of height {height}: {what}")]
    Height {
        /// The height it is said to be of.
        height: Height,
        /// What was compared.
        what: String,
    },
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Checks that a state from elsewhere can be that of its chain at a height, so that the next block can be made on it. The facts
/// and the hash of its genesis are compared if they are given. Above the last record a height leaves no trace in a state: that it
/// is this one and none between is the word of whoever says so.
///
/// # Errors
/// [`Unfit`]: the first thing that is wrong.
// spec: SNAP-19
pub fn check_fits(state: &dyn Read, height: Height, genesis: Option<(&ChainFacts, Hash)>) -> Result<Chain, Unfit> {
    let chain = Chain::read(state)?.ok_or(Unfit::NoChain)?;
    let Chain { facts, genesis_hash, tip, .. } = &chain;
    if let Some((expected, hash)) = genesis {
        if *genesis_hash != hash {
            return Err(Unfit::OtherGenesis { expected: hash, found: *genesis_hash });
        }
        if facts != expected {
            return Err(Unfit::OtherFacts);
        }
    }
    let unfit = |what: String| Err(Unfit::Height { height, what });
    let first = facts.initial_height;
    let genesis_height = first.prev().ok_or_else(|| ReadError::damaged("the first block has height 0"))?;
    if height < genesis_height {
        return unfit(format!("the chain begins with block {first}"));
    }
    if height.0 - genesis_height.0 > HEIGHTS_MAX {
        return unfit(format!("no chain comes more than {HEIGHTS_MAX} above its genesis"));
    }
    let blocks = Namespace::new(BLOCKS).expect("a constant");
    let last = state.scan(&blocks, KeyRange::all().reversed()).next().transpose()?.map(|(key, _)| key);
    match *tip {
        None if last.is_some() => return unfit("it has the record of a block, and names no last one".to_owned()),
        None => {}
        Some(tip) if tip < first || tip > height => return unfit(format!("its last record is of block {tip}")),
        Some(tip) => {
            let record = BlockRecord::read(state, tip)?;
            let found = record.as_ref().map(|record| record.height);
            if found != Some(tip) {
                return unfit(format!("it lacks the record of block {tip}, which it says is its last"));
            }
            if last != Some(BlockRecord::place(tip).1) {
                return unfit(format!("it has records behind that of block {tip}, which it says is its last"));
            }
        }
    }
    read_log(state)?;
    Validators::read(state)?;
    Ok(chain)
}

const FACTS: &str = "facts";
const GENESIS_HASH: &str = "genesis_hash";
const LIMITS: &str = "limits";
const TIP: &str = "tip";

fn fact<T: Decode>(state: &dyn Read, name: &str) -> Result<Option<T>, ReadError> {
    let (namespace, key) = place(name);
    match state.get(&namespace, &key)? {
        None => Ok(None),
        Some(value) => T::from_bytes(&value)
            .map(Some)
            .map_err(|error: DecodeError| ReadError::damaged(format!("{CHAIN}/{name} does not decode: {error}"))),
    }
}

fn place(name: &str) -> (Namespace, Key) {
    (Namespace::new(CHAIN).expect("a constant"), Key::new(name.as_bytes()).expect("a constant"))
}

/// The limits that were changed last; none as long as they are those of the genesis.
// spec: LEDGER-10
pub(crate) fn changed_limits(state: &dyn Read) -> Result<Option<ChainLimits>, ReadError> {
    fact(state, LIMITS)
}

/// Where they stand.
pub(crate) fn limits_place() -> (Namespace, Key) {
    place(LIMITS)
}

/// Where the facts of the chain, the hash of its genesis and the height of its last record stand.
pub(crate) fn places() -> [(Namespace, Key); 3] {
    [FACTS, GENESIS_HASH, TIP].map(place)
}

fn value(fact: &impl Encode) -> Value {
    Value::new(fact.to_bytes()).expect("facts of a chain are neither empty nor large")
}

/// What a genesis writes of the chain's facts.
pub(crate) fn genesis_writes(facts: &ChainFacts, genesis_hash: &Hash) -> [(Namespace, Key, Value); 2] {
    let write = |name, value| {
        let (namespace, key) = place(name);
        (namespace, key, value)
    };
    [write(FACTS, value(facts)), write(GENESIS_HASH, value(genesis_hash))]
}

/// What a block writes of the tip.
pub(crate) fn tip_write(height: Height) -> (Namespace, Key, Value) {
    let (namespace, key) = place(TIP);
    (namespace, key, value(&height))
}
