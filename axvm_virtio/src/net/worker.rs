//! The one thread behind the queues of a pair: frames to the guest, frames of the guest, and of the first also commands.
//!
//! ```text
//!   wait { kicks, wake | link: readable? writable? } --> commands --> frames to the guest --> frames of the guest --.
//!     ^                                                                                                             |
//!     '-------------------------------------------------------------------------------------------------------------'
//!
//!   one frame, three small buffers (MRG_RXBUF):
//!     pop: | header, frame .. |   pop: | .. frame .. |   pop: | .. frame |   then num_buffers = 3, and all three are used
//!                                                  '--> none left: all go back to the ring, the frame waits
//! ```
//!
//! The link is waited for only where it matters: for input if no frame waits for a buffer, for room if the link was
//! full. Otherwise a link that is ready all the time would keep the worker awake for nothing.
//!
//! Spec: virtio 1.2, 5.1.6.2 "Packet Transmission", 5.1.6.4 "Processing of Incoming Packets".

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axvm_memory::{GuestRam, GuestRange, MESSAGE_RANGES};
use axvm_sync::lock;
use axvm_tap::Offloads;
use rustix::event::PollFlags;

use super::boxes::{Boxes, Input, Output};
use super::control::{self, Chosen};
use super::handle::{Pair, Shared};
use super::header::{FrameHeader, HEADER_LEN, NUM_BUFFERS};
use super::link::{LinkError, LinkKind, MAX_FRAME, MIN_FRAME};
use super::{Agreed, QueueRole};
use crate::device::{Activation, LiveQueue};
use crate::queue::{Chain, VirtQueue};
use crate::signals::{FaultReporter, whole};
use crate::worker::{Next, Ready, Sources, Work, WorkerStatus};

/// Most frames of one direction before the other has its turn.
const BATCH: usize = 64;

/// Bytes of frames after which the driver is told of them: it refills the ring while the rest of the batch is on its way.
const TELL: usize = 16 << 10;

/// Bytes of header and frame from which a tap gets them from RAM: copying fewer costs less than many pieces in a call.
const DIRECT: usize = 4096;

/// The position of the link among the sources.
const LINK: usize = 1;

/// The work of a queue pair.
pub(super) struct NetWork {
    ram: Arc<GuestRam>,
    shared: Arc<Shared>,
    chosen: Arc<Chosen>,
    fault: FaultReporter,
    agreed: Agreed,
    /// What the host may leave to the driver in this turn.
    guest: Offloads,
    /// The number of the pair.
    number: usize,
    /// How many pairs the driver may use.
    pairs: u16,
    /// The link had nothing to read.
    wait_input: bool,
    /// The link took no more.
    wait_room: bool,
    /// The chains of a frame, and the bytes in each; empty between two frames.
    placed: Vec<(u16, u32)>,
    /// A command.
    command: Vec<u8>,
}

/// What became of a frame for the guest.
#[derive(Debug, PartialEq, Eq)]
enum Placed {
    /// It is in these chains.
    Whole,
    /// There are not enough chains yet.
    NoBuffer,
    /// It fits no chain that there can be, or is what the driver does not take.
    Refused,
}

impl NetWork {
    /// For pair `number` of `pairs`.
    pub(super) fn new(
        live: &Activation,
        shared: &Arc<Shared>,
        chosen: &Arc<Chosen>,
        (number, pairs, agreed): (usize, u16, Agreed),
    ) -> NetWork {
        NetWork {
            ram: Arc::clone(&live.ram),
            shared: Arc::clone(shared),
            chosen: Arc::clone(chosen),
            fault: live.fault.clone(),
            agreed,
            guest: Offloads::NONE,
            number,
            pairs,
            wait_input: false,
            wait_room: false,
            placed: Vec::new(),
            command: Vec::new(),
        }
    }

    fn pair(&self) -> &Pair {
        &self.shared.pairs[self.number]
    }

