//! The registry: which functions a chain knows, and which namespaces they live in.
//!
//! Built once at start from the program's types, then only read. What clashes is collected while registering and told
//! by [`Registry::check`], so that a chain does not start with two functions of one name or two types in one place.
//!
//! Rules: `spec/chain.md`, EXEC-4, EXEC-19, EXEC-20, EXEC-22, EXEC-23, EXEC-25.

use crate::collections::entry_prefix;
use crate::host::Handle;
use crate::operation::Built;
use crate::world::{Draft, Layout, Space, SpaceInfo, Transition, View, World};
use crate::{
    Activity, Capability, Context, ContextUse, Denied, Event, FailureKind, FunctionHash, Stop, When, interface,
};
use keelstone_codec::{Decode, Describe, Encode, Hash, Height, KEY_LEN_MAX, LIST_MAX, Namespace, Shape};
use std::any::{TypeId, type_name};
use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::ops::{Bound, RangeBounds, RangeInclusive};
use std::panic::{catch_unwind, set_hook, take_hook};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Namespaces that the engine itself writes. What lies there is no part of an operation's diff (spec: EXEC-2), and only
/// modules registered with [`Registry::register_system`] reach it.
pub const SYSTEM_NAMESPACES: [&str; 6] = ["audit", "blocks", "bundles", "chain", "nonces", "sessions"];

/// A function as the registry knows it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name.
    pub name: &'static str,
    /// Its version.
    pub version: u32,
    /// Its identity.
    pub hash: FunctionHash,
    /// What a session must hold to call it.
    pub needs: Vec<Capability>,
    /// What of the block it may ask for (spec: EXEC-4).
    pub context: ContextUse,
    /// The most gas one call may use.
    pub gas_max: u64,
    /// What its arguments look like.
    pub args: fn() -> Shape,
    /// What its result looks like.
    pub output: fn() -> Shape,
    /// The Rust type of its arguments, for people.
    pub type_name: &'static str,
    /// The heights at which it is there (spec: EXEC-23).
    pub heights: RangeInclusive<Height>,
    built: Built,
    pub(crate) run: Run,
}

pub(crate) type Run = fn(&Handle, &mut Context, &[u8]) -> Result<Vec<u8>, Refusal>;

/// How a run of a function can end without a result.
pub(crate) enum Refusal {
    Arguments(keelstone_codec::DecodeError),
    Denied(Denied),
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        Self::Denied(denied)
    }
}
impl From<Stop> for Refusal {
    fn from(stop: Stop) -> Self {
        Self::Denied(stop.into())
    }
}
impl From<Refusal> for FailureKind {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Arguments(error) => Self::Arguments(error),
            Refusal::Denied(denied) => match denied.stop() {
                Some(stop) => Self::Stopped(stop.clone()),
                None => Self::Denied(denied.to_string()),
            },
        }
    }
}

impl Entry {
    /// `name/version`.
    #[must_use]
    pub fn label(&self) -> String {
        format!("{}/{}", self.name, self.version)
    }
}

