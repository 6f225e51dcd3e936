//! A real peer at the other end: QEMU, whose firmware asks for an address, and our guest, which gives it one.
//!
//! ```text
//!   guest (the test: a DHCP server) --net0--> axvm --stream or datagrams--> qemu --> iPXE: DISCOVER, REQUEST
//! ```
//!
//! Needs /dev/kvm and qemu-system-x86_64 7.2 or later with the ROM of its network card; what cannot be tried says so.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::{Child, Command, Stdio};

use crate::common::net::{read_udp, send, start, take_until, udp};
use crate::common::{Place, exists, has_kvm, skip, until};

struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A machine of QEMU that boots from its network card; none where there is no QEMU that knows such a cable.
fn qemu(place: &Place, cable: &str, made: &str) -> Option<Qemu> {
    let known = Command::new("qemu-system-x86_64").args(["-netdev", "help"]).output();
    if !known.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("dgram")) {
        skip("no qemu-system-x86_64 of 7.2 or later");
        return None;
    }
    let mut command = Command::new("qemu-system-x86_64");
    command.args("-M pc -accel tcg -m 64 -nodefaults -display none -boot n -device virtio-net-pci,netdev=n".split(' '));
    command.args(["-netdev", cable]).current_dir(place.path("")).stdin(Stdio::null());
    let mut qemu = Qemu(command.spawn().unwrap());
    until("QEMU has made its socket", || exists(place.path(made)) || qemu.0.try_wait().unwrap().is_some());
    if qemu.0.try_wait().unwrap().is_some() {
        skip("QEMU does not start such a machine, perhaps without the ROM of its card");
        return None;
    }
    Some(qemu)
}

/// The kind of a DHCP message, and the message.
fn dhcp(frame: &[u8]) -> Option<(u8, Vec<u8>)> {
    let (ends, message) = read_udp(frame)?;
    let kind = message.get(240..)?.windows(3).find(|window| window[..2] == [53, 1])?[2];
    (ends[1].port() == 67).then_some((kind, message))
}

fn serve_an_address(cable: &str, made: &str, words: &str) {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let Some(_qemu) = qemu(&place, cable, made) else { return };
    let (axvm, mut talk) = place.shell(&format!("--net {words}"));
    let (mac, _) = start(&mut talk, 0);
    let (_, mut message) = take_until(&mut talk, |frame| dhcp(frame).filter(|(kind, _)| *kind == 1));
    let client: [u8; 6] = message[28..34].try_into().unwrap();
    // BOOTREPLY: your address, and the server's.
    message.truncate(236);
    message[0] = 2;
    message[16..24].copy_from_slice(&[10, 0, 0, 9, 10, 0, 0, 1]);
    message
        .extend([0x63, 0x82, 0x53, 0x63, 53, 1, 2, 54, 4, 10, 0, 0, 1, 1, 4, 255, 255, 255, 0, 51, 4, 0, 0, 9, 9, 255]);
    message.resize(300, 0);
    let ends = [SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 67), SocketAddrV4::new(Ipv4Addr::BROADCAST, 68)];
    let offer = udp([mac, client], ends, &message);
    // It may ask again before it takes an offer.
    send(&mut talk, &offer);
    let request = take_until(&mut talk, |frame| {
        let (kind, request) = dhcp(frame)?;
        (kind == 3).then_some(request)
    });
    assert!(request.windows(6).any(|option| option == [50, 4, 10, 0, 0, 9]), "it asks for what it was offered");
    talk.say("off\n");
    axvm.ends_with(0);
}

#[test]
fn a_machine_of_qemu_is_served_over_a_stream() {
    let cable = "stream,id=n,server=on,addr.type=unix,addr.path=cable";
    serve_an_address(cable, "cable", "stream=cable");
}

#[test]
fn a_machine_of_qemu_is_served_over_datagrams() {
    let cable = "dgram,id=n,local.type=unix,local.path=qemu,remote.type=unix,remote.path=ours";
    serve_an_address(cable, "qemu", "dgram=ours:qemu");
}
