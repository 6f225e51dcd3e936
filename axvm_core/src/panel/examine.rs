//! A guest's registers and memory in the words of the API.
//!
//! ```text
//!   /inspect, /inspect/rsp      Machine::inspect --Xray--> tree, text
//!   /registers                 Seen --Explained--> names and numbers, text
//!   /memory/vcpu0/rsp/64       register, symbol or number --walk, page by page--> bytes
//!   /symbols                   Symbols --LSTAR--> where they are now
//!   /dump, a descriptor        pause --thread "dump": Machine::dump--> ELF core --> resume
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use axvm_api::types::{DumpState, DumpStatus, GuestSymbols, Inspection, MemoryContents, VcpuRegisters};
use axvm_api::{Control, ControlError};
use axvm_arch::Gpa;
use axvm_inspect::hang::{Doing, Seen, VcpuFacts};
use axvm_inspect::registers::Explained;
use axvm_inspect::snapshot::{Processor, Snapshot};
use axvm_inspect::xray::{Style, text};
use axvm_kvm::KvmVcpu;
use axvm_machine::Machine;
use axvm_memory::GuestRam;
use axvm_sandbox::Role;
use axvm_sync::lock;

use super::{PATIENCE, Panel};
use crate::settings::number;

/// Most bytes in an answer.
const LONGEST: u64 = 64 << 10;
const PAGE: u64 = 4096;
const NO_NAMES: &str = "The guest's kernel carries no names of functions (KALLSYMS of Linux, .symtab of an ELF file); give --symbols to axvm run";
const ENDING: &str = "The machine is on its way to an end";

impl Panel {
    pub(super) fn inspection(&self, walk: Option<&str>) -> Result<Inspection, ControlError> {
        let machine = self.machine()?;
        let walk = walk.map(|word| self.address(word, &look_at(&machine, 0)?.0)).transpose()?;
        let status = self.status()?;
        let said = [
            ("state", if machine.is_paused() { "paused" } else { "running" }.to_owned()),
            ("up", format!("{:.1} s", status.uptime_s)),
            ("AxVM", format!("{}, process {}", status.version, status.pid)),
            ("vCPUs", status.cpus.to_string()),
            ("memory", format!("{} MiB", status.memory.size >> 20)),
            ("command line", machine.command_line().to_owned()),
        ];
        let xray = self.explainer.inspect(&machine, &status.name, &said, walk.as_slice(), &self.ram).ok_or(ENDING)?;
        let text = text(&xray, Style { colour: false, columns: None });
        let sections = serde_json::to_value(xray.sections).map_err(|error| ControlError(error.to_string()))?;
        Ok(Inspection { version: xray.version, name: xray.name, sections, text })
    }

    pub(super) fn vcpu_registers(&self) -> Result<Vec<VcpuRegisters>, ControlError> {
        let seen = self.machine()?.see_vcpus().ok_or(ENDING)?;
        Ok((0..).zip(seen).map(|(vcpu, seen)| self.explained(vcpu, seen)).collect())
    }

    fn explained(&self, vcpu: u32, seen: Option<Seen>) -> VcpuRegisters {
        let facts = VcpuFacts::of(seen);
        let state = match facts.doing() {
            Doing::InHost => "busy",
            Doing::NotStarted => "not started",
            Doing::Idle => "halted",
            Doing::HaltedForGood => "halted, interrupts off",
            Doing::Spinning(_) | Doing::Polling(_) | Doing::Running => "running",
        };
        let state = state.to_owned();
        let Some(Seen { snapshot, .. }) = &facts.seen else {
            let (registers, text, meanings) = (BTreeMap::new(), String::new(), String::new());
            return VcpuRegisters { vcpu, state, function: None, registers, text, meanings };
        };
        let explained = Explained::of(snapshot);
        let rip = snapshot.cpu.linear_rip();
        let function = self.explainer.with_symbols(|symbols| symbols?.located(snapshot)?.name(rip));
        let registers = named(snapshot).map(|(name, value)| (name.to_owned(), format!("{value:#x}"))).collect();
        VcpuRegisters { vcpu, state, function, registers, text: explained.to_string(), meanings: explained.meanings() }
    }

