//! What the compiler expects of every program, beside symbols.rs: a panic handler; and an end for exceptions.

use core::panic::PanicInfo;

use crate::cpu;
use crate::report::Line;

const PVPANIC: u16 = 0x505;

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
