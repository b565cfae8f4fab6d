//! Options by name, applied to what connections negotiate.

use std::sync::Arc;

use super::{ConnectionValues, TlsValues, Values, put};
use crate::config::{Compression, ConnectionConfig};
#[cfg(feature = "tls")]
use crate::config::{TlsConfig, TlsVersion};
use crate::error::{Error, Result};
#[cfg(not(feature = "tls"))]
use crate::error::{ErrorKind, Step};
use crate::transport::TcpConnector;

/// go-nsq's.
const DEFAULT_DEFLATE_LEVEL: u8 = 6;

impl ConnectionConfig {
    /// Sets what was given and leaves the rest. A contradiction is kept, to be told by `validate`.
    pub(crate) fn apply(&mut self, given: &Values) {
        self.apply_plain(&given.connection);
        self.tls_by_name = given.tls.on.unwrap_or(self.tls_by_name);
        let negotiated = self
            .apply_compression(&given.connection)
            .and_then(|()| self.apply_tls(&given.tls));
        if let Err(error) = negotiated {
            self.contradiction.get_or_insert(error);
        }
    }

    fn apply_plain(&mut self, given: &ConnectionValues) {
        if let Some(address) = given.local_address {
            self.connector = Arc::new(TcpConnector::new().local_address(address));
        }
        put(&mut self.dial_timeout, &given.dial_timeout);
        put(&mut self.handshake_timeout, &given.handshake_timeout);
        put(&mut self.heartbeat_interval, &given.heartbeat_interval);
        put(&mut self.max_msg_size, &given.max_msg_size);
        put(&mut self.client_id, &given.client_id);
        put(&mut self.hostname, &given.hostname);
        put(&mut self.user_agent, &given.user_agent);
        put(&mut self.output_buffer_timeout, &given.output_buffer_timeout);
        put(&mut self.plaintext_auth, &given.allow_plaintext_auth);
        // These have a value that stands for not to ask for anything.
        let told = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        put(&mut self.region, &given.region.as_ref().map(told));
        put(&mut self.zone, &given.zone.as_ref().map(told));
        if let Some(timeout) = given.msg_timeout {
            self.msg_timeout = Some(timeout).filter(|timeout| !timeout.is_zero());
        }
        if let Some(secret) = &given.auth_secret {
            self.auth_secret = Some(secret.clone()).filter(|secret| !secret.reveal().is_empty());
        }
        if let Some(bytes) = given.output_buffer_size {
            let bytes = usize::try_from(bytes).ok();
            self.low_latency = bytes.is_none();
            self.output_buffer_size = bytes.or(self.output_buffer_size);
        }
    }

    fn apply_compression(&mut self, given: &ConnectionValues) -> Result<()> {
        let (snappy, deflate) = (given.snappy, given.deflate);
        if snappy == Some(true) && deflate == Some(true) {
            let allowed = "one of the two: nsqd speaks one compression on a connection";
            return Err(Error::option("snappy", "true, and so is deflate", allowed));
        }
        self.compression = match self.compression {
            _ if snappy == Some(true) => Compression::Snappy,
            before if deflate == Some(true) || before.deflate_level().is_some() && deflate.is_none() => {
                let level = given.deflate_level.or(before.deflate_level());
                let level = level.unwrap_or(DEFAULT_DEFLATE_LEVEL);
                Compression::Deflate { level }
            }
            Compression::Snappy if snappy.is_none() => Compression::Snappy,
            _ => Compression::None,
        };
        Ok(())
    }

    #[cfg(feature = "tls")]
    fn apply_tls(&mut self, given: &TlsValues) -> Result<()> {
        if given.on == Some(false) {
            self.tls = None;
            return Ok(());
        }
        if given.on.is_none() && self.tls.is_none() {
            return given.first_setting().map_or(Ok(()), |name| Err(not_asked_for(name)));
        }
        let tls = self.tls.clone().unwrap_or_default();
        self.tls = Some(given.apply_to(tls)?);
        Ok(())
    }

    #[cfg(not(feature = "tls"))]
    fn apply_tls(&mut self, given: &TlsValues) -> Result<()> {
        match (given.on, given.first_setting()) {
            (Some(true), _) => {
                let message = "option tls_v1 is true, and this build has no TLS; turn on feature tls-ring of async-nsq";
                Err(Error::new(ErrorKind::Unsupported, Step::Configure, message))
            }
            (None, Some(name)) => Err(not_asked_for(name)),
            _ => Ok(()),
        }
    }
}

