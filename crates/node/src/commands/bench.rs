//! `keelstone bench store`: the workloads W1 to W6, one line of figures each; `keelstone bench cliffs`: what other keys, values and
//! blocks cost beside those; `keelstone bench snapshot`: what making a snapshot costs the commits beside it; `keelstone bench
//! open`: how long a store takes to open after a kill; and `keelstone bench bundles`: how many operations a second come through.

use super::testnet::{find_cometbft, program, show_load};
use crate::bench::{self, BenchError, BesideSizes, CliffSizes, Figures, Line, OpenSizes, Sizes};
use crate::context::Context;
use crate::engine::store_options;
use crate::exit::{Exit, Failure, causes};
use crate::interrupt::passing;
use crate::out::{bytes, grouped};
use crate::processes::Group;
use crate::snapshots::making;
use crate::testnet::load;
use crate::throughput::{self, Load};
use clap::builder::RangedU64ValueParser;
use clap::{Args, Subcommand};
use keelstone_store::Retention;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// Keys that there can be in one run, those that went included: their numbers have 32 bits.
const IDS_MAX: u64 = u32::MAX as u64;

/// Keys to load: few enough that updates can come with new ones.
fn keys() -> RangedU64ValueParser<u64> {
    RangedU64ValueParser::new().range(1..=1_000_000_000)
}

/// A count that no run on a machine of today needs more of. None at all would be told as if it had been measured.
fn counts(range: RangeInclusive<u64>) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(range)
}

/// Measure this build on this machine
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Load, update, read, prove, copy, and update for long: the workloads W1 to W6 of docs/performance.md
    Store(StoreOptions),
    /// Commit other shapes of keys, values and blocks, each beside W2: what they cost
    Cliffs(CliffOptions),
    /// Kill a process that commits, and open what it left: how long that takes
    Open(OpenOptions),
    /// Commit at half the rate that can be had, while a snapshot is made and while none is: how long commits take
    Snapshot(SnapshotOptions),
    /// Submit signed bundles as quickly as they are taken in: how many operations a second become durable
    Bundles(BundleOptions),
}

