//! The nsqds that nsqlookupds know, as lanes of a pool.

use std::sync::{Arc, PoisonError, Weak};

use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::{Place, Pool, Source};
use crate::discovery::{LookupdFacts, Node, NodeWatch};
use crate::error::Error;

/// What a pool knows of its discovery. Dropping it ends that.
#[derive(Debug)]
pub(super) struct Following {
    task: AbortHandle,
    progress: watch::Receiver<Progress>,
}

#[derive(Clone, Debug, Default)]
struct Progress {
    /// Whether all nsqlookupds have been asked once.
    asked: bool,
    /// Why one of them does not answer.
    failure: Option<Error>,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Pool {
    /// Adds and removes lanes as the nsqlookupds say, until the pool is closed or dropped.
    pub(in crate::producer) fn follow(self: &Arc<Self>, mut nodes: NodeWatch) {
        let pool = Arc::downgrade(self);
        let mut lost = self.notices.lost.subscribe();
        let (told, progress) = watch::channel(Progress::default());
        let task = tokio::spawn(async move {
            loop {
                let changes = tokio::select! {
                    biased;
                    Ok(()) = lost.changed() => {
                        // Where it went may be known already.
                        nodes.poll_soon();
                        continue;
                    }
                    changes = nodes.next() => changes,
                };
                let Some(pool) = Weak::upgrade(&pool) else { return };
                for node in &changes.removed {
                    pool.remove(&node.address, Source::Lookupd);
                }
                for node in changes.added.iter().chain(&changes.anew) {
                    if pool.add(&node.address, place_of(node), Source::Lookupd).is_err() {
                        return;
                    }
                }
                for node in &changes.anew {
                    pool.dial_soon(&node.address);
                }
                let failure = nodes.lookupd_facts().iter().find_map(LookupdFacts::failure).cloned();
                told.send_replace(Progress { asked: true, failure });
            }
        });
        let following = Following {
            task: task.abort_handle(),
            progress,
        };
        *self.following.lock().unwrap_or_else(PoisonError::into_inner) = Some(following);
    }

    /// No nsqd is added or removed any more.
    pub(super) fn stop_following(&self) {
        let following = self.following.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(following);
    }

    fn progress(&self) -> Option<watch::Receiver<Progress>> {
        let following = self.following.lock().unwrap_or_else(PoisonError::into_inner);
        following.as_ref().map(|following| following.progress.clone())
    }

    /// Waits until all nsqlookupds have been asked once, if there are any.
    pub(super) async fn asked(&self) {
        if let Some(mut progress) = self.progress() {
            // An error means that nobody asks any more.
            let _ended = progress.wait_for(|progress| progress.asked).await;
        }
    }

    /// Why an nsqlookupd does not answer, if one does not.
    pub(super) fn discovery_failure(&self) -> Option<Error> {
        self.progress()?.borrow().failure.clone()
    }

    fn dial_soon(&self, address: &str) {
        for lane in self.lanes() {
            if *lane.address == *address {
                lane.dial_soon();
            }
        }
    }
}

fn place_of(node: &Node) -> Place {
    Place {
        region: node.region.clone(),
        zone: node.zone.clone(),
    }
}
