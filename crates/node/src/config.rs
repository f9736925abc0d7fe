//! The configuration of a node: one documented struct per component, parsed and checked once, at start.
//!
//! Three sources, the later over the earlier: the file `keelstone.toml` in the home directory, the environment
//! (`KEELSTONE_HTTP_LISTEN` for `http.listen`), and `--set http.listen=…` on the command line. All three go through
//! the same table of settings, so they know the same names, the same limits and the same words for what is wrong.
//!
//! The file is read strictly: an unknown key, a wrong type, a value out of range, a key twice, a byte order mark and
//! CR LF are refused with line and key, because a setting that silently does nothing is worse than none.
//! `docs/configuration.md` lists every setting; `keelstone config default` prints them with their defaults.

mod kinds;
mod mirror;
mod peer;

use crate::exit::Failure;
use keelstone_execution::PublicKey;
use keelstone_sync::peers::Manner;
pub use kinds::{
    AbciAddress, ApiAddress, EngineKind, FileName, History, HttpAddress, IntegrityDepth, LogFilter, LogFormat,
    Production, Strategies,
};
use kinds::{Bounds, Kind, Raw, describe};
pub(crate) use kinds::{HeaderHash, HostName, WebOrigin};
pub use mirror::Place;
pub(crate) use peer::Transport;
pub use peer::{NodeId, PeerAddress};
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::de::DeTable;

/// The most bytes a configuration file may have.
const FILE_BYTES_MAX: usize = 256 * 1024;

/// What environment variables for settings begin with.
const ENV_PREFIX: &str = "KEELSTONE_";

/// Variables that begin like a setting but are read elsewhere.
const ENV_OTHERS: [&str; 8] = [
    "KEELSTONE_HOME",
    "KEELSTONE_TOKEN",
    "KEELSTONE_PASSPHRASE",
    "KEELSTONE_PASSPHRASE_FILE",
    "KEELSTONE_NEW_PASSPHRASE",
    "KEELSTONE_COMETBFT",
    "KEELSTONE_TEST_SCALE",
    "KEELSTONE_BLESS",
];

