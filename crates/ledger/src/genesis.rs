//! The first state of a chain, from a file.
//!
//! A genesis decides the chain's name, hasher, limits, producers and first state, and its hash is what nodes compare
//! to know that they belong together. The hash covers what the genesis means, not how its file is written: two files
//! that differ in spaces or in the order of members are one genesis.
//!
//! The file is JSON, taken to come from a stranger. Layout: `spec/ledger.md`, GENESIS-1 to GENESIS-4.

use crate::chain::{self, ChainFacts, SCHEMA};
use crate::inherit::Inherited;
use crate::json::{JSON_DEPTH_MAX, Json, JsonError, Number};
use crate::keys::check_key;
use crate::limits::{ChainLimits, LimitField, fields};
use crate::modules::beginning::Beginning;
use crate::validators::{VALIDATORS_MAX, Validator, Validators, ValidatorsError};
use crate::xian::{Import, ImportError};
use keelstone_codec::{ChainId, Hash, Height, Key, Namespace, Root, Timestamp, TypeError, Value};
use keelstone_execution::{BlockContext, BlockDraft, Capability, PublicKey, Registry, SYSTEM_NAMESPACES, Sessions};
use keelstone_tree::{Blake3, Diff, HashKind, MemoryTree};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::str::FromStr;

/// Most producers, and most keys with grants.
pub const KEYS_MAX: usize = 1_024;
/// A chain before its first block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Genesis {
    /// The network's name.
    pub chain_id: ChainId,
    /// The hasher of its tree.
    pub hasher: HashKind,
    /// The height of its first block, at least 1: the genesis itself stands one below.
    pub initial_height: Height,
    /// Its time; no block is earlier.
    pub time: Timestamp,
    /// Its limits.
    pub limits: ChainLimits,
    /// The keys that may make blocks. None: anybody's, for development.
    pub producers: Vec<PublicKey>,
    /// Who votes, on a chain under another consensus engine. None: the chain makes its own blocks.
    pub validators: Vec<Validator>,
    /// Reserved capabilities of keys, such as `contracts.patch`.
    pub grants: BTreeMap<PublicKey, BTreeSet<Capability>>,
    /// The export of another network that the chain begins with.
    pub xian: Option<Json>,
    /// The agents, alliances and rules that it begins with.
    pub world: Beginning,
    /// Further entries of the first state, which an application's own programs make.
    pub state: BTreeMap<(Namespace, Key), Value>,
    /// The state of another chain that it begins with, which is not in the file.
    pub inherits: Option<Inherited>,
}

/// Why a genesis is none. Whoever wrote the file has to act.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GenesisError {
    /// The file is not JSON that can be kept.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A member is missing.
    #[error("the genesis has no {name:?}")]
    Missing {
        /// The member.
        name: &'static str,
    },
    /// A member that no genesis has: a misspelt limit must not be a limit that is silently not kept.
    #[error("the genesis has no member {name:?}")]
    Unknown {
        /// The member.
        name: String,
    },
    /// A member is not what it should be.
    #[error("{name}: {what}")]
    Invalid {
        /// The member.
        name: &'static str,
        /// What is wrong.
        what: String,
    },
    /// The imported network's export is not taken.
    #[error("xian: {0}")]
    Xian(#[from] ImportError),
    /// The validators are none.
    #[error("validators: {0}")]
    Validators(#[from] ValidatorsError),
    /// The chain begins with another's state, and only what the file itself says is there. Its archive has to be given.
    #[error("the genesis inherits the state of {} at height {}, which is not here", .0.chain_id, .0.height)]
    Inherits(Inherited),
    /// Two parts of the genesis write one entry, or it writes to the ledger's own namespaces.
    #[error("the genesis may not write {namespace}/{}", key.escape_ascii())]
    Reserved {
        /// Where.
        namespace: Namespace,
        /// The entry.
        key: Key,
    },
}

/// What a genesis does to the empty state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstState {
    /// The genesis' hash.
    pub hash: Hash,
    /// The height at which it is committed: one below the first block's.
    pub height: Height,
    /// The writes; of a chain that inherits a state, its own beside that.
    pub diff: Diff,
}

