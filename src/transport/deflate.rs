//! Raw deflate (RFC 1951), as NSQ speaks it once IDENTIFY has granted `deflate`. Bytes in, bytes out.
//!
//! Each direction of a connection is one stream without header or checksum. A flush ends what has been written with an
//! empty stored block, `00 00 ff ff` at a byte's boundary, as zlib's sync flush does.
//!
//! ```
//! use async_nsq::transport::deflate::{Decoder, Encoder};
//! use bytes::BytesMut;
//!
//! let mut wire = BytesMut::new();
//! let mut encoder = Encoder::new(6);
//! encoder.encode(b"SUB orders billing\n", &mut wire);
//! encoder.flush(&mut wire);
//! assert!(wire.ends_with(b"\0\0\xff\xff"));
//!
//! let mut decoder = Decoder::new();
//! let mut plain = BytesMut::new();
//! decoder.decode(&mut wire, &mut plain, 4096)?;
//! assert_eq!(&plain[..], b"SUB orders billing\n");
//! # Ok::<(), async_nsq::transport::deflate::DeflateError>(())
//! ```

use std::fmt;

use bytes::{Buf, BufMut, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Deflate's window, and with it the most that [`Decoder::until_flush`] holds back.
const WINDOW: usize = 32 * 1024;

/// What a flush ends with.
const FLUSHED: [u8; 4] = *b"\0\0\xff\xff";

/// An empty stored block at a byte's boundary.
const EMPTY_BLOCK: &[u8] = b"\0\0\0\xff\xff";

/// How much room the compressor and the decompressor are given at a time: cleared memory that they need not use.
const LEAST_STEP: usize = 512;
const MOST_STEP: usize = 16 * 1024;

/// Why bytes are not a deflate stream. It cannot be read on after any of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeflateError {
    /// The stream begins with zlib's header: the peer compresses with zlib where raw deflate is spoken.
    ZlibHeader,
    /// The bytes cannot be decompressed.
    Corrupt,
}

impl fmt::Display for DeflateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ZlibHeader => "the stream has zlib's header, but raw deflate is spoken here",
            Self::Corrupt => "the deflate stream cannot be decompressed",
        })
    }
}

impl std::error::Error for DeflateError {}

/// Turns plain bytes into a deflate stream.
#[derive(Debug)]
pub struct Encoder {
    compressor: Compress,
    /// Whether the compressor holds bytes that have not been flushed.
    unflushed: bool,
}

impl Encoder {
    /// An encoder at the beginning of its stream. `level` is 1 (fast) to 9 (small); others are taken for the nearest.
    #[must_use]
    pub fn new(level: u32) -> Self {
        Self {
            compressor: Compress::new(Compression::new(level.clamp(1, 9)), false),
            unflushed: false,
        }
    }

    /// Takes `plain` over and appends to `wire` what is due of it. Most of it is not before [`flush`](Self::flush).
    pub fn encode(&mut self, plain: &[u8], wire: &mut BytesMut) {
        if !plain.is_empty() {
            self.unflushed = true;
            self.run(plain, FlushCompress::None, wire);
        }
    }

    /// Makes everything encoded so far readable for the peer, with an empty stored block at its end.
    ///
    /// When there is nothing, that block alone is written, as nsqd's writer does.
    pub fn flush(&mut self, wire: &mut BytesMut) {
        if self.unflushed {
            self.unflushed = false;
            self.run(&[], FlushCompress::Sync, wire);
        } else {
            // zlib-rs writes nothing then. The stream stands at a byte's boundary: at its beginning, or behind a flush.
            wire.put_slice(EMPTY_BLOCK);
        }
    }

    fn run(&mut self, mut plain: &[u8], flush: FlushCompress, wire: &mut BytesMut) {
        loop {
            let start = wire.len();
            let room = plain.len().clamp(LEAST_STEP, MOST_STEP);
            let (total_in, total_out) = (self.compressor.total_in(), self.compressor.total_out());
            wire.resize(start + room, 0);
            let status = self.compressor.compress(plain, &mut wire[start..], flush);
            let taken = since(total_in, self.compressor.total_in());
            let written = since(total_out, self.compressor.total_out());
            wire.truncate(start + written);
            plain = &plain[taken..];
            // It fails only when it is driven wrongly, for example on after its end.
            debug_assert!(status.is_ok(), "{status:?}");
            let stuck = taken == 0 && written == 0;
            if status.is_err() || stuck || (plain.is_empty() && written < room) {
                return;
            }
        }
    }
}

