//! What the block device says about itself: feature bits and configuration space.
//!
//! ```text
//!    0  capacity (8)          24  topology (8)                 48  max_write_zeroes_sectors (4)
//!    8  size_max (4)          32  writeback (1), writable      52  max_write_zeroes_seg (4)
//!   12  seg_max (4)           34  num_queues (2)               56  write_zeroes_may_unmap (1)
//!   16  geometry (4)          36  max_discard_sectors (4)      60  the end
//!   20  blk_size (4)          40  max_discard_seg (4)
//!                             44  discard_sector_alignment (4)
//! ```
//!
//! Spec: virtio 1.2, 5.2.3 "Feature bits", 5.2.4 "Device configuration layout".
//! Left out: size_max and geometry stay zero, their features are not offered.

use super::disk_config::SECTOR;
use super::image::{DiskImage, HOST_PAGE};

/// Feature bits, as masks.
pub(super) mod feature {
    pub(crate) const SEG_MAX: u64 = 1 << 2;
    pub(crate) const RO: u64 = 1 << 5;
    pub(crate) const BLK_SIZE: u64 = 1 << 6;
    pub(crate) const FLUSH: u64 = 1 << 9;
    pub(crate) const TOPOLOGY: u64 = 1 << 10;
    pub(crate) const CONFIG_WCE: u64 = 1 << 11;
    pub(crate) const MQ: u64 = 1 << 12;
    pub(crate) const DISCARD: u64 = 1 << 13;
    pub(crate) const WRITE_ZEROES: u64 = 1 << 14;
}

/// Most bytes that one request may carry: every descriptor may name all of guest RAM, and other requests, and a stop,
/// wait. Far more than any driver sends.
pub(super) const MAX_REQUEST: u64 = 1 << 30;
/// Most sectors in one segment of a discard or write-zeroes request: 64 MiB, so that a host which has to
/// write the zeroes answers in time.
pub(super) const MAX_RANGE_SECTORS: u32 = 64 << 11;
/// Most segments in such a request.
pub(super) const MAX_SEGMENTS: usize = 32;

/// Offset of the one writable field.
pub(super) const WRITEBACK: u64 = 32;
const NUM_QUEUES: usize = 34;
const LEN: usize = 60;

/// The configuration space, but for the capacity and the writeback field.
pub(super) struct BlockConfig {
    read_only: bool,
    /// The driver may use more than one queue.
    several: bool,
    bytes: [u8; LEN],
}

impl BlockConfig {
    /// Describes `image` behind queues of `queue_size` entries.
    pub(super) fn new(image: &DiskImage, queue_size: u16) -> BlockConfig {
        let mut bytes = [0; LEN];
        let mut put = |offset: usize, value: &[u8]| bytes[offset..offset + value.len()].copy_from_slice(value);
        let block = image.block_size();
        // A header and a status byte take two of the descriptors.
        put(12, &u32::from(queue_size - 2).to_le_bytes());
        put(20, &block.to_le_bytes());
        // Topology: logical blocks in a physical one as a power of two; in the best small transfer.
        let ratio = HOST_PAGE / block;
        put(24, &[ratio.ilog2() as u8]);
        put(26, &(ratio as u16).to_le_bytes());
        put(36, &MAX_RANGE_SECTORS.to_le_bytes());
        put(40, &(MAX_SEGMENTS as u32).to_le_bytes());
        put(44, &(HOST_PAGE / SECTOR as u32).to_le_bytes());
        put(48, &MAX_RANGE_SECTORS.to_le_bytes());
        put(52, &(MAX_SEGMENTS as u32).to_le_bytes());
        put(56, &[1]);
        BlockConfig { read_only: image.read_only(), several: false, bytes }
    }

    /// The driver may use so many queues.
    pub(super) fn set_queues(&mut self, count: u16) {
        self.several = count > 1;
        self.bytes[NUM_QUEUES..NUM_QUEUES + 2].copy_from_slice(&count.to_le_bytes());
    }

    /// The feature bits that go with it.
    pub(super) fn features(&self) -> u64 {
        use feature::*;
        let always = SEG_MAX | BLK_SIZE | FLUSH | TOPOLOGY | CONFIG_WCE;
        let several = if self.several { MQ } else { 0 };
        always | several | if self.read_only { RO } else { DISCARD | WRITE_ZEROES }
    }

    /// Reads, of a disk of `size` bytes; past the end `data` stays as it is.
    pub(super) fn read(&self, size: u64, writeback: bool, offset: u64, data: &mut [u8]) {
        let mut bytes = self.bytes;
        bytes[..8].copy_from_slice(&(size / SECTOR).to_le_bytes());
        bytes[WRITEBACK as usize] = writeback.into();
        let start = usize::try_from(offset).unwrap_or(LEN).min(LEN);
        let source = &bytes[start..];
        let count = source.len().min(data.len());
        data[..count].copy_from_slice(&source[..count]);
    }
}
