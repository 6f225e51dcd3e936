//! What a kernel image holds: the kernel itself, unpacked piece by piece.
//!
//! ```text
//!   bzImage: | set-up code | decompressor | payload: vmlinux, packed |  --> pieces of vmlinux
//!   vmlinux, flat image:   | as it is |                                 --> pieces of it
//! ```
//!
//! Spec: Linux Documentation/arch/x86/boot.rst, `payload_offset` and `payload_length`.

use std::io::Read;

use axvm_boot::kernel::{BzImage, KernelImage};
use axvm_boot::read_at::ReadAt;

use super::input::Input;
use super::unpack::{Format, LIMIT, Sink, unpack};

/// Hands what is in the image to `sink`, until its end or until that has enough. What it is packed by, and why not all came.
pub fn pieces(file: &dyn ReadAt, image: &KernelImage, sink: Sink<'_>) -> (Option<Format>, Result<(), String>) {
    match image {
        KernelImage::BzImage(image) => packed(file, image, sink),
        KernelImage::Vmlinux(_) | KernelImage::Flat(_) => (None, plain(&mut Input::new(file, 0, LIMIT), sink)),
    }
}

fn packed(file: &dyn ReadAt, image: &BzImage, sink: Sink<'_>) -> (Option<Format>, Result<(), String>) {
    let Some(payload) = image.payload else {
        return (None, Err("the kernel image does not tell where its payload is".into()));
    };
    let start = image.code_offset.saturating_add(payload.offset);
    let mut head = [0; 8];
    if let Err(error) = file.read_at(start, &mut head) {
        return (None, Err(format!("the kernel image cannot be read: {error}")));
    }
    let end = start.saturating_add(payload.len);
    if head.starts_with(b"\x7fELF") {
        return (None, plain(&mut Input::new(file, start, end), sink));
    }
    let Some(format) = Format::of(&head) else {
        return (None, Err("the kernel's payload is packed by no format that is known".into()));
    };
    // Behind the stream the kernel's build says how long it is unpacked.
    let end = if format == Format::Lzma { end.saturating_sub(4) } else { end };
    let done = unpack(format, &mut Input::new(file, start, end), sink);
    (Some(format), done.map_err(|error| format!("the kernel's payload: {error}")))
}

fn plain(input: &mut Input<'_>, sink: Sink<'_>) -> Result<(), String> {
    let mut piece = vec![0; 64 << 10];
    loop {
        match input.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(len) if sink(&piece[..len]).is_break() => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(format!("the kernel image cannot be read: {error}")),
        }
    }
}
