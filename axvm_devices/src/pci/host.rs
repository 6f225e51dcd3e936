//! The PCI host: configuration ports, ECAM and windows, with a bridge and the functions behind it; and the reset control
//! register that lives among the ports.
//!
//! ```text
//!   0xcf8  address  |1| reserved | bus | device | function | register |00|   32-bit access only
//!   0xcf9  reset control, 8-bit access only: bit 2 resets the CPU
//!   0xcfc  data     4 bytes of the addressed function; all ones where there is none
//!   ECAM   + function * 4 KiB + register: the same bytes
//!   window + address: the BAR that the guest has put there
//! ```
//!
//! A machine with virtio-mmio has a PCI host, too, and nothing behind its bridge: Linux looks for a way to configure PCI
//! and calls it fatal (in its log) if there is none. The ACPI tables do not mention it then, so nothing is enumerated.
//!
//! A BAR is seen where memory decoding is on and the whole of it lies in a window and on no other function's: the function
//! with the lower number goes first.
//!
//! A function that is taken away leaves zeroes where its BAR was seen, until another BAR comes there: its driver may wait
//! for the end of a reset, and all ones are no end.
//!
//! Spec: PCI Local Bus 3.0, 3.2.2.3.2 "Software Generation of Configuration Transactions", 6.1
//! "Configuration Space Organization"; PCI Express Base 3.0, 7.2.2; ACPI 6.5, 4.8.3.6 "Reset Register"; Intel ICH10
//! datasheet (319973), "RST_CNT: Reset Control Register".
//! Left out: buses but the first, writes to the bridge's configuration, soft versus hard reset.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde::{Deserialize, Serialize};

use super::config::{ConfigSpace, Identity};
use super::function::{PciFunction, PciFunctionState};
use crate::state::Check;
use crate::{BusDevice, ChipStateError, InsideNames, PlugError, RegisterNames, StopReason, StopSwitch};

/// Bit 31 of the address register: configuration accesses are on.
const ENABLE: u32 = 1 << 31;
/// What the address register keeps: bit 31, and bus, device, function and register of 4 bytes.
const ADDRESS: u32 = ENABLE | 0x00ff_fffc;
/// RST_CPU of the reset control register: the reset happens when this bit is written as 1.
const RESET_CPU: u8 = 1 << 2;

/// Class of a host bridge.
const HOST_BRIDGE: u32 = 0x06_0000;
/// Functions of a bus: 32 devices with 8 each.
const FUNCTIONS: usize = 256;
/// Bytes of a function in the ECAM, as a power of two.
const ECAM_SHIFT: u32 = 12;

/// What the host bridge, function 0, says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bridge {
    /// An Intel 440FX (8086:1237), revision 2: of a PC without anything behind it.
    Conventional,
    /// A generic host bridge with ECAM (1b36:0008).
    Express,
}

impl Bridge {
    fn config(self) -> ConfigSpace {
        let (vendor, device, revision) = match self {
            Bridge::Conventional => (0x8086, 0x1237, 2),
            Bridge::Express => (0x1b36, 0x0008, 0),
        };
        ConfigSpace::new(Identity { vendor, device, class: HOST_BRIDGE, revision, subsystem: (0, 0) })
    }
}

/// All state of a [`PciHost`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PciHostState {
    /// The address register: what the data port shows.
    pub address: u32,
    /// The functions behind the bridge, ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub functions: Vec<PciFunctionState>,
}

/// The host of bus 0. As a [`BusDevice`] it is ports 0xcf8 to 0xcff.
pub struct PciHost {
    /// One register of one vCPU at a time: the guest's own lock orders accesses to it, so that Relaxed is enough.
    address: AtomicU32,
    stop: Arc<StopSwitch>,
    bridge: ConfigSpace,
    functions: [RwLock<Option<Arc<PciFunction>>>; FUNCTIONS],
    space: RwLock<Space>,
}

/// The addresses of bus 0.
#[derive(Default)]
struct Space {
    /// Where BARs may be seen.
    windows: Vec<Range<u64>>,
    /// Where they are seen, ascending.
    placed: Vec<Placed>,
    /// Where those were seen whose functions are gone.
    left: Vec<Placed>,
}

/// A BAR that is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Placed {
    base: u64,
    len: u64,
    devfn: u8,
}

impl Placed {
    fn overlaps(&self, other: &Placed) -> bool {
        self.base < other.base + other.len && other.base < self.base + self.len
    }
}

