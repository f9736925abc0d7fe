//! What can be asked of a proof, and which nodes answering it takes.
//!
//! Every question comes down to ranges of keys: the ranges that must be seen, and those whose values must be seen too.
//! A prover opens what meets them and a verifier refuses what does not (spec: TREE-7), and both find out here, so that
//! for a state and a set of questions there is exactly one proof.
//!
//! Rules: `spec/tree.md`, TREE-7 and TREE-10.

use crate::{KeyRange, bits, read::prefix_end};
use keelstone_codec::{Key, Namespace};
use std::borrow::Cow;
use std::cmp::Ordering;

/// A question to a state, which a proof answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// The value of a key, or its absence.
    Key(Namespace, Key),
    /// What writing or deleting a key takes: whether it is there and how long its value is, but not the value.
    Write(Namespace, Key),
    /// All entries of a range. Its direction does not matter.
    Range(Namespace, KeyRange),
    /// All entries whose keys begin with these bytes.
    Prefix(Namespace, Vec<u8>),
    /// How many entries have keys that begin with these bytes, and how many bytes they have.
    PrefixTotals(Namespace, Vec<u8>),
    /// The root and the totals of a namespace, or its absence.
    Namespace(Namespace),
    /// The names, roots and totals of all namespaces.
    Namespaces,
}

/// Keys from `start` to before `end`, never empty.
#[derive(Clone, Debug)]
pub(crate) struct Span<'q> {
    start: Cow<'q, [u8]>,
    end: Option<Cow<'q, [u8]>>,
}

impl<'q> Span<'q> {
    fn between(start: &'q [u8], end: Option<Cow<'q, [u8]>>) -> Self {
        Self { start: start.into(), end }
    }

    pub(crate) fn of_range(range: &'q KeyRange) -> Self {
        Self::between(&range.start, range.end.as_deref().map(Cow::Borrowed))
    }

    /// One key alone: nothing stands between a key and the same key with a zero behind it.
    pub(crate) fn only(key: &'q [u8]) -> Self {
        let mut end = Vec::with_capacity(key.len() + 1);
        end.extend_from_slice(key);
        end.push(0);
        Self::between(key, Some(end.into()))
    }

    pub(crate) fn start(&self) -> &[u8] {
        &self.start
    }

    fn is_empty(&self) -> bool {
        self.end.as_deref().is_some_and(|end| end <= &*self.start)
    }

    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        &*self.start <= key && self.end.as_deref().is_none_or(|end| key < end)
    }

    /// Whether a key that begins with the region's bits could be in the span (spec: TREE-10).
    pub(crate) fn meets(&self, region: &Region<'_>) -> bool {
        self.relation(region) == Ordering::Equal
    }

    /// Less: every key of the region is before the span. Greater: behind it. Equal: the two meet.
    fn relation(&self, region: &Region<'_>) -> Ordering {
        if region.compare(&self.start) == Ordering::Less {
            return Ordering::Less;
        }
        let Some(end) = self.end.as_deref() else { return Ordering::Equal };
        match region.compare(end) {
            Ordering::Less => Ordering::Equal,
            Ordering::Greater => Ordering::Greater,
            // The region holds `end`. Keys before `end` are in it too, unless `end` is the least of them, that is all
            // its ones are in the region's own bits.
            Ordering::Equal if last_one(end).is_some_and(|one| one > region.crit) => Ordering::Equal,
            Ordering::Equal => Ordering::Greater,
        }
    }
}

/// All keys with certain leading bits: those a child of an inner node is known to hold before it is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region<'k> {
    /// A key below the inner node. It has the region's bits before `crit`.
    pub(crate) sample: &'k [u8],
    /// The inner node's critical bit.
    pub(crate) crit: u16,
    /// The region's bit there: the side of the child.
    pub(crate) side: bool,
}

