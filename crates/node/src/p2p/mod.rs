//! Peers over libp2p: who may connect, how frames travel, who is banned, and the thread that answers.
//!
//! | to | see |
//! | --- | --- |
//! | be connected to peers, and ask them something | [`Network`] |
//! | ban somebody over restarts | [`Bans`] |
//!
//! The connection is encrypted and the other end has shown its id, and that is all that is known of it: what it sends is
//! a claim until the machines of `keelstone_sync::peers` have proven it. Every size, count and time that a peer can
//! choose has a limit here or there.
//!
//! Rules: `spec/peers.md`. How to run it: `docs/sync.md`.

mod announcing;
mod asking;
mod bans;
mod codec;
mod following;
mod gate;
pub(crate) mod hostile;
mod joining;
mod mirrors;
mod nearby;
mod network;
mod serving;
mod settings;
mod shares;
#[cfg(test)]
mod tests;
mod trust;
mod ways;

use crate::config::{NodeId, PeerAddress, Transport};
pub(crate) use announcing::{announce, sign_each};
pub(crate) use asking::{ask_all, attested, came_to_nothing};
pub(crate) use bans::Bans;
pub(crate) use following::{Ends, Follow, Following, HEARD_MAX, Heard, Over, SILENT, Seen, Standing, Until};
pub(crate) use gate::ConnectionLimits;
pub(crate) use joining::{Certifies, Joining, MirrorSource, Sources};
use keelstone_codec::Decode as _;
use keelstone_sync::peers::{Frame, Request, Response};
pub(crate) use mirrors::{Opened, Reach};
pub(crate) use nearby::Nearby;
pub(crate) use network::{Everybody, Network, Setup};
pub(crate) use settings::{joiner_settings, seed, server_limits, setup};
pub(crate) use trust::{Distrust, Trust, version as certified_version};

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AskError {
    /// It is not connected, or no longer. Ask another.
    #[error("the peer is not connected")]
    Gone,
    /// It did not answer in time, or not with a frame. Ask another.
    #[error("no answer: {0}")]
    Failed(String),
    /// What it sent cannot be an answer to this. It broke the protocol.
    #[error("an answer that cannot be true: {0}")]
    Misbehaved(String),
}

/// The response in a frame, whatever its number.
pub(crate) fn response(frame: &[u8]) -> Option<Response> {
    Frame::<Response>::from_bytes(frame).ok().map(|frame| frame.body)
}

/// Whether a response is of the kind that a request asks for.
pub(crate) fn answers(request: &Request, response: &Response) -> bool {
    use keelstone_sync::peers::{Request as Q, Response as A};
    match (request, response) {
        (_, A::Unavailable(_) | A::Busy { .. }) => true,
        (Q::Status, A::Status(_))
        | (Q::GetHeader { .. }, A::Header(_))
        | (Q::GetNodes { .. }, A::Nodes(_))
        | (Q::GetChunks { .. }, A::Chunks { .. })
        | (Q::GetDiffs { .. }, A::Diffs(_))
        | (Q::GetRange { .. }, A::Range { .. })
        | (Q::GetEntry { .. }, A::Entry(_))
        | (Q::GetCertificate, A::Certificate(_))
        | (Q::Announce { .. }, A::Heard)
        | (Q::GetBlocks { .. }, A::Blocks(_)) => true,
        (Q::GetRootAt { height }, A::RootAt(version)) => version.height == *height,
        _ => false,
    }
}
