//! What nsqlookupds are asked, and how their answers are read.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use hyper::StatusCode;

use super::http::refused;
use super::registrations::digest;
use super::view::{Answer, Item};
use crate::config::address;
use crate::error::{Error, ErrorKind, Result, Step};
use crate::name::{Channel, Topic};
use crate::panics::caught;
use crate::protocol::{Lookup, LookupError, LookupProducer, parse_lookup, parse_nodes, parse_topics};

const NOT_FOUND: &str = "TOPIC_NOT_FOUND";

/// How much of a hook's nonsense a log line shows.
const MAX_SHOWN: usize = 100;

/// A question that all nsqlookupds are asked, whose answers can be united.
pub(crate) trait Question: Clone + fmt::Debug + Send + Sync + Unpin + 'static {
    /// What answers list.
    type Item: Item + Send + Sync + Unpin + 'static;

    /// The path and query of the GET.
    fn path(&self) -> &str;

    /// Makes sense of an answer.
    ///
    /// # Errors
    /// At step lookup, without the address.
    fn read(&self, status: StatusCode, body: &[u8]) -> Result<Answer<Self::Item>>;

    /// The path and query of a POST without which the answers would miss something, if the last one calls for it. Its
    /// outcome becomes [`Answer::channel`].
    fn to_create(&self, _answer: &Answer<Self::Item>) -> Option<&str> {
        None
    }

    /// The topic asked for, if it is one, for the log.
    fn topic(&self) -> Option<&Topic>;

    fn log_added(&self, item: &Self::Item, lookupd: Option<&str>);

    fn log_removed(&self, item: &Self::Item);

    fn log_ignored(&self, limit: usize, ignored: usize);
}

/// Which announced nsqds are wanted.
pub(crate) type Filter = Arc<dyn Fn(&LookupProducer) -> bool + Send + Sync>;

/// At which address an announced nsqd is reached.
pub(crate) type AddressMap = Arc<dyn Fn(&LookupProducer) -> String + Send + Sync>;

/// What the user has to say about announced nsqds.
#[derive(Clone, Default)]
pub(crate) struct Hooks {
    pub(crate) filter: Option<Filter>,
    pub(crate) map_address: Option<AddressMap>,
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks")
            .field("filter", &self.filter.is_some())
            .field("map_address", &self.map_address.is_some())
            .finish()
    }
}

impl Hooks {
    /// An answer of these nsqds, each as `item` makes it of its address.
    fn usable<T: Item>(
        &self,
        producers: &[LookupProducer],
        malformed: usize,
        item: impl Fn(Arc<str>, &LookupProducer) -> T,
    ) -> Answer<T> {
        let mut answer = Answer::new(true);
        answer.malformed = malformed;
        for producer in producers {
            match self.address_of(producer) {
                Ok(Some(address)) => {
                    let item = item(address, producer);
                    let registration = (item.clone(), digest(&producer.remote_address));
                    answer.registrations.push(registration);
                    answer.items.push(item);
                }
                Ok(None) => answer.filtered += 1,
                Err(reason) => {
                    answer.malformed += 1;
                    answer.example.get_or_insert(reason);
                }
            }
        }
        answer
    }

    /// Where a wanted nsqd is reached; an error tells why nowhere.
    fn address_of(&self, producer: &LookupProducer) -> Result<Option<Arc<str>>, String> {
        let announced = producer.tcp_address();
        if let Some(filter) = &self.filter {
            match caught(|| filter(producer)) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(_) => return Err(format!("discovery_filter panicked at nsqd {}", shown(&announced))),
            }
        }
        let address = match &self.map_address {
            None => announced,
            Some(map) => {
                caught(|| map(producer)).map_err(|_| format!("map_address panicked at nsqd {}", shown(&announced)))?
            }
        };
        match address::split(&address) {
            Ok(_) => Ok(Some(address.into())),
            Err(reason) => Err(format!("{}: {reason}", shown(&address))),
        }
    }
}

/// Which nsqds have one topic?
#[derive(Clone, Debug)]
pub(crate) struct Nsqds {
    topic: Topic,
    path: Arc<str>,
    /// A channel to create where it does not exist, and how.
    create: Option<(Channel, Arc<str>)>,
    hooks: Hooks,
}

