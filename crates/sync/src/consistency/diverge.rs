//! Where two states part, found by asking one question after the other.
//!
//! A proof of one key shows the hash of everything beside its way. So one answer compares as many subtrees as the way is
//! long, and says into which of them to go; the question is for a key on the heavy path of our own subtree, the one that
//! goes where most entries are, so whatever is left beside it has half of them at most. That is what bounds the number of
//! questions, whatever shape the trees have: 2 + log2 n of them find the first key, and the same again where it is only
//! the peer that has it.
//!
//! Rules: `spec/consistency.md`, CHECK-5, CHECK-6.

use super::{Ask, Silence};
use crate::peers::{Request, Response, Version, Why};
use keelstone_codec::{Hash, Height, Key, Namespace, Root};
use keelstone_tree::{Branch, Hasher, Opened, Proof, ProofError, ProofLimits, Query, ReadError, Verified, Walk, bits};

/// Most questions of one search. An honest peer needs fewer than 64 for ten million entries and a thousand heights.
pub const QUESTIONS_MAX: u32 = 64;

/// The first key in which two states differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// Where.
    pub namespace: Namespace,
    /// The key.
    pub key: Key,
    /// The hash of the value here; none if the key is missing here.
    pub ours: Option<Hash>,
    /// The hash of the peer's value; none if it lacks the key.
    pub theirs: Option<Hash>,
}

/// The heights between which two histories part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parting {
    /// The last height whose root is the same on both sides; none if it differs at the lowest both have.
    pub last_same: Option<Version>,
    /// The first height whose root differs: ours.
    pub ours: Version,
    /// And the root the peer says it has there.
    pub theirs: Root,
}

/// Why a search came to no end. Each variant says who has to act.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DivergeError {
    /// No answer. Ask again, or another.
    #[error("the peer did not answer: {0}")]
    Silent(#[from] Silence),
    /// Honest, but of no use: the peer does not have what was asked for.
    #[error("the peer cannot answer: {0:?}")]
    Unavailable(Why),
    /// Honest, but not now.
    #[error("the peer is busy for {retry_after_ms} ms")]
    Busy {
        /// When to come back.
        retry_after_ms: u32,
    },
    /// The answer is none to what was asked, or proves nothing under the root the peer itself named.
    #[error("the peer misbehaved: {0}")]
    Misbehaved(String),
    /// More questions than any honest peer needs.
    #[error("the search ended after {limit} questions")]
    TooMany {
        /// How many were asked.
        limit: u32,
    },
    /// The two states or histories are the same.
    #[error("the two do not differ")]
    Same,
    /// The two have no height in common that both keep.
    #[error("the peer keeps heights {from} to {to}, none of which is kept here")]
    NothingInCommon {
        /// The lowest height it says it keeps.
        from: Height,
        /// The highest.
        to: Height,
    },
    /// Our own state could not be read.
    #[error("the own state could not be read")]
    Own(#[from] ReadError),
}

/// A peer, and how often it was asked.
pub(super) struct Asking<'a, A: ?Sized> {
    peer: &'a mut A,
    pub(super) asked: u32,
    limit: u32,
}

impl<'a, A: Ask + ?Sized> Asking<'a, A> {
    pub(super) fn new(peer: &'a mut A, limit: u32) -> Self {
        Self { peer, asked: 0, limit }
    }

    fn ask(&mut self, request: &Request) -> Result<Response, DivergeError> {
        if self.asked >= self.limit {
            return Err(DivergeError::TooMany { limit: self.limit });
        }
        self.asked += 1;
        match self.peer.ask(request)? {
            Response::Unavailable(why) => Err(DivergeError::Unavailable(why)),
            Response::Busy { retry_after_ms } => Err(DivergeError::Busy { retry_after_ms }),
            response => Ok(response),
        }
    }

    /// What the peer says its root is at a height. A claim.
    pub(super) fn root_at(&mut self, height: Height) -> Result<Root, DivergeError> {
        match self.ask(&Request::GetRootAt { height })? {
            Response::RootAt(version) if version.height == height => Ok(version.root),
            Response::RootAt(version) => Err(DivergeError::Misbehaved(format!(
                "asked for the root of height {height}, it answered for {}",
                version.height
            ))),
            _ => Err(DivergeError::Misbehaved("the answer is of another kind".to_owned())),
        }
    }

    /// The heights the peer says it keeps.
    fn kept(&mut self) -> Result<(Height, Height), DivergeError> {
        match self.ask(&Request::Status)? {
            Response::Status(status) => Ok((status.oldest, status.newest.height)),
            _ => Err(DivergeError::Misbehaved("the answer is of another kind".to_owned())),
        }
    }

