//! The one thread behind the agent's port: control messages, the client's line, and bytes both ways.
//!
//! ```text
//!   wait { kicks, listener | client } --> control --> client --> to the client --> to the guest --> messages owed --.
//!     ^                                                                                                           |
//!     '-----------------------------------------------------------------------------------------------------------'
//! ```
//!
//! Spec: virtio 1.2, 5.3.6 "Device Operation".

use std::sync::Arc;
use std::time::{Duration, Instant};

use axvm_memory::GuestRam;
use rustix::event::PollFlags;
use rustix::io::{Errno, read};
use rustix::net::{SendFlags, send};

use super::control;
use super::host::HeldEnds;
use super::{CONTROL_RECEIVE, CONTROL_TRANSMIT, RECEIVE, TRANSMIT};
use crate::device::{Activation, LiveQueue};
use crate::queue::{Chain, VirtQueue};
use crate::signals::{FaultReporter, whole};
use crate::state::AgentPortState;
use crate::worker::{Next, Ready, Sources, Work, WorkerStatus};

/// Most chains of one queue before the others have their turn.
const BATCH: usize = 64;
/// Most bytes of one chain in a call.
const PIECE: usize = 32 << 10;
/// After so long a listener that has failed is looked at again.
const REST: Duration = Duration::from_secs(1);

/// The work of an agent's port.
pub(super) struct AgentPortWork {
    ram: Arc<GuestRam>,
    ends: HeldEnds,
    fault: FaultReporter,
    state: AgentPortState,
    piece: Vec<u8>,
    /// The guest has room for input, and the client has none.
    wait_input: bool,
    /// The client takes no more.
    wait_room: bool,
    /// The listener has failed; not before this.
    rest: Option<Instant>,
}

impl AgentPortWork {
    pub(super) fn new(live: &Activation, ends: HeldEnds, mut state: AgentPortState) -> AgentPortWork {
        let transmit = live.queues.iter().find(|queue| queue.index == TRANSMIT);
        if transmit.is_none_or(|live| live.queue.state().next_avail != state.at) {
            state.sent = 0;
        }
        if ends.get().client.is_none() && std::mem::take(&mut state.talking) {
            state.ending = !state.closed;
        }
        AgentPortWork {
            ram: Arc::clone(&live.ram),
            ends,
            fault: live.fault.clone(),
            state,
            piece: vec![0; PIECE],
            wait_input: false,
            wait_room: false,
            rest: None,
        }
    }

    pub(super) fn state(&self) -> AgentPortState {
        self.state
    }

    /// Takes what the driver says about the port.
    fn control(&mut self, queue: &mut VirtQueue) -> Result<Next, String> {
        queue.disable_kicks();
        for _ in 0..BATCH {
            let Some(chain) = queue.pop().map_err(|error| whole(&error))? else {
                if queue.enable_kicks() {
                    continue;
                }
                return Ok(Next::Sleep);
            };
            let (head, mut message) = (chain.head, [0; control::LEN]);
            if !chain.writable.is_empty() {
                return Err("A control message has a part for the device to write".into());
            }
            if gather(&self.ram, &chain, 0, &mut message) == control::LEN {
                control::note(&mut self.state, message);
            }
            queue.push_used(head, 0);
        }
        Ok(Next::Again)
    }

    /// Says what the driver is owed.
    fn tell(&mut self, queue: &mut VirtQueue) -> Result<Next, String> {
        queue.disable_kicks();
        while let Some(message) = control::next(&self.state) {
            let Some(chain) = queue.pop().map_err(|error| whole(&error))? else {
                if queue.enable_kicks() {
                    continue;
                }
                break;
            };
            let head = chain.head;
            if !chain.readable.is_empty() || chain.writable_len < message.len() as u64 {
                return Err(
                    "A buffer for control messages has no room for one, or a part for the device to read".into()
                );
            }
            scatter(&self.ram, &chain, &message);
            queue.push_used(head, message.len() as u32);
            control::said(&mut self.state);
        }
        Ok(Next::Sleep)
    }

    /// Sees who the client is, and whether its time has come, or is over.
    fn attend(&mut self, now: Instant) {
        let rests = self.rest.is_some_and(|until| now < until);
        if self.ends.get().client.is_none() && !rests {
            self.rest = None;
            if let Err(error) = self.ends.get_mut().accept() {
                self.rest = Some(now + REST);
                self.fault.warn(format_args!("cannot accept a client: {error}; it waits until the host can"));
            }
        }
        self.ends.get_mut().listen(now);
        if self.state.closed && !self.state.talking {
            // What the guest has closed it may open anew.
            (self.state.ending, self.state.closed) = (false, false);
        }
        let is_idle = self.state.open && self.state.told_open && !self.state.ending && !self.state.talking;
        if let Some(client) = self.ends.get_mut().client.as_mut().filter(|client| client.asks && is_idle) {
            if client.welcome() {
                self.state.talking = true;
            } else {
                self.ends.get_mut().client = None;
            }
        }
    }

    /// The connection is over. The guest is told, unless it knows.
    fn end(&mut self) {
        self.ends.get_mut().client = None;
        (self.state.talking, self.state.ending) = (false, !self.state.closed);
    }

