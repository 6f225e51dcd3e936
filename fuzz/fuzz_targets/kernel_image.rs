//! The kernel file: any bytes are parsed, described, and placed in RAM if they can be.
//!
//! The first byte chooses the entry; one value in four keeps the bytes as they are, the others put the
//! magic numbers in front, so that the headers behind them are reached at once.
//!
//! Run: `cargo xtask fuzz kernel_image`.
#![no_main]

use std::sync::{Arc, LazyLock};

use axvm_boot::kernel::KernelImage;
use axvm_boot::linux::{Entry, LinuxConfig, prepare};
use axvm_memory::{GuestRam, RamConfig};
use libfuzzer_sys::fuzz_target;

static RAM: LazyLock<Arc<GuestRam>> = LazyLock::new(|| GuestRam::allocate(&RamConfig::new(64 << 20)).expect("64 MiB"));

/// Makes the bytes a Multiboot header, of either version, whose checksum is right; all other fields stay.
fn put_multiboot(image: &mut [u8]) {
    let word = |image: &[u8], at: usize| u32::from_le_bytes([image[at], image[at + 1], image[at + 2], image[at + 3]]);
    if image.len() < 32 {
        return;
    }
    let (magic, last) = if image[31] & 1 == 0 { (0x1bad_b002_u32, 8) } else { (0xe852_50d6, 12) };
    image[..4].copy_from_slice(&magic.to_le_bytes());
    let sum = (0..last).step_by(4).fold(0_u32, |sum, at| sum.wrapping_add(word(image, at)));
    image[last..last + 4].copy_from_slice(&sum.wrapping_neg().to_le_bytes());
}

fuzz_target!(|data: &[u8]| {
    let Some((&choice, rest)) = data.split_first() else { return };
    let mut image = rest.to_vec();
    match choice & 3 {
        1 if image.len() > 0x206 => {
            image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
            image[0x202..0x206].copy_from_slice(b"HdrS");
        }
        2 if image.len() > 4 => image[..4].copy_from_slice(b"\x7fELF"),
        3 if choice & 0x40 != 0 => put_multiboot(&mut image),
        _ => {}
    }
    let image = &image[..];
    if let Ok(parsed) = KernelImage::parse(&image) {
        _ = parsed.to_string();
    }
    let entry = Entry::ALL[usize::from(choice >> 2) % Entry::ALL.len()];
    let initrd_len = (choice & 0x80 != 0).then_some(5000);
    let command_line = "console=ttyS0".into();
    let config = LinuxConfig { command_line, initrd_len, entry: Some(entry), ..LinuxConfig::default() };
    match prepare(&RAM, &image, &config, None) {
        Ok(start) => {
            let size = RAM.size();
            assert!(start.kernel_at.end().0 <= size && start.kernel_area.end().0 <= size);
            assert!(start.initrd_at.is_none_or(|at| at.end().0 <= size));
            let mut loaded = 0;
            for piece in &start.pieces {
                let (area, to) = (start.kernel_area, piece.to);
                assert!(area.gpa <= to.gpa && to.end() <= area.end());
                assert!(piece.offset.checked_add(to.len).is_some_and(|end| end <= image.len() as u64));
                loaded += to.len;
            }
            assert!(loaded <= image.len() as u64);
        }
        Err(error) => _ = error.to_string(),
    }
});
