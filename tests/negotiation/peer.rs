//! nsqd's end of a connection, played by the test: as nsqd up to a place, and from there on as the test likes.

use std::sync::Arc;
use std::time::Duration;

use async_nsq::protocol::{self, Frame, IdentifyResponse, encode_frame};
use async_nsq::transport::{BoxIo, MemoryNetwork, deflate, snappy};
use async_nsq::{BoxError, Compression, ConnectionConfig, Consumer, Error, Message, Producer, Step, TlsConfig};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, SupportedProtocolVersion, version};

use crate::scripted::Command;
use crate::support::{Authority, SECRET, Signed};

pub const NAME: &str = "nsqd.example";
pub const ADDRESS: &str = "nsqd.example:4150";

/// Where a flood ends, if the client does not end it.
const TOO_MUCH: usize = 8 << 20;

/// Where in a handshake: what the client waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// Nothing was read yet.
    Start,
    /// The answer to IDENTIFY.
    Identify,
    /// The answer to its ClientHello.
    TlsHandshake,
    /// The OK behind TLS.
    Tls,
    /// The compressed OK.
    Compression,
    /// The answer to AUTH.
    Auth,
    /// The answer to SUB.
    Subscribe,
    /// Nothing: it is ready.
    Ready,
}

impl At {
    /// What a client's error names.
    pub fn step(self) -> Step {
        match self {
            Self::Start | Self::Identify => Step::Identify,
            Self::TlsHandshake | Self::Tls => Step::Tls,
            Self::Compression => Step::Compression,
            Self::Auth => Step::Auth,
            Self::Subscribe => Step::Subscribe,
            Self::Ready => Step::Read,
        }
    }
}

/// What both sides agree on, as far as the peer lets them.
#[derive(Clone)]
pub struct Plan {
    pub compression: Compression,
    tls: Option<Arc<ServerConfig>>,
    trust: TlsConfig,
    auth: bool,
}

impl Plan {
    pub const DEFLATE: Compression = Compression::Deflate { level: 6 };

    /// Nothing but IDENTIFY, and this compression.
    pub fn plain(compression: Compression) -> Self {
        Self {
            compression,
            tls: None,
            trust: TlsConfig::new(),
            auth: false,
        }
    }

    /// All that there is, with this compression.
    pub fn full(compression: Compression) -> Self {
        let authority = Authority::new("the authority");
        Self {
            compression,
            tls: Some(server_config(
                &authority.sign(NAME),
                &[&version::TLS13, &version::TLS12],
            )),
            trust: TlsConfig::new().root_ca_pem(authority.pem().to_owned()),
            auth: true,
        }
    }

    /// Each answer of nsqd's at least once, in each encoding.
    pub fn all() -> [Self; 3] {
        [
            Self::plain(Compression::None),
            Self::full(Compression::Snappy),
            Self::full(Self::DEFLATE),
        ]
    }

    /// The places in its handshake.
    pub fn places(&self) -> Vec<At> {
        let all = [
            (At::Start, true),
            (At::Identify, true),
            (At::TlsHandshake, self.tls.is_some()),
            (At::Tls, self.tls.is_some()),
            (At::Compression, self.compression != Compression::None),
            (At::Auth, self.auth),
            (At::Subscribe, true),
        ];
        all.into_iter().filter(|(_, comes)| *comes).map(|(at, _)| at).collect()
    }

    pub fn connection(&self, network: &MemoryNetwork) -> ConnectionConfig {
        let connection = ConnectionConfig::new()
            .connector(network.connector())
            .compression(self.compression);
        match (self.tls.is_some(), self.auth) {
            (true, true) => connection.tls(self.trust.clone()).auth_secret(SECRET),
            (true, false) => connection.tls(self.trust.clone()),
            _ => connection,
        }
    }

    /// What nsqd answers to IDENTIFY.
    pub fn granted(&self) -> Frame {
        let mut granted = IdentifyResponse::default();
        granted.tls_v1 = self.tls.is_some();
        granted.snappy = self.compression == Compression::Snappy;
        granted.deflate = matches!(self.compression, Compression::Deflate { .. });
        granted.auth_required = self.auth;
        Frame::Response(granted.to_json().into())
    }

    /// Plays nsqd up to this place.
    pub async fn reach(&self, io: BoxIo, place: At) -> Peer {
        let mut peer = Peer::new(io);
        if place == At::Start {
            return peer;
        }
        peer.read_identify().await;
        if place == At::Identify {
            return peer;
        }
        peer.send(&self.granted()).await;
        if let Some(tls) = &self.tls {
            if place == At::TlsHandshake {
                let hello = peer.io.read(&mut [0; 8 * 1024]).await.unwrap();
                assert!(hello > 0);
                return peer;
            }
            peer = peer.encrypt(tls).await.unwrap();
            if place == At::Tls {
                return peer;
            }
            peer.send(&ok()).await;
        }
        if self.compression != Compression::None {
            peer.compress(self.compression);
            if place == At::Compression {
                return peer;
            }
            peer.send(&ok()).await;
        }
        if self.auth {
            assert!(matches!(peer.command().await, Some(Command::Auth(_))));
            if place == At::Auth {
                return peer;
            }
            peer.send(&Frame::Response(Bytes::from_static(b"{}"))).await;
        }
        if place == At::Subscribe {
            assert!(matches!(peer.command().await, Some(Command::Sub { .. })));
        }
        peer
    }

