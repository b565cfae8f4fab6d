use super::*;
use crate::test_server::Lookupd;
use crate::transport::MemoryNetwork;

/// An nsqd that has what a test gives it.
struct Nsqd {
    holdings: Arc<Mutex<Holdings>>,
    peers: LookupPeers,
}

impl Nsqd {
    fn new(network: &MemoryNetwork, lookupds: &[&str]) -> Self {
        let holdings = Arc::new(Mutex::new(Holdings::new()));
        let seen = Arc::clone(&holdings);
        let addresses: Vec<_> = lookupds.iter().map(|address| (*address).to_owned()).collect();
        let peers = LookupPeers::start(
            Arc::new(network.connector()),
            &addresses,
            Identity::new("nsqd", 4150, 4151),
            1024 * 1024,
            Arc::new(move || seen.lock().unwrap().clone()),
        );
        Self { holdings, peers }
    }

    fn has(&self, names: &[&str]) {
        *self.holdings.lock().unwrap() = holdings(names);
        self.peers.wake();
    }
}

/// `t` is a topic, `t/c` its channel.
fn holdings(names: &[&str]) -> Holdings {
    let split = |name: &&str| match name.split_once('/') {
        Some((topic, channel)) => (topic.to_owned(), Some(channel.to_owned())),
        None => ((*name).to_owned(), None),
    };
    names.iter().map(split).collect()
}

fn lines(lookupd: &Lookupd) -> Vec<String> {
    lookupd.commands().into_iter().map(|command| command.line).collect()
}

async fn house() -> (MemoryNetwork, Lookupd) {
    let network = MemoryNetwork::new();
    let lookupd = Lookupd::start_in(&network, "lookupd:4161").await.unwrap();
    (network, lookupd)
}

