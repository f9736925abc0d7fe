//! The binary `keelstone`: the node with the built-in modules.
#![deny(unsafe_code)]

mod allocator;

use std::process::ExitCode;

fn main() -> ExitCode {
    allocator::be_patient();
    keelstone_node::Application::new(keelstone_ledger::modules::standard()).main()
}
