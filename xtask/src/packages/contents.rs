//! The files of an installed AxVM, below one directory.
//!
//! ```text
//!   bin/axvm                        share/man/man1/axvm.1.gz, axvm-run.1.gz ..
//!   lib/systemd/system/axvm@.service    share/bash-completion, share/zsh, share/fish
//!   lib/sysusers.d, lib/tmpfiles.d  share/doc/axvm: licence, README, book, settings with every key
//! ```
//!
//! Source: Filesystem Hierarchy Standard 3.0, chapter 4; systemd.unit(5), sysusers.d(5), tmpfiles.d(5).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::project::root;
use crate::tool::{output, tool};

/// Below which directory it is installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// By a package of the distribution.
    Usr,
    /// By hand.
    UsrLocal,
}

/// One file.
struct Item {
    name: String,
    bytes: Vec<u8>,
}

/// All of them.
pub struct Contents(Vec<Item>);

impl Contents {
    /// Asks the program for its pages, and takes the rest from the source.
    pub fn gather(axvm: &Path) -> Result<Contents> {
        let ask = |words: &[&str]| output(tool(&axvm.to_string_lossy()).args(words));
        let mut items = vec![Item { name: "bin/axvm".into(), bytes: read(axvm)? }];
        let mut add = |name: String, text: String| items.push(Item { name, bytes: text.into_bytes() });
        add("share/man/man1/axvm.1".into(), ask(&["man"])?);
        for command in commands(&ask(&["--help"])?) {
            add(format!("share/man/man1/axvm-{command}.1"), ask(&["man", &command])?);
        }
        add("share/bash-completion/completions/axvm".into(), ask(&["completions", "bash"])?);
        add("share/zsh/site-functions/_axvm".into(), ask(&["completions", "zsh"])?);
        add("share/fish/vendor_completions.d/axvm.fish".into(), ask(&["completions", "fish"])?);
        add("share/doc/axvm/example.toml".into(), ask(&["config", "--example"])?);
        for (from, to) in [
            ("packaging/systemd/axvm@.service", "lib/systemd/system/axvm@.service"),
            ("packaging/sysusers.d/axvm.conf", "lib/sysusers.d/axvm.conf"),
            ("packaging/tmpfiles.d/axvm.conf", "lib/tmpfiles.d/axvm.conf"),
            ("packaging/README.md", "share/doc/axvm/packaging/README.md"),
            ("LICENSE", "share/doc/axvm/copyright"),
            ("README.md", "share/doc/axvm/README.md"),
            ("CHANGELOG.md", "share/doc/axvm/CHANGELOG.md"),
        ] {
            items.push(Item { name: to.into(), bytes: read(&root().join(from))? });
        }
        for page in below(&root().join("docs"))? {
            let name = page.strip_prefix(root()).unwrap_or(&page).display().to_string();
            items.push(Item { name: format!("share/doc/axvm/{name}"), bytes: read(&page)? });
        }
        Ok(Contents(items))
    }

    /// Bytes of all files, unpacked.
    pub fn len(&self) -> usize {
        self.0.iter().map(|item| item.bytes.len()).sum()
    }

    /// Puts them below `prefix`; pages of the manual packed.
    pub fn write(&self, prefix: &Path, place: Place) -> Result<()> {
        for Item { name, bytes } in &self.0 {
            let path = prefix.join(at(name, place));
            let dir = path.parent().unwrap_or(prefix);
            fs::create_dir_all(dir).with_context(|| format!("Cannot create {}", dir.display()))?;
            fs::write(&path, fitted(name, bytes, place)).with_context(|| format!("Cannot write {}", path.display()))?;
            let mode = if name.starts_with("bin/") { "0755" } else { "0644" };
            output(tool("chmod").arg(mode).arg(&path))?;
            if name.starts_with("share/man/") {
                output(tool("gzip").arg("-9n").arg(&path))?;
            }
        }
        output(tool("chmod").args(["-R", "u=rwX,go=rX"]).arg(prefix)).map(drop)
    }
}

/// Debian's zsh looks for what packages bring in a directory of its own.
fn at(name: &str, place: Place) -> String {
    match place {
        Place::Usr => name.replace("zsh/site-functions", "zsh/vendor-completions"),
        Place::UsrLocal => name.to_owned(),
    }
}

/// The unit names the program where it is.
fn fitted(name: &str, bytes: &[u8], place: Place) -> Vec<u8> {
    match (place, std::str::from_utf8(bytes)) {
        (Place::Usr, Ok(unit)) if name.ends_with(".service") => {
            unit.replace("/usr/local/bin/", "/usr/bin/").into_bytes()
        }
        _ => bytes.to_vec(),
    }
}

/// Commands of the program, as its help lists them; help itself has no page.
fn commands(help: &str) -> Vec<String> {
    let listed = help.split("Commands:\n").nth(1).unwrap_or_default();
    let names =
        listed.lines().take_while(|line| line.starts_with("  ")).filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

/// All files below `dir`, in order.
fn below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in dir.read_dir().with_context(|| format!("Cannot list {}", dir.display()))? {
        let path = entry?.path();
        match path.is_dir() {
            true => found.extend(below(&path)?),
            false => found.push(path),
        }
    }
    found.sort();
    Ok(found)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("Cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_has_what_its_programs_look_for() {
        let unit = b"ExecStart=/usr/local/bin/axvm run";
        assert_eq!(fitted("a.service", unit, Place::Usr), b"ExecStart=/usr/bin/axvm run");
        assert_eq!(fitted("a.service", unit, Place::UsrLocal), unit);
        assert_eq!(at("share/zsh/site-functions/_axvm", Place::Usr), "share/zsh/vendor-completions/_axvm");
    }

    #[test]
    fn commands_are_those_of_the_help() {
        let help = "Usage: axvm\n\nCommands:\n  run   Boot\n  ps    List\n  help  Print this\n\nMore";
        assert_eq!(commands(help), ["run", "ps"]);
    }
}
