//! TLS for the HTTP API, both sides: what a node shows of itself, and whom a client believes.
//!
//! Version 1.3 alone. A node shows the certificate its configuration names, and may ask for one of a client; a client
//! believes an authority it was given, or one certificate by its fingerprint, and nobody it was not told of: the
//! authorities of the system are not asked. The commands of a node's own home know it by its fingerprint, and show its own
//! certificate where it asks for one: whoever can read the key of that is the owner.
//!
//! Settings and answers: `docs/http.md`, "HTTPS".

use crate::config::{FileName, Http};
use crate::exit::{Failure, causes};
use crate::home::Home;
use crate::input;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::version::TLS13;
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    SignatureScheme, StreamOwned,
};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use tokio_rustls::TlsAcceptor;

/// Bytes of a file of certificates.
const CERTIFICATES_BYTES_MAX: u64 = 1 << 20;
/// Certificates in one.
const CERTIFICATES_MAX: usize = 256;
/// Bytes of a file with a key.
const KEY_BYTES_MAX: u64 = 64 << 10;
/// What is spoken under TLS.
const PROTOCOL: &[u8] = b"http/1.1";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// SHA-256 of a certificate: what `openssl x509 -fingerprint -sha256` shows, in lower case and without colons.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint([u8; 32]);

impl Fingerprint {
    fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate).into())
    }

    /// Reads 64 hexadecimal digits, with or without colons between pairs.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        let mut bytes = [0; 32];
        match hex::decode_to_slice(text.replace(':', ""), &mut bytes) {
            Ok(()) => Ok(Self(bytes)),
            Err(_) => Err(Failure::usage(format!("{text:?} is no fingerprint: 64 hexadecimal digits, of SHA-256"))),
        }
    }
}
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}
impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a certificate and its key are.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    /// The chain, as PEM, the own certificate first.
    pub(crate) certificate: PathBuf,
    /// The key, as PEM, readable by its owner only.
    pub(crate) key: PathBuf,
}

impl Identity {
    fn load(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Failure> {
        let text = input::read_private(&self.key, "key of a certificate", KEY_BYTES_MAX)?;
        // The reader's message could quote what stands there.
        let key = PrivateKeyDer::from_pem_slice(&text)
            .map_err(|_| Failure::usage(format!("{} holds no private key as PEM", self.key.display())))?;
        Ok((certificates(&self.certificate)?, key))
    }

    fn unfit(&self, error: &Error) -> Failure {
        Failure::usage(format!("{} and {}: {error}", self.certificate.display(), self.key.display()))
    }
}

/// The certificates in a file: at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let shown = path.display();
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(CERTIFICATES_BYTES_MAX + 1).read_to_end(&mut text))
        .map_err(|error| Failure::usage(format!("could not read the certificate {shown}: {error}")))?;
    if text.len() as u64 > CERTIFICATES_BYTES_MAX {
        return Err(Failure::usage(format!("{shown} has more than {CERTIFICATES_BYTES_MAX} bytes")));
    }
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).take(CERTIFICATES_MAX + 1).collect();
    match found {
        Ok(found) if (1..=CERTIFICATES_MAX).contains(&found.len()) => Ok(found),
        Ok(found) if found.is_empty() => Err(Failure::usage(format!("{shown} holds no certificate as PEM"))),
        Ok(_) => Err(Failure::usage(format!("{shown} holds more than {CERTIFICATES_MAX} certificates"))),
        Err(error) => Err(Failure::usage(format!("{shown}: {}", causes(&error)))),
    }
}

/// The authorities in a file.
fn authorities(path: &Path) -> Result<RootCertStore, Failure> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
    }
    Ok(roots)
}

// ---- the node ----------------------------------------------------------------------------------------------------

/// What a node shows of itself, and of whom it asks the same.
pub(crate) struct ServerTls {
    identity: Identity,
    client_ca: Option<PathBuf>,
    current: RwLock<Loaded>,
}

/// As it was read last.
#[derive(Clone)]
struct Loaded {
    config: Arc<ServerConfig>,
    fingerprint: Fingerprint,
}

impl ServerTls {
    /// What the configuration names; none if it names no certificate.
    ///
    /// # Errors
    /// A usage failure that names the file, if one cannot be read, is not what it should be, or others can read the key.
    pub(crate) fn open(home: &Home, config: &Http) -> Result<Option<Self>, Failure> {
        let at = |name: &FileName| name.0.as_ref().map(|path| home.path().join(path));
        let (Some(certificate), Some(key)) = (at(&config.tls_certificate), at(&config.tls_key)) else {
            return Ok(None);
        };
        let (identity, client_ca) = (Identity { certificate, key }, at(&config.tls_client_ca));
        let current = RwLock::new(Loaded::read(&identity, client_ca.as_deref())?);
        Ok(Some(Self { identity, client_ca, current }))
    }

