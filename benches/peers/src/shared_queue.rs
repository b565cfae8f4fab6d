//! What handlers that wait are measured against: a client with the queue that a client on tokio most simply has. As many
//! workers as handlers may run at once share it and take one message at a time, so that none ever waits behind
//! another's while a worker is free. It does what the protocol wants and no more: no checks, no bookkeeping.

use std::collections::VecDeque;
use std::future::{Future, ready};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nsq::protocol::{Frame, FrameDecoder, HEARTBEAT, Message, command};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use tokio::task::{JoinSet, coop, yield_now};

use crate::job::{Job, Work};
use crate::latency::{Handling, Record};
use crate::raw_tokio::Connection;
use crate::sleep::Sleepers;
use crate::span::Span;
use crate::{Result, raw};

pub(crate) async fn be(job: &Job) -> Result<Span> {
    match job.work {
        Work::Sleep {
            max_in_flight,
            handlers,
            one_in,
            microseconds,
        } => {
            let sleepers = Sleepers::new(job.messages, one_in, Duration::from_micros(microseconds));
            let shared = Arc::clone(&sleepers);
            let handler = move |_| {
                let shared = Arc::clone(&shared);
                async move { shared.handle().await }
            };
            let mut tasks = start(job, max_in_flight, handlers, handler).await?;
            tokio::select! {
                span = sleepers.done() => Ok(span),
                ended = first_to_end(&mut tasks) => Err(ended),
            }
        }
        Work::Latency {
            rate,
            max_in_flight,
            block,
            ..
        } => {
            let (handling, mut spans) = Handling::new(Record::new(job.messages, rate), block);
            let handler = move |body: Bytes| {
                handling.handle(&body);
                ready(())
            };
            let mut tasks = start(job, max_in_flight, max_in_flight, handler).await?;
            tokio::select! {
                span = spans.recv() => span.ok_or_else(|| "nobody handles messages".into()),
                ended = first_to_end(&mut tasks) => Err(ended),
            }
        }
        _ => Err("this client is for handlers that take their time".into()),
    }
}

/// What the connection's tasks and the workers share.
#[derive(Default)]
struct Shared {
    messages: Mutex<VecDeque<Message>>,
    arrived: Notify,
    /// Encoded, to be written.
    answers: Mutex<BytesMut>,
    answered: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Tasks = JoinSet<Result<()>>;

async fn start<F>(
    job: &Job,
    max_in_flight: u32,
    handlers: u32,
    handler: impl Fn(Bytes) -> F + Clone + Send + 'static,
) -> Result<Tasks>
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connection = Connection::open(job, &raw::request(max_in_flight)).await?;
    let mut commands = BytesMut::new();
    command::sub(&mut commands, &job.topics[0], "bench");
    connection.ask(&commands).await?;
    let shared = Arc::new(Shared::default());
    command::rdy(&mut lock(&shared.answers), max_in_flight);
    shared.answered.notify_one();
    let (stream, buffer) = connection.into_parts();
    let (reader, writer) = stream.into_split();
    let mut tasks = Tasks::new();
    tasks.spawn(read(reader, buffer, Arc::clone(&shared)));
    tasks.spawn(write(writer, Arc::clone(&shared)));
    for _ in 0..handlers {
        tasks.spawn(work(Arc::clone(&shared), handler.clone()));
    }
    Ok(tasks)
}

/// Why the client does not go on.
async fn first_to_end(tasks: &mut Tasks) -> Box<dyn std::error::Error + Send + Sync> {
    match tasks.join_next().await {
        Some(Ok(Err(error))) => error,
        other => format!("a task ended: {other:?}").into(),
    }
}

async fn read(mut stream: OwnedReadHalf, mut buffer: BytesMut, shared: Arc<Shared>) -> Result<()> {
    let mut decoder = FrameDecoder::default();
    let mut arrived = Vec::new();
    loop {
        for frame in decoder.decode(&mut buffer) {
            match frame? {
                Frame::Message(message) => arrived.push(message),
                Frame::Response(data) if data == HEARTBEAT => shared.answer(command::nop),
                other => return Err(format!("nsqd answers {other:?}").into()),
            }
        }
        let count = arrived.len();
        lock(&shared.messages).extend(arrived.drain(..));
        (0..count).for_each(|_| shared.arrived.notify_one());
        buffer.reserve(raw::READ);
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err("nsqd closed the connection".into());
        }
    }
}

/// Writes what has gathered, after whoever is about to add to it had a chance.
async fn write(mut stream: OwnedWriteHalf, shared: Arc<Shared>) -> Result<()> {
    let mut commands = BytesMut::new();
    loop {
        shared.answered.notified().await;
        yield_now().await;
        std::mem::swap(&mut commands, &mut *lock(&shared.answers));
        stream.write_all(&commands).await?;
        commands.clear();
    }
}

async fn work<F: Future<Output = ()>>(shared: Arc<Shared>, handler: impl Fn(Bytes) -> F) -> Result<()> {
    loop {
        let message = shared.next().await;
        handler(message.body).await;
        shared.answer(|out| command::fin(out, &message.id));
        // Without it a worker whose handlers never wait would keep its thread.
        coop::consume_budget().await;
    }
}

impl Shared {
    async fn next(&self) -> Message {
        loop {
            if let Some(message) = lock(&self.messages).pop_front() {
                return message;
            }
            self.arrived.notified().await;
        }
    }

    fn answer(&self, encode: impl FnOnce(&mut BytesMut)) {
        let mut answers = lock(&self.answers);
        let first = answers.is_empty();
        encode(&mut answers);
        drop(answers);
        if first {
            self.answered.notify_one();
        }
    }
}
