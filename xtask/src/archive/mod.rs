//! File formats around kernels: cpio archives, compressed modules, the ELF inside a bzImage.

pub mod bzimage;
pub mod compressed;
