//! The state as a test sees it.

use super::client::Client;
use super::lookup_peer::Holdings;
use super::state::State;
use super::stats::{ChannelStats, ClientStats, Stats, TopicStats};

impl State {
    pub(super) fn stats(&self) -> Stats {
        let topics = self.topics.iter().map(|(name, topic)| TopicStats {
            name: name.clone(),
            depth: topic.depth(),
            message_count: topic.message_count,
            message_bytes: topic.message_bytes,
            paused: topic.paused,
            channels: topic
                .channels
                .values()
                .filter_map(|key| self.channel_stats(*key))
                .collect(),
        });
        let clients = self.clients.iter().map(|(id, client)| self.client_stats(*id, client));
        Stats {
            topics: topics.collect(),
            clients: clients.collect(),
            accepted: self.accepted,
        }
    }

    /// What nsqlookupds are told: each topic, and each channel with its topic.
    pub(super) fn holdings(&self) -> Holdings {
        let topics = self.topics.iter();
        topics
            .flat_map(|(name, topic)| {
                let channels = topic.channels.keys();
                let channels = channels.map(|channel| (name.clone(), Some(channel.clone())));
                std::iter::once((name.clone(), None)).chain(channels)
            })
            .collect()
    }

    fn channel_stats(&self, key: usize) -> Option<ChannelStats> {
        let channel = self.channels.get(key)?;
        let clients = channel
            .clients
            .iter()
            .filter_map(|id| Some(self.client_stats(*id, self.clients.get(id)?)));
        Some(channel.stats(clients.collect()))
    }

    fn client_stats(&self, id: u64, client: &Client) -> ClientStats {
        let channel = client.channel.and_then(|key| self.channels.get(key));
        let subscription = channel.map(|channel| (channel.topic.clone(), channel.name.clone()));
        client.stats(id, self.wall_clock.unix_nanos(client.connected), subscription)
    }
}
