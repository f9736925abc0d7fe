//! Sessions: a key's lines of execution, each with its capabilities and its own hash chain.
//!
//! A session is state: its record lies in the namespace `sessions`, and the engine writes it after every operation, as
//! a system write outside the operation's diff. Every key has a root session from the start, which holds all that the
//! chain does not reserve. A session may delegate a part of what it holds to another; whether a session may act is
//! found by walking up to its root at the moment it acts, so that closing one closes all that came from it.
//!
//! Rules: `spec/chain.md`, EXEC-1, EXEC-8, EXEC-16, EXEC-20.

use crate::chain::first_link;
use crate::collections::entry_prefix;
use crate::meter::cost;
use crate::newtype::hash_newtype;
use crate::{Map, Registry, SessionError};
use keelstone_codec::{
    ChainId, Decode, DecodeError, Describe, Encode, Height, Key, OrderedKey, Reader, Shape, StateHash, Tag,
    TaggedHasher, Text,
};
use keelstone_macros::{Decode, Encode, namespace};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// Most ancestors a session may have, its root included (spec: EXEC-16).
pub const ANCESTORS_MAX: usize = 8;
/// Longest capability name in bytes.
pub const CAPABILITY_LEN_MAX: usize = 64;
/// Most capabilities of one session.
pub const CAPABILITIES_MAX: usize = 256;

const ROOT: Tag = Tag::new("session/root");
const CHILD: Tag = Tag::new("session/child");
const HOOKS: Tag = Tag::new("session/hooks");

hash_newtype! {
    /// A public key, which is how the chain knows a sender. Execution never checks a signature: the ledger has.
    PublicKey
}
hash_newtype! {
    /// The identity of a session.
    SessionId
}

impl PublicKey {
    /// Who acts where the chain acts by itself: a key of small order, for which no signature counts (TX-4).
    // spec: EXEC-23
    pub const CHAIN: Self = Self(keelstone_codec::Hash::ZERO);
}

impl SessionId {
    /// The key of its record, in [`Session::SPACE`].
    pub(crate) fn record_key(&self) -> Key {
        let mut key = entry_prefix("records");
        self.encode_key(&mut key);
        Key::new(key).expect("a place and a hash are a key")
    }

    /// The root session of a key.
    #[must_use]
    pub fn root(chain_id: &ChainId, owner: &PublicKey) -> Self {
        Self(TaggedHasher::new(ROOT).value(chain_id).value(owner).finish())
    }

    /// The session of the chain itself in which it calls functions around the transactions of a key.
    // spec: EXEC-25
    #[must_use]
    pub fn of_hooks(chain_id: &ChainId, sender: &PublicKey) -> Self {
        Self(TaggedHasher::new(HOOKS).value(chain_id).value(sender).finish())
    }

    /// The session that the parent's operation number `sequence` creates. A number is used once, so an id is too.
    #[must_use]
    pub fn child(chain_id: &ChainId, parent: &Self, sequence: u64) -> Self {
        Self(TaggedHasher::new(CHILD).value(chain_id).value(parent).value(&sequence).finish())
    }
}

/// The name of something a session may do, such as `social.ally`: 1 to 64 of `[a-z0-9_.]`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Capability(Cow<'static, str>);

