//! The tree as text for a terminal.
//!
//! ```text
//!   Memory: a picture           0x0 +--------------------+ RAM, 639 KiB: usable
//!                             0x500 |GDT                 |   48 B  AxVM: descriptors of ...
//!                                   |                    | 26.7 KiB free
//!                           0xa0000 :                    : hole, 256 KiB
//!   any other section: rows     at  name  value  meaning, in lines of its own column
//!                                                bytes; owner; source
//! ```
//!
//! Left out: what does not fit is not cut, but goes to lines of its own.

use super::{Row, Section, Value, Xray, memory, size};
use crate::wrap::{TERMINAL, wrapped};

/// How the text looks.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Titles, names and sources in colour.
    pub colour: bool,
    /// Columns of the terminal; none, if it is something else: as many as a usual one has.
    pub columns: Option<usize>,
}

/// Columns that a line may have on a wider terminal.
const MOST_COLUMNS: usize = 100;
/// Columns on a narrower one.
const LEAST_COLUMNS: usize = 60;
/// The widest name and the widest value that have meanings beside them.
const WIDEST: usize = 24;
/// Columns before what a row means, if it stands beside.
const WIDEST_HEAD: usize = 34;
/// Columns that the parts of a row are further right.
const DEEPER: usize = 4;
/// Columns that it has at least.
const LEAST_ROOM: usize = 20;

impl Style {
    pub(super) fn width(self) -> usize {
        self.columns.unwrap_or(TERMINAL).clamp(LEAST_COLUMNS, MOST_COLUMNS)
    }

    pub(super) fn paint(self, colour: &str, text: &str) -> String {
        if self.colour && !text.trim().is_empty() { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.into() }
    }

    pub(super) fn title(self, text: &str) -> String {
        self.paint("1", text)
    }

    pub(super) fn name(self, text: &str) -> String {
        self.paint("36", text)
    }

    fn aside(self, text: &str) -> String {
        self.paint("2", text)
    }
}

/// All sections.
pub fn text(xray: &Xray, style: Style) -> String {
    let parts: Vec<String> = xray.sections.iter().map(|section| self::section(section, style)).collect();
    parts.join("\n")
}

fn section(section: &Section, style: Style) -> String {
    let mut text = style.title(section.title) + "\n";
    for line in wrapped(&section.about, style.width() - 2) {
        text += &format!("  {}\n", style.aside(&line));
    }
    match section.id {
        memory::ID => section.rows.iter().for_each(|band| push_band(&mut text, band, style)),
        _ => push_rows(&mut text, &section.rows, 2, style),
    }
    text
}

/// Columns that rows have in common.
struct Columns {
    indent: usize,
    at: usize,
    name: usize,
    value: usize,
}

impl Columns {
    fn of(rows: &[Row], indent: usize) -> Columns {
        let widest = |len: &dyn Fn(&Row) -> usize| rows.iter().map(len).filter(|len| *len <= WIDEST).max().unwrap_or(0);
        Columns {
            indent,
            at: widest(&|row| at(row).len()),
            name: widest(&|row| row.name.chars().count()),
            value: widest(&|row| value(row).chars().count()),
        }
    }

    /// Where meanings begin.
    fn before(&self) -> usize {
        [self.at, self.name, self.value].iter().filter(|len| **len > 0).fold(self.indent, |sum, len| sum + len + 2)
    }
}

fn at(row: &Row) -> String {
    row.at.map_or(String::new(), |at| format!("{at:#x}"))
}

fn value(row: &Row) -> String {
    row.value.as_ref().map_or(String::new(), Value::to_string)
}

fn push_rows(text: &mut String, rows: &[Row], indent: usize, style: Style) {
    let columns = Columns::of(rows, indent);
    for row in rows {
        push_row(text, row, &columns, style);
        push_rows(text, &row.rows, indent + DEEPER, style);
    }
}

