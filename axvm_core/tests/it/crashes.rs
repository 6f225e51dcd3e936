//! A guest that crashes is explained: each way of it ends with a report whose likeliest cause is the one.
//!
//! Needs /dev/kvm; without it each test says that it was skipped. The sandbox is on, as for users.

use crate::common::{Place, has_kvm, skip};

/// Runs the guest that crashes in way `number`: what it was explained with.
fn report(place: &Place, number: u32) -> String {
    let words = format!("run --kernel guest.elf --memory 32M --cpus 1 --timeout 60s --append crash={number}");
    let (code, _, told) = place.run(&words);
    assert_eq!(code, 5, "{number}: {told}");
    assert!(told.contains("The guest crashed: "), "{number}: {told}");
    let (_, report) = told.split_once("\n\n").unwrap_or_else(|| panic!("{number}: no report: {told}"));
    report.lines().for_each(|line| assert!(line.len() <= 80, "{number}: {line}"));
    report.to_owned()
}

/// The first cause, as one line.
fn likeliest(report: &str) -> String {
    let (_, causes) = report.split_once("Likely cause, and what to try\n  1. ").unwrap();
    let (first, _) = causes.split_once("\n     > ").unwrap();
    first.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn a_triple_fault_is_explained() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    for (number, cause, more) in [
        (1, "#UD (6, invalid opcode) has no handler: the IDT ends before it", "\n  ud2\n  0f 0b\n"),
        (2, "at 0x1000000000 has no page: the PDPTE is not present", "Page walk of CR2, 0x1000000000"),
        (3, "the PDE has reserved bits set: 0x2000", "#PF (14, page fault) has no handler"),
        (5, "sets EFER = 0x0, which the processor refuses", "[efer-lma-lme]"),
        (7, "The page of RIP 0x100000000 forbids execution (XD)", "no execution"),
    ] {
        let report = report(&place, number);
        if report.contains("The registers are those of a reset") {
            return skip("this processor resets its registers at a triple fault");
        }
        assert!(report.starts_with("vCPU 0 cannot go on: triple fault\n"), "{report}");
        assert!(likeliest(&report).contains(cause), "{number}: {report}");
        assert!(report.contains(more), "{number}: {report}");
        assert!(report.contains("  | AXVM begin crash 1"), "the console's last lines: {report}");
    }
}

#[test]
fn what_kvm_cannot_emulate_is_explained() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let told = report(&place, 4);
    let cause = "An instruction that KVM does not emulate, on an address without RAM: `pcmpeqb xmm0, [";
    assert!(likeliest(&told).starts_with(cause), "{told}");
    let told = report(&place, 6);
    let cause = "The guest jumped to where no RAM is: RIP 0xcc000000, physical 0xcc000000";
    assert_eq!(likeliest(&told), cause, "{told}");
}
