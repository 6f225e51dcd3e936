//! Which processors a guest finds, and how.
//!
//! Needs /dev/kvm; without it the test says that it was skipped. The sandbox is on, as for users.

use crate::common::{Place, has_kvm};

#[test]
fn a_guest_without_acpi_finds_and_starts_every_processor() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let words = "run --kernel guest.elf --memory 64M --cpus 4,sockets=2 --acpi off --on-reboot exit -v";
    // Without tables the guest resets at its end.
    let (code, said, errors) = place.run(words);
    assert_eq!(code, 3, "{errors}");
    for proof in ["AXVM acpi skip", "AXVM mp-table ok", "AXVM smp ok"] {
        assert!(said.contains(proof), "no {proof:?} in {said}");
    }
    assert!(said.contains("3 of 3 others up") && said.contains(" 4 processors 1 IOAPIC, PIT on pin 2"), "{said}");
    assert!(errors.contains("4 created, APIC ids up to 3; the kernel finds 0 by ACPI, 4 by the MP table"), "{errors}");
}

/// What a guest has to ask for, and what is said where the host has none of it.
#[test]
fn virtualization_and_counters_are_off_unless_asked_for_and_what_the_host_lacks_is_told() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let run = |cpu: &str| place.run(&format!("run --kernel guest.elf --memory 64M --cpus 1 -v --on-reboot end {cpu}"));
    let lacks =
        ["no virtualization (VMX or SVM); the guest does without", "no performance counters; the guest does without"];
    for (cpu, told) in [("", "host, nested off, pmu off"), ("--cpu ivybridge", "ivybridge, nested off, pmu off")] {
        let (code, said, errors) = run(cpu);
        assert!(code == 0 && errors.contains(told), "{cpu}: {errors}");
        assert!(said.contains("AXVM cpuid ok") && said.contains(", no VMX, SVM or counters"), "{said}");
        assert!(lacks.iter().all(|lack| !errors.contains(lack)), "not asked for, not missed: {errors}");
    }
    let (code, said, errors) = run("--cpu host,nested=on,pmu=on");
    assert!(code == 0 && errors.contains("host, nested on, pmu on"), "{errors}");
    // The guest has it, or its user is told why not and what to do.
    for (lack, seen, remedy) in
        [(lacks[0], [" VMX", " SVM"], "nested=1"), (lacks[1], [" counters", " counters"], "enable_pmu")]
    {
        let has =
            said.lines().any(|line| line.starts_with("AXVM cpuid ok") && seen.iter().any(|word| line.contains(word)));
        let has = has && !said.contains("no VMX, SVM or counters");
        assert_eq!(errors.contains(lack) && errors.contains(remedy), !has, "{seen:?}: {said} {errors}");
    }
}

#[test]
fn tables_for_processors_alone_suffice_to_start_all_and_to_power_off() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (code, said, errors) = place.run("run --kernel guest.elf --memory 64M --cpus 3 --acpi cpus -v");
    assert_eq!(code, 0, "{errors}");
    assert!(said.contains("AXVM acpi ok") && said.contains("2 of 2 others up"), "{said}");
    assert!(errors.contains("virtio_mmio.device=512@0xd0000000:5 virtio_mmio.device=512@0xd0001000:10"), "{errors}");
    assert!(errors.contains("3 created, APIC ids up to 2; the kernel finds 3 by ACPI, 3 by the MP table"), "{errors}");
}

#[test]
fn words_that_contradict_the_machine_are_told_once_before_it_starts() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let mut axvm = place.axvm("run --kernel guest.elf --memory 32M --cpus 2 --api-sock api --append");
    axvm.arg("shell acpi=off maxcpus=1 root=/dev/vda");
    let (axvm, mut talk) = place.talking(axvm);
    talk.say("reset\n");
    talk.hear("ready");
    talk.hear("> ");
    talk.say("off\n");
    let end = axvm.ends_with(0);
    for word in [
        "acpi=off: the kernel then finds none of rng, balloon",
        "maxcpus=1: the kernel then starts 1 of 2",
        "root=/dev/vda: this machine has no disk",
    ] {
        assert_eq!(end.errors.matches(&format!("axvm: --append: {word}")).count(), 1, "{word}: {end:?}");
    }
}

#[test]
fn a_choice_of_acpi_tables_goes_together_with_the_devices_and_with_its_old_name() {
    let place = Place::new();
    let seven = "-d 1 -d 2 -d 3 -d 4 -d 5 -d 6 -d 7 --acpi cpus";
    for (words, parts) in [
        (seven, ["has 6 for them", "on its command line (--acpi cpus)", "Leave out 3"]),
        ("--acpi on", ["--acpi on", "not one of", "full, cpus, off"]),
        ("--acpi cpus --no-acpi", ["--acpi cpus", "--no-acpi says off", "give one of them"]),
        ("--acpi off --no-acpi=off", ["--acpi off", "--no-acpi=off says full", "give one of them"]),
    ] {
        let (code, _, errors) = place.run(&format!("run -k guest.elf {words}"));
        assert_eq!(code, 2, "{words}: {errors}");
        assert!(parts.iter().all(|part| errors.contains(part)), "{words}: {errors}");
    }
}
