//! Standstills made by hand: each pattern, its words, and the report as a whole.

use axvm_arch::HexBytes;
use axvm_arch::control::rflags;
use axvm_arch::irqchip::{IoapicState, LapicState, RedirectionEntry};
use axvm_arch::registers::{CpuState, Registers, Segment, SystemRegisters, cr4, efer};
use axvm_kvm::state::MpState;
use proptest::prelude::*;
use std::time::Duration;

use super::*;
use crate::snapshot::{Processor, Snapshot};

const IDLE: u64 = 0xffff_ffff_81e5_f0eb;

/// Facts that own what they are made of.
struct Guest {
    quiet: Duration,
    paused: bool,
    vcpus: Vec<VcpuFacts>,
    ioapic: IoapicState,
    devices: Vec<DeviceFacts>,
    busy: Vec<(String, Duration)>,
    console: Vec<String>,
    command_line: String,
}

/// A vCPU in 64-bit mode that was at these addresses.
fn vcpu(mp_state: MpState, flags: u64, rips: &[u64]) -> VcpuFacts {
    let system = SystemRegisters {
        cs: Segment::code64(0x10),
        cr0: 0x8000_0011,
        cr4: cr4::PAE,
        efer: efer::LME | efer::LMA,
        ..SystemRegisters::default()
    };
    let regs = Registers { rip: rips[0], rflags: 2 | flags, ..Registers::default() };
    let looks = rips.iter().map(|&rip| Look { rip, exits: 7 }).collect();
    let mut page = vec![0; LapicState::LEN];
    page[LapicState::SVR + 1] = 1;
    let seen = Seen {
        mp_state,
        snapshot: Snapshot::from(CpuState { regs, system }),
        processor: Processor::default(),
        lapic: Some(LapicState(HexBytes(page))),
        looks,
    };
    VcpuFacts { exits: 7, seen: Some(seen), last_exits: Vec::new() }
}

fn set(vcpu: &mut VcpuFacts, bitmap: usize, vector: u8) {
    let page = &mut vcpu.seen.as_mut().unwrap().lapic.as_mut().unwrap().0.0;
    page[bitmap + usize::from(vector / 32) * 16 + usize::from(vector % 32 / 8)] |= 1 << (vector % 8);
}

impl Guest {
    /// Two idle vCPUs, a disk with a driver and nothing open, a shell.
    fn at_rest() -> Guest {
        let mut pins = vec![RedirectionEntry { masked: true, ..RedirectionEntry::default() }; IoapicState::PINS];
        pins[5] = RedirectionEntry { vector: 0x25, ..RedirectionEntry::default() };
        let queue = QueueFacts {
            index: 0,
            size: 256,
            avail: 12,
            used: 12,
            used_event: Some(12),
            kicked: false,
            waits_for_input: false,
            message: Message::Line,
        };
        let idle = vcpu(MpState::Halted, rflags::IF, &[IDLE; 5]);
        Guest {
            quiet: Duration::from_secs(30),
            paused: false,
            vcpus: vec![idle.clone(), idle],
            ioapic: IoapicState { pins, ..IoapicState::default() },
            devices: vec![DeviceFacts {
                name: "vda".into(),
                driver: "virtio_blk",
                bus: "virtio_mmio",
                gsi: Some(5),
                status: Some(15),
                interrupt_status: 0,
                queues: vec![queue],
            }],
            busy: Vec::new(),
            console: vec!["/ # ".into()],
            command_line: "console=ttyS0 root=/dev/vda".into(),
        }
    }

    fn queue(&mut self) -> &mut QueueFacts {
        &mut self.devices[0].queues[0]
    }

    fn report(&self) -> HangReport {
        let line = |gsi, name: &str| LineFacts { gsi, name: name.into() };
        let lines = [line(0, "PIT"), line(4, "COM1"), line(5, "vda")];
        let facts = HangFacts {
            quiet: self.quiet,
            paused: self.paused,
            vcpus: &self.vcpus,
            ioapic: Some(&self.ioapic),
            lines: &lines,
            devices: &self.devices,
            busy: &self.busy,
            console: &self.console,
            command_line: &self.command_line,
            symbols: None,
        };
        facts.report()
    }

    #[track_caller]
    fn means(&self, what: &str, remedy: &str) {
        let report = self.report();
        let first = &report.causes[0];
        assert!(first.what.contains(what) && first.remedy.contains(remedy), "{report}");
    }
}

