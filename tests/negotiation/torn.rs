//! A connection that breaks in the middle of a write.

use std::collections::HashSet;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use async_nsq::test_server::{Nsqd, ServerTls};
use async_nsq::transport::{BoxIo, Connecting, Connector, MemoryConnector, MemoryNetwork};
use async_nsq::{ConnectionConfig, ErrorKind, Producer, TlsConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinSet;

use crate::support::Authority;

/// Opens connections of which the first breaks when so many bytes have left.
#[derive(Debug)]
struct Tears {
    network: MemoryConnector,
    room: Arc<AtomicUsize>,
}

impl Connector for Tears {
    fn connect(&self, address: &str) -> Connecting {
        let (opening, room) = (self.network.connect(address), Arc::clone(&self.room));
        Box::pin(async move {
            let io = opening.await?;
            let left = room.swap(usize::MAX, Ordering::Relaxed);
            Ok(Box::new(Torn { io, left }) as BoxIo)
        })
    }
}

struct Torn {
    io: BoxIo,
    left: usize,
}

impl AsyncRead for Torn {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Torn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.left == 0 {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let room = self.left.min(bytes.len());
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, &bytes[..room]))?;
        self.left -= written;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// TLS is handed many publishes at once and says that it has failed, although whole records of them have left.
#[tokio::test(start_paused = true)]
async fn p1_a_publish_that_left_before_tls_failed_is_not_sent_again() {
    let (network, authority) = (MemoryNetwork::new(), Authority::new("the authority"));
    let signed = authority.sign("nsqd.example");
    let tls = ServerTls::from_pem(signed.certificate.as_bytes(), signed.key.as_bytes()).unwrap();
    let builder = Nsqd::builder().tls(tls);
    let nsqd = builder.start_in(&network, "nsqd.example:4150").await.unwrap();
    let tears = Tears {
        network: network.connector(),
        room: Arc::new(AtomicUsize::new(30_000)),
    };
    let connection = ConnectionConfig::new().connector(tears);
    let producer = Producer::builder()
        .nsqd(nsqd.address())
        .connection(connection.tls(TlsConfig::new().root_ca_pem(authority.pem().to_owned())))
        .batching(false)
        .connect()
        .await
        .unwrap();
    let mut publishing = JoinSet::new();
    for number in 0..60_u32 {
        let producer = producer.clone();
        publishing.spawn(async move {
            let mut body = number.to_be_bytes().to_vec();
            body.resize(1000, 7);
            producer.publish("orders", body).await.map_err(|error| error.kind())
        });
    }
    let outcomes = publishing.join_all().await;
    let arrived = nsqd.published("orders");
    let different: HashSet<_> = arrived.iter().collect();
    assert_eq!(arrived.len(), different.len(), "a publish has arrived twice");
    let unknown = outcomes.iter().filter(|outcome| **outcome == Err(ErrorKind::Unknown));
    assert!(unknown.count() > 0, "the write was not torn: {outcomes:?}");
}
