//! Names of sessions, and who may read what they keep, against a model that knows no tree of records.

use crate::tools::*;
use keelstone_codec::{Blob, BoundedSet, Decode, Hash, Height, StateHash, Text, Timestamp};
use keelstone_execution::{
    BlockContext, BlockDraft, Bundle, Caller, Capability, Failed, FailureKind, Finished, Limits, Mode, Operation,
    Registry, Session, SessionError, SessionId, Sessions, first_link,
};
use keelstone_ledger::modules::{sessions, standard};
use keelstone_tree::{Blake3, MemoryTree};
use proptest::prelude::*;
use std::collections::BTreeMap;

const MAY: [&str; 2] = ["sessions.delegate", "sessions.notes"];

fn begin(registry: &Registry) -> BlockDraft<'_> {
    let context = BlockContext {
        chain_id: chain_id(),
        height: Height(1),
        time: Timestamp(1),
        proposer: proposer(),
        seed: Hash::ZERO,
    };
    BlockDraft::begin(registry, MemoryTree::<Blake3>::new(), context)
}

/// Runs one operation in a session of a person.
fn run(draft: &mut BlockDraft<'_>, person: u8, session: SessionId, operation: Operation) -> Result<Finished, Failed> {
    let caller = Caller { session: Some(session), ..Caller::root(key(person).public()) };
    draft.execute(caller, &Bundle::new(Mode::Sync, vec![operation]).unwrap(), Limits::default()).unwrap()
}

fn result<T: Decode>(finished: Result<Finished, Failed>) -> T {
    T::from_bytes(&finished.unwrap().outcomes[0].result).unwrap()
}

fn reason(result: Result<Finished, Failed>) -> String {
    result.unwrap_err().to_string()
}