impl TlsValues {
    /// An option that has no meaning without TLS.
    fn first_setting(&self) -> Option<&'static str> {
        let settings = [
            ("tls_root_ca_file", self.root_ca.is_some()),
            ("tls_cert", self.certificate.is_some()),
            ("tls_key", self.key.is_some()),
            ("tls_server_name", self.server_name.is_some()),
            ("tls_min_version", self.only_tls13.is_some()),
            ("tls_insecure_skip_verify", self.skip_verify.is_some()),
        ];
        settings.into_iter().find(|(_, is_set)| *is_set).map(|(name, _)| name)
    }

    #[cfg(feature = "tls")]
    fn apply_to(&self, mut tls: TlsConfig) -> Result<TlsConfig> {
        if self.skip_verify == Some(true) && !self.skip_verify_allowed {
            let allowed = "false, unless the program calls Options::dangerous; to trust an authority of your own, set \
                           tls_root_ca_file";
            return Err(Error::option("tls_insecure_skip_verify", true, allowed));
        }
        put(&mut tls.any_certificate, &self.skip_verify);
        if let Some(path) = &self.root_ca {
            tls.roots.clear();
            tls = tls.root_ca_file(path);
        }
        tls = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => tls.client_certificate_files(certificate, key),
            (None, None) => tls,
            (Some(_), None) => return Err(Error::option("tls_key", "not set, and tls_cert is", "both or none")),
            (None, Some(_)) => return Err(Error::option("tls_cert", "not set, and tls_key is", "both or none")),
        };
        if let Some(name) = &self.server_name {
            tls = tls.server_name(name);
        }
        if let Some(only_tls13) = self.only_tls13 {
            tls = tls.min_version(if only_tls13 {
                TlsVersion::Tls13
            } else {
                TlsVersion::Tls12
            });
        }
        Ok(tls)
    }
}

