//! Addresses as users write them and nsqlookupds announce them.

use std::sync::Arc;

use crate::error::{Error, Result};

/// The longest host name that DNS allows.
const MAX_HOST: usize = 253;

/// The host and the port of `host:port`, the host without the brackets of an IPv6 address. Whether it can be reached is
/// for the dial to find out.
///
/// # Errors
/// What is wrong with it, in words that follow a colon.
pub(crate) fn split(address: &str) -> Result<(&str, u16), &'static str> {
    if address.contains("://") {
        return Err("a scheme is not supported");
    }
    let Some((host, port)) = address.rsplit_once(':') else {
        return Err("the port is missing");
    };
    let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let port = match port.parse() {
        Ok(port) if is_number && port != 0 => port,
        _ => return Err("the port is not a number from 1 to 65535"),
    };
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if inner.is_none() && host.contains([':', '[', ']']) {
        return Err("an IPv6 address needs brackets, as in [::1]:4150");
    }
    let inner = inner.unwrap_or(host);
    let is_host = |byte: u8| byte.is_ascii_graphic() && !b"/?#@\\[]".contains(&byte);
    if inner.is_empty() || inner.len() > MAX_HOST || !inner.bytes().all(is_host) {
        return Err("the host is not a host name or IP address");
    }
    Ok((inner, port))
}

/// Checks the address of an nsqd.
pub(crate) fn parse(option: &str, address: &str) -> Result<Arc<str>> {
    match split(address) {
        Ok(_) => Ok(Arc::from(address)),
        Err(reason) => Err(Error::option(
            option,
            format_args!("{address:?} ({reason})"),
            "host:port, such as 127.0.0.1:4150 or [::1]:4150",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_host_and_port_is_an_address() {
        for good in [
            "127.0.0.1:4150",
            "nsqd.example:1",
            "[::1]:4150",
            "[fe80::1%eth0]:4150",
            "nsqd_1:4150",
        ] {
            assert_eq!(&*parse("nsqd", good).unwrap(), good);
        }
        let too_long = format!("{}:4150", "x".repeat(254));
        for bad in [
            "",
            ":4150",
            "nsqd",
            "nsqd:",
            "nsqd:0",
            "nsqd:+1",
            "nsqd:70000",
            "::1:4150",
            "[]:4150",
            "[::1:4150",
            "http://a:1",
            "a/b:1",
            "user@a:1",
            "a b:1",
            "a\n:1",
            "ümlaut:1",
            &too_long,
        ] {
            let error = parse("nsqd", bad).unwrap_err();
            assert!(error.to_string().contains("option nsqd"), "{error}");
        }
    }

    #[test]
    fn brackets_are_no_part_of_the_host() {
        assert_eq!(split("[::1]:4150"), Ok(("::1", 4150)));
        assert_eq!(split("nsqd:4150"), Ok(("nsqd", 4150)));
    }
}
