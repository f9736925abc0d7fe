//! Where a mirror is, as people write it: a directory of this machine, or a place behind HTTP.

use super::HttpAddress;
use crate::authority;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where the files of a mirror are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On this machine.
    Directory(PathBuf),
    /// A server, and what stands before the names of files there: empty, or it begins with a slash and ends without.
    Http(HttpAddress, String),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected a directory or http://HOST:PORT/PATH, found {text:?}");
        let Some(rest) = text.strip_prefix("http://") else {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'.' | b'-');
            let has_scheme = text.split_once("://").is_some_and(|(scheme, _)| scheme.bytes().all(plain));
            // With a bracket begins a list where one place was to stand. Directories of such names can be had with `./` before.
            return if has_scheme || text.starts_with('[') { Err(wrong()) } else { Ok(Self::Directory(text.into())) };
        };
        let (server, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let path = path.trim_end_matches('/');
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'.' | b'-' | b'_' | b'~' | b'%');
        let port = if authority::split(server).is_some_and(|(_, port)| port.is_none()) { ":80" } else { "" };
        let address = HttpAddress::parse(&format!("http://{server}{port}"));
        match address.ok().filter(|_| path.bytes().all(plain)) {
            Some(address) => Ok(Self::Http(address, path.to_owned())),
            None => Err(wrong()),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::Http(address, path) => write!(f, "{address}{path}"),
        }
    }
}
