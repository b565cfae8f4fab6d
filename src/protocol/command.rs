//! The commands of a client, as bytes.
//!
//! Each function appends one command to a buffer. They trust their caller for names and limits
//! ([`Topic`](crate::Topic) and [`Channel`](crate::Channel) are checked types); a body that is longer than
//! the protocol's 32-bit lengths can state would get a wrong one, so every caller in this crate checks it before.

use std::fmt::Write;

use bytes::{BufMut, BytesMut};

use super::MessageId;

/// `IDENTIFY` with its JSON body: see [`IdentifyRequest`](super::IdentifyRequest).
pub fn identify(out: &mut BytesMut, body: &[u8]) {
    out.put_slice(b"IDENTIFY\n");
    put_body(out, body);
}

/// `AUTH` with the secret.
pub fn auth(out: &mut BytesMut, secret: &[u8]) {
    out.put_slice(b"AUTH\n");
    put_body(out, secret);
}

/// `SUB`: subscribes the connection to a channel of a topic.
pub fn sub(out: &mut BytesMut, topic: &str, channel: &str) {
    put_line(out, b"SUB ", &[topic.as_bytes(), b" ", channel.as_bytes()]);
}

/// `PUB`: publishes one message.
pub fn publish(out: &mut BytesMut, topic: &str, body: &[u8]) {
    publish_line(out, topic);
    put_body(out, body);
}

/// All of a `PUB` that comes before the body.
pub(crate) fn publish_line(out: &mut BytesMut, topic: &str) {
    put_line(out, b"PUB ", &[topic.as_bytes()]);
}

/// `DPUB`: publishes one message that nsqd delivers after `delay_ms` milliseconds.
pub fn publish_deferred(out: &mut BytesMut, topic: &str, delay_ms: u64, body: &[u8]) {
    publish_deferred_line(out, topic, delay_ms);
    put_body(out, body);
}

/// All of a `DPUB` that comes before the body.
pub(crate) fn publish_deferred_line(out: &mut BytesMut, topic: &str, delay_ms: u64) {
    out.put_slice(b"DPUB ");
    out.put_slice(topic.as_bytes());
    out.put_u8(b' ');
    put_number(out, delay_ms);
    out.put_u8(b'\n');
}

/// `MPUB`: publishes all bodies or none.
pub fn publish_many<'a>(out: &mut BytesMut, topic: &str, bodies: impl ExactSizeIterator<Item = &'a [u8]> + Clone) {
    publish_many_line(out, topic, bodies.clone().map(<[u8]>::len));
    for body in bodies {
        put_body(out, body);
    }
}

/// All of an `MPUB` of messages with these lengths that comes before the bodies.
pub(crate) fn publish_many_line(out: &mut BytesMut, topic: &str, lens: impl ExactSizeIterator<Item = usize>) {
    put_line(out, b"MPUB ", &[topic.as_bytes()]);
    let count = lens.len() as u32;
    out.put_u32(mpub_body_len(lens) as u32);
    out.put_u32(count);
}

/// The length of the body of an [`MPUB`](publish_many) of messages with these lengths: what nsqd's `max-body-size`
/// bounds.
#[must_use]
pub fn mpub_body_len(lens: impl Iterator<Item = usize>) -> usize {
    4 + lens.map(|len| 4 + len).sum::<usize>()
}

/// `RDY`: how many messages nsqd may have in flight to this connection.
pub fn rdy(out: &mut BytesMut, count: u32) {
    out.put_slice(b"RDY ");
    put_number(out, u64::from(count));
    out.put_u8(b'\n');
}

/// `FIN`: the message is done.
#[inline]
pub fn fin(out: &mut BytesMut, id: &MessageId) {
    // The one command that is sent for every message: in one piece, whose length the compiler knows.
    const NAME: &[u8; 4] = b"FIN ";
    let mut line = [b'\n'; NAME.len() + MessageId::LEN + 1];
    line[..NAME.len()].copy_from_slice(NAME);
    line[NAME.len()..][..MessageId::LEN].copy_from_slice(id.as_bytes());
    out.put_slice(&line);
}

/// `REQ`: nsqd shall deliver the message again, after `delay_ms` milliseconds.
pub fn req(out: &mut BytesMut, id: &MessageId, delay_ms: u64) {
    out.put_slice(b"REQ ");
    out.put_slice(id.as_bytes());
    out.put_u8(b' ');
    put_number(out, delay_ms);
    out.put_u8(b'\n');
}

/// `TOUCH`: the message's timeout begins anew.
pub fn touch(out: &mut BytesMut, id: &MessageId) {
    put_line(out, b"TOUCH ", &[id.as_bytes()]);
}

/// `CLS`: nsqd shall send no more messages; answered with `CLOSE_WAIT`. Only after `SUB`.
pub fn cls(out: &mut BytesMut) {
    out.put_slice(b"CLS\n");
}

/// `NOP`: nothing, the customary answer to a heartbeat.
pub fn nop(out: &mut BytesMut) {
    out.put_slice(b"NOP\n");
}

fn put_line(out: &mut BytesMut, name: &[u8], params: &[&[u8]]) {
    out.reserve(name.len() + params.iter().map(|param| param.len()).sum::<usize>() + 1);
    out.put_slice(name);
    for param in params {
        out.put_slice(param);
    }
    out.put_u8(b'\n');
}

fn put_body(out: &mut BytesMut, body: &[u8]) {
    out.reserve(4 + body.len());
    out.put_u32(body.len() as u32);
    out.put_slice(body);
}

fn put_number(out: &mut BytesMut, number: u64) {
    // Writing to a `BytesMut` grows it and cannot fail.
    let _infallible = write!(out, "{number}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(encode: impl FnOnce(&mut BytesMut)) -> BytesMut {
        let mut out = BytesMut::new();
        encode(&mut out);
        out
    }

    #[test]
    fn each_command_reads_as_nsqd_expects_it() {
        let id = MessageId::new(*b"0123456789abcdef");
        assert_eq!(
            bytes(|out| publish(out, "events", b"hello")),
            &b"PUB events\n\0\0\0\x05hello"[..]
        );
        assert_eq!(
            bytes(|out| publish_many(out, "t", [&b"a"[..], b"bc"].into_iter())),
            &b"MPUB t\n\0\0\0\x0f\0\0\0\x02\0\0\0\x01a\0\0\0\x02bc"[..]
        );
        assert_eq!(
            bytes(|out| publish_deferred(out, "t", 1500, b"x")),
            &b"DPUB t 1500\n\0\0\0\x01x"[..]
        );
        assert_eq!(bytes(|out| identify(out, b"{}")), &b"IDENTIFY\n\0\0\0\x02{}"[..]);
        assert_eq!(bytes(|out| auth(out, b"s")), &b"AUTH\n\0\0\0\x01s"[..]);
        assert_eq!(bytes(|out| sub(out, "t", "c")), &b"SUB t c\n"[..]);
        assert_eq!(bytes(|out| rdy(out, 2500)), &b"RDY 2500\n"[..]);
        assert_eq!(bytes(|out| fin(out, &id)), &b"FIN 0123456789abcdef\n"[..]);
        assert_eq!(bytes(|out| req(out, &id, 90_000)), &b"REQ 0123456789abcdef 90000\n"[..]);
        assert_eq!(bytes(|out| touch(out, &id)), &b"TOUCH 0123456789abcdef\n"[..]);
        assert_eq!(bytes(cls), &b"CLS\n"[..]);
        assert_eq!(bytes(nop), &b"NOP\n"[..]);
    }
}
