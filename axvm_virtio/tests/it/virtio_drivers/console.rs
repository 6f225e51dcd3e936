//! The console under `VirtIOConsole`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axvm_console::{Port, Size};
use axvm_virtio::console::Console;
use axvm_virtio::mmio::MmioTransport;
use virtio_drivers::device::console::VirtIOConsole;

use super::guest::{GuestPages, Registers, plug};

fn drive(transport: &Arc<MmioTransport>) -> VirtIOConsole<GuestPages, Registers> {
    VirtIOConsole::new(Registers(Arc::clone(transport))).unwrap()
}

fn line() -> (Port, Arc<MmioTransport>) {
    let port = Port::new().unwrap();
    let transport = plug("hvc0", Console::new(port.clone()));
    (port, transport)
}

/// All that the driver gets, until it is so much.
fn read(console: &mut VirtIOConsole<GuestPages, Registers>, len: usize) -> Vec<u8> {
    let (start, mut bytes) = (Instant::now(), Vec::new());
    while bytes.len() < len {
        assert!(start.elapsed() < Duration::from_secs(10), "{} bytes of {len}", bytes.len());
        bytes.extend(console.recv(true).unwrap());
    }
    bytes
}

#[test]
fn a_foreign_driver_reads_and_writes() {
    let (port, transport) = line();
    let mut console = drive(&transport);
    let mut output = Vec::new();
    for text in [&b"h"[..], b"ello", &[b'x'; 10_000]] {
        console.send_bytes(text).unwrap();
        output.clear();
        port.take(&mut output);
        assert_eq!(output, text);
    }
    let typed: Vec<u8> = (0..20_000).map(|index| (index % 251) as u8).collect();
    assert_eq!(port.put(&typed), typed.len());
    assert!(read(&mut console, typed.len()) == typed);
    assert_eq!(console.recv(true), Ok(None));
}

#[test]
fn a_foreign_driver_waits_for_a_slow_host() {
    let (port, transport) = line();
    let mut console = drive(&transport);
    let text: Vec<u8> = (0..300_000).map(|index| (index % 251) as u8).collect();
    let host = std::thread::spawn(move || {
        let mut got = Vec::new();
        while got.len() < 300_000 {
            std::thread::sleep(Duration::from_millis(1));
            port.take(&mut got);
        }
        got
    });
    console.send_bytes(&text).unwrap();
    assert!(host.join().unwrap() == text);
}

#[test]
fn a_foreign_driver_reads_the_size_and_writes_in_an_emergency() {
    let (port, transport) = line();
    port.resize(Size { columns: 90, rows: 40 });
    let mut console = drive(&transport);
    let size = console.size().unwrap().unwrap();
    assert_eq!((size.columns, size.rows), (90, 40));
    console.emergency_write(b'!').unwrap();
    let mut output = Vec::new();
    port.take(&mut output);
    assert_eq!(output, b"!");
}

#[test]
fn a_second_driver_finds_a_working_device() {
    let (port, transport) = line();
    for _ in 0..10 {
        let mut console = drive(&transport);
        console.send(b'x').unwrap();
        assert_eq!(port.take(&mut Vec::new()), 1);
        port.put(b"y");
        assert_eq!(read(&mut console, 1), b"y");
    }
}
