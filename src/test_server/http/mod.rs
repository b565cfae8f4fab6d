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

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use crate::transport::BoxIo;

pub(super) use answer::{Answer, Refusal};
pub(super) use client::{Patience, get};
pub(super) use faults::{Scope, Script};
pub(super) use query::{Query, encode};
pub(super) use request::{BodyError, Request};
pub(super) use router::Router;

/// Bounds the head of a request: its line and its headers.
const MAX_HEAD: usize = 64 * 1024;

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
    // A connection that breaks is the client's business.
    let _ = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(io), answering)
        .await;
}
