//! How nsqd, which speaks TLS through Go's library, names things: in its statistics and in its errors.

use std::io;

use tokio_rustls::rustls::pki_types::UnixTime;
use tokio_rustls::rustls::{CertificateError, CipherSuite, Error, PeerIncompatible, ProtocolVersion};

/// The version as nsqd's statistics show it.
pub(super) fn version(version: Option<ProtocolVersion>) -> &'static str {
    match version {
        Some(ProtocolVersion::TLSv1_2) => "TLS1.2",
        // No other is spoken.
        _ => "TLS1.3",
    }
}

/// The cipher suite as nsqd's statistics show it, which know names of old ones only.
pub(super) fn cipher_suite(suite: Option<CipherSuite>) -> String {
    match suite {
        Some(
            suite @ (CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
        ) => format!("{suite:?}"),
        suite => format!("Unknown {}", suite.map_or(0, u16::from)),
    }
}

/// What nsqd says about a handshake that failed.
pub(super) fn failure(error: &io::Error) -> String {
    match error.get_ref().and_then(|error| error.downcast_ref::<Error>()) {
        Some(error) => tls_failure(error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => "EOF".to_owned(),
        None => error.to_string(),
    }
}

fn tls_failure(error: &Error) -> String {
    let text = match error {
        Error::NoCertificatesPresented => "client didn't provide a certificate",
        Error::InvalidCertificate(error) => return certificate_failure(error),
        Error::AlertReceived(alert) => return format!("remote error: tls: {}", alert_text(u8::from(*alert))),
        Error::DecryptError => return "local error: tls: bad record MAC".to_owned(),
        Error::InvalidMessage(_) => return "local error: tls: error decoding message".to_owned(),
        Error::PeerIncompatible(incompatible) => match incompatible {
            PeerIncompatible::NoCipherSuitesInCommon => "no cipher suite supported by both client and server",
            PeerIncompatible::NoKxGroupsInCommon => "no ECDHE curve supported by both client and server",
            PeerIncompatible::NoSignatureSchemesInCommon => {
                "peer doesn't support any of the certificate's signature algorithms"
            }
            // Which ones, rustls tells in part only; the last line guesses at a modern client of a server of 1.3.
            PeerIncompatible::Tls12NotOffered => "client offered only unsupported versions: [302 301]",
            PeerIncompatible::SupportedVersionsExtensionRequired => {
                "client offered only unsupported versions: [303 302 301]"
            }
            PeerIncompatible::Tls12NotOfferedOrEnabled => "client offered only unsupported versions: [303]",
            other => return format!("tls: {other:?}"),
        },
        other => return format!("tls: {other}"),
    };
    format!("tls: {text}")
}

fn certificate_failure(error: &CertificateError) -> String {
    let text = match error {
        CertificateError::BadEncoding => {
            return "tls: failed to parse client certificate: x509: malformed certificate".to_owned();
        }
        CertificateError::BadSignature => {
            return "tls: invalid signature by the client certificate: verification error".to_owned();
        }
        CertificateError::ExpiredContext { time, not_after } => format!(
            "certificate has expired or is not yet valid: current time {} is after {}",
            date(*time),
            date(*not_after)
        ),
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "certificate has expired or is not yet valid: current time {} is before {}",
            date(*time),
            date(*not_before)
        ),
        CertificateError::UnknownIssuer => "certificate signed by unknown authority".to_owned(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "certificate specifies an incompatible key usage".to_owned()
        }
        other => other.to_string(),
    };
    format!("tls: failed to verify certificate: x509: {text}")
}

/// A time as Go's RFC 3339 writes it.
fn date(time: UnixTime) -> String {
    let seconds = time.as_secs();
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Years begin in March here, so that the leap day is their last; an era is 400 of them.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

fn alert_text(alert: u8) -> String {
    let text = match alert {
        0 => "close notify",
        10 => "unexpected message",
        20 => "bad record MAC",
        21 => "decryption failed",
        22 => "record overflow",
        30 => "decompression failure",
        40 => "handshake failure",
        42 => "bad certificate",
        43 => "unsupported certificate",
        44 => "revoked certificate",
        45 => "expired certificate",
        46 => "unknown certificate",
        47 => "illegal parameter",
        48 => "unknown certificate authority",
        49 => "access denied",
        50 => "error decoding message",
        51 => "error decrypting message",
        60 => "export restriction",
        70 => "protocol version not supported",
        71 => "insufficient security level",
        80 => "internal error",
        86 => "inappropriate fallback",
        90 => "user canceled",
        100 => "no renegotiation",
        109 => "missing extension",
        110 => "unsupported extension",
        111 => "certificate unobtainable",
        112 => "unrecognized name",
        113 => "bad certificate status response",
        114 => "bad certificate hash value",
        115 => "unknown PSK identity",
        116 => "certificate required",
        120 => "no application protocol",
        121 => "encrypted client hello required",
        other => return format!("alert({other})"),
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio_rustls::rustls::AlertDescription;

    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let date = |seconds| date(UnixTime::since_unix_epoch(Duration::from_secs(seconds)));
        assert_eq!(date(0), "1970-01-01T00:00:00Z");
        assert_eq!(date(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(date(951_868_800), "2000-03-01T00:00:00Z");
        assert_eq!(date(4_107_542_399), "2100-02-28T23:59:59Z");
        assert_eq!(date(4_107_542_400), "2100-03-01T00:00:00Z");
        assert_eq!(date(1_735_689_599), "2024-12-31T23:59:59Z");
    }

    #[test]
    fn failures_have_the_words_of_go() {
        let said = |error: Error| failure(&io::Error::new(io::ErrorKind::InvalidData, error));
        assert_eq!(
            said(Error::AlertReceived(AlertDescription::UnknownCA)),
            "remote error: tls: unknown certificate authority"
        );
        assert_eq!(
            said(Error::AlertReceived(AlertDescription::Unknown(200))),
            "remote error: tls: alert(200)"
        );
        assert_eq!(
            said(CertificateError::UnknownIssuer.into()),
            "tls: failed to verify certificate: x509: certificate signed by unknown authority"
        );
        assert_eq!(
            said(Error::NoCertificatesPresented),
            "tls: client didn't provide a certificate"
        );
    }

    #[test]
    fn suites_are_named_as_nsqd_knows_them() {
        assert_eq!(
            cipher_suite(Some(CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256)),
            "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"
        );
        assert_eq!(
            cipher_suite(Some(CipherSuite::TLS13_AES_128_GCM_SHA256)),
            "Unknown 4865"
        );
    }
}
