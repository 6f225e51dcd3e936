//! Functions of PCI: any access to configuration spaces, ports, ECAM and windows, in any order.
//!
//! ```text
//!   input --> reads and writes, BARs moved, MSI-X written and raised, a function taken off the bus and another put there
//!   held:     no panic; ports and ECAM show the same; doorbells are where a BAR is seen, and one BAR at a place;
//!             an open vector's interrupt goes where the table says; a state is taken by a new host, and is the same there
//! ```
//!
//! Run: `cargo xtask fuzz pci`.
#![no_main]

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};

use axvm_arch::msi::{MsiMessage, MsiRoute};
use axvm_devices::pci::{Bridge, MsiRouter, Msix, MsixVector};
use axvm_devices::{BusDevice, Irq, PciHost, StopSwitch};
use axvm_events::Events;
use axvm_memory::{GuestRam, RamConfig};
use axvm_virtio::pci;
use axvm_virtio::rng::Rng;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

const WINDOW: u64 = 0xc000_0000;
const WINDOW_LEN: u64 = 1 << 20;
const HIGH: u64 = 1 << 32;
const DEVFNS: [u8; 3] = [0x08, 0x09, 0x10];
const MSIX_TABLE: u64 = 0x4000;
const STATUS: u64 = 0x14;

static RAM: LazyLock<Arc<GuestRam>> = LazyLock::new(|| GuestRam::allocate(&RamConfig::new(2 << 20)).expect("2 MiB"));
static STOP: LazyLock<Arc<StopSwitch>> = LazyLock::new(|| Arc::new(StopSwitch::new().expect("an eventfd")));

#[derive(Arbitrary, Debug)]
enum Step {
    /// By the ports.
    Ports(u32, u8, Vec<u8>),
    /// In the ECAM, at a function that is there.
    Ecam(u8, u16, Vec<u8>),
    Anywhere(u32, Vec<u8>),
    /// In the windows.
    Low(u32, Vec<u8>),
    High(u32, Vec<u8>),
    /// Where a function's BAR is to be, and its command.
    Move(u8, u8, bool, u8),
    /// MSI-X of a function: control, an entry's word.
    Control(u8, u8),
    Entry(u8, u8, u8, u32),
    Raise(u8, u8),
    /// The function that is alone in its device goes, or comes.
    Pull,
    Plug,
}

/// What is routed now.
#[derive(Default)]
struct Routes(Mutex<HashMap<u32, MsiMessage>>);

impl MsiRouter for Routes {
    fn route(&self, routes: &[MsiRoute]) {
        assert!(!routes.is_empty(), "a call for nothing");
        let mut all = self.0.lock().unwrap();
        for route in routes {
            let before = match route.message {
                Some(message) => all.insert(route.gsi, message),
                None => all.remove(&route.gsi),
            };
            assert!(before != route.message, "a call that changes nothing");
        }
    }
}

struct Function {
    msix: Arc<Msix>,
    irqs: Vec<Irq>,
    seen: Arc<Mutex<Option<u64>>>,
    gsi: u32,
}

impl Function {
    /// A function in its place on the bus.
    fn plugged(host: &PciHost, routes: &Arc<Routes>, devfn: u8, gsi: u32) -> Function {
        let irqs: Vec<_> = (0..2).map(|_| Irq::new().expect("an eventfd")).collect();
        let vector = |(irq, gsi): (&Irq, u32)| MsixVector { irq: irq.try_clone().expect("an eventfd"), gsi };
        let msix = Arc::new(Msix::new(irqs.iter().zip(gsi..).map(vector).collect(), routes.clone()));
        let device = Box::new(Rng::default());
        let transport = pci::transport("rng", device, Arc::clone(&RAM), &msix, Events::default());
        let transport = Arc::new(transport.expect("eventfds"));
        let seen = Arc::<Mutex<Option<u64>>>::default();
        let told = Arc::clone(&seen);
        let function = pci::function(&transport, Arc::clone(&msix), WINDOW, move |from, to| {
            let mut seen = told.lock().unwrap();
            assert_eq!(*seen, from);
            *seen = to;
        });
        function.check().expect("room for MSI-X");
        host.add(devfn, "rng", function).expect("a free place");
        Function { msix, irqs, seen, gsi }
    }
}

