//! Handshakes over a pipe, with clients that rustls plays.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_rustls::{TlsConnector, client};

use super::*;

const PATIENCE: Duration = Duration::from_secs(5);

type Ca = CertifiedIssuer<'static, KeyPair>;
type Identity = (CertificateDer<'static>, PrivateKeyDer<'static>);

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn ca(name: &str) -> Ca {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn signed(ca: &Ca, params: CertificateParams) -> (rcgen::Certificate, KeyPair) {
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, ca).unwrap(), key)
}

fn identity(ca: &Ca, params: CertificateParams) -> Identity {
    let (certificate, key) = signed(ca, params);
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    (certificate.der().clone(), key)
}

fn server(ca: &Ca) -> ServerTls {
    let (certificate, key) = signed(ca, params("nsqd"));
    ServerTls::from_pem(certificate.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap()
}

type Version = &'static SupportedProtocolVersion;
const VERSIONS: [Version; 2] = [&TLS12, &TLS13];

fn client(ca: &Ca, version: Version, identity: Option<&Identity>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots);
    match identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => builder
            .with_client_auth_cert(vec![certificate.clone()], key.clone_key())
            .unwrap(),
    }
}

type Connected = Result<client::TlsStream<DuplexStream>, (io::Error, DuplexStream)>;

/// Both ends of a handshake.
async fn shake(tls: &ServerTls, client: ClientConfig) -> (Result<Encrypted, HandshakeFailed>, Connected) {
    let (near, far) = duplex(64 * 1024);
    let name = ServerName::try_from("localhost").unwrap();
    let connect = TlsConnector::from(Arc::new(client)).connect(name, near).into_fallible();
    tokio::join!(handshake(tls, Box::new(far), PATIENCE), connect)
}

async fn accepted(tls: &ServerTls, client: ClientConfig) -> TlsDetails {
    let (server, client) = shake(tls, client).await;
    let Ok(Encrypted { mut io, details }) = server else {
        panic!("refused: {:?}", server.err().and_then(|failed| failed.text));
    };
    let mut client = client.unwrap();
    io.write_all(b"OK").await.unwrap();
    io.flush().await.unwrap();
    let mut ok = [0; 2];
    client.read_exact(&mut ok).await.unwrap();
    assert_eq!(&ok, b"OK");
    details
}

async fn refused(tls: &ServerTls, client: ClientConfig) -> String {
    let (server, client) = shake(tls, client).await;
    let Err(HandshakeFailed { mut io, text }) = server else {
        panic!("accepted");
    };
    io.write_all(b"E_IDENTIFY_FAILED").await.unwrap();
    drop(io);
    match client {
        // TLS 1.3: the client hears of it when it reads.
        Ok(mut stream) => {
            let error = stream.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "no alert: {error}");
        }
        // The alert ended its handshake, and clear text follows.
        Err((error, mut raw)) => {
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "no alert: {error}");
            let mut clear = String::new();
            raw.read_to_string(&mut clear).await.unwrap();
            assert_eq!(clear, "E_IDENTIFY_FAILED");
        }
    }
    text.unwrap()
}

#[tokio::test]
async fn without_a_policy_no_certificate_is_asked_for() {
    let ca = ca("ca");
    let tls = server(&ca).root_ca_pem(ca.pem().as_bytes()).unwrap();
    let bob = identity(&ca, params("bob"));
    for version in VERSIONS {
        let details = accepted(&tls, client(&ca, version, Some(&bob))).await;
        assert_eq!(details.common_name, "");
        assert_eq!(details.negotiated_protocol, "");
        assert!(details.negotiated_protocol_is_mutual);
    }
    let details = accepted(&tls, client(&ca, &TLS12, None)).await;
    assert_eq!(details.version, "TLS1.2");
    assert!(details.cipher_suite.starts_with("Unknown 49") || details.cipher_suite.starts_with("TLS_ECDHE_ECDSA"));
    let details = accepted(&tls, client(&ca, &TLS13, None)).await;
    assert_eq!(details.version, "TLS1.3");
    assert!(details.cipher_suite.starts_with("Unknown 486"), "{details:?}");
}

#[tokio::test]
async fn require_takes_any_certificate_and_knows_its_name() {
    let (ours, theirs) = (ca("ours"), ca("theirs"));
    let tls = server(&ours).client_auth(ClientAuth::Require);
    let mut expired = params("old");
    expired.not_after = date_time_ymd(2000, 1, 1);
    for version in VERSIONS {
        for (params, name) in [(params("bob"), "bob"), (expired.clone(), "old")] {
            let stranger = identity(&theirs, params);
            let details = accepted(&tls, client(&ours, version, Some(&stranger))).await;
            assert_eq!(details.common_name, name);
        }
        let text = refused(&tls, client(&ours, version, None)).await;
        assert_eq!(text, "tls: client didn't provide a certificate");
    }
}

