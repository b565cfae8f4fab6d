//! How to ask one nsqlookupd.

use std::fmt;
use std::sync::Arc;

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

#[cfg(feature = "tls")]
use super::TlsConfig;
use super::{ConnectionConfig, address};
use crate::error::{Error, ErrorKind, Result, Step};
use crate::protocol::Secret;
#[cfg(feature = "tls")]
use crate::transport::tls;

const DEFAULT_HTTPS_PORT: u16 = 443;

/// Headers that this crate or HTTP itself decides on.
const RESERVED: [HeaderName; 7] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Headers that carry credentials whoever reads them may use.
const CREDENTIALS: [HeaderName; 3] = [header::AUTHORIZATION, header::COOKIE, header::PROXY_AUTHORIZATION];

/// An nsqlookupd and how to ask it. A plain address is enough where it asks for nothing special.
///
/// A setter never fails; what is wrong is reported by [`ConsumerBuilder::start`](crate::ConsumerBuilder::start).
///
/// ```
/// use async_nsq::{Consumer, LookupdConfig};
///
/// let builder = Consumer::builder("orders", "billing")
///     .lookupd("10.0.0.1:4161")
///     .lookupd(
///         LookupdConfig::new("http://10.0.0.2:4161")
///             .header("X-Team", "billing")
///             .bearer("open sesame")
///             .allow_plaintext_auth(), // it goes over http://
///     );
/// # let _ = builder;
/// ```
#[derive(Clone)]
#[must_use = "it does nothing until it is given to a builder"]
pub struct LookupdConfig {
    address: String,
    headers: Vec<(String, Secret)>,
    plaintext_auth: bool,
    #[cfg(feature = "tls")]
    tls: Option<TlsConfig>,
}

impl LookupdConfig {
    /// The nsqlookupd whose HTTP interface is at `address`: `host:port`, `http://host:port` or `https://host` with or
    /// without a port (443 by default). nsqlookupd's own port is 4161 and speaks no TLS, so `https://` leads to a proxy
    /// in front of it; it needs one of this crate's TLS features.
    pub fn new(address: impl Into<String>) -> Self {
        Self {
            address: address.into(),
            headers: Vec::new(),
            plaintext_auth: false,
            #[cfg(feature = "tls")]
            tls: None,
        }
    }

