//! Any guest against a model: both ways to a configuration space show the same, only what may be written is, and every
//! BAR that is seen answers where its guest put it, and on no other's.

use std::sync::{Arc, Mutex};

use axvm_sync::lock;
use proptest::prelude::*;

use super::config::{Capability, ConfigSpace, Identity};
use super::function::{PciFunction, PciFunctionParts};
use super::host::{Bridge, PciHost};
use super::msix::tests::msix;
use crate::{BusDevice, StopSwitch};

const BAR_LEN: u64 = 0x1000;
const TABLE: u64 = 0x800;
const WINDOW: u64 = 0x10_0000;
const WINDOW_LEN: u64 = 8 * BAR_LEN;
const DEVFNS: [u8; 3] = [0x08, 0x09, 0x10];

/// Says which function it is.
struct Registers(u8);

impl BusDevice for Registers {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(self.0);
    }
    fn write(&self, _: u64, _: &[u8]) {}
}

/// Where a BAR's doorbells are.
type Told = Arc<Mutex<Option<u64>>>;

fn function(devfn: u8) -> (PciFunction, Told) {
    let identity = Identity { vendor: 1, device: devfn.into(), class: 0, revision: 0, subsystem: (0, 0) };
    let mut config = ConfigSpace::new(identity).with_bar(0, BAR_LEN);
    let (mut body, mut writable) = (vec![0; 18], vec![0; 18]);
    body[0] = 20;
    writable[2] = 0xff;
    writable[6..].fill(0xff);
    let window = Some(config.add(&Capability { id: 9, body, writable }));
    let told = Told::default();
    let seen = Arc::clone(&told);
    let on_move = Box::new(move |from: Option<u64>, to| {
        let mut told = lock(&seen);
        assert_eq!(*told, from, "it leaves where it was, and comes when it is nowhere");
        *told = to;
    });
    let (registers, msix) = (Arc::new(Registers(devfn)), msix(3).0);
    let (msix_table, msix_pending) = (TABLE, 0xc00);
    let parts =
        PciFunctionParts { config, bar_len: BAR_LEN, window, registers, msix, msix_table, msix_pending, on_move };
    (PciFunction::new(parts), told)
}

/// One act of a guest.
#[derive(Clone, Debug)]
enum Step {
    /// By the ports: function, register, bytes.
    Ports(u8, u64, Vec<u8>),
    /// In the ECAM.
    Ecam(u8, u64, Vec<u8>),
    /// In the window.
    Window(u64, Vec<u8>),
    /// A BAR to a page, decoded or not.
    Move(u8, u64, u8),
}

fn step() -> impl Strategy<Value = Step> {
    let devfn = || prop_oneof![4 => proptest::sample::select(&DEVFNS[..]), 1 => any::<u8>()];
    let bytes =
        || prop_oneof![Just(1), Just(2), Just(4)].prop_flat_map(|len| proptest::collection::vec(any::<u8>(), len));
    let page = 0..12_u64;
    prop_oneof![
        2 => (devfn(), 0..256_u64, bytes()).prop_map(|(devfn, at, bytes)| Step::Ports(devfn, at, bytes)),
        2 => (devfn(), 0..4096_u64, bytes()).prop_map(|(devfn, at, bytes)| Step::Ecam(devfn, at, bytes)),
        2 => (0..WINDOW_LEN, bytes()).prop_map(|(at, bytes)| Step::Window(at, bytes)),
        4 => (devfn(), page, 0..8_u8).prop_map(|(devfn, page, command)| Step::Move(devfn, page, command)),
    ]
}

struct Bench {
    host: Arc<PciHost>,
    ecam: Arc<dyn BusDevice>,
    window: Arc<dyn BusDevice>,
    told: Vec<Told>,
}

impl Bench {
    fn new() -> Bench {
        let host = Arc::new(PciHost::new(Arc::new(StopSwitch::new().unwrap()), Bridge::Express));
        let (ecam, window) = (PciHost::ecam(&host), PciHost::window(&host, WINDOW, WINDOW_LEN));
        let add = |&devfn: &u8| {
            let (function, told) = function(devfn);
            host.add(devfn, "one", function).unwrap();
            told
        };
        let told = DEVFNS.iter().map(add).collect();
        Bench { host, ecam, window, told }
    }

