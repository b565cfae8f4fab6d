//! Snappy in its framing format, as NSQ speaks it once IDENTIFY has granted `snappy`. Bytes in, bytes out.
//!
//! A stream is a sequence of chunks `[u8 type][u24 length, little endian][body]`. It begins with an identifier; a chunk
//! of data has a checksum and at most [`MAX_CHUNK_PLAIN`] bytes.
//!
//! ```
//! use async_nsq::transport::snappy::{Decoder, Encoder};
//! use bytes::BytesMut;
//!
//! let mut wire = BytesMut::new();
//! Encoder::new().encode(b"SUB orders billing\n", &mut wire);
//!
//! let mut decoder = Decoder::new();
//! let mut plain = BytesMut::new();
//! decoder.decode(&mut wire, &mut plain, 4096)?;
//! assert_eq!(&plain[..], b"SUB orders billing\n");
//! # Ok::<(), async_nsq::transport::snappy::SnappyError>(())
//! ```

use std::fmt;

use bytes::{Buf, BufMut, BytesMut};
use snap::raw;

use super::crc32c;

/// The largest number of plain bytes in one chunk.
pub const MAX_CHUNK_PLAIN: usize = 65_536;

/// The largest chunk that a reader has to take, and that nsqd takes: the checksum and the worst compression of a full
/// chunk. It bounds padding and chunks to skip, too.
const MAX_CHUNK_LEN: usize = CHECKSUM_LEN + 76_490;

const HEADER_LEN: usize = 4;
const CHECKSUM_LEN: usize = 4;

const COMPRESSED: u8 = 0x00;
const UNCOMPRESSED: u8 = 0x01;
const LAST_UNSKIPPABLE: u8 = 0x7f;
const IDENTIFIER: u8 = 0xff;

const IDENTIFIER_BODY: &[u8] = b"sNaPpY";
const IDENTIFIER_CHUNK: &[u8] = b"\xff\x06\0\0sNaPpY";

/// Why bytes are not a snappy stream. It cannot be read on after any of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SnappyError {
    /// The stream does not begin with snappy's identifier: rather, the peer does not speak snappy.
    NoIdentifier,
    /// An identifier chunk does not hold the identifier.
    BadIdentifier,
    /// A chunk has a reserved type that must not be skipped.
    UnknownChunk(u8),
    /// A chunk states more bytes than any chunk may have.
    ChunkTooLong(usize),
    /// A chunk holds more than [`MAX_CHUNK_PLAIN`] bytes once decompressed.
    TooManyPlainBytes(usize),
    /// A chunk of data has no room for its checksum.
    NoChecksum,
    /// A chunk cannot be decompressed.
    Corrupt,
    /// A chunk's bytes do not have the checksum that it states.
    BadChecksum,
}

impl fmt::Display for SnappyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoIdentifier => f.write_str("the snappy stream does not begin with its identifier"),
            Self::BadIdentifier => f.write_str("a snappy identifier chunk holds something else"),
            Self::UnknownChunk(kind) => write!(f, "a snappy chunk has the unknown type {kind:#04x}"),
            Self::ChunkTooLong(len) => {
                write!(f, "a snappy chunk states {len} bytes, the most are {MAX_CHUNK_LEN}")
            }
            Self::TooManyPlainBytes(len) => {
                write!(
                    f,
                    "a snappy chunk holds {len} plain bytes, the most are {MAX_CHUNK_PLAIN}"
                )
            }
            Self::NoChecksum => f.write_str("a snappy chunk ends before its checksum"),
            Self::Corrupt => f.write_str("a snappy chunk cannot be decompressed"),
            Self::BadChecksum => f.write_str("a snappy chunk does not have the checksum that it states"),
        }
    }
}

impl std::error::Error for SnappyError {}

/// Turns plain bytes into a snappy stream.
///
/// It keeps nothing back: each call of [`encode`](Self::encode) makes chunks of its own, as nsqd's writer does. Hand over
/// whole batches, since a chunk costs eight bytes and small ones compress badly.
#[derive(Debug)]
pub struct Encoder {
    identified: bool,
    compressor: raw::Encoder,
}

impl Encoder {
    /// An encoder at the beginning of its stream.
    #[must_use]
    pub fn new() -> Self {
        Self {
            identified: false,
            compressor: raw::Encoder::new(),
        }
    }

