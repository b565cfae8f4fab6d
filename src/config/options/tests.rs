use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::kind::Special;
use super::table::{ALL, Definition};
use super::*;
use crate::error::Culprit;

/// go-nsq's options, its field tags and `tlsConfig`.
const GO_NSQ_NAMES: [&str; 38] = [
    "auth_secret",
    "backoff_multiplier",
    "backoff_strategy",
    "client_id",
    "default_requeue_delay",
    "deflate",
    "deflate_level",
    "dial_timeout",
    "heartbeat_interval",
    "hostname",
    "local_addr",
    "lookupd_poll_interval",
    "lookupd_poll_jitter",
    "lookupd_poll_timeout",
    "low_rdy_idle_timeout",
    "low_rdy_timeout",
    "max_attempts",
    "max_backoff_duration",
    "max_in_flight",
    "max_requeue_delay",
    "msg_timeout",
    "output_buffer_size",
    "output_buffer_timeout",
    "rdy_redistribute_interval",
    "read_timeout",
    "sample_rate",
    "skip_lookupd_authorization",
    "snappy",
    "tls_cert",
    "tls_insecure_skip_verify",
    "tls_key",
    "tls_min_version",
    "tls_root_ca_file",
    "tls_v1",
    "topology_region",
    "topology_zone",
    "user_agent",
    "write_timeout",
];

/// Texts that the docs say are allowed: the ends of the range, and what is special.
fn documented(kind: Kind) -> Vec<String> {
    let numbers = |least: i64, most: i64, special: Option<Special>| {
        let special = special.map(|special| special.value);
        [Some(least), Some(most), special]
            .into_iter()
            .flatten()
            .map(|number| number.to_string())
            .collect()
    };
    match kind {
        Kind::Time { least, most, special } => {
            let special = special.map(|special| special.value.to_string());
            let ends = [least, most.min(Duration::from_secs(100))].map(duration::shown);
            ends.into_iter().chain(special).collect()
        }
        Kind::Integer { least, most, special } => numbers(least, most, special),
        Kind::Fraction => vec!["0".into(), "0.25".into(), "1".into()],
        Kind::Boolean => vec!["true".into(), "false".into()],
        Kind::Text | Kind::File | Kind::Secret => vec!["/etc/nsq/some thing".into()],
        Kind::Word(words) => words.iter().map(|word| (*word).to_owned()).collect(),
        Kind::Address => vec!["10.0.0.7:0".into(), "[::1]:0".into()],
    }
}

/// Each option that concerns `side`, and no other, changes the builder that it is applied to; a value that the table calls
/// its default changes nothing.
pub(crate) fn check_reach<B: Clone>(
    side: &str,
    builder: &B,
    apply: impl Fn(B, &Options) -> B,
    fingerprint: impl Fn(&B) -> String,
) {
    // Some options have a meaning together with these alone.
    let mut company = set("tls_v1", true).unwrap();
    company.set("deflate", true).unwrap();
    let alone = (builder.clone(), fingerprint(builder));
    let accompanied = apply(builder.clone(), &company);
    let accompanied = (accompanied.clone(), fingerprint(&accompanied));
    let changes = |(builder, before): &(B, String), name, value: &str| {
        fingerprint(&apply(builder.clone(), &set(name, value).unwrap())) != *before
    };
    for (Definition { name, kind, .. }, row) in ALL.iter().zip(told_in_the_docs()) {
        let concerns = row.concerned == "both" || row.concerned == side;
        let reached = documented(*kind).iter().any(|value| changes(&accompanied, name, value));
        assert_eq!(reached, concerns, "{name}");
        let in_words = matches!(kind, Kind::Text | Kind::File | Kind::Secret) || set(name, row.default).is_err();
        if in_words {
            // A value that is none would go unseen.
            let may_be = row.default.contains(' ') || row.default.parse::<f64>().is_err();
            assert!(may_be, "{name} = {}", row.default);
        } else {
            let changes = changes(&alone, name, row.default) && changes(&accompanied, name, row.default);
            assert!(!changes, "{name} = {}", row.default);
        }
    }
}

fn set(name: &str, value: impl Into<OptionValue>) -> Result<Options> {
    let mut options = Options::new();
    options.set(name, value).map(|()| options)
}

fn told(name: &str, value: impl Into<OptionValue>) -> String {
    let error = set(name, value).unwrap_err();
    assert_eq!(
        (error.kind(), error.step(), error.culprit()),
        (ErrorKind::Invalid, Some(Step::Configure), Culprit::Caller)
    );
    error.to_string()
}

