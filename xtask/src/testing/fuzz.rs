//! The fuzz targets: built once, then each run for a fixed time, some side by side.
//!
//! ```text
//!   fuzz/fuzz_targets/NAME.rs --cargo fuzz build--> target/fuzz/.../NAME
//!   fuzz/regressions/NAME/   inputs that once failed: run first, kept in git
//!   target/fuzz/corpus/NAME/    inputs that reach something new: the next run goes on from them
//!   target/fuzz/artifacts/NAME/ inputs that fail now
//! ```
//!
//! Needs a nightly toolchain and cargo-fuzz (installed if missing).

use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result, bail, ensure};

use super::cargo::all_output;
use super::{Outcome, tree};
use crate::progress::Progress;
use crate::project;
use crate::tool::{self, last_lines, output, tool};

/// What cargo-fuzz builds for; the sanitizer wants it named.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// What came of one target.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    /// Name of the target.
    pub name: String,
    /// Inputs tried.
    pub executions: u64,
    /// Places in the code that they reach.
    pub coverage: u64,
    /// How many of these no input reached before this run.
    pub new_coverage: u64,
    /// What failed, and how to see it again.
    pub failure: Option<String>,
}

/// Runs each target of `fuzz/` for so many seconds, two at a time: enough to see that none crashes at once.
pub fn smoke(seconds: u32) -> Result<Outcome> {
    let targets = targets()?;
    if let Err(error) = set_up() {
        let skipped = targets.iter().map(|name| format!("{name}: {error:#}")).collect();
        return Ok(Outcome { skipped, ..Outcome::default() });
    }
    build(&[])?;
    let mut outcome = Outcome::default();
    for run in run_all(&targets, seconds, 2)? {
        crate::progress::print(format_args!("fuzz {}: {} inputs\n", run.name, run.executions));
        match run.failure {
            None => outcome.passed += 1,
            Some(what) => outcome.failed.push(format!("{}:\n{what}", run.name)),
        }
    }
    Ok(outcome)
}

/// All targets there are.
pub fn targets() -> Result<Vec<String>> {
    let dir = project::root().join("fuzz/fuzz_targets");
    let entries = dir.read_dir().with_context(|| format!("Cannot list {}", dir.display()))?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut targets: Vec<String> = names.filter_map(|name| Some(name.strip_suffix(".rs")?.to_owned())).collect();
    targets.sort();
    Ok(targets)
}

/// Finds the toolchain, and gets cargo-fuzz if it is missing.
pub fn set_up() -> Result<()> {
    output(nightly(&["--version"])?.env("RUSTUP_AUTO_INSTALL", "0")).context("No nightly toolchain")?;
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    if tool::find("cargo-fuzz").is_none() && !home.is_some_and(|home| home.join("bin/cargo-fuzz").exists()) {
        let _progress = Progress::spinner("Installing cargo-fuzz");
        output(nightly(&["install", "cargo-fuzz", "--locked", "--quiet"])?.current_dir(project::root()))?;
    }
    Ok(())
}

/// Builds these targets; all if none is named.
pub fn build(targets: &[String]) -> Result<()> {
    let _progress = Progress::spinner("Building the fuzz targets");
    // cargo-fuzz knows no `--locked`.
    tree::locked("fuzz/Cargo.toml")?;
    // With one unit for each crate, as cargo-fuzz has it, a build takes more than twice the processor's time.
    let build = |name: Option<&String>| {
        let mut command = nightly(&["fuzz", "build", "--codegen-units", "16", "--target", TRIPLE])?;
        let (said, ended_well) = all_output(command.args(name).current_dir(project::root()))?;
        ensure!(ended_well, "cargo fuzz build fails:\n{}", last_lines(&said, 30));
        Ok(())
    };
    if targets.is_empty() { build(None) } else { targets.iter().try_for_each(|name| build(Some(name))) }
}

/// Runs each of the targets, which are built, for `seconds`; `jobs` at a time.
pub fn run_all(targets: &[String], seconds: u32, jobs: usize) -> Result<Vec<Run>> {
    let progress = Progress::steps(&format!("Fuzzing, {seconds} s each"), targets.len() as u64);
    let (queue, done) = (Mutex::new(targets.iter()), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let Some(name) = queue.lock().expect("no thread panics with it").next() else { return };
                    let run = run(name, seconds);
                    let mut done = done.lock().expect("no thread panics with it");
                    done.push(run);
                    progress.at(done.len() as u64);
                }
            });
        }
    });
    let mut runs = done.into_inner().expect("no thread panicked").into_iter().collect::<Result<Vec<_>>>()?;
    runs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(runs)
}

