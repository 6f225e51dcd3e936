//! The guest's own constants against those of the machine: it finds its devices where the machine puts them.

use std::fs;

use axvm_arch::layout::{self, gsi, port};

fn guest(file: &str) -> String {
    let path = format!("{}/guest/{file}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}")).replace('_', "")
}

#[test]
fn guest_looks_for_virtio_where_the_machine_puts_it() {
    let source = guest("virtio.rs");
    assert!(source.contains(&format!("WINDOWS: u64 = {:#x};", layout::VIRTIO_MMIO.0)));
    assert!(source.contains(&format!("STRIDE: u64 = {:#x};", layout::VIRTIO_MMIO_STRIDE)));
    assert!(source.contains(&format!("GSIS: [u8; {}] = {:?};", gsi::VIRTIO.len(), gsi::VIRTIO)));
}

#[test]
fn guest_knows_the_ports_and_the_apics() {
    assert!(guest("report.rs").contains(&format!("COM1: u16 = {:#x};", port::COM1)));
    assert!(guest("runtime.rs").contains(&format!("PVPANIC: u16 = {:#x};", port::PVPANIC)));
    assert!(guest("apic.rs").contains(&format!("LOCAL: u64 = {:#x};", layout::LAPIC.0)));
    assert!(guest("apic.rs").contains(&format!("IO: u64 = {:#x};", layout::IOAPIC.0)));
}

#[test]
fn guest_is_a_small_elf_for_x86_64() {
    let image = axvm_guest::selftest();
    assert_eq!((&image[..4], image[18]), (&b"\x7fELF"[..], 62));
    assert!(image.len() < 128 << 10, "{} bytes", image.len());
}
