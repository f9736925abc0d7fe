//! The binary `keelstone`: the node with the built-in modules.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    keelstone_node::Application::new(keelstone_ledger::modules::standard()).main()
}
