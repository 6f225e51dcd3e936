//! gdb's `monitor` commands: what AxVM knows of the machine and gdb cannot ask for.
//!
//! No specification: these are AxVM's own.

use std::fmt::Write;
use std::io;

use axvm_arch::Gpa;
use axvm_devices::StopReason;
use axvm_inspect::hang::HangReport;
use axvm_inspect::registers::Explained;
use axvm_inspect::{core_file, listing};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd};

use super::answers;
use super::breakpoints::Patch;
use super::target::GdbTarget;
use crate::settings::number;

const HELP: &str = "\
monitor breakpoints [KIND]       those there are, and what stops a guest here; KIND: best, out, int3
monitor registers [bits]         all of the stopped vCPU, and what each bit means
monitor walk ADDRESS             the page table entries that translate it
monitor phys ADDRESS [LENGTH]    guest-physical memory
monitor kaslr                    by how much the kernel was moved, and what to type
monitor panic                    where the kernel's panic() is, and what to type to stop there
monitor explain                  vCPUs, interrupts, queues, and what that usually means
monitor lapic                    the stopped vCPU's interrupt controller: what waits, how its timer runs
monitor ioapic                   where each interrupt line leads
monitor virtio                   the virtio devices and their queues
monitor cpuid [LEAF]             what the stopped vCPU's CPUID says
monitor msr [NUMBER]             its MSRs
monitor memmap                   what is where in guest-physical memory
monitor dmesg [COUNT]            the last lines on the guest's console
monitor exits                    how often each vCPU came back from the guest
monitor devices                  who sits where
monitor power                    press the power button
monitor nmi                      give the first vCPU an NMI: what Linux does then, unknown_nmi_panic says
monitor reset                    press the reset button
";

impl MonitorCmd for GdbTarget {
    fn handle_monitor_cmd(&mut self, command: &[u8], mut out: ConsoleOutput<'_>) -> Result<(), io::Error> {
        out.write_raw(answer(self, &String::from_utf8_lossy(command)).as_bytes());
        Ok(())
    }
}

/// What a command is answered.
fn answer(target: &mut GdbTarget, command: &str) -> String {
    let words: Vec<&str> = command.split_whitespace().collect();
    match words[..] {
        [] | ["help"] => HELP.into(),
        ["breakpoints"] => target.breakpoints.words(&target.errands.support()),
        ["breakpoints", "best"] => patch(target, Patch::Best),
        ["breakpoints", "out"] => patch(target, Patch::Out),
        ["breakpoints", "int3"] => patch(target, Patch::Int3),
        ["registers"] => explained(target).map_or_else(not_told, |all| all.to_string()),
        ["registers", "bits"] => explained(target).map_or_else(not_told, |all| all.meanings()),
        ["walk", address] => match number(address) {
            None => no_number(address),
            Some(address) => walk(target, address),
        },
        ["phys", address] => physical(target, address, "128"),
        ["phys", address, len] => physical(target, address, len),
        ["kaslr"] => kaslr(target),
        ["panic"] => panic(target),
        ["explain"] => match target.explainer.report(&target.machine) {
            Some(report) => report.to_string() + "\n",
            None => "The machine is on its way to an end\n".into(),
        },
        ["lapic"] => match target.machine.alter(target.current, |vcpu| vcpu.save().map(|state| state.lapic)) {
            Some(Ok(lapic)) => answers::lapic(&lapic),
            _ => not_told(),
        },
        ["ioapic"] => report(target, |report| report.lines),
        ["virtio"] => report(target, |report| report.devices),
        ["cpuid", ref only @ ..] => only_one(only, |only| {
            target.snapshot(target.current).map_or_else(not_told, |(_, own)| answers::cpuid(&own.cpuid, only))
        }),
        ["msr", ref only @ ..] => only_one(only, |only| {
            target.snapshot(target.current).map_or_else(not_told, |(own, _)| answers::msrs(&own.msrs, only))
        }),
        ["memmap"] => answers::memory_map(&target.ram, &target.machine),
        ["dmesg", ref count @ ..] => only_one(count, |count| {
            let last = target.explainer.last_lines(count.map_or(LAST_LINES, |count| count.min(LONGEST) as usize));
            lines(last, "Nothing was written there yet")
        }),
        ["nmi"] => match target.machine.alter(0, |vcpu| vcpu.nmi()) {
            Some(Ok(())) => "The first vCPU takes the NMI when it goes on\n".into(),
            _ => not_told(),
        },
        ["exits"] => (0..).zip(target.machine.exits()).fold(String::new(), |mut text, (n, exits): (u32, u64)| {
            let _ = writeln!(text, "vCPU {n}: {exits}");
            text
        }),
        ["devices"] => target.machine.plan().parts().iter().map(|part| format!("{part}\n")).collect(),
        ["power"] => match target.machine.press_power_button() {
            true => "The power button is pressed; the guest takes note when it goes on\n".into(),
            false => "The machine has no power button: it runs without ACPI\n".into(),
        },
        ["reset"] => {
            target.machine.stop_switch().insist(StopReason::Reset("gdb"));
            "The machine is reset\n".into()
        }
        _ => format!("There is no such command; monitor help lists them\n{HELP}"),
    }
}

