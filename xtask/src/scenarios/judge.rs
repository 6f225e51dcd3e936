//! The verdict on a scenario, from what its boots left behind.

use std::fs;
use std::path::Path;

use anyhow::Result;

use super::{Boot, Proof, Scenario};
use crate::assets;
use crate::checks;
use crate::lab::Payload;
use crate::tool::{last_lines, output, tool};

/// How a scenario went.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// The scenario's.
    pub name: &'static str,
    /// Seconds from AxVM's start to the guest's init, first boot.
    pub boot_seconds: Option<f64>,
    /// Seconds of all boots.
    pub seconds: f64,
    /// What did not hold; empty is good.
    pub failures: Vec<String>,
}

/// Judges by `out/NAME/` and the disks; `lab_failure` explains what is missing.
pub(super) fn verdict(
    scenario: &Scenario,
    out: &Path,
    payload: &Payload,
    lab_failure: Option<&str>,
) -> Result<Verdict> {
    let (mut failures, mut seconds) = (Vec::new(), 0.0);
    for (number, boot) in scenario.boots.iter().enumerate() {
        let dir = out.join(scenario.name).join(number.to_string());
        if dir.join("exit").exists() {
            failures.extend(boot_failures(boot, &dir));
        } else {
            let why = lab_failure.unwrap_or("the lab ended before");
            let console = last_lines(&text(&dir.join("console")), 5);
            failures.push(format!("boot {number} did not end: {why}\n{console}"));
        }
        seconds += milliseconds(&dir.join("ms")).unwrap_or(0.0);
    }
    if failures.is_empty() {
        failures = proof_failures(scenario, out, payload)?;
    }
    let boot_seconds = milliseconds(&out.join(scenario.name).join("0/init.ms"));
    Ok(Verdict { name: scenario.name, boot_seconds, seconds, failures })
}

fn boot_failures(boot: &Boot, dir: &Path) -> Vec<String> {
    let (console, exit) = (text(&dir.join("console")), text(&dir.join("exit")));
    let mut failures = Vec::new();
    // A guest that does not end by itself cannot prove anything on its console.
    let ends_itself = matches!(boot.exit, 0 | 3 | 6);
    if exit.trim() != boot.exit.to_string() {
        let hung =
            if exit.trim() == "137" { format!(" (killed after {} s: it hung)", boot.limit) } else { String::new() };
        failures.push(format!("AxVM exited with {}{hung}, expected {}", exit.trim(), boot.exit));
    }
    if ends_itself {
        // A guest that starts again proves all again: one part of the console for each start.
        let starts: Vec<&str> = console.split("axvm: init after").skip(1).collect();
        if starts.len() != boot.rounds {
            failures.push(format!("the guest's init ran {} times, expected {}", starts.len(), boot.rounds));
        }
        let bad = starts.iter().flat_map(|part| checks::judge(part, boot.checks)).filter(|check| !check.ok);
        failures.extend(bad.map(|check| format!("{}: {}", check.name, check.detail)));
    }
    for words in boot.says.iter().filter(|words| !console.contains(**words)) {
        failures.push(format!("the console never said '{words}'"));
    }
    if !failures.is_empty() {
        failures.push(format!("console: {}", last_lines(&console, 8)));
        failures.push(format!("stderr: {}", last_lines(&text(&dir.join("stderr")), 8)));
        let explained = text(&dir.join("explain"));
        if !explained.is_empty() {
            failures.push(format!("what the guest did when its time was over: {explained}"));
        }
    }
    failures
}

fn proof_failures(scenario: &Scenario, out: &Path, payload: &Payload) -> Result<Vec<String>> {
    let dir = out.join(scenario.name);
    let disk = dir.join("disk.img");
    payload.take_file(&format!("disks/{}.img", scenario.name), &disk)?;
    let mut failures = Vec::new();
    for proof in &scenario.proofs {
        if let Err(error) = prove(proof, &dir, &disk, payload) {
            failures.push(format!("{error:#}"));
        }
    }
    if failures.is_empty() {
        fs::remove_file(&disk)?;
    }
    Ok(failures)
}

