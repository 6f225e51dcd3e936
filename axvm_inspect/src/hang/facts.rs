//! What a hang report is made of: every vCPU, interrupt controller, ring and line of the console, at one moment.
//!
//! Spec: virtio 1.2, 2.1 "Device Status Field", 2.7.7 "Used Buffer Notification Suppression"; Intel SDM volume 3, chapter
//! 11 "Advanced Programmable Interrupt Controller (APIC)".

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use axvm_arch::control::rflags;
use axvm_arch::irqchip::{IoapicState, LapicState};
use axvm_kvm::state::MpState;

use crate::snapshot::{Processor, Snapshot};
use crate::symbols::Symbols;

/// A machine at one moment.
#[derive(Clone, Copy)]
pub struct HangFacts<'a> {
    /// How long it has not moved: no vCPU has come back from the guest.
    pub quiet: Duration,
    /// It is held by its user.
    pub paused: bool,
    /// Its vCPUs.
    pub vcpus: &'a [VcpuFacts],
    /// Where lines lead, if KVM tells.
    pub ioapic: Option<&'a IoapicState>,
    /// Who has a line.
    pub lines: &'a [LineFacts],
    /// Its virtio devices.
    pub devices: &'a [DeviceFacts],
    /// Threads with a request in the host, and for how long.
    pub busy: &'a [(String, Duration)],
    /// The last lines on its console, the latest one last.
    pub console: &'a [String],
    /// What its kernel was told.
    pub command_line: &'a str,
    /// Names of its kernel's functions.
    pub symbols: Option<&'a Symbols>,
}

/// One vCPU.
#[derive(Clone, Debug)]
pub struct VcpuFacts {
    /// How often it came back from the guest.
    pub exits: u64,
    /// How it stands; none if it did not come out of what it does in the host.
    pub seen: Option<Seen>,
    /// Its last exits in words, the latest last, as far as they are recorded.
    pub last_exits: Vec<String>,
}

/// A vCPU that was looked at.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Whether it runs, halts, or waits to be started.
    pub mp_state: MpState,
    /// Its registers.
    pub snapshot: Snapshot,
    /// What processor it is.
    pub processor: Processor,
    /// Its local APIC; none if KVM does not tell.
    pub lapic: Option<LapicState>,
    /// RIP in several looks, one after the other.
    pub looks: Vec<Look>,
}

/// Where a vCPU was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Linear address of the next instruction.
    pub rip: u64,
    /// Exits until then.
    pub exits: u64,
}

/// An interrupt line.
#[derive(Clone, Debug)]
pub struct LineFacts {
    /// Its number.
    pub gsi: u32,
    /// Whose it is.
    pub name: String,
}

/// A virtio device.
#[derive(Clone, Debug)]
pub struct DeviceFacts {
    /// Its name: `vda`.
    pub name: String,
    /// The driver that Linux has for it: `virtio_blk`.
    pub driver: &'static str,
    /// What carries it: `virtio_mmio` or `virtio_pci`.
    pub bus: &'static str,
    /// Its line, if it has one.
    pub gsi: Option<u32>,
    /// The device status field; none if a vCPU is just using the registers.
    pub status: Option<u32>,
    /// The interrupt status register: what the driver has not acknowledged.
    pub interrupt_status: u32,
    /// Its queues that the driver has set up.
    pub queues: Vec<QueueFacts>,
}

/// A queue. Indices count modulo 2^16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueFacts {
    /// Its number.
    pub index: u16,
    /// Number of descriptors.
    pub size: u16,
    /// Buffers that the driver has offered.
    pub avail: u16,
    /// Buffers that the device has returned.
    pub used: u16,
    /// The driver wants to be told of the buffer after this one; none without VIRTIO_F_EVENT_IDX.
    pub used_event: Option<u16>,
    /// The driver has kicked, and no one has taken it.
    pub kicked: bool,
    /// Its buffers wait in the device for what comes from outside: frames, entropy, keys. They are no requests.
    pub waits_for_input: bool,
    /// How it interrupts.
    pub message: Message,
}

/// How a queue interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// By the line of its device.
    Line,
    /// Not at all: its driver chose no vector.
    None,
    /// By a message.
    Msix {
        /// The entry of the table of MSI-X.
        entry: u16,
        /// The interrupt vector that it names.
        vector: u8,
        /// The local APIC that it goes to.
        destination: u32,
        /// It is masked, or MSI-X is off.
        is_kept: bool,
        /// It was raised, and waits until it is not masked.
        is_pending: bool,
    },
}

impl DeviceFacts {
    /// How far its driver is.
    pub(crate) fn status_words(&self) -> String {
        match self.status {
            None => "a vCPU is at its registers".into(),
            Some(0) => "no driver has touched it".into(),
            Some(status) => format!("status {status:#x} {}", steps(status)),
        }
    }
}

impl Message {
    /// Where a message goes, or that there is none; nothing of a queue that has a line.
    pub(crate) fn way(self) -> Option<String> {
        match self {
            Message::Line => None,
            Message::None => Some("no vector of MSI-X: its driver looks by itself".into()),
            Message::Msix { entry, vector, destination, is_kept, is_pending } => {
                let kept = if is_kept { ", masked" } else { "" };
                let pending = if is_pending { ", pending" } else { "" };
                Some(format!("MSI-X {entry}: vector {vector:#04x} -> APIC {destination:#x}{kept}{pending}"))
            }
        }
    }
}

