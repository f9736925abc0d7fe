//! A peer over a store: the real server, asked in this process.

use keelstone_codec::{ChainId, Height, Root};
use keelstone_store::{Store, View};
use keelstone_sync::consistency::{Ask, Silence};
use keelstone_sync::peers::{PeerId, Request, Response, Server, ServerLimits, Tick, Version, Versions};
use keelstone_sync::snapshot::SnapshotParams;
use keelstone_tree::{Blake3, HashKind, ReadError};

/// A store of a node that serves what it has.
struct Served(Store<Blake3>);

impl Versions for Served {
    type View = View<Blake3>;

    fn kept(&self) -> Option<(Version, Height)> {
        Some((Version { height: self.0.height()?, root: self.0.root() }, self.0.low()?))
    }
    fn diffs_from(&self) -> Height {
        Height(u64::MAX)
    }
    fn view(&self, height: Height) -> Result<Option<(Root, Self::View)>, ReadError> {
        Ok(self.0.view_at(height).ok().map(|view| (view.root(), view)))
    }
}

/// A peer: the real server, over a store of its own.
pub(crate) struct Peer(Server<Served>);

impl Peer {
    pub(crate) fn of(store: Store<Blake3>) -> Self {
        let chain_id = ChainId::new("test-1").unwrap();
        let params = SnapshotParams { chain_id, hasher: HashKind::Blake3, chunk_weight_max: 4000 };
        let limits = ServerLimits {
            peer_bytes_per_second: 1 << 40,
            bytes_per_second: 1 << 40,
            answer_bytes_max: 600,
            ..ServerLimits::default()
        };
        Self(Server::new(Served(store), params, limits, Tick(0)))
    }
}

impl Ask for Peer {
    fn ask(&mut self, request: &Request) -> Result<Response, Silence> {
        Ok(self.0.answer(Tick(0), PeerId(1), request))
    }
}
