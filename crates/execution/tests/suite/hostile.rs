//! What an adversary may send, and what a colleague may have got wrong.

use crate::common::*;
use keelstone_codec::{Blob, Decode, DecodeError, Encode, Hash, Key, Value};
use keelstone_execution::{
    ARGS_BYTES_MAX, Activity, BlockDraft, Bundle, Caller, Context, Denied, Draft, EVENT_BYTES_MAX, Emitted,
    FailureKind, FunctionHash, Item, Limits, Map, Mode, OPERATIONS_MAX, Operation, RESULT_BYTES_MAX, Session,
    SessionError, Stop, Transition, denied, event, namespace, transition,
};
use keelstone_tree::Diff;
use std::time::Instant;

/// spec: EXEC-19. X-03: no operations, and one more than 65,535.
#[test]
fn x03_a_bundle_has_1_to_65535_operations() {
    assert!(Bundle::new(Mode::Sync, Vec::new()).is_err());
    let one = op(&Nothing);
    assert!(Bundle::new(Mode::Sync, vec![one.clone(); OPERATIONS_MAX]).is_ok());
    assert!(Bundle::new(Mode::Sync, vec![one.clone(); OPERATIONS_MAX + 1]).is_err());

    let encode = |count: u32, operations: &[Operation]| {
        let mut bytes = Mode::Sync.to_bytes();
        count.encode(&mut bytes);
        operations.iter().for_each(|operation| operation.encode(&mut bytes));
        bytes
    };
    assert!(matches!(Bundle::from_bytes(&encode(0, &[])), Err(DecodeError::Invalid { .. })));
    let too_many = encode(65_536, &vec![one.clone(); 65_536]);
    let error = Bundle::from_bytes(&too_many).unwrap_err();
    assert_eq!(error, DecodeError::TooLarge { what: "operations of a bundle", found: 65_536, limit: 65_535 });
    // A hostile count does not reserve memory.
    assert!(matches!(Bundle::from_bytes(&encode(65_535, &[one])), Err(DecodeError::Truncated { .. })));
}

/// spec: EXEC-19. X-03: arguments of 10 MB are refused by their length, before they are read.
#[test]
fn x03_arguments_have_at_most_a_mebibyte() {
    assert!(Blob::<ARGS_BYTES_MAX>::new(vec![0; 10 << 20]).is_err());
    let mut bytes = op(&Nothing).function.to_bytes();
    (10u32 << 20).encode(&mut bytes);
    let error = Operation::from_bytes(&bytes).unwrap_err();
    assert_eq!(error, DecodeError::TooLarge { what: "blob", found: 10 << 20, limit: 1 << 20 });
}

/// a function nobody registered, and arguments that are not the function's.
#[test]
fn x03_unknown_functions_and_foreign_arguments_fail_at_their_index() {
    let unknown = Operation { function: FunctionHash(Hash([3; 32])), ..op(&Nothing) };
    let (result, changes) = run(&State::new(), vec![mint(2, 1), unknown]);
    let failed = result.unwrap_err();
    assert!(matches!(failed.kind, FailureKind::UnknownFunction) && failed.operation == 1 && changes.is_empty());

    let foreign = Operation { args: Blob::new(vec![1, 2, 3]).unwrap(), ..mint(2, 1) };
    let (result, _) = run(&State::new(), vec![foreign]);
    assert!(matches!(result.unwrap_err().kind, FailureKind::Arguments(DecodeError::Truncated { .. })));
    let trailing = Operation { args: Blob::new(vec![1]).unwrap(), ..op(&Nothing) };
    let (result, _) = run(&State::new(), vec![trailing]);
    assert!(matches!(result.unwrap_err().kind, FailureKind::Arguments(DecodeError::Trailing { left: 1 })));
}

/// 65,535 operations run; positions in a bundle reach 65,534.
#[test]
fn x07_the_largest_bundle_runs() {
    let limits = Limits { gas_max: u64::MAX, ..Limits::default() };
    let operations = vec![op(&Nothing); OPERATIONS_MAX];
    let (result, _) = run_with(&State::new(), Caller::root(key(1)), operations, limits).unwrap();
    let finished = result.unwrap();
    assert_eq!((finished.outcomes.len(), finished.record.sequence), (65_535, 65_535));
}

