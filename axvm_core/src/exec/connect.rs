//! Reaching the agent: through the socket at which the machine's vsock, or its port for the agent, has its end on the
//! host.
//!
//! ```text
//!   connect(PATH)    "CONNECT 348\n"  -->    <-- "OK 1073741824\n", and then bytes of the agent
//!                                            <-- closed: the guest is up, and no agent listens (yet)
//!                                            nothing: its driver is not there (yet)
//! ```
//!
//! The same line works with other monitors that have a vsock of this kind.
//!
//! Source: Firecracker's documentation, "Using the Firecracker Virtio-vsock Device".

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use axvm_exec::PORT;

/// Between two attempts: the agent may be about to start.
const PAUSE: Duration = Duration::from_millis(50);
/// Most bytes of an answer.
const LINE: usize = 64;

/// A connection to the agent of the guest at `socket`; it has until `until` to answer, which is `patience` in all.
pub fn to_agent(socket: &Path, until: Instant, patience: Duration) -> Result<UnixStream> {
    loop {
        let error = match attempt(socket, until) {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied => {
                bail!(
                    "Cannot connect to {}: {error}. Is the machine there, and is this the socket of its vsock?",
                    socket.display()
                )
            }
            ErrorKind::InvalidData => bail!("Cannot run a command by {}: {error}", socket.display()),
            _ if Instant::now() + PAUSE < until => thread::sleep(PAUSE),
            _ => bail!(
                "No agent answers in the guest after {} s: is axvm-agent started there (`axvm agent` writes it), and has \
                 its kernel vsock (CONFIG_VIRTIO_VSOCKETS, the module vmw_vsock_virtio_transport)? A guest that boots \
                 slowly needs a longer --wait, and so does one whose agent's port (--agent-port) another command has",
                patience.as_secs()
            ),
        }
    }
}

/// One attempt. Time over, or closed at once: the guest may be on its way.
fn attempt(socket: &Path, until: Instant) -> io::Result<UnixStream> {
    let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let mut stream = axvm_socket::connect(socket, left)?;
    stream.set_read_timeout(Some(left))?;
    stream.write_all(format!("CONNECT {PORT}\n").as_bytes())?;
    let mut line = Vec::new();
    // Byte by byte: what follows is the agent's.
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        if stream.read(&mut byte)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        line.push(byte[0]);
        if line.len() > LINE {
            break;
        }
    }
    if !line.starts_with(b"OK") {
        return Err(io::Error::new(ErrorKind::InvalidData, "what listens there is no vsock of a machine"));
    }
    stream.set_read_timeout(None)?;
    Ok(stream)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test starts threads of its own")]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn within(path: &Path, millis: u64) -> Result<UnixStream> {
        let patience = Duration::from_millis(millis);
        to_agent(path, Instant::now() + patience, patience)
    }

    /// What `to_agent` says of a socket that answers each client with the next of these, and then with none.
    fn told(answers: &'static [&'static str]) -> Result<String, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v");
        let listener = UnixListener::bind(&path).unwrap();
        let serving = thread::spawn(move || {
            for answer in answers {
                let (mut client, _) = listener.accept().unwrap();
                let mut command = [0; 12];
                client.read_exact(&mut command).unwrap();
                assert_eq!(&command, b"CONNECT 348\n");
                client.write_all(answer.as_bytes()).unwrap();
            }
            listener
        });
        let stream = within(&path, 400);
        let mut text = String::new();
        let done = stream.map(|mut stream| stream.read_to_string(&mut text));
        done.map(|_| text).map_err(|error| error.to_string()).inspect(|_| drop(serving.join()))
    }

    #[test]
    fn the_agent_is_waited_for_and_its_bytes_are_its_own() {
        assert_eq!(told(&["", "", "OK 1073741824\naxexec"]), Ok("axexec".into()));
    }

    #[test]
    fn what_is_no_vsock_and_no_machine_is_told_apart() {
        let error = told(&["HTTP/1.0 400 Bad Request\r\n"]).unwrap_err();
        assert!(error.contains("what listens there is no vsock of a machine"), "{error}");
        let error = within(Path::new("/none"), 0).unwrap_err().to_string();
        assert!(error.starts_with("Cannot connect to /none: No such file"), "{error}");
    }

    #[test]
    fn a_guest_without_an_agent_is_not_waited_for_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v");
        let _silent = UnixListener::bind(&path).unwrap();
        let error = within(&path, 100).unwrap_err().to_string();
        assert!(error.starts_with("No agent answers in the guest after 0 s"), "{error}");
    }
}
