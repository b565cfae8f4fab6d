//! The steps of a line.

use serde_json::Value;

use super::text::Text;

/// One step: what it does, on which connection.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) source: String,
    pub(crate) client: char,
    pub(crate) action: Action,
}

#[derive(Clone, Debug)]
pub(crate) enum Action {
    Send { line: Text, body: Option<Text> },
    Raw(Text),
    Wire(Text),
    Flush(Flush),
    NoMagic,
    Expect(Expected, Bounds),
    HeartbeatThenClosed(Bounds),
    Eof,
    Close,
    Sleep(Text),
    Tls(Tls),
    NoTls(Tls),
    Snappy,
    Deflate,
    BadCrc,
    Http(Http),
    Header { name: String, value: Option<Text> },
    Keys(Vec<String>),
    Also { part: Text, contained: bool },
    Authd { status: u16, body: Text },
    Asked(Text),
    AskedTimes(usize),
}

/// How much a deflate client pushes out after a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flush {
    Partial,
    Sync,
    Full,
    Finish,
}

/// With which certificate and which version a client does TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tls {
    pub(crate) certificate: Option<ClientCertificate>,
    pub(crate) only_1_2: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientCertificate {
    Trusted,
    Stranger,
}

/// Bounds in milliseconds since the step before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) after: Option<u64>,
    pub(crate) before: Option<u64>,
}

#[derive(Clone, Debug)]
pub(crate) enum Expected {
    Response(Text),
    Error(Text),
    ErrorWith(Text),
    Json(Text),
    Message(Message),
    Nothing(Option<Text>),
    Closed,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Message {
    pub(crate) body: Option<Text>,
    pub(crate) attempts: Option<Text>,
    pub(crate) id: Option<Text>,
    /// The name under which the id is kept.
    pub(crate) kept_as: Option<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct Http {
    pub(crate) verb: String,
    pub(crate) path: Text,
    pub(crate) body: Option<Text>,
    pub(crate) status: u16,
    pub(crate) answer: Answer,
}

#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Any,
    Text(Text),
    Json(Text),
    JsonWith(Text),
    Containing(Text),
}

const CLIENTS: std::ops::RangeInclusive<char> = 'a'..='e';

const VERBS: &[&str] = &[
    ">", "<", "raw", "wire", "flush", "nomagic", "hbX", "eof", "close", "sleep", "tls", "notls", "snappy", "deflate",
    "badcrc", "http", "header", "keys", "also", "authd", "authd?", "authd#",
];

impl Step {
    pub(crate) fn parse(source: &str) -> Result<Self, String> {
        let (client, verb, rest) = take_apart(source);
        let action = action(verb, rest).map_err(|why| format!("{source}: {why}"))?;
        Ok(Self {
            source: source.to_owned(),
            client,
            action,
        })
    }
}

/// The connection, the verb and the rest: `> X`, `b> X`, `b raw X` and `braw X` are all understood.
fn take_apart(source: &str) -> (char, &str, &str) {
    let (word, rest) = source.split_once(' ').unwrap_or((source, ""));
    if VERBS.contains(&word) {
        return ('a', word, rest);
    }
    let mut letters = word.chars();
    match letters.next().filter(|first| CLIENTS.contains(first)) {
        Some(client) if VERBS.contains(&letters.as_str()) => (client, &word[1..], rest),
        Some(client) if letters.as_str().is_empty() => {
            let (verb, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            (client, verb, rest)
        }
        _ => ('a', word, rest),
    }
}

fn action(verb: &str, rest: &str) -> Result<Action, String> {
    Ok(match verb {
        ">" => send(rest)?,
        "<" => expect(rest)?,
        "raw" => Action::Raw(Text::parse_quoted(rest)?),
        "wire" => Action::Wire(Text::parse_quoted(rest)?),
        "hbX" => Action::HeartbeatThenClosed(only_bounds(rest)?),
        "sleep" => Action::Sleep(Text::parse(rest)?),
        "http" => Action::Http(http(rest)?),
        "header" => header(rest)?,
        "also" => also(rest)?,
        "authd" => {
            let (status, body) = rest.split_once(' ').unwrap_or((rest, ""));
            Action::Authd {
                status: parse(status)?,
                body: Text::parse(body)?,
            }
        }
        "authd?" => Action::Asked(Text::parse(rest)?),
        "authd#" => Action::AskedTimes(parse(rest)?),
        "flush" => Action::Flush(match rest {
            "partial" => Flush::Partial,
            "sync" => Flush::Sync,
            "full" => Flush::Full,
            "finish" => Flush::Finish,
            _ => return Err(format!("no such flush: {rest}")),
        }),
        "keys" => Action::Keys(rest.split(',').map(|key| key.trim().to_owned()).collect()),
        "tls" => Action::Tls(tls(rest)?),
        "notls" => Action::NoTls(tls(rest)?),
        "nomagic" | "eof" | "close" | "snappy" | "deflate" | "badcrc" => {
            if !rest.is_empty() {
                return Err(format!("takes nothing, and there is {rest}"));
            }
            match verb {
                "nomagic" => Action::NoMagic,
                "eof" => Action::Eof,
                "close" => Action::Close,
                "snappy" => Action::Snappy,
                "deflate" => Action::Deflate,
                _ => Action::BadCrc,
            }
        }
        _ => return Err("no such step".to_owned()),
    })
}

fn parse<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} is not a number"))
}

