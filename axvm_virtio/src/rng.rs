//! The entropy device: the host's random numbers for a guest that has collected none yet.
//!
//! ```text
//!   driver: room for n bytes --queue 0--> getrandom(2) --> the first min(n, 64 KiB) bytes of it
//! ```
//!
//! Spec: virtio 1.2, 5.4 "Entropy Device". The device may use less than the room that it is given, but not
//! nothing of it (5.4.6.2); the driver asks again.
//! The host's generator is not exhausted by use, and a guest that asks all the time takes no more than the time of one
//! thread; a rate limit can give it less.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use axvm_memory::{GuestRam, GuestRange};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::device::{Activation, DeviceId, StartError, VirtioDevice};
use crate::limiter::{Limiter, RateLimit};
use crate::queue::{Chain, QueueState};
use crate::signals::FaultReporter;
use crate::state::{DeviceState, EntropyState, StateError};
use crate::worker::{Serve, Served, Serving, StillBusy, Worker, WorkerStatus};

/// Entries of the one queue.
const QUEUE_SIZE: u16 = 64;
/// Most bytes that one request gets.
const REQUEST_BYTES: usize = 64 << 10;
/// Most bytes taken from the host at a time.
const PIECE: usize = 4096;

/// A virtio entropy device.
#[derive(Default)]
pub struct Rng {
    limiter: Arc<Limiter>,
    worker: Option<Worker<Serving<RandomFiller>>>,
}

impl Rng {
    /// One that gives no more than this: bytes, and requests.
    pub fn limited(rate: RateLimit) -> Rng {
        Rng { limiter: Arc::new(Limiter::new(rate)), worker: None }
    }
}

impl VirtioDevice for Rng {
    fn id(&self) -> DeviceId {
        DeviceId::Entropy
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        0
    }

    /// There is no configuration space (5.4.4).
    fn read_config(&self, _: u64, _: &mut [u8]) {}

    fn write_config(&mut self, _: u64, _: &[u8]) {}

    fn start(&mut self, mut live: Activation) -> Result<(), StartError> {
        let (ram, limiter, fault) = (Arc::clone(&live.ram), Arc::clone(&self.limiter), live.fault.clone());
        let work = Serving::new(RandomFiller { ram, limiter, fault });
        let queues = std::mem::take(&mut live.queues);
        self.worker = live.spawn(format!("{}-q0", live.name), queues, work)?;
        Ok(())
    }

    fn stop(&mut self, deadline: Option<Instant>) -> Result<Vec<QueueState>, StillBusy> {
        let ended = Worker::take(&mut self.worker, deadline)?;
        self.limiter.rest();
        Ok(ended.queues)
    }

    fn reset(&mut self) {}

    fn state(&self) -> DeviceState {
        DeviceState::Entropy(EntropyState { rate: self.limiter.state() })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        match state {
            DeviceState::Entropy(state) => self.limiter.restore(&state.rate),
            other => Err(StateError::Kind { saved: other.kind(), here: self.state().kind() }),
        }
    }
}

/// Fills what the driver offers.
struct RandomFiller {
    ram: Arc<GuestRam>,
    limiter: Arc<Limiter>,
    fault: FaultReporter,
}

impl RandomFiller {
    /// Fills the writable part, up to the bound; how many bytes of it.
    fn fill(&self, ranges: &[GuestRange]) -> io::Result<usize> {
        let mut bytes = [0; PIECE];
        let mut filled = 0;
        for range in ranges {
            let (mut rest, _) = range.split_at(REQUEST_BYTES - filled);
            while !rest.is_empty() {
                let (place, after) = rest.split_at(PIECE);
                let bytes = &mut bytes[..place.len()];
                take(bytes)?;
                filled += self.ram.copy_to(&place, bytes);
                rest = after;
            }
        }
        Ok(filled)
    }
}

impl Serve for RandomFiller {
    fn serve(&mut self, chain: &Chain<'_>, _: &WorkerStatus) -> Result<Served, &'static str> {
        if !chain.readable.is_empty() {
            return Err("An entropy request has a part for the device to read");
        }
        if chain.writable.is_empty() {
            return Err("An entropy request has no room for a random number");
        }
        if let Err(wait) = self.limiter.take(chain.writable_len.min(REQUEST_BYTES as u64)) {
            return Ok(Served::Later(wait));
        }
        let filled = self.fill(chain.writable).map_err(|error| {
            self.fault.warn(format_args!("cannot take random numbers from the host: {error}; the device stops"));
            "The host gives no random numbers"
        })?;
        Ok(Served::Used(filled as u32))
    }
}

/// Fills `bytes` from the host's generator. It waits only while a host that just booted has no seed yet.
fn take(bytes: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match getrandom(&mut bytes[done..], GetRandomFlags::empty()) {
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
