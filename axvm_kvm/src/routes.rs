//! The routing table of a VM with MSI-X: lines as in a PC, and a message for each GSI behind them.
//!
//! ```text
//!   GSI 0..24    PIC, IOAPIC           as the VM was made with
//!   GSI 24..     messages              connected with an irqfd first, routed when the guest has written them
//! ```
//!
//! KVM takes the table as a whole. An irqfd on a GSI without a route is connected all the same; its edges go nowhere until
//! there is one.
//!
//! Spec: KVM API 4.52 `KVM_SET_GSI_ROUTING`, 7.7 `KVM_CAP_X2APIC_API`.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Mutex;

use axvm_arch::layout;
use axvm_arch::msi::{MsiMessage, MsiRoute};
use axvm_sync::lock;
use kvm_bindings::{self as kvm, KvmIrqRouting, kvm_irq_routing_entry};
use vmm_sys_util::ioctl::ioctl_with_ref;

use crate::{KvmError, Vm};

/// GSIs that KVM knows, and entries that a table may have.
const GSIS: u32 = 4096;

vmm_sys_util::ioctl_iow_nr!(kvm_set_gsi_routing, kvm::KVMIO, 0x6a, kvm::kvm_irq_routing);

/// The messages of a VM. It is its routing table's only owner from then on.
#[derive(Debug)]
pub struct Routes {
    vm: OwnedFd,
    /// APIC ids have 32 bits.
    wide_ids: bool,
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    /// The lines, then the messages by ascending GSI.
    entries: Vec<kvm_irq_routing_entry>,
    lines: usize,
    /// The next GSI that never had an owner.
    next: u32,
    /// Those whose owners are gone.
    free: Vec<u32>,
}

impl Routes {
    /// The table of `vm`, which has no messages yet.
    pub fn new(vm: &Vm) -> Result<Routes, KvmError> {
        let entries = crate::vm::pc_routing();
        let table = Table { lines: entries.len(), entries, next: layout::gsi::COUNT, free: Vec::new() };
        let (vm, wide_ids) = (vm.descriptor().map_err(KvmError::Routes)?, vm.x2apic());
        Ok(Routes { vm, wide_ids, table: Mutex::new(table) })
    }

    /// A GSI for one message, for `KVM_IRQFD`.
    pub fn allocate(&self) -> Result<u32, KvmError> {
        let mut table = lock(&self.table);
        if let Some(gsi) = table.free.pop() {
            return Ok(gsi);
        }
        if table.next as usize + table.lines >= GSIS as usize {
            return Err(KvmError::Messages(table.next - layout::gsi::COUNT));
        }
        table.next += 1;
        Ok(table.next - 1)
    }

    /// Takes back GSIs whose irqfds are disconnected, and their messages.
    pub fn free(&self, gsis: &[u32]) -> Result<(), KvmError> {
        let none: Vec<_> = gsis.iter().map(|&gsi| MsiRoute { gsi, message: None }).collect();
        let freed = self.set(&none);
        lock(&self.table).free.extend(gsis);
        freed
    }

    /// Changes some messages, in one call.
    pub fn set(&self, routes: &[MsiRoute]) -> Result<(), KvmError> {
        let mut table = lock(&self.table);
        for &MsiRoute { gsi, message } in routes {
            let messages = &table.entries[table.lines..];
            let at = table.lines + messages.partition_point(|entry| entry.gsi < gsi);
            let is_there = table.entries.get(at).is_some_and(|entry| entry.gsi == gsi);
            match message {
                Some(message) if is_there => table.entries[at] = self.entry(gsi, message),
                Some(message) => table.entries.insert(at, self.entry(gsi, message)),
                None if is_there => _ = table.entries.remove(at),
                None => {}
            }
        }
        let whole = KvmIrqRouting::from_entries(&table.entries).expect("GSIs below 4096, each once");
        // SAFETY: the ioctl reads the structure and the entries behind it, whose number it holds; they live through the call.
        match unsafe { ioctl_with_ref(&self.vm, kvm_set_gsi_routing(), whole.as_fam_struct_ref()) } {
            0 => Ok(()),
            _ => Err(KvmError::Routes(io::Error::last_os_error())),
        }
    }

    fn entry(&self, gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
        let [address_lo, address_hi] = match self.wide_ids {
            true => message.address_with_wide_id(),
            false => [message.address as u32, 0],
        };
        let mut entry = kvm_irq_routing_entry { gsi, type_: kvm::KVM_IRQ_ROUTING_MSI, ..Default::default() };
        entry.u.msi = kvm::kvm_irq_routing_msi { address_lo, address_hi, data: message.data, ..Default::default() };
        entry
    }
}