/// Clear text is never the outcome of a forgotten option.
fn not_asked_for(setting: &str) -> Error {
    let value = format!("not set, and {setting} is");
    Error::option("tls_v1", value, "true for TLS, or false for clear text")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Options;
    use crate::error::ErrorKind;

    impl ConnectionConfig {
        /// All that options can change, as text.
        pub(crate) fn fingerprint(&self) -> String {
            #[cfg(feature = "tls")]
            let tls = &self.tls;
            #[cfg(not(feature = "tls"))]
            let tls = ();
            format!(
                "{:?} {:?} {:?} {:?} {:?} {:?} {:?}",
                self.identify(),
                (&self.connector, self.max_msg_size),
                (self.dial_timeout, self.handshake_timeout),
                (&self.auth_secret, self.plaintext_auth),
                self.heartbeat_interval,
                tls,
                self.contradiction,
            )
        }
    }

    fn options(given: &[(&str, &str)]) -> Options {
        let mut options = Options::new();
        for (name, value) in given {
            options.set(name, *value).unwrap();
        }
        options
    }

    fn applied(mut connection: ConnectionConfig, given: &[(&str, &str)]) -> ConnectionConfig {
        connection.apply(&options(given).values());
        connection
    }

    fn told(given: &[(&str, &str)]) -> String {
        let error = applied(ConnectionConfig::new(), given).validate().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        error.to_string()
    }

    #[test]
    fn what_is_not_given_stays() {
        let mut connection = ConnectionConfig::new()
            .connector(crate::transport::MemoryNetwork::new().connector())
            .client_id("mine")
            .compression(Compression::Deflate { level: 3 })
            .auth_secret("hush")
            .low_latency()
            .topology("eu", "b");
        let before = connection.fingerprint();
        connection.apply(&Values::default());
        assert_eq!(connection.fingerprint(), before);
        let asked = applied(connection, &[("topology_zone", "c"), ("msg_timeout", "90s")]);
        assert!(
            format!("{:?}", asked.connector).contains("Memory"),
            "{:?}",
            asked.connector
        );
        assert!(asked.low_latency);
        let asked = asked.identify();
        assert_eq!(asked.topology_region.as_deref(), Some("eu"));
        assert_eq!(asked.topology_zone.as_deref(), Some("c"));
        assert_eq!(asked.msg_timeout, Some(90_000));
        assert_eq!(asked.deflate_level, Some(3));
    }

    #[test]
    fn of_the_compressions_the_later_call_counts_and_both_at_once_are_an_error() {
        let (none, snappy) = (Compression::None, Compression::Snappy);
        let deflate = |level| Compression::Deflate { level };
        let after = |before, given: &[(&str, &str)]| {
            let connection = applied(ConnectionConfig::new().compression(before), given);
            connection.validate().unwrap();
            connection.compression
        };
        for (before, name, value, now) in [
            (none, "snappy", "true", snappy),
            (none, "snappy", "false", none),
            (none, "deflate", "true", deflate(6)),
            (none, "deflate_level", "9", none),
            (snappy, "deflate", "true", deflate(6)),
            (snappy, "deflate", "false", snappy),
            (snappy, "deflate_level", "9", snappy),
            (snappy, "snappy", "false", none),
            (deflate(3), "snappy", "true", snappy),
            (deflate(3), "snappy", "false", deflate(3)),
            (deflate(3), "deflate", "true", deflate(3)),
            (deflate(3), "deflate", "false", none),
            (deflate(3), "deflate_level", "9", deflate(9)),
        ] {
            assert_eq!(after(before, &[(name, value)]), now, "{before:?} and {name} = {value}");
        }
        let both = |snappy, deflate| [("snappy", snappy), ("deflate", deflate)];
        assert_eq!(after(none, &both("true", "false")), snappy);
        assert_eq!(after(deflate(3), &both("false", "true")), deflate(3));
        assert_eq!(after(deflate(3), &both("false", "false")), none);
        assert_eq!(
            told(&both("true", "true")),
            "configuration: option snappy is true, and so is deflate, allowed is one of the two: nsqd speaks one compression \
             on a connection"
        );
    }

    #[test]
    fn values_that_stand_for_nothing_take_back_what_was_set() {
        let before = ConnectionConfig::new()
            .auth_secret("hush")
            .msg_timeout(std::time::Duration::from_secs(5))
            .topology("eu", "b")
            .allow_plaintext_auth()
            .no_heartbeats()
            .low_latency();
        let now = applied(
            before,
            &[
                ("auth_secret", ""),
                ("msg_timeout", "0"),
                ("topology_region", ""),
                ("topology_zone", ""),
                ("allow_plaintext_auth", "false"),
                ("heartbeat_interval", "30s"),
                ("output_buffer_size", "1024"),
            ],
        );
        let expected = ConnectionConfig::new().output_buffer_size(1024);
        assert_eq!(now.fingerprint(), expected.fingerprint());
    }

    #[test]
    fn n3_options_of_tls_without_tls_are_an_error_and_not_clear_text() {
        for (name, value) in [
            ("tls_root_ca_file", "/ca.pem"),
            ("tls_cert", "/cert.pem"),
            ("tls_key", "/key.pem"),
            ("tls_server_name", "nsqd.example"),
            ("tls_min_version", "tls1.2"),
            ("tls_insecure_skip_verify", "true"),
        ] {
            let text = told(&[(name, value)]);
            let expected =
                format!("option tls_v1 is not set, and {name} is, allowed is true for TLS, or false for clear text");
            assert!(text.ends_with(&expected), "{text}");
            let off = applied(ConnectionConfig::new(), &[(name, value), ("tls_v1", "false")]);
            off.validate().unwrap();
            assert!(!off.asks_for_tls());
        }
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn n3_tls_in_a_build_without_it_names_the_feature() {
        let asked = applied(ConnectionConfig::new(), &[("tls_v1", "true")]);
        let error = asked.validate().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("tls-ring"), "{error}");
    }

    #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))]
    mod tls {
        use super::*;

        #[test]
        fn tls_options_become_tls_settings_and_leave_those_that_are_not_named() {
            let asked = applied(
                ConnectionConfig::new(),
                &[
                    ("tls_v1", "true"),
                    ("tls_root_ca_file", "/ca.pem"),
                    ("tls_cert", "/cert.pem"),
                    ("tls_key", "/key.pem"),
                    ("tls_min_version", "tls1.3"),
                ],
            );
            let expected = TlsConfig::new()
                .root_ca_file("/ca.pem")
                .client_certificate_files("/cert.pem", "/key.pem")
                .min_version(TlsVersion::Tls13);
            assert_eq!(format!("{:?}", asked.tls), format!("{:?}", Some(expected.clone())));
            // Now the connection has TLS, and what is given later is added or replaces what was there.
            let asked = applied(
                asked,
                &[("tls_server_name", "nsqd.example"), ("tls_root_ca_file", "/other.pem")],
            );
            assert!(asked.contradiction.is_none());
            let tls = format!("{:?}", asked.tls);
            let mut expected = expected.server_name("nsqd.example");
            expected.roots.clear();
            assert_eq!(tls, format!("{:?}", Some(expected.root_ca_file("/other.pem"))));
            assert!(applied(asked, &[("tls_v1", "false")]).tls.is_none());
        }

        #[test]
        fn a_certificate_and_its_key_come_together() {
            let text = told(&[("tls_v1", "true"), ("tls_cert", "/cert.pem")]);
            assert!(
                text.ends_with("option tls_key is not set, and tls_cert is, allowed is both or none"),
                "{text}"
            );
            let text = told(&[("tls_v1", "true"), ("tls_key", "/key.pem")]);
            assert!(
                text.ends_with("option tls_cert is not set, and tls_key is, allowed is both or none"),
                "{text}"
            );
        }

        #[test]
        fn n3_certificates_are_looked_at_unless_the_program_says_otherwise() {
            let given = &[("tls_v1", "true"), ("tls_insecure_skip_verify", "true")];
            let text = told(given);
            assert!(
                text.contains("tls_insecure_skip_verify is true, allowed is false, unless"),
                "{text}"
            );
            assert!(text.contains("Options::dangerous"), "{text}");

            let mut connection = ConnectionConfig::new();
            connection.apply(&options(given).dangerous().allow_skip_verify().values());
            connection.validate().unwrap();
            assert!(connection.tls.as_ref().unwrap().any_certificate);
            let safe_again = applied(connection, &[("tls_insecure_skip_verify", "false")]);
            assert!(!safe_again.tls.unwrap().any_certificate);
        }

        #[test]
        fn files_that_are_none_are_told_at_the_start_and_not_when_set() {
            let text = told(&[("tls_v1", "true"), ("tls_root_ca_file", "/no/such/file")]);
            assert!(text.contains("/no/such/file"), "{text}");
        }
    }
}
