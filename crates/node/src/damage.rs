//! Damage as programs read it: what a check, a scrub and an event say of one problem.

use keelstone_store::StoreError;
use serde::Serialize;
use utoipa::ToSchema;

/// One thing that is wrong with what is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Damage {
    /// `damaged`: bytes of a file are not what was written. `lost`: a file is gone. `unreadable`: entries of the state
    /// cannot be read. `failed`: the machine could not read.
    pub(crate) kind: &'static str,
    /// The file, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) file: Option<String>,
    /// The byte in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) offset: Option<u64>,
    /// The namespace of the entries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<String>,
    /// The key, or what the first of them begin with, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<String>,
    /// How many entries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) entries: Option<u64>,
    /// All of it, for people.
    pub(crate) message: String,
}

impl Damage {
    /// What is to be said of a problem.
    pub(crate) fn of(problem: &StoreError) -> Self {
        let message = problem.to_string();
        let plain = |kind| Self {
            kind,
            file: None,
            offset: None,
            namespace: None,
            key: None,
            entries: None,
            message: message.clone(),
        };
        match problem {
            StoreError::Damaged { file, offset, .. } => {
                Self { file: Some(file.clone()), offset: Some(*offset), ..plain("damaged") }
            }
            StoreError::Lost { file, .. } => Self { file: Some(file.clone()), ..plain("lost") },
            StoreError::Unreadable { namespace, at, entries, .. } => Self {
                namespace: Some(namespace.to_string()),
                key: Some(hex::encode(at)),
                entries: Some(*entries),
                ..plain("unreadable")
            },
            problem if problem.is_damage() => plain("damaged"),
            StoreError::Io { file, .. } => Self { file: Some(file.clone()), ..plain("failed") },
            _ => plain("failed"),
        }
    }
}
