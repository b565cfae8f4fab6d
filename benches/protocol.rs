//! What the protocol costs by itself: bytes to frames and commands to bytes, without sockets and tasks.
#![expect(missing_docs, reason = "criterion's macros make public items")]

use std::hint::black_box;

use async_nsq::protocol::{Frame, FrameDecoder, Message, MessageId, command, encode_frame};
use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

const BODY: &[u8] = &[b'x'; 200];

fn message(number: usize) -> Message {
    Message {
        timestamp: 1_700_000_000_000_000_000,
        attempts: 1,
        id: MessageId::new(*format!("{number:016x}").as_bytes().first_chunk().unwrap_or(&[b'0'; 16])),
        body: Bytes::from_static(BODY),
    }
}

/// What one read of a busy connection brings: 64 KiB of messages.
fn decode(criterion: &mut Criterion) {
    let mut read = BytesMut::new();
    let mut messages = 0;
    while read.len() < 64 * 1024 {
        encode_frame(&Frame::Message(message(messages)), &mut read);
        messages += 1;
    }
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(messages as u64));
    group.bench_function("64 KiB of 200-byte messages", |bencher| {
        let mut decoder = FrameDecoder::default();
        bencher.iter_batched_ref(
            || read.clone(),
            |buffer| {
                for frame in decoder.decode(buffer) {
                    _ = black_box(frame);
                }
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn encode(criterion: &mut Criterion) {
    let ids: Vec<_> = (0..1000).map(|number| message(number).id).collect();
    // As in a connection, the buffer serves again and again.
    let mut out = BytesMut::with_capacity(64 * 1024);
    let mut group = criterion.benchmark_group("encode");
    group.throughput(Throughput::Elements(1000));
    group.bench_function("1000 FIN", |bencher| {
        bencher.iter(|| {
            out.clear();
            black_box(&ids).iter().for_each(|id| command::fin(&mut out, id));
        });
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("PUB of 200 bytes", |bencher| {
        bencher.iter(|| {
            out.clear();
            command::publish(&mut out, black_box("orders"), black_box(BODY));
        });
    });
    let bodies = [BODY; 100];
    group.throughput(Throughput::Elements(100));
    group.bench_function("MPUB of 100 times 200 bytes", |bencher| {
        bencher.iter(|| {
            out.clear();
            command::publish_many(&mut out, black_box("orders"), black_box(&bodies).iter().copied());
        });
    });
    group.finish();
}

criterion_group!(benches, decode, encode);
criterion_main!(benches);