fn delegate(person: u8, name: &str, may: &[&'static str], init: StateHash) -> Operation {
    until(None, person, name, may, init)
}

fn until(expires: Option<Height>, person: u8, name: &str, may: &[&'static str], init: StateHash) -> Operation {
    op(&sessions::Delegate {
        owner: key(person).public(),
        name: Text::new(name).unwrap(),
        capabilities: BoundedSet::new(may.iter().map(|name| Capability::new(name))).unwrap(),
        expires,
        init,
    })
}

fn named(draft: &mut BlockDraft<'_>, person: u8, parent: SessionId, to: u8, name: &str) -> SessionId {
    result(run(draft, person, parent, delegate(to, name, &MAY, StateHash::default())))
}

fn note(key: &str, value: Option<&[u8]>) -> Operation {
    op(&sessions::Note { key: Text::new(key).unwrap(), value: value.map(|bytes| Blob::new(bytes.to_vec()).unwrap()) })
}

fn read(session: SessionId, key: &str) -> Operation {
    op(&sessions::ReadNote { session, key: Text::new(key).unwrap() })
}

fn read_back(draft: &mut BlockDraft<'_>, person: u8, by: SessionId, of: SessionId, key: &str) -> Option<Vec<u8>> {
    let found: Option<Blob<{ sessions::NOTE_BYTES_MAX }>> = result(run(draft, person, by, read(of, key)));
    found.map(|blob| blob.to_vec())
}

fn root(person: u8) -> SessionId {
    SessionId::root(&chain_id(), &key(person).public())
}

/// Which session has a name below person 1's root session.
fn holder(draft: &mut BlockDraft<'_>, name: &str) -> Option<SessionId> {
    let (at, mut found) = ((root(1), Text::new(name).unwrap()), None);
    draft
        .edit(|sessions: &mut Sessions| {
            found = sessions.names.get(&at)?;
            Ok(())
        })
        .unwrap();
    found
}

/// spec: MODULE-8. Names are paths that grow downward, and none is used twice below one root while it is open.
#[test]
fn a_name_below_another_begins_with_it_and_is_used_once() {
    let registry = standard();
    let draft = &mut begin(&registry);
    let defi = named(draft, 1, root(1), 2, "defi");
    let lending = named(draft, 2, defi, 3, "defi/lending");
    named(draft, 3, lending, 4, "defi/lending/alice");
    let try_name = |draft: &mut BlockDraft<'_>, person, parent, name: &str| {
        reason(run(draft, person, parent, delegate(1, name, &MAY, StateHash::default())))
    };
    for name in ["defi", "lending", "defilending", "defi2/x", "DEFI/x", "defi/x/"] {
        assert!(try_name(draft, 2, defi, name).contains("name"), "{name}");
    }
    for name in ["/", "/a", "a/", "a//b", "a b", "A", "ä"] {
        assert!(try_name(draft, 1, root(1), name).contains("a name is made of"), "{name}");
    }
    assert!(try_name(draft, 1, root(1), "defi/lending/alice").contains("has this name"));
    assert!(try_name(draft, 2, defi, "defi/lending").contains("has this name"));
    named(draft, 5, root(5), 5, "defi");
    named(draft, 2, defi, 2, "");
    named(draft, 2, defi, 2, "");
    // What is closed, or below what is closed, gives its name up.
    run(draft, 1, root(1), op(&sessions::Close { session: lending })).unwrap();
    let again = named(draft, 2, defi, 6, "defi/lending/alice");
    assert_eq!(holder(draft, "defi/lending/alice"), Some(again));
}

/// spec: MODULE-10, EXEC-8. What is past its last height does nothing and keeps its name until somebody closes it, which
/// anybody may, and nobody sooner; then what is below it gives its name up too.
#[test]
fn an_expired_session_gives_its_name_up_to_whoever_has_it_closed() {
    let registry = standard();
    let draft = &mut begin(&registry);
    let defi = named(draft, 1, root(1), 2, "defi");
    let lending = named(draft, 2, defi, 3, "defi/lending");
    let last_height = |draft: &mut BlockDraft<'_>, last: u64| {
        let set = |sessions: &mut Sessions| {
            let record = sessions.records.get(&defi)?.map(|record| Session { expires: Some(Height(last)), ..record });
            sessions.records.insert(&defi, &record.unwrap())
        };
        draft.edit(set).unwrap();
    };
    let expire = |session| op(&sessions::Expire { session });
    assert!(reason(run(draft, 5, root(5), expire(defi))).contains("has no last height"));
    last_height(draft, 1);
    assert!(reason(run(draft, 5, root(5), expire(defi))).contains("may act until 1"));
    last_height(draft, 0);
    let refused = run(draft, 3, lending, note("k", Some(b"x"))).unwrap_err().kind;
    assert!(matches!(refused, FailureKind::Session(SessionError::Expired(id)) if id == defi), "{refused}");
    let take =
        |draft: &mut BlockDraft<'_>| run(draft, 1, root(1), delegate(4, "defi/lending", &MAY, StateHash::default()));
    assert!(reason(take(draft)).contains("has this name"));
    run(draft, 5, root(5), expire(defi)).unwrap();
    assert!(reason(run(draft, 5, root(5), expire(defi))).contains("is closed"));
    let again: SessionId = result(take(draft));
    assert_eq!(holder(draft, "defi/lending"), Some(again));
    assert!(reason(run(draft, 5, root(5), expire(SessionId(Hash([9; 32]))))).contains("does not exist"));
}