impl Genesis {
    /// A genesis with everything at its default: BLAKE3, first block 1, nobody special.
    #[must_use]
    pub fn new(chain_id: ChainId) -> Self {
        Self {
            chain_id,
            hasher: HashKind::Blake3,
            initial_height: Height(1),
            time: Timestamp(0),
            limits: ChainLimits::default(),
            producers: Vec::new(),
            validators: Vec::new(),
            grants: BTreeMap::new(),
            xian: None,
            world: Beginning::default(),
            state: BTreeMap::new(),
            inherits: None,
        }
    }

    /// Puts another network's export at the beginning of the chain.
    ///
    /// # Errors
    /// [`GenesisError::Xian`] if the file cannot be kept whole; the genesis is unchanged.
    pub fn import_xian(&mut self, file: &[u8]) -> Result<Import, GenesisError> {
        self.import_xian_json(Json::parse(file, JSON_DEPTH_MAX + 4).map_err(ImportError::from)?)
    }

    /// The same for an export that is JSON already.
    ///
    /// # Errors
    /// As [`Genesis::import_xian`].
    pub fn import_xian_json(&mut self, json: Json) -> Result<Import, GenesisError> {
        let import = Import::from_json(json.clone())?;
        import.writes()?;
        self.xian = Some(json);
        Ok(import)
    }

    /// Reads a genesis file.
    ///
    /// # Errors
    /// [`GenesisError`] names the member.
    // spec: GENESIS-1
    pub fn parse(file: &[u8]) -> Result<Self, GenesisError> {
        let Json::Object(members) = Json::parse(file, JSON_DEPTH_MAX + 5)? else {
            return Err(GenesisError::Missing { name: "chain_id" });
        };
        let mut chain_id = None;
        let mut genesis = Self::new(ChainId::new("none").expect("a constant"));
        for (name, value) in members {
            match name.as_str() {
                "chain_id" => chain_id = Some(parsed("chain_id", &value, ChainId::new)?),
                "hasher" => genesis.hasher = parsed("hasher", &value, HashKind::from_str)?,
                "initial_height" => genesis.initial_height = Height(number("initial_height", &value)?),
                "time" => genesis.time = Timestamp(number("time", &value)?),
                "limits" => genesis.limits = limits(&value)?,
                "producers" => genesis.producers = keys("producers", &value)?,
                "validators" => genesis.validators = validators(&value)?,
                "grants" => genesis.grants = grants(&value)?,
                "xian" => {
                    Import::from_json(value.clone())?;
                    genesis.xian = Some(value);
                }
                "world" => genesis.world = Beginning::parse(&value).map_err(|error| invalid("world", error))?,
                "state" => genesis.state = entries(&value)?,
                "inherits" => genesis.inherits = Some(inherited(&value)?),
                _ => return Err(GenesisError::Unknown { name }),
            }
        }
        genesis.chain_id = chain_id.ok_or(GenesisError::Missing { name: "chain_id" })?;
        if genesis.initial_height < Height(1) || genesis.initial_height.0 > u64::MAX / 2 {
            return Err(invalid("initial_height", "is 1 to 2^63 - 1"));
        }
        Ok(genesis)
    }

