//! The lab tests: what AxVM must do with real kernels, each scenario a few boots with things to prove.
//!
//! ```text
//!   list.rs  the scenarios      script.rs  --> one job for one lab run (files/lab/scenarios.sh)
//!                               judge.rs   <-- out/SCENARIO/BOOT/{console, exit, ...} and the disks
//! ```
//!
//! One lab run carries all scenarios of a kernel; each boot has its own time limit, console and verdict, so a hang costs
//! only itself.

mod connected;
mod debugged;
mod judge;
mod list;
mod plain;
mod script;
mod standard;
mod timeline;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::assets::{self, Alpine, Debian, Kernel, Wanted};
use crate::lab::{Console, End, Files, Lab, LabJob, LabReport};
use crate::program;
use crate::progress::Progress;
use crate::project;

pub use judge::Verdict;
pub use list::{all, alpine, distribution, few, fewest, others, shared_out};

/// A few boots of one machine with the same disk, and what must be true afterwards.
pub struct Scenario {
    /// Unique; letters, digits and dashes.
    pub name: &'static str,
    /// Run one after the other.
    pub boots: Vec<Boot>,
    /// Checked on the host when all is over.
    pub proofs: Vec<Proof>,
}

impl Scenario {
    /// The kernels that are not Linux.
    fn others(&self) -> impl Iterator<Item = OtherKernel> {
        self.boots.iter().filter_map(|boot| boot.other)
    }
}

/// One start of AxVM.
#[derive(Clone, Copy)]
pub struct Boot {
    /// Arguments beside kernel, initrd and command line; `DISK` stands for the scenario's root disk.
    pub arguments: &'static str,
    /// The ELF kernel instead of the bzImage.
    pub elf: bool,
    /// Another kernel instead, without an initrd; it is asked for nothing.
    pub other: Option<OtherKernel>,
    /// Brings more programs to the outer machine, which must be there.
    pub brings: Option<fn() -> Result<Files>>,
    /// A shell line of the outer machine before it starts.
    pub before: &'static str,
    /// The list for `axvm.check=`; `NOW` stands for the time. `typed` alone asks the guest for nothing: the shell comes.
    pub checks: &'static str,
    /// More for the kernel command line.
    pub append: &'static str,
    /// How often the checks are made: once for each time the guest starts.
    pub rounds: usize,
    /// AxVM's exit code.
    pub exit: u8,
    /// A command for the guest instead of its init, as the shell of the lab reads it.
    pub command: Option<&'static str>,
    /// Seconds until it is killed and counts as hung.
    pub limit: u64,
    /// What its console must say.
    pub says: &'static [&'static str],
    /// When the console says this, the outer machine runs the shell line, with `$pid` of AxVM.
    pub on: Option<(&'static str, &'static str)>,
}

/// A kernel that is not Linux.
#[derive(Debug, Clone, Copy)]
pub struct OtherKernel {
    /// Its name in the lab.
    pub name: &'static str,
    /// The package that has it.
    pub package: &'static str,
    /// Where it is in there.
    pub path: &'static str,
    /// Its command line.
    pub append: &'static str,
}

impl OtherKernel {
    fn get(&self) -> Result<PathBuf> {
        assets::packaged(self.package, self.path)
    }
}

