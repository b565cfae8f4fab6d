//! What nsqd and the clients read: bodies to publish, and a certificate for TLS.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tempfile::TempDir;

use crate::{Result, body};

/// How long bodies are, unless a row says otherwise.
pub(crate) const BODY_LEN: usize = 200;

/// All lengths that there are bodies of.
const LENGTHS: [usize; 4] = [20, BODY_LEN, 10_000, 1_000_000];

/// How many differ. Together they are larger than the window of any compression: a client that repeats them all gives it
/// nothing to find but what bodies have in common.
const BODIES: usize = 1000;

/// So many bytes of one length are enough. Each client reads them all.
const MOST: usize = 10_000_000;

/// Removed when dropped.
pub(crate) struct Files(TempDir);

impl Files {
    pub(crate) fn create() -> Result<Self> {
        let files = Self(tempfile::tempdir()?);
        let issued = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
        fs::write(files.certificate(), issued.cert.pem())?;
        fs::write(files.key(), issued.signing_key.serialize_pem())?;
        let mut random = fastrand::Rng::with_seed(1);
        for length in LENGTHS {
            let count = BODIES.min(MOST / length);
            let bodies: Vec<String> = (0..count).map(|_| body::event(&mut random, length)).collect();
            fs::write(files.bodies(length), bodies.join("\n"))?;
        }
        Ok(files)
    }

    /// Signed by itself, so that it is also the authority to check it with.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.0.path().join("certificate.pem")
    }

    pub(crate) fn key(&self) -> PathBuf {
        self.0.path().join("key.pem")
    }

    /// Bodies of this length, which is one of `LENGTHS`.
    pub(crate) fn bodies(&self, length: usize) -> PathBuf {
        self.0.path().join(format!("bodies-{length}"))
    }
}

/// The bodies, which live for ever: some clients want that.
pub(crate) fn read_bodies(path: &Path) -> Result<&'static [Bytes]> {
    let text: &'static str = fs::read_to_string(path)?.leak();
    let bodies: Vec<Bytes> = text.lines().map(|body| Bytes::from_static(body.as_bytes())).collect();
    Ok(bodies.leak())
}
