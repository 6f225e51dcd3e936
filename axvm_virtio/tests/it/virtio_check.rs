//! Each rule that a driver is held to: one driver that breaks it, and nothing else is found; and a good driver, of whom
//! nothing is found.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;

use axvm_arch::Gpa;
use axvm_devices::BusDevice;
use axvm_events::Events;
use axvm_events::rules::{Rule, Violations};
use axvm_memory::{GuestRam, RamConfig};
use axvm_virtio::balloon::{Balloon, BalloonConfig};
use axvm_virtio::block::{Block, DiskConfig, DiskImage};
use axvm_virtio::check::rules::{ALL, OF_DEVICES};
use axvm_virtio::device::feature;
use axvm_virtio::net::{Link, LinkKind, Net, NetHandle, Offloads};
use axvm_virtio::queue::{QueueFeatures, QueueState, VirtQueue};
use axvm_virtio::rng::Rng;
use axvm_virtio::testing::{Buffer, FakeDriver, INDIRECT, NEXT, RawDescriptor, WRITE};

use crate::common::card::{self, Card, Peer};
use crate::common::guest::{Guest, Packet};
use crate::common::line::{self, Line};
use crate::common::*;
use crate::pci::broken_on_pci;

const VERSION_1: u64 = feature::VERSION_1;

/// An entropy device in the state that its driver made of it.
fn fresh() -> Machine {
    Machine::new(Box::new(Rng::default()))
}

/// What is found when this is done to a device that no driver has used.
fn registers(act: impl FnOnce(&Machine)) -> Vec<&'static str> {
    let machine = fresh();
    act(&machine);
    machine.broken()
}

/// What is found of a driver that was well until here.
fn after(features: u64, act: impl FnOnce(&Machine, &mut FakeDriver)) -> Vec<&'static str> {
    let machine = fresh();
    let [mut driver] = machine.bring_up_all(machine.offered() & (features | VERSION_1), [RING], 8);
    assert_eq!(machine.broken(), [""; 0]);
    act(&machine, &mut driver);
    machine.set(reg::QUEUE_NOTIFY, 0);
    wait_until(|| !machine.broken().is_empty());
    machine.broken()
}

/// The same with descriptors 0, 1 .. of the ring's own table and those of a table at [`DATA`], offered as one chain.
fn chain(features: u64, ring: &[RawDescriptor], table: &[RawDescriptor]) -> Vec<&'static str> {
    after(features, |machine, driver| {
        ring.iter().zip(0..).for_each(|(entry, index)| driver.write_descriptor(index, *entry));
        for (entry, index) in table.iter().zip(0..) {
            machine.ram.write(Gpa(DATA.0 + 16 * index), &entry.to_bytes()).unwrap();
        }
        driver.offer(0);
        driver.kick();
    })
}

fn entry(addr: u64, len: u32, flags: u16, next: u16) -> RawDescriptor {
    RawDescriptor { addr, len, flags, next }
}

/// A queue with this size and descriptor table.
fn queue(size: u32, table: u64) -> Vec<&'static str> {
    registers(|machine| {
        machine.agree(VERSION_1);
        let mut layout = FakeDriver::new(&machine.ram, RING, 8, false).layout();
        (layout.size, layout.descriptors) = (size as u16, Gpa(table));
        machine.enable_queue(0, &layout);
        machine.set(reg::STATUS, LIVE);
    })
}

/// What is found when a device gets this chain in this queue.
fn console(queue: u32, buffers: &[Buffer]) -> Vec<&'static str> {
    let mut line = Line::new(0);
    line.offer(queue, buffers);
    line.port.put(b"x");
    wait_until(|| !line.machine.broken().is_empty());
    line.machine.broken()
}

fn net(queue: u32, buffers: &[Buffer]) -> Vec<&'static str> {
    let mut card = Card::new(LinkKind::Stream, 0);
    card.offer(queue, buffers);
    card.peer.send(&[0; 60]);
    wait_until(|| !card.machine.broken().is_empty());
    card.machine.broken()
}

