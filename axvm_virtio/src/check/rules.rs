//! The rules that a driver is held to, as data: one line each, with the section that says so.
//!
//! ```text
//!   registers (check/registers) --\
//!   claims, status (transport)  ----> rule --> Events::broke --> told once, counted
//!   rings (queue/check)         --/
//!   devices' own faults (words) -/
//! ```
//!
//! Spec: virtio 1.2.
//! Left out: what only the driver can see (which fields it reads twice, what it does with used buffers).

use axvm_events::rules::{Level, Rule};

/// The specification that is cited.
const SOURCE: &str = "virtio 1.2";

/// Declares the rules, and the list of all of them.
macro_rules! rules {
    ($($name:ident $id:literal $level:ident $section:literal $title:literal : $clause:literal;)*) => {
        $(#[doc = $clause] pub static $name: Rule = Rule {
            id: $id, level: Level::$level, source: SOURCE, section: $section, title: $title, clause: $clause,
        };)*
        /// All rules, in the order of the standard.
        pub static ALL: &[&Rule] = &[$(&$name),*];
    };
}

rules! {
    STATUS_CLEARED "status-cleared" Must "2.1.1" "Device Status Field":
        "no bit of the status is taken back, but by a reset";
    FEATURES_NOT_OFFERED "features-not-offered" Must "2.2.1" "Feature Bits":
        "only features that the device offers are accepted";
    KICK_NO_QUEUE "kick-no-queue" Text "2.3" "Notifications":
        "a notification names a queue that there is";
    QUEUE_MISALIGNED "queue-misplaced" Must "2.7" "Split Virtqueues":
        "descriptor table, available and used ring lie in RAM, aligned to 16, 2 and 4 bytes";
    QUEUE_SIZE "queue-size" Text "2.7" "Split Virtqueues":
        "a queue has a power of two of entries, 32768 at most";
    CHAIN_ORDER "chain-order" Must "2.7.4.2" "Message Framing":
        "buffers for the device to read come before those for it to write";
    DESCRIPTOR_INDEX "descriptor-index" Text "2.7.5" "The Virtqueue Descriptor Table":
        "heads and next fields name descriptors of the table";
    BUFFER_OUTSIDE "buffer-outside" Text "2.7.5" "The Virtqueue Descriptor Table":
        "addresses are those of guest memory";
    CHAIN_LOOP "chain-loop" Must "2.7.5.2" "The Virtqueue Descriptor Table":
        "no chain loops";
    CHAIN_BYTES "chain-bytes" Must "2.7.5.2" "The Virtqueue Descriptor Table":
        "a chain has no more than 2^32 bytes";
    INDIRECT_LEN "indirect-len" Text "2.7.5.3" "Indirect Descriptors":
        "an indirect table is one or more whole descriptors of 16 bytes";
    INDIRECT_UNASKED "indirect-unasked" Must "2.7.5.3.1" "Indirect Descriptors":
        "INDIRECT is not set unless VIRTIO_F_INDIRECT_DESC was negotiated";
    INDIRECT_NESTED "indirect-nested" Must "2.7.5.3.1" "Indirect Descriptors":
        "INDIRECT is not set inside an indirect table";
    CHAIN_LONG "chain-long" Must "2.7.5.3.1" "Indirect Descriptors":
        "a chain has no more descriptors than the queue has entries";
    INDIRECT_NEXT "indirect-next" Must "2.7.5.3.1" "Indirect Descriptors":
        "INDIRECT and NEXT are not set together";
    AVAIL_INDEX "avail-index" Must "2.7.6.1" "The Virtqueue Available Ring":
        "the available index never goes back, nor ahead of what the ring holds";
    AVAIL_FLAGS "avail-flags" Must "2.7.7.1" "Used Buffer Notification Suppression":
        "the flags of the available ring are 0 or 1, and 0 where VIRTIO_F_EVENT_IDX was negotiated";
    HEAD_IN_FLIGHT "head-in-flight" Text "2.7.13" "Supplying Buffers to The Device":
        "a buffer is placed into free descriptors: a head is not offered again before the device returned it";
    DESCRIPTOR_IN_FLIGHT "descriptor-in-flight" Text "2.7.13.1" "Placing Buffers Into The Descriptor Table":
        "a descriptor is in one chain at a time, until the device returned it";
    DESCRIPTOR_CHANGED "descriptor-changed" Text "2.7.13.1" "Placing Buffers Into The Descriptor Table":
        "a descriptor stays as it is until the device returned its chain";
    CONFIG_WRITE_EARLY "config-write-early" Must "3.1.1" "Device Initialization":
        "the configuration space is not written before FEATURES_OK";
    STATUS_ORDER "status-order" Must "3.1.1" "Device Initialization":
        "ACKNOWLEDGE, DRIVER, FEATURES_OK and DRIVER_OK are set in this order, one after the other";
    FEATURES_UNREAD "features-unread" Must "3.1.1" "Device Initialization":
        "the status is read again after FEATURES_OK was written: the device may have refused the features";
    FEATURES_LATE "features-late" Must "3.1.1" "Device Initialization":
        "no feature is accepted after FEATURES_OK";
    QUEUE_LATE "queue-late" Must "3.1.1" "Device Initialization":
        "queues are set up before DRIVER_OK, unless one was reset by itself";
    KICK_EARLY "kick-early" Must "3.1.1" "Device Initialization":
        "no notification is sent before DRIVER_OK";
    PCI_WIDTH "pci-width" Must "4.1.3.1" "PCI Device Layout":
        "each field is accessed with its own width, one of 64 bits also in halves";
    PCI_WRITE_READ_ONLY "pci-write-read-only" Must "4.1.4.3.2" "Common configuration structure layout":
        "device_feature, num_queues, config_generation and queue_notify_off are not written";
    PCI_QUEUE_SIZE "pci-queue-size" Must "4.1.4.3.2" "Common configuration structure layout":
        "queue_size is written with a power of two";
    PCI_ENABLE_ZERO "pci-enable-zero" Must "4.1.4.3.2" "Common configuration structure layout":
        "0 is not written to queue_enable";
    PCI_RESET_UNREAD "pci-reset-unread" Must "4.1.4.3.2" "Common configuration structure layout":
        "the status is read as 0 after a reset, before the device is set up again";
    MMIO_UNDEFINED "mmio-undefined" Must "4.2.2.2" "MMIO Device Register Layout":
        "nothing is accessed where no register is described";
    MMIO_WRITE_READ_ONLY "mmio-write-read-only" Must "4.2.2.2" "MMIO Device Register Layout":
        "registers with direction R are not written";
    MMIO_READ_WRITE_ONLY "mmio-read-write-only" Must "4.2.2.2" "MMIO Device Register Layout":
        "registers with direction W are not read";
    MMIO_WIDTH "mmio-width" Must "4.2.2.2" "MMIO Device Register Layout":
        "control registers are accessed with 32 bits, aligned";
    MMIO_CONFIG_WIDTH "mmio-config-width" Must "4.2.2.2" "MMIO Device Register Layout":
        "the configuration space is accessed with 8, 16 or 32 bits, aligned";
    MMIO_QUEUE_NUM "mmio-queue-num" Must "4.2.2.2" "MMIO Device Register Layout":
        "QueueNum is written with no more than QueueNumMax";
    MMIO_ACK_UNDEFINED "mmio-ack-undefined" Must "4.2.2.2" "MMIO Device Register Layout":
        "undefined bits are not set in what is written to InterruptACK";
    QUEUE_MISSING "queue-missing" Text "4.2.3.2" "Virtqueue Configuration":
        "a queue whose maximal size is 0 is not available, and not set up";
    QUEUE_LIVE "queue-live" Text "4.2.3.2" "Virtqueue Configuration":
        "size and addresses of a queue are written before it is enabled";
    VERSION_1 "version-1" Must "6.1" "Driver Requirements: Reserved Feature Bits":
        "VIRTIO_F_VERSION_1 is accepted where it is offered";
}

