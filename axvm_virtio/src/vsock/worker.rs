//! The one thread behind the three queues of a socket device.
//!
//! ```text
//!   wait { kicks, sockets that can make progress, time } --> host's events
//!     --> TX ring: packets of the guest   --> hub
//!     --> event ring: TRANSPORT_RESET, if there is one to tell
//!     --> RX ring: packets for the guest  <-- hub
//! ```
//!
//! Spec: virtio 1.2, 5.10.6 "Device Operation".

use std::sync::Arc;
use std::time::Instant;

use axvm_memory::{GuestRam, GuestRange};

use super::host::HeldHub;
use super::packet::{HEADER_LEN, Header};
use super::{EVENT, RECEIVE, TRANSMIT};
use crate::check::rules;
use crate::device::{Activation, LiveQueue};
use crate::queue::{Chain, VirtQueue};
use crate::signals::{FaultReporter, whole};
use crate::worker::{Next, Ready, Sources, Work, WorkerStatus};

/// Most data of a packet, either way.
const MAX_DATA: usize = 64 << 10;
/// Most packets of one queue before the other has its turn.
const BATCH: usize = 256;
/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.
const TRANSPORT_RESET: [u8; 4] = 0_u32.to_le_bytes();

/// The work of a socket device.
pub(super) struct VsockWork {
    ram: Arc<GuestRam>,
    fault: FaultReporter,
    hub: HeldHub,
    /// The guest does not know yet that its connections are gone.
    reset_owed: bool,
    /// The driver has no buffer for a packet.
    dry: bool,
    data: Vec<u8>,
}

impl VsockWork {
    pub(super) fn new(live: &Activation, hub: HeldHub, reset_owed: bool) -> VsockWork {
        // A driver without the queue for events cannot be told.
        let reset_owed = reset_owed && live.queues.iter().any(|queue| queue.index == EVENT);
        let (ram, fault) = (Arc::clone(&live.ram), live.fault.clone());
        VsockWork { ram, fault, hub, reset_owed, dry: false, data: vec![0; MAX_DATA] }
    }

    /// What outlives a stop, beside the connections.
    pub(super) fn owes_reset(&self) -> bool {
        self.reset_owed
    }

    /// Takes packets while the hub has space for what they bring about.
    fn transmit(&mut self, queue: &mut VirtQueue, status: &WorkerStatus, now: Instant) -> Result<Next, String> {
        queue.disable_kicks();
        for _ in 0..BATCH {
            if status.stop_asked() || !self.hub.takes_packets() {
                return Ok(Next::Sleep);
            }
            let Some(chain) = queue.pop().map_err(|error| whole(&error))? else {
                if queue.enable_kicks() {
                    continue;
                }
                return Ok(Next::Sleep);
            };
            if !chain.writable.is_empty() {
                return Err("A packet of the driver has a part for the device to write".to_owned());
            }
            match take(&self.ram, &chain, &mut self.data) {
                Some((header, len)) => {
                    if let Some(rule) = self.hub.packet(&header, &self.data[..len], now) {
                        self.fault
                            .broke(rule, || format!("a packet from CID {} of {} bytes", header.src_cid, header.len));
                    }
                }
                None => {
                    self.fault.broke(&rules::VSOCK_HEADER, || format!("a packet of {} bytes", chain.readable_len));
                    self.fault.note("a packet of the driver is shorter than its header");
                }
            }
            let head = chain.head;
            queue.push_used(head, 0);
        }
        Ok(Next::Again)
    }

    /// Fills buffers while there are packets.
    fn receive(&mut self, queue: &mut VirtQueue, status: &WorkerStatus, now: Instant) -> Result<Next, String> {
        if self.dry {
            // Its kick is asked for.
            return Ok(Next::Sleep);
        }
        queue.disable_kicks();
        self.hub.gather();
        for _ in 0..BATCH {
            if status.stop_asked() || !self.hub.may_send() {
                return Ok(Next::Sleep);
            }
            let Some(chain) = queue.pop().map_err(|error| whole(&error))? else {
                if queue.enable_kicks() {
                    continue;
                }
                self.dry = true;
                return Ok(Next::Sleep);
            };
            let room = data_room(&chain)?;
            let room = self.data.len().min(room);
            match self.hub.next_packet(&mut self.data[..room], now) {
                Some(header) => {
                    let written = put(&self.ram, &chain, &header, &self.data);
                    let head = chain.head;
                    queue.push_used(head, written);
                }
                None => queue.put_back(),
            }
        }
        Ok(Next::Again)
    }

