//! The twelve bytes before each frame in a ring, and before each frame of a tap.
//!
//! ```text
//!   0       1          2         4          6            8             10            12
//!   | flags | gso_type | hdr_len | gso_size | csum_start | csum_offset | num_buffers | frame ..
//!
//!   driver --> for_host  --> kernel       only what was agreed on, and only where it can be meant
//!   kernel --> for_guest --> driver       only what was agreed on: the queue of a tap may hold older frames
//! ```
//!
//! The kernel looks at all of it again; here a header that makes no sense costs its frame before it gets there.
//!
//! Spec: virtio 1.2, 5.1.6 "Device Operation". Source: Linux `include/linux/virtio_net.h`.
//! Left out: UDP packets in fragments (UFO), which Linux does not make any more; hash reports.

use axvm_tap::Offloads;

/// Length of the header, of any driver that speaks virtio 1.0.
pub(super) const HEADER_LEN: usize = 12;
/// Offset of `num_buffers`.
pub(super) const NUM_BUFFERS: usize = 10;

/// A flag: the checksum is not computed; it begins at `csum_start` and goes `csum_offset` bytes behind that.
const NEEDS_CSUM: u8 = 1;
/// A flag: the checksum was found right.
const DATA_VALID: u8 = 2;

/// Types of packets that are to be cut into segments of `gso_size` bytes.
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP: u8 = 5;
/// With a TCP type: marks of congestion are in it.
const GSO_ECN: u8 = 0x80;

/// All but `num_buffers`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FrameHeader {
    flags: u8,
    gso_type: u8,
    header_len: u16,
    segment_len: u16,
    checksum_start: u16,
    checksum_offset: u16,
}

impl FrameHeader {
    /// Of a frame that is whole and was found right.
    pub(super) const VALID: FrameHeader = FrameHeader { flags: DATA_VALID, ..FrameHeader::PLAIN };
    /// Of a frame that is whole.
    pub(super) const PLAIN: FrameHeader = FrameHeader {
        flags: 0,
        gso_type: GSO_NONE,
        header_len: 0,
        segment_len: 0,
        checksum_start: 0,
        checksum_offset: 0,
    };

    pub(super) fn parse(bytes: &[u8; HEADER_LEN]) -> FrameHeader {
        let &[flags, gso_type, ref numbers @ ..] = bytes;
        let number = |at: usize| u16::from_le_bytes([numbers[at], numbers[at + 1]]);
        FrameHeader {
            flags,
            gso_type,
            header_len: number(0),
            segment_len: number(2),
            checksum_start: number(4),
            checksum_offset: number(6),
        }
    }

    /// The header of a frame that lies in so many chains.
    pub(super) fn to_bytes(self, buffers: u16) -> [u8; HEADER_LEN] {
        let numbers = [self.header_len, self.segment_len, self.checksum_start, self.checksum_offset, buffers];
        let mut bytes = [0; HEADER_LEN];
        (bytes[0], bytes[1]) = (self.flags, self.gso_type);
        bytes[2..].copy_from_slice(numbers.map(u16::to_le_bytes).as_flattened());
        bytes
    }

    /// What the host gets of a driver's header before a frame of `len` bytes; `None` if it asks for what was not agreed
    /// on, or cannot be meant. Other flags mean nothing to a device (5.1.6.2.2).
    pub(super) fn for_host(self, agreed: Offloads, len: usize) -> Option<FrameHeader> {
        let ends = usize::from(self.checksum_start) + usize::from(self.checksum_offset) + 2;
        let misplaced = self.needs_checksum() && ends > len;
        // A driver that has a packet cut has its checksums computed, too (5.1.6.2.1).
        let uncut = self.is_uncut() && (!self.needs_checksum() || self.segment_len == 0);
        (self.is_agreed(agreed) && !misplaced && !uncut).then(|| self.cleaned(self.flags & NEEDS_CSUM))
    }

    /// What the driver gets of a header of the host; `None` if it was not agreed on.
    pub(super) fn for_guest(self, agreed: Offloads) -> Option<FrameHeader> {
        let flags = if agreed.checksum { self.flags & (NEEDS_CSUM | DATA_VALID) } else { 0 };
        self.is_agreed(agreed).then(|| self.cleaned(flags))
    }

    fn needs_checksum(self) -> bool {
        self.flags & NEEDS_CSUM != 0
    }

