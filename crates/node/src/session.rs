//! Sessions for those who ask: what the record of one says, and whether and what it may do in the next block.
//!
//! What a session may do is found as the chain finds it, by asking it and everything above it; nothing here decides
//! anything. Names are listed like a directory: in the order of their paths, those below one path together.
//!
//! Rules: `spec/chain.md`, EXEC-16 and EXEC-20, `spec/modules.md`, MODULE-8 to MODULE-10.

use crate::api::{self, Refusal, SessionsWanted};
use keelstone_codec::{ChainId, Height, Text};
use keelstone_execution::{
    Capabilities, Capability, PublicKey, Registry, Session, SessionError, SessionId, Stop, View,
};
use keelstone_ledger::modules::sessions::{Desk, NAME_LEN_MAX};
use keelstone_tree::Read;
use std::ops::Bound;

/// The sessions of a state.
pub(crate) struct Register<'a> {
    desk: View<Desk>,
    registry: &'a Registry,
    chain_id: ChainId,
    height: Height,
}

impl<'a> Register<'a> {
    /// Of a state at a height.
    pub(crate) fn of(state: impl Read + 'static, registry: &'a Registry, chain_id: ChainId, height: Height) -> Self {
        Self { desk: View::over(state), registry, chain_id, height }
    }

    /// The record of a key's root session.
    pub(crate) fn root(&self, key: &PublicKey) -> Result<Session, Refusal> {
        let id = SessionId::root(&self.chain_id, key);
        let found = self.desk.sessions.find(&self.chain_id, &id, key).map_err(unreadable)?;
        Ok(found.unwrap_or_else(|| Session::root(&self.chain_id, *key)))
    }

    /// A session by its identity.
    pub(crate) fn find(&self, id: SessionId) -> Result<api::Session, Refusal> {
        let record = self.desk.sessions.records.get(&id).map_err(unreadable)?;
        let record = record.ok_or_else(|| {
            Refusal::NotFound(format!("there is no session {id}; a key's own has a record once it has run something"))
        })?;
        let mut shown = self.show(id, &record)?;
        if let (Some(names), "open") = (&shown.capabilities, shown.status.as_str()) {
            let mut holds = Vec::new();
            for name in names {
                let name = Capability::parse(name).map_err(|error| Refusal::Failed(error.to_string()))?;
                if self.may(id, &record, std::slice::from_ref(&name))?.is_ok() {
                    holds.push(name.to_string());
                }
            }
            shown.holds = Some(holds);
        }
        Ok(shown)
    }

    /// Whether a session may act in the next block, holding `needs`.
    fn may(&self, id: SessionId, record: &Session, needs: &[Capability]) -> Result<Result<(), SessionError>, Refusal> {
        let sessions = &self.desk.sessions;
        sessions.authorize(id, record, needs, self.registry, self.height.next()).map_err(unreadable)
    }

    /// A page of sessions.
    pub(crate) fn list(&self, wanted: &SessionsWanted) -> Result<api::SessionList, Refusal> {
        let (mut sessions, mut next) = (Vec::new(), None);
        let height = self.height.0;
        match &wanted.of {
            None => {
                if wanted.below.is_some() {
                    return Err(Refusal::Bad("below: names are below a root session, so say of which key".to_owned()));
                }
                let after = wanted
                    .after
                    .as_deref()
                    .map(|text| SessionId::from_hex(text).map_err(|error| Refusal::Bad(format!("after: {error}"))));
                let start = after.transpose()?.map_or(Bound::Unbounded, Bound::Excluded);
                for found in self.desk.sessions.records.range((start, Bound::Unbounded)) {
                    let (id, record) = found.map_err(unreadable)?;
                    if sessions.len() == wanted.limit {
                        next = sessions.last().map(|last: &api::Session| last.id.clone());
                        break;
                    }
                    sessions.push(self.show(id, &record)?);
                }
            }
            Some(key) => {
                let root = SessionId::root(&self.chain_id, key);
                for name in self.names(root, wanted)? {
                    let name = name?;
                    if sessions.len() == wanted.limit {
                        next = sessions.last().map(|last: &api::Session| last.name.clone());
                        break;
                    }
                    let holder = self.desk.sessions.names.get(&(root, name)).map_err(unreadable)?;
                    let record = holder.map(|id| Ok((id, self.desk.sessions.records.get(&id)?))).transpose();
                    if let Some((id, Some(record))) = record.map_err(unreadable)? {
                        sessions.push(self.show(id, &record)?);
                    }
                }
            }
        }
        Ok(api::SessionList { height, sessions, next })
    }