/// A panic elsewhere leaves nothing half done here.
fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl PciHost {
    /// Length of the port range, in bytes.
    pub const LEN: u64 = 8;

    /// A bridge with nothing behind it yet, whose reset register is wired to `stop`.
    pub fn new(stop: Arc<StopSwitch>, bridge: Bridge) -> PciHost {
        let functions = [const { RwLock::new(None) }; FUNCTIONS];
        let (address, space) = Default::default();
        PciHost { address, stop, bridge: bridge.config(), functions, space }
    }

    /// Puts a function behind the bridge, function 0 of a device before its others; only one that is alone in its device
    /// may come when vCPUs run. `name` is what the user calls it.
    pub fn add(&self, devfn: u8, name: &str, mut function: PciFunction) -> Result<(), PlugError> {
        let taken = |old: &str| PlugError::Overlap { new: name.into(), base: devfn.into(), len: 1, old: old.into() };
        if devfn == 0 {
            return Err(taken("the bridge"));
        }
        let mut place = write(&self.functions[usize::from(devfn)]);
        if place.is_some() {
            return Err(taken("another function"));
        }
        function.set_name(name);
        *place = Some(Arc::new(function));
        drop(place);
        if !devfn.is_multiple_of(8)
            && let Some(first) = self.function(devfn & !7)
        {
            first.set_multi_function();
        }
        Ok(())
    }

    /// Takes a function off the bus: the guest sees none there when this returns, and its doorbells are told. A vCPU may
    /// be in the middle of an access to it, and has a handle of its own until that is over.
    pub fn remove(&self, devfn: u8) -> Option<Arc<PciFunction>> {
        // First, so that all who place functions see both or neither.
        let mut space = write(&self.space);
        let function = write(&self.functions[usize::from(devfn)]).take()?;
        if let Some(at) = space.placed.iter().position(|placed| placed.devfn == devfn) {
            let gone = space.placed.remove(at);
            function.moved(Some(gone.base), None);
            // One of each function: a guest that moves and ejects again and again fills no memory.
            space.left.retain(|left| left.devfn != devfn);
            space.left.push(gone);
        }
        drop(space);
        // What it hid is seen now.
        self.place();
        Some(function)
    }

    /// The ECAM, as the bus sees it.
    pub fn ecam(host: &Arc<PciHost>) -> Arc<dyn BusDevice> {
        Arc::new(Ecam(Arc::clone(host)))
    }

    /// A window of `len` bytes at `base`, in which BARs may be seen, as the bus sees it.
    pub fn window(host: &Arc<PciHost>, base: u64, len: u64) -> Arc<dyn BusDevice> {
        write(&host.space).windows.push(base..base.saturating_add(len));
        Arc::new(Window { host: Arc::clone(host), base })
    }

    /// The host's state.
    pub fn state(&self) -> PciHostState {
        let state = |(devfn, function): (u8, Arc<PciFunction>)| function.state(devfn);
        PciHostState { address: self.address.load(Ordering::Relaxed), functions: self.functions().map(state).collect() }
    }

    /// Makes a fresh host, with fresh functions, what `state` says.
    pub fn restore(&self, state: &PciHostState) -> Result<(), ChipStateError> {
        let check = Check("the PCI host bridge");
        check.bits("address", state.address, ADDRESS)?;
        let (saved, here) = (state.functions.len(), self.functions().count());
        check.that(saved == here, "number of functions", saved, here)?;
        for (state, (devfn, function)) in state.functions.iter().zip(self.functions()) {
            check.that(state.devfn == devfn, "number of a function", state.devfn, devfn)?;
            function.restore(state)?;
        }
        self.address.store(state.address, Ordering::Relaxed);
        self.place();
        Ok(())
    }

    fn function(&self, devfn: u8) -> Option<Arc<PciFunction>> {
        read(&self.functions[usize::from(devfn)]).clone()
    }

    fn functions(&self) -> impl Iterator<Item = (u8, Arc<PciFunction>)> {
        (0..=u8::MAX).filter_map(|devfn| Some((devfn, self.function(devfn)?)))
    }

    fn read_config(&self, devfn: u8, register: usize, data: &mut [u8]) {
        match self.function(devfn) {
            Some(function) => function.read_config(register, data),
            None if devfn == 0 => self.bridge.read(register, data),
            None => data.fill(0xff),
        }
    }

    fn write_config(&self, devfn: u8, register: usize, data: &[u8]) {
        let Some(function) = self.function(devfn) else { return };
        let before = function.wanted();
        function.write_config(register, data);
        if function.wanted() != before {
            self.place();
        }
    }

    /// Lets each function be seen where its guest wants it, if it can be.
    fn place(&self) {
        // Held throughout: whichever of two vCPUs comes last sees what both wrote.
        let mut space = write(&self.space);
        let Space { windows, placed, left } = &mut *space;
        let mut next = Vec::<Placed>::new();
        for (devfn, function) in self.functions() {
            let Some((base, len)) = function.wanted() else { continue };
            let fits = |window: &Range<u64>| window.start <= base && base <= window.end.saturating_sub(len);
            let at = next.partition_point(|other| other.base < base);
            let is_free = at.checked_sub(1).is_none_or(|before| next[before].base + next[before].len <= base)
                && next.get(at).is_none_or(|after| base + len <= after.base);
            if windows.iter().any(fits) && is_free {
                next.insert(at, Placed { base, len, devfn });
            }
        }
        let base_in = |list: &[Placed], devfn| list.iter().find(|other| other.devfn == devfn).map(|other| other.base);
        // First all go, then all come: one may come to where another was.
        for &Placed { base, devfn, .. } in placed.iter().filter(|old| !next.contains(old)) {
            self.function(devfn).inspect(|function| function.moved(Some(base), None));
        }
        for &Placed { base, devfn, .. } in next.iter().filter(|new| base_in(placed, new.devfn) != Some(new.base)) {
            self.function(devfn).inspect(|function| function.moved(None, Some(base)));
        }
        left.retain(|left| !next.iter().any(|placed| placed.overlaps(left)));
        *placed = next;
    }

    /// Whether a BAR was seen at `address` whose function is gone.
    fn was_at(&self, address: u64) -> bool {
        read(&self.space).left.iter().any(|left| (left.base..left.base + left.len).contains(&address))
    }

    /// The function that is seen at `address`, and which byte of its BAR.
    fn at(&self, address: u64) -> Option<(Arc<PciFunction>, u64)> {
        let Placed { base, len, devfn } = {
            let placed = &read(&self.space).placed;
            let before = placed.partition_point(|placed| placed.base <= address).checked_sub(1)?;
            placed[before]
        };
        // The lock ends here: what the function does may take long.
        Some((self.function(devfn)?, address - base)).filter(|(_, offset)| *offset < len)
    }

    /// The function and the register that the data port shows, `at` bytes into it.
    fn addressed(&self, at: u64) -> Option<(u8, usize)> {
        let address = self.address.load(Ordering::Relaxed);
        // Bus 0 is the only one.
        (address & ENABLE != 0 && address & 0x00ff_0000 == 0)
            .then_some(((address >> 8) as u8, (address & 0xfc) as usize + at as usize))
    }
}

