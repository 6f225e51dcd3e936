//! The control socket: any bytes, in any pieces, are answered or refused, and buffers stay small.
//!
//! ```text
//!   input --> pieces, and bytes taken in between --> Session --> fake machine
//!   held:     no panic, no endless loop, no buffer beyond its limit; a refusal is the last word
//! ```
//!
//! The first byte chooses the size of the pieces, and whether a right request comes first.
//!
//! Run: `cargo +nightly fuzz run control_socket`.
#![no_main]

use std::sync::{Arc, LazyLock};

use axvm_api::EventFeed;
use axvm_api::session::{Api, Session};
use axvm_api::testing::FakeMachine;
use axvm_events::Event;
use libfuzzer_sys::fuzz_target;

static FEED: LazyLock<Arc<EventFeed>> = LazyLock::new(|| EventFeed::new().expect("an eventfd"));
static MACHINE: LazyLock<Arc<FakeMachine>> = LazyLock::new(Arc::default);
static API: LazyLock<Api> = LazyLock::new(|| Api::new(MACHINE.clone(), FEED.clone()));

/// Output beyond which no request is served, and the longest answer.
const OUTPUT_LIMIT: usize = (64 << 10) + (128 << 10);

fuzz_target!(|data: &[u8]| {
    let Some((&choice, rest)) = data.split_first() else { return };
    let mut session = Session::default();
    let first: &[u8] = match choice >> 6 {
        0 => b"",
        1 => b"GET /version HTTP/1.0\r\n\r\n",
        2 => b"PATCH /vm HTTP/1.1\r\nContent-Length: 19\r\n\r\n{\"state\": \"Paused\"}",
        _ => b"PUT /actions HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n",
    };
    let bytes = [first, rest].concat();
    let events = FEED.events();
    for piece in bytes.chunks(usize::from(choice & 0x3f) + 1) {
        if session.room() < piece.len() {
            break;
        }
        session.receive(piece);
        let mut turns = 0;
        while session.advance(&API) {
            turns += 1;
            assert!(turns <= bytes.len(), "more requests than bytes");
            session.sent(session.output().len() / 2);
        }
        events.emit(|| Event::Power { reason: "fuzz".into() });
        assert!(session.output().len() <= OUTPUT_LIMIT);
        if session.has_ended() {
            let said = session.output().len();
            session.receive(b"GET / HTTP/1.1\r\n\r\n");
            assert!(!session.advance(&API) && session.output().len() == said, "spoke after the last word");
        }
    }
    _ = MACHINE.asked();
    session.sent(usize::MAX);
    if let Some((_, typed)) = session.take_console() {
        assert!(typed.len() <= bytes.len());
    }
});