#[tokio::test]
async fn require_verify_takes_what_the_root_vouches_for() {
    let (ours, theirs) = (ca("ours"), ca("theirs"));
    let tls = server(&ours)
        .client_auth(ClientAuth::RequireVerify)
        .root_ca_pem(ours.pem().as_bytes())
        .unwrap();
    let purpose = |purpose| {
        let mut params = params("bob");
        params.extended_key_usages = vec![purpose];
        params
    };
    let bob = identity(&ours, purpose(ExtendedKeyUsagePurpose::ClientAuth));
    let any_purpose = identity(&ours, params("bob"));
    let stranger = identity(&theirs, params("bob"));
    let a_server = identity(&ours, purpose(ExtendedKeyUsagePurpose::ServerAuth));
    let mut old = params("bob");
    old.not_after = date_time_ymd(2000, 1, 2);
    let old = identity(&ours, old);
    let verify = "tls: failed to verify certificate: x509: certificate";
    for version in VERSIONS {
        for known in [&bob, &any_purpose] {
            assert_eq!(
                accepted(&tls, client(&ours, version, Some(known))).await.common_name,
                "bob"
            );
        }
        assert_eq!(
            refused(&tls, client(&ours, version, None)).await,
            "tls: client didn't provide a certificate"
        );
        // rustls's client, unlike others, sends a certificate whose issuer was not hinted at.
        assert_eq!(
            refused(&tls, client(&ours, version, Some(&stranger))).await,
            format!("{verify} signed by unknown authority")
        );
        assert_eq!(
            refused(&tls, client(&ours, version, Some(&a_server))).await,
            format!("{verify} specifies an incompatible key usage")
        );
        let expired = refused(&tls, client(&ours, version, Some(&old))).await;
        assert!(
            expired.starts_with(&format!("{verify} has expired or is not yet valid: current time 2")),
            "{expired}"
        );
        assert!(expired.ends_with("is after 2000-01-02T00:00:00Z"), "{expired}");
    }
}

#[tokio::test]
async fn require_verify_without_a_root_takes_nobody() {
    let ca = ca("ca");
    let tls = server(&ca).client_auth(ClientAuth::RequireVerify);
    let bob = identity(&ca, params("bob"));
    assert_eq!(
        refused(&tls, client(&ca, &TLS13, Some(&bob))).await,
        "tls: failed to verify certificate: x509: certificate signed by unknown authority"
    );
}

#[tokio::test]
async fn a_root_may_present_itself() {
    let ca = ca("ca");
    let key = KeyPair::generate().unwrap();
    let mut root = params("root");
    root.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = root.self_signed(&key).unwrap();
    let tls = (server(&ca).client_auth(ClientAuth::RequireVerify))
        .root_ca_pem(root.pem().as_bytes())
        .unwrap();
    let identity = (
        root.der().clone(),
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
    );
    for version in VERSIONS {
        let details = accepted(&tls, client(&ca, version, Some(&identity))).await;
        assert_eq!(details.common_name, "root");
    }
}

#[tokio::test]
async fn a_key_that_is_not_the_certificates_proves_nothing() {
    let ca = ca("ca");
    let tls = server(&ca).client_auth(ClientAuth::Require);
    let (certificate, _) = identity(&ca, params("bob"));
    let (_, key) = identity(&ca, params("eve"));
    let provider = ring::default_provider();
    let key = provider.key_provider.load_private_key(key).unwrap();
    let forged = SingleCertAndKey::from(CertifiedKey::new(vec![certificate], key));
    let mut client = client(&ca, &TLS13, None);
    client.client_auth_cert_resolver = Arc::new(forged);
    let text = refused(&tls, client).await;
    assert!(
        text.starts_with("tls: invalid signature by the client certificate: "),
        "{text}"
    );
}

#[tokio::test]
async fn a_client_that_refuses_the_server_is_quoted() {
    let (ours, theirs) = (ca("ours"), ca("theirs"));
    for version in VERSIONS {
        let (server, client) = shake(&server(&ours), client(&theirs, version, None)).await;
        assert!(client.is_err());
        let text = server.err().unwrap().text.unwrap();
        assert_eq!(text, "remote error: tls: unknown certificate authority");
    }
}

#[tokio::test]
async fn a_version_too_old_is_refused() {
    let ca = ca("ca");
    let tls = server(&ca).tls13_only().unwrap();
    let text = refused(&tls, client(&ca, &TLS12, None)).await;
    assert_eq!(text, "tls: client offered only unsupported versions: [303]");
    assert_eq!(accepted(&tls, client(&ca, &TLS13, None)).await.version, "TLS1.3");
}

