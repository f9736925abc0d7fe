//! How many files and sockets this process may have open at a time.
//!
//! A login's limit, 1,024 most often, is less than the connections that a configuration may allow and the store's files come to
//! together, and whoever opens connections must not be able to keep the store from its files. What the system allows a
//! process to ask for is a good deal more.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Takes as many descriptors as the system lets this process have. Without more it goes on with what it has.
pub(crate) fn take_all() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, ?current, "the number of open files stays limited");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn l06_all_descriptors_that_may_be_had_are_taken() {
        take_all();
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        assert_eq!(current, maximum);
    }
}