    /// Fills buffers while frames come.
    fn receive(&mut self, live: &mut LiveQueue, boxes: &mut Boxes, status: &WorkerStatus) -> Result<Next, String> {
        self.wait_input = false;
        live.queue.disable_kicks();
        let mut untold = 0;
        for _ in 0..BATCH {
            if status.stop_asked() || !self.shared.is_up() || !boxes.attached {
                return Ok(Next::Sleep);
            }
            let len = match boxes.look(&self.pair().link) {
                Ok(Input::Frame(len)) => len,
                Ok(Input::More) => continue,
                Ok(Input::Dropped) => {
                    self.pair().to_guest.drop_one();
                    continue;
                }
                Ok(Input::Nothing) => {
                    self.wait_input = true;
                    return Ok(Next::Sleep);
                }
                Err(error) => {
                    self.end_link(boxes, error);
                    return Ok(Next::Sleep);
                }
            };
            if let Err(wait) = self.shared.rx.take(len as u64) {
                return Ok(Next::SleepFor(wait));
            }
            let placed = match self.header(boxes, len) {
                Some(header) => self.place(&mut live.queue, header, boxes.frame(len).1)?,
                None => Placed::Refused,
            };
            match placed {
                Placed::Whole => self.pair().to_guest.add(len),
                Placed::Refused => self.pair().to_guest.drop_one(),
                Placed::NoBuffer => {
                    self.shared.rx.give_back(len as u64);
                    // Chains that are too few for it are no reason to try again.
                    if live.queue.enable_kicks_for_more() {
                        continue;
                    }
                    return Ok(Next::Sleep);
                }
            }
            boxes.take(len);
            tell(live, &mut untold, len);
        }
        Ok(Next::Again)
    }

    /// The header for the driver of the frame at the front; `None` if the driver does not take such a frame.
    fn header(&self, boxes: &Boxes, len: usize) -> Option<FrameHeader> {
        match boxes.frame(len).0 {
            Some(header) => header.for_guest(self.guest),
            // Whose link offers checksums without headers said that they are right.
            None if self.guest.checksum => Some(FrameHeader::VALID),
            None => Some(FrameHeader::PLAIN),
        }
    }

    /// Puts a frame into as many chains as it needs, and marks them used: all of them, or none.
    fn place(&mut self, queue: &mut VirtQueue, header: FrameHeader, frame: &[u8]) -> Result<Placed, String> {
        let (header, total) = (header.to_bytes(1), HEADER_LEN + frame.len());
        let (mut done, mut count_at) = (0, [None; 2]);
        let mut placed = Placed::Whole;
        while done < total {
            let Some(chain) = queue.pop().map_err(|error| whole(&error))? else {
                // A ring that is all in use holds no more than this.
                let full = self.placed.len() == usize::from(queue.size());
                placed = if full { Placed::Refused } else { Placed::NoBuffer };
                break;
            };
            check_receive(&chain)?;
            let written = scatter(&self.ram, &chain, &[&header, frame], done, &mut count_at);
            self.placed.push((chain.head, written as u32));
            done += written;
            if done < total && !self.agreed.mergeable {
                placed = Placed::Refused;
                break;
            }
        }
        if placed == Placed::Whole {
            for (place, byte) in count_at.iter().flatten().zip((self.placed.len() as u16).to_le_bytes()) {
                self.ram.copy_to(place, &[byte]);
            }
            self.placed.drain(..).for_each(|(head, written)| queue.push_used(head, written));
        } else {
            self.placed.drain(..).for_each(|_| queue.put_back());
        }
        Ok(placed)
    }

    /// Sends frames while the link takes them.
    fn transmit(&mut self, live: &mut LiveQueue, boxes: &mut Boxes, status: &WorkerStatus) -> Result<Next, String> {
        live.queue.disable_kicks();
        let mut untold = 0;
        for _ in 0..BATCH {
            if boxes.is_pending() || status.stop_asked() {
                return Ok(Next::Sleep);
            }
            let queue = &mut live.queue;
            let Some(chain) = queue.pop().map_err(|error| whole(&error))? else {
                if queue.enable_kicks() {
                    continue;
                }
                return Ok(Next::Sleep);
            };
            let (head, len) = (chain.head, chain.readable_len.saturating_sub(HEADER_LEN as u64).min(MAX_FRAME as u64));
            if let Err(wait) = self.shared.tx.take(len) {
                queue.put_back();
                return Ok(Next::SleepFor(wait));
            }
            if self.send(&chain, boxes)? {
                queue.push_used(head, 0);
                tell(live, &mut untold, len as usize);
            } else {
                self.shared.tx.give_back(len);
                queue.put_back();
                self.wait_room = true;
                return Ok(Next::Sleep);
            }
        }
        Ok(Next::Again)
    }

