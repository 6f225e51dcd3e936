//! A machine that runs, at one moment, as the same tree of data.
//!
//! ```text
//!   vCPUs, held for a moment --> vcpus, clocks, walk
//!   IOAPIC, lines, rings     --> lines, queues --hang::cause--> signs
//!   plan, slots of RAM       --> memory
//! ```
//!
//! Spec: Intel SDM volume 3, 12.5.4 "APIC Timer"; KVM API, `KVM_GET_CLOCK`, `KVM_GET_PIT2`; Linux
//! Documentation/virt/kvm/x86/msr.rst, `MSR_KVM_SYSTEM_TIME_NEW`.

use std::time::Duration;

use axvm_arch::irqchip::LapicState;
use axvm_arch::msr;
use axvm_arch::paging::ReadPhysical;
use axvm_arch::pit::PitState;
use axvm_boot::plan::Plan;

use super::{Row, Section, VERSION, Xray, memory, processor};
use crate::hang::{Doing, HangFacts, Seen, VcpuFacts};
use crate::symbols::Located;
use crate::text::clean;

/// All that is known of a machine that runs.
#[derive(Clone, Copy)]
pub struct LiveFacts<'a> {
    /// What the machine is called.
    pub name: &'a str,
    /// What was said of it, for the first section: a name, and a value in words.
    pub said: &'a [(&'static str, String)],
    /// Who sits where.
    pub plan: &'a Plan,
    /// First address and length of each piece of RAM.
    pub ram: &'a [(u64, u64)],
    /// Its vCPUs, lines and queues.
    pub hang: HangFacts<'a>,
    /// Its clocks that are not a vCPU's.
    pub clocks: &'a ClockFacts,
    /// Linear addresses to be walked as the first vCPU has them.
    pub walks: &'a [u64],
    /// Guest memory now.
    pub read: ReadPhysical<'a>,
}

/// The clocks of a machine. What KVM does not tell is none.
#[derive(Clone, Debug, Default)]
pub struct ClockFacts {
    /// How long the guest has lived by kvmclock.
    pub kvmclock: Option<Duration>,
    /// The i8254.
    pub pit: Option<PitState>,
    /// How long ACPI's timer has run.
    pub pm_timer: Option<Duration>,
    /// Frequency of the guest's TSC, in kHz.
    pub tsc_khz: Option<u32>,
}

/// Frequency of the i8254's input, in Hz.
const PIT_HZ: f64 = 1_193_182.0;

impl Xray {
    /// Shows a machine that runs.
    pub fn live(facts: &LiveFacts) -> Xray {
        let names = facts.hang.located();
        let rows = facts.said.iter().map(|(name, value)| Row::new(*name).text(value)).collect();
        let mut sections = vec![
            Section { id: "machine", title: "Machine", about: "What it is, and how it stands.".into(), rows },
            signs(facts, names),
            memory::live(facts.plan, facts.ram),
            vcpus(&facts.hang, names),
            clocks(facts),
            lines(&facts.hang),
            queues(&facts.hang),
        ];
        sections.extend(walks(facts));
        Xray { version: VERSION, name: clean(facts.name), sections }
    }
}

fn signs(facts: &LiveFacts, names: Option<Located<'_>>) -> Section {
    let causes = facts.hang.causes(names);
    let rows = (1..).zip(causes).map(|(n, cause)| {
        let remedy = Row::new("try").means(cause.remedy);
        Row::new(format!("{n}")).means(cause.what).rows(vec![remedy])
    });
    let about = "What this usually means, the likeliest first. One look finds less than axvm ctl NAME explain, which looks several times.";
    Section { id: "signs", title: "Signs", about: about.into(), rows: rows.collect() }
}

fn vcpus(hang: &HangFacts, names: Option<Located<'_>>) -> Section {
    let rows = (0..).zip(hang.vcpus).map(|(n, vcpu)| vcpu_row(n, vcpu, names)).collect();
    let about = "Each virtual processor; axvm ctl NAME registers tells all that it holds.";
    Section { id: "vcpus", title: "vCPUs", about: about.into(), rows }
}