/// spec: MODULE-9, EXEC-16. `defi` reads what `defi/lending/alice` keeps; alice reads nothing above or beside her, and
/// once anything above her is closed she does nothing at all.
#[test]
fn a_parent_reads_what_its_child_keeps_and_never_the_reverse() {
    let registry = standard();
    let draft = &mut begin(&registry);
    let defi = named(draft, 1, root(1), 2, "defi");
    let lending = named(draft, 2, defi, 3, "defi/lending");
    let alice = named(draft, 3, lending, 4, "defi/lending/alice");
    let bob = named(draft, 3, lending, 4, "defi/lending/bob");
    for (person, session, text) in [(1, root(1), "root"), (2, defi, "defi"), (4, alice, "alice"), (4, bob, "bob")] {
        run(draft, person, session, note("debt", Some(text.as_bytes()))).unwrap();
    }
    for (person, by) in [(1, root(1)), (2, defi), (3, lending), (4, alice)] {
        assert_eq!(read_back(draft, person, by, alice, "debt").as_deref(), Some(&b"alice"[..]));
    }
    assert_eq!(read_back(draft, 4, alice, alice, "nothing"), None);
    for of in [root(1), defi, lending, bob, root(5)] {
        assert!(reason(run(draft, 4, alice, read(of, "debt"))).contains("neither this session nor below it"));
    }
    // The same key in a session beside it is another's all the same: sessions read, not keys.
    assert!(reason(run(draft, 4, root(4), read(alice, "debt"))).contains("neither"));
    // Notes need their capability, which a child without it does not get from its name.
    let init = StateHash::default();
    let mute: SessionId = result(run(draft, 2, defi, delegate(6, "defi/mute", &["sessions.delegate"], init)));
    let refused = run(draft, 6, mute, note("debt", Some(b"x"))).unwrap_err().kind;
    assert!(matches!(refused, FailureKind::Session(SessionError::Lacks { .. })), "{refused}");
    run(draft, 2, defi, op(&sessions::Close { session: lending })).unwrap();
    let refused = run(draft, 4, alice, read(alice, "debt")).unwrap_err().kind;
    assert!(matches!(refused, FailureKind::Session(SessionError::Closed(id)) if id == lending), "{refused}");
    assert_eq!(read_back(draft, 2, defi, alice, "debt").as_deref(), Some(&b"alice"[..]), "what she kept stays");
}

/// spec: MODULE-9. Notes are counted, bounded and forgotten.
#[test]
fn a_session_keeps_so_many_notes_and_no_more() {
    let registry = standard();
    let draft = &mut begin(&registry);
    for number in 0..sessions::NOTES_MAX {
        run(draft, 1, root(1), note(&number.to_string(), Some(b"x"))).unwrap();
    }
    assert!(reason(run(draft, 1, root(1), note("more", Some(b"x")))).contains("at most 1024"));
    run(draft, 1, root(1), note("7", Some(b"another"))).unwrap();
    run(draft, 1, root(1), note("7", None)).unwrap();
    assert!(reason(run(draft, 1, root(1), note("7", None))).contains("nothing is kept"));
    run(draft, 1, root(1), note("more", Some(b""))).unwrap();
    assert_eq!(read_back(draft, 1, root(1), root(1), "more"), Some(Vec::new()));
}

/// spec: EXEC-1, EXEC-20. The chain of a session begins with the initial state hash it was made with.
#[test]
fn a_session_begins_with_its_initial_state_hash() {
    let registry = standard();
    let draft = &mut begin(&registry);
    let hashes = [StateHash::default(), StateHash(Hash([7; 32]))].map(|init| {
        let id: SessionId = result(run(draft, 1, root(1), delegate(2, "", &MAY, init)));
        let mut record = None;
        let look = |sessions: &mut Sessions| {
            record = sessions.records.get(&id)?;
            Ok(())
        };
        draft.edit(look).unwrap();
        assert_eq!(record.as_ref().unwrap().state_hash, first_link(&chain_id(), &id, &init));
        record.unwrap().state_hash
    });
    assert_ne!(hashes[0], hashes[1]);
}

