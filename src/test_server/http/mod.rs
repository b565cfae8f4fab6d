//! What the HTTP sides of nsqd, nsqlookupd and the auth server share: serving a connection, NSQ's conventions for
//! answers, query arguments, routes, scripted faults, and a client for asking one another.

mod answer;
mod client;
mod faults;
mod query;
mod request;
mod router;

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::transport::BoxIo;

pub(super) use answer::{Answer, Refusal};
pub(super) use client::{Patience, get};
pub(super) use faults::{Scope, Script};
pub(super) use query::{Query, encode};
pub(super) use request::{BodyError, Request};
pub(super) use router::Router;

/// Bounds the head of a request: its line and its headers.
const MAX_HEAD: usize = 64 * 1024;

/// How long a client that was refused may go on sending.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What answers requests.
pub(super) trait Service: Send + Sync + 'static {
    /// Answers one request.
    fn answer(self: Arc<Self>, request: Request) -> impl Future<Output = Answer> + Send;
}

/// Serves one connection until either side ends it. `remote` is the name of its other end.
pub(super) async fn serve<S: Service>(io: BoxIo, remote: String, service: Arc<S>) {
    let remote: Arc<str> = remote.into();
    let answering = service_fn(|request| {
        let request = Request::new(request, Arc::clone(&remote));
        let service = Arc::clone(&service);
        async move { Ok::<_, Infallible>(service.answer(request).await.into_response()) }
    });
    let served = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(io), answering)
        .without_shutdown()
        .await;
    // A connection that breaks is the client's business.
    if let Ok(parts) = served {
        part(parts.io.into_inner()).await;
    }
}

/// Ends a connection, and hears for a moment what is still on its way: a socket that is closed with input unread is reset,
/// and the client never sees the answer. Go's server does the same.
async fn part(mut io: BoxIo) {
    let hearing = async {
        io.shutdown().await?;
        tokio::io::copy(&mut io, &mut tokio::io::sink()).await
    };
    // Whoever has not stopped by then is not listening either.
    let _ = timeout(LAST_WORDS, hearing).await;
}
