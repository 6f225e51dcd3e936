//! Ends of a guest that its hypervisor has to explain: `crash=N` on the command line.
//!
//! | N | does | on the way |
//! |---|---|---|
//! | 1 | an undefined instruction | no IDT: triple fault |
//! | 2 | reads where no page is | the same |
//! | 3 | reads through an entry with a reserved bit set | the same |
//! | 4 | an instruction on a device's register that no hypervisor emulates | KVM's internal error |
//! | 5 | clears EFER.LME while paging is on | general protection, no IDT: triple fault |
//! | 6 | jumps to where no RAM is | KVM's internal error |
//! | 7 | executes the bytes of a page that forbids it | page fault, no IDT: triple fault |
//!
//! Spec: Intel SDM volume 3, 4.7 "Page-Fault Exceptions", 6.15 "Exception and Interrupt Reference".

use crate::cpu::{self, read};
use crate::start_info::{self, Window};

/// Where no page is: behind the first 4 GiB, and behind the window.
const UNMAPPED: u64 = 64 << 30;
/// In the hole below 4 GiB, where no device is.
const NO_RAM: u64 = 0xcc00_0000;

/// Ends in way `number`; comes back only if there is none of that number.
pub fn crash(number: u64) {
    // No handler takes the blame.
    cpu::load_idt(&[0; 5]);
    match number {
        1 => cpu::undefined(),
        2 => _ = read::<u64>(UNMAPPED),
        3 => _ = read::<u64>(start_info::bad_window(Window::Reserved)),
        4 => cpu::unusual_access(NO_RAM),
        5 => cpu::write_msr(0xc000_0080, 0),
        6 => cpu::jump(NO_RAM),
        7 => cpu::jump(start_info::bad_window(Window::NoExecution)),
        _ => {}
    }
}
