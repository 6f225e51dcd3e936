//! What the compiler expects of every program: memory functions, a panic handler, an end for exceptions.

use core::arch::asm;
use core::panic::PanicInfo;

use crate::cpu;
use crate::report::Line;

const PVPANIC: u16 = 0x505;

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller promises `count` bytes at both.
    unsafe {
        asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _, options(nostack))
    };
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= count {
        // SAFETY: the destination does not begin inside the source, so forwards is right.
        return unsafe { memcpy(to, from, count) };
    }
    let (last_to, last_from) = (to.wrapping_add(count).wrapping_sub(1), from.wrapping_add(count).wrapping_sub(1));
    // SAFETY: the caller promises `count` bytes at both; backwards, because the ranges overlap.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") count => _, inout("rdi") last_to => _, inout("rsi") last_from => _, options(nostack))
    };
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller promises `count` bytes.
    unsafe { asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _, in("al") value as u8, options(nostack)) };
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, count: usize) -> i32 {
    for at in 0..count {
        // SAFETY: the caller promises `count` bytes; volatile, or this loop would become a call of memcmp.
        let one = unsafe { left.wrapping_add(at).read_volatile() };
        // SAFETY: likewise.
        let other = unsafe { right.wrapping_add(at).read_volatile() };
        if one != other {
            return i32::from(one) - i32::from(other);
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, count: usize) -> i32 {
    // SAFETY: the same promise.
    unsafe { memcmp(left, right, count) }
}

#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() {}

/// Where entry.s brings exceptions. Of `first` and `second`, one is the error code, if there is one, then rip.
#[unsafe(no_mangle)]
extern "C" fn exception(vector: u32, first: u64, second: u64, cr2: u64) -> ! {
    let mut line = Line::new();
    line.text("AXVM panic exception ").decimal(vector.into()).text(" ").hex(first).text(" ").hex(second);
    line.text(" cr2 ").hex(cr2);
    give_up(&line)
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    let mut line = Line::new();
    line.text("AXVM panic");
    if let Some(location) = info.location() {
        line.text(" ").text(location.file()).text(":").decimal(location.line().into());
    }
    give_up(&line)
}

fn give_up(line: &Line) -> ! {
    line.send();
    cpu::output(PVPANIC, 1_u8);
    cpu::stop()
}
