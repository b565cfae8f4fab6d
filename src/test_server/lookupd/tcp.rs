//! nsqlookupd's TCP side, where nsqds register.

use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::time::Instant;

use super::Shared;
use super::registry::{Identity, NodeId, Origin};
use super::state::LookupdCommand;
use crate::name::{Channel, Topic};
use crate::test_server::json::{self, Members, Mismatch};
use crate::transport::BoxIo;

const MAGIC: &[u8; 4] = b"  V1";

/// The longest line that is read, as in nsqd. nsqlookupd itself has no limit.
const MAX_LINE: u64 = 16 * 1024;

/// The largest body of IDENTIFY. nsqlookupd itself has no limit.
const MAX_IDENTITY: usize = 64 * 1024;

/// What ends a connection: a text that is sent before, or nothing.
struct Fatal(Option<String>);

impl Fatal {
    fn silent() -> Self {
        Self(None)
    }

    fn text(text: impl Into<String>) -> Self {
        Self(Some(text.into()))
    }
}

impl From<std::io::Error> for Fatal {
    fn from(_: std::io::Error) -> Self {
        Self::silent()
    }
}

/// Serves one connection until either side ends it.
pub(super) async fn serve(shared: Arc<Shared>, io: BoxIo, remote: String) {
    let connection = shared.count_connection();
    let mut session = Session {
        shared,
        io: BufReader::new(io),
        remote,
        connection,
        node: None,
    };
    if let Err(Fatal(Some(text))) = session.run().await {
        // It ends either way.
        let _ = session.reply(text.as_bytes()).await;
    }
}

struct Session {
    shared: Arc<Shared>,
    io: BufReader<BoxIo>,
    remote: String,
    connection: u64,
    /// After IDENTIFY.
    node: Option<NodeId>,
}

impl Session {
    async fn run(&mut self) -> Result<(), Fatal> {
        let mut magic = [0; 4];
        self.io.read_exact(&mut magic).await?;
        if magic != *MAGIC {
            return Err(Fatal::text("E_BAD_PROTOCOL"));
        }
        loop {
            let line = self.read_line().await?;
            let reply = self.execute(line.trim()).await?;
            if self.shared.is_mute() {
                // It notices only that the other end has gone.
                tokio::io::copy(&mut self.io, &mut tokio::io::sink()).await?;
                return Err(Fatal::silent());
            }
            self.reply(&reply).await?;
        }
    }

