//! What a timeline tells, as text: where time goes, how long requests take, how the boot went.
//!
//! ```text
//!   Timeline --> exits by number, exits by time | requests by queue | boot | advice
//! ```
//!
//! For a terminal of 80 columns, and for other programs that compare two of them.

use std::collections::HashMap;
use std::fmt::{self, Write};

use super::advice::{Advice, advice};
use super::functions::{Function, functions};
use super::phases::{Phase, Silence, booted, phases, silences};
use super::read::{Name, Timeline};
use crate::symbols::Symbols;
use crate::wrap::wrapped;

/// Rows of a table.
const ROWS: usize = 12;
/// Letters of a bar.
const BAR: u64 = 20;

/// One name's exits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// What was accessed.
    pub name: Name,
    /// And how.
    pub reason: Name,
    /// How often.
    pub count: usize,
    /// How long AxVM took, in nanoseconds: in all, the median, and what one in a hundred exceeds.
    pub total: u64,
    /// The median.
    pub p50: u64,
    /// The 99th percentile.
    pub p99: u64,
}

/// Exits by what was accessed; the one that took longest in all comes first. Those in which a vCPU was held are no work.
pub fn rows(timeline: &Timeline) -> Vec<Row> {
    let mut times: HashMap<(Name, Name), Vec<u64>> = HashMap::new();
    for exit in timeline.exits.iter().filter(|exit| timeline.word(exit.reason) != "kick") {
        times.entry((exit.name, exit.reason)).or_default().push(exit.took);
    }
    let row = |((name, reason), mut times): ((Name, Name), Vec<u64>)| {
        times.sort_unstable();
        let (count, total) = (times.len(), times.iter().fold(0, |sum: u64, time| sum.saturating_add(*time)));
        Row { name, reason, count, total, p50: percentile(&times, 50), p99: percentile(&times, 99) }
    };
    let mut rows: Vec<_> = times.into_iter().map(row).collect();
    rows.sort_unstable_by_key(|row| (std::cmp::Reverse(row.total), row.name, row.reason));
    rows
}

/// Of sorted times; 0 without one.
fn percentile(times: &[u64], percent: usize) -> u64 {
    times.get((times.len().saturating_sub(1)) * percent / 100).copied().unwrap_or(0)
}

/// The latencies of a queue's requests, from pop to completion, sorted.
pub fn latencies(timeline: &Timeline) -> Vec<(&str, Vec<u64>)> {
    let lanes = 0..timeline.lanes.len() as u32;
    let of = |lane| {
        let requests = timeline.requests.iter().filter(|request| request.lane == lane);
        let mut times: Vec<_> = requests.map(|request| request.completed.saturating_sub(request.popped)).collect();
        times.sort_unstable();
        (timeline.lane(lane), times)
    };
    lanes.map(of).filter(|(_, times)| !times.is_empty()).collect()
}

/// Nanoseconds for people.
pub struct Took(pub u64);

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0 as f64;
        let text = match self.0 {
            0..1_000 => format!("{} ns", self.0),
            1_000..1_000_000 => format!("{:.1} us", nanos / 1e3),
            1_000_000..1_000_000_000 => format!("{:.1} ms", nanos / 1e6),
            _ => format!("{:.2} s", nanos / 1e9),
        };
        f.pad(&text)
    }
}

/// The whole summary; functions of the guest by these names.
pub fn summary(timeline: &Timeline, symbols: Option<&Symbols>) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut text, timeline, symbols);
    text
}

