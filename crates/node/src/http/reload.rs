//! What a node reads again while it runs: its file of tokens and its certificate. A certificate runs out, and whoever
//! renews it must not have to stop the node; all other configuration is read at start only.

use super::access::Access;
use crate::api;
use crate::exit::Failure;
use crate::home::{Announced, AnnouncedTls, Home};
use crate::tls::{Fingerprint, ServerTls};
use std::net::SocketAddr;
use std::sync::Arc;

/// What is read again when the owner asks: by SIGHUP, or by the route for administrators.
pub(crate) struct Reload {
    pub(crate) home: Home,
    pub(crate) address: SocketAddr,
    pub(crate) access: Arc<Access>,
    /// None on a node that speaks plain HTTP.
    pub(crate) tls: Option<Arc<ServerTls>>,
}

impl Reload {
    /// Takes all that is there now.
    ///
    /// # Errors
    /// What cannot be read, or told to the commands of this home; then all from before holds on.
    pub(crate) fn all(&self) -> Result<api::Reloaded, Failure> {
        let reread = self.tls.as_ref().map(|tls| tls.read_again()).transpose()?;
        let tokens = self.access.read_again()?;
        if let Some(reread) = reread {
            // The last of what can fail.
            self.announce_as(Some(reread.fingerprint()))?;
            reread.settle();
        }
        let tokens = self.access.settle(tokens);
        Ok(api::Reloaded { tokens, certificate: self.tls.as_ref().map(|tls| tls.fingerprint().to_string()) })
    }

    /// Tells the commands of this home where the API is, and how to know it.
    pub(crate) fn announce(&self) -> Result<(), Failure> {
        self.announce_as(self.tls.as_ref().map(|tls| tls.fingerprint()))
    }

    fn announce_as(&self, fingerprint: Option<Fingerprint>) -> Result<(), Failure> {
        let tls = self.tls.as_ref().zip(fingerprint).map(|(tls, fingerprint)| AnnouncedTls {
            fingerprint: fingerprint.to_string(),
            certificate: tls.identity().certificate.clone(),
            key: tls.identity().key.clone(),
        });
        self.home.announce_api(&Announced { listen: self.address, pid: std::process::id(), tls })
    }
}
