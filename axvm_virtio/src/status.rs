//! The virtio status machine: which steps of initialization a driver may take, and when.
//!
//! ```text
//!   0 --ACKNOWLEDGE--> 1 --DRIVER--> 3 --FEATURES_OK--> 11 --DRIVER_OK--> 15 (live)
//!   ^                                    ^ only features on offer, and VERSION_1
//!   '---- write 0, from anywhere ----    FAILED: nothing but 0 helps
//! ```
//!
//! A step whose condition does not hold is not taken: its bit stays clear, and the driver reads that back.
//!
//! Spec: virtio 1.2, 2.1 "Device Status Field", 2.2 "Feature Bits", 3.1 "Device Initialization".
//! Left out: DEVICE_NEEDS_RESET, which the device's workers set (`signals`).

use crate::device::feature;
use crate::state::StateError;

/// The guest has noticed the device.
pub(crate) const ACKNOWLEDGE: u32 = 1;
/// The guest has a driver for it.
pub(crate) const DRIVER: u32 = 2;
/// The driver is ready.
pub(crate) const DRIVER_OK: u32 = 4;
/// The driver has chosen its features.
pub(crate) const FEATURES_OK: u32 = 8;
/// The device gave up.
pub(crate) const DEVICE_NEEDS_RESET: u32 = 64;
/// The driver gave up.
pub(crate) const FAILED: u32 = 128;

/// Each step, and the step before it.
const STEPS: [(u32, u32); 4] =
    [(ACKNOWLEDGE, 0), (DRIVER, ACKNOWLEDGE), (FEATURES_OK, DRIVER), (DRIVER_OK, FEATURES_OK)];

/// What a write to the status register asks of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transition {
    /// Nothing yet.
    None,
    /// Start working.
    Start,
    /// Back to power-on.
    Reset,
}

/// Status and features, as negotiated so far.
#[derive(Debug)]
pub(crate) struct DriverStatus {
    bits: u32,
    offered: u64,
    accepted: u64,
}

impl DriverStatus {
    /// At power-on, with these features on offer.
    pub(crate) fn new(offered: u64) -> DriverStatus {
        DriverStatus { bits: 0, offered, accepted: 0 }
    }

    /// Where a driver had come, by a saved state; or why no driver comes there.
    pub(crate) fn restore(offered: u64, bits: u32, accepted: u64) -> Result<DriverStatus, StateError> {
        let status = DriverStatus { bits, offered, accepted };
        // Every step that is taken, and no other bit.
        let taken = STEPS.iter().take_while(|(step, _)| bits & step != 0).fold(0, |taken, (step, _)| taken | step);
        if bits & !FAILED != taken {
            return Err(StateError::Value { what: "device status", value: bits.into() });
        }
        if status.has_agreed() && !status.features_fit() {
            return Err(match accepted & !offered {
                0 => StateError::Value { what: "set of driver features", value: accepted },
                unknown => StateError::Features(unknown),
            });
        }
        Ok(status)
    }

    /// The features on offer.
    pub(crate) fn all_offered(&self) -> u64 {
        self.offered
    }

    /// The bits that the driver has reached.
    pub(crate) fn bits(&self) -> u32 {
        self.bits
    }

    /// Whether the driver said DRIVER_OK.
    pub(crate) fn is_live(&self) -> bool {
        self.bits & DRIVER_OK != 0
    }

    /// Half `select` of the features on offer; there are no more than two.
    pub(crate) fn offered(&self, select: u32) -> u32 {
        half(self.offered, select)
    }

    /// The features that driver and device agree on; none before FEATURES_OK.
    pub(crate) fn negotiated(&self) -> u64 {
        if self.has_agreed() { self.accepted } else { 0 }
    }

    /// The features that the driver wrote so far.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Whether driver and device agree on features.
    pub(crate) fn has_agreed(&self) -> bool {
        self.bits & FEATURES_OK != 0
    }

    /// The driver writes half `select` of its features. Too late after FEATURES_OK.
    pub(crate) fn accept(&mut self, select: u32, value: u32) {
        if !self.has_agreed() {
            self.accepted = match select {
                0 => self.accepted & !0xffff_ffff | u64::from(value),
                1 => self.accepted & 0xffff_ffff | u64::from(value) << 32,
                // Features that do not exist: remembered as "not acceptable" by a bit never on offer.
                _ if value != 0 => self.accepted | 1 << 63,
                _ => self.accepted,
            };
        }
    }

    /// The driver writes the status register.
    pub(crate) fn write(&mut self, value: u32) -> Transition {
        if value == 0 {
            *self = DriverStatus::new(self.offered);
            return Transition::Reset;
        }
        let before = self.bits;
        if (before | value) & FAILED != 0 {
            self.bits |= FAILED;
            return Transition::None;
        }
        for (step, after) in STEPS {
            let may = self.bits & after == after && (step != FEATURES_OK || self.features_fit());
            if value & step != 0 && may {
                self.bits |= step;
            }
        }
        if self.bits & !before & DRIVER_OK != 0 { Transition::Start } else { Transition::None }
    }

