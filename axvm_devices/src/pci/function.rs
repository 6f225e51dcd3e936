//! One function: its configuration space, its BAR, its MSI-X.
//!
//! ```text
//!   BAR 0:  registers of the device | MSI-X table | pending bits
//!   configuration space, offset of `window` + 4: bar, offset, length; + 16: those bytes of the BAR
//! ```
//!
//! A function knows no address: the host tells it where its BAR has come to lie, and it tells its doorbells.
//!
//! Spec: PCI Local Bus 3.0, 6.1, 6.8.2; virtio 1.2, 4.1.4.9 "PCI configuration access capability" (the window).
//! Left out: function level reset.

use std::sync::{Arc, Mutex};

use axvm_arch::HexBytes;
use axvm_sync::lock;
use serde::{Deserialize, Serialize};

use super::config::{Capability, ConfigSpace};
use super::msix::{self, ENTRY_LEN, Msix, MsixState};
use crate::state::Check;
use crate::{BusDevice, ChipStateError};

/// Capability: MSI-X.
const MSIX: u8 = 0x11;
/// Bytes of the window's control behind its beginning, and where its data are.
const WINDOW_BAR: usize = 4;
const WINDOW_OFFSET: usize = 8;
const WINDOW_LEN: usize = 12;
const WINDOW_DATA: usize = 16;

/// What a function is made of.
pub struct PciFunctionParts {
    /// Its configuration space, with its BAR and without MSI-X.
    pub config: ConfigSpace,
    /// Length of the BAR: a power of two.
    pub bar_len: u64,
    /// Where a window into the BAR is in the configuration space, if there is one.
    pub window: Option<usize>,
    /// The registers at the beginning of the BAR.
    pub registers: Arc<dyn BusDevice>,
    /// Its interrupts.
    pub msix: Arc<Msix>,
    /// Where in the BAR their table begins; the registers end there.
    pub msix_table: u64,
    /// Where in the BAR the pending bits begin.
    pub msix_pending: u64,
    /// Told when the BAR has moved, or is not to be seen: from where, to where.
    pub on_move: Box<dyn Fn(Option<u64>, Option<u64>) + Send + Sync>,
}

/// A function of the bus.
pub struct PciFunction {
    name: String,
    config: Mutex<ConfigSpace>,
    /// Where the capability of MSI-X is.
    msix_at: usize,
    parts: Parts,
}

/// What does not change.
struct Parts {
    bar_len: u64,
    window: Option<usize>,
    registers: Arc<dyn BusDevice>,
    msix: Arc<Msix>,
    msix_table: u64,
    msix_pending: u64,
    on_move: Box<dyn Fn(Option<u64>, Option<u64>) + Send + Sync>,
}

/// Everything that a guest has told a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PciFunctionState {
    /// Device (5 bits) and function (3 bits).
    pub devfn: u8,
    /// The configuration space.
    pub config: HexBytes,
    /// Table and pending bits.
    pub msix: MsixState,
}

impl PciFunction {
    /// A function at power-on.
    pub fn new(parts: PciFunctionParts) -> PciFunction {
        let PciFunctionParts { mut config, bar_len, window, registers, msix, msix_table, msix_pending, on_move } =
            parts;
        let control = msix.len().saturating_sub(1);
        // The BAR's number is in the low bits of an offset: 0.
        let body = [control.to_le_bytes().as_slice(), &dword(msix_table), &dword(msix_pending)].concat();
        let writable = msix::CONTROL_WRITABLE.to_le_bytes().into();
        let msix_at = config.add(&Capability { id: MSIX, body, writable });
        let parts = Parts { bar_len, window, registers, msix, msix_table, msix_pending, on_move };
        PciFunction { name: String::new(), config: Mutex::new(config), msix_at, parts }
    }

    /// The guest reads the configuration space.
    pub fn read_config(&self, offset: usize, data: &mut [u8]) {
        lock(&self.config).read(offset, data);
        if let Some((at, len)) = self.through_window(offset, data.len()) {
            let mut word = [0; 4];
            self.read_bar(at, &mut word[..len]);
            let skip = offset - self.parts.window.unwrap_or(0) - WINDOW_DATA;
            data.iter_mut().zip(&word[skip..]).for_each(|(to, from)| *to = *from);
        }
    }

