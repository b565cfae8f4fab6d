//! The raw socket loop over several connections: those that have something to read are served one after the other.

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::Result;
use crate::job::Job;
use crate::raw::{self, Subscription};
use crate::span::Span;

/// Finishes so many messages, with `max_in_flight` divided among the connections.
pub(crate) fn consume(job: &Job, max_in_flight: u32) -> Result<Span> {
    if job.other_nsqds.is_empty() {
        return raw::consume(job.nsqd, &job.topics[0], job.messages, max_in_flight);
    }
    let share = max_in_flight / (1 + job.other_nsqds.len() as u32);
    let addresses = std::iter::once(&job.nsqd).chain(&job.other_nsqds);
    let subscriptions = addresses.map(|address| Subscription::open(*address, &job.topics[0], share));
    let mut subscriptions: Vec<Subscription> = subscriptions.collect::<Result<_>>()?;
    let epoll = Epoll::new(EpollCreateFlags::empty())?;
    for (place, subscription) in subscriptions.iter().enumerate() {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, place as u64);
        epoll.add(&subscription.connection.stream, event)?;
    }
    let mut handler = raw::counter(job.messages);
    let mut events = [EpollEvent::empty(); 64];
    loop {
        let count = epoll.wait(&mut events, EpollTimeout::NONE)?;
        for event in &events[..count] {
            if let Some(span) = subscriptions[event.data() as usize].turn(&mut handler)? {
                return Ok(span);
            }
        }
    }
}
