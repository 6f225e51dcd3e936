//! Damaged and malicious kernel images: an error or a start inside of RAM, never a panic.
//!
//! Headers are damaged where they decide something; the bytes behind them are never interpreted.

use std::sync::{Arc, LazyLock};

use axvm_arch::{Gpa, layout};
use axvm_memory::{GuestRam, RamConfig};
use proptest::prelude::*;

use crate::kernel::field::{FIELDS, Field};
use crate::linux::{Entry, LinuxConfig, prepare};
use crate::synthetic::{bzimage, vmlinux};

const SIZE: u64 = 64 << 20;
const ENTRIES: [Entry; 3] = [Entry::Bits32, Entry::Bits64, Entry::Pvh];

/// One RAM for all images: what an earlier one left there changes no decision.
static RAM: LazyLock<Arc<GuestRam>> =
    LazyLock::new(|| GuestRam::allocate(&RamConfig::new(SIZE)).expect("64 MiB of RAM"));

/// Starts `image` through every entry and checks what every start promises. How many entries it has?
fn starts(image: &[u8]) -> usize {
    let config = |entry| LinuxConfig { command_line: "quiet".into(), initrd: Some(vec![1; 0x1800]), entry };
    let starts = ENTRIES.map(|entry| match prepare(&RAM, image, &config(entry), Some(layout::ACPI_TABLES)) {
        Ok(start) => {
            let (area, file, initrd) = (start.kernel_area, start.kernel_at, start.initrd_at.unwrap());
            assert!(area.gpa >= layout::HIGH_RAM && area.end() <= Gpa(SIZE), "{area}");
            assert!(area.gpa <= file.gpa && file.end() <= area.end(), "{file} in {area}");
            assert!(initrd.gpa >= area.end() && initrd.end() <= Gpa(SIZE), "{initrd} behind {area}");
            let rip = Gpa(start.state.regs.rip);
            assert!(area.gpa <= rip && rip < area.end(), "{rip} in {area}");
            1
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            0
        }
    });
    starts.iter().sum()
}

#[test]
fn healthy_images_start() {
    assert_eq!((starts(&bzimage(&[])), starts(&vmlinux())), (2, 2));
}

#[test]
fn no_flipped_bit_and_no_cut_leads_outside_of_ram() {
    for (healthy, headers) in [(bzimage(&[]), 0x1f0..0x270), (vmlinux(), 0..0xd0)] {
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
    fn no_bytes_at_all_lead_outside_of_ram(image in prop::collection::vec(any::<u8>(), 0..0x400)) {
        starts(&image);
    }
}