    /// Adds an HTTP header to each request, or replaces one of this name. Default: `Accept`, `Host` and `User-Agent`,
    /// which this may replace.
    ///
    /// Its value is treated as a secret: it is not shown by `Debug`, in logs or in errors. `Authorization`,
    /// `Proxy-Authorization` and `Cookie` need `https://` or [`allow_plaintext_auth`](Self::allow_plaintext_auth).
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Secret>) -> Self {
        let name = name.into();
        self.headers.retain(|(other, _)| !other.eq_ignore_ascii_case(&name));
        self.headers.push((name, value.into()));
        self
    }

    /// Sends `Authorization: Bearer <secret>`, as go-nsq does with its `auth_secret`. nsqlookupd itself ignores it; it is
    /// for a proxy in front of it.
    ///
    /// Needs `https://` or [`allow_plaintext_auth`](Self::allow_plaintext_auth).
    pub fn bearer(self, secret: impl Into<Secret>) -> Self {
        let secret = secret.into();
        let value = [b"Bearer ", &secret.reveal()[..]].concat();
        self.header(header::AUTHORIZATION.as_str(), Secret::new(value))
    }

    /// Lets credentials travel over `http://`, where everybody on the way can read and reuse them. Default: that is
    /// refused when the consumer starts.
    pub fn allow_plaintext_auth(mut self) -> Self {
        self.plaintext_auth = true;
        self
    }

    /// How to speak TLS with it. Default: as with nsqd ([`ConnectionConfig::tls`]) but for the name, else
    /// [`TlsConfig::new`]. Its address must begin with `https://`.
    #[cfg(feature = "tls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
    pub fn tls(mut self, tls: TlsConfig) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Speaks TLS by the settings for nsqd, where it has none of its own and is to speak it.
    #[cfg_attr(not(feature = "tls"), expect(unused_mut, unused_variables))]
    pub(crate) fn with_tls_of(mut self, connection: &ConnectionConfig) -> Self {
        #[cfg(feature = "tls")]
        if self.tls.is_none() && Place::parse(&self.address).is_ok_and(|place| place.tls) {
            // The name is that in the certificates of nsqds.
            let without_name = |tls: &TlsConfig| TlsConfig {
                server_name: None,
                ..tls.clone()
            };
            self.tls = connection.tls.as_ref().map(without_name);
        }
        self
    }

    /// Checks everything that can be checked without asking.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`], naming the option; [`ErrorKind::Unsupported`] for `https://` without TLS or cryptography in
    /// this build.
    pub(crate) fn resolve(&self) -> Result<LookupdTarget> {
        let place = Place::parse(&self.address)?;
        Ok(LookupdTarget {
            headers: self.header_map(&place)?,
            #[cfg(feature = "tls")]
            tls: self.tls_to(&place)?,
            address: place.address()?,
            authority: place.authority,
        })
    }

    #[cfg(feature = "tls")]
    fn tls_to(&self, place: &Place) -> Result<Option<TlsConfig>> {
        if !place.tls {
            return match self.tls {
                // TLS that was asked for is TLS or an error.
                Some(_) => Err(refused(place, "TLS", "an address that begins with https://")),
                None => Ok(None),
            };
        }
        let tls = self.tls.clone().unwrap_or_default();
        tls::check(&tls, place.host())?;
        Ok(Some(tls))
    }

    fn header_map(&self, place: &Place) -> Result<HeaderMap> {
        let mut headers = HeaderMap::with_capacity(self.headers.len() + 3);
        let user_agent = HeaderValue::from_static(concat!("async-nsq/", env!("CARGO_PKG_VERSION")));
        headers.insert(header::USER_AGENT, user_agent);
        headers.insert(
            header::ACCEPT,
            HeaderValue::from_static("application/vnd.nsq; version=1.0"),
        );
        let host = HeaderValue::from_str(&place.authority).map_err(|_| refused(place, "the host", "a host name"))?;
        headers.insert(header::HOST, host);
        for (name, value) in &self.headers {
            let shown = format!("header {name:?}");
            let Ok(name) = HeaderName::try_from(name.as_str()) else {
                return Err(refused(place, &shown, "a name of letters, digits and hyphens"));
            };
            let Ok(mut value) = HeaderValue::from_maybe_shared(value.reveal().clone()) else {
                return Err(refused(
                    place,
                    &shown,
                    "a value without line breaks and control characters",
                ));
            };
            if RESERVED.contains(&name) {
                return Err(refused(
                    place,
                    &shown,
                    "a header that does not change how the request is sent",
                ));
            }
            if CREDENTIALS.contains(&name) && !place.tls && !self.plaintext_auth {
                return Err(refused(
                    place,
                    &shown,
                    "credentials over https:// only, unless allow_plaintext_auth is called",
                ));
            }
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        Ok(headers)
    }
}

/// Values are not shown: they may be secrets.
fn refused(place: &Place, what: &str, allowed: &str) -> Error {
    Error::option("lookupd", format_args!("{} with {what}", place.name()), allowed)
}

impl From<&str> for LookupdConfig {
    fn from(address: &str) -> Self {
        Self::new(address)
    }
}

impl From<String> for LookupdConfig {
    fn from(address: String) -> Self {
        Self::new(address)
    }
}

impl From<&String> for LookupdConfig {
    fn from(address: &String) -> Self {
        Self::new(address)
    }
}

