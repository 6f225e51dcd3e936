//! `axvm inspect` as a user has it: whole answers as files beside this one, for fixed inputs; `BLESS=1` writes them anew.
//!
//! ```text
//!   synthetic bzImage, fixed options --> axvm inspect --> text, JSON   == inspect/NAME
//! ```
//!
//! None of it needs /dev/kvm: what depends on the host has tests of its own.

use crate::common::{AXVM, Place, has_kvm};
use crate::images;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// A directory with a kernel, an initrd and a disk.
fn place() -> Place {
    let place = Place::new();
    fs::write(place.path("bzImage"), images::bzimage()).unwrap();
    fs::write(place.path("initrd.img"), [0; 0x1234]).unwrap();
    place
}

/// `axvm WORDS` without any /dev: what it needs of the host are files of the user.
fn axvm(place: &Place, words: &str) -> Output {
    let mut command = Command::new(AXVM);
    let command = command.args(words.split_whitespace()).current_dir(place.path("")).env_remove("NO_COLOR");
    command.output().unwrap()
}

fn answer(place: &Place, words: &str) -> String {
    let output = axvm(place, words);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "axvm {words}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Compares with the file `name`.
fn is_as_before(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/inspect").join(name);
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, text).unwrap();
    }
    let before = fs::read_to_string(&path).unwrap_or_default();
    assert!(text == before, "{name} differs; BLESS=1 writes it anew:\n{text}");
}

const MACHINE: &str = "inspect -k bzImage -i initrd.img -d disk.img,ro -c 2 -m 64M --name web --append quiet";

#[test]
fn the_whole_machine_is_shown_in_80_columns() {
    let place = place();
    let text = answer(&place, &format!("{MACHINE} --only machine,memory,boot_params,command_line,registers,walk"));
    is_as_before("machine.txt", &text);
    let long = text.lines().find(|line| line.chars().count() > 80);
    assert_eq!(long, None);
    assert!(!text.contains('\x1b'), "no colour but on a terminal");
}

#[test]
fn devices_and_tables_are_taken_apart_on_either_bus() {
    let place = place();
    for (bus, name) in [("mmio", "tables.txt"), ("pci", "tables-pci.txt")] {
        let text = answer(&place, &format!("{MACHINE} --bus {bus} --only devices,acpi"));
        is_as_before(name, &text);
        assert_eq!(text.lines().find(|line| line.chars().count() > 80), None);
        assert!(!text.contains("not decoded") && !text.contains("WRONG"), "{text}");
    }
    let none = answer(&place, &format!("{MACHINE} --acpi off --only devices,acpi,command_line"));
    assert!(none.contains("announced on the command line") && none.contains("There are none (--acpi off)"), "{none}");
    assert!(none.contains("a virtio device: 512 bytes of registers at 0xd0000000, interrupt line 5"), "{none}");
}

#[test]
fn the_processor_is_what_kvm_makes_of_it_or_unknown() {
    let place = place();
    let text = answer(&place, &format!("{MACHINE} --only cpuid"));
    match has_kvm() {
        true => assert!(text.contains("0x40000001") && text.contains("hypervisor"), "{text}"),
        false => assert!(text.contains("Only KVM can tell, and it is not at hand: "), "{text}"),
    }
}

#[test]
fn a_browser_gets_one_page_that_needs_nothing_else() {
    let place = place();
    let page = answer(
        &place,
        &format!("{MACHINE} --only machine,memory,boot_params,command_line,registers,walk --format html"),
    );
    is_as_before("machine.html", &page);
    for outside in ["http://", "https://", "src=", "url(", "<script", "<link"] {
        assert!(!page.contains(outside), "{outside}");
    }
    let count = |tag: &str| page.matches(&format!("<{tag}")).count();
    for tag in ["section", "table", "tr", "td", "svg", "nav", "div"] {
        assert_eq!(count(tag), page.matches(&format!("</{tag}>")).count(), "{tag}");
    }
}

