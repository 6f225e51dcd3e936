//! Hosts that break the protocol: the connection ends, the command is hung up, the next host is served.

use std::io::{Read, Write};

use axvm_exec::{CHUNK, FromHost, WINDOW};

use crate::common::{Agent, request};

#[test]
fn a_host_that_breaks_the_rules_loses_its_connection_and_its_command() {
    let agent = Agent::start();
    let frame = |kind: u8, payload: &[u8]| [&[kind][..], &(payload.len() as u32).to_le_bytes(), payload].concat();
    let mut second = Vec::new();
    FromHost::Request(request(&["true"])).encode(&mut second);
    // The command takes a pipe full of them.
    let too_much = frame(2, &[0; CHUNK]).repeat(2 * WINDOW as usize / CHUNK + 1);
    for lie in [frame(99, b""), frame(5, b"\0"), frame(4, b"abc"), [5, 255, 255, 255, 255].to_vec(), second, too_much] {
        let mut host = agent.ask(request(&["sh", "-c", "echo ready; sleep 60"]));
        host.expect("ready");
        // The agent may have closed before all is written.
        _ = host.stream.write_all(&lie);
        // What it still says are grants at most.
        _ = host.stream.read_to_end(&mut Vec::new());
        assert!(host.said.outcome.is_none());
        agent.leaves_no_process_behind();
    }
    assert_eq!(agent.run(&["echo", "on"]).text(), "on\n");
}

#[test]
fn a_request_in_pieces_is_one() {
    let agent = Agent::start();
    let mut bytes = b"axexec\x01\0".to_vec();
    FromHost::Request(request(&["echo", "whole"])).encode(&mut bytes);
    let mut stream = agent.connect();
    for byte in bytes {
        stream.write_all(&[byte]).unwrap();
    }
    let mut said = Vec::new();
    while !said.windows(5).any(|part| part == b"whole") {
        let mut buffer = [0; 64];
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "{said:?}");
        said.extend_from_slice(&buffer[..count]);
    }
}
