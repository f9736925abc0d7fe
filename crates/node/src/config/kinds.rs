//! What a setting can be: the types, how each is read from the file and from text, and how it is written.

use super::{PeerAddress, Place};
use crate::authority::{self, Authority};
use keelstone_codec::Hash;
use keelstone_execution::PublicKey;
use keelstone_sync::peers::Manner;
use keelstone_sync::recovery::Strategy;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use toml::de::DeValue;

/// Addresses in one list, at most.
const ADDRESSES_MAX: usize = 64;
/// The most peers that can be dialled.
const PEERS_MAX: usize = 256;

/// Who makes blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// This node.
    Solo,
    /// CometBFT.
    CometBft,
    /// A producer elsewhere, whom this node follows.
    Follow,
}

/// A socket for CometBFT to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AbciAddress {
    /// A socket in the file system; a relative path begins at the home directory.
    Unix(PathBuf),
    /// An address and a port.
    Tcp(SocketAddr),
}

/// A node's API as others reach it; none for an empty text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiAddress(pub Option<String>);

/// A server of HTTP without TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpAddress(Authority);

/// A host as clients name it: a name or an address, and a port unless it goes without saying.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName {
    /// In lower case; an address of IPv6 in brackets.
    name: String,
    port: Option<u16>,
}

/// The origin of pages: a scheme, a host, and its port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebOrigin {
    tls: bool,
    name: String,
    port: u16,
}

/// The name of a file, or nothing; a relative one begins at the home directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileName(pub Option<PathBuf>);

/// The hash of a header, or nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeaderHash(pub Option<Hash>);

/// When blocks are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Production {
    /// As soon as a transaction waits.
    OnDemand,
    /// By the clock.
    Interval,
}

/// How much history is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum History {
    /// Every height.
    All,
    /// So many of the latest heights.
    Heights(u64),
}

/// How a recovered state is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntegrityDepth {
    /// The store's frame.
    Quick,
    /// Every stored byte, page and value.
    Full,
}

/// What a recovery tries, in order; none for the quickest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Strategies(pub Option<Vec<Strategy>>);

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Which log lines are written: a level or a `tracing` filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFilter(pub String);

/// A value before it has a type: from the file, or text from the environment and the command line.
#[derive(Clone, Copy)]
pub(super) enum Raw<'a> {
    Toml(&'a DeValue<'a>),
    Text(&'a str),
}

/// A type a setting can have. `from_raw` says in its error what was expected and what was found.
pub(super) trait Kind: Sized {
    const KIND: &'static str;
    fn from_raw(raw: Raw<'_>) -> Result<Self, String>;
    fn to_toml(&self) -> String;
}

impl Raw<'_> {
    /// The text of a string setting.
    fn text(&self, kind: &str) -> Result<String, String> {
        match self {
            Self::Text(text) => Ok((*text).to_owned()),
            Self::Toml(DeValue::String(text)) => Ok(text.to_string()),
            Self::Toml(other) => Err(format!("expected {kind}, found {}", describe(other))),
        }
    }
}

/// What a value is, in words.
pub(super) fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the string {:?}", text.as_ref()),
        DeValue::Integer(integer) => format!("the integer {integer}"),
        DeValue::Float(float) => format!("the float {float}"),
        DeValue::Boolean(flag) => format!("the boolean {flag}"),
        DeValue::Datetime(time) => format!("the time {time}"),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

impl Kind for u64 {
    const KIND: &'static str = "integer";
    fn from_raw(raw: Raw<'_>) -> Result<Self, String> {
        match raw {
            Raw::Text(text) => text.parse().map_err(|_| format!("expected an integer, found {text:?}")),
            Raw::Toml(DeValue::Integer(integer)) => Self::from_str_radix(integer.as_str(), integer.radix())
                .map_err(|_| format!("expected an integer from 0 to 2^64 - 1, found {integer}")),
            Raw::Toml(other) => Err(format!("expected an integer, found {}", describe(other))),
        }
    }
    fn to_toml(&self) -> String {
        self.to_string()
    }
}

impl Kind for bool {
    const KIND: &'static str = "true or false";
    fn from_raw(raw: Raw<'_>) -> Result<Self, String> {
        match raw {
            Raw::Toml(DeValue::Boolean(flag)) => Ok(*flag),
            Raw::Toml(other) => Err(format!("expected {}, found {}", Self::KIND, describe(other))),
            Raw::Text(text) => text.parse().map_err(|_| format!("expected {}, found {text:?}", Self::KIND)),
        }
    }
    fn to_toml(&self) -> String {
        self.to_string()
    }
}

