//! What clap finds wrong with the command line, in AxVM's own words: one line, as all other errors are.
//!
//! ```text
//!   clap::Error: InvalidValue, --entry <ENTRY>, 16, [32, 64, pvh]  -->  --entry 16: not one of 32, 64, pvh
//! ```
//!
//! Help and version are no mistakes: clap prints these pages itself.

use std::error::Error as _;
use std::ffi::OsString;
use std::num::ParseIntError;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory};

use super::{Cli, habits};
use crate::error::ConfigError;

/// What is wrong with `words`, the command line after the program's name; none if clap has a page to print.
pub fn told(error: &clap::Error, words: &[String]) -> Option<ConfigError> {
    let mut program = Cli::command();
    program.build();
    let command = words.first().and_then(|word| program.find_subcommand(word));
    let name = command.map_or_else(|| "axvm run".to_owned(), |command| format!("axvm {}", command.get_name()));
    let more = format!("{name} --help tells more");
    Some(match error.kind() {
        ErrorKind::InvalidUtf8 => no_text(std::env::args_os().skip(1))?,
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            return None;
        }
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => value(error)?,
        ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand => unknown(error, command, &more)?,
        ErrorKind::ArgumentConflict => conflict(error)?,
        ErrorKind::MissingRequiredArgument => {
            let missing = texts(error, ContextKind::InvalidArg).join(" and ");
            ConfigError::words(name, format!("{missing} is missing; {more}"))
        }
        ErrorKind::MissingSubcommand => {
            let mut innermost = command?;
            for word in words.iter().skip(1) {
                innermost = innermost.find_subcommand(word).unwrap_or(innermost);
            }
            ConfigError::words(name, format!("what to do is missing; there are {}", names(innermost)))
        }
        _ => ConfigError::words(name, format!("{}; {more}", first_line(error))),
    })
}

/// The first word that is not UTF-8 though it must be, with its option. What has none is a kernel or a machine.
fn no_text(words: impl Iterator<Item = OsString>) -> Option<ConfigError> {
    let mut before = None;
    for word in words {
        let text = word.to_string_lossy().into_owned();
        let (option, value) = match text.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (Some(name.to_owned()), value),
            _ if text.starts_with("--") => (Some(text.clone()), ""),
            _ => match text.split_at_checked(2).filter(|(name, _)| name.starts_with('-')) {
                Some((name, value)) => (Some(name.to_owned()), value),
                None => (before.take(), &*text),
            },
        };
        if word.to_str().is_none()
            && let Some(option) = option.as_ref().filter(|option| !ANY_BYTES.contains(&&***option))
        {
            let why = "not UTF-8; only the file names of --kernel, --initrd, --disk, --api-sock and --config may be so";
            return Some(ConfigError::option(option, value, why));
        }
        before = option.filter(|_| text.starts_with('-') && value.is_empty());
    }
    None
}

/// Options whose values are names of files, in whatever bytes the host has.
const ANY_BYTES: [&str; 8] = ["--kernel", "--initrd", "--disk", "--api-sock", "--config", "-k", "-i", "-d"];

/// A value that its option cannot have, or none.
fn value(error: &clap::Error) -> Option<ConfigError> {
    let shown = text(error, ContextKind::InvalidArg)?;
    let option = name_of(&shown);
    let value = text(error, ContextKind::InvalidValue)?;
    let possible = texts(error, ContextKind::ValidValue).join(", ");
    let why = match error.source() {
        Some(why) if why.is::<ParseIntError>() => "not a whole number".into(),
        Some(why) => habits::with_hint(why.to_string()),
        None if !value.is_empty() => format!("not one of {possible}"),
        None if possible.is_empty() => format!("a value is missing; write {shown}"),
        None => format!("a value is missing; there are {possible}"),
    };
    Some(if value.is_empty() { ConfigError::words(option, why) } else { ConfigError::option(&option, value, why) })
}

/// An option, a command or another word that nothing takes.
fn unknown(error: &clap::Error, command: Option<&Command>, more: &str) -> Option<ConfigError> {
    let word = text(error, ContextKind::InvalidArg).or_else(|| text(error, ContextKind::InvalidSubcommand))?;
    if word.starts_with('-') {
        let alike = text(error, ContextKind::SuggestedArg).map(|option| format!("did you mean {option}? "));
        return Some(ConfigError::word("option", &word, alike.unwrap_or_default() + more));
    }
    if command.is_some_and(|command| command.get_name() == "exec") {
        let meant = format!("a command comes after two dashes: axvm exec MACHINE -- {word}; {more}");
        return Some(ConfigError::word("place here for", &word, meant));
    }
    let choices = command
        .filter(|command| command.has_subcommands())
        .map(|command| ConfigError::word("command", &word, format!("for a machine there are {}", names(command))));
    Some(choices.unwrap_or_else(|| ConfigError::word("place here for", &word, more)))
}

