//! One VMM under observation: started, its guest's bytes awaited with a time each, ended.
//!
//! ```text
//!   start(command) --exec--> pipe --until(b'~')--> Instant .. --until(b'z')--> Instant --end()--> Instant
//! ```
//!
//! Nothing else may write these bytes to the VMM's standard output; each VMM is started so that it logs nothing there.
//! Whatever happens, the process is gone when this is dropped, and no longer than a limit is waited for anything.

use std::collections::VecDeque;
use std::io::Read;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::tool::{last_lines, show};

/// What the guest says when it cannot go on.
const FAILED: u8 = b'!';
const PATIENCE: Duration = Duration::from_secs(60);

/// A process.
pub struct Watched {
    child: Child,
    out: ChildStdout,
    said: VecDeque<(u8, Instant)>,
    typed: String,
    /// When it was about to be executed.
    pub started: Instant,
}

impl Watched {
    /// Starts it. Its standard error is read when something fails: VMMs say less there than a pipe holds.
    pub fn start(mut command: Command) -> Result<Watched> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let typed = show(&command);
        let started = Instant::now();
        let mut child = command.spawn().with_context(|| format!("Cannot start {typed}"))?;
        let out = child.stdout.take().context("No pipe")?;
        Ok(Watched { child, out, said: VecDeque::new(), typed, started })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// When the guest said this byte. What it said before is dropped.
    pub fn until(&mut self, wanted: u8) -> Result<Instant> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            while let Some((byte, when)) = self.said.pop_front() {
                match byte {
                    FAILED => return Err(self.failed("the guest could not do its job")),
                    byte if byte == wanted => return Ok(when),
                    _ => {}
                }
            }
            self.more(deadline)?;
        }
    }

    /// What the guest says up to the end of the line.
    pub fn line(&mut self) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut line = String::new();
        loop {
            while let Some((byte, _)) = self.said.pop_front() {
                match byte {
                    b'\n' => return Ok(line),
                    byte => line.push(byte.into()),
                }
            }
            self.more(deadline)?;
        }
    }

    /// Ticks of the TSC that the next phase took, by the guest's own words.
    pub fn phase(&mut self) -> Result<u64> {
        self.until(b'=')?;
        let line = self.line()?;
        u64::from_str_radix(line.trim_end(), 16).with_context(|| format!("The guest said ={line}, which is no number"))
    }

    /// Waits for its end, and says when that was.
    pub fn end(&mut self) -> Result<Instant> {
        let deadline = Instant::now() + PATIENCE;
        // The pipe ends with the process, but for a moment.
        while self.read(deadline)? > 0 {}
        self.child.wait().with_context(|| format!("Cannot wait for {}", self.typed))?;
        Ok(Instant::now())
    }

    fn more(&mut self, deadline: Instant) -> Result<()> {
        if self.read(deadline)? == 0 {
            let status = self.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
            return Err(self.failed(&format!("it ended ({status}) before the guest was done")));
        }
        Ok(())
    }

    fn read(&mut self, deadline: Instant) -> Result<usize> {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        if poll(&mut [PollFd::new(&self.out, PollFlags::IN)], Some(&timeout)).context("Cannot poll")? == 0 {
            return Err(self.failed("the guest has said nothing for a minute"));
        }
        let mut bytes = [0; 256];
        let count = self.out.read(&mut bytes).context("Cannot read from the guest's console")?;
        let now = Instant::now();
        self.said.extend(bytes[..count].iter().map(|&byte| (byte, now)));
        Ok(count)
    }

    fn failed(&mut self, why: &str) -> anyhow::Error {
        let _ = self.child.kill();
        let mut said = String::new();
        let _ = self.child.stderr.take().map(|mut pipe| pipe.read_to_string(&mut said));
        anyhow::anyhow!("Cannot measure {}: {why}. It said:\n{}", self.typed, last_lines(&said, 5))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Nanoseconds on a processor, of all threads and those that have ended, as `helper` (an example of axvm_kvm) finds out.
pub fn cpu_time(helper: &Path, pid: u32) -> Result<u64> {
    let text = crate::tool::output(Command::new(helper).arg(pid.to_string()))?;
    match text.trim().parse() {
        Ok(time) => Ok(time),
        Err(error) => bail!("{} said {text:?}: {error}", helper.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Watched {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Watched::start(command).unwrap()
    }

    #[test]
    fn bytes_have_their_times() {
        let mut watched = shell("printf 'noise~'; sleep 0.05; printf az");
        let (first, last) = (watched.until(b'~').unwrap(), watched.until(b'z').unwrap());
        assert!(last - first >= Duration::from_millis(40) && first > watched.started);
        assert!(watched.end().unwrap() >= last);
    }

    #[test]
    fn phases_are_numbers_between_other_words() {
        let mut watched = shell("printf '~=1f'; sleep 0.05; printf '0\\n=10\\r\\n=x\\n'");
        assert_eq!((watched.phase().unwrap(), watched.phase().unwrap()), (0x1f0, 16));
        assert!(watched.phase().unwrap_err().to_string().contains("=x"));
    }

    #[test]
    fn failures_are_told_apart() {
        let ended = shell("exit 3").until(b'~').unwrap_err().to_string();
        assert!(ended.contains("exit status: 3"), "{ended}");
        let failed = shell("printf '~!'; sleep 9").until(b'z').unwrap_err().to_string();
        assert!(failed.contains("could not do its job"), "{failed}");
    }

    #[test]
    fn what_is_dropped_is_gone() {
        let watched = shell("exec sleep 60");
        let proc = std::path::PathBuf::from(format!("/proc/{}", watched.pid()));
        assert!(proc.exists());
        drop(watched);
        assert!(!proc.exists());
    }
}
