//! PVH start info: the same answers as the zero page, in Xen's format.
//!
//! ```text
//!   0x00 hvm_start_info, 56 bytes --modlist--> 0x38 one module (the initrd), 32 bytes
//!                                 --memmap---> 0x58 memory map, 24 bytes each (types are those of e820)
//! ```
//!
//! Spec: Xen public header arch-x86/hvm/start_info.h (version 1); Xen "x86/HVM direct boot ABI".

use axvm_arch::layout;

use super::handover::Handover;

/// "xEn3" with the top bit of the E set.
const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
const MODULES_AT: u64 = 56;
const MEMORY_MAP_AT: u64 = MODULES_AT + 32;

/// The bytes for [`layout::PVH_START_INFO`].
pub(super) fn build(handover: &Handover) -> Vec<u8> {
    let base = layout::PVH_START_INFO.0;
    let mut info = Vec::new();
    let modules = handover.initrd.iter().count();
    push32(&mut info, &[MAGIC, VERSION, 0, modules as u32]);
    let module_list = if modules > 0 { base + MODULES_AT } else { 0 };
    let rsdp = handover.rsdp.unwrap_or_default();
    push64(&mut info, &[module_list, handover.command_line.0, rsdp.0, base + MEMORY_MAP_AT]);
    push32(&mut info, &[handover.e820.len() as u32, 0]);

    let initrd = handover.initrd.map_or([0, 0], |initrd| [initrd.gpa.0, initrd.len]);
    push64(&mut info, &initrd);
    push64(&mut info, &[0, 0]);

    for entry in handover.e820 {
        push64(&mut info, &[entry.gpa.0, entry.len]);
        push32(&mut info, &[entry.kind as u32, 0]);
    }
    info
}

fn push32(bytes: &mut Vec<u8>, values: &[u32]) {
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

fn push64(bytes: &mut Vec<u8>, values: &[u64]) {
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}
