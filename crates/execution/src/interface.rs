//! The interface of a program as one hash: which functions it has, and what lies where in its state.
//!
//! Whoever runs the nodes of a chain compares it before anybody calls what is new. It is made of what a program declares, so it
//! does not see what its functions do: two programs of one interface can still part.
//!
//! Rules: `spec/chain.md`, EXEC-22, EXEC-23. Vectors: `spec/vectors/chain.json`.

use crate::Registry;
use crate::registry::{EVER, Entry};
use crate::world::{Layout, SpaceInfo};
use keelstone_codec::{Encode, Hash, Height, Tag, TaggedHasher};

/// The hash of what a registry declares.
// spec: EXEC-22
pub(crate) fn hash_of(registry: &Registry) -> Hash {
    const INTERFACE: Tag = Tag::new("interface");
    let functions: Vec<Function<'_>> = registry.functions().into_iter().map(Function).collect();
    let events: Vec<_> = registry.events().map(|(name, shape)| (name, shape())).collect();
    let reserved: Vec<_> = registry.reserved().into_iter().collect();
    let spaces: Vec<_> = registry.spaces().map(Declared).collect();
    let mut hasher = TaggedHasher::new(INTERFACE);
    hasher.value(&(functions, events, reserved, spaces));
    // spec: EXEC-23. Only a program that has either says so.
    let hooks: Vec<_> = registry.hooks().map(|(when, entry)| (when.number(), Function(entry), span(entry))).collect();
    let all = registry.functions().into_iter().filter(|entry| entry.heights != EVER);
    let spans: Vec<_> = all.map(|entry| (entry.hash, span(entry))).collect();
    let mut times: Vec<_> = registry
        .reserved_at_times()
        .map(|(capability, heights)| (capability, *heights.start(), *heights.end()))
        .collect();
    times.sort_unstable();
    times.dedup();
    if !hooks.is_empty() || !spans.is_empty() || !times.is_empty() {
        hasher.value(&(hooks, spans));
    }
    if !times.is_empty() {
        hasher.value(&times);
    }
    hasher.finish()
}

fn span(entry: &Entry) -> (Height, Height) {
    entry.heights.clone().into_inner()
}

struct Function<'a>(&'a Entry);

impl Encode for Function<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
        let Entry { name, version, needs, context, gas_max, args, output, .. } = self.0;
        (name, version, needs).encode(out);
        (context.height, context.time, context.random, gas_max).encode(out);
        (args(), output()).encode(out);
    }
}

struct Declared<'a>(&'a SpaceInfo);

impl Encode for Declared<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
        // The order of fields says nothing of the state.
        let mut collections: Vec<_> = self.0.collections.iter().collect();
        collections.sort_unstable_by_key(|(place, _)| *place);
        (self.0.name, collections).encode(out);
    }
}

impl Encode for Layout {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Item { value } => (0u8, value).encode(out),
            Self::Map { key, value } => (1u8, key, value).encode(out),
            Self::Set { key } => (2u8, key).encode(out),
            Self::Sequence => 3u8.encode(out),
            Self::Log { value } => (4u8, value).encode(out),
        }
    }
}
