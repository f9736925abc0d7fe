//! What it takes to kill a process at a system call: for the crash loop, and for the tests of the program.
#![forbid(unsafe_code)]

pub mod life;
pub mod strace;
