//! Each check of the verifier, removed in turn, lets a forgery through; with all of them none gets by.
//!
//! Forgers here may do what no honest chain does: make up a tree that breaks the rules, and its root with it. Only so
//! can a check be shown to matter on its own, since under an honest root the hashes alone would refuse the proof.

use super::*;
use crate::preimage::{self, Level};
use crate::proof::{self, Check, Checks, Opaque, Writer};
use crate::verify::{self, Plain};
use crate::way::plainly;
use crate::{Answer, Totals};
use keelstone_codec::Hash;
use std::marker::PhantomData;

/// All checks but one.
#[derive(Clone, Copy)]
struct AllBut(Check);

impl Checks for AllBut {
    fn makes(self, check: Check) -> bool {
        check != self.0
    }
}

/// A made-up tree, in which nothing needs to be right.
enum Made {
    Opaque(Totals),
    Leaf(Vec<u8>, Vec<u8>),
    Stub(Vec<u8>, u32),
    /// The totals of the children are as found, or as claimed.
    Inner(u16, Box<[Made; 2]>, Option<[Totals; 2]>),
    /// Its totals are as found, or as claimed.
    Namespace(&'static str, Box<Made>, Option<Totals>),
}

fn inner(crit: u16, left: Made, right: Made) -> Made {
    Made::Inner(crit, Box::new([left, right]), None)
}

fn leaf(key: &[u8]) -> Made {
    Made::Leaf(key.to_vec(), b"v".to_vec())
}

fn opaque(count: u64, bytes: u64) -> Made {
    Made::Opaque(Totals { count, bytes })
}

fn namespace(entries: Made) -> Made {
    Made::Namespace("a", Box::new(entries), None)
}

const UNSEEN: Hash = Hash([0x77; 32]);

/// The hash and totals of a made-up node.
fn weigh(made: &Made, level: Level) -> (Hash, Totals) {
    let hash = Blake3::hash;
    match made {
        Made::Opaque(totals) => (UNSEEN, *totals),
        Made::Leaf(key, value) => {
            let image = preimage::leaf(key.len() as u16, value.len() as u32, &hash(key), &hash(value));
            (hash(&image), Totals::entry(key.len(), value.len() as u32))
        }
        Made::Stub(key, value_len) => {
            let image = preimage::leaf(key.len() as u16, *value_len, &hash(key), &UNSEEN);
            (hash(&image), Totals::entry(key.len(), *value_len))
        }
        Made::Inner(crit, children, claims) => {
            let [left, right] = [&children[0], &children[1]].map(|child| weigh(child, level));
            let totals = claims.unwrap_or([left.1, right.1]);
            let sum = Totals {
                count: totals[0].count.saturating_add(totals[1].count),
                bytes: totals[0].bytes.saturating_add(totals[1].bytes),
            };
            (hash(&preimage::inner(level, *crit, totals, [&left.0, &right.0])), sum)
        }
        Made::Namespace(name, tree, claim) => {
            let (root, found) = weigh(tree, Level::Entries);
            let totals = claim.unwrap_or(found);
            let image = preimage::namespace(name.len() as u16, totals, &hash(name.as_bytes()), &hash(&root.0));
            (hash(&image), totals)
        }
    }
}

fn write(made: &Made, level: Level, out: &mut Writer) {
    match made {
        Made::Opaque(_) => out.opaque(&UNSEEN),
        Made::Leaf(key, value) => out.leaf(key, value),
        Made::Stub(key, value_len) => out.stub(key, *value_len, &UNSEEN),
        Made::Inner(crit, children, claims) => {
            let totals = claims.unwrap_or([weigh(&children[0], level).1, weigh(&children[1], level).1]);
            let hidden = match (&children[0], &children[1]) {
                (Made::Opaque(_), _) => Opaque::Left(&UNSEEN),
                (_, Made::Opaque(_)) => Opaque::Right(&UNSEEN),
                _ => Opaque::Neither,
            };
            out.inner(*crit, totals, hidden);
            for child in children.iter().filter(|child| !matches!(child, Made::Opaque(_))) {
                write(child, level, out);
            }
        }
        Made::Namespace(name, tree, _) => {
            out.namespace(name.as_bytes(), weigh(made, level).1);
            write(tree, Level::Entries, out);
        }
    }
}

/// A proof with the root it leads to and the question it pretends to answer.
struct Forgery {
    bytes: Vec<u8>,
    root: Root,
    queries: Vec<Query>,
    limits: ProofLimits,
}

fn forge(made: &Made, queries: Vec<Query>) -> Forgery {
    let mut out = Writer::new();
    write(made, Level::Namespaces, &mut out);
    let root = Root(weigh(made, Level::Namespaces).0);
    Forgery { bytes: out.finish(), root, queries, limits: ProofLimits::default() }
}

impl Forgery {
    fn verify(&self, checks: impl Checks) -> Result<Verified<Blake3>, ProofError> {
        let proof = proof::read(&self.bytes, &self.limits, checks, Vec::new())?;
        verify::check(proof, self.root, Some(&self.queries), checks, &mut Plain::<Blake3>(PhantomData))
    }
}

/// For each check, forgeries that only this check stands against. The match is complete: no check goes without.
fn forgeries(check: Check) -> Vec<Forgery> {
    let asks = |k: &[u8]| vec![Query::Key(ns("a"), key(k))];
    let honest = || forge(&namespace(leaf(b"k")), asks(b"k"));
    // Asks for everything, so that what a forgery shows is never too much.
    let whole = || vec![Query::Range(ns("a"), KeyRange::all())];
    let made = |made: Made| forge(&namespace(made), whole());
    // A namespace of which no more is shown than what it is said to come to.
    let totals_alone = |count, bytes| {
        let space = Made::Namespace("a", Box::new(opaque(count, bytes)), None);
        forge(&space, vec![Query::Namespace(ns("a"))])
    };
    match check {
        Check::BytesLimit => {
            let honest = honest();
            let bytes = honest.bytes.len() - 1;
            vec![Forgery { limits: ProofLimits { bytes, ..honest.limits }, ..honest }]
        }
        Check::NodesLimit => {
            let honest = [made(inner(9, leaf(b"k"), leaf(b"kk"))), made(inner(9, leaf(b"k"), opaque(1, 3)))];
            honest.map(|made| Forgery { limits: ProofLimits { nodes: 3, ..made.limits }, ..made }).into()
        }
        Check::Format => {
            let mut later = honest();
            later.bytes[0] = 1;
            vec![later]
        }
        Check::KeyLength => {
            let stubs = [made(Made::Stub(vec![], 2)), made(Made::Stub(vec![1; 256], 1))];
            stubs.into_iter().chain([made(Made::Leaf(vec![], b"vv".to_vec())), made(leaf(&[1; 256]))]).collect()
        }
        Check::NameText => {
            let long = "123456789012345678901234567890123";
            let named = |name| forge(&Made::Namespace(name, Box::new(opaque(1, 2)), None), vec![Query::Namespaces]);
            vec![named(""), named("A"), named("a b"), named("a/b"), named("\u{e9}"), named(long)]
        }
        Check::ValueLength => {
            // With a key of two bytes it has as many as an entry must have.
            let empty = Made::Leaf(vec![0x55; 2], vec![]);
            let large = Made::Stub(b"k".to_vec(), (8 << 20) + 1);
            vec![made(empty), made(large)]
        }
        Check::Trailing => {
            let mut longer = honest();
            longer.bytes.push(0);
            vec![longer]
        }
        Check::CountIsPositive => vec![made(inner(9, leaf(b"k"), opaque(0, 0))), totals_alone(0, 0)],
        Check::BytesCoverCount => vec![made(inner(9, leaf(b"k"), opaque(5, 9))), totals_alone(5, 9)],
        Check::SumsDoNotOverflow => {
            // The sum, cut off at 64 bits, is what the namespace states.
            vec![made(inner(9, leaf(b"k"), opaque(1, u64::MAX)))]
        }
        Check::SumsAddUp => {
            let claim = |count, bytes| Totals { count, bytes };
            let rich = Made::Inner(9, Box::new([leaf(b"k"), opaque(1, 4)]), Some([claim(1, 1000), claim(1, 4)]));
            let node = inner(1, inner(9, leaf(b"k"), opaque(1, 4)), opaque(1, 9));
            let Made::Inner(crit, children, _) = node else { unreachable!("made above") };
            let deep = Made::Inner(crit, children, Some([claim(3, 6), claim(1, 9)]));
            let space = Made::Namespace("a", Box::new(leaf(b"k")), Some(claim(1, 3)));
            vec![made(rich), made(deep), forge(&space, whole())]
        }
        Check::CritInRange => {
            let long = [0x55; 255];
            let zero = inner(0, opaque(1, 2), leaf(b"k"));
            let beyond = inner(9 * 255, leaf(&long), opaque(1, 300));
            let name = "12345678901234567890123456789012";
            let space = Made::Namespace(name, Box::new(opaque(1, 2)), None);
            let names = inner(9 * 32, space, opaque(1, 2));
            vec![made(zero), made(beyond), forge(&names, vec![Query::Namespace(ns(name))])]
        }
        Check::CritGrows => {
            let below = |crit| inner(crit, leaf(&[0x55, 0x55]), opaque(1, 2));
            // Bits 1 and 3 of the key are 0.
            let falling = inner(3, below(1), opaque(1, 2));
            let standing = inner(3, below(3), opaque(1, 2));
            vec![made(falling), made(standing)]
        }
        Check::DepthWithinKey => {
            let space = Made::Namespace("a", Box::new(opaque(1, 2)), None);
            let names = forge(&inner(10, space, opaque(1, 2)), vec![Query::Namespace(ns("a"))]);
            vec![made(inner(10, leaf(b"k"), opaque(1, 2))), names]
        }
        Check::Root => {
            let mut other = honest();
            other.root = forge(&namespace(leaf(b"j")), vec![]).root;
            vec![other]
        }
        Check::KeyTakesTheTurns => {
            // "k" is 6b: bit 2 is 1, bit 1 is 0. Hidden on the wrong side, the true leaf would not be found.
            let wrong_left = inner(2, leaf(b"k"), opaque(1, 2));
            let wrong_right = inner(1, opaque(1, 2), leaf(b"k"));
            let wrong_end = inner(2, Made::Stub(b"k".to_vec(), 1), opaque(1, 2));
            vec![made(wrong_left), made(wrong_right), made(wrong_end)]
        }
        Check::NeighboursPartAtCrit => {
            // 10 and 23 part at bit 3; bit 8 tells them apart, too, but between them there is room for others.
            let late = inner(8, leaf(&[0x10]), leaf(&[0x23]));
            // Twice the same key, a bit apart.
            let twice = inner(9, leaf(&[0x10]), leaf(&[0x10]));
            vec![made(late), made(twice)]
        }
        Check::NothingUnasked => {
            let two = inner(9, leaf(b"k"), leaf(b"kk"));
            let value = forge(&namespace(leaf(b"k")), asks(b"j"));
            let nothing = forge(&namespace(leaf(b"k")), vec![]);
            let space = forge(&namespace(leaf(b"k")), vec![Query::Namespace(ns("a"))]);
            let other = Made::Namespace("b", Box::new(leaf(b"k")), None);
            vec![forge(&namespace(two), asks(b"k")), value, nothing, space, forge(&other, asks(b"k"))]
        }
    }
}

const CHECKS: [Check; 18] = [
    Check::BytesLimit,
    Check::NodesLimit,
    Check::Format,
    Check::KeyLength,
    Check::NameText,
    Check::ValueLength,
    Check::Trailing,
    Check::CountIsPositive,
    Check::BytesCoverCount,
    Check::SumsDoNotOverflow,
    Check::SumsAddUp,
    Check::CritInRange,
    Check::CritGrows,
    Check::DepthWithinKey,
    Check::Root,
    Check::KeyTakesTheTurns,
    Check::NeighboursPartAtCrit,
    Check::NothingUnasked,
];

/// The checks that are made of the plain way of one key; of the others, one needs two leaves, and the last is the way
/// itself.
fn is_of_a_way(check: Check) -> bool {
    !matches!(check, Check::NeighboursPartAtCrit | Check::NothingUnasked)
}

/// spec: TREE-5, TREE-8, TREE-12. So it is where one key's way is checked in one pass: it accepts no forgery, and without
/// one of its checks it would.
#[test]
fn each_check_of_one_pass_is_the_only_one_against_some_forgery() {
    for check in CHECKS.into_iter().filter(|check| is_of_a_way(*check)) {
        let mut fooled = 0;
        for forgery in forgeries(check) {
            // Whatever the forgery was made to answer, it is asked for a key: its own, and others.
            let keys: [&[u8]; 6] = [b"k", b"j", &[0x55; 255], &[0x55, 0x55], &[1; 200], b"\xff"];
            for (name, k) in
                keys.into_iter().flat_map(|k| [("a", k), ("b", k), ("12345678901234567890123456789012", k)])
            {
                let (name, k) = (ns(name), key(k));
                let ask = |checks| plainly::<Blake3>(&forgery.bytes, forgery.root, &name, &k, &forgery.limits, checks);
                let many = Proof::verify_many::<Blake3>([(&*forgery.bytes, &name, &k)], forgery.root, &forgery.limits);
                let key_alone = Proof::verify_key::<Blake3>(&forgery.bytes, forgery.root, &name, &k, &forgery.limits);
                assert!(many[0].is_err() && key_alone.is_err(), "{check:?}: {name}/{k:?} is answered");
                assert_eq!(ask(AllBut(Check::NothingUnasked)), None, "{check:?}: {name}/{k:?} is answered");
                let fools = CHECKS.into_iter().filter(|other| ask(AllBut(*other)).is_some());
                for other in fools {
                    assert_eq!(other, check, "{name}/{k:?} is answered without another check");
                    fooled += 1;
                }
            }
        }
        assert!(fooled > 0, "{check:?} stands against nothing");
    }
}

/// spec: TREE-5, TREE-7, TREE-8, TREE-12. No check can be left out: without it, a forgery gets by that none other sees.
#[test]
fn each_check_of_the_verifier_is_the_only_one_against_some_forgery() {
    // The list is whole: the last variant's number is its place.
    assert_eq!(CHECKS.len(), Check::NothingUnasked as usize + 1);
    for check in CHECKS {
        for (i, forgery) in forgeries(check).iter().enumerate() {
            let refused = forgery.verify(crate::proof::Every);
            assert!(refused.is_err(), "{check:?}, forgery {i} is accepted");
            for other in CHECKS {
                let verdict = forgery.verify(AllBut(other));
                assert_eq!(verdict.is_ok(), other == check, "{check:?}, forgery {i}, without {other:?}: {verdict:?}");
            }
        }
    }
}

/// spec: TREE-8. What is cheap and bounds the rest comes first: a proof that is wrong in many ways is refused for the
/// first of them, so nothing is hashed for the sake of bad sums and no key is compared under a wrong root.
#[test]
fn checks_are_made_in_the_order_of_the_rule() {
    let spoiled = |checks: &[Check]| {
        // Misplaced and unasked for, under another root, with bad sums, and with a byte too many.
        let entries = inner(2, leaf(b"k"), opaque(1, if checks.contains(&Check::BytesCoverCount) { 1 } else { 2 }));
        let mut forgery = forge(&namespace(entries), vec![]);
        if checks.contains(&Check::Root) {
            forgery.root = Root(UNSEEN);
        }
        if checks.contains(&Check::Trailing) {
            forgery.bytes.push(0);
        }
        if checks.contains(&Check::BytesLimit) {
            forgery.limits.bytes = 1;
        }
        forgery.verify(crate::proof::Every).unwrap_err()
    };
    let mut wrong = vec![];
    assert!(matches!(spoiled(&wrong), ProofError::Misplaced { .. }), "before bloat");
    wrong.push(Check::Root);
    assert!(matches!(spoiled(&wrong), ProofError::WrongRoot { .. }));
    wrong.push(Check::BytesCoverCount);
    assert!(matches!(spoiled(&wrong), ProofError::Totals { .. }));
    wrong.push(Check::Trailing);
    assert!(matches!(spoiled(&wrong), ProofError::Malformed(_)));
    wrong.push(Check::BytesLimit);
    assert!(matches!(spoiled(&wrong), ProofError::TooLarge { .. }));
}

/// The forger's tools make honest proofs, too: forgeries are refused for what is wrong with them, not for their make.
#[test]
fn what_forgers_make_honestly_is_accepted() {
    let made = namespace(inner(1, inner(9, leaf(b"k"), opaque(7, 50)), leaf(&[0x80])));
    let queries = vec![Query::Key(ns("a"), key(b"k")), Query::Key(ns("a"), key(&[0x80]))];
    let forgery = forge(&made, queries);
    let verified = forgery.verify(crate::proof::Every).unwrap();
    assert_eq!(verified.get(&ns("a"), b"k"), Answer::Present(value(b"v")));
    assert_eq!(verified.get(&ns("a"), b"kk"), Answer::Unknown);
    assert_eq!(verified.get(&ns("a"), b"l"), Answer::Absent);
    assert_eq!(verified.get(&ns("b"), b"l"), Answer::Absent);
}

/// What a forged place would be good for: without the check, a key that may well be there is "proven" absent.
#[test]
fn a_leaf_on_the_wrong_side_would_prove_a_present_key_absent() {
    let forgery = &forgeries(Check::KeyTakesTheTurns)[1];
    let fooled = forgery.verify(AllBut(Check::KeyTakesTheTurns)).unwrap();
    assert_eq!(fooled.get(&ns("a"), b"\xff"), Answer::Absent);
}

/// spec: TREE-5. Sums that do not add up under the very root the caller holds are told apart from a wrong root: the
/// chain that certified it is broken, and its users are to halt.
#[test]
fn n05_sums_that_do_not_add_up_under_a_good_hash_are_named() {
    for forgery in forgeries(Check::SumsAddUp) {
        assert!(matches!(forgery.verify(crate::proof::Every), Err(ProofError::Sums { .. })));
    }
}
