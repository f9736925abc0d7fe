//! Where trust in a chain begins for a node that joins it: a height and the hash of its block, as several nodes say.
//!
//! CometBFT's light client believes the block it is configured with, and everything that follows from it. So the block
//! is asked of at least two nodes that are not the same node, and any disagreement ends it: which of them is right is
//! for a person to find out.
//!
//! It also ends its trust in a block that is older than the period it is configured with, and then finds no snapshot for
//! ever, which nobody hears of. So the block is one that will be trusted for a while still. Nor does it find any once nobody has
//! the block any more: where nodes forget their blocks, it is one of those in the middle.

use super::rpc::{Commit, Rpc, RpcError};
use keelstone_codec::Timestamp;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Blocks below the lowest tip that trust begins at unless told otherwise. Below the newest snapshot, so that the light
/// client goes forward from here, which takes a few steps; backward it would fetch every header in between.
pub(crate) const TRUST_BLOCKS_BACK: u64 = 2_000;
/// The period of trust unless told otherwise, as Go writes it.
pub(crate) const TRUST_PERIOD: &str = "168h0m0s";

/// How long a block is trusted: a time as Go writes it, numbers with units, that CometBFT takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TrustPeriod {
    text: String,
    length: Duration,
}

/// Why a text is no period of trust. Whoever wrote it has to act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PeriodError {
    /// It is no time.
    #[error("expected a time such as 168h or 90m0s")]
    Form,
    /// CometBFT refuses to start with it.
    #[error("it must be longer than nothing")]
    Zero,
    /// More than Go's times can be.
    #[error("CometBFT takes 2562047h at most")]
    TooLong,
}

impl FromStr for TrustPeriod {
    type Err = PeriodError;

    fn from_str(text: &str) -> Result<Self, PeriodError> {
        let mut rest = text;
        let mut millis: u64 = 0;
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, after) = rest.split_at(digits);
            let units = [("h", 3_600_000), ("ms", 1), ("m", 60_000), ("s", 1_000)];
            let unit = units.into_iter().find_map(|(unit, millis)| Some((millis, after.strip_prefix(unit)?)));
            let (1.., Some((unit, after))) = (digits, unit) else { return Err(PeriodError::Form) };
            // All digits, so a number that is none is one that has too many.
            let number: u64 = number.parse().map_err(|_| PeriodError::TooLong)?;
            let part = number.checked_mul(unit).ok_or(PeriodError::TooLong)?;
            millis = millis.checked_add(part).ok_or(PeriodError::TooLong)?;
            rest = after;
        }
        let length = Duration::from_millis(millis);
        match (text.is_empty(), millis) {
            (true, _) => Err(PeriodError::Form),
            (_, 0) => Err(PeriodError::Zero),
            // Go counts nanoseconds in 63 bits.
            _ if i64::try_from(length.as_nanos()).is_err() => Err(PeriodError::TooLong),
            _ => Ok(Self { text: text.to_owned(), length }),
        }
    }
}

impl fmt::Display for TrustPeriod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What all nodes that were asked agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trust {
    /// The network's name.
    pub(crate) chain_id: String,
    /// The height.
    pub(crate) height: u64,
    /// The hash of the block there, upper case.
    pub(crate) block_hash: String,
    /// The first block that all of them have, if that is why it is no lower one.
    pub(crate) kept_from: Option<u64>,
}

/// Two addresses are of one node, and one node asked twice is no second opinion.
#[derive(Debug, thiserror::Error)]
#[error("{first} and {second} are one node, {node_id}")]
pub(crate) struct SameNode {
    first: String,
    second: String,
    node_id: String,
}

impl SameNode {
    pub(super) fn behind(first: &Rpc, second: &Rpc, node_id: &str) -> Self {
        let [first, second] = [first, second].map(|rpc| rpc.authority().to_owned());
        Self { first, second, node_id: node_id.to_owned() }
    }
}

