use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use super::super::http::MAX_HEAD;
use super::super::question::{Hooks, Nsqds};
use super::super::scripted::{Reply, Scripted, http, producers};
use super::*;
use crate::config::LookupdConfig;
use crate::error::{ErrorKind, Step};
use crate::name::{Channel, Topic};
use crate::transport::{Connector, MemoryNetwork};

const LOOKUPD: &str = "lookupd:4161";
const MAX_BODY: usize = 1024 * 1024;

fn client(connector: impl Connector) -> Client {
    Client {
        connector: Arc::new(connector),
        timeout: Duration::from_secs(2),
        max_body: MAX_BODY,
    }
}

fn asker(network: &MemoryNetwork, topic: &str) -> Asker<Nsqds> {
    let question = Nsqds::new(Topic::new(topic).unwrap(), None, Hooks::default());
    Asker::new(question, client(network.connector()))
}

fn lookupd() -> LookupdTarget {
    LookupdConfig::new(LOOKUPD).resolve().unwrap()
}

async fn ask(network: &MemoryNetwork) -> Result<Answer> {
    ask_by(&asker(network, "orders")).await
}

async fn ask_by(asker: &Asker<Nsqds>) -> Result<Answer> {
    let answer = asker.ask(&lookupd()).await;
    if let Err(error) = &answer {
        assert_eq!((error.step(), error.address()), (Some(Step::Lookup), Some(LOOKUPD)));
    }
    answer
}

/// What the client makes of this reply.
async fn answer_to(reply: Reply) -> Result<Answer> {
    let network = MemoryNetwork::new();
    let mut reply = Some(reply);
    let _server = Scripted::start(&network, LOOKUPD, move |_| reply.take().unwrap());
    ask(&network).await
}

async fn answer_to_bytes(bytes: impl AsRef<[u8]>) -> Result<Answer> {
    answer_to(Reply::Send(bytes.as_ref().to_vec())).await
}

fn addresses(answer: &Answer) -> Vec<&str> {
    answer.items.iter().map(|address| &**address).collect()
}

#[tokio::test]
async fn n5_a_good_answer_gives_the_tcp_addresses() {
    let answer = answer_to_bytes(http("200 OK", producers(&["a", "10.0.0.2", "::1"])))
        .await
        .unwrap();
    assert_eq!(addresses(&answer), ["a:4150", "10.0.0.2:4150", "[::1]:4150"]);
    assert!(answer.topic_known && answer.malformed == 0);
}

#[tokio::test]
async fn n5_the_request_is_what_every_version_of_nsqlookupd_understands() {
    let network = MemoryNetwork::new();
    let server = Scripted::start(&network, LOOKUPD, |_| Reply::Send(http("200 OK", producers(&[]))));
    asker(&network, "orders#ephemeral").ask(&lookupd()).await.unwrap();
    let head = server.requests().remove(0).to_ascii_lowercase();
    assert!(
        head.starts_with("get /lookup?topic=orders%23ephemeral http/1.1\r\n"),
        "{head}"
    );
    assert!(head.contains("\r\nhost: lookupd:4161\r\n"), "{head}");
    assert!(
        head.contains("\r\naccept: application/vnd.nsq; version=1.0\r\n"),
        "{head}"
    );
    let user_agent = format!("\r\nuser-agent: async-nsq/{}\r\n", env!("CARGO_PKG_VERSION"));
    assert!(head.contains(&user_agent), "{head}");
}

