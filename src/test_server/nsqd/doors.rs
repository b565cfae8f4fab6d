//! Where the sides of an [`Nsqd`](super::Nsqd) listen.

use std::io;

use super::builder::Places;
use crate::test_server::listener::{Door, split_address};
use crate::transport::MemoryNetwork;

/// The doors of one nsqd: all are open, or none.
pub(super) struct Doors {
    pub(super) tcp: Door,
    pub(super) http: Door,
    /// Only with a certificate.
    pub(super) https: Option<Door>,
}

impl Doors {
    /// At the places given, and where none is, at free loopback ports.
    pub(super) fn tcp(places: &Places, tls: bool) -> io::Result<Self> {
        Ok(Self {
            tcp: Door::tcp(places.tcp.as_deref())?,
            http: Door::tcp(places.http.as_deref())?,
            https: tls.then(|| Door::tcp(places.https.as_deref())).transpose()?,
        })
    }

    /// In a memory network: TCP at `address`, and HTTP and HTTPS at the places given, or at the two ports above.
    pub(super) fn memory(network: &MemoryNetwork, address: &str, places: &Places, tls: bool) -> io::Result<Self> {
        Self::beside(address, places, tls, |address| Door::memory(network, address))
    }

    /// Where nobody listens, by the same addresses.
    pub(super) fn detached(address: &str, places: &Places, tls: bool) -> io::Result<Self> {
        Self::beside(address, places, tls, Door::detached)
    }

    fn beside(address: &str, places: &Places, tls: bool, open: impl Fn(&str) -> io::Result<Door>) -> io::Result<Self> {
        let place = |given: &Option<String>, distance| match given {
            Some(place) => open(place),
            None => open(&above(address, distance)?),
        };
        Ok(Self {
            tcp: open(address)?,
            http: place(&places.http, 1)?,
            https: tls.then(|| place(&places.https, 2)).transpose()?,
        })
    }
}

/// The address of a port so many above.
fn above(address: &str, distance: u16) -> io::Result<String> {
    let (_, port) = split_address(address)?;
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let port = port.checked_add(distance).ok_or_else(|| {
        let message = format!("{address:?}: HTTP is served {distance} ports above, where there is none");
        io::Error::new(io::ErrorKind::InvalidInput, message)
    })?;
    Ok(format!("{host}:{port}"))
}
