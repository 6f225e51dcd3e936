//! A look into kernel and initrd: any bytes, packed by any format.
//!
//! The first byte chooses what it is, and whether the magic number of a format is put in front of the rest, so that each
//! reader is reached at once.
//!
//! Run: `cargo xtask fuzz guest_files`.
#![no_main]

use std::ops::ControlFlow::{Break, Continue};

use axvm_inspect::kernel::unpack::{Format, unpack};
use axvm_inspect::kernel::{Beside, Input, examine, initrd};
use libfuzzer_sys::fuzz_target;

const HEADS: [&[u8]; 8] = [
    b"\x1f\x8b\x08\0\0\0\0\0\0\0",
    b"BZh91AY&SY",
    b"\x5d\0\0\x80\0",
    b"\xfd7zXZ\0",
    b"\x89LZO\0\r\n\x1a\n",
    b"\x02\x21\x4c\x18",
    b"\x28\xb5\x2f\xfd",
    b"070701",
];

fuzz_target!(|data: &[u8]| {
    let Some((&choice, rest)) = data.split_first() else { return };
    let head = if choice & 0x80 == 0 { HEADS[usize::from(choice) % HEADS.len()] } else { b"" };
    let bytes = [head, rest].concat();
    let bytes = &bytes[..];
    match choice >> 3 & 3 {
        0 => {
            let facts = initrd::examine(&bytes);
            assert!(facts.has("none").is_none_or(|_| facts.unread.is_none() || facts.modules.contains("none")));
        }
        1 => {
            // A kernel that carries a configuration, or nothing.
            let image = [b"\x7fELF", &b"Linux version \0IKCFG_ST"[..], bytes, b"IKCFG_ED"].concat();
            let _ = examine(&&image[..], &Beside::default());
        }
        _ => {
            let Some(format) = Format::of(bytes) else { return };
            let mut left = 16_usize << 20;
            let _ = unpack(format, &mut Input::new(&bytes, 0, u64::MAX), &mut |piece| {
                left = left.saturating_sub(piece.len());
                if left == 0 { Break(()) } else { Continue(()) }
            });
        }
    }
});
