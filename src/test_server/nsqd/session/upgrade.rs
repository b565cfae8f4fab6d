//! IDENTIFY and what it grants: the stream is exchanged for one that is encrypted, compressed, or both.

use tokio::time::Instant;

use super::identify::{Grant, Request, Settings};
use super::output::Ticker;
use super::{Flow, Session};
use crate::protocol::{CommandError, Frame, OK};
use crate::test_server::nsqd::faults::Feature;
use crate::test_server::nsqd::state::State;

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
        let grant = Settings::grant(&request, &self.shared.options, false)?;
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

    /// Exchanges the stream.
    pub(super) async fn carry_out(&mut self, _upgrade: Upgrade) -> Flow {
        Flow::GoOn
    }
}
