//! Frames: how nsqd's answers and messages are cut out of the byte stream.
//!
//! `[u32 size][u32 type][data]`, big endian; `size` counts the type and the data.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::message::{HEADER_LEN, Message};

const SIZE_LEN: usize = 4;
const TYPE_LEN: usize = 4;

const TYPE_RESPONSE: u32 = 0;
const TYPE_ERROR: u32 = 1;
const TYPE_MESSAGE: u32 = 2;

/// One frame from nsqd.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Frame {
    /// An answer: `OK`, `CLOSE_WAIT`, `_heartbeat_` or JSON.
    Response(Bytes),
    /// A refusal: `CODE description`. See [`ErrorCode`](super::ErrorCode).
    Error(Bytes),
    /// A message of the subscribed channel.
    Message(Message),
}

/// Why bytes are not a frame. The stream cannot be read on after any of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameError {
    /// The frame is larger than the limit.
    TooLarge {
        /// The size that the frame's header states, in bytes.
        size: u32,
        /// The limit, in bytes.
        limit: u32,
    },
    /// The size is negative.
    NegativeSize(i32),
    /// The size has no room for the frame's type.
    TooSmall(u32),
    /// The type is none of the three that the protocol knows.
    UnknownType(u32),
    /// A message frame ends before its message's body begins.
    MessageTooShort {
        /// The size that the frame's header states, in bytes.
        size: u32,
    },
    /// The bytes are an HTTP response: this is not nsqd's TCP port.
    Http,
    /// The bytes are a TLS record: the peer expects TLS on this port.
    Tls,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Four letters are a size of half a gigabyte or more: rather a server that greets in text.
            Self::TooLarge { size, .. } if size.to_be_bytes().iter().all(|byte| (b' '..=b'~').contains(byte)) => {
                write!(
                    f,
                    "the answer begins with \"{}\", which is no frame; is this nsqd's TCP port (4150 by default)?",
                    size.to_be_bytes().escape_ascii()
                )
            }
            Self::TooLarge { size, limit } => write!(
                f,
                "a frame of {size} bytes exceeds the limit of {limit}; if nsqd runs with a larger max-msg-size, set \
                 max_msg_size to the same value"
            ),
            Self::NegativeSize(size) => write!(f, "a frame states the negative size {size}"),
            Self::TooSmall(size) => write!(f, "a frame states the size {size}, the least is {TYPE_LEN}"),
            Self::UnknownType(kind) => write!(f, "a frame has the unknown type {kind}"),
            Self::MessageTooShort { size } => write!(
                f,
                "a message frame of {size} bytes is too short, the least is {}",
                TYPE_LEN + HEADER_LEN
            ),
            Self::Http => write!(
                f,
                "the answer is HTTP; this seems to be an HTTP port, nsqd's TCP port is 4150 by default"
            ),
            Self::Tls => write!(f, "the answer is a TLS record; this port expects TLS"),
        }
    }
}

impl std::error::Error for FrameError {}

/// Cuts frames out of a growing buffer, however the bytes arrive.
///
/// [`decode`](Self::decode) takes all complete frames off the front of the buffer *in one piece* and leaves the
/// incomplete rest. The frames are slices of that piece: nothing is copied, nothing is allocated for a frame.
///
/// The size of a frame is checked before anything is done about it, so a peer cannot make the reader allocate more
/// than the limit. After an error the decoder yields that error for ever, since the stream has no place from which it
/// could be read on.
///
/// ```
/// use async_nsq::protocol::{Frame, FrameDecoder};
/// use bytes::BytesMut;
///
/// let mut decoder = FrameDecoder::default();
/// let mut buffer = BytesMut::from(&b"\0\0\0\x06\0\0\0\0OK\0\0\0\x0f"[..]);
/// let frames: Result<Vec<_>, _> = decoder.decode(&mut buffer).collect();
/// assert_eq!(frames?, [Frame::Response("OK".into())]);
/// assert_eq!(&buffer[..], b"\0\0\0\x0f"); // the next frame's beginning
/// # Ok::<(), async_nsq::protocol::FrameError>(())
/// ```
#[derive(Clone, Debug)]
pub struct FrameDecoder {
    limit: u32,
    missing: usize,
    failed: Option<FrameError>,
}