fn write(to: &mut String, timeline: &Timeline, symbols: Option<&Symbols>) -> fmt::Result {
    let vcpus = timeline.lanes.iter().filter(|lane| lane.starts_with("vcpu")).count();
    let rows = rows(timeline);
    let (count, total) =
        (rows.iter().map(|row| row.count).sum::<usize>(), rows.iter().map(|row| row.total).sum::<u64>());
    let requests = timeline.requests.len();
    writeln!(
        to,
        "{} of {vcpus} vCPUs: {count} exits, {} in AxVM, {requests} requests",
        Took(timeline.end),
        Took(total)
    )?;
    match timeline.missing {
        Some(0) => {}
        Some(missing) => writeln!(to, "{missing} events are missing: they came too fast, or the file was full")?,
        None => writeln!(to, "The file has no end: the machine was killed, or runs on")?,
    }
    if timeline.strange > 0 {
        writeln!(to, "Lines that are no events of a trace: {}", timeline.strange)?;
    }
    let mut by_count = rows.clone();
    by_count.sort_by_key(|row| std::cmp::Reverse(row.count));
    table(to, timeline, "Exits by number", &by_count, |row| share(row.count as u64, count as u64))?;
    table(to, timeline, "Exits by time in AxVM", &rows, |row| share(row.total, total))?;
    by_function(to, timeline, symbols)?;
    for (queue, times) in latencies(timeline) {
        histogram(to, queue, &times)?;
    }
    let phases = phases(timeline);
    waterfall(to, timeline, &phases)?;
    silent(to, &silences(timeline, &phases))?;
    advise(to, &advice(timeline, &phases), booted(&phases))
}

fn share(part: u64, whole: u64) -> String {
    format!("{:.1}%", part as f64 * 100.0 / whole.max(1) as f64)
}

fn table(
    to: &mut String,
    timeline: &Timeline,
    title: &str,
    rows: &[Row],
    share: impl Fn(&Row) -> String,
) -> fmt::Result {
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(to, "\n{title:<36}{:>8}{:>10}{:>9}{:>9}{:>7}", "count", "total", "p50", "p99", "share")?;
    for row in &rows[..rows.len().min(ROWS)] {
        let direction = timeline.word(row.reason).rsplit(' ').next().unwrap_or_default();
        let name = format!("{} {direction}", timeline.word(row.name));
        let Row { count, total, p50, p99, .. } = *row;
        let (total, p50, p99) = (Took(total), Took(p50), Took(p99));
        writeln!(to, "  {name:<34.34}{count:>8}{total:>10}{p50:>9}{p99:>9}{:>7}", share(row))?;
    }
    if rows.len() > ROWS {
        let rest = &rows[ROWS..];
        let count: usize = rest.iter().map(|row| row.count).sum();
        let total: u64 = rest.iter().map(|row| row.total).sum();
        writeln!(to, "  {:<34}{count:>8}{:>10}", format!("{} others", rest.len()), Took(total))?;
    }
    Ok(())
}

/// Which functions of the guest exit.
fn by_function(to: &mut String, timeline: &Timeline, symbols: Option<&Symbols>) -> fmt::Result {
    let functions = functions(timeline, symbols);
    if functions.is_empty() {
        return Ok(());
    }
    let whole: usize = functions.iter().map(|function| function.count).sum();
    let title = if symbols.is_some() { "Exits by function" } else { "Exits by address (see --symbols)" };
    writeln!(to, "\n{title:<36}{:<17}{:>8}{:>10}{:>7}", "mostly", "count", "total", "share")?;
    for Function { name, register, count, total } in functions.iter().take(ROWS) {
        let (register, total) = (timeline.word(*register), Took(*total));
        let share = share(*count as u64, whole as u64);
        writeln!(to, "  {name:<33.33} {register:<16.16} {count:>8}{total:>10}{share:>7}")?;
    }
    Ok(())
}

/// How many requests took how long: each row is twice as long as the one above.
fn histogram(to: &mut String, queue: &str, times: &[u64]) -> fmt::Result {
    let [p50, p90, p99] = [50, 90, 99].map(|percent| Took(percentile(times, percent)));
    let (count, max) = (times.len(), Took(times.last().copied().unwrap_or(0)));
    writeln!(to, "\nRequests of {queue}: {count}, p50 {p50}, p90 {p90}, p99 {p99}, longest {max}")?;
    let bin = |time: u64| time.max(1).ilog2();
    let (Some(&first), Some(&last)) = (times.first(), times.last()) else { return Ok(()) };
    let bins: Vec<_> =
        (bin(first)..=bin(last)).map(|n| (n, times.iter().filter(|time| bin(**time) == n).count())).collect();
    let most = bins.iter().map(|(_, count)| *count).max().unwrap_or(1) as u64;
    for (n, count) in bins {
        let bar = "#".repeat((count as u64 * BAR).div_ceil(most) as usize);
        writeln!(to, "  to {:>9} {count:>8}  {bar}", Took(2u64.saturating_pow(n + 1)))?;
    }
    Ok(())
}

