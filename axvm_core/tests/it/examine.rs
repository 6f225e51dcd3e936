//! A guest is looked into from outside, and goes on: its registers, its memory, both of them as a core file for gdb.
//!
//! Needs /dev/kvm; without it each test says that it was skipped. The sandbox is on, as for users.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};

use axvm_api::types::{DumpState, DumpStatus, MachineState, MemoryContents, VcpuRegisters};

use crate::common::{Place, has_kvm, skip, until};

#[test]
fn a_whole_machine_is_shown_at_one_moment() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, mut talk) = place.waiting_shell("--cpus 2 --memory 32M");
    talk.ask("work 10");
    let (code, told, _) = place.run("ctl api inspect --walk rsp");
    assert!(code == 0 && told.lines().all(|line| line.chars().count() <= 80), "{told}");
    for line in [
        "  state         running\n",
        "  1  1 vCPU was never started\n",
        "          0x0 +------------------+ RAM, 32 MiB (AxVM): the guest's own\n",
        "   0xd0000000 : vda              : 512 B, AxVM: registers\n",
        "  vCPU 0  halted, interrupts on\n",
        "  vCPU 1  waits for INIT and SIPI: it was never started\n",
        "      TSC         0x",
        "      APIC timer  one-shot        masked: it does not interrupt\n",
        "  GSI 4   COM1       0x24 Fixed edge -> physical 0x0\n",
        "  vda      virtio_blk by virtio_mmio; status 0xf ACKNOWLEDGE DRIVER FEATURES_OK\n",
        "      queue 0  8 buffers  offered ",
        "  PDE    0x",
    ] {
        assert!(told.contains(line), "{line}: {told}");
    }

    // The clocks run on in a pause, too.
    let look = || {
        let (_, told, _) = place.run("ctl api inspect --json");
        let tree: serde_json::Value = serde_json::from_str(&told).unwrap();
        let sections = tree["sections"].as_array().unwrap().clone();
        let ids: Vec<_> = sections.iter().map(|section| section["id"].as_str().unwrap().to_owned()).collect();
        assert_eq!(ids, ["machine", "signs", "memory", "vcpus", "clocks", "lines", "queues"]);
        let clocks = sections[4]["rows"].as_array().unwrap().clone();
        let seconds = |name: &str| {
            let row = clocks.iter().find(|row| row["name"] == name).unwrap();
            row["value"].as_str().unwrap().trim_end_matches(" s").parse::<f64>().unwrap()
        };
        let tsc = clocks.last().unwrap()["rows"][0]["value"].as_u64().unwrap();
        (seconds("kvmclock"), seconds("ACPI timer"), tsc)
    };
    assert_eq!(place.run("ctl api pause").0, 0);
    let before = look();
    std::thread::sleep(std::time::Duration::from_millis(50));
    let after = look();
    assert!(after.0 >= before.0 + 0.05 && after.1 >= before.1 + 0.05 && after.2 > before.2, "{before:?} {after:?}");
    assert_eq!(place.run("ctl api resume").0, 0);

    let (code, _, error) = place.run("ctl api inspect --walk nothing_of_that_name");
    assert!(code == 1 && error.contains("nothing_of_that_name is neither a number"), "{error}");
    let (code, _, error) = place.run("ctl api inspect --walk ../x");
    assert!(code == 1 && error.contains("../x is no address"), "{error}");
    talk.ask("work 10");
    assert_eq!(place.run("ctl api stop").0, 0);
    axvm.ends_with(0);
}

#[test]
fn registers_and_memory_are_told_of_a_guest_that_goes_on() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, mut talk) = place.waiting_shell("--cpus 2 --memory 32M");
    talk.ask("work 10");
    let all: Vec<VcpuRegisters> = axvm.control().get("/registers").unwrap();
    assert_eq!([&*all[0].state, &*all[1].state], ["halted", "not started"]);
    let rip = all[0].registers["rip"].clone();
    let (code, told, _) = place.run("ctl api registers");
    assert!(
        code == 0 && told.starts_with("vCPU 0: halted\n  mode  long mode, 64 bits, 4-level paging, CPL 0\n"),
        "{told}"
    );
    assert!(told.contains("\nvCPU 1: not started\n") && told.lines().all(|line| line.len() <= 80), "{told}");
    let (_, told, _) = place.run("ctl api registers 1 --bits");
    assert!(told.starts_with("vCPU 1") && told.contains("  CR0 0x"), "{told}");
    let (code, _, error) = place.run("ctl api registers 2");
    assert!(code == 1 && error.contains("There is no vCPU 2; the machine has 0 to 1"), "{error}");

    // The image is where the file says, at the same address by page tables and without.
    let head = "0x0000000000100000  ";
    let (_, linear, _) = place.run("ctl api memory 0x100000 64");
    let (_, physical, _) = place.run("ctl api memory 0x100000 0x40 --physical");
    assert!(linear.starts_with(head) && linear == physical && linear.lines().count() == 4, "{linear}");
    let (_, told, _) = place.run("ctl api memory rsp 8 --walk");
    assert!(told.starts_with("PML4E [  0] at 0x") && told.contains("writable, kernel only"), "{told}");
    let (_, told, _) = place.run("ctl api memory rip 16 --instructions");
    assert!(told.starts_with(&format!("{:#018x}  ", number(&rip))), "{told}");
    let (code, _, _) = place.run("ctl api memory 0 80K --physical -o piece");
    assert!(code == 0 && fs::read(place.path("piece")).unwrap().len() == 80 << 10);
    for (words, why) in [
        ("0x1fffff0 64", "The memory ends after 16 bytes: 0x2000000: at physical 0x2000000 is no RAM"),
        ("0xffff800000000000", "The memory ends after 0 bytes: 0xffff800000000000: the PML4E is not present"),
        ("0x2000000 --physical", "at physical 0x2000000 is no RAM"),
        ("start_kernel", "start_kernel is neither a number, such as 0x100000, nor a register, such as rsp"),
        ("../x", "../x is no address; name a number such as 0x100000"),
        ("0 --vcpu 7", "There is no vCPU 7; the machine has 0 to 1"),
        ("0 many", "not a length; write bytes, such as 128, 0x80 or 4K"),
    ] {
        let (code, _, error) = place.run(&format!("ctl api memory {words}"));
        assert!(code != 0 && error.contains(why), "{words}: {error}");
    }
    let refused = axvm.control().get::<MemoryContents>("/memory/vcpu0/0/65537").unwrap_err().to_string();
    assert!(refused.contains("65537 is no length; it is 1 to 65536 bytes"), "{refused}");
    talk.ask("work 10");
    assert_eq!(place.run("ctl api stop").0, 0);
    axvm.ends_with(0);
}

