//! The programs: where they are, and what they print.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;
use std::{env, io};

use tokio::process::Command;
use tokio::time::timeout;

use crate::broker::found_or_skip;

/// What the names of a program's topics begin with.
pub(super) const TOPIC: &str = "interop";

/// A program gives up by itself after 30 s.
const DEADLINE: Duration = Duration::from_secs(60);

/// A client library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Client {
    GoNsq,
    Pynsq,
    Nsqjs,
}

impl Client {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::GoNsq => "go-nsq",
            Self::Pynsq => "pynsq",
            Self::Nsqjs => "nsqjs",
        }
    }

    /// Looks for the client in `target/clients`.
    ///
    /// When it is missing, says so in one line and answers `None`: the test returns.
    ///
    /// # Panics
    ///
    /// When it is missing and `$CI` is `true`, where a skipped test would pass for a tested promise.
    pub(super) fn find_or_skip(self) -> Option<Program> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (installed, sources) = (root.join("target/clients"), root.join("tests/interop"));
        let exe = env::consts::EXE_SUFFIX;
        // The last that the script makes, what runs, and the program if that is not it.
        let (made, runs, program) = match self {
            Self::GoNsq => {
                let client = installed.join(format!("go/client{exe}"));
                (client.clone(), client, None)
            }
            Self::Pynsq => (
                installed.join("python/installed"),
                installed.join("python/bin/python"),
                Some(sources.join("python/client.py")),
            ),
            Self::Nsqjs => (
                installed.join("node/installed"),
                PathBuf::from("node"),
                Some(sources.join("node/client.js")),
            ),
        };
        let made = made.is_file().then_some(made);
        let ci = env::var_os("CI").is_some_and(|value| value == "true");
        found_or_skip(
            self.name(),
            "tests/interop/install-clients.sh",
            made,
            ci,
            &mut io::stderr(),
        )?;
        Some(Program {
            client: self,
            runs,
            program,
            node_path: installed.join("node/node_modules"),
        })
    }
}

/// A program that can be run.
pub(super) struct Program {
    client: Client,
    runs: PathBuf,
    program: Option<PathBuf>,
    node_path: PathBuf,
}

impl Program {
    /// Runs all scenarios. Dropping the future kills the program.
    pub(super) async fn run(&self, arguments: &[String]) -> Printed {
        let child = Command::new(&self.runs)
            .args(&self.program)
            .args(arguments)
            .args(["--topic", TOPIC, "--channel", super::CHANNEL])
            .env("NODE_PATH", &self.node_path)
            // Python would leave its compiled files among the sources.
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not run: {error}", self.runs.display()));
        let output = timeout(DEADLINE, child.wait_with_output()).await;
        let output = output.unwrap_or_else(|_| panic!("the program of {} does not end", self.client.name()));
        Printed {
            client: self.client,
            output: output.unwrap(),
        }
    }
}

/// What a program has printed.
pub(super) struct Printed {
    client: Client,
    output: Output,
}

impl Printed {
    /// # Panics
    ///
    /// Unless every scenario is reported to be right, and nothing else is reported.
    pub(super) fn check(&self) {
        let Output { status, stdout, stderr } = &self.output;
        let stdout = String::from_utf8_lossy(stdout);
        let mut lines: Vec<_> = stdout.lines().collect();
        lines.sort_unstable();
        let mut expected: Vec<_> = super::records::LEFT
            .iter()
            .map(|left| format!("ok {}", left.scenario))
            .collect();
        expected.sort_unstable();
        assert!(
            status.success() && lines == expected,
            "the program of {} ended with {status}\n--- its answer\n{stdout}\n--- its log\n{}",
            self.client.name(),
            String::from_utf8_lossy(stderr)
        );
    }
}
