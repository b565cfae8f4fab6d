//! A message as nsqd delivers it.

use std::fmt;

use bytes::{Buf, Bytes, BytesMut};

/// The bytes of a message frame's data before the body: timestamp, attempts, id.
pub(crate) const HEADER_LEN: usize = 8 + 2 + MessageId::LEN;

/// A message id: 16 opaque bytes, in practice lower-case hexadecimal.
///
/// nsqd makes ids unique within a topic only: two topics of one nsqd may use the same id, and so may two nsqds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
// In whole words, so that what holds it moves in such: a processor waits when it loads what it has just stored in other
// pieces, and a message moves some ten times.
#[repr(align(8))]
pub struct MessageId([u8; Self::LEN]);

impl MessageId {
    /// The length of an id in bytes.
    pub const LEN: usize = 16;

    /// An id from its bytes as they stand on the wire.
    #[must_use]
    pub const fn new(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// The bytes as they stand on the wire.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MessageId({self})")
    }
}

/// The content of a message frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// When nsqd took the message in, in nanoseconds since the Unix epoch, by nsqd's clock.
    pub timestamp: i64,
    /// How often nsqd has sent this message, this time included: 1 at first. Wraps after 65,535.
    pub attempts: u16,
    /// The id by which FIN, REQ and TOUCH name the message.
    pub id: MessageId,
    /// What was published.
    pub body: Bytes,
}

impl Message {
    /// Reads a message frame's data. The body stays a slice of `data`: nothing is copied.
    ///
    /// Returns `None` if `data` is shorter than the 26 bytes that come before a body.
    #[must_use]
    #[inline]
    pub fn decode(mut data: Bytes) -> Option<Self> {
        let (timestamp, rest) = data.split_first_chunk()?;
        let (attempts, rest) = rest.split_first_chunk()?;
        let (timestamp, attempts) = (i64::from_be_bytes(*timestamp), u16::from_be_bytes(*attempts));
        let id = MessageId(*rest.first_chunk()?);
        data.advance(HEADER_LEN);
        Some(Self {
            timestamp,
            attempts,
            id,
            body: data,
        })
    }

    /// Appends the message as a message frame's data: what nsqd does, and so the test broker.
    pub fn encode(&self, out: &mut BytesMut) {
        use bytes::BufMut;

        out.put_i64(self.timestamp);
        out.put_u16(self.attempts);
        out.put_slice(&self.id.0);
        out.put_slice(&self.body);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_a_slice_of_the_data() {
        let mut data = BytesMut::new();
        let message = Message {
            timestamp: 1_700_000_000_000_000_000,
            attempts: 3,
            id: MessageId::new(*b"0d1a2b3c4d5e6f70"),
            body: Bytes::from_static(b"hello"),
        };
        message.encode(&mut data);
        let data = data.freeze();
        let decoded = Message::decode(data.clone()).unwrap();
        assert_eq!(decoded, message);
        assert_eq!(decoded.body.as_ptr(), data[HEADER_LEN..].as_ptr());
    }

    #[test]
    fn short_data_is_no_message() {
        assert_eq!(Message::decode(Bytes::from_static(&[0; HEADER_LEN - 1])), None);
        assert!(Message::decode(Bytes::from_static(&[0; HEADER_LEN])).is_some());
    }

    #[test]
    fn ids_print_whatever_they_hold() {
        assert_eq!(MessageId::new(*b"0d1a2b3c4d5e6f70").to_string(), "0d1a2b3c4d5e6f70");
        assert!(MessageId::new([0xff; 16]).to_string().starts_with("\\xff"));
    }
}