fn vsock(queue: usize, buffers: &[Buffer]) -> Vec<&'static str> {
    let mut guest = Guest::new(0);
    if queue == 0 {
        guest.bring_up();
    }
    guest.drivers[queue].add(buffers);
    guest.kick(queue);
    // A buffer for packets is looked at when there is a packet.
    let client = (queue == 0).then(|| guest.client());
    client.iter().for_each(|mut client| client.write_all(b"CONNECT 52\n").unwrap());
    wait_until(|| !guest.machine.broken().is_empty());
    guest.machine.broken()
}

/// What is found of a request of this type; `act` offers its chains.
fn block(kind: u32, sector: u64, act: impl FnOnce(&mut Disk)) -> Vec<&'static str> {
    let file = Disk::file();
    let image = DiskImage::open(&DiskConfig::new(file.path())).unwrap();
    let mut disk = Disk::on(Machine::new(Box::new(Block::new(image.clone()))), image, 0);
    disk.write_header(kind, sector);
    act(&mut disk);
    disk.kick();
    wait_until(|| !disk.machine.broken().is_empty());
    disk.machine.broken()
}

/// The same of one with so much data, which the device may write, or read: then it is `bytes`.
fn request(kind: u32, sector: u64, len: u32, bytes: Option<&[u8]>) -> Vec<&'static str> {
    block(kind, sector, |disk| {
        disk.machine.ram.write(DATA, bytes.unwrap_or_default()).unwrap();
        let data = Buffer { gpa: DATA, len, writable: bytes.is_none() };
        let all = [Buffer::readable(HEADER, 16), data, Buffer::writable(STATUS, 1)];
        let used = if len == 0 { &[all[0], all[2]][..] } else { &all };
        disk.driver.add(used);
    })
}

/// What is found of a frame with this header, of a driver that accepted this.
fn frame(features: u64, header: [u8; 12]) -> Vec<&'static str> {
    let (ours, peer) = Peer::pair(LinkKind::Tap);
    let handle = NetHandle::new(Link::stand_in(vec![ours], Offloads::ALL).unwrap()).unwrap();
    let machine = Machine::new(Box::new(Net::new(handle.clone(), card::CONFIG)));
    let mut card = Card::on(machine, handle, peer, features);
    card.machine.ram.write(DATA, &[&header[..], &[0; 60]].concat()).unwrap();
    card.offer(card::TRANSMIT, &[Buffer::readable(DATA, 72)]);
    wait_until(|| !card.machine.broken().is_empty());
    card.machine.broken()
}

/// What is found of a guest that sends these packets.
fn packets(list: &[Packet]) -> Vec<&'static str> {
    let mut guest = Guest::new(0);
    guest.bring_up();
    let listener = guest.listen(1);
    guest.post_buffers(4);
    let _stream = guest.connect(7, 1, &listener);
    list.iter().for_each(|packet| guest.send(packet));
    wait_until(|| !guest.machine.broken().is_empty());
    guest.machine.broken()
}

/// What is found of a ring, by the device's side of it, which has one chain.
fn ring(act: impl FnOnce(&mut FakeDriver, &mut VirtQueue)) -> Vec<&'static str> {
    let ram = GuestRam::allocate(&RamConfig::new(32 << 20)).unwrap();
    let rules = Arc::<Violations>::default();
    let mut driver = FakeDriver::new(&ram, RING, 8, false);
    let mut queue = VirtQueue::new(&ram, &driver.layout(), QueueFeatures::default(), QueueState::default()).unwrap();
    axvm_virtio::testing::check(&mut queue, false, &Events::default().with_rules(Arc::clone(&rules)));
    act(&mut driver, &mut queue);
    rules.all().iter().map(|violation| violation.rule.id).collect()
}

fn balloon() -> Vec<&'static str> {
    let config = BalloonConfig { deflate_on_oom: true, free_page_reporting: true };
    let machine = Machine::new(Box::new(Balloon::new(config)));
    let [mut driver] = machine.bring_up_all(VERSION_1, [RING], 8);
    driver.add(&[Buffer::readable(DATA, 4 * 16385)]);
    machine.show(0, &mut driver);
    wait_until(|| !machine.broken().is_empty());
    machine.broken()
}

