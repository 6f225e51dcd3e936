//! Packing, for tests: each format as the kernel's build would make it, by the libraries that unpack it.

use std::io::Write;

use super::unpack::Format;

/// `plain`, packed.
pub fn packed(format: Format, plain: &[u8]) -> Vec<u8> {
    match format {
        Format::Gzip => {
            let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packer.write_all(plain).unwrap();
            packer.finish().unwrap()
        }
        Format::Bzip2 => {
            let mut packer = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            packer.write_all(plain).unwrap();
            packer.finish().unwrap()
        }
        Format::Lzma => {
            let mut out = Vec::new();
            lzma_rs::lzma_compress(&mut &plain[..], &mut out).unwrap();
            out
        }
        Format::Xz => {
            let mut out = Vec::new();
            lzma_rs::xz_compress(&mut &plain[..], &mut out).unwrap();
            out
        }
        Format::Lzo => lzo(plain),
        Format::Lz4 => {
            let mut out = 0x184c_2102_u32.to_le_bytes().to_vec();
            for part in plain.chunks(8 << 20) {
                let block = lz4_flex::block::compress(part);
                out.extend_from_slice(&(block.len() as u32).to_le_bytes());
                out.extend_from_slice(&block);
            }
            out
        }
        Format::Zstd => ruzstd::encoding::compress_to_vec(plain, ruzstd::encoding::CompressionLevel::Fastest),
    }
}

/// As lzop writes it: version 1.030, LZO1X-1, Adler-32 of what is unpacked.
fn lzo(plain: &[u8]) -> Vec<u8> {
    let mut out = b"\x89LZO\0\r\n\x1a\n".to_vec();
    out.extend_from_slice(&[0x10, 0x30, 0x20, 0xa0, 0x09, 0x40, 1, 5]);
    out.extend_from_slice(&1_u32.to_be_bytes());
    out.extend_from_slice(&[0; 12]);
    out.push(3);
    out.extend_from_slice(b"cpiSUM!");
    for part in plain.chunks(256 << 10) {
        let block = lzokay::compress::compress(part).unwrap();
        let block = if block.len() < part.len() { &block } else { part };
        for number in [part.len() as u32, block.len() as u32, 0] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out.extend_from_slice(block);
    }
    out.extend_from_slice(&[0; 4]);
    out
}
