//! What cannot stand in a key is told where the collection is declared, not where it is used.
#![allow(dead_code)]

use keelstone_execution::{Encode, Map, Set, namespace};

#[derive(Encode)]
struct Plain(u64);

#[namespace("maps")]
struct Maps {
    by_plain: Map<Plain, u64>,
}

#[namespace("sets")]
struct Sets {
    options: Set<Option<u64>>,
}

fn main() {}
