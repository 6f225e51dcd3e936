//! The seam between a console device and the host: two queues of bytes that never block a vCPU.
//!
//! ```text
//!   device: send    --> output, 64 KiB (+ 1 MiB overdraft) --> take    : host
//!   device: receive <-- input,  64 KiB                     <-- put     : host
//!           listener <-- "input came", "there is room again", "the size changed"
//! ```
//!
//! A device that sees no [`Port::room`] holds its guest back: the UART by a busy transmitter, virtio-console by
//! keeping the buffer. A guest that sends all the same (Linux does after 10 ms a byte) draws on the overdraft.
//!
//! What waits in it is part of the machine: [`Port::state`]. No specification: the seam is AxVM's own.
//! Left out: what the bytes mean, and who is attached.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use axvm_sync::{EventFd, lock};

use crate::input::Input;
use crate::{PortState, PortStateError, Size};

/// Bytes that each direction holds before its sender should wait.
pub const LIMIT: usize = 64 << 10;
/// What a device may send beyond, if its guest does not wait.
pub const OVERDRAFT: usize = 1 << 20;

type Listener = Arc<dyn Fn() + Send + Sync>;

/// A console's port; clones are the same port.
#[derive(Clone)]
pub struct Port(Arc<Inner>);

struct Inner {
    queues: Mutex<Queues>,
    /// Called without a lock held.
    listener: Mutex<Option<Listener>>,
    output_ready: EventFd,
    input_room: EventFd,
}

#[derive(Default)]
struct Queues {
    output: VecDeque<u8>,
    input: Input,
    lost: u64,
    size: Size,
    /// The device has sent something.
    spoken: bool,
}

impl Port {
    /// A port with empty queues.
    pub fn new() -> io::Result<Port> {
        let (output_ready, input_room) = (EventFd::new()?, EventFd::new()?);
        Ok(Port(Arc::new(Inner { queues: Default::default(), listener: Default::default(), output_ready, input_room })))
    }

    // The device's side.

    /// Calls `listener` from now on, instead of an earlier one, whenever input came, room was made for output, or the
    /// size changed. It may be called from any host thread, and also when nothing changed; it must not block.
    pub fn connect(&self, listener: impl Fn() + Send + Sync + 'static) {
        *lock(&self.0.listener) = Some(Arc::new(listener));
    }

    /// Takes the guest's output: how many of `bytes` there was place for. The rest is lost, and counted, unless the
    /// caller sends it again.
    pub fn send(&self, bytes: &[u8]) -> usize {
        let mut queues = self.queues();
        let taken = bytes.len().min((LIMIT + OVERDRAFT).saturating_sub(queues.output.len()));
        let was_empty = queues.output.is_empty();
        queues.output.extend(&bytes[..taken]);
        queues.spoken |= taken > 0;
        drop(queues);
        if was_empty && taken > 0 {
            self.0.output_ready.signal();
        }
        taken
    }

    /// Bytes of output that are welcome now.
    pub fn room(&self) -> usize {
        LIMIT.saturating_sub(self.queues().output.len())
    }

    /// Whether there ever was output.
    pub fn has_spoken(&self) -> bool {
        self.queues().spoken
    }

    /// Counts output that found no place.
    pub fn count_lost(&self, count: usize) {
        let mut queues = self.queues();
        queues.lost = queues.lost.saturating_add(count as u64);
    }

    /// Fills `buffer` with input; how many bytes there were. For a device that knows no breaks: it gets none.
    pub fn receive(&self, buffer: &mut [u8]) -> usize {
        self.take_input(|input| {
            let mut typed = std::iter::from_fn(|| input.pop()).flatten();
            buffer.iter_mut().map_while(|byte| typed.next().map(|typed| *byte = typed)).count()
        })
    }

    /// The same for a serial line, where a break is a NUL with a mark: of the first 64 bytes, the bits of those that are.
    pub fn receive_with_breaks(&self, buffer: &mut [u8]) -> (usize, u64) {
        let mut breaks = 0;
        let count = self.take_input(|input| {
            let mut count = 0;
            for (byte, typed) in buffer.iter_mut().take(64).zip(std::iter::from_fn(|| input.pop())) {
                *byte = typed.unwrap_or(0);
                breaks |= u64::from(typed.is_none()) << count;
                count += 1;
            }
            count
        });
        (count, breaks)
    }

    fn take_input(&self, take: impl FnOnce(&mut Input) -> usize) -> usize {
        let mut queues = self.queues();
        let was_full = queues.input.len() >= LIMIT;
        let count = take(&mut queues.input);
        let has_room = queues.input.len() < LIMIT;
        drop(queues);
        if was_full && has_room {
            self.0.input_room.signal();
        }
        count
    }