fn vcpu_row(n: u32, vcpu: &VcpuFacts, names: Option<Located<'_>>) -> Row {
    let exits = Row::new("exits").text(vcpu.exits.to_string()).means("times that it came back from the guest");
    let mut rows = vec![exits];
    let doing = vcpu.doing();
    if let Some(seen) = vcpu.seen.as_ref().filter(|_| doing != Doing::NotStarted) {
        let cpu = &seen.snapshot.cpu;
        let rip = cpu.linear_rip();
        let name = names.and_then(|names| names.name(rip)).unwrap_or_default();
        rows.push(Row::new("RIP").value(rip).means(name));
        rows.push(Row::new("mode").text(cpu.mode().to_string()));
        rows.push(Row::new("CR3").value(cpu.system.cr3).means("where its page tables begin"));
        let sets = [
            ("pending", seen.pending(), "vectors that wait for it (IRR)"),
            ("in service", seen.in_service(), "vectors whose handlers run (ISR)"),
        ];
        for (name, vectors, means) in sets.into_iter().filter(|(_, vectors, _)| !vectors.is_empty()) {
            let vectors: Vec<String> = vectors.iter().map(|vector| format!("{vector:#04x}")).collect();
            rows.push(Row::new(name).text(vectors.join(" ")).means(means));
        }
        if !seen.apic_is_on() {
            rows.push(Row::new("local APIC").text("off").means("it takes no interrupt but by LINT0 and LINT1"));
        }
    }
    if !vcpu.last_exits.is_empty() {
        rows.push(Row::new("last exits").means(vcpu.last_exits.join("; ")));
    }
    Row::new(format!("vCPU {n}")).text(doing.to_string()).rows(rows)
}

fn clocks(facts: &LiveFacts) -> Section {
    let ClockFacts { kvmclock, pit, pm_timer, tsc_khz } = facts.clocks;
    let mut rows = Vec::new();
    rows.extend(kvmclock.map(|lived| {
        let means = "nanoseconds since the guest began, as KVM tells them by a page of its memory; a pause counts";
        Row::new("kvmclock").text(seconds(lived)).means(means)
    }));
    rows.extend(pm_timer.map(|ran| {
        let means = "the counter of 3.58 MHz in ACPI's registers; a pause counts";
        Row::new("ACPI timer").text(seconds(ran)).means(means)
    }));
    rows.extend(pit.as_ref().map(pit_row));
    let vcpus = (0..).zip(facts.hang.vcpus);
    let seen = vcpus.filter_map(|(n, vcpu)| Some((n, vcpu.seen.as_ref()?)));
    rows.extend(seen.map(|(n, seen): (u32, _)| vcpu_clocks(n, seen, *tsc_khz)));
    let about = "What time it is for the guest, and what will tell it that time has passed.";
    Section { id: "clocks", title: "Clocks", about: about.into(), rows }
}

/// Counter 0, which interrupts.
fn pit_row(pit: &PitState) -> Row {
    let counter = &pit.channels[0];
    let mode = match counter.mode {
        0 => "mode 0, an interrupt once",
        2 => "mode 2, periodic",
        3 => "mode 3, periodic",
        4 => "mode 4, an interrupt once",
        1 | 5 => "a mode that its gate starts",
        _ => return Row::new("PIT").text("never set up"),
    };
    let after = Duration::from_secs_f64(f64::from(counter.count) / PIT_HZ);
    let means = format!("counts down from {:#x}, in {}", counter.count, seconds(after));
    Row::new("PIT").text(mode).means(means)
}

