//! A command interpreter on a console: what tests type into, and read answers from.
//!
//! ```text
//!   typed line --interrupt--> echo --> command --> "= answer" --> "> "        COM1, or hvc0 with shell=hvc0
//! ```
//!
//! | command | does |
//! |---|---|
//! | `raw N` | takes N bytes as they are, without echo; answers their count and checksum |
//! | `flood N` | prints N lines of 1 KiB: number, alphabet, alphabet ... |
//! | `work N` | N times: such a line, then the proof of each disk |
//! | `size` | columns and rows of hvc0; then waits for other ones |
//! | `net N` | starts network card N; answers address, link (1: up) and MTU |
//! | `send N` | takes N bytes as they are and sends them as a frame |
//! | `take N` | waits N milliseconds for a frame; prints it in hexadecimal digits |
//! | `link` | whether the card's link is up; then waits for a change |
//! | `sectors` | capacity of the first disk; then waits for another one |
//! | `vsock N` | serves N connections of the host's clients: after its last byte each gets their count and checksum |
//! | `dial N` | connects to port N of the host, sends bytes and gets them back |
//! | `came` | waits until a slot of PCI has a new device, then proves every disk |
//! | `went` | waits until a slot is to be emptied, and ejects it |
//! | `slots N` | N times both |
//! | `yank` | ejects every slot with reads on their way to the last disk |
//! | `button` | waits for the power button, then powers off |
//! | `pic-button` | the same without the IOAPIC, as a kernel does that takes the SCI for a level |
//! | `alarm` | sleeps until the clock's interrupt, then with that one masked until the clock's ACPI event |
//! | `off`, `reset`, `triple`, `panic`, `hang` | ends in that way |
//! | `vector` | sends the second processor to FFFF:0000, as old ways to reboot do |
//!
//! The checksum is `sum.rotate_left(5) ^ byte` over 32 bits.
//! While nothing is typed, the processor sleeps. A control byte is echoed as its number: `<3>` is Ctrl-C.
//!
//! Spec: National PC16550D; virtio 1.2, 5.3 "Console Device"; ACPI 6.5, 4.8.3.1 "PM1 Event Grouping".

use crate::acpi::FixedEvent;
use crate::card::{self, Card};
use crate::cpu::{self, input, output, read};
use crate::report::{COM1, Line};
use crate::virtio::{self, Buffer, Device, Queue, kind, register};
use crate::{acpi, apic, chips, clock, disk, hotplug, pic, vsock};

const UART_VECTOR: u8 = 36;
/// IER and FCR: received data interrupts, from so many bytes on.
const RECEIVED_DATA: u8 = 1;
const FIFOS: u8 = 0x87;
const TRIGGER: u64 = 8;
/// IIR: why it interrupts, the trigger level.
const CAUSE: u8 = 0x0f;
const LEVEL_REACHED: u8 = 0x04;
const NOTHING: u8 = 1;
const THR_EMPTY: u8 = 1 << 5;
const FIFO: usize = 16;
/// What comes over COM1 is put here, at 7 MiB: RAM that nothing else uses.
const RECEIVED: u64 = 7 << 20;
/// A frame that is typed is put here.
const FRAME: u64 = RECEIVED + 0x1_0000;
/// The most that hvc0 receives at once: small, so that much must be handed over.
const RECEIVED_LEN: u32 = 64;

/// Where the interpreter speaks.
struct Console {
    /// COM1, if none.
    hvc0: Option<Device>,
    /// How many buffers hvc0 gave back.
    taken: u16,
    /// What was received and not yet given on: from here, to there.
    at: u64,
    end: u64,
    /// The network card that `net` has started.
    card: Option<Card>,
}

/// Interprets commands until one ends the machine.
pub fn interpret(on_hvc0: bool) -> ! {
    let mut console = Console::start(on_hvc0);
    console.print(b"ready\n");
    loop {
        console.print(b"> ");
        let line = console.line();
        let mut answer = Line::new();
        answer.text("= ");
        run(&line, &mut console, &mut answer);
        answer.text("\n");
        console.print(answer.bytes());
    }
}

