//! `keelstone config show|check|default`: what a node would run with, and whether it would start.

use crate::config::{Config, Row};
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::out::Ink;
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;

/// Show, check or print the configuration
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Every setting with its value and where the value came from
    Show,
    /// Whether the configuration is valid: exit code 0, or 2 with source, line and key
    Check,
    /// A configuration file with every default and its meaning
    Default,
}

/// A setting, and where its value came from.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    row: Row,
    origin: String,
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    let out = context.out;
    match options.action {
        Action::Show => {
            let (config, origins) = context.config()?;
            for row in config.rows() {
                let origin = origins.get(&row.key).map_or("default", String::as_str);
                let value = out.ink(Ink::Value, &row.value);
                out.say(format_args!("{} = {value}  {}", row.key, out.ink(Ink::Quiet, format_args!("# {origin}"))));
            }
            let shown = |row: Row| {
                let origin = origins.get(&row.key).map_or("default", String::as_str).to_owned();
                Shown { row, origin }
            };
            out.emit(&config.rows().into_iter().map(shown).collect::<Vec<_>>());
        }
        Action::Check => {
            let (config, _) = context.config()?;
            // A file as `init` writes it gives every setting, most of them as they would be without it.
            let (rows, defaults) = (config.rows(), Config::default().rows());
            let changed = rows.iter().zip(&defaults).filter(|(row, default)| row.value != default.value).count();
            let file = context.home.config();
            out.say(format_args!("{} valid, {changed} settings are not the default", file.display()));
            out.emit(&json!({ "valid": true, "changed": changed }));
        }
        Action::Default => {
            out.write(&if out.is_json() {
                format!("{}\n", json!(Config::default().rows()))
            } else {
                Config::default().to_toml()
            });
        }
    }
    Ok(Exit::Ok)
}
