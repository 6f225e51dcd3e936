//! A kernel for the book's sessions: one that starts at once, waits for its user, and obeys the power button.
//!
//! ```text
//!   "Hello .." --> COM1     then for ever: a key typed? print it     the button pressed? power off (S5)
//! ```
//!
//! A page shows how AxVM is used with Linux; where only AxVM's side is shown, this stands in for `bzImage`, in
//! milliseconds and without hardware virtualization.
//!
//! Spec: Xen "x86/HVM direct boot ABI": an ELF note names the 32-bit entry. ACPI 6.5, 4.8.3 "ACPI Register Model".

/// Where it is placed and starts.
const ADDRESS: u32 = 0x10_0000;
const HEADERS_LEN: u64 = 64 + 2 * 56;
const NOTE_LEN: u64 = 20;
const CODE_AT: u64 = HEADERS_LEN + NOTE_LEN;
const X86_64: u16 = 62;
/// The note that names a 32-bit entry.
const XEN_PHYS32_ENTRY: u32 = 18;
/// What it says first.
const GREETING: &[u8] = b"Hello from the guest\r\n\0";

/// Its instructions, 32-bit mode; the greeting follows them.
#[rustfmt::skip]
const CODE: [u8; 65] = [
    0xbe, 0, 0, 0, 0,       //         mov esi, greeting   (its address is put in below)
    0xac,                   // next:   lodsb
    0x84, 0xc0,             //         test al, al
    0x74, 0x12,             //         jz wait
    0x88, 0xc4,             //         mov ah, al
    0x66, 0xba, 0xfd, 0x03, //         mov dx, 0x3fd       line status
    0xec,                   // full:   in al, dx
    0xa8, 0x20,             //         test al, 0x20       room for a byte?
    0x74, 0xfb,             //         jz full
    0x88, 0xe0,             //         mov al, ah
    0xb2, 0xf8,             //         mov dl, 0xf8        data, at 0x3f8
    0xee,                   //         out dx, al
    0xeb, 0xe9,             //         jmp next
    0x66, 0xba, 0xfd, 0x03, // wait:   mov dx, 0x3fd
    0xec,                   //         in al, dx
    0xa8, 0x01,             //         test al, 1          a key?
    0x74, 0x04,             //         jz button
    0xb2, 0xf8,             //         mov dl, 0xf8
    0xec,                   //         in al, dx
    0xee,                   //         out dx, al
    0x66, 0xba, 0x00, 0x06, // button: mov dx, 0x600       PM1 status
    0x66, 0xed,             //         in ax, dx
    0xf6, 0xc4, 0x01,       //         test ah, 1          power button?
    0x74, 0xe8,             //         jz wait
    0x66, 0xba, 0x04, 0x06, //         mov dx, 0x604       PM1 control
    0x66, 0xb8, 0x00, 0x34, //         mov ax, 0x3400      SLP_EN, type 5
    0x66, 0xef,             //         out dx, ax
    0xf4,                   // stop:   hlt
    0xeb, 0xfd,             //         jmp stop
];

/// The ELF file.
pub fn elf() -> Vec<u8> {
    let mut code = [&CODE[..], GREETING].concat();
    code[1..5].copy_from_slice(&(ADDRESS + CODE.len() as u32).to_le_bytes());
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let (entry, len) = (u64::from(ADDRESS), code.len() as u64);
    let mut put = |bytes: &[&[u8]]| file.extend(bytes.concat());
    // Executable, machine, version; entry, program headers at 64, no sections; flags, sizes and counts.
    put(&[&2u16.to_le_bytes(), &X86_64.to_le_bytes(), &1u32.to_le_bytes()]);
    put(&[&entry.to_le_bytes(), &64u64.to_le_bytes(), &[0; 12], &[64, 0, 56, 0, 2, 0, 64, 0, 0, 0, 0, 0]]);
    // Type, rights; place in the file, two addresses, length in the file and in memory, alignment.
    let mut header = |kind: u32, at: u64, to: u64, len: u64| {
        put(&[&kind.to_le_bytes(), &5u32.to_le_bytes()]);
        put(&[at, to, to, len, len, 4].map(u64::to_le_bytes).each_ref().map(|bytes| &bytes[..]));
    };
    header(1, CODE_AT, entry, len);
    header(4, HEADERS_LEN, 0, NOTE_LEN);
    let [name_len, content_len] = [4u32; 2];
    put(&[&name_len.to_le_bytes(), &content_len.to_le_bytes(), &XEN_PHYS32_ENTRY.to_le_bytes(), b"Xen\0"]);
    put(&[&ADDRESS.to_le_bytes(), &code]);
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_where_the_header_says() {
        let file = elf();
        assert_eq!(file[CODE_AT as usize + 5], CODE[5]);
        assert!(file.ends_with(GREETING));
        assert_eq!(file.len() as u64, CODE_AT + (CODE.len() + GREETING.len()) as u64);
    }
}
