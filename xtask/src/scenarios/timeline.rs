//! The scenario of traces: what a boot of stock Linux is told as.
//!
//! ```text
//!   axvm run --trace boot.json: kernel, disk, card, power off --> axvm report boot.json --> each phase, in its order
//! ```

use super::plain::PLAIN;
use super::{Boot, Proof, Scenario};
use crate::lab;

/// When the guest is gone, its trace is complete.
const REPORT: &str = "while kill -0 $pid 2>/dev/null; do usleep 100000; done; axvm report boot.json --symbols bzImage; tail -n 2 boot.json";

/// The phases that a kernel shows which says what it does.
const PHASES: &[&str] = &[
    "AxVM: set-up ",
    "guest: decompression ",
    "kernel: memory, interrupts, clocks ",
    "kernel: other processors ",
    "kernel: drivers ",
    "init, from the initrd ",
    "virtio drivers ",
    "root file system ",
    "init, from the root file system ",
    "shut-down ",
];

/// A boot with a disk and a card, recorded whole.
pub(super) fn timeline() -> Vec<Scenario> {
    let boot = Boot {
        arguments: "--disk DISK --memory 512M --cpus 2 --net user --trace boot.json",
        checks: "page:198.51.100.7,disk",
        append: "loglevel=7",
        brings: Some(lab::passt),
        on: Some(("reboot: Power down", REPORT)),
        limit: 300,
        ..PLAIN
    };
    let proofs = vec![
        Proof::CleanDisk,
        Proof::Seen("the phases of a boot, in their order", |seen| in_order(seen, PHASES)),
        Proof::Seen("each line of the file an event, and none missing", whole),
        Proof::Seen("requests of disk and card, with their times", |seen| {
            ["Requests of vda-q0: ", "Requests of net0-q0: ", "Requests of net0-q1: "]
                .iter()
                .all(|said| seen.contains(said))
        }),
        Proof::Seen("what could be saved: the serial port first", |seen| {
            let advice = seen.split("What could be saved").nth(1).unwrap_or_default();
            advice.contains(" exits: printing on the serial port")
        }),
        // The kernel has moved itself, and is stripped.
        Proof::Seen("which functions of the kernel exit", |seen| {
            let functions = seen.split("\nExits by function").nth(1).unwrap_or_default();
            ["\n  io_serial_out ", "\n  read_pci_config ", "\n  module 0xffffffffc"]
                .iter()
                .all(|name| functions.contains(name))
        }),
        Proof::Seen("where the kernel was silent", |seen| seen.contains("after the kernel's line\n")),
    ];
    vec![Scenario { name: "timeline", boots: vec![boot], proofs }]
}

/// Whether each of these comes behind the one before it.
fn in_order(text: &str, parts: &[&str]) -> bool {
    let mut rest = text.split_once("\nBoot ").map_or("", |(_, rest)| rest);
    parts.iter().all(|part| {
        let found = rest.split_once(part).map(|(_, behind)| behind);
        rest = found.unwrap_or_default();
        found.is_some()
    })
}

fn whole(seen: &str) -> bool {
    let is_end = |line: &str| line.contains("\"end of trace\"") && line.ends_with("{\"lost\":0,\"left_out\":0}}");
    let troubled = ["events are missing", "no events of a trace", "has no end"].iter().any(|said| seen.contains(said));
    !troubled && seen.lines().any(is_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_out_of_order_are_found() {
        assert!(in_order("x\nBoot  a  b  c ", &["a ", "c "]));
        assert!(!in_order("a \nBoot  c  a ", &["a ", "c "]) && !in_order("", &["a "]));
    }

    #[test]
    fn a_trace_with_a_loss_is_not_whole() {
        let good = "x\n{\"cat\":\"end of trace\",\"args\":{\"lost\":0,\"left_out\":0}}\n]\n";
        assert!(whole(good));
        assert!(!whole(&good.replace("lost\":0", "lost\":1")) && !whole(&format!("The file has no end\n{good}")));
    }
}
