//! The arguments of a query, by the rules of Go's `net/url`.

/// The arguments of a query.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::test_server) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a query; `None` if it is malformed: an escape that is none, or a semicolon.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut arguments = Vec::new();
        for argument in text.split('&').filter(|argument| !argument.is_empty()) {
            if argument.contains(';') {
                return None;
            }
            let (name, value) = argument.split_once('=').unwrap_or((argument, ""));
            arguments.push((decode(name, true)?, decode(value, true)?));
        }
        Some(Self(arguments))
    }

    /// The first value of an argument.
    pub(in crate::test_server) fn get(&self, name: &str) -> Option<&str> {
        let mut values = self.0.iter().filter(|(key, _)| key == name).map(|(_, value)| value);
        values.next().map(String::as_str)
    }
}

/// Takes the escapes out; `None` if one is malformed. Bytes that are no UTF-8 are replaced.
pub(super) fn decode(text: &str, plus_is_space: bool) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match first {
            b'%' => {
                let digits = std::str::from_utf8(after.get(..2)?).ok()?;
                // A sign would be read as part of the number.
                if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                    return None;
                }
                decoded.push(u8::from_str_radix(digits, 16).ok()?);
                rest = &after[2..];
            }
            b'+' if plus_is_space => decoded.push(b' '),
            other => decoded.push(*other),
        }
    }
    Some(String::from_utf8_lossy(&decoded).into_owned())
}

/// Encodes arguments as a form, in the order given. Go's `url.Values` are sorted by name: so should these be.
pub(in crate::test_server) fn encode(arguments: &[(&str, &[u8])]) -> String {
    let mut encoded = String::new();
    for (name, value) in arguments {
        if !encoded.is_empty() {
            encoded.push('&');
        }
        escape(name.as_bytes(), &mut encoded);
        encoded.push('=');
        escape(value, &mut encoded);
    }
    encoded
}

fn escape(text: &[u8], out: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.iter().copied() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            b' ' => out.push('+'),
            other => {
                out.push('%');
                out.push(char::from(DIGITS[usize::from(other >> 4)]));
                out.push(char::from(DIGITS[usize::from(other & 15)]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_of_an_argument_wins() {
        let query = Query::parse("a=1&topic=t%23ephemeral&&topic=u&b&=c").unwrap();
        assert_eq!(query.get("topic"), Some("t#ephemeral"));
        assert_eq!(
            (query.get("b"), query.get(""), query.get("c")),
            (Some(""), Some("c"), None)
        );
        assert_eq!(Query::parse("topic=a+b").unwrap().get("topic"), Some("a b"));
    }

    #[test]
    fn malformed_queries_are_noticed() {
        for malformed in ["a=%", "a=%4", "a=%zz", "a=%+1", "%zz=a", "a=1;b=2"] {
            assert_eq!(Query::parse(malformed), None, "{malformed}");
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let encoded = encode(&[("secret", "a b&c=d/é%~".as_bytes()), ("tls", b"true")]);
        assert_eq!(encoded, "secret=a+b%26c%3Dd%2F%C3%A9%25~&tls=true");
        let query = Query::parse(&encoded).unwrap();
        assert_eq!(query.get("secret"), Some("a b&c=d/é%~"));
    }
}
