//! A machine in the middle of its work is carried into a new VM, again and again, and its guest notices nothing.
//!
//! ```text
//!   run some milliseconds --> pause --> save --> JSON --> end the machine
//!   ^                                              |
//!   '------- resume <-- restore into a new VM <----'      the same RAM and disk, fresh ports
//! ```

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axvm_devices::StopReason;
use axvm_machine::{Card, Machine, MachineError, MismatchError, SaveError, SavedMachine, WaitOutcome};
use axvm_virtio::block::{DiskConfig, DiskImage};

use crate::guest::{Lab, assert_proved, fresh_ports, has_kvm, soon};

/// Carries a machine over; what its guest said until then. One whose guest has just ended stays and goes on to its end.
fn carry(lab: &mut Lab, machine: Machine) -> (Machine, String) {
    machine.pause(soon()).unwrap();
    let seen = match machine.save() {
        Err(SaveError::Ended) => {
            machine.resume(soon()).unwrap();
            return (machine, lab.said());
        }
        saved => saved.unwrap(),
    };
    let saved: SavedMachine = serde_json::from_str(&serde_json::to_string(&seen).unwrap()).unwrap();
    assert!(saved == seen, "text loses something");
    machine.stop(soon()).1.unwrap();
    drop(machine);
    lab.ports = fresh_ports();
    let machine = lab.resources.restore(&lab.spec, &lab.ports, &saved).unwrap();
    assert!(machine.is_paused());
    machine.resume(soon()).unwrap();
    let said = lab.said();
    (machine, said)
}

/// Runs the guest to its end, carried over after each of these times; all that it said, and how often it was carried.
fn run_carried(lab: &mut Lab, pauses: impl Iterator<Item = Duration>) -> (StopReason, String, u32) {
    let (mut machine, mut said, mut count) = (lab.build(), String::new(), 0);
    for pause in pauses {
        let until = Instant::now() + pause;
        let mut outcome = WaitOutcome::Readable;
        while outcome == WaitOutcome::Readable {
            let left = until.saturating_duration_since(Instant::now());
            outcome = machine.wait(&[lab.ports.com1.output_ready().as_fd()], Some(left)).unwrap();
            said += &lab.said();
        }
        if outcome == WaitOutcome::Stopped {
            break;
        }
        let (next, more) = carry(lab, machine);
        (machine, said, count) = (next, said + &more, count + 1);
    }
    if machine.wait(&[], Some(Duration::ZERO)).unwrap() != WaitOutcome::Stopped {
        panic!("the guest does not end, carried {count} times: {said}\n{}", where_it_stands(&machine));
    }
    let (reason, stopped) = machine.stop(soon());
    stopped.unwrap();
    (reason, said + &lab.said(), count)
}

/// Where vCPUs and devices stand, for a failure that is rare.
fn where_it_stands(machine: &Machine) -> String {
    machine.pause(soon()).unwrap();
    let saved = machine.save().unwrap();
    let vcpus = saved.vcpus.iter().map(|vcpu| format!("{:x?} {:?} {:x?}", vcpu.regs, vcpu.mp_state, vcpu.events));
    vcpus.chain(saved.parts.iter().map(|part| format!("{part:x?}"))).collect::<Vec<_>>().join("\n")
}

/// Times that meet every device in the middle of something: a few milliseconds each, none like the one before.
fn milliseconds(from: u64) -> impl Iterator<Item = Duration> {
    (0..400).map(move |n| Duration::from_micros(1000 * from + 1618 * n % 7000))
}

#[test]
fn a_guest_that_proves_every_device_is_carried_and_notices_nothing() {
    if !has_kvm() {
        return;
    }
    for cpus in [1, 3] {
        let mut lab = Lab::new(cpus, "loop");
        let (reason, said, count) = run_carried(&mut lab, milliseconds(4));
        assert_eq!(reason, StopReason::Off, "{said}");
        assert_proved(&said);
        assert!(count > 3, "carried only {count} times");
    }
}

#[test]
fn devices_on_pci_are_carried_with_their_messages_and_doorbells() {
    if !has_kvm() {
        return;
    }
    for cpus in [1, 2] {
        let mut lab = Lab::on_pci(cpus, "");
        let (reason, said, count) = run_carried(&mut lab, milliseconds(4));
        assert_eq!(reason, StopReason::Off, "{said}");
        assert_proved(&said);
        assert!(said.contains("AXVM msi-x ok"), "{said}");
        assert!(count > 3, "carried only {count} times");
    }
    let mut lab = Lab::on_pci(2, "hostile=3");
    let (reason, said, count) = run_carried(&mut lab, milliseconds(60));
    assert_eq!(reason, StopReason::Off, "{said}");
    assert_proved(&said);
    assert!(count > 3, "carried only {count} times");
}

#[test]
fn a_guest_that_lies_to_every_device_is_carried_and_is_answered_as_before() {
    if !has_kvm() {
        return;
    }
    let mut lab = Lab::new(2, "hostile=2 loop");
    let (reason, said, count) = run_carried(&mut lab, milliseconds(40));
    assert_eq!(reason, StopReason::Off, "{said}");
    assert_proved(&said);
    assert!(count > 3, "carried only {count} times");
}

#[test]
fn a_disk_under_load_is_carried_without_a_wrong_byte() {
    if !has_kvm() {
        return;
    }
    for mut lab in [Lab::new(1, "journal=60"), Lab::on_pci(1, "journal=60")] {
        let (reason, said, count) = run_carried(&mut lab, milliseconds(2));
        assert_eq!(reason, StopReason::Off, "{said}");
        assert!(said.contains("AXVM journal ok") && !said.contains("FAILED"), "{said}");
        assert!(count > 3, "carried only {count} times");
    }
}

