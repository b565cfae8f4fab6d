//! One HTTP request to one nsqlookupd.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout_at};

use crate::config::LookupdTarget;
use crate::error::{Error, ErrorKind, Result, Step};
#[cfg(feature = "tls")]
use crate::transport::tls;
use crate::transport::{BoxIo, Connector};

/// Bounds the head of an answer; nsqlookupd's is some 200 bytes.
pub(super) const MAX_HEAD: usize = 64 * 1024;

/// How much of a refusal's body an error shows.
const MAX_EXCERPT: usize = 100;

/// How requests are sent, whatever they ask.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) connector: Arc<dyn Connector>,
    /// What one question may take altogether; errors name it.
    pub(super) timeout: Duration,
    pub(super) max_body: usize,
}

impl Client {
    /// Opens a connection of its own, sends the request, and closes the connection. Errors are at step lookup.
    pub(super) async fn send(
        &self,
        target: &LookupdTarget,
        method: Method,
        path: &str,
        deadline: Instant,
    ) -> Result<(StatusCode, Bytes)> {
        let io = match timeout_at(deadline, self.connector.connect(&target.authority)).await {
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
        #[cfg(feature = "tls")]
        let io = match &target.tls {
            None => io,
            Some(tls) => match timeout_at(deadline, tls::connect(tls, target.host(), io)).await {
                Ok(io) => Box::new(io.map_err(no_tls)?),
                Err(_) => return Err(self.too_slow(ErrorKind::ConnectionLost, "connected, but no TLS handshake")),
            },
        };
        match timeout_at(deadline, self.exchange(io, target, method, path)).await {
            Ok(answer) => answer,
            Err(_) => Err(self.too_slow(ErrorKind::ConnectionLost, "connected, but no complete answer")),
        }
    }

    async fn exchange(
        &self,
        io: BoxIo,
        target: &LookupdTarget,
        method: Method,
        path: &str,
    ) -> Result<(StatusCode, Bytes)> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .body(Empty::<Bytes>::new())
            .map_err(|error| {
                Error::new(ErrorKind::Invalid, Step::Lookup, "the request cannot be formed").because(error)
            })?;
        request.headers_mut().clone_from(&target.headers);
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
                    "the answer is larger than {} bytes; check that this is nsqlookupd's HTTP address, or raise \
                     max_lookupd_answer",
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

#[cfg(feature = "tls")]
fn no_tls(cause: Error) -> Error {
    Error::new(cause.kind(), Step::Lookup, "no TLS connection").because(cause)
}

fn http_failure(error: hyper::Error) -> Error {
    #[cfg(feature = "tls")]
    if let Some(refusal) = tls::refusal(&error) {
        return no_tls(refusal);
    }
    if error.is_parse() {
        let message = "the answer is not HTTP; give the HTTP address of nsqlookupd (port 4161 by default), not the TCP \
                       address that nsqd registers at (4160), and https:// if it speaks TLS";
        Error::new(ErrorKind::Protocol, Step::Lookup, message).because(error)
    } else {
        let message = "the connection ended before an answer came";
        Error::new(ErrorKind::ConnectionLost, Step::Lookup, message).because(error)
    }
}

/// What an answer with an unexpected status means; `path` is what was asked for.
pub(super) fn refused(path: &str, status: StatusCode, body: &[u8]) -> Error {
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    let (kind, advice) = if status == StatusCode::NOT_FOUND {
        // nsqd's HTTP port, most of the time.
        let advice = "it does not know this path; give the address of nsqlookupd (port 4161 by default), not of nsqd";
        (ErrorKind::Rejected, advice)
    } else if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        let advice =
            "something in front of nsqlookupd demands credentials; give them with LookupdConfig::bearer or header";
        (ErrorKind::Rejected, advice)
    } else if status.is_server_error() {
        (ErrorKind::Rejected, "see its log, or that of the proxy in front of it")
    } else if status.is_client_error() || status == StatusCode::OK {
        let advice = "check that this is nsqlookupd's HTTP address, given with https:// if it speaks TLS";
        (ErrorKind::Rejected, advice)
    } else {
        let advice = "nsqlookupd never answers this; check that this is its HTTP address";
        (ErrorKind::Protocol, advice)
    };
    let excerpt = &body[..body.len().min(MAX_EXCERPT)];
    let message = format!(
        "{path} was answered with {status} {:?}: {advice}",
        String::from_utf8_lossy(excerpt)
    );
    Error::new(kind, Step::Lookup, message)
}
