//! What nsqd accepts: what it was configured with as far as the user says so, and what it tells when it refuses. Pure.

use bytes::Bytes;

use super::pipeline::Payload;
use crate::error::{Error, ErrorKind, Step};
use crate::protocol::command;

/// What an nsqd has told of its limits. It tells one only when it refuses what is larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Learnt {
    pub(super) msg_size: usize,
    pub(super) body_size: usize,
}

impl Learnt {
    pub(super) const NOTHING: Self = Self {
        msg_size: usize::MAX,
        body_size: usize::MAX,
    };

    /// Takes the limit from an error frame such as `E_BAD_MESSAGE PUB message too big 1048577 > 1048576`. Returns
    /// whether there was one.
    pub(super) fn learn(&mut self, text: &str) -> bool {
        let (limit, sizes) = if let Some((_, sizes)) = text.split_once(" message too big ") {
            (&mut self.msg_size, sizes)
        } else if let Some((_, sizes)) = text.split_once("MPUB body too big ") {
            (&mut self.body_size, sizes)
        } else {
            return false;
        };
        let told = sizes.split_once(" > ").and_then(|(size, most)| {
            let (size, most): (u64, usize) = (size.parse().ok()?, most.parse().ok()?);
            // What contradicts itself is no limit.
            (most > 0 && size > most as u64).then_some(most)
        });
        if let Some(most) = told {
            *limit = most;
        }
        told.is_some()
    }

    /// Why this would be refused, if it would.
    pub(super) fn check(&self, payload: &Payload) -> Result<(), Error> {
        if *self == Self::NOTHING {
            return Ok(());
        }
        match payload {
            Payload::One(body) | Payload::Deferred { body, .. } => self.check_message(body),
            Payload::Many(bodies) => {
                for body in bodies {
                    self.check_message(body)?;
                }
                let size = command::mpub_body_len(bodies.iter().map(Bytes::len));
                if size > self.body_size {
                    return Err(Error::new(
                        ErrorKind::NotSent,
                        Step::Publish,
                        format!(
                            "the {} messages make {size} bytes, and nsqd has told meanwhile that its max-body-size is \
                             {}: published again, they leave in parts",
                            bodies.len(),
                            self.body_size
                        ),
                    ));
                }
                Ok(())
            }
            Payload::Ping | Payload::Gone => Ok(()),
        }
    }

    pub(super) fn exceeds_msg_size(&self, payload: &Payload) -> bool {
        match payload {
            Payload::One(body) | Payload::Deferred { body, .. } => body.len() > self.msg_size,
            Payload::Many(bodies) => bodies.iter().any(|body| body.len() > self.msg_size),
            Payload::Ping | Payload::Gone => false,
        }
    }

    fn check_message(&self, body: &Bytes) -> Result<(), Error> {
        if body.len() <= self.msg_size {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "the message has {} bytes, more than nsqd's max-msg-size ({}), which it told when it refused another one",
            body.len(),
            self.msg_size
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nsqds_words_for_what_is_too_big() {
        let mut learnt = Learnt::NOTHING;
        for nothing in [
            "E_BAD_MESSAGE PUB invalid message body size 0",
            "E_BAD_MESSAGE MPUB message too big",
            "E_BAD_MESSAGE PUB message too big 5 > 6",
            "E_BAD_MESSAGE PUB message too big 5 > 0",
            "E_BAD_MESSAGE PUB message too big a > b",
            "E_BAD_BODY IDENTIFY body too big 7 > 6",
        ] {
            assert!(!learnt.learn(nothing), "{nothing}");
        }
        assert_eq!(learnt, Learnt::NOTHING);
        for command in ["PUB", "MPUB", "DPUB"] {
            let mut learnt = Learnt::NOTHING;
            assert!(learnt.learn(&format!("E_BAD_MESSAGE {command} message too big 1048577 > 1048576")));
            assert_eq!(learnt.msg_size, 1_048_576);
        }
        assert!(learnt.learn("E_BAD_BODY MPUB body too big 5242881 > 5242880"));
        assert_eq!((learnt.msg_size, learnt.body_size), (usize::MAX, 5_242_880));
    }
}
