//! Sessions: who may do what, asked at the moment it is done.

use crate::common::*;
use keelstone_codec::{Decode, Encode, Height, StateHash};
use keelstone_execution::{
    BlockDraft, Caller, Capabilities, Capability, Context, Denied, Draft, Failed, FailureKind, Finished, Item, Limits,
    Operation, PublicKey, Registry, Session, SessionError, SessionId, Sessions, Transition, cost, namespace,
    transition,
};
use std::collections::BTreeSet;

#[namespace("door")]
pub(crate) struct Door {
    pub(crate) opened: Item<u64>,
}

const OPEN: Capability = Capability::new("door.open");

#[transition("door.open/1", needs = OPEN)]
pub(crate) struct Open;

impl Transition<Door> for Open {
    type Output = u64;
    fn apply(&self, door: &mut Draft<Door>, _: &mut Context) -> Result<u64, Denied> {
        let count = door.opened.get_or_default()?.wrapping_add(1);
        door.opened.set(&count)?;
        Ok(count)
    }
}

/// Closes a session: also the one it runs in.
#[transition("door.close_session/1")]
pub(crate) struct Close {
    session: SessionId,
}

impl Transition<Sessions> for Close {
    type Output = ();
    fn apply(&self, sessions: &mut Draft<Sessions>, _: &mut Context) -> Result<(), Denied> {
        let mut record = sessions.records.get(&self.session)?.ok_or_else(|| Denied::because("no such session"))?;
        record.closed = true;
        sessions.records.insert(&self.session, &record)?;
        Ok(())
    }
}

fn doors() -> Registry {
    let mut registry = Registry::new().with::<Door, Open>();
    registry.register_system::<Sessions, Close>();
    registry.check().unwrap();
    registry
}

fn id(number: u64) -> SessionId {
    SessionId::child(&chain_id(), &SessionId::root(&chain_id(), &key(1)), number)
}

fn only(names: &[&'static str]) -> Capabilities {
    Capabilities::only(names.iter().map(|name| Capability::from(*name))).unwrap()
}

fn session(number: u64, parent: Option<SessionId>, capabilities: Capabilities) -> (SessionId, Session) {
    let root = SessionId::root(&chain_id(), &key(1));
    let id = id(number);
    let parent = parent.unwrap_or(root);
    (id, Session::open(&chain_id(), &id, key(2), Some(parent), capabilities, &StateHash::default()))
}

/// A block over a state that holds these sessions, and the root session they come from.
fn with<'a>(
    registry: &'a Registry,
    records: &[(SessionId, Session)],
    grants: &[(PublicKey, Capability)],
) -> BlockDraft<'a> {
    with_at(registry, 10, records, grants)
}

fn with_at<'a>(
    registry: &'a Registry,
    height: u64,
    records: &[(SessionId, Session)],
    grants: &[(PublicKey, Capability)],
) -> BlockDraft<'a> {
    let mut draft = BlockDraft::begin(registry, State::new(), block(height));
    let root = SessionId::root(&chain_id(), &key(1));
    draft
        .edit(|sessions: &mut Sessions| {
            sessions.records.insert(&root, &Session::root(&chain_id(), key(1)))?;
            for (id, record) in records {
                sessions.records.insert(id, record)?;
            }
            for (owner, capability) in grants {
                sessions.grants.insert(owner, &BTreeSet::from([capability.clone()]))?;
            }
            Ok(())
        })
        .unwrap();
    draft
}

fn run(
    draft: &mut BlockDraft<'_>,
    sender: u8,
    session: Option<SessionId>,
    ops: Vec<Operation>,
) -> Result<Finished, Failed> {
    draft.execute(Caller { session, ..Caller::root(key(sender)) }, &bundle(ops), Limits::default()).unwrap()
}

fn refusal(result: Result<Finished, Failed>) -> (u32, SessionError) {
    let failed = result.unwrap_err();
    let FailureKind::Session(error) = failed.kind else { panic!("{failed}") };
    (failed.operation, error)
}

