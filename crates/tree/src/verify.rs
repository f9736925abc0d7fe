//! Checking a proof against a root, and what it then answers.
//!
//! The order of checks is part of the design (spec: TREE-8): size caps, decoding, sums and critical bits, which bound
//! depth, then hashes up to the root, and only then keys. So an adversary pays for the hashes it makes us compute, and
//! the costly comparisons are made on what the root commits to. Nothing recurses.
//!
//! Answers have three values (spec: TREE-9). What a proof does not show is unknown; it is never taken for absent.
//!
//! Rules: `spec/tree.md`, TREE-5, TREE-8 to TREE-10, TREE-12.

use crate::bits::{bit, crit};
use crate::preimage;
use crate::proof::{Check, Checks, Every, Node, Proof, ProofError, ProofLimits, Shape};
use crate::query::{EntryNeeds, Needs, Region, Span, meeting};
use crate::{Branch, Half, Hasher, KeyRange, Level, Opened, Query, Read, ReadError, Scan, Totals, Walk};
use keelstone_codec::{Hash, KEY_LEN_MAX, Key, NAMESPACE_LEN_MAX, Namespace, Root, Value};
use std::borrow::Cow;
use std::marker::PhantomData;
use std::ops::Range;

/// A proof that leads to a root, ready to be asked.
#[derive(Clone, Debug)]
pub struct Verified<H> {
    pub(crate) proof: Proof,
    root: Root,
    _hasher: PhantomData<H>,
}

/// What a proof says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<T> {
    /// It is there.
    Present(T),
    /// It is not there.
    Absent,
    /// The proof does not show it. Ask for one that does.
    Unknown,
}

impl<T> Answer<T> {
    /// What `then` says of what is there.
    pub(crate) fn and_then<U>(self, then: impl FnOnce(T) -> Answer<U>) -> Answer<U> {
        match self {
            Self::Present(found) => then(found),
            Self::Absent => Answer::Absent,
            Self::Unknown => Answer::Unknown,
        }
    }
}

/// What a proof says of a range of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RangeAnswer {
    /// These are all of the range's entries, in its direction.
    Complete(Vec<(Key, Value)>),
    /// There may be more.
    Incomplete {
        /// Entries up to the first place that is not shown, in the range's direction.
        shown: Vec<(Key, Value)>,
        /// Where more may be: a key, or the beginning of some.
        unknown: Vec<u8>,
    },
}

/// What the state level says of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceTop {
    /// The top hash of its entries.
    pub root: Hash,
    /// What is in it. A certified claim until all entries are seen.
    pub totals: Totals,
}

impl Proof {
    /// Checks that this proof is of the state under `root` and shows nothing but what `queries` need.
    ///
    /// What it shows may still be less: then answers are unknown.
    ///
    /// # Errors
    /// [`ProofError`]; see its variants for who has to act.
    pub fn verify<H: Hasher>(
        self,
        root: Root,
        queries: &[Query],
        limits: &ProofLimits,
    ) -> Result<Verified<H>, ProofError> {
        self.within(limits)?;
        check(self, root, Some(queries), Every, &mut Plain::<H>(PhantomData))
    }

    /// Checks that this proof is of the state under `root`, whatever it shows: for witnesses, whose questions are only
    /// known when what they were made for has run.
    ///
    /// # Errors
    /// As [`Proof::verify`], but never [`ProofError::Bloated`].
    pub fn verify_unasked<H: Hasher>(self, root: Root, limits: &ProofLimits) -> Result<Verified<H>, ProofError> {
        self.within(limits)?;
        check(self, root, None, Every, &mut Plain::<H>(PhantomData))
    }

    fn within(&self, limits: &ProofLimits) -> Result<(), ProofError> {
        for (what, found, limit) in
            [("bytes", self.as_bytes().len(), limits.bytes), ("nodes", self.nodes.len(), limits.nodes)]
        {
            if found > limit {
                return Err(ProofError::TooLarge { what, found: found as u64, limit: limit as u64 });
            }
        }
        Ok(())
    }
}

