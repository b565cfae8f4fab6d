//! Tables: files of lines, read into steps.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use super::step::Step;

/// More tables, as paths with colons between.
const MORE: &str = "CONFORMANCE_TABLES";

/// Runs only the lines with these ids, with commas between.
const ONLY: &str = "CONFORMANCE_LINES";

/// One line of a table.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// File and number.
    pub(crate) place: String,
    pub(crate) source: String,
    pub(crate) id: String,
    pub(crate) options: Vec<BrokerOption>,
    pub(crate) steps: Vec<Step>,
}

/// `name` or `name=value` between the brackets of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BrokerOption {
    pub(crate) name: String,
    pub(crate) value: Option<String>,
}

impl Line {
    pub(crate) fn parse(place: &str, source: &str) -> Result<Self, String> {
        let wrong = |why: String| format!("{place}: {source}\n    {why}");
        let (id, rest) = source.split_once(' ').ok_or_else(|| wrong("no steps".to_owned()))?;
        let (options, steps) = match rest.trim_start().strip_prefix('[') {
            Some(rest) => rest
                .split_once("] ")
                .ok_or_else(|| wrong("the options do not end".to_owned()))?,
            None => ("", rest),
        };
        let steps = split_steps(steps).into_iter().map(|step| Step::parse(step.trim()));
        Ok(Self {
            place: place.to_owned(),
            source: source.to_owned(),
            id: id.to_owned(),
            options: split_options(options),
            steps: steps.collect::<Result<_, _>>().map_err(wrong)?,
        })
    }

    pub(crate) fn option(&self, name: &str) -> Option<&BrokerOption> {
        self.options.iter().find(|option| option.name == name)
    }

    /// Whether the line can share its broker with others: it has no options, and names nothing but its own topics.
    pub(crate) fn can_share(&self) -> bool {
        let own_names = self.source.contains("$t") || self.source.contains("$u");
        let whole_broker = ["/stats", "/config", "/info", "/debug"];
        let looks_around = |part: &str| self.source.contains(part) && !self.source.contains("topic=$");
        self.options.is_empty() && own_names && !whole_broker.into_iter().any(looks_around)
    }
}

/// Steps stand between ` ; `, but for those within a quoted text.
fn split_steps(text: &str) -> Vec<&str> {
    let mut steps = Vec::new();
    let (mut start, mut quoted, mut escaped) = (0, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'"' if !escaped => quoted = !quoted,
            b' ' if !quoted && text[at..].starts_with(" ; ") && at >= start => {
                steps.push(&text[start..at]);
                start = at + 3;
            }
            _ => {}
        }
        escaped = byte == b'\\' && !escaped;
    }
    if quoted {
        // An expected text with a quotation mark of its own.
        return text.split(" ; ").collect();
    }
    steps.push(&text[start..]);
    steps
}

/// Options stand between commas; what begins with no letter belongs to the value before it.
fn split_options(text: &str) -> Vec<BrokerOption> {
    let mut options: Vec<BrokerOption> = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let value = options.last_mut().and_then(|option| option.value.as_mut());
        match value {
            Some(value) if !part.starts_with(|c: char| c.is_ascii_lowercase()) => *value = format!("{value},{part}"),
            _ => {
                let (name, value) = match part.split_once('=') {
                    Some((name, value)) => (name, Some(value.to_owned())),
                    None => (part, None),
                };
                let name = name.trim_start_matches('-').to_owned();
                options.push(BrokerOption { name, value });
            }
        }
    }
    options
}

/// All lines of this folder's tables and of those that the environment names.
///
/// # Errors
///
/// What cannot be read, with file and number of the line.
pub(crate) fn load() -> Result<Vec<Line>, String> {
    let mut files = own_tables();
    files.extend(
        env::var_os(MORE)
            .iter()
            .flat_map(env::split_paths)
            .filter(|path| path != Path::new("")),
    );
    let mut lines = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        let before = lines.len();
        lines.extend(read(&file.display().to_string(), &text)?);
        if lines.len() == before {
            return Err(format!("{} has no lines", file.display()));
        }
    }
    if let Ok(only) = env::var(ONLY) {
        lines.retain(|line| only.split(',').any(|id| id == line.id));
        if lines.is_empty() {
            return Err(format!("no table has the lines {only} of ${ONLY}"));
        }
    }
    Ok(lines)
}

