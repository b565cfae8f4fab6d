//! All nsqds, from `/nodes`.

use super::*;
use crate::discovery::facts::LookupdFacts;

/// An nsqd as `/nodes` lists it: its host, the port it is seen at, its topology.
fn entry(host: &str, seen_at: u16, topology: Option<(&str, &str)>) -> String {
    let topology = topology.map_or_else(String::new, |(region, zone)| {
        format!(r#","topology_region":"{region}","topology_zone":"{zone}""#)
    });
    format!(
        r#"{{"remote_address":"10.0.0.9:{seen_at}","hostname":"{host}","broadcast_address":"{host}","tcp_port":4150,"http_port":4151,"version":"1.3.0","tombstones":[],"topics":[]{topology}}}"#
    )
}

fn list(entries: &[String]) -> String {
    format!(r#"{{"producers":[{}]}}"#, entries.join(","))
}

fn listed(entries: &[String]) -> Reply {
    Reply::Send(http("200 OK", list(entries)))
}

fn watch(network: &MemoryNetwork, lookupds: &[&str], options: &DiscoveryOptions) -> NodeWatch {
    let lookupds: Vec<_> = lookupds.iter().map(|&lookupd| LookupdConfig::from(lookupd)).collect();
    NodeWatch::watch(&lookupds, Arc::new(network.connector()), options, 1).unwrap()
}

fn exact() -> DiscoveryOptions {
    DiscoveryOptions {
        poll_jitter: 0.0,
        ..DiscoveryOptions::default()
    }
}

fn told(nodes: &[Node]) -> Vec<(&str, Option<&str>, Option<&str>)> {
    let nodes = nodes.iter();
    nodes
        .map(|node| (&*node.address, node.region.as_deref(), node.zone.as_deref()))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn n5_all_nsqds_are_asked_for_at_every_nsqlookupd_and_united() {
    let network = MemoryNetwork::new();
    let a = Scripted::start(&network, "a:4161", |_| {
        listed(&[entry("y", 1, None), entry("x", 2, Some(("r", "z1")))])
    });
    // The answer of versions before 1.0.
    let _b = Scripted::start(&network, "b:4161", |_| {
        let data = list(&[entry("y", 1, None), entry("w", 1, None)]);
        Reply::Send(http(
            "200 OK",
            format!(r#"{{"status_code":200,"status_txt":"OK","data":{data}}}"#),
        ))
    });
    let mut nodes = watch(&network, &["a:4161", "b:4161"], &exact());
    let changes = nodes.next().await;
    let expected = [
        ("w:4150", None, None),
        ("x:4150", Some("r"), Some("z1")),
        ("y:4150", None, None),
    ];
    assert_eq!(told(&changes.added), expected);
    assert!(changes.removed.is_empty() && changes.anew.is_empty());
    assert!(
        a.requests()[0].starts_with("GET /nodes HTTP/1.1\r\n"),
        "{:?}",
        a.requests()
    );
    assert!(nodes.lookupd_facts().iter().all(LookupdFacts::is_answering));
    let facts = nodes.nsqd_facts();
    let found: Vec<_> = facts.iter().map(|nsqd| (&*nsqd.address, &*nsqd.announced_by)).collect();
    assert_eq!(
        found,
        [("w:4150", "b:4161"), ("x:4150", "a:4161"), ("y:4150", "a:4161")]
    );
}

#[tokio::test(start_paused = true)]
async fn n5_where_an_nsqd_runs_is_learnt_from_any_nsqlookupd_that_says_so() {
    let network = MemoryNetwork::new();
    // An nsqlookupd that does not pass it on, and hides nothing of what the other one says.
    let _old = Scripted::start(&network, "a:4161", |_| {
        listed(&[entry("x", 1, None), entry("y", 1, None)])
    });
    let _new = Scripted::start(&network, "b:4161", |_| {
        listed(&[entry("x", 1, Some(("r", "z"))), entry("y", 1, Some(("r", "")))])
    });
    let mut nodes = watch(&network, &["a:4161", "b:4161"], &exact());
    let expected = [("x:4150", Some("r"), Some("z")), ("y:4150", Some("r"), None)];
    assert_eq!(told(&nodes.next().await.added), expected);
    assert!(nodes.next().await.is_empty());
    let now: Vec<_> = nodes.view().items().cloned().collect();
    assert_eq!(told(&now), expected);
}

#[tokio::test(start_paused = true)]
async fn n2_an_nsqd_that_comes_back_elsewhere_is_told_anew_and_is_still_the_same_nsqd() {
    let network = MemoryNetwork::new();
    let _a = Scripted::start(&network, "a:4161", |n| match n {
        0 => listed(&[entry("x", 1, Some(("r", "z1"))), entry("y", 1, None)]),
        _ => listed(&[entry("x", 2, Some(("r", "z2"))), entry("y", 1, None)]),
    });
    let mut nodes = watch(&network, &["a:4161"], &exact());
    assert_eq!(told(&nodes.next().await.added)[0], ("x:4150", Some("r"), Some("z1")));
    let changes = nodes.next().await;
    assert!(changes.is_empty(), "{changes:?}");
    assert_eq!(told(&changes.anew), [("x:4150", Some("r"), Some("z2"))]);
    let x = nodes.view().items().next().cloned();
    assert_eq!(told(x.as_slice()), [("x:4150", Some("r"), Some("z2"))]);
    assert!(nodes.next().await.anew.is_empty());
}

#[tokio::test(start_paused = true)]
async fn n5_a_node_outlives_failures_and_is_dropped_after_clean_rounds_only() {
    let network = MemoryNetwork::new();
    let _a = Scripted::start(&network, "a:4161", |n| match n {
        0 => listed(&[entry("x", 1, None), entry("y", 1, None)]),
        1..=20 => Reply::Send(http("500 Internal Server Error", "broken")),
        _ => listed(&[entry("y", 1, None)]),
    });
    let mut nodes = watch(&network, &["a:4161"], &exact());
    assert_eq!(nodes.next().await.added.len(), 2);
    for _ in 1..=20 {
        assert!(nodes.next().await.is_empty());
    }
    let (start, mut removed) = (Instant::now(), Vec::new());
    while removed.is_empty() {
        removed = nodes.next().await.removed;
        assert!(start.elapsed() < 200 * SECOND);
    }
    assert_eq!(told(&removed), [("x:4150", None, None)]);
    // The first clean round, from which on it is missing, is up to an interval away.
    assert!(start.elapsed() >= 30 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn n4_what_is_no_list_of_nsqds_is_an_error_and_too_many_are_left_out() {
    let network = MemoryNetwork::new();
    let _nsqd = Scripted::start(&network, "a:4161", |_| {
        Reply::Send(http("404 Not Found", r#"{"message":"NOT_FOUND"}"#))
    });
    let _html = Scripted::start(&network, "b:4161", |_| Reply::Send(http("200 OK", "<html>")));
    let _topics = Scripted::start(&network, "c:4161", |_| Reply::Send(http("200 OK", r#"{"topics":[]}"#)));
    // As many topics as an nsqd can have make an answer long.
    let _large = Scripted::start(&network, "d:4161", |_| {
        Reply::Send(http("200 OK", list(&[entry(&"x".repeat(5000), 1, None)])))
    });
    let _many = Scripted::start(&network, "e:4161", |_| {
        let hosts = ["u", "v", "w", "", "no host"];
        listed(&hosts.map(|host| entry(host, 1, None)))
    });
    let options = DiscoveryOptions {
        max_nodes: 2,
        max_body: 4096,
        ..exact()
    };
    let lookupds = ["a:4161", "b:4161", "c:4161", "d:4161", "e:4161"];
    let mut nodes = watch(&network, &lookupds, &options);
    assert_eq!(told(&nodes.next().await.added).len(), 2);
    let facts = nodes.lookupd_facts();
    let failures = facts[..4].iter().map(|lookupd| lookupd.failure().unwrap());
    let (kinds, texts): (Vec<_>, Vec<_>) = failures.map(|error| (error.kind(), error.to_string())).unzip();
    use ErrorKind::{Protocol, Rejected};
    assert_eq!(kinds, [Rejected, Protocol, Protocol, Protocol]);
    assert!(texts[0].contains("4161") && texts[0].contains("/nodes"), "{texts:?}");
    assert!(texts[3].contains("max_lookupd_answer"), "{texts:?}");
    assert_eq!((facts[4].announced, facts[4].malformed, facts[4].ignored), (3, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn n5_the_user_chooses_nsqds_and_their_addresses() {
    let network = MemoryNetwork::new();
    let _a = Scripted::start(&network, "a:4161", |_| {
        let zones = [("x", "z1"), ("y", "z2"), ("panic", "z1")];
        listed(&zones.map(|(host, zone)| entry(host, 1, Some(("r", zone)))))
    });
    let options = DiscoveryOptions {
        hooks: Hooks {
            filter: Some(Arc::new(|nsqd| {
                assert_ne!(nsqd.broadcast_address, "panic");
                nsqd.topology_zone.as_deref() == Some("z1")
            })),
            map_address: Some(Arc::new(|nsqd| format!("proxy-{}:1", nsqd.broadcast_address))),
        },
        ..exact()
    };
    let mut nodes = watch(&network, &["a:4161"], &options);
    assert_eq!(told(&nodes.next().await.added), [("proxy-x:1", Some("r"), Some("z1"))]);
    let facts = nodes.lookupd_facts();
    assert_eq!((facts[0].filtered, facts[0].malformed), (1, 1));
}

#[tokio::test]
async fn n5_an_nsqd_without_any_topic_is_found() {
    use crate::test_server::{Lookupd, Nsqd};
    let lookupd = Lookupd::start().await.unwrap();
    let nsqd = Nsqd::builder().lookupd(&lookupd).start().await.unwrap();
    let lookupds = [LookupdConfig::new(lookupd.address())];
    let connector = Arc::new(crate::transport::TcpConnector::new());
    let options = DiscoveryOptions {
        poll_interval: Duration::from_millis(10),
        ..exact()
    };
    let mut nodes = NodeWatch::watch(&lookupds, connector, &options, 1).unwrap();
    let found = loop {
        let mut changes = nodes.next().await;
        if let Some(found) = changes.added.pop() {
            break found;
        }
    };
    assert_eq!(&*found.address, nsqd.address());
}