// spec: TREE-8
pub(crate) fn check<H: Hasher>(
    mut proof: Proof,
    root: Root,
    queries: Option<&[Query]>,
    checks: impl Checks,
    hashes: &mut impl Hashes<Hasher = H>,
) -> Result<Verified<H>, ProofError> {
    check_sums(&proof, checks)?;
    hash_nodes(&mut proof, hashes);
    conclude(proof, root, queries, checks)
}

/// What is checked once all hashes are there.
fn conclude<H: Hasher>(
    proof: Proof,
    root: Root,
    queries: Option<&[Query]>,
    checks: impl Checks,
) -> Result<Verified<H>, ProofError> {
    let found = Root(proof.nodes[0].hash);
    if found != root && checks.makes(Check::Root) {
        return Err(ProofError::WrongRoot { expected: root, found });
    }
    check_keys(&proof, checks)?;
    if let Some(queries) = queries
        && checks.makes(Check::NothingUnasked)
    {
        match queries {
            [Query::Key(namespace, key)] => check_way(&proof, namespace, key, true)?,
            [Query::Write(namespace, key)] => check_way(&proof, namespace, key, false)?,
            queries => check_needed(&proof, &Needs::of(queries))?,
        }
    }
    Ok(Verified { proof, root, _hasher: PhantomData })
}

/// Sums add up and critical bits grow, within what keys can have. This bounds depth (spec: TREE-5, TREE-12).
fn check_sums(proof: &Proof, checks: impl Checks) -> Result<(), ProofError> {
    for node in &proof.nodes {
        let found = match node.shape {
            Shape::Opaque | Shape::Empty => continue,
            Shape::Entry { key, value_len, .. } => Totals::entry(key.len(), value_len),
            Shape::Namespace { tree, .. } => {
                let totals = proof.nodes[tree as usize].totals;
                check_entries(totals, checks)?;
                totals
            }
            Shape::Inner { level, crit, left, right, .. } => {
                let children = [left, right].map(|child| &proof.nodes[child as usize]);
                check_crit(level, crit, children, checks)?;
                children.iter().try_for_each(|child| check_entries(child.totals, checks))?;
                let [left, right] = children.map(|child| child.totals);
                match left.checked_add(right) {
                    Some(sum) => sum,
                    None if checks.makes(Check::SumsDoNotOverflow) => {
                        return Err(ProofError::Totals { what: "sums have 64 bits", totals: left });
                    }
                    None => Totals {
                        count: left.count.saturating_add(right.count),
                        bytes: left.bytes.saturating_add(right.bytes),
                    },
                }
            }
        };
        if found != node.totals && checks.makes(Check::SumsAddUp) {
            return Err(ProofError::Sums { stated: node.totals, found });
        }
    }
    Ok(())
}

/// A namespace, and each side of an inner node, has an entry, and an entry two bytes.
// spec: TREE-5, TREE-6
fn check_entries(totals: Totals, checks: impl Checks) -> Result<(), ProofError> {
    if totals.count == 0 && checks.makes(Check::CountIsPositive) {
        return Err(ProofError::Totals { what: "every subtree has an entry", totals });
    }
    if totals.bytes < totals.count.saturating_mul(2) && checks.makes(Check::BytesCoverCount) {
        return Err(ProofError::Totals { what: "an entry has two bytes or more", totals });
    }
    Ok(())
}

/// Critical bits of a level are below this.
// spec: TREE-5
pub(crate) fn level_limit(level: Level) -> u16 {
    let key_len_max = match level {
        Level::Entries => KEY_LEN_MAX,
        Level::Namespaces => NAMESPACE_LEN_MAX,
    };
    9 * u16::try_from(key_len_max).expect("a key has at most 255 bytes")
}

