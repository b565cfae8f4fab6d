//! What snappy and deflate cost by themselves: plain bytes to a stream and back, in batches as a connection writes them.
#![expect(missing_docs, reason = "criterion's macros make public items")]

use std::hint::black_box;

use async_nsq::protocol::command;
use async_nsq::transport::{deflate, snappy};
use bytes::BytesMut;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

#[path = "shared/body.rs"]
mod body;

/// The messages of all batches together are larger than the window of any compression: a batch has nothing in common with
/// the one before but the names in its messages.
const BATCHES: usize = 10;
const BATCH: usize = 100;

/// How much a connection reads from the stream at once, and how much it takes of what that becomes.
const READ_LEN: usize = 8 * 1024;
const ROOM: usize = 32 * 1024;

/// Each is what one write of a busy producer takes.
fn batches() -> Vec<BytesMut> {
    let mut random = fastrand::Rng::with_seed(1);
    let batch = |_| {
        let bodies: Vec<String> = (0..BATCH).map(|_| body::event(&mut random, 200)).collect();
        let mut batch = BytesMut::new();
        command::publish_many(&mut batch, "orders", bodies.iter().map(String::as_bytes));
        batch
    };
    (0..BATCHES).map(batch).collect()
}

fn compression(criterion: &mut Criterion) {
    measure(
        criterion,
        "snappy",
        |batches, wire| {
            let mut encoder = snappy::Encoder::new();
            for batch in batches {
                encoder.encode(batch, wire);
                encoder.flush(wire);
            }
        },
        |wire| {
            let mut decoder = snappy::Decoder::new();
            read(wire, |arrived, plain| decoder.decode(arrived, plain, ROOM).ok())
        },
    );
    for level in [1, 6] {
        measure(
            criterion,
            &format!("deflate, level {level}"),
            |batches, wire| {
                let mut encoder = deflate::Encoder::new(level);
                for batch in batches {
                    encoder.encode(batch, wire);
                    encoder.flush(wire);
                }
            },
            |wire| {
                let mut decoder = deflate::Decoder::new();
                read(wire, |arrived, plain| decoder.decode(arrived, plain, ROOM).ok())
            },
        );
    }
}

/// `encode` makes a stream of the batches, `decode` reads it and says how many plain bytes there were.
fn measure(
    criterion: &mut Criterion,
    name: &str,
    encode: impl Fn(&[BytesMut], &mut BytesMut),
    decode: impl Fn(&[u8]) -> usize,
) {
    let batches = batches();
    let plain: usize = batches.iter().map(|batch| batch.len()).sum();
    let mut wire = BytesMut::new();
    encode(&batches, &mut wire);
    assert_eq!(decode(&wire), plain, "{name} reads what it has written");

    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Bytes(plain as u64));
    group.bench_function("decode", |bencher| bencher.iter(|| decode(black_box(&wire))));
    group.bench_function("encode", |bencher| {
        bencher.iter(|| {
            wire.clear();
            encode(black_box(&batches), &mut wire);
        });
    });
    group.finish();
}

/// Lets `wire` arrive in pieces and counts what `decode` makes of them.
fn read(wire: &[u8], mut decode: impl FnMut(&mut BytesMut, &mut BytesMut) -> Option<usize>) -> usize {
    let mut arrived = BytesMut::with_capacity(2 * READ_LEN);
    let mut plain = BytesMut::with_capacity(ROOM);
    let mut total = 0;
    for piece in wire.chunks(READ_LEN) {
        arrived.extend_from_slice(piece);
        while let Some(len) = decode(&mut arrived, &mut plain) {
            total += len;
            plain.clear();
            if len < ROOM {
                break;
            }
        }
    }
    total
}

criterion_group!(benches, compression);
criterion_main!(benches);
