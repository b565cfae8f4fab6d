//! Asks one nsqlookupd by HTTP.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout_at};

use super::view::Answer;
use crate::error::{Error, ErrorKind, Result, Step};
use crate::name::Topic;
use crate::protocol::{LookupError, LookupProducer, parse_lookup};
use crate::transport::{BoxIo, Connector};

/// Bounds the head of an answer; nsqlookupd's is some 200 bytes.
const MAX_HEAD: usize = 64 * 1024;

/// The longest host name that DNS allows.
const MAX_HOST: usize = 253;

/// How much of a refusal's body an error shows.
const MAX_EXCERPT: usize = 100;

const NOT_FOUND: &str = "TOPIC_NOT_FOUND";

/// The question to one nsqlookupd, on its way: runs only while it is polled, and ends within its timeout.
pub(super) type Ask = Pin<Box<dyn Future<Output = Result<Answer>> + Send>>;

/// Asks where the messages of one topic are.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    connector: Arc<dyn Connector>,
    target: Arc<str>,
    timeout: Duration,
    max_body: usize,
}

impl Asker {
    pub(super) fn new(connector: Arc<dyn Connector>, topic: &Topic, timeout: Duration, max_body: usize) -> Self {
        // Of all characters that a name may have, only the # of #ephemeral means something else in a URL.
        let target = format!("/lookup?topic={}", topic.as_str().replace('#', "%23"));
        Self {
            connector,
            target: target.into(),
            timeout,
            max_body,
        }
    }

    /// Opens a connection of its own, asks, and closes it. The error is at step lookup and names the nsqlookupd.
    pub(super) fn ask(&self, lookupd: &Arc<str>) -> Ask {
        let asker = self.clone();
        let lookupd = Arc::clone(lookupd);
        Box::pin(async move { asker.run(&lookupd).await.map_err(|error| error.at(&lookupd)) })
    }

    async fn run(&self, lookupd: &str) -> Result<Answer> {
        let deadline = Instant::now() + self.timeout;
        let io = match timeout_at(deadline, self.connector.connect(lookupd)).await {
            Ok(Ok(io)) => io,
            Ok(Err(error)) => {
                return Err(Error::new(
                    ErrorKind::Unreachable,
                    Step::Lookup,
                    "cannot connect; check that it runs and that the address is its HTTP address (port 4161 by default)",
                )
                .because(error));
            }
            Err(_) => return Err(self.too_slow(ErrorKind::Unreachable, "no connection")),
        };
        let (status, body) = match timeout_at(deadline, self.exchange(io, lookupd)).await {
            Ok(answer) => answer?,
            Err(_) => return Err(self.too_slow(ErrorKind::ConnectionLost, "connected, but no complete answer")),
        };
        understand(status, &body)
    }

    async fn exchange(&self, io: BoxIo, lookupd: &str) -> Result<(StatusCode, Bytes)> {
        let request = Request::get(&*self.target)
            .header(header::HOST, lookupd)
            .header(header::USER_AGENT, concat!("async-nsq/", env!("CARGO_PKG_VERSION")))
            .header(header::ACCEPT, "application/vnd.nsq; version=1.0")
            .body(Empty::<Bytes>::new())
            .map_err(|error| {
                Error::new(ErrorKind::Invalid, Step::Lookup, "the request cannot be formed").because(error)
            })?;
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .handshake(TokioIo::new(io))
            .await
            .map_err(http_failure)?;
        let mut connection = pin!(connection);
        let mut answer = pin!(async {
            let response = sender.send_request(request).await.map_err(http_failure)?;
            self.collect(response).await
        });
        tokio::select! {
            biased;
            answer = &mut answer => return answer,
            // Why it ended is told by `answer` too, with more context.
            _ = &mut connection => {}
        }
        answer.await
    }

    async fn collect(&self, response: Response<Incoming>) -> Result<(StatusCode, Bytes)> {
        let (head, body) = response.into_parts();
        match Limited::new(body, self.max_body).collect().await {
            Ok(body) => Ok((head.status, body.to_bytes())),
            Err(error) if error.is::<LengthLimitError>() => Err(Error::new(
                ErrorKind::Protocol,
                Step::Lookup,
                format!(
                    "the answer is larger than {} bytes; check that this is nsqlookupd's HTTP address",
                    self.max_body
                ),
            )),
            Err(error) => {
                let failure = Error::new(ErrorKind::ConnectionLost, Step::Lookup, "the answer broke off");
                Err(match error.downcast::<hyper::Error>() {
                    Ok(error) => failure.because(*error),
                    Err(_) => failure,
                })
            }
        }
    }

    fn too_slow(&self, kind: ErrorKind, what: &str) -> Error {
        let message = format!(
            "{what} within {:?}; check that it runs and that no firewall swallows the packets",
            self.timeout
        );
        Error::new(kind, Step::Lookup, message)
    }
}

fn http_failure(error: hyper::Error) -> Error {
    if error.is_parse() {
        let message = "the answer is not HTTP; give the HTTP address of nsqlookupd (port 4161 by default), not the TCP \
                       address that nsqd registers at (4160)";
        Error::new(ErrorKind::Protocol, Step::Lookup, message).because(error)
    } else {
        let message = "the connection ended before an answer came";
        Error::new(ErrorKind::ConnectionLost, Step::Lookup, message).because(error)
    }
}

