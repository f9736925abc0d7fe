//! Derives: the bytes they write, and that they read nothing else.

use keelstone_codec::{Decode as _, DecodeError, Describe, Encode as _, KeyReader, OrderedKey as _, Shape, Text};
use keelstone_execution::{
    ContextUse, Decode, Encode, Function, Item, Map, OrderedKey, Space, event, namespace, transition,
};
use proptest::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct Named {
    a: u16,
    b: Option<Text<4>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct Pair<A, B>(A, B);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
struct Empty;

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
enum Choice {
    First,
    #[codec(tag = 7)]
    Seventh(u8, u8),
    Eighth {
        inner: Named,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode, OrderedKey)]
enum Place {
    Home,
    Room(u16, String),
    #[codec(tag = 9)]
    Street {
        name: String,
        number: u64,
    },
}

#[transition("macros.call/12", needs = ["macros.a", "macros.b"], context = height, gas = 5)]
struct Call {
    inner: Named,
}

/// What a variant is called by, also where the whole is the arguments of a function or an event.
#[transition("macros.act/1")]
#[derive(Clone, Debug, PartialEq, Eq)]
enum Act {
    #[codec(tag = 5)]
    Begin,
    End {
        r#type: u64,
    },
}

#[event("macros.happened")]
#[derive(Clone, Debug, PartialEq, Eq)]
enum Happened {
    #[codec(tag = 9)]
    Once,
}

/// A type that contains itself, behind a list.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
enum Tree {
    Leaf(u64),
    Node { r#in: Vec<Tree> },
}

#[namespace("woods")]
#[expect(dead_code, reason = "the declaration is what is looked at")]
struct Woods {
    r#type: Item<u64>,
    trees: Map<i64, Tree>,
}

#[test]
fn tags_hold_for_arguments_and_events() {
    assert_eq!((Act::Begin.to_bytes(), Act::End { r#type: 1 }.to_bytes()[0]), (vec![5], 6));
    assert_eq!(Happened::Once.to_bytes(), [9]);
    assert_eq!(Act::from_bytes(&[5]), Ok(Act::Begin));
}

/// A field is called what it is called, whatever it takes to write that in Rust.
#[test]
fn raw_names_lose_their_prefix() {
    let Shape::Choice(variants) = Act::shape() else { panic!("an enum is a choice") };
    assert_eq!(variants[1].shape, Shape::Record(vec![("type", Shape::Unsigned(8))]));
    let places: Vec<_> = Woods::info().collections.iter().map(|(place, _)| *place).collect();
    assert_eq!(places, ["type", "trees"]);
}

/// A description without end would be none: where a type contains itself, it is named.
#[test]
fn a_type_that_contains_itself_is_opaque_within() {
    for _ in 0..2 {
        let Shape::Choice(variants) = Tree::shape() else { panic!("an enum is a choice") };
        let Shape::Record(fields) = &variants[1].shape else { panic!("its variant is a record") };
        let ("in", Shape::List(element, _)) = &fields[0] else { panic!("{fields:?}") };
        assert!(matches!(&**element, Shape::Opaque(name) if name.ends_with("Tree")), "{element:?}");
    }
    assert!(!Woods::info().collections.is_empty());
    let tree = Tree::Node { r#in: vec![Tree::Leaf(1)] };
    assert_eq!(Tree::from_bytes(&tree.to_bytes()), Ok(tree));
}

#[test]
fn fields_follow_one_another_and_variants_their_tag() {
    let named = Named { a: 258, b: Some(Text::new("x").unwrap()) };
    assert_eq!(named.to_bytes(), [2, 1, 1, 1, 0, 0, 0, b'x']);
    assert_eq!(Pair(1u8, named.clone()).to_bytes()[0], 1);
    assert!(Empty.to_bytes().is_empty());
    assert_eq!(Choice::First.to_bytes(), [0]);
    assert_eq!(Choice::Seventh(1, 2).to_bytes(), [7, 1, 2]);
    assert_eq!(Choice::Eighth { inner: named }.to_bytes()[0], 8, "counting goes on behind an explicit tag");
    assert_eq!(Choice::from_bytes(&[6]), Err(DecodeError::UnknownTag { what: "Choice", found: 6 }));
    assert_eq!(Choice::from_bytes(&[0, 0]), Err(DecodeError::Trailing { left: 1 }));
}

#[test]
fn shapes_follow_the_declaration() {
    let Shape::Choice(variants) = Choice::shape() else { panic!("an enum is a choice") };
    let tags: Vec<_> = variants.iter().map(|variant| (variant.tag, variant.name)).collect();
    assert_eq!(tags, [(0, "First"), (7, "Seventh"), (8, "Eighth")]);
    assert_eq!(variants[2].shape, Shape::Record(vec![("inner", Named::shape())]));
    assert_eq!(Pair::<u8, bool>::shape(), Shape::Tuple(vec![Shape::Unsigned(1), Shape::Bool]));
    assert_eq!(Empty::shape(), Shape::Unit);
}

#[test]
fn a_transition_says_what_it_is() {
    assert_eq!((Call::NAME, Call::VERSION, Call::GAS_MAX), ("macros.call", 12, 5));
    assert_eq!(Call::CONTEXT, ContextUse { height: true, ..ContextUse::NONE });
    assert_eq!(Call::needs().iter().map(|need| need.as_str()).collect::<Vec<_>>(), ["macros.a", "macros.b"]);
    assert_eq!(Call::hash(), keelstone_execution::FunctionHash::of("macros.call", 12));
    let call = Call { inner: Named { a: 1, b: None } };
    assert_eq!(call.to_bytes(), [1, 0, 0]);
}

fn place() -> impl Strategy<Value = Place> {
    let name = prop::collection::vec(prop_oneof![Just('\0'), Just('a'), Just('\u{ff}')], 0..4);
    let name = name.prop_map(|chars| chars.into_iter().collect::<String>());
    prop_oneof![
        Just(Place::Home),
        (0..3u16, name.clone()).prop_map(|(number, name)| Place::Room(number, name)),
        (name, 0..3u64).prop_map(|(name, number)| Place::Street { name, number }),
    ]
}

proptest! {
    /// Keys that are derived sort as their values do, and read back.
    #[test]
    fn derived_keys_sort_as_values(a in place(), b in place()) {
        let bytes = |place: &Place| {
            let mut out = Vec::new();
            place.encode_key(&mut out);
            out
        };
        prop_assert_eq!(a.cmp(&b), bytes(&a).cmp(&bytes(&b)));
        let encoded = bytes(&a);
        let mut input = KeyReader::new(&encoded);
        prop_assert_eq!(Place::decode_key(&mut input), Ok(a.clone()));
        prop_assert!(input.finish().is_ok());
        prop_assert_eq!(Place::from_bytes(&a.to_bytes()), Ok(a));
    }
}