impl Capability {
    /// A capability that is a constant of the program.
    ///
    /// # Panics
    /// At compile time, for a name that breaks the rule.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        assert!(is_plain(name.as_bytes()), "a capability is 1 to 64 of a-z, 0-9, '_' and '.'");
        Self(Cow::Borrowed(name))
    }

    /// Reads a name from outside.
    ///
    /// # Errors
    /// [`DecodeError::Invalid`] for a name that breaks the rule.
    pub fn parse(name: &str) -> Result<Self, DecodeError> {
        if is_plain(name.as_bytes()) {
            Ok(Self(Cow::Owned(name.to_owned())))
        } else {
            Err(DecodeError::Invalid { what: "capability, which is 1 to 64 of a-z, 0-9, '_' and '.'" })
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

const fn is_plain(name: &[u8]) -> bool {
    let mut index = 0;
    while index < name.len() {
        if !matches!(name[index], b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.') {
            return false;
        }
        index += 1;
    }
    !name.is_empty() && name.len() <= CAPABILITY_LEN_MAX
}

/// As [`Capability::parse`].
impl FromStr for Capability {
    type Err = DecodeError;
    fn from_str(name: &str) -> Result<Self, DecodeError> {
        Self::parse(name)
    }
}
impl From<&'static str> for Capability {
    /// As [`Capability::new`].
    fn from(name: &'static str) -> Self {
        Self::new(name)
    }
}
impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}
impl Encode for Capability {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }
}
impl Decode for Capability {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Self::parse(&Text::<CAPABILITY_LEN_MAX>::decode(input)?)
    }
}
impl Describe for Capability {
    fn shape() -> Shape {
        Shape::Text(CAPABILITY_LEN_MAX)
    }
}

/// What a session may do.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Capabilities {
    /// All that the chain does not reserve, and what is granted to the owner: the right of a root session.
    Root,
    /// These, and nothing else. At most [`CAPABILITIES_MAX`].
    Only(keelstone_codec::BoundedSet<Capability, CAPABILITIES_MAX>),
}

impl Capabilities {
    /// A set of capabilities.
    ///
    /// # Errors
    /// [`keelstone_codec::TooMany`] above [`CAPABILITIES_MAX`].
    pub fn only(names: impl IntoIterator<Item = Capability>) -> Result<Self, keelstone_codec::TooMany> {
        Ok(Self::Only(keelstone_codec::BoundedSet::new(names)?))
    }
}

/// The record of a session, under its id in the namespace `sessions`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Session {
    /// The key that acts in it.
    pub owner: PublicKey,
    /// The session it was delegated from; none for a root session.
    pub parent: Option<SessionId>,
    /// What people call it, such as `defi/lending/alice`.
    pub name: Text<64>,
    /// What it may do.
    pub capabilities: Capabilities,
    /// The last height at which it may act.
    pub expires: Option<Height>,
    /// Closed for good, and with it all that was delegated from it.
    pub closed: bool,
    /// How many operations it has run.
    pub sequence: u64,
    /// The last link of its chain.
    pub state_hash: StateHash,
}

impl Session {
    /// The namespace of the records.
    pub(crate) const SPACE: &'static str = "sessions";

    /// The root session of a key, before its first operation.
    #[must_use]
    pub fn root(chain_id: &ChainId, owner: PublicKey) -> Self {
        let id = SessionId::root(chain_id, &owner);
        Self::open(chain_id, &id, owner, None, Capabilities::Root, &StateHash::default())
    }

    /// The session of [`SessionId::of_hooks`], before its first operation: it belongs to nobody who could sign.
    // spec: EXEC-25
    pub(crate) fn of_hooks(chain_id: &ChainId, sender: &PublicKey) -> Self {
        let id = SessionId::of_hooks(chain_id, sender);
        Self::open(chain_id, &id, PublicKey::CHAIN, None, Capabilities::Root, &StateHash::default())
    }

    /// Whether it is the other, but for what it has run.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        let Self { owner, parent, name, capabilities, expires, closed, sequence: _, state_hash: _ } = self;
        (owner, parent, name) == (&other.owner, &other.parent, &other.name)
            && (capabilities, expires, closed) == (&other.capabilities, &other.expires, &other.closed)
    }

    /// A session that has run nothing, with its first link (spec: EXEC-1).
    #[must_use]
    pub fn open(
        chain_id: &ChainId,
        id: &SessionId,
        owner: PublicKey,
        parent: Option<SessionId>,
        capabilities: Capabilities,
        init: &StateHash,
    ) -> Self {
        let state_hash = first_link(chain_id, id, init);
        let name = Text::default();
        Self { owner, parent, name, capabilities, expires: None, closed: false, sequence: 0, state_hash }
    }
}