fn understand(status: StatusCode, body: &[u8]) -> Result<Answer> {
    if status == StatusCode::OK {
        return match parse_lookup(body) {
            Ok(lookup) => Ok(usable(lookup.producers, lookup.malformed)),
            Err(LookupError::Status(text)) if text == NOT_FOUND => Ok(unknown_topic()),
            Err(LookupError::Status(text)) => Err(refused(status, text.as_bytes())),
            Err(error) => {
                let message = "the answer is not understood; check that this is nsqlookupd's HTTP address";
                Err(Error::new(ErrorKind::Protocol, Step::Lookup, message).because(error))
            }
        };
    }
    // Version 1.0 and later say this with status 404, older ones with 500. Any other 404 comes from something that is
    // no nsqlookupd, and must not pass for the news that the topic has no nsqd.
    let says_not_found = body
        .windows(NOT_FOUND.len())
        .any(|window| window == NOT_FOUND.as_bytes());
    if says_not_found && matches!(status, StatusCode::NOT_FOUND | StatusCode::INTERNAL_SERVER_ERROR) {
        return Ok(unknown_topic());
    }
    Err(refused(status, body))
}

fn unknown_topic() -> Answer {
    Answer {
        addresses: Vec::new(),
        malformed: 0,
        topic_known: false,
    }
}

fn usable(producers: Vec<LookupProducer>, mut malformed: usize) -> Answer {
    let mut addresses = Vec::with_capacity(producers.len());
    for producer in producers {
        let host = &producer.broadcast_address;
        if host.len() <= MAX_HOST && host.bytes().all(|byte| byte.is_ascii_graphic()) {
            addresses.push(producer.tcp_address().into());
        } else {
            malformed += 1;
        }
    }
    Answer {
        addresses,
        malformed,
        topic_known: true,
    }
}

fn refused(status: StatusCode, body: &[u8]) -> Error {
    let (kind, advice) = if status == StatusCode::NOT_FOUND {
        // nsqd's HTTP port, most of the time.
        let advice = "it does not know /lookup; give the address of nsqlookupd (port 4161 by default), not of nsqd";
        (ErrorKind::Rejected, advice)
    } else if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        let advice = "something in front of nsqlookupd demands credentials, which cannot be given here";
        (ErrorKind::Rejected, advice)
    } else if status.is_server_error() {
        (ErrorKind::Rejected, "see its log, or that of the proxy in front of it")
    } else if status.is_client_error() || status == StatusCode::OK {
        let advice = "check that this is nsqlookupd's HTTP address";
        (ErrorKind::Rejected, advice)
    } else {
        let advice = "nsqlookupd never answers this; check that this is its HTTP address";
        (ErrorKind::Protocol, advice)
    };
    let excerpt = &body[..body.len().min(MAX_EXCERPT)];
    let message = format!("answered {status} {:?}: {advice}", String::from_utf8_lossy(excerpt));
    Error::new(kind, Step::Lookup, message)
}

/// The `host:port` of an nsqlookupd, given as that or as `http://host:port`, with or without a slash at the end.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for `https://`, [`ErrorKind::Invalid`] for anything else.
pub(super) fn parse_address(text: &str) -> Result<Arc<str>> {
    if text.contains('@') {
        // The text is not shown: it may hold a password.
        return Err(invalid(
            "an nsqlookupd address contains @; credentials in it are not supported, give host:port".into(),
        ));
    }
    let bare = match text.split_once("://") {
        None => text,
        Some((scheme, bare)) if scheme.eq_ignore_ascii_case("http") => bare,
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => {
            let message = format!("nsqlookupd address {text:?}: https is not supported, give host:port");
            return Err(Error::new(ErrorKind::Unsupported, Step::Configure, message));
        }
        Some(_) => return Err(malformed(text, "the scheme is not http")),
    };
    let bare = bare.strip_suffix('/').unwrap_or(bare);
    if bare.contains(['/', '?', '#']) {
        return Err(malformed(text, "a path is not supported"));
    }
    let Some((host, port)) = bare.rsplit_once(':') else {
        return Err(malformed(text, "the port is missing"));
    };
    let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number || !port.parse::<u16>().is_ok_and(|port| port != 0) {
        return Err(malformed(text, "the port is not a number from 1 to 65535"));
    }
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if inner.is_none() && host.contains([':', '[', ']']) {
        return Err(malformed(text, "an IPv6 address needs brackets, as in [::1]:4161"));
    }
    let inner = inner.unwrap_or(host);
    if inner.is_empty() || inner.len() > MAX_HOST || !inner.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(malformed(text, "the host is not a host name or IP address"));
    }
    Ok(bare.into())
}

fn malformed(text: &str, what: &str) -> Error {
    invalid(format!(
        "nsqlookupd address {text:?}: {what}; give host:port of its HTTP interface, as in 127.0.0.1:4161"
    ))
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::Invalid, Step::Configure, message)
}

#[cfg(test)]
mod tests;
