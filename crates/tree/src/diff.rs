//! The unit of change: what a draft wrote, sorted by namespace and key.
//!
//! A diff says for each key what it holds afterwards. It says nothing of what it held before: that is found when the
//! diff is applied. Bytes are taken to come from an adversary; layout: `spec/tree.md`, TREE-16.

use keelstone_codec::{Decode, DecodeError, Encode, Key, Namespace, Reader, Value, put_length};
use std::collections::BTreeMap;
use std::ops::{Add, AddAssign};

/// Most bytes of keys and values in one diff: 256 MiB (spec: STORE-7).
pub const DIFF_BYTES_MAX: u64 = 256 << 20;

/// Number of entries, and the sum of their key and value lengths (spec: TREE-5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Totals {
    /// Entries.
    pub count: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
}

impl Totals {
    /// The weight of one entry (spec: TREE-5).
    #[must_use]
    #[inline]
    pub const fn entry(key_len: usize, value_len: u32) -> Self {
        Self { count: 1, bytes: key_len as u64 + value_len as u64 }
    }

    /// The sum, none if it overflows: sums in proofs are a stranger's claims.
    #[must_use]
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match (self.count.checked_add(other.count), self.bytes.checked_add(other.bytes)) {
            (Some(count), Some(bytes)) => Some(Self { count, bytes }),
            _ => None,
        }
    }
}
impl Add for Totals {
    type Output = Self;
    /// The sum. Panics on overflow, which takes 2^64 bytes of our own entries.
    fn add(self, other: Self) -> Self {
        self.checked_add(other).expect("the state has fewer than 2^64 bytes")
    }
}
impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}
impl Encode for Totals {
    fn encode(&self, out: &mut Vec<u8>) {
        self.count.encode(out);
        self.bytes.encode(out);
    }
}
impl Decode for Totals {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { count: u64::decode(input)?, bytes: u64::decode(input)? })
    }
}

/// What one key holds afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The key.
    pub key: Key,
    /// Its value from now on; none deletes it. Deleting what is not there changes nothing.
    pub value: Option<Value>,
}

/// Writes to any number of namespaces. Namespaces strictly ascend, each has a write, and its keys strictly ascend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    parts: Vec<(Namespace, Vec<Write>)>,
}

/// Why writes are not a diff. The caller broke the contract.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DiffError {
    /// Namespaces do not strictly ascend.
    #[error("namespaces of a diff must strictly ascend: {after} follows {before}")]
    Namespaces {
        /// The one that stands first.
        before: Namespace,
        /// The one that stands behind it.
        after: Namespace,
    },
    /// Keys of a namespace do not strictly ascend.
    #[error("keys of a diff must strictly ascend: in {namespace}, {after:?} follows {before:?}")]
    Keys {
        /// Where.
        namespace: Namespace,
        /// The one that stands first.
        before: Key,
        /// The one that stands behind it.
        after: Key,
    },
    /// A namespace without writes.
    #[error("namespace {namespace} has no write")]
    EmptyNamespace {
        /// Which.
        namespace: Namespace,
    },
}

impl Diff {
    /// Takes over writes that are already sorted.
    ///
    /// # Errors
    /// [`DiffError`] names the two that are out of order.
    pub fn new(parts: Vec<(Namespace, Vec<Write>)>) -> Result<Self, DiffError> {
        if let Some(pair) = parts.windows(2).find(|pair| pair[0].0 >= pair[1].0) {
            return Err(DiffError::Namespaces { before: pair[0].0.clone(), after: pair[1].0.clone() });
        }
        for (namespace, writes) in &parts {
            let namespace = namespace.clone();
            if writes.is_empty() {
                return Err(DiffError::EmptyNamespace { namespace });
            }
            if let Some(pair) = writes.windows(2).find(|pair| pair[0].key >= pair[1].key) {
                return Err(DiffError::Keys { namespace, before: pair[0].key.clone(), after: pair[1].key.clone() });
            }
        }
        Ok(Self { parts })
    }

    /// Takes over writes that are already sorted, one by one.
    ///
    /// # Errors
    /// [`DiffError`] names the two that are out of order.
    pub fn from_sorted(writes: impl IntoIterator<Item = (Namespace, Write)>) -> Result<Self, DiffError> {
        Self::new(by_namespace(writes))
    }

    /// Namespaces with their writes, in order.
    #[must_use]
    pub fn parts(&self) -> &[(Namespace, Vec<Write>)] {
        &self.parts
    }

    /// Gives the writes away.
    #[must_use]
    pub fn into_parts(self) -> Vec<(Namespace, Vec<Write>)> {
        self.parts
    }

