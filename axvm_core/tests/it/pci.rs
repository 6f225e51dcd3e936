//! Machines with their devices on PCI, with the sandbox on, as users have it.
//!
//! Needs /dev/kvm; without it each test says that it was skipped.

use std::fs::{self, File};

use crate::common::{Place, has_kvm};
use crate::images::bzimage;

fn disk(place: &Place, name: &str, len: u64) {
    File::create(place.path(name)).unwrap().set_len(len).unwrap();
}

/// Everything that the guest proves, found in the tables or without them; each by its own interrupt.
#[test]
fn every_device_on_pci_proves_itself_with_acpi_and_without() {
    if !has_kvm() {
        return;
    }
    for (words, code, found) in [
        ("--cpus 2", 0, "AXVM pci ok"),
        ("--cpus 2 --acpi off --on-reboot exit", 3, "ports and ports agree on 4 functions"),
    ] {
        let place = Place::new();
        disk(&place, "disk.img", 1 << 20);
        let run = format!("run -k guest.elf -d disk.img -m 64M --virtio-console none --bus pci {words}");
        let (ended, said, errors) = place.run(&run);
        assert_eq!(ended, code, "{said}\n{errors}");
        assert!(said.contains("AXVM end ok") && said.contains(found), "{said}\n{errors}");
        for name in ["virtio-block", "virtio-rng", "virtio-balloon", "virtio-console", "msi-x"] {
            assert!(said.contains(&format!("AXVM {name} ok")), "{name}: {said}");
        }
        assert!(!errors.contains("axvm: PCI") && !errors.contains("axvm: --bus"), "{errors}");
    }
}

#[test]
fn sixty_four_disks_go_to_pci_by_themselves() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let names: Vec<_> = (0..64).map(|n| format!("{n}.img")).collect();
    names.iter().for_each(|name| disk(&place, name, 1 << 16));
    let disks: String = names.iter().map(|name| format!(" -d {name}")).collect();
    let (code, said, errors) = place.run(&format!("run -k guest.elf -m 64M --cpus 1{disks}"));
    assert_eq!(code, 0, "{said}\n{errors}");
    let told =
        "axvm: --bus: 66 devices are more than there are interrupt lines, so they are on PCI; --bus pci says the same";
    assert!(errors.lines().any(|line| line == told), "{errors}");
    assert_eq!(said.matches("AXVM virtio-block ok").count(), 64, "{said}");
    assert!(said.contains("agree on 66 functions") && said.contains("AXVM end ok"), "{said}");
}

#[test]
fn a_kernel_whose_configuration_rules_mmio_out_gets_pci() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let mut image = bzimage();
    image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
    image[0x300..0x30c].copy_from_slice(b"9.9.9 (test)");
    fs::write(place.path("vmlinuz-9.9.9"), image).unwrap();
    let told = "axvm: --bus: config-9.9.9 says that the kernel has no virtio-mmio, so devices are on PCI; \
                --bus pci says the same";
    for (mmio, words, is_told) in [
        ("# CONFIG_VIRTIO_MMIO is not set", "", true),
        ("# CONFIG_VIRTIO_MMIO is not set", "--bus mmio", false),
        ("CONFIG_VIRTIO_MMIO=m", "", false),
    ] {
        fs::write(place.path("config-9.9.9"), format!("CONFIG_PCI_MSI=y\nCONFIG_VIRTIO_PCI=y\n{mmio}\n")).unwrap();
        // It halts, and that is all.
        let (code, _, errors) = place.run(&format!("run -k vmlinuz-9.9.9 -m 64M -c 1 --timeout 1 {words}"));
        assert_eq!(code, 124, "{errors}");
        assert_eq!(errors.contains(told), is_told, "{errors}");
    }
}

/// Drivers that lie on this bus, too, and to it.
#[test]
fn a_hostile_guest_on_pci_hurts_only_itself() {
    if !has_kvm() {
        return;
    }
    for (seed, cpus) in [(1, 1), (2, 3), (3, 2)] {
        let place = Place::new();
        disk(&place, "disk.img", 1 << 20);
        let words = format!("run -k guest.elf -d disk.img -m 64M --bus pci -c {cpus} -p hostile={seed} --grace 0");
        let (code, said, errors) = place.run(&words);
        assert_eq!(code, 0, "{said}\n{errors}");
        assert!(said.contains("AXVM pci-noise ok") && said.contains("AXVM end ok"), "{said}");
        assert!(errors.lines().count() < 40, "the guest floods the log:\n{errors}");
    }
}
