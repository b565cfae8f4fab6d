//! What is configured from outside arrives at nsqd.

#![cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))]
#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the line that did it")]

use std::fs;
use std::time::Duration;

use async_nsq::test_server::{
    AuthServer, ClientAuth, ClientStats, Grant, Nsqd, Permission, ServerTls, Stats, TlsRequired,
};
use async_nsq::{BoxError, ConnectionConfig, Consumer, ErrorKind, Message, Options, Producer, Step};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

const LONG: Duration = Duration::from_secs(30);

/// An nsqd that demands TLS with a client's certificate, and AUTH.
struct Guarded {
    nsqd: Nsqd,
    _auth: AuthServer,
    folder: TempDir,
}

impl Guarded {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        let sign = |name: &str| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new([name.to_owned()]).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
        };
        let (certificate, key) = sign("nsqd.example");
        let tls = ServerTls::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap();
        let tls = tls
            .root_ca_pem(ca.as_bytes())
            .unwrap()
            .client_auth(ClientAuth::RequireVerify);
        let (certificate, key) = sign("billing");
        for (name, pem) in [("ca.pem", ca), ("client.pem", certificate), ("client.key", key)] {
            fs::write(folder.path().join(name), pem).unwrap();
        }
        let auth = AuthServer::start().await.unwrap();
        auth.grant(
            "hush",
            Grant::new()
                .identity("billing")
                .allow("^orders$", [".*"], [Permission::Publish, Permission::Subscribe]),
        );
        let nsqd = Nsqd::builder().tls(tls).tls_required(TlsRequired::TcpHttps);
        let nsqd = nsqd.auth_http_address(auth.address()).start().await.unwrap();
        Self {
            nsqd,
            _auth: auth,
            folder,
        }
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// All that it demands, as variables of the environment.
    fn variables(&self) -> Vec<(&'static str, String)> {
        vec![
            ("NSQ_TLS_V1", "true".to_owned()),
            ("NSQ_TLS_ROOT_CA_FILE", self.file("ca.pem")),
            ("NSQ_TLS_CERT", self.file("client.pem")),
            ("NSQ_TLS_KEY", self.file("client.key")),
            ("NSQ_TLS_SERVER_NAME", "nsqd.example".to_owned()),
            ("NSQ_AUTH_SECRET", "hush".to_owned()),
        ]
    }

    fn clients(&self) -> Vec<ClientStats> {
        self.nsqd.stats().clients
    }
}

#[tokio::test]
async fn n3_tls_auth_and_compression_are_asked_for_by_variables() {
    let guarded = Guarded::start().await;
    let mut options = Options::from_vars("NSQ_", guarded.variables()).unwrap();
    options.set("client-id", "billing-7").unwrap();
    options.set("deflate", "t").unwrap();
    let producer = Producer::builder().nsqd(guarded.nsqd.address()).options(&options);
    let producer = producer.connect().await.unwrap();
    producer.publish("orders", "one").await.unwrap();
    let stats = producer.stats();
    let negotiated = stats.nsqds[0].negotiated.as_ref().unwrap();
    assert!(negotiated.identify.deflate && negotiated.tls.is_some());
    assert_eq!(negotiated.auth.as_ref().unwrap().identity, "billing");
    let client = &guarded.clients()[0];
    assert_eq!(client.client_id, "billing-7");
    assert_eq!(
        client.encryption.as_ref().unwrap().common_name.as_deref(),
        Some("billing")
    );

    let consumer = Consumer::builder("orders", "audit")
        .nsqd(guarded.nsqd.address())
        .options(&options)
        .start(|_: Message| async { Ok::<(), BoxError>(()) })
        .await
        .unwrap();
    let finished = |stats: &Stats| {
        stats
            .channel("orders", "audit")
            .is_some_and(|channel| channel.finish_count == 1)
    };
    guarded.nsqd.wait_for(finished).await.unwrap();
    consumer.shutdown(LONG).await;
    producer.shutdown(LONG).await;
}

