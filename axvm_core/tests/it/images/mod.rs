//! Kernel images by hand: as much of each format as the loader looks at.
//!
//! ```text
//!   bzimage:  0 boot sector | 0x200 setup header | 0x400 hlt hlt hlt ... | 0x4400
//!   elf:      the 64 bytes of an ELF header, without segments
//!   segments: ELF header | PT_LOAD ... | 4 KiB that all of them load
//!   wrapped:  ELF header of 32 bits | PT_LOAD | what it loads
//!   upper:    ELF header | PT_LOAD, PT_NOTE | code that writes a letter and resets | the note of PVH
//! ```
//!
//! Spec: Linux Documentation/arch/x86/boot.rst (protocol 2.06, 2.15), "The Real-Mode Kernel Header"; System V
//! ABI, "ELF Header"; Xen "x86/HVM direct boot ABI". Left out: code that does more than a letter.

/// A bzImage of protocol 2.12 that asks for 4 MiB at 1 MiB, takes a command line of 255 bytes and has only
/// the 32-bit entry. Its code is HLT.
pub fn bzimage() -> Vec<u8> {
    let mut image = vec![0xf4; 0x4400];
    image[..0x400].fill(0);
    let mut put = |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]); // setup_sects
    put(0x1f4, &(0x4000_u32 / 16).to_le_bytes()); // syssize
    put(0x1fe, &0xaa55_u16.to_le_bytes()); // boot_flag
    put(0x200, &[0xeb, 0x66]); // jump: the header ends at 0x268
    put(0x202, b"HdrS");
    put(0x206, &0x20c_u16.to_le_bytes()); // version
    put(0x211, &[1]); // loadflags: LOADED_HIGH
    put(0x214, &0x10_0000_u32.to_le_bytes()); // code32_start
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes()); // initrd_addr_max
    put(0x230, &0x10_0000_u32.to_le_bytes()); // kernel_alignment
    put(0x238, &255_u32.to_le_bytes()); // cmdline_size
    put(0x258, &0x10_0000_u64.to_le_bytes()); // pref_address
    put(0x260, &0x40_0000_u32.to_le_bytes()); // init_size
    image
}

/// An ELF header: `class` 1 is 32-bit, 2 is 64-bit.
pub fn elf(class: u8, machine: u16) -> Vec<u8> {
    let mut image = vec![0; 64];
    image[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, 1, 1]);
    image[16..18].copy_from_slice(&2_u16.to_le_bytes()); // ET_EXEC
    image[18..20].copy_from_slice(&machine.to_le_bytes());
    image
}

/// An ELF file whose PT_LOADs all take the same page of the file to the physical addresses `places`.
pub fn segments(places: &[u64]) -> Vec<u8> {
    let mut image = elf(2, 62);
    let mut put = |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(24, &places[0].to_le_bytes()); // e_entry
    put(32, &64_u64.to_le_bytes()); // e_phoff
    put(54, &56_u16.to_le_bytes()); // e_phentsize
    put(56, &(places.len() as u16).to_le_bytes()); // e_phnum
    let content = 64 + 56 * places.len() as u64;
    for gpa in places {
        image.extend([1_u32, 7].iter().flat_map(|word| word.to_le_bytes())); // PT_LOAD
        image.extend([content, *gpa, *gpa, 4096, 4096, 4096].iter().flat_map(|word| word.to_le_bytes()));
    }
    image.resize(image.len() + 4096 * places.len().min(2), 0xf4);
    image
}

/// A kernel of 32 bits whose one segment is `content`, at `gpa` with 4 KiB of zeroes behind it; and its entry.
pub fn wrapped(gpa: u32, (content, entry): (Vec<u8>, u32)) -> Vec<u8> {
    // A Multiboot 2 header in it is aligned to 8.
    const CONTENT: u32 = 96;
    let mut image = elf(1, 3);
    image.truncate(24);
    let len = content.len() as u32;
    let header = [entry, 52, 0, 0, 32 << 16 | 52, 1, 0];
    let part = [1, CONTENT, gpa, gpa, len, len + 4096, 7, 4];
    image.extend(header.iter().chain(&part).flat_map(|word| word.to_le_bytes()));
    image.resize(CONTENT as usize, 0);
    [image, content].concat()
}

/// A kernel linked for the upper half, of `class` 1 or 2. It writes `K` to COM1 and resets by the i8042, alike in 32-bit
/// and in 64-bit code. Its entry points are virtual.
pub fn upper(class: u8) -> Vec<u8> {
    upper_with(class, b"\xba\xf8\x03\0\0\xb0K\xee\xb0\xfe\xe6\x64\xf4\xeb\xfd\x90")
}

/// The same with other code; the note behind it wants a length that is a multiple of 4.
pub fn upper_with(class: u8, code: &[u8]) -> Vec<u8> {
    const GPA: u64 = 2 << 20;
    let wide = class == 2;
    let address: u64 = if wide { 0xffff_ffff_8020_0000 } else { 0xc020_0000 };
    let (header_len, part_len) = if wide { (64_u64, 56_u64) } else { (52, 32) };
    let word = |value: u64| value.to_le_bytes()[..if wide { 8 } else { 4 }].to_vec();
    let value = word(address);
    let note = [&[4, 0, 0, 0, value.len() as u8, 0, 0, 0, 18, 0, 0, 0][..], b"Xen\0", &value].concat();

    let mut image = elf(class, if wide { 62 } else { 3 });
    image.truncate(24);
    image.extend([address, header_len, 0].map(word).concat());
    image.extend([0; 4]);
    let halves = [header_len as u16, part_len as u16, 2, 0, 0, 0];
    image.extend(halves.iter().flat_map(|half| half.to_le_bytes()));
    let code_at = header_len + 2 * part_len;
    let parts =
        [(1_u32, code_at, address, GPA, code.len(), 4096), (4, code_at + code.len() as u64, 0, 0, note.len(), 4)];
    for (kind, offset, address, gpa, len, align) in parts {
        let (start, end) = if wide { (&[0; 4][..], &[][..]) } else { (&[][..], &[0; 4][..]) };
        let words = [offset, address, gpa, len as u64, len as u64].map(word).concat();
        image.extend([&kind.to_le_bytes(), start, &words, end, &word(align)].concat());
    }
    [&image, code, &note].concat()
}
