//! The one thread behind both queues of a console.
//!
//! ```text
//!   wait { kick 0, kick 1, wake } --> fill receive buffers | send what there is room for | new size? --.
//!     ^                                                                                                |
//!     '------------------------------------------------------------------------------------------------'
//! ```
//!
//! `wake` is written by the port. A queue asks for kicks only when it is the driver's turn: when there is input without
//! a buffer, or nothing left to send.
//!
//! Spec: virtio 1.2, 5.3.6 "Device Operation".

use std::sync::Arc;

use axvm_console::{Port, Size};
use axvm_events::tape::Tape;
use axvm_memory::GuestRam;
use rustix::event::PollFlags;

use super::{RECEIVE, TRANSMIT};
use crate::device::{Activation, LiveQueue};
use crate::queue::{Chain, VirtQueue};
use crate::signals::{ConfigIrq, whole};
use crate::state::ConsoleState;
use crate::worker::{Next, Ready, Sources, Work, WorkerStatus};
use axvm_sync::EventFd;

/// Most bytes of one chain before the other queue has its turn, and a stop.
const TURN: usize = 64 << 10;
/// Most bytes copied at a time.
const PIECE: usize = 4096;

/// The work of a console.
pub(super) struct ConsoleWork {
    ram: Arc<GuestRam>,
    port: Port,
    /// What must outlive a stop.
    progress: ConsoleState,
    config: ConfigIrq,
    wake: Arc<EventFd>,
    /// What is sent, where the machine is recorded.
    tape: Option<Tape>,
}

impl ConsoleWork {
    pub(super) fn new(live: &Activation, port: Port, mut progress: ConsoleState, wake: Arc<EventFd>) -> ConsoleWork {
        let transmit = live.queues.iter().find(|queue| queue.index == TRANSMIT);
        if transmit.is_none_or(|live| live.queue.state().next_avail != progress.at) {
            progress.sent = 0;
        }
        let tape = live.fault.tape(&live.name);
        ConsoleWork { ram: Arc::clone(&live.ram), port, progress, config: live.config.clone(), wake, tape }
    }

    pub(super) fn progress(&self) -> ConsoleState {
        self.progress
    }

    /// Fills buffers while there is input. Without publishing one in between, so a ring is the most.
    fn receive(&mut self, queue: &mut VirtQueue, status: &WorkerStatus) -> Result<Next, String> {
        queue.disable_kicks();
        while self.port.pending() > 0 && !status.stop_asked() {
            let Some(chain) = queue.pop().map_err(|error| whole(&error))? else {
                if queue.enable_kicks() {
                    continue;
                }
                break;
            };
            let (head, filled) = (chain.head, fill(&self.ram, &self.port, &chain)?);
            queue.push_used(head, filled);
        }
        Ok(Next::Sleep)
    }

    /// Sends while there is output and room for it, and puts what is not sent whole back.
    fn transmit(&mut self, queue: &mut VirtQueue, status: &WorkerStatus) -> Result<Next, String> {
        let mut next = Next::Sleep;
        queue.disable_kicks();
        while self.port.room() > 0 && !status.stop_asked() {
            let Some(chain) = queue.pop().map_err(|error| whole(&error))? else {
                if queue.enable_kicks() {
                    continue;
                }
                break;
            };
            let head = chain.head;
            if send(&self.ram, &self.port, &chain, &mut self.progress.sent, self.tape.as_mut())? {
                queue.push_used(head, 0);
                self.progress.sent = 0;
            } else {
                queue.put_back();
                if self.port.room() > 0 {
                    next = Next::Again;
                }
                break;
            }
        }
        self.progress.at = queue.state().next_avail;
        Ok(next)
    }

    /// Tells the driver of a size that it cannot know.
    fn tell_size(&mut self, queues: &[LiveQueue]) {
        let size = self.port.size();
        let transmit = queues.iter().find(|live| live.index == TRANSMIT);
        let has_output = self.progress.sent > 0 || transmit.is_some_and(|live| live.queue.state().next_used != 0);
        let first = has_output && !self.progress.had_output && size != Size::default();
        self.progress.had_output |= has_output;
        let told = Size { columns: self.progress.told_columns, rows: self.progress.told_rows };
        if first || size != told {
            note_size(&mut self.progress, size);
            self.config.raise();
        }
    }
}

impl Work for ConsoleWork {
    /// One turn for each queue: both look at the port, too, whatever woke the worker.
    fn turn(&mut self, queues: &mut [LiveQueue], ready: &Ready, status: &WorkerStatus) -> Result<Next, String> {
        if ready.source(0) {
            // It does not block: an error says that the port has nothing new.
            self.wake.take();
        }
        let mut next = Next::Sleep;
        for live in queues.iter_mut() {
            let served = match live.index {
                RECEIVE => self.receive(&mut live.queue, status),
                _ => self.transmit(&mut live.queue, status),
            };
            if live.queue.publish() {
                live.irq.raise();
            }
            next = next.min(served?);
        }
        self.tell_size(queues);
        Ok(next)
    }

    fn sources<'a>(&'a self, sources: &mut Sources<'a>) {
        sources.add(&*self.wake, PollFlags::IN);
    }
}

/// Notes the size that the driver can know from now on.
pub(super) fn note_size(progress: &mut ConsoleState, size: Size) {
    (progress.told_columns, progress.told_rows) = (size.columns, size.rows);
}

/// Moves input to a buffer; how many bytes.
fn fill(ram: &GuestRam, port: &Port, chain: &Chain<'_>) -> Result<u32, &'static str> {
    if !chain.readable.is_empty() {
        return Err("An input buffer has a part for the device to read");
    }
    if chain.writable.is_empty() {
        return Err("An input buffer has no room for a character");
    }
    let (mut bytes, mut filled) = ([0; PIECE], 0);
    for range in chain.writable {
        let (mut rest, _) = range.split_at(TURN - filled);
        while !rest.is_empty() {
            let count = port.receive(&mut bytes[..rest.len().min(PIECE)]);
            if count == 0 {
                return Ok(filled as u32);
            }
            ram.copy_to(&rest, &bytes[..count]);
            filled += count;
            (_, rest) = rest.split_at(count);
        }
    }
    Ok(filled as u32)
}

/// Sends of a chain, of which `sent` bytes are gone, what there is room for; true if nothing of it is left.
fn send(
    ram: &GuestRam,
    port: &Port,
    chain: &Chain<'_>,
    sent: &mut u64,
    mut tape: Option<&mut Tape>,
) -> Result<bool, &'static str> {
    if !chain.writable.is_empty() {
        return Err("An output buffer has a part for the device to write");
    }
    let (mut bytes, mut turn, mut skip) = ([0; PIECE], TURN, *sent);
    for range in chain.readable {
        let (skipped, mut rest) = range.split_at(usize::try_from(skip).unwrap_or(usize::MAX));
        skip -= skipped.len() as u64;
        while !rest.is_empty() {
            let count = rest.len().min(PIECE).min(turn).min(port.room());
            if count == 0 {
                return Ok(false);
            }
            ram.copy_from(&rest, &mut bytes[..count]);
            // An emergency write may have taken that room meanwhile: then the overdraft serves.
            let count = port.send(&bytes[..count]);
            tape.iter_mut().for_each(|tape| tape.print(&bytes[..count]));
            *sent += count as u64;
            turn -= count;
            (_, rest) = rest.split_at(count);
        }
    }
    Ok(true)
}
