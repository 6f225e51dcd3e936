//! A write to a doorbell reaches its eventfd inside the kernel.

use crate::common::{Bench, guest, kvm_or_skip};
use axvm_arch::Gpa;
use axvm_kvm::Exit;
use axvm_sync::EventFd;

guest!(
    rings_doorbells,
    ".code32",
    "mov eax, 7",
    "mov [0xd0000050], eax", // any value
    "mov [0xd0001050], eax", // value 7
    "mov [0xd0001050], eax",
    "out 0x80, al",
    "mov eax, 8",
    "mov [0xd0001050], eax", // not value 7
    "hlt",
);

#[test]
fn a_doorbell_signals_its_eventfd_and_does_not_exit() {
    let mut bench = Bench::new(&kvm_or_skip!(), rings_doorbells());
    let [any, seven] = [0, 1].map(|_| EventFd::new().unwrap());
    bench.vm.ioeventfd(Gpa(0xd000_0050), 4, None, &any).unwrap();
    bench.vm.ioeventfd(Gpa(0xd000_1050), 4, Some(7), &seven).unwrap();

    assert_eq!(bench.run_to_report(), 7);
    assert!(any.take());
    assert!(seven.take());

    bench.run_until(|exit| {
        assert_eq!(*exit, Exit::MmioWrite { address: 0xd000_1050, data: &[8, 0, 0, 0] });
        true
    });
    assert!(!seven.take(), "a write of another value is not for the doorbell");
}

guest!(rings_with_a_byte, ".code32", "mov byte ptr [0xd0000050], 1", "mov word ptr [0xd0000050], 1", "hlt");

#[test]
fn a_doorbell_of_one_byte_takes_no_words() {
    let mut bench = Bench::new(&kvm_or_skip!(), rings_with_a_byte());
    let doorbell = EventFd::new().unwrap();
    bench.vm.ioeventfd(Gpa(0xd000_0050), 1, None, &doorbell).unwrap();
    bench.run_until(|exit| {
        assert_eq!(*exit, Exit::MmioWrite { address: 0xd000_0050, data: &[1, 0] });
        true
    });
    assert!(doorbell.take());
}
