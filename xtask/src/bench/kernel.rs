//! A stock kernel whose first instructions are ours: all of it has to be loaded, and the first thing it does can be seen.
//!
//! ```text
//!   vmlinux   stub at the PVH entry and at the ELF entry      bzImage   stub where 32-bit and 64-bit loaders enter
//!   stub      mov dx, 0x3f8; mov al, '~'; out dx, al; hlt; jmp to hlt         the same bytes in 32 and 64 bits
//! ```
//!
//! So exec to the first KVM_RUN is measured from outside, without a tracer, and the kernel needs no virtualization.
//! Spec: Xen public header elfnote.h; Linux Documentation/arch/x86/boot.rst.

use anyhow::{Context, Result, ensure};

const STUB: [u8; 11] = [0xba, 0xf8, 0x03, 0, 0, 0xb0, b'~', 0xee, 0xf4, 0xeb, 0xfd];
const LOAD: u32 = 1;
const NOTE: u32 = 4;
/// XEN_ELFNOTE_PHYS32_ENTRY.
const PHYS32_ENTRY: [u8; 4] = [18, 0, 0, 0];

/// A program header: type, place in the file, physical address, length in the file.
struct Segment {
    kind: u32,
    offset: usize,
    address: u64,
    len: usize,
}

/// Puts the stub where a vmlinux is entered.
pub fn stub_vmlinux(image: &mut [u8]) -> Result<()> {
    ensure!(image.starts_with(b"\x7fELF"), "Cannot change the kernel: no ELF file");
    let segments = segments(image)?;
    let entry = number(image, 0x18)?;
    let entries = [Some(entry), pvh_entry(image, &segments)];
    for entry in entries.into_iter().flatten() {
        let inside = |segment: &&Segment| {
            segment.kind == LOAD && (segment.address..segment.address + segment.len as u64).contains(&entry)
        };
        let segment =
            segments.iter().find(inside).with_context(|| format!("No segment of the kernel has {entry:#x}"))?;
        place(image, segment.offset + (entry - segment.address) as usize)?;
    }
    Ok(())
}

/// Puts the stub where a bzImage is entered.
pub fn stub_bzimage(image: &mut [u8]) -> Result<()> {
    ensure!(image.get(0x202..0x206) == Some(b"HdrS"), "Cannot change the kernel: no bzImage");
    let sectors = if image[0x1f1] == 0 { 4 } else { usize::from(image[0x1f1]) };
    let start = (sectors + 1) * 512;
    place(image, start)?;
    place(image, start + 0x200)
}

fn place(image: &mut [u8], at: usize) -> Result<()> {
    let bytes = image.get_mut(at..at + STUB.len()).context("An entry of the kernel lies outside of its file")?;
    bytes.copy_from_slice(&STUB);
    Ok(())
}

fn segments(image: &[u8]) -> Result<Vec<Segment>> {
    let (start, count) = (number(image, 0x20)? as usize, number(image, 0x38)? as u16);
    let segment = |index: u16| {
        let at = start + usize::from(index) * 56;
        let field = |offset| number(image, at + offset);
        let (kind, offset) = (field(0)? as u32, field(8)? as usize);
        Ok(Segment { kind, offset, address: field(24)?, len: field(32)? as usize })
    };
    (0..count).map(segment).collect()
}

/// The note's name is "Xen", four bytes with its end; the entry is four or eight bytes long.
fn pvh_entry(image: &[u8], segments: &[Segment]) -> Option<u64> {
    let mut notes = segments.iter().filter(|segment| segment.kind == NOTE);
    notes.find_map(|segment| {
        let bytes = image.get(segment.offset..segment.offset + segment.len)?;
        let at = bytes.windows(8).position(|bytes| bytes[..4] == PHYS32_ENTRY && &bytes[4..] == b"Xen\0")?;
        Some(u32::from_le_bytes(bytes.get(at + 8..at + 12)?.try_into().ok()?).into())
    })
}

fn number(image: &[u8], at: usize) -> Result<u64> {
    let bytes = image.get(at..at + 8).context("The kernel's headers are cut short")?;
    Ok(u64::from_le_bytes(bytes.try_into()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_of_a_pvh_kernel_is_replaced() {
        let mut image = axvm_guest::bench(None);
        let before = image.clone();
        stub_vmlinux(&mut image).unwrap();
        let differs: Vec<usize> = (0..image.len()).filter(|&at| image[at] != before[at]).collect();
        let first = *differs.first().unwrap();
        assert_eq!(pvh_entry(&image, &segments(&image).unwrap()), Some(number(&image, 0x18).unwrap()));
        assert!(differs.last().unwrap() - first < STUB.len(), "{differs:?}");
    }

    #[test]
    fn both_entries_of_a_bzimage_are_replaced() {
        let mut image = vec![0; 4096];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        stub_bzimage(&mut image).unwrap();
        assert_eq!((&image[1024..1035], &image[1536..1547]), (&STUB[..], &STUB[..]));
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        assert!(stub_vmlinux(&mut [0; 64]).is_err() && stub_bzimage(&mut [0; 64]).is_err());
        assert!(stub_vmlinux(&mut b"\x7fELF".to_vec()).is_err());
    }
}
