//! Interrupts reach the guest through the controllers in KVM, and HLT waits for them there.
//!
//! Handlers do not return but halt again: a KVM that interprets cannot IRET in protected mode.

use crate::common::{Bench, guest, kvm_or_skip};
use axvm_arch::msi::{MsiMessage, MsiRoute};
use axvm_kvm::Routes;
use axvm_sync::EventFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Runs the guest to its report 1 ("I am about to halt"), raises `gsi` after a while from another thread,
/// and returns the next report, which must not come before.
fn report_after_interrupt(bench: &mut Bench, gsi: u32) -> u8 {
    let line = EventFd::new().unwrap();
    bench.vm.irqfd(gsi, &line).unwrap();
    assert_eq!(bench.run_to_report(), 1);
    let raised = Arc::new(AtomicBool::new(false));
    let device = {
        let raised = raised.clone();
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            raised.store(true, Ordering::Release);
            line.signal();
            line
        })
    };
    let report = bench.run_to_report();
    assert!(raised.load(Ordering::Acquire), "HLT did not wait");
    device.join().unwrap();
    report
}

guest!(
    waits_for_the_pic,
    ".code32",
    "mov al, 0x11", // ICW1: cascade, ICW4 follows
    "out 0x20, al",
    "mov al, 0x20", // ICW2: vectors from 0x20
    "out 0x21, al",
    "mov al, 0x04", // ICW3: second PIC on line 2
    "out 0x21, al",
    "mov al, 0x01", // ICW4: 8086 mode
    "out 0x21, al",
    "mov al, 0xdf", // only line 5
    "out 0x21, al",
    "mov al, 1",
    "out 0x80, al",
    "sti",
    "2: hlt",
    "jmp 2b",
);
guest!(
    takes_a_pic_interrupt,
    ".code32",
    "mov al, 0x20", // EOI
    "out 0x20, al",
    "mov al, 5",
    "out 0x80, al",
    "sti",
    "2: hlt",
    "jmp 2b",
);

#[test]
fn an_irqfd_wakes_a_halted_guest_through_the_pic() {
    let mut bench = Bench::new(&kvm_or_skip!(), waits_for_the_pic());
    bench.interrupt_gate(0x25, 0x2000);
    bench.place(0x2000, takes_a_pic_interrupt());
    assert_eq!(report_after_interrupt(&mut bench, 5), 5);
}

guest!(
    waits_for_line_9_as_an_edge,
    ".code32",
    "mov al, 0x11", // ICW1 to 4 for both, as above
    "out 0x20, al",
    "out 0xa0, al",
    "mov al, 0x20",
    "out 0x21, al",
    "mov al, 0x28",
    "out 0xa1, al",
    "mov al, 0x04",
    "out 0x21, al",
    "mov al, 0x02",
    "out 0xa1, al",
    "mov al, 0x01",
    "out 0x21, al",
    "out 0xa1, al",
    "mov al, 0xfb", // the cascade, and line 9
    "out 0x21, al",
    "mov al, 0xfd",
    "out 0xa1, al",
    "mov al, 1",
    "out 0x80, al",
    "sti",
    "2: hlt",
    "jmp 2b",
);
guest!(
    sets_line_9_to_level,
    ".code32",
    "mov dx, 0x4d1", // ELCR of the second PIC
    "mov al, 2",
    "out dx, al",
);
guest!(takes_line_9, ".code32", "mov al, 9", "out 0x80, al", "2: hlt", "jmp 2b",);
guest!(takes_a_spurious_interrupt, ".code32", "mov al, 15", "out 0x80, al", "2: hlt", "jmp 2b",);

/// A level reaches the second PIC whether its line is told to look at edges or at levels.
#[test]
fn a_level_wakes_a_halted_guest_through_the_pic_in_either_mode() {
    for code in
        [waits_for_line_9_as_an_edge().to_vec(), [sets_line_9_to_level(), waits_for_line_9_as_an_edge()].concat()]
    {
        let mut bench = Bench::new(&kvm_or_skip!(), &code);
        bench.interrupt_gate(0x29, 0x2000);
        bench.place(0x2000, takes_line_9());
        bench.interrupt_gate(0x2f, 0x3000);
        bench.place(0x3000, takes_a_spurious_interrupt());
        let line = bench.vm.level_line(9).unwrap();
        assert_eq!(bench.run_to_report(), 1);
        let device = thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            line.set(true);
            line
        });
        assert_eq!(bench.run_to_report(), 9);
        device.join().unwrap();
    }
}

guest!(
    waits_for_the_ioapic,
    ".code32",
    "mov dword ptr [0xfec00000], 0x38", // redirection entry of pin 20, low half
    "mov dword ptr [0xfec00010], 0x44", // vector 0x44, fixed, edge, not masked, to APIC 0
    "mov al, 1",
    "out 0x80, al",
    "sti",
    "2: hlt",
    "jmp 2b",
);
guest!(
    takes_an_apic_interrupt,
    ".code32",
    "mov dword ptr [0xfee000b0], 0", // EOI
    "mov al, 0x44",
    "out 0x80, al",
    "mov esp, 0x1000", // forget the interrupted code
    "sti",
    "2: hlt",
    "jmp 2b",
);

