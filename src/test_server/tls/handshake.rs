//! The handshake after IDENTIFY, whose failure nsqd reports in clear text on the same connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};
use tokio_rustls::rustls::ServerConnection;

use super::{ServerTls, subject, words};
use crate::transport::BoxIo;

const HEADER_LEN: usize = 5;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const RECORD_OVERFLOW: u8 = 22;
const PROTOCOL_VERSION: u8 = 70;

/// The largest record that Go takes.
const MAX_RECORD_LEN: u16 = 16 * 1024 + 2048;

/// A connection after its handshake.
pub(in crate::test_server) struct Encrypted {
    pub(in crate::test_server) io: BoxIo,
    pub(in crate::test_server) details: TlsDetails,
}

/// What nsqd shows of a client's TLS in its statistics, and what it tells the auth server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::test_server) struct TlsDetails {
    /// `tls_version`.
    pub(in crate::test_server) version: &'static str,
    /// `tls_cipher_suite`.
    pub(in crate::test_server) cipher_suite: String,
    /// `tls_negotiated_protocol`: empty, since nsqd offers none.
    pub(in crate::test_server) negotiated_protocol: String,
    /// `tls_negotiated_protocol_is_mutual`: always true.
    pub(in crate::test_server) negotiated_protocol_is_mutual: bool,
    /// The common name in the client's certificate, or nothing.
    pub(in crate::test_server) common_name: String,
}

/// A connection whose handshake failed: it is in clear text, behind the alert.
pub(in crate::test_server) struct HandshakeFailed {
    pub(in crate::test_server) io: BoxIo,
    /// What nsqd says behind `E_IDENTIFY_FAILED IDENTIFY failed `; nothing if the time was up.
    pub(in crate::test_server) text: Option<String>,
}

/// Performs the handshake of a client that was granted TLS, within `patience`.
///
/// # Cancel safety
/// The connection is lost with the future.
pub(in crate::test_server) async fn handshake(
    tls: &ServerTls,
    mut io: BoxIo,
    patience: Duration,
) -> Result<Encrypted, HandshakeFailed> {
    let deadline = Instant::now() + patience;
    let head = match timeout_at(deadline, read_head(&mut io)).await {
        Ok(Ok(head)) => head,
        Ok(Err(text)) => return Err(HandshakeFailed { io, text: Some(text) }),
        Err(_) => return Err(HandshakeFailed { io, text: None }),
    };
    let io = Handshaking {
        io,
        head,
        head_read: 0,
        deadline: Some(Box::pin(sleep_until(deadline))),
    };
    match tls.acceptor().accept(io).into_fallible().await {
        Ok(mut stream) => {
            let (io, connection) = stream.get_mut();
            io.deadline = None;
            let details = TlsDetails::of(connection);
            Ok(Encrypted {
                io: Box::new(stream),
                details,
            })
        }
        Err((error, io)) => Err(HandshakeFailed {
            io: io.io,
            text: (error.kind() != io::ErrorKind::TimedOut).then(|| words::failure(&error)),
        }),
    }
}

impl TlsDetails {
    fn of(connection: &ServerConnection) -> Self {
        let certificate = connection.peer_certificates().and_then(<[_]>::first);
        Self {
            version: words::version(connection.protocol_version()),
            cipher_suite: words::cipher_suite(connection.negotiated_cipher_suite().map(|suite| suite.suite())),
            negotiated_protocol: String::new(),
            negotiated_protocol_is_mutual: true,
            common_name: certificate.map_or_else(String::new, |certificate| subject::common_name(certificate)),
        }
    }
}

/// Reads the first record's header and judges it as Go does, which does not answer with an alert what is no TLS at all.
async fn read_head(io: &mut BoxIo) -> Result<[u8; HEADER_LEN], String> {
    let mut head = [0; HEADER_LEN];
    let mut len = 0;
    while len < HEADER_LEN {
        match io.read(&mut head[len..]).await {
            Ok(0) if len == 0 => return Err("EOF".to_owned()),
            Ok(0) => return Err("unexpected EOF".to_owned()),
            Ok(read) => len += read,
            Err(error) => return Err(error.to_string()),
        }
    }
    let [kind, major, _, high, low] = head;
    let record_len = u16::from_be_bytes([high, low]);
    let (text, alert) = if kind == 0x80 {
        (
            "unsupported SSLv2 handshake received".to_owned(),
            Some(PROTOCOL_VERSION),
        )
    } else if (kind != ALERT && kind != HANDSHAKE) || major >= 0x10 {
        ("first record does not look like a TLS handshake".to_owned(), None)
    } else if record_len > MAX_RECORD_LEN {
        let text = format!("oversized record received with length {record_len}");
        (text, Some(RECORD_OVERFLOW))
    } else {
        return Ok(head);
    };
    if let Some(alert) = alert {
        // The text is what matters; whether the alert arrives is not.
        let _ = io.write_all(&[ALERT, 3, 1, 0, 2, 2, alert]).await;
    }
    Err(format!("tls: {text}"))
}

/// The connection below TLS: first what was read of it already, and an error once the handshake's time is up.
///
/// A deadline of the connection rather than of the handshake's future gives the connection back.
struct Handshaking {
    io: BoxIo,
    head: [u8; HEADER_LEN],
    head_read: usize,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Handshaking {
    fn in_time(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let up = (self.deadline.as_mut()).is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready());
        if up {
            Err(io::ErrorKind::TimedOut.into())
        } else {
            Ok(())
        }
    }
}

impl AsyncRead for Handshaking {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let head = &this.head[this.head_read..];
        if !head.is_empty() {
            let len = head.len().min(buffer.remaining());
            buffer.put_slice(&head[..len]);
            this.head_read += len;
            return Poll::Ready(Ok(()));
        }
        this.in_time(cx)?;
        Pin::new(&mut this.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Handshaking {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.in_time(cx)?;
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.in_time(cx)?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
