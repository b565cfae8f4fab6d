//! An HTTP client by hand, so that nothing is smoothed over.

use async_nsq::transport::{BoxIo, Connector};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// An answer, its head in pieces.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) reason: String,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// Takes apart all that came until the connection ended.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
        let head = std::str::from_utf8(&bytes[..end]).unwrap();
        let mut lines = head.lines();
        let mut status = lines.next().unwrap().splitn(3, ' ').skip(1);
        let headers = lines.filter_map(|line| line.split_once(": "));
        Self {
            status: status.next().unwrap().parse().unwrap(),
            reason: status.next().unwrap().to_owned(),
            headers: headers
                .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
                .collect(),
            body: bytes[end + 4..].to_vec(),
        }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter().filter(|(header, _)| header == name);
        headers.next().map(|(_, value)| &**value)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
}

/// Asks on a connection of its own.
pub(crate) async fn ask(connector: &impl Connector, address: &str, method: &str, target: &str, body: &[u8]) -> Answer {
    let length = body.len();
    let head =
        format!("{method} {target} HTTP/1.1\r\nHost: nsqd\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    let mut io = connector.connect(address).await.unwrap();
    exchange(&mut io, &[head.as_bytes(), body].concat()).await
}

/// Sends bytes and takes what comes until the end. The peer may end it while it is still being written to.
pub(crate) async fn exchange(io: &mut BoxIo, bytes: &[u8]) -> Answer {
    let (mut reader, mut writer) = tokio::io::split(io);
    let mut received = Vec::new();
    let (read, _) = tokio::join!(reader.read_to_end(&mut received), writer.write_all(bytes));
    read.unwrap();
    Answer::parse(&received)
}