/// Why a registry is not one. The program's to mend: no chain starts with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// Two functions have one name and version, or (as good as never) one hash.
    #[error("{second} and {first} are both {label} ({hash})")]
    Function {
        /// The name and version.
        label: String,
        /// Their hash.
        hash: FunctionHash,
        /// The type that was registered first.
        first: &'static str,
        /// The type that came after it.
        second: &'static str,
    },
    /// Two types call one namespace theirs.
    #[error("namespace {name} is claimed by both {first} and {second}")]
    Namespace {
        /// The name.
        name: &'static str,
        /// The type that was registered first.
        first: &'static str,
        /// The type that came after it.
        second: &'static str,
    },
    /// An application's type calls a namespace of the engine its own.
    #[error("namespace {name} belongs to the engine; {type_name} needs another name")]
    Reserved {
        /// The name.
        name: &'static str,
        /// The type.
        type_name: &'static str,
    },
    /// The crate of a function was built without overflow checks: where others have them, they would part from this chain.
    #[error(
        "{type_name} was built without overflow checks, so its sums wrap around unseen: the profile it is built with \
         has to say `overflow-checks = true` ([profile.release] in the Cargo.toml of the workspace)"
    )]
    Wraps {
        /// The type.
        type_name: &'static str,
    },
    /// The crate of a function was built so that a panic ends the process, not the bundle.
    #[error(
        "{type_name} was built with panic = \"abort\", so a panic of it would end the node: the profile it is built with \
         has to say `panic = \"unwind\"` ([profile.release] in the Cargo.toml of the workspace), or nothing of it"
    )]
    Aborts {
        /// The type.
        type_name: &'static str,
    },
    /// Nothing could ever be put into a collection: what it would put has no bytes.
    #[error("{what} at {place:?} in the namespace {name} has no bytes, and the state keeps none that is empty")]
    Nothing {
        /// The namespace.
        name: &'static str,
        /// The collection's place in it.
        place: &'static str,
        /// The value, or the key.
        what: &'static str,
    },
    /// Keys that the type of a collection allows could never be written.
    #[error(
        "keys of {place:?} in the namespace {name} may come to {found} bytes with their place before them, and a key has at \
         most {limit}: the bytes and texts in the type of the key need smaller bounds"
    )]
    LongKey {
        /// The namespace.
        name: &'static str,
        /// The collection's place in it.
        place: &'static str,
        /// What the longest key has, if none of its bytes is 00: such a byte counts twice.
        found: usize,
        /// What a key may have.
        limit: usize,
    },
    /// Two events have one name.
    #[error("event {name} is declared with two shapes")]
    Event {
        /// The name.
        name: &'static str,
    },
    /// A function that the chain is to call by itself takes arguments.
    #[error("{type_name} has fields, and where the chain calls a function by itself nobody gives arguments")]
    Arguments {
        /// The type.
        type_name: &'static str,
    },
}

/// The functions of a chain. Every chain can run async bundles, so those by which their owners end them are there from the
/// start.
#[derive(Clone, Debug)]
pub struct Registry {
    functions: BTreeMap<FunctionHash, Entry>,
    /// Those that the chain calls by itself, as they were registered.
    hooks: Vec<(When, Entry)>,
    /// The heights at which what is registered now will be there.
    heights: RangeInclusive<Height>,
    spaces: BTreeMap<&'static str, SpaceInfo>,
    events: BTreeMap<&'static str, fn() -> Shape>,
    /// At which heights each is reserved.
    reserved: BTreeMap<Capability, Vec<RangeInclusive<Height>>>,
    /// Types of the engine's namespaces that functions of an application may have in their worlds.
    opened: BTreeSet<TypeId>,
    /// Which of those types an application has, and what is said of each that is not open.
    engines: Vec<(TypeId, RegistryError)>,
    errors: Vec<RegistryError>,
    activity: Activity,
}

