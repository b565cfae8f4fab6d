//! The least that any client on tokio can do with one message in flight: one spawned task that writes, reads until there
//! is an answer, and does no more. What it takes longer than the blocking socket is the runtime's.

use async_nsq::protocol::{self, IdentifyRequest};
use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::job::{Job, Work};
use crate::span::{Clock, Span};
use crate::{Result, raw};

pub(crate) async fn be(job: Job, bodies: &'static [Bytes]) -> Result<Span> {
    // A task, since what the runtime blocks on is driven by no worker.
    tokio::spawn(async move {
        match job.work {
            Work::Publish { batch, in_flight: 1 } => publish(&job, bodies, batch).await,
            Work::Consume { max_in_flight: 1 } => consume(&job).await,
            _ => Err("this client does one message at a time, or one batch".into()),
        }
    })
    .await?
}

async fn publish(job: &Job, bodies: &[Bytes], batch: usize) -> Result<Span> {
    let mut command = BytesMut::new();
    let topic = &job.topics[0];
    match batch {
        1 => protocol::command::publish(&mut command, topic, &bodies[0]),
        _ => protocol::command::publish_many(&mut command, topic, bodies.iter().take(batch).map(Bytes::as_ref)),
    }
    let mut connection = Connection::open(job, &raw::request(1)).await?;
    // The first creates the topic.
    connection.ask(&command).await?;
    let calls = job.messages / batch as u64;
    let clock = Clock::start();
    for _ in 0..calls {
        connection.ask(&command).await?;
    }
    Ok(clock.stop(calls * batch as u64))
}

async fn consume(job: &Job) -> Result<Span> {
    let mut connection = Connection::open(job, &raw::request(1)).await?;
    connection
        .ask(format!("SUB {} bench\n", job.topics[0]).as_bytes())
        .await?;
    connection.stream.write_all(b"RDY 1\n").await?;
    let mut fin = *b"FIN ................\n";
    let mut clock = None;
    for _ in 0..job.messages {
        let message = connection.frame(2).await?;
        clock.get_or_insert_with(Clock::start);
        fin[4..20].copy_from_slice(&message[10..26]);
        connection.stream.write_all(&fin).await?;
    }
    Ok(clock.ok_or("nothing to consume")?.stop(job.messages))
}

pub(crate) struct Connection {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Connection {
    pub(crate) async fn open(job: &Job, request: &IdentifyRequest) -> Result<Self> {
        let stream = TcpStream::connect(job.nsqd).await?;
        stream.set_nodelay(true)?;
        let mut connection = Self {
            stream,
            buffer: BytesMut::with_capacity(raw::READ),
        };
        let mut out = BytesMut::from(&protocol::MAGIC[..]);
        protocol::command::identify(&mut out, &request.to_json());
        connection.ask(&out).await?;
        Ok(connection)
    }

    /// The socket, and what is read and not yet looked at.
    pub(crate) fn into_parts(self) -> (TcpStream, BytesMut) {
        (self.stream, self.buffer)
    }

    /// Sends a command and waits for its answer.
    pub(crate) async fn ask(&mut self, command: &[u8]) -> Result<()> {
        self.stream.write_all(command).await?;
        self.frame(0).await.map(drop)
    }

    /// Reads until there is a frame of this type, and answers heartbeats meanwhile.
    async fn frame(&mut self, wanted: u32) -> Result<BytesMut> {
        loop {
            match self.next_frame() {
                None if self.stream.read_buf(&mut self.buffer).await? == 0 => {
                    return Err("nsqd closed the connection".into());
                }
                None => {}
                Some((0, data)) if data == protocol::HEARTBEAT => self.stream.write_all(b"NOP\n").await?,
                Some((kind, data)) if kind == wanted => return Ok(data),
                Some((_, data)) => return Err(format!("nsqd refused: {}", data.escape_ascii()).into()),
            }
        }
    }

    fn next_frame(&mut self) -> Option<(u32, BytesMut)> {
        let size = u32::from_be_bytes(*self.buffer.first_chunk()?) as usize;
        if self.buffer.len() < 4 + size {
            return None;
        }
        self.buffer.advance(4);
        let mut frame = self.buffer.split_to(size);
        let kind = frame.get_u32();
        Some((kind, frame))
    }
}
