//! Consistency: whether the state here is the one others have and consensus certified, and where it parts if it is not.
//!
//! | to | see |
//! | --- | --- |
//! | compare a version with peers and with its own bytes | [`compare()`], [`Report`] |
//! | decide when, and what follows from it | [`Checker`] |
//! | find the first key in which two states differ | [`first_difference`] |
//! | find the first height at which two histories differ | [`first_height`] |
//! | have again from peers what is lost here | [`Asked`] |
//! | see that repairs do not go on for ever | [`Breaker`] |
//!
//! A root that is certified decides; how many peers say something never does. What a peer says of a height is a claim,
//! what it shows of an entry is proven under the root it claims, and both end up in the report beside its name.
//! Nothing here writes, and nothing here ever asks without an end: every search has a bound on its questions.
//!
//! Rules: `spec/consistency.md`, CHECK-1 to CHECK-10.

mod breaker;
mod checker;
mod compare;
mod cursor;
mod diverge;
mod supply;
#[cfg(test)]
mod tests;

pub use breaker::{Breaker, REPAIR_WINDOW_MS, REPAIRS_MAX, TRIES_MAX, Tripped, may_try_again};
pub use checker::{Checker, Due, Effect, Settings};
pub use compare::{
    Certified, Discrepancy, OTHERS_MAX, Opinion, Report, Said, Sample, Verdict, compare, heights, sample,
};
pub use cursor::{CURSOR_BYTES_MAX, Cursor};
pub use diverge::{DivergeError, Divergence, Parting, QUESTIONS_MAX, first_difference, first_height};

pub use supply::{Asked, Gave};

use crate::peers::{Request, Response};

/// Somebody of the same chain who answers questions. What is answered is never believed: see who asks.
pub trait Ask {
    /// Asks one question and waits for the answer, as long as whoever implements this is willing to.
    ///
    /// # Errors
    /// [`Silence`] if there was no answer.
    fn ask(&mut self, request: &Request) -> Result<Response, Silence>;
}

/// A peer gave no answer, or none that can be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Silence(pub String);
