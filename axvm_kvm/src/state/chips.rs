//! Between the project's words for interrupt controllers and timer, and KVM's structures.
//!
//! ```text
//!   kvm_irqchip { chip_id, union { pic, ioapic } }   <-->   PicState, IoapicState
//!   kvm_pit_state2                                   <-->   PitState (time of load as an age: clocks of hosts differ)
//! ```
//!
//! Spec: KVM API 4.25 `KVM_GET_IRQCHIP`, 4.26 `KVM_SET_IRQCHIP`, 4.72 `KVM_GET_PIT2`. Left out: what the bits mean, see
//! `axvm_arch::irqchip`.

use axvm_arch::irqchip::{IoapicState, PicState, RedirectionEntry};
use axvm_arch::pit::{PitChannel, PitState};
use kvm_bindings::{self as kvm, kvm_ioapic_state, kvm_pic_state, kvm_pit_channel_state, kvm_pit_state2};

pub(super) fn pic_of(pic: &kvm_pic_state) -> PicState {
    PicState {
        levels: pic.last_irr,
        requested: pic.irr,
        masked: pic.imr,
        in_service: pic.isr,
        first_priority: pic.priority_add,
        vector_base: pic.irq_base,
        reads_in_service: pic.read_reg_select != 0,
        polls: pic.poll != 0,
        special_mask: pic.special_mask != 0,
        init_step: pic.init_state,
        auto_eoi: pic.auto_eoi != 0,
        rotates_on_auto_eoi: pic.rotate_on_auto_eoi != 0,
        special_fully_nested: pic.special_fully_nested_mode != 0,
        expects_icw4: pic.init4 != 0,
        level_triggered: pic.elcr,
        level_allowed: pic.elcr_mask,
    }
}

pub(super) fn kvm_pic_for(pic: &PicState) -> kvm_pic_state {
    kvm_pic_state {
        last_irr: pic.levels,
        irr: pic.requested,
        imr: pic.masked,
        isr: pic.in_service,
        priority_add: pic.first_priority,
        irq_base: pic.vector_base,
        read_reg_select: pic.reads_in_service.into(),
        poll: pic.polls.into(),
        special_mask: pic.special_mask.into(),
        init_state: pic.init_step,
        auto_eoi: pic.auto_eoi.into(),
        rotate_on_auto_eoi: pic.rotates_on_auto_eoi.into(),
        special_fully_nested_mode: pic.special_fully_nested.into(),
        init4: pic.expects_icw4.into(),
        elcr: pic.level_triggered,
        elcr_mask: pic.level_allowed,
    }
}

pub(super) fn ioapic_of(ioapic: &kvm_ioapic_state) -> IoapicState {
    // SAFETY: both members of the union are 64 bits, and any bits are a number.
    let bits = |entry: &kvm::kvm_ioapic_state__bindgen_ty_1| unsafe { entry.bits };
    IoapicState {
        base: ioapic.base_address,
        selected: ioapic.ioregsel,
        id: ioapic.id,
        requested: ioapic.irr,
        pins: ioapic.redirtbl.iter().map(|entry| RedirectionEntry::from_bits(bits(entry))).collect(),
    }
}

/// Takes the first 24 pins.
pub(super) fn kvm_ioapic_for(ioapic: &IoapicState) -> kvm_ioapic_state {
    let mut state = kvm_ioapic_state {
        base_address: ioapic.base,
        ioregsel: ioapic.selected,
        id: ioapic.id,
        irr: ioapic.requested,
        ..Default::default()
    };
    for (to, from) in state.redirtbl.iter_mut().zip(&ioapic.pins) {
        to.bits = from.bits();
    }
    state
}

