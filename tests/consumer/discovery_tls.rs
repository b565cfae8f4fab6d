//! nsqlookupd behind TLS: a proxy that ends TLS in front of the test server's nsqlookupd, in memory.

use std::fs;
use std::sync::{Arc, Mutex};

use async_nsq::test_server::Lookupd;
use async_nsq::transport::MemoryNetwork;
use async_nsq::{ConnectionConfig, Consumer, ConsumerBuilder, ErrorKind, LookupdConfig, Producer, Step, TlsConfig};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::scripted::{Nsqd, SECOND, chain, succeed};

const PLAIN: &str = "plain.example:4161";
const SECURE: &str = "lookupd.example:443";

/// An authority.
struct Authority {
    certificate: CertificateDer<'static>,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        Self::named("authority")
    }

    fn named(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Self {
            pem: certificate.pem(),
            certificate: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        roots
    }

    /// A certificate for this name, and its key, in PEM.
    fn sign(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    fn server(&self, name: &str, clients: Option<&Authority>) -> Arc<ServerConfig> {
        let (certificate, key) = self.sign(name);
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(Arc::new(authority.roots()), provider)
                    .build()
                    .unwrap(),
            ),
        };
        let server = builder.with_single_cert(vec![certificate.der().clone()], key.into());
        Arc::new(server.unwrap())
    }
}

/// An nsqlookupd with a proxy that speaks TLS in front of it, and an nsqd with the topic.
struct House {
    network: MemoryNetwork,
    lookupd: Arc<Lookupd>,
    server: Arc<Mutex<Arc<ServerConfig>>>,
    _nsqd: Nsqd,
}

impl House {
    fn start(server: Arc<ServerConfig>) -> Self {
        let network = MemoryNetwork::new();
        let nsqd = Nsqd::start_at(&network, "nsqd:4150");
        let lookupd = Arc::new(Lookupd::builder().start_detached(PLAIN).unwrap());
        lookupd.register("orders", "nsqd:4150").unwrap();
        let server = Arc::new(Mutex::new(server));
        let mut plain = network.listen(PLAIN).unwrap();
        let mut secure = network.listen(SECURE).unwrap();
        let (behind, current) = (Arc::clone(&lookupd), Arc::clone(&server));
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    io = plain.accept() => behind.serve_http(io, "10.0.0.1:1"),
                    io = secure.accept() => {
                        let acceptor = TlsAcceptor::from(Arc::clone(&current.lock().unwrap()));
                        if let Ok(io) = acceptor.accept(io).await {
                            behind.serve_http(io, "10.0.0.1:1");
                        }
                    }
                }
            }
        });
        Self {
            network,
            lookupd,
            server,
            _nsqd: nsqd,
        }
    }

    fn consumer(&self, lookupd: impl Into<LookupdConfig>) -> ConsumerBuilder {
        Consumer::builder("orders", "billing")
            .connection(ConnectionConfig::new().connector(self.network.connector()))
            .lookupd(lookupd)
    }

    /// How many questions reach nsqlookupd in the time that the first few take.
    async fn asked_by(&self, lookupd: impl Into<LookupdConfig>) -> u64 {
        let before = self.lookupd.requests();
        let consumer = self.consumer(lookupd).start(succeed).await.unwrap();
        let _scripted_nsqd_accepts_nobody = consumer.ready(SECOND / 2).await;
        self.lookupd.requests() - before
    }

    /// What `ready` says of an nsqlookupd that cannot be asked.
    async fn refusal(&self, lookupd: impl Into<LookupdConfig>) -> Refusal {
        let before = self.lookupd.requests();
        let consumer = self.consumer(lookupd).start(succeed).await.unwrap();
        let error = consumer.ready(SECOND / 2).await.unwrap_err();
        assert_eq!(self.lookupd.requests(), before);
        let cause = std::error::Error::source(&error).unwrap();
        let cause = cause.downcast_ref::<async_nsq::Error>().unwrap();
        assert_eq!(cause.step(), Some(Step::Lookup));
        Refusal {
            address: cause.address().unwrap().to_owned(),
            kind: cause.kind(),
            text: chain(&error),
        }
    }
}

struct Refusal {
    address: String,
    kind: ErrorKind,
    text: String,
}

fn https(tls: TlsConfig) -> LookupdConfig {
    LookupdConfig::new("https://lookupd.example").tls(tls)
}

