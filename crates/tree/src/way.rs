//! The proof of one key, checked in one pass: the question most asked, without a node in memory for each of the proof's.
//!
//! Nearly every such proof is a plain way: from the root down one child is shown at each inner node and the other is
//! opaque, and at the end stands one leaf. Such a way is read once, front to back, its sums and turns checked on the
//! way down, and hashed from the end upwards; nothing is allocated for it. Many ways of one state go up side by side, so
//! that their nodes are hashed in lanes and those they share once.
//!
//! Nothing is refused here. What is not as on a plain way of the key asked for, or exceeds a bound, goes to
//! [`Proof::decode`] and [`Proof::verify`], which accept it or say why not. So this can only be wrong by accepting what
//! they refuse: each check stands here as it stands there, and tests hold the two to the same verdicts.
//!
//! Rules: `spec/tree.md`, TREE-7 to TREE-9.

use crate::bits::bit;
use crate::preimage::{self, short_len};
use crate::proof::{Check, Checks, Every, FORMAT, tag};
use crate::verify::level_limit;
use crate::{Answer, Half, Hasher, Level, NODE_LEN, Preimage, Proof, ProofError, ProofLimits, Query, Totals};
use keelstone_codec::{Hash, KEY_LEN_MAX, Key, NAMESPACE_LEN_MAX, Namespace, Reader, Root, VALUE_LEN_MAX};
use std::marker::PhantomData;
use std::ops::Range;

/// Most inner nodes of a way that is checked here. Random keys have twenty in a million and thirty in a thousand million.
const TURNS_MAX: usize = 64;

impl Proof {
    /// Checks the proof of one key under `root`, and says what it says of it: as [`Proof::decode_within`],
    /// [`Proof::verify`] with [`Query::Key`], and [`crate::Verified::get`] in one, and for less. The value is a part of
    /// `bytes`.
    ///
    /// # Errors
    /// [`ProofError`], the same as they.
    // spec: TREE-8
    pub fn verify_key<'p, H: Hasher>(
        bytes: &'p [u8],
        root: Root,
        namespace: &Namespace,
        key: &Key,
        limits: &ProofLimits,
    ) -> Result<Answer<&'p [u8]>, ProofError> {
        match plainly::<H>(bytes, root, namespace, key, limits, Every) {
            Some(answer) => Ok(answer),
            None => by_nodes::<H>(bytes, root, namespace, key, limits),
        }
    }

    /// Checks many proofs of one key each, of the state under one root: as [`Proof::verify_key`] does one by one, and
    /// with the same answers in the same order. On a way each node waits for the one below, but those of different
    /// ways do not wait for one another, and near the root they are the same: many cost less together than one by one
    /// (`docs/performance.md`).
    // spec: TREE-8
    #[must_use]
    pub fn verify_many<'p, 'q, H: Hasher>(
        proofs: impl IntoIterator<Item = (&'p [u8], &'q Namespace, &'q Key)>,
        root: Root,
        limits: &ProofLimits,
    ) -> Vec<Result<Answer<&'p [u8]>, ProofError>> {
        let mut proofs = proofs.into_iter();
        let mut out = Vec::with_capacity(proofs.size_hint().0.min(MANY));
        let mut side_by_side = SideBySide::<H>::new();
        let mut group = Vec::with_capacity(MANY);
        loop {
            group.clear();
            group.extend(proofs.by_ref().take(MANY));
            if group.is_empty() {
                return out;
            }
            let found = side_by_side.check(&group, root, limits);
            out.extend(group.iter().zip(found).map(|((bytes, namespace, key), found)| match found {
                Some(answer) => Ok(answer),
                None => by_nodes::<H>(bytes, root, namespace, key, limits),
            }));
        }
    }
}

