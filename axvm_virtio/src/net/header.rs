//! The twelve bytes before each frame in a ring.
//!
//! ```text
//!   0       1          2         4          6            8             10            12
//!   | flags | gso_type | hdr_len | gso_size | csum_start | csum_offset | num_buffers | frame ..
//! ```
//!
//! Without offloads there is one good header each way: all zero from the driver, and all zero but `num_buffers` to it.
//!
//! Spec: virtio 1.2, 5.1.6 "Device Operation".
//! Left out: what the other fields ask for (checksums, segmentation); a frame that asks is dropped.

/// Length of the header, of any driver that speaks virtio 1.0.
pub(super) const HEADER_LEN: usize = 12;
/// Offset of `num_buffers`.
pub(super) const NUM_BUFFERS: usize = 10;

/// A flag: the frame has no checksum yet.
const NEEDS_CSUM: u8 = 1;
/// A type: the frame is one frame.
const GSO_NONE: u8 = 0;

/// What a driver says about a frame to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TransmitHeader {
    flags: u8,
    gso_type: u8,
}

impl TransmitHeader {
    /// Reads a header; `None` if these bytes are shorter than one.
    pub(super) fn parse(bytes: &[u8]) -> Option<TransmitHeader> {
        let (&[flags, gso_type, ..], _) = bytes.split_first_chunk::<HEADER_LEN>()?;
        Some(TransmitHeader { flags, gso_type })
    }

    /// Whether the frame can be sent as it is: no checksum is missing, and it is not to be cut into segments. Other
    /// flags mean nothing to a device (5.1.6.2.2).
    pub(super) fn is_plain(self) -> bool {
        self.flags & NEEDS_CSUM == 0 && self.gso_type == GSO_NONE
    }
}

/// The header of a received frame that lies in `buffers` chains.
pub(super) fn received(buffers: u16) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    bytes[NUM_BUFFERS..].copy_from_slice(&buffers.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_frame_asks_for_nothing() {
        let mut bytes = [0; HEADER_LEN];
        assert!(TransmitHeader::parse(&bytes).unwrap().is_plain());
        (bytes[0], bytes[10]) = (0xfe, 9);
        assert!(TransmitHeader::parse(&bytes).unwrap().is_plain(), "what means nothing to a device");
        for at in [0, 1] {
            let mut bytes = [0; HEADER_LEN];
            bytes[at] = 1;
            assert!(!TransmitHeader::parse(&bytes).unwrap().is_plain());
        }
        assert_eq!(TransmitHeader::parse(&bytes[..11]), None);
    }

    #[test]
    fn a_received_frame_says_its_buffers() {
        assert_eq!(received(0x102), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 1]);
    }
}