/// From the first height to the last there could be.
pub(crate) const EVER: RangeInclusive<Height> = Height(0)..=Height(u64::MAX);
const NEVER: RangeInclusive<Height> = Height(1)..=Height(0);

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry {
    /// A registry of the engine's own functions: those that manage async bundles.
    // spec: EXEC-12
    #[must_use]
    pub fn new() -> Self {
        let (functions, spaces, events) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (reserved, errors, activity) = (BTreeMap::new(), Vec::new(), Activity::default());
        let (hooks, heights, opened, engines) = (Vec::new(), EVER, BTreeSet::new(), Vec::new());
        let mut out = Self { functions, hooks, heights, spaces, events, reserved, opened, engines, errors, activity };
        crate::bundles::register(&mut out);
        out
    }

    /// Adds the function whose arguments are `T`, over the world `W`.
    pub fn register<W: World, T: Transition<W>>(&mut self) -> &mut Self {
        self.declare::<W>().register_system::<W, T>()
    }

    /// As [`Registry::register`], for a module that is part of the engine and may reach [`SYSTEM_NAMESPACES`].
    pub fn register_system<W: World, T: Transition<W>>(&mut self) -> &mut Self {
        let entry = self.entry::<W, T>();
        if self.is_alone(&entry) && !self.functions.contains_key(&entry.hash) {
            self.functions.insert(entry.hash, entry);
        } else {
            self.clash(&entry);
        }
        self
    }

    /// Has the chain call a function before all else in a block, behind those registered so before it. No transaction can
    /// call it, unless it is registered for that too.
    // spec: EXEC-23
    pub fn begin_block<W: World, T: Transition<W>>(&mut self) -> &mut Self {
        self.hook::<W, T>(When::BeginBlock)
    }

    /// As [`Registry::begin_block`], after the last transaction of a block.
    pub fn end_block<W: World, T: Transition<W>>(&mut self) -> &mut Self {
        self.hook::<W, T>(When::EndBlock)
    }

    /// Has the chain call a function before each transaction, behind those registered so before it; with [`Context::transaction`]
    /// it asks for what it is called for. What it writes stays, whatever becomes of the transaction; if it is denied, the
    /// transaction is refused, as one with a wrong nonce is. So a chain charges fees.
    // spec: EXEC-25
    pub fn before_transaction<W: World, T: Transition<W>>(&mut self) -> &mut Self {
        self.hook::<W, T>(When::BeforeTransaction)
    }

    /// As [`Registry::before_transaction`], after each transaction that was let in, whether it took effect or failed: it is told
    /// which, and the gas that was used. What it does not do is left undone, and told.
    // spec: EXEC-25
    pub fn after_transaction<W: World, T: Transition<W>>(&mut self) -> &mut Self {
        self.hook::<W, T>(When::AfterTransaction)
    }

    /// Registers functions that are there at these heights alone, and capabilities that are reserved at them. At others it is as if
    /// the program said nothing of them, so that one program can run a chain's whole history, and every node changes the rules at
    /// the same block.
    // spec: EXEC-23
    pub fn during(&mut self, heights: impl RangeBounds<Height>, register: impl FnOnce(&mut Self)) -> &mut Self {
        let first = match heights.start_bound() {
            Bound::Included(first) => *first,
            Bound::Excluded(before) => before.next(),
            Bound::Unbounded => Height(0),
        };
        let last = match heights.end_bound() {
            Bound::Included(last) => Some(*last),
            Bound::Excluded(behind) => behind.prev(),
            Bound::Unbounded => Some(Height(u64::MAX)),
        };
        let within = match last {
            Some(last) => first.max(*self.heights.start())..=last.min(*self.heights.end()),
            None => NEVER,
        };
        let outer = std::mem::replace(&mut self.heights, within);
        register(self);
        self.heights = outer;
        self
    }

    fn hook<W: World, T: Transition<W>>(&mut self, when: When) -> &mut Self {
        let entry = self.declare::<W>().entry::<W, T>();
        if T::from_bytes(&[]).is_err() {
            self.errors.push(RegistryError::Arguments { type_name: entry.type_name });
        }
        let again = self.hooks.iter().any(|(at, known)| *at == when && known.hash == entry.hash);
        if self.is_alone(&entry) && !again {
            self.hooks.push((when, entry));
        } else {
            self.clash(&entry);
        }
        self
    }

    fn entry<W: World, T: Transition<W>>(&mut self) -> Entry {
        W::spaces().into_iter().for_each(|space| self.claim(space));
        Entry {
            name: T::NAME,
            version: T::VERSION,
            hash: T::hash(),
            needs: T::needs(),
            context: T::CONTEXT,
            gas_max: T::GAS_MAX,
            args: T::shape,
            output: T::Output::shape,
            type_name: type_name::<T>(),
            heights: self.heights.clone(),
            built: T::BUILT,
            run: run::<W, T>,
        }
    }

    /// Whether no other type is known by its identity.
    fn is_alone(&self, entry: &Entry) -> bool {
        self.all().all(|known| known.hash != entry.hash || known.type_name == entry.type_name)
    }

    fn clash(&mut self, entry: &Entry) {
        let (label, hash, second) = (entry.label(), entry.hash, entry.type_name);
        let first = self.function(&hash).map_or(second, |first| first.type_name);
        self.errors.push(RegistryError::Function { label, hash, first, second });
    }

    /// All functions, those too that the chain calls.
    fn all(&self) -> impl Iterator<Item = &Entry> {
        self.functions.values().chain(self.hooks.iter().map(|(_, entry)| entry))
    }

    /// [`Registry::register`], by value: `Registry::new().with::<Counter, Add>()`.
    #[must_use]
    pub fn with<W: World, T: Transition<W>>(mut self) -> Self {
        self.register::<W, T>();
        self
    }

    /// Adds a namespace that no function writes, so that its name is taken and tools know what it holds.
    pub fn declare<W: World>(&mut self) -> &mut Self {
        for space in W::spaces() {
            // spec: EXEC-2
            match SYSTEM_NAMESPACES.contains(&space.name) {
                true => {
                    let SpaceInfo { name, type_name, type_id, .. } = space;
                    self.engines.push((type_id, RegistryError::Reserved { name, type_name }));
                }
                false => self.claim(space),
            }
        }
        self
    }

    /// Lets functions of an application have a namespace of the engine in their worlds, under this very type: for a module of the
    /// engine whose type reaches no more of it than they may change.
    pub fn open<S: Space>(&mut self) -> &mut Self {
        self.opened.insert(TypeId::of::<S>());
        self
    }

    /// Adds an event, so that tools can show it by field.
    pub fn event<E: Event>(&mut self) -> &mut Self {
        match self.events.insert(E::NAME, E::shape) {
            Some(first) if first() != E::shape() => self.errors.push(RegistryError::Event { name: E::NAME }),
            _ => {}
        }
        self
    }

    /// Takes a capability out of what every root session holds: it must be granted to a key (spec: EXEC-20).
    pub fn reserve(&mut self, capability: Capability) -> &mut Self {
        if !self.heights.is_empty() {
            self.reserved.entry(capability).or_default().push(self.heights.clone());
        }
        self
    }

    /// Says whether a chain can start with it.
    ///
    /// # Errors
    /// The first clash, or a function whose crate was built so that this node would part from others, or end.
    pub fn check(&self) -> Result<(), RegistryError> {
        let closed = self.engines.iter().find(|(id, _)| !self.opened.contains(id)).map(|(_, error)| error);
        closed.or(self.errors.first()).map_or(Ok(()), |error| Err(error.clone()))?;
        // spec: EXEC-13
        if let Some(entry) = self.all().find(|entry| !entry.built.unwinds) {
            return Err(RegistryError::Aborts { type_name: entry.type_name });
        }
        let wraps = self.all().find(|entry| !entry.built.is_checked());
        wraps.map_or(Ok(()), |entry| Err(RegistryError::Wraps { type_name: entry.type_name }))
    }

    /// Which of these functions is at work, for a watchdog: wherever a draft does not tell another board of its own. Clones
    /// share it.
    // spec: EXEC-13
    #[must_use]
    pub fn activity(&self) -> &Activity {
        &self.activity
    }

    /// The function of this hash, whoever may call it and whenever.
    #[must_use]
    pub fn function(&self, hash: &FunctionHash) -> Option<&Entry> {
        let hook = || self.hooks.iter().map(|(_, entry)| entry).find(|entry| entry.hash == *hash);
        self.functions.get(hash).or_else(hook)
    }

    /// The function that a transaction calls by this hash at a height.
    // spec: EXEC-23
    #[must_use]
    pub fn function_at(&self, hash: &FunctionHash, height: Height) -> Option<&Entry> {
        self.functions.get(hash).filter(|entry| entry.heights.contains(&height))
    }

    /// The function of this `name/version`.
    #[must_use]
    pub fn find(&self, label: &str) -> Option<&Entry> {
        let (name, version) = label.rsplit_once('/')?;
        self.functions.get(&FunctionHash::of(name, version.parse().ok()?))
    }

    /// The functions that the chain calls by itself, as they were registered: in that order it calls those of one place in a block.
    pub fn hooks(&self) -> impl Iterator<Item = &(When, Entry)> {
        self.hooks.iter()
    }

    /// Those of them that are there at a height, in the same order.
    // spec: EXEC-23
    pub fn hooks_at(&self, height: Height) -> impl Iterator<Item = &(When, Entry)> {
        self.hooks.iter().filter(move |(_, entry)| entry.heights.contains(&height))
    }

    /// Those of one place, in the order in which they are called there.
    pub(crate) fn hooks_of(&self, when: When, height: Height) -> impl Iterator<Item = &Entry> {
        self.hooks_at(height).filter(move |(at, _)| *at == when).map(|(_, entry)| entry)
    }

    /// Whether the chain calls functions around transactions at a height.
    #[must_use]
    pub fn has_transaction_hooks(&self, height: Height) -> bool {
        self.hooks_at(height).any(|(when, _)| when.is_of_transaction())
    }

    /// All functions that transactions call, by name and version.
    #[must_use]
    pub fn functions(&self) -> Vec<&Entry> {
        let mut all: Vec<&Entry> = self.functions.values().collect();
        all.sort_by_key(|entry| (entry.name, entry.version));
        all
    }

    /// A hash of all that is declared here: the functions with what they take and give, events, reserved capabilities, and what
    /// lies where in the state. It is the same in programs that take the same calls and keep the same types in the same places,
    /// whatever their functions do. Costs the shapes of all types.
    // spec: EXEC-22
    #[must_use]
    pub fn interface(&self) -> Hash {
        interface::hash_of(self)
    }

    /// All namespaces, by name.
    pub fn spaces(&self) -> impl Iterator<Item = &SpaceInfo> {
        self.spaces.values()
    }

    /// Whether the namespace `S` is one of them, under this very type.
    #[must_use]
    pub fn holds<S: Space>(&self) -> bool {
        self.spaces.get(S::NAME).is_some_and(|space| space.type_id == TypeId::of::<S>())
    }

    /// What the value under a key looks like, if the key belongs to a collection of a known namespace.
    #[must_use]
    pub fn value_shape(&self, namespace: &Namespace, key: &[u8]) -> Option<Shape> {
        let collections = &self.spaces.get(namespace.as_str())?.collections;
        collections.iter().find_map(|(place, layout)| {
            let (itself, entry) = (key == place.as_bytes(), key.starts_with(&entry_prefix(place)));
            match layout {
                Layout::Item { value } if itself => Some(value.clone()),
                Layout::Sequence | Layout::Log { .. } if itself => Some(u64::shape()),
                Layout::Map { value, .. } | Layout::Log { value } if entry => Some(value.clone()),
                Layout::Set { .. } if entry => Some(u8::shape()),
                _ => None,
            }
        })
    }

    /// The shape of an event, if it was declared.
    #[must_use]
    pub fn event_shape(&self, name: &str) -> Option<Shape> {
        self.events.get(name).map(|shape| shape())
    }

    /// All events that were declared, by name.
    pub(crate) fn events(&self) -> impl Iterator<Item = (&'static str, fn() -> Shape)> {
        self.events.iter().map(|(name, shape)| (*name, *shape))
    }

    /// What root sessions do not hold by themselves, at whatever heights.
    #[must_use]
    pub fn reserved(&self) -> BTreeSet<&Capability> {
        self.reserved.keys().collect()
    }

    /// Whether a capability is reserved at a height.
    // spec: EXEC-20, EXEC-23
    #[must_use]
    pub fn is_reserved(&self, capability: &Capability, height: Height) -> bool {
        self.reserved.get(capability).is_some_and(|all| all.iter().any(|heights| heights.contains(&height)))
    }

    /// Those that are reserved at some heights alone, and at which.
    pub(crate) fn reserved_at_times(&self) -> impl Iterator<Item = (&Capability, &RangeInclusive<Height>)> {
        let at_times = self.reserved.iter().filter(|(_, all)| !all.contains(&EVER));
        at_times.flat_map(|(capability, all)| all.iter().map(move |heights| (capability, heights)))
    }

    fn claim(&mut self, space: SpaceInfo) {
        match self.spaces.get(space.name) {
            Some(held) if held.type_id != space.type_id => self.errors.push(RegistryError::Namespace {
                name: space.name,
                first: held.type_name,
                second: space.type_name,
            }),
            Some(_) => {}
            None => {
                self.errors.extend(space.collections.iter().filter_map(|(place, layout)| {
                    let what = without_bytes(place, layout)?;
                    Some(RegistryError::Nothing { name: space.name, place, what })
                }));
                self.errors.extend(space.collections.iter().filter_map(|(place, layout)| {
                    let (found, limit) = (longest_key(place, layout)?, KEY_LEN_MAX);
                    (found > limit).then_some(RegistryError::LongKey { name: space.name, place, found, limit })
                }));
                self.spaces.insert(space.name, space);
            }
        }
    }
}