    /// Bytes of input that wait.
    pub fn pending(&self) -> usize {
        self.queues().input.len()
    }

    /// The screen's size.
    pub fn size(&self) -> Size {
        self.queues().size
    }

    // The host's side.

    /// Hands input to the device: how many of `bytes` there was room for. The caller keeps the rest until
    /// [`Port::input_room`] is readable.
    pub fn put(&self, bytes: &[u8]) -> usize {
        let mut queues = self.queues();
        self.0.input_room.take();
        let taken = bytes.len().min(LIMIT.saturating_sub(queues.input.len()));
        queues.input.extend(&bytes[..taken]);
        drop(queues);
        if taken > 0 {
            self.call();
        }
        taken
    }

    /// Breaks the line once, as a terminal does on request; a line that is full loses it.
    pub fn put_break(&self) {
        let mut typed = Input::default();
        typed.push_break();
        self.put_input(&mut typed);
    }

    /// The same with breaks: takes from `typed` what there is room for.
    pub(crate) fn put_input(&self, typed: &mut Input) {
        let mut queues = self.queues();
        self.0.input_room.take();
        let room = LIMIT.saturating_sub(queues.input.len());
        let some = typed.move_to(&mut queues.input, room);
        drop(queues);
        if some {
            self.call();
        }
    }

    /// Readable once a full input queue has room again.
    pub fn input_room(&self) -> &EventFd {
        &self.0.input_room
    }

    /// Moves all output to the end of `to`; how many bytes. [`Port::output_ready`] is quiet until there is more.
    pub fn take(&self, to: &mut Vec<u8>) -> usize {
        let mut queues = self.queues();
        self.0.output_ready.take();
        let count = queues.output.len();
        let (front, back) = queues.output.as_slices();
        to.extend_from_slice(front);
        to.extend_from_slice(back);
        queues.output.clear();
        if queues.output.capacity() > 2 * LIMIT {
            queues.output.shrink_to(LIMIT);
        }
        drop(queues);
        if count >= LIMIT {
            self.call();
        }
        count
    }

    /// A copy of the output that waits.
    pub fn untaken(&self) -> Vec<u8> {
        self.queues().output.iter().copied().collect()
    }

    /// Readable while there is output.
    pub fn output_ready(&self) -> &EventFd {
        &self.0.output_ready
    }

    /// Output that found no place since the port was made, in bytes.
    pub fn lost(&self) -> u64 {
        self.queues().lost
    }

    /// The screen has this size now.
    pub fn resize(&self, size: Size) {
        let before = std::mem::replace(&mut self.queues().size, size);
        if before != size {
            self.call();
        }
    }

    // The machine's side, while it is paused.

    /// What waits in both directions, and what the device knows.
    pub fn state(&self) -> PortState {
        let queues = self.queues();
        let (input, breaks) = queues.input.parts();
        PortState {
            output: queues.output.iter().copied().collect(),
            input,
            breaks,
            lost: queues.lost,
            size: queues.size,
        }
    }

    /// Makes a fresh port what `state` says; before the state of its device is restored, which looks into it.
    ///
    /// What the host put in meanwhile comes behind the input of the state. The screen keeps its size, if it has one, and
    /// the listener is told that it is another than the guest knows.
    pub fn restore(&self, state: PortState) -> Result<(), PortStateError> {
        state.check(LIMIT + OVERDRAFT, LIMIT)?;
        let mut queues = self.queues();
        prepend(&mut queues.output, state.output);
        let mut later = std::mem::replace(&mut queues.input, Input::new(state.input, state.breaks));
        later.move_to(&mut queues.input, usize::MAX);
        queues.lost = queues.lost.saturating_add(state.lost);
        let (now, known) = (queues.size, state.size);
        if now == Size::default() {
            queues.size = known;
        }
        let (has_output, resized) = (!queues.output.is_empty(), queues.size != known);
        drop(queues);
        if has_output {
            self.0.output_ready.signal();
        }
        if resized {
            self.call();
        }
        Ok(())
    }

    fn call(&self) {
        let listener = lock(&self.0.listener).clone();
        if let Some(listener) = listener {
            listener();
        }
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        lock(&self.0.queues)
    }
}