fn send(rest: &str) -> Result<Action, String> {
    let (line, body) = match rest.split_once(" <<") {
        Some((line, body)) => (line, Some(Text::parse_quoted(body)?)),
        None => (rest, None),
    };
    Ok(Action::Send {
        line: Text::parse(line)?,
        body,
    })
}

fn expect(rest: &str) -> Result<Action, String> {
    let (rest, bounds) = split_bounds(rest)?;
    let (kind, argument) = rest.split_once(' ').unwrap_or((rest, ""));
    let expected = match kind {
        "R" => Expected::Response(Text::parse(argument)?),
        "E" => Expected::Error(Text::parse(argument)?),
        "E~" => Expected::ErrorWith(Text::parse(argument)?),
        "J" => {
            check_json(argument)?;
            Expected::Json(Text::parse(argument)?)
        }
        "M" => Expected::Message(message(argument)?),
        "-" if argument.is_empty() => Expected::Nothing(None),
        "-" => Expected::Nothing(Some(Text::parse(argument)?)),
        "X" if argument.is_empty() => Expected::Closed,
        _ => return Err(format!("no such expectation: {rest}")),
    };
    Ok(Action::Expect(expected, bounds))
}

/// What a `$name` stands for is not known yet; anything that it can stand for is.
fn check_json(text: &str) -> Result<(), String> {
    let read = |text: &str| serde_json::from_str::<Value>(text);
    match read(text).or_else(|error| read(&text.replace("\\\"", "\"")).map_err(|_| error)) {
        Ok(_) => Ok(()),
        Err(_) if text.contains('$') || text.contains('@') => Ok(()),
        Err(error) => Err(format!("{text} is no JSON: {error}")),
    }
}

fn message(text: &str) -> Result<Message, String> {
    let mut fields: Vec<(&str, String)> = Vec::new();
    for word in text.split(' ') {
        let key = word
            .split_once('=')
            .filter(|(key, _)| ["body", "att", "id", "as"].contains(key));
        match (key, fields.last_mut()) {
            (Some((key, value)), _) => fields.push((key, value.to_owned())),
            // A body with spaces.
            (None, Some((_, value))) => *value = format!("{value} {word}"),
            (None, None) if word.is_empty() => {}
            (None, None) => return Err(format!("no such field: {word}")),
        }
    }
    let mut message = Message::default();
    for (key, value) in fields {
        match key {
            "body" => message.body = Some(Text::parse(&value)?),
            "att" => message.attempts = Some(Text::parse(&value)?),
            "id" => message.id = Some(Text::parse(&value)?),
            _ => message.kept_as = Some(value),
        }
    }
    Ok(message)
}

/// Takes `after=` and `before=` off the end.
fn split_bounds(text: &str) -> Result<(&str, Bounds), String> {
    let mut bounds = Bounds::default();
    let mut text = text;
    loop {
        let (rest, word) = text.rsplit_once(' ').unwrap_or(("", text));
        let bound = match word.split_once('=') {
            Some(("after", ms)) => (&mut bounds.after, ms),
            Some(("before", ms)) => (&mut bounds.before, ms),
            _ => return Ok((text, bounds)),
        };
        *bound.0 = Some(parse(bound.1)?);
        text = rest;
    }
}

fn only_bounds(text: &str) -> Result<Bounds, String> {
    match split_bounds(text)? {
        ("", bounds) => Ok(bounds),
        (rest, _) => Err(format!("takes bounds only, and there is {rest}")),
    }
}

