//! What the loader handed over: `hvm_start_info` with its memory map and command line.
//!
//! Spec: Xen public header arch-x86/hvm/start_info.h (version 1).

use core::sync::atomic::{AtomicU64, Ordering};

use crate::cpu::{self, read, write};
use crate::report::{Line, Verdict};

const MAGIC: u32 = 0x336e_c578;
const RAM: u32 = 1;
const TWO_MIB: u64 = 2 << 20;
/// Where [`through_window`] shows one page of 2 MiB.
const WINDOW: u64 = 4 << 30;

unsafe extern "C" {
    #[link_name = "start_info"]
    safe static START_INFO: AtomicU64;
    #[link_name = "window_directory"]
    safe static WINDOW_DIRECTORY: AtomicU64;
}

fn info() -> u64 {
    START_INFO.load(Ordering::Relaxed)
}

pub fn rsdp() -> u64 {
    read(info() + 32)
}

/// The number behind `name=` on the command line; 1 if the name stands alone.
pub fn option(name: &str) -> Option<u64> {
    let line: u64 = read(info() + 24);
    let (mut at, mut matched) = (line, 0);
    while line != 0 && at < line + 4096 {
        let byte: u8 = read(at);
        match byte {
            b'=' if matched == name.len() => return Some(number(at + 1)),
            0 | b' ' | b'\n' if matched == name.len() => return Some(1),
            0 => return None,
            b' ' => matched = 0,
            byte if name.as_bytes().get(matched) == Some(&byte) => matched += 1,
            _ => matched = usize::MAX / 2,
        }
        at += 1;
    }
    None
}

fn number(mut at: u64) -> u64 {
    let mut value = 0_u64;
    while let digit @ b'0'..=b'9' = read::<u8>(at) {
        value = value.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
        at += 1;
    }
    value
}

/// An address at which the RAM at `gpa` can be reached.
pub fn through_window(gpa: u64) -> u64 {
    if gpa < WINDOW {
        return gpa;
    }
    WINDOW_DIRECTORY.store(gpa & !(TWO_MIB - 1) | 0x83, Ordering::Relaxed);
    cpu::forget_page(WINDOW);
    WINDOW + gpa % TWO_MIB
}

/// A window as none should be.
pub enum Window {
    /// Its entry has a bit that no processor's addresses have.
    Reserved,
    /// Its entry forbids execution.
    NoExecution,
}

/// The address of such a window.
pub fn bad_window(bad: Window) -> u64 {
    let bit = match bad {
        Window::Reserved => 1 << 13,
        Window::NoExecution => {
            cpu::enable_no_execution();
            1 << 63
        }
    };
    WINDOW_DIRECTORY.store(bit | 0x83, Ordering::Relaxed);
    cpu::forget_page(WINDOW);
    WINDOW
}

/// The first and last words of every RAM region hold what is written to them.
pub fn ram(line: &mut Line) -> Verdict {
    line.check(read::<u32>(info()) == MAGIC, "no magic in hvm_start_info")?;
    let (map, entries): (u64, u32) = (read(info() + 40), read(info() + 48));
    let (mut bytes, mut regions) = (0, 0);
    for entry in 0..u64::from(entries) {
        let at = map + entry * 24;
        let (base, len, kind): (u64, u64, u32) = (read(at), read(at + 8), read(at + 16));
        if kind != RAM || len < 64 {
            continue;
        }
        for gpa in [base + 16, base + len - 8] {
            if !holds(through_window(gpa)) {
                line.text(" at ").hex(gpa);
                return line.failed("RAM does not hold what was written");
            }
        }
        (bytes, regions) = (bytes + len, regions + 1);
    }
    line.text(" ").decimal(bytes >> 10).text(" KiB in ").decimal(regions).text(" regions");
    line.check(regions > 0, "no RAM in the memory map")
}

fn holds(address: u64) -> bool {
    let before: u64 = read(address);
    let good = [0x5555_aaaa_0f0f_f0f0, !0x5555_aaaa_0f0f_f0f0_u64].into_iter().all(|pattern| {
        write(address, pattern);
        read::<u64>(address) == pattern
    });
    write(address, before);
    good
}
