//! Waiting for several descriptors at once.
//!
//! Source: poll(2), as `ppoll`, whose limit is in nanoseconds.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// Sleeps until at least one of `fds` is readable (or broken), or until `deadline`. For each of them, whether it is.
///
/// A signal does not end the sleep.
pub fn wait_any(fds: &[BorrowedFd<'_>], deadline: Option<Instant>) -> io::Result<Vec<bool>> {
    let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
        match poll(&mut polled, left.as_ref()) {
            Ok(_) => return Ok(polled.iter().map(|fd| !fd.revents().is_empty()).collect()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EventFd;
    use std::os::fd::AsFd;
    use std::time::Duration;

    #[test]
    fn it_says_which_are_ready_and_comes_back_in_time() {
        let events = [EventFd::new().unwrap(), EventFd::new().unwrap()];
        let fds = [events[0].as_fd(), events[1].as_fd()];
        let begin = Instant::now();
        let deadline = Some(begin + Duration::from_millis(20));
        assert_eq!(wait_any(&fds, deadline).unwrap(), [false, false]);
        assert!(begin.elapsed() >= Duration::from_millis(20));
        events[1].signal();
        assert_eq!(wait_any(&fds, None).unwrap(), [false, true]);
        assert_eq!(wait_any(&fds, Some(begin)).unwrap(), [false, true], "a deadline in the past is a look");
    }
}