#[tokio::test]
async fn n5_a_chunked_answer_is_put_together() {
    let body = producers(&["a", "b"]);
    let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for chunk in body.as_bytes().chunks(7) {
        bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    let answer = answer_to_bytes(bytes).await.unwrap();
    assert_eq!(addresses(&answer), ["a:4150", "b:4150"]);
}

#[tokio::test]
async fn n5_an_answer_that_ends_with_the_connection_is_complete() {
    let bytes = format!("HTTP/1.0 200 OK\r\n\r\n{}", producers(&["a"]));
    let answer = answer_to(Reply::SendAndClose(bytes.into_bytes())).await.unwrap();
    assert_eq!(addresses(&answer), ["a:4150"]);
}

#[tokio::test]
async fn n5_the_old_envelope_is_understood() {
    let body = format!(
        r#"{{"status_code":200,"status_txt":"OK","data":{}}}"#,
        producers(&["a"])
    );
    let answer = answer_to_bytes(http("200 OK", body)).await.unwrap();
    assert_eq!(addresses(&answer), ["a:4150"]);
}

#[tokio::test]
async fn n5_an_unknown_topic_is_an_empty_answer_in_every_form() {
    let old = r#"{"status_code":500,"status_txt":"TOPIC_NOT_FOUND","data":null}"#;
    for reply in [
        http("404 Not Found", r#"{"message":"TOPIC_NOT_FOUND"}"#),
        http("404 Not Found", old),
        http("500 Internal Server Error", old),
        http("200 OK", old),
    ] {
        let answer = answer_to_bytes(reply).await.unwrap();
        assert!(answer.items.is_empty() && !answer.topic_known && answer.malformed == 0);
    }
}

#[tokio::test]
async fn n5_another_404_is_no_answer_and_points_to_the_right_daemon() {
    for body in [r#"{"message":"NOT_FOUND"}"#, "<html>not here</html>", ""] {
        let error = answer_to_bytes(http("404 Not Found", body)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Rejected);
        assert!(error.to_string().contains("4161"), "{error}");
    }
}

#[tokio::test]
async fn n5_other_statuses_are_errors_that_show_the_answer() {
    for (status, kind) in [
        ("500 Internal Server Error", ErrorKind::Rejected),
        ("502 Bad Gateway", ErrorKind::Rejected),
        ("400 Bad Request", ErrorKind::Rejected),
        ("403 Forbidden", ErrorKind::Rejected),
        ("301 Moved Permanently", ErrorKind::Protocol),
        ("201 Created", ErrorKind::Protocol),
    ] {
        let error = answer_to_bytes(http(status, "because\n".repeat(1000)))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        let text = error.to_string();
        assert!(text.contains(status) && text.contains("because"), "{text}");
        assert!(text.len() < 400 && !text.contains('\n'), "{text}");
    }
    let old = r#"{"status_code":500,"status_txt":"INVALID_REQUEST","data":null}"#;
    let error = answer_to_bytes(http("200 OK", old)).await.unwrap_err();
    assert!(
        error.kind() == ErrorKind::Rejected && error.to_string().contains("INVALID_REQUEST"),
        "{error}"
    );
}

#[tokio::test]
async fn n5_what_is_not_an_answer_of_nsqlookupd_is_a_protocol_error_with_its_cause() {
    for body in [
        "{\"producers\":[",
        "<html>welcome</html>",
        "",
        "[]",
        "{\"producers\":7}",
    ] {
        let error = answer_to_bytes(http("200 OK", body)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{body}");
        assert!(error.source().is_some());
    }
}

#[tokio::test]
async fn n5_what_is_not_http_names_the_port_mistake() {
    for bytes in [
        // How nsqlookupd's and nsqd's TCP ports answer to an HTTP request.
        &b"\x00\x00\x00\x0eE_BAD_PROTOCOL"[..],
        b"\x00\x00\x00\x12\x00\x00\x00\x01E_BAD_PROTOCOL",
        b"220 mail.example ESMTP\r\n",
    ] {
        let error = answer_to_bytes(bytes).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error:?}");
        assert!(error.to_string().contains("4161"), "{error}");
    }
}

#[tokio::test]
async fn n5_a_broken_off_answer_is_a_lost_connection() {
    let whole = http("200 OK", producers(&["a"]));
    for length in [0, 5, 40, whole.len() - 1] {
        let error = answer_to(Reply::SendAndClose(whole[..length].to_vec()))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionLost, "{length} {error:?}");
        assert!(error.source().is_some());
    }
}

#[tokio::test]
async fn n5_a_refused_connection_is_unreachable_with_its_cause() {
    let error = ask(&MemoryNetwork::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.source().unwrap().to_string().contains(LOOKUPD));
}

#[tokio::test(start_paused = true)]
async fn n5_one_timeout_covers_the_whole_question() {
    let start = Instant::now();
    let half = http("200 OK", producers(&["a"]))[..80].to_vec();
    for reply in [Reply::Hang, Reply::Send(half)] {
        let error = answer_to(reply).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionLost);
        assert!(error.to_string().contains("2s"), "{error}");
    }
    // Nobody takes the request up: as far as an HTTP client can tell, that is the same.
    let network = MemoryNetwork::new();
    let _listener = network.listen(LOOKUPD).unwrap();
    assert_eq!(ask(&network).await.unwrap_err().kind(), ErrorKind::ConnectionLost);
    assert_eq!(start.elapsed().as_secs(), 6);
}