    /// Tells the driver that its connections are gone.
    fn tell_reset(&mut self, queue: &mut VirtQueue) -> Result<(), String> {
        queue.disable_kicks();
        while self.reset_owed {
            let Some(chain) = queue.pop().map_err(|error| whole(&error))? else {
                if queue.enable_kicks() {
                    continue;
                }
                break;
            };
            if chain.writable_len < TRANSPORT_RESET.len() as u64 {
                return Err("A buffer for an event is too small".to_owned());
            }
            let (head, written) = (chain.head, scatter(&self.ram, chain.writable, 0, &TRANSPORT_RESET));
            queue.push_used(head, written as u32);
            self.reset_owed = false;
        }
        Ok(())
    }

    /// Until when nothing happens by itself.
    fn rest(&self) -> Next {
        let limit = self.hub.deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()));
        limit.map_or(Next::Sleep, Next::SleepFor)
    }
}

impl Work for VsockWork {
    /// Packets of the guest come before those for it, so that their answers go out in the same turn.
    fn turn(&mut self, queues: &mut [LiveQueue], ready: &Ready, status: &WorkerStatus) -> Result<Next, String> {
        let now = Instant::now();
        let served = self.hub.host_events(|position| ready.source(position), self.dry, now);
        if let Err(error) = served {
            self.fault.warn(format_args!("cannot accept a client: {error}; it waits until the host can"));
        }
        self.hub.expire(now);
        if self.hub.has_lost_connector() {
            self.fault.alarm("the process that connects for it has ended; what the guest asks for is refused");
        }
        let mut next = Next::Sleep;
        for index in [TRANSMIT, EVENT, RECEIVE] {
            let Some(position) = queues.iter().position(|live| live.index == index) else { continue };
            let live = &mut queues[position];
            let held_up = !self.hub.takes_packets();
            let served = match index {
                TRANSMIT => self.transmit(&mut live.queue, status, now),
                EVENT => self.tell_reset(&mut live.queue).map(|()| Next::Sleep),
                // Until the driver knows of a reset, a packet could meet a connection of before.
                _ if self.reset_owed => Ok(Next::Sleep),
                _ => {
                    self.dry = self.dry && !ready.queue(position);
                    let served = self.receive(&mut live.queue, status, now);
                    // What the guest was kept from saying.
                    if held_up && self.hub.takes_packets() { served.map(|_| Next::Again) } else { served }
                }
            };
            if live.queue.publish() {
                live.irq.raise();
            }
            next = next.min(served?);
        }
        self.hub.tell_count();
        Ok(next.min(self.rest()))
    }

    fn sources<'a>(&'a self, sources: &mut Sources<'a>) {
        self.hub.sources(self.dry || self.reset_owed, sources);
    }
}

/// A packet of the guest: its header, and how many bytes of data lie in `data`. `None`: it has no header.
fn take(ram: &GuestRam, chain: &Chain<'_>, data: &mut [u8]) -> Option<(Header, usize)> {
    let mut bytes = [0; HEADER_LEN];
    if gather(ram, chain.readable, 0, &mut bytes) < HEADER_LEN {
        return None;
    }
    let header = Header::decode(&bytes);
    // One that says more than fits has more than it has credit for.
    let len = data.len().min(header.len as usize);
    Some((header, gather(ram, chain.readable, HEADER_LEN, &mut data[..len])))
}

/// Bytes of data that a buffer of the driver holds.
fn data_room(chain: &Chain<'_>) -> Result<usize, &'static str> {
    if !chain.readable.is_empty() {
        return Err("A buffer for a packet has a part for the device to read");
    }
    match usize::try_from(chain.writable_len).unwrap_or(usize::MAX).checked_sub(HEADER_LEN) {
        None | Some(0) => Err("A buffer for a packet has no room for a header and data"),
        Some(room) => Ok(room),
    }
}

/// Puts a packet into a buffer of the driver; how many bytes.
fn put(ram: &GuestRam, chain: &Chain<'_>, header: &Header, data: &[u8]) -> u32 {
    let written = scatter(ram, chain.writable, 0, &header.encode());
    (written + scatter(ram, chain.writable, HEADER_LEN, &data[..header.len as usize])) as u32
}

/// Copies from `ranges`, without their first `skip` bytes, as much as fits; how much.
fn gather(ram: &GuestRam, ranges: &[GuestRange], mut skip: usize, data: &mut [u8]) -> usize {
    let mut done = 0;
    for range in ranges {
        let (skipped, rest) = range.split_at(skip);
        skip -= skipped.len();
        let (rest, _) = rest.split_at(data.len() - done);
        done += ram.copy_from(&rest, &mut data[done..done + rest.len()]);
    }
    done
}

/// Copies to `ranges`, without their first `skip` bytes, as much as fits; how much.
fn scatter(ram: &GuestRam, ranges: &[GuestRange], mut skip: usize, data: &[u8]) -> usize {
    let mut done = 0;
    for range in ranges {
        let (skipped, rest) = range.split_at(skip);
        skip -= skipped.len();
        let (rest, _) = rest.split_at(data.len() - done);
        done += ram.copy_to(&rest, &data[done..done + rest.len()]);
    }
    done
}
