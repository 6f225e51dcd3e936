//! What a host says to the agent: any bytes, in any pieces, are messages that may come now, or a broken rule.
//!
//! ```text
//!   input --> pieces --> GuestEnd, which grants as it goes
//!   held:     no panic; memory for one request at most; the request first and once; no more input than was granted;
//!             what was understood, said again, is the same bytes
//! ```
//!
//! The first byte chooses the size of the pieces, and whether a hello and a request come first.
//!
//! Run: `cargo +nightly fuzz run exec_guest`.
#![no_main]

use axvm_exec::{FromHost, GuestEnd, HostEnd, Request};
use libfuzzer_sys::fuzz_target;

/// The longest request, and a head.
const LIMIT: usize = (1 << 20) + 5;

fuzz_target!(|data: &[u8]| {
    let Some((&choice, rest)) = data.split_first() else { return };
    let mut bytes = Vec::new();
    if choice & 0x80 != 0 {
        HostEnd::hello(&mut bytes);
    }
    let hello = bytes.len();
    if choice & 0xc0 == 0xc0 {
        FromHost::Request(Request { arguments: vec!["cat".into()], ..Request::default() }).encode(&mut bytes);
    }
    bytes.extend_from_slice(rest);
    let (mut end, mut said) = (GuestEnd::default(), Vec::new());
    let (mut runs, mut ended, mut broken) = (false, false, false);
    let (mut granted, mut got) = (0, 0);
    for piece in bytes.chunks(usize::from(choice & 0x3f) + 1) {
        end.receive(piece);
        loop {
            match end.message() {
                Ok(Some(message)) => {
                    assert!(!broken, "{message:?} came after a lie");
                    match &message {
                        FromHost::Request(request) => {
                            assert!(!std::mem::replace(&mut runs, true), "a second request");
                            assert!(!request.arguments.is_empty());
                        }
                        FromHost::Stdin(bytes) => {
                            got += bytes.len();
                            assert!(!ended && got <= granted, "{got} bytes came, {granted} were granted");
                        }
                        FromHost::StdinEnd => assert!(!std::mem::replace(&mut ended, true)),
                        FromHost::Resize(_) => {}
                        FromHost::Signal(number) => assert!((1..=64).contains(number)),
                    }
                    assert!(runs, "{message:?} came before the request");
                    message.encode(&mut said);
                }
                Ok(None) => break,
                Err(error) => {
                    _ = error.to_string();
                    broken = true;
                    break;
                }
            }
        }
        assert!(broken || end.kept() < LIMIT, "{} bytes are kept", end.kept());
        if runs && !broken {
            end.grant(3, &mut Vec::new());
            granted += 3;
        }
    }
    if hello > 0 {
        assert!(bytes[hello..].starts_with(&said), "what was understood was not said");
    }
});