    /// The guest writes the configuration space.
    pub fn write_config(&self, offset: usize, data: &[u8]) {
        let mut config = lock(&self.config);
        config.write(offset, data);
        self.parts.msix.set_control(u16::from_le_bytes(config.field(self.msix_at + 2)));
        drop(config);
        if let Some((at, len)) = self.through_window(offset, data.len())
            && data.len() >= len
        {
            self.write_bar(at, &data[..len]);
        }
    }

    /// What an access to the configuration space reaches in the BAR: where, and how many bytes.
    fn through_window(&self, offset: usize, len: usize) -> Option<(u64, usize)> {
        let window = self.parts.window?;
        let data = window + WINDOW_DATA..window + WINDOW_DATA + 4;
        if !data.contains(&offset) || offset + len > data.end {
            return None;
        }
        let config = lock(&self.config);
        let [bar] = config.field(window + WINDOW_BAR);
        let at = u32::from_le_bytes(config.field(window + WINDOW_OFFSET));
        let len = u32::from_le_bytes(config.field(window + WINDOW_LEN));
        let is_access =
            bar == 0 && matches!(len, 1 | 2 | 4) && at.is_multiple_of(len) && u64::from(at) < self.parts.bar_len;
        is_access.then_some((at.into(), len as usize))
    }

    /// The guest reads the BAR.
    pub fn read_bar(&self, offset: u64, data: &mut [u8]) {
        let Parts { msix, registers, msix_table, msix_pending, .. } = &self.parts;
        data.fill(0);
        match offset {
            at if at >= *msix_pending => msix.read_pending(at - msix_pending, data),
            at if at >= *msix_table => msix.read_table(at - msix_table, data),
            at => registers.read(at, data),
        }
    }

    /// The guest writes the BAR.
    pub fn write_bar(&self, offset: u64, data: &[u8]) {
        let Parts { msix, registers, msix_table, msix_pending, .. } = &self.parts;
        match offset {
            at if at >= *msix_pending => {}
            at if at >= *msix_table => msix.write_table(at - msix_table, data),
            at => registers.write(at, data),
        }
    }

    /// Where the guest wants the BAR, and its length, if it wants to see it.
    pub fn wanted(&self) -> Option<(u64, u64)> {
        lock(&self.config).bar().map(|base| (base, self.parts.bar_len))
    }

    /// The BAR has come to lie elsewhere.
    pub(super) fn moved(&self, from: Option<u64>, to: Option<u64>) {
        (self.parts.on_move)(from, to);
    }

    /// Other functions share the slot.
    /// What the user calls it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn set_name(&mut self, name: &str) {
        self.name = name.into();
    }

    /// How a register of the BAR is called.
    pub(super) fn name_in_bar(&self, offset: u64, write: bool) -> String {
        let Parts { registers, msix_table, msix_pending, .. } = &self.parts;
        let register = match offset {
            at if at >= *msix_pending => Some("MSI-X pending"),
            at if at >= *msix_table => Some("MSI-X table"),
            at => registers.registers()(at, write),
        };
        match register {
            Some(register) => format!("{} {register}", self.name),
            None => format!("{} +{offset:#x}", self.name),
        }
    }

    pub(super) fn set_multi_function(&self) {
        lock(&self.config).set_multi_function();
    }

    pub(super) fn state(&self, devfn: u8) -> PciFunctionState {
        PciFunctionState { devfn, config: lock(&self.config).state(), msix: self.parts.msix.state() }
    }

    pub(super) fn restore(&self, state: &PciFunctionState) -> Result<(), ChipStateError> {
        let mut config = lock(&self.config);
        config.restore(&state.config)?;
        self.parts.msix.restore(&state.msix, u16::from_le_bytes(config.field(self.msix_at + 2)))
    }

    /// Whether the parts have room: what the maker of a function promises.
    pub fn check(&self) -> Result<(), ChipStateError> {
        let Parts { msix, msix_table, msix_pending, bar_len, .. } = &self.parts;
        let room = (msix_pending - msix_table) / ENTRY_LEN;
        Check("a PCI function").that(u64::from(msix.len()) <= room && msix_pending < bar_len, "MSI-X", msix.len(), room)
    }
}

/// An offset in a capability.
fn dword(offset: u64) -> [u8; 4] {
    (offset as u32).to_le_bytes()
}
