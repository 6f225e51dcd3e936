//! gdb's protocol by hand, where gdb is too slow to measure with or too polite: how soon Ctrl-C stops a guest, what an
//! attached debugger costs, and packets that no gdb sends.
//!
//! ```text
//!   $PACKET#sum -->  "+$REPLY#sum"        0x03 --> "$T02..." when the guest has stopped
//! ```
//!
//! Needs /dev/kvm. Spec: GDB manual, appendix E "GDB Remote Serial Protocol".

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use axvm_api::types::MachineState;

use crate::common::{Axvm, Place, Talk, has_kvm, until};

/// The other end of a `--gdb` socket.
struct Rsp {
    stream: UnixStream,
    /// What came and was not looked at.
    came: Vec<u8>,
}

impl Rsp {
    /// Connects; the guest stops.
    fn at(place: &Place) -> Rsp {
        let mut stream = None;
        until("gdb's socket takes a client", || {
            stream = UnixStream::connect(place.path("web.gdb")).ok();
            stream.is_some()
        });
        let stream = stream.unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Rsp { stream, came: Vec::new() }
    }

    fn send(&mut self, packet: &[u8]) {
        let sum = packet.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        let whole = [b"$", packet, format!("#{sum:02x}").as_bytes()].concat();
        self.stream.write_all(&whole).unwrap();
    }

    /// The next packet that comes; none at the end.
    fn reply(&mut self) -> Option<String> {
        loop {
            let begin = self.came.iter().position(|byte| *byte == b'$');
            let end = self.came.iter().position(|byte| *byte == b'#').filter(|end| self.came.len() > end + 2);
            if let (Some(begin), Some(end)) = (begin, end) {
                let reply = String::from_utf8(spelled_out(&self.came[begin + 1..end])).unwrap();
                self.came.drain(..end + 3);
                // After a detach the other end is gone.
                let _ = self.stream.write_all(b"+");
                return Some(reply);
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(0) => return None,
                Ok(count) => self.came.extend_from_slice(&bytes[..count]),
                Err(error) => panic!("no reply: {error}, after {:?}", String::from_utf8_lossy(&self.came)),
            }
        }
    }

    fn ask(&mut self, packet: &str) -> String {
        self.send(packet.as_bytes());
        self.reply().unwrap()
    }

    /// What a `monitor` command is answered, as text.
    fn monitor(&mut self, command: &str) -> String {
        let digits = |text: &str| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
        let byte = |pair: &[u8]| u8::from_str_radix(&String::from_utf8_lossy(pair), 16).unwrap();
        let mut reply = self.ask(&format!("qRcmd,{}", digits(command)));
        let mut text = Vec::new();
        while let Some(piece) = reply.strip_prefix('O').filter(|piece| *piece != "K") {
            text.extend(piece.as_bytes().chunks_exact(2).map(byte));
            reply = self.reply().unwrap();
        }
        assert_eq!(reply, "OK", "{command}");
        String::from_utf8(text).unwrap()
    }

    /// The stop that Ctrl-C brings, and how long it took.
    fn interrupt(&mut self) -> (String, Duration) {
        let begin = Instant::now();
        self.stream.write_all(&[3]).unwrap();
        (self.reply().unwrap(), begin.elapsed())
    }
}

/// A packet without its run lengths: `0* ` is four zeroes.
fn spelled_out(packet: &[u8]) -> Vec<u8> {
    let mut all: Vec<u8> = Vec::new();
    let mut bytes = packet.iter();
    while let Some(byte) = bytes.next() {
        match (byte, all.last().copied()) {
            (b'*', Some(last)) => all.extend(std::iter::repeat_n(last, usize::from(bytes.next().unwrap() - 29))),
            _ => all.push(*byte),
        }
    }
    all
}

/// A machine with one vCPU and a guest that waits in HLT, and gdb's end of it.
fn machine(place: &Place) -> (Axvm, Talk, Rsp) {
    let (axvm, mut talk) = place.waiting_shell("--memory 32M --cpus 1 --gdb unix=web.gdb --symbols guest.elf");
    talk.ask("work 10");
    (axvm, talk, Rsp::at(place))
}

/// The guest still works, and its machine can be ended.
fn is_well(place: &Place, axvm: Axvm, mut talk: Talk) {
    talk.ask("work 10");
    assert_eq!(place.run("ctl api stop").0, 0);
    axvm.ends_with(0);
}

