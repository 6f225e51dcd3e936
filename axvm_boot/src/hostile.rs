//! Damaged and malicious kernel images: an error or a start inside of RAM, never a panic.
//!
//! Headers are damaged where they decide something; the bytes behind them are never interpreted.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use axvm_arch::{Gpa, layout};
use axvm_memory::{GuestRam, RamConfig};
use proptest::prelude::*;

use crate::kernel::field::{FIELDS, Field};
use crate::linux::{Entry, LinuxConfig, Span};
use crate::synthetic::{bzimage, elf, flat, multiboot_2, pvh_note, start, vmlinux};

const SIZE: u64 = 64 << 20;

/// One RAM for all images: what an earlier one left there changes no decision.
static RAM: LazyLock<Arc<GuestRam>> =
    LazyLock::new(|| GuestRam::allocate(&RamConfig::new(SIZE)).expect("64 MiB of RAM"));

/// Starts `image` through every entry and checks what every start promises. How many entries it has?
fn starts(image: &[u8]) -> usize {
    let config = |entry| LinuxConfig {
        command_line: "quiet".into(),
        initrd_len: Some(0x1800),
        entry: Some(entry),
        ..LinuxConfig::default()
    };
    let starts = Entry::ALL.map(|entry| match start(&RAM, image, &config(entry), Some(layout::ACPI_TABLES)) {
        Ok(start) => {
            let (area, file, initrd) = (start.kernel_area, start.kernel_at, start.initrd_at.unwrap());
            assert!(area.gpa >= layout::HIGH_RAM && area.end() <= Gpa(SIZE), "{area}");
            assert!(area.gpa <= file.gpa && file.end() <= area.end(), "{file} in {area}");
            assert!(initrd.gpa >= area.end() && initrd.end() <= Gpa(SIZE), "{initrd} behind {area}");
            let rip = Gpa(start.state.regs.rip);
            assert!(area.gpa <= rip && rip < area.end(), "{rip} in {area}");
            let mut pieces: Vec<Span> = start.pieces.iter().map(|piece| piece.to).collect();
            pieces.sort_by_key(|piece| piece.gpa);
            assert!(pieces.iter().all(|piece| area.gpa <= piece.gpa && piece.end() <= area.end()), "{pieces:?}");
            assert!(pieces.windows(2).all(|pair| pair[0].end() <= pair[1].gpa), "{pieces:?}");
            assert!(pieces.iter().map(|piece| piece.len).sum::<u64>() <= image.len() as u64, "{pieces:?}");
            1
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            0
        }
    });
    starts.iter().sum()
}

/// Two segments and the note, linked for the upper half.
fn vmlinux_32() -> Vec<u8> {
    const GPA: u64 = 16 << 20;
    let (note, code) = (pvh_note(GPA as u32 + 8, 4), [0x90; 64]);
    let part = |gpa: u64| (1, &code[..], 0xb000_0000 + gpa, gpa, 0x2000, 4);
    elf(32, 0xb000_0000 + GPA, &[part(GPA), (4, &note, 0, 0, 0, 4), part(2 * GPA)])
}

/// A flat file that Multiboot 2 loads, and code.
fn flat_2() -> Vec<u8> {
    let at = 16_u32 << 20;
    let address = [at, at, at + 0x80, at + 0x1080].map(u32::to_le_bytes).concat();
    let entry = (at + 0x60).to_le_bytes();
    let header = multiboot_2(&[(1, 0, &[6, 0, 0, 0]), (2, 0, &address), (3, 0, &entry), (6, 1, &[])]);
    [header, vec![0x90; 0x80]].concat()
}

#[test]
fn healthy_images_start() {
    assert_eq!((starts(&bzimage(&[])), starts(&vmlinux()), starts(&vmlinux_32())), (2, 2, 1));
    assert_eq!((starts(&flat()), starts(&flat_2())), (1, 1));
}

#[test]
fn no_flipped_bit_and_no_cut_leads_outside_of_ram() {
    for (healthy, headers) in [
        (bzimage(&[]), 0x1f0..0x270),
        (vmlinux(), 0..0xd0),
        (vmlinux_32(), 0..0xf8),
        (flat(), 0..0x20),
        (flat_2(), 0..0x60),
    ] {
        for at in headers {
            for bit in 0..8 {
                let mut image = healthy.clone();
                image[at] ^= 1 << bit;
                starts(&image);
            }
            starts(&healthy[..at]);
        }
    }
}

