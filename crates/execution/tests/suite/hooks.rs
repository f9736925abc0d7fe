//! Functions that the chain calls by itself, and those that are there at some heights alone.

use crate::common::*;
use keelstone_codec::{Decode, Hash, Height};
use keelstone_execution::{
    Batch, BatchEnd, BlockDraft, Bundle, Caller, Capability, Context, Denied, Draft, FailureKind, Function,
    HOOKS_CHANGE_BYTES_MAX, Halt, Limits, Link, Mode, PublicKey, Registry, RegistryError, Session, SessionId,
    Transition, When, args_hash, ensure, result_hash, transition,
};
use std::ops::Bound;

/// Pays a coin of interest to everybody who has something, if there is anybody.
#[transition("bank.interest/1", needs = "bank.print")]
struct Interest;

impl Transition<Bank> for Interest {
    type Output = u64;
    fn apply(&self, bank: &mut Draft<Bank>, cx: &mut Context) -> Result<u64, Denied> {
        ensure!(cx.sender() == PublicKey::CHAIN, "the chain pays interest");
        let accounts: Vec<(PublicKey, u64)> = bank.balances.iter().collect::<Result<_, _>>()?;
        for (account, balance) in &accounts {
            bank.balances.insert(account, &(balance + 1))?;
        }
        Ok(accounts.len() as u64)
    }
}

macro_rules! hooks {
    ($($name:literal $hook:ident = |$bank:ident, $cx:ident| $body:block)*) => {$(
        #[transition($name)]
        pub(super) struct $hook;

        impl Transition<Bank> for $hook {
            type Output = ();
            fn apply(&self, $bank: &mut Draft<Bank>, $cx: &mut Context) -> Result<(), Denied> $body
        }
    )*};
}

hooks! {
    "bank.denies/1" Denies = |bank, _cx| { bank.total.set(&1)?; Err(Denied::because("not today")) }
    "bank.panics/1" Panics = |bank, _cx| { bank.total.set(&2)?; panic!("half way") }
    "bank.spins/1" Spins = |bank, cx| { bank.total.set(&3)?; loop { cx.step(1_000)?; } }
    "bank.swells/1" Swells = |bank, _cx| {
        let note = keelstone_codec::Text::new("x".repeat(4_000)).map_err(|_| Denied::because("long"))?;
        for id in 0..2_200 { bank.notes.insert(&format!("note {id}"), &note)?; }
        Ok(())
    }
    "bank.tells/1" Tells = |_bank, cx| { cx.emit(&Minted { amount: 1 })?; Ok(()) }
    "bank.chatters/1" Chatters = |_bank, cx| { for _ in 0..10_000 { cx.emit(&Minted { amount: 1 })?; } Ok(()) }
    "bank.again/1" Again = |bank, _cx| { let total = bank.total.get_or_default()?; bank.total.set(&total)?; Ok(()) }
}

const GAS: u64 = 1_000_000_000;

fn rich() -> State {
    let (ran, changes) = run(&State::new(), vec![mint(1, 5), mint(2, 7)]);
    ran.unwrap();
    let mut state = State::new();
    state.apply(&changes.to_diff());
    state
}

fn hooked(registry: &Registry, state: &State, when: When) -> (Vec<Batch>, keelstone_execution::Changes) {
    registry.check().unwrap();
    let mut draft = BlockDraft::begin(registry, state.clone(), block(1));
    let batches = draft.run_hooks(when, GAS).unwrap();
    (batches, draft.finish())
}

fn with(add: impl FnOnce(&mut Registry)) -> Registry {
    let mut registry = registry();
    add(&mut registry);
    registry
}

/// spec: EXEC-23. What the chain does by itself is an operation in a session of its own, whose links go on from block to block;
/// it needs no capability, reserved or not.
#[test]
fn a_hook_is_an_operation_of_the_chain_itself() {
    let registry = with(|registry| {
        registry.end_block::<Bank, Interest>().reserve(Capability::new("bank.print"));
    });
    let mut state = rich();
    assert!(hooked(&registry, &state, When::BeginBlock).0.is_empty());
    let session = SessionId::root(&chain_id(), &PublicKey::CHAIN);
    let mut previous = Session::root(&chain_id(), PublicKey::CHAIN).state_hash;
    for sequence in 0..3 {
        let (batches, changes) = hooked(&registry, &state, When::EndBlock);
        let [Batch { bundle, owner, session: of, first: 0, state_hash, end, .. }] = batches.as_slice() else {
            panic!("{batches:?}")
        };
        assert_eq!((*bundle, *owner, *of), (When::EndBlock.bundle(), PublicKey::CHAIN, session));
        let BatchEnd::Advanced { outcomes, is_complete: true } = end else { panic!("{end:?}") };
        let [outcome] = outcomes.as_slice() else { panic!("one operation") };
        assert_eq!(u64::from_bytes(&outcome.result).unwrap(), 2);
        let link = Link {
            chain_id: &chain_id(),
            session,
            sequence,
            previous,
            function: Interest::hash(),
            args: args_hash(&[]),
            result: result_hash(&outcome.result),
            diff: outcome.diff.digest,
        };
        assert_eq!((outcome.state_hash, *state_hash), (link.state_hash(), link.state_hash()));
        previous = *state_hash;
        state.apply(&changes.to_diff());
    }
    assert_eq!(When::ALL.map(|when| When::of(&when.bundle())), When::ALL.map(Some));
}

