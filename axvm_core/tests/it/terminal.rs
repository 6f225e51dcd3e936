//! AxVM at a terminal: its keys, its size, and that it is as before on every way out.
//!
//! Needs /dev/kvm and setsid; without them each test says that it was skipped. What cannot be: after SIGKILL a
//! terminal stays raw, for no process is left to restore it (`reset` does). Left out: a fault of AxVM itself (SIGSEGV, SIGABRT).

use crate::common;

use std::fs;
use std::process::Command;

use common::terminal::Terminal;
use common::{Axvm, Place, Talk, has_kvm, skip, until};
use rustix::process::Signal;

fn can_run() -> bool {
    let has_setsid = Command::new("setsid").arg("--version").output().is_ok();
    if !has_setsid {
        skip("setsid is not there");
    }
    has_setsid && has_kvm()
}

/// What ends AxVM: more words for its command line, what is done to it, exit code.
type Way = (&'static str, fn(&Axvm, &mut Talk), i32);

const WAYS: &[(&str, Way)] = &[
    ("power-off", ("", |_, talk| talk.say("off\r"), 0)),
    ("Ctrl-A x", ("", |_, talk| talk.say("\x01x"), 0)),
    ("Ctrl-A x while the guest hangs", ("", |_, talk| talk.say("hang\r\x01x"), 0)),
    ("reset, with --on-reboot exit", ("--on-reboot exit", |_, talk| talk.say("reset\r"), 3)),
    ("guest panic", ("", |_, talk| talk.say("panic\r"), 4)),
    ("guest crash", ("", |_, talk| talk.say("triple\r"), 5)),
    ("SIGTERM twice", ("", |axvm, _| twice(axvm, Signal::TERM), 143)),
    ("SIGINT twice", ("", |axvm, _| twice(axvm, Signal::INT), 130)),
    ("SIGHUP twice", ("", |axvm, _| twice(axvm, Signal::HUP), 129)),
    ("SIGTERM, and no time for the guest", ("--grace 0", |axvm, _| axvm.signal(Signal::TERM), 143)),
    ("SIGQUIT", ("", |axvm, _| axvm.signal(Signal::QUIT), 131)),
    ("SIGUSR2", ("", |axvm, _| axvm.signal(Signal::USR2), 140)),
    ("SIGALRM", ("", |axvm, _| axvm.signal(Signal::ALARM), 142)),
];

/// The second one as soon as the first was taken.
fn twice(axvm: &Axvm, signal: Signal) {
    axvm.signal(signal);
    axvm.status();
    until("the second signal ends it", || {
        axvm.signal(signal);
        std::thread::sleep(std::time::Duration::from_millis(20));
        axvm.is_zombie()
    });
}

#[test]
fn restored_on_every_way_out() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    for (name, (words, act, code)) in WAYS {
        println!("{name}");
        let terminal = Terminal::new();
        let before = terminal.settings();
        let (axvm, mut talk) = terminal.talking(&place, &place.machine("shell", words));
        assert!(terminal.is_raw(), "{name}");
        act(&axvm, &mut talk);
        let end = axvm.end();
        assert_eq!(end.code, *code, "{name}: {end:?}");
        assert_eq!(end.errors.matches("axvm: Ctrl-A h tells the keys\n").count(), 1, "{name}: {end:?}");
        assert_eq!(end.errors.ends_with("axvm: Ended by Ctrl-A x\n"), name.starts_with("Ctrl-A x"), "{name}: {end:?}");
        assert_eq!(terminal.settings(), before, "{name}");
    }
}

#[test]
fn restored_after_an_error_of_set_up() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    fs::write(place.path("bad.elf"), &axvm_guest::selftest()[..100]).unwrap();
    for words in ["--kernel bad.elf", "--kernel none.elf", "--kernel guest.elf --disk none.img"] {
        let terminal = Terminal::new();
        let before = terminal.settings();
        let (axvm, _) = terminal.start(&place, &place.axvm(&format!("run --memory 32M {words}")));
        axvm.ends_with(1);
        assert_eq!(terminal.settings(), before, "{words}");
    }
}

#[test]
fn restored_before_a_violation_of_the_sandbox_is_told() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    let terminal = Terminal::new();
    let before = terminal.settings();
    let (mut axvm, _talk) = terminal.talking(&place, &place.machine("shell", ""));
    // What the kernel sends to a thread that makes a forbidden system call.
    axvm.signal(Signal::SYS);
    until("AxVM ended", || !axvm.is_running());
    assert_eq!(terminal.settings(), before, "{}", axvm.errors());
    assert!(axvm.errors().contains("The sandbox stopped thread"), "{}", axvm.errors());
}

#[test]
fn a_crash_of_axvm_itself_gives_the_terminal_back() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    for signal in [Signal::ABORT, Signal::SEGV, Signal::BUS, Signal::ILL, Signal::FPE] {
        let terminal = Terminal::new();
        let before = terminal.settings();
        let (mut axvm, _talk) = terminal.talking(&place, &place.machine("shell", ""));
        axvm.signal(signal);
        until("AxVM ended", || !axvm.is_running());
        assert_eq!(terminal.settings(), before, "{signal:?}: {}", axvm.errors());
        assert!(axvm.errors().contains("crashed by signal"), "{signal:?}: {}", axvm.errors());
    }
}

