//! Puts the question to one nsqlookupd.

use std::future::Future;
use std::pin::Pin;

use hyper::{Method, StatusCode};
use tokio::time::Instant;

use super::http::{Client, refused};
use super::question::Question;
use super::view::Answer;
use crate::config::LookupdTarget;
use crate::error::Result;

/// The question to one nsqlookupd, on its way: runs only while it is polled, and ends within its timeout.
pub(super) type Ask<T> = Pin<Box<dyn Future<Output = Result<Answer<T>>> + Send>>;

/// Asks one question.
#[derive(Clone, Debug)]
pub(super) struct Asker<Q> {
    pub(super) question: Q,
    client: Client,
}

impl<Q: Question> Asker<Q> {
    pub(super) fn new(question: Q, client: Client) -> Self {
        Self { question, client }
    }

    /// Opens a connection of its own, asks, and closes it; and another to create what the answer lacks. The error is at
    /// step lookup and names the nsqlookupd.
    pub(super) fn ask(&self, lookupd: &LookupdTarget) -> Ask<Q::Item> {
        let (asker, lookupd) = (self.clone(), lookupd.clone());
        Box::pin(async move { asker.run(&lookupd).await.map_err(|error| error.at(&lookupd.address)) })
    }

    async fn run(&self, lookupd: &LookupdTarget) -> Result<Answer<Q::Item>> {
        let deadline = Instant::now() + self.client.timeout;
        let path = self.question.path();
        let (status, body) = self.client.send(lookupd, Method::GET, path, deadline).await?;
        let mut answer = self.question.read(status, &body)?;
        if let Some(path) = self.question.to_create(&answer) {
            let created = match self.client.send(lookupd, Method::POST, path, deadline).await {
                Ok((StatusCode::OK, _)) => Ok(()),
                Ok((status, body)) => Err(refused(path, status, &body)),
                Err(error) => Err(error),
            };
            answer.channel = Some(created.map_err(|error| error.at(&lookupd.address)));
        }
        Ok(answer)
    }
}

#[cfg(test)]
mod tests;
