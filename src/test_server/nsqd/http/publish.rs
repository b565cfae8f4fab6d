//! Publishing by HTTP.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use hyper::StatusCode;

use super::{Answered, Front, cut_off, truth, valid_topic, without_body};
use crate::test_server::http::{Answer, Query, Refusal, Request};

/// `/pub`: the body is the message.
pub(super) async fn publish(front: Arc<Front>, mut request: Request) -> Answered {
    let limits = front.shared.options.limits;
    let too_big = || too_large("MSG_TOO_BIG");
    if announces_more(&request, limits.max_msg_size) {
        return Ok(without_body(&mut request, too_big().into()).await);
    }
    let query = request.query();
    let body = match request.body(limits.max_msg_size).await {
        Ok(body) => body,
        Err(error) => return cut_off(error, too_big),
    };
    if body.is_empty() {
        return Err(Refusal::bad_request("MSG_EMPTY"));
    }
    let query = query?;
    let topic = valid_topic(&query)?;
    front.change(|state, now| {
        // It exists even if the delay is refused.
        state.ensure_topic(topic, now);
        let delay = delay(&query, limits.max_req_timeout)?;
        state.publish(topic, &[body], delay, now).map_err(unable)
    })?;
    Ok(Answer::text("OK"))
}

/// `/mpub`: a message per line, or with `binary` a count, and a length before each message.
pub(super) async fn publish_many(front: Arc<Front>, mut request: Request) -> Answered {
    let limits = front.shared.options.limits;
    let too_big = || too_large("BODY_TOO_BIG");
    if announces_more(&request, limits.max_body_size) {
        return Ok(without_body(&mut request, too_big().into()).await);
    }
    let query = request.query()?;
    let topic = valid_topic(&query)?;
    // It exists even if the body is refused.
    front.change(|state, now| {
        state.ensure_topic(topic, now);
        Ok(())
    })?;
    let body = match request.body(limits.max_body_size).await {
        Ok(body) => body,
        Err(error) => return cut_off(error, too_big),
    };
    // What is neither true nor false turns it on.
    let binary = query.get("binary").is_some() && truth(&query, "binary").unwrap_or(true);
    let bodies = match binary {
        true => messages(body, limits.max_msg_size, limits.max_body_size)?,
        false => lines(&body, limits.max_msg_size)?,
    };
    front.change(|state, now| state.publish(topic, &bodies, None, now).map_err(unable))?;
    Ok(Answer::text("OK"))
}

fn announces_more(request: &Request, limit: usize) -> bool {
    request.content_length().is_some_and(|length| length > limit as u64)
}

fn too_large(code: &str) -> Refusal {
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, code)
}

/// nsqd has one answer for all that keeps it from taking a message.
fn unable(_: &'static str) -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "EXITING")
}

/// nsqd counts in signed nanoseconds, which wrap.
fn delay(query: &Query, max: Duration) -> Result<Option<Duration>, Refusal> {
    let Some(text) = query.get("defer") else {
        return Ok(None);
    };
    let millis: Option<i64> = text.parse().ok();
    let nanos = millis.and_then(|millis| u64::try_from(millis.wrapping_mul(1_000_000)).ok());
    match nanos.map(Duration::from_nanos) {
        Some(delay) if delay <= max => Ok(Some(delay)),
        _ => Err(Refusal::bad_request("INVALID_DEFER")),
    }
}

/// The lines that are not empty.
fn lines(body: &Bytes, max_msg_size: usize) -> Result<Vec<Bytes>, Refusal> {
    let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let lines = lines.map(|line| match line.len() > max_msg_size {
        true => Err(too_large("MSG_TOO_BIG")),
        // A slice would keep all the others in memory.
        false => Ok(Bytes::copy_from_slice(line)),
    });
    lines.collect()
}

/// What follows the last message does not matter.
fn messages(mut body: Bytes, max_msg_size: usize, max_body_size: usize) -> Result<Vec<Bytes>, Refusal> {
    let most = max_body_size.saturating_sub(4) / 5;
    let count = body.try_get_i32().ok().and_then(|count| usize::try_from(count).ok());
    let Some(count) = count.filter(|count| (1..=most).contains(count)) else {
        return Err(too_large("BAD_BODY"));
    };
    let mut messages = Vec::new();
    for _ in 0..count {
        let length = body.try_get_i32().ok().and_then(|length| usize::try_from(length).ok());
        let length = length.filter(|length| (1..=max_msg_size.min(body.len())).contains(length));
        let length = length.ok_or_else(|| too_large("BAD_MESSAGE"))?;
        messages.push(Bytes::copy_from_slice(&body[..length]));
        body.advance(length);
    }
    Ok(messages)
}
