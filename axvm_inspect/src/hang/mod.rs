//! A guest that does not move: what each vCPU does, where interrupts and requests are, and what that usually means.
//!
//! ```text
//!   HangFacts: vCPUs, IOAPIC, rings, console --report--> causes with remedies, ranked
//!                                                        vCPUs: halted, spinning at default_idle+0xb, not started
//!                                                        lines: GSI 5 vda, vector 0x25, masked
//!                                                        queues: offered 12, returned 11
//! ```
//!
//! Pure: the same facts give the same report, with or without KVM.

mod cause;
mod facts;

#[cfg(test)]
mod tests;

use std::fmt::{self, Write};

use axvm_arch::irqchip::RedirectionEntry;
use axvm_arch::layout::gsi;
use serde::Serialize;

use crate::crash::{Cause, last_lines};
use crate::symbols::Located;
use crate::wrap::paragraph;

pub use facts::{DeviceFacts, Doing, HangFacts, LineFacts, Look, Message, QueueFacts, Seen, VcpuFacts};

/// The report. Its text fits a terminal of 80 columns.
#[derive(Clone, Debug, Serialize)]
pub struct HangReport {
    /// Seconds without a sign.
    pub quiet_seconds: u64,
    /// What likely happened and what to try, the likeliest first.
    pub causes: Vec<Cause>,
    /// A line for each vCPU: its number, what it does.
    pub vcpus: Vec<String>,
    /// A line for each vCPU whose last exits are known: these, the latest last.
    pub last_exits: Vec<String>,
    /// A line for each interrupt line that is used.
    pub lines: Vec<String>,
    /// A line for each virtio device and each of its queues.
    pub devices: Vec<String>,
    /// The console's last lines, without control characters.
    pub console: Vec<String>,
    /// Of symbols that were given and not used, why.
    pub symbols: Option<&'static str>,
}

impl HangFacts<'_> {
    /// Makes the report.
    pub fn report(&self) -> HangReport {
        let names = self.located();
        let unused = self.symbols.is_some() && names.is_none();
        HangReport {
            quiet_seconds: self.quiet.as_secs(),
            causes: self.causes(names),
            vcpus: self.vcpus.iter().enumerate().map(|(n, vcpu)| vcpu_line(n, vcpu, names)).collect(),
            last_exits: last_exit_lines(self.vcpus),
            lines: self.interrupt_lines(),
            devices: self.devices.iter().flat_map(device_lines).collect(),
            console: last_lines(self.console),
            symbols: unused.then_some("The symbols are another kernel's: what they say of entry_SYSCALL_64 cannot be"),
        }
    }

    /// What likely holds the guest up, the likeliest first; never none.
    pub(crate) fn causes(&self, names: Option<Located<'_>>) -> Vec<Cause> {
        cause::rank(self, names)
    }

    /// The names of functions where they are now; any vCPU may tell.
    pub(crate) fn located(&self) -> Option<Located<'_>> {
        let symbols = self.symbols?;
        let seen = self.vcpus.iter().filter_map(|vcpu| vcpu.seen.as_ref());
        // The first vCPU sets its registers first.
        seen.map(|seen| symbols.located(&seen.snapshot)).next()?
    }

    /// Where a line leads; nothing of one that no driver has ever touched.
    pub(crate) fn route(&self, line: &LineFacts) -> Option<String> {
        let ioapic = self.ioapic?;
        let pin = gsi::pin(line.gsi);
        let entry = ioapic.pins.get(pin as usize)?;
        let asks = ioapic.requested >> pin & 1 != 0;
        let untouched = RedirectionEntry { masked: true, ..RedirectionEntry::default() };
        (*entry != untouched || asks).then(|| format!("{entry:?}{}", if asks { ", asks" } else { "" }))
    }

    /// A line of text for each that a driver has touched, and one for all others.
    fn interrupt_lines(&self) -> Vec<String> {
        let mut lines: Vec<&LineFacts> = self.lines.iter().collect();
        lines.sort_by_key(|line| line.gsi);
        let (told, untouched): (Vec<_>, Vec<_>) =
            lines.into_iter().map(|line| (line, self.route(line))).partition(|(_, words)| words.is_some());
        let told = told.into_iter().filter_map(|(line, words)| Some((line, words?)));
        let mut words: Vec<String> =
            told.map(|(line, words)| format!("GSI {:<2} {:<10} {words}", line.gsi, line.name)).collect();
        let names: Vec<String> = untouched.iter().map(|(line, _)| format!("{} {}", line.gsi, line.name)).collect();
        if self.ioapic.is_some() && !names.is_empty() {
            words.push(format!("masked, as after a reset (no handler): GSI {}", names.join(", ")));
        }
        words
    }
}

