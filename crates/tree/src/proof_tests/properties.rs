//! Random states and questions: what arrives is what the model holds.

use super::*;
use crate::{Answer, RangeAnswer, Read, ReadError, Totals, Verifier};
use proptest::prelude::*;

fn some_key() -> impl Strategy<Value = Vec<u8>> {
    let byte = || prop_oneof![Just(0u8), Just(1), Just(0x80), Just(0xff), any::<u8>()];
    prop_oneof![
        4 => prop::collection::vec(byte(), 1..4),
        1 => prop::collection::vec(any::<u8>(), 32),
        1 => (0usize..255, any::<u8>()).prop_map(|(zeros, last)| [vec![0; zeros], vec![last]].concat()),
    ]
}

fn some_name() -> impl Strategy<Value = Namespace> {
    prop::sample::select(vec!["a", "a.b", "b", "balances", "z", "zz"]).prop_map(ns)
}

fn some_state() -> impl Strategy<Value = State> {
    let value = prop::collection::vec(any::<u8>(), 1..40);
    prop::collection::vec((some_name(), some_key(), value), 0..60).prop_map(|entries| {
        let mut state = State::new();
        for (name, k, v) in entries {
            state.entry(name).or_default().insert(key(&k), self::value(&v));
        }
        state
    })
}

fn some_range() -> impl Strategy<Value = KeyRange> {
    let end = prop::option::of(prop::collection::vec(any::<u8>(), 0..4));
    (prop::collection::vec(any::<u8>(), 0..4), end, any::<bool>()).prop_map(|(start, end, reverse)| KeyRange {
        start,
        end,
        reverse,
    })
}

fn some_query() -> impl Strategy<Value = Query> {
    prop_oneof![
        4 => (some_name(), some_key()).prop_map(|(name, k)| Query::Key(name, key(&k))),
        2 => (some_name(), some_key()).prop_map(|(name, k)| Query::Write(name, key(&k))),
        2 => (some_name(), some_range()).prop_map(|(name, range)| Query::Range(name, range)),
        2 => (some_name(), prop::collection::vec(any::<u8>(), 0..3)).prop_map(|(name, p)| Query::Prefix(name, p)),
        2 => (some_name(), prop::collection::vec(any::<u8>(), 0..3)).prop_map(|(name, p)| Query::PrefixTotals(name, p)),
        1 => some_name().prop_map(Query::Namespace),
        1 => Just(Query::Namespaces),
    ]
}

/// Turns half of the keys asked for into keys that exist.
fn aimed(state: &State, queries: Vec<Query>, picks: &[prop::sample::Index]) -> Vec<Query> {
    let all: Vec<_> = state.iter().flat_map(|(name, entries)| entries.keys().map(move |key| (name, key))).collect();
    let aim = |query, pick: &prop::sample::Index| match query {
        query if all.is_empty() => query,
        Query::Key(..) => {
            let (name, key) = all[pick.index(all.len())];
            Query::Key(name.clone(), key.clone())
        }
        Query::Prefix(_, prefix) => {
            let (name, key) = all[pick.index(all.len())];
            Query::Prefix(name.clone(), key[..prefix.len().min(key.len())].to_vec())
        }
        Query::PrefixTotals(_, prefix) => {
            let (name, key) = all[pick.index(all.len())];
            Query::PrefixTotals(name.clone(), key[..prefix.len().min(key.len())].to_vec())
        }
        other => other,
    };
    let count = queries.len();
    queries
        .into_iter()
        .enumerate()
        .map(|(i, query)| if i * 2 < count { aim(query, &picks[i]) } else { query })
        .collect()
}

fn model_range(state: &State, name: &Namespace, range: &KeyRange) -> Vec<(Key, Value)> {
    let entries = state.get(name).into_iter().flatten().filter(|(key, _)| range.contains(key));
    let mut entries: Vec<_> = entries.map(|(key, value)| (key.clone(), value.clone())).collect();
    if range.reverse {
        entries.reverse();
    }
    entries
}