/// The verdict of the verifier for all proofs.
fn by_nodes<'p, H: Hasher>(
    bytes: &'p [u8],
    root: Root,
    namespace: &Namespace,
    key: &Key,
    limits: &ProofLimits,
) -> Result<Answer<&'p [u8]>, ProofError> {
    let queries = [Query::Key(namespace.clone(), key.clone())];
    let verified = Proof::decode_within(bytes, limits)?.verify::<H>(root, &queries, limits)?;
    Ok(verified.shown(namespace, key).and_then(|value| Answer::Present(&bytes[value])))
}

/// An inner node of a way.
struct Turn<'p> {
    level: Level,
    crit: u16,
    totals: [Totals; 2],
    /// The child that is shown is the right one.
    side: bool,
    /// The hash of the other.
    hidden: &'p [u8],
}

impl Turn<'_> {
    /// Writes the node's preimage over zeros, but for the hash of the child that is shown.
    #[inline(always)]
    fn put(&self, head: &mut Half, tail: &mut Half) {
        preimage::put_inner_head(head, self.level, self.crit, self.totals);
        half(tail, !self.side).copy_from_slice(self.hidden);
    }
}

/// The place of a child's hash in the second half of its parent's preimage.
#[inline(always)]
fn half(tail: &mut Half, right: bool) -> &mut [u8] {
    let (left_half, right_half) = tail.split_at_mut(32);
    if right { right_half } else { left_half }
}

/// A way as it was read, but for its inner nodes.
struct Way<'p> {
    /// Inner nodes of the state level, which come first.
    names: usize,
    /// The namespace at the end of the state level.
    name: &'p [u8],
    totals: Totals,
    end: End<'p>,
}

/// Where a way ends.
enum End<'p> {
    /// At another namespace than the one asked for, whose entries are opaque.
    Elsewhere { tree: &'p [u8] },
    /// At an entry.
    Entry { key: &'p [u8], value_len: u32, body: Body<'p> },
}

enum Body<'p> {
    Value(&'p [u8]),
    Hash(&'p [u8]),
}

impl<'p> Way<'p> {
    /// What it says of the key it was read for.
    fn answer(&self, key: &[u8]) -> Answer<&'p [u8]> {
        match self.end {
            End::Entry { key: found, body: Body::Value(value), .. } if found == key => Answer::Present(value),
            // The key is there, but its value is not shown.
            End::Entry { key: found, body: Body::Hash(_), .. } if found == key => Answer::Unknown,
            End::Entry { .. } | End::Elsewhere { .. } => Answer::Absent,
        }
    }

    /// Whether the leaf and the name at the ends have the bits that the turns say. Those of the question have.
    // spec: TREE-8
    fn is_in_place(&self, namespace: &[u8], key: &[u8], turns: impl Fn(usize) -> (u16, bool), count: usize) -> bool {
        let stands = |end: &[u8], range: Range<usize>| range.map(&turns).all(|(crit, side)| bit(end, crit) == side);
        let name_stands = self.name == namespace || stands(self.name, 0..self.names);
        name_stands
            && match self.end {
                End::Entry { key: found, .. } => found == key || stands(found, self.names..count),
                End::Elsewhere { .. } => true,
            }
    }
}

/// A reader of ways.
struct Input<'p, C> {
    reader: Reader<'p>,
    checks: C,
    nodes: usize,
}

