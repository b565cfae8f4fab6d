//! Whether what came is what a step expects.

use std::fmt;

use serde::Deserializer as _;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::client::{Event, Kind};
use super::http;
use super::step::{self, Answer, Http};
use super::text::{Names, Text};

pub(crate) const HEARTBEAT: &[u8] = b"_heartbeat_";

/// What is before a message's body: timestamp, attempts and id.
const MESSAGE_HEAD: usize = 8 + 2 + 16;

/// How much of a text is shown in a failure.
const SHOWN: usize = 2_000;

type Outcome = Result<(), String>;

/// Bytes as a person reads them.
pub(crate) fn shown(bytes: &[u8]) -> String {
    match bytes.len() {
        0..=SHOWN => String::from_utf8_lossy(bytes).into_owned(),
        length => format!("{}... ({length} bytes)", String::from_utf8_lossy(&bytes[..SHOWN])),
    }
}

pub(crate) fn event(event: &Event) -> String {
    match event {
        Event::Frame(Kind::Response, data) => format!("the response {:?}", shown(data)),
        Event::Frame(Kind::Error, data) => format!("the error {:?}", shown(data)),
        Event::Frame(Kind::Untyped, data) => format!("the reply {:?}", shown(data)),
        Event::Frame(Kind::Message, data) => match Message::read(data) {
            Ok(message) => message.to_string(),
            Err(why) => why,
        },
        Event::Closed => "the end".to_owned(),
        Event::Nothing => "nothing".to_owned(),
        Event::Garbage(what) => format!("what is no frame: {what}"),
    }
}

/// A message's frame, taken apart.
pub(crate) struct Message<'a> {
    attempts: u16,
    id: &'a [u8],
    body: &'a [u8],
}

impl<'a> Message<'a> {
    pub(crate) fn read(data: &'a [u8]) -> Result<Self, String> {
        let (head, body) = data
            .split_at_checked(MESSAGE_HEAD)
            .ok_or_else(|| format!("a message of {} bytes", data.len()))?;
        Ok(Self {
            attempts: u16::from_be_bytes([head[8], head[9]]),
            id: &head[10..],
            body,
        })
    }

    pub(crate) fn id(&self) -> String {
        String::from_utf8_lossy(self.id).into_owned()
    }

    pub(crate) fn check(&self, expected: &step::Message, names: &Names) -> Outcome {
        let body = expected
            .body
            .as_ref()
            .is_none_or(|body| is_body(body, self.body, names));
        let attempts = match &expected.attempts {
            Some(attempts) => attempts.number(names)? == u64::from(self.attempts),
            None => true,
        };
        let id = expected.id.as_ref().is_none_or(|id| id.is(self.id, names));
        let hex = self.id.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if body && attempts && id && hex {
            return Ok(());
        }
        let wanted = |name: &str, text: &Option<Text>| match text {
            Some(text) => format!(" {name}={}", shown(&text.bytes(names))),
            None => String::new(),
        };
        Err(format!(
            "expected a message with{}{}{}, and there came {self}",
            wanted("body", &expected.body),
            wanted("att", &expected.attempts),
            wanted("id", &expected.id),
        ))
    }
}

/// A body may stand between quotation marks.
fn is_body(body: &Text, got: &[u8], names: &Names) -> bool {
    let quoted = || Text::parse_quoted(body.source()).is_ok_and(|body| body.is(got, names));
    body.is(got, names) || quoted()
}

impl fmt::Display for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the message body={} att={} id={}",
            shown(self.body),
            self.attempts,
            self.id()
        )
    }
}

/// The JSON of a line, its names put in.
pub(crate) fn wanted(text: &Text, names: &Names) -> Result<Value, String> {
    let read = |text: Vec<u8>| serde_json::from_slice(&text);
    read(text.unescaped(names))
        .or_else(|error| read(text.bytes(names)).map_err(|_| error))
        .map_err(|error| format!("{} is no JSON: {error}", text.source()))
}

fn parse(data: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(data).map_err(|error| format!("expected JSON, and there came {}: {error}", shown(data)))
}

/// Whether an object has at least these members, each exactly so.
pub(crate) fn members(wanted: &Value, data: &[u8]) -> Outcome {
    let got = parse(data)?;
    let fits = match (wanted, &got) {
        (Value::Object(wanted), Value::Object(got)) => wanted
            .iter()
            .all(|(key, value)| got.get(key).is_some_and(|got| same(value, got, false))),
        _ => same(wanted, &got, false),
    };
    if fits {
        Ok(())
    } else {
        Err(format!("expected members {wanted}, and there came {got}"))
    }
}

