//! A terminal for AxVM: a pseudo-terminal that a session of its own has as its controlling one.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, Winsize, tcgetattr, tcsetattr, tcsetwinsize,
};

use super::{Axvm, Place, Talk};

pub struct Terminal {
    /// The user's end.
    pub user: OwnedFd,
    /// The program's end.
    pub program: File,
}

impl Terminal {
    /// One with settings that no terminal has by default.
    pub fn new() -> Terminal {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&user).unwrap();
        unlockpt(&user).unwrap();
        let name = ptsname(&user, Vec::new()).unwrap();
        let terminal = Terminal { user, program: open(Path::new(OsStr::from_bytes(name.as_bytes()))) };
        terminal.resize(80, 25);
        let mut mode = terminal.mode();
        mode.local_modes.remove(LocalModes::ECHOK);
        mode.special_codes[SpecialCodeIndex::VERASE] = 8;
        mode.special_codes[SpecialCodeIndex::VMIN] = 3;
        terminal.set_mode(&mode);
        terminal
    }

    pub fn mode(&self) -> Termios {
        tcgetattr(&self.program).unwrap()
    }

    pub fn set_mode(&self, mode: &Termios) {
        tcsetattr(&self.program, OptionalActions::Now, mode).unwrap();
    }

    /// All of its settings.
    pub fn settings(&self) -> String {
        format!("{:?}", self.mode())
    }

    pub fn is_raw(&self) -> bool {
        !self.mode().local_modes.intersects(LocalModes::ICANON | LocalModes::ISIG)
    }

    pub fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.user, size).unwrap();
    }

    /// Starts `command` in this terminal, and gives the conversation with it.
    pub fn start(&self, place: &Place, command: &Command) -> (Axvm, Talk) {
        let mut session = Command::new("setsid");
        session.arg("--ctty").arg(command.get_program()).args(command.get_args());
        session.current_dir(command.get_current_dir().unwrap());
        session.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let end = || self.program.try_clone().unwrap();
        let axvm = place.start(session, end(), end());
        (axvm, Talk::on(self.user.try_clone().unwrap()))
    }

    /// The same, and waits until the interpreter is ready.
    pub fn talking(&self, place: &Place, command: &Command) -> (Axvm, Talk) {
        let (axvm, mut talk) = self.start(place, command);
        talk.hear("ready\n> ");
        (axvm, talk)
    }
}

/// Opens a terminal without making it anyone's controlling one.
pub fn open(path: &Path) -> File {
    let flags = rustix::fs::OFlags::NOCTTY.bits().cast_signed();
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).unwrap()
}
