//! The kernel command line: sensible defaults, then what the user appends.
//!
//! ```text
//!   defaults   console=ttyS0  root=/dev/vda  rw
//!   user                      root=/dev/vdb      ro  quiet
//!   result     console=ttyS0  root=/dev/vdb      ro  quiet      a default yields to the same key
//! ```
//!
//! Defaults are few: where the console and the root are, and devices that nothing else announces.
//! `panic=`, `reboot=` and `quiet` are not among them: a crashed guest should stay readable until
//! the user decides otherwise, and Linux finds a working reset (ACPI, i8042) by itself. Nor is
//! `acpi=off`, even without ACPI tables: a kernel built without MP tables then gives up its local APIC too.
//!
//! Source: Linux Documentation/admin-guide/kernel-parameters.rst; drivers/virtio/virtio_mmio.c
//! (`virtio_mmio.device=<size>@<base>:<irq>`).

use crate::plan::{Kind, Part, Plan, VirtioKind};

/// What the defaults depend on beside the plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Defaults {
    /// The first disk, which holds the root file system, is read-only.
    pub root_read_only: bool,
    /// The kernel's console is hvc0, of virtio-console, and not the UART.
    pub virtio_console: bool,
}

/// The defaults for one machine. Where no ACPI table lists the virtio devices they announce them: a kernel that
/// read both such a table and such words would find each device twice.
pub fn default_command_line(plan: &Plan, defaults: Defaults) -> String {
    let console = if defaults.virtio_console { "hvc0" } else { "ttyS0" };
    let mut words = vec![format!("console={console}")];
    if plan.find(Kind::Virtio(VirtioKind::Block(0))).is_some() {
        words.push("root=/dev/vda".into());
        words.push(if defaults.root_read_only { "ro" } else { "rw" }.into());
    }
    if !plan.acpi().has_devices() {
        words.extend(plan.virtio().filter_map(|(_, part)| virtio_mmio_device(part)));
    }
    words.join(" ")
}

/// The word that announces one virtio-mmio device to a kernel without ACPI.
fn virtio_mmio_device(part: &Part) -> Option<String> {
    let ((base, len), gsi) = (part.window()?, part.line?);
    Some(format!("virtio_mmio.device={len}@{base}:{gsi}"))
}

/// `defaults` without what `user` decides otherwise, then `user` as it is.
pub fn build(defaults: &str, user: &str) -> String {
    let decided: Vec<&str> = words(user).take_while(|&word| word != "--").map(subject).collect();
    let kept = words(defaults).filter(|&word| !decided.contains(&subject(word)));
    kept.chain(Some(user.trim()).filter(|user| !user.is_empty())).collect::<Vec<_>>().join(" ")
}

/// What a word decides: two words of one subject contradict or repeat each other.
pub fn subject(word: &str) -> &str {
    match word.split_once('=') {
        // There may be several: one subject per device, whatever its speed.
        Some(("console", _)) => word.split(',').next().unwrap_or(word),
        Some(("virtio_mmio.device", _)) => word,
        Some((key, _)) => key,
        None if word == "ro" => "rw",
        None => word,
    }
}

/// Splits at white space outside of double quotes, as the kernel does.
pub fn words(line: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    let is_gap = move |letter: char| {
        quoted ^= letter == '"';
        !quoted && letter.is_ascii_whitespace()
    };
    line.split(is_gap).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acpi::Acpi;

    const DEFAULTS: &str = "console=ttyS0 root=/dev/vda rw";

    fn line(virtio: &[VirtioKind], acpi: Acpi, defaults: Defaults) -> String {
        default_command_line(&Plan::new(virtio, acpi).unwrap(), defaults)
    }

    #[test]
    fn defaults_say_where_console_and_root_are() {
        let disk = [VirtioKind::Block(0)];
        assert_eq!(line(&[], Acpi::Full, Defaults::default()), "console=ttyS0");
        assert_eq!(line(&disk, Acpi::Full, Defaults::default()), DEFAULTS);
        let read_only = Defaults { root_read_only: true, ..Defaults::default() };
        assert_eq!(line(&disk, Acpi::Full, read_only), "console=ttyS0 root=/dev/vda ro");
        let console = Defaults { virtio_console: true, ..read_only };
        assert_eq!(line(&disk, Acpi::Full, console), "console=hvc0 root=/dev/vda ro");
    }

    #[test]
    fn devices_are_announced_in_the_kernels_format_where_no_table_does() {
        let devices = [VirtioKind::Entropy, VirtioKind::Balloon];
        let announced = "virtio_mmio.device=512@0xd0000000:5 virtio_mmio.device=512@0xd0001000:10";
        for acpi in [Acpi::Off, Acpi::Cpus] {
            assert_eq!(line(&devices, acpi, Defaults::default()), format!("console=ttyS0 {announced}"));
        }
        assert_eq!(line(&devices, Acpi::Full, Defaults::default()), "console=ttyS0");
    }

    #[test]
    fn a_default_yields_to_the_user() {
        let line = |user| build(DEFAULTS, user);
        assert_eq!(line(""), DEFAULTS);
        assert_eq!(line(" quiet\n"), "console=ttyS0 root=/dev/vda rw quiet");
        assert_eq!(line("root=/dev/vdb"), "console=ttyS0 rw root=/dev/vdb");
        assert_eq!(line("ro"), "console=ttyS0 root=/dev/vda ro");
        assert_eq!(line("console=ttyS0,115200"), "root=/dev/vda rw console=ttyS0,115200");
    }

    #[test]
    fn consoles_and_devices_add_up() {
        assert_eq!(build(DEFAULTS, "console=tty0"), "console=ttyS0 root=/dev/vda rw console=tty0");
        let device = |n| format!("virtio_mmio.device=512@0xd000{n}000:5");
        assert_eq!(build(&device(0), &device(1)), format!("{} {}", device(0), device(1)));
        assert_eq!(build(&device(0), &device(0)), device(0));
    }

    #[test]
    fn words_for_init_and_quoted_words_decide_nothing() {
        assert_eq!(build("rw", "quiet -- ro"), "rw quiet -- ro");
        assert_eq!(build("rw", "x=\"a ro b\""), "rw x=\"a ro b\"");
        assert_eq!(build("root=/dev/vda", "notroot=1"), "root=/dev/vda notroot=1");
    }
}
