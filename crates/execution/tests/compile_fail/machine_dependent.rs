//! D-01: what differs between machines, processes or runs has no encoding (spec: CODEC-2).

use keelstone_execution::{Decode, Encode, OrderedKey};
use std::collections::{HashMap, HashSet};
use std::time::{Instant, SystemTime};

#[derive(Encode, Decode)]
struct Width(usize);

#[derive(Encode)]
struct Order(HashMap<u8, u8>, HashSet<u8>);

#[derive(Encode)]
struct Clock {
    wall: SystemTime,
    steady: Instant,
}

#[derive(OrderedKey)]
struct Position(usize);

fn main() {}
