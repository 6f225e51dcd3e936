//! File I/O straight into and out of guest RAM: no copy, no bounce buffer, no allocation.
//!
//! ```text
//!   ranges:   | r0 | r1 | r2 | ... | r100 |
//!   calls:    preadv(64 buffers on the stack), preadv(37), each again for what it left over
//! ```
//!
//! A message, which its receiver takes whole or not at all (a tap), is one call:
//!
//! ```text
//!   writev(head | r0 without its first bytes | r1 | ...)
//! ```
//!
//! Spec: preadv(2), pwritev(2), writev(2). Beside it: `file_ring`, which does not wait.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::{io, ptr};

use crate::{GuestRam, GuestRange};

/// Buffers in one call: as many as a request of a common driver has, and 1 KiB of stack.
const BATCH: usize = 64;

const NO_BUFFER: libc::iovec = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };

/// Ranges that a message may have.
pub const MESSAGE_RANGES: usize = BATCH - 1;

type Vectored = unsafe extern "C" fn(libc::c_int, *const libc::iovec, libc::c_int, libc::off_t) -> libc::ssize_t;

impl GuestRam {
    /// Fills `ranges` from `file`, starting `offset` bytes into it. A file that ends early is an
    /// `UnexpectedEof`.
    pub fn read_exact_at(&self, file: impl AsFd, ranges: &[GuestRange], offset: u64) -> io::Result<()> {
        self.transfer(libc::preadv, file.as_fd(), ranges, offset)
    }

    /// Writes all of `ranges` to `file`, starting `offset` bytes into it.
    pub fn write_all_at(&self, file: impl AsFd, ranges: &[GuestRange], offset: u64) -> io::Result<()> {
        self.transfer(libc::pwritev, file.as_fd(), ranges, offset)
    }

