//! All options: the one place where their names, ranges and meanings are. `table.md` tells them in the docs, and the tests hold
//! it to this table.

use std::time::Duration;

use super::kind::{Checked, Kind, Special};
use super::values::Values;

/// One option.
pub(super) struct Definition {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) store: fn(&mut Values, &Checked),
}

/// The option of this name, in which `-` is as good as `_`.
pub(super) fn find(name: &str) -> Option<&'static Definition> {
    let same = |known: &str| {
        let given = name.bytes().map(|byte| if byte == b'-' { b'_' } else { byte });
        known.bytes().eq(given)
    };
    ALL.iter().find(|definition| same(definition.name))
}

const fn option(name: &'static str, kind: Kind, store: fn(&mut Values, &Checked)) -> Definition {
    Definition { name, kind, store }
}

const ZERO: Duration = Duration::ZERO;
const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const FIVE_MINUTES: Duration = Duration::from_secs(300);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

const fn time(least: Duration, most: Duration) -> Kind {
    let special = None;
    Kind::Time { least, most, special }
}

const fn time_or(least: Duration, most: Duration, value: i64, meaning: &'static str) -> Kind {
    let special = Some(Special { value, meaning });
    Kind::Time { least, most, special }
}

const fn integer(least: i64, most: i64) -> Kind {
    let special = None;
    Kind::Integer { least, most, special }
}

const fn integer_or(least: i64, most: i64, value: i64, meaning: &'static str) -> Kind {
    let special = Some(Special { value, meaning });
    Kind::Integer { least, most, special }
}

