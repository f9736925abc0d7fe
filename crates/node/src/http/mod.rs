//! The HTTP API: submit, query with proof, blocks, transactions, receipts, events, health and metrics.
//!
//! Every request is taken to come from an adversary: each has a bound on its head, body, time and what it may make
//! the node do, and whatever changes state is refused from pages of foreign origin. Routes and limits are listed in
//! `docs/http.md`; the machine-readable form is served at `/openapi.json`.

mod access;
mod error;
mod events;
mod limits;
mod parameters;
mod reload;
mod routes;
mod server;
mod stream;
mod taking;

pub(crate) use access::Access;
pub(crate) use events::Hub;
pub(crate) use limits::Limits;
pub(crate) use reload::Reload;
pub(crate) use routes::{Attached, Served, router};
pub(crate) use server::serve;
