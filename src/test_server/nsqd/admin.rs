//! Topics and channels by hand: what nsqd's HTTP side and nsqadmin do, without either.

use tokio::time::Instant;

use super::Nsqd;
use super::broker::Shared;
use super::state::State;
use super::topics::Missing;
use crate::error::{Error, Result};
use crate::name::{Channel, Topic};

/// Topics and channels by hand, for tests that need none of nsqd's HTTP interface.
impl Nsqd {
    /// Creates a topic, unless it exists. From then on it keeps what is published to it for its first channel.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if the name is not valid.
    pub fn create_topic<T>(&self, topic: T) -> Result<()>
    where
        T: TryInto<Topic>,
        T::Error: Into<Error>,
    {
        let topic = topic.try_into().map_err(Into::into)?;
        self.shared.change(|state| {
            state.ensure_topic(topic.as_str(), Instant::now());
        });
        Ok(())
    }

    /// Creates a channel, and its topic if that does not exist. As a topic's first one it gets what the topic has kept
    /// so far; every channel gets a copy of what is published later.
    ///
    /// ```
    /// use async_nsq::test_server::Nsqd;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let nsqd = Nsqd::start().await?;
    /// nsqd.create_channel("orders", "billing")?;
    /// nsqd.create_channel("orders", "audit")?;
    /// nsqd.publish("orders", "the first")?;
    /// assert_eq!(nsqd.drain("orders", "billing")?, ["the first"]);
    /// assert_eq!(nsqd.drain("orders", "audit")?, ["the first"]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if a name is not valid.
    pub fn create_channel<T, C>(&self, topic: T, channel: C) -> Result<()>
    where
        T: TryInto<Topic>,
        T::Error: Into<Error>,
        C: TryInto<Channel>,
        C::Error: Into<Error>,
    {
        let (topic, channel) = names(topic, channel)?;
        self.shared
            .change(|state| state.ensure_channel(topic.as_str(), channel.as_str(), Instant::now()));
        Ok(())
    }

    /// Deletes a topic with its channels and all messages. Its consumers are disconnected without a word.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if the name is not valid, or there is no such topic.
    pub fn delete_topic<T>(&self, topic: T) -> Result<()>
    where
        T: TryInto<Topic>,
        T::Error: Into<Error>,
    {
        Shared::end(self.on_topic(topic, |state, topic| state.delete_topic(topic))?);
        Ok(())
    }

    /// Deletes a channel with its messages. Its consumers are disconnected without a word.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if a name is not valid, or there is no such topic or channel.
    pub fn delete_channel<T, C>(&self, topic: T, channel: C) -> Result<()>
    where
        T: TryInto<Topic>,
        T::Error: Into<Error>,
        C: TryInto<Channel>,
        C::Error: Into<Error>,
    {
        Shared::end(self.on_channel(topic, channel, State::delete_channel)?);
        Ok(())
    }

    /// Forgets what waits in a topic itself: messages from before its first channel, or since it was paused. Its
    /// channels keep what they have.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if the name is not valid, or there is no such topic.
    pub fn empty_topic<T>(&self, topic: T) -> Result<()>
    where
        T: TryInto<Topic>,
        T::Error: Into<Error>,
    {
        self.on_topic(topic, |state, topic| state.empty_topic(topic))
    }

    /// Forgets all messages of a channel: queued, in flight and deferred. A consumer that finishes one of them later is
    /// told `E_FIN_FAILED`.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if a name is not valid, or there is no such topic or channel.
    pub fn empty_channel<T, C>(&self, topic: T, channel: C) -> Result<()>
    where
        T: TryInto<Topic>,
        T::Error: Into<Error>,
        C: TryInto<Channel>,
        C::Error: Into<Error>,
    {
        self.on_channel(topic, channel, State::empty_channel)
    }

    /// Keeps messages in a topic until [`unpause_topic`](Self::unpause_topic). Its channels go on with what they have.
    /// It stays paused when the broker is restarted.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if the name is not valid, or there is no such topic.
    pub fn pause_topic<T>(&self, topic: T) -> Result<()>
    where
        T: TryInto<Topic>,
        T::Error: Into<Error>,
    {
        self.on_topic(topic, |state, topic| state.pause_topic(topic, true, Instant::now()))
    }

    /// Hands what a paused topic has kept to its channels, and lets messages pass again.
    ///
    /// # Errors
    /// As [`pause_topic`](Self::pause_topic).
    pub fn unpause_topic<T>(&self, topic: T) -> Result<()>
    where
        T: TryInto<Topic>,
        T::Error: Into<Error>,
    {
        self.on_topic(topic, |state, topic| state.pause_topic(topic, false, Instant::now()))
    }

    /// Sends no message of a channel to any consumer until [`unpause_channel`](Self::unpause_channel). What is in flight
    /// can be answered, and times out. It stays paused when the broker is restarted.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if a name is not valid, or there is no such topic or channel.
    pub fn pause_channel<T, C>(&self, topic: T, channel: C) -> Result<()>
    where
        T: TryInto<Topic>,
        T::Error: Into<Error>,
        C: TryInto<Channel>,
        C::Error: Into<Error>,
    {
        self.on_channel(topic, channel, |state, topic, channel| {
            state.pause_channel(topic, channel, true, Instant::now())
        })
    }

    /// Lets a channel go on.
    ///
    /// # Errors
    /// As [`pause_channel`](Self::pause_channel).
    pub fn unpause_channel<T, C>(&self, topic: T, channel: C) -> Result<()>
    where
        T: TryInto<Topic>,
        T::Error: Into<Error>,
        C: TryInto<Channel>,
        C::Error: Into<Error>,
    {
        self.on_channel(topic, channel, |state, topic, channel| {
            state.pause_channel(topic, channel, false, Instant::now())
        })
    }

    fn on_topic<T, R>(&self, topic: T, change: impl FnOnce(&mut State, &str) -> Result<R, Missing>) -> Result<R>
    where
        T: TryInto<Topic>,
        T::Error: Into<Error>,
    {
        let topic = topic.try_into().map_err(Into::into)?;
        let changed = self.shared.change(|state| change(state, topic.as_str()));
        changed.map_err(|_| no_topic(&topic))
    }

    fn on_channel<T, C, R>(
        &self,
        topic: T,
        channel: C,
        change: impl FnOnce(&mut State, &str, &str) -> Result<R, Missing>,
    ) -> Result<R>
    where
        T: TryInto<Topic>,
        T::Error: Into<Error>,
        C: TryInto<Channel>,
        C::Error: Into<Error>,
    {
        let (topic, channel) = names(topic, channel)?;
        let changed = self
            .shared
            .change(|state| change(state, topic.as_str(), channel.as_str()));
        changed.map_err(|missing| match missing {
            Missing::Topic => no_topic(&topic),
            Missing::Channel => {
                let (topic, channel) = (topic.as_str(), channel.as_str());
                Error::invalid(format!("the topic {topic:?} has no channel {channel:?}"))
            }
        })
    }
}

fn names<T, C>(topic: T, channel: C) -> Result<(Topic, Channel)>
where
    T: TryInto<Topic>,
    T::Error: Into<Error>,
    C: TryInto<Channel>,
    C::Error: Into<Error>,
{
    Ok((
        topic.try_into().map_err(Into::into)?,
        channel.try_into().map_err(Into::into)?,
    ))
}

fn no_topic(topic: &Topic) -> Error {
    Error::invalid(format!("there is no topic {:?}", topic.as_str()))
}