impl FrameDecoder {
    /// A decoder for messages of at most `max_msg_size` bytes.
    ///
    /// The limit on the frame follows from it: the message's header and the frame's type come on top. Answers are far
    /// smaller than that; at least 64 KiB are allowed for them.
    #[must_use]
    pub fn new(max_msg_size: usize) -> Self {
        const LEAST: usize = 64 * 1024;
        let limit = max_msg_size.saturating_add(TYPE_LEN + HEADER_LEN).max(LEAST);
        Self {
            limit: u32::try_from(limit).unwrap_or(u32::MAX).min(i32::MAX as u32),
            missing: 0,
            failed: None,
        }
    }

    /// Takes all complete frames off the front of `buffer`.
    ///
    /// The iterator yields an error as its last item if what follows the good frames is not a frame.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Frames {
        let complete = if self.failed.is_none() { self.scan(buffer) } else { 0 };
        Frames {
            rest: buffer.split_to(complete).freeze(),
            error: self.failed,
        }
    }

    /// Takes one complete frame off the front of `buffer`; `None` if there is none yet.
    ///
    /// For a conversation in which each frame decides what follows, as a handshake is.
    ///
    /// # Errors
    /// [`FrameError`] if the bytes are not a frame.
    pub fn decode_one(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        let first = match read_u32(buffer, 0) {
            Some(size) => buffer.len().min(SIZE_LEN.saturating_add(size as usize)),
            None => buffer.len(),
        };
        let rest = buffer.split_off(first);
        let frame = self.decode(buffer).next().transpose();
        buffer.unsplit(rest);
        frame
    }

    /// How many bytes the frame at the front of the buffer still lacked after the last [`decode`](Self::decode): what
    /// a reader has to make room for. 0 if it is not known yet. Never more than the limit.
    #[must_use]
    pub fn missing(&self) -> usize {
        self.missing
    }

    /// The length of the complete frames at the front of `buffer`.
    fn scan(&mut self, buffer: &[u8]) -> usize {
        let mut complete = 0;
        self.missing = 0;
        loop {
            let rest = &buffer[complete..];
            let Some(size) = read_u32(rest, 0) else { return complete };
            if let Err(error) = self.check(size, rest) {
                self.failed = Some(error);
                return complete;
            }
            let frame_len = SIZE_LEN + size as usize;
            if rest.len() < frame_len {
                self.missing = frame_len - rest.len();
                return complete;
            }
            complete += frame_len;
        }
    }

    fn check(&self, size: u32, frame: &[u8]) -> Result<(), FrameError> {
        if size > self.limit {
            return Err(self.explain_large(size));
        }
        if (size as usize) < TYPE_LEN {
            return Err(FrameError::TooSmall(size));
        }
        match read_u32(frame, SIZE_LEN) {
            Some(TYPE_MESSAGE) if (size as usize) < TYPE_LEN + HEADER_LEN => Err(FrameError::MessageTooShort { size }),
            None | Some(TYPE_RESPONSE | TYPE_ERROR | TYPE_MESSAGE) => Ok(()),
            Some(unknown) => Err(FrameError::UnknownType(unknown)),
        }
    }

    /// What a size beyond the limit most likely is: the usual mistakes have a face.
    fn explain_large(&self, size: u32) -> FrameError {
        match &size.to_be_bytes() {
            b"HTTP" => FrameError::Http,
            [0x15 | 0x16, 0x03, 0..=4, _] => FrameError::Tls,
            _ if size > i32::MAX as u32 => FrameError::NegativeSize(size as i32),
            _ => FrameError::TooLarge {
                size,
                limit: self.limit,
            },
        }
    }
}

impl Default for FrameDecoder {
    /// A decoder for the largest message that nsqd accepts by default, 1 MiB.
    fn default() -> Self {
        Self::new(super::DEFAULT_MAX_MSG_SIZE)
    }
}

/// The frames of one [`FrameDecoder::decode`].
#[derive(Debug)]
pub struct Frames {
    rest: Bytes,
    error: Option<FrameError>,
}