#[tokio::test(start_paused = true)]
async fn n5_a_connection_that_does_not_come_about_is_unreachable() {
    #[derive(Debug)]
    struct Swallowed;
    impl Connector for Swallowed {
        fn connect(&self, _: &str) -> crate::transport::Connecting {
            Box::pin(std::future::pending())
        }
    }
    let question = Nsqds::new(Topic::new("orders").unwrap(), None, Hooks::default());
    let asker = Asker::new(question, client(Swallowed));
    let error = ask_by(&asker).await.unwrap_err();
    assert_eq!((error.kind(), error.address()), (ErrorKind::Unreachable, Some(LOOKUPD)));
}

#[tokio::test]
async fn n4_a_body_past_the_limit_is_not_read() {
    let filler = " ".repeat(MAX_BODY);
    let error = answer_to_bytes(http("200 OK", filler.clone() + &producers(&["a"])))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol);
    assert!(error.to_string().contains(&MAX_BODY.to_string()), "{error}");
    // Without a length, and without an end.
    let mut endless = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    endless.extend_from_slice(format!("{:x}\r\n{filler}\r\n8\r\n{{       \r\n", MAX_BODY).as_bytes());
    assert_eq!(answer_to_bytes(endless).await.unwrap_err().kind(), ErrorKind::Protocol);
}

#[tokio::test]
async fn n4_a_head_past_the_limit_is_not_read() {
    let mut bytes = b"HTTP/1.1 200 OK\r\nX-Filler: ".to_vec();
    bytes.extend_from_slice(&vec![b'x'; 2 * MAX_HEAD]);
    let error = answer_to_bytes(bytes).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error:?}");
}

#[tokio::test]
async fn n4_hosts_that_no_host_can_have_are_counted_as_malformed() {
    let long = "x".repeat(254);
    let body = producers(&["good", "two words", "line\\nbreak", "ümlaut", &long, ""]);
    let answer = answer_to_bytes(http("200 OK", body)).await.unwrap();
    assert_eq!(addresses(&answer), ["good:4150"]);
    assert_eq!(answer.malformed, 5);
    let example = answer.example.unwrap();
    assert!(example.starts_with("\"two words:4150\""), "{example}");
}

/// What the client makes of nsqds with these hosts, given what the user has to say about them.
async fn answer_with(hooks: Hooks, hosts: &[&str]) -> Answer {
    let network = MemoryNetwork::new();
    let body = producers(hosts);
    let _server = Scripted::start(&network, LOOKUPD, move |_| Reply::Send(http("200 OK", &body)));
    let question = Nsqds::new(Topic::new("orders").unwrap(), None, hooks);
    ask_by(&Asker::new(question, client(network.connector())))
        .await
        .unwrap()
}

#[tokio::test]
async fn n5_an_nsqd_that_the_filter_rejects_is_not_announced() {
    let hooks = Hooks {
        filter: Some(Arc::new(|nsqd| nsqd.broadcast_address != "b")),
        ..Hooks::default()
    };
    let answer = answer_with(hooks, &["a", "b", "c"]).await;
    assert_eq!(addresses(&answer), ["a:4150", "c:4150"]);
    assert_eq!((answer.filtered, answer.malformed), (1, 0));
}

#[tokio::test]
async fn n5_lesson_62_an_address_that_cannot_be_reached_from_here_is_mapped() {
    let hooks = Hooks {
        map_address: Some(Arc::new(|nsqd| {
            assert_eq!(nsqd.remote_address, "10.0.0.9:50000");
            format!("127.0.0.1:{}", nsqd.tcp_port + 1)
        })),
        ..Hooks::default()
    };
    // The hook is asked about hosts that are none, too: it may know better.
    let answer = answer_with(hooks, &["container 7"]).await;
    assert_eq!(addresses(&answer), ["127.0.0.1:4151"]);
    assert_eq!(answer.malformed, 0);
}

