//! D-01: a float cannot be an argument, a result or an event.

use keelstone_execution::{Context, Denied, Draft, Item, Transition, event, namespace, transition};

#[namespace("agents")]
struct Agents {
    mood: Item<u8>,
}

#[transition("agents.rate/1")]
struct Rate {
    by: f32,
}

#[transition("agents.mean/1")]
struct Mean;

impl Transition<Agents> for Mean {
    type Output = f64;
    fn apply(&self, _: &mut Draft<Agents>, _: &mut Context) -> Result<f64, Denied> {
        Ok(0.5)
    }
}

#[event("agents.rated")]
struct Rated {
    by: f64,
}

fn main() {}
