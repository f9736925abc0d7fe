//! The project's own commands. `cargo xtask` lists them.
//!
//! `cargo xtask test` is everything a change must pass: formatting, lints, tests, documentation. Each part has a time
//! budget, because a check that takes too long is a check nobody runs. On a CI machine (`CI` is set) a part over its
//! budget fails; elsewhere the table only says so. What runs nothing goes on beside the tests, with the processor time that they
//! leave. No dependencies, so it starts within a second.
//!
//! Before the tests it installs what they run that is not Rust, where that can be had. What cannot be had is left out
//! and named at the end; on a CI machine nothing may be left out.
#![forbid(unsafe_code)]

mod bigstate;
mod outside;

use outside::Found;
use std::env;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

/// One part of the test command. Budgets are for two cores and an empty target directory, and more than each part
/// takes on an idle machine, most of them twice as much: machines that test are often busy.
struct Part {
    name: &'static str,
    budget: Duration,
    cargo: &'static [&'static str],
    env: &'static [(&'static str, &'static str)],
}

const fn part(name: &'static str, budget_secs: u64, cargo: &'static [&'static str]) -> Part {
    Part { name, budget: Duration::from_secs(budget_secs), cargo, env: &[] }
}

/// What nobody is given who does not ask for it, and is tested.
const FEATURES: &str = "hdf5,quic";

const TEST: &[Part] = &[
    part("format", 20, &["fmt", "--all", "--check"]),
    // What is tested, without the examples that measure: the lints check those.
    part("build", 1_260, &["test", "--tests", "--workspace", "--features", FEATURES, "--locked", "--no-run"]),
    part("doctests", 120, &["test", "--doc", "--workspace", "--features", FEATURES, "--locked", "--no-fail-fast"]),
    part(TESTS, 1_080, &["test", "--tests", "--workspace", "--features", FEATURES, "--locked", "--no-fail-fast"]),
];

/// What is looked at without being run, in this order: beside the tests, of which the longest wait for networks. The budgets
/// are for what is left of it, all together, once those have ended.
const BESIDE: &[Part] = &[
    part(
        "lints",
        300,
        &["clippy", "--workspace", "--features", FEATURES, "--all-targets", "--locked", "--", "-D", "warnings"],
    ),
    // What people build who ask for no feature.
    part("plain", 120, &["check", "-p", "keelstone", "--locked"]),
    Part {
        env: &[("RUSTDOCFLAGS", "-D warnings")],
        ..part("docs", 120, &["doc", "--workspace", "--no-deps", "--locked"])
    },
];
/// The part beside which those run.
const TESTS: &str = "tests";
/// How long it has to take the lock of the build directory first, which it gives back once it knows that all is built.
const LOCK_PATIENCE: Duration = Duration::from_secs(15);

/// What `promtool` is told to do with the alert rules.
const RULES: [&[&str]; 2] =
    [&["check", "rules", "monitoring/alerts.yml"], &["test", "rules", "monitoring/alerts.test.yml"]];
/// Seconds that installing CometBFT may take: it is downloaded and built once.
const INSTALL_SECS: u64 = 420;
/// Seconds that checking the alert rules may take, with the download of what does it.
const RULES_SECS: u64 = 120;

const USAGE: &str = "\
cargo xtask test               format, build, tests, lints, docs: all that a change must pass
cargo xtask cometbft VERSION   the end-to-end tests on another CometBFT: 0.38.26, 0.39.4 or 0.40.0 (needs Go)
cargo xtask bigstate [KEYS]    make and restore a snapshot of a state (76,000,000 keys, 10 GB) and hold both to their limits
cargo xtask bless              rewrite the golden files under spec/vectors (then read the diff)
cargo xtask fuzz TARGET        fuzz one decoder or verifier until stopped (needs cargo-fuzz)
cargo xtask crashloop [N]      kill a process that works on a store N times (100,000) and look what is left
cargo xtask flips              flip a bit in every byte of a store, and look whether it is found
cargo xtask mends [N]          change a byte of a store N times (1,000), and look whether it is found and had again from a peer
cargo xtask diverge [KEYS]     find the key and the height at which two chains part: of 10,000,000 keys and 1,000 heights
cargo xtask powercuts [N]      cut the power of simulated stores N times (1,000,000), a fifth of them again in recovery
cargo xtask determinism        20 seeds, 100 blocks of 200 operations, each told five times: other threads, zones and clocks
cargo xtask kills [N]          kill N processes (100) in the middle of an async bundle of 1,000 operations, and go on
cargo xtask syscalls [N]       kill what puts a state into a home at every call that changes the disk, or N of each, and fail them
cargo xtask interleavings [N]  let the store's threads run in N orders (100,000) in each of the tests that try orders
cargo xtask tsan               the store's stress test under ThreadSanitizer (needs the sources of the standard library)
cargo xtask joins [ARGUMENTS]  join four nodes over real sockets: speed, kills, half of them gone (--keys 10000000: 10 GB of disk)
cargo xtask sim [N]            let a node join among liars in N simulated networks (500,000), one follow, one keep its state whole, and one recover it";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["test"] => test(),
        ["cometbft", version @ ("0.38.26" | "0.39.4" | "0.40.0")] => end_to_end(version),
        ["bigstate"] => bigstate::run(bigstate::KEYS),
        ["bigstate", keys] => counted(keys, bigstate::run),
        ["bless"] => run(cargo(&["test", "--workspace"]).env("KEELSTONE_BLESS", "1")),
        // libFuzzer's instrumentation is a flag of the nightly compiler that the stable one has too, locked.
        ["fuzz", target, rest @ ..] => run(cargo(&["fuzz", "run", target]).args(rest).env("RUSTC_BOOTSTRAP", "1")),
        ["crashloop"] => crashloop(100_000),
        ["crashloop", cycles] => counted(cycles, crashloop),
        ["flips"] => run_tests(
            store_test("damage::w01_c01_every_byte_with_a_flipped_bit_is_found").env("KEELSTONE_FLIP_STRIDE", "1"),
        ),
        ["mends"] => mends(1_000),
        ["mends", tries] => counted(tries, mends),
        ["diverge"] => diverge(10_000_000),
        ["diverge", keys] => counted(keys, diverge),
        ["powercuts"] => powercuts(1_000_000),
        ["powercuts", cuts] => counted(cuts, powercuts),
        ["determinism"] => run_tests(
            ledger_test("determinism::d05_neither_readers_nor_clocks_nor_zones_change_a_saga")
                .env("KEELSTONE_TEST_SCALE", "20"),
        ),
        ["kills"] => kills(100),
        ["kills", count] => counted(count, kills),
        ["syscalls"] => syscalls(u64::MAX),
        ["syscalls", each] => counted(each, syscalls),
        ["interleavings"] => interleavings(100_000),
        ["interleavings", orders] => counted(orders, interleavings),
        ["joins", rest @ ..] => joins(rest),
        ["tsan"] => tsan(),
        ["sim"] => sim(500_000),
        ["sim", seeds] => counted(seeds, sim),
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

/// Does something so many times. What is no number, or none at all, would do less than was meant and pass.
fn counted<N: FromStr + Default + PartialOrd>(count: &str, act: impl FnOnce(N) -> ExitCode) -> ExitCode {
    match positive(count) {
        Some(count) => act(count),
        None => usage(),
    }
}

fn positive<N: FromStr + Default + PartialOrd>(text: &str) -> Option<N> {
    text.parse().ok().filter(|count| *count > N::default())
}

fn crashloop(cycles: u64) -> ExitCode {
    run(cargo(&["run", "--release", "--locked", "-p", "keelstone-crashloop", "--", "--cycles"]).arg(cycles.to_string()))
}

/// The power cuts of the tests, many more of them. A failure prints the life and the change to look at.
fn powercuts(cuts: u64) -> ExitCode {
    run_tests(
        store_test("faults::a_power_cut_at_any_change_loses_nothing_acknowledged")
            .env("KEELSTONE_CUTS", cuts.to_string()),
    )
}

/// The changed bytes of the tests, more of them. A failure prints the seed and the byte.
fn mends(tries: u64) -> ExitCode {
    let name = "mend::c01_whichever_byte_changes_it_is_found_and_mended_and_never_wrongly";
    let test = ["test", "--locked", "-p", "keelstone-sync", "--test", "suite", "--", "--nocapture", "--exact", name];
    run_tests(cargo(&test).env("KEELSTONE_MENDS", tries.to_string()))
}

/// The search of the tests, in larger chains. They take some gigabytes of disk.
fn diverge(keys: u64) -> ExitCode {
    let test =
        ["test", "--release", "--locked", "-p", "keelstone-sync", "--test", "suite", "--", "--nocapture", "diverge::"];
    run_tests(cargo(&test).env("KEELSTONE_DIVERGE_ENTRIES", keys.to_string()))
}

/// The orders of the store's threads, many more of them. A failure prints the order it had.
fn interleavings(orders: u64) -> ExitCode {
    let test =
        ["test", "--locked", "-p", "keelstone-interleaved-store", "--test", "interleavings", "--", "--nocapture"];
    run_tests(cargo(&test).env("KEELSTONE_INTERLEAVINGS", orders.to_string()))
}

/// Nodes that join others, each a process of the program as people run it.
fn joins(arguments: &[&str]) -> ExitCode {
    let features = if arguments.contains(&"quic") { "quic" } else { "" };
    let build = ["build", "--release", "--locked", "-p", "keelstone", "--features", features];
    if run(&mut cargo(&build)) != ExitCode::SUCCESS {
        return ExitCode::FAILURE;
    }
    let program = outside::target().join("release/keelstone");
    let mut command = cargo(&["run", "--release", "--locked", "-p", "keelstone-joins", "--", "--keelstone"]);
    // It takes this process's place: a signal that is meant for it reaches it.
    let error = command.arg(program).args(arguments).exec();
    eprintln!("could not start {command:?}: {error}");
    ExitCode::FAILURE
}

/// Where the code for ThreadSanitizer is made for: a target that is named is not mixed with what builds and macros run.
const TSAN_TARGET: &str = "x86_64-unknown-linux-gnu";
/// With the runtime that comes with clang (Debian's libclang-rt).
const TSAN_BY_CLANG: &str = "-Zsanitizer=thread -Zexternal-clangrt -Clinker=clang -Clink-arg=-fsanitize=thread";
/// Blocks of the stress test under ThreadSanitizer, which makes everything ten times slower, unless more are asked for.
const TSAN_BLOCKS: &str = "400";

/// The stress test under ThreadSanitizer. The standard library is built with it too: of locks and channels that it does not
/// see it would say that they are none.
fn tsan() -> ExitCode {
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output();
    let sysroot = sysroot.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    let rustlib = Path::new(&sysroot).join("lib/rustlib");
    if !rustlib.join("src/rust/library").is_dir() {
        eprintln!("ThreadSanitizer needs the sources of the standard library, in the compiler's version:");
        eprintln!("rustup component add rust-src, or apt install rust-src beside a rustc that Debian made");
        return ExitCode::FAILURE;
    }
    // A compiler that a distribution made comes without the runtime, which clang has too.
    let runtime = fs::read_dir(rustlib.join(TSAN_TARGET).join("lib")).into_iter().flatten().flatten();
    let has_runtime = runtime.into_iter().any(|file| file.file_name().to_string_lossy().ends_with("_rt.tsan.a"));
    let flags = if has_runtime { "-Zsanitizer=thread" } else { TSAN_BY_CLANG };
    let test = ["--test", "suite", "--", "--nocapture", "--exact"];
    let name = "stress::readers_see_one_height_each_while_everything_goes_on";
    let mut command = cargo(&["test", "--locked", "-p", "keelstone-store", "-Zbuild-std", "--target", TSAN_TARGET]);
    command.args(test).arg(name);
    // Sanitizers are flags of the nightly compiler that the stable one has too, locked.
    command.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", flags);
    command.env("CARGO_TARGET_DIR", outside::target().join("tsan"));
    let blocks = env::var("KEELSTONE_STRESS_BLOCKS").unwrap_or_else(|_| TSAN_BLOCKS.to_owned());
    command.env("TSAN_OPTIONS", "halt_on_error=1").env("KEELSTONE_STRESS_BLOCKS", blocks);
    run_tests(&mut command)
}

/// The simulated nodes of the tests that join, that follow, that tend their state and that recover it, many more of each. A failure prints the
/// seed to look at.
fn sim(seeds: u64) -> ExitCode {
    let test = ["test", "--locked", "-p", "keelstone-sim", "--test", "seeds", "--", "--nocapture", "every_seed"];
    run_tests(cargo(&test).env("KEELSTONE_SIM_SEEDS", seeds.to_string()))
}

/// The kills of the tests, as many as one likes. A failure prints the life to look at.
fn kills(count: u64) -> ExitCode {
    let test = "async_bundles::kill_9_in_a_bundle_loses_no_operation_and_repeats_none";
    run_tests(ledger_test(test).env("KEELSTONE_KILLS", count.to_string()))
}

/// The calls of the tests at which commands on a home are killed or fail, more of each. A failure prints the call.
fn syscalls(each: u64) -> ExitCode {
    let name = "syscalls::a_home_is_the_old_one_or_the_new_one_at_whichever_call_a_command_ends";
    let test = ["test", "--locked", "-p", "keelstone", "--test", "cli", "--", "--nocapture", "--exact", name];
    run_tests(cargo(&test).env("KEELSTONE_SYSCALLS", each.to_string()))
}

/// One test of the store, with what it prints.
fn store_test(name: &str) -> Command {
    cargo(&["test", "--locked", "-p", "keelstone-store", "--test", "suite", "--", "--nocapture", "--exact", name])
}

/// One test of the ledger, with what it prints.
fn ledger_test(name: &str) -> Command {
    cargo(&["test", "--locked", "-p", "keelstone-ledger", "--test", "suite", "--", "--nocapture", "--exact", name])
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

/// As [`run`], of tests that are chosen by their names: a name that is of none any more is a failure.
fn run_tests(command: &mut Command) -> ExitCode {
    let mut child = match command.stdout(Stdio::piped()).spawn() {
        Ok(child) => child,
        Err(error) => {
            eprintln!("could not start {command:?}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut ran = 0;
    let lines = child.stdout.take().into_iter().flat_map(|said| BufReader::new(said).split(b'\n'));
    for line in lines.map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        ran += passed(&line);
    }
    match child.wait() {
        Ok(status) if status.success() && ran > 0 => ExitCode::SUCCESS,
        Ok(status) if status.success() => {
            eprintln!("no test ran: {command:?}");
            ExitCode::FAILURE
        }
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{command:?}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// How many tests have passed, if a line of a test binary says so.
fn passed(line: &str) -> u64 {
    let count = line.strip_prefix("test result: ok. ").and_then(|rest| rest.split_once(" passed"));
    count.and_then(|(count, _)| count.parse().ok()).unwrap_or(0)
}

/// The end-to-end tests alone, on one version of CometBFT.
fn end_to_end(version: &str) -> ExitCode {
    match outside::cometbft(version) {
        Ok(binary) => {
            run(cargo(&["test", "--test", "cometbft", "--test", "hooks", "--locked"]).env("KEELSTONE_COMETBFT", binary))
        }
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

/// The table of parts, and whether anything was wrong.
struct Outcome {
    on_ci: bool,
    table: String,
    failed: bool,
    left_out: Vec<String>,
}

impl Outcome {
    fn part(&mut self, name: &str, budget: Duration, act: impl FnOnce() -> bool) {
        let start = Instant::now();
        let passed = act();
        let took = start.elapsed();
        let over = took > budget;
        let verdict = match (passed, over) {
            (false, _) => "FAILED",
            (true, true) => "OVER BUDGET",
            (true, false) => "ok",
        };
        self.failed |= !passed || (over && self.on_ci);
        self.table += &format!("{name:9} {:>4} s of {:>4} s  {verdict}\n", took.as_secs(), budget.as_secs());
    }

    /// Waits for what went on beside the tests, and shows what it said.
    fn beside(&mut self, beside: thread::JoinHandle<Vec<Beside>>) {
        let budget = BESIDE.iter().map(|part| part.budget).sum();
        let mut done = Vec::new();
        self.part("beside", budget, || {
            done = beside.join().unwrap_or_default();
            done.len() == BESIDE.len() && done.iter().all(|one| one.passed)
        });
        for Beside { part, passed, said, took } in done {
            println!("\n--- {}: cargo {}\n{said}", part.name, part.cargo.join(" "));
            let verdict = if passed { "ok" } else { "FAILED" };
            self.table += &format!("- {:7} {:>4} s beside     {verdict}\n", part.name, took.as_secs());
        }
    }

    /// A program from outside. Without it some tests are left out, which is a failure on a CI machine.
    fn outside(&mut self, found: Found, without: &str) -> Option<std::path::PathBuf> {
        match found {
            Ok(path) => Some(path),
            Err(problem) => {
                self.left_out.push(format!("left out: {without}, because {problem}"));
                self.failed |= self.on_ci;
                None
            }
        }
    }
}

/// What became of a part that went on beside the tests.
struct Beside {
    part: &'static Part,
    passed: bool,
    /// Both its streams.
    said: String,
    took: Duration,
}

/// Runs [`BESIDE`] one after the other with what processor time nobody else wants.
fn run_beside() -> Vec<Beside> {
    thread::sleep(LOCK_PATIENCE);
    let run = |part: &'static Part| {
        let start = Instant::now();
        let mut command = Command::new("nice");
        let cargo = cargo(part.cargo);
        command.args(["-n", "19"]).arg(cargo.get_program()).args(cargo.get_args()).envs(part.env.iter().copied());
        let (passed, said) = match command.stdin(Stdio::null()).output() {
            Ok(output) => {
                let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
                (output.status.success(), said.concat())
            }
            Err(error) => (false, format!("could not run nice: {error}")),
        };
        Beside { part, passed, said, took: start.elapsed() }
    };
    BESIDE.iter().map(run).collect()
}

/// Runs all parts, also after one has failed: a person wants to see all that is wrong at once.
fn test() -> ExitCode {
    let on_ci = env::var_os("CI").is_some();
    let mut outcome = Outcome { on_ci, table: String::new(), failed: false, left_out: Vec::new() };
    let mut found = Err(String::new());
    outcome.part("install", Duration::from_secs(INSTALL_SECS), || {
        found = outside::cometbft(outside::COMETBFT);
        found.is_ok() || !on_ci
    });
    let cometbft = outcome.outside(found, "the end-to-end tests (tests/cometbft)");
    let mut beside = None;
    for part in TEST {
        println!("\n--- {}: cargo {}", part.name, part.cargo.join(" "));
        let mut command = cargo(part.cargo);
        command.envs(part.env.iter().copied());
        if let Some(cometbft) = &cometbft {
            command.env("KEELSTONE_COMETBFT", cometbft);
        }
        if part.name == TESTS {
            beside = Some(thread::spawn(run_beside));
        }
        outcome.part(part.name, part.budget, || run(&mut command) == ExitCode::SUCCESS);
    }
    if let Some(beside) = beside {
        outcome.beside(beside);
    }
    println!("\n--- rules: promtool");
    let mut found = Err(String::new());
    outcome.part("rules", Duration::from_secs(RULES_SECS), || {
        found = outside::promtool();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        found.as_ref().map_or(!on_ci, |promtool| {
            RULES.iter().all(|arguments| {
                let mut command = Command::new(promtool);
                run(command.args(*arguments).current_dir(&root)) == ExitCode::SUCCESS
            })
        })
    });
    outcome.outside(found, "the tests of the alert rules (monitoring)");
    println!("\n{}", outcome.table);
    for line in &outcome.left_out {
        println!("{line}");
    }
    if outcome.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_a_number_above_zero() {
        assert_eq!(positive("1000000"), Some(1_000_000u64));
        for none in ["0", "", "-1", "1e6", "1_000", "many", "18446744073709551616"] {
            assert_eq!(positive::<u64>(none), None, "{none}");
        }
    }

    /// A test that was renamed is filtered out as all the others are, which a test binary calls ok.
    #[test]
    fn tests_that_are_chosen_by_a_name_have_to_run() {
        let says = |what: &str| run_tests(Command::new("echo").arg(what));
        let none = "running 0 tests\n\ntest result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 87 filtered out";
        let one = "running 1 test\n\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 86 filtered out";
        assert_eq!(says(none), ExitCode::FAILURE);
        assert_eq!(says(one), ExitCode::SUCCESS);
        assert_eq!(run_tests(&mut Command::new("false")), ExitCode::FAILURE);
    }
}