    /// What a proof of one key shows of the peer's state, proven under the root it named.
    // spec: CHECK-5
    pub(super) fn entry<H: Hasher>(
        &mut self,
        at: Version,
        namespace: &Namespace,
        key: &Key,
    ) -> Result<Verified<H>, DivergeError> {
        let request = Request::GetEntry { at, namespace: namespace.clone(), key: key.clone() };
        let Response::Entry(proof) = self.ask(&request)? else {
            return Err(DivergeError::Misbehaved("the answer is of another kind".to_owned()));
        };
        let unproven =
            |error: ProofError| DivergeError::Misbehaved(format!("{namespace}/{}: {error}", key.escape_ascii()));
        let query = [Query::Key(namespace.clone(), key.clone())];
        let proof = Proof::decode(&proof).map_err(unproven)?;
        proof.verify(at.root, &query, &ProofLimits::default()).map_err(unproven)
    }
}

/// Finds the first key, in the order of namespaces and keys, in which the state `ours` and the state of `peer` at
/// `theirs` differ. How many questions it took comes with it.
///
/// # Errors
/// [`DivergeError`].
// spec: CHECK-5
pub fn first_difference<H: Hasher, W: Walk>(
    ours: &W,
    theirs: Version,
    peer: &mut (impl Ask + ?Sized),
) -> Result<(Divergence, u32), DivergeError> {
    let mut asking = Asking::new(peer, QUESTIONS_MAX);
    let mut probe = match ours.top()? {
        Some(top) => {
            let (namespace, tree) = heavy_namespace(ours, top)?;
            (namespace, heavy_key(ours, tree)?)
        }
        // Nothing here: whatever the peer has first is the first difference.
        None => (least_name(&[], None), least_key()),
    };
    loop {
        let shown = asking.entry::<H>(theirs, &probe.0, &probe.1)?;
        let next = match descend(ours, &shown)? {
            Step::Found(divergence) => return Ok((divergence, asking.asked)),
            Step::Same => return Err(DivergeError::Same),
            Step::Ask(namespace, key) => (namespace, key),
        };
        if next == probe {
            let what = format!("its proof of {}/{} leaves out what was asked for", next.0, next.1.escape_ascii());
            return Err(DivergeError::Misbehaved(what));
        }
        probe = next;
    }
}

/// Finds the first height whose root differs, by halving between the lowest and the highest height that both keep: states
/// that have parted do not meet again. The peer's roots are its word. How many questions it took comes with it.
///
/// # Errors
/// [`DivergeError`]; whatever `own` says if it fails.
// spec: CHECK-6
pub fn first_height(
    kept: (Height, Height),
    own: &mut dyn FnMut(Height) -> Result<Option<Root>, ReadError>,
    peer: &mut (impl Ask + ?Sized),
) -> Result<(Parting, u32), DivergeError> {
    let mut asking = Asking::new(peer, QUESTIONS_MAX);
    let (from, to) = asking.kept()?;
    let (mut low, mut high) = (kept.0.max(from), kept.1.min(to));
    if low > high {
        return Err(DivergeError::NothingInCommon { from, to });
    }
    let mut look = |height: Height| -> Result<(Version, Root), DivergeError> {
        match own(height)? {
            Some(ours) => Ok((Version { height, root: ours }, asking.root_at(height)?)),
            None => Err(DivergeError::NothingInCommon { from, to }),
        }
    };
    let (ours, theirs) = look(high)?;
    if ours.root == theirs {
        return Err(DivergeError::Same);
    }
    let mut found = Parting { last_same: None, ours, theirs };
    if low < high {
        let (ours, theirs) = look(low)?;
        if ours.root == theirs {
            found.last_same = Some(ours);
        } else {
            (found.ours, found.theirs, high) = (ours, theirs, low);
        }
    }
    while high.0 - low.0 > 1 {
        let middle = Height(low.0 + (high.0 - low.0) / 2);
        let (ours, theirs) = look(middle)?;
        if ours.root == theirs {
            (low, found.last_same) = (middle, Some(ours));
        } else {
            (high, found.ours, found.theirs) = (middle, ours, theirs);
        }
    }
    Ok((found, asking.asked))
}

/// What one look at both trees came to.
enum Step {
    Found(Divergence),
    Same,
    /// What to ask for next.
    Ask(Namespace, Key),
}

