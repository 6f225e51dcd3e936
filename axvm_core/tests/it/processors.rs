//! Which processors a guest finds, and how.
//!
//! Needs /dev/kvm; without it the test says that it was skipped. The sandbox is on, as for users.

use crate::common::{Place, has_kvm};

#[test]
fn a_guest_without_acpi_finds_and_starts_every_processor() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let words = "run --kernel guest.elf --memory 64M --cpus 4,sockets=2 --no-acpi --on-reboot exit -v";
    // Without tables the guest resets at its end.
    let (code, said, errors) = place.run(words);
    assert_eq!(code, 3, "{errors}");
    for proof in ["AXVM acpi skip", "AXVM mp-table ok", "AXVM smp ok"] {
        assert!(said.contains(proof), "no {proof:?} in {said}");
    }
    assert!(said.contains("3 of 3 others up") && said.contains(" 4 processors 1 IOAPIC, PIT on pin 2"), "{said}");
    assert!(errors.contains("4 created, APIC ids up to 3; the kernel finds 0 by ACPI, 4 by the MP table"), "{errors}");
}