fn check_crit(level: Level, crit: u16, children: [&Node; 2], checks: impl Checks) -> Result<(), ProofError> {
    let limit = level_limit(level);
    if (crit == 0 || crit >= limit) && checks.makes(Check::CritInRange) {
        return Err(ProofError::CriticalBit { what: "above 0 and below", found: crit, limit });
    }
    for child in children {
        match child.shape {
            Shape::Inner { crit: below, .. } if below <= crit && checks.makes(Check::CritGrows) => {
                return Err(ProofError::CriticalBit { what: "above its parent's", found: below, limit: crit });
            }
            Shape::Entry { key: end, .. } | Shape::Namespace { name: end, .. } => {
                // A key parts from longer ones where it ends, and from no one behind that.
                let limit = 9 * u16::try_from(end.len()).expect("bounded when it was read");
                if crit > limit && checks.makes(Check::DepthWithinKey) {
                    return Err(ProofError::CriticalBit { what: "at most", found: crit, limit });
                }
            }
            Shape::Inner { .. } | Shape::Opaque | Shape::Empty => {}
        }
    }
    Ok(())
}

/// How hashes are come by: each computed, or remembered.
pub(crate) trait Hashes {
    /// Whose hashes they are.
    type Hasher: Hasher;
    /// Of a node with `count` entries below it; `mid` is what its head leads to.
    fn node(&mut self, head: &Half, mid: &<Self::Hasher as Hasher>::Mid, tail: &Half, count: u64) -> Hash;
    /// Of a key or value.
    fn bytes(&mut self, bytes: &[u8]) -> Hash;
    /// Of a name and of its namespace's root.
    fn namespace(&mut self, name: &[u8], root: &Hash) -> [Hash; 2];
}

/// Each hash is computed.
pub(crate) struct Plain<H>(pub(crate) PhantomData<H>);

impl<H: Hasher> Hashes for Plain<H> {
    type Hasher = H;
    fn node(&mut self, _: &Half, mid: &H::Mid, tail: &Half, _: u64) -> Hash {
        H::hash_tail(mid, tail)
    }
    fn bytes(&mut self, bytes: &[u8]) -> Hash {
        H::hash(bytes)
    }
    fn namespace(&mut self, name: &[u8], root: &Hash) -> [Hash; 2] {
        [H::hash(name), H::hash(&root.0)]
    }
}

/// Heads hashed together: those of one way in most states.
const HEADS: usize = 32;

/// Computes every hash, children before parents, and finds the first and last leaf shown below each inner node.
///
/// On the way up each hash waits for the one below. But it is only in the second half of a node's preimage, so the first
/// halves are hashed in lanes before.
fn hash_nodes<S: Hashes>(proof: &mut Proof, hashes: &mut S) {
    let mut heads = [[0; 64]; HEADS];
    let mut mids = [<S::Hasher as Hasher>::Mid::default(); HEADS];
    let mut group = [0; HEADS];
    let mut rest = proof.nodes.len();
    while rest > 0 {
        let mut count = 0;
        while rest > 0 && count < HEADS {
            rest -= 1;
            if put_head(proof, rest, &mut heads[count]) {
                group[count] = rest;
                count += 1;
            }
        }
        S::Hasher::hash_heads(&heads[..count], &mut mids[..count]);
        for ((head, mid), at) in heads.iter().zip(&mids).zip(group).take(count) {
            let tail = tail(proof, at, hashes);
            let hash = hashes.node(head, mid, &tail, proof.nodes[at].totals.count);
            settle(proof, at, hash);
        }
    }
}

/// Takes in the hash of a node, and finds the first and last leaf shown below it.
fn settle(proof: &mut Proof, at: usize, hash: Hash) {
    let below = match proof.nodes[at].shape {
        Shape::Inner { left, right, .. } => [leaves(proof, left, right)[0], leaves(proof, right, left)[1]],
        _ => [0; 2],
    };
    let node = &mut proof.nodes[at];
    node.hash = hash;
    if let Shape::Inner { leaves, .. } = &mut node.shape {
        *leaves = below;
    }
}

