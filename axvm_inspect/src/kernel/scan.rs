//! One pass over an unpacked kernel: its build configuration if it carries one, and which drivers' names are in it.
//!
//! ```text
//!   pieces of vmlinux --> ... IKCFG_ST 1f 8b ... IKCFG_ED ...      gzip: the whole configuration
//!                         ... "Linux version 6.1.0 ..."            it is Linux at all
//!                         ... virtio_blk NUL ...                   a driver registers itself by its name
//! ```
//!
//! A driver that is built in has its name in the image, ended by a NUL (the linker may let another string share that
//! end). So a name that is nowhere proves that the driver is not built in; whether it is a module no image tells.
//!
//! Source: Linux `kernel/configs.c`, `scripts/extract-ikconfig`; `init/version.c`.

use std::collections::BTreeSet;
use std::io::Read;
use std::ops::ControlFlow::{self, Break, Continue};

use super::config::{BuildConfig, LIMIT};

/// With the first bytes of what is packed.
const START: &[u8] = b"IKCFG_ST\x1f\x8b";
const GZIP: &[u8] = b"\x1f\x8b";
const END: &[u8] = b"IKCFG_ED";
const BANNER: &[u8] = b"Linux version ";
/// Bytes kept from one piece to the next: as long as the longest that is looked for.
const OVERLAP: usize = 64;

/// What was seen so far.
pub struct Scan {
    /// By last byte: the names that end with it.
    by_end: Vec<Vec<&'static str>>,
    /// The end of what was seen.
    before: Vec<u8>,
    /// A packed configuration that has begun and not ended.
    packed: Option<Vec<u8>>,
    /// The configuration.
    pub config: Option<BuildConfig>,
    /// Names that are there.
    pub found: BTreeSet<&'static str>,
    /// Whether this is Linux.
    pub is_linux: bool,
}

impl Scan {
    /// Looks for these names.
    pub fn new(names: impl IntoIterator<Item = &'static str>) -> Scan {
        let mut by_end = vec![Vec::new(); 256];
        for name in names {
            by_end[usize::from(name.as_bytes().last().copied().unwrap_or(0))].push(name);
        }
        let found = BTreeSet::new();
        Scan { by_end, before: Vec::new(), packed: None, config: None, found, is_linux: false }
    }

    /// Looks at the next piece; `Break` when the configuration tells it all.
    pub fn piece(&mut self, piece: &[u8]) -> ControlFlow<()> {
        if self.packed.is_some() {
            return self.collect(piece);
        }
        let mut window = std::mem::take(&mut self.before);
        // What was looked at already is there to be compared with.
        let mut at = window.len();
        window.extend_from_slice(piece);
        while let Some(found) = window[at..].iter().position(|&byte| matches!(byte, 0 | 0x8b | b' ')) {
            let place = at + found;
            at = place + 1;
            match window[place] {
                0 => self.name(&window[..place]),
                b' ' => self.is_linux |= window[..at].ends_with(BANNER),
                _ if window[..at].ends_with(START) => {
                    self.packed = Some(GZIP.to_vec());
                    return self.collect(&window[at..]);
                }
                _ => {}
            }
        }
        self.before = window.split_off(window.len().saturating_sub(OVERLAP));
        Continue(())
    }

    fn name(&mut self, until: &[u8]) {
        let names = until.last().map_or(&[][..], |&last| &self.by_end[usize::from(last)]);
        self.found.extend(names.iter().filter(|name| until.ends_with(name.as_bytes())));
    }

    /// More of the packed configuration. One that has no end, or cannot be read, is none.
    fn collect(&mut self, piece: &[u8]) -> ControlFlow<()> {
        let mut packed = self.packed.take().unwrap_or_default();
        let from = packed.len().saturating_sub(END.len());
        packed.extend_from_slice(piece);
        match packed[from..].windows(END.len()).position(|bytes| bytes == END) {
            Some(end) => {
                packed.truncate(from + end);
                self.config = unpacked(&packed);
                if self.config.is_some() { Break(()) } else { Continue(()) }
            }
            None => {
                self.packed = Some(packed).filter(|packed| packed.len() <= LIMIT);
                Continue(())
            }
        }
    }
}

fn unpacked(packed: &[u8]) -> Option<BuildConfig> {
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(packed).take(LIMIT as u64).read_to_end(&mut text).ok()?;
    BuildConfig::parse(&String::from_utf8_lossy(&text))
}

#[cfg(test)]
mod tests {
    use super::super::packed::packed;
    use super::super::unpack::Format;
    use super::*;

    const CONFIG: &str = "CONFIG_X86_64=y\nCONFIG_VIRTIO_BLK=m\n";

    /// In pieces of every length.
    fn each_way(image: &[u8], check: impl Fn(&Scan)) {
        for len in [1, 7, 64, 65, image.len()] {
            let mut scan = Scan::new(["virtio_blk", "virtio-mmio", "ext4"]);
            let _ = image.chunks(len).try_for_each(|piece| scan.piece(piece));
            check(&scan);
        }
    }

    fn with_config(config: &[u8]) -> Vec<u8> {
        [b"...Linux version 9.9.9 (x)\0virtio_blk\0IKCFG_ST", config, b"IKCFG_ED ext4\0"].concat()
    }

    #[test]
    fn names_are_found_over_the_edges_of_pieces_and_only_where_they_end() {
        each_way(b"Linux version 9.9.9\0xyvirtio_blk\0virtio-mmio.x\0", |scan| {
            assert_eq!((scan.found.iter().copied().collect::<Vec<_>>(), scan.is_linux), (vec!["virtio_blk"], true));
        });
        each_way(b"\0\0Linux versions\0 ext4", |scan| assert!(scan.found.is_empty() && !scan.is_linux));
    }

    #[test]
    fn a_configuration_in_the_image_ends_the_search() {
        let image = with_config(&packed(Format::Gzip, CONFIG.as_bytes()));
        each_way(&image, |scan| {
            assert_eq!(scan.config.as_ref().unwrap().value("VIRTIO_BLK"), Some("m"));
            assert!(!scan.found.contains("ext4"));
        });
    }

    #[test]
    fn what_only_looks_like_a_configuration_is_passed_over() {
        let bomb = packed(Format::Gzip, &vec![b'#'; 2 << 20]);
        let cut = &packed(Format::Gzip, CONFIG.as_bytes())[..20];
        for config in [&b"nothing"[..], b"\x1f\x8b", cut, &bomb] {
            let mut scan = Scan::new(["ext4"]);
            let image = with_config(config);
            assert!(scan.piece(&image).is_continue() && scan.config.is_none());
        }
        let mut scan = Scan::new(["ext4"]);
        assert!(scan.piece(b"IKCFG_ST\x1f\x8b").is_continue());
        for _ in 0..20 {
            assert!(scan.piece(&[1; 100_000]).is_continue());
        }
        assert!(scan.piece(b"IKCFG_ED\0ext4\0").is_continue() && scan.found.contains("ext4"), "it had no end");
    }
}