/// One tree of ours beside one of the peer's: the names, or the entries of one namespace.
struct Pair<'a, H, W: Walk> {
    ours: &'a W,
    theirs: &'a Verified<H>,
}

/// Where two subtrees part, at one level.
enum Parted<N> {
    /// The leaf of this key is on one side only, or differs.
    Leaf { ours: Option<N>, theirs: Option<u32> },
    /// The peer's proof does not show what is below a node whose keys begin as those of our node do.
    Unseen(Branch<N>),
    /// The peer's proof does not show the least of its keys that begin with these bits.
    UnseenLeast { sample: Vec<u8>, crit: u16, side: bool },
}

/// Goes down both trees to the first place where they differ, as far as the proof shows it.
fn descend<H: Hasher, W: Walk>(ours: &W, theirs: &Verified<H>) -> Result<Step, DivergeError> {
    let names = Pair { ours, theirs };
    let (own_top, their_top) = (ours.top()?, Walk::top(theirs)?);
    let parted = match (own_top, their_top) {
        (None, None) => return Ok(Step::Same),
        (Some(own), None) => Parted::Leaf { ours: Some(names.own_least(own.node)?), theirs: None },
        (None, Some(their)) => names.their_least(their.node, None)?,
        (Some(own), Some(their)) if own.hash == their.hash => return Ok(Step::Same),
        (Some(own), Some(their)) => names.part(own, their)?,
    };
    let (own, their) = match parted {
        Parted::Leaf { ours, theirs } => (ours, theirs),
        Parted::Unseen(own) => {
            let (namespace, tree) = heavy_namespace(ours, own)?;
            return Ok(Step::Ask(namespace, heavy_key(ours, tree)?));
        }
        Parted::UnseenLeast { sample, crit, side } => {
            return Ok(Step::Ask(least_name(&sample, Some((crit, side))), least_key()));
        }
    };
    let space = |opened: Opened<'_, W::Node>| match opened {
        Opened::Namespace { name, tree } => Ok((name.into_owned(), tree)),
        _ => Err(ReadError::damaged("the state level has a leaf that is no namespace")),
    };
    let own = own.map(|own| ours.open(&own).and_then(space)).transpose()?;
    let their = match their {
        None => None,
        Some(node) => match theirs.open(&node) {
            Ok(Opened::Namespace { name, tree }) => Some((name.into_owned(), tree)),
            _ => return Err(DivergeError::Misbehaved("its names end in something else".to_owned())),
        },
    };
    let (name, parted) = match (&own, their) {
        (Some((name, tree)), None) => {
            let entries = Pair { ours, theirs };
            (name.clone(), Parted::Leaf { ours: Some(entries.own_least(tree.node.clone())?), theirs: None })
        }
        (None, Some((name, tree))) => {
            let parted = Pair { ours, theirs }.their_least(tree.node, None)?;
            (name, parted)
        }
        (Some((name, own)), Some((_, their))) => (name.clone(), Pair { ours, theirs }.part(own.clone(), their)?),
        (None, None) => return Ok(Step::Same),
    };
    let (own, their) = match parted {
        Parted::Leaf { ours, theirs } => (ours, theirs),
        Parted::Unseen(own) => return Ok(Step::Ask(name, heavy_key(ours, own)?)),
        Parted::UnseenLeast { sample, crit, side } => {
            let key = if crit == 0 { least_key() } else { key(bits::least(&sample, crit, side))? };
            return Ok(Step::Ask(name, key));
        }
    };
    let own = own.map(|own| entry(ours.open(&own)?)).transpose()?;
    let their = match their {
        None => None,
        Some(their) => match theirs.open(&their) {
            Ok(opened) => Some(entry(opened)?),
            Err(error) => return Err(DivergeError::Misbehaved(error.to_string())),
        },
    };
    let found = own.as_ref().or(their.as_ref()).map(|(key, _)| key.clone());
    let key = key(found.unwrap_or_default())?;
    let (ours, theirs) = (own.map(|(_, hash)| hash), their.map(|(_, hash)| hash));
    Ok(Step::Found(Divergence { namespace: name, key, ours, theirs }))
}