fn run(line: &Line, console: &mut Console, answer: &mut Line) {
    let (word, number) = parts(line.bytes());
    match word {
        b"raw" => raw(console, number, answer),
        b"flood" => flood(console, number, answer),
        b"work" => work(console, number, answer),
        b"size" => size(console, answer),
        b"net" => console.card = Card::start(number, answer),
        b"send" => send(console, number, answer),
        b"take" => take(console, number, answer),
        b"link" => link(console, answer),
        b"sectors" => sectors(console, answer),
        b"vsock" => vsock(console, number, answer),
        b"dial" => dial(number, answer),
        b"came" => came(answer),
        b"went" => went(answer),
        b"slots" => (0..number).for_each(|_| {
            came(&mut Line::new());
            went(&mut Line::new());
        }),
        b"yank" => _ = hotplug::yank(answer),
        b"button" => button(console),
        b"pic-button" => pic_button(console),
        b"alarm" => alarm(answer),
        b"off" => acpi::power_off(),
        b"reset" => acpi::reset(),
        b"triple" => cpu::triple_fault(),
        b"panic" => output(0x505, 1_u8),
        b"hang" => cpu::stop(),
        b"vector" => jump_to_the_reset_vector(),
        _ => {}
    }
    for &byte in word {
        answer.byte(byte);
    }
    answer.text(" done");
}

fn raw(console: &mut Console, count: u64, answer: &mut Line) {
    let (mut left, mut sum) = (count, 0_u32);
    while left > 0 {
        let (at, len) = console.take(left);
        // Few instructions for a byte: where the processor is interpreted, this loop is all the time.
        sum = (at..at + len).fold(sum, |sum, at| sum.rotate_left(5) ^ u32::from(read::<u8>(at)));
        left -= len;
    }
    answer.decimal(count).text(" ").decimal(sum.into()).text(" ");
}

fn send(console: &mut Console, count: u64, answer: &mut Line) {
    let (mut to, end) = (FRAME, FRAME + count);
    while to < end {
        let (at, len) = console.take(end - to);
        for at in at..at + len {
            cpu::write(to, read::<u8>(at));
            to += 1;
        }
    }
    if let Some(card) = console.card {
        _ = card.send((FRAME, count), answer);
    }
}

fn take(console: &mut Console, milliseconds: u64, answer: &mut Line) {
    let Some((at, len)) = console.card.as_mut().and_then(|card| card.take(milliseconds)) else {
        answer.text("no ");
        return;
    };
    console.print(b"frame ");
    (at..at + len).for_each(|at| console.print(&card::digits(read(at))));
    console.print(b"\n");
    answer.decimal(len).text(" ");
}

fn link(console: &mut Console, answer: &mut Line) {
    let Some(card) = console.card else { return };
    let before = card.link();
    console.print(if before == 1 { b"link up\n" } else { b"link down\n" });
    sleep_until(|| card.link() != before);
    answer.text("link ").decimal(card.link()).text(" ");
}

/// `00000042abcdefgh...`: 1 KiB with the line end.
fn flood(console: &mut Console, count: u64, answer: &mut Line) {
    let mut line = [b'0'; 1024];
    for (at, place) in line[8..1023].iter_mut().enumerate() {
        *place = b'a' + (at % 26) as u8;
    }
    line[1023] = b'\n';
    for _ in 0..count {
        console.print(&line);
        let mut digit = 7;
        while line[digit] == b'9' && digit > 0 {
            line[digit] = b'0';
            digit -= 1;
        }
        line[digit] += 1;
    }
    answer.decimal(count).text(" ");
}

fn work(console: &mut Console, rounds: u64, answer: &mut Line) {
    let mut good = 0;
    for _ in 0..rounds {
        let mut detail = Line::new();
        flood(console, 1, &mut detail);
        let disks = virtio::devices().filter(|device| device.kind == kind::BLOCK);
        let verdicts = disks.map(|device| disk::block(device, &mut detail).is_ok());
        match verdicts.fold(true, |all, one| all & one) {
            true => good += 1,
            false => console.print(detail.bytes()),
        }
    }
    answer.decimal(good).text(" of ").decimal(rounds).text(" ");
}

