//! Making proofs: which nodes of a tree are opened for a set of questions, and in which order they are written.
//!
//! The rule, which the verifier holds a prover to (spec: TREE-7): a node is opened if the keys it may hold, as far as
//! its parent tells, meet a range that is asked for. Where an opened inner node has no such child, keys part from the
//! range above it, and one leaf must show that: the one on the way of the first bound that led here.
//!
//! One range takes work linear in what is written. Where another range takes over, its way is walked anew, so that many
//! ranges take no more than proving each alone. Nothing recurses: depth is the adversary's to choose.

use crate::bits::bit;
use crate::proof::{Opaque, Proof, Writer};
use crate::query::{EntryNeeds, Needs, Region, Span, meeting};
use crate::{Branch, Opened, ProofLimits, Query, ReadError, Totals, Walk};
use keelstone_codec::{Hash, Namespace};

/// Makes the proof that answers `queries` about the state `tree` shows.
///
/// # Errors
/// [`ReadError`] if a node or value could not be read; [`ReadError::Damaged`] if the tree makes no sense.
pub fn prove<W: Walk>(tree: &W, queries: &[Query]) -> Result<Proof, ReadError> {
    of_bytes(&prove_bytes(tree, queries)?)
}

/// A proof of our own making, read back.
pub(crate) fn of_bytes(bytes: &[u8]) -> Result<Proof, ReadError> {
    // As large as the prover wants: the limits are the verifier's.
    let limits = ProofLimits { bytes: usize::MAX, nodes: usize::MAX };
    Proof::decode_within(bytes, &limits).map_err(|error| ReadError::damaged(format!("tree gives no proof: {error}")))
}

/// As [`prove`], but only the bytes: for those who send a proof and have no questions to it.
///
/// # Errors
/// As [`prove`].
pub fn prove_bytes<W: Walk>(tree: &W, queries: &[Query]) -> Result<Vec<u8>, ReadError> {
    let needs = Needs::of(queries);
    let mut prover = Prover { tree, needs: &needs, out: Writer::new(), tasks: Vec::new() };
    match tree.top()? {
        None => prover.out.empty(),
        Some(top) if needs.names.as_slice().is_empty() => prover.out.opaque(&top.hash),
        Some(top) => {
            prover.tasks.push(Task::Top { branch: top, spans: needs.names.as_slice(), entries: None });
            prover.run()?;
        }
    }
    Ok(prover.out.finish())
}

struct Prover<'t, W: Walk> {
    tree: &'t W,
    needs: &'t Needs<'t>,
    out: Writer,
    tasks: Vec<Task<'t, W::Node>>,
}

/// A part of the tree still to be written.
enum Task<'t, N> {
    /// A subtree that meets `spans`.
    Top { branch: Branch<N>, spans: &'t [Span<'t>], entries: Option<&'t EntryNeeds<'t>> },
    /// The rest of a way, from its inner node `from` on.
    Along { way: Way<N>, from: usize, spans: &'t [Span<'t>], entries: Option<&'t EntryNeeds<'t>> },
}

/// The way of a key from some node down to the leaf where it ends.
pub(crate) struct Way<N> {
    pub(crate) inners: Vec<Turn<N>>,
    pub(crate) end: End<N>,
}

/// An inner node on a way.
pub(crate) struct Turn<N> {
    pub(crate) crit: u16,
    pub(crate) side: bool,
    pub(crate) children: [Branch<N>; 2],
}

impl<N> Turn<N> {
    fn totals(&self) -> [Totals; 2] {
        [self.children[0].totals, self.children[1].totals]
    }

    /// The child the way does not take.
    pub(crate) fn sibling(&self) -> &Branch<N> {
        &self.children[usize::from(!self.side)]
    }
}

/// The leaf at the end of a way.
pub(crate) enum End<N> {
    Entry { node: N, key: Vec<u8>, value_len: u32, value_hash: Hash },
    Namespace { name: Namespace, tree: Branch<N> },
}

impl<N> End<N> {
    pub(crate) fn key(&self) -> &[u8] {
        match self {
            Self::Entry { key, .. } => key,
            Self::Namespace { name, .. } => name.as_bytes(),
        }
    }
}

/// Walks down from `node`, taking at every inner node the side that `choose` says.
pub(crate) fn descend<W: Walk>(
    tree: &W,
    mut node: W::Node,
    choose: impl Fn(u16) -> bool,
) -> Result<Way<W::Node>, ReadError> {
    let mut inners: Vec<Turn<W::Node>> = Vec::with_capacity(24);
    loop {
        let end = match tree.open(&node)? {
            Opened::Inner { crit, left, right } => {
                // Critical bits grow on every way down, so the walk ends even over damaged pages.
                if inners.last().is_some_and(|above| above.crit >= crit) {
                    return Err(ReadError::damaged(format!("critical bit {crit} does not grow on the way down")));
                }
                let side = choose(crit);
                inners.push(Turn { crit, side, children: [left, right] });
                None
            }
            Opened::Entry { key, value_len, value_hash } => Some((key.into_owned(), value_len, value_hash)),
            Opened::Namespace { name, tree } => {
                return Ok(Way { inners, end: End::Namespace { name: name.into_owned(), tree } });
            }
        };
        match end {
            Some((key, value_len, value_hash)) => {
                return Ok(Way { inners, end: End::Entry { node, key, value_len, value_hash } });
            }
            None => {
                let turn = inners.last().expect("pushed above");
                node = turn.children[usize::from(turn.side)].node.clone();
            }
        }
    }
}