impl fmt::Display for QueueFacts {
    /// How far driver and device are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "offered {}, returned {}", self.avail, self.used)?;
        match self.in_flight() {
            0 => {}
            count if self.waits_for_input => write!(f, ", {count} wait for input")?,
            count => write!(f, ", {count} open")?,
        }
        if self.unseen() > 0 && self.message != Message::None {
            write!(f, ", {} not looked at", self.unseen())?;
        }
        f.write_str(if self.kicked { ", kicked" } else { "" })
    }
}

impl QueueFacts {
    /// Buffers that the device has.
    pub fn in_flight(&self) -> u16 {
        self.avail.wrapping_sub(self.used)
    }

    /// Buffers that were returned and that the driver has not looked at, as far as it says so.
    pub fn unseen(&self) -> u16 {
        let behind = self.used_event.map_or(0, |event| self.used.wrapping_sub(event));
        // A driver may ask for an index ahead, or never set it.
        if behind <= self.size { behind } else { 0 }
    }
}

/// What a vCPU does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doing {
    /// It did not come out of what it asked the host for.
    InHost,
    /// It waits for INIT and SIPI.
    NotStarted,
    /// It is halted until an interrupt comes.
    Idle,
    /// It is halted, and no interrupt can wake it.
    HaltedForGood,
    /// It was within these addresses at every look.
    Spinning(RangeInclusive<u64>),
    /// It asks devices again and again from within these addresses.
    Polling(RangeInclusive<u64>),
    /// It runs.
    Running,
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Doing::InHost => f.write_str("in the host, and does not come back"),
            Doing::NotStarted => f.write_str("waits for INIT and SIPI: it was never started"),
            Doing::Idle => f.write_str("halted, interrupts on"),
            Doing::HaltedForGood => f.write_str("halted, interrupts off: for good"),
            Doing::Spinning(range) => write!(f, "spins between {:#x} and {:#x}", range.start(), range.end()),
            Doing::Polling(range) => write!(f, "asks devices from between {:#x} and {:#x}", range.start(), range.end()),
            Doing::Running => f.write_str("runs"),
        }
    }
}

/// A loop is this long at most, in bytes.
const LOOP: u64 = 256;
/// So many exits between looks are polling.
const POLLS: u64 = 4;

impl VcpuFacts {
    /// One of which nothing else is known.
    pub fn of(seen: Option<Seen>) -> VcpuFacts {
        VcpuFacts { exits: 0, last_exits: Vec::new(), seen }
    }

    /// What it does, as far as can be seen.
    pub fn doing(&self) -> Doing {
        let Some(seen) = &self.seen else { return Doing::InHost };
        match seen.mp_state {
            MpState::Uninitialized | MpState::InitReceived | MpState::SipiReceived => return Doing::NotStarted,
            MpState::Halted if seen.takes_interrupts() => return Doing::Idle,
            MpState::Halted => return Doing::HaltedForGood,
            MpState::Runnable => {}
        }
        let addresses = || seen.looks.iter().map(|look| look.rip);
        let (Some(low), Some(high)) = (addresses().min(), addresses().max()) else { return Doing::Running };
        let exits = seen.looks.last().map_or(0, |look| look.exits) - seen.looks.first().map_or(0, |look| look.exits);
        match high - low < LOOP && seen.looks.len() > 1 {
            true if exits >= POLLS * seen.looks.len() as u64 => Doing::Polling(low..=high),
            true => Doing::Spinning(low..=high),
            false => Doing::Running,
        }
    }
}

impl Seen {
    /// RFLAGS.IF.
    pub fn takes_interrupts(&self) -> bool {
        self.snapshot.cpu.regs.rflags & rflags::IF != 0
    }

    /// Vectors of a bitmap of the local APIC, lowest first.
    fn vectors(&self, bitmap: usize) -> Vec<u8> {
        let Some(lapic) = &self.lapic else { return Vec::new() };
        let is_set = |vector: &u8| lapic.register(bitmap + usize::from(vector / 32) * 16) >> (vector % 32) & 1 != 0;
        (0..=255).filter(is_set).collect()
    }

    /// Vectors that wait for the processor (IRR).
    pub fn pending(&self) -> Vec<u8> {
        self.vectors(LapicState::IRR)
    }

    /// Vectors whose handlers have not said EOI (ISR).
    pub fn in_service(&self) -> Vec<u8> {
        self.vectors(LapicState::ISR)
    }

    /// Whether software has turned the local APIC on; unknown ones are.
    pub fn apic_is_on(&self) -> bool {
        self.lapic.as_ref().is_none_or(|lapic| lapic.register(LapicState::SVR) >> 8 & 1 != 0)
    }
}

/// The steps that a driver has taken.
fn steps(status: u32) -> String {
    let bits = [
        (1, "ACKNOWLEDGE"),
        (2, "DRIVER"),
        (8, "FEATURES_OK"),
        (4, "DRIVER_OK"),
        (64, "DEVICE_NEEDS_RESET"),
        (128, "FAILED"),
    ];
    let set: Vec<&str> = bits.iter().filter(|(bit, _)| status & bit != 0).map(|(_, word)| *word).collect();
    set.join(" ")
}
