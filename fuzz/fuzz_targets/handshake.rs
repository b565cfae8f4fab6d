//! A peer that says anything at any moment of the handshake: it ends, in an error or a connection, within its timeout, and
//! never panics. What the peer says is mostly near the truth, so that the later steps are reached.
#![no_main]

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arbitrary::Arbitrary;
use async_nsq::protocol::{Frame, encode_frame};
use async_nsq::transport::{BoxIo, Connecting, Connector, deflate, snappy};
use async_nsq::{BoxError, Compression, ConnectionConfig, Consumer, Message, Producer, TlsConfig};
use bytes::{Buf, Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

#[derive(Arbitrary, Debug)]
struct Input {
    asked: Asked,
    consumer: bool,
    said: Vec<Said>,
    /// How many bytes each read brings, over and over.
    cuts: Vec<u8>,
    stalls: bool,
}

#[derive(Arbitrary, Debug)]
struct Asked {
    tls: bool,
    snappy: bool,
    deflate: Option<u8>,
    secret: bool,
    sampled: bool,
}

#[derive(Arbitrary, Debug)]
enum Said {
    Granted {
        tls: bool,
        snappy: bool,
        deflate: bool,
        level: i8,
        auth: bool,
        sample_rate: i8,
    },
    Ok,
    Identity,
    Heartbeat,
    Refusal(u8),
    Message,
    Bytes(Vec<u8>),
    /// What follows is compressed.
    Snappy,
    Deflate,
}

const REFUSALS: [&str; 5] = [
    "E_INVALID cannot SUB in current state (TLS required)",
    "E_UNAUTHORIZED AUTH no authorizations found",
    "E_AUTH_FAILED AUTH failed",
    "E_BAD_BODY IDENTIFY heartbeat interval (1) is invalid",
    "anything",
];

fuzz_target!(|input: Input| {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(connect(input));
});

async fn connect(input: Input) {
    let peer = Peer {
        said: said(&input.said).freeze(),
        cuts: input.cuts.into(),
        stalls: input.stalls,
    };
    let mut config = ConnectionConfig::new()
        .connector(peer)
        .handshake_timeout(Duration::from_secs(1));
    if input.asked.tls {
        config = config.tls(TlsConfig::new().dangerous().accept_any_certificate());
    }
    if input.asked.snappy {
        config = config.compression(Compression::Snappy);
    } else if let Some(level) = input.asked.deflate {
        config = config.compression(Compression::Deflate { level: level % 9 + 1 });
    }
    if input.asked.secret {
        config = config.auth_secret("sesame").allow_plaintext_auth();
    }
    if input.asked.sampled {
        config = config.sample_rate(10);
    }
    let began = Instant::now();
    if input.consumer {
        let builder = Consumer::builder("topic", "channel")
            .nsqd("nsqd:4150")
            .connection(config);
        let consumer = builder.start(|_: Message| async { Ok::<(), BoxError>(()) }).await;
        let consumer = consumer.expect("valid options");
        let _ready_or_not = consumer.ready(Duration::from_secs(2)).await;
        consumer.shutdown(Duration::from_secs(1)).await;
    } else {
        let builder = Producer::builder().nsqd("nsqd:4150").connection(config);
        if let Ok(producer) = builder.connect().await {
            producer.shutdown(Duration::from_secs(1)).await;
        }
    }
    assert!(began.elapsed() <= Duration::from_secs(10));
}

/// All that the peer says, as bytes.
fn said(all: &[Said]) -> BytesMut {
    let mut wire = BytesMut::new();
    let mut snappy: Option<snappy::Encoder> = None;
    let mut deflate: Option<deflate::Encoder> = None;
    for said in all {
        let mut plain = BytesMut::new();
        let mut response = |text: &[u8]| encode_frame(&Frame::Response(Bytes::copy_from_slice(text)), &mut plain);
        match said {
            Said::Granted {
                tls,
                snappy,
                deflate,
                level,
                auth,
                sample_rate,
            } => response(
                format!(
                    r#"{{"max_rdy_count":2500,"version":"1.3.0","tls_v1":{tls},"snappy":{snappy},"deflate":{deflate},"deflate_level":{level},"auth_required":{auth},"sample_rate":{sample_rate}}}"#
                )
                .as_bytes(),
            ),
            Said::Ok => response(b"OK"),
            Said::Identity => response(br#"{"identity":"i","identity_url":"","permission_count":1}"#),
            Said::Heartbeat => response(b"_heartbeat_"),
            Said::Refusal(which) => {
                let text = REFUSALS[usize::from(*which) % REFUSALS.len()];
                encode_frame(&Frame::Error(Bytes::from_static(text.as_bytes())), &mut plain);
            }
            Said::Message => {
                let mut body = vec![0, 0, 0, 30, 0, 0, 0, 2];
                body.extend([0; 10]);
                body.extend(b"0123456789abcdefhi");
                plain.extend(body);
            }
            Said::Bytes(bytes) => plain.extend_from_slice(bytes),
            Said::Snappy => snappy = Some(snappy::Encoder::new()),
            Said::Deflate => deflate = Some(deflate::Encoder::new(6)),
        }
        match (&mut snappy, &mut deflate) {
            (Some(encoder), _) => encoder.encode(&plain, &mut wire),
            (None, Some(encoder)) => {
                encoder.encode(&plain, &mut wire);
                encoder.flush(&mut wire);
            }
            (None, None) => wire.extend_from_slice(&plain),
        }
    }
    wire
}

/// Says the same on each connection, and takes whatever is said to it.
#[derive(Debug, Clone)]
struct Peer {
    said: Bytes,
    cuts: Arc<[u8]>,
    /// Whether it falls silent at the end, rather than closing.
    stalls: bool,
}

impl Connector for Peer {
    fn connect(&self, _: &str) -> Connecting {
        let line = Line {
            peer: self.clone(),
            reads: 0,
        };
        Box::pin(async { Ok(Box::new(line) as BoxIo) })
    }
}

struct Line {
    peer: Peer,
    reads: usize,
}

impl AsyncRead for Line {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.peer.said.is_empty() && self.peer.stalls {
            return Poll::Pending;
        }
        let cut = match self.peer.cuts.is_empty() {
            true => usize::MAX,
            false => usize::from(self.peer.cuts[self.reads % self.peer.cuts.len()]) + 1,
        };
        self.reads += 1;
        let len = cut.min(self.peer.said.len()).min(buffer.remaining());
        buffer.put_slice(&self.peer.said[..len]);
        self.peer.said.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Line {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
