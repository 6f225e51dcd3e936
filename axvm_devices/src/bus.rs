//! The bus: which chip answers at which address.
//!
//! ```text
//!  BusBuilder::plug(range, name, chip) ...  --finish-->  Bus (frozen, sorted, no lock)
//!                                                         | read/write(address)   name_at(address)
//!                                                         v                              v
//!                                                       chip.read/write(offset)        "vda"
//! ```
//!
//! One type serves both I/O ports and MMIO. An address where no chip is reads as all ones, as on a PC, and swallows
//! writes.
//!
//! No specification: addresses and names come from the machine's plan. Left out: chips that come or go while it runs.

use std::sync::Arc;
use thiserror::Error;

/// A chip on a bus. It knows offsets into its own registers, never its address.
///
/// `&self`: two vCPUs may arrive at once. `data.len()` is the width of the access in bytes: 1, 2,
/// 4 or 8. A chip must accept any offset and width; it ignores what it does not have.
pub trait BusDevice: Send + Sync {
    /// The guest reads `data.len()` bytes at `offset`. `data` arrives filled with 0xff.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// The guest writes `data` at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
    /// How its registers are called, for people.
    fn registers(&self) -> RegisterNames {
        |_, _| None
    }
    /// The same for a part that others show through: how they and their registers are called.
    fn inside(&self) -> Option<InsideNames> {
        None
    }
}

/// Name of the register at an offset, as the datasheet has it; it may be another one for writes (`true`).
pub type RegisterNames = fn(u64, bool) -> Option<&'static str>;

/// Name of what is seen at an offset now: part and register.
pub type InsideNames = Arc<dyn Fn(u64, bool) -> Option<String> + Send + Sync>;

/// A new slot does not fit on the bus.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PlugError {
    /// Two chips claim an address.
    #[error("Cannot plug {new} at {base:#x} ({len:#x} bytes): {old} is already there")]
    Overlap {
        /// Name of the chip that came late.
        new: Arc<str>,
        /// Its first address.
        base: u64,
        /// Its length in bytes.
        len: u64,
        /// Name of the chip that was there.
        old: Arc<str>,
    },
    /// The range is empty or wraps around.
    #[error("Cannot plug {new} at {base:#x}: {len:#x} bytes is no range")]
    Range {
        /// Name of the chip.
        new: Arc<str>,
        /// Its first address.
        base: u64,
        /// Its length in bytes.
        len: u64,
    },
}

struct Slot {
    base: u64,
    /// Inclusive, so a range may end at the top of the address space.
    last: u64,
    name: Arc<str>,
    chip: Arc<dyn BusDevice>,
}

/// Collects chips while the machine is being built.
#[derive(Default)]
pub struct BusBuilder {
    slots: Vec<Slot>,
}

impl BusBuilder {
    /// Gives the `len` addresses from `base` to `chip`; refuses an overlap. `name` is what the user calls the part.
    pub fn plug(
        &mut self,
        base: u64,
        len: u64,
        name: impl Into<Arc<str>>,
        chip: Arc<dyn BusDevice>,
    ) -> Result<(), PlugError> {
        let name = name.into();
        let last = len.checked_sub(1).and_then(|span| base.checked_add(span));
        let Some(last) = last else { return Err(PlugError::Range { new: name, base, len }) };
        let place = self.slots.partition_point(|slot| slot.base <= base);
        let before = place.checked_sub(1).map(|n| &self.slots[n]).filter(|slot| slot.last >= base);
        let after = self.slots.get(place).filter(|slot| slot.base <= last);
        if let Some(old) = before.or(after) {
            return Err(PlugError::Overlap { new: name, base, len, old: old.name.clone() });
        }
        self.slots.insert(place, Slot { base, last, name, chip });
        Ok(())
    }

    /// Freezes the bus.
    pub fn finish(self) -> Bus {
        Bus { slots: self.slots.into() }
    }
}

/// A frozen bus: sorted slots, looked up without a lock.
pub struct Bus {
    slots: Box<[Slot]>,
}

impl Bus {
    /// Routes a read; `data` is all ones if no chip answers. Returns whether one did.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        data.fill(0xff);
        match self.find(address) {
            Some(slot) => {
                slot.chip.read(address - slot.base, data);
                true
            }
            None => false,
        }
    }

    /// Routes a write. Returns whether a chip answered.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        match self.find(address) {
            Some(slot) => {
                slot.chip.write(address - slot.base, data);
                true
            }
            None => false,
        }
    }

    /// Which chip sits where: (first address, last address, name), in order.
    pub fn slots(&self) -> impl Iterator<Item = (u64, u64, &str)> {
        self.slots.iter().map(|slot| (slot.base, slot.last, &*slot.name))
    }

    /// Name of the chip that answers at `address`, if one does.
    pub fn name_at(&self, address: u64) -> Option<&str> {
        self.find(address).map(|slot| &*slot.name)
    }

    /// How parts and registers are called; this outlives the bus.
    pub fn names(&self) -> BusNames {
        let named = |slot: &Slot| NamedSlot {
            base: slot.base,
            last: slot.last,
            part: Arc::clone(&slot.name),
            registers: slot.chip.registers(),
            inside: slot.chip.inside(),
        };
        BusNames(self.slots.iter().map(named).collect())
    }

    fn find(&self, address: u64) -> Option<&Slot> {
        let after = self.slots.partition_point(|slot| slot.base <= address);
        let slot = &self.slots[after.checked_sub(1)?];
        (address <= slot.last).then_some(slot)
    }
}

