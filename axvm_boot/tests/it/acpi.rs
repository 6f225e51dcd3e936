//! The ACPI tables, read the way a guest finds them, and judged by ACPICA's own tools.

use std::ffi::OsStr;
use std::fmt::Debug;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use axvm_arch::{Gpa, layout};
use axvm_boot::acpi::{Acpi, Tables, build};
use axvm_boot::plan::{Kind, Place, Plan, VirtioKind};
use axvm_memory::{GuestRam, RamConfig};

const PROCESSORS: [u32; 3] = [1, 20, 300];
const WINDOWS: [usize; 3] = [0, 1, 14];

fn tables(processors: u32, window_count: usize) -> Tables {
    chosen(processors, window_count, Acpi::Full)
}

fn chosen(processors: u32, window_count: usize, acpi: Acpi) -> Tables {
    let disks: Vec<_> = (0..window_count).map(VirtioKind::Block).collect();
    build(&(0..processors).collect::<Vec<_>>(), &Plan::new(&disks, acpi).unwrap()).unwrap()
}

fn platforms() -> impl Iterator<Item = (String, Tables)> {
    PROCESSORS
        .into_iter()
        .flat_map(|cpus| WINDOWS.map(|count| (cpus, count)))
        .map(|(cpus, count)| (format!("{cpus} vCPUs, {count} windows"), tables(cpus, count)))
        .chain([("vCPUs only".to_owned(), chosen(20, 6, Acpi::Cpus)), ("PCI".to_owned(), on_pci())])
}

/// A machine on PCI, with slots for devices that come and go.
fn on_pci() -> Tables {
    let plan = Plan::on_pci(&[VirtioKind::Entropy; 3], Acpi::Full, 1 << 30).unwrap();
    build(&(0..20).collect::<Vec<_>>(), &plan).unwrap()
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// A guest that knows only its RAM and the address of the RSDP.
struct Guest<'a>(&'a GuestRam);

impl Guest<'_> {
    fn bytes(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.read(Gpa(gpa), &mut bytes).unwrap();
        bytes
    }

    /// The whole table at `gpa`, checked.
    fn table(&self, gpa: u64, signature: &[u8; 4]) -> Vec<u8> {
        let header = self.bytes(gpa, 36);
        assert_eq!(&header[..4], signature, "at {gpa:#x}");
        let bytes = self.bytes(gpa, u32_at(&header, 4) as usize);
        if signature != b"FACS" {
            assert_eq!(sum(&bytes), 0, "checksum of {}", String::from_utf8_lossy(signature));
            assert_eq!(&bytes[10..24], b"AXVM  AXVMCORE");
        }
        bytes
    }
}

#[test]
fn a_guest_finds_every_table_from_the_rsdp() {
    for (cpus, count) in [(1, 0), (20, 14), (1024, 14)] {
        let ram = GuestRam::allocate(&RamConfig::new(2 << 20)).unwrap();
        let rsdp_gpa = tables(cpus, count).place(&ram).unwrap();
        let guest = Guest(&ram);

        assert!(rsdp_gpa.is_aligned(16) && (0xe_0000..0x10_0000).contains(&rsdp_gpa.0), "a scan finds it");
        let rsdp = guest.bytes(rsdp_gpa.0, 36);
        assert_eq!((&rsdp[..8], rsdp[15], u32_at(&rsdp, 20)), (&b"RSD PTR "[..], 2, 36));
        assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));

        let rsdt = guest.table(u32_at(&rsdp, 16).into(), b"RSDT");
        let xsdt = guest.table(u64_at(&rsdp, 24), b"XSDT");
        let pointers: Vec<u64> = rsdt[36..].chunks(4).map(|bytes| u32_at(bytes, 0).into()).collect();
        assert_eq!(pointers, xsdt[36..].chunks(8).map(|bytes| u64_at(bytes, 0)).collect::<Vec<_>>());

        let [fadt, madt] = pointers[..] else { panic!("{pointers:x?}") };
        let (fadt, _) = (guest.table(fadt, b"FACP"), guest.table(madt, b"APIC"));
        let dsdt = guest.table(u32_at(&fadt, 40).into(), b"DSDT");
        assert_eq!(u64_at(&fadt, 140), u64::from(u32_at(&fadt, 40)), "DSDT and X_DSDT");
        let facs = guest.table(u32_at(&fadt, 36).into(), b"FACS");
        assert_eq!((facs.len(), facs[32], u32_at(&fadt, 36) % 64), (64, 2, 0));

        let count_of = |name: &[u8]| dsdt.windows(name.len()).filter(|&window| window == name).count();
        assert_eq!((count_of(b"ACPI0007\0"), count_of(b"LNRO0005\0")), (cpus as usize, count));
    }
}