    fn act(&self, step: &Step) {
        match step {
            Step::Ports(devfn, at, bytes) => {
                let address = 1 << 31 | u32::from(*devfn) << 8 | *at as u32 & 0xfc;
                self.host.write(0, &address.to_le_bytes());
                self.host.write(4 + at % 4, bytes);
            }
            Step::Ecam(devfn, at, bytes) => self.ecam.write(u64::from(*devfn) << 12 | at, bytes),
            Step::Window(at, bytes) => self.window.write(*at, bytes),
            Step::Move(devfn, page, command) => {
                let at = u64::from(*devfn) << 12;
                self.ecam.write(at | 0x10, &((WINDOW + page * BAR_LEN) as u32).to_le_bytes());
                self.ecam.write(at | 0x14, &[0; 4]);
                self.ecam.write(at | 0x04, &[*command, 0]);
            }
        }
    }

    fn by_ports(&self, devfn: u8, register: u32) -> [u8; 4] {
        self.host.write(0, &(1 << 31 | u32::from(devfn) << 8 | register).to_le_bytes());
        let mut data = [0; 4];
        self.host.read(4, &mut data);
        data
    }

    fn in_ecam(&self, devfn: u8, register: u32) -> [u8; 4] {
        let mut data = [0; 4];
        self.ecam.read(u64::from(devfn) << 12 | u64::from(register), &mut data);
        data
    }

    /// Where the guest wants each BAR.
    fn wanted(&self, devfn: u8) -> Option<u64> {
        let [command, ..] = self.in_ecam(devfn, 4);
        let [low, high] = [0x10, 0x14].map(|at| u64::from(u32::from_le_bytes(self.in_ecam(devfn, at))));
        (command & 2 != 0).then_some(high << 32 | low & !0xf)
    }

    /// What must hold after any step.
    fn check(&self) {
        for devfn in [0, 8, 9, 0x10, 0x11, 0xff] {
            // The data of the way through configuration space are the BAR's, and may be different each time.
            for register in (0..256).step_by(4) {
                assert_eq!(self.by_ports(devfn, register), self.in_ecam(devfn, register), "{devfn:#x} {register:#x}");
            }
            let mut beyond = [0; 4];
            self.ecam.read(u64::from(devfn) << 12 | 0x100, &mut beyond);
            assert_eq!(beyond, [0xff; 4]);
        }
        let mut seen = Vec::<u64>::new();
        for (devfn, told) in DEVFNS.into_iter().zip(&self.told) {
            let wanted = self.wanted(devfn);
            let is_seen = wanted.filter(|base| (WINDOW..WINDOW + WINDOW_LEN).contains(base) && !seen.contains(base));
            assert_eq!(*lock(told), is_seen, "{devfn:#x}");
            if let Some(base) = is_seen {
                let mut data = [0; 2];
                self.window.read(base - WINDOW, &mut data);
                assert_eq!(data, [devfn; 2]);
                seen.push(base);
            }
        }
        for page in 0..8 {
            let base = WINDOW + page * BAR_LEN;
            let mut data = [0x77; 4];
            self.window.read(page * BAR_LEN, &mut data);
            assert_eq!(data == [0x77; 4], !seen.contains(&base), "no function there");
        }
    }
}

proptest! {
    #[test]
    fn whatever_a_guest_writes_each_function_is_where_it_put_it(steps in proptest::collection::vec(step(), 1..60)) {
        let bench = Bench::new();
        for step in &steps {
            bench.act(step);
            bench.check();
        }
    }

    #[test]
    fn a_state_is_all_that_a_guest_wrote(steps in proptest::collection::vec(step(), 1..60)) {
        let old = Bench::new();
        steps.iter().for_each(|step| old.act(step));
        let text = serde_json::to_string(&old.host.state()).unwrap();
        let new = Bench::new();
        new.host.restore(&serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!(new.host.state(), old.host.state());
        new.check();
    }

    #[test]
    fn a_damaged_state_is_taken_or_refused(at in 0..256_usize, value: u8, which in 0..3_usize) {
        let mut state = Bench::new().host.state();
        state.functions[which].config.0[at] = value;
        let bench = Bench::new();
        if bench.host.restore(&state).is_ok() {
            assert_eq!(bench.host.state(), state);
            bench.check();
        }
    }
}
