//! What a person sees while something takes long: a bar or spinner on a terminal, plain lines elsewhere and on a dumb one.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// One piece of work in progress; dropping it takes the bar away.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Work of unknown length.
    pub fn spinner(what: &str) -> Self {
        let bar = Self::announce(what, ProgressBar::new_spinner());
        bar.set_style(style("{spinner} {msg} [{elapsed}]"));
        Self { bar }
    }

    /// Work of `total` bytes.
    pub fn bytes(what: &str, total: u64) -> Self {
        let bar = Self::announce(what, ProgressBar::new(total));
        bar.set_style(style("{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}"));
        Self { bar }
    }

    /// Work of `total` steps.
    pub fn steps(what: &str, total: u64) -> Self {
        let bar = Self::announce(what, ProgressBar::new(total));
        bar.set_style(style("{msg} [{bar:30}] {pos}/{len}"));
        Self { bar }
    }

    fn announce(what: &str, bar: ProgressBar) -> ProgressBar {
        if can_draw() {
            bar.enable_steady_tick(Duration::from_millis(100));
        } else {
            bar.set_draw_target(ProgressDrawTarget::hidden());
            eprintln!("{what}");
        }
        bar.with_message(what.to_owned())
    }

    /// So much is done.
    pub fn at(&self, position: u64) {
        self.bar.set_position(position);
    }

    /// A word on what goes on inside.
    pub fn note(&self, what: String) {
        self.bar.set_message(what);
    }

    /// Follows the size of a growing directory until `done` says so.
    pub fn follow(&self, dir: &Path, mut done: impl FnMut() -> bool) {
        while !done() {
            self.at(size_of(dir));
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Says something on standard error; on a terminal, in lines that end between words.
pub fn say(words: &str) {
    let columns = std::io::stderr().is_terminal().then(|| rustix::termios::tcgetwinsize(std::io::stderr()).ok());
    let columns = columns.flatten().map_or(usize::MAX, |size| usize::from(size.ws_col).max(LEAST_COLUMNS));
    eprintln!("{}", wrapped(words, columns));
}

/// Prints an answer on standard output. A reader that has seen enough (`| head`) is no error, nor is a full disk here.
pub fn print(answer: impl Display) {
    let mut out = std::io::stdout().lock();
    let _ = write!(out, "{answer}").and_then(|()| out.flush());
}

/// Columns of the narrowest terminal that lines are broken for.
const LEAST_COLUMNS: usize = 20;

/// `words` in lines of at most `columns` characters; a longer word is a line of its own. Line ends stay.
fn wrapped(words: &str, columns: usize) -> String {
    let mut text = String::new();
    let mut width = 0;
    for piece in words.split_inclusive([' ', '\n']) {
        let len = piece.trim_end().chars().count();
        if width > 0 && width + len > columns {
            text.truncate(text.trim_end_matches(' ').len());
            text.push('\n');
            width = 0;
        }
        text.push_str(piece);
        width = if piece.ends_with('\n') { 0 } else { width + piece.chars().count() };
    }
    text
}

/// Whether a bar can be drawn, and drawn over.
fn can_draw() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_some_and(|kind| kind != "dumb")
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("template is a constant").progress_chars("=> ")
}

fn size_of(dir: &Path) -> u64 {
    let Ok(entries) = dir.read_dir() else { return 0 };
    entries
        .flatten()
        .filter_map(|entry| {
            entry.metadata().ok().map(|data| if data.is_dir() { size_of(&entry.path()) } else { data.len() })
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::wrapped;

    #[test]
    fn lines_end_between_words() {
        assert_eq!(wrapped("no page of this size is free", 11), "no page of\nthis size\nis free");
        assert_eq!(wrapped("a longest-word b\n  c d", 4), "a\nlongest-word\nb\n  c\nd");
        assert_eq!(wrapped("one line", usize::MAX), "one line");
    }
}
