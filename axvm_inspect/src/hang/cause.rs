//! What a standstill usually means, ranked, each with what to try.
//!
//! ```text
//!   held            paused; a request in the host; a vCPU in the host
//!   an interrupt    returned, not seen: masked at the IOAPIC, pending at a vCPU that takes none, not acknowledged
//!   a request       offered and not taken: without a kick
//!   a driver        none for a device that the kernel needs; gave up
//!   the console     what the last lines say: root device, panic, init
//!   the vCPUs       halted for good, spinning, polling, never started, before 64 bits
//!   else            idle: it waits for input or for a timer
//! ```
//!
//! No specification: experience. Left out: guesses without a ground in the facts.

use std::time::Duration;

use axvm_arch::layout::gsi;
use axvm_arch::mode::CpuMode;

use super::facts::{DeviceFacts, Doing, HangFacts, Message, QueueFacts, Seen};
use crate::crash::Cause;
use crate::symbols::Located;

/// Bits of the device status field.
const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const NEEDS_RESET: u32 = 64;
const FAILED: u32 = 128;

/// A request in the host that takes so long holds a guest up.
const LONG: Duration = Duration::from_secs(1);

/// The causes of what is seen, the likeliest first; never none.
pub(super) fn rank(facts: &HangFacts<'_>, names: Option<Located<'_>>) -> Vec<Cause> {
    let mut causes = held(facts);
    for device in facts.devices {
        causes.extend(device.queues.iter().filter_map(|queue| unseen(facts, device, queue)));
        causes.extend(device.queues.iter().filter_map(|queue| no_kick(facts, device, queue)));
        causes.extend(gave_up(device));
    }
    causes.extend(console(facts));
    causes.extend(vcpus(facts, names));
    if causes.is_empty() {
        causes.push(idle(facts));
    }
    causes
}

fn held(facts: &HangFacts<'_>) -> Vec<Cause> {
    let mut causes = Vec::new();
    if facts.paused {
        causes.push(Cause::new("the machine is paused", "let it go on: axvm ctl MACHINE resume"));
    }
    for (thread, duration) in facts.busy.iter().filter(|(_, duration)| *duration >= LONG) {
        causes.push(Cause::new(
            format!(
                "thread {thread} has had a request in the host for {} s: the host's file or network does not answer",
                duration.as_secs()
            ),
            "look at the host: is the disk's file on a file system that hangs (NFS, FUSE), is a backing device stuck? \
             dmesg of the host tells",
        ));
    }
    causes
}

/// The device has returned buffers, the driver has not seen them: where is its interrupt?
fn unseen(facts: &HangFacts<'_>, device: &DeviceFacts, queue: &QueueFacts) -> Option<Cause> {
    if queue.unseen() == 0 || device.status? & DRIVER_OK == 0 {
        return None;
    }
    let returned = match queue.unseen() {
        1 => "1 buffer".to_owned(),
        count => format!("{count} buffers"),
    };
    let what = |where_it_is: String| {
        format!(
            "device {} has returned {returned} of queue {} that its driver has not looked at: {where_it_is}",
            device.name, queue.index
        )
    };
    let (where_it_is, remedy) = match queue.message {
        Message::Line => interrupt(facts, device)?,
        message => by_message(facts, message)?,
    };
    Some(Cause::new(what(where_it_is), remedy))
}

/// Where the message of a queue is, and what to do.
fn by_message(facts: &HangFacts<'_>, message: Message) -> Option<(String, &'static str)> {
    // A driver that chose no vector looks by itself.
    let Message::Msix { entry, vector, is_kept, .. } = message else { return None };
    if is_kept {
        return Some((
            format!("its interrupt, entry {entry} of MSI-X, is masked, or MSI-X is off"),
            "no handler is there for the message, or the kernel has turned it off: look at /proc/interrupts of the guest, \
             and for a failed request_irq on its console",
        ));
    }
    at_vcpu(facts, vector)
}

/// Where the interrupt of a device is, and what to do.
fn interrupt(facts: &HangFacts<'_>, device: &DeviceFacts) -> Option<(String, &'static str)> {
    let line = device.gsi?;
    let entry = facts.ioapic?.pins.get(gsi::pin(line) as usize)?;
    if entry.masked {
        return Some((
            format!("its interrupt, GSI {line}, is masked at the IOAPIC"),
            "no handler is there for the line, or the kernel has turned it off: the console may tell of an interrupt that no \
             driver cared for, or of a failed request_irq; a guest that uses the PICs (noapic) needs no IOAPIC: boot it \
             without noapic",
        ));
    }
    if let Some(found) = at_vcpu(facts, entry.vector) {
        return Some(found);
    }
    (device.interrupt_status != 0).then(|| {
        (
            format!(
                "the interrupt was raised, and its driver has not acknowledged it (InterruptStatus {:#x})",
                device.interrupt_status
            ),
            "the handler did not run or did not write InterruptACK: look whether the line in the guest is the device's \
             (/proc/interrupts), and whether another driver shares it",
        )
    })
}

