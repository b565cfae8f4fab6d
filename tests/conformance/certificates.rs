//! Certificates for the lines with TLS, made anew for each run.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio_rustls::rustls::{
    ClientConfig, RootCertStore, crypto::ring, pki_types::CertificateDer, pki_types::PrivatePkcs8KeyDer, version,
};

use super::step::{ClientCertificate, Tls};

/// The name in the server's certificate.
pub(crate) const SERVER: &str = "localhost";

/// The common name in the trusted client's certificate.
pub(crate) const CLIENT: &str = "conformance-client";

struct Identity {
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

pub(crate) struct Certificates {
    folder: TempDir,
    authority: CertificateDer<'static>,
    trusted: Identity,
    stranger: Identity,
}

impl Certificates {
    /// An authority that has signed the server's and one client's certificate, and another client's that it does not know.
    pub(crate) fn new() -> Self {
        let authority_key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "conformance authority");
        let authority = params.self_signed(&authority_key).expect("a certificate");
        let issuer = Issuer::new(params, authority_key);

        let (key, params) = (
            KeyPair::generate().expect("a key"),
            leaf(SERVER, ExtendedKeyUsagePurpose::ServerAuth),
        );
        let server = params.signed_by(&key, &issuer).expect("a certificate");
        let folder = tempfile::tempdir().expect("a temporary directory");
        let write = |name: &str, text: String| fs::write(folder.path().join(name), text).expect("a file");
        write("ca.pem", authority.pem());
        write("cert.pem", server.pem());
        write("key.pem", key.serialize_pem());

        let identity = |trusted: bool| {
            let key = KeyPair::generate().expect("a key");
            let params = leaf(CLIENT, ExtendedKeyUsagePurpose::ClientAuth);
            let certificate = match trusted {
                true => params.signed_by(&key, &issuer),
                false => params.self_signed(&key),
            };
            Identity {
                certificate: certificate.expect("a certificate").der().clone(),
                key: key.serialize_der(),
            }
        };
        Self {
            trusted: identity(true),
            stranger: identity(false),
            authority: authority.der().clone(),
            folder,
        }
    }

    pub(crate) fn authority_file(&self) -> PathBuf {
        self.file("ca.pem")
    }

    pub(crate) fn certificate_file(&self) -> PathBuf {
        self.file("cert.pem")
    }

    pub(crate) fn key_file(&self) -> PathBuf {
        self.file("key.pem")
    }

    fn file(&self, name: &str) -> PathBuf {
        Path::new(self.folder.path()).join(name)
    }

    /// How a client does TLS.
    pub(crate) fn client(&self, tls: Tls) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.clone()).expect("a root certificate");
        let versions = match tls.only_1_2 {
            true => &[&version::TLS12][..],
            false => &[&version::TLS13, &version::TLS12],
        };
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .expect("versions that the provider knows")
            .with_root_certificates(roots);
        let identity = match tls.certificate {
            None => return Arc::new(builder.with_no_client_auth()),
            Some(ClientCertificate::Trusted) => &self.trusted,
            Some(ClientCertificate::Stranger) => &self.stranger,
        };
        let key = PrivatePkcs8KeyDer::from(identity.key.clone());
        let config = builder.with_client_auth_cert(vec![identity.certificate.clone()], key.into());
        Arc::new(config.expect("a key that fits the certificate"))
    }
}

fn leaf(name: &str, usage: ExtendedKeyUsagePurpose) -> CertificateParams {
    let names = vec![name.to_owned(), "127.0.0.1".to_owned()];
    let mut params = CertificateParams::new(names).expect("names of a certificate");
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![usage];
    params
}