struct Machine {
    host: Arc<PciHost>,
    ecam: Arc<dyn BusDevice>,
    low: Arc<dyn BusDevice>,
    high: Arc<dyn BusDevice>,
    functions: Vec<Function>,
    routes: Arc<Routes>,
    has_third: bool,
}

impl Machine {
    fn new() -> Machine {
        let host = Arc::new(PciHost::new(STOP.clone(), Bridge::Express));
        let (ecam, low) = (PciHost::ecam(&host), PciHost::window(&host, WINDOW, WINDOW_LEN));
        let high = PciHost::window(&host, HIGH, WINDOW_LEN);
        let routes = Arc::<Routes>::default();
        let places = DEVFNS.into_iter().zip((24..).step_by(2));
        let functions = places.map(|(devfn, gsi)| Function::plugged(&host, &routes, devfn, gsi)).collect();
        Machine { host, ecam, low, high, functions, routes, has_third: true }
    }

    fn dword(&self, devfn: u8, register: u64) -> u32 {
        let mut data = [0; 4];
        self.ecam.read(u64::from(devfn) << 12 | register, &mut data);
        u32::from_le_bytes(data)
    }

    /// Where MSI-X is in the configuration space.
    fn msix(&self, devfn: u8) -> u64 {
        let mut at = u64::from(self.dword(devfn, 0x34) & 0xff);
        for _ in 0..16 {
            let word = self.dword(devfn, at);
            if word & 0xff == 0x11 {
                break;
            }
            at = u64::from(word >> 8 & 0xff);
        }
        at
    }

    /// Takes the third function off the bus, where its doorbells are told; its routes are given back.
    fn pull(&mut self) {
        let function = &self.functions[2];
        assert!(self.host.remove(DEVFNS[2]).is_some() && function.seen.lock().unwrap().is_none());
        self.routes.0.lock().unwrap().retain(|gsi, _| *gsi < function.gsi);
        self.has_third = false;
    }

    fn act(&mut self, step: &Step) {
        let number = |which: &u8| usize::from(which % 3);
        match step {
            Step::Ports(address, at, bytes) => {
                self.host.write(0, &address.to_le_bytes());
                // Not the reset register.
                access(&*self.host, 4 + u64::from(at % 4), bytes);
            }
            Step::Ecam(which, at, bytes) => {
                access(&*self.ecam, u64::from(DEVFNS[number(which)]) << 12 | u64::from(at & 0xfff), bytes)
            }
            Step::Anywhere(at, bytes) => access(&*self.ecam, u64::from(at & 0xf_ffff), bytes),
            Step::Low(at, bytes) => self.window(&*self.low, *at, bytes),
            Step::High(at, bytes) => self.window(&*self.high, *at, bytes),
            Step::Move(which, page, high, command) => {
                let base = if *high { HIGH } else { WINDOW } + u64::from(page % 40) * 0x8000;
                let at = u64::from(DEVFNS[number(which)]) << 12;
                self.ecam.write(at | 0x10, &(base as u32).to_le_bytes());
                self.ecam.write(at | 0x14, &((base >> 32) as u32).to_le_bytes());
                self.ecam.write(at | 4, &[*command]);
            }
            Step::Control(which, bits) => {
                let devfn = DEVFNS[number(which)];
                self.ecam.write((u64::from(devfn) << 12 | self.msix(devfn)) + 3, &[bits & 0xc0]);
            }
            Step::Entry(which, entry, word, value) => {
                let seen = *self.functions[number(which)].seen.lock().unwrap();
                if let Some(base) = seen {
                    let at = MSIX_TABLE + u64::from(entry % 3) * 16 + u64::from(word % 4) * 4;
                    let value = if word % 4 == 0 { 0xfee0_0000 | value & 0xf_fffc } else { *value };
                    let (window, start) = if base < HIGH { (&self.low, WINDOW) } else { (&self.high, HIGH) };
                    window.write(base - start + at, &value.to_le_bytes());
                }
            }
            Step::Pull if self.has_third => self.pull(),
            Step::Plug if !self.has_third => {
                self.functions[2] = Function::plugged(&self.host, &self.routes, DEVFNS[2], self.functions[2].gsi);
                self.has_third = true;
            }
            Step::Pull | Step::Plug => {}
            Step::Raise(which, _) if number(which) == 2 && !self.has_third => {}
            Step::Raise(which, vector) => self.raise(number(which), u16::from(vector % 3)),
        }
    }

