//! What a declaration gets wrong is told where it stands.
#![allow(unused_imports)]

use keelstone_execution::{Encode, Item, Map, OrderedKey, RawKey, World, event, namespace, transition};

#[namespace("Bank")]
struct Upper {
    value: Item<u64>,
}

#[namespace("bank")]
struct Twice {
    #[at("b")]
    a: Item<u64>,
    b: Item<u64>,
}

#[namespace("bank")]
struct Whole {
    #[at("")]
    all: Map<RawKey, u64>,
    more: Item<u64>,
}

#[transition("bank.mint")]
struct Unversioned;

#[transition("bank.mint/01")]
struct Padded;

#[transition("bank.mint/1", context = clock)]
struct Clock;

#[transition("bank.mint/1", price = 5)]
struct Priced;

#[transition("bank.mint/1")]
struct Generic<T> {
    amount: T,
}

#[event("Bank.Minted")]
struct Minted;

#[derive(Encode)]
enum Tags {
    #[codec(tag = 1)]
    A,
    #[codec(tag = 1)]
    B,
}

#[derive(OrderedKey)]
enum Order {
    #[codec(tag = 2)]
    A,
    #[codec(tag = 1)]
    B,
}

#[derive(World)]
enum NotAStruct {}

fn main() {}
