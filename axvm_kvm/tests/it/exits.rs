//! What a guest does arrives as the right exit, and answers arrive in the guest.

use crate::common::{Bench, guest, kvm_or_skip};
use axvm_kvm::Exit;

guest!(counts_on_a_port, ".code32", "mov ecx, 5", "2: mov eax, ecx", "out 0x80, al", "loop 2b", "hlt");

#[test]
fn every_port_write_arrives_in_order() {
    let mut bench = Bench::new(&kvm_or_skip!(), counts_on_a_port());
    let seen: Vec<u8> = (0..5).map(|_| bench.run_to_report()).collect();
    assert_eq!(seen, [5, 4, 3, 2, 1]);
}

guest!(
    sends_back_what_it_reads,
    ".code32",
    "mov edx, 0x3fd",
    "xor eax, eax",
    "in al, dx",
    "out dx, al",
    "in ax, dx",
    "out dx, ax",
    "in eax, dx",
    "out dx, eax",
    "hlt",
);

#[test]
fn a_port_read_is_answered_at_every_width() {
    let mut bench = Bench::new(&kvm_or_skip!(), sends_back_what_it_reads());
    let (mut asked, mut seen) = (Vec::new(), Vec::new());
    bench.run_until(|exit| {
        match exit {
            Exit::IoIn { port: 0x3fd, size, data } => {
                asked.push((*size, data.len()));
                data.copy_from_slice(&[0x11, 0x22, 0x33, 0x44][..*size]);
            }
            Exit::IoOut { port: 0x3fd, data, .. } => seen.push(data.to_vec()),
            exit => panic!("{exit:x?}"),
        }
        seen.len() == 3
    });
    assert_eq!(asked, [(1, 1), (2, 2), (4, 4)]);
    assert_eq!(seen, [&[0x11][..], &[0x11, 0x22], &[0x11, 0x22, 0x33, 0x44]]);
}

guest!(
    copies_from_mmio_to_mmio,
    ".code32",
    "mov al, [0xd0000001]",
    "mov [0xd0000101], al",
    "mov ax, [0xd0000002]",
    "mov [0xd0000102], ax",
    "mov eax, [0xd0000004]",
    "mov [0xd0000104], eax",
    "hlt",
);

#[test]
fn mmio_is_read_and_written_at_its_own_width() {
    let mut bench = Bench::new(&kvm_or_skip!(), copies_from_mmio_to_mmio());
    let mut seen = Vec::new();
    bench.run_until(|exit| {
        match exit {
            Exit::MmioRead { address, data } => {
                let first = *address as u8 * 0x10;
                data.iter_mut().zip(first..).for_each(|(byte, value)| *byte = value);
            }
            Exit::MmioWrite { address, data } => seen.push((*address, data.to_vec())),
            exit => panic!("{exit:x?}"),
        }
        seen.len() == 3
    });
    let expected =
        [(0xd000_0101, vec![0x10]), (0xd000_0102, vec![0x20, 0x21]), (0xd000_0104, vec![0x40, 0x41, 0x42, 0x43])];
    assert_eq!(seen, expected);
}

guest!(
    moves_strings_through_ports,
    ".code32",
    "cld",
    "mov edi, 0x3000", // 600 bytes from port 0x378
    "mov ecx, 600",
    "mov edx, 0x378",
    "rep insb",
    "mov esi, 0x3000", // and out again, as 300 words, to port 0x379
    "mov ecx, 300",
    "mov edx, 0x379",
    "rep outsw",
    "out 0x80, al",
    "hlt",
);

#[test]
fn string_io_comes_in_elements_of_the_right_size() {
    let mut bench = Bench::new(&kvm_or_skip!(), moves_strings_through_ports());
    let (mut given, mut taken) = ((0..600).map(|n| (n % 251) as u8), Vec::new());
    bench.run_until(|exit| {
        match exit {
            Exit::IoIn { port: 0x378, size: 1, data } => {
                data.iter_mut().for_each(|byte| *byte = given.next().unwrap_or(0xee));
            }
            Exit::IoOut { port: 0x379, size: 2, data } => {
                assert!(data.len().is_multiple_of(2), "{} bytes of words", data.len());
                taken.extend_from_slice(data);
            }
            Exit::IoOut { port: 0x80, .. } => return true,
            exit => panic!("{exit:x?}"),
        }
        false
    });
    // KVM may ask for more than one instruction needs at once, never for less than all.
    assert_eq!(taken, (0..600).map(|n| (n % 251) as u8).collect::<Vec<_>>());
}

guest!(faults_without_handlers, ".code32", "lidt [0x900]", "ud2");

#[test]
fn a_triple_fault_is_a_shutdown() {
    let mut bench = Bench::new(&kvm_or_skip!(), faults_without_handlers());
    bench.run_until(|exit| {
        assert_eq!(*exit, Exit::Shutdown);
        true
    });
}

guest!(jumps_where_no_ram_is, ".code32", "mov eax, 0xd0000000", "jmp eax");

#[test]
fn an_instruction_kvm_cannot_fetch_is_an_internal_error_with_all_its_numbers() {
    let mut bench = Bench::new(&kvm_or_skip!(), jumps_where_no_ram_is());
    let mut error = (0, Vec::new());
    bench.run_until(|exit| {
        let Exit::Internal { suberror, data } = exit else { panic!("{exit:x?}") };
        error = (*suberror, data.clone());
        true
    });
    let (suberror, data) = error;
    assert_eq!(suberror, 1, "emulation, {data:x?}");
    assert_eq!(bench.bsp.state().unwrap().regs.rip, 0xd000_0000);
}
