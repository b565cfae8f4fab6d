//! Regular expressions of Go, written for the crate `regex`, whose syntax is nearly the same.

/// The largest count of a repetition in Go.
const MAX_COUNT: u32 = 1_000;

/// Writes a pattern of Go so that it means the same here; `None` for what Go refuses and would be understood here. Other
/// mistakes are left for the compiler to find.
pub(super) fn translate(pattern: &str) -> Option<String> {
    let mut translator = Translator {
        rest: pattern,
        out: String::with_capacity(pattern.len()),
        repeated: false,
    };
    while !translator.rest.is_empty() {
        translator.step()?;
    }
    Some(translator.out)
}

struct Translator<'a> {
    rest: &'a str,
    out: String,
    /// Whether the last token was a repetition, which Go does not let repeat.
    repeated: bool,
}

impl Translator<'_> {
    fn next(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let next = chars.next();
        self.rest = chars.as_str();
        next
    }

    fn skip(&mut self, prefix: &str) -> bool {
        let rest = self.rest.strip_prefix(prefix);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// Takes over all up to the end of `until`.
    fn copy_through(&mut self, until: &str) {
        let length = self.rest.find(until).map_or(self.rest.len(), |at| at + until.len());
        let (copied, rest) = self.rest.split_at(length);
        self.out.push_str(copied);
        self.rest = rest;
    }

    fn step(&mut self) -> Option<()> {
        let repeated = std::mem::replace(&mut self.repeated, false);
        match self.next()? {
            '\\' if self.skip("Q") => {
                let (literal, rest) = self.rest.split_once("\\E").unwrap_or((self.rest, ""));
                self.out.push_str(&regex::escape(literal));
                self.rest = rest;
            }
            '\\' => {
                self.escape()?;
            }
            '[' => self.class()?,
            '(' if self.rest.starts_with('?') => self.group()?,
            '{' => match self.counts() {
                None => self.out.push_str("\\{"),
                Some(Err(())) => return None,
                Some(Ok(length)) => {
                    let (counts, rest) = self.rest.split_at(length);
                    self.out.push('{');
                    self.out.push_str(counts);
                    self.rest = rest;
                    self.repetition(repeated)?;
                }
            },
            repetition @ ('*' | '+' | '?') => {
                self.out.push(repetition);
                self.repetition(repeated)?;
            }
            other => self.out.push(other),
        }
        Some(())
    }

    fn repetition(&mut self, repeated: bool) -> Option<()> {
        if repeated {
            return None;
        }
        if self.skip("?") {
            self.out.push('?');
        }
        self.repeated = true;
        Some(())
    }

    /// After `{`: how long the rest of a count is; an error if it is one out of range, nothing if it is none, which Go
    /// takes for a plain brace.
    fn counts(&self) -> Option<Result<usize, ()>> {
        let end = self.rest.find('}')?;
        let counts = &self.rest[..end];
        let (least, most) = counts.split_once(',').unwrap_or((counts, counts));
        let is_number = |text: &str| {
            !text.is_empty()
                && text.bytes().all(|digit| digit.is_ascii_digit())
                && (text == "0" || !text.starts_with('0'))
        };
        if !is_number(least) || !(most.is_empty() || is_number(most)) {
            return None;
        }
        let count = |text: &str| text.parse().unwrap_or(u32::MAX);
        let (least, most) = (count(least), if most.is_empty() { count(least) } else { count(most) });
        let in_range = least <= most && most <= MAX_COUNT;
        Some(if in_range { Ok(end + 1) } else { Err(()) })
    }

    /// After `(`: flags that Go does not have are refused, a name is taken over.
    fn group(&mut self) -> Option<()> {
        self.out.push('(');
        let end = self.rest.find([':', ')', '<', '=', '!']).unwrap_or(self.rest.len());
        let (flags, rest) = self.rest.split_at(end);
        if flags.contains(['x', 'u', 'R']) {
            return None;
        }
        self.out.push_str(flags);
        self.rest = rest;
        if rest.starts_with('<') {
            self.copy_through(">");
        }
        Some(())
    }

    /// After `\`. Returns whether it stands for a set of characters.
    fn escape(&mut self) -> Option<bool> {
        match self.next() {
            Some(digit @ '0'..='7') => {
                let more = self
                    .rest
                    .bytes()
                    .take(2)
                    .take_while(|digit| matches!(digit, b'0'..=b'7'));
                let more = more.count();
                if digit != '0' && more == 0 {
                    // A reference to a group.
                    return None;
                }
                let (digits, rest) = self.rest.split_at(more);
                let value = u32::from_str_radix(&format!("{digit}{digits}"), 8).ok()?;
                self.out.push_str(&format!("\\x{{{value:x}}}"));
                self.rest = rest;
            }
            Some('u' | 'U') => return None,
            Some(plain @ ('<' | '>')) => self.out.push(plain),
            Some(letter @ ('p' | 'P' | 'x')) => {
                self.out.extend(['\\', letter]);
                if self.rest.starts_with('{') {
                    self.copy_through("}");
                }
                return Some(letter != 'x');
            }
            Some(other) => {
                self.out.extend(['\\', other]);
                return Some(matches!(other, 'd' | 'D' | 's' | 'S' | 'w' | 'W'));
            }
            None => self.out.push('\\'),
        }
        Some(false)
    }

    /// After `[`. Go has neither classes within classes nor set operations.
    fn class(&mut self) -> Option<()> {
        self.out.push('[');
        if self.skip("^") {
            self.out.push('^');
        }
        let mut first = true;
        // Whether what stands before can begin a range.
        let mut starts_range = false;
        loop {
            let next = self.next()?;
            let mut single = true;
            match next {
                ']' if !first => {
                    self.out.push(']');
                    return Some(());
                }
                '[' if self.rest.starts_with(':') && self.rest.contains(":]") => {
                    self.out.push('[');
                    self.copy_through(":]");
                    single = false;
                }
                '\\' => single = !self.escape()?,
                '-' if starts_range && !self.rest.starts_with(']') => {
                    self.out.push('-');
                    // The end of the range; a hyphen is one, too.
                    if self.skip("-") {
                        self.out.push_str("\\-");
                    } else if self.skip("\\") {
                        self.escape()?;
                    } else {
                        let end = self.next()?;
                        push_plain(&mut self.out, end);
                    }
                    single = false;
                }
                other => push_plain(&mut self.out, other),
            }
            starts_range = single;
            first = false;
        }
    }
}

