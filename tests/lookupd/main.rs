//! The test broker's nsqlookupd: over HTTP, over TCP, by hand, and when it fails.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the line that did it")]

mod faults;
mod tcp;

use std::time::Duration;

use async_nsq::protocol::parse_lookup;
use async_nsq::test_server::{Lookupd, LookupdBuilder, Nsqd};
use async_nsq::transport::{BoxIo, Connector, MemoryNetwork, TcpConnector};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

const ADDRESS: &str = "lookupd:4161";
const TCP_ADDRESS: &str = "lookupd:4160";
const NSQD: &str = "nsqd:4150";
const PEER: &str =
    r#"{"broadcast_address":"10.0.0.1","hostname":"h","tcp_port":4150,"http_port":4151,"version":"1.3.0"}"#;

struct House {
    network: MemoryNetwork,
    lookupd: Lookupd,
}

impl House {
    async fn new() -> Self {
        Self::with(Lookupd::builder()).await
    }

    async fn with(builder: LookupdBuilder) -> Self {
        let network = MemoryNetwork::new();
        let lookupd = builder.start_in(&network, ADDRESS).await.unwrap();
        Self { network, lookupd }
    }

    /// The status and the body.
    async fn ask(&self, verb: &str, target: &str) -> (u16, String) {
        let (head, body) = self.exchange(verb, target).await;
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body)
    }

    async fn get(&self, target: &str) -> String {
        self.ask("GET", target).await.1
    }

    async fn post(&self, target: &str) -> (u16, String) {
        self.ask("POST", target).await
    }

    async fn exchange(&self, verb: &str, target: &str) -> (String, String) {
        exchange(&self.network.connector(), ADDRESS, verb, target).await
    }

    /// An nsqd that has sent IDENTIFY.
    async fn nsqd(&self) -> Peer {
        let mut peer = self.peer().await;
        peer.identify(PEER).await;
        peer
    }

    /// A connection that has sent the magic.
    async fn peer(&self) -> Peer {
        let mut io = self.network.connector().connect(TCP_ADDRESS).await.unwrap();
        io.write_all(b"  V1").await.unwrap();
        Peer { io }
    }
}

