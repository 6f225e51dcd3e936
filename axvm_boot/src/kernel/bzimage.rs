//! bzImage: real-mode setup code, then the protected-mode kernel that unpacks itself.
//!
//! ```text
//!   0 | boot sector | setup code | protected-mode code: decompressor, payload, kernel_info | signature?
//!                   ^ 512        ^ (setup_sects + 1) * 512                                 ^ + syssize * 16
//! ```
//!
//! Spec: Linux Documentation/arch/x86/boot.rst (protocol 2.15), "Loading The Rest of The Kernel",
//! "The kernel_info". Left out: zImage, protocols before 2.06 (Linux 2.6.22, 2007), the CRC.

use super::field;
use super::header::{BOOT_FLAG, SetupHeader, loadflags};
use super::{KernelError, Payload, bytes_at, str_at, u32_at};
use crate::read_at::ReadAt;

/// Oldest protocol we speak: the first that says how long a command line may be.
const OLDEST: u16 = 0x206;
/// `LToP`: first bytes of the kernel_info.
const KERNEL_INFO_MAGIC: &[u8] = b"LToP";

/// A checked bzImage. Holds offsets, not the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BzImage {
    /// The setup header, as found in the file.
    pub header: SetupHeader,
    /// Offset of the protected-mode code in the file.
    pub code_offset: u64,
    /// Length of the protected-mode code in bytes.
    pub code_len: u64,
    /// What the kernel calls itself, if it says so ("6.1.0-1-amd64 (build@host) ...").
    pub release: Option<String>,
    /// The compressed kernel inside the protected-mode code.
    pub payload: Option<Payload>,
    /// The read-only information block of protocol 2.15.
    pub kernel_info: Option<KernelInfo>,
}

/// The kernel_info of protocol 2.15, which loaders read and do not copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelInfo {
    /// Size of the fixed part in bytes.
    pub size: u32,
    /// Size with the variable part in bytes.
    pub size_total: u32,
    /// Highest `setup_data` type that the kernel knows.
    pub setup_type_max: u32,
}

impl BzImage {
    /// Checks an image that has `HdrS` in the right place.
    pub(super) fn parse(file: &dyn ReadAt, head: &[u8]) -> Result<BzImage, KernelError> {
        let have = file.len();
        let truncated = |need: u64| KernelError::Truncated { need, have };
        let header = SetupHeader::copy_from(head).ok_or(truncated(field::KERNEL_INFO_OFFSET.end() as u64))?;
        if header.get(field::BOOT_FLAG) != BOOT_FLAG {
            return Err(KernelError::BootFlag(header.get(field::BOOT_FLAG) as u16));
        }
        if header.version() < OLDEST {
            return Err(KernelError::OldProtocol { version: header.version() });
        }
        if header.bytes().len() < field::CMDLINE_SIZE.end() - field::SETUP_SECTS.offset {
            return Err(KernelError::ShortHeader { version: header.version(), len: header.bytes().len() });
        }
        if header.get(field::LOADFLAGS) & loadflags::LOADED_HIGH == 0 {
            return Err(KernelError::LoadedLow);
        }
        if header.get(field::CODE32_START) == 0 {
            return Err(KernelError::NeedsBios);
        }
        let (start, len) = (header.setup_len(), header.protected_mode_len());
        let end = start + len;
        // The last paragraph may be short.
        if len == 0 || have.saturating_add(15) < end {
            return Err(truncated(end.max(start + 1)));
        }
        let code = Code { file, offset: start, len: have.min(end) - start };
        Ok(BzImage {
            code_offset: code.offset,
            code_len: code.len,
            release: release(&header, file)?,
            payload: code.payload(&header)?,
            kernel_info: code.kernel_info(&header)?,
            header,
        })
    }
}

/// The version string in the setup code.
fn release(header: &SetupHeader, file: &dyn ReadAt) -> Result<Option<String>, KernelError> {
    let pointer = header.get(field::KERNEL_VERSION);
    let offset = pointer + 0x200;
    if pointer == 0 || offset >= header.setup_len() {
        return Ok(None);
    }
    let bytes = bytes_at(file, offset, file.len().saturating_sub(offset).min(256))?;
    Ok(str_at(&bytes, 0))
}

/// The protected-mode code, in its file.
struct Code<'a> {
    file: &'a dyn ReadAt,
    offset: u64,
    len: u64,
}

impl Code<'_> {
    /// At most `max` bytes from `offset` on: fewer where the code ends.
    fn bytes(&self, offset: u64, max: u64) -> Result<Vec<u8>, KernelError> {
        match self.len.checked_sub(offset) {
            Some(left) => bytes_at(self.file, self.offset + offset, left.min(max)),
            None => Ok(Vec::new()),
        }
    }

    fn payload(&self, header: &SetupHeader) -> Result<Option<Payload>, KernelError> {
        let (offset, len) = (header.get(field::PAYLOAD_OFFSET), header.get(field::PAYLOAD_LENGTH));
        if offset == 0 || len == 0 || offset + len > self.len {
            return Ok(None);
        }
        let magic = self.bytes(offset, 16.min(len))?;
        Ok(Some(Payload { offset, len, compression: super::foreign::compression(&magic) }))
    }

    fn kernel_info(&self, header: &SetupHeader) -> Result<Option<KernelInfo>, KernelError> {
        let offset = header.get(field::KERNEL_INFO_OFFSET);
        if offset == 0 {
            return Ok(None);
        }
        let info = self.bytes(offset, 16)?;
        let fields = [4, 8, 12].map(|at| u32_at(&info, at));
        let (true, [Some(size), Some(size_total), Some(setup_type_max)]) =
            (info.starts_with(KERNEL_INFO_MAGIC), fields)
        else {
            return Ok(None);
        };
        // Later kernels may only append: 16 bytes are the fixed part of 2.15.
        Ok((size >= 16).then_some(KernelInfo { size, size_total, setup_type_max }))
    }
}