/// The vCPU at which an interrupt with this vector has come and not ended.
fn at_vcpu(facts: &HangFacts<'_>, vector: u8) -> Option<(String, &'static str)> {
    let mut seen = facts.vcpus.iter().enumerate().filter_map(|(n, vcpu)| Some((n, vcpu.seen.as_ref()?)));
    if let Some((n, _)) = seen.clone().find(|(_, seen)| seen.pending().contains(&vector)) {
        return Some((
            format!("its interrupt, vector {vector:#04x}, waits at vCPU {n}, which does not take it"),
            "that vCPU has interrupts off or works on one of higher priority: look at what it does, above; a driver that \
             spins with interrupts off, or a handler that does not end (no EOI), does this",
        ));
    }
    if let Some((n, _)) = seen.find(|(_, seen)| seen.in_service().contains(&vector)) {
        return Some((
            format!("the handler of its interrupt, vector {vector:#04x}, has begun on vCPU {n} and not ended (no EOI)"),
            "look at what that vCPU does, above: the handler waits for something",
        ));
    }
    None
}

/// The driver has offered buffers that the device has not taken, and no kick is on its way.
fn no_kick(facts: &HangFacts<'_>, device: &DeviceFacts, queue: &QueueFacts) -> Option<Cause> {
    let in_host = facts.busy.iter().any(|(thread, _)| thread.starts_with(&device.name));
    let waits = queue.in_flight() > 0 && !queue.waits_for_input && !queue.kicked && !in_host && !facts.paused;
    (waits && device.status? & DRIVER_OK != 0).then(|| {
        Cause::new(
            format!(
                "device {} has {} buffer(s) in queue {} that its driver offered and the device does not work on: there was no kick",
                device.name,
                queue.in_flight(),
                queue.index
            ),
            "if the driver is yours: after it has published an index it must write the queue's number to QueueNotify, \
             unless VIRTIO_F_EVENT_IDX says otherwise; if it is Linux's, report this as a bug of AxVM",
        )
    })
}

fn gave_up(device: &DeviceFacts) -> Option<Cause> {
    let (name, driver) = (&device.name, device.driver);
    match device.status? {
        status if status & NEEDS_RESET != 0 => Some(Cause::new(
            format!("device {name} found a fault of its driver and wants a reset (DEVICE_NEEDS_RESET)"),
            "AxVM has said which rule was broken: look for it among its messages; the driver must reset the device",
        )),
        status if status & FAILED != 0 => Some(Cause::new(
            format!("the driver of {name} has given the device up (FAILED)"),
            format!("look for {driver} on the console: it says what it did not like"),
        )),
        _ => None,
    }
}

/// A device that no driver has taken.
fn without_driver(device: &DeviceFacts) -> bool {
    device.status.is_some_and(|status| status & (DRIVER | DRIVER_OK) == 0)
}

/// What the last lines of the console tell.
fn console(facts: &HangFacts<'_>) -> Option<Cause> {
    let has = |words: &str| facts.console.iter().any(|line| line.contains(words));
    let disk = facts.devices.iter().find(|device| device.driver == "virtio_blk");
    if has("Waiting for root device") || has("waiting for root") || has("VFS: Unable to mount root fs") {
        return Some(match disk {
            None => {
                Cause::new("the kernel waits for its root device, and the machine has no disk", "give one: --disk FILE")
            }
            Some(disk) if without_driver(disk) => no_driver(disk),
            Some(disk) => Cause::new(
                format!(
                    "the kernel waits for its root device, and {} has a driver: root= names another device",
                    disk.name
                ),
                "look at root= in the command line; a partition is /dev/vda1, a whole disk /dev/vda; root=UUID= needs an initrd",
            ),
        });
    }
    if has("Kernel panic") {
        return Some(Cause::new(
            "the kernel has panicked; the lines above it on the console say why",
            "add panic=1 to the command line, and the machine starts again or ends (--on-panic)",
        ));
    }
    None
}

fn no_driver(device: &DeviceFacts) -> Cause {
    let DeviceFacts { name, driver, bus, status, .. } = device;
    let found = match status {
        Some(status) if status & ACKNOWLEDGE != 0 => format!("has found {name}, and has no driver for it"),
        _ => format!("has not found {name}"),
    };
    Cause::new(
        format!("the kernel {found}: it lacks {bus} or {driver}"),
        format!("build both into the kernel, or put {bus}.ko and {driver}.ko into an initrd that loads them"),
    )
}

