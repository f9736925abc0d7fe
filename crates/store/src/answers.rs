//! What was read or written lately, by its key: a read of it finds the answer without a way through the tree.
//!
//! Nothing here is believed that the tree does not say. An answer comes in after it was read through the tree and its value
//! was checked against its hash; a commit that is durable puts in what it wrote before anybody sees its version. So what
//! stands here is what the tree says, for every version since the one the answer is of, and only those
//! ask: versions on the one line that commits make, numbered by [`Answers::advance`]. A version rebuilt from history is
//! on no line, and a rollback begins the line anew with nothing. Proofs, scans and whoever looks for damage do not ask.
//!
//! Answers lie one behind the other in rings of fixed size, where the newest takes the place of the oldest; one that is
//! asked for shortly before its turn gets another round. Who finds its answer in an index of fixed size; keys that
//! fight over a place in it cost one another a way through the tree, and nothing else.

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard};
use keelstone_codec::{Bytes, Namespace, Value};
use keelstone_tree::Diff;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

/// Parts with a lock each, so that readers seldom wait for one another; fewer if there is little room.
const PARTS_MAX: u64 = 64;
/// A smaller part is not worth a lock of its own.
const PART_BYTES_MIN: u64 = 4 << 10;
/// Answers that one place of the index can lead to: a cache line of them.
const WAYS: usize = 8;
/// Bytes of a ring for each answer the index has room for: about what a short entry takes.
const BYTES_PER_ANSWER: usize = 128;
/// A ring has room for so many of the largest answers it takes.
const LARGEST: usize = 8;
/// What stands before the namespace of an answer in a ring: since when, and lengths.
const HEAD_BYTES: usize = 16;
/// The length of a value that is not there.
const ABSENT: u32 = u32::MAX;
/// Bits of a place in the index that are a position; those above are a tag.
const POSITION_BITS: u32 = 48;

/// Answers that were given lately. Whoever calls what changes the line holds the store's writer.
pub(crate) struct Answers {
    parts: Box<[Part]>,
    /// The number of the last version on the line.
    line: AtomicU64,
    /// Bytes of indexes and rings that were made.
    bytes: AtomicU64,
}

/// A version's place on the line, by which it asks for answers and gives them.
#[derive(Clone)]
pub(crate) struct OnLine {
    answers: Arc<Answers>,
    number: u64,
}

/// The keys of a diff as the index has them, in the diff's order.
pub(crate) struct Written(Vec<Spot>);

/// On a cache line of its own, so that two locks are never one to the processors.
#[repr(align(64))]
struct Part(Mutex<Content>);

struct Content {
    /// Length of the index, which there is, with the ring, from the first answer on.
    places: usize,
    index: Box<[Place]>,
    ring: Box<[u8]>,
    /// Bytes ever put in the ring, from one ring's length on, so that no position is zero.
    end: u64,
}

/// Tags and positions of the answers whose keys have this place; zero if none.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Place([u64; WAYS]);

/// A key as the index has it.
#[derive(Clone, Copy)]
struct Spot {
    part: u32,
    place: u32,
    tag: u16,
}