fn totals<'a>(entries: impl Iterator<Item = (&'a Key, &'a Value)>) -> Totals {
    entries.fold(Totals::default(), |sum, (key, value)| sum + Totals::entry(key.len(), value.len() as u32))
}

/// Whether a proof made for `query` answers it as the state itself does.
fn answers<H: Hasher>(state: &State, verified: &Verified<H>, query: &Query) -> Result<(), TestCaseError> {
    let at = |name: &Namespace, key: &[u8]| state.get(name).and_then(|entries| entries.get(key)).cloned();
    match query {
        Query::Key(name, key) => {
            let expected = at(name, key);
            prop_assert_eq!(verified.get(name, key), expected.clone().map_or(Answer::Absent, Answer::Present));
            prop_assert_eq!(Read::get(verified, name, key).unwrap(), expected);
        }
        Query::Write(name, key) => {
            let expected = at(name, key).map_or(Answer::Absent, |value| Answer::Present(value.len() as u32));
            prop_assert_eq!(verified.value_len(name, key), expected);
        }
        Query::Range(name, range) => {
            let expected = model_range(state, name, range);
            prop_assert_eq!(verified.range(name, range), RangeAnswer::Complete(expected.clone()));
            let scanned: Result<Vec<_>, _> = verified.scan(name, range.clone()).collect();
            prop_assert_eq!(scanned.unwrap(), expected);
        }
        Query::Prefix(name, prefix) => {
            let expected = model_range(state, name, &KeyRange::prefix(prefix));
            prop_assert!(expected.iter().all(|(key, _)| key.starts_with(prefix)));
            prop_assert_eq!(verified.prefix(name, prefix), RangeAnswer::Complete(expected));
        }
        Query::PrefixTotals(name, prefix) => {
            let begins = state.get(name).into_iter().flatten().filter(|(key, _)| key.starts_with(prefix));
            let expected = totals(begins);
            let expected = if expected.count == 0 { Answer::Absent } else { Answer::Present(expected) };
            prop_assert_eq!(verified.prefix_totals(name, prefix), expected);
        }
        Query::Namespace(name) => {
            let found = verified.namespace(name);
            let expected = state.get(name).map(|entries| totals(entries.iter()));
            match found {
                Answer::Present(top) => prop_assert_eq!(Some(top.totals), expected),
                Answer::Absent => prop_assert_eq!(None, expected),
                Answer::Unknown => prop_assert!(false, "asked for, not shown"),
            }
        }
        Query::Namespaces => {
            let found = verified.namespaces().expect("asked for, so shown");
            let found: Vec<_> = found.into_iter().map(|(name, top)| (name, top.totals)).collect();
            let expected: Vec<_> = state.iter().map(|(name, entries)| (name.clone(), totals(entries.iter()))).collect();
            prop_assert_eq!(found, expected);
        }
    }
    Ok(())
}

/// Whatever a proof says of things it was not made for is true, too.
fn never_lies<H: Hasher>(state: &State, verified: &Verified<H>, query: &Query) -> Result<(), TestCaseError> {
    match query {
        Query::Key(name, key) => {
            match (verified.get(name, key), state.get(name).and_then(|entries| entries.get(key))) {
                (Answer::Unknown, _) => {
                    let error = Read::get(verified, name, key).unwrap_err();
                    let incomplete = matches!(error, ReadError::Incomplete { .. });
                    prop_assert!(incomplete, "{error}");
                }
                (Answer::Absent, found) => prop_assert_eq!(found, None),
                (Answer::Present(value), found) => prop_assert_eq!(Some(&value), found),
            }
        }
        Query::Range(name, range) => {
            let expected = model_range(state, name, range);
            match verified.range(name, range) {
                RangeAnswer::Complete(found) => prop_assert_eq!(found, expected),
                RangeAnswer::Incomplete { shown, .. } => {
                    prop_assert!(expected.starts_with(&shown));
                    let scanned: Vec<_> = verified.scan(name, range.clone()).collect();
                    prop_assert_eq!(scanned.len(), shown.len() + 1);
                    let incomplete = matches!(scanned.last(), Some(Err(ReadError::Incomplete { .. })));
                    prop_assert!(incomplete);
                }
            }
        }
        Query::PrefixTotals(name, prefix) if verified.prefix_totals(name, prefix) != Answer::Unknown => {
            answers(state, verified, query)?;
        }
        _ => {}
    }
    Ok(())
}

