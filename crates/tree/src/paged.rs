//! The paged tree as provers see it: node by node, whatever page a node is in.
//!
//! A node of a page is named by its page and its place there, so opening it reads nothing. Only at the edge of a page
//! is another one loaded, and proven by its hash as every page is.

use crate::arena::expected;
use crate::page::{Page, SLOTS_MAX, Slot, Spot};
use crate::proof::Writer;
use crate::state::StateSpot;
use crate::tree::{Tree, entry};
use crate::{Branch, Hasher, Opened, Proof, Query, ReadError, Walk, bits, prove};
use keelstone_codec::{Namespace, Value};
use std::borrow::Cow;
use std::sync::Arc;

/// A node of a [`Tree`]. It keeps its page in memory.
#[derive(Clone, Debug)]
pub struct PagedNode(At);

#[derive(Clone, Debug)]
enum At {
    /// A node of the state level.
    State(StateSpot),
    /// The top of a namespace, by its index.
    Top(usize),
    /// A node of a page.
    Page(Arc<Page>, Spot),
}

impl<H: Hasher> Tree<H> {
    /// A proof of what `queries` ask of this version.
    ///
    /// # Errors
    /// [`ReadError`] if a page or value could not be read.
    pub fn prove(&self, queries: &[Query]) -> Result<Proof, ReadError> {
        prove::of_bytes(&self.prove_bytes(queries)?)
    }

    /// As [`Tree::prove`], but only the bytes: for those who send a proof and have no questions to it.
    ///
    /// # Errors
    /// As [`Tree::prove`].
    pub fn prove_bytes(&self, queries: &[Query]) -> Result<Vec<u8>, ReadError> {
        match queries {
            [Query::Key(namespace, key)] => self.prove_way(namespace, key, true),
            [Query::Write(namespace, key)] => self.prove_way(namespace, key, false),
            _ => prove::prove_bytes(self, queries),
        }
    }

    /// The proof for one key, which is the most asked of questions: its way, and at its end what stands there. It is
    /// written as the pages are walked.
    fn prove_way(&self, namespace: &Namespace, key: &[u8], with_value: bool) -> Result<Vec<u8>, ReadError> {
        let mut out = Writer::new();
        let state = self.state();
        let Some(mut spot) = state.top else {
            out.empty();
            return Ok(out.finish());
        };
        let space = loop {
            let node = match spot {
                StateSpot::Inner(node) => node,
                StateSpot::Space(space) => break &self.spaces()[space],
            };
            let (crit, children) = (state.crits[node], state.children[node]);
            let side = bits::bit(namespace.as_bytes(), crit);
            let nodes = children.map(|child| state.at(self.spaces(), child));
            out.one_sided(crit, nodes.map(|node| node.totals), side, &nodes[usize::from(!side)].hash);
            spot = children[usize::from(side)];
        };
        out.namespace(space.name.as_bytes(), space.totals);
        if space.name != *namespace {
            out.opaque(&space.hash);
            return Ok(out.finish());
        }
        let mut page = self.load_root(space)?;
        let mut turns = Vec::with_capacity(SLOTS_MAX);
        loop {
            let shape = &page.shape;
            let mut spot = shape.root();
            // First everything is fetched, then it is written: so the waits for a page's many parts fall together.
            turns.clear();
            let slot = loop {
                let node = match spot {
                    Spot::Node(node) => node,
                    Spot::Slot(slot) => break slot,
                };
                let (crit, children) = (shape.crits()[node], shape.children(node));
                let side = bits::bit(key, crit);
                let hidden = page.at(children[usize::from(!side)]).hash;
                turns.push((crit, children.map(|child| page.totals_at(child)), side, hidden));
                spot = children[usize::from(side)];
            };
            for (crit, totals, side, hidden) in &turns {
                out.one_sided(*crit, *totals, *side, hidden);
            }
            let (found, end) = (page.slot(slot), shape.key(slot));
            let below = match expected(found, end) {
                Some((id, expected)) => self.pages().load(id, &expected)?,
                None => {
                    let entry = entry(found).expect("it is no page");
                    if with_value && end == key {
                        out.leaf(end, &Tree::value(self, &entry)?);
                    } else {
                        out.stub(end, entry.value_len, &entry.value_hash);
                    }
                    return Ok(out.finish());
                }
            };
            page = below;
        }
    }