fn waterfall(to: &mut String, timeline: &Timeline, phases: &[Phase]) -> fmt::Result {
    if phases.is_empty() {
        return Ok(());
    }
    writeln!(to, "\n{:<40}{:>9}{:>9}", "Boot", "at", "took")?;
    let place = |at: u64| (u128::from(at) * u128::from(BAR) / u128::from(timeline.end.max(1))) as usize;
    for Phase { what, from, to: end } in phases {
        let (before, bar) = (" ".repeat(place(*from)), "#".repeat((place(*end) - place(*from)).max(1)));
        writeln!(to, "  {what:<38}{:>9}{:>9}  {before}{bar}", Took(*from), Took(end - from))?;
        let within = |at: u64| (*from..*end).contains(&at);
        for step in timeline.steps.iter().filter(|step| within(step.at)) {
            writeln!(to, "    {:<36.36}{:>9}{:>9}", timeline.word(step.name), Took(step.at), Took(step.took))?;
        }
    }
    Ok(())
}

/// What the kernel did for long without a word.
fn silent(to: &mut String, silences: &[Silence<'_>]) -> fmt::Result {
    if !silences.is_empty() {
        writeln!(to, "\n{:<9}{:>9}  after the kernel's line", "Silent", "at")?;
    }
    let line = |silence: &Silence<'_>| (Took(silence.took), Took(silence.at), silence.after.to_owned());
    silences.iter().map(line).try_for_each(|(took, at, after)| writeln!(to, "  {took:<9}{at:>7}  {after:.60}"))
}

fn advise(to: &mut String, advice: &[Advice], boot: u64) -> fmt::Result {
    if !advice.is_empty() {
        writeln!(to, "\nWhat could be saved")?;
    }
    for Advice { saves, words } in advice {
        let words = format!("up to {} ({}): {words}", Took(*saves), share(*saves, boot));
        let lines = wrapped(&words, 74);
        let indents = std::iter::once("  ").chain(std::iter::repeat("    "));
        indents.zip(lines).try_for_each(|(indent, line)| writeln!(to, "{indent}{line}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::read::tests::file;

    #[test]
    fn a_summary_tells_counts_times_requests_and_phases() {
        let timeline = Timeline::read(&*file()).unwrap();
        let text = summary(&timeline, None);
        for line in [
            "22.0 ms of 1 vCPUs: 82 exits, 232.0 us in AxVM, 1 requests",
            "3 events are missing",
            "  COM1 THR write                          81  162.0 us   2.0 us   2.0 us  69.8%",
            "  vda Status read                          1   70.0 us  70.0 us  70.0 us  30.2%",
            "Requests of vda-q0: 1, p50 4.0 ms",
            "    vcpus                                  1.0 ms   1.0 ms",
            "Silent          at  after the kernel's line\n  3.4 ms    3.0 ms  Linux version 6.12\n",
            "up to 8.0 ms (36.4%): 81 exits: printing on the serial port: each letter",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 84), "{text}");
    }

    #[test]
    fn what_is_no_event_is_said() {
        let file = file();
        let timeline = Timeline::read(&file[..file.len() / 2]).unwrap();
        let text = summary(&timeline, None);
        assert!(
            text.contains("\nThe file has no end") && text.contains("\nLines that are no events of a trace: 1\n"),
            "{text}"
        );
    }

    #[test]
    fn percentiles_are_of_what_is_there() {
        assert_eq!((percentile(&[], 99), percentile(&[7], 50), percentile(&[1, 2, 3], 50)), (0, 7, 2));
    }
}
