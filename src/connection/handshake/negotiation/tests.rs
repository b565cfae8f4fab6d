use serde_json::{Value, json};

use super::*;

const SECRET: &str = "sesame";

fn named() -> (Topic, Channel) {
    (Topic::new("orders").unwrap(), Channel::new("billing").unwrap())
}

/// What is sent after each of nsqd's answers, without the magic and IDENTIFY, and what was agreed on.
fn talk(config: &ConnectionConfig, answers: &[&[u8]]) -> Result<(Vec<String>, Negotiated)> {
    let (topic, channel) = named();
    let mut out = BytesMut::new();
    let mut negotiation = Negotiation::begin(config, Some((&topic, &channel)), &mut out);
    let mut steps = Vec::new();
    for answer in answers {
        out.clear();
        let next = negotiation.handle_response(answer, &mut out)?;
        if next == Next::Encrypt {
            negotiation.handle_encrypted(TlsSession {
                version: "TLSv1_3".to_owned(),
                cipher: String::new(),
            });
        }
        steps.push(match next {
            Next::Answer => String::from_utf8_lossy(&out).trim_end().to_owned(),
            next => format!("{next:?}"),
        });
    }
    Ok((steps, negotiation.into_agreed()))
}

fn granting(fields: Value) -> Vec<u8> {
    let mut answer: Value = serde_json::from_slice(&IdentifyResponse::default().to_json()).unwrap();
    for (field, value) in fields.as_object().unwrap() {
        answer[field] = value.clone();
    }
    serde_json::to_vec(&answer).unwrap()
}

fn deflate(level: u8) -> ConnectionConfig {
    ConnectionConfig::new().compression(Compression::Deflate { level })
}

#[test]
fn a_plain_nsqd_is_subscribed_at_once() {
    let (steps, agreed) = talk(&ConnectionConfig::new(), &[&granting(json!({"version": "9"})), b"OK"]).unwrap();
    assert_eq!(steps, ["SUB orders billing", "Ready"]);
    assert_eq!(agreed.identify.version, "9");
    assert!(agreed.auth.is_none() && agreed.tls.is_none());
}

#[test]
fn a_producer_is_ready_when_nothing_is_left_to_negotiate() {
    let config = ConnectionConfig::new();
    let mut out = BytesMut::new();
    let mut negotiation = Negotiation::begin(&config, None, &mut out);
    assert!(out.starts_with(b"  V2IDENTIFY\n"));
    out.clear();
    let next = negotiation.handle_response(b"OK", &mut out).unwrap();
    assert!(
        next == Next::Ready && out.is_empty(),
        "an nsqd too old to negotiate is as good"
    );
}

#[test]
fn compression_is_confirmed_before_anything_else_is_sent() {
    let snappy = ConnectionConfig::new().compression(Compression::Snappy);
    let (steps, _) = talk(&snappy, &[&granting(json!({"snappy": true})), b"OK", b"OK"]).unwrap();
    assert_eq!(steps, ["Compress(Snappy)", "SUB orders billing", "Ready"]);
    // nsqd's own maximum counts for both directions; a nonsensical one is taken for the nearest.
    for (granted, level) in [(3, 3), (9, 9), (0, 1), (-4, 8), (900, 8)] {
        let answer = granting(json!({"deflate": true, "deflate_level": granted}));
        let (steps, _) = talk(&deflate(8), &[&answer]).unwrap();
        assert_eq!(steps, [format!("Compress(Deflate {{ level: {level} }})")], "{granted}");
    }
}

#[cfg(feature = "tls")]
#[test]
fn each_layer_has_its_own_ok_and_auth_comes_last() {
    let config = deflate(6).tls(crate::TlsConfig::new()).auth_secret(SECRET);
    let answers: [&[u8]; 5] = [
        &granting(json!({"tls_v1": true, "deflate": true, "auth_required": true})),
        b"OK",
        b"OK",
        br#"{"identity":"bob","identity_url":"","permission_count":1}"#,
        b"OK",
    ];
    let (steps, agreed) = talk(&config, &answers).unwrap();
    let auth = "AUTH\n\0\0\0\u{6}sesame";
    assert_eq!(
        steps,
        [
            "Encrypt",
            "Compress(Deflate { level: 6 })",
            auth,
            "SUB orders billing",
            "Ready"
        ]
    );
    assert_eq!(agreed.auth.unwrap().identity, "bob");
    assert_eq!(agreed.tls.unwrap().version, "TLSv1_3");
}