    /// All writes in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Namespace, &Write)> {
        self.parts.iter().flat_map(|(namespace, writes)| writes.iter().map(move |write| (namespace, write)))
    }

    /// The write to one key, if the diff has one.
    #[must_use]
    pub fn find(&self, namespace: &Namespace, key: &[u8]) -> Option<&Write> {
        let part = self.parts.binary_search_by(|(name, _)| name.cmp(namespace)).ok()?;
        let writes = &self.parts[part].1;
        let write = writes.binary_search_by(|write| write.key.as_slice().cmp(key)).ok()?;
        Some(&writes[write])
    }

    /// Number of writes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts.iter().map(|(_, writes)| writes.len()).sum()
    }

    /// Whether nothing is written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Bytes of keys and values written. At most [`DIFF_BYTES_MAX`] can be committed or decoded.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.iter().map(|(_, write)| write_bytes(write)).sum()
    }

    /// This diff, then `later`: one diff that leaves what both leave one after the other.
    #[must_use]
    pub fn then(self, later: Self) -> Self {
        let mut all: BTreeMap<(Namespace, Key), Option<Value>> = BTreeMap::new();
        for (namespace, writes) in self.parts.into_iter().chain(later.parts) {
            all.extend(writes.into_iter().map(|write| ((namespace.clone(), write.key), write.value)));
        }
        all.into()
    }
}

fn write_bytes(write: &Write) -> u64 {
    write.key.len() as u64 + write.value.as_ref().map_or(0, |value| value.len() as u64)
}

impl From<BTreeMap<(Namespace, Key), Option<Value>>> for Diff {
    fn from(writes: BTreeMap<(Namespace, Key), Option<Value>>) -> Self {
        let writes = writes.into_iter().map(|((namespace, key), value)| (namespace, Write { key, value }));
        Self { parts: by_namespace(writes) }
    }
}

fn by_namespace(writes: impl IntoIterator<Item = (Namespace, Write)>) -> Vec<(Namespace, Vec<Write>)> {
    let mut parts: Vec<(Namespace, Vec<Write>)> = Vec::new();
    for (namespace, write) in writes {
        match parts.last_mut() {
            Some((last, writes)) if *last == namespace => writes.push(write),
            _ => parts.push((namespace, vec![write])),
        }
    }
    parts
}

/// Collects writes in any order; of two to one key the later stands.
impl FromIterator<(Namespace, Key, Option<Value>)> for Diff {
    fn from_iter<I: IntoIterator<Item = (Namespace, Key, Option<Value>)>>(writes: I) -> Self {
        let all: BTreeMap<_, _> = writes.into_iter().map(|(namespace, key, value)| ((namespace, key), value)).collect();
        all.into()
    }
}

// spec: TREE-16
impl Encode for Diff {
    fn encode(&self, out: &mut Vec<u8>) {
        put_length(out, self.parts.len());
        for (namespace, writes) in &self.parts {
            namespace.encode(out);
            put_length(out, writes.len());
            for write in writes {
                write.key.encode(out);
                write.value.encode(out);
            }
        }
    }
}
impl Decode for Diff {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        // Every write takes three bytes or more, so the loops end with the input whatever the counts say. Order is looked at on the
        // way: what repeats itself is short as bytes and long in memory.
        let mut bytes = 0u64;
        let mut parts: Vec<(Namespace, Vec<Write>)> = Vec::new();
        for _ in 0..u32::decode(input)? {
            let namespace = Namespace::decode(input)?;
            if parts.last().is_some_and(|(last, _)| *last >= namespace) {
                return Err(DecodeError::NotCanonical { what: "namespaces of a diff must strictly ascend" });
            }
            let mut writes: Vec<Write> = Vec::new();
            for _ in 0..u32::decode(input)? {
                let write = Write { key: Key::decode(input)?, value: Option::decode(input)? };
                if writes.last().is_some_and(|last| last.key >= write.key) {
                    return Err(DecodeError::NotCanonical { what: "keys of a diff must strictly ascend" });
                }
                bytes += write_bytes(&write);
                if bytes > DIFF_BYTES_MAX {
                    return Err(DecodeError::TooLarge { what: "bytes of a diff", found: bytes, limit: DIFF_BYTES_MAX });
                }
                writes.push(write);
            }
            if writes.is_empty() {
                return Err(DecodeError::NotCanonical { what: "a namespace of a diff has a write" });
            }
            parts.push((namespace, writes));
        }
        Ok(Self { parts })
    }
}
