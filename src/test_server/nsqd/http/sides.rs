//! The servers of nsqd's HTTP and HTTPS sides.

use std::io;
use std::sync::Arc;

use super::{Front, Places};
use crate::test_server::http::serve;
use crate::test_server::listener::Door;
use crate::test_server::nsqd::broker::Shared;
use crate::test_server::server::Server;
use crate::test_server::tls::{ServerTls, TlsRequired};
use crate::transport::BoxIo;

/// Serves HTTP, and HTTPS where there is a certificate. Dropping it gives the addresses up and ends all connections.
pub(in crate::test_server::nsqd) struct Sides {
    plain: Server,
    encrypted: Option<Server>,
}

impl Sides {
    /// `https` is the door of the HTTPS side, or where it would be.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(in crate::test_server::nsqd) fn start(
        shared: &Arc<Shared>,
        http: Door,
        https: Result<Door, String>,
    ) -> io::Result<Self> {
        let places = Places {
            http: http.address().to_owned(),
            https: https
                .as_ref()
                .map_or_else(Clone::clone, |door| door.address().to_owned()),
            https_only: shared.options.tls_required == TlsRequired::Yes,
        };
        let front = Arc::new(Front::new(Arc::clone(shared), places.clone(), false)?);
        let encrypted = match (https.ok(), &shared.options.tls) {
            (Some(door), Some(tls)) => {
                let front = Front::new(Arc::clone(shared), places, true)?;
                Some(encrypted(door, tls, Arc::new(front)))
            }
            _ => None,
        };
        let plain = Server::start(http, move |io, remote| serve(io, remote, Arc::clone(&front)));
        Ok(Self { plain, encrypted })
    }

    pub(in crate::test_server::nsqd) fn address(&self) -> &str {
        self.plain.address()
    }

    pub(in crate::test_server::nsqd) fn https_address(&self) -> Option<&str> {
        self.encrypted.as_ref().map(Server::address)
    }

    /// Serves plain HTTP over a stream that was accepted elsewhere.
    pub(in crate::test_server::nsqd) fn serve(&self, io: BoxIo, remote: String) {
        self.plain.serve(io, remote);
    }

    /// Refuses connections, and ends the existing ones.
    pub(in crate::test_server::nsqd) fn close(&self) {
        for server in self.servers() {
            server.close();
        }
    }

    /// Accepts connections again.
    pub(in crate::test_server::nsqd) fn open(&self) -> io::Result<()> {
        self.servers().try_for_each(Server::open)
    }

    fn servers(&self) -> impl Iterator<Item = &Server> {
        std::iter::once(&self.plain).chain(&self.encrypted)
    }
}

fn encrypted(door: Door, tls: &ServerTls, front: Arc<Front>) -> Server {
    let acceptor = tls.acceptor();
    Server::start(door, move |io, remote| {
        let (acceptor, front) = (acceptor.clone(), Arc::clone(&front));
        async move {
            // A client that fails the handshake learns it from TLS.
            if let Ok(io) = acceptor.accept(io).await {
                serve(Box::new(io), remote, front).await;
            }
        }
    })
}
