//! Opening the nodes of a [`Tree`] one by one, for provers.

use crate::arena::expected;
use crate::page::{Node, Page, Slot, Spot};
use crate::state::StateSpot;
use crate::tree::entry;
use crate::{Branch, Entry, Hasher, Opened, ReadError, Tree, Walk};
use keelstone_codec::Value;
use std::borrow::Cow;
use std::sync::Arc;

/// A node of a [`Tree`]. It keeps its page in memory.
#[derive(Clone, Debug)]
pub struct TreeNode(At);

#[derive(Clone, Debug)]
enum At {
    State(StateSpot),
    /// The namespace root of the namespace with this index.
    Top(usize),
    /// A spot of a page; a slot that is a page below stands for that page's root.
    Page(Arc<Page>, Spot),
}

impl<H: Hasher> Tree<H> {
    /// The page and spot of a node, reading the page if the node is in the one below.
    fn resolve(&self, at: &At) -> Result<(Arc<Page>, Spot), ReadError> {
        let page = match at {
            At::State(_) => return Err(ReadError::damaged("a node of the state tree is in no page")),
            At::Top(space) => self.load_root(&self.spaces()[*space])?,
            At::Page(page, spot) => {
                let below = match *spot {
                    Spot::Slot(slot) => expected(&page.slots()[slot], page.shape.key(slot)),
                    Spot::Node(_) => None,
                };
                match below {
                    None => return Ok((page.clone(), *spot)),
                    Some((id, expected)) => self.pages().load(id, &expected)?,
                }
            }
        };
        let root = page.shape.root();
        Ok((page, root))
    }

    fn state_branch(&self, spot: StateSpot) -> Branch<TreeNode> {
        let Node { hash, totals } = self.state().at(self.spaces(), spot);
        Branch { node: TreeNode(At::State(spot)), hash, totals }
    }
}

impl<H: Hasher> Walk for Tree<H> {
    type Node = TreeNode;

    fn top(&self) -> Result<Option<Branch<TreeNode>>, ReadError> {
        Ok(self.state().top.map(|top| self.state_branch(top)))
    }

    fn open<'n>(&'n self, node: &'n TreeNode) -> Result<Opened<'n, TreeNode>, ReadError> {
        match &node.0 {
            At::State(StateSpot::Space(index)) => {
                let space = &self.spaces()[*index];
                let tree = Branch { node: TreeNode(At::Top(*index)), hash: space.hash, totals: space.totals };
                Ok(Opened::Namespace { name: Cow::Borrowed(&space.name), tree })
            }
            At::State(StateSpot::Inner(inner)) => {
                let [left, right] = self.state().children[*inner].map(|spot| self.state_branch(spot));
                Ok(Opened::Inner { crit: self.state().crits[*inner], left, right })
            }
            at => match self.resolve(at)? {
                (page, Spot::Node(inner)) => {
                    let [left, right] = page.shape.children(inner).map(|spot| {
                        let Node { hash, totals } = page.at(spot);
                        Branch { node: TreeNode(At::Page(page.clone(), spot)), hash, totals }
                    });
                    Ok(Opened::Inner { crit: page.shape.crits()[inner], left, right })
                }
                (page, Spot::Slot(slot)) => {
                    let Slot::Entry { value_len, value_hash, .. } = page.slots()[slot] else {
                        return Err(ReadError::damaged("a page whose root is another page"));
                    };
                    let key = Cow::Owned(page.shape.key(slot).to_vec());
                    Ok(Opened::Entry { key, value_len, value_hash })
                }
            },
        }
    }

    fn value(&self, node: &TreeNode) -> Result<Value, ReadError> {
        let found: Option<Entry> = match self.resolve(&node.0)? {
            (page, Spot::Slot(slot)) => entry(&page.slots()[slot]),
            (_, Spot::Node(_)) => None,
        };
        Tree::value(self, &found.expect("only entries have a value"))
    }
}