#[test]
fn the_timer_is_looked_for_at_the_pin_where_it_arrives() {
    let mut guest = Guest::at_rest();
    guest.ioapic.pins[2] = RedirectionEntry { vector: 0x30, ..RedirectionEntry::default() };
    let text = guest.report().to_string();
    assert!(text.contains("GSI 0  PIT        0x30 Fixed edge -> physical 0x0\n"), "{text}");
}

#[test]
fn a_guest_at_rest_is_told_as_one() {
    let report = Guest::at_rest().report();
    let text = report.to_string();
    assert_eq!(report.causes.len(), 1);
    assert!(
        text.contains("No sign of a fault") && text.contains("queue 0, size 256: offered 12, returned 12\n"),
        "{text}"
    );
    assert!(text.contains("vCPU 1: halted, interrupts on; RIP 0xffffffff81e5f0eb; long mode"), "{text}");
    assert!(text.contains("GSI 5  vda        0x25 Fixed edge -> physical 0x0\n"), "{text}");
    assert!(text.contains("masked, as after a reset (no handler): GSI 0 PIT, 4 COM1\n"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
}

#[test]
fn who_holds_the_machine_comes_first() {
    let mut guest = Guest::at_rest();
    guest.busy = vec![("vda-q0".into(), Duration::from_secs(12))];
    guest.queue().avail += 1;
    guest.means("Thread vda-q0 has had a request in the host for 12 s", "NFS");
    guest.paused = true;
    guest.means("is paused", "resume");
    guest.paused = false;
    guest.busy[0].1 = Duration::from_millis(20);
    assert!(guest.report().causes[0].what.contains("No sign"), "a request that was just begun is none");
    guest.busy.clear();
    guest.vcpus[1].seen = None;
    guest.queue().avail -= 1;
    guest.means("vCPU 1 does not come back", "reset");
}

#[test]
fn an_interrupt_that_does_not_arrive_is_followed_to_where_it_is() {
    let mut guest = Guest::at_rest();
    guest.queue().used_event = Some(11);
    guest.ioapic.pins[5].masked = true;
    guest.means(
        "1 buffer of queue 0 that its driver has not looked at: its interrupt, GSI 5, is masked at the IOAPIC",
        "noapic",
    );
    guest.ioapic.pins[5].masked = false;
    set(&mut guest.vcpus[1], LapicState::ISR, 0x25);
    guest.means("has begun on vCPU 1 and not ended", "handler");
    set(&mut guest.vcpus[0], LapicState::IRR, 0x25);
    guest.means("vector 0x25, waits at vCPU 0", "interrupts off");
    assert!(guest.report().vcpus[0].contains("pending 0x25"));
    guest.vcpus = Guest::at_rest().vcpus;
    guest.devices[0].interrupt_status = 1;
    guest.means("has not acknowledged it (InterruptStatus 0x1)", "InterruptACK");
    guest.devices[0].interrupt_status = 0;
    guest.means("No sign of a fault", "shell");
}

#[test]
fn a_message_that_does_not_arrive_is_followed_too() {
    let mut guest = Guest::at_rest();
    guest.devices[0].gsi = None;
    let message = |is_kept| Message::Msix { entry: 1, vector: 0x25, destination: 1, is_kept, is_pending: is_kept };
    (guest.queue().used_event, guest.queue().message) = (Some(11), message(true));
    guest.means("its interrupt, entry 1 of MSI-X, is masked, or MSI-X is off", "/proc/interrupts");
    assert_eq!(guest.report().devices[2], "    MSI-X 1: vector 0x25 -> APIC 0x1, masked, pending");
    guest.queue().message = message(false);
    guest.means("No sign of a fault", "shell");
    set(&mut guest.vcpus[1], LapicState::ISR, 0x25);
    guest.means("vector 0x25, has begun on vCPU 1 and not ended", "handler");
    // Linux asks for no interrupt of a card's control queue, and polls.
    guest.queue().message = Message::None;
    guest.means("No sign of a fault", "shell");
    assert!(!guest.report().devices[1].contains("not looked at"));
}

#[test]
fn a_request_without_a_kick_is_found_and_one_that_waits_for_input_is_none() {
    let mut guest = Guest::at_rest();
    guest.queue().avail += 3;
    guest.means("3 buffer(s) in queue 0 that its driver offered", "QueueNotify");
    guest.queue().kicked = true;
    guest.means("No sign", "");
    (guest.queue().kicked, guest.queue().waits_for_input) = (false, true);
    guest.means("No sign", "");
    assert!(guest.report().to_string().contains("3 wait for input"));
}

#[test]
fn a_driver_that_is_missing_or_gave_up_is_named() {
    let mut guest = Guest::at_rest();
    guest.devices[0].status = Some(0x8f);
    guest.means("given the device up (FAILED)", "virtio_blk");
    guest.devices[0].status = Some(0x4f);
    guest.means("DEVICE_NEEDS_RESET", "AxVM has said");
    guest.console = vec!["[ 1.0] Waiting for root device /dev/vda...".into()];
    guest.devices[0].status = Some(0);
    guest.means("has not found vda: it lacks virtio_mmio or virtio_blk", "virtio_mmio.ko");
    guest.devices[0].status = Some(1);
    guest.means("has found vda, and has no driver for it", "virtio_blk.ko");
    guest.devices[0].status = Some(15);
    guest.means("vda has a driver: root= names another device", "/dev/vda1");
    guest.devices.clear();
    guest.means("the machine has no disk", "--disk");
    guest.console = vec!["Kernel panic - not syncing: x".into()];
    guest.means("has panicked", "panic=1");
}

#[test]
fn what_the_vcpus_do_is_told() {
    let mut guest = Guest::at_rest();
    guest.vcpus = vec![vcpu(MpState::Halted, 0, &[IDLE]), vcpu(MpState::Uninitialized, 0, &[0xfff0])];
    guest.means("Every vCPU is halted with interrupts off", "panic");
    guest.vcpus =
        vec![vcpu(MpState::Runnable, 0, &[0x1000, 0x1004, 0x10fe]), vcpu(MpState::Halted, rflags::IF, &[IDLE])];
    guest.means("vCPU 0 spins at 0x1000 with interrupts off", "nmi");
    guest.vcpus[0] = vcpu(MpState::Runnable, rflags::IF, &[0x1000, 0x1004]);
    guest.means("a loop that waits for memory", "--symbols");
    guest.vcpus[0] = vcpu(MpState::Runnable, rflags::IF, &[0x1000, 0x1100]);
    guest.means("No sign", "");
    assert!(guest.report().vcpus[0].starts_with("vCPU 0: runs; RIP 0x1000"));
    let mut polling = vcpu(MpState::Runnable, rflags::IF, &[0x1000, 0x1004]);
    polling.seen.as_mut().unwrap().looks[1].exits = 1000;
    guest.vcpus[0] = polling;
    guest.means("asks a device again and again", "--trace");
    let mut early = vcpu(MpState::Runnable, 0, &[0x10_0000, 0x10_0004]);
    early.seen.as_mut().unwrap().snapshot.cpu.system.efer = 0;
    guest.vcpus[0] = early;
    guest.means("it has not come to 64 bits", "--memory");
}

#[test]
fn vcpus_that_were_never_started_have_a_reason() {
    let mut guest = Guest::at_rest();
    guest.vcpus[1] = vcpu(MpState::Uninitialized, 0, &[0xfff0]);
    guest.means("1 vCPU was never started", "NR_CPUS");
    assert!(guest.report().vcpus[1].starts_with("vCPU 1: waits for INIT and SIPI: it was never started; 7 exits"));
    guest.command_line.push_str(" maxcpus=1");
    guest.means("the command line says maxcpus=1", "--cpus");
}

#[test]
fn a_guest_that_says_nothing_is_told_how_to_speak() {
    let mut guest = Guest::at_rest();
    guest.console.clear();
    guest.means("said nothing", "console=ttyS0");
}

proptest! {
    /// Rings and console are the guest's: whatever is in them, the report is one, and fits.
    #[test]
    fn whatever_a_guest_says_is_a_report(avail: u16, used: u16, event: Option<u16>, size: u16, status: u32, line in ".{0,300}") {
        let mut guest = Guest::at_rest();
        *guest.queue() = QueueFacts { avail, used, used_event: event, size, ..*guest.queue() };
        guest.devices[0].status = Some(status);
        guest.console = vec![line];
        let text = guest.report().to_string();
        prop_assert!(text.lines().all(|line| line.chars().count() <= 80 && !line.chars().any(char::is_control)), "{}", text);
    }
}

#[test]
fn last_exits_are_told_where_they_were_recorded() {
    let mut recorded = vcpu(MpState::Runnable, 0x202, &[0x1000]);
    recorded.last_exits = vec!["COM1 LSR read 0x60".into(), "COM1 THR write 0xa".into()];
    let lines = last_exit_lines(&[vcpu(MpState::Runnable, 0x202, &[0x1000]), recorded]);
    assert_eq!(lines, ["vCPU 1: COM1 LSR read 0x60; COM1 THR write 0xa"]);
}
