//! Telling the service manager that started AxVM how far the machine is.
//!
//! ```text
//!   vCPUs run   READY=1     --+--> one datagram each --> the socket that NOTIFY_SOCKET names
//!   power-off   STOPPING=1  --+                          /run/systemd/notify, or @name (abstract)
//! ```
//!
//! A machine is ready when its vCPUs run: all that the host can refuse has then been given. When Linux in it is up
//! is the guest's own business, and only the guest could tell.
//!
//! Without NOTIFY_SOCKET nothing is sent. The variable stays set: AxVM starts no other programs.
//!
//! Source: sd_notify(3), systemd 252. Left out: STATUS (what a guest does, only the guest knows), MAINPID (the
//! service manager started us), WATCHDOG, file descriptors, vsock addresses; a socket that appears later, because a
//! connection is made once, before the sandbox closes.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use thiserror::Error;

/// The service manager learns nothing; the machine goes on.
#[derive(Debug, Error)]
#[error("Cannot {attempt} the service manager at {socket:?} (NOTIFY_SOCKET): {source}")]
pub struct NotifyError {
    attempt: &'static str,
    socket: OsString,
    source: io::Error,
}

/// How far a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceState {
    /// The vCPUs run.
    Ready,
    /// The machine is ending.
    Stopping,
}

/// The way to the service manager, if there is one. Made before the sandbox: what is connected stays within reach.
#[derive(Debug, Default)]
pub struct Notifier(Option<(UnixDatagram, OsString)>);

impl Notifier {
    /// To the socket that NOTIFY_SOCKET names. A failure is for the verbose log, not a reason to stop; then nothing is
    /// sent.
    pub fn from_env() -> Result<Notifier, NotifyError> {
        Notifier::to(std::env::var_os("NOTIFY_SOCKET"))
    }

    /// To `socket`: a path, or `@name` for an abstract one; to no socket when it is `None` or empty.
    pub fn to(socket: Option<OsString>) -> Result<Notifier, NotifyError> {
        let Some(socket) = socket.filter(|name| !name.is_empty()) else {
            return Ok(Notifier::default());
        };
        match connect(&socket) {
            Ok(connected) => Ok(Notifier(Some((connected, socket)))),
            Err(source) => Err(NotifyError { attempt: "connect to", socket, source }),
        }
    }

    /// Sends one state.
    pub fn tell(&self, state: ServiceState) -> Result<(), NotifyError> {
        let Some((connected, socket)) = &self.0 else {
            return Ok(());
        };
        let (message, attempt) = match state {
            ServiceState::Ready => ("READY=1", "send READY=1 to"),
            ServiceState::Stopping => ("STOPPING=1", "send STOPPING=1 to"),
        };
        let error = |source| NotifyError { attempt, socket: socket.clone(), source };
        connected.send(message.as_bytes()).map(drop).map_err(error)
    }
}

/// Sending never waits for a receiver that is busy.
fn connect(socket: &OsStr) -> io::Result<UnixDatagram> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(socket)?,
        _ => return Err(io::Error::new(io::ErrorKind::Unsupported, "neither a path from / nor @name")),
    };
    let from = UnixDatagram::unbound()?;
    from.set_nonblocking(true)?;
    from.connect_addr(&address)?;
    Ok(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(listener: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let len = listener.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    }

    #[test]
    fn each_state_is_one_datagram() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::to(Some(path.into())).unwrap();
        for (state, text) in [(ServiceState::Ready, "READY=1"), (ServiceState::Stopping, "STOPPING=1")] {
            notifier.tell(state).unwrap();
            assert_eq!(received(&listener), text);
        }
    }

    #[test]
    fn an_abstract_socket_is_found() {
        let name = format!("axvm-notify-{}", std::process::id());
        let listener = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        Notifier::to(Some(format!("@{name}").into())).unwrap().tell(ServiceState::Ready).unwrap();
        assert_eq!(received(&listener), "READY=1");
    }

    #[test]
    fn without_a_service_manager_nothing_is_sent() {
        assert!(Notifier::default().tell(ServiceState::Ready).is_ok());
        assert!(Notifier::to(Some("".into())).unwrap().tell(ServiceState::Ready).is_ok());
    }

    #[test]
    fn a_socket_that_cannot_be_reached_is_told_with_its_name() {
        for socket in ["/no/such/socket", "relative"] {
            let error = Notifier::to(Some(socket.into())).unwrap_err().to_string();
            assert!(error.contains(socket) && error.contains("connect to"), "{error}");
        }
    }

    #[test]
    fn a_service_manager_that_does_not_read_holds_up_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let _silent = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::to(Some(path.into())).unwrap();
        assert!((0..100_000).any(|_| notifier.tell(ServiceState::Ready).is_err()), "the queue of a socket has an end");
    }
}
