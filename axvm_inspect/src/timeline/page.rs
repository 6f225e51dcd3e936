//! A timeline as a page: one file that needs no other, and asks for none.
//!
//! ```text
//!   Timeline --> JSON, in a script that is no script --+
//!   page.html, page.js --------------------------------+--> one page
//! ```
//!
//! The guest chose words of it. They are data to the page's program, which makes text of them and no markup; inside of the
//! file no `<` is left of them, so none ends the script that they lie in. The page may load nothing.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::advice::advice;
use super::functions::functions;
use super::phases::{phases, silences};
use super::read::{Name, Slice, Timeline};
use super::summary::{rows, summary};
use crate::symbols::Symbols;

/// Functions in the table.
const FUNCTIONS: usize = 20;
const PAGE: &str = include_str!("page.html");
const SCRIPT: &str = include_str!("page.js");

/// The page; `title` is the file's name, and functions of the guest have these names.
pub fn page(timeline: &Timeline, title: &str, symbols: Option<&Symbols>) -> String {
    let data = data(timeline, title, symbols).to_string().replace('<', "\\u003c");
    let (before, rest) = PAGE.split_once("@DATA@").unwrap_or((PAGE, ""));
    let (between, after) = rest.split_once("@SCRIPT@").unwrap_or((rest, ""));
    [before, &data, between, SCRIPT, after].concat()
}

fn data(timeline: &Timeline, title: &str, symbols: Option<&Symbols>) -> Value {
    let mut reasons = Reasons::default();
    let mut rows_of_page = Vec::new();
    for row in rows(timeline) {
        rows_of_page.push(json!([row.name, reasons.of(timeline, row.reason), row.count, row.total, row.p50, row.p99]));
    }
    let mut exits: Vec<Vec<&Slice>> = vec![Vec::new(); timeline.lanes.len()];
    for slice in timeline.exits.iter().chain(&timeline.steps) {
        exits.get_mut(slice.lane as usize).into_iter().for_each(|lane| lane.push(slice));
    }
    let mut lanes = Vec::new();
    for (number, (name, mut slices)) in (0..).zip(timeline.lanes.iter().zip(exits)) {
        slices.sort_by_key(|slice| slice.at);
        let mut flat = Vec::with_capacity(slices.len() * 4);
        let mut before = 0;
        for slice in slices {
            let reason = reasons.of(timeline, slice.reason);
            flat.extend([slice.at - before, slice.took, slice.name.into(), reason as u64]);
            before = slice.at;
        }
        let mut requests: Vec<_> = timeline
            .requests
            .iter()
            .filter(|request| request.lane == number)
            .map(|request| [request.kicked, request.popped, request.completed, request.told.unwrap_or(0)])
            .collect();
        requests.sort_by_key(|request| request[1]);
        lanes.push(json!({ "name": name, "exits": flat, "requests": requests }));
    }
    let mut marks: Vec<_> = timeline.marks.iter().map(|mark| (mark.at, timeline.word(mark.kind), &mark.text)).collect();
    marks.sort_by_key(|mark| mark.0);
    let phases = phases(timeline);
    let advice: Vec<_> = advice(timeline, &phases).into_iter().map(|advice| (advice.saves, advice.words)).collect();
    let silences: Vec<_> =
        silences(timeline, &phases).iter().map(|silence| (silence.at, silence.took, silence.after)).collect();
    let phases: Vec<_> = phases.iter().map(|phase| (phase.what, phase.from, phase.to)).collect();
    let functions = functions(timeline, symbols).into_iter().take(FUNCTIONS);
    let functions: Vec<_> = functions.map(|row| (row.name, row.register, row.count, row.total)).collect();
    let text = summary(timeline, symbols);
    let about = text.split("\n\n").next().unwrap_or_default().replace('\n', ". ");
    json!({
        "title": title, "about": about, "end": timeline.end, "names": timeline.names, "reasons": reasons.words,
        "lanes": lanes, "marks": marks, "phases": phases, "silences": silences, "advice": advice, "rows": rows_of_page,
        "functions": functions,
    })
}

/// Reasons, numbered: each has a colour.
#[derive(Default)]
struct Reasons {
    numbers: HashMap<Name, usize>,
    words: Vec<String>,
}

impl Reasons {
    fn of(&mut self, timeline: &Timeline, reason: Name) -> usize {
        let words = &mut self.words;
        *self.numbers.entry(reason).or_insert_with(|| {
            words.push(timeline.word(reason).to_owned());
            words.len() - 1
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::read::tests::file;

    #[test]
    fn a_page_has_all_of_it_and_asks_for_nothing() {
        let timeline = Timeline::read(&*file()).unwrap();
        let page = page(&timeline, "t.json", None);
        assert!(!page.contains("@DATA@") && !page.contains("@SCRIPT@"));
        for word in ["https://", "http://", "src=", "href=", "@import", "innerHTML", "eval("] {
            assert!(!page.contains(word), "{word}");
        }
        let json = page.split_once("id=\"data\">").unwrap().1.split_once("</script>").unwrap().0;
        let data: Value = serde_json::from_str(json).unwrap();
        assert_eq!(data["lanes"][1]["exits"].as_array().unwrap().len(), 82 * 4);
        assert_eq!(data["lanes"][2]["requests"], json!([[10_000_000, 11_000_000, 15_000_000, 15_500_000]]));
        assert_eq!(data["about"].as_str().unwrap().split(':').next(), Some("22.0 ms of 1 vCPUs"));
    }

    #[test]
    fn no_word_of_a_guest_is_markup() {
        let mut timeline = Timeline::read(&*file()).unwrap();
        timeline.marks[0].text = "</script><script>alert(1)</script><!--".into();
        let page = page(&timeline, "</title><script>", None);
        assert_eq!((page.matches("<script").count(), page.matches("</script").count()), (2, 2));
        assert_eq!(page.matches("<!--").count(), 0);
    }
}
