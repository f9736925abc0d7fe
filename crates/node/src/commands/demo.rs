//! Placeholder.
use crate::cli::Context;
use crate::exit::{Exit, Failure};
use clap::Args;

/// Show what a chain does
#[derive(Debug, Args)]
pub(crate) struct Options {}

pub(crate) fn run(_: Options, _: &Context<'_>) -> Result<Exit, Failure> {
    Ok(Exit::Ok)
}