/// What of every entry of a collection is empty, if anything is.
// spec: TREE-1
fn without_bytes(place: &str, layout: &Layout) -> Option<&'static str> {
    match layout {
        Layout::Item { value } | Layout::Map { value, .. } | Layout::Log { value } if value.is_without_bytes() => {
            Some("every value")
        }
        Layout::Map { key, .. } | Layout::Set { key } if place.is_empty() && key.is_without_bytes() => {
            Some("every key")
        }
        _ => None,
    }
}

/// The bytes of the longest key of a collection with keys of a type, as far as that type bounds them, and if none of its bytes
/// is 00: who declares a text of so many bytes means to write one.
// spec: EXEC-18, TREE-15
fn longest_key(place: &str, layout: &Layout) -> Option<usize> {
    match layout {
        Layout::Map { key, .. } | Layout::Set { key } => Some(entry_prefix(place).len().saturating_add(key_bytes(key))),
        _ => None,
    }
}

/// The most bytes of a part of a key; none for what has no bound of its own, or another form in a key than it says.
fn key_bytes(shape: &Shape) -> usize {
    const END: usize = 2;
    let sum = |bytes: &mut dyn Iterator<Item = usize>| bytes.fold(0, usize::saturating_add);
    match shape {
        Shape::Bool => 1,
        Shape::Unsigned(bytes) | Shape::Signed(bytes) => usize::from(*bytes),
        Shape::Decimal => 8,
        Shape::Array(bytes) => *bytes,
        Shape::Bytes(max) | Shape::Text(max) if *max < LIST_MAX => max + END,
        Shape::Bytes(_) | Shape::Text(_) => END,
        Shape::Tuple(parts) => sum(&mut parts.iter().map(key_bytes)),
        Shape::Record(fields) => sum(&mut fields.iter().map(|(_, field)| key_bytes(field))),
        Shape::Choice(variants) => {
            variants.iter().map(|variant| key_bytes(&variant.shape)).max().unwrap_or_default().saturating_add(1)
        }
        _ => 0,
    }
}

