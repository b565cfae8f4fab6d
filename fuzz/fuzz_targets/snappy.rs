//! Whatever arrives and however it is split: the snappy decoder says the same, within its room, and reads what is encoded.
#![no_main]

use async_nsq::transport::snappy::{Decoder, Encoder, SnappyError};
use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<u8>, Vec<u8>, u16)| {
    let (bytes, cuts, room) = input;
    let room = usize::from(room) + 1;
    let whole = decode(&bytes, &[], 1 << 20);
    assert_eq!(decode(&bytes, &cuts, room), whole);
    // Without the identifier little is tried.
    let identified = [b"\xff\x06\0\0sNaPpY", &bytes[..]].concat();
    assert_eq!(decode(&identified, &cuts, room), decode(&identified, &[], 1 << 20));

    let mut wire = BytesMut::new();
    let mut encoder = Encoder::new();
    for part in bytes.chunks(room) {
        encoder.encode(part, &mut wire);
        encoder.flush(&mut wire);
    }
    assert_eq!(decode(&wire, &cuts, room), (bytes, None));
});

fn decode(bytes: &[u8], cuts: &[u8], room: usize) -> (Vec<u8>, Option<SnappyError>) {
    let mut decoder = Decoder::new();
    let (mut wire, mut plain) = (BytesMut::new(), BytesMut::new());
    let mut rest = bytes;
    let mut cuts = cuts.iter().cycle();
    while !rest.is_empty() {
        let len = cuts.next().map_or(rest.len(), |cut| usize::from(*cut) + 1);
        let (piece, after) = rest.split_at(len.min(rest.len()));
        wire.extend_from_slice(piece);
        rest = after;
        loop {
            let before = plain.len();
            let decoded = decoder.decode(&mut wire, &mut plain, room);
            assert!(plain.len() - before <= room);
            match decoded {
                Err(error) => return (plain.to_vec(), Some(error)),
                Ok(len) if len < room => break,
                Ok(_) => {}
            }
        }
        assert!(wire.len() < 76_498, "a whole chunk was left");
    }
    (plain.to_vec(), None)
}
