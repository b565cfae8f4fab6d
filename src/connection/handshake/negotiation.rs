//! What to say next: the handshake as a state machine that knows no socket and no clock.

use std::borrow::Cow;

use bytes::{BufMut, BytesMut};

use super::negotiated::Negotiated;
use crate::config::{Compression, ConnectionConfig};
use crate::error::{Error, ErrorKind, Result, Step};
use crate::name::{Channel, Topic};
use crate::protocol::{self, AuthResponse, IdentifyRequest, IdentifyResponse, command};
use crate::transport::TlsSession;

/// The handshake of one connection.
///
/// ```text
/// magic, IDENTIFY ──> JSON ──┬──> TLS ──> OK ──┬──> snappy or deflate ──> OK ──┬──> AUTH ──> JSON ──┬──> SUB ──> OK ──> Ready
///                            └──── not asked ──┴──────── not asked ────────────┴── not demanded ────┴── a producer ──> Ready
/// ```
///
/// nsqd has these steps in this order, and each of its answers has to be awaited before the next command: what is sent
/// ahead of a change of the stream is lost.
pub(super) struct Negotiation<'a> {
    config: &'a ConnectionConfig,
    asked: IdentifyRequest,
    subscription: Option<(&'a Topic, &'a Channel)>,
    /// The step that is under way.
    step: Step,
    agreed: Negotiated,
}

/// What is to be done before anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Send what was appended, if anything, and hand the answer over.
    Answer,
    /// Speak TLS from here on, call [`handle_encrypted`](Negotiation::handle_encrypted), then hand over the answer that comes
    /// by itself.
    Encrypt,
    /// Speak this from here on, then hand over the answer that comes by itself.
    Compress(Compression),
    /// The connection is ready for its role.
    Ready,
}

impl<'a> Negotiation<'a> {
    /// Begins: appends the magic and IDENTIFY, whose answer comes next.
    pub(super) fn begin(
        config: &'a ConnectionConfig,
        subscription: Option<(&'a Topic, &'a Channel)>,
        out: &mut BytesMut,
    ) -> Self {
        out.put_slice(protocol::MAGIC);
        let asked = config.identify();
        command::identify(out, &asked.to_json());
        Self {
            config,
            asked,
            subscription,
            step: Step::Identify,
            agreed: Negotiated::default(),
        }
    }

    /// The step that is under way.
    pub(super) fn step(&self) -> Step {
        self.step
    }

    /// What has been agreed on.
    pub(super) fn into_agreed(self) -> Negotiated {
        self.agreed
    }

    /// nsqd's response to what was sent last.
    ///
    /// # Errors
    /// There is no agreement: the connection is of no use.
    pub(super) fn handle_response(&mut self, data: &[u8], out: &mut BytesMut) -> Result<Next> {
        match self.step {
            Step::Identify => self.identified(data, out),
            Step::Tls => {
                self.expect_ok(data)?;
                self.compress(out)
            }
            Step::Compression => {
                self.expect_ok(data)?;
                self.authenticate(out)
            }
            Step::Auth => {
                let answer = AuthResponse::decode(data)
                    .map_err(|source| self.broken("the answer to AUTH is not nsqd's").because(source))?;
                self.agreed.auth = Some(answer);
                Ok(self.subscribe(out))
            }
            _ => {
                self.expect_ok(data)?;
                Ok(Next::Ready)
            }
        }
    }

    /// TLS is spoken. nsqd confirms it by an OK.
    pub(super) fn handle_encrypted(&mut self, session: TlsSession) {
        self.agreed.tls = Some(session);
    }

    /// An error frame, as an error that says what to do where that is known.
    pub(super) fn handle_error(&self, text: &[u8]) -> Error {
        let text = self.shown(text);
        let refusal = Error::rejected(self.step, &text);
        if text.contains("(TLS required)") {
            let message = "nsqd requires TLS; give ConnectionConfig::tls";
            return Error::new(ErrorKind::Unsupported, self.step, message)
                .coded(refusal.code())
                .because(refusal);
        }
        refusal
    }

