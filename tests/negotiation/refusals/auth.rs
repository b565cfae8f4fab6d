//! Secrets: missing, wrong, not to be sent in clear, revoked; and what a secret does not permit.

use std::time::Duration;

use async_nsq::protocol::{CommandName, ErrorCode};
use async_nsq::test_server::{AuthServer, Grant, Nsqd, Permission};
use async_nsq::{ConnectionConfig, ErrorKind, Step};
use tokio::time::sleep;

use super::{AUTH_ADDRESS, MINUTE, Refusal, World, consumer_of, failure_of};
use crate::support::SECRET;

const EVERYTHING: [Permission; 2] = [Permission::Publish, Permission::Subscribe];

/// How long nsqd trusts the auth server's answer.
const TTL: Duration = Duration::from_secs(10);

fn everything() -> Grant {
    Grant::new().ttl(TTL).allow(".*", [".*"], EVERYTHING)
}

/// An nsqd that demands AUTH, with a certificate.
async fn demanding(world: &World) -> (Nsqd, AuthServer) {
    let auth = world.auth_server().await;
    let builder = Nsqd::builder().tls(world.server_tls()).auth_http_address(AUTH_ADDRESS);
    (world.start(builder).await, auth)
}

fn knowing(world: &World) -> ConnectionConfig {
    world.connection().tls(world.client_tls()).auth_secret(SECRET)
}

fn auth_failed(step: Step) -> Refusal {
    let says = &[
        "E_AUTH_FAILED",
        "does not know the secret",
        "auth_secret",
        "--auth-http-address",
    ];
    Refusal::rejected(step, ErrorCode::AuthFailed, says)
}

fn unauthorized(step: Step) -> Refusal {
    Refusal::rejected(step, ErrorCode::Unauthorized, &["E_UNAUTHORIZED", "auth_secret"])
}

fn has_seen(nsqd: &Nsqd, name: CommandName) -> bool {
    nsqd.commands().iter().any(|received| received.command.name() == name)
}

#[tokio::test(start_paused = true)]
async fn an_nsqd_that_demands_auth_refuses_those_without_a_secret() {
    let world = World::new();
    let (nsqd, auth) = demanding(&world).await;
    let refusal = Refusal::unsupported(Step::Auth, &["demands AUTH", "ConnectionConfig::auth_secret"]);
    let refused = world
        .refuses(&world.connection().tls(world.client_tls()), &refusal)
        .await;
    assert!(auth.requests().is_empty());
    drop(nsqd);
    let _nsqd = world.start(Nsqd::builder().tls(world.server_tls())).await;
    refused.recovers().await;
}

#[tokio::test(start_paused = true)]
async fn a_secret_is_not_sent_in_clear() {
    let world = World::new();
    let (nsqd, auth) = demanding(&world).await;
    auth.grant(SECRET, everything());
    let connection = world.connection().auth_secret(SECRET);
    let refusal = Refusal::unsupported(Step::Auth, &["clear text", "TLS", "allow_plaintext_auth"]);
    let refused = world.refuses(&connection, &refusal).await;
    assert!(!has_seen(&nsqd, CommandName::Auth));
    assert!(auth.requests().is_empty());
    world.connect(&connection.allow_plaintext_auth()).await.unwrap();
    assert!(has_seen(&nsqd, CommandName::Auth));
    drop((nsqd, auth));
    let _nsqd = world.start(Nsqd::builder()).await;
    refused.recovers().await;
}

#[tokio::test(start_paused = true)]
async fn a_secret_is_not_sent_to_an_nsqd_that_does_not_demand_it() {
    let world = World::new();
    let nsqd = world.start(Nsqd::builder().tls(world.server_tls())).await;
    world.connect(&knowing(&world)).await.unwrap();
    assert!(!has_seen(&nsqd, CommandName::Auth));
}

