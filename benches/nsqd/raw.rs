//! The least that a client could do: a blocking socket, no checks, no bookkeeping, one connection in a straight loop.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use async_nsq::protocol::{self, IdentifyRequest};
use bytes::{Bytes, BytesMut};

use crate::span::{Clock, Span};
use crate::{LARGE_BUFFER_FROM, Result};

pub(crate) const READ: usize = 64 * 1024;

/// Sends so many batches, each as one command, with `in_flight` of them unanswered. The bodies are of one length.
pub(crate) fn publish(
    address: SocketAddr,
    topic: &str,
    bodies: &[Bytes],
    calls: u64,
    batch: usize,
    in_flight: u32,
) -> Result<Span> {
    let mut bodies = bodies.iter().cycle();
    let mut burst = BytesMut::new();
    for _ in 0..in_flight {
        let batch: Vec<&[u8]> = bodies.by_ref().take(batch).map(Bytes::as_ref).collect();
        match batch[..] {
            [body] => protocol::command::publish(&mut burst, topic, body),
            _ => protocol::command::publish_many(&mut burst, topic, batch.into_iter()),
        }
    }
    let command_len = burst.len() / in_flight as usize;
    let mut connection = Connection::open(address, &IdentifyRequest::default())?;
    // The first creates the topic.
    connection.stream.write_all(&burst[..command_len])?;
    connection.expect_ok()?;
    let clock = Clock::start();
    let (mut sent, mut answered) = (0, 0);
    while answered < calls {
        let room = (u64::from(in_flight) - (sent - answered)).min(calls - sent);
        connection.stream.write_all(&burst[..command_len * room as usize])?;
        sent += room;
        answered += connection.read_oks()?;
    }
    Ok(clock.stop(calls * batch as u64))
}

/// Finishes so many messages with RDY `max_in_flight`.
pub(crate) fn consume(address: SocketAddr, topic: &str, count: u64, max_in_flight: u32) -> Result<Span> {
    handle(address, topic, max_in_flight, counter(count))
}

/// A handler that times so many messages, from the first to the last.
pub(crate) fn counter(count: u64) -> impl FnMut(&[u8]) -> Option<Span> {
    let (mut clock, mut finished) = (None, 0);
    move |_| {
        let clock = clock.get_or_insert_with(Clock::start);
        finished += 1;
        (finished == count).then(|| clock.stop(count))
    }
}

/// Finishes messages with RDY `max_in_flight` until the handler returns something for a message's body.
pub(crate) fn handle<T>(
    address: SocketAddr,
    topic: &str,
    max_in_flight: u32,
    mut handler: impl FnMut(&[u8]) -> Option<T>,
) -> Result<T> {
    let mut subscription = Subscription::open(address, topic, max_in_flight)?;
    loop {
        if let Some(result) = subscription.turn(&mut handler)? {
            return Ok(result);
        }
    }
}

/// Equal terms: what the consumer asks for by default.
pub(crate) fn request(max_in_flight: u32) -> IdentifyRequest {
    IdentifyRequest {
        output_buffer_size: (max_in_flight >= LARGE_BUFFER_FROM).then_some(65_536),
        output_buffer_timeout: Some(25),
        ..IdentifyRequest::default()
    }
}

/// A connection that messages come from.
pub(crate) struct Subscription {
    pub(crate) connection: Connection,
    fins: Vec<u8>,
}

impl Subscription {
    pub(crate) fn open(address: SocketAddr, topic: &str, max_in_flight: u32) -> Result<Self> {
        let mut connection = Connection::open(address, &request(max_in_flight))?;
        writeln!(connection.stream, "SUB {topic} bench")?;
        connection.expect_ok()?;
        writeln!(connection.stream, "RDY {max_in_flight}")?;
        Ok(Self {
            connection,
            fins: Vec::with_capacity(READ),
        })
    }

    /// Reads once, and finishes what has come in one write. Returns the first thing that the handler does.
    pub(crate) fn turn<T>(&mut self, handler: &mut impl FnMut(&[u8]) -> Option<T>) -> Result<Option<T>> {
        let mut result = None;
        self.fins.clear();
        self.connection.read()?;
        while let Some((kind, data)) = self.connection.next_frame() {
            match kind {
                2 => {
                    result = result.or(handler(&data[26..]));
                    self.fins.extend_from_slice(b"FIN ");
                    self.fins.extend_from_slice(&data[10..26]);
                    self.fins.push(b'\n');
                }
                0 => self.fins.extend_from_slice(b"NOP\n"),
                _ => return Err(refused(data)),
            }
        }
        self.connection.stream.write_all(&self.fins)?;
        Ok(result)
    }
}

pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
    // What is read and not yet looked at.
    start: usize,
    end: usize,
}

impl Connection {
    fn open(address: SocketAddr, identify: &IdentifyRequest) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let mut connection = Self {
            stream,
            buffer: vec![0; READ],
            start: 0,
            end: 0,
        };
        let mut out = BytesMut::from(&protocol::MAGIC[..]);
        protocol::command::identify(&mut out, &identify.to_json());
        connection.stream.write_all(&out)?;
        connection.expect_ok()?;
        Ok(connection)
    }

    fn expect_ok(&mut self) -> Result<()> {
        match self.read_oks()? {
            1 => Ok(()),
            other => Err(format!("{other} answers instead of one").into()),
        }
    }

    /// Reads until there is an answer, and counts what has come.
    fn read_oks(&mut self) -> Result<u64> {
        let mut answers = 0;
        while answers == 0 {
            self.read()?;
            while let Some((kind, data)) = self.next_frame() {
                if kind != 0 {
                    return Err(refused(data));
                }
                if data != protocol::HEARTBEAT {
                    answers += 1;
                }
            }
        }
        Ok(answers)
    }

    fn read(&mut self) -> Result<()> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        } else if self.end == self.buffer.len() {
            // For a frame that is larger.
            self.buffer.resize(self.end * 2, 0);
        }
        let count = self.stream.read(&mut self.buffer[self.end..])?;
        if count == 0 {
            return Err("nsqd closed the connection".into());
        }
        self.end += count;
        Ok(())
    }

    /// The type and the data of the next frame that is complete.
    fn next_frame(&mut self) -> Option<(u32, &[u8])> {
        let rest = &self.buffer[self.start..self.end];
        let (size, rest) = rest.split_first_chunk()?;
        let frame = rest.get(..u32::from_be_bytes(*size) as usize)?;
        let (kind, data) = frame.split_first_chunk()?;
        self.start += 4 + frame.len();
        Some((u32::from_be_bytes(*kind), data))
    }
}

fn refused(data: &[u8]) -> Box<dyn std::error::Error + Send + Sync> {
    format!("nsqd refused: {}", data.escape_ascii()).into()
}
