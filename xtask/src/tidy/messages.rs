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
//! anything; a longer one must be a message itself, or several in a row. Three dots in a quote stand for any text. Only the
//! beginning and the end of what stands in prose may be cut off.

use std::cell::RefCell;
use std::collections::HashMap;

use super::lexer;
use super::{Source, before_tests};

/// Values of so many words need no explanation.
const VALUE: usize = 3;
/// What others say, and why it is quoted.
const FOREIGN: [(&str, &str); 4] = [
    ("No such file or directory (os error 2)", "the system's own words"),
    ("unknown field `stat`, expected `state` at line 1 column 7", "the JSON parser's own words"),
    ("invalid type: string", "the TOML parser's own words"),
    ("the guest writes 0x41 to port 0x3f8", "what KVM tells AxVM by numbers"),
];

/// Messages that the sources can bring out.
pub struct Messages {
    /// Each as what stands between its placeholders.
    all: Vec<Vec<String>>,
    /// Answers of [`Messages::explain`]: its questions come again and again.
    known: RefCell<HashMap<(String, bool, bool), Option<usize>>>,
}

impl Messages {
    /// Those of product code and of developer commands.
    pub fn of<'a>(sources: impl Iterator<Item = &'a Source>) -> Messages {
        let product = sources.filter(|source| is_product(&source.path));
        let strings = product.flat_map(|source| lexer::parts(before_tests(&source.text)).strings);
        let mut all: Vec<Vec<String>> = strings.map(|string| fragments(&string)).collect();
        all.extend(FOREIGN.iter().map(|(text, _)| vec![(*text).to_owned()]));
        all.retain(|fragments| {
            fragments.iter().flat_map(|text| text.chars()).filter(|c| c.is_alphabetic()).count() > 1
        });
        Messages { all, known: RefCell::default() }
    }

    /// Quotes of a page that no source explains.
    pub fn complaints(&self, name: &str, page: &str) -> Vec<String> {
        let wrong = quotes(page).into_iter().filter(|quote| !self.says(quote));
        wrong.map(|quote| format!("{name}:{}: no source says {:?}", quote.line, quote.text)).collect()
    }

    /// Half of a quote that may be cut off must be a source's own words: else a part of some message would fit anything.
    fn says(&self, quote: &Quote) -> bool {
        let enough = if quote.cut { words(&quote.text).div_ceil(2) } else { 0 };
        self.explain(&quote.text, quote.cut, quote.cut).is_some_and(|own| words(&quote.text) <= VALUE || own >= enough)
    }

    /// How many words of `text` are a source's, if all of it can be said; an open end may be cut off.
    fn explain(&self, text: &str, open_start: bool, open_end: bool) -> Option<usize> {
        let text = text.trim();
        if words(text) <= VALUE {
            return Some(0);
        }
        let question = (text.to_owned(), open_start, open_end);
        if let Some(answer) = self.known.borrow().get(&question) {
            return *answer;
        }
        let answer = self.by_message(text, open_start, open_end).or_else(|| self.in_parts(text, open_start, open_end));
        self.known.borrow_mut().insert(question, answer);
        answer
    }

    fn by_message(&self, text: &str, open_start: bool, open_end: bool) -> Option<usize> {
        let ends = [text.split_inclusive(' ').take(2).collect::<String>(), last_words(text)];
        let cut = open_start || open_end;
        let shares = |fragment: &String| {
            words(fragment) > 0 && text.contains(fragment.trim())
                || cut && ends.iter().any(|end| fragment.contains(end.trim()))
        };
        let candidates = self.all.iter().filter(|message| message.iter().any(shares));
        candidates.filter_map(|message| self.fit(message, text, open_start, open_end)).max()
    }

    /// As several messages in a row, or with what three dots stand for.
    fn in_parts(&self, text: &str, open_start: bool, open_end: bool) -> Option<usize> {
        if let Some((before, after)) = text.split_once("...") {
            return Some(self.explain(before, open_start, true)? + self.explain(after, true, open_end)?);
        }
        let splits = [": ", "; ", ", "].iter().flat_map(|separator| text.match_indices(separator));
        let explained = splits.filter_map(|(at, separator)| {
            let before = self.explain(&text[..at], open_start, false)?;
            Some(before + self.explain(&text[at + separator.len()..], false, open_end)?)
        });
        explained.max()
    }

    fn fit(&self, message: &[String], text: &str, open_start: bool, open_end: bool) -> Option<usize> {
        let (first, rest) = message.split_first()?;
        if !open_start {
            return match text.strip_prefix(first.as_str()) {
                Some(after) => self.go_on(rest, after, open_end, text.len()).map(|own| own + words(first)),
                None => (open_end && first.starts_with(text)).then(|| words(text)),
            };
        }
        // It begins in the middle of some fragment, which may be its end too.
        let starts = |at: usize| {
            let (fragment, rest) = (&message[at], &message[at + 1..]);
            let tails = fragment.char_indices().map(|(at, _)| &fragment[at..]).chain([""]);
            tails.filter_map(|tail| match text.strip_prefix(tail) {
                Some(after) => self.go_on(rest, after, open_end, text.len()).map(|own| own + words(tail)),
                None => (open_end && tail.starts_with(text)).then(|| words(text)),
            })
        };
        (0..message.len()).flat_map(starts).max()
    }

    /// `text` as a value, the next fragment, and so on; a value is shorter than the `whole` that is being explained.
    fn go_on(&self, rest: &[String], text: &str, open_end: bool, whole: usize) -> Option<usize> {
        let Some((next, rest)) = rest.split_first() else { return text.is_empty().then_some(0) };
        let value = |value: &str, open: bool| if value.len() < whole { self.explain(value, false, open) } else { None };
        if next.is_empty() && rest.is_empty() {
            return value(text, open_end);
        }
        let inside = text.match_indices(next.as_str()).filter_map(|(at, _)| {
            let own = self.go_on(rest, &text[at + next.len()..], open_end, whole)?;
            Some(own + value(&text[..at], false)? + words(next))
        });
        // The quote ends in the value, or in the fragment after it.
        let ends = text.char_indices().filter(|(at, _)| open_end && next.starts_with(&text[*at..]));
        let ends = ends.filter_map(|(at, _)| Some(value(&text[..at], false)? + words(&text[at..])));
        inside.chain(ends).max().or_else(|| if open_end { value(text, true) } else { None })
    }
}