/// The names on a bus, sorted.
pub struct BusNames(Box<[NamedSlot]>);

struct NamedSlot {
    base: u64,
    last: u64,
    part: Arc<str>,
    registers: RegisterNames,
    inside: Option<InsideNames>,
}

impl BusNames {
    /// What the guest accesses at `address`: part and register, or how far into the part it is.
    pub fn name(&self, address: u64, write: bool) -> Option<String> {
        let after = self.0.partition_point(|slot| slot.base <= address);
        let NamedSlot { base, last, part, registers, inside } = &self.0[after.checked_sub(1)?];
        let offset = (address <= *last).then(|| address - base)?;
        if let Some(name) = inside.as_ref().and_then(|inside| inside(offset, write)) {
            return Some(name);
        }
        Some(match registers(offset, write) {
            Some("") => part.to_string(),
            Some(register) => format!("{part} {register}"),
            None => format!("{part} +{offset:#x}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    fn chip() -> Arc<Recorder> {
        Arc::default()
    }

    #[test]
    fn accesses_reach_the_chip_as_offsets() {
        let (low, high) = (chip(), chip());
        let mut builder = BusBuilder::default();
        builder.plug(0x200, 0x10, "high", high.clone()).unwrap();
        builder.plug(0x100, 0x10, "low", low.clone()).unwrap();
        let bus = builder.finish();

        assert!(bus.write(0x10f, &[1]));
        assert!(bus.write(0x200, &[2, 3]));
        assert_eq!(*low.0.lock().unwrap(), [(0xf, vec![1])]);
        assert_eq!(*high.0.lock().unwrap(), [(0, vec![2, 3])]);
        let mut data = [0; 2];
        assert!(bus.read(0x20f, &mut data));
        assert_eq!(data, [0xf, 0xf]);
    }

    #[test]
    fn an_address_without_a_chip_reads_as_all_ones() {
        let mut builder = BusBuilder::default();
        builder.plug(0x100, 0x10, "chip", chip()).unwrap();
        let bus = builder.finish();
        for address in [0, 0xff, 0x110, u64::MAX] {
            let mut data = [0; 4];
            assert!(!bus.read(address, &mut data), "{address:#x}");
            assert_eq!(data, [0xff; 4]);
            assert!(!bus.write(address, &data));
        }
    }

    #[test]
    fn overlaps_are_refused_with_both_names() {
        let mut builder = BusBuilder::default();
        builder.plug(0x100, 0x10, "old", chip()).unwrap();
        for (base, len) in [(0x100, 0x10), (0xff, 2), (0x10f, 1), (0x0, 0x1000)] {
            let error = builder.plug(base, len, "new", chip()).unwrap_err();
            assert_eq!(error, PlugError::Overlap { new: "new".into(), base, len, old: "old".into() });
        }
        builder.plug(0xff, 1, "below", chip()).unwrap();
        builder.plug(0x110, 1, "above", chip()).unwrap();
    }

    #[test]
    fn each_address_has_the_name_of_its_chip() {
        let mut builder = BusBuilder::default();
        for n in 0..2 {
            builder.plug(0x100 + n * 0x10, 0x8, format!("vd{}", ['a', 'b'][n as usize]), chip()).unwrap();
        }
        let bus = builder.finish();
        let names = [0xff, 0x100, 0x107, 0x108, 0x110, 0x118].map(|address| bus.name_at(address));
        assert_eq!(names, [None, Some("vda"), Some("vda"), None, Some("vdb"), None]);
        assert!(bus.slots().eq([(0x100, 0x107, "vda"), (0x110, 0x117, "vdb")]));
    }

    #[test]
    fn each_register_has_the_name_that_its_chip_gives_it() {
        struct Named;
        impl BusDevice for Named {
            fn read(&self, _: u64, _: &mut [u8]) {}
            fn write(&self, _: u64, _: &[u8]) {}
            fn registers(&self) -> RegisterNames {
                |offset, write| match (offset, write) {
                    (0, true) => Some("THR"),
                    (0, false) => Some("RBR"),
                    (1, _) => Some(""),
                    _ => None,
                }
            }
        }
        let mut builder = BusBuilder::default();
        builder.plug(0x100, 4, "COM1", Arc::new(Named)).unwrap();
        let names = builder.finish().names();
        let name = |address, write| names.name(address, write);
        assert_eq!(name(0x100, true).unwrap(), "COM1 THR");
        assert_eq!(name(0x100, false).unwrap(), "COM1 RBR");
        assert_eq!(name(0x101, false).unwrap(), "COM1");
        assert_eq!(name(0x103, false).unwrap(), "COM1 +0x3");
        assert_eq!([0, 0xff, 0x104, u64::MAX].map(|address| name(address, true)), [const { None }; 4]);
    }

    #[test]
    fn empty_and_wrapping_ranges_are_refused() {
        let mut builder = BusBuilder::default();
        assert!(builder.plug(0, 0, "empty", chip()).is_err());
        assert!(builder.plug(u64::MAX, 2, "wraps", chip()).is_err());
        builder.plug(u64::MAX, 1, "top", chip()).unwrap();
    }
}
