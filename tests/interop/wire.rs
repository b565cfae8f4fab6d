//! The NSQ protocol by hand: what the tests of the harness and of nsqd's own habits speak, so that they prove something
//! about nsqd and not about the crate.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::broker::DEADLINE;

pub(crate) const RESPONSE: u32 = 0;
pub(crate) const ERROR: u32 = 1;
pub(crate) const MESSAGE: u32 = 2;

/// A connection that has sent the magic.
pub(crate) struct Wire(TcpStream);

/// A frame's type and payload.
pub(crate) type Frame = (u32, Vec<u8>);

impl Wire {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).await.expect("nsqd accepts");
        stream.write_all(b"  V2").await.expect("nsqd reads");
        Self(stream)
    }

    /// Sends a command without a body.
    pub(crate) async fn send(&mut self, line: &str) {
        self.0
            .write_all(format!("{line}\n").as_bytes())
            .await
            .expect("nsqd reads");
    }

    /// Sends a command with a body.
    pub(crate) async fn send_body(&mut self, line: &str, body: &str) {
        let length = u32::try_from(body.len()).expect("a short body").to_be_bytes();
        let command = [line.as_bytes(), b"\n", &length, body.as_bytes()].concat();
        self.0.write_all(&command).await.expect("nsqd reads");
    }

    /// The next frame, heartbeats included.
    pub(crate) async fn frame(&mut self) -> Frame {
        timeout(DEADLINE, async {
            let length = self.0.read_u32().await.expect("a frame");
            let kind = self.0.read_u32().await.expect("a frame");
            let mut payload = vec![0; usize::try_from(length - 4).expect("a length that fits in memory")];
            self.0.read_exact(&mut payload).await.expect("a frame");
            (kind, payload)
        })
        .await
        .expect("a frame within the deadline")
    }

    /// The next frame that is no heartbeat; heartbeats are answered.
    pub(crate) async fn answer(&mut self) -> Frame {
        loop {
            let frame = self.frame().await;
            if frame != heartbeat() {
                return frame;
            }
            self.send("NOP").await;
        }
    }
}

pub(crate) fn ok() -> Frame {
    (RESPONSE, b"OK".to_vec())
}

pub(crate) fn heartbeat() -> Frame {
    (RESPONSE, b"_heartbeat_".to_vec())
}
