//! Any driver and any host: what must hold whatever they do.

use proptest::prelude::*;

use super::tests::*;

/// One act of a driver or a host.
#[derive(Clone, Debug)]
enum Step {
    Read(u64),
    Write(u64, u8),
    Handle,
    Type(usize),
    Break,
    Take,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..8u64).prop_map(Step::Read),
        4 => (0..8u64, any::<u8>()).prop_map(|(register, value)| Step::Write(register, value)),
        2 => Just(Step::Write(IER, RECEIVED | EMPTY)),
        2 => Just(Step::Write(LCR, 3)),
        2 => Just(Step::Write(MCR, OUT2)),
        2 => any::<u8>().prop_map(|value| Step::Write(DATA, value)),
        2 => Just(Step::Handle),
        4 => (0..40usize).prop_map(Step::Type),
        1 => Just(Step::Break),
        1 => Just(Step::Take),
    ]
}

/// Does one step; what the driver or the host got for it.
fn act(bench: &Bench, step: &Step) -> Vec<u8> {
    match *step {
        Step::Read(register) => vec![bench.get(register)],
        Step::Write(register, value) => {
            bench.set(register, value);
            Vec::new()
        }
        Step::Handle => {
            (0..4).flat_map(|_| [bench.get(IIR), bench.get(LSR), bench.get(DATA), bench.get(MSR)]).collect()
        }
        Step::Type(count) => {
            bench.typed(&vec![count as u8; count]);
            Vec::new()
        }
        Step::Break => {
            bench.typed_with_break(b"", b"");
            Vec::new()
        }
        Step::Take => bench.output(),
    }
}

proptest! {
    /// What the guest reads is what was typed, in order, without a gap that it did not make itself; what it writes
    /// arrives. Loopback and FIFO clears, which may discard, are made harmless first, by reading all there is.
    #[test]
    fn any_traffic_keeps_bytes_and_order(steps in proptest::collection::vec(step(), 1..200)) {
        let bench = Bench::opened(RECEIVED);
        let (mut typed, mut read, mut written, mut arrived) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut next = 0u8;
        for step in steps {
            let latch = bench.get(LCR) & 0x80 != 0;
            match step {
                Step::Read(DATA) if latch => _ = bench.get(DATA),
                Step::Read(DATA) => {
                    if bench.get(LSR) & READY != 0 {
                        read.push(bench.get(DATA));
                    }
                }
                Step::Read(register) => _ = bench.get(register),
                Step::Write(DATA, value) => {
                    bench.set(DATA, value);
                    if !latch {
                        written.push(value);
                    }
                }
                Step::Write(FCR, value) => {
                    // Of all that is typed, only the FIFO's part can be lost: take it out first.
                    bench.set(LCR, 3);
                    read.extend(bench.read_all());
                    bench.set(FCR, value);
                }
                Step::Write(MCR, value) => bench.set(MCR, value & !LOOP),
                Step::Write(register, value) => bench.set(register, value),
                Step::Handle if !latch => read.extend(bench.handle()),
                Step::Handle => {}
                Step::Type(count) => {
                    let bytes: Vec<u8> = (0..count).map(|_| { next = next.wrapping_add(1); next }).collect();
                    bench.typed(&bytes);
                    typed.extend(bytes);
                }
                Step::Break => {
                    bench.typed_with_break(b"", b"");
                    typed.push(0);
                }
                Step::Take => _ = bench.port.take(&mut arrived),
            }
            prop_assert!(typed.starts_with(&read));
        }
        bench.set(LCR, 3);
        read.extend(bench.read_all());
        bench.port.take(&mut arrived);
        prop_assert_eq!(&read, &typed);
        prop_assert_eq!(&arrived, &written);
    }

    /// A chip that was carried to another place goes on as the one that stayed: whatever driver and host did before, and
    /// do afterwards.
    #[test]
    fn a_carried_chip_behaves_as_the_one_that_stayed(
        before in proptest::collection::vec(step(), 0..100),
        after in proptest::collection::vec(step(), 1..100),
    ) {
        let stayed = Bench::new();
        for step in &before {
            act(&stayed, step);
        }
        // What was raised so far is KVM's.
        stayed.interrupted();
        let carried = stayed.carried();
        prop_assert!(!carried.interrupted(), "told again");
        for step in &after {
            prop_assert_eq!(act(&stayed, step), act(&carried, step), "{:?}", step);
            prop_assert_eq!(stayed.interrupted(), carried.interrupted(), "{:?}", step);
        }
        prop_assert_eq!(stayed.state(), carried.state());
        prop_assert_eq!(stayed.output(), carried.output());
    }

    /// A driver that only acts on interrupts, with any handler pace, is never left with bytes that it was not told of.
    #[test]
    fn no_edge_is_lost(bursts in proptest::collection::vec((0..60usize, 0..40usize, 0..4u8), 1..60)) {
        let bench = Bench::opened(RECEIVED | EMPTY);
        let (mut typed, mut read) = (0, 0);
        for (count, written, ier) in bursts {
            bench.typed(&vec![b'x'; count]);
            typed += count;
            (0..written).for_each(|_| bench.set(DATA, b'y'));
            bench.set(IER, ier);
            bench.set(IER, RECEIVED | EMPTY);
            while bench.interrupted() {
                read += bench.handle().len();
            }
            prop_assert_eq!(read, typed);
        }
    }
}
