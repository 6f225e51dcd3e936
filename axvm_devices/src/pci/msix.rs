//! MSI-X: a table of messages, one for each reason to interrupt, that the guest writes and masks.
//!
//! ```text
//!   device --raise(n)--> gate n: open ----> irqfd n --route n--> local APIC of the message
//!                           |    masked --> pending bit n ...... sent when the guest unmasks
//!                           '    off -----> nothing
//!   guest: table, function mask, enable --> gates, and routes where an open entry's message is new
//! ```
//!
//! A mask closes the gate and leaves the route: an edge that is on its way then still arrives, as a message that was
//! posted before the mask does on a real bus. So a mask costs no system call, and an unmask costs one only if the message
//! has changed since. Raising takes no lock.
//!
//! Spec: PCI Local Bus 3.0, 6.8.2 "MSI-X Capability and Table Structure"; Intel SDM volume 3, 11.11 "Message Signalled
//! Interrupts".
//! Left out: messages to anything but a local APIC; per-vector masks of MSI.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use axvm_arch::msi::{MsiMessage, MsiRoute};
use axvm_sync::lock;
use serde::{Deserialize, Serialize};

use crate::state::Check;
use crate::{ChipStateError, Irq};

/// Bytes of an entry of the table: address, data, control.
pub(super) const ENTRY_LEN: u64 = 16;
/// Control of an entry: it is masked.
const MASKED: u32 = 1;
/// Control of the capability: MSI-X is on.
const ENABLE: u16 = 1 << 15;
/// Control of the capability: all entries are masked.
const FUNCTION_MASK: u16 = 1 << 14;
/// The bits of that control that a guest may write.
pub(super) const CONTROL_WRITABLE: u16 = ENABLE | FUNCTION_MASK;

/// What connects irqfds with messages: KVM, or a test.
pub trait MsiRouter: Send + Sync {
    /// Changes these routes, all at once, before it returns.
    fn route(&self, routes: &[MsiRoute]);
}

/// The device's end of one message.
#[derive(Debug)]
pub struct MsixVector {
    /// The irqfd's other end.
    pub irq: Irq,
    /// The number that names its route.
    pub gsi: u32,
}

/// One entry of the table, as the guest wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MsixEntry {
    /// Where the message goes.
    pub address: u64,
    /// What it says.
    pub data: u32,
    /// It is not to be sent now.
    pub masked: bool,
}

impl MsixEntry {
    /// As at power-on.
    const RESET: MsixEntry = MsixEntry { address: 0, data: 0, masked: true };

    /// What is to be sent; an address that is no local APIC's interrupts no processor.
    fn message(&self) -> Option<MsiMessage> {
        let MsixEntry { address, data, .. } = *self;
        MsiMessage { address, data }.interrupt()
    }

    /// Its four double words.
    fn words(&self) -> [u32; 4] {
        [self.address as u32, (self.address >> 32) as u32, self.data, if self.masked { MASKED } else { 0 }]
    }

    fn set_word(&mut self, index: u64, value: u32) {
        match index {
            // Bits 0 and 1 of an address are zero.
            0 => self.address = self.address & !0xffff_ffff | u64::from(value & !3),
            1 => self.address = self.address & 0xffff_ffff | u64::from(value) << 32,
            2 => self.data = value,
            _ => self.masked = value & MASKED != 0,
        }
    }
}

/// Where an interrupt of a vector leads now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixRoute {
    /// Its entry.
    pub entry: MsixEntry,
    /// It is kept: the entry or the whole function is masked, or MSI-X is off.
    pub is_kept: bool,
    /// It was raised, and waits until it is kept no more.
    pub is_pending: bool,
}

/// Everything of a function's MSI-X.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MsixState {
    /// The table.
    pub entries: Vec<MsixEntry>,
    /// The entries that were raised while masked.
    pub pending: Vec<u16>,
}

/// The MSI-X of one function.
pub struct Msix {
    table: Mutex<Table>,
    vectors: Box<[Gate]>,
    on: AtomicBool,
    router: Arc<dyn MsiRouter>,
}

struct Table {
    entries: Vec<MsixEntry>,
    /// What each irqfd sends now.
    routed: Vec<Option<MsiMessage>>,
    /// The capability's control.
    control: u16,
}

/// Lets interrupts of one vector pass, or keeps them.
struct Gate {
    vector: MsixVector,
    state: AtomicU8,
}

/// Of a gate's state: the guest masks this vector.
const CLOSED: u8 = 1;
/// MSI-X is off.
const OFF: u8 = 2;
/// It was raised while closed.
const PENDING: u8 = 4;

