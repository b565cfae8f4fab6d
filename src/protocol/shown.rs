//! What a peer has said, for errors and logs.

use std::fmt::Write as _;

/// nsqd's longest texts name a topic, a channel and a cause.
const LONGEST: usize = 512;

/// The text of an error frame or another answer in a form that fits into an error or a line of the log: cut off after 512
/// bytes, and on one line.
pub(crate) fn shown(text: &[u8]) -> String {
    let kept = &text[..text.len().min(LONGEST)];
    let mut shown = String::with_capacity(kept.len());
    for character in String::from_utf8_lossy(kept).chars() {
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    if kept.len() < text.len() {
        // Writing to a string cannot fail.
        let _never_fails = write!(shown, "... ({} bytes)", text.len());
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n4_what_a_peer_says_is_shown_on_one_line_and_not_without_end() {
        let usual = "E_BAD_TOPIC PUB topic name \"a b\" is not valid";
        assert_eq!(shown(usual.as_bytes()), usual);
        assert_eq!(
            shown(b"E_X \xff\n2026 ERROR forged\x1b[2J"),
            "E_X \u{fffd}\\n2026 ERROR forged\\u{1b}[2J"
        );
        let long = shown("\u{e9}".repeat(100_000).as_bytes());
        assert!(long.ends_with("... (200000 bytes)") && long.len() < 600, "{long}");
        assert!(shown(&[0; 1_000_000]).len() < 6 * LONGEST + 100);
    }
}
