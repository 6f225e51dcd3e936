//! One QEMU process and the three lines to it.
//!
//! ```text
//!   control  <-> ttyS0   the outer kernel's console and our short commands
//!   job      <-> ttyS1   the terminal of the command that runs in the lab
//!   monitor  <-> QMP     only to save the state
//! ```
//!
//! Spec: QEMU QMP reference, `qmp_capabilities`, `migrate`, `query-migrate`.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const CONNECT_LIMIT: Duration = Duration::from_secs(20);

/// The running process; dropping it kills it.
pub(super) struct Qemu {
    child: Child,
    errors: PathBuf,
    monitor: UnixStream,
    /// The outer machine's console.
    pub(super) control: Control,
    /// The command's terminal.
    pub(super) job: UnixStream,
}

impl Qemu {
    /// Starts the command with its three sockets in `work`.
    pub(super) fn start(mut command: Command, work: &Path) -> Result<Self> {
        let listen = |name: &str| {
            let path = work.join(name);
            UnixListener::bind(&path).with_context(|| format!("Cannot make the socket {}", path.display()))
        };
        let (control, job, monitor) = (listen("control")?, listen("job")?, listen("monitor")?);
        for name in ["control", "job", "monitor"] {
            command.arg("-chardev").arg(format!("socket,id={name},path={}", work.join(name).display()));
        }
        command.args(["-serial", "chardev:control", "-serial", "chardev:job", "-mon", "chardev=monitor,mode=control"]);
        let errors = work.join("qemu.errors");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&errors)?);
        let child = command.spawn().context("Cannot start qemu-system-x86_64")?;
        let mut starting = Starting { child: Some(child), errors };
        let control = starting.accept(&control)?;
        let (job, monitor) = (starting.accept(&job)?, starting.accept(&monitor)?);
        let child = starting.child.take().expect("taken once");
        let errors = std::mem::take(&mut starting.errors);
        Ok(Self { child, errors, monitor, control: Control::new(control), job })
    }

    /// What QEMU itself complained about, but for the features of the CPU model that it does not emulate.
    pub(super) fn errors(&self) -> String {
        let text = fs::read_to_string(&self.errors).unwrap_or_default();
        text.lines().filter(|line| !line.contains("TCG doesn't support")).map(|line| format!("{line}\n")).collect()
    }

    /// The process's state and CPU time, for the report: `S (sleeping), 12 s of CPU time`.
    pub(super) fn state(&self) -> String {
        let read = |name| fs::read_to_string(format!("/proc/{}/{name}", self.child.id())).unwrap_or_default();
        let status = read("status");
        let state = status.lines().find_map(|line| line.strip_prefix("State:")).unwrap_or("gone").trim().to_owned();
        let stat = read("stat");
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let ticks: u64 = after_name.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
        format!("{state}, {} s of CPU time", ticks / 100)
    }

    /// Writes the machine's state to a QEMU migration address.
    pub(super) fn migrate(&mut self, address: &str, deadline: Instant) -> Result<()> {
        self.monitor.set_read_timeout(Some(Duration::from_secs(1)))?;
        let bandwidth = r#""migrate-set-parameters","arguments":{"max-bandwidth":100000000000}"#;
        let migrate = format!(r#""migrate","arguments":{{"uri":"{address}"}}"#);
        for request in [r#""qmp_capabilities""#, bandwidth, &migrate] {
            self.ask(request)?;
        }
        while Instant::now() < deadline {
            let answer = self.ask(r#""query-migrate""#)?;
            if answer.contains(r#""completed""#) {
                return Ok(());
            }
            if answer.contains(r#""failed""#) {
                bail!("Cannot save the lab's state: {answer}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        bail!("Cannot save the lab's state: not done in time")
    }

    /// Ends the process now.
    pub(super) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn ask(&mut self, request: &str) -> Result<String> {
        writeln!(self.monitor, r#"{{"execute":{request}}}"#).context("Cannot talk to QEMU's monitor")?;
        let (mut said, mut chunk) = (String::new(), [0; 4096]);
        while !said.contains(r#""return""#) && !said.contains(r#""error""#) {
            match self.monitor.read(&mut chunk) {
                Ok(0) => bail!("QEMU closed its monitor"),
                Ok(len) => said.push_str(&String::from_utf8_lossy(&chunk[..len])),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => bail!("QEMU's monitor does not answer"),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(said)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The time between the process's start and its connections.
struct Starting {
    child: Option<Child>,
    errors: PathBuf,
}

impl Starting {
    fn accept(&mut self, listener: &UnixListener) -> Result<UnixStream> {
        listener.set_nonblocking(true)?;
        let deadline = Instant::now() + CONNECT_LIMIT;
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    return Ok(stream);
                }
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error.into()),
                Err(_) => {}
            }
            let ended = self.child.as_mut().expect("still starting").try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let said = fs::read_to_string(&self.errors).unwrap_or_default();
                bail!("QEMU did not start: {}", said.trim());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The control line, read line by line.
pub(super) struct Control {
    stream: UnixStream,
    pending: Vec<u8>,
    /// All that came, for the report.
    pub(super) log: String,
}

/// What waiting for a line led to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// A line, without its end.
    Line(String),
    /// Nothing until the deadline.
    Silence,
    /// QEMU is gone.
    Closed,
}

impl Control {
    fn new(stream: UnixStream) -> Self {
        Self { stream, pending: Vec::new(), log: String::new() }
    }

    /// Sends a command line.
    pub(super) fn send(&mut self, line: &str) -> io::Result<()> {
        self.stream.write_all(format!("{line}\n").as_bytes())
    }

    /// Waits for the next line.
    pub(super) fn line(&mut self, deadline: Instant) -> Result<Said> {
        loop {
            if let Some(len) = self.pending.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=len).collect();
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                self.log.push_str(&line);
                self.log.push('\n');
                return Ok(Said::Line(line));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Said::Silence);
            }
            self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(Said::Closed),
                Ok(len) => self.pending.extend_from_slice(&chunk[..len]),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(Said::Closed),
                Err(error) => return Err(error).context("Cannot read the lab's control line"),
            }
        }
    }

    /// Keeps the last line out of the report.
    pub(super) fn forget_line(&mut self) {
        let rest = self.log.trim_end_matches('\n');
        self.log.truncate(rest.rfind('\n').map_or(0, |end| end + 1));
    }

    /// The last lines, also of a line not ended.
    pub(super) fn tail(&self) -> String {
        crate::tool::last_lines(&format!("{}{}", self.log, String::from_utf8_lossy(&self.pending)), 15)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_from_silence_and_end() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut control = Control::new(ours);
        theirs.write_all(b"axvm-lab: ready\r\nhalf").unwrap();
        let soon = || Instant::now() + Duration::from_millis(20);
        assert_eq!(control.line(soon()).unwrap(), Said::Line("axvm-lab: ready".into()));
        assert_eq!(control.line(soon()).unwrap(), Said::Silence);
        assert!(control.tail().ends_with("ready\nhalf"));
        control.forget_line();
        assert_eq!(control.tail(), "half");
        drop(theirs);
        assert_eq!(control.line(soon()).unwrap(), Said::Closed);
    }
}
