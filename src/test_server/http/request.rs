//! A request as a handler sees it.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::Method;
use hyper::body::{Body, Incoming};

use super::answer::Refusal;
use super::query::Query;

/// A request, its body still to be read.
pub(in crate::test_server) struct Request {
    inner: hyper::Request<Incoming>,
    remote: Arc<str>,
    /// What stands for the last part of a route that leaves it open.
    pub(super) parameter: String,
}

/// Why there is no body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::test_server) enum BodyError {
    /// It is larger than allowed, or says so.
    TooBig,
    /// It broke off.
    Broken,
}

impl Request {
    pub(super) fn new(inner: hyper::Request<Incoming>, remote: Arc<str>) -> Self {
        Self {
            inner,
            remote,
            parameter: String::new(),
        }
    }

    pub(in crate::test_server) fn method(&self) -> &Method {
        self.inner.method()
    }

    /// The path as it was sent.
    pub(in crate::test_server) fn path(&self) -> &str {
        self.inner.uri().path()
    }

    /// The path and the query as they were sent.
    pub(in crate::test_server) fn target(&self) -> &str {
        self.inner.uri().path_and_query().map_or("", |target| target.as_str())
    }

    /// The query as it was sent, not decoded.
    pub(super) fn raw_query(&self) -> Option<&str> {
        self.inner.uri().query()
    }

    /// The name of the connection's other end.
    pub(in crate::test_server) fn remote(&self) -> &str {
        &self.remote
    }

    /// The last part of the path, for a route that ends in `/:something`.
    pub(in crate::test_server) fn parameter(&self) -> &str {
        &self.parameter
    }

    /// The arguments of the query.
    ///
    /// # Errors
    /// 400 `INVALID_REQUEST` if the query is malformed.
    pub(in crate::test_server) fn query(&self) -> Result<Query, Refusal> {
        Query::parse(self.raw_query().unwrap_or_default()).ok_or(Refusal::bad_request("INVALID_REQUEST"))
    }

    /// How long the body will be, if the head says so.
    pub(in crate::test_server) fn content_length(&self) -> Option<u64> {
        self.inner.body().size_hint().exact()
    }

    /// Reads the body and drops it. Returns whether that was all: one that is larger than `limit` is not read to its end,
    /// and one that says so not at all, which ends the connection with the answer.
    pub(in crate::test_server) async fn discard_body(&mut self, limit: usize) -> bool {
        if self.content_length().is_some_and(|length| length > limit as u64) {
            return false;
        }
        let mut left = limit;
        while let Some(frame) = self.inner.frame().await {
            let length = frame.ok().and_then(|frame| Some(frame.data_ref()?.len()));
            match left.checked_sub(length.unwrap_or_default()) {
                Some(less) => left = less,
                None => return false,
            }
        }
        true
    }

    /// Reads the body. One that says at the start that it is larger than `limit` is not read at all.
    pub(in crate::test_server) async fn body(self, limit: usize) -> Result<Bytes, BodyError> {
        if self.content_length().is_some_and(|length| length > limit as u64) {
            return Err(BodyError::TooBig);
        }
        match Limited::new(self.inner.into_body(), limit).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(BodyError::TooBig),
            Err(_) => Err(BodyError::Broken),
        }
    }
}