impl BusDevice for PciHost {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (offset, data.len()) {
            (0, 4) => data.copy_from_slice(&self.address.load(Ordering::Relaxed).to_le_bytes()),
            (1, 1) => data[0] = 0,
            (4..8, len) if offset as usize + len <= 8 => match self.addressed(offset - 4) {
                Some((devfn, register)) => self.read_config(devfn, register, data),
                None => data.fill(0xff),
            },
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (0, &[a, b, c, d]) => self.address.store(u32::from_le_bytes([a, b, c, d]) & ADDRESS, Ordering::Relaxed),
            (1, &[value]) if value & RESET_CPU != 0 => self.stop.request(StopReason::Reset("reset register")),
            (4..8, data) if offset as usize + data.len() <= 8 => {
                if let Some((devfn, register)) = self.addressed(offset - 4) {
                    self.write_config(devfn, register, data);
                }
            }
            _ => {}
        }
    }

    fn registers(&self) -> RegisterNames {
        |offset, _| match offset {
            0..4 => Some("CONFIG_ADDRESS"),
            4..8 => Some("CONFIG_DATA"),
            _ => None,
        }
    }
}

/// The configuration spaces of bus 0, 4 KiB each.
struct Ecam(Arc<PciHost>);

/// Function and register of an offset in the ECAM; a double word has one register.
fn in_ecam(offset: u64, len: usize) -> Option<(u8, usize)> {
    let register = (offset & ((1 << ECAM_SHIFT) - 1)) as usize;
    (register % 4 + len <= 4).then_some(((offset >> ECAM_SHIFT) as u8, register))
}

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some((devfn, register)) = in_ecam(offset, data.len()) {
            self.0.read_config(devfn, register, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((devfn, register)) = in_ecam(offset, data.len()) {
            self.0.write_config(devfn, register, data);
        }
    }

    fn inside(&self) -> Option<InsideNames> {
        let host = Arc::downgrade(&self.0);
        Some(Arc::new(move |offset, _| {
            let (devfn, register) = in_ecam(offset, 1)?;
            let function = host.upgrade()?.function(devfn);
            Some(match function {
                Some(function) => format!("{} PCI config +{register:#x}", function.name()),
                None if devfn == 0 => format!("PCI host config +{register:#x}"),
                // A guest looks everywhere: one name for all of it.
                None => "PCI config, no function".into(),
            })
        }))
    }
}

