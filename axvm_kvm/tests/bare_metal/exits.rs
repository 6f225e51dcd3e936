//! What a guest does arrives as the right exit, and answers arrive in the guest.

use crate::common::{Bench, guest, kvm_or_skip};
use axvm_kvm::Exit;

guest!(counts_on_a_port, ".code32", "mov ecx, 5", "2: mov eax, ecx", "out 0x80, al", "loop 2b", "hlt");

#[test]
fn every_port_write_arrives_in_order() {
    let mut bench = Bench::new(&kvm_or_skip!(), counts_on_a_port());
    let mut seen = Vec::new();
    bench.run_until(|exit| {
        let Exit::IoOut { port: 0x80, size: 1, data: &[value] } = *exit else { panic!("{exit:?}") };
        seen.push(value);
        value == 1
    });
    assert_eq!(seen, [5, 4, 3, 2, 1]);
}