#[tokio::test]
async fn a_file_and_setters_after_it_decide_what_a_consumer_asks_for() {
    let nsqd = Nsqd::start().await.unwrap();
    let file =
        r#"{"max_in_flight": 7, "sample_rate": 42, "snappy": true, "hostname": "from.file", "publish_timeout": "1s"}"#;
    let options: Options = serde_json::from_str(file).unwrap();
    let consumer = Consumer::builder("orders", "audit#ephemeral")
        .nsqd(nsqd.address())
        .max_in_flight(1)
        .options(&options)
        .max_in_flight(9)
        .start(|_: Message| async { Ok::<(), BoxError>(()) })
        .await
        .unwrap();
    consumer.ready(LONG).await.unwrap();
    let client = nsqd.stats().clients[0].clone();
    assert_eq!((client.sample_rate, client.snappy, client.deflate), (42, true, false));
    assert_eq!(client.hostname, "from.file");
    assert_eq!(consumer.stats().max_in_flight, 9);
    consumer.shutdown(LONG).await;
}

#[tokio::test]
async fn what_contradicts_itself_is_told_before_anything_is_done() {
    for (vars, part) in [
        (vec![("NSQ_SNAPPY", "1"), ("NSQ_DEFLATE", "1")], "one of the two"),
        (vec![("NSQ_TLS_ROOT_CA_FILE", "/ca.pem")], "option tls_v1 is not set"),
        (
            vec![("NSQ_TLS_V1", "1"), ("NSQ_TLS_INSECURE_SKIP_VERIFY", "1")],
            "unless the program calls Options::dangerous",
        ),
        (
            vec![("NSQ_TLS_V1", "1"), ("NSQ_TLS_ROOT_CA_FILE", "/no/such/file")],
            "/no/such/file",
        ),
    ] {
        let options = Options::from_vars("NSQ_", vars).unwrap();
        // Nothing listens there; it is not tried.
        let producer = Producer::builder()
            .nsqd("127.0.0.1:1")
            .options(&options)
            .connect()
            .await;
        let consumer = Consumer::builder("orders", "audit")
            .nsqd("127.0.0.1:1")
            .options(&options);
        let consumer = consumer.start(|_: Message| async { Ok::<(), BoxError>(()) }).await;
        for error in [producer.unwrap_err(), consumer.unwrap_err()] {
            assert_eq!(
                (error.kind(), error.step()),
                (ErrorKind::Invalid, Some(Step::Configure)),
                "{error}"
            );
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}

#[tokio::test]
async fn heartbeats_may_be_off_for_producers_only() {
    let nsqd = Nsqd::start().await.unwrap();
    let options = Options::from_vars("NSQ_", [("NSQ_HEARTBEAT_INTERVAL", "-1")]).unwrap();
    let producer = Producer::builder().nsqd(nsqd.address()).options(&options);
    let producer = producer.connect().await.unwrap();
    producer.publish("orders", "one").await.unwrap();
    let consumer = Consumer::builder("orders", "audit")
        .nsqd(nsqd.address())
        .options(&options);
    let error = consumer
        .start(|_: Message| async { Ok::<(), BoxError>(()) })
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("option heartbeat_interval is off"),
        "{error}"
    );
    producer.shutdown(LONG).await;
}

#[tokio::test]
async fn n3_tls_asked_for_by_name_is_not_dropped_by_the_order_of_two_calls() {
    let nsqd = Nsqd::start().await.unwrap();
    let tls = Options::from_vars("NSQ_", [("NSQ_TLS_V1", "true")]).unwrap();
    let plain = ConnectionConfig::new();
    let builder = Producer::builder().nsqd(nsqd.address());
    let error = builder.clone().options(&tls).connection(plain.clone()).connect().await;
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(
        error.to_string().contains("tls_v1") && error.to_string().contains("options()"),
        "{error}"
    );
    // In the other order TLS is what nsqd does not grant; and who takes it back by name has said so.
    let error = builder.clone().connection(plain.clone()).options(&tls).connect().await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Unsupported);
    let off = Options::from_vars("NSQ_", [("NSQ_TLS_V1", "false")]).unwrap();
    builder
        .options(&tls)
        .options(&off)
        .connection(plain)
        .connect()
        .await
        .unwrap();
}