/// Reads the plain way of a key, and checks everything but hashes and what [`Way::is_in_place`] does. None if it is no
/// such way, or something is wrong with it.
// spec: TREE-5, TREE-7, TREE-12
fn read<'p, C: Checks>(
    bytes: &'p [u8],
    namespace: &[u8],
    key: &[u8],
    limits: &ProofLimits,
    checks: C,
    mut turn: impl FnMut(&Turn<'p>) -> Option<()>,
) -> Option<Way<'p>> {
    if bytes.len() > limits.bytes.min(u32::MAX as usize) && checks.makes(Check::BytesLimit) {
        return None;
    }
    let mut input = Input { reader: Reader::new(bytes), checks, nodes: 0 };
    if input.reader.byte().ok()? != FORMAT && checks.makes(Check::Format) {
        return None;
    }
    let mut names = 0;
    let end = input.descend(Level::Namespaces, namespace, None, &mut |turn_taken| {
        names += 1;
        turn(turn_taken)
    })?;
    if end.tag != tag::NAMESPACE {
        return None;
    }
    let name = input.bytes(NAMESPACE_LEN_MAX, Check::NameText)?;
    let totals = input.totals()?;
    let stated = end.stated.unwrap_or(totals);
    if stated != totals && checks.makes(Check::SumsAddUp) || !end.reaches(name.len(), checks) {
        return None;
    }
    input.entries(totals)?;
    input.nodes += 2;
    let end = if name == namespace {
        let end = input.descend(Level::Entries, key, Some(totals), &mut turn)?;
        let found = input.bytes(KEY_LEN_MAX, Check::KeyLength)?;
        let value_len = input.length(VALUE_LEN_MAX, Check::ValueLength)?;
        let body = match end.tag {
            tag::LEAF => Body::Value(input.reader.take(value_len as usize).ok()?),
            tag::STUB => Body::Hash(input.reader.take(32).ok()?),
            _ => return None,
        };
        // A value that was not asked for is bloat.
        if found != key && matches!(body, Body::Value(_)) {
            return None;
        }
        let sums_add_up = end.stated == Some(Totals::entry(found.len(), value_len));
        if !sums_add_up && checks.makes(Check::SumsAddUp) || !end.reaches(found.len(), checks) {
            return None;
        }
        End::Entry { key: found, value_len, body }
    } else {
        let text = std::str::from_utf8(name);
        let legal = text.is_ok_and(|text| Namespace::new(text).is_ok());
        if !legal && checks.makes(Check::NameText) || input.reader.byte().ok()? != tag::OPAQUE {
            return None;
        }
        End::Elsewhere { tree: input.reader.take(32).ok()? }
    };
    if input.reader.left() > 0 && checks.makes(Check::Trailing)
        || input.nodes > limits.nodes && checks.makes(Check::NodesLimit)
    {
        return None;
    }
    Some(Way { names, name, totals, end })
}

/// What stands behind the inner nodes of a level.
struct Below {
    /// The kind of node.
    tag: u8,
    /// What the last of the inner nodes says is there.
    stated: Option<Totals>,
    /// Its critical bit.
    crit: Option<u16>,
}

impl Below {
    /// Whether a key of this length can part from others at the critical bit above it.
    // spec: TREE-12
    fn reaches(&self, key_len: usize, checks: impl Checks) -> bool {
        self.crit.is_none_or(|crit| usize::from(crit) <= 9 * key_len) || !checks.makes(Check::DepthWithinKey)
    }
}