fn size(console: &mut Console, answer: &mut Line) {
    let Some(device) = virtio::devices().find(|device| device.kind == kind::CONSOLE) else { return };
    let before = device.read(register::CONFIG);
    let mut line = Line::new();
    show_size(&mut line, before);
    line.text("\n");
    console.print(line.bytes());
    sleep_until(|| {
        device.acknowledge();
        device.read(register::CONFIG) != before
    });
    show_size(answer, device.read(register::CONFIG));
}

fn show_size(line: &mut Line, config: u32) {
    line.text("size ").decimal((config & 0xffff).into()).text("x").decimal((config >> 16).into()).text(" ");
}

fn sectors(console: &mut Console, answer: &mut Line) {
    let Some(device) = virtio::devices().find(|device| device.kind == kind::BLOCK) else { return };
    if device.start(virtio::FLUSH, 1, answer).is_err() {
        return;
    }
    let before = device.read(register::CONFIG);
    let mut line = Line::new();
    line.text("sectors ").decimal(before.into()).text("\n");
    console.print(line.bytes());
    sleep_until(|| {
        device.acknowledge();
        device.read(register::CONFIG) != before
    });
    answer.decimal(device.read(register::CONFIG).into()).text(" ");
}

fn vsock(console: &mut Console, connections: u64, answer: &mut Line) {
    let Some(device) = virtio::devices().find(|device| device.kind == kind::VSOCK) else { return };
    console.print(b"serving\n");
    let whole = vsock::serve(device, connections, |condition| sleep_until(condition), answer);
    answer.decimal(whole.unwrap_or_default()).text(" of ").decimal(connections).text(" ");
}

fn dial(port: u64, answer: &mut Line) {
    let Some(device) = virtio::devices().find(|device| device.kind == kind::VSOCK) else { return };
    let _ = vsock::dial(device, port as u32, answer);
}

/// Polls: the controller's own interrupt is for those who read AML.
fn came(answer: &mut Line) {
    loop {
        if let Some(verdict) = hotplug::came(answer) {
            answer.text(if verdict.is_ok() { " proved " } else { " FAILED " });
            return;
        }
        core::hint::spin_loop();
    }
}

fn went(answer: &mut Line) {
    while !hotplug::went(answer) {
        core::hint::spin_loop();
    }
}

/// As an operating system would: SCI, status bit, acknowledge, power off.
fn button(console: &mut Console) {
    let Some(button) = FixedEvent::arm(FixedEvent::POWER_BUTTON) else { return };
    console.print(b"waiting\n");
    sleep_until(|| button.has_happened());
    console.print(b"pressed\n");
    acpi::power_off();
}

/// The same through the PIC.
fn pic_button(console: &mut Console) {
    let Some(button) = FixedEvent::arm(FixedEvent::POWER_BUTTON) else { return };
    let vector = pic::take_level(button.line());
    console.print(b"waiting\n");
    let (mut pressed, before) = (false, apic::count(vector));
    sleep_until(|| {
        pressed |= button.has_happened();
        pic::end_of_interrupt();
        pressed && apic::count(vector) != before
    });
    console.print(b"pressed\n");
    acpi::power_off();
}

/// As Linux does for `rtcwake`: the interrupt while it runs; the event alone while it is suspended to idle.
fn alarm(answer: &mut Line) {
    let before = apic::count(chips::RTC_VECTOR);
    chips::alarm_each_second();
    sleep_until(|| apic::count(chips::RTC_VECTOR) != before);
    answer.text("interrupt ");
    chips::mask_alarm();
    let Some(event) = FixedEvent::arm(FixedEvent::ALARM) else { return };
    // What is noted already is no waking.
    event.has_happened();
    sleep_until(|| event.has_happened());
    answer.text("event ");
}

/// The second processor does, which starts in real mode.
fn jump_to_the_reset_vector() {
    // ljmp $0xffff, $0; the page is RAM that nothing else uses.
    const PAGE: u64 = 0x7_0000;
    cpu::write(PAGE, 0xffff_0000_ea_u64);
    apic::send(1, apic::INIT);
    apic::send(1, apic::STARTUP | (PAGE >> 12) as u32);
    clock::sleep(10_000_000);
}

/// Sleeps from interrupt to interrupt until `condition` holds. None is missed: between the look and the sleep they wait.
fn sleep_until(mut condition: impl FnMut() -> bool) {
    cpu::disable_interrupts();
    while !condition() {
        cpu::sleep_with_interrupts();
    }
    cpu::enable_interrupts();
}

