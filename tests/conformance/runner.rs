//! Runs a line, step by step.

use std::collections::HashMap;
use std::time::Duration;

use async_nsq::transport::BoxIo;
use tokio::time::{Instant, timeout};

use super::client::{Client, Event, Kind};
use super::codec::Codec;
use super::http;
use super::judge;
use super::step::{Action, Bounds, Expected, Http, Message, Step, Tls};
use super::target::{Target, Time};
use super::text::{Names, Text};

/// How long a step that waits for something waits, beyond what its bounds say: longer than the default interval of
/// heartbeats.
const PATIENCE: Duration = Duration::from_secs(45);

/// What a real nsqd may add to what is due: it looks for new channels every 5 s, and the machine may be busy.
const SLACK: u64 = 8_000;

/// How long a real broker may take until a GET shows what happened on another connection, and how often it is asked.
const SETTLED: Duration = Duration::from_secs(5);
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// The silence that `< -` means.
const SILENCE: u64 = 300;

const MAGIC_V1: &[u8] = b"  V1";
const MAGIC_V2: &[u8] = b"  V2";

type Outcome = Result<(), String>;

/// Runs a line's steps against its broker. The error names the step, what it expected and what came.
pub(crate) async fn run(steps: &[Step], target: &Target) -> Outcome {
    let now = Instant::now();
    let mut run = Run {
        target,
        names: target.names(),
        clients: HashMap::new(),
        without_magic: Vec::new(),
        step_ended: now,
        cause: now,
        answer: None,
        json: String::new(),
    };
    for (index, step) in steps.iter().enumerate() {
        let done = run.step(step).await;
        done.map_err(|why| format!("step {} `{}`: {why}", index + 1, step.source))?;
        run.step_ended = Instant::now();
    }
    Ok(())
}

struct Run<'a> {
    target: &'a Target,
    names: Names,
    clients: HashMap<char, Client>,
    without_magic: Vec<char>,
    step_ended: Instant,
    /// The real broker cannot have begun before this what comes next; see [`Run::check_bounds`].
    cause: Instant,
    /// The last answer over HTTP.
    answer: Option<http::Answer>,
    /// The last JSON that came.
    json: String,
}

