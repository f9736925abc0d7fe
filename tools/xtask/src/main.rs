//! The project's own commands. `cargo xtask` lists them.
//!
//! `cargo xtask test` is everything a change must pass: formatting, lints, tests, documentation. Each part has a time
//! budget, because a check that takes too long is a check nobody runs. On a CI machine (`CI` is set) a part over its
//! budget fails; elsewhere the table only says so. No dependencies, so it starts within a second.
#![forbid(unsafe_code)]

use std::env;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// One part of the test command. Budgets are for two cores and an empty target directory, and about twice what each
/// part takes on an idle machine: machines that test are often busy.
struct Part {
    name: &'static str,
    budget: Duration,
    cargo: &'static [&'static str],
    env: &'static [(&'static str, &'static str)],
}

const fn part(name: &'static str, budget_secs: u64, cargo: &'static [&'static str]) -> Part {
    Part { name, budget: Duration::from_secs(budget_secs), cargo, env: &[] }
}

const TEST: &[Part] = &[
    part("format", 20, &["fmt", "--all", "--check"]),
    part("build", 600, &["test", "--workspace", "--locked", "--no-run"]),
    part("tests", 420, &["test", "--workspace", "--locked"]),
    part("lints", 240, &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]),
    Part {
        env: &[("RUSTDOCFLAGS", "-D warnings")],
        ..part("docs", 120, &["doc", "--workspace", "--no-deps", "--locked"])
    },
];

const USAGE: &str = "\
cargo xtask test          format, build, tests, lints, docs: all that a change must pass
cargo xtask bless         rewrite the golden files under spec/vectors (then read the diff)
cargo xtask fuzz TARGET   fuzz one decoder or verifier until stopped (needs cargo-fuzz)
cargo xtask crashloop [N] kill a process that works on a store N times (100,000) and look what is left
cargo xtask flips         flip a bit in every byte of a store, and look whether it is found
cargo xtask powercuts [N] cut the power of simulated stores N times (1,000,000), a fifth of them again in recovery";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["test"] => test(),
        ["bless"] => run(cargo(&["test", "--workspace"]).env("KEELSTONE_BLESS", "1")),
        // libFuzzer's instrumentation is a flag of the nightly compiler that the stable one has too, locked.
        ["fuzz", target, rest @ ..] => run(cargo(&["fuzz", "run", target]).args(rest).env("RUSTC_BOOTSTRAP", "1")),
        ["crashloop"] => crashloop("100000"),
        ["crashloop", cycles] => crashloop(cycles),
        ["flips"] => {
            run(store_test("damage::w01_c01_every_byte_with_a_flipped_bit_is_found").env("KEELSTONE_FLIP_STRIDE", "1"))
        }
        ["powercuts"] => powercuts("1000000"),
        ["powercuts", cuts] => powercuts(cuts),
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn crashloop(cycles: &str) -> ExitCode {
    run(&mut cargo(&["run", "--release", "--locked", "-p", "keelstone-crashloop", "--", "--cycles", cycles]))
}

/// The power cuts of the tests, many more of them. A failure prints the life and the change to look at.
fn powercuts(cuts: &str) -> ExitCode {
    run(store_test("faults::a_power_cut_at_any_change_loses_nothing_acknowledged").env("KEELSTONE_CUTS", cuts))
}

/// One test of the store, with what it prints.
fn store_test(name: &str) -> Command {
    cargo(&["test", "--locked", "-p", "keelstone-store", "--test", "suite", "--", "--nocapture", "--exact", name])
}

fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args);
    command
}

fn run(command: &mut Command) -> ExitCode {
    match command.status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("could not start {command:?}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs all parts, also after one has failed: a person wants to see all that is wrong at once.
fn test() -> ExitCode {
    let mut table = String::new();
    let mut failed = false;
    let on_ci = env::var_os("CI").is_some();
    for part in TEST {
        println!("\n--- {}: cargo {}", part.name, part.cargo.join(" "));
        let start = Instant::now();
        let passed = run(cargo(part.cargo).envs(part.env.iter().copied())) == ExitCode::SUCCESS;
        let took = start.elapsed();
        let over = took > part.budget;
        let verdict = match (passed, over) {
            (false, _) => "FAILED",
            (true, true) => "OVER BUDGET",
            (true, false) => "ok",
        };
        failed |= !passed || (over && on_ci);
        table += &format!("{:8} {:>4} s of {:>4} s  {verdict}\n", part.name, took.as_secs(), part.budget.as_secs());
    }
    println!("\n{table}");
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