fn check<H: Hasher>(state: &State, asked: &[Query], others: &[Query]) -> Result<(), TestCaseError> {
    let tree = Grown::new::<H>(state);
    prop_assert_eq!(tree.root(), reference_root::<H>(state));
    let sent = prove(&tree, asked).unwrap().encode();
    let verified = verify::<H>(&sent, tree.root(), asked);
    prop_assert!(verified.is_ok(), "{:?}", verified.err());
    let verified = verified.unwrap();
    for query in asked {
        answers(state, &verified, query)?;
    }
    for query in others {
        never_lies(state, &verified, query)?;
    }
    // The same questions in another order and twice over are the same proof.
    let again: Vec<_> = asked.iter().rev().chain(asked).cloned().collect();
    prop_assert_eq!(prove(&tree, &again).unwrap().encode(), sent.clone());
    // Without one of its questions a proof shows too much, unless the others need the same.
    for left_out in 0..asked.len() {
        let mut fewer = asked.to_vec();
        fewer.remove(left_out);
        let needed = prove(&tree, &fewer).unwrap().encode() == sent;
        match verify::<H>(&sent, tree.root(), &fewer) {
            Ok(_) => prop_assert!(needed),
            Err(error) => {
                let bloated = matches!(error, ProofError::Bloated { .. });
                prop_assert!(!needed && bloated, "{error}");
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::proof_tests::cases(400)))]

    /// spec: TREE-7 to TREE-10
    #[test]
    fn proofs_answer_as_the_model_does(
        state in some_state(),
        asked in prop::collection::vec(some_query(), 0..5),
        others in prop::collection::vec(some_query(), 5),
        picks in prop::collection::vec(any::<prop::sample::Index>(), 5),
    ) {
        let asked = aimed(&state, asked, &picks);
        let others = aimed(&state, others, &picks);
        check::<Blake3>(&state, &asked, &others)?;
        check::<Sha256>(&state, &asked, &others)?;
    }

    /// A verifier with a memory accepts what one without accepts, and refuses what it refuses, whatever it saw before.
    #[test]
    fn a_memory_changes_no_verdict(
        keys in prop::collection::btree_set(prop::collection::vec(any::<u8>(), 1..4), 100..300),
        picks in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0u8..4), 60),
    ) {
        let entries = keys.iter().map(|k| (key(k), value(k))).collect();
        let tree = Grown::new::<Blake3>(&State::from([(ns("a"), entries)]));
        let keys: Vec<_> = keys.into_iter().collect();
        let mut verifier = Verifier::<Blake3>::new(tree.root(), ProofLimits::default());
        for (pick, at, change) in picks {
            let queries = [Query::Key(ns("a"), key(&keys[pick.index(keys.len())]))];
            let mut bytes = prove_bytes(&tree, &queries).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= change;
            let plain = verify::<Blake3>(&bytes, tree.root(), &queries);
            let remembered = verifier.verify(&bytes, &queries);
            match (plain, remembered) {
                (Ok(plain), Ok(remembered)) => {
                    prop_assert_eq!(change, 0);
                    prop_assert_eq!(plain.range(&ns("a"), &KeyRange::all()), remembered.range(&ns("a"), &KeyRange::all()));
                }
                (Err(plain), Err(remembered)) => prop_assert_eq!(plain, remembered),
                (plain, remembered) => prop_assert!(false, "{plain:?}, but with a memory {remembered:?}"),
            }
        }
    }

    /// spec: TREE-8. In one pass a proof of one key has the verdict and the answer it has by its nodes, and so it has among
    /// others, whatever was changed in it and whatever they are.
    #[test]
    fn one_pass_and_many_ways_change_no_verdict(
        state in some_state(),
        asked in prop::collection::vec((some_query(), some_query(), any::<prop::sample::Index>(), 0u8..3), 0..200),
        picks in prop::collection::vec(any::<prop::sample::Index>(), 200),
    ) {
        fn check<H: Hasher>(
            state: &State,
            asked: &[(Query, Query, prop::sample::Index, u8)],
            picks: &[prop::sample::Index],
        ) -> Result<(), TestCaseError> {
            let tree = Grown::new::<H>(state);
            let limits = ProofLimits { nodes: 40, ..ProofLimits::default() };
            let questions = aimed(state, asked.iter().map(|(query, ..)| query.clone()).collect(), picks);
            let mut proofs = Vec::new();
            for (query, (_, other, at, change)) in questions.into_iter().zip(asked) {
                let Query::Key(name, key) = &query else { continue };
                // Now and then it is the proof of something else.
                let shown = if *change == 1 { other.clone() } else { query.clone() };
                let mut bytes = prove_bytes(&tree, &[shown]).unwrap();
                let at = at.index(bytes.len());
                bytes[at] ^= if *change == 2 { 1 << (at % 8) } else { 0 };
                proofs.push((bytes, name.clone(), key.clone()));
            }
            let many = proofs.iter().map(|(bytes, name, key)| (bytes.as_slice(), name, key));
            let together = Proof::verify_many::<H>(many, tree.root(), &limits);
            prop_assert_eq!(together.len(), proofs.len());
            for ((bytes, name, key), together) in proofs.iter().zip(together) {
                let queries = [Query::Key(name.clone(), key.clone())];
                let by_nodes = Proof::decode_within(bytes, &limits)
                    .and_then(|proof| proof.verify::<H>(tree.root(), &queries, &limits))
                    .map(|verified| verified.get(name, key));
                let plain = |answer| match answer {
                    Answer::Present(found) => Answer::Present(value(found)),
                    Answer::Absent => Answer::Absent,
                    Answer::Unknown => Answer::Unknown,
                };
                let alone = Proof::verify_key::<H>(bytes, tree.root(), name, key, &limits).map(plain);
                prop_assert_eq!(&alone, &by_nodes);
                prop_assert_eq!(together.map(plain), by_nodes);
            }
            Ok(())
        }
        check::<Blake3>(&state, &asked, &picks)?;
        check::<Sha256>(&state, &asked, &picks)?;
    }

    /// spec: TREE-11. Whatever a diff writes and deletes, a witness gives the root of the new state.
    #[test]
    fn witnesses_give_the_root_of_the_new_state(
        state in some_state(),
        writes in prop::collection::vec((some_name(), some_key(), prop::option::of(1usize..50)), 0..20),
        deletes in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let all: Vec<_> = state.iter().flat_map(|(name, e)| e.keys().map(move |key| (name.clone(), key.clone()))).collect();
        let deletes = deletes.iter().filter(|_| !all.is_empty()).map(|pick| {
            let (name, key) = all[pick.index(all.len())].clone();
            (name, key, None)
        });
        let writes = writes.into_iter().map(|(name, k, len)| (name, key(&k), len.map(|len| value(&vec![9; len]))));
        let diff: Diff = writes.chain(deletes).collect();
        let witness = verified::<Blake3>(&state, &diff.queries());
        let mut new = state.clone();
        apply_plainly(&mut new, &diff);
        prop_assert_eq!(witness.apply(&diff), Ok(reference_root::<Blake3>(&new)));
    }
}
