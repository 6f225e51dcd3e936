//! `--virtio-check` in the program, with its sandbox on: our own drivers, honest and lying.
//!
//! ```text
//!   guest.elf --registers, rings--> axvm run --virtio-check log|stop --> stderr, exit code
//! ```

use crate::guests::run;

/// What AxVM said of rules, and how it ended.
fn checked(arguments: &[&str]) -> Option<(String, Option<i32>)> {
    let output = run("", arguments)?;
    Some((String::from_utf8_lossy(&output.stderr).into_owned(), output.status.code()))
}

#[test]
fn nothing_is_found_of_our_own_drivers_on_either_bus() {
    for bus in ["mmio", "pci"] {
        let arguments = ["--cpus", "2", "--bus", bus, "--virtio-check", "stop"];
        let Some((errors, code)) = checked(&arguments) else { return };
        assert_eq!(code, Some(0), "{errors}");
        assert!(errors.contains("virtio check: no rule was broken"), "{errors}");
    }
}

#[test]
fn a_lying_driver_is_told_of_once_for_each_rule_and_counted() {
    for bus in ["mmio", "pci"] {
        let Some((errors, code)) = checked(&["--bus", bus, "--append", "hostile=3", "--virtio-check", "log"]) else {
            return;
        };
        assert_eq!(code, Some(0), "{errors}");
        let totals = errors.lines().find_map(|line| line.split_once("virtio check: rules broken: ")).expect(&errors).1;
        assert!(totals.contains("features-unread "), "{totals}");
        // What a vCPU sees, and what a worker sees in its own thread, under its own filter.
        for rule in ["features-unread", "avail-index"] {
            assert_eq!(errors.matches(&format!(" {rule}: ")).count(), 1, "{rule} in\n{errors}");
        }
    }
}

#[test]
fn a_driver_whose_mistakes_are_forgiven_works_and_is_told_of_them() {
    let early = "features-unread 1, kick-early 1";
    for (bus, broken) in [("mmio", format!("2 ({early})")), ("pci", format!("3 ({early}, pci-reset-unread 1)"))] {
        let Some(output) = run("", &["--bus", bus, "--append", axvm_guest::SLOPPY, "--virtio-check", "log"]) else {
            return;
        };
        assert!(String::from_utf8_lossy(&output.stdout).contains("AXVM sloppy ok"), "{output:?}");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.contains(&format!("rules broken: {broken}\n")), "{errors}");
    }
}

#[test]
fn the_first_rule_that_is_broken_ends_the_machine_if_the_user_wants_that() {
    let Some((errors, code)) = checked(&["--append", "hostile=3", "--virtio-check", "stop"]) else { return };
    assert_eq!(code, Some(7), "{errors}");
    assert!(errors.contains("A driver of the guest broke a rule of virtio (--virtio-check stop): vd"), "{errors}");
}

#[test]
fn without_the_check_nothing_is_said_of_rules() {
    let Some((errors, code)) = checked(&["--append", "hostile=3"]) else { return };
    assert_eq!(code, Some(0), "{errors}");
    assert!(!errors.contains("virtio check:"), "{errors}");
}
