//! EXEC-14: an index cannot stand in a namespace, so no transition can read one.

use keelstone_execution::{Index, Map, namespace};

#[namespace("bank")]
struct Bank {
    balances: Map<u64, u64>,
    by_balance: Index<u64, u64, u64>,
}

fn main() {}
