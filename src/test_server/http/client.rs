//! Asks an HTTP server one question.

use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper::header::{self, HeaderName};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout_at};

use super::MAX_HEAD;
use crate::transport::{BoxIo, Connector};

/// How long a question may take.
#[derive(Clone, Copy, Debug)]
pub(in crate::test_server) struct Patience {
    /// Until there is a connection.
    pub(in crate::test_server) connect: Duration,
    /// Until there is the whole answer, connecting included.
    pub(in crate::test_server) request: Duration,
}

impl Default for Patience {
    /// nsqd's `http-client-connect-timeout` and `http-client-request-timeout`.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            request: Duration::from_secs(5),
        }
    }
}

/// Asks by GET on a connection of its own, and returns the status and the body, whatever the status is. `target` is the
/// path and the query.
pub(in crate::test_server) async fn get(
    connector: &dyn Connector,
    address: &str,
    target: &str,
    headers: &[(HeaderName, &str)],
    patience: Patience,
    limit: usize,
) -> io::Result<(StatusCode, Bytes)> {
    let mut request = Request::get(target).header(header::HOST, address);
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    let request = request
        .body(Empty::new())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let now = Instant::now();
    let deadline = now + patience.request;
    let connected = timeout_at(deadline.min(now + patience.connect), connector.connect(address)).await;
    let io = connected.map_err(|_| too_slow("connection"))??;
    let exchanged = timeout_at(deadline, exchange(io, request, limit)).await;
    exchanged.map_err(|_| too_slow("complete answer"))?
}

async fn exchange(io: BoxIo, request: Request<Empty<Bytes>>, limit: usize) -> io::Result<(StatusCode, Bytes)> {
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(io))
        .await
        .map_err(io::Error::other)?;
    let mut connection = pin!(connection);
    let mut answer = pin!(async {
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        let (head, body) = response.into_parts();
        match Limited::new(body, limit).collect().await {
            Ok(body) => Ok((head.status, body.to_bytes())),
            Err(error) if error.is::<LengthLimitError>() => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the answer is larger than {limit} bytes"),
            )),
            Err(error) => Err(io::Error::other(error)),
        }
    });
    tokio::select! {
        biased;
        answer = &mut answer => return answer,
        // Why it ended is told by `answer` too.
        _ = &mut connection => {}
    }
    answer.await
}

fn too_slow(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no {what} in time"))
}