/// Writes the first half of a node's preimage; false if its hash is given.
fn put_head(proof: &Proof, at: usize, out: &mut Half) -> bool {
    let shape = proof.nodes[at].shape;
    if matches!(shape, Shape::Opaque) {
        return false;
    }
    *out = [0; 64];
    match shape {
        Shape::Opaque | Shape::Empty => {}
        Shape::Inner { level, crit, left, right, .. } => {
            let totals = [left, right].map(|child| proof.nodes[child as usize].totals);
            preimage::put_inner_head(out, level, crit, totals);
        }
        Shape::Namespace { name, tree } => {
            preimage::put_namespace_head(out, short(name.len()), proof.nodes[tree as usize].totals);
        }
        Shape::Entry { key, value_len, .. } => preimage::put_leaf_head(out, short(key.len()), value_len),
    }
    true
}

/// The second half of a node's preimage, once the hashes below are known.
fn tail(proof: &Proof, at: usize, hashes: &mut impl Hashes) -> Half {
    match proof.nodes[at].shape {
        Shape::Opaque | Shape::Empty => [0; 64],
        Shape::Inner { left, right, .. } => {
            let [left, right] = [left, right].map(|child| &proof.nodes[child as usize].hash);
            preimage::tail(left, right)
        }
        Shape::Namespace { name, tree } => {
            let [name, root] = hashes.namespace(proof.slice(name), &proof.nodes[tree as usize].hash);
            preimage::tail(&name, &root)
        }
        Shape::Entry { key, body, shown, .. } => {
            let (key, body) = (proof.slice(key), proof.slice(body));
            let value_hash = if shown { hashes.bytes(body) } else { Hash(body.try_into().expect("a stub has a hash")) };
            preimage::tail(&hashes.bytes(key), &value_hash)
        }
    }
}

fn short(len: usize) -> u16 {
    u16::try_from(len).expect("keys and names are bounded when they are read")
}

/// The first and last leaf shown below `node`, or, if it is opaque, below its sibling, which then is not.
fn leaves(proof: &Proof, node: u32, sibling: u32) -> [u32; 2] {
    match proof.nodes[node as usize].shape {
        Shape::Inner { leaves, .. } => leaves,
        Shape::Entry { .. } | Shape::Namespace { .. } => [node; 2],
        Shape::Opaque | Shape::Empty => leaves(proof, sibling, sibling),
    }
}

/// Keys stand where the tree would have put them (spec: TREE-8).
///
/// It is enough to look at each inner node once. Where both children are shown, the two leaves beside the gap differ
/// first in its critical bit. Where one is, the first leaf below has the bit of its side; the other leaves below agree
/// with it in all bits before the critical ones of the nodes between them, which are greater.
fn check_keys(proof: &Proof, checks: impl Checks) -> Result<(), ProofError> {
    for node in &proof.nodes {
        let Shape::Inner { crit: here, left, right, leaves: [first, _], .. } = node.shape else { continue };
        let left_is_shown = !matches!(proof.nodes[left as usize].shape, Shape::Opaque);
        let right_is_shown = !matches!(proof.nodes[right as usize].shape, Shape::Opaque);
        let key = proof.key_of(first);
        if bit(key, here) == left_is_shown && checks.makes(Check::KeyTakesTheTurns) {
            return Err(ProofError::Misplaced { what: "its bits are not the turns taken", key: key.to_vec() });
        }
        if left_is_shown && right_is_shown {
            let [before, after] = [leaves(proof, left, left)[1], leaves(proof, right, right)[0]];
            let key = proof.key_of(after);
            if crit(proof.key_of(before), key) != Some(here) && checks.makes(Check::NeighboursPartAtCrit) {
                let what = "it parts from its neighbour at another bit than their node says";
                return Err(ProofError::Misplaced { what, key: key.to_vec() });
            }
        }
    }
    Ok(())
}

/// Why a node may be shown.
#[derive(Clone, Copy)]
enum Want<'n> {
    /// Keys it may hold are asked for.
    Spans(&'n [Span<'n>]),
    /// It is on the way of this bound, at whose end a leaf shows that keys part from what is asked for.
    Way(&'n [u8]),
    /// Nothing is to be seen here.
    Nothing,
}

impl<'n> Want<'n> {
    fn of(spans: &'n [Span<'n>]) -> Self {
        if spans.is_empty() { Self::Nothing } else { Self::Spans(spans) }
    }
}

