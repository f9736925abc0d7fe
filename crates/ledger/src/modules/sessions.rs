//! Sessions: handing a part of what one may do to another key, or to a line of one's own, and taking it back.
//!
//! A session can only be made from one that exists and never holds more than it: what it holds is checked all the way
//! up each time it acts, so a delegation that promises too much is merely useless. Closing is for good. One that is past
//! its last height acts no more, and anybody may close it: nobody has to be found for its name to be of use again.
//!
//! Sessions may have names, which are paths such as `defi/lending/alice`: one below another begins with its name. Each may
//! keep notes. What a session keeps can be read by functions that run in it or in a session above it, never by those of
//! one below or beside it. This orders what code is told, not what people can see: state has no secrets.
//!
//! Rules: `spec/modules.md`, MODULE-6 and MODULE-8 to MODULE-10, and `spec/chain.md`, EXEC-8, EXEC-16 and EXEC-20.

use crate::keys;
use keelstone_codec::{Blob, BoundedSet, Height, StateHash, Text};
use keelstone_execution::{
    ANCESTORS_MAX, CAPABILITIES_MAX, Capabilities, Capability, Context, Denied, Draft, Map, PublicKey, Registry,
    Session, SessionId, Sessions, Stop, Transition, View, denied, ensure,
};
use keelstone_macros::{World, event, namespace, transition};

/// Longest name of a session in bytes.
pub const NAME_LEN_MAX: usize = 64;
/// Most notes of one session.
pub const NOTES_MAX: u32 = 1_024;
/// Longest note in bytes.
pub const NOTE_BYTES_MAX: usize = 4_096;

/// What a session costs for each capability it is given: a name that is read, kept in order, copied and written.
const DELEGATED_GAS: u64 = 1_500;

/// The namespace `notes`: what sessions keep.
#[namespace("notes")]
pub struct Notes {
    /// Notes by session and key.
    pub notes: Map<(SessionId, Text<64>), Blob<NOTE_BYTES_MAX>>,
    /// How many a session keeps.
    pub counts: Map<SessionId, u32>,
}

/// What notes are kept and read by.
#[derive(World)]
pub struct Desk {
    /// Who stands above whom.
    pub sessions: Sessions,
    /// What they keep.
    pub notes: Notes,
}

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
    /// What people call it: nothing, or a path that begins with the name of the session this runs in, if that has one.
    pub name: Text<NAME_LEN_MAX>,
    /// What it may do.
    pub capabilities: BoundedSet<Capability, CAPABILITIES_MAX>,
    /// The last height at which it may act.
    pub expires: Option<Height>,
    /// What its hash chain begins with.
    pub init: StateHash,
}

/// Registers the functions of this module and their events, for a chain that takes no more of the built-in ones.
pub fn register(registry: &mut Registry) -> &mut Registry {
    // Records of sessions are the engine's, which is why these are registered as part of it.
    registry
        .register_system::<Sessions, Delegate>()
        .register_system::<Sessions, Close>()
        .register_system::<Sessions, Expire>()
        .register_system::<Desk, Note>()
        .register_system::<Desk, ReadNote>()
        .event::<Delegated>()
        .event::<Closed>()
}

impl Transition<Sessions> for Delegate {
    type Output = SessionId;

    fn verify(&self, world: &View<Sessions>, cx: &Context) -> Result<(), Denied> {
        cx.step(DELEGATED_GAS.saturating_mul(self.capabilities.len() as u64))?;
        keys::check_key(&self.owner).map_err(|error| denied!("{error}"))?;
        ensure!(!self.capabilities.is_empty(), "a session may do something");
        let root = self.check_depth(world, cx.session())?;
        self.check_name(world, cx.session(), root)
    }

    fn apply(&self, world: &mut Draft<Sessions>, cx: &mut Context) -> Result<SessionId, Denied> {
        let parent = cx.session();
        let id = SessionId::child(cx.chain_id(), &parent, cx.sequence());
        let capabilities = Capabilities::Only(self.capabilities.clone());
        let mut session = Session::open(cx.chain_id(), &id, self.owner, Some(parent), capabilities, &self.init);
        session.name = self.name.clone();
        session.expires = self.expires;
        world.records.insert(&id, &session)?;
        if !self.name.is_empty() {
            let root = self.check_depth(world, parent)?;
            world.names.insert(&(root, self.name.clone()), &id)?;
        }
        cx.emit(&Delegated { session: id, parent, owner: self.owner })?;
        Ok(id)
    }
}

impl Delegate {
    /// The root session above `parent`. The new session is one level below that, and all levels must fit when it acts.
    fn check_depth(&self, world: &Sessions, parent: SessionId) -> Result<SessionId, Denied> {
        let (mut levels, mut root, mut next) = (1, parent, Some(parent));
        while let Some(id) = next {
            levels += 1;
            ensure!(levels <= ANCESTORS_MAX, "a session is delegated at most {ANCESTORS_MAX} times over");
            (root, next) = (id, world.record(&id)?.and_then(|session| session.parent));
        }
        Ok(root)
    }