/// Rules of the kinds of devices, by the words with which a device refuses what its driver asks for.
macro_rules! device_rules {
    ($($name:ident $id:literal $level:ident $section:literal $title:literal : $clause:literal $(, $words:literal)*;)*) => {
        rules_of_devices! { $($name $id $level $section $title : $clause;)* }
        /// The rule that a device's fault with these words is about.
        pub(crate) fn of_fault(words: &str) -> Option<&'static Rule> {
            match words {
                $($($words => Some(&$name),)*)*
                _ => None,
            }
        }
    };
}

macro_rules! rules_of_devices {
    ($($name:ident $id:literal $level:ident $section:literal $title:literal : $clause:literal;)*) => {
        $(#[doc = $clause] pub static $name: Rule = Rule {
            id: $id, level: Level::$level, source: SOURCE, section: $section, title: $title, clause: $clause,
        };)*
        /// The rules of the kinds of devices.
        pub static OF_DEVICES: &[&Rule] = &[$(&$name),*];
    };
}

device_rules! {
    NET_TRANSMIT "net-transmit" Text "5.1.6.2" "Packet Transmission":
        "a frame to send is for the device to read",
        "A frame to send has a part for the device to write";
    NET_NUM_BUFFERS "net-num-buffers" Must "5.1.6.2.1" "Packet Transmission":
        "num_buffers of a frame to send is 0";
    NET_FLAGS "net-flags" Must "5.1.6.2.1" "Packet Transmission":
        "flags of a frame to send are 0 without VIRTIO_NET_F_CSUM, and never DATA_VALID or RSC_INFO";
    NET_SEGMENTS "net-segments" Must "5.1.6.2.1" "Packet Transmission":
        "gso_type of a frame to send is one that was negotiated, and comes with NEEDS_CSUM and gso_size";
    NET_CHECKSUM "net-checksum" Must "5.1.6.2.1" "Packet Transmission":
        "csum_start and csum_offset name a checksum in the frame";
    NET_RECEIVE "net-receive" Text "5.1.6.3" "Setting Up Receive Buffers":
        "a receive buffer is for the device to write, with room for the header",
        "A buffer for frames has a part for the device to read", "A buffer for frames has no room for a header";
    BLOCK_CAPACITY "block-capacity" Must "5.2.6.1" "Device Operation":
        "no read or write goes beyond the capacity";
    BLOCK_LEN "block-length" Must "5.2.6.1" "Device Operation":
        "data of reads and writes is whole sectors of 512 bytes, of discards and zeroes whole segments, of GET_ID 20 bytes";
    BLOCK_SEGMENTS "block-segments" Must "5.2.6.1" "Device Operation":
        "no more segments than the configuration space allows are in a discard or write zeroes";
    BLOCK_UNMAP "block-unmap" Must "5.2.6.1" "Device Operation":
        "the unmap bit of a discard is 0";
    BLOCK_FLUSH "block-flush" Must "5.2.6.1" "Device Operation":
        "the sector of a flush is 0";
    BLOCK_STATUS "block-status" Text "5.2.6" "Device Operation":
        "a request ends with a byte for its status",
        "A block request has no room for its status";
    CONSOLE_RECEIVE "console-receive" Text "5.3.6" "Device Operation":
        "an input buffer is for the device to write, and not empty",
        "An input buffer has a part for the device to read", "An input buffer has no room for a character";
    CONSOLE_TRANSMIT "console-transmit" Must "5.3.6.1" "Device Operation":
        "no buffer for the device to write is in a transmit queue",
        "An output buffer has a part for the device to write";
    ENTROPY_READABLE "entropy-readable" Must "5.4.6.1" "Device Operation":
        "no buffer for the device to read is in the queue of an entropy device",
        "An entropy request has a part for the device to read";
    ENTROPY_EMPTY "entropy-empty" Text "5.4.6" "Device Operation":
        "an entropy request has room for random bytes",
        "An entropy request has no room for a random number";
    BALLOON_PAGES "balloon-pages" Text "5.5.6" "Device Operation":
        "an inflate request is an array of page numbers of reasonable length",
        "An inflate request names more than 16384 pages";
    VSOCK_TRANSMIT "vsock-transmit" Text "5.10.6.4" "Receive and Transmit":
        "a packet to send is for the device to read",
        "A packet of the driver has a part for the device to write";
    VSOCK_HEADER "vsock-header" Text "5.10.6" "Device Operation":
        "a packet to send begins with a whole header";
    VSOCK_CREDIT "vsock-credit" Must "5.10.6.3.1" "Device Operation: Buffer Space Management":
        "data is only sent when the other side has space for it";
    VSOCK_SOURCE "vsock-source" Must "5.10.6.4.1" "Device Operation: Receive and Transmit":
        "the source of a packet is guest_cid";
    VSOCK_RECEIVE "vsock-receive" Text "5.10.6.4" "Receive and Transmit":
        "receive buffers are for the device to write, with room for a header and data",
        "A buffer for a packet has a part for the device to read",
        "A buffer for a packet has no room for a header and data", "A buffer for an event is too small";
}
