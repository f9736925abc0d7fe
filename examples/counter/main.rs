//! A chain of one's own: a counter that anyone may raise. Three commands, and it runs:
//!
//! ```sh
//! cargo run --example counter -- --home counter init
//! cargo run --example counter -- --home counter tx send examples/counter/add.json --from producer
//! cargo run --example counter -- --home counter query counter value --prove
//! ```
#![forbid(unsafe_code)]

use keelstone::prelude::*;

#[namespace("counter")]
pub(crate) struct Counter {
    value: Item<u64>,
}

#[transition("counter.add/1")]
pub(crate) struct Add {
    by: u64,
}

impl Transition<Counter> for Add {
    type Output = u64;

    fn apply(&self, counter: &mut Draft<Counter>, _: &mut Context) -> Result<u64, Denied> {
        let value = counter.value.get_or_default()?;
        let sum = value.checked_add(self.by).ok_or_else(|| denied!("{value} + {} is too much", self.by))?;
        counter.value.set(&sum)?;
        Ok(sum)
    }
}

fn main() -> std::process::ExitCode {
    keelstone::node::Application::new(Registry::new().with::<Counter, Add>()).name("counter").main()
}