/// The namespace `sessions`: records of sessions, and what is granted to keys beyond what every root session holds.
///
/// The engine keeps the records' sequence and state hash; a module's transitions create, delegate and close.
#[namespace("sessions")]
pub struct Sessions {
    /// The records. A key whose root session has run nothing has none.
    pub records: Map<SessionId, Session>,
    /// Reserved capabilities of root sessions, by owner. Written by genesis, and by whoever may grant.
    pub grants: Map<PublicKey, BTreeSet<Capability>>,
    /// Which session has a name, by the root session it comes from. Kept by whoever delegates.
    pub names: Map<(SessionId, Text<64>), SessionId>,
}

impl Sessions {
    /// The record of a session, if it has one: charged for the names of capabilities in it, too.
    ///
    /// # Errors
    /// [`crate::Stop`] if the state does not answer, or for want of gas.
    // spec: EXEC-13
    pub fn record(&self, id: &SessionId) -> Result<Option<Session>, crate::Stop> {
        let found = self.records.get(id)?;
        if let Some(Session { capabilities: Capabilities::Only(names), .. }) = &found {
            self.records.step(cost::CAPABILITY.saturating_mul(names.len() as u64))?;
        }
        Ok(found)
    }

    /// The record of a session, also of one that nobody opens and that has run nothing yet: the root session of a key, and that of
    /// the chain's hooks around its transactions.
    ///
    /// # Errors
    /// [`crate::Stop`] if the state does not answer.
    pub fn find(&self, chain_id: &ChainId, id: &SessionId, sender: &PublicKey) -> Result<Option<Session>, crate::Stop> {
        let found = self.record(id)?;
        let root = || (*id == SessionId::root(chain_id, sender)).then(|| Session::root(chain_id, *sender));
        let hooks = || (*id == SessionId::of_hooks(chain_id, sender)).then(|| Session::of_hooks(chain_id, sender));
        Ok(found.or_else(root).or_else(hooks))
    }

    /// Whether `above` is `below`, or one of the sessions that it was delegated from: who may read what another keeps.
    ///
    /// # Errors
    /// [`crate::Stop`] if the state does not answer.
    // spec: MODULE-9
    pub fn reaches(&self, above: SessionId, below: SessionId) -> Result<bool, crate::Stop> {
        let mut next = Some(below);
        for _ in 0..=ANCESTORS_MAX {
            match next {
                Some(id) if id == above => return Ok(true),
                Some(id) => next = self.record(&id)?.and_then(|session| session.parent),
                None => break,
            }
        }
        Ok(false)
    }

    /// Whether a session may act now, holding `needs`. Walks up to the root session (spec: EXEC-8, EXEC-16).
    ///
    /// # Errors
    /// The outer one if the state does not answer; the inner one says what the session may not.
    pub fn authorize(
        &self,
        id: SessionId,
        session: &Session,
        needs: &[Capability],
        registry: &Registry,
        height: Height,
    ) -> Result<Result<(), SessionError>, crate::Stop> {
        let (mut id, mut session) = (id, session.clone());
        for _ in 0..=ANCESTORS_MAX {
            if session.closed {
                return Ok(Err(SessionError::Closed(id)));
            }
            if session.expires.is_some_and(|last| height > last) {
                return Ok(Err(SessionError::Expired(id)));
            }
            for need in needs {
                let holds = match &session.capabilities {
                    Capabilities::Only(names) => names.contains(need),
                    Capabilities::Root if !registry.is_reserved(need, height) => true,
                    Capabilities::Root => {
                        self.grants.get(&session.owner)?.is_some_and(|granted| granted.contains(need))
                    }
                };
                if !holds {
                    return Ok(Err(SessionError::Lacks { session: id, capability: need.clone() }));
                }
            }
            let Some(parent) = session.parent else { return Ok(Ok(())) };
            let Some(record) = self.record(&parent)? else { return Ok(Err(SessionError::Unknown(parent))) };
            (id, session) = (parent, record);
        }
        Ok(Err(SessionError::TooDeep(id)))
    }
}
