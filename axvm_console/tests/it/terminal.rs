//! Standard streams that are a terminal: its mode, its keys, its size.

use crate::common;

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use axvm_console::{Key, Size, is_raw, restore_terminal};
use common::{on, read, receive, until};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

/// `restore_terminal` and `is_raw` are about all terminals of the process: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The user's end and the program's end.
fn terminal() -> (OwnedFd, File) {
    let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&user).unwrap();
    unlockpt(&user).unwrap();
    let path = ptsname(&user, Vec::new()).unwrap();
    let flags = rustix::fs::OFlags::NOCTTY.bits().cast_signed();
    let path = OsStr::from_bytes(path.as_bytes());
    (user, OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).unwrap())
}

fn is_cooked(terminal: &File) -> bool {
    tcgetattr(terminal).unwrap().local_modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
}

#[test]
fn raw_while_it_runs_and_as_before_afterwards() {
    let _alone = alone();
    let (_user, terminal) = terminal();
    let before = format!("{:?}", tcgetattr(&terminal).unwrap());
    let bench = on(&terminal, &terminal);
    assert!(!is_cooked(&terminal) && is_raw());
    bench.console.finish();
    assert!(is_cooked(&terminal) && !is_raw());
    assert_eq!(format!("{:?}", tcgetattr(&terminal).unwrap()), before);
}

#[test]
fn restored_from_anywhere_and_for_good() {
    let _alone = alone();
    let (user, terminal) = terminal();
    let bench = on(&terminal, &terminal);
    restore_terminal();
    restore_terminal();
    assert!(is_cooked(&terminal));
    rustix::io::write(&user, b"x\n").unwrap();
    bench.console.continued();
    assert!(is_cooked(&terminal));
}

#[test]
fn a_panic_in_another_thread_restores_it() {
    let _alone = alone();
    let (_user, terminal) = terminal();
    let _bench = on(&terminal, &terminal);
    assert!(!is_cooked(&terminal));
    let panicked = std::thread::spawn(|| panic!("a panic that this test wants")).join();
    assert!(panicked.is_err() && is_cooked(&terminal));
}

#[test]
fn unwinding_restores_it() {
    let _alone = alone();
    let (_user, terminal) = terminal();
    let (copy, hook) = (terminal.try_clone().unwrap(), std::panic::take_hook());
    // Without the panic hook: by `drop` alone.
    std::panic::set_hook(Box::new(|_| {}));
    let panicked = std::thread::spawn(move || {
        let _bench = on(&copy, &copy);
        std::panic::resume_unwind(Box::new("as a panic, but without the hook"));
    });
    assert!(panicked.join().is_err() && is_cooked(&terminal));
    std::panic::set_hook(hook);
}

#[test]
fn raw_again_after_the_shell_had_it() {
    let _alone = alone();
    let (_user, terminal) = terminal();
    let cooked = tcgetattr(&terminal).unwrap();
    let bench = on(&terminal, &terminal);
    // What a shell does when AxVM is stopped.
    tcsetattr(&terminal, OptionalActions::Now, &cooked).unwrap();
    bench.console.continued();
    assert!(!is_cooked(&terminal));
    bench.console.finish();
    assert!(is_cooked(&terminal));
}

#[test]
fn keys_are_told_apart() {
    let _alone = alone();
    let (user, terminal) = terminal();
    let bench = on(&terminal, &terminal);
    rustix::io::write(&user, b"a\x03\x01\x01\x01p\x01xb").unwrap();
    assert_eq!(receive(&bench.port, 4), b"a\x03\x01b");
    assert_eq!(*bench.calls.keys.lock().unwrap(), [Key::PowerButton, Key::Quit]);
}

#[test]
fn help_is_shown_between_the_guests_words() {
    let _alone = alone();
    let (user, terminal) = terminal();
    let bench = on(&terminal, &terminal);
    bench.port.send(b"$ ");
    assert_eq!(read(&user, 2), b"$ ");
    rustix::io::write(&user, b"\x01h").unwrap();
    let mut shown = read(&user, 10);
    shown.extend(common::read_within(&user, 1000, std::time::Duration::from_millis(100)));
    let shown = String::from_utf8(shown).unwrap();
    assert!(shown.starts_with("\r\naxvm: Ctrl-A x") && shown.ends_with("\r\n"), "{shown:?}");
    assert_eq!(bench.port.pending(), 0);
}

#[test]
fn help_goes_to_the_program_if_the_output_is_no_terminal() {
    let _alone = alone();
    let ((user, terminal), (output, to)) = (terminal(), std::io::pipe().unwrap());
    let bench = on(&terminal, &to);
    rustix::io::write(&user, b"\x01h").unwrap();
    until("it was told", || !bench.calls.help.lock().unwrap().is_empty());
    let help = bench.calls.help.lock().unwrap().concat();
    assert!(help.starts_with("Ctrl-A x ends the machine, ") && !help.contains('\n'), "{help:?}");
    drop(to);
    bench.console.finish();
    assert_eq!(std::io::read_to_string(output).unwrap(), "");
}

#[test]
fn a_paste_of_64_kib_into_a_terminal_loses_nothing() {
    let _alone = alone();
    let (user, terminal) = terminal();
    let bench = on(&terminal, &terminal);
    let typed: Vec<u8> = common::pattern(100_000).into_iter().map(|byte| byte % 64 + 32).collect();
    let copy = typed.clone();
    let typing = std::thread::spawn(move || {
        let mut rest = &copy[..];
        while !rest.is_empty() {
            rest = &rest[rustix::io::write(&user, rest).unwrap()..];
        }
        user
    });
    until("the port is full", || bench.port.pending() == 64 << 10);
    assert!(receive(&bench.port, typed.len()) == typed);
    drop(typing.join());
}

#[test]
fn the_guest_gets_the_size_and_its_changes() {
    let _alone = alone();
    let (user, terminal) = terminal();
    let resize = |columns, rows| {
        tcsetwinsize(&user, Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    };
    resize(80, 25);
    let bench = on(&terminal, &terminal);
    assert_eq!(bench.port.size(), Size { columns: 80, rows: 25 });
    resize(132, 43);
    bench.console.resized();
    assert_eq!(bench.port.size(), Size { columns: 132, rows: 43 });
}

#[test]
fn a_terminal_that_hangs_up_ends_input_only() {
    let _alone = alone();
    let (user, terminal) = terminal();
    let bench = on(&terminal, &terminal);
    drop(user);
    common::send_all(&bench.port, &vec![0; 256 << 10]);
    assert_eq!(bench.calls.warnings.lock().unwrap().len(), 1);
    bench.console.finish();
}
