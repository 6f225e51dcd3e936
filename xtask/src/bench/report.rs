//! What came of a measurement: as a table on a terminal, as Markdown for a page, as JSON.

use serde::{Deserialize, Serialize};

use super::Samples;
use super::quantity::{self, Quantity};
use super::statistics::{Ratio, Summary, ratio, summary};
use super::subject::Subject;

/// All of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The machine it ran on.
    pub host: String,
    /// Who was measured.
    pub subjects: Vec<Measured>,
    /// What was measured, in order.
    pub rows: Vec<Row>,
}

/// What is read of JSON: all else follows.
#[derive(Deserialize)]
struct Kept {
    host: String,
    subjects: Vec<Measured>,
    rows: Vec<KeptRow>,
}

#[derive(Deserialize)]
struct KeptRow {
    id: String,
    cells: Vec<Option<KeptCell>>,
}

#[derive(Deserialize)]
struct KeptCell {
    samples: Vec<f64>,
}

/// One of those measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measured {
    /// In tables.
    pub name: String,
    /// As it calls itself.
    pub version: String,
    /// What was chosen for it.
    pub configuration: String,
}

impl Measured {
    /// Neither the floor nor AxVM in another form.
    fn is_peer(&self) -> bool {
        !matches!(self.name.as_str(), "AxVM" | "AxVM PCI" | "floor")
    }
}

/// One quantity.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Which.
    #[serde(flatten)]
    pub quantity: Quantity,
    /// For each subject, if it was measured; AxVM's is the first.
    pub cells: Vec<Option<Cell>>,
}

/// A quantity of one subject.
#[derive(Debug, Serialize)]
pub struct Cell {
    /// Of its samples.
    #[serde(flatten)]
    pub summary: Summary,
    /// AxVM's median by this one's.
    pub ratio: Option<Ratio>,
    /// In the order of the rounds.
    pub samples: Vec<f64>,
}

impl Report {
    /// From samples.
    pub fn of(samples: &Samples, subjects: &[Subject], host: String) -> Report {
        let measured = |subject: &Subject| Measured {
            name: subject.name().to_owned(),
            version: subject.version.clone(),
            configuration: subject.configuration().to_owned(),
        };
        Report::assemble(samples, subjects.iter().map(measured).collect(), host)
    }