async fn exchange(connector: &impl Connector, address: &str, verb: &str, target: &str) -> (String, String) {
    let mut io = connector.connect(address).await.unwrap();
    let request = format!("{verb} {target} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    io.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    io.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

/// A client of the TCP side, by hand.
struct Peer {
    io: BoxIo,
}

impl Peer {
    async fn reply(&mut self) -> String {
        let size = self.io.read_u32().await.unwrap();
        let mut reply = vec![0; size as usize];
        self.io.read_exact(&mut reply).await.unwrap();
        String::from_utf8(reply).unwrap()
    }

    async fn command(&mut self, line: &str) -> String {
        self.io.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        self.reply().await
    }

    async fn identify(&mut self, body: &str) -> String {
        let mut command = b"IDENTIFY\n".to_vec();
        command.extend((body.len() as u32).to_be_bytes());
        command.extend(body.as_bytes());
        self.io.write_all(&command).await.unwrap();
        self.reply().await
    }

    async fn assert_closed(&mut self) {
        let mut rest = Vec::new();
        timeout(Duration::from_secs(1), self.io.read_to_end(&mut rest))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(rest, [0; 0]);
    }
}

// HTTP.

#[tokio::test(start_paused = true)]
async fn answers_follow_the_conventions_of_nsq() {
    let house = House::new().await;
    let header = "X-Nsq-Content-Type: nsq; version=1.0";
    let json = "Content-Type: application/json; charset=utf-8";
    let (head, body) = house.exchange("GET", "/ping").await;
    assert!(
        head.starts_with("HTTP/1.1 200 OK\r\n") && !head.contains(header),
        "{head}"
    );
    assert!(head.contains("Content-Type: text/plain; charset=utf-8"), "{head}");
    assert_eq!(body, "OK");

    let (head, body) = house.exchange("GET", "/info").await;
    assert!(head.contains(header) && head.contains(json), "{head}");
    assert_eq!(body, r#"{"version":"1.3.0"}"#);

    let (head, body) = house.exchange("POST", "/topic/create?topic=t").await;
    assert!(head.contains(header) && !head.contains("\r\nContent-Type"), "{head}");
    assert_eq!(body, "");

    let (head, body) = house.exchange("GET", "/nope").await;
    assert!(
        head.starts_with("HTTP/1.1 404") && head.contains(header) && head.contains(json),
        "{head}"
    );
    assert_eq!(body, r#"{"message":"NOT_FOUND"}"#);
}

#[tokio::test(start_paused = true)]
async fn the_wrong_verb_is_told_the_right_ones() {
    let house = House::new().await;
    for (verb, target, allow) in [
        ("POST", "/ping", "GET, OPTIONS"),
        ("GET", "/topic/create", "OPTIONS, POST"),
    ] {
        let (head, body) = house.exchange(verb, target).await;
        assert!(
            head.starts_with("HTTP/1.1 405") && head.contains(&format!("Allow: {allow}")),
            "{head}"
        );
        assert_eq!(body, r#"{"message":"METHOD_NOT_ALLOWED"}"#);
    }
    let (head, body) = house.exchange("HEAD", "/ping").await;
    assert!(head.starts_with("HTTP/1.1 405") && body.is_empty(), "{head}");
    let (head, body) = house.exchange("OPTIONS", "/ping").await;
    assert!(
        head.starts_with("HTTP/1.1 200") && head.contains("Allow: GET, OPTIONS"),
        "{head}"
    );
    assert_eq!(body, "");
}

#[tokio::test(start_paused = true)]
async fn a_path_that_is_nearly_right_is_redirected() {
    let house = House::new().await;
    for path in ["/LOOKUP", "/lookup/", "//lookup"] {
        let (head, body) = house.exchange("GET", &format!("{path}?topic=a&b=c")).await;
        assert!(head.starts_with("HTTP/1.1 301"), "{head}");
        assert!(head.contains("Location: /lookup?topic=a&b=c\r\n"), "{head}");
        assert_eq!(body, "<a href=\"/lookup?topic=a&amp;b=c\">Moved Permanently</a>.\n\n");
    }
    let (head, _) = house.exchange("POST", "/topic/create/?topic=a").await;
    assert!(
        head.starts_with("HTTP/1.1 307") && head.contains("Location: /topic/create?topic=a\r\n"),
        "{head}"
    );
    assert_eq!(house.ask("POST", "/PING").await.0, 404);
    assert_eq!(
        house.ask("GET", "/%6cookup?topic=a").await,
        (404, r#"{"message":"TOPIC_NOT_FOUND"}"#.into())
    );
}

#[tokio::test(start_paused = true)]
async fn arguments_are_checked_in_order() {
    let house = House::new().await;
    let both = "?topic=t&channel=c";
    for (verb, target, status, code) in [
        ("GET", "/lookup", 400, "MISSING_ARG_TOPIC"),
        ("GET", "/lookup?topic=zz", 404, "TOPIC_NOT_FOUND"),
        ("GET", "/lookup?topic", 404, "TOPIC_NOT_FOUND"),
        ("GET", "/lookup?topic=%zz", 400, "INVALID_REQUEST"),
        ("GET", "/lookup?topic=t;b", 400, "INVALID_REQUEST"),
        ("GET", "/channels", 400, "MISSING_ARG_TOPIC"),
        ("POST", "/topic/create", 400, "MISSING_ARG_TOPIC"),
        ("POST", "/topic/create?topic=a$", 400, "INVALID_ARG_TOPIC"),
        ("POST", "/topic/delete", 400, "MISSING_ARG_TOPIC"),
        ("POST", "/channel/create", 400, "MISSING_ARG_TOPIC"),
        ("POST", "/channel/create?topic=a$", 400, "INVALID_ARG_TOPIC"),
        ("POST", "/channel/create?topic=t", 400, "MISSING_ARG_CHANNEL"),
        ("POST", "/channel/create?topic=t&channel=c$", 400, "INVALID_ARG_CHANNEL"),
        ("POST", &format!("/channel/delete{both}"), 404, "CHANNEL_NOT_FOUND"),
        ("POST", "/topic/tombstone", 400, "MISSING_ARG_TOPIC"),
        ("POST", "/topic/tombstone?topic=t", 400, "MISSING_ARG_NODE"),
    ] {
        let expected = (status, format!(r#"{{"message":"{code}"}}"#));
        assert_eq!(house.ask(verb, target).await, expected, "{verb} {target}");
    }
    assert_eq!(house.get("/channels?topic=zz").await, r#"{"channels":[]}"#);
    assert_eq!(house.get("/topics?%zz").await, r#"{"topics":[]}"#);
    assert_eq!(
        house.post("/topic/tombstone?topic=t&node=n:1").await,
        (200, String::new())
    );
}

#[tokio::test(start_paused = true)]
async fn topics_and_channels_are_created_and_deleted_by_http() {
    let house = House::new().await;
    let done = (200, String::new());
    assert_eq!(house.post("/channel/create?topic=n&channel=c&topic=other").await, done);
    assert_eq!(
        house.get("/lookup?topic=n").await,
        r#"{"channels":["c"],"producers":[]}"#
    );
    assert_eq!(house.get("/topics").await, r#"{"topics":["n"]}"#);
    assert_eq!(house.post("/channel/delete?topic=n&channel=c").await, done);
    assert_eq!(house.get("/channels?topic=n").await, r#"{"channels":[]}"#);
    assert_eq!(house.post("/channel/create?topic=n&channel=c").await, done);
    for _ in 0..2 {
        assert_eq!(house.post("/topic/delete?topic=n").await, done);
        assert_eq!(house.lookupd.topics(), []);
        assert_eq!(house.get("/channels?topic=n").await, r#"{"channels":[]}"#);
    }
}

#[tokio::test(start_paused = true)]
async fn a_star_stands_for_all_topics() {
    let house = House::new().await;
    house.post("/channel/create?topic=a&channel=x").await;
    house.post("/channel/create?topic=b&channel=y").await;
    let mut nsqd = house.nsqd().await;
    nsqd.command("REGISTER a").await;
    nsqd.command("REGISTER b").await;
    assert_eq!(house.get("/channels?topic=*").await, r#"{"channels":["x","y"]}"#);
    let lookup = parse_lookup(house.get("/lookup?topic=*").await.as_bytes()).unwrap();
    assert_eq!((lookup.producers.len(), lookup.channels.len()), (1, 2));
    house.post("/topic/delete?topic=*").await;
    assert_eq!(house.lookupd.topics(), []);
}

// TCP.

#[tokio::test(start_paused = true)]
async fn a_name_outlives_its_last_nsqd_unless_it_is_ephemeral_and_taken_back() {
    let house = House::new().await;
    let (mut first, mut second) = (house.nsqd().await, house.nsqd().await);
    for nsqd in [&mut first, &mut second] {
        nsqd.command("REGISTER t c").await;
        nsqd.command("REGISTER t e#ephemeral").await;
        nsqd.command("REGISTER u#ephemeral c").await;
    }
    let channels = |topic: &str| house.lookupd.state().topic(topic).map(|topic| topic.channels.join(" "));
    first.command("UNREGISTER t c").await;
    first.command("UNREGISTER t e#ephemeral").await;
    first.command("UNREGISTER u#ephemeral").await;
    assert_eq!(channels("t").unwrap(), "c e#ephemeral");
    // Without its channels it has the topic still.
    assert_eq!(house.lookupd.producers("t").len(), 2);
    assert_eq!(house.lookupd.producers("u#ephemeral").len(), 1);

    second.command("UNREGISTER t c").await;
    second.command("UNREGISTER t e#ephemeral").await;
    assert_eq!(channels("t").unwrap(), "c");
    second.command("UNREGISTER u#ephemeral").await;
    assert_eq!(channels("u#ephemeral"), None);

    // One that disconnects takes nothing back.
    first.command("REGISTER v#ephemeral e#ephemeral").await;
    drop(first);
    house.lookupd.wait_for(|state| state.nodes.len() == 1).await.unwrap();
    assert_eq!(channels("v#ephemeral").unwrap(), "e#ephemeral");
}

#[tokio::test(start_paused = true)]
async fn to_unregister_a_topic_takes_back_its_channels_too() {
    let house = House::new().await;
    let mut nsqd = house.nsqd().await;
    nsqd.command("REGISTER t c").await;
    assert!(house.get("/debug").await.contains(r#""channel:t:c":"#));
    nsqd.command("UNREGISTER t").await;
    let debug = house.get("/debug").await;
    assert!(debug.starts_with(r#"{"client::":["#), "{debug}");
    assert!(!debug.contains("topic:") && !debug.contains("channel:"), "{debug}");
    assert_eq!(
        house.get("/lookup?topic=t").await,
        r#"{"channels":["c"],"producers":[]}"#
    );
}

#[tokio::test(start_paused = true)]
async fn a_silent_nsqd_disappears_and_comes_back_with_its_next_ping() {
    let house = House::new().await;
    let mut nsqd = house.nsqd().await;
    nsqd.command("REGISTER t").await;
    sleep(Duration::from_secs(300)).await;
    assert_eq!(house.lookupd.producers("t"), ["10.0.0.1:4150"]);
    sleep(Duration::from_millis(2)).await;
    assert_eq!(house.get("/lookup?topic=t").await, r#"{"channels":[],"producers":[]}"#);
    assert_eq!(house.get("/nodes").await, r#"{"producers":[]}"#);
    assert!(!house.lookupd.nodes()[0].active);
    // Only PING shows that it lives.
    nsqd.command("REGISTER u").await;
    assert_eq!(house.lookupd.producers("u"), [""; 0]);
    nsqd.command("PING").await;
    assert_eq!(house.lookupd.producers("t"), ["10.0.0.1:4150"]);
    assert!(house.get("/nodes").await.contains(r#""topics":["t","u"]"#));
}

#[tokio::test(start_paused = true)]
async fn a_tombstone_hides_a_producer_of_one_topic_for_a_while() {
    let house = House::new().await;
    let mut nsqd = house.nsqd().await;
    nsqd.command("REGISTER t").await;
    nsqd.command("REGISTER u").await;
    house.post("/topic/tombstone?topic=t&node=10.0.0.1:4150").await;
    assert_eq!(
        house.lookupd.producers("t").len(),
        1,
        "a node is named by its HTTP port"
    );
    house.post("/topic/tombstone?topic=t&node=10.0.0.1:4151").await;
    assert_eq!(house.get("/lookup?topic=t").await, r#"{"channels":[],"producers":[]}"#);
    assert_eq!(house.lookupd.producers("u").len(), 1);
    assert!(
        house
            .get("/nodes")
            .await
            .contains(r#""tombstones":[true,false],"topics":["t","u"]"#)
    );

    // To register again over the same connection does not lift it, time does.
    nsqd.command("REGISTER t").await;
    assert_eq!(house.lookupd.producers("t"), [""; 0]);
    let buried = Instant::now();
    let lives = |state: &async_nsq::test_server::LookupdState| !state.topic("t").unwrap().producers[0].tombstoned;
    house
        .lookupd
        .wait_for_within(Duration::from_secs(60), lives)
        .await
        .unwrap();
    assert_eq!(buried.elapsed(), Duration::from_secs(45));
    assert_eq!(house.lookupd.producers("t").len(), 1);
    let debug = house.get("/debug").await;
    assert!(debug.contains(r#""tombstoned":true"#), "the mark itself stays: {debug}");
    assert!(debug.contains(r#""tombstoned_at":-6795364578871345152"#), "{debug}");
}

#[tokio::test(start_paused = true)]
async fn a_tombstone_is_lifted_by_a_new_connection_and_by_taking_the_topic_back() {
    let house = House::new().await;
    let mut nsqd = house.nsqd().await;
    nsqd.command("REGISTER t").await;
    assert!(house.lookupd.tombstone("t", "10.0.0.1:4150").unwrap());
    assert!(!house.lookupd.tombstone("t", "10.0.0.2:4150").unwrap());
    assert_eq!(house.lookupd.producers("t"), [""; 0]);
    nsqd.command("UNREGISTER t").await;
    nsqd.command("REGISTER t").await;
    assert_eq!(house.lookupd.producers("t").len(), 1);

    house.lookupd.tombstone("t", "10.0.0.1:4150").unwrap();
    drop(nsqd);
    let mut nsqd = house.nsqd().await;
    nsqd.command("REGISTER t").await;
    assert_eq!(house.lookupd.producers("t").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn debug_tells_all_in_the_order_of_keys() {
    let house = House::new().await;
    let mut nsqd = house.nsqd().await;
    nsqd.command("REGISTER t c").await;
    house.post("/topic/create?topic=empty").await;
    let debug: serde_json::Value = serde_json::from_str(&house.get("/debug").await).unwrap();
    let keys: Vec<_> = debug.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["channel:t:c", "client::", "topic:t:"]);
    let entry = &debug["topic:t:"][0];
    assert_eq!((&entry["id"], &entry["tombstoned"]), (&"memory".into(), &false.into()));
    assert!(entry["last_update"].as_i64().unwrap() > 1_700_000_000_000_000_000);
}

// By hand, directly, and what can be seen.

#[tokio::test(start_paused = true)]
async fn lookupd_knows_a_topic_as_soon_as_it_exists() {
    let house = House::new().await;
    let lookupd = &house.lookupd;
    let nsqd = Nsqd::builder()
        .lookupd(lookupd)
        .start_in(&house.network, NSQD)
        .await
        .unwrap();
    assert_eq!(lookupd.nodes()[0].address, NSQD);
    nsqd.publish("t", "x").unwrap();
    nsqd.drain("t", "c").unwrap();
    lookupd.register("t", "[::1]:4150").unwrap();
    let lookup = parse_lookup(house.get("/lookup?topic=t").await.as_bytes()).unwrap();
    let addresses: Vec<_> = lookup.producers.iter().map(|producer| producer.tcp_address()).collect();
    assert_eq!(
        (addresses, lookup.channels),
        (vec!["[::1]:4150".to_owned(), NSQD.to_owned()], vec!["c".to_owned()])
    );

    lookupd.unregister("t", "[::1]:4150").unwrap();
    nsqd.stop().await;
    assert_eq!(
        house.get("/lookup?topic=t").await,
        r#"{"channels":["c"],"producers":[]}"#
    );
    nsqd.restart().await.unwrap();
    assert_eq!(lookupd.producers("t"), [NSQD]);
    drop(nsqd);
    assert_eq!(lookupd.producers("t"), [""; 0]);
    assert_eq!(lookupd.nodes(), []);
    assert_eq!(house.get("/ping").await, "OK");
    assert_eq!(lookupd.requests(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_is_registered_directly_or_by_hand_never_becomes_inactive() {
    let house = House::new().await;
    let lookupd = &house.lookupd;
    let nsqd = Nsqd::builder()
        .lookupd(lookupd)
        .start_in(&house.network, NSQD)
        .await
        .unwrap();
    nsqd.publish("t", "x").unwrap();
    lookupd.register("t", "gone:4150").unwrap();
    lookupd.register("t", "gone:4150").unwrap();
    // It is the same nsqd, whoever registers it.
    lookupd.register("t", NSQD).unwrap();
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(lookupd.producers("t"), ["gone:4150", NSQD]);
    lookupd.tombstone("t", NSQD).unwrap();
    assert_eq!(lookupd.producers("t"), ["gone:4150"]);
    lookupd.unregister("t", "gone:4150").unwrap();
    lookupd.unregister("t", NSQD).unwrap();
    assert_eq!(lookupd.topics()[0].producers, []);
    assert_eq!(lookupd.nodes().len(), 1, "only the nsqd is left");
    assert!(lookupd.register("t", "no port").is_err());
}

#[tokio::test(start_paused = true)]
async fn requests_and_commands_can_be_seen() {
    let house = House::new().await;
    house.get("/lookup?topic=t").await;
    house.post("/nope").await;
    let mut nsqd = house.nsqd().await;
    nsqd.command("REGISTER t c ").await;
    house.peer().await.command("FOO").await;
    let requests = house.lookupd.requests_received();
    let seen: Vec<_> = requests
        .iter()
        .map(|request| (&*request.method, request.path()))
        .collect();
    assert_eq!(seen, [("GET", "/lookup"), ("POST", "/nope")]);
    assert_eq!(requests[0].target, "/lookup?topic=t");
    let commands = house.lookupd.commands();
    let seen: Vec<_> = commands
        .iter()
        .map(|command| (command.connection, &*command.line))
        .collect();
    assert_eq!(seen, [(1, "IDENTIFY"), (1, "REGISTER t c"), (2, "FOO")]);
    assert_eq!(commands[0].body, PEER);
    let state = house.lookupd.state();
    assert_eq!((state.requests, state.commands), (2, 3));
    assert_eq!(state.node("10.0.0.1:4150").unwrap().topics, ["t"]);
}

#[tokio::test(start_paused = true)]
async fn a_condition_that_stays_false_ends_in_an_error_that_shows_the_state() {
    let house = House::new().await;
    house.lookupd.register("visible", "nsqd:4150").unwrap();
    let started = Instant::now();
    let error = house.lookupd.wait_for(|state| state.requests == 1).await.unwrap_err();
    assert_eq!(started.elapsed(), Duration::from_secs(10));
    assert!(error.to_string().contains("visible") && format!("{error:?}").contains("10s"));
    assert_eq!(error.last().topics.len(), 1);
}

// Configuration.

#[tokio::test(start_paused = true)]
async fn flags_are_those_of_nsqlookupd() {
    let builder = || Lookupd::builder();
    for (name, value) in [
        ("tcp-address", "127.0.0.1:0"),
        ("http-address", "0.0.0.0:4161"),
        ("broadcast-address", "here"),
        ("inactive-producer-timeout", "5m0s"),
        ("tombstone-lifetime", "500ms"),
        ("log-level", "debug"),
        ("log-prefix", "[x] "),
        ("verbose", "true"),
        ("config", "/etc/nsqlookupd.cfg"),
    ] {
        assert!(builder().flag(name, value).is_ok(), "{name}");
    }
    for (name, value) in [
        ("mem-queue-size", "1"),
        ("tombstone-lifetime", "5"),
        ("tcp-address", "nowhere"),
    ] {
        let error = builder().flag(name, value).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
    let builder = builder().flag("tombstone-lifetime", "1s").unwrap();
    let house = House::with(
        builder
            .broadcast_address("elsewhere")
            .inactive_producer_timeout(Duration::from_secs(3)),
    )
    .await;
    let mut nsqd = house.peer().await;
    assert!(
        nsqd.identify(PEER)
            .await
            .starts_with(r#"{"broadcast_address":"elsewhere""#)
    );
    nsqd.command("REGISTER t").await;
    house.lookupd.tombstone("t", "10.0.0.1:4150").unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(house.lookupd.producers("t").len(), 1);
    sleep(Duration::from_secs(3)).await;
    assert_eq!(house.lookupd.producers("t").len(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_tcp_side_is_at_the_port_below() {
    let network = MemoryNetwork::new();
    let lookupd = Lookupd::start_in(&network, "a:10").await.unwrap();
    assert_eq!((lookupd.address(), lookupd.tcp_address()), ("a:10", "a:9"));
    let taken = Lookupd::start_in(&network, "a:11").await.unwrap_err();
    assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse);
    for address in ["a:1", "a", "a:0"] {
        let invalid = Lookupd::start_in(&network, address).await.unwrap_err();
        assert_eq!(invalid.kind(), std::io::ErrorKind::InvalidInput, "{address}");
    }
}

#[tokio::test(start_paused = true)]
async fn streams_that_were_accepted_elsewhere_are_served() {
    let lookupd = Lookupd::builder().start_detached("lookupd:4161").unwrap();
    let (io, served) = tokio::io::duplex(1024);
    lookupd.serve_tcp(served, "10.0.0.7:1234");
    let mut nsqd = Peer { io: Box::new(io) };
    nsqd.io.write_all(b"  V1").await.unwrap();
    let reply = nsqd.identify(PEER).await;
    assert!(reply.contains(r#""http_port":4161,"tcp_port":4160"#), "{reply}");
    assert_eq!(lookupd.nodes()[0].remote_address, "10.0.0.7:1234");

    let ask = async || {
        let (mut io, served) = tokio::io::duplex(1024);
        lookupd.serve_http(served, "10.0.0.8:1");
        // One that is down has closed it.
        let _ = io.write_all(b"GET /ping HTTP/1.0\r\n\r\n").await;
        let mut answer = String::new();
        io.read_to_string(&mut answer).await.unwrap();
        answer
    };
    assert!(ask().await.ends_with("OK"));
    lookupd.faults().down();
    nsqd.assert_closed().await;
    assert_eq!(ask().await, "");
    lookupd.faults().clear().unwrap();
    assert!(ask().await.ends_with("OK"));
}

#[tokio::test]
async fn over_tcp_both_sides_have_free_ports_and_keep_them() {
    let lookupd = Lookupd::start().await.unwrap();
    let connector = TcpConnector::new();
    let mut io = connector.connect(lookupd.tcp_address()).await.unwrap();
    io.write_all(b"  V1").await.unwrap();
    let mut nsqd = Peer { io };
    let reply = nsqd.identify(PEER).await;
    assert!(reply.starts_with(r#"{"broadcast_address":"127.0.0.1""#), "{reply}");
    nsqd.command("REGISTER t").await;
    let (_, body) = exchange(&connector, lookupd.address(), "GET", "/lookup?topic=t").await;
    assert!(body.contains(r#"{"remote_address":"127.0.0.1:"#), "{body}");

    lookupd.faults().down();
    assert!(connector.connect(lookupd.address()).await.is_err());
    assert!(connector.connect(lookupd.tcp_address()).await.is_err());
    assert_eq!(lookupd.nodes(), []);
    lookupd.faults().clear().unwrap();
    assert!(connector.connect(lookupd.tcp_address()).await.is_ok());
    assert_eq!(exchange(&connector, lookupd.address(), "GET", "/ping").await.1, "OK");
}

// Faults.

#[tokio::test(start_paused = true)]
async fn dropping_it_ends_its_tasks() {
    let house = House::new().await;
    let mut nsqd = house.nsqd().await;
    house.lookupd.faults().hang();
    let _hanging = timeout(Duration::from_secs(1), house.get("/ping")).await;
    drop(house.lookupd);
    nsqd.assert_closed().await;
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0);
}
