//! What a guest proved about itself, read from its console.
//!
//! ```text
//!   kernel command line   axvm.check=cpus:4,disk,log        files/guest/check in the root disk does it
//!   console               CHECK cpus: ok 4 online ...
//!                         LOG <4>[ 0.27] what disturbs check_log
//!                         CHECK log: FAILED 1 lines
//!                         CHECK end: ok
//! ```

/// One thing that was to be proved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Its name, `cpus` for `check_cpus`.
    pub name: String,
    /// Whether it held.
    pub ok: bool,
    /// What the guest saw.
    pub detail: String,
}

/// The verdict on each item of a list like `cpus:4,disk`: what the console does not mention has failed.
pub fn judge(console: &str, list: &str) -> Vec<Check> {
    let said = read(console);
    let names = list.split(',').map(|item| item.split(':').next().unwrap_or_default()).chain(["end"]);
    let mut rest = said.as_slice();
    names
        .map(|name| match rest.iter().position(|check| check.name == name) {
            Some(at) => {
                let check = rest[at].clone();
                rest = &rest[at + 1..];
                check
            }
            None => Check { name: name.to_owned(), ok: false, detail: "the guest did not get there".to_owned() },
        })
        .collect()
}

fn read(console: &str) -> Vec<Check> {
    let (mut checks, mut log) = (Vec::new(), String::new());
    for line in console.lines().map(str::trim_end) {
        if let Some(line) = line.strip_prefix("LOG ") {
            log.push_str("\n    ");
            log.push_str(line);
        } else if let Some((name, result)) = find_check(line) {
            let (ok, detail) = match result.strip_prefix("ok") {
                Some(detail) => (true, detail),
                None => (false, result.strip_prefix("FAILED").unwrap_or(result)),
            };
            let detail = format!("{}{}", detail.trim(), std::mem::take(&mut log));
            checks.push(Check { name: name.to_owned(), ok, detail });
        }
    }
    checks
}

/// The kernel may have written on the same line before.
fn find_check(line: &str) -> Option<(&str, &str)> {
    let at = line.find("CHECK ")?;
    line[at + 6..].split_once(": ").filter(|(name, _)| !name.contains(' '))
}

/// Seconds since the guest's boot when its `/init` ran, as it says itself.
pub fn init_seconds(console: &str) -> Option<f64> {
    let at = console.find("axvm: init after ")?;
    console[at + 17..].split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_item_must_be_there_and_ok() {
        let console = "axvm: init after 3.68 s\r\nCHECK cpus: ok 2 online\r\nLOG <4>[ 1.0] oh\r\n\
                       [  1.2] noise CHECK log: FAILED 1 lines:\r\nCHECK end: ok\r\n";
        let checks = judge(console, "cpus:2,log:lab,disk");
        let short: Vec<_> = checks.iter().map(|check| (check.name.as_str(), check.ok)).collect();
        assert_eq!(short, [("cpus", true), ("log", false), ("disk", false), ("end", true)]);
        assert_eq!(checks[0].detail, "2 online");
        assert!(checks[1].detail.contains("<4>[ 1.0] oh"));
        assert_eq!(init_seconds(console), Some(3.68));
    }

    #[test]
    fn silence_proves_nothing() {
        assert!(judge("", "cpus:1").iter().all(|check| !check.ok));
        assert_eq!(init_seconds(""), None);
    }
}
