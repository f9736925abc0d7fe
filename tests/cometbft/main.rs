//! Networks of real CometBFT nodes, each with the real program as its application.
//!
//! Every test runs a network of its own through `keelstone testnet`, in a directory of its own, on ports that were free:
//! eight processes and more, which mostly wait: as many networks run beside one another as there are tests at a time.
//! Without a CometBFT they say so and pass, but for a CI machine, where nothing may be left out. `cargo xtask test`
//! installs one if there is Go.

mod faults;
mod harness;
mod hostile;
mod light;
mod proxy;
mod sync;

/// The program that these networks run, in an empty environment.
fn program() -> std::process::Command {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_keelstone"));
    command.env_clear();
    command
}