/// Why no trust can begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrustError {
    /// The caller has to name more nodes.
    #[error("{count} node was named; trust needs the word of at least two")]
    TooFew {
        /// How many were named.
        count: usize,
    },
    /// The caller has to name another node.
    #[error(transparent)]
    SameNode(#[from] SameNode),
    /// Two nodes contradict each other: somebody has to find out which of them is wrong before either is trusted.
    #[error("{what}: {first} says {first_says}, {second} says {second_says}")]
    Disagree {
        /// About what.
        what: String,
        /// An address.
        first: String,
        /// What it says.
        first_says: String,
        /// Another.
        second: String,
        /// What that says.
        second_says: String,
    },
    /// No height that all of them have, or not the one asked for.
    #[error("{authority} has blocks {earliest} to {latest}, not {height}")]
    NotThere {
        /// The node that lacks it.
        authority: String,
        /// The height.
        height: u64,
        /// The first it has.
        earliest: u64,
        /// The last it has.
        latest: u64,
    },
    /// CometBFT would find no snapshot with this block, for ever.
    #[error("block {height} is {age} old and trusted for {period} only")]
    Expired {
        /// Its height: that asked for, or the highest that all nodes have.
        height: u64,
        /// How old it is.
        age: String,
        /// How long it is trusted.
        period: String,
    },
    /// A node was of no help.
    #[error(transparent)]
    Rpc(#[from] RpcError),
}

/// Asks all nodes where trust may begin: at `height`, or [`TRUST_BLOCKS_BACK`] below the lowest tip, or half way to what all of them
/// have if they have forgotten that; higher if two thirds of the period are gone there.
///
/// # Errors
/// [`TrustError`] names two nodes and what each says if they disagree on anything.
pub(crate) fn agree(
    nodes: &[Rpc],
    height: Option<u64>,
    period: &TrustPeriod,
    now: Timestamp,
) -> Result<Trust, TrustError> {
    if nodes.len() < 2 {
        return Err(TrustError::TooFew { count: nodes.len() });
    }
    let mut statuses = Vec::with_capacity(nodes.len());
    for node in nodes {
        statuses.push((node, node.status()?));
    }
    let (first, status) = &statuses[0];
    for (index, (other, found)) in statuses.iter().enumerate().skip(1) {
        same("the chain's name", (first, &status.chain_id), (other, &found.chain_id))?;
        if let Some((earlier, twin)) = statuses[..index].iter().find(|(_, twin)| twin.node_id == found.node_id) {
            return Err(SameNode::behind(earlier, other, &twin.node_id).into());
        }
    }
    let lowest_tip = statuses.iter().map(|(_, status)| status.height).min().unwrap_or(0);
    let earliest = statuses.iter().map(|(_, status)| status.earliest_height).max().unwrap_or(0);
    let back = lowest_tip.saturating_sub(TRUST_BLOCKS_BACK).max(1);
    // The first that they have is the next that they forget.
    let kept_from = Some(earliest).filter(|earliest| height.is_none() && *earliest > back);
    let half_way = |earliest: u64| earliest.saturating_add(lowest_tip.saturating_sub(earliest) / 2);
    let lowest = height.unwrap_or_else(|| kept_from.map_or(back, half_way));
    for (node, status) in &statuses {
        if !(status.earliest_height..=status.height).contains(&lowest) {
            let (authority, earliest, latest) = (node.authority().to_owned(), status.earliest_height, status.height);
            return Err(TrustError::NotThere { authority, height: lowest, earliest, latest });
        }
    }
    let age = |commit: &Commit| Duration::from_millis(now.0.saturating_sub(commit.time.0));
    let is_young = |commit: &Commit| age(commit) <= period.length * 2 / 3;
    let highest = if height.is_some() { lowest } else { lowest_tip };
    let trusted = lowest_young(first, lowest, highest, is_young)?;
    let height = trusted.height;
    if age(&trusted) >= period.length {
        return Err(TrustError::Expired { height, age: in_words(age(&trusted)), period: period.to_string() });
    }
    for (other, _) in &statuses[1..] {
        let found = other.commit(height)?;
        same(&format!("block {height}"), (first, &trusted.block_hash), (other, &found.block_hash))?;
    }
    same("the chain's name", (first, &status.chain_id), (first, &trusted.chain_id))?;
    Ok(Trust { chain_id: trusted.chain_id, height, block_hash: trusted.block_hash, kept_from })
}

/// The lowest block in a range that is young, as all above it are; the highest if none is.
fn lowest_young(
    node: &Rpc,
    lowest: u64,
    highest: u64,
    is_young: impl Fn(&Commit) -> bool,
) -> Result<Commit, TrustError> {
    let found = node.commit(lowest)?;
    if highest <= lowest || is_young(&found) {
        return Ok(found);
    }
    let (mut old, mut young) = (lowest, node.commit(highest)?);
    while is_young(&young) && young.height - old > 1 {
        let middle = node.commit(old + (young.height - old) / 2)?;
        if is_young(&middle) {
            young = middle;
        } else {
            old = middle.height;
        }
    }
    Ok(young)
}

/// A time as Go writes it, to the second.
fn in_words(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}h{}m{}s", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}

fn same(what: &str, first: (&Rpc, &str), second: (&Rpc, &str)) -> Result<(), TrustError> {
    if first.1 == second.1 {
        return Ok(());
    }
    Err(TrustError::Disagree {
        what: what.to_owned(),
        first: first.0.authority().to_owned(),
        first_says: first.1.to_owned(),
        second: second.0.authority().to_owned(),
        second_says: second.1.to_owned(),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    /// Seconds between two blocks of [`node`], the first of which was made when time begins.
    const BLOCK_SECONDS: u64 = 400;

    /// A node that answers `/status` and `/commit`, for as long as the process lives.
    pub(crate) fn node(chain_id: &'static str, id: &'static str, tip: u64, hash: char) -> Rpc {
        pruned(chain_id, id, 1, tip, hash)
    }

    /// The same, of one that has forgotten its first blocks.
    pub(crate) fn pruned(chain_id: &'static str, id: &'static str, first: u64, tip: u64, hash: char) -> Rpc {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let rpc = Rpc::new(&listener.local_addr().expect("bound").to_string()).expect("an address");
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a client");
                let mut request = [0; 4096];
                let got = stream.read(&mut request).expect("a request");
                let path = String::from_utf8_lossy(&request[..got]).into_owned();
                let result = match path.split("height=").nth(1).and_then(|rest| rest.split(' ').next()) {
                    None => format!(
                        r#"{{"node_info":{{"network":"{chain_id}","id":"{id}","version":"0.40.0"}},"sync_info":{{"latest_block_height":"{tip}","earliest_block_height":"{first}","catching_up":false}}}}"#
                    ),
                    Some(height) => {
                        let seconds = height.parse::<u64>().expect("a height") * BLOCK_SECONDS;
                        let (day, second) = (seconds / 86_400, seconds % 86_400);
                        assert!(day < 31, "all within one month");
                        let time = format!(
                            "1970-01-{:02}T{:02}:{:02}:{:02}.5Z",
                            day + 1,
                            second / 3_600,
                            second / 60 % 60,
                            second % 60
                        );
                        format!(
                            r#"{{"signed_header":{{"header":{{"chain_id":"{chain_id}","height":"{height}","app_hash":"00","time":"{time}"}},"commit":{{"block_id":{{"hash":"{}"}}}}}}}}"#,
                            hash.to_string().repeat(64)
                        )
                    }
                };
                // A client that went away is the test's own.
                let _ = write!(stream, "HTTP/1.0 200 OK\r\n\r\n{{\"result\":{result}}}");
            }
        });
        rpc
    }

    #[test]
    fn nodes_that_agree_are_believed() {
        let nodes = [node("c", "n1", 5_000, 'a'), node("c", "n2", 4_990, 'a')];
        let agree = |height| agree(&nodes, height, &period("999h"), at(5_000)).expect("they agree");
        let expected = Trust { chain_id: "c".to_owned(), height: 2_990, block_hash: "A".repeat(64), kept_from: None };
        assert_eq!(agree(None), expected);
        assert_eq!(agree(Some(7)).height, 7);
    }

    /// The first block that pruning nodes have is gone before the engine is started: trust begins half way to the tip.
    #[test]
    fn trust_does_not_begin_at_the_block_that_is_forgotten_next() {
        let nodes = [pruned("c", "n1", 21, 75, 'a'), pruned("c", "n2", 11, 80, 'a')];
        let trust = agree(&nodes, None, &period("999h"), at(80)).expect("they agree");
        assert_eq!((trust.height, trust.kept_from), (48, Some(21)));
        assert_eq!(agree(&nodes, Some(21), &period("999h"), at(80)).expect("it is asked for").height, 21);
        let long = [pruned("c", "n1", 21, 5_000, 'a'), pruned("c", "n2", 2_999, 5_000, 'a')];
        let trust = agree(&long, None, &period("999h"), at(5_000)).expect("they agree");
        assert_eq!((trust.height, trust.kept_from), (3_000, None), "what they keep reaches back far enough");
    }

    /// CometBFT finds no snapshot once its trusted block is older than the period, so trust begins at one that is not, nor
    /// will be soon: on a chain of few blocks higher than 2,000 below the tip.
    #[test]
    fn trust_never_begins_at_a_block_that_has_expired() {
        let nodes = [node("c", "n1", 5_000, 'a'), node("c", "n2", 5_001, 'a')];
        // Nine blocks an hour: of 90 hours the newest 60 are 540 blocks.
        let from = |height, now| agree(&nodes, height, &period("90h"), at(now));
        assert_eq!(from(None, 5_000).expect("young enough").height, 4_460);
        assert_eq!(from(None, 5_200).expect("young enough").height, 4_660);
        assert_eq!(from(None, 5_700).expect("not expired").height, 5_000, "the tip, if nothing is younger");
        let expired = from(None, 5_810).expect_err("all have expired").to_string();
        assert_eq!(expired, "block 5000 is 90h0m0s old and trusted for 90h only");
        assert_eq!(from(Some(4_300), 5_000).expect("it is asked for, and not expired").height, 4_300);
        assert!(matches!(from(Some(4_190), 5_000), Err(TrustError::Expired { height: 4_190, .. })));
    }

    fn period(text: &str) -> TrustPeriod {
        text.parse().expect("a period")
    }

    /// When block `height` of [`node`] was made.
    fn at(height: u64) -> Timestamp {
        Timestamp(height * BLOCK_SECONDS * 1_000 + 500)
    }

    #[test]
    fn periods_are_read_as_go_writes_them_and_as_cometbft_takes_them() {
        for good in [TRUST_PERIOD, "90m", "1h30m", "500ms", "2562047h"] {
            assert_eq!(period(good).to_string(), good);
        }
        assert_eq!(period("1h1m1s1ms").length, Duration::from_millis(3_661_001));
        let refused = |text: &str| text.parse::<TrustPeriod>().expect_err(text);
        for bad in ["", "168", "h", "1d", "1h\"", "-1h", "1 h", "1é", "1h1"] {
            assert_eq!(refused(bad), PeriodError::Form, "{bad}");
        }
        for nothing in ["0s", "0h0m0s"] {
            assert_eq!(refused(nothing), PeriodError::Zero, "{nothing}");
        }
        for much in ["2562048h", "99999999h", "99999999999999999999h", "9999999999999999h", "2562047h999999999m"] {
            assert_eq!(refused(much), PeriodError::TooLong, "{much}");
        }
    }

    #[test]
    fn any_disagreement_is_named_with_both_values() {
        let says =
            |nodes: &[Rpc], height| agree(nodes, height, &period("90h"), at(9)).expect_err("refused").to_string();
        let text = says(&[node("c", "n1", 9, 'a'), node("c", "n2", 9, 'b')], None);
        assert!(text.contains(&"A".repeat(64)) && text.contains(&"B".repeat(64)) && text.contains("block 1"), "{text}");
        let text = says(&[node("c", "n1", 9, 'a'), node("d", "n2", 9, 'a')], None);
        assert!(text.contains("says c") && text.contains("says d"), "{text}");
        let text = says(&[node("c", "n1", 9, 'a'), node("c", "n1", 9, 'a')], None);
        assert!(text.contains("are one node, n1"), "{text}");
        let text = says(&[node("c", "n1", 9, 'a'), node("c", "n2", 5, 'a')], Some(8));
        assert!(text.contains("has blocks 1 to 5, not 8"), "{text}");
        assert!(says(&[node("c", "n1", 9, 'a')], None).contains("at least two"));
    }
}