#[test]
fn raw_again_after_it_was_stopped() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    let terminal = Terminal::new();
    let (before, cooked) = (terminal.settings(), terminal.mode());
    let (axvm, mut talk) = terminal.talking(&place, &place.machine("shell", ""));
    axvm.signal(Signal::STOP);
    until("it is stopped", || axvm.state() == 'T');
    // What a shell does then.
    terminal.set_mode(&cooked);
    axvm.signal(Signal::CONT);
    until("it is raw again", || terminal.is_raw());
    talk.say("\x03\r");
    talk.hear("<3>");
    talk.say("off\r");
    axvm.ends_with(0);
    assert_eq!(terminal.settings(), before);
}

#[test]
fn a_terminal_that_closes_ends_the_machine() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    let terminal = Terminal::new();
    let (axvm, talk) = terminal.talking(&place, &place.machine("shell", "--grace 0"));
    drop((terminal, talk));
    axvm.ends_with(129);
}

#[test]
fn keys_for_axvm_are_its_own_and_all_others_are_the_guests() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    let terminal = Terminal::new();
    let (axvm, mut talk) = terminal.talking(&place, &place.machine("shell", ""));
    talk.say("\x03\x1a\x1c\x01\x01");
    talk.hear("<3><26><28><1>");
    talk.say("\x01b");
    talk.hear("<0>");
    talk.say("\x01h");
    talk.hear("axvm: Ctrl-A x");
    talk.hear("Ctrl-A b sends BREAK");
    talk.hear("\r\n");
    talk.say("\r");
    talk.answer();
    talk.say("button\r");
    talk.hear("waiting\n");
    talk.say("\x01p");
    talk.hear("pressed\n");
    axvm.ends_with(0);
}

#[test]
fn a_paste_of_64_kib_and_a_flood_back_lose_nothing() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    let terminal = Terminal::new();
    let machine = place.machine("shell=hvc0", "--virtio-console stdio");
    let (axvm, mut talk) = terminal.talking(&place, &machine);
    let typed: Vec<u8> = common::talk::pattern(64 << 10).into_iter().map(|byte| byte % 64 + 32).collect();
    talk.say(format!("raw {}\r", typed.len()));
    talk.say(&typed);
    assert_eq!(talk.answer(), common::talk::checksum(&typed));
    talk.say("flood 1024\r");
    assert_eq!(talk.answer_after_all(&common::talk::flood(1024)), "1024 flood");
    talk.say("off\r");
    axvm.ends_with(0);
}

#[test]
fn hvc0_has_the_terminals_size_and_is_told_of_another() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    let terminal = Terminal::new();
    let machine = place.machine("shell=hvc0", "--virtio-console stdio");
    let (axvm, mut talk) = terminal.talking(&place, &machine);
    talk.say("size\r");
    talk.hear("size 80x25 \n");
    terminal.resize(132, 43);
    assert_eq!(talk.answer(), "size 132x43 size");
    talk.say("off\r");
    axvm.ends_with(0);
}

#[test]
fn ctl_console_gives_its_terminal_back_and_leaves_the_machine_running() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    let (axvm, shell) = place.shell("");
    let leave: [Way; 3] = [
        ("Ctrl-A x", |_, talk| talk.say("\x01x"), 0),
        ("SIGTERM", |axvm, _| axvm.signal(Signal::TERM), 0),
        ("SIGHUP", |axvm, _| axvm.signal(Signal::HUP), 0),
    ];
    for (name, act, code) in leave {
        let terminal = Terminal::new();
        let before = terminal.settings();
        let (control, mut talk) = terminal.talking(&place, &place.axvm("ctl ./api console"));
        until("the terminal is raw", || terminal.is_raw());
        talk.say("\x03raw 3\rabc");
        talk.hear("<3>");
        assert_eq!(talk.answer(), common::talk::checksum(b"abc"), "{name}");
        act(&control, &mut talk);
        control.ends_with(code);
        assert_eq!(terminal.settings(), before, "{name}");
    }
    let terminal = Terminal::new();
    let before = terminal.settings();
    let (control, _talk) = terminal.talking(&place, &place.axvm("ctl ./api console"));
    shell.say("off\n");
    axvm.ends_with(0);
    control.ends_with(0);
    assert_eq!(terminal.settings(), before, "the machine's end");
}

#[test]
fn ctl_console_sends_a_break_on_a_serial_port_and_none_on_hvc0() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    for (machine, serial) in
        [(place.machine("shell", ""), true), (place.machine("shell=hvc0", "--virtio-console stdio"), false)]
    {
        let (axvm, shell) = place.talking(machine);
        let terminal = Terminal::new();
        let (control, mut talk) = terminal.talking(&place, &place.axvm("ctl ./api console"));
        until("the terminal is raw", || terminal.is_raw());
        // What follows a BREAK stays behind it, even if all comes at once.
        talk.say("\x01bab");
        talk.hear(if serial { "<0>ab" } else { "ab" });
        talk.say("\x01b\x01bc");
        talk.hear(if serial { "<0><0>c" } else { "c" });
        talk.say("\x01h");
        let help = talk.hear("Ctrl-A Ctrl-A sends");
        assert_eq!(help.contains("BREAK"), serial, "{help}");
        talk.say("\x01x");
        control.ends_with(0);
        shell.say("\noff\n");
        axvm.ends_with(0);
    }
}
