//! `--gdb`: a socket at which gdb finds the machine, one after the other.
//!
//! ```text
//!   open (before the sandbox closes) --> start: thread gdb --accept--> Debugger::serve, until gdb leaves --> accept ...
//! ```
//!
//! Source: gdb(1), "target remote". The protocol has no password: a port is this host's alone unless the user says more.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use anyhow::{Context, Result};
use axvm_sandbox::Role;
use axvm_socket::Socket;
use axvm_sync::wait_any;

use super::Debugger;
use crate::settings::GdbAt;
use crate::speech;

/// Where gdb comes in; dropped, the socket's file is removed.
pub struct GdbSocket {
    _socket: Option<Socket>,
}

/// The listening end.
enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    fn accept(&self) -> io::Result<OwnedFd> {
        match self {
            Listener::Unix(listener) => listener.accept().map(|(stream, _)| stream.into()),
            Listener::Tcp(listener) => listener.accept().map(|(stream, _)| stream.into()),
        }
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Unix(listener) => listener.as_fd(),
            Listener::Tcp(listener) => listener.as_fd(),
        }
    }
}

/// A socket that listens, before there is a debugger.
pub struct OpenedGdb(Listener, GdbSocket, String);

impl OpenedGdb {
    /// Listens at `place`.
    pub fn open(place: &GdbAt) -> Result<OpenedGdb> {
        Ok(match place {
            GdbAt::Unix(path) => {
                let socket = Socket::listen(path).context("Cannot listen for gdb (--gdb)")?;
                let listener = socket.listener().context("Cannot listen for gdb (--gdb)")?;
                OpenedGdb(Listener::Unix(listener), GdbSocket { _socket: Some(socket) }, path.display().to_string())
            }
            GdbAt::Tcp(address) => {
                let listen = || {
                    let listener = TcpListener::bind(address)?;
                    // Those that are accepted have it too: packets are short, and each waits for an answer.
                    rustix::net::sockopt::set_tcp_nodelay(&listener, true)?;
                    listener.set_nonblocking(true)?;
                    let at = listener.local_addr()?.to_string();
                    io::Result::Ok((listener, at))
                };
                let (listener, at) = listen().with_context(|| {
                    format!("Cannot listen for gdb at {address}; choose another port: --gdb tcp=PORT")
                })?;
                OpenedGdb(Listener::Tcp(listener), GdbSocket { _socket: None }, at)
            }
        })
    }

    /// Lets gdb in from now on, and says how.
    pub fn start(self, debugger: Arc<Debugger>) -> Result<GdbSocket> {
        let OpenedGdb(listener, socket, at) = self;
        let waits = if debugger.waits() { "The guest waits for gdb" } else { "gdb may come in" };
        speech::tell(format_args!("{waits}: gdb -ex 'target remote {at}'"));
        let thread = axvm_sandbox::spawn(Role::Gdb, "gdb".to_owned(), move || {
            while wait_any(&[listener.as_fd()], None).is_ok() {
                if let Ok(stream) = listener.accept()
                    && !debugger.serve(stream)
                {
                    let _ = speech::try_tell("another debugger is at this machine; one at a time");
                }
            }
        });
        thread.context("Cannot start a thread for gdb (see ulimit -u)")?;
        Ok(socket)
    }
}
