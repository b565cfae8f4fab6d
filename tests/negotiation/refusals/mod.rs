//! What is asked for and refused: each time an error that says what to do, and a client that neither gives up nor hammers.

mod auth;
mod features;
mod tls;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nsq::protocol::ErrorCode;
use async_nsq::test_server::{AuthServer, Nsqd, NsqdBuilder, ServerTls};
use async_nsq::transport::{Connecting, Connector, MemoryConnector, MemoryNetwork};
use async_nsq::{BoxError, ConnectionConfig, Consumer, Culprit, Error, ErrorKind, Message, Producer, Step, TlsConfig};
use tokio::time::{Instant, sleep};

use crate::chain;
use crate::support::{Authority, SECRET, Signed};

const NAME: &str = "nsqd.example";
const ADDRESS: &str = "nsqd.example:4150";
const AUTH_ADDRESS: &str = "auth.example:4181";
const MINUTE: Duration = Duration::from_secs(60);

/// What a refusal is expected to be.
#[derive(Clone, Copy, Debug)]
struct Refusal {
    kind: ErrorKind,
    step: Step,
    code: Option<ErrorCode>,
    culprit: Culprit,
    /// What its text has to say, causes included.
    says: &'static [&'static str],
}

impl Refusal {
    /// nsqd has refused with this code.
    fn rejected(step: Step, code: ErrorCode, says: &'static [&'static str]) -> Self {
        Self {
            kind: ErrorKind::Rejected,
            step,
            code: Some(code),
            culprit: Culprit::Peer,
            says,
        }
    }

    /// What is configured here does not go together with that nsqd.
    fn unsupported(step: Step, says: &'static [&'static str]) -> Self {
        Self {
            kind: ErrorKind::Unsupported,
            step,
            code: None,
            culprit: Culprit::Caller,
            says,
        }
    }

    /// The TLS handshake has failed.
    fn tls(kind: ErrorKind, says: &'static [&'static str]) -> Self {
        Self {
            kind,
            step: Step::Tls,
            code: None,
            culprit: Culprit::Peer,
            says,
        }
    }

    fn check(&self, error: &Error) {
        let text = chain(error);
        let told = (error.kind(), error.step(), error.code(), error.culprit());
        assert_eq!(told, (self.kind, Some(self.step), self.code, self.culprit), "{text}");
        assert_eq!(error.address(), Some(ADDRESS), "{text}");
        assert!(!error.is_retryable() && !error.is_ambiguous(), "{text}");
        for part in self.says.iter().chain([&ADDRESS]) {
            assert!(text.contains(part), "no {part:?} in {text:?}");
        }
        for text in [text, format!("{error:?}")] {
            for hidden in [SECRET, "PRIVATE KEY"] {
                assert!(!text.contains(hidden), "{hidden:?} in {text:?}");
            }
        }
    }
}

/// A network with an authority that both sides may trust.
struct World {
    network: MemoryNetwork,
    authority: Authority,
}

impl World {
    fn new() -> Self {
        Self {
            network: MemoryNetwork::new(),
            authority: Authority::new("the authority"),
        }
    }

    async fn start(&self, nsqd: NsqdBuilder) -> Nsqd {
        nsqd.start_in(&self.network, ADDRESS).await.unwrap()
    }

    async fn auth_server(&self) -> AuthServer {
        AuthServer::start_in(&self.network, AUTH_ADDRESS).await.unwrap()
    }

    /// With a certificate that is in order.
    fn server_tls(&self) -> ServerTls {
        server_tls(&self.authority.sign(NAME))
    }

    /// How a client speaks TLS that is in order.
    fn client_tls(&self) -> TlsConfig {
        TlsConfig::new().root_ca_pem(self.authority.pem().to_owned())
    }

    fn connection(&self) -> ConnectionConfig {
        ConnectionConfig::new().connector(self.network.connector())
    }

    async fn connect(&self, connection: &ConnectionConfig) -> async_nsq::Result<Producer> {
        let builder = Producer::builder().nsqd(ADDRESS).connection(connection.clone());
        builder.connect().await
    }

    /// Both kinds of clients are refused like this, and go on trying, slowly.
    async fn refuses(&self, connection: &ConnectionConfig, refusal: &Refusal) -> Refused {
        refusal.check(&self.connect(connection).await.unwrap_err());
        self.refuses_again(connection, refusal).await
    }

    /// As [`refuses`](Self::refuses), without the producer that gives up at once.
    async fn refuses_again(&self, connection: &ConnectionConfig, refusal: &Refusal) -> Refused {
        let dials = [self.dials(), self.dials()];
        let connection = dials
            .each_ref()
            .map(|dials| connection.clone().connector(dials.clone()));
        let [producer, consumer] = connection;
        let refused = Refused {
            producer: Producer::builder()
                .nsqd(ADDRESS)
                .connection(producer)
                .connect_lazily()
                .unwrap(),
            consumer: consumer_of("orders", consumer).await,
        };
        sleep(MINUTE).await;
        dials.iter().for_each(Dials::assert_calm);
        refused.check(refusal);
        refused
    }

    fn dials(&self) -> Dials {
        Dials {
            network: self.network.connector(),
            times: Arc::default(),
        }
    }
}

async fn consumer_of(topic: &str, connection: ConnectionConfig) -> Consumer {
    let consumer = Consumer::builder(topic, "billing").nsqd(ADDRESS).connection(connection);
    consumer.start(succeed).await.unwrap()
}

async fn succeed(_: Message) -> Result<(), BoxError> {
    Ok(())
}

fn server_tls(signed: &Signed) -> ServerTls {
    ServerTls::from_pem(signed.certificate.as_bytes(), signed.key.as_bytes()).unwrap()
}

fn failure_of(consumer: &Consumer) -> Error {
    consumer.stats().nsqds[0].failure.clone().expect("it has failed")
}

/// Clients that an nsqd refuses.
struct Refused {
    producer: Producer,
    consumer: Consumer,
}

impl Refused {
    fn check(&self, refusal: &Refusal) {
        let stats = self.producer.stats();
        assert!(!stats.nsqds[0].connected && stats.nsqds[0].negotiated.is_none());
        refusal.check(stats.nsqds[0].failure.as_ref().expect("it has failed"));
        assert_eq!(self.consumer.stats().connections, 0);
        refusal.check(&failure_of(&self.consumer));
    }

    /// The cause is mended, and nobody touches the clients.
    async fn recovers(self) {
        self.producer.ready(2 * MINUTE).await.unwrap();
        self.producer.publish("orders", "one").await.unwrap();
        self.consumer.ready(2 * MINUTE).await.unwrap();
    }
}

/// A connector that notes when it was asked.
#[derive(Clone, Debug)]
struct Dials {
    network: MemoryConnector,
    times: Arc<Mutex<Vec<Instant>>>,
}

impl Connector for Dials {
    fn connect(&self, address: &str) -> Connecting {
        self.times.lock().unwrap().push(Instant::now());
        self.network.connect(address)
    }
}

impl Dials {
    fn count(&self) -> usize {
        self.times.lock().unwrap().len()
    }

    /// Tried again, but not often, and never at once.
    fn assert_calm(&self) {
        let times = self.times.lock().unwrap();
        assert!((3..=20).contains(&times.len()), "{} attempts", times.len());
        for pair in times.windows(2) {
            let gap = pair[1] - pair[0];
            assert!(gap >= Duration::from_secs(3), "{gap:?}");
        }
    }
}
