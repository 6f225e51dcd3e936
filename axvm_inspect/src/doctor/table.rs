//! The doctor's rows as text: 100 columns, whatever they say.
//!
//! ```text
//!   Memory
//!     problem  huge pages (THP)         never
//!                                       costs: ...
//!                                       do:    echo madvise | sudo tee ...
//! ```

use std::fmt::Write;

use super::row::{Row, Verdict};

/// Columns that a line may have.
const COLUMNS: usize = 100;
/// Columns before what was found.
const INDENT: usize = 36;
/// Width of `costs: ` and `do:    `.
const LABEL: usize = 7;

/// How the table looks.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Verdicts in colour.
    pub colour: bool,
}

/// Rows by part, a count, and `summary`.
pub fn table(rows: &[Row], summary: &str, style: Style) -> String {
    let mut text = String::new();
    let mut part = "";
    for row in rows {
        if row.part != part {
            part = row.part;
            let gap = if text.is_empty() { "" } else { "\n" };
            let _ = writeln!(text, "{gap}{part}");
        }
        push_row(&mut text, row, style);
    }
    let count = |verdict| rows.iter().filter(|row| row.verdict == verdict).count();
    let (ok, notes, problems) = (count(Verdict::Ok), count(Verdict::Note), count(Verdict::Problem));
    let _ = writeln!(text, "\n{ok} ok, {notes} to note, {problems} problem{}", if problems == 1 { "" } else { "s" });
    for line in wrapped(summary, COLUMNS) {
        let _ = writeln!(text, "{line}");
    }
    text
}

fn push_row(text: &mut String, row: &Row, style: Style) {
    let (word, colour) = match row.verdict {
        Verdict::Ok => ("ok", 32),
        Verdict::Note => ("note", 33),
        Verdict::Problem => ("problem", 31),
    };
    let word = format!("{word:7}");
    let word = if style.colour { format!("\x1b[{colour}m{word}\x1b[0m") } else { word };
    let what = format!("{:1$} ", row.what, INDENT - 12);
    let mut found = wrapped(&row.found, COLUMNS - INDENT).into_iter();
    let _ = writeln!(text, "  {word}  {what}{}", found.next().unwrap_or_default());
    for line in found {
        let _ = writeln!(text, "{:INDENT$}{line}", "");
    }
    if let Some(advice) = &row.advice {
        // Below its row, further left: commands are long.
        push_labelled(text, "costs:", &advice.cost);
        push_labelled(text, "do:", &advice.change);
    }
}

fn push_labelled(text: &mut String, label: &str, value: &str) {
    const LEFT: usize = 11;
    let lines = value.lines().flat_map(|line| wrapped(line, COLUMNS - LEFT - LABEL));
    for (n, line) in lines.enumerate() {
        let label = if n == 0 { label } else { "" };
        let _ = writeln!(text, "{:LEFT$}{label:LABEL$}{line}", "");
    }
}

/// `text` in lines of at most `width` characters, broken between words; a longer word is a line of its own.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split(' ') {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_findings_wrap_below_themselves() {
        let row = Row::ok("Part", "thing", "word ".repeat(40).trim_end()).note("c ".repeat(90).trim_end(), "a\nb");
        let text = table(&[row], "done", Style { colour: false });
        assert!(text.lines().all(|line| line.chars().count() <= COLUMNS), "{text}");
        assert!(text.contains("           do:    a\n                  b\n"), "{text}");
        assert!(text.starts_with("Part\n  note     thing"), "{text}");
        assert!(text.ends_with("\n0 ok, 1 to note, 0 problems\ndone\n"), "{text}");
    }

    #[test]
    fn colour_is_there_only_when_asked_for() {
        let rows = [Row::ok("Part", "thing", "fine")];
        assert!(!table(&rows, "", Style { colour: false }).contains('\x1b'));
        assert!(table(&rows, "", Style { colour: true }).contains("\x1b[32mok     \x1b[0m"));
    }
}