/// What the server says to these first bytes, and what it sends back before the clear text.
async fn greeted(bytes: &[u8]) -> (String, Vec<u8>) {
    let (mut near, far) = duplex(1000);
    near.write_all(bytes).await.unwrap();
    near.shutdown().await.unwrap();
    let failed = handshake(&server(&ca("ca")), Box::new(far), PATIENCE).await;
    let HandshakeFailed { io, text } = failed.err().unwrap();
    drop(io);
    let mut sent = Vec::new();
    near.read_to_end(&mut sent).await.unwrap();
    (text.unwrap(), sent)
}

#[tokio::test]
async fn what_is_no_tls_is_told_in_the_words_of_go() {
    let plain = "tls: first record does not look like a TLS handshake";
    assert_eq!(greeted(b"PUB t\n").await, (plain.to_owned(), vec![]));
    assert_eq!(greeted(b"\x16\x10\0\0\0").await, (plain.to_owned(), vec![]));
    assert_eq!(greeted(b"").await, ("EOF".to_owned(), vec![]));
    assert_eq!(greeted(b"\x16\x03").await, ("unexpected EOF".to_owned(), vec![]));
    assert_eq!(
        greeted(b"\x80\x2e\x01\x03\x01").await,
        (
            "tls: unsupported SSLv2 handshake received".to_owned(),
            b"\x15\x03\x01\0\x02\x02\x46".to_vec()
        )
    );
    assert_eq!(
        greeted(b"\x16\x03\x01\xff\xff").await,
        (
            "tls: oversized record received with length 65535".to_owned(),
            b"\x15\x03\x01\0\x02\x02\x16".to_vec()
        )
    );
    let (text, _) = greeted(b"\x15\x03\x01\0\x02\x02\x2a").await;
    assert_eq!(text, "remote error: tls: bad certificate");
    let (text, alert) = greeted(b"\x16\x03\x01\0\x04\x01\0\0\0").await;
    assert_eq!(text, "local error: tls: error decoding message");
    assert_eq!((alert.first(), alert.last()), (Some(&0x15), Some(&0x32)));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stays_silent_is_given_up_in_time() {
    let tls = server(&ca("ca"));
    for sent in [&b""[..], b"\x16\x03", b"\x16\x03\x01\x01\0"] {
        let (mut near, far) = duplex(1000);
        near.write_all(sent).await.unwrap();
        let before = tokio::time::Instant::now();
        let failed = handshake(&tls, Box::new(far), PATIENCE).await.err().unwrap();
        assert_eq!(failed.text, None);
        // The timer counts whole milliseconds.
        assert!(before.elapsed() - PATIENCE < Duration::from_millis(2));
        let mut io = failed.io;
        io.write_all(b"clear").await.unwrap();
        drop(io);
        let mut clear = String::new();
        near.read_to_string(&mut clear).await.unwrap();
        assert_eq!(clear, "clear");
    }
}

#[tokio::test(start_paused = true)]
async fn the_deadline_ends_with_the_handshake() {
    let ca = ca("ca");
    let (server, client) = shake(&server(&ca), client(&ca, &TLS13, None)).await;
    let (mut io, mut client) = (server.ok().unwrap().io, client.unwrap());
    tokio::time::sleep(10 * PATIENCE).await;
    client.write_all(b"x").await.unwrap();
    client.flush().await.unwrap();
    assert_eq!(io.read_u8().await.unwrap(), b'x');
}

#[test]
fn n3_no_key_is_shown() {
    let ca = ca("ca");
    let (certificate, key) = signed(&ca, params("nsqd"));
    let tls = ServerTls::from_pem(certificate.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap();
    assert_eq!(
        format!("{tls:?}"),
        "ServerTls { client_auth: None, root_ca: false, .. }"
    );
    assert_eq!(tls.client_auth_policy(), ClientAuth::None);
}

#[test]
fn what_cannot_be_used_is_named() {
    let ca = ca("ca");
    let (certificate, key) = signed(&ca, params("nsqd"));
    let (certificate, key) = (certificate.pem(), key.serialize_pem());
    let other_key = KeyPair::generate().unwrap().serialize_pem();
    let said = |certificate: &str, key: &str| {
        let error = ServerTls::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        error.to_string()
    };
    assert_eq!(said("", &key), "no certificate in the PEM text");
    assert_eq!(said(&key, &key), "no certificate in the PEM text");
    assert!(said(&certificate, &certificate).starts_with("no private key"));
    // A key that has lost its line breaks is not in the error, in which the parser would show it byte by byte.
    let flat = "-----BEGIN PRIVATE KEY----- aHVzaA== -----END PRIVATE KEY-----";
    assert_eq!(said(&certificate, flat), "no private key in PEM");
    assert_eq!(
        said(&certificate, &other_key),
        "the private key is not the certificate's"
    );
    let missing = ServerTls::from_pem_files("no/such.pem", "key.pem").unwrap_err();
    assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    assert!(missing.to_string().starts_with("no/such.pem: "));
    let tls = ServerTls::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap();
    assert_eq!(tls.root_ca_pem(b"").unwrap_err().kind(), io::ErrorKind::InvalidInput);
}