fn patch(target: &mut GdbTarget, patch: Patch) -> String {
    target.breakpoints.patch = patch;
    target.breakpoints.words(&target.errands.support())
}

/// So many lines of a console are shown if no count is given.
const LAST_LINES: usize = 40;

/// What a command says that takes one number, or none.
fn only_one(words: &[&str], answer: impl FnOnce(Option<u64>) -> String) -> String {
    match *words {
        [] => answer(None),
        [word] => number(word).map_or_else(|| no_number(word), |only| answer(Some(only))),
        _ => "Write one number, or none\n".into(),
    }
}

fn report(target: &GdbTarget, part: impl FnOnce(HangReport) -> Vec<String>) -> String {
    match target.explainer.report(&target.machine) {
        Some(report) => lines(part(report), "There is none"),
        None => "The machine is on its way to an end\n".into(),
    }
}

/// Each on a line of its own; or that there is none.
fn lines(all: Vec<String>, none: &str) -> String {
    if all.is_empty() { format!("{none}\n") } else { all.join("\n") + "\n" }
}

fn not_told() -> String {
    "The vCPU does not tell its registers\n".into()
}

fn no_number(word: &str) -> String {
    format!("{word:?} is no number; write such as 0x1000\n")
}

fn explained(target: &GdbTarget) -> Option<Explained> {
    target.snapshot(target.current).map(|(snapshot, _)| Explained::of(&snapshot))
}

fn walk(target: &mut GdbTarget, address: u64) -> String {
    match target.paging(target.current) {
        Some((paging, _)) => format!("{}\n", paging.walk(address, &|gpa, data| target.ram.read(gpa, data).is_ok())),
        None => not_told(),
    }
}

/// Most bytes that are shown.
const LONGEST: u64 = 4096;

fn physical(target: &GdbTarget, address: &str, len: &str) -> String {
    let (Some(address), Some(len)) = (number(address), number(len).filter(|len| *len <= LONGEST)) else {
        return format!("Write an address and at most {LONGEST} bytes, such as: monitor phys 0x1000 64\n");
    };
    let mut bytes = vec![0; len as usize];
    match target.ram.read(Gpa(address), &mut bytes) {
        Ok(()) => listing::bytes(&bytes, address),
        Err(error) => format!("{error}\n"),
    }
}

/// What Linux says of itself for those who read its memory.
fn panic(target: &mut GdbTarget) -> String {
    let Some((snapshot, _)) = target.snapshot(target.current) else { return not_told() };
    let at = target.explainer.with_symbols(|symbols| symbols?.located(&snapshot)?.address("panic"));
    match at {
        Some(at) => format!("The kernel's panic() is at {at:#x}. Type: break *{at:#x}\n"),
        None => {
            "The kernel carries no names, none of a function panic(), or is not up yet (--symbols of axvm run gives \
                 some)\n"
                .into()
        }
    }
}

fn kaslr(target: &GdbTarget) -> String {
    let mut page = vec![0; 4096];
    for region in target.ram.regions() {
        for at in (0..region.len).step_by(page.len()) {
            let gpa = Gpa(region.gpa.0 + at);
            // The head first: the rest of most pages is of no use.
            let mut head = [0; 4];
            if target.ram.read(gpa, &mut head).is_err()
                || head != [11, 0, 0, 0]
                || target.ram.read(gpa, &mut page).is_err()
            {
                continue;
            }
            let text = core_file::vmcoreinfo(&page).map(String::from_utf8_lossy);
            let offset =
                text.as_ref().and_then(|text| text.lines().find_map(|line| line.strip_prefix("KERNELOFFSET=")));
            if let Some(offset) = offset.and_then(|digits| u64::from_str_radix(digits, 16).ok()) {
                return format!("The kernel was moved by {offset:#x}. Type: symbol-file -o {offset:#x} vmlinux\n");
            }
        }
    }
    "The guest is no Linux, or has not come so far: VMCOREINFO is not there. Try again later, or add nokaslr to --append\n"
        .into()
}