impl<'p, C: Checks> Input<'p, C> {
    /// Reads the inner nodes of a level on the way of `asked`, and the kind of the node behind them.
    #[inline(always)]
    fn descend(
        &mut self,
        level: Level,
        asked: &[u8],
        stated: Option<Totals>,
        turn: &mut impl FnMut(&Turn<'p>) -> Option<()>,
    ) -> Option<Below> {
        let limit = level_limit(level);
        let mut below = Below { tag: tag::OPAQUE, stated, crit: None };
        loop {
            below.tag = self.reader.byte().ok()?;
            let side = match below.tag {
                tag::INNER_LEFT_OPAQUE => true,
                tag::INNER_RIGHT_OPAQUE => false,
                _ => return Some(below),
            };
            let crit = u16::try_from(self.reader.varint().ok()?).ok()?;
            let totals = [self.totals()?, self.totals()?];
            let hidden = self.reader.take(32).ok()?;
            let sum = self.sum(totals)?;
            let wrong = (crit == 0 || crit >= limit) && self.checks.makes(Check::CritInRange)
                || below.crit.is_some_and(|above| crit <= above) && self.checks.makes(Check::CritGrows)
                || below.stated.is_some_and(|stated| stated != sum) && self.checks.makes(Check::SumsAddUp)
                || bit(asked, crit) != side;
            if wrong {
                return None;
            }
            turn(&Turn { level, crit, totals, side, hidden })?;
            self.nodes += 2;
            below.crit = Some(crit);
            below.stated = Some(totals[usize::from(side)]);
        }
    }

    /// Nothing, unless there is an entry, and two bytes of each.
    #[inline(always)]
    fn entries(&self, Totals { count, bytes }: Totals) -> Option<()> {
        let none = count == 0 && self.checks.makes(Check::CountIsPositive);
        let short = bytes < count.saturating_mul(2) && self.checks.makes(Check::BytesCoverCount);
        (!none && !short).then_some(())
    }

    /// What two children have together.
    #[inline(always)]
    fn sum(&self, totals: [Totals; 2]) -> Option<Totals> {
        let [left, right] = totals;
        self.entries(left)?;
        self.entries(right)?;
        match left.checked_add(right) {
            Some(sum) => Some(sum),
            None if self.checks.makes(Check::SumsDoNotOverflow) => None,
            None => Some(Totals {
                count: left.count.saturating_add(right.count),
                bytes: left.bytes.saturating_add(right.bytes),
            }),
        }
    }

    #[inline(always)]
    fn totals(&mut self) -> Option<Totals> {
        Some(Totals { count: self.reader.varint().ok()?, bytes: self.reader.varint().ok()? })
    }

    fn length(&mut self, limit: usize, check: Check) -> Option<u32> {
        let found = self.reader.varint().ok()?;
        let legal = (1..=limit as u64).contains(&found);
        if legal || !self.checks.makes(check) { u32::try_from(found).ok() } else { None }
    }

    fn bytes(&mut self, limit: usize, check: Check) -> Option<&'p [u8]> {
        let len = self.length(limit, check)?;
        self.reader.take(len as usize).ok()
    }
}

/// Reads and checks the plain way of a key. None if it is no such way, or something is wrong with it.
pub(crate) fn plainly<'p, H: Hasher>(
    bytes: &'p [u8],
    root: Root,
    namespace: &Namespace,
    key: &Key,
    limits: &ProofLimits,
    checks: impl Checks,
) -> Option<Answer<&'p [u8]>> {
    // Behind the inner nodes the head of the namespace, and behind that the one of the entry.
    let mut heads = [[0; NODE_LEN / 2]; TURNS_MAX + 2];
    let mut tails = [[0; NODE_LEN / 2]; TURNS_MAX];
    let mut sides = [false; TURNS_MAX];
    let mut count = 0;
    let way = read(bytes, namespace.as_bytes(), key, limits, checks, |turn| {
        turn.put(&mut heads[count], tails.get_mut(count)?);
        sides[count] = turn.side;
        count += 1;
        Some(())
    })?;
    preimage::put_namespace_head(&mut heads[count], short_len(way.name), way.totals);
    let mut mids = [H::Mid::default(); TURNS_MAX + 2];
    let mut hash = match way.end {
        End::Elsewhere { tree } => {
            H::hash_heads(&heads[..=count], &mut mids[..=count]);
            hash_of(tree)
        }
        End::Entry { key, value_len, ref body } => {
            preimage::put_leaf_head(&mut heads[count + 1], short_len(key), value_len);
            H::hash_heads(&heads[..count + 2], &mut mids[..count + 2]);
            let value_hash = match body {
                Body::Value(value) => H::hash(value),
                Body::Hash(hash) => hash_of(hash),
            };
            H::hash_tail(&mids[count + 1], &preimage::tail(&H::hash(key), &value_hash))
        }
    };
    let climb = |hash: Hash, turns: Range<usize>, tails: &mut [Half; TURNS_MAX]| {
        turns.rev().fold(hash, |hash, at| {
            half(&mut tails[at], sides[at]).copy_from_slice(&hash.0);
            H::hash_tail(&mids[at], &tails[at])
        })
    };
    hash = climb(hash, way.names..count, &mut tails);
    hash = H::hash_tail(&mids[count], &preimage::tail(&H::hash(way.name), &H::hash(&hash.0)));
    hash = climb(hash, 0..way.names, &mut tails);
    if Root(hash) != root && checks.makes(Check::Root) {
        return None;
    }
    let turn = |at: usize| (crit_of(&heads[at]), sides[at]);
    let in_place = way.is_in_place(namespace.as_bytes(), key, turn, count);
    (in_place || !checks.makes(Check::KeyTakesTheTurns)).then(|| way.answer(key))
}