#[test]
fn tables_for_processors_name_no_device_and_are_the_same_otherwise() {
    let (full, cpus) = (chosen(20, 6, Acpi::Full), chosen(20, 6, Acpi::Cpus));
    let table = |tables: &Tables, name| tables.iter().find(|table| table.name == name).unwrap().bytes.clone();
    assert_eq!(table(&cpus, "MADT"), table(&full, "MADT"));
    let without_pointers = |fadt: Vec<u8>| [&fadt[..9], &fadt[10..40], &fadt[44..140], &fadt[148..]].concat();
    assert_eq!(without_pointers(table(&cpus, "FADT")), without_pointers(table(&full, "FADT")));
    // Header, NameOp "_S5_", PackageOp, length, 4 elements: 5, 5, 0, 0.
    assert_eq!(table(&cpus, "DSDT")[36..], *b"\x08_S5_\x12\x08\x04\x0a\x05\x0a\x05\x00\x00");
}

#[test]
fn tables_neither_overlap_nor_leave_their_room() {
    let tables = tables(1024, 14);
    let ranges: Vec<_> = tables.iter().map(|table| (table.gpa.0, table.gpa.0 + table.bytes.len() as u64)).collect();
    assert_eq!(ranges[0].0, layout::ACPI_TABLES.0);
    assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{ranges:x?}");
    assert!(ranges.last().unwrap().1 <= layout::HIGH_RAM.0);
    assert!(
        tables.iter().all(|table| table.name == "FACS" || table.gpa.0 + table.bytes.len() as u64 <= layout::MP_TABLE.0)
    );
}

/// Entry type, UID and APIC id.
type Processor = (u8, u32, u32);

/// The processors of a MADT, and all its other entries.
fn madt_entries(madt: &[u8]) -> (Vec<Processor>, Vec<Vec<u8>>) {
    let (mut processors, mut others) = (Vec::new(), Vec::new());
    let mut rest = &madt[44..];
    while let [kind, len, ..] = *rest {
        let (entry, next) = rest.split_at(len.into());
        match kind {
            0 => processors.push((kind, entry[2].into(), entry[3].into())),
            9 => processors.push((kind, u32_at(entry, 12), u32_at(entry, 4))),
            _ => others.push(entry.to_vec()),
        }
        let flags = if kind == 0 { 4 } else { 8 };
        assert!(![0, 9].contains(&kind) || u32_at(entry, flags) == 1, "enabled");
        rest = next;
    }
    (processors, others)
}

fn madt(apic_ids: Vec<u32>) -> Vec<u8> {
    let tables = build(&apic_ids, &Plan::new(&[], Acpi::Full).unwrap()).unwrap();
    tables.iter().find(|table| table.name == "MADT").unwrap().bytes.clone()
}

#[test]
fn the_madt_lists_each_apic_id_once_in_the_entry_that_can_hold_it() {
    let gaps: Vec<u32> = (0..20).map(|n| n / 5 * 8 + n % 5).collect();
    for ids in [vec![0], (0..20).collect(), gaps, (0..300).collect(), vec![0, 254, 255, 256, 0xffff_fffe]] {
        let expected: Vec<_> = (0..).zip(&ids).map(|(uid, &id)| (if id < 255 { 0 } else { 9 }, uid, id)).collect();
        assert_eq!(madt_entries(&madt(ids)).0, expected);
    }
}

