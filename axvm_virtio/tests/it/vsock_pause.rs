//! Pause, reset and restore of the socket device: connections outlive the first, and no other.

use crate::common;

use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use axvm_virtio::device::feature;
use axvm_virtio::state::{DeviceState, StateError, VsockState};
use common::guest::*;
use common::line::text;
use common::*;

#[test]
fn a_pause_under_load_loses_and_repeats_nothing() {
    for features in [0, feature::EVENT_IDX] {
        let mut guest = Guest::new(features);
        let (client, port) = guest.accept(52);
        let all = text(1 << 20);
        let (mut reader, mut writer) = (client.try_clone().unwrap(), client.try_clone().unwrap());
        thread::scope(|scope| {
            let (to_guest, len) = (&all, all.len());
            scope.spawn(move || writer.write_all(to_guest).unwrap());
            let host = scope.spawn(move || {
                let mut bytes = vec![0; len];
                reader.read_exact(&mut bytes).unwrap();
                bytes
            });
            let (mut sent, mut told, mut received, mut turn) = (0, 0, Vec::new(), 0);
            while sent < all.len() || received.len() < all.len() {
                let len = 5000.min(all.len() - sent).min((64 << 10) - (sent - told));
                let (fwd_cnt, data) = (received.len() as u32, all[sent..sent + len].to_vec());
                let op = if len > 0 { RW } else { CREDIT_UPDATE };
                let packet = Packet { len: len as u32, data, fwd_cnt, ..Packet::new(op, 52, port) };
                if turn % 8 == 0 {
                    guest.offer(&packet);
                    guest.machine.pause();
                    guest.machine.resume();
                    guest.taken();
                } else {
                    guest.send(&packet);
                }
                (sent, turn) = (sent + len, turn + 1);
                while let Some(packet) = guest.poll() {
                    assert!([RW, CREDIT_UPDATE, CREDIT_REQUEST].contains(&packet.op), "{packet:?}");
                    (told, _) = (packet.fwd_cnt as usize, received.extend(packet.data));
                }
            }
            assert!(received == all && host.join().unwrap() == all);
            assert!(turn > 100);
        });
    }
}

#[test]
fn what_happens_in_a_pause_is_served_after_it() {
    let mut guest = Guest::new(0);
    let (mut client, port) = guest.accept(52);
    guest.machine.pause();
    client.write_all(b"in the pause").unwrap();
    let mut second = guest.client();
    second.write_all(b"CONNECT 53\n").unwrap();
    guest.offer(&Packet::data(52, port, b"too"));
    guest.expect_silence();
    guest.machine.resume();
    guest.taken();
    let mut bytes = [0; 3];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"too");
    let mut came = [guest.next(), guest.next()];
    came.sort_by_key(|packet| packet.op);
    assert_eq!((came[0].op, came[0].ports), (REQUEST, (FIRST + 1, 53)));
    assert_eq!((came[1].op, came[1].data.as_slice()), (RW, b"in the pause".as_slice()));
}

#[test]
fn a_reset_of_the_driver_ends_all_connections() {
    let mut guest = Guest::new(0);
    let (mut client, port) = guest.accept(52);
    let mut half = guest.client();
    half.write_all(b"CONN").unwrap();
    guest.machine.set(reg::STATUS, 0);
    assert!(is_closed(&mut client));
    guest.bring_up();
    guest.post_buffers(16);
    guest.send(&Packet::data(52, port, b"old"));
    guest.expect(RST, 52, port);
    guest.check_alive();
}

#[test]
fn clients_before_a_driver_wait_for_it() {
    let mut guest = Guest::new(0);
    guest.machine.set(reg::STATUS, 0);
    let mut client = guest.client();
    client.write_all(b"CONNECT 52\n").unwrap();
    thread::sleep(Duration::from_millis(50));
    guest.bring_up();
    guest.post_buffers(16);
    guest.expect(REQUEST, 52, FIRST);
}

#[test]
fn a_restored_guest_is_told_that_its_connections_are_gone() {
    for features in [0, feature::EVENT_IDX] {
        let mut guest = Guest::new(features);
        let (mut client, port) = guest.accept(52);
        let machine = guest.machine.carry(Box::new(device(&guest.directory)));
        guest.machine = machine;
        assert!(wait_until(|| client.write_all(b"x").is_err()), "the old device is gone");
        guest.offer(&Packet::data(52, port, b"old"));
        guest.machine.resume();
        guest.taken();
        let mut second = guest.client();
        second.write_all(b"CONNECT 53\n").unwrap();
        // Nothing comes before the event does.
        guest.expect_silence();
        guest.post_event();
        assert_eq!(guest.event(), 0);
        assert!(guest.machine.interrupted());
        let mut came = [guest.next(), guest.next()];
        came.sort_by_key(|packet| packet.op);
        assert_eq!((came[0].op, came[0].ports), (REQUEST, (port + 1, 53)), "no port comes again");
        assert_eq!((came[1].op, came[1].ports), (RST, (port, 52)));
        guest.post_event();
        thread::sleep(Duration::from_millis(30));
        assert_eq!(guest.drivers[EVENTS].take_used(), None, "it is told once");
        // Not so a plain pause.
        guest.machine.pause();
        guest.machine.resume();
        guest.check_alive();
        assert_eq!(guest.drivers[EVENTS].take_used(), None);
    }
}

#[test]
fn states_that_no_device_has_are_refused() {
    let guest = Guest::new(0);
    guest.machine.pause();
    let state = guest.machine.transport.state().unwrap();
    assert_eq!(state.device, DeviceState::Vsock(VsockState { next_port: FIRST }));
    for (next_port, is_good) in [(FIRST, true), (u32::MAX - 1, true), (0, false), (FIRST - 1, false), (u32::MAX, false)]
    {
        let machine = Machine::over(guest.machine.ram.clone(), Box::new(device(&guest.directory)));
        machine.pause();
        let mut state = state.clone();
        state.device = DeviceState::Vsock(VsockState { next_port });
        assert_eq!(machine.transport.restore(&state).is_ok(), is_good, "{next_port}");
    }
    let machine = Machine::over(guest.machine.ram.clone(), Box::new(device(&guest.directory)));
    machine.pause();
    let error = machine
        .transport
        .restore(&axvm_virtio::state::TransportState { device: DeviceState::Entropy(Default::default()), ..state });
    assert!(matches!(error.unwrap_err().source, StateError::Kind { .. }));
}

#[test]
fn ports_go_round_and_are_not_reused_while_in_use() {
    let mut guest = Guest::new(0);
    let (_first, port) = guest.accept(52);
    assert_eq!(port, FIRST);
    let mut device = device(&guest.directory);
    axvm_virtio::device::VirtioDevice::restore(
        &mut device,
        &DeviceState::Vsock(VsockState { next_port: u32::MAX - 1 }),
    )
    .unwrap();
    let machine = Machine::new(Box::new(device));
    let directory = std::mem::replace(&mut guest.directory, tempfile::TempDir::new().unwrap());
    let mut guest = Guest::on(machine, directory, 0);
    guest.bring_up();
    guest.post_buffers(16);
    let (_last, port) = guest.accept(52);
    assert_eq!(port, u32::MAX - 1);
    let listener = guest.listen(FIRST);
    let _taken = guest.connect(1025, FIRST, &listener);
    assert_eq!(guest.accept(52).1, FIRST + 1, "the guest uses the first one");
}
