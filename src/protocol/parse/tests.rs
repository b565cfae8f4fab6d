use proptest::prelude::*;

use super::line::check_name;
use super::*;

enum Outcome {
    Command(Command),
    Refused(CommandError),
    TooLong,
    /// More input is needed; what nsqd says if none comes, within a body.
    More(Option<CommandError>),
}

/// Reads commands as a server does that allows every command in every state.
struct Reader {
    parser: CommandParser,
    body: Option<CommandBody>,
    limits: CommandLimits,
}

impl Reader {
    fn new(limits: CommandLimits) -> Self {
        Self {
            parser: CommandParser::new(),
            body: None,
            limits,
        }
    }

    fn next(&mut self, input: &mut BytesMut) -> Outcome {
        let mut body = match self.body.take() {
            Some(body) => body,
            None => match self.parser.line(input) {
                Err(LineTooLong) => return Outcome::TooLong,
                Ok(None) => return Outcome::More(None),
                Ok(Some(line)) => match line.read(&self.limits) {
                    Err(error) => return Outcome::Refused(error),
                    Ok(CommandHead::Command(command)) => return Outcome::Command(command),
                    Ok(CommandHead::Body(body)) => body,
                },
            },
        };
        match body.decode(input) {
            Err(error) => Outcome::Refused(error),
            Ok(Some(command)) => Outcome::Command(command),
            Ok(None) => {
                let cut_off = body.cut_off();
                self.body = Some(body);
                Outcome::More(Some(cut_off))
            }
        }
    }
}

fn read(bytes: &[u8]) -> Outcome {
    Reader::new(CommandLimits::default()).next(&mut BytesMut::from(bytes))
}

fn refusal(bytes: &[u8]) -> String {
    match read(bytes) {
        Outcome::Refused(error) | Outcome::More(Some(error)) => error.to_string(),
        _ => panic!("{bytes:?} is neither refused nor cut off"),
    }
}