    /// Writes `head`, and `ranges` without their first `skip` bytes, as one message: in one call. At most
    /// [`MESSAGE_RANGES`]. How many bytes were taken.
    pub fn write_message(&self, to: impl AsFd, head: &[u8], ranges: &[GuestRange], skip: usize) -> io::Result<usize> {
        assert!(ranges.len() <= MESSAGE_RANGES, "a message of {} ranges", ranges.len());
        let mut buffers = [NO_BUFFER; BATCH];
        for (buffer, range) in buffers[1..].iter_mut().zip(ranges) {
            *buffer = self.buffer(range);
        }
        let skipped = ranges.len() - advance(&mut buffers[1..=ranges.len()], skip).len();
        // In the place of the last one that was skipped, or before them all.
        buffers[skipped] = libc::iovec { iov_base: head.as_ptr().cast_mut().cast(), iov_len: head.len() };
        let whole = &buffers[skipped..=ranges.len()];
        loop {
            // SAFETY: the first buffer is `head`, which is only read; the others are parts of proven ranges of this RAM,
            // which lives. The kernel copies, so the guest may write at the same time without breaking anything of ours.
            let taken = unsafe { libc::writev(to.as_fd().as_raw_fd(), whole.as_ptr(), whole.len() as libc::c_int) };
            match usize::try_from(taken) {
                Ok(taken) => return Ok(taken),
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
    }

    pub(crate) fn buffer(&self, range: &GuestRange) -> libc::iovec {
        libc::iovec { iov_base: self.place(range).cast(), iov_len: range.len() }
    }

    fn transfer(&self, call: Vectored, file: BorrowedFd<'_>, ranges: &[GuestRange], offset: u64) -> io::Result<()> {
        let mut at = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        for ranges in ranges.chunks(BATCH) {
            let mut buffers = [NO_BUFFER; BATCH];
            let mut count = 0;
            for range in ranges.iter().filter(|range| !range.is_empty()) {
                buffers[count] = self.buffer(range);
                count += 1;
            }
            let mut rest = &mut buffers[..count];
            while !rest.is_empty() {
                // SAFETY: every buffer is a proven range of this RAM, which lives; the kernel copies, so the guest may
                // write at the same time without breaking anything of ours.
                let moved = unsafe { call(file.as_raw_fd(), rest.as_ptr(), rest.len() as libc::c_int, at) };
                let moved = moved_bytes(moved)?;
                at = at.checked_add(moved as libc::off_t).ok_or(io::ErrorKind::InvalidInput)?;
                rest = advance(rest, moved);
            }
        }
        Ok(())
    }
}

/// How many bytes a call has moved: none if a signal came first; an error at the end of the file.
fn moved_bytes(result: libc::ssize_t) -> io::Result<usize> {
    match result {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        1.. => Ok(result as usize),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            error => Err(error),
        },
    }
}

/// Drops the first `count` bytes of `buffers`.
fn advance(buffers: &mut [libc::iovec], mut count: usize) -> &mut [libc::iovec] {
    let mut done = 0;
    while done < buffers.len() && count >= buffers[done].iov_len {
        count -= buffers[done].iov_len;
        done += 1;
    }
    let rest = &mut buffers[done..];
    if let Some(first) = rest.first_mut() {
        first.iov_base = first.iov_base.wrapping_byte_add(count);
        first.iov_len -= count;
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RamConfig;
    use axvm_arch::Gpa;
    use std::sync::Arc;

    fn ram() -> Arc<GuestRam> {
        GuestRam::allocate(&RamConfig::new(8 << 20)).unwrap()
    }

    #[test]
    fn data_goes_to_the_file_and_comes_back() {
        let (ram, file) = (ram(), tempfile::tempfile().unwrap());
        ram.write(Gpa(0x1000), b"hello ").unwrap();
        ram.write(Gpa(0x3000), b"guest").unwrap();
        let ranges = [ram.range(Gpa(0x1000), 6).unwrap(), ram.range(Gpa(0x3000), 5).unwrap()];
        ram.write_all_at(&file, &ranges, 512).unwrap();

        let whole = ram.range(Gpa(0x5000), 11).unwrap();
        ram.read_exact_at(&file, &[whole], 512).unwrap();
        let mut data = [0; 11];
        ram.copy_from(&whole, &mut data);
        assert_eq!(&data, b"hello guest");
    }

    #[test]
    fn more_buffers_than_one_call_takes() {
        let (ram, file) = (ram(), tempfile::tempfile().unwrap());
        let ranges: Vec<_> = (0..3000).map(|n| ram.range(Gpa(n * 512), 512).unwrap()).collect();
        (0..3000u64).for_each(|n| ram.write(Gpa(n * 512), &n.to_le_bytes()).unwrap());
        ram.write_all_at(&file, &ranges, 0).unwrap();
        let back = ram.range(Gpa(4 << 20), 3000 * 512).unwrap();
        ram.read_exact_at(&file, &[back], 0).unwrap();
        for n in 0..3000u64 {
            let mut data = [0; 8];
            ram.read(Gpa((4 << 20) + n * 512), &mut data).unwrap();
            assert_eq!(u64::from_le_bytes(data), n);
        }
    }

    #[test]
    fn batches_end_anywhere_and_empty_ranges_count_for_nothing() {
        let (ram, file) = (ram(), tempfile::tempfile().unwrap());
        for count in [1, BATCH - 1, BATCH, BATCH + 1, 2 * BATCH, 3 * BATCH + 7] {
            let range = |n: usize| ram.range(Gpa(n as u64 * 8), if n.is_multiple_of(3) { 0 } else { 8 }).unwrap();
            let ranges: Vec<_> = (0..count).map(range).collect();
            (0..count).for_each(|n| ram.write(Gpa(n as u64 * 8), &(n as u64 + 1).to_le_bytes()).unwrap());
            ram.write_all_at(&file, &ranges, 0).unwrap();
            let expected: Vec<u64> = (0..count as u64).filter(|n| !n.is_multiple_of(3)).map(|n| n + 1).collect();
            let back = ram.range(Gpa(4 << 20), expected.len() as u64 * 8).unwrap();
            ram.read_exact_at(&file, &[back], 0).unwrap();
            let seen: Vec<u64> = (0..expected.len()).map(|n| ram.get(&back, n * 8)).collect();
            assert_eq!(seen, expected, "{count} ranges");
        }
    }

    #[test]
    fn a_message_is_its_head_and_the_ranges_behind_what_is_skipped() {
        let ram = ram();
        let bytes: Vec<u8> = (0..=255).collect();
        ram.write(Gpa(0), &bytes).unwrap();
        let range = |at: u64, len| ram.range(Gpa(at), len).unwrap();
        let whole: Vec<_> = [(0, 3), (3, 0), (3, 5), (8, 1), (9, 100)].map(|(at, len)| range(at, len)).into();
        let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
        for skip in 0..=109 {
            let taken = ram.write_message(&ours, b"head", &whole, skip).unwrap();
            let mut message = [0; 200];
            let len = theirs.recv(&mut message).unwrap();
            assert_eq!((taken, &message[..len]), (len, &[b"head", &bytes[skip..109]].concat()[..]), "{skip} skipped");
        }
        let many: Vec<_> = (0..MESSAGE_RANGES as u64).map(|at| range(at, 1)).collect();
        assert_eq!(ram.write_message(&ours, b"", &many, 1).unwrap(), MESSAGE_RANGES - 1);
    }

    #[test]
    fn a_file_that_ends_early_is_an_error() {
        let (ram, file) = (ram(), tempfile::tempfile().unwrap());
        file.set_len(100).unwrap();
        let range = ram.range(Gpa(0), 101).unwrap();
        let error = ram.read_exact_at(&file, &[range], 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn nothing_to_move_is_no_call() {
        let (ram, file) = (ram(), tempfile::tempfile().unwrap());
        ram.read_exact_at(&file, &[], 0).unwrap();
        ram.read_exact_at(&file, &[ram.range(Gpa(0), 0).unwrap()], 0).unwrap();
    }

    #[test]
    fn advancing_skips_whole_and_partial_buffers() {
        let base = std::ptr::null_mut();
        let mut buffers = [4, 6, 2].map(|iov_len| libc::iovec { iov_base: base, iov_len });
        let rest = advance(&mut buffers, 7);
        assert_eq!(rest.iter().map(|b| b.iov_len).collect::<Vec<_>>(), [3, 2]);
        assert_eq!(rest[0].iov_base as usize, 3);
        assert!(advance(&mut buffers[2..], 2).is_empty());
    }
}
