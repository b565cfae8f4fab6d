//! TLS as nsqd offers it: a certificate, and what is asked of the client's.

mod handshake;
mod policy;
mod subject;
#[cfg(test)]
mod tests;
mod words;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{
    self, ConfigBuilder, Error, InconsistentKeys, ServerConfig, SupportedProtocolVersion, WantsVerifier,
};

pub(in crate::test_server) use handshake::{Encrypted, HandshakeFailed, TlsDetails, handshake};

use policy::{Policy, Roots};

/// What nsqd asks of a client's certificate, its `tls-client-auth-policy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// No certificate is asked for. The default, even with a root CA.
    #[default]
    None,
    /// Some certificate, whoever signed it and however old it is (`require`). The client has to prove that it has the
    /// certificate's key.
    Require,
    /// A certificate that the root CA vouches for (`require-verify`). Without a root CA there is none.
    RequireVerify,
}

/// Who has to use TLS, nsqd's `tls-required`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsRequired {
    /// Nobody (`false`). The default.
    #[default]
    No,
    /// TCP clients; HTTP answers in clear text too (`tcp-https`).
    TcpHttps,
    /// Everybody (`true`): TCP clients are refused all but IDENTIFY in clear text, and the plain HTTP port answers 403.
    Yes,
}

/// A certificate with its key, and what is asked of clients: how a test broker speaks TLS.
///
/// TLS 1.2 and 1.3 are spoken, with ring's cryptography, whatever the process's default is. A real nsqd speaks 1.0 and 1.1
/// too, unless `tls-min-version` says otherwise, and takes clients' X.509 certificates of version 1, which are refused here.
///
/// Clones share their configuration. [`Debug`] shows no key.
///
/// ```
/// use async_nsq::test_server::{ClientAuth, ServerTls};
///
/// let key = rcgen::KeyPair::generate()?;
/// let certificate = rcgen::CertificateParams::new(["localhost".to_owned()])?.self_signed(&key)?;
/// let tls = ServerTls::from_pem(certificate.pem().as_bytes(), key.serialize_pem().as_bytes())?
///     .client_auth(ClientAuth::Require);
/// # let _ = tls;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct ServerTls {
    builder: ConfigBuilder<ServerConfig, WantsVerifier>,
    key: Arc<SingleCertAndKey>,
    roots: Option<Arc<Roots>>,
    client_auth: ClientAuth,
    config: Arc<ServerConfig>,
}

impl ServerTls {
    /// Reads a certificate, with those that vouch for it behind it, and its private key (PKCS #8, PKCS #1 or SEC 1).
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if there is no certificate or no key, or if they do not belong together.
    pub fn from_pem(certificate: &[u8], key: &[u8]) -> io::Result<Self> {
        let chain = certificates(certificate)?;
        // The reason may hold what was read.
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_may_be_the_key| invalid("no private key in PEM"))?;
        let provider = Arc::new(ring::default_provider());
        let key = provider
            .key_provider
            .load_private_key(key)
            .map_err(|error| invalid(format!("the private key cannot be used: {error}")))?;
        let key = CertifiedKey::new(chain, key);
        // What rustls cannot read, for example an X.509 certificate of version 1, is for the client to judge.
        if let Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) = key.keys_match() {
            return Err(invalid("the private key is not the certificate's"));
        }
        let builder = builder(provider, &[&TLS13, &TLS12])?;
        let key = Arc::new(SingleCertAndKey::from(key));
        Ok(Self {
            config: config(&builder, &key, None),
            builder,
            key,
            roots: None,
            client_auth: ClientAuth::None,
        })
    }

    /// Reads what [`from_pem`](Self::from_pem) takes from two files, nsqd's `tls-cert` and `tls-key`.
    ///
    /// # Errors
    /// As [`from_pem`](Self::from_pem), or if a file cannot be read; the text names the file.
    pub fn from_pem_files(certificate: impl AsRef<Path>, key: impl AsRef<Path>) -> io::Result<Self> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
        };
        Self::from_pem(&read(certificate.as_ref())?, &read(key.as_ref())?)
    }

    /// Sets the certificates that vouch for clients' certificates, nsqd's `tls-root-ca-file`. Replaces earlier ones. It has
    /// an effect with [`ClientAuth::RequireVerify`]; with [`ClientAuth::Require`] it is only a hint for the client.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if there is no certificate.
    pub fn root_ca_pem(mut self, certificates_pem: &[u8]) -> io::Result<Self> {
        let roots = Roots::new(certificates(certificates_pem)?, self.builder.crypto_provider());
        self.roots = Some(Arc::new(roots.map_err(invalid)?));
        Ok(self.configured())
    }

    /// Sets what is asked of clients' certificates. Default: [`ClientAuth::None`].
    ///
    /// An nsqd with a `tls-client-auth-policy` requires TLS: it takes `tls-required` for `true` unless it is `tcp-https`.
    #[must_use]
    pub fn client_auth(mut self, client_auth: ClientAuth) -> Self {
        self.client_auth = client_auth;
        self.configured()
    }

    /// Refuses TLS 1.2, as `tls-min-version=tls1.3` does.
    pub(in crate::test_server) fn tls13_only(mut self) -> io::Result<Self> {
        self.builder = builder(self.builder.crypto_provider().clone(), &[&TLS13])?;
        Ok(self.configured())
    }

    /// What is asked of clients' certificates.
    pub(in crate::test_server) fn client_auth_policy(&self) -> ClientAuth {
        self.client_auth
    }

    /// Accepts TLS for HTTPS, which nsqd serves with the same configuration and without ALPN.
    pub(in crate::test_server) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.clone())
    }

    fn configured(mut self) -> Self {
        let policy = Policy::new(self.client_auth, self.roots.clone(), self.builder.crypto_provider());
        self.config = config(&self.builder, &self.key, policy);
        self
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls")
            .field("client_auth", &self.client_auth)
            .field("root_ca", &self.roots.is_some())
            .finish_non_exhaustive()
    }
}

fn builder(
    provider: Arc<CryptoProvider>,
    versions: &[&'static SupportedProtocolVersion],
) -> io::Result<ConfigBuilder<ServerConfig, WantsVerifier>> {
    ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(io::Error::other)
}

fn config(
    builder: &ConfigBuilder<ServerConfig, WantsVerifier>,
    key: &Arc<SingleCertAndKey>,
    policy: Option<Policy>,
) -> Arc<ServerConfig> {
    let builder = builder.clone();
    let builder = match policy {
        Some(policy) => builder.with_client_cert_verifier(Arc::new(policy)),
        None => builder.with_no_client_auth(),
    };
    Arc::new(builder.with_cert_resolver(key.clone()))
}

fn certificates(pem: &[u8]) -> io::Result<Vec<CertificateDer<'static>>> {
    let certificates: Result<Vec<_>, rustls::pki_types::pem::Error> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(invalid("no certificate in the PEM text")),
        Err(error) => Err(invalid(format!("a certificate cannot be read: {error}"))),
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}
