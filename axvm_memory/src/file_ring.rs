//! File I/O that the kernel carries out while its thread goes on: an io_uring over a few files, to and from guest RAM.
//!
//! ```text
//!   read, write:  entries, and their buffers  --submit-->  kernel: any number in one system call
//!                 | e0 | e1 | e2 | ..                        |  files: | 0 | 1 |  registered, no others
//!   completed:    (token, bytes or error)  <-----------------'  calls: read, write, readv, writev, no others
//! ```
//!
//! What makes it safe: a range is proven, and the ring holds its RAM until the kernel is done with every entry; a ring
//! that is dropped waits for that. The kernel has copied entries and lists of buffers when `submit` returns
//! (IORING_FEAT_SUBMIT_STABLE).
//!
//! A ring is no way around a filter of system calls: it is made disabled, told what it may do, and enabled for that
//! only. Nothing can be registered with it afterwards.
//!
//! Spec: io_uring(7), io_uring_setup(2), io_uring_register(2) IORING_REGISTER_RESTRICTIONS, io_uring_enter(2).
//! Left out: registered buffers, which pin guest RAM; polling by a kernel's thread, which costs a processor.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{io, ptr};

use rustix::io::Errno;
use rustix::io_uring::{
    IORING_OFF_SQ_RING, IORING_OFF_SQES, IoringEnterFlags, IoringFeatureFlags, IoringOp, IoringRegisterOp,
    IoringRestrictionOp, IoringSetupFlags, IoringSqeFlags, io_cqring_offsets, io_sqring_offsets, io_uring_cqe,
    io_uring_enter, io_uring_params, io_uring_ptr, io_uring_register, io_uring_restriction, io_uring_setup,
    io_uring_sqe, io_uring_user_data, register_or_sqe_op_or_sqe_flags_union,
};

use crate::{GuestRam, GuestRange};

/// Most ranges of one entry: what readv(2) takes.
pub const ENTRY_RANGES: usize = 1024;

/// All that an entry may ask for.
const CALLS: [IoringOp; 4] = [IoringOp::Read, IoringOp::Write, IoringOp::Readv, IoringOp::Writev];

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the file into guest RAM.
    Read,
    /// From guest RAM into the file.
    Write,
}

/// One transfer to be queued.
#[derive(Clone, Copy, Debug)]
pub struct Transfer<'a> {
    /// Which of the ring's files, from 0.
    pub file: usize,
    /// Which way.
    pub direction: Direction,
    /// The guest's side, at most [`ENTRY_RANGES`]; none of them is empty.
    pub ranges: &'a [GuestRange],
    /// Where in the file, in bytes.
    pub offset: u64,
    /// What [`FileRing::completed`] tells it by.
    pub token: u64,
}

/// An io_uring over a few files. One thread at a time uses it.
#[derive(Debug)]
pub struct FileRing {
    fd: OwnedFd,
    files: usize,
    submission: io_sqring_offsets,
    completion: io_cqring_offsets,
    /// Both rings.
    rings: Shared,
    entries: Shared,
    entry_count: u32,
    mask: (u32, u32),
    /// Entries queued in all, and handed over in all: free-running, as the rings' indices.
    queued: u32,
    handed: u32,
    /// Handed over or queued, and not taken back by `completed`.
    in_flight: u32,
    /// Lists of buffers of what is queued. It never grows, so they stay where they are.
    buffers: Vec<libc::iovec>,
    /// What the kernel did not take, as if it had answered.
    refused: VecDeque<(u64, i32)>,
    /// The RAM of what is in flight.
    ram: Option<Arc<GuestRam>>,
}

// SAFETY: the mappings and the pointers in `buffers` belong to this value, or to the RAM that it holds; neither is tied
// to a thread.
unsafe impl Send for FileRing {}

