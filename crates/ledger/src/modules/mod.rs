//! What a chain can do out of the box: agents, their society, their memes, rules and conflicts, Xian's contracts, and
//! sessions.
//!
//! Every function comes through the one registry that an application's own come through, with the same typed
//! collections and the same rules; nothing here has a back door into the engine. A chain that wants other functions
//! builds another registry, into which it may take [`sessions::register`], [`validators::register`] and
//! [`limits::register`] alone.
//!
//! Functions, capabilities, events: `spec/modules.md`, MODULE-1 to MODULE-12. For those who use it: `docs/world.md`.

pub mod agents;
pub mod beginning;
pub mod conflict;
pub mod contracts;
pub mod index;
pub mod limits;
pub mod memes;
pub mod rules;
pub mod sessions;
pub mod social;
pub mod validators;

use keelstone_execution::{Capability, Registry};
use keelstone_macros::World;

/// What agents, their society and their memes see of the state.
#[derive(World)]
pub struct Society {
    /// Who there is.
    pub agents: agents::Agents,
    /// What they are to one another.
    pub social: social::Social,
    /// What they say.
    pub memes: memes::Memes,
}

/// What must be granted to a key before its root session holds it: everything else a root session holds by itself.
pub const RESERVED: [Capability; 4] =
    [agents::GRANT_STAKE, contracts::PATCH, limits::SET_LIMITS, validators::SET_VALIDATOR];

/// Registers all built-in functions and their events.
// spec: MODULE-1, MODULE-3, MODULE-5, MODULE-11
pub fn register(registry: &mut Registry) -> &mut Registry {
    for capability in RESERVED {
        registry.reserve(capability);
    }
    registry
        .register::<Society, agents::Register>()
        .register::<Society, agents::Update>()
        .register::<Society, agents::SetMood>()
        .register::<Society, agents::SetStatus>()
        .register::<Society, agents::OfferKey>()
        .register::<Society, agents::TakeKey>()
        .register::<Society, agents::GiveStake>()
        .register::<Society, agents::GrantStake>()
        .event::<agents::Registered>()
        .event::<agents::StatusChanged>()
        .event::<agents::KeyChanged>()
        .event::<agents::StakeGiven>()
        .register::<Society, social::ProposeAlliance>()
        .register::<Society, social::JoinAlliance>()
        .register::<Society, social::LeaveAlliance>()
        .register::<Society, social::BetrayAlliance>()
        .register::<Society, social::DissolveAlliance>()
        .register::<Society, social::ExpireAlliance>()
        .register::<Society, social::SetRelationship>()
        .register::<Society, social::ForgetRelationship>()
        .register::<Society, social::TellDrama>()
        .register::<Society, social::OfferBribe>()
        .register::<Society, social::AcceptBribe>()
        .register::<Society, social::RefuseBribe>()
        .register::<Society, social::WithdrawBribe>()
        .event::<social::AllianceProposed>()
        .event::<social::AllianceJoined>()
        .event::<social::AllianceLeft>()
        .event::<social::AllianceBetrayed>()
        .event::<social::AllianceEnded>()
        .event::<social::RelationshipChanged>()
        .event::<social::BribeOffered>()
        .event::<social::BribeSettled>()
        .event::<social::DramaHappened>()
        .register::<Society, memes::Post>()
        .register::<Society, memes::React>()
        .register::<Society, memes::Remove>()
        .event::<memes::Posted>()
        .event::<memes::Reacted>()
        .event::<memes::Removed>()
        .register::<rules::Assembly, rules::Propose>()
        .register::<rules::Assembly, rules::Vote>()
        .register::<rules::Assembly, rules::Close>()
        .event::<rules::Proposed>()
        .event::<rules::Voted>()
        .event::<rules::Closed>()
        .event::<rules::Repealed>()
        .register::<conflict::Court, conflict::Open>()
        .register::<conflict::Court, conflict::Opine>()
        .register::<conflict::Court, conflict::Resolve>()
        .event::<conflict::Opened>()
        .event::<conflict::Opined>()
        .event::<conflict::Resolved>()
        .register::<contracts::Contracts, contracts::Transfer>()
        .register::<contracts::Contracts, contracts::Approve>()
        .register::<contracts::Contracts, contracts::TransferFrom>()
        .register::<contracts::Contracts, contracts::Patch>()
        .event::<contracts::Transferred>()
        .event::<contracts::Approved>()
        .event::<contracts::Patched>();
    limits::register(validators::register(sessions::register(registry)))
}

/// A registry of the built-in functions alone.
#[must_use]
pub fn standard() -> Registry {
    let mut registry = Registry::new();
    register(&mut registry);
    registry
}
