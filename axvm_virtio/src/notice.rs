//! How a user's change of the configuration reaches the driver, while there is one.
//!
//! ```text
//!   user --changed--> a driver is there: config interrupt
//!                     none, or held still: missed --connect--> config interrupt
//! ```
//!
//! Spec: virtio 1.2, 2.3 "Notifications", 2.5 "Device Configuration Space".

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::signals::ConfigIrq;

/// The way to the driver of the moment.
#[derive(Default)]
pub(crate) struct ConfigNotice(Mutex<DriverNotice>);

#[derive(Default)]
struct DriverNotice {
    irq: Option<ConfigIrq>,
    /// The last change found no driver.
    missed: bool,
}

impl ConfigNotice {
    /// The configuration has changed.
    pub(crate) fn changed(&self) {
        let mut notice = self.lock();
        match &notice.irq {
            Some(irq) => irq.raise(),
            None => notice.missed = true,
        }
    }

    /// The driver is there, and is told of what it missed.
    pub(crate) fn connect(&self, irq: ConfigIrq) {
        let mut notice = self.lock();
        if std::mem::take(&mut notice.missed) {
            irq.raise();
        }
        notice.irq = Some(irq);
    }

    /// The driver is gone, or held still.
    pub(crate) fn disconnect(&self) {
        self.lock().irq = None;
    }

    /// Whether the last change found no driver.
    pub(crate) fn missed(&self) -> bool {
        self.lock().missed
    }

    /// What a saved state says of that.
    pub(crate) fn set_missed(&self, missed: bool) {
        self.lock().missed = missed;
    }

    fn lock(&self) -> MutexGuard<'_, DriverNotice> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
