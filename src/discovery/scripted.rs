//! An HTTP server for the tests that says exactly the bytes it is told to.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::transport::{BoxIo, MemoryNetwork};

/// What to do with a request, once its head has been read.
pub(super) enum Reply {
    /// Send this and leave the connection open, as HTTP's keep-alive does.
    Send(Vec<u8>),
    /// Send this and close the connection.
    SendAndClose(Vec<u8>),
    /// Send this after a while.
    SendAfter(Duration, Vec<u8>),
    /// Never answer.
    Hang,
}

/// A running server. Dropping it refuses connections.
pub(super) struct Scripted {
    requests: Arc<Mutex<Vec<String>>>,
    server: JoinHandle<()>,
}

impl Scripted {
    /// Serves at `address`; `script` gets the number of the request, counted from 0.
    pub(super) fn start(
        network: &MemoryNetwork,
        address: &str,
        mut script: impl FnMut(usize) -> Reply + Send + 'static,
    ) -> Self {
        let mut listener = network.listen(address).unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let server = tokio::spawn(async move {
            for number in 0.. {
                let mut stream = listener.accept().await;
                let head = read_head(&mut stream).await;
                seen.lock().unwrap().push(head);
                tokio::spawn(answer(stream, script(number)));
            }
        });
        Self { requests, server }
    }

    /// The heads of the requests so far.
    pub(super) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn read_head(stream: &mut BoxIo) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

async fn answer(mut stream: BoxIo, reply: Reply) {
    // A client that has heard enough closes in the middle of the answer, which is no failure here.
    let client_closes = match reply {
        Reply::Send(bytes) => stream.write_all(&bytes).await.is_ok(),
        Reply::SendAndClose(bytes) => {
            let _ = stream.write_all(&bytes).await;
            false
        }
        Reply::SendAfter(delay, bytes) => {
            sleep(delay).await;
            stream.write_all(&bytes).await.is_ok()
        }
        Reply::Hang => true,
    };
    if client_closes {
        let _ = stream.read_u8().await;
    }
}

/// An answer with a length, as nsqlookupd gives it.
pub(super) fn http(status: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json; charset=utf-8\r\nX-NSQ-Content-Type: nsq; version=1.0\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// The body of a good answer: nsqds with these hosts, at port 4150.
pub(super) fn producers(hosts: &[&str]) -> String {
    let producers: Vec<_> = hosts
        .iter()
        .map(|host| {
            format!(
                r#"{{"remote_address":"10.0.0.9:50000","hostname":"{host}","broadcast_address":"{host}","tcp_port":4150,"http_port":4151,"version":"1.3.0"}}"#
            )
        })
        .collect();
    format!(r#"{{"channels":["c"],"producers":[{}]}}"#, producers.join(","))
}

/// A good answer.
pub(super) fn found(hosts: &[&str]) -> Reply {
    Reply::Send(http("200 OK", producers(hosts)))
}