impl FileRing {
    /// Makes a ring for at most `depth` transfers at a time, over `files` only. It is closed to everything else.
    pub fn open(files: &[BorrowedFd<'_>], depth: u32) -> io::Result<FileRing> {
        let (fd, parameters) = set_up(depth)?;
        let needed = IoringFeatureFlags::SINGLE_MMAP | IoringFeatureFlags::SUBMIT_STABLE;
        if !parameters.features.contains(needed) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        restrict(&fd, files)?;
        let (submission, completion) = (parameters.sq_off, parameters.cq_off);
        let ends = [
            submission.array as usize + parameters.sq_entries as usize * size_of::<u32>(),
            completion.cqes as usize + parameters.cq_entries as usize * size_of::<io_uring_cqe>(),
        ];
        let rings = Shared::map(&fd, ends[0].max(ends[1]), IORING_OFF_SQ_RING)?;
        let entries = Shared::map(&fd, parameters.sq_entries as usize * size_of::<io_uring_sqe>(), IORING_OFF_SQES)?;
        // The n-th place of the submission ring always names the n-th entry.
        for n in 0..parameters.sq_entries {
            rings.word(submission.array + n * size_of::<u32>() as u32).store(n, Ordering::Relaxed);
        }
        Ok(FileRing {
            fd,
            files: files.len(),
            submission,
            completion,
            rings,
            entries,
            entry_count: parameters.sq_entries,
            mask: (parameters.sq_entries - 1, parameters.cq_entries - 1),
            queued: 0,
            handed: 0,
            in_flight: 0,
            buffers: Vec::with_capacity(ENTRY_RANGES),
            refused: VecDeque::new(),
            ram: None,
        })
    }

    /// How many transfers are queued or with the kernel.
    pub fn in_flight(&self) -> usize {
        self.in_flight as usize
    }

    /// Whether one more transfer can be queued.
    pub fn has_room(&self) -> bool {
        self.in_flight < self.entry_count
    }

    /// Queues a transfer; the kernel learns of it by [`FileRing::submit`], or before.
    ///
    /// # Panics
    /// Without room, with a file that the ring does not have, or with other RAM than what is in flight has: bugs of ours.
    pub fn queue(&mut self, ram: &Arc<GuestRam>, transfer: Transfer<'_>) {
        let Transfer { file, direction, ranges, offset, token } = transfer;
        assert!(self.has_room(), "a ring of {} entries is full", self.entry_count);
        assert!(file < self.files, "file {file} of {}", self.files);
        assert!(!ranges.is_empty() && ranges.len() <= ENTRY_RANGES, "a transfer of {} ranges", ranges.len());
        self.hold(ram);
        if self.buffers.len() + ranges.len() > ENTRY_RANGES {
            self.submit();
        }
        let mut entry = io_uring_sqe { fd: file as i32, flags: IoringSqeFlags::FIXED_FILE, ..Default::default() };
        entry.user_data = io_uring_user_data::from_u64(token);
        entry.off_or_addr2.off = offset;
        let (one, many) = match direction {
            Direction::Read => (IoringOp::Read, IoringOp::Readv),
            Direction::Write => (IoringOp::Write, IoringOp::Writev),
        };
        let (address, len) = match ranges {
            [range] if u32::try_from(range.len()).is_ok() => {
                entry.opcode = one;
                (ram.buffer(range).iov_base, range.len() as u32)
            }
            _ => {
                entry.opcode = many;
                let first = self.buffers.len();
                self.buffers.extend(ranges.iter().map(|range| ram.buffer(range)));
                (self.buffers.as_mut_ptr().wrapping_add(first).cast(), ranges.len() as u32)
            }
        };
        entry.addr_or_splice_off_in.addr = io_uring_ptr::new(address);
        entry.len.len = len;
        // SAFETY: the place is in the mapping of entries; the kernel has copied what was in it, as there is room.
        unsafe { self.entry(self.queued).write(entry) };
        self.queued = self.queued.wrapping_add(1);
        self.in_flight += 1;
    }

    /// Hands over what is queued, in one system call.
    pub fn submit(&mut self) {
        self.hand_over(0);
    }

    /// The same, and waits until at least one transfer is completed, if any is in flight. A signal may end the wait.
    pub fn wait(&mut self) {
        self.hand_over(u32::from(!self.has_completed() && self.in_flight > 0));
    }

    /// Whether [`FileRing::completed`] has something.
    pub fn has_completed(&self) -> bool {
        let tail = self.rings.word(self.completion.tail).load(Ordering::Acquire);
        !self.refused.is_empty() || self.rings.word(self.completion.head).load(Ordering::Relaxed) != tail
    }

    /// The token of a transfer that ended, and how many bytes were moved: perhaps less than all.
    pub fn completed(&mut self) -> Option<(u64, io::Result<usize>)> {
        let (token, result) = self.refused.pop_front().or_else(|| self.take())?;
        self.in_flight -= 1;
        Some((token, usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))))
    }

    /// Takes the next completion off the ring.
    fn take(&mut self) -> Option<(u64, i32)> {
        let head = self.rings.word(self.completion.head).load(Ordering::Relaxed);
        // Acquire: what the kernel has written before, the completion and the guest's bytes, is seen after it.
        if head == self.rings.word(self.completion.tail).load(Ordering::Acquire) {
            return None;
        }
        let at = self.completion.cqes as usize + (head & self.mask.1) as usize * size_of::<io_uring_cqe>();
        let completion = self.rings.at(at).cast::<io_uring_cqe>();
        // SAFETY: it is in the mapping of the rings, and the kernel leaves it alone until the head has moved.
        let completion = unsafe { &*completion };
        let taken = (completion.user_data.u64_(), completion.res);
        // Release: the kernel may fill the place after it has been read.
        self.rings.word(self.completion.head).store(head.wrapping_add(1), Ordering::Release);
        Some(taken)
    }

    /// The RAM stays until nothing is in flight.
    fn hold(&mut self, ram: &Arc<GuestRam>) {
        if self.ram.as_ref().is_some_and(|held| Arc::ptr_eq(held, ram)) {
            return;
        }
        assert!(self.in_flight == 0, "transfers of two guests in one ring");
        self.ram = Some(Arc::clone(ram));
    }

    fn entry(&self, number: u32) -> *mut io_uring_sqe {
        self.entries.at((number & self.mask.0) as usize * size_of::<io_uring_sqe>()).cast()
    }

    /// Hands over all that is queued, and waits for so many completions.
    fn hand_over(&mut self, wait: u32) {
        // Release: the kernel sees the entries.
        self.rings.word(self.submission.tail).store(self.queued, Ordering::Release);
        let mut wait = wait;
        loop {
            let left = self.queued.wrapping_sub(self.handed);
            if left == 0 && wait == 0 {
                break;
            }
            match self.enter(left, wait) {
                Ok(taken) => {
                    self.handed = self.handed.wrapping_add(taken);
                    // What ended the wait was a completion, or a signal; it was not a reason to wait once more.
                    wait = 0;
                }
                Err(Errno::INTR) if left == 0 => break,
                Err(Errno::INTR) => {}
                // For want of the kernel's memory: what is with it gives some back when it ends.
                Err(Errno::AGAIN | Errno::BUSY) if self.in_flight > left && !self.has_completed() => wait = 1,
                Err(error) => {
                    self.refuse(error);
                    break;
                }
            }
        }
        self.buffers.clear();
    }

    fn enter(&self, submit: u32, wait: u32) -> rustix::io::Result<u32> {
        let flags = if wait > 0 { IoringEnterFlags::GETEVENTS } else { IoringEnterFlags::empty() };
        // SAFETY: every entry names proven ranges of the RAM that is held until the kernel has answered it, or a list of
        // them that lives until the call is over. The kernel copies, so the guest may use its RAM at the same time.
        unsafe { io_uring_enter(&self.fd, submit, wait, flags) }
    }

    /// Takes back what the kernel does not take. It reads the ring in `enter` only.
    fn refuse(&mut self, error: Errno) {
        let left = self.queued.wrapping_sub(self.handed);
        for n in 0..left {
            // SAFETY: the place is in the mapping of entries, and was written by `queue`.
            let entry = unsafe { self.entry(self.handed.wrapping_add(n)).read() };
            self.refused.push_back((entry.user_data.u64_(), -error.raw_os_error()));
        }
        self.queued = self.handed;
        self.rings.word(self.submission.tail).store(self.queued, Ordering::Release);
    }
}