/// spec: EXEC-20. A root session holds all that the chain does not reserve, and what was granted to its key.
#[test]
fn a_root_session_holds_what_is_not_reserved() {
    let mut registry = doors();
    run(&mut with(&registry, &[], &[]), 1, None, vec![op(&Open)]).unwrap();
    registry.reserve(OPEN);
    let (_, error) = refusal(run(&mut with(&registry, &[], &[]), 1, None, vec![op(&Open)]));
    assert_eq!(error, SessionError::Lacks { session: SessionId::root(&chain_id(), &key(1)), capability: OPEN });
    run(&mut with(&registry, &[], &[(key(1), OPEN)]), 1, None, vec![op(&Open)]).unwrap();
}

/// spec: EXEC-20, EXEC-23. A capability may be reserved at some heights alone: at others a root session holds it, also below.
#[test]
fn a_capability_is_reserved_at_its_heights_alone() {
    let mut registry = doors();
    let always = registry.interface();
    registry.during(Height(5)..Height(8), |registry| {
        registry.reserve(OPEN);
        registry.during(..Height(0), |registry| {
            registry.reserve(Capability::new("door.shut"));
        });
    });
    let opens_at = |height: u64, granted: &[(PublicKey, Capability)]| {
        let mut draft = with_at(&registry, height, &[session(1, None, only(&["door.open"]))], granted);
        let root = run(&mut draft, 1, None, vec![op(&Open)]).is_ok();
        assert_eq!(root, run(&mut draft, 2, Some(id(1)), vec![op(&Open)]).is_ok(), "height {height}");
        root
    };
    assert_eq!((4..10).filter(|height| opens_at(*height, &[])).collect::<Vec<_>>(), [4, 8, 9]);
    assert!((4..10).all(|height| opens_at(height, &[(key(1), OPEN)])));
    assert!(registry.reserved().contains(&OPEN));
    assert!(!registry.reserved().contains(&Capability::new("door.shut")), "at no height is not at all");

    let mut ever = doors();
    ever.reserve(OPEN);
    let mut later = doors();
    later.during(Height(6).., |registry| {
        registry.reserve(OPEN);
    });
    let all = [always, registry.interface(), ever.interface(), later.interface()];
    assert_eq!(BTreeSet::from(all).len(), all.len(), "programs that are to be compared differ");
    // What is reserved always is so at some heights, too.
    let interface = ever.interface();
    ever.during(Height(6).., |registry| {
        registry.reserve(OPEN);
    });
    assert_eq!(ever.interface(), interface);
}

/// spec: EXEC-13. Each name that a session or one above it holds is paid for: each is decoded whenever the session acts.
#[test]
fn what_a_session_holds_is_paid_for_at_each_operation() {
    let registry = doors();
    let gas = |own: usize, above: usize| {
        let names = |count: usize| {
            let names = (0..count).map(|number| Capability::parse(&format!("x{number:02}")).unwrap());
            Capabilities::only(names.chain([OPEN])).unwrap()
        };
        let (parent, upper) = session(1, None, names(above));
        let (child, lower) = session(2, Some(parent), names(own));
        let mut draft = with(&registry, &[(parent, upper), (child, lower)], &[]);
        run(&mut draft, 2, Some(child), vec![op(&Open)]).unwrap().gas_used
    };
    let bytes = 4 + 3;
    // Of one above, once. Of its own twice, before the call and after it, and it is written, over what was there.
    assert_eq!(gas(0, 10) - gas(0, 0), 10 * (cost::CAPABILITY + bytes * cost::READ_BYTE));
    let own = 2 * cost::CAPABILITY + bytes * (3 * cost::READ_BYTE + cost::WRITE_VALUE_BYTE);
    assert_eq!(gas(10, 0) - gas(0, 0), 10 * own);
}