fn prove(proof: &Proof, dir: &Path, disk: &Path, payload: &Payload) -> Result<()> {
    let seen = text(&dir.join("0/seen"));
    match proof {
        Proof::CleanDisk => output(tool("e2fsck").arg("-fn").arg(disk)).map(drop),
        Proof::SameDisk => output(tool("cmp").arg(disk).arg(assets::root_disk()?)).map(drop),
        Proof::Written(name) => {
            let content = output(tool("debugfs").args(["-R", &format!("cat /root/{name}")]).arg(disk))?;
            let expected: String = (0..2000).map(|line| format!("line {line} of {name}\n")).collect();
            anyhow::ensure!(content == expected, "/root/{name} read outside is not what the guest wrote");
            Ok(())
        }
        Proof::SecondAnswered => {
            let second = dir.join("second.img");
            payload.take_file("second.img", &second)?;
            let bytes = fs::read(&second)?;
            let says = |at: usize, words: &[u8]| bytes.get(at..at + words.len()) == Some(words);
            anyhow::ensure!(says(0, b"host was here") && says(512, b"guest was here"), "second.img: no answer");
            Ok(())
        }
        Proof::Seen(what, holds) => {
            anyhow::ensure!(holds(&seen), "expected {what}, the host saw: {}", seen.trim());
            Ok(())
        }
        Proof::Said(words) => {
            let stderr = text(&dir.join("0/stderr"));
            anyhow::ensure!(stderr.contains(words), "AxVM never said '{words}', but: {}", last_lines(&stderr, 8));
            Ok(())
        }
        Proof::Shrunk(kib) => shrunk(*kib, &seen, &text(&dir.join("du"))),
    }
}

/// Both are what `du -k` printed.
fn shrunk(kib: u64, before: &str, after: &str) -> Result<()> {
    let number = |text: &str| text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok());
    let (Some(before), Some(after)) = (number(before), number(after)) else {
        anyhow::bail!("no size of the image: before '{}', after '{}'", before.trim(), after.trim());
    };
    anyhow::ensure!(after + kib <= before, "the image took {before} KiB before the discard and {after} KiB after");
    Ok(())
}

fn milliseconds(path: &Path) -> Option<f64> {
    Some(text(path).trim().parse::<f64>().ok()? / 1000.0)
}

fn text(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot(checks: &'static str) -> Boot {
        let (arguments, append, before, says, command) = ("", "", "", &[][..], None);
        let (elf, brings, other, on) = (false, None, None, None);
        Boot { arguments, elf, other, brings, before, checks, append, rounds: 1, command, exit: 0, limit: 1, on, says }
    }

    fn judged(console: &str, exit: &str) -> Vec<String> {
        let dir = std::env::temp_dir().join(format!("axvm-judge-{}-{}", std::process::id(), console.len()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("console"), console).unwrap();
        fs::write(dir.join("exit"), exit).unwrap();
        let failures = boot_failures(&boot("disk"), &dir);
        fs::remove_dir_all(&dir).unwrap();
        failures
    }

    #[test]
    fn good_boot_has_no_failure_and_each_kind_of_bad_one_has() {
        let good = "axvm: init after 1 s\nCHECK disk: ok\nCHECK end: ok\n";
        assert!(judged(good, "0\n").is_empty());
        assert!(judged(good, "137\n")[0].contains("it hung"));
        assert!(judged(&good.replace("disk: ok", "disk: FAILED no"), "0\n")[0].contains("disk: no"));
        assert!(judged(&good.repeat(2), "0\n")[0].contains("2 times"));
        assert!(!judged("", "0\n").is_empty());
    }

    #[test]
    fn another_kernel_must_say_its_words() {
        let says = &["Memtest86+ v", "[Address test"];
        let other = crate::scenarios::OtherKernel { name: "m", package: "m", path: "m", append: "" };
        let boot = Boot { other: Some(other), exit: 124, says, ..boot("typed") };
        let dir = std::env::temp_dir().join(format!("axvm-judge-other-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("exit"), "124\n").unwrap();
        let failures = |console: &str| {
            fs::write(dir.join("console"), console).unwrap();
            boot_failures(&boot, &dir)
        };
        assert!(failures("\x1b[1;1H Memtest86+ v6.10 \x1b[4;35H #0  [Address test, walking").is_empty());
        assert!(failures("Memtest86+ v6.10")[0].contains("never said '[Address test'"));
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn image_must_have_shrunk_enough() {
        assert!(shrunk(100, "500 a", "400 a").is_ok());
        assert!(shrunk(100, "500 a", "401 a").is_err());
        assert!(shrunk(100, "", "401 a").is_err());
    }
}
