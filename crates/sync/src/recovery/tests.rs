//! One strategy after the other, and what is said of it.

use super::*;
use keelstone_codec::{ChainId, Decode, Encode, Hash, Timestamp};
use serde_json::json;

fn version(height: u64, root: u8) -> Version {
    Version { height: Height(height), root: Root(Hash([root; 32])) }
}

const TARGET: (u64, u8) = (70, 7);

fn target() -> Version {
    version(TARGET.0, TARGET.1)
}

/// How a strategy ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    Well,
    Unavailable,
    TooFar,
    Damaged,
    Misbehaved,
    Machine,
    NoRoom,
    /// It says that it is done, of another root.
    SaysOther,
    /// It says that it is done, and the disk holds another state.
    HoldsOther,
    /// Its result does not stand the check.
    Unsound,
    /// It cannot be switched to.
    NotSettled,
}

const FAILURES: [Ends; 10] = [
    Ends::Unavailable,
    Ends::TooFar,
    Ends::Damaged,
    Ends::Misbehaved,
    Ends::Machine,
    Ends::NoRoom,
    Ends::SaysOther,
    Ends::HoldsOther,
    Ends::Unsound,
    Ends::NotSettled,
];

/// A world whose strategies end as they are told, and that knows what is aside and what counts.
struct Told {
    ends: Vec<(Strategy, Ends)>,
    at_work: Option<Ends>,
    aside: Option<Strategy>,
    counts: Option<Strategy>,
    built: Vec<Strategy>,
}

impl Told {
    fn new(ends: impl IntoIterator<Item = (Strategy, Ends)>) -> Self {
        Self { ends: ends.into_iter().collect(), at_work: None, aside: None, counts: None, built: Vec::new() }
    }
}

impl World for Told {
    fn estimate_ms(&mut self, strategy: Strategy, _: &Version) -> Option<u64> {
        match strategy {
            Strategy::LocalSnapshot => Some(900),
            Strategy::PeerStateSync => None,
            Strategy::BlockReplay => Some(20),
            Strategy::NetworkSnapshot => Some(500),
        }
    }

    fn build(&mut self, strategy: Strategy, target: &Version) -> Result<Built, Failed> {
        assert_eq!(self.aside, None, "what the one before built is still there");
        assert_eq!(self.counts, None, "something counts already");
        let ends = self.ends.iter().find(|(told, _)| *told == strategy).expect("told").1;
        (self.at_work, self.aside) = (Some(ends), Some(strategy));
        self.built.push(strategy);
        let said = if ends == Ends::SaysOther { version(target.height.0, 8) } else { *target };
        match ends {
            Ends::Unavailable => Err(Failed::Unavailable("there is no snapshot".to_owned())),
            Ends::TooFar => Err(Failed::TooFar { needed: 900, limit: 100 }),
            Ends::Damaged => Err(Failed::Damaged("chunk 3 is damaged".to_owned())),
            Ends::Misbehaved => Err(Failed::Misbehaved("node 2 sent another chunk".to_owned())),
            Ends::Machine => Err(Failed::Machine("the disk fails".to_owned())),
            Ends::NoRoom => Err(Failed::NoRoom { needed: 9, free: 8 }),
            _ => Ok(Built { at: said, entries: 12, blocks: 3 }),
        }
    }

    fn check(&mut self, depth: Depth) -> Result<Version, Failed> {
        assert_eq!(depth, Depth::Full);
        match self.at_work {
            Some(Ends::HoldsOther) => Ok(version(69, 7)),
            Some(Ends::Unsound) => Err(Failed::Unsound("a value is damaged".to_owned())),
            _ => Ok(target()),
        }
    }

    fn discard(&mut self) {
        self.aside = None;
    }

    fn settle(&mut self) -> Result<(), Failed> {
        match self.at_work {
            Some(Ends::NotSettled) => Err(Failed::Machine("no rename".to_owned())),
            _ => {
                self.counts = self.aside.take();
                Ok(())
            }
        }
    }
}

