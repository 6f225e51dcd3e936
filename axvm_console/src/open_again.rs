//! A terminal or pipe opened once more, so that writing to it never waits.
//!
//! ```text
//!   the shell's --> [ description ]-----------------+--> terminal, pipe     blocking, as the shell wants it
//!   ours -------> [ description, O_NONBLOCK ] ------+
//! ```
//!
//! A stream that AxVM was started with shares its open file description with the program that started it, and O_NONBLOCK
//! belongs to the description: made non-blocking, it would be so for the shell, too. Nor does `poll` help a writer that
//! must not wait: another process may fill a pipe just after it was found to have room, and a terminal has room for a byte
//! and not for a line.
//!
//! Source: open(2), "Open file descriptions"; proc_pid_fd(5); pipe(7). Left out: files and devices, whose writes
//! may wait whatever the flag, and sockets, which cannot be opened.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::termios::isatty;

/// A descriptor of our own of the terminal or pipe at `fd`, which does not block. None for anything else, and where that is
/// not allowed: a terminal of another user, no /proc, a closed sandbox.
pub fn opened_again(fd: impl AsFd) -> Option<OwnedFd> {
    let fd = fd.as_fd();
    match FileType::from_raw_mode(fstat(fd).ok()?.st_mode) {
        FileType::Fifo => {}
        FileType::CharacterDevice if isatty(fd) => {}
        _ => return None,
    }
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    open(path, OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::fcntl_getfl;
    use rustix::io::Errno;

    #[test]
    fn a_pipe_does_not_block_us_and_blocks_the_others() {
        let (reader, writer) = std::io::pipe().unwrap();
        let own = opened_again(&writer).unwrap();
        assert!(fcntl_getfl(&own).unwrap().contains(OFlags::NONBLOCK));
        assert!(!fcntl_getfl(&writer).unwrap().contains(OFlags::NONBLOCK));
        let full = std::iter::repeat_with(|| rustix::io::write(&own, &[0; 4096])).find_map(Result::err);
        assert_eq!(full, Some(Errno::AGAIN));
        drop(reader);
        assert_eq!(rustix::io::write(&own, b"x"), Err(Errno::PIPE));
    }

    #[test]
    fn files_devices_and_sockets_stay_as_they_are() {
        for path in ["/proc/self/exe", "/dev/null"] {
            assert!(opened_again(std::fs::File::open(path).unwrap()).is_none(), "{path}");
        }
        assert!(opened_again(std::os::unix::net::UnixStream::pair().unwrap().0).is_none());
    }
}