#[cfg(feature = "tls")]
#[test]
fn n3_what_was_asked_for_and_not_granted_is_an_error_that_says_what_to_do() {
    let tls = ConnectionConfig::new().tls(crate::TlsConfig::new());
    for (config, step, advice) in [
        (tls, Step::Tls, "--tls-cert"),
        (
            ConnectionConfig::new().compression(Compression::Snappy),
            Step::Compression,
            "--snappy",
        ),
        (deflate(6), Step::Compression, "--deflate"),
        (
            ConnectionConfig::new().sample_rate(10),
            Step::Identify,
            "sample_rate of 10",
        ),
    ] {
        for answer in [&granting(json!({}))[..], b"OK"] {
            let error = talk(&config, &[answer]).unwrap_err();
            assert_eq!((error.kind(), error.step()), (ErrorKind::Unsupported, Some(step)));
            assert!(error.to_string().contains(advice), "{error}");
        }
    }
}

#[test]
fn what_was_not_asked_for_and_is_granted_is_a_broken_peer() {
    for feature in ["tls_v1", "snappy", "deflate"] {
        let error = talk(&ConnectionConfig::new(), &[&granting(json!({feature: true}))]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol);
    }
}

#[test]
fn n3_the_secret_is_sent_only_if_it_is_demanded_and_only_in_clear_if_that_is_allowed() {
    let demanding = granting(json!({"auth_required": true}));
    let (with, without) = (ConnectionConfig::new().auth_secret(SECRET), ConnectionConfig::new());
    let (steps, _) = talk(&with, &[&granting(json!({}))]).unwrap();
    assert_eq!(steps, ["SUB orders billing"]);
    for (config, advice) in [(&without, "auth_secret"), (&with, "allow_plaintext_auth")] {
        let error = talk(config, &[&demanding]).unwrap_err();
        assert_eq!((error.kind(), error.step()), (ErrorKind::Unsupported, Some(Step::Auth)));
        assert!(
            error.to_string().contains(advice) && !format!("{error:?}").contains(SECRET),
            "{error:?}"
        );
    }
    let (steps, _) = talk(&with.allow_plaintext_auth(), &[&demanding, b"{}"]).unwrap();
    assert_eq!(steps, ["AUTH\n\0\0\0\u{6}sesame", "SUB orders billing"]);
}

#[test]
fn answers_that_are_not_nsqds_are_errors_that_name_the_step() {
    let snappy = ConnectionConfig::new().compression(Compression::Snappy);
    let granted = granting(json!({"snappy": true, "auth_required": true}));
    let snappy = snappy.auth_secret(SECRET).allow_plaintext_auth();
    let answers: [&[u8]; 4] = [&granted, b"OK", b"{}", b"OK"];
    for (wrong, step) in [Step::Identify, Step::Compression, Step::Auth, Step::Subscribe]
        .into_iter()
        .enumerate()
    {
        let mut answers = answers;
        answers[wrong] = b"OKAY";
        let error = talk(&snappy, &answers).unwrap_err();
        assert_eq!((error.kind(), error.step()), (ErrorKind::Protocol, Some(step)));
    }
}

#[test]
fn refusals_keep_their_code_and_say_what_to_do() {
    let config = ConnectionConfig::new();
    let negotiation = Negotiation::begin(&config, None, &mut BytesMut::new());
    let error = negotiation.handle_error(b"E_UNAUTHORIZED AUTH no authorizations found");
    assert_eq!(error.code(), Some(protocol::ErrorCode::Unauthorized));
    assert!(error.to_string().contains("secret"));
    let error = negotiation.handle_error(b"E_INVALID cannot SUB in current state (TLS required)");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("ConnectionConfig::tls"));
}

#[test]
fn n3_a_peer_that_repeats_the_secret_does_not_get_it_into_an_error() {
    // A long one is cut off when it is shown, and a line break in one is escaped.
    for secret in ["hush-".repeat(400), "hush-\nhush-".to_owned()] {
        let config = ConnectionConfig::new().auth_secret(&secret).allow_plaintext_auth();
        let negotiation = Negotiation::begin(&config, None, &mut BytesMut::new());
        let error = negotiation.handle_error(format!("E_INVALID what is {secret}?").as_bytes());
        assert!(error.to_string().contains("E_INVALID what is (the secret)?"), "{error}");
        let demanding = granting(json!({"auth_required": true}));
        let error = talk(&config, &[&demanding, b"{}", secret.as_bytes()]).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hush"), "{error:?}");
    }
}
