//! Every link of the built book, followed: is there a file, and in it the place, where it points?
//!
//! Left out: addresses of the web.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Links of the HTML below `dir` that lead nowhere.
pub fn lost(dir: &Path) -> Result<Vec<String>> {
    let mut lost = Vec::new();
    for file in pages(dir)? {
        let text = fs::read_to_string(&file).with_context(|| format!("Cannot read {}", file.display()))?;
        let nowhere = links(&text).filter(|link| !leads(link, &file, &text));
        let name = file.strip_prefix(dir).unwrap_or(&file).display();
        lost.extend(nowhere.map(|link| format!("{name}: {link}")));
    }
    Ok(lost)
}

fn pages(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut pages = Vec::new();
    for entry in dir.read_dir().with_context(|| format!("Cannot list {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            pages.extend(self::pages(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "html")
            // This one is for addresses that are not known; its links are those of the site's root.
            && !path.ends_with("404.html")
        {
            pages.push(path);
        }
    }
    pages.sort();
    Ok(pages)
}

/// Targets of a page's links, the web left out.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let all = text.split(" href=\"").skip(1).filter_map(|rest| rest.split('"').next());
    all.filter(|link| !link.contains("://") && !link.is_empty())
}

fn leads(link: &str, page: &Path, text: &str) -> bool {
    let (file, heading) = link.split_once('#').unwrap_or((link, ""));
    let path = page.parent().unwrap_or(page).join(file.replace("%2e", "."));
    let has = |text: &str| heading.is_empty() || text.contains(&format!("id=\"{heading}\""));
    match () {
        () if file.is_empty() => has(text),
        // The place in a file of the repository is looked up where pages are tried.
        () if path.extension().is_none_or(|extension| extension != "html") => path.exists(),
        () => fs::read_to_string(path).is_ok_and(|text| has(&text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_to_nothing_is_found() {
        let dir = std::env::temp_dir().join(format!("axvm-followed-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let write = |name: &str, text: &str| fs::write(dir.join(name), text).unwrap();
        write("a.html", r##"<a href="b.html#two"> <a href="#one" id="one"> <a href="https://x.y"> <a href="c%2emd">"##);
        write("b.html", r#"<h2 id="two"> <a href="a.html#three"> <a href="d.html">"#);
        write("c.md", "");
        let lost = lost(&dir).unwrap();
        fs::remove_dir_all(dir).unwrap();
        assert_eq!(lost, ["b.html: a.html#three", "b.html: d.html"]);
    }
}
