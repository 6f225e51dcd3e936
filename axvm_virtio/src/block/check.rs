//! The check of a request: which rule it breaks, where its answer does not say so.
//!
//! ```text
//!   refused, a flush with a sector, GET_ID --> header, lengths, segments --> rule
//! ```
//!
//! A read or a write that is carried out does not come here: it has broken none.
//!
//! Spec: virtio 1.2, 5.2.6.1 "Driver Requirements: Device Operation".

use axvm_events::rules::Rule;
use axvm_memory::GuestRam;

use super::config::MAX_SEGMENTS;
use super::disk_config::{SECTOR, SERIAL_LEN};
use super::request::{HEADER_LEN, Header, SEGMENT_LEN, Segments, UNMAP, kind};
use crate::check::rules::{BLOCK_CAPACITY, BLOCK_FLUSH, BLOCK_LEN, BLOCK_SEGMENTS, BLOCK_UNMAP};
use crate::queue::Chain;
use crate::signals::FaultReporter;

/// Tells of the rule that a request breaks on a disk of `size` bytes. It has a status byte.
#[cold]
pub(super) fn request(fault: &FaultReporter, ram: &GuestRam, chain: &Chain<'_>, size: u64) {
    let mut source = Vec::new();
    let Some(Header { kind, sector }) = Header::read(ram, chain, &mut source) else { return };
    let data = match kind {
        kind::IN | kind::GET_ID => chain.writable_len - 1,
        _ => chain.readable_len - HEADER_LEN as u64,
    };
    let unmap = || Segments::read(ram, &source).is_some_and(|all| all.iter().any(|segment| segment.flags & UNMAP != 0));
    if let Some(rule) = broken(kind, sector, data, size, unmap) {
        let seen =
            || format!("a request of type {kind} at sector {sector} with {data} bytes, of {} sectors", size / SECTOR);
        fault.broke(rule, seen);
    }
}

fn broken(kind: u32, sector: u64, data: u64, size: u64, unmap: impl FnOnce() -> bool) -> Option<&'static Rule> {
    let fits = sector.checked_mul(SECTOR).and_then(|at| at.checked_add(data)).is_some_and(|end| end <= size);
    match kind {
        kind::IN | kind::OUT if !data.is_multiple_of(SECTOR) => Some(&BLOCK_LEN),
        kind::IN | kind::OUT if !fits => Some(&BLOCK_CAPACITY),
        kind::FLUSH if sector != 0 => Some(&BLOCK_FLUSH),
        kind::GET_ID if data != SERIAL_LEN as u64 => Some(&BLOCK_LEN),
        kind::DISCARD | kind::WRITE_ZEROES if !data.is_multiple_of(SEGMENT_LEN as u64) => Some(&BLOCK_LEN),
        kind::DISCARD | kind::WRITE_ZEROES if data > (MAX_SEGMENTS * SEGMENT_LEN) as u64 => Some(&BLOCK_SEGMENTS),
        kind::DISCARD if unmap() => Some(&BLOCK_UNMAP),
        _ => None,
    }
}
