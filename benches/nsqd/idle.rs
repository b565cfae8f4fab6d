//! What connections that say nothing cost a broker.

use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use async_nsq::protocol;
use bytes::BytesMut;

use crate::Result;
use crate::broker::Nsqd;

/// Each takes a file descriptor here and one there.
const CONNECTIONS: usize = 10_000;

/// The resident memory of a broker in KiB, before and with the connections.
pub(crate) struct Idle {
    before: u64,
    with: u64,
}

impl fmt::Display for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let added = self.with.saturating_sub(self.before);
        write!(
            f,
            "{CONNECTIONS} idle connections take {} MB of {} MB, {:.1} KB each",
            added / 1024,
            self.with / 1024,
            added as f64 / CONNECTIONS as f64
        )
    }
}

/// Opens connections that have said IDENTIFY, and looks at what the broker's process holds.
pub(crate) fn measure(broker: &Nsqd) -> Result<Idle> {
    let before = resident(broker)?;
    let mut hello = BytesMut::from(&protocol::MAGIC[..]);
    protocol::command::identify(&mut hello, b"{}");
    let mut connections = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(broker.tcp_address())?;
        stream.write_all(&hello)?;
        let mut answer = [0; 10];
        stream.read_exact(&mut answer)?;
        connections.push(stream);
    }
    let with = resident(broker)?;
    Ok(Idle { before, with })
}

fn resident(broker: &Nsqd) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", broker.process()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .ok_or("no VmRSS")?;
    Ok(kib.trim().parse()?)
}