impl Built {
    /// Whether a sum that does not fit stops a function. There is no other way to ask than to try, and what is found stays
    /// so: it is asked of each code once, lest every ledger that is opened hides for a moment who panics.
    fn is_checked(self) -> bool {
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let ask = || quietly(|| catch_unwind(|| (self.add)(black_box(u8::MAX), black_box(1))).is_err());
        *known.entry(self.add as usize).or_insert_with(ask)
    }
}

/// By where the code is that adds: whether it is checked. Whoever holds it may change the hook of panics, which is the
/// process's, and which one after another takes away and puts back.
static KNOWN: Mutex<BTreeMap<usize, bool>> = Mutex::new(BTreeMap::new());

/// Runs what panics if all is well, without a word about it. What panics on another thread meanwhile is told as ever.
fn quietly<T>(run: impl FnOnce() -> T) -> T {
    if thread::panicking() {
        return run(); // Which may not touch the hook.
    }
    let hook = Arc::new(take_hook());
    let (own, others) = (thread::current().id(), Arc::clone(&hook));
    set_hook(Box::new(move |panic| {
        if thread::current().id() != own {
            others(panic);
        }
    }));
    let out = run();
    drop(take_hook());
    // The hook that held it, too, is gone.
    if let Some(hook) = Arc::into_inner(hook) {
        set_hook(hook);
    }
    out
}

