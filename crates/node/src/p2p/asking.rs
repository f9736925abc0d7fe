//! One question to everybody: which version they have, or what certifies one.

use super::{AskError, Distrust, NodeId, Sources, Trust, certified_version};
use crate::clock::now;
use crate::exit::{Exit, Failure};
use keelstone_execution::PublicKey;
use keelstone_ledger::SignedAttestation;
use keelstone_sync::peers::{Request, Response, Version};
use std::collections::{BTreeMap, BTreeSet};
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

/// Asks everybody what a producer has certified, and takes the newest.
// spec: SNAP-12, PEER-14
pub(crate) fn attested(
    runtime: &Runtime,
    sources: &Sources,
    patience: Duration,
    trust: &Trust,
) -> Result<(Version, PublicKey), Failure> {
    let mut said: Vec<SignedAttestation> = Vec::new();
    let mut asked: BTreeMap<String, String> = BTreeMap::new();
    ask_all(runtime, sources, patience, &Request::GetCertificate, &mut |who, answer| {
        let heard = match answer {
            Ok(Response::Certificate(certificate)) => match trust.judge(&certificate, now()) {
                Ok(signed) => {
                    said.push(signed);
                    return true;
                }
                Err(distrust) => distrust.to_string(),
            },
            Ok(_) => "it has nothing that certifies a version".to_owned(),
            Err(error) => error.to_string(),
        };
        asked.insert(who, heard);
        false
    });
    match Trust::newest(&said) {
        Ok(Some(newest)) => Ok((certified_version(&newest), newest.signer)),
        Err(distrust @ Distrust::Forked { .. }) => Err(Failure::integrity(distrust.to_string())
            .hint("find out which is the chain's, and whose key signed the other: neither can be believed until then")),
        Ok(None) | Err(_) => Err(came_to_nothing("no version is certified by a key that is trusted", &asked)
            .hint("give --trust-height and --trust-hash, or other peers")),
    }
}

/// A failure that says what came of asking each.
pub(crate) fn came_to_nothing(message: &str, asked: &BTreeMap<String, String>) -> Failure {
    let heard = match asked.is_empty() {
        true => "; nobody could be reached".to_owned(),
        false => asked.iter().map(|(peer, why)| format!("\n{peer}: {why}")).collect(),
    };
    Failure::new(Exit::SyncFailed, format!("{message}{heard}"))
}