impl Answers {
    /// Room for answers of `bytes` in all, index included. None for less than makes sense.
    pub(crate) fn new(bytes: u64) -> Option<Arc<Self>> {
        let count = (bytes / PART_BYTES_MIN).min(PARTS_MAX);
        let part_bytes = usize::try_from(bytes.checked_div(count)?).unwrap_or(usize::MAX);
        let places = (part_bytes / (size_of::<Place>() + WAYS * BYTES_PER_ANSWER)).min(1 << 20);
        let part = || Part(Mutex::new(Content { places, index: Box::default(), ring: Box::default(), end: 0 }));
        let parts = (0..count).map(|_| part()).collect();
        Some(Arc::new(Self { parts, line: AtomicU64::new(0), bytes: AtomicU64::new(0) }))
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Finds what a diff writes, and looks at it so that [`Self::advance`] has it near.
    pub(crate) fn look(&self, diff: &Diff) -> Written {
        let spot = |key: (&Namespace, &[u8])| {
            let spot = self.spot(key.0, key.1);
            std::hint::black_box(self.part(spot).place(spot));
            spot
        };
        Written(diff.iter().map(|(namespace, write)| spot((namespace, write.key.as_slice()))).collect())
    }

    /// Puts in what a diff writes, in the place of what is known of its keys, and gives the version that results its place
    /// on the line. Whoever calls this keeps that version to itself until it has returned.
    pub(crate) fn advance(self: &Arc<Self>, diff: &Diff, written: &Written) -> OnLine {
        // First the number: from here on no older version puts anything in. What one has put in by now is found.
        let number = self.line.fetch_add(1, Ordering::Relaxed) + 1;
        let mut made = 0;
        for ((namespace, write), spot) in diff.iter().zip(&written.0) {
            let value = write.value.as_ref().map(Value::as_slice);
            made += self.part(*spot).put(*spot, number, namespace.as_bytes(), write.key.as_slice(), value);
        }
        self.bytes.fetch_add(made as u64, Ordering::Relaxed);
        OnLine { answers: Arc::clone(self), number }
    }

    /// As [`Self::advance`], for a version that is no successor of the last: everything is taken out.
    pub(crate) fn start_over(self: &Arc<Self>) -> OnLine {
        let number = self.line.fetch_add(1, Ordering::Relaxed) + 1;
        for Part(part) in &self.parts {
            part.lock().unwrap_or_else(PoisonError::into_inner).index.fill(Place::default());
        }
        OnLine { answers: Arc::clone(self), number }
    }

    fn spot(&self, namespace: &Namespace, key: &[u8]) -> Spot {
        let hash = hash(namespace.as_bytes(), key);
        let part = scaled(low(hash >> 16), self.parts.len());
        Spot { part: u32::try_from(part).expect("at most 64"), place: low(hash >> 32), tag: (hash & 0xffff) as u16 }
    }

    fn part(&self, spot: Spot) -> MutexGuard<'_, Content> {
        // A panic in between leaves an answer that is found or not, but never a wrong one: each is compared with its key.
        self.parts[spot.part as usize].0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OnLine {
    /// What a key holds in this version: as it was read lately, or what `read` finds through the tree.
    pub(crate) fn get<E>(
        &self,
        namespace: &Namespace,
        key: &[u8],
        read: impl FnOnce() -> Result<Option<Value>, E>,
    ) -> Result<Option<Value>, E> {
        let spot = self.answers.spot(namespace, key);
        if let Some(answer) = self.find(spot, namespace, key) {
            return Ok(answer);
        }
        let answer = read()?;
        self.put(spot, namespace, key, answer.as_ref());
        Ok(answer)
    }

    fn find(&self, spot: Spot, namespace: &Namespace, key: &[u8]) -> Option<Option<Value>> {
        let mut part = self.answers.part(spot);
        let answer = part.find(spot, namespace.as_bytes(), key)?;
        if answer.since > self.number {
            // Of a later version than this one: it may have held something else before.
            return None;
        }
        let value = answer.value.map(|value| Bytes::copy_from_slice(&part.ring[value]));
        if part.goes_soon(answer.position) {
            part.put(spot, answer.since, namespace.as_bytes(), key, value.as_deref());
        }
        Some(value.map(|value| Value::new(value).expect("only values are put in")))
    }

    /// Notes what a key holds in this version. Only the last version may.
    fn put(&self, spot: Spot, namespace: &Namespace, key: &[u8], value: Option<&Value>) {
        let mut part = self.answers.part(spot);
        // Under the lock: whoever puts in what a newer version writes has moved the line on before, and either writes
        // over what is put in here, or is seen.
        if self.answers.line.load(Ordering::Relaxed) == self.number {
            let made = part.put(spot, self.number, namespace.as_bytes(), key, value.map(Value::as_slice));
            self.answers.bytes.fetch_add(made as u64, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for OnLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "number {} of the line", self.number)
    }
}

/// An answer as it lies in a ring.
struct Answer {
    /// The version it is of, and of which it holds from there on.
    since: u64,
    position: u64,
    /// Where its value lies, if there is one.
    value: Option<Range<usize>>,
}

impl Content {
    fn at(&self, spot: Spot) -> usize {
        scaled(spot.place, self.places)
    }

    fn place(&self, spot: Spot) -> u64 {
        self.index.get(self.at(spot)).map_or(0, |place| place.0[0])
    }

    /// Bytes that came in since what was put at a position.
    fn age(&self, position: u64) -> u64 {
        self.end - position
    }

    /// Whether what was put at a position is among the next to be written over.
    fn goes_soon(&self, position: u64) -> bool {
        self.age(position) > (self.ring.len() - self.ring.len() / 4) as u64
    }

    fn find(&self, spot: Spot, namespace: &[u8], key: &[u8]) -> Option<Answer> {
        let Place(ways) = self.index.get(self.at(spot))?;
        let tagged = ways.iter().filter(|way| **way != 0 && **way >> POSITION_BITS == u64::from(spot.tag));
        let positions = tagged.map(|way| way & ((1 << POSITION_BITS) - 1));
        let whole = positions.filter(|position| self.age(*position) <= self.ring.len() as u64);
        { whole }.find_map(|position| self.read(position, namespace, key))
    }

    fn offset(&self, position: u64) -> usize {
        usize::try_from(position % self.ring.len() as u64).expect("below the ring's length")
    }

    /// The answer at a position, if it is that to this key.
    fn read(&self, position: u64, namespace: &[u8], key: &[u8]) -> Option<Answer> {
        let offset = self.offset(position);
        let (head, rest) = self.ring[offset..].split_first_chunk::<HEAD_BYTES>()?;
        let [since, lens] = [0, 8].map(|at| u64::from_le_bytes(*head[at..].first_chunk().expect("eight bytes of 16")));
        let (value_len, lens) = (low(lens), low(lens >> 32));
        if (lens & 0xff) as usize != namespace.len() || (lens >> 8) as usize != key.len() {
            return None;
        }
        let (found_namespace, rest) = rest.split_at_checked(namespace.len())?;
        if found_namespace != namespace || rest.get(..key.len())? != key {
            return None;
        }
        let start = offset + HEAD_BYTES + namespace.len() + key.len();
        let value = (value_len != ABSENT).then(|| start..start + value_len as usize);
        Some(Answer { since, position, value })
    }

    fn forget(&mut self, spot: Spot) {
        let at = self.at(spot);
        let ways = self.index.get_mut(at).into_iter().flat_map(|place| &mut place.0);
        // By its tag alone: that another answer goes with it is no loss.
        ways.filter(|way| **way >> POSITION_BITS == u64::from(spot.tag)).for_each(|way| *way = 0);
    }

    /// Puts an answer in the place of any other to its key, if it is not too large. Returns the bytes of memory it took to
    /// begin with.
    fn put(&mut self, spot: Spot, since: u64, namespace: &[u8], key: &[u8], value: Option<&[u8]>) -> usize {
        self.forget(spot);
        let mut made = 0;
        if self.index.is_empty() {
            self.index = vec![Place::default(); self.places].into();
            self.ring = vec![0; self.places * WAYS * BYTES_PER_ANSWER].into();
            self.end = self.ring.len() as u64;
            made = size_of_val(&*self.index) + self.ring.len();
        }
        let bytes = value.unwrap_or_default();
        let len = HEAD_BYTES + namespace.len() + key.len() + bytes.len();
        let lens = (u8::try_from(namespace.len()), u16::try_from(key.len()), u32::try_from(bytes.len()));
        let (Ok(namespace_len), Ok(key_len), Ok(value_len)) = lens else { return made };
        if len > self.ring.len() / LARGEST {
            return made;
        }
        let mut offset = self.offset(self.end);
        if len > self.ring.len() - offset {
            self.end += (self.ring.len() - offset) as u64;
            offset = 0;
        }
        if self.end >= 1 << POSITION_BITS {
            return made;
        }
        let value_len = value.map_or(ABSENT, |_| value_len);
        let lens = u64::from(value_len) | u64::from(namespace_len) << 32 | u64::from(key_len) << 40;
        let mut rest = &mut self.ring[offset..offset + len];
        for part in [&since.to_le_bytes()[..], &lens.to_le_bytes(), namespace, key, bytes] {
            let (to, after) = rest.split_at_mut(part.len());
            to.copy_from_slice(part);
            rest = after;
        }
        let way = u64::from(spot.tag) << POSITION_BITS | self.end;
        self.end += len as u64;
        let at = self.at(spot);
        // In the place of the oldest: one that is free, or written over, is older than any other.
        let oldest = self.index[at].0.iter_mut().min_by_key(|way| **way & ((1 << POSITION_BITS) - 1));
        *oldest.expect("there are eight") = way;
        made
    }
}

/// The lower half.
#[expect(clippy::cast_possible_truncation, reason = "that is what is asked for")]
fn low(word: u64) -> u32 {
    word as u32
}

/// A number below `end` in place of one below 2^32: as even as a remainder, without a division.
fn scaled(number: u32, end: usize) -> usize {
    usize::try_from((u64::from(number) * end as u64) >> 32).expect("below an usize")
}

/// Spreads keys over the index. Two that meet there are told apart by their bytes, so it need not withstand anybody.
#[expect(clippy::cast_possible_truncation, reason = "the halves of a product")]
fn hash(namespace: &[u8], key: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;
    let mix = |hash: u64, word: u64| {
        let product = u128::from(hash ^ word) * u128::from(FACTOR);
        (product >> 64) as u64 ^ product as u64
    };
    let mut hash = FACTOR;
    for bytes in [namespace, key] {
        let (words, last) = bytes.as_chunks::<8>();
        let mut rest = [0; 8];
        rest[..last.len()].copy_from_slice(last);
        hash = words.iter().fold(hash, |hash, word| mix(hash, u64::from_le_bytes(*word)));
        hash = mix(hash, u64::from_le_bytes(rest)) ^ bytes.len() as u64;
    }
    mix(hash, FACTOR)
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "numbers in tests are small")]
mod tests {
    use super::*;
    use keelstone_codec::{Key, splitmix64};
    use std::collections::BTreeMap;
    use std::convert::Infallible;

    type State = BTreeMap<(Namespace, Vec<u8>), Value>;

    fn name(text: &str) -> Namespace {
        Namespace::new(text).expect("a name")
    }

    fn value(bytes: impl Into<Vec<u8>>) -> Value {
        Value::new(bytes.into()).expect("a value")
    }

    fn diff<'w>(writes: impl IntoIterator<Item = (&'w Namespace, &'w [u8], Option<Value>)>) -> Diff {
        let key = |key: &[u8]| Key::new(key).expect("a key");
        writes.into_iter().map(|(namespace, bytes, value)| (namespace.clone(), key(bytes), value)).collect()
    }

    fn advance(answers: &Arc<Answers>, diff: &Diff) -> OnLine {
        let written = answers.look(diff);
        answers.advance(diff, &written)
    }

    /// Asks, and says as well whether the tree was.
    fn ask(on_line: &OnLine, namespace: &Namespace, key: &[u8], held: Option<&Value>) -> (Option<Value>, bool) {
        let mut read = false;
        let answer = on_line.get(namespace, key, || {
            read = true;
            Ok::<_, Infallible>(held.cloned())
        });
        let Ok(answer) = answer;
        (answer, read)
    }

    fn key(number: u64) -> Vec<u8> {
        vec![number as u8; 1 + number as usize % 9]
    }

    /// However versions follow one another and readers of each take turns, none is told what is not its own; and memory
    /// stays within its bound.
    #[test]
    fn an_answer_is_that_of_the_version_that_asks() {
        for seed in 0..40 {
            let mut random = seed;
            let mut roll = |end: u64| splitmix64(&mut random) % end;
            // Room for a few answers only in some, for all in others.
            let room = [4_096, 30_000, 400_000][roll(3) as usize];
            let answers = Answers::new(room).expect("some room");
            let spaces = [name("a"), name("ab")];
            let mut versions: Vec<(OnLine, State)> = vec![(answers.start_over(), State::new())];
            let (mut told, mut older) = (0, 0);
            for step in 0..4_000u64 {
                let (_, mut state) = versions.last().expect("there is one").clone();
                match roll(12) {
                    0 => {
                        let writes: BTreeMap<(Namespace, Vec<u8>), Option<Value>> = (0..roll(8))
                            .map(|_| {
                                let len = if roll(9) == 0 { 300 } else { 1 + roll(30) as usize };
                                let new =
                                    (roll(4) > 0).then(|| value([&step.to_le_bytes()[..], &vec![7; len]].concat()));
                                ((spaces[roll(2) as usize].clone(), key(roll(60))), new)
                            })
                            .collect();
                        let diff = diff(writes.iter().map(|((space, key), new)| (space, &key[..], new.clone())));
                        let on_line = advance(&answers, &diff);
                        for (at, new) in writes {
                            match new {
                                Some(new) => drop(state.insert(at, new)),
                                None => drop(state.remove(&at)),
                            }
                        }
                        versions.push((on_line, state));
                    }
                    // An earlier state comes back, as a version of its own.
                    1 if roll(20) == 0 => {
                        let (_, state) = versions[roll(versions.len() as u64) as usize].clone();
                        versions.push((answers.start_over(), state));
                    }
                    _ => {
                        let back = (roll(3) * roll(3)).min(versions.len() as u64 - 1) as usize;
                        let (on_line, state) = &versions[versions.len() - 1 - back];
                        let (space, key) = (&spaces[roll(2) as usize], key(roll(60)));
                        let expected = state.get(&(space.clone(), key.clone()));
                        let (found, read) = ask(on_line, space, &key, expected);
                        assert_eq!(found.as_ref(), expected, "seed {seed}, step {step}");
                        told += usize::from(!read);
                        older += usize::from(!read && back > 0);
                    }
                }
                assert!(answers.bytes() <= room, "{} bytes of {room}", answers.bytes());
            }
            assert!(told > 300 && older > 30, "seed {seed}: {told} answers, {older} to older versions");
        }
    }

    /// What is put in beside the writer is renewed by it, or does not get in, whoever comes first.
    #[test]
    fn nothing_old_is_put_in_behind_the_writers_back() {
        let answers = Answers::new(1 << 20).expect("some room");
        let (space, key) = (name("a"), b"k");
        let value = |number: u64| value(number.to_le_bytes());
        let current = Mutex::new((0u64, answers.start_over()));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    loop {
                        let (number, on_line) = current.lock().expect("nobody panics holding it").clone();
                        let held = value(number);
                        assert_eq!(ask(&on_line, &space, key, Some(&held)).0, Some(held));
                        if number == 20_000 {
                            return;
                        }
                    }
                });
            }
            for number in 1..=20_000 {
                // Every third is of another key, so that what readers put in is met as well.
                let written = if number % 3 == 0 { &b"other"[..] } else { key };
                let new = diff([(&space, written, Some(value(number))), (&space, key, Some(value(number)))]);
                let on_line = advance(&answers, &new);
                *current.lock().expect("nobody panics holding it") = (number, on_line);
            }
        });
    }

    /// A commit's own values are answers at once, and so is that a key is gone.
    #[test]
    fn what_is_written_is_known() {
        let answers = Answers::new(1 << 20).expect("some room");
        let (space, old, new) = (name("a"), value([1; 50]), value([2; 60]));
        let first = answers.start_over();
        assert_eq!(ask(&first, &space, b"k", Some(&old)), (Some(old.clone()), true));
        let second = advance(&answers, &diff([(&space, &b"k"[..], Some(new.clone())), (&space, b"not read", None)]));
        assert_eq!(ask(&second, &space, b"k", None), (Some(new), false));
        assert_eq!(ask(&second, &space, b"not read", None), (None, false));
        // The one before holds what it held, and does not put it in the place of what came since.
        assert_eq!(ask(&first, &space, b"k", Some(&old)), (Some(old.clone()), true));
        let third = advance(&answers, &diff([(&space, &b"k"[..], None)]));
        assert_eq!(ask(&third, &space, b"k", Some(&old)), (None, false));
        assert_eq!(ask(&second, &space, b"k", Some(&old)), (Some(old), true));
    }

    /// What is asked for again and again stays, however much else is asked for once.
    #[test]
    fn an_answer_in_use_is_kept() {
        let answers = Answers::new(64 << 10).expect("some room");
        let (space, held, on_line) = (name("a"), value([1; 100]), answers.start_over());
        let mut again = 0;
        for number in 0..20_000u64 {
            ask(&on_line, &space, &number.to_le_bytes(), Some(&held));
            if number % 8 == 0 {
                again += u32::from(ask(&on_line, &space, b"hot", Some(&held)).1);
            }
        }
        assert!(again < 100, "read {again} times of 2,500");
    }

    /// Answers that do not fit are not kept, and less room than makes sense is none.
    #[test]
    fn what_does_not_fit_is_read_again() {
        assert!(Answers::new(0).is_none() && Answers::new(PART_BYTES_MIN - 1).is_none());
        let answers = Answers::new(100_000).expect("some room");
        let (on_line, space, large) = (answers.start_over(), name("a"), value([1; 100_000]));
        for _ in 0..2 {
            assert_eq!(ask(&on_line, &space, b"k", Some(&large)), (Some(large.clone()), true));
        }
        assert_eq!(ask(&on_line, &space, b"k", None), (None, true));
        assert_eq!(ask(&on_line, &space, b"k", None), (None, false));
        assert_eq!(ask(&on_line, &space, b"kk", None), (None, true));
        // What becomes too large is no answer any more.
        let on_line = advance(&answers, &diff([(&space, &b"k"[..], Some(large.clone()))]));
        assert_eq!(ask(&on_line, &space, b"k", Some(&large)), (Some(large), true));
    }

    /// Without an answer there is no memory for any.
    #[test]
    fn memory_is_taken_from_the_first_answer_on() {
        let answers = Answers::new(1 << 20).expect("some room");
        let (space, on_line) = (name("a"), answers.start_over());
        let last = answers.start_over();
        ask(&on_line, &space, b"k", None);
        assert_eq!(answers.bytes(), 0, "an older version puts nothing in");
        ask(&last, &space, b"k", None);
        let part = answers.bytes();
        assert!((1..=(1 << 20) / 64).contains(&part), "{part} bytes");
        let keys: Vec<_> = (0..1_000u64).map(u64::to_le_bytes).collect();
        advance(&answers, &diff(keys.iter().map(|key| (&space, &key[..], None))));
        assert_eq!(answers.bytes(), 64 * part, "whatever is written takes it as well");
    }
}
