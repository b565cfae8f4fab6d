//! What a consumer's handle asks of its supervisor while it runs.

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Supervisor;
use crate::config::LookupdConfig;
use crate::error::{Error, ErrorKind, Result, Step};

/// Whether there was something to change.
type Reply = oneshot::Sender<Result<bool>>;

#[derive(Debug)]
pub(in crate::consumer) enum Control {
    SetMaxInFlight(u32),
    SetPaused(bool),
    AddNsqd(Arc<str>, Reply),
    RemoveNsqd(Arc<str>, Reply),
    AddLookupd(Box<LookupdConfig>, Reply),
    RemoveLookupd(String, Reply),
    Shutdown { deadline: Instant },
}

impl Supervisor {
    /// Does what was asked. What is left over is the wish to end: by when, if the handle said so.
    pub(in crate::consumer) fn handle_control(&mut self, control: Option<Control>) -> Option<End> {
        let now = Instant::now().into_std();
        match control {
            Some(Control::SetMaxInFlight(max)) => self.flow.set_max_in_flight(max, now),
            Some(Control::SetPaused(paused)) => self.flow.set_paused(paused, now),
            Some(Control::AddNsqd(address, reply)) => {
                answer(reply, Ok(self.pin(address)));
            }
            Some(Control::RemoveNsqd(address, reply)) => {
                answer(reply, Ok(self.unpin(&address)));
            }
            Some(Control::AddLookupd(lookupd, reply)) => {
                let lookupd = lookupd.with_tls_of(&self.shared.config);
                let added = self.discovery.as_mut().map(|discovery| discovery.add_lookupd(&lookupd));
                answer(reply, added.unwrap_or_else(|| Err(ended())));
                self.publish_discovery();
            }
            Some(Control::RemoveLookupd(address, reply)) => {
                let removed = self
                    .discovery
                    .as_mut()
                    .map(|discovery| discovery.remove_lookupd(&address));
                answer(reply, removed.unwrap_or_else(|| Err(ended())));
                self.publish_discovery();
            }
            Some(Control::Shutdown { deadline }) => return Some(End::By(deadline)),
            None => return Some(End::Dropped),
        }
        None
    }

    /// Consumes from this nsqd whether or not an nsqlookupd announces it.
    fn pin(&mut self, address: Arc<str>) -> bool {
        if self.pinned.contains(&address) {
            return false;
        }
        self.pinned.push(Arc::clone(&address));
        self.add_node(address);
        true
    }

    /// Leaves it to the nsqlookupds whether to consume from this nsqd.
    fn unpin(&mut self, address: &Arc<str>) -> bool {
        let Some(place) = self.pinned.iter().position(|pinned| pinned == address) else {
            return false;
        };
        self.pinned.remove(place);
        let announced = self
            .discovery
            .as_ref()
            .is_some_and(|discovery| discovery.view().announced_by(address).is_some());
        if !announced {
            self.remove_node(address);
        }
        true
    }
}

/// How a consumer is to end.
#[derive(Clone, Copy, Debug)]
pub(in crate::consumer) enum End {
    By(Instant),
    Dropped,
}

fn answer(reply: Reply, result: Result<bool>) {
    // Who asked may have stopped waiting.
    let _nobody_waits = reply.send(result);
}

pub(in crate::consumer) fn ended() -> Error {
    Error::new(ErrorKind::Shutdown, Step::Configure, "the consumer has ended")
}
