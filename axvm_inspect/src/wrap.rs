//! Text for people, in lines of a terminal's width.
//!
//! ```text
//!   "no page of this size is free" --11--> "no page of" / "this size" / "is free"
//! ```

use std::fmt;

/// Columns of a terminal that has not been made wider.
pub const TERMINAL: usize = 80;

/// `text` in lines of at most `width` characters, broken between words; a longer word is a line of its own.
pub fn wrapped(text: &str, width: usize) -> Vec<String> {
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

/// `text` in lines of a terminal, the first after `head`, the others below it. A line of columns stays as it is.
pub(crate) fn paragraph(f: &mut fmt::Formatter<'_>, head: &str, text: &str) -> fmt::Result {
    let lines =
        if head.len() + text.len() <= TERMINAL { vec![text.to_owned()] } else { wrapped(text, TERMINAL - head.len()) };
    for (n, line) in lines.iter().enumerate() {
        let head = if n == 0 { head.to_owned() } else { " ".repeat(head.len()) };
        writeln!(f, "{head}{line}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::wrapped;

    #[test]
    fn lines_break_between_words() {
        assert_eq!(wrapped("no page of this size is free", 11), ["no page of", "this size", "is free"]);
        assert_eq!(wrapped("a longest-word b", 4), ["a", "longest-word", "b"]);
        assert_eq!(wrapped("", 4), [""]);
    }
}