#[tokio::test(start_paused = true)]
async fn a_wrong_secret_is_told_and_neither_nsqd_nor_its_auth_server_is_hammered() {
    let world = World::new();
    let (_nsqd, auth) = demanding(&world).await;
    auth.grant("another secret", everything());
    let refused = world.refuses(&knowing(&world), &auth_failed(Step::Auth)).await;
    // Two clients for a minute.
    assert!(auth.requests().len() <= 20, "{} questions", auth.requests().len());
    auth.grant(SECRET, everything());
    refused.recovers().await;
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_permits_nothing_is_told() {
    let world = World::new();
    let (_nsqd, auth) = demanding(&world).await;
    auth.grant(SECRET, Grant::new());
    let refused = world.refuses(&knowing(&world), &unauthorized(Step::Auth)).await;
    auth.grant(SECRET, everything());
    refused.recovers().await;
}

#[tokio::test(start_paused = true)]
async fn an_auth_server_that_is_down_or_talks_nonsense_is_told() {
    let world = World::new();
    let (_nsqd, auth) = demanding(&world).await;
    auth.grant(SECRET, everything());
    let faults: [&dyn Fn(); 3] = [&|| auth.faults().down(), &|| auth.faults().answer_status(500), &|| {
        auth.faults().answer_body("OK")
    }];
    for fail in faults {
        fail();
        let refused = world.refuses(&knowing(&world), &auth_failed(Step::Auth)).await;
        auth.faults().clear().unwrap();
        refused.recovers().await;
    }
}

/// nsqd waits longer for its auth server than a client for nsqd.
#[tokio::test(start_paused = true)]
async fn an_auth_server_that_hangs_is_the_likely_cause_of_silence_at_auth() {
    let world = World::new();
    let (_nsqd, auth) = demanding(&world).await;
    auth.grant(SECRET, everything());
    auth.faults().hang();
    let error = world.connect(&knowing(&world)).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.step()),
        (ErrorKind::ConnectionLost, Some(Step::Auth))
    );
    assert!(error.to_string().contains("auth server"), "{error}");
    auth.faults().clear().unwrap();
    world.connect(&knowing(&world)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_revoked_secret_is_told_by_the_next_publish_and_works_once_it_is_granted_again() {
    let world = World::new();
    let (_nsqd, auth) = demanding(&world).await;
    // An auth server may forget a secret, or know it and permit nothing.
    for (now, refusal) in [
        (None, auth_failed as fn(Step) -> Refusal),
        (Some(Grant::new()), unauthorized),
        (Some(Grant::new().allow("^else$", [".*"], EVERYTHING)), unauthorized),
    ] {
        auth.grant(SECRET, everything());
        let dials = world.dials();
        let producer = world.connect(&knowing(&world).connector(dials.clone())).await.unwrap();
        producer.publish("orders", "one").await.unwrap();
        let permits_something = now.as_ref().is_some_and(|grant| *grant != Grant::new());
        match now {
            None => auth.revoke(SECRET),
            Some(grant) => auth.grant(SECRET, grant),
        }
        // Still trusted.
        producer.publish("orders", "two").await.unwrap();
        sleep(2 * TTL).await;
        refusal(Step::Publish).check(&producer.publish("orders", "three").await.unwrap_err());
        sleep(MINUTE).await;
        assert!(dials.count() <= 20, "{} attempts", dials.count());
        if permits_something {
            // It can connect, and is told by each publish.
            refusal(Step::Publish).check(&producer.publish("orders", "four").await.unwrap_err());
        } else {
            refusal(Step::Auth).check(producer.stats().nsqds[0].failure.as_ref().unwrap());
        }
        auth.grant(SECRET, everything());
        producer.ready(2 * MINUTE).await.unwrap();
        producer.publish("orders", "five").await.unwrap();
    }
}

/// nsqd asks for SUB once, and never again.
#[tokio::test(start_paused = true)]
async fn a_revoked_secret_leaves_a_subscription_in_peace_until_its_connection_ends() {
    let world = World::new();
    let (nsqd, auth) = demanding(&world).await;
    auth.grant(SECRET, everything());
    let consumer = consumer_of("orders", knowing(&world)).await;
    consumer.ready(MINUTE).await.unwrap();
    auth.revoke(SECRET);
    sleep(2 * TTL).await;
    assert_eq!(consumer.stats().connections, 1);
    nsqd.faults().disconnect();
    sleep(MINUTE).await;
    auth_failed(Step::Auth).check(&failure_of(&consumer));
    auth.grant(SECRET, everything());
    consumer.ready(2 * MINUTE).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_a_secret_does_not_permit_is_refused_at_sub() {
    let world = World::new();
    let (_nsqd, auth) = demanding(&world).await;
    auth.grant(SECRET, Grant::new().allow("^orders$", [".*"], EVERYTHING));
    let dials = world.dials();
    let consumer = consumer_of("salaries", knowing(&world).connector(dials.clone())).await;
    sleep(MINUTE).await;
    dials.assert_calm();
    let refusal = Refusal {
        says: &["E_UNAUTHORIZED", "SUB", "salaries", "auth_secret"],
        ..unauthorized(Step::Subscribe)
    };
    refusal.check(&failure_of(&consumer));
    auth.grant(SECRET, everything());
    consumer.ready(2 * MINUTE).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_a_secret_does_not_permit_is_refused_at_its_publish_only() {
    let world = World::new();
    let (_nsqd, auth) = demanding(&world).await;
    auth.grant(SECRET, Grant::new().allow("^orders$", [".*"], EVERYTHING));
    let producer = world.connect(&knowing(&world)).await.unwrap();
    let refusal = Refusal {
        says: &["E_UNAUTHORIZED", "PUB", "salaries", "auth_secret"],
        ..unauthorized(Step::Publish)
    };
    for _ in 0..3 {
        refusal.check(&producer.publish("salaries", "one").await.unwrap_err());
        producer.publish("orders", "one").await.unwrap();
    }
}
