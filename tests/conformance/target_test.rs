//! The test broker, in memory.

use std::any::Any;
use std::sync::Arc;

use async_nsq::test_server::{Lookupd, Nsqd};
use async_nsq::transport::MemoryNetwork;

use super::authd::{Authd, Listener};
use super::certificates::Certificates;
use super::table::Line;
use super::target::{Target, Time, flags};

const AUTH: &str = "auth:4181";

/// Starts the broker that a line asks for, in a network of its own. The clock should be paused.
pub(crate) async fn start(line: &Line, certificates: &Arc<Certificates>) -> Result<Target, String> {
    let network = MemoryNetwork::new();
    let auth = match line.option("auth") {
        Some(_) => {
            let listener = network.listen(AUTH).map_err(|error| error.to_string())?;
            Some(Authd::start(Listener::Memory(listener)))
        }
        None => None,
    };
    let flags = flags(line, certificates, auth.as_ref().map(|_| AUTH));
    let lookupd = line.option("lookupd").is_some();
    let started = match lookupd {
        true => start_lookupd(&network, flags).await,
        false => start_nsqd(&network, flags).await,
    };
    let (broker, tcp, http) = started?;
    Ok(Target {
        connector: Arc::new(network.connector()),
        tcp,
        http,
        lookupd,
        auth,
        certificates: Arc::clone(certificates),
        time: Time::Virtual,
        _broker: broker,
    })
}

type Started = Result<(Box<dyn Any + Send + Sync>, String, String), String>;

/// HTTP is at the port above that of TCP.
async fn start_nsqd(network: &MemoryNetwork, flags: Vec<(String, String)>) -> Started {
    let mut builder = Nsqd::builder();
    for (name, value) in flags {
        builder = builder.flag(&name, &value).map_err(|error| error.to_string())?;
    }
    let nsqd = builder
        .start_in(network, "nsqd:4150")
        .await
        .map_err(|error| error.to_string())?;
    let tcp = nsqd.address().to_owned();
    Ok((Box::new(nsqd), tcp, "nsqd:4151".to_owned()))
}

async fn start_lookupd(network: &MemoryNetwork, flags: Vec<(String, String)>) -> Started {
    let mut builder = Lookupd::builder();
    for (name, value) in flags {
        builder = builder.flag(&name, &value).map_err(|error| error.to_string())?;
    }
    let lookupd = builder
        .start_in(network, "lookupd:4161")
        .await
        .map_err(|error| error.to_string())?;
    let (tcp, http) = (lookupd.tcp_address().to_owned(), lookupd.address().to_owned());
    Ok((Box::new(lookupd), tcp, http))
}
