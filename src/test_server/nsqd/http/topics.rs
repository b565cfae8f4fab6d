//! Topics and channels: created, deleted, emptied, paused.

use std::sync::Arc;

use super::{Answered, Front, arguments, topic_and_channel, topic_argument, valid_topic};
use crate::test_server::http::{Answer, Refusal, Request};
use crate::test_server::nsqd::broker::Shared;
use crate::test_server::nsqd::topics::Missing;

pub(super) async fn create_topic(front: Arc<Front>, request: Request) -> Answered {
    let query = arguments(request).await?;
    let topic = valid_topic(&query)?;
    front.change(|state, now| {
        state.ensure_topic(topic, now);
        Ok(Answer::done())
    })
}

pub(super) async fn delete_topic(front: Arc<Front>, request: Request) -> Answered {
    let query = arguments(request).await?;
    let topic = topic_argument(&query)?;
    Shared::end(front.change(|state, _| state.delete_topic(topic).map_err(missing))?);
    Ok(Answer::done())
}

pub(super) async fn empty_topic(front: Arc<Front>, request: Request) -> Answered {
    let query = arguments(request).await?;
    let topic = valid_topic(&query)?;
    front.change(|state, _| state.empty_topic(topic).map_err(missing))?;
    Ok(Answer::done())
}

pub(super) async fn pause_topic(front: Arc<Front>, request: Request, paused: bool) -> Answered {
    let query = arguments(request).await?;
    let topic = topic_argument(&query)?;
    front.change(|state, now| state.pause_topic(topic, paused, now).map_err(missing))?;
    Ok(Answer::done())
}

pub(super) async fn create_channel(front: Arc<Front>, request: Request) -> Answered {
    let query = arguments(request).await?;
    let (topic, channel) = topic_and_channel(&query)?;
    front.change(|state, now| {
        if !state.topics.contains_key(topic) {
            return Err(missing(Missing::Topic));
        }
        state.ensure_channel(topic, channel, now);
        Ok(Answer::done())
    })
}

pub(super) async fn delete_channel(front: Arc<Front>, request: Request) -> Answered {
    let query = arguments(request).await?;
    let (topic, channel) = topic_and_channel(&query)?;
    Shared::end(front.change(|state, _| state.delete_channel(topic, channel).map_err(missing))?);
    Ok(Answer::done())
}

pub(super) async fn empty_channel(front: Arc<Front>, request: Request) -> Answered {
    let query = arguments(request).await?;
    let (topic, channel) = topic_and_channel(&query)?;
    front.change(|state, _| state.empty_channel(topic, channel).map_err(missing))?;
    Ok(Answer::done())
}

pub(super) async fn pause_channel(front: Arc<Front>, request: Request, paused: bool) -> Answered {
    let query = arguments(request).await?;
    let (topic, channel) = topic_and_channel(&query)?;
    front.change(|state, now| state.pause_channel(topic, channel, paused, now).map_err(missing))?;
    Ok(Answer::done())
}

fn missing(missing: Missing) -> Refusal {
    Refusal::not_found(match missing {
        Missing::Topic => "TOPIC_NOT_FOUND",
        Missing::Channel => "CHANNEL_NOT_FOUND",
    })
}