/// Nothing is shown that no question needs (spec: TREE-7).
fn check_needed(proof: &Proof, needs: &Needs<'_>) -> Result<(), ProofError> {
    let mut stack: Vec<(u32, Want<'_>, Option<&EntryNeeds<'_>>)> = Vec::with_capacity(8);
    stack.push((0, Want::of(needs.names.as_slice()), None));
    while let Some((at, want, entries)) = stack.pop() {
        let shape = proof.nodes[at as usize].shape;
        match (shape, want) {
            (Shape::Opaque | Shape::Empty, _) => {}
            (_, Want::Nothing) => {
                let key = proof.key_of(leaves(proof, at, at)[0]).to_vec();
                return Err(ProofError::Bloated { what: "", key });
            }
            (Shape::Entry { key, shown, .. }, _) => {
                let key = proof.slice(key);
                if shown && !entries.is_some_and(|needs| needs.values.contains(key)) {
                    return Err(ProofError::Bloated { what: "the value of ", key: key.to_vec() });
                }
            }
            (Shape::Namespace { name, tree }, _) => {
                let entries = needs.entries(proof.slice(name));
                stack.push((tree, entries.map_or(Want::Nothing, |needs| Want::of(needs.seen.as_slice())), entries));
            }
            (Shape::Inner { crit, left, right, .. }, Want::Way(start)) => {
                let [on, off] = if bit(start, crit) { [right, left] } else { [left, right] };
                stack.extend([(off, Want::Nothing, entries), (on, want, entries)]);
            }
            (Shape::Inner { crit, left, right, leaves: [first, _], .. }, Want::Spans(spans)) => {
                let region = Region { sample: proof.key_of(first), crit, side: false };
                let [below_left, below_right] = [region, Region { side: true, ..region }].map(|r| meeting(spans, &r));
                if below_left.is_empty() && below_right.is_empty() {
                    stack.push((at, Want::Way(spans[0].start()), entries));
                } else {
                    stack.extend([(right, Want::of(below_right), entries), (left, Want::of(below_left), entries)]);
                }
            }
        }
    }
    Ok(())
}

/// [`check_needed`] for one key, which is the most asked of questions: what it needs is its way, and nothing beside it.
fn check_way(proof: &Proof, namespace: &Namespace, key: &[u8], with_value: bool) -> Result<(), ProofError> {
    let bloated = |what, node| {
        let key = proof.key_of(leaves(proof, node, node)[0]).to_vec();
        Err(ProofError::Bloated { what, key })
    };
    let mut at = 0;
    let mut asked = namespace.as_bytes();
    loop {
        match proof.nodes[at as usize].shape {
            Shape::Opaque | Shape::Empty => return Ok(()),
            Shape::Inner { crit, left, right, .. } => {
                let [on, off] = if bit(asked, crit) { [right, left] } else { [left, right] };
                if !matches!(proof.nodes[off as usize].shape, Shape::Opaque) {
                    return bloated("", off);
                }
                at = on;
            }
            Shape::Namespace { name, tree } if proof.slice(name) == asked => {
                asked = key;
                at = tree;
            }
            Shape::Namespace { tree, .. } => match proof.nodes[tree as usize].shape {
                Shape::Opaque => return Ok(()),
                _ => return bloated("", tree),
            },
            Shape::Entry { key: end, shown, .. } => {
                let needed = with_value && proof.slice(end) == asked;
                return if shown && !needed { bloated("the value of ", at) } else { Ok(()) };
            }
        }
    }
}

/// What stands at the end of a key's way.
enum Found {
    Leaf(u32),
    Absent,
    Unknown,
}

/// A place in a range: an entry, or the first key of a part that is not shown.
enum Item {
    Entry(Key, Value),
    Gap(Vec<u8>),
}

impl<H: Hasher> Verified<H> {
    /// The root the proof was checked against.
    #[must_use]
    pub fn root(&self) -> Root {
        self.root
    }

