//! The stub of an auth server: one answer to everything, and a record of what it was asked.

use std::sync::{Arc, Mutex, PoisonError};

use async_nsq::transport::{BoxIo, MemoryListener};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};

/// A request is one line and a few headers.
const LARGEST: usize = 64 * 1024;

pub(crate) enum Listener {
    Tcp(TcpListener),
    Memory(MemoryListener),
}

#[derive(Default)]
struct State {
    status: u16,
    body: Vec<u8>,
    asked: Vec<String>,
}

pub(crate) struct Authd {
    state: Arc<Mutex<State>>,
    serving: AbortHandle,
}

impl Authd {
    /// Answers 403 until it is told what to say.
    pub(crate) fn start(listener: Listener) -> Self {
        let state = Arc::new(Mutex::new(State {
            status: 403,
            ..State::default()
        }));
        let serving = tokio::spawn(serve(listener, Arc::clone(&state))).abort_handle();
        Self { state, serving }
    }

    pub(crate) fn answer(&self, status: u16, body: Vec<u8>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.status, state.body) = (status, body);
    }

    /// The first lines and headers of all requests so far.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).asked.clone()
    }
}

impl Drop for Authd {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(mut listener: Listener, state: Arc<Mutex<State>>) {
    let mut connections = JoinSet::new();
    loop {
        let io: BoxIo = match &mut listener {
            Listener::Memory(listener) => listener.accept().await,
            Listener::Tcp(listener) => match listener.accept().await {
                Ok((stream, _)) => Box::new(stream),
                Err(_) => return,
            },
        };
        connections.spawn(answer(io, Arc::clone(&state)));
    }
}

async fn answer(mut io: BoxIo, state: Arc<Mutex<State>>) {
    let mut request = Vec::new();
    while !request.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        if request.len() > LARGEST || io.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let answer = {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        state.asked.push(String::from_utf8_lossy(&request).into_owned());
        let head = format!(
            "HTTP/1.1 {} -\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            state.status,
            state.body.len()
        );
        [head.as_bytes(), &state.body].concat()
    };
    // Who does not wait for the answer has no use for it.
    let _ = io.write_all(&answer).await;
    let _ = io.shutdown().await;
}
