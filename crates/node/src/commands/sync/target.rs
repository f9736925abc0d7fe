//! Which version is fetched, and whose word makes it so: a root that was given, a producer's signature, or the votes of
//! CometBFT's validators.
//!
//! Peers and mirrors say what they have, and carry what others have signed. None of that makes a version the one to fetch.

use crate::clock::now;
use crate::cometbft::light::{Light, LightError, Settings};
use crate::cometbft::rpc::Rpc;
use crate::config::{Config, HttpAddress};
use crate::exit::{Exit, Failure, causes};
use crate::p2p::{AskError, Certifies, Sources, Trust, ask_all, attested, came_to_nothing};
use clap::Args;
use keelstone_codec::{Hash, Height, Root};
use keelstone_execution::PublicKey;
use keelstone_ledger::Genesis;
use keelstone_sync::peers::{Request, Response, Version};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Runtime;

/// How long a light client may take from the header that is trusted to the one that is wanted: several dozen headers, with some
/// seconds for each.
const WAY_MAX: Duration = Duration::from_secs(600);

#[derive(Debug, Default, Args)]
pub(super) struct Trusted {
    /// The height whose root you trust
    #[arg(long, value_name = "HEIGHT", requires = "trust_hash")]
    trust_height: Option<u64>,
    /// That root; without it a producer must have certified one, or validators
    #[arg(long, value_name = "ROOT", requires = "trust_height")]
    trust_hash: Option<String>,
    /// A producer whose word is trusted, beside those the genesis names; may be repeated
    #[arg(long, value_name = "KEY")]
    trust_key: Vec<String>,
    /// Trust what CometBFT's validators have voted for, followed from the header of [light] by a light client
    #[arg(long, conflicts_with_all = ["trust_hash", "trust_key"])]
    light: bool,
    /// The RPC of a CometBFT node, as http://HOST:PORT, in the place of light.rpc; at least two: the first is asked, the
    /// others are compared with it
    #[arg(long, value_name = "URL", requires = "light", value_parser = HttpAddress::parse)]
    light_rpc: Vec<HttpAddress>,
    /// The height of the header that is trusted, in the place of light.trust_height
    #[arg(long, value_name = "HEIGHT", requires = "light")]
    light_height: Option<u64>,
    /// Its hash, in the place of light.trust_hash
    #[arg(long, value_name = "HASH", requires = "light")]
    light_hash: Option<String>,
}

/// Whose word counts.
pub(super) enum Word {
    /// Nobody's: the version was given.
    Given(Version),
    /// That of producers.
    Producers(Arc<Trust>),
    /// That of CometBFT's validators.
    Validators(Arc<Validators>),
}

/// The version to fetch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    pub(super) version: Version,
    pub(super) by: By,
}

/// What makes it the one to fetch.
#[derive(Debug, Clone, Copy)]
pub(super) enum By {
    /// Whoever gave it.
    Given,
    /// A producer's signature.
    Producer(PublicKey),
    /// A header, with the votes of those who vote.
    Header,
}

/// Roots by the headers above them.
pub(super) struct Validators(Mutex<Light>);

impl Validators {
    fn certified(&self, height: Height) -> Result<Version, LightError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).certified(height, now())
    }
}

impl Certifies for Validators {
    fn question(&self) -> Request {
        Request::Status
    }

    fn judge(&self, answer: &Response) -> Option<Version> {
        let Response::Status(status) = answer else { return None };
        let certified = self.certified(status.newest.height);
        let certified = certified.inspect_err(|error| tracing::warn!(error = causes(error), "no newer version"));
        certified.ok().filter(|version| *version == status.newest)
    }
}