/// The best of five: other tests run, too.
fn best(mut stop: impl FnMut() -> Duration) -> Duration {
    (0..5).map(|_| stop()).min().unwrap()
}

#[test]
fn ctrl_c_stops_a_guest_that_waits_that_spins_or_that_is_paused() {
    const SOON: Duration = Duration::from_millis(50);
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, _talk, mut gdb) = machine(&place);
    gdb.ask("?");
    let mut run = |before: &mut dyn FnMut()| {
        best(|| {
            gdb.send(b"vCont;c");
            until("it runs", || axvm.status().state == MachineState::Running);
            before();
            let (stop, took) = gdb.interrupt();
            assert!(stop.starts_with("T02"), "SIGINT: {stop}");
            took
        })
    };
    let halted = run(&mut || ());
    assert!(halted < SOON, "in HLT: {halted:?}");
    let paused = run(&mut || assert_eq!(place.run("ctl api pause").0, 0));
    assert!(paused < SOON, "paused by its user: {paused:?}");
    // Where it waits, a jump to itself: one whose last HLT is over is there.
    let registers = gdb.ask("g");
    let rip = u64::from_str_radix(&registers[256..272], 16).unwrap().swap_bytes();
    assert_eq!(gdb.ask(&format!("M{rip:x},2:ebfe")), "OK");
    gdb.ask("vCont;s:1");
    let spinning = best(|| {
        gdb.send(b"vCont;c");
        until("it runs", || axvm.status().state == MachineState::Running);
        let (stop, took) = gdb.interrupt();
        assert!(stop.starts_with("T02"), "SIGINT: {stop}");
        took
    });
    assert!(spinning < SOON, "in a loop: {spinning:?}");
    assert_eq!(gdb.ask("g")[256..272], registers[256..272], "it was there");
    eprintln!("stopped after {halted:?} in HLT, {paused:?} paused, {spinning:?} in a loop");
}

/// The thread at a `--gdb` socket has a small filter: what AxVM is asked for there must work within it.
#[test]
fn what_monitor_tells_needs_no_more_than_the_thread_may() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, talk, mut gdb) = machine(&place);
    gdb.ask("?");
    let help = gdb.monitor("help");
    let commands = help.lines().filter_map(|line| line.strip_prefix("monitor ")?.split(' ').next());
    // An NMI is a panic of this guest.
    for command in commands.filter(|command| !["reset", "nmi"].contains(command)) {
        for arguments in ["", " 0x100000"] {
            let told = gdb.monitor(&format!("{command}{arguments}"));
            let plain = |letter: char| letter == '\n' || !letter.is_control();
            assert!(told.len() > 3 && told.ends_with('\n') && told.chars().all(plain), "{command}: {told:?}");
        }
    }
    assert_eq!(gdb.ask("D;1"), "OK");
    // The power button was pressed: this guest does not mind.
    is_well(&place, axvm, talk);
}

#[test]
fn a_crash_in_a_step_is_told_and_its_report_comes_when_the_guest_goes_on() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, _talk, mut gdb) = machine(&place);
    gdb.ask("?");
    let rip = u64::from_str_radix(&gdb.ask("g")[256..272], 16).unwrap().swap_bytes();
    // LIDT of a table without entries, which is where zeroes are; UD2.
    assert_eq!(gdb.ask("M200000,a:00000000000000000000"), "OK");
    assert_eq!(gdb.ask(&format!("M{rip:x},a:0f011c25000020000f0b")), "OK");
    let step = gdb.ask("vCont;s:1");
    assert!(step.starts_with("T05"), "SIGTRAP: {step}");
    let crash = gdb.ask("vCont;s:1");
    assert!(crash.starts_with("T0b"), "SIGSEGV: {crash}");
    gdb.send(b"vCont;c");
    let end = gdb.reply().unwrap_or_default();
    assert!(end.starts_with('W'), "the end, with its code: {end}");
    let end = axvm.end();
    assert!(end.errors.contains("triple fault"), "{end:?}");
}

#[test]
fn a_pause_of_the_user_outlasts_ctrl_c() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, _talk, mut gdb) = machine(&place);
    gdb.ask("?");
    gdb.send(b"vCont;c");
    until("it runs", || axvm.status().state == MachineState::Running);
    assert_eq!(place.run("ctl api pause").0, 0);
    gdb.interrupt();
    assert_eq!(gdb.ask("D;1"), "OK");
    until("gdb has left", || matches!(gdb.stream.read(&mut [0]), Ok(0)));
    assert_eq!(axvm.status().state, MachineState::Paused);
}

