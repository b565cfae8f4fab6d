//! Batches that are too large for one MPUB. Pure.

use bytes::Bytes;

use super::pipeline::Payload;
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::command;

/// Divides messages so that each part fits into an MPUB of `limit` bytes, in order. One that does not fit with its
/// header is a part of its own, which leaves as PUB.
pub(super) fn parts(bodies: Vec<Bytes>, limit: usize) -> Vec<Payload> {
    let whole = command::mpub_body_len(bodies.iter().map(Bytes::len));
    if whole <= limit {
        return vec![Payload::Many(bodies)];
    }
    let mut parts = Vec::new();
    let mut part: Vec<Bytes> = Vec::new();
    let mut size = 4;
    for body in bodies {
        if !part.is_empty() && size + 4 + body.len() > limit {
            parts.push(whole_part(std::mem::take(&mut part)));
            size = 4;
        }
        size += 4 + body.len();
        part.push(body);
    }
    parts.push(whole_part(part));
    parts
}

fn whole_part(mut part: Vec<Bytes>) -> Payload {
    match part.len() {
        1 => Payload::One(part.swap_remove(0)),
        _ => Payload::Many(part),
    }
}

/// What the parts of a batch amount to.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    messages: usize,
    confirmed: usize,
    worst: Option<Error>,
}

impl Verdict {
    pub(super) fn add(&mut self, messages: usize, outcome: Result<()>) {
        self.messages += messages;
        match outcome {
            Ok(()) => self.confirmed += messages,
            Err(error) => {
                if self
                    .worst
                    .as_ref()
                    .is_none_or(|worst| badness(worst.kind()) < badness(error.kind()))
                {
                    self.worst = Some(error);
                }
            }
        }
    }

    pub(super) fn into_result(self) -> Result<()> {
        let Some(worst) = self.worst else { return Ok(()) };
        let kind = match worst.kind() {
            // That would be to say that the whole can be published again without harm.
            ErrorKind::NotSent | ErrorKind::Invalid if self.confirmed > 0 => ErrorKind::Unknown,
            kind => kind,
        };
        let text = format!("{} of {} messages were confirmed", self.confirmed, self.messages);
        Err(worst.in_part(kind, text))
    }
}

fn badness(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::NotSent => 0,
        ErrorKind::Invalid => 1,
        ErrorKind::Rejected => 2,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::Step;

    #[test]
    fn the_worst_part_counts_and_not_sent_only_if_nothing_was() {
        let verdict = |kinds: &[Option<ErrorKind>]| {
            let mut verdict = Verdict::default();
            for kind in kinds {
                let outcome = kind.map_or(Ok(()), |kind| Err(Error::new(kind, Step::Publish, "")));
                verdict.add(2, outcome);
            }
            verdict.into_result().map_err(|error| (error.kind(), error.to_string()))
        };
        let told = |kind, confirmed, all| Err((kind, format!("publish: {confirmed} of {all} messages were confirmed")));
        let (ok, not_sent) = (None, Some(ErrorKind::NotSent));
        let (rejected, unknown) = (Some(ErrorKind::Rejected), Some(ErrorKind::Unknown));
        assert_eq!(verdict(&[ok, ok]), Ok(()));
        assert_eq!(verdict(&[not_sent, not_sent]), told(ErrorKind::NotSent, 0, 4));
        assert_eq!(verdict(&[not_sent, rejected]), told(ErrorKind::Rejected, 0, 4));
        assert_eq!(verdict(&[unknown, rejected, ok]), told(ErrorKind::Unknown, 2, 6));
        assert_eq!(verdict(&[ok, rejected, not_sent]), told(ErrorKind::Rejected, 2, 6));
        assert_eq!(verdict(&[ok, not_sent]), told(ErrorKind::Unknown, 2, 4));
    }

    proptest! {
        #[test]
        fn parts_keep_the_order_and_the_limit(sizes in prop::collection::vec(1usize..90, 1..60), limit in 64usize..200) {
            let bodies: Vec<Bytes> = sizes.iter().enumerate().map(|(n, size)| vec![n as u8; *size].into()).collect();
            let mut seen = Vec::new();
            for part in parts(bodies.clone(), limit) {
                match part {
                    Payload::One(body) => seen.push(body),
                    Payload::Many(part) => {
                        prop_assert!(command::mpub_body_len(part.iter().map(Bytes::len)) <= limit);
                        seen.extend(part);
                    }
                    other => panic!("{other:?}"),
                }
            }
            prop_assert_eq!(seen, bodies);
        }
    }
}
