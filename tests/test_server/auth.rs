//! AUTH: what the broker asks the auth server, and what it lets clients do.

use std::time::Duration;

use async_nsq::protocol::{Command, CommandName, Frame, HEARTBEAT, Secret};
use async_nsq::test_server::{AuthServer, Grant, Nsqd, Permission};
use async_nsq::transport::MemoryNetwork;
use tokio::time::{Instant, sleep};

use super::raw::{Event, RawClient};
use super::{ADDRESS, MOMENT, error, publish};

struct Guarded {
    network: MemoryNetwork,
    auth: AuthServer,
    nsqd: Nsqd,
}

impl Guarded {
    async fn new() -> Self {
        let network = MemoryNetwork::new();
        let auth = AuthServer::start_in(&network, "auth:4181").await.unwrap();
        let nsqd = Nsqd::builder().auth_http_address("auth:4181");
        let nsqd = nsqd.start_in(&network, ADDRESS).await.unwrap();
        Self { network, auth, nsqd }
    }

    fn grant(&self, secret: &str, ttl: u64) {
        let permissions = [Permission::Publish, Permission::Subscribe];
        let grant = Grant::new().identity("bob").ttl(Duration::from_secs(ttl));
        self.auth.grant(secret, grant.allow("^t$", [".*"], permissions));
    }

    async fn client(&self) -> RawClient {
        RawClient::open(&self.network.connector(), ADDRESS).await
    }

    async fn authorized(&self) -> RawClient {
        let mut client = self.client().await;
        let reply = r#"{"identity":"bob","identity_url":"","permission_count":1}"#;
        client.ask(auth("s"), reply).await;
        client
    }
}

fn auth(secret: &'static str) -> Command {
    Command::Auth {
        secret: Secret::new(secret),
    }
}

async fn refusal(mut client: RawClient, command: Command) -> String {
    client.send(command).await;
    let text = error(client.frame().await);
    assert_eq!(client.next(MOMENT).await, Event::Closed);
    text
}

#[tokio::test(start_paused = true)]
async fn what_is_granted_is_allowed_and_nothing_else() {
    let guarded = Guarded::new().await;
    guarded.grant("s", 60);
    let mut client = guarded.authorized().await;
    client.ask(publish("x"), "OK").await;
    client.subscribe("t", "c", 1).await;
    let topic = "other".to_owned();
    let other = Command::Mpub {
        topic: topic.clone(),
        bodies: vec!["x".into()],
    };
    let text = refusal(guarded.authorized().await, other).await;
    assert_eq!(text, r#"E_UNAUTHORIZED AUTH failed for MPUB on "other" """#);
    let channel = "c".to_owned();
    let text = refusal(guarded.authorized().await, Command::Sub { topic, channel }).await;
    assert_eq!(text, r#"E_UNAUTHORIZED AUTH failed for SUB on "other" "c""#);
    assert_eq!(guarded.nsqd.topic("other"), None);
    let stats = guarded.nsqd.stats();
    assert_eq!(stats.clients[0].identity, Some(("bob".to_owned(), String::new())));
}

#[tokio::test(start_paused = true)]
async fn without_auth_nothing_is_allowed_but_to_say_who_one_is() {
    let guarded = Guarded::new().await;
    let text = refusal(guarded.client().await, publish("x")).await;
    assert_eq!(text, "E_AUTH_FIRST AUTH required before PUB");
    assert_eq!(
        refusal(guarded.client().await, auth("unknown")).await,
        "E_AUTH_FAILED AUTH failed"
    );
    guarded.auth.grant("nothing", Grant::new().ttl(Duration::from_secs(1)));
    let text = refusal(guarded.client().await, auth("nothing")).await;
    assert_eq!(text, "E_UNAUTHORIZED AUTH no authorizations found");
    guarded.grant("s", 60);
    let text = refusal(guarded.authorized().await, auth("s")).await;
    assert_eq!(text, "E_INVALID AUTH already set");
    guarded.client().await.send(Command::Nop).await;
}

#[tokio::test(start_paused = true)]
async fn after_its_time_a_grant_is_asked_for_again_and_a_consumer_stays() {
    let guarded = Guarded::new().await;
    guarded.grant("s", 10);
    let mut client = guarded.authorized().await;
    let mut consumer = guarded.authorized().await;
    consumer.subscribe("t", "c", 1).await;
    assert_eq!(guarded.auth.requests().len(), 2);
    sleep(Duration::from_secs(11)).await;
    client.ask(publish("x"), "OK").await;
    assert_eq!(guarded.auth.requests().len(), 3);

    guarded.auth.revoke("s");
    sleep(Duration::from_secs(11)).await;
    assert_eq!(refusal(client, publish("y")).await, "E_AUTH_FAILED AUTH failed");
    assert_eq!(consumer.message().await.body, "x");
}

#[tokio::test(start_paused = true)]
async fn while_the_auth_server_thinks_heartbeats_come_and_commands_wait() {
    let guarded = Guarded::new().await;
    guarded.grant("s", 60);
    guarded.auth.faults().delay(Duration::from_secs(4));
    let mut client = guarded.client().await;
    let body = r#"{"heartbeat_interval":1000}"#.into();
    client.ask(Command::Identify { body }, "OK").await;
    let asked = Instant::now();
    client.send(auth("s")).await;
    client.send(publish("x")).await;
    let heartbeat = Event::Frame(Frame::Response(HEARTBEAT.into()));
    for _ in 0..3 {
        assert_eq!(client.next(Duration::from_secs(10)).await, heartbeat);
    }
    assert!(matches!(client.frame().await, Frame::Response(json) if json.starts_with(b"{")));
    assert_eq!(client.frame().await, Frame::Response("OK".into()));
    assert_eq!(asked.elapsed(), Duration::from_secs(4));
    // One that takes too long has failed.
    guarded.auth.faults().hang();
    let late = refusal(guarded.client().await, auth("s")).await;
    assert_eq!(late, "E_AUTH_FAILED AUTH failed");
    assert_eq!(asked.elapsed(), Duration::from_secs(9));
}

#[tokio::test(start_paused = true)]
async fn of_several_auth_servers_one_suffices() {
    let network = MemoryNetwork::new();
    let auth_server = AuthServer::start_in(&network, "auth:4181").await.unwrap();
    auth_server.grant("s", Grant::new().allow(".*", [".*"], [Permission::Publish]));
    let nsqd = Nsqd::builder()
        .auth_http_address("down:1")
        .auth_http_address("auth:4181")
        .auth_http_address("down:2");
    let _nsqd = nsqd.start_in(&network, ADDRESS).await.unwrap();
    for _ in 0..20 {
        let mut client = RawClient::open(&network.connector(), ADDRESS).await;
        client.send(auth("s")).await;
        assert!(matches!(client.frame().await, Frame::Response(json) if json.starts_with(b"{")));
    }
}

#[tokio::test(start_paused = true)]
async fn a_fault_of_auth_lasts_until_it_is_carried_out() {
    let guarded = Guarded::new().await;
    guarded.grant("s", 3600);
    let faults = guarded.nsqd.faults();
    faults.command(CommandName::Auth).once().swallow();
    faults.command(CommandName::Auth).once().disconnect_after();
    let mut client = guarded.client().await;
    client.send(auth("s")).await;
    client.assert_silent(MOMENT).await;
    client.ask(publish("x"), "OK").await;

    let mut client = guarded.client().await;
    client.send(auth("s")).await;
    assert_eq!(client.next(MOMENT).await, Event::Closed);
    assert_eq!(guarded.auth.requests().len(), 2);
}
