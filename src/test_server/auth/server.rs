//! The auth server.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::{Method, StatusCode};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::{AuthFaults, Grant};
use crate::test_server::http::{self, Answer, Refusal, Request, Router, Script, Service};
use crate::test_server::json::{Members, Mismatch};
use crate::test_server::listener::Door;
use crate::test_server::record::Record;
use crate::test_server::server::Server;
use crate::transport::{Io, MemoryNetwork};

/// The deadline of [`AuthServer::wait_for`].
const PATIENCE: Duration = Duration::from_secs(10);

/// The largest body of a POST.
const MAX_BODY: usize = 64 * 1024;

/// How many requests are remembered, and how many bytes of them.
const RECORD: (usize, usize) = (10_000, 4 * 1024 * 1024);

/// An auth server within this process: what nsqd's `auth-http-address` points at.
///
/// It answers `GET /auth?common_name=&remote_ip=&secret=&tls=` with what was [granted](Self::grant) to the secret, and
/// with status 403 if that is nothing. `POST /auth` with the same as JSON, which newer nsqds can be told to use, is
/// answered alike. Dropping it closes its listener and its connections.
///
/// ```
/// use async_nsq::test_server::{AuthServer, Grant, Permission};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let auth = AuthServer::start().await?;
/// auth.grant("hunter2", Grant::new().identity("bob").allow(".*", [".*"], [Permission::Publish]));
/// println!("--auth-http-address={}", auth.address());
/// # Ok(())
/// # }
/// ```
pub struct AuthServer {
    pub(super) shared: Arc<Shared>,
    pub(super) server: Server,
}

pub(super) struct Shared {
    pub(super) script: Script,
    routes: Router<Shared>,
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    grants: BTreeMap<String, Grant>,
    requests: Record<AuthRequest>,
}

/// A question that an [`AuthServer`] was asked. Its `Debug` output does not show the secret.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuthRequest {
    /// When it arrived, on tokio's clock.
    pub at: Instant,
    /// The common name of the client's certificate; empty without one.
    pub common_name: String,
    /// The client's address, without its port.
    pub remote_ip: String,
    /// Whether the client speaks TLS.
    pub tls: bool,
    secret: String,
}

impl AuthRequest {
    /// What the client has sent with AUTH.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.secret
    }
}

impl fmt::Debug for AuthRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthRequest")
            .field("at", &self.at)
            .field("common_name", &self.common_name)
            .field("remote_ip", &self.remote_ip)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

impl AuthServer {
    /// Starts on a free loopback port.
    ///
    /// # Errors
    /// If no port can be opened.
    ///
    /// # Cancel safety
    /// Dropping the future before it is polled starts nothing; its first poll completes it.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn start() -> io::Result<Self> {
        Ok(Self::open(Door::tcp(None)?))
    }

    /// Starts within a memory network. `address` is `host:port`, any host and any port.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] if something listens there already.
    ///
    /// # Cancel safety
    /// Dropping the future before it is polled starts nothing; its first poll completes it.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn start_in(network: &MemoryNetwork, address: &str) -> io::Result<Self> {
        Ok(Self::open(Door::memory(network, address)?))
    }

    /// Starts without listening: every connection is handed over by [`serve`](Self::serve). For a transport of your own,
    /// such as the simulated hosts of turmoil. `address` is what [`address`](Self::address) says; `host:port`.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if `address` is not `host:port`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start_detached(address: &str) -> io::Result<Self> {
        Ok(Self::open(Door::detached(address)?))
    }

    fn open(door: Door) -> Self {
        let (entries, bytes) = RECORD;
        let shared = Arc::new(Shared {
            script: Script::default(),
            routes: Router::new().get("/auth", by_get).post("/auth", by_post),
            state: Mutex::new(State {
                grants: BTreeMap::new(),
                requests: Record::new(entries, bytes),
            }),
            changed: Notify::new(),
        });
        let asked = Arc::clone(&shared);
        let server = Server::start(door, move |io, remote| http::serve(io, remote, Arc::clone(&asked)));
        Self { shared, server }
    }

    /// Where nsqd reaches it: `127.0.0.1:port`, or the address within the memory network.
    #[must_use]
    pub fn address(&self) -> &str {
        self.server.address()
    }

    /// Serves a client over a stream that was accepted elsewhere: by a listener of your own, or made by
    /// [`tokio::io::duplex`]. One that is [down](AuthFaults::down) closes it.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn serve(&self, io: impl Io + 'static, remote: impl Into<String>) {
        self.server.serve(io, remote);
    }

    /// Grants this to whoever knows the secret, instead of what was granted before. nsqd notices when it asks next.
    pub fn grant(&self, secret: impl Into<String>, grant: Grant) {
        self.shared.lock().grants.insert(secret.into(), grant);
    }

    /// Takes everything back that was granted to the secret. nsqd notices when it asks next.
    pub fn revoke(&self, secret: &str) {
        self.shared.lock().grants.remove(secret);
    }

    /// The questions that have arrived, oldest first, whatever the answer was: the last 10,000 of them, and no more than
    /// 4 MiB.
    #[must_use]
    pub fn requests(&self) -> Vec<AuthRequest> {
        self.shared.lock().requests.all()
    }

    /// Waits until the questions that have arrived fulfil the condition, and returns them. The condition is asked at each
    /// question, so nobody sleeps for luck.
    ///
    /// # Errors
    /// [`AuthWaitError`] after ten seconds on tokio's clock. Its text, also by `unwrap`, shows the questions.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn wait_for(
        &self,
        mut condition: impl FnMut(&[AuthRequest]) -> bool,
    ) -> Result<Vec<AuthRequest>, AuthWaitError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let changed = self.shared.changed.notified();
            let mut changed = std::pin::pin!(changed);
            // From here on no change is missed, though it happens before the await.
            changed.as_mut().enable();
            let requests = self.requests();
            if condition(&requests) {
                return Ok(requests);
            }
            if timeout_at(deadline, changed).await.is_err() {
                return Err(AuthWaitError { last: self.requests() });
            }
        }
    }

    /// Makes it misbehave.
    #[must_use]
    pub fn faults(&self) -> AuthFaults<'_> {
        AuthFaults::new(self)
    }
}

