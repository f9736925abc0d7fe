//! The child: works on the store until it is killed, and says on standard output what it is about to do and what was
//! acknowledged. A line is one write, so a kill leaves whole lines.

use crate::model::{Random, diff_of, open};
use keelstone_codec::Height;
use keelstone_store::StoreError;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

/// The first argument of a child; its directory, the seed of the diffs and that of its steps follow. With seed
/// [`SCRIPT`] it does the same few steps each time, in one thread, and ends.
pub(crate) const ARGUMENT: &str = "--child";
pub(crate) const SCRIPT: u64 = 0;

/// Steps of the script, of which most are commits.
const SCRIPT_STEPS: u64 = 32;

/// Says a line. Whoever has nobody left to tell is of no use, and ends: a parent that was killed could not end it.
fn say(line: &str) {
    if std::io::stdout().write_all(line.as_bytes()).and_then(|()| std::io::stdout().flush()).is_err() {
        std::process::exit(1);
    }
}

pub(crate) fn run(mut arguments: impl Iterator<Item = String>) -> ExitCode {
    let mut argument = || arguments.next().unwrap_or_default();
    let (path, seed, steps) = (argument(), argument().parse().unwrap_or(0), argument().parse().unwrap_or(0));
    match work(Path::new(&path), seed, steps) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("failed {error}\n"));
            ExitCode::FAILURE
        }
    }
}

fn work(path: &Path, seed: u64, steps: u64) -> Result<(), StoreError> {
    let script = steps == SCRIPT;
    let store = open(path, !script)?;
    let mut random = Random(steps);
    let mut next = store.height().map_or(0, |height| height.0 + 1);
    say(&format!("opened {next} {}\n", store.epoch()));
    for step in 0.. {
        let low = store.low().map_or(0, |low| low.0);
        let choice = match (script, step) {
            (true, SCRIPT_STEPS) => break,
            (true, 18) => 0,
            (true, 22) => 2,
            (true, 12 | 26) => 3,
            (true, 8 | 30) => 4,
            (true, _) => 5,
            (false, _) => random.below(40),
        };
        match choice {
            0 | 1 if next > low + 4 => {
                let to = next - 2 - random.below(3);
                say(&format!("rollback {to} {}\n", store.epoch() + 1));
                store.rollback(Height(to))?;
                say("done\n");
                next = to + 1;
            }
            2 if next > low + 8 => {
                let before = low + random.below(next - low - 4);
                say(&format!("prune {before}\n"));
                store.prune(Height(before))?;
            }
            3 => drop(store.compact(&mut |_| {})?),
            4 => store.flush()?,
            _ => {
                say(&format!("commit {next} {}\n", store.epoch()));
                store.commit(Height(next), diff_of(seed, store.epoch(), next))?;
                say("done\n");
                next += 1;
            }
        }
    }
    Ok(())
}