/// What somebody does in a session that is picked from those there are.
#[derive(Clone, Debug)]
enum Step {
    /// One that is `over` is past its last height from the start.
    Delegate {
        from: usize,
        named: bool,
        notes: bool,
        over: bool,
    },
    Close {
        by: usize,
        which: usize,
    },
    Expire {
        by: usize,
        which: usize,
    },
    Note {
        by: usize,
        value: Option<u8>,
    },
    Read {
        by: usize,
        of: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let which = 0usize..64;
    prop_oneof![
        4 => (which.clone(), any::<bool>(), prop::bool::weighted(0.8), prop::bool::weighted(0.2))
            .prop_map(|(from, named, notes, over)| Step::Delegate { from, named, notes, over }),
        1 => (which.clone(), which.clone()).prop_map(|(by, which)| Step::Close { by, which }),
        1 => (which.clone(), which.clone()).prop_map(|(by, which)| Step::Expire { by, which }),
        3 => (which.clone(), any::<Option<u8>>()).prop_map(|(by, value)| Step::Note { by, value }),
        6 => (which.clone(), which).prop_map(|(by, of)| Step::Read { by, of }),
    ]
}

/// A session as the model knows it: all sessions above it, and itself, are written out in `line`.
struct Modelled {
    id: SessionId,
    name: String,
    line: Vec<usize>,
    notes: bool,
    over: bool,
    closed: bool,
    kept: Option<u8>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// spec: EXEC-8, EXEC-16, MODULE-8, MODULE-9, MODULE-10. However sessions are delegated, named and closed: each does what the
    /// model says it may at that moment, reads what the model says it reaches, and holds the name it took.
    #[test]
    fn sessions_do_and_read_what_a_model_says(steps in prop::collection::vec(step(), 1..120)) {
        let registry = standard();
        let draft = &mut begin(&registry);
        let (id, name, line) = (root(1), String::new(), vec![0]);
        let first = Modelled { id, name, line, notes: true, over: false, closed: false, kept: None };
        let mut all = vec![first];
        let mut names: BTreeMap<String, usize> = BTreeMap::new();
        for step in steps {
            let open = |all: &[Modelled], at: usize| all[at].line.iter().all(|above| !all[*above].closed);
            let acts = |all: &[Modelled], at: usize| open(all, at) && all[at].line.iter().all(|above| !all[*above].over);
            let keeps = |all: &[Modelled], at: usize| acts(all, at) && all[at].line.iter().all(|above| all[*above].notes);
            match step {
                Step::Delegate { from, named, notes, over } => {
                    let (from, next) = (from % all.len(), all.len());
                    let name = match (named, all[from].name.as_str()) {
                        (false, _) => String::new(),
                        (true, "") => format!("s{}", next % 5),
                        (true, above) => format!("{above}/{}", next % 3),
                    };
                    let may = if notes { &MAY[..] } else { &MAY[..1] };
                    let delegation = until(over.then_some(Height(0)), 1, &name, may, StateHash::default());
                    let made = run(draft, 1, all[from].id, delegation);
                    let taken = !name.is_empty() && names.get(&name).is_some_and(|holder| open(&all, *holder));
                    let fits = all[from].line.len() < 8 && name.len() <= sessions::NAME_LEN_MAX;
                    prop_assert_eq!(made.is_ok(), acts(&all, from) && fits && !taken);
                    if made.is_ok() {
                        let line = all[from].line.iter().copied().chain([next]).collect();
                        if named {
                            names.insert(name.clone(), next);
                        }
                        all.push(Modelled { id: result(made), name, line, notes, over, closed: false, kept: None });
                    }
                }
                Step::Close { by, which } => {
                    let (by, which) = (by % all.len(), which % all.len());
                    let closed = run(draft, 1, all[by].id, op(&sessions::Close { session: all[which].id }));
                    prop_assert_eq!(closed.is_ok(), acts(&all, by) && which > 0 && !all[which].closed);
                    all[which].closed |= closed.is_ok();
                }
                Step::Expire { by, which } => {
                    let (by, which) = (by % all.len(), which % all.len());
                    let closed = run(draft, 1, all[by].id, op(&sessions::Expire { session: all[which].id }));
                    prop_assert_eq!(closed.is_ok(), acts(&all, by) && all[which].over && !all[which].closed);
                    all[which].closed |= closed.is_ok();
                }
                Step::Note { by, value } => {
                    let by = by % all.len();
                    let noted = run(draft, 1, all[by].id, note("k", value.as_ref().map(std::slice::from_ref)));
                    let sense = value.is_some() || all[by].kept.is_some();
                    prop_assert_eq!(noted.is_ok(), keeps(&all, by) && sense);
                    if noted.is_ok() {
                        all[by].kept = value;
                    }
                }
                Step::Read { by, of } => {
                    let (by, of) = (by % all.len(), of % all.len());
                    let found = run(draft, 1, all[by].id, read(all[of].id, "k"));
                    prop_assert_eq!(found.is_ok(), keeps(&all, by) && all[of].line.contains(&by));
                    if found.is_ok() {
                        let found: Option<Blob<{ sessions::NOTE_BYTES_MAX }>> = result(found);
                        prop_assert_eq!(found.map(|blob| blob.to_vec()), all[of].kept.map(|byte| vec![byte]));
                    }
                }
            }
        }
        for (name, holder) in names {
            prop_assert_eq!(self::holder(draft, &name), Some(all[holder].id));
        }
    }
}
