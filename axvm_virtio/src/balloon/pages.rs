//! Pages that the guest gives away: those in the balloon, and those that it does not use at the moment.
//!
//! ```text
//!   inflate:    [page number, page number, ..]  --> runs of neighbours --> back to the host
//!   reporting:  [range][range].. (writable)     --> each of them       --> back to the host
//! ```
//!
//! Spec: virtio 1.2, 5.5.6 "Device Operation", 5.5.6.7 "Free Page Reporting".

use std::sync::Arc;

use axvm_arch::Gpa;
use axvm_memory::{GuestRam, GuestRange};

use super::target::BalloonNumbers;
use crate::queue::Chain;
use crate::signals::FaultReporter;
use crate::worker::{Serve, Served, WorkerStatus};

/// The unit of the protocol, in bytes.
const PAGE: u64 = 4096;
/// Most pages in one inflate request (Linux sends 256), so that a stop never waits long.
const MAX_PAGES: usize = 16 << 10;

/// What a queue carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carries {
    /// Numbers of pages that go into the balloon.
    Inflate,
    /// Numbers of pages that the guest takes out.
    Deflate,
    /// Ranges that are free for the moment.
    Reports,
}

/// Serves one queue of pages.
pub(super) struct PageQueue {
    carries: Carries,
    ram: Arc<GuestRam>,
    shared: Arc<BalloonNumbers>,
    fault: FaultReporter,
    /// The page numbers of a request, four bytes each; reused from request to request.
    numbers: Vec<u8>,
}

impl PageQueue {
    pub(super) fn new(
        carries: Carries,
        ram: &Arc<GuestRam>,
        shared: &Arc<BalloonNumbers>,
        fault: &FaultReporter,
    ) -> PageQueue {
        let (ram, shared) = (Arc::clone(ram), Arc::clone(shared));
        PageQueue { carries, ram, shared, fault: fault.clone(), numbers: Vec::new() }
    }

    /// Gives the pages that the driver names back to the host, in runs of neighbours.
    fn inflate(&mut self, chain: &Chain<'_>) -> Result<(), &'static str> {
        if chain.readable_len > 4 * MAX_PAGES as u64 {
            return Err("An inflate request names more than 16384 pages");
        }
        self.numbers.resize(chain.readable_len as usize, 0);
        let mut done = 0;
        for range in chain.readable {
            done += self.ram.copy_from(range, &mut self.numbers[done..]);
        }
        let (numbers, _) = self.numbers.as_chunks();
        let mut run = 0..0;
        for page in numbers.iter().map(|bytes| u64::from(u32::from_le_bytes(*bytes))) {
            if page == run.end {
                run.end += 1;
            } else if page + 1 == run.start {
                run.start -= 1;
            } else {
                self.give_back(run.start, run.end);
                run = page..page + 1;
            }
        }
        self.give_back(run.start, run.end);
        Ok(())
    }

    /// Gives pages `first` to before `end` back, if they are RAM.
    fn give_back(&self, first: u64, end: u64) {
        let proof = self.ram.range(Gpa(first * PAGE), (end - first) * PAGE);
        match proof {
            Ok(range) => self.discard(&range),
            // A run may leave RAM halfway: what is RAM of it counts.
            Err(_) if end - first > 1 => (first..end).for_each(|page| self.give_back(page, page + 1)),
            Err(error) => self.fault.warn(format_args!("the guest balloons what it does not have: {error}; ignored")),
        }
    }

    /// Gives the ranges that the driver does not use at the moment back to the host.
    fn report(&self, chain: &Chain<'_>) {
        // Discarded pages read as zero, and the driver wants to find its poison again.
        if self.shared.poison() == 0 {
            chain.writable.iter().for_each(|range| self.discard(range));
        }
    }

    fn discard(&self, range: &GuestRange) {
        if let Err(error) = self.ram.discard(range) {
            let (len, gpa) = (range.len(), range.gpa());
            self.fault
                .warn(format_args!("cannot give {len} bytes at {gpa} back to the host: {error}; the guest keeps them"));
        }
    }
}

impl Serve for PageQueue {
    fn serve(&mut self, chain: &Chain<'_>, _: &WorkerStatus) -> Result<Served, &'static str> {
        match self.carries {
            Carries::Inflate => self.inflate(chain)?,
            // A page is there again when it is touched.
            Carries::Deflate => {}
            Carries::Reports => self.report(chain),
        }
        Ok(Served::Used(0))
    }
}
