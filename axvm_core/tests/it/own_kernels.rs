//! Kernels that are not Linux: how they are started, print, end with a code, and learn what is not there.
//!
//! ```text
//!   a few instructions in a hand-made image --> axvm, sandbox on --> /dev/kvm --> exit code, console, messages
//! ```

use crate::common::{Place, has_kvm};
use crate::images;

use std::fs;

/// What an x86 processor in 32-bit and in 64-bit code does alike.
#[derive(Default)]
struct Code(Vec<u8>);

impl Code {
    /// OUT of one byte.
    fn byte(mut self, port: u16, value: u8) -> Code {
        self.0.extend([0xba, port as u8, (port >> 8) as u8, 0, 0, 0xb0, value, 0xee]);
        self
    }

    /// OUT of 16 bits.
    fn word(mut self, port: u16, value: u16) -> Code {
        self.0.extend([0xba, port as u8, (port >> 8) as u8, 0, 0, 0xb8, value as u8, (value >> 8) as u8, 0, 0]);
        self.0.extend([0x66, 0xef]);
        self
    }

    /// OUT of 32 bits.
    fn long(mut self, port: u16, value: u32) -> Code {
        self.0.extend([0xba, port as u8, (port >> 8) as u8, 0, 0, 0xb8]);
        self.0.extend(value.to_le_bytes());
        self.0.push(0xef);
        self
    }

    /// IN of one byte, and OUT of it to another port.
    fn copy(mut self, from: u16, to: u16) -> Code {
        self.0.extend([0xba, from as u8, (from >> 8) as u8, 0, 0, 0xec, 0xba, to as u8, (to >> 8) as u8, 0, 0, 0xee]);
        self
    }

    fn say(self, port: u16, text: &str) -> Code {
        text.bytes().fold(self, |code, letter| code.byte(port, letter))
    }

    /// Resets by the i8042, then waits for ever.
    fn end(mut self) -> Vec<u8> {
        self.0.extend(b"\xb0\xfe\xe6\x64\xf4\xeb\xfd");
        self.0.resize(self.0.len().next_multiple_of(4), 0x90);
        self.0
    }
}

/// Runs code by PVH with these options: exit code, output, errors.
fn run(place: &Place, code: &[u8], options: &str) -> (i32, String, String) {
    fs::write(place.path("kernel"), images::upper_with(1, code)).unwrap();
    place.run(&format!("run -k kernel -m 32M --cpus 1 --on-reboot exit --timeout 60s {options}"))
}

#[test]
fn a_guest_ends_with_a_code_of_its_own() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    for (code, options, expected) in [
        (Code::default().byte(0xf4, 0x10).end(), "--debug-exit 0xf4", 33),
        (Code::default().long(0xf4, 0x11).end(), "--debug-exit 244", 35),
        (Code::default().word(0x501, 0x3f).end(), "--debug-exit 0x501", 127),
        // No such port: the machine goes on, to its reset.
        (Code::default().byte(0xf4, 0x10).end(), "", 3),
        (Code::default().byte(0xf4, 0x10).end(), "--debug-exit 0x501", 3),
    ] {
        let (code, _, errors) = run(&place, &code, options);
        assert_eq!(code, expected, "{options}: {errors}");
        assert!(!errors.contains("debug-exit port"), "{errors}");
    }
    for (value, expected) in [(0, 1), (1, 3), (0x40, 129), (0x110, 33)] {
        let (code, _, errors) = run(&place, &Code::default().long(0xf4, value).end(), "--debug-exit 0xf4");
        let words = format!("axvm: The guest wrote {value:#x} to its debug-exit port 0xf4; exit code {expected} ");
        assert!(code == expected && errors.contains(&words), "{code}: {errors}");
    }
}

#[test]
fn a_debug_exit_where_another_chip_is_does_not_start() {
    let place = Place::new();
    let (code, _, errors) = run(&place, &[], "--debug-exit 0x604");
    assert_eq!(code, 2, "{errors}");
    assert!(errors.contains("debug exit at ports 0x604-0x607: ACPI PM1a is at ports 0x600-0x605 already"), "{errors}");
}

#[test]
fn a_debug_console_goes_where_consoles_go() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let code = Code::default().say(0xe9, "debug\n").say(0x3f8, "serial\n").copy(0xe9, 0xf4).end();
    let log = || fs::read_to_string(place.path("debug.log")).unwrap();
    // 0xe9 was read: 0xe9 << 1 | 1, of which eight bits remain.
    let (code_of_file, said, errors) = run(&place, &code, "--debug-exit 0xf4 --debugcon file=debug.log");
    assert_eq!((code_of_file, said.as_str(), log().as_str()), (0xd3, "serial\n", "debug\n"), "{errors}");
    let (_, said, errors) = run(&place, &code, "--debug-exit 0xf4 --debugcon stdio");
    assert_eq!(said, "debug\n", "{errors}");
    let (_, said, errors) = run(&place, &code, "--debug-exit 0xf4 --debugcon stdio --console file=debug.log");
    assert_eq!((said.as_str(), log().as_str()), ("debug\n", "debug\nserial\n"), "{errors}");
    // Without it the port is not there.
    let (code, said, errors) = run(&place, &code, "--debug-exit 0xf4");
    assert_eq!((code, said.as_str()), (0xff, "serial\n"), "{errors}");
}

#[test]
fn a_write_that_no_chip_answers_is_told_once_with_its_value() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let code = Code::default().word(0xb004, 0x2000).byte(0xb004, 1).byte(0xf4, 7).copy(0x1234, 0x3f8).end();
    let (code, _, errors) = run(&place, &code, "-v");
    assert_eq!(code, 3, "{errors}");
    let lines: Vec<_> = errors.lines().filter_map(|line| line.strip_prefix("axvm: ")).collect();
    let line = |begin: &str| *lines.iter().find(|line| line.starts_with(begin)).unwrap_or_else(|| panic!("{errors}"));
    let words = line("write of 0x2000 (16 bits) to port 0xb004 by vCPU 0 at rip 0x2000");
    assert!(
        words.ends_with(
            "; elsewhere it is how Bochs and old QEMU are powered off; here outw(0x604, 0x2000) does, or --debug-exit"
        ),
        "{words}"
    );
    let words = line("write of 0x7 (8 bits) to port 0xf4 by vCPU 0 at rip 0x2000");
    assert!(words.ends_with("elsewhere it is debug exit; here with --debug-exit 0xf4"), "{words}");
    line("read (8 bits) from port 0x1234 by vCPU 0 at rip 0x2000");
    line("port 0xb004: 2 accesses in all, no device there");
    assert_eq!(lines.iter().filter(|line| line.contains("0xb004")).count(), 2, "{errors}");
}

#[test]
fn qemus_way_to_power_off_does_here() {
    if !has_kvm() {
        return;
    }
    let (code, _, errors) = run(&Place::new(), &Code::default().word(0x604, 0x2000).end(), "");
    assert_eq!(code, 0, "{errors}");
}