macro_rules! settings {
    ($(
        $(#[doc = $section_doc:literal])+
        $section:ident: $struct:ident {
            $($(#[doc = $doc:literal])+ $field:ident: $type:ty = $default:expr $(, $bounds:expr)?;)+
        }
    )+) => {
        /// Everything a node can be told.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Config {
            $($(#[doc = $section_doc])+ pub $section: $struct,)+
        }

        $(
            $(#[doc = $section_doc])+
            #[derive(Debug, Clone, PartialEq, Eq)]
            pub struct $struct {
                $($(#[doc = $doc])+ pub $field: $type,)+
            }
        )+

        impl Default for Config {
            fn default() -> Self {
                Self { $($section: $struct { $($field: $default,)+ },)+ }
            }
        }

        /// What each section is about.
        const SECTIONS: &[(&str, &[&str])] = &[$((stringify!($section), &[$($section_doc),+])),+];

        impl Config {
            /// Every setting, in the order of the file.
            fn settings() -> Vec<Setting> {
                vec![$($(Setting {
                    section: stringify!($section),
                    name: stringify!($field),
                    doc: &[$($doc),+],
                    kind: <$type as Kind>::KIND,
                    set: |config, raw| {
                        let value = <$type as Kind>::from_raw(raw)?;
                        $(Bounds::check(&value, &$bounds)?;)?
                        config.$section.$field = value;
                        Ok(())
                    },
                    show: |config| config.$section.$field.to_toml(),
                },)+)+]
            }
        }
    };
}

settings! {
    /// When a chain that makes its own blocks makes one.
    blocks: Blocks {
        /// "on_demand": as soon as a transaction waits. "interval": every interval_ms.
        production: Production = Production::OnDemand;
        /// Milliseconds between blocks when production is "interval".
        interval_ms: u64 = 1_000, 10..=3_600_000;
    }
    /// Who decides which transactions stand in which block.
    engine: EngineSection {
        /// "solo": this node alone, with its producer key. "cometbft": CometBFT, which connects to this node. "follow": a
        /// producer elsewhere, whose blocks this node has from its peers (p2p.peers).
        kind: EngineKind = EngineKind::Solo;
        /// Where CometBFT connects (its proxy_app): "unix://PATH", in the home directory unless absolute, or
        /// "tcp://ADDRESS:PORT".
        abci: AbciAddress = AbciAddress::Unix(PathBuf::from("data/abci.sock"));
        /// CometBFT's RPC, for transactions that are sent here and for what it certifies.
        rpc: HttpAddress = SocketAddr::from(([127, 0, 0, 1], 26657)).into();
        /// Blocks CometBFT is to keep; 0 for all. It keeps those above the oldest snapshot whatever stands here. Fewer than
        /// its evidence may be old would let validators misbehave unpunished.
        retain_blocks: u64 = 0, 0..=1_000_000_000_000;
        /// Milliseconds without progress after which a state sync that is not at its end has failed (exit code 16).
        statesync_patience_ms: u64 = 600_000, 1_000..=86_400_000;
        /// Whether this node runs CometBFT itself: starts it, starts it again, and lets it fetch every block if it gives up
        /// state sync.
        supervise: bool = false;
        /// The CometBFT that is run.
        cometbft: String = "cometbft".to_owned();
        /// Its home directory; in this node's own unless absolute.
        cometbft_home: String = "cometbft".to_owned();
    }
    /// The functions of the application.
    execution: Execution {
        /// Milliseconds one operation may run. After that the node ends itself and names the function (exit code 15), unless it runs for
        /// a question such as a witness, which anybody may ask: then it says so and runs nothing more for one.
        /// A machine on which honest operations take longer needs more.
        watchdog_ms: u64 = 10_000, 100..=3_600_000;
        /// Threads that run the transactions of a block; 0 for one to each processor. What blocks come to is the same.
        threads: u64 = 0, 0..=64;
    }
    /// Transactions that wait for a block.
    mempool: Mempool {
        /// Transactions that may wait; more are refused until a block is made. Of this, and of the bytes, a quarter is open
        /// to those that wait for an earlier nonce of their sender; they go where one that could run has no room.
        transactions_max: u64 = 10_000, 1..=1_000_000;
        /// Bytes of transactions that may wait.
        bytes_max: u64 = 64 * 1024 * 1024, 1024..=4 * 1024 * 1024 * 1024;
        /// Transactions of one sender that may wait.
        sender_transactions_max: u64 = 256, 1..=100_000;
    }
    /// The HTTP API.
    http: Http {
        /// Address and port to listen on. Port 0 takes a free one; it is printed and written to api.json.
        listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 26680));
        /// Open connections; above it one is closed on which nothing is under way, or else nothing has moved for longest.
        connections_max: u64 = 512, 1..=100_000;
        /// Bytes of a request body. As JSON a transaction takes twice its bytes: the largest of a chain that keeps the default
        /// limits fits.
        body_bytes_max: u64 = 5 * 1024 * 1024, 1024..=16 * 1024 * 1024;
        /// Milliseconds a client may take to send the head of a request.
        header_timeout_ms: u64 = 10_000, 10..=60_000;
        /// Milliseconds a request may take until it is answered, but for event streams; then, until some of the answer is taken.
        request_timeout_ms: u64 = 30_000, 10..=600_000;
        /// Bytes of answers that clients may be taking at once; while there are as many, more than small ones get 503.
        answers_bytes_max: u64 = 256 * 1024 * 1024, 1024 * 1024..=1024 * 1024 * 1024 * 1024;
        /// Event streams in all.
        subscriptions_max: u64 = 256, 1..=100_000;
        /// Event streams of one client address.
        client_subscriptions_max: u64 = 16, 1..=100_000;
        /// Events of earlier blocks that a reader may have waiting for it when a block comes; with as many it is dropped.
        subscription_events_max: u64 = 10_000, 1..=65_536;
        /// Bytes of these events; with as many it is dropped, too.
        subscription_bytes_max: u64 = 16 * 1024 * 1024, 1024..=1024 * 1024 * 1024;
        /// Names under which clients may send transactions (the Host header of what they send), besides the address of
        /// http.listen: "NAME" for any port or "NAME:PORT". Where http.listen is on all addresses, each of them will do.
        hosts: Vec<HostName> = Vec::new();
        /// Other origins whose pages may use this API, and send transactions: "https://NAME" or "https://NAME:PORT".
        origins: Vec<WebOrigin> = Vec::new();
        /// Requests one address may make in a second; 0 for any number. Behind a proxy all clients may have one address.
        client_requests_per_second: u64 = 0, 0..=1_000_000;
        /// Of these, transactions and questions for a witness or a dry run; 0 for any number.
        client_writes_per_second: u64 = 0, 0..=1_000_000;
        /// Whether sending transactions takes a token (keelstone token new).
        write_token: bool = false;
        /// Whether reading takes a token too; /healthz and /readyz take none.
        read_token: bool = false;
        /// Whether tokens are taken from other machines over plain HTTP: only behind a proxy of one's own that speaks TLS.
        plain_tokens: bool = false;
        /// The certificate chain of this node, as PEM, for HTTPS; without one the API speaks plain HTTP. In the home
        /// directory unless absolute, as the next two.
        tls_certificate: FileName = FileName::default();
        /// The secret key of the certificate, as PEM, readable by its owner only.
        tls_key: FileName = FileName::default();
        /// Certificates of authorities, as PEM: then only clients with a certificate of one of them are served.
        tls_client_ca: FileName = FileName::default();
    }
    /// The store of the state.
    store: Store {
        /// Bytes of tree pages held in memory.
        cache_bytes: u64 = 256 * 1024 * 1024, 1024 * 1024..=1024 * 1024 * 1024 * 1024;
        /// Heights whose state can be asked for: "all", or the number of the latest to keep.
        history: History = History::All;
        /// Bytes of what is stored that are looked at again in a second, while the node runs; 0 for none. Damage that is found is
        /// told by the log, an event, a metric and health.
        scrub_bytes_per_second: u64 = 4 * 1024 * 1024, 0..=1024 * 1024 * 1024;
        /// Bytes looked at in one go, for which a block may wait.
        scrub_slice_bytes: u64 = 256 * 1024, 4096..=64 * 1024 * 1024;
        /// Seconds of rest between two passes over all of it.
        scrub_rest_s: u64 = 86_400, 0..=31_536_000;
    }
    /// Snapshots of the state, for those who join by state sync.
    snapshots: Snapshots {
        /// Whether the node makes snapshots and serves them.
        enabled: bool = false;
        /// Heights between snapshots. Nodes with the same interval make, and can serve, the same ones.
        interval: u64 = 1_000, 1..=1_000_000_000;
        /// Snapshots that are kept, the newest.
        keep: u64 = 5, 1..=1_000;
        /// The level of zstd chunks are compressed with, from 1 (quick) to 19 (small).
        zstd_level: u64 = 1, 1..=19;
        /// Percent of the disk that stay free: a snapshot that would take more is not made.
        reserve_percent: u64 = 10, 0..=90;
    }
    /// How the node looks after its own state.
    check: Check {
        /// Whether it does.
        enabled: bool = true;
        /// Seconds between two checks.
        check_interval: u64 = 300, 1..=86_400;
        /// Earlier heights whose roots are compared with those of peers in one check.
        state_root_sample_size: u64 = 10, 0..=1_000;
        /// Peers that are asked in one check; others each time.
        peer_sample_size: u64 = 5, 0..=64;
        /// Entries that are read in one check and asked of each of these peers. The next check goes on behind them.
        account_sample_size: u64 = 100, 0..=100_000;
        /// Whether damage that checks and the scrub find is mended without asking: from memory, from snapshots of this home and
        /// from peers, to the hashes of this node's own root and to nothing else. At most three times in an hour.
        auto_repair: bool = true;
        /// The APIs of other nodes of this chain, as "http://HOST:PORT". Nothing they say is believed.
        peers: Vec<HttpAddress> = Vec::new();
    }
    /// How a state that is lost or damaged is had again.
    recovery: Recovery {
        /// Whether a node whose state is damaged at its start recovers it by itself.
        automatic: bool = true;
        /// What is tried, in order: "auto" for the quickest first, or a list of local_snapshot, peer_state_sync, block_replay,
        /// network_snapshot.
        strategies: Strategies = Strategies(None);
        /// Blocks that are run again at most.
        max_block_replay: u64 = 100_000, 0..=1_000_000_000_000;
        /// How a result is checked beside its root before it counts: "quick" or "full", every stored byte.
        integrity_check_depth: IntegrityDepth = IntegrityDepth::Full;
        /// Where snapshots' files are beside this home: mirrors, as directories or http://HOST:PORT/PATH, and archives, as
        /// directories or tar files. Mirrors of p2p.mirrors are asked too.
        sources: Vec<Place> = Vec::new();
    }
    /// Peers of the chain: giving them the state, and taking it from them (keelstone sync).
    p2p: P2p {
        /// Whether the node speaks to peers.
        enabled: bool = false;
        /// Address and port to listen on. Port 0 takes a free one, which is printed.
        listen: SocketAddr = SocketAddr::from(([0, 0, 0, 0], 26690));
        /// Whether to listen for QUIC on that port of UDP, too. Peers are dialled by what their address says.
        quic: bool = false;
        /// Peers that are dialled: "HOST:PORT", or "ID@HOST:PORT" to speak to nobody else there; with "/quic" behind it by QUIC.
        peers: Vec<PeerAddress> = Vec::new();
        /// Whether peers are looked for on the network of p2p.listen, too, by multicast DNS. Whoever is there may say that it is a peer.
        mdns: bool = false;
        /// Mirrors that a state may be taken from: directories, or http://HOST:PORT/PATH.
        mirrors: Vec<Place> = Vec::new();
        /// Connections that others may open; those to the peers above are not among them.
        inbound_max: u64 = 64, 0..=10_000;
        /// Connections that one address may open.
        address_inbound_max: u64 = 8, 1..=10_000;
        /// Bytes of answers in a second for one peer.
        peer_bytes_per_second: u64 = 64 * 1024 * 1024, 1024..=1024 * 1024 * 1024 * 1024;
        /// Bytes of answers in a second for all peers of one address.
        address_bytes_per_second: u64 = 128 * 1024 * 1024, 1024..=1024 * 1024 * 1024 * 1024;
        /// Bytes of answers in a second for all together.
        bytes_per_second: u64 = 256 * 1024 * 1024, 1024..=1024 * 1024 * 1024 * 1024;
        /// Milliseconds of work in a second for one peer.
        peer_work_ms_per_second: u64 = 500, 1..=64_000;
        /// Milliseconds of work in a second for all peers of one address. There is one thread for all, so 1000 is all there is.
        address_work_ms_per_second: u64 = 750, 1..=64_000;
        /// Versions of the state that are held for peers which ask about them.
        pins_max: u64 = 4, 1..=64;
        /// Milliseconds one is held that nobody asks about.
        pin_idle_ms: u64 = 60_000, 1_000..=86_400_000;
        /// Milliseconds one is held at most.
        pin_age_ms_max: u64 = 3_600_000, 1_000..=604_800_000;
        /// Requests for parts of the state under way at once, to all peers together.
        concurrent_requests_max: u64 = 16, 1..=1_024;
        /// Peers that are worked with at once.
        peer_count_target: u64 = 8, 1..=256;
        /// Milliseconds an answer may take.
        request_timeout_ms: u64 = 15_000, 10..=600_000;
        /// Bytes that one request asks for at most; near peers are asked for a 32nd, a larger part is asked for alone.
        batch_bytes_max: u64 = 4 * 1024 * 1024, 64 * 1024..=8 * 1024 * 1024;
        /// Failures in a row after which a peer is not counted on any more.
        retries_max: u64 = 3, 0..=1_000;
        /// How a node that follows (engine.kind) takes blocks in: "execute", which runs them and has all that a producer has,
        /// or "apply", which takes what each changed and has states, history and proofs, but no blocks and receipts.
        follow: Manner = Manner::Blocks;
        /// Blocks by which a node that follows may be behind what is certified and still be ready (/readyz).
        follow_behind_max: u64 = 50, 0..=1_000_000_000_000;
        /// Whether a node that follows takes a later state (keelstone sync) when its peers have the next height no more.
        follow_resync: bool = false;
        /// The API of the node that makes the blocks, "http://HOST:PORT" or "https://HOST:PORT": a node that follows names it to
        /// whoever sends it a transaction. Empty if it is not to be known.
        producer_api: ApiAddress = ApiAddress(None);
        /// Producers whose word is trusted, beside those the genesis names.
        trust_keys: Vec<PublicKey> = Vec::new();
        /// Milliseconds for which a producer's word counts after it was said.
        trust_period_ms: u64 = 604_800_000, 1_000..=31_536_000_000;
        /// Milliseconds without anything new after which a sync has failed (exit code 16).
        stall_timeout_ms: u64 = 300_000, 1_000..=86_400_000;
    }
    /// A light client of CometBFT, for keelstone sync --light: it begins with one header that you trust.
    light: LightClient {
        /// The RPC of CometBFT nodes, as "http://HOST:PORT": the first is asked, the others are compared with it. At least two, run by
        /// different people.
        rpc: Vec<HttpAddress> = Vec::new();
        /// The height of the header that is trusted; 0 for none.
        trust_height: u64 = 0, 0..=1_000_000_000_000;
        /// Its hash: 64 hexadecimal digits, as CometBFT writes it.
        trust_hash: HeaderHash = HeaderHash::default();
        /// Milliseconds for which those who voted for a header can be held to it: shorter than the time in which they may leave.
        trust_period_ms: u64 = 604_800_000, 1_000..=31_536_000_000;
    }
    /// What the node says while it runs, on standard error.
    log: Log {
        /// "error", "warn", "info", "debug" or "trace", or a filter such as "info,keelstone_node=debug".
        level: LogFilter = LogFilter("info".to_owned());
        /// "text" or "json".
        format: LogFormat = LogFormat::Text;
    }
}

impl Http {
    /// How the API is reached.
    pub(crate) fn scheme(&self) -> &'static str {
        if self.tls_certificate.0.is_some() { "https" } else { "http" }
    }
}

impl P2p {
    /// Whether there is nobody to dial: no peer is named, and none is looked for.
    pub(crate) fn dials_nobody(&self) -> bool {
        self.peers.is_empty() && !self.mdns
    }
}

/// One setting: its name, its words, and how to set and show it.
struct Setting {
    section: &'static str,
    name: &'static str,
    doc: &'static [&'static str],
    kind: &'static str,
    set: fn(&mut Config, Raw<'_>) -> Result<(), String>,
    show: fn(&Config) -> String,
}

impl Setting {
    fn key(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    fn env(&self) -> String {
        format!("{ENV_PREFIX}{}_{}", self.section, self.name).to_uppercase()
    }
}

/// What is wrong with a configuration, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, variable or option it stands in.
    pub source: String,
    /// The line, counted from 1, if it is a file.
    pub line: Option<usize>,
    /// The key, as far as one is known.
    pub key: Option<String>,
    /// What is wrong.
    pub problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        if let Some(line) = self.line {
            write!(f, " line {line}")?;
        }
        if let Some(key) = &self.key {
            write!(f, ": {key}")?;
        }
        write!(f, ": {}", self.problem)
    }
}
impl std::error::Error for ConfigError {}
impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::usage(error.to_string()).hint("keelstone config default prints every setting with its meaning")
    }
}

/// Where each setting's value came from, for `config show`.
pub(crate) type Origins = BTreeMap<String, String>;

impl Config {
    /// Reads the file if there is one, then the environment, then `overrides` (`section.name=value`).
    ///
    /// # Errors
    /// [`ConfigError`] names source, line and key of the first thing that is wrong.
    pub(crate) fn load(file: &Path, overrides: &[String]) -> Result<(Self, Origins), ConfigError> {
        let mut config = Self::default();
        let mut origins = Origins::new();
        if let Some(text) = read_file(file)? {
            config.take_file(&file.display().to_string(), &text, &mut origins)?;
        }
        config.take_environment(std::env::vars_os(), &mut origins)?;
        for given in overrides {
            config.take_override(given, &mut origins)?;
        }
        config.agree(&origins)?;
        Ok((config, origins))
    }

    /// Reads the text of a configuration file alone, without the environment.
    ///
    /// # Errors
    /// [`ConfigError`] names the line and the key.
    pub fn parse(text: &[u8]) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        let mut origins = Origins::new();
        config.take_file("the configuration", text, &mut origins)?;
        config.agree(&origins)?;
        Ok(config)
    }

    /// Says whether settings stand beside those they make no sense without.
    fn agree(&self, origins: &Origins) -> Result<(), ConfigError> {
        let http = &self.http;
        let has = |name: &str| match name {
            "tls_certificate" => http.tls_certificate.0.is_some(),
            "tls_key" => http.tls_key.0.is_some(),
            _ => http.tls_client_ca.0.is_some(),
        };
        for (name, other) in
            [("tls_certificate", "tls_key"), ("tls_key", "tls_certificate"), ("tls_client_ca", "tls_certificate")]
        {
            if has(name) && !has(other) {
                let key = format!("http.{name}");
                let source = origins.get(&key).cloned().unwrap_or_else(|| "the configuration".to_owned());
                let problem = format!("stands without http.{other}");
                return Err(ConfigError { source, line: None, key: Some(key), problem });
            }
        }
        Ok(())
    }

    /// Takes over what a file says.
    fn take_file(&mut self, source: &str, text: &[u8], origins: &mut Origins) -> Result<(), ConfigError> {
        let text = plain_text(source, text)?;
        let fail = |at: Range<usize>, key: Option<String>, problem: String| ConfigError {
            source: source.to_owned(),
            line: Some(line_of(text, at.start)),
            key,
            problem,
        };
        let tables = DeTable::parse(text).map_err(|error| {
            let at = error.span().unwrap_or(0..0);
            let key = key_on_line(text, at.start);
            fail(at, key, error.message().trim_end().replace('\n', ", "))
        })?;
        let settings = Self::settings();
        for (section, table) in tables.get_ref() {
            let known: Vec<&Setting> =
                settings.iter().filter(|setting| setting.section == section.get_ref().as_ref()).collect();
            if known.is_empty() {
                let sections: Vec<&str> = SECTIONS.iter().map(|(name, _)| *name).collect();
                let problem = format!("unknown section; there are {}", sections.join(", "));
                return Err(fail(section.span(), Some(section.get_ref().to_string()), problem));
            }
            let Some(table) = table.get_ref().as_table() else {
                let problem = format!("expected a [section], found {}", describe(table.get_ref()));
                return Err(fail(section.span(), Some(section.get_ref().to_string()), problem));
            };
            for (name, value) in table {
                let key = format!("{}.{}", section.get_ref(), name.get_ref());
                let Some(setting) = known.iter().find(|setting| setting.name == name.get_ref().as_ref()) else {
                    let names: Vec<&str> = known.iter().map(|setting| setting.name).collect();
                    let problem = format!("unknown key; [{}] has {}", section.get_ref(), names.join(", "));
                    return Err(fail(name.span(), Some(key), problem));
                };
                (setting.set)(self, Raw::Toml(value.get_ref()))
                    .map_err(|problem| fail(value.span(), Some(key.clone()), problem))?;
                origins.insert(key, format!("{source} line {}", line_of(text, name.span().start)));
            }
        }
        Ok(())
    }

    /// Takes over `KEELSTONE_…` variables. Unknown ones are refused: they are misspelled settings.
    fn take_environment(
        &mut self,
        vars: impl Iterator<Item = (std::ffi::OsString, std::ffi::OsString)>,
        origins: &mut Origins,
    ) -> Result<(), ConfigError> {
        let settings = Self::settings();
        for (name, value) in vars {
            let Some(name) = name.to_str().filter(|name| name.starts_with(ENV_PREFIX) && !ENV_OTHERS.contains(name))
            else {
                continue;
            };
            let fail = |key: Option<String>, problem: &str| ConfigError {
                source: format!("the environment variable {name}"),
                line: None,
                key,
                problem: problem.to_owned(),
            };
            let setting = settings
                .iter()
                .find(|setting| setting.env() == name)
                .ok_or_else(|| fail(None, "no setting has this name"))?;
            let value = value.to_str().ok_or_else(|| fail(Some(setting.key()), "is not UTF-8"))?;
            (setting.set)(self, Raw::Text(value)).map_err(|problem: String| fail(Some(setting.key()), &problem))?;
            origins.insert(setting.key(), name.to_owned());
        }
        Ok(())
    }

    /// Takes over one `section.name=value`.
    fn take_override(&mut self, given: &str, origins: &mut Origins) -> Result<(), ConfigError> {
        let fail = |key: Option<&str>, problem: &str| ConfigError {
            source: format!("--set {given}"),
            line: None,
            key: key.map(str::to_owned),
            problem: problem.to_owned(),
        };
        let (key, value) = given.split_once('=').ok_or_else(|| fail(None, "expected section.name=value"))?;
        let settings = Self::settings();
        let setting = settings
            .iter()
            .find(|setting| setting.key() == key)
            .ok_or_else(|| fail(Some(key), "no setting has this name"))?;
        (setting.set)(self, Raw::Text(value)).map_err(|problem: String| fail(Some(key), &problem))?;
        origins.insert(key.to_owned(), "--set".to_owned());
        Ok(())
    }

    /// The configuration as a file, every setting under its explanation.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut out = String::from("# Configuration of a Keelstone node. Every setting is optional.\n");
        for (section, section_doc) in SECTIONS {
            out.push('\n');
            for line in *section_doc {
                out.push_str(&format!("#{line}\n"));
            }
            out.push_str(&format!("[{section}]\n"));
            for setting in Self::settings().iter().filter(|setting| setting.section == *section) {
                for line in setting.doc {
                    out.push_str(&format!("#{line}\n"));
                }
                out.push_str(&format!("{} = {}\n", setting.name, (setting.show)(self)));
            }
        }
        out
    }

    /// Every setting's key, value, type and environment variable, in the order of the file.
    #[must_use]
    pub fn rows(&self) -> Vec<Row> {
        let row = |setting: Setting| Row {
            key: setting.key(),
            value: (setting.show)(self),
            kind: setting.kind,
            env: setting.env(),
        };
        Self::settings().into_iter().map(row).collect()
    }
}