impl Trusted {
    /// Whose word is to count. A light client fetches the header it begins with.
    pub(super) fn word(&self, genesis: &Genesis, config: &Config) -> Result<Word, Failure> {
        if let (Some(height), Some(root)) = (self.trust_height, &self.trust_hash) {
            // CometBFT shows it in upper case, as the app hash.
            let root = Root::from_hex(&root.to_ascii_lowercase())
                .map_err(|error| Failure::usage(format!("--trust-hash: {error}")))?;
            return Ok(Word::Given(Version { height: Height(height), root }));
        }
        if self.light {
            let light = Light::begin(self.light_settings(genesis, config)?, now())?;
            return Ok(Word::Validators(Arc::new(Validators(Mutex::new(light)))));
        }
        let mut given = config.p2p.trust_keys.clone();
        for key in &self.trust_key {
            given.push(PublicKey::from_hex(key).map_err(|error| Failure::usage(format!("--trust-key: {error}")))?);
        }
        let trust = Trust::of(genesis, &given, config.p2p.trust_period_ms)?;
        if trust.keys.is_empty() {
            let message = "the genesis names no producer whose word could be trusted";
            return Err(Failure::usage(message)
                .hint("give --light for a chain under CometBFT, or --trust-height and --trust-hash, or --trust-key"));
        }
        Ok(Word::Producers(Arc::new(trust)))
    }

    fn light_settings(&self, genesis: &Genesis, config: &Config) -> Result<Settings, Failure> {
        let light = &config.light;
        let rpc = if self.light_rpc.is_empty() { &light.rpc } else { &self.light_rpc };
        let given = match &self.light_hash {
            // CometBFT shows hashes in upper case.
            Some(hash) => Some(
                Hash::from_hex(&hash.to_ascii_lowercase())
                    .map_err(|error| Failure::usage(format!("--light-hash: {error}")))?,
            ),
            None => light.trust_hash.0,
        };
        let height = self.light_height.unwrap_or(light.trust_height);
        let (Some(hash), 1..) = (given, height) else {
            return Err(Failure::usage("a light client begins with a header that you trust: its height and its hash")
                .hint("light.trust_height and light.trust_hash, or --light-height and --light-hash"));
        };
        Ok(Settings {
            servers: rpc.iter().map(Rpc::at).collect(),
            chain_id: genesis.chain_id.to_string(),
            height: Height(height),
            hash,
            period: Duration::from_millis(light.trust_period_ms),
            patience: Duration::from_millis(config.p2p.request_timeout_ms),
            way_max: WAY_MAX,
        })
    }
}

impl Word {
    /// The version to fetch. Peers have `patience` to say what they know.
    pub(super) fn target(&self, runtime: &Runtime, sources: &Sources, patience: Duration) -> Result<Target, Failure> {
        match self {
            Self::Given(version) => Ok(Target { version: *version, by: By::Given }),
            Self::Producers(trust) => {
                let (version, producer) = attested(runtime, sources, patience, trust)?;
                Ok(Target { version, by: By::Producer(producer) })
            }
            Self::Validators(validators) => voted_for(runtime, sources, patience, validators),
        }
    }

    /// What certifies newer versions. A given one is what is wanted, whatever there is meanwhile.
    pub(super) fn newer(&self) -> Option<Arc<dyn Certifies>> {
        match self {
            Self::Given(_) => None,
            Self::Producers(trust) => Some(trust.clone()),
            Self::Validators(validators) => Some(validators.clone()),
        }
    }
}

/// Asks everybody which version they have, and takes the newest that a header of the chain certifies.
// spec: SNAP-18
fn voted_for(
    runtime: &Runtime,
    sources: &Sources,
    patience: Duration,
    validators: &Validators,
) -> Result<Target, Failure> {
    let mut offers = Offers::to(validators);
    ask_all(runtime, sources, patience, &Request::Status, &mut |who, answer| offers.hear(who, answer));
    offers.newest()
}