impl fmt::Debug for AuthServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthServer")
            .field("address", &self.address())
            .finish_non_exhaustive()
    }
}

/// The condition of a [`wait_for`](AuthServer::wait_for) did not come true in time.
#[derive(Clone)]
pub struct AuthWaitError {
    last: Vec<AuthRequest>,
}

impl AuthWaitError {
    /// The questions that had arrived when the time was up.
    #[must_use]
    pub fn last(&self) -> &[AuthRequest] {
        &self.last
    }
}

impl fmt::Display for AuthWaitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the condition did not come true within {PATIENCE:?}; the auth server was asked {:#?}",
            self.last
        )
    }
}

/// As [`Display`](fmt::Display), since tests unwrap.
impl fmt::Debug for AuthWaitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for AuthWaitError {}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn judge(&self, asked: AuthRequest) -> Result<Answer, Refusal> {
        let grant = {
            let mut state = self.lock();
            let grant = state.grants.get(&asked.secret).cloned();
            let texts = asked.common_name.len() + asked.remote_ip.len() + asked.secret.len();
            state.requests.push(asked, texts + size_of::<AuthRequest>());
            grant
        };
        self.changed.notify_waiters();
        // After the record, so that what is answered wrongly is seen too.
        if let Some(answer) = self.script.intervene("/auth").await {
            return Ok(answer.foreign());
        }
        match grant {
            Some(grant) => Ok(Answer::json(&grant).foreign()),
            None => Err(Refusal::new(StatusCode::FORBIDDEN, "FORBIDDEN")),
        }
    }
}

impl Service for Shared {
    async fn answer(self: Arc<Self>, request: Request) -> Answer {
        self.routes.answer(&self, request).await
    }
}

async fn by_get(shared: Arc<Shared>, request: Request) -> Result<Answer, Refusal> {
    let query = request.query()?;
    let argument = |name| query.get(name).unwrap_or_default().to_owned();
    let asked = AuthRequest {
        at: Instant::now(),
        common_name: argument("common_name"),
        remote_ip: argument("remote_ip"),
        tls: query.get("tls") == Some("true"),
        secret: argument("secret"),
    };
    shared.judge(asked).await
}

async fn by_post(shared: Arc<Shared>, request: Request) -> Result<Answer, Refusal> {
    debug_assert_eq!(request.method(), Method::POST);
    let malformed = || Refusal::bad_request("INVALID_REQUEST");
    let body = request.body(MAX_BODY).await.map_err(|_| malformed())?;
    let asked = read_form(&body).map_err(|_| malformed())?;
    shared.judge(asked).await
}

/// Newer nsqds send each value as a list of one.
fn read_form(body: &[u8]) -> Result<AuthRequest, Mismatch> {
    let mut members = Members::read(body)?;
    let mut first = |name| Ok(members.texts(name)?.into_iter().next().unwrap_or_default());
    Ok(AuthRequest {
        at: Instant::now(),
        common_name: first("common_name")?,
        remote_ip: first("remote_ip")?,
        tls: first("tls")? == "true",
        secret: first("secret")?,
    })
}
