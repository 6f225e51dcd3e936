//! How AxVM speaks: answers on standard output, everything else on standard error.
//!
//! ```text
//!   print     an answer   --> stdout                        waits; a reader that has seen enough is no error
//!   tell      one line    --> [ lines, 64 KiB ] --> stderr  waits a while; lost if it cannot be written
//!   show      some lines  --> the same, without "axvm: "    the same
//!   try_tell  one line    --> [ lines, 64 KiB ]             never waits; says what became of it
//! ```
//!
//! There may be no reader: `axvm ps | head -1` closes the pipe early, a service may outlive the program that reads its
//! errors. Neither is a reason to stop, least of all for a machine that runs. (The standard library's `print!` and
//! `eprint!` panic.)
//!
//! While a machine runs, a terminal or pipe is written through a descriptor of our own that does not block
//! ([`opened_again`]), by the thread that has something to say; what finds no room is written by the main thread, which looks
//! again and again ([`catch_up`]). A write to a file or a socket may wait: there a thread `stderr` does it.
//!
//! A terminal gets lines that end between words; files and programs get each line whole.

use std::collections::VecDeque;
use std::env;
use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use axvm_console::opened_again;
use axvm_inspect::wrap::wrapped;
use axvm_sandbox::Role;
use axvm_sync::{EventFd, lock};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// Bytes that may wait for a slow reader of standard error.
const QUEUE_LEN: usize = 64 << 10;
/// How long an important line, or the end of AxVM, waits for a reader that takes nothing.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often to look whether a slow reader took something.
const SLOW: Duration = Duration::from_millis(50);

/// Who speaks.
const SENDER: &str = "axvm: ";

/// Columns of standard error, set by [`begin`]: threads of a machine that runs may not ask.
static COLUMNS: OnceLock<Option<usize>> = OnceLock::new();
/// Lines on their way to standard error; set by [`start_writer`].
static LINES: OnceLock<&'static Lines> = OnceLock::new();

struct Lines {
    queue: Mutex<LineQueue>,
    changed: Condvar,
    /// Standard error, if it can be written without waiting; otherwise the thread writes.
    own: Option<OwnedFd>,
    /// Signalled when lines are left that found no room.
    behind: EventFd,
}

#[derive(Default)]
struct LineQueue {
    lines: VecDeque<Vec<u8>>,
    /// So many bytes of the first are written.
    written: usize,
    /// Bytes of all lines, with those of the line that is being written.
    len: usize,
    /// Lines that could not be written and were not asked for.
    lost: u64,
}

/// Looks where lines go, as long as that is allowed.
pub fn begin() {
    COLUMNS.get_or_init(|| columns(io::stderr()));
}

/// Standard error as it will be written while a machine runs. Before the sandbox closes.
pub fn open() -> io::Result<SpeechOutput> {
    Ok(SpeechOutput(opened_again(io::stderr()), EventFd::new()?))
}

/// Standard error, opened for [`start_writer`].
pub struct SpeechOutput(Option<OwnedFd>, EventFd);

/// From now on no line waits for its reader. Before that, [`tell`] and [`try_tell`] write themselves.
pub fn start_writer(SpeechOutput(own, behind): SpeechOutput) -> io::Result<()> {
    // For as long as the process: a thread may wait in a write when it ends.
    let lines: &Lines = Box::leak(Box::new(Lines { queue: Mutex::default(), changed: Condvar::new(), own, behind }));
    if lines.own.is_none() {
        axvm_sandbox::spawn(Role::Console, "stderr", || lines.write_all())?;
    }
    let _ = LINES.set(lines);
    Ok(())
}

/// Readable when a line found no room: call [`catch_up`] then.
pub fn behind() -> Option<BorrowedFd<'static>> {
    LINES.get().map(|lines| lines.behind.as_fd())
}

/// Writes what finds room now; when to do so again, if lines are left.
pub fn catch_up() -> Option<Instant> {
    let lines = LINES.get()?;
    let own = lines.own.as_ref()?;
    let mut queue = lock(&lines.queue);
    lines.behind.take();
    queue.write(own);
    (queue.len > 0).then(|| Instant::now() + SLOW)
}

