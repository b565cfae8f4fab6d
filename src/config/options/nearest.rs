//! Which name was meant.

/// Longer names are not compared: they are no slips of a pen.
const LONGEST: usize = 64;

/// The one of `names` that is most like `name`, if any is like it. Capitals, hyphens and underscores do not count, so
/// that the names of fields and flags in other programs are understood.
pub(super) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let given = letters(name);
    if given.is_empty() || given.len() > LONGEST {
        return None;
    }
    let distances = names.map(|name| {
        let letters = letters(name);
        let apart = distance(&given, &letters);
        // Letters of which a third are wrong are another word.
        (apart <= letters.len().max(given.len()) / 3, apart, name)
    });
    let (_, _, name) = distances
        .filter(|(is_like, ..)| *is_like)
        .min_by_key(|(_, apart, _)| *apart)?;
    Some(name)
}

fn letters(name: &str) -> Vec<char> {
    let letters = name.chars().filter(|letter| !matches!(letter, '_' | '-' | '.' | ' '));
    letters.flat_map(char::to_lowercase).take(LONGEST + 1).collect()
}

/// How many letters have to be put in, taken out or changed.
fn distance(from: &[char], to: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let changed = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 4] = ["max_in_flight", "max_attempts", "low_rdy_timeout", "snappy"];

    #[test]
    fn slips_and_other_spellings_are_understood() {
        for (given, meant) in [
            ("max_in_fligth", "max_in_flight"),
            ("MaxInFlight", "max_in_flight"),
            ("MAX-ATTEMPT", "max_attempts"),
            ("low_ready_timeout", "low_rdy_timeout"),
            ("snapy", "snappy"),
        ] {
            assert_eq!(nearest(given, NAMES.into_iter()), Some(meant), "{given}");
        }
    }

    #[test]
    fn nothing_is_suggested_for_what_is_like_nothing() {
        for given in ["", "_", "path", "colour", "max", &"snappy".repeat(1000)] {
            assert_eq!(nearest(given, NAMES.into_iter()), None, "{given}");
        }
    }

    #[test]
    fn the_distance_is_the_number_of_changes() {
        let apart = |from: &str, to: &str| distance(&letters(from), &letters(to));
        assert_eq!(apart("kitten", "sitting"), 3);
        assert_eq!(apart("", "abc"), 3);
        assert_eq!(apart("abc", ""), 3);
        assert_eq!(apart("same", "same"), 0);
    }
}
