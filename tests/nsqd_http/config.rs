//! Options by HTTP.

use async_nsq::test_server::{Lookupd, Nsqd};

use crate::House;

#[tokio::test(start_paused = true)]
async fn every_option_is_told_in_nsqds_form() {
    let house = House::with(Nsqd::builder().flag("node-id", "617").unwrap()).await;
    for (option, value) in [
        ("id", "617"),
        ("log_level", "2"),
        ("log_prefix", "[nsqd] "),
        ("tcp_address", "nsqd:4150"),
        ("http_address", "nsqd:4151"),
        ("https_address", "0.0.0.0:4152"),
        ("broadcast_address", "nsqd"),
        ("broadcast_tcp_port", "4150"),
        ("broadcast_http_port", "4151"),
        ("nsqlookupd_tcp_addresses", "[]"),
        ("auth_http_addresses", "[]"),
        ("http_client_connect_timeout", "2000000000"),
        ("http_client_request_timeout", "5000000000"),
        ("data_path", ""),
        ("mem_queue_size", "10000"),
        ("max_bytes_per_file", "104857600"),
        ("sync_every", "2500"),
        ("sync_timeout", "2000000000"),
        ("queue_scan_selection_count", "20"),
        ("queue_scan_worker_pool_max", "4"),
        ("msg_timeout", "60000000000"),
        ("max_msg_timeout", "900000000000"),
        ("max_msg_size", "1048576"),
        ("max_body_size", "5242880"),
        ("max_req_timeout", "3600000000000"),
        ("max_heartbeat_interval", "60000000000"),
        ("max_rdy_count", "2500"),
        ("max_output_buffer_size", "65536"),
        ("max_output_buffer_timeout", "30000000000"),
        ("min_output_buffer_timeout", "25000000"),
        ("output_buffer_timeout", "250000000"),
        ("max_channel_consumers", "0"),
        ("statsd_address", ""),
        ("statsd_prefix", "nsq.nsqd_4151."),
        ("statsd_interval", "60000000000"),
        ("statsd_mem_stats", "true"),
        ("statsd_udp_packet_size", "508"),
        ("statsd_exclude_ephemeral", "false"),
        ("e2e_processing_latency_window_time", "600000000000"),
        ("e2e_processing_latency_percentiles", "[]"),
        ("tls_cert", ""),
        ("tls_key", ""),
        ("tls_client_auth_policy", ""),
        ("tls_root_ca_file", ""),
        ("tls_required", "0"),
        ("tls_min_version", "769"),
        ("deflate", "true"),
        ("max_deflate_level", "6"),
        ("snappy", "true"),
    ] {
        house
            .check(&[(&format!("GET /config/{option}"), b"", 200, value)])
            .await;
    }
    for unknown in [
        "MSG_TIMEOUT",
        "msg-timeout",
        "node_id",
        "lookupd_tcp_address",
        "verbose",
        "config",
        "heartbeat_interval",
    ] {
        house
            .check(&[(
                &format!("GET /config/{unknown}"),
                b"",
                400,
                r#"{"message":"INVALID_OPTION"}"#,
            )])
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn options_are_told_as_the_flags_have_set_them() {
    let mut builder = Nsqd::builder();
    for (flag, value) in [
        ("msg-timeout", "1m30s"),
        ("log-level", "warn"),
        ("e2e-processing-latency-percentile", "0.99,1.0"),
        ("e2e-processing-latency-percentile", "0.5"),
        ("statsd-prefix", "foo"),
        ("lookupd-tcp-address", "a:1"),
        ("lookupd-tcp-address", "b:2"),
        ("broadcast-address", "b.example"),
        ("broadcast-tcp-port", "7"),
        ("https-address", "127.0.0.1:9"),
        ("data-path", "/tmp"),
        ("sync-timeout", "250ms"),
        ("statsd-mem-stats", "false"),
        ("tls-min-version", "tls1.2"),
    ] {
        builder = builder.flag(flag, value).unwrap();
    }
    let house = House::with(builder).await;
    house
        .check(&[
            ("GET /config/msg_timeout", b"", 200, "90000000000"),
            ("GET /config/log_level", b"", 200, "3"),
            (
                "GET /config/e2e_processing_latency_percentiles",
                b"",
                200,
                "[1,0.99,0.5]",
            ),
            ("GET /config/statsd_prefix", b"", 200, "foo."),
            ("GET /config/nsqlookupd_tcp_addresses", b"", 200, r#"["a:1","b:2"]"#),
            ("GET /config/broadcast_address", b"", 200, "b.example"),
            ("GET /config/broadcast_tcp_port", b"", 200, "7"),
            ("GET /config/tcp_address", b"", 200, "nsqd:4150"),
            ("GET /config/https_address", b"", 200, "127.0.0.1:9"),
            ("GET /config/data_path", b"", 200, "/tmp"),
            ("GET /config/sync_timeout", b"", 200, "250000000"),
            ("GET /config/statsd_mem_stats", b"", 200, "false"),
            ("GET /config/tls_min_version", b"", 200, "771"),
        ])
        .await;
}

#[tokio::test(start_paused = true)]
async fn two_options_can_be_changed() {
    let house = House::with(Nsqd::builder().max_msg_size(64)).await;
    const INVALID: &str = r#"{"message":"INVALID_VALUE"}"#;
    house
        .check(&[
            ("PUT /config/log_level", b"WARN", 200, "3"),
            ("GET /config/log_level", b"", 200, "3"),
            ("PUT /config/log_level", b"fatal", 200, "5"),
            ("PUT /config/log_level", b"3", 400, INVALID),
            ("PUT /config/log_level", b"info ", 400, INVALID),
            ("PUT /config/log_level", b"\xff", 400, INVALID),
            ("PUT /config/log_level", b"", 413, INVALID),
            ("PUT /config/log_level", &[b'x'; 65], 413, INVALID),
            ("PUT /config/nope", b"", 413, INVALID),
            ("PUT /config/nope", b"x", 400, r#"{"message":"INVALID_OPTION"}"#),
            ("PUT /config/msg_timeout", b"1", 400, r#"{"message":"INVALID_OPTION"}"#),
            (
                "PUT /config/nsqlookupd_tcp_addresses",
                br#" ["a:1", "<b>:2"] "#,
                200,
                r#"["a:1","\u003cb\u003e:2"]"#,
            ),
            ("PUT /config/nsqlookupd_tcp_addresses", b"[1]", 400, INVALID),
            ("PUT /config/nsqlookupd_tcp_addresses", b"\"a\"", 400, INVALID),
            ("PUT /config/nsqlookupd_tcp_addresses", b"{}", 400, INVALID),
            ("PUT /config/nsqlookupd_tcp_addresses", b"[] x", 400, INVALID),
            (
                "GET /config/nsqlookupd_tcp_addresses",
                b"",
                200,
                r#"["a:1","\u003cb\u003e:2"]"#,
            ),
            ("PUT /config/nsqlookupd_tcp_addresses", b"[]", 200, "[]"),
        ])
        .await;
}

#[tokio::test(start_paused = true)]
async fn new_nsqlookupds_are_told_at_once_and_former_ones_are_left() {
    let house = House::new().await;
    let mut lookupds = Vec::new();
    for address in ["one:4161", "two:4161"] {
        lookupds.push(Lookupd::start_in(&house.network, address).await.unwrap());
    }
    house.nsqd.create_topic("t").unwrap();
    for (now, then) in [(0, 1), (1, 0)] {
        let body = format!(r#"["{}"]"#, lookupds[now].tcp_address());
        let answer = house
            .ask("PUT", "/config/nsqlookupd_tcp_addresses", body.as_bytes())
            .await;
        assert_eq!(answer.status, 200);
        let knows = lookupds[now].wait_for(|state| state.nodes.len() == 1);
        knows.await.unwrap();
        let forgets = lookupds[then].wait_for(|state| state.nodes.is_empty());
        forgets.await.unwrap();
    }
    let many = format!("[{}]", vec![r#""a:1""#; 101].join(","));
    let answer = house.ask("PUT", "/config/nsqlookupd_tcp_addresses", many.as_bytes());
    assert_eq!(answer.await.status, 400);
}
