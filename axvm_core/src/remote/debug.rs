//! `axvm ctl MACHINE gdb`: a way for gdb to a machine that runs. `axvm gdb MACHINE` starts gdb with it.
//!
//! ```text
//!   gdb <--symbol-file-- memfd <-- GET /symbols
//!   gdb <--stdin, stdout--> axvm ctl NAME gdb <--socket pair, one end of it by PUT /gdb--> the machine's thread gdb
//! ```

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use axvm_api::Client;
use axvm_api::types::GuestSymbols;
use axvm_inspect::symbol_file;
use axvm_inspect::symbols::Symbols;
use axvm_sandbox::Role;
use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::Value;

use crate::cli::GdbArgs;
use crate::speech::tell;

/// Passes bytes on, both ways, until one side ends.
pub fn connect(client: &mut Client) -> Result<()> {
    let (ours, theirs) = UnixStream::pair().context("Cannot make a pair of sockets (see ulimit -n)")?;
    client.add::<Value>("/gdb", &(), &[theirs.as_fd()])?;
    drop(theirs);
    let typed = ours.try_clone().context("Cannot copy a descriptor (see ulimit -n)")?;
    let thread = axvm_sandbox::spawn(Role::Console, "typed".to_owned(), move || {
        // The end of either is the end of the session.
        let _ = pass(io::stdin().lock(), &typed);
        let _ = typed.shutdown(Shutdown::Write);
    });
    thread.context("Cannot start a thread (see ulimit -u)")?;
    pass(&ours, io::stdout().lock()).or_else(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Ok(()),
        _ => Err(error).context("The connection to the machine broke"),
    })
}

/// A file with the names of the guest's functions, for the program that is started from here alone.
fn names(socket: &Path) -> Result<OwnedFd> {
    let mut client = Client::connect(socket).context("Cannot ask the machine")?;
    let map = client.get::<GuestSymbols>("/symbols")?.map;
    let symbols = Symbols::read(&map.as_bytes())?;
    let mut file = File::from(memfd_create("symbols", MemfdFlags::empty()).context("Cannot make a file in memory")?);
    file.write_all(&symbol_file::elf(&symbols)).context("Cannot fill a file in memory")?;
    Ok(file.into())
}

/// As they come: a packet must not wait for the next one.
fn pass(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut bytes = [0; 16 << 10];
    loop {
        match from.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&bytes[..count]).and_then(|()| to.flush())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Becomes gdb, with the way to the machine set, and with the names of the guest's functions if the user has no file.
pub fn gdb(args: &GdbArgs) -> Result<u8> {
    let socket = super::find(&args.machine)?;
    let mut words = Vec::new();
    if args.gdb.first().is_none_or(|word| word.as_encoded_bytes().starts_with(b"-")) {
        match names(&socket) {
            // It reads a vmlinux of this machine's kernel, at the place where that is.
            Ok(file) => words.extend(["-ex".to_owned(), format!("symbol-file /proc/self/fd/{}", file.into_raw_fd())]),
            Err(why) => tell(format_args!("gdb gets no names of the guest's functions: {why:#}")),
        }
    }
    let axvm = std::env::current_exe().context("Cannot find this program, which gdb is to start")?;
    // gdb gives the line to a shell.
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let (axvm, socket) = (quoted(&axvm.to_string_lossy()), quoted(&socket.to_string_lossy()));
    let connect = format!("target remote | {axvm} ctl {socket} gdb");
    let error = Command::new("gdb").args(words).args(["-ex", &connect]).args(&args.gdb).exec();
    Err(error).context("Cannot start gdb; install it (Debian: apt install gdb)")
}