    /// A producer, and the other end of its connection.
    pub async fn producer(&self, network: &MemoryNetwork) -> (Producer, Peer) {
        self.producer_with(network, self.connection(network)).await
    }

    pub async fn producer_with(&self, network: &MemoryNetwork, connection: ConnectionConfig) -> (Producer, Peer) {
        let mut listener = network.listen(ADDRESS).unwrap();
        self.connect(connection, async { listener.accept().await }).await
    }

    /// As [`producer`](Self::producer), with something in between.
    pub async fn producer_through(
        &self,
        network: &MemoryNetwork,
        between: impl FnOnce(BoxIo) -> BoxIo,
    ) -> (Producer, Peer) {
        let mut listener = network.listen(ADDRESS).unwrap();
        self.connect(self.connection(network), async { between(listener.accept().await) })
            .await
    }

    async fn connect(&self, connection: ConnectionConfig, accepted: impl Future<Output = BoxIo>) -> (Producer, Peer) {
        let builder = Producer::builder().nsqd(ADDRESS).connection(connection);
        let (producer, peer) = tokio::join!(builder.connect(), async { self.reach(accepted.await, At::Ready).await });
        (producer.unwrap(), peer)
    }

    /// A consumer, and the other end of its connection, once it has asked for messages.
    pub async fn consumer(&self, network: &MemoryNetwork, max_in_flight: u32) -> (Consumer, Peer) {
        let mut listener = network.listen(ADDRESS).unwrap();
        let consumer = Consumer::builder("orders", "billing")
            .nsqd(ADDRESS)
            .connection(self.connection(network))
            .max_in_flight(max_in_flight)
            .start(stuck)
            .await
            .unwrap();
        let mut peer = self.reach(listener.accept().await, At::Subscribe).await;
        peer.send(&ok()).await;
        assert!(matches!(peer.command().await, Some(Command::Rdy(_))));
        (consumer, peer)
    }
}

async fn stuck(_: Message) -> Result<(), BoxError> {
    std::future::pending().await
}

/// How a client's first attempt has ended.
#[derive(Debug)]
pub struct Ending<T> {
    pub error: Error,
    /// After this time.
    pub after: Duration,
    /// What the peer has to tell.
    pub told: T,
}

/// Plays nsqd up to a place, then this; until it is over, the connection stays.
pub async fn ending<F, Played>(plan: &Plan, place: At, play: F) -> Ending<Played::Output>
where
    F: FnOnce(Peer) -> Played + Send + 'static,
    Played: Future<Output: Send + 'static> + Send,
{
    ending_with(plan, place, |connection| connection, play).await
}

/// As [`ending`], with other options of the client.
pub async fn ending_with<F, Played>(
    plan: &Plan,
    place: At,
    change: impl FnOnce(ConnectionConfig) -> ConnectionConfig,
    play: F,
) -> Ending<Played::Output>
where
    F: FnOnce(Peer) -> Played + Send + 'static,
    Played: Future<Output: Send + 'static> + Send,
{
    let network = MemoryNetwork::new();
    let mut listener = network.listen(ADDRESS).unwrap();
    let (script, connection) = (plan.clone(), change(plan.connection(&network)));
    let played = tokio::spawn(async move {
        let peer = script.reach(listener.accept().await, place).await;
        play(peer).await
    });
    let begun = Instant::now();
    // Only consumers come as far as SUB.
    let error = if place == At::Subscribe {
        failed_consumer(connection).await
    } else {
        let builder = Producer::builder().nsqd(ADDRESS).connection(connection);
        builder.connect().await.unwrap_err()
    };
    let after = begun.elapsed();
    Ending {
        error,
        after,
        told: played.await.unwrap(),
    }
}

async fn failed_consumer(connection: ConnectionConfig) -> Error {
    let consumer = Consumer::builder("orders", "billing")
        .nsqd(ADDRESS)
        .connection(connection);
    lost_consumer(&consumer.start(stuck).await.unwrap()).await
}

/// The failure of a producer's connection, which was established.
pub async fn lost(producer: &Producer) -> Error {
    failure(|| producer.stats().nsqds[0].failure.clone()).await
}

/// As [`lost`], of a consumer's.
pub async fn lost_consumer(consumer: &Consumer) -> Error {
    failure(|| consumer.stats().nsqds[0].failure.clone()).await
}