    /// From the JSON of earlier runs; computed anew from their samples. The first says who and where; what another has of
    /// those is added.
    pub fn from_json<'a>(texts: impl IntoIterator<Item = &'a str>) -> serde_json::Result<Report> {
        let kept: Vec<Kept> = texts.into_iter().map(serde_json::from_str).collect::<serde_json::Result<_>>()?;
        let (mut samples, mut first) = (Samples::new(), None);
        for Kept { host, subjects, rows } in kept {
            let (_, known) = first.get_or_insert((host, subjects.clone()));
            let place = |at: usize| {
                known.iter().position(|known| subjects.get(at).is_some_and(|subject| subject.name == known.name))
            };
            for row in rows {
                for (at, cell) in row.cells.into_iter().enumerate() {
                    samples.extend(place(at).zip(cell).map(|(at, cell)| ((row.id.clone(), at), cell.samples)));
                }
            }
        }
        let (host, subjects) = first.unwrap_or_default();
        Ok(Report::assemble(&samples, subjects, host))
    }

    fn assemble(samples: &Samples, subjects: Vec<Measured>, host: String) -> Report {
        let cell = |id: &str, at: usize| {
            let own = samples.get(&(id.to_owned(), at))?;
            let ratio = samples.get(&(id.to_owned(), 0)).filter(|_| at > 0).and_then(|ours| ratio(ours, own));
            Some(Cell { summary: summary(own)?, ratio, samples: own.clone() })
        };
        let row =
            |quantity: Quantity| Row { quantity, cells: (0..subjects.len()).map(|at| cell(quantity.id, at)).collect() };
        let rows: Vec<Row> = quantity::ALL.into_iter().map(row).collect();
        let rows = rows.into_iter().filter(|row| row.cells.iter().any(Option::is_some)).collect();
        Report { host, subjects, rows }
    }

    /// For a terminal: a line for each quantity and subject.
    pub fn table(&self) -> String {
        let mut text = format!("{}\n", self.host);
        for row in &self.rows {
            text.push_str(&format!("\n{}{}\n", row.quantity.name, row.quantity.in_unit()));
            for (subject, cell) in self.subjects.iter().zip(&row.cells) {
                let Some(Cell { summary, ratio, .. }) = cell else { continue };
                let Summary { n, median, p10, p90 } = summary;
                text.push_str(&format!(
                    "  {:16} {:>9}  p10 {:>9}  p90 {:>9}  n {n:3}",
                    subject.name,
                    short(*median),
                    short(*p10),
                    short(*p90)
                ));
                if let Some(Ratio { value, low, high }) = ratio {
                    text.push_str(&format!("  AxVM / it {value:5.2} ({low:.2} to {high:.2})"));
                }
                text.push('\n');
            }
        }
        text + &self.behind()
    }

    /// For a page: a row for each quantity, a column for each subject.
    pub fn markdown(&self) -> String {
        let mut text = format!("{}\n\n|", self.host);
        for name in ["", "n"].into_iter().chain(self.subjects.iter().map(|subject| subject.name.as_str())) {
            text.push_str(&format!(" {name} |"));
        }
        text.push_str(&format!("\n|---|---|{}\n", "---|".repeat(self.subjects.len())));
        for row in &self.rows {
            let n = row.cells.iter().flatten().next().map_or(0, |cell| cell.summary.n);
            text.push_str(&format!("| {}{} | {n} |", row.quantity.name, row.quantity.in_unit()));
            row.cells
                .iter()
                .for_each(|cell| text.push_str(&format!(" {} |", cell.as_ref().map_or_else(String::new, words))));
            text.push('\n');
        }
        text.push_str("\n| | version | configuration |\n|---|---|---|\n");
        for Measured { name, version, configuration } in &self.subjects {
            text.push_str(&format!("| {name} | {version} | {configuration} |\n"));
        }
        text + &self.behind()
    }

    /// Where AxVM loses to a peer, so that it is seen.
    fn behind(&self) -> String {
        if !self.subjects.iter().any(Measured::is_peer) {
            return String::new();
        }
        let mut losses = Vec::new();
        for row in &self.rows {
            for (subject, cell) in self.subjects.iter().zip(&row.cells).skip(1) {
                let Some(Ratio { value, low, high }) = cell.as_ref().and_then(|cell| cell.ratio) else { continue };
                let worse = if row.quantity.more_is_better { high < 1.0 } else { low > 1.0 };
                if worse && subject.is_peer() {
                    let parent = self.parent(row);
                    let name = format!("{parent}{}", row.quantity.name);
                    losses.push(format!("* {name}: {value:.2} of {} ({low:.2} to {high:.2})\n", subject.name));
                }
            }
        }
        match losses.is_empty() {
            true => "\nAxVM is behind no peer here.\n".to_owned(),
            false => format!("\nAxVM is behind a peer, with the whole interval, in:\n\n{}", losses.concat()),
        }
    }

    /// The quantity that "its" in this one's name means.
    fn parent(&self, row: &Row) -> String {
        if !row.quantity.name.starts_with("its ") && !row.quantity.name.starts_with("CPU ") {
            return String::new();
        }
        let stem = row.quantity.id.rsplit_once('-').map_or("", |(stem, _)| stem);
        quantity::by_id(stem).map_or_else(String::new, |parent| format!("{}: ", parent.name))
    }

    /// What is so slow beside the floor that no load of the machine explains it.
    pub fn gross(&self) -> Vec<String> {
        let floor = self.subjects.iter().position(|subject| subject.name == "floor");
        let judge = |&(id, bar): &(&str, f64)| {
            let row = self.rows.iter().find(|row| row.quantity.id == id);
            let ratio = row.zip(floor).and_then(|(row, floor)| row.cells[floor].as_ref()?.ratio);
            match ratio {
                None => Some(format!("{id} was not measured beside the floor")),
                Some(ratio) if ratio.low > bar => Some(format!(
                    "{id}: {:.1} times the floor ({:.1} to {:.1}), the bar is {bar}",
                    ratio.value, ratio.low, ratio.high
                )),
                Some(_) => None,
            }
        };
        BARS.iter().filter_map(judge).collect()
    }
}

/// About three times what was measured when they were set: for mistakes, not for percents. Where the processor has
/// virtualization an exit is short, and a VMM's part of it the larger.
pub const BARS: [(&str, f64); 8] = [
    ("start-128m", 15.0),
    ("start-128m-cpu", 20.0),
    ("start-128m-faults", 15.0),
    ("start-20", 10.0),
    ("private-dirty", 40.0),
    ("resident", 15.0),
    ("off", 8.0),
    ("exit-out", 4.0),
];