fn number(text: &str) -> u64 {
    u64::from_str_radix(&text[2..], 16).unwrap()
}

#[test]
fn a_dump_is_a_core_that_gdb_opens() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, mut talk) = place.waiting_shell("--cpus 2 --memory 32M");
    talk.ask("work 10");
    let (code, told, error) = place.run("ctl api dump core");
    assert!(code == 0 && told.starts_with("core: 32M of RAM, ") && error.is_empty(), "{told}{error}");
    let file = fs::metadata(place.path("core")).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o600, "a guest's secrets");
    assert!(file.len() > 32 << 20 && file.blocks() * 512 < 16 << 20, "zeroes are holes");
    assert_eq!(axvm.status().state, MachineState::Running, "as before");
    talk.ask("work 10");
    // Of a paused machine nothing moves between the dump and the questions; it stays paused.
    assert_eq!(place.run("ctl api pause").0, 0);
    assert_eq!(place.run("ctl api dump core").0, 0);
    assert_eq!(axvm.status().state, MachineState::Paused);
    let all: Vec<VcpuRegisters> = axvm.control().get("/registers").unwrap();
    let memory: MemoryContents = axvm.control().get("/memory/vcpu0/rsp/4").unwrap();
    let questions = ["info registers rip", "x/4xb $rsp", "info threads"].map(|ask| ["-ex", ask]);
    let mut gdb = Command::new("gdb");
    gdb.args(["-batch", "-nx"]).args(questions.as_flattened()).arg("-c").arg(place.path("core"));
    match gdb.output() {
        Err(error) => skip(&format!("a core in gdb: {error}")),
        Ok(output) => {
            let told = String::from_utf8_lossy(&output.stdout);
            assert!(told.contains(&format!("rip            {}", all[0].registers["rip"])), "{told}");
            let bytes: Vec<_> = memory.bytes.as_bytes().chunks(2).map(|pair| String::from_utf8_lossy(pair)).collect();
            assert!(
                told.contains(&format!("0x{}\t0x{}\t0x{}\t0x{}", bytes[0], bytes[1], bytes[2], bytes[3])),
                "{told}"
            );
            assert!(told.contains("LWP 2"), "{told}");
        }
    }
    let (code, _, error) = place.run("ctl api dump nowhere/core");
    assert!(
        code == 1
            && error.contains(
                "Cannot write nowhere/core: No such file or directory (os error 2); name a file in a directory"
            ),
        "{error}"
    );
    let (code, _, error) = place.run("ctl api dump /dev/null");
    assert!(code == 1 && error.contains("/dev/null is no file"), "{error}");
    let refused = axvm.control().put("/dump", &()).unwrap_err().to_string();
    assert!(refused.contains("The open file must come with the request"), "{refused}");
    assert_eq!(place.run("ctl api stop").0, 0);
    axvm.ends_with(0);
}

#[test]
fn a_dump_ends_with_its_pause_and_leaves_no_file() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, mut talk) = place.waiting_shell("--cpus 1 --memory 6G");
    talk.ask("work 10");
    let mut dump = place.axvm("ctl api dump core").stderr(Stdio::null()).spawn().unwrap();
    let status = || axvm.control().get::<DumpStatus>("/dump").unwrap();
    until("it is being written", || status().done > 0 && status().state == DumpState::Writing);
    let (code, _, error) = place.run("ctl api dump other");
    assert!(code == 1 && error.contains("A dump is being written; GET /dump tells how far it is"), "{error}");
    assert_eq!(place.run("ctl api resume").0, 0);
    assert_eq!(dump.wait().unwrap().code(), Some(1));
    assert_eq!(status().error.as_deref(), Some("the machine went on before all of it was written"));
    assert!(!place.path("core").exists());
    talk.ask("work 10");
    assert_eq!(place.run("ctl api stop").0, 0);
    axvm.ends_with(0);
}