/// Puts `bytes` before what `queue` holds.
fn prepend(queue: &mut VecDeque<u8>, bytes: Vec<u8>) {
    let later = std::mem::replace(queue, bytes.into());
    queue.extend(later);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn output_waits_for_the_host_and_says_when_there_is_room() {
        let port = Port::new().unwrap();
        let calls = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&calls);
        port.connect(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(port.send(&vec![b'x'; LIMIT]), LIMIT);
        assert_eq!(port.room(), 0);
        assert_eq!(port.send(b"more"), 4, "the overdraft takes what a guest sends all the same");
        assert!(port.output_ready().take());
        let mut taken = Vec::new();
        assert_eq!(port.take(&mut taken), LIMIT + 4);
        assert_eq!((port.room(), calls.load(Ordering::Relaxed)), (LIMIT, 1));
        assert!(!port.output_ready().take());
    }

    #[test]
    fn a_flood_is_bounded() {
        let port = Port::new().unwrap();
        let flood = vec![0; 4 << 20];
        assert_eq!(port.send(&flood), LIMIT + OVERDRAFT);
        assert_eq!(port.send(&flood), 0);
    }

    #[test]
    fn input_is_bounded_and_says_when_there_is_room() {
        let port = Port::new().unwrap();
        assert_eq!(port.put(&vec![b'y'; LIMIT + 1]), LIMIT);
        assert_eq!(port.put(b"z"), 0);
        assert!(!port.input_room().take());
        let mut buffer = [0; 16];
        assert_eq!(port.receive(&mut buffer), 16);
        assert!(port.input_room().take());
        assert_eq!((buffer[0], port.pending()), (b'y', LIMIT - 16));
    }

    #[test]
    fn breaks_are_marked_bytes_on_a_line_and_nothing_elsewhere() {
        let port = Port::new().unwrap();
        let mut buffer = [7; 8];
        port.put(b"a");
        port.put_break();
        port.put(b"h");
        assert_eq!((port.pending(), port.receive_with_breaks(&mut buffer[..2])), (3, (2, 0b10)));
        assert_eq!(buffer[..2], *b"a\0");
        port.put_break();
        port.put(b"x");
        let other = Port::new().unwrap();
        other.restore(port.state()).unwrap();
        assert_eq!((other.receive(&mut buffer), &buffer[..2]), (2, &b"hx"[..]));
        assert_eq!(port.receive_with_breaks(&mut buffer), (3, 0b10));
    }

    #[test]
    fn a_new_size_calls_the_listener_once() {
        let port = Port::new().unwrap();
        let calls = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&calls);
        port.connect(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        let size = Size { columns: 80, rows: 25 };
        port.resize(size);
        port.resize(size);
        assert_eq!((port.size(), calls.load(Ordering::Relaxed)), (size, 1));
    }

    #[test]
    fn what_waits_comes_along_before_what_comes_later() {
        let port = Port::new().unwrap();
        port.resize(Size { columns: 80, rows: 25 });
        port.send(b"log");
        port.put(b"ro");
        port.count_lost(7);
        let state = port.state();

        let other = Port::new().unwrap();
        other.put(b"ot");
        other.restore(state.clone()).unwrap();
        assert!(other.output_ready().take());
        let (mut input, mut output) = ([0; 4], Vec::new());
        assert_eq!((other.receive(&mut input), other.take(&mut output)), (4, 3));
        assert_eq!((&input, &output[..], other.lost(), other.size()), (b"root", &b"log"[..], 7, state.size));
    }

    #[test]
    fn a_screen_of_another_size_is_told_to_the_device() {
        let known = Size { columns: 80, rows: 25 };
        for (size, told) in [(Size::default(), 0), (known, 0), (Size { columns: 132, rows: 43 }, 1)] {
            let port = Port::new().unwrap();
            port.resize(size);
            let calls = Arc::new(AtomicUsize::new(0));
            let counter = Arc::clone(&calls);
            port.connect(move || {
                counter.fetch_add(1, Ordering::Relaxed);
            });
            port.restore(PortState { size: known, ..PortState::default() }).unwrap();
            assert_eq!(calls.load(Ordering::Relaxed), told, "{size:?}");
        }
    }

    #[test]
    fn full_queues_are_restored_and_longer_ones_refused() {
        let port = Port::new().unwrap();
        let full = PortState { output: vec![b'x'; LIMIT + OVERDRAFT], input: vec![b'y'; LIMIT], ..Default::default() };
        for (field, state) in [
            ("output", PortState { output: vec![0; LIMIT + OVERDRAFT + 1], ..full.clone() }),
            ("input", PortState { input: vec![0; LIMIT + 1], ..full.clone() }),
            ("breaks", PortState { input: vec![0; 2], breaks: vec![1, 3], ..full.clone() }),
        ] {
            let error = port.restore(state).unwrap_err();
            assert_eq!((error.field, error.found), (field, error.limit + 1));
            assert_eq!(port.state(), PortState::default(), "nothing of it was taken");
        }
        port.restore(full.clone()).unwrap();
        assert_eq!((port.room(), port.put(b"z"), port.send(b"z")), (0, 0, 0));
        assert_eq!(port.state(), full);
    }
}