/// Words with a letter in them.
fn words(text: &str) -> usize {
    text.split_whitespace().filter(|word| word.contains(char::is_alphabetic)).count()
}

/// The last two words.
fn last_words(text: &str) -> String {
    let from = text.rmatch_indices(' ').nth(1).map_or(0, |(at, _)| at);
    text[from..].to_owned()
}

/// Code whose messages count: not tests, and not these rules, which quote a lot.
fn is_product(path: &str) -> bool {
    let outside = ["/tests/", "/benches/", "/examples/", "/fuzz_targets/", "xtask/src/tidy/messages.rs"];
    !outside.iter().any(|part| path.contains(part)) && !path.ends_with("/tests.rs") && !path.ends_with("build.rs")
}

/// A format string's text between its placeholders: one more than there are of these.
fn fragments(string: &str) -> Vec<String> {
    let mut fragments = vec![String::new()];
    let mut rest = string;
    while let Some(char) = rest.chars().next() {
        let mut taken = char.len_utf8();
        let escaped = rest.starts_with("{{") || rest.starts_with("}}");
        let name_len = rest[taken..].find('}').filter(|&len| char == '{' && is_placeholder(&rest[1..1 + len]));
        match name_len {
            _ if escaped => taken = 2,
            Some(len) => {
                taken = len + 2;
                fragments.push(String::new());
            }
            None => {}
        }
        if let Some(last) = fragments.last_mut().filter(|_| escaped || name_len.is_none()) {
            last.push(if char == '\n' { ' ' } else { char });
        }
        rest = &rest[taken..];
    }
    fragments
}

/// What may stand between braces: a name, and how to show it.
fn is_placeholder(inside: &str) -> bool {
    let name = inside.split(':').next().unwrap_or_default();
    name.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '.')) && !inside.contains(['"', ' ', '{'])
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
    let prose: String = text.split('`').step_by(2).collect::<Vec<_>>().join("`");
    for quote in prose.split('"').skip(1).step_by(2).filter(|quote| words(quote) > VALUE) {
        found.push(Quote { line: *line, text: quote.to_owned(), cut: true });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(text: &str) -> Messages {
        let source = Source { path: "axvm_core/src/a.rs".into(), text: text.into() };
        Messages::of([source].iter())
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
                    axvm: The machine at x.sock refuses: The machine is paused and can not react; resume it first\n```\n\
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
        assert_eq!(Messages::of([source].iter()).complaints("a.md", page).len(), 1);
    }
}