/// One line of `config show`.
#[derive(Debug, serde::Serialize)]
pub struct Row {
    /// `section.name`.
    pub key: String,
    /// The value, as TOML; to programs as JSON.
    #[serde(serialize_with = "as_json")]
    pub value: String,
    /// What values may be.
    pub kind: &'static str,
    /// The environment variable that sets it.
    pub env: String,
}

/// Writes TOML of a setting as the JSON that says the same. An integer beyond those of TOML is text there.
fn as_json<S: serde::Serializer>(toml: &str, serializer: S) -> Result<S::Ok, S::Error> {
    match toml::from_str::<toml::Table>(&format!("value = {toml}")) {
        Ok(mut table) => serde::Serialize::serialize(&table.remove("value"), serializer),
        Err(_) => serializer.serialize_str(toml),
    }
}

/// The bytes of a file, or none if there is no file. Reads at most one byte more than the limit.
fn read_file(path: &Path) -> Result<Option<Vec<u8>>, ConfigError> {
    let fail = |problem: String| ConfigError { source: path.display().to_string(), line: None, key: None, problem };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail(error.to_string())),
    };
    let mut text = Vec::new();
    let limit = u64::try_from(FILE_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit).read_to_end(&mut text).map_err(|error| fail(error.to_string()))?;
    if text.len() > FILE_BYTES_MAX {
        return Err(fail(format!("longer than {FILE_BYTES_MAX} bytes")));
    }
    Ok(Some(text))
}

