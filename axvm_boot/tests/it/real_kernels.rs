//! Real kernels: those named in `AXVM_TEST_KERNELS` (paths, separated by colons), else the stock kernels
//! that `cargo xtask boot` keeps in its cache, else those in /boot. Without any, the tests say so.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

use axvm_arch::Gpa;
use axvm_boot::kernel::{KernelImage, field, xloadflags};
use axvm_boot::linux::{Entry, LinuxConfig, prepare};
use axvm_memory::{GuestRam, RamConfig};

fn files_in(dir: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_str().is_some_and(&wanted)).map(|entry| entry.path()).collect()
}

fn cached() -> Vec<PathBuf> {
    let home = env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let Some(cache) = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or(home) else { return Vec::new() };
    let releases = files_in(&cache.join("axvm/kernels"), |_| true);
    releases.iter().flat_map(|dir| files_in(dir, |name| matches!(name, "vmlinuz" | "vmlinux"))).collect()
}

/// The kernels to try, each with its name.
fn kernels() -> Vec<(String, Vec<u8>)> {
    let mut paths: Vec<PathBuf> = env::var_os("AXVM_TEST_KERNELS").iter().flat_map(env::split_paths).collect();
    if paths.is_empty() {
        paths = cached();
    }
    if paths.is_empty() {
        paths = files_in(Path::new("/boot"), |name| name.starts_with("vmlinuz"));
    }
    let read = |path: &PathBuf| Some((path.display().to_string(), fs::read(path).ok()?));
    let kernels: Vec<_> = paths.iter().filter_map(read).collect();
    if kernels.is_empty() {
        // Past the test harness, which keeps the output of passing tests to itself.
        let test = std::thread::current().name().unwrap_or_default().to_string();
        let why = "set AXVM_TEST_KERNELS, or run cargo xtask boot once";
        let _ = writeln!(std::io::stderr(), "skipped: no kernel to try: {test}: {why}");
    }
    kernels
}

#[test]
fn stock_kernels_are_understood() {
    for (name, bytes) in kernels() {
        match KernelImage::parse(&&bytes[..]).unwrap_or_else(|error| panic!("{name}: {error}")) {
            KernelImage::BzImage(image) => {
                let header = &image.header;
                assert!(image.release.is_some(), "{name}: no version string");
                assert!(image.payload.is_some_and(|payload| payload.compression.is_some()), "{name}: no payload");
                assert!(header.init_size() > image.code_len, "{name}");
                assert!(header.has_xloadflag(xloadflags::KERNEL_64), "{name}");
                assert_eq!(header.bytes().len(), field::KERNEL_INFO_OFFSET.end() - field::SETUP_SECTS.offset, "{name}");
                assert!(image.kernel_info.is_some_and(|info| info.setup_type_max > 0), "{name}: no kernel_info");
            }
            KernelImage::Vmlinux(image) => {
                assert!(image.covers(image.entry), "{name}");
                assert!(image.pvh_entry.is_some_and(|entry| image.covers(entry)), "{name}");
            }
            KernelImage::Flat(_) => panic!("{name} is no flat kernel"),
        }
    }
}

#[test]
fn stock_kernels_get_ready_through_each_of_their_entries() {
    for (name, bytes) in kernels() {
        let ram = GuestRam::allocate(&RamConfig::new(128 << 20)).unwrap();
        let is_elf = bytes.starts_with(b"\x7fELF");
        for entry in [if is_elf { Entry::Pvh } else { Entry::Bits32 }, Entry::Bits64] {
            let command_line = "quiet".into();
            let config =
                LinuxConfig { command_line, initrd_len: Some(1 << 20), entry: Some(entry), ..LinuxConfig::default() };
            let start = prepare(&ram, &&bytes[..], &config, None).unwrap_or_else(|error| panic!("{name}: {error}"));
            for piece in &start.pieces {
                let bytes = &bytes[piece.offset as usize..][..piece.to.len as usize];
                ram.write(piece.to.gpa, bytes).unwrap();
            }
            let mut instruction = [0; 16];
            ram.read(Gpa(start.state.regs.rip), &mut instruction).unwrap();
            assert_ne!(instruction, [0; 16], "{name}, --entry {entry}: no code at the entry");
        }
    }
}

#[test]
fn a_stock_kernel_says_how_much_memory_it_needs() {
    for (name, bytes) in kernels() {
        let ram = GuestRam::allocate(&RamConfig::new(32 << 20)).unwrap();
        let config = LinuxConfig { entry: Some(Entry::Bits64), ..LinuxConfig::default() };
        let error = prepare(&ram, &&bytes[..], &config, None).unwrap_err();
        assert!(error.to_string().contains("RAM ends at 32 MiB: give the guest at least"), "{name}: {error}");
    }
}
