//! One connection to the raw broker: commands in, responses and messages out.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::ops::Range;

use async_nsq::protocol;
use bytes::Bytes;

const READ: usize = 64 * 1024;

/// How many bytes of messages are written at once, at most.
const WRITE: usize = 64 * 1024;

/// Where a message's id is in its frame: behind size, type, time and attempts.
const ID: Range<usize> = 18..34;

/// What nsqd answers by default, to those who ask for nothing. Every client finds here what it insists on.
const IDENTIFIED: &[u8] = br#"{"max_rdy_count":2500,"version":"1.3.0","max_msg_timeout":900000,"msg_timeout":60000,"tls_v1":false,"deflate":false,"deflate_level":6,"max_deflate_level":6,"snappy":false,"sample_rate":0,"auth_required":false,"output_buffer_size":16384,"output_buffer_timeout":250}"#;

pub(super) struct Connection {
    stream: TcpStream,
    /// Filled up to `end` with what is read and not understood yet: a part of a command.
    buffer: Vec<u8>,
    end: usize,
    /// How much of a body is still to come, and the response to it.
    body: Option<(usize, &'static [u8])>,
    responses: Vec<u8>,
    messages: Messages,
    ready: usize,
    in_flight: usize,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, number: usize, bodies: &[Bytes]) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: vec![0; READ],
            end: 0,
            body: None,
            responses: Vec::new(),
            messages: Messages::encode(&format!("{number:08x}00000000"), bodies),
            ready: 0,
            in_flight: 0,
        })
    }

    pub(super) fn consumes(&self) -> bool {
        self.ready > 0
    }

    /// Reads once, and does what it is told there. An error is the end of the connection.
    pub(super) fn read(&mut self) -> io::Result<()> {
        let count = self.stream.read(&mut self.buffer[self.end..])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.end += count;
        let mut start = 0;
        loop {
            if let Some((left, response)) = self.body.take() {
                let here = left.min(self.end - start);
                start += here;
                if here < left {
                    self.body = Some((left - here, response));
                    break;
                }
                self.respond(response);
            }
            match self.command(start..self.end)? {
                Some(len) => start += len,
                None => break,
            }
        }
        self.buffer.copy_within(start..self.end, 0);
        self.end -= start;
        Ok(())
    }

    /// Does what the command at the beginning says, and returns its length without its body. `None` if only a part of it
    /// is there.
    fn command(&mut self, range: Range<usize>) -> io::Result<Option<usize>> {
        let text = &self.buffer[range];
        if text.starts_with(&protocol::MAGIC[..]) {
            return Ok(Some(protocol::MAGIC.len()));
        }
        let Some(line_len) = text.iter().position(|byte| *byte == b'\n') else {
            return Ok(None);
        };
        let (line, rest) = text.split_at(line_len);
        let mut words = line.split(|byte| *byte == b' ');
        let mut len = line_len + 1;
        match words.next().unwrap_or_default() {
            b"FIN" | b"REQ" => self.in_flight = self.in_flight.saturating_sub(1),
            b"RDY" => self.ready = number(words.next().unwrap_or_default()),
            b"SUB" => self.respond(b"OK"),
            b"CLS" => {
                self.ready = 0;
                self.respond(b"CLOSE_WAIT");
            }
            b"NOP" => {}
            word @ (b"PUB" | b"MPUB" | b"IDENTIFY") => {
                let Some(body_len) = rest[1..].first_chunk() else {
                    return Ok(None);
                };
                len += body_len.len();
                let response = if word == b"IDENTIFY" { IDENTIFIED } else { b"OK" };
                self.body = Some((u32::from_be_bytes(*body_len) as usize, response));
            }
            _ => {
                eprintln!("the raw broker does not know {}", line.escape_ascii());
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        Ok(Some(len))
    }

    fn respond(&mut self, data: &[u8]) {
        self.responses.extend_from_slice(&(4 + data.len() as u32).to_be_bytes());
        self.responses.extend_from_slice(&[0; 4]);
        self.responses.extend_from_slice(data);
    }

    /// Writes all that is due: the responses to the commands of the last read, and as many messages as there is room for.
    pub(super) fn write(&mut self) -> io::Result<()> {
        self.write_responses()?;
        while self.in_flight < self.ready {
            let (count, frames) = self.messages.next(self.ready - self.in_flight);
            self.stream.write_all(frames)?;
            self.in_flight += count;
        }
        Ok(())
    }

    pub(super) fn write_responses(&mut self) -> io::Result<()> {
        if !self.responses.is_empty() {
            self.stream.write_all(&self.responses)?;
            self.responses.clear();
        }
        Ok(())
    }
}

fn number(digits: &[u8]) -> usize {
    let digit = |digit: &u8| usize::from(digit.wrapping_sub(b'0'));
    digits.iter().fold(0, |number, next| number * 10 + digit(next))
}

/// Messages in a row, sent again and again with other ids.
struct Messages {
    frames: Vec<u8>,
    frame_len: usize,
    id: [u8; 16],
}

impl Messages {
    /// The first of the bodies.
    fn encode(first_id: &str, bodies: &[Bytes]) -> Self {
        let frame_len = ID.end + bodies[0].len();
        let mut frames = Vec::new();
        for body in bodies.iter().take((WRITE / frame_len).max(1)) {
            frames.extend_from_slice(&(frame_len as u32 - 4).to_be_bytes());
            frames.extend_from_slice(&2_u32.to_be_bytes());
            frames.extend_from_slice(&1_700_000_000_000_000_000_u64.to_be_bytes());
            frames.extend_from_slice(&1_u16.to_be_bytes());
            frames.extend_from_slice(first_id.as_bytes());
            frames.extend_from_slice(body);
        }
        let mut id = [b'0'; 16];
        id.copy_from_slice(first_id.as_bytes());
        Self { frames, frame_len, id }
    }

    /// So many messages, or fewer, and how many.
    fn next(&mut self, wanted: usize) -> (usize, &[u8]) {
        let mut count = 0;
        for frame in self.frames.chunks_exact_mut(self.frame_len).take(wanted) {
            increment(&mut self.id);
            frame[ID].copy_from_slice(&self.id);
            count += 1;
        }
        (count, &self.frames[..count * self.frame_len])
    }
}

/// To the next hexadecimal number, which is mostly a matter of one digit.
fn increment(digits: &mut [u8]) {
    for digit in digits.iter_mut().rev() {
        *digit = match *digit {
            b'f' => b'0',
            b'9' => b'a',
            other => other + 1,
        };
        if *digit != b'0' {
            return;
        }
    }
}
