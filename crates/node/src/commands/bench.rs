//! `keelstone bench store`: the workloads W1 to W5, one line of figures each.

use crate::bench::{self, BenchError, Figures, Line, Sizes};
use crate::cli::Context;
use crate::exit::{Exit, Failure};
use crate::out::{bytes, grouped};
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Measure this build on this machine
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Load, update, read, prove, copy: the workloads W1 to W5 of docs/performance.md
    Store(StoreOptions),
}

#[derive(Debug, Args)]
struct StoreOptions {
    /// Keys to load
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    n: u64,
    /// Run only these after the load, such as W2,W4
    #[arg(long, value_delimiter = ',', value_parser = ["W1", "W2", "W3", "W4", "W5"])]
    only: Option<Vec<String>>,
    /// Keys in a block of the load
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    block: u64,
    /// Blocks of updates
    #[arg(long, default_value_t = 200)]
    upd_blocks: usize,
    /// Updates in a block
    #[arg(long, default_value_t = 1_000)]
    upd_size: usize,
    /// Random reads
    #[arg(long, default_value_t = 200_000)]
    reads: usize,
    /// Proofs of each kind
    #[arg(long, default_value_t = 10_000)]
    proofs: usize,
    /// Directory to work in; it must not exist or be empty [default: a fresh one for temporary files, removed at the end]
    #[arg(long)]
    dir: Option<PathBuf>,
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    let What::Store(options) = options.what;
    let sizes = Sizes {
        keys: options.n,
        block: options.block,
        update_blocks: options.upd_blocks,
        update_size: options.upd_size,
        reads: options.reads,
        proofs: options.proofs,
        only: options.only,
    };
    if sizes.update_blocks == 0 || sizes.update_size < 10 || sizes.keys < 2 * options.upd_size as u64 {
        return Err(Failure::usage("updates need at least one block of 10, and twice as many keys as a block updates"));
    }
    let fresh = options.dir.is_none();
    let directory =
        options.dir.unwrap_or_else(|| std::env::temp_dir().join(format!("keelstone-bench-{}", std::process::id())));
    if directory.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Failure::usage(format!("{} is not empty", directory.display())));
    }
    let result = bench::run(&directory, &sizes, |line| {
        context.out.emit(&line);
        context.out.say(describe(&line));
    });
    if fresh {
        // Only what this run made; a directory that was given is its owner's to remove.
        let _ = std::fs::remove_dir_all(&directory);
    }
    result.map(|()| Exit::Ok).map_err(|error| match error {
        BenchError::Wrong(_) => Failure::integrity(error.to_string()),
        error => Failure::io("the benchmark stopped", &error),
    })
}

/// A line of figures for people.
fn describe(line: &Line) -> String {
    let w = line.w;
    match &line.figures {
        Figures::Info { durability, .. } => {
            format!("keelstone {}, {} keys, {durability}", line.version, grouped(line.n))
        }
        Figures::Load { secs, keys_per_s, disk, .. } => {
            format!("{w:<4} load    {:>11} keys/s   {secs} s, {} on disk", grouped(*keys_per_s), bytes(*disk))
        }
        Figures::Update { updates_per_s, med_ms, p99_ms, written_per_block, .. } => format!(
            "{w:<4} update  {:>11} updates/s, {med_ms} ms a block, p99 {p99_ms} ms, {} written a block",
            grouped(*updates_per_s),
            bytes(*written_per_block)
        ),
        Figures::Read { reads_per_s, first_pass_per_s, .. } => {
            format!("{w:<4} read    {:>11} reads/s, first pass {}", grouped(*reads_per_s), grouped(*first_pass_per_s))
        }
        Figures::Prove { gen_per_s, ver_per_s, mean_bytes, .. } => format!(
            "{w:<4} prove   {:>11} proofs/s, {} verified/s, {mean_bytes} bytes",
            grouped(*gen_per_s),
            grouped(*ver_per_s)
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
