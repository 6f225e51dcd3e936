//! The x-ray over every entry, and over kernels that want to break it.

use axvm_arch::Gpa;
use axvm_arch::cpuid::CpuidEntry;
use axvm_boot::acpi::{self, Acpi};
use axvm_boot::linux::{self, Entry, LinuxConfig};
use axvm_boot::mp;
use axvm_boot::plan::{Plan, VirtioKind};
use axvm_inspect::kernel::Finding;
use axvm_inspect::xray::{CpuidFacts, Facts, Lacks, Row, SECTIONS, Style, Value, Xray, text};
use axvm_memory::GuestRam;
use proptest::prelude::*;

use crate::power_on::bzimage;

const SIZE: u64 = 64 << 20;

/// The x-ray of a machine with this kernel, if it starts.
fn look(kernel: &[u8], entry: Entry, append: &str, cpuid: Result<&CpuidFacts, &str>) -> Option<Xray> {
    let ram = GuestRam::allocate_to_inspect(SIZE).unwrap();
    let plan = Plan::new(&[VirtioKind::Block(0)], Acpi::Full).unwrap();
    let tables = acpi::build(&[0, 1], &plan).unwrap();
    let rsdp = tables.place(&ram).unwrap();
    let mp = mp::build(&[0, 1]);
    mp.place(&ram).unwrap();
    let config = LinuxConfig {
        entry: Some(entry),
        command_line: append.into(),
        plain_command_line: append.into(),
        initrd_len: Some(5000),
        ..LinuxConfig::default()
    };
    let start = linux::prepare(&ram, &kernel, &config, Some(rsdp)).ok()?;
    let read = |gpa: Gpa, data: &mut [u8]| ram.read(gpa, data).is_ok();
    let found = Finding { rule: "virtio-blk", message: "no driver".into(), evidence: "a test".into() };
    let lacks = Lacks { findings: vec![found], evidence: "a test".into() };
    Some(Xray::of(&Facts {
        name: "test",
        said: &[("kernel", "test".into())],
        plan: &plan,
        tables: Some(&tables),
        mp: &mp,
        start: &start,
        default_command_line: "console=ttyS0",
        append,
        read: &read,
        walks: &[0, u64::MAX, 0xc000_0000],
        lacks: Some(Ok(&lacks)),
        cpuid,
    }))
}

fn rows<'a>(xray: &'a Xray, id: &str) -> &'a [Row] {
    &xray.sections.iter().find(|section| section.id == id).unwrap().rows
}

fn row<'a>(rows: &'a [Row], name: &str) -> &'a Row {
    rows.iter().find(|row| row.name == name).unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn every_entry_has_all_sections() {
    let (bzimage, selftest, multiboot) = (bzimage(), axvm_guest::selftest(), axvm_guest::multiboot());
    for (entry, kernel, field) in [
        (Entry::Bits32, &bzimage[..], "cmd_line_ptr"),
        (Entry::Bits64, &bzimage[..], "cmd_line_ptr"),
        (Entry::Pvh, selftest, "cmdline_paddr"),
        (Entry::Multiboot, multiboot, "total_size"),
    ] {
        let xray = look(kernel, entry, "quiet", Err("no KVM")).unwrap();
        let ids: Vec<_> = xray.sections.iter().map(|section| section.id).collect();
        assert_eq!(ids, SECTIONS, "{entry}");
        assert!(xray.sections.iter().all(|section| !section.rows.is_empty()), "{entry}");
        row(rows(&xray, "boot_params"), field);
        let shown = text(&xray, Style { colour: false, columns: None });
        assert_eq!(shown.lines().find(|line| line.chars().count() > 80), None, "{entry}");
        let bands = rows(&xray, "memory");
        assert!(
            bands.windows(2).all(|pair| pair[0].at.unwrap() + pair[0].len.unwrap() == pair[1].at.unwrap()),
            "{entry}: no gap"
        );
    }
}