#[test]
fn a_channel_registers_its_topic_along_and_goes_before_it() {
    let commands = |from: &[&str], to: &[&str]| difference(&holdings(from), &holdings(to));
    assert_eq!(
        commands(&[], &["a", "a/x", "a/y", "b"]),
        ["REGISTER a x\n", "REGISTER a y\n", "REGISTER b\n"]
    );
    assert_eq!(commands(&["a"], &["a", "a/x"]), ["REGISTER a x\n"]);
    assert_eq!(commands(&["a", "a/x"], &["a"]), ["UNREGISTER a x\n"]);
    assert_eq!(
        commands(&["a", "a/x", "b"], &["b", "c"]),
        ["UNREGISTER a x\n", "UNREGISTER a\n", "REGISTER c\n"]
    );
    assert_eq!(commands(&["a"], &["a"]), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_there_is_is_registered_and_taken_back() {
    let (network, lookupd) = house().await;
    let nsqd = Nsqd::new(&network, &[lookupd.tcp_address()]);
    lookupd
        .wait_for(|state| state.node("nsqd:4150").is_some())
        .await
        .unwrap();
    nsqd.has(&["a", "a/x#ephemeral", "b"]);
    let state = lookupd.wait_for(|state| state.topic("b").is_some()).await.unwrap();
    let node = state.node("nsqd:4150").unwrap();
    assert_eq!((node.http_port, &*node.version), (4151, "1.3.0"));
    assert_eq!(node.topics, ["a", "b"]);
    assert_eq!(state.topic("a").unwrap().channels, ["x#ephemeral"]);

    nsqd.has(&["b"]);
    let left = ["b".to_owned()];
    let state = lookupd
        .wait_for(|state| state.node("nsqd:4150").is_some_and(|node| node.topics == left))
        .await
        .unwrap();
    assert_eq!(lines(&lookupd)[3..], ["UNREGISTER a x#ephemeral", "UNREGISTER a"]);
    // The name stays, the ephemeral channel does not.
    assert_eq!(state.topic("a").unwrap().channels, [""; 0]);

    drop(nsqd);
    lookupd.wait_for(|state| state.nodes.is_empty()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_ping_every_fifteen_seconds_keeps_it_active() {
    let (network, lookupd) = house().await;
    let _nsqd = Nsqd::new(&network, &[lookupd.tcp_address()]);
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(lines(&lookupd), ["IDENTIFY", "PING", "PING", "PING", "PING"]);
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_everything_is_registered_again_with_the_next_command() {
    let (network, lookupd) = house().await;
    let nsqd = Nsqd::new(&network, &[lookupd.tcp_address()]);
    nsqd.has(&["a", "a/x"]);
    lookupd.wait_for(|state| state.topic("a").is_some()).await.unwrap();
    lookupd.faults().down();
    lookupd.faults().drop_registrations();
    assert!(lookupd.nodes().is_empty() && lookupd.topics().is_empty());
    lookupd.faults().clear().unwrap();

    // The first PING finds the connection broken, the next one opens another.
    let patience = Duration::from_secs(31);
    let state = lookupd
        .wait_for_within(patience, |state| {
            state.topic("a").is_some_and(|topic| topic.channels == ["x"])
        })
        .await
        .unwrap();
    assert_eq!(state.node("nsqd:4150").unwrap().topics, ["a"]);
}

#[tokio::test(start_paused = true)]
async fn an_nsqlookupd_that_never_answers_is_given_up_after_a_second() {
    let (network, lookupd) = house().await;
    lookupd.faults().tcp_hang();
    let _nsqd = Nsqd::new(&network, &[lookupd.tcp_address()]);
    lookupd.wait_for(|state| state.nodes.len() == 1).await.unwrap();
    let since = tokio::time::Instant::now();
    lookupd.wait_for(|state| state.nodes.is_empty()).await.unwrap();
    assert_eq!(since.elapsed(), STEP);
}

#[tokio::test(start_paused = true)]
async fn the_channels_of_a_topic_are_those_of_all_nsqlookupds_that_answer() {
    let (network, lookupd) = house().await;
    let other = Lookupd::start_in(&network, "other:4161").await.unwrap();
    let failing = Lookupd::start_in(&network, "failing:4161").await.unwrap();
    failing.faults().path("/channels").hang();
    let gone = "nothing:4160";
    let addresses = [lookupd.tcp_address(), other.tcp_address(), failing.tcp_address(), gone];
    let nsqd = Nsqd::new(&network, &addresses);
    for lookupd in [&lookupd, &other, &failing] {
        lookupd.wait_for(|state| !state.nodes.is_empty()).await.unwrap();
    }
    let third = Nsqd::new(&network, &addresses);
    third.has(&["t#ephemeral/b", "t#ephemeral/e#ephemeral", "u/c"]);
    lookupd.wait_for(|state| state.topics.len() == 2).await.unwrap();
    third.peers.set_addresses(&[other.tcp_address().to_owned()]);
    third.has(&["t#ephemeral/a", "t#ephemeral/b"]);
    other
        .wait_for(|state| {
            state
                .topic("t#ephemeral")
                .is_some_and(|topic| topic.channels == ["a", "b"])
        })
        .await
        .unwrap();
    while nsqd.peers.http_addresses().len() < 3 {
        tokio::task::yield_now().await;
    }
    let channels = nsqd.peers.channels_of("t#ephemeral").await;
    assert_eq!(channels.into_iter().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(other.requests_received()[0].target, "/channels?topic=t%23ephemeral");
}

#[tokio::test(start_paused = true)]
async fn nsqlookupds_can_be_replaced() {
    let (network, lookupd) = house().await;
    let other = Lookupd::start_in(&network, "other:4161").await.unwrap();
    let nsqd = Nsqd::new(&network, &[lookupd.tcp_address(), lookupd.tcp_address()]);
    lookupd.wait_for(|state| !state.nodes.is_empty()).await.unwrap();
    nsqd.peers.set_addresses(&[other.tcp_address().to_owned()]);
    lookupd.wait_for(|state| state.nodes.is_empty()).await.unwrap();
    other.wait_for(|state| !state.nodes.is_empty()).await.unwrap();
    assert_eq!(lines(&lookupd), ["IDENTIFY"]);
}

#[tokio::test(start_paused = true)]
async fn n4_a_reply_that_says_to_be_too_large_ends_the_connection() {
    let network = MemoryNetwork::new();
    let mut listener = network.listen("lookupd:4160").unwrap();
    let _nsqd = Nsqd::new(&network, &["lookupd:4160"]);
    for size in [-1_i32, 1024 * 1024 + 1] {
        let mut io = listener.accept().await;
        io.write_i32(size).await.unwrap();
        let mut rest = Vec::new();
        io.read_to_end(&mut rest).await.unwrap();
        assert!(rest.starts_with(b"  V1IDENTIFY\n"));
    }
}