impl Gate {
    /// Acquire and release: what a device did before it raised is seen by the thread that opens the gate and raises for it.
    fn raise(&self) {
        match self.state.load(Ordering::Acquire) {
            0 => self.vector.irq.raise(),
            state if state & OFF != 0 => {}
            _ => {
                if self.state.fetch_or(PENDING, Ordering::AcqRel) & CLOSED == 0 {
                    // It was opened just now.
                    self.send_pending();
                }
            }
        }
    }

    /// Open (0), closed or off; a pending interrupt survives all but the latter.
    fn set(&self, to: u8) {
        let kept = if to == OFF { 0 } else { PENDING };
        let _ = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| Some(state & kept | to));
        if to == 0 {
            self.send_pending();
        }
    }

    fn send_pending(&self) {
        if self.state.fetch_and(!PENDING, Ordering::AcqRel) & PENDING != 0 {
            self.vector.irq.raise();
        }
    }

    fn is_pending(&self) -> bool {
        self.state.load(Ordering::Acquire) & PENDING != 0
    }
}

impl Msix {
    /// As at power-on: off, every entry masked. The irqfd of each of `vectors` is connected; at most 2048.
    pub fn new(vectors: Vec<MsixVector>, router: Arc<dyn MsiRouter>) -> Msix {
        let count = vectors.len();
        let table = Table { entries: vec![MsixEntry::RESET; count], routed: vec![None; count], control: 0 };
        let gate = |vector| Gate { vector, state: AtomicU8::new(OFF) };
        Msix {
            table: Mutex::new(table),
            vectors: vectors.into_iter().map(gate).collect(),
            on: AtomicBool::new(false),
            router,
        }
    }

    /// How many vectors there are.
    pub fn len(&self) -> u16 {
        self.vectors.len() as u16
    }

    /// Its vectors, for who disconnects them.
    pub fn vectors(&self) -> impl Iterator<Item = &MsixVector> {
        self.vectors.iter().map(|gate| &gate.vector)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.vectors.is_empty()
    }

    /// Whether the guest has turned it on.
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// Interrupts by this vector, now or when the guest unmasks it; one that there is not interrupts no processor.
    pub fn raise(&self, vector: u16) {
        if let Some(gate) = self.vectors.get(usize::from(vector)) {
            gate.raise();
        }
    }

    /// Where interrupts of this vector lead; `None` if there is no such vector.
    pub fn route(&self, vector: u16) -> Option<MsixRoute> {
        let gate = self.vectors.get(usize::from(vector))?;
        let entry = lock(&self.table).entries[usize::from(vector)];
        let state = gate.state.load(Ordering::Acquire);
        Some(MsixRoute { entry, is_kept: state & (CLOSED | OFF) != 0, is_pending: state & PENDING != 0 })
    }