    /// Appends `plain` to `wire`, as one chunk per [`MAX_CHUNK_PLAIN`] bytes, after the identifier if these are the
    /// stream's first bytes. A chunk that compression would make less than an eighth smaller stays uncompressed.
    pub fn encode(&mut self, plain: &[u8], wire: &mut BytesMut) {
        for part in plain.chunks(MAX_CHUNK_PLAIN) {
            if !self.identified {
                self.identified = true;
                wire.put_slice(IDENTIFIER_CHUNK);
            }
            self.encode_chunk(part, wire);
        }
    }

    /// Makes everything encoded so far readable for the peer. Nothing is left to do: [`encode`](Self::encode) did it.
    /// It is there so that both codecs are used alike.
    pub fn flush(&mut self, _wire: &mut BytesMut) {}

    fn encode_chunk(&mut self, part: &[u8], wire: &mut BytesMut) {
        let start = wire.len();
        let body = start + HEADER_LEN + CHECKSUM_LEN;
        wire.resize(body + raw::max_compress_len(part.len()), 0);
        let worth_it = part.len() - part.len() / 8;
        // It fails only on more than 4 GiB or a too small target.
        let (kind, len) = match self.compressor.compress(part, &mut wire[body..]) {
            Ok(len) if len < worth_it => (COMPRESSED, len),
            _ => {
                wire[body..body + part.len()].copy_from_slice(part);
                (UNCOMPRESSED, part.len())
            }
        };
        wire.truncate(body + len);
        let mut header = &mut wire[start..body];
        header.put_u8(kind);
        header.put_uint_le((CHECKSUM_LEN + len) as u64, 3);
        header.put_u32_le(crc32c::masked(part));
    }
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

/// Turns a snappy stream into plain bytes, however it arrives.
///
/// It takes what nsqd takes: the identifier first and again at any time, padding and chunks to skip. Everything else that
/// is no data is an error, which is then the decoder's answer for ever.
///
/// A chunk stays in the caller's buffer until all of it has arrived, so that buffer grows to about 75 KiB and a read. The
/// decoder itself holds nothing but, while the caller has no room, the rest of one chunk.
#[derive(Debug, Default)]
pub struct Decoder {
    identified: bool,
    /// How many bytes of a chunk without data are still to come.
    to_skip: usize,
    /// What has been decompressed and did not fit into the caller's room.
    rest: BytesMut,
    failed: Option<SnappyError>,
}

/// What a look at the input brought.
enum Step {
    Done,
    NeedsMore,
}

impl Decoder {
    /// A decoder at the beginning of its stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes what it can off the front of `wire` and appends at most `room` plain bytes to `plain`. Returns how many.
    ///
    /// Fewer than `room` means that more input is needed; `room` means that there may be more already.
    ///
    /// # Errors
    /// [`SnappyError`] if the input is not a snappy stream. What came before the error is in `plain` then, and each further
    /// call fails likewise.
    pub fn decode(&mut self, wire: &mut BytesMut, plain: &mut BytesMut, room: usize) -> Result<usize, SnappyError> {
        let start = plain.len();
        let end = start.saturating_add(room);
        loop {
            self.hand_out(plain, end);
            if plain.len() == end {
                break;
            }
            let step = match self.failed {
                Some(error) => Err(error),
                None => self.read_chunk(wire, plain, end),
            };
            match step {
                Ok(Step::Done) => {}
                Ok(Step::NeedsMore) => break,
                Err(error) => {
                    self.failed = Some(error);
                    return Err(error);
                }
            }
        }
        Ok(plain.len() - start)
    }

    /// Whether the stream may end here: `wire`, which is what the last [`decode`](Self::decode) left, is no part of a
    /// chunk.
    #[must_use]
    pub fn may_end(&self, wire: &[u8]) -> bool {
        wire.is_empty() && self.to_skip == 0 && self.rest.is_empty() && self.failed.is_none()
    }

    fn hand_out(&mut self, plain: &mut BytesMut, end: usize) {
        let len = self.rest.len().min(end - plain.len());
        if len > 0 {
            plain.put(self.rest.split_to(len));
            if self.rest.is_empty() {
                self.rest = BytesMut::new();
            }
        }
    }

