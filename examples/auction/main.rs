//! A chain that does work of its own: what is offered gets cheaper with every block until somebody takes it, and from block
//! 1,000 on twice as fast.
//!
//! ```sh
//! cargo run --example auction -- --home auction init
//! cargo run --example auction -- --home auction tx send examples/auction/offer.json --from producer
//! cargo run --example auction -- --home auction query auction/prices
//! ```
#![forbid(unsafe_code)]

use keelstone::prelude::*;

#[namespace("auction")]
pub(crate) struct Auction {
    pub(crate) prices: Map<Text<64>, u64>,
}

#[transition("auction.offer/1")]
pub(crate) struct Offer {
    what: Text<64>,
    price: u64,
}

impl Transition<Auction> for Offer {
    type Output = ();

    fn apply(&self, auction: &mut Draft<Auction>, _: &mut Context) -> Result<(), Denied> {
        ensure!(!auction.prices.contains(&self.what)?, "{} is offered already", &*self.what);
        Ok(auction.prices.insert(&self.what, &self.price)?)
    }
}

#[transition("auction.take/1")]
pub(crate) struct Take {
    what: Text<64>,
}

impl Transition<Auction> for Take {
    type Output = u64;

    fn apply(&self, auction: &mut Draft<Auction>, _: &mut Context) -> Result<u64, Denied> {
        auction.prices.remove(&self.what)?.ok_or_else(|| denied!("{} is not offered", &*self.what))
    }
}

/// What the chain does in a block, within the gas that it declares: an offer behind the first thousand waits until one
/// of them is gone.
fn lower(auction: &mut Draft<Auction>, by: u64) -> Result<(), Denied> {
    let offers: Vec<(Text<64>, u64)> = auction.prices.iter().take(1_000).collect::<Result<_, _>>()?;
    for (what, price) in offers.into_iter().filter(|(_, price)| *price > 0) {
        auction.prices.insert(&what, &price.saturating_sub(by))?;
    }
    Ok(())
}

#[transition("auction.lower/1", gas = 50_000_000)]
pub(crate) struct Lower;

impl Transition<Auction> for Lower {
    type Output = ();

    fn apply(&self, auction: &mut Draft<Auction>, _: &mut Context) -> Result<(), Denied> {
        lower(auction, 1)
    }
}

#[transition("auction.lower/2", gas = 50_000_000)]
pub(crate) struct LowerFaster;

impl Transition<Auction> for LowerFaster {
    type Output = ();

    fn apply(&self, auction: &mut Draft<Auction>, _: &mut Context) -> Result<(), Denied> {
        lower(auction, 2)
    }
}

pub(crate) fn registry() -> Registry {
    const FASTER_FROM: Height = Height(1_000);
    let mut registry = Registry::new().with::<Auction, Offer>().with::<Auction, Take>();
    registry.during(..FASTER_FROM, |registry| {
        registry.begin_block::<Auction, Lower>();
    });
    registry.during(FASTER_FROM.., |registry| {
        registry.begin_block::<Auction, LowerFaster>();
    });
    registry
}

fn main() -> std::process::ExitCode {
    keelstone::node::Application::new(registry()).name("auction").main()
}