#[test]
fn every_thing_lies_in_the_band_of_its_address() {
    let xray = look(&bzimage(), Entry::Bits64, "quiet", Err("no KVM")).unwrap();
    let end = |row: &Row| row.at.unwrap() + row.len.unwrap_or(0);
    for band in rows(&xray, "memory") {
        assert!(band.rows.iter().all(|item| item.at >= band.at && end(item) <= end(band)), "{band:?}");
        assert!(band.rows.windows(2).all(|pair| end(&pair[0]) <= pair[1].at.unwrap()), "{band:?}");
    }
    let kernel = row(&rows(&xray, "memory").iter().find(|band| band.at == Some(1 << 20)).unwrap().rows, "kernel");
    assert_eq!((kernel.at, kernel.len), (Some(16 << 20), Some(16 << 20)), "with its init_size");
}

#[test]
fn a_damaged_table_is_seen_by_its_checksum() {
    let plan = Plan::new(&[], Acpi::Full).unwrap();
    let tables = acpi::build(&[0], &plan).unwrap();
    let xray = |damage: bool| {
        let ram = GuestRam::allocate_to_inspect(SIZE).unwrap();
        let rsdp = tables.place(&ram).unwrap();
        let kernel = bzimage();
        let start = linux::prepare(&ram, &&kernel[..], &LinuxConfig::default(), Some(rsdp)).unwrap();
        let madt = tables.iter().find(|table| table.name == "MADT").unwrap();
        if damage {
            ram.write(Gpa(madt.gpa.0 + 36), &[1]).unwrap();
        }
        let read = |gpa: Gpa, data: &mut [u8]| ram.read(gpa, data).is_ok();
        let said = [];
        let (name, default_command_line, append, walks) = ("test", "", "", &[][..]);
        let (mp, cpuid) = (&mp::build(&[0]), Err("no KVM"));
        let facts = Facts {
            name,
            said: &said,
            plan: &plan,
            tables: Some(&tables),
            mp,
            start: &start,
            default_command_line,
            append,
            read: &read,
            walks,
            lacks: None,
            cpuid,
        };
        let xray = Xray::of(&facts);
        row(&row(rows(&xray, "acpi"), "MADT").rows, "checksum").means.clone()
    };
    assert!(xray(false).starts_with("right: all ") && xray(true).starts_with("WRONG: all "), "{}", xray(true));
}

#[test]
fn features_that_differ_from_the_hosts_are_named() {
    let leaf = |ecx| vec![CpuidEntry { function: 1, ecx, ..CpuidEntry::default() }];
    let known = CpuidFacts { supported: leaf(0x21), guest: leaf(0x8000_0001), host_flags: "pni vmx avx".into() };
    let xray = look(&bzimage(), Entry::Bits32, "", Ok(&known)).unwrap();
    let cpuid = rows(&xray, "cpuid");
    assert_eq!(row(&row(cpuid, "0x1").rows, "ECX").means, "pni hypervisor; kept back: vmx; added: hypervisor");
    let differences = &row(cpuid, "differences").rows;
    for (name, feature) in [("added", ": hypervisor"), ("kept back", ": vmx"), ("host only", ": avx")] {
        assert!(row(differences, name).means.ends_with(feature), "{differences:?}");
    }
}

#[test]
fn a_word_is_the_users_or_a_default_even_if_quoted() {
    let xray = look(&bzimage(), Entry::Bits32, "a=\"b c\" quiet -- x", Err("no KVM")).unwrap();
    let words = rows(&xray, "command_line");
    assert_eq!(row(words, "a=\"b c\"").owner.as_deref(), Some("yours"));
    assert_eq!(row(words, "console=ttyS0").owner.as_deref(), Some("left out"), "it is not in this line");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_kernel_breaks_it(at in 0x1f0_usize..0x270, value: u8, more: u8, bits64: bool, append in ".{0,40}") {
        let mut kernel = bzimage();
        kernel[at] = value;
        kernel[at + 1] ^= more;
        let entry = if bits64 { Entry::Bits64 } else { Entry::Bits32 };
        if let Some(xray) = look(&kernel, entry, &append, Err("no KVM")) {
            let shown = text(&xray, Style { colour: false, columns: Some(80) });
            prop_assert!(shown.chars().all(|letter| letter == '\n' || !letter.is_control()), "{}", shown);
            prop_assert!(matches!(row(rows(&xray, "registers"), "RIP").value, Some(Value::Number(_))));
        }
    }
}
