//! The registry: what clashes does not start.

use crate::common::*;
use keelstone_codec::Describe;
use keelstone_execution::__private::Built;
use keelstone_execution::bundles::HOLD;
use keelstone_execution::{
    Capability, Context, ContextUse, Decode, Denied, Draft, Encode, Function, FunctionHash, Item, PublicKey, Registry,
    RegistryError, Transition,
};
use keelstone_execution::{namespace, transition};
use std::collections::BTreeSet;

mod elsewhere {
    use super::*;

    /// Another type that calls the namespace its own.
    #[namespace("bank")]
    pub(crate) struct Bank {
        #[expect(dead_code, reason = "the declaration is what clashes")]
        pub(crate) vault: Item<u64>,
    }

    #[transition("bank.rob/1")]
    pub(crate) struct Rob;

    impl Transition<Bank> for Rob {
        type Output = ();
        fn apply(&self, _: &mut Draft<Bank>, _: &mut Context) -> Result<(), Denied> {
            Ok(())
        }
    }

    /// Another function of the same name and version.
    #[transition("bank.mint/1")]
    pub(crate) struct Mint;

    impl Transition<super::Bank> for Mint {
        type Output = ();
        fn apply(&self, _: &mut Draft<super::Bank>, _: &mut Context) -> Result<(), Denied> {
            Ok(())
        }
    }

    #[namespace("sessions")]
    pub(crate) struct Forged {
        #[expect(dead_code, reason = "the declaration is what clashes")]
        pub(crate) records: Item<u64>,
    }

    #[transition("forged.session/1")]
    pub(crate) struct Forge;

    impl Transition<Forged> for Forge {
        type Output = ();
        fn apply(&self, _: &mut Draft<Forged>, _: &mut Context) -> Result<(), Denied> {
            Ok(())
        }
    }
}

#[test]
fn two_types_in_one_namespace_do_not_start() {
    let error = registry().with::<elsewhere::Bank, elsewhere::Rob>().check().unwrap_err();
    let RegistryError::Namespace { name, first, second } = error else { panic!("{error}") };
    assert!(name == "bank" && first.ends_with("common::Bank") && second.ends_with("elsewhere::Bank"));
}

/// spec: EXEC-19. A name and version is one function.
#[test]
fn two_functions_of_one_name_do_not_start() {
    let error = registry().with::<Bank, elsewhere::Mint>().check().unwrap_err();
    let RegistryError::Function { label, hash, .. } = error else { panic!("{error}") };
    assert_eq!((label.as_str(), hash), ("bank.mint/1", FunctionHash::of("bank.mint", 1)));
    assert_ne!(FunctionHash::of("bank.mint", 1), FunctionHash::of("bank.mint", 2));
}

/// spec: EXEC-2. What the engine writes, an application cannot.
#[test]
fn a_namespace_of_the_engine_is_no_applications() {
    let error = Registry::new().with::<elsewhere::Forged, elsewhere::Forge>().check().unwrap_err();
    assert!(matches!(error, RegistryError::Reserved { name: "sessions", .. }));
    let mut registry = Registry::new();
    let error = registry.declare::<elsewhere::Forged>().check().unwrap_err();
    assert!(
        matches!(error, RegistryError::Reserved { name: "sessions", .. }),
        "nor can it only say that it is its own"
    );
}

/// spec: EXEC-10, EXEC-12. A chain of one's own takes async bundles in, so it can end them, and no key holds others off that
/// was not granted it.
#[test]
fn every_registry_can_end_bundles_and_reserves_the_hold() {
    for registry in [Registry::new(), Registry::default(), registry()] {
        registry.check().unwrap();
        assert!(registry.reserved().contains(&HOLD));
        for label in ["bundles.resume/1", "bundles.retry/1", "bundles.roll_back/1", "bundles.abandon/1"] {
            assert!(registry.find(label).is_some(), "{label}");
        }
        for event in ["bundles.resumed", "bundles.rolled_back", "bundles.abandoned"] {
            assert!(registry.event_shape(event).is_some(), "{event}");
        }
    }
}

#[test]
fn functions_are_found_by_name_and_by_hash() {
    let registry = registry();
    let entry = registry.find("bank.mint/1").unwrap();
    assert_eq!((entry.label(), entry.hash), ("bank.mint/1".to_owned(), FunctionHash::of("bank.mint", 1)));
    assert!(registry.function(&entry.hash).is_some() && registry.find("bank.mint/2").is_none());
    let labels: Vec<_> = registry.functions().iter().map(|entry| entry.label()).collect();
    assert!(labels.is_sorted() && labels.len() == 7 + 4, "{labels:?}");
}