    fn is_uncut(self) -> bool {
        self.gso_type != GSO_NONE
    }

    fn is_agreed(self, agreed: Offloads) -> bool {
        let marks = agreed.ecn || self.gso_type & GSO_ECN == 0;
        let cut = match self.gso_type {
            GSO_NONE => true,
            GSO_UDP => agreed.uso,
            kind => match kind & !GSO_ECN {
                GSO_TCPV4 => agreed.tso4 && marks,
                GSO_TCPV6 => agreed.tso6 && marks,
                _ => false,
            },
        };
        cut && (agreed.checksum || !self.needs_checksum() && !self.is_uncut())
    }

    /// The fields that mean something, and nothing of the others.
    fn cleaned(self, flags: u8) -> FrameHeader {
        let if_uncut = |field| if self.is_uncut() { field } else { 0 };
        let if_asked = |field| if self.needs_checksum() { field } else { 0 };
        FrameHeader {
            flags,
            gso_type: self.gso_type,
            header_len: if_uncut(self.header_len),
            segment_len: if_uncut(self.segment_len),
            checksum_start: if_asked(self.checksum_start),
            checksum_offset: if_asked(self.checksum_offset),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TSO4: FrameHeader = FrameHeader {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        header_len: 54,
        segment_len: 1448,
        checksum_start: 34,
        checksum_offset: 16,
    };

    #[test]
    fn a_header_comes_back_from_its_bytes() {
        let bytes = TSO4.to_bytes(0x102);
        assert_eq!(bytes, [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 2, 1]);
        assert_eq!(FrameHeader::parse(&bytes), TSO4);
    }

    #[test]
    fn a_plain_frame_asks_for_nothing_and_what_means_nothing_is_taken_out() {
        let junk = FrameHeader { flags: 0xfe, gso_type: 0, header_len: 9, segment_len: 9, ..TSO4 };
        assert_eq!(junk.for_host(Offloads::NONE, 60), Some(FrameHeader::PLAIN));
        assert_eq!(junk.for_guest(Offloads::NONE), Some(FrameHeader::PLAIN));
        assert_eq!(junk.for_guest(Offloads::ALL), Some(FrameHeader::VALID), "that it was found right");
    }

    #[test]
    fn what_was_not_agreed_on_passes_in_no_direction() {
        let [with_marks, udp] = [GSO_TCPV4 | GSO_ECN, GSO_UDP].map(|gso_type| FrameHeader { gso_type, ..TSO4 });
        let (tso6, checksum) = (FrameHeader { gso_type: GSO_TCPV6, ..TSO4 }, FrameHeader { gso_type: 0, ..TSO4 });
        let all = Offloads::ALL;
        let cases = [
            (checksum, Offloads { checksum: false, ..all }),
            (TSO4, Offloads { tso4: false, ..all }),
            (tso6, Offloads { tso6: false, ..all }),
            (with_marks, Offloads { ecn: false, ..all }),
            (udp, Offloads { uso: false, ..all }),
        ];
        for (header, without) in cases {
            assert_eq!(header.for_host(all, 1514), Some(header.cleaned(NEEDS_CSUM)));
            assert_eq!(header.for_guest(all), Some(header.cleaned(NEEDS_CSUM)));
            for less in [without, Offloads { checksum: false, ..all }, Offloads::NONE] {
                assert_eq!((header.for_host(less, 1514), header.for_guest(less)), (None, None), "{header:?}, {less:?}");
            }
        }
        for gso_type in [2, 3, 6, 0x80, 0x83, 0x85, 0xff] {
            let header = FrameHeader { gso_type, ..TSO4 };
            assert_eq!((header.for_host(all, 1514), header.for_guest(all)), (None, None), "{gso_type:#x}");
        }
    }

    #[test]
    fn what_cannot_be_meant_does_not_reach_the_host() {
        let cannot = [
            FrameHeader { flags: 0, ..TSO4 },
            FrameHeader { segment_len: 0, ..TSO4 },
            FrameHeader { checksum_start: 50, ..TSO4 },
            FrameHeader { checksum_offset: 0xffff, checksum_start: 0xffff, ..TSO4 },
        ];
        for header in cannot {
            assert_eq!(header.for_host(Offloads::ALL, 60), None, "{header:?}");
        }
        assert!(FrameHeader { checksum_start: 42, ..TSO4 }.for_host(Offloads::ALL, 60).is_some(), "just inside");
    }
}
