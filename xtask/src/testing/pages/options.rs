//! Options of the programs and of the book: the same ones.
//!
//! ```text
//!   axvm run --help, cargo xtask lab --help ..   each option, and each command of a command, is on the page
//!                                                docs/commands/run.md, docs/commands/lab.md ..
//!   --name anywhere in the book                  is an option of one of them, or of a known other program
//! ```

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::Page;
use crate::tool;

/// What other programs in the book have: cargo, curl, systemctl, podman, tar and the like.
const OTHERS: [&str; 31] = [
    "--release",
    "--no-deps",
    "--open",
    "--example",
    "--bin",
    "--workspace",
    "--all-targets",
    "--unix-socket",
    "--data",
    "--now",
    "--system",
    "--user-group",
    "--groups",
    "--home-dir",
    "--user",
    "--check",
    "--json",
    "--version",
    "--help",
    "--verify",
    "--wait",
    "--create",
    "--customize-hook",
    "--device",
    "--group-add",
    "--include",
    "--locked",
    "--path",
    "--rm",
    "--strip-components",
    "--variant",
];

/// A command with its help.
pub struct Program {
    /// `run`, `lab` ..: its page.
    name: String,
    /// Its own, then that of each of its commands, and of theirs.
    help: String,
}

/// All commands of axvm and of xtask.
pub fn programs(dir: &Path) -> Result<Vec<Program>> {
    let axvm = || tool::tool(&dir.join("axvm").to_string_lossy());
    let mut programs = Vec::new();
    for program in [&axvm as &dyn Fn() -> Command, &tool::ourselves] {
        let ask = |arguments: &[&str]| tool::output(program().args(arguments));
        for name in commands(&ask(&["--help"])?) {
            let mut help = ask(&[&name, "--help"])?;
            for inner in commands(&help) {
                let words = ask(&[&name, &inner, "--help"])?;
                for innermost in commands(&words) {
                    help += &ask(&[&name, &inner, &innermost, "--help"])?;
                }
                help += &words;
            }
            programs.push(Program { name, help });
        }
    }
    Ok(programs)
}

/// Names in the list `Commands:` of a help.
fn commands(help: &str) -> Vec<String> {
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = list.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").map(str::to_owned).collect()
}

/// Options that one side has and the other has not.
pub fn complaints(pages: &[Page], programs: &[Program]) -> Vec<String> {
    let mut complaints = Vec::new();
    let known: BTreeSet<&str> = programs.iter().flat_map(|program| options(&program.help)).chain(OTHERS).collect();
    for page in pages {
        let strange = options(&page.text).into_iter().filter(|option| !known.contains(option));
        complaints.extend(strange.map(|option| format!("{}: {option} is no option of any program", page.name)));
    }
    for Program { name, help } in programs {
        let file = format!("docs/commands/{name}.md");
        let Some(page) = pages.iter().find(|page| page.name == file) else {
            complaints.push(format!("{file}: the command {name} has no page"));
            continue;
        };
        let told = options(&page.text);
        let wanted = options(help).into_iter().filter(|option| !OTHERS.contains(option));
        complaints.extend(
            wanted.filter(|option| !told.contains(option)).map(|option| format!("{file}: {option} is missing")),
        );
        let commands = commands(help).into_iter().filter(|command| !page.text.contains(&format!("`{command}")));
        complaints.extend(commands.map(|command| format!("{file}: `{command}` is missing")));
    }
    complaints
}

/// All `--words` in a text, but for the labels of arrows: `--board-->`, `--plan()-->`.
fn options(text: &str) -> BTreeSet<&str> {
    let ours =
        |at: &usize| !text[..*at].ends_with(|before: char| before.is_alphanumeric() || before == '-' || before == '/');
    let words = text.match_indices("--").map(|(at, _)| at).filter(ours).map(|at| {
        let end = text[at + 2..]
            .find(|char: char| !char.is_ascii_alphanumeric() && char != '-')
            .map_or(text.len(), |end| at + 2 + end);
        (&text[at..end], &text[end..])
    });
    let is_arrow = |word: &str, after: &str| word.ends_with('-') || after.starts_with("()");
    let options = words.filter(|(word, after)| !is_arrow(word, after)).map(|(word, _)| word);
    options.filter(|word| word[2..].starts_with(|char: char| char.is_ascii_lowercase())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(name: &str, text: &str) -> Page {
        Page { name: name.into(), text: text.into() }
    }

    #[test]
    fn options_that_are_not_on_both_sides_are_found() {
        let help =
            "Do it\n\nCommands:\n  now  At once\n  help  Tell\n\nOptions:\n  -q, --quick  Be quick (see --slow)\n";
        let program = || [Program { name: "do".into(), help: help.into() }];
        let good = page(
            "docs/commands/do.md",
            "`--quick`, not `--slow`; `now` -- a dash --, a---b, |---|, A --b--> C --d()--> E",
        );
        assert_eq!(complaints(&[good], &program()), [""; 0]);
        let bad = page("docs/commands/do.md", "--quack and --slow");
        assert_eq!(complaints(&[bad], &program()).len(), 3);
        assert_eq!(complaints(&[], &program()).len(), 1);
    }
}
