//! What the broker must have seen of a program.

use async_nsq::protocol::Command;
use async_nsq::test_server::Received;

use super::mode::Mode;
use super::programs::{Client, TOPIC};

/// What is left of a scenario.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) scenario: &'static str,
    message_count: u64,
    requeue_count: u64,
    depth: u64,
}

impl Left {
    pub(super) fn channel(&self) -> Channel {
        Channel {
            depth: self.depth,
            message_count: self.message_count,
            requeue_count: self.requeue_count,
            ..Channel::default()
        }
    }
}

const fn left(scenario: &'static str, message_count: u64, requeue_count: u64, depth: u64) -> Left {
    Left {
        scenario,
        message_count,
        requeue_count,
        depth,
    }
}

/// All scenarios.
pub(super) const LEFT: &[Left] = &[
    left("publish", 3, 0, 0),
    left("multi-publish", 100, 0, 0),
    left("deferred", 2, 0, 0),
    left("consume", 500, 0, 0),
    left("requeue", 1, 2, 0),
    left("touch", 1, 0, 0),
    left("backoff", 11, 1, 0),
    left("stop", 6, 0, 1),
];

/// The counts of a channel that both brokers tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Channel {
    pub(super) depth: u64,
    pub(super) in_flight: u64,
    pub(super) deferred: u64,
    pub(super) message_count: u64,
    pub(super) requeue_count: u64,
    pub(super) timeout_count: u64,
    pub(super) client_count: u64,
}

/// What both brokers tell of a connection that has subscribed or published.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) consumer: bool,
    pub(super) user_agent: String,
    pub(super) tls: bool,
    pub(super) snappy: bool,
    pub(super) deflate: bool,
    pub(super) authorized: bool,
}

/// The client has what it was told to ask for: those that are refused a feature go on without a word.
pub(super) fn check_connection(client: Client, mode: Mode, connection: &Connection) {
    assert!(connection.user_agent.starts_with(client.name()), "{connection:?}");
    let features = (
        connection.tls,
        connection.snappy,
        connection.deflate,
        connection.authorized,
    );
    let asked = (mode.tls(), mode.snappy(), mode.deflate(), mode == Mode::Auth);
    assert_eq!(features, asked, "{client:?} in mode {mode:?}: {connection:?}");
}

/// The scenarios did by the protocol what their names say.
pub(super) fn check_commands(client: Client, received: Vec<Received>) {
    let received: Vec<_> = received.into_iter().map(|it| (it.connection, it.command)).collect();
    // The commands of a scenario's consumer.
    let of = |scenario: &str| -> Vec<&Command> {
        let name = format!("{TOPIC}.{scenario}");
        let subscribes = |command: &Command| matches!(command, Command::Sub { topic, .. } if *topic == name);
        let (consumer, _) = received.iter().find(|(_, command)| subscribes(command)).unwrap();
        let commands = received.iter().filter(|(connection, _)| connection == consumer);
        commands.map(|(_, command)| command).collect()
    };

    for Left {
        scenario,
        message_count,
        requeue_count,
        depth,
    } in LEFT
    {
        let commands = of(scenario);
        let finishes = commands.iter().filter(|it| matches!(it, Command::Fin { .. })).count();
        let requeues = commands.iter().filter(|it| matches!(it, Command::Req { .. })).count();
        let counts = (finishes as u64, requeues as u64);
        assert_eq!(
            counts,
            (message_count - depth, *requeue_count),
            "FIN and REQ of {scenario}"
        );
    }
    assert!(
        received
            .iter()
            .any(|(_, command)| matches!(command, Command::Mpub { bodies, .. } if bodies.len() == 100)),
        "no MPUB of 100 messages"
    );
    assert!(
        received
            .iter()
            .any(|(_, command)| matches!(command, Command::Dpub { delay_ms: 500, .. })),
        "no DPUB by 500 ms"
    );
    let touches = of("touch")
        .into_iter()
        .filter(|it| matches!(it, Command::Touch { .. }))
        .count();
    assert_eq!(touches, 8, "TOUCHes of one message");
    check_backoff(&of("backoff"));
    if client == Client::GoNsq {
        let stop = of("stop");
        let close = stop.iter().position(|it| matches!(it, Command::Cls));
        let finish = stop.iter().position(|it| matches!(it, Command::Fin { .. }));
        assert!(close.is_some() && close < finish, "CLS before the answers: {stop:?}");
    }
}

/// RDY 0 before the REQ, one message at first, then all.
fn check_backoff(commands: &[&Command]) {
    let requeue = commands
        .iter()
        .position(|it| matches!(it, Command::Req { .. }))
        .unwrap();
    let rdy = |commands: &[&Command]| -> Vec<u32> {
        let count = |command: &&Command| match command {
            Command::Rdy { count } => Some(*count),
            _ => None,
        };
        commands.iter().filter_map(count).collect()
    };
    let (before, after) = (rdy(&commands[..requeue]), rdy(&commands[requeue..]));
    assert_eq!(before.last(), Some(&0), "RDY before the REQ: {before:?}");
    assert_eq!(after.first(), Some(&1), "RDY after the REQ: {after:?}");
    assert!(after.contains(&4), "RDY after the REQ: {after:?}");
}