fn conflict(error: &clap::Error) -> Option<ConfigError> {
    let option = name_of(&text(error, ContextKind::InvalidArg)?);
    let others: Vec<String> = texts(error, ContextKind::PriorArg).iter().map(|other| name_of(other)).collect();
    Some(match others.contains(&option) || others.is_empty() {
        true => ConfigError::words(option, "given twice; give it once"),
        false => {
            let why = format!("does not go together with {}; give one of them", others.join(", "));
            ConfigError::words(option, why)
        }
    })
}

/// `--cpus <N>` is `--cpus`, `--verbose[=<on|off>]` is `--verbose`, `<SIZE>` is `SIZE`.
fn name_of(shown: &str) -> String {
    let shown = shown.trim_matches(['<', '>', '[', ']']);
    shown.split([' ', '[', '=']).next().unwrap_or_default().to_owned()
}

fn text(error: &clap::Error, kind: ContextKind) -> Option<String> {
    texts(error, kind).into_iter().next()
}

fn texts(error: &clap::Error, kind: ContextKind) -> Vec<String> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => vec![text.clone()],
        Some(ContextValue::Strings(texts)) => texts.clone(),
        _ => Vec::new(),
    }
}

fn names(command: &Command) -> String {
    let all = command.get_subcommands().map(Command::get_name).filter(|name| *name != "help");
    all.collect::<Vec<_>>().join(", ")
}

fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn every_mistake_is_one_line() {
        let told = |line: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            let error = Cli::try_parse_from(std::iter::once("axvm".to_owned()).chain(words.clone())).unwrap_err();
            told(&error, &words).unwrap().to_string()
        };
        for (line, message) in [
            ("-c 0", "--cpus 0: a machine needs at least one vCPU"),
            ("--cpus=", "--cpus: '' is not a number of vCPUs; try --cpus 4"),
            ("--grace=ten", "--grace ten: not a whole number"),
            ("selftest -c 256", "--cpus 256: 256 is not in 1..=255"),
            ("ctl web balloon x", "SIZE x: not a size; write a number with K, M, G or T, such as 512M or 4G"),
            ("ctl web disk vda", "axvm ctl: what to do is missing; there are add, remove, resize, rate"),
            ("run --cpu pentium", "--cpu pentium: 'pentium' is not one of host, ivybridge"),
            ("run --verbose=x", "--verbose x: not one of on, off"),
            ("run --name", "--name: a value is missing; write --name <NAME>"),
            ("run --sandbox", "--sandbox: a value is missing; there are on, off"),
            ("--kernal k", "There is no option --kernal: did you mean --kernel? axvm run --help tells more"),
            ("ps --frobnicate", "There is no option --frobnicate: axvm ps --help tells more"),
            (
                "exec web ls",
                "There is no place here for ls: a command comes after two dashes: axvm exec MACHINE -- ls; axvm exec --help tells more",
            ),
            ("ps web", "There is no place here for web: axvm ps --help tells more"),
            ("ps -q --json", "--quiet: does not go together with --json; give one of them"),
            ("run -k k k", "--kernel: does not go together with KERNEL; give one of them"),
            ("run -k k -k k", "--kernel: given twice; give it once"),
            ("completions", "axvm completions: <SHELL> is missing; axvm completions --help tells more"),
        ] {
            assert_eq!(told(line), message, "{line}");
        }
        for line in ["ctl web frob", "ctl web"] {
            let known = "there are status, explain, inspect, registers, memory, symbols, gdb, dump, pause, resume, shutdown, nmi, break, reset, stop, balloon, disk, net, trace, console, \
                         events";
            assert!(told(line).ends_with(known), "{}", told(line));
        }
    }

    #[test]
    fn what_must_be_text_and_is_not_is_told_with_its_option() {
        use std::os::unix::ffi::OsStringExt;
        let told = |words: &[&[u8]]| {
            let error = no_text(words.iter().map(|word| OsString::from_vec(word.to_vec())));
            error.map(|error| error.to_string().split("; ").next().unwrap().to_owned())
        };
        for words in
            [&[&b"run"[..], b"k\xff", b"-p", b"x\xff"][..], &[b"-dk\xff", b"-px\xff"], &[b"-d", b"k\xff", b"-px\xff"]]
        {
            assert_eq!(told(words).unwrap(), "-p x\u{fffd}: not UTF-8", "{words:?}");
        }
        assert_eq!(told(&[b"--console=file=\xff"]).unwrap(), "--console file=\u{fffd}: not UTF-8");
        assert_eq!(told(&[b"--append", b"a", b"--name", b"\xff"]).unwrap(), "--name \u{fffd}: not UTF-8");
        assert_eq!(told(&[b"-v", b"man", b"\xff"]), None);
        assert!(ANY_BYTES[..5].iter().all(|option| told(&[option.as_bytes(), b"\xff"]).is_none()));
    }
}