/// The text of a file if it is UTF-8 with plain line ends.
fn plain_text<'a>(source: &str, bytes: &'a [u8]) -> Result<&'a str, ConfigError> {
    let fail = |line: usize, key: Option<String>, problem: &str| ConfigError {
        source: source.to_owned(),
        line: Some(line),
        key,
        problem: problem.to_owned(),
    };
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let valid = std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default();
        fail(line_of(valid, valid.len()), None, "is not UTF-8")
    })?;
    if text.starts_with('\u{feff}') {
        return Err(fail(1, key_on_line(text, 0), "the file begins with a byte order mark; save it as plain UTF-8"));
    }
    if let Some(at) = text.find('\r') {
        return Err(fail(line_of(text, at), key_on_line(text, at), "the line ends in CR LF; save the file with LF"));
    }
    Ok(text)
}

/// The line a byte stands in, counted from 1.
fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

/// What stands left of `=` on the line of a byte, for errors of the grammar, under the section it belongs to.
fn key_on_line(text: &str, at: usize) -> Option<String> {
    let line_index = line_of(text, at) - 1;
    let line = text.lines().nth(line_index)?.trim_start_matches('\u{feff}');
    let (name, _) = line.split_once('=')?;
    let section = text
        .lines()
        .take(line_index)
        .filter_map(|line| line.trim().strip_prefix('[')?.strip_suffix(']'))
        .last()
        .map_or_else(String::new, |section| format!("{section}."));
    Some(format!("{section}{}", name.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<Config, ConfigError> {
        let mut config = Config::default();
        config.take_file("keelstone.toml", text.as_bytes(), &mut Origins::new())?;
        Ok(config)
    }

    fn refused(text: &str, line: usize, key: &str, problem: &str) {
        let error = file(text).expect_err(text);
        assert_eq!((error.line, error.key.as_deref()), (Some(line), Some(key)), "{error}");
        assert!(error.problem.contains(problem), "{error} does not say {problem:?}");
    }

    #[test]
    fn the_default_file_reads_back_as_the_default() {
        assert_eq!(file(&Config::default().to_toml()), Ok(Config::default()));
    }

    #[test]
    fn l01_each_mistake_is_named_with_line_and_key() {
        refused("[http]\nlisen = \"127.0.0.1:1\"\n", 2, "http.lisen", "unknown key");
        refused("\n[htp]\nlisten = \"127.0.0.1:1\"\n", 2, "htp", "unknown section");
        refused("[blocks]\n\ninterval_ms = \"1s\"\n", 3, "blocks.interval_ms", "found the string \"1s\"");
        refused("[blocks]\ninterval_ms = 0\n", 2, "blocks.interval_ms", "expected 10 to 3600000, found 0");
        refused("[execution]\nwatchdog_ms = 0\n", 2, "execution.watchdog_ms", "expected 100 to 3600000, found 0");
        refused("[blocks]\ninterval_ms = -5\n", 2, "blocks.interval_ms", "found -5");
        refused("[blocks]\ninterval_ms = 1.5\n", 2, "blocks.interval_ms", "found the float 1.5");
        refused("[blocks]\ninterval_ms = 10\ninterval_ms = 20\n", 3, "blocks.interval_ms", "duplicate key");
        refused("\u{feff}blocks = 1\n", 1, "blocks", "byte order mark");
        refused("[log]\nlevel = \"info\"\r\n", 2, "log.level", "CR LF");
        refused("[log]\nlevel = \"wran\"\n", 2, "log.level", "found \"wran\"");
        refused("[log]\nlevel = \"info,hyper\"\n", 2, "log.level", "found \"hyper\"");
        refused("[log]\nlevel = \"\"\n", 2, "log.level", "found \"\"");
        refused("[store]\nhistory = 0\n", 2, "store.history", "found 0");
        refused("http = 5\n", 1, "http", "expected a [section]");
        refused("[http]\nhosts = [1]\n", 2, "http.hosts", "found the integer 1");
        refused("[http]\nlisten = \n", 2, "http.listen", "");
    }

    #[test]
    fn a_filter_of_the_log_is_levels_and_targets() {
        for level in
            ["info", "WARN", "off", "info,keelstone_node=debug", "hyper=off,debug", "keelstone_node[block]=trace"]
        {
            let config = file(&format!("[log]\nlevel = \"{level}\"\n"));
            assert_eq!(config.expect("valid").log.level.0, level);
        }
    }

    /// A host or an origin that no client could ever name is a mistake, and so are all of them at once.
    #[test]
    fn l01_hosts_and_origins_that_match_nothing_are_named() {
        for host in ["http://node.example", "node.example/", "*", "", "node.example:0", "node.example:x", "a b", "[::1"]
        {
            refused(&format!("[http]\nhosts = [\"{host}\"]\n"), 2, "http.hosts", "expected a list of \"NAME\"");
        }
        for origin in ["*", "null", "a.example", "https://a.example/", "https://a.example/x", "ftp://a.example"] {
            refused(&format!("[http]\norigins = [\"{origin}\"]\n"), 2, "http.origins", "expected a list of \"https://");
        }
        let config = file("[http]\nhosts = [\"Node.example\", \"[::1]:80\"]\norigins = [\"https://A.example:443\"]\n");
        let http = config.expect("valid").http;
        assert_eq!(http.hosts.to_toml(), "[\"node.example\", \"[::1]:80\"]");
        assert_eq!(http.origins.to_toml(), "[\"https://a.example\"]");
    }

    /// What the rules of a chain let be sent can be sent.
    #[test]
    fn the_largest_transaction_of_a_chain_fits_into_a_body_in_either_form() {
        let largest = u64::from(keelstone_ledger::ChainLimits::default().transaction_bytes_max);
        assert!(2 * largest + 64 <= Config::default().http.body_bytes_max);
    }

    #[test]
    fn l01_a_setting_that_makes_no_sense_alone_is_named() {
        for (text, key, other) in [
            ("tls_certificate = \"c.pem\"\n", "http.tls_certificate", "http.tls_key"),
            ("tls_key = \"k.pem\"\n", "http.tls_key", "http.tls_certificate"),
            ("tls_client_ca = \"ca.pem\"\n", "http.tls_client_ca", "http.tls_certificate"),
        ] {
            let error = Config::parse(format!("[http]\n{text}").as_bytes()).expect_err(text);
            assert_eq!(error.key.as_deref(), Some(key), "{error}");
            assert!(error.problem.contains(other) && error.source.contains("line 2"), "{error}");
        }
        assert!(Config::parse(b"[http]\ntls_certificate = \"c.pem\"\ntls_key = \"k.pem\"\n").is_ok());
    }

    #[test]
    fn l01_bytes_that_are_not_text_are_named_by_line() {
        let mut config = Config::default();
        let error = config.take_file("keelstone.toml", b"[http]\n\xff", &mut Origins::new()).expect_err("not UTF-8");
        assert_eq!((error.line, error.problem.as_str()), (Some(2), "is not UTF-8"));
    }

    #[test]
    fn later_sources_win_and_misspelled_variables_are_refused() {
        let mut config = file("[http]\nconnections_max = 7\n").expect("valid");
        let mut origins = Origins::new();
        let env = |name: &str, value: &str| std::iter::once((name.into(), value.into()));
        config.take_environment(env("KEELSTONE_HTTP_CONNECTIONS_MAX", "8"), &mut origins).expect("valid");
        assert_eq!(config.http.connections_max, 8);
        config.take_override("http.connections_max=9", &mut origins).expect("valid");
        assert_eq!(config.http.connections_max, 9);
        assert_eq!(origins["http.connections_max"], "--set");
        // There a list has no brackets.
        let error = config.take_override(r#"p2p.mirrors=["http://a:1"]"#, &mut origins).expect_err("brackets");
        assert!(error.problem.contains("expected a directory or http://HOST:PORT/PATH"), "{error}");
        let error = config.take_environment(env("KEELSTONE_HTTP_CONECTIONS", "8"), &mut origins).expect_err("typo");
        assert!(error.to_string().contains("KEELSTONE_HTTP_CONECTIONS"));
    }
}
