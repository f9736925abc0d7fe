//! What is still to be fetched of a version whose skeleton is whole, and in which order.
//!
//! A job is some units of one chunk, what one request asks for at most. Whoever is asked for less takes the first of them
//! as a job of their own. Jobs are shuffled, so that many who join at once do not all ask the same peer for the same part;
//! those that peers could not help with come first, for they are the rarest.

use super::{Dice, UNITS_MAX};
use crate::snapshot::{Skeleton, UnitName};
use keelstone_tree::{Hasher, Totals};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Names a job of one version.
pub(super) type JobId = u32;

/// Units to be asked for together.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) units: Vec<u32>,
    /// Most bytes they can have.
    pub(super) bytes_max: u64,
    /// How many peers could not help with it.
    refused: u32,
    /// How many were asked for it and have not answered.
    pub(super) asked: u32,
}

/// What may be asked of a second peer besides one job at a time: so much of all entries' bytes is one part in this.
const TWICE_PART: u64 = 64;

/// The part of a version that is not staged yet.
#[derive(Debug)]
pub(super) struct Jobs<H> {
    pub(super) skeleton: Skeleton<H>,
    /// The chunks that are wanted.
    wanted: Range<u32>,
    total: Totals,
    have: Vec<bool>,
    missing: u32,
    done: Totals,
    jobs: BTreeMap<JobId, Job>,
    next_id: JobId,
    /// Jobs that two are asked for now, and bytes that two were ever asked for.
    doubled: u32,
    twice: u64,
    /// Those that nobody is asked for, the rarest first.
    waiting: BTreeSet<(Reverse<u32>, JobId)>,
}

/// The units of some chunks.
pub(super) fn units_of<H: Hasher>(skeleton: &Skeleton<H>, chunks: &Range<u32>) -> Range<u32> {
    match chunks.is_empty() {
        true => 0..0,
        false => skeleton.chunk_units(chunks.start).start..skeleton.chunk_units(chunks.end - 1).end,
    }
}

impl<H: Hasher> Jobs<H> {
    /// Makes jobs of all units of some chunks but those that are staged.
    pub(super) fn new(
        skeleton: Skeleton<H>,
        wanted: Range<u32>,
        is_staged: impl Fn(&UnitName) -> bool,
        batch_bytes_max: u64,
        dice: &mut Dice,
    ) -> Self {
        let (jobs, waiting) = (BTreeMap::new(), BTreeSet::new());
        let have = vec![false; skeleton.unit_count() as usize];
        let totals = wanted.clone().map(|chunk| skeleton.chunk_totals(chunk));
        let total = totals.fold(Totals::default(), |sum, chunk| sum + chunk);
        let (doubled, twice, missing, done) = (0, 0, 0, Totals::default());
        let mut new = Self { skeleton, wanted, total, have, missing, done, jobs, next_id: 0, doubled, twice, waiting };
        let units = new.units();
        new.missing = units.end - units.start;
        for unit in units {
            if is_staged(&new.skeleton.unit(unit).name) {
                new.found(unit);
            }
        }
        let mut made = new.cut(batch_bytes_max);
        dice.shuffle(&mut made);
        for job in made {
            let id = new.add(job);
            new.waiting.insert((Reverse(0), id));
        }
        new
    }

    fn add(&mut self, job: Job) -> JobId {
        let id = self.next_id;
        // Each has a unit at least, and what was divided is never put together again.
        self.next_id = id.checked_add(1).expect("there are no more jobs than units");
        self.jobs.insert(id, job);
        id
    }

    /// Jobs for all that is missing.
    fn cut(&self, batch_bytes_max: u64) -> Vec<Job> {
        let mut made: Vec<Job> = Vec::new();
        for chunk in self.wanted.clone() {
            let mut open: Option<Job> = None;
            for unit in self.skeleton.chunk_units(chunk).filter(|unit| !self.have[*unit as usize]) {
                let bytes = self.skeleton.unit(unit).bytes_max;
                match &mut open {
                    Some(job) if job.bytes_max + bytes <= batch_bytes_max && job.units.len() < UNITS_MAX => {
                        job.units.push(unit);
                        job.bytes_max += bytes;
                    }
                    open => {
                        made.extend(open.replace(Job { units: vec![unit], bytes_max: bytes, refused: 0, asked: 0 }))
                    }
                }
            }
            made.extend(open);
        }
        made
    }

    /// The units that are wanted.
    pub(super) fn units(&self) -> Range<u32> {
        units_of(&self.skeleton, &self.wanted)
    }

