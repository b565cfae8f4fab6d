//! The examples do what they promise: the real programs, against the test broker.

use std::env;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use async_nsq::test_server::{Lookupd, Nsqd};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Only a program that hangs takes as long.
const DEADLINE: Duration = Duration::from_secs(60);

const CHANNEL: &str = "audit";

/// An example's binary, which cargo builds next to the tests.
fn example(name: &str) -> Command {
    let test = env::current_exe().expect("the path of this test");
    let profile = test.ancestors().nth(2).expect("target/<profile>/deps/<test>");
    let binary: PathBuf = profile
        .join("examples")
        .join(format!("{name}{}", env::consts::EXE_SUFFIX));
    assert!(
        binary.is_file(),
        "{} is missing: `cargo test` builds it, `cargo test --test examples` needs `cargo build --examples` before",
        binary.display()
    );
    let mut command = Command::new(binary);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

fn spawn(name: &str, arguments: &[&str]) -> Child {
    example(name).args(arguments).spawn().expect("the example runs")
}

/// How a program ended.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ended {
    fn last_line(&self) -> &str {
        self.stdout.lines().last().unwrap_or_default()
    }

    #[track_caller]
    fn assert_success(&self, last_line: &str) {
        assert_eq!((self.code, self.last_line()), (Some(0), last_line), "{self:#?}");
    }

    /// One line that begins with `error:` and contains `telling`, and nothing else.
    #[track_caller]
    fn assert_refusal(&self, code: i32, telling: &str) {
        assert_eq!((self.code, self.stdout.as_str()), (Some(code), ""), "{self:#?}");
        let lines: Vec<&str> = self.stderr.lines().collect();
        let one_error = matches!(lines.as_slice(), [line] if line.starts_with("error: ") && line.contains(telling));
        assert!(one_error, "not one line that tells {telling:?}: {self:#?}");
        assert!(!self.stderr.contains("panicked"), "{self:#?}");
    }
}

async fn end_of(child: Child) -> Ended {
    let output = timeout(DEADLINE, child.wait_with_output()).await;
    let Output { status, stdout, stderr } = output.expect("the example ends").expect("its output");
    Ended {
        code: status.code(),
        stdout: String::from_utf8(stdout).expect("text"),
        stderr: String::from_utf8(stderr).expect("text"),
    }
}

async fn run(name: &str, arguments: &[&str]) -> Ended {
    end_of(spawn(name, arguments)).await
}

async fn publish(nsqd: &Nsqd, topic: &str, count: &str) -> Ended {
    let arguments = [
        "--nsqd",
        nsqd.address(),
        "--topic",
        topic,
        "--count",
        count,
        "--size",
        "100",
    ];
    run("publisher", &arguments).await
}