async fn failure(look: impl Fn() -> Option<Error>) -> Error {
    let failed = async {
        loop {
            if let Some(error) = look() {
                return error;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(600), failed)
        .await
        .expect("still connected")
}

/// How the peer encodes, and decodes.
enum Codec {
    Plain,
    Snappy(Box<snappy::Encoder>, snappy::Decoder),
    Deflate(deflate::Encoder, Box<deflate::Decoder>),
}

/// The end of a connection that the test plays. Dropping it closes the connection.
pub struct Peer {
    io: BoxIo,
    codec: Codec,
    /// Read and not decoded.
    wire: BytesMut,
    /// Decoded and no command yet.
    read: BytesMut,
}

impl Peer {
    pub fn new(io: BoxIo) -> Self {
        Self {
            io,
            codec: Codec::Plain,
            wire: BytesMut::new(),
            read: BytesMut::new(),
        }
    }

    /// Reads the magic and IDENTIFY.
    pub async fn read_identify(&mut self) {
        let mut magic = [0; 4];
        self.io.read_exact(&mut magic).await.unwrap();
        assert_eq!(&magic, protocol::MAGIC);
        assert!(matches!(self.command().await, Some(Command::Identify(_))));
    }

    /// Speaks TLS from here on.
    pub async fn encrypt(self, tls: &Arc<ServerConfig>) -> std::io::Result<Self> {
        let io = TlsAcceptor::from(Arc::clone(tls)).accept(self.io).await?;
        Ok(Self {
            io: Box::new(io),
            ..self
        })
    }

    /// Compresses from here on.
    pub fn compress(&mut self, compression: Compression) {
        self.codec = match compression {
            Compression::Snappy => Codec::Snappy(Box::default(), snappy::Decoder::new()),
            Compression::Deflate { level } => {
                Codec::Deflate(deflate::Encoder::new(level.into()), Box::new(deflate::Decoder::new()))
            }
            _ => Codec::Plain,
        };
    }

    /// The next command that is no NOP; `None` once the client has closed.
    pub async fn command(&mut self) -> Option<Command> {
        loop {
            match Command::parse(&mut self.read) {
                Some(Command::Nop) => {}
                Some(command) => return Some(command),
                None => self.read().await?,
            }
        }
    }

    async fn read(&mut self) -> Option<()> {
        self.take(8 * 1024).await
    }

    /// Reads at most so many bytes off the wire. `None` once the client has closed.
    pub async fn take(&mut self, most: usize) -> Option<()> {
        const ROOM: usize = 1 << 20;
        let mut space = vec![0; most];
        let count = self.io.read(&mut space).await.unwrap_or(0);
        let wire = &mut self.wire;
        wire.extend_from_slice(&space[..count]);
        match &mut self.codec {
            Codec::Plain => self.read.unsplit(wire.split()),
            // What comes in one piece is not that much.
            Codec::Snappy(_, decoder) => assert!(decoder.decode(wire, &mut self.read, ROOM).unwrap() < ROOM),
            Codec::Deflate(_, decoder) => assert!(decoder.decode(wire, &mut self.read, ROOM).unwrap() < ROOM),
        }
        (count > 0).then_some(())
    }

    /// What is to be written for these plain bytes.
    pub fn encode(&mut self, plain: &[u8]) -> BytesMut {
        let mut wire = BytesMut::new();
        match &mut self.codec {
            Codec::Plain => wire.extend_from_slice(plain),
            Codec::Snappy(encoder, _) => encoder.encode(plain, &mut wire),
            Codec::Deflate(encoder, _) => {
                encoder.encode(plain, &mut wire);
                encoder.flush(&mut wire);
            }
        }
        wire
    }

    pub async fn send(&mut self, frame: &Frame) {
        let mut plain = BytesMut::new();
        encode_frame(frame, &mut plain);
        let wire = self.encode(&plain);
        self.write(&wire).await;
    }

    /// Writes these bytes, not compressed. Whether the client is still there.
    pub async fn write(&mut self, bytes: &[u8]) -> bool {
        self.io.write_all(bytes).await.is_ok() && self.io.flush().await.is_ok()
    }

    /// Writes these bytes again and again for as long as the client takes them, up to what nothing excuses. Returns how
    /// many it took.
    pub async fn flood(&mut self, bytes: &[u8]) -> usize {
        let mut count = 0;
        for part in bytes.chunks(1024).cycle() {
            if count > TOO_MUCH || !self.write(part).await {
                break;
            }
            count += part.len();
        }
        count
    }

    /// Waits for the client to close, whatever it sends before.
    pub async fn closed(mut self) {
        let mut space = [0; 1024];
        while self.io.read(&mut space).await.is_ok_and(|count| count > 0) {}
    }
}

pub fn ok() -> Frame {
    Frame::Response(Bytes::from_static(protocol::OK))
}

pub fn heartbeat() -> Frame {
    Frame::Response(Bytes::from_static(protocol::HEARTBEAT))
}

/// A server of these versions of TLS.
pub fn server_config(signed: &Signed, versions: &[&'static SupportedProtocolVersion]) -> Arc<ServerConfig> {
    let certificate = CertificateDer::from_pem_slice(signed.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(signed.key.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key);
    Arc::new(config.unwrap())
}
