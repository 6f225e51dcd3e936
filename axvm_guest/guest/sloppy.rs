//! A driver with a beginner's mistakes: `sloppy` on the command line. AxVM's devices forgive each, and others may not.
//!
//! ```text
//!   set-up: the status is not read after a reset               (on PCI, the device might be at it yet)
//!           the status is not read again after FEATURES_OK     (the device might have refused)
//!           kick --> DRIVER_OK                                 (the device might miss it)
//!   use:    random bytes come back all the same
//! ```
//!
//! Spec: virtio 1.2, 3.1.1 "Driver Requirements: Device Initialization".

use crate::clock;
use crate::cpu::read;
use crate::report::{Line, Verdict};
use crate::virtio::{Buffer, PATIENCE, Queue, VERSION_1, devices, kind, register::*};

/// Asks the entropy device for 64 bytes.
pub fn drive(line: &mut Line) -> Verdict {
    let Some(device) = devices().find(|device| device.kind == kind::RNG) else { return line.absent() };
    device.prepare();
    for status in [0, 1, 3] {
        device.write(STATUS, status);
    }
    device.accept(VERSION_1);
    device.write(STATUS, 11);
    device.place_queue(0, line)?;
    let queue = Queue::of(device, 0);
    queue.describe(0, Buffer { address: queue.room(), len: 64, device_writes: true }, None);
    queue.offer(0);
    device.write(STATUS, 15);
    let came = clock::wait(PATIENCE, || read::<u16>(queue.used() + 2) != 0);
    line.check(came, "waited 2 s for random bytes")?;
    line.text(" got its random bytes");
    Ok(())
}
