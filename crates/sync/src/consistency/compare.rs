//! One version, compared with what certifies it, with its own bytes, and with what peers have at the same height.
//!
//! Rules: `spec/consistency.md`, CHECK-1 to CHECK-4.

use super::diverge::Asking;
use super::{Ask, DivergeError};
use crate::peers::{Version, Why};
use keelstone_codec::{Hash, Height, Key, Namespace, Root, Value};
use keelstone_tree::{Answer, Hasher, KeyRange, Read, ReadError};
use std::fmt;

/// Differing entries a report lists of one peer; the localiser finds the first of all.
pub const OTHERS_MAX: usize = 16;

/// What a comparison came to.
// spec: CHECK-1
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything that was compared is what it must be, and something could be compared.
    Consistent,
    /// Something is not.
    Inconsistent,
    /// Nothing was found to differ, but nobody who had to answer did.
    Unknown,
}

impl Verdict {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Consistent => "consistent",
            Self::Inconsistent => "inconsistent",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What says that a root is the chain's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certified {
    /// Consensus signed this root for this height.
    Root(Root),
    /// This node makes the blocks: its own record of them is all there is to certify.
    Here,
    /// Whoever had the state put here trusted this root, and no block was made on it since.
    Given,
    /// Nothing yet.
    Nothing,
}

/// One thing that is not what it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Discrepancy {
    /// The root here is not the certified one: this state is not the chain's.
    NotCertified {
        /// The certified root.
        certified: Root,
        /// The root here.
        ours: Root,
    },
    /// A peer says that it has another root at a height.
    StateRoot {
        /// The peer.
        peer: String,
        /// The height and the root here.
        ours: Version,
        /// What the peer says its root is.
        theirs: Root,
    },
    /// A peer proves another value, or an absence, under the root it says it has.
    Entry {
        /// The peer.
        peer: String,
        /// Where.
        namespace: Namespace,
        /// The key.
        key: Key,
        /// The hash of the value here; none if it is missing here.
        ours: Option<Hash>,
        /// The hash of its value; none if it is missing there.
        theirs: Option<Hash>,
    },
    /// Own bytes are damaged.
    Storage {
        /// What was compared.
        what: String,
    },
}

/// What one peer came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// It has the same root, and proved every entry it was asked for.
    Agrees,
    /// It has another root.
    Differs(Root),
    /// It cannot say: it does not keep the height, is busy, or did not answer.
    Nothing(String),
    /// Its answer cannot be true.
    Misbehaved(String),
}

/// A peer and what it said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opinion {
    /// The peer.
    pub peer: String,
    /// What it said.
    pub said: Said,
    /// Entries it proved to be as they are here.
    pub entries_agreed: u32,
}

impl Opinion {
    /// A question was not answered, and no more are asked. Whoever has the same root agrees only if it answers all of them; whoever
    /// has another has said what it has to say already, unless it lies.
    // spec: CHECK-3
    fn cut_off(mut self, said: Said) -> Self {
        if self.said == Said::Agrees || matches!(said, Said::Misbehaved(_)) {
            self.said = said;
        }
        self
    }
}

/// Entries that were read here and are asked of peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// What is there, by its hash.
    pub entries: Vec<(Namespace, Key, Hash)>,
    /// What could not be read because it is damaged.
    pub damaged: Vec<String>,
    /// Roots of other heights that peers are asked for.
    pub roots: Vec<Version>,
    /// Where the next sample goes on; none if this one came to the end of the state.
    pub next: Option<(Namespace, Key)>,
}

/// What a comparison found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The version that was compared.
    pub at: Version,
    /// What certifies it.
    pub certified: Certified,
    /// What it came to.
    pub verdict: Verdict,
    /// Entries whose way from the root and whose value were read and proven here: a sample, and never all of them.
    pub entries_read: u32,
    /// Everything that differs.
    pub discrepancies: Vec<Discrepancy>,
    /// What each peer said.
    pub peers: Vec<Opinion>,
}

impl Report {
    /// The version to which damage that was found may be repaired: this one, and only if its root is certified. What
    /// peers say, and how many of them do, has no part in it.
    // spec: CHECK-4
    #[must_use]
    pub fn repairable_to(&self) -> Option<Version> {
        let damaged = self.discrepancies.iter().any(|found| matches!(found, Discrepancy::Storage { .. }));
        let certified = match self.certified {
            Certified::Root(root) => root == self.at.root,
            Certified::Here | Certified::Given => true,
            Certified::Nothing => false,
        };
        (damaged && certified).then_some(self.at)
    }

    /// Whether anybody disagrees with a root that is certified: an alarm for people, and never a reason to change
    /// anything.
    // spec: CHECK-4
    #[must_use]
    pub fn is_contradicted(&self) -> bool {
        let sure = !matches!(self.certified, Certified::Nothing);
        sure && self.peers.iter().any(|opinion| matches!(opinion.said, Said::Differs(_)))
    }
}