impl Nsqds {
    pub(super) fn new(topic: Topic, create: Option<Channel>, hooks: Hooks) -> Self {
        let path = format!("/lookup?topic={}", query(topic.as_str())).into();
        let create = create.map(|channel| {
            let (topic, name) = (query(topic.as_str()), query(channel.as_str()));
            let path = format!("/channel/create?topic={topic}&channel={name}").into();
            (channel, path)
        });
        Self {
            topic,
            path,
            create,
            hooks,
        }
    }

    fn usable(&self, lookup: Lookup) -> Answer {
        let mut answer = self
            .hooks
            .usable(&lookup.producers, lookup.malformed, |address, _| address);
        answer.channel = self.channel_of(&lookup);
        answer
    }

    fn channel_of(&self, lookup: &Lookup) -> Option<Result<()>> {
        let (channel, _) = self.create.as_ref()?;
        lookup
            .channels
            .iter()
            .any(|known| known == channel.as_str())
            .then_some(Ok(()))
    }
}

impl Question for Nsqds {
    type Item = Arc<str>;

    fn path(&self) -> &str {
        &self.path
    }

    fn read(&self, status: StatusCode, body: &[u8]) -> Result<Answer> {
        if status == StatusCode::OK {
            return match parse_lookup(body) {
                Ok(lookup) => Ok(self.usable(lookup)),
                Err(LookupError::Status(text)) if text == NOT_FOUND => Ok(Answer::new(false)),
                Err(error) => Err(not_understood(&self.path, error)),
            };
        }
        // Version 1.0 and later say this with status 404, older ones with 500. Any other 404 comes from something that is
        // no nsqlookupd, and must not pass for the news that the topic has no nsqd.
        let says_not_found = body
            .windows(NOT_FOUND.len())
            .any(|window| window == NOT_FOUND.as_bytes());
        if says_not_found && matches!(status, StatusCode::NOT_FOUND | StatusCode::INTERNAL_SERVER_ERROR) {
            return Ok(Answer::new(false));
        }
        Err(refused(&self.path, status, body))
    }

    /// An nsqlookupd forgets a channel when it is restarted, or when somebody deletes it. This consumer still wants it.
    fn to_create(&self, answer: &Answer) -> Option<&str> {
        let (_, path) = self.create.as_ref()?;
        answer.channel.is_none().then_some(path)
    }

    fn topic(&self) -> Option<&Topic> {
        Some(&self.topic)
    }

    fn log_added(&self, nsqd: &Arc<str>, lookupd: Option<&str>) {
        tracing::debug!(topic = %self.topic, nsqd = &**nsqd, lookupd, "nsqd found");
    }

    fn log_removed(&self, nsqd: &Arc<str>) {
        tracing::debug!(topic = %self.topic, nsqd = &**nsqd, "nsqd gone from every nsqlookupd");
    }

    fn log_ignored(&self, limit: usize, ignored: usize) {
        tracing::warn!(
            topic = %self.topic, limit, ignored,
            "nsqlookupd lists more nsqds than max_nsqds; the rest is ignored"
        );
    }
}

/// Which nsqds are there, whatever topics they have?
#[derive(Clone, Debug)]
pub(crate) struct Nodes {
    hooks: Hooks,
}

impl Nodes {
    pub(super) fn new(hooks: Hooks) -> Self {
        Self { hooks }
    }
}

/// An nsqd, and where it runs. The same address is the same nsqd.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// `host:port` of its TCP protocol.
    pub(crate) address: Arc<str>,
    /// What it calls its region and zone, if it and the nsqlookupd are recent enough to say so.
    pub(crate) region: Option<Arc<str>>,
    pub(crate) zone: Option<Arc<str>>,
}

impl Node {
    fn new(address: Arc<str>, told: &LookupProducer) -> Self {
        Self {
            address,
            region: told.topology_region.as_deref().map(Arc::from),
            zone: told.topology_zone.as_deref().map(Arc::from),
        }
    }
}

