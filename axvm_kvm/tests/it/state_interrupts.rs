//! Interrupts that are on their way, timers that run and processors that wait come along to another VM.
//!
//! ```text
//!   irqfd --> PIC, IOAPIC --> APIC page --> vCPU        PIT, APIC timer, TSC deadline        INIT, SIPI
//!   each is stopped somewhere in between, saved, restored, and arrives
//! ```

use crate::common::{Bench, guest, kvm_or_skip, run_until, say_skipped_for};
use axvm_arch::irqchip::{DeliveryMode, LapicState};
use axvm_arch::msr;
use axvm_kvm::Exit;
use axvm_kvm::state::MpState;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

guest!(
    halts_between_ticks,
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
guest!(
    counts_an_interrupt,
    ".code32",
    "mov dword ptr [0xfee000b0], 0", // EOI
    "inc dword ptr [0x3000]",
    "mov al, 0x44",
    "out 0x80, al",
    "mov esp, 0x1000", // forget the interrupted code
    "sti",
    "2: hlt",
    "jmp 2b",
);

#[test]
fn a_halted_guest_gets_the_ticks_of_a_timer_that_came_along() {
    let kvm = kvm_or_skip!();
    let mut bench = Bench::new(&kvm, halts_between_ticks());
    bench.interrupt_gate(0x44, 0x2000);
    bench.place(0x2000, counts_an_interrupt());
    for round in 0..3 {
        assert_eq!([0; 2].map(|_| bench.run_to_report()), [0x44; 2], "round {round}");
        // Into HLT, where it is kicked.
        let kicker = bench.kicker.clone();
        let other = thread::spawn(move || {
            thread::sleep(Duration::from_millis(3));
            kicker.kick();
        });
        bench.run_until(|exit| *exit == Exit::Interrupted);
        other.join().unwrap();
        let state = bench.vm.save().unwrap();
        assert_eq!((state.ioapic.pins[2].vector, state.ioapic.pins[2].masked), (0x44, false));
        assert_eq!((state.pit.channels[0].mode, state.pit.channels[0].count), (2, 0x7fff));
        (bench, _) = bench.moved(&kvm, Vec::new());
    }
    let ticks = u32::from_le_bytes(bench.peek(0x3000));
    bench.run_to_report();
    assert!(ticks >= 6, "{ticks}");
}

guest!(
    sets_the_apic_timer,
    ".code32",
    "mov dword ptr [0xfee003e0], 0xb",       // divide by 1
    "mov dword ptr [0xfee00320], 0x44",      // one-shot, vector 0x44
    "mov dword ptr [0xfee00380], 300000000", // 0.3 s: KVM counts nanoseconds
    "mov al, 1",
    "out 0x80, al",
    "sti",
    "2: hlt",
    "jmp 2b",
);

#[test]
fn the_apic_timer_goes_on_with_the_rest_of_its_time() {
    /// Current count of the timer.
    const COUNT: usize = 0x390;
    let kvm = kvm_or_skip!();
    let mut bench = Bench::new(&kvm, sets_the_apic_timer());
    bench.interrupt_gate(0x44, 0x2000);
    bench.place(0x2000, counts_an_interrupt());
    let start = Instant::now();
    assert_eq!(bench.run_to_standstill(), 1);
    let state = bench.bsp.save().unwrap();
    assert_eq!(state.lapic.register(LapicState::LVT_TIMER), 0x44);
    let left = state.lapic.register(COUNT);
    (bench, _) = bench.moved(&kvm, Vec::new());
    assert!(bench.bsp.save().unwrap().lapic.register(COUNT) <= left, "it does not start anew");
    assert_eq!(bench.run_to_report(), 0x44);
    assert!(start.elapsed() >= Duration::from_millis(290), "{:?}", start.elapsed());
}

guest!(
    sets_a_tsc_deadline,
    ".code32",
    "mov dword ptr [0xfee00320], 0x40044", // TSC-deadline, vector 0x44
    "rdtsc",
    "add eax, 500000000", // some tenths of a second
    "adc edx, 0",
    "mov ecx, 0x6e0",
    "wrmsr",
    "mov al, 1",
    "out 0x80, al",
    "sti",
    "2: hlt",
    "jmp 2b",
);

#[test]
fn a_tsc_deadline_is_armed_again() {
    let kvm = kvm_or_skip!();
    if !kvm.capabilities().tsc_deadline {
        return say_skipped_for("no TSC deadline", "this KVM has no such timer");
    }
    let mut bench = Bench::new(&kvm, sets_a_tsc_deadline());
    bench.interrupt_gate(0x44, 0x2000);
    bench.place(0x2000, counts_an_interrupt());
    assert_eq!(bench.run_to_standstill(), 1);
    let state = bench.bsp.save().unwrap();
    let deadline = state.msrs.iter().find(|msr| msr.index == msr::TSC_DEADLINE).map(|msr| msr.value);
    assert!(deadline.is_some_and(|deadline| deadline > 0), "{deadline:?}");
    (bench, _) = bench.moved(&kvm, Vec::new());
    assert_eq!(bench.run_to_report(), 0x44);
}

guest!(
    routes_pin_20_with_interrupts_off,
    ".code32",
    "mov dword ptr [0xfec00000], 0x38", // redirection entry of pin 20, low half
    "mov dword ptr [0xfec00010], 0x44",
    "mov al, 1",
    "out 0x80, al",
    "sti",
    "2: hlt",
    "jmp 2b",
);

#[test]
fn an_edge_raised_just_before_the_save_arrives_once() {
    let kvm = kvm_or_skip!();
    for round in 0..20 {
        let mut bench = Bench::new(&kvm, routes_pin_20_with_interrupts_off());
        bench.interrupt_gate(0x44, 0x2000);
        bench.place(0x2000, counts_an_interrupt());
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        bench.vm.irqfd(20, &line).unwrap();
        assert_eq!(bench.run_to_standstill(), 1);
        line.write(1).unwrap();
        let state = bench.vm.save().unwrap();
        assert_eq!(state.ioapic.pins[20].delivery, DeliveryMode::Fixed);
        let lapic = bench.bsp.save().unwrap().lapic;
        // IRR, vectors 0x40 to 0x5f.
        assert_eq!(lapic.register(0x220), 1 << 4, "round {round}: {:?}", state.ioapic);
        (bench, _) = bench.moved(&kvm, Vec::new());
        assert_eq!(bench.run_to_report(), 0x44);
        assert_eq!(u32::from_le_bytes(bench.peek(0x3000)), 1);
    }
}

#[test]
fn a_line_that_was_flushed_still_works_and_one_that_was_disconnected_does_not() {
    let mut bench = Bench::new(&kvm_or_skip!(), routes_pin_20_with_interrupts_off());
    let line = EventFd::new(EFD_NONBLOCK).unwrap();
    bench.vm.irqfd(20, &line).unwrap();
    assert_eq!(bench.run_to_standstill(), 1);
    let requested = |bench: &Bench| bench.bsp.save().unwrap().lapic.register(0x220);

    bench.vm.unregister_irqfd(20, &line).unwrap();
    line.write(1).unwrap();
    bench.vm.flush_irqfds().unwrap();
    assert_eq!(requested(&bench), 0);
    bench.vm.unregister_irqfd(20, &line).unwrap();

    // What was raised while it was off is there when it is on.
    bench.vm.irqfd(20, &line).unwrap();
    bench.vm.flush_irqfds().unwrap();
    assert_eq!(requested(&bench), 1 << 4);
}

guest!(
    sets_up_the_pic,
    ".code32",
    "mov al, 0x11",
    "out 0x20, al",
    "mov al, 0x20", // vectors from 0x20
    "out 0x21, al",
    "mov al, 0x04",
    "out 0x21, al",
    "mov al, 0x01",
    "out 0x21, al",
    "mov al, 0xdf", // only line 5
    "out 0x21, al",
    "mov al, 1",
    "out 0x80, al",
    "sti",
    "2: hlt",
    "jmp 2b",
);
guest!(takes_it, ".code32", "mov al, 0x20", "out 0x20, al", "mov al, 5", "out 0x80, al", "hlt");

#[test]
fn a_pic_that_was_set_up_stays_so() {
    let kvm = kvm_or_skip!();
    let mut bench = Bench::new(&kvm, sets_up_the_pic());
    bench.interrupt_gate(0x25, 0x2000);
    bench.place(0x2000, takes_it());
    assert_eq!(bench.run_to_standstill(), 1);
    let [first, _] = bench.vm.save().unwrap().pics;
    assert_eq!((first.vector_base, first.masked, first.init_step), (0x20, 0xdf, 0));
    (bench, _) = bench.moved(&kvm, Vec::new());
    let line = EventFd::new(EFD_NONBLOCK).unwrap();
    bench.vm.irqfd(5, &line).unwrap();
    line.write(1).unwrap();
    assert_eq!(bench.run_to_report(), 5);
}

guest!(
    starts_another_in_two_steps,
    ".code32",
    "mov al, 1",
    "out 0x80, al",
    "mov dword ptr [0xfee00300], 0xc4500", // INIT to all but self
    "mov al, 2",
    "out 0x80, al",
    "mov dword ptr [0xfee00300], 0xc4608", // SIPI to all but self: start at 0x8000
    "2: cmp byte ptr [0x3000], 0",
    "je 2b",
    "mov al, 3",
    "out 0x80, al",
    "hlt",
);
guest!(says_it_runs, ".code16", "inc byte ptr [0x3000]", "2: hlt", "jmp 2b");

#[test]
fn an_application_processor_waits_for_its_start_in_the_new_vm() {
    let kvm = kvm_or_skip!();
    let mut bench = Bench::new(&kvm, starts_another_in_two_steps());
    bench.place(0x8000, says_it_runs());
    let mut aps = vec![bench.ap(1)];
    for (report, waits_for) in [(1, MpState::Uninitialized), (2, MpState::InitReceived)] {
        assert_eq!(bench.run_to_standstill(), report);
        assert_eq!(aps[0].save().unwrap().mp_state, waits_for);
        (bench, aps) = bench.moved(&kvm, aps);
        assert_eq!(aps[0].save().unwrap().mp_state, waits_for);
    }
    let mut ap = aps.remove(0);
    let kicker = Arc::new(ap.kicker().unwrap());
    let other = kicker.clone();
    thread::scope(|scope| {
        scope.spawn(move || run_until(&mut ap, &other, |exit| *exit == Exit::Interrupted));
        assert_eq!(bench.run_to_report(), 3);
        kicker.kick();
    });
}