/// A row of the table in the docs.
struct Told {
    name: &'static str,
    values: &'static str,
    default: &'static str,
    concerned: &'static str,
}

fn told_in_the_docs() -> Vec<Told> {
    let cell = |text: &'static str| text.trim().trim_matches('`');
    let rows = include_str!("table.md").lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| match row.split('|').map(cell).collect::<Vec<_>>()[..] {
        ["", name, values, default, concerned, about, ""] if !about.is_empty() => Told {
            name,
            values,
            default,
            concerned,
        },
        ref cells => panic!("{cells:?}"),
    })
    .collect()
}

#[test]
fn all_of_go_nsqs_options_are_known_and_each_name_is_there_once() {
    let names: BTreeSet<&str> = ALL.iter().map(|definition| definition.name).collect();
    assert_eq!(names.len(), ALL.len());
    for name in GO_NSQ_NAMES {
        assert!(names.contains(name), "{name}");
    }
}

#[test]
fn the_table_in_the_docs_tells_the_one_in_the_code() {
    let told = told_in_the_docs();
    let told: Vec<_> = told.iter().map(|row| (row.name, row.values.to_owned())).collect();
    let is: Vec<_> = ALL
        .iter()
        .map(|definition| (definition.name, definition.kind.range()))
        .collect();
    assert_eq!(told, is);
}

#[test]
fn what_the_docs_allow_is_taken_and_gets_to_a_setter() {
    for (Definition { name, kind, .. }, row) in ALL.iter().zip(told_in_the_docs()) {
        for text in documented(*kind) {
            let options = set(name, text.as_str()).unwrap_or_else(|error| panic!("{error}"));
            let reaches = options.values() != Values::default();
            assert_eq!(reaches, row.concerned != "nobody", "{name} = {text}");
        }
    }
}

#[test]
fn beyond_the_ends_of_a_range_is_an_error_that_tells_the_range() {
    let milli = 1_000_000;
    for Definition { name, kind, .. } in ALL {
        let outside: Vec<OptionValue> = match *kind {
            Kind::Time { least, most, .. } => {
                let below = least.checked_sub(Duration::from_nanos(1)).map(Into::into);
                let above = most.checked_add(Duration::from_nanos(1)).map(Into::into);
                [below, above, Some((-2).into())].into_iter().flatten().collect()
            }
            Kind::Integer { least, most, .. } => vec![(i128::from(least) - 2).into(), (i128::from(most) + 1).into()],
            Kind::Fraction => vec![
                (-0.1).into(),
                1.1.into(),
                f64::NAN.into(),
                f64::INFINITY.into(),
                "nan".into(),
            ],
            _ => vec![Duration::from_nanos(milli).into()],
        };
        for value in outside {
            let error = told(name, value);
            assert!(error.contains(&format!("option {name} is ")), "{error}");
            assert!(error.contains(&kind.range()), "{error}");
        }
    }
}

#[test]
fn values_are_read_as_go_nsq_reads_them() {
    let values = |name: &str, value: OptionValue| set(name, value).unwrap().values();
    let second = Duration::from_secs(1);
    for (value, time) in [
        ("1m30s".into(), 90 * second),
        ("1.5m".into(), 90 * second),
        ("90000".into(), 90 * second),
        (90_000.into(), 90 * second),
        (9.0e4.into(), 90 * second),
        ((90 * second).into(), 90 * second),
    ] {
        assert_eq!(values("msg_timeout", value).connection.msg_timeout, Some(time));
    }
    for (value, is) in [
        ("T".into(), true),
        ("False".into(), false),
        (true.into(), true),
        (0.into(), false),
        (7.into(), true),
    ] {
        assert_eq!(values("snappy", value).connection.snappy, Some(is));
    }
    for value in ["2500".into(), 2500.into(), 2_500_u64.into(), 2.5e3.into()] {
        assert_eq!(values("max_in_flight", value).consumer.max_in_flight, Some(2500));
    }
    for (value, jitter) in [("0.5".into(), 0.5), (0.5.into(), 0.5), (1.into(), 1.0)] {
        assert_eq!(values("lookupd_poll_jitter", value).discovery.poll_jitter, Some(jitter));
    }
    assert_eq!(values("client_id", 7.into()).connection.client_id.as_deref(), Some("7"));
    assert_eq!(
        values("heartbeat_interval", (-1).into()).connection.heartbeat_interval,
        Some(None)
    );
    assert_eq!(
        values("heartbeat_interval", "-1".into()).connection.heartbeat_interval,
        Some(None)
    );
    assert_eq!(
        values("output_buffer_size", "-1".into()).connection.output_buffer_size,
        Some(-1)
    );
    assert_eq!(values("tls_min_version", "tls1.0".into()).tls.only_tls13, Some(false));
    assert_eq!(values("backoff_strategy", "".into()).consumer.full_jitter, Some(false));
}

#[test]
fn hyphens_are_as_good_as_underscores_and_capitals_are_not() {
    set("max-in-flight", 1).unwrap();
    set("tls_root-ca_file", "/ca.pem").unwrap();
    assert!(told("Max_In_Flight", 1).ends_with("did you mean max_in_flight?"));
}

#[test]
fn errors_name_option_value_and_what_is_allowed() {
    for (name, value, text) in [
        (
            "max_attempts",
            "many".into(),
            "option max_attempts is \"many\", allowed is 0 to 65535",
        ),
        (
            "max_attempts",
            65_536.into(),
            "option max_attempts is 65536, allowed is 0 to 65535",
        ),
        (
            "max_attempts",
            true.into(),
            "option max_attempts is true, allowed is 0 to 65535",
        ),
        (
            "max_in_flight",
            1.5.into(),
            "option max_in_flight is 1.5, allowed is 0 to 4294967295",
        ),
        (
            "low_rdy_timeout",
            "500ms".into(),
            "option low_rdy_timeout is \"500ms\", allowed is 1s to 5m, written as 1m30s or as a number of milliseconds",
        ),
        (
            "heartbeat_interval",
            0.into(),
            "option heartbeat_interval is 0, allowed is 1s to 1m, or -1 for no heartbeats (producers only), written as 1m30s \
             or as a number of milliseconds",
        ),
        (
            "snappy",
            "yes".into(),
            "option snappy is \"yes\", allowed is true or false",
        ),
        (
            "backoff_strategy",
            "linear".into(),
            "option backoff_strategy is \"linear\", allowed is one of exponential, full_jitter",
        ),
        (
            "tls_root_ca_file",
            "".into(),
            "option tls_root_ca_file is \"\", allowed is the path of a file",
        ),
        (
            "local_addr",
            "nsqd".into(),
            "option local_addr is \"nsqd\", allowed is an IP address and a port, as in 10.0.0.7:0",
        ),
        (
            "max_in_fligth",
            1.into(),
            "there is no option \"max_in_fligth\"; did you mean max_in_flight?",
        ),
        (
            "tls_config",
            1.into(),
            "option tls_config cannot be written as text; give it with TlsConfig::rustls",
        ),
        (
            "colour",
            1.into(),
            "there is no option \"colour\"; those that exist are listed in the docs of async_nsq::Options",
        ),
    ] as [(&str, OptionValue, &str); 13]
    {
        assert_eq!(told(name, value), format!("configuration: {text}"));
    }
}

#[test]
fn n3_secrets_are_shown_nowhere() {
    let options = set("auth_secret", "hush").unwrap();
    let values = options.values();
    assert_eq!(values.connection.auth_secret, Some("hush".into()));
    let value = OptionValue::from("hush");
    let dangerous = options.clone().dangerous();
    let shown = format!("{options:?} {values:?} {value:?} {dangerous:?}");
    assert!(!shown.contains("hush") && shown.contains("auth_secret"), "{shown}");

    // Wrong types, and a name that was misspelt.
    for error in [
        told("auth_secret", 271_828),
        told("auth_secret", 271_828.5),
        told("auth_secret", Duration::from_secs(271_828)),
        told("auth_secrte", "271828"),
        Options::from_vars("NSQ_", [("NSQ_AUTH_SECRTE", "271828")])
            .unwrap_err()
            .to_string(),
        Options::from_vars("NSQ_", [("NSQ_AUTH_SECRET", "271828"), ("NSQ_auth_secret", "271828")])
            .unwrap_err()
            .to_string(),
        serde_json::from_str::<Options>(r#"{"auth_secret": 271828}"#)
            .unwrap_err()
            .to_string(),
        serde_json::from_str::<Options>(r#"{"auth_secret": ["271828"]}"#)
            .unwrap_err()
            .to_string(),
        serde_json::from_str::<Options>(r#"{"auth_secret": {"is": "271828"}}"#)
            .unwrap_err()
            .to_string(),
    ] {
        assert!(error.contains("auth_secret") && !error.contains("271828"), "{error}");
    }
    // A key itself where its file's path belongs.
    let error = told(
        "tls_key",
        "-----BEGIN PRIVATE KEY-----\n271828\n-----END PRIVATE KEY-----",
    );
    assert!(
        error.contains("option tls_key is PEM itself") && !error.contains("271828"),
        "{error}"
    );
}

#[test]
fn names_and_values_are_shown_on_one_line_and_not_without_end() {
    let long = format!("a\n{}", "b".repeat(100_000));
    for error in [told(&long, 1), told("max_attempts", long.as_str())] {
        assert!(
            error.len() < 400 && !error.contains('\n') && error.contains("..."),
            "{error}"
        );
    }
}

#[test]
fn an_error_leaves_the_option_as_it_was() {
    let mut options = set("max_in_flight", 5).unwrap();
    let before = options.clone();
    options.set("max_in_flight", -1).unwrap_err();
    assert_eq!(options, before);
    options.set("max_in_flight", 6).unwrap();
    assert_eq!(options.values().consumer.max_in_flight, Some(6));
}

#[test]
fn merged_options_are_those_of_both_and_the_others_go_first() {
    let mut options = Options::from_vars("N_", [("N_SNAPPY", "1"), ("N_MAX_IN_FLIGHT", "5")]).unwrap();
    options.merge(&Options::from_vars("N_", [("N_TLS_V1", "1"), ("N_MAX_IN_FLIGHT", "6")]).unwrap());
    let values = options.values();
    assert_eq!(values.connection.snappy, Some(true));
    assert_eq!(values.tls.on, Some(true));
    assert_eq!(values.consumer.max_in_flight, Some(6));
    assert!(!values.tls.skip_verify_allowed);
    options.merge(&Options::new().dangerous().allow_skip_verify());
    assert!(options.values().tls.skip_verify_allowed);
}

#[test]
fn variables_without_the_prefix_are_left_alone_and_others_must_be_options() {
    let vars = [
        ("MAX_IN_FLIGHT", "x"),
        ("NSQ", "x"),
        ("nsq_max_in_flight", "x"),
        ("NSQ_MSG_TIMEOUT", "90s"),
    ];
    let options = Options::from_vars("NSQ_", vars).unwrap();
    assert_eq!(options, set("msg_timeout", "90s").unwrap());

    for (vars, text) in [
        (
            vec![("NSQ_MAX_IN_FLIGHT", "")],
            "variable NSQ_MAX_IN_FLIGHT: option max_in_flight is \"\", allowed is 0 to 4294967295",
        ),
        (
            vec![("NSQ_TLSV1", "true")],
            "variable NSQ_TLSV1: there is no option \"tlsv1\"; did you mean tls_v1?",
        ),
        (
            vec![("NSQ_SERVICE_HOST", "10.0.0.1")],
            "variable NSQ_SERVICE_HOST: there is no option \"service_host\"; those that exist are listed in the docs of \
             async_nsq::Options",
        ),
        (
            vec![("NSQ_SNAPPY", "1"), ("NSQ_snappy", "0")],
            "variable NSQ_snappy: option snappy is given twice, with different spellings or in different places",
        ),
    ] {
        let error = Options::from_vars("NSQ_", vars).unwrap_err();
        assert_eq!(error.to_string(), format!("configuration: {text}"));
    }
}

#[test]
fn an_empty_prefix_is_refused() {
    for error in [Options::from_vars("", [("A", "b")]), Options::from_env("")] {
        assert!(error.unwrap_err().to_string().contains("option prefix is empty"));
    }
}

#[test]
fn the_environment_is_read() {
    // Nobody sets variables of this name, and to set some is not safe in a process with threads.
    assert_eq!(
        Options::from_env("ASYNC_NSQ_NOBODY_SETS_THIS_").unwrap(),
        Options::new()
    );
    let name = "CARGO_MANIFEST_";
    let error = Options::from_env(name).unwrap_err().to_string();
    assert!(error.contains("variable CARGO_MANIFEST_"), "{error}");
}

#[test]
fn a_file_is_a_map_of_texts_numbers_and_booleans() {
    let file = r#"{
        "max-in-flight": 2500, "msg_timeout": "1m30s", "low_rdy_timeout": 5000, "snappy": true, "lookupd_poll_jitter": 0.5,
        "heartbeat_interval": -1, "max_attempts": "7", "client_id": "billing", "max_msg_size": 1.048576e+06
    }"#;
    let values = serde_json::from_str::<Options>(file).unwrap().values();
    assert_eq!(values.consumer.max_in_flight, Some(2500));
    assert_eq!(values.connection.msg_timeout, Some(Duration::from_secs(90)));
    assert_eq!(values.consumer.low_rdy_timeout, Some(Duration::from_secs(5)));
    assert_eq!(values.connection.snappy, Some(true));
    assert_eq!(values.discovery.poll_jitter, Some(0.5));
    assert_eq!(values.connection.heartbeat_interval, Some(None));
    assert_eq!(values.consumer.max_attempts, Some(7));
    assert_eq!(values.connection.client_id.as_deref(), Some("billing"));
    assert_eq!(values.connection.max_msg_size, Some(1_048_576));
}

#[test]
fn mistakes_in_a_file_name_the_option() {
    for (file, text) in [
        (
            r#"{"max_in_fligth": 1}"#,
            "there is no option \"max_in_fligth\"; did you mean max_in_flight?",
        ),
        (
            r#"{"max_attempts": null}"#,
            "option max_attempts is null, allowed is 0 to 65535",
        ),
        (
            r#"{"max_attempts": [1, [2]]}"#,
            "option max_attempts is a list, allowed is 0 to 65535",
        ),
        (
            r#"{"max_attempts": {"a": {"b": 1}, "c": 2}}"#,
            "option max_attempts is a map, allowed is 0 to 65535",
        ),
        (r#"{"snappy": true, "snappy": false}"#, "option snappy is given twice"),
        (
            r#"{"low-rdy-timeout": 1000, "low_rdy_timeout": 1000}"#,
            "option low_rdy_timeout is given twice",
        ),
        ("[]", "expected a map from names of NSQ options to their values"),
    ] {
        let error = serde_json::from_str::<Options>(file).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn numbers_that_serde_json_keeps_as_text_are_numbers() {
    use serde::Deserialize as _;
    use serde::de::value::{Error, MapDeserializer};
    let number = std::collections::HashMap::from([("$serde_json::private::Number", "200")]);
    let source = MapDeserializer::<_, Error>::new(number.into_iter());
    let value = OptionValue::deserialize(source).unwrap();
    assert_eq!(set("max_in_flight", value).unwrap(), set("max_in_flight", 200).unwrap());
}

fn any_value() -> impl Strategy<Value = OptionValue> {
    let of_digits_and_units = "[-+]?([0-9]{0,25}[.]?[0-9]{0,25}(ns|us|µs|ms|s|m|h|)){0,4}";
    prop_oneof![
        any::<String>().prop_map(Into::into),
        of_digits_and_units.prop_map(Into::into),
        any::<i128>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<u64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        any::<bool>().prop_map(Into::into),
        any::<Duration>().prop_map(Into::into),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_value_of_any_option_makes_it_panic(value in any_value()) {
        for Definition { name, kind, .. } in ALL {
            if let Ok(options) = set(name, value.clone()) {
                options.values();
                // What was taken is within its range.
                match (options.given.values().next(), kind) {
                    (Some(Checked::Integer(number)), Kind::Integer { least, most, special }) => {
                        let is_special = special.is_some_and(|special| special.value == *number);
                        prop_assert!(is_special || (*least..=*most).contains(number));
                    }
                    (Some(Checked::Time(Some(time))), Kind::Time { least, most, special }) => {
                        prop_assert!((*least..=*most).contains(time) || special.is_some() && time.is_zero());
                    }
                    (given, _) => prop_assert!(given.is_some()),
                }
            }
        }
    }

    #[test]
    fn no_name_makes_it_panic(name in any::<String>(), value in any_value()) {
        let _ = set(&name, value.clone());
        let _ = Options::from_vars(&name, [(name.as_str(), "x"), ("NSQ_X", "x")]);
        let _ = Options::from_vars("N", [(format!("N{name}"), "x")]);
    }

    #[test]
    fn no_file_makes_it_panic(text in any::<String>(), key in any::<String>()) {
        let _ = serde_json::from_str::<Options>(&text);
        let _ = serde_json::from_str::<Options>(&serde_json::json!({ key: text }).to_string());
    }

    #[test]
    fn a_time_that_is_shown_is_read_again(time in any::<Duration>()) {
        let nanos = duration::parse(&duration::shown(time)).unwrap();
        prop_assert_eq!(duration::from_nanos(nanos), time);
    }
}
