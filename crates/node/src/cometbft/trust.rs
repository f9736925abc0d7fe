//! Where trust in a chain begins for a node that joins it: a height and the hash of its block, as several nodes say.
//!
//! CometBFT's light client believes the block it is configured with, and everything that follows from it. So the block
//! is asked of at least two nodes that are not the same node, and any disagreement ends it: which of them is right is
//! for a person to find out.

use super::rpc::{Rpc, RpcError};

/// Blocks below the lowest tip that trust begins at unless told otherwise. Below the newest snapshot, so that the light
/// client goes forward from here, which takes a few steps; backward it would fetch every header in between.
pub(crate) const TRUST_BLOCKS_BACK: u64 = 2_000;

/// What all nodes that were asked agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trust {
    /// The network's name.
    pub(crate) chain_id: String,
    /// The height.
    pub(crate) height: u64,
    /// The hash of the block there, upper case.
    pub(crate) block_hash: String,
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
    /// A node was of no help.
    #[error(transparent)]
    Rpc(#[from] RpcError),
}

/// Asks all nodes where trust may begin: at `height`, or [`TRUST_BLOCKS_BACK`] below the lowest tip.
///
/// # Errors
/// [`TrustError`] names two nodes and what each says if they disagree on anything.
pub(crate) fn agree(nodes: &[Rpc], height: Option<u64>) -> Result<Trust, TrustError> {
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
    let height = height.unwrap_or_else(|| lowest_tip.saturating_sub(TRUST_BLOCKS_BACK).max(earliest).max(1));
    for (node, status) in &statuses {
        if !(status.earliest_height..=status.height).contains(&height) {
            let (authority, earliest, latest) = (node.authority().to_owned(), status.earliest_height, status.height);
            return Err(TrustError::NotThere { authority, height, earliest, latest });
        }
    }
    let trusted = first.commit(height)?;
    for (other, _) in &statuses[1..] {
        let found = other.commit(height)?;
        same(&format!("block {height}"), (first, &trusted.block_hash), (other, &found.block_hash))?;
    }
    same("the chain's name", (first, &status.chain_id), (first, &trusted.chain_id))?;
    Ok(Trust { chain_id: trusted.chain_id, height, block_hash: trusted.block_hash })
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

    /// A node that answers `/status` and `/commit`, for as long as the process lives.
    pub(crate) fn node(chain_id: &'static str, id: &'static str, tip: u64, hash: char) -> Rpc {
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
                        r#"{{"node_info":{{"network":"{chain_id}","id":"{id}","version":"0.40.0"}},"sync_info":{{"latest_block_height":"{tip}","earliest_block_height":"1","catching_up":false}}}}"#
                    ),
                    Some(height) => format!(
                        r#"{{"signed_header":{{"header":{{"chain_id":"{chain_id}","height":"{height}","app_hash":"00"}},"commit":{{"block_id":{{"hash":"{}"}}}}}}}}"#,
                        hash.to_string().repeat(64)
                    ),
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
        let trust = agree(&nodes, None).expect("they agree");
        assert_eq!(trust, Trust { chain_id: "c".to_owned(), height: 2_990, block_hash: "A".repeat(64) });
        assert_eq!(agree(&nodes, Some(7)).expect("they agree").height, 7);
    }

    #[test]
    fn any_disagreement_is_named_with_both_values() {
        let says = |nodes: &[Rpc], height| agree(nodes, height).expect_err("refused").to_string();
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