    /// The proof.
    #[must_use]
    pub fn proof(&self) -> &Proof {
        &self.proof
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, namespace: &Namespace, key: &[u8]) -> Answer<Value> {
        self.find_entry(namespace, key).and_then(|entry| self.value(entry).map_or(Answer::Unknown, Answer::Present))
    }

    /// Where in the proof's bytes the value of a key stands.
    pub(crate) fn shown(&self, namespace: &Namespace, key: &[u8]) -> Answer<Range<usize>> {
        self.find_entry(namespace, key).and_then(|entry| match self.proof.nodes[entry as usize].shape {
            Shape::Entry { body, shown: true, .. } => Answer::Present(body.range()),
            _ => Answer::Unknown,
        })
    }

    /// The length of a key's value in bytes, which is known also where the value is not shown.
    #[must_use]
    pub fn value_len(&self, namespace: &Namespace, key: &[u8]) -> Answer<u32> {
        self.find_entry(namespace, key).and_then(|entry| match self.proof.nodes[entry as usize].shape {
            Shape::Entry { value_len, .. } => Answer::Present(value_len),
            _ => Answer::Unknown,
        })
    }

    /// All entries of a range (spec: TREE-10).
    #[must_use]
    pub fn range(&self, namespace: &Namespace, range: &KeyRange) -> RangeAnswer {
        let mut shown = Vec::new();
        for item in self.items(namespace, range.clone()) {
            match item {
                Item::Entry(key, value) => shown.push((key, value)),
                Item::Gap(unknown) => return RangeAnswer::Incomplete { shown, unknown },
            }
        }
        RangeAnswer::Complete(shown)
    }

    /// All entries whose keys begin with `prefix` (spec: TREE-10).
    #[must_use]
    pub fn prefix(&self, namespace: &Namespace, prefix: &[u8]) -> RangeAnswer {
        self.range(namespace, &KeyRange::prefix(prefix))
    }

    /// How many entries have keys that begin with `prefix`, and their bytes; absent if there is none.
    ///
    /// They are a certified claim of whoever made the root (spec: TREE-10).
    #[must_use]
    pub fn prefix_totals(&self, namespace: &Namespace, prefix: &[u8]) -> Answer<Totals> {
        let tree = match self.find_tree(namespace) {
            Answer::Present(tree) => tree,
            Answer::Absent => return Answer::Absent,
            Answer::Unknown => return Answer::Unknown,
        };
        let nodes = &self.proof.nodes;
        let totals = nodes[tree as usize].totals;
        if prefix.is_empty() {
            return Answer::Present(totals);
        }
        let mut at = tree;
        loop {
            let node = &nodes[at as usize];
            let leaf = match node.shape {
                Shape::Opaque | Shape::Empty | Shape::Namespace { .. } => return Answer::Unknown,
                Shape::Entry { .. } => at,
                Shape::Inner { crit, left, right, leaves: [first, _], .. } => {
                    if usize::from(crit) < 9 * prefix.len() {
                        let side = bit(prefix, crit);
                        let region = Region { sample: self.proof.key_of(first), crit, side };
                        if region.compare(prefix).is_ne() {
                            return Answer::Absent;
                        }
                        at = if side { right } else { left };
                        continue;
                    }
                    first
                }
            };
            // Everything below has this leaf's first bits, so all of it begins with the prefix or none does.
            let begins = self.proof.key_of(leaf).starts_with(prefix);
            return if begins { Answer::Present(node.totals) } else { Answer::Absent };
        }
    }

    /// The root and totals of a namespace.
    #[must_use]
    pub fn namespace(&self, namespace: &Namespace) -> Answer<NamespaceTop> {
        self.find_tree(namespace).and_then(|tree| Answer::Present(self.top(tree)))
    }

    /// All namespaces in order; none if the proof does not show them all.
    #[must_use]
    pub fn namespaces(&self) -> Option<Vec<(Namespace, NamespaceTop)>> {
        let mut found = Vec::new();
        let mut stack = vec![0];
        while let Some(at) = stack.pop() {
            match self.proof.nodes[at as usize].shape {
                Shape::Opaque | Shape::Entry { .. } => return None,
                Shape::Empty => {}
                Shape::Inner { left, right, .. } => stack.extend([right, left]),
                Shape::Namespace { name, tree } => found.push((self.name(self.proof.slice(name)), self.top(tree))),
            }
        }
        Some(found)
    }

