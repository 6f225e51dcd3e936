//! The thread behind both queues of a console.
//!
//! ```text
//!   wait { wake, kick 0, kick 1 } --> stop? | fill receive buffers | send what there is room for | new size?
//!     ^                                                                                               |
//!     '-----------------------------------------------------------------------------------------------'
//! ```
//!
//! `wake` is written by the port and by a stop. A queue asks for kicks only when it is the driver's turn: when there
//! is input without a buffer, or nothing left to send.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axvm_console::{Port, Size};
use axvm_memory::GuestRam;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::{RECEIVE, TRANSMIT};
use crate::device::{Activation, LiveQueue};
use crate::queue::{Chain, QueueState};
use crate::signals::{ConfigIrq, Fault, whole};

/// Most bytes of one chain before the other queue has its turn, and a stop.
const TURN: usize = 64 << 10;
/// Most bytes copied at a time.
const PIECE: usize = 4096;

/// What must outlive a stop.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// Bytes already sent of the chain at the head of the transmit ring.
    sent: u64,
    /// Where the transmit ring stood then: another ring has another chain.
    at: u16,
    /// The size that the driver can know.
    told: Size,
    /// The driver has sent something.
    heard: bool,
}

impl Progress {
    /// A driver that is new to the device, and finds this size in the configuration space.
    pub(super) fn new(told: Size) -> Progress {
        Progress { told, ..Progress::default() }
    }
}

/// What the thread owns.
pub(super) struct Worker {
    ram: Arc<GuestRam>,
    queues: Vec<LiveQueue>,
    port: Port,
    progress: Progress,
    config: ConfigIrq,
    fault: Fault,
    wake: Arc<EventFd>,
    /// All that may end the sleep: the kicks, by position, and after them `wake`.
    epoll: Epoll,
    stop: Arc<AtomicBool>,
}

impl Worker {
    pub(super) fn new(
        live: Activation,
        port: Port,
        mut progress: Progress,
        wake: Arc<EventFd>,
        stop: Arc<AtomicBool>,
    ) -> io::Result<Worker> {
        let transmit = live.queues.iter().find(|queue| queue.index == TRANSMIT);
        if transmit.is_none_or(|live| live.queue.state().next_avail != progress.at) {
            progress.sent = 0;
        }
        let Activation { ram, queues, config, fault, .. } = live;
        let epoll = Epoll::new()?;
        let kicks = queues.iter().map(|live| &live.kick);
        for (position, event) in kicks.chain([&*wake]).enumerate() {
            let interest = EpollEvent::new(EventSet::IN, position as u64);
            epoll.ctl(ControlOperation::Add, event.as_raw_fd(), interest)?;
        }
        Ok(Worker { ram, queues, port, progress, config, fault, wake, epoll, stop })
    }

    /// Serves until it is stopped; where the queues stand then.
    pub(super) fn run(mut self) -> (Vec<QueueState>, Progress) {
        while !self.stopping() {
            match self.serve() {
                Ok(true) => {}
                Ok(false) => self.sleep(),
                Err(reason) => {
                    self.fault.report(reason);
                    break;
                }
            }
        }
        (self.queues.iter().map(|live| live.queue.state()).collect(), self.progress)
    }

    /// One turn for each queue; whether there is more to do at once.
    fn serve(&mut self) -> Result<bool, String> {
        let mut more = false;
        for position in 0..self.queues.len() {
            let served = match self.queues[position].index {
                RECEIVE => self.receive(position),
                _ => self.transmit(position),
            };
            let live = &mut self.queues[position];
            if live.queue.publish() {
                live.irq.raise();
            }
            more |= served?;
        }
        self.tell_size();
        Ok(more)
    }

    /// Fills buffers while there is input. Without publishing one in between, so a ring is the most.
    fn receive(&mut self, position: usize) -> Result<bool, String> {
        let Worker { ram, queues, port, .. } = self;
        let queue = &mut queues[position].queue;
        queue.disable_kicks();
        while port.pending() > 0 && !self.stop.load(Ordering::SeqCst) {
            let Some(chain) = queue.pop().map_err(|error| whole(&error))? else {
                if queue.enable_kicks() {
                    continue;
                }
                break;
            };
            let (head, filled) = (chain.head, fill(ram, port, &chain)?);
            queue.push_used(head, filled);
        }
        Ok(false)
    }

    /// Sends while there is output and room for it, and puts what is not sent whole back.
    fn transmit(&mut self, position: usize) -> Result<bool, String> {
        let Worker { ram, queues, port, progress, .. } = self;
        let queue = &mut queues[position].queue;
        let mut more = false;
        queue.disable_kicks();
        while port.room() > 0 && !self.stop.load(Ordering::SeqCst) {
            let Some(chain) = queue.pop().map_err(|error| whole(&error))? else {
                if queue.enable_kicks() {
                    continue;
                }
                break;
            };
            let head = chain.head;
            if send(ram, port, &chain, &mut progress.sent)? {
                queue.push_used(head, 0);
                progress.sent = 0;
            } else {
                queue.put_back();
                more = port.room() > 0;
                break;
            }
        }
        progress.at = queue.state().next_avail;
        Ok(more)
    }

    /// Tells the driver of a size that it can not know.
    fn tell_size(&mut self) {
        let size = self.port.size();
        let transmit = self.queues.iter().find(|live| live.index == TRANSMIT);
        let speaks = self.progress.sent > 0 || transmit.is_some_and(|live| live.queue.state().next_used != 0);
        let first = speaks && !self.progress.heard && size != Size::default();
        self.progress.heard |= speaks;
        if first || size != self.progress.told {
            self.progress.told = size;
            self.config.raise();
        }
    }

    /// Sleeps until something happened.
    fn sleep(&mut self) {
        let mut happened = [EpollEvent::default(); 3];
        // A signal may interrupt the sleep: one look too many.
        let count = self.epoll.wait(-1, &mut happened).unwrap_or(0);
        for event in &happened[..count] {
            let event = self.queues.get(event.data() as usize).map_or(&*self.wake, |live| &live.kick);
            // It is readable and we are its only reader: this does not wait.
            let _ = event.read();
        }
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.fault.report("The worker of a console failed: a bug of AxVM, please report it");
        }
    }
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
fn send(ram: &GuestRam, port: &Port, chain: &Chain<'_>, sent: &mut u64) -> Result<bool, &'static str> {
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
            *sent += count as u64;
            turn -= count;
            (_, rest) = rest.split_at(count);
        }
    }
    Ok(true)
}
