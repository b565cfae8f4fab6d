//! Certificates that are not accepted, by us or by nsqd, and versions that have nothing in common.

use std::fs;
use std::sync::Arc;

use async_nsq::test_server::{ClientAuth, Nsqd, ServerTls};
use async_nsq::{Compression, ErrorKind, TlsConfig, TlsVersion};
use rcgen::{CertificateParams, date_time_ymd};
use tempfile::TempDir;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, version};

use super::{ADDRESS, NAME, Refusal, World, server_tls};
use crate::peer::{Peer, Plan, server_config};
use crate::support::{Authority, Signed, params};

fn untrusted() -> Refusal {
    Refusal::tls(
        ErrorKind::Protocol,
        &["signed by nobody that is trusted here", "root_ca_file"],
    )
}

fn not_accepted() -> Refusal {
    Refusal::tls(
        ErrorKind::Rejected,
        &["demands a certificate", "TlsConfig::client_certificate_files"],
    )
}

fn nothing_in_common() -> Refusal {
    Refusal::tls(ErrorKind::Rejected, &["no version of TLS", "in common"])
}

impl World {
    /// An nsqd that takes only clients with certificates of this authority.
    fn verifying(&self, clients: &Authority) -> ServerTls {
        let tls = self.server_tls().root_ca_pem(clients.pem().as_bytes()).unwrap();
        tls.client_auth(ClientAuth::RequireVerify)
    }