    /// The names below a root session that are wanted, in order: what is below a path stands together behind it.
    fn names(
        &self,
        root: SessionId,
        wanted: &SessionsWanted,
    ) -> Result<impl Iterator<Item = Result<Name, Refusal>> + '_, Refusal> {
        let text = |what: &str, text: &str| Name::new(text).map_err(|error| Refusal::Bad(format!("{what}: {error}")));
        let after = wanted.after.as_deref().map(|name| text("after", name)).transpose()?;
        let exact = wanted.below.as_deref().map(|name| text("below", name)).transpose()?;
        let prefix = wanted.below.as_deref().map_or_else(String::new, |below| format!("{below}/"));
        // No name is longer, so nothing can be below one that leaves no room.
        let from = Name::new(&prefix).ok();
        let later = |name: &Name| after.as_ref().is_none_or(|after| **name > **after);
        let exact = exact.filter(later).map(|name| {
            let held = self.desk.sessions.names.contains(&(root, name.clone())).map_err(unreadable);
            held.map(|held| held.then_some(name))
        });
        let start = match (from, after) {
            (Some(from), Some(after)) if *after >= *from => Some(Bound::Excluded((root, after))),
            (Some(from), _) => Some(Bound::Included((root, from))),
            (None, _) => None,
        };
        let below = start.map(|start| self.desk.sessions.names.range((start, Bound::Unbounded)));
        let below =
            below.into_iter().flatten().map(|found| found.map(|((of, name), _)| (of, name)).map_err(unreadable));
        let below = below.take_while(move |found| {
            found.as_ref().map_or(true, |(of, name)| *of == root && name.starts_with(prefix.as_str()))
        });
        Ok(exact.and_then(Result::transpose).into_iter().chain(below.map(|found| found.map(|(_, name)| name))))
    }

    fn show(&self, id: SessionId, record: &Session) -> Result<api::Session, Refusal> {
        let (status, because) = match self.may(id, record, &[])? {
            Ok(()) => ("open", None),
            Err(SessionError::Closed(id)) => ("closed", Some(id)),
            Err(SessionError::Expired(id)) => ("expired", Some(id)),
            // The state says what no operation can have written; nothing runs in it.
            Err(_) => ("broken", None),
        };
        let capabilities = match &record.capabilities {
            Capabilities::Root => None,
            Capabilities::Only(names) => Some(names.iter().map(ToString::to_string).collect()),
        };
        Ok(api::Session {
            id: id.to_string(),
            owner: record.owner.to_string(),
            parent: record.parent.map(|parent| parent.to_string()),
            name: record.name.to_string(),
            capabilities,
            holds: None,
            last_height: record.expires.map(|last| last.0),
            status: status.to_owned(),
            because: because.map(|id| id.to_string()),
            sequence: record.sequence,
            state_hash: record.state_hash.to_string(),
            notes: self.desk.notes.counts.get(&id).map_err(unreadable)?.unwrap_or(0),
        })
    }
}

type Name = Text<NAME_LEN_MAX>;

fn unreadable(stop: Stop) -> Refusal {
    match stop {
        Stop::Read(error) => error.into(),
        stop => Refusal::Failed(format!("sessions: {stop}")),
    }
}
