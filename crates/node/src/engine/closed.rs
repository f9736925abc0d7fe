//! The data of a home that no chain is opened on: it is checked, and what is damaged mended, also where no chain could be opened
//! any more.

use super::{open_counted, open_counted_blocks, store_options};
use crate::config::Config;
use crate::exit::Failure;
use crate::generations::{Generation, Generations};
use crate::home::Home;
use keelstone_codec::Height;
use keelstone_ledger::{Bodies, Standing};
use keelstone_store::{CheckLevel, CheckReport, Mended, Options, Progress, Store, StoreError, Supplier};
use keelstone_sync::consistency::{Ask, Gave};
use keelstone_tree::{Blake3, HashKind, Hasher, Sha256};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

/// What a check of a home's data has found.
#[derive(Debug, Default)]
pub(crate) struct CheckedData {
    pub(crate) state: CheckReport,
    /// What was wrong with a slot of the superblock. Opening the store to check it has written it anew: there is nothing to repair.
    pub(crate) superblock: Option<StoreError>,
    /// Records of blocks and receipts whose hash holds; none are read if only what is quick is.
    pub(crate) block_records: u64,
    /// What is wrong with the database of blocks and receipts: the first thing.
    pub(crate) blocks: Option<StoreError>,
}

impl CheckedData {
    pub(crate) fn problems(&self) -> impl Iterator<Item = &StoreError> {
        self.superblock.iter().chain(&self.state.problems).chain(&self.blocks)
    }
}

/// Checks the state that counts and the blocks beside it, also if no chain can be opened over them any more, for as long as it is to
/// go on: whoever ends it is not told all that there is. None if there is no state yet.
pub(crate) fn check(
    home: &Home,
    config: &Config,
    level: CheckLevel,
    go_on: &mut dyn FnMut(Progress) -> bool,
) -> Result<Option<CheckedData>, Failure> {
    let hasher = home.read_genesis()?.hasher;
    let generations = Generations::open(&home.data())?;
    let Some(generation) = generations.current()? else { return Ok(None) };
    let (path, options) = (generation.state(), store_options(config));
    let CheckedStore { report: mut state, heights, superblock } = match hasher {
        HashKind::Blake3 => check_with::<Blake3>(&path, options, level, go_on),
        HashKind::Sha256 => check_with::<Sha256>(&path, options, level, go_on),
    }?;
    let superblock = superblock.map(|problem| problem.within(&path));
    state.problems = state.problems.into_iter().map(|problem| problem.within(&path)).collect();
    let (block_records, blocks) = match check_blocks(&generation, heights, level, go_on) {
        Ok(records) => (records, None),
        Err(error) if error.is_damage() => (0, Some(error)),
        Err(error) => return Err(error.into()),
    };
    Ok(Some(CheckedData { state, superblock, block_records, blocks }))
}

/// Reads the records of blocks and receipts. `heights` are those that the store beside them went through.
// spec: HISTORY-1
fn check_blocks(
    generation: &Generation,
    heights: Option<RangeInclusive<Height>>,
    level: CheckLevel,
    go_on: &mut dyn FnMut(Progress) -> bool,
) -> Result<u64, StoreError> {
    let blocks = Arc::new(open_counted_blocks(generation)?);
    // A height that is committed here leaves its block, or its root; a state from elsewhere begins above what is here.
    let last = Bodies::over(blocks.clone()).last_on_record()?;
    if let Some((low, high)) = heights.map(RangeInclusive::into_inner)
        && low < high
        && last.is_none_or(|last| (low..high).contains(&last))
    {
        let file = generation.blocks().display().to_string();
        let last = last.map_or_else(
            || "there are no blocks here".to_owned(),
            |last| format!("the last block that is here of {last}"),
        );
        return Err(StoreError::Lost { file, what: format!("the state is of height {high}, and {last}") });
    }
    match level {
        CheckLevel::Quick => Ok(0),
        CheckLevel::Full => {
            blocks.check(&mut |done| go_on(Progress { done, total: 0, what: "records of blocks and receipts" }))
        }
    }
}

/// What a mending of a home that no node runs in came to.
pub(crate) struct MendedHere<T> {
    /// What was found damaged of the state.
    pub(crate) problems: Vec<StoreError>,
    /// What was done about it, if there was anything.
    pub(crate) done: Option<T>,
    /// What keeps the database of blocks and receipts from being opened, which nothing here makes whole.
    pub(crate) blocks: Option<StoreError>,
}

