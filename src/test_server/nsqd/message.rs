//! Message ids and times, as nsqd makes them.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::time::Instant;

use crate::protocol::{Message, MessageId};

/// nsqd's epoch for ids, in units of 2^20 ns since the Unix epoch.
const EPOCH: i64 = 1_288_834_974_288;

const NODE_BITS: u32 = 10;
const SEQUENCE_BITS: u32 = 12;

/// What a message takes up beside its body, roughly.
const OVERHEAD: usize = 128;

/// The wall clock, driven by tokio's: it stands still where tokio's clock is paused.
#[derive(Clone, Copy, Debug)]
pub(super) struct WallClock {
    started: Instant,
    unix_nanos: i64,
}

impl WallClock {
    pub(super) fn start() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            started: Instant::now(),
            unix_nanos: i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX),
        }
    }

    /// `now` in nanoseconds since the Unix epoch.
    pub(super) fn unix_nanos(self, now: Instant) -> i64 {
        let elapsed = now.saturating_duration_since(self.started).as_nanos();
        self.unix_nanos
            .saturating_add(i64::try_from(elapsed).unwrap_or(i64::MAX))
    }
}

/// Makes the ids of one topic: growing numbers of time, node and sequence.
#[derive(Debug, Default)]
pub(super) struct IdGenerator {
    ticks: i64,
    sequence: i64,
}

impl IdGenerator {
    pub(super) fn next(&mut self, unix_nanos: i64, node: u16) -> MessageId {
        let ticks = unix_nanos >> 20;
        if ticks > self.ticks {
            self.ticks = ticks;
            self.sequence = 0;
        } else {
            self.sequence += 1;
            if self.sequence >> SEQUENCE_BITS != 0 {
                // nsqd waits for the next tick here. Taking it in advance keeps ids unique and growing, and does not
                // hang where the clock stands still.
                self.ticks += 1;
                self.sequence = 0;
            }
        }
        let node = i64::from(node & ((1 << NODE_BITS) - 1)) << SEQUENCE_BITS;
        let number = ((self.ticks - EPOCH) << (NODE_BITS + SEQUENCE_BITS)) | node | self.sequence;
        MessageId::new(hex(number as u64))
    }
}

fn hex(number: u64) -> [u8; MessageId::LEN] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    std::array::from_fn(|at| DIGITS[(number >> (60 - 4 * at)) as usize & 15])
}

/// A message that was not sent yet.
pub(super) fn fresh(id: MessageId, timestamp: i64, body: Bytes) -> Message {
    Message {
        timestamp,
        attempts: 0,
        id,
        body,
    }
}

/// The memory that a message takes up, in bytes.
pub(super) fn weight(message: &Message) -> usize {
    OVERHEAD + message.body.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_grow_even_while_the_clock_stands_still() {
        let mut ids = IdGenerator::default();
        let now = 1_700_000_000_000_000_000;
        let made: Vec<_> = (0..10_000).map(|_| ids.next(now, 7)).collect();
        assert!(made.windows(2).all(|pair| pair[0] < pair[1]));
        // ((now >> 20) - EPOCH) << 22 | 7 << 12
        let first = u64::from_str_radix(&made[0].to_string(), 16).unwrap();
        assert_eq!(first & 0x3f_ffff, 7 << 12);
        assert_eq!((first >> 22) as i64 + EPOCH, now >> 20);
        assert!(ids.next(now + (1 << 30), 7) > made[9_999]);
    }
}
