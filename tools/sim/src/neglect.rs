//! Nodes that tend their state as the product does but for one lapse each: to show that the simulator finds it.

use crate::Tends;
use keelstone_codec::{Height, Value};
use keelstone_store::{Mended, Store, StoreError};
use keelstone_sync::consistency::{Asked, Breaker, Checker, Discrepancy, Effect, REPAIRS_MAX, Report, Said, Sample};
use keelstone_tree::{Blake3, Diff};
use std::collections::BTreeMap;

/// What is done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lapse {
    /// Nothing.
    None,
    /// What most peers say is taken for the truth, and the own state changed towards it.
    FollowsTheMajority,
    /// Where a value cannot be read, what takes its place is committed as a change.
    PapersOver,
    /// A restart forgets when there were repairs.
    ForgetsRepairs,
    /// Nobody counts repairs.
    CountsNothing,
    /// Damage that was found is not mended.
    LooksAway,
    /// Once there was a repair, a restart lets there be no other.
    RepairsOnce,
    /// A certified root that no peer shares is taken for the reason to repair.
    RepairsTowardsPeers,
}

impl Lapse {
    /// All lapses; the number of a lapse is its place.
    pub const ALL: [Self; 8] = [
        Self::None,
        Self::FollowsTheMajority,
        Self::PapersOver,
        Self::ForgetsRepairs,
        Self::CountsNothing,
        Self::LooksAway,
        Self::RepairsOnce,
        Self::RepairsTowardsPeers,
    ];
}

/// A node with the lapse of a number.
#[derive(Debug)]
pub struct Neglectful<const LAPSE: usize>;

impl<const LAPSE: usize> Neglectful<LAPSE> {
    fn has(lapse: Lapse) -> bool {
        Lapse::ALL[LAPSE] == lapse
    }
}

impl<const LAPSE: usize> Tends for Neglectful<LAPSE> {
    fn recalls(begun: &[u64]) -> Vec<u64> {
        match Lapse::ALL[LAPSE] {
            Lapse::ForgetsRepairs => Vec::new(),
            Lapse::RepairsOnce if !begun.is_empty() => vec![u64::MAX; REPAIRS_MAX],
            _ => begun.to_vec(),
        }
    }

    fn may_mend(breaker: &mut Breaker, now_ms: u64) -> bool {
        Self::has(Lapse::CountsNothing) || breaker.begin(now_ms).is_ok()
    }

    fn finds(checker: &mut Checker, sample: &Sample, report: Report) -> Vec<Effect> {
        let other = report.peers.iter().find_map(|opinion| match opinion.said {
            Said::Differs(root) => Some(root),
            _ => None,
        });
        let at = report.at;
        let mut effects = checker.found(sample, report);
        if let Some(root) = other.filter(|_| Self::has(Lapse::RepairsTowardsPeers)) {
            effects.push(Effect::Repair(keelstone_sync::peers::Version { root, ..at }));
        }
        effects
    }

    fn mends(
        store: &Store<Blake3>,
        problems: &[StoreError],
        asked: &mut Asked<'_, '_, Blake3>,
    ) -> Result<Mended, StoreError> {
        if Self::has(Lapse::LooksAway) {
            return Ok(Mended::default());
        }
        if Self::has(Lapse::PapersOver) {
            let lost = problems.iter().find_map(|problem| match problem {
                StoreError::Unreadable { namespace, at, .. } => Some((namespace.clone(), at.clone())),
                _ => None,
            });
            if let Some((namespace, at)) = lost {
                let key = keelstone_codec::Key::new(at).expect("it is a key, or begins one");
                let value = Value::new(vec![0]).expect("not empty");
                let height = store.height().map_or(Height(0), |height| Height(height.0 + 1));
                store.commit(height, Diff::from(BTreeMap::from([((namespace, key), Some(value))])))?;
            }
        }
        store.mend(problems, asked)
    }

    fn heeds(store: &Store<Blake3>, report: &Report) -> Result<(), StoreError> {
        let differ = report.peers.iter().filter(|opinion| matches!(opinion.said, Said::Differs(_))).count();
        if !Self::has(Lapse::FollowsTheMajority) || 2 * differ <= report.peers.len() {
            return Ok(());
        }
        let gone = report.discrepancies.iter().filter_map(|found| match found {
            Discrepancy::Entry { namespace, key, theirs: None, .. } => Some(((namespace.clone(), key.clone()), None)),
            _ => None,
        });
        let diff: BTreeMap<_, _> = gone.collect();
        let height = store.height().map_or(Height(0), |height| Height(height.0 + 1));
        store.commit(height, diff.into()).map(drop)
    }
}