    fn read_chunk(&mut self, wire: &mut BytesMut, plain: &mut BytesMut, end: usize) -> Result<Step, SnappyError> {
        let skipped = self.to_skip.min(wire.len());
        wire.advance(skipped);
        self.to_skip -= skipped;
        let Some(&[kind, low, middle, high]) = wire.first_chunk::<HEADER_LEN>() else {
            return Ok(Step::NeedsMore);
        };
        let len = u32::from_le_bytes([low, middle, high, 0]) as usize;
        self.check_header(kind, len)?;
        if kind != COMPRESSED && kind != UNCOMPRESSED && kind != IDENTIFIER {
            wire.advance(HEADER_LEN);
            self.to_skip = len;
            return Ok(Step::Done);
        }
        let Some(body) = wire.get(HEADER_LEN..HEADER_LEN + len) else {
            return Ok(Step::NeedsMore);
        };
        match kind {
            IDENTIFIER if body != IDENTIFIER_BODY => return Err(SnappyError::BadIdentifier),
            IDENTIFIER => self.identified = true,
            _ => self.read_data(kind, body, plain, end)?,
        }
        wire.advance(HEADER_LEN + len);
        Ok(Step::Done)
    }

    /// Judges a chunk before anything is done for it.
    fn check_header(&self, kind: u8, len: usize) -> Result<(), SnappyError> {
        if !self.identified && kind != IDENTIFIER {
            return Err(SnappyError::NoIdentifier);
        }
        if len > MAX_CHUNK_LEN {
            return Err(SnappyError::ChunkTooLong(len));
        }
        match kind {
            COMPRESSED | UNCOMPRESSED if len < CHECKSUM_LEN => Err(SnappyError::NoChecksum),
            UNCOMPRESSED if len - CHECKSUM_LEN > MAX_CHUNK_PLAIN => {
                Err(SnappyError::TooManyPlainBytes(len - CHECKSUM_LEN))
            }
            IDENTIFIER if len != IDENTIFIER_BODY.len() => Err(SnappyError::BadIdentifier),
            COMPRESSED | UNCOMPRESSED => Ok(()),
            ..=LAST_UNSKIPPABLE => Err(SnappyError::UnknownChunk(kind)),
            _ => Ok(()),
        }
    }

    /// Puts a chunk's data into `plain` if it fits there, else aside.
    fn read_data(&mut self, kind: u8, body: &[u8], plain: &mut BytesMut, end: usize) -> Result<(), SnappyError> {
        let (mut checksum, data) = body.split_at(CHECKSUM_LEN);
        let checksum = checksum.get_u32_le();
        let len = match kind {
            COMPRESSED => raw::decompress_len(data).map_err(|_| SnappyError::Corrupt)?,
            _ => data.len(),
        };
        if len > MAX_CHUNK_PLAIN {
            return Err(SnappyError::TooManyPlainBytes(len));
        }
        let target = if len <= end - plain.len() {
            plain
        } else {
            &mut self.rest
        };
        let start = target.len();
        target.resize(start + len, 0);
        let read = read_into(kind, data, &mut target[start..], checksum);
        if read.is_err() {
            target.truncate(start);
        }
        read
    }
}

fn read_into(kind: u8, data: &[u8], target: &mut [u8], checksum: u32) -> Result<(), SnappyError> {
    if kind == COMPRESSED {
        raw::Decoder::new()
            .decompress(data, target)
            .map_err(|_| SnappyError::Corrupt)?;
    } else {
        target.copy_from_slice(data);
    }
    if crc32c::masked(target) == checksum {
        Ok(())
    } else {
        Err(SnappyError::BadChecksum)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OK_FRAME: &[u8] = b"\0\0\0\x06\0\0\0\0OK";

    fn encoded(plain: &[u8]) -> BytesMut {
        let mut wire = BytesMut::new();
        Encoder::new().encode(plain, &mut wire);
        wire
    }

    fn chunk(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut chunk = vec![kind];
        chunk.put_uint_le(body.len() as u64, 3);
        chunk.put_slice(body);
        chunk
    }

    /// A chunk of data with its checksum.
    fn data(kind: u8, data: &[u8], plain: &[u8]) -> Vec<u8> {
        let mut body = crc32c::masked(plain).to_le_bytes().to_vec();
        body.put_slice(data);
        chunk(kind, &body)
    }

    /// Everything that comes out of `wire` when it arrives in pieces of these lengths, and the error that ended it.
    fn decode(wire: &[u8], cuts: &[usize], room: usize) -> (Vec<u8>, Option<SnappyError>) {
        let mut decoder = Decoder::new();
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
                assert!(plain.len() - before <= room);
                match decoded {
                    Err(error) => return (plain.to_vec(), Some(error)),
                    Ok(len) if len < room => break,
                    Ok(len) => assert_eq!(len, room),
                }
            }
            assert!(input.len() < HEADER_LEN + MAX_CHUNK_LEN, "a whole chunk was left");
        }
        (plain.to_vec(), None)
    }

