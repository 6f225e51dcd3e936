//! What a kernel may have, by each of its names.
//!
//! ```text
//!              option of the build   module           name that the image holds if it is built in
//!   BLOCK      CONFIG_VIRTIO_BLK     virtio_blk.ko    "virtio_blk", a driver's
//!   ACPI       CONFIG_ACPI           cannot be one    "LNXSYSTM", an id of the ACPI core's
//! ```
//!
//! Source: Linux `Kconfig` files and makefiles, 5.10 to 6.18; the names are those by which the sources register drivers,
//! file systems and parameters.

/// One thing that a kernel may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// The option that builds it, without `CONFIG_`.
    pub option: &'static str,
    /// The module that it may be, as the kernel writes its name.
    pub module: Option<&'static str>,
    /// What the image holds, ended by a NUL, if and only if it is built in.
    pub name: Option<&'static str>,
}

/// Defines each feature as a constant, and [`ALL`] as all of them.
macro_rules! features {
    ($($about:literal $constant:ident $option:literal $module:expr, $name:expr;)*) => {
        $(
            #[doc = $about]
            pub const $constant: Feature = Feature { option: $option, module: $module, name: $name };
        )*
        /// Every feature that rules ask for.
        pub const ALL: &[Feature] = &[$($constant),*];
    };
}

features! {
    "The bus of virtio devices in memory." MMIO "VIRTIO_MMIO" Some("virtio_mmio"), Some("virtio-mmio");
    "Such devices from the command line." MMIO_WORDS "VIRTIO_MMIO_CMDLINE_DEVICES" None, Some("virtio-mmio-cmdline");
    "Virtio devices on PCI." VIRTIO_PCI "VIRTIO_PCI" Some("virtio_pci"), Some("virtio-pci");
    "The bus of PCI." PCI "PCI" None, None;
    "Interrupts as messages." PCI_MSI "PCI_MSI" None, None;
    "Virtio disks." BLOCK "VIRTIO_BLK" Some("virtio_blk"), Some("virtio_blk");
    "Virtio network cards." NET "VIRTIO_NET" Some("virtio_net"), Some("virtio_net");
    "Virtio consoles and ports." CONSOLE "VIRTIO_CONSOLE" Some("virtio_console"), Some("virtio_console");
    "The virtio socket device." VSOCK "VIRTIO_VSOCKETS" Some("vmw_vsock_virtio_transport"), Some("vmw_vsock_virtio_transport");
    "The serial port." SERIAL "SERIAL_8250" Some("8250"), Some("serial8250");
    "The kernel's console on it." SERIAL_CONSOLE "SERIAL_8250_CONSOLE" None, None;
    "ACPI." ACPI "ACPI" None, Some("LNXSYSTM");
    "More than one processor." SMP "SMP" None, Some("nosmp");
    "APIC ids above 254." X2APIC "X86_X2APIC" None, Some("nox2apic");
    "Processors from the MP table." MPPARSE "X86_MPPARSE" None, Some("update_mptable");
    "KVM's clock." KVM_GUEST "KVM_GUEST" None, Some("no-kvmclock");
    "The PVH entry." PVH "PVH" None, None;
    "Device files by the kernel." DEVTMPFS "DEVTMPFS" None, Some("devtmpfs");
    "Those mounted before init runs." DEVTMPFS_MOUNT "DEVTMPFS_MOUNT" None, None;
    "Initrds." INITRD "BLK_DEV_INITRD" None, Some("noinitrd");
    "Initrds by gzip." RD_GZIP "RD_GZIP" None, None;
    "Initrds by bzip2." RD_BZIP2 "RD_BZIP2" None, None;
    "Initrds by lzma." RD_LZMA "RD_LZMA" None, None;
    "Initrds by xz." RD_XZ "RD_XZ" None, None;
    "Initrds by lzo." RD_LZO "RD_LZO" None, None;
    "Initrds by lz4." RD_LZ4 "RD_LZ4" None, None;
    "Initrds by zstd." RD_ZSTD "RD_ZSTD" None, None;
    "A command line of its own." CMDLINE_OVERRIDE "CMDLINE_OVERRIDE" None, None;
    "ext4, ext3 and ext2." EXT4 "EXT4_FS" Some("ext4"), Some("ext4");
    "XFS." XFS "XFS_FS" Some("xfs"), Some("fs/xfs");
    "Btrfs." BTRFS "BTRFS_FS" Some("btrfs"), Some("btrfs");
    "Squashfs." SQUASHFS "SQUASHFS" Some("squashfs"), Some("squashfs");
    "EROFS." EROFS "EROFS_FS" Some("erofs"), Some("erofs");
    "F2FS." F2FS "F2FS_FS" Some("f2fs"), Some("f2fs");
}
