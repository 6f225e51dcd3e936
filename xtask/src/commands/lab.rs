//! `cargo xtask lab`: any command on a machine with hardware-like KVM.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;

use crate::lab::{self, Console, End, LabJob, quoted};

/// Run a command in the lab: QEMU emulating a machine with AMD SVM, so /dev/kvm there is the real thing
///
/// The command runs in /axvm, where AxVM (axvm, in PATH), bzImage-6.1, bzImage-6.12, vmlinux-6.1, vmlinux-6.12,
/// initrd.img and disk.img are. A single argument is a shell line. What it writes is gone afterwards but for /axvm/out,
/// see --out. Its exit code is ours; 124 is the time limit, 125 a failure of the lab itself.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask lab -- axvm run --kernel bzImage-6.12 --initrd initrd.img --disk disk.img --cpus 4\n  \
    cargo xtask lab -- 'ls -l /dev/kvm; free -m'\n  \
    cargo xtask lab --shell          (Ctrl-] three times ends the lab whatever runs in it)")]
pub struct Lab {
    /// An interactive shell
    #[arg(long)]
    shell: bool,
    /// Ends the command after so many seconds [default: 600, none with a terminal]
    #[arg(long, value_name = "SECONDS")]
    limit: Option<u64>,
    /// Brings a file of the host along, as /axvm/NAME; may be given several times
    #[arg(long = "file", value_name = "FILE[:NAME]")]
    files: Vec<String>,
    /// A static program to take as axvm instead of building it
    #[arg(long, value_name = "FILE")]
    axvm: Option<PathBuf>,
    /// Copies /axvm/out to this directory afterwards
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The command and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Lab {
    /// Runs it.
    pub fn run(self) -> Result<ExitCode> {
        let script = match self.command.as_slice() {
            [] => "exec sh -l\n".to_owned(),
            [line] => format!("{line}\n"),
            words => format!("exec {}\n", words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")),
        };
        anyhow::ensure!(self.shell == self.command.is_empty(), "Give either --shell or -- COMMAND");
        let mut files = lab::standard_files(self.axvm.clone())?;
        for file in &self.files {
            let (host, name) = match file.split_once(':') {
                Some((host, name)) => (PathBuf::from(host), name.to_owned()),
                None => {
                    let host = PathBuf::from(file);
                    let name = host.file_name().context("Give a file to --file")?.to_string_lossy().into_owned();
                    (host, name)
                }
            };
            files.retain(|(_, other)| *other != name);
            files.push((host, name));
        }
        let limit = self.limit.or_else(|| (!lab::attended()).then_some(600)).map(Duration::from_secs);
        let job = LabJob { script, files, limit, console: Console::Attached, note: &|_| {} };
        let report = lab::Lab::open()?.run(&job)?;
        if let Some(out) = &self.out {
            report.payload.take_directory("out", out)?;
        }
        Ok(match report.end {
            End::Exit(code) => ExitCode::from(code),
            End::TimeLimit(limit) => {
                eprintln!("\nThe command was ended by its time limit of {} s", limit.as_secs());
                ExitCode::from(124)
            }
            End::OuterDied(why) => {
                eprintln!("\nThe lab itself failed, not the command: {why}");
                ExitCode::from(125)
            }
        })
    }
}
