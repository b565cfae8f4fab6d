//! What the public types promise to the compiler: a service may move them between threads, share them, hold them in its
//! own structs and print them.

use std::error::Error as StdError;
use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use async_nsq::backoff::{Exponential, FullJitter, Off};
use async_nsq::test_server::{self, AuthServer, Lookupd, LookupdBuilder, Nsqd, NsqdBuilder};
use async_nsq::transport::{MemoryConnector, MemoryListener, MemoryNetwork, TcpConnector};
use async_nsq::{
    BatchOptions, BatchOutcome, BoxError, Channel, ConnectionConfig, ConnectionStats, Consumer, ConsumerBuilder,
    ConsumerGroup, ConsumerGroupBuilder, ConsumerReport, ConsumerStats, Culprit, DangerousOptions, DuplicateWindow,
    Error, ErrorKind, GroupReport, GroupStats, HandlerError, LatencyHistogram, LookupdConfig, LookupdStats,
    LookupdStatus, MemberId, MemberReport, MemberStats, Message, MessageStream, NsqdDiscovered, OptionValue, Options,
    PauseReason, Producer, ProducerBuilder, ProducerNodeStats, ProducerReport, ProducerSink, ProducerStats,
    PublishFailure, RoutedMessage, RoutedNsqd, Routing, Step, Topic, TopicPattern, protocol,
};

fn shared<T: Send + Sync + Debug + 'static>() {}
fn cloned<T: Clone + Send + Sync + Debug + 'static>() {}
fn sink<T: Send + Unpin + Debug + 'static>() {}
fn error<T: StdError + Send + Sync + 'static>() {}
fn sent<F: Future + Send>(_: &F) {}

#[test]
fn public_types_are_send_sync_and_debug() {
    shared::<Consumer>();
    shared::<Message>();
    shared::<MessageStream>();
    shared::<BatchOutcome>();
    cloned::<(BatchOptions, DuplicateWindow)>();
    shared::<Nsqd>();
    shared::<NsqdBuilder>();
    shared::<Lookupd>();
    shared::<LookupdBuilder>();
    shared::<AuthServer>();
    shared::<MemoryListener>();
    shared::<protocol::CommandParser>();
    cloned::<Producer>();
    cloned::<ProducerBuilder>();
    cloned::<ProducerReport>();
    cloned::<(Routing, RoutedMessage<'static>, RoutedNsqd<'static>)>();
    cloned::<(ProducerStats, ProducerNodeStats, LatencyHistogram, PublishFailure)>();
    sink::<ProducerSink>();
    cloned::<ConsumerBuilder>();
    cloned::<ConsumerReport>();
    shared::<(ConsumerGroup, ConsumerGroupBuilder)>();
    cloned::<(
        GroupReport,
        GroupStats,
        MemberReport,
        MemberStats,
        MemberId,
        TopicPattern,
    )>();
    cloned::<ConsumerStats>();
    cloned::<ConnectionStats>();
    cloned::<ConnectionConfig>();
    cloned::<(Options, OptionValue, DangerousOptions)>();
    cloned::<LookupdConfig>();
    cloned::<(LookupdStats, LookupdStatus, NsqdDiscovered)>();
    #[cfg(feature = "tls")]
    cloned::<(async_nsq::TlsConfig, async_nsq::DangerousTls)>();
    cloned::<PauseReason>();
    cloned::<Topic>();
    cloned::<Channel>();
    cloned::<(ErrorKind, Step, Culprit)>();
    cloned::<(Exponential, FullJitter, Off)>();
    cloned::<(TcpConnector, MemoryNetwork, MemoryConnector)>();
    cloned::<(protocol::FrameDecoder, protocol::Frame, protocol::Command)>();
    cloned::<(protocol::IdentifyRequest, protocol::IdentifyResponse, protocol::Lookup)>();
    cloned::<test_server::Stats>();
}

#[test]
fn errors_go_where_errors_go() {
    error::<Error>();
    error::<HandlerError>();
    error::<protocol::FrameError>();
    error::<protocol::CommandError>();
    error::<protocol::AnswerError>();
    error::<protocol::LookupError>();
    error::<test_server::WaitError>();
}

#[tokio::test]
async fn futures_can_be_spawned() {
    let nsqd = Nsqd::start().await.unwrap();
    sent(&Producer::connect("a:1"));
    let producer = Producer::connect(nsqd.address()).await.unwrap();
    sent(&producer.publish("t", "m"));
    sent(&producer.publish_many("t", ["m"]));
    sent(&producer.publish_deferred("t", Duration::ZERO, "m"));
    sent(&producer.enqueue("t", "m"));
    sent(&producer.ping());
    sent(&producer.ready(Duration::ZERO));
    sent(&producer.flush(Duration::ZERO));
    sent(&producer.shutdown(Duration::ZERO));
    let handler = |_: Message| async { Ok::<(), BoxError>(()) };
    let builder = Consumer::builder("t", "c").nsqd(nsqd.address());
    sent(&builder.clone().start(handler));
    sent(&builder.clone().stream());
    let batches = |_: Vec<Message>| async { Ok::<(), BoxError>(()) };
    sent(&builder.clone().start_batches(BatchOptions::new(), batches));
    let consumer = builder.start(handler).await.unwrap();
    sent(&consumer.ready(Duration::ZERO));
    sent(&consumer.set_max_in_flight(1));
    sent(&consumer.shutdown(Duration::ZERO));
    sent(&nsqd.wait_for(|_| true));
}