/// Addresses where BARs may be seen.
struct Window {
    host: Arc<PciHost>,
    base: u64,
}

impl BusDevice for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.host.at(self.base + offset) {
            Some((function, offset)) => function.read_bar(offset, data),
            None if self.host.was_at(self.base + offset) => data.fill(0),
            None => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((function, offset)) = self.host.at(self.base + offset) {
            function.write_bar(offset, data);
        }
    }

    fn inside(&self) -> Option<InsideNames> {
        let (host, base) = (Arc::downgrade(&self.host), self.base);
        Some(Arc::new(move |offset, write| {
            let (function, offset) = host.upgrade()?.at(base + offset)?;
            Some(function.name_in_bar(offset, write))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axvm_arch::layout::port::RESET_VALUE;

    fn host() -> (PciHost, Arc<StopSwitch>) {
        let stop = Arc::new(StopSwitch::new().unwrap());
        (PciHost::new(stop.clone(), Bridge::Conventional), stop)
    }

    fn config(host: &PciHost, address: u32) -> u32 {
        host.write(0, &address.to_le_bytes());
        let mut data = [0; 4];
        host.read(4, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn the_address_register_can_be_read_back() {
        let (host, _) = host();
        host.write(0, &0x8000_1234u32.to_le_bytes());
        let mut data = [0; 4];
        host.read(0, &mut data);
        assert_eq!(u32::from_le_bytes(data), 0x8000_1234);
    }

    #[test]
    fn a_scan_finds_one_host_bridge() {
        let (host, _) = host();
        assert_eq!(config(&host, 0x8000_0000), 0x1237_8086);
        assert_eq!(config(&host, 0x8000_0008) >> 16, 0x0600);
        assert_eq!(config(&host, 0x8000_0040), 0);
        let others = (1..1 << 16).map(|n| 0x8000_0000 | n << 8);
        assert!(others.into_iter().all(|address| config(&host, address) == u32::MAX));
        assert_eq!(config(&host, 0), u32::MAX, "accesses are off");
    }

    #[test]
    fn narrow_reads_see_their_part_of_the_register() {
        let (host, _) = host();
        host.write(0, &0x8000_0008u32.to_le_bytes());
        let mut class = [0; 2];
        host.read(6, &mut class);
        assert_eq!(class, [0x00, 0x06]);
        let mut beyond = [0xff; 4];
        host.read(6, &mut beyond);
        assert_eq!(beyond, [0xff; 4]);
    }

    #[test]
    fn the_address_is_carried() {
        let (old, _) = host();
        old.write(0, &u32::MAX.to_le_bytes());
        let text = serde_json::to_string(&old.state()).unwrap();
        let (new, _) = host();
        new.restore(&serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!((new.state(), new.state().address), (old.state(), 0x80ff_fffc));
        let error = new.restore(&PciHostState { address: 1, functions: Vec::new() }).unwrap_err().to_string();
        assert!(error.contains("address is 0x1, and must be within 0x80fffffc"), "{error}");
    }

    #[test]
    fn only_a_byte_with_the_cpu_bit_resets() {
        let (host, stop) = host();
        host.write(1, &[0x02]);
        host.write(0, &[0xff; 4]);
        host.write(1, &[RESET_VALUE, 0]);
        assert_eq!(stop.reason(), None);
        host.write(1, &[RESET_VALUE]);
        assert_eq!(stop.reason(), Some(StopReason::Reset("reset register")));
    }
}
