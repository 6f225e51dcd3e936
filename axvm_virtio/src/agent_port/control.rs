//! Control messages: what driver and device say about the port.
//!
//! ```text
//!   | port u32 | event u16 | value u16 | name, of PORT_NAME only |
//!
//!   driver: DEVICE_READY  --> device: PORT_ADD
//!   driver: PORT_READY    --> device: PORT_NAME, PORT_OPEN
//!   driver: PORT_OPEN 1, 0    a program of the guest has opened, closed it
//! ```
//!
//! Answers are owed rather than queued: so a driver that asks again and again is answered once.
//!
//! Spec: virtio 1.2, 5.3.6.2 "Multiport Device Operation".

use super::NAME;
use crate::state::AgentPortState;

/// Length of a message without a name.
pub(super) const LEN: usize = 8;
/// The only port.
const PORT: u32 = 0;

const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// Notes what the driver said. What is no message means nothing, as to a device that does not know it.
pub(super) fn note(state: &mut AgentPortState, message: [u8; LEN]) {
    let [a, b, c, d, event @ .., low, high] = message;
    let (port, value) = (u32::from_le_bytes([a, b, c, d]), u16::from_le_bytes([low, high]));
    match (u16::from_le_bytes(event), value) {
        (DEVICE_READY, 1) => state.add_owed = true,
        (PORT_READY, 1) if port == PORT => (state.name_owed, state.ready, state.told_open) = (true, true, false),
        (PORT_OPEN, value) if port == PORT && state.ready => {
            // Closed and opened again before the device has looked: the connection ends all the same.
            state.closed |= value == 0;
            state.open = value != 0;
        }
        _ => {}
    }
}

/// The next message that the driver is owed; `None` if it knows all.
pub(super) fn next(state: &AgentPortState) -> Option<Vec<u8>> {
    let is_open = !state.ending;
    let (event, value, name) = match state {
        AgentPortState { add_owed: true, .. } => (PORT_ADD, 1, ""),
        AgentPortState { name_owed: true, .. } => (PORT_NAME, 1, NAME),
        _ if state.ready && state.told_open != is_open => (PORT_OPEN, u16::from(is_open), ""),
        _ => return None,
    };
    let mut message = PORT.to_le_bytes().to_vec();
    [event, value].iter().for_each(|number| message.extend_from_slice(&number.to_le_bytes()));
    message.extend_from_slice(name.as_bytes());
    Some(message)
}

/// The message that [`next`] gave is said.
pub(super) fn said(state: &mut AgentPortState) {
    match state {
        AgentPortState { add_owed: owed @ true, .. } | AgentPortState { name_owed: owed @ true, .. } => *owed = false,
        _ => state.told_open = !state.ending,
    }
}