    pub(crate) fn name(&self, bytes: &[u8]) -> Namespace {
        let text = std::str::from_utf8(bytes).expect("names are checked when they are read");
        Namespace::new(text).expect("names are checked when they are read")
    }

    fn top(&self, tree: u32) -> NamespaceTop {
        let node = &self.proof.nodes[tree as usize];
        NamespaceTop { root: node.hash, totals: node.totals }
    }

    /// The value of an entry, if the proof shows it.
    fn value(&self, entry: u32) -> Option<Value> {
        match self.proof.nodes[entry as usize].shape {
            Shape::Entry { body, shown: true, .. } => {
                Some(Value::new(self.proof.shared(body)).expect("values are checked when they are read"))
            }
            _ => None,
        }
    }

    fn find_entry(&self, namespace: &Namespace, key: &[u8]) -> Answer<u32> {
        match self.find_tree(namespace) {
            Answer::Present(tree) => match self.find(tree, key) {
                Found::Leaf(entry) => Answer::Present(entry),
                Found::Absent => Answer::Absent,
                Found::Unknown => Answer::Unknown,
            },
            other => other,
        }
    }

    /// The top of a namespace's entries.
    pub(crate) fn find_tree(&self, namespace: &Namespace) -> Answer<u32> {
        match self.find(0, namespace.as_bytes()) {
            Found::Leaf(leaf) => match self.proof.nodes[leaf as usize].shape {
                Shape::Namespace { tree, .. } => Answer::Present(tree),
                _ => Answer::Unknown,
            },
            Found::Absent => Answer::Absent,
            Found::Unknown => Answer::Unknown,
        }
    }

    /// Follows a key's way. An opaque node that may hold the key is unknown; one whose keys, as leaves beside it show,
    /// have other leading bits is not in the way (spec: TREE-9, TREE-10).
    fn find(&self, top: u32, key: &[u8]) -> Found {
        let mut at = top;
        let mut region: Option<Region<'_>> = None;
        loop {
            match self.proof.nodes[at as usize].shape {
                Shape::Empty => return Found::Absent,
                Shape::Opaque => {
                    let elsewhere = region.is_some_and(|region| region.compare(key).is_ne());
                    return if elsewhere { Found::Absent } else { Found::Unknown };
                }
                Shape::Entry { key: end, .. } | Shape::Namespace { name: end, .. } => {
                    return if self.proof.slice(end) == key { Found::Leaf(at) } else { Found::Absent };
                }
                Shape::Inner { crit, left, right, leaves: [first, _], .. } => {
                    let side = bit(key, crit);
                    region = Some(Region { sample: self.proof.key_of(first), crit, side });
                    at = if side { right } else { left };
                }
            }
        }
    }

    /// What a range holds, in its direction. Finds the next when it is asked for.
    fn items(&self, namespace: &Namespace, range: KeyRange) -> Items<'_, H> {
        let (stack, gap) = match self.find_tree(namespace) {
            _ if range.is_empty() => (Vec::new(), None),
            Answer::Present(tree) => (vec![(tree, None)], None),
            Answer::Absent => (Vec::new(), None),
            Answer::Unknown => (Vec::new(), Some(range.start.clone())),
        };
        Items { verified: self, range, stack, gap }
    }
}

/// A walk over what a proof shows of a range. It holds a node for each turn of the way to where it is, at most.
struct Items<'a, H> {
    verified: &'a Verified<H>,
    range: KeyRange,
    stack: Vec<(u32, Option<Region<'a>>)>,
    /// Nothing of the namespace is shown.
    gap: Option<Vec<u8>>,
}

