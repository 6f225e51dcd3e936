//! Carrying out one block request: from chain to status byte.
//!
//! ```text
//!   chain --> no status byte?      ring fault: DEVICE_NEEDS_RESET
//!             malformed, failed?   S_IOERR
//!             unknown?             S_UNSUPP
//!             done                 S_OK
//!             stopped on the way   the chain goes back to the ring
//!             over the rate limit  the chain goes back to the ring, for a time
//!             no room on the host  the same, until there is some (or S_IOERR: on-full=report)
//!
//!   long read or write:  | 16 MiB | stop? | 16 MiB | stop? | ..    discard, zeroes:  | segment | stop? | segment | ..
//! ```
//!
//! A request that a stop (pause, reset) interrupts between two pieces is not answered: its chain is in the ring again,
//! and after the stop it is carried out as a whole. The driver cannot tell: until the answer, what it reads and what
//! lies on the disk in that range is undefined anyway, and each of these requests may be done twice. A request that the
//! host has no room for goes the same way, and nothing behind it is begun. A discard is not kept: it is a hint. Nor is a
//! flush: what it could not bring to the medium is lost.
//!
//! Nothing here allocates memory for a read, a write or a flush, once the vectors have grown; they never hold more
//! ranges than the queue has entries. (An ephemeral disk's reads do.)
//!
//! Spec: virtio 1.2, 5.2.6 "Device Operation", 5.2.6.2 "Device Requirements: Device Operation".
//! Left out: the rings (`worker`). Another engine can call this one.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axvm_memory::{Direction, GuestRam, GuestRange};

use super::QUEUE_SIZE;
use super::check;
use super::config::MAX_REQUEST;
use super::disk_config::{OnFull, SERIAL_LEN};
use super::error::{is_full, is_unsupported};
use super::handle::DiskLink;
use super::image::{DiskImage, SyncError};
use super::request::{Extent, HEADER_LEN, Header, Segment, Segments, UNMAP, kind, status, status_byte, target};
use crate::queue::Chain;
use crate::signals::FaultReporter;
use crate::worker::{Serve, Served, WorkerStatus};

/// Most bytes of a transfer before the stop flag is looked at: some milliseconds of work.
pub(super) const PIECE: usize = 16 << 20;

/// Why a request does not end in S_OK.
enum Refusal {
    /// S_UNSUPP.
    Unsupported,
    /// S_IOERR by the driver's fault: sizes, ranges, writes to a read-only disk.
    Malformed,
    /// S_IOERR by the host's fault; what was tried.
    Host(&'static str, io::Error),
    /// S_IOERR: what was written is not safe and will not be; the user was told.
    Unsafe,
    /// No status: a stop came before its end, and it is to be done again after it.
    Stopped,
    /// No status: the host has no room, and it is to be done when there is some.
    Kept,
}

/// Executes requests against an image. The vectors are reused from request to request.
pub(super) struct RequestExecutor {
    pub(super) image: Arc<DiskImage>,
    pub(super) link: Arc<DiskLink>,
    pub(super) queue: u16,
    pub(super) ram: Arc<GuestRam>,
    writeback: Arc<AtomicBool>,
    fault: FaultReporter,
    /// The readable part after the header.
    source: Vec<GuestRange>,
    /// The writable part before the status byte.
    target: Vec<GuestRange>,
    /// A piece of a long transfer.
    piece: Vec<GuestRange>,
    /// The user was told of a chain that is too long.
    told_long: bool,
    /// The last request was kept.
    pub(super) kept: bool,
}

impl RequestExecutor {
    pub(super) fn new(
        link: &Arc<DiskLink>,
        queue: u16,
        ram: &Arc<GuestRam>,
        writeback: &Arc<AtomicBool>,
        fault: &FaultReporter,
    ) -> RequestExecutor {
        RequestExecutor {
            image: Arc::clone(&link.image),
            link: Arc::clone(link),
            queue,
            ram: Arc::clone(ram),
            writeback: Arc::clone(writeback),
            fault: fault.clone(),
            source: Vec::new(),
            target: Vec::new(),
            piece: Vec::new(),
            told_long: false,
            kept: false,
        }
    }