/// Exits that the guest needs for the same work.
fn exits_of_work(axvm: &Axvm, talk: &mut Talk) -> u64 {
    let total = || axvm.status().exits.total;
    let before = total();
    talk.ask("work 20");
    total() - before
}

#[test]
fn a_guest_that_runs_under_gdb_exits_no_more_often() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, mut talk) = place.waiting_shell("--memory 32M --cpus 1 --gdb unix=web.gdb");
    talk.ask("work 10");
    let least = |talk: &mut Talk| (0..3).map(|_| exits_of_work(&axvm, talk)).min().unwrap();
    let without = least(&mut talk);
    let mut gdb = Rsp::at(&place);
    gdb.ask("?");
    gdb.send(b"vCont;c");
    until("it runs", || axvm.status().state == MachineState::Running);
    let with = least(&mut talk);
    assert_eq!(with, without);
    // Nor a guest that waits.
    let total = || axvm.status().exits.total;
    let before = total();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(total(), before);
}

/// Packets that no gdb sends, all of them from a few numbers: the next run sends the same.
struct Nonsense(u64);

impl Nonsense {
    fn number(&mut self, below: usize) -> usize {
        // Knuth's multiplier: the upper bits are good enough.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }

    fn one_of<'a>(&mut self, words: &'a str) -> &'a str {
        let count = words.split(' ').count();
        words.split(' ').nth(self.number(count)).unwrap()
    }

    /// What begins like a packet of the protocol, and goes on with numbers, names and bytes.
    fn packet(&mut self) -> Vec<u8> {
        const BEGINNINGS: &str = "? g G m M x X p P H Hg Hc T Z0, Z1, Z2, Z3, Z4, Z9, z0, z1, z2, qSupported: \
            qXfer:features:read:target.xml: qXfer:exec-file:read: qRcmd, qThreadExtraInfo, qfThreadInfo qsThreadInfo \
            vCont;s: vCont;s vCont? vKill; vAttach; vFile:open: QStartNoAckMode QPassSignals: bs bc s qC qAttached _";
        const PARTS: &str = "0 1 2 3 ff p1.1 p-1.-1 p0.0 -1 100000 1000000 7fffffffffffffff ffffffffffffffff \
            ffff800000000000 fffffffffffffffe,8 10000000000000000 , ; : = * cc 68656c70 \
            627265616b706f696e747320696e7433 70687973203078302034303936 zz + - }";
        let mut packet = self.one_of(BEGINNINGS).as_bytes().to_vec();
        for _ in 0..self.number(6) {
            match self.number(8) {
                0 => packet.push(self.number(256) as u8),
                1 => packet.extend(std::iter::repeat_n(b'f', self.number(5000))),
                _ => packet.extend_from_slice(self.one_of(PARTS).as_bytes()),
            }
        }
        packet
    }
}

/// Sends until the machine's end of the stream is closed, or enough.
fn send_nonsense(gdb: &mut Rsp, nonsense: &mut Nonsense) {
    gdb.stream.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
    for _ in 0..40 {
        let packet = nonsense.packet();
        let sum = packet.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        // Some sums are wrong.
        let sum = if nonsense.number(20) == 0 { sum ^ 1 } else { sum };
        let whole = [b"+$", &packet[..], format!("#{sum:02x}").as_bytes()].concat();
        if gdb.stream.write_all(&whole).is_err() {
            return;
        }
        match gdb.stream.read(&mut [0; 1 << 16]) {
            Ok(0) => return,
            Err(error) if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return,
            Ok(_) | Err(_) => {}
        }
    }
}

#[test]
fn packets_that_no_gdb_sends_end_a_session_and_nothing_else() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, mut talk, first) = machine(&place);
    drop(first);
    let mut nonsense = Nonsense(1);
    for _ in 0..40 {
        let mut gdb = Rsp::at(&place);
        send_nonsense(&mut gdb, &mut nonsense);
        drop(gdb);
    }
    // A guest whose memory and registers such packets changed is its user's affair: it is reset.
    let mut gdb = Rsp::at(&place);
    gdb.ask("?");
    assert_eq!(gdb.ask("D;1"), "OK");
    assert_eq!(place.run("ctl api reset").0, 0);
    talk.hear("ready\n> ");
    talk.ask("work 10");
    assert_eq!(place.run("ctl api stop").0, 0);
    axvm.ends_with(0);
}
