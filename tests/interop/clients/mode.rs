//! How a client's connections are made.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// What a program is told to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Plain,
    Tls,
    Snappy,
    Deflate,
    TlsSnappy,
    TlsDeflate,
    Auth,
    Lookupd,
}

impl Mode {
    pub(super) fn tls(self) -> bool {
        matches!(self, Self::Tls | Self::TlsSnappy | Self::TlsDeflate)
    }

    pub(super) fn snappy(self) -> bool {
        matches!(self, Self::Snappy | Self::TlsSnappy)
    }

    pub(super) fn deflate(self) -> bool {
        matches!(self, Self::Deflate | Self::TlsDeflate)
    }
}

/// A certificate for 127.0.0.1, as files for as long as this value lives.
pub(super) struct Certificate {
    directory: TempDir,
}

impl Certificate {
    pub(super) fn new() -> Self {
        // nsqjs does not know to which address it is connected, and takes it for localhost.
        let names = ["127.0.0.1", "localhost"].map(String::from);
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let certificate = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        fs::write(certificate.cert(), made.cert.pem()).unwrap();
        fs::write(certificate.key(), made.signing_key.serialize_pem()).unwrap();
        certificate
    }

    /// The certificate, which is its own authority.
    pub(super) fn cert(&self) -> PathBuf {
        self.file("cert.pem")
    }

    pub(super) fn key(&self) -> PathBuf {
        self.file("key.pem")
    }

    fn file(&self, name: &str) -> PathBuf {
        Path::new(self.directory.path()).join(name)
    }
}
