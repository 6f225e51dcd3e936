//! What a machine needs of its guest, as a plain value.
//!
//! ```text
//!   plan: devices, bus, ACPI --.
//!   processors' APIC ids ------+--> Needs --> rules
//!   command line, initrd ------'
//! ```

use axvm_boot::acpi::Acpi;
use axvm_boot::linux::Entry;
use axvm_boot::plan::{Plan, VirtioKind};

use super::feature::{self, Feature};

/// What rules ask about the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needs {
    /// The whole command line.
    pub command_line: String,
    /// Its virtio devices.
    pub devices: Vec<VirtioKind>,
    /// Whether they are on PCI; in memory otherwise.
    pub on_pci: bool,
    /// What ACPI tables tell.
    pub acpi: Acpi,
    /// How many vCPUs.
    pub vcpus: u32,
    /// The highest local APIC id.
    pub last_apic_id: u32,
    /// How the kernel is entered, if that was said.
    pub entry: Option<Entry>,
    /// Whether there is an initrd.
    pub has_initrd: bool,
    /// Whether what the serial port says is seen.
    pub serial_is_shown: bool,
    /// The file system on the first disk, if that is known.
    pub first_disk: Option<FileSystem>,
}

impl Needs {
    /// Of a machine of this plan, with vCPUs of these APIC ids.
    pub fn of(plan: &Plan, apic_ids: &[u32], command_line: impl Into<String>) -> Needs {
        Needs {
            command_line: command_line.into(),
            devices: plan.virtio().map(|(kind, _)| kind).collect(),
            on_pci: plan.has_pci(),
            acpi: plan.acpi(),
            vcpus: apic_ids.len() as u32,
            last_apic_id: apic_ids.iter().copied().max().unwrap_or(0),
            entry: None,
            has_initrd: false,
            serial_is_shown: true,
            first_disk: None,
        }
    }

    /// The last value of a word `key=value` on the command line, before what is init's own.
    pub(super) fn word(&self, key: &'static str) -> Option<&str> {
        self.words(key).last()
    }

    /// All values of it.
    pub(super) fn words(&self, key: &'static str) -> impl Iterator<Item = &str> {
        let words = self.command_line.split_ascii_whitespace().take_while(|&word| word != "--");
        words.filter_map(move |word| word.split_once('=').filter(|&(name, _)| name == key)).map(|(_, value)| value)
    }

    pub(super) fn disks(&self) -> usize {
        self.count(|kind| matches!(kind, VirtioKind::Block(_)))
    }

    pub(super) fn nets(&self) -> usize {
        self.count(|kind| matches!(kind, VirtioKind::Net(_)))
    }

    pub(super) fn has(&self, kind: VirtioKind) -> bool {
        self.devices.contains(&kind)
    }

    fn count(&self, is: impl Fn(&VirtioKind) -> bool) -> usize {
        self.devices.iter().filter(|kind| is(kind)).count()
    }
}

/// A file system that the root may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// What Linux calls it.
    pub name: &'static str,
    /// What reads it.
    pub driver: &'static Feature,
}

/// By names; ext4's driver reads the older two.
const FILE_SYSTEMS: [FileSystem; 8] = [
    FileSystem { name: "ext4", driver: &feature::EXT4 },
    FileSystem { name: "ext3", driver: &feature::EXT4 },
    FileSystem { name: "ext2", driver: &feature::EXT4 },
    FileSystem { name: "xfs", driver: &feature::XFS },
    FileSystem { name: "btrfs", driver: &feature::BTRFS },
    FileSystem { name: "squashfs", driver: &feature::SQUASHFS },
    FileSystem { name: "erofs", driver: &feature::EROFS },
    FileSystem { name: "f2fs", driver: &feature::F2FS },
];

/// `(offset, magic number, name)`, as each file system documents it.
const MAGICS: [(usize, &[u8], &str); 6] = [
    (0, b"XFSB", "xfs"),
    (0, b"hsqs", "squashfs"),
    (0x400, b"\xe2\xe1\xf5\xe0", "erofs"),
    (0x400, b"\x10\x20\xf5\xf2", "f2fs"),
    (0x438, b"\x53\xef", "ext4"),
    (0x1_0040, b"_BHRfS_M", "btrfs"),
];

impl FileSystem {
    /// How much of a disk [`FileSystem::on`] wants to see, in bytes.
    pub const HEAD_LEN: usize = 0x1_0048;

    /// The one that begins with these bytes.
    pub fn on(head: &[u8]) -> Option<FileSystem> {
        let is_there =
            |&&(at, magic, _): &&(usize, &[u8], &str)| head.get(at..).is_some_and(|at| at.starts_with(magic));
        MAGICS.iter().find(is_there).and_then(|&(_, _, name)| FileSystem::named(name))
    }

    /// The one of this name.
    pub fn named(name: &str) -> Option<FileSystem> {
        FILE_SYSTEMS.into_iter().find(|system| system.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_are_known_by_their_magic_numbers() {
        let on = |at: usize, magic: &[u8]| {
            let mut head = vec![0; FileSystem::HEAD_LEN];
            head[at..][..magic.len()].copy_from_slice(magic);
            FileSystem::on(&head).map(|system| system.name)
        };
        assert_eq!(MAGICS.map(|(at, magic, name)| on(at, magic) == Some(name)), [true; 6]);
        assert_eq!((on(0, b""), FileSystem::on(b"XF"), FileSystem::named("vfat")), (None, None, None));
    }

    #[test]
    fn the_last_word_counts_and_those_of_init_do_not() {
        let plan = Plan::new(&[VirtioKind::Block(0)], Acpi::Full).unwrap();
        let needs = Needs::of(&plan, &[0, 1], "root=/dev/vda console=tty0 root=/dev/vdb -- root=x");
        assert_eq!(
            (needs.word("root"), needs.word("console"), needs.word("rw")),
            (Some("/dev/vdb"), Some("tty0"), None)
        );
        assert_eq!((needs.vcpus, needs.last_apic_id, needs.disks()), (2, 1, 1));
    }
}
