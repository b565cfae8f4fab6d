//! nsqd's HTTP side.

mod config;
mod info;
mod publish;
mod sides;
mod stats;
mod stats_text;
mod topics;

use std::io;
use std::sync::Arc;

use hyper::{Method, StatusCode};
use tokio::time::Instant;

use super::broker::Shared;
use super::state::State;
use crate::name::{Channel, Topic};
use crate::test_server::http::{Answer, BodyError, Query, Refusal, Request, Router, Service};
use crate::test_server::listener::split_address;

pub(super) use sides::Sides;

/// What a handler answers.
type Answered = Result<Answer, Refusal>;

/// How much of a body that nobody reads is taken in, so that the connection can go on, as by Go's server.
const MAX_UNREAD: usize = 256 * 1024;

/// Where the sides of an nsqd are reached.
#[derive(Clone, Debug)]
struct Places {
    http: String,
    /// Without a certificate, where it would be.
    https: String,
    /// Whether requests must come by HTTPS.
    https_only: bool,
}

/// The HTTP side of an nsqd, or its HTTPS side.
struct Front {
    shared: Arc<Shared>,
    places: Places,
    tcp_port: u16,
    http_port: u16,
    https_port: u16,
    encrypted: bool,
    routes: Router<Front>,
}

impl Front {
    fn new(shared: Arc<Shared>, places: Places, encrypted: bool) -> io::Result<Self> {
        let port = |address: &str| split_address(address).map(|(_, port)| port);
        Ok(Self {
            tcp_port: port(shared.door.address())?,
            http_port: port(&places.http)?,
            https_port: port(&places.https)?,
            shared,
            places,
            encrypted,
            routes: routes(),
        })
    }

    /// Changes the state, unless the broker was stopped while the request was read.
    fn change<T>(&self, change: impl FnOnce(&mut State, Instant) -> Result<T, Refusal>) -> Result<T, Refusal> {
        self.shared.change(|state| {
            if state.closed {
                return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "EXITING"));
            }
            change(state, Instant::now())
        })
    }
}

impl Service for Front {
    async fn answer(self: Arc<Self>, mut request: Request) -> Answer {
        if self.places.https_only && !self.encrypted {
            let text = format!(r#"{{"message": "TLS_REQUIRED", "https_port": {}}}"#, self.https_port);
            let answer = Answer::raw_json(StatusCode::FORBIDDEN, text);
            return without_body(&mut request, answer).await;
        }
        let (remote, method, target) = (request.remote(), request.method(), request.target());
        tracing::debug!(remote, %method, target, "request by HTTP");
        self.routes.answer(&self, request).await
    }
}

fn routes() -> Router<Front> {
    let router = Router::new()
        .get("/ping", info::ping)
        .get("/info", info::info)
        .post("/pub", publish::publish)
        .post("/mpub", publish::publish_many)
        .get("/stats", stats::stats)
        .post("/topic/create", topics::create_topic)
        .post("/topic/delete", topics::delete_topic)
        .post("/topic/empty", topics::empty_topic)
        .post("/topic/pause", |front, request| {
            topics::pause_topic(front, request, true)
        })
        .post("/topic/unpause", |front, request| {
            topics::pause_topic(front, request, false)
        })
        .post("/channel/create", topics::create_channel)
        .post("/channel/delete", topics::delete_channel)
        .post("/channel/empty", topics::empty_channel)
        .post("/channel/pause", |front, request| {
            topics::pause_channel(front, request, true)
        })
        .post("/channel/unpause", |front, request| {
            topics::pause_channel(front, request, false)
        })
        .get("/config/:opt", config::get)
        .route(Method::PUT, "/config/:opt", config::put);
    info::debug_routes(router)
}

/// Gives an answer to a request whose body does not matter: it is read and dropped if it is small, and if not, the
/// connection ends with the answer.
async fn without_body(request: &mut Request, answer: Answer) -> Answer {
    match request.discard_body(MAX_UNREAD).await {
        true => answer,
        false => answer.closing(),
    }
}

/// The answer to a body that was not read to its end, after which the connection cannot go on.
fn cut_off(error: BodyError, too_big: impl FnOnce() -> Refusal) -> Answered {
    let refusal = match error {
        BodyError::TooBig => too_big(),
        BodyError::Broken => Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL_ERROR"),
    };
    Ok(Answer::from(refusal).closing())
}

/// The arguments of a request whose body does not matter.
async fn arguments(mut request: Request) -> Result<Query, Refusal> {
    // One with a large body is answered all the same, by a connection that does not go on.
    request.discard_body(MAX_UNREAD).await;
    request.query()
}

fn topic_argument(query: &Query) -> Result<&str, Refusal> {
    query
        .get("topic")
        .ok_or_else(|| Refusal::bad_request("MISSING_ARG_TOPIC"))
}

/// The topic to publish to, or to create.
fn valid_topic(query: &Query) -> Result<&str, Refusal> {
    let topic = topic_argument(query)?;
    match Topic::new(topic) {
        Ok(_) => Ok(topic),
        Err(_) => Err(Refusal::bad_request("INVALID_TOPIC")),
    }
}

/// Topic and channel. That of a topic is called invalid by another name here.
fn topic_and_channel(query: &Query) -> Result<(&str, &str), Refusal> {
    let topic = topic_argument(query)?;
    if Topic::new(topic).is_err() {
        return Err(Refusal::bad_request("INVALID_ARG_TOPIC"));
    }
    let channel = query.get("channel");
    let channel = channel.ok_or_else(|| Refusal::bad_request("MISSING_ARG_CHANNEL"))?;
    if Channel::new(channel).is_err() {
        return Err(Refusal::bad_request("INVALID_ARG_CHANNEL"));
    }
    Ok((topic, channel))
}

/// A truth as nsqd reads it from a query: what is neither true nor false is as if absent.
fn truth(query: &Query, name: &str) -> Option<bool> {
    match query.get(name)? {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}
