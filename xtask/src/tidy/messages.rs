//! What the book quotes, AxVM must be able to say: each quoted message comes from strings in the source.
//!
//! ```text
//!   page     axvm: Cannot read kernel nothing: No such file or directory (os error 2); check the path given to --kernel
//!   source   "Cannot read {what} {path}: {error}; check the path given to {option}"
//!                          |      |       |                                  |
//!            values        kernel nothing No such file ... (the system says) --kernel
//! ```
//!
//! Three things are quotes: in `console` and `text` blocks a line that begins with `axvm: `, and a `fault_message`; all
//! of a block `text said`; in prose, four words or more in "double quotes". A value of up to three words may be
//! anything; a longer one must be a message itself, or several in a row ([`super::said`]). Three dots in a
//! quote stand for any text. Only the beginning and the end of what stands in prose may be cut off.

use super::lexer;
use super::said::{Messages, VALUE, words};
use super::{Source, before_tests};

/// What others say, and why it is quoted.
const FOREIGN: [(&str, &str); 5] = [
    ("No space left on device (os error 28)", "the system's own words"),
    ("No such file or directory (os error 2)", "the system's own words"),
    ("unknown field `stat`, expected `state` at line 1 column 7", "the JSON parser's own words"),
    ("invalid type: string", "the TOML parser's own words"),
    ("the guest writes 0x41 to port 0x3f8", "what KVM tells AxVM by numbers"),
];

/// All that the sources can say.
pub struct Sources(Messages);

impl Sources {
    /// Strings of product code and of developer commands.
    pub fn of<'a>(sources: impl Iterator<Item = &'a Source>) -> Sources {
        let product = sources.filter(|source| is_product(&source.path));
        let strings = product.flat_map(|source| lexer::parts(before_tests(&source.text)).strings);
        Sources(Messages::of(strings.chain(FOREIGN.iter().map(|(text, _)| (*text).to_owned()))))
    }

    /// Quotes of a page that no source explains.
    pub fn complaints(&self, name: &str, page: &str) -> Vec<String> {
        let wrong = quotes(page).into_iter().filter(|quote| !self.says(quote));
        wrong.map(|quote| format!("{name}:{}: no source says {:?}", quote.line, quote.text)).collect()
    }

    /// Half of a quote that may be cut off must be a source's own words: else a part of some message would fit anything.
    fn says(&self, quote: &Quote) -> bool {
        let enough = if quote.cut { words(&quote.text).div_ceil(2) } else { 0 };
        self.0
            .explain(&quote.text, quote.cut, quote.cut)
            .is_some_and(|own| words(&quote.text) <= VALUE || own >= enough)
    }
}

/// Code whose messages count: not tests, and not these rules, which quote a lot.
fn is_product(path: &str) -> bool {
    let outside = ["/tests/", "/benches/", "/examples/", "/fuzz_targets/", "xtask/src/tidy/messages.rs"];
    !outside.iter().any(|part| path.contains(part)) && !path.ends_with("/tests.rs") && !path.ends_with("build.rs")
}

/// Something a page claims that AxVM says.
#[derive(Debug, PartialEq, Eq)]
struct Quote {
    line: usize,
    text: String,
    /// May begin and end in the middle of a message.
    cut: bool,
}

fn quotes(page: &str) -> Vec<Quote> {
    let mut found = Vec::new();
    let mut block: Option<&str> = None;
    // A paragraph, and its first line: quotes go over ends of lines.
    let mut paragraph = (0, String::new());
    for (number, line) in page.lines().enumerate().map(|(number, line)| (number + 1, line)).chain([(0, "")]) {
        if let Some(info) = line.trim_start().strip_prefix("```") {
            block = if block.is_some() { None } else { Some(info) };
            continue;
        }
        match block {
            Some(info) => in_block(&mut found, info, number, line),
            None if line.is_empty() || line.starts_with('|') => {
                in_prose(&mut found, &paragraph);
                in_prose(&mut found, &(number, line.to_owned()));
                paragraph = (number + 1, String::new());
            }
            None => paragraph.1.extend([line, " "]),
        }
    }
    found
}