    /// Sends one frame or drops it; false if it must wait.
    fn send(&mut self, chain: &Chain<'_>, boxes: &mut Boxes) -> Result<bool, String> {
        if !chain.writable.is_empty() {
            return Err("A frame to send has a part for the device to write".into());
        }
        let len = usize::try_from(chain.readable_len).unwrap_or(usize::MAX);
        let fits = (HEADER_LEN + MIN_FRAME..=HEADER_LEN + MAX_FRAME).contains(&len);
        let passes = fits && self.shared.is_up() && boxes.attached;
        let link = &self.pair().link;
        let is_direct = link.kind == LinkKind::Tap && len >= DIRECT && chain.readable.len() <= MESSAGE_RANGES;
        let mut head = [0; HEADER_LEN];
        let header = match passes {
            false => None,
            true if is_direct => gather(&self.ram, chain, &mut head),
            true => gather(&self.ram, chain, boxes.room(len)),
        };
        let Some(header) = header.and_then(|header| header.for_host(self.agreed.host, len - HEADER_LEN)) else {
            boxes.discard();
            self.pair().from_guest.drop_one();
            return Ok(true);
        };
        let output = match is_direct {
            true => Boxes::send_from(&self.ram, link, header, chain.readable),
            false => boxes.send(link, header),
        };
        match output {
            Ok(Output::Sent) => self.pair().from_guest.add(len - HEADER_LEN),
            Ok(Output::Later) => return Ok(false),
            Ok(Output::Refused(error)) => {
                self.pair().from_guest.drop_one();
                self.fault.note(format_args!("The host refused a frame of {} bytes: {error}", len - HEADER_LEN));
            }
            Err(error) => {
                self.pair().from_guest.drop_one();
                self.end_link(boxes, error);
            }
        }
        Ok(true)
    }

    /// Carries out commands while there are some.
    fn control(&mut self, queue: &mut VirtQueue) -> Result<Next, String> {
        queue.disable_kicks();
        for _ in 0..BATCH {
            let Some(chain) = queue.pop().map_err(|error| whole(&error))? else {
                if queue.enable_kicks() {
                    continue;
                }
                return Ok(Next::Sleep);
            };
            let (head, card) = (chain.head, (&*self.shared, &*self.chosen, self.agreed));
            let written = control::serve(&self.ram, &chain, &mut self.command, card)?;
            queue.push_used(head, written);
        }
        Ok(Next::Again)
    }

    /// Whether only the link can bring a frame for the guest.
    fn waits_for_link(&self, boxes: &Boxes) -> bool {
        self.wait_input && boxes.attached && !boxes.has_frame()
    }

    /// Serves one queue, and tells the driver.
    fn serve(
        &mut self,
        live: &mut LiveQueue,
        boxes: &mut Boxes,
        (link_ready, status): (bool, &WorkerStatus),
    ) -> Result<Next, String> {
        let served = match QueueRole::of(live.index, self.pairs).0 {
            // A kick to the other queue is no reason to ask the link.
            QueueRole::Receive if self.waits_for_link(boxes) && !link_ready => Ok(Next::Sleep),
            QueueRole::Receive => self.receive(live, boxes, status),
            QueueRole::Transmit => self.transmit(live, boxes, status),
            QueueRole::Control | QueueRole::None => return Ok(Next::Sleep),
        };
        if live.queue.publish() {
            live.irq.raise();
        }
        served
    }