impl Kind for String {
    const KIND: &'static str = "text";
    fn from_raw(raw: Raw<'_>) -> Result<Self, String> {
        let text = raw.text(Self::KIND)?;
        if text.is_empty() { Err("expected text, found none".to_owned()) } else { Ok(text) }
    }
    fn to_toml(&self) -> String {
        quoted(self)
    }
}

impl Kind for FileName {
    const KIND: &'static str = "path";
    fn from_raw(raw: Raw<'_>) -> Result<Self, String> {
        let text = raw.text(Self::KIND)?;
        match text.as_str() {
            text if text.contains('\0') => Err(format!("expected a path, found {text:?}")),
            "" => Ok(Self(None)),
            text => Ok(Self(Some(PathBuf::from(text)))),
        }
    }
    fn to_toml(&self) -> String {
        quoted(&self.0.as_deref().unwrap_or(Path::new("")).to_string_lossy())
    }
}

impl Kind for HeaderHash {
    const KIND: &'static str = "64 hexadecimal digits";
    fn from_raw(raw: Raw<'_>) -> Result<Self, String> {
        let text = raw.text(Self::KIND)?;
        match text.as_str() {
            "" => Ok(Self(None)),
            // CometBFT shows hashes in upper case.
            text => match Hash::from_hex(&text.to_ascii_lowercase()) {
                Ok(hash) => Ok(Self(Some(hash))),
                Err(_) => Err(format!("expected {}, found {text:?}", Self::KIND)),
            },
        }
    }
    fn to_toml(&self) -> String {
        quoted(&self.0.map_or_else(String::new, |hash| hash.to_string().to_uppercase()))
    }
}

impl Kind for SocketAddr {
    const KIND: &'static str = "address and port";
    fn from_raw(raw: Raw<'_>) -> Result<Self, String> {
        let text = raw.text("an address and port")?;
        text.parse().map_err(|_| format!("expected an address and port such as \"127.0.0.1:26680\", found {text:?}"))
    }
    fn to_toml(&self) -> String {
        quoted(&self.to_string())
    }
}

impl Kind for Vec<String> {
    const KIND: &'static str = "list of strings";
    fn from_raw(raw: Raw<'_>) -> Result<Self, String> {
        match raw {
            Raw::Text(text) => {
                Ok(text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect())
            }
            Raw::Toml(DeValue::Array(array)) => {
                array.iter().map(|value| Raw::Toml(value.get_ref()).text("a list of strings")).collect()
            }
            Raw::Toml(other) => Err(format!("expected a list of strings, found {}", describe(other))),
        }
    }
    fn to_toml(&self) -> String {
        format!("[{}]", self.iter().map(|text| quoted(text)).collect::<Vec<_>>().join(", "))
    }
}

/// What a list of the configuration has: texts that are read one by one.
pub(super) trait Listed: Sized + fmt::Display {
    /// The list, in words.
    const LIST: &'static str;
    /// What is in it.
    const MANY: &'static str;
    /// How many there may be.
    const MAX: usize = ADDRESSES_MAX;
    fn read(text: &str) -> Result<Self, String>;
}

impl<T: Listed> Kind for Vec<T> {
    const KIND: &'static str = T::LIST;
    fn from_raw(raw: Raw<'_>) -> Result<Self, String> {
        let texts = Vec::<String>::from_raw(raw).map_err(|error| error.replace("a list of strings", T::LIST))?;
        if texts.len() > T::MAX {
            return Err(format!("expected at most {} {}, found {}", T::MAX, T::MANY, texts.len()));
        }
        texts.iter().map(|text| T::read(text)).collect()
    }
    fn to_toml(&self) -> String {
        self.iter().map(ToString::to_string).collect::<Vec<_>>().to_toml()
    }
}

impl Listed for HostName {
    const LIST: &'static str = "list of \"NAME\" or \"NAME:PORT\"";
    const MANY: &'static str = "hosts";
    fn read(text: &str) -> Result<Self, String> {
        Self::parse(text).ok_or_else(|| format!("expected a {}, found {text:?}", Self::LIST))
    }
}

impl HostName {
    /// Reads what a Host header has.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        let (name, port) = authority::split(&text)?;
        Some(Self { name: name.to_owned(), port })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn port(&self) -> Option<u16> {
        self.port
    }

    /// The port, or the one that goes without saying.
    pub(crate) fn port_of(&self, scheme: &str) -> u16 {
        self.port.unwrap_or(if scheme == "https" { 443 } else { 80 })
    }

