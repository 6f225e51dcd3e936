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
fn usage_errors_about_debug_ports_name_what_is_there() {
    let place = Place::new();
    for (options, words) in [
        ("--debug-exit 0x604", "debug exit at ports 0x604-0x607: ACPI PM1a is at ports 0x600-0x605 already"),
        ("--debug-exit 0x3f8", "COM1 is at ports 0x3f8-0x3ff already; 0xf4 and 0x501 are usual"),
        ("--debug-exit exit", "--debug-exit exit: not a port; write a number up to 0xfffc, such as 0xf4 or 0x501"),
        ("--debug-exit 0xfffd", "--debug-exit 0xfffd: not a port"),
        ("--debugcon nowhere", "--debugcon nowhere: unknown; say stdio, file=PATH, pty, unix=PATH or none"),
        ("--debugcon file=a --console file=a", "--debugcon file=a: --console goes there too"),
    ] {
        let (code, _, errors) = run(&place, &[], options);
        assert!(code == 2 && errors.contains(words), "{options}: {code}, {errors}");
    }
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
    // What is made for it is gone at the end, though the sandbox is closed by then.
    for (place_of_it, left) in [("unix=debug.sock", false), ("pty", false), ("none", false), ("file=new.log", true)] {
        let (code, said, errors) = run(&place, &code, &format!("--debug-exit 0xf4 --debugcon {place_of_it}"));
        assert_eq!((code, said.as_str()), (0xd3, "serial\n"), "{place_of_it}: {errors}");
        let path = place_of_it.split_once('=').map(|(_, path)| place.path(path));
        assert_eq!(path.is_some_and(|path| path.exists()), left, "{place_of_it}");
    }
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
fn an_address_without_a_device_is_told_and_the_guest_goes_on() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let mut code = Code::default().say(0x3f8, "a");
    code.0.extend(b"\xb8\x78\x56\x34\x12\xa3\x10\0\xf0\xd0"); // mov $0x12345678, %eax; mov %eax, 0xd0f00010
    code.0.extend(b"\xa1\x20\0\xf0\xd0\xe7\xf4"); // mov 0xd0f00020, %eax; out %eax, $0xf4
    let (code, said, errors) = run(&place, &code.end(), "-v --debug-exit 0xf4");
    assert_eq!((code, said.as_str()), (0xff, "a"), "a read gives all ones: {errors}");
    let words = "write of 0x12345678 (32 bits) to mmio 0xd0f00010 by vCPU 0 at rip 0x2000";
    assert!(errors.contains(words) && !errors.contains("0xd0f00020"), "{errors}");
    assert!(errors.contains("mmio 0xd0f00000: 2 accesses in all"), "{errors}");
}

#[test]
fn qemus_way_to_power_off_does_here() {
    if !has_kvm() {
        return;
    }
    let (code, _, errors) = run(&Place::new(), &Code::default().word(0x604, 0x2000).end(), "");
    assert_eq!(code, 0, "{errors}");
}

/// Where the segment of the Multiboot kernel goes.
const MULTIBOOT_GPA: u32 = 2 << 20;

/// The bytes of the one segment of the Multiboot kernel.
fn multiboot_segment() -> Vec<u8> {
    let elf = axvm_guest::multiboot();
    let word = |at: usize| u64::from_le_bytes(elf[at..at + 8].try_into().unwrap()) as usize;
    elf[word(64 + 8)..][..word(64 + 32)].to_vec()
}

/// Where the header with this magic number begins.
fn header_at(image: &[u8], magic: u32) -> usize {
    image.chunks_exact(4).position(|word| word == magic.to_le_bytes()).unwrap() * 4
}

const ONE: u32 = 0x1bad_b002;
const TWO: u32 = 0xe852_50d6;

/// Leaves one header only.
fn without(mut image: Vec<u8>, magic: u32) -> Vec<u8> {
    let at = header_at(&image, magic);
    image[at] ^= 1;
    image
}

