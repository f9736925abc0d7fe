//! Proofs in the form other chains check: ICS-23, at both levels.
//!
//! An entry is proven by two proofs, lowest first: of the entry under its namespace's root, and of that root, as the
//! value of the namespace's name, under the state root. The absence of a key is the same with a proof of the key's two
//! neighbours; the absence of a whole namespace is one such proof at the state level. The empty state has nothing to
//! show an absence with and converts to an error (spec: TREE-13).
//!
//! Checking leaves the hashing to the `ics23` crate and adds what that crate does not ask: depth before anything else
//! (it looks at no depth when the least is 0), and that every step is a node of this tree and of this place. Proofs
//! come from an adversary; the crate's own neighbour check can panic on some, which are refused before they reach it.
//!
//! Rules: `spec/tree.md`, TREE-12, TREE-13. Vectors: `spec/vectors/proof.json`.

use crate::bits::bit;
use crate::preimage::{self, Level};
use crate::proof::{Proof, Shape};
use crate::verify::{Answer, Verified};
use crate::{HashKind, Hasher, ProofError, ProofLimits, Query, ReadError, Walk, prove, witness};
use ::ics23::commitment_proof::Proof as Kind;
use ::ics23::{
    CommitmentProof, ExistenceProof, HashOp, HostFunctionsManager, InnerOp, InnerSpec, LeafOp, LengthOp,
    NonExistenceProof, ProofSpec,
};
use keelstone_codec::{KEY_LEN_MAX, Key, NAMESPACE_LEN_MAX, Namespace, Root};

/// Length of a preimage's head, behind which its two hashes stand (spec: TREE-4).
const HEAD_LEN: usize = 64;

/// What a verifier of this tree's proofs must hold fixed (spec: TREE-13).
#[must_use]
pub fn spec(kind: HashKind, level: Level) -> ProofSpec {
    let hash = hash_op(kind);
    ProofSpec {
        leaf_spec: Some(LeafOp {
            hash,
            prehash_key: hash,
            prehash_value: hash,
            length: LengthOp::NoPrefix.into(),
            prefix: vec![leaf_tag(level)],
        }),
        inner_spec: Some(InnerSpec {
            child_order: vec![0, 1],
            child_size: 32,
            min_prefix_length: 64,
            max_prefix_length: 64,
            empty_child: vec![],
            hash,
        }),
        max_depth: i32::try_from(depth_max(level)).expect("at most 2,295"),
        min_depth: 0,
        prehash_key_before_comparison: false,
    }
}

fn hash_op(kind: HashKind) -> i32 {
    match kind {
        HashKind::Blake3 => HashOp::Blake3.into(),
        HashKind::Sha256 => HashOp::Sha256.into(),
    }
}

fn leaf_tag(level: Level) -> u8 {
    match level {
        Level::Entries => 1,
        Level::Namespaces => 3,
    }
}

fn inner_tag(level: Level) -> u8 {
    match level {
        Level::Entries => 2,
        Level::Namespaces => 4,
    }
}

/// No path is longer (spec: TREE-12).
fn depth_max(level: Level) -> usize {
    9 * match level {
        Level::Entries => KEY_LEN_MAX,
        Level::Namespaces => NAMESPACE_LEN_MAX,
    }
}

/// A presence or an absence in the state, as proofs other chains can check: one a level, the lowest first.
#[derive(Clone, Debug, PartialEq)]
pub struct Ics23Proof {
    /// The entry's and the namespace's; or the absent namespace's alone.
    pub proofs: Vec<CommitmentProof>,
}

/// Why there is no ICS-23 proof.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The state has no entry at all, so there is no neighbour to show an absence with.
    #[error("ICS-23 cannot prove an absence from the empty state")]
    EmptyState,
    /// The proof at hand does not show the key or its neighbours, values included. [`prove_ics23`] asks for them.
    #[error("the proof does not show {}, or the neighbours of its place, with their values", key.escape_ascii())]
    Incomplete {
        /// The key, or the name.
        key: Vec<u8>,
    },
    /// The tree could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The tree gives no proof of its own root.
    #[error("the tree at hand is inconsistent: {0}")]
    Inconsistent(#[from] ProofError),
}

/// Why an ICS-23 proof is refused. Whoever made it has to act.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RefuseError {
    /// Not the number of proofs, or not the kind, that the question takes.
    #[error("{what}")]
    Form {
        /// The rule.
        what: &'static str,
    },
    /// Deeper than a tree can be above these keys (spec: TREE-12). Nothing was hashed.
    #[error("a path of {found} steps, the limit is {limit}")]
    TooDeep {
        /// Steps.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// A step or leaf that is no node of this tree, or of another place.
    #[error("{what}, at step {step} from the leaf")]
    Step {
        /// The rule.
        what: &'static str,
        /// Which.
        step: usize,
    },
    /// The `ics23` crate says no: another key, another value, another root, not neighbours.
    #[error("the proof does not hold: {what}")]
    Refused {
        /// What was asked.
        what: &'static str,
    },
}

