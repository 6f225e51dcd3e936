//! The boot x-ray: a machine at power-on, before its first instruction, or at a moment while it runs, as one tree of data.
//!
//! ```text
//!   LiveFacts: vCPUs, lines, queues, clocks --live--.
//!   Facts: plan, tables, LinuxStart, RAM ------of----+-> Xray --text--> terminal, 80 columns
//!                                                          |  --serde-> JSON, of a documented version
//!                                                          |  --html--> one page, for a browser without a network
//!   Xray, Xray ---------------------------------------diff-+--> what differs between two machines
//! ```
//!
//! All that is shown was made by the code that boots: the facts are its results, and what is in guest memory is read from
//! there. Kernel images are untrusted: no text of theirs reaches a terminal or a page as it is.
//!
//! No specification of its own: each section's rows cite theirs.

use axvm_arch::Gpa;
use axvm_arch::cpuid::CpuidEntry;
use axvm_arch::paging::ReadPhysical;
use axvm_boot::acpi::Tables;
use axvm_boot::linux::LinuxStart;
use axvm_boot::mp::MpTable;
use axvm_boot::plan::Plan;
use serde::Serialize;

use crate::kernel::Finding;
use crate::text::clean;

mod acpi;
mod aml;
mod boot_params;
mod cpuid;
mod devices;
mod diff;
mod html;
mod live;
mod memory;
mod processor;
mod text;
mod words;

pub use diff::{Change, Changes, Diff};
pub use html::{diff_html, html};
pub use live::{ClockFacts, LiveFacts};
pub use text::{Style, text};

/// The version of the tree: a program that reads the JSON compares it. It grows when a field or a section's id changes its
/// meaning or goes; new ones may come without.
pub const VERSION: u32 = 1;

/// The ids of all sections at power-on, in their order.
pub const SECTIONS: [&str; 10] =
    ["machine", "lacks", "memory", "boot_params", "command_line", "registers", "walk", "devices", "acpi", "cpuid"];

/// All that an x-ray is made of.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    /// What the machine is called.
    pub name: &'a str,
    /// What was said of it, for the first section: a name, and a value in words.
    pub said: &'a [(&'static str, String)],
    /// Who sits where.
    pub plan: &'a Plan,
    /// The ACPI tables, if it has some.
    pub tables: Option<&'a Tables>,
    /// The MP table.
    pub mp: &'a MpTable,
    /// How the kernel starts.
    pub start: &'a LinuxStart,
    /// The command line that AxVM gives where the user does not decide otherwise.
    pub default_command_line: &'a str,
    /// What the user added.
    pub append: &'a str,
    /// Guest memory at power-on.
    pub read: ReadPhysical<'a>,
    /// Linear addresses to be walked.
    pub walks: &'a [u64],
    /// What the first processor answers to CPUID, or why that is not known.
    pub cpuid: Result<&'a CpuidFacts, &'a str>,
    /// What kernel and initrd lack, or why that is not known; none to leave the section out.
    pub lacks: Option<Result<&'a Lacks, &'a str>>,
}

/// What a look into kernel and initrd has found.
#[derive(Clone, Debug, Default)]
pub struct Lacks {
    /// What this machine needs and they do not have.
    pub findings: Vec<Finding>,
    /// What tells of the kernel.
    pub evidence: String,
}

/// What is known of a processor's CPUID.
#[derive(Clone, Debug, Default)]
pub struct CpuidFacts {
    /// What KVM supports on this host.
    pub supported: Vec<CpuidEntry>,
    /// What the first vCPU answers.
    pub guest: Vec<CpuidEntry>,
    /// Features that Linux lists for the host's processor, by their names in /proc/cpuinfo.
    pub host_flags: String,
}

/// A machine at power-on, or at a moment while it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Xray {
    /// [`VERSION`].
    pub version: u32,
    /// What the machine is called.
    pub name: String,
    /// Its parts, in the order in which they are read.
    pub sections: Vec<Section>,
}

/// One look at the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Section {
    /// What programs and `--only` call it.
    pub id: &'static str,
    /// What people call it.
    pub title: &'static str,
    /// What it shows, in one sentence.
    pub about: String,
    /// What it found.
    pub rows: Vec<Row>,
}

/// One fact, with what it is made of. What a fact does not have is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Its name; among its neighbours, one name may come again.
    pub name: String,
    /// Where it is: an address, an offset or a number, as its section says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<u64>,
    /// Its length in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub len: Option<u64>,
    /// Its bytes as they lie in memory, in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<String>,
    /// What it holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
    /// What that means.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub means: String,
    /// Who put it there, or who answers there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Where that is defined.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// What it is made of.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rows: Vec<Row>,
}

