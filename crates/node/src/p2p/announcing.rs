//! Telling peers of each new version, and what certifies it.
//!
//! A producer signs its newest version when it has made one; a node that follows hands on the signature for what it has
//! come up to itself. Each peer is sent the newest only, one at a time: however fast blocks are made, and however slow a
//! peer is, nothing piles up for it. An announcement that is lost is no harm: who follows also asks.
//!
//! Rules: `spec/peers.md`, PEER-21.

use super::{Network, NodeId};
use crate::engine::Engine;
use crate::engine::versions::{Word, carried};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use keelstone_codec::{Encode as _, Height};
use keelstone_ledger::SecretKey;
use keelstone_sync::peers::{Frame, Request};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// The shortest time between two announcements to a peer: of what comes faster it hears the newest.
const PACE: Duration = Duration::from_millis(10);

/// Signs the newest version, at once and whenever there is another.
pub(crate) async fn sign_each(
    engine: Arc<dyn Engine>,
    key: Arc<SecretKey>,
    mut made: watch::Receiver<Height>,
    word: watch::Sender<Word>,
) {
    loop {
        let (engine, key) = (engine.clone(), key.clone());
        let signed = tokio::task::spawn_blocking(move || engine.attest(&key)).await;
        if let Ok(Some(signed)) = signed {
            word.send_replace(Some(Arc::new(signed)));
        }
        if made.changed().await.is_err() {
            return;
        }
    }
}

/// Sends each peer the newest word, now and whenever word or peers change.
// spec: PEER-21
pub(crate) async fn announce(network: Network, mut word: watch::Receiver<Word>) {
    let mut everybody = network.everybody();
    let (mut told, mut busy): (BTreeMap<NodeId, Height>, BTreeSet<NodeId>) = Default::default();
    let mut under_way = FuturesUnordered::new();
    loop {
        let newest = word.borrow_and_update().clone();
        let connected: BTreeSet<NodeId> = everybody.borrow_and_update().keys().copied().collect();
        told.retain(|peer, _| connected.contains(peer));
        if let Some(signed) = newest {
            let height = signed.attestation.height;
            for peer in connected {
                if busy.contains(&peer) || told.get(&peer).is_some_and(|told| *told >= height) {
                    continue;
                }
                let Some(certificate) = carried(&signed) else { continue };
                // Whether it heard is its own concern: it also asks.
                told.insert(peer, height);
                busy.insert(peer);
                let (network, frame) = (network.clone(), Frame { id: 0, body: Request::Announce { certificate } });
                under_way.push(async move { (peer, network.ask_frame(peer, frame.to_bytes()).await.is_ok()) });
            }
        }
        tokio::time::sleep(PACE).await;
        tokio::select! {
            changed = word.changed() => if changed.is_err() { return },
            changed = everybody.changed() => if changed.is_err() { return },
            Some((peer, _)) = under_way.next() => drop(busy.remove(&peer)),
        }
    }
}
