//! The check of a frame that a driver sends: what its header asks for was agreed on, and can be meant.
//!
//! ```text
//!   | flags | gso_type | hdr_len | gso_size | csum_start | csum_offset | num_buffers | frame ..
//!     |       |                    |          '-- in the frame --'       '-- 0
//!     |       '-- negotiated; with it: NEEDS_CSUM, gso_size
//!     '-- NEEDS_CSUM if negotiated; not DATA_VALID, RSC_INFO
//! ```
//!
//! Spec: virtio 1.2, 5.1.6.2.1 "Driver Requirements: Packet Transmission".

use std::fmt;

use axvm_events::rules::Rule;
use axvm_memory::GuestRam;

use super::Chain;
use crate::check::rules;

const HEADER_LEN: usize = 12;
const CSUM: u64 = 1 << 0;
/// A type of gso_type, and the feature that allows it: TCP, UDP in fragments, UDP in segments.
const SEGMENTS: [(u8, u64); 4] = [(1, 1 << 11), (4, 1 << 12), (3, 1 << 14), (5, 1 << 56)];
const ECN: u8 = 0x80;
const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const RSC_INFO: u8 = 4;

/// Looks at one; a chain that is too short for a header has no frame.
pub(super) fn sent(
    ram: &GuestRam,
    chain: &Chain<'_>,
    features: u64,
    broke: &mut dyn FnMut(&'static Rule, fmt::Arguments<'_>),
) {
    let mut header = [0; HEADER_LEN];
    let mut filled = 0;
    for range in chain.readable {
        filled += ram.copy_from(range, &mut header[filled..]);
    }
    if filled < HEADER_LEN {
        return;
    }
    let number = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let ([flags, kind, ..], segment, buffers) = (header, number(4), number(10));
    if buffers != 0 {
        broke(&rules::NET_NUM_BUFFERS, format_args!("num_buffers is {buffers}"));
    }
    let has_csum = features & CSUM != 0;
    if flags & if has_csum { DATA_VALID | RSC_INFO } else { !0 } != 0 {
        broke(&rules::NET_FLAGS, format_args!("flags are {flags:#x}, with CSUM: {has_csum}"));
    }
    let is_allowed = |(known, feature)| kind & !ECN == known && features & feature != 0;
    if kind != 0 && !SEGMENTS.into_iter().any(is_allowed) {
        broke(&rules::NET_SEGMENTS, format_args!("gso_type is {kind:#x}, and features are {features:#x}"));
    } else if kind != 0 && (flags & NEEDS_CSUM == 0 || segment == 0) {
        broke(&rules::NET_SEGMENTS, format_args!("gso_type is {kind:#x}, flags {flags:#x}, gso_size {segment}"));
    }
    let (start, offset, len) = (number(6), number(8), chain.readable_len.saturating_sub(HEADER_LEN as u64));
    if has_csum && flags & NEEDS_CSUM != 0 && u64::from(start) + u64::from(offset) + 2 > len {
        broke(
            &rules::NET_CHECKSUM,
            format_args!("csum_start {start}, csum_offset {offset}, in a frame of {len} bytes"),
        );
    }
}
