//! The client's encoder against the test broker's parser: what is sent is what is read, however it is split; and
//! arbitrary bytes never make the parser panic.
#![no_main]

use arbitrary::Arbitrary;
use async_nsq::protocol::{Command, CommandHead, CommandLimits, CommandParser, MessageId, Secret};
use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Sent {
    Identify(Vec<u8>),
    Auth(Vec<u8>),
    Sub(u8, u8),
    Pub(u8, Vec<u8>),
    Mpub(u8, Vec<Vec<u8>>),
    Dpub(u8, u32, Vec<u8>),
    Rdy(u16),
    Fin([u8; 16]),
    Req([u8; 16], u32),
    Touch([u8; 16]),
    Cls,
    Nop,
}

#[derive(Arbitrary, Debug)]
struct Input {
    commands: Vec<Sent>,
    cuts: Vec<u8>,
    garbage: Vec<u8>,
}

fuzz_target!(|input: Input| {
    let sent: Vec<Command> = input.commands.into_iter().filter_map(command).collect();
    let mut bytes = BytesMut::new();
    sent.iter().for_each(|command| command.encode(&mut bytes));
    assert_eq!(parse(&bytes, &input.cuts), sent);

    parse(&input.garbage, &input.cuts);
});

/// What a client may send: names are checked, empty bodies and ids with a separator never leave it.
fn command(sent: Sent) -> Option<Command> {
    let name = |number: u8| format!("name.{number}");
    let body = |body: Vec<u8>| (!body.is_empty()).then(|| Bytes::from(body));
    let id = |id: [u8; 16]| MessageId::new(id.map(|byte| b"0123456789abcdef"[usize::from(byte % 16)]));
    Some(match sent {
        Sent::Identify(json) => Command::Identify { body: body(json)? },
        Sent::Auth(secret) => Command::Auth {
            secret: Secret::new(body(secret)?),
        },
        Sent::Sub(topic, channel) => Command::Sub {
            topic: name(topic),
            channel: name(channel),
        },
        Sent::Pub(topic, message) => Command::Pub {
            topic: name(topic),
            body: body(message)?,
        },
        Sent::Mpub(topic, messages) => {
            let bodies: Option<Vec<_>> = messages.into_iter().map(body).collect();
            Command::Mpub {
                topic: name(topic),
                bodies: bodies.filter(|bodies| !bodies.is_empty())?,
            }
        }
        Sent::Dpub(topic, delay, message) => Command::Dpub {
            topic: name(topic),
            delay_ms: u64::from(delay % 3_600_001),
            body: body(message)?,
        },
        Sent::Rdy(count) => Command::Rdy {
            count: u32::from(count % 2501),
        },
        Sent::Fin(message) => Command::Fin { id: id(message) },
        Sent::Req(message, delay_ms) => Command::Req {
            id: id(message),
            delay_ms: u64::from(delay_ms),
        },
        Sent::Touch(message) => Command::Touch { id: id(message) },
        Sent::Cls => Command::Cls,
        Sent::Nop => Command::Nop,
    })
}

/// Everything up to the first refusal or the end.
fn parse(bytes: &[u8], cuts: &[u8]) -> Vec<Command> {
    let limits = CommandLimits::default();
    let mut parser = CommandParser::new();
    let mut input = BytesMut::new();
    let mut pending = None;
    let mut commands = Vec::new();
    let mut rest = bytes;
    let mut cuts = cuts.iter().cycle();
    loop {
        let progress = match &mut pending {
            None => match parser.line(&mut input) {
                Err(_) => return commands,
                Ok(None) => false,
                Ok(Some(line)) => {
                    match line.read(&limits) {
                        Err(refused) => {
                            assert!(!refused.text().is_empty());
                            return commands;
                        }
                        Ok(CommandHead::Command(command)) => commands.push(command),
                        Ok(CommandHead::Body(body)) => pending = Some(body),
                    }
                    true
                }
            },
            Some(body) => match body.decode(&mut input) {
                Err(refused) => {
                    assert!(!refused.text().is_empty());
                    return commands;
                }
                Ok(None) => false,
                Ok(Some(command)) => {
                    commands.push(command);
                    pending = None;
                    true
                }
            },
        };
        if progress {
            continue;
        }
        if rest.is_empty() {
            return commands;
        }
        let len = cuts
            .next()
            .map_or(rest.len(), |cut| usize::from(*cut) + 1)
            .min(rest.len());
        input.extend_from_slice(&rest[..len]);
        rest = &rest[len..];
    }
}
