//! Compression as a client does it, by other crates' codecs than those of the test broker's own transport, so that both
//! sides of a line cannot be wrong together.

use std::io::{Read as _, Write as _};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use snap::{read::FrameDecoder, write::FrameEncoder};

use super::step::Flush;

/// Begins every snappy stream.
const IDENTIFIER: &[u8] = b"\xff\x06\x00\x00sNaPpY";

/// An uncompressed chunk of one byte with a checksum that is not its own.
const BAD_CHUNK: &[u8] = b"\x01\x05\x00\x00\x00\x00\x00\x00x";

/// More than any frame of a line, for one that decompresses without end.
const LIMIT: usize = 256 * 1024 * 1024;

pub(crate) enum Codec {
    Snappy(Box<Snappy>),
    Deflate(Box<Deflate>),
}

impl Codec {
    pub(crate) fn snappy() -> Self {
        Self::Snappy(Box::new(Snappy {
            encoder: FrameEncoder::new(Vec::new()),
            input: Vec::new(),
            identified: false,
        }))
    }

    pub(crate) fn deflate() -> Self {
        Self::Deflate(Box::new(Deflate {
            compress: Compress::new(Compression::new(6), false),
            decompress: Decompress::new(false),
            flush: Flush::Sync,
        }))
    }

    pub(crate) fn encode(&mut self, plain: &[u8]) -> Vec<u8> {
        match self {
            Self::Snappy(snappy) => snappy.encode(plain),
            Self::Deflate(deflate) => deflate.encode(plain),
        }
    }

    /// Takes what came and appends what it says.
    pub(crate) fn decode(&mut self, input: &[u8], plain: &mut Vec<u8>) -> Result<(), String> {
        match self {
            Self::Snappy(snappy) => snappy.decode(input, plain),
            Self::Deflate(deflate) => deflate.decode(input, plain),
        }
    }

    pub(crate) fn set_flush(&mut self, flush: Flush) -> Result<(), String> {
        match self {
            Self::Deflate(deflate) => deflate.flush = flush,
            Self::Snappy(_) => return Err("snappy has only one way to flush".to_owned()),
        }
        Ok(())
    }

    /// A snappy chunk whose checksum is wrong, behind an identifier.
    pub(crate) fn bad_chunk() -> Vec<u8> {
        [IDENTIFIER, BAD_CHUNK].concat()
    }
}

pub(crate) struct Snappy {
    encoder: FrameEncoder<Vec<u8>>,
    input: Vec<u8>,
    identified: bool,
}

impl Snappy {
    fn encode(&mut self, plain: &[u8]) -> Vec<u8> {
        self.encoder.write_all(plain).expect("a buffer takes everything");
        self.encoder.flush().expect("a buffer takes everything");
        std::mem::take(self.encoder.get_mut())
    }

    fn decode(&mut self, input: &[u8], plain: &mut Vec<u8>) -> Result<(), String> {
        self.input.extend(input);
        while let Some(header) = self.input.first_chunk::<4>() {
            let length = 4 + u32::from_le_bytes([header[1], header[2], header[3], 0]) as usize;
            if self.input.len() < length {
                return Ok(());
            }
            let chunk: Vec<u8> = self.input.drain(..length).collect();
            if chunk == IDENTIFIER {
                self.identified = true;
                continue;
            }
            if !self.identified {
                return Err("a snappy stream without its identifier".to_owned());
            }
            let stream = [IDENTIFIER, &chunk].concat();
            let mut decoder = FrameDecoder::new(&stream[..]);
            decoder.read_to_end(plain).map_err(|error| format!("snappy: {error}"))?;
        }
        Ok(())
    }
}

pub(crate) struct Deflate {
    compress: Compress,
    decompress: Decompress,
    flush: Flush,
}

impl Deflate {
    fn encode(&mut self, plain: &[u8]) -> Vec<u8> {
        let flush = match self.flush {
            Flush::Partial => FlushCompress::Partial,
            Flush::Sync => FlushCompress::Sync,
            Flush::Full => FlushCompress::Full,
            Flush::Finish => FlushCompress::Finish,
        };
        // Room for everything at once: a flush that has to be continued begins another block.
        let mut output = Vec::with_capacity(plain.len() + plain.len() / 1000 + 1024);
        let status = self.compress.compress_vec(plain, &mut output, flush);
        status.expect("a compressor that is not finished compresses");
        output
    }

    fn decode(&mut self, mut input: &[u8], plain: &mut Vec<u8>) -> Result<(), String> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let (read, written) = (self.decompress.total_in(), self.decompress.total_out());
            let status = self.decompress.decompress(input, &mut buffer, FlushDecompress::None);
            let status = status.map_err(|error| format!("deflate: {error}"))?;
            input = &input[(self.decompress.total_in() - read) as usize..];
            let written = (self.decompress.total_out() - written) as usize;
            plain.extend(&buffer[..written]);
            if plain.len() > LIMIT {
                return Err("deflate: more than any line is about".to_owned());
            }
            match status {
                Status::StreamEnd => return Ok(()),
                // Nothing more to read, and nothing is held back.
                _ if input.is_empty() && written < buffer.len() => return Ok(()),
                Status::BufError => return Ok(()),
                Status::Ok => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(mut client: Codec, mut server: Codec) {
        let texts = [
            b"one".to_vec(),
            vec![b'a'; 200_000],
            (0..100_000_u32).map(|i| i.wrapping_mul(i) as u8).collect(),
        ];
        for text in texts {
            let mut plain = Vec::new();
            for byte in client.encode(&text).chunks(7) {
                server.decode(byte, &mut plain).unwrap();
            }
            assert_eq!(plain, text);
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        there_and_back(Codec::snappy(), Codec::snappy());
        there_and_back(Codec::deflate(), Codec::deflate());
    }

    #[test]
    fn the_texts_that_nsqd_sends_are_decoded() {
        let snappy = b"\xff\x06\x00\x00sNaPpY\x01\x0e\x00\x00\x26\x98\x2b\xcf\x00\x00\x00\x06\x00\x00\x00\x00OK";
        let deflate = b"\x62\x60\x60\x60\x63\x60\x60\x60\xf0\xf7\x06\x00\x00\x00\xff\xff\x00\x00\x00\xff\xff";
        for (mut codec, bytes) in [(Codec::snappy(), &snappy[..]), (Codec::deflate(), &deflate[..])] {
            let mut plain = Vec::new();
            codec.decode(bytes, &mut plain).unwrap();
            assert_eq!(plain, b"\0\0\0\x06\0\0\0\0OK");
        }
    }

    #[test]
    fn a_wrong_checksum_and_a_missing_identifier_are_noticed() {
        let plain = &mut Vec::new();
        assert!(Codec::snappy().decode(&Codec::bad_chunk(), plain).is_err());
        assert!(Codec::snappy().decode(BAD_CHUNK, plain).is_err());
    }
}
