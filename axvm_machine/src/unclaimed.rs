//! Accesses that no chip answers: each port or page is told once, with who did it, and counted until the end.
//!
//! ```text
//!   vCPU 0: OUT 0xb004 --> first of its port --> event: value, width, vCPU, rip, what the port is elsewhere
//!   vCPU 1: OUT 0xb004 --> counted                                                        '--> at the end: how often
//! ```
//!
//! So a guest cannot flood what people read, however it tries: after [`PLACES`] places the others are only counted. While
//! there is no subscriber nothing is kept.

use std::sync::Mutex;

use axvm_devices::port_elsewhere;
use axvm_events::tape::value;
use axvm_events::{Event, Events};
use axvm_sync::lock;

/// Ports, and pages, that are told one by one.
const PLACES: usize = 64;
/// Of an MMIO address, what is not part of its page.
const PAGE_SHIFT: u32 = 12;

/// Where an access went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Port,
    Mmio,
}

impl Space {
    /// As events name it.
    fn name(self) -> &'static str {
        match self {
            Space::Port => "port",
            Space::Mmio => "mmio",
        }
    }

    /// What is told once: a port, or a page.
    fn place(self, address: u64) -> u64 {
        match self {
            Space::Port => address,
            Space::Mmio => address >> PAGE_SHIFT << PAGE_SHIFT,
        }
    }
}

/// One access, or the elements of one string instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) address: u64,
    /// In bytes.
    pub(crate) width: usize,
    /// What was written first; `None` for a read.
    pub(crate) written: Option<u64>,
    pub(crate) count: u64,
}

impl Access {
    pub(crate) fn read(address: u64, width: usize) -> Access {
        Access { address, width, written: None, count: 1 }
    }

    pub(crate) fn write(address: u64, data: &[u8]) -> Access {
        Access { address, width: data.len(), written: Some(value(data)), count: 1 }
    }

    /// This one and `later`, which is of the same instruction.
    pub(crate) fn and(self, later: Access) -> Access {
        Access { count: self.count + later.count, ..self }
    }
}

/// What is known of one space's accesses.
pub(crate) struct Unclaimed {
    space: Space,
    events: Events,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// Each place and how often.
    places: Vec<(u64, u64)>,
    /// Accesses of places that found no room.
    others: u64,
}

impl Unclaimed {
    pub(crate) fn new(space: Space, events: &Events) -> Unclaimed {
        Unclaimed { space, events: events.clone(), seen: Mutex::default() }
    }

    /// Whether there is a subscriber.
    #[inline]
    pub(crate) fn is_told(&self) -> bool {
        self.events.is_on()
    }

    /// Tells of `access` by vCPU `vcpu` if it is the first of its place. `rip` is asked for then only.
    #[cold]
    pub(crate) fn tell(&self, access: Access, vcpu: u32, rip: impl FnOnce() -> Option<u64>) {
        if !self.is_told() || !lock(&self.seen).is_first(self.space.place(access.address), access.count) {
            return;
        }
        let Access { address, width, written, .. } = access;
        let elsewhere = match self.space {
            Space::Port => u16::try_from(address).ok().and_then(port_elsewhere),
            Space::Mmio => None,
        };
        let (space, rip) = (self.space.name(), rip());
        self.events.emit(|| Event::UnclaimedAddress { space, address, written, width, vcpu, rip, elsewhere });
    }

    /// Tells how often, of each place where it was more than once; the machine has stopped.
    pub(crate) fn tell_counts(&self) {
        let seen = std::mem::take(&mut *lock(&self.seen));
        let space = self.space.name();
        for (address, count) in seen.places.into_iter().filter(|&(_, count)| count > 1) {
            self.events.emit(|| Event::UnclaimedCount { space, address: Some(address), count });
        }
        if seen.others > 0 {
            self.events.emit(|| Event::UnclaimedCount { space, address: None, count: seen.others });
        }
    }
}

impl Seen {
    /// Counts; whether this place is new and may be told.
    fn is_first(&mut self, place: u64, count: u64) -> bool {
        if let Some((_, sum)) = self.places.iter_mut().find(|(known, _)| *known == place) {
            *sum += count;
            return false;
        }
        if self.places.len() >= PLACES {
            self.others += count;
            return false;
        }
        self.places.push((place, count));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axvm_events::Sink;
    use std::sync::Arc;

    #[derive(Default)]
    struct Tape(Mutex<Vec<String>>);
    impl Sink for Tape {
        fn event(&self, event: &Event) {
            lock(&self.0).push(event.to_string());
        }
    }

    fn taped(space: Space) -> (Unclaimed, Arc<Tape>) {
        let tape = Arc::<Tape>::default();
        (Unclaimed::new(space, &Events::to(tape.clone())), tape)
    }

    #[test]
    fn each_port_is_told_once_and_counted() {
        let (ports, tape) = taped(Space::Port);
        ports.tell(Access::write(0xb004, &[0, 0x20]), 1, || Some(0x10_0000));
        ports.tell(Access::write(0xb004, &[1]), 0, || panic!("asked for what is not told"));
        ports.tell(Access::read(0x1234, 1).and(Access::read(0x1234, 1)), 2, || None);
        ports.tell(Access::read(0x1235, 4), 2, || None);
        ports.tell_counts();
        ports.tell_counts();
        let lines = lock(&tape.0);
        assert!(
            lines[0].starts_with("write of 0x2000 (16 bits) to port 0xb004 by vCPU 1 at rip 0x100000"),
            "{lines:?}"
        );
        assert!(lines[0].ends_with("--debug-exit"), "{lines:?}");
        assert_eq!(
            lines[1..],
            [
                "read (8 bits) from port 0x1234 by vCPU 2: no device there",
                "read (32 bits) from port 0x1235 by vCPU 2: no device there",
                "port 0xb004: 2 accesses in all, no device there",
                "port 0x1234: 2 accesses in all, no device there",
            ]
        );
    }

    #[test]
    fn a_guest_that_tries_every_page_floods_nothing() {
        let (mmio, tape) = taped(Space::Mmio);
        for page in 0..1000 {
            mmio.tell(Access::read((page << 12) + 8, 4), 0, || None);
            mmio.tell(Access::read((page << 12) + 16, 4), 0, || None);
        }
        mmio.tell_counts();
        let lines = lock(&tape.0);
        assert_eq!(lines.len(), PLACES * 2 + 1);
        assert_eq!(lines[0], "read (32 bits) from mmio 0x8 by vCPU 0: no device there");
        assert_eq!(lines[PLACES + 1], "mmio 0x1000: 2 accesses in all, no device there");
        assert_eq!(lines[PLACES * 2], "mmio, elsewhere: 1872 accesses in all, no device there");
    }

    #[test]
    fn without_a_subscriber_nothing_is_kept() {
        let ports = Unclaimed::new(Space::Port, &Events::default());
        ports.tell(Access::read(1, 1), 0, || panic!("asked for without a subscriber"));
        assert!(lock(&ports.seen).places.is_empty());
    }
}