    /// Number and bytes of the entries that are wanted.
    pub(super) fn total(&self) -> Totals {
        self.total
    }

    /// Notes that a unit is there. Says whether it was not before.
    pub(super) fn found(&mut self, unit: u32) -> bool {
        if std::mem::replace(&mut self.have[unit as usize], true) {
            return false;
        }
        self.missing -= 1;
        self.done += self.skeleton.unit(unit).totals;
        true
    }

    /// Whether a unit is there.
    pub(super) fn has(&self, unit: u32) -> bool {
        self.have[unit as usize]
    }

    pub(super) fn is_complete(&self) -> bool {
        self.missing == 0
    }

    /// Number and bytes of the entries that are there.
    pub(super) fn done(&self) -> Totals {
        self.done
    }

    pub(super) fn job(&self, job: JobId) -> Option<&Job> {
        self.jobs.get(&job)
    }

    /// Jobs that nobody is asked for, the rarest first. Then those of which a part was asked for already, unless who is to be
    /// asked gives all or nothing: then those come last.
    pub(super) fn waiting(&self, gives_whole_chunks: bool) -> impl Iterator<Item = JobId> {
        let rare = self.waiting.range(..(Reverse(0), 0));
        let mut others = self.waiting.range((Reverse(0), 0)..);
        let others = std::iter::from_fn(move || if gives_whole_chunks { others.next_back() } else { others.next() });
        rare.chain(others).map(|(_, job)| *job)
    }

    /// Of a job that waits, what may be asked for with so many bytes: all of it, or its first units as a job of their own.
    // spec: PEER-5
    pub(super) fn take(&mut self, id: JobId, bytes_max: u64) -> JobId {
        let Some(job) = self.jobs.get_mut(&id).filter(|job| job.asked == 0) else { return id };
        let skeleton = &self.skeleton;
        let mut bytes = 0;
        let fits = |unit: &&u32| {
            bytes += skeleton.unit(**unit).bytes_max;
            bytes <= bytes_max
        };
        let count = job.units.iter().take_while(fits).count().max(1);
        if count == job.units.len() {
            return id;
        }
        let rest = job.units.split_off(count);
        let units = std::mem::replace(&mut job.units, rest);
        let bytes = units.iter().map(|unit| skeleton.unit(*unit).bytes_max).sum();
        job.bytes_max -= bytes;
        let taken = Job { units, bytes_max: bytes, refused: job.refused, asked: 0 };
        self.add(taken)
    }

    /// Notes that a peer is asked for a job.
    pub(super) fn ask(&mut self, id: JobId) -> &Job {
        let job = self.jobs.get_mut(&id).expect("a job that is not done");
        self.waiting.remove(&(Reverse(job.refused), id));
        job.asked += 1;
        if job.asked == 2 {
            self.doubled += 1;
            self.twice += job.bytes_max;
        }
        job
    }

    /// Whether a second peer may be asked for a job too. Mostly it comes twice then, so there is a bound to it in all, and
    /// above that one at a time: enough for those that never answer to hold nobody up.
    // spec: PEER-5
    pub(super) fn may_double(&self, id: JobId) -> bool {
        let is_single = |job: &&Job| job.asked == 1;
        let within = |job: &Job| self.doubled == 0 || self.twice + job.bytes_max <= self.total.bytes / TWICE_PART;
        self.jobs.get(&id).filter(is_single).is_some_and(within)
    }

    /// Notes that a peer will not answer, or could not help.
    pub(super) fn give_back(&mut self, id: JobId, refused: bool) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        self.waiting.remove(&(Reverse(job.refused), id));
        self.doubled -= u32::from(job.asked == 2);
        job.asked -= 1;
        job.refused += u32::from(refused);
        if job.asked == 0 {
            self.waiting.insert((Reverse(job.refused), id));
        }
    }

    /// Notes that a peer answered: units of the job may be there now. The rest waits again.
    pub(super) fn answered(&mut self, id: JobId) {
        self.give_back(id, false);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let (skeleton, have) = (&self.skeleton, &self.have);
        job.units.retain(|unit| !have[*unit as usize]);
        job.bytes_max = job.units.iter().map(|unit| skeleton.unit(*unit).bytes_max).sum();
        if job.units.is_empty() {
            self.waiting.remove(&(Reverse(job.refused), id));
            self.jobs.remove(&id);
        }
    }

    /// How many units are not there.
    pub(super) fn missing(&self) -> u32 {
        self.missing
    }
}
