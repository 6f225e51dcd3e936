//! The doctor's rows as text: as wide as a terminal is, and 100 columns at most. Elsewhere no line is broken.
//!
//! ```text
//!   Memory
//!     problem  huge pages (THP)         never
//!                                       costs: ...
//!                                       do:    echo madvise | sudo tee ...
//! ```

use std::fmt::Write;

use super::row::{Row, Verdict};
use crate::wrap::wrapped;

/// Columns that a line may have on a wider terminal.
const MOST_COLUMNS: usize = 100;
/// Columns that text has on a terminal which is narrower than what stands before it.
const LEAST_COLUMNS: usize = 20;
/// Columns before what was found.
const INDENT: usize = 36;
/// Width of `costs: ` and `do:    `.
const LABEL: usize = 7;

/// How the table looks.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Verdicts in colour.
    pub colour: bool,
    /// Columns of the terminal that shows it; none where lines are not to be broken.
    pub columns: Option<usize>,
}

impl Style {
    /// `text` in lines that leave `before` columns free.
    fn lines(self, text: &str, before: usize) -> Vec<String> {
        let width = self.columns.map_or(usize::MAX, |columns| columns.min(MOST_COLUMNS));
        wrapped(text, width.saturating_sub(before).max(LEAST_COLUMNS))
    }
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
    for line in style.lines(summary, 0) {
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
    let mut found = style.lines(&row.found, INDENT).into_iter();
    let _ = writeln!(text, "  {word}  {what}{}", found.next().unwrap_or_default());
    for line in found {
        let _ = writeln!(text, "{:INDENT$}{line}", "");
    }
    if let Some(advice) = &row.advice {
        // Below its row, further left: commands are long.
        push_labelled(text, "costs:", &advice.cost, style);
        push_labelled(text, "do:", &advice.change, style);
    }
}

fn push_labelled(text: &mut String, label: &str, value: &str, style: Style) {
    const LEFT: usize = 11;
    let lines = value.lines().flat_map(|line| style.lines(line, LEFT + LABEL));
    for (n, line) in lines.enumerate() {
        let label = if n == 0 { label } else { "" };
        let _ = writeln!(text, "{:LEFT$}{label:LABEL$}{line}", "");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Style = Style { colour: false, columns: None };

    #[test]
    fn long_findings_wrap_below_themselves_on_a_terminal_only() {
        let row = || Row::ok("Part", "thing", "word ".repeat(40).trim_end()).note("c ".repeat(90).trim_end(), "a\nb");
        for (terminal, most) in [(80, 80), (120, MOST_COLUMNS), (10, INDENT + LEAST_COLUMNS)] {
            let text = table(&[row()], "done", Style { columns: Some(terminal), ..PLAIN });
            let widest = text.lines().map(|line| line.chars().count()).max();
            assert!(widest <= Some(most) && widest > Some(most - 5), "{terminal}: {widest:?}: {text}");
            assert!(text.contains("           do:    a\n                  b\n"), "{text}");
            assert!(text.starts_with("Part\n  note     thing"), "{text}");
            assert!(text.ends_with("\n0 ok, 1 to note, 0 problems\ndone\n"), "{text}");
        }
        let text = table(&[row()], "done", PLAIN);
        assert!(text.contains("word ".repeat(40).trim_end()) && text.contains("c ".repeat(90).trim_end()), "{text}");
    }

    #[test]
    fn colour_is_there_only_when_asked_for() {
        let rows = [Row::ok("Part", "thing", "fine")];
        assert!(!table(&rows, "", PLAIN).contains('\x1b'));
        assert!(table(&rows, "", Style { colour: true, ..PLAIN }).contains("\x1b[32mok     \x1b[0m"));
    }
}