    pub(super) fn memory_contents(
        &self,
        space: &str,
        address: &str,
        len: &str,
    ) -> Result<MemoryContents, ControlError> {
        let len = number(len).filter(|len| (1..=LONGEST).contains(len)).ok_or_else(|| {
            ControlError(format!("{len} is no length; it is 1 to {LONGEST} bytes, such as 256 or 0x100"))
        })?;
        let vcpu = match space {
            "physical" => None,
            _ => Some(space.strip_prefix("vcpu").and_then(|number| number.parse::<u32>().ok()).ok_or_else(|| {
                ControlError(format!("{space} is no space of addresses; there are physical, vcpu0, vcpu1 and so on"))
            })?),
        };
        let machine = self.machine()?;
        let (snapshot, processor) = look_at(&machine, vcpu.unwrap_or_default())?;
        let address = self.address(address, &snapshot)?;
        let piece = Piece { snapshot, processor, is_linear: vcpu.is_some(), address, len };
        let read = machine.examine(vcpu.unwrap_or_default(), move |vcpu: &KvmVcpu| piece.read(vcpu.ram()));
        read.ok_or(ENDING)?
    }

    pub(super) fn guest_symbols(&self) -> Result<GuestSymbols, ControlError> {
        let machine = self.machine()?;
        let (snapshot, _) = look_at(&machine, 0)?;
        self.explainer.with_symbols(|symbols| {
            let symbols = symbols.ok_or(NO_NAMES)?;
            let located = symbols.located(&snapshot).ok_or("The names are of another kernel (--symbols)")?;
            let stays = machine.command_line().split_ascii_whitespace().any(|word| word == "nokaslr");
            if !located.is_up && symbols.is_linux() && !stays {
                return Err("The kernel is not up yet, so where it will be is not known (KASLR); try again later, or \
                            add nokaslr to its command line"
                    .into());
            }
            Ok(GuestSymbols { slide: format!("{:#x}", located.slide), map: located.map() })
        })
    }

    /// What a client calls an address: a number, a register or a function.
    fn address(&self, word: &str, snapshot: &Snapshot) -> Result<u64, ControlError> {
        if let Some(number) = number(word) {
            return Ok(number);
        }
        if let Some((_, value)) = named(snapshot).find(|(name, _)| *name == word) {
            return Ok(if word == "rip" { snapshot.cpu.linear_rip() } else { value });
        }
        let symbol = |symbols: Option<&axvm_inspect::symbols::Symbols>| match symbols {
            None => Err("its kernel carries no names of functions (--symbols of axvm run gives it some)".to_owned()),
            Some(symbols) => symbols
                .located(snapshot)
                .and_then(|located| located.address(word))
                .ok_or_else(|| "the kernel's symbols have no function of that name".to_owned()),
        };
        self.explainer.with_symbols(symbol).map_err(|why| {
            ControlError(format!("{word} is neither a number, such as 0x100000, nor a register, such as rsp; {why}"))
        })
    }

    pub(super) fn begin_dump(&self, descriptors: Vec<OwnedFd>) -> Result<(), ControlError> {
        let Some(file) = descriptors.into_iter().next().map(File::from) else {
            return Err(
                "The open file must come with the request (SCM_RIGHTS), for this process opens none any more: \
                        axvm ctl MACHINE dump FILE does that"
                    .into(),
            );
        };
        if lock(&self.dump).state == DumpState::Writing {
            return Err("A dump is being written; GET /dump tells how far it is, a resume ends it".into());
        }
        let was_paused = self.machine()?.is_paused();
        self.pause()?;
        let (machine, ram, status) = (self.machine()?, Arc::clone(&self.ram), Arc::clone(&self.dump));
        *lock(&status) = DumpStatus { state: DumpState::Writing, done: 0, total: ram.size(), error: None };
        let thread = axvm_sandbox::spawn(Role::Api, "dump".to_owned(), {
            let machine = Arc::clone(&machine);
            move || {
                write(&machine, &ram, &file, &status);
                if !was_paused {
                    // One that is not paused is left as it is.
                    let _ = machine.resume(Instant::now() + PATIENCE);
                }
            }
        });
        if let Err(error) = thread {
            lock(&self.dump).state = DumpState::Failed;
            if !was_paused {
                let _ = machine.resume(Instant::now() + PATIENCE);
            }
            return Err(ControlError(format!("The host starts no thread for the dump: {error}")));
        }
        Ok(())
    }
}

fn write(machine: &Machine, ram: &GuestRam, file: &File, status: &Mutex<DumpStatus>) {
    let note = |done, total| {
        let mut status = lock(status);
        (status.done, status.total) = (done, total);
    };
    let written = machine.dump(ram, file, note);
    let mut status = lock(status);
    status.state = if written.is_ok() { DumpState::Written } else { DumpState::Failed };
    status.error = written.err().map(|error| error.to_string());
}

