//! Copies of one message at several nsqds: when enough of them are confirmed, and what to say when not. Pure.

use crate::error::{Error, ErrorKind, Result, Step};

/// How many copies are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::producer) struct Copies {
    pub(in crate::producer) count: usize,
    pub(in crate::producer) quorum: Option<usize>,
    pub(in crate::producer) accept_fewer: bool,
}

impl Default for Copies {
    fn default() -> Self {
        Self {
            count: 1,
            quorum: None,
            accept_fewer: false,
        }
    }
}

impl Copies {
    /// How many nsqds have to be there before anything is sent.
    pub(super) fn least(&self) -> usize {
        if self.accept_fewer {
            self.quorum.unwrap_or(1)
        } else {
            self.count
        }
    }
}

/// Counts the outcomes of the copies of one message.
#[derive(Debug)]
pub(super) struct Tally {
    sent: usize,
    /// With that many confirmed the others need not be waited for.
    enough: usize,
    /// With fewer confirmed in the end, the message is not safe.
    least: usize,
    confirmed: usize,
    open: usize,
    // The first of each kind. The first to hold is what the whole is.
    unknown: Option<Error>,
    refused: Option<Error>,
    not_sent: Option<Error>,
}

impl Tally {
    /// `sent` copies are on their way, at least as many as [`Copies::least`] says.
    pub(super) fn new(copies: &Copies, sent: usize) -> Self {
        let enough = copies.quorum.unwrap_or(sent).min(sent);
        Self {
            sent,
            enough,
            least: if copies.accept_fewer {
                copies.least().min(enough)
            } else {
                enough
            },
            confirmed: 0,
            open: sent,
            unknown: None,
            refused: None,
            not_sent: None,
        }
    }

    /// One copy has its outcome. Returns that of the whole as soon as no other copy could change it.
    pub(super) fn handle_outcome(&mut self, outcome: Result<()>) -> Option<Result<()>> {
        self.open = self.open.saturating_sub(1);
        match outcome {
            Ok(()) => self.confirmed += 1,
            Err(error) => {
                let kept = match error.kind() {
                    ErrorKind::Unknown => &mut self.unknown,
                    ErrorKind::NotSent => &mut self.not_sent,
                    _ => &mut self.refused,
                };
                kept.get_or_insert(error);
            }
        }
        if self.confirmed >= self.enough {
            return Some(Ok(()));
        }
        let may_be_somewhere = self.confirmed > 0 || self.unknown.is_some();
        let out_of_reach = self.confirmed + self.open < self.least;
        if self.open == 0 {
            Some(self.verdict())
        } else if out_of_reach && may_be_somewhere {
            Some(Err(self.too_few()))
        } else {
            None
        }
    }

    fn verdict(&mut self) -> Result<()> {
        if self.confirmed >= self.least {
            return Ok(());
        }
        if self.confirmed > 0 || self.unknown.is_some() {
            return Err(self.too_few());
        }
        // Nothing is in any queue. A refusal says more than that another copy was not sent, and that a repetition fails.
        match self.refused.take().or(self.not_sent.take()) {
            Some(error) => Err(error),
            None => Err(self.too_few()),
        }
    }

