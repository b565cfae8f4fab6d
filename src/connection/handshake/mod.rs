//! From an address to a connection that is ready for its role: dial, magic, IDENTIFY, TLS, compression, AUTH, and SUB for
//! a consumer. What is said is decided by [`Negotiation`]; here it is carried to the peer and back.

mod negotiated;
mod negotiation;
mod wire;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::timeout;

pub use self::negotiated::Negotiated;
use self::negotiation::{Negotiation, Next};
use self::wire::{Answer, Wire};
use crate::config::ConnectionConfig;
use crate::connection::meter::Meter;
use crate::error::{Error, ErrorKind, Result, Step};
use crate::name::{Channel, Topic};
use crate::protocol::FrameDecoder;
use crate::transport::BoxIo;

/// A connection that has passed the handshake.
pub(crate) struct Established {
    pub(crate) io: BoxIo,
    /// At the bottom of `io`.
    pub(super) meter: Meter,
    pub(crate) address: Arc<str>,
    pub(crate) decoder: FrameDecoder,
    /// What was read beyond the handshake's last answer.
    pub(crate) unread: BytesMut,
    pub(crate) negotiated: Arc<Negotiated>,
    /// `None` is no heartbeats.
    pub(crate) heartbeat_interval: Option<Duration>,
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
    let mut out = BytesMut::new();
    let mut negotiation = Negotiation::begin(config, subscription, &mut out);
    let meter = Meter::default();
    let wire = Wire::new(meter.measure(io), config.max_msg_size);
    let negotiated = timeout(
        config.handshake_timeout,
        negotiate(config, &mut negotiation, wire, out, address),
    )
    .await;
    let wire = match negotiated {
        Ok(result) => result,
        Err(_elapsed) => Err(too_slow(negotiation.step(), config.handshake_timeout)),
    }
    .map_err(|error| error.at(address))?;
    Ok(Established {
        io: wire.io,
        meter,
        address: Arc::clone(address),
        decoder: wire.decoder,
        unread: wire.unread,
        negotiated: Arc::new(negotiation.into_agreed()),
        heartbeat_interval: config.heartbeat_interval,
    })
}

async fn negotiate(
    config: &ConnectionConfig,
    negotiation: &mut Negotiation<'_>,
    mut wire: Wire,
    mut out: BytesMut,
    address: &str,
) -> Result<Wire> {
    loop {
        let answer = wire.exchange(negotiation.step(), &out).await?;
        out.clear();
        let next = match answer {
            Answer::Response(data) => negotiation.handle_response(&data, &mut out)?,
            Answer::Refusal(text) => return Err(negotiation.handle_error(&text)),
        };
        match next {
            Next::Answer => {}
            Next::Encrypt => {
                let (encrypted, session) = wire.encrypt(config, address).await?;
                negotiation.handle_encrypted(session);
                wire = encrypted;
            }
            Next::Compress(compression) => wire = wire.compress(compression),
            Next::Ready => return Ok(wire),
        }
    }
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

fn too_slow(step: Step, patience: Duration) -> Error {
    let advice = match step {
        Step::Identify => "is this nsqd's TCP port (4150 by default)?",
        Step::Auth => "nsqd waits up to 7 s for its auth server",
        _ => "nsqd, or what is between, does not go on",
    };
    let message = format!("no answer within handshake_timeout ({patience:?}); {advice}");
    Error::new(ErrorKind::ConnectionLost, step, message)
}