#[tokio::test]
async fn n5_lesson_62_hooks_that_fail_cost_their_entry_and_no_other() {
    let hooks = Hooks {
        filter: Some(Arc::new(|nsqd| nsqd.broadcast_address != "a" || panic!("no a please"))),
        map_address: Some(Arc::new(|nsqd| match &*nsqd.broadcast_address {
            "b" => panic!("no b please"),
            "c" => "x".repeat(1_000_000),
            "d" => "tcp://d:4150".to_owned(),
            _ => nsqd.tcp_address(),
        })),
    };
    let answer = answer_with(hooks, &["a", "b", "c", "d", "e"]).await;
    assert_eq!(addresses(&answer), ["e:4150"]);
    assert_eq!((answer.filtered, answer.malformed), (0, 4));
    let example = answer.example.unwrap();
    assert!(
        example.contains("discovery_filter panicked at nsqd \"a:4150\""),
        "{example}"
    );
    let hooks = Hooks {
        map_address: Some(Arc::new(|_| "x".repeat(1_000_000))),
        ..Hooks::default()
    };
    let example = answer_with(hooks, &["a"]).await.example.unwrap();
    assert!(
        example.len() < 200 && example.contains("the port is missing"),
        "{example}"
    );
}

/// What the client asks, and what it makes of these replies to it, if it is to create channel billing.
async fn creating(replies: Vec<Reply>) -> (Vec<String>, Result<Answer>) {
    let network = MemoryNetwork::new();
    let mut replies = replies.into_iter();
    let server = Scripted::start(&network, LOOKUPD, move |_| replies.next().unwrap());
    let channel = Channel::new("billing").unwrap();
    let question = Nsqds::new(Topic::new("orders#ephemeral").unwrap(), Some(channel), Hooks::default());
    let answer = ask_by(&Asker::new(question, client(network.connector()))).await;
    let requests = server.requests().into_iter();
    let lines = requests.map(|head| head.lines().next().unwrap().to_owned());
    (lines.collect(), answer)
}

fn with_channels(channels: &str) -> Reply {
    Reply::Send(http("200 OK", format!(r#"{{"channels":[{channels}],"producers":[]}}"#)))
}

const GET: &str = "GET /lookup?topic=orders%23ephemeral HTTP/1.1";
const POST: &str = "POST /channel/create?topic=orders%23ephemeral&channel=billing HTTP/1.1";

#[tokio::test]
async fn n5_lesson_55_a_channel_is_created_where_it_is_missing_and_only_there() {
    let done = || Reply::Send(http("200 OK", ""));
    let unknown = Reply::Send(http("404 Not Found", r#"{"message":"TOPIC_NOT_FOUND"}"#));
    for reply in [unknown, with_channels(r#""billing2""#)] {
        let (requests, answer) = creating(vec![reply, done()]).await;
        assert_eq!(requests, [GET, POST]);
        assert!(matches!(answer.unwrap().channel, Some(Ok(()))));
    }
    let (requests, answer) = creating(vec![with_channels(r#""a","billing""#)]).await;
    assert_eq!(requests, [GET]);
    assert!(matches!(answer.unwrap().channel, Some(Ok(()))));
}

#[tokio::test(start_paused = true)]
async fn n5_lesson_55_a_channel_that_cannot_be_created_spoils_no_answer() {
    for (reply, kind) in [
        (Reply::Send(http("404 Not Found", "{}")), ErrorKind::Rejected),
        (Reply::Send(http("403 Forbidden", "")), ErrorKind::Rejected),
        (Reply::SendAndClose(Vec::new()), ErrorKind::ConnectionLost),
        (Reply::Hang, ErrorKind::ConnectionLost),
    ] {
        let start = Instant::now();
        let (requests, answer) = creating(vec![with_channels(""), reply]).await;
        assert_eq!(requests, [GET, POST]);
        let answer = answer.unwrap();
        assert!(answer.topic_known);
        let error = answer.channel.unwrap().unwrap_err();
        assert_eq!((error.kind(), error.address()), (kind, Some(LOOKUPD)), "{error}");
        assert!(start.elapsed().as_secs() <= 2, "one timeout for both");
    }
    // One that does not answer is not asked for more.
    let (requests, answer) = creating(vec![Reply::Send(http("500 Internal Server Error", ""))]).await;
    assert_eq!(requests, [GET]);
    assert_eq!(answer.unwrap_err().kind(), ErrorKind::Rejected);
}