/// spec: EXEC-23. What changes nothing and tells nothing leaves no trace; what only tells is told of.
#[test]
fn a_hook_without_an_effect_was_never_called() {
    let registry = with(|registry| {
        registry.begin_block::<Bank, Nothing>().begin_block::<Bank, Again>();
    });
    let (batches, changes) = hooked(&registry, &rich(), When::BeginBlock);
    assert!(batches.is_empty() && changes.is_empty(), "{batches:?}");
    let registry = with(|registry| {
        registry.begin_block::<Bank, Nothing>().begin_block::<Bank, Tells>();
    });
    let (batches, changes) = hooked(&registry, &State::new(), When::BeginBlock);
    let [Batch { first: 1, end: BatchEnd::Advanced { outcomes, .. }, .. }] = batches.as_slice() else {
        panic!("{batches:?}")
    };
    assert_eq!((outcomes[0].events.len(), outcomes[0].diff.entries), (1, 0));
    assert!(!changes.is_empty(), "its link");
}

/// spec: EXEC-23, EXEC-13. What fails takes with it what it wrote and nothing else; how much one uses is nothing to the next.
#[test]
fn a_hook_that_fails_is_told_and_takes_no_other_with_it() {
    let registry = with(|registry| {
        registry.begin_block::<Bank, Denies>().begin_block::<Bank, Panics>().begin_block::<Bank, Spins>();
        registry.begin_block::<Bank, Swells>().begin_block::<Bank, Chatters>().begin_block::<Bank, Interest>();
    });
    let state = rich();
    let (batches, changes) = hooked(&registry, &state, When::BeginBlock);
    let codes: Vec<_> = batches
        .iter()
        .map(|batch| match &batch.end {
            BatchEnd::Stopped(failure) => (batch.first, failure.operation, failure.code),
            end => {
                assert!(matches!(end, BatchEnd::Advanced { .. }), "{end:?}");
                (batch.first, batch.first, 0)
            }
        })
        .collect();
    assert_eq!(codes, [(0, 0, 3), (1, 1, 6), (2, 2, 4), (3, 3, 5), (4, 4, 5), (5, 5, 0)]);
    assert_eq!(batches[2].gas_used, GAS);
    let alone = with(|registry| {
        registry.begin_block::<Bank, Interest>();
    });
    assert_eq!(changes, hooked(&alone, &state, When::BeginBlock).1, "as if there were none beside it");
    assert!(changes.bytes() < HOOKS_CHANGE_BYTES_MAX);
}

/// spec: EXEC-23. A part of what a block has for hooks is one's own: with another beside it, it is half as much.
#[test]
fn hooks_have_equal_parts() {
    let limit = |registry: &Registry| {
        let (batches, _) = hooked(registry, &State::new(), When::EndBlock);
        let [Batch { end: BatchEnd::Stopped(failure), .. }] = batches.as_slice() else { panic!("{batches:?}") };
        failure.reason.to_string()
    };
    let alone = limit(&with(|registry| {
        registry.end_block::<Bank, Swells>();
    }));
    let beside = limit(&with(|registry| {
        registry.end_block::<Bank, Swells>().begin_block::<Bank, Nothing>();
    }));
    let later = limit(&with(|registry| {
        registry.end_block::<Bank, Swells>().during(Height(2).., |registry| {
            registry.begin_block::<Bank, Nothing>();
        });
    }));
    assert!(alone.contains(&HOOKS_CHANGE_BYTES_MAX.to_string()), "{alone}");
    assert!(beside.contains(&(HOOKS_CHANGE_BYTES_MAX / 2).to_string()), "{beside}");
    assert_eq!(later, alone, "one that is not there yet has none");
}

/// spec: EXEC-23, EXEC-17. What cannot be read is no verdict.
#[test]
fn a_hook_over_a_witness_without_its_keys_is_no_verdict() {
    let registry = with(|registry| {
        registry.begin_block::<Bank, Interest>();
    });
    let state = rich();
    let mut draft = BlockDraft::begin(&registry, crate::witness::witness(&state, &[]), block(1));
    assert!(matches!(draft.run_hooks(When::BeginBlock, GAS), Err(Halt::WitnessIncomplete { .. })));
}