/// What must be true on the host, afterwards.
#[derive(Debug, Clone)]
pub enum Proof {
    /// `e2fsck -fn` finds nothing.
    CleanDisk,
    /// The disk is byte for byte as it was.
    SameDisk,
    /// The file that `check_write NAME` left on the disk is as it should be.
    Written(&'static str),
    /// The second disk carries the guest's answer.
    SecondAnswered,
    /// What the first boot's action printed satisfies this; the words say what was expected.
    Seen(&'static str, fn(&str) -> bool),
    /// AxVM said so on stderr in the first boot.
    Said(&'static str),
    /// The image takes up this many KiB less than what the action saw.
    Shrunk(u64),
}

/// How often the lab is begun anew when its outer machine dies.
const ATTEMPTS: u32 = 3;

/// Some scenarios on one system.
pub struct Campaign {
    system: System,
    /// `6.1`
    pub name: &'static str,
    scenarios: Vec<Scenario>,
    /// Kernels that are not Linux, and programs, with their names in the lab.
    others: Files,
}

/// What is started.
struct System {
    kernel: PathBuf,
    /// The same kernel as an ELF file, where a scenario wants it.
    vmlinux: Option<PathBuf>,
    initrd: PathBuf,
    /// Copied for each scenario.
    disk: PathBuf,
}

/// The scenarios whose kernels and programs are to be had, and those of them that are not Linux.
fn with_others(mut scenarios: Vec<Scenario>) -> (Vec<Scenario>, Files) {
    let mut files = Vec::new();
    scenarios.retain(|scenario| {
        let found: Result<Vec<_>> = scenario.others().map(|other| Ok((other.get()?, other.name.to_owned()))).collect();
        let brought = scenario.boots.iter().filter_map(|boot| boot.brings).map(|bring| bring());
        found
            .and_then(|found| Ok([vec![found], brought.collect::<Result<_>>()?].concat()))
            .map(|found| files.extend(found.into_iter().flatten()))
            .inspect_err(|why| eprintln!("The lab goes without {}: {why:#}", scenario.name))
            .is_ok()
    });
    files.sort();
    files.dedup();
    (scenarios, files)
}

impl Campaign {
    /// The scenarios on a stock kernel with our own small system.
    pub fn new(wanted: &Wanted, scenarios: Vec<Scenario>, axvm: &Path) -> Result<Self> {
        let agent = program::agent(axvm)?;
        let _lock = assets::lock()?;
        let kernel = Kernel::get(wanted)?;
        let elf = scenarios.iter().flat_map(|scenario| &scenario.boots).any(|boot| boot.elf);
        let system = System {
            vmlinux: elf.then(|| kernel.vmlinux()).transpose()?,
            initrd: assets::initrd(&[&kernel], &agent)?,
            kernel: kernel.image,
            disk: assets::root_disk()?,
        };
        let (scenarios, mut others) = with_others(scenarios);
        others.push((assets::vsock_trial()?, "bin/vsock-trial".to_owned()));
        Ok(Self { system, name: wanted.name, scenarios, others })
    }

    /// The scenarios on a whole distribution.
    pub fn debian(scenarios: Vec<Scenario>) -> Result<Self> {
        let _lock = assets::lock()?;
        let Debian { kernel, initrd, disk } = Debian::get()?;
        Ok(Self {
            system: System { kernel, vmlinux: None, initrd, disk },
            name: "debian",
            scenarios,
            others: Vec::new(),
        })
    }

    /// The scenarios on Alpine's kernel and initrd, with our own small system on the disk.
    pub fn alpine(scenarios: Vec<Scenario>) -> Result<Self> {
        let _lock = assets::lock()?;
        let Alpine { kernel, initrd } = Alpine::get()?;
        let system = System { kernel, vmlinux: None, initrd, disk: assets::root_disk()? };
        Ok(Self { system, name: "alpine", scenarios, others: Vec::new() })
    }

    /// Runs them in one lab run, and gives a verdict on each. What the outer machine's death left open is tried again: that
    /// is a fault of the emulated processor, not of AxVM.
    pub fn run(&self, lab: &Lab, axvm: &Path) -> Result<Vec<Verdict>> {
        let mut open: Vec<&Scenario> = self.scenarios.iter().collect();
        let mut verdicts = Vec::new();
        for attempt in 1.. {
            let report = self.attempt(lab, axvm, &open)?;
            let (good, bad): (Vec<_>, Vec<_>) =
                self.verdicts(&report, &open)?.into_iter().partition(|verdict| verdict.failures.is_empty());
            verdicts.extend(good);
            match &report.end {
                End::OuterDied(why) if attempt < ATTEMPTS && !bad.is_empty() => {
                    let (count, why) = (bad.len(), why.lines().next().unwrap_or_default());
                    eprintln!("The lab's outer machine failed, {count} scenarios are tried again: {why}");
                    open.retain(|scenario| bad.iter().any(|verdict| verdict.name == scenario.name));
                }
                _ => {
                    verdicts.extend(bad);
                    break;
                }
            }
        }
        let place = |verdict: &Verdict| self.scenarios.iter().position(|scenario| scenario.name == verdict.name);
        verdicts.sort_by_key(place);
        Ok(verdicts)
    }

    /// One lab run.
    fn attempt(&self, lab: &Lab, axvm: &Path, open: &[&Scenario]) -> Result<LabReport> {
        let boots: usize = open.iter().map(|scenario| scenario.boots.len()).sum();
        let progress = Progress::steps(&format!("Lab {}", self.name), boots as u64);
        let done = std::cell::Cell::new(0);
        let note = |line: &str| {
            if let Some(dir) = line.strip_prefix("start out/") {
                progress.note(format!("Lab {}: {dir}", self.name));
            } else {
                done.set(done.get() + 1);
                progress.at(done.get());
            }
        };
        let limits: u64 = open.iter().flat_map(|scenario| &scenario.boots).map(|boot| boot.limit).sum();
        let job = LabJob {
            script: script::job(open),
            files: self.files(axvm, open),
            limit: Some(Duration::from_secs(60 + limits)),
            console: Console::Kept,
            note: &note,
        };
        lab.run_once(&job)
    }

    fn files(&self, axvm: &Path, open: &[&Scenario]) -> Files {
        let System { kernel, vmlinux, initrd, disk } = &self.system;
        let files = [(Some(axvm), "bin/axvm"), (Some(kernel), "bzImage"), (vmlinux.as_deref(), "vmlinux")];
        let files = files.into_iter().chain([(Some(initrd.as_path()), "initrd.img")]);
        let mut files: Vec<_> = files.filter_map(|(file, name)| Some((file?.to_owned(), name.to_owned()))).collect();
        files.extend(self.others.iter().cloned());
        files.extend(open.iter().map(|scenario| (disk.clone(), format!("disks/{}.img", scenario.name))));
        files
    }

    fn verdicts(&self, report: &LabReport, open: &[&Scenario]) -> Result<Vec<Verdict>> {
        let out = project::target().join("lab-tests").join(self.name);
        report.payload.take_directory("out", &out)?;
        fs::write(out.join("outer-console"), &report.outer_console).context("Cannot keep the outer console")?;
        let lab_failure = match &report.end {
            End::Exit(_) => None,
            End::TimeLimit(limit) => Some(format!("the whole run took more than {} s", limit.as_secs())),
            End::OuterDied(why) => {
                Some(format!("the lab itself failed, not AxVM: {}", crate::tool::last_lines(why, 5)))
            }
        };
        let judge = |scenario: &&Scenario| judge::verdict(scenario, &out, &report.payload, lab_failure.as_deref());
        open.iter().map(judge).collect()
    }
}
