//! What a measurement finds at nsqd, and what is left of it afterwards.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::broker::Nsqd;
use crate::client::Client;
use crate::files::{self, Files};
use crate::job::{Job, Work};
use crate::raw_broker::RawBroker;
use crate::rows::Row;
use crate::{Result, raw};

/// The messages of each MPUB that fills a topic to be consumed from, and the bytes of their bodies: nsqd takes 5 MiB.
const FILL: u64 = 100;
const FILL_BYTES: u64 = 5_000_000;

/// Messages that are queued and not timed, and the bytes of their bodies. Without them the last ones timed would sit in
/// nsqd's output buffer until its timer fires.
const SURPLUS: u64 = 6000;
const SURPLUS_BYTES: u64 = 10_000_000;

/// What the names of topics and channels end with that go with their last consumer.
const EPHEMERAL: &str = "#ephemeral";

const DEADLINE: Duration = Duration::from_secs(20);

/// One measurement's job, and the brokers that it is done with.
pub(crate) struct Stage<'a> {
    pub(crate) job: Job,
    /// Those that topics are left in.
    nsqds: &'a [Nsqd],
    /// Ends with the stage.
    _raw_broker: Option<RawBroker>,
}

impl<'a> Stage<'a> {
    /// Prepares topics of their own, or a broker.
    pub(crate) fn set(nsqds: &'a [Nsqd], files: &Files, row: &Row, client: Client, share: u64) -> Result<Self> {
        let raw_broker = match row.raw_broker {
            true => Some(RawBroker::start(&files.bodies(row.body_len), row.nodes)?),
            false => None,
        };
        let topics = match client {
            // To a socket that sends one PUB per message it makes no difference which topic each names.
            Client::Raw => 1,
            _ => row.topics,
        };
        // nsqd writes down which other topics and channels there are whenever there is one more or less, which takes its
        // time with a thousand. These also go with their last consumer.
        let ending = if row.is_idle() { EPHEMERAL } else { "" };
        let topics = (0..topics).map(|_| nsqds[0].new_topic() + ending).collect();
        let nsqds = if row.raw_broker { &[] } else { &nsqds[..row.nodes] };
        let addresses: Vec<SocketAddr> = match &raw_broker {
            Some(broker) => broker.addresses().to_vec(),
            None => nsqds.iter().map(Nsqd::tcp_address).collect(),
        };
        let (nsqd, other_nsqds) = addresses.split_first().ok_or("a row without a broker")?;
        let job = Job {
            nsqd: *nsqd,
            other_nsqds: other_nsqds.to_vec(),
            topics,
            messages: row.messages(client, share),
            bodies: files.bodies(row.body_len),
            root_ca: row.tls.then(|| files.certificate()),
            compression: row.compression,
            work: row.work,
        };
        for nsqd in nsqds {
            match job.work {
                Work::Publish { .. } | Work::Idle { .. } => {}
                Work::Consume { .. } | Work::Sleep { .. } => fill(nsqd, &job, row.body_len)?,
                Work::Latency { .. } => create_channel(nsqd, &job)?,
            }
        }
        Ok(Self {
            job,
            nsqds: if row.is_idle() { &[] } else { nsqds },
            _raw_broker: raw_broker,
        })
    }

    /// Deletes the topics with all that is queued, so that each measurement finds nsqd's memory empty.
    pub(crate) fn strike(self) -> Result<()> {
        let delete_from = |nsqd: &Nsqd| self.job.topics.iter().try_for_each(|topic| nsqd.delete_topic(topic));
        self.nsqds.iter().try_for_each(delete_from)
    }
}

/// The channel is there before the messages: nsqd would otherwise carry them over from the topic while the consumer is
/// timed.
fn create_channel(nsqd: &Nsqd, job: &Job) -> Result<()> {
    let topic = &job.topics[0];
    nsqd.request(&format!("POST /topic/create?topic={topic}"))?;
    nsqd.request(&format!("POST /channel/create?topic={topic}&channel=bench"))
        .map(drop)
}

/// Queues this nsqd's share of the messages in the channel.
fn fill(nsqd: &Nsqd, job: &Job, body_len: usize) -> Result<()> {
    create_channel(nsqd, job)?;
    let topic = &job.topics[0];
    let share = job.messages / job.addresses().count() as u64;
    let at_most = |messages: u64, bytes: u64| messages.min(bytes / body_len as u64);
    let batch = at_most(FILL, FILL_BYTES);
    let batches = (share + at_most(SURPLUS, SURPLUS_BYTES)).div_ceil(batch);
    raw::publish(
        nsqd.tcp_address(),
        topic,
        files::read_bodies(&job.bodies)?,
        batches,
        batch as usize,
        8,
    )?;
    let deadline = Instant::now() + DEADLINE;
    while queued_in_topic(nsqd, topic)? > 0 {
        if Instant::now() > deadline {
            return Err("nsqd does not carry the messages to the channel".into());
        }
        sleep(Duration::from_millis(5));
    }
    Ok(())
}

#[derive(Deserialize)]
struct Stats {
    topics: Vec<Topic>,
}

#[derive(Deserialize)]
struct Topic {
    depth: u64,
}

fn queued_in_topic(nsqd: &Nsqd, topic: &str) -> Result<u64> {
    let stats: Stats = serde_json::from_str(&nsqd.request(&format!("GET /stats?format=json&topic={topic}"))?)?;
    Ok(stats.topics.iter().map(|topic| topic.depth).sum())
}