/// Turns a deflate stream into plain bytes, however it arrives.
///
/// There is no limit to what a few bytes can become; `room` is the limit. The decoder itself holds deflate's window of
/// 32 KiB and, when made by [`until_flush`](Self::until_flush), as much again at most.
#[derive(Debug)]
pub struct Decoder {
    decompressor: Decompress,
    until_flush: bool,
    /// What has been decompressed and is not given out yet.
    held: BytesMut,
    /// How much of it may be given out.
    ready: usize,
    /// The stream's first bytes: is it zlib's?
    head: [u8; 2],
    /// The last bytes that were read: are they the end of a flush?
    tail: [u8; 4],
    ended: bool,
    failed: Option<DeflateError>,
}

/// What one turn of the decompressor brought.
struct Turn {
    taken: usize,
    written: usize,
    /// There may be more in it without further input.
    full: bool,
}

impl Turn {
    /// Whether another turn would bring nothing without further input.
    fn is_last(&self, wire: &[u8]) -> bool {
        (self.taken == 0 && self.written == 0) || (wire.is_empty() && !self.full)
    }
}

impl Decoder {
    /// A decoder at the beginning of its stream, which gives out each byte as soon as it can be known.
    #[must_use]
    pub fn new() -> Self {
        Self::with(false)
    }

    /// A decoder which gives out what nsqd's would: everything so far at an empty stored block, at each full 32 KiB of
    /// plain bytes and at the end. What a client has flushed in another way stays unread, as it does with nsqd.
    ///
    /// An empty stored block is recognised by its bytes, `00 00 ff ff`. Compressed data may contain them by chance; what
    /// is before them is given out early then.
    #[must_use]
    pub fn until_flush() -> Self {
        Self::with(true)
    }

    fn with(until_flush: bool) -> Self {
        Self {
            decompressor: Decompress::new(false),
            until_flush,
            held: BytesMut::new(),
            ready: 0,
            head: [0; 2],
            // Not the end of a flush.
            tail: [0; 4],
            ended: false,
            failed: None,
        }
    }

    /// Takes what it can off the front of `wire` and appends at most `room` plain bytes to `plain`. Returns how many.
    ///
    /// Fewer than `room` means that more input is needed or that the stream [has ended](Self::has_ended); `room` means
    /// that there may be more already. Input that decompresses to nothing is no end: an empty stored block is such.
    ///
    /// # Errors
    /// [`DeflateError`] if the input is not a raw deflate stream. What came before the error is in `plain` then, and each
    /// further call fails likewise.
    pub fn decode(&mut self, wire: &mut BytesMut, plain: &mut BytesMut, room: usize) -> Result<usize, DeflateError> {
        let start = plain.len();
        let end = start.saturating_add(room);
        loop {
            self.give_out(plain, end);
            if plain.len() == end || self.ended {
                break;
            }
            if let Some(error) = self.failed {
                return Err(error);
            }
            let progress = if self.until_flush {
                self.fill_held(wire)
            } else {
                self.turn(wire, usize::MAX, plain, end - plain.len())
            };
            match progress {
                Ok(turn) if self.ready == 0 && turn.is_last(wire) => break,
                Ok(_) => {}
                Err(error) => {
                    self.failed = Some(error);
                    self.ready = self.held.len();
                }
            }
        }
        Ok(plain.len() - start)
    }