impl Run<'_> {
    async fn step(&mut self, step: &Step) -> Outcome {
        let client = step.client;
        match &step.action {
            Action::Send { line, body } => self.send(client, line, body.as_ref()).await,
            Action::Raw(text) => {
                let bytes = text.bytes(&self.names);
                self.send_bytes(client, &bytes, true).await
            }
            Action::Wire(text) => {
                let bytes = text.bytes(&self.names);
                self.send_bytes(client, &bytes, false).await
            }
            Action::Flush(flush) => self.client(client).await?.set_flush(*flush),
            Action::NoMagic => {
                self.without_magic.push(client);
                Ok(())
            }
            Action::Expect(expected, bounds) => self.expect(client, expected, *bounds).await,
            Action::HeartbeatThenClosed(bounds) => self.expect_end(client, *bounds).await,
            Action::Eof => {
                self.client(client).await?.end_writing().await;
                Ok(())
            }
            Action::Close => {
                self.clients.remove(&client);
                Ok(())
            }
            Action::Sleep(ms) => {
                let ms = ms.number(&self.names)?;
                tokio::time::sleep(Duration::from_millis(ms)).await;
                Ok(())
            }
            Action::Tls(tls) => self.start_tls(client, *tls).await,
            Action::NoTls(tls) => match self.start_tls(client, *tls).await {
                Ok(()) => Err("expected no TLS, and there is".to_owned()),
                Err(_) => Ok(()),
            },
            Action::Snappy => self.client(client).await?.start_codec(Codec::snappy()),
            Action::Deflate => self.client(client).await?.start_codec(Codec::deflate()),
            Action::BadCrc => {
                self.client(client).await?.send_below(&Codec::bad_chunk()).await;
                self.expect(client, &Expected::Closed, Bounds::default()).await
            }
            Action::Http(request) => self.http(request).await,
            Action::Header { .. } | Action::Keys(_) | Action::Also { .. } => self.look_at_answer(&step.action),
            Action::Authd { .. } | Action::Asked(_) | Action::AskedTimes(_) => self.authd(&step.action),
        }
    }

    async fn client(&mut self, name: char) -> Result<&mut Client, String> {
        if !self.clients.contains_key(&name) {
            let lookupd = self.target.lookupd;
            let mut client = Client::new(connect(self.target, &self.target.tcp).await?, !lookupd);
            if !self.without_magic.contains(&name) {
                client.send(if lookupd { MAGIC_V1 } else { MAGIC_V2 }).await;
            }
            self.clients.insert(name, client);
        }
        self.clients.get_mut(&name).ok_or_else(|| "no connection".to_owned())
    }

    async fn start_tls(&mut self, name: char, tls: Tls) -> Outcome {
        self.client(name).await?;
        let client = self.clients.remove(&name).ok_or("no connection")?;
        let started = timeout(PATIENCE, client.start_tls(tls, &self.target.certificates)).await;
        let client = started.map_err(|_| format!("no TLS within {PATIENCE:?}"))??;
        self.clients.insert(name, client);
        Ok(())
    }

    async fn send(&mut self, client: char, line: &Text, body: Option<&Text>) -> Outcome {
        let mut bytes = line.bytes(&self.names);
        // These begin nothing that takes time.
        let idle = [&b"NOP"[..], b"RDY", b"FIN"]
            .iter()
            .any(|command| bytes.starts_with(command));
        bytes.push(b'\n');
        if let Some(body) = body {
            let body = body.bytes(&self.names);
            let length = u32::try_from(body.len()).map_err(|_| "the body is too long")?;
            bytes.extend(length.to_be_bytes());
            bytes.extend(body);
        }
        let cause = self.cause;
        self.send_bytes(client, &bytes, true).await?;
        if idle {
            self.cause = cause;
        }
        Ok(())
    }

    async fn send_bytes(&mut self, client: char, bytes: &[u8], through_layers: bool) -> Outcome {
        self.client(client).await?;
        self.cause = Instant::now();
        let client = self.client(client).await?;
        let sent = async {
            match through_layers {
                true => client.send(bytes).await,
                false => client.send_below(bytes).await,
            }
        };
        timeout(PATIENCE, sent)
            .await
            .map_err(|_| format!("not sent within {PATIENCE:?}"))
    }

    async fn expect(&mut self, client: char, expected: &Expected, bounds: Bounds) -> Outcome {
        match expected {
            Expected::Nothing(ms) => {
                let ms = ms.as_ref().map_or(Ok(SILENCE), |ms| ms.number(&self.names))?;
                self.expect_nothing(client, ms).await
            }
            Expected::Message(message) => self.expect_message(client, message, bounds).await,
            _ => {
                let event = self.client(client).await?.next(patience(bounds)).await;
                self.judge(expected, &event)?;
                self.check_bounds(bounds)
            }
        }
    }

    fn judge(&mut self, expected: &Expected, event: &Event) -> Outcome {
        if let Event::Frame(_, data) = event {
            self.json = String::from_utf8_lossy(data).into_owned();
        }
        let names = &self.names;
        let fits = match (expected, event) {
            (Expected::Closed, Event::Closed) => true,
            (Expected::Response(text), Event::Frame(Kind::Response | Kind::Untyped, data))
            | (Expected::Error(text), Event::Frame(Kind::Error | Kind::Untyped, data)) => text.is(data, names),
            (Expected::ErrorWith(text), Event::Frame(Kind::Error, data)) => judge::contains(data, text, names),
            (Expected::Json(json), Event::Frame(Kind::Response | Kind::Untyped, data)) => {
                return judge::members(&judge::wanted(json, names)?, data);
            }
            _ => false,
        };
        if fits {
            return Ok(());
        }
        let expected = match expected {
            Expected::Response(text) => format!("the response {:?}", judge::shown(&text.bytes(names))),
            Expected::Error(text) => format!("the error {:?}", judge::shown(&text.bytes(names))),
            Expected::ErrorWith(text) => format!("an error with {:?}", judge::shown(&text.bytes(names))),
            Expected::Json(text) => format!("a response with {}", text.source()),
            _ => "the end".to_owned(),
        };
        Err(format!("expected {expected}, and there came {}", judge::event(event)))
    }

    async fn expect_nothing(&mut self, client: char, ms: u64) -> Outcome {
        let end = Instant::now() + Duration::from_millis(ms);
        match next_but_heartbeats(self.client(client).await?, end).await {
            Event::Nothing => Ok(()),
            other => Err(format!(
                "expected nothing for {ms} ms, and there came {}",
                judge::event(&other)
            )),
        }
    }

    async fn expect_message(&mut self, client: char, expected: &Message, bounds: Bounds) -> Outcome {
        let end = Instant::now() + patience(bounds);
        let event = next_but_heartbeats(self.client(client).await?, end).await;
        let Event::Frame(Kind::Message, data) = &event else {
            return Err(format!("expected a message, and there came {}", judge::event(&event)));
        };
        let message = judge::Message::read(data)?;
        message.check(expected, &self.names)?;
        if let Some(name) = &expected.kept_as {
            self.names.insert(name.clone(), message.id());
        }
        self.check_bounds(bounds)
    }

    async fn expect_end(&mut self, client: char, bounds: Bounds) -> Outcome {
        let mut heartbeats = 0;
        loop {
            let event = self.client(client).await?.next(patience(bounds)).await;
            match &event {
                Event::Closed => return self.check_bounds(bounds),
                Event::Frame(Kind::Response, text) if text == judge::HEARTBEAT && heartbeats == 0 => heartbeats += 1,
                other => return Err(format!("expected the end, and there came {}", judge::event(other))),
            }
        }
    }

    /// On a paused clock, bounds are exact, from the end of the step before.
    ///
    /// Against a real broker, this process may have been slow to see the step before, so that what follows seems to be
    /// early. `after` is therefore counted from a moment that cannot be later than the cause of what has come: when the
    /// last bytes were sent that may cause anything, and then from bound to bound.
    fn check_bounds(&mut self, bounds: Bounds) -> Outcome {
        let now = Instant::now();
        let (since, slack) = match self.target.time {
            Time::Virtual => (self.step_ended, 0),
            Time::Real => (self.cause, SLACK),
        };
        let ms = |since: Instant| u64::try_from(now.duration_since(since).as_millis()).unwrap_or(u64::MAX);
        if let Some(after) = bounds.after {
            if ms(since) < after {
                return Err(format!("expected after {after} ms, and came after {}", ms(since)));
            }
            self.cause += Duration::from_millis(after);
        }
        match bounds.before {
            Some(before) if ms(self.step_ended) > before + slack => Err(format!(
                "expected before {before} ms, and came after {}",
                ms(self.step_ended)
            )),
            _ => Ok(()),
        }
    }

    async fn http(&mut self, request: &Http) -> Outcome {
        let end = Instant::now() + SETTLED;
        self.cause = Instant::now();
        loop {
            let outcome = self.http_once(request).await;
            let again = self.target.time == Time::Real && request.verb == "GET" && Instant::now() < end;
            if outcome.is_ok() || !again {
                return outcome;
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    async fn http_once(&mut self, request: &Http) -> Outcome {
        let io = connect(self.target, &self.target.http).await?;
        let (path, body) = (
            request.path.bytes(&self.names),
            request.body.as_ref().map(|body| body.bytes(&self.names)),
        );
        let answer = http::request(io, &request.verb, &path, body.as_deref());
        let answer = timeout(PATIENCE, answer)
            .await
            .map_err(|_| format!("no answer within {PATIENCE:?}"))??;
        let outcome = judge::answer(request, &answer, &self.names);
        self.json = String::from_utf8_lossy(&answer.body).into_owned();
        self.answer = Some(answer);
        outcome
    }

    fn look_at_answer(&self, action: &Action) -> Outcome {
        if let Action::Keys(expected) = action {
            return judge::keys(expected, &self.json);
        }
        let answer = self.answer.as_ref().ok_or("there was no http before")?;
        match action {
            Action::Header { name, value } => judge::header(name, value.as_ref(), answer, &self.names),
            Action::Also { part, contained } => judge::also(part, *contained, answer, &self.names),
            _ => Ok(()),
        }
    }

    fn authd(&self, action: &Action) -> Outcome {
        let authd = self.target.auth.as_ref().ok_or("the line has no option auth")?;
        match action {
            Action::Authd { status, body } => authd.answer(*status, body.unescaped(&self.names)),
            Action::Asked(text) => return judge::asked(text, &authd.asked(), &self.names),
            Action::AskedTimes(times) if authd.asked().len() != *times => {
                return Err(format!(
                    "expected {times} requests, and there were {}",
                    authd.asked().len()
                ));
            }
            _ => {}
        }
        Ok(())
    }
}

async fn connect(target: &Target, address: &str) -> Result<BoxIo, String> {
    match timeout(PATIENCE, target.connector.connect(address)).await {
        Ok(connected) => connected.map_err(|error| format!("{address} is not reached: {error}")),
        Err(_) => Err(format!("{address} is not reached within {PATIENCE:?}")),
    }
}

fn patience(bounds: Bounds) -> Duration {
    PATIENCE + Duration::from_millis(bounds.after.max(bounds.before).unwrap_or(0))
}

/// Answers heartbeats and passes them over.
async fn next_but_heartbeats(client: &mut Client, end: Instant) -> Event {
    loop {
        match client.next(end.saturating_duration_since(Instant::now())).await {
            Event::Frame(Kind::Response, text) if text == judge::HEARTBEAT => client.send(b"NOP\n").await,
            event => return event,
        }
    }
}
