//! The hotplug controller: it tells the guest's ACPI code which slots have a new device and which are to be emptied, and
//! takes what the guest ejects.
//!
//! ```text
//!   offset 0  up     slots with a device that came               a bit for each device of bus 0; write 1 to clear
//!          4  down   slots that the user wants empty             the same
//!          8  there  slots with a device; write 1 to eject it
//!
//!   user: add    --> there, up --> line (an edge) --> AML: Notify(slot, 1) --> the guest looks at the slot
//!   user: remove --> down -------> line           --> AML: Notify(slot, 3) --> the driver lets go --> eject --> gone
//! ```
//!
//! The registers are AxVM's own: only the AML of its DSDT uses them. Accesses have 32 bits; others do nothing. A guest may
//! eject at any time, what it was asked for or not: a slot that is empty, or that never takes a device, stays as it is.
//!
//! Spec: ACPI 6.5, 5.6.6 "Device Object Notifications", 6.3.3 "_EJx (Eject)", 5.6.9 "Interrupt-signaled ACPI events".

use std::sync::Mutex;

use axvm_sync::lock;
use serde::{Deserialize, Serialize};

use crate::state::Check;
use crate::{BusDevice, ChipStateError, Irq, RegisterNames};

const UP: u64 = 0;
const DOWN: u64 = 4;
const THERE: u64 = 8;

/// The hotplug controller of bus 0.
pub struct PciHotplug {
    state: Mutex<PciHotplugState>,
    line: Irq,
    /// Takes the device of a slot that the guest ejects off the bus.
    on_eject: Box<dyn Fn(u8) + Send + Sync>,
}

/// All state of a [`PciHotplug`]: a bit for each device of the bus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PciHotplugState {
    /// A device came, and the guest has not looked.
    pub up: u32,
    /// The device is to go, and the guest has not looked.
    pub down: u32,
    /// A device is there.
    pub there: u32,
}

impl PciHotplug {
    /// Length of the registers on the bus, in bytes.
    pub const LEN: u64 = 12;

    /// A controller of empty slots that interrupts through `line`.
    pub fn new(line: Irq, on_eject: impl Fn(u8) + Send + Sync + 'static) -> PciHotplug {
        PciHotplug { state: Mutex::default(), line, on_eject: Box::new(on_eject) }
    }

    /// Device number `device` is there from the start: the guest finds it by looking at the bus.
    pub fn is_there(&self, device: u8) {
        lock(&self.state).there |= bit(device);
    }

    /// Device number `device` has come: tells the guest.
    pub fn added(&self, device: u8) {
        let mut state = lock(&self.state);
        state.there |= bit(device);
        state.up |= bit(device);
        // What was asked of the one before is not asked of this one.
        state.down &= !bit(device);
        self.line.raise();
    }

    /// Asks the guest to let go of device number `device`.
    pub fn ask(&self, device: u8) {
        lock(&self.state).down |= bit(device);
        self.line.raise();
    }

    /// Device number `device` has gone without the guest's consent.
    pub fn taken(&self, device: u8) {
        let mut state = lock(&self.state);
        state.there &= !bit(device);
        state.up &= !bit(device);
    }

    /// Whether the guest has yet to be told that device number `device` is to go, or has gone.
    pub fn is_asked(&self, device: u8) -> bool {
        lock(&self.state).down & bit(device) != 0
    }

    /// The chip's state.
    pub fn state(&self) -> PciHotplugState {
        *lock(&self.state)
    }

    /// Makes a chip with the same devices what `state` says.
    pub fn restore(&self, saved: &PciHotplugState) -> Result<(), ChipStateError> {
        let mut state = lock(&self.state);
        let check = Check("the PCI hotplug controller");
        check.that(saved.there == state.there, "set of devices", hex(saved.there), hex(state.there))?;
        check.bits("set of new devices", saved.up, saved.there)?;
        *state = *saved;
        if state.up | state.down != 0 {
            self.line.raise();
        }
        Ok(())
    }
}

fn bit(device: u8) -> u32 {
    1_u32.checked_shl(device.into()).unwrap_or(0)
}

fn hex(bits: u32) -> String {
    format!("{bits:#x}")
}

impl BusDevice for PciHotplug {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let state = lock(&self.state);
        let value = match offset {
            UP => state.up,
            DOWN => state.down,
            THERE => state.there,
            _ => return,
        };
        if let Ok(data) = <&mut [u8; 4]>::try_from(data) {
            *data = value.to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Ok(bytes) = <[u8; 4]>::try_from(data) else { return };
        let value = u32::from_le_bytes(bytes);
        let mut state = lock(&self.state);
        match offset {
            UP => state.up &= !value,
            DOWN => state.down &= !value,
            THERE => {
                let ejected = state.there & value;
                state.there &= !ejected;
                state.up &= !ejected;
                // The lock ends here: to take a device away needs others.
                drop(state);
                (0..u32::BITS as u8).filter(|&device| ejected & bit(device) != 0).for_each(&*self.on_eject);
            }
            _ => {}
        }
    }

