//! The bytes of a page of the skeleton.
//!
//! ```text
//! page     [count varint, bytes varint: of the whole state, in page 0 only] node..
//! node     of the state level: 00 inner | 01 namespace; of entries: inner
//! inner    critical bit u16, count varint and bytes varint of the left child, left hash, right hash
//! namespace  name, hash of the root of its entries
//! ```
//!
//! Everything else follows: the right child's totals from the parent's, the number of nodes from W and from what is
//! still to be opened. Layout: `spec/snapshot.md`, SNAP-5.

use super::cut::{Child, Cut, Node, Shape};
use keelstone_codec::{Decode, DecodeError, Encode, Hash, Namespace, Reader, Tag, TaggedHasher, put_varint};
use keelstone_tree::{Level, Totals};

const INNER: u8 = 0;
const NAMESPACE: u8 = 1;

/// The bytes of a page of a whole skeleton.
pub(super) fn encode(cut: &Cut, index: usize) -> Vec<u8> {
    let mut out = Vec::new();
    if index == 0 {
        put_totals(&mut out, cut.totals);
    }
    for node in &cut.nodes()[cut.page(index)] {
        put_node(&mut out, node);
    }
    out
}

fn put_node(out: &mut Vec<u8>, node: &Node) {
    match &node.shape {
        Shape::Inner { crit, children: [left, right] } => {
            if matches!(node.level, Level::Namespaces) {
                out.push(INNER);
            }
            crit.encode(out);
            put_totals(out, left.totals);
            left.hash.encode(out);
            right.hash.encode(out);
        }
        Shape::Namespace { name, tree } => {
            out.push(NAMESPACE);
            name.encode(out);
            tree.hash.encode(out);
        }
    }
}

fn put_totals(out: &mut Vec<u8>, totals: Totals) {
    put_varint(out, totals.count);
    put_varint(out, totals.bytes);
}

/// Reads totals as they stand in a page.
pub(super) fn totals(input: &mut Reader<'_>) -> Result<Totals, DecodeError> {
    Ok(Totals { count: input.varint()?, bytes: input.varint()? })
}

/// Reads a node whose parent says `totals` of it.
pub(super) fn node(input: &mut Reader<'_>, level: Level, totals: Totals) -> Result<Shape, DecodeError> {
    let tag = match level {
        Level::Entries => INNER,
        Level::Namespaces => input.byte()?,
    };
    match tag {
        INNER => {
            let (crit, left) = (u16::decode(input)?, self::totals(input)?);
            let rest = (totals.count.checked_sub(left.count), totals.bytes.checked_sub(left.bytes));
            let (Some(count), Some(bytes)) = rest else {
                return Err(DecodeError::Invalid { what: "totals of a left child: they are above its parent's" });
            };
            let right = Totals { count, bytes };
            let [left, right] = [left, right].map(|totals| Child { hash: Hash::ZERO, totals });
            let hashes = [Hash::decode(input)?, Hash::decode(input)?];
            let children = [Child { hash: hashes[0], ..left }, Child { hash: hashes[1], ..right }];
            Ok(Shape::Inner { crit, children })
        }
        NAMESPACE => {
            let (name, hash) = (Namespace::decode(input)?, Hash::decode(input)?);
            Ok(Shape::Namespace { name, tree: Child { hash, totals } })
        }
        found => Err(DecodeError::UnknownTag { what: "node of a skeleton", found: u64::from(found) }),
    }
}

const PAGE: Tag = Tag::new("snapshot-page");

/// The name of a page (spec: SNAP-4).
pub(super) fn name(raw: &[u8]) -> Hash {
    TaggedHasher::new(PAGE).update(raw).finish()
}