    /// Whether the stream's final block has been read and all of it is given out. What follows it is not read.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended && self.held.is_empty()
    }

    /// Says that there is no more input: what was held back for a flush is ready to be given out, as with nsqd.
    pub fn end_of_input(&mut self) {
        self.ready = self.held.len();
    }

    fn give_out(&mut self, plain: &mut BytesMut, end: usize) {
        let len = self.ready.min(end - plain.len());
        if len > 0 {
            plain.put(self.held.split_to(len));
            self.ready -= len;
            if self.held.is_empty() {
                self.held = BytesMut::new();
            }
        }
    }

    /// One turn up to the end of the last flush in `wire`, or to the end of the window.
    fn fill_held(&mut self, wire: &mut BytesMut) -> Result<Turn, DeflateError> {
        let flush = wire.windows(FLUSHED.len()).rposition(|bytes| bytes == FLUSHED);
        let until = flush.map_or(wire.len(), |start| start + FLUSHED.len());
        let position = (self.decompressor.total_out() % WINDOW as u64) as usize;
        let mut held = std::mem::take(&mut self.held);
        let turn = self.turn(wire, until, &mut held, WINDOW - position);
        if !held.is_empty() {
            self.held = held;
        }
        let turn = turn?;
        let window_full = turn.written > 0 && self.decompressor.total_out() % WINDOW as u64 == 0;
        if window_full || self.ended || (!turn.full && self.tail == FLUSHED) {
            self.ready = self.held.len();
        }
        Ok(turn)
    }

    /// Lets the decompressor take at most `until` bytes off `wire` and append at most `room` to `target`.
    fn turn(
        &mut self,
        wire: &mut BytesMut,
        until: usize,
        target: &mut BytesMut,
        room: usize,
    ) -> Result<Turn, DeflateError> {
        let input = &wire[..until.min(wire.len())];
        let room = room.min(input.len().saturating_mul(4).clamp(LEAST_STEP, MOST_STEP));
        let start = target.len();
        let (total_in, total_out) = (self.decompressor.total_in(), self.decompressor.total_out());
        target.resize(start + room, 0);
        let status = (self.decompressor).decompress(input, &mut target[start..], FlushDecompress::None);
        let taken = since(total_in, self.decompressor.total_in());
        let written = since(total_out, self.decompressor.total_out());
        target.truncate(start + written);
        self.remember(total_in, &input[..taken]);
        wire.advance(taken);
        match status {
            Ok(Status::StreamEnd) => self.ended = true,
            Ok(Status::Ok | Status::BufError) => {}
            Err(_) if self.is_zlib() => return Err(DeflateError::ZlibHeader),
            Err(_) => return Err(DeflateError::Corrupt),
        }
        let full = written == room;
        Ok(Turn { taken, written, full })
    }

    fn remember(&mut self, position: u64, taken: &[u8]) {
        if position < 2 {
            for (head, byte) in self.head.iter_mut().skip(position as usize).zip(taken) {
                *head = *byte;
            }
        }
        let last = &taken[taken.len().saturating_sub(self.tail.len())..];
        let kept = self.tail.len() - last.len();
        self.tail.copy_within(last.len().., 0);
        self.tail[kept..].copy_from_slice(last);
    }

    /// Whether the stream begins as zlib's does (RFC 1950): method 8, and a multiple of 31.
    fn is_zlib(&self) -> bool {
        self.head[0] & 0x0f == 8 && u16::from_be_bytes(self.head) % 31 == 0
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

/// How far a count that never shrinks has come. It counts bytes of one buffer, so it fits.
fn since(before: u64, now: u64) -> usize {
    (now - before) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OK_FRAME: &[u8] = b"\0\0\0\x06\0\0\0\0OK";

    fn encoded(level: u32, plain: &[u8]) -> BytesMut {
        let mut wire = BytesMut::new();
        let mut encoder = Encoder::new(level);
        encoder.encode(plain, &mut wire);
        encoder.flush(&mut wire);
        wire
    }

    /// As a foreign client would write it.
    fn compressed(plain: &[u8], zlib: bool, flush: FlushCompress) -> Vec<u8> {
        let mut wire = Vec::with_capacity(plain.len() + 1000);
        let mut compressor = Compress::new(Compression::new(6), zlib);
        compressor.compress_vec(plain, &mut wire, flush).unwrap();
        wire
    }

    fn decode_all(decoder: &mut Decoder, wire: &[u8]) -> Result<Vec<u8>, DeflateError> {
        let mut plain = BytesMut::new();
        decoder.decode(&mut BytesMut::from(wire), &mut plain, 1_000_000)?;
        Ok(plain.to_vec())
    }

    /// Everything that comes out of `wire` when it arrives in pieces of these lengths, and the error that ended it.
    fn decode(mut decoder: Decoder, wire: &[u8], cuts: &[usize], room: usize) -> (Vec<u8>, Option<DeflateError>) {
        let (mut input, mut plain) = (BytesMut::new(), BytesMut::new());
        let mut cuts = cuts.iter().copied().cycle();
        let mut rest = wire;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(cuts.next().unwrap_or(rest.len()).clamp(1, rest.len()));
            input.extend_from_slice(piece);
            rest = after;
            loop {
                let before = plain.len();
                let decoded = decoder.decode(&mut input, &mut plain, room);
                assert!(plain.len() - before <= room && decoder.held.len() <= WINDOW);
                match decoded {
                    Err(error) => return (plain.to_vec(), Some(error)),
                    Ok(len) if len < room => break,
                    Ok(len) => assert_eq!(len, room),
                }
            }
            assert!(input.is_empty() || decoder.has_ended());
        }
        (plain.to_vec(), None)
    }

    #[test]
    fn each_level_ends_a_flush_with_an_empty_stored_block() {
        for level in 0..=10 {
            let wire = encoded(level, OK_FRAME);
            assert!(wire.ends_with(&FLUSHED), "level {level}: {wire:02x?}");
            assert_eq!(decode_all(&mut Decoder::until_flush(), &wire).unwrap(), OK_FRAME);
        }
    }

    #[test]
    fn a_flush_of_nothing_is_the_bare_block_of_nsqd() {
        let mut wire = BytesMut::new();
        let mut encoder = Encoder::new(6);
        encoder.flush(&mut wire);
        assert_eq!(&wire[..], b"\0\0\0\xff\xff");
        encoder.encode(b"", &mut wire);
        encoder.encode(b"one", &mut wire);
        encoder.flush(&mut wire);
        let flushed = wire.len();
        encoder.flush(&mut wire);
        assert_eq!(&wire[flushed..], b"\0\0\0\xff\xff");
        encoder.encode(b"two", &mut wire);
        encoder.flush(&mut wire);
        assert_eq!(decode_all(&mut Decoder::new(), &wire).unwrap(), b"onetwo");
    }

    #[test]
    fn what_nsqd_writes_is_read() {
        let level_6 = b"\x62\x60\x60\x60\x63\x60\x60\x60\xf0\xf7\x06\0\0\0\xff\xff";
        let level_1 = b"\0\x0a\0\xf5\xff\0\0\0\x06\0\0\0\0OK\0\0\0\xff\xff";
        let bare = b"\0\0\0\xff\xff";
        let mut decoder = Decoder::new();
        assert_eq!(decode_all(&mut decoder, level_6).unwrap(), OK_FRAME);
        assert_eq!(decode_all(&mut decoder, bare).unwrap(), b"");
        assert_eq!(decode_all(&mut decoder, b"\x42\xb0\0\0\0\0\xff\xff").unwrap(), OK_FRAME);
        assert!(!decoder.has_ended());
        assert_eq!(decode_all(&mut Decoder::until_flush(), level_1).unwrap(), OK_FRAME);
    }

    #[test]
    fn a_partial_flush_stays_unread_until_a_sync_flush_follows() {
        let mut compressor = Compress::new(Compression::new(6), false);
        let mut write = |plain: &[u8], flush| {
            let mut wire = Vec::with_capacity(1000);
            compressor.compress_vec(plain, &mut wire, flush).unwrap();
            wire
        };
        let partial = write(b"NOP\n", FlushCompress::Partial);
        let sync = write(b"CLS\n", FlushCompress::Sync);
        assert_eq!(decode_all(&mut Decoder::new(), &partial).unwrap(), b"NOP\n");
        let mut decoder = Decoder::until_flush();
        assert_eq!(decode_all(&mut decoder, &partial).unwrap(), b"");
        assert_eq!(decode_all(&mut decoder, &sync[..sync.len() - 1]).unwrap(), b"");
        assert_eq!(
            decode_all(&mut decoder, &sync[sync.len() - 1..]).unwrap(),
            b"NOP\nCLS\n"
        );
    }

    #[test]
    fn what_is_held_back_comes_out_at_the_end_of_input() {
        let mut decoder = Decoder::until_flush();
        let partial = compressed(b"NOP\n", false, FlushCompress::Partial);
        assert_eq!(decode_all(&mut decoder, &partial).unwrap(), b"");
        decoder.end_of_input();
        assert_eq!(decode_all(&mut decoder, b"").unwrap(), b"NOP\n");
    }

    #[test]
    fn a_full_window_is_given_out_without_a_flush() {
        let mut random = fastrand::Rng::with_seed(1);
        let plain: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(3 * WINDOW + 5).collect();
        let wire = compressed(&plain, false, FlushCompress::Partial);
        assert_eq!(
            decode_all(&mut Decoder::until_flush(), &wire).unwrap(),
            plain[..3 * WINDOW]
        );
    }

    #[test]
    fn the_final_block_is_the_end_and_nothing_behind_it_is_read() {
        for decoder in [Decoder::new(), Decoder::until_flush()] {
            let mut decoder = decoder;
            let mut wire = BytesMut::from(&compressed(b"NOP\n", false, FlushCompress::Finish)[..]);
            wire.put_slice(b"behind");
            let mut plain = BytesMut::new();
            assert_eq!(decoder.decode(&mut wire, &mut plain, 2), Ok(2));
            assert!(!decoder.until_flush || !decoder.has_ended());
            assert_eq!(decoder.decode(&mut wire, &mut plain, 9), Ok(2));
            assert!(decoder.has_ended());
            assert_eq!(decoder.decode(&mut wire, &mut plain, 9), Ok(0));
            assert_eq!((&plain[..], &wire[..]), (&b"NOP\n"[..], &b"behind"[..]));
        }
    }

    #[test]
    fn a_zlib_header_is_an_error_and_named() {
        let wire = compressed(b"NOP\n", true, FlushCompress::Sync);
        for cut in 1..=wire.len() {
            let (plain, error) = decode(Decoder::until_flush(), &wire, &[cut], 100);
            assert_eq!((&plain[..], error), (&b""[..], Some(DeflateError::ZlibHeader)));
        }
        // A reserved type of block.
        assert_eq!(decode_all(&mut Decoder::new(), b"\x06"), Err(DeflateError::Corrupt));
    }

    #[test]
    fn what_came_before_an_error_is_given_out_first() {
        let mut wire = BytesMut::from(&compressed(b"NOP\n", false, FlushCompress::Sync)[..]);
        wire.put_slice(&compressed(b"held", false, FlushCompress::Partial)[..]);
        wire.put_slice(&[0xff; 20]);
        let mut decoder = Decoder::until_flush();
        let mut plain = BytesMut::new();
        while decoder.decode(&mut wire, &mut plain, 3).is_ok() {
            assert!(plain.len() < 1000);
        }
        assert!(plain.starts_with(b"NOP\nheld"), "{plain:?}");
        assert_eq!(decoder.decode(&mut wire, &mut plain, 1), Err(DeflateError::Corrupt));
    }

    #[test]
    fn n4_a_bomb_is_read_in_bounded_steps() {
        const LEN: usize = 10_000_000;
        const ROOM: usize = 10_000;
        let bomb = encoded(9, &vec![0; LEN]);
        assert!(bomb.len() < 11_000, "{}", bomb.len());
        for mut decoder in [Decoder::new(), Decoder::until_flush()] {
            let mut wire = bomb.clone();
            let mut total = 0;
            while total < LEN {
                let mut plain = BytesMut::new();
                let len = decoder.decode(&mut wire, &mut plain, ROOM).unwrap();
                assert!(len == plain.len() && len > 0 && plain.capacity() <= 2 * WINDOW);
                assert!(decoder.held.capacity() <= 2 * WINDOW);
                total += len;
            }
            assert_eq!(decoder.decode(&mut wire, &mut BytesMut::new(), ROOM), Ok(0));
            assert_eq!(decoder.held.capacity(), 0);
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_comes_back_however_it_arrives(
            batches in prop::collection::vec(batch(), 0..6),
            level in 1..=9_u32,
            cuts in prop::collection::vec(1..5000_usize, 1..8),
            room in 1..100_000_usize,
        ) {
            let mut encoder = Encoder::new(level);
            let mut decoder = Decoder::until_flush();
            let mut everything = BytesMut::new();
            for batch in &batches {
                let mut wire = BytesMut::new();
                for part in batch.chunks(10_000) {
                    encoder.encode(part, &mut wire);
                }
                encoder.flush(&mut wire);
                everything.put_slice(&wire);
                // Each flush makes all of it readable.
                let mut plain = BytesMut::new();
                while decoder.decode(&mut wire, &mut plain, room).unwrap() == room {}
                prop_assert_eq!(&plain[..], &batch[..]);
                prop_assert!(wire.is_empty() && decoder.held.capacity() == 0);
            }
            let expected = (batches.concat(), None);
            prop_assert_eq!(decode(Decoder::new(), &everything, &cuts, room), expected.clone());
            prop_assert_eq!(decode(Decoder::until_flush(), &everything, &cuts, room), expected);
        }

        #[test]
        fn garbage_is_refused_alike_however_it_arrives(
            garbage in prop::collection::vec(any::<u8>(), 0..300),
            cuts in prop::collection::vec(1..50_usize, 1..4),
            room in 1..100_usize,
        ) {
            let whole = decode(Decoder::new(), &garbage, &[garbage.len()], 10_000_000);
            prop_assert_eq!(decode(Decoder::new(), &garbage, &cuts, room), whole.clone());
            let (mut plain, error) = decode(Decoder::until_flush(), &garbage, &cuts, room);
            prop_assert_eq!(error, whole.1);
            prop_assert!(whole.0.starts_with(&plain));
            if error.is_some() {
                plain.truncate(whole.0.len());
                prop_assert_eq!(plain, whole.0);
            }
        }
    }

    /// Bytes that compress, and bytes that do not.
    fn batch() -> impl Strategy<Value = Vec<u8>> {
        (0..40_000_usize, any::<u64>(), 1..=255_u8).prop_map(|(len, seed, letters)| {
            let mut random = fastrand::Rng::with_seed(seed);
            std::iter::repeat_with(|| random.u8(0..letters)).take(len).collect()
        })
    }
}