    fn too_few(&mut self) -> Error {
        let Self {
            sent, least, confirmed, ..
        } = self;
        let error = Error::new(
            ErrorKind::Unknown,
            Step::Publish,
            format!("{confirmed} of {sent} copies were confirmed, {least} are needed; the message may be in a queue"),
        );
        match self.unknown.take().or(self.refused.take()).or(self.not_sent.take()) {
            Some(cause) => error.because(cause),
            None => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// How a copy can end.
    const KINDS: [Option<ErrorKind>; 4] = [
        None,
        Some(ErrorKind::Unknown),
        Some(ErrorKind::NotSent),
        Some(ErrorKind::Rejected),
    ];

    fn outcome(kind: Option<ErrorKind>) -> Result<()> {
        kind.map_or(Ok(()), |kind| Err(Error::new(kind, Step::Publish, "as the test says")))
    }

    fn told(copies: &Copies, sent: usize, kinds: &[Option<ErrorKind>]) -> Option<Option<ErrorKind>> {
        let mut tally = Tally::new(copies, sent);
        let verdict = kinds.iter().find_map(|kind| tally.handle_outcome(outcome(*kind)));
        verdict.map(|verdict| verdict.err().map(|error| error.kind()))
    }

    fn copies(count: usize, quorum: Option<usize>, accept_fewer: bool) -> Copies {
        Copies {
            count,
            quorum,
            accept_fewer,
        }
    }

    #[test]
    fn a_quorum_is_enough_and_without_one_all_are_needed() {
        assert_eq!(told(&copies(3, None, false), 3, &[None, None]), None);
        assert_eq!(told(&copies(3, None, false), 3, &[None, None, None]), Some(None));
        assert_eq!(told(&copies(3, Some(2), false), 3, &[None, None]), Some(None));
        let one_lost = [Some(ErrorKind::Unknown), None, None];
        assert_eq!(told(&copies(3, Some(2), false), 3, &one_lost), Some(None));
    }

    #[test]
    fn fewer_are_enough_only_if_so_said_and_never_fewer_than_the_quorum() {
        let one_lost = [None, Some(ErrorKind::NotSent)];
        assert_eq!(
            told(&copies(2, None, false), 2, &one_lost),
            Some(Some(ErrorKind::Unknown))
        );
        assert_eq!(told(&copies(2, None, true), 2, &one_lost), Some(None));
        assert_eq!(told(&copies(3, None, true), 1, &[None]), Some(None));
        let two_lost = [None, Some(ErrorKind::NotSent), Some(ErrorKind::NotSent)];
        assert_eq!(
            told(&copies(3, Some(2), true), 3, &two_lost),
            Some(Some(ErrorKind::Unknown))
        );
        assert_eq!(copies(3, Some(2), true).least(), 2);
        assert_eq!(copies(3, Some(2), false).least(), 3);
        assert_eq!(copies(3, None, true).least(), 1);
    }

    #[test]
    fn the_cause_of_too_few_is_told() {
        let mut tally = Tally::new(&copies(2, None, false), 2);
        tally.handle_outcome(Ok(()));
        let error = tally
            .handle_outcome(outcome(Some(ErrorKind::Rejected)))
            .unwrap()
            .unwrap_err();
        let text = error.to_string();
        assert!(text.contains("1 of 2 copies were confirmed, 2 are needed"), "{text}");
        assert!(std::error::Error::source(&error).is_some());
    }

    proptest! {
        #[test]
        fn p1_p2_the_verdict_is_true_to_the_copies(
            kinds in vec(0..4_usize, 1..6),
            quorum in proptest::option::of(1..6_usize),
            accept_fewer in any::<bool>(),
        ) {
            let kinds: Vec<_> = kinds.into_iter().map(|n| KINDS[n]).collect();
            let sent = kinds.len();
            let settings = copies(sent, quorum.filter(|quorum| *quorum <= sent), accept_fewer);
            let count = |kind| kinds.iter().filter(|it| **it == kind).count();
            let confirmed = count(None);
            let verdict = told(&settings, sent, &kinds);
            let verdict = verdict.expect("there is one once all copies have ended");
            let least = settings.quorum.unwrap_or(if accept_fewer { 1 } else { sent });
            let expected = if confirmed >= least {
                None
            } else if confirmed > 0 || count(Some(ErrorKind::Unknown)) > 0 {
                Some(ErrorKind::Unknown)
            } else if count(Some(ErrorKind::Rejected)) > 0 {
                Some(ErrorKind::Rejected)
            } else {
                Some(ErrorKind::NotSent)
            };
            prop_assert_eq!(verdict, expected);
        }
    }
}