/// The critical bit in the head of an inner node.
fn crit_of(head: &[u8]) -> u16 {
    u16::from_le_bytes([head[1], head[2]])
}

/// Ways that go up side by side: enough to fill lanes to near the root, few enough to stay in a near cache.
const MANY: usize = 128;

/// Inner nodes from the root on, of each level, that are looked for among those of the other ways.
const SHARED_DEPTH: usize = 9;

/// Places to look for them.
const PLACES: usize = 512;

/// Room for ways that go up side by side.
struct SideBySide<H> {
    /// Preimages of all inner nodes, but for the hashes of the children that are shown.
    images: Vec<Preimage>,
    sides: Vec<bool>,
    /// Preimages to be hashed together, and what they hash to.
    batch: Vec<Preimage>,
    hashes: Vec<Hash>,
    /// Where in the batch of a round a preimage may stand.
    places: Vec<(u32, usize)>,
    round: u32,
    _hasher: PhantomData<H>,
}

impl<H: Hasher> SideBySide<H> {
    fn new() -> Self {
        Self {
            images: Vec::new(),
            sides: Vec::new(),
            batch: Vec::with_capacity(MANY),
            hashes: vec![Hash::ZERO; MANY],
            places: vec![(0, 0); PLACES],
            round: 0,
            _hasher: PhantomData,
        }
    }