/// counters at their last number are errors that say so, and so is a session's sequence.
#[test]
fn x07_counters_at_u64_max_are_checked_errors() {
    let full = |namespace: &str, key_bytes: &[u8], value: Vec<u8>| {
        let mut state = State::new();
        let write = (space(namespace), Key::new(key_bytes).unwrap(), Some(Value::new(value).unwrap()));
        state.apply(&[write].into_iter().collect::<Diff>());
        state
    };
    let max = u64::MAX.to_bytes();
    let (result, _) = run(&full("bank", b"ids", max.clone()), vec![op(&Flood { count: 1, bytes: 1 })]);
    assert!(matches!(result.unwrap_err().kind, FailureKind::Stopped(Stop::Exhausted { what: "ids" })));
    let (result, _) = run(&full("bank", b"history", max.clone()), vec![mint(1, 1)]);
    assert!(matches!(result.unwrap_err().kind, FailureKind::Stopped(Stop::Exhausted { what: "history" })));
    let (result, _) = run(&full("bank", b"total", max), vec![mint(1, 1)]);
    assert!(matches!(result.unwrap_err().kind, FailureKind::Denied(_)));
    let (result, _) = run(&State::new(), vec![mint(1, u64::MAX)]);
    result.unwrap();

    let mut session = Session::root(&chain_id(), key(1));
    session.sequence = u64::MAX;
    let id = keelstone_execution::SessionId::root(&chain_id(), &key(1));
    let state = full("sessions", &[b"records/".as_slice(), id.as_bytes()].concat(), session.to_bytes());
    let (result, _) = run(&state, vec![mint(1, 1)]);
    assert!(matches!(result.unwrap_err().kind, FailureKind::Session(SessionError::Exhausted(_))));
}

/// the highest height, the latest time and a limit of all gas are numbers like any other.
#[test]
fn x07_height_and_gas_at_u64_max_are_no_special_case() {
    let registry = registry();
    let context = keelstone_execution::BlockContext {
        height: keelstone_codec::Height(u64::MAX),
        time: keelstone_codec::Timestamp(u64::MAX),
        ..block(1)
    };
    let mut draft = BlockDraft::begin(&registry, State::new(), context);
    let limits = Limits { gas_max: u64::MAX, ..Limits::default() };
    draft.execute(Caller::root(key(1)), &bundle(vec![op(&Look), mint(1, 1)]), limits).unwrap().unwrap();
}

/// spec: EXEC-13. X-09: a gigabyte of writes, and endless host calls, end at a limit, the same one every time.
#[test]
fn x09_writes_and_host_calls_without_end_stop_at_a_limit() {
    let gigabyte = Flood { count: 1 << 18, bytes: 4096 };
    let limits = Limits { gas_max: u64::MAX, write_bytes_max: 4 << 20, ..Limits::default() };
    let flood = |limits| run_with(&State::new(), Caller::root(key(1)), vec![op(&gigabyte)], limits).unwrap();
    let (result, changes) = flood(limits);
    let first = result.unwrap_err();
    let FailureKind::Stopped(Stop::Limit { what, limit, .. }) = &first.kind else { panic!("{first}") };
    assert!(*what == "bytes written by a bundle" && *limit == 4 << 20 && changes.is_empty());
    assert_eq!(flood(limits).0.unwrap_err().gas_used, first.gas_used);

    let small = Limits { gas_max: 5_000_000, ..Limits::default() };
    let (result, _) = flood(small);
    let failed = result.unwrap_err();
    assert!(matches!(failed.kind, FailureKind::Stopped(Stop::OutOfGas { limit: 5_000_000 })), "{failed}");
    assert_eq!(failed.gas_used, 5_000_000);

    let (result, _) = run(&State::new(), vec![op(&Half { end: End::Gas })]);
    assert!(matches!(result.unwrap_err().kind, FailureKind::Stopped(Stop::OutOfGas { .. })));
}

/// spec: EXEC-13. X-09: what a receipt would hold is bounded for the whole bundle.
#[test]
fn x09_results_and_events_of_a_bundle_have_a_limit() {
    let over = |operations, limits| {
        let (result, _) = run_with(&State::new(), Caller::root(key(1)), operations, limits).unwrap();
        let failed = result.unwrap_err();
        let FailureKind::Stopped(Stop::Limit { what, found, limit }) = failed.kind else { panic!("{failed}") };
        (failed.operation, what, found, limit)
    };
    let echo = op(&Echo { bytes: vec![0; 46] });
    let limits = Limits { result_bytes_max: 149, ..Limits::default() };
    assert_eq!(over(vec![echo; 3], limits), (2, "bytes of a bundle's results", 150, 149));
    let limits = Limits { events_max: 2, ..Limits::default() };
    assert_eq!(over(vec![mint(2, 1), mint(2, 1), mint(2, 1)], limits), (2, "events of a bundle", 3, 2));
    let limits = Limits { event_bytes_max: 30, ..Limits::default() };
    assert_eq!(over(vec![mint(2, 1), mint(2, 1)], limits), (1, "bytes of a bundle's events", 38, 30));
}

