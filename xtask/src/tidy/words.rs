//! Words that the project does not use, and the field's word for each.
//!
//! ```text
//!   "the chip that nobody answers for"   -->   words: the chip that nobody answers for
//!   fn nobody_answers(), NobodyHome      -->          nobody answers, Nobody Home
//! ```
//!
//! Names count as the words they are made of. The list here is the list: CONTRIBUTING shows it, and a test compares.

use super::Source;

/// A word (or some in a row), and what to say instead.
const WORDS: [(&str, &str); 18] = [
    ("nobody", "the actor: no chip, no subscriber, no reader, no caller"),
    ("somebody", "the actor: a program, a caller, the user, the guest"),
    ("anybody", "the actor: any process, any client"),
    ("whoever", "the actor: the client that, the program that"),
    ("can not", "cannot"),
    ("ear", "subscriber"),
    ("ears", "subscribers"),
    ("hears", "gets, takes"),
    ("bell", "notifier"),
    ("desk", "what it does: control, panel"),
    ("asker", "client, caller"),
    ("fate", "outcome"),
    ("stranger", "untrusted input, unknown client"),
    ("misfit", "mismatch, unknown key"),
    ("farewell", "end, last turn"),
    ("shelf", "what it holds: tables, layout"),
    ("door", "entry point, reset source"),
    ("heart", "what it is: the vCPU loop"),
];

/// Where a crate uses one of them; the list itself may.
pub fn complaints(sources: &[Source]) -> Vec<String> {
    let others = sources.iter().filter(|source| source.path != "xtask/src/tidy/words.rs");
    others.flat_map(in_source).collect()
}

fn in_source(source: &Source) -> impl Iterator<Item = String> {
    source.text.lines().enumerate().flat_map(move |(number, line)| {
        let words = split(line);
        WORDS
            .iter()
            .filter(move |(word, _)| contains(&words, word))
            .map(move |(word, instead)| format!("{}:{}: {word:?}: say {instead}", source.path, number + 1))
    })
}

/// Rows of the list that `contributing` does not show.
pub fn not_shown(contributing: &str) -> Vec<String> {
    let rows = WORDS.iter().map(|(word, instead)| format!("| {word} | {instead} |"));
    rows.filter(|row| !contributing.contains(row)).map(|row| format!("CONTRIBUTING.md: no row {row}")).collect()
}

/// The words of a line in small letters; names are taken apart.
fn split(line: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut before = ' ';
    for char in line.chars() {
        let starts = !before.is_alphabetic() || before.is_lowercase() && char.is_uppercase();
        if char.is_alphabetic() {
            if starts {
                words.push(String::new());
            }
            if let Some(word) = words.last_mut() {
                word.extend(char.to_lowercase());
            }
        }
        before = char;
    }
    words
}

fn contains(words: &[String], wanted: &str) -> bool {
    let wanted: Vec<&str> = wanted.split(' ').collect();
    words.windows(wanted.len()).any(|words| words.iter().eq(&wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        in_source(&Source { path: "a.rs".into(), text: text.into() }).collect()
    }

    #[test]
    fn a_word_is_found_in_sentences_and_names() {
        assert_eq!(
            found("// ok\n// Nobody listens."),
            ["a.rs:2: \"nobody\": say the actor: no chip, no subscriber, no reader, no caller"]
        );
        assert_eq!(found("fn it_can_not() {}"), ["a.rs:1: \"can not\": say cannot"]);
        assert_eq!(found("struct NobodyHome;").len(), 1);
    }

    #[test]
    fn a_word_inside_another_is_fine() {
        assert!(found("doorbell, year, cannot, indoors, Label, hearts").is_empty());
    }

    #[test]
    fn contributing_must_show_each_row() {
        let all: String = WORDS.iter().map(|(word, instead)| format!("| {word} | {instead} |\n")).collect();
        assert!(not_shown(&all).is_empty());
        assert_eq!(not_shown("").len(), WORDS.len());
    }
}
