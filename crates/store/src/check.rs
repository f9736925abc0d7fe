//! Checking: everything on the disk is looked at again, from the files, and nothing is changed.
//!
//! Rules: `spec/store.md`, STORE-1 to STORE-4.

use crate::StoreError;
use crate::log;
use crate::recover::open_tree;
use crate::sector::Found;
use crate::segment::Segment;
use crate::segments::Segments;
use crate::store::{Progress, Shared};
use keelstone_tree::{Hasher, KeyRange, Read};
use std::num::NonZeroUsize;
use std::sync::Arc;

/// Problems listed in a report; beyond, there is no use in more.
const PROBLEMS_MAX: usize = 1000;

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
        progress: &mut dyn FnMut(Progress),
    ) -> Result<CheckReport, StoreError> {
        let mut report = CheckReport::default();
        // No flush and no removal meanwhile; commits go on, behind the part of the log that is looked at.
        let upkeep = self.upkeep();
        let flushed = upkeep.superblock.flushed;
        let end = self.writer().log.end();
        match upkeep.file.check() {
            Ok(problems) => problems.into_iter().for_each(|problem| report.problem(problem)),
            Err(error) => report.problem(error),
        }
        // Files are opened anew, so nothing is taken from memory.
        let files = Arc::clone(self.segments.files_shared());
        let fresh = Arc::new(Segments::new(files, *self.segments.store(), self.options.value_cache_bytes / 4));
        for segment in self.segments.all() {
            report.note(fresh.open(segment.id()));
        }
        fresh.settle_log(end.segment);
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
            self.check_sectors(&fresh, &mut report, progress);
            match open_tree::<H>(&fresh, &flushed, NonZeroUsize::MIN) {
                Ok(tree) => check_values(&tree, &mut report, progress),
                Err(error) => report.problem(error),
            }
        }
        Ok(report)
    }

    /// Every sector of every segment: valid, or never written.
    fn check_sectors(&self, fresh: &Segments, report: &mut CheckReport, progress: &mut dyn FnMut(Progress)) {
        let all = fresh.all();
        let total = all.iter().map(|segment| u64::from(segment.sectors())).sum();
        for segment in all {
            let checked = check_segment(&segment, report);
            report.note(checked);
            progress(Progress { done: report.sectors, total, what: "sectors" });
        }
    }
}

fn check_segment(segment: &Segment, report: &mut CheckReport) -> Result<(), StoreError> {
    segment.scan(0, segment.sectors(), &mut |number, found, _| {
        match found {
            Found::Valid(_) | Found::Zero => report.sectors += 1,
            Found::Damaged => report.problem(segment.bad_sector(number, found)),
        }
        Ok(())
    })
}

/// Every entry of a version by its way from the root, and every value by its hash.
fn check_values<H: Hasher>(
    tree: &keelstone_tree::Tree<H>,
    report: &mut CheckReport,
    progress: &mut dyn FnMut(Progress),
) {
    let total = tree.totals().count;
    let budget = 64 << 20;
    let names: Vec<_> = tree.namespaces().map(|(name, ..)| name.clone()).collect();
    for name in names {
        for found in tree.scan(&name, KeyRange::all()) {
            match found {
                Ok(_) => report.values += 1,
                Err(error) => report.problem(error.into()),
            }
            if report.values.is_multiple_of(65_536) {
                tree.pages().evict(budget);
                progress(Progress { done: report.values, total, what: "values" });
            }
        }
    }
}
