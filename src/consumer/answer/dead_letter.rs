//! Where messages go that are given up: to a topic of their own.

use bytes::Bytes;

use crate::error::{Error, ErrorKind};
use crate::name::Topic;
use crate::producer::Producer;

/// The topic for messages that are given up, and the way there.
#[derive(Clone, Debug)]
pub(in crate::consumer) struct DeadLetters {
    producer: Producer,
    topic: Topic,
}

impl DeadLetters {
    /// For messages of the topic `consumed`.
    pub(in crate::consumer) fn new(producer: Producer, topic: Topic, consumed: &Topic) -> Self {
        if topic == *consumed {
            tracing::warn!(
                "the dead-letter topic is {topic}, the one consumed: unless it is another cluster's, messages that are given up \
                 come back for ever"
            );
        }
        Self { producer, topic }
    }

    /// Publishes a message that is given up. The message is to be finished only if this is `Ok`.
    pub(in crate::consumer) async fn publish(&self, body: Bytes) -> Result<(), Error> {
        let published = self.producer.publish(self.topic.clone(), body).await;
        if let Err(error) = &published {
            let again = match error.kind() {
                ErrorKind::Unknown => "it may have been published, and will be again",
                ErrorKind::Rejected | ErrorKind::Invalid => "the next time fails as well, unless something is changed",
                _ => "it was not published",
            };
            tracing::error!(
                error = error as &dyn std::error::Error, topic = %self.topic,
                "a message could not be published to the dead-letter topic: {again}; it is requeued"
            );
        }
        published
    }
}