    // spec: MODULE-8
    fn check_name(&self, world: &Sessions, parent: SessionId, root: SessionId) -> Result<(), Denied> {
        let name: &str = &self.name;
        if name.is_empty() {
            return Ok(());
        }
        let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.');
        let is_path = name.split('/').all(|segment| !segment.is_empty() && segment.bytes().all(plain));
        ensure!(is_path, "a name is made of a-z, 0-9, '_', '-' and '.', in segments between '/'");
        let above = world.record(&parent)?.map(|session| session.name).unwrap_or_default();
        let below = above.is_empty() || name.strip_prefix(&*above).is_some_and(|rest| rest.starts_with('/'));
        ensure!(below, "a session below {:?} has a name that begins so", &*above);
        if let Some(holder) = world.names.get(&(root, self.name.clone()))? {
            ensure!(!is_open(world, holder)?, "session {holder} has this name and is not closed");
        }
        Ok(())
    }
}

/// Whether a session and all above it are not closed. One that may act no longer by its height is open until somebody has
/// it [`Expire`]: a delegation that asked for the height could not be foreseen (spec: EXEC-4).
fn is_open(world: &Sessions, id: SessionId) -> Result<bool, Stop> {
    let mut next = Some(id);
    while let Some(session) = next.map(|id| world.record(&id)).transpose()?.flatten() {
        if session.closed {
            return Ok(false);
        }
        next = session.parent;
    }
    Ok(true)
}

/// Keeps something under a key of the session this runs in, or forgets what was kept there.
#[transition("sessions.note/1", needs = "sessions.notes")]
pub struct Note {
    /// Under which key.
    pub key: Text<64>,
    /// What; nothing to forget.
    pub value: Option<Blob<NOTE_BYTES_MAX>>,
}

impl Transition<Desk> for Note {
    type Output = ();

    // spec: MODULE-9
    fn apply(&self, desk: &mut Draft<Desk>, cx: &mut Context) -> Result<(), Denied> {
        let session = cx.session();
        let at = (session, self.key.clone());
        let (had, count) = (desk.notes.notes.contains(&at)?, desk.notes.counts.get(&session)?.unwrap_or(0));
        let count = match (&self.value, had) {
            (Some(value), _) => {
                ensure!(had || count < NOTES_MAX, "a session keeps at most {NOTES_MAX} notes");
                desk.notes.notes.insert(&at, value)?;
                if had { count } else { count.saturating_add(1) }
            }
            (None, true) => {
                desk.notes.notes.remove(&at)?;
                count.saturating_sub(1)
            }
            (None, false) => return Err(denied!("nothing is kept under this key")),
        };
        match count {
            0 => drop(desk.notes.counts.remove(&session)?),
            _ => desk.notes.counts.insert(&session, &count)?,
        }
        Ok(())
    }
}

/// Reads what a session keeps: the one this runs in, or one that was delegated from it, over however many steps. The
/// result is what is kept there, or nothing.
#[transition("sessions.read/1", needs = "sessions.notes")]
pub struct ReadNote {
    /// Whose note.
    pub session: SessionId,
    /// Under which key.
    pub key: Text<64>,
}

impl Transition<Desk> for ReadNote {
    type Output = Option<Blob<NOTE_BYTES_MAX>>;

    // spec: MODULE-9
    fn apply(&self, desk: &mut Draft<Desk>, cx: &mut Context) -> Result<Self::Output, Denied> {
        let reaches = desk.sessions.reaches(cx.session(), self.session)?;
        ensure!(reaches, "{} is neither this session nor below it", self.session);
        Ok(desk.notes.notes.get(&(self.session, self.key.clone()))?)
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
        let mut session = world.record(&self.session)?.ok_or_else(|| unknown(&self.session))?;
        ensure!(session.parent.is_some(), "a root session cannot be closed: its key could do nothing ever again");
        ensure!(!session.closed, "{} is closed", self.session);
        let (mut owner, mut parent) = (session.owner, session.parent);
        for _ in 0..ANCESTORS_MAX {
            match parent {
                Some(id) if owner != cx.sender() => {
                    // A root session that has run nothing has no record, and an owner all the same: who signs for it.
                    let Some(above) = world.record(&id)? else { return Err(unknown(&id)) };
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

/// Closes a session that is past its last height, with all that was delegated from it. It acts no more as it is; once it is
/// closed it gives its name up. Anybody may.
#[transition("sessions.expire/1", needs = "sessions.delegate", context = height)]
pub struct Expire {
    /// Which.
    pub session: SessionId,
}

impl Transition<Sessions> for Expire {
    type Output = ();

    // spec: MODULE-10
    fn apply(&self, world: &mut Draft<Sessions>, cx: &mut Context) -> Result<(), Denied> {
        let found = world.record(&self.session)?;
        let mut session = found.ok_or_else(|| denied!("{} does not exist", self.session))?;
        ensure!(!session.closed, "{} is closed", self.session);
        let Some(last) = session.expires else {
            return Err(denied!("{} has no last height", self.session));
        };
        ensure!(cx.height()? > last, "{} may act until {last}", self.session);
        session.closed = true;
        world.records.insert(&self.session, &session)?;
        Ok(cx.emit(&Closed { session: self.session })?)
    }
}