/// The timer, when the host's monotonic clock shows `now`.
pub(super) fn pit_of(pit: &kvm_pit_state2, now: i64) -> PitState {
    let channel = |channel: kvm_pit_channel_state| PitChannel {
        count: channel.count,
        latched_count: channel.latched_count,
        count_latched: channel.count_latched,
        status_latched: channel.status_latched != 0,
        status: channel.status,
        read_step: channel.read_state,
        write_step: channel.write_state,
        write_latch: channel.write_latch,
        access: channel.rw_mode,
        mode: channel.mode,
        bcd: channel.bcd != 0,
        gate: channel.gate != 0,
        loaded_ns_ago: now.saturating_sub(channel.count_load_time),
    };
    PitState {
        channels: pit.channels.map(channel),
        speaker: pit.flags & kvm::KVM_PIT_FLAGS_SPEAKER_DATA_ON != 0,
        hpet_legacy: pit.flags & kvm::KVM_PIT_FLAGS_HPET_LEGACY != 0,
    }
}

/// The same for KVM.
pub(super) fn kvm_pit_for(pit: &PitState, now: i64) -> kvm_pit_state2 {
    let channel = |channel: PitChannel| kvm_pit_channel_state {
        count: channel.count,
        latched_count: channel.latched_count,
        count_latched: channel.count_latched,
        status_latched: channel.status_latched.into(),
        status: channel.status,
        read_state: channel.read_step,
        write_state: channel.write_step,
        write_latch: channel.write_latch,
        rw_mode: channel.access,
        mode: channel.mode,
        bcd: channel.bcd.into(),
        gate: channel.gate.into(),
        count_load_time: now.saturating_sub(channel.loaded_ns_ago),
    };
    let flag = |is: bool, bit: u32| if is { bit } else { 0 };
    kvm_pit_state2 {
        channels: pit.channels.map(channel),
        flags: flag(pit.speaker, kvm::KVM_PIT_FLAGS_SPEAKER_DATA_ON)
            | flag(pit.hpet_legacy, kvm::KVM_PIT_FLAGS_HPET_LEGACY),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_a_pic_has_a_word() {
        // The flags are 0 or 1, all other bytes differ.
        let pic = kvm_pic_state {
            last_irr: 2,
            irr: 3,
            imr: 4,
            isr: 5,
            priority_add: 6,
            irq_base: 7,
            read_reg_select: 1,
            poll: 1,
            special_mask: 1,
            init_state: 8,
            auto_eoi: 1,
            rotate_on_auto_eoi: 1,
            special_fully_nested_mode: 1,
            init4: 1,
            elcr: 9,
            elcr_mask: 10,
        };
        assert_eq!(kvm_pic_for(&pic_of(&pic)), pic);
        assert_eq!(kvm_pic_for(&pic_of(&kvm_pic_state::default())), kvm_pic_state::default());
    }

    #[test]
    fn an_ioapic_comes_back_with_every_pin() {
        let pins = (0..24).map(|pin| RedirectionEntry::from_bits(0x0102_0304_0506_0708 * pin)).collect();
        let ioapic = IoapicState { base: 0xfec0_0000, selected: 0x38, id: 1, requested: 1 << 5, pins };
        assert_eq!(ioapic_of(&kvm_ioapic_for(&ioapic)), ioapic);
    }

    #[test]
    fn a_timer_keeps_the_age_of_its_counts_on_another_clock() {
        let channel =
            kvm_pit_channel_state { count: 0x1_0000, mode: 2, gate: 1, count_load_time: 70, ..Default::default() };
        let flags = kvm::KVM_PIT_FLAGS_SPEAKER_DATA_ON | kvm::KVM_PIT_FLAGS_HPET_LEGACY;
        let pit = kvm_pit_state2 { channels: [channel; 3], flags, ..Default::default() };
        let state = pit_of(&pit, 100);
        assert_eq!((state.channels[2].loaded_ns_ago, state.speaker, state.hpet_legacy), (30, true, true));
        assert_eq!(kvm_pit_for(&state, 100), pit);
        assert_eq!(kvm_pit_for(&state, 1000).channels[0].count_load_time, 970);
    }
}
