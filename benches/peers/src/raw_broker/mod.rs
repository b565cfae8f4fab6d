//! A broker that does as little as a broker can, so that a client's messages a second are the client's own: with nsqd they
//! are nsqd's wherever a client is quick.
//!
//! To consumers it sends messages that are encoded beforehand, as many as RDY leaves room for; what producers send it
//! reads over and forgets. It has no topics and no channels, stores nothing, sends nothing a second time (a REQ is a FIN to
//! it), sends no heartbeats, knows neither TLS nor compression, refuses nothing, and does not look which message a FIN is
//! for. One process can be many nodes, each with an address of its own: so a client has a hundred connections, and no
//! hundred nsqds want processors.

mod connection;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{self, Child, Command, Stdio};
use std::{env, thread};

use bytes::Bytes;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::{Result, files};
use connection::Connection;

/// A running one, in a process of its own: this program, run again. It ends with this program or when dropped.
pub(crate) struct RawBroker {
    child: Child,
    addresses: Vec<SocketAddr>,
}

impl RawBroker {
    /// Starts one of so many nodes that sends these bodies, which are of one length.
    pub(crate) fn start(bodies: &Path, nodes: usize) -> Result<Self> {
        let mut child = Command::new(env::current_exe()?)
            .arg("broker")
            .arg(bodies)
            .arg(nodes.to_string())
            // It reads until the end of its input, which comes when this program is gone.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().ok_or("no output of the raw broker")?;
        let mut broker = Self {
            child,
            addresses: Vec::new(),
        };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        broker.addresses = serde_json::from_str(&line).map_err(|_| "the raw broker does not serve")?;
        Ok(broker)
    }

    /// Those of its nodes.
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

impl Drop for RawBroker {
    fn drop(&mut self) {
        // Both fail only for a process that is gone already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Is that process.
pub(crate) fn run(bodies: &Path, nodes: usize) -> Result<()> {
    let listeners = (0..nodes).map(|_| TcpListener::bind("127.0.0.1:0"));
    let listeners: Vec<TcpListener> = listeners.collect::<io::Result<_>>()?;
    let addresses = listeners.iter().map(TcpListener::local_addr);
    let addresses: Vec<SocketAddr> = addresses.collect::<io::Result<_>>()?;
    let server = Server::new(listeners, files::read_bodies(bodies)?)?;
    println!("{}", serde_json::to_string(&addresses)?);
    io::stdout().flush()?;
    thread::spawn(|| {
        _ = io::stdin().read_to_end(&mut Vec::new());
        process::exit(0);
    });
    server.run()
}

/// All nodes, on one thread: whoever has sent something is served, one after the other.
///
/// The sockets block. What a client has room for in flight it reads, whatever else it does.
struct Server {
    epoll: Epoll,
    listeners: Vec<TcpListener>,
    /// Those that have ended leave their place empty.
    connections: Vec<Option<Connection>>,
    bodies: &'static [Bytes],
    /// Whether each node has had a consumer. All messages are kept back until then, so that the client, which is timed
    /// from the first message on, has made all its connections.
    started: bool,
}

impl Server {
    fn new(listeners: Vec<TcpListener>, bodies: &'static [Bytes]) -> Result<Self> {
        let server = Self {
            epoll: Epoll::new(EpollCreateFlags::empty())?,
            listeners,
            connections: Vec::new(),
            bodies,
            started: false,
        };
        for (place, listener) in server.listeners.iter().enumerate() {
            server.watch(listener, place)?;
        }
        Ok(server)
    }

    /// Has `run` told of what comes there, by its place: listeners first, then connections.
    fn watch(&self, socket: impl AsFd, place: usize) -> Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, place as u64);
        Ok(self.epoll.add(socket, event)?)
    }

    fn run(mut self) -> Result<()> {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let count = self.epoll.wait(&mut events, EpollTimeout::NONE)?;
            for event in &events[..count] {
                let place = event.data() as usize;
                match place.checked_sub(self.listeners.len()) {
                    None => self.accept(place)?,
                    // A client that ends while there is something to read resets its connection: an end as any other.
                    Some(number) if self.serve(number).is_err() => self.connections[number] = None,
                    Some(_) => {}
                }
            }
        }
    }

    fn accept(&mut self, listener: usize) -> Result<()> {
        let (stream, _) = self.listeners[listener].accept()?;
        let number = self.connections.len();
        self.watch(&stream, self.listeners.len() + number)?;
        self.connections
            .push(Some(Connection::new(stream, number, self.bodies)?));
        Ok(())
    }

    fn serve(&mut self, number: usize) -> io::Result<()> {
        let Some(connection) = &mut self.connections[number] else {
            return Ok(());
        };
        connection.read()?;
        if self.started {
            return connection.write();
        }
        connection.write_responses()?;
        let connections = self.connections.iter().flatten();
        self.started = connections.filter(|one| one.consumes()).count() == self.listeners.len();
        if self.started {
            self.connections.iter_mut().flatten().try_for_each(Connection::write)?;
        }
        Ok(())
    }
}
