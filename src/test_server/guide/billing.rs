use std::time::Duration;
use async_nsq::{BoxError, ConnectionConfig, Consumer, ConsumerReport, Message, Producer};

pub struct Billing {
    consumer: Consumer,
}

impl Billing {
    pub async fn start(lookupd: &str, nsqd: &str, connection: ConnectionConfig) -> async_nsq::Result<Self> {
        let producer = Producer::builder()
            .nsqd(nsqd)
            .connection(connection.clone())
            .publish_timeout(Duration::from_secs(5))
            .connect()
            .await?;
        let consumer = Consumer::builder("orders", "billing")
            .lookupd(lookupd)
            .connection(connection)
            .start(move |order: Message| {
                let producer = producer.clone();
                async move {
                    let invoice = format!("invoice for {}", String::from_utf8_lossy(order.body()));
                    producer.publish("invoices", invoice).await?; // an error requeues the order
                    Ok::<(), BoxError>(())
                }
            })
            .await?;
        Ok(Self { consumer })
    }

    pub async fn stop(self) -> ConsumerReport {
        self.consumer.shutdown(Duration::from_secs(10)).await
    }
}