/// spec: EXEC-8. A delegated session may do what it holds, in the hands of its owner only.
#[test]
fn a_delegated_session_does_what_it_holds_for_its_owner() {
    let registry = doors();
    let (with_door, door) = session(1, None, only(&["door.open", "x"]));
    let (without, other) = session(2, None, only(&["x"]));
    let mut draft = with(&registry, &[(with_door, door), (without, other)], &[]);
    let finished = run(&mut draft, 2, Some(with_door), vec![op(&Open)]).unwrap();
    assert_eq!((finished.session, finished.record.sequence), (with_door, 1));
    assert_eq!(refusal(run(&mut draft, 1, Some(with_door), vec![op(&Open)])).1, SessionError::NotYours(with_door));
    assert!(matches!(refusal(run(&mut draft, 2, Some(without), vec![op(&Open)])).1, SessionError::Lacks { .. }));
    assert_eq!(refusal(run(&mut draft, 2, Some(id(9)), vec![op(&Open)])).1, SessionError::Unknown(id(9)));
}

/// spec: EXEC-8. An operation that closes its own session leaves nothing to the next one; the bundle fails as one.
#[test]
fn a_session_closed_midway_stops_at_the_next_operation() {
    let registry = doors();
    let (id, record) = session(1, None, only(&["door.open"]));
    let mut draft = with(&registry, &[(id, record)], &[]);
    let before = draft.changes();
    let close = op(&Close { session: id });
    assert_eq!(
        refusal(run(&mut draft, 2, Some(id), vec![op(&Open), close.clone(), op(&Open)])),
        (2, SessionError::Closed(id))
    );
    assert_eq!(draft.changes(), before);
    // As the last operation it stands, and the closed record has the link of its own closing.
    let finished = run(&mut draft, 2, Some(id), vec![op(&Open), close]).unwrap();
    assert!(finished.record.closed && finished.record.sequence == 2);
    assert_eq!(refusal(run(&mut draft, 2, Some(id), vec![op(&Open)])).1, SessionError::Closed(id));
}

/// spec: EXEC-16. Closing an ancestor, or letting it expire, or its lack of a capability, stops all below it.
#[test]
fn an_ancestor_speaks_for_all_below_it() {
    let registry = doors();
    let chain = |change: &dyn Fn(&mut Session)| {
        let (first, mut parent) = session(1, None, only(&["door.open"]));
        change(&mut parent);
        let (second, child) = session(2, Some(first), only(&["door.open"]));
        let mut draft = with(&registry, &[(first, parent), (second, child)], &[]);
        (first, run(&mut draft, 2, Some(second), vec![op(&Open)]))
    };
    chain(&|_| {}).1.unwrap();
    let (first, result) = chain(&|parent| parent.closed = true);
    assert_eq!(refusal(result).1, SessionError::Closed(first));
    chain(&|parent| parent.expires = Some(Height(10))).1.unwrap();
    let (first, result) = chain(&|parent| parent.expires = Some(Height(9)));
    assert_eq!(refusal(result).1, SessionError::Expired(first));
    let (first, result) = chain(&|parent| parent.capabilities = only(&["x"]));
    assert_eq!(refusal(result).1, SessionError::Lacks { session: first, capability: OPEN });
}

/// spec: EXEC-16. The walk up ends after eight, so that it has a price that is known.
#[test]
fn a_session_has_at_most_eight_above_it_to_ask() {
    let registry = doors();
    let line = |length: u64| {
        let mut parent = None;
        let mut records = Vec::new();
        for number in 0..length {
            let (id, record) = session(number, parent, only(&["door.open"]));
            parent = Some(id);
            records.push((id, record));
        }
        run(&mut with(&registry, &records, &[]), 2, parent, vec![op(&Open)])
    };
    line(8).unwrap();
    assert!(matches!(refusal(line(9)).1, SessionError::TooDeep(_)));
}

#[test]
fn a_capability_is_a_plain_name() {
    for name in ["", "Social", "a b", &"x".repeat(65)] {
        assert!(Capability::parse(name).is_err(), "{name}");
    }
    let name = Capability::parse("social.ally").unwrap();
    assert_eq!(Capability::from_bytes(&name.to_bytes()), Ok(name));
}