    /// The address, if it is one and no name.
    pub(crate) fn ip(&self) -> Option<IpAddr> {
        match self.name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
            Some(inner) => inner.parse().ok().map(IpAddr::V6),
            None => self.name.parse().ok().map(IpAddr::V4),
        }
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl Listed for WebOrigin {
    const LIST: &'static str = "list of \"https://NAME\" or \"https://NAME:PORT\"";
    const MANY: &'static str = "origins";
    fn read(text: &str) -> Result<Self, String> {
        Self::parse(text).ok_or_else(|| format!("expected a {}, found {text:?}", Self::LIST))
    }
}

impl WebOrigin {
    /// Reads what an Origin header has, if that is the origin of a page somewhere.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (scheme, host) = text.split_once("://")?;
        let scheme = ["http", "https"].into_iter().find(|known| scheme.eq_ignore_ascii_case(known))?;
        Some(Self::of(scheme, &HostName::parse(host)?))
    }

    /// The origin of pages of a host.
    pub(crate) fn of(scheme: &str, host: &HostName) -> Self {
        Self { tls: scheme == "https", name: host.name.clone(), port: host.port_of(scheme) }
    }
}

impl fmt::Display for WebOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, unsaid) = if self.tls { ("https", 443) } else { ("http", 80) };
        match self.port == unsaid {
            true => write!(f, "{scheme}://{}", self.name),
            false => write!(f, "{scheme}://{}:{}", self.name, self.port),
        }
    }
}

impl Listed for Place {
    const LIST: &'static str = "list of directories or \"http://HOST:PORT/PATH\"";
    const MANY: &'static str = "places";
    const MAX: usize = PEERS_MAX;
    fn read(text: &str) -> Result<Self, String> {
        text.parse()
    }
}

impl Listed for PeerAddress {
    const LIST: &'static str = "list of \"HOST:PORT\" or \"ID@HOST:PORT\"";
    const MANY: &'static str = "peers";
    const MAX: usize = PEERS_MAX;
    fn read(text: &str) -> Result<Self, String> {
        text.parse()
    }
}

/// Settings that are one of a few words, which stand here once.
macro_rules! words {
    ($($kind:ident: $first:literal $a:ident $(, $more:literal $b:ident)* or $last:literal $c:ident;)+) => {$(
        impl Kind for $kind {
            const KIND: &'static str =
                concat!("\"", $first, "\"", $(", \"", $more, "\"",)* " or \"", $last, "\"");
            fn from_raw(raw: Raw<'_>) -> Result<Self, String> {
                match raw.text(Self::KIND)?.as_str() {
                    $first => Ok(Self::$a),
                    $($more => Ok(Self::$b),)*
                    $last => Ok(Self::$c),
                    other => Err(format!("expected {}, found {other:?}", Self::KIND)),
                }
            }
            fn to_toml(&self) -> String {
                quoted(match self {
                    Self::$a => $first,
                    $(Self::$b => $more,)*
                    Self::$c => $last,
                })
            }
        }
    )+};
}

words! {
    Production: "on_demand" OnDemand or "interval" Interval;
    EngineKind: "solo" Solo, "cometbft" CometBft or "follow" Follow;
    Manner: "execute" Blocks or "apply" Diffs;
    IntegrityDepth: "quick" Quick or "full" Full;
    LogFormat: "text" Text or "json" Json;
}

impl Listed for PublicKey {
    const LIST: &'static str = "list of public keys in hexadecimal digits";
    const MANY: &'static str = "keys";
    fn read(text: &str) -> Result<Self, String> {
        Self::from_hex(text).map_err(|error| format!("{text:?} is no key: {error}"))
    }
}

impl Kind for AbciAddress {
    const KIND: &'static str = "\"unix://PATH\" or \"tcp://ADDRESS:PORT\"";
    fn from_raw(raw: Raw<'_>) -> Result<Self, String> {
        let text = raw.text(Self::KIND)?;
        let wrong = || format!("expected {}, found {text:?}", Self::KIND);
        match text.split_once("://") {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(PathBuf::from(path))),
            Some(("tcp", address)) => address.parse().map(Self::Tcp).map_err(|_| wrong()),
            _ => Err(wrong()),
        }
    }
    fn to_toml(&self) -> String {
        quoted(&self.to_string())
    }
}

impl fmt::Display for AbciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

impl Kind for HttpAddress {
    const KIND: &'static str = "\"http://HOST:PORT\"";
    fn from_raw(raw: Raw<'_>) -> Result<Self, String> {
        let text = raw.text(Self::KIND)?;
        match Authority::of_url(&text) {
            Some(("http", authority)) => Ok(Self(authority)),
            _ => Err(format!("expected {}, found {text:?}", Self::KIND)),
        }
    }
    fn to_toml(&self) -> String {
        quoted(&self.to_string())
    }
}

impl Kind for ApiAddress {
    const KIND: &'static str = "\"http://HOST:PORT\" or \"https://HOST:PORT\"";
    fn from_raw(raw: Raw<'_>) -> Result<Self, String> {
        let text = raw.text(Self::KIND)?;
        match Authority::of_url(&text) {
            None if text.is_empty() => Ok(Self(None)),
            Some((scheme @ ("http" | "https"), authority)) => Ok(Self(Some(format!("{scheme}://{authority}")))),
            _ => Err(format!("expected {}, found {text:?}", Self::KIND)),
        }
    }
    fn to_toml(&self) -> String {
        quoted(self.0.as_deref().unwrap_or_default())
    }
}

