//! gdb at a machine: Debian's gdb, the program with its sandbox on, and our own guest.
//!
//! Needs /dev/kvm and gdb; without one of them each test says that it was skipped.

use std::fs;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::time::Instant;

use axvm_api::types::MachineState;
use rustix::process::{Pid, Signal, kill_process};

use crate::common::{AXVM, Axvm, Place, Talk, has_kvm, skip, until};

/// A gdb that is typed to.
struct Gdb {
    child: Child,
    talk: Talk,
}

impl Gdb {
    /// At the machine behind the socket `api`, once it shows its prompt.
    fn at(place: &Place) -> Option<Gdb> {
        Gdb::with(place, &format!("target remote | {AXVM} ctl api gdb"))
    }

    fn with(place: &Place, target: &str) -> Option<Gdb> {
        let (input, keys) = std::io::pipe().unwrap();
        let (screen, output) = std::io::pipe().unwrap();
        let mut command = Command::new("gdb");
        command.args(["-q", "-nx", "-ex", "set pagination off", "-ex", "set confirm off", "-ex", target]);
        command.current_dir(place.path("")).stdin(input).stdout(output.try_clone().unwrap()).stderr(output);
        match command.spawn() {
            Err(error) => {
                skip(&format!("gdb: {error}"));
                None
            }
            Ok(child) => {
                drop(command);
                let mut talk = Talk::new(Some(OwnedFd::from(keys)), screen);
                talk.hear("(gdb) ");
                Some(Gdb { child, talk })
            }
        }
    }

    /// What a command is answered.
    fn ask(&mut self, command: &str) -> String {
        self.talk.say(format!("{command}\n"));
        self.talk.hear("(gdb) ")
    }

    /// A command whose answer comes when the guest stops.
    fn say(&mut self, command: &str) {
        self.talk.say(format!("{command}\n"));
        self.talk.hear("Continuing.");
    }

    fn interrupt(&self) {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
    }
}

impl Drop for Gdb {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two vCPUs, of which the second one waits to be started; the guest has worked a little.
fn machine(place: &Place) -> (Axvm, Talk) {
    let (axvm, mut talk) = place.waiting_shell("--memory 32M --cpus 2");
    talk.ask("work 10");
    (axvm, talk)
}

/// The guest still works, and its machine can be ended.
fn is_well(place: &Place, axvm: Axvm, mut talk: Talk) {
    talk.ask("work 10");
    assert_eq!(place.run("ctl api stop").0, 0);
    axvm.ends_with(0);
}

#[test]
fn a_guest_is_stopped_looked_at_stepped_and_goes_on() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, mut talk) = machine(&place);
    let Some(mut gdb) = Gdb::at(&place) else { return };
    assert_eq!(axvm.status().state, MachineState::Paused, "held");
    let threads = gdb.ask("info threads");
    assert!(threads.contains("(vCPU 0 (halted))") && threads.contains("(vCPU 1 (waits for SIPI))"), "{threads}");
    let registers = gdb.ask("info registers");
    for name in ["rax", "rip", "eflags", "gs_base", "cr0", "cr3", "efer"] {
        assert!(registers.contains(&format!("\n{name} ")) || registers.starts_with(name), "{name}: {registers}");
    }
    // The byte that the breakpoint replaces is seen as it was.
    let code = gdb.ask("x/2i $rip");
    gdb.ask("break *$rip");
    gdb.say("continue");
    until("it has stepped off the breakpoint and runs", || axvm.status().state == MachineState::Running);
    talk.say("work 10\r");
    let met = gdb.talk.hear("(gdb) ");
    assert!(met.contains("Thread 1 hit Breakpoint 1") || met.contains("Breakpoint 1, 0x"), "{met}");
    assert_eq!(gdb.ask("x/2i $rip"), code);
    let rip = gdb.ask("print/x $rip");
    gdb.ask("stepi");
    assert_ne!(gdb.ask("print/x $rip").split('=').nth(1), rip.split('=').nth(1), "one instruction further");
    let told = gdb.ask("monitor breakpoints");
    assert!(told.contains("Breakpoints in code are what stops a guest here"), "{told}");
    assert!(told.contains("What stops a kernel (level 0)  on this KVM: "), "{told}");
    gdb.ask("delete");
    gdb.say("continue");
    talk.hear("= 10 of 10 work done");
    let begin = Instant::now();
    gdb.interrupt();
    let stopped = gdb.talk.hear("(gdb) ");
    assert!(stopped.contains("SIGINT") && begin.elapsed().as_secs() < 10, "{stopped}");
    let detached = gdb.ask("detach");
    assert!(detached.contains("detached"), "{detached}");
    until("it runs", || axvm.status().state == MachineState::Running);
    is_well(&place, axvm, talk);
}