fn push_row(text: &mut String, row: &Row, columns: &Columns, style: Style) {
    let value = value(row);
    let fits = row.name.chars().count() <= columns.name && value.chars().count() <= columns.value;
    // What a row means stands beside what is short, else below.
    let beside = columns.before();
    let is_beside = fits && beside <= WIDEST_HEAD;
    let before = if is_beside { beside } else { columns.indent + columns.at + 4 };
    let room = style.width().saturating_sub(before).max(LEAST_ROOM);
    let mut line = Line { shown: " ".repeat(columns.indent), len: columns.indent };
    if columns.at > 0 {
        line.push(&format!("{:>1$}  ", at(row), columns.at), |text| style.aside(text));
    }
    line.push(&format!("{:1$}", row.name, columns.name), |text| style.name(text));
    let mut lines = Vec::new();
    if line.len + 2 + value.chars().count() > style.width() {
        lines.extend(wrapped(&value, room));
    } else if columns.value > 0 || !value.is_empty() {
        line.push(&format!("  {value:0$}", columns.value), str::to_owned);
    }
    let aside = aside(row);
    if is_beside {
        lines.extend(means(row, room));
        lines.extend(asides(&aside, room, style));
        if !lines.is_empty() {
            line.push("  ", str::to_owned);
            line.shown += &lines.remove(0);
        }
    } else if line.len + 2 + aside.chars().count() <= style.width() {
        line.push(&format!("  {aside}"), |text| style.aside(text));
        lines.extend(means(row, room));
    } else {
        lines.extend(means(row, room));
        lines.extend(asides(&aside, room, style));
    }
    *text += line.shown.trim_end();
    text.push('\n');
    lines.iter().for_each(|line| *text += &format!("{:before$}{line}\n", ""));
}

/// A line, and how many columns of it are taken.
struct Line {
    shown: String,
    len: usize,
}

impl Line {
    fn push(&mut self, text: &str, paint: impl FnOnce(&str) -> String) {
        self.len += text.chars().count();
        self.shown += &paint(text);
    }
}

fn means(row: &Row, room: usize) -> Vec<String> {
    if row.means.is_empty() { Vec::new() } else { wrapped(&row.means, room) }
}

fn asides(aside: &str, room: usize, style: Style) -> Vec<String> {
    if aside.is_empty() { Vec::new() } else { wrapped(aside, room).iter().map(|line| style.aside(line)).collect() }
}

/// Bytes, owner and source of a row.
fn aside(row: &Row) -> String {
    let parts = [&row.bytes, &row.owner, &row.source];
    parts.into_iter().flatten().map(String::as_str).collect::<Vec<_>>().join("; ")
}

/// Columns of addresses in the picture, and inside of its box.
const ADDRESS: usize = 13;
const BOX: usize = 18;

/// A band of the picture, with what is in it.
fn push_band(text: &mut String, band: &Row, style: Style) {
    let is_hole = band.owner.is_none();
    let (edge, side) = if is_hole { (":", ":") } else { ("+", "|") };
    let inside = if is_hole { " ".repeat(BOX) } else { "-".repeat(BOX) };
    let head = format!("{}, {}", band.name, size(band.len.unwrap_or(0)));
    let words = match &band.owner {
        Some(owner) => format!("{head} ({owner}): {}", band.means),
        None => format!("{head}: {}", band.means),
    };
    push_line(text, band.at, &format!("{edge}{inside}{edge}"), side, &words, style);
    let mut at = band.at.unwrap_or(0);
    for item in &band.rows {
        push_free(text, at, item.at.unwrap_or(0), band, side, style);
        push_item(text, item, side, 0, style);
        at = item.end();
    }
    if !band.rows.is_empty() {
        push_free(text, at, band.end(), band, side, style);
    }
}

/// What is between two items, if it is RAM and worth a line.
fn push_free(text: &mut String, from: u64, to: u64, band: &Row, side: &str, style: Style) {
    let len = to.saturating_sub(from);
    if band.name == "RAM" && len >= 0x1000 {
        push_line(text, None, &format!("{side}{:BOX$}{side}", ""), side, &format!("{} free", size(len)), style);
    }
}

fn push_item(text: &mut String, item: &Row, side: &str, depth: usize, style: Style) {
    let name: String = format!("{:1$}{2}", "", 1 + 2 * depth, item.name).chars().take(BOX).collect();
    let owner = item.owner.as_ref().map_or(String::new(), |owner| format!("{owner}: "));
    let len = item.len.map_or(String::new(), |len| format!("{}, ", size(len)));
    let words = format!("{len}{owner}{}", item.means);
    push_line(text, item.at, &format!("{side}{name:BOX$}{side}"), side, &words, style);
    item.rows.iter().for_each(|part| push_item(text, part, side, depth + 1, style));
}

fn push_line(text: &mut String, at: Option<u64>, picture: &str, side: &str, words: &str, style: Style) {
    let at = at.map_or(String::new(), |at| format!("{at:#x}"));
    let room = style.width() - ADDRESS - BOX - 4;
    let more = format!("{side}{:BOX$}{side}", "");
    for (n, line) in wrapped(words, room).iter().enumerate() {
        let (at, picture) = if n == 0 { (&*at, picture) } else { ("", &*more) };
        *text += format!("{} {} {line}", style.aside(&format!("{at:>ADDRESS$}")), style.name(picture)).trim_end();
        text.push('\n');
    }
}
