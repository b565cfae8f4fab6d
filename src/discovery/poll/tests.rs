use std::error::Error as _;

use super::super::scripted::{Reply, Scripted, http, producers};
use super::*;
use crate::transport::MemoryNetwork;

const LOOKUPD: &str = "lookupd:4161";
const MAX_BODY: usize = 1024 * 1024;

fn asker(network: &MemoryNetwork, topic: &str) -> Asker {
    let connector = Arc::new(network.connector());
    let topic = Topic::new(topic).unwrap();
    Asker::new(connector, &topic, Duration::from_secs(2), MAX_BODY)
}

async fn ask(network: &MemoryNetwork) -> Result<Answer> {
    let answer = asker(network, "orders").ask(&LOOKUPD.into()).await;
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
    answer.addresses.iter().map(|address| &**address).collect()
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
    asker(&network, "orders#ephemeral").ask(&LOOKUPD.into()).await.unwrap();
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
        assert_eq!(answer, unknown_topic());
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
    let topic = Topic::new("orders").unwrap();
    let asker = Asker::new(Arc::new(Swallowed), &topic, Duration::from_secs(2), MAX_BODY);
    let error = asker.ask(&LOOKUPD.into()).await.unwrap_err();
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
}

#[test]
fn addresses_are_taken_with_and_without_scheme() {
    for (given, meant) in [
        ("127.0.0.1:4161", "127.0.0.1:4161"),
        ("http://lookupd.example:4161", "lookupd.example:4161"),
        ("HTTP://lookupd:80/", "lookupd:80"),
        ("[::1]:4161", "[::1]:4161"),
        ("http://[fe80::1]:4161/", "[fe80::1]:4161"),
    ] {
        assert_eq!(&*parse_address(given).unwrap(), meant);
    }
}

#[test]
fn other_addresses_are_refused_with_what_to_give_instead() {
    for bad in [
        "",
        ":4161",
        "lookupd",
        "http://lookupd",
        "lookupd:",
        "lookupd:0",
        "lookupd:+80",
        "lookupd:65536",
        "::1:4161",
        "[]:4161",
        "[::1:4161",
        "two words:4161",
        "line\n:4161",
        "ümlaut:4161",
        "http://lookupd:4161/prefix",
        "lookupd:4161?x",
        "tcp://lookupd:4161",
    ] {
        let error = parse_address(bad).unwrap_err();
        assert_eq!(
            (error.kind(), error.step()),
            (ErrorKind::Invalid, Some(Step::Configure)),
            "{bad}"
        );
        assert!(error.to_string().contains("127.0.0.1:4161"), "{error}");
    }
    let error = parse_address("https://lookupd:4161").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn n3_a_password_in_an_address_is_refused_and_not_shown() {
    for bad in ["http://user:secret@lookupd:4161", "https://user:secret@lookupd:4161"] {
        let error = parse_address(bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(!format!("{error} {error:?}").contains("secret"));
    }
}
