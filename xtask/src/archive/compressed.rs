//! Decompression of what kernels come in: LZ4 (legacy frame), ZSTD, XZ; told apart by their first bytes.
//!
//! Spec: LZ4 frame format 1.6.4, "Legacy frame"; RFC 8878 "Zstandard"; the .xz file format 1.2.1.
//! Left out: gzip, bzip2, LZMA, LZO, which no kernel we fetch uses.

use std::io::{Cursor, Read};

use anyhow::{Context, Result, bail};

const LZ4_LEGACY: [u8; 4] = 0x184c_2102_u32.to_le_bytes();
const ZSTD: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();
const XZ: [u8; 4] = [0xfd, b'7', b'z', b'X'];
/// A block of the legacy frame never unpacks to more.
const LZ4_BLOCK: usize = 8 << 20;

/// Unpacks `data`; what carries none of the known signatures is an error. Bytes after the compressed stream do no harm.
pub fn decompress(data: &[u8]) -> Result<Vec<u8>> {
    match data.first_chunk::<4>() {
        Some(&LZ4_LEGACY) => lz4_legacy(&data[4..]),
        Some(&ZSTD) => {
            let mut out = Vec::new();
            let mut decoder = ruzstd::decoding::StreamingDecoder::new(data).context("Cannot read the ZSTD header")?;
            decoder.read_to_end(&mut out).context("Cannot unpack ZSTD")?;
            Ok(out)
        }
        Some(&XZ) => {
            let mut out = Vec::new();
            lzma_rs::xz_decompress(&mut Cursor::new(data), &mut out).context("Cannot unpack XZ")?;
            Ok(out)
        }
        start => bail!("Unknown compression, first bytes {start:02x?}; known are LZ4, ZSTD and XZ"),
    }
}

/// `[len: u32][block]` until the data ends; the kernel's build appends the unpacked length, which no block can have.
fn lz4_legacy(mut data: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    while let Some((len, rest)) = data.split_first_chunk::<4>() {
        let len = u32::from_le_bytes(*len) as usize;
        let Some(block) = rest.get(..len) else { break };
        let mut plain = vec![0; LZ4_BLOCK];
        let plain_len = lz4_flex::block::decompress_into(block, &mut plain).context("Cannot unpack an LZ4 block")?;
        out.extend_from_slice(&plain[..plain_len]);
        data = &rest[len..];
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legacy_lz4_blocks_are_joined_and_the_trailing_length_ignored() {
        let mut frame = LZ4_LEGACY.to_vec();
        for part in [b"one and ".as_slice(), b"two"] {
            let block = lz4_flex::block::compress(part);
            frame.extend_from_slice(&u32::try_from(block.len()).unwrap().to_le_bytes());
            frame.extend_from_slice(&block);
        }
        frame.extend_from_slice(&11_u32.to_le_bytes());
        assert_eq!(decompress(&frame).unwrap(), b"one and two");
    }

    #[test]
    fn unknown_format_is_named_by_its_first_bytes() {
        let error = decompress(b"\x1f\x8b\x08\x00").unwrap_err().to_string();
        assert!(error.contains("[1f, 8b, 08, 00]"), "{error}");
    }
}
