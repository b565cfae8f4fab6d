//! The broker on a simulated host.

use std::time::Duration;

use async_nsq::protocol::Command;
use async_nsq::test_server::Nsqd;
use async_nsq::transport::{Connecting, Connector};
use turmoil::Builder;
use turmoil::net::{TcpListener, TcpStream};

use super::publish;
use super::raw::RawClient;

#[derive(Debug)]
struct Simulated;

impl Connector for Simulated {
    fn connect(&self, address: &str) -> Connecting {
        let address = address.to_owned();
        Box::pin(async move { Ok(Box::new(TcpStream::connect(address).await?) as _) })
    }
}

#[test]
fn it_serves_the_streams_of_a_simulated_network() {
    let mut simulation = Builder::new().simulation_duration(Duration::from_secs(600)).build();
    simulation.host("nsqd", || async {
        let nsqd = Nsqd::builder().start_detached("nsqd:4150")?;
        let listener = TcpListener::bind("0.0.0.0:4150").await?;
        loop {
            let (stream, remote) = listener.accept().await?;
            nsqd.serve(stream, remote.to_string());
        }
    });
    simulation.client("client", async {
        let mut consumer = RawClient::open(&Simulated, "nsqd:4150").await;
        let body = r#"{"heartbeat_interval":60000}"#.into();
        consumer.ask(Command::Identify { body }, "OK").await;
        consumer.subscribe("t", "c", 1).await;
        let mut producer = RawClient::open(&Simulated, "nsqd:4150").await;
        producer.ask(publish("hello"), "OK").await;
        let message = consumer.message().await;
        assert_eq!((&message.body[..], message.attempts), (&b"hello"[..], 1));
        let id = message.id;
        consumer.send(Command::Req { id, delay_ms: 60_000 }).await;
        assert_eq!(consumer.message().await.attempts, 2);
        Ok(())
    });
    simulation.run().unwrap();
}
