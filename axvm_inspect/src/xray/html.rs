//! The tree as one page for a browser: no script, nothing from a network, light and dark.
//!
//! ```text
//!   name, links to sections
//!   Memory   a bar to scale         |== RAM ==|   hole   |=|
//!            the map, drawn         each band and each thing in it a box, as high as its length has digits in base 2
//!   others   a table each: at, name, value, meaning, bytes, owner, source; parts are further right
//! ```
//!
//! Spec: WHATWG HTML and CSS as browsers of 2021 have them. Left out: search, which a browser has.

use std::fmt::Write;

use super::diff::Diff;
use super::{Row, Section, Value, Xray, memory, size};

/// The look of a page, for both colour schemes.
const STYLE: &str = "\
:root{color-scheme:light dark;--bg:#fff;--fg:#1c2024;--dim:#5b6470;--line:#d5dae0;--soft:#f3f5f7;--link:#0a58ca;\
--ram:#d8ecd9;--hole:#f3f5f7;--reserved:#f6dfd3;--acpi:#dfe3f7;--axvm:#b7d4f0;--kvm:#e3cdf0;--user:#f3e3a6;--wrong:#b3261e}
@media(prefers-color-scheme:dark){:root{--bg:#15181c;--fg:#e4e7ea;--dim:#9aa4af;--line:#343b43;--soft:#1e2328;\
--link:#7fb2ff;--ram:#1f3a26;--hole:#1e2328;--reserved:#45301f;--acpi:#262f52;--axvm:#1e466b;--kvm:#472a5c;\
--user:#564a12;--wrong:#ff8a80}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:75rem;padding:1rem 1.25rem 4rem;background:var(--bg);color:var(--fg);\
font:15px/1.5 system-ui,sans-serif}
h1{font-size:1.5rem;margin:.2rem 0}
nav{display:flex;flex-wrap:wrap;gap:.2rem 1rem;padding:.5rem 0;border-bottom:1px solid var(--line)}
a{color:var(--link)}
section{margin-top:1.6rem;overflow-x:auto}
h2{font-size:1.2rem;margin:0}
p{margin:.2rem 0 .6rem;color:var(--dim);overflow-wrap:anywhere}
table{border-collapse:collapse;width:100%}
th{text-align:left;font-weight:600;color:var(--dim);border-bottom:2px solid var(--line)}
th,td{padding:.18rem .6rem .18rem 0;vertical-align:top}
td{border-bottom:1px solid var(--line)}
.n{font:13px/1.6 ui-monospace,monospace;white-space:nowrap}
.w{overflow-wrap:anywhere}
td.b{font:12px/1.6 ui-monospace,monospace;color:var(--dim);max-width:15rem}
td.s{color:var(--dim);font-size:13px}
.wrong{color:var(--wrong);font-weight:600}
svg{display:block;width:100%;height:2.2rem;border:1px solid var(--line);margin-bottom:.8rem}
.key{display:flex;flex-wrap:wrap;gap:.3rem 1rem;margin:.2rem 0 .6rem;color:var(--dim)}
.key i{display:inline-block;width:1em;height:1em;border:1px solid var(--line);vertical-align:-.15em;margin-right:.35em}
.map{display:grid;grid-template-columns:8.5rem 1fr;border-bottom:1px solid var(--line)}
.map>.n{color:var(--dim);text-align:right;padding:.1rem .6rem 0 0}
.box{border:1px solid var(--line);border-bottom:0;padding:.1rem .6rem}
.in{margin-left:1.5rem}
.box span{color:var(--dim)}
.old{background:var(--reserved)}.new{background:var(--ram)}
.ram{background:var(--ram);fill:var(--ram)}.hole{background:var(--hole);fill:var(--hole)}\
.reserved{background:var(--reserved);fill:var(--reserved)}.acpi{background:var(--acpi);fill:var(--acpi)}\
.axvm{background:var(--axvm);fill:var(--axvm)}.kvm{background:var(--kvm);fill:var(--kvm)}\
.user{background:var(--user);fill:var(--user)}
";

/// The whole page.
pub fn html(xray: &Xray) -> String {
    let mut page = head(&xray.name, xray.sections.iter().map(|section| (section.id, section.title)));
    for section in &xray.sections {
        push_head(&mut page, section.id, section.title, &section.about);
        match section.id {
            memory::ID => push_map(&mut page, section),
            _ => push_table(&mut page, &section.rows),
        }
        page += "</section>\n";
    }
    page + "</body></html>\n"
}

/// The page of a difference.
pub fn diff_html(diff: &Diff) -> String {
    let title = format!("{} and {}", diff.a, diff.b);
    let mut page = head(&title, diff.sections.iter().map(|section| (section.id, section.title)));
    if diff.sections.is_empty() {
        page += "<p>There is no difference.</p>\n";
    }
    for section in &diff.sections {
        push_head(&mut page, section.id, section.title, "");
        let (a, b) = (escaped(&diff.a), escaped(&diff.b));
        let _ = writeln!(page, "<table><tr><th>what</th><th>{a}</th><th>{b}</th></tr>");
        for change in &section.changes {
            let cell = |side: &Option<String>, class| match side {
                Some(text) => format!("<td class=\"w {class}\">{}</td>", escaped(text)),
                None => "<td>-</td>".into(),
            };
            let path = escaped(&change.path.join(" / "));
            let _ =
                writeln!(page, "<tr><td class=w>{path}</td>{}{}</tr>", cell(&change.a, "old"), cell(&change.b, "new"));
        }
        page += "</table></section>\n";
    }
    page + "</body></html>\n"
}

fn head(name: &str, sections: impl Iterator<Item = (&'static str, &'static str)>) -> String {
    let name = escaped(name);
    let links = sections.map(|(id, title)| format!("<a href=\"#{id}\">{}</a>", escaped(title))).collect::<String>();
    format!(
        "<!DOCTYPE html>\n<html lang=en><head><meta charset=utf-8>\n\
         <meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=viewport content=\"width=device-width,initial-scale=1\">\n<title>{name} at power-on</title>\n\
         <style>\n{STYLE}</style></head><body>\n<h1>{name} at power-on</h1>\n<nav>{links}</nav>\n"
    )
}

fn push_head(page: &mut String, id: &str, title: &str, about: &str) {
    let about = if about.is_empty() { String::new() } else { format!("<p>{}</p>\n", escaped(about)) };
    let _ = writeln!(page, "<section id={id}><h2>{}</h2>\n{about}", escaped(title));
}

/// Columns of a table: a heading, a class, and what a row has for it.
type Column = (&'static str, &'static str, fn(&Row) -> Option<String>);

const COLUMNS: [Column; 5] = [
    ("value", "n", |row| row.value.as_ref().map(Value::to_string)),
    ("meaning", "w", |row| Some(row.means.clone()).filter(|means| !means.is_empty())),
    ("bytes", "b", |row| row.bytes.clone()),
    ("from", "s", |row| row.owner.clone()),
    ("defined in", "s", |row| row.source.clone()),
];

fn push_table(page: &mut String, rows: &[Row]) {
    let has_at = has(rows, &|row| row.at.is_some());
    let columns: Vec<_> = COLUMNS.iter().filter(|(.., cell)| has(rows, &|row| cell(row).is_some())).collect();
    *page += "<table><tr>";
    *page += if has_at { "<th>at</th>" } else { "" };
    *page += "<th>name</th>";
    columns.iter().for_each(|(heading, ..)| *page += &format!("<th>{heading}</th>"));
    *page += "</tr>\n";
    push_rows(page, rows, 0, has_at, &columns);
    *page += "</table>";
}

fn has(rows: &[Row], wanted: &dyn Fn(&Row) -> bool) -> bool {
    rows.iter().any(|row| wanted(row) || has(&row.rows, wanted))
}

fn push_rows(page: &mut String, rows: &[Row], depth: usize, has_at: bool, columns: &[&Column]) {
    for row in rows {
        *page += "<tr>";
        if has_at {
            let at = row.at.map_or(String::new(), |at| format!("{at:#x}"));
            let _ = write!(page, "<td class=n>{at}</td>");
        }
        let _ = write!(page, "<td class=n style=\"padding-left:{}em\">{}</td>", depth * 2, escaped(&row.name));
        for (_, class, cell) in columns {
            let text = cell(row).unwrap_or_default();
            // A long value may break.
            let class = if *class == "n" && text.len() > 40 { "w" } else { class };
            let wrong = if text.starts_with("WRONG") { " wrong" } else { "" };
            let _ = write!(page, "<td class=\"{class}{wrong}\">{}</td>", escaped(&text));
        }
        *page += "</tr>\n";
        push_rows(page, &row.rows, depth + 1, has_at, columns);
    }
}

/// The bar and the map.
fn push_map(page: &mut String, section: &Section) {
    let end = section.rows.iter().map(Row::end).max().unwrap_or(0).max(1);
    *page += "<svg viewBox=\"0 0 1000 20\" preserveAspectRatio=none role=img aria-label=\"Bands of memory, to scale\">";
    for band in &section.rows {
        let x = |at: u64| at as f64 / end as f64 * 1000.0;
        let (from, to) = (x(band.at.unwrap_or(0)), x(band.end()));
        let title = format!("{} at {:#x}, {}", band.name, band.at.unwrap_or(0), size(band.len.unwrap_or(0)));
        let _ = write!(
            page,
            "<rect class={} x={from:.2} width={:.2} height=20><title>{}</title></rect>",
            class(band),
            to - from,
            escaped(&title)
        );
    }
    *page += "</svg>\n<div class=key>";
    for (class, words) in [
        ("ram", "RAM"),
        ("reserved", "reserved"),
        ("acpi", "ACPI"),
        ("hole", "hole"),
        ("axvm", "put there by AxVM"),
        ("kvm", "KVM's"),
        ("user", "your files"),
    ] {
        let _ = write!(page, "<span><i class={class}></i>{words}</span>");
    }
    *page += "</div>\n<div class=map>\n";
    section.rows.iter().for_each(|band| push_box(page, band, 0));
    *page += "</div>";
}

fn push_box(page: &mut String, row: &Row, depth: usize) {
    let at = row.at.map_or(String::new(), |at| format!("{at:#x}"));
    let len = row.len.map_or(String::new(), |len| format!(", {}", size(len)));
    let owner = row.owner.as_ref().map_or(String::new(), |owner| format!("{owner}: "));
    // A page is a line high; each doubling adds to it.
    let height = 24 + 3 * row.len.unwrap_or(1).max(1).ilog2().saturating_sub(12);
    let _ = writeln!(
        page,
        "<div class=n>{at}</div><div class=\"box {}{}\" style=\"min-height:{height}px{}\"><b>{}</b>{len} <span>{}</span></div>",
        class(row),
        if depth > 0 { " in" } else { "" },
        if depth > 1 { format!(";margin-left:{}rem", 1.5 * depth as f64) } else { String::new() },
        escaped(&row.name),
        escaped(&(owner + &row.means))
    );
    row.rows.iter().for_each(|row| push_box(page, row, depth + 1));
}

/// The colour of a band, or of what is in one.
fn class(row: &Row) -> &'static str {
    match (&*row.name, row.owner.as_deref()) {
        ("RAM", _) => "ram",
        ("reserved", _) => "reserved",
        ("ACPI data" | "ACPI NVS", _) => "acpi",
        (_, Some("AxVM")) => "axvm",
        (_, Some("KVM")) => "kvm",
        ("hole", None) => "hole",
        _ => "user",
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            _ => out.push(letter),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xray::VERSION;

    #[test]
    fn no_name_is_markup() {
        let row = Row::new("<script>alert(1)</script>").text("\"&'").means("<b>");
        let section = Section { id: "machine", title: "Machine", about: "<i>".into(), rows: vec![row] };
        let page = html(&Xray { version: VERSION, name: "</title><x>".into(), sections: vec![section] });
        for bad in ["<script", "<b>", "<i>", "<x>", "\"&'"] {
            assert!(!page.contains(bad), "{bad} in {page}");
        }
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    }

    #[test]
    fn a_page_needs_no_network() {
        let page = html(&Xray { version: VERSION, name: "test".into(), sections: Vec::new() });
        for outside in ["http://", "https://", "src=", "url(", "@import", "<link"] {
            assert!(!page.contains(outside), "{outside}");
        }
    }
}
