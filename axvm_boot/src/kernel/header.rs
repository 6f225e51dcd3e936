//! The setup header of one kernel, as a value.
//!
//! ```text
//!   0x1f1 setup_sects ... 0x1fe 0xaa55 | 0x200 EB nn | 0x202 HdrS, version ... | 0x202 + nn end
//! ```
//!
//! Spec: Linux Documentation/arch/x86/boot.rst (protocol 2.15), "Details of Header Fields".

use std::fmt;

use super::field::{self, FIELDS, Field};

/// First offset of the header.
pub(crate) const START: usize = 0x1f1;
/// Where the header ends at the latest: in the zero page, other fields follow.
const LIMIT: usize = 0x290;
/// `HdrS`, little-endian.
pub(crate) const MAGIC: u64 = 0x5372_6448;
/// What `boot_flag` holds.
pub(crate) const BOOT_FLAG: u64 = 0xaa55;

/// Bits of `loadflags`.
pub mod loadflags {
    /// The protected-mode code is loaded at 1 MiB or above (bzImage), not at 0x10000 (zImage).
    pub const LOADED_HIGH: u64 = 1 << 0;
    /// `heap_end_ptr` is valid.
    pub const CAN_USE_HEAP: u64 = 1 << 7;
}

/// Bits of `xloadflags`.
pub mod xloadflags {
    /// There is a 64-bit entry point at offset 0x200 of the protected-mode code.
    pub const KERNEL_64: u64 = 1 << 0;
    /// Kernel, zero page, command line and initrd may lie above 4 GiB.
    pub const CAN_BE_LOADED_ABOVE_4G: u64 = 1 << 1;
}

/// A setup header: the kernel's wishes, before the loader writes its answers into a copy.
#[derive(Clone, PartialEq, Eq)]
pub struct SetupHeader {
    bytes: Vec<u8>,
}

impl SetupHeader {
    /// Copies the header out of the first bytes of a bzImage; `None` if they end inside of it.
    pub(crate) fn copy_from(image: &[u8]) -> Option<SetupHeader> {
        let jump = *image.get(field::JUMP.offset + 1)?;
        let end = (field::HEADER.offset + usize::from(jump)).min(LIMIT);
        image.get(START..end).map(|header| SetupHeader { bytes: header.to_vec() })
    }

    /// A header for a kernel that has none: an ELF vmlinux entered by the 64-bit protocol.
    pub(crate) fn for_vmlinux() -> SetupHeader {
        const END: usize = field::KERNEL_INFO_OFFSET.end();
        let mut bytes = vec![0; END - START];
        let mut set = |field: Field, value| field.write(&mut bytes, START, value);
        set(field::BOOT_FLAG, BOOT_FLAG);
        set(field::JUMP, 0xeb | ((END - field::HEADER.offset) as u64) << 8);
        set(field::HEADER, MAGIC);
        set(field::VERSION, 0x20f);
        set(field::LOADFLAGS, loadflags::LOADED_HIGH);
        // What arch/x86 of every 64-bit kernel has: COMMAND_LINE_SIZE is 2048 with the NUL.
        set(field::CMDLINE_SIZE, 2047);
        set(field::INITRD_ADDR_MAX, 0x7fff_ffff);
        SetupHeader { bytes }
    }

    /// The value of `field`; 0 if the kernel's protocol version does not have it.
    pub fn get(&self, field: Field) -> u64 {
        let present = field.since <= 0x200 || field.since <= self.version();
        if present { self.raw(field) } else { 0 }
    }

    fn raw(&self, field: Field) -> u64 {
        field.read(&self.bytes, START).unwrap_or(0)
    }

    /// The header's bytes, from offset 0x1f1 on.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Boot protocol version, `major << 8 | minor`.
    pub fn version(&self) -> u16 {
        self.raw(field::VERSION) as u16
    }

    /// Length of the boot sector and the setup code in bytes: the protected-mode code follows.
    pub fn setup_len(&self) -> u64 {
        let sectors = match self.get(field::SETUP_SECTS) {
            0 => 4,
            count => count,
        };
        (sectors + 1) * 512
    }

    /// Length of the protected-mode code in bytes.
    pub fn protected_mode_len(&self) -> u64 {
        self.get(field::SYSSIZE) * 16
    }

    /// Where the kernel would like to be loaded, if it says so.
    pub fn pref_address(&self) -> Option<u64> {
        Some(self.get(field::PREF_ADDRESS)).filter(|&address| address != 0)
    }

    /// Whether the protected-mode code may be loaded at any aligned address.
    pub fn is_relocatable(&self) -> bool {
        self.get(field::RELOCATABLE_KERNEL) != 0
    }

    /// Alignment of the load address in bytes, at least 1.
    pub fn alignment(&self) -> u64 {
        self.get(field::KERNEL_ALIGNMENT).max(1)
    }

    /// Memory the kernel needs from its runtime start on, in bytes.
    pub fn init_size(&self) -> u64 {
        self.get(field::INIT_SIZE)
    }

    /// Longest command line in bytes, without its NUL.
    pub fn cmdline_size(&self) -> u64 {
        self.get(field::CMDLINE_SIZE)
    }

    /// Highest address that a byte of the initrd may have.
    pub fn initrd_addr_max(&self) -> u64 {
        self.get(field::INITRD_ADDR_MAX)
    }

    /// Whether all bits of `flag` ([`xloadflags`]) are set.
    pub fn has_xloadflag(&self, flag: u64) -> bool {
        self.get(field::XLOADFLAGS) & flag == flag
    }
}

impl fmt::Debug for SetupHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("SetupHeader");
        for field in FIELDS {
            out.field(field.name, &format_args!("{:#x}", self.get(*field)));
        }
        out.finish()
    }
}
