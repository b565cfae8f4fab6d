//! From an address to a connection that is ready for its role: dial, magic, IDENTIFY, and SUB for a consumer.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::config::ConnectionConfig;
use crate::error::{Error, ErrorKind, Result, Step};
use crate::name::{Channel, Topic};
use crate::protocol::{self, Frame, FrameDecoder, IdentifyResponse, command};
use crate::transport::BoxIo;

/// A connection that has passed the handshake.
pub(crate) struct Established {
    pub(crate) io: BoxIo,
    pub(crate) address: Arc<str>,
    pub(crate) decoder: FrameDecoder,
    /// What was read beyond the handshake's last answer.
    pub(crate) unread: BytesMut,
    /// What nsqd granted.
    pub(crate) granted: IdentifyResponse,
    pub(crate) heartbeat_interval: Duration,
}

/// Connects to the nsqd at `address` and negotiates; with a subscription, up to nsqd's answer to SUB.
///
/// # Errors
/// An error that names the step and `address`. A refusal of SUB is awaited here, so it reaches the caller as what it
/// is and not as a lost connection.
///
/// # Cancel safety
/// Dropping the future closes the connection.
pub(crate) async fn open(
    config: &ConnectionConfig,
    address: &Arc<str>,
    subscription: Option<(&Topic, &Channel)>,
) -> Result<Established> {
    let io = dial(config, address).await.map_err(|error| error.at(address))?;
    let mut handshake = Handshake {
        io,
        decoder: FrameDecoder::new(config.max_msg_size),
        buffer: BytesMut::with_capacity(4096),
        step: Step::Identify,
    };
    let negotiated = timeout(config.handshake_timeout, handshake.negotiate(config, subscription)).await;
    let granted = match negotiated {
        Ok(result) => result,
        Err(_elapsed) => Err(Error::new(
            ErrorKind::ConnectionLost,
            handshake.step,
            format!(
                "no answer within handshake_timeout ({:?}); is this nsqd's TCP port (4150 by default)?",
                config.handshake_timeout
            ),
        )),
    }
    .map_err(|error| error.at(address))?;
    Ok(Established {
        io: handshake.io,
        address: Arc::clone(address),
        decoder: handshake.decoder,
        unread: handshake.buffer,
        granted,
        heartbeat_interval: config.heartbeat_interval,
    })
}

async fn dial(config: &ConnectionConfig, address: &Arc<str>) -> Result<BoxIo> {
    match timeout(config.dial_timeout, config.connector.connect(address)).await {
        Ok(Ok(io)) => Ok(io),
        Ok(Err(source)) => Err(Error::new(ErrorKind::Unreachable, Step::Dial, dial_advice(&source)).because(source)),
        Err(_elapsed) => Err(Error::new(
            ErrorKind::Unreachable,
            Step::Dial,
            format!("no connection within dial_timeout ({:?})", config.dial_timeout),
        )),
    }
}

fn dial_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "the connection was refused; is nsqd running there?",
        io::ErrorKind::InvalidInput => "the address is not of the form host:port",
        _ => "cannot connect",
    }
}

struct Handshake {
    io: BoxIo,
    decoder: FrameDecoder,
    buffer: BytesMut,
    step: Step,
}

impl Handshake {
    async fn negotiate(
        &mut self,
        config: &ConnectionConfig,
        subscription: Option<(&Topic, &Channel)>,
    ) -> Result<IdentifyResponse> {
        let mut out = BytesMut::new();
        out.put_slice(protocol::MAGIC);
        command::identify(&mut out, &config.identify().to_json());
        let answer = self.exchange(Step::Identify, &out).await?;
        let granted = IdentifyResponse::decode(&answer).map_err(|source| {
            Error::new(
                ErrorKind::Protocol,
                Step::Identify,
                "the answer is not nsqd's; is this nsqd?",
            )
            .because(source)
        })?;
        if granted.tls_v1 || granted.snappy || granted.deflate {
            return Err(Error::new(
                ErrorKind::Protocol,
                Step::Identify,
                "TLS or compression was granted although it was not asked for",
            ));
        }
        if granted.auth_required {
            return Err(Error::new(
                ErrorKind::Unsupported,
                Step::Auth,
                "nsqd requires AUTH, which this version does not support yet",
            ));
        }
        if let Some((topic, channel)) = subscription {
            out.clear();
            command::sub(&mut out, topic.as_str(), channel.as_str());
            let answer = self.exchange(Step::Subscribe, &out).await?;
            if answer != protocol::OK {
                return Err(Error::new(
                    ErrorKind::Protocol,
                    Step::Subscribe,
                    format!("the answer is {:?} instead of OK", protocol::shown(&answer)),
                ));
            }
        }
        Ok(granted)
    }

    /// Sends and waits for the answer, which is a response frame.
    async fn exchange(&mut self, step: Step, bytes: &[u8]) -> Result<Vec<u8>> {
        self.step = step;
        // nsqd may refuse before it has read everything and close; its reason is worth more than the failed write.
        let written = self.io.write_all(bytes).await;
        let flushed = self.io.flush().await;
        let answer = self.answer().await;
        match (answer, written.and(flushed)) {
            (Err(error), Err(source)) if error.kind() == ErrorKind::ConnectionLost => Err(Error::new(
                ErrorKind::ConnectionLost,
                step,
                "the connection broke while the command was sent",
            )
            .because(source)),
            (answer, _) => answer,
        }
    }

    async fn answer(&mut self) -> Result<Vec<u8>> {
        let step = self.step;
        loop {
            // One frame at a time: the rest of the buffer belongs to the driver.
            if let Some(frame) = self.next_frame()? {
                match frame {
                    Frame::Response(data) if data == protocol::HEARTBEAT => {
                        // Nothing is lost if this write fails: the read that follows tells.
                        let _reported_by_the_next_read = self.io.write_all(b"NOP\n").await;
                    }
                    Frame::Response(data) => return Ok(data.to_vec()),
                    Frame::Error(text) => return Err(refusal(step, &protocol::shown(&text))),
                    Frame::Message(_) => {
                        return Err(Error::new(
                            ErrorKind::Protocol,
                            step,
                            "a message arrived before any was asked for",
                        ));
                    }
                }
                continue;
            }
            let read = self.io.read_buf(&mut self.buffer).await;
            match read {
                Ok(0) => {
                    return Err(Error::new(
                        ErrorKind::ConnectionLost,
                        step,
                        "the peer closed the connection",
                    ));
                }
                Ok(_) => {}
                Err(source) => {
                    return Err(Error::new(ErrorKind::ConnectionLost, step, "the connection broke").because(source));
                }
            }
        }
    }

    fn next_frame(&mut self) -> Result<Option<Frame>> {
        self.decoder
            .decode_one(&mut self.buffer)
            .map_err(|source| Error::new(ErrorKind::Protocol, self.step, source.to_string()))
    }
}

/// An error frame during the handshake, as an error that says what to do where that is known.
fn refusal(step: Step, text: &str) -> Error {
    if text.contains("(TLS required)") {
        return Error::new(
            ErrorKind::Unsupported,
            step,
            "nsqd requires TLS, which this version does not support yet",
        );
    }
    Error::rejected(step, text)
}