    /// An access to a BAR, but for the status: no driver gets ready, so that no thread starts.
    fn window(&self, window: &dyn BusDevice, at: u32, bytes: &[u8]) {
        let at = u64::from(at) % WINDOW_LEN;
        if at % 0x8000 != STATUS {
            access(window, at, bytes);
        }
    }

    fn raise(&self, number: usize, vector: u16) {
        let Function { msix, irqs, gsi, .. } = &self.functions[number];
        let (state, devfn) = (msix.state(), DEVFNS[number]);
        let control = self.dword(devfn, self.msix(devfn)) >> 16;
        msix.raise(vector);
        let came = irqs.get(usize::from(vector)).is_some_and(|irq| irq.event_fd().take());
        let Some(entry) = state.entries.get(usize::from(vector)) else { return assert!(!came) };
        let is_open = control & 0xc000 == 0x8000 && !entry.masked;
        assert!(!is_open || came);
        let pending = msix.state().pending.contains(&vector);
        assert_eq!(pending, control & 0x8000 != 0 && !is_open, "what is masked waits");
        if is_open {
            let message = MsiMessage { address: entry.address, data: entry.data }.interrupt();
            assert_eq!(self.routes.0.lock().unwrap().get(&(gsi + u32::from(vector))).copied(), message);
        }
    }

    fn check(&self) {
        for devfn in [0, 8, 9, 0x10, 0x11] {
            for register in (0..0x100).step_by(4) {
                self.host.write(0, &(1 << 31 | u32::from(devfn) << 8 | register as u32).to_le_bytes());
                let mut data = [0; 4];
                self.host.read(4, &mut data);
                let (ports, ecam) = (u32::from_le_bytes(data), self.dword(devfn, register));
                // Reading the ISR status through the configuration space clears it.
                assert!(ports == ecam || register >= 0x40, "{devfn:#x} {register:#x}");
            }
        }
        let seen: Vec<_> = self.functions.iter().filter_map(|function| *function.seen.lock().unwrap()).collect();
        for (n, base) in seen.iter().enumerate() {
            let window = |start: u64| (start..=start + WINDOW_LEN - pci::BAR_LEN).contains(base);
            assert!(base % pci::BAR_LEN == 0 && (window(WINDOW) || window(HIGH)));
            assert!(!seen[..n].contains(base), "one place, two BARs");
        }
    }
}

/// A write and a read of as many bytes as the guest can at once.
fn access(device: &dyn BusDevice, offset: u64, bytes: &[u8]) {
    let len = match bytes.len() {
        0 => return,
        1 => 1,
        2 | 3 => 2,
        4..8 => 4,
        _ => 8,
    };
    device.write(offset, &bytes[..len]);
    device.read(offset, &mut [0xff; 8][..len]);
}

fuzz_target!(|steps: Vec<Step>| {
    let mut machine = Machine::new();
    for step in steps.iter().take(64) {
        machine.act(step);
    }
    machine.check();
    let state = machine.host.state();
    let mut other = Machine::new();
    if !machine.has_third {
        other.pull();
    }
    other.host.restore(&state).expect("a state of the same machine");
    assert_eq!(other.host.state(), state);
    other.check();
});