#[test]
fn two_settings_files_are_compared() {
    let place = place();
    let file = |name: &str, size: &str, more: &str| {
        let text = format!("kernel = 'bzImage'\nname = 'x'\n{more}\n[cpus]\ncount = 1\n[memory]\nsize = '{size}'\n");
        fs::write(place.path(name), text).unwrap();
    };
    file("a.toml", "64M", "initrd = 'initrd.img'");
    file("b.toml", "128M", "initrd = 'initrd.img'\nappend = 'quiet'\nbus = 'pci'");
    let only = "--only machine,memory,boot_params,command_line,registers,walk,devices";
    is_as_before("diff.txt", &answer(&place, &format!("inspect --diff a.toml b.toml {only}")));
    let same = answer(&place, "inspect --diff a.toml a.toml");
    assert!(same.ends_with("There is no difference.\n"), "{same}");
    let more = answer(&place, "inspect --diff a.toml b.toml -m 1G --only machine --format json");
    let json: serde_json::Value = serde_json::from_str(&more).unwrap();
    let changes = json["sections"][0]["changes"].as_array().unwrap();
    assert_eq!((changes.len(), &changes[0]["path"][0]), (1, &"bus".into()), "other arguments hold for both: {more}");
    assert!(answer(&place, "inspect --diff a.toml b.toml --format html").contains("<th>a.toml</th><th>b.toml</th>"));
    for words in ["--diff a.toml", "--diff a.toml b.toml --config a.toml", "--diff a.toml none.toml"] {
        assert!(!axvm(&place, &format!("inspect {words}")).status.success(), "{words}");
    }
}

#[test]
fn programs_read_the_same_tree_as_json() {
    let place = place();
    let text = answer(&place, &format!("{MACHINE} --format json"));
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((json["version"].as_u64(), json["name"].as_str()), (Some(1), Some("web")));
    let sections = json["sections"].as_array().unwrap();
    let section = |id: &str| sections.iter().find(|section| section["id"] == id).unwrap()["rows"].as_array().unwrap();
    let row = |id: &str, name: &str| section(id).iter().find(|row| row["name"] == name).unwrap().clone();
    let rsdp = row("boot_params", "acpi_rsdp_addr");
    assert_eq!(
        (rsdp["at"].as_u64(), rsdp["value"].as_u64(), &rsdp["bytes"]),
        (Some(0x70), Some(0xe_0000), &"00 00 0e 00 00 00 00 00".into())
    );
    assert_eq!(row("command_line", "quiet")["owner"], "yours");
    assert_eq!(row("command_line", "ro")["owner"], "default");
    let ram: u64 =
        section("memory").iter().filter(|band| band["name"] == "RAM").filter_map(|band| band["len"].as_u64()).sum();
    assert_eq!(ram, (64 << 20) - (0x10_0000 - 0x9_fc00));
}

#[test]
fn an_address_is_walked_as_the_processor_would() {
    let place = place();
    fs::write(place.path("elf"), images::segments(&[16 << 20])).unwrap();
    let walk = |words: &str| answer(&place, &format!("inspect --only walk {words}"));
    let text = walk("-k elf --entry 64 -m 64G --walk 0x40201234 --walk 0xffffffff80000000");
    is_as_before("walk.txt", &text);
    let off = walk("-k bzImage --walk 0x1234");
    assert!(off.contains("paging is off: physical 0x1234"), "{off}");
    let error = axvm(&place, "inspect -k bzImage --walk ten");
    assert_eq!(error.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&error.stderr).contains("--walk ten: not an address"), "{error:?}");
}

#[test]
fn a_machine_that_cannot_be_is_the_same_error_as_in_a_run() {
    let place = place();
    for words in ["-k none", "-k disk.img", "-k bzImage --entry 64", "-k bzImage -m 2M", "-k bzImage --pin 1-2"] {
        let [run, inspect] = ["run", "inspect"].map(|command| axvm(&place, &format!("{command} {words} -c 1")));
        let last =
            |output: &Output| String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_owned();
        assert!(!inspect.status.success() && inspect.stdout.is_empty(), "{words}");
        if has_kvm() {
            assert_eq!((last(&inspect), inspect.status), (last(&run), run.status), "{words}");
        }
    }
}

#[test]
fn a_name_cannot_control_the_terminal() {
    let place = place();
    fs::write(place.path("a\x1b[31m"), images::bzimage()).unwrap();
    let output = Command::new(AXVM)
        .args(["inspect", "-k", "a\x1b[31m", "--append", "x\x1by"])
        .current_dir(place.path(""))
        .output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    assert!(text.contains("a\u{fffd}[31m") && !text.contains('\x1b'), "{text}");
}