    /// The link is of no use any more.
    fn end_link(&self, boxes: &mut Boxes, error: LinkError) {
        boxes.discard();
        let shared = &self.shared;
        if shared.broken.load(Ordering::Acquire) {
            return;
        }
        shared.change(|| shared.broken.store(true, Ordering::Release));
        self.fault.alarm(format_args!(
            "The network link has ended: {error}. The guest sees its link down and goes on; give the machine a new link \
             by starting it again"
        ));
    }
}

impl Work for NetWork {
    fn turn(&mut self, queues: &mut [LiveQueue], ready: &Ready, status: &WorkerStatus) -> Result<Next, String> {
        if ready.source(0) {
            // It does not block: an error says that the user changed nothing.
            self.pair().wake.take();
        }
        let (mut next, pairs) = (Next::Sleep, self.pairs);
        // Before the boxes are locked: a command may lock those of all pairs.
        for live in queues.iter_mut().filter(|live| QueueRole::of(live.index, pairs).0 == QueueRole::Control) {
            let served = self.control(&mut live.queue);
            if live.queue.publish() {
                live.irq.raise();
            }
            next = next.min(served?);
        }
        let shared = Arc::clone(&self.shared);
        let mut boxes = lock(&shared.pairs[self.number].boxes);
        // Under the lock, by which a driver that takes less is sure that it gets no more: see `Shared::settle`.
        self.guest = self.chosen.guest_offloads();
        let link_ready = ready.source(LINK);
        if let Err(error) = boxes.flush(&self.pair().link) {
            self.end_link(&mut boxes, error);
        }
        self.wait_room = false;
        for live in queues.iter_mut() {
            next = next.min(self.serve(live, &mut boxes, (link_ready, status))?);
        }
        self.wait_room |= boxes.is_pending();
        Ok(next)
    }

    fn sources<'a>(&'a self, sources: &mut Sources<'a>) {
        sources.add(&self.pair().wake, PollFlags::IN);
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, self.wait_input && self.shared.is_up());
        flags.set(PollFlags::OUT, self.wait_room);
        // With no flags it would still end a sleep by its end or an error.
        if !flags.is_empty() {
            sources.add(&self.pair().link, flags);
        }
    }
}

/// A frame of `len` bytes is done: tells the driver if it has not been told of [`TELL`] bytes.
fn tell(live: &mut LiveQueue, untold: &mut usize, len: usize) {
    *untold += len;
    if *untold >= TELL {
        *untold = 0;
        if live.queue.publish() {
            live.irq.raise();
        }
    }
}

/// The rules of a receive buffer (5.1.6.3.1).
fn check_receive(chain: &Chain<'_>) -> Result<(), &'static str> {
    if !chain.readable.is_empty() {
        return Err("A buffer for frames has a part for the device to read");
    }
    if chain.writable_len < HEADER_LEN as u64 {
        return Err("A buffer for frames has no room for a header");
    }
    Ok(())
}

/// Copies header and frame, from byte `from` of both together, into a chain; how many bytes. Notes where the bytes of
/// `num_buffers` come to lie.
fn scatter(
    ram: &GuestRam,
    chain: &Chain<'_>,
    [header, frame]: &[&[u8]; 2],
    from: usize,
    count_at: &mut [Option<GuestRange>; 2],
) -> usize {
    let mut at = from;
    for range in chain.writable {
        let mut rest = *range;
        while !rest.is_empty() && at < header.len() + frame.len() {
            let piece = if at < header.len() { &header[at..] } else { &frame[at - header.len()..] };
            let count = ram.copy_to(&rest, piece);
            for (offset, place) in (NUM_BUFFERS..).zip(count_at.iter_mut()) {
                if (at..at + count).contains(&offset) {
                    *place = Some(rest.split_at(offset - at).1);
                }
            }
            (_, rest) = rest.split_at(count);
            at += count;
        }
    }
    at - from
}

/// Copies the front of a chain to `bytes`; the header at their front.
fn gather(ram: &GuestRam, chain: &Chain<'_>, bytes: &mut [u8]) -> Option<FrameHeader> {
    let mut at = 0;
    for range in chain.readable {
        at += ram.copy_from(range, &mut bytes[at..]);
    }
    bytes.first_chunk().map(FrameHeader::parse)
}
