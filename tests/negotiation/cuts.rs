//! Connections whose bytes come and go in pieces, wherever one ends. Shared with the tests on the real nsqd.
#![allow(dead_code, unreachable_pub, reason = "each test target uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the line that did it")]

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use async_nsq::transport::{BoxIo, Connecting, Connector};
use async_nsq::{ConnectionConfig, Consumer, Producer};
use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;

use super::exchange::{consume, noise, take, text};
use super::support::{Combination, House};

/// How often it is looked for more before what has come is given to the reader. The other end of a connection in memory
/// needs a few polls for all that it says by itself.
const LATE: u32 = 20;

/// Where what is read and what is written are cut, and the task is made to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Behind so many bytes.
    At(usize),
    /// Behind so many bytes, again and again.
    Each(usize),
    /// Nowhere: a read has all that the peer says by itself, however many answers that are.
    Late,
}

/// Connects by other means, and cuts.
#[derive(Clone, Debug)]
pub struct Cutting {
    connector: Arc<dyn Connector>,
    cut: Cut,
    record: Arc<Record>,
}

/// What the connections have read, together.
#[derive(Debug, Default)]
pub struct Record {
    /// The most bytes of one connection.
    longest: AtomicUsize,
    /// The bytes beyond its first frame that came with a connection's first read.
    beyond: AtomicUsize,
}

impl Cutting {
    pub fn new(connector: Arc<dyn Connector>, cut: Cut) -> Self {
        Self {
            connector,
            cut,
            record: Arc::default(),
        }
    }
}

impl Connector for Cutting {
    fn connect(&self, address: &str) -> Connecting {
        let connecting = self.connector.connect(address);
        let (cut, record) = (self.cut, Arc::clone(&self.record));
        Box::pin(async move {
            let stream = Stream {
                io: connecting.await?,
                cut,
                record,
                arrived: BytesMut::new(),
                quiet: 0,
                read: Way::default(),
                written: Way::default(),
            };
            Ok(Box::new(stream) as BoxIo)
        })
    }
}

/// One direction of a connection.
#[derive(Default)]
struct Way {
    len: usize,
    has_waited: bool,
}

impl Way {
    /// How many bytes may pass now.
    fn poll_room(&mut self, cut: Cut, cx: &mut Context<'_>) -> Poll<usize> {
        let left = match cut {
            Cut::At(offset) if self.len <= offset => offset - self.len,
            Cut::Each(len) => (len - self.len % len) % len,
            Cut::At(_) | Cut::Late => return Poll::Ready(usize::MAX),
        };
        if left > 0 {
            return Poll::Ready(left);
        }
        if !self.has_waited {
            self.has_waited = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(match cut {
            Cut::Each(len) => len,
            Cut::At(_) | Cut::Late => usize::MAX,
        })
    }

    fn pass(&mut self, len: usize) {
        self.len += len;
        self.has_waited = false;
    }
}

struct Stream {
    io: BoxIo,
    cut: Cut,
    record: Arc<Record>,
    /// What has come late and is not read yet.
    arrived: BytesMut,
    /// How often nothing more has come since.
    quiet: u32,
    read: Way,
    written: Way,
}

impl Stream {
    fn poll_some(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<io::Result<Vec<u8>>> {
        let mut space = vec![0; room.min(8192)];
        let mut space = ReadBuf::new(&mut space);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut space))?;
        Poll::Ready(Ok(space.filled().to_vec()))
    }

