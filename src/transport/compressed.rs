//! A compressed stream over another stream.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

#[cfg(feature = "deflate")]
use super::deflate;
#[cfg(feature = "snappy")]
use super::snappy;

/// How many compressed bytes are read at a time.
const READ_LEN: usize = 8 * 1024;

/// How many plain bytes wait for the reader at most.
const PLAIN_ROOM: usize = 32 * 1024;

/// How many plain bytes one write takes at most: one chunk of snappy.
const WRITE_LEN: usize = 64 * 1024;

/// Past so many compressed bytes that the stream below does not take, nothing more is compressed.
const WIRE_ROOM: usize = 64 * 1024;

/// Which compression, with the state of both directions.
pub(crate) struct Codec {
    encoder: Encoder,
    decoder: Decoder,
}

// Boxed, since their sizes are far apart.
enum Encoder {
    #[cfg(feature = "snappy")]
    Snappy(Box<snappy::Encoder>),
    #[cfg(feature = "deflate")]
    Deflate(Box<deflate::Encoder>),
}

enum Decoder {
    #[cfg(feature = "snappy")]
    Snappy(Box<snappy::Decoder>),
    #[cfg(feature = "deflate")]
    Deflate(Box<deflate::Decoder>),
}

impl Codec {
    /// Snappy's framing format, which is the same for client and broker.
    #[cfg(feature = "snappy")]
    pub(crate) fn snappy() -> Self {
        Self {
            encoder: Encoder::Snappy(Box::default()),
            decoder: Decoder::Snappy(Box::default()),
        }
    }

    /// Raw deflate as a client speaks it: what can be decompressed is read.
    #[cfg(feature = "deflate")]
    pub(crate) fn deflate(level: u32) -> Self {
        Self {
            encoder: Encoder::Deflate(Box::new(deflate::Encoder::new(level))),
            decoder: Decoder::Deflate(Box::default()),
        }
    }

    /// Raw deflate as nsqd speaks it: what the client has not flushed with an empty stored block stays unread.
    #[cfg(feature = "test-server")]
    pub(crate) fn deflate_of_nsqd(level: u32) -> Self {
        Self {
            encoder: Encoder::Deflate(Box::new(deflate::Encoder::new(level))),
            decoder: Decoder::Deflate(Box::new(deflate::Decoder::until_flush())),
        }
    }
}

impl Encoder {
    fn encode(&mut self, plain: &[u8], wire: &mut BytesMut) {
        match self {
            #[cfg(feature = "snappy")]
            Self::Snappy(encoder) => encoder.encode(plain, wire),
            #[cfg(feature = "deflate")]
            Self::Deflate(encoder) => encoder.encode(plain, wire),
        }
    }

    fn flush(&mut self, wire: &mut BytesMut) {
        match self {
            #[cfg(feature = "snappy")]
            Self::Snappy(encoder) => encoder.flush(wire),
            #[cfg(feature = "deflate")]
            Self::Deflate(encoder) => encoder.flush(wire),
        }
    }
}

impl Decoder {
    fn decode(&mut self, wire: &mut BytesMut, plain: &mut BytesMut) -> io::Result<usize> {
        let invalid =
            |error: Box<dyn std::error::Error + Send + Sync>| io::Error::new(io::ErrorKind::InvalidData, error);
        match self {
            #[cfg(feature = "snappy")]
            Self::Snappy(decoder) => (decoder.decode(wire, plain, PLAIN_ROOM)).map_err(|error| invalid(error.into())),
            #[cfg(feature = "deflate")]
            Self::Deflate(decoder) => (decoder.decode(wire, plain, PLAIN_ROOM)).map_err(|error| invalid(error.into())),
        }
    }

    /// Whether the compressed stream says itself that it is over.
    fn has_ended(&self) -> bool {
        match self {
            #[cfg(feature = "snappy")]
            Self::Snappy(_) => false,
            #[cfg(feature = "deflate")]
            Self::Deflate(decoder) => decoder.has_ended(),
        }
    }

