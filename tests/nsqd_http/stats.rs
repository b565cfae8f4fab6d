//! `/stats`.

use async_nsq::protocol::{Command, MAGIC};
use async_nsq::test_server::Nsqd;
use tokio::time::{Duration, sleep};

use crate::House;
use crate::raw::RawClient;

const LATENCY: &str = r#""e2e_processing_latency":{"count":0,"percentiles":null}"#;
const NO_TLS: &str = r#""tls":false,"tls_cipher_suite":"","tls_version":"","tls_negotiated_protocol":"","tls_negotiated_protocol_is_mutual":false"#;

async fn publish(client: &mut RawClient, topic: &str, body: &str) {
    let (topic, body) = (topic.to_owned(), body.to_owned().into());
    client.ask(Command::Pub { topic, body }, "OK").await;
}

/// A consumer of T1/c1 that has identified itself, two publishers, and one that has done nothing.
async fn populated() -> (House, [RawClient; 4]) {
    let house = House::with(Nsqd::builder().mem_queue_size(2)).await;
    let mut consumer = house.client().await;
    let body = r#"{"client_id":"me","hostname":"ho<st","user_agent":"ua/1","sample_rate":99}"#;
    consumer.ask(Command::Identify { body: body.into() }, "OK").await;
    consumer.subscribe("T1", "c1", 1).await;
    let (mut first, mut second) = (house.client().await, house.client().await);
    publish(&mut first, "T1", "hello").await;
    let bodies = (1..=4).map(|_| "x".into()).collect();
    let topic = "T1".to_owned();
    second.ask(Command::Mpub { topic, bodies }, "OK").await;
    publish(&mut second, "T2", "y").await;
    consumer.message().await;
    let idle = house.client().await;
    house.nsqd.wait_for(|stats| stats.clients.len() == 4).await.unwrap();
    (house, [consumer, first, second, idle])
}

fn topic_2() -> String {
    format!(
        r#"{{"topic_name":"T2","channels":[],"depth":1,"backend_depth":0,"message_count":1,"message_bytes":1,"paused":false,{LATENCY}}}"#
    )
}

fn topic_1(clients: &str) -> String {
    format!(
        r#"{{"topic_name":"T1","channels":[{{"channel_name":"c1","depth":4,"backend_depth":2,"in_flight_count":1,"deferred_count":0,"message_count":5,"requeue_count":0,"timeout_count":0,"client_count":1,"clients":{clients},"paused":false,{LATENCY}}}],"depth":0,"backend_depth":0,"message_count":5,"message_bytes":9,"paused":false,{LATENCY}}}"#
    )
}

fn producer(connected: i64, counts: &str) -> String {
    format!(
        r#"{{"client_id":"memory","hostname":"memory","version":"V2","remote_address":"memory","state":0,"ready_count":0,"in_flight_count":0,"message_count":0,"finish_count":0,"requeue_count":0,"connect_ts":{connected},"sample_rate":0,"deflate":false,"snappy":false,"user_agent":"",{counts}{NO_TLS}}}"#
    )
}

