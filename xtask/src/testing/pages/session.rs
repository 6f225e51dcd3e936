//! One shell in a scratch directory that plays the user of a page.
//!
//! ```text
//!   scratch/   bzImage (a small guest), guest.elf (the self-test), disk.img   XDG_RUNTIME_DIR   axvm in PATH
//!   command --stdin--> bash --both streams--> scratch/../ID.out        when the command has ended: what is new in it
//!                       '-----one line-----> "ended"
//! ```
//!
//! Machines started with `&` live on from block to block; what is left at the end of the page is killed.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};

use super::blocks::{Block, agrees};
use super::guest;
use crate::tool;

/// A command that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(30);
/// What AxVM says first on hosts that are too slow for Linux; no page shows it.
const ABOUT_HOST: &str = "axvm: host: this processor offers no virtualization";
const DISK_LEN: u64 = 16 << 20;

/// Words of commands that start or seek a machine.
const NEED_KVM: [&str; 7] = ["axvm run", "axvm doctor", "axvm selftest", "axvm ctl", "axvm ps", "curl ", "$!"];

/// The shell of a page.
pub struct Session {
    shell: Child,
    stdin: ChildStdin,
    ends: Receiver<()>,
    /// All that was printed, and how much of it was looked at.
    said: PathBuf,
    read: usize,
    scratch: PathBuf,
}

/// What this machine lacks for the block.
pub fn missing(block: &Block) -> Option<&'static str> {
    let types = |word: &str| block.steps.iter().any(|step| step.command.contains(word));
    let needs_kvm = NEED_KVM.iter().any(|word| types(word));
    match () {
        () if needs_kvm && File::options().read(true).write(true).open("/dev/kvm").is_err() => Some("no /dev/kvm"),
        () if types("cc ") && tool::find("cc").is_none() => Some("no cc"),
        () if types("curl ") && tool::find("curl").is_none() => Some("no curl"),
        () => None,
    }
}

impl Session {
    /// A fresh directory of this name, and a shell in it.
    pub fn start(name: &str, programs: &Path) -> Result<Session> {
        // Not below the build's directory: the path of a socket has 107 bytes at most.
        let scratch = std::env::temp_dir().join(format!("axvm-pages-{}", std::process::id())).join(name);
        let said = scratch.with_extension("out");
        prepare(&scratch, programs).with_context(|| format!("Cannot prepare {}", scratch.display()))?;
        File::create(&said)?;
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("bash");
        command.args(["--noprofile", "--norc"]).current_dir(&scratch).process_group(0);
        command.env("PATH", format!("{}:{path}", programs.display())).env("XDG_RUNTIME_DIR", scratch.join("run"));
        command.env("LC_ALL", "C.UTF-8").env_remove("NOTIFY_SOCKET");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut shell = command.spawn().context("Cannot start bash")?;
        let mut stdin = shell.stdin.take().context("Cannot type into bash")?;
        let stdout = shell.stdout.take().context("Cannot read from bash")?;
        writeln!(stdin, "exec 3>&1 >>'{}' 2>&1", said.display())?;
        let (to, ends) = channel();
        thread::spawn(move || BufReader::new(stdout).lines().take_while(Result::is_ok).try_for_each(|_| to.send(())));
        Ok(Session { shell, stdin, ends, said, read: 0, scratch })
    }

    /// Puts a file into the directory.
    pub fn give(&self, name: &str, text: &str) -> Result<()> {
        fs::write(self.scratch.join(name), text).with_context(|| format!("Cannot write {name}"))
    }

    /// Types all commands of the block and compares.
    pub fn hold(&mut self, block: &Block) -> Result<()> {
        ensure!(!block.steps.is_empty(), "line {}: a console block without a command", block.line);
        for step in &block.steps {
            let came = self.say(&step.command).with_context(|| format!("line {}", step.line))?;
            if !agrees(&step.expected, &came, block.numbers_vary()) {
                let shown = |lines: &[String]| lines.iter().map(|line| format!("      {line}\n")).collect::<String>();
                bail!(
                    "line {}: `{}` prints\n{}    but the page shows\n{}",
                    step.line,
                    step.command,
                    shown(&came),
                    shown(&step.expected)
                );
            }
        }
        Ok(())
    }

    /// What one command prints. The next one finds its exit status in `$?`.
    fn say(&mut self, command: &str) -> Result<Vec<String>> {
        let script = format!("{{ {command}\n}} </dev/null 3>&-; __=$?; echo ended >&3; (exit $__)\n");
        self.stdin.write_all(script.as_bytes()).context("The shell is gone")?;
        match self.ends.recv_timeout(LIMIT) {
            Ok(()) => Ok(self.news()?),
            Err(RecvTimeoutError::Timeout) => bail!("`{command}` does not end within {} s", LIMIT.as_secs()),
            Err(RecvTimeoutError::Disconnected) => bail!("`{command}` ends the shell"),
        }
    }

    /// Lines since the last look. One that a machine in the background has only begun waits for the next look.
    fn news(&mut self) -> io::Result<Vec<String>> {
        let said = fs::read(&self.said)?;
        let mut end = said.len();
        let last = said.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        if said[last..].starts_with(b"axvm: ") {
            end = last;
        }
        let news = String::from_utf8_lossy(&said[self.read..end]).into_owned();
        self.read = end;
        Ok(news.lines().filter(|line| !line.starts_with(ABOUT_HOST)).map(str::to_owned).collect())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(group) = Pid::from_raw(self.shell.id() as i32) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.shell.wait();
        let _ = fs::remove_dir_all(&self.scratch);
        let _ = fs::remove_file(&self.said);
        // The last one of all takes the directory away.
        let _ = self.scratch.parent().map(fs::remove_dir);
    }
}

fn prepare(scratch: &Path, programs: &Path) -> Result<()> {
    if scratch.exists() {
        fs::remove_dir_all(scratch)?;
    }
    fs::create_dir_all(scratch.join("run"))?;
    fs::write(scratch.join("bzImage"), guest::elf())?;
    File::create(scratch.join("disk.img"))?.set_len(DISK_LEN)?;
    let write = programs.join("examples/write").to_string_lossy().into_owned();
    tool::output(tool::tool(&write).arg("selftest").arg(scratch.join("guest.elf")))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::blocks::find;
    use super::*;

    #[test]
    fn a_page_that_lies_is_found_and_a_true_one_is_not() {
        let programs = std::env::temp_dir().join(format!("axvm-programs-{}", std::process::id()));
        fs::create_dir_all(programs.join("examples")).unwrap();
        std::os::unix::fs::symlink("/bin/true", programs.join("examples/write")).unwrap();
        let mut session = Session::start("test", &programs).unwrap();
        let mut hold = |page: &str| session.hold(&find(page)[0]);
        hold("```console\n$ x=3; ls bzImage\nbzImage\n$ (exit $x)\n$ echo ended with $?\nended with 3\n```\n").unwrap();
        let error = hold("```console\n$ echo ended with $x\nended with 4\n```\n").unwrap_err().to_string();
        assert!(error.contains("ended with 3") && error.contains("ended with 4"), "{error}");
        assert!(hold("```console\n$ echo more than shown\n```\n").is_err());
        fs::remove_dir_all(programs).unwrap();
    }
}
