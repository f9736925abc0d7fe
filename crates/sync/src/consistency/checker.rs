//! When a node checks itself, and what follows from what it finds.
//!
//! Pure: the node brings the time, does what comes out and says how it went. The machine never waits for anything it
//! began, so a check that fails, or never comes back, leaves nothing paused; only its owner pauses it.
//!
//! Rules: `spec/consistency.md`, CHECK-4, CHECK-8.

use super::{Cursor, Report, Sample, Verdict};
use crate::peers::{Tick, Version};

/// Checks in a row that come to nothing, and then it is an alarm.
const UNKNOWN_MAX: u32 = 5;

/// How a node checks itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Milliseconds between two checks.
    pub check_interval_ms: u64,
    /// Earlier heights whose roots are compared in one check.
    pub state_root_sample_size: u32,
    /// Peers asked in one check.
    pub peer_sample_size: u32,
    /// Entries read in one check, and asked of each peer.
    pub account_sample_size: u32,
    /// Whether damage that was found is repaired without asking.
    pub auto_repair: bool,
}

/// A check that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// Where the sample of this check begins.
    pub from: Option<(keelstone_codec::Namespace, keelstone_codec::Key)>,
    /// Entries to read.
    pub entries: u32,
    /// Peers to ask, at most.
    pub peers: u32,
    /// Earlier heights to compare the roots of.
    pub roots: u32,
    /// Counts the checks, so that other peers are asked each time.
    pub number: u64,
}

/// What follows from a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Write the cursor.
    Save(Cursor),
    /// Tell whoever watches the node.
    Alarm(String),
    /// Repair what is damaged, to this version and no other, unless there were too many repairs: see
    /// [`super::Breaker`].
    Repair(Version),
}

/// Decides when to check.
#[derive(Debug)]
pub struct Checker {
    settings: Settings,
    cursor: Cursor,
    due: Tick,
    paused: bool,
    checks: u64,
    unknown: u32,
    alarm: Option<String>,
    last: Option<Report>,
}

impl Checker {
    /// Begins where the cursor says, with a first check an interval from now: a node that starts has other things to do.
    #[must_use]
    pub fn new(settings: Settings, cursor: Cursor, now: Tick) -> Self {
        let due = Tick(now.0.saturating_add(settings.check_interval_ms));
        Self { settings, cursor, due, paused: false, checks: 0, unknown: 0, alarm: None, last: None }
    }

    /// The check that is due now, if one is. Asking takes it: the next is due an interval later, whatever becomes of
    /// this.
    // spec: CHECK-8
    pub fn due(&mut self, now: Tick) -> Option<Due> {
        if self.paused || now < self.due {
            return None;
        }
        Some(self.take(now))
    }

    /// A check that somebody asked for, also while the checker is paused.
    pub fn take(&mut self, now: Tick) -> Due {
        self.due = Tick(now.0.saturating_add(self.settings.check_interval_ms));
        self.checks += 1;
        Due {
            from: self.cursor.next.clone(),
            entries: self.settings.account_sample_size,
            peers: self.settings.peer_sample_size,
            roots: self.settings.state_root_sample_size,
            number: self.checks,
        }
    }

    /// In how many milliseconds the next check is due; none while it is paused.
    #[must_use]
    pub fn waits_ms(&self, now: Tick) -> Option<u64> {
        (!self.paused).then(|| self.due.0.saturating_sub(now.0))
    }

    /// Takes in what a check found.
    // spec: CHECK-4, CHECK-8
    pub fn found(&mut self, sample: &Sample, report: Report) -> Vec<Effect> {
        let read = u32::try_from(sample.entries.len()).unwrap_or(u32::MAX);
        // Nothing read and nowhere to go on is the end of the state, unless nothing was to be read.
        if read > 0 || (sample.next.is_none() && self.cursor.next.is_some()) {
            self.cursor.advance(read, sample.next.clone());
        }
        let mut effects = vec![Effect::Save(self.cursor.clone())];
        self.unknown = if report.verdict == Verdict::Unknown { self.unknown.saturating_add(1) } else { 0 };
        match report.verdict {
            Verdict::Consistent => self.alarm = None,
            Verdict::Unknown if self.unknown == UNKNOWN_MAX => {
                effects.push(self.alarm(format!("{UNKNOWN_MAX} checks in a row found nobody to compare with")));
            }
            Verdict::Unknown | Verdict::Inconsistent => {}
        }
        effects.extend(self.judge(report));
        effects
    }

    /// Takes in what a check found that read nothing of the state and asked nobody: it says neither that anybody agrees nor that
    /// nobody does.
    // spec: CHECK-8
    pub fn glanced(&mut self, report: Report) -> Vec<Effect> {
        self.judge(report)
    }

    /// What follows from any report.
    fn judge(&mut self, report: Report) -> Vec<Effect> {
        let mut effects = Vec::new();
        if report.verdict == Verdict::Inconsistent {
            let (count, height) = (report.discrepancies.len(), report.at.height);
            let kept = if report.is_contradicted() { "; the certified state is kept" } else { "" };
            effects.push(self.alarm(format!("{count} discrepancies at height {height}{kept}")));
        }
        if let Some(to) = report.repairable_to().filter(|_| self.settings.auto_repair) {
            effects.push(Effect::Repair(to));
        }
        self.last = Some(report);
        effects
    }

    fn alarm(&mut self, what: String) -> Effect {
        self.alarm = Some(what.clone());
        Effect::Alarm(what)
    }

    /// The last alarm, until a check comes to consistent.
    #[must_use]
    pub fn alarmed(&self) -> Option<&str> {
        self.alarm.as_deref()
    }

    /// Makes no more checks by itself, or does so again.
    pub fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// Whether it is paused.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// How far it has read the state.
    #[must_use]
    pub fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// What the last check found.
    #[must_use]
    pub fn last(&self) -> Option<&Report> {
        self.last.as_ref()
    }

    /// How many checks were begun.
    #[must_use]
    pub fn checks(&self) -> u64 {
        self.checks
    }
}
