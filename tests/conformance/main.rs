//! nsqd's and nsqlookupd's exact exchanges, in tables: every line runs against the test broker, in memory on a paused clock,
//! and against the real brokers.
//!
//! All `*.txt` of this folder are read, and the tables whose paths `CONFORMANCE_TABLES` names, with colons between.
//! `CONFORMANCE_LINES=A01,B02` runs only these lines. A table is plain lines, or a Markdown page with lines within `text`
//! fences; lines that begin with `#` are comments.
//!
//! # The language
//!
//! A line is `ID [options] step ; step ; ...`. It runs against a broker of its own, or at least with topics of its own.
//!
//! | step | meaning |
//! | --- | --- |
//! | `> LINE`, `> LINE <<"body"` | sends a command, with the length of the body before it |
//! | `raw "..."` | sends these bytes |
//! | `nomagic` | the connection does not begin with the magic |
//! | `< R text`, `< E text` | the next frame is this response or error; from nsqlookupd, a reply |
//! | `< E~ text` | the next frame is an error which contains this |
//! | `< J {...}` | the next frame is a response whose JSON has at least these members |
//! | `< M k=v...` | the next frame is a message: `body`, `att`, `id`; `as=m` keeps its id as `$m` |
//! | `< -`, `< - ms` | nothing comes for 300 ms, or as long as it says |
//! | `< X` | the broker closes the connection, without another frame |
//! | `hbX` | one heartbeat at most, then the broker closes |
//! | `after=`, `before=` | bounds in ms since the last step, behind the expectation (and `hbX`) that they are for |
//! | `eof`, `close`, `sleep ms` | ends the direction to the broker, closes, waits |
//! | `tls`, `snappy`, `deflate` | does its side of the upgrade; `tls trusted` and `tls stranger` show a certificate which the broker's root authority has signed or not, `tls v1.2` does no later version |
//! | `notls` | as `tls`, and the handshake fails |
//! | `badcrc` | sends a snappy chunk with a wrong checksum; the broker closes |
//! | `wire "..."` | sends these bytes below the compression |
//! | `flush partial` | how a deflate client flushes from now on: `partial`, `sync`, `full`, `finish` |
//! | `http VERB path <<"body" = status answer` | a request; the answer's body is `"text"`, or JSON, or `~` and a part of it, or `J` and JSON whose objects may have more members |
//! | `header Name: value`, `header !Name` | a header of the last answer, or its absence |
//! | `also ~part`, `also !~part` | another part of the last answer, or what it does not contain |
//! | `keys a,b,c` | the members of the last JSON, in this order |
//! | `authd status body` | what the auth server answers from now on |
//! | `authd? part`, `authd# n` | a part of what it was asked last; how often it was asked |
//!
//! Connections are `a` to `e`, opened at their first use: `b> NOP`, `c< -`, `d raw "x"`, `b close`; without a letter it is
//! `a`. Heartbeats are answered and passed over where nothing or a message is expected.
//!
//! In all text `\n`, `\r`, `\t`, `\xNN`, `\"` and `\\` are escapes (an expected text may have its backslashes as they come,
//! too), `@N` stands for N letters `a`, and `$name` for: `$t` and `$u` fresh topics, `$m` and the like ids that were kept,
//! `$PEER` what an nsqd says of itself, `$TCP_PORT` and `$HTTP_PORT` the broker's, `$LATE` a time after which messages that
//! time out after 1 s have done so. In JSON `"$any"`, `"$int"`, `"$string"` and `"$bool"` stand for any such value.
//!
//! | option | meaning |
//! | --- | --- |
//! | `name`, `name=value` | the broker's flag, `true` without value |
//! | `tls-cert` | the broker has a certificate; with `tls-client-auth-policy=...` or `tls-root-ca-file` also the root authority's |
//! | `auth`, `auth=/path` | the broker asks an auth server, which answers 403 until `authd` says otherwise; with a path it is given a whole URL |
//! | `lookupd` | the broker is nsqlookupd, and the magic its own |
//! | `fresh` | the broker is this line's alone; any other option means this, too |
//!
//! # Time
//!
//! On the test broker's paused clock, bounds are exact. Against a real broker `after` is counted from a moment that cannot be
//! too late (see [`runner`]), and `before` has 8 s more, as real nsqd may take 5.3 s to time out a message of a new channel
//! and the machine may be busy: there it only finds what hangs. A GET whose answer does not fit is asked again for 5 s: what a
//! daemon tells of itself follows what it does.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the line that did it")]

mod authd;
mod certificates;
mod client;
mod codec;
mod http;
#[allow(dead_code, unused_imports, reason = "each test binary uses its part")]
#[path = "../interop"]
mod interop {
    pub(crate) mod broker;
}
mod judge;
mod runner;
mod sides;
mod step;
mod table;
mod target;
mod target_real;
mod target_test;
mod text;

use std::io::{self, Write as _};

use sides::Outcome;
use table::Line;

#[test]
fn every_line_passes_on_both_brokers() {
    let lines = table::load().unwrap_or_else(|why| panic!("{why}"));
    let (test, real) = sides::run(&lines);
    let mut failures = String::new();
    for (index, line) in lines.iter().enumerate() {
        let (test, real) = (&test[index], real.as_ref().map(|real| &real[index]));
        if test.is_err() || real.is_some_and(Result::is_err) {
            failures += &report(line, test, real);
        }
    }
    let passed = |outcomes: &[Outcome]| outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    let real = match &real {
        Some(real) => format!("{} pass on the real ones", passed(real)),
        None => "the real ones are not here".to_owned(),
    };
    let summary = format!(
        "conformance: {} lines, {} pass on the test broker, {real}",
        lines.len(),
        passed(&test)
    );
    // The handle itself: what `eprintln!` prints is hidden when the test passes.
    writeln!(io::stderr(), "{summary}").unwrap();
    assert!(failures.is_empty(), "{summary}\n{failures}");
}

fn report(line: &Line, test: &Outcome, real: Option<&Outcome>) -> String {
    let shown = |outcome: &Outcome| outcome.clone().err().unwrap_or_else(|| "passes".to_owned());
    let real = real.map_or("not here".to_owned(), shown);
    let name = if line.option("lookupd").is_some() {
        "nsqlookupd"
    } else {
        "nsqd"
    };
    format!(
        "\n{}: {}\n    test broker: {}\n    real {name}: {real}\n",
        line.place,
        line.source,
        shown(test)
    )
}

/// One for each kind of expectation, which is its last step and wrong.
const WRONG: &str = include_str!("wrong/lines");

#[test]
fn a_line_that_is_wrong_fails_on_both_brokers() {
    let lines = table::read("wrong", WRONG).unwrap();
    let (test, real) = sides::run(&lines);
    let fails = |line: &Line, outcome: &Outcome| {
        let why = outcome.as_ref().expect_err(&line.source);
        let last = format!("step {} ", line.steps.len());
        assert!(
            why.starts_with(&last),
            "{} does not fail in its last step: {why}",
            line.source
        );
    };
    for outcomes in real.iter().chain([&test]) {
        for (line, outcome) in lines.iter().zip(outcomes) {
            fails(line, outcome);
        }
    }
}