/// spec: RECOVER-1, RECOVER-3. Each strategy alone, and after each earlier one has failed in each of its ways: what
/// counts in the end is the first whose result stands, nothing counts before, nothing is left of the others, and every
/// failure is told.
#[test]
fn the_first_strategy_whose_result_stands_counts_whatever_failed_before() {
    let mut runs = 0;
    for good in 0..=Strategy::ALL.len() {
        let ways = FAILURES.len().pow(u32::try_from(good).unwrap());
        for mut way in 0..ways {
            let ends = Strategy::ALL.iter().enumerate().map(|(at, strategy)| {
                let ends = if at < good { FAILURES[way % FAILURES.len()] } else { Ends::Well };
                way /= FAILURES.len();
                (*strategy, ends)
            });
            let mut world = Told::new(ends);
            let outcome = recover(&Strategy::ALL, &target(), Depth::Full, &mut world);
            let expected = Strategy::ALL.get(good).copied();
            assert_eq!(outcome.recovered().map(|(strategy, _)| strategy), expected);
            assert_eq!(world.counts, expected);
            assert_eq!(world.aside, None, "what failed is removed");
            let tried = (good + 1).min(Strategy::ALL.len());
            assert_eq!(world.built, Strategy::ALL[..tried]);
            assert_eq!(outcome.attempts.len(), tried);
            assert!(outcome.attempts.iter().take(good).all(|(_, result)| result.is_err()));
            runs += 1;
        }
    }
    assert_eq!(runs, 1 + 10 + 100 + 1_000 + 10_000);
}

/// C-02. A strategy that says that it is done with a wrong root, one whose result holds another state than it says,
/// and one that fails for damage: each is found out, kept and reported, and the next is tried.
#[test]
fn c02_a_result_that_is_not_the_target_is_found_out_and_reported() {
    let mut world = Told::new([
        (Strategy::LocalSnapshot, Ends::Damaged),
        (Strategy::PeerStateSync, Ends::SaysOther),
        (Strategy::BlockReplay, Ends::HoldsOther),
        (Strategy::NetworkSnapshot, Ends::Well),
    ]);
    let outcome = recover(&Strategy::ALL, &target(), Depth::Full, &mut world);
    let chain = (ChainId::new("test-1").unwrap(), Hash([3; 32]));
    let target = Target { height: Height(TARGET.0), root: target().root, trust: Trust::Consensus };
    let report = Report::of(chain, (Timestamp(5), Timestamp(9)), &target, Depth::Full, &outcome);
    let said: Vec<Option<String>> =
        report.attempts.iter().map(|attempt| attempt.failed.as_ref().map(ToString::to_string)).collect();
    assert_eq!(said[0].as_deref(), Some("chunk 3 is damaged"));
    assert!(said[1].as_deref().unwrap().contains(&format!("root {}", version(70, 8).root)), "{said:?}");
    assert!(said[2].as_deref().unwrap().contains("came to height 69"), "{said:?}");
    assert_eq!((said[3].as_deref(), report.recovered_by()), (None, Some(Strategy::NetworkSnapshot)));
}

/// spec: RECOVER-2. The quickest first, and last what nobody can say of how long it takes: it may have nothing to
/// work with.
#[test]
fn automatic_order_is_by_estimated_time() {
    let mut world = Told::new([]);
    let (order, times): (Vec<Strategy>, Vec<Option<u64>>) = by_time(&mut world, &target()).into_iter().unzip();
    assert_eq!(
        order,
        [Strategy::BlockReplay, Strategy::NetworkSnapshot, Strategy::LocalSnapshot, Strategy::PeerStateSync]
    );
    assert_eq!(times, [Some(20), Some(500), Some(900), None]);
    for strategy in Strategy::ALL {
        assert_eq!(Strategy::named(strategy.name()), Some(strategy));
    }
    assert_eq!(Strategy::named("auto"), None);
}

