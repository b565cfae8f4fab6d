//! What has been agreed on with an nsqd.

use crate::protocol::{AuthResponse, IdentifyResponse};
use crate::transport::TlsSession;

/// What has been agreed on with an nsqd when the connection was made.
///
/// See [`ConnectionStats::negotiated`](crate::ConnectionStats::negotiated) and
/// [`ProducerNodeStats::negotiated`](crate::ProducerNodeStats::negotiated).
///
/// ```
/// # use async_nsq::{Producer, test_server::Nsqd};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let nsqd = Nsqd::start().await?;
/// # let producer = Producer::connect(nsqd.address()).await?;
/// let stats = producer.stats();
/// let negotiated = stats.nsqds[0].negotiated.as_ref().expect("it is connected");
/// assert_eq!(negotiated.identify.version, "1.3.0");
/// assert!(negotiated.tls.is_none() && negotiated.auth.is_none());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Negotiated {
    /// nsqd's answer to IDENTIFY: its version, its limits, and what it has granted.
    pub identify: IdentifyResponse,
    /// The TLS session, if there is one.
    pub tls: Option<TlsSession>,
    /// As whom nsqd knows this client, if it has demanded AUTH.
    pub auth: Option<AuthResponse>,
}