impl fmt::Debug for LookupdConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A password in the address is refused later, and must not be shown before.
        let address = match self.address.rsplit_once('@') {
            Some((_, address)) => format!("…@{address}"),
            None => self.address.clone(),
        };
        f.debug_struct("LookupdConfig")
            .field("address", &address)
            .field("headers", &self.headers)
            .field("plaintext_auth", &self.plaintext_auth)
            .finish_non_exhaustive()
    }
}

/// An nsqlookupd, checked and ready to be asked.
#[derive(Clone, Debug)]
pub(crate) struct LookupdTarget {
    /// What it is called in errors, logs and statistics, and known by: `host:port`, or `https://host:port`.
    pub(crate) address: Arc<str>,
    /// What to connect to: `host:port`.
    pub(crate) authority: Arc<str>,
    pub(crate) headers: HeaderMap,
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<TlsConfig>,
}

impl LookupdTarget {
    /// The name by which an nsqlookupd given with this address is known.
    pub(crate) fn name(address: &str) -> Result<Arc<str>> {
        Place::parse(address).map(|place| place.name())
    }

    /// The host alone, without the brackets of an IPv6 address.
    #[cfg(feature = "tls")]
    pub(crate) fn host(&self) -> &str {
        host(&self.authority)
    }
}

/// Where an nsqlookupd is.
struct Place {
    authority: Arc<str>,
    tls: bool,
}

impl Place {
    fn parse(text: &str) -> Result<Self> {
        if text.contains('@') {
            // The text is not shown: it may hold a password.
            return Err(invalid(
                "an nsqlookupd address contains @; credentials in it are not supported, use LookupdConfig::header"
                    .into(),
            ));
        }
        let (tls, bare) = match text.split_once("://") {
            None => (false, text),
            Some((scheme, bare)) if scheme.eq_ignore_ascii_case("http") => (false, bare),
            Some((scheme, bare)) if scheme.eq_ignore_ascii_case("https") => (true, bare),
            Some(_) => return Err(malformed(text, "the scheme is not http or https")),
        };
        let bare = bare.strip_suffix('/').unwrap_or(bare);
        if bare.contains(['/', '?', '#']) {
            return Err(malformed(text, "a path is not supported"));
        }
        let has_port = bare.contains(':') && !bare.ends_with(']');
        let authority = if tls && !has_port {
            format!("{bare}:{DEFAULT_HTTPS_PORT}")
        } else {
            bare.to_owned()
        };
        match address::split(&authority) {
            Ok(_) => Ok(Self {
                authority: authority.into(),
                tls,
            }),
            Err(reason) => Err(malformed(text, reason)),
        }
    }

    /// The name of what this build can reach.
    fn address(&self) -> Result<Arc<str>> {
        if self.tls && !cfg!(feature = "tls") {
            let message = format!(
                "nsqlookupd address {}: this build has no TLS; turn on feature tls-ring of async-nsq, or give http://",
                self.name()
            );
            return Err(Error::new(ErrorKind::Unsupported, Step::Configure, message));
        }
        Ok(self.name())
    }

    #[cfg(feature = "tls")]
    fn host(&self) -> &str {
        host(&self.authority)
    }

    fn name(&self) -> Arc<str> {
        if self.tls {
            format!("https://{}", self.authority).into()
        } else {
            Arc::clone(&self.authority)
        }
    }
}

#[cfg(feature = "tls")]
fn host(authority: &str) -> &str {
    // It was checked, so there always is a host.
    address::split(authority).map_or(authority, |(host, _)| host)
}