fn tls(rest: &str) -> Result<Tls, String> {
    let mut tls = Tls::default();
    for word in rest.split(' ').filter(|word| !word.is_empty()) {
        match word {
            "trusted" => tls.certificate = Some(ClientCertificate::Trusted),
            "stranger" => tls.certificate = Some(ClientCertificate::Stranger),
            "v1.2" => tls.only_1_2 = true,
            _ => return Err(format!("no such word: {word}")),
        }
    }
    Ok(tls)
}

fn http(rest: &str) -> Result<Http, String> {
    let (verb, rest) = rest.split_once(' ').ok_or("no path")?;
    let (path, rest) = rest.split_once(' ').ok_or("no answer is expected")?;
    let (body, rest) = match rest.strip_prefix("<<") {
        Some(rest) => {
            let end = end_of_quoted(rest).ok_or("the body does not end")?;
            (Some(Text::parse_quoted(&rest[..end])?), rest[end..].trim_start())
        }
        None => (None, rest),
    };
    let rest = rest.strip_prefix("= ").ok_or("no answer is expected")?;
    let (status, answer) = rest.split_once(' ').unwrap_or((rest, ""));
    Ok(Http {
        verb: verb.to_owned(),
        path: Text::parse(path)?,
        body,
        status: parse(status)?,
        answer: http_answer(answer)?,
    })
}

fn http_answer(text: &str) -> Result<Answer, String> {
    if text.is_empty() {
        Ok(Answer::Any)
    } else if text.starts_with('"') {
        Ok(Answer::Text(Text::parse_quoted(text)?))
    } else if let Some(part) = text.strip_prefix('~') {
        Ok(Answer::Containing(Text::parse(part)?))
    } else if let Some(json) = text.strip_prefix("J ") {
        check_json(json)?;
        Ok(Answer::JsonWith(Text::parse(json)?))
    } else {
        check_json(text)?;
        Ok(Answer::Json(Text::parse(text)?))
    }
}

/// Where the quoted text at the beginning ends.
fn end_of_quoted(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            b'"' if !escaped => return Some(at + 1),
            _ => escaped = byte == b'\\' && !escaped,
        }
    }
    None
}

fn header(rest: &str) -> Result<Action, String> {
    if let Some(name) = rest.strip_prefix('!') {
        let name = name.to_owned();
        return Ok(Action::Header { name, value: None });
    }
    let (name, value) = rest.split_once(": ").ok_or("no value")?;
    Ok(Action::Header {
        name: name.to_owned(),
        value: Some(Text::parse(value)?),
    })
}

fn also(rest: &str) -> Result<Action, String> {
    let (contained, part) = match (rest.strip_prefix('~'), rest.strip_prefix("!~")) {
        (Some(part), _) => (true, part),
        (_, Some(part)) => (false, part),
        _ => return Err("neither ~ nor !~".to_owned()),
    };
    Ok(Action::Also {
        part: Text::parse(part)?,
        contained,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(source: &str) -> char {
        Step::parse(source).unwrap().client
    }

    #[test]
    fn a_connection_is_named_before_any_verb() {
        assert_eq!(client("> NOP"), 'a');
        assert_eq!(client("b> NOP"), 'b');
        assert_eq!(client("c< -"), 'c');
        assert_eq!(client("d raw \"x\""), 'd');
        assert_eq!(client("bclose"), 'b');
        assert_eq!(client("close"), 'a');
        assert_eq!(client("e hbX before=1"), 'e');
    }

    #[test]
    fn wrong_steps_are_refused() {
        for wrong in [
            "",
            ">> NOP",
            "f> NOP",
            "raw x",
            "< Q",
            "< J {",
            "< M x=1",
            "< X now",
            "< R OK after=x",
            "hbX 5",
            "close it",
            "http GET",
            "http GET /",
            "http GET / = ok",
            "http GET / <<\"x = 200",
            "authd x {}",
            "tls maybe",
            "flush it",
            "header X",
            "also x",
            "> PUB t <<x",
        ] {
            assert!(Step::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn bounds_are_taken_off_the_end() {
        assert_eq!(
            split_bounds("R a after=1 b before=2"),
            Ok((
                "R a after=1 b",
                Bounds {
                    after: None,
                    before: Some(2)
                }
            ))
        );
        assert_eq!(
            split_bounds("after=1 before=2"),
            Ok((
                "",
                Bounds {
                    after: Some(1),
                    before: Some(2)
                }
            ))
        );
    }
}
