//! Sessions: handing a part of what one may do to another key, or to a line of one's own, and taking it back.
//!
//! A session can only be made from one that exists and never holds more than it: what it holds is checked all the way
//! up each time it acts, so a delegation that promises too much is merely useless. Closing is for good.
//!
//! Rules: `spec/modules.md`, MODULE-6, and `spec/chain.md`, EXEC-8, EXEC-16 and EXEC-20.

use crate::keys;
use keelstone_codec::{BoundedSet, Height, StateHash, Text};
use keelstone_execution::{
    ANCESTORS_MAX, CAPABILITIES_MAX, Capabilities, Capability, Context, Denied, Draft, PublicKey, Session, SessionId,
    Sessions, Transition, View, denied, ensure,
};
use keelstone_macros::{event, transition};

/// A session was made.
#[event("sessions.delegated")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delegated {
    /// The new session.
    pub session: SessionId,
    /// The session it was made from.
    pub parent: SessionId,
    /// Whose it is.
    pub owner: PublicKey,
}

/// A session was closed.
#[event("sessions.closed")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// Which.
    pub session: SessionId,
}

/// Makes a session from the one this runs in. Its result is the new session's id.
#[transition("sessions.delegate/1", needs = "sessions.delegate")]
pub struct Delegate {
    /// Whose the new session is: the sender's own, or another key's.
    pub owner: PublicKey,
    /// What people call it.
    pub name: Text<64>,
    /// What it may do.
    pub capabilities: BoundedSet<Capability, CAPABILITIES_MAX>,
    /// The last height at which it may act.
    pub expires: Option<Height>,
    /// What its hash chain begins with.
    pub init: StateHash,
}

impl Transition<Sessions> for Delegate {
    type Output = SessionId;

    fn verify(&self, world: &View<Sessions>, cx: &Context) -> Result<(), Denied> {
        keys::check_key(&self.owner).map_err(|error| denied!("{error}"))?;
        ensure!(!self.capabilities.is_empty(), "a session may do something");
        // The new session is one level below this one, and all levels must fit when it acts.
        let (mut levels, mut next) = (1, Some(cx.session()));
        while let Some(id) = next {
            levels += 1;
            ensure!(levels <= ANCESTORS_MAX, "a session is delegated at most {ANCESTORS_MAX} times over");
            next = world.records.get(&id)?.and_then(|session| session.parent);
        }
        Ok(())
    }

    fn apply(&self, world: &mut Draft<Sessions>, cx: &mut Context) -> Result<SessionId, Denied> {
        let parent = cx.session();
        let id = SessionId::child(cx.chain_id(), &parent, cx.sequence());
        let capabilities = Capabilities::Only(self.capabilities.clone());
        let mut session = Session::open(cx.chain_id(), &id, self.owner, Some(parent), capabilities, &self.init);
        session.name = self.name.clone();
        session.expires = self.expires;
        world.records.insert(&id, &session)?;
        cx.emit(&Delegated { session: id, parent, owner: self.owner })?;
        Ok(id)
    }
}

/// Closes a session for good, and with it all that was delegated from it.
#[transition("sessions.close/1", needs = "sessions.delegate")]
pub struct Close {
    /// Which: the sender's own, or one that was delegated, over however many steps, from the sender's.
    pub session: SessionId,
}

impl Transition<Sessions> for Close {
    type Output = ();

    fn apply(&self, world: &mut Draft<Sessions>, cx: &mut Context) -> Result<(), Denied> {
        let unknown = |id: &SessionId| denied!("{id} does not exist");
        let mut session = world.records.get(&self.session)?.ok_or_else(|| unknown(&self.session))?;
        ensure!(session.parent.is_some(), "a root session cannot be closed: its key could do nothing ever again");
        ensure!(!session.closed, "{} is closed", self.session);
        let (mut owner, mut parent) = (session.owner, session.parent);
        for _ in 0..ANCESTORS_MAX {
            match parent {
                Some(id) if owner != cx.sender() => {
                    // A root session that has run nothing has no record, and an owner all the same: who signs for it.
                    let Some(above) = world.records.get(&id)? else { return Err(unknown(&id)) };
                    (owner, parent) = (above.owner, above.parent);
                }
                _ => break,
            }
        }
        ensure!(owner == cx.sender(), "{} is not yours to close", self.session);
        session.closed = true;
        world.records.insert(&self.session, &session)?;
        Ok(cx.emit(&Closed { session: self.session })?)
    }
}
