//! A connection of a line: bytes out, frames in, nothing on its own.

use std::time::Duration;

use async_nsq::transport::BoxIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::certificates::{self, Certificates};
use super::codec::Codec;
use super::step::{Flush, Tls};

/// More than any broker sends in a line.
const LARGEST: usize = 64 * 1024 * 1024;

/// What came next.
#[derive(Debug, PartialEq)]
pub(crate) enum Event {
    Frame(Kind, Vec<u8>),
    Closed,
    /// Nothing, within the time.
    Nothing,
    /// What is no frame.
    Garbage(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Response,
    Error,
    Message,
    /// nsqlookupd's replies have no type.
    Untyped,
}

pub(crate) struct Client {
    io: BoxIo,
    codec: Option<Codec>,
    /// Whether frames have types, as those of nsqd.
    typed: bool,
    clear: bool,
    input: Vec<u8>,
}

impl Client {
    pub(crate) fn new(io: BoxIo, typed: bool) -> Self {
        Self {
            io,
            codec: None,
            typed,
            clear: true,
            input: Vec::new(),
        }
    }

    /// Sends bytes through all layers. A peer that has closed already is found out by what comes back.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        match &mut self.codec {
            Some(codec) => {
                let encoded = codec.encode(bytes);
                self.send_below(&encoded).await;
            }
            None => self.send_below(bytes).await,
        }
    }

    /// Sends bytes below the compression.
    pub(crate) async fn send_below(&mut self, bytes: &[u8]) {
        let sent = async {
            self.io.write_all(bytes).await?;
            self.io.flush().await
        };
        let _ = sent.await;
    }

    pub(crate) async fn end_writing(&mut self) {
        // A peer that has closed already is found out by what comes back.
        let _ = self.io.shutdown().await;
    }

    pub(crate) async fn start_tls(self, tls: Tls, certificates: &Certificates) -> Result<Self, String> {
        if !self.input.is_empty() {
            return Err(format!("{} bytes came before TLS began", self.input.len()));
        }
        let connector = TlsConnector::from(certificates.client(tls));
        let server = ServerName::try_from(certificates::SERVER).expect("a name of a server");
        let stream = connector
            .connect(server, self.io)
            .await
            .map_err(|error| format!("TLS: {error}"))?;
        Ok(Self {
            io: Box::new(stream),
            clear: false,
            ..self
        })
    }

    /// What has arrived behind the answer to IDENTIFY is compressed already.
    pub(crate) fn start_codec(&mut self, mut codec: Codec) -> Result<(), String> {
        if self.codec.is_some() {
            return Err("is compressed already".to_owned());
        }
        let arrived = std::mem::take(&mut self.input);
        codec.decode(&arrived, &mut self.input)?;
        self.codec = Some(codec);
        Ok(())
    }

    pub(crate) fn set_flush(&mut self, flush: Flush) -> Result<(), String> {
        self.codec.as_mut().ok_or("is not compressed")?.set_flush(flush)
    }

    pub(crate) async fn next(&mut self, limit: Duration) -> Event {
        let deadline = Instant::now() + limit;
        let mut buffer = vec![0; 64 * 1024];
        loop {
            if let Some(event) = self.take_frame() {
                return event;
            }
            match timeout_at(deadline, self.io.read(&mut buffer)).await {
                Err(_) => return Event::Nothing,
                Ok(Ok(0) | Err(_)) if self.input.is_empty() => return Event::Closed,
                Ok(Ok(0) | Err(_)) => return Event::Garbage(format!("closed within a frame, after {:?}", self.input)),
                Ok(Ok(length)) => {
                    if let Err(why) = self.receive(&buffer[..length]) {
                        return Event::Garbage(why);
                    }
                }
            }
        }
    }

    fn receive(&mut self, bytes: &[u8]) -> Result<(), String> {
        match &mut self.codec {
            Some(codec) => codec.decode(bytes, &mut self.input),
            None => {
                self.input.extend(bytes);
                Ok(())
            }
        }
    }

    fn take_frame(&mut self) -> Option<Event> {
        if self.clear && self.typed {
            self.skip_alerts();
        }
        let size = u32::from_be_bytes(*self.input.first_chunk()?) as usize;
        if size > LARGEST {
            return Some(Event::Garbage(format!("a frame of {size} bytes")));
        }
        if self.input.len() < 4 + size {
            return None;
        }
        let mut data: Vec<u8> = self.input.drain(..4 + size).skip(4).collect();
        if !self.typed {
            return Some(Event::Frame(Kind::Untyped, data));
        }
        let Some(kind) = data.first_chunk::<4>().copied() else {
            return Some(Event::Garbage(format!("a frame without type: {data:?}")));
        };
        data.drain(..4);
        Some(match u32::from_be_bytes(kind) {
            0 => Event::Frame(Kind::Response, data),
            1 => Event::Frame(Kind::Error, data),
            2 => Event::Frame(Kind::Message, data),
            kind => Event::Garbage(format!("a frame of type {kind}")),
        })
    }

    /// A handshake that nsqd gives up leaves a TLS alert before the error frame, which is in clear text.
    fn skip_alerts(&mut self) {
        while let Some(&[0x15, 0x03, _, high, low]) = self.input.first_chunk() {
            let length = 5 + usize::from(u16::from_be_bytes([high, low]));
            if self.input.len() < length {
                return;
            }
            self.input.drain(..length);
        }
    }
}
