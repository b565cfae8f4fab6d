//! IDENTIFY and what it grants: the stream is exchanged for one that is encrypted, compressed, or both.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::{Instant, timeout};

use super::identify::{Grant, Request, Settings};
use super::output::Ticker;
use super::{Flow, LAST_WORDS, Session};
use crate::protocol::{CommandError, Frame, OK};
use crate::test_server::nsqd::faults::Feature;
use crate::test_server::nsqd::state::State;
use crate::test_server::nsqd::stats::Encryption;
use crate::test_server::tls::{Encrypted, HandshakeFailed, ServerTls, handshake};
use crate::transport::compressed::{Codec, Compressed};

/// How long a client may take for the TLS handshake, as in nsqd.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(5);

/// What was granted and is still to be done.
pub(super) struct Upgrade {
    pub(super) grant: Grant,
}

impl Session {
    pub(super) fn identify(&mut self, state: &mut State, body: &[u8], now: Instant) -> Result<(), CommandError> {
        let mut request = Request::read(body)?;
        self.refuse_features(state, &mut request);
        self.settings.take_over(&request, &self.shared.options)?;
        self.wire.set_buffer_size(self.settings.buffer_size());
        if let Some(client) = state.clients.get_mut(&self.id) {
            client.agreed.client_id.clone_from(&self.settings.client_id);
            client.agreed.hostname.clone_from(&self.settings.hostname);
            client.agreed.user_agent.clone_from(&self.settings.user_agent);
            client.agreed.sample_rate = self.settings.sample_rate;
            client.touch_timeout = self.settings.msg_timeout;
            if !self.identified {
                client.msg_timeout = self.settings.msg_timeout;
                client.sample_rate = self.settings.sample_rate;
            }
        }
        if !self.identified {
            self.identified = true;
            self.heartbeat = self.settings.heartbeat.map(|interval| (interval, now + interval));
            self.ticker = Ticker::new(self.settings.buffer_timeout(), now);
        }
        if !request.feature_negotiation {
            self.put_response(state, OK);
            return Ok(());
        }
        let grant = Settings::grant(&request, &self.shared.options, self.shared.options.tls.is_some())?;
        let answer = self.settings.answer(&grant, &self.shared.options);
        self.put_answer(state, Frame::Response(answer.into()));
        if grant.tls || grant.snappy || grant.deflate {
            self.upgrade = Some(Upgrade { grant });
        }
        Ok(())
    }

    fn refuse_features(&self, state: &mut State, request: &mut Request) {
        for feature in Feature::ALL {
            if !state.script.is_empty() && state.script.refuses(self.id, feature) {
                request.forget(feature);
            }
        }
    }

    /// Exchanges the stream, once the answer has left on the old one. Each layer is confirmed by an OK of its own.
    pub(super) async fn carry_out(&mut self, upgrade: Upgrade) -> Flow {
        let shared = Arc::clone(&self.shared);
        let Upgrade { grant } = upgrade;
        if let Some(tls) = shared.options.tls.as_ref().filter(|_| grant.tls) {
            if let Flow::Close = self.encrypt(tls).await {
                return Flow::Close;
            }
            shared.change(|state| self.put_response(state, OK));
        }
        if grant.snappy || grant.deflate {
            if !self.flush().await {
                return Flow::Close;
            }
            let codec = match grant.snappy {
                true => Codec::snappy(),
                false => Codec::deflate_of_nsqd(u32::try_from(grant.deflate_level).unwrap_or_default()),
            };
            let compressed = Compressed::new(self.wire.take_io(), codec, BytesMut::new());
            self.wire.set_io(Box::new(compressed));
            self.settings.set_deflated(grant.deflate);
            shared.change(|state| {
                if let Some(client) = state.clients.get_mut(&self.id) {
                    client.agreed.snappy = grant.snappy;
                    client.agreed.deflate = grant.deflate;
                }
                self.put_response(state, OK);
            });
            self.flush_idle();
        }
        self.await_command(Instant::now());
        Flow::GoOn
    }

    async fn encrypt(&mut self, tls: &ServerTls) -> Flow {
        if !self.flush().await {
            return Flow::Close;
        }
        let shared = Arc::clone(&self.shared);
        let text = match handshake(tls, self.wire.take_io(), HANDSHAKE_PATIENCE).await {
            Ok(Encrypted { io, details }) => {
                self.wire.set_io(io);
                let encryption = Encryption::from(details);
                shared.change(|state| {
                    if let Some(client) = state.clients.get_mut(&self.id) {
                        client.agreed.encryption = Some(encryption);
                    }
                });
                return Flow::GoOn;
            }
            Err(HandshakeFailed { io, text }) => {
                self.wire.set_io(io);
                text.unwrap_or_else(|| self.time_is_up())
            }
        };
        let text = format!("E_IDENTIFY_FAILED IDENTIFY failed {text}");
        shared.change(|state| self.put_answer(state, Frame::Error(text.into())));
        Flow::Close
    }

    /// How Go words that nothing came in time.
    fn time_is_up(&self) -> String {
        let remote = self.shared.read(|state| {
            let client = state.clients.get(&self.id);
            client.map(|client| client.remote.clone()).unwrap_or_default()
        });
        format!("read tcp {}->{remote}: i/o timeout", self.shared.door.address())
    }

    /// Writes everything; `false` if the connection is gone, or does not take it in time.
    async fn flush(&mut self) -> bool {
        let patience = self.settings.heartbeat.unwrap_or(LAST_WORDS) + self.wire.longest_delay();
        matches!(timeout(patience, self.wire.flush(&self.link)).await, Ok(Ok(())))
    }
}