#[test]
fn the_madt_says_how_interrupts_are_wired() {
    let ioapic = vec![1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0];
    let timer_at_pin_2 = vec![2, 10, 0, 0, 2, 0, 0, 0, 0, 0];
    let sci_is_a_level = vec![2, 10, 0, 9, 9, 0, 0, 0, 0b1101, 0];
    let nmi_at_lint1 = vec![4, 6, 0xff, 0, 0, 1];
    let x2apic_nmi_at_lint1 = vec![10, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0];

    let small = madt(vec![0]);
    assert_eq!((u32_at(&small, 36), u32_at(&small, 40)), (0xfee0_0000, 1));
    let mut entries = vec![ioapic, timer_at_pin_2, sci_is_a_level, nmi_at_lint1];
    assert_eq!(madt_entries(&small).1, entries);
    entries.push(x2apic_nmi_at_lint1);
    assert_eq!(madt_entries(&madt(vec![0, 255])).1, entries);
}

fn fadt(apic_ids: Vec<u32>) -> Vec<u8> {
    let tables = build(&apic_ids, &Plan::new(&[], Acpi::Full).unwrap()).unwrap();
    tables.iter().find(|table| table.name == "FADT").unwrap().bytes.clone()
}

#[test]
fn the_fadt_says_which_registers_a_machine_has() {
    let fadt = fadt(vec![0]);
    assert_eq!((fadt.len(), fadt[8], fadt[131]), (276, 6, 5), "length and version 6.5");
    assert_eq!((fadt[46], u32_at(&fadt, 48)), (9, 0), "SCI; no SMI command port: always in ACPI mode");
    let blocks = [(56, 88, 148, 0x600_u32, 4, 2), (64, 89, 172, 0x604, 2, 2), (76, 91, 208, 0x608, 4, 3)];
    for (port_at, len_at, extended_at, port, len, access) in blocks {
        assert_eq!((u32_at(&fadt, port_at), fadt[len_at]), (port, len));
        assert_eq!(fadt[extended_at..extended_at + 4], [1, len * 8, 0, access], "I/O, bits, offset, access");
        assert_eq!(u64_at(&fadt, extended_at + 4), u64::from(port));
    }
    assert_eq!((&fadt[116..120], u64_at(&fadt, 120), fadt[128]), (&[1, 8, 0, 1][..], 0xcf9, 6), "reset");
    assert_eq!((fadt[96], fadt[98], fadt[99]), (101, 0xe9, 3), "neither C2 nor C3");
    assert_eq!(fadt[108], 0x32, "century");
    assert_eq!(fadt[109..111], [0b101, 0], "ISA devices, no 8042, no VGA");
    let flags = 1 << 0 | 1 << 2 | 1 << 5 | 1 << 8 | 1 << 10;
    assert_eq!(u32_at(&fadt, 112), flags, "WBINVD, PROC_C1, SLP_BUTTON, TMR_VAL_EXT, RESET_REG_SUP; fixed RTC");
    let others = [60, 68, 72, 80, 84].map(|at| u32_at(&fadt, at));
    assert_eq!(others, [0; 5], "no PM1b, PM2, GPE");
}

#[test]
fn physical_destinations_are_forced_only_where_ids_need_it() {
    assert_eq!(u32_at(&fadt(vec![0, 254]), 112) >> 19 & 1, 0);
    assert_eq!(u32_at(&fadt(vec![0, 255]), 112) >> 19 & 1, 1);
}

/// Runs one of ACPICA's tools; all it said, or `None` (and a note) if it is not installed.
fn run(tool: &str, arguments: &[impl AsRef<OsStr> + Debug], directory: &Path) -> Option<String> {
    match Command::new(tool).args(arguments).current_dir(directory).output() {
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said).into_owned();
            assert!(output.status.success(), "{tool} {arguments:?}: {said}");
            Some(said)
        }
        Err(_) => {
            println!("skipped: {tool} not installed (package acpica-tools)");
            None
        }
    }
}

/// A table without what the compiler signs: its name and revision at 28, and so the checksum at 9.
fn unsigned(name: &str, bytes: &[u8]) -> Vec<u8> {
    match name {
        "FACS" => bytes.to_vec(),
        _ => [&bytes[..9], &bytes[10..28], &bytes[36..]].concat(),
    }
}

