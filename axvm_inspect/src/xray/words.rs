//! The kernel command line, argument by argument: AxVM's default or the user's, and what the usual ones mean.
//!
//! ```text
//!   defaults  console=ttyS0 root=/dev/vda rw          console=ttyS0   default
//!   append    root=/dev/vdb quiet             -->     rw              default
//!                                                     root=/dev/vdb   yours
//!                                                     quiet           yours
//!                                                     root=/dev/vda   left out: yours decides
//! ```
//!
//! Spec: Linux Documentation/admin-guide/kernel-parameters.rst. Left out: words that few use; they get no meaning.

use axvm_boot::command_line::{subject, words};
use axvm_boot::linux::Entry;

use super::{Facts, Row, Section};
use crate::text::clean;

const SOURCE: &str = "kernel-parameters.rst";

pub(super) fn section(facts: &Facts) -> Section {
    let line = &facts.start.command_line;
    let (all, yours) = (words(line).count(), words(facts.append).count());
    let defaults = all.saturating_sub(yours);
    let mut rows: Vec<Row> =
        words(line).enumerate().map(|(n, word)| row(word, if n < defaults { "default" } else { "yours" })).collect();
    if facts.start.entry != Entry::Multiboot {
        let kept: Vec<&str> = words(line).take(defaults).collect();
        let left = words(facts.default_command_line).filter(|word| !kept.contains(word));
        rows.extend(left.map(|word| {
            let yours = words(facts.append).find(|yours| subject(yours) == subject(word)).unwrap_or("yours");
            Row::new(word).owner("left out").means(format!("{yours} decides"))
        }));
    }
    let about = format!("The kernel's arguments, {} bytes: {line}", line.len());
    Section { id: "command_line", title: "Command line", about: clean(&about), rows }
}

fn row(word: &str, owner: &str) -> Row {
    let row = Row::new(word).owner(owner);
    match meaning(word) {
        Some(means) => row.means(means).source(SOURCE),
        None => row,
    }
}

/// What a word tells Linux.
fn meaning(word: &str) -> Option<String> {
    let (key, value) = word.split_once('=').map_or((word, ""), |(key, value)| (key, value));
    Some(match key {
        "console" => match value.split(',').next() {
            Some("ttyS0") => "the kernel's messages go to COM1".into(),
            Some("hvc0") => "the kernel's messages go to the virtio console".into(),
            _ => format!("the kernel's messages go to {value}"),
        },
        "earlycon" | "earlyprintk" => "messages from before the console's driver runs".into(),
        "root" => format!("the root file system is on {value}"),
        "rootfstype" => format!("and is of type {value}"),
        "rootwait" => "the kernel waits until that is there".into(),
        "rw" => "it is mounted for reading and writing".into(),
        "ro" => "it is mounted read-only".into(),
        "init" => format!("the first program is {value}"),
        "rdinit" => format!("the first program of the initrd is {value}"),
        "quiet" => "only warnings and worse are shown on the console".into(),
        "debug" => "all messages are shown on the console".into(),
        "loglevel" => format!("messages below level {value} are shown on the console"),
        "panic" => match value.parse::<i64>() {
            Ok(0) | Err(_) => "after a panic the kernel waits for ever".into(),
            Ok(seconds) if seconds < 0 => "after a panic the kernel resets at once".into(),
            Ok(seconds) => format!("after a panic the kernel resets in {seconds} s"),
        },
        "reboot" => format!("how the kernel resets: {value}"),
        "nokaslr" => "the kernel stays at the address that it was linked for".into(),
        "acpi" => format!("ACPI: {value}"),
        "pci" => format!("PCI: {value}"),
        "maxcpus" | "nr_cpus" => format!("at most {value} processors"),
        "mitigations" => format!("against weaknesses of the processor: {value}"),
        "ip" => format!("the network is set up by the kernel: {value}"),
        "virtio_mmio.device" => device(value)?,
        "--" => "what follows is for the first program".into(),
        _ => return None,
    })
}

/// `512@0xd0000000:5`
fn device(value: &str) -> Option<String> {
    let (len, rest) = value.split_once('@')?;
    let (base, line) = rest.split_once(':')?;
    Some(format!("a virtio device: {len} bytes of registers at {base}, interrupt line {line}"))
}
