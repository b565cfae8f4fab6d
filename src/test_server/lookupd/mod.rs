//! nsqlookupd: who has which topic, over HTTP.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::task::{AbortHandle, JoinSet};

use super::VERSION;
use super::listener::{Door, split_address};
use crate::transport::{BoxIo, MemoryNetwork};

/// An nsqlookupd within this process: its HTTP side.
///
/// A broker that was given it by [`NsqdBuilder::lookupd`](crate::test_server::NsqdBuilder::lookupd) registers its topics and channels
/// the moment they are created. Other addresses are registered by hand, existing or not.
///
/// It answers `GET /lookup?topic=`, `/channels?topic=`, `/topics`, `/nodes` and `/ping` as nsqlookupd 1.3.0 does. Dropping
/// it closes its listener and its connections.
///
/// ```
/// use async_nsq::test_server::{Lookupd, Nsqd};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let lookupd = Lookupd::start().await?;
/// let nsqd = Nsqd::builder().lookupd(&lookupd).start().await?;
/// nsqd.publish("orders", "the first")?;
/// assert_eq!(lookupd.producers("orders"), [nsqd.address()]);
///
/// lookupd.register("orders", "gone.example:4150")?;
/// assert_eq!(lookupd.producers("orders").len(), 2);
/// # Ok(())
/// # }
/// ```
pub struct Lookupd {
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

struct Shared {
    door: Door,
    registry: Registry,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    behaviour: Behaviour,
    requests: u64,
    connections: JoinSet<()>,
}

#[derive(Clone, Default)]
enum Behaviour {
    #[default]
    Normal,
    Status(StatusCode),
    Body(Bytes),
    Hang,
}

impl Lookupd {
    /// Starts on a free loopback port.
    ///
    /// # Errors
    /// If no port can be opened.
    ///
    /// # Cancel safety
    /// Dropping the future before it is polled starts nothing; its first poll completes it.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn start() -> io::Result<Self> {
        Ok(Self::open(Door::tcp(None)?))
    }

    /// Starts within a memory network. `address` is `host:port`, any host and any port.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] if something listens there already.
    ///
    /// # Cancel safety
    /// Dropping the future before it is polled starts nothing; its first poll completes it.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn start_in(network: &MemoryNetwork, address: &str) -> io::Result<Self> {
        Ok(Self::open(Door::memory(network, address)?))
    }

    fn open(door: Door) -> Self {
        let shared = Arc::new(Shared {
            door,
            registry: Registry::default(),
            state: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(Arc::clone(&shared))).abort_handle();
        Self { shared, accepting }
    }

    /// Where clients reach its HTTP interface: `127.0.0.1:port`, or the address within the memory network.
    #[must_use]
    pub fn address(&self) -> &str {
        self.shared.door.address()
    }

    /// Announces that the nsqd at `address`, which is `host:port`, has the topic.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if `address` is not `host:port`.
    pub fn register(&self, topic: &str, address: &str) -> io::Result<()> {
        let producer = Producer::new(address)?;
        self.shared.registry.register(topic, None, &producer);
        Ok(())
    }

    /// Takes back that the nsqd at `address` has the topic. The topic stays known.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if `address` is not `host:port`.
    pub fn unregister(&self, topic: &str, address: &str) -> io::Result<()> {
        let producer = Producer::new(address)?;
        self.shared.registry.unregister(topic, None, &producer);
        Ok(())
    }

    /// The addresses that `/lookup` gives for a topic, in order; none for an unknown topic.
    #[must_use]
    pub fn producers(&self, topic: &str) -> Vec<String> {
        let topics = self.shared.registry.lock();
        let producers = topics.get(topic).map(|topic| topic.producers.iter());
        producers.into_iter().flatten().map(Producer::address).collect()
    }

    /// How many HTTP requests have arrived, whatever the answer was.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.shared.lock().requests
    }

    /// Makes it misbehave.
    #[must_use]
    pub fn faults(&self) -> LookupdFaults<'_> {
        LookupdFaults { shared: &self.shared }
    }

    pub(super) fn registry(&self) -> Registry {
        self.shared.registry.clone()
    }
}

impl Drop for Lookupd {
    fn drop(&mut self) {
        self.accepting.abort();
        self.shared.door.demolish();
        self.shared.end_connections();
    }
}

impl fmt::Debug for Lookupd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookupd")
            .field("address", &self.address())
            .field("registry", &self.shared.registry)
            .finish_non_exhaustive()
    }
}

