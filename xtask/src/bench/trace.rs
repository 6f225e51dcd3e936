//! How long a vCPU thread is outside of KVM_RUN for one exit, by the kernel's own tracer.
//!
//! ```text
//!   sys_exit: NR 16 --> MSRs of the host come back --> user space --> seccomp filters --> sys_enter: NR 16 (.., ae80
//!   KVM_RUN returns     ^ the last of them                                                ^ the next KVM_RUN
//! ```
//!
//! From stamp to stamp, in ticks of the TSC. The kernel gives a thread MSRs back only when that thread goes on in user space;
//! where the host is a guest itself this costs 15 us, none of which is the VMM's, so the first stamp is behind it. No tool and no change of the VMM: an instance of tracefs writes down the system calls of one thread. Time of threads in
//! /proc is counted in ticks of the timer here, which is far too coarse; a debugger would cost a hundred times what it
//! measures. Between two stamps lies the tracer's own work, too: some 100 ns, the same for all.
//! Needs root. Spec: Linux Documentation/trace/ftrace.rst, "Instances", "trace_clock".

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::process;

const TRACEFS: &str = "/sys/kernel/tracing";

/// The tracer at work on one thread; gone when this is dropped.
pub struct Trace {
    dir: PathBuf,
}

/// Whether this machine lets itself be traced by who runs this.
pub fn works() -> bool {
    rustix::process::geteuid().is_root() && Path::new(TRACEFS).join("events/raw_syscalls").is_dir()
}

impl Trace {
    /// Begins to write down what vCPU 0 of this process calls.
    pub fn start(pid: u32) -> Result<Trace> {
        let thread = process::vcpu(pid)?;
        let dir = Path::new(TRACEFS).join(format!("instances/axvm_bench_{}", std::process::id()));
        fs::create_dir(&dir).with_context(|| format!("Cannot create {}", dir.display()))?;
        let trace = Trace { dir };
        for (name, value) in [
            ("trace_clock", "x86-tsc"),
            ("buffer_size_kb", "16384"),
            ("set_event_pid", &thread.to_string()),
            ("events/raw_syscalls/enable", "1"),
            ("events/msr/write_msr/enable", "1"),
        ] {
            trace.set(name, value)?;
        }
        Ok(trace)
    }

    fn set(&self, name: &str, value: &str) -> Result<()> {
        let path = self.dir.join(name);
        fs::write(&path, value).with_context(|| format!("Cannot write {value} to {}", path.display()))
    }

    /// Ticks outside of KVM_RUN, for each exit that was seen, in order.
    pub fn exits(self) -> Result<Vec<u64>> {
        self.set("events/enable", "0")?;
        let path = self.dir.join("trace");
        let text = fs::read(&path).with_context(|| format!("Cannot read {}", path.display()))?;
        Ok(exits_in(&String::from_utf8_lossy(&text)))
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = self.set("events/enable", "0");
        let _ = fs::remove_dir(&self.dir);
    }
}

/// Other calls that the thread makes between two runs are in the time between them.
fn exits_in(trace: &str) -> Vec<u64> {
    let (mut exits, mut at) = (Vec::new(), State::Elsewhere);
    for (stamp, name, what) in trace.lines().filter_map(event) {
        at = match (name, at) {
            ("sys_enter", before) if is_run(what) => {
                if let State::Outside(since) | State::Returning(since) = before {
                    exits.push(stamp - since);
                }
                State::Running
            }
            ("sys_exit", State::Running) | ("write_msr", State::Returning(_)) => State::Returning(stamp),
            // In another call: MSRs that are written from now on are that one's.
            ("sys_enter", State::Returning(since)) => State::Outside(since),
            (_, before) => before,
        };
    }
    exits
}

/// What the thread does, and since when it is outside of KVM_RUN.
#[derive(Clone, Copy)]
enum State {
    /// Not seen in KVM_RUN yet.
    Elsewhere,
    Running,
    Returning(u64),
    Outside(u64),
}

/// The arguments of ioctl with KVM_RUN.
fn is_run(call: &str) -> bool {
    call.strip_prefix("NR 16 (").is_some_and(|arguments| arguments.split(", ").nth(1) == Some("ae80"))
}

/// ` name-12 [000] ..... 123456: sys_exit: NR 16 = 0`: stamp, event, what of it. A name may have anything in it.
fn event(line: &str) -> Option<(u64, &str, &str)> {
    let (head, name) = ["sys_enter", "sys_exit", "write_msr"]
        .iter()
        .find_map(|name| Some((line.find(&format!(": {name}: "))?, *name)))?;
    let stamp = line[..head].rsplit(' ').next()?.parse().ok()?;
    Some((stamp, name, &line[head + name.len() + 4..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_lasts_from_the_last_msr_to_the_next_run() {
        let trace = "# tracer: nop\n\
            fc_vcpu 0-7  [000] ..... 90: sys_exit: NR 16 = 0\n\
            fc_vcpu 0-7  [000] ..... 100: sys_enter: NR 16 (5, ae80, 0, 0, 0, 0)\n\
            fc_vcpu 0-7  [001] d..1. 150: write_msr: 174, value 10\n\
            fc_vcpu 0-7  [001] ..... 200: sys_exit: NR 16 = 0\n\
            fc_vcpu 0-7  [001] d..1. 202: write_msr: 174, value 10\n\
            fc_vcpu 0-7  [001] d..1. 204: write_msr: 175, value 10\n\
            fc_vcpu 0-7  [001] ..... 210: sys_enter: NR 1 (1, ae80, 1, 0, 0, 0)\n\
            fc_vcpu 0-7  [001] d..1. 215: write_msr: 174, value 10\n\
            fc_vcpu 0-7  [001] ..... 220: sys_exit: NR 1 = 1\n\
            fc_vcpu 0-7  [001] ..... 225: sys_enter: NR 16 (5, 4008ae6a, 1, 0, 0, 0)\n\
            fc_vcpu 0-7  [001] ..... 230: sys_exit: NR 16 = 0\n\
            fc_vcpu 0-7  [001] ..... 254: sys_enter: NR 16 (5, ae80, 0, 0, 0, 0)\n\
            fc_vcpu 0-7  [001] ..... 300: sys_exit: NR 16 = -4\n\
            fc_vcpu 0-7  [001] ..... 310: sys_enter: NR 16 (5, ae80, 0, 0, 0, 0)\n";
        assert_eq!(exits_in(trace), [50, 10]);
        assert_eq!(exits_in(""), [0; 0]);
    }

    #[test]
    fn an_event_has_a_stamp_behind_any_name() {
        assert_eq!(event("  a [b] c: d-7 [1] ..... 12: sys_exit: NR 0 = 1"), Some((12, "sys_exit", "NR 0 = 1")));
        assert_eq!(event("  a-7 [1] ..... 1.5: sys_exit: NR 0 = 1"), None);
    }
}
