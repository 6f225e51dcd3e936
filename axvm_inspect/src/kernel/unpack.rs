//! Unpacking what kernels and initrds are packed by, piece by piece: no more than a window of it is ever in memory.
//!
//! ```text
//!   input --format, by its first bytes--> pieces --> sink    until the end, the sink has enough, or LIMIT
//! ```
//!
//! Spec: RFC 1952 (gzip), RFC 8878 (Zstandard), the .xz file format 1.2.1, LZ4 frame format 1.6.4, "Legacy frame";
//! Linux `lib/decompress_*.c` for what kernels accept. Left out: LZ4's newer frames, which Linux does not unpack;
//! checksums of LZO.

use std::fmt;
use std::io::{self, BufRead, Read, Write};
use std::ops::ControlFlow::{self, Break, Continue};

use thiserror::Error;

use super::input::Input;

/// No more than so many bytes come out: the largest kernels have a tenth of it.
pub const LIMIT: u64 = 512 << 20;
/// Most memory that a window may take, in bytes: what `zstd --ultra` and kernels' builds use, and no more.
const WINDOW: usize = 128 << 20;
/// Bytes handed on at once.
const PIECE: usize = 64 << 10;
/// A block of LZ4's legacy frame never unpacks to more.
const LZ4_BLOCK: usize = 8 << 20;
/// The same for LZO.
const LZO_BLOCK: usize = 256 << 10;
const LZ4_MAGIC: [u8; 4] = 0x184c_2102_u32.to_le_bytes();
const LZO_MAGIC: [u8; 9] = *b"\x89LZO\0\r\n\x1a\n";

/// A way to pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// Deflate with gzip's header.
    Gzip,
    /// Bzip2.
    Bzip2,
    /// The older container of LZMA.
    Lzma,
    /// LZMA2 in blocks, with the filter for x86 where a kernel is in it.
    Xz,
    /// LZO1X, in lzop's container.
    Lzo,
    /// LZ4 blocks in the older ("legacy") frame.
    Lz4,
    /// Zstandard.
    Zstd,
}

impl Format {
    /// Every format that Linux unpacks.
    pub const ALL: [Format; 7] =
        [Format::Gzip, Format::Bzip2, Format::Lzma, Format::Xz, Format::Lzo, Format::Lz4, Format::Zstd];

    /// The format that begins with these bytes.
    pub fn of(head: &[u8]) -> Option<Format> {
        Format::ALL.into_iter().find(|format| format.magics().iter().any(|magic| head.starts_with(magic)))
    }

    fn magics(self) -> &'static [&'static [u8]] {
        match self {
            Format::Gzip => &[b"\x1f\x8b", b"\x1f\x9e"],
            Format::Bzip2 => &[b"BZh"],
            Format::Lzma => &[b"\x5d\0\0"],
            Format::Xz => &[b"\xfd7zXZ\0"],
            Format::Lzo => &[b"\x89LZO\0"],
            Format::Lz4 => &[&LZ4_MAGIC],
            Format::Zstd => &[b"\x28\xb5\x2f\xfd"],
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Gzip => "gzip",
            Format::Bzip2 => "bzip2",
            Format::Lzma => "lzma",
            Format::Xz => "xz",
            Format::Lzo => "lzo",
            Format::Lz4 => "lz4",
            Format::Zstd => "zstd",
        })
    }
}

/// It cannot be unpacked to its end.
#[derive(Debug, Error)]
pub enum UnpackError {
    /// It is damaged, or uses what is not known here.
    #[error("it cannot be unpacked by {format}: {why}")]
    Damaged {
        /// What it is packed by.
        format: Format,
        /// What the format's reader says.
        why: String,
    },
    /// It has no end.
    #[error("it unpacks to more than {} MiB", LIMIT >> 20)]
    TooLarge,
}

/// What takes the pieces; it may have enough before the end.
pub type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> ControlFlow<()>;

/// Unpacks what `input` holds; of its bytes only those of this one stream are taken. Behind a stream of LZMA nothing may
/// follow.
pub fn unpack(format: Format, input: &mut Input<'_>, sink: Sink<'_>) -> Result<(), UnpackError> {
    let mut out = Counted { sink, left: LIMIT, end: None };
    let done = match format {
        Format::Gzip => copy(flate2::bufread::GzDecoder::new(input), &mut out),
        Format::Bzip2 => copy(bzip2::bufread::BzDecoder::new(input), &mut out),
        Format::Lzma => lzma(input, &mut out),
        Format::Xz => xz(input, &mut out),
        Format::Lzo => lzo(input, &mut out),
        Format::Lz4 => lz4(input, &mut out),
        Format::Zstd => zstd(input, &mut out),
    };
    match (out.end, done) {
        (Some(End::Enough), _) | (None, Ok(())) => Ok(()),
        (Some(End::TooLarge), _) => Err(UnpackError::TooLarge),
        (None, Err(error)) => Err(UnpackError::Damaged { format, why: error.to_string() }),
    }
}

