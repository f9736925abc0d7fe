//! `keelstone token new|list|remove`: tokens for the HTTP API of this home's node.

use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::tokens::{self, Role};
use clap::{Args, Subcommand};
use serde_json::json;

/// Make, list and remove tokens for the HTTP API
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a token; it is shown now and never again
    New {
        /// What to call it
        name: String,
        /// What its holder may do
        #[arg(long, default_value = "write")]
        role: Role,
    },
    /// List all tokens by name
    List,
    /// Forget a token; a node that runs here is told at once
    Remove {
        /// Its name
        name: String,
    },
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    let out = context.out;
    match options.action {
        Action::New { name, role } => {
            context.home.check_chain()?;
            let token = tokens::create(&context.home, &name, role)?;
            out.say(token.as_str());
            // It is shown now or never: that the node has not heard of it is said beside it.
            let (told, warning) = match tell(context) {
                Ok(told) => (told, None),
                Err(failure) => (false, Some(format!("the node was not told: {}", failure.message))),
            };
            out.warn(warning.as_slice());
            let mut shown = json!({ "name": name, "role": role, "token": token.as_str(), "told": told });
            if let Some(warning) = warning {
                shown["warning"] = warning.into();
            }
            out.emit(&shown);
        }
        Action::List => {
            let tokens = tokens::load(&context.home)?;
            for token in &tokens {
                out.row(&token.name, token.role);
            }
            let shown = tokens.iter().map(|token| json!({ "name": token.name, "role": token.role }));
            out.emit(&shown.collect::<Vec<_>>());
        }
        Action::Remove { name } => {
            tokens::remove(&context.home, &name)?;
            let told = tell(context)?;
            out.row("removed", &name);
            out.emit(&json!({ "removed": name, "told": told }));
        }
    }
    Ok(Exit::Ok)
}

/// Has the node that runs here, if one does, read its tokens again. Says whether one did.
fn tell(context: &Context<'_>) -> Result<bool, Failure> {
    let Some(node) = context.node() else { return Ok(false) };
    node.reload().map_err(|refusal| {
        Failure::from(refusal).hint("the file is written; a node takes it when it is started again")
    })?;
    Ok(true)
}