/// What is offered, looked up in the headers as it is heard: until then a version is a claim, and does not end the time that
/// others have. Each offers one, so whoever makes a height up takes nobody's place.
struct Offers<'a> {
    validators: &'a Validators,
    /// The newest that a header certifies.
    best: Option<Version>,
    /// What came of the heights that were looked up.
    looked_up: BTreeMap<Height, Result<Root, String>>,
    /// Why those offers that are of no use are not.
    asked: BTreeMap<String, String>,
    /// Why some height could not be looked up, the first time. Another may be.
    trouble: Option<LightError>,
    /// Why no header is believed.
    distrust: Option<LightError>,
}

impl<'a> Offers<'a> {
    fn to(validators: &'a Validators) -> Self {
        let (looked_up, asked) = (BTreeMap::new(), BTreeMap::new());
        Self { validators, best: None, looked_up, asked, trouble: None, distrust: None }
    }

    /// Takes in an answer. Says whether it is of use: a header certifies what it offers, or nothing can be certified at all.
    fn hear(&mut self, who: String, answer: Result<Response, AskError>) -> bool {
        let offered = match answer {
            Ok(Response::Status(status)) => self.look_up(status.newest),
            Ok(_) => Err("it does not say where it stands".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        match offered {
            Ok(version) => {
                self.best = self.best.max(Some(version));
                true
            }
            Err(why) => {
                self.asked.insert(who, why);
                self.distrust.is_some()
            }
        }
    }

    fn look_up(&mut self, version: Version) -> Result<Version, String> {
        let Version { height, root } = version;
        if self.distrust.is_some() || self.best.is_some_and(|best| best.height > height) {
            return Err(format!("it has height {height}, which was not looked up"));
        }
        if !self.looked_up.contains_key(&height) {
            let certified = self.validators.certified(height);
            let found = certified.as_ref().map(|certified| certified.root).map_err(|error| causes(error));
            self.looked_up.insert(height, found);
            match certified.err() {
                // What is not certified yet, or was before trust began, another may have.
                None | Some(LightError::NotThere { .. } | LightError::Below { .. } | LightError::NoneAbove { .. }) => {}
                // A height that servers know nothing of may be one that somebody made up.
                Some(
                    error @ (LightError::Rpc(_)
                    | LightError::Form { .. }
                    | LightError::Slow { .. }
                    | LightError::TooFar { .. }
                    | LightError::Unconfirmed { .. }),
                ) => drop(self.trouble.get_or_insert(error)),
                Some(error) => self.distrust = Some(error),
            }
        }
        match &self.looked_up[&height] {
            Ok(certified) if *certified == root => Ok(version),
            Ok(certified) => Err(format!("it has root {root} at height {height}, consensus has certified {certified}")),
            Err(why) => Err(why.clone()),
        }
    }

    fn newest(self) -> Result<Target, Failure> {
        match (self.distrust, self.best, self.trouble) {
            (Some(error), ..) | (None, None, Some(error)) => Err(error.into()),
            (None, Some(version), _) => Ok(Target { version, by: By::Header }),
            (None, None, None) => {
                Err(came_to_nothing("no version that is offered is certified by a header of the chain", &self.asked)
                    .hint("other peers or mirrors may have one, or this one later"))
            }
        }
    }
}

impl From<LightError> for Failure {
    fn from(error: LightError) -> Self {
        let message = causes(&error);
        match error {
            LightError::TooFew { .. } | LightError::SameNode(_) => {
                Self::usage(message).hint("give light.rpc or --light-rpc for two nodes that are run by different people")
            }
            LightError::Below { .. } | LightError::Expired { .. } => {
                Self::usage(message).hint("choose another header to trust: light.trust_height and light.trust_hash")
            }
            LightError::OtherAnchor { .. } => Self::integrity(message)
                .hint("nothing was fetched; find out which of the two is the chain's"),
            LightError::Forked(_) => Self::integrity(message).hint(
                "nothing was fetched; find out which of the two is the chain's. Both voted for is evidence against the voters",
            ),
            LightError::Refused { .. } => {
                Self::integrity(message).hint("nothing was fetched; the server is not to be trusted, or this machine's clock is wrong")
            }
            LightError::Rpc(_) | LightError::Form { .. } | LightError::Slow { .. } => Self::error(message).hint("ask another server"),
            LightError::NotThere { .. }
            | LightError::NoneAbove { .. }
            | LightError::TooFar { .. }
            | LightError::Unconfirmed { .. } => {
                Self::new(Exit::SyncFailed, message).hint("ask other servers, or later")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cometbft::light::tests::over_honest_servers;
    use crate::p2p::MirrorSource;
    use keelstone_codec::ChainId;
    use keelstone_sync::peers::Status;
    use keelstone_tree::HashKind;

    /// A mirror that says it has a version, and has nothing.
    struct Says(Version);

    impl MirrorSource for Says {
        fn name(&self) -> &str {
            "a mirror"
        }

        fn ask(&self, _: &Request) -> Result<Response, AskError> {
            Ok(Response::Status(Status {
                chain_id: ChainId::new("light-test").expect("a name"),
                hasher: HashKind::Blake3,
                chunk_weight_max: 4 << 20,
                newest: self.0,
                oldest: self.0.height,
                diffs_from: Height(u64::MAX),
            }))
        }
    }

    /// spec: SNAP-18. S-08: what a mirror says it has is compared with the header of the chain, which wins; a lower version
    /// that is the chain's is taken, and one that no header certifies is not waited for.
    #[test]
    fn s08_a_version_that_contradicts_the_header_is_not_the_target() {
        let (light, root) = over_honest_servers();
        let validators = Validators(Mutex::new(light));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("threads");
        let target = |offered: &[(u64, Root)]| {
            let says = |(height, root): &(u64, Root)| -> Arc<dyn MirrorSource> {
                Arc::new(Says(Version { height: Height(*height), root: *root }))
            };
            let sources = Sources { mirrors: offered.iter().map(says).collect(), ..Sources::default() };
            voted_for(&runtime, &sources, Duration::ZERO, &validators)
        };
        let false_root = Root(Hash([9; 32]));
        // The last is a height above which there can be no header.
        let offered = [(20, root(20)), (29, false_root), (4_000, false_root), (u64::MAX, false_root)];
        let found = target(&offered).expect("one is the chain's");
        assert_eq!(found.version, Version { height: Height(20), root: root(20) });
        let failure = target(&[(29, false_root)]).expect_err("none is");
        let both = failure.message.contains(&false_root.to_string()) && failure.message.contains(&root(29).to_string());
        assert!(both && failure.exit == Exit::SyncFailed, "{failure}");
        assert!(target(&[]).expect_err("nobody").message.contains("nobody could be reached"));
    }

    fn says(height: u64, root: Root) -> Result<Response, AskError> {
        Says(Version { height: Height(height), root }).ask(&Request::Status)
    }

    /// spec: SNAP-18. C-03: whoever makes a height up ends the time of nobody else, and however many do so, the version that a
    /// header certifies is found.
    #[test]
    fn c03_heights_that_are_made_up_crowd_nobody_out() {
        let (light, root) = over_honest_servers();
        let validators = Validators(Mutex::new(light));
        let mut offers = Offers::to(&validators);
        let false_root = Root(Hash([9; 32]));
        for liar in 0..50 {
            assert!(!offers.hear(format!("liar {liar}"), says(4_000 + liar, false_root)), "nobody certified that");
        }
        assert!(!offers.hear("another".to_owned(), says(29, false_root)), "another is certified there");
        assert!(offers.hear("one who has it".to_owned(), says(20, root(20))));
        assert!(!offers.hear("one who is behind".to_owned(), says(12, root(12))));
        assert!(offers.hear("a newer one".to_owned(), says(29, root(29))));
        assert_eq!(
            offers.newest().expect("one is the chain's").version,
            Version { height: Height(29), root: root(29) }
        );
    }
}