fn vcpus(facts: &HangFacts<'_>, names: Option<Located<'_>>) -> Vec<Cause> {
    let doing: Vec<Doing> = facts.vcpus.iter().map(super::facts::VcpuFacts::doing).collect();
    let mut causes = Vec::new();
    let started = doing.iter().filter(|doing| **doing != Doing::NotStarted);
    if started.clone().count() > 0 && started.clone().all(|doing| *doing == Doing::HaltedForGood) {
        causes.push(Cause::new(
            "every vCPU is halted with interrupts off: nothing but an NMI wakes them",
            "a kernel ends so after a panic (look at the console, or give console=ttyS0), and after `halt`",
        ));
    }
    for (n, (vcpu, doing)) in facts.vcpus.iter().zip(&doing).enumerate() {
        let place = |range: &std::ops::RangeInclusive<u64>| {
            let name = names.and_then(|names| names.name(*range.start()));
            name.unwrap_or_else(|| format!("{:#x}", range.start()))
        };
        match doing {
            Doing::InHost => causes.push(Cause::new(
                format!("vCPU {n} does not come back from what it asked the host for"),
                "it waits for a device that the guest has reset: a request of that device hangs in the host",
            )),
            Doing::Spinning(range) => causes.push(spinning(n, &place(range), vcpu.seen.as_ref(), facts)),
            Doing::Polling(range) => causes.push(Cause::new(
                format!("vCPU {n} asks a device again and again, at {}", place(range)),
                "it waits for a register to change: look at which one with --trace FILE",
            )),
            Doing::NotStarted | Doing::Idle | Doing::HaltedForGood | Doing::Running => {}
        }
    }
    let waiting = doing.iter().filter(|doing| **doing == Doing::NotStarted).count();
    if waiting > 0 && waiting < doing.len() {
        causes.push(not_started(facts, waiting));
    }
    causes
}

fn spinning(n: usize, place: &str, seen: Option<&Seen>, facts: &HangFacts<'_>) -> Cause {
    let Some(seen) = seen else { return idle(facts) };
    let mode = seen.snapshot.cpu.mode().cpu;
    if mode != CpuMode::Long {
        return Cause::new(
            format!("vCPU {n} spins at {place}, in {mode}: it has not come to 64 bits"),
            "a kernel that is unpacked ends so if it has too little memory, or if its image is damaged: give it more RAM \
             (--memory), fetch the image again; earlyprintk=ttyS0 has it say more",
        );
    }
    match seen.takes_interrupts() {
        false => Cause::new(
            format!("vCPU {n} spins at {place} with interrupts off: it waits for a lock, or for another vCPU"),
            "look at what the other vCPUs do; `axvm ctl MACHINE nmi` has a Linux with the NMI watchdog tell its stacks; after a \
             panic a kernel spins so, too",
        ),
        true => Cause::new(
            format!("vCPU {n} spins at {place}: a loop that waits for memory to change"),
            "with a vmlinux or System.map (--symbols) this report names the function",
        ),
    }
}

fn not_started(facts: &HangFacts<'_>, waiting: usize) -> Cause {
    let limit = facts.command_line.split_whitespace().find(|word| {
        word.starts_with("maxcpus=")
            || word.starts_with("nr_cpus=")
            || *word == "nosmp"
            || *word == "noapic"
            || *word == "nolapic"
    });
    let never = match waiting {
        1 => "1 vCPU was never started".to_owned(),
        count => format!("{count} vCPUs were never started"),
    };
    match limit {
        Some(word) => Cause::new(
            format!("{never}: the command line says {word}"),
            format!("take {word} off, or give the machine fewer vCPUs (--cpus)"),
        ),
        None => Cause::new(
            never,
            "early in the boot this is as it should be; later: the kernel has no SMP, NR_CPUS is smaller, or it does not \
             read the tables that name them (ACPI: --acpi full)",
        ),
    }
}

/// No sign of a fault.
fn idle(facts: &HangFacts<'_>) -> Cause {
    let needs = facts.devices.iter().find(|device| device.driver == "virtio_blk" && without_driver(device));
    if facts.console.is_empty() {
        return Cause::new(
            "the guest has said nothing on its console",
            "the kernel's console is another one: add console=ttyS0 (8250), or --virtio-console stdio for one without it",
        );
    }
    if let Some(device) = needs {
        return no_driver(device);
    }
    Cause::new(
        "no sign of a fault: the vCPUs are idle with interrupts on, nothing is open at a device; the guest waits for input or a timer",
        "look at the console's last lines: a shell or a login waits so, too",
    )
}