/// Waits until all is written that was said; not long for a reader that takes nothing.
pub fn finish() {
    if let Some(lines) = LINES.get() {
        lines.settle();
    }
}

impl LineQueue {
    /// Adds a line if there is room.
    fn push(&mut self, line: Vec<u8>) -> TellOutcome {
        if self.len + line.len() > QUEUE_LEN {
            return TellOutcome::WouldWait;
        }
        self.len += line.len();
        self.lines.push_back(line);
        TellOutcome::Told
    }

    /// Writes as much as there is room for, to what does not block.
    fn write(&mut self, to: &OwnedFd) {
        while let Some(line) = self.lines.front() {
            match rustix::io::write(to, &line[self.written..]) {
                Ok(count) => self.written += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    self.lost += 1;
                    self.written = line.len();
                }
            }
            if self.written == line.len() {
                self.len -= line.len();
                self.lines.pop_front();
                self.written = 0;
            }
        }
    }
}

impl Lines {
    fn write_all(&self) -> ! {
        let mut queue = lock(&self.queue);
        loop {
            let Some(line) = queue.lines.pop_front() else {
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(queue);
            let written = write_waiting(&line);
            queue = lock(&self.queue);
            queue.len -= line.len();
            queue.lost += u64::from(written.is_err());
            self.changed.notify_all();
        }
    }

    /// Adds a line if there is room, and sees to it that it is written.
    fn say(&self, line: Vec<u8>) -> TellOutcome {
        let mut queue = lock(&self.queue);
        let outcome = queue.push(line);
        match &self.own {
            Some(own) => {
                queue.write(own);
                if queue.len > 0 {
                    self.behind.signal();
                }
            }
            None => self.changed.notify_all(),
        }
        outcome
    }

    /// Waits until all is written, as long as something is.
    fn settle(&self) {
        let mut queue = lock(&self.queue);
        while queue.len > 0 {
            let before = queue.len + queue.written;
            let (waited, timed_out) = self.wait(queue);
            queue = waited;
            if queue.len + queue.written == before && timed_out {
                return;
            }
        }
    }

    /// Waits until something may have been written; whether the time was over.
    fn wait<'a>(&'a self, queue: MutexGuard<'a, LineQueue>) -> (MutexGuard<'a, LineQueue>, bool) {
        let Some(own) = &self.own else {
            let (queue, result) = self.changed.wait_timeout(queue, PATIENCE).unwrap_or_else(PoisonError::into_inner);
            return (queue, result.timed_out());
        };
        drop(queue);
        let ready = poll(&mut [PollFd::new(own, PollFlags::OUT)], Timespec::try_from(PATIENCE).ok().as_ref());
        let mut queue = lock(&self.queue);
        queue.write(own);
        (queue, ready == Ok(0))
    }
}

/// Writes all of a line, however long that takes.
fn write_waiting(mut line: &[u8]) -> Result<(), Errno> {
    let stderr = io::stderr();
    while !line.is_empty() {
        // Past the standard library's lock: another thread may panic, and must not wait.
        match rustix::io::write(&stderr, line) {
            Ok(count) => line = &line[count..],
            Err(Errno::INTR) => {}
            // Another process made it non-blocking.
            Err(Errno::AGAIN) => drop(poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], None)),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Says one line on standard error; lost if it cannot be written.
pub fn tell(words: impl Display) {
    say(line(words));
}

/// Shows text of several lines on standard error, as it is.
pub fn show(text: impl Display) {
    let text = text.to_string();
    let raw = axvm_console::is_raw() && COLUMNS.get().copied().flatten().is_some();
    say(if raw { text.replace('\n', "\r\n") } else { text }.into_bytes());
}

fn say(line: Vec<u8>) {
    match LINES.get() {
        None => drop(io::stderr().write_all(&line)),
        Some(lines) => {
            lines.settle();
            lines.say(line);
            lines.settle();
        }
    }
}

/// What became of a line of [`try_tell`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TellOutcome {
    /// It is written, or on its way.
    Told,
    /// The reader is slow, and enough lines wait for it.
    WouldWait,
    /// It cannot be written: the reader is gone, or a disk is full.
    Failed,
}

