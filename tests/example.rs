//! What the README promises about writing a chain of one's own, and about taking its state elsewhere.
#![forbid(unsafe_code)]

use keelstone::execution::{BlockContext, BlockDraft, When};
use keelstone::node::{Application, Exit};
use keelstone::prelude::*;
use keelstone::tree::{Blake3, MemoryTree};
use std::ffi::OsString;

#[path = "../examples/auction/main.rs"]
#[expect(dead_code, reason = "as above")]
mod auction;
#[path = "../examples/counter/main.rs"]
#[expect(dead_code, reason = "its `main` is the program's, not the test's")]
mod counter;
#[path = "../examples/state_sync/main.rs"]
#[expect(dead_code, reason = "as above")]
mod state_sync;

/// The example checks each of its steps itself.
#[test]
fn the_story_of_state_sync_comes_to_its_end() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    state_sync::run(directory.path()).expect("every step holds");
}

/// Forty lines, and the three commands that its head shows: each does what was asked, and the proof verifies.
#[test]
fn a_chain_of_ones_own_takes_forty_lines_and_three_commands() {
    let source = include_str!("../examples/counter/main.rs");
    assert!(source.lines().count() <= 40);
    let commands: Vec<&str> =
        source.lines().filter_map(|line| line.split_once("--home counter ")).map(|c| c.1).collect();
    assert_eq!(commands.len(), 3);

    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let registry = Registry::new().with::<counter::Counter, counter::Add>();
    let application = Application::new(registry).name("counter");
    for command in commands {
        let line = ["counter", "--json", "--home"].map(OsString::from).into_iter().chain([home.path().into()]);
        let exit = application.run(line.chain(command.split(' ').map(OsString::from)));
        assert_eq!(exit, Exit::Ok, "{command}");
    }
    let line = ["counter", "--json", "--home"].map(OsString::from).into_iter().chain([home.path().into()]);
    let query = ["query", "counter/value"].map(OsString::from);
    assert_eq!(application.run(line.chain(query)), Exit::Ok, "what is at a place of one's own has a name");

    // What takes a built-in module says that it is missing, instead of what would follow from that.
    for command in [
        "demo --once",
        "conflict status 1",
        "bench bundles --bundles 1",
        "testnet demo",
        "session create x --from y --may counter.add",
    ] {
        let line = ["counter", "--json", "--home"].map(OsString::from).into_iter().chain([home.path().into()]);
        let exit = application.run(line.chain(command.split(' ').map(OsString::from)));
        assert_eq!(exit, Exit::Usage, "{command}");
    }
}

/// spec: EXEC-23, BLOCK-8. A chain that works by itself: the price that a block found is lower after it, with the whole command
/// line, and what is on record of it holds.
#[test]
fn an_auction_lowers_its_prices_by_itself() {
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let application = Application::new(auction::registry()).name("auction");
    let plan = home.path().join("plan.json");
    let text = r#"{"operations":[{"call":"auction.offer/1","args":{"what":"a chair","price":200}}]}"#;
    std::fs::write(&plan, text).expect("a plan can be written");
    let run = |command: &str| {
        let line = ["auction", "--json", "--home"].map(OsString::from).into_iter().chain([home.path().into()]);
        let words =
            command.split(' ').map(|word| if word == "PLAN" { plan.clone().into() } else { OsString::from(word) });
        application.run(line.chain(words))
    };
    let source = include_str!("../examples/auction/main.rs");
    let shown: Vec<&str> = source.lines().filter_map(|line| line.split_once("--home auction ")).map(|c| c.1).collect();
    assert_eq!(shown.len(), 3);
    let more = ["tx send PLAN --from producer", "query functions", "replay", "audit verify", "check --full"];
    for command in shown.into_iter().chain(more) {
        assert_eq!(run(command), Exit::Ok, "{command}");
    }
    assert_ne!(run("tx send PLAN --from producer"), Exit::Ok, "it is offered already");

    let registry = auction::registry();
    let price = |height| {
        let chain_id = ChainId::new("test-1").expect("a plain name");
        let (proposer, seed) = (PublicKey(Hash([1; 32])), Hash([0; 32]));
        let block = BlockContext { chain_id, height: Height(height), time: Timestamp(0), proposer, seed };
        let mut draft = BlockDraft::begin(&registry, MemoryTree::<Blake3>::new(), block);
        let lamp = Text::new("a lamp").expect("it is short");
        draft.edit(|auction: &mut auction::Auction| auction.prices.insert(&lamp, &100)).expect("it is written");
        draft.run_hooks(When::BeginBlock, 50_000_000).expect("it is read");
        draft.edit(|auction: &mut auction::Auction| auction.prices.get(&lamp)).expect("it is read")
    };
    assert_eq!([price(1), price(999), price(1_000)], [Some(99), Some(99), Some(98)]);
}
