//! Serving: paths and verbs, headers, bodies that are too large, and when the broker ends.

use std::io::ErrorKind;

use async_nsq::test_server::Nsqd;
use async_nsq::transport::{Connector, MemoryNetwork, TcpConnector};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::client::{ask, exchange};
use crate::{HTTP, House, TCP};

const JSON: Option<&str> = Some("application/json; charset=utf-8");
const TEXT: Option<&str> = Some("text/plain; charset=utf-8");
const V1: Option<&str> = Some("nsq; version=1.0");

#[tokio::test(start_paused = true)]
async fn what_is_not_there_and_what_is_not_allowed_is_said_as_by_nsqd() {
    let house = House::new().await;
    house
        .check(&[
            ("GET /ping", b"", 200, "OK"),
            ("GET /nope", b"", 404, r#"{"message":"NOT_FOUND"}"#),
            ("GET /config/", b"", 404, r#"{"message":"NOT_FOUND"}"#),
            ("GET /pub", b"", 405, r#"{"message":"METHOD_NOT_ALLOWED"}"#),
            ("POST /stats", b"x", 405, r#"{"message":"METHOD_NOT_ALLOWED"}"#),
            ("GET /stats?topic=%", b"", 400, r#"{"message":"INVALID_REQUEST"}"#),
            ("POST /ping/", b"", 404, r#"{"message":"NOT_FOUND"}"#),
            ("GET /%zz", b"", 400, "400 Bad Request"),
        ])
        .await;
    let refused = house.get("/pub").await;
    assert_eq!(refused.header("allow"), Some("OPTIONS, POST"));
    let options = house.ask("OPTIONS", "/config/x", b"").await;
    assert_eq!(
        (options.status, options.header("allow")),
        (200, Some("GET, OPTIONS, PUT"))
    );
    let moved = house.get("/PING").await;
    assert_eq!((moved.status, moved.header("location")), (301, Some("/ping")));
    let moved = house.post("/Pub/?topic=t", "x").await;
    assert_eq!((moved.status, moved.header("location")), (307, Some("/pub?topic=t")));
}

#[tokio::test(start_paused = true)]
async fn all_but_ping_bear_the_header_that_go_nsq_looks_for() {
    let house = House::new().await;
    for (target, content_type, header) in [
        ("/ping", TEXT, None),
        ("/info", JSON, V1),
        ("/stats", TEXT, V1),
        ("/stats?format=json", JSON, V1),
        ("/config/log_prefix", TEXT, V1),
        ("/config/tls_cert", None, V1),
        ("/config/msg_timeout", JSON, V1),
        ("/nope", JSON, V1),
    ] {
        let answer = house.get(target).await;
        let headers = (answer.header("content-type"), answer.header("x-nsq-content-type"));
        assert_eq!(headers, (content_type, header), "{target}");
    }
}

#[tokio::test(start_paused = true)]
async fn info_has_nsqds_members_in_nsqds_order() {
    let house = House::new().await;
    let info = house.get("/info").await.text();
    let value: serde_json::Value = serde_json::from_str(&info).unwrap();
    let (hostname, start_time) = (
        value["hostname"].as_str().unwrap(),
        value["start_time"].as_i64().unwrap(),
    );
    let expected = format!(
        r#"{{"version":"1.3.0","broadcast_address":"nsqd","hostname":"{hostname}","http_port":4151,"tcp_port":4150,"start_time":{start_time},"max_heartbeat_interval":60000000000,"max_output_buffer_size":65536,"max_output_buffer_timeout":30000000000,"max_deflate_level":6}}"#
    );
    assert_eq!(info, expected);
    assert!(start_time > 1_600_000_000);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_says_it_is_too_large_is_refused_before_it_comes() {
    let house = House::with(Nsqd::builder().max_msg_size(1024 * 1024)).await;
    for (target, length, code) in [
        ("/pub?topic=t", 1_048_577, "MSG_TOO_BIG"),
        ("/mpub?topic=t", 5_242_881, "BODY_TOO_BIG"),
        ("/mpub?topic=t&binary=true", 5_242_881, "BODY_TOO_BIG"),
        ("/pub?topic=t", u64::MAX / 2, "MSG_TOO_BIG"),
    ] {
        let mut io = house.network.connector().connect(HTTP).await.unwrap();
        let head = format!("POST {target} HTTP/1.1\r\nHost: nsqd\r\nContent-Length: {length}\r\n\r\n");
        let answer = exchange(&mut io, head.as_bytes()).await;
        assert_eq!(
            (answer.status, answer.header("connection")),
            (413, Some("close")),
            "{target}"
        );
        assert_eq!(answer.text(), format!(r#"{{"message":"{code}"}}"#));
    }
    assert_eq!(house.nsqd.topic("t"), None);
}

#[tokio::test(start_paused = true)]
async fn a_body_in_chunks_is_limited_while_it_comes() {
    let house = House::with(Nsqd::builder().max_msg_size(10).max_body_size(20)).await;
    for (target, length, status, body) in [
        ("/pub?topic=t", 10, 200, "OK"),
        ("/pub?topic=t", 11, 413, r#"{"message":"MSG_TOO_BIG"}"#),
        ("/mpub?topic=t", 11, 413, r#"{"message":"MSG_TOO_BIG"}"#),
        ("/mpub?topic=t", 21, 413, r#"{"message":"BODY_TOO_BIG"}"#),
        ("/mpub?topic=t&binary=true", 21, 413, r#"{"message":"BODY_TOO_BIG"}"#),
        ("/config/log_level", 11, 413, r#"{"message":"INVALID_VALUE"}"#),
    ] {
        let method = if target.starts_with("/config") { "PUT" } else { "POST" };
        let mut request = format!(
            "{method} {target} HTTP/1.1\r\nHost: nsqd\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        request += &"1\r\na\r\n".repeat(length);
        request += "0\r\n\r\n";
        let mut io = house.network.connector().connect(HTTP).await.unwrap();
        let answer = exchange(&mut io, request.as_bytes()).await;
        assert_eq!((answer.status, &*answer.text()), (status, body), "{target} {length}");
        assert_eq!(answer.reason == "Request Entity Too Large", status == 413);
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_goes_on_after_a_body_that_nobody_wanted() {
    let house = House::with(Nsqd::builder().max_msg_size(10)).await;
    let mut io = house.network.connector().connect(HTTP).await.unwrap();
    let mut requests = String::new();
    for target in ["/topic/create?topic=t", "/nope", "/pub?topic=t"] {
        requests += &format!("POST {target} HTTP/1.1\r\nHost: nsqd\r\nContent-Length: 12\r\n\r\nnothing here");
    }
    requests += "GET /ping HTTP/1.1\r\nHost: nsqd\r\nConnection: close\r\n\r\n";
    io.write_all(requests.as_bytes()).await.unwrap();
    let mut received = String::new();
    io.read_to_string(&mut received).await.unwrap();
    let statuses: Vec<_> = received.matches("HTTP/1.1 ").collect();
    assert_eq!(statuses.len(), 4, "{received}");
    assert!(received.ends_with("\r\n\r\nOK"), "{received}");
}

#[tokio::test(start_paused = true)]
async fn a_stopped_broker_ends_its_http_connections_and_a_restarted_one_serves_again() {
    let house = House::new().await;
    house.post("/topic/create?topic=t", "").await;
    let mut kept = house.network.connector().connect(HTTP).await.unwrap();
    kept.write_all(b"GET /ping HTTP/1.1\r\nHost: nsqd\r\n\r\n")
        .await
        .unwrap();
    let mut byte = [0];
    kept.read_exact(&mut byte).await.unwrap();

    house.nsqd.stop().await;
    let mut rest = Vec::new();
    let _ = kept.read_to_end(&mut rest).await;
    assert!(rest.ends_with(b"OK"));
    let refused = house.network.connector().connect(HTTP).await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);

    house.nsqd.restart().await.unwrap();
    house.check(&[("POST /topic/pause?topic=t", b"", 200, "")]).await;
    house.nsqd.kill().await;
    assert!(house.network.connector().connect(HTTP).await.is_err());
    house.nsqd.restart().await.unwrap();
    house.check(&[("GET /ping", b"", 200, "OK")]).await;

    drop(house.nsqd);
    assert!(house.network.connector().connect(HTTP).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn an_address_that_is_taken_or_missing_keeps_the_broker_from_starting() {
    let network = MemoryNetwork::new();
    let taken = network.listen(HTTP).unwrap();
    let error = Nsqd::builder().start_in(&network, TCP).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    // What was opened before is closed again.
    drop(taken);
    let nsqd = Nsqd::builder().start_in(&network, TCP).await.unwrap();
    assert_eq!(
        (nsqd.address(), nsqd.http_address(), nsqd.https_address()),
        (TCP, HTTP, None)
    );
    let error = Nsqd::builder().start_in(&network, "nsqd:65535").await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let elsewhere = Nsqd::builder().flag("http-address", "nsqd:9000").unwrap();
    let elsewhere = elsewhere.start_in(&network, "nsqd:65535").await.unwrap();
    assert_eq!(elsewhere.http_address(), "nsqd:9000");
}

#[tokio::test]
async fn it_serves_a_port_of_the_loopback_interface() {
    let nsqd = Nsqd::start().await.unwrap();
    let connector = TcpConnector::new();
    let answer = ask(&connector, nsqd.http_address(), "POST", "/pub?topic=t", b"hello").await;
    assert_eq!((answer.status, &*answer.text()), (200, "OK"));
    assert_eq!(nsqd.drain("t", "c").unwrap(), ["hello"]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_still_sending_hears_why_it_is_refused() {
    let network = MemoryNetwork::new();
    let nsqd = Nsqd::builder().max_body_size(1000);
    let _nsqd = nsqd.start_in(&network, TCP).await.unwrap();
    let stream = network.connector().connect(HTTP).await.unwrap();
    let (mut read, mut write) = tokio::io::split(stream);
    let head = b"POST /mpub?topic=t HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5b8d80\r\n";
    write.write_all(head).await.unwrap();
    // Many a client gives up if it cannot send, and does not look for an answer.
    write.write_all(&vec![b'x'; 6_000_000]).await.unwrap();
    let mut answer = [0; 12];
    read.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
}
