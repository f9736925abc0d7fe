//! What a node reads again while it runs: its file of tokens and its certificate. A certificate runs out, and whoever
//! renews it must not have to stop the node; all other configuration is read at start only.

use super::access::Access;
use crate::api;
use crate::exit::Failure;
use crate::home::{Announced, AnnouncedTls, Home};
use crate::tls::ServerTls;
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
    /// What cannot be read; then all from before holds on.
    pub(crate) fn all(&self) -> Result<api::Reloaded, Failure> {
        let reread = self.tls.as_ref().map(|tls| tls.read_again()).transpose()?;
        let tokens = self.access.reload()?;
        if let Some(reread) = reread {
            reread.settle();
            self.announce()?;
        }
        Ok(api::Reloaded { tokens, certificate: self.tls.as_ref().map(|tls| tls.fingerprint().to_string()) })
    }

    /// Tells the commands of this home where the API is, and how to know it.
    pub(crate) fn announce(&self) -> Result<(), Failure> {
        let tls = self.tls.as_ref().map(|tls| AnnouncedTls {
            fingerprint: tls.fingerprint().to_string(),
            certificate: tls.identity().certificate.clone(),
            key: tls.identity().key.clone(),
        });
        self.home.announce_api(&Announced { listen: self.address, pid: std::process::id(), tls })
    }
}