fn in_block(found: &mut Vec<Quote>, info: &str, line: usize, text: &str) {
    let mut add = |text: &str, cut| found.push(Quote { line, text: text.to_owned(), cut });
    if info == "text said" {
        text.split("  ").for_each(|cell| add(cell.trim(), true));
    } else if info.starts_with("console") || info == "text" {
        if let Some(said) = text.strip_prefix("axvm: ") {
            add(without_time(said), false);
        }
        if let Some((_, fault)) = text.split_once("{\"fault_message\":\"") {
            add(fault.strip_suffix("\"}").unwrap_or(fault).replace("\\\"", "\"").as_str(), false);
        }
    }
}

/// `[  1.087 ms] ` in front is how long a step took.
fn without_time(said: &str) -> &str {
    said.strip_prefix('[').and_then(|said| said.split_once("ms] ")).map_or(said, |(_, said)| said)
}

fn in_prose(found: &mut Vec<Quote>, (line, text): &(usize, String)) {
    // Between backticks double quotes belong to code.
    let hide =
        |(number, piece): (usize, &str)| if number % 2 == 1 { piece.replace('"', "\0") } else { piece.to_owned() };
    let hidden = text.split('`').enumerate().map(hide).collect::<Vec<_>>().join("`");
    for quote in hidden.split('"').skip(1).step_by(2).filter(|quote| words(quote) > VALUE) {
        found.push(Quote { line: *line, text: quote.replace('\0', "\""), cut: true });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(text: &str) -> Sources {
        let source = Source { path: "axvm_core/src/a.rs".into(), text: text.into() };
        Sources::of([source].iter())
    }

    const SOURCE: &str = "
        #[error(\"Cannot read {what} {}: {source}; check the path given to --{option}\")]
        format!(\"The machine at {path} refuses: {why}\") + \"The machine is paused and cannot react; resume it first\"
        \"needs {count} pages of {size}, and {free} of the host's {all} are free\"
        \"ask for {{\\\"interval\\\": 1}} every second\"";

    #[test]
    fn what_a_source_says_may_be_quoted() {
        let page = "```console\n$ axvm\naxvm: Cannot read kernel a/b: No such file or directory (os error 2); check the path given to --kernel\n\
                    axvm: The machine at ....sock refuses: The machine is paused and cannot react; resume it first\n\
                    {\"fault_message\":\"ask for {\\\"interval\\\": 1} every second\"}\n```\n\
                    It says \"needs 32 pages of 2 MiB, and 0 of the host's 0 are\nfree\", or \"is paused and cannot react\".\n";
        assert_eq!(messages(SOURCE).complaints("a.md", page), [""; 0]);
    }

    #[test]
    fn what_no_source_says_is_found() {
        let page = "```console\n$ axvm\naxvm: Cannot open kernel a/b: No such file or directory (os error 2); check the path given to --kernel\n\
                    axvm: The machine at x.sock refuses: The machine is paused and will not react; resume it first\n```\n\
                    | \"another program listens there\" | no |\n";
        let complaints = messages(SOURCE).complaints("a.md", page);
        assert_eq!(complaints.len(), 3, "{complaints:?}");
        assert!(complaints[0].starts_with("a.md:3: no source says \"Cannot open kernel"));
        assert!(complaints[2].starts_with("a.md:6: "));
    }

    #[test]
    fn only_prose_and_said_blocks_may_cut_a_message_off() {
        let cut = "axvm: Cannot read kernel a/b: No such file or directory (os error 2); check the\n";
        assert_eq!(messages(SOURCE).complaints("a.md", &format!("```console\n{cut}```\n")).len(), 1);
        assert!(messages(SOURCE).complaints("a.md", "```text said\n  ok   check the path given to\n```\n").is_empty());
        assert_eq!(messages(SOURCE).complaints("a.md", "```text said\n  ok   check the way given to\n```\n").len(), 1);
    }

    #[test]
    fn tests_are_no_source() {
        let source = Source { path: "axvm_core/tests/a.rs".into(), text: SOURCE.into() };
        let page = "\"The machine is paused and cannot react\"\n";
        assert_eq!(Sources::of([source].iter()).complaints("a.md", page).len(), 1);
    }
}
