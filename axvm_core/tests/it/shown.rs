//! How AxVM's text looks where people read it: on a terminal of 80 columns, on a dumb one, through `head`.
//!
//! ```text
//!   axvm doctor --> terminal, 80 columns   lines end between words, colour unless it is unwanted
//!               --> file or pipe           whole lines, no colour
//!               --> closed pipe            no error: the reader has seen enough
//! ```

use crate::common;

use std::io::Read;
use std::process::{Command, Stdio};

use common::terminal::Terminal;
use common::{AXVM, has_kvm};

const COLUMNS: u16 = 80;

/// What `axvm WORDS` shows on a terminal, output and errors; and its exit code.
fn on_terminal(words: &str, environment: &[(&str, &str)]) -> (String, Option<i32>) {
    let Terminal { user, program } = Terminal::new();
    let end = || program.try_clone().unwrap();
    let mut command = Command::new(AXVM);
    for unwanted in ["NO_COLOR", "CI", "CLICOLOR", "CLICOLOR_FORCE"] {
        command.env_remove(unwanted);
    }
    command.args(words.split(' ')).env("TERM", "xterm").envs(environment.iter().copied());
    let mut axvm = command.stdin(Stdio::null()).stdout(end()).stderr(end()).spawn().unwrap();
    // The command holds ends of the terminal, too.
    drop((command, program));
    let mut shown = Vec::new();
    // A terminal that no program has open any more reports an error, not an end.
    let _ = std::fs::File::from(user).read_to_end(&mut shown);
    (String::from_utf8_lossy(&shown).into_owned(), axvm.wait().unwrap().code())
}

/// The text without colours.
fn plain(text: &str) -> String {
    let mut parts = text.split('\x1b');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once('m').map_or("", |(_, rest)| rest))
}

#[test]
fn on_a_terminal_lines_end_between_words() {
    let impossible = "run -k no/such/kernel --append x -c 2 --memory 513M --hugepages 2M --console none --name web";
    let refused = ["run --cpus 4,dies=2", "run --memory lots", "frobnicate", "ctl nothing status", impossible];
    for words in refused.iter().chain(["doctor", "selftest"].iter().filter(|_| has_kvm())) {
        let (shown, _) = on_terminal(words, &[]);
        let shown = plain(&shown);
        assert!(!shown.is_empty(), "axvm {words}");
        for line in shown.lines().filter(|line| line.chars().count() > COLUMNS.into()) {
            // A word may be longer than a line.
            assert!(!line.trim_start().contains(' '), "axvm {words}: {line:?} in {shown}");
        }
    }
}

#[test]
fn a_machine_is_shown_as_wide_as_the_terminal_is_and_in_colour() {
    let kernel = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&kernel, axvm_guest::selftest()).unwrap();
    let words = format!("inspect --name x -c 1 --only memory,devices,acpi,registers -k {}", kernel.path().display());
    let (shown, code) = on_terminal(&words, &[]);
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.contains("\x1b[1mMemory\x1b[0m"), "{shown}");
    let widest = plain(&shown).lines().map(|line| line.chars().count()).max();
    assert!(widest <= Some(COLUMNS.into()), "{widest:?}: {shown}");
    assert!(!on_terminal(&words, &[("NO_COLOR", "1")]).0.contains('\x1b'));
}

#[test]
fn colour_is_only_where_it_is_wanted() {
    // What other programs ask, too, and this one does not.
    let others = [None, Some(("CI", "true")), Some(("CLICOLOR", "0")), Some(("CLICOLOR_FORCE", "1"))];
    for (words, other) in ["doctor", "--help"].into_iter().flat_map(|words| others.map(|other| (words, other))) {
        for (ours, wanted) in [(None, true), (Some(("TERM", "dumb")), false), (Some(("NO_COLOR", "1")), false)] {
            let environment: Vec<_> = other.into_iter().chain(ours).collect();
            let has_colour = on_terminal(words, &environment).0.contains('\x1b');
            assert_eq!(has_colour, wanted, "axvm {words} with {environment:?}");
        }
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let pages = [
        "--help",
        "run --help",
        "help",
        "--version",
        "ps",
        "ps --json",
        "doctor",
        "config --schema",
        "man",
        "completions bash",
    ];
    for words in pages.iter().chain(["selftest"].iter().filter(|_| has_kvm())) {
        let run = |output: Stdio| {
            let mut command = Command::new(AXVM);
            command.args(words.split(' ')).env("XDG_RUNTIME_DIR", "/nonexistent").stdin(Stdio::null()).stdout(output);
            command.output().unwrap()
        };
        let (read, mut closed) = (run(Stdio::piped()), Vec::new());
        for _ in 0..3 {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            closed.push(run(writer.into()));
        }
        for output in closed {
            let same = (output.status, output.stderr) == (read.status, read.stderr.clone());
            assert!(same, "axvm {words}: {:?}, not {read:?}", output.status);
        }
    }
}
