//! How to speak TLS with a peer.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::client::danger::ServerCertVerifier;

use crate::protocol::Secret;

/// How to speak TLS with a peer: whom to trust, and who we are.
///
/// By default the peer's certificate must be for the name in its address and be signed by an authority that this system
/// trusts, and we show no certificate. TLS 1.2 and 1.3 are spoken.
///
/// Files are read when a producer or consumer starts, so that mistakes show, and again for each connection, so that
/// certificates can be replaced while it runs.
///
/// ```no_run
/// use async_nsq::{ConnectionConfig, Consumer, TlsConfig};
///
/// let tls = TlsConfig::new()
///     .root_ca_file("/etc/nsq/ca.pem")
///     .client_certificate_files("/etc/nsq/billing.pem", "/etc/nsq/billing.key");
/// let builder = Consumer::builder("orders", "billing")
///     .lookupd("https://lookupd.example")
///     .connection(ConnectionConfig::new().tls(tls)); // for nsqlookupd too
/// # let _ = builder;
/// ```
///
/// # Cryptography
/// Feature `tls-ring` (on by default) or `tls-aws-lc-rs` brings it; with both it is aws-lc-rs. A default that the program
/// installed in rustls goes first. With feature `tls` alone there is none, and TLS is an error that says so.
#[derive(Clone, Default)]
#[must_use = "it does nothing until it is given to a peer's options"]
pub struct TlsConfig {
    pub(crate) roots: Vec<Pem>,
    pub(crate) client: Option<(Pem, PrivatePem)>,
    pub(crate) server_name: Option<String>,
    pub(crate) ready: Option<Arc<ClientConfig>>,
    pub(crate) any_certificate: bool,
    pub(crate) min_version: TlsVersion,
    /// The system's roots, which take a while to load.
    pub(crate) system: Arc<OnceLock<Arc<dyn ServerCertVerifier>>>,
}

/// A version of TLS: see [`TlsConfig::min_version`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsVersion {
    /// TLS 1.2.
    #[default]
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// Where certificates come from.
#[derive(Clone, Debug)]
pub(crate) enum Pem {
    File(PathBuf),
    Bytes(Bytes),
}

/// Where a private key comes from.
#[derive(Clone, Debug)]
pub(crate) enum PrivatePem {
    File(PathBuf),
    Bytes(Secret),
}

impl TlsConfig {
    /// The defaults: the system's authorities, no certificate of our own.
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts the authorities in this file (PEM, one or more certificates), and no longer those of the system. May be
    /// called several times, and together with [`root_ca_pem`](Self::root_ca_pem).
    pub fn root_ca_file(mut self, path: impl AsRef<Path>) -> Self {
        self.roots.push(Pem::File(path.as_ref().to_owned()));
        self
    }

    /// As [`root_ca_file`](Self::root_ca_file), with the contents of such a file.
    pub fn root_ca_pem(mut self, pem: impl Into<Bytes>) -> Self {
        self.roots.push(Pem::Bytes(pem.into()));
        self
    }

    /// Shows the peer this certificate if it demands one: files with the certificate and those between it and its
    /// authority, and with its private key (PEM, not encrypted).
    pub fn client_certificate_files(mut self, certificate: impl AsRef<Path>, key: impl AsRef<Path>) -> Self {
        let (certificate, key) = (certificate.as_ref().to_owned(), key.as_ref().to_owned());
        self.client = Some((Pem::File(certificate), PrivatePem::File(key)));
        self
    }

    /// As [`client_certificate_files`](Self::client_certificate_files), with the contents of such files.
    pub fn client_certificate_pem(mut self, certificate: impl Into<Bytes>, key: impl Into<Secret>) -> Self {
        self.client = Some((Pem::Bytes(certificate.into()), PrivatePem::Bytes(key.into())));
        self
    }

    /// The name that the peer's certificate must be for. Default: the host in its address.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// The oldest version of TLS to speak. Default: [`TlsVersion::Tls12`]; older ones are not spoken at all.
    pub fn min_version(mut self, version: TlsVersion) -> Self {
        self.min_version = version;
        self
    }

    /// Takes everything but the [`server_name`](Self::server_name) from a configuration of
    /// [`rustls`](crate::rustls), for what the other setters cannot say. Together with one of those it is an error.
    pub fn rustls(mut self, config: impl Into<Arc<ClientConfig>>) -> Self {
        self.ready = Some(config.into());
        self
    }

    /// What makes TLS unsafe.
    pub fn dangerous(self) -> DangerousTls {
        DangerousTls(self)
    }
}

/// Never shows key material; the type of a key does not either.
impl fmt::Debug for TlsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = self.roots.iter().map(|root| match root {
            Pem::File(path) => path.display().to_string(),
            Pem::Bytes(pem) => format!("{} bytes", pem.len()),
        });
        f.debug_struct("TlsConfig")
            .field("roots", &files.collect::<Vec<_>>())
            .field("client_certificate", &self.client.is_some())
            .field("server_name", &self.server_name)
            .field("min_version", &self.min_version)
            .field("rustls", &self.ready.is_some())
            .field("any_certificate", &self.any_certificate)
            .finish_non_exhaustive()
    }
}

/// What makes TLS unsafe: see [`TlsConfig::dangerous`].
#[derive(Clone, Debug)]
#[must_use = "it does nothing by itself"]
pub struct DangerousTls(TlsConfig);

impl DangerousTls {
    /// Accepts whatever certificate the peer shows. The connection is encrypted, but anybody on the way can be its other
    /// end, and read what is sent, secrets included.
    pub fn accept_any_certificate(mut self) -> TlsConfig {
        self.0.any_certificate = true;
        self.0
    }
}
