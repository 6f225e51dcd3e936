//! Clients that lie, stall, flood and never read: each harms itself only.

use crate::common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use axvm_api::CONNECTION_LIMIT;
use axvm_events::Event;
use common::{Machine, answers, status_of};

/// Sends what may be sent, then reads the status of the answer; none if the server only closed, or waits.
fn send(stream: &mut UnixStream, bytes: &[u8]) -> Option<u16> {
    _ = stream.write_all(bytes);
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut answer = Vec::new();
    _ = stream.read_to_end(&mut answer);
    let text = String::from_utf8_lossy(&answer).into_owned();
    (!text.is_empty()).then(|| status_of(&text))
}

#[test]
fn hostile_input_is_refused_and_others_are_served() {
    let machine = Machine::start();
    let body = |text: &str| format!("PATCH /vm HTTP/1.1\r\nContent-Length: {}\r\n\r\n{text}", text.len()).into_bytes();
    let with = |header: &str| format!("PUT /actions HTTP/1.1\r\n{header}\r\n\r\n").into_bytes();
    let long = "x".repeat(1 << 20);
    let table: Vec<(&str, Vec<u8>, Option<u16>)> = vec![
        ("half a head", b"GET / HT".to_vec(), None),
        ("a head without end", b"GET / HTTP/1.1\r\nHost: x\r\n".to_vec(), None),
        ("no CRLF at all", vec![b'A'; 8 << 10], Some(431)),
        ("NULs", vec![0; 4096], Some(400)),
        ("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), Some(400)),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), Some(505)),
        ("a header of 1 MiB", format!("GET / HTTP/1.1\r\nX: {long}\r\n\r\n").into_bytes(), Some(431)),
        ("a path of 1 MiB", format!("GET /{long} HTTP/1.1\r\n\r\n").into_bytes(), Some(431)),
        ("10000 headers", [&b"GET / HTTP/1.1\r\n"[..], &b"A: b\r\n".repeat(10_000)].concat(), Some(431)),
        ("a negative length", with("Content-Length: -5"), Some(400)),
        ("a huge length", with("Content-Length: 18446744073709551616"), Some(413)),
        ("two lengths", with("Content-Length: 2\r\nContent-Length: 3"), Some(400)),
        ("chunks", with("Transfer-Encoding: chunked"), Some(411)),
        ("less body than promised", with("Content-Length: 9\r\n\r\n{}"), None),
        ("more body than promised", [with("Content-Length: 0"), b"}{".to_vec()].concat(), Some(400)),
        ("a body of 1 MiB", body(&long), Some(413)),
        ("no JSON", body("state=Paused"), Some(400)),
        ("deep JSON", body(&"[".repeat(60_000)), Some(400)),
        ("wrong types", body(r#"{"state": {"Paused": []}}"#), Some(400)),
        ("a body that is no UTF-8", [&body("")[..18], b"\r\nContent-Length: 2\r\n\r\n\xff\xfe"].concat(), Some(400)),
    ];
    for (what, bytes, expected) in table {
        let mut stream = machine.connect();
        assert_eq!(send(&mut stream, &bytes), expected, "{what}");
        machine.still_serves(what);
    }
    assert!(machine.fake.asked().is_empty());
}

#[test]
fn a_flood_of_requests_starves_no_other_client() {
    let machine = Machine::start();
    let flood = b"GET /openapi.json HTTP/1.1\r\n\r\n".repeat(5_000);
    // One that never reads, one that does.
    let mut deaf = machine.connect();
    deaf.set_nonblocking(true).unwrap();
    _ = deaf.write(&flood);
    let mut reading = machine.connect();
    let mut writing = reading.try_clone().unwrap();
    let writer = thread::spawn(move || writing.write_all(&b"GET / HTTP/1.1\r\n\r\n".repeat(5_000)));
    for _ in 0..10 {
        machine.still_serves("a flood");
    }
    assert_eq!(answers(&mut reading, 5_000), [200; 5_000]);
    writer.join().unwrap().unwrap();
}

#[test]
fn a_thousand_silent_connections_make_room_for_one_that_speaks() {
    let machine = Machine::start();
    let mut all = Vec::new();
    for n in 0..1_000 {
        let mut stream = machine.connect();
        if n % 2 == 0 {
            stream.write_all(b"GET / HTTP/1.1\r\n").unwrap();
        }
        all.push(stream);
        if n % 100 == 99 {
            machine.still_serves(&format!("{n} connections"));
        }
    }
    // The last ones are still there, the first are gone.
    all.pop().unwrap().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(matches!(all[0].read(&mut [0]), Ok(0)));
}

#[test]
fn a_sender_of_single_bytes_is_served_in_the_end() {
    let machine = Machine::start();
    let mut stream = machine.connect();
    for byte in b"PATCH /vm HTTP/1.1\r\nContent-Length: 19\r\n\r\n{\"state\": \"Paused\"}" {
        stream.write_all(&[*byte]).unwrap();
        thread::sleep(Duration::from_millis(1));
    }
    machine.still_serves("single bytes");
    assert_eq!(answers(&mut stream, 1), [204]);
    assert_eq!(machine.fake.asked(), ["pause"]);
}

#[test]
fn who_never_reads_the_events_loses_events_and_is_told() {
    let machine = Machine::start();
    let mut deaf = machine.connect();
    deaf.write_all(b"GET /events HTTP/1.1\r\n\r\n").unwrap();
    let events = machine.feed.events();
    while !events.is_on() {
        thread::yield_now();
    }
    let before = Instant::now();
    for n in 0..50_000_u32 {
        events.emit(|| Event::VirtioStatus { device: "vda".into(), from: 0, to: n });
    }
    assert!(before.elapsed() < Duration::from_secs(5), "an event waited for its reader");
    machine.still_serves("a deaf reader of events");
    let mut heard = String::new();
    let mut piece = [0; 65536];
    while !heard.contains("\"to\":49999") {
        let len = deaf.read(&mut piece).unwrap();
        heard += std::str::from_utf8(&piece[..len]).unwrap();
    }
    assert!(heard.contains("\"event\":\"lost\""));
}

#[test]
fn readers_of_events_cannot_take_every_place() {
    let machine = Machine::start();
    let mut all: Vec<UnixStream> = (0..CONNECTION_LIMIT).map(|_| machine.connect()).collect();
    let mut served = 0;
    for stream in &mut all {
        stream.write_all(b"GET /events HTTP/1.1\r\n\r\n").unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        served += usize::from(head.ends_with(b"200"));
    }
    assert_eq!(served, axvm_api::events::SUBSCRIPTION_LIMIT);
    machine.still_serves("events for many");
    drop(all);
    machine.still_serves("events for none");
    let events = machine.feed.events();
    while events.is_on() {
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn who_sends_and_hangs_up_is_obeyed_and_forgotten() {
    let machine = Machine::start();
    for _ in 0..100 {
        let mut stream = machine.connect();
        stream.write_all(b"PUT /actions HTTP/1.1\r\nContent-Length: 24\r\n\r\n{\"action_type\": \"Reset\"}").unwrap();
    }
    machine.still_serves("hanging up");
    let before = Instant::now();
    let mut asked = 0;
    while asked < 100 && before.elapsed() < Duration::from_secs(2) {
        asked += machine.fake.asked().len();
    }
    assert_eq!(asked, 100);
}
