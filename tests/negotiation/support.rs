//! Certificates, and an nsqd for each combination of what can be negotiated. Shared with the tests on the real nsqd.
#![allow(dead_code, unreachable_pub, reason = "each test target uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the line that did it")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nsq::test_server::{AuthServer, Grant, Permission};
use async_nsq::transport::MemoryNetwork;
use async_nsq::{Compression, ConnectionConfig, TlsConfig};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

/// The host of every nsqd here, which is in its certificate.
pub const HOST: &str = "127.0.0.1";

/// As whom the auth server knows [`SECRET`].
pub const IDENTITY: &str = "billing";

pub const SECRET: &str = "open sesame";

/// How long a busy machine may take for what takes milliseconds.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Somebody who signs certificates.
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its private key, in PEM.
pub struct Signed {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self {
            pem: params.self_signed(&key).unwrap().pem(),
            issuer: Issuer::new(params, key),
        }
    }

    /// Its own certificate.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for this name, a host's or a client's.
    pub fn sign(&self, name: &str) -> Signed {
        self.sign_params(params(name))
    }

    /// A certificate like no other: expired, for instance.
    pub fn sign_params(&self, params: CertificateParams) -> Signed {
        let key = KeyPair::generate().unwrap();
        Signed {
            certificate: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }
}

/// What [`Authority::sign`] signs.
pub fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

impl Signed {
    /// Writes it to `NAME.pem` and `NAME.key` of this folder, and gives these paths.
    pub fn write(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let paths = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
        fs::write(&paths.0, &self.certificate).unwrap();
        fs::write(&paths.1, &self.key).unwrap();
        paths
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    Plain,
    Tls,
    /// With a certificate of the client, without which nsqd serves nobody.
    MutualTls,
}

/// One combination of what can be negotiated.
#[derive(Clone, Copy, Debug)]
pub struct Combination {
    pub encryption: Encryption,
    pub compression: Compression,
    pub auth: bool,
}

impl Combination {
    pub const PLAIN: Self = Self {
        encryption: Encryption::Plain,
        compression: Compression::None,
        auth: false,
    };

    pub const AUTH: Self = Self {
        auth: true,
        ..Self::PLAIN
    };

    /// Each codec alone, and under all else.
    pub fn compressed() -> Vec<Self> {
        let mut all = Self::all();
        all.retain(|combination| {
            let extreme = match combination.encryption {
                Encryption::Plain => !combination.auth,
                Encryption::Tls => false,
                Encryption::MutualTls => combination.auth,
            };
            extreme && combination.compression != Compression::None
        });
        all
    }

    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for encryption in [Encryption::Plain, Encryption::Tls, Encryption::MutualTls] {
            for compression in [
                Compression::None,
                Compression::Snappy,
                Compression::Deflate { level: 6 },
            ] {
                for auth in [false, true] {
                    all.push(Self {
                        encryption,
                        compression,
                        auth,
                    });
                }
            }
        }
        all
    }
}

/// Certificates and an auth server, for nsqds and their clients.
pub struct House {
    pub authority: Authority,
    pub auth: AuthServer,
    folder: TempDir,
}

impl House {
    /// An authority that has signed a certificate for [`HOST`] and one for a client, and an auth server at a loopback port
    /// that knows [`SECRET`].
    pub async fn start() -> Self {
        Self::with(AuthServer::start().await.unwrap())
    }

    /// As [`start`](Self::start), with the auth server in this network.
    pub async fn start_in(network: &MemoryNetwork) -> Self {
        Self::with(AuthServer::start_in(network, "auth:4181").await.unwrap())
    }

    fn with(auth: AuthServer) -> Self {
        let authority = Authority::new("the house's authority");
        let folder = TempDir::new().unwrap();
        let everything = [Permission::Publish, Permission::Subscribe];
        auth.grant(SECRET, Grant::new().identity(IDENTITY).allow(".*", [".*"], everything));
        let house = Self {
            authority,
            auth,
            folder,
        };
        house.write_servers();
        house.write_clients(IDENTITY);
        house
    }

    /// Has a new authority, whose files are not written yet. Its name is another one, too: authorities are looked up by name.
    pub fn replace_authority(&mut self) {
        self.authority = Authority::new("the house's next authority");
    }

    /// Writes nsqd's certificate and the authority of its clients, who know nothing of it.
    pub fn write_servers(&self) {
        fs::write(self.file("clients-ca.pem"), self.authority.pem()).unwrap();
        self.authority.sign(HOST).write(self.folder.path(), "nsqd");
    }

    /// Writes a client's certificate for this name, and the authority of nsqd.
    pub fn write_clients(&self, name: &str) {
        fs::write(self.file("ca.pem"), self.authority.pem()).unwrap();
        self.authority.sign(name).write(self.folder.path(), "client");
    }

    /// Where `ca.pem`, `client.pem` and `client.key` are for clients, and `clients-ca.pem`, `nsqd.pem` and `nsqd.key` for nsqd.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The flags of an nsqd that demands this of its clients: names without dashes, and values.
    pub fn flags(&self, combination: &Combination) -> Vec<(&'static str, String)> {
        let file = |name: &str| self.file(name).display().to_string();
        let mut flags = Vec::new();
        if combination.encryption != Encryption::Plain {
            flags.push(("tls-cert", file("nsqd.pem")));
            flags.push(("tls-key", file("nsqd.key")));
            // So that what goes in clear by mistake is refused; the harness looks at plain HTTP.
            flags.push(("tls-required", "tcp-https".to_owned()));
        }
        if combination.encryption == Encryption::MutualTls {
            flags.push(("tls-root-ca-file", file("clients-ca.pem")));
            flags.push(("tls-client-auth-policy", "require-verify".to_owned()));
        }
        if combination.auth {
            flags.push(("auth-http-address", self.auth.address().to_owned()));
        }
        flags
    }

    /// A client that trusts the authority, and asks for this.
    pub fn connection(&self, combination: &Combination) -> ConnectionConfig {
        let mut connection = ConnectionConfig::new()
            .compression(combination.compression)
            .dial_timeout(PATIENCE)
            .handshake_timeout(PATIENCE);
        let tls = TlsConfig::new().root_ca_file(self.file("ca.pem"));
        match combination.encryption {
            Encryption::Plain => {}
            Encryption::Tls => connection = connection.tls(tls),
            Encryption::MutualTls => {
                let (certificate, key) = (self.file("client.pem"), self.file("client.key"));
                connection = connection.tls(tls.client_certificate_files(certificate, key));
            }
        }
        if combination.auth {
            connection = connection.auth_secret(SECRET);
            if combination.encryption == Encryption::Plain {
                connection = connection.allow_plaintext_auth();
            }
        }
        connection
    }
}