    /// The guest reads the table. `data` arrives zeroed.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        let table = lock(&self.table);
        for (byte, at) in data.iter_mut().zip(offset..) {
            let words = table.entries.get((at / ENTRY_LEN) as usize).map(MsixEntry::words);
            *byte = words.map_or(0, |words| words[(at % ENTRY_LEN / 4) as usize].to_le_bytes()[(at % 4) as usize]);
        }
    }

    /// The guest writes the table, in whole double words.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        let (words, []) = data.as_chunks::<4>() else { return };
        let number = (offset / ENTRY_LEN) as usize;
        let mut table = lock(&self.table);
        if !offset.is_multiple_of(data.len() as u64) {
            return;
        }
        let Some(entry) = table.entries.get_mut(number) else { return };
        for (word, value) in (offset % ENTRY_LEN / 4..).zip(words) {
            entry.set_word(word, u32::from_le_bytes(*value));
        }
        self.apply(&mut table, number..number + 1);
    }

    /// The guest reads the pending bits. `data` arrives zeroed.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            let gates = self.vectors.iter().skip((at * 8) as usize).take(8);
            *byte = gates.enumerate().fold(0, |bits, (n, gate)| bits | u8::from(gate.is_pending()) << n);
        }
    }

    /// The guest has written the capability's control.
    pub fn set_control(&self, control: u16) {
        let mut table = lock(&self.table);
        if table.control != control & CONTROL_WRITABLE {
            table.control = control & CONTROL_WRITABLE;
            self.on.store(table.control & ENABLE != 0, Ordering::Release);
            self.apply(&mut table, 0..self.vectors.len());
        }
    }

    /// Brings routes and gates of these vectors in line with the table: routes first, so that what an open gate lets pass
    /// goes where the table says.
    fn apply(&self, table: &mut Table, numbers: std::ops::Range<usize>) {
        let (on, all_masked) = (table.control & ENABLE != 0, table.control & FUNCTION_MASK != 0);
        let is_open = |entry: &MsixEntry| on && !all_masked && !entry.masked;
        let mut routes = Vec::new();
        for number in numbers.clone().filter(|&number| is_open(&table.entries[number])) {
            let message = table.entries[number].message();
            if table.routed[number] != message {
                table.routed[number] = message;
                routes.push(MsiRoute { gsi: self.vectors[number].vector.gsi, message });
            }
        }
        if !routes.is_empty() {
            self.router.route(&routes);
        }
        for number in numbers {
            self.vectors[number].set(match table.entries[number] {
                _ if !on => OFF,
                entry if is_open(&entry) => 0,
                _ => CLOSED,
            });
        }
    }

    /// Everything of it but the capability's control, which is in the configuration space.
    pub fn state(&self) -> MsixState {
        let pending = (0..self.len()).filter(|&number| self.vectors[usize::from(number)].is_pending()).collect();
        MsixState { entries: lock(&self.table).entries.clone(), pending }
    }

    /// Makes a fresh one what `state` says, with this control. Routes are made before it returns.
    pub fn restore(&self, state: &MsixState, control: u16) -> Result<(), ChipStateError> {
        let check = Check("MSI-X");
        let (saved, here) = (state.entries.len(), self.vectors.len());
        check.that(saved == here, "number of entries", saved, here)?;
        let beyond = state.pending.iter().find(|&&number| number >= self.len());
        check.that(beyond.is_none(), "pending vector", beyond.unwrap_or(&0), format_args!("below {here}"))?;
        let mut table = lock(&self.table);
        (table.entries, table.control) = (state.entries.clone(), control & CONTROL_WRITABLE);
        self.on.store(table.control & ENABLE != 0, Ordering::Release);
        self.apply(&mut table, 0..here);
        state.pending.iter().for_each(|&number| self.raise(number));
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Writes down every call.
    #[derive(Default)]
    pub(in crate::pci) struct Tape(pub(in crate::pci) Mutex<Vec<Vec<MsiRoute>>>);

    impl MsiRouter for Tape {
        fn route(&self, routes: &[MsiRoute]) {
            lock(&self.0).push(routes.to_vec());
        }
    }

    pub(in crate::pci) fn msix(count: u32) -> (Arc<Msix>, Vec<Irq>, Arc<Tape>) {
        let tape = Arc::<Tape>::default();
        let irqs: Vec<_> = (0..count).map(|_| Irq::new().unwrap()).collect();
        let vector = |(irq, gsi): (&Irq, u32)| MsixVector { irq: irq.try_clone().unwrap(), gsi };
        let vectors = irqs.iter().zip(100..).map(vector).collect();
        (Arc::new(Msix::new(vectors, tape.clone())), irqs, tape)
    }

    fn write(msix: &Msix, vector: u64, word: u64, value: u32) {
        msix.write_table(vector * ENTRY_LEN + word * 4, &value.to_le_bytes());
    }

    fn program(msix: &Msix, vector: u64, data: u32) {
        for (word, value) in [(0, 0xfee0_1000), (1, 0), (2, data), (3, 0)] {
            write(msix, vector, word, value);
        }
    }

    fn route(gsi: u32, data: u32) -> MsiRoute {
        MsiRoute { gsi, message: Some(MsiMessage { address: 0xfee0_1000, data }) }
    }

    fn pending(msix: &Msix) -> u8 {
        let mut data = [0; 8];
        msix.read_pending(0, &mut data);
        data[0]
    }

    fn came(irq: &Irq) -> bool {
        irq.event_fd().take()
    }

    #[test]
    fn an_interrupt_goes_where_the_guest_says() {
        let (msix, irqs, tape) = msix(3);
        assert!(!msix.is_on());
        msix.set_control(ENABLE);
        program(&msix, 1, 41);
        msix.raise(1);
        assert_eq!(irqs.iter().map(came).collect::<Vec<_>>(), [false, true, false]);
        assert_eq!(*lock(&tape.0), [[route(101, 41)]]);
        msix.raise(3);
        msix.raise(u16::MAX);
    }

    #[test]
    fn writes_that_change_nothing_and_masks_route_nothing() {
        let (msix, _, tape) = msix(2);
        msix.set_control(ENABLE);
        program(&msix, 0, 41);
        for _ in 0..3 {
            program(&msix, 0, 41);
            write(&msix, 0, 3, MASKED);
            write(&msix, 0, 3, 0);
            msix.set_control(ENABLE | FUNCTION_MASK);
            msix.set_control(ENABLE);
        }
        assert_eq!(lock(&tape.0).len(), 1);
        write(&msix, 0, 3, MASKED);
        for data in 42..50 {
            write(&msix, 0, 2, data);
        }
        assert_eq!(lock(&tape.0).len(), 1, "an entry that is masked is not routed");
        write(&msix, 0, 3, 0);
        assert_eq!(lock(&tape.0)[1..], [[route(100, 49)]]);
    }

    #[test]
    fn all_that_a_function_mask_held_back_is_one_call() {
        let (msix, _, tape) = msix(3);
        msix.set_control(ENABLE | FUNCTION_MASK);
        (0..3).for_each(|vector| program(&msix, vector, 40 + vector as u32));
        assert!(lock(&tape.0).is_empty());
        msix.set_control(ENABLE);
        assert_eq!(*lock(&tape.0), [[route(100, 40), route(101, 41), route(102, 42)]]);
    }

    #[test]
    fn what_is_raised_while_masked_is_pending_until_it_is_not() {
        let (msix, irqs, _) = msix(2);
        msix.set_control(ENABLE);
        program(&msix, 0, 40);
        program(&msix, 1, 41);
        write(&msix, 1, 3, MASKED);
        msix.raise(1);
        msix.raise(1);
        assert_eq!((pending(&msix), came(&irqs[1])), (0b10, false));
        write(&msix, 1, 3, 0);
        assert_eq!((pending(&msix), irqs[1].event_fd().take_count()), (0, 1));
        msix.set_control(ENABLE | FUNCTION_MASK);
        msix.raise(0);
        assert_eq!(pending(&msix), 0b01);
        msix.set_control(ENABLE);
        assert!(came(&irqs[0]));
    }

    #[test]
    fn without_msix_no_interrupt_is_sent_or_kept() {
        let (msix, irqs, _) = msix(1);
        program(&msix, 0, 40);
        msix.raise(0);
        assert_eq!(pending(&msix), 0);
        msix.set_control(ENABLE);
        assert!(!came(&irqs[0]));
    }

    #[test]
    fn a_message_to_memory_interrupts_no_processor() {
        let (msix, _, tape) = msix(1);
        msix.set_control(ENABLE);
        program(&msix, 0, 40);
        write(&msix, 0, 1, 1);
        assert_eq!(lock(&tape.0)[1], [MsiRoute { gsi: 100, message: None }]);
        write(&msix, 0, 1, 0);
        assert_eq!(lock(&tape.0)[2], [route(100, 40)]);
    }

    #[test]
    fn the_table_reads_as_written_and_ignores_what_is_no_double_word() {
        let (msix, ..) = msix(2);
        msix.write_table(16, &[7, 0, 0xe0, 0xfe, 1, 0, 0, 0]);
        msix.write_table(24, &[0x21, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff]);
        for (offset, data) in
            [(0, &[9_u8][..]), (2, &[9; 2]), (2, &[9; 4]), (4, &[9; 8]), (32, &[9; 4]), (1 << 40, &[9; 4])]
        {
            msix.write_table(offset, data);
        }
        let mut table = [0; 48];
        msix.read_table(0, &mut table);
        let mut expected = [0; 48];
        expected[12] = 1;
        expected[16..21].copy_from_slice(&[4, 0, 0xe0, 0xfe, 1]);
        expected[24] = 0x21;
        assert_eq!(table, expected);
    }

    #[test]
    fn a_state_is_carried_with_its_pending_interrupts() {
        let (old, ..) = msix(2);
        old.set_control(ENABLE);
        program(&old, 0, 40);
        program(&old, 1, 41);
        write(&old, 1, 3, MASKED);
        old.raise(1);
        let state: MsixState = serde_json::from_str(&serde_json::to_string(&old.state()).unwrap()).unwrap();
        let (new, irqs, tape) = msix(2);
        new.restore(&state, ENABLE).unwrap();
        assert_eq!(*lock(&tape.0), [[route(100, 40)]]);
        assert_eq!((pending(&new), new.state()), (0b10, state.clone()));
        write(&new, 1, 3, 0);
        assert!(came(&irqs[1]) && !came(&irqs[0]));
        let other = msix(3).0;
        assert!(other.restore(&state, ENABLE).unwrap_err().to_string().contains("number of entries is 2"));
        let damaged = MsixState { pending: vec![2], ..state };
        assert!(msix(2).0.restore(&damaged, ENABLE).is_err());
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "a test's thread has no role")]
    fn no_interrupt_is_lost_between_a_device_and_a_guest_that_masks() {
        let (msix, irqs, _) = msix(1);
        msix.set_control(ENABLE);
        program(&msix, 0, 40);
        for _ in 0..2000 {
            write(&msix, 0, 3, MASKED);
            std::thread::scope(|scope| {
                scope.spawn(|| msix.raise(0));
                write(&msix, 0, 3, 0);
            });
            assert!(came(&irqs[0]), "lost");
        }
    }
}
