//! What is asked of clients' certificates.

use std::sync::Arc;

use tokio_rustls::rustls::client::danger::HandshakeSignatureValid;
use tokio_rustls::rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};

use super::ClientAuth;

/// The certificates that vouch for clients.
#[derive(Debug)]
pub(super) struct Roots {
    certificates: Vec<CertificateDer<'static>>,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl Roots {
    /// Takes those that can be read, and fails if none can, as nsqd does.
    pub(super) fn new(
        certificates: Vec<CertificateDer<'static>>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(certificates.iter().cloned());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider.clone()).build();
        Ok(Self {
            certificates,
            verifier: verifier.map_err(|error| format!("no root certificate can be used: {error}"))?,
        })
    }
}

/// A certificate is required, and perhaps has to be vouched for.
#[derive(Debug)]
pub(super) struct Policy {
    verify: bool,
    roots: Option<Arc<Roots>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Policy {
    /// Nothing if no certificate is to be asked for.
    pub(super) fn new(auth: ClientAuth, roots: Option<Arc<Roots>>, provider: &CryptoProvider) -> Option<Self> {
        (auth != ClientAuth::None).then(|| Self {
            verify: auth == ClientAuth::RequireVerify,
            roots,
            algorithms: provider.signature_verification_algorithms,
        })
    }
}

impl ClientCertVerifier for Policy {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        match &self.roots {
            Some(roots) => roots.verifier.root_hint_subjects(),
            None => &[],
        }
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if !self.verify {
            return Ok(ClientCertVerified::assertion());
        }
        match &self.roots {
            // A root may present itself, which rustls would refuse if it may sign others.
            Some(roots) if roots.certificates.contains(end_entity) => Ok(ClientCertVerified::assertion()),
            Some(roots) => roots.verifier.verify_client_cert(end_entity, intermediates, now),
            None => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