    /// Carries the request out; how many bytes of the target it filled.
    fn execute(&mut self, chain: &Chain<'_>, status: &WorkerStatus) -> Result<u64, Refusal> {
        self.check_len(chain)?;
        target(chain, &mut self.target);
        let header = Header::read(&self.ram, chain, &mut self.source).ok_or(Refusal::Malformed)?;
        match header.kind {
            kind::IN => self.read(header.sector, chain.writable_len - 1, status),
            kind::OUT => self.write(header.sector, status),
            kind::FLUSH => {
                if header.sector != 0 {
                    self.check(chain);
                }
                self.flush()
            }
            kind::GET_ID => {
                self.check(chain);
                self.identify(chain.writable_len - 1)
            }
            kind::DISCARD => self.discard(status),
            kind::WRITE_ZEROES => self.write_zeroes(status),
            _ => Err(Refusal::Unsupported),
        }
    }

    /// Tells of the rule that the request breaks, if rules are checked.
    fn check(&self, chain: &Chain<'_>) {
        check::request(&self.fault, &self.ram, chain, self.image.size());
    }

    /// A chain has no more descriptors than the queue has entries (2.7.5.3.1), in an indirect table as well. Looked at
    /// before anything is copied, so the vectors stay as small.
    fn check_len(&mut self, chain: &Chain<'_>) -> Result<(), Refusal> {
        let count = chain.readable.len() + chain.writable.len();
        if count <= usize::from(QUEUE_SIZE) {
            return Ok(());
        }
        if !std::mem::replace(&mut self.told_long, true) {
            self.fault.note(format_args!(
                "a request of {count} descriptors was refused: header, status and seg_max, {}, is the most; an error of \
                 the guest's driver",
                QUEUE_SIZE - 2
            ));
        }
        Err(Refusal::Malformed)
    }

    /// A read or a write of whole sectors that one piece holds, in the usual shape, whose answer is that of the transfer:
    /// its extent, and `ranges` filled. Everything else is [served](Serve) alone, and its faults with it.
    pub(super) fn as_transfer(&self, chain: &Chain<'_>, ranges: &mut Vec<GuestRange>) -> Option<(Direction, Extent)> {
        if chain.readable.len() + chain.writable.len() > usize::from(QUEUE_SIZE) || chain.writable_len == 0 {
            return None;
        }
        let header = Header::read(&self.ram, chain, ranges)?;
        let (direction, len) = match header.kind {
            kind::IN => (Direction::Read, chain.writable_len - 1),
            // In write-through mode each ends with a flush.
            kind::OUT if !self.image.read_only() && self.writeback.load(Ordering::Relaxed) => {
                (Direction::Write, chain.readable_len - HEADER_LEN as u64)
            }
            _ => return None,
        };
        if direction == Direction::Read {
            target(chain, ranges);
        }
        let extent = Extent::new(header.sector, len, self.image.size())?;
        ((1..=PIECE as u64).contains(&len)).then_some((direction, extent))
    }

    /// Moves a transfer, by a call that waits.
    pub(super) fn transfer(&self, direction: Direction, ranges: &[GuestRange], offset: u64) -> io::Result<()> {
        match direction {
            Direction::Read => self.image.read(&self.ram, ranges, offset),
            Direction::Write => self.image.write(&self.ram, ranges, offset),
        }
    }

    fn read(&mut self, sector: u64, len: u64, status: &WorkerStatus) -> Result<u64, Refusal> {
        let extent = Extent::new(sector, len, self.image.size()).ok_or(Refusal::Malformed)?;
        let (image, ram) = (&self.image, &self.ram);
        let read =
            |piece: &[GuestRange], offset| image.read(ram, piece, offset).map_err(|error| Refusal::Host("read", error));
        in_pieces(&self.target, extent, &mut self.piece, status, read)?;
        Ok(len)
    }

    fn write(&mut self, sector: u64, status: &WorkerStatus) -> Result<u64, Refusal> {
        self.check_writable()?;
        let len = self.source.iter().map(|range| range.len() as u64).sum();
        let extent = Extent::new(sector, len, self.image.size()).ok_or(Refusal::Malformed)?;
        let (image, ram) = (&self.image, &self.ram);
        let write = |piece: &[GuestRange], offset| {
            image.write(ram, piece, offset).map_err(|error| Refusal::Host("write", error))
        };
        in_pieces(&self.source, extent, &mut self.piece, status, write)?;
        self.settle()
    }