impl Region<'_> {
    /// How the region's keys stand to `key`; equal if `key` has the region's bits.
    pub(crate) fn compare(&self, key: &[u8]) -> Ordering {
        match bits::crit(self.sample, key) {
            Some(at) if at < self.crit => bits::bit(self.sample, at).cmp(&bits::bit(key, at)),
            _ => self.side.cmp(&bits::bit(key, self.crit)),
        }
    }

    /// The least key of the region, or, if its bits end inside a byte, the one with zeros in the rest of it.
    pub(crate) fn least(&self) -> Vec<u8> {
        bits::least(self.sample, self.crit, self.side)
    }
}

/// The place of the last 1 among a key's bits; none for no bytes.
fn last_one(key: &[u8]) -> Option<u16> {
    let last = *key.last()?;
    // A zero byte has no one but that which says it is there.
    let within = if last == 0 { 0 } else { 8 - last.trailing_zeros() as usize };
    // Longer than any key of the format: far behind all of a region's bits.
    Some(u16::try_from((key.len() - 1) * 9 + within).unwrap_or(u16::MAX))
}

/// Ranges to see in one tree, in order and apart from one another.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spans<'q>(Vec<Span<'q>>);

impl<'q> Spans<'q> {
    pub(crate) fn as_slice(&self) -> &[Span<'q>] {
        &self.0
    }

    fn push(&mut self, span: Span<'q>) {
        if !span.is_empty() {
            self.0.push(span);
        }
    }

    /// Sorts, and joins spans that overlap or touch: the same keys must give the same proof however they are asked for.
    fn settle(&mut self) {
        if self.0.len() < 2 {
            return;
        }
        self.0.sort_by(|a, b| a.start.cmp(&b.start));
        let mut joined: Vec<Span<'q>> = Vec::with_capacity(self.0.len());
        for span in self.0.drain(..) {
            match joined.last_mut() {
                Some(last) if last.end.as_deref().is_none_or(|end| &*span.start <= end) => {
                    if last.end.is_some() && (span.end.is_none() || span.end > last.end) {
                        last.end = span.end;
                    }
                }
                _ => joined.push(span),
            }
        }
        self.0 = joined;
    }

    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        let before = self.0.partition_point(|span| &*span.start <= key);
        before > 0 && self.0[before - 1].contains(key)
    }
}

/// The run of `spans` that meets a region. Spans are in order and apart, so it is one run.
pub(crate) fn meeting<'s, 'q>(spans: &'s [Span<'q>], region: &Region<'_>) -> &'s [Span<'q>] {
    if let [only] = spans {
        return if only.meets(region) { spans } else { &[] };
    }
    let from = spans.partition_point(|span| span.relation(region) == Ordering::Greater);
    let len = spans[from..].partition_point(|span| span.relation(region) == Ordering::Equal);
    &spans[from..from + len]
}

/// What one namespace is asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct EntryNeeds<'q> {
    /// What must be seen.
    pub(crate) seen: Spans<'q>,
    /// Where values must be seen as well.
    pub(crate) values: Spans<'q>,
}

/// What a set of questions takes, at both levels.
#[derive(Clone, Debug, Default)]
pub(crate) struct Needs<'q> {
    /// Names to see at the state level.
    pub(crate) names: Spans<'q>,
    /// What to see in the namespaces, by name.
    entries: Vec<(&'q Namespace, EntryNeeds<'q>)>,
}

impl<'q> Needs<'q> {
    pub(crate) fn of(queries: &'q [Query]) -> Self {
        let mut needs = Self::default();
        for query in queries {
            match query {
                Query::Key(namespace, key) => needs.see(namespace, Some(Span::only(key)), true),
                Query::Write(namespace, key) => needs.see(namespace, Some(Span::only(key)), false),
                Query::Range(namespace, range) => needs.see(namespace, Some(Span::of_range(range)), true),
                Query::Prefix(namespace, prefix) => {
                    let end = prefix_end(prefix).map(Cow::Owned);
                    needs.see(namespace, Some(Span::between(prefix, end)), true);
                }
                // The way of the prefix itself passes the node whose totals they are, and goes on to a leaf below.
                Query::PrefixTotals(namespace, prefix) => {
                    let span = (!prefix.is_empty()).then(|| Span::only(prefix));
                    needs.see(namespace, span, false);
                }
                Query::Namespace(namespace) => needs.see(namespace, None, false),
                Query::Namespaces => needs.names.push(Span::between(&[], None)),
            }
        }
        needs.names.settle();
        for (_, entries) in &mut needs.entries {
            entries.seen.settle();
            entries.values.settle();
        }
        needs
    }

