//! HTTPS, and plain HTTP where TLS is required.

use std::sync::Arc;

use async_nsq::test_server::{Nsqd, ServerTls, TlsRequired};
use async_nsq::transport::{BoxIo, Connector};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::House;
use crate::client::{Answer, exchange};

/// A certificate for `nsqd`, and a client that trusts it.
fn certificate() -> (ServerTls, TlsConnector) {
    let key = rcgen::KeyPair::generate().unwrap();
    let parameters = rcgen::CertificateParams::new(["nsqd".to_owned()]).unwrap();
    let certificate = parameters.self_signed(&key).unwrap();
    let server = ServerTls::from_pem(certificate.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (server, TlsConnector::from(Arc::new(client)))
}

async fn get_encrypted(house: &House, client: &TlsConnector, target: &str) -> Answer {
    let address = house.nsqd.https_address().unwrap();
    let io = house.network.connector().connect(address).await.unwrap();
    let io = client.connect(ServerName::try_from("nsqd").unwrap(), io).await.unwrap();
    let request = format!("GET {target} HTTP/1.1\r\nHost: nsqd\r\nConnection: close\r\n\r\n");
    exchange(&mut (Box::new(io) as BoxIo), request.as_bytes()).await
}

#[tokio::test(start_paused = true)]
async fn https_is_served_two_ports_above() {
    let (tls, client) = certificate();
    let house = House::with(Nsqd::builder().tls(tls)).await;
    assert_eq!(house.nsqd.https_address(), Some("nsqd:4152"));
    assert_eq!(get_encrypted(&house, &client, "/ping").await.text(), "OK");
    house
        .check(&[("GET /config/https_address", b"", 200, "nsqd:4152")])
        .await;

    house.nsqd.stop().await;
    assert!(house.network.connector().connect("nsqd:4152").await.is_err());
    house.nsqd.restart().await.unwrap();
    assert_eq!(get_encrypted(&house, &client, "/ping").await.text(), "OK");
}

#[tokio::test(start_paused = true)]
async fn where_tls_is_required_plain_http_tells_the_port_of_https() {
    let (tls, client) = certificate();
    let house = House::with(Nsqd::builder().tls(tls).tls_required(TlsRequired::Yes)).await;
    let refused = r#"{"message": "TLS_REQUIRED", "https_port": 4152}"#;
    house
        .check(&[
            ("GET /ping", b"", 403, refused),
            ("GET /nope", b"", 403, refused),
            ("POST /pub?topic=t", b"x", 403, refused),
        ])
        .await;
    let answer = house.get("/ping").await;
    assert_eq!(answer.header("x-nsq-content-type"), Some("nsq; version=1.0"));
    assert_eq!(answer.header("content-type"), Some("application/json; charset=utf-8"));
    assert_eq!(get_encrypted(&house, &client, "/config/tls_required").await.text(), "2");
}

#[tokio::test(start_paused = true)]
async fn tcp_https_leaves_plain_http_open() {
    let (tls, _) = certificate();
    let house = House::with(Nsqd::builder().tls(tls).tls_required(TlsRequired::TcpHttps)).await;
    house.check(&[("GET /config/tls_required", b"", 200, "1")]).await;
}