impl Item for Node {
    /// An nsqlookupd up to 1.3.0 does not pass on what an nsqd says of its topology. A zone is one of its region, so both
    /// are told by the same nsqlookupd.
    fn complete(&mut self, other: &Self) {
        if self.region.is_none() && self.zone.is_none() {
            self.region.clone_from(&other.region);
            self.zone.clone_from(&other.zone);
        }
    }
}

impl Ord for Node {
    fn cmp(&self, other: &Self) -> Ordering {
        self.address.cmp(&other.address)
    }
}

impl PartialOrd for Node {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Node {
    fn eq(&self, other: &Self) -> bool {
        self.address == other.address
    }
}

impl Eq for Node {}

impl Borrow<str> for Node {
    fn borrow(&self) -> &str {
        &self.address
    }
}

impl Question for Nodes {
    type Item = Node;

    fn path(&self) -> &str {
        "/nodes"
    }

    fn read(&self, status: StatusCode, body: &[u8]) -> Result<Answer<Node>> {
        if status != StatusCode::OK {
            return Err(refused(self.path(), status, body));
        }
        let listed = parse_nodes(body).map_err(|error| not_understood(self.path(), error))?;
        Ok(self.hooks.usable(&listed.nodes, listed.malformed, Node::new))
    }

    fn topic(&self) -> Option<&Topic> {
        None
    }

    fn log_added(&self, node: &Node, lookupd: Option<&str>) {
        let (region, zone) = (node.region.as_deref(), node.zone.as_deref());
        tracing::debug!(nsqd = &*node.address, lookupd, region, zone, "nsqd found");
    }

    fn log_removed(&self, node: &Node) {
        tracing::debug!(nsqd = &*node.address, "nsqd gone from every nsqlookupd");
    }

    fn log_ignored(&self, limit: usize, ignored: usize) {
        tracing::warn!(
            limit,
            ignored,
            "nsqlookupd lists more nsqds than max_nsqds; the rest is ignored"
        );
    }
}

impl Item for Topic {}

/// Which topics are there?
#[derive(Clone, Debug)]
pub(crate) struct Topics;

impl Question for Topics {
    type Item = Topic;

    fn path(&self) -> &str {
        "/topics"
    }

    fn read(&self, status: StatusCode, body: &[u8]) -> Result<Answer<Topic>> {
        if status != StatusCode::OK {
            return Err(refused(self.path(), status, body));
        }
        let listed = parse_topics(body).map_err(|error| not_understood(self.path(), error))?;
        let mut answer = Answer::new(true);
        answer.malformed = listed.malformed;
        for name in &listed.topics {
            match Topic::new(name) {
                Ok(topic) => answer.items.push(topic),
                Err(_) => {
                    answer.malformed += 1;
                    answer
                        .example
                        .get_or_insert_with(|| format!("{} is no name of a topic", shown(name)));
                }
            }
        }
        Ok(answer)
    }

    fn topic(&self) -> Option<&Topic> {
        None
    }

    fn log_added(&self, topic: &Topic, lookupd: Option<&str>) {
        tracing::debug!(%topic, lookupd, "topic found");
    }

    fn log_removed(&self, topic: &Topic) {
        tracing::debug!(%topic, "topic gone from every nsqlookupd");
    }

    fn log_ignored(&self, limit: usize, ignored: usize) {
        tracing::warn!(
            limit,
            ignored,
            "nsqlookupd lists more topics than are accepted; the rest is ignored"
        );
    }
}

fn not_understood(path: &str, error: LookupError) -> Error {
    match error {
        LookupError::Status(text) => refused(path, StatusCode::OK, text.as_bytes()),
        error => {
            let message = "the answer is not understood; check that this is nsqlookupd's HTTP address";
            Error::new(ErrorKind::Protocol, Step::Lookup, message).because(error)
        }
    }
}

/// Of all characters that a name may have, only the # of #ephemeral means something else in a URL.
fn query(name: &str) -> String {
    name.replace('#', "%23")
}

/// What a peer or a hook calls an address, in quotes and not at any length.
fn shown(address: &str) -> String {
    let start: String = address.chars().take(MAX_SHOWN).collect();
    format!("{start:?}")
}
