//! The bench guest, with a job written into its file: what it does is known before it starts, and nothing has to be parsed.
//!
//! ```text
//!   "AXVM bench job: " | mode: 0 halt, 1 phases | number of phases | kind, len, depth, count of each
//! ```
//!
//! In mode 0 its first instruction writes `~` to COM1 and the next halts it: what a machine costs that does nothing.
//! In mode 1 it goes on, says after each phase how many ticks of the TSC that took, `=1f00abc` in a line of its own, and at
//! the end `z`, and resets the machine.

const NAME: &[u8] = b"AXVM bench job: ";
/// As many as the guest has room for.
const PHASES_MAX: usize = 16;

/// How many queues [`Phase::Spread`] takes, and processors.
pub const QUEUES: u32 = 4;

/// One thing that the guest does so many times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Does nothing, for so many milliseconds or a little more or less.
    Rest(u32),
    /// Writes a byte to port 0x80.
    Out(u32),
    /// Reads the line status of COM1.
    In(u32),
    /// Reads the first register of the disk.
    Mmio(u32),
    /// Reads from random places: bytes, requests at once, requests.
    RandomRead(u32, u32, u32),
    /// Writes to random places.
    RandomWrite(u32, u32, u32),
    /// Reads from the beginning on.
    Read(u32, u32, u32),
    /// Reads from random places, asleep until an interrupt meanwhile.
    Woken(u32, u32, u32),
    /// Reads from random places on four queues at once, a processor each; requests of each.
    Spread(u32, u32, u32),
    /// Sends frames: bytes, frames at once, frames. Those longer than 1514 bytes are for the host to cut.
    Send(u32, u32, u32),
    /// Receives frames of so many bytes; those that come before count, too.
    Receive(u32, u32),
    /// Sends UDP packets in frames of so many bytes to 192.0.2.1:7, each when the one before has come back.
    Echo(u32, u32),
}

impl Phase {
    fn words(self) -> [u32; 4] {
        match self {
            Phase::Rest(milliseconds) => [0, 0, 0, milliseconds],
            Phase::Out(count) => [1, 0, 0, count],
            Phase::In(count) => [2, 0, 0, count],
            Phase::Mmio(count) => [3, 0, 0, count],
            Phase::RandomRead(len, depth, count) => [4, len, depth, count],
            Phase::RandomWrite(len, depth, count) => [5, len, depth, count],
            Phase::Read(len, depth, count) => [6, len, depth, count],
            Phase::Woken(len, depth, count) => [7, len, depth, count],
            Phase::Spread(len, depth, count) => [8, len, depth, count],
            Phase::Send(len, depth, count) => [16, len, depth, count],
            Phase::Receive(len, count) => [17, len, 0, count],
            Phase::Echo(len, count) => [18, len, 1, count],
        }
    }

    /// How many requests, or frames.
    pub fn requests(self) -> u32 {
        let queues = if let Phase::Spread(..) = self { QUEUES } else { 1 };
        self.words()[3] * queues
    }

    /// Bytes of each.
    pub fn bytes(self) -> u32 {
        self.words()[1]
    }
}

/// The ELF file of the bench guest, for PVH entry. Without a list of phases it says `~` and halts for good.
pub fn bench(phases: Option<&[Phase]>) -> Vec<u8> {
    let mut image = include_bytes!(concat!(env!("OUT_DIR"), "/bench.elf")).to_vec();
    let at = image.windows(NAME.len()).position(|bytes| bytes == NAME).expect("bench.s has it") + NAME.len();
    let Some(phases) = phases else { return image };
    assert!(phases.len() <= PHASES_MAX, "the guest has room for {PHASES_MAX} phases");
    let words = [1, phases.len() as u32].into_iter().chain(phases.iter().flat_map(|phase| phase.words()));
    for (place, word) in image[at..].chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    image
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_written_into_the_file_and_nothing_else_changes() {
        let (idle, busy) = (bench(None), bench(Some(&[Phase::Out(7), Phase::Read(4096, 2, 9)])));
        assert_eq!(idle.len(), busy.len());
        let differs: Vec<usize> = (0..idle.len()).filter(|&at| idle[at] != busy[at]).collect();
        let job = idle.windows(16).position(|bytes| bytes == NAME).unwrap() + 16;
        assert!(differs.iter().all(|at| (job..job + 40).contains(at)), "{differs:?}");
        let word = |number: usize| u32::from_le_bytes(busy[job + number * 4..][..4].try_into().unwrap());
        assert_eq!([0, 1, 2, 5, 6, 7, 8, 9].map(word), [1, 2, 1, 7, 6, 4096, 2, 9]);
    }

    #[test]
    fn its_name_is_there_once() {
        let image = bench(None);
        assert_eq!(image.windows(NAME.len()).filter(|bytes| *bytes == NAME).count(), 1);
    }
}
