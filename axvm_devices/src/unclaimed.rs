//! What a port is elsewhere, where this machine has no chip: for the line that tells of an access.
//!
//! ```text
//!   OUT 0xb004, 0x2000 --> no chip here --> "how Bochs is powered off; here: ..."
//! ```
//!
//! Guests are written on other machines, and the ways to end those are folklore: a write that does nothing is then all
//! that is seen. Each hint says what would do here.
//!
//! Sources: OSDev wiki, "Shutdown" and "Port E9 hack" for which ports those are. Left out: what only drivers look for.

/// `(first port, last port, what it is and what to do)`.
const PORTS: &[(u16, u16, &str)] = &[
    (0x80, 0x80, "POST codes and short waits, harmless"),
    (0xe9, 0xe9, "the debug console; here with --debugcon stdio"),
    (0xf4, 0xf7, "debug exit; here with --debug-exit 0xf4"),
    (0x2e8, 0x2ef, "COM4; this machine has COM1 at 0x3f8"),
    (0x2f8, 0x2ff, "COM2; this machine has COM1 at 0x3f8"),
    (0x3b0, 0x3df, "VGA; this machine has no display, print on COM1 at 0x3f8"),
    (0x3e8, 0x3ef, "COM3; this machine has COM1 at 0x3f8"),
    (0x402, 0x402, "the debug port of firmware"),
    (0x501, 0x504, "debug exit; here with --debug-exit 0x501"),
    (0x4004, 0x4004, "how VirtualBox is powered off; here outw(0x604, 0x2000) does, or --debug-exit"),
    (0x8900, 0x8900, "how Bochs is powered off; here outw(0x604, 0x2000) does, or --debug-exit"),
    (0xb004, 0xb004, "how Bochs and old QEMU are powered off; here outw(0x604, 0x2000) does, or --debug-exit"),
];

/// What `port` is on other machines, and what does the same here.
pub fn port_elsewhere(port: u16) -> Option<&'static str> {
    PORTS.iter().find(|(first, last, _)| (first..=last).contains(&&port)).map(|&(.., hint)| hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folk_ways_to_power_off_are_known_with_what_does_here() {
        for port in [0x4004, 0x8900, 0xb004] {
            assert!(port_elsewhere(port).unwrap().contains("outw(0x604, 0x2000) does"), "{port:#x}");
        }
        assert!(port_elsewhere(0xf4).unwrap().contains("--debug-exit 0xf4"));
        assert!(port_elsewhere(0x501).unwrap().contains("--debug-exit 0x501"));
        assert_eq!([0x81, 0x3f8, 0xffff].map(port_elsewhere), [None; 3]);
    }

    #[test]
    fn no_port_has_two_meanings() {
        assert!(PORTS.iter().all(|(first, last, _)| first <= last));
        assert!(PORTS.windows(2).all(|pair| pair[0].1 < pair[1].0));
    }
}
