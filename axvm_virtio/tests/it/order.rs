//! An interrupt comes last: what it is about is there already when the driver gets it.
//!
//! ```text
//!   worker: data, status byte, used.idx, InterruptStatus --write(eventfd)--> stands still here: the counter is full
//!   test:   looks at all of them meanwhile, then takes the counter
//! ```
//!
//! Two threads that race would show another order now and then; a worker that stands still at its interrupt shows it
//! each time.
//!
//! Spec: virtio 1.2, 2.7.8.2 "Device Requirements: The Virtqueue Used Ring", 4.2.2 "MMIO Device Register Layout".
//! Source: eventfd(2).

use crate::common;

use std::os::fd::AsFd;

use axvm_virtio::balloon::{Balloon, BalloonConfig};
use axvm_virtio::device::feature;
use axvm_virtio::testing::{Buffer, FakeDriver};
use common::*;
use rustix::fs::{OFlags, fcntl_setfl};

const USED_BUFFER: u32 = 1;
const CONFIG_CHANGE: u32 = 2;

/// Lets the next interrupt of `machine` wait until its eventfd is read.
fn hold_interrupts(machine: &Machine) {
    let line = machine.irq.event_fd().as_fd();
    machine.irq.event_fd().take();
    rustix::io::write(line, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    fcntl_setfl(line, OFlags::empty()).unwrap();
}

#[test]
fn an_interrupt_comes_after_data_status_index_and_its_register() {
    let file = Disk::file();
    let mut disk = Disk::new(file.path());
    hold_interrupts(&disk.machine);
    disk.write_header(IN, 0);
    disk.machine.ram.write(DATA, &[0; 512]).unwrap();
    disk.driver.add(&[Buffer::readable(HEADER, 16), Buffer::writable(DATA, 512), Buffer::writable(STATUS, 1)]);
    disk.kick();
    assert!(disk.finish().is_some(), "used.idx comes after the interrupt");
    assert_eq!(disk.machine.bytes(STATUS, 1), [OK]);
    assert_eq!(disk.machine.bytes(DATA, 512), [0x5a; 512]);
    let register = || disk.machine.get(reg::INTERRUPT_STATUS) == USED_BUFFER;
    assert!(wait_until(register), "InterruptStatus comes after the interrupt");
    // The counter is what was put in: the interrupt is still to come.
    assert_eq!(disk.machine.irq.event_fd().take_count(), u64::MAX - 1);
    assert!(disk.machine.interrupted());
}

#[test]
fn a_configuration_interrupt_comes_after_generation_and_register() {
    let balloon = Balloon::new(BalloonConfig { deflate_on_oom: true, free_page_reporting: false });
    let target = balloon.target();
    let machine = Machine::new(Box::new(balloon));
    let driver = FakeDriver::new(&machine.ram, RING, 64, false);
    machine.bring_up(feature::VERSION_1, &driver.layout());
    let generation = machine.get(reg::CONFIG_GENERATION);
    hold_interrupts(&machine);
    std::thread::scope(|scope| {
        scope.spawn(|| target.set_mib(1).unwrap());
        let told = wait_until(|| machine.get(reg::INTERRUPT_STATUS) == CONFIG_CHANGE);
        let seen = (machine.get(reg::CONFIG_GENERATION) != generation, machine.get(reg::CONFIG));
        assert_eq!(machine.irq.event_fd().take_count(), u64::MAX - 1);
        assert!(told, "InterruptStatus comes after the interrupt");
        assert_eq!(seen, (true, 256));
        assert!(machine.interrupted());
    });
}
