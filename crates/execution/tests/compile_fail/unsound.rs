//! A collection that could not do what it is for, and a world that holds a namespace twice, do not compile.
#![allow(dead_code)]

use keelstone_execution::{Item, Map, OrderedKey, RawKey, Sequence, Set, World, namespace};

#[namespace("open")]
struct Open {
    pairs: Map<(RawKey, u64), u64>,
}

#[namespace("open_set")]
struct OpenSet {
    triples: Set<(u8, RawKey, u64)>,
}

#[namespace("narrow")]
struct Narrow {
    ids: Sequence<u32>,
}

#[derive(OrderedKey)]
struct First {
    raw: RawKey,
    more: u8,
}

#[namespace("value")]
struct Once {
    value: Item<u64>,
}

#[derive(World)]
struct Twice {
    a: Once,
    b: Once,
}

fn main() {}
