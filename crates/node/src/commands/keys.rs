//! `keelstone keys new|show|list|import|export`: the secret keys in this home directory.

use crate::cli::Context;
use crate::exit::{Exit, Failure};
use crate::keyfile::{self, KeyDir};
use clap::{Args, Subcommand};
use keelstone_ledger::SecretKey;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Make, show, import and export keys
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a new key from the system's randomness
    New {
        /// Its name
        name: String,
    },
    /// Show the public half of a key
    Show {
        /// Its name
        name: String,
    },
    /// List all keys
    List,
    /// Take a key file over under a name
    Import {
        /// Its name here
        name: String,
        /// The key file, readable by its owner only
        file: PathBuf,
    },
    /// Write a key, with its secret, to a new file readable by its owner only
    Export {
        /// Its name
        name: String,
        /// The file to write; it must not exist
        file: PathBuf,
    },
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    let keys = KeyDir::new(context.home.path());
    match options.action {
        Action::New { name } => {
            let key = SecretKey::generate().map_err(|error| Failure::io("no randomness for a new key", &error))?;
            let path = keys.save(&name, &key)?;
            tell(context, &name, &key, Some(&path));
        }
        Action::Show { name } => tell(context, &name, &keys.load(&name)?, None),
        Action::List => {
            let mut rows = Vec::new();
            for name in keys.names()? {
                let public = keys.load(&name)?.public();
                context.out.row(&name, public);
                rows.push(json!({ "name": name, "public": public }));
            }
            if rows.is_empty() {
                context.out.say("no keys here yet: keelstone keys new NAME makes one");
            }
            context.out.emit(&rows);
        }
        Action::Import { name, file } => {
            let key = keyfile::load(&file)?;
            let path = keys.save(&name, &key)?;
            tell(context, &name, &key, Some(&path));
        }
        Action::Export { name, file } => {
            let key = keys.load(&name)?;
            if file.exists() {
                return Err(Failure::usage(format!("{} exists already", file.display())));
            }
            keyfile::write(&file, &key)
                .map_err(|error| Failure::io(format_args!("could not write {}", file.display()), &error))?;
            tell(context, &name, &key, Some(&file));
        }
    }
    Ok(Exit::Ok)
}

fn tell(context: &Context<'_>, name: &str, key: &SecretKey, file: Option<&Path>) {
    let out = context.out;
    out.row("name", name);
    out.row("public", key.public());
    if let Some(file) = file {
        out.row("file", file.display());
    }
    out.emit(&json!({ "name": name, "public": key.public(), "file": file }));
}