#[test]
fn a_conversation_is_carried_without_a_lost_byte() {
    if !has_kvm() {
        return;
    }
    let mut lab = Lab::new(1, "shell");
    let mut machine = lab.build();
    let mut said = lab.wait_until_said(&machine, "> ");
    // Half of it is typed while the guest reads, in pieces that meet its FIFO half full.
    let typed: Vec<u8> = (0..3000_u32).map(|n| b'a' + (n * n % 26) as u8).collect();
    lab.ports.com1.put(b"raw 3000\r");
    said += &lab.wait_until_said(&machine, "\n");
    for piece in typed.chunks(300) {
        lab.ports.com1.put(piece);
        machine.wait(&[], Some(Duration::from_millis(1))).unwrap();
        let (next, more) = carry(&mut lab, machine);
        (machine, said) = (next, said + &more);
    }
    said += &lab.wait_until_said(&machine, "raw done");
    let sum = typed.iter().fold(0_u32, |sum, &byte| sum.rotate_left(5) ^ u32::from(byte));
    assert!(said.contains(&format!("= 3000 {sum} raw done")), "{sum} in {said}");
    machine.stop(soon()).1.unwrap();
}

#[test]
fn what_was_added_is_carried_in_its_slot() {
    if !has_kvm() {
        return;
    }
    let mut lab = Lab::on_pci(1, "shell");
    let mut machine = lab.build();
    lab.wait_until_said(&machine, "> ");
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let disk = DiskImage::open(&DiskConfig { serial: Some("ADDED".into()), ..DiskConfig::new(image.path()) }).unwrap();
    // The guest has not looked when it is carried; then the disk has a driver; then it is asked to let go.
    machine.plug("vdb", Card::Disk(Arc::clone(&disk), 1)).unwrap();
    machine = carry(&mut lab, machine).0;
    lab.ports.com1.put(b"came\r");
    let said = lab.wait_until_said(&machine, "came done");
    assert!(said.contains("id ADDED") && said.contains("proved"), "{said}");
    machine = carry(&mut lab, machine).0;
    lab.ports.com1.put(b"work 50\r");
    let said = lab.wait_until_said(&machine, "work done");
    assert!(said.contains("50 of 50"), "{said}");
    machine.unplug("vdb", false).unwrap();
    machine.pause(soon()).unwrap();
    let with_it = machine.save().unwrap();
    machine.resume(soon()).unwrap();
    machine = carry(&mut lab, machine).0;
    lab.ports.com1.put(b"went\r");
    assert!(lab.wait_until_said(&machine, "went done").contains("slots 0x"));
    while Arc::strong_count(&disk) > 1 {
        machine.wait(&[], Some(Duration::from_millis(1))).unwrap();
    }
    machine = carry(&mut lab, machine).0;
    machine.stop(soon()).1.unwrap();
    let refused = lab.resources.restore(&lab.spec, &fresh_ports(), &with_it).err().unwrap();
    let why =
        format!("{refused}: {}", std::error::Error::source(&refused).map(ToString::to_string).unwrap_or_default());
    assert!(why.contains("To the saved machine vdb was added, to this one nothing"), "{why}");
}

#[test]
fn a_machine_that_does_not_fit_is_refused() {
    if !has_kvm() {
        return;
    }
    let lab = Lab::new(1, "shell");
    let machine = lab.build();
    assert_eq!(machine.save().unwrap_err().to_string(), "Cannot save a machine that runs; pause it first");
    machine.pause(soon()).unwrap();
    let saved = machine.save().unwrap();
    machine.stop(soon()).1.unwrap();
    let refused = |spec, saved| match lab.resources.restore(spec, &fresh_ports(), saved) {
        Err(MachineError::Mismatch(error)) => error.to_string(),
        other => panic!("{:?}", other.err()),
    };
    let mut other = lab.spec.clone();
    other.topology = axvm_arch::cpuid::Topology::flat(2);
    assert_eq!(refused(&other, &saved), "The saved machine has 1 vCPUs, this one has 2; give it as many");
    let mut other = lab.spec.clone();
    other.virtio_console = false;
    let why = refused(&other, &saved);
    assert!(why.starts_with("The saved machine has the parts") && why.contains("hvc0"), "{why}");
    let mut other = lab.spec.clone();
    other.bus = axvm_boot::bus::Bus::Pci;
    let why = refused(&other, &saved);
    assert!(why.contains("this one has") && why.contains("PCI hotplug, vda"), "{why}");
    let mut damaged = saved.clone();
    let [first, second] = [0, 1].map(|n| damaged.parts[n].chip.clone());
    (damaged.parts[0].chip, damaged.parts[1].chip) = (second, first);
    let why = refused(&lab.spec, &damaged);
    assert_eq!(why, MismatchError::Kind(saved.parts[0].name.clone()).to_string());
}

#[test]
fn a_machine_with_an_ephemeral_disk_is_not_saved() {
    if !has_kvm() {
        return;
    }
    let lab = Lab::with_disk(1, "shell", |disk| disk.ephemeral = true);
    let machine = lab.build();
    machine.pause(soon()).unwrap();
    let why = machine.save().unwrap_err().to_string();
    assert!(why.contains("ephemeral disk (vda)") && why.contains("on a copy of the image"), "{why}");
    machine.stop(soon()).1.unwrap();
}
