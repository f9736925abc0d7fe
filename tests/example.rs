//! What the README promises about writing a chain of one's own, and about taking its state elsewhere.
#![forbid(unsafe_code)]

use keelstone::execution::Registry;
use keelstone::node::{Application, Exit};
use std::ffi::OsString;

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