/// Input, and the text of nsqd's error frame.
const REFUSALS: &[(&[u8], &str)] = &[
    (b"\n", "E_INVALID invalid command "),
    (b"FOO bar\n", "E_INVALID invalid command FOO"),
    (b"pub t\n", "E_INVALID invalid command pub"),
    (b" NOP\n", "E_INVALID invalid command "),
    (b"IDENTIFY\n\0\0\0\0", "E_BAD_BODY IDENTIFY invalid body size 0"),
    (
        b"IDENTIFY\n\xff\xff\xff\xff",
        "E_BAD_BODY IDENTIFY invalid body size -1",
    ),
    (
        b"IDENTIFY\n\0\x50\0\x01",
        "E_BAD_BODY IDENTIFY body too big 5242881 > 5242880",
    ),
    (b"IDENTIFY\n\0\0", "E_BAD_BODY IDENTIFY failed to read body size"),
    (b"IDENTIFY\n\0\0\0\x02{", "E_BAD_BODY IDENTIFY failed to read body"),
    (b"AUTH a\n", "E_INVALID AUTH invalid number of parameters"),
    (b"AUTH\n\0\0\0\0", "E_BAD_BODY AUTH invalid body size 0"),
    (b"SUB t\n", "E_INVALID SUB insufficient number of parameters"),
    (b"SUB a$ c\n", "E_BAD_TOPIC SUB topic name \"a$\" is not valid"),
    (b"SUB t \n", "E_BAD_CHANNEL SUB channel name \"\" is not valid"),
    (b"SUB t  c\n", "E_BAD_CHANNEL SUB channel name \"\" is not valid"),
    (b"PUB\n", "E_INVALID PUB insufficient number of parameters"),
    (
        b"PUB #ephemeral\n",
        "E_BAD_TOPIC PUB topic name \"#ephemeral\" is not valid",
    ),
    (
        b"PUB a\"\\\t\x01\xff\xc3\xa4\n",
        "E_BAD_TOPIC PUB topic name \"a\\\"\\\\\\t\\x01\\xff\u{e4}\" is not valid",
    ),
    (b"PUB t\n\0\0\0\0", "E_BAD_MESSAGE PUB invalid message body size 0"),
    (
        b"PUB t\n\xff\xff\xff\xff",
        "E_BAD_MESSAGE PUB invalid message body size -1",
    ),
    (
        b"PUB t\n\0\x10\0\x01",
        "E_BAD_MESSAGE PUB message too big 1048577 > 1048576",
    ),
    (b"PUB t\n\0\0", "E_BAD_MESSAGE PUB failed to read message body size"),
    (b"PUB t\n\0\0\0\x02x", "E_BAD_MESSAGE PUB failed to read message body"),
    (b"DPUB t\n", "E_INVALID DPUB insufficient number of parameters"),
    (b"DPUB t$ x\n", "E_BAD_TOPIC DPUB topic name \"t$\" is not valid"),
    (b"DPUB t abc\n", "E_INVALID DPUB could not parse timeout abc"),
    (b"DPUB t -1\n", "E_INVALID DPUB could not parse timeout -1"),
    (
        b"DPUB t 3600001\n",
        "E_INVALID DPUB timeout 3600001 out of range 0-3600000",
    ),
    (b"DPUB t 5\n\0\0\0\0", "E_BAD_MESSAGE DPUB invalid message body size 0"),
    (b"MPUB\n", "E_INVALID MPUB insufficient number of parameters"),
    (
        b"MPUB t$\n",
        "E_BAD_TOPIC E_BAD_TOPIC MPUB topic name \"t$\" is not valid",
    ),
    (b"MPUB t\n\0\0", "E_BAD_BODY MPUB failed to read body size"),
    (b"MPUB t\n\0\0\0\0", "E_BAD_BODY MPUB invalid body size 0"),
    (
        b"MPUB t\n\0\x50\0\x01",
        "E_BAD_BODY MPUB body too big 5242881 > 5242880",
    ),
    (b"MPUB t\n\0\0\0\x04\0", "E_BAD_BODY MPUB failed to read message count"),
    (b"MPUB t\n\0\0\0\x04\0\0\0\0", "E_BAD_BODY MPUB invalid message count 0"),
    (
        b"MPUB t\n\0\0\0\x04\0\x10\0\0",
        "E_BAD_BODY MPUB invalid message count 1048576",
    ),
    (
        b"MPUB t\n\0\0\0\x04\0\x0f\xff\xff",
        "E_BAD_MESSAGE MPUB failed to read message(0) body size",
    ),
    (
        b"MPUB t\n\0\0\0\x09\0\0\0\x02\0\0\0\x01a\0\0\0\0",
        "E_BAD_MESSAGE MPUB invalid message(1) body size 0",
    ),
    (
        b"MPUB t\n\0\0\0\x09\0\0\0\x01\0\x10\0\x01",
        "E_BAD_MESSAGE MPUB message too big 1048577 > 1048576",
    ),
    (
        b"MPUB t\n\0\0\0\x09\0\0\0\x01\0\0\0\x02a",
        "E_BAD_MESSAGE MPUB failed to read message body",
    ),
    (b"RDY -1\n", "E_INVALID RDY could not parse count -1"),
    (b"RDY 2501\n", "E_INVALID RDY count 2501 out of range 0-2500"),
    (
        b"RDY 18446744073709551615\n",
        "E_INVALID RDY count -1 out of range 0-2500",
    ),
    (b"FIN\n", "E_INVALID FIN insufficient number of params"),
    (b"FIN abc\n", "E_INVALID invalid message ID"),
    (b"REQ 0123456789abcdef\n", "E_INVALID REQ insufficient number of params"),
    (b"REQ abc x\n", "E_INVALID invalid message ID"),
    (b"REQ 0123456789abcdef -1\n", "E_INVALID REQ could not parse timeout -1"),
    (b"TOUCH\n", "E_INVALID TOUCH insufficient number of params"),
];

#[test]
fn refusals_read_as_nsqds() {
    for (input, text) in REFUSALS {
        assert_eq!(refusal(input), *text, "{}", input.escape_ascii());
    }
}

fn parsed(bytes: &[u8]) -> Command {
    match read(bytes) {
        Outcome::Command(command) => command,
        Outcome::Refused(error) => panic!("{} is refused: {error}", bytes.escape_ascii()),
        _ => panic!("{} is not complete", bytes.escape_ascii()),
    }
}

#[test]
fn what_nsqd_tolerates_is_tolerated() {
    let id = MessageId::new(*b"0123456789abcdef");
    assert_eq!(parsed(b"NOP a b\r\n"), Command::Nop);
    assert_eq!(parsed(b"RDY\n"), Command::Rdy { count: 1 });
    assert_eq!(parsed(b"RDY \n"), Command::Rdy { count: 0 });
    let dpub = parsed(b"DPUB t  x\n\0\0\0\x01x");
    assert!(matches!(dpub, Command::Dpub { delay_ms: 0, .. }));
    assert_eq!(
        parsed(b"REQ 0123456789abcdef 18446744073709551615\n"),
        Command::Req { id, delay_ms: u64::MAX }
    );
    // The stated length of an MPUB's body does not matter.
    let mpub = parsed(b"MPUB t x\n\0\0\0\x01\0\0\0\x01\0\0\0\x01a");
    assert_eq!(
        mpub,
        Command::Mpub {
            topic: "t".to_owned(),
            bodies: vec!["a".into()]
        }
    );
}

