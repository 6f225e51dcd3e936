//! Taking a chain apart into a block request.
//!
//! ```text
//!   readable:  | type 4 | reserved 4 | sector 8 | data to write ... |
//!   writable:  | data to read ...                        | status 1 |
//! ```
//!
//! The parts may be cut into descriptors anywhere: the header is the first 16 readable bytes, the
//! status is the last writable byte.
//!
//! Spec: virtio 1.2, 5.2.6 "Device Operation", 2.7.4 "Message Framing".

use axvm_memory::{GuestRam, GuestRange};

use super::config::{MAX_RANGE_SECTORS, MAX_REQUEST, MAX_SEGMENTS};
use super::disk_config::SECTOR;
use crate::queue::Chain;

/// Request types (`VIRTIO_BLK_T_*`).
pub(super) mod kind {
    pub(crate) const IN: u32 = 0;
    pub(crate) const OUT: u32 = 1;
    pub(crate) const FLUSH: u32 = 4;
    pub(crate) const GET_ID: u32 = 8;
    pub(crate) const DISCARD: u32 = 11;
    pub(crate) const WRITE_ZEROES: u32 = 13;
}

/// Status bytes (`VIRTIO_BLK_S_*`).
pub(super) mod status {
    pub(crate) const OK: u8 = 0;
    pub(crate) const IOERR: u8 = 1;
    pub(crate) const UNSUPP: u8 = 2;
}

pub(super) const HEADER_LEN: usize = 16;
/// Length of a segment of a discard or write-zeroes request.
pub(super) const SEGMENT_LEN: usize = 16;
/// Flag of a write-zeroes segment: the space may be given back.
pub(super) const UNMAP: u32 = 1;

/// The fixed start of every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// One of [`kind`], or something unknown.
    pub(super) kind: u32,
    /// Where on the disk, in sectors; meaningless for some types.
    pub(super) sector: u64,
}

impl Header {
    /// Reads the header of `chain` and leaves the rest of the readable part in `rest`. `None` if the
    /// readable part is shorter than a header.
    pub(super) fn read(ram: &GuestRam, chain: &Chain<'_>, rest: &mut Vec<GuestRange>) -> Option<Header> {
        let mut bytes = [0; HEADER_LEN];
        let taken = gather(ram, chain.readable, &mut bytes, rest);
        (taken == HEADER_LEN).then(|| Header { kind: le32(&bytes, 0), sector: le64(&bytes, 8) })
    }
}

/// The last writable byte. `None` without one.
pub(super) fn status_byte(chain: &Chain<'_>) -> Option<GuestRange> {
    let last = chain.writable.last()?;
    Some(last.split_at(last.len().checked_sub(1)?).1)
}

/// Leaves the writable part before the status byte in `data`.
pub(super) fn target(chain: &Chain<'_>, data: &mut Vec<GuestRange>) {
    data.clear();
    if let Some((last, before)) = chain.writable.split_last() {
        data.extend_from_slice(before);
        let (front, _) = last.split_at(last.len().saturating_sub(1));
        data.extend(Some(front).filter(|front| !front.is_empty()));
    }
}

/// A range on the disk in bytes, proven to be whole sectors inside its capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl Extent {
    /// `len` bytes from `sector` of a disk of `size` bytes; not more than one request may carry.
    pub(super) fn new(sector: u64, len: u64, size: u64) -> Option<Extent> {
        let offset = sector.checked_mul(SECTOR)?;
        let fits = len.is_multiple_of(SECTOR) && len <= MAX_REQUEST && offset.checked_add(len)? <= size;
        fits.then_some(Extent { offset, len })
    }
}

/// One range of a discard or write-zeroes request, as the driver wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    sector: u64,
    sectors: u32,
    /// Bit 0 is "unmap", the others are reserved.
    pub(super) flags: u32,
}

impl Segment {
    /// Where it is, if it is on a disk of `size` bytes, and neither empty nor longer than one segment may be.
    pub(super) fn extent(&self, size: u64) -> Option<Extent> {
        let extent = Extent::new(self.sector, u64::from(self.sectors) * SECTOR, size);
        extent.filter(|_| (1..=MAX_RANGE_SECTORS).contains(&self.sectors))
    }
}

/// The segments of one request; read once, since the guest may rewrite them.
pub(super) struct Segments {
    bytes: [u8; SEGMENT_LEN * MAX_SEGMENTS],
    len: usize,
}

impl Segments {
    /// Reads them from `data`: one to [`MAX_SEGMENTS`] whole ones, nothing else.
    pub(super) fn read(ram: &GuestRam, data: &[GuestRange]) -> Option<Segments> {
        let total: u64 = data.iter().map(|range| range.len() as u64).sum();
        let len = usize::try_from(total).ok()?;
        let mut bytes = [0; SEGMENT_LEN * MAX_SEGMENTS];
        if len == 0 || len > bytes.len() || !len.is_multiple_of(SEGMENT_LEN) {
            return None;
        }
        gather(ram, data, &mut bytes, &mut Vec::new());
        Some(Segments { bytes, len })
    }

    /// In the order of the request.
    pub(super) fn iter(&self) -> impl Iterator<Item = Segment> {
        self.bytes[..self.len].chunks_exact(SEGMENT_LEN).map(|bytes| Segment {
            sector: le64(bytes, 0),
            sectors: le32(bytes, 8),
            flags: le32(bytes, 12),
        })
    }
}

/// Copies the start of `ranges` to `bytes` and leaves what follows in `rest`; how many bytes there were.
fn gather(ram: &GuestRam, ranges: &[GuestRange], bytes: &mut [u8], rest: &mut Vec<GuestRange>) -> usize {
    let mut done = 0;
    rest.clear();
    for range in ranges {
        let (head, tail) = range.split_at(bytes.len() - done);
        done += ram.copy_from(&head, &mut bytes[done..]);
        if !tail.is_empty() {
            rest.push(tail);
        }
    }
    done
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    (0..4).fold(0, |value, n| value | u32::from(bytes[at + n]) << (8 * n))
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from(le32(bytes, at)) | u64::from(le32(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_request_holds_up_the_device_for_long() {
        let disk = 1 << 40;
        assert!(Extent::new(7, MAX_REQUEST, disk).is_some());
        assert!(Extent::new(7, MAX_REQUEST + SECTOR, disk).is_none());
    }
}
