//! The fuzz targets, each for a short fixed time: enough to see that none crashes at once.

use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Outcome;
use super::cargo::all_output;
use crate::lab::last_lines;
use crate::progress::Progress;
use crate::project;
use crate::tool::{self, output, tool};

/// Runs each target of `fuzz/` for so many seconds.
pub fn smoke(seconds: u32) -> Result<Outcome> {
    let targets = targets()?;
    if let Err(error) = set_up() {
        return Ok(Outcome {
            skipped: targets.iter().map(|name| format!("{name}: {error:#}")).collect(),
            ..Outcome::default()
        });
    }
    {
        let _progress = Progress::spinner("Building the fuzz targets");
        let (said, ended_well) = all_output(nightly(&["fuzz", "build"])?.current_dir(project::root()))?;
        if !ended_well {
            bail!("cargo fuzz build fails:\n{}", last_lines(&said, 30));
        }
    }
    let mut outcome = Outcome::default();
    for name in targets {
        let _progress = Progress::spinner(&format!("Fuzzing {name} for {seconds} s"));
        let limit = format!("-max_total_time={seconds}");
        let mut command = nightly(&["fuzz", "run", &name, "--", &limit, "-timeout=10", "-print_final_stats=1"])?;
        let (said, ended_well) = all_output(command.current_dir(project::root()))?;
        if ended_well {
            outcome.passed += 1;
            println!("fuzz {name}: {} inputs", executed(&said).unwrap_or_default());
        } else {
            outcome.failed.push(format!("{name}:\n{}", last_lines(&said, 30)));
        }
    }
    Ok(outcome)
}

fn targets() -> Result<Vec<String>> {
    let dir = project::root().join("fuzz/fuzz_targets");
    let entries = dir.read_dir().with_context(|| format!("Cannot list {}", dir.display()))?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut targets: Vec<String> = names.filter_map(|name| Some(name.strip_suffix(".rs")?.to_owned())).collect();
    targets.sort();
    Ok(targets)
}

fn set_up() -> Result<()> {
    output(nightly(&["--version"])?.env("RUSTUP_AUTO_INSTALL", "0")).context("No nightly toolchain")?;
    let home = std::env::var_os("CARGO_HOME").map(std::path::PathBuf::from);
    let home = home.or_else(|| Some(std::path::Path::new(&std::env::var_os("HOME")?).join(".cargo")));
    if tool::find("cargo-fuzz").is_none() && !home.is_some_and(|home| home.join("bin/cargo-fuzz").exists()) {
        let _progress = Progress::spinner("Installing cargo-fuzz");
        output(nightly(&["install", "cargo-fuzz", "--locked", "--quiet"])?.current_dir(project::root()))?;
    }
    Ok(())
}

/// Cargo of the nightly toolchain. The variables that the outer cargo sets would lead it back to the stable one.
fn nightly(arguments: &[&str]) -> Result<Command> {
    if tool::find("rustup").is_none() {
        bail!("No rustup to find a nightly toolchain with");
    }
    let mut command = tool("rustup");
    command.args(["run", "nightly", "cargo"]).args(arguments);
    for name in ["CARGO", "RUSTC", "RUSTUP_TOOLCHAIN", "RUSTDOC", "RUSTFLAGS"] {
        command.env_remove(name);
    }
    // The sanitizer's build must not mix with the plain one.
    command.env("CARGO_TARGET_DIR", project::target().join("fuzz"));
    Ok(command)
}

fn executed(said: &str) -> Option<u64> {
    said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_found_and_inputs_counted() {
        assert!(targets().unwrap().contains(&"ring".to_owned()));
        assert_eq!(executed("x\nstat::number_of_executed_units: 4711\n"), Some(4711));
    }
}