#[test]
fn a_gdb_that_is_killed_leaves_a_guest_without_breakpoints() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, mut talk) = machine(&place);
    let Some(mut gdb) = Gdb::at(&place) else { return };
    gdb.ask("break *$rip");
    let refused = Gdb::at(&place).map(|mut second| second.ask("info threads")).unwrap_or_default();
    assert!(!refused.contains("vCPU 0"), "one at a time: {refused}");
    gdb.say("continue");
    drop(gdb);
    until("it runs", || axvm.status().state == MachineState::Running);
    talk.ask("work 10");
    // Another one finds the code as it was, and a hardware breakpoint.
    let Some(mut gdb) = Gdb::at(&place) else { return };
    gdb.ask("hbreak *$rip");
    gdb.say("continue");
    until("it has stepped off the breakpoint and runs", || axvm.status().state == MachineState::Running);
    talk.say("work 10\r");
    let met = gdb.talk.hear("(gdb) ");
    assert!(met.contains("Breakpoint 1, 0x"), "{met}");
    let told = gdb.ask("monitor breakpoints");
    assert!(told.contains("Of 4 hardware breakpoints 0 are in use"), "gdb takes them out at a stop: {told}");
    gdb.ask("delete");
    gdb.ask("stepi 1000");
    for (command, answer) in [
        ("monitor help", "monitor walk ADDRESS"),
        ("monitor exits", "vCPU 1: 0"),
        ("monitor walk 0x100000", "physical 0x100000"),
        ("monitor phys 0x100000 16", "0x0000000000100000  "),
        ("monitor phys 0x100000 99999", "at most 4096 bytes"),
        ("monitor registers", "mode  long mode, 64 bits"),
        ("monitor explain", "What the guest does"),
        ("monitor devices", "vda"),
        ("monitor kaslr", "The guest is no Linux"),
        ("monitor panic", "The kernel carries no names, none of a function panic(), or"),
        ("monitor lapic", "LVT LINT0                  0x"),
        ("monitor lapic", "IRR, waiting"),
        ("monitor ioapic", "COM1"),
        ("monitor virtio", "vda"),
        ("monitor cpuid 0x80000001", "0x80000001: eax 0x"),
        ("monitor cpuid 0x7fffffff", "There is no such leaf"),
        ("monitor msr 0xc0000080x", "is no number"),
        ("monitor msr", "0x00000010 0x"),
        ("monitor memmap", "RAM\n"),
        ("monitor dmesg", "work done"),
        ("monitor dmesg 1 2", "Write one number, or none"),
        ("monitor nmi", "The first vCPU takes the NMI when it goes on"),
        ("monitor nonsense", "There is no such command"),
        ("x/i 0xffff800000000000", "Cannot access memory"),
    ] {
        let told = gdb.ask(command);
        assert!(told.contains(answer), "{command}: {told}");
    }
    gdb.ask("set $rbx = 0x1234");
    assert!(gdb.ask("print/x $rbx").contains("0x1234"));
    gdb.ask("set {char}0x200000 = 'a'");
    assert!(gdb.ask("x/1xb 0x200000").contains("0x61"));
    axvm.signal(rustix::process::Signal::KILL);
}

/// Whichever it is on this KVM.
#[test]
fn a_watchpoint_is_met_or_refused_with_the_reason() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, talk) = machine(&place);
    let Some(mut gdb) = Gdb::at(&place) else { return };
    // Over the HLT that it waits in, and what it does when that ends, more than once.
    gdb.ask("stepi 60");
    let told = gdb.ask("monitor breakpoints");
    let line = told.lines().find(|line| line.starts_with("What stops a kernel")).unwrap_or_default().to_owned();
    let has = |what: &str| line.contains(what);
    let stack = gdb.ask("output (long)$rsp").trim_end_matches("(gdb) ").to_owned();
    gdb.ask(&format!("watch *(char *){stack}"));
    if has("watchpoints") {
        gdb.say("continue");
        talk.say("work 10\r");
        let met = gdb.talk.hear("(gdb) ");
        assert!(met.contains("Hardware watchpoint 1"), "{met}");
    } else {
        let refused = gdb.ask("continue");
        assert!(refused.contains("Could not insert hardware watchpoint 1"), "{refused}");
        let told = gdb.ask("monitor breakpoints");
        assert!(told.contains(": watchpoints do not stop kernels (privilege level 0) on this KVM"), "{told}");
    }
    gdb.ask("delete");
    gdb.ask("monitor breakpoints int3");
    if has("INT3") {
        gdb.ask("break *$rip");
        gdb.say("continue");
        talk.say("work 10\r");
        assert!(gdb.talk.hear("(gdb) ").contains("Breakpoint 2"));
    } else {
        gdb.ask("break *($rip + 1)");
        let refused = gdb.ask("continue");
        assert!(refused.contains("Cannot insert breakpoint 2"), "{refused}");
        let told = gdb.ask("monitor breakpoints");
        assert!(told.contains(": INT3 does not stop kernels (privilege level 0) on this KVM"), "{told}");
    }
    gdb.ask("delete");
    gdb.ask("detach");
    is_well(&place, axvm, talk);
}

