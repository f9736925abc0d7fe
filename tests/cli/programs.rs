//! Programs of several versions over one home: what each says of what another left there.
#![expect(clippy::unwrap_used, reason = "these are parts of tests: what fails here fails a test")]

use crate::support::{Node, expect, expect_of};
use keelstone::prelude::*;
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output};

/// The variables that make this test binary one of the programs: which one, and its arguments, one to a line.
const PROGRAM: &str = "MARKET_PROGRAM";
const ARGUMENTS: &str = "MARKET_ARGUMENTS";

/// A market of one version: what an order is, and what placing one gives.
macro_rules! market {
    ($version:ident, $gives:expr, $($further:ident)?) => {
        mod $version {
            use keelstone::prelude::*;

            #[derive(Encode, Decode)]
            pub(crate) struct Order {
                price: u64,
                $($further: u64,)?
            }

            #[namespace("market")]
            pub(crate) struct Market {
                orders: Map<u64, Order>,
            }

            #[transition("market.place/1")]
            pub(crate) struct Place {
                number: u64,
                price: u64,
            }

            impl Transition<Market> for Place {
                type Output = u64;

                fn apply(&self, market: &mut Draft<Market>, _: &mut Context) -> Result<u64, Denied> {
                    let order = Order { price: self.price, $($further: 7,)? };
                    market.orders.insert(&self.number, &order)?;
                    let gives: fn(u64) -> u64 = $gives;
                    Ok(gives(self.price))
                }
            }
        }
    };
}
market!(first, |price| price,);
market!(dearer, |price| price + 1,);
market!(wider, |price| price, amount);

#[namespace("other")]
pub(crate) struct Other {
    calls: Item<u64>,
}

#[transition("other.call/1")]
pub(crate) struct Call;

impl Transition<Other> for Call {
    type Output = ();

    fn apply(&self, other: &mut Draft<Other>, _: &mut Context) -> Result<(), Denied> {
        let calls = other.calls.get_or_default()? + 1;
        Ok(other.calls.set(&calls)?)
    }
}

/// A program: this test alone, in a process of its own.
#[test]
#[ignore = "the program that other tests run"]
fn the_program() {
    let (Ok(program), Ok(arguments)) = (std::env::var(PROGRAM), std::env::var(ARGUMENTS)) else { return };
    let (name, registry) = match program.as_str() {
        "first" => ("market", Registry::new().with::<first::Market, first::Place>()),
        "dearer" => ("market", Registry::new().with::<dearer::Market, dearer::Place>()),
        "wider" => ("market", Registry::new().with::<wider::Market, wider::Place>()),
        "other" => ("other", Registry::new().with::<Other, Call>()),
        // Two types that claim one namespace.
        "clash" => {
            ("market", Registry::new().with::<first::Market, first::Place>().with::<wider::Market, wider::Place>())
        }
        program => panic!("there is no program {program}"),
    };
    let exit = keelstone::node::Application::new(registry)
        .name(name)
        .run(std::iter::once(name).chain(arguments.lines()).map(Into::into));
    std::process::exit(i32::from(exit as u8));
}

fn command(program: &str, home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a running test has a path"));
    command.args(["--exact", "programs::the_program", "--ignored", "--nocapture", "--quiet"]);
    command.env_clear().env("HOME", home).env(PROGRAM, program).env(ARGUMENTS, arguments.join("\n"));
    command
}

/// What a program says to arguments in a home, as JSON of standard output, or of standard error if there is none.
fn run(program: &str, home: &Path, code: i32, arguments: &[&str]) -> Value {
    let home_of = ["--json", "--home", home.to_str().unwrap()];
    expect_of(command(program, home, &[arguments, home_of.as_slice()].concat()), code)
}

/// What a program says to a bundle of one call.
fn place(program: &str, home: &Path, number: u64) -> Output {
    let file = home.join("bundle.json");
    let call = json!({ "call": "market.place/1", "args": { "number": number, "price": 5 } });
    std::fs::write(&file, json!({ "operations": [call] }).to_string()).unwrap();
    let arguments = ["tx", "send", file.to_str().unwrap(), "--from", "producer", "--home", home.to_str().unwrap()];
    command(program, home, &arguments).output().unwrap()
}

/// A home whose chain the first version of the market began, with an order.
fn market() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    run("first", home.path(), 0, &["init", "--chain-id", "market"]);
    let placed = place("first", home.path(), 1);
    assert!(placed.status.success() && !String::from_utf8_lossy(&placed.stderr).contains("warning"), "{placed:?}");
    home
}

