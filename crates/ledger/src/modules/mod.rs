//! What a chain can do out of the box: agents, their society, their memes, Xian's contracts, and sessions.
//!
//! Every function comes through the one registry that an application's own come through, with the same typed
//! collections and the same rules; nothing here has a back door into the engine. A chain that wants other functions
//! builds another registry.
//!
//! Functions, capabilities, events: `spec/ledger.md`, MODULE-1 to MODULE-6.

pub mod agents;
pub mod contracts;
pub mod memes;
pub mod sessions;
pub mod social;

use keelstone_execution::{Capability, Registry, Sessions};
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
pub const RESERVED: [Capability; 1] = [contracts::PATCH];

/// Registers all built-in functions and their events.
// spec: MODULE-1, MODULE-5
pub fn register(registry: &mut Registry) -> &mut Registry {
    for capability in RESERVED {
        registry.reserve(capability);
    }
    registry
        .register::<Society, agents::Register>()
        .register::<Society, agents::Update>()
        .register::<Society, agents::SetStatus>()
        .event::<agents::Registered>()
        .event::<agents::StatusChanged>()
        .register::<Society, social::FormAlliance>()
        .register::<Society, social::JoinAlliance>()
        .register::<Society, social::LeaveAlliance>()
        .register::<Society, social::SetRelationship>()
        .event::<social::AllianceFormed>()
        .event::<social::AllianceJoined>()
        .event::<social::AllianceLeft>()
        .event::<social::RelationshipChanged>()
        .register::<Society, memes::Post>()
        .register::<Society, memes::React>()
        .event::<memes::Posted>()
        .event::<memes::Reacted>()
        .register::<contracts::Contracts, contracts::Transfer>()
        .register::<contracts::Contracts, contracts::Approve>()
        .register::<contracts::Contracts, contracts::TransferFrom>()
        .register::<contracts::Contracts, contracts::Patch>()
        .event::<contracts::Transferred>()
        .event::<contracts::Approved>()
        .event::<contracts::Patched>()
        // Records of sessions are the engine's, which is why these two are registered as part of it.
        .register_system::<Sessions, sessions::Delegate>()
        .register_system::<Sessions, sessions::Close>()
        .event::<sessions::Delegated>()
        .event::<sessions::Closed>()
}

/// A registry of the built-in functions alone.
#[must_use]
pub fn standard() -> Registry {
    let mut registry = Registry::new();
    register(&mut registry);
    registry
}