    /// A client of TLS 1.2 and no other.
    fn tls12(&self, identity: Option<&Signed>) -> TlsConfig {
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(self.authority.pem().as_bytes()).unwrap();
        roots.add(root).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&version::TLS12])
            .unwrap()
            .with_root_certificates(roots);
        TlsConfig::new().rustls(match identity {
            None => builder.with_no_client_auth(),
            Some(signed) => {
                let certificate = CertificateDer::from_pem_slice(signed.certificate.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(signed.key.as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![certificate], key).unwrap()
            }
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_certificate_of_an_authority_that_is_not_trusted_is_refused_until_it_is() {
    let world = World::new();
    let _nsqd = world.start(Nsqd::builder().tls(world.server_tls())).await;
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("ca.pem");
    // Another authority, and one that was made anew under the same name.
    for other in ["another", "the authority"] {
        fs::write(&file, Authority::new(other).pem()).unwrap();
        let connection = world.connection().tls(TlsConfig::new().root_ca_file(&file));
        let refused = world.refuses(&connection, &untrusted()).await;
        fs::write(&file, world.authority.pem()).unwrap();
        refused.recovers().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_is_expired_or_not_valid_yet_is_refused_until_nsqd_gets_another() {
    let at = |from: i32, to: i32| {
        let mut params = params(NAME);
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(to, 1, 1);
        params
    };
    let cases: [(CertificateParams, &[&str]); 2] = [
        (at(2019, 2020), &["has expired", "clock"]),
        (at(2090, 2091), &["is not valid yet", "clock"]),
    ];
    for (params, says) in cases {
        let world = World::new();
        let bad = server_tls(&world.authority.sign_params(params));
        let nsqd = world.start(Nsqd::builder().tls(bad)).await;
        let connection = world.connection().tls(world.client_tls());
        let refused = world
            .refuses(&connection, &Refusal::tls(ErrorKind::Protocol, says))
            .await;
        drop(nsqd);
        let _nsqd = world.start(Nsqd::builder().tls(world.server_tls())).await;
        refused.recovers().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_certificate_for_another_name_is_refused_unless_that_name_is_wanted() {
    let world = World::new();
    let other = server_tls(&world.authority.sign("other.example"));
    let nsqd = world.start(Nsqd::builder().tls(other)).await;
    let refusal = Refusal::tls(
        ErrorKind::Protocol,
        &["not for nsqd.example", "set server_name", "other.example"],
    );
    let refused = world
        .refuses(&world.connection().tls(world.client_tls()), &refusal)
        .await;
    let wanted = world.client_tls().server_name("other.example");
    let producer = world.connect(&world.connection().tls(wanted)).await.unwrap();
    producer.publish("orders", "one").await.unwrap();
    drop(nsqd);
    let _nsqd = world.start(Nsqd::builder().tls(world.server_tls())).await;
    refused.recovers().await;
}

/// With TLS 1.2 that is told within the handshake, with 1.3 by the first read after it.
#[tokio::test(start_paused = true)]
async fn an_nsqd_that_wants_a_certificate_refuses_those_without_one_and_those_of_strangers() {
    let world = World::new();
    let clients = Authority::new("the clients' authority");
    let _nsqd = world.start(Nsqd::builder().tls(world.verifying(&clients))).await;
    let known = clients.sign("billing");
    let stranger = Authority::new("another").sign("billing");
    let expired = {
        let mut params = params("billing");
        params.not_after = date_time_ymd(2020, 1, 1);
        clients.sign_params(params)
    };
    let with = |signed: &Signed| {
        let tls = world.client_tls();
        tls.client_certificate_pem(signed.certificate.clone(), signed.key.clone())
    };
    for tls in [
        world.client_tls(),
        world.tls12(None),
        with(&stranger),
        world.tls12(Some(&stranger)),
        with(&expired),
        world.tls12(Some(&expired)),
    ] {
        for compression in [Compression::None, Compression::Snappy] {
            let connection = world.connection().tls(tls.clone()).compression(compression);
            world.refuses(&connection, &not_accepted()).await;
        }
    }
    for tls in [with(&known), world.tls12(Some(&known))] {
        let producer = world.connect(&world.connection().tls(tls)).await.unwrap();
        producer.publish("orders", "one").await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_certificate_in_files_can_be_replaced_while_nsqd_refuses_it() {
    let world = World::new();
    let clients = Authority::new("the clients' authority");
    let _nsqd = world.start(Nsqd::builder().tls(world.verifying(&clients))).await;
    let folder = TempDir::new().unwrap();
    let (certificate, key) = Authority::new("another").sign("billing").write(folder.path(), "client");
    let tls = world.client_tls().client_certificate_files(&certificate, &key);
    let refused = world.refuses(&world.connection().tls(tls), &not_accepted()).await;
    // Half of a rotation: the key does not belong to the certificate.
    let known = clients.sign("billing");
    fs::write(&certificate, &known.certificate).unwrap();
    tokio::time::sleep(2 * super::MINUTE).await;
    let error = refused.producer.stats().nsqds[0].failure.clone().unwrap();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("client_certificate"), "{error}");
    assert!(!format!("{error:?}").contains("PRIVATE KEY"));
    fs::write(&key, &known.key).unwrap();
    refused.recovers().await;
}

#[tokio::test(start_paused = true)]
async fn any_certificate_will_do_where_nsqd_just_wants_one() {
    let world = World::new();
    let tls = world.server_tls().client_auth(ClientAuth::Require);
    let _nsqd = world.start(Nsqd::builder().tls(tls)).await;
    for tls in [world.client_tls(), world.tls12(None)] {
        world.refuses(&world.connection().tls(tls), &not_accepted()).await;
    }
    let stranger = Authority::new("another").sign("billing");
    let tls = world
        .client_tls()
        .client_certificate_pem(stranger.certificate, stranger.key);
    world.connect(&world.connection().tls(tls)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_nsqd_of_tls_1_3_refuses_a_client_of_1_2() {
    let world = World::new();
    let folder = TempDir::new().unwrap();
    let (certificate, key) = world.authority.sign(NAME).write(folder.path(), "nsqd");
    let mut builder = Nsqd::builder().flag("tls-min-version", "tls1.3").unwrap();
    for (name, path) in [("tls-cert", certificate), ("tls-key", key)] {
        builder = builder.flag(name, &path.display().to_string()).unwrap();
    }
    let _nsqd = world.start(builder).await;
    world
        .refuses(&world.connection().tls(world.tls12(None)), &nothing_in_common())
        .await;
    let tls = world.client_tls().min_version(TlsVersion::Tls13);
    world.connect(&world.connection().tls(tls)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_of_tls_1_3_refuses_an_nsqd_of_1_2() {
    let world = World::new();
    let tls = server_config(&world.authority.sign(NAME), &[&version::TLS12]);
    let mut listener = world.network.listen(ADDRESS).unwrap();
    let granting = Plan::full(Compression::None).granted();
    let nsqd = tokio::spawn(async move {
        loop {
            let mut peer = Peer::new(listener.accept().await);
            peer.read_identify().await;
            peer.send(&granting).await;
            assert!(peer.encrypt(&tls).await.is_err());
        }
    });
    let connection = world
        .connection()
        .tls(world.client_tls().min_version(TlsVersion::Tls13));
    let refused = world.refuses(&connection, &nothing_in_common()).await;
    nsqd.abort();
    let _gone = nsqd.await;
    let _nsqd = world.start(Nsqd::builder().tls(world.server_tls())).await;
    refused.recovers().await;
}