    fn state_branch(&self, spot: StateSpot) -> Branch<PagedNode> {
        let node = self.state().at(self.spaces(), spot);
        Branch { node: PagedNode(At::State(spot)), hash: node.hash, totals: node.totals }
    }

    /// The page a node is in, and its place there: for the edge of a page, the top of the page below.
    fn locate(&self, at: &At) -> Result<(Arc<Page>, Spot), ReadError> {
        let page = match at {
            At::Page(page, Spot::Slot(slot)) => match expected(page.slot(*slot), page.shape.key(*slot)) {
                Some((id, expected)) => self.pages().load(id, &expected)?,
                None => return Ok((page.clone(), Spot::Slot(*slot))),
            },
            At::Page(page, spot) => return Ok((page.clone(), *spot)),
            At::Top(space) => self.load_root(&self.spaces()[*space])?,
            At::State(_) => panic!("a node of the state level is in no page"),
        };
        let root = page.shape.root();
        Ok((page, root))
    }
}

fn branch(page: &Arc<Page>, spot: Spot) -> Branch<PagedNode> {
    let node = page.at(spot);
    Branch { node: PagedNode(At::Page(page.clone(), spot)), hash: node.hash, totals: node.totals }
}

impl<H: Hasher> Walk for Tree<H> {
    type Node = PagedNode;

    fn top(&self) -> Result<Option<Branch<PagedNode>>, ReadError> {
        Ok(self.state().top.map(|spot| self.state_branch(spot)))
    }

    fn open<'n>(&'n self, node: &'n PagedNode) -> Result<Opened<'n, PagedNode>, ReadError> {
        match &node.0 {
            At::State(StateSpot::Inner(inner)) => {
                let [left, right] = self.state().children[*inner].map(|spot| self.state_branch(spot));
                return Ok(Opened::Inner { crit: self.state().crits[*inner], left, right });
            }
            At::State(StateSpot::Space(index)) => {
                let space = &self.spaces()[*index];
                let tree = Branch { node: PagedNode(At::Top(*index)), hash: space.hash, totals: space.totals };
                return Ok(Opened::Namespace { name: Cow::Borrowed(&space.name), tree });
            }
            At::Page(page, Spot::Slot(slot)) => {
                if let Slot::Entry { value_hash, value_len, .. } = *page.slot(*slot) {
                    return Ok(Opened::Entry { key: Cow::Borrowed(page.shape.key(*slot)), value_len, value_hash });
                }
            }
            At::Page(_, Spot::Node(_)) | At::Top(_) => {}
        }
        let (page, spot) = self.locate(&node.0)?;
        match spot {
            Spot::Node(inner) => {
                let [left, right] = page.shape.children(inner).map(|spot| branch(&page, spot));
                Ok(Opened::Inner { crit: page.shape.crits()[inner], left, right })
            }
            // A page of one entry, which only a namespace of one entry has.
            Spot::Slot(slot) => match *page.slot(slot) {
                Slot::Entry { value_hash, value_len, .. } => {
                    Ok(Opened::Entry { key: Cow::Owned(page.shape.key(slot).to_vec()), value_len, value_hash })
                }
                Slot::Child { .. } => Err(ReadError::damaged("a page that holds nothing but another page")),
            },
        }
    }

    fn value(&self, node: &PagedNode) -> Result<Value, ReadError> {
        let (page, spot) = self.locate(&node.0)?;
        match spot {
            Spot::Slot(slot) => {
                let entry = entry(page.slot(slot));
                Tree::value(self, &entry.ok_or_else(|| ReadError::damaged("a page where an entry was"))?)
            }
            Spot::Node(_) => panic!("only entries have values"),
        }
    }
}