fn own_tables() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance");
    let entries = fs::read_dir(folder).expect("the folder of the tables");
    let paths = entries.map(|entry| entry.expect("an entry of the folder").path());
    let mut tables: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|ext| ext == "txt"))
        .collect();
    tables.sort();
    tables
}

/// The lines of a table: plain, or within the `text` fences of a Markdown page. Comments and empty lines are passed over.
pub(crate) fn read(name: &str, text: &str) -> Result<Vec<Line>, String> {
    let fence = |line: &str| line.trim_start().strip_prefix("```").map(|info| info.trim() == "text");
    let markdown = text.lines().any(|line| fence(line) == Some(true));
    let (mut inside, mut wanted) = (false, !markdown);
    let mut lines = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if let Some(text) = fence(line).filter(|_| markdown) {
            inside = !inside;
            wanted = inside && text;
            continue;
        }
        let line = line.trim();
        if wanted && !line.is_empty() && !line.starts_with('#') {
            lines.push(Line::parse(&format!("{name}:{}", number + 1), line)?);
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn line(source: &str) -> Line {
        Line::parse("here", source).unwrap()
    }

    #[test]
    fn a_line_is_taken_apart() {
        let line = line("X01 [auth,tls-cert, mem-queue-size=2,e2e=1.0,0.9] > PUB $t <<\"a ; b\" ; < R OK");
        assert_eq!((line.id.as_str(), line.steps.len()), ("X01", 2));
        let option = |name: &str, value: Option<&str>| BrokerOption {
            name: name.to_owned(),
            value: value.map(str::to_owned),
        };
        let expected = [
            option("auth", None),
            option("tls-cert", None),
            option("mem-queue-size", Some("2")),
            option("e2e", Some("1.0,0.9")),
        ];
        assert_eq!(line.options, expected);
    }

    #[test]
    fn quotation_marks_of_an_expected_text_do_not_hide_steps() {
        assert_eq!(line("X01 < E name \"a$\" is not valid ; < X").steps.len(), 2);
        assert_eq!(line("X01 < E name \"a\\\"\" is not valid ; < X").steps.len(), 2);
        assert_eq!(line("X01 < E one \" only ; < X").steps.len(), 2);
    }

    #[test]
    fn a_wrong_line_is_named_with_its_place() {
        let why = read("table", "# comment\n\nX01 > NOP ; jump\n").unwrap_err();
        assert!(why.starts_with("table:3: X01 > NOP ; jump\n"), "{why}");
        assert!(read("table", "X01").is_err());
        assert!(read("table", "X01 [tls-cert > NOP").is_err());
    }

    #[test]
    fn only_text_fences_of_markdown_are_read() {
        let page = "X\n```\nnot this\n```\n```text\n# no\nX01 > NOP\n```\nnor this\n```text\nX02 > NOP\n```\n";
        let ids: Vec<_> = read("page", page).unwrap().into_iter().map(|line| line.id).collect();
        assert_eq!(ids, ["X01", "X02"]);
        assert_eq!(read("plain", "X01 > NOP\r\nX02 > NOP").unwrap().len(), 2);
    }

    #[test]
    fn only_lines_with_names_of_their_own_share_a_broker() {
        assert!(line("X01 > PUB $t <<\"x\"").can_share());
        assert!(line("X01 http GET /stats?topic=$t = 200").can_share());
        assert!(!line("X01 http GET /stats = 200 ~\"$t\"").can_share());
        assert!(!line("X01 > SUB t c").can_share());
        assert!(!line("X01 [fresh] > PUB $t <<\"x\"").can_share());
    }

    #[test]
    fn no_id_stands_twice_in_the_tables() {
        let mut ids = BTreeSet::new();
        for table in own_tables() {
            for line in read("table", &fs::read_to_string(table).unwrap()).unwrap() {
                assert!(ids.insert(line.id.clone()), "{} stands twice", line.id);
            }
        }
        assert!(ids.len() > 100, "only {} lines were found", ids.len());
    }
}