impl AsFd for FileRing {
    /// Readable while something is completed.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for FileRing {
    /// Waits until the kernel does not use guest RAM any more.
    fn drop(&mut self) {
        while self.in_flight > 0 {
            self.wait();
            while self.completed().is_some() {}
        }
    }
}

/// Makes the ring, disabled. A kernel that does not know a hint makes it without.
fn set_up(depth: u32) -> io::Result<(OwnedFd, io_uring_params)> {
    let hints = IoringSetupFlags::COOP_TASKRUN | IoringSetupFlags::SUBMIT_ALL;
    let mut result = Err(Errno::INVAL);
    for flags in [hints, IoringSetupFlags::empty()] {
        let mut parameters = io_uring_params::default();
        parameters.flags = flags | IoringSetupFlags::R_DISABLED;
        // SAFETY: it attaches to no other ring; what comes back is ours.
        result = unsafe { io_uring_setup(depth, &mut parameters) }.map(|fd| (fd, parameters));
        if !matches!(result, Err(Errno::INVAL)) {
            break;
        }
    }
    Ok(result?)
}

/// Says for good what the ring may do, and enables it.
fn restrict(fd: &OwnedFd, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    type Value = register_or_sqe_op_or_sqe_flags_union;
    let mut rules = [io_uring_restriction::default(); CALLS.len() + 1];
    for (rule, sqe_op) in rules.iter_mut().zip(CALLS) {
        rule.opcode = IoringRestrictionOp::SqeOp;
        rule.register_or_sqe_op_or_sqe_flags = Value { sqe_op };
    }
    rules[CALLS.len()].opcode = IoringRestrictionOp::SqeFlagsRequired;
    rules[CALLS.len()].register_or_sqe_op_or_sqe_flags = Value { sqe_flags: IoringSqeFlags::FIXED_FILE };
    let files: Vec<i32> = files.iter().map(|file| file.as_raw_fd()).collect();
    // SAFETY: so many descriptors' numbers, which live through the call.
    unsafe { io_uring_register(fd, IoringRegisterOp::RegisterFiles, files.as_ptr().cast(), files.len() as u32) }?;
    // SAFETY: so many rules, which live through the call.
    unsafe {
        io_uring_register(fd, IoringRegisterOp::RegisterRestrictions, rules.as_ptr().cast(), rules.len() as u32)
    }?;
    // SAFETY: this one takes no memory.
    unsafe { io_uring_register(fd, IoringRegisterOp::RegisterEnableRings, ptr::null(), 0) }?;
    Ok(())
}