/// What breaks the rules of status and features.
fn by_status(rule: &str) -> Option<Vec<&'static str>> {
    Some(match rule {
        "status-cleared" => registers(|machine| {
            machine.set(reg::STATUS, FOUND);
            machine.set(reg::STATUS, 1);
        }),
        "features-not-offered" => registers(|machine| {
            machine.set(reg::STATUS, FOUND);
            machine.accept(VERSION_1 | 1 << 20);
            machine.set(reg::STATUS, AGREED);
        }),
        "version-1" => registers(|machine| {
            machine.set(reg::STATUS, FOUND);
            machine.set(reg::STATUS, AGREED);
        }),
        "status-order" => registers(|machine| machine.set(reg::STATUS, 2)),
        "features-unread" => registers(|machine| {
            machine.set(reg::STATUS, FOUND);
            machine.accept(VERSION_1);
            machine.set(reg::STATUS, AGREED);
            machine.set(reg::STATUS, LIVE);
        }),
        "features-late" => registers(|machine| {
            machine.agree(VERSION_1);
            machine.accept(VERSION_1);
        }),
        "config-write-early" => registers(|machine| machine.transport.write(0x100, &[0])),
        "queue-late" => registers(|machine| {
            machine.agree(VERSION_1);
            machine.set(reg::STATUS, LIVE);
            machine.enable_queue(0, &FakeDriver::new(&machine.ram, RING, 8, false).layout());
        }),
        _ => return None,
    })
}

/// What breaks those of queues and registers.
fn by_queues(rule: &str) -> Option<Vec<&'static str>> {
    Some(match rule {
        "kick-early" => registers(|machine| {
            machine.agree(VERSION_1);
            machine.enable_queue(0, &FakeDriver::new(&machine.ram, RING, 8, false).layout());
            machine.set(reg::QUEUE_NOTIFY, 0);
            machine.set(reg::STATUS, LIVE);
        }),
        "kick-no-queue" => registers(|machine| machine.set(reg::QUEUE_NOTIFY, 1)),
        "queue-missing" => registers(|machine| {
            machine.set(reg::QUEUE_SEL, 1);
            machine.set(reg::QUEUE_NUM, 8);
        }),
        "queue-live" => registers(|machine| {
            machine.agree(VERSION_1);
            machine.enable_queue(0, &FakeDriver::new(&machine.ram, RING, 8, false).layout());
            machine.set(reg::QUEUE_NUM, 4);
        }),
        "queue-size" => queue(6, RING.0),
        "queue-misplaced" => queue(8, RING.0 + 8),
        "mmio-queue-num" => registers(|machine| machine.set(reg::QUEUE_NUM, 1 << 14)),
        "mmio-undefined" => registers(|machine| _ = machine.get(0x18)),
        "mmio-write-read-only" => registers(|machine| machine.set(reg::CONFIG_GENERATION, 1)),
        "mmio-read-write-only" => registers(|machine| _ = machine.get(reg::QUEUE_NOTIFY)),
        "mmio-width" => registers(|machine| machine.transport.read(reg::STATUS, &mut [0])),
        "mmio-config-width" => registers(|machine| machine.transport.read(0x100, &mut [0; 8])),
        "mmio-ack-undefined" => registers(|machine| machine.set(reg::INTERRUPT_ACK, 4)),
        "pci-width" => broken_on_pci(|set| set(0x14, 4, 1)),
        "pci-write-read-only" => broken_on_pci(|set| set(0x12, 2, 1)),
        "pci-queue-size" => broken_on_pci(|set| set(0x18, 2, 6)),
        "pci-reset-unread" => broken_on_pci(|set| {
            set(0x14, 1, 0);
            set(0x14, 1, 1);
        }),
        "pci-enable-zero" => broken_on_pci(|set| set(0x1c, 2, 0)),
        _ => return None,
    })
}

