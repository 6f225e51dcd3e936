//! An image that grows on the host: the guest is told of it when the user says so.

use crate::common;

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use axvm_devices::BusDevice;
use axvm_virtio::block::{Block, DiskConfig, DiskHandle, DiskImage};
use common::*;
use tempfile::NamedTempFile;

/// Interrupt status: the configuration changed.
const CONFIG_CHANGE: u32 = 2;
const GROWN: u64 = Disk::SIZE + (1 << 20);

fn capacity(machine: &Machine) -> u64 {
    let mut data = [0; 8];
    machine.transport.read(reg::CONFIG, &mut data);
    u64::from_le_bytes(data)
}

fn make() -> (Machine, DiskHandle, Arc<DiskImage>, NamedTempFile) {
    let file = Disk::file();
    let image = DiskImage::open(&DiskConfig::new(file.path())).unwrap();
    let block = Block::new(image.clone());
    let handle = block.handle();
    (Machine::new(Box::new(block)), handle, image, file)
}

#[test]
fn a_disk_that_grew_is_told_and_can_be_used_to_its_new_end() {
    let (machine, handle, image, file) = make();
    let mut disk = Disk::on(machine, image, !0);
    file.as_file().set_len(GROWN).unwrap();
    assert_eq!(disk.write(Disk::SECTORS, &[7; 512]), IOERR, "the guest was told of no such sector");
    let generation = disk.machine.get(reg::CONFIG_GENERATION);
    assert!(disk.machine.interrupted());
    disk.machine.set(reg::INTERRUPT_ACK, !0);

    handle.resize().unwrap();
    assert!(disk.machine.interrupted());
    assert_eq!(disk.machine.get(reg::INTERRUPT_STATUS), CONFIG_CHANGE);
    assert_ne!(disk.machine.get(reg::CONFIG_GENERATION), generation);
    assert_eq!((capacity(&disk.machine), handle.size()), (GROWN / 512, GROWN));
    assert_eq!(disk.write(GROWN / 512 - 1, &[7; 512]), OK);
    assert_eq!(disk.read(GROWN / 512 - 1, 512), (OK, vec![7; 512]));
    assert_eq!(disk.write(GROWN / 512, &[7; 512]), IOERR);
}

#[test]
fn a_disk_that_did_not_grow_is_not_told() {
    let (machine, handle, image, _file) = make();
    let disk = Disk::on(machine, image, !0);
    let generation = disk.machine.get(reg::CONFIG_GENERATION);
    handle.resize().unwrap();
    assert_eq!(disk.machine.get(reg::CONFIG_GENERATION), generation);
    assert_eq!(disk.machine.get(reg::INTERRUPT_STATUS), 0);
}

#[test]
fn a_disk_that_shrank_or_ends_in_the_middle_of_a_block_is_refused_in_words() {
    let (machine, handle, image, file) = make();
    let disk = Disk::on(machine, image, !0);
    for (len, words) in
        [(Disk::SIZE - 512, "A disk only grows"), (GROWN + 1, "not a positive multiple of 512"), (0, "only grows")]
    {
        file.as_file().set_len(len).unwrap();
        let error = handle.resize().unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("truncate -s"), "{error}");
        assert_eq!((capacity(&disk.machine), handle.size()), (Disk::SECTORS, Disk::SIZE));
        assert_eq!(disk.machine.get(reg::INTERRUPT_STATUS), 0);
    }
}

#[test]
fn a_driver_that_was_not_there_is_told_when_it_is() {
    let (machine, handle, image, file) = make();
    let disk = Disk::on(machine, image, !0);
    disk.machine.pause();
    file.as_file().set_len(GROWN).unwrap();
    handle.resize().unwrap();
    assert_eq!(disk.machine.get(reg::INTERRUPT_STATUS), 0, "a paused guest cannot take it");
    // A copy of it is told as well.
    let copy = disk.machine.carry(Box::new(Block::new(disk.image.clone())));
    for machine in [&disk.machine, &copy] {
        machine.resume();
        assert!(machine.interrupted());
        assert_eq!(machine.get(reg::INTERRUPT_STATUS) & CONFIG_CHANGE, CONFIG_CHANGE);
        assert_eq!(capacity(machine), GROWN / 512);
        machine.pause();
    }
}

/// A loop device, gone with the test.
struct Loop(PathBuf);

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

#[test]
fn a_block_device_that_grew_is_told_too() {
    let file = Disk::file();
    let made = Command::new("losetup").args(["--find", "--show"]).arg(file.path()).output();
    let Some(made) = made.ok().filter(|made| made.status.success()) else {
        println!("skipped: a loop device needs root and the driver");
        return;
    };
    let device = Loop(String::from_utf8(made.stdout).unwrap().trim().into());
    let image = DiskImage::open(&DiskConfig::new(&device.0)).unwrap();
    let block = Block::new(image.clone());
    let handle = block.handle();
    let mut disk = Disk::on(Machine::new(Box::new(block)), image, !0);
    file.as_file().set_len(GROWN).unwrap();
    assert!(Command::new("losetup").arg("-c").arg(&device.0).status().unwrap().success());
    handle.resize().unwrap();
    assert_eq!(capacity(&disk.machine), GROWN / 512);
    assert_eq!(disk.write(GROWN / 512 - 1, &[7; 512]), OK);
}
