//! Answers, and NSQ's conventions for them.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use hyper::ext::ReasonPhrase;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

use crate::test_server::json;

const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");

/// What a body that is as long as wanted is made of. JSON allows it anywhere.
static SPACES: [u8; 16 * 1024] = [b' '; 16 * 1024];

/// An answer to a request.
pub(in crate::test_server) struct Answer(Response<AnswerBody>);

impl Answer {
    fn new(status: StatusCode, content_type: Option<HeaderValue>, body: Bytes) -> Self {
        let mut response = Response::new(AnswerBody::Whole(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        if let Some(content_type) = content_type {
            headers.insert(CONTENT_TYPE, content_type);
        }
        // go-nsq takes a body without this header for the envelope of versions before 1.0.
        headers.insert("x-nsq-content-type", HeaderValue::from_static("nsq; version=1.0"));
        Self(response)
    }

    /// Success, and nothing to tell.
    pub(in crate::test_server) fn done() -> Self {
        Self::new(StatusCode::OK, None, Bytes::new())
    }

    /// Success with a text. An empty one has no content type.
    pub(in crate::test_server) fn text(text: impl Into<Bytes>) -> Self {
        let text = text.into();
        Self::new(StatusCode::OK, (!text.is_empty()).then_some(PLAIN), text)
    }

    /// Success with a value. Structs keep the order of their fields.
    pub(in crate::test_server) fn json<T: Serialize>(value: &T) -> Self {
        Self::raw_json(StatusCode::OK, json::to_vec(value))
    }

    /// JSON that is written already.
    pub(in crate::test_server) fn raw_json(status: StatusCode, text: impl Into<Bytes>) -> Self {
        Self::new(status, Some(JSON), text.into())
    }

    /// A text, without NSQ's header: how `/ping` answers, and what is no part of NSQ. An empty one has no content type.
    pub(in crate::test_server) fn bare(status: StatusCode, text: impl Into<Bytes>) -> Self {
        let text = text.into();
        let content_type = (!text.is_empty()).then_some(PLAIN);
        Self::new(status, content_type, text).foreign()
    }

    /// A body of so many bytes which is never in memory as a whole; its head does not tell how long it is.
    pub(super) fn huge(bytes: u64) -> Self {
        let mut response = Response::new(AnswerBody::Spaces(bytes));
        response.headers_mut().insert(CONTENT_TYPE, JSON);
        Self(response)
    }

    /// Sets a header.
    pub(in crate::test_server) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers_mut().insert(name, value);
        self
    }

    /// Takes NSQ's header off.
    pub(in crate::test_server) fn foreign(mut self) -> Self {
        self.0.headers_mut().remove("x-nsq-content-type");
        self
    }

    /// Ends the connection after this answer.
    pub(in crate::test_server) fn closing(self) -> Self {
        self.header(CONNECTION, HeaderValue::from_static("close"))
    }

    pub(super) fn into_response(mut self) -> Response<AnswerBody> {
        if self.0.status() == StatusCode::PAYLOAD_TOO_LARGE {
            // Go calls it by its former name.
            let reason = ReasonPhrase::from_static(b"Request Entity Too Large");
            self.0.extensions_mut().insert(reason);
        }
        self.0
    }
}

/// A refusal: a status, and a code within JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::test_server) struct Refusal {
    status: StatusCode,
    code: String,
}

#[derive(Serialize)]
struct Message<'a> {
    message: &'a str,
}

impl Refusal {
    pub(in crate::test_server) fn new(status: StatusCode, code: impl Into<String>) -> Self {
        Self {
            status,
            code: code.into(),
        }
    }

    /// Status 400.
    pub(in crate::test_server) fn bad_request(code: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code)
    }

    /// Status 404.
    pub(in crate::test_server) fn not_found(code: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code)
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        let message = Message { message: &refusal.code };
        Self::raw_json(refusal.status, json::to_vec(&message))
    }
}

/// The body of an answer.
pub(super) enum AnswerBody {
    Whole(Bytes),
    Spaces(u64),
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = match self.get_mut() {
            Self::Whole(body) => std::mem::take(body),
            Self::Spaces(left) => {
                let length = (*left).min(SPACES.len() as u64);
                *left -= length;
                Bytes::from_static(&SPACES[..length as usize])
            }
        };
        Poll::Ready((!data.is_empty()).then(|| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_empty(),
            Self::Spaces(left) => *left == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => SizeHint::with_exact(body.len() as u64),
            Self::Spaces(_) => SizeHint::default(),
        }
    }
}
