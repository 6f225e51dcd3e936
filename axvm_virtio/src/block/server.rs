//! Serving one block request: from chain to status byte.
//!
//! ```text
//!   chain --> no status byte?      ring fault: DEVICE_NEEDS_RESET
//!             malformed, failed?   S_IOERR
//!             unknown?             S_UNSUPP
//!             done                 S_OK
//! ```
//!
//! Nothing here knows threads or rings; another engine can call it.
//!
//! Spec: virtio 1.2, 5.2.6 "Device Operation", 5.2.6.2 "Device Requirements: Device Operation".

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axvm_memory::{GuestRam, GuestRange};

use super::image::{DiskImage, SERIAL_LEN, is_unsupported};
use super::request::{Extent, Header, Segment, Segments, kind, status, status_byte};
use crate::queue::Chain;
use crate::signals::Fault;
use crate::worker::Serve;

/// Flag of a write-zeroes segment: the space may be given back.
const UNMAP: u32 = 1;

/// Why a request does not end in S_OK.
enum Refusal {
    /// S_UNSUPP.
    Unsupported,
    /// S_IOERR by the driver's fault: sizes, ranges, writes to a read-only disk.
    Malformed,
    /// S_IOERR by the host's fault; what was tried.
    Host(&'static str, io::Error),
}

/// Executes requests against an image. The vectors are reused from request to request.
pub(super) struct Server {
    image: Arc<DiskImage>,
    ram: Arc<GuestRam>,
    writeback: Arc<AtomicBool>,
    fault: Fault,
    /// The readable part after the header.
    source: Vec<GuestRange>,
    /// The writable part before the status byte.
    target: Vec<GuestRange>,
}

impl Server {
    pub(super) fn new(
        image: &Arc<DiskImage>,
        ram: &Arc<GuestRam>,
        writeback: &Arc<AtomicBool>,
        fault: &Fault,
    ) -> Server {
        Server {
            image: Arc::clone(image),
            ram: Arc::clone(ram),
            writeback: Arc::clone(writeback),
            fault: fault.clone(),
            source: Vec::new(),
            target: Vec::new(),
        }
    }

    /// Carries the request out; how many bytes of the target it filled.
    fn execute(&mut self, chain: &Chain<'_>) -> Result<u64, Refusal> {
        let header = Header::read(&self.ram, chain, &mut self.source).ok_or(Refusal::Malformed)?;
        match header.kind {
            kind::IN => self.read(header.sector, chain.writable_len - 1),
            kind::OUT => self.write(header.sector),
            kind::FLUSH => self.flush(),
            kind::GET_ID => self.identify(chain.writable_len - 1),
            kind::DISCARD => self.discard(),
            kind::WRITE_ZEROES => self.write_zeroes(),
            _ => Err(Refusal::Unsupported),
        }
    }

    fn read(&self, sector: u64, len: u64) -> Result<u64, Refusal> {
        let extent = Extent::new(sector, len, self.image.size()).ok_or(Refusal::Malformed)?;
        let result = self.image.read(&self.ram, &self.target, extent.offset);
        result.map_err(|error| Refusal::Host("read", error))?;
        Ok(len)
    }

    fn write(&self, sector: u64) -> Result<u64, Refusal> {
        self.check_writable()?;
        let len = self.source.iter().map(|range| range.len() as u64).sum();
        let extent = Extent::new(sector, len, self.image.size()).ok_or(Refusal::Malformed)?;
        let result = self.image.write(&self.ram, &self.source, extent.offset);
        result.map_err(|error| Refusal::Host("write", error))?;
        self.settle()
    }

    fn flush(&self) -> Result<u64, Refusal> {
        self.image.sync().map_err(|error| Refusal::Host("flush", error))?;
        Ok(0)
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

    fn discard(&self) -> Result<u64, Refusal> {
        for (_, extent) in self.segments(0)? {
            match self.image.discard(extent.offset, extent.len) {
                Err(error) if is_unsupported(&error) => return Err(Refusal::Unsupported),
                result => result.map_err(|error| Refusal::Host("discard", error))?,
            }
        }
        self.settle()
    }

    fn write_zeroes(&self) -> Result<u64, Refusal> {
        for (segment, extent) in self.segments(UNMAP)? {
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

    /// After a change of the disk: makes it safe now if the cache is write-through.
    fn settle(&self) -> Result<u64, Refusal> {
        if self.writeback.load(Ordering::SeqCst) { Ok(0) } else { self.flush() }
    }

    fn refuse(&self, refusal: Refusal) -> u8 {
        match refusal {
            Refusal::Unsupported => status::UNSUPP,
            Refusal::Malformed => status::IOERR,
            Refusal::Host(action, error) => {
                let path = self.image.path().display();
                self.fault.warn(format_args!("cannot {action} {path}: {error}; the guest sees an I/O error"));
                status::IOERR
            }
        }
    }
}

impl Serve for Server {
    fn serve(&mut self, chain: &Chain<'_>) -> Result<u32, &'static str> {
        let place = status_byte(chain, &mut self.target).ok_or("A block request has no room for its status")?;
        let (status, filled) = match self.execute(chain) {
            Ok(filled) => (status::OK, filled),
            Err(refusal) => (self.refuse(refusal), 0),
        };
        self.ram.copy_to(&place, &[status]);
        // The used length counts from the start without a gap: the status only counts if all before it does.
        let written = if filled == chain.writable_len - 1 { filled + 1 } else { filled };
        Ok(u32::try_from(written).unwrap_or(u32::MAX))
    }
}
