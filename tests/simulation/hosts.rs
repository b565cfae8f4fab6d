//! Hosts of the simulated cluster: how they are told what to do, and those that the simulations have in common.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nsq::ConnectionConfig;
use async_nsq::test_server::{Lookupd, Nsqd, NsqdBuilder};
use tokio::sync::Notify;
use turmoil::Result;
use turmoil::net::{TcpListener, TcpStream};

use crate::plan::{HEARTBEAT, LOOKUPDS, NSQDS, lookupd_name};
use crate::wire::{Simulated, Sockets};

/// Orders for a host, which come from outside of its runtime.
#[derive(Debug)]
pub struct Orders<T> {
    queue: Mutex<VecDeque<T>>,
    arrived: Notify,
}

impl<T> Default for Orders<T> {
    fn default() -> Self {
        Self {
            queue: Mutex::default(),
            arrived: Notify::new(),
        }
    }
}

impl<T> Orders<T> {
    pub fn give(&self, order: T) {
        lock(&self.queue).push_back(order);
        self.arrived.notify_one();
    }

    /// Forgets what was not begun: its host is gone.
    pub fn forget(&self) {
        lock(&self.queue).clear();
    }

    /// Dropping the future loses no order.
    pub async fn next(&self) -> T {
        loop {
            if let Some(order) = lock(&self.queue).pop_front() {
                return order;
            }
            self.arrived.notified().await;
        }
    }
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Clone, Copy, Debug)]
pub enum NsqdOrder {
    Stop,
    Kill,
    Restart,
}

/// The brokers of a cluster.
#[derive(Default)]
pub struct Brokers {
    pub nsqds: [NsqdHost; NSQDS],
    pub lookupds: [LookupdHost; LOOKUPDS],
}

/// An nsqd, as others see it.
#[derive(Default)]
pub struct NsqdHost {
    nsqd: Mutex<Option<Arc<Nsqd>>>,
    pub orders: Orders<NsqdOrder>,
}

impl NsqdHost {
    pub fn nsqd(&self) -> Arc<Nsqd> {
        lock(&self.nsqd).clone().expect("nsqds start first")
    }

    /// Serves, registers with the nsqlookupds by TCP, and does what it is told. `told` hears of each order when it has been carried out; when it hears of a
    /// death, the dead one still has its messages.
    pub async fn run(&self, builder: NsqdBuilder, name: &str, told: impl Fn(NsqdOrder, &Nsqd)) -> Result {
        // The interval of heartbeats is also that of clients that vanish before they have named theirs.
        let mut builder = builder.connector(Simulated).heartbeat_interval(HEARTBEAT);
        for l in 0..LOOKUPDS {
            builder = builder.lookupd_tcp_address(format!("{}:4160", lookupd_name(l)));
        }
        let nsqd = Arc::new(builder.start_detached(&format!("{name}:4150"))?);
        *lock(&self.nsqd) = Some(Arc::clone(&nsqd));
        let (tcp, serving) = (TcpListener::bind("0.0.0.0:4150").await?, Arc::clone(&nsqd));
        tokio::spawn(async move {
            accept(tcp, |stream, remote| serving.serve(stream, remote.to_string()))
                .await
                .ok()
        });
        let (http, serving) = (TcpListener::bind("0.0.0.0:4151").await?, Arc::clone(&nsqd));
        tokio::spawn(async move {
            let serve = |stream, remote: SocketAddr| serving.serve_http(stream, remote.to_string());
            accept(http, serve).await.ok()
        });
        loop {
            let order = self.orders.next().await;
            match order {
                NsqdOrder::Stop | NsqdOrder::Kill => nsqd.stop().await,
                NsqdOrder::Restart => nsqd.restart().await?,
            }
            told(order, &nsqd);
            if let NsqdOrder::Kill = order {
                nsqd.kill().await;
            }
        }
    }
}

/// An nsqlookupd. It forgets everything when it crashes, as the real one does.
#[derive(Default)]
pub struct LookupdHost {
    sockets: Arc<Sockets>,
    crash: Notify,
}

impl LookupdHost {
    /// To be called a step before its host crashes.
    pub fn is_about_to_crash(&self) {
        self.crash.notify_one();
    }

    pub async fn run(&self, name: &str) -> Result {
        self.sockets.mend();
        let lookupd = Lookupd::builder().start_detached(&format!("{name}:4161"))?;
        let tcp = TcpListener::bind("0.0.0.0:4160").await?;
        let http = TcpListener::bind("0.0.0.0:4161").await?;
        let registering = accept(tcp, |stream, remote| {
            lookupd.serve_tcp(self.sockets.add(stream), remote.to_string());
        });
        let asking = accept(http, |stream, remote| {
            lookupd.serve_http(self.sockets.add(stream), remote.to_string());
        });
        let crashing = async {
            self.crash.notified().await;
            self.sockets.cut();
            Ok(())
        };
        tokio::try_join!(biased; crashing, registering, asking).map(|_| ())
    }
}

/// Serves whoever connects.
async fn accept(listener: TcpListener, serve: impl Fn(TcpStream, SocketAddr)) -> Result {
    loop {
        let (stream, remote) = listener.accept().await?;
        serve(stream, remote);
    }
}

/// How clients connect.
pub fn connection() -> ConnectionConfig {
    ConnectionConfig::new()
        .dial_timeout(Duration::from_secs(1))
        .handshake_timeout(Duration::from_secs(1))
        .heartbeat_interval(HEARTBEAT)
        .hostname("simulated")
}
