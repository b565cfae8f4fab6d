//! A broker that a line runs against, whichever it is.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_nsq::transport::Connector;

use super::authd::Authd;
use super::certificates::Certificates;
use super::table::Line;
use super::text::Names;

/// What an nsqd tells nsqlookupd of itself.
const PEER: &str =
    r#"{"broadcast_address":"127.0.0.1","hostname":"h","tcp_port":4150,"http_port":4151,"version":"1.3.0"}"#;

/// Options that are not flags.
const OWN_OPTIONS: &[&str] = &["lookupd", "auth", "fresh"];

pub(crate) struct Target {
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) tcp: String,
    pub(crate) http: String,
    pub(crate) lookupd: bool,
    pub(crate) auth: Option<Authd>,
    pub(crate) certificates: Arc<Certificates>,
    pub(crate) time: Time,
    /// Keeps the broker running.
    pub(crate) _broker: Box<dyn Any + Send + Sync>,
}

/// How bounds in time are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Time {
    /// The clock is paused: to the millisecond.
    Virtual,
    /// The machine may be slow: what is due cannot be too late, and must not be too early.
    Real,
}

impl Target {
    /// What `$name` stands for.
    pub(crate) fn names(&self) -> Names {
        static LINES: AtomicUsize = AtomicUsize::new(0);
        let number = LINES.fetch_add(1, Ordering::Relaxed);
        let port = |address: &str| address.rsplit_once(':').map_or("", |(_, port)| port).to_owned();
        let late = match self.time {
            Time::Virtual => "1300",
            Time::Real => "6500",
        };
        let names = [
            ("t", format!("t{number:x}")),
            ("u", format!("u{number:x}")),
            ("LATE", late.to_owned()),
            ("PEER", PEER.to_owned()),
            ("TCP_PORT", port(&self.tcp)),
            ("HTTP_PORT", port(&self.http)),
        ];
        names
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }
}

/// The flags that a line's options stand for, for a broker whose stub of an auth server is at `auth`.
pub(crate) fn flags(line: &Line, certificates: &Certificates, auth: Option<&str>) -> Vec<(String, String)> {
    let mut flags = Vec::new();
    let mut push = |name: &str, value: String| flags.push((name.to_owned(), value));
    for option in line
        .options
        .iter()
        .filter(|option| !OWN_OPTIONS.contains(&option.name.as_str()))
    {
        match (option.name.as_str(), &option.value) {
            ("tls-cert", None) => {
                push("tls-cert", certificates.certificate_file().display().to_string());
                push("tls-key", certificates.key_file().display().to_string());
            }
            ("tls-root-ca-file", None) => push("tls-root-ca-file", certificates.authority_file().display().to_string()),
            (name, None) => push(name, "true".to_owned()),
            (name, Some(value)) => push(name, value.clone()),
        }
    }
    if line.option("tls-client-auth-policy").is_some() && line.option("tls-root-ca-file").is_none() {
        push("tls-root-ca-file", certificates.authority_file().display().to_string());
    }
    if let Some(address) = auth {
        let path = line.option("auth").and_then(|option| option.value.as_ref());
        let address = path.map_or(address.to_owned(), |path| format!("http://{address}{path}"));
        push("auth-http-address", address);
    }
    flags
}