    fn flush(&self) -> Result<u64, Refusal> {
        match self.image.sync() {
            Ok(()) => Ok(0),
            Err(SyncError::Earlier) => Err(Refusal::Unsafe),
            Err(SyncError::Now(error)) => {
                self.fault.alarm(format_args!(
                    "cannot flush {}: {error}. What the guest wrote may be lost, and the host does not tell what: \
                     flushes of this disk fail from now on, until AxVM ends. Check the storage, then the image (fsck)",
                    self.image.path().display()
                ));
                Err(Refusal::Unsafe)
            }
        }
    }

    fn identify(&self, room: u64) -> Result<u64, Refusal> {
        if room < SERIAL_LEN as u64 {
            return Err(Refusal::Malformed);
        }
        let mut done = 0;
        for range in &self.target {
            done += self.ram.copy_to(range, &self.image.serial()[done..]);
        }
        Ok(done as u64)
    }

    fn discard(&self, status: &WorkerStatus) -> Result<u64, Refusal> {
        for (_, extent) in self.segments(0)? {
            check_stop(status)?;
            match self.image.discard(extent.offset, extent.len) {
                Err(error) if is_unsupported(&error) => return Err(Refusal::Unsupported),
                result => result.map_err(|error| Refusal::Host("discard", error))?,
            }
        }
        self.settle()
    }

    fn write_zeroes(&self, status: &WorkerStatus) -> Result<u64, Refusal> {
        for (segment, extent) in self.segments(UNMAP)? {
            check_stop(status)?;
            let result = self.image.zero(extent.offset, extent.len, segment.flags & UNMAP != 0);
            result.map_err(|error| Refusal::Host("zero", error))?;
        }
        self.settle()
    }

    /// The segments of the request, all checked before the first is carried out.
    fn segments(&self, known_flags: u32) -> Result<Vec<(Segment, Extent)>, Refusal> {
        self.check_writable()?;
        let segments = Segments::read(&self.ram, &self.source).ok_or(Refusal::Malformed)?;
        if segments.iter().any(|segment| segment.flags & !known_flags != 0) {
            return Err(Refusal::Unsupported);
        }
        let size = self.image.size();
        segments.iter().map(|segment| Ok((segment, segment.extent(size).ok_or(Refusal::Malformed)?))).collect()
    }

    fn check_writable(&self) -> Result<(), Refusal> {
        if self.image.read_only() { Err(Refusal::Malformed) } else { Ok(()) }
    }

    /// After a change of the disk: makes it safe now if the cache is write-through. Relaxed: a driver that chose the
    /// mode before it offered the request is seen through the ring, whose index is read with Acquire.
    fn settle(&self) -> Result<u64, Refusal> {
        if self.writeback.load(Ordering::Relaxed) { Ok(0) } else { self.flush() }
    }

    /// What becomes of a request for which the host has no room.
    fn keep(&mut self, action: &'static str, error: io::Error) -> Refusal {
        if !is_full(&error) || self.image.on_full() == OnFull::Report {
            return Refusal::Host(action, error);
        }
        self.kept = true;
        self.link.keep(self.queue, action, &error);
        Refusal::Kept
    }

