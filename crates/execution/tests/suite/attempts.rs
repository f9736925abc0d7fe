//! Parts of an operation that are taken back by themselves. Rule: `spec/chain.md`, EXEC-24.

use crate::common::*;
use keelstone_codec::{Decode as _, Encode as _, Hash, Text};
use keelstone_execution::{
    ATTEMPTS_WITHIN_MAX, BlockDraft, Caller, Capability, Context, Decode, Denied, Draft, Encode, FailureKind, Finished,
    FunctionHash, Limits, PublicKey, Registry, SessionId, Stop, Transition, View, cost, denied, ensure, transition,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr;

/// How the part of [`Part`] ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
enum End {
    Kept,
    Denied,
    /// And so does the operation.
    Panic,
    PanicCaught,
    OutOfGas,
    /// With what it wrote, in one that is denied.
    KeptWithinDenied,
    /// Not begun.
    Never,
}

/// Writes, attempts to write more, and looks at what is there then.
#[transition("bank.part/1")]
#[derive(Clone, Debug)]
struct Part {
    end: End,
}

fn write(world: &mut Draft<Both>, cx: &mut Context) -> Result<(), Denied> {
    ensure!(world.bank.total.get()? == Some(1), "what stood before is seen");
    world.bank.total.set(&2)?;
    world.bank.balances.remove(&key(1))?;
    world.bank.history.push(&(key(2), 2))?;
    world.other.seen.insert(&(1, 1), &Text::new("part")?)?;
    cx.emit(&Minted { amount: 2 })?;
    ensure!(world.bank.total.get()? == Some(2), "what the part wrote is seen within");
    Ok(())
}

impl Transition<Both> for Part {
    /// Whether the part was kept.
    type Output = bool;

    fn apply(&self, world: &mut Draft<Both>, cx: &mut Context) -> Result<bool, Denied> {
        world.bank.total.set(&1)?;
        world.bank.balances.insert(&key(1), &1)?;
        cx.emit(&Minted { amount: 1 })?;
        let no = || denied!("half way");
        let kept = match self.end {
            End::Kept => cx.attempt(|cx| write(world, cx))?.is_ok(),
            End::Denied => cx.attempt(|cx| write(world, cx).and_then(|()| Err::<(), _>(no())))?.is_ok(),
            End::Panic => cx.attempt(|cx| write(world, cx).map(|()| panic!("half way")))?.is_ok(),
            End::PanicCaught => {
                let run = || cx.attempt(|cx| write(world, cx).map(|()| panic!("half way")));
                catch_unwind(AssertUnwindSafe(run)).is_ok()
            }
            End::OutOfGas => {
                // Whoever swallows what is told here gets no answer any more.
                let swallowed = cx.attempt(|cx| {
                    write(world, cx)?;
                    while cx.step(1_000_000).is_ok() {}
                    Ok(())
                });
                assert!(matches!(swallowed, Err(Stop::OutOfGas { .. })));
                true
            }
            End::KeptWithinDenied => {
                let outer = cx.attempt(|cx| {
                    cx.attempt(|cx| write(world, cx))??;
                    ensure!(world.bank.total.get()? == Some(2), "what was kept is seen outside");
                    Err::<(), _>(no())
                });
                outer?.is_ok()
            }
            End::Never => false,
        };
        let (total, told) = if kept { (2, "kept") } else { (1, "taken back") };
        ensure!(world.bank.total.get()? == Some(total), "it was {told}");
        ensure!(world.bank.balances.contains(&key(1))? != kept, "it was {told}");
        ensure!(world.bank.balances.iter().count() == usize::from(!kept), "it was {told}");
        world.bank.closed.insert(&key(9))?;
        Ok(kept)
    }
}

/// Begins attempts within one another.
#[transition("bank.nested/1")]
#[derive(Clone, Debug)]
struct Nested {
    deep: u64,
}

impl Transition<Bank> for Nested {
    type Output = ();
    fn apply(&self, bank: &mut Draft<Bank>, cx: &mut Context) -> Result<(), Denied> {
        match self.deep.checked_sub(1) {
            None => Ok(bank.total.set(&7)?),
            Some(deep) => cx.attempt(|cx| Self { deep }.apply(bank, cx))?,
        }
    }
}

/// Refuses values that are wrong with `?` alone.
#[transition("bank.wrong/1")]
#[derive(Clone, Debug)]
struct Wrong {
    which: u8,
}

impl Transition<Bank> for Wrong {
    type Output = ();
    fn apply(&self, _: &mut Draft<Bank>, _: &mut Context) -> Result<(), Denied> {
        match self.which {
            0 => drop(Text::<3>::new("four")?),
            1 => drop("no hash".parse::<Hash>()?),
            2 => drop(keelstone_codec::Key::new(Vec::new())?),
            _ => drop(keelstone_codec::unhex("0")?),
        }
        Ok(())
    }
}

/// Attempts something for each entry while it goes through them, and of each third within another attempt: with what is drawn, and
/// what a scan of what the attempt itself writes to finds.
#[transition("bank.each/1", context = random)]
#[derive(Clone, Debug)]
struct Each;

impl Transition<Both> for Each {
    type Output = (u64, u64, Vec<Hash>);

    fn apply(&self, world: &mut Draft<Both>, cx: &mut Context) -> Result<Self::Output, Denied> {
        let Both { bank, other } = &mut **world;
        let (mut met, mut kept, mut drawn) = (0, 0, Vec::new());
        for entry in bank.balances.iter() {
            let (_, balance) = entry?;
            met += 1;
            let part = |cx: &mut Context| {
                drawn.push(cx.random()?);
                other.seen.insert(&(0, balance), &Text::new("kept")?)?;
                cx.emit(&Minted { amount: balance })?;
                ensure!(other.seen.iter().count() as u64 == kept + 1, "what was taken back is not met again");
                ensure!(balance % 2 == 0, "odd");
                Ok(())
            };
            let done = match balance % 3 {
                0 => cx.attempt(|cx| cx.attempt(part)?)?,
                _ => cx.attempt(part)?,
            };
            kept += u64::from(done.is_ok());
        }
        // What is iterated may be what is taken back, too: it goes on behind what it gave out.
        let removed = cx.attempt(|_| {
            let all: Vec<(PublicKey, u64)> = bank.balances.iter().collect::<Result<_, _>>()?;
            for (account, _) in &all {
                bank.balances.remove(account)?;
                ensure!(bank.balances.iter().all(|entry| entry.is_ok_and(|(met, _)| met != *account)), "it is gone");
            }
            Err::<(), _>(denied!("{}", all.len()))
        })?;
        ensure!(removed.is_err() && bank.balances.iter().count() as u64 == met, "all are back");
        Ok((met, kept, drawn))
    }
}

fn ran(end: End) -> Result<Finished, FailureKind> {
    let registry = Registry::new().with::<Both, Part>();
    let mut draft = BlockDraft::begin(&registry, State::new(), block(1));
    let done = draft.execute(Caller::root(key(1)), &bundle(vec![op(&Part { end })]), Limits::default()).unwrap();
    done.map_err(|failed| failed.kind)
}

/// spec: EXEC-24. What is taken back is in no diff, no event and no later read; what was used is used.
#[test]
fn what_is_denied_in_an_attempt_is_as_if_it_had_not_been_done() {
    let never = ran(End::Never).unwrap();
    for end in [End::Denied, End::PanicCaught, End::KeptWithinDenied] {
        let done = ran(end).unwrap();
        let (found, expected) = (&done.outcomes[0], &never.outcomes[0]);
        assert_eq!(
            (found.diff, &found.events, &found.result),
            (expected.diff, &expected.events, &expected.result),
            "{end:?}"
        );
        assert!(done.gas_used > never.gas_used + 4 * cost::WRITE + cost::ATTEMPT, "{end:?}: {}", done.gas_used);
    }
}

/// spec: EXEC-24, EXEC-2. What is kept counts against what stood before the operation.
#[test]
fn what_an_attempt_keeps_is_the_operations() {
    let done = ran(End::Kept).unwrap();
    assert_eq!(done.outcomes[0].result, true.to_bytes());
    assert_eq!(
        done.outcomes[0].events.iter().map(|event| event.data.to_vec()).collect::<Vec<_>>(),
        [1u64.to_bytes(), 2u64.to_bytes()]
    );
    let bank = space("bank");
    let find = |key: &[u8]| done.changes.find(&bank, key).cloned();
    let total = find(b"total").unwrap();
    assert_eq!((total.before, total.after.unwrap().to_vec()), (None, 2u64.to_bytes()));
    assert!(done.changes.iter().all(|(_, key, _)| !key.starts_with(b"balances/")), "it came and went");
    assert!(find(b"history").is_some() && done.changes.iter().any(|(namespace, ..)| *namespace == space("other")));
}

/// spec: EXEC-24, EXEC-13. A stop is one within an attempt, too, and so is a panic that nobody catches.
#[test]
fn no_attempt_gets_away_with_what_stops_an_operation() {
    assert!(matches!(ran(End::OutOfGas), Err(FailureKind::Stopped(Stop::OutOfGas { .. }))));
    assert!(matches!(ran(End::Panic), Err(FailureKind::Panicked { message }) if message == "half way"));
}

/// spec: EXEC-24
#[test]
fn attempts_within_one_another_have_a_bound() {
    let registry = Registry::new().with::<Bank, Nested>();
    let run = |deep| {
        let mut draft = BlockDraft::begin(&registry, State::new(), block(1));
        let bundle = bundle(vec![op(&Nested { deep }), op(&Nested { deep: 1 })]);
        draft.execute(Caller::root(key(1)), &bundle, Limits::default()).unwrap()
    };
    let done = run(ATTEMPTS_WITHIN_MAX).unwrap();
    assert!(done.changes.find(&space("bank"), b"total").is_some());
    let failed = run(ATTEMPTS_WITHIN_MAX + 1).unwrap_err();
    assert!(matches!(failed.kind, FailureKind::Stopped(Stop::Limit { found: 9, limit: 8, .. })), "{failed}");
}

/// spec: EXEC-24, EXEC-15. Attempts within a scan, of entries of the state below and of those that the block wrote, and what they
/// draw; also where the operation was run beforehand.
#[test]
fn attempts_go_together_with_scans_and_draws() {
    let registry = registry().with::<Both, Each>();
    let (ran, changes) = run(&State::new(), (1..=5).map(|person| mint(person, u64::from(person))).collect());
    ran.unwrap();
    let mut state = State::new();
    state.apply(&changes.to_diff());
    let mut draft = BlockDraft::begin(&registry, state, block(2));
    let operations = (6..=9).map(|person| mint(person, u64::from(person))).chain([op(&Each), op(&Each)]).collect();
    let done = draft.execute(Caller::root(key(1)), &bundle(operations), Limits::default()).unwrap();
    let done = done.unwrap();
    let results = done.outcomes[4..].iter().map(|outcome| {
        let events: Vec<u64> = outcome.events.iter().map(|event| u64::from_bytes(&event.data).unwrap()).collect();
        (<(u64, u64, Vec<Hash>)>::from_bytes(&outcome.result).unwrap(), events, outcome.diff.entries)
    });
    let [((met, kept, first), mut events, entries), ((again, _, second), _, nothing)] =
        <[_; 2]>::try_from(results.collect::<Vec<_>>()).unwrap();
    events.sort_unstable();
    assert_eq!((met, kept, events, entries), (9, 4, vec![2, 4, 6, 8], 4));
    assert_eq!((again, nothing), (9, 0), "the second meets what the first left, and each part of it is denied");
    let drawn: std::collections::BTreeSet<Hash> = first.iter().chain(&second).copied().collect();
    assert_eq!(drawn.len(), 18, "nothing is drawn twice, whatever became of it");
}

/// An error that says what is wrong with a value is the reason of the denial.
#[test]
fn wrong_values_are_denied_with_a_question_mark() {
    let registry = Registry::new().with::<Bank, Wrong>();
    for (which, reason) in
        [(0, "4 is above the limit of 3"), (1, "invalid hash"), (2, "a key has at least one byte"), (3, "hexadecimal")]
    {
        let mut draft = BlockDraft::begin(&registry, State::new(), block(1));
        let done = draft.execute(Caller::root(key(1)), &bundle(vec![op(&Wrong { which })]), Limits::default()).unwrap();
        let failed = done.unwrap_err();
        assert!(matches!(&failed.kind, FailureKind::Denied(found) if found.contains(reason)), "{failed}");
    }
}

#[test]
fn identities_are_read_back_as_they_are_shown() {
    fn read_back<T: FromStr<Err: std::fmt::Debug> + ToString + PartialEq + std::fmt::Debug>(value: T) {
        assert_eq!(value.to_string().parse::<T>().unwrap(), value);
    }
    read_back(key(7));
    read_back(SessionId::root(&chain_id(), &key(7)));
    read_back(FunctionHash::of("bank.mint", 1));
    read_back(Capability::new("bank.mint"));
    assert!("A".parse::<Capability>().is_err() && "00".parse::<PublicKey>().is_err());
}

/// A helper of an application that only looks needs no more than this.
#[test]
fn what_a_view_shows_after_an_attempt_is_what_was_kept() {
    let registry = Registry::new().with::<Both, Part>();
    for (end, total) in [(End::Kept, 2), (End::Denied, 1)] {
        let mut draft = BlockDraft::begin(&registry, State::new(), block(1));
        draft.execute(Caller::root(key(1)), &bundle(vec![op(&Part { end })]), Limits::default()).unwrap().unwrap();
        let mut state = State::new();
        state.apply(&draft.finish().to_diff());
        assert_eq!(View::<Bank>::over(state).total.get().unwrap(), Some(total));
    }
}
