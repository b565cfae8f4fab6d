//! Which topics a group consumes as they appear.

use std::fmt;
use std::sync::Arc;

use crate::consumer::work::panics::caught;
use crate::name::Topic;

/// The default of [`TopicPattern::max_topics`].
const MAX_TOPICS: usize = 1000;

/// Which topics [`ConsumerGroupBuilder::topics_matching`](super::ConsumerGroupBuilder::topics_matching) consumes, how many
/// of them, and with which weight.
///
/// ```
/// use async_nsq::{Topic, TopicPattern};
///
/// let orders = TopicPattern::glob("orders.*").weight(3).max_topics(50);
/// let durable = TopicPattern::new(|topic: &Topic| !topic.is_ephemeral());
/// # let _ = (orders, durable);
/// ```
///
/// With the `regex` crate, as nsq_to_file's `--topic-pattern`:
///
/// ```
/// # use async_nsq::{Topic, TopicPattern};
/// let pattern = regex::Regex::new("^orders[.](eu|us)$")?;
/// let pattern = TopicPattern::new(move |topic: &Topic| pattern.is_match(topic.as_str()));
/// # Ok::<(), regex::Error>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct TopicPattern {
    matches: Arc<dyn Fn(&Topic) -> bool + Send + Sync>,
    pub(super) weight: u32,
    pub(super) max_topics: usize,
}

impl TopicPattern {
    /// The topics for which `matches` returns true. It is called once for each topic that appears, in a task of the
    /// group's, so it must be quick. Where it panics, the topic is left out, with a warning in the log.
    pub fn new(matches: impl Fn(&Topic) -> bool + Send + Sync + 'static) -> Self {
        Self {
            matches: Arc::new(matches),
            weight: 1,
            max_topics: MAX_TOPICS,
        }
    }

    /// The topics whose whole names match, where `*` is any number of characters and `?` is one. It is by case.
    pub fn glob(pattern: impl Into<String>) -> Self {
        let pattern = pattern.into();
        Self::new(move |topic| glob(pattern.as_bytes(), topic.as_bytes()))
    }

    /// All topics.
    pub fn all() -> Self {
        Self::new(|_| true)
    }

    /// The weight of each topic's consumer. Default: 1. Allowed: 1 to 10,000.
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// How many of these topics are consumed at once; further ones wait for room, with a warning in the log. Default:
    /// 1,000. Allowed: 1 or more.
    ///
    /// It bounds what whoever creates topics can make this process do: each costs a consumer with its connections.
    pub fn max_topics(mut self, count: usize) -> Self {
        self.max_topics = count;
        self
    }

    pub(super) fn matches(&self, topic: &Topic) -> bool {
        caught(|| Ok((self.matches)(topic))).unwrap_or_else(|error| {
            tracing::warn!(%topic, %error, "the pattern failed at a topic, which is left out");
            false
        })
    }
}

impl fmt::Debug for TopicPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TopicPattern")
            .field("weight", &self.weight)
            .field("max_topics", &self.max_topics)
            .finish_non_exhaustive()
    }
}

/// It looks at each character of the name once for each `*`, at most.
fn glob(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    // Behind the last `*`, and how far that one reaches by now.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, n));
                p += 1;
            }
            Some(&wanted) if wanted == b'?' || wanted == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((behind, reach)) = star else { return false };
                star = Some((behind, reach + 1));
                (p, n) = (behind, reach + 1);
            }
        }
    }
    pattern[p..].iter().all(|&rest| rest == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glob_matches_whole_names() {
        let matches = |pattern: &str, name: &str| TopicPattern::glob(pattern).matches(&Topic::new(name).unwrap());
        for (pattern, name) in [
            ("orders", "orders"),
            ("*", "orders"),
            ("orders.*", "orders.eu"),
            ("*.eu", "orders.eu"),
            ("o*s.*u", "orders.us.eu"),
            ("order?", "orders"),
            ("*#ephemeral", "a#ephemeral"),
            ("a**b*", "a.b"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("orders", "orders.eu"),
            ("orders.*", "orders"),
            ("", "orders"),
            ("order?", "order"),
            ("*.eu", "orders.eu2"),
            ("Orders", "orders"),
            ("*a*b*c", "aabbab"),
        ] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn a_pattern_that_panics_leaves_the_topic_out() {
        let pattern = TopicPattern::new(|_| panic!("as a user's may"));
        assert!(!pattern.matches(&Topic::new("orders").unwrap()));
    }
}