    fn error_of(wire: &[u8]) -> Option<SnappyError> {
        decode(wire, &[1], 100).1
    }

    #[test]
    fn the_first_bytes_are_those_of_nsqd() {
        assert_eq!(
            &encoded(OK_FRAME)[..],
            b"\xff\x06\0\0sNaPpY\x01\x0e\0\0\x26\x98\x2b\xcf\0\0\0\x06\0\0\0\0OK"
        );
    }

    #[test]
    fn nothing_is_written_for_nothing() {
        let mut wire = BytesMut::new();
        let mut encoder = Encoder::new();
        encoder.encode(b"", &mut wire);
        encoder.flush(&mut wire);
        assert!(wire.is_empty());
    }

    #[test]
    fn a_chunk_is_compressed_when_that_saves_an_eighth() {
        let kind = |plain: &[u8]| encoded(plain)[IDENTIFIER_CHUNK.len()];
        assert_eq!(kind(&[b'a'; 1000]), COMPRESSED);
        let mut random = fastrand::Rng::with_seed(1);
        let noise: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(1000).collect();
        assert_eq!(kind(&noise), UNCOMPRESSED);
    }

    #[test]
    fn many_bytes_become_several_chunks() {
        let plain = vec![b'a'; 2 * MAX_CHUNK_PLAIN + 1];
        let wire = encoded(&plain);
        let mut rest = &wire[IDENTIFIER_CHUNK.len()..];
        let mut lens = Vec::new();
        while let Some(header) = rest.first_chunk::<4>() {
            let len = u32::from_le_bytes([header[1], header[2], header[3], 0]) as usize;
            lens.push(raw::decompress_len(&rest[8..4 + len]).unwrap());
            rest = &rest[4 + len..];
        }
        // The last byte saves nothing, and its chunk is plain: its "length" is the letter itself.
        assert_eq!(lens[..2], [MAX_CHUNK_PLAIN, MAX_CHUNK_PLAIN]);
        assert_eq!(lens.len(), 3);
        assert_eq!(decode(&wire, &[1000], usize::MAX / 2), (plain, None));
    }

    #[test]
    fn identifiers_padding_and_chunks_to_skip_are_passed_over() {
        let mut wire = Vec::new();
        for kind in [0xfe, 0x80, 0xfd] {
            wire.put_slice(IDENTIFIER_CHUNK);
            wire.put_slice(&chunk(kind, &[7; 300]));
            wire.put_slice(&chunk(kind, b""));
            wire.put_slice(&data(UNCOMPRESSED, b"ab", b"ab"));
        }
        wire.put_slice(&data(COMPRESSED, &[0], b""));
        assert_eq!(decode(&wire, &[1], 5), (b"ababab".to_vec(), None));
    }

    #[test]
    fn what_is_no_snappy_is_named() {
        let after_identifier = |chunk: &[u8]| error_of(&[IDENTIFIER_CHUNK, chunk].concat());
        assert_eq!(error_of(b"  V2"), Some(SnappyError::NoIdentifier));
        assert_eq!(error_of(&chunk(0xfe, b"x")), Some(SnappyError::NoIdentifier));
        assert_eq!(error_of(&chunk(0xff, b"sNaPpX")), Some(SnappyError::BadIdentifier));
        assert_eq!(error_of(&chunk(0xff, b"sNaPp")), Some(SnappyError::BadIdentifier));
        for kind in [0x02, 0x40, 0x7f] {
            assert_eq!(
                after_identifier(&chunk(kind, b"")),
                Some(SnappyError::UnknownChunk(kind))
            );
        }
        assert_eq!(after_identifier(&chunk(0, b"123")), Some(SnappyError::NoChecksum));
        assert_eq!(after_identifier(&chunk(1, b"123")), Some(SnappyError::NoChecksum));
    }