/// What a row holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Value {
    /// A number; people read it in hex.
    Number(u64),
    /// Words.
    Text(String),
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Number(number) => write!(f, "{number:#x}"),
            Value::Text(text) => f.write_str(text),
        }
    }
}

impl Xray {
    /// Looks at the machine.
    pub fn of(facts: &Facts) -> Xray {
        let mut sections = vec![
            machine(facts),
            memory::section(facts),
            boot_params::section(facts),
            words::section(facts),
            processor::registers(facts),
            processor::walks(facts),
            devices::section(facts),
            acpi::section(facts),
            cpuid::section(facts),
        ];
        if let Some(looked) = facts.lacks {
            sections.insert(1, lacks(looked));
        }
        Xray { version: VERSION, name: clean(facts.name), sections }
    }

    /// The same with these sections alone; with all, if there are none.
    pub fn only(mut self, ids: &[String]) -> Xray {
        self.sections.retain(|section| ids.is_empty() || ids.iter().any(|id| id == section.id));
        self
    }
}

/// What was said, and what follows from it.
fn machine(facts: &Facts) -> Section {
    let mut rows: Vec<Row> = facts.said.iter().map(|(name, value)| Row::new(*name).text(value)).collect();
    let start = facts.start;
    let entry = Row::new("entry").text(start.entry.to_string()).means(format!(
        "the first instruction is at {:#x}, in {}",
        start.state.regs.rip,
        start.state.mode()
    ));
    rows.insert(1.min(rows.len()), Row::new("format").text(start.kernel.to_string()));
    rows.insert(2.min(rows.len()), entry);
    Section { id: "machine", title: "Machine", about: "What was asked for, completed by defaults.".into(), rows }
}

/// What this machine needs and its guest does not have.
fn lacks(looked: Result<&Lacks, &str>) -> Section {
    let (about, rows) = match looked {
        Err(why) => (format!("Kernel and initrd were not looked into: {why}."), Vec::new()),
        Ok(Lacks { findings, evidence }) => {
            let rows: Vec<Row> = findings.iter().map(|found| Row::new(found.rule).means(&found.message)).collect();
            let found = if rows.is_empty() { "nothing that AxVM knows of" } else { "this" };
            (format!("What this machine needs and kernel and initrd lack: {found} (from {evidence})."), rows)
        }
    };
    Section { id: "lacks", title: "What the guest lacks", about: clean(&about), rows }
}

impl Row {
    fn new(name: impl AsRef<str>) -> Row {
        Row { name: clean(name.as_ref()), ..Row::default() }
    }

    fn at(self, at: u64) -> Row {
        Row { at: Some(at), ..self }
    }

    fn len(self, len: u64) -> Row {
        Row { len: Some(len), ..self }
    }

    fn bytes(self, bytes: &[u8]) -> Row {
        Row { bytes: Some(hex(bytes)), ..self }
    }

    fn value(self, value: u64) -> Row {
        Row { value: Some(Value::Number(value)), ..self }
    }

    fn text(self, text: impl AsRef<str>) -> Row {
        Row { value: Some(Value::Text(clean(text.as_ref()))), ..self }
    }

    fn means(self, means: impl AsRef<str>) -> Row {
        Row { means: clean(means.as_ref()), ..self }
    }

    fn owner(self, owner: impl AsRef<str>) -> Row {
        Row { owner: Some(clean(owner.as_ref())), ..self }
    }

    fn source(self, source: impl Into<String>) -> Row {
        Row { source: Some(source.into()), ..self }
    }

    fn rows(self, rows: Vec<Row>) -> Row {
        Row { rows, ..self }
    }

    /// First address behind it; its own, if it has no length.
    fn end(&self) -> u64 {
        self.at.unwrap_or(0).saturating_add(self.len.unwrap_or(0))
    }
}

/// Bytes with a space between each; long ones end in dots.
fn hex(bytes: &[u8]) -> String {
    const MOST: usize = 16;
    let shown: Vec<String> = bytes.iter().take(MOST).map(|byte| format!("{byte:02x}")).collect();
    let more = if bytes.len() > MOST { " ..." } else { "" };
    shown.join(" ") + more
}

/// `len` bytes, for people: in the largest unit, with a digit behind the point where it is not exact.
fn size(len: u64) -> String {
    let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(unit, _)| len >= *unit) {
        Some((unit, name)) if len.is_multiple_of(*unit) => format!("{} {name}", len / unit),
        Some((unit, name)) => format!("{:.1} {name}", len as f64 / *unit as f64),
        None => format!("{len} B"),
    }
}

/// The `len` bytes of guest memory at `at`; none if not all of them are RAM.
fn read(facts: &Facts, at: u64, len: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; len];
    (facts.read)(Gpa(at), &mut bytes).then_some(bytes)
}