/// What breaks those of rings.
fn by_rings(rule: &str) -> Option<Vec<&'static str>> {
    let writable = Buffer::writable(DATA, 16);
    let indirect = feature::INDIRECT_DESC;
    Some(match rule {
        "avail-index" => after(0, |_, driver| driver.set_avail_idx(9)),
        "avail-flags" => after(feature::EVENT_IDX, |machine, driver| {
            machine.ram.write(driver.layout().avail, &[1, 0]).unwrap();
            driver.add(&[writable]);
            driver.kick();
        }),
        // A disk takes what is offered before it begins.
        "head-in-flight" => block(IN, 0, |disk| {
            let request = [Buffer::readable(HEADER, 16), Buffer::writable(DATA, 512), Buffer::writable(STATUS, 1)];
            let head = disk.driver.add(&request);
            disk.driver.offer(head);
        }),
        "descriptor-in-flight" => block(IN, 0, |disk| {
            let request = [Buffer::readable(HEADER, 16), Buffer::writable(DATA, 512), Buffer::writable(STATUS, 1)];
            disk.driver.add(&request);
            // A header of its own, and the rest of the first.
            disk.driver.write_descriptor(3, entry(HEADER.0, 16, NEXT, 1));
            disk.driver.offer(3);
        }),
        "descriptor-changed" => ring(|driver, queue| {
            driver.add(&[Buffer::writable(DATA, 16), Buffer::writable(DATA, 16)]);
            driver.kick();
            let head = queue.pop().unwrap().unwrap().head;
            driver.write_descriptor(1, entry(DATA.0, 8, WRITE, 0));
            queue.push_used(head, 0);
        }),
        "descriptor-index" => after(0, |_, driver| {
            driver.offer(8);
            driver.kick();
        }),
        "buffer-outside" => chain(0, &[entry(1 << 40, 16, WRITE, 0)], &[]),
        "chain-loop" => chain(0, &[entry(DATA.0, 16, WRITE | NEXT, 0)], &[]),
        "chain-bytes" => huge_chain(),
        "chain-order" => chain(0, &[entry(DATA.0, 16, WRITE | NEXT, 1), entry(DATA.0, 16, 0, 0)], &[]),
        "chain-long" => {
            let table: Vec<_> =
                (1..=9).map(|next| entry(DATA.0, 1, WRITE | if next < 9 { NEXT } else { 0 }, next)).collect();
            chain(indirect, &[entry(DATA.0, 16 * 9, INDIRECT, 0)], &table)
        }
        "indirect-len" => chain(indirect, &[entry(DATA.0, 20, INDIRECT, 0)], &[]),
        "indirect-unasked" => chain(0, &[entry(DATA.0, 16, INDIRECT, 0)], &[]),
        "indirect-next" => chain(indirect, &[entry(DATA.0, 16, INDIRECT | NEXT, 1)], &[]),
        "indirect-nested" => chain(indirect, &[entry(DATA.0, 16, INDIRECT, 0)], &[entry(DATA.0, 16, INDIRECT, 0)]),
        _ => return None,
    })
}

/// What breaks those of the kinds of devices.
fn by_requests(rule: &str) -> Option<Vec<&'static str>> {
    let (readable, writable) = (Buffer::readable(DATA, 16), Buffer::writable(DATA, 16));
    Some(match rule {
        "net-transmit" => net(card::TRANSMIT, &[writable]),
        "net-receive" => net(card::RECEIVE, &[readable]),
        "net-num-buffers" => frame(0, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]),
        "net-flags" => frame(0, [1, 0, 0, 0, 0, 0, 14, 0, 6, 0, 0, 0]),
        "net-segments" => frame(0, [0, 1, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0]),
        "net-checksum" => frame(1, [1, 0, 0, 0, 0, 0, 54, 0, 6, 0, 0, 0]),
        "block-capacity" => request(IN, 1 << 30, 512, None),
        "block-length" => request(GET_ID, 0, 512, None),
        "block-segments" => request(DISCARD, 0, 16 * 33, Some(&[])),
        "block-unmap" => request(DISCARD, 0, 16, Some(&[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0])),
        "block-flush" => request(FLUSH, 1, 0, None),
        "block-status" => block(IN, 0, |disk| _ = disk.driver.add(&[Buffer::readable(HEADER, 16)])),
        "console-receive" => console(line::RECEIVE, &[readable]),
        "console-transmit" => console(line::TRANSMIT, &[writable]),
        "entropy-readable" => chain(0, &[entry(DATA.0, 16, 0, 0)], &[]),
        "entropy-empty" => chain(0, &[entry(DATA.0, 0, WRITE, 0)], &[]),
        "balloon-pages" => balloon(),
        "vsock-header" => vsock(1, &[readable]),
        "vsock-credit" => packets(&vec![Packet::data(7, 1, &[0; 60 << 10]); 6]),
        "vsock-source" => packets(&[Packet { cids: (99, 2), ..Packet::data(7, 1, b"x") }]),
        "vsock-transmit" => vsock(1, &[writable]),
        "vsock-receive" => vsock(0, &[readable]),
        _ => return None,
    })
}