/// spec: EXEC-18. Tools find out from a key alone what its value looks like.
#[test]
fn the_shape_of_a_value_follows_from_its_key() {
    let registry = registry();
    let shape = |key: &[u8]| registry.value_shape(&space("bank"), key);
    assert_eq!(shape(b"total"), Some(u64::shape()));
    assert_eq!(shape(b"ids"), Some(u64::shape()));
    assert_eq!(shape(b"balances/\x01"), Some(u64::shape()));
    assert_eq!(shape(b"history"), Some(u64::shape()));
    assert_eq!(shape(b"history/\0\0\0\0\0\0\0\0"), Some(<(PublicKey, u64)>::shape()));
    assert_eq!(shape(b"closed/x"), Some(u8::shape()));
    assert_eq!(shape(b"balances").or(shape(b"tot")).or(shape(b"total/")), None);
    assert_eq!(registry.value_shape(&space("nowhere"), b"total"), None);
}

/// What holds nothing that the state could keep.
mod nothing {
    use keelstone_execution::{Decode, Encode, Item, Log, Map, OrderedKey, Set, namespace};

    #[derive(Encode, Decode, OrderedKey)]
    pub(crate) struct Unit;

    #[derive(Encode, Decode)]
    pub(crate) struct Units {
        pub(crate) one: (),
        pub(crate) other: (Unit, [u8; 0]),
    }

    macro_rules! spaces {
        ($($type:ident: $of:ty, $at:literal;)*) => {$(
            #[namespace("nothing")]
            pub(crate) struct $type {
                #[at($at)]
                #[expect(dead_code, reason = "the declaration is what is refused")]
                pub(crate) all: $of,
            }
        )*};
    }
    spaces! {
        AnItem: Item<()>, "all";
        AMap: Map<u8, Unit>, "all";
        ALog: Log<Units>, "all";
        ASet: Set<Unit>, "";
        ASwitch: Set<Unit>, "all";
    }
}

/// spec: TREE-1. No entry of the state is empty: a collection that could never take one in is refused where it is declared.
#[test]
fn a_collection_of_nothing_does_not_start() {
    fn checked<W: keelstone_execution::World>() -> Result<(), RegistryError> {
        Registry::new().declare::<W>().check()
    }
    let refused = |what, place| Err(RegistryError::Nothing { name: "nothing", place, what });
    assert_eq!(checked::<nothing::AnItem>(), refused("every value", "all"));
    assert_eq!(checked::<nothing::AMap>(), refused("every value", "all"));
    assert_eq!(checked::<nothing::ALog>(), refused("every value", "all"));
    assert_eq!(checked::<nothing::ASet>(), refused("every key", ""));
    assert_eq!(checked::<nothing::ASwitch>(), Ok(()), "a key behind a place is not empty");
}

/// What may come to keys that are longer than a key can be, and what may not.
mod long {
    use keelstone_codec::{Blob, Text};
    use keelstone_execution::{Decode, Encode, Map, OrderedKey, RawKey, Set, namespace};

    #[derive(Encode, Decode, OrderedKey)]
    pub(crate) struct Named {
        pub(crate) name: Text<200>,
        pub(crate) kind: Kind,
    }

    #[derive(Encode, Decode, OrderedKey)]
    pub(crate) enum Kind {
        None,
        Other(Blob<50>),
    }

    macro_rules! spaces {
        ($($type:ident: $of:ty, $at:literal;)*) => {$(
            #[namespace("long")]
            pub(crate) struct $type {
                #[at($at)]
                #[expect(dead_code, reason = "the declaration is what is refused")]
                pub(crate) all: $of,
            }
        )*};
    }
    spaces! {
        AText: Map<Text<300>, u8>, "all";
        ALongest: Map<Text<249>, u8>, "all";
        ALonger: Map<Text<250>, u8>, "all";
        ARecord: Set<(u64, Named)>, "all";
        Unbounded: Map<String, u8>, "all";
        Raw: Map<(u64, RawKey), u8>, "all";
    }
}

