//! `cargo xtask boot`: from a fresh clone to a Linux shell.
//!
//! ```text
//!   assets --copied once--> bzImage, initrd.img, disk.img in the root --> axvm run ...   here, or in the lab
//! ```
//!
//! Files of the user's own in the root are used, never replaced; the initrd alone is renewed, if it was made by us.

use std::fs;
use std::io::{IsTerminal, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::assets::{self, Kernel, Wanted};
use crate::checks::{self, Check};
use crate::lab::{self, Console, End, LabJob, quoted};
use crate::program;
use crate::progress::{print, say};
use crate::project;
use crate::tool;

/// The host's network for the guest.
const NETWORK: [&str; 2] = ["--net", "user"];
const CHECK_LIMIT: Duration = Duration::from_secs(300);

/// Boot Linux and hand over its shell
///
/// Gets what is missing (a stock kernel, an initrd with its virtio modules, a root disk), builds AxVM and runs it. Where
/// the processor offers no virtualization to this machine, the same AxVM runs in the lab (an emulated machine). `poweroff`
/// in the guest returns here. What the guest writes stays in disk.img.
#[derive(Args)]
pub struct Boot {
    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value = "2", value_parser = clap::value_parser!(u32).range(1..))]
    cpus: u32,
    /// Guest RAM: a number with K, M, G or T (without: MiB)
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    memory: String,
    /// A kernel instead of ./bzImage
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// A root disk instead of ./disk.img
    #[arg(long, value_name = "FILE")]
    disk: Option<PathBuf>,
    /// Added to the kernel command line
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    append: String,
    /// No terminal: let the guest prove CPUs, memory, disk, clock and a clean kernel log, then power off
    #[arg(long)]
    check: bool,
}

/// The files of one boot.
struct Files {
    kernel: PathBuf,
    initrd: PathBuf,
    disk: PathBuf,
}

impl Boot {
    /// Does it.
    pub fn run(self) -> Result<ExitCode> {
        let files = self.files()?;
        match hardware() {
            Ok(()) => self.here(&files),
            Err(why) => {
                say(&format!("{why}: running AxVM in the lab, an emulated machine that has it (slower, same AxVM)"));
                self.in_lab(&files)
            }
        }
    }

    fn files(&self) -> Result<Files> {
        let agent = program::agent(&program::build()?)?;
        let _lock = assets::lock()?;
        let root = project::root();
        let own = root.join("bzImage");
        if self.kernel.is_none() && !own.exists() {
            copy(&Kernel::get(&Wanted::STOCK)?.image, &own)?;
        }
        let kernel = self.kernel.clone().unwrap_or(own);
        let initrd = assets::initrd(&[&Kernel::of_file(&kernel)?], &agent)?;
        if self.kernel.is_none() {
            renew_initrd(&initrd, &root.join("initrd.img"))?;
        }
        let disk = self.disk.clone().unwrap_or_else(|| root.join("disk.img"));
        if self.disk.is_none() && !disk.exists() {
            copy(&assets::root_disk()?, &disk)?;
        }
        ensure!(disk.is_file(), "Cannot open the disk {}: no such file", disk.display());
        Ok(Files { kernel, initrd, disk })
    }

    fn here(&self, files: &Files) -> Result<ExitCode> {
        let axvm = program::build()?;
        let mut command = Command::new(axvm);
        command.args(["run", "--kernel"]).arg(&files.kernel).arg("--initrd").arg(&files.initrd);
        command.arg("--disk").arg(format!("path={}", files.disk.display()));
        if !self.check {
            match tool::find("passt") {
                Some(_) => drop(command.args(NETWORK)),
                None => say("No passt here, so the guest has no network (sudo apt install passt gives it one)"),
            }
        }
        let list = self.checks("");
        let epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        command.args(self.machine(&self.append_line(&list).replace("clock:NOW", &format!("clock:{epoch}"))));
        if !self.check {
            return Err(command.exec()).context("Cannot start AxVM");
        }
        let (console, code) = captured(command)?;
        Ok(report(&console, &list, code))
    }

    fn in_lab(&self, files: &Files) -> Result<ExitCode> {
        let image = fs::File::open(&files.disk).with_context(|| format!("Cannot open {}", files.disk.display()))?;
        if image.try_lock().is_err() {
            bail!(
                "Cannot use {}: another AxVM does. End that one, or give another disk by --disk FILE",
                files.disk.display()
            );
        }
        let named = |file: &Path, name: &str| (file.to_owned(), name.to_owned());
        let axvm = program::build()?;
        let list = self.checks(":lab");
        let words = ["exec", "axvm", "run", "--kernel", "bzImage", "--initrd", "initrd.img", "--disk", "disk.img"];
        let mut words: Vec<String> = words.map(str::to_owned).to_vec();
        let passt = if self.check { Vec::new() } else { passt() };
        if !passt.is_empty() {
            words.extend(NETWORK.map(str::to_owned));
        }
        // Each character of the guest's console costs the emulation much.
        let machine = self.machine(&format!("quiet {}", self.append_line(&list)));
        words.extend(machine.iter().map(|word| quoted(word).replace("clock:NOW", "clock:'$(date +%s)'")));
        let job = LabJob {
            script: format!("{}\n", words.join(" ")),
            files: [
                vec![
                    (axvm, "bin/axvm".to_owned()),
                    named(&files.kernel, "bzImage"),
                    named(&files.initrd, "initrd.img"),
                    named(&files.disk, "disk.img"),
                ],
                passt,
            ]
            .concat(),
            limit: self.check.then_some(CHECK_LIMIT),
            console: if self.check { Console::Kept } else { Console::Attached },
            note: &|_| {},
        };
        let lab = lab::Lab::open()?;
        say("Starting the lab, AxVM in it and Linux in AxVM: the first line comes after ten seconds or more");
        let run = lab.run(&job)?;
        let code = match &run.end {
            End::Exit(code) => *code,
            End::TimeLimit(limit) => {
                eprintln!("The guest was not done after {} s", limit.as_secs());
                124
            }
            End::OuterDied(why) => bail!("The lab itself failed, {} is as it was: {why}", files.disk.display()),
        };
        let back = files.disk.with_extension("back-from-lab");
        run.payload.take_file("disk.img", &back)?;
        fs::rename(&back, fs::canonicalize(&files.disk)?)
            .with_context(|| format!("Cannot write {} back", files.disk.display()))?;
        let console = String::from_utf8_lossy(&run.console);
        Ok(if self.check { report(&console, &list, code) } else { ExitCode::from(code) })
    }

