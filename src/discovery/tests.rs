use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use tokio::time::{Instant, sleep, timeout};

use super::facts::Status;
use super::scripted::{Reply, Scripted, found, http, producers};
use super::*;
use crate::error::ErrorKind;
use crate::transport::MemoryNetwork;

const SECOND: Duration = Duration::from_secs(1);

fn discovery(network: &MemoryNetwork, lookupds: &[&str]) -> Discovery {
    // Without jitter the times of rounds are exact.
    let options = DiscoveryOptions {
        poll_jitter: 0.0,
        ..DiscoveryOptions::default()
    };
    with_options(network, lookupds, &options).unwrap()
}

fn with_options(network: &MemoryNetwork, lookupds: &[&str], options: &DiscoveryOptions) -> Result<Discovery> {
    let lookupds: Vec<_> = lookupds.iter().map(|&lookupd| LookupdConfig::from(lookupd)).collect();
    let (topic, channel) = (Topic::new("orders").unwrap(), Channel::new("billing").unwrap());
    Discovery::new(topic, &channel, &lookupds, Arc::new(network.connector()), options, 1)
}

fn names(addresses: &[Arc<str>]) -> Vec<&str> {
    addresses.iter().map(|address| &**address).collect()
}

fn unknown() -> Reply {
    Reply::Send(http("404 Not Found", r#"{"message":"TOPIC_NOT_FOUND"}"#))
}

#[tokio::test(start_paused = true)]
async fn n5_the_first_call_asks_all_at_once_and_unites() {
    let network = MemoryNetwork::new();
    let _a = Scripted::start(&network, "a:4161", |_| found(&["x", "y"]));
    let _b = Scripted::start(&network, "b:4161", |_| found(&["y", "z"]));
    let start = Instant::now();
    let mut discovery = discovery(&network, &["a:4161", "http://b:4161/"]);
    let changes = discovery.next().await;
    assert_eq!(names(&changes.added), ["x:4150", "y:4150", "z:4150"]);
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(discovery.view().announced_by("z:4150").map(|l| &**l), Some("b:4161"));
}

#[tokio::test(start_paused = true)]
async fn n5_a_hanging_lookupd_delays_a_round_by_its_timeout_at_most() {
    let network = MemoryNetwork::new();
    let hang = |_| Reply::Hang;
    let _servers = ["a:4161", "b:4161", "c:4161"].map(|address| Scripted::start(&network, address, hang));
    let _good = Scripted::start(&network, "d:4161", |_| found(&["x"]));
    let start = Instant::now();
    let mut discovery = discovery(&network, &["a:4161", "b:4161", "c:4161", "d:4161", "refuses:4161"]);
    let changes = discovery.next().await;
    assert_eq!(names(&changes.added), ["x:4150"]);
    // Timers count in whole milliseconds, rounded up.
    assert!(
        start.elapsed() <= 2 * SECOND + Duration::from_millis(1),
        "{:?}",
        start.elapsed()
    );
    let failing = discovery.view().lookupds().iter();
    let failing = failing.filter(|lookupd| matches!(lookupd.facts().status, Status::Failing { .. }));
    assert_eq!(failing.count(), 4);
}

#[tokio::test(start_paused = true)]
async fn n5_polls_are_fast_at_first_and_after_each_change_and_slow_down_to_the_interval() {
    let network = MemoryNetwork::new();
    let _server = Scripted::start(&network, "a:4161", |n| if n < 3 { unknown() } else { found(&["x"]) });
    let mut discovery = discovery(&network, &["a:4161"]);
    let start = Instant::now();
    let mut rounds = Vec::new();
    for _ in 0..11 {
        let changes = discovery.next().await;
        rounds.push((start.elapsed().as_secs(), changes.added.len()));
    }
    let (at, added): (Vec<_>, Vec<_>) = rounds.into_iter().unzip();
    assert_eq!(at, [0, 1, 3, 7, 8, 10, 14, 22, 38, 70, 130]);
    assert_eq!(added, [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn n5_a_dropped_future_is_resumed_not_restarted() {
    let network = MemoryNetwork::new();
    let server = Scripted::start(&network, "a:4161", |n| if n == 0 { Reply::Hang } else { found(&["x"]) });
    let mut discovery = discovery(&network, &["a:4161"]);
    let start = Instant::now();
    // An owner with much else to do: the round and the waiting are interrupted every 10 ms.
    let changes = loop {
        if let Ok(changes) = timeout(Duration::from_millis(10), discovery.next()).await {
            if !changes.is_empty() {
                break changes;
            }
        }
    };
    assert_eq!(names(&changes.added), ["x:4150"]);
    // The timeout of the first round and the first fast delay, no matter how often it was interrupted.
    assert_eq!(start.elapsed().as_secs(), 3);
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn n5_a_vanished_nsqd_goes_after_several_clean_rounds_over_half_a_minute() {
    let network = MemoryNetwork::new();
    let _a = Scripted::start(&network, "a:4161", |n| {
        if n == 0 { found(&["x", "y"]) } else { found(&["y"]) }
    });
    let mut discovery = discovery(&network, &["a:4161"]);
    let mut removed = Vec::new();
    let start = Instant::now();
    while start.elapsed() < 31 * SECOND {
        removed.push(discovery.next().await.removed.len());
    }
    // Missing since the second round, which was at 1 s; from there they are fast again.
    assert_eq!(removed, [0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(discovery.view().items().collect::<Vec<_>>(), [&Arc::from("y:4150")]);
}

#[tokio::test(start_paused = true)]
async fn n2_an_nsqd_that_registers_anew_is_told_once_and_not_when_it_is_found_or_beyond_the_limit() {
    let network = MemoryNetwork::new();
    let at = |port: u16| {
        Reply::Send(http(
            "200 OK",
            producers(&["x", "y"]).replace(":50000", &format!(":{port}")),
        ))
    };
    let script = move |n| match n {
        0 => found(&[]),
        1 | 2 => at(1),
        3 => Reply::Send(http("500 Internal Server Error", "broken")),
        _ => at(2),
    };
    let _a = Scripted::start(&network, "a:4161", script);
    let _b = Scripted::start(&network, "b:4161", script);
    let options = DiscoveryOptions {
        max_nodes: 2,
        ..DiscoveryOptions::default()
    };
    let mut discovery = with_options(&network, &["a:4161", "b:4161"], &options).unwrap();
    let mut anew = Vec::new();
    for _ in 0..6 {
        let changes = discovery.next().await;
        anew.push(names(&changes.anew).join(" "));
    }
    assert_eq!(anew, ["", "", "", "", "x:4150 y:4150", ""]);
    let options = DiscoveryOptions {
        max_nodes: 1,
        ..options
    };
    let _c = Scripted::start(&network, "c:4161", move |n| at(n as u16));
    let mut discovery = with_options(&network, &["c:4161"], &options).unwrap();
    for _ in 0..5 {
        assert!(discovery.next().await.anew.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn n5_a_lookupd_that_went_away_takes_nothing_with_it() {
    let network = MemoryNetwork::new();
    let gone = Scripted::start(&network, "a:4161", |_| found(&["x"]));
    let _b = Scripted::start(&network, "b:4161", |_| found(&["y"]));
    let mut discovery = discovery(&network, &["a:4161", "b:4161"]);
    discovery.next().await;
    drop(gone);
    for _ in 0..20 {
        assert!(discovery.next().await.is_empty());
    }
    assert_eq!(discovery.view().items().len(), 2);
    let _back = Scripted::start(&network, "a:4161", |_| found(&["x", "z"]));
    assert_eq!(names(&discovery.next().await.added), ["z:4150"]);
}

#[tokio::test(start_paused = true)]
async fn n5_poll_soon_brings_one_round_forward_and_does_not_hammer() {
    let network = MemoryNetwork::new();
    let server = Scripted::start(&network, "a:4161", |_| found(&["x"]));
    let mut discovery = discovery(&network, &["a:4161"]);
    discovery.next().await;
    sleep(20 * SECOND).await;
    let lost = Instant::now();
    discovery.poll_soon();
    discovery.next().await;
    assert!(lost.elapsed() <= SECOND, "{:?}", lost.elapsed());
    // Connections are lost all the time for ten seconds: about one round a second, not one per loss.
    let before = server.requests().len();
    let _ = timeout(10 * SECOND, async {
        loop {
            discovery.poll_soon();
            let _ = timeout(Duration::from_millis(1), discovery.next()).await;
        }
    })
    .await;
    let rounds = server.requests().len() - before;
    assert!((5..=10).contains(&rounds), "{rounds}");
    // Quiet again: back to the interval, after the round that may be under way and the one that was asked for during it.
    discovery.next().await;
    discovery.next().await;
    let quiet = Instant::now();
    discovery.next().await;
    assert_eq!(quiet.elapsed().as_secs(), 60);
}

#[tokio::test(start_paused = true)]
async fn n5_poll_soon_during_a_round_asks_once_more_after_it() {
    let network = MemoryNetwork::new();
    let slow = |_| Reply::SendAfter(SECOND, http("200 OK", producers(&["x"])));
    let server = Scripted::start(&network, "a:4161", slow);
    let mut discovery = discovery(&network, &["a:4161"]);
    let interrupted = timeout(SECOND / 2, discovery.next()).await;
    assert!(interrupted.is_err(), "the first round is under way");
    discovery.poll_soon();
    discovery.next().await;
    let first_ended = Instant::now();
    discovery.next().await;
    assert!(first_ended.elapsed() <= 2 * SECOND, "{:?}", first_ended.elapsed());
    assert_eq!(server.requests().len(), 2);
    // Nothing more was asked for, so the third comes when the schedule says, and takes its second.
    let second_ended = Instant::now();
    discovery.next().await;
    assert_eq!(second_ended.elapsed().as_secs(), 3);
}

#[tokio::test(start_paused = true)]
async fn n4_a_huge_number_of_nsqds_is_cut_to_the_limit() {
    let network = MemoryNetwork::new();
    let hosts: Vec<_> = (0..5000).map(|number| format!("nsqd{number}")).collect();
    let _a = Scripted::start(&network, "a:4161", move |n| {
        let mut hosts: Vec<_> = hosts.iter().map(String::as_str).collect();
        // nsqlookupd promises no order.
        hosts.rotate_left(n * 1234);
        found(&hosts)
    });
    let mut discovery = discovery(&network, &["a:4161"]);
    let (changes, log) = logged(discovery.next()).await;
    assert_eq!(changes.added.len(), 1000);
    assert_eq!(discovery.view().ignored(), 4000);
    assert_eq!(log.iter().filter(|line| line.starts_with("WARN")).count(), 1, "{log:?}");
    for _ in 0..3 {
        let (changes, log) = logged(discovery.next()).await;
        assert!(changes.is_empty());
        assert!(log.is_empty(), "{log:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn n5_the_log_tells_each_change_once() {
    let network = MemoryNetwork::new();
    let _a = Scripted::start(&network, "a:4161", |n| match n {
        0 | 1 => unknown(),
        2..5 => Reply::Send(http("500 Internal Server Error", "broken")),
        _ => found(&["x"]),
    });
    let mut discovery = discovery(&network, &["a:4161"]);
    let mut lines = Vec::new();
    for _ in 0..8 {
        let (_, log) = logged(discovery.next()).await;
        lines.extend(log);
    }
    let expected = [
        ("DEBUG", "does not know the topic"),
        ("WARN", "broken"),
        ("INFO", "answers again"),
        ("DEBUG", "nsqd found"),
    ];
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, (level, text)) in lines.iter().zip(expected) {
        assert!(line.starts_with(level) && line.contains(text), "{line}");
        assert!(line.contains("a:4161") && line.contains("orders"), "{line}");
    }
}

#[tokio::test(start_paused = true)]
async fn n5_a_lookupd_that_is_added_is_asked_at_once() {
    let network = MemoryNetwork::new();
    let _a = Scripted::start(&network, "a:4161", |_| found(&["x"]));
    let _b = Scripted::start(&network, "b:4161", |_| found(&["y"]));
    let mut discovery = discovery(&network, &["a:4161"]);
    while timeout(30 * SECOND, discovery.next()).await.is_ok() {}
    // Between two rounds.
    let start = Instant::now();
    assert!(discovery.add_lookupd(&"http://b:4161".into()).unwrap());
    assert!(!discovery.add_lookupd(&"b:4161".into()).unwrap());
    assert!(discovery.add_lookupd(&"b".into()).is_err());
    assert_eq!(names(&discovery.next().await.added), ["y:4150"]);
    assert_eq!(start.elapsed(), Duration::ZERO);
    // Polls are fast again.
    discovery.next().await;
    assert_eq!(start.elapsed(), SECOND);
}

#[tokio::test(start_paused = true)]
async fn n5_a_lookupd_that_is_added_during_a_round_takes_part_in_it() {
    let network = MemoryNetwork::new();
    let slow = |_| Reply::SendAfter(SECOND, http("200 OK", producers(&["x"])));
    let _a = Scripted::start(&network, "a:4161", slow);
    let b = Scripted::start(&network, "b:4161", |_| found(&["y"]));
    let mut discovery = discovery(&network, &["a:4161"]);
    assert!(timeout(SECOND / 2, discovery.next()).await.is_err());
    discovery.add_lookupd(&"b:4161".into()).unwrap();
    assert_eq!(names(&discovery.next().await.added), ["x:4150", "y:4150"]);
    assert_eq!(b.requests().len(), 1);
    assert!(discovery.view().last_round_clean());
}

#[tokio::test(start_paused = true)]
async fn n5_a_lookupd_that_is_removed_is_not_waited_for_and_takes_its_nsqds_with_it_later() {
    let network = MemoryNetwork::new();
    let a = Scripted::start(&network, "a:4161", |n| {
        if n == 0 { found(&["x", "y"]) } else { Reply::Hang }
    });
    let _b = Scripted::start(&network, "b:4161", |_| found(&["y"]));
    let mut discovery = discovery(&network, &["a:4161", "b:4161"]);
    discovery.next().await;
    // The second round hangs at a.
    assert!(timeout(2 * SECOND, discovery.next()).await.is_err());
    let start = Instant::now();
    assert!(!discovery.remove_lookupd("c:4161").unwrap());
    assert!(discovery.remove_lookupd("b").is_err());
    assert!(discovery.remove_lookupd("http://a:4161/").unwrap());
    assert!(discovery.next().await.is_empty());
    assert_eq!(start.elapsed(), Duration::ZERO);
    let removed = loop {
        let changes = discovery.next().await;
        if !changes.is_empty() {
            break changes.removed;
        }
    };
    assert_eq!(names(&removed), ["x:4150"]);
    // Not with the first clean rounds, and without waiting for the slow ones.
    let waited = start.elapsed();
    assert!((30 * SECOND..65 * SECOND).contains(&waited), "{waited:?}");
    assert_eq!(a.requests().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn n5_the_first_lookupd_may_come_later_and_the_last_one_may_go() {
    let network = MemoryNetwork::new();
    let a = Scripted::start(&network, "a:4161", |_| found(&["x"]));
    let mut discovery = discovery(&network, &[]);
    assert!(timeout(600 * SECOND, discovery.next()).await.is_err(), "nobody to ask");
    discovery.add_lookupd(&"a:4161".into()).unwrap();
    assert_eq!(names(&discovery.next().await.added), ["x:4150"]);
    // While it waits, and in the middle of a round.
    for waiting in [SECOND / 2, Duration::ZERO] {
        let _ = timeout(waiting, discovery.next()).await;
        discovery.remove_lookupd("a:4161").unwrap();
        while let Ok(changes) = timeout(600 * SECOND, discovery.next()).await {
            assert!(changes.is_empty());
        }
        let asked = a.requests().len();
        assert!(timeout(600 * SECOND, discovery.next()).await.is_err());
        assert_eq!((asked, discovery.view().items().len()), (a.requests().len(), 1));
        discovery.add_lookupd(&"a:4161".into()).unwrap();
        discovery.next().await;
    }
}

#[tokio::test(start_paused = true)]
async fn n3_lesson_65_the_headers_are_sent_and_can_be_changed_while_running() {
    let network = MemoryNetwork::new();
    let server = Scripted::start(&network, "a:4161", |_| found(&["x"]));
    let mut discovery = discovery(&network, &["a:4161"]);
    discovery.next().await;
    for secret in ["first", "second"] {
        let lookupd = LookupdConfig::new("a:4161")
            .bearer(secret)
            .header("X-Team", "billing")
            .allow_plaintext_auth();
        assert!(!discovery.add_lookupd(&lookupd).unwrap(), "it is there already");
        discovery.next().await;
    }
    let sent = |head: &str| {
        head.lines()
            .filter(|line| line.starts_with("authorization"))
            .map(str::to_owned)
            .collect()
    };
    let heads = server.requests();
    let authorizations: Vec<Vec<String>> = heads.iter().map(|head| sent(head)).collect();
    let expected = [
        vec![],
        vec!["authorization: Bearer first"],
        vec!["authorization: Bearer second"],
    ];
    assert_eq!(authorizations, expected);
    assert!(heads[1].contains("\r\nx-team: billing\r\n"), "{}", heads[1]);
}

#[tokio::test(start_paused = true)]
async fn n5_lesson_55_a_channel_is_created_everywhere_and_again_where_it_was_forgotten() {
    let network = MemoryNetwork::new();
    let body = |channels: &str| format!(r#"{{"channels":[{channels}],"producers":[]}}"#);
    let with = move |channels: &str| Reply::Send(http("200 OK", body(channels)));
    let a = Scripted::start(&network, "a:4161", move |n| match n {
        // The POSTs are numbers 1, 3 and 6.
        0 => unknown(),
        1 => Reply::Send(http("500 Internal Server Error", "not today")),
        2 => unknown(),
        3 | 6 => Reply::Send(http("200 OK", "")),
        5 => unknown(),
        _ => with(r#""billing""#),
    });
    let b = Scripted::start(&network, "b:4161", move |_| with(r#""billing""#));
    let options = DiscoveryOptions {
        create: true,
        ..DiscoveryOptions::default()
    };
    let mut discovery = with_options(&network, &["a:4161", "b:4161"], &options).unwrap();
    let (mut told, mut log) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let (_, lines) = logged(discovery.next()).await;
        log.extend(lines);
        let now = Instant::now().into_std();
        let stats: Vec<_> = discovery.lookupd_facts().iter().map(|facts| facts.stats(now)).collect();
        let of_a = stats[0].channel_created.as_ref().unwrap();
        told.push(of_a.as_ref().map_err(|error| error.kind()).copied());
        assert!(stats[1].channel_created.as_ref().unwrap().is_ok());
    }
    assert_eq!(told, [Err(ErrorKind::Rejected), Ok(()), Ok(()), Ok(()), Ok(())]);
    let posts = |server: &Scripted| server.requests().iter().filter(|head| head.starts_with("POST")).count();
    assert_eq!((posts(&a), posts(&b)), (3, 0));
    let warnings: Vec<_> = log.iter().filter(|line| line.starts_with("WARN")).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("not today"), "{log:#?}");
}

#[tokio::test]
async fn n5_lesson_55_an_ephemeral_channel_cannot_be_created_beforehand() {
    let options = DiscoveryOptions {
        create: true,
        ..DiscoveryOptions::default()
    };
    let (topic, channel) = (Topic::new("orders").unwrap(), Channel::new("tail#ephemeral").unwrap());
    let connector = Arc::new(MemoryNetwork::new().connector());
    let error = Discovery::new(topic, &channel, &[], connector, &options, 1)
        .err()
        .unwrap();
    assert!(error.to_string().contains("create_topic_and_channel"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn n5_an_nsqd_that_is_rejected_from_some_moment_on_is_dropped_as_if_it_had_gone() {
    let network = MemoryNetwork::new();
    let _a = Scripted::start(&network, "a:4161", |_| found(&["x", "y"]));
    let wanted = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let asked = Arc::clone(&wanted);
    let options = DiscoveryOptions {
        hooks: Hooks {
            filter: Some(Arc::new(move |nsqd| {
                nsqd.broadcast_address == "x" || asked.load(Ordering::Relaxed)
            })),
            map_address: Some(Arc::new(|nsqd| format!("{}.example:1", nsqd.broadcast_address))),
        },
        ..DiscoveryOptions::default()
    };
    let mut discovery = with_options(&network, &["a:4161"], &options).unwrap();
    assert_eq!(names(&discovery.next().await.added), ["x.example:1", "y.example:1"]);
    wanted.store(false, Ordering::Relaxed);
    discovery.next().await;
    let now = Instant::now().into_std();
    let nsqds: Vec<_> = discovery.nsqd_facts().iter().map(|nsqd| nsqd.stats(now)).collect();
    assert!(nsqds[0].missing.is_none() && nsqds[1].missing.is_some(), "{nsqds:?}");
    assert_eq!((&*nsqds[1].address, &*nsqds[1].announced_by), ("y.example:1", "a:4161"));
    assert_eq!(discovery.lookupd_facts()[0].filtered, 1);
    let start = Instant::now();
    let removed = loop {
        let changes = discovery.next().await;
        if !changes.is_empty() {
            break changes.removed;
        }
    };
    assert_eq!(names(&removed), ["y.example:1"]);
    assert!(start.elapsed() >= 29 * SECOND);
}

fn listed(topics: &str) -> Reply {
    Reply::Send(http("200 OK", format!(r#"{{"topics":[{topics}]}}"#)))
}

fn topic_watch(network: &MemoryNetwork, lookupds: &[&str], max_topics: usize) -> TopicWatch {
    let lookupds: Vec<_> = lookupds.iter().map(|&lookupd| LookupdConfig::from(lookupd)).collect();
    let options = DiscoveryOptions::default();
    TopicWatch::watch(&lookupds, Arc::new(network.connector()), &options, max_topics, 1).unwrap()
}

fn topics(topics: &[Topic]) -> Vec<&str> {
    topics.iter().map(Topic::as_str).collect()
}

#[tokio::test(start_paused = true)]
async fn n5_lesson_56_the_topics_of_all_lookupds_are_united_in_both_forms() {
    let network = MemoryNetwork::new();
    let a = Scripted::start(&network, "a:4161", |n| match n {
        0 => listed(r#""orders","logs#ephemeral","no good",7"#),
        _ => Reply::Send(http("500 Internal Server Error", "broken")),
    });
    let old = r#"{"status_code":200,"status_txt":"OK","data":{"topics":["invoices","orders"]}}"#;
    let _b = Scripted::start(&network, "b:4161", move |n| match n {
        0 => Reply::Send(http("200 OK", old)),
        _ => listed(""),
    });
    let mut watch = topic_watch(&network, &["a:4161", "b:4161"], TopicWatch::MAX_TOPICS);
    let (changes, log) = logged(watch.next()).await;
    assert_eq!(topics(&changes.added), ["invoices", "logs#ephemeral", "orders"]);
    assert!(a.requests()[0].starts_with("GET /topics HTTP/1.1\r\n"));
    assert_eq!(watch.lookupd_facts()[0].malformed, 2);
    let warnings: Vec<_> = log.iter().filter(|line| line.starts_with("WARN")).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("no good"), "{log:#?}");
    // Nothing is dropped while one fails.
    for _ in 0..20 {
        assert!(watch.next().await.is_empty());
    }
    watch.remove_lookupd("a:4161").unwrap();
    let removed = loop {
        let changes = watch.next().await;
        if !changes.is_empty() {
            break changes.removed;
        }
    };
    assert_eq!(topics(&removed), ["invoices", "logs#ephemeral", "orders"]);
}

#[tokio::test(start_paused = true)]
async fn n5_what_is_not_a_list_of_topics_is_a_failure() {
    let network = MemoryNetwork::new();
    let _a = Scripted::start(&network, "a:4161", |n| match n {
        0 => listed(r#""orders""#),
        1 => found(&["x"]),
        2 => unknown(),
        _ => Reply::Send(http("200 OK", r#"{"status_code":500,"status_txt":"broken"}"#)),
    });
    let mut watch = topic_watch(&network, &["a:4161"], TopicWatch::MAX_TOPICS);
    watch.next().await;
    let mut kinds = Vec::new();
    for _ in 0..3 {
        assert!(watch.next().await.is_empty());
        let facts = watch.lookupd_facts().remove(0);
        kinds.push(facts.failure().map(Error::kind));
    }
    assert_eq!(
        kinds,
        [ErrorKind::Protocol, ErrorKind::Rejected, ErrorKind::Rejected].map(Some)
    );
    assert_eq!(watch.view().items().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn n4_a_huge_number_of_topics_is_cut_to_the_limit() {
    let network = MemoryNetwork::new();
    let names: Vec<_> = (0..500).map(|number| format!(r#""t{number}""#)).collect();
    let _a = Scripted::start(&network, "a:4161", move |_| listed(&names.join(",")));
    let mut watch = topic_watch(&network, &["a:4161"], 100);
    assert_eq!(watch.next().await.added.len(), 100);
    assert_eq!(watch.lookupd_facts()[0].ignored, 400);
    assert!(watch.next().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn n5_lesson_62_a_hook_that_fails_is_warned_of_once() {
    let network = MemoryNetwork::new();
    let _a = Scripted::start(&network, "a:4161", |_| found(&["x", "y"]));
    let options = DiscoveryOptions {
        hooks: Hooks {
            map_address: Some(Arc::new(|nsqd| match &*nsqd.broadcast_address {
                "x" => "x".to_owned(),
                _ => nsqd.tcp_address(),
            })),
            ..Hooks::default()
        },
        ..DiscoveryOptions::default()
    };
    let mut discovery = with_options(&network, &["a:4161"], &options).unwrap();
    let mut log = Vec::new();
    for _ in 0..5 {
        log.extend(logged(discovery.next()).await.1);
    }
    let warnings: Vec<_> = log.iter().filter(|line| line.starts_with("WARN")).collect();
    assert_eq!(warnings.len(), 1, "{log:#?}");
    assert!(
        warnings[0].contains("the port is missing") && warnings[0].contains("a:4161"),
        "{warnings:?}"
    );
    assert_eq!(discovery.view().items().len(), 1);
}

#[tokio::test]
async fn options_and_addresses_are_checked_before_anything_is_asked() {
    let network = MemoryNetwork::new();
    let default = DiscoveryOptions::default;
    let kind = |lookupds: &[&str], options: DiscoveryOptions| {
        with_options(&network, lookupds, &options)
            .err()
            .map(|error| error.kind())
    };
    assert_eq!(kind(&["a:4161"], default()), None);
    assert_eq!(kind(&[], default()), None, "the first may come later");
    assert_eq!(kind(&["a:4161", "b"], default()), Some(ErrorKind::Invalid));
    for poll_interval in [Duration::ZERO, Duration::MAX] {
        let options = DiscoveryOptions {
            poll_interval,
            ..default()
        };
        assert_eq!(kind(&["a:4161"], options), Some(ErrorKind::Invalid));
    }
    for poll_jitter in [-0.1, 1.1, f64::NAN] {
        let options = DiscoveryOptions {
            poll_jitter,
            ..default()
        };
        assert_eq!(kind(&["a:4161"], options), Some(ErrorKind::Invalid));
    }
    let options = DiscoveryOptions {
        timeout: Duration::ZERO,
        ..default()
    };
    assert_eq!(kind(&["a:4161"], options), Some(ErrorKind::Invalid));
    let options = DiscoveryOptions {
        max_nodes: 0,
        ..default()
    };
    assert_eq!(kind(&["a:4161"], options), Some(ErrorKind::Invalid));
    for max_body in [1023, (1 << 30) + 1] {
        let options = DiscoveryOptions { max_body, ..default() };
        assert_eq!(kind(&["a:4161"], options), Some(ErrorKind::Invalid));
    }
    let options = DiscoveryOptions {
        create: true,
        ..default()
    };
    assert_eq!(kind(&["a:4161"], options), None);
    let twice = with_options(&network, &["a:4161", "http://a:4161/"], &default()).unwrap();
    assert_eq!(twice.view().lookupds().len(), 1);
}

#[test]
fn discovery_can_live_in_a_spawned_task() {
    fn send<T: Send>() {}
    send::<Discovery>();
}

/// Runs the future and returns what this crate logged meanwhile, one line an event. Only single-threaded runtimes.
async fn logged<T>(future: impl Future<Output = T>) -> (T, Vec<String>) {
    /// tracing decides once for each line of code whether anybody listens, and while it knows of one listener only, it asks
    /// the thread that gets there first: another test's. With two that never end, all of them are asked.
    static OTHERS: OnceLock<[tracing::Dispatch; 2]> = OnceLock::new();
    let listener = |lines: &Arc<Mutex<Vec<String>>>| {
        tracing::Dispatch::new(Lines {
            lines: Arc::clone(lines),
            spans: AtomicUsize::new(1),
        })
    };
    OTHERS.get_or_init(|| [listener(&Arc::default()), listener(&Arc::default())]);
    let lines = Arc::default();
    let guard = tracing::dispatcher::set_default(&listener(&lines));
    let result = future.await;
    drop(guard);
    let lines = lines.lock().unwrap().clone();
    (result, lines)
}

struct Lines {
    lines: Arc<Mutex<Vec<String>>>,
    spans: AtomicUsize,
}

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("async_nsq")
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(self.spans.fetch_add(1, Ordering::Relaxed) as u64)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Fields(String);
        impl tracing::field::Visit for Fields {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0 += &format!(" {}={value:?}", field.name());
            }
        }
        let mut fields = Fields(event.metadata().level().to_string());
        event.record(&mut fields);
        self.lines.lock().unwrap().push(fields.0);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

mod nodes;