/// spec: EXEC-18. A key that its type allows can be written: a collection of longer ones is refused where it is declared.
#[test]
fn a_collection_of_keys_that_are_too_long_does_not_start() {
    fn checked<W: keelstone_execution::World>() -> Result<(), RegistryError> {
        Registry::new().declare::<W>().check()
    }
    let refused = |found| Err(RegistryError::LongKey { name: "long", place: "all", found, limit: 255 });
    assert_eq!(checked::<long::AText>(), refused(306));
    assert_eq!(checked::<long::ALonger>(), refused(256));
    assert_eq!(checked::<long::ALongest>(), Ok(()));
    assert_eq!(checked::<long::ARecord>(), refused(4 + 8 + 202 + 1 + 52));
    assert_eq!(checked::<long::Unbounded>(), Ok(()), "what has no bound of its own is the function's to bound");
    assert_eq!(checked::<long::Raw>(), Ok(()));
}

/// A function of a crate that was built in one way or another.
#[derive(Encode, Decode)]
struct Odd<const WRAPS: bool, const ABORTS: bool>;

impl<const WRAPS: bool, const ABORTS: bool> Function for Odd<WRAPS, ABORTS> {
    const NAME: &'static str = "odd";
    const VERSION: u32 = 1;
    const CONTEXT: ContextUse = ContextUse::NONE;
    const GAS_MAX: u64 = u64::MAX;
    const BUILT: Built = Built {
        unwinds: !ABORTS,
        add: if WRAPS { u8::wrapping_add } else { |a, b| a.checked_add(b).expect("a sum that does not fit") },
    };
    fn needs() -> Vec<Capability> {
        Vec::new()
    }
}

impl<const WRAPS: bool, const ABORTS: bool> Transition<Bank> for Odd<WRAPS, ABORTS> {
    type Output = ();
    fn apply(&self, _: &mut Draft<Bank>, _: &mut Context) -> Result<(), Denied> {
        Ok(())
    }
}

/// spec: EXEC-13. Sums that wrap around in one build and fail in another would part nodes, and a panic that is not caught
/// would end them: what was built so does not start, and says what the profile lacks.
#[test]
fn what_was_built_unlike_others_does_not_start() {
    registry().with::<Bank, Odd<false, false>>().check().unwrap();
    let error = registry().with::<Bank, Odd<true, false>>().check().unwrap_err();
    assert!(matches!(error, RegistryError::Wraps { .. }) && error.to_string().contains("`overflow-checks = true`"));
    let error = registry().with::<Bank, Odd<true, true>>().check().unwrap_err();
    assert!(matches!(error, RegistryError::Aborts { .. }) && error.to_string().contains("`panic = \"unwind\"`"));
}

/// spec: EXEC-22. Programs are compared by what they declare: all of it, and nothing besides.
#[test]
fn the_interface_is_what_a_program_declares() {
    #[expect(dead_code, reason = "the declarations are what is compared")]
    mod other {
        use super::*;

        #[namespace("ordered")]
        pub(crate) struct Turned {
            pub(crate) second: Item<u64>,
            pub(crate) first: Item<u32>,
        }
        #[namespace("ordered")]
        pub(crate) struct Ordered {
            pub(crate) first: Item<u32>,
            pub(crate) second: Item<u64>,
        }
        #[namespace("ordered")]
        pub(crate) struct Wider {
            pub(crate) first: Item<u64>,
            pub(crate) second: Item<u64>,
        }
    }
    let declared = |add: fn(&mut Registry)| {
        let mut registry = Registry::new();
        add(&mut registry);
        registry.check().unwrap();
        registry.interface()
    };
    let ordered = declared(|registry| {
        registry.declare::<other::Ordered>();
    });
    assert_eq!(
        ordered,
        declared(|registry| {
            registry.declare::<other::Turned>();
        })
    );
    let in_turn = declared(|registry| {
        registry.register::<Bank, Mint>().register::<Both, Half>();
    });
    assert_eq!(
        in_turn,
        declared(|registry| {
            registry.register::<Both, Half>().register::<Bank, Mint>();
        })
    );

    let different = [
        Registry::new().interface(),
        ordered,
        in_turn,
        declared(|registry| {
            registry.declare::<other::Wider>();
        }),
        declared(|registry| {
            registry.declare::<Bank>();
        }),
        declared(|registry| {
            registry.register::<Bank, Mint>();
        }),
        declared(|registry| {
            registry.event::<Minted>();
        }),
        declared(|registry| {
            registry.reserve(Capability::new("bank.mint"));
        }),
    ];
    assert_eq!(BTreeSet::from(different).len(), different.len());
}