    async fn read_line(&mut self) -> Result<String, Fatal> {
        let mut line = Vec::new();
        (&mut self.io).take(MAX_LINE).read_until(b'\n', &mut line).await?;
        if line.last() != Some(&b'\n') {
            // Too long, or the end.
            return Err(Fatal::silent());
        }
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    async fn execute(&mut self, line: &str) -> Result<Vec<u8>, Fatal> {
        let mut params = line.split(' ');
        let name = params.next().unwrap_or_default();
        if name == "IDENTIFY" {
            return self.identify(line).await;
        }
        self.record(line, Bytes::new());
        match name {
            "PING" => {
                if let Some(id) = self.node {
                    self.shared.registry.change(|book| book.ping(id));
                }
            }
            "REGISTER" => {
                let (id, topic, channel) = self.topic_and_channel(name, params)?;
                let registered = self.shared.registry.change(|book| book.register(id, topic, channel));
                registered.map_err(|_| Fatal::text("E_INVALID REGISTER failed too many registrations"))?;
            }
            "UNREGISTER" => {
                let (id, topic, channel) = self.topic_and_channel(name, params)?;
                self.shared.registry.change(|book| book.unregister(id, topic, channel));
            }
            unknown => return Err(Fatal::text(format!("E_INVALID invalid command {unknown}"))),
        }
        Ok(b"OK".to_vec())
    }

    async fn identify(&mut self, line: &str) -> Result<Vec<u8>, Fatal> {
        if self.node.is_some() {
            self.record(line, Bytes::new());
            return Err(Fatal::text("E_INVALID cannot IDENTIFY again"));
        }
        let size = self.io.read_i32().await;
        let size = size.map_err(|_| Fatal::text("E_BAD_BODY IDENTIFY failed to read body size"))?;
        let unreadable = || Fatal::text("E_BAD_BODY IDENTIFY failed to read body");
        let size = usize::try_from(size).ok().filter(|size| *size <= MAX_IDENTITY);
        let mut body = vec![0; size.ok_or_else(unreadable)?];
        self.io.read_exact(&mut body).await.map_err(|_| unreadable())?;
        let body = Bytes::from(body);
        self.record(line, body.clone());

        let identity = read_identity(&body)
            .map_err(|Mismatch| Fatal::text("E_BAD_BODY IDENTIFY failed to decode JSON body"))?
            .ok_or_else(|| Fatal::text("E_BAD_BODY IDENTIFY missing fields"))?;
        let id = self.shared.registry.change(|book| {
            let id = book.reserve_id();
            book.appear(id, &identity, &self.remote, Origin::Client);
            id
        });
        self.node = Some(id);
        let nsqd = identity.tcp_address();
        tracing::info!("client: nsqd {} at {nsqd} from {}", identity.version, self.remote);
        Ok(json::to_vec(&self.shared.identity))
    }

    fn topic_and_channel<'a>(
        &self,
        command: &str,
        mut params: impl Iterator<Item = &'a str>,
    ) -> Result<(NodeId, &'a str, Option<&'a str>), Fatal> {
        let id = self.node.ok_or_else(|| Fatal::text("E_INVALID client must IDENTIFY"))?;
        let Some(topic) = params.next() else {
            return Err(Fatal::text(format!(
                "E_INVALID {command} insufficient number of params"
            )));
        };
        let channel = params.next().filter(|channel| !channel.is_empty());
        if Topic::new(topic).is_err() {
            let text = format!("E_BAD_TOPIC {command} topic name '{topic}' is not valid");
            return Err(Fatal::text(text));
        }
        if let Some(channel) = channel.filter(|channel| Channel::new(channel).is_err()) {
            let text = format!("E_BAD_CHANNEL {command} channel name '{channel}' is not valid");
            return Err(Fatal::text(text));
        }
        Ok((id, topic, channel))
    }

    fn record(&self, line: &str, body: Bytes) {
        self.shared.record_command(LookupdCommand {
            at: Instant::now(),
            connection: self.connection,
            line: line.to_owned(),
            body,
        });
    }

    async fn reply(&mut self, text: &[u8]) -> Result<(), Fatal> {
        let mut reply = Vec::with_capacity(4 + text.len());
        reply.extend((text.len() as u32).to_be_bytes());
        reply.extend(text);
        let io = self.io.get_mut();
        io.write_all(&reply).await?;
        io.flush().await?;
        Ok(())
    }
}

impl Drop for Session {
    /// All that the connection has registered goes with it.
    fn drop(&mut self) {
        if let Some(id) = self.node {
            self.shared.registry.change(|book| book.disappear(id));
        }
    }
}

/// `None` if a field is missing that has to be there.
fn read_identity(body: &[u8]) -> Result<Option<Identity>, Mismatch> {
    let mut members = Members::read(body)?;
    // Its type is checked, its value is not used.
    members.text("remote_address")?;
    let identity = Identity {
        broadcast_address: members.text("broadcast_address")?,
        hostname: members.text("hostname")?,
        http_port: members.integer("http_port")?,
        tcp_port: members.integer("tcp_port")?,
        version: members.text("version")?,
    };
    let is_complete = !identity.broadcast_address.is_empty()
        && identity.tcp_port != 0
        && identity.http_port != 0
        && !identity.version.is_empty();
    Ok(is_complete.then_some(identity))
}