    #[test]
    fn n4_a_chunk_too_long_is_refused_by_its_header() {
        let after_identifier = |chunk: &[u8]| error_of(&[IDENTIFIER_CHUNK, chunk].concat());
        let longest = MAX_CHUNK_LEN.to_le_bytes();
        for kind in [COMPRESSED, 0xfe, 0x80] {
            let header = |add: u8| [kind, longest[0] + add, longest[1], longest[2]];
            assert_eq!(after_identifier(&header(0)), None);
            assert_eq!(
                after_identifier(&header(1)),
                Some(SnappyError::ChunkTooLong(MAX_CHUNK_LEN + 1))
            );
        }
        assert_eq!(after_identifier(b"\x01\x04\0\x01"), None);
        assert_eq!(
            after_identifier(b"\x01\x05\0\x01"),
            Some(SnappyError::TooManyPlainBytes(MAX_CHUNK_PLAIN + 1))
        );
    }

    #[test]
    fn n4_a_chunk_that_holds_too_much_is_refused() {
        let plain = vec![b'a'; MAX_CHUNK_PLAIN + 1];
        let compressed = raw::Encoder::new().compress_vec(&plain).unwrap();
        let wire = [IDENTIFIER_CHUNK, &data(COMPRESSED, &compressed, &plain)].concat();
        assert_eq!(
            error_of(&wire),
            Some(SnappyError::TooManyPlainBytes(MAX_CHUNK_PLAIN + 1))
        );
        // What it claims is enough.
        let claim = [IDENTIFIER_CHUNK, &data(COMPRESSED, b"\xff\xff\xff\xff\x0f", b"")].concat();
        assert_eq!(error_of(&claim), Some(SnappyError::TooManyPlainBytes(0xffff_ffff)));
    }

    #[test]
    fn what_came_before_an_error_is_handed_out_first() {
        let mut wire = encoded(b"good");
        wire.put_slice(&data(UNCOMPRESSED, b"bad", b"good"));
        assert_eq!(
            decode(&wire, &[wire.len()], 3),
            (b"good".to_vec(), Some(SnappyError::BadChecksum))
        );
        let mut decoder = Decoder::new();
        let mut plain = BytesMut::new();
        let mut input = wire;
        for _ in 0..2 {
            assert_eq!(
                decoder.decode(&mut input, &mut plain, 100),
                Err(SnappyError::BadChecksum)
            );
            assert_eq!(&plain[..], b"good");
        }
        assert!(!decoder.may_end(b""));
    }

    #[test]
    fn a_stream_may_end_between_chunks_only() {
        let wire = [&encoded(b"x")[..], &chunk(0xfe, b"pad")].concat();
        let ends: Vec<usize> = (0..=wire.len())
            .filter(|len| {
                let mut decoder = Decoder::new();
                let mut input = BytesMut::from(&wire[..*len]);
                decoder.decode(&mut input, &mut BytesMut::new(), 100).unwrap();
                decoder.may_end(&input)
            })
            .collect();
        assert_eq!(ends, [0, 10, 19, 26]);
    }

    proptest! {
        #[test]
        fn what_is_encoded_comes_back_however_it_arrives(
            batches in prop::collection::vec(batch(), 0..6),
            cuts in prop::collection::vec(1..5000_usize, 1..8),
            room in 1..100_000_usize,
        ) {
            let mut wire = BytesMut::new();
            let mut encoder = Encoder::new();
            for batch in &batches {
                encoder.encode(batch, &mut wire);
                encoder.flush(&mut wire);
            }
            prop_assert_eq!(decode(&wire, &cuts, room), (batches.concat(), None));
        }

        #[test]
        fn garbage_is_refused_alike_however_it_arrives(
            garbage in prop::collection::vec(any::<u8>(), 0..200),
            identified in any::<bool>(),
            cuts in prop::collection::vec(1..50_usize, 1..4),
            room in 1..100_usize,
        ) {
            let mut wire = if identified { IDENTIFIER_CHUNK.to_vec() } else { Vec::new() };
            wire.extend(garbage);
            let whole = decode(&wire, &[wire.len()], 1_000_000);
            prop_assert_eq!(decode(&wire, &cuts, room), whole);
        }
    }

    /// Bytes that compress, and bytes that do not.
    fn batch() -> impl Strategy<Value = Vec<u8>> {
        (0..150_000_usize, any::<u64>(), 1..=255_u8).prop_map(|(len, seed, letters)| {
            let mut random = fastrand::Rng::with_seed(seed);
            std::iter::repeat_with(|| random.u8(0..letters)).take(len).collect()
        })
    }
}
