//! The entropy device under `VirtIORng`.

use std::sync::Arc;

use axvm_virtio::mmio::MmioTransport;
use axvm_virtio::rng::Rng;
use virtio_drivers::device::rng::VirtIORng;

use super::guest::{GuestPages, Registers, plug};

fn drive(transport: &Arc<MmioTransport>) -> VirtIORng<GuestPages, Registers> {
    VirtIORng::new(Registers(Arc::clone(transport))).unwrap()
}

fn source() -> Arc<MmioTransport> {
    plug("rng", Rng::default())
}

#[test]
fn a_foreign_driver_gets_random_numbers() {
    let transport = source();
    let mut rng = drive(&transport);
    let mut last = Vec::new();
    for len in [32, 4096, 65_536] {
        let mut bytes = vec![0; len];
        assert_eq!(rng.request_entropy(&mut bytes), Ok(len));
        // In 32 random bytes, each value is expected 1/8 times.
        for part in bytes.chunks(32) {
            assert!(part.iter().filter(|&&byte| byte == 0).count() < 16);
        }
        assert!(last.is_empty() || !bytes.starts_with(&last));
        last = bytes;
    }
}

#[test]
fn a_foreign_driver_is_told_how_much_it_got() {
    let transport = source();
    let mut bytes = vec![0; 100_000];
    assert_eq!(drive(&transport).request_entropy(&mut bytes), Ok(65_536));
    assert!(bytes[65_536..].iter().all(|&byte| byte == 0));
}

#[test]
fn a_second_driver_finds_a_working_device() {
    let transport = source();
    for _ in 0..10 {
        assert_eq!(drive(&transport).request_entropy(&mut [0; 16]), Ok(16));
    }
}
