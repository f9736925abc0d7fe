//! `keelstone completions SHELL`: a completion script on standard output.

use crate::context::Context;
use crate::exit::{Exit, Failure};
use clap::Args;
use clap_complete::Shell;

/// Print a completion script for a shell
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The shell
    shell: Shell,
}

pub(crate) fn run(options: Options, mut grammar: clap::Command, context: &Context<'_>) -> Result<Exit, Failure> {
    let name = grammar.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut grammar, name, &mut script);
    context.out.write(&String::from_utf8_lossy(&script));
    Ok(Exit::Ok)
}
