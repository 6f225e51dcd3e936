//! Real kernels and initrds: the stock ones that `cargo xtask boot` and the lab keep in their cache. Without any, the
//! tests say so.
//!
//! ```text
//!   vmlinuz  --unpack--> names of drivers     both must say the same of each feature, so the names of AxVM's table are
//!   config-* ----------> options              those of the sources, and four ways of packing are read to the end
//! ```

use std::io::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

use axvm_boot::acpi::Acpi;
use axvm_boot::plan::{Plan, VirtioKind};
use axvm_inspect::kernel::feature::{ALL, BLOCK, Feature};
use axvm_inspect::kernel::{
    Beside, Evidence, FileSystem, InitrdFacts, KernelFacts, Needs, Presence, examine, initrd, lint, release,
};
use axvm_inspect::symbols::Symbols;

/// What is in a directory of the cache.
fn cached(directory: &str) -> impl Iterator<Item = PathBuf> {
    let home = env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or(home).unwrap_or_default().join(directory);
    fs::read_dir(cache).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// The cloud kernels, each with what is beside it. The generic ones are like them, and take longer.
fn kernels() -> Vec<(PathBuf, Vec<u8>, Beside)> {
    let paths = cached("axvm/kernels");
    let paths = paths.filter(|path| path.to_string_lossy().ends_with("cloud-amd64")).map(|path| path.join("vmlinuz"));
    let opened = paths.filter_map(|path| {
        let bytes = fs::read(&path).ok()?;
        let beside = Beside::of(&path, release(&&bytes[..]).as_deref());
        Some((path, bytes, beside))
    });
    let kernels: Vec<_> = opened.filter(|(.., beside)| beside.config.is_some()).collect();
    if kernels.is_empty() {
        skip();
    }
    kernels
}

/// Past the test harness, which keeps the output of passing tests to itself.
fn skip() {
    let test = std::thread::current().name().unwrap_or_default().to_string();
    let _ = writeln!(std::io::stderr(), "skipped: no kernel to look into: {test}: run cargo xtask lab once");
}

/// Whether names say what the configuration says, or less.
fn agree(feature: &Feature, names: &KernelFacts, config: &KernelFacts) -> bool {
    match (names.has(feature).presence, config.has(feature).presence) {
        (Presence::Unknown, _) | (Presence::NotBuiltIn, Presence::Module | Presence::Absent) => true,
        // A part of a module that it is not known to be.
        (Presence::Absent, Presence::BuiltIn) => feature.option == "VIRTIO_MMIO_CMDLINE_DEVICES",
        (names, config) => names == config,
    }
}

#[test]
fn names_in_stock_kernels_say_what_their_configuration_says() {
    for (path, bytes, beside) in kernels() {
        let path = path.display();
        let names = examine(&&bytes[..], &Beside::default()).unwrap();
        assert_eq!(names.evidence(), &Evidence::Names, "{path}");
        assert!(names.packed.is_some() && names.release.is_some(), "{path}: {names:?}");
        let config = KernelFacts::beside(&beside).unwrap();
        assert!(matches!(config.evidence(), Evidence::Config(_)), "{path}: {}", config.evidence());
        for feature in ALL {
            let (by_names, by_config) = (names.has(feature), config.has(feature));
            assert!(agree(feature, &names, &config), "{path}: {feature:?}: {by_names:?}, {by_config:?}");
        }
        let listed = KernelFacts::beside(&Beside { config: None, ..beside });
        for (feature, list) in ALL.iter().flat_map(|feature| Some((feature, listed.as_ref()?))) {
            assert!(agree(feature, list, &config), "{path}: {feature:?}: {:?}", list.has(feature));
        }
        let known = ALL.iter().filter(|feature| names.has(feature).presence != Presence::Unknown).count();
        assert!(known > ALL.len() / 2, "{path}: names tell of {known} features");
    }
}

#[test]
fn stock_kernels_name_their_functions() {
    // Alpine's is the newest.
    let newest =
        cached("axvm").map(|path| path.join("vmlinuz")).filter(|path| path.to_string_lossy().contains("alpine-"));
    let newest = newest.filter_map(|path| Some((fs::read(&path).ok()?, path)));
    for (bytes, path) in kernels().into_iter().map(|(path, bytes, _)| (bytes, path)).chain(newest) {
        let path = path.display();
        let symbols = Symbols::read(&&bytes[..]).unwrap_or_else(|error| panic!("{path}: {error}"));
        let [text, entry, start] = ["_text", "entry_SYSCALL_64", "start_kernel"].map(|name| symbols.address(name));
        assert_eq!(text, Some(0xffff_ffff_8100_0000), "{path}");
        assert!(entry >= text && start > text && symbols.functions().count() > 30_000, "{path}");
    }
}

#[test]
fn a_stock_kernel_without_its_modules_is_told_apart_from_one_with_them() {
    let plan = Plan::new(&[VirtioKind::Block(0), VirtioKind::Entropy], Acpi::Full).unwrap();
    let mut machine = Needs::of(&plan, &[0, 1], "console=ttyS0 root=/dev/vda rw");
    machine.has_initrd = true;
    for (path, _, beside) in kernels() {
        let kernel = KernelFacts::beside(&beside).unwrap();
        assert_eq!(kernel.has(&BLOCK).presence, Presence::Module, "{}", path.display());
        let rules = |modules: &[&str]| {
            let modules = modules.iter().map(|&module| module.to_owned()).collect();
            let findings = lint(&kernel, Some(&InitrdFacts { modules, ..InitrdFacts::default() }), &machine);
            findings.iter().map(|finding| finding.rule).collect::<Vec<_>>()
        };
        assert_eq!(rules(&[]), ["virtio-bus", "virtio-blk"], "{}", path.display());
        assert_eq!(rules(&["virtio_mmio", "virtio_blk"]), [""; 0], "{}", path.display());
    }
}

#[test]
fn a_distribution_with_its_own_initrd_lacks_nothing() {
    let pairs = cached("axvm").filter_map(|directory| {
        Some((fs::read(directory.join("vmlinuz")).ok()?, fs::read(directory.join("initrd.img")).ok()?, directory))
    });
    let devices = [VirtioKind::Block(0), VirtioKind::Entropy, VirtioKind::Net(0)];
    let plan = Plan::on_pci(&devices, Acpi::Full, 1 << 30).unwrap();
    let mut machine = Needs::of(&plan, &[0, 1], "console=ttyS0 root=/dev/vda rw");
    (machine.has_initrd, machine.first_disk) = (true, FileSystem::named("ext4"));
    let mut count = 0;
    for (kernel, image, directory) in pairs.take(1) {
        let place = directory.display();
        let initrd = initrd::examine(&&image[..]);
        assert_eq!(initrd.unread, None, "{place}");
        assert!(initrd.has("virtio_blk") == Some(true) && initrd.has("none") == Some(false), "{place}: {initrd:?}");
        let kernel = examine(&&kernel[..], &Beside::default()).unwrap();
        assert!(kernel.is_known(), "{place}: {}", kernel.evidence());
        assert_eq!(lint(&kernel, Some(&initrd), &machine), [], "{place}");
        let bare = lint(&kernel, Some(&InitrdFacts::default()), &machine);
        assert!(bare.iter().any(|finding| finding.rule == "virtio-blk"), "{place}: {bare:?}");
        count += 1;
    }
    if count == 0 {
        skip();
    }
}
