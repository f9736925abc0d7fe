//! The binary `keelstone`: the node with the built-in modules.
#![forbid(unsafe_code)]

use std::process::ExitCode;

/// Pages come and go by the thousand with each block, made by one thread and released by another; the system's
/// allocator had a third of the samples of a profile of commits (`docs/performance.md`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    keelstone_node::Application::new(keelstone_ledger::modules::standard()).main()
}
