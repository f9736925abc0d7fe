//! Mirrors as sources of a state: a directory of this machine, or files behind HTTP.
//!
//! What they hold is read by name, each file no longer than it may be, and answers like a peer; it is believed as little.

use super::{AskError, MirrorSource};
use crate::client::{Ask, exchange};
use crate::config::Place;
use crate::exit::Failure;
use keelstone_store::files::{Directory, Files as _};
use keelstone_sync::mirror::{Mirror, MirrorError, Shelf};
use keelstone_sync::peers::{Request, Response};
use keelstone_tree::Hasher;
use std::fmt;
use std::io;
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

/// Bytes that a server may put before a file.
const HEAD_BYTES_MAX: u64 = 16 << 10;

/// A place, and how long reading a file there may take without a byte.
pub(crate) struct Reach {
    place: Place,
    timeout: Duration,
}

impl Reach {
    /// The files of a directory of this machine.
    pub(crate) fn directory(path: PathBuf) -> Self {
        Self { place: Place::Directory(path), timeout: Duration::ZERO }
    }
}

impl Shelf for Reach {
    type Error = io::Error;

    fn read(&self, file: &str, bytes_max: u64) -> io::Result<Vec<u8>> {
        let too_long = || io::Error::new(io::ErrorKind::InvalidData, format!("longer than {bytes_max} bytes"));
        match &self.place {
            Place::Directory(path) => {
                let file = Directory::to_read(path)?.open(file)?;
                let len = usize::try_from(file.len()?).ok().filter(|len| *len as u64 <= bytes_max);
                let mut bytes = vec![0; len.ok_or_else(too_long)?];
                file.read_at(0, &mut bytes)?;
                Ok(bytes)
            }
            Place::Http(address, path) => {
                let stream = TcpStream::connect_timeout(&address.resolve()?, self.timeout)?;
                let (host, path) = (address.authority().to_string(), format!("{path}/{file}"));
                let ask = Ask { host: &host, path: &path, body: None, token: None };
                let answer = exchange(stream, self.timeout, &ask, bytes_max.saturating_add(HEAD_BYTES_MAX))?;
                match answer.status {
                    200 if answer.body.len() as u64 > bytes_max => Err(too_long()),
                    200 => Ok(answer.body),
                    404 => Err(io::ErrorKind::NotFound.into()),
                    other => Err(io::Error::other(format!("the server answers {other}"))),
                }
            }
        }
    }
}

/// A mirror that was opened.
pub(crate) struct Opened<H, S = Reach> {
    name: String,
    shelf: S,
    mirror: Mirror<H>,
}

impl<H: Hasher> Opened<H> {
    /// Reads what a mirror has: two small files.
    pub(crate) fn open(place: Place, timeout: Duration) -> Result<Self, Failure> {
        let name = place.to_string();
        if let Place::Directory(path) = &place
            && !path.is_dir()
        {
            return Err(Failure::usage(format!("there is no directory {name}")));
        }
        let shelf = Reach { place, timeout };
        let mirror = Mirror::open(&shelf).map_err(|error| Failure::error(format!("{name}: {error}")))?;
        Ok(Self { name, shelf, mirror })
    }
}

impl<H: Hasher, S> Opened<H, S> {
    /// A mirror whose files are somewhere else still.
    pub(crate) fn over(name: String, shelf: S, mirror: Mirror<H>) -> Self {
        Self { name, shelf, mirror }
    }

    /// What it has, as it says.
    pub(crate) fn mirror(&self) -> &Mirror<H> {
        &self.mirror
    }
}

impl<H: Hasher, S: Shelf<Error: fmt::Display> + Send + Sync> MirrorSource for Opened<H, S> {
    fn name(&self) -> &str {
        &self.name
    }

    fn ask(&self, request: &Request) -> Result<Response, AskError> {
        self.mirror.answer(&self.shelf, request).map_err(|error| match error {
            MirrorError::Read { .. } | MirrorError::Cut { .. } => AskError::Failed(error.to_string()),
            MirrorError::Damaged { .. } => AskError::Misbehaved(error.to_string()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_place_is_a_directory_or_files_behind_http() {
        let read = |text: &str| text.parse::<Place>().map(|place| place.to_string());
        assert_eq!(read("some/where"), Ok("some/where".to_owned()));
        assert_eq!(read("http://host:81/a/b/"), Ok("http://host:81/a/b".to_owned()));
        assert_eq!(read("http://host"), Ok("http://host:80".to_owned()));
        assert_eq!(read("http://[::1]/a"), Ok("http://[::1]:80/a".to_owned()));
        for text in ["http://", "http://host:0/", "http://host:1/a b", "http://host:1/a\r\nb", "http://h:1/a?b"] {
            assert!(read(text).is_err(), "{text:?}");
        }
    }

    /// What looks like another kind of place is a mistake, and not the name of a directory.
    #[test]
    fn a_place_that_cannot_be_reached_is_no_directory() {
        let read = |text: &str| text.parse::<Place>();
        for text in [
            "https://m.example/x",
            "ftp://m.example",
            "HTTP://m.example",
            "file:///srv",
            "[\"http://a b:1\"]",
            "[\"srv\"",
        ] {
            let problem = read(text).expect_err(text);
            assert!(problem.contains("expected a directory or http://HOST:PORT/PATH, found"), "{problem}");
        }
        for text in ["/srv/www", "./[old]", "./https://x", "a:b"] {
            assert_eq!(read(text), Ok(Place::Directory(text.into())));
        }
        for text in
            ["[p2p]\nmirrors = [\"ftp://a/b\"]\n", "[recovery]\nsources = [\"/srv\", \"https://m.example/x\"]\n"]
        {
            assert!(Config::parse(text.as_bytes()).is_err_and(|error| error.line == Some(2)), "{text}");
        }
    }
}