#[test]
fn iasl_takes_every_table_apart_and_puts_it_together_again_without_a_remark() {
    for (case, tables) in platforms() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path();
        let tables: Vec<_> = tables.iter().filter(|table| table.name != "RSDP").collect();
        for table in &tables {
            fs::write(directory.join(format!("{}.dat", table.name)), &table.bytes).unwrap();
        }
        // The tables of a machine at once: starting the tool costs more than a table. Two machines would be one namespace.
        let all = |options: &[&str], extension: &str| {
            let files = tables.iter().map(|table| format!("{}.{extension}", table.name));
            run("iasl", &options.iter().map(|&option| option.to_owned()).chain(files).collect::<Vec<_>>(), directory)
        };
        let Some(apart) = all(&["-d"], "dat") else { return };
        // Without optimizations: iasl would write a shorter path for a longer one.
        let together = all(&["-w3", "-oa"], "dsl").unwrap();
        assert!(together.contains("0 Errors, 0 Warnings, 0 Remarks"), "{case}: {together}");
        for table in tables {
            let (name, case) = (table.name, format!("{case}: {}", table.name));
            let source = fs::read_to_string(directory.join(format!("{name}.dsl"))).unwrap();
            for word in ["rror", "arning", "emark", "nvalid", "nknown", "ncorrect"] {
                assert!(!apart.contains(word) && !source.contains(word), "{case}: {word} in {apart}{source}");
            }
            let compiled = fs::read(directory.join(format!("{name}.aml"))).unwrap();
            assert_eq!(unsigned(name, &compiled), unsigned(name, &table.bytes), "{case}");
        }
    }
}

/// What `acpiexec` says of the largest machine, asked everything in one go: starting it costs more than all questions.
/// One answer for each question, which begins with the path that was asked for.
fn acpiexec() -> Option<&'static [String]> {
    static ANSWERS: OnceLock<Option<Vec<String>>> = OnceLock::new();
    let ask = || {
        let scratch = tempfile::tempdir().unwrap();
        for table in tables(300, 14).iter() {
            fs::write(scratch.path().join(format!("{}.dat", table.name)), &table.bytes).unwrap();
        }
        let devices = ["COM1", "RTC_"].map(str::to_owned).into_iter().chain((0..14).map(|n| format!("V{n:03X}")));
        let resources = devices.map(|name| format!("resources \\_SB_.{name}"));
        let objects = ["_S5_", "_SB_.C12B._UID"].map(|name| format!("evaluate \\{name}"));
        let questions = objects.into_iter().chain(resources).collect::<Vec<_>>().join(";");
        let said = run("acpiexec", &["-b", &questions, "DSDT.dat"], scratch.path())?;
        assert!(!said.contains("ACPI Error") && !said.contains("ACPI Warning"), "{said}");
        Some(said.replace("\nDevice: ", "\nEvaluating ").split("\nEvaluating \\").map(str::to_owned).collect())
    };
    ANSWERS.get_or_init(ask).as_deref()
}

/// The answer on one path, such as `_SB.COM1`.
fn answer<'a>(answers: &'a [String], path: &str) -> &'a str {
    let on_path = |answer: &&String| answer.split_whitespace().next() == Some(path);
    answers.iter().find(on_path).unwrap_or_else(|| panic!("nothing on {path} in {answers:?}"))
}

#[test]
fn acpica_evaluates_soft_off_and_a_processor() {
    let Some(answers) = acpiexec() else { return };
    let soft_off = answer(answers, "_S5_");
    assert!(soft_off.contains("Contains 4 Elements:\n    [Integer] = 0000000000000005"), "{soft_off}");
    let processor = answer(answers, "_SB_.C12B._UID");
    assert!(processor.contains("[Integer] = 000000000000012B"), "{processor}");
}