impl<'t, W: Walk> Prover<'t, W> {
    fn run(&mut self) -> Result<(), ReadError> {
        while let Some(task) = self.tasks.pop() {
            match task {
                Task::Top { branch, spans, entries } => {
                    let start = spans[0].start();
                    let way = descend(self.tree, branch.node, |crit| bit(start, crit))?;
                    self.along(way, 0, spans, entries)?;
                }
                Task::Along { way, from, spans, entries } => self.along(way, from, spans, entries)?,
            }
        }
        Ok(())
    }

    /// Writes a way from its inner node `from` on, as far as `spans` call for it, and leaves what hangs off it as tasks.
    fn along(
        &mut self,
        way: Way<W::Node>,
        from: usize,
        mut spans: &'t [Span<'t>],
        entries: Option<&'t EntryNeeds<'t>>,
    ) -> Result<(), ReadError> {
        for at in from..way.inners.len() {
            let turn = &way.inners[at];
            let sample = way.end.key();
            let region = Region { sample, crit: turn.crit, side: turn.side };
            let here = meeting(spans, &region);
            let there = meeting(spans, &Region { side: !turn.side, ..region });
            let sibling = turn.sibling();
            match (here, there) {
                // The range is elsewhere, and this way's leaf is to show it.
                ([], []) => {
                    for turn in &way.inners[at..] {
                        self.one_sided(turn, turn.side);
                    }
                    break;
                }
                ([], there) => {
                    self.one_sided(turn, !turn.side);
                    self.tasks.push(Task::Top { branch: sibling.clone(), spans: there, entries });
                    return Ok(());
                }
                (_, []) => self.one_sided(turn, turn.side),
                (_, there) => {
                    self.out.inner(turn.crit, turn.totals(), Opaque::Neither);
                    let sibling = Task::Top { branch: sibling.clone(), spans: there, entries };
                    if turn.side {
                        // What is left of the way is written first.
                        let rest = self.rest(way, at, spans, here, entries);
                        self.tasks.extend([rest, sibling]);
                        return Ok(());
                    }
                    self.tasks.push(sibling);
                }
            }
            // Another span is now the first, and the way to follow is that of its start.
            if !std::ptr::eq(&raw const here[0], &raw const spans[0]) {
                let rest = self.rest(way, at, spans, here, entries);
                self.tasks.push(rest);
                return Ok(());
            }
            spans = here;
        }
        self.leaf(way.end, entries)
    }

    /// The child of `way.inners[at]` that the way takes, to be written later.
    fn rest(
        &self,
        way: Way<W::Node>,
        at: usize,
        before: &'t [Span<'t>],
        spans: &'t [Span<'t>],
        entries: Option<&'t EntryNeeds<'t>>,
    ) -> Task<'t, W::Node> {
        if std::ptr::eq(&raw const spans[0], &raw const before[0]) {
            Task::Along { way, from: at + 1, spans, entries }
        } else {
            let turn = &way.inners[at];
            Task::Top { branch: turn.children[usize::from(turn.side)].clone(), spans, entries }
        }
    }

    /// Writes an inner node of which only one child is shown.
    fn one_sided(&mut self, turn: &Turn<W::Node>, shown: bool) {
        self.out.one_sided(turn.crit, turn.totals(), shown, &turn.children[usize::from(!shown)].hash);
    }

    fn leaf(&mut self, end: End<W::Node>, entries: Option<&'t EntryNeeds<'t>>) -> Result<(), ReadError> {
        match end {
            End::Entry { node, key, value_len, value_hash } => {
                if entries.is_some_and(|needs| needs.values.contains(&key)) {
                    self.out.leaf(&key, &self.tree.value(&node)?);
                } else {
                    self.out.stub(&key, value_len, &value_hash);
                }
            }
            End::Namespace { name, tree } => {
                self.out.namespace(name.as_bytes(), tree.totals);
                match self.needs.entries(name.as_bytes()) {
                    None => self.out.opaque(&tree.hash),
                    Some(entries) => {
                        let spans = entries.seen.as_slice();
                        self.tasks.push(Task::Top { branch: tree, spans, entries: Some(entries) });
                    }
                }
            }
        }
        Ok(())
    }
}