    fn see(&mut self, namespace: &'q Namespace, span: Option<Span<'q>>, values: bool) {
        self.names.push(Span::only(namespace.as_bytes()));
        let Some(span) = span else { return };
        let at = match self.entries.binary_search_by(|(name, _)| (*name).cmp(namespace)) {
            Ok(at) => at,
            Err(at) => {
                self.entries.insert(at, (namespace, EntryNeeds::default()));
                at
            }
        };
        let entries = &mut self.entries[at].1;
        if values {
            entries.values.push(span.clone());
        }
        entries.seen.push(span);
    }

    /// What must be seen of a namespace's entries; none if nothing.
    pub(crate) fn entries(&self, name: &[u8]) -> Option<&EntryNeeds<'q>> {
        let at = self.entries.binary_search_by(|(found, _)| found.as_bytes().cmp(name)).ok()?;
        Some(&self.entries[at].1).filter(|needs| !needs.seen.0.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All keys of up to three bytes over a small alphabet: enough to stand for all keys where bytes are few.
    fn small_keys() -> Vec<Vec<u8>> {
        let alphabet = [0u8, 1, 2, 0x7f, 0x80, 0xff];
        let mut keys = vec![vec![]];
        for len in 0..3 {
            let longer: Vec<Vec<u8>> = keys
                .iter()
                .filter(|key| key.len() == len)
                .flat_map(|key| alphabet.map(|byte| [key.as_slice(), &[byte]].concat()))
                .collect();
            keys.extend(longer);
        }
        keys
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![Just(0u8), Just(1), Just(2), Just(0x7f), Just(0x80), Just(0xff)];
        prop::collection::vec(byte, 0..3)
    }

    proptest! {
        /// spec: TREE-10. A span meets a region if and only if some key is in both.
        #[test]
        fn a_span_meets_a_region_that_shares_a_key_with_it(
            sample in bytes(), crit in 1u16..27, side: bool, start in bytes(), end in prop::option::of(bytes()),
        ) {
            let span = Span { start: start.into(), end: end.map(Cow::Owned) };
            let possible = side || crit % 9 != 0 || usize::from(crit / 9) == sample.len();
            // Bits beyond the end of a key are zero, so some regions hold no key at all.
            prop_assume!(possible && !span.is_empty() && usize::from(crit / 9) <= sample.len());
            prop_assume!(crit % 9 == 0 || usize::from(crit / 9) < sample.len());
            let region = Region { sample: &sample, crit, side };
            let mut shared = small_keys().into_iter().chain((0..=255).map(|byte| [&sample[..usize::from(crit / 9)], &[byte]].concat()));
            let shared = shared.any(|key| {
                !key.is_empty() && (0..crit).all(|i| bits::bit(&key, i) == bits::bit(&sample, i))
                    && bits::bit(&key, crit) == side && span.contains(&key)
            });
            if shared {
                prop_assert!(span.meets(&region));
            } else if span.meets(&region) {
                // Only keys that are longer than the small ones can be meant.
                let end = span.end.as_deref().unwrap_or(&[]);
                prop_assert!(span.start.len() >= 2 || end.len() >= 2, "{span:?} {region:?}");
            }
        }
    }

    /// The same keys asked for in another order, twice, or in pieces that touch, are the same spans.
    #[test]
    fn spans_do_not_depend_on_how_the_question_is_put() {
        let name = Namespace::new("n").unwrap();
        let range = |a: &[u8], b: &[u8]| Query::Range(name.clone(), KeyRange::between(a, b));
        let whole = [range(b"a", b"f")];
        let pieces = [range(b"c", b"f"), range(b"a", b"c"), range(b"b", b"d"), range(b"x", b"x"), range(b"a", b"c")];
        let settled = |queries: &[Query]| format!("{:?}", Needs::of(queries).entries(b"n").unwrap().seen);
        assert_eq!(settled(&whole), settled(&pieces));
    }
}
