//! What a person sees while something takes long: a bar or spinner on a terminal, plain lines elsewhere and on a dumb one.

use std::io::IsTerminal;
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
