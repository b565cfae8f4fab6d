//! What is left of the state when the broker stops, and what comes back when it starts again.

use tokio::time::Instant;

use super::state::State;

impl State {
    /// Forgets every message; topics and channels stay, which nsqd knows from its metadata.
    pub(super) fn forget_messages(&mut self) {
        for topic in self.topics.values_mut() {
            topic.forget_waiting();
        }
        for (_, channel) in &mut self.channels {
            channel.empty(&mut self.clients);
            channel.forget_counts();
        }
    }

    /// What nsqd finds when it starts again: all messages are queued, nothing ephemeral is left, and what is paused is
    /// so still.
    pub(super) fn settle_for_restart(&mut self, now: Instant) {
        let ephemeral: Vec<_> = self
            .channels
            .iter()
            .filter(|(_, channel)| channel.is_ephemeral() || channel.topic.ends_with("#ephemeral"))
            .map(|(key, _)| key)
            .collect();
        for key in ephemeral {
            self.delete_channel_at(key);
        }
        self.topics.retain(|name, _| !name.ends_with("#ephemeral"));
        for topic in self.topics.values_mut() {
            topic.restart();
        }
        self.unhealthy = None;
        for (_, channel) in &mut self.channels {
            channel.requeue_all();
        }
        self.starting_topics.clear();
        let names: Vec<_> = self.topics.keys().cloned().collect();
        for name in names {
            self.release_backlog(&name, now);
        }
    }

    pub(super) fn register_all(&self) {
        for registration in &self.registrations {
            registration.announce();
            for (name, topic) in &self.topics {
                registration.register(name, None);
                for channel in topic.channels.keys() {
                    registration.register(name, Some(channel));
                }
            }
        }
    }

    pub(super) fn unregister_all(&self) {
        for registration in &self.registrations {
            registration.withdraw();
        }
    }
}