fn malformed(text: &str, what: &str) -> Error {
    invalid(format!(
        "nsqlookupd address {text:?}: {what}; give host:port of its HTTP interface, as in 127.0.0.1:4161"
    ))
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::Invalid, Step::Configure, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(config: &LookupdConfig) -> String {
        let error = config.resolve().unwrap_err();
        assert_eq!(
            (error.kind(), error.step()),
            (ErrorKind::Invalid, Some(Step::Configure)),
            "{error}"
        );
        error.to_string()
    }

    #[test]
    fn addresses_are_taken_with_and_without_scheme() {
        for (given, meant) in [
            ("127.0.0.1:4161", "127.0.0.1:4161"),
            ("http://lookupd.example:4161", "lookupd.example:4161"),
            ("HTTP://lookupd:80/", "lookupd:80"),
            ("[::1]:4161", "[::1]:4161"),
            ("http://[fe80::1]:4161/", "[fe80::1]:4161"),
            ("https://lookupd", "https://lookupd:443"),
            ("https://lookupd2/", "https://lookupd2:443"),
            ("HTTPS://lookupd:4161/", "https://lookupd:4161"),
            ("https://[::1]", "https://[::1]:443"),
            ("https://[::1]:8443", "https://[::1]:8443"),
        ] {
            assert_eq!(&*LookupdTarget::name(given).unwrap(), meant);
        }
    }

    #[cfg(all(feature = "tls", not(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))))]
    #[test]
    fn n3_https_without_cryptography_is_an_error_that_names_the_ways_out() {
        let error = LookupdConfig::new("https://lookupd").resolve().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        for part in ["tls-ring", "tls-aws-lc-rs", "CryptoProvider", "TlsConfig::rustls"] {
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn n3_https_in_a_build_without_tls_names_the_feature() {
        let error = LookupdConfig::new("https://lookupd").resolve().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("tls-ring"), "{error}");
    }

    #[cfg(feature = "tls")]
    #[test]
    fn n3_tls_settings_for_an_address_without_tls_are_an_error() {
        for address in ["lookupd:4161", "http://lookupd:4161"] {
            let text = told(&LookupdConfig::new(address).tls(TlsConfig::new()));
            assert!(text.contains("https://"), "{text}");
        }
    }

    #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))]
    #[test]
    fn lesson_64_tls_settings_that_cannot_work_are_told_before_anything_is_asked() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty.pem");
        std::fs::write(&empty, "no certificate").unwrap();
        let plain = TlsConfig::new;
        let ready = rustls_with_no_roots();
        for (tls, part) in [
            (plain().root_ca_file("/no/such/file"), "/no/such/file"),
            (plain().root_ca_file(&empty), "empty.pem"),
            (plain().root_ca_pem("garbage"), "root_ca"),
            (plain().client_certificate_pem("garbage", "hush"), "client_certificate"),
            (plain().client_certificate_files(&empty, &empty), "client_certificate"),
            (plain().server_name("no name"), "server_name"),
            (plain().rustls(ready).root_ca_pem("x"), "rustls"),
        ] {
            let config = LookupdConfig::new("https://lookupd").tls(tls);
            let text = told(&config);
            assert!(text.contains(part), "{text}");
            assert!(!format!("{text} {config:?}").contains("hush"), "{text}");
        }
    }

    #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))]
    #[test]
    fn n3_a_key_in_the_wrong_shape_or_place_is_not_shown() {
        use std::error::Error as _;
        // As a variable of the environment often has it.
        let key = "-----BEGIN PRIVATE KEY----- aHVzaA== -----END PRIVATE KEY-----";
        let certificate = rcgen::generate_simple_self_signed(["nsqd".to_owned()])
            .unwrap()
            .cert
            .pem();
        let folder = tempfile::tempdir().unwrap();
        let paths = ["key.pem", "certificate.pem"].map(|name| folder.path().join(name));
        std::fs::write(&paths[0], key).unwrap();
        std::fs::write(&paths[1], &certificate).unwrap();
        for tls in [
            TlsConfig::new().client_certificate_pem(certificate.clone(), key),
            TlsConfig::new().client_certificate_pem(key, certificate),
            TlsConfig::new().client_certificate_files(&paths[1], &paths[0]),
            TlsConfig::new().client_certificate_files(&paths[1], key),
        ] {
            let error = LookupdConfig::new("https://lookupd")
                .tls(tls.clone())
                .resolve()
                .unwrap_err();
            let told = format!(
                "{error} {:?} {error:?} {tls:?}",
                error.source().map(ToString::to_string)
            );
            assert!(told.contains("client_certificate"), "{told}");
            // As text, and as the list of bytes as which the parser's errors show it.
            assert!(!told.contains("aHVzaA") && !told.contains("97, 72, 86"), "{told}");
        }
    }

    #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))]
    fn rustls_with_no_roots() -> tokio_rustls::rustls::ClientConfig {
        use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};
        ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth()
    }

    #[test]
    fn other_addresses_are_refused_with_what_to_give_instead() {
        for bad in [
            "",
            ":4161",
            "lookupd",
            "http://lookupd",
            "lookupd:",
            "https://lookupd:",
            "https://",
            "lookupd:0",
            "lookupd:+80",
            "lookupd:65536",
            "https://lookupd:65536",
            "::1:4161",
            "https://::1",
            "[]:4161",
            "[::1:4161",
            "two words:4161",
            "line\n:4161",
            "ümlaut:4161",
            "http://lookupd:4161/prefix",
            "lookupd:4161?x",
            "tcp://lookupd:4161",
        ] {
            let text = told(&LookupdConfig::new(bad));
            assert!(text.contains("127.0.0.1:4161"), "{text}");
        }
    }

    #[test]
    fn n3_a_password_in_an_address_is_refused_and_not_shown() {
        for bad in ["http://user:secret@lookupd:4161", "https://user:secret@lookupd:4161"] {
            let config = LookupdConfig::new(bad);
            let text = told(&config);
            assert!(!format!("{text} {config:?}").contains("secret"));
        }
    }

    #[test]
    fn n3_lesson_65_credentials_need_https_or_leave_and_are_never_shown() {
        let plain = LookupdConfig::new("lookupd:4161");
        for config in [
            plain.clone().bearer("sesame"),
            plain.clone().header("authorization", "Basic sesame"),
            plain.clone().header("Cookie", "session=sesame"),
        ] {
            let text = told(&config);
            assert!(
                text.contains("option lookupd") && text.contains("allow_plaintext_auth"),
                "{text}"
            );
            let allowed = config.allow_plaintext_auth();
            let target = allowed.resolve().unwrap();
            let shown = format!("{text} {allowed:?} {target:?}");
            assert!(!shown.contains("sesame"), "{shown}");
        }
        let target = plain.bearer("sesame").allow_plaintext_auth().resolve().unwrap();
        assert_eq!(target.headers["authorization"], "Bearer sesame");
    }

    #[test]
    fn headers_that_cannot_be_sent_are_refused_by_name_and_not_by_value() {
        let plain = LookupdConfig::new("lookupd:4161");
        for (name, value) in [
            ("X Team", "hush"),
            ("", "hush"),
            ("X-Team", "hush\r\nX-Other: 1"),
            ("X-Team", "hush\0"),
            ("Content-Length", "7"),
            ("Transfer-Encoding", "chunked"),
        ] {
            let text = told(&plain.clone().header(name, value));
            assert!(text.contains(&format!("header {name:?}")), "{text}");
            assert!(!text.contains("hush"), "{text}");
        }
    }

    #[test]
    fn a_header_given_again_replaces_the_first_and_ours() {
        let config = LookupdConfig::new("lookupd:4161")
            .header("X-Team", "billing")
            .header("x-team", "orders")
            .header("user-agent", "mine/1")
            .header("Host", "lookupd.example");
        let headers = config.resolve().unwrap().headers;
        let sent = |name| {
            headers
                .get_all(name)
                .iter()
                .map(|value| value.to_str().unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(sent("x-team"), ["orders"]);
        assert_eq!(sent("user-agent"), ["mine/1"]);
        assert_eq!(sent("host"), ["lookupd.example"]);
        assert_eq!(sent("accept"), ["application/vnd.nsq; version=1.0"]);
    }
}
