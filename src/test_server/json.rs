//! JSON as Go's `encoding/json` writes and reads it.

use std::io;

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};
use serde_json::{Map, Value};

/// Writes a value: the fields of a struct in their order, and what means something to HTML escaped.
pub(super) fn to_vec<T: Serialize>(value: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    let written = value.serialize(&mut Serializer::with_formatter(&mut out, GoFormatter));
    debug_assert!(written.is_ok(), "structs of texts, numbers and lists serialize always");
    out
}

struct GoFormatter;

impl Formatter for GoFormatter {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(['<', '>', '&', '\u{2028}', '\u{2029}']) {
            writer.write_all(&rest.as_bytes()[..at])?;
            let mut after = rest[at..].chars();
            if let Some(special) = after.next() {
                write!(writer, "\\u{:04x}", u32::from(special))?;
            }
            rest = after.as_str();
        }
        writer.write_all(rest.as_bytes())
    }
}

/// A text as Go's reader takes it: in place of what is no UTF-8 and of half a surrogate pair stands U+FFFD.
pub(super) fn readable(text: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(text).into_owned();
    let mut at = 0;
    while let Some(found) = text[at..].find('\\') {
        at += found;
        match (surrogate(&text[at..]), text.get(at + 6..).and_then(surrogate)) {
            (Some(Half::High), Some(Half::Low)) => at += 12,
            (Some(_), _) => {
                text.replace_range(at..at + 6, "\\ufffd");
                at += 6;
            }
            (None, _) => at += 1 + text[at + 1..].chars().next().map_or(0, char::len_utf8),
        }
    }
    text
}

enum Half {
    High,
    Low,
}

/// Whether the text begins with half a pair, as an escape.
fn surrogate(text: &str) -> Option<Half> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    match u16::from_str_radix(digits, 16).ok()? {
        0xd800..=0xdbff => Some(Half::High),
        0xdc00..=0xdfff => Some(Half::Low),
        _ => None,
    }
}

/// The members of an object, read by Go's rules: keys in any case, `null` as absent, integers without fraction or
/// exponent, unknown keys ignored. A bare `null` is an object without members.
pub(super) struct Members(Map<String, Value>);

/// The value is not of the type that Go expects.
#[derive(Debug)]
pub(super) struct Mismatch;

impl Members {
    pub(super) fn read(text: &[u8]) -> Result<Self, Mismatch> {
        let value = serde_json::from_str(&readable(text)).map_err(|_| Mismatch)?;
        Self::of(value)
    }

    pub(super) fn of(value: Value) -> Result<Self, Mismatch> {
        let members = match value {
            Value::Object(members) => members,
            Value::Null => Map::new(),
            _ => return Err(Mismatch),
        };
        let members = members.into_iter().filter(|(_, value)| !value.is_null());
        Ok(Self(
            members.map(|(key, value)| (key.to_ascii_lowercase(), value)).collect(),
        ))
    }

    /// Takes a text; an absent one is empty.
    pub(super) fn text(&mut self, key: &str) -> Result<String, Mismatch> {
        match self.0.remove(key) {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(Mismatch),
        }
    }

    /// Takes an integer; an absent one is 0.
    pub(super) fn integer(&mut self, key: &str) -> Result<i64, Mismatch> {
        self.0.remove(key).map_or(Ok(0), |value| value.as_i64().ok_or(Mismatch))
    }

    /// Takes a list; an absent one is empty.
    pub(super) fn list(&mut self, key: &str) -> Result<Vec<Value>, Mismatch> {
        match self.0.remove(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(values)) => Ok(values),
            Some(_) => Err(Mismatch),
        }
    }

    /// Takes a list of texts; a `null` within it is an empty text.
    pub(super) fn texts(&mut self, key: &str) -> Result<Vec<String>, Mismatch> {
        let values = self.list(key)?.into_iter();
        let texts = values.map(|value| match value {
            Value::String(text) => Ok(text),
            Value::Null => Ok(String::new()),
            _ => Err(Mismatch),
        });
        texts.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_something_to_html_is_escaped() {
        assert_eq!(
            to_vec(&["<a>&\u{2028}é\n\""]),
            br#"["\u003ca\u003e\u0026\u2028"#.iter().copied().chain("é\\n\\\"\"]".bytes()).collect::<Vec<_>>()
        );
    }

    #[test]
    fn half_a_pair_is_replaced() {
        for (text, expected) in [
            (r#"\ud800"#, r#"\ufffd"#),
            (r#"\uDC00\ud83e\uDD80x"#, r#"\ufffd\ud83e\uDD80x"#),
            (r#"\ud800\ud83e\udd80"#, r#"\ufffd\ud83e\udd80"#),
            (r#"\\ud800\é\u00e9\"#, r#"\\ud800\é\u00e9\"#),
            (r#"\ud8"#, r#"\ud8"#),
        ] {
            assert_eq!(readable(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn members_are_read_by_the_rules_of_go() {
        let mut members = Members::read(br#"{"A":"x","b":7,"c":null,"d":7.0,"e":["y",null],"zz":{}}"#).unwrap();
        assert_eq!(members.text("a").unwrap(), "x");
        assert_eq!(members.integer("b").unwrap(), 7);
        assert_eq!(members.integer("c").unwrap(), 0);
        assert!(members.integer("d").is_err());
        assert_eq!(members.texts("e").unwrap(), ["y", ""]);
        assert!(Members::read(b"null").is_ok());
        for refused in ["[]", "{} x", "", "7"] {
            assert!(Members::read(refused.as_bytes()).is_err(), "{refused}");
        }
    }
}