/// Sends SIGTERM by the shell's builtin: std has no signals.
#[cfg(unix)]
async fn terminate(child: &Child) {
    let process = child.id().expect("it runs").to_string();
    let status = Command::new("sh")
        .args(["-c", r#"kill -s TERM "$0""#, &process])
        .status();
    assert!(status.await.expect("sh runs").success());
}

#[tokio::test]
async fn quickstart_loses_nothing() {
    let ended = run("quickstart", &[]).await;
    ended.assert_success("published 1000, handled 1000, lost 0");
    assert!(ended.stdout.contains("order 13 succeeds at attempt 2"), "{ended:#?}");
    assert_eq!(ended.stderr, "");
}

#[tokio::test]
async fn consumer_handles_exactly_the_count_and_gives_the_rest_back() {
    let nsqd = Nsqd::start().await.unwrap();
    publish(&nsqd, "orders", "2000").await.assert_success("published 2000");
    assert_eq!(nsqd.topic("orders").unwrap().message_count, 2000);

    let source = ["--nsqd", nsqd.address(), "--topic", "orders", "--channel", CHANNEL];
    let first = run("consumer", &[&source[..], &["--count", "1501"]].concat()).await;
    first.assert_success("handled 1501");
    let all_back = nsqd.wait_for(|stats| {
        let channel = stats.channel("orders", CHANNEL).unwrap();
        channel.finish_count == 1501 && channel.depth == 499 && channel.in_flight == 0
    });
    all_back.await.unwrap();

    let second = run(
        "consumer",
        &[&source[..], &["--count", "499", "--max-in-flight", "7"]].concat(),
    )
    .await;
    second.assert_success("handled 499");
    let channel = nsqd.channel("orders", CHANNEL).unwrap();
    assert_eq!((channel.finish_count, channel.depth, channel.in_flight), (2000, 0, 0));
}

#[tokio::test]
async fn consumer_finds_nsqds_by_nsqlookupd() {
    let lookupd = Lookupd::start().await.unwrap();
    let nsqds = [
        Nsqd::builder().lookupd(&lookupd).start().await.unwrap(),
        Nsqd::builder().lookupd(&lookupd).start().await.unwrap(),
    ];
    for nsqd in &nsqds {
        publish(nsqd, "orders", "300").await.assert_success("published 300");
    }
    let arguments = [
        "--lookupd",
        lookupd.address(),
        "--topic",
        "orders",
        "--channel",
        CHANNEL,
    ];
    let ended = run("consumer", &[&arguments[..], &["--count", "600"]].concat()).await;
    ended.assert_success("handled 600");
}

#[tokio::test]
async fn consumer_waits_for_a_topic_though_one_nsqlookupd_is_down() {
    let (lookupd, down) = (Lookupd::start().await.unwrap(), Lookupd::start().await.unwrap());
    down.faults().down();
    let nsqd = Nsqd::builder().lookupd(&lookupd).start().await.unwrap();
    let sources = ["--lookupd", lookupd.address(), "--lookupd", down.address()];
    let rest = ["--topic", "late", "--channel", CHANNEL, "--count", "10"];
    let mut consumer = spawn("consumer", &[&sources[..], &rest].concat());

    let mut stderr = BufReader::new(consumer.stderr.take().unwrap()).lines();
    let first = timeout(DEADLINE, stderr.next_line()).await.unwrap().unwrap().unwrap();
    assert!(
        first.starts_with("waiting: ") && first.contains("knows no nsqd with topic late"),
        "{first}"
    );
    publish(&nsqd, "late", "10").await.assert_success("published 10");
    // Until the end, so that the consumer never finds its stderr closed.
    while timeout(DEADLINE, stderr.next_line()).await.unwrap().unwrap().is_some() {}
    end_of(consumer).await.assert_success("handled 10");
}

#[cfg(unix)]
#[tokio::test]
async fn sigterm_ends_the_consumer_gracefully() {
    let nsqd = Nsqd::start().await.unwrap();
    publish(&nsqd, "orders", "10").await.assert_success("published 10");
    let consumer = spawn(
        "consumer",
        &["--nsqd", nsqd.address(), "--topic", "orders", "--channel", CHANNEL],
    );
    let finished = nsqd.wait_for(|stats| stats.channel("orders", CHANNEL).is_some_and(|it| it.finish_count == 10));
    finished.await.unwrap();
    terminate(&consumer).await;
    end_of(consumer).await.assert_success("handled 10");
}

#[cfg(unix)]
#[tokio::test]
async fn sigterm_ends_the_publisher_with_the_confirmed_count() {
    let nsqd = Nsqd::start().await.unwrap();
    let nsqd_and_topic = ["--nsqd", nsqd.address(), "--topic", "orders"];
    let rest = ["--count", "1000000", "--size", "10", "--rate", "500"];
    let publisher = spawn("publisher", &[&nsqd_and_topic[..], &rest].concat());
    let begun = nsqd.wait_for(|stats| stats.topic("orders").is_some_and(|topic| topic.message_count >= 5));
    begun.await.unwrap();
    terminate(&publisher).await;
    let ended = end_of(publisher).await;
    ended.assert_success(&format!("published {}", nsqd.topic("orders").unwrap().message_count));
}

#[tokio::test]
async fn publisher_tells_what_nsqd_rejected() {
    let nsqd = Nsqd::start().await.unwrap();
    nsqd.faults()
        .publishes()
        .once()
        .reject("E_PUB_FAILED PUB failed disk full");
    let ended = publish(&nsqd, "orders", "1").await;
    assert_eq!((ended.code, ended.last_line()), (Some(1), "published 0"), "{ended:#?}");
    let error = ended.stderr.lines().last().unwrap_or_default();
    assert!(
        error.starts_with("error: 1 rejected by nsqd") && error.contains("E_PUB_FAILED"),
        "{ended:#?}"
    );
}

#[tokio::test]
async fn options_by_name_reach_both() {
    let nsqd = Nsqd::start().await.unwrap();
    let address = nsqd.address();
    let common = [
        "--nsqd",
        address,
        "--topic",
        "orders",
        "--count",
        "3",
        "--opt",
        "snappy=true",
    ];
    let ended = run(
        "publisher",
        &[&common[..], &["--size", "100", "--opt", "client_id=pub"]].concat(),
    )
    .await;
    ended.assert_success("published 3");
    let ended = run("consumer", &[&common[..], &["--channel", "billing"]].concat()).await;
    ended.assert_success("handled 3");
    for (option, telling) in [
        ("max_attempt=1", "max_attempts"),
        ("max_attempts=x", "0 to 65535"),
        ("secret", "NAME=VALUE"),
    ] {
        let ended = run("publisher", &[&common[..], &["--size", "9", "--opt", option]].concat()).await;
        ended.assert_refusal(2, telling);
    }
}

#[tokio::test]
async fn mistakes_on_the_command_line_are_one_line_and_exit_code_2() {
    // Nothing listens there, and nothing is asked: the mistake is found before.
    let nsqd = ["--nsqd", "127.0.0.1:1"];
    let publisher: [(&[&str], &str); 8] = [
        (
            &["--topic", "a", "--count", "1", "--size", "1", "--wrong"],
            "unexpected argument '--wrong'",
        ),
        (&["--count", "1", "--size", "1"], "--topic"),
        (
            &["--topic", "a b", "--count", "1", "--size", "1"],
            "topic name \"a b\" is not valid",
        ),
        (&["--topic", "a", "--count", "0", "--size", "1"], "'--count"),
        (&["--topic", "a", "--count", "many", "--size", "1"], "'--count"),
        (&["--topic", "a", "--count", "1", "--size", "0"], "'--size"),
        (&["--topic", "a", "--count", "1", "--size", "2000000"], "'--size"),
        (
            &["--topic", "a", "--count", "1", "--size", "1", "--rate", "0"],
            "'--rate",
        ),
    ];
    for (arguments, telling) in publisher {
        run("publisher", &[&nsqd, arguments].concat())
            .await
            .assert_refusal(2, telling);
    }
    let topic_and_channel = ["--topic", "a", "--channel", CHANNEL];
    let consumer: [(&[&str], &str); 8] = [
        (&[], "--nsqd"),
        (&["--nsqd", "127.0.0.1:1", "--wrong"], "unexpected argument '--wrong'"),
        (&["--nsqd", "127.0.0.1:1", "--count", "0"], "'--count"),
        (&["--nsqd", "127.0.0.1:1", "--max-in-flight", "0"], "'--max-in-flight"),
        (&["--nsqd", "garbage"], "host:port"),
        (&["--lookupd", "garbage"], "host:port"),
        (&["--lookupd", ""], "lookupd"),
        (&["--lookupd", "a:1", "--nsqd"], "--nsqd"),
    ];
    for (arguments, telling) in consumer {
        let arguments = [&topic_and_channel, arguments].concat();
        run("consumer", &arguments).await.assert_refusal(2, telling);
    }
    let bad_channel = ["--nsqd", "127.0.0.1:1", "--topic", "a", "--channel", "b c"];
    run("consumer", &bad_channel)
        .await
        .assert_refusal(2, "channel name \"b c\" is not valid");
    let bad_address = ["--nsqd", "garbage", "--topic", "a", "--count", "1", "--size", "1"];
    run("publisher", &bad_address).await.assert_refusal(2, "host:port");
}

#[tokio::test]
async fn help_is_no_error() {
    for name in ["publisher", "consumer"] {
        let ended = run(name, &["--help"]).await;
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:#?}");
        assert!(
            ended.stdout.contains("Usage:") && ended.stdout.contains("--topic"),
            "{ended:#?}"
        );
    }
}

/// The test broker as a program, with the addresses that it tells.
struct TestBroker {
    child: Child,
    addresses: Vec<(String, String)>,
}

impl TestBroker {
    /// Listens on free ports.
    async fn start(daemon: &str, flags: &[&str], sides: usize) -> Self {
        let free = ["--tcp-address=127.0.0.1:0", "-http-address", "127.0.0.1:0"];
        let mut child = spawn("test_broker", &[&[daemon], &free[..], flags].concat());
        let mut stdout = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let mut addresses = Vec::new();
        while addresses.len() < sides {
            let line = timeout(DEADLINE, stdout.next_line())
                .await
                .expect("it tells its addresses");
            let line = line.expect("its output").expect("a line for each side");
            let (side, address) = line.split_once(' ').expect("a side and its address");
            addresses.push((side.to_owned(), address.to_owned()));
        }
        Self { child, addresses }
    }

    fn address(&self, side: &str) -> &str {
        let mut addresses = self.addresses.iter();
        let (_, address) = addresses.find(|(told, _)| told == side).expect("it has this side");
        address
    }
}

#[cfg(unix)]
#[tokio::test]
async fn test_broker_takes_flags_in_each_form_logs_a_line_per_client_and_ends_at_sigterm() {
    let flags = [
        "--max-msg-size",
        "200",
        "-max-rdy-count=7",
        "--snappy=false",
        "-deflate",
        "false",
        "--data-path=/nowhere",
        "--mem-queue-size",
        "10",
        "-msg-timeout=1m30s",
    ];
    let broker = TestBroker::start("nsqd", &flags, 2).await;
    let nsqd = ["--nsqd", broker.address("TCP"), "--topic", "orders", "--count", "1"];
    let ended = run("publisher", &[&nsqd[..], &["--size", "200"]].concat()).await;
    ended.assert_success("published 1");
    let ended = run("publisher", &[&nsqd[..], &["--size", "201"]].concat()).await;
    assert!(ended.stderr.contains("E_BAD_MESSAGE"), "{ended:#?}");
    let ended = run("consumer", &[&nsqd[..], &["--channel", CHANNEL]].concat()).await;
    ended.assert_success("handled 1");

    terminate(&broker.child).await;
    let ended = end_of(broker.child).await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    let clients = ended.stderr.lines().filter(|line| line.contains("client ")).count();
    let user_agents = ended.stderr.lines().filter(|line| line.contains("async-nsq/")).count();
    assert!(clients >= 3 && clients == user_agents, "{ended:#?}");
}

#[tokio::test]
async fn test_broker_is_both_daemons_and_they_find_each_other() {
    let lookupd = TestBroker::start("nsqlookupd", &["--tombstone-lifetime=1s"], 2).await;
    let flag = format!("--lookupd-tcp-address={}", lookupd.address("TCP"));
    let flags = [flag.as_str(), "-broadcast-address", "127.0.0.1"];
    let nsqd = TestBroker::start("nsqd", &flags, 2).await;
    let topic = ["--topic", "orders", "--count", "100"];
    let publisher = ["--nsqd", nsqd.address("TCP"), "--size", "10"];
    let ended = run("publisher", &[&topic[..], &publisher].concat()).await;
    ended.assert_success("published 100");
    let consumer = ["--lookupd", lookupd.address("HTTP"), "--channel", CHANNEL];
    let ended = run("consumer", &[&topic[..], &consumer].concat()).await;
    ended.assert_success("handled 100");
    #[cfg(unix)]
    {
        terminate(&lookupd.child).await;
        let ended = end_of(lookupd.child).await;
        let nsqd = format!("nsqd 1.3.0 at {}", nsqd.address("TCP"));
        assert!(ended.code == Some(0) && ended.stderr.contains(&nsqd), "{ended:#?}");
    }
}

#[tokio::test]
async fn test_broker_serves_https_with_a_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    let certificate = certificate.self_signed(&key).unwrap();
    let file = |name: &str, text: String| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let cert = file("cert.pem", certificate.pem());
    let key = file("key.pem", key.serialize_pem());
    let tls = ["--tls-cert", &cert, "--tls-key", &key, "--tls-root-ca-file", &cert];
    let rest = [
        "--https-address=127.0.0.1:0",
        "--tls-required",
        "--tls-client-auth-policy=require",
    ];
    let broker = TestBroker::start("nsqd", &[&tls[..], &rest].concat(), 3).await;
    let publisher = [
        "--nsqd",
        broker.address("TCP"),
        "--topic",
        "a",
        "--count",
        "1",
        "--size",
        "1",
    ];
    let ended = run("publisher", &publisher).await;
    assert!(ended.stderr.contains("TLS required"), "{ended:#?}");
    assert_ne!(broker.address("HTTPS"), broker.address("HTTP"));
}

#[tokio::test]
async fn test_brokers_mistakes_are_one_line_and_exit_code_2() {
    let mistakes: [(&[&str], &str); 8] = [
        (&[], "usage: test_broker"),
        (&["nsqadmin"], "usage: test_broker"),
        (&["nsqd", "--wrong=1"], "unknown flag -wrong"),
        (&["nsqd", "-max-rdy-count", "many"], "flag -max-rdy-count is \"many\""),
        (&["nsqd", "--msg-timeout=60"], "allowed is a duration"),
        (&["nsqd", "--msg-timeout"], "flag -msg-timeout needs a value"),
        (&["nsqd", "stray"], "\"stray\" is no flag"),
        (&["nsqlookupd", "--max-msg-size=1"], "max-msg-size"),
    ];
    for (arguments, telling) in mistakes {
        run("test_broker", arguments).await.assert_refusal(2, telling);
    }
    let ended = run("test_broker", &["nsqd", "--tls-required", "--tcp-address=127.0.0.1:0"]).await;
    ended.assert_refusal(1, "a certificate is needed");
}

#[tokio::test]
async fn unreachable_nsqd_is_one_line_and_exit_code_1() {
    let nsqd = Nsqd::start().await.unwrap();
    nsqd.stop().await;
    let topic = ["--topic", "a"];
    let publisher = ["--nsqd", nsqd.address(), "--count", "1", "--size", "1"];
    let consumer = ["--nsqd", nsqd.address(), "--channel", CHANNEL];
    let telling = format!("nsqd {}: dial: ", nsqd.address());
    let (publisher, consumer) = ([&topic[..], &publisher].concat(), [&topic[..], &consumer].concat());
    let (publisher, consumer) = tokio::join!(run("publisher", &publisher), run("consumer", &consumer));
    publisher.assert_refusal(1, &telling);
    consumer.assert_refusal(1, &telling);
}

#[tokio::test]
async fn unusable_nsqlookupd_is_one_line_and_exit_code_1() {
    let (down, garbled) = (Lookupd::start().await.unwrap(), Lookupd::start().await.unwrap());
    down.faults().down();
    garbled.faults().answer_body("<html>welcome</html>");
    let with = |lookupd: &Lookupd| {
        let lookupd = lookupd.address().to_owned();
        async move {
            let ended = run(
                "consumer",
                &["--lookupd", &lookupd, "--topic", "a", "--channel", CHANNEL],
            )
            .await;
            ended.assert_refusal(1, &format!("nsqlookupd {lookupd}: lookup: "));
        }
    };
    tokio::join!(with(&down), with(&garbled));
}

#[tokio::test]
async fn silent_nsqd_is_told_and_not_waited_for() {
    // The system completes connections on its behalf; nobody ever accepts one.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let lookupd = Lookupd::start().await.unwrap();
    lookupd.register("orders", &address).unwrap();
    let topic_and_channel = ["--topic", "orders", "--channel", CHANNEL];
    let direct = [&["--nsqd", &address], &topic_and_channel[..]].concat();
    let found = [&["--lookupd", lookupd.address()], &topic_and_channel[..]].concat();
    let (direct, found) = tokio::join!(run("consumer", &direct), run("consumer", &found));
    let telling = format!("nsqd {address}: IDENTIFY: no answer");
    direct.assert_refusal(1, &telling);
    found.assert_refusal(1, &telling);
}
