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

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::wake::Wake;

/// Bytes that each direction holds before its sender should wait.
pub const LIMIT: usize = 64 << 10;
/// What a device may send beyond, if its guest does not wait.
pub const OVERDRAFT: usize = 1 << 20;

/// Characters that fit on the screen; zero when nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

type Listener = Arc<dyn Fn() + Send + Sync>;

/// A console's port; clones are the same port.
#[derive(Clone)]
pub struct Port(Arc<Inner>);

struct Inner {
    queues: Mutex<Queues>,
    /// Called without a lock held.
    listener: Mutex<Option<Listener>>,
    output_ready: Wake,
    input_room: Wake,
}

#[derive(Default)]
struct Queues {
    output: VecDeque<u8>,
    input: VecDeque<u8>,
    lost: u64,
    size: Size,
}

impl Port {
    /// A port with empty queues.
    pub fn new() -> io::Result<Port> {
        let (output_ready, input_room) = (Wake::new()?, Wake::new()?);
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
        drop(queues);
        if was_empty && taken > 0 {
            self.0.output_ready.set();
        }
        taken
    }

    /// Bytes of output that are welcome now.
    pub fn room(&self) -> usize {
        LIMIT.saturating_sub(self.queues().output.len())
    }

    /// Counts output that found no place.
    pub fn count_lost(&self, count: usize) {
        self.queues().lost += count as u64;
    }

    /// Fills `buffer` with input; how many bytes there were.
    pub fn receive(&self, buffer: &mut [u8]) -> usize {
        let mut queues = self.queues();
        let count = buffer.len().min(queues.input.len());
        let was_full = queues.input.len() >= LIMIT;
        for (byte, typed) in buffer.iter_mut().zip(queues.input.drain(..count)) {
            *byte = typed;
        }
        drop(queues);
        if was_full && count > 0 {
            self.0.input_room.set();
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
        self.0.input_room.clear();
        let taken = bytes.len().min(LIMIT.saturating_sub(queues.input.len()));
        queues.input.extend(&bytes[..taken]);
        drop(queues);
        if taken > 0 {
            self.call();
        }
        taken
    }

    /// Readable once a full input queue has room again.
    pub fn input_room(&self) -> &Wake {
        &self.0.input_room
    }

    /// Moves all output to the end of `to`; how many bytes. [`Port::output_ready`] is quiet until there is more.
    pub fn take(&self, to: &mut Vec<u8>) -> usize {
        let mut queues = self.queues();
        self.0.output_ready.clear();
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

    /// Readable while there is output.
    pub fn output_ready(&self) -> &Wake {
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
        assert!(port.output_ready().clear());
        let mut taken = Vec::new();
        assert_eq!(port.take(&mut taken), LIMIT + 4);
        assert_eq!((port.room(), calls.load(Ordering::Relaxed)), (LIMIT, 1));
        assert!(!port.output_ready().clear());
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
        assert!(!port.input_room().clear());
        let mut buffer = [0; 16];
        assert_eq!(port.receive(&mut buffer), 16);
        assert!(port.input_room().clear());
        assert_eq!((buffer[0], port.pending()), (b'y', LIMIT - 16));
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
}