impl Iterator for Frames {
    type Item = Result<Frame, FrameError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let (Some(size), Some(kind)) = (read_u32(&self.rest, 0), read_u32(&self.rest, SIZE_LEN)) else {
            return self.error.take().map(Err);
        };
        // The scan has checked the sizes; the bounds keep a mistake there from becoming a panic here.
        let len = (SIZE_LEN + size as usize).clamp(SIZE_LEN + TYPE_LEN, self.rest.len());
        let mut data = self.rest.split_to(len);
        data.advance(SIZE_LEN + TYPE_LEN);
        Some(match kind {
            TYPE_RESPONSE => Ok(Frame::Response(data)),
            TYPE_ERROR => Ok(Frame::Error(data)),
            _ => match Message::decode(data) {
                Some(message) => Ok(Frame::Message(message)),
                None => Err(FrameError::UnknownType(kind)),
            },
        })
    }
}

#[inline]
fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

/// Appends a frame: what nsqd does, and so the test broker.
pub fn encode_frame(frame: &Frame, out: &mut BytesMut) {
    let (kind, len) = match frame {
        Frame::Response(data) => (TYPE_RESPONSE, data.len()),
        Frame::Error(data) => (TYPE_ERROR, data.len()),
        Frame::Message(message) => (TYPE_MESSAGE, HEADER_LEN + message.body.len()),
    };
    out.reserve(SIZE_LEN + TYPE_LEN + len);
    out.put_u32((TYPE_LEN + len) as u32);
    out.put_u32(kind);
    match frame {
        Frame::Response(data) | Frame::Error(data) => out.put_slice(data),
        Frame::Message(message) => message.encode(out),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::MessageId;

    fn decode_all(bytes: &[u8]) -> (Vec<Result<Frame, FrameError>>, BytesMut) {
        let mut buffer = BytesMut::from(bytes);
        let frames = FrameDecoder::new(1000).decode(&mut buffer).collect();
        (frames, buffer)
    }

    fn only_error(bytes: &[u8]) -> FrameError {
        let (frames, _) = decode_all(bytes);
        assert_eq!(frames.len(), 1, "{frames:?}");
        frames.into_iter().next().unwrap().unwrap_err()
    }

    #[test]
    fn nsqds_own_example_decodes() {
        let bytes = b"\x00\x00\x00\x23\x00\x00\x00\x02\x17\x97\x9c\xfe\x36\x2a\x00\x00\x00\x010d1a2b3c4d5e6f70hello";
        let (frames, rest) = decode_all(bytes);
        let expected = Frame::Message(Message {
            timestamp: 1_700_000_000_000_000_000,
            attempts: 1,
            id: MessageId::new(*b"0d1a2b3c4d5e6f70"),
            body: "hello".into(),
        });
        assert_eq!(frames, [Ok(expected)]);
        assert!(rest.is_empty());
    }

    #[test]
    fn n4_sizes_are_checked_before_anything_is_read() {
        assert_eq!(only_error(b"\xff\xff\xff\xff"), FrameError::NegativeSize(-1));
        assert_eq!(only_error(b"\0\0\0\x03"), FrameError::TooSmall(3));
        assert_eq!(only_error(b"\0\0\0\x06\0\0\0\x03OK"), FrameError::UnknownType(3));
        assert_eq!(
            only_error(b"\0\0\0\x1d\0\0\0\x02"),
            FrameError::MessageTooShort { size: 29 }
        );
        let mut buffer = BytesMut::from(&(2_000_000u32).to_be_bytes()[..]);
        let error = FrameDecoder::default().decode(&mut buffer).next().unwrap();
        assert_eq!(
            error,
            Err(FrameError::TooLarge {
                size: 2_000_000,
                limit: 1_048_606
            })
        );
    }

    #[test]
    fn the_usual_mistakes_are_named() {
        assert_eq!(only_error(b"HTTP/1.1 400 Bad Request\r\n"), FrameError::Http);
        assert_eq!(only_error(b"\x15\x03\x01\x00\x02\x02\x46"), FrameError::Tls);
        // The same however much of it has arrived.
        let mut long = b"\x16\x03\x03".to_vec();
        long.resize(20_000, 1);
        assert_eq!(only_error(&long), FrameError::Tls);
        let greeting = only_error(b"SSH-2.0-OpenSSH\r\n").to_string();
        assert!(greeting.starts_with("the answer begins with \"SSH-\""), "{greeting}");
        let large = only_error(&2_000_000u32.to_be_bytes()).to_string();
        assert!(large.contains("set max_msg_size"), "{large}");
    }

    #[test]
    fn good_frames_before_a_bad_one_are_delivered_and_the_error_stays() {
        let mut decoder = FrameDecoder::default();
        let mut buffer = BytesMut::from(&b"\0\0\0\x06\0\0\0\0OK\xff\xff\xff\xff"[..]);
        let frames: Vec<_> = decoder.decode(&mut buffer).collect();
        assert_eq!(
            frames,
            [Ok(Frame::Response("OK".into())), Err(FrameError::NegativeSize(-1))]
        );
        let mut more = BytesMut::from(&b"\0\0\0\x06\0\0\0\0OK"[..]);
        assert_eq!(
            decoder.decode(&mut more).collect::<Vec<_>>(),
            [Err(FrameError::NegativeSize(-1))]
        );
    }

    #[test]
    fn decode_one_leaves_the_rest() {
        let mut decoder = FrameDecoder::default();
        let mut buffer = BytesMut::from(&b"\0\0\0\x06\0\0\0\0OK\0\0\0\x06\0\0\0\0"[..]);
        assert_eq!(decoder.decode_one(&mut buffer), Ok(Some(Frame::Response("OK".into()))));
        assert_eq!(buffer.len(), 8);
        assert_eq!(decoder.decode_one(&mut buffer), Ok(None));
        assert_eq!(buffer.len(), 8);
        buffer.extend_from_slice(b"OK");
        assert!(decoder.decode_one(&mut buffer).unwrap().is_some());
        assert_eq!(decoder.decode_one(&mut buffer), Ok(None));
    }

    #[test]
    fn missing_tells_what_the_next_frame_lacks() {
        let mut decoder = FrameDecoder::default();
        let mut buffer = BytesMut::from(&b"\0\0\x40\x00\0\0\0\0abc"[..]);
        assert_eq!(decoder.decode(&mut buffer).count(), 0);
        assert_eq!(decoder.missing(), 0x4000 - 4 - 3);
        assert_eq!(buffer.len(), 11);
    }

    fn any_frame() -> impl Strategy<Value = Frame> {
        let data = || prop::collection::vec(any::<u8>(), 0..80).prop_map(Bytes::from);
        prop_oneof![
            data().prop_map(Frame::Response),
            data().prop_map(Frame::Error),
            (any::<i64>(), any::<u16>(), any::<[u8; 16]>(), data()).prop_map(|(timestamp, attempts, id, body)| {
                Frame::Message(Message {
                    timestamp,
                    attempts,
                    id: MessageId::new(id),
                    body,
                })
            }),
        ]
    }

    proptest! {
        #[test]
        fn however_the_bytes_arrive_the_frames_are_the_same(
            frames in prop::collection::vec(any_frame(), 0..12),
            garbage in prop::collection::vec(any::<u8>(), 0..20),
            cuts in prop::collection::vec(1usize..50, 1..60),
        ) {
            let mut bytes = BytesMut::new();
            frames.iter().for_each(|frame| encode_frame(frame, &mut bytes));
            bytes.extend_from_slice(&garbage);

            let mut whole = bytes.clone();
            let at_once: Vec<_> = FrameDecoder::default().decode(&mut whole).collect();
            prop_assert!(at_once.len() >= frames.len());
            for (got, sent) in at_once.iter().zip(&frames) {
                prop_assert_eq!(got.as_ref().unwrap(), sent);
            }

            let mut decoder = FrameDecoder::default();
            let mut buffer = BytesMut::new();
            let mut in_parts = Vec::new();
            let mut cuts = cuts.iter().cycle();
            while !bytes.is_empty() && decoder.failed.is_none() {
                let part = bytes.split_to((*cuts.next().unwrap()).min(bytes.len()));
                buffer.extend_from_slice(&part);
                in_parts.extend(decoder.decode(&mut buffer));
            }
            prop_assert_eq!(in_parts, at_once);
        }
    }
}
