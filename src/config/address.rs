//! Addresses as users write them.

use std::sync::Arc;

use crate::error::{Error, Result};

/// Checks that an address is `host:port`. Whether it can be reached is for the dial to find out.
pub(crate) fn parse(option: &str, address: &str) -> Result<Arc<str>> {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let well_formed = !host.is_empty()
        && (bracketed || !host.contains(':'))
        && !host.contains(['/', ' '])
        && port.parse::<u16>().is_ok_and(|port| port != 0);
    if !well_formed {
        return Err(Error::option(
            option,
            format_args!("{address:?}"),
            "host:port, such as 127.0.0.1:4150 or [::1]:4150",
        ));
    }
    Ok(Arc::from(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_host_and_port_is_an_address() {
        for good in ["127.0.0.1:4150", "nsqd.example:1", "[::1]:4150", "nsqd:4150"] {
            assert_eq!(&*parse("nsqd", good).unwrap(), good);
        }
        for bad in [
            "",
            ":4150",
            "nsqd",
            "nsqd:",
            "nsqd:0",
            "nsqd:70000",
            "::1:4150",
            "http://a:1",
            "a b:1",
        ] {
            assert!(parse("nsqd", bad).is_err(), "{bad:?}");
        }
    }
}