    /// Hears that the stream below is at its end.
    fn end_of_input(&mut self) {
        match self {
            #[cfg(feature = "snappy")]
            Self::Snappy(_) => {}
            #[cfg(feature = "deflate")]
            Self::Deflate(decoder) => decoder.end_of_input(),
        }
    }

    /// Whether the stream below may end here.
    #[cfg_attr(not(feature = "snappy"), expect(unused_variables))]
    fn may_end(&self, wire: &[u8]) -> bool {
        match self {
            #[cfg(feature = "snappy")]
            Self::Snappy(decoder) => decoder.may_end(wire),
            // NSQ's peers close without a final block: each flush is an end.
            #[cfg(feature = "deflate")]
            Self::Deflate(_) => true,
        }
    }
}

/// Compresses what is written and decompresses what is read.
///
/// What is written leaves at once with snappy, one chunk or more per write; with deflate most of it leaves at the next
/// flush, which also writes deflate's empty stored block when there is nothing to flush. Both are what nsqd does. So write
/// whole batches, and flush only after something was written.
///
/// A decompression error is [`io::ErrorKind::InvalidData`], after what came before it. A stream below that ends within a
/// snappy chunk is [`io::ErrorKind::UnexpectedEof`].
///
/// Shutting it down flushes what is unflushed, and writes no final block, as nsqd does not.
///
/// # Memory
/// Bounded in both directions: about 32 KiB of plain bytes and one snappy chunk (75 KiB) to read, 64 KiB and one write's
/// result to write. While nothing is under way there are no buffers, only the codec's own state.
///
/// # Cancel safety
/// All polls: what was read or taken stays for the next poll.
pub(crate) struct Compressed<S> {
    io: S,
    codec: Codec,
    /// Read and not decompressed.
    wire_in: BytesMut,
    /// Decompressed and not read by the caller.
    plain: BytesMut,
    /// Compressed and not written.
    wire_out: BytesMut,
    input: Input,
    output: Output,
}

/// What is known of the incoming direction.
enum Input {
    /// The decoder has to be asked before more is read.
    Undecoded,
    /// The decoder needs more.
    Drained,
    /// The stream below is at its end.
    Ended,
    /// To be reported once all that came before is read.
    Failed(io::ErrorKind, String),
}

/// What is known of the outgoing direction.
#[derive(PartialEq)]
enum Output {
    /// All that was written has been flushed, into the stream below too.
    Flushed,
    /// Something was written.
    Written,
    /// The encoder is flushed, `wire_out` and the stream below are not yet.
    Flushing,
}

impl<S> Compressed<S> {
    /// Speaks `codec` over `io`, both directions at their beginning. `unread` is what was read from `io` before and belongs
    /// to the compressed stream.
    pub(crate) fn new(io: S, codec: Codec, unread: BytesMut) -> Self {
        Self {
            io,
            codec,
            input: if unread.is_empty() {
                Input::Drained
            } else {
                Input::Undecoded
            },
            wire_in: unread,
            plain: BytesMut::new(),
            wire_out: BytesMut::new(),
            output: Output::Flushed,
        }
    }
}

impl<S> fmt::Debug for Compressed<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressed")
            .field("wire_in", &self.wire_in.len())
            .field("plain", &self.plain.len())
            .field("wire_out", &self.wire_out.len())
            .finish_non_exhaustive()
    }
}

impl<S: AsyncRead + Unpin> Compressed<S> {
    /// Lets the decoder take what was read.
    fn decode(&mut self) {
        match self.codec.decoder.decode(&mut self.wire_in, &mut self.plain) {
            Ok(PLAIN_ROOM) => {}
            Ok(_) => self.input = Input::Drained,
            Err(error) => self.input = Input::Failed(error.kind(), error.to_string()),
        }
    }