/// Why no more is wanted.
#[derive(Clone, Copy)]
enum End {
    Enough,
    TooLarge,
}

/// A sink as something to write to; a write after the end is an error.
struct Counted<'a> {
    sink: Sink<'a>,
    left: u64,
    end: Option<End>,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.end = self.end.or_else(|| match self.left.checked_sub(bytes.len() as u64) {
            None => Some(End::TooLarge),
            Some(left) => {
                self.left = left;
                match (self.sink)(bytes) {
                    Break(()) => Some(End::Enough),
                    Continue(()) => None,
                }
            }
        });
        if self.end.is_some() { Err(io::Error::other("no more is wanted")) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn copy(mut from: impl Read, out: &mut Counted<'_>) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(len) => out.write_all(&piece[..len])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn zstd(input: &mut Input<'_>, out: &mut Counted<'_>) -> io::Result<()> {
    let decoder = ruzstd::decoding::StreamingDecoder::new_with_max_window_size(input, WINDOW as u64);
    copy(decoder.map_err(io::Error::other)?, out)
}

fn lzma(input: &mut Input<'_>, out: &mut Counted<'_>) -> io::Result<()> {
    let options = lzma_rs::decompress::Options { memlimit: Some(WINDOW), ..Default::default() };
    lzma_rs::lzma_decompress_with_options(input, out, &options).map_err(|error| match error {
        lzma_rs::error::Error::IoError(error) => error,
        error => io::Error::other(format!("{error:?}")),
    })
}

fn xz(input: &mut Input<'_>, out: &mut Counted<'_>) -> io::Result<()> {
    let mut decoder = xz4rust::XzDecoder::in_heap_with_alloc_dict_size(PIECE, WINDOW);
    let mut piece = vec![0; PIECE];
    loop {
        let from = input.fill_buf()?;
        let ended = from.is_empty();
        let step = decoder.decode(from, &mut piece).map_err(|error| io::Error::other(error.to_string()))?;
        input.consume(step.input_consumed());
        out.write_all(&piece[..step.output_produced()])?;
        if step.is_end_of_stream() {
            return Ok(());
        }
        if ended && !step.made_progress() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// `[magic] ([len: u32][block])...`. The kernel's build appends the unpacked length, which no block can have; another
/// frame may follow. What ends it is left in the input.
fn lz4(input: &mut Input<'_>, out: &mut Counted<'_>) -> io::Result<()> {
    input.skip(LZ4_MAGIC.len() as u64);
    let mut plain = vec![0; LZ4_BLOCK];
    while let Some(len) = input.peek()? {
        let block_len = u32::from_le_bytes(len) as usize;
        if len != LZ4_MAGIC && (block_len == 0 || block_len > lz4_flex::block::get_maximum_output_size(LZ4_BLOCK)) {
            break;
        }
        input.skip(len.len() as u64);
        if len == LZ4_MAGIC {
            continue;
        }
        let mut block = vec![0; block_len];
        if input.read_exact(&mut block).is_err() {
            // The kernel's own appended length may look like that of a block.
            return Ok(());
        }
        let plain_len = lz4_flex::block::decompress_into(&block, &mut plain).map_err(io::Error::other)?;
        out.write_all(&plain[..plain_len])?;
    }
    Ok(())
}

/// `[magic][header][unpacked: u32][packed: u32][checksums][block] ... [0: u32]`, numbers big-endian.
fn lzo(input: &mut Input<'_>, out: &mut Counted<'_>) -> io::Result<()> {
    const HAS_FILTER: u32 = 0x800;
    const CHECK_PLAIN: [u32; 2] = [0x1, 0x100];
    const CHECK_PACKED: [u32; 2] = [0x2, 0x200];
    input.skip(LZO_MAGIC.len() as u64);
    let version = u16::from_be_bytes(array(input)?);
    // The library's version; the version that is needed; the method; the level.
    input.skip(if version >= 0x940 { 2 + 2 + 1 + 1 } else { 2 + 1 });
    let flags = u32::from_be_bytes(array(input)?);
    // The filter; the mode; times; the name; the header's checksum.
    input.skip(if flags & HAS_FILTER != 0 { 4 } else { 0 });
    input.skip(if version >= 0x940 { 4 + 4 + 4 } else { 4 + 4 });
    let [name_len] = array(input)?;
    input.skip(u64::from(name_len) + 4);
    let count = |checks: [u32; 2]| checks.iter().filter(|&bit| flags & bit != 0).count() as u64;
    let mut plain = vec![0; LZO_BLOCK];
    loop {
        let plain_len = u32::from_be_bytes(array(input)?) as usize;
        if plain_len == 0 {
            return Ok(());
        }
        let packed_len = u32::from_be_bytes(array(input)?) as usize;
        if plain_len > LZO_BLOCK || packed_len > plain_len {
            return Err(io::Error::other("a block is longer than blocks are"));
        }
        input.skip(4 * count(CHECK_PLAIN) + if packed_len < plain_len { 4 * count(CHECK_PACKED) } else { 0 });
        let mut packed = vec![0; packed_len];
        input.read_exact(&mut packed)?;
        if packed_len == plain_len {
            out.write_all(&packed)?;
            continue;
        }
        let len = lzokay::decompress::decompress(&packed, &mut plain[..plain_len]);
        let len = len.map_err(|error| io::Error::other(format!("{error:?}")))?;
        out.write_all(&plain[..len])?;
    }
}

fn array<const LEN: usize>(input: &mut Input<'_>) -> io::Result<[u8; LEN]> {
    let mut bytes = [0; LEN];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::packed::packed;
    use super::*;

    /// What comes out, and where the input stands then.
    fn unpacked(bytes: &[u8]) -> (Result<Vec<u8>, String>, u64) {
        let mut input = Input::new(&bytes, 0, u64::MAX);
        let mut all = Vec::new();
        let format = Format::of(bytes).expect("a known format");
        let done = unpack(format, &mut input, &mut |piece| {
            all.extend_from_slice(piece);
            Continue(())
        });
        (done.map(|()| all).map_err(|error| error.to_string()), input.position())
    }

    #[test]
    fn every_format_gives_back_what_was_packed_and_takes_no_byte_more() {
        let plain: Vec<u8> = (0..100_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        for format in Format::ALL {
            let packed = packed(format, &plain);
            // What no block of LZ4 can begin with.
            let behind: &[u8] = if format == Format::Lzma { b"" } else { b"070701 is another archive" };
            let behind = [&packed[..], behind].concat();
            let (out, position) = unpacked(&behind);
            assert!(out.as_ref() == Ok(&plain), "{format}: {:?}", out.map(|out| out.len()));
            assert_eq!(position, packed.len() as u64, "{format}");
        }
    }

    #[test]
    fn what_is_damaged_or_cut_off_is_an_error_and_never_a_panic() {
        let plain: Vec<u8> = (0..4_000_u32).flat_map(|n| (n / 5).to_le_bytes()).collect();
        for format in Format::ALL {
            let packed = packed(format, &plain);
            let magic_len = format.magics()[0].len();
            for cut in (magic_len..packed.len()).step_by(packed.len() / 13 + 1) {
                let (out, _) = unpacked(&packed[..cut]);
                // The end of lz4 is that of the file.
                assert!(format == Format::Lz4 || out.is_err(), "{format} cut at {cut}");
            }
            for at in (magic_len..packed.len()).step_by(packed.len() / 47 + 1) {
                let mut damaged = packed.clone();
                damaged[at] ^= 0x5a;
                let _ = unpacked(&damaged);
            }
        }
    }

    #[test]
    fn a_sink_that_has_enough_ends_it() {
        for format in Format::ALL {
            let packed = packed(format, &vec![7; 10 << 20]);
            let bytes = &packed[..];
            let mut len = 0;
            let done = unpack(format, &mut Input::new(&bytes, 0, u64::MAX), &mut |piece| {
                len += piece.len();
                Break(())
            });
            assert!(done.is_ok() && len <= 8 << 20, "{format}: {done:?}, {len}");
        }
    }

    #[test]
    fn what_has_no_end_is_refused() {
        let mut left = 3;
        let mut sink = |_: &[u8]| {
            if left == 0 {
                Break(())
            } else {
                left -= 1;
                Continue(())
            }
        };
        let mut out = Counted { sink: &mut sink, left: 10, end: None };
        assert!(out.write_all(b"12345678").is_ok() && out.write_all(b"123").is_err());
        assert!(matches!(out.end, Some(End::TooLarge)));
    }
}
