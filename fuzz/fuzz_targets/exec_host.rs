//! What a guest's agent says: any bytes, in any pieces, are messages that may come now, or a broken rule.
//!
//! ```text
//!   input --> pieces --> HostEnd
//!   held:     no panic; memory for a frame of 32 KiB at most; nothing after the last word, and nothing after a lie;
//!             what was understood, said again, is the same bytes
//! ```
//!
//! The first byte chooses the size of the pieces, and whether a hello comes first.
//!
//! Run: `cargo +nightly fuzz run exec_host`.
#![no_main]

use axvm_exec::{CHUNK, FromGuest, GuestEnd, HostEnd};
use libfuzzer_sys::fuzz_target;

/// Head of a frame.
const HEAD: usize = 5;

fuzz_target!(|data: &[u8]| {
    let Some((&choice, rest)) = data.split_first() else { return };
    let mut bytes = Vec::new();
    if choice & 0x80 != 0 {
        GuestEnd::hello(&mut bytes);
    }
    let hello = bytes.len();
    bytes.extend_from_slice(rest);
    let (mut end, mut said) = (HostEnd::default(), Vec::new());
    let (mut runs, mut over, mut broken) = (false, false, None);
    for piece in bytes.chunks(usize::from(choice & 0x7f) + 1) {
        end.receive(piece);
        loop {
            match end.message() {
                Ok(Some(message)) => {
                    assert!(broken.is_none() && !over, "{message:?} came after the end");
                    assert!(runs || matches!(message, FromGuest::Grant(_) | FromGuest::Refused(..)), "{message:?}");
                    runs = true;
                    over = matches!(message, FromGuest::Exit(_) | FromGuest::Refused(..));
                    message.encode(&mut said);
                }
                Ok(None) => break,
                Err(error) => {
                    assert!(broken.get_or_insert(error.clone()) == &error, "another error");
                    _ = error.to_string();
                    break;
                }
            }
        }
        assert!(broken.is_some() || end.kept() < HEAD + CHUNK, "{} bytes are kept", end.kept());
    }
    if hello > 0 {
        assert!(bytes[hello..].starts_with(&said), "what was understood was not said");
    }
});