fn run(name: &str, seconds: u32) -> Result<Run> {
    let dir = |kind: &str| {
        let dir = fuzz_dir().join(kind).join(name);
        std::fs::create_dir_all(&dir).with_context(|| format!("Cannot make {}", dir.display()))?;
        Ok::<_, anyhow::Error>(dir)
    };
    let (corpus, artifacts) = (dir("corpus")?, dir("artifacts")?);
    let regressions = project::root().join("fuzz/regressions").join(name);
    let program = fuzz_dir().join(TRIPLE).join("release").join(name);
    let mut command = tool(&program.to_string_lossy());
    command.arg(format!("-max_total_time={seconds}")).arg(format!("-artifact_prefix={}/", artifacts.display()));
    // Long inputs from the start: most are scripts of many steps.
    command.args(["-timeout=10", "-len_control=0", "-print_final_stats=1"]).arg(corpus);
    command.args(regressions.is_dir().then_some(regressions));
    // Two copies of one library in one program are no finding.
    let (said, ended_well) = all_output(command.env("ASAN_OPTIONS", "detect_odr_violation=0"))?;
    Ok(read(name, &said, ended_well))
}

/// Understands what a target printed.
fn read(name: &str, said: &str, ended_well: bool) -> Run {
    let executions = said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    let executions = executions.or_else(|| said.lines().rfind(|line| line.contains("cov: ")));
    let executions = executions.and_then(|text| number(text.trim_start_matches('#')));
    let coverage = |line: &str| number(line.split_once("cov: ")?.1);
    let before = said.lines().find(|line| line.contains("INITED")).and_then(coverage).unwrap_or(0);
    let after = said.lines().filter_map(coverage).next_back().unwrap_or(0);
    Run {
        name: name.to_owned(),
        executions: executions.unwrap_or(0),
        coverage: after,
        new_coverage: after.saturating_sub(before),
        failure: (!ended_well).then(|| failure(name, said)),
    }
}

/// The end of what it said, and the line to type.
fn failure(name: &str, said: &str) -> String {
    let end = last_lines(said, 30);
    let Some((_, input)) = said.lines().find_map(|line| line.split_once("Test unit written to ")) else { return end };
    let program = fuzz_dir().join(TRIPLE).join("release").join(name);
    format!(
        "{end}\nTo see it again: {} {input}\nOnce it is mended, keep the input in fuzz/regressions/{name}/",
        program.display()
    )
}

fn number(text: &str) -> Option<u64> {
    text.trim_start().split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Where the sanitizer's build is, apart from the plain one, and what the targets keep.
fn fuzz_dir() -> PathBuf {
    project::target().join("fuzz")
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
    command.env("CARGO_TARGET_DIR", fuzz_dir());
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_found() {
        assert!(targets().unwrap().contains(&"ring".to_owned()));
    }

    #[test]
    fn a_good_run_is_counted() {
        let said = "#2\tINITED cov: 40 ft: 41 corp: 1/1b\n#90\tNEW    cov: 55 ft: 60\n#4711\tDONE   cov: 56 ft: 61\n\
                    stat::number_of_executed_units: 4711\n";
        let run = read("ring", said, true);
        assert_eq!(run, Run { name: "ring".into(), executions: 4711, coverage: 56, new_coverage: 16, failure: None });
    }

    #[test]
    fn a_crash_says_how_to_see_it_again() {
        let said = "#2\tINITED cov: 40 ft: 41\n#90\tNEW    cov: 55 ft: 60\nthread panicked: oh\n\
                    artifact_prefix='/x/'; Test unit written to /x/crash-0a\nBase64: AA==\n";
        let run = read("ring", said, false);
        assert_eq!((run.executions, run.coverage), (90, 55));
        let failure = run.failure.unwrap();
        assert!(
            failure.contains("thread panicked: oh") && failure.contains("/release/ring /x/crash-0a\n"),
            "{failure}"
        );
    }

    #[test]
    fn a_target_that_does_not_start_fails() {
        assert!(read("ring", "", false).failure.is_some());
    }
}