    /// Reads from the stream below.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.wire_in.is_empty() {
            // It may wait for long; bytes of a small stay need no buffer meanwhile.
            self.wire_in = BytesMut::new();
        }
        let mut space = [const { MaybeUninit::uninit() }; READ_LEN];
        let mut space = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut space))?;
        if space.filled().is_empty() {
            self.input = Input::Ended;
            self.codec.decoder.end_of_input();
            if !self.codec.decoder.may_end(&self.wire_in) {
                let text = "the connection ended within a compressed chunk".to_owned();
                self.input = Input::Failed(io::ErrorKind::UnexpectedEof, text);
            }
        } else {
            self.wire_in.extend_from_slice(space.filled());
            self.input = Input::Undecoded;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Compressed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if !this.plain.is_empty() {
                let len = this.plain.len().min(buffer.remaining());
                buffer.put_slice(&this.plain[..len]);
                this.plain.advance(len);
                if this.plain.is_empty() {
                    this.plain = BytesMut::new();
                }
                return Poll::Ready(Ok(()));
            }
            if this.codec.decoder.has_ended() {
                return Poll::Ready(Ok(()));
            }
            match &this.input {
                Input::Undecoded => this.decode(),
                Input::Drained => ready!(this.poll_fill(cx))?,
                Input::Failed(kind, text) => return Poll::Ready(Err(io::Error::new(*kind, text.clone()))),
                Input::Ended => {
                    // What the decoder held back for a flush that does not come.
                    let len = this.codec.decoder.decode(&mut this.wire_in, &mut this.plain)?;
                    if len == 0 {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> Compressed<S> {
    /// Writes out what is compressed.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.wire_out.is_empty() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.wire_out))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.wire_out.advance(written);
        }
        self.wire_out = BytesMut::new();
        Poll::Ready(Ok(()))
    }

    fn poll_finish_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.output != Output::Flushing {
            self.codec.encoder.flush(&mut self.wire_out);
            self.output = Output::Flushing;
        }
        ready!(self.poll_drain(cx))?;
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.output = Output::Flushed;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Compressed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, plain: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.wire_out.len() >= WIRE_ROOM {
            ready!(this.poll_drain(cx))?;
        }
        let len = plain.len().min(WRITE_LEN);
        if len > 0 {
            this.codec.encoder.encode(&plain[..len], &mut this.wire_out);
            this.output = Output::Written;
            // What the stream below does not take now waits for the next write or flush.
            if let Poll::Ready(Err(error)) = this.poll_drain(cx) {
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(len))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_finish_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.output != Output::Flushed {
            ready!(self.poll_finish_flush(cx))?;
        }
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    fn codecs() -> [Codec; 2] {
        [Codec::snappy(), Codec::deflate_of_nsqd(6)]
    }

    /// Two ends of a compressed connection.
    fn pair(codec: fn() -> Codec, capacity: usize) -> (Compressed<DuplexStream>, Compressed<DuplexStream>) {
        let (left, right) = duplex(capacity);
        (
            Compressed::new(left, codec(), BytesMut::new()),
            Compressed::new(right, codec(), BytesMut::new()),
        )
    }

    fn noise(len: usize, seed: u64) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(seed);
        let letters = random.u8(1..);
        std::iter::repeat_with(|| random.u8(0..letters)).take(len).collect()
    }

    /// Writes batches of these sizes from both ends at once and reads them with buffers of these sizes.
    async fn pump(codec: fn() -> Codec, capacity: usize, batches: &[usize], reads: &[usize]) {
        let (left, right) = pair(codec, capacity);
        let (left_read, left_write) = tokio::io::split(left);
        let (right_read, right_write) = tokio::io::split(right);
        tokio::join!(
            send(left_write, batches, 1),
            send(right_write, batches, 2),
            receive(left_read, batches, reads, 2),
            receive(right_read, batches, reads, 1),
        );
    }

    async fn send(mut writer: impl AsyncWrite + Unpin, batches: &[usize], seed: u64) {
        for (number, len) in batches.iter().enumerate() {
            writer.write_all(&noise(*len, seed + number as u64)).await.unwrap();
            if number % 3 != 0 {
                writer.flush().await.unwrap();
            }
        }
        writer.shutdown().await.unwrap();
    }

    async fn receive(mut reader: impl AsyncRead + Unpin, batches: &[usize], reads: &[usize], seed: u64) {
        let expected: Vec<u8> = (batches.iter().enumerate())
            .flat_map(|(number, len)| noise(*len, seed + number as u64))
            .collect();
        let mut received = Vec::new();
        let mut reads = reads.iter().cycle();
        loop {
            let mut buffer = vec![0; reads.next().copied().unwrap_or(1)];
            let len = reader.read(&mut buffer).await.unwrap();
            if len == 0 {
                break;
            }
            received.extend_from_slice(&buffer[..len]);
        }
        assert!(received == expected, "{} of {}", received.len(), expected.len());
    }

    fn run(future: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(future);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_written_is_read_whatever_the_sizes(
            snappy in any::<bool>(),
            capacity in 1..20_000_usize,
            batches in prop::collection::vec(0..100_000_usize, 1..5),
            reads in prop::collection::vec(1..50_000_usize, 1..5),
        ) {
            let codec = if snappy { Codec::snappy } else { || Codec::deflate_of_nsqd(1) };
            run(pump(codec, capacity, &batches, &reads));
        }
    }

    #[tokio::test]
    async fn a_flushed_command_is_readable_and_leaves_no_buffers() {
        for codec in [Codec::snappy, || Codec::deflate_of_nsqd(6)] {
            let (mut left, mut right) = pair(codec, 1000);
            left.write_all(b"NOP\n").await.unwrap();
            left.flush().await.unwrap();
            let mut command = [0; 4];
            right.read_exact(&mut command).await.unwrap();
            assert_eq!(&command, b"NOP\n");
            let mut cx = Context::from_waker(Waker::noop());
            let mut more = [0; 10];
            let mut more = ReadBuf::new(&mut more);
            assert!(Pin::new(&mut right).poll_read(&mut cx, &mut more).is_pending());
            for buffer in [&left.wire_out, &right.wire_in, &right.plain] {
                assert_eq!(buffer.capacity(), 0);
            }
        }
    }

    #[tokio::test]
    async fn each_flush_writes_deflates_empty_block_once() {
        // A pipe of one byte: each flush is polled several times.
        let (left, mut right) = duplex(1);
        let mut left = Compressed::new(left, Codec::deflate_of_nsqd(6), BytesMut::new());
        let write = async {
            left.flush().await.unwrap();
            left.flush().await.unwrap();
            left.write_all(b"a").await.unwrap();
            left.flush().await.unwrap();
            left.shutdown().await.unwrap();
        };
        let mut wire = Vec::new();
        let (_, read) = tokio::join!(write, right.read_to_end(&mut wire));
        read.unwrap();
        let mut expected = BytesMut::from(&b"\0\0\0\xff\xff\0\0\0\xff\xff"[..]);
        let mut encoder = deflate::Encoder::new(6);
        encoder.encode(b"a", &mut expected);
        encoder.flush(&mut expected);
        assert_eq!(wire, expected);
    }

    #[tokio::test]
    async fn n4_a_peer_that_does_not_read_stops_the_writer() {
        for codec in codecs() {
            let (left, _right) = duplex(1000);
            let mut left = Compressed::new(left, codec, BytesMut::new());
            let mut cx = Context::from_waker(Waker::noop());
            let plain = noise(1_000_000, 7);
            let mut taken = 0;
            while let Poll::Ready(len) = Pin::new(&mut left).poll_write(&mut cx, &plain[taken..]) {
                taken += len.unwrap();
                let _ = Pin::new(&mut left).poll_flush(&mut cx);
                assert!(taken < 500_000 && left.wire_out.len() < WIRE_ROOM + 2 * WRITE_LEN);
            }
        }
    }

    #[tokio::test]
    async fn n4_a_bomb_waits_for_its_reader() {
        let mut bomb = BytesMut::new();
        let mut encoder = deflate::Encoder::new(9);
        encoder.encode(&vec![0; 10_000_000], &mut bomb);
        encoder.flush(&mut bomb);
        let (mut left, right) = duplex(bomb.len());
        left.write_all(&bomb).await.unwrap();
        drop(left);
        let mut right = Compressed::new(right, Codec::deflate_of_nsqd(6), BytesMut::new());
        let mut buffer = vec![0; 1000];
        let mut total = 0;
        loop {
            let len = right.read(&mut buffer).await.unwrap();
            assert!(right.plain.capacity() <= 2 * PLAIN_ROOM && right.wire_in.len() <= READ_LEN);
            total += len;
            if len == 0 {
                break;
            }
        }
        assert_eq!(total, 10_000_000);
    }

    /// What comes out when these bytes arrive and the peer leaves.
    async fn read(codec: Codec, wire: &[u8]) -> (Vec<u8>, Option<io::ErrorKind>) {
        let mut reader = Compressed::new(wire, codec, BytesMut::new());
        let mut plain = Vec::new();
        let ended = reader.read_to_end(&mut plain).await;
        // An error stays.
        if let Err(error) = &ended {
            assert_eq!(reader.read_u8().await.unwrap_err().kind(), error.kind());
        }
        (plain, ended.err().map(|error| error.kind()))
    }

    #[tokio::test]
    async fn a_stream_that_ends_badly_gives_what_came_before() {
        let mut wire = BytesMut::new();
        snappy::Encoder::new().encode(b"NOP\n", &mut wire);
        let nop = b"NOP\n".to_vec();
        assert_eq!(read(Codec::snappy(), &wire).await, (nop.clone(), None));
        assert_eq!(
            read(Codec::snappy(), &wire[..wire.len() - 1]).await,
            (vec![], Some(io::ErrorKind::UnexpectedEof))
        );
        wire.extend_from_slice(b"\x02\0\0\0");
        assert_eq!(
            read(Codec::snappy(), &wire).await,
            (nop.clone(), Some(io::ErrorKind::InvalidData))
        );

        let deflate = || Codec::deflate_of_nsqd(6);
        let mut wire = BytesMut::new();
        let mut encoder = deflate::Encoder::new(6);
        encoder.encode(b"NOP\n", &mut wire);
        encoder.flush(&mut wire);
        // nsqd's reader gives what it held back when the connection ends.
        assert_eq!(read(deflate(), &wire[..wire.len() - 4]).await, (nop.clone(), None));
        assert_eq!(read(deflate(), &wire).await, (nop.clone(), None));
        wire.extend_from_slice(&[0xff; 9]);
        assert_eq!(read(deflate(), &wire).await, (nop, Some(io::ErrorKind::InvalidData)));
    }

    #[tokio::test]
    async fn deflates_final_block_is_the_end_though_the_connection_stays() {
        let (mut left, right) = duplex(100);
        // "NOP\n" in a final block of fixed codes, as `compress` writes it.
        let mut compressor = flate2::Compress::new(flate2::Compression::new(6), false);
        let mut wire = Vec::with_capacity(100);
        (compressor.compress_vec(b"NOP\n", &mut wire, flate2::FlushCompress::Finish)).unwrap();
        left.write_all(&wire).await.unwrap();
        let mut plain = Vec::new();
        let mut right = Compressed::new(right, Codec::deflate_of_nsqd(6), BytesMut::new());
        right.read_to_end(&mut plain).await.unwrap();
        assert_eq!(plain, b"NOP\n");
    }
}
