//! D-01: a float cannot be stored, in a record or anywhere inside one.

use keelstone_execution::{Encode, Item, Map, namespace};

#[derive(Encode)]
struct Agent {
    reputation: f64,
}

#[derive(Encode)]
struct Weights(Option<Vec<f32>>);

#[namespace("agents")]
struct Agents {
    mood: Item<f32>,
    weights: Map<u64, f64>,
}

fn main() {}
