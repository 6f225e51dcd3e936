//! What a bzImage tells about itself, and the ELF kernel packed inside.
//!
//! ```text
//!   0x1f1 setup header   0x20e -> "6.1.0-x (builder) #1 ..."   setup_sects*512+512: protected-mode code
//!                                                              + payload_offset: the compressed vmlinux
//! ```
//!
//! Spec: Linux Documentation/arch/x86/boot.rst, protocol 2.15, fields `kernel_version`, `payload_offset`, `payload_length`.

use anyhow::{Context, Result, bail, ensure};

use super::compressed::decompress;

/// A look at a bzImage's header.
pub struct BzImage<'a> {
    bytes: &'a [u8],
}

impl<'a> BzImage<'a> {
    /// Checks the signature.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        ensure!(bytes.get(0x202..0x206) == Some(b"HdrS"), "Not a bzImage: no HdrS at 0x202");
        Ok(Self { bytes })
    }

    /// The release, as `uname -r` will say: the first word of the version string.
    pub fn release(&self) -> Result<&'a str> {
        let at = usize::from(u16::from_le_bytes([self.bytes[0x20e], self.bytes[0x20f]])) + 0x200;
        let text = self.bytes.get(at..).context("Kernel version string lies outside the image")?;
        let len = text.iter().position(|&b| b == b' ' || b == 0).context("Kernel version string has no end")?;
        Ok(std::str::from_utf8(&text[..len])?)
    }

    /// The uncompressed ELF, `vmlinux`.
    pub fn vmlinux(&self) -> Result<Vec<u8>> {
        let setup_sectors = match self.bytes[0x1f1] {
            0 => 4,
            n => usize::from(n),
        };
        let start = (setup_sectors + 1) * 512 + self.u32(0x248)?;
        let payload =
            self.bytes.get(start..start + self.u32(0x24c)?).context("Kernel payload lies outside the image")?;
        let elf = decompress(payload)?;
        if !elf.starts_with(b"\x7fELF") {
            bail!("Kernel payload is no ELF file");
        }
        Ok(elf)
    }

    fn u32(&self, at: usize) -> Result<usize> {
        let field = self.bytes.get(at..at + 4).context("Kernel header is cut short")?;
        Ok(u32::from_le_bytes(field.try_into()?) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 1024];
        bytes[0x1f1] = 1;
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        bytes[0x300..0x30c].copy_from_slice(b"6.1.0-x (me)");
        bytes[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    fn lz4(data: &[u8]) -> Vec<u8> {
        let block = lz4_flex::block::compress(data);
        [&0x184c_2102_u32.to_le_bytes(), &u32::try_from(block.len()).unwrap().to_le_bytes()[..], &block].concat()
    }

    #[test]
    fn release_and_elf_come_out() {
        let bytes = image(&lz4(b"\x7fELF and so on"));
        let kernel = BzImage::parse(&bytes).unwrap();
        assert_eq!(kernel.release().unwrap(), "6.1.0-x");
        assert_eq!(kernel.vmlinux().unwrap(), b"\x7fELF and so on");
    }

    #[test]
    fn payload_that_is_no_elf_or_lies_outside_is_refused() {
        let bytes = image(&lz4(b"something else"));
        assert!(BzImage::parse(&bytes).unwrap().vmlinux().is_err());
        let mut bytes = image(&lz4(b"\x7fELF"));
        bytes.truncate(bytes.len() - 1);
        assert!(BzImage::parse(&bytes).unwrap().vmlinux().is_err());
        assert!(BzImage::parse(b"short").is_err());
    }
}