    /// Tells the user of what the host refused.
    pub(super) fn warn(&self, action: &str, error: &io::Error) {
        let path = if action == "read" { self.image.path() } else { self.image.storage() }.display();
        self.fault.warn(format_args!("cannot {action} {path}: {error}; the guest sees an I/O error"));
    }
}

impl Serve for RequestExecutor {
    fn serve(&mut self, chain: &Chain<'_>, worker: &WorkerStatus) -> Result<Served, &'static str> {
        let place = status_byte(chain).ok_or("A block request has no room for its status")?;
        // What the host moves for it, header and status aside.
        let bytes = (chain.readable_len.saturating_sub(HEADER_LEN as u64) + chain.writable_len - 1).min(MAX_REQUEST);
        if let Err(wait) = self.image.limiter().take(bytes) {
            return Ok(Served::Later(wait));
        }
        let was_kept = std::mem::take(&mut self.kept);
        let outcome = self.execute(chain, worker).map_err(|refusal| match refusal {
            Refusal::Host(action, error) => self.keep(action, error),
            other => other,
        });
        if was_kept && !self.kept {
            self.link.forget(self.queue);
        }
        if matches!(outcome, Err(Refusal::Unsupported | Refusal::Malformed)) {
            self.check(chain);
        }
        let (status, filled) = match outcome {
            Ok(filled) => (status::OK, filled),
            Err(Refusal::Unsupported) => (status::UNSUPP, 0),
            Err(Refusal::Malformed | Refusal::Unsafe) => (status::IOERR, 0),
            Err(Refusal::Host(action, error)) => {
                self.warn(action, &error);
                (status::IOERR, 0)
            }
            Err(again @ (Refusal::Stopped | Refusal::Kept)) => {
                self.image.limiter().give_back(bytes);
                return Ok(if matches!(again, Refusal::Kept) { Served::Kept } else { Served::PutBack });
            }
        };
        self.ram.copy_to(&place, &[status]);
        Ok(Served::Used(used_len(filled, chain.writable_len - 1)))
    }
}

/// How much of a chain is used, of which `filled` bytes were written to the `room` before its status. It counts from the
/// start without a gap: the status only counts if all before it does.
pub(super) fn used_len(filled: u64, room: u64) -> u32 {
    let used = if filled == room { filled + 1 } else { filled };
    u32::try_from(used).unwrap_or(u32::MAX)
}

fn check_stop(status: &WorkerStatus) -> Result<(), Refusal> {
    if status.stop_asked() { Err(Refusal::Stopped) } else { Ok(()) }
}

/// Transfers `ranges`, which fill `extent`, in pieces of at most [`PIECE`] bytes; between two of them a stop may come.
fn in_pieces(
    ranges: &[GuestRange],
    extent: Extent,
    piece: &mut Vec<GuestRange>,
    status: &WorkerStatus,
    transfer: impl Fn(&[GuestRange], u64) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    if extent.len <= PIECE as u64 {
        return transfer(ranges, extent.offset);
    }
    let (mut offset, mut filled) = (extent.offset, 0);
    piece.clear();
    for range in ranges {
        let mut rest = *range;
        while !rest.is_empty() {
            let (part, after) = rest.split_at(PIECE - filled);
            filled += part.len();
            piece.push(part);
            rest = after;
            if filled == PIECE {
                transfer(piece, offset)?;
                offset += PIECE as u64;
                filled = 0;
                piece.clear();
                if offset == extent.offset + extent.len {
                    return Ok(());
                }
                check_stop(status)?;
            }
        }
    }
    transfer(piece, offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axvm_arch::Gpa;
    use axvm_memory::RamConfig;
    use axvm_sync::EventFd;
    use std::cell::RefCell;

    /// Offset and bytes of each piece of a transfer of `len` bytes, when a stop comes after `stop_after` pieces; whether
    /// it came to its end.
    fn pieces(len: u64, stop_after: usize) -> (Vec<(u64, usize)>, bool) {
        let ram = GuestRam::allocate(&RamConfig::new(48 << 20)).unwrap();
        let status = WorkerStatus::new("vda-q0", Arc::new(EventFd::new().unwrap()));
        let cuts = [(0, 100), (100, 20 << 20), (100 + (20 << 20), len - (20 << 20) - 100)];
        let ranges = cuts.map(|(at, len)| ram.range(Gpa(at), len).unwrap());
        let seen = RefCell::new(Vec::new());
        let transfer = |piece: &[GuestRange], offset| {
            seen.borrow_mut().push((offset, piece.iter().map(|range| range.len()).sum()));
            if seen.borrow().len() == stop_after {
                status.ask_stop();
            }
            Ok(())
        };
        let outcome = in_pieces(&ranges, Extent { offset: 512, len }, &mut Vec::new(), &status, transfer);
        (seen.into_inner(), outcome.is_ok())
    }

    #[test]
    fn a_long_transfer_goes_in_pieces_and_a_stop_ends_it_between_two() {
        let all = [(512, PIECE), (512 + PIECE as u64, PIECE), (512 + 2 * PIECE as u64, 8 << 20)];
        assert_eq!(pieces(40 << 20, 99), (all.to_vec(), true));
        assert_eq!(pieces(40 << 20, 1), (all[..1].to_vec(), false));
        assert_eq!(pieces(40 << 20, 2), (all[..2].to_vec(), false));
        assert_eq!(pieces(40 << 20, 3), (all.to_vec(), true), "what is done is done");
        assert_eq!(pieces(32 << 20, 2), (all[..2].to_vec(), true), "also if it ends with a piece");
    }
}