impl Quantity {
    fn in_unit(&self) -> String {
        if self.unit.is_empty() { String::new() } else { format!(", {}", self.unit) }
    }
}

fn words(cell: &Cell) -> String {
    let Summary { median, p10, p90, .. } = cell.summary;
    let spread = format!("{} ({} to {})", short(median), short(p10), short(p90));
    match cell.ratio {
        None => format!("**{}** ({} to {})", short(median), short(p10), short(p90)),
        Some(Ratio { value, low, high }) => format!("{spread}; **{value:.2}** ({low:.2} to {high:.2})"),
    }
}

/// Three digits, or all before the point.
pub fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::bench::subject::Kind;

    /// AxVM at twice the floor, and half of QEMU, in costs; the same numbers as rates.
    pub fn report() -> Report {
        let subject = |kind| Subject { kind, path: "/x".into(), version: "1.2".into() };
        let mut samples = Samples::new();
        for id in ["start-128m", "rr1", "rr1-cpu"] {
            for (at, value) in [4.0, 2.0, 8.0].into_iter().enumerate() {
                samples.insert((id.to_owned(), at), vec![value; 10]);
            }
        }
        Report::of(&samples, &[Kind::Axvm, Kind::Floor, Kind::Qemu].map(subject), "A host".to_owned())
    }

    #[test]
    fn tables_have_medians_and_ratios() {
        let report = report();
        let line =
            "  QEMU microvm          8.00  p10      8.00  p90      8.00  n  10  AxVM / it  0.50 (0.50 to 0.50)\n";
        assert!(report.table().contains(line), "{}", report.table());
        let row = "| exec to first guest byte, 128 MiB, 1 vCPU, ms | 10 | **4.00** (4.00 to 4.00) | \
                   2.00 (2.00 to 2.00); **2.00** (2.00 to 2.00) | 8.00 (8.00 to 8.00); **0.50** (0.50 to 0.50) |\n";
        assert!(report.markdown().contains(row), "{}", report.markdown());
    }

    #[test]
    fn losses_are_named_and_the_floor_is_no_peer() {
        let behind = report().behind();
        assert!(behind.contains("* 4K random read, QD1: 0.50 of QEMU microvm"), "{behind}");
        assert_eq!(behind.matches("* ").count(), 1, "{behind}");
        let mut alone = report();
        alone.subjects.truncate(2);
        assert_eq!(alone.behind(), "");
    }

    #[test]
    fn gross_is_what_a_bar_says_and_what_is_missing() {
        let mut report = report();
        let missing = report.gross();
        assert!(missing.iter().any(|line| line == "off was not measured beside the floor"), "{missing:?}");
        assert!(!missing.iter().any(|line| line.starts_with("start-128m:")), "{missing:?}");
        report.rows[0].cells[1].as_mut().unwrap().ratio = Some(Ratio { value: 20.0, low: 16.0, high: 22.0 });
        assert!(report.gross()[0].starts_with("start-128m: 20.0 times the floor"), "{:?}", report.gross());
    }

    #[test]
    fn json_has_every_sample() {
        let json = serde_json::to_value(report()).unwrap();
        let cell = &json["rows"][0]["cells"][2];
        assert_eq!((&json["rows"][0]["id"], &cell["n"]), (&"start-128m".into(), &10.into()));
        assert_eq!(cell["samples"].as_array().unwrap().len(), 10);
    }

    #[test]
    fn json_gives_the_same_tables_again() {
        let text = serde_json::to_string(&report()).unwrap();
        assert_eq!(Report::from_json([&*text]).unwrap().markdown(), report().markdown());
        assert!(Report::from_json(["{}"]).is_err());
    }

    #[test]
    fn a_second_file_adds_rows_to_those_of_the_same_name() {
        let text = serde_json::to_string(&report()).unwrap();
        let other = text.replace("\"rr1\"", "\"rr32\"").replace("\"floor\"", "\"ceiling\"");
        let both = Report::from_json([&*text, &*other]).unwrap();
        let row = both.rows.iter().find(|row| row.quantity.id == "rr32").unwrap();
        assert_eq!(row.cells.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, true]);
        assert_eq!(both.rows.len(), report().rows.len() + 1);
    }

    #[test]
    fn numbers_have_three_digits() {
        assert_eq!([0.5, 12.34, 123.4, 4096.0].map(short), ["0.50", "12.3", "123", "4096"]);
    }
}