    /// What a peer says gets into logs. nsqd does not repeat the secret; something else may. It is looked for in all that was
    /// said: half of it, or one with its line breaks escaped, would not be found.
    fn shown(&self, said: &[u8]) -> String {
        let secret = (self.config.auth_secret.as_ref()).map_or(&[][..], |secret| &secret.reveal()[..]);
        let mut kept = Vec::with_capacity(said.len());
        let mut rest = said;
        while let Some((first, behind)) = rest.split_first() {
            match rest.strip_prefix(secret) {
                Some(behind) if !secret.is_empty() => {
                    kept.extend_from_slice(b"(the secret)");
                    rest = behind;
                }
                _ => {
                    kept.push(*first);
                    rest = behind;
                }
            }
        }
        protocol::shown(&kept)
    }

    fn identified(&mut self, data: &[u8], out: &mut BytesMut) -> Result<Next> {
        let granted = IdentifyResponse::decode(data)
            .map_err(|source| self.broken("the answer is not nsqd's; is this nsqd?").because(source))?;
        self.check(&granted)?;
        self.agreed.identify = granted;
        if self.asked.tls_v1 {
            self.step = Step::Tls;
            return Ok(Next::Encrypt);
        }
        self.compress(out)
    }

    /// What was asked for must be granted, and nothing else.
    fn check(&self, granted: &IdentifyResponse) -> Result<()> {
        let asked = &self.asked;
        let features = [
            (
                Step::Tls,
                "TLS",
                "run nsqd with --tls-cert and --tls-key, or do not ask for TLS",
                asked.tls_v1,
                granted.tls_v1,
            ),
            (
                Step::Compression,
                "snappy",
                "run nsqd with --snappy, or do not ask for it",
                asked.snappy,
                granted.snappy,
            ),
            (
                Step::Compression,
                "deflate",
                "run nsqd with --deflate, or do not ask for it",
                asked.deflate,
                granted.deflate,
            ),
        ];
        for (step, feature, advice, asked, granted) in features {
            if asked && !granted {
                let message = format!("nsqd does not grant {feature}, which was asked for; {advice}");
                return Err(Error::new(ErrorKind::Unsupported, step, message));
            }
            if granted && !asked {
                return Err(self.broken(format!("nsqd grants {feature}, which was not asked for")));
            }
        }
        let sampled = asked.sample_rate.unwrap_or(0);
        if sampled != 0 && granted.sample_rate != sampled {
            let message = format!(
                "nsqd does not grant a sample_rate of {sampled}, but {}; this nsqd is too old or something in between \
                 changes its answers",
                granted.sample_rate
            );
            return Err(Error::new(ErrorKind::Unsupported, Step::Identify, message));
        }
        Ok(())
    }

    fn compress(&mut self, out: &mut BytesMut) -> Result<Next> {
        let compression = match self.config.compression {
            Compression::None => return self.authenticate(out),
            Compression::Snappy => Compression::Snappy,
            // As go-nsq does: our own direction is compressed by the granted level too.
            Compression::Deflate { level } => Compression::Deflate {
                level: u8::try_from(self.agreed.identify.deflate_level)
                    .unwrap_or(level)
                    .clamp(1, 9),
            },
        };
        self.step = Step::Compression;
        Ok(Next::Compress(compression))
    }

    fn authenticate(&mut self, out: &mut BytesMut) -> Result<Next> {
        if !self.agreed.identify.auth_required {
            return Ok(self.subscribe(out));
        }
        self.step = Step::Auth;
        let refused = |message: &'static str| Err(Error::new(ErrorKind::Unsupported, Step::Auth, message));
        let Some(secret) = &self.config.auth_secret else {
            return refused("nsqd demands AUTH; give ConnectionConfig::auth_secret");
        };
        if self.agreed.tls.is_none() && !self.config.plaintext_auth {
            return refused(
                "nsqd demands AUTH, and the secret would travel in clear text; ask for TLS, or call allow_plaintext_auth",
            );
        }
        command::auth(out, secret.reveal());
        Ok(Next::Answer)
    }

    fn subscribe(&mut self, out: &mut BytesMut) -> Next {
        let Some((topic, channel)) = self.subscription else {
            return Next::Ready;
        };
        self.step = Step::Subscribe;
        command::sub(out, topic.as_str(), channel.as_str());
        Next::Answer
    }

    fn expect_ok(&self, data: &[u8]) -> Result<()> {
        if data == protocol::OK {
            return Ok(());
        }
        Err(self.broken(format!("the answer is {:?} instead of OK", self.shown(data))))
    }

    fn broken(&self, message: impl Into<Cow<'static, str>>) -> Error {
        Error::new(ErrorKind::Protocol, self.step, message)
    }
}

#[cfg(test)]
mod tests;