impl<H: Hasher> Iterator for Items<'_, H> {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        if let Some(key) = self.gap.take() {
            return Some(Item::Gap(key));
        }
        if self.stack.is_empty() {
            return None;
        }
        let (span, proof) = (Span::of_range(&self.range), &self.verified.proof);
        while let Some((at, region)) = self.stack.pop() {
            if region.is_some_and(|region| !span.meets(&region)) {
                continue;
            }
            match proof.nodes[at as usize].shape {
                Shape::Opaque | Shape::Empty | Shape::Namespace { .. } => {
                    let least = region.map_or(Vec::new(), |region| region.least());
                    return Some(Item::Gap(least.max(self.range.start.clone())));
                }
                Shape::Entry { key, .. } => {
                    let key = proof.slice(key);
                    if span.contains(key) {
                        let own = Key::new(key).expect("keys are checked when they are read");
                        return Some(match self.verified.value(at) {
                            Some(value) => Item::Entry(own, value),
                            None => Item::Gap(key.to_vec()),
                        });
                    }
                }
                Shape::Inner { crit, left, right, leaves: [first, _], .. } => {
                    let region = Region { sample: proof.key_of(first), crit, side: false };
                    let mut sides = [(right, Some(Region { side: true, ..region })), (left, Some(region))];
                    if self.range.reverse {
                        sides.reverse();
                    }
                    self.stack.extend(sides);
                }
            }
        }
        None
    }
}

/// Execution over a witness: what is unknown is an error that names the key, never an absence (spec: EXEC-17).
impl<H: Hasher> Read for Verified<H> {
    fn get(&self, namespace: &Namespace, key: &[u8]) -> Result<Option<Value>, ReadError> {
        match Verified::get(self, namespace, key) {
            Answer::Present(value) => Ok(Some(value)),
            Answer::Absent => Ok(None),
            Answer::Unknown => Err(ReadError::Incomplete { namespace: namespace.clone(), key: key.to_vec() }),
        }
    }

    fn scan<'a>(&'a self, namespace: &Namespace, range: KeyRange) -> Scan<'a> {
        let mut ended = false;
        let namespace = namespace.clone();
        let items = self.items(&namespace, range);
        Box::new(items.map_while(move |item| match item {
            _ if ended => None,
            Item::Entry(key, value) => Some(Ok((key, value))),
            Item::Gap(key) => {
                ended = true;
                Some(Err(ReadError::Incomplete { namespace: namespace.clone(), key }))
            }
        }))
    }
}

/// The nodes a proof shows, for whoever compares two states. What stands at a node that is opaque is unknown, so asking for
/// it is an error.
impl<H: Hasher> Walk for Verified<H> {
    type Node = u32;

    fn top(&self) -> Result<Option<Branch<u32>>, ReadError> {
        let empty = matches!(self.proof.nodes[0].shape, Shape::Empty);
        Ok((!empty).then(|| self.branch(0)))
    }

    fn open<'n>(&'n self, node: &'n u32) -> Result<Opened<'n, u32>, ReadError> {
        Ok(match self.proof.nodes[*node as usize].shape {
            Shape::Opaque | Shape::Empty => return Err(ReadError::Unshown),
            Shape::Inner { crit, left, right, .. } => {
                Opened::Inner { crit, left: self.branch(left), right: self.branch(right) }
            }
            Shape::Namespace { name, tree } => {
                Opened::Namespace { name: Cow::Owned(self.name(self.proof.slice(name))), tree: self.branch(tree) }
            }
            Shape::Entry { key, value_len, body, shown } => {
                let body = self.proof.slice(body);
                let value_hash = if shown { H::hash(body) } else { Hash(body.try_into().expect("a stub has a hash")) };
                Opened::Entry { key: Cow::Borrowed(self.proof.slice(key)), value_len, value_hash }
            }
        })
    }

    fn value(&self, node: &u32) -> Result<Value, ReadError> {
        Verified::value(self, *node).ok_or(ReadError::Unshown)
    }
}

impl<H: Hasher> Verified<H> {
    fn branch(&self, node: u32) -> Branch<u32> {
        let Node { hash, totals, .. } = self.proof.nodes[node as usize];
        Branch { node, hash, totals }
    }
}
