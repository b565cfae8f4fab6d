//! Where the brokers' binaries are, and what a test does when they are nowhere.

use std::{
    env,
    ffi::OsStr,
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::{nsqd, nsqlookupd};

/// What builds them.
const SCRIPT: &str = "tests/interop/install-brokers.sh";

/// The brokers' binaries on this machine.
pub(crate) struct Brokers {
    nsqd: PathBuf,
    nsqlookupd: PathBuf,
}

impl Brokers {
    /// Looks for each binary in `$NSQD` and `$NSQLOOKUPD`, then in `target/brokers`, then on `$PATH`.
    ///
    /// When one is missing, says so in one line and answers `None`: the test returns.
    ///
    /// # Panics
    ///
    /// When a binary is missing and `$CI` is `true`, where a skipped test would pass for a tested promise. When `$NSQD`
    /// or `$NSQLOOKUPD` names no file: who sets it wants that binary and no other.
    pub(crate) fn find_or_skip() -> Option<Self> {
        let ci = env::var_os("CI").is_some_and(|value| value == "true");
        Some(Self {
            nsqd: found_or_skip("nsqd", SCRIPT, find("nsqd", "NSQD"), ci, &mut io::stderr())?,
            nsqlookupd: found_or_skip(
                "nsqlookupd",
                SCRIPT,
                find("nsqlookupd", "NSQLOOKUPD"),
                ci,
                &mut io::stderr(),
            )?,
        })
    }

    /// An nsqd to configure and start.
    pub(crate) fn nsqd(&self) -> nsqd::Builder {
        nsqd::Builder::new(&self.nsqd)
    }

    /// An nsqlookupd to configure and start.
    pub(crate) fn nsqlookupd(&self) -> nsqlookupd::Builder {
        nsqlookupd::Builder::new(&self.nsqlookupd)
    }
}

fn find(name: &str, variable: &str) -> Option<PathBuf> {
    if let Some(explicit) = env::var_os(variable) {
        let explicit = PathBuf::from(explicit);
        assert!(explicit.is_file(), "${variable} names no file: {}", explicit.display());
        return Some(explicit);
    }
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/brokers");
    find_in(name, &built, env::var_os("PATH").as_deref())
}

fn find_in(name: &str, built: &Path, path: Option<&OsStr>) -> Option<PathBuf> {
    let file = format!("{name}{}", env::consts::EXE_SUFFIX);
    let on_path = path
        .map(|path| env::split_paths(path).collect::<Vec<_>>())
        .unwrap_or_default();
    std::iter::once(built.to_path_buf())
        .chain(on_path)
        .map(|directory| directory.join(&file))
        .find(|candidate| candidate.is_file())
}

/// What a test needs and `script` installs, or a line that it is missing, or with `ci` a failure.
///
/// `out` is the handle of standard error: what `eprintln!` prints is hidden when the test passes.
pub(crate) fn found_or_skip(
    name: &str,
    script: &str,
    found: Option<PathBuf>,
    ci: bool,
    out: &mut impl Write,
) -> Option<PathBuf> {
    if found.is_none() {
        let missing = format!("{name} not found ({script} installs it)");
        assert!(!ci, "{missing}, and CI=true allows no skipped test");
        writeln!(out, "skipped: {missing}").expect("a line can be written");
    }
    found
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn built_binary_comes_before_one_on_the_path() {
        let (built, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = format!("nsqd{}", env::consts::EXE_SUFFIX);
        let path = Some(other.path().as_os_str());
        assert_eq!(find_in("nsqd", built.path(), path), None);
        fs::write(other.path().join(&file), "").unwrap();
        assert_eq!(find_in("nsqd", built.path(), path), Some(other.path().join(&file)));
        fs::write(built.path().join(&file), "").unwrap();
        assert_eq!(find_in("nsqd", built.path(), path), Some(built.path().join(&file)));
    }

    #[test]
    fn missing_binary_skips_on_a_users_machine() {
        let mut line = Vec::new();
        assert_eq!(found_or_skip("nsqd", SCRIPT, None, false, &mut line), None);
        assert_eq!(
            line,
            b"skipped: nsqd not found (tests/interop/install-brokers.sh installs it)\n"
        );
    }

    #[test]
    #[should_panic(expected = "CI=true allows no skipped test")]
    fn missing_binary_fails_in_ci() {
        found_or_skip("nsqd", SCRIPT, None, true, &mut io::sink());
    }
}
