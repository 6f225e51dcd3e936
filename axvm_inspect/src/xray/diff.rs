//! What differs between two machines: the two trees side by side.
//!
//! ```text
//!   a: RAM / initrd  at 0x3ffe000      rows of one name and place are a pair, else the first of a name with the first;
//!   b: RAM / initrd  at 0x7ffe000      of a pair, what differs is shown; what has no pair is shown whole
//! ```
//!
//! No specification. Left out: rows that are the same.

use serde::Serialize;

use super::{Row, Style, VERSION, Xray, size};
use crate::text::clean;
use crate::wrap::wrapped;

/// What differs, section by section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diff {
    /// [`VERSION`], as of the trees.
    pub version: u32,
    /// What the first machine is called here.
    pub a: String,
    /// And the second.
    pub b: String,
    /// Sections that differ.
    pub sections: Vec<Changes>,
}

/// What differs in one section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Changes {
    /// As in the trees.
    pub id: &'static str,
    /// As in the trees.
    pub title: &'static str,
    /// What differs, in the order of the first tree.
    pub changes: Vec<Change>,
}

/// A row that is not the same in both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The names on the way to it.
    pub path: Vec<String>,
    /// What the first machine has; none if it has no such row.
    pub a: Option<String>,
    /// What the second has.
    pub b: Option<String>,
}

impl Diff {
    /// Compares `a` and `b`, which are called like this.
    pub fn of((a_name, a): (&str, &Xray), (b_name, b): (&str, &Xray)) -> Diff {
        let mut sections = Vec::new();
        for one in &a.sections {
            let Some(other) = b.sections.iter().find(|other| other.id == one.id) else { continue };
            let mut changes = Vec::new();
            compare(&one.rows, &other.rows, &[], &mut changes);
            if !changes.is_empty() {
                sections.push(Changes { id: one.id, title: one.title, changes });
            }
        }
        Diff { version: VERSION, a: clean(a_name), b: clean(b_name), sections }
    }

    /// For a terminal.
    pub fn text(&self, style: Style) -> String {
        let mut text = format!("{} {}\n{} {}\n", style.paint("31", "-"), self.a, style.paint("32", "+"), self.b);
        if self.sections.is_empty() {
            text += "There is no difference.\n";
        }
        for section in &self.sections {
            text += &format!("\n{}\n", style.title(section.title));
            for change in &section.changes {
                text += &format!("  {}\n", style.name(&change.path.join(" / ")));
                for (sign, colour, side) in [("-", "31", &change.a), ("+", "32", &change.b)] {
                    let lines = side.iter().flat_map(|side| wrapped(side, style.width() - 6));
                    lines.for_each(|line| text += &format!("    {} {line}\n", style.paint(colour, sign)));
                }
            }
        }
        text
    }
}

fn compare(a: &[Row], b: &[Row], path: &[String], changes: &mut Vec<Change>) {
    let partners = partners(a, b);
    let path_to = |row: &Row| path.iter().cloned().chain([row.name.clone()]).collect::<Vec<_>>();
    for (row, partner) in a.iter().zip(&partners) {
        let path = path_to(row);
        let Some(other) = partner.and_then(|at| b.get(at)) else {
            changes.push(Change { path: path.clone(), a: Some(whole(row)), b: None });
            compare(&row.rows, &[], &path, changes);
            continue;
        };
        let (one, two) = different(row, other);
        if one != two {
            changes.push(Change { path: path.clone(), a: Some(one), b: Some(two) });
        }
        compare(&row.rows, &other.rows, &path, changes);
    }
    for (_, row) in b.iter().enumerate().filter(|(at, _)| !partners.contains(&Some(*at))) {
        let path = path_to(row);
        changes.push(Change { path: path.clone(), a: None, b: Some(whole(row)) });
        compare(&[], &row.rows, &path, changes);
    }
}

/// For each row of `a`, which one of `b` it is compared with: that of its name and place, else the next of its name.
fn partners(a: &[Row], b: &[Row]) -> Vec<Option<usize>> {
    let mut partners = vec![None; a.len()];
    let mut taken = vec![false; b.len()];
    let alike: [fn(&Row, &Row) -> bool; 2] =
        [|a, b| (&a.name, a.at, &a.value) == (&b.name, b.at, &b.value), |a, b| a.name == b.name];
    for is_alike in alike {
        for (row, partner) in a.iter().zip(&mut partners).filter(|(_, partner)| partner.is_none()) {
            *partner = (0..b.len()).find(|&at| !taken[at] && is_alike(row, &b[at]));
            partner.iter().for_each(|&at| taken[at] = true);
        }
    }
    partners
}

/// Everything that can differ, as words.
fn fields(row: &Row) -> [Option<String>; 6] {
    [
        row.at.map(|at| format!("at {at:#x}")),
        row.len.map(length),
        row.value.as_ref().map(ToString::to_string),
        row.bytes.clone().filter(|_| row.value.is_none()),
        row.owner.clone(),
        Some(row.means.clone()).filter(|means| !means.is_empty()),
    ]
}

/// Exact, so that what differs looks so.
fn length(len: u64) -> String {
    if len.is_multiple_of(1 << 10) { size(len) } else { format!("{len} bytes") }
}

fn whole(row: &Row) -> String {
    let words: Vec<String> = fields(row).into_iter().flatten().collect();
    if words.is_empty() { "is there".into() } else { words.join("; ") }
}

/// What of two rows is not the same.
fn different(a: &Row, b: &Row) -> (String, String) {
    let pairs = fields(a).into_iter().zip(fields(b)).filter(|(a, b)| a != b);
    let (a, b): (Vec<_>, Vec<_>) = pairs.map(|(a, b)| (a.unwrap_or("-".into()), b.unwrap_or("-".into()))).unzip();
    (a.join("; "), b.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xray::Section;

    fn machine(rows: Vec<Row>) -> Xray {
        let section = Section { id: "machine", title: "Machine", about: String::new(), rows };
        Xray { version: VERSION, name: "test".into(), sections: vec![section] }
    }

    #[test]
    fn rows_of_one_place_are_pairs_and_then_those_of_one_name() {
        let a = machine(vec![Row::new("disk").text("a"), Row::new("disk").text("b"), Row::new("same").value(1)]);
        let b = machine(vec![
            Row::new("disk").text("a"),
            Row::new("disk").text("c"),
            Row::new("same").value(1),
            Row::new("new").value(2),
        ]);
        let diff = Diff::of(("A", &a), ("B", &b));
        let text = diff.text(Style { colour: false, columns: None });
        assert_eq!(text, "- A\n+ B\n\nMachine\n  disk\n    - b\n    + c\n  new\n    + 0x2\n");
        assert!(
            Diff::of(("A", &a), ("A", &a))
                .text(Style { colour: false, columns: None })
                .ends_with("There is no difference.\n")
        );
    }

    #[test]
    fn of_a_pair_only_what_differs_is_told() {
        let row = |at, len| Row::new("kernel").at(at).len(len).means("its bytes").rows(vec![Row::new("part").at(at)]);
        let (a, b) = (machine(vec![row(1, 2)]), machine(vec![row(1, 3)]));
        let changes = Diff::of(("A", &a), ("B", &b)).sections.remove(0).changes;
        assert_eq!(
            changes,
            [Change { path: vec!["kernel".into()], a: Some("2 bytes".into()), b: Some("3 bytes".into()) }]
        );
    }
}
