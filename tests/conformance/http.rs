//! One HTTP request, byte for byte as the line says: no URL is checked or written anew.

use async_nsq::transport::BoxIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, split};

/// More than any answer of a broker.
const LARGEST: usize = 16 * 1024 * 1024;

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// Sends a request and reads the answer, which may come before the request is sent whole.
pub(crate) async fn request(io: BoxIo, verb: &str, path: &[u8], body: Option<&[u8]>) -> Result<Answer, String> {
    let mut head = format!("{verb} ").into_bytes();
    // Servers read no further than a fragment's mark; in a name it has to be escaped.
    for &byte in path {
        match byte {
            b'#' => head.extend(b"%23"),
            _ => head.push(byte),
        }
    }
    head.extend(b" HTTP/1.1\r\nHost: conformance\r\nConnection: close\r\n");
    if body.is_some() || verb != "GET" {
        head.extend(format!("Content-Length: {}\r\n", body.map_or(0, <[u8]>::len)).bytes());
    }
    head.extend(b"\r\n");
    head.extend(body.unwrap_or_default());
    let (reader, mut writer) = split(io);
    let write = async {
        // A server that does not want the rest closes; its answer tells why.
        let _ = writer.write_all(&head).await;
        let _ = writer.flush().await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        answer = read(reader, verb == "HEAD") => answer,
        () = write => Err("unreachable".to_owned()),
    }
}

async fn read(mut reader: ReadHalf<BoxIo>, without_body: bool) -> Result<Answer, String> {
    let mut input = Vec::new();
    let head_end = loop {
        if let Some(at) = input.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break at;
        }
        if !more(&mut reader, &mut input).await? {
            return Err(format!("closed after {:?}", String::from_utf8_lossy(&input)));
        }
    };
    let head = String::from_utf8_lossy(&input[..head_end]).into_owned();
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .and_then(|status| status.parse().ok());
    let headers = lines.filter_map(|line| line.split_once(": "));
    let mut answer = Answer {
        status: status.ok_or_else(|| format!("no status in {head}"))?,
        headers: headers
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        body: input.split_off(head_end + 4),
    };
    if without_body {
        return Ok(answer);
    }
    let length: Option<usize> = answer.header("content-length").and_then(|length| length.parse().ok());
    let chunked = answer.header("transfer-encoding") == Some("chunked");
    while length.is_none_or(|length| answer.body.len() < length) && more(&mut reader, &mut answer.body).await? {}
    if chunked {
        answer.body = unchunk(&answer.body)?;
    } else if length.is_some_and(|length| length != answer.body.len()) {
        return Err(format!("{} of {length:?} bytes came", answer.body.len()));
    }
    Ok(answer)
}

async fn more(reader: &mut ReadHalf<BoxIo>, input: &mut Vec<u8>) -> Result<bool, String> {
    if input.len() > LARGEST {
        return Err("an answer without end".to_owned());
    }
    // A reset is an end: the request may not have been read whole.
    Ok(reader.read_buf(input).await.unwrap_or(0) > 0)
}

fn unchunk(mut input: &[u8]) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    loop {
        let end = input
            .windows(2)
            .position(|bytes| bytes == b"\r\n")
            .ok_or("a chunk without length")?;
        let length = String::from_utf8_lossy(&input[..end]).into_owned();
        let length = usize::from_str_radix(&length, 16).map_err(|_| format!("a chunk of length {length}"))?;
        if length == 0 {
            return Ok(body);
        }
        let chunk = input
            .get(end + 2..end + 2 + length)
            .ok_or("a chunk that does not end")?;
        body.extend(chunk);
        input = input.get(end + 4 + length..).ok_or("a chunk that does not end")?;
    }
}
