//! Emptied queues, to be used again.

use std::collections::VecDeque;

use crate::protocol::Message;

/// Queues are kept while they have room for no more messages than this: enough for a few large reads, or for one each of
/// many connections that have little in flight.
const MOST_ROOM: usize = 4096;

/// Emptied queues for the messages of further reads.
#[derive(Debug, Default)]
pub(super) struct Spares {
    queues: Vec<VecDeque<Message>>,
    room: usize,
}

impl Spares {
    pub(super) fn pop(&mut self) -> Option<VecDeque<Message>> {
        let queue = self.queues.pop()?;
        self.room -= queue.capacity();
        Some(queue)
    }

    pub(super) fn keep(&mut self, emptied: VecDeque<Message>) {
        let room = emptied.capacity();
        if room > 0 && self.room + room <= MOST_ROOM {
            self.room += room;
            self.queues.push(emptied);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_small_queues_are_kept_or_few_large_ones() {
        for (room, most) in [(2000, 2), (32, 128)] {
            let mut spares = Spares::default();
            for _ in 0..1000 {
                let queue = VecDeque::with_capacity(room);
                assert_eq!(queue.capacity(), room);
                spares.keep(queue);
            }
            assert_eq!(std::iter::from_fn(|| spares.pop()).count(), most);
            assert_eq!(spares.room, 0);
        }
    }
}