    /// Waits until nothing more comes.
    fn poll_all(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.poll_some(cx, usize::MAX)? {
                Poll::Ready(some) if some.is_empty() => return Poll::Ready(Ok(())),
                Poll::Ready(some) => {
                    self.arrived.extend_from_slice(&some);
                    self.quiet = 0;
                }
                Poll::Pending if self.arrived.is_empty() => return Poll::Pending,
                Poll::Pending if self.quiet == LATE => return Poll::Ready(Ok(())),
                Poll::Pending => {
                    self.quiet += 1;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
        }
    }

    fn note(&mut self, read: &[u8]) {
        if self.read.len == 0 && read.len() >= 4 {
            let first = u32::from_be_bytes(read[..4].try_into().unwrap()) as usize + 4;
            self.record
                .beyond
                .fetch_max(read.len().saturating_sub(first), Ordering::Relaxed);
        }
        self.read.pass(read.len());
        self.record.longest.fetch_max(self.read.len, Ordering::Relaxed);
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let room = ready!(this.read.poll_room(this.cut, cx)).min(buffer.remaining());
        let some = if this.cut == Cut::Late {
            if this.arrived.is_empty() || this.quiet < LATE {
                ready!(this.poll_all(cx))?;
            }
            let len = room.min(this.arrived.len());
            let some = this.arrived[..len].to_vec();
            this.arrived.advance(len);
            some
        } else {
            ready!(this.poll_some(cx, room))?
        };
        this.note(&some);
        buffer.put_slice(&some);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let room = ready!(this.written.poll_room(this.cut, cx)).min(bytes.len());
        let len = ready!(Pin::new(&mut this.io).poll_write(cx, &bytes[..room]))?;
        this.written.pass(len);
        Poll::Ready(Ok(len))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// An nsqd with a producer and a consumer whose connections are not cut, for those whose are.
pub struct Place {
    house: House,
    combination: Combination,
    connector: Arc<dyn Connector>,
    address: String,
    producer: Producer,
    _consumer: Consumer,
    came: mpsc::UnboundedReceiver<Bytes>,
}

const TOPIC: &str = "uncut";

impl Place {
    pub async fn new(house: House, combination: Combination, connector: Arc<dyn Connector>, address: String) -> Self {
        let connection = |cut| Self::connection(&house, &combination, &connector, cut).1;
        let producer = Producer::builder()
            .nsqd(&address)
            .connection(connection(Cut::At(usize::MAX)));
        let producer = producer.connect().await.unwrap();
        let consumer = Consumer::builder(TOPIC, "billing").nsqd(&address).max_in_flight(10);
        let (consumer, came) = consume(consumer.connection(connection(Cut::At(usize::MAX)))).await;
        Self {
            house,
            combination,
            connector,
            address,
            producer,
            _consumer: consumer,
            came,
        }
    }

    fn connection(
        house: &House,
        combination: &Combination,
        connector: &Arc<dyn Connector>,
        cut: Cut,
    ) -> (Arc<Record>, ConnectionConfig) {
        let cutting = Cutting::new(Arc::clone(connector), cut);
        let record = Arc::clone(&cutting.record);
        // Nothing waits for nsqd's buffer: there are many runs.
        (record, house.connection(combination).connector(cutting).low_latency())
    }

    fn cut(&self, cut: Cut) -> (Arc<Record>, ConnectionConfig) {
        Self::connection(&self.house, &self.combination, &self.connector, cut)
    }

    /// Consumes with this cut.
    async fn consume(&self, cut: Cut, largest: usize) -> Arc<Record> {
        let (record, connection) = self.cut(cut);
        let topic = format!("cut-{}#ephemeral", fastrand::u64(..));
        let mut expected = bodies(largest);
        self.producer.publish_many(&topic, expected.clone()).await.unwrap();
        let consumer = Consumer::builder(&topic, "billing#ephemeral").nsqd(&self.address);
        let (consumer, mut came) = consume(consumer.connection(connection).max_in_flight(10)).await;
        let mut came = take(&mut came, expected.len()).await;
        came.sort_unstable();
        expected.sort_unstable();
        assert!(came == expected, "{cut:?}, {:?}", self.combination);
        let stats = consumer.stats();
        // Each came once: it is not that a second connection did better.
        let (connections, received) = (stats.connections, stats.received);
        assert_eq!(
            (connections, received),
            (1, expected.len() as u64),
            "{cut:?}, {:?}",
            self.combination
        );
        record
    }

    /// Publishes with this cut.
    async fn publish(&mut self, cut: Cut, largest: usize) -> Arc<Record> {
        let (record, connection) = self.cut(cut);
        let producer = Producer::builder().nsqd(&self.address).connection(connection);
        let producer = producer.connect().await;
        let producer = producer.unwrap_or_else(|error| panic!("{cut:?}, {:?}: {error}", self.combination));
        let mut expected = bodies(largest);
        producer.publish(TOPIC, expected[0].clone()).await.unwrap();
        producer.publish_many(TOPIC, expected[1..].to_vec()).await.unwrap();
        let mut came = take(&mut self.came, expected.len()).await;
        came.sort_unstable();
        expected.sort_unstable();
        assert!(came == expected, "{cut:?}, {:?}", self.combination);
        assert_eq!(
            producer.stats().nsqds[0].reconnections,
            0,
            "{cut:?}, {:?}",
            self.combination
        );
        record
    }

    /// Cuts at each offset, from the first byte to those of the first messages. A producer that is equal to the consumer up to
    /// SUB may be cut at each `step`th alone. How many offsets a consumer's connection has.
    pub async fn cut_everywhere(&mut self, step: usize) -> usize {
        let whole = Cut::At(usize::MAX);
        // Signatures within TLS differ in length, by a few bytes.
        let len = |record: Arc<Record>| record.longest.load(Ordering::Relaxed) + 8;
        let publishing = len(self.publish(whole, 100).await);
        let consuming = len(self.consume(whole, 100).await);
        for offset in (0..publishing).step_by(step) {
            self.publish(Cut::At(offset), 100).await;
        }
        for offset in 0..consuming {
            self.consume(Cut::At(offset), 100).await;
        }
        consuming
    }

    /// Bytes that come and go one by one, and in pieces of other lengths.
    pub async fn cut_again_and_again(&mut self) {
        for (len, largest) in [
            (1, 2000),
            (2, 2000),
            (3, 5000),
            (7, 20_000),
            (100, 50_000),
            (4096, 300_000),
        ] {
            self.publish(Cut::Each(len), largest).await;
            self.consume(Cut::Each(len), largest).await;
        }
    }

    /// Answers that come together. How many bytes came together with the first answer.
    pub async fn not_cut_at_all(&mut self) -> [usize; 2] {
        let records = [
            self.publish(Cut::Late, 100_000).await,
            self.consume(Cut::Late, 100_000).await,
        ];
        records.map(|record| record.beyond.load(Ordering::Relaxed))
    }
}

fn bodies(largest: usize) -> Vec<Bytes> {
    vec![text(1, 1), text(2, largest), noise(3, largest)]
}
