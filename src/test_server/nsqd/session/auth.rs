//! AUTH, and the question before a publish or SUB whether its sender may.

use std::io;
use std::sync::Arc;

use tokio::time::Instant;

use super::{Done, Session};
use crate::protocol::{Command, CommandError, CommandName, Frame, Secret};
use crate::test_server::auth::session::{Authorizations, Question, query};
use crate::test_server::http::Patience;
use crate::test_server::nsqd::state::State;

/// What is known of a connection's rights.
#[derive(Default)]
pub(super) struct Rights {
    /// What it sent with AUTH, for the auth server to be asked again.
    secret: Option<Secret>,
    granted: Option<Authorizations>,
    /// The auth server's answer to what the command at hand waits for.
    asked: Option<io::Result<Authorizations>>,
}

impl Rights {
    pub(super) fn take_in(&mut self, answer: io::Result<Authorizations>) {
        self.asked = Some(answer);
    }
}

impl Session {
    /// Whether the sender of a complete command may do this. `false` if the auth server is being asked.
    pub(super) fn may(&mut self, command: &Command, now: Instant) -> Result<bool, CommandError> {
        match command {
            Command::Sub { topic, channel } => self.authorize(CommandName::Sub, topic, channel, now),
            Command::Pub { topic, .. } | Command::Dpub { topic, .. } => self.authorize(command.name(), topic, "", now),
            // That of an MPUB was asked before its body.
            _ => Ok(true),
        }
    }

    pub(super) fn authorize(
        &mut self,
        name: CommandName,
        topic: &str,
        channel: &str,
        now: Instant,
    ) -> Result<bool, CommandError> {
        if self.shared.options.auth_http_addresses.is_empty() {
            return Ok(true);
        }
        let Some(granted) = &mut self.rights.granted else {
            return Err(CommandError::new(format!("E_AUTH_FIRST AUTH required before {name}")));
        };
        if granted.is_expired(now) {
            match self.rights.asked.take() {
                None => {
                    self.ask();
                    return Ok(false);
                }
                Some(Ok(renewed)) => *granted = renewed,
                Some(Err(_)) => return Err(CommandError::new("E_AUTH_FAILED AUTH failed")),
            }
        }
        if granted.is_allowed(topic, channel) {
            Ok(true)
        } else {
            Err(CommandError::new(format!(
                "E_UNAUTHORIZED AUTH failed for {name} on \"{topic}\" \"{channel}\""
            )))
        }
    }

    /// Carries AUTH out. `false` if the auth server is being asked.
    pub(super) fn authenticate(&mut self, state: &mut State, secret: &Secret) -> Result<bool, CommandError> {
        if self.rights.granted.is_some() {
            return Err(CommandError::new("E_INVALID AUTH already set"));
        }
        if self.shared.options.auth_http_addresses.is_empty() {
            return Err(CommandError::new("E_AUTH_DISABLED AUTH disabled"));
        }
        let Some(answer) = self.rights.asked.take() else {
            self.rights.secret = Some(secret.clone());
            self.ask();
            return Ok(false);
        };
        let granted = answer.map_err(|_| CommandError::new("E_AUTH_FAILED AUTH failed"))?;
        if granted.permission_count() == 0 {
            return Err(CommandError::new("E_UNAUTHORIZED AUTH no authorizations found"));
        }
        if let Some(client) = state.clients.get_mut(&self.id) {
            client.agreed.identity = Some((granted.identity().to_owned(), granted.identity_url().to_owned()));
        }
        self.put_answer(state, Frame::Response(granted.reply().into()));
        self.rights.granted = Some(granted);
        Ok(true)
    }

    /// Asks the auth servers. The command at hand waits for the answer.
    fn ask(&mut self) {
        let shared = Arc::clone(&self.shared);
        let id = self.id;
        let secret = self.rights.secret.clone().unwrap_or_else(|| Secret::new(""));
        self.job = Some(Box::pin(async move {
            let (remote, encryption) = shared.read(|state| {
                let client = state.clients.get(&id);
                client
                    .map(|client| (client.remote.clone(), client.agreed.encryption.clone()))
                    .unwrap_or_default()
            });
            let question = Question {
                tls: encryption.is_some(),
                common_name: encryption.and_then(|tls| tls.common_name).unwrap_or_default(),
                remote_ip: remote.rsplit_once(':').map_or("", |(ip, _)| ip).to_owned(),
                secret,
            };
            let options = &shared.options;
            let patience = Patience {
                connect: options.http_client_connect_timeout,
                request: options.http_client_request_timeout,
            };
            let answer = query(&*shared.connector, &options.auth_http_addresses, &question, patience).await;
            Done::Asked(answer)
        }));
    }
}