#[tokio::test(start_paused = true)]
async fn json_has_nsqds_members_in_nsqds_order_and_null_where_go_writes_it() {
    let (house, _clients) = populated().await;
    let seen = house.nsqd.stats();
    let connected = seen.clients[0].connected_at / 1_000_000_000;
    let json = house.get("/stats?format=json&include_mem=false").await.text();
    let start: serde_json::Value = serde_json::from_str(&json).unwrap();
    let start = start["start_time"].as_i64().unwrap();
    assert!(connected - start <= 1);
    let head = format!(r#"{{"version":"1.3.0","health":"OK","start_time":{start},"topics":"#);

    let consumer = format!(
        r#"[{{"client_id":"me","hostname":"ho\u003cst","version":"V2","remote_address":"memory","state":3,"ready_count":1,"in_flight_count":1,"message_count":1,"finish_count":0,"requeue_count":0,"connect_ts":{connected},"sample_rate":99,"deflate":false,"snappy":false,"user_agent":"ua/1",{NO_TLS}}}]"#
    );
    let (one, four) = (
        producer(connected, r#""pub_counts":[{"topic":"T1","count":1}],"#),
        producer(connected, r#""pub_counts":[{"topic":"T1","count":4}],"#),
    );
    let (first, second) = (topic_1(&consumer), topic_2());
    let expected = format!(r#"{head}[{first},{second}],"producers":[{one},{four}]}}"#);
    assert_eq!(json, expected);

    let (none, one_to_2) = (
        producer(connected, ""),
        producer(connected, r#""pub_counts":[{"topic":"T2","count":1}],"#),
    );
    let without_clients = topic_1("null");
    for (query, rest) in [
        ("topic=T2", format!(r#"[{second}],"producers":[{none},{one_to_2}]}}"#)),
        ("channel=c1", format!(r#"[{first}],"producers":[{one},{four}]}}"#)),
        ("topic=T1&channel=no", format!(r#"[],"producers":[{one},{four}]}}"#)),
        ("topic=no", r#"null,"producers":null}"#.to_owned()),
        ("topic=no&include_clients=true", r#"null,"producers":null}"#.to_owned()),
        (
            "include_clients=0",
            format!(r#"[{without_clients},{second}],"producers":null}}"#),
        ),
        (
            "include_clients=no&topic=T1",
            format!(r#"[{first}],"producers":[{one},{four}]}}"#),
        ),
    ] {
        let json = house
            .get(&format!("/stats?format=json&include_mem=0&{query}"))
            .await
            .text();
        assert_eq!(json, format!("{head}{rest}"), "{query}");
    }
}

#[tokio::test(start_paused = true)]
async fn memory_is_told_unless_it_is_not_wanted() {
    let house = House::new().await;
    let json = house.get("/stats?format=json").await.text();
    let (_, rest) = json.split_once(r#""topics":"#).unwrap();
    assert_eq!(
        rest,
        r#"[],"memory":{"heap_objects":0,"heap_idle_bytes":0,"heap_in_use_bytes":0,"heap_released_bytes":0,"gc_pause_usec_100":0,"gc_pause_usec_99":0,"gc_pause_usec_95":0,"next_gc_bytes":0,"gc_total_runs":0},"producers":null}"#
    );
}

#[tokio::test(start_paused = true)]
async fn the_text_is_laid_out_as_nsqds() {
    let house = House::new().await;
    let nsqd = &house.nsqd;
    let serve = async |remote: &'static str| {
        let (client, server) = tokio::io::duplex(4096);
        nsqd.serve(server, remote);
        let mut client = RawClient::over(Box::new(client));
        client.send_bytes(MAGIC).await;
        client
    };
    let mut consumer = serve("127.0.0.1:48972").await;
    let body = r#"{"client_id":"me","hostname":"host","user_agent":"ua/1"}"#;
    consumer.ask(Command::Identify { body: body.into() }, "OK").await;
    consumer.subscribe("T1", "c1", 3).await;
    let mut publisher = serve("127.0.0.1:48978").await;
    publish(&mut publisher, "T1", "hello").await;
    nsqd.create_channel("a-topic-of-a-long-name", "c").unwrap();
    nsqd.pause_topic("a-topic-of-a-long-name").unwrap();
    nsqd.pause_channel("a-topic-of-a-long-name", "c").unwrap();
    consumer.message().await;
    sleep(Duration::from_secs(5)).await;

    // Seconds are whole ones of the wall clock, and where they begin is chance.
    let text = house
        .get("/stats")
        .await
        .text()
        .replace("connected: 6s", "connected: 5s");
    let (head, rest) = text.split_once("\n\n").unwrap();
    let head: Vec<_> = head.lines().collect();
    assert_eq!(head[0], "nsqd v1.3.0 (built w/async-nsq)");
    assert!(head[1].starts_with("start_time 20") && head[1].ends_with('Z'), "{text}");
    assert!(head[2].starts_with("uptime 5") && head[2].ends_with('s'), "{text}");
    let expected = "\
Health: OK

Memory:
   heap_objects             \t0
   heap_idle_bytes          \t0
   heap_in_use_bytes        \t0
   heap_released_bytes      \t0
   gc_pause_usec_100        \t0
   gc_pause_usec_99         \t0
   gc_pause_usec_95         \t0
   next_gc_bytes            \t0
   gc_total_runs            \t0

Topics:
   [T1             ] depth: 0     be-depth: 0     msgs: 1        e2e%: \n\
\x20     [c1                       ] depth: 0     be-depth: 0     inflt: 1    def: 0    re-q: 0     timeout: 0     msgs: 1        e2e%: \n\
\x20       [V2 host:48972 ua/1      ] state: 3 inflt: 1    rdy: 3    fin: 0        re-q: 0        msgs: 1        connected: 5s

*P [a-topic-of-a-long-name] depth: 0     be-depth: 0     msgs: 0        e2e%: \n\
\x20  *P [c                        ] depth: 0     be-depth: 0     inflt: 0    def: 0    re-q: 0     timeout: 0     msgs: 0        e2e%: \n\
\n\
Producers:
   [V2 127.0.0.1:48978      ] msgs: 1        topics: T1=1 connected: 5s
";
    assert_eq!(rest, expected);
    let text = house
        .get("/stats?include_mem=0&include_clients=0&topic=no")
        .await
        .text();
    assert!(
        text.ends_with("\n\nHealth: OK\n\nTopics: None\n\nProducers: None\n"),
        "{text}"
    );
}
