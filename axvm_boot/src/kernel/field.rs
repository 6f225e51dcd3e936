//! The setup header of the Linux/x86 boot protocol, field by field.
//!
//! ```text
//!   bzImage file:  0x000 | boot sector | 0x1f1 setup header | ... | protected-mode kernel
//!   zero page:     0x000 | other fields | 0x1f1 setup header | ... | e820 table ...
//! ```
//!
//! The header has the same offsets in the file and in the zero page, so one table serves both.
//!
//! Spec: Linux Documentation/arch/x86/boot.rst (protocol 2.15), "The Real-Mode Kernel Header".

/// One little-endian field: where it is, how wide, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Name, as boot.rst writes it.
    pub name: &'static str,
    /// Offset from the start of the file, and of the zero page.
    pub offset: usize,
    /// Width in bytes: 1, 2, 4 or 8.
    pub size: usize,
    /// First protocol version that has it: `major << 8 | minor`.
    pub since: u16,
    /// What it means, in a few words.
    pub meaning: &'static str,
}

impl Field {
    /// First offset behind the field.
    pub const fn end(&self) -> usize {
        self.offset + self.size
    }

    /// The value in `bytes`, which start `base` bytes into the file; `None` if they do not hold all of it.
    pub fn read(&self, bytes: &[u8], base: usize) -> Option<u64> {
        let start = self.offset.checked_sub(base)?;
        let field = bytes.get(start..start + self.size)?;
        Some(field.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    /// Stores the low bytes of `value` into `bytes`, which start `base` bytes into the file and hold the field.
    pub(crate) fn write(&self, bytes: &mut [u8], base: usize, value: u64) {
        let start = self.offset - base;
        bytes[start..start + self.size].copy_from_slice(&value.to_le_bytes()[..self.size]);
    }
}

/// Defines each field as a constant, and [`FIELDS`] as all of them in order.
macro_rules! fields {
    ($($constant:ident $name:literal $offset:literal / $size:literal since $since:literal: $meaning:literal;)*) => {
        $(
            #[doc = concat!("`", $name, "`: ", $meaning, ".")]
            pub const $constant: Field =
                Field { name: $name, offset: $offset, size: $size, since: $since, meaning: $meaning };
        )*
        /// Every field of the setup header, in the order of offsets.
        pub const FIELDS: &[Field] = &[$($constant),*];
    };
}

fields! {
    SETUP_SECTS "setup_sects" 0x1f1/1 since 0x000: "size of the real-mode setup code in 512-byte sectors (0 means 4)";
    ROOT_FLAGS "root_flags" 0x1f2/2 since 0x000: "mount the root read-only (obsolete: say ro or rw)";
    SYSSIZE "syssize" 0x1f4/4 since 0x204: "size of the protected-mode code in 16-byte paragraphs";
    RAM_SIZE "ram_size" 0x1f8/2 since 0x000: "obsolete";
    VID_MODE "vid_mode" 0x1fa/2 since 0x000: "video mode (0xffff: normal)";
    ROOT_DEV "root_dev" 0x1fc/2 since 0x000: "default root device (obsolete: say root=)";
    BOOT_FLAG "boot_flag" 0x1fe/2 since 0x000: "0xaa55";
    JUMP "jump" 0x200/2 since 0x200: "a jump instruction; its second byte tells where the header ends";
    HEADER "header" 0x202/4 since 0x200: "magic number HdrS";
    VERSION "version" 0x206/2 since 0x200: "boot protocol version";
    REALMODE_SWTCH "realmode_swtch" 0x208/4 since 0x200: "boot loader hook";
    START_SYS_SEG "start_sys_seg" 0x20c/2 since 0x200: "obsolete";
    KERNEL_VERSION "kernel_version" 0x20e/2 since 0x200: "where the version string is, minus 0x200";
    TYPE_OF_LOADER "type_of_loader" 0x210/1 since 0x200: "who loads the kernel (0xff: no assigned number)";
    LOADFLAGS "loadflags" 0x211/1 since 0x200: "bit 0 LOADED_HIGH, 5 QUIET, 7 CAN_USE_HEAP";
    SETUP_MOVE_SIZE "setup_move_size" 0x212/2 since 0x200: "obsolete";
    CODE32_START "code32_start" 0x214/4 since 0x200: "where the 32-bit code is entered";
    RAMDISK_IMAGE "ramdisk_image" 0x218/4 since 0x200: "address of the initrd";
    RAMDISK_SIZE "ramdisk_size" 0x21c/4 since 0x200: "size of the initrd in bytes";
    BOOTSECT_KLUDGE "bootsect_kludge" 0x220/4 since 0x200: "obsolete";
    HEAP_END_PTR "heap_end_ptr" 0x224/2 since 0x201: "end of the real-mode heap, minus 0x200";
    EXT_LOADER_VER "ext_loader_ver" 0x226/1 since 0x202: "extended loader version";
    EXT_LOADER_TYPE "ext_loader_type" 0x227/1 since 0x202: "extended loader number";
    CMD_LINE_PTR "cmd_line_ptr" 0x228/4 since 0x202: "address of the command line";
    INITRD_ADDR_MAX "initrd_addr_max" 0x22c/4 since 0x203: "highest address a byte of the initrd may have";
    KERNEL_ALIGNMENT "kernel_alignment" 0x230/4 since 0x205: "alignment that a relocatable kernel wants";
    RELOCATABLE_KERNEL "relocatable_kernel" 0x234/1 since 0x205: "whether the kernel may be loaded elsewhere";
    MIN_ALIGNMENT "min_alignment" 0x235/1 since 0x20a: "log2 of the alignment it cannot do without";
    XLOADFLAGS "xloadflags" 0x236/2 since 0x20c: "bit 0 KERNEL_64, 1 CAN_BE_LOADED_ABOVE_4G, 2-4 EFI";
    CMDLINE_SIZE "cmdline_size" 0x238/4 since 0x206: "longest command line in bytes, without its NUL";
    HARDWARE_SUBARCH "hardware_subarch" 0x23c/4 since 0x207: "0 is a PC";
    HARDWARE_SUBARCH_DATA "hardware_subarch_data" 0x240/8 since 0x207: "unused on a PC";
    PAYLOAD_OFFSET "payload_offset" 0x248/4 since 0x208: "compressed kernel, from the start of the protected-mode code";
    PAYLOAD_LENGTH "payload_length" 0x24c/4 since 0x208: "size of the compressed kernel in bytes";
    SETUP_DATA "setup_data" 0x250/8 since 0x209: "list of further data from the loader";
    PREF_ADDRESS "pref_address" 0x258/8 since 0x20a: "where the kernel would like to be";
    INIT_SIZE "init_size" 0x260/4 since 0x20a: "memory it needs from its runtime start until it reads the e820 map";
    HANDOVER_OFFSET "handover_offset" 0x264/4 since 0x20b: "EFI handover entry point";
    KERNEL_INFO_OFFSET "kernel_info_offset" 0x268/4 since 0x20f: "kernel_info, from the start of the protected-mode code";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_no_gaps_and_no_overlaps() {
        assert_eq!(FIELDS[0].offset, 0x1f1);
        for pair in FIELDS.windows(2) {
            assert_eq!(pair[0].end(), pair[1].offset, "{} and {}", pair[0].name, pair[1].name);
        }
    }

    #[test]
    fn a_field_reads_back_what_was_written() {
        for field in FIELDS {
            let mut page = [0; 0x290];
            let value = 0x8877_6655_4433_2211 & (u64::MAX >> (64 - 8 * field.size));
            field.write(&mut page, 0, value);
            assert_eq!(field.read(&page, 0), Some(value), "{}", field.name);
            assert_eq!(page.iter().filter(|&&byte| byte != 0).count(), field.size, "{}", field.name);
        }
    }

    #[test]
    fn a_field_outside_the_bytes_is_absent() {
        assert_eq!(VERSION.read(&[0; 0x207], 0), None);
        assert_eq!(VERSION.read(&[0; 0x100], 0x207), None);
        assert_eq!(VERSION.read(&[0x0f, 0x02], 0x206), Some(0x20f));
    }
}
