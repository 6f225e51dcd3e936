//! The part of BENCHMARKS.md that a run writes: between two markers, and nothing else.

use anyhow::{Context, Result};

/// Where it begins.
pub const BEGIN: &str = "<!-- bench: what follows is written by cargo xtask bench --page -->";
/// Where it ends.
pub const END: &str = "<!-- bench: end -->";

/// `page` with `part` between its markers.
pub fn replaced(page: &str, part: &str) -> Result<String> {
    let (before, rest) = page.split_once(BEGIN).with_context(|| format!("Cannot find the line {BEGIN} in the page"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("Cannot find the line {END} in the page"))?;
    Ok(format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", part.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_markers_changes() {
        let page = format!("# Head\n{BEGIN}\nold\n{END}\nTail\n");
        let new = replaced(&page, "new\n").unwrap();
        assert_eq!(new, format!("# Head\n{BEGIN}\n\nnew\n\n{END}\nTail\n"));
        assert_eq!(replaced(&new, "new").unwrap(), new);
        assert!(replaced("# Head", "new").is_err());
    }

    #[test]
    fn the_page_of_the_repository_has_them() {
        let page = std::fs::read_to_string(crate::project::root().join("BENCHMARKS.md")).unwrap();
        replaced(&page, "x").unwrap();
    }
}
