//! Text of a table: escapes, repetitions and names.

use std::collections::BTreeMap;

/// No repetition is longer: the largest body that a broker takes is a tenth of it.
const LONGEST: usize = 64 * 1024 * 1024;

/// What `$name` stands for in a line that runs.
pub(crate) type Names = BTreeMap<String, String>;

/// A text as it stands in a table.
///
/// `\n`, `\r`, `\t`, `\xNN`, `\"` and `\\` are escapes, any other backslash stands for itself; `@N` stands for N letters
/// `a`, and `$name` for what the line knows under this name.
#[derive(Clone, Debug)]
pub(crate) struct Text {
    source: String,
    pieces: Vec<Piece>,
    /// The same without escapes: Go quotes names in error texts with backslashes of its own.
    as_it_stands: Vec<Piece>,
}

#[derive(Clone, Debug)]
enum Piece {
    /// Names are put in when the line runs.
    Plain(String),
    Bytes(Vec<u8>),
    Repeated(usize),
}

impl Text {
    pub(crate) fn parse(source: &str) -> Result<Self, String> {
        Ok(Self {
            source: source.to_owned(),
            pieces: pieces(source, true)?,
            as_it_stands: pieces(source, false)?,
        })
    }

    /// A text between double quotes.
    pub(crate) fn parse_quoted(source: &str) -> Result<Self, String> {
        let inner = source.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        Self::parse(inner.ok_or_else(|| format!("{source} is not between double quotes"))?)
    }

    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    pub(crate) fn bytes(&self, names: &Names) -> Vec<u8> {
        put_together(&self.pieces, names)
    }

    /// The text with names and repetitions, its backslashes as they stand: JSON has escapes of its own.
    pub(crate) fn unescaped(&self, names: &Names) -> Vec<u8> {
        put_together(&self.as_it_stands, names)
    }

    /// A number of milliseconds.
    pub(crate) fn number(&self, names: &Names) -> Result<u64, String> {
        let digits = String::from_utf8_lossy(&self.bytes(names)).into_owned();
        digits.parse().map_err(|_| format!("{digits} is not a number"))
    }

    /// Whether `got` is this text, read with escapes or as it stands.
    pub(crate) fn is(&self, got: &[u8], names: &Names) -> bool {
        got == self.bytes(names) || got == self.unescaped(names)
    }
}

fn pieces(source: &str, escapes: bool) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut plain = String::new();
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let (piece, length) = match c {
            '@' => repetition(rest)?,
            '\\' if escapes => escape(rest)?,
            _ => None,
        }
        .unzip();
        rest = &rest[length.unwrap_or(c.len_utf8())..];
        match piece {
            Some(piece) => pieces.extend([Piece::Plain(std::mem::take(&mut plain)), piece]),
            None => plain.push(c),
        }
    }
    pieces.push(Piece::Plain(plain));
    Ok(pieces)
}

type Read = Result<Option<(Piece, usize)>, String>;

fn repetition(text: &str) -> Read {
    let digits = text[1..].bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 {
        return Ok(None);
    }
    match text[1..=digits].parse() {
        Ok(times) if times <= LONGEST => Ok(Some((Piece::Repeated(times), 1 + digits))),
        _ => Err(format!("{} is too long", &text[..=digits])),
    }
}

fn escape(text: &str) -> Read {
    let (byte, length) = match text.as_bytes().get(1) {
        Some(b'n') => (b'\n', 2),
        Some(b'r') => (b'\r', 2),
        Some(b't') => (b'\t', 2),
        Some(b'"') => (b'"', 2),
        Some(b'\\') => (b'\\', 2),
        Some(b'x') => {
            let digits = text
                .get(2..4)
                .filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
            let digits = digits.ok_or_else(|| format!("\\x without two digits in {text}"))?;
            (u8::from_str_radix(digits, 16).map_err(|error| error.to_string())?, 4)
        }
        _ => return Ok(None),
    };
    Ok(Some((Piece::Bytes(vec![byte]), length)))
}

fn put_together(pieces: &[Piece], names: &Names) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Plain(text) => bytes.extend(with_names(text, names).bytes()),
            Piece::Bytes(more) => bytes.extend(more),
            Piece::Repeated(times) => bytes.resize(bytes.len() + times, b'a'),
        }
    }
    bytes
}

/// A `$` that begins no name stands for itself: names of topics are tested with it.
fn with_names(text: &str, names: &Names) -> String {
    let mut parts = text.split('$');
    let mut result = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let known = names.iter().filter(|(name, _)| part.starts_with(name.as_str()));
        match known.max_by_key(|(name, _)| name.len()) {
            Some((name, value)) => {
                result.push_str(value);
                result.push_str(&part[name.len()..]);
            }
            None => {
                result.push('$');
                result.push_str(part);
            }
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        [("t", "topic"), ("LATE", "1300")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    }

    fn read(source: &str) -> Vec<u8> {
        Text::parse(source).unwrap().bytes(&names())
    }

    #[test]
    fn escapes_repetitions_and_names_are_read() {
        assert_eq!(read(r#"\n\r\t\x00\xff\"\\\q"#), b"\n\r\t\x00\xff\"\\\\q");
        assert_eq!(read("x@3y @ a@b"), b"xaaay @ a@b");
        assert_eq!(read("$t$LATE a$b $"), b"topic1300 a$b $");
        assert_eq!(read("é\\x24t"), "é$t".as_bytes());
    }

    #[test]
    fn wrong_text_is_refused() {
        for wrong in ["\\x", "\\x0", "\\xzz", "\\x0é", "@99999999999"] {
            assert!(Text::parse(wrong).is_err(), "{wrong}");
        }
        assert!(Text::parse_quoted("\"open").is_err());
    }

    #[test]
    fn gos_own_quoting_can_stand_as_it_is() {
        let text = Text::parse(r#"name "\x01\t" is not valid"#).unwrap();
        assert!(text.is(br#"name "\x01\t" is not valid"#, &names()));
        assert!(text.is(b"name \"\x01\t\" is not valid", &names()));
        assert!(!text.is(b"name \"1\" is not valid", &names()));
    }
}