/// The options that go-nsq has, with its ranges where the meaning is the same, and then our own, which are called as their
/// setters are.
pub(super) static ALL: &[Definition] = &[
    option("dial_timeout", time(MILLI, DAY), |values, v| {
        values.connection.dial_timeout = v.time()
    }),
    option(
        "read_timeout",
        time(Duration::from_millis(100), FIVE_MINUTES),
        |_, _| {},
    ),
    option(
        "write_timeout",
        time(Duration::from_millis(100), FIVE_MINUTES),
        |_, _| {},
    ),
    option("local_addr", Kind::Address, |values, v| {
        values.connection.local_address = v.address()
    }),
    option(
        "lookupd_poll_interval",
        time(Duration::from_millis(10), FIVE_MINUTES),
        |values, v| values.discovery.poll_interval = v.time(),
    ),
    option("lookupd_poll_jitter", Kind::Fraction, |values, v| {
        values.discovery.poll_jitter = v.fraction()
    }),
    option("lookupd_poll_timeout", time(MILLI, FIVE_MINUTES), |values, v| {
        values.discovery.timeout = v.time()
    }),
    option("max_requeue_delay", time(ZERO, HOUR), |values, v| {
        values.consumer.max_requeue_delay = v.time()
    }),
    option("default_requeue_delay", time(ZERO, HOUR), |values, v| {
        values.consumer.default_requeue_delay = v.time()
    }),
    option(
        "backoff_strategy",
        Kind::Word(&["exponential", "full_jitter", ""]),
        |values, v| values.consumer.full_jitter = v.is_word("full_jitter"),
    ),
    option("max_backoff_duration", time(ZERO, HOUR), |values, v| {
        values.consumer.max_backoff_duration = v.time()
    }),
    option("backoff_multiplier", time(ZERO, HOUR), |values, v| {
        values.consumer.backoff_multiplier = v.time()
    }),
    option("max_attempts", integer(0, 65_535), |values, v| {
        values.consumer.max_attempts = v.integer()
    }),
    option("low_rdy_idle_timeout", time(SECOND, FIVE_MINUTES), |values, v| {
        values.consumer.low_rdy_idle_timeout = v.time()
    }),
    option("low_rdy_timeout", time(SECOND, FIVE_MINUTES), |values, v| {
        values.consumer.low_rdy_timeout = v.time()
    }),
    option(
        "rdy_redistribute_interval",
        time(MILLI, Duration::from_secs(5)),
        |values, v| values.consumer.rdy_redistribute_interval = v.time(),
    ),
    option("client_id", Kind::Text, |values, v| {
        values.connection.client_id = v.text()
    }),
    option("hostname", Kind::Text, |values, v| {
        values.connection.hostname = v.text()
    }),
    option("user_agent", Kind::Text, |values, v| {
        values.connection.user_agent = v.text()
    }),
    option(
        "heartbeat_interval",
        time_or(SECOND, MINUTE, -1, "no heartbeats (producers only)"),
        |values, v| values.connection.heartbeat_interval = v.time_or_off(),
    ),
    option("sample_rate", integer(0, 99), |values, v| {
        values.consumer.sample_rate = v.integer()
    }),
    option("tls_v1", Kind::Boolean, |values, v| values.tls.on = v.boolean()),
    option("tls_root_ca_file", Kind::File, |values, v| {
        values.tls.root_ca = v.file()
    }),
    option("tls_insecure_skip_verify", Kind::Boolean, |values, v| {
        values.tls.skip_verify = v.boolean()
    }),
    option("tls_cert", Kind::File, |values, v| values.tls.certificate = v.file()),
    option("tls_key", Kind::File, |values, v| values.tls.key = v.file()),
    option(
        "tls_min_version",
        Kind::Word(&["ssl3.0", "tls1.0", "tls1.1", "tls1.2", "tls1.3"]),
        |values, v| values.tls.only_tls13 = v.is_word("tls1.3"),
    ),
    option("deflate", Kind::Boolean, |values, v| {
        values.connection.deflate = v.boolean()
    }),
    option("deflate_level", integer(1, 9), |values, v| {
        values.connection.deflate_level = v.integer()
    }),
    option("snappy", Kind::Boolean, |values, v| {
        values.connection.snappy = v.boolean()
    }),
    option(
        "output_buffer_size",
        integer_or(64, 65_536, -1, "no buffer"),
        |values, v| values.connection.output_buffer_size = v.integer(),
    ),
    option(
        "output_buffer_timeout",
        time(Duration::from_millis(25), Duration::from_secs(30)),
        |values, v| values.connection.output_buffer_timeout = v.time(),
    ),
    option("max_in_flight", integer(0, 4_294_967_295), |values, v| {
        values.consumer.max_in_flight = v.integer()
    }),
    option(
        "msg_timeout",
        time_or(SECOND, Duration::from_secs(900), 0, "nsqd's own"),
        |values, v| values.connection.msg_timeout = v.time(),
    ),
    option("auth_secret", Kind::Secret, |values, v| {
        values.connection.auth_secret = v.secret()
    }),
    option("skip_lookupd_authorization", Kind::Boolean, |_, _| {}),
    option("topology_region", Kind::Text, |values, v| {
        values.connection.region = v.text()
    }),
    option("topology_zone", Kind::Text, |values, v| {
        values.connection.zone = v.text()
    }),
    option("handshake_timeout", time(MILLI, DAY), |values, v| {
        values.connection.handshake_timeout = v.time()
    }),
    option("max_msg_size", integer(1, 2_147_482_623), |values, v| {
        values.connection.max_msg_size = v.size()
    }),
    option("tls_server_name", Kind::Text, |values, v| {
        values.tls.server_name = v.text()
    }),
    option("allow_plaintext_auth", Kind::Boolean, |values, v| {
        values.connection.allow_plaintext_auth = v.boolean()
    }),
    option("max_nsqds", integer(1, i64::MAX), |values, v| {
        values.discovery.max_nsqds = v.size()
    }),
    option("max_lookupd_answer", integer(1024, 1 << 30), |values, v| {
        values.discovery.max_answer = v.size()
    }),
    option("concurrency", integer(1, 100_000), |values, v| {
        values.consumer.concurrency = v.integer()
    }),
    option("handler_timeout", time(MILLI, DAY), |values, v| {
        values.consumer.handler_timeout = v.time()
    }),
    option("keep_alive", Kind::Boolean, |values, v| {
        values.consumer.keep_alive = v.boolean()
    }),
    option("create_topic_and_channel", Kind::Boolean, |values, v| {
        values.consumer.create_topic_and_channel = v.boolean()
    }),
    option("publish_timeout", time(MILLI, Duration::MAX), |values, v| {
        values.producer.publish_timeout = v.time()
    }),
    option("max_pending_messages", integer(1, 1 << 29), |values, v| {
        values.producer.max_pending_messages = v.integer()
    }),
    option("max_pending_bytes", integer(1, 1 << 29), |values, v| {
        values.producer.max_pending_bytes = v.integer()
    }),
    option("max_body_size", integer(64, 1 << 30), |values, v| {
        values.producer.max_body_size = v.size()
    }),
    option("max_req_timeout", time(ZERO, Duration::MAX), |values, v| {
        values.producer.max_req_timeout = v.time()
    }),
    option("batching", Kind::Boolean, |values, v| {
        values.producer.batching = v.boolean()
    }),
    option("linger", time(ZERO, Duration::MAX), |values, v| {
        values.producer.linger = v.time()
    }),
    option("linger_messages", integer(1, i64::MAX), |values, v| {
        values.producer.linger_messages = v.size()
    }),
    option("copies", integer(1, 1_000), |values, v| {
        values.producer.copies = v.size()
    }),
    option("quorum", integer(1, 1_000), |values, v| {
        values.producer.quorum = v.size()
    }),
    option("accept_fewer_copies", Kind::Boolean, |values, v| {
        values.producer.accept_fewer_copies = v.boolean()
    }),
    option("at_least_once", Kind::Boolean, |values, v| {
        values.producer.at_least_once = v.boolean()
    }),
];
