//! What a driver claims about a queue, register by register, before any of it is proven.
//!
//! ```text
//!   QueueNum, QueueDesc, QueueDriver, QueueDevice, QueueReady --> QueueClaim --DRIVER_OK: proven--> VirtQueue
//!                                                                 indices <------- stop ---------------'
//! ```
//!
//! Spec: virtio 1.2, 4.2.2 "MMIO Device Register Layout", 4.1.4.3 "Common configuration structure layout".

use axvm_arch::Gpa;

use crate::queue::{QueueLayout, QueueState};

/// Which of a queue's three areas an address register names.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Area {
    /// The descriptor table.
    Descriptors,
    /// The available ring, written by the driver.
    Driver,
    /// The used ring, written by the device.
    Device,
}

/// What the driver says about a queue: a claim, until DRIVER_OK.
pub(crate) struct QueueClaim {
    /// The largest size.
    pub(crate) max: u16,
    /// Size and addresses.
    pub(crate) layout: QueueLayout,
    /// QueueReady.
    pub(crate) ready: bool,
    /// Where the rings stand while the device does not have them.
    pub(crate) state: QueueState,
}

impl QueueClaim {
    /// As at power-on.
    pub(crate) fn new(max: u16) -> QueueClaim {
        let layout = QueueLayout { size: max, descriptors: Gpa(0), avail: Gpa(0), used: Gpa(0) };
        QueueClaim { max, layout, ready: false, state: QueueState::default() }
    }

    /// An address.
    pub(crate) fn address(&self, area: Area) -> u64 {
        match area {
            Area::Descriptors => self.layout.descriptors.0,
            Area::Driver => self.layout.avail.0,
            Area::Device => self.layout.used.0,
        }
    }

    /// The driver writes one half of an address.
    pub(crate) fn set_address(&mut self, area: Area, high: bool, value: u32) {
        let Gpa(address) = match area {
            Area::Descriptors => &mut self.layout.descriptors,
            Area::Driver => &mut self.layout.avail,
            Area::Device => &mut self.layout.used,
        };
        *address = match high {
            false => *address & !0xffff_ffff | u64::from(value),
            true => *address & 0xffff_ffff | u64::from(value) << 32,
        };
    }
}
