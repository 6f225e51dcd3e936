//! gdb at stock Linux: functions by their names, with no other file than the kernel itself.

use super::plain::PLAIN;
use super::{Boot, Proof, Scenario};
use crate::lab;

/// What is typed. The kernel has moved itself (KASLR), and two vCPUs run.
const SESSION: &str = "set pagination off
set confirm off
info threads
break do_sys_openat2
continue
backtrace 2
stepi
stepi
stepi
info symbol $rip
continue
delete
monitor breakpoints
monitor panic
detach
";

/// A breakpoint that is hit twice, steps, and a guest that goes on as if nothing had been.
pub(super) fn gdb() -> Vec<Scenario> {
    let look = format!(
        "printf '#!/bin/sh\\nexec gdb/ld-linux-x86-64.so.2 --library-path gdb gdb/gdb \"$@\"\\n' >bin/gdb; chmod +x bin/gdb
        printf '%s' '{SESSION}' >session
        timeout 60 axvm gdb web -- -q -nx -batch -x session
        axvm ctl web symbols | grep -c ' T '; axvm ctl web memory do_sys_openat2 16 --instructions; axvm ctl web status
        echo typed >$keyboard"
    );
    let boot = Boot {
        arguments: "--disk DISK --memory 512M --cpus 2 --name web",
        checks: "debugged,disk,clock:NOW:60,log:lab",
        brings: Some(lab::gdb),
        on: Some(("MARK debugged", look.leak())),
        limit: 180,
        ..PLAIN
    };
    let proofs = vec![Proof::CleanDisk, Proof::Seen("a breakpoint hit twice, and steps", stopped)];
    vec![Scenario { name: "gdb", boots: vec![boot], proofs }]
}

/// What gdb and the client showed.
fn stopped(seen: &str) -> bool {
    let lines = |parts: &[&str]| seen.lines().filter(|line| parts.iter().all(|part| line.contains(part))).count();
    let names = seen.lines().find_map(|line| line.parse::<u32>().ok());
    lines(&["Thread 1.", "(vCPU ", " in "]) == 2
        && lines(&["hit Breakpoint 1, 0x", " in do_sys_openat2 ()"]) == 2
        && lines(&["#1", " in __x64_sys_open"]) == 1
        && lines(&["do_sys_openat2 + "]) == 1
        && lines(&["The kernel's panic() is at 0xffffffff"]) == 1
        && lines(&["[Inferior 1", "detached]"]) == 1
        && names.is_some_and(|names| names > 20_000)
        && lines(&["0xffffffff", "  "]) >= 2
        && lines(&["running"]) == 1
}