/// Makes a [`Lookupd`] misbehave: what [`Lookupd::faults`] returns. Each fault lasts until another one or
/// [`clear`](Self::clear).
pub struct LookupdFaults<'a> {
    shared: &'a Shared,
}

impl LookupdFaults<'_> {
    /// Refuses connections, and ends the existing ones.
    pub fn down(&self) {
        self.shared.door.close();
        self.shared.end_connections();
    }

    /// Answers every request with this status and no body. A number that is no HTTP status is answered as 500.
    pub fn answer_status(&self, status: u16) {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        self.set(Behaviour::Status(status));
    }

    /// Answers every request with status 200 and this body.
    pub fn answer_body(&self, body: impl Into<Bytes>) {
        self.set(Behaviour::Body(body.into()));
    }

    /// Takes requests and never answers them. One that hangs does so for ever, also after [`clear`](Self::clear).
    pub fn hang(&self) {
        self.set(Behaviour::Hang);
    }

    /// Works as it should again, at the same address.
    ///
    /// # Errors
    /// If the address was taken by someone else meanwhile, which is prevented as far as the system lets it.
    pub fn clear(&self) -> io::Result<()> {
        self.set(Behaviour::Normal);
        self.shared.door.open()
    }

    fn set(&self, behaviour: Behaviour) {
        self.shared.lock().behaviour = behaviour;
    }
}

impl fmt::Debug for LookupdFaults<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LookupdFaults").finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end_connections(&self) {
        let connections = std::mem::take(&mut self.lock().connections);
        // Aborts them, and not under the lock.
        drop(connections);
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let behaviour = {
            let mut state = self.lock();
            state.requests += 1;
            state.behaviour.clone()
        };
        match behaviour {
            Behaviour::Normal => self.registry.answer(&request),
            Behaviour::Status(status) => plain(status, Bytes::new()),
            Behaviour::Body(body) => plain(StatusCode::OK, body),
            Behaviour::Hang => std::future::pending().await,
        }
    }
}

async fn accept(shared: Arc<Shared>) {
    loop {
        let (io, _) = shared.door.accept().await;
        let serving = serve(Arc::clone(&shared), io);
        let mut state = shared.lock();
        while state.connections.try_join_next().is_some() {}
        state.connections.spawn(serving);
    }
}

async fn serve(shared: Arc<Shared>, io: BoxIo) {
    let service = service_fn(|request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(shared.answer(request).await) }
    });
    // A connection that breaks is the client's business.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(io), service).await;
}

/// Who has which topic and channel. Clones are the same registry.
#[derive(Clone, Debug, Default)]
pub(super) struct Registry {
    topics: Arc<Mutex<BTreeMap<String, Entry>>>,
}

#[derive(Debug, Default)]
struct Entry {
    channels: BTreeSet<String>,
    producers: BTreeSet<Producer>,
}

/// An nsqd as it is announced.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Producer {
    host: String,
    port: u16,
}

impl Producer {
    fn new(address: &str) -> io::Result<Self> {
        let (host, port) = split_address(address)?;
        Ok(Self { host, port })
    }

    fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    fn json(&self) -> Value {
        json!({
            "remote_address": self.address(),
            "hostname": self.host,
            "broadcast_address": self.host,
            "tcp_port": self.port,
            "http_port": 0,
            "version": VERSION,
        })
    }
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, topic: &str, channel: Option<&str>, producer: &Producer) {
        let mut topics = self.lock();
        let entry = topics.entry(topic.to_owned()).or_default();
        entry.producers.insert(producer.clone());
        entry.channels.extend(channel.map(str::to_owned));
    }

    fn unregister(&self, topic: &str, channel: Option<&str>, producer: &Producer) {
        let mut topics = self.lock();
        let Some(entry) = topics.get_mut(topic) else { return };
        match channel {
            // Only what is ephemeral is forgotten with its last producer.
            Some(channel) if channel.ends_with("#ephemeral") => {
                entry.channels.remove(channel);
            }
            Some(_) => {}
            None => {
                entry.producers.remove(producer);
                if entry.producers.is_empty() && topic.ends_with("#ephemeral") {
                    topics.remove(topic);
                }
            }
        }
    }

    fn withdraw(&self, producer: &Producer) {
        for entry in self.lock().values_mut() {
            entry.producers.remove(producer);
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        if !matches!(path, "/ping" | "/lookup" | "/channels" | "/topics" | "/nodes") {
            return refuse(StatusCode::NOT_FOUND, "NOT_FOUND");
        }
        if request.method() != Method::GET {
            return refuse(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED");
        }
        let topics = self.lock();
        match path {
            "/ping" => return plain(StatusCode::OK, Bytes::from_static(b"OK")),
            "/topics" => return success(&json!({ "topics": topics.keys().collect::<Vec<_>>() })),
            "/nodes" => return success(&nodes(&topics)),
            _ => {}
        }
        let Some(topic) = argument(request.uri().query(), "topic") else {
            return refuse(StatusCode::BAD_REQUEST, "MISSING_ARG_TOPIC");
        };
        match (path, topics.get(&topic)) {
            ("/channels", entry) => {
                let channels: Vec<_> = entry.map(|entry| entry.channels.iter()).into_iter().flatten().collect();
                success(&json!({ "channels": channels }))
            }
            (_, None) => refuse(StatusCode::NOT_FOUND, "TOPIC_NOT_FOUND"),
            (_, Some(entry)) => success(&json!({
                "channels": entry.channels,
                "producers": entry.producers.iter().map(Producer::json).collect::<Vec<_>>(),
            })),
        }
    }
}

fn nodes(topics: &BTreeMap<String, Entry>) -> Value {
    let mut nodes: BTreeMap<&Producer, Vec<&str>> = BTreeMap::new();
    for (name, entry) in topics {
        for producer in &entry.producers {
            nodes.entry(producer).or_default().push(name);
        }
    }
    let nodes = nodes.into_iter().map(|(producer, topics)| {
        let mut node = producer.json();
        node["tombstones"] = json!(vec![false; topics.len()]);
        node["topics"] = json!(topics);
        node
    });
    json!({ "producers": nodes.collect::<Vec<_>>() })
}

/// What ties one broker to a registry.
#[derive(Debug)]
pub(super) struct Registration {
    registry: Registry,
    producer: Producer,
}

impl Registration {
    pub(super) fn new(registry: Registry, host: String, port: u16) -> Self {
        Self {
            registry,
            producer: Producer { host, port },
        }
    }

    pub(super) fn register(&self, topic: &str, channel: Option<&str>) {
        self.registry.register(topic, channel, &self.producer);
    }

    pub(super) fn unregister(&self, topic: &str, channel: Option<&str>) {
        self.registry.unregister(topic, channel, &self.producer);
    }

    /// The broker is gone: so are all its registrations.
    pub(super) fn withdraw(&self) {
        self.registry.withdraw(&self.producer);
    }
}

/// The first value of a query's argument.
fn argument(query: Option<&str>, name: &str) -> Option<String> {
    let pairs = query?.split('&').filter_map(|pair| pair.split_once('='));
    let mut values = pairs.filter(|(key, _)| *key == name).map(|(_, value)| value);
    values.next().map(percent_decode)
}

fn percent_decode(text: &str) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let escaped = (*first == b'%')
            .then(|| after.get(..2))
            .flatten()
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        match (first, escaped) {
            (_, Some(byte)) => {
                decoded.push(byte);
                rest = &after[2..];
                continue;
            }
            (b'+', None) => decoded.push(b' '),
            (other, None) => decoded.push(*other),
        }
        rest = after;
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn success(value: &Value) -> Response<Full<Bytes>> {
    json_answer(StatusCode::OK, value)
}

fn refuse(status: StatusCode, code: &str) -> Response<Full<Bytes>> {
    json_answer(status, &json!({ "message": code }))
}

fn json_answer(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    let mut response = plain(status, Bytes::from(value.to_string()));
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/json; charset=utf-8"),
    );
    // go-nsq takes a body without this header for the envelope of versions before 1.0.
    headers.insert("x-nsq-content-type", HeaderValue::from_static("nsq; version=1.0"));
    response
}

fn plain(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_decoded() {
        assert_eq!(
            argument(Some("a=1&topic=t%23ephemeral&topic=u"), "topic").as_deref(),
            Some("t#ephemeral")
        );
        assert_eq!(argument(Some("topic=a+b%zz%"), "topic").as_deref(), Some("a b%zz%"));
        assert_eq!(argument(Some("topics=a"), "topic"), None);
        assert_eq!(argument(None, "topic"), None);
    }
}
