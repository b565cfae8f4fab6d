//! TLS over any stream, as a client.

mod config;

use std::error::Error as StdError;
use std::fs;
use std::io;
use std::sync::Arc;

use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    self, AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    SupportedProtocolVersion,
};

pub use self::config::{DangerousTls, TlsConfig, TlsVersion};
use self::config::{Pem, PrivatePem};
use super::TlsSession;
use super::connector::BoxIo;
use crate::error::{Error, ErrorKind, Result, Step};

/// Checks what can be checked without a peer. The system's authorities are not loaded.
///
/// # Errors
/// [`ErrorKind::Invalid`] for a file or PEM that is none, a bad name, or options that exclude each other;
/// [`ErrorKind::Unsupported`] without cryptography.
pub(crate) fn check(tls: &TlsConfig, host: &str) -> Result<()> {
    server_name(tls, host)?;
    client_config(tls, Roots::IfGiven).map(drop)
}

/// Does the handshake, reading files anew. The caller limits the time that this may take.
///
/// # Errors
/// At step TLS, without the address.
pub(crate) async fn connect(tls: &TlsConfig, host: &str, io: BoxIo) -> Result<TlsStream<BoxIo>> {
    let name = server_name(tls, host)?;
    let settings = tls.clone();
    // Files, and the system's authorities at first, are read by a thread that may wait.
    let config = tokio::task::spawn_blocking(move || client_config(&settings, Roots::All));
    let config = config.await.map_err(|error| {
        let message = "the TLS settings could not be read, because the runtime ends";
        Error::new(ErrorKind::Shutdown, Step::Tls, message).because(error)
    })??;
    match TlsConnector::from(config).connect(name.clone(), io).await {
        Ok(stream) => Ok(stream),
        Err(error) => Err(explain(error, &name)),
    }
}

/// What was agreed on.
pub(crate) fn session(stream: &TlsStream<BoxIo>) -> TlsSession {
    let (_, session) = stream.get_ref();
    let shown = |text: Option<String>| text.unwrap_or_default();
    TlsSession {
        version: shown(session.protocol_version().map(|version| format!("{version:?}"))),
        cipher: shown(
            session
                .negotiated_cipher_suite()
                .map(|suite| format!("{:?}", suite.suite())),
        ),
    }
}

fn server_name(tls: &TlsConfig, host: &str) -> Result<ServerName<'static>> {
    let name = tls.server_name.as_deref().unwrap_or(host);
    ServerName::try_from(name.to_owned()).map_err(|error| {
        Error::option("server_name", format_args!("{name:?}"), "a DNS name or an IP address").because(error)
    })
}

/// Which authorities to load.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Roots {
    All,
    /// Those that were given, not the system's.
    IfGiven,
}

fn client_config(tls: &TlsConfig, roots: Roots) -> Result<Arc<ClientConfig>> {
    if let Some(ready) = &tls.ready {
        let sole = tls.client.is_none() && tls.roots.is_empty() && tls.min_version == TlsVersion::default();
        if !sole || tls.any_certificate {
            let value = "given together with other TLS options";
            return Err(Error::option("rustls", value, "rustls alone, or with server_name"));
        }
        return Ok(Arc::clone(ready));
    }
    let provider = provider()?;
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions(tls.min_version))
        .map_err(|error| unsupported("the installed cryptography lacks what TLS 1.2 and 1.3 need").because(error))?;
    let builder = if tls.any_certificate {
        let verifier = Arc::new(AnyCertificate(provider));
        builder.dangerous().with_custom_certificate_verifier(verifier)
    } else if !tls.roots.is_empty() || roots == Roots::IfGiven {
        builder.with_root_certificates(root_store(tls)?)
    } else {
        builder
            .dangerous()
            .with_custom_certificate_verifier(system_verifier(tls, provider)?)
    };
    let config = match &tls.client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => builder
            .with_client_auth_cert(certificates("client_certificate", certificate)?, private_key(key)?)
            .map_err(|error| {
                let allowed = "a certificate and the private key that belongs to it";
                Error::option("client_certificate", "not usable", allowed).because(error)
            })?,
    };
    Ok(Arc::new(config))
}

static FROM_TLS13: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];

fn versions(least: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    match least {
        TlsVersion::Tls12 => rustls::ALL_VERSIONS,
        TlsVersion::Tls13 => &FROM_TLS13,
    }
}

fn provider() -> Result<Arc<CryptoProvider>> {
    if let Some(installed) = CryptoProvider::get_default() {
        return Ok(Arc::clone(installed));
    }
    #[cfg(feature = "tls-aws-lc-rs")]
    let provider = Ok(Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    #[cfg(all(feature = "tls-ring", not(feature = "tls-aws-lc-rs")))]
    let provider = Ok(Arc::new(rustls::crypto::ring::default_provider()));
    #[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc-rs")))]
    let provider = Err(unsupported(
        "there is no cryptography for TLS: turn on feature tls-ring or tls-aws-lc-rs of async-nsq, install a default \
         CryptoProvider in rustls, or give a complete configuration with TlsConfig::rustls",
    ));
    provider
}

fn unsupported(message: &'static str) -> Error {
    Error::new(ErrorKind::Unsupported, Step::Tls, message)
}

fn system_verifier(tls: &TlsConfig, provider: Arc<CryptoProvider>) -> Result<Arc<dyn ServerCertVerifier>> {
    if let Some(loaded) = tls.system.get() {
        return Ok(Arc::clone(loaded));
    }
    let verifier = rustls_platform_verifier::Verifier::new(provider).map_err(|error| {
        let message = "the authorities that this system trusts cannot be loaded; give yours with root_ca_file";
        Error::new(ErrorKind::Invalid, Step::Tls, message).because(error)
    })?;
    Ok(Arc::clone(tls.system.get_or_init(|| Arc::new(verifier))))
}

fn root_store(tls: &TlsConfig) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    for root in &tls.roots {
        for certificate in certificates("root_ca", root)? {
            store.add(certificate).map_err(|error| {
                Error::option("root_ca", "not usable", "certificates of authorities").because(error)
            })?;
        }
    }
    Ok(store)
}

