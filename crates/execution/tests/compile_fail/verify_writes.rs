//! `verify` sees the world read-only, and the compiler keeps it so.

use keelstone_execution::{Context, Denied, Draft, Item, Transition, View, namespace, transition};

#[namespace("counter")]
struct Counter {
    value: Item<u64>,
}

#[transition("counter.add/1")]
struct Add {
    by: u64,
}

impl Transition<Counter> for Add {
    type Output = ();

    fn verify(&self, counter: &View<Counter>, _: &Context) -> Result<(), Denied> {
        counter.value.set(&self.by)?;
        Ok(())
    }

    fn apply(&self, _: &mut Draft<Counter>, _: &mut Context) -> Result<(), Denied> {
        Ok(())
    }
}

fn main() {}