/// spec: EXEC-13. A function that swallows the stop and returns a result has failed all the same.
#[test]
fn x09_a_function_cannot_swallow_a_stop() {
    let (result, changes) = run(&State::new(), vec![op(&Half { end: End::Swallow })]);
    assert!(matches!(result.unwrap_err().kind, FailureKind::Stopped(Stop::OutOfGas { .. })));
    assert!(changes.is_empty());
    let (result, _) = run(&State::new(), vec![op(&Half { end: End::LongKey })]);
    assert!(matches!(result.unwrap_err().kind, FailureKind::Stopped(Stop::Type { .. })));
}

/// spec: EXEC-13. A function's own limit holds below the bundle's.
#[test]
fn x09_a_function_has_its_own_limit_of_gas() {
    let limits = Limits { gas_max: u64::MAX, write_bytes_max: u64::MAX, ..Limits::default() };
    let endless = op(&Flood { count: u64::MAX, bytes: 4096 });
    let (result, _) = run_with(&State::new(), Caller::root(key(1)), vec![endless], limits).unwrap();
    let failed = result.unwrap_err();
    assert!(matches!(failed.kind, FailureKind::Stopped(Stop::OutOfGas { limit: 900_000_000 })), "{failed}");
}

/// what runs is on the board, with its name, while it runs and not after: that is what a watchdog looks at.
#[test]
fn x09_a_watchdog_sees_the_function_at_work() {
    let (registry, activity) = (registry(), Activity::default());
    let watched = activity.clone();
    let watchdog = std::thread::spawn(move || {
        let started = Instant::now();
        while started.elapsed().as_secs() < 60 {
            if let Some((_, function)) = watched.current() {
                return Some(function);
            }
            std::thread::yield_now();
        }
        None
    });
    let mut draft = BlockDraft::begin(&registry, State::new(), block(1)).watched(&activity);
    let flood = Flood { count: 2_000, bytes: 4096 };
    for _ in 0..1_000 {
        if watchdog.is_finished() {
            break;
        }
        draft.execute(Caller::root(key(1)), &bundle(vec![op(&flood)]), Limits::default()).unwrap().unwrap();
    }
    assert_eq!(watchdog.join().unwrap(), Some("bank.flood"));
    assert_eq!(activity.current(), None);
}

/// Bytes in a typed place that are not of the type fail the operation on every node; they do not stop the chain.
#[test]
fn foreign_bytes_in_a_typed_place_are_a_failure_that_names_the_entry() {
    let mut state = State::new();
    let write = (space("bank"), Key::new(&b"total"[..]).unwrap(), Some(Value::new(vec![1, 2, 3]).unwrap()));
    state.apply(&[write].into_iter().collect::<Diff>());
    let (result, _) = run(&state, vec![mint(1, 1)]);
    let failed = result.unwrap_err();
    let FailureKind::Stopped(Stop::Undecodable { namespace, key, .. }) = &failed.kind else { panic!("{failed}") };
    assert_eq!((namespace.as_str(), key.as_slice()), ("bank", b"total".as_slice()));
}

/// Keeps, returns or emits a list of so many bytes or nothings, for which the type has a limit that its encoding does not
/// know; or removes what is there.
#[transition("chest.put/1")]
struct Fill {
    what: u8,
    count: u32,
}

#[event("chest.filled")]
struct Filled {
    bytes: Vec<u8>,
}

#[namespace("chest")]
struct Chest {
    bytes: Map<u64, Vec<u8>>,
    nothings: Item<Vec<()>>,
}

impl Transition<Chest> for Fill {
    type Output = Vec<u8>;
    fn apply(&self, chest: &mut Draft<Chest>, cx: &mut Context) -> Result<Vec<u8>, Denied> {
        let bytes = vec![7; self.count as usize];
        match self.what {
            0 => chest.bytes.insert(&1, &bytes)?,
            1 => chest.nothings.set(&vec![(); self.count as usize])?,
            2 => return Ok(bytes),
            3 => cx.emit(&Filled { bytes })?,
            4 => drop(chest.bytes.remove(&1)?),
            _ => {
                let both = [chest.bytes.discard(&1)?, chest.nothings.discard()?];
                let none = [chest.bytes.discard(&1)?, chest.nothings.discard()?];
                return Ok(both.iter().chain(&none).map(|there| u8::from(*there)).collect());
            }
        }
        Ok(Vec::new())
    }
}