#[test]
fn both_versions_of_multiboot_hand_over_what_their_kernels_ask_for() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    fs::write(place.path("module"), "eight B.").unwrap();
    let elf = axvm_guest::multiboot().to_vec();
    // As a flat file: the flags say that the addresses count, and so does the checksum.
    let mut flat = without(multiboot_segment(), TWO);
    let at = header_at(&flat, ONE);
    let flags = 1 << 16 | 3_u32;
    flat[at + 4..at + 8].copy_from_slice(&flags.to_le_bytes());
    flat[at + 8..at + 12].copy_from_slice(&0_u32.wrapping_sub(ONE).wrapping_sub(flags).to_le_bytes());
    let elf_32 = |image| images::wrapped(MULTIBOOT_GPA, image);
    let start = u32::from_le_bytes(axvm_guest::multiboot()[24..28].try_into().unwrap());
    for (kernel, number) in [
        (elf.clone(), 2),
        (without(elf.clone(), ONE), 2),
        (without(elf, TWO), 1),
        (elf_32((multiboot_segment(), start)), 2),
        (elf_32((without(multiboot_segment(), TWO), start)), 1),
        (flat, 1),
    ] {
        fs::write(place.path("kernel"), kernel).unwrap();
        let words = "run -k kernel -m 32M --cpus 1 --debug-exit 0xf4 --timeout 60s -i module --append words";
        let (code, said, errors) = place.run(words);
        assert_eq!(code, 33, "{said}{errors}");
        let mut lines: Vec<_> = said.lines().collect();
        assert_eq!(lines.remove(0), format!("multiboot {number}"));
        lines.sort_unstable();
        let mut expected = vec!["RAM: 01f9fc00", "command line: words", "loader: AxVM", "module: initrd eight B."];
        expected.extend((number == 2).then_some("RSDP: RSD PTR "));
        expected.extend(["upper KiB: 00007c00"]);
        expected.sort_unstable();
        assert_eq!(lines, expected, "{errors}");
        assert!(!errors.contains("Linux will find nothing"), "{errors}");
    }
}

#[test]
fn a_kernel_with_another_way_in_keeps_it_and_may_be_asked_for_multiboot() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let run = |options: &str| place.run(&format!("run -k kernel -m 32M --cpus 1 --debug-exit 0xf4 -v {options}"));
    // The only way in, by default and by its name; and no other.
    fs::write(place.path("kernel"), axvm_guest::multiboot()).unwrap();
    for options in ["", "--entry multiboot"] {
        let (code, _, errors) = run(options);
        assert!(code == 33 && errors.contains("Multiboot 2 at 0x200000"), "{code}: {errors}");
    }
    let (code, _, errors) = run("--entry pvh");
    assert!(code == 1 && errors.contains("has no PVH entry point"), "{code}: {errors}");
    // The self-test has a PVH note and no header.
    let words = "run -k guest.elf -m 32M --cpus 1 --entry multiboot";
    let (code, _, errors) = place.run(words);
    assert!(code == 1 && errors.contains("an ELF file without one: use --entry pvh or --entry 64"), "{code}: {errors}");
}

#[test]
fn programs_that_need_a_bios_are_named() {
    let place = Place::new();
    let mut bios = images::bzimage();
    bios[0x214..0x218].fill(0);
    let mut rom = vec![0; 64 << 10];
    rom[0xfff0..0xfff5].copy_from_slice(&[0xea, 0x5b, 0xe0, 0, 0xf0]);
    for (kernel, words) in [(bios, "has only a real-mode entry"), (rom, "is a firmware image")] {
        fs::write(place.path("kernel"), kernel).unwrap();
        let (code, _, errors) = place.run("run -k kernel -m 32M --cpus 1");
        assert!(code == 1 && errors.contains(words) || errors.contains("/dev/kvm"), "{code}: {errors}");
    }
}