#[test]
fn an_irqfd_wakes_a_halted_guest_through_the_ioapic() {
    let mut bench = Bench::new(&kvm_or_skip!(), waits_for_the_ioapic());
    bench.interrupt_gate(0x44, 0x2000);
    bench.place(0x2000, takes_an_apic_interrupt());
    assert_eq!(report_after_interrupt(&mut bench, 20), 0x44);
}

/// The next edge comes while the handler of the last one is at work, before its EOI has taken effect or after: each is
/// another place where one could be lost.
#[test]
fn no_edge_is_lost_that_comes_while_the_last_one_is_handled() {
    let mut bench = Bench::new(&kvm_or_skip!(), waits_for_the_ioapic());
    bench.interrupt_gate(0x44, 0x2000);
    bench.place(0x2000, takes_an_apic_interrupt());
    let line = EventFd::new().unwrap();
    bench.vm.irqfd(20, &line).unwrap();
    assert_eq!(bench.run_to_report(), 1);
    for round in 0..1000 {
        line.signal();
        assert_eq!(bench.run_to_report(), 0x44, "edge {round}");
    }
}

guest!(
    waits_for_a_message,
    ".code32",
    "mov dword ptr [0xfee000f0], 0x1ff", // local APIC on
    "mov al, 1",
    "out 0x80, al",
    "sti",
    "2: hlt",
    "jmp 2b",
);

/// The order of a machine with PCI: irqfds before the first vCPU runs, routes when the guest asks for them.
#[test]
fn an_irqfd_that_has_no_route_yet_wakes_the_guest_when_it_has_one() {
    let mut bench = Bench::new(&kvm_or_skip!(), waits_for_a_message());
    bench.interrupt_gate(0x44, 0x2000);
    bench.place(0x2000, takes_an_apic_interrupt());
    let routes = Routes::new(&bench.vm).unwrap();
    let [first, second] = [0; 2].map(|_| routes.allocate().unwrap());
    assert_eq!((first, second), (24, 25));
    let lines = [first, second].map(|gsi| {
        let line = EventFd::new().unwrap();
        bench.vm.irqfd(gsi, &line).unwrap();
        line
    });
    assert_eq!(bench.run_to_report(), 1);
    let message = |data| Some(MsiMessage { address: 0xfee0_0000, data });
    let set = |gsi, message| routes.set(&[MsiRoute { gsi, message }]).unwrap();
    set(second, message(0x55));
    lines[0].signal();
    set(first, message(0x44));
    for _ in 0..3 {
        // The edge before the route went nowhere.
        lines[0].signal();
        assert_eq!(bench.run_to_report(), 0x44);
    }
    // Another message under the same irqfd, and none.
    set(first, None);
    lines[0].signal();
    set(second, message(0x44));
    lines[1].signal();
    assert_eq!(bench.run_to_report(), 0x44);
    // The lines are as they were.
    bench.vm.flush_irqfds().unwrap();
}

#[test]
fn messages_end_where_kvm_knows_no_more() {
    let bench = Bench::new(&kvm_or_skip!(), waits_for_a_message());
    let routes = Routes::new(&bench.vm).unwrap();
    let gsis: Vec<_> = std::iter::from_fn(|| routes.allocate().ok()).collect();
    assert!(gsis.len() > 4000, "{}", gsis.len());
    let all: Vec<_> = gsis
        .iter()
        .map(|&gsi| MsiRoute { gsi, message: Some(MsiMessage { address: 0xfee0_0000, data: 0x44 }) })
        .collect();
    routes.set(&all).unwrap();
    let why = routes.allocate().unwrap_err().to_string();
    assert!(why.contains(&format!("more than {} interrupt messages", gsis.len())), "{why}");
}

guest!(
    waits_for_the_pit,
    ".code32",
    "mov al, 0xff", // not through the PIC
    "out 0x21, al",
    "mov dword ptr [0xfec00000], 0x14", // redirection entry of pin 2
    "mov dword ptr [0xfec00010], 0x44",
    "mov al, 0x34", // channel 0, low and high byte, rate generator
    "out 0x43, al",
    "mov al, 0xff",
    "out 0x40, al",
    "mov al, 0x7f",
    "out 0x40, al",
    "sti",
    "2: hlt",
    "jmp 2b",
);

#[test]
fn the_timer_arrives_at_ioapic_pin_2_and_goes_on() {
    let mut bench = Bench::new(&kvm_or_skip!(), waits_for_the_pit());
    bench.interrupt_gate(0x44, 0x2000);
    bench.place(0x2000, takes_an_apic_interrupt());
    assert_eq!([0; 3].map(|_| bench.run_to_report()), [0x44; 3]);
}