/// What breaks each rule.
fn broken_by(rule: &Rule) -> Vec<&'static str> {
    let by = [by_status, by_queues, by_rings, by_requests];
    by.iter().find_map(|by| by(rule.id)).unwrap_or_else(|| panic!("no driver breaks {}", rule.id))
}

/// A chain of more than 2^32 bytes: RAM that is named again and again, by a long queue.
fn huge_chain() -> Vec<&'static str> {
    let ram = GuestRam::allocate(&RamConfig::new(1 << 30)).unwrap();
    let machine = Machine::over(ram, Box::new(Rng::default()));
    let [mut driver] = machine.bring_up_all(VERSION_1, [RING], 8);
    driver.add(&[Buffer::writable(Gpa(0), (1 << 30) - 1); 5]);
    machine.show(0, &mut driver);
    wait_until(|| !machine.broken().is_empty());
    machine.broken()
}

#[test]
fn each_rule_is_found_broken_where_a_driver_breaks_it_and_no_other() {
    let ids: BTreeSet<_> = ALL.iter().chain(OF_DEVICES).map(|rule| rule.id).collect();
    assert_eq!(ids.len(), ALL.len() + OF_DEVICES.len(), "no two rules have one name");
    for rule in ALL.iter().chain(OF_DEVICES) {
        assert_eq!(broken_by(rule), [rule.id], "{rule:?}");
    }
}

#[test]
fn chains_that_were_put_back_are_not_in_flight() {
    let found = ring(|driver, queue| {
        for _ in 0..3 {
            driver.add(&[Buffer::writable(DATA, 16), Buffer::writable(DATA, 16)]);
        }
        driver.kick();
        for returned in [false, true] {
            let heads: Vec<_> = (0..3).map(|_| queue.pop().unwrap().unwrap().head).collect();
            match returned {
                true => heads.into_iter().for_each(|head| queue.push_used(head, 0)),
                false => (0..3).for_each(|_| queue.put_back()),
            }
        }
    });
    assert_eq!(found, [""; 0]);
}

#[test]
fn nothing_is_found_of_good_drivers() {
    let file = Disk::file();
    let mut disk = Disk::new(file.path());
    disk.check_alive();
    let mut line = Line::new(!0);
    line.check_alive();
    let mut card = Card::new(LinkKind::Stream, !0);
    card.check_alive();
    let mut guest = Guest::new(!0);
    guest.check_alive();
    for machine in [&disk.machine, &line.machine, &card.machine, &guest.machine] {
        // And after a reset, and a pause.
        machine.pause();
        machine.resume();
        machine.set(reg::STATUS, 0);
        machine.agree(VERSION_1);
        assert_eq!(machine.broken(), [""; 0], "{}", machine.transport.name());
    }
}

#[test]
fn the_page_shows_each_rule() {
    let page = include_str!("../../../docs/virtio-check.md");
    let rows: Vec<_> =
        page.lines().skip_while(|line| *line != "## Rules").filter(|line| line.starts_with("| `")).collect();
    let wanted = ALL
        .iter()
        .chain(OF_DEVICES)
        .map(|Rule { id, level, section, clause, .. }| format!("| `{id}` | {section} | {level} | {clause} |"));
    assert_eq!(rows, wanted.collect::<Vec<_>>());
}
