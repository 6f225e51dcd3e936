//! Whether a text can come out of format strings: as one message, with values in it that may be messages too.
//!
//! ```text
//!   message    Cannot read {} {}: {}; check the path given to {}       fragments: "Cannot read ", " ", ": ", ...
//!   text       Cannot read kernel a/b: No such file (2); check the path given to --kernel
//!                          value  value  value                               value
//! ```
//!
//! A value of up to three words may be anything; a longer one must be explained like the whole.

use std::cell::RefCell;
use std::collections::HashMap;

/// Values of so many words need no explanation.
pub const VALUE: usize = 3;

/// Messages, and what was found out about texts.
pub struct Messages {
    /// Each as what stands between its placeholders.
    all: Vec<Vec<String>>,
    /// Answers of [`Messages::explain`]: its questions come again and again.
    known: RefCell<HashMap<(String, bool, bool), Option<usize>>>,
}

impl Messages {
    /// Messages from format strings; those without words explain nothing.
    pub fn of(strings: impl Iterator<Item = String>) -> Messages {
        let letters =
            |message: &Vec<String>| message.iter().flat_map(|text| text.chars()).filter(|c| c.is_alphabetic()).count();
        let all = strings.map(|string| fragments(&string)).filter(|message| letters(message) > 1).collect();
        Messages { all, known: RefCell::default() }
    }

    /// How many words of `text` are a source's, if all of it can be said; an open end may be cut off.
    pub fn explain(&self, text: &str, open_start: bool, open_end: bool) -> Option<usize> {
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
            words(fragment) > 0 && fragment.trim().len() > 3 && text.contains(fragment.trim())
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
        let walk = Walk { messages: self, open_end, whole: text.len(), known: RefCell::default() };
        if !open_start {
            return match text.strip_prefix(first.as_str()) {
                Some(after) => walk.go_on(rest, after).map(|own| own + words(first)),
                None => (open_end && first.starts_with(text)).then(|| words(text)),
            };
        }
        // It begins in the middle of some fragment, which may be its end too.
        let starts = |at: usize| {
            let (fragment, rest) = (&message[at], &message[at + 1..]);
            let starts = fragment.char_indices().filter(|&(at, _)| at == 0 || fragment[..at].ends_with(' '));
            let tails = starts.map(|(at, _)| &fragment[at..]).chain([""]);
            tails.filter_map(|tail| match text.strip_prefix(tail) {
                Some(after) => walk.go_on(rest, after).map(|own| own + words(tail)),
                None => (open_end && tail.starts_with(text)).then(|| words(text)),
            })
        };
        (0..message.len()).flat_map(starts).max()
    }
}

/// A walk through one message beside a text.
struct Walk<'a> {
    messages: &'a Messages,
    /// The text may be cut off at its end.
    open_end: bool,
    /// Length of the text: a value in it is shorter.
    whole: usize,
    /// Answers, by the fragments and the bytes that were left.
    known: RefCell<HashMap<(usize, usize), Option<usize>>>,
}

impl Walk<'_> {
    /// `text` as a value, the next fragment, and so on: how many words are the message's.
    fn go_on(&self, rest: &[String], text: &str) -> Option<usize> {
        if !self.open_end && !rest.iter().all(|fragment| text.contains(fragment.as_str())) {
            return None;
        }
        let place = (rest.len(), text.len());
        if let Some(answer) = self.known.borrow().get(&place) {
            return *answer;
        }
        let answer = self.step(rest, text);
        self.known.borrow_mut().insert(place, answer);
        answer
    }

    fn step(&self, rest: &[String], text: &str) -> Option<usize> {
        let Some((next, rest)) = rest.split_first() else { return text.is_empty().then_some(0) };
        if next.is_empty() && rest.is_empty() {
            return self.value(text, self.open_end);
        }
        let inside = text.match_indices(next.as_str()).filter_map(|(at, _)| {
            let own = self.go_on(rest, &text[at + next.len()..])?;
            Some(own + self.value_before(text, at)? + words(next))
        });
        // The text ends in the value, or in the fragment after it.
        let ends = text.char_indices().filter(|(at, _)| self.open_end && next.starts_with(&text[*at..]));
        let ends = ends.filter_map(|(at, _)| Some(self.value_before(text, at)? + words(&text[at..])));
        inside.chain(ends).max().or_else(|| if self.open_end { self.value(text, true) } else { None })
    }

    /// A value may end inside of a word (`processor{s}`), a longer one may not.
    fn value_before(&self, text: &str, at: usize) -> Option<usize> {
        let (value, after) = text.split_at(at);
        let in_word = value.ends_with(char::is_alphanumeric) && after.starts_with(char::is_alphanumeric);
        if in_word && words(value) > VALUE { None } else { self.value(value, false) }
    }

    fn value(&self, text: &str, open_end: bool) -> Option<usize> {
        if text.len() < self.whole { self.messages.explain(text, false, open_end) } else { None }
    }
}

/// Words with a letter in them; `0x600` and `2M` are numbers.
pub fn words(text: &str) -> usize {
    let is_word = |word: &&str| word.contains(char::is_alphabetic) && !word.starts_with(|c: char| c.is_ascii_digit());
    text.split_whitespace().filter(is_word).count()
}

/// The last two words.
fn last_words(text: &str) -> String {
    let from = text.rmatch_indices(' ').nth(1).map_or(0, |(at, _)| at);
    text[from..].to_owned()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(message: &str, text: &str) -> Option<usize> {
        Messages::of([message.to_owned()].into_iter()).explain(text, false, false)
    }

    #[test]
    fn placeholders_are_told_from_other_braces() {
        assert_eq!(fragments("a {} b {name:>7.3}c"), ["a ", " b ", "c"]);
        assert_eq!(fragments("{{\"interval\": {n}}} {\"x\": 1}"), ["{\"interval\": ", "} {\"x\": 1}"]);
    }

    #[test]
    fn words_of_the_message_are_counted_and_long_values_are_not_taken() {
        assert_eq!(explained("Cannot use the disk {path}", "Cannot use the disk a/b c"), Some(4));
        assert_eq!(explained("Cannot use the disk {path}", "Cannot use the disk that lies over there"), None);
    }

    #[test]
    fn a_message_that_fits_in_many_ways_takes_no_time() {
        let text = "a b c d ".repeat(12);
        assert_eq!(explained("x {} {} {} {} {} {} {} {} {} {} {} {} y", &format!("x {text}")), None);
    }
}