    fn features_fit(&self) -> bool {
        self.accepted & !self.offered == 0 && self.accepted & feature::VERSION_1 != 0
    }
}

fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFERED: u64 = feature::TRANSPORT | 1 << 9;

    fn at(writes: &[u32], features: u64) -> (DriverStatus, Vec<Transition>) {
        let mut status = DriverStatus::new(OFFERED);
        status.accept(0, half(features, 0));
        status.accept(1, half(features, 1));
        let transitions = writes.iter().map(|&value| status.write(value)).collect();
        (status, transitions)
    }

    #[test]
    fn the_way_of_a_good_driver() {
        let (status, transitions) = at(&[1, 3, 11, 15], feature::VERSION_1 | 1 << 9);
        use Transition::{None, Start};
        assert_eq!(transitions, [None, None, None, Start]);
        assert_eq!((status.bits(), status.is_live()), (15, true));
        assert_eq!(status.negotiated(), feature::VERSION_1 | 1 << 9);
    }

    #[test]
    fn a_driver_may_take_several_steps_in_one_write() {
        let (status, transitions) = at(&[15], feature::VERSION_1);
        assert_eq!((status.bits(), transitions[0]), (15, Transition::Start));
    }

    #[test]
    fn features_not_on_offer_or_without_version_1_are_refused() {
        for features in [0, OFFERED & !feature::VERSION_1, OFFERED | 1 << 3, OFFERED | 1 << 33] {
            let (status, transitions) = at(&[3, 11, 15], features);
            assert_eq!(status.bits(), 3, "{features:#x}");
            assert_eq!(transitions, [Transition::None; 3]);
        }
    }

    #[test]
    fn features_beyond_64_are_refused() {
        let mut status = DriverStatus::new(OFFERED);
        status.accept(1, 1);
        status.accept(2, 0);
        assert_eq!(status.offered(2), 0);
        status.accept(2, 4);
        status.write(11);
        assert_eq!(status.bits(), 3);
    }

    #[test]
    fn steps_are_not_skipped() {
        for (value, reached) in [(2, 0), (8, 0), (4, 0), (12, 0), (1 | 8, 1), (1 | 4, 1), (3 | 4, 3)] {
            let (status, transitions) = at(&[value], feature::VERSION_1);
            assert_eq!((status.bits(), transitions[0]), (reached, Transition::None), "{value}");
        }
    }

    #[test]
    fn bits_are_cleared_by_reset_only() {
        let (mut status, _) = at(&[15, 1], feature::VERSION_1);
        assert_eq!(status.bits(), 15);
        assert_eq!(status.write(0), Transition::Reset);
        assert_eq!((status.bits(), status.negotiated()), (0, 0));
        assert_eq!(status.write(0), Transition::Reset);
    }

    #[test]
    fn a_failed_driver_must_reset() {
        let (mut status, transitions) = at(&[11, 11 | FAILED, 15], feature::VERSION_1);
        assert_eq!(transitions, [Transition::None; 3]);
        assert_eq!(status.bits(), 11 | FAILED);
        status.write(0);
        assert_eq!(status.bits(), 0);
    }

    #[test]
    fn drivers_cannot_ask_for_a_reset_bit_or_unknown_bits() {
        let (status, transitions) = at(&[DEVICE_NEEDS_RESET, 0x100, 16, 32], 0);
        assert_eq!((status.bits(), transitions), (0, vec![Transition::None; 4]));
    }

    #[test]
    fn a_saved_status_is_one_that_a_driver_reaches() {
        let good = feature::VERSION_1 | 1 << 9;
        for bits in [0, 1, 3, 11, 15, FAILED, 3 | FAILED, 15 | FAILED] {
            let status = DriverStatus::restore(OFFERED, bits, good).unwrap();
            assert_eq!((status.bits(), status.accepted()), (bits, good));
        }
        for bits in [2, 4, 8, 5, 7, 13, 16, 64, 15 | 16, !0] {
            let value = u64::from(bits);
            let refused = StateError::Value { what: "device status", value };
            assert_eq!(DriverStatus::restore(OFFERED, bits, good).err(), Some(refused));
        }
        assert_eq!(DriverStatus::restore(OFFERED, 11, good | 1 << 3).err(), Some(StateError::Features(1 << 3)));
        assert!(DriverStatus::restore(OFFERED, 15, 1 << 9).is_err(), "no VERSION_1");
        assert!(DriverStatus::restore(OFFERED, 3, 1 << 3).is_ok(), "not agreed on yet");
    }

    #[test]
    fn features_are_fixed_by_features_ok() {
        let (mut status, _) = at(&[11], feature::VERSION_1);
        status.accept(0, 1 << 9);
        assert_eq!(status.negotiated(), feature::VERSION_1);
    }
}
