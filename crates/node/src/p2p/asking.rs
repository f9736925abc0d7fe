//! One question to everybody: which version they have, or what certifies one.

use super::{AskError, NodeId, Sources};
use keelstone_sync::peers::{Request, Response};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// How often it is looked whether somebody new can be asked.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long others may take once one has said something of use.
const OTHERS_WAIT: Duration = Duration::from_millis(500);

/// Asks mirrors, and peers as they connect, one question. `hear` says whether an answer is of use: from the first such on
/// others have a moment left. It ends when as many as are to be dialled have answered, or all of them are banned: then there are no
/// others; and when it is to stop.
pub(crate) fn ask_all(
    runtime: &Runtime,
    sources: &Sources,
    patience: Duration,
    question: &Request,
    hear: &mut dyn FnMut(String, Result<Response, AskError>) -> bool,
) {
    let mut is_heard = false;
    for mirror in &sources.mirrors {
        is_heard |= hear(mirror.name().to_owned(), mirror.ask(question));
    }
    let Some(network) = &sources.network else { return };
    let started = Instant::now();
    // What hearing takes is not of the time that others have.
    let mut heard_for = Duration::ZERO;
    let waited = |heard_for: Duration| started.elapsed().saturating_sub(heard_for);
    // By when others are to have answered.
    let mut until = if is_heard { OTHERS_WAIT.min(patience) } else { patience };
    let mut known: BTreeSet<NodeId> = BTreeSet::new();
    let mut answers = JoinSet::new();
    while waited(heard_for) < until && !sources.stop.is_asked() {
        for peer in network.connected() {
            if known.insert(peer) {
                let (network, question) = (network.clone(), question.clone());
                answers.spawn_blocking_on(move || (peer, network.ask(&peer, question)), runtime.handle());
            }
        }
        if answers.is_empty() && (known.len() >= network.dialled() || network.is_banned_all()) {
            return;
        }
        let next = async { tokio::time::timeout(LOOK_EVERY, answers.join_next()).await };
        match runtime.block_on(next) {
            Ok(Some(Ok((peer, answer)))) => {
                let since = Instant::now();
                let is_of_use = hear(peer.to_string(), answer);
                heard_for += since.elapsed();
                if is_of_use {
                    until = until.min(waited(heard_for) + OTHERS_WAIT);
                }
            }
            // Nobody is asked yet.
            Ok(_) => std::thread::sleep(LOOK_EVERY),
            Err(_) => {}
        }
    }
    // Others may have answered while one was heard.
    while let Some(answered) = answers.try_join_next() {
        if let Ok((peer, answer)) = answered {
            hear(peer.to_string(), answer);
        }
    }
}