/// Reads up to `count` entries from a place on, each proven by its hashes on the way. It goes on behind what is damaged.
///
/// # Errors
/// [`ReadError`] if the machine failed to read or the version is no longer kept. Damage is in the sample.
// spec: CHECK-2
pub fn sample<H: Hasher>(
    view: &impl Read,
    namespaces: &[Namespace],
    from: Option<&(Namespace, Key)>,
    count: u32,
) -> Result<Sample, ReadError> {
    let mut found = Sample::default();
    let first = from.map_or(0, |(name, _)| namespaces.partition_point(|namespace| namespace < name));
    for namespace in namespaces.get(first..).unwrap_or_default() {
        let mut range = KeyRange::all();
        if let Some((_, key)) = from.filter(|(name, _)| name == namespace) {
            range.start = key.to_vec();
        }
        for entry in view.scan(namespace, range) {
            match entry {
                Ok((key, value)) => {
                    if found.entries.len() >= count as usize {
                        found.next = Some((namespace.clone(), key));
                        return Ok(found);
                    }
                    found.entries.push((namespace.clone(), key, value_hash::<H>(&value)));
                }
                Err(ReadError::Damaged { what }) => {
                    // What is behind it in this namespace cannot be reached in order: a full check looks further.
                    found.damaged.push(what.to_string());
                    break;
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(found)
}

/// Heights whose roots are compared beside the newest: spread over all that are kept, others in each check.
#[must_use]
pub fn heights(low: Height, high: Height, count: u32, number: u64) -> Vec<Height> {
    let all = high.0.saturating_sub(low.0);
    let count = u64::from(count).min(all);
    let stride = all.checked_div(count).unwrap_or(1);
    (0..count).map(|at| Height(low.0 + at * stride + number % stride.max(1))).collect()
}

/// Compares a version and a sample of it with what certifies it and with peers.
// spec: CHECK-1, CHECK-3
pub fn compare<H: Hasher>(
    at: Version,
    certified: Certified,
    sample: &Sample,
    peers: &mut [(String, &mut dyn Ask)],
) -> Report {
    let mut discrepancies = Vec::new();
    match certified {
        Certified::Root(root) if root != at.root => {
            discrepancies.push(Discrepancy::NotCertified { certified: root, ours: at.root });
        }
        _ => {}
    }
    discrepancies.extend(sample.damaged.iter().map(|what| Discrepancy::Storage { what: what.clone() }));
    let opinions: Vec<Opinion> =
        peers.iter_mut().map(|(name, peer)| ask_one::<H>(at, sample, name, &mut **peer, &mut discrepancies)).collect();
    let certain = match certified {
        Certified::Root(_) => true,
        // Nobody else to ask is not the same as nobody who answers.
        Certified::Here | Certified::Given => peers.is_empty(),
        Certified::Nothing => false,
    };
    let agreed = opinions.iter().any(|opinion| opinion.said == Said::Agrees);
    let verdict = match discrepancies.is_empty() {
        false => Verdict::Inconsistent,
        true if certain || agreed => Verdict::Consistent,
        true => Verdict::Unknown,
    };
    let entries_read = u32::try_from(sample.entries.len()).unwrap_or(u32::MAX);
    Report { at, certified, verdict, entries_read, discrepancies, peers: opinions }
}

/// Asks one peer for its root, and for every entry of the sample under it.
fn ask_one<H: Hasher>(
    at: Version,
    sample: &Sample,
    name: &str,
    peer: &mut dyn Ask,
    discrepancies: &mut Vec<Discrepancy>,
) -> Opinion {
    // Each root and each entry once: an answer that is none is not asked for again.
    let limit = u32::try_from(sample.entries.len() + sample.roots.len()).unwrap_or(u32::MAX).saturating_add(1);
    let mut asking = Asking::new(peer, limit);
    let mut opinion = Opinion { peer: name.to_owned(), said: Said::Agrees, entries_agreed: 0 };
    let root = match asking.root_at(at.height) {
        Ok(root) => root,
        Err(error) => return Opinion { said: said(error), ..opinion },
    };
    if root != at.root {
        opinion.said = Said::Differs(root);
        discrepancies.push(Discrepancy::StateRoot { peer: name.to_owned(), ours: at, theirs: root });
    }
    for ours in &sample.roots {
        match asking.root_at(ours.height) {
            Ok(root) if root == ours.root => {}
            Ok(theirs) => {
                discrepancies.push(Discrepancy::StateRoot { peer: name.to_owned(), ours: *ours, theirs });
            }
            // Peers keep different heights, and what one of them has to say of the present still counts.
            Err(DivergeError::Unavailable(_)) => {}
            Err(error) => return opinion.cut_off(said(error)),
        }
    }
    let theirs = Version { height: at.height, root };
    let mut others = 0;
    for (namespace, key, ours) in &sample.entries {
        let found = match asking.entry::<H>(theirs, namespace, key) {
            Ok(shown) => match shown.get(namespace, key) {
                Answer::Present(value) => Ok(Some(value_hash::<H>(&value))),
                Answer::Absent => Ok(None),
                Answer::Unknown => Err(Said::Misbehaved("its proof does not show what was asked for".to_owned())),
            },
            Err(error) => Err(said(error)),
        };
        match found {
            Ok(Some(theirs)) if theirs == *ours => opinion.entries_agreed += 1,
            Ok(theirs) => {
                others += 1;
                if others <= OTHERS_MAX {
                    let (namespace, key, ours) = (namespace.clone(), key.clone(), Some(*ours));
                    discrepancies.push(Discrepancy::Entry { peer: name.to_owned(), namespace, key, ours, theirs });
                }
            }
            Err(said) => return opinion.cut_off(said),
        }
    }
    opinion
}

fn said(error: DivergeError) -> Said {
    match error {
        DivergeError::Misbehaved(what) => Said::Misbehaved(what),
        DivergeError::Unavailable(Why::NotKept) => Said::Nothing("does not keep this height".to_owned()),
        error => Said::Nothing(error.to_string()),
    }
}

fn value_hash<H: Hasher>(value: &Value) -> Hash {
    H::hash(value)
}
