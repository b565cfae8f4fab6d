//! The language of the table, and how a line of it is run.
//!
//! A line is `ID [broker options] step ; step ; ...`. `$t` is a fresh topic.
//!
//! | step | meaning |
//! | --- | --- |
//! | `> LINE`, `> LINE <<"body"` | client a sends a command, with the length of the body before it |
//! | `raw "..."` | client a sends these bytes |
//! | `nomagic` | client a does not begin with the magic |
//! | `< R text`, `< E text` | the next frame is this response or error |
//! | `< J {...}` | the next frame is a response whose JSON has these members |
//! | `< M k=v...` | the next frame is a message: `body`, `att`, `id`; `as=m` keeps its id as `$m` |
//! | `after=`, `before=` | bounds, in ms since the last step, for the expectation they follow |
//! | `< -`, `< - ms` | nothing comes for 300 ms, or as long as it says |
//! | `< X` | the broker closes the connection |
//! | `hbX` | one heartbeat at most, then the broker closes |
//! | `eof`, `close`, `sleep ms` | client a ends its direction, closes, waits |
//!
//! `b>` and `b<`, `c>` and `c<` are other connections, opened at their first use. Heartbeats are answered and passed
//! over where nothing or a message is expected. In all text `\n`, `\r`, `\xNN` and `\"` are escapes, and `@N` stands
//! for N letters `a`.

use std::collections::HashMap;
use std::time::Duration;

use async_nsq::protocol::{Frame, HEARTBEAT, MAGIC};
use async_nsq::test_server::{Nsqd, NsqdBuilder};
use async_nsq::transport::{MemoryConnector, MemoryNetwork};
use serde_json::Value;
use tokio::time::Instant;

use super::raw::{Event, RawClient};

const ADDRESS: &str = "nsqd:4150";
const PATIENCE: Duration = Duration::from_secs(10);

type Outcome = Result<(), String>;

/// Runs a line against a fresh broker.
pub(crate) async fn run(line: &str) -> Outcome {
    let (_, mut rest) = line.split_once(' ').ok_or("no steps")?;
    let mut builder = Nsqd::builder();
    if let Some(with_options) = rest.strip_prefix('[') {
        let (options, steps) = with_options.split_once("] ").ok_or("no end of the options")?;
        builder = configure(builder, options)?;
        rest = steps;
    }
    let network = MemoryNetwork::new();
    let _nsqd = builder
        .start_in(&network, ADDRESS)
        .await
        .map_err(|error| error.to_string())?;
    let mut run = Run {
        connector: network.connector(),
        clients: HashMap::new(),
        magic: true,
        names: HashMap::from([("$t", "topic".to_owned()), ("$LATE", "1300".to_owned())]),
        step_ended: Instant::now(),
    };
    for step in rest.split(" ; ") {
        run.step(step).await.map_err(|why| format!("{step}: {why}"))?;
        run.step_ended = Instant::now();
    }
    Ok(())
}

fn configure(builder: NsqdBuilder, option: &str) -> Result<NsqdBuilder, String> {
    match option.split_once('=') {
        Some(("mem-queue-size", size)) => Ok(builder.mem_queue_size(size.parse().map_err(|_| "no number")?)),
        _ => Err(format!("unknown option {option}")),
    }
}

struct Run {
    connector: MemoryConnector,
    clients: HashMap<char, RawClient>,
    magic: bool,
    names: HashMap<&'static str, String>,
    step_ended: Instant,
}

impl Run {
    async fn step(&mut self, step: &str) -> Outcome {
        let (client, verb, argument) = take_apart(step);
        match verb {
            ">" => self.send(client, argument).await,
            "<" => self.expect(client, argument).await,
            "raw" => {
                let bytes = self.text(argument.trim_matches('"'));
                self.client(client).await.send_bytes(&bytes).await;
                Ok(())
            }
            "hbX" => self.expect_end(client, argument).await,
            "nomagic" => {
                self.magic = false;
                Ok(())
            }
            "eof" => {
                self.client(client).await.shutdown().await;
                Ok(())
            }
            "close" => {
                self.clients.remove(&client);
                Ok(())
            }
            "sleep" => {
                let ms = String::from_utf8_lossy(&self.text(argument))
                    .parse()
                    .map_err(|_| "no number")?;
                tokio::time::sleep(Duration::from_millis(ms)).await;
                Ok(())
            }
            unknown => Err(format!("unknown step {unknown}")),
        }
    }

    async fn client(&mut self, name: char) -> &mut RawClient {
        if !self.clients.contains_key(&name) {
            let mut client = RawClient::connect(&self.connector, ADDRESS).await;
            if self.magic || name != 'a' {
                client.send_bytes(MAGIC).await;
            }
            self.clients.insert(name, client);
        }
        self.clients.get_mut(&name).unwrap()
    }

    async fn send(&mut self, client: char, argument: &str) -> Outcome {
        let (line, body) = match argument.split_once(" <<\"") {
            Some((line, body)) => (line, body.strip_suffix('"')),
            None => (argument, None),
        };
        let mut bytes = self.text(line);
        bytes.push(b'\n');
        if let Some(body) = body {
            let body = self.text(body);
            bytes.extend((body.len() as u32).to_be_bytes());
            bytes.extend(body);
        }
        self.client(client).await.send_bytes(&bytes).await;
        Ok(())
    }

