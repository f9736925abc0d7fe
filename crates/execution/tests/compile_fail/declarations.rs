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

#[derive(OrderedKey)]
enum Numbers {
    High = 10,
    Low = 1,
}

#[derive(OrderedKey)]
enum Below {
    High,
    Low = -1,
}

#[derive(Encode)]
enum Computed {
    A = 1 + 1,
}

#[derive(Encode)]
struct Marked {
    #[codec(tag = 1)]
    a: u64,
}

#[derive(Encode)]
enum Within {
    A {
        #[codec(skip)]
        a: u64,
    },
}

#[derive(OrderedKey)]
#[codec(whatever)]
struct Whatever(u64);

#[transition("bank.mint/1", needs = "a", needs = "b")]
struct TwoNeeds;

#[transition("bank.mint/1", context = height, context = time)]
struct TwoContexts;

#[transition("bank.mint/1", needs = ["a", "Bad Cap"])]
struct BadNeed;

#[event("bank.minted")]
struct Parametric<T> {
    amount: T,
}

#[event("bank.minted")]
#[codec(shapeless)]
struct Shapeless;

#[derive(World)]
enum NotAStruct {}

fn main() {}
