//! The allocator of the binary, and the patience it is asked for.
//!
//! The one place of the project with unsafe code: mimalloc takes options from its environment or through C. It trusts mimalloc
//! to find an option at its number, which a test compares with the names in the environment.
#![expect(unsafe_code, reason = "an option is set by a function of C; the call says why it is sound")]

use libmimalloc_sys::{mi_option_set_default, mi_option_t};
use std::ffi::c_long;

/// Pages come and go by the thousand with each block, made by one thread and released by another; the system's
/// allocator had a third of the samples of a profile of commits (`docs/performance-steps.md`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc's header: milliseconds until memory that was let go of is given back to the system.
const PURGE_DELAY: mi_option_t = 15;
/// `mi_option_page_reclaim_on_free`: whether memory that another thread let go of is taken up at once.
const PAGE_RECLAIM_ON_FREE: mi_option_t = 35;

/// What a commit lets go of the next ones use again, within less than this. Given back after a second, as it is
/// otherwise, it had to be filled with zeros anew each time (`docs/performance-steps.md`, The allocator).
const PATIENCE_MS: c_long = 10_000;

/// Asks the allocator for patience, unless the environment asked for something else (`MIMALLOC_PURGE_DELAY`,
/// `MIMALLOC_PAGE_RECLAIM_ON_FREE`). To be called first, before there are other threads.
pub(crate) fn be_patient() {
    for (option, value) in [(PURGE_DELAY, PATIENCE_MS), (PAGE_RECLAIM_ON_FREE, 1)] {
        // SAFETY: The function checks the number of the option and stores one number in a table of mimalloc's, of any value. It does so without
        // a lock, and no other thread runs yet.
        unsafe { mi_option_set_default(option, value) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libmimalloc_sys::mi_option_get;
    use std::process::Command;

    const CHILD: &str = "KEELSTONE_TEST_ALLOCATOR";

    fn options() -> [c_long; 2] {
        // SAFETY: The function reads one number of a table of mimalloc's. The test that runs meanwhile is this one alone.
        [PURGE_DELAY, PAGE_RECLAIM_ON_FREE].map(|option| unsafe { mi_option_get(option) })
    }

    /// In a process of its own: mimalloc has no names for its options but those in the environment.
    #[test]
    fn patience_is_asked_for_unless_the_environment_asks_otherwise() {
        if let Ok(expected) = std::env::var(CHILD) {
            be_patient();
            assert_eq!(format!("{:?}", options()), expected);
            return;
        }
        let name = "allocator::tests::patience_is_asked_for_unless_the_environment_asks_otherwise";
        for (set, expected) in [
            (&[][..], "[10000, 1]"),
            (&[("MIMALLOC_PURGE_DELAY", "4321")], "[4321, 1]"),
            (&[("MIMALLOC_PAGE_RECLAIM_ON_FREE", "0")], "[10000, 0]"),
        ] {
            let mut child = Command::new(std::env::current_exe().unwrap());
            child.env_remove("MIMALLOC_PURGE_DELAY").env_remove("MIMALLOC_PAGE_RECLAIM_ON_FREE");
            child.args(["--exact", name]).env(CHILD, expected).envs(set.iter().copied());
            let out = child.output().unwrap();
            assert!(out.status.success(), "{expected}: {}", String::from_utf8_lossy(&out.stdout));
            assert!(String::from_utf8_lossy(&out.stdout).contains("1 passed"), "the test has another name");
        }
    }
}