    /// Moves what the guest wrote to the client; without one, nowhere.
    fn transmit(&mut self, queue: &mut VirtQueue, status: &WorkerStatus) -> Result<Next, String> {
        self.wait_room = false;
        let mut next = Next::Again;
        queue.disable_kicks();
        for _ in 0..BATCH {
            if status.stop_asked() {
                break;
            }
            let Some(chain) = queue.pop().map_err(|error| whole(&error))? else {
                if queue.enable_kicks() {
                    continue;
                }
                // All that was written before the guest closed is through.
                if self.state.talking && self.state.closed {
                    self.end();
                }
                next = Next::Sleep;
                break;
            };
            let head = chain.head;
            if !chain.writable.is_empty() {
                return Err("An output buffer has a part for the device to write".into());
            }
            let client = self.ends.get().client.as_ref().filter(|_| self.state.talking);
            let Some(client) = client else {
                queue.push_used(head, 0);
                self.state.sent = 0;
                continue;
            };
            let count = gather(&self.ram, &chain, self.state.sent, &mut self.piece);
            let written = send(&client.stream, &self.piece[..count], SendFlags::NOSIGNAL);
            let whole_len = chain.readable_len;
            match written {
                _ if count == 0 => {}
                Ok(written) => self.state.sent += written as u64,
                Err(Errno::AGAIN | Errno::INTR) => self.wait_room = true,
                Err(_) => {
                    self.end();
                    queue.put_back();
                    continue;
                }
            }
            if self.state.sent >= whole_len || count == 0 {
                queue.push_used(head, 0);
                self.state.sent = 0;
            } else {
                queue.put_back();
                if self.wait_room {
                    next = Next::Sleep;
                    break;
                }
            }
        }
        self.state.at = queue.state().next_avail;
        Ok(next)
    }

    /// Moves what the client says to the guest.
    fn receive(&mut self, queue: &mut VirtQueue, status: &WorkerStatus) -> Result<Next, String> {
        self.wait_input = false;
        queue.disable_kicks();
        for _ in 0..BATCH {
            if !self.state.talking || self.state.closed || status.stop_asked() {
                return Ok(Next::Sleep);
            }
            let Some(chain) = queue.pop().map_err(|error| whole(&error))? else {
                if queue.enable_kicks() {
                    continue;
                }
                return Ok(Next::Sleep);
            };
            if !chain.readable.is_empty() || chain.writable_len == 0 {
                return Err("An input buffer has no room for a byte, or a part for the device to read".into());
            }
            let room = usize::try_from(chain.writable_len).unwrap_or(PIECE).min(PIECE);
            let Some(client) = &self.ends.get().client else {
                queue.put_back();
                return Ok(Next::Sleep);
            };
            match read(&client.stream, &mut self.piece[..room]) {
                Ok(count @ 1..) => {
                    let head = chain.head;
                    scatter(&self.ram, &chain, &self.piece[..count]);
                    queue.push_used(head, count as u32);
                }
                Err(Errno::INTR) => queue.put_back(),
                Err(Errno::AGAIN) => {
                    queue.put_back();
                    self.wait_input = true;
                    return Ok(Next::Sleep);
                }
                Ok(_) | Err(_) => {
                    queue.put_back();
                    self.end();
                }
            }
        }
        Ok(Next::Again)
    }
}

impl Work for AgentPortWork {
    fn turn(&mut self, queues: &mut [LiveQueue], _: &Ready, status: &WorkerStatus) -> Result<Next, String> {
        let now = Instant::now();
        let (mut next, mut attended) = (Next::Sleep, false);
        for index in [CONTROL_TRANSMIT, TRANSMIT, RECEIVE, CONTROL_RECEIVE] {
            let Some(live) = queues.iter_mut().find(|live| live.index == index) else { continue };
            if index != CONTROL_TRANSMIT && !std::mem::replace(&mut attended, true) {
                self.attend(now);
            }
            let served = match index {
                CONTROL_TRANSMIT => self.control(&mut live.queue),
                TRANSMIT => self.transmit(&mut live.queue, status),
                RECEIVE => self.receive(&mut live.queue, status),
                _ => self.tell(&mut live.queue),
            };
            if live.queue.publish() {
                live.irq.raise();
            }
            next = next.min(served?);
        }
        // What a turn has ended or told may make a client's time come.
        let is_news = self.state.closed && !self.state.talking
            || self.state.open
                && self.state.told_open
                && !self.state.ending
                && !self.state.talking
                && self.ends.get().client.as_ref().is_some_and(|client| client.asks);
        let rest = self.rest.map(|until| until.saturating_duration_since(now));
        let limit = [self.ends.get().patience(now), rest].into_iter().flatten().min();
        let rest = if is_news { Next::Again } else { limit.map_or(Next::Sleep, Next::SleepFor) };
        Ok(next.min(rest))
    }

    fn sources<'a>(&'a self, sources: &mut Sources<'a>) {
        let ends = self.ends.get();
        match &ends.client {
            None if self.rest.is_none() => sources.add(ends.listener(), PollFlags::IN),
            None => {}
            Some(client) if !client.asks => sources.add(&client.stream, PollFlags::IN),
            Some(client) => {
                let mut flags = PollFlags::empty();
                flags.set(PollFlags::IN, self.wait_input);
                flags.set(PollFlags::OUT, self.wait_room);
                // With no flags it would still end a sleep by its end.
                if !flags.is_empty() {
                    sources.add(&client.stream, flags);
                }
            }
        }
    }
}

/// Copies a chain's bytes from `from` on; how many.
fn gather(ram: &GuestRam, chain: &Chain<'_>, from: u64, bytes: &mut [u8]) -> usize {
    let (mut skip, mut at) = (from, 0);
    for range in chain.readable {
        let (skipped, rest) = range.split_at(usize::try_from(skip).unwrap_or(usize::MAX));
        skip -= skipped.len() as u64;
        at += ram.copy_from(&rest, &mut bytes[at..]);
    }
    at
}

/// Copies bytes into a chain that has room for them.
fn scatter(ram: &GuestRam, chain: &Chain<'_>, bytes: &[u8]) {
    let mut at = 0;
    for range in chain.writable {
        at += ram.copy_to(range, &bytes[at..]);
    }
}