/// Makes the ICS-23 proof of what `tree` holds under a key: its value, or its absence.
///
/// # Errors
/// [`ConvertError::EmptyState`], or [`ConvertError::Read`] if the tree could not be read.
pub fn prove_ics23<H: Hasher, W: Walk>(tree: &W, namespace: &Namespace, key: &Key) -> Result<Ics23Proof, ConvertError> {
    let Some(top) = tree.top()? else { return Err(ConvertError::EmptyState) };
    let mut queries = vec![Query::Key(namespace.clone(), key.clone())];
    let names = neighbours(tree, top.node, namespace.as_bytes())?;
    match names {
        Around::Here(entries) => {
            let around = neighbours(tree, entries.expect("a namespace has entries"), key)?;
            if let Around::Between(keys) = around {
                for key in keys.into_iter().flatten() {
                    let key = Key::new(key).map_err(|error| ReadError::damaged(error.to_string()))?;
                    queries.push(Query::Key(namespace.clone(), key));
                }
            }
        }
        Around::Between(names) => {
            for name in names.into_iter().flatten() {
                let name = String::from_utf8(name).map_err(|error| ReadError::damaged(error.to_string()))?;
                let name = Namespace::new(&name).map_err(|error| ReadError::damaged(error.to_string()))?;
                queries.push(Query::Namespace(name));
            }
        }
    }
    let limits = ProofLimits { bytes: usize::MAX, nodes: usize::MAX };
    let verified = prove(tree, &queries)?.verify_unasked::<H>(Root(top.hash), &limits)?;
    convert(&verified, namespace, key)
}

/// What stands at a key's place in one tree.
enum Around<N> {
    /// The key; for a name, with the top of its entries.
    Here(Option<N>),
    /// Its neighbours to the left and right.
    Between([Option<Vec<u8>>; 2]),
}

fn neighbours<W: Walk>(tree: &W, top: W::Node, key: &[u8]) -> Result<Around<W::Node>, ReadError> {
    use crate::bits::crit;
    use crate::prove::{End, descend};
    let way = descend(tree, top.clone(), |at| bit(key, at))?;
    let Some(parts) = crit(key, way.end.key()) else {
        return Ok(Around::Here(match way.end {
            End::Namespace { tree, .. } => Some(tree.node),
            End::Entry { .. } => None,
        }));
    };
    // All keys below the first node that splits behind that bit agree up to it: the key stands beside all of them.
    let below = way.inners.iter().position(|turn| turn.crit > parts).unwrap_or(way.inners.len());
    let after = bit(key, parts);
    let outermost = |from: Option<W::Node>, side: bool| -> Result<Option<Vec<u8>>, ReadError> {
        from.map(|node| Ok(descend(tree, node, |_| side)?.end.key().to_vec())).transpose()
    };
    let beside = match below.checked_sub(1).map(|above| &way.inners[above]) {
        Some(turn) => turn.children[usize::from(turn.side)].node.clone(),
        None => top,
    };
    let near = outermost(Some(beside), after)?;
    // The neighbour on the other side hangs off the last turn away from it.
    let turn = way.inners[..below].iter().rev().find(|turn| turn.side != after);
    let far = outermost(turn.map(|turn| turn.sibling().node.clone()), !after)?;
    Ok(Around::Between(if after { [near, far] } else { [far, near] }))
}

/// Turns a verified proof into an ICS-23 proof of a key's value, or of its absence.
///
/// # Errors
/// [`ConvertError::EmptyState`]; [`ConvertError::Incomplete`] if the proof does not show all that ICS-23 needs: values
/// of both neighbours, where the tree's own proofs need one leaf and no value.
pub fn convert<H: Hasher>(
    verified: &Verified<H>,
    namespace: &Namespace,
    key: &Key,
) -> Result<Ics23Proof, ConvertError> {
    let proof = &verified.proof;
    if matches!(proof.nodes[0].shape, Shape::Empty) {
        return Err(ConvertError::EmptyState);
    }
    let name = convert_one::<H>(proof, 0, Level::Namespaces, namespace.as_bytes())?;
    let mut proofs = Vec::with_capacity(2);
    if let Answer::Present(tree) = verified.find_tree(namespace) {
        proofs.push(convert_one::<H>(proof, tree, Level::Entries, key)?);
    }
    proofs.push(name);
    Ok(Ics23Proof { proofs })
}