/// A character of a class, without any other meaning.
fn push_plain(out: &mut String, char: char) {
    if matches!(char, '[' | ']' | '&' | '~' | '-' | '^') {
        out.push('\\');
    }
    out.push(char);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_something_else_is_rewritten() {
        for (go, ours) in [
            ("^a.*|b$", "^a.*|b$"),
            ("a{2", "a\\{2"),
            ("a{,2}", "a\\{,2}"),
            ("a{2,}?b{3}", "a{2,}?b{3}"),
            ("\\Qa.b\\E+", "a\\.b+"),
            ("\\Qa.b", "a\\.b"),
            ("\\164\\0", "\\x{74}\\x{0}"),
            ("\\<t\\.", "<t\\."),
            ("\\p{Greek}\\x{74}\\pL", "\\p{Greek}\\x{74}\\pL"),
            ("[[t]]", "[\\[t]]"),
            ("[]a]", "[\\]a]"),
            ("[^]a-]", "[^\\]a\\-]"),
            ("[a&&t~~-z]", "[a\\&\\&t\\~\\~-z]"),
            ("[[:alpha:]-z\\d-9]", "[[:alpha:]\\-z\\d\\-9]"),
            ("[a-c-e]", "[a-c\\-e]"),
            ("(?i)a(?P<n>b)(?<m>c)(?:d)", "(?i)a(?P<n>b)(?<m>c)(?:d)"),
        ] {
            assert_eq!(translate(go).as_deref(), Some(ours), "{go}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused() {
        for refused in [
            "t++", "t*?*", "t{2}{2}", "a{1001}", "a{3,2}", "\\1", "\\u0074", "(?x) t", "(?u)t", "(?iR)t", "[a",
        ] {
            assert_eq!(translate(refused), None, "{refused}");
        }
    }
}