fn last_exit_lines(vcpus: &[VcpuFacts]) -> Vec<String> {
    let known = vcpus.iter().enumerate().filter(|(_, vcpu)| !vcpu.last_exits.is_empty());
    known.map(|(n, vcpu)| format!("vCPU {n}: {}", vcpu.last_exits.join("; "))).collect()
}

fn vcpu_line(n: usize, vcpu: &VcpuFacts, names: Option<Located<'_>>) -> String {
    let mut line = format!("vCPU {n}: ");
    let _ = write!(line, "{}", vcpu.doing());
    if let Some(seen) = vcpu.seen.as_ref().filter(|_| vcpu.doing() != Doing::NotStarted) {
        let rip = seen.snapshot.cpu.linear_rip();
        let name = names.and_then(|names| names.name(rip)).map(|name| format!(", {name}")).unwrap_or_default();
        let mode = seen.snapshot.cpu.mode();
        let _ = write!(line, "; RIP {rip:#x}{name}; {mode}");
        if !seen.takes_interrupts() && vcpu.doing() != Doing::HaltedForGood {
            line.push_str("; interrupts off");
        }
        if !seen.apic_is_on() {
            line.push_str("; local APIC off");
        }
        for (what, vectors) in [("pending", seen.pending()), ("in service", seen.in_service())] {
            if !vectors.is_empty() {
                let vectors: Vec<String> = vectors.iter().map(|vector| format!("{vector:#04x}")).collect();
                let _ = write!(line, "; {what} {}", vectors.join(" "));
            }
        }
    }
    let _ = write!(line, "; {} exit{}", vcpu.exits, if vcpu.exits == 1 { "" } else { "s" });
    line
}

fn device_lines(device: &DeviceFacts) -> Vec<String> {
    let mut lines = vec![format!("{}: {}", device.name, device.status_words())];
    lines.extend(device.queues.iter().flat_map(|queue| {
        let line = format!("  queue {}, size {}: {queue}", queue.index, queue.size);
        [Some(line), queue.message.way().map(|way| format!("    {way}"))].into_iter().flatten()
    }));
    lines
}

impl fmt::Display for HangReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.quiet_seconds {
            0 => writeln!(f, "What the guest does now")?,
            seconds => writeln!(f, "What the guest does, after {seconds} s without a sign of it")?,
        }
        writeln!(f, "\nWhat this usually means, and what to try")?;
        for (n, Cause { what, remedy }) in (1..).zip(&self.causes) {
            paragraph(f, &format!("{n:>3}. "), what)?;
            paragraph(f, "     > ", remedy)?;
        }
        let parts = [
            ("vCPUs", &self.vcpus),
            ("Last exits, the latest last", &self.last_exits),
            ("Interrupt lines", &self.lines),
            ("Devices", &self.devices),
        ];
        for (title, lines) in parts.into_iter().filter(|(_, lines)| !lines.is_empty()) {
            writeln!(f, "\n{title}")?;
            lines.iter().try_for_each(|line| paragraph(f, "  ", line))?;
        }
        if let Some(why) = self.symbols {
            writeln!(f)?;
            paragraph(f, "", why)?;
        }
        if !self.console.is_empty() {
            writeln!(f, "\nLast lines on the guest's console")?;
        }
        self.console.iter().try_for_each(|line| writeln!(f, "  | {line}"))
    }
}