fn convert_one<H: Hasher>(proof: &Proof, top: u32, level: Level, key: &[u8]) -> Result<CommitmentProof, ConvertError> {
    let incomplete = || ConvertError::Incomplete { key: key.to_vec() };
    let (before, after) = witness::around(proof, top, key);
    let exists = |leaf: &[u8]| existence::<H>(proof, top, level, leaf).ok_or_else(incomplete);
    let kind = match (before, after) {
        (_, witness::Beside::Leaf(found)) if found == key => Kind::Exist(exists(found)?),
        // A part that is not shown stands at the key's place, or beside it.
        (witness::Beside::Unseen, _) | (_, witness::Beside::Unseen) => return Err(incomplete()),
        (before, after) => {
            let side = |beside| match beside {
                witness::Beside::Leaf(found) => exists(found).map(Some),
                witness::Beside::Nothing | witness::Beside::Unseen => Ok(None),
            };
            Kind::Nonexist(NonExistenceProof { key: key.to_vec(), left: side(before)?, right: side(after)? })
        }
    };
    Ok(CommitmentProof { proof: Some(kind) })
}

/// The path from a shown leaf to the top of its tree; none if its value is not shown.
fn existence<H: Hasher>(proof: &Proof, top: u32, level: Level, key: &[u8]) -> Option<ExistenceProof> {
    let hash = hash_op(H::KIND);
    let mut path = Vec::new();
    let mut at = top;
    let (value, head) = loop {
        let node = &proof.nodes[at as usize];
        match node.shape {
            Shape::Inner { crit, left, right, .. } => {
                let [l, r] = [left, right].map(|child| &proof.nodes[child as usize]);
                let image = preimage::inner(level, crit, [l.totals, r.totals], [&l.hash, &r.hash]);
                let side = bit(key, crit);
                path.push(if side {
                    InnerOp { hash, prefix: image[..HEAD_LEN + 32].to_vec(), suffix: vec![] }
                } else {
                    InnerOp { hash, prefix: image[..HEAD_LEN].to_vec(), suffix: image[HEAD_LEN + 32..].to_vec() }
                });
                at = if side { right } else { left };
            }
            Shape::Entry { body, shown: true, value_len, .. } => {
                let value = proof.slice(body).to_vec();
                break (value, entry_head(key.len(), value_len as usize));
            }
            Shape::Namespace { tree, .. } => {
                let tree = &proof.nodes[tree as usize];
                let zero = keelstone_codec::Hash::ZERO;
                let head = preimage::namespace(short(key.len()), tree.totals, &zero, &zero);
                break (tree.hash.0.to_vec(), head[..HEAD_LEN].to_vec());
            }
            Shape::Entry { .. } | Shape::Opaque | Shape::Empty => return None,
        }
    };
    path.reverse();
    let leaf = LeafOp { hash, prehash_key: hash, prehash_value: hash, length: LengthOp::NoPrefix.into(), prefix: head };
    Some(ExistenceProof { key: key.to_vec(), value, leaf: Some(leaf), path })
}

fn entry_head(key_len: usize, value_len: usize) -> Vec<u8> {
    let zero = keelstone_codec::Hash::ZERO;
    let value_len = u32::try_from(value_len).unwrap_or(u32::MAX);
    preimage::leaf(short(key_len), value_len, &zero, &zero)[..HEAD_LEN].to_vec()
}