/// Whether JSON is the same; with `more`, whether objects have at least the wanted members. `"$any"` and the names of
/// types stand for values that no line can know.
fn same(wanted: &Value, got: &Value, more: bool) -> bool {
    match (wanted, got) {
        (Value::String(kind), _) if kind == "$any" => true,
        (Value::String(kind), _) if kind == "$int" => got.is_i64() || got.is_u64(),
        (Value::String(kind), _) if kind == "$string" => got.is_string(),
        (Value::String(kind), _) if kind == "$bool" => got.is_boolean(),
        (Value::Object(wanted), Value::Object(got)) => {
            (more || wanted.len() == got.len())
                && wanted
                    .iter()
                    .all(|(key, value)| got.get(key).is_some_and(|got| same(value, got, more)))
        }
        (Value::Array(wanted), Value::Array(got)) => {
            wanted.len() == got.len() && wanted.iter().zip(got).all(|(wanted, got)| same(wanted, got, more))
        }
        _ => wanted == got,
    }
}

/// Whether an answer over HTTP is the expected one.
pub(crate) fn answer(request: &Http, answer: &http::Answer, names: &Names) -> Outcome {
    let fits = answer.status == request.status
        && match &request.answer {
            Answer::Any => true,
            Answer::Text(text) => text.is(&answer.body, names),
            Answer::Containing(part) => contains(&answer.body, part, names),
            Answer::Json(json) => {
                parse(&answer.body).is_ok_and(|got| wanted(json, names).is_ok_and(|w| same(&w, &got, false)))
            }
            Answer::JsonWith(json) => {
                parse(&answer.body).is_ok_and(|got| wanted(json, names).is_ok_and(|w| same(&w, &got, true)))
            }
        };
    if fits {
        return Ok(());
    }
    let expected = match &request.answer {
        Answer::Any => "any body".to_owned(),
        Answer::Text(text) => format!("{:?}", shown(&text.bytes(names))),
        Answer::Containing(part) => format!("something with {}", shown(&part.bytes(names))),
        Answer::Json(json) => shown(&json.unescaped(names)),
        Answer::JsonWith(json) => format!("at least {}", shown(&json.unescaped(names))),
    };
    Err(format!(
        "expected {} {expected}, and there came {} {}",
        request.status,
        answer.status,
        shown(&answer.body)
    ))
}

pub(crate) fn contains(body: &[u8], part: &Text, names: &Names) -> bool {
    let has = |part: Vec<u8>| part.is_empty() || body.windows(part.len()).any(|bytes| bytes == part);
    has(part.bytes(names)) || has(part.unescaped(names))
}

pub(crate) fn also(part: &Text, contained: bool, answer: &http::Answer, names: &Names) -> Outcome {
    if contains(&answer.body, part, names) == contained {
        return Ok(());
    }
    let not = if contained { "" } else { "no " };
    Err(format!(
        "expected {not}{} in {}",
        shown(&part.bytes(names)),
        shown(&answer.body)
    ))
}

pub(crate) fn header(name: &str, value: Option<&Text>, answer: &http::Answer, names: &Names) -> Outcome {
    let got = answer.header(name);
    let fits = match value {
        Some(value) => got.is_some_and(|got| value.is(got.as_bytes(), names)),
        None => got.is_none(),
    };
    if fits {
        return Ok(());
    }
    let expected = value.map_or("none".to_owned(), |value| shown(&value.bytes(names)));
    Err(format!("expected {name} to be {expected}, and it is {got:?}"))
}

/// Whether an object's members come in this order, and no others.
pub(crate) fn keys(expected: &[String], json: &str) -> Outcome {
    let mut json = serde_json::Deserializer::from_str(json);
    let got = json
        .deserialize_map(Keys)
        .map_err(|error| format!("no object: {error}"))?;
    if got == expected {
        Ok(())
    } else {
        Err(format!("expected the keys {expected:?}, and there came {got:?}"))
    }
}

struct Keys;

impl<'de> Visitor<'de> for Keys {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut keys = Vec::new();
        while let Some((key, IgnoredAny)) = map.next_entry()? {
            keys.push(key);
        }
        Ok(keys)
    }
}

/// Whether the last request to the auth server had this text.
pub(crate) fn asked(text: &Text, requests: &[String], names: &Names) -> Outcome {
    match requests.last() {
        Some(request) if contains(request.as_bytes(), text, names) => Ok(()),
        Some(request) => Err(format!(
            "expected a request with {}, and there came {request}",
            text.source()
        )),
        None => Err("the auth server was not asked".to_owned()),
    }
}
