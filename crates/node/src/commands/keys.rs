//! `keelstone keys new|show|list|passwd|import|export`: the secret keys in this home directory.

use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::keyfile::{self, Costs, KeyDir, Stored};
use crate::passphrase::Source;
use clap::{Args, Subcommand};
use keelstone_ledger::SecretKey;
use serde_json::json;
use std::path::{Path, PathBuf};

/// The variable that holds the new passphrase of a key.
const NEW_PASSPHRASE_ENV: &str = "KEELSTONE_NEW_PASSPHRASE";

/// Make, show, encrypt, import and export keys
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
        /// Encrypt it under the passphrase that is given, or asked for
        #[arg(long)]
        encrypt: bool,
    },
    /// Show the public half of a key; it takes no passphrase
    Show {
        /// Its name
        name: String,
    },
    /// List all keys
    List,
    /// Give a key another passphrase, or its first
    Passwd {
        /// Its name
        name: String,
        /// The file with the new passphrase, readable by its owner only; KEELSTONE_NEW_PASSPHRASE holds it itself
        #[arg(long, value_name = "FILE", conflicts_with = "decrypt")]
        new_passphrase_file: Option<PathBuf>,
        /// An open file descriptor to read the new passphrase from
        #[arg(long, value_name = "N", conflicts_with_all = ["decrypt", "new_passphrase_file"])]
        new_passphrase_fd: Option<u32>,
        /// Keep it in the clear from now on
        #[arg(long)]
        decrypt: bool,
    },
    /// Take a key file over under a name, as it is
    Import {
        /// Its name here
        name: String,
        /// The key file, readable by its owner only
        file: PathBuf,
    },
    /// Write a key, with its secret and encrypted if it is here, to a new file readable by its owner only
    Export {
        /// Its name
        name: String,
        /// The file to write; it must not exist
        file: PathBuf,
    },
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    let keys = context.keys();
    match options.action {
        Action::New { name, encrypt } => {
            if keys.path(&name)?.exists() {
                // Before anybody is asked for a passphrase.
                return Err(Failure::usage(format!("there is a key {name} already; keys are never overwritten")));
            }
            let key = SecretKey::generate().map_err(|error| Failure::io("no randomness for a new key", &error))?;
            let stored = match encrypt {
                false => Stored::plain(&key),
                true => {
                    let passphrase = keys.unlock().new_passphrase(&format!("the key {name}"))?;
                    Stored::sealed(&key, &passphrase, Costs::NOW)?
                }
            };
            let path = keys.add(&name, &stored)?;
            tell(context, &name, &stored, Some(&path));
        }
        Action::Show { name } => tell(context, &name, &keys.stored(&name)?, None),
        Action::List => list(&keys, context)?,
        Action::Passwd { name, new_passphrase_file, new_passphrase_fd, decrypt } => {
            let key = keys.load(&name)?;
            let stored = match decrypt {
                true => Stored::plain(&key),
                false => {
                    let new = Source::given(new_passphrase_file.as_deref(), new_passphrase_fd, NEW_PASSPHRASE_ENV);
                    let passphrase = new.new_passphrase(&format!("the key {name}"))?;
                    Stored::sealed(&key, &passphrase, Costs::NOW)?
                }
            };
            let path = keys.rewrite(&name, &stored)?;
            tell(context, &name, &stored, Some(&path));
        }
        Action::Import { name, file } => {
            let stored = keyfile::read(&file)?;
            let path = keys.add(&name, &stored)?;
            tell(context, &name, &stored, Some(&path));
        }
        Action::Export { name, file } => {
            let stored = keys.stored(&name)?;
            if file.exists() {
                return Err(Failure::usage(format!("{} exists already", file.display())));
            }
            keyfile::write(&file, &stored)
                .map_err(|error| Failure::io(format_args!("could not write {}", file.display()), &error))?;
            tell(context, &name, &stored, Some(&file));
        }
    }
    Ok(Exit::Ok)
}

fn list(keys: &KeyDir, context: &Context<'_>) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for name in keys.names()? {
        let stored = keys.stored(&name)?;
        let encrypted = if stored.is_encrypted() { " encrypted" } else { "" };
        context.out.row(&name, format_args!("{}{encrypted}", stored.public()));
        rows.push(json!({ "name": name, "public": stored.public(), "encrypted": stored.is_encrypted() }));
    }
    if rows.is_empty() {
        context.out.say(context.out.called("no keys here yet: keelstone keys new NAME makes one"));
    }
    context.out.emit(&rows);
    Ok(())
}

fn tell(context: &Context<'_>, name: &str, stored: &Stored, file: Option<&Path>) {
    let (out, public, encrypted) = (context.out, stored.public(), stored.is_encrypted());
    out.row("name", name);
    out.row("public", public);
    out.row("encrypted", if encrypted { "yes" } else { "no" });
    if let Some(file) = file {
        out.row("file", file.display());
    }
    out.emit(&json!({ "name": name, "public": public, "encrypted": encrypted, "file": file }));
}