fn short(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

/// Checks that a key holds a value in the state under `root`.
///
/// # Errors
/// [`RefuseError`].
pub fn verify_present<H: Hasher>(
    proof: &Ics23Proof,
    root: Root,
    namespace: &Namespace,
    key: &[u8],
    value: &[u8],
) -> Result<(), RefuseError> {
    let [entry, name] = proof.proofs.as_slice() else {
        return Err(RefuseError::Form { what: "presence takes two proofs, of the entry and of its namespace" });
    };
    let inside = namespace_root::<H>(name, root, namespace)?;
    present::<H>(entry, Level::Entries, &inside, key, value)
}

/// Checks that a key has no value in the state under `root`.
///
/// # Errors
/// [`RefuseError`].
pub fn verify_absent<H: Hasher>(
    proof: &Ics23Proof,
    root: Root,
    namespace: &Namespace,
    key: &[u8],
) -> Result<(), RefuseError> {
    match proof.proofs.as_slice() {
        [name] => absent::<H>(name, Level::Namespaces, &root.0.0, namespace.as_bytes()),
        [entry, name] => {
            let inside = namespace_root::<H>(name, root, namespace)?;
            absent::<H>(entry, Level::Entries, &inside, key)
        }
        _ => Err(RefuseError::Form { what: "absence takes one proof or two" }),
    }
}

/// The root of a namespace that is proven present.
fn namespace_root<H: Hasher>(
    proof: &CommitmentProof,
    root: Root,
    namespace: &Namespace,
) -> Result<Vec<u8>, RefuseError> {
    let Some(Kind::Exist(exist)) = &proof.proof else {
        return Err(RefuseError::Form { what: "the namespace's proof is not one of existence" });
    };
    let inside = exist.value.clone();
    present::<H>(proof, Level::Namespaces, &root.0.0, namespace.as_bytes(), &inside)?;
    Ok(inside)
}

fn present<H: Hasher>(
    proof: &CommitmentProof,
    level: Level,
    root: &[u8],
    key: &[u8],
    value: &[u8],
) -> Result<(), RefuseError> {
    let Some(Kind::Exist(exist)) = &proof.proof else {
        return Err(RefuseError::Form { what: "not a single proof of existence" });
    };
    check_depth(exist, level, key)?;
    check_steps(exist, level)?;
    let holds =
        ::ics23::verify_membership::<HostFunctionsManager>(proof, &spec(H::KIND, level), &root.to_vec(), key, value);
    if holds { Ok(()) } else { Err(RefuseError::Refused { what: "that this key holds this value under this root" }) }
}

fn absent<H: Hasher>(proof: &CommitmentProof, level: Level, root: &[u8], key: &[u8]) -> Result<(), RefuseError> {
    let Some(Kind::Nonexist(NonExistenceProof { key: said, left, right })) = &proof.proof else {
        return Err(RefuseError::Form { what: "not a single proof of absence" });
    };
    // The crate looks at the neighbours alone.
    if said != key {
        return Err(RefuseError::Refused { what: "that nothing is at this key: it speaks of another" });
    }
    for exist in [left, right].into_iter().flatten() {
        check_depth(exist, level, key)?;
    }
    for exist in [left, right].into_iter().flatten() {
        check_steps(exist, level)?;
    }
    if let (Some(left), Some(right)) = (left, right) {
        // The crate looks for the step where the paths part and panics if there is none.
        let shared = left.path.iter().rev().zip(right.path.iter().rev());
        let shared = shared.take_while(|(l, r)| l.prefix == r.prefix && l.suffix == r.suffix).count();
        if shared == left.path.len().min(right.path.len()) {
            return Err(RefuseError::Form { what: "the neighbours' paths do not part" });
        }
    }
    let holds =
        ::ics23::verify_non_membership::<HostFunctionsManager>(proof, &spec(H::KIND, level), &root.to_vec(), key);
    if holds { Ok(()) } else { Err(RefuseError::Refused { what: "that nothing is at this key under this root" }) }
}

// spec: TREE-12, TREE-13: before anything is hashed.
fn check_depth(exist: &ExistenceProof, level: Level, asked: &[u8]) -> Result<(), RefuseError> {
    let limit = (9 * asked.len().max(exist.key.len())).min(depth_max(level));
    let found = exist.path.len();
    if found > limit { Err(RefuseError::TooDeep { found, limit }) } else { Ok(()) }
}

/// Every step is a node of this tree: its parts have their lengths, critical bits fall towards the root, and the key
/// takes the turns. The crate alone would let a prefix of the right length hold anything.
fn check_steps(exist: &ExistenceProof, level: Level) -> Result<(), RefuseError> {
    let head_holds = exist.leaf.as_ref().is_some_and(|leaf| match level {
        Level::Entries => leaf.prefix == entry_head(exist.key.len(), exist.value.len()),
        Level::Namespaces => {
            let name_len = short(exist.key.len()).to_le_bytes();
            let prefix = leaf.prefix.as_slice();
            prefix.len() == HEAD_LEN
                && prefix[0] == leaf_tag(level)
                && prefix[1..3] == name_len
                && prefix[19..].iter().all(|byte| *byte == 0)
        }
    });
    if !head_holds {
        return Err(RefuseError::Step { what: "the leaf's head is not that of its key and value", step: 0 });
    }
    let mut below = u16::MAX;
    for (step, inner) in exist.path.iter().enumerate() {
        let refuse = |what| Err(RefuseError::Step { what, step: step + 1 });
        let right = match (inner.prefix.len(), inner.suffix.len()) {
            (64, 32) => false,
            (96, 0) => true,
            _ => return refuse("a step is a head and one hash"),
        };
        if inner.prefix[0] != inner_tag(level) || inner.prefix[35..HEAD_LEN].iter().any(|byte| *byte != 0) {
            return refuse("the head is not an inner node's");
        }
        let crit = u16::from_le_bytes([inner.prefix[1], inner.prefix[2]]);
        if crit >= below || usize::from(crit) >= depth_max(level) {
            return refuse("critical bits must fall towards the root");
        }
        if bit(&exist.key, crit) != right {
            return refuse("the key does not take this turn");
        }
        below = crit;
    }
    Ok(())
}
