//! Checking: everything on the disk is looked at again, from the files, and nothing is changed.
//!
//! Rules: `spec/store.md`, STORE-1 to STORE-4.

use crate::StoreError;
use crate::flush::Upkeep;
use crate::log;
use crate::look::{self, Before};
use crate::recover::open_aside;
use crate::segment::{Kind, Segment, Spot};
use crate::segments::Segments;
use crate::shared::Shared;
use crate::store::Progress;
use crate::sync::MutexGuard;
use keelstone_tree::Hasher;
use std::sync::Arc;

/// Problems listed in a report; beyond, there is no use in more.
const PROBLEMS_MAX: usize = 1000;
/// Bytes of entries between two words of progress.
const STEP_BYTES: u64 = 32 << 20;

/// How thorough a check is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckLevel {
    /// The superblock's slots, every segment's header and size, and the log beyond the superblock.
    Quick,
    /// Besides, every sector of every file, and every page and value of the flushed version by its hash.
    Full,
}

/// What a check found.
#[derive(Debug, Clone, Default)]
pub struct CheckReport {
    /// Entries whose way from the root and whose value are proven by their hashes.
    pub values: u64,
    /// Log records whose hash and links hold.
    pub records: u64,
    /// Sectors whose checksum holds.
    pub sectors: u64,
    /// What is wrong, at most the first 1,000.
    pub problems: Vec<StoreError>,
}

impl CheckReport {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty()
    }

    fn note<T>(&mut self, found: Result<T, StoreError>) -> Option<T> {
        found.map_err(|error| self.problem(error)).ok()
    }

    fn problem(&mut self, error: StoreError) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(error);
        }
    }
}

impl<H: Hasher> Shared<H> {
    pub(crate) fn check(
        &self,
        level: CheckLevel,
        go_on: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<Option<CheckReport>, StoreError> {
        let mut report = CheckReport::default();
        // No flush and no removal meanwhile; commits go on, behind the part of the log that is looked at, and a flush comes in
        // between that they wait for.
        let mut upkeep = self.upkeep();
        let flushed = upkeep.superblock.flushed;
        let end = self.writer().log.end();
        upkeep.file.check().into_iter().for_each(|problem| report.problem(problem));
        // Files are opened anew, so nothing is taken from memory.
        let fresh = self.opened_anew(end, &mut |error| report.problem(error));
        let mut expected = (flushed.log, flushed.log_hash);
        while expected.0 < end {
            let Some(record) = report.note(log::record_at(&fresh, expected.0)) else { break };
            let (next, sound) = log::follow(expected.0, &record, expected.1);
            if !sound {
                let file = expected.0.segment.file_name(fresh.store());
                report.problem(StoreError::damaged(file, 0, "a record does not follow the one before it"));
                break;
            }
            report.records += 1;
            expected = (next, record.hash);
        }
        if level == CheckLevel::Full {
            let all = fresh.all();
            let total = all.iter().map(|segment| u64::from(segment.sectors())).sum();
            for segment in all {
                upkeep = self.give_way_with(upkeep);
                // Gone with a flush that came in between.
                let Some(open) = self.segments.find(segment.id()) else { continue };
                check_sectors(&segment, &open, end, &mut report);
                if !go_on(Progress { done: report.sectors, total, what: "sectors" }) {
                    return Ok(None);
                }
            }
            // Or each file would be open three times while entries are looked at.
            drop(fresh);
            if !self.check_entries(upkeep, &mut report, go_on)? {
                return Ok(None);
            }
        }
        // What could not be looked at for want of descriptors or memory is not damaged, and a report without it not whole.
        match report.problems.iter().position(StoreError::is_shortage) {
            Some(shortage) => Err(report.problems.swap_remove(shortage)),
            None => Ok(Some(report)),
        }
    }

    /// The segments there are, opened anew, with the log up to `end` settled. The upkeep has to be held.
    fn opened_anew(&self, end: Spot, problem: &mut dyn FnMut(StoreError)) -> Arc<Segments> {
        let files = Arc::clone(self.segments.files_shared());
        let fresh = Arc::new(Segments::new(files, *self.segments.store(), self.options.value_cache_bytes / 4));
        for segment in self.segments.all() {
            fresh.open(segment.id()).err().into_iter().for_each(&mut *problem);
        }
        fresh.settle_log(end.segment);
        fresh
    }

    /// Every entry of the version that was flushed last by its way from the root, and every value by its hash; or until it is not to
    /// go on. Says which. Where a flush came in between it goes on in what that has written, behind the key it was at.
    fn check_entries<'a>(
        &'a self,
        mut upkeep: MutexGuard<'a, Upkeep>,
        report: &mut CheckReport,
        go_on: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<bool, StoreError> {
        let mut after = None;
        loop {
            let flushed = upkeep.superblock.flushed;
            let end = self.writer().log.end();
            // What does not open was named before.
            let fresh = self.opened_anew(end, &mut |_| {});
            let tree = match open_aside::<H>(&fresh, &flushed) {
                Ok(tree) => tree,
                Err(error) => {
                    report.problem(error);
                    return Ok(true);
                }
            };
            let total = tree.totals().count;
            while upkeep.superblock.flushed.table == flushed.table {
                let looked = look::entries(&tree, after.as_ref(), STEP_BYTES, &mut |problem| report.problem(problem));
                report.values += looked.entries;
                if !go_on(Progress { done: report.values, total, what: "values" }) {
                    return Ok(false);
                }
                after = looked.last;
                if after.is_none() {
                    return Ok(true);
                }
                upkeep = self.give_way_with(upkeep);
            }
        }
    }
}

/// Every sector of a segment, which the store has `open`. `end`: where the log does.
fn check_sectors(segment: &Segment, open: &Segment, end: Spot, report: &mut CheckReport) {
    let written = match segment.id() {
        id if id.kind != Kind::Log || id < end.segment => segment.sectors(),
        id if id == end.segment => end.sector(),
        _ => 0,
    };
    // Of what lies behind the end of the log it can only be said that it is whole or was never written.
    let parts = [(0, written, Before::default()), (written, segment.sectors(), Before::behind_the_end())];
    for (from, to, mut before) in parts {
        let looked = look::sectors(segment, open, (from, to), &mut before, &mut |problem| report.problem(problem));
        report.sectors += report.note(looked).unwrap_or_default();
    }
}
