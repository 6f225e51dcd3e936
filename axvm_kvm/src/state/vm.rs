//! A VM's state beside its vCPUs and RAM, taken and given back; and how interrupts on their way are waited for.
//!
//! ```text
//!   chip: write(eventfd) --> KVM's irqfd --> kernel work queue --> PIC, IOAPIC
//!                                            ^ an edge may be here when all threads of ours stand still
//!   flush_irqfds():   for each line   KVM_IRQFD off (waits until the queue is empty), KVM_IRQFD on
//! ```
//!
//! What is written between off and on stays in the eventfd's counter, and switching on looks at it: no edge is lost.
//!
//! Spec: KVM API 4.25, 4.26, 4.29 `KVM_GET_CLOCK`, 4.30 `KVM_SET_CLOCK`, 4.71 to 4.74, 4.75 `KVM_IRQFD`.
//! Left out: the real time that belongs to the clock (`KVM_CLOCK_REALTIME`): a guest does not see that it was away.

use axvm_arch::irqchip::IoapicState;
use kvm_bindings::{self as kvm, kvm_clock_data, kvm_ioapic_state, kvm_irqchip, kvm_pic_state};
use rustix::time::{ClockId, clock_gettime};

use crate::{KvmError, Owner, Vm};

use super::chips::{ioapic_of, kvm_ioapic_for, kvm_pic_for, kvm_pit_for, pic_of, pit_of};
use super::{VmState, damaged, not_restored, not_saved};

const CHIPS_GET: &str = "interrupt controllers (KVM_GET_IRQCHIP)";
const CHIPS_SET: &str = "interrupt controllers (KVM_SET_IRQCHIP)";

impl Vm {
    /// Everything this VM is beside vCPUs and RAM. No vCPU runs, and no chip of ours raises an interrupt any more: those
    /// raised so far are waited for.
    pub fn save(&self) -> Result<VmState, KvmError> {
        self.flush_irqfds()?;
        let [first, second] = [kvm::KVM_IRQCHIP_PIC_MASTER, kvm::KVM_IRQCHIP_PIC_SLAVE].map(|id| self.pic(id));
        let pit = self.fd.get_pit2().map_err(not_saved(Owner::Vm, "the timer (KVM_GET_PIT2)"))?;
        let clock = self.fd.get_clock().map_err(not_saved(Owner::Vm, "the clock (KVM_GET_CLOCK)"))?;
        Ok(VmState {
            x2apic_ids: self.x2apic(),
            pics: [pic_of(&first?), pic_of(&second?)],
            ioapic: ioapic_of(&self.ioapic()?),
            pit: pit_of(&pit, monotonic_ns()),
            clock_ns: clock.clock,
        })
    }

    /// Makes this VM what `state` says, after all of its vCPUs were restored and before any of them runs.
    pub fn restore(&self, state: &VmState) -> Result<(), KvmError> {
        let pins = state.ioapic.pins.len();
        if pins != IoapicState::PINS {
            return Err(damaged(Owner::Vm, "the number of IOAPIC pins", pins, IoapicState::PINS));
        }
        if state.x2apic_ids != self.x2apic() {
            return Err(damaged(Owner::Vm, "x2apic_ids", state.x2apic_ids, self.x2apic()));
        }
        for (id, pic) in (kvm::KVM_IRQCHIP_PIC_MASTER..).zip(&state.pics) {
            let mut chip = kvm_irqchip { chip_id: id, ..Default::default() };
            chip.chip.pic = kvm_pic_for(pic);
            self.fd.set_irqchip(&chip).map_err(not_restored(Owner::Vm, CHIPS_SET))?;
        }
        let mut chip = kvm_irqchip { chip_id: kvm::KVM_IRQCHIP_IOAPIC, ..Default::default() };
        chip.chip.ioapic = kvm_ioapic_for(&state.ioapic);
        self.fd.set_irqchip(&chip).map_err(not_restored(Owner::Vm, CHIPS_SET))?;

        let pit = kvm_pit_for(&state.pit, monotonic_ns());
        self.fd.set_pit2(&pit).map_err(not_restored(Owner::Vm, "the timer (KVM_SET_PIT2)"))?;
        let clock = kvm_clock_data { clock: state.clock_ns, ..Default::default() };
        self.fd.set_clock(&clock).map_err(not_restored(Owner::Vm, "the clock (KVM_SET_CLOCK)"))
    }

    /// Returns when every edge that was raised before is in the interrupt controllers. Costs about half a millisecond a
    /// line; edges that are raised meanwhile are late, not lost.
    pub fn flush_irqfds(&self) -> Result<(), KvmError> {
        self.irqfds().iter().try_for_each(|line| {
            self.disconnect(line.gsi, &line.fd)?;
            self.connect(line.gsi, &line.fd)
        })
    }

    fn pic(&self, id: u32) -> Result<kvm_pic_state, KvmError> {
        let chip = self.irqchip(id)?;
        // SAFETY: KVM filled in the chip with this number, which is a PIC; any bytes are a `kvm_pic_state`.
        Ok(unsafe { chip.chip.pic })
    }

    fn ioapic(&self) -> Result<kvm_ioapic_state, KvmError> {
        let chip = self.irqchip(kvm::KVM_IRQCHIP_IOAPIC)?;
        // SAFETY: KVM filled in the chip with this number, which is the IOAPIC; any bytes are a `kvm_ioapic_state`.
        Ok(unsafe { chip.chip.ioapic })
    }

    fn irqchip(&self, id: u32) -> Result<kvm_irqchip, KvmError> {
        let mut chip = kvm_irqchip { chip_id: id, ..Default::default() };
        self.fd.get_irqchip(&mut chip).map_err(not_saved(Owner::Vm, CHIPS_GET))?;
        Ok(chip)
    }
}

/// The host's monotonic clock in nanoseconds, by which KVM notes when a count was loaded.
fn monotonic_ns() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
}