    fn machine(&self, append: &str) -> [String; 6] {
        let words = ["--cpus", &self.cpus.to_string(), "--memory", &self.memory, "--append", append];
        words.map(str::to_owned)
    }

    fn checks(&self, lab: &str) -> String {
        // The lab's guest takes long from AxVM's start to its clock's. NOW becomes the time when AxVM starts.
        let patience = if lab.is_empty() { "" } else { ":30" };
        format!("cpus:{},memory:{},disk,clock:NOW{patience},log{lab}", self.cpus, mebibytes(&self.memory))
    }

    fn append_line(&self, list: &str) -> String {
        let more = match self.check {
            true => format!(" axvm.check={list}"),
            false if lab::attended() => {
                let (rows, columns) = lab::size();
                format!(" axvm.terminal={rows}x{columns}")
            }
            false => String::new(),
        };
        format!("{}{more}", self.append).trim().to_owned()
    }
}

/// passt for the lab; nothing if it is not to be had.
fn passt() -> lab::Files {
    let found = assets::lock().and_then(|_lock| lab::passt());
    found.inspect_err(|error| eprintln!("The guest has no network: {error:#}")).unwrap_or_default()
}

/// Whether AxVM can run here; else why not, in a few words.
fn hardware() -> std::result::Result<(), String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    if !flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm") {
        return Err("The processor offers no virtualization to this machine (no vmx or svm)".to_owned());
    }
    match fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Err("No permission for /dev/kvm (to get it: sudo usermod -aG kvm $USER, then log in again)".to_owned())
        }
        Err(error) => Err(format!("Cannot open /dev/kvm ({error}; is kvm_intel or kvm_amd loaded?)")),
    }
}

/// `512M` or `2G` in MiB; what AxVM will refuse is 0.
fn mebibytes(size: &str) -> u64 {
    let (number, unit) = size.split_at(size.trim_end_matches(|c: char| c.is_alphabetic()).len());
    let shift = match unit.to_ascii_uppercase().chars().next() {
        Some('K') => 0,
        Some('G') => 20,
        Some('T') => 30,
        _ => 10,
    };
    (number.parse::<u64>().unwrap_or(0) << shift) >> 10
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut command = tool::tool("cp");
    tool::output(command.args(["--sparse=always", "--no-preserve=mode"]).arg(from).arg(to)).map(drop)
}

/// Replaces an initrd only if it is one of ours.
fn renew_initrd(from: &Path, to: &Path) -> Result<()> {
    match fs::read(to) {
        Ok(present) if !assets::is_our_initrd(&present) => Ok(()),
        _ => copy(from, to),
    }
}

/// Runs without a terminal, with the time limit; gives the console and the exit code.
fn captured(mut command: Command) -> Result<(String, u8)> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("Cannot start AxVM")?;
    let mut stdout = child.stdout.take().context("AxVM has no output")?;
    let reader = std::thread::spawn(move || {
        let mut said = Vec::new();
        let _ = stdout.read_to_end(&mut said);
        String::from_utf8_lossy(&said).into_owned()
    });
    let deadline = Instant::now() + CHECK_LIMIT;
    let code = loop {
        match child.try_wait()? {
            Some(status) => break status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1),
            None if Instant::now() > deadline => {
                eprintln!("The guest was not done after {} s", CHECK_LIMIT.as_secs());
                child.kill()?;
                break 124;
            }
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    Ok((reader.join().unwrap_or_default(), code))
}

/// Prints what was proved; the exit code says whether all was.
fn report(console: &str, list: &str, code: u8) -> ExitCode {
    let checks = checks::judge(console, list);
    for Check { name, ok, detail } in checks.iter().filter(|check| check.name != "end") {
        print(format_args!("{} {name:8} {detail}\n", if *ok { "ok    " } else { "FAILED" }));
    }
    if let Some(seconds) = checks::init_seconds(console) {
        print(format_args!("       Linux ran /init {seconds} s after its start\n"));
    }
    print(format_args!("{} power-off: AxVM exited with code {code}\n", if code == 0 { "ok    " } else { "FAILED" }));
    let all = code == 0 && checks.iter().all(|check| check.ok);
    if !all && std::io::stdout().is_terminal() {
        eprintln!("The guest's last words:\n{}", tool::last_lines(console, 30));
    }
    if all { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_counted_in_mebibytes() {
        assert_eq!(mebibytes("512M"), 512);
        assert_eq!(mebibytes("3G"), 3072);
        assert_eq!(mebibytes("128"), 128);
        assert_eq!((mebibytes("1T"), mebibytes("524288K")), (1 << 20, 512));
        assert_eq!(mebibytes("lots"), 0);
    }
}
