//! The stream of a connection during its handshake, and how it changes.

use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[cfg(feature = "tls")]
use crate::config::address;
use crate::config::{Compression, ConnectionConfig};
use crate::connection::lost::lost;
use crate::error::{Error, ErrorKind, Result, Step};
use crate::protocol::{self, Frame, FrameDecoder};
#[cfg(any(feature = "snappy", feature = "deflate"))]
use crate::transport::compressed::{Codec, Compressed};
#[cfg(feature = "tls")]
use crate::transport::tls;
use crate::transport::{BoxIo, TlsSession};

/// What nsqd says to a command.
pub(super) enum Answer {
    Response(Vec<u8>),
    Refusal(Vec<u8>),
}

/// The stream, and what was read from it and not looked at yet.
pub(super) struct Wire {
    pub(super) io: BoxIo,
    pub(super) decoder: FrameDecoder,
    pub(super) unread: BytesMut,
}

impl Wire {
    pub(super) fn new(io: BoxIo, max_msg_size: usize) -> Self {
        Self {
            io,
            decoder: FrameDecoder::new(max_msg_size),
            unread: BytesMut::with_capacity(4096),
        }
    }

    /// Sends `bytes`, which may be none, and waits for the next answer.
    pub(super) async fn exchange(&mut self, step: Step, bytes: &[u8]) -> Result<Answer> {
        // nsqd may refuse before it has read everything and close; its reason is worth more than the failed write.
        let sent = self.send(bytes).await;
        let answer = self.answer(step).await;
        match (answer, sent) {
            (Err(error), Err(source)) if error.kind() == ErrorKind::ConnectionLost => Err(Error::new(
                ErrorKind::ConnectionLost,
                step,
                "the connection broke while the command was sent",
            )
            .because(source)),
            (answer, _) => answer,
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            // A flush of nothing is not nothing: deflate would write an empty block.
            return Ok(());
        }
        self.io.write_all(bytes).await?;
        self.io.flush().await
    }

    async fn answer(&mut self, step: Step) -> Result<Answer> {
        loop {
            // One frame at a time: the rest belongs to the next layer of the stream, or to the driver.
            let frame = (self.decoder.decode_one(&mut self.unread))
                .map_err(|source| Error::new(ErrorKind::Protocol, step, source.to_string()))?;
            match frame {
                Some(Frame::Response(data)) if data == protocol::HEARTBEAT => {
                    // Nothing is lost if this write fails: the read that follows tells.
                    let _reported_by_the_next_read = self.send(b"NOP\n").await;
                }
                Some(Frame::Response(data)) => return Ok(Answer::Response(data.to_vec())),
                Some(Frame::Error(text)) => return Ok(Answer::Refusal(text.to_vec())),
                Some(Frame::Message(_)) => {
                    let message = "a message arrived before any was asked for";
                    return Err(Error::new(ErrorKind::Protocol, step, message));
                }
                None => self.read(step).await?,
            }
        }
    }

    async fn read(&mut self, step: Step) -> Result<()> {
        match self.io.read_buf(&mut self.unread).await {
            Ok(0) => Err(Error::new(
                ErrorKind::ConnectionLost,
                step,
                "the peer closed the connection",
            )),
            Ok(_) => Ok(()),
            Err(source) => Err(lost(step, source)),
        }
    }

    /// Speaks TLS from here on.
    #[cfg(feature = "tls")]
    pub(super) async fn encrypt(self, config: &ConnectionConfig, address: &str) -> Result<(Self, TlsSession)> {
        if !self.unread.is_empty() {
            // nsqd sends nothing in clear behind its answer. What is there would be taken for nsqd's own words.
            let message = "bytes in clear text follow nsqd's answer that TLS begins; somebody may be in between";
            return Err(Error::new(ErrorKind::Protocol, Step::Tls, message));
        }
        let host = address::split(address).map_or(address, |(host, _)| host);
        let io = tls::connect(&config.tls.clone().unwrap_or_default(), host, self.io).await?;
        let session = tls::session(&io);
        let io = Box::new(io);
        Ok((Self { io, ..self }, session))
    }

    #[cfg(not(feature = "tls"))]
    #[expect(clippy::unused_async, reason = "as the one that does it")]
    pub(super) async fn encrypt(self, _: &ConnectionConfig, _: &str) -> Result<(Self, TlsSession)> {
        let message = "this build has no TLS; turn on feature tls-ring of async-nsq";
        Err(Error::new(ErrorKind::Unsupported, Step::Tls, message))
    }

    /// Compresses from here on. What is unread is compressed already: nsqd's OK usually comes together with the answer
    /// before it.
    #[cfg(any(feature = "snappy", feature = "deflate"))]
    pub(super) fn compress(self, compression: Compression) -> Self {
        let codec = match compression {
            #[cfg(feature = "snappy")]
            Compression::Snappy => Codec::snappy(),
            #[cfg(feature = "deflate")]
            Compression::Deflate { level } => Codec::deflate(level.into()),
            // What this build lacks is not asked for.
            _ => return self,
        };
        Self {
            io: Box::new(Compressed::new(self.io, codec, self.unread)),
            unread: BytesMut::with_capacity(4096),
            decoder: self.decoder,
        }
    }

    #[cfg(not(any(feature = "snappy", feature = "deflate")))]
    pub(super) fn compress(self, _: Compression) -> Self {
        self
    }
}