    /// Reads the files again; `settle` of what it gives makes connections from then on see them.
    ///
    /// # Errors
    /// As [`Self::open`]; what was read before then holds on.
    pub(crate) fn read_again(&self) -> Result<Reread<'_>, Failure> {
        Ok(Reread { of: self, loaded: Loaded::read(&self.identity, self.client_ca.as_deref())? })
    }

    fn loaded(&self) -> Loaded {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// For a connection that begins now.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.loaded().config)
    }

    /// Of the certificate that is shown now.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        self.loaded().fingerprint
    }

    /// Where the certificate is, and its key.
    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }
}

/// Files that were read again.
pub(crate) struct Reread<'a> {
    of: &'a ServerTls,
    loaded: Loaded,
}

impl Reread<'_> {
    /// Of the certificate that is shown once this is settled.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        self.loaded.fingerprint
    }

    /// Shows them from now on.
    pub(crate) fn settle(self) {
        *self.of.current.write().unwrap_or_else(PoisonError::into_inner) = self.loaded;
    }
}

impl Loaded {
    fn read(identity: &Identity, client_ca: Option<&Path>) -> Result<Self, Failure> {
        let (chain, key) = identity.load()?;
        let own = chain.first().expect("a file of certificates holds at least one").clone();
        let fingerprint = Fingerprint::of(&own);
        let unfit = |error| identity.unfit(&error);
        let builder =
            ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13]).map_err(unfit)?;
        let builder = match client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let known =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(authorities(path)?), provider()).build();
                let known = known.map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
                builder.with_client_cert_verifier(Arc::new(KnownOrOwn { known, own }))
            }
        };
        let mut config = builder.with_single_cert(chain, key).map_err(unfit)?;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(Self { config: Arc::new(config), fingerprint })
    }
}

/// Believes the clients of an authority, and whoever holds the key of the node's own certificate.
#[derive(Debug)]
struct KnownOrOwn {
    known: Arc<dyn ClientCertVerifier>,
    own: CertificateDer<'static>,
}

impl ClientCertVerifier for KnownOrOwn {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // None: the owner's commands have a certificate of whatever authority the node has its own from.
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if **certificate == *self.own {
            return Ok(ClientCertVerified::assertion());
        }
        self.known.verify_client_cert(certificate, between, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.known.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.known.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.known.supported_verify_schemes()
    }
}

// ---- the client --------------------------------------------------------------------------------------------------

/// Whom a client believes.
#[derive(Debug, Clone)]
pub(crate) enum Trust {
    /// Who has a certificate of an authority in this file, for the name that was asked for.
    Authorities(PathBuf),
    /// Who has this one certificate, whatever its name and dates say.
    Pinned(Fingerprint),
}

/// One side of conversations under TLS.
#[derive(Clone)]
pub(crate) struct ClientTls(Arc<ClientConfig>);

impl ClientTls {
    /// A client that believes these, and shows a certificate where one is asked for.
    ///
    /// # Errors
    /// A usage failure that names the file which is not what it should be.
    pub(crate) fn new(trust: &Trust, identity: Option<&Identity>) -> Result<Self, Failure> {
        let provider = provider();
        let builder = ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(&[&TLS13]);
        let builder = builder.map_err(|error| Failure::error(error.to_string()))?;
        let builder = match trust {
            Trust::Authorities(path) => builder.with_root_certificates(authorities(path)?),
            Trust::Pinned(fingerprint) => {
                let only = Only { fingerprint: *fingerprint, provider };
                builder.dangerous().with_custom_certificate_verifier(Arc::new(only))
            }
        };
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let (chain, key) = identity.load()?;
                builder.with_client_auth_cert(chain, key).map_err(|error| identity.unfit(&error))?
            }
        };
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(Self(Arc::new(config)))
    }

    /// Speaks TLS over a connection to the server of this name or address.
    pub(crate) fn over<S: Read + Write>(&self, stream: S, host: &str) -> io::Result<StreamOwned<ClientConnection, S>> {
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host).map_err(io::Error::other)?;
        let connection = ClientConnection::new(self.0.clone(), name).map_err(io::Error::other)?;
        Ok(StreamOwned::new(connection, stream))
    }
}

/// Believes one certificate.
#[derive(Debug)]
struct Only {
    fingerprint: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Only {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _between: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _stapled: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let found = Fingerprint::of(certificate);
        match found == self.fingerprint {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(Error::General(format!("its certificate is {found}, expected {}", self.fingerprint))),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