/// spec: EXEC-23. No transaction calls what is there for the chain alone; what is published too, both may call.
#[test]
fn a_hook_is_not_called_by_others_unless_it_is_published() {
    let call = |registry: &Registry| {
        let mut draft = BlockDraft::begin(registry, rich(), block(1));
        let bundle = Bundle::one(op(&Tells));
        draft.execute(Caller::root(key(1)), &bundle, Limits::default()).unwrap().map(drop).map_err(|failed| failed.kind)
    };
    let own = with(|registry| {
        registry.end_block::<Bank, Tells>();
    });
    assert!(matches!(call(&own), Err(FailureKind::UnknownFunction)));
    assert!(own.find("bank.tells/1").is_none() && own.function_at(&Tells::hash(), Height(1)).is_none());
    assert_eq!(own.function(&Tells::hash()).unwrap().label(), "bank.tells/1", "tools know it");
    let both = with(|registry| {
        registry.end_block::<Bank, Tells>().register::<Bank, Tells>();
    });
    assert!(call(&both).is_ok());
    assert_eq!(hooked(&both, &rich(), When::EndBlock).0.len(), 1);
}

/// spec: EXEC-23. Nobody gives a hook arguments, and it is called once where it is called.
#[test]
fn a_registry_with_a_wrong_hook_does_not_start() {
    let error = |add: fn(&mut Registry)| with(add).check().unwrap_err();
    let found = error(|registry| {
        registry.begin_block::<Bank, Mint>();
    });
    assert!(matches!(found, RegistryError::Arguments { .. }), "{found}");
    let found = error(|registry| {
        registry.begin_block::<Bank, Tells>().begin_block::<Bank, Tells>();
    });
    assert!(matches!(found, RegistryError::Function { .. }), "{found}");
    with(|registry| {
        registry.begin_block::<Bank, Tells>().end_block::<Bank, Tells>();
    })
    .check()
    .unwrap();

    mod other {
        use super::*;
        hooks! { "bank.nothing/1" Nothing = |_bank, _cx| { Ok(()) } }
    }
    let found = error(|registry| {
        registry.begin_block::<Bank, other::Nothing>();
    });
    assert!(matches!(found, RegistryError::Function { .. }), "another type of that name: {found}");
}

/// spec: EXEC-23, EXEC-22. Outside its heights a function is as if the program did not have it: what is said of a call is what
/// a program without it says.
#[test]
fn a_function_is_there_at_its_heights_alone() {
    let registry = with(|registry| {
        registry.during(Height(5)..Height(8), |registry| {
            registry.register::<Bank, Tells>().begin_block::<Bank, Chatters>();
            registry.during(..=Height(5), |registry| {
                registry.register::<Bank, Again>();
            });
        });
        registry.during((Bound::Excluded(Height(8)), Bound::Unbounded), |registry| {
            registry.register::<Bank, Denies>();
        });
        registry.during(..Height(0), |registry| {
            registry.register::<Bank, Panics>();
        });
    });
    registry.check().unwrap();
    let at = |hash| (0..12).filter(|height| registry.function_at(&hash, Height(*height)).is_some()).collect::<Vec<_>>();
    assert_eq!(at(Tells::hash()), [5, 6, 7]);
    assert_eq!(at(Again::hash()), [5]);
    assert_eq!(at(Denies::hash()), [9, 10, 11]);
    assert_eq!(at(Panics::hash()), [0; 0]);
    assert_eq!(at(Mint::hash()).len(), 12);

    let without = with(|_| ());
    for height in 4..10 {
        let call = |registry: &Registry| {
            let mut draft = BlockDraft::begin(registry, rich(), block(height));
            let hooks = draft.run_hooks(When::BeginBlock, GAS).unwrap().len();
            let bundle = Bundle::new(Mode::Sync, vec![mint(1, 1), op(&Tells)]).unwrap();
            (hooks, format!("{:?}", draft.execute(Caller::root(key(1)), &bundle, Limits::default()).unwrap()))
        };
        let is_there = (5..8).contains(&height);
        assert_eq!(call(&registry) == call(&without), !is_there, "height {height}");
        assert_eq!(call(&registry).0, usize::from(is_there));
    }
    let later = with(|registry| {
        registry.during(Height(6).., |registry| {
            registry.register::<Bank, Tells>();
        });
    });
    let hook = |add: fn(&mut Registry)| with(add).interface();
    let all: [Hash; 6] = [
        without.interface(),
        registry.interface(),
        later.interface(),
        hook(|registry| {
            registry.register::<Bank, Tells>();
        }),
        hook(|registry| {
            registry.begin_block::<Bank, Tells>();
        }),
        hook(|registry| {
            registry.end_block::<Bank, Tells>();
        }),
    ];
    assert_eq!(std::collections::BTreeSet::from(all).len(), all.len(), "programs that are to be compared differ");
}