/// How a vCPU stands.
fn look_at(machine: &Machine, vcpu: u32) -> Result<(Snapshot, Processor), ControlError> {
    let look = machine.examine(vcpu, Snapshot::take).ok_or_else(|| no_vcpu(machine, vcpu))?;
    look.map_err(|error| ControlError(format!("KVM does not tell the vCPU's registers: {error}")))
}

/// A vCPU that was not there.
fn no_vcpu(machine: &Machine, number: u32) -> ControlError {
    match machine.exits().len() {
        count if number as usize >= count => {
            ControlError(format!("There is no vCPU {number}; the machine has 0 to {}", count.saturating_sub(1)))
        }
        _ => {
            ControlError(format!("vCPU {number} does not come out of the host, or the machine is stopping; try again"))
        }
    }
}

/// Registers by their names in small letters.
fn named(snapshot: &Snapshot) -> impl Iterator<Item = (&'static str, u64)> {
    let (r, s) = (snapshot.cpu.regs, &snapshot.cpu.system);
    let general = [
        ("rax", r.rax),
        ("rbx", r.rbx),
        ("rcx", r.rcx),
        ("rdx", r.rdx),
        ("rsi", r.rsi),
        ("rdi", r.rdi),
        ("rbp", r.rbp),
        ("rsp", r.rsp),
        ("r8", r.r8),
        ("r9", r.r9),
        ("r10", r.r10),
        ("r11", r.r11),
        ("r12", r.r12),
        ("r13", r.r13),
        ("r14", r.r14),
        ("r15", r.r15),
        ("rip", r.rip),
        ("rflags", r.rflags),
    ];
    let segments = [("cs", s.cs), ("ss", s.ss), ("ds", s.ds), ("es", s.es), ("fs", s.fs), ("gs", s.gs)];
    let rest = [
        ("fs_base", s.fs.base),
        ("gs_base", s.gs.base),
        ("gdtr", s.gdt.base),
        ("idtr", s.idt.base),
        ("cr0", s.cr0),
        ("cr2", snapshot.cr2),
        ("cr3", s.cr3),
        ("cr4", s.cr4),
        ("efer", s.efer),
    ];
    general.into_iter().chain(segments.map(|(name, segment)| (name, u64::from(segment.selector)))).chain(rest)
}

/// What is to be read.
struct Piece {
    snapshot: Snapshot,
    processor: Processor,
    is_linear: bool,
    address: u64,
    len: u64,
}

impl Piece {
    /// Page by page, up to the first that is not there.
    fn read(&self, ram: &GuestRam) -> Result<MemoryContents, ControlError> {
        let (mut bytes, mut end, mut walk) = (Vec::new(), None, String::new());
        let mut at = self.address;
        while (bytes.len() as u64) < self.len {
            let len = (PAGE - at % PAGE).min(self.len - bytes.len() as u64);
            let gpa = self.physical(at, ram, &mut walk);
            let read = gpa.and_then(|gpa| {
                let mut page = vec![0; len as usize];
                ram.read(gpa, &mut page).map(|()| page).map_err(|_| format!("at physical {gpa} is no RAM"))
            });
            match read {
                Ok(page) => bytes.extend(page),
                Err(why) => {
                    end = Some(format!("{at:#x}: {why}"));
                    break;
                }
            }
            match at.checked_add(len) {
                Some(next) => at = next,
                None => break,
            }
        }
        if bytes.is_empty() && walk.is_empty() {
            return Err(ControlError(end.unwrap_or_default()));
        }
        let bytes: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let bits = self.snapshot.cpu.mode().cpu.bits();
        Ok(MemoryContents { address: self.address, bytes, end, walk, bits })
    }

    /// Where `at` is. The first walk is kept.
    fn physical(&self, at: u64, ram: &GuestRam, first: &mut String) -> Result<Gpa, String> {
        if !self.is_linear {
            return Ok(Gpa(at));
        }
        let walk = self.processor.paging(&self.snapshot.cpu).walk(at, &|gpa, data| ram.read(gpa, data).is_ok());
        if first.is_empty() {
            *first = walk.to_string();
        }
        walk.end.map(|page| page.gpa).map_err(|fault| fault.to_string())
    }
}
