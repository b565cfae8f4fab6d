//! Bytes to frames and commands to bytes.

use std::hint::black_box;

use async_nsq::protocol::{self, Frame, FrameDecoder, MessageId, command, encode_frame};
use bytes::{Bytes, BytesMut};

use crate::Result;
use crate::nsqd::{BODY, message};

/// About what one read of a busy connection brings.
const READ_LEN: usize = 64 * 1024;

pub(crate) fn decode_messages(messages: u64) -> Result<()> {
    decode(&Frame::Message(message(1)), messages)
}

pub(crate) fn decode_answers(answers: u64) -> Result<()> {
    decode(&Frame::Response(Bytes::from_static(protocol::OK)), answers)
}

fn decode(frame: &Frame, frames: u64) -> Result<()> {
    let mut read = BytesMut::new();
    let mut decoder = FrameDecoder::default();
    let mut left = frames;
    encode_frame(frame, &mut read);
    let per_read = (READ_LEN / read.len()) as u64;
    let read = read.repeat(per_read as usize);
    let mut buffer = BytesMut::with_capacity(2 * READ_LEN);
    while left > 0 {
        buffer.extend_from_slice(&read);
        for frame in decoder.decode(&mut buffer) {
            _ = black_box(frame?);
        }
        left = left.saturating_sub(per_read);
    }
    Ok(())
}

pub(crate) fn encode_fin(messages: u64) -> Result<()> {
    let id: MessageId = message(1).id;
    encode(messages, |out| command::fin(out, black_box(&id)))
}

pub(crate) fn encode_pub(messages: u64) -> Result<()> {
    encode(messages, |out| {
        command::publish(out, black_box("orders"), black_box(BODY))
    })
}

pub(crate) fn encode_mpub(messages: u64) -> Result<()> {
    let bodies = [BODY; 100];
    encode(messages / 100, |out| {
        command::publish_many(out, black_box("orders"), black_box(&bodies).iter().copied());
    })
}

/// As in a connection, one buffer serves again and again.
fn encode(times: u64, mut command: impl FnMut(&mut BytesMut)) -> Result<()> {
    let mut out = BytesMut::with_capacity(2 * READ_LEN);
    for _ in 0..times {
        if out.len() > READ_LEN {
            out.clear();
        }
        command(&mut out);
    }
    black_box(&out);
    Ok(())
}