/// The clocks of one processor: its TSC, and the timer of its local APIC.
fn vcpu_clocks(n: u32, seen: &Seen, khz: Option<u32>) -> Row {
    let mut rows = Vec::new();
    let spent = |ticks: u64| khz.map(|khz| Duration::from_secs_f64(ticks as f64 / (f64::from(khz) * 1000.0)));
    let tsc = seen.snapshot.msr(msr::TSC);
    rows.extend(tsc.map(|tsc| {
        let rate = khz.map(|khz| format!(" at {}.{:03} MHz", khz / 1000, khz % 1000)).unwrap_or_default();
        let means = spent(tsc).map(|spent| format!("{}{rate}; a pause counts", seconds(spent)));
        Row::new("TSC").value(tsc).means(means.unwrap_or_default())
    }));
    if let Some(deadline) = seen.snapshot.msr(msr::TSC_DEADLINE).filter(|_| uses_deadline(seen)) {
        let means = match (deadline, tsc) {
            (0, _) => "not armed".into(),
            (_, Some(tsc)) if deadline <= tsc => "has passed: its interrupt is on its way".into(),
            (_, Some(tsc)) => spent(deadline - tsc).map(|left| format!("in {}", seconds(left))).unwrap_or_default(),
            (_, None) => String::new(),
        };
        rows.push(Row::new("deadline").value(deadline).means(means));
    }
    rows.extend(seen.lapic.as_ref().map(timer_row));
    let page = seen.snapshot.msr(msr::kvm::SYSTEM_TIME).filter(|page| page & 1 != 0);
    rows.extend(page.map(|page| Row::new("kvmclock").value(page & !1).means("where in memory KVM tells it the time")));
    Row::new(format!("vCPU {n}")).rows(rows)
}

/// Whether the timer of its local APIC waits for a deadline: bits 18 and 17 of its vector.
fn uses_deadline(seen: &Seen) -> bool {
    seen.lapic.as_ref().is_some_and(|lapic| lapic.register(LapicState::LVT_TIMER) >> 17 & 3 == 2)
}

fn timer_row(lapic: &LapicState) -> Row {
    let entry = lapic.register(LapicState::LVT_TIMER);
    let mode = ["one-shot", "periodic", "TSC deadline", "reserved"][(entry >> 17 & 3) as usize];
    let means = match entry >> 16 & 1 {
        1 => "masked: it does not interrupt".into(),
        _ => format!("interrupts by vector {:#04x}", entry & 0xff),
    };
    Row::new("APIC timer").text(mode).means(means)
}

fn seconds(time: Duration) -> String {
    format!("{:.6} s", time.as_secs_f64())
}

fn lines(hang: &HangFacts) -> Section {
    let mut lines: Vec<_> = hang.lines.iter().collect();
    lines.sort_by_key(|line| line.gsi);
    let rows = lines.into_iter().map(|line| {
        let entry = hang.route(line);
        Row::new(format!("GSI {}", line.gsi)).text(&line.name).means(match (hang.ioapic.is_some(), entry) {
            (true, Some(entry)) => entry,
            (true, None) => "masked, as after a reset: it has no handler".into(),
            (false, _) => String::new(),
        })
    });
    let about = "Interrupt lines at the IOAPIC: the vector that each raises, and the local APIC that gets it.";
    Section { id: "lines", title: "Interrupt lines", about: about.into(), rows: rows.collect() }
}

fn queues(hang: &HangFacts) -> Section {
    let rows = hang.devices.iter().map(|device| {
        let queues = device.queues.iter().map(|queue| {
            let way = queue.message.way().map(|way| Row::new("interrupt").means(way));
            let row = Row::new(format!("queue {}", queue.index)).text(format!("{} buffers", queue.size));
            row.means(queue.to_string()).rows(way.into_iter().collect())
        });
        let means = format!("{} by {}; {}", device.driver, device.bus, device.status_words());
        Row::new(&device.name).means(means).rows(queues.collect())
    });
    let about = "Each virtio device: how far its driver is, and what its queues hold.";
    Section { id: "queues", title: "Queues", about: about.into(), rows: rows.collect() }
}

/// The way of the addresses that were asked for.
fn walks(facts: &LiveFacts) -> Option<Section> {
    let seen = facts.hang.vcpus.first()?.seen.as_ref().filter(|_| !facts.walks.is_empty())?;
    let paging = seen.processor.paging(&seen.snapshot.cpu);
    let about = format!("How the first vCPU translates an address now, by {}: entry by entry.", paging.scheme);
    let rows = facts.walks.iter().map(|&address| processor::walk(&paging.walk(address, facts.read))).collect();
    Some(Section { id: "walk", title: "Page walk", about, rows })
}
