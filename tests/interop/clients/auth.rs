//! An auth server for nsqd that knows one secret.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What may publish and subscribe to everything.
pub(super) const SECRET: &str = "letmein";

/// Runs until it is dropped.
pub(super) struct AuthStub {
    address: String,
    _accepting: JoinSet<()>,
}

impl AuthStub {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // An nsqd that has given up has closed its end.
                _ = answer(stream).await;
            }
        });
        Self {
            address,
            _accepting: accepting,
        }
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }
}

async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let known = String::from_utf8_lossy(&request).contains(&format!("secret={SECRET}&"));
    let grants = if known {
        r#"{"topic":".*","channels":[".*"],"permissions":["publish","subscribe"]}"#
    } else {
        ""
    };
    let body = format!(r#"{{"ttl":3600,"identity":"tester","identity_url":"","authorizations":[{grants}]}}"#);
    let head = format!(
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).await
}
