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
use super::{KernelError, Payload, str_at, u32_at};

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
    pub code_offset: usize,
    /// Length of the protected-mode code in bytes.
    pub code_len: usize,
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
    pub(super) fn parse(image: &[u8]) -> Result<BzImage, KernelError> {
        let truncated = |need: u64| KernelError::Truncated { need, have: image.len() as u64 };
        let header = SetupHeader::copy_from(image).ok_or(truncated(field::KERNEL_INFO_OFFSET.end() as u64))?;
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
        let (start, len) = (header.setup_len(), header.protected_mode_len());
        let end = start + len;
        // The last paragraph may be short.
        if len == 0 || image.len() as u64 + 15 < end {
            return Err(truncated(end.max(start + 1)));
        }
        let code = &image[start as usize..image.len().min(end as usize)];
        Ok(BzImage {
            code_offset: start as usize,
            code_len: code.len(),
            release: release(&header, image),
            payload: payload(&header, code),
            kernel_info: kernel_info(&header, code),
            header,
        })
    }
}

/// The version string in the setup code.
fn release(header: &SetupHeader, image: &[u8]) -> Option<String> {
    let pointer = header.get(field::KERNEL_VERSION);
    let offset = pointer + 0x200;
    (pointer != 0 && offset < header.setup_len()).then(|| str_at(image, offset as usize)).flatten()
}

fn payload(header: &SetupHeader, code: &[u8]) -> Option<Payload> {
    let offset = header.get(field::PAYLOAD_OFFSET) as usize;
    let len = header.get(field::PAYLOAD_LENGTH) as usize;
    let bytes = code.get(offset..)?.get(..len).filter(|bytes| offset != 0 && !bytes.is_empty())?;
    Some(Payload { offset, len, compression: super::foreign::compression(bytes) })
}

fn kernel_info(header: &SetupHeader, code: &[u8]) -> Option<KernelInfo> {
    let offset = header.get(field::KERNEL_INFO_OFFSET) as usize;
    let info = code.get(offset..).filter(|info| offset != 0 && info.starts_with(KERNEL_INFO_MAGIC))?;
    let size = u32_at(info, 4)?;
    // Later kernels may only append: 16 bytes are the fixed part of 2.15.
    (size >= 16).then_some(KernelInfo { size, size_total: u32_at(info, 8)?, setup_type_max: u32_at(info, 12)? })
}
