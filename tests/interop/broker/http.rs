//! One HTTP request to a broker.

use std::{error::Error, net::SocketAddr};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, StatusCode, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use super::DEADLINE;

/// What a broker answered.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

/// Sends one request on a connection of its own. The error says why no answer came; any status is an answer.
pub(crate) async fn request(
    address: SocketAddr,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<Answer, Box<dyn Error + Send + Sync>> {
    timeout(DEADLINE, async {
        let stream = TcpStream::connect(address).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, address.to_string())
            .body(Full::new(body))?;
        // Its error reaches the sender too.
        tokio::spawn(connection);
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        Ok(Answer { status, body })
    })
    .await?
}

/// A topic or channel name as the value of a query parameter. Of all the characters of a name only the `#` of
/// `#ephemeral` means something in a URL.
pub(super) fn query_value(name: &str) -> String {
    name.replace('#', "%23")
}