/// Runs one function over a host: arguments in, result out.
fn run<W: World, T: Transition<W>>(handle: &Handle, cx: &mut Context, args: &[u8]) -> Result<Vec<u8>, Refusal> {
    let arguments = T::from_bytes(args).map_err(Refusal::Arguments)?;
    arguments.verify(&View::bind(handle), cx)?;
    let output = arguments.apply(&mut Draft::bind(handle), cx)?;
    let output = output.to_bytes();
    // spec: EXEC-18
    if let Err(error) = T::Output::from_bytes(&output) {
        return Err(handle.stop(Stop::Unreadable { what: "the result".to_owned(), error }).into());
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A check of one ledger's functions does not hide what happens to another's meanwhile.
    #[test]
    fn who_panics_beside_a_check_is_heard() {
        static HEARD: AtomicU32 = AtomicU32::new(0);
        let bystander =
            || thread::Builder::new().name("bystander".to_owned()).spawn(|| panic!("heard")).unwrap().join();
        let _turn = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let others = take_hook();
        set_hook(Box::new(move |panic| match thread::current().name() {
            Some("bystander") => drop(HEARD.fetch_add(1, Ordering::Relaxed)),
            _ => others(panic),
        }));
        quietly(|| bystander().unwrap_err());
        assert_eq!(HEARD.load(Ordering::Relaxed), 1, "while it is checked");
        bystander().unwrap_err();
        assert_eq!(HEARD.load(Ordering::Relaxed), 2, "and afterwards");
    }

    /// Ledgers are opened in a node that runs: what was found is not asked again.
    #[test]
    fn each_code_is_asked_once_whether_its_sums_are_checked() {
        static ASKED: AtomicU32 = AtomicU32::new(0);
        fn add(a: u8, b: u8) -> u8 {
            ASKED.fetch_add(1, Ordering::Relaxed);
            a.checked_add(b).expect("a sum that does not fit")
        }
        let built = Built { unwinds: true, add };
        assert!(built.is_checked() && built.is_checked());
        assert_eq!(ASKED.load(Ordering::Relaxed), 1);
    }
}
