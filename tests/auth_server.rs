//! The test broker's auth server.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the line that did it")]

use std::time::Duration;

use async_nsq::test_server::{AuthServer, Grant, Permission};
use async_nsq::transport::{Connector, MemoryNetwork};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

const ADDRESS: &str = "auth:4181";

struct House {
    network: MemoryNetwork,
    auth: AuthServer,
}

impl House {
    async fn new() -> Self {
        let network = MemoryNetwork::new();
        let auth = AuthServer::start_in(&network, ADDRESS).await.unwrap();
        Self { network, auth }
    }

    async fn send(&self, request: String) -> (u16, String) {
        let mut io = self.network.connector().connect(ADDRESS).await.unwrap();
        // What is too large is not read to its end.
        let _ = io.write_all(request.as_bytes()).await;
        let mut answer = String::new();
        io.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    async fn get(&self, target: &str) -> (u16, String) {
        let request = format!("GET {target} HTTP/1.1\r\nhost: auth\r\nconnection: close\r\n\r\n");
        self.send(request).await
    }

    async fn ask(&self, secret: &str) -> (u16, String) {
        let target = format!("/auth?common_name=&remote_ip=10.0.0.1&secret={secret}&tls=false");
        self.get(&target).await
    }

    async fn post(&self, body: &str) -> (u16, String) {
        let head = "POST /auth HTTP/1.1\r\nhost: auth\r\nconnection: close\r\ncontent-type: application/json";
        let request = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        self.send(request).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_secret_is_answered_with_its_grant() {
    let house = House::new().await;
    let grant = Grant::new()
        .identity("bob")
        .identity_url("http://b")
        .ttl(Duration::from_secs(30))
        .allow("^t$", [".*", "^c<"], [Permission::Publish, Permission::Subscribe])
        .allow("u", Vec::<String>::new(), []);
    house.auth.grant("a b", grant);
    let answer = concat!(
        r#"{"ttl":30,"identity":"bob","identity_url":"http://b","authorizations":["#,
        r#"{"topic":"^t$","channels":[".*","^c\u003c"],"permissions":["publish","subscribe"]},"#,
        r#"{"topic":"u","channels":[],"permissions":[]}]}"#
    );
    assert_eq!(house.ask("a+b").await, (200, answer.to_owned()));
    assert_eq!(house.ask("other").await.0, 403);
    house.auth.grant("a b", Grant::new());
    let answer = r#"{"ttl":60,"identity":"","identity_url":"","authorizations":[]}"#;
    assert_eq!(house.ask("a+b").await, (200, answer.to_owned()));
    house.auth.revoke("a b");
    assert_eq!(house.ask("a+b").await.0, 403);
}

#[tokio::test(start_paused = true)]
async fn the_form_of_newer_nsqds_is_understood() {
    let house = House::new().await;
    house.auth.grant("s", Grant::new().identity("bob"));
    let (status, body) = house
        .post(r#"{"common_name":["cn"],"remote_ip":["127.0.0.1"],"secret":["s"],"tls":["true"]}"#)
        .await;
    assert!(status == 200 && body.contains("bob"), "{status} {body}");
    let asked = &house.auth.requests()[0];
    assert_eq!(
        (&*asked.common_name, &*asked.remote_ip, asked.secret(), asked.tls),
        ("cn", "127.0.0.1", "s", true)
    );
    for malformed in ["", "[]", r#"{"secret":"s"}"#, &" ".repeat(65 * 1024)] {
        assert_eq!(house.post(malformed).await.0, 400);
    }
    assert_eq!(house.auth.requests().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn questions_can_be_seen_and_awaited_without_showing_the_secret() {
    let house = House::new().await;
    let (asked, _) = tokio::join!(
        house.auth.wait_for(|requests| requests.len() == 1),
        house.get("/auth?common_name=cn&remote_ip=%3A%3A1&secret=hunter2&tls=true")
    );
    let asked = &asked.unwrap()[0];
    assert_eq!(
        (&*asked.common_name, &*asked.remote_ip, asked.secret(), asked.tls),
        ("cn", "::1", "hunter2", true)
    );
    assert_eq!(asked.at, Instant::now());
    let shown = format!("{asked:?} {:?}", house.auth);
    assert!(shown.contains("cn") && !shown.contains("hunter2"), "{shown}");
    let error = house.auth.wait_for(|requests| requests.len() == 2).await.unwrap_err();
    assert!(!error.to_string().contains("hunter2") && error.last().len() == 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_else_is_answered() {
    let house = House::new().await;
    assert_eq!(house.get("/").await.0, 404);
    assert_eq!(house.get("/auth?secret=%").await.0, 400);
    assert_eq!(house.auth.requests(), []);
}

#[tokio::test(start_paused = true)]
async fn fault_an_auth_server_can_fail_in_each_way() {
    let house = House::new().await;
    house.auth.grant("s", Grant::new());
    let faults = || house.auth.faults();
    faults().times(1).answer_status(500);
    assert_eq!(house.ask("s").await, (500, String::new()));
    assert_eq!(house.ask("s").await.0, 200);
    faults().answer_body(r#"{"ttl":0}"#);
    assert_eq!(house.ask("s").await, (200, r#"{"ttl":0}"#.into()));
    faults().delay(Duration::from_secs(4));
    let started = Instant::now();
    house.ask("s").await;
    assert_eq!(started.elapsed(), Duration::from_secs(4));
    faults().hang();
    assert!(timeout(Duration::from_secs(60), house.ask("s")).await.is_err());
    assert_eq!(house.auth.requests().len(), 5, "all are seen");
    faults().down();
    assert!(house.network.connector().connect(ADDRESS).await.is_err());
    faults().clear().unwrap();
    assert_eq!(house.ask("s").await.0, 200);
}