impl Listed for HttpAddress {
    const LIST: &'static str = "list of \"http://HOST:PORT\"";
    const MANY: &'static str = "addresses";
    fn read(text: &str) -> Result<Self, String> {
        Self::parse(text)
    }
}

impl HttpAddress {
    /// Where it leads.
    pub(crate) fn resolve(&self) -> std::io::Result<SocketAddr> {
        self.0
            .resolve()?
            .next()
            .ok_or_else(|| std::io::Error::new(std::io::ErrorKind::NotFound, format!("{self} has no address")))
    }

    /// Reads an address.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        Self::from_raw(Raw::Text(text))
    }

    /// Name or address of the host.
    #[must_use]
    pub fn host(&self) -> &str {
        self.0.host()
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.0.port()
    }

    pub(crate) fn authority(&self) -> &Authority {
        &self.0
    }
}

impl From<SocketAddr> for HttpAddress {
    fn from(socket: SocketAddr) -> Self {
        Self(socket.into())
    }
}

impl fmt::Display for HttpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.0)
    }
}

impl Kind for History {
    const KIND: &'static str = "\"all\" or a number of heights";
    fn from_raw(raw: Raw<'_>) -> Result<Self, String> {
        let all = match raw {
            Raw::Text(text) => text == "all",
            Raw::Toml(DeValue::String(text)) => text.as_ref() == "all",
            Raw::Toml(_) => false,
        };
        if all {
            return Ok(Self::All);
        }
        match u64::from_raw(raw) {
            Ok(0) => Err("expected \"all\" or at least 1 height, found 0".to_owned()),
            Ok(heights) => Ok(Self::Heights(heights)),
            Err(error) => Err(error.replace("an integer", Self::KIND)),
        }
    }
    fn to_toml(&self) -> String {
        match self {
            Self::All => quoted("all"),
            Self::Heights(heights) => heights.to_string(),
        }
    }
}

impl Kind for Strategies {
    const KIND: &'static str = "\"auto\" or a list of strategies";
    fn from_raw(raw: Raw<'_>) -> Result<Self, String> {
        let texts = match raw {
            Raw::Toml(DeValue::String(text)) => vec![text.to_string()],
            raw => Vec::<String>::from_raw(raw).map_err(|error| error.replace("a list of strings", Self::KIND))?,
        };
        if texts == ["auto"] {
            return Ok(Self(None));
        }
        let mut order = Vec::new();
        for text in &texts {
            match Strategy::named(text) {
                Some(strategy) if !order.contains(&strategy) => order.push(strategy),
                _ => {
                    let known = Strategy::ALL.map(Strategy::name).join(", ");
                    return Err(format!("expected \"auto\" or each once of {known}, found {text:?}"));
                }
            }
        }
        if order.is_empty() {
            Err("expected \"auto\" or a strategy, found none".to_owned())
        } else {
            Ok(Self(Some(order)))
        }
    }
    fn to_toml(&self) -> String {
        match &self.0 {
            None => quoted("auto"),
            Some(order) => order.iter().map(|strategy| strategy.name().to_owned()).collect::<Vec<_>>().to_toml(),
        }
    }
}

impl Kind for LogFilter {
    const KIND: &'static str = "log filter";
    fn from_raw(raw: Raw<'_>) -> Result<Self, String> {
        let text = raw.text("a log filter")?;
        // A lone word that is no level would be taken for a target, of which there is nothing to log.
        let mut words =
            text.split(',').map(str::trim).filter(|word| word.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        let is_level = |word: &str| word.parse::<tracing_subscriber::filter::LevelFilter>().is_ok();
        match tracing_subscriber::EnvFilter::try_new(&text) {
            Ok(_) if !text.is_empty() => match words.find(|word| !is_level(word)) {
                None => Ok(Self(text)),
                Some(word) => Err(format!(
                    "expected off, error, warn, info, debug or trace, or targets as name=level, found {word:?}"
                )),
            },
            _ => Err(format!("expected a log level or filter, found {text:?}")),
        }
    }
    fn to_toml(&self) -> String {
        quoted(&self.0)
    }
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// A range a number must lie in.
pub(super) struct Bounds;
impl Bounds {
    pub(super) fn check(value: &u64, range: &RangeInclusive<u64>) -> Result<(), String> {
        if range.contains(value) {
            return Ok(());
        }
        Err(format!("expected {} to {}, found {value}", range.start(), range.end()))
    }
}