#[tokio::test(start_paused = true)]
async fn n3_nsqlookupd_is_asked_over_tls_with_a_private_authority_and_a_secret() {
    let authority = Authority::new();
    let house = House::start(authority.server("lookupd.example", None));
    let trusting = TlsConfig::new().root_ca_pem(authority.pem.clone());
    assert_eq!(house.asked_by(https(trusting.clone()).bearer("sesame")).await, 1);
    // A configuration made by hand.
    let ready = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(authority.roots())
        .with_no_client_auth();
    assert_eq!(house.asked_by(https(TlsConfig::new().rustls(ready))).await, 1);
    assert_eq!(
        house
            .asked_by(https(TlsConfig::new().dangerous().accept_any_certificate()))
            .await,
        1
    );
}

#[tokio::test(start_paused = true)]
async fn n3_nsqlookupd_is_asked_by_the_tls_settings_for_nsqd_unless_it_has_its_own() {
    let (authority, clients, other) = (Authority::new(), Authority::new(), Authority::named("other"));
    let house = House::start(authority.server("lookupd.example", Some(&clients)));
    let known = clients.sign("billing");
    let tls = TlsConfig::new()
        .root_ca_pem(authority.pem.clone())
        .client_certificate_pem(known.0.pem(), known.1.serialize_pem());
    let connection = |tls: TlsConfig| ConnectionConfig::new().connector(house.network.connector()).tls(tls);
    let asks = async |consumer: ConsumerBuilder| {
        let before = house.lookupd.requests();
        let consumer = consumer.lookupd_timeout(SECOND).start(succeed).await.unwrap();
        let _scripted_nsqd_accepts_nobody = consumer.ready(SECOND / 2).await;
        house.lookupd.requests() - before
    };
    let consumer = || Consumer::builder("orders", "billing");
    // Trust and certificate are those for nsqd.
    let by_nsqd = consumer().connection(connection(tls.clone()));
    assert_eq!(asks(by_nsqd.clone().lookupd("https://lookupd.example")).await, 1);
    // In whichever order they are given.
    let other_order = consumer()
        .lookupd("https://lookupd.example")
        .connection(connection(tls.clone()));
    assert_eq!(asks(other_order).await, 1);
    // An nsqlookupd without TLS is still asked without.
    assert_eq!(asks(by_nsqd.clone().lookupd(PLAIN)).await, 1);
    // Its own settings go first, for better and for worse.
    let trusts_others = TlsConfig::new().root_ca_pem(other.pem);
    let own = consumer()
        .connection(connection(trusts_others.clone()))
        .lookupd(https(tls.clone()));
    assert_eq!(asks(own).await, 1);
    let own = by_nsqd.lookupd(https(trusts_others));
    assert_eq!(asks(own).await, 0);
}