#[test]
fn a_pause_of_the_user_outlasts_a_look_by_gdb() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, talk) = machine(&place);
    assert_eq!(place.run("ctl api pause").0, 0);
    let Some(mut gdb) = Gdb::at(&place) else { return };
    gdb.ask("info registers rip");
    gdb.ask("detach");
    drop(gdb);
    assert_eq!(axvm.status().state, MachineState::Paused);
    assert_eq!(place.run("ctl api resume").0, 0);
    is_well(&place, axvm, talk);
}

#[test]
fn a_reset_is_a_stop_and_the_end_is_told() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, mut talk) = machine(&place);
    let Some(mut gdb) = Gdb::at(&place) else { return };
    gdb.say("continue");
    assert_eq!(place.run("ctl api reset").0, 0);
    let stopped = gdb.talk.hear("(gdb) ");
    assert!(stopped.contains("SIGTRAP"), "{stopped}");
    let mode = gdb.ask("print/x $cr0");
    assert!(mode.contains("= 0x11\n"), "before the first instruction, paging off: {mode}");
    gdb.say("continue");
    talk.hear("ready\n> ");
    talk.ask("work 10");
    assert_eq!(place.run("ctl api stop").0, 0);
    let ended = gdb.talk.hear("(gdb) ");
    assert!(ended.contains("exited normally"), "{ended}");
    axvm.ends_with(0);
}

#[test]
fn a_guest_waits_for_gdb_before_its_first_instruction() {
    if !has_kvm() {
        return;
    }
    for (option, target) in [("--gdb unix=web.gdb", "web.gdb"), ("-s", "127.0.0.1:1234")] {
        let place = Place::new();
        let words = format!("run --kernel guest.elf --memory 32M --cpus 1 --api-sock api --append shell {option} -S");
        let (input, _keys) = std::io::pipe().unwrap();
        let (screen, output) = std::io::pipe().unwrap();
        let axvm = place.start(place.axvm(&words), input, output);
        let mut talk = Talk::new(None, screen);
        until("it says where", || {
            axvm.errors().contains(&format!("The guest waits for gdb: gdb -ex 'target remote {target}'"))
        });
        assert_eq!(axvm.status().state, MachineState::Paused);
        let Some(mut gdb) = Gdb::with(&place, &format!("target remote {target}")) else { return };
        assert!(gdb.ask("print/x $cr0").contains("= 0x11\n"));
        let exits = gdb.ask("monitor exits");
        assert!(exits.contains("vCPU 0: 0\n"), "{exits}");
        gdb.say("continue");
        talk.hear("ready\n> ");
        gdb.interrupt();
        gdb.talk.hear("(gdb) ");
        drop(gdb);
        assert_eq!(place.run("ctl api stop").0, 0);
        axvm.ends_with(0);
        assert!(!place.path("web.gdb").exists());
    }
    let place = Place::new();
    let (code, _, error) = place.run("run --kernel guest.elf --gdb serial=1");
    assert!(code == 2 && error.contains("--gdb serial=1: not a place for gdb; say unix=PATH"), "{error}");
    let (code, _, error) = place.run("run --kernel guest.elf --gdb tcp=192.0.2.1:1");
    assert!(code == 1 && error.contains("Cannot listen for gdb at 192.0.2.1:1"), "{error}");
}

#[test]
fn gdb_has_the_names_of_the_kernels_functions_from_the_start() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    fs::write(place.path("System.map"), "0000000000100000 T everything\n0000000000200000 T the_rest\n").unwrap();
    let (axvm, mut talk) = place.waiting_shell("--memory 32M --cpus 1 --symbols System.map");
    talk.ask("work 10");
    let (code, map, _) = place.run("ctl api symbols");
    assert!(code == 0 && map == fs::read_to_string(place.path("System.map")).unwrap(), "{map}");
    let words = "-q -nx -batch -ex bt -ex 'break the_rest' -ex 'info breakpoints'";
    let gdb =
        Command::new("sh").args(["-c", &format!("{AXVM} gdb api -- {words}")]).current_dir(place.path("")).output();
    let told = String::from_utf8_lossy(&gdb.unwrap().stdout).into_owned();
    if told.is_empty() {
        return skip("no gdb");
    }
    assert!(told.contains(" in everything ()\n") && told.contains("0x0000000000200000 <the_rest>"), "{told}");
    is_well(&place, axvm, talk);

    let (axvm, talk) = place.waiting_shell("--memory 32M --cpus 1");
    let (code, _, error) = place.run("ctl api symbols");
    assert!(code == 1 && error.contains("The guest's kernel carries no names of functions"), "{error}");
    is_well(&place, axvm, talk);
}
