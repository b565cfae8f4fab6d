//! Whatever arrives and however it is split: the frames are the same, and nothing panics.
#![no_main]

use async_nsq::protocol::{Frame, FrameDecoder, FrameError, encode_frame};
use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;

/// Small, so that the fuzzer reaches it.
const MAX_MSG_SIZE: usize = 70_000;

fuzz_target!(|input: (Vec<u8>, Vec<u8>)| {
    let (bytes, cuts) = input;
    let whole = decode_whole(&bytes);
    assert_eq!(decode_split(&bytes, &cuts), whole);
    assert_eq!(decode_one_by_one(&bytes), whole);

    // What was decoded encodes to what was read.
    let mut encoded = BytesMut::new();
    for frame in whole.iter().flatten() {
        encode_frame(frame, &mut encoded);
    }
    assert!(bytes.starts_with(&encoded));
});

type Decoded = Vec<Result<Frame, FrameError>>;

fn decode_whole(bytes: &[u8]) -> Decoded {
    let mut buffer = BytesMut::from(bytes);
    FrameDecoder::new(MAX_MSG_SIZE).decode(&mut buffer).collect()
}

fn decode_split(bytes: &[u8], cuts: &[u8]) -> Decoded {
    let mut decoder = FrameDecoder::new(MAX_MSG_SIZE);
    let mut buffer = BytesMut::new();
    let mut frames = Decoded::new();
    let mut rest = bytes;
    let mut cuts = cuts.iter().cycle();
    while !rest.is_empty() && !frames.last().is_some_and(Result::is_err) {
        let len = cuts.next().map_or(rest.len(), |cut| usize::from(*cut) + 1).min(rest.len());
        buffer.extend_from_slice(&rest[..len]);
        rest = &rest[len..];
        frames.extend(decoder.decode(&mut buffer));
        assert!(decoder.missing() <= MAX_MSG_SIZE + 34, "more is asked for than the limit allows");
    }
    frames
}

fn decode_one_by_one(bytes: &[u8]) -> Decoded {
    let mut decoder = FrameDecoder::new(MAX_MSG_SIZE);
    let mut buffer = BytesMut::from(bytes);
    let mut frames = Decoded::new();
    while let Some(frame) = decoder.decode_one(&mut buffer).transpose() {
        let failed = frame.is_err();
        frames.push(frame);
        if failed {
            break;
        }
    }
    frames
}
