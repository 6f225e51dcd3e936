//! The plot: for each chosen quantity a bar for each subject, as an SVG that is legible on white and on black.
//!
//! ```text
//!   4K random read, QD32, k/s ↑
//!   AxVM         ================== 976
//!   Firecracker  =============== 802
//! ```
//!
//! Bars of one quantity share a scale that begins at zero. No script and no font is loaded; a README can show it.

use super::report::{Report, Row, short};

/// What it shows, if it was measured.
const SHOWN: [&str; 14] = [
    "start-128m",
    "start-128m-cpu",
    "start-20",
    "private-dirty",
    "vmlinux",
    "outside-out",
    "rr1",
    "rr32",
    "wr1",
    "cold32",
    "rw32",
    "sr32",
    "net-out",
    "lab-6.1-4",
];
const WIDTH: usize = 900;
const COLUMN: usize = WIDTH / 2;
const BAR: usize = 250;
const LINE: usize = 18;
const STYLE: &str = "text{font:13px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#1f2328}.h{font-weight:600}\
     .s{fill:#59636e}.b0{fill:#0969da}.b1{fill:#54aeff}.b2{fill:#afb8c1}.b3{fill:#6e7781}\
     @media(prefers-color-scheme:dark){text{fill:#e6edf3}.s{fill:#9198a1}.b0{fill:#4493f8}.b1{fill:#1f6feb}\
     .b2{fill:#57606a}.b3{fill:#7d8590}}";

/// The whole file.
pub fn svg(report: &Report) -> String {
    let shown: Vec<&Row> =
        SHOWN.iter().filter_map(|id| report.rows.iter().find(|row| row.quantity.id == *id)).collect();
    let height_of = |row: &Row| (row.cells.iter().flatten().count() + 2) * LINE;
    let (mut bodies, mut top) = (String::new(), 16);
    for pair in shown.chunks(2) {
        for (column, row) in pair.iter().enumerate() {
            bodies.push_str(&block(report, row, 10 + column * COLUMN, top));
        }
        top += pair.iter().map(|row| height_of(row)).max().unwrap_or(0);
    }
    bodies.push_str(&format!(
        "<text class=\"s\" x=\"10\" y=\"{}\">↓ less is better, ↑ more is better; medians, measured in turns</text>\n",
        top + 4
    ));
    top += LINE;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{top}\" viewBox=\"0 0 {WIDTH} {top}\" \
         role=\"img\" aria-label=\"AxVM beside other virtual machine monitors\">\n<style>{STYLE}</style>\n{bodies}</svg>\n"
    )
}

fn block(report: &Report, row: &Row, left: usize, top: usize) -> String {
    let quantity = &row.quantity;
    let better = if quantity.more_is_better { '↑' } else { '↓' };
    let name = super::quantity::by_id(quantity.id.trim_end_matches("-cpu")).filter(|_| quantity.id.ends_with("-cpu"));
    let name = name.map_or(quantity.name.to_owned(), |parent| format!("CPU time: {}", parent.name));
    let mut text =
        format!("<text class=\"h\" x=\"{left}\" y=\"{}\">{name}, {} {better}</text>\n", top + 12, quantity.unit);
    let most = row.cells.iter().flatten().map(|cell| cell.summary.median).fold(f64::MIN_POSITIVE, f64::max);
    let there = report.subjects.iter().zip(&row.cells).filter_map(|(who, cell)| Some((who, cell.as_ref()?)));
    for (line, (who, cell)) in there.enumerate() {
        let median = cell.summary.median;
        let (y, long) = (top + (line + 1) * LINE, (median / most * BAR as f64).max(1.0));
        text.push_str(&format!(
            "<text x=\"{left}\" y=\"{}\">{}</text><rect class=\"{}\" x=\"{}\" y=\"{}\" width=\"{long:.1}\" height=\"12\" \
             rx=\"2\"/><text x=\"{:.1}\" y=\"{}\">{}</text>\n",
            y + 12,
            who.name,
            match who.name.as_str() {
                "AxVM" => "b0",
                "AxVM PCI" => "b1",
                "floor" => "b2",
                _ => "b3",
            },
            left + 120,
            y + 2,
            (left + 126) as f64 + long,
            y + 12,
            short(median)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_in_proportion_and_colours_follow_the_reader() {
        let svg = svg(&super::super::report::tests::report());
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && svg.contains("prefers-color-scheme:dark"));
        for width in ["width=\"125.0\"", "width=\"62.5\"", "width=\"250.0\""] {
            assert_eq!(svg.matches(width).count(), 2, "{width}: {svg}");
        }
        assert!(svg.contains("1 vCPU, ms ↓<") && svg.contains("QD1, k/s ↑<"), "{svg}");
    }
}