/// Says one line on standard error without waiting for its reader. For threads that must not wait.
pub fn try_tell(words: impl Display) -> TellOutcome {
    let line = line(words);
    match LINES.get() {
        Some(lines) => lines.say(line),
        // Only the main thread is there yet, and sets up.
        None => match poll(&mut [PollFd::new(&io::stderr(), PollFlags::OUT)], Some(&Timespec::default())) {
            Ok(0) | Err(Errno::INTR) => TellOutcome::WouldWait,
            Err(_) => TellOutcome::Failed,
            Ok(_) => write_waiting(&line).map_or(TellOutcome::Failed, |()| TellOutcome::Told),
        },
    }
}

/// Lines that [`try_tell`] took and that could not be written, since the last call.
pub fn take_lost() -> u64 {
    LINES.get().map_or(0, |lines| std::mem::take(&mut lock(&lines.queue).lost))
}

fn line(words: impl Display) -> Vec<u8> {
    let columns = COLUMNS.get().copied().flatten();
    // A raw terminal only feeds the line.
    let end = if axvm_console::is_raw() && columns.is_some() { "\r\n" } else { "\n" };
    spoken(&words.to_string(), columns, end).into_bytes()
}

/// The words with their sender; on a terminal, with as many line ends as its width asks for.
fn spoken(words: &str, columns: Option<usize>, end: &str) -> String {
    let width = columns.map_or(usize::MAX, |columns| columns.saturating_sub(SENDER.len()).max(LEAST_COLUMNS));
    let between = format!("{end}{:1$}", "", SENDER.len());
    format!("{SENDER}{}{end}", wrapped(words, width).join(&between))
}

/// Columns that words have on the narrowest terminal.
const LEAST_COLUMNS: usize = 20;
/// Columns of a terminal that does not tell.
const USUAL_COLUMNS: usize = 80;

/// Columns of a terminal; none if it is something else.
pub fn columns(of: impl AsFd + IsTerminal) -> Option<usize> {
    let told = || rustix::termios::tcgetwinsize(&of).map_or(0, |size| usize::from(size.ws_col));
    of.is_terminal().then(|| match told() {
        0 => USUAL_COLUMNS,
        columns => columns,
    })
}

/// Whether what is printed there may have colours.
pub fn colour(of: impl IsTerminal) -> bool {
    let unwanted = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    of.is_terminal() && !unwanted && env::var_os("TERM").is_some_and(|kind| kind != "dumb")
}

/// Prints an answer on standard output. A reader that has seen enough is no error.
pub fn print(answer: impl AsRef<[u8]>) -> io::Result<()> {
    let why = |error: io::Error| {
        let remedy = "send standard output to a place that can be written";
        io::Error::new(error.kind(), format!("Cannot print the answer: {error}; {remedy}"))
    };
    write(answer).map_err(why)
}

/// The same; what the kernel said is the error.
pub fn write(answer: impl AsRef<[u8]>) -> io::Result<()> {
    let mut to = io::stdout().lock();
    match to.write_all(answer.as_ref()).and_then(|()| to.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_short_lines_and_a_file_whole_ones() {
        let words = "the first disk has no end";
        assert_eq!(spoken(words, Some(26), "\r\n"), "axvm: the first disk has\r\n      no end\r\n");
        assert_eq!(spoken(words, Some(3), "\n"), "axvm: the first disk has\n      no end\n");
        assert_eq!(spoken(words, None, "\n"), "axvm: the first disk has no end\n");
    }

    #[test]
    fn lines_wait_up_to_a_limit_and_no_caller_does() {
        let mut lines = LineQueue::default();
        let line = || vec![b'x'; 1000];
        for n in 0..QUEUE_LEN / 1000 {
            assert_eq!(lines.push(line()), TellOutcome::Told, "line {n}");
        }
        assert_eq!(lines.push(line()), TellOutcome::WouldWait);
    }
}