#[test]
fn n4_a_line_without_end_is_refused_at_its_limit() {
    let mut line = vec![b'a'; MAX_LINE_LEN - 1];
    assert!(matches!(read(&line), Outcome::More(None)));
    line.push(b'\n');
    assert!(matches!(read(&line), Outcome::Refused(_)));
    line.insert(0, b'a');
    assert!(matches!(read(&line), Outcome::TooLong));
    assert!(matches!(read(&[b'a'; MAX_LINE_LEN]), Outcome::TooLong));
}

#[test]
fn n4_an_mpub_cannot_exceed_the_largest_body_by_its_messages() {
    let limits = CommandLimits {
        max_body_size: 40,
        max_msg_size: 20,
        ..CommandLimits::default()
    };
    let mut input = BytesMut::from(&b"MPUB t\n\0\0\0\x04\0\0\0\x02"[..]);
    for _ in 0..2 {
        input.extend_from_slice(b"\0\0\0\x14aaaaaaaaaaaaaaaaaaaa");
    }
    let outcome = Reader::new(limits).next(&mut input);
    assert!(matches!(outcome, Outcome::Refused(error) if error.text() == "E_BAD_BODY MPUB body too big 48 > 40"));
}

fn any_command() -> impl Strategy<Value = Command> {
    let name = || "[.a-zA-Z0-9_-]{1,54}(#ephemeral)?";
    let body = || prop::collection::vec(any::<u8>(), 1..60).prop_map(Bytes::from);
    let id =
        || any::<[u8; 16]>().prop_map(|bytes| MessageId::new(bytes.map(|b| b"0123456789abcdef"[usize::from(b % 16)])));
    prop_oneof![
        body().prop_map(|body| Command::Identify { body }),
        body().prop_map(|secret| Command::Auth {
            secret: Secret::new(secret)
        }),
        (name(), name()).prop_map(|(topic, channel)| Command::Sub { topic, channel }),
        (name(), body()).prop_map(|(topic, body)| Command::Pub { topic, body }),
        (name(), prop::collection::vec(body(), 1..6)).prop_map(|(topic, bodies)| Command::Mpub { topic, bodies }),
        (name(), 0u64..=3_600_000, body()).prop_map(|(topic, delay_ms, body)| Command::Dpub { topic, delay_ms, body }),
        (0u32..=2500).prop_map(|count| Command::Rdy { count }),
        id().prop_map(|id| Command::Fin { id }),
        (id(), any::<u64>()).prop_map(|(id, delay_ms)| Command::Req { id, delay_ms }),
        id().prop_map(|id| Command::Touch { id }),
        Just(Command::Cls),
        Just(Command::Nop),
    ]
}

proptest! {
    #[test]
    fn however_the_bytes_arrive_the_commands_are_the_same(
        commands in prop::collection::vec(any_command(), 0..12),
        cuts in prop::collection::vec(1usize..50, 1..60),
    ) {
        let mut bytes = BytesMut::new();
        commands.iter().for_each(|command| command.encode(&mut bytes));
        let mut reader = Reader::new(CommandLimits::default());
        let mut input = BytesMut::new();
        let mut read = Vec::new();
        let mut cuts = cuts.iter().cycle();
        while !bytes.is_empty() {
            let part = bytes.split_to((*cuts.next().unwrap()).min(bytes.len()));
            input.extend_from_slice(&part);
            loop {
                match reader.next(&mut input) {
                    Outcome::Command(command) => read.push(command),
                    Outcome::More(_) => break,
                    Outcome::Refused(error) => panic!("refused: {error}"),
                    Outcome::TooLong => panic!("too long"),
                }
            }
        }
        prop_assert!(input.is_empty());
        prop_assert_eq!(read, commands);
    }

    #[test]
    fn no_input_panics(
        start in prop::sample::select(vec!["", "IDENTIFY\n", "PUB t\n", "MPUB t\n", "DPUB t ", "REQ ", "RDY ", "SUB "]),
        rest in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let mut input = BytesMut::from(start.as_bytes());
        input.extend_from_slice(&rest);
        let mut reader = Reader::new(CommandLimits { max_body_size: 64, max_msg_size: 16, ..CommandLimits::default() });
        while let Outcome::Command(_) = reader.next(&mut input) {}
    }

    #[test]
    fn names_are_judged_as_the_client_judges_them(name in "[a.#_ -]{0,4}(#ephemeral)?[a!]{0,70}") {
        let here = check_name(name.as_bytes(), "topic").is_ok();
        prop_assert_eq!(here, crate::Topic::new(&name).is_ok());
    }
}