#[test]
fn acpica_decodes_the_resources_of_every_device() {
    let Some(answers) = acpiexec() else { return };
    let mut expected = vec![
        ("COM1".to_owned(), ["Address Minimum : 03F8", "Address Length : 08", "Dword00 : 00000004"].map(str::to_owned)),
        ("RTC".to_owned(), ["Address Minimum : 0070", "Address Length : 02", "Dword00 : 00000008"].map(str::to_owned)),
    ];
    let disks: Vec<_> = (0..14).map(VirtioKind::Block).collect();
    for (n, (_, part)) in Plan::new(&disks, Acpi::Full).unwrap().virtio().enumerate() {
        let (base, gsi) = (part.window().unwrap().0.0, part.line.unwrap());
        let place = [format!("Address : {base:08X}"), format!("Dword00 : {gsi:08X}"), String::new()];
        expected.push((format!("V{n:03X}"), place));
    }
    for (name, facts) in expected {
        let said = answer(answers, &format!("_SB.{name}"));
        let line = ["Triggering : Edge", "Polarity : ActiveHigh", "Sharing : Exclusive"];
        for fact in facts.iter().map(String::as_str).chain(line) {
            assert!(said.contains(fact), "{name}: no {fact:?} in {said}");
        }
    }
}

/// ACPICA runs the methods of PCI's slots; its ports are memory of its own, where nothing is at first.
#[test]
fn acpica_runs_the_methods_of_the_slots() {
    let (scratch, tables) = (tempfile::tempdir().unwrap(), on_pci());
    let dsdt = tables.iter().find(|table| table.name == "DSDT").unwrap();
    fs::write(scratch.path().join("DSDT.dat"), &dsdt.bytes).unwrap();
    let slot = |number: u8| format!("\\_SB_.PCI0.S{number:02X}_");
    let status = |number| format!("evaluate {}._STA", slot(number));
    let mut questions = vec![status(4), format!("evaluate {}._ADR", slot(4)), format!("evaluate {}._SUN", slot(31))];
    // A device comes into slot 4, is told of, and is ejected: here the register keeps what is written to it.
    questions.extend([format!("evaluate {}._EJ0 1", slot(4)), status(4), status(5)]);
    questions.extend(["evaluate \\_SB_.GED_._EVT 16".into(), "evaluate \\_SB_.PCI0.HPEV".into()]);
    let Some(said) = run("acpiexec", &["-b", &questions.join(";"), "DSDT.dat"], scratch.path()) else { return };
    assert!(!said.contains("ACPI Error") && !said.contains("ACPI Warning"), "{said}");
    let integers: Vec<_> = said.lines().filter_map(|line| line.trim().strip_prefix("[Integer] = ")).collect();
    let expected = ["0", "40000", "1F", "F", "0"].map(|digits| format!("{digits:0>16}"));
    assert_eq!(integers[..5], expected, "{said}");
}

#[test]
fn fixed_hardware_is_where_the_plan_says() {
    let plan = Plan::new(&[], Acpi::Full).unwrap();
    let tables = tables(1, 0);
    let table = |name| &tables.iter().find(|table| table.name == name).unwrap().bytes;
    let first_port = |kind| match plan.find(kind).unwrap().places[0] {
        Place::Ports { first, .. } => u32::from(first),
        Place::Mmio { base, .. } => base.0 as u32,
        Place::Pci { devfn, .. } => devfn.into(),
    };
    let fadt = table("FADT");
    assert_eq!(u32::from(fadt[46]), plan.find(Kind::AcpiPm).unwrap().line.unwrap(), "SCI_INT");
    assert_eq!(u32_at(fadt, 56), first_port(Kind::AcpiPm), "PM1a_EVT_BLK");
    assert_eq!(u32_at(fadt, 76), first_port(Kind::PmTimer), "PM_TMR_BLK");
    let reset = u64_at(fadt, 120) as u32;
    assert!(plan.find(Kind::PciHost).unwrap().places[0] == Place::Ports { first: 0xcf8, count: 8 } && reset == 0xcf9);
    let madt = table("MADT");
    assert_eq!(u32_at(madt, 36), first_port(Kind::LocalApic));
    let ioapic = first_port(Kind::IoApic).to_le_bytes();
    assert!(madt.windows(4).any(|window| window == ioapic), "the IOAPIC's address");
}