impl<H: Hasher, W: Walk> Pair<'_, H, W> {
    /// Finds where two subtrees part that differ, all of whose keys begin alike.
    ///
    /// At every step both nodes hold keys with the same leading bits, all that stands before them is the same, and
    /// they are not. One of them parts its keys first; the other's all lie on one side of that, unless they part there
    /// too.
    // spec: CHECK-5
    fn part(&self, own: Branch<W::Node>, their: Branch<u32>) -> Result<Parted<W::Node>, DivergeError> {
        let (mut own, mut their) = (own, their);
        // Of all nodes that a proof of one key shows, the leaf at the end of its way is one leaf below.
        let Some(their_sample) = self.their_sample(their.node)? else { return Ok(Parted::Unseen(own)) };
        let mut own_sample = self.own_key(&self.own_least(own.node.clone())?)?;
        loop {
            let opened = match self.theirs.open(&their.node) {
                Ok(opened) => opened,
                Err(ReadError::Unshown) => return Ok(Parted::Unseen(own)),
                Err(error) => return Err(DivergeError::Misbehaved(error.to_string())),
            };
            let their_inner = match opened {
                Opened::Inner { crit, left, right } => Some((crit, left, right)),
                _ => None,
            };
            let own_inner = match self.ours.open(&own.node)? {
                Opened::Inner { crit, left, right } => Some((crit, left, right)),
                _ => None,
            };
            let crit_of = |inner: Option<u16>| inner.unwrap_or(u16::MAX);
            let own_crit = crit_of(own_inner.as_ref().map(|inner| inner.0));
            let their_crit = crit_of(their_inner.as_ref().map(|inner| inner.0));
            let apart = bits::crit(&own_sample, &their_sample).filter(|at| *at < own_crit.min(their_crit));
            if let Some(at) = apart {
                // No key of the one begins as those of the other do: whatever comes first is on one side only.
                return match bits::bit(&own_sample, at) {
                    false => Ok(Parted::Leaf { ours: Some(self.own_least(own.node)?), theirs: None }),
                    true => self.their_least(their.node, None),
                };
            }
            match (own_inner, their_inner) {
                (None, None) => return Ok(Parted::Leaf { ours: Some(own.node), theirs: Some(their.node) }),
                (Some((crit, left, right)), Some((_, their_left, their_right))) if own_crit == their_crit => {
                    let side = left.hash == their_left.hash;
                    (own, their) = if side { (right, their_right) } else { (left, their_left) };
                    if bits::bit(&own_sample, crit) != side {
                        own_sample = self.own_key(&self.own_least(own.node.clone())?)?;
                    }
                    if own.hash == their.hash {
                        return Err(DivergeError::Misbehaved("its hashes do not add up".to_owned()));
                    }
                }
                (Some((crit, left, right)), _) if own_crit < their_crit => {
                    if bits::bit(&their_sample, crit) {
                        return Ok(Parted::Leaf { ours: Some(self.own_least(left.node)?), theirs: None });
                    }
                    if left.hash == their.hash {
                        return Ok(Parted::Leaf { ours: Some(self.own_least(right.node)?), theirs: None });
                    }
                    own = left;
                    if bits::bit(&own_sample, crit) {
                        own_sample = self.own_key(&self.own_least(own.node.clone())?)?;
                    }
                }
                (_, Some((crit, left, right))) => {
                    if bits::bit(&own_sample, crit) {
                        return self.their_least(left.node, Some((&their_sample, crit, false)));
                    }
                    if left.hash == own.hash {
                        return self.their_least(right.node, Some((&their_sample, crit, true)));
                    }
                    their = left;
                }
                (Some(_), None) => unreachable!("a leaf's critical bit is above every inner node's"),
            }
        }
    }

    /// The least leaf below a node of ours.
    fn own_least(&self, mut node: W::Node) -> Result<W::Node, ReadError> {
        loop {
            let left = match self.ours.open(&node)? {
                Opened::Inner { left, .. } => left.node,
                _ => break,
            };
            node = left;
        }
        Ok(node)
    }

    fn own_key(&self, leaf: &W::Node) -> Result<Vec<u8>, ReadError> {
        Ok(match self.ours.open(leaf)? {
            Opened::Entry { key, .. } => key.into_owned(),
            Opened::Namespace { name, .. } => name.as_bytes().to_vec(),
            Opened::Inner { .. } => return Err(ReadError::damaged("a leaf is no leaf")),
        })
    }

    /// The leaf that the proof shows below a node; none if the node is opaque.
    fn their_sample(&self, node: u32) -> Result<Option<Vec<u8>>, DivergeError> {
        let mut node = node;
        loop {
            let children = match self.theirs.open(&node) {
                Err(ReadError::Unshown) => return Ok(None),
                Err(error) => return Err(DivergeError::Misbehaved(error.to_string())),
                Ok(Opened::Entry { key, .. }) => return Ok(Some(key.into_owned())),
                Ok(Opened::Namespace { name, .. }) => return Ok(Some(name.as_bytes().to_vec())),
                Ok(Opened::Inner { left, right, .. }) => [left.node, right.node],
            };
            let shown = children.into_iter().find(|child| !matches!(self.theirs.open(child), Err(ReadError::Unshown)));
            node = shown.ok_or_else(|| DivergeError::Misbehaved("its proof shows no leaf".to_owned()))?;
        }
    }

    /// The least leaf below a node of the peer's, or what to ask for to see it. `above` is how the node is reached
    /// from its parent; without it the node is one that is shown, or the top.
    fn their_least(&self, node: u32, above: Option<(&[u8], u16, bool)>) -> Result<Parted<W::Node>, DivergeError> {
        let mut at = node;
        let mut above = above.map(|(sample, crit, side)| (sample.to_vec(), crit, side));
        let sample = self.their_sample(node)?.unwrap_or_default();
        loop {
            match self.theirs.open(&at) {
                Err(ReadError::Unshown) => {
                    let (sample, crit, side) = above.unwrap_or_default();
                    return Ok(Parted::UnseenLeast { sample, crit, side });
                }
                Err(error) => return Err(DivergeError::Misbehaved(error.to_string())),
                Ok(Opened::Inner { crit, left, .. }) => {
                    above = Some((sample.clone(), crit, false));
                    at = left.node;
                }
                Ok(_) => return Ok(Parted::Leaf { ours: None, theirs: Some(at) }),
            }
        }
    }
}