/// Memory that the kernel shares with us; unmapped on drop.
#[derive(Debug)]
struct Shared {
    start: *mut u8,
    len: usize,
}

impl Shared {
    fn map(fd: &OwnedFd, len: usize, what: u64) -> io::Result<Shared> {
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
        // SAFETY: at an address that the kernel chooses, so nothing else is there.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, access, flags, fd.as_raw_fd(), what as libc::off_t) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Shared { start: start.cast(), len })
    }

    fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.len, "{offset} in a mapping of {}", self.len);
        self.start.wrapping_add(offset)
    }

    /// An index of a ring.
    fn word(&self, offset: u32) -> &AtomicU32 {
        // SAFETY: it is in the mapping, which lives as long as the reference; the kernel aligns its words, and changes
        // them as atomics.
        unsafe { AtomicU32::from_ptr(self.at(offset as usize).cast()) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: it is ours, and no reference into it is left. An error leaves it mapped.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RamConfig;
    use axvm_arch::Gpa;
    use rustix::io_uring::IoringFsyncFlags;
    use std::fs::File;

    /// A ring over a file of 1 MiB; none on a host without.
    fn ring(depth: u32) -> Option<(FileRing, File, Arc<GuestRam>)> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        match FileRing::open(&[file.as_fd()], depth) {
            Ok(ring) => Some((ring, file, GuestRam::allocate(&RamConfig::new(8 << 20)).unwrap())),
            Err(error) => {
                println!("skipped: this host has no io_uring: {error}");
                None
            }
        }
    }

    /// All that is in flight, in the order of tokens.
    fn all(ring: &mut FileRing) -> Vec<(u64, Result<usize, Option<i32>>)> {
        let mut seen = Vec::new();
        while ring.in_flight() > 0 {
            ring.wait();
            while let Some((token, result)) = ring.completed() {
                seen.push((token, result.map_err(|error| error.raw_os_error())));
            }
        }
        seen.sort_unstable();
        seen
    }

    #[test]
    fn many_transfers_go_in_one_call_and_come_back_by_their_tokens() {
        let Some((mut ring, file, ram)) = ring(8) else { return };
        for round in 0..5u64 {
            for n in 0..8 {
                ram.write(Gpa(n * 4096), &(n + round + 1).to_le_bytes()).unwrap();
                let ranges = [ram.range(Gpa(n * 4096), 512).unwrap(), ram.range(Gpa(n * 4096 + 1024), 512).unwrap()];
                let ranges = if n % 2 == 0 { &ranges[..1] } else { &ranges[..] };
                let (direction, offset) = (Direction::Write, n * 4096);
                ring.queue(&ram, Transfer { file: 0, direction, ranges, offset, token: n });
            }
            assert!(!ring.has_room());
            let expected: Vec<_> = (0..8).map(|n| (n, Ok(512 * (n as usize % 2 + 1)))).collect();
            assert_eq!(all(&mut ring), expected);
            for n in 0..8 {
                let mut back = [0; 8];
                rustix::io::preadv(&file, &mut [io::IoSliceMut::new(&mut back)], n * 4096).unwrap();
                assert_eq!(u64::from_le_bytes(back), n + round + 1);
            }
        }
        let range = ram.range(Gpa(1 << 20), 4096).unwrap();
        let (direction, ranges) = (Direction::Read, &[range][..]);
        ring.queue(&ram, Transfer { file: 0, direction, ranges, offset: 4096, token: 7 });
        assert_eq!(all(&mut ring), [(7, Ok(4096))]);
        assert_eq!(ram.get::<u64>(&range, 0), 1 + 5);
    }

    #[test]
    fn the_end_of_a_file_is_a_short_read_and_an_error_is_told() {
        let Some((mut ring, _file, ram)) = ring(8) else { return };
        let ranges = [ram.range(Gpa(0), 4096).unwrap()];
        for (token, offset) in [(0, (1 << 20) - 512), (1, 1 << 20), (2, u64::MAX - 4096)] {
            ring.queue(&ram, Transfer { file: 0, direction: Direction::Read, ranges: &ranges, offset, token });
        }
        assert_eq!(all(&mut ring), [(0, Ok(512)), (1, Ok(0)), (2, Err(Some(libc::EINVAL)))]);
    }

    #[test]
    fn what_is_dropped_with_transfers_in_flight_waits_for_them() {
        let Some((mut ring, file, ram)) = ring(64) else { return };
        let ranges = [ram.range(Gpa(0), 4096).unwrap()];
        for token in 0..64 {
            let offset = token * 4096;
            ring.queue(&ram, Transfer { file: 0, direction: Direction::Write, ranges: &ranges, offset, token });
        }
        ring.submit();
        assert_eq!(Arc::strong_count(&ram), 2);
        drop(ring);
        assert_eq!(Arc::strong_count(&ram), 1);
        drop(file);
    }

    /// An attacker that has the process may fill the ring as it likes.
    #[test]
    fn a_ring_is_no_way_around_a_filter() {
        let Some((mut ring, file, _ram)) = ring(8) else { return };
        let outcome = |ring: &mut FileRing, opcode, fd, flags| {
            let mut entry = io_uring_sqe { opcode, fd, flags, ..Default::default() };
            entry.op_flags.fsync_flags = IoringFsyncFlags::empty();
            // SAFETY: the first free place of the mapping of entries.
            unsafe { ring.entry(ring.queued).write(entry) };
            ring.queued = ring.queued.wrapping_add(1);
            ring.in_flight += 1;
            all(ring)[0].1
        };
        let refused = Err(Some(libc::EACCES));
        let fixed = IoringSqeFlags::FIXED_FILE;
        use IoringOp::{Accept, Connect, Fsync, Nop, Openat, Openat2, PollAdd, Recv, Send, Socket, Splice, Unlinkat};
        for opcode in [Accept, Connect, Fsync, Nop, Openat, Openat2, PollAdd, Recv, Send, Socket, Splice, Unlinkat] {
            assert_eq!(outcome(&mut ring, opcode, 0, fixed), refused, "{opcode:?}");
        }
        assert_eq!(outcome(&mut ring, IoringOp::Read, file.as_raw_fd(), IoringSqeFlags::empty()), refused, "any file");
        assert_eq!(outcome(&mut ring, IoringOp::Read, 0, fixed | IoringSqeFlags::ASYNC), refused, "another flag");
        assert_eq!(outcome(&mut ring, IoringOp::Read, 1, fixed), Err(Some(libc::EBADF)), "a file that it has not");
        assert_eq!(outcome(&mut ring, IoringOp::Read, 0, fixed), Ok(0), "what it is for, of no bytes");
        let other = [0i32];
        for (what, count) in [(IoringRegisterOp::RegisterFiles, 1), (IoringRegisterOp::UnregisterFiles, 0)] {
            // SAFETY: one descriptor's number, which lives through the call.
            let result = unsafe { io_uring_register(&ring.fd, what, other.as_ptr().cast(), count) };
            assert_eq!(result, Err(Errno::ACCESS), "{what:?}");
        }
    }
}
