//! Features that nsqd does not have, by its configuration or because something in between changes its answers.

use async_nsq::protocol::ErrorCode;
use async_nsq::test_server::{Feature, Nsqd, TlsRequired};
use async_nsq::{Compression, ConnectionConfig, ErrorKind, Step};
use tokio::time::Instant;

use super::{MINUTE, Refusal, World, consumer_of, failure_of};

const DEFLATE: Compression = Compression::Deflate { level: 6 };

fn no_tls() -> Refusal {
    Refusal::unsupported(Step::Tls, &["does not grant TLS", "--tls-cert"])
}

fn no_snappy() -> Refusal {
    Refusal::unsupported(Step::Compression, &["does not grant snappy", "--snappy"])
}

fn no_deflate() -> Refusal {
    Refusal::unsupported(Step::Compression, &["does not grant deflate", "--deflate"])
}

fn no_sampling() -> Refusal {
    Refusal::unsupported(
        Step::Identify,
        &["does not grant a sample_rate of 20, but 0", "too old"],
    )
}

fn sampled(connection: ConnectionConfig) -> ConnectionConfig {
    connection.sample_rate(20)
}

#[tokio::test(start_paused = true)]
async fn each_feature_that_is_not_granted_is_an_error_and_not_done_without() {
    let world = World::new();
    let nsqd = world.start(Nsqd::builder().tls(world.server_tls())).await;
    let plain = world.connection();
    let tls = || plain.clone().tls(world.client_tls());
    let asked = [
        (Feature::Tls, tls(), no_tls()),
        (
            Feature::Snappy,
            plain.clone().compression(Compression::Snappy),
            no_snappy(),
        ),
        (Feature::Deflate, plain.clone().compression(DEFLATE), no_deflate()),
        (Feature::SampleRate, sampled(plain.clone()), no_sampling()),
        // An nsqd older than all of them, or something that plays one.
        (Feature::Negotiation, tls(), no_tls()),
        (
            Feature::Negotiation,
            plain.clone().compression(Compression::Snappy),
            no_snappy(),
        ),
        (Feature::Negotiation, plain.clone().compression(DEFLATE), no_deflate()),
        (Feature::Negotiation, sampled(plain.clone()), no_sampling()),
    ];
    for (feature, connection, refusal) in asked {
        nsqd.faults().refuse_feature(feature);
        let refused = world.refuses(&connection, &refusal).await;
        nsqd.faults().clear().unwrap();
        refused.recovers().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_nsqd_that_is_configured_without_a_feature_refuses_it() {
    let world = World::new();
    let plain = world.connection();
    let nsqd = world.start(Nsqd::builder().snappy(false).deflate(false)).await;
    for (connection, refusal) in [
        (plain.clone().tls(world.client_tls()), no_tls()),
        (plain.clone().compression(Compression::Snappy), no_snappy()),
        (plain.clone().compression(DEFLATE), no_deflate()),
    ] {
        world.refuses(&connection, &refusal).await;
    }
    // It is replaced by one that is up to it.
    let connection = plain.tls(world.client_tls()).compression(Compression::Snappy);
    let refused = world.refuses(&connection, &no_tls()).await;
    drop(nsqd);
    let _nsqd = world.start(Nsqd::builder().tls(world.server_tls())).await;
    refused.recovers().await;
}

#[tokio::test(start_paused = true)]
async fn an_nsqd_that_requires_tls_refuses_a_plain_consumer_at_sub() {
    let world = World::new();
    let builder = Nsqd::builder().tls(world.server_tls());
    let nsqd = world.start(builder.tls_required(TlsRequired::TcpHttps)).await;
    let dials = world.dials();
    let consumer = consumer_of("orders", world.connection().connector(dials.clone())).await;
    tokio::time::sleep(MINUTE).await;
    dials.assert_calm();
    let refusal = Refusal {
        code: Some(ErrorCode::Invalid),
        ..Refusal::unsupported(
            Step::Subscribe,
            &["requires TLS", "ConnectionConfig::tls", "TLS required"],
        )
    };
    refusal.check(&failure_of(&consumer));
    drop(nsqd);
    let _nsqd = world.start(Nsqd::builder()).await;
    consumer.ready(2 * MINUTE).await.unwrap();
}

/// IDENTIFY is allowed in clear, and its answer does not tell that all else is not.
#[tokio::test(start_paused = true)]
async fn an_nsqd_that_requires_tls_refuses_a_plain_producer_at_its_first_publish() {
    let world = World::new();
    let builder = Nsqd::builder().tls(world.server_tls());
    let nsqd = world.start(builder.tls_required(TlsRequired::TcpHttps)).await;
    let dials = world.dials();
    let connection = world.connection().connector(dials.clone());
    let producer = world.connect(&connection).await.unwrap();
    let refusal = Refusal::rejected(
        Step::Publish,
        ErrorCode::Invalid,
        &["TLS required", "ConnectionConfig::tls"],
    );
    // However often it is tried.
    let begun = Instant::now();
    while begun.elapsed() < MINUTE {
        match producer.publish("orders", "one").await.unwrap_err() {
            error if error.kind() == ErrorKind::NotSent => {}
            error => refusal.check(&error),
        }
    }
    assert!((3..=20).contains(&dials.count()), "{} attempts", dials.count());
    assert!(nsqd.stats().topics.is_empty());
}