/// The first word, and the number behind it.
fn parts(line: &[u8]) -> (&[u8], u64) {
    let (word, rest) = line.split_at(line.iter().position(|&byte| byte == b' ').unwrap_or(line.len()));
    let digits = rest.iter().filter(|byte| byte.is_ascii_digit());
    (word, digits.fold(0, |number: u64, &digit| number.wrapping_mul(10).wrapping_add((digit - b'0').into())))
}

impl Console {
    /// On hvc0, if the machine has it, or on COM1. With its size, hvc0 is started in both cases.
    fn start(on_hvc0: bool) -> Console {
        const SIZE: u64 = 1 << 0;
        let device = virtio::devices().find(|device| device.kind == kind::CONSOLE);
        let started = device.filter(|device| device.start(SIZE, 2, &mut Line::new()).is_ok());
        let console = Console { hvc0: started.filter(|_| on_hvc0), taken: 0, at: RECEIVED, end: RECEIVED, card: None };
        if console.hvc0.is_none() {
            apic::route(4, UART_VECTOR);
            output(COM1 + 2, FIFOS);
            output(COM1 + 4, 0x0b_u8); // MCR: OUT2, RTS, DTR
            output(COM1 + 1, RECEIVED_DATA);
        }
        console
    }

    /// A host that does not read is waited for, for ever.
    fn print(&self, bytes: &[u8]) {
        let Some(device) = self.hvc0 else {
            return bytes.chunks(FIFO).for_each(|part| {
                while input::<u8>(COM1 + 5) & THR_EMPTY == 0 {}
                part.iter().for_each(|&byte| output(COM1, byte));
            });
        };
        let queue = Queue::of(device, 1);
        let used: u16 = read(queue.used() + 2);
        let address = bytes.as_ptr().expose_provenance() as u64;
        queue.describe(0, Buffer { address, len: bytes.len() as u32, device_writes: false }, None);
        queue.offer(0);
        sleep_until(|| {
            device.acknowledge();
            read::<u16>(queue.used() + 2) != used
        });
    }

    /// Waits until something is typed; where up to `limit` bytes of it are, until the next call.
    fn take(&mut self, limit: u64) -> (u64, u64) {
        while self.at == self.end {
            match self.hvc0 {
                Some(device) => self.receive(device),
                None => self.receive_com1(),
            }
        }
        let (at, len) = (self.at, limit.min(self.end - self.at));
        self.at += len;
        (at, len)
    }

    /// As many bytes at once as the chip promises.
    fn receive_com1(&mut self) {
        let mut cause = NOTHING;
        sleep_until(|| {
            cause = input::<u8>(COM1 + 2) & CAUSE;
            cause & NOTHING == 0
        });
        let count = if cause == LEVEL_REACHED { TRIGGER } else { 1 };
        cpu::input_bytes(COM1, RECEIVED, count);
        (self.at, self.end) = (RECEIVED, RECEIVED + count);
    }

    fn receive(&mut self, device: Device) {
        let (queue, taken) = (Queue::of(device, 0), self.taken);
        queue.describe(0, Buffer { address: queue.room(), len: RECEIVED_LEN, device_writes: true }, None);
        queue.offer(0);
        sleep_until(|| {
            device.acknowledge();
            read::<u16>(queue.used() + 2) != taken
        });
        let len: u32 = read(queue.used() + 8 + u64::from(taken % virtio::QUEUE_LEN) * 8);
        self.taken = taken.wrapping_add(1);
        (self.at, self.end) = (queue.room(), queue.room() + u64::from(len.min(RECEIVED_LEN)));
    }

    /// The next line, echoed.
    fn line(&mut self) -> Line {
        let mut typed = Line::new();
        loop {
            let byte = read(self.take(1).0);
            match byte {
                b'\r' | b'\n' => break,
                0..32 => {
                    let mut number = Line::new();
                    number.text("<").decimal(byte.into()).text(">");
                    self.print(number.bytes());
                }
                _ => {
                    self.print(&[byte]);
                    typed.byte(byte);
                }
            }
        }
        self.print(b"\n");
        typed
    }
}