fn certificates(option: &str, pem: &Pem) -> Result<Vec<CertificateDer<'static>>> {
    let (shown, text) = match pem {
        Pem::File(path) => {
            let shown = format!("{path:?}");
            (shown, fs::read(path).map_err(|error| unreadable(option, path, error))?)
        }
        Pem::Bytes(pem) => (format!("{} bytes", pem.len()), pem.to_vec()),
    };
    let allowed = "one or more certificates in PEM";
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(Error::option(
            option,
            format_args!("{shown} without a certificate"),
            allowed,
        )),
        Err(error) => Err(not_pem(Error::option(option, shown, allowed), error)),
    }
}

fn private_key(pem: &PrivatePem) -> Result<PrivateKeyDer<'static>> {
    const OPTION: &str = "client_certificate's key";
    let (shown, text) = match pem {
        PrivatePem::File(path) => {
            let shown = format!("{path:?}");
            (shown, fs::read(path).map_err(|error| unreadable(OPTION, path, error))?)
        }
        PrivatePem::Bytes(secret) => ("given as bytes".to_owned(), secret.reveal().to_vec()),
    };
    let allowed = "one private key in PEM with its line breaks, not encrypted";
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| not_pem(Error::option(OPTION, shown, allowed), error))
}

/// Some reasons hold the line that was read. That may be a key: one that has lost its line breaks, or is where a certificate
/// belongs.
fn not_pem(error: Error, reason: pem::Error) -> Error {
    match reason {
        pem::Error::MissingSectionEnd { .. } | pem::Error::IllegalSectionStart { .. } => error,
        reason => error.because(reason),
    }
}

fn unreadable(option: &str, path: &std::path::Path, error: io::Error) -> Error {
    let path = format!("{path:?}");
    // Given instead of its path, a key would get into logs.
    let shown = if path.contains("-----BEGIN") {
        "PEM itself"
    } else {
        &path
    };
    Error::option(option, shown, "the path of a file that can be read").because(error)
}

/// The refusal by TLS that is behind a failure of a stream, if there is one: a peer of TLS 1.3 refuses our certificate only
/// after the handshake.
pub(crate) fn refusal(error: &(dyn StdError + 'static)) -> Option<Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(alert @ rustls::Error::AlertReceived(_)) = in_io(error) {
            let (kind, message) = judge(alert, "");
            return Some(Error::new(kind, Step::Tls, message).because(alert.clone()));
        }
        next = error.source();
    }
    None
}

/// rustls hides its errors within those of IO.
fn in_io<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    error.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref()
}

fn explain(error: io::Error, name: &ServerName<'_>) -> Error {
    let (kind, message) = match in_io(&error) {
        Some(cause) => judge(cause, &name.to_str()),
        None => (
            ErrorKind::ConnectionLost,
            "the connection ended during the handshake; check that this port speaks TLS".to_owned(),
        ),
    };
    Error::new(kind, Step::Tls, message).because(error)
}

fn judge(error: &rustls::Error, name: &str) -> (ErrorKind, String) {
    use AlertDescription as Alert;
    use rustls::Error as Tls;
    match error {
        Tls::InvalidMessage(_) => {
            let message = "the peer does not speak TLS here; check the address and its port";
            (ErrorKind::Protocol, message.to_owned())
        }
        Tls::InvalidCertificate(reason) => (ErrorKind::Protocol, judge_certificate(reason, name)),
        Tls::NoCertificatesPresented => (ErrorKind::Protocol, "the peer shows no certificate".to_owned()),
        Tls::AlertReceived(
            Alert::CertificateRequired
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::DecryptError
            | Alert::UnknownCA
            | Alert::AccessDenied,
        ) => {
            let message = "the peer demands a certificate from us, or does not accept the one it got; see \
                           TlsConfig::client_certificate_files";
            (ErrorKind::Rejected, message.to_owned())
        }
        Tls::AlertReceived(Alert::UnrecognisedName) => {
            let message = format!("the peer does not know the name {name}; set server_name to one of its own");
            (ErrorKind::Rejected, message)
        }
        Tls::AlertReceived(Alert::ProtocolVersion | Alert::HandshakeFailure | Alert::InsufficientSecurity)
        | Tls::PeerIncompatible(_) => {
            let message = "the peer and this client have no version of TLS and no cipher in common".to_owned();
            (ErrorKind::Rejected, message)
        }
        // It may come at any time.
        Tls::AlertReceived(alert) => (
            ErrorKind::Protocol,
            format!("the peer has ended TLS by the alert {alert:?}"),
        ),
        _ => (ErrorKind::Protocol, "the handshake failed".to_owned()),
    }
}

fn judge_certificate(reason: &CertificateError, name: &str) -> String {
    match reason {
        // A bad signature is an authority that was made anew under its old name.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "the peer's certificate is signed by nobody that is trusted here; give its authority with root_ca_file"
                .into()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => format!(
            "the peer's certificate is not for {name}; use a name that is in it as address, or set server_name to one"
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the peer's certificate has expired, or this host's clock is wrong".into()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the peer's certificate is not valid yet, or this host's clock is wrong".into()
        }
        _ => "the peer's certificate is not acceptable".into(),
    }
}

/// Accepts any certificate; the peer must still own the one that it shows.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