/// A few MiB of file must not become GiB of work, however many parts it is made of.
#[test]
fn segments_over_each_other_are_refused_at_once() {
    const GPA: u64 = 16 << 20;
    let content = vec![0x90; 1 << 20];
    let part = |gpa| (1, &content[..], gpa, gpa, 2 << 20, 4);
    let refused = |parts: &[_], change: &dyn Fn(&mut Vec<u8>)| {
        let mut image = elf(64, GPA, parts);
        change(&mut image);
        let since = Instant::now();
        let config = LinuxConfig { entry: Some(Entry::Bits64), ..LinuxConfig::default() };
        let text = start(&RAM, &image, &config, None).unwrap_err().to_string();
        assert!(since.elapsed() < Duration::from_millis(500), "{:?}", since.elapsed());
        text
    };
    let same = |_: &mut Vec<u8>| {};
    let text = refused(&[part(GPA), part(8 * GPA), part(GPA + (2 << 20) - 1)], &same);
    assert!(text.contains("program header 2 (at 0x11fffff) lies over program header 0 in memory"), "{text}");
    // All of them take the same bytes of the file.
    let share = |image: &mut Vec<u8>| {
        for number in 0..2 {
            image[64 + 56 * number + 8..][..8].copy_from_slice(&0_u64.to_le_bytes());
        }
        image.truncate(64 + 56 * 2 + (1 << 20));
    };
    let text = refused(&[part(GPA), part(2 * GPA)], &share);
    assert!(text.contains("program header 1 (at 0x2000000) loads bytes of the file again"), "{text}");
    let many = |image: &mut Vec<u8>| {
        image[56..58].copy_from_slice(&65_534_u16.to_le_bytes());
        let header = image[64..64 + 56].to_vec();
        image.truncate(64);
        image.extend(header.repeat(65_534));
    };
    let text = refused(&[part(GPA)], &many);
    assert!(text.contains("more than 128 program headers"), "{text}");
}

/// Numbers at which arithmetic goes wrong, and any other.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0u32..64, -3i64..=3).prop_map(|(shift, offset)| (1u64 << shift).wrapping_add_signed(offset)),
        Just(0),
        Just(u64::MAX),
    ]
}

fn any_field() -> impl Strategy<Value = Field> {
    prop::sample::select(FIELDS)
}

proptest! {
    #[test]
    fn no_header_leads_outside_of_ram(changes in prop::collection::vec((any_field(), number()), 1..5)) {
        starts(&bzimage(&changes));
    }

    #[test]
    fn no_elf_leads_outside_of_ram(changes in prop::collection::vec((0usize..0xd0, number()), 1..4)) {
        let mut image = vmlinux();
        for (at, value) in changes {
            image[at & !7..][..8].copy_from_slice(&value.to_le_bytes());
        }
        // Without the magic number it would be no ELF at all.
        image[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        starts(&image);
    }

    #[test]
    fn no_elf_of_32_bits_leads_outside_of_ram(changes in prop::collection::vec((0usize..0xf8, number()), 1..4)) {
        let mut image = vmlinux_32();
        for (at, value) in changes {
            image[at & !3..][..4].copy_from_slice(&(value as u32).to_le_bytes());
        }
        image[..7].copy_from_slice(b"\x7fELF\x01\x01\x01");
        starts(&image);
    }

    #[test]
    fn no_multiboot_header_leads_outside_of_ram(
        two in any::<bool>(),
        changes in prop::collection::vec((0usize..0x60, number()), 1..4),
    ) {
        let mut image = if two { flat_2() } else { flat() };
        for (at, value) in changes {
            image[at & !3..][..4].copy_from_slice(&(value as u32).to_le_bytes());
        }
        // With the wrong sum it would be no header at all.
        let (magic, last) = if two { (0xe852_50d6_u32, 12) } else { (0x1bad_b002, 8) };
        image[..4].copy_from_slice(&magic.to_le_bytes());
        let words = image[..last].chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap()));
        let sum = words.fold(0_u32, u32::wrapping_add);
        image[last..][..4].copy_from_slice(&sum.wrapping_neg().to_le_bytes());
        starts(&image);
    }

    #[test]
    fn no_bytes_at_all_lead_outside_of_ram(image in prop::collection::vec(any::<u8>(), 0..0x400)) {
        starts(&image);
    }
}
