//! Answers that were scripted instead of earned.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue};

use super::answer::Answer;

/// Which requests a fault applies to.
#[derive(Clone, Debug, Default)]
pub(in crate::test_server) struct Scope {
    /// Only those of this path.
    pub(in crate::test_server) path: Option<String>,
    /// Only the next so many.
    pub(in crate::test_server) times: Option<u64>,
}

/// The faults of one server.
#[derive(Debug, Default)]
pub(in crate::test_server) struct Script {
    rules: Mutex<Rules>,
}

#[derive(Debug, Default)]
struct Rules {
    answers: Vec<(Scope, Scripted)>,
    delays: Vec<(Scope, Duration)>,
}

#[derive(Clone, Debug)]
enum Scripted {
    Status(StatusCode),
    Body(Bytes),
    Huge(u64),
    Hang,
}

impl Script {
    /// A number that is no HTTP status is answered as 500.
    pub(in crate::test_server) fn answer_status(&self, scope: &Scope, status: u16) {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        add(&mut self.lock().answers, scope, Scripted::Status(status));
    }

    pub(in crate::test_server) fn answer_body(&self, scope: &Scope, body: Bytes) {
        add(&mut self.lock().answers, scope, Scripted::Body(body));
    }

    pub(in crate::test_server) fn huge_answer(&self, scope: &Scope, bytes: u64) {
        add(&mut self.lock().answers, scope, Scripted::Huge(bytes));
    }

    pub(in crate::test_server) fn hang(&self, scope: &Scope) {
        add(&mut self.lock().answers, scope, Scripted::Hang);
    }

    pub(in crate::test_server) fn delay(&self, scope: &Scope, delay: Duration) {
        add(&mut self.lock().delays, scope, delay);
    }

    pub(in crate::test_server) fn clear(&self) {
        *self.lock() = Rules::default();
    }

    /// What to answer to a request for this path instead of the truth, after a delay where there is one.
    pub(in crate::test_server) async fn intervene(&self, path: &str) -> Option<Answer> {
        let (delay, answer) = {
            let mut rules = self.lock();
            (next(&mut rules.delays, path), next(&mut rules.answers, path))
        };
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
        match answer? {
            Scripted::Status(status) => Some(Answer::bare(status, "")),
            Scripted::Body(body) => {
                let json = HeaderValue::from_static("application/json; charset=utf-8");
                Some(Answer::text(body).header(CONTENT_TYPE, json))
            }
            Scripted::Huge(bytes) => Some(Answer::huge(bytes)),
            Scripted::Hang => std::future::pending().await,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn add<T>(rules: &mut Vec<(Scope, T)>, scope: &Scope, fault: T) {
    match scope.times {
        Some(0) => return,
        Some(_) => {}
        // One that lasts hides what is beneath it, for good.
        None => rules.retain(|(earlier, _)| scope.path.is_some() && earlier.path != scope.path),
    }
    rules.push((scope.clone(), fault));
}

/// The newest fault that applies, which is used up a bit by that.
fn next<T: Clone>(rules: &mut Vec<(Scope, T)>, path: &str) -> Option<T> {
    let applies = |(scope, _): &(Scope, T)| scope.path.as_deref().is_none_or(|only| only == path);
    let index = rules.iter().rposition(applies)?;
    let (scope, fault) = &mut rules[index];
    let fault = fault.clone();
    if let Some(times) = &mut scope.times {
        *times -= 1;
        if *times == 0 {
            rules.remove(index);
        }
    }
    Some(fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(path: Option<&str>, times: Option<u64>) -> Scope {
        Scope {
            path: path.map(str::to_owned),
            times,
        }
    }

    #[test]
    fn the_newest_fault_that_applies_wins_until_it_is_used_up() {
        let mut rules = Vec::new();
        add(&mut rules, &scope(None, None), 1);
        add(&mut rules, &scope(Some("/a"), Some(2)), 2);
        add(&mut rules, &scope(Some("/a"), Some(0)), 3);
        let asked: Vec<_> = ["/a", "/b", "/a", "/a"].map(|path| next(&mut rules, path)).into();
        assert_eq!(asked, [Some(2), Some(1), Some(2), Some(1)]);
        add(&mut rules, &scope(Some("/a"), None), 4);
        add(&mut rules, &scope(Some("/a"), None), 5);
        assert_eq!(rules.len(), 2);
        add(&mut rules, &scope(None, None), 6);
        assert_eq!(next(&mut rules, "/a"), Some(6));
        assert_eq!(rules.len(), 1);
    }
}