    /// What each proof says of its key. None where it is no plain way, or something is wrong with it.
    fn check<'p>(
        &mut self,
        proofs: &[(&'p [u8], &Namespace, &Key)],
        root: Root,
        limits: &ProofLimits,
    ) -> Vec<Option<Answer<&'p [u8]>>> {
        self.images.clear();
        self.sides.clear();
        let mut ways: Vec<(usize, Way<'p>, Range<usize>)> = Vec::with_capacity(proofs.len());
        for (index, (bytes, namespace, key)) in proofs.iter().enumerate() {
            let first = self.images.len();
            let way = read(bytes, namespace.as_bytes(), key, limits, Every, |turn| {
                if self.images.len() - first == TURNS_MAX {
                    return None;
                }
                self.images.push([0; NODE_LEN]);
                let (head, tail) = self.images.last_mut()?.split_first_chunk_mut()?;
                turn.put(head, tail.first_chunk_mut()?);
                self.sides.push(turn.side);
                Some(())
            });
            match way {
                Some(way) => ways.push((index, way, first..self.images.len())),
                None => {
                    self.images.truncate(first);
                    self.sides.truncate(first);
                }
            }
        }

        let mut hashes = self.ends(&ways);
        let entries = |(_, way, turns): &(usize, Way<'p>, Range<usize>)| turns.start + way.names..turns.end;
        self.climb(&ways.iter().map(entries).collect::<Vec<_>>(), &mut hashes);
        self.namespaces(&ways, &mut hashes);
        let names = |(_, way, turns): &(usize, Way<'p>, Range<usize>)| turns.start..turns.start + way.names;
        self.climb(&ways.iter().map(names).collect::<Vec<_>>(), &mut hashes);

        let mut answers = vec![None; proofs.len()];
        for ((index, way, turns), hash) in ways.into_iter().zip(hashes) {
            let (_, namespace, key) = proofs[index];
            let turn = |at: usize| (crit_of(&self.images[turns.start + at]), self.sides[turns.start + at]);
            if Root(hash) == root && way.is_in_place(namespace.as_bytes(), key, turn, turns.len()) {
                answers[index] = Some(way.answer(key));
            }
        }
        answers
    }

    /// The hashes of what stands at the ends of ways.
    fn ends(&mut self, ways: &[(usize, Way<'_>, Range<usize>)]) -> Vec<Hash> {
        let mut inputs: Vec<&[u8]> = Vec::with_capacity(2 * ways.len());
        for (_, way, _) in ways {
            if let End::Entry { key, body, .. } = &way.end {
                inputs.push(key);
                inputs.extend(if let Body::Value(value) = body { Some(*value) } else { None });
            }
        }
        let mut hashed = vec![Hash::ZERO; inputs.len()];
        H::hash_many(&inputs, &mut hashed);

        self.batch.clear();
        let mut hashed = hashed.into_iter();
        let mut next = || hashed.next().expect("one for each input");
        for (_, way, _) in ways {
            if let End::Entry { key, value_len, body } = &way.end {
                let key_hash = next();
                let value_hash = match body {
                    Body::Value(_) => next(),
                    Body::Hash(hash) => hash_of(hash),
                };
                self.batch.push(preimage::leaf(short_len(key), *value_len, &key_hash, &value_hash));
            }
        }
        H::hash_nodes(&self.batch, &mut self.hashes[..self.batch.len()]);
        let mut leaves = self.hashes.iter();
        let end = |(_, way, _): &(usize, Way<'_>, Range<usize>)| match &way.end {
            End::Entry { .. } => *leaves.next().expect("one for each entry"),
            End::Elsewhere { tree } => hash_of(tree),
        };
        ways.iter().map(end).collect()
    }

    /// Takes every way up through its inner nodes of one level, the deepest first.
    fn climb(&mut self, ways: &[Range<usize>], hashes: &mut [Hash]) {
        let deepest = ways.iter().map(ExactSizeIterator::len).max().unwrap_or(0);
        let mut taken: Vec<(usize, usize)> = Vec::with_capacity(ways.len());
        for depth in (0..deepest).rev() {
            self.round += 1;
            self.batch.clear();
            taken.clear();
            for (index, turns) in ways.iter().enumerate().filter(|(_, turns)| turns.len() > depth) {
                let (at, side) = (turns.start + depth, self.sides[turns.start + depth]);
                let (_, tail) = self.images[at].split_at_mut(NODE_LEN / 2);
                let tail = tail.first_chunk_mut().expect("the second half");
                half(tail, side).copy_from_slice(&hashes[index].0);
                let image = &self.images[at];
                // Ways that share a node share the hashes in it, so one of them says where to look for it.
                let place = usize::from(u16::from_le_bytes([image[64], image[65]])) % PLACES;
                let (round, known) = self.places[place];
                if depth < SHARED_DEPTH && round == self.round && self.batch[known] == *image {
                    taken.push((index, known));
                    continue;
                }
                self.places[place] = (self.round, self.batch.len());
                taken.push((index, self.batch.len()));
                self.batch.push(*image);
            }
            H::hash_nodes(&self.batch, &mut self.hashes[..self.batch.len()]);
            taken.iter().for_each(|(index, at)| hashes[*index] = self.hashes[*at]);
        }
    }

    /// Takes every way from the root of its namespace to the namespace's node in the state level.
    fn namespaces(&mut self, ways: &[(usize, Way<'_>, Range<usize>)], hashes: &mut [Hash]) {
        let mut known: Option<(&[u8], Totals, Hash, Hash)> = None;
        for ((_, way, _), hash) in ways.iter().zip(hashes) {
            *hash = match known {
                Some((name, totals, root, node)) if (name, totals, root) == (way.name, way.totals, *hash) => node,
                _ => {
                    let hashed = [H::hash(way.name), H::hash(&hash.0)];
                    let node = preimage::namespace(short_len(way.name), way.totals, &hashed[0], &hashed[1]);
                    let node = H::hash_node(&node);
                    known = Some((way.name, way.totals, *hash, node));
                    node
                }
            };
        }
    }
}

/// 32 bytes of a proof as the hash they are.
fn hash_of(bytes: &[u8]) -> Hash {
    Hash(bytes.try_into().expect("a hash was read as 32 bytes"))
}