fn hint(failure: &Value) -> &str {
    failure["error"]["hint"].as_str().unwrap_or_else(|| panic!("{failure}"))
}

fn message(failure: &Value) -> &str {
    failure["error"]["message"].as_str().unwrap_or_else(|| panic!("{failure}"))
}

/// A program that does not start leaves nothing that looks like a chain.
#[test]
fn a_registry_that_is_refused_begins_no_chain() {
    let home = tempfile::tempdir().unwrap();
    let failure = run("clash", home.path(), 2, &["init"]);
    assert!(message(&failure).contains("namespace market"), "{failure}");
    assert!(home.path().read_dir().unwrap().next().is_none(), "something was written");
}

/// Without `--home` every application has a directory of its own.
#[test]
fn two_applications_share_no_home() {
    let home = tempfile::tempdir().unwrap();
    for program in ["first", "other"] {
        let output = command(program, home.path(), &["init"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    // Nor a chain: what is signed for one is nothing to the other.
    for program in ["market", "other", "keelstone"] {
        let genesis = match program {
            "keelstone" => {
                expect(home.path(), 0, &["init"]);
                home.path().join("genesis.json")
            }
            program => home.path().join(format!(".{program}/genesis.json")),
        };
        let genesis: Value = serde_json::from_slice(&std::fs::read(genesis).unwrap()).unwrap();
        assert_eq!(genesis["chain_id"], format!("{program}-dev"));
    }
}

/// spec: EXEC-22. Whoever makes the next block is told that another program made the last one, once.
#[test]
fn a_home_knows_which_program_made_its_blocks() {
    let home = market();
    let noted =
        || -> Value { serde_json::from_slice(&std::fs::read(home.path().join("program.json")).unwrap()).unwrap() };
    let interface = run("first", home.path(), 0, &["status"])["interface"].clone();
    assert_eq!(noted(), json!({ "name": "market", "interface": interface }));

    // Who only looks changes nothing.
    let wider = run("wider", home.path(), 0, &["status"])["interface"].clone();
    assert_eq!(noted()["interface"], interface);
    let sent = place("wider", home.path(), 2);
    let said = String::from_utf8_lossy(&sent.stderr).into_owned();
    let both = [&interface, &wider].map(|hash| said.contains(hash.as_str().unwrap()));
    assert!(sent.status.success() && said.contains("warning: ") && both == [true, true], "{said}");
    assert_eq!(noted()["interface"], wider);
    let sent = place("wider", home.path(), 3);
    assert!(sent.status.success() && !String::from_utf8_lossy(&sent.stderr).contains("warning"), "{sent:?}");

    let node = |program: &str| {
        let arguments = ["node", "--json", "--set", "http.listen=127.0.0.1:0", "--home", home.path().to_str().unwrap()];
        Node::run(command(program, home.path(), &arguments))
    };
    let warned = |node: &Node, what: &str| {
        node.said["warnings"].as_array().unwrap().iter().any(|warning| warning.as_str().unwrap().contains(what))
    };
    let other = node("other");
    assert!(warned(&other, "was last written to by market") && warned(&other, "namespace market"), "{}", other.said);
    drop(other);
    let of_old_types = node("wider");
    assert!(!warned(&of_old_types, "was last written to"), "{}", of_old_types.said);
    assert!(warned(&of_old_types, "no value of the type that this program has there"), "{}", of_old_types.said);
    drop(of_old_types);

    // Where nothing says so any more, who runs the chain next is told once, and noted.
    let forget = || std::fs::remove_file(home.path().join("program.json")).unwrap();
    forget();
    let unknown = "nothing says which program made them";
    let first = node("first");
    assert!(warned(&first, unknown), "{}", first.said);
    drop(first);
    assert_eq!(noted()["interface"], interface);
    let first = node("first");
    assert!(!warned(&first, unknown), "{}", first.said);
    drop(first);
    forget();
    let sent = place("first", home.path(), 4);
    assert!(sent.status.success() && String::from_utf8_lossy(&sent.stderr).contains(unknown), "{sent:?}");
    let sent = place("first", home.path(), 5);
    assert!(sent.status.success() && !String::from_utf8_lossy(&sent.stderr).contains("warning"), "{sent:?}");
}

/// spec: HISTORY-4. A replay names what differs first, and who may have made it.
#[test]
fn a_replay_names_the_function_that_differs() {
    let home = market();
    let failure = run("dearer", home.path(), 12, &["replay"]);
    for part in
        ["block 1 differs", "transaction 0", "operation 0, market.place/1", "result of operation 0: replayed 06"]
    {
        assert!(message(&failure).contains(part), "no {part:?} in {failure}");
    }
    assert!(hint(&failure).contains("another version of the program"), "{failure}");

    let failure = run("other", home.path(), 12, &["replay"]);
    assert!(message(&failure).contains("operation 0: this program does not have function"), "{failure}");
    assert!(hint(&failure).contains("was last written to by market"), "{failure}");

    let failure = run("other", home.path(), 12, &["recover", "--yes", "--strategy", "block_replay"]);
    assert!(message(&failure).contains("does not have function"), "{failure}");
    assert!(!message(&failure).contains("damaged in the database"), "{failure}");
    assert!(hint(&failure).contains("was last written to by market"), "{failure}");
    assert_eq!(run("first", home.path(), 0, &["replay"])["blocks"], 1, "and nothing was changed");
}

/// A stored type that was changed is no damage, and no silence either.
#[test]
fn what_is_stored_of_another_type_is_told() {
    let home = market();
    let first = run("first", home.path(), 0, &["query", "market/orders"]);
    assert_eq!((&first["rows"][0]["value"]["price"], &first["warnings"]), (&json!(5), &Value::Null));

    let told = |found: &Value| {
        let warning = found["warnings"][0].as_str().unwrap_or_else(|| panic!("{found}")).to_owned();
        assert!(warning.contains("no value of the type that this program has there"), "{found}");
    };
    told(&run("wider", home.path(), 0, &["query", "market/orders"]));
    told(&run("wider", home.path(), 0, &["query", "market/orders", "1"]));
    for command in [&["check", "--full"][..], &["db", "check"], &["status"]] {
        told(&run("wider", home.path(), 0, command));
        assert_eq!(run("first", home.path(), 0, command)["warnings"], json!([]), "{command:?}");
    }
    let status = run("wider", home.path(), 0, &["status"]);
    assert!(status["warnings"][1].as_str().unwrap().contains("was last written to by market"), "{status}");
    let removed = run("other", home.path(), 0, &["check", "--full"]);
    assert!(removed["warnings"][0].as_str().unwrap().contains("namespace market"), "{removed}");
}

/// spec: GENESIS-1. What of a genesis this program can do nothing with is told, and a file that is too long leads on.
#[test]
fn a_genesis_with_what_nobody_reads_is_taken_with_a_word() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("genesis of another.json");
    let key = "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c";
    let genesis = json!({ "chain_id": "test", "grants": { key: ["contracts.patch", "bundles.hold"] } });
    std::fs::write(&file, genesis.to_string()).unwrap();
    let begun = run("first", &home.path().join("a"), 0, &["init", "--genesis", file.to_str().unwrap()]);
    let warnings = begun["warnings"].as_array().unwrap();
    assert!(warnings.len() == 1 && warnings[0].as_str().unwrap().contains("contracts.patch"), "{begun}");

    let rules = json!([{ "title": "be kind", "text": "to all" }]);
    std::fs::write(&file, json!({ "chain_id": "test", "world": { "rules": rules } }).to_string()).unwrap();
    let begun = run("first", &home.path().join("b"), 0, &["init", "--genesis", file.to_str().unwrap()]);
    assert!(begun["warnings"][0].as_str().unwrap().contains("does not have the module rules"), "{begun}");

    std::fs::File::create(&file).unwrap().set_len((64 << 20) + 1).unwrap();
    let failure = run("first", &home.path().join("c"), 2, &["init", "--genesis", file.to_str().unwrap()]);
    assert!(hint(&failure).contains("inherits") && hint(&failure).contains("to-genesis"), "{failure}");
}

/// A genesis may be large: who asks the node that runs reads none.
#[test]
fn whoever_asks_a_node_that_runs_reads_no_genesis() {
    let home = market();
    let arguments = ["node", "--json", "--set", "http.listen=127.0.0.1:0", "--home", home.path().to_str().unwrap()];
    let _node = Node::run(command("first", home.path(), &arguments));
    std::fs::write(home.path().join("genesis.json"), "no genesis").unwrap();
    assert_eq!(run("first", home.path(), 0, &["status"])["height"], 1);
    run("first", home.path(), 0, &["query", "market/orders"]);
}
