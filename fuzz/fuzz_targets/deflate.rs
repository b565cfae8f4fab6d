//! Whatever arrives and however it is split: the deflate decoder says the same, within its room, and reads what is encoded.
#![no_main]

use async_nsq::transport::deflate::{Decoder, DeflateError, Encoder};
use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;

/// A few bytes can become very many; so many are enough.
const ENOUGH: usize = 1 << 20;

fuzz_target!(|input: (Vec<u8>, Vec<u8>, u16, u8)| {
    let (bytes, cuts, room, level) = input;
    let room = usize::from(room) + 1;
    let (whole, error) = decode(Decoder::new(), &bytes, &[], ENOUGH);
    if whole.len() < ENOUGH {
        assert_eq!(decode(Decoder::new(), &bytes, &cuts, room), (whole.clone(), error));
        let (held_back, its_error) = decode(Decoder::until_flush(), &bytes, &cuts, room);
        assert_eq!(its_error, error);
        assert!(whole.starts_with(&held_back));
        if error.is_some() {
            assert_eq!(held_back, whole);
        }
    }

    let mut encoder = Encoder::new(u32::from(level));
    let mut wire = BytesMut::new();
    for part in bytes.chunks(room) {
        encoder.encode(part, &mut wire);
        if part[0] % 2 == 0 {
            encoder.flush(&mut wire);
        }
    }
    encoder.flush(&mut wire);
    assert!(wire.ends_with(b"\0\0\xff\xff"));
    assert_eq!(decode(Decoder::until_flush(), &wire, &cuts, room), (bytes, None));
});

fn decode(mut decoder: Decoder, bytes: &[u8], cuts: &[u8], room: usize) -> (Vec<u8>, Option<DeflateError>) {
    let (mut wire, mut plain) = (BytesMut::new(), BytesMut::new());
    let mut rest = bytes;
    let mut cuts = cuts.iter().cycle();
    while !rest.is_empty() && plain.len() < ENOUGH {
        let len = cuts.next().map_or(rest.len(), |cut| usize::from(*cut) + 1);
        let (piece, after) = rest.split_at(len.min(rest.len()));
        wire.extend_from_slice(piece);
        rest = after;
        while plain.len() < ENOUGH {
            let before = plain.len();
            let decoded = decoder.decode(&mut wire, &mut plain, room);
            assert!(plain.len() - before <= room);
            match decoded {
                Err(error) => return (plain.to_vec(), Some(error)),
                Ok(len) if len < room => break,
                Ok(_) => {}
            }
        }
    }
    (plain.to_vec(), None)
}