    fn registers(&self) -> RegisterNames {
        |offset, _| ["up", "down", "there"].get(usize::try_from(offset / 4).ok()?).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    struct Bench {
        chip: PciHotplug,
        line: Irq,
        gone: Arc<Mutex<Vec<u8>>>,
    }

    impl Bench {
        fn new() -> Bench {
            let (line, gone) = (Irq::new().unwrap(), Arc::<Mutex<Vec<u8>>>::default());
            let told = Arc::clone(&gone);
            let chip = PciHotplug::new(line.try_clone().unwrap(), move |device| lock(&told).push(device));
            Bench { chip, line, gone }
        }

        fn read(&self, offset: u64) -> u32 {
            let mut data = [0xff; 4];
            self.chip.read(offset, &mut data);
            u32::from_le_bytes(data)
        }

        fn write(&self, offset: u64, value: u32) {
            self.chip.write(offset, &value.to_le_bytes());
        }

        fn interrupted(&self) -> bool {
            self.line.event_fd().take()
        }
    }

    #[test]
    fn a_device_that_comes_is_told_once_and_goes_when_it_is_ejected() {
        let bench = Bench::new();
        bench.chip.added(5);
        assert!(bench.interrupted());
        assert_eq!([UP, DOWN, THERE].map(|at| bench.read(at)), [1 << 5, 0, 1 << 5]);
        bench.write(UP, 1 << 5);
        bench.chip.ask(5);
        assert!(bench.interrupted());
        assert_eq!([UP, DOWN, THERE].map(|at| bench.read(at)), [0, 1 << 5, 1 << 5]);
        bench.write(DOWN, 1 << 5);
        bench.write(THERE, 1 << 5);
        assert_eq!(([UP, DOWN, THERE].map(|at| bench.read(at)), bench.interrupted()), ([0; 3], false));
        assert_eq!(*lock(&bench.gone), [5]);
    }

    #[test]
    fn what_was_asked_of_one_device_is_not_asked_of_the_next() {
        let bench = Bench::new();
        bench.chip.added(5);
        bench.chip.taken(5);
        bench.chip.ask(5);
        assert!(bench.chip.is_asked(5) && !bench.chip.is_asked(4));
        bench.chip.added(5);
        assert_eq!([UP, DOWN, THERE].map(|at| bench.read(at)), [1 << 5, 0, 1 << 5]);
    }

    #[test]
    fn an_empty_slot_cannot_be_ejected_nor_one_twice() {
        let bench = Bench::new();
        bench.write(THERE, u32::MAX);
        bench.chip.is_there(1);
        bench.chip.added(31);
        bench.write(THERE, u32::MAX);
        bench.write(THERE, u32::MAX);
        assert_eq!(*lock(&bench.gone), [1, 31]);
        bench.chip.added(40);
        assert_eq!(bench.read(THERE), 0, "no such slot");
    }

    #[test]
    fn other_widths_and_places_do_nothing() {
        let bench = Bench::new();
        bench.chip.added(2);
        for (offset, len) in [(8, 1), (8, 2), (8, 8), (9, 4), (12, 4), (u64::MAX, 4), (8, 0)] {
            bench.chip.write(offset, &[0xff; 8][..len]);
            let mut data = [0x77; 8];
            bench.chip.read(offset, &mut data[..len]);
            assert_eq!(data, [0x77; 8], "{offset} {len}");
        }
        assert_eq!((bench.read(THERE), lock(&bench.gone).len()), (4, 0));
    }

    #[test]
    fn what_the_guest_has_not_seen_is_carried_and_told_again() {
        let old = Bench::new();
        old.chip.is_there(3);
        old.chip.added(4);
        old.chip.ask(3);
        let text = serde_json::to_string(&old.chip.state()).unwrap();
        let new = Bench::new();
        let other = new.chip.restore(&serde_json::from_str(&text).unwrap()).unwrap_err().to_string();
        assert!(other.contains("set of devices is 0x18, and must be 0x0"), "{other}");
        [3, 4].into_iter().for_each(|device| new.chip.is_there(device));
        new.chip.restore(&serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!((new.chip.state(), new.interrupted()), (old.chip.state(), true));
    }
}