    async fn expect(&mut self, client: char, argument: &str) -> Outcome {
        let (kind, rest) = argument.split_once(' ').unwrap_or((argument, ""));
        match kind {
            "-" => self.expect_nothing(client, rest).await,
            "X" => match self.client(client).await.next(PATIENCE).await {
                Event::Closed => Ok(()),
                other => Err(format!("{other:?}")),
            },
            "M" => self.expect_message(client, rest).await,
            "R" | "E" | "J" => {
                let (text, bounds) = split_bounds(rest);
                let frame = match self.client(client).await.next(PATIENCE).await {
                    Event::Frame(frame) => frame,
                    other => return Err(format!("{other:?}")),
                };
                self.check_bounds(bounds)?;
                self.check_frame(kind, text, &frame)
            }
            unknown => Err(format!("unknown expectation {unknown}")),
        }
    }

    fn check_frame(&self, kind: &str, text: &str, frame: &Frame) -> Outcome {
        let fits = match (kind, frame) {
            ("R", Frame::Response(data)) | ("E", Frame::Error(data)) => data[..] == self.text(text),
            ("J", Frame::Response(data)) => {
                let (wanted, got): (Value, Value) = match (serde_json::from_str(text), serde_json::from_slice(data)) {
                    (Ok(wanted), Ok(got)) => (wanted, got),
                    _ => return Err(format!("not JSON: {frame:?}")),
                };
                let wanted = wanted.as_object().ok_or("not an object")?;
                wanted.iter().all(|(key, value)| got.get(key) == Some(value))
            }
            _ => false,
        };
        if fits { Ok(()) } else { Err(format!("{frame:?}")) }
    }

    async fn expect_nothing(&mut self, client: char, ms: &str) -> Outcome {
        let ms = if ms.is_empty() {
            300
        } else {
            ms.parse().map_err(|_| "no number")?
        };
        let end = Instant::now() + Duration::from_millis(ms);
        loop {
            let client = self.client(client).await;
            match client.next(end.saturating_duration_since(Instant::now())).await {
                Event::Nothing => return Ok(()),
                Event::Frame(Frame::Response(text)) if text == HEARTBEAT => client.send_bytes(b"NOP\n").await,
                other => return Err(format!("{other:?}")),
            }
        }
    }

    async fn expect_message(&mut self, client: char, expected: &str) -> Outcome {
        let message = loop {
            let client = self.client(client).await;
            match client.next(PATIENCE).await {
                Event::Frame(Frame::Message(message)) => break message,
                Event::Frame(Frame::Response(text)) if text == HEARTBEAT => client.send_bytes(b"NOP\n").await,
                other => return Err(format!("{other:?}")),
            }
        };
        for part in expected.split(' ').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').ok_or("no value")?;
            let fits = match key {
                "body" => message.body[..] == self.text(value),
                "att" => message.attempts.to_string() == value,
                "id" => message.id.as_bytes()[..] == self.text(value),
                "as" => self.names.insert("$m", message.id.to_string()).is_none() && value == "m",
                _ => self.check_bounds(part).map(|()| true)?,
            };
            if !fits {
                return Err(format!("{message:?}"));
            }
        }
        Ok(())
    }

    async fn expect_end(&mut self, client: char, bounds: &str) -> Outcome {
        let mut heartbeats = 0;
        loop {
            match self.client(client).await.next(PATIENCE).await {
                Event::Closed => return self.check_bounds(bounds),
                Event::Frame(Frame::Response(text)) if text == HEARTBEAT && heartbeats == 0 => heartbeats += 1,
                other => return Err(format!("{other:?}")),
            }
        }
    }

    fn check_bounds(&self, bounds: &str) -> Outcome {
        let took = self.step_ended.elapsed().as_millis();
        for bound in bounds.split(' ').filter(|bound| !bound.is_empty()) {
            let (key, ms) = bound.split_once('=').ok_or("no value")?;
            let ms: u128 = ms.parse().map_err(|_| "no number")?;
            match key {
                "after" if took >= ms => {}
                "before" if took <= ms => {}
                "after" | "before" => return Err(format!("came after {took} ms")),
                _ => return Err(format!("unknown bound {key}")),
            }
        }
        Ok(())
    }

    /// Puts in names, escapes and repetitions.
    fn text(&self, text: &str) -> Vec<u8> {
        let mut named = text.to_owned();
        for (name, value) in &self.names {
            named = named.replace(name, value);
        }
        let mut bytes = Vec::new();
        let mut rest = named.as_str();
        while let Some(c) = rest.chars().next() {
            rest = &rest[c.len_utf8()..];
            match c {
                '@' => {
                    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
                    bytes.resize(bytes.len() + rest[..digits].parse::<usize>().unwrap(), b'a');
                    rest = &rest[digits..];
                }
                '\\' => {
                    let (escaped, len) = match &rest[..1] {
                        "n" => (b'\n', 1),
                        "r" => (b'\r', 1),
                        "x" => (u8::from_str_radix(&rest[1..3], 16).unwrap(), 3),
                        other => (other.as_bytes()[0], 1),
                    };
                    bytes.push(escaped);
                    rest = &rest[len..];
                }
                c => bytes.extend(c.encode_utf8(&mut [0; 4]).bytes()),
            }
        }
        bytes
    }
}

/// The client, the verb and the rest of a step.
fn take_apart(step: &str) -> (char, &str, &str) {
    let (verb, argument) = step.split_once(' ').unwrap_or((step, ""));
    match verb {
        "b>" | "c>" | "b<" | "c<" => (verb.chars().next().unwrap_or('a'), &verb[1..], argument),
        _ => ('a', verb, argument),
    }
}

/// Takes the bounds off the end of an expected text.
fn split_bounds(text: &str) -> (&str, &str) {
    match text.find(" after=").or_else(|| text.find(" before=")) {
        Some(at) => text.split_at(at),
        None => (text, ""),
    }
}