    /// The genesis as a file.
    #[must_use]
    pub fn to_json(&self) -> Json {
        let text = |text: &dyn Display| Json::Text(text.to_string());
        let number = |number| Json::Number(Number::from(number));
        let keys = |keys: &[PublicKey]| Json::List(keys.iter().map(|key| text(key)).collect());
        let mut limits = self.limits;
        let limits = fields(&mut limits).map(|(name, field)| (name.to_owned(), number(field.value())));
        let mut members = vec![
            ("chain_id", text(&self.chain_id)),
            ("hasher", text(&self.hasher)),
            ("initial_height", number(self.initial_height.0)),
            ("time", number(self.time.0)),
            ("limits", Json::Object(limits.into())),
            ("producers", keys(&self.producers)),
        ];
        if !self.validators.is_empty() {
            let member = |name: &str, value| (name.to_owned(), value);
            let validator = |validator: &Validator| {
                Json::Object(vec![member("key", text(&validator.key)), member("power", number(validator.power))])
            };
            members.push(("validators", Json::List(self.validators.iter().map(validator).collect())));
        }
        if !self.grants.is_empty() {
            let names = |names: &BTreeSet<Capability>| Json::List(names.iter().map(|name| text(name)).collect());
            let grants = self.grants.iter().map(|(key, granted)| (key.to_string(), names(granted)));
            members.push(("grants", Json::Object(grants.collect())));
        }
        if !self.world.is_empty() {
            members.push(("world", self.world.to_json()));
        }
        if !self.state.is_empty() {
            let mut spaces: BTreeMap<&Namespace, Vec<(String, Json)>> = BTreeMap::new();
            for ((namespace, key), value) in &self.state {
                spaces.entry(namespace).or_default().push((hex::encode(key), Json::Text(hex::encode(value))));
            }
            let spaces = spaces.into_iter().map(|(name, entries)| (name.to_string(), Json::Object(entries)));
            members.push(("state", Json::Object(spaces.collect())));
        }
        if let Some(Inherited { chain_id, height, root, entries, bytes }) = &self.inherits {
            let members_of = [
                ("chain_id", text(chain_id)),
                ("height", number(height.0)),
                ("root", text(&root.0)),
                ("entries", number(*entries)),
                ("bytes", number(*bytes)),
            ];
            members.push(("inherits", Json::Object(members_of.map(|(name, value)| (name.to_owned(), value)).into())));
        }
        if let Some(xian) = &self.xian {
            members.push(("xian", xian.clone()));
        }
        Json::Object(members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// The facts that the state keeps.
    #[must_use]
    pub fn facts(&self) -> ChainFacts {
        ChainFacts {
            schema: SCHEMA,
            chain_id: self.chain_id.clone(),
            hasher: self.hasher,
            initial_height: self.initial_height,
            genesis_time: self.time,
            limits: self.limits,
            producers: self.producers.clone(),
        }
    }

    /// What the genesis does to the empty state, without what it inherits; its hash needs no more.
    ///
    /// # Errors
    /// [`GenesisError`].
    // spec: GENESIS-2, GENESIS-3, GENESIS-4
    pub fn first_state(&self) -> Result<FirstState, GenesisError> {
        self.limits.check().map_err(|error| invalid("limits", error))?;
        self.world.check().map_err(|error| invalid("world", error))?;
        if !self.validators.is_empty() && !self.producers.is_empty() {
            return Err(invalid("producers", "a chain with validators has no producers: its engine says who proposes"));
        }
        let reserved = |namespace: &Namespace, key: &Key| GenesisError::Reserved {
            namespace: namespace.clone(),
            key: key.clone(),
        };
        let mut state = self.state.clone();
        for (namespace, key) in state.keys() {
            if SYSTEM_NAMESPACES.contains(&namespace.as_str()) {
                return Err(reserved(namespace, key));
            }
        }
        if let Some(xian) = &self.xian {
            for ((namespace, key), value) in Import::from_json(xian.clone())?.writes()? {
                if state.insert((namespace.clone(), key.clone()), value).is_some() {
                    return Err(reserved(&namespace, &key));
                }
            }
        }
        let height = self.initial_height.prev().ok_or_else(|| invalid("initial_height", "is at least 1"))?;
        let context = BlockContext {
            chain_id: self.chain_id.clone(),
            height,
            time: self.time,
            proposer: PublicKey(Hash::ZERO),
            seed: Hash::ZERO,
        };
        let registry = Registry::new();
        let mut draft = BlockDraft::begin(&registry, MemoryTree::<Blake3>::new(), context);
        let empty = "nothing is read that could fail: the state below is empty";
        self.world.write(&mut draft, height).expect(empty);
        for ((namespace, key), value) in state {
            if draft.get(&namespace, &key).expect(empty).is_some() {
                return Err(reserved(&namespace, &key));
            }
            draft.put(&namespace, key, Some(value)).expect(empty);
        }
        if !self.validators.is_empty() {
            let (namespace, key) = Validators::place();
            let validators = Validators::new(self.validators.clone(), height)?;
            draft.put(&namespace, key, Some(validators.value())).expect(empty);
        }
        for (key, granted) in &self.grants {
            draft.edit(|sessions: &mut Sessions| sessions.grants.insert(key, granted)).expect(empty);
        }
        let facts = self.facts();
        let hash = chain::genesis_hash(&facts, &draft.changes().summary().digest, self.inherits.as_ref());
        for (namespace, key, value) in chain::genesis_writes(&facts, &hash) {
            draft.put(&namespace, key, Some(value)).expect(empty);
        }
        Ok(FirstState { hash, height, diff: draft.finish().to_diff() })
    }
}

fn invalid(name: &'static str, what: impl Display) -> GenesisError {
    GenesisError::Invalid { name, what: what.to_string() }
}

fn inherited(value: &Json) -> Result<Inherited, GenesisError> {
    const NAME: &str = "inherits";
    let Json::Object(members) = value else { return Err(invalid(NAME, "is an object")) };
    let (mut chain_id, mut height, mut root, mut entries, mut bytes) = (None, None, None, None, None);
    for (name, value) in members {
        match name.as_str() {
            "chain_id" => chain_id = Some(parsed(NAME, value, ChainId::new)?),
            "height" => height = Some(Height(number(NAME, value)?)),
            "root" => root = Some(parsed(NAME, value, Root::from_hex)?),
            "entries" => entries = Some(number(NAME, value)?),
            "bytes" => bytes = Some(number(NAME, value)?),
            _ => return Err(GenesisError::Unknown { name: format!("inherits.{name}") }),
        }
    }
    let missing = |what: &str| invalid(NAME, format!("has no {what:?}"));
    Ok(Inherited {
        chain_id: chain_id.ok_or_else(|| missing("chain_id"))?,
        height: height.ok_or_else(|| missing("height"))?,
        root: root.ok_or_else(|| missing("root"))?,
        entries: entries.ok_or_else(|| missing("entries"))?,
        bytes: bytes.ok_or_else(|| missing("bytes"))?,
    })
}

fn parsed<T, E: Display>(
    name: &'static str,
    value: &Json,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<T, GenesisError> {
    let text = value.as_text().ok_or_else(|| invalid(name, "is a text"))?;
    parse(text).map_err(|error| invalid(name, error))
}

fn number(name: &'static str, value: &Json) -> Result<u64, GenesisError> {
    match value {
        Json::Number(number) => number.as_str().parse().map_err(|_| invalid(name, "is a number from 0 to 2^64 - 1")),
        _ => Err(invalid(name, "is a number")),
    }
}

fn keys(name: &'static str, value: &Json) -> Result<Vec<PublicKey>, GenesisError> {
    let Json::List(list) = value else { return Err(invalid(name, "is a list of public keys")) };
    if list.len() > KEYS_MAX {
        return Err(invalid(name, format!("has {} keys, the limit is {KEYS_MAX}", list.len())));
    }
    let mut keys = Vec::with_capacity(list.len());
    for value in list {
        let key = parsed(name, value, PublicKey::from_hex)?;
        check_key(&key).map_err(|error| invalid(name, error))?;
        if keys.contains(&key) {
            return Err(invalid(name, format!("{key} stands twice")));
        }
        keys.push(key);
    }
    Ok(keys)
}

fn validators(value: &Json) -> Result<Vec<Validator>, GenesisError> {
    let wrong = || invalid("validators", "is a list of objects of key and power");
    let Json::List(list) = value else { return Err(wrong()) };
    if list.len() > VALIDATORS_MAX {
        return Err(ValidatorsError::TooMany { found: list.len() }.into());
    }
    let mut all = Vec::with_capacity(list.len());
    for value in list {
        let Json::Object(members) = value else { return Err(wrong()) };
        let (mut key, mut power) = (None, None);
        for (name, value) in members {
            match name.as_str() {
                "key" => key = Some(parsed("validators", value, PublicKey::from_hex)?),
                "power" => power = Some(number("validators", value)?),
                _ => return Err(GenesisError::Unknown { name: format!("validators.{name}") }),
            }
        }
        let (key, power) = key.zip(power).ok_or_else(wrong)?;
        check_key(&key).map_err(|error| invalid("validators", error))?;
        all.push(Validator { key, power });
    }
    Ok(Validators::new(all, Height(0))?.active.into_vec())
}

fn grants(value: &Json) -> Result<BTreeMap<PublicKey, BTreeSet<Capability>>, GenesisError> {
    let Json::Object(members) = value else { return Err(invalid("grants", "is an object of keys")) };
    if members.len() > KEYS_MAX {
        return Err(invalid("grants", format!("has {} keys, the limit is {KEYS_MAX}", members.len())));
    }
    let mut grants = BTreeMap::new();
    for (key, names) in members {
        let key = PublicKey::from_hex(key).map_err(|error| invalid("grants", error))?;
        check_key(&key).map_err(|error| invalid("grants", error))?;
        let Json::List(names) = names else { return Err(invalid("grants", "a key has a list of capabilities")) };
        let granted = names.iter().map(|name| parsed("grants", name, Capability::parse)).collect::<Result<_, _>>()?;
        if grants.insert(key, granted).is_some() {
            return Err(invalid("grants", format!("{key} stands twice")));
        }
    }
    Ok(grants)
}

fn limits(value: &Json) -> Result<ChainLimits, GenesisError> {
    let Json::Object(members) = value else { return Err(invalid("limits", "is an object")) };
    let mut limits = ChainLimits::default();
    for (name, value) in members {
        let found = fields(&mut limits).into_iter().find(|(field, _)| field == name);
        let Some((name, field)) = found else { return Err(GenesisError::Unknown { name: format!("limits.{name}") }) };
        let value = number(name, value)?;
        if value == 0 {
            return Err(invalid(name, "is at least 1"));
        }
        match field {
            LimitField::Narrow(field) => {
                *field = value.try_into().map_err(|_| invalid(name, "is below 2^32"))?;
            }
            LimitField::Wide(field) => *field = value,
        }
    }
    if !members.iter().any(|(name, _)| name == "continuation_gas_max") {
        limits.continuation_gas_max = ChainLimits::continuation_share(limits.block_gas_max, limits.bundle_gas_max);
    }
    limits.check().map_err(|error| invalid("limits", error))?;
    Ok(limits)
}

fn entries(value: &Json) -> Result<BTreeMap<(Namespace, Key), Value>, GenesisError> {
    let type_error = |error: TypeError| invalid("state", error);
    let bytes = |text: &str| {
        keelstone_codec::unhex(text).map_err(|_| invalid("state", "keys and values are lower-case hexadecimal"))
    };
    let mut out = BTreeMap::new();
    let Json::Object(spaces) = value else { return Err(invalid("state", "is an object of namespaces")) };
    for (name, entries) in spaces {
        let namespace = Namespace::new(name).map_err(type_error)?;
        let Json::Object(entries) = entries else { return Err(invalid("state", "a namespace is an object")) };
        for (key, value) in entries {
            let key = Key::new(bytes(key)?).map_err(type_error)?;
            let value = value.as_text().ok_or_else(|| invalid("state", "a value is hexadecimal text"))?;
            let value = Value::new(bytes(value)?).map_err(type_error)?;
            // Two ways of writing one key in hexadecimal would be two members of the object.
            if out.insert((namespace.clone(), key), value).is_some() {
                return Err(invalid("state", "an entry stands twice"));
            }
        }
    }
    Ok(out)
}