/// A state that can be mended: of a chain that runs, or a store alone, which can be opened where the chain cannot.
pub(crate) trait Mendable {
    /// Where it stands.
    fn stands(&self) -> Option<Standing>;
    /// As [`super::checked::Checked::mend`].
    fn mend(
        &self,
        problems: &[StoreError],
        offers: &mut dyn Supplier,
        peers: &mut [(String, &mut dyn Ask)],
    ) -> Result<(Mended, Vec<(String, Gave)>), Failure>;
}

impl<H: Hasher> Mendable for Store<H> {
    fn stands(&self) -> Option<Standing> {
        Some(Standing { height: self.height()?, root: self.root() })
    }

    /// A store alone has no connections: peers are asked by their APIs.
    fn mend(
        &self,
        problems: &[StoreError],
        offers: &mut dyn Supplier,
        _: &mut [(String, &mut dyn Ask)],
    ) -> Result<(Mended, Vec<(String, Gave)>), Failure> {
        Ok((Self::mend(self, problems, offers)?, Vec::new()))
    }
}

/// Looks at every stored byte of the state of a home, with no chain on it, for as long as `go_on` says so, and has what is damaged
/// mended by `act`. A look that was cut off has found nothing.
pub(crate) fn mend_here<T>(
    home: &Home,
    config: &Config,
    go_on: &mut dyn FnMut(Progress) -> bool,
    act: impl FnOnce(&dyn Mendable, &[StoreError]) -> Result<T, Failure>,
) -> Result<MendedHere<T>, Failure> {
    type Done<T> = (Vec<StoreError>, Option<T>, Option<RangeInclusive<Height>>);
    fn with<H: Hasher, T>(
        state: &Path,
        options: Options,
        go_on: &mut dyn FnMut(Progress) -> bool,
        act: impl FnOnce(&dyn Mendable, &[StoreError]) -> Result<T, Failure>,
    ) -> Result<Done<T>, Failure> {
        let store = open_counted::<H>(state, options)?;
        let Some(report) = store.check_while(CheckLevel::Full, go_on)? else { return Ok((Vec::new(), None, None)) };
        let mut problems = report.problems;
        problems.extend(store.superblock_repaired().cloned());
        let done = if problems.is_empty() { None } else { Some(act(&store, &problems)?) };
        Ok((problems, done, heights_of(&store)))
    }
    let generations = Generations::open(&home.data())?;
    let generation = generations.current()?.ok_or_else(|| Failure::not_found("there is no state here"))?;
    let (state, options) = (generation.state(), store_options(config));
    let (problems, done, heights) = match home.read_genesis()?.hasher {
        HashKind::Blake3 => with::<Blake3, T>(&state, options, go_on, act),
        HashKind::Sha256 => with::<Sha256, T>(&state, options, go_on, act),
    }?;
    // Without them the next command ends as it would for a damaged state.
    let blocks = match check_blocks(&generation, heights, CheckLevel::Quick, &mut |_| true) {
        Err(error) if !error.is_damage() => return Err(error.into()),
        checked => checked.err(),
    };
    Ok(MendedHere { problems, done, blocks })
}

/// The heights that a store went through and whoever opened it acknowledged.
fn heights_of<H: Hasher>(store: &Store<H>) -> Option<RangeInclusive<Height>> {
    let last = match store.in_doubt() {
        Some(doubtful) => doubtful.prev(),
        None => store.height(),
    };
    store.low().zip(last).map(|(low, last)| low..=last)
}

/// What a check of a store came to.
#[derive(Default)]
struct CheckedStore {
    report: CheckReport,
    /// The heights that it went through and whoever opened it acknowledged, if it opens.
    heights: Option<RangeInclusive<Height>>,
    /// As in [`CheckedData`].
    superblock: Option<StoreError>,
}

/// Opens a store and looks what is wrong with it.
fn check_with<H: Hasher>(
    state: &Path,
    options: Options,
    level: CheckLevel,
    go_on: &mut dyn FnMut(Progress) -> bool,
) -> Result<CheckedStore, StoreError> {
    match open_counted::<H>(state, options) {
        Ok(store) => {
            let heights = heights_of(&store);
            let superblock = store.superblock_repaired().cloned();
            let report = store.check_while(level, go_on)?.unwrap_or_default();
            Ok(CheckedStore { report, heights, superblock })
        }
        Err(problem) if problem.is_damage() => {
            let report = CheckReport { problems: vec![problem], ..CheckReport::default() };
            Ok(CheckedStore { report, ..CheckedStore::default() })
        }
        Err(error) => Err(error),
    }
}