#[tokio::test(start_paused = true)]
async fn n3_an_nsqlookupd_that_is_added_later_is_asked_by_the_tls_settings_for_nsqd() {
    let authority = Authority::new();
    let house = House::start(authority.server("lookupd.example", None));
    let tls = TlsConfig::new().root_ca_pem(authority.pem.clone());
    let connection = ConnectionConfig::new().connector(house.network.connector()).tls(tls);
    let consumer = Consumer::builder("orders", "billing")
        .connection(connection)
        .lookupd("nowhere.example:4161");
    let consumer = consumer.start(succeed).await.unwrap();
    assert!(consumer.add_lookupd("https://lookupd.example").await.unwrap());
    let _scripted_nsqd_accepts_nobody = consumer.ready(SECOND / 2).await;
    assert_eq!(house.lookupd.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn n3_a_producer_asks_nsqlookupd_by_the_tls_settings_for_nsqd() {
    let authority = Authority::new();
    let house = House::start(authority.server("lookupd.example", None));
    let tls = TlsConfig::new().root_ca_pem(authority.pem.clone());
    let producer = Producer::builder()
        .connection(ConnectionConfig::new().connector(house.network.connector()).tls(tls))
        .lookupd("https://lookupd.example");
    let producer = producer.connect_lazily().unwrap();
    let _scripted_nsqd_accepts_nobody = producer.ready(SECOND / 2).await;
    assert!(house.lookupd.requests() > 0);
}

#[tokio::test(start_paused = true)]
async fn n3_an_authority_that_is_not_trusted_is_refused_and_told() {
    let house = House::start(Authority::new().server("lookupd.example", None));
    // Another one, and one that was made anew under the same name.
    for (other, cause) in [
        (Authority::named("other"), "UnknownIssuer"),
        (Authority::new(), "BadSignature"),
    ] {
        let refusal = house.refusal(https(TlsConfig::new().root_ca_pem(other.pem))).await;
        assert_eq!(refusal.kind, ErrorKind::Protocol);
        assert_eq!(refusal.address, "https://lookupd.example:443");
        for part in ["nsqlookupd https://lookupd.example:443", "TLS", "root_ca_file", cause] {
            assert!(refusal.text.contains(part), "{}", refusal.text);
        }
    }
    // By default the system decides, which may not even have authorities.
    let refusal = house.refusal("https://lookupd.example").await;
    assert!(refusal.text.contains("root_ca_file"), "{}", refusal.text);
}

#[tokio::test(start_paused = true)]
async fn n3_a_certificate_for_another_name_is_refused_unless_that_name_is_wanted() {
    let authority = Authority::new();
    let house = House::start(authority.server("other.example", None));
    let trusting = TlsConfig::new().root_ca_pem(authority.pem.clone());
    let refusal = house.refusal(https(trusting.clone())).await;
    assert_eq!(refusal.kind, ErrorKind::Protocol);
    for part in ["not for lookupd.example", "server_name"] {
        assert!(refusal.text.contains(part), "{}", refusal.text);
    }
    assert_eq!(house.asked_by(https(trusting.server_name("other.example"))).await, 1);
}

#[tokio::test(start_paused = true)]
async fn lesson_64_a_port_without_tls_and_a_port_with_tls_spoken_to_in_clear_are_told_apart() {
    let authority = Authority::new();
    let house = House::start(authority.server("lookupd.example", None));
    let tls = TlsConfig::new().root_ca_pem(authority.pem.clone());
    let refusal = house
        .refusal(LookupdConfig::new(format!("https://{PLAIN}")).tls(tls))
        .await;
    assert_eq!(refusal.kind, ErrorKind::Protocol);
    assert!(refusal.text.contains("does not speak TLS"), "{}", refusal.text);

    let refusal = house.refusal(SECURE).await;
    assert!(refusal.text.contains("https://"), "{}", refusal.text);
}

#[tokio::test(start_paused = true)]
async fn lesson_64_a_client_certificate_is_shown_and_a_missing_one_is_told() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let house = House::start(authority.server("lookupd.example", Some(&clients)));
    let tls = TlsConfig::new().root_ca_pem(authority.pem.clone());
    let stranger = Authority::new().sign("billing");
    for tls in [
        tls.clone(),
        tls.clone()
            .client_certificate_pem(stranger.0.pem(), stranger.1.serialize_pem()),
    ] {
        let refusal = house.refusal(https(tls)).await;
        assert_eq!(refusal.kind, ErrorKind::Rejected, "{}", refusal.text);
        assert!(refusal.text.contains("client_certificate_files"), "{}", refusal.text);
    }
    let known = clients.sign("billing");
    let tls = tls.client_certificate_pem(known.0.pem(), known.1.serialize_pem());
    assert_eq!(house.asked_by(https(tls)).await, 1);
    // A key that belongs to another certificate.
    let mixed = TlsConfig::new().client_certificate_pem(known.0.pem(), stranger.1.serialize_pem());
    let error = house.consumer(https(mixed)).start(succeed).await.unwrap_err();
    assert!(error.to_string().contains("client_certificate"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn lesson_64_certificates_in_files_can_be_replaced_while_it_runs() {
    let (old, new) = (Authority::new(), Authority::new());
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("ca.pem");
    fs::write(&file, &old.pem).unwrap();
    let house = House::start(old.server("lookupd.example", None));
    let lookupd = https(TlsConfig::new().root_ca_file(&file));
    let _consumer = house.consumer(lookupd).start(succeed).await.unwrap();
    tokio::time::sleep(300 * SECOND).await;
    assert!(house.lookupd.requests() > 1);
    *house.server.lock().unwrap() = new.server("lookupd.example", None);
    tokio::time::sleep(300 * SECOND).await;
    let before = house.lookupd.requests();
    tokio::time::sleep(300 * SECOND).await;
    assert_eq!(house.lookupd.requests(), before, "not trusted");
    fs::write(&file, &new.pem).unwrap();
    tokio::time::sleep(300 * SECOND).await;
    assert!(house.lookupd.requests() > before);
}

#[tokio::test(start_paused = true)]
async fn n5_a_handshake_that_does_not_end_is_bounded_by_the_timeout() {
    let network = MemoryNetwork::new();
    let _silent = network.listen(SECURE).unwrap();
    let consumer = Consumer::builder("orders", "billing")
        .connection(ConnectionConfig::new().connector(network.connector()))
        .lookupd("https://lookupd.example")
        .lookupd_timeout(SECOND)
        .start(succeed)
        .await
        .unwrap();
    let error = consumer.ready(10 * SECOND).await.unwrap_err();
    let text = chain(&error);
    // A system without authorities does not come this far.
    assert!(
        text.contains("no TLS handshake within 1s") || text.contains("root_ca_file"),
        "{text}"
    );
}