#[derive(Debug, Args)]
struct BundleOptions {
    /// Bundles to submit, signed beforehand
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    bundles: u64,
    /// Operations in each: payments
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    operations: u64,
    /// Accounts that send them in turn
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    accounts: u64,
    /// Threads that submit
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=64))]
    submitters: u64,
    /// Over one CometBFT node instead, by its RPC: --rate bundles a second of one operation each, for --seconds
    #[arg(long, value_name = "PATH", num_args = 0..=1, conflicts_with_all = ["bundles", "operations", "accounts", "submitters"])]
    cometbft: Option<Option<PathBuf>>,
    /// Bundles a second for CometBFT; more than fits is held back
    #[arg(long, default_value_t = 2_000, requires = "cometbft", value_parser = clap::value_parser!(u32).range(1..=i64::from(load::RATE_MAX)))]
    rate: u32,
    /// Seconds for CometBFT
    #[arg(long, default_value_t = 15, requires = "cometbft", value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Directory to work in; it must not exist or be empty [default: a fresh one for temporary files, removed at the end,
    /// also if it is interrupted]
    #[arg(long)]
    dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct OpenOptions {
    /// Keys to load
    #[arg(long, default_value_t = 1_000_000, value_parser = keys())]
    n: u64,
    /// Updates in a block
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    upd_size: u64,
    /// Times the process is killed, each after 1 to 400 blocks
    #[arg(long, default_value_t = 9, value_parser = counts(1..=100_000))]
    kills: usize,
    /// Directory to work in; it must not exist or be empty [default: a fresh one for temporary files, removed at the end,
    /// also if it is interrupted]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Be the process that commits, in this directory
    #[arg(long, hide = true)]
    work_in: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct CliffOptions {
    /// Keys to load each store with
    #[arg(long, default_value_t = 1_000_000, value_parser = keys())]
    n: u64,
    /// Run only these beside the plain shape, such as skewed,values-4096 [default: all]
    #[arg(long, value_delimiter = ',', value_parser = bench::SHAPES)]
    only: Option<Vec<String>>,
    /// Blocks of each shape; a tenth as many of large ones
    #[arg(long, default_value_t = 200, value_parser = counts(1..=1_000_000))]
    upd_blocks: usize,
    /// Updates in a block; in a large one a hundred times as many
    #[arg(long, default_value_t = 1_000, value_parser = counts(10..=1_000_000))]
    upd_size: usize,
    /// Directory to work in; it must not exist or be empty [default: a fresh one for temporary files, removed at the end,
    /// also if it is interrupted]
    #[arg(long)]
    dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct SnapshotOptions {
    /// Keys to load
    #[arg(long, default_value_t = 1_000_000, value_parser = keys())]
    n: u64,
    /// Updates in a block
    #[arg(long, default_value_t = 1_000, value_parser = counts(10..=1_000_000))]
    upd_size: usize,
    /// Blocks that find out how many there can be a second
    #[arg(long, default_value_t = 300, value_parser = counts(1..=1_000_000))]
    saturating: usize,
    /// Snapshots to make, each followed by as many blocks without one
    #[arg(long, default_value_t = 5, value_parser = counts(1..=100_000))]
    rounds: usize,
    /// Directory to work in; it must not exist or be empty [default: a fresh one for temporary files, removed at the end,
    /// also if it is interrupted]
    #[arg(long)]
    dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct StoreOptions {
    /// Keys to load
    #[arg(long, default_value_t = 1_000_000, value_parser = keys())]
    n: u64,
    /// Run only these after the load, such as W2,W4 [default: all but W6]
    #[arg(long, value_delimiter = ',', value_parser = ["W1", "W2", "W3", "W4", "W5", "W6"])]
    only: Option<Vec<String>>,
    /// Keys in a block of the load
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    block: u64,
    /// Blocks of updates
    #[arg(long, default_value_t = 200, value_parser = counts(1..=1_000_000))]
    upd_blocks: usize,
    /// Updates in a block
    #[arg(long, default_value_t = 1_000, value_parser = counts(10..=1_000_000))]
    upd_size: usize,
    /// Seconds of commits in W6
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Heights whose history the store keeps, the last included [default: all]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    history: Option<u64>,
    /// Bytes of tree pages in memory; of a node it is store.cache_bytes, whose default is smaller
    #[arg(long, default_value_t = store_defaults().cache_bytes, value_parser = clap::value_parser!(u64).range(0..=1 << 40))]
    cache_bytes: u64,
    /// Bytes of values in memory; a node has the default
    #[arg(long, default_value_t = store_defaults().value_cache_bytes, value_parser = clap::value_parser!(u64).range(0..=1 << 36))]
    value_cache_bytes: u64,
    /// Random reads
    #[arg(long, default_value_t = 200_000, value_parser = counts(1..=100_000_000))]
    reads: usize,
    /// Proofs of each kind
    #[arg(long, default_value_t = 10_000, value_parser = counts(1..=10_000_000))]
    proofs: usize,
    /// Directory to work in; it must not exist or be empty [default: a fresh one for temporary files, removed at the end,
    /// also if it is interrupted]
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// What a bench without a configuration opens its store with, unless told otherwise.
fn store_defaults() -> keelstone_store::Options {
    keelstone_store::Options::default()
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    // What these measure is a store alone: no setting has a say in it.
    if matches!(options.what, What::Store(_) | What::Cliffs(_) | What::Open(_)) {
        context.reads_no_settings()?;
    }
    match options.what {
        What::Store(options) => store(options, context),
        What::Cliffs(options) => cliffs(options, context),
        What::Open(options) => open(options, context),
        What::Snapshot(options) => snapshot(options, context),
        What::Bundles(options) => bundles(options, context),
    }
}

fn cliffs(options: CliffOptions, context: &Context<'_>) -> Result<Exit, Failure> {
    let CliffOptions { n: keys, only, upd_blocks: blocks, upd_size: size, dir } = options;
    if keys < 4 * size as u64 {
        return Err(Failure::usage("there must be four times as many keys as a block updates"));
    }
    let sizes = CliffSizes { keys, blocks, size, only };
    in_directory(dir, || (), |directory| bench::cliffs(directory, &sizes, |line| tell(context, &line)))
}

fn open(options: OpenOptions, context: &Context<'_>) -> Result<Exit, Failure> {
    let OpenOptions { n: keys, upd_size: update_size, kills, dir, work_in } = options;
    let sizes = OpenSizes { keys, update_size, kills };
    if let Some(data) = work_in {
        return Ok(bench::work(&data, sizes).map(|()| Exit::Ok)?);
    }
    let worker = |data: &Path| {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["bench", "open", "--n", &keys.to_string(), "--upd-size", &update_size.to_string()]);
        command.arg("--work-in").arg(data);
        Ok(command)
    };
    let group =
        Group::start(None).map_err(|error| Failure::io("the benchmark's reaper could not be started", &error))?;
    let group = Arc::new(group);
    let ended = group.clone();
    in_directory(
        dir,
        move || ended.end(),
        |directory| bench::open(directory, sizes, &group, worker, |line| tell(context, &line)),
    )
}

fn snapshot(options: SnapshotOptions, context: &Context<'_>) -> Result<Exit, Failure> {
    let SnapshotOptions { n: keys, upd_size: update_size, saturating, rounds, dir } = options;
    if keys < 2 * update_size as u64 {
        return Err(Failure::usage("there must be twice as many keys as a block updates"));
    }
    let (config, _) = context.config()?;
    let (options, making) = (store_options(&config), making(&config.snapshots));
    let sizes = BesideSizes { keys, update_size, saturating, rounds, options, making };
    in_directory(dir, || (), |directory| bench::beside(directory, &sizes, |line| tell(context, &line)))
}

fn bundles(options: BundleOptions, context: &Context<'_>) -> Result<Exit, Failure> {
    let out = context.out;
    if let Some(cometbft) = options.cometbft {
        context.takes("the load", load::TAKES)?;
        let cometbft = find_cometbft(cometbft)?;
        return in_directory(
            options.dir,
            || (),
            |directory| {
                let settings = context.settings().to_vec();
                let rate = (options.rate, options.seconds);
                let report = throughput::under_cometbft(directory, cometbft, program()?, settings, rate)?;
                show_load(&report, out);
                out.emit(&report);
                Ok::<_, Failure>(())
            },
        );
    }
    let BundleOptions { bundles, operations, accounts, submitters, .. } = options;
    context.takes("the benchmark", "contracts.transfer/1")?;
    let load = Load { bundles, operations, accounts: accounts.min(bundles), submitters };
    let (config, _) = context.config()?;
    in_directory(
        options.dir,
        || (),
        |directory| {
            let found = throughput::solo(directory, &load, &config, &context.application.registry)?;
            out.row("operations", format_args!("{}/s", grouped(found.operations_per_s)));
            let counts = (grouped(found.bundles_per_s), grouped(found.bundles), grouped(found.blocks));
            out.row("bundles", format_args!("{}/s: {} in {} blocks", counts.0, counts.1, counts.2));
            out.row(
                "until durable",
                format_args!("median {} ms, p99 {} ms", found.latency_p50_ms, found.latency_p99_ms),
            );
            out.row("root", found.root);
            out.emit(&found);
            Ok::<_, Failure>(())
        },
    )
}

fn tell(context: &Context<'_>, line: &Line) {
    context.out.emit(line);
    context.out.say(describe(line));
}

/// Runs a benchmark in an empty directory, in one of its own if none is given. Nothing of that one stays, however it ends:
/// what works in it besides this process ends with `interrupted`.
fn in_directory<E: Into<Failure>>(
    given: Option<PathBuf>,
    interrupted: impl FnOnce() + Send + 'static,
    run: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<Exit, Failure> {
    let empty = |directory: PathBuf| match directory.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        true => Err(Failure::usage(format!("{} is not empty", directory.display()))),
        false => Ok(directory),
    };
    // A directory that was given is its owner's to remove.
    if let Some(given) = given {
        return run(&empty(given)?).map(|()| Exit::Ok).map_err(Into::into);
    }
    let own = std::env::temp_dir().join(format!("keelstone-bench-{}", std::process::id()));
    let own = passing(|| empty(own), interrupted)?;
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&own)));
    let _ = std::fs::remove_dir_all(&own);
    match result {
        Ok(result) => result.map(|()| Exit::Ok).map_err(Into::into),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

impl From<BenchError> for Failure {
    fn from(error: BenchError) -> Self {
        let message = format!("the benchmark stopped: {}", causes(&error));
        let is_damage = match error {
            BenchError::Wrong(_) => true,
            BenchError::Store(error) => Self::from(error).exit == Exit::Integrity,
            BenchError::Read(error) => Self::from(error).exit == Exit::Integrity,
            BenchError::Library(error) => Self::from(error).exit == Exit::Integrity,
            BenchError::Worker(status) => status.code() == Some(i32::from(Exit::Integrity as u8)),
            BenchError::Io(_) => false,
        };
        // Whatever else a store can say was not asked by who runs this: the machine failed.
        if is_damage { Self::integrity(message) } else { Self::error(message) }
    }
}

fn store(options: StoreOptions, context: &Context<'_>) -> Result<Exit, Failure> {
    let sizes = Sizes {
        options: keelstone_store::Options {
            history: options.history.map_or(Retention::All, Retention::Heights),
            cache_bytes: options.cache_bytes,
            value_cache_bytes: options.value_cache_bytes,
            ..store_defaults()
        },
        keys: options.n,
        block: options.block,
        update_blocks: options.upd_blocks,
        update_size: options.upd_size,
        reads: options.reads,
        proofs: options.proofs,
        seconds: options.seconds,
        only: options.only,
    };
    if sizes.keys < 2 * options.upd_size as u64 {
        return Err(Failure::usage("there must be twice as many keys as a block updates"));
    }
    // One in ten updates is of a key that is new.
    if sizes.keys + (options.upd_blocks * options.upd_size) as u64 / 10 > IDS_MAX {
        return Err(Failure::usage(format!("there would be more than {} keys", grouped(IDS_MAX))));
    }
    in_directory(options.dir, || (), |directory| bench::run(directory, &sizes, |line| tell(context, &line)))
}

/// A line of figures for people.
fn describe(line: &Line) -> String {
    let w = line.w;
    let memory = format!(
        "at most {} of pages and {} of values in memory",
        bytes(line.cache_bytes),
        bytes(line.value_cache_bytes)
    );
    match &line.figures {
        Figures::Info { durability, .. } => {
            format!("keelstone {}, {} keys, {memory}, {durability}", line.version, grouped(line.n))
        }
        Figures::Load { secs, keys_per_s, disk, .. } => {
            format!("{w:<4} load    {:>11} keys/s   {secs} s, {} on disk", grouped(*keys_per_s), bytes(*disk))
        }
        Figures::Update { updates_per_s, med_ms, p99_ms, written_per_block, .. } => format!(
            "{w:<4} update  {:>11} updates/s, {med_ms} ms a block, p99 {p99_ms} ms, {} written a block",
            grouped(*updates_per_s),
            bytes(*written_per_block)
        ),
        Figures::Sustained {
            seconds,
            updates_per_s,
            second_med,
            second_min,
            med_ms,
            p99_ms,
            written_per_update,
            disk,
            disk_ratio,
            history,
            steady_max_ratio,
            ..
        } => format!(
            "{w:<4} update  {:>11} updates/s for {seconds} s, in the middle second {}, in the worst {}; {med_ms} ms a block, p99 \
             {p99_ms} ms, {written_per_update} bytes written an update, at most {} on disk, {disk_ratio} of keys and values{}",
            grouped(*updates_per_s),
            grouped(*second_med),
            grouped(*second_min),
            bytes(*disk),
            history.map_or_else(String::new, |heights| format!(
                "; {steady_max_ratio} in the second half, without the history of {heights} heights"
            ))
        ),
        Figures::Read { reads_per_s, first_pass_per_s, .. } => {
            format!("{w:<4} read    {:>11} reads/s, first pass {}", grouped(*reads_per_s), grouped(*first_pass_per_s))
        }
        Figures::Prove { gen_per_s, ver_per_s, ver_many_per_s, mean_bytes, .. } => format!(
            "{w:<4} prove   {:>11} proofs/s, {} verified/s, {} together, {mean_bytes} bytes",
            grouped(*gen_per_s),
            grouped(*ver_per_s),
            grouped(*ver_many_per_s)
        ),
        Figures::Cliff {
            shape,
            upd_size,
            updates_per_s,
            med_ms,
            p99_ms,
            update_ratio,
            byte_ratio,
            block_ratio,
            ..
        } => {
            let beside = match (update_ratio, byte_ratio) {
                (Some(update), Some(byte)) => format!("an update {update}, a byte {byte}, a block {block_ratio}"),
                _ => format!("a block {block_ratio}"),
            };
            // Said once: all shapes have the same.
            let memory = if *shape == "plain" { format!("; {memory}") } else { String::new() };
            format!(
                "{shape:<11} {:>11} updates/s in blocks of {:>7}: {med_ms} ms a block, p99 {p99_ms} ms; times plain: {beside}{memory}",
                grouped(*updates_per_s),
                grouped(*upd_size as u64)
            )
        }
        Figures::Open { kills, med_ms, max_ms, replayed_bytes_max, .. } => format!(
            "{w:<4} after {kills} kills: {med_ms} ms, at most {max_ms} ms, up to {} of the log read; {memory}",
            bytes(*replayed_bytes_max)
        ),
        Figures::Beside { saturated_per_s, blocks_per_s, p99_ms, p99_beside_ms, p99_ratio, snapshot_s, .. } => format!(
            "{blocks_per_s} of {saturated_per_s} blocks/s: p99 {p99_ms} ms, {p99_beside_ms} ms beside a snapshot \
             ({snapshot_s} s), ratio {p99_ratio}; {memory}"
        ),
        Figures::Copy { out_per_s, in_per_s, .. } => {
            format!(
                "{w:<4} copy    {:>11} keys/s out, {} keys/s in, same root",
                grouped(*out_per_s),
                grouped(*in_per_s)
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelstone_codec::Root;
    use keelstone_store::StoreError;
    use keelstone_sync::library::LibraryError;
    use keelstone_tree::ReadError;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;

    /// What is damaged or another state is not told as a failure of the machine, nor the reverse.
    #[test]
    fn damage_that_a_bench_finds_has_the_exit_code_of_damage() {
        let damaged = || ReadError::Damaged { what: "a page".into() };
        let (file, what) = (|| "state/0".to_owned(), || "torn".to_owned());
        let (expected, found) = (Root::default(), Root::default());
        for error in [
            BenchError::Wrong("a forged proof verifies".to_owned()),
            StoreError::Damaged { file: file(), offset: 7, what: what() }.into(),
            StoreError::Lost { file: file(), what: what() }.into(),
            StoreError::WrongRoot { expected, found }.into(),
            StoreError::Read(damaged()).into(),
            damaged().into(),
            LibraryError::Damaged { file: file(), what: what() }.into(),
            LibraryError::Read(damaged()).into(),
            BenchError::Worker(ExitStatus::from_raw(12 << 8)),
        ] {
            assert_eq!(Failure::from(error).exit, Exit::Integrity);
        }
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        for error in [
            full().into(),
            ReadError::from(full()).into(),
            StoreError::Empty.into(),
            BenchError::Worker(ExitStatus::from_raw(1 << 8)),
            BenchError::Worker(ExitStatus::from_raw(9)),
        ] {
            assert_eq!(Failure::from(error).exit, Exit::Error);
        }
    }

    #[test]
    fn a_bench_that_meets_a_bug_leaves_nothing_behind() {
        let mut place = PathBuf::new();
        let met = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            in_directory::<Failure>(
                None,
                || (),
                |own| {
                    place = own.to_owned();
                    std::fs::create_dir_all(own.join("db")).unwrap();
                    panic!("a bug")
                },
            )
        }));
        assert!(met.is_err() && place.starts_with(std::env::temp_dir()) && !place.exists(), "{}", place.display());
    }
}
