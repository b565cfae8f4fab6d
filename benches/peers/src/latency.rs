//! How long a message takes from the write that publishes it to the handler.
//!
//! The harness publishes at a steady rate over a plain socket while the client at work is a consumer in a process of its
//! own. Each body begins with the time of its write, on the clock that all processes share: nanoseconds since 1970, eight
//! bytes, most significant first.
//!
//! If one handler is to block its thread meanwhile, it is all other messages that are timed.

use std::convert::Infallible;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant, SystemTime};

use async_nsq::{ConsumerBuilder, Message, protocol};
use bytes::BytesMut;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::Result;
use crate::ours::DEADLINE;
use crate::span::{Clock, Span};

/// Handled before the clock starts, in parts of a second's messages: one in so many. What has gathered while the client
/// connected is among them.
const WARM_UP: u64 = 2;

/// Microseconds that so many of a span's messages took at most. The Go program prints the same fields.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

/// Publishes until it is stopped.
pub(crate) struct Publisher {
    stopped: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Publisher {
    pub(crate) fn start(address: SocketAddr, topic: &str, body: Vec<u8>, rate: u32) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let (shared, topic) = (Arc::clone(&stopped), topic.to_owned());
        let thread = thread::spawn(move || publish(address, &topic, body, rate, &shared));
        Self { stopped, thread }
    }

    pub(crate) fn stop(self) -> Result<()> {
        self.stopped.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| "the publisher panicked")?
    }
}

/// Wakes up for each message that is due, and catches up when it wakes up late. What it publishes late is stamped late:
/// the time that a message waits here is none of the client's.
fn publish(address: SocketAddr, topic: &str, mut body: Vec<u8>, rate: u32, stopped: &AtomicBool) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.write_all(&protocol::MAGIC[..])?;
    let mut answers = stream.try_clone()?;
    // Until nsqd closes the connection, so that it never waits for us to read its answers.
    thread::spawn(move || io::copy(&mut answers, &mut io::sink()));
    let mut commands = BytesMut::new();
    let (started, mut sent) = (Instant::now(), 0);
    while !stopped.load(Ordering::Relaxed) {
        commands.clear();
        let due = (started.elapsed().as_secs_f64() * f64::from(rate)) as u64;
        while sent < due {
            body[..8].copy_from_slice(&now().to_be_bytes());
            protocol::command::publish(&mut commands, topic, &body);
            sent += 1;
        }
        stream.write_all(&commands)?;
        let next = started + Duration::from_secs_f64((sent + 1) as f64 / f64::from(rate));
        sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}

/// What a consumer notes of each message.
pub(crate) struct Record {
    /// How many are still to come before the clock starts.
    warm_up: u64,
    messages: u64,
    clock: Option<Clock>,
    nanoseconds: Vec<u64>,
}

impl Record {
    pub(crate) fn new(messages: u64, rate: u32) -> Self {
        Self {
            warm_up: u64::from(rate) / WARM_UP,
            messages,
            clock: None,
            nanoseconds: Vec::with_capacity(messages as usize),
        }
    }

    /// Notes one that is handled now, and returns what all have taken when it is the last.
    pub(crate) fn handled(&mut self, body: &[u8]) -> Option<Span> {
        let published = u64::from_be_bytes(*body.first_chunk()?);
        if self.warm_up > 0 {
            self.warm_up -= 1;
            return None;
        }
        let clock = *self.clock.get_or_insert_with(Clock::start);
        self.nanoseconds.push(now().saturating_sub(published));
        (self.nanoseconds.len() as u64 == self.messages).then(|| {
            let span = clock.stop(self.messages);
            self.nanoseconds.sort_unstable();
            let at = |part: f64| {
                let index = ((self.nanoseconds.len() - 1) as f64 * part) as usize;
                self.nanoseconds.get(index).copied().unwrap_or(0) as f64 / 1e3
            };
            Span {
                latency: Some(Latency {
                    p50: at(0.5),
                    p99: at(0.99),
                    p999: at(0.999),
                    max: at(1.0),
                }),
                ..span
            }
        })
    }
}

/// What the handlers of a client on tokio share.
pub(crate) struct Handling {
    record: Mutex<Record>,
    /// How long the first one after the warm-up blocks its thread, as one does that calls a library without futures. Its
    /// own message is not noted.
    block: Option<Duration>,
    blocked: AtomicBool,
    done: mpsc::Sender<Span>,
}

impl Handling {
    /// With a handler that blocks for so many milliseconds, if there is to be one. Also returns where the span will come.
    pub(crate) fn new(record: Record, block: Option<u64>) -> (Arc<Self>, mpsc::Receiver<Span>) {
        let (done, spans) = mpsc::channel(1);
        let handling = Self {
            record: Mutex::new(record),
            block: block.map(Duration::from_millis),
            blocked: AtomicBool::new(false),
            done,
        };
        (Arc::new(handling), spans)
    }

    /// What the handler of a message does.
    pub(crate) fn handle(&self, body: &[u8]) {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(block) = self
            .block
            .filter(|_| record.warm_up == 0 && !self.blocked.swap(true, Ordering::Relaxed))
        {
            drop(record);
            sleep(block);
        } else if let Some(span) = record.handled(body) {
            // It is once in a run that there is a span.
            _ = self.done.try_send(span);
        }
    }
}

/// This crate as the consumer.
pub(crate) async fn consume(builder: ConsumerBuilder, record: Record, block: Option<u64>) -> Result<Span> {
    let (handling, mut spans) = Handling::new(record, block);
    let consumer = builder
        .start(move |message: Message| {
            handling.handle(message.body());
            async { Ok::<(), Infallible>(()) }
        })
        .await?;
    let span = spans.recv().await.ok_or("the consumer ended")?;
    consumer.shutdown(DEADLINE).await;
    Ok(span)
}