/// The child with more entries at every turn, and the leaf at the end.
fn heavy<W: Walk>(tree: &W, mut branch: Branch<W::Node>) -> Result<W::Node, ReadError> {
    loop {
        let heavier = match tree.open(&branch.node)? {
            Opened::Inner { left, right, .. } => {
                if left.totals.count >= right.totals.count {
                    left
                } else {
                    right
                }
            }
            _ => break,
        };
        branch = heavier;
    }
    Ok(branch.node)
}

fn heavy_namespace<W: Walk>(tree: &W, branch: Branch<W::Node>) -> Result<(Namespace, Branch<W::Node>), DivergeError> {
    let leaf = heavy(tree, branch)?;
    match tree.open(&leaf)? {
        Opened::Namespace { name, tree } => Ok((name.into_owned(), tree)),
        _ => Err(ReadError::damaged("the state level has a leaf that is no namespace").into()),
    }
}

fn heavy_key<W: Walk>(tree: &W, branch: Branch<W::Node>) -> Result<Key, DivergeError> {
    let leaf = heavy(tree, branch)?;
    let (found, _) = entry(tree.open(&leaf)?)?;
    key(found)
}

fn entry<N>(opened: Opened<'_, N>) -> Result<(Vec<u8>, Hash), ReadError> {
    match opened {
        Opened::Entry { key, value_hash, .. } => Ok((key.into_owned(), value_hash)),
        _ => Err(ReadError::damaged("a namespace has a leaf that is no entry")),
    }
}

fn key(bytes: Vec<u8>) -> Result<Key, DivergeError> {
    Key::new(bytes).map_err(|error| DivergeError::Misbehaved(error.to_string()))
}

/// The least key there can be: its way goes to the first entry of any namespace.
fn least_key() -> Key {
    Key::new([0]).expect("a key of one byte")
}

/// A name whose way goes where the least of the names are that begin with certain bits, as far as a name can say so: the
/// bytes of names are few, so what stands before it is asked for next.
fn least_name(sample: &[u8], beginning: Option<(u16, bool)>) -> Namespace {
    const LEAST: &[u8] = b"-.0123456789_abcdefghijklmnopqrstuvwxyz";
    let least = beginning.map_or_else(Vec::new, |(crit, side)| bits::least(sample, crit, side));
    let known = beginning.map_or(0, |(crit, _)| crit + 1);
    let mut name = least;
    // The last byte is known in its first bits only, which some letter has: the names below have it.
    if let Some(last) = name.pop() {
        let place = name.len();
        let begins = |byte: u8| {
            let one = [name.as_slice(), &[byte]].concat();
            let whole = [name.as_slice(), &[last]].concat();
            let first = u16::try_from(place * 9).unwrap_or(u16::MAX);
            (first..known).all(|at| bits::bit(&one, at) == bits::bit(&whole, at))
        };
        name.push(LEAST.iter().copied().find(|byte| begins(*byte)).unwrap_or(LEAST[0]));
    }
    let text = String::from_utf8(name).unwrap_or_default();
    Namespace::new(&text).unwrap_or_else(|_| Namespace::new("-").expect("a name"))
}