fn signed() -> SignedReport {
    let mut world = Told::new([(Strategy::LocalSnapshot, Ends::TooFar), (Strategy::BlockReplay, Ends::Well)]);
    let order = [Strategy::LocalSnapshot, Strategy::BlockReplay];
    let outcome = recover(&order, &target(), Depth::Full, &mut world);
    let chain = (ChainId::new("vectors-1").unwrap(), Hash([3; 32]));
    let target = Target { height: Height(TARGET.0), root: target().root, trust: Trust::OwnRecord };
    let report = Report::of(chain, (Timestamp(5), Timestamp(9)), &target, Depth::Full, &outcome);
    SignedReport { report, key: Hash([4; 32]), signature: [5; 64] }
}

/// spec: RECOVER-4, RECOVER-5.
#[test]
fn golden_bytes_of_a_report_have_not_changed() {
    let signed = signed();
    golden::check(
        "recovery.json",
        &json!({ "report": hex::encode(signed.to_bytes()), "signed": hex::encode(signed.report.sign_bytes()) }),
    );
}

/// spec: RECOVER-4, RECOVER-5. A report has one encoding, its length a limit, and a success only at its end.
#[test]
fn a_report_reads_back_and_nothing_else_is_one() {
    let whole = signed();
    let bytes = whole.to_bytes();
    assert_eq!(SignedReport::from_bytes(&bytes), Ok(whole.clone()));
    for cut in 0..bytes.len() {
        assert!(SignedReport::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
    }
    assert!(SignedReport::from_bytes(&[bytes.as_slice(), &[0]].concat()).is_err());
    let attempts = |attempts: Vec<Attempt>| {
        let report = Report { attempts: keelstone_codec::BoundedList::new(attempts).unwrap(), ..whole.report.clone() };
        SignedReport { report, ..whole.clone() }.to_bytes()
    };
    let [failed, done] = [&whole.report.attempts[0], &whole.report.attempts[1]].map(Clone::clone);
    assert!(SignedReport::from_bytes(&attempts(vec![])).is_err());
    assert!(SignedReport::from_bytes(&attempts(vec![done.clone(), failed.clone()])).is_err());
    assert!(SignedReport::from_bytes(&attempts(vec![failed, done])).is_ok());
    let version = SignedReport { report: Report { version: 2, ..whole.report.clone() }, ..whole.clone() };
    assert!(SignedReport::from_bytes(&version.to_bytes()).is_err());
    assert!(matches!(
        SignedReport::from_bytes(&vec![1; REPORT_BYTES_MAX + 1]),
        Err(keelstone_codec::DecodeError::TooLarge { .. })
    ));
    // A reason of any length and with any letters fits.
    let long = Failed::Unavailable(format!("{}\n{}", "ä".repeat(400), "x".repeat(9)));
    let outcome = Outcome { attempts: vec![(Strategy::LocalSnapshot, Err(long))] };
    let target = Target { height: Height(1), root: Root(Hash([1; 32])), trust: Trust::Given };
    let chain = (whole.report.chain_id.clone(), Hash([3; 32]));
    let report = Report::of(chain, (Timestamp(5), Timestamp(9)), &target, Depth::Quick, &outcome);
    let signed = SignedReport { report, ..whole };
    assert_eq!(SignedReport::from_bytes(&signed.to_bytes()), Ok(signed.clone()));
    assert_eq!(signed.report.recovered_by(), None);
}

/// An error that says nothing itself leaves no mark between what was done and why it failed.
#[test]
fn an_error_without_words_of_its_own_is_its_cause() {
    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Said(&'static str, #[source] Option<Box<Said>>);
    let cause = |words| Some(Box::new(Said(words, None)));
    assert_eq!(causes(&Said("", cause("address in use"))), "address in use");
    assert_eq!(causes(&Said("not bound", cause("address in use"))), "not bound: address in use");
    assert_eq!(causes(&Said("not bound: address in use", cause("address in use"))), "not bound: address in use");
}