/// spec: EXEC-18, CODEC-4. Nothing is kept, returned or emitted that could not be read back: not even a removal could then.
/// What is there all the same, because the type was another, can be removed unread.
#[test]
fn what_cannot_be_read_back_is_neither_kept_nor_returned_nor_emitted() {
    let registry = keelstone_execution::Registry::new().with::<Chest, Fill>();
    let run = |state: &State, what: u8, count: u32| {
        let mut draft = BlockDraft::begin(&registry, state.clone(), block(1));
        let bundle = bundle(vec![op(&Fill { what, count })]);
        draft.execute(Caller::root(key(1)), &bundle, Limits::default()).unwrap()
    };
    for what in [0, 2, 3] {
        run(&State::new(), what, 65_536).unwrap();
        let failed = run(&State::new(), what, 65_537).unwrap_err();
        assert!(matches!(failed.kind, FailureKind::Stopped(Stop::Unreadable { .. })), "{what}: {failed}");
    }
    run(&State::new(), 1, 0).unwrap();
    let failed = run(&State::new(), 1, 1).unwrap_err();
    assert!(failed.to_string().contains("chest/nothings could not be read back"), "{failed}");

    let mut state = State::new();
    let write = |key: &[u8]| (space("chest"), Key::new(key).unwrap(), Some(Value::new(vec![1, 2, 3]).unwrap()));
    state.apply(&[write(b"bytes/\0\0\0\0\0\0\0\x01"), write(b"nothings")].into_iter().collect::<Diff>());
    assert!(matches!(run(&state, 4, 0).unwrap_err().kind, FailureKind::Stopped(Stop::Undecodable { .. })));
    let removed = run(&state, 5, 0).unwrap();
    assert_eq!(removed.outcomes[0].result, [4, 0, 0, 0, 1, 1, 0, 0]);
}

/// As large as it is told to be: a result, or an event.
#[transition("hall.shout/1")]
#[derive(Clone, Debug)]
struct Shout {
    event: bool,
    bytes: u32,
}

#[event("hall.shouted")]
struct Shouted {
    bytes: Blob<{ 2 << 20 }>,
}

impl Transition<Chest> for Shout {
    type Output = Blob<{ 2 << 20 }>;
    fn apply(&self, _: &mut Draft<Chest>, cx: &mut Context) -> Result<Self::Output, Denied> {
        let bytes = Blob::new(vec![7; self.bytes as usize]).map_err(|error| denied!("{error}"))?;
        if self.event {
            cx.emit(&Shouted { bytes })?;
            return Ok(Blob::default());
        }
        Ok(bytes)
    }
}

/// spec: EXEC-13. A receipt holds so much of one result and of one event: what is larger fails its operation, and what is not is
/// read back.
#[test]
fn what_no_receipt_holds_fails_its_operation() {
    let registry = keelstone_execution::Registry::new().with::<Chest, Shout>();
    let run = |event: bool, bytes: usize| {
        let mut draft = BlockDraft::begin(&registry, State::new(), block(1));
        // Of a megabyte four bytes say how long the rest is.
        let bytes = u32::try_from(bytes - 4).unwrap();
        draft.execute(Caller::root(key(1)), &bundle(vec![op(&Shout { event, bytes })]), Limits::default()).unwrap()
    };
    let emitted = run(true, EVENT_BYTES_MAX).unwrap().outcomes.remove(0).events.remove(0);
    assert_eq!(emitted.data.len(), EVENT_BYTES_MAX);
    assert_eq!(Emitted::from_bytes(&emitted.to_bytes()), Ok(emitted));
    assert_eq!(run(false, RESULT_BYTES_MAX).unwrap().outcomes[0].result.len(), RESULT_BYTES_MAX);
    for event in [false, true] {
        let failed = run(event, (1 << 20) + 1).unwrap_err();
        let FailureKind::Stopped(Stop::Limit { what, found, limit }) = failed.kind else { panic!("{failed}") };
        assert_eq!((found, limit), ((1 << 20) + 1, 1 << 20), "{what}");
    }
}
