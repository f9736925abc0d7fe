//! What the README promises about writing a chain of one's own, and about taking its state elsewhere.
#![forbid(unsafe_code)]

use keelstone::execution::Registry;
use keelstone::node::{Application, Exit};
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
    for price in [100, 200] {
        let text =
            format!(r#"{{"operations":[{{"call":"auction.offer/1","args":{{"what":"{price}","price":{price}}}}}]}}"#);
        std::fs::write(plan.with_extension(price.to_string()), text).expect("a plan can be written");
    }
    let run = |command: &str| {
        let line = ["auction", "--json", "--home"].map(OsString::from).into_iter().chain([home.path().into()]);
        let words = command.split(' ').map(|word| match word.strip_prefix("plan.") {
            Some(price) => plan.with_extension(price).into_os_string(),
            None => OsString::from(word),
        });
        application.run(line.chain(words))
    };
    for command in [
        "init",
        "tx send plan.100 --from producer",
        "tx send plan.200 --from producer",
        "query functions",
        "query auction/prices 100 --prove",
        "replay",
        "audit verify",
        "check --full",
    ] {
        assert_eq!(run(command), Exit::Ok, "{command}");
    }
    assert_ne!(run("tx send plan.200 --from producer"), Exit::Ok, "it is offered already");
    let source = include_str!("../examples/auction/main.rs");
    let shown: Vec<&str> = source.lines().filter_map(|line| line.split_once("--home auction ")).map(|c| c.1).collect();
    assert_eq!(shown.len(), 3);
}
