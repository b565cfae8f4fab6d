//! Why a consumer has no connection, as one error.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::State;
use crate::discovery::LookupdFacts;
use crate::error::{Error, ErrorKind, Step};
use crate::name::Topic;

/// What [`Consumer::ready`](crate::consumer::Consumer::ready) ends with when its deadline passes.
pub(in crate::consumer) fn not_ready(topic: &Topic, state: &State, deadline: Duration) -> Error {
    let failing_lookups: Vec<&Error> = state.lookupds.iter().filter_map(LookupdFacts::failure).collect();
    let answering = state.lookupds.iter().filter(|lookupd| lookupd.is_answering());
    let answering: Vec<&str> = answering.map(|lookupd| &*lookupd.address).collect();
    // One nsqlookupd that answers is enough for discovery to work, so one that fails is no cause.
    let unknown_topic = state.nodes.is_empty() && !answering.is_empty();
    let cause = state.failing.values().chain(failing_lookups.iter().copied()).next();
    let reason = match (cause, state.failing.len() + failing_lookups.len()) {
        _ if unknown_topic => unknown(topic, &answering, failing_lookups.len()),
        (Some(_), 1) => String::new(),
        (Some(_), all) => format!(": {all} addresses fail, one of them for the reason that follows"),
        (None, _) if state.nodes.is_empty() => ": no nsqlookupd has answered yet".to_owned(),
        (None, _) => still_trying(&state.nodes),
    };
    let error = Error::new(
        ErrorKind::Unreachable,
        Step::Dial,
        format!("no connection within {deadline:?}{reason}"),
    );
    match cause {
        Some(cause) if !unknown_topic => error.because(cause.clone()),
        _ => error,
    }
}

fn unknown(topic: &Topic, answering: &[&str], failing: usize) -> String {
    let answering = answering.join(", ");
    let others = match failing {
        0 => String::new(),
        1 => " (1 other did not answer)".to_owned(),
        others => format!(" ({others} others did not answer)"),
    };
    format!(": nsqlookupd {answering} knows no nsqd with topic {topic}; has anything been published to it?{others}")
}

fn still_trying(nodes: &BTreeSet<Arc<str>>) -> String {
    let first = nodes.first().map_or("", |address| &**address);
    match nodes.len() {
        0 | 1 => format!(": nsqd {first} has not answered yet"),
        all => format!(": nsqd {first} and {} others have not answered yet", all - 1),
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;
    use crate::discovery::Status;

    fn told(state: &State) -> Error {
        not_ready(&Topic::new("orders").unwrap(), state, Duration::from_secs(5))
    }

    fn answering(address: &str) -> LookupdFacts {
        let since = std::time::Instant::now();
        LookupdFacts::with_status(address.into(), Status::Answering { since })
    }

    fn failing(address: &str) -> LookupdFacts {
        let (since, error) = (std::time::Instant::now(), refused(Step::Lookup));
        LookupdFacts::with_status(address.into(), Status::Failing { since, error })
    }

    fn refused(step: Step) -> Error {
        Error::new(ErrorKind::Unreachable, step, "refused")
    }

    #[test]
    fn an_unknown_topic_is_no_failure_even_if_one_of_two_nsqlookupds_fails() {
        let lookupds = vec![answering("a:4161")];
        let mut state = State {
            lookupds,
            ..State::default()
        };
        let error = told(&state);
        assert!(
            error.to_string().contains("a:4161 knows no nsqd with topic orders"),
            "{error}"
        );
        state.lookupds.push(failing("b:4161"));
        let error = told(&state);
        assert!(error.source().is_none());
        assert!(
            error.to_string().contains("a:4161 knows no nsqd with topic orders"),
            "{error}"
        );
        assert!(error.to_string().ends_with("(1 other did not answer)"), "{error}");
    }

    #[test]
    fn a_known_nsqd_that_is_silent_is_not_told_as_an_unknown_topic() {
        let lookupds = vec![answering("a:4161")];
        let mut state = State {
            nodes: BTreeSet::from([Arc::from("nsqd:4150")]),
            lookupds,
            ..State::default()
        };
        let error = told(&state);
        assert!(
            error.to_string().ends_with("nsqd nsqd:4150 has not answered yet"),
            "{error}"
        );
        state.failing.insert(Arc::from("nsqd:4150"), refused(Step::Dial));
        let error = told(&state);
        assert_eq!(error.source().unwrap().to_string(), "dial: refused");
    }

    #[test]
    fn a_failing_nsqlookupd_alone_is_a_failure() {
        let lookupds = vec![failing("b:4161")];
        let error = told(&State {
            lookupds,
            ..State::default()
        });
        assert_eq!(error.source().unwrap().to_string(), "lookup: refused");
        assert!(told(&State::default()).source().is_none());
    }
}
