//! Breakpoints: those of the processor, and those that are bytes in the guest's code.
//!
//! ```text
//!   code   55  48 89 e5 ...        kept: 55 48, and where that is in RAM
//!   put    e6  80 89 e5 ...        OUT 0x80, AL: exits everywhere, changes nothing
//! ```
//!
//! The bytes are put where the page tables of the stopped vCPU lead at that moment, read-only or not, and taken out again if
//! they are still there. An instruction of one byte gets a shorter OUT, to the port that DX names: one that KVM serves
//! itself (interrupt controllers, PIT) would not exit, so the longer one is taken where it fits.
//!
//! ```text
//!   a breakpoint in code of   a kernel: INT3, where that stops a guest here; else OUT
//!                             a program: INT3, else one of the processor's; an OUT is a fault there
//!                             no code yet (not mapped, or zeroes): one of the processor's; gdb sets it anew at each stop
//! ```
//!
//! What would not be met on this KVM is refused, with the reason kept for `monitor breakpoints`: none is missed in silence.
//!
//! Spec: Intel SDM volume 2, "OUT", "INT3"; GDB manual, "Packets", `z0` to `z4`.

use std::fmt::Write;

use axvm_arch::Gpa;
use axvm_arch::paging::Page;
use axvm_inspect::listing;
use axvm_kvm::{DebugControl, DebugSupport, HARDWARE_COUNT, LONG_TRAP, SHORT_TRAP, Stopping, Trap, Watch};
use axvm_memory::GuestRam;

/// What is put into code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Patch {
    /// What stops a guest here.
    #[default]
    Best,
    /// An OUT.
    Out,
    /// INT3.
    Int3,
}

/// Where a breakpoint is to be.
pub struct Place {
    /// Its linear address.
    pub at: u64,
    /// The page there, or why there is none.
    pub page: Result<Page, String>,
    /// Of the code there.
    pub bits: u32,
    /// What stops a guest, or why that is not known.
    pub support: Result<DebugSupport, String>,
}

impl Place {
    /// Whether a program, at privilege level 3, runs or uses it. A page that is not there tells by its half of the
    /// addresses.
    fn is_programs(&self) -> bool {
        self.bits == 64 && self.page.as_ref().map_or(self.at >> 63 == 0, |page| page.rights.user)
    }

    fn stopping(&self) -> Result<Stopping, String> {
        let support = self.support.clone()?;
        Ok(if self.is_programs() { support.program } else { support.kernel })
    }

    /// How it is called.
    fn whose(&self) -> &'static str {
        if self.is_programs() { "programs (privilege level 3)" } else { "kernels (privilege level 0)" }
    }
}

/// A breakpoint that is in the guest's code.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Soft {
    at: u64,
    gpa: Gpa,
    was: Vec<u8>,
    is: Vec<u8>,
}

/// One of the processor's.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hard {
    at: u64,
    watch: Watch,
    /// For one in code that could not be there.
    is_soft: bool,
}

/// All that there are.
#[derive(Debug, Default)]
pub struct Breakpoints {
    /// What new ones are made of.
    pub patch: Patch,
    soft: Vec<Soft>,
    hard: Vec<Hard>,
    /// Why the last one was refused.
    refused: Option<String>,
}

impl Breakpoints {
    /// Has a guest stop before the code at `place`; whether that was possible.
    pub fn add_soft(&mut self, ram: &GuestRam, place: &Place) -> bool {
        let added = if self.is_soft(place.at) { Ok(()) } else { self.put(ram, place) };
        self.refused = added.err().map(|why| format!("{:#x}: {why}", place.at));
        self.refused.is_none()
    }

    fn put(&mut self, ram: &GuestRam, place: &Place) -> Result<(), String> {
        let gpa = match &place.page {
            Ok(page) => page.gpa,
            Err(why) => return self.hold(place, Watch::Execute, true).map_err(|hard| format!("{why}; and {hard}")),
        };
        let no_ram = |_| format!("at physical {gpa} is no RAM");
        let mut code = [0; 15];
        let left = place.page.as_ref().map_or(0, |page| (page.len - page.gpa.0 % page.len).min(15)) as usize;
        let code = code.get_mut(..left).unwrap_or_default();
        ram.read(gpa, code).map_err(no_ram)?;
        let Some(is) = self.patch_for(place, code)? else {
            return self.hold(place, Watch::Execute, true);
        };
        ram.write(gpa, is).map_err(no_ram)?;
        let was = code.get(..is.len()).unwrap_or_default().to_vec();
        self.soft.push(Soft { at: place.at, gpa, was, is: is.to_vec() });
        Ok(())
    }

    /// What is put into `code`, if anything is.
    fn patch_for(&self, place: &Place, code: &[u8]) -> Result<Option<&'static [u8]>, String> {
        let stopping = place.stopping();
        let meets_int3 = stopping.as_ref().is_ok_and(|stopping| stopping.int3);
        let is_empty = code.iter().all(|byte| *byte == 0);
        Ok(match self.patch {
            Patch::Best if is_empty && stopping.is_ok_and(|stopping| stopping.execute) => None,
            Patch::Best | Patch::Int3 if meets_int3 => Some(&[0xcc]),
            Patch::Int3 => {
                return Err(format!("INT3 does not stop {} on this KVM; see monitor breakpoints best", place.whose()));
            }
            Patch::Best if place.is_programs() => None,
            Patch::Out if place.is_programs() => {
                return Err("programs (privilege level 3) have no OUT; see monitor breakpoints best".into());
            }
            Patch::Best | Patch::Out => match listing::first_len(code, place.bits) {
                Some(len) if len > 1 => Some(&LONG_TRAP),
                _ => Some(&SHORT_TRAP),
            },
        })
    }

    /// Takes one of the processor's.
    fn hold(&mut self, place: &Place, watch: Watch, is_soft: bool) -> Result<(), String> {
        let (stopping, whose) = (place.stopping()?, place.whose());
        match watch {
            Watch::Execute if !stopping.execute => {
                return Err(format!("hardware breakpoints do not stop {whose} on this KVM"));
            }
            Watch::Write(_) | Watch::Access(_) if !stopping.write => {
                return Err(format!(
                    "watchpoints do not stop {whose} on this KVM; set can-use-hw-watchpoints 0 has gdb make steps instead"
                ));
            }
            _ if self.hard.len() == HARDWARE_COUNT => {
                return Err(format!("a processor has {HARDWARE_COUNT} hardware breakpoints, all are in use"));
            }
            _ => self.hard.push(Hard { at: place.at, watch, is_soft }),
        }
        Ok(())
    }

    /// Takes one out of the code.
    pub fn remove_soft(&mut self, ram: &GuestRam, at: u64) -> bool {
        let Some(n) = self.soft.iter().position(|soft| soft.at == at) else {
            return self.release(&Hard { at, watch: Watch::Execute, is_soft: true });
        };
        let Soft { gpa, was, is, .. } = self.soft.swap_remove(n);
        let mut now = vec![0; is.len()];
        // The guest may have put other code there since, or begun anew.
        if ram.read(gpa, &mut now).is_ok() && now == is {
            let _ = ram.write(gpa, &was);
        }
        true
    }

    /// Takes all out.
    pub fn clear(&mut self, ram: &GuestRam) {
        while let Some(at) = self.soft.last().map(|soft| soft.at) {
            self.remove_soft(ram, at);
        }
        self.hard.clear();
    }

    /// Whether one is here.
    pub fn is_soft(&self, at: u64) -> bool {
        self.soft.iter().any(|soft| soft.at == at) || self.hard.iter().any(|hard| hard.is_soft && hard.at == at)
    }

    /// One of the processor's; whether that was possible.
    pub fn add_hard(&mut self, place: &Place, watch: Watch) -> bool {
        let added = self.hold(place, watch, false);
        self.refused = added.err().map(|why| format!("{:#x}: {why}", place.at));
        self.refused.is_none()
    }

    /// Takes one of these back.
    pub fn remove_hard(&mut self, at: u64, watch: Watch) -> bool {
        self.release(&Hard { at, watch, is_soft: false })
    }

    fn release(&mut self, one: &Hard) -> bool {
        let found = self.hard.iter().position(|own| own == one);
        found.map(|n| self.hard.remove(n)).is_some()
    }

    /// The one whose bit is set in debug register 6.
    pub fn met(&self, dr6: u64) -> Option<(u64, Watch)> {
        self.hard.iter().enumerate().find(|(n, _)| dr6 >> n & 1 != 0).map(|(_, own)| (own.at, own.watch))
    }

    /// What a vCPU is told that runs on.
    pub fn control(&self) -> DebugControl {
        let traps = self.soft.iter().filter(|soft| soft.is != [0xcc]);
        let traps = traps.map(|soft| Trap { at: soft.at, len: soft.is.len() as u8 }).collect();
        let int3 = self.soft.iter().filter(|soft| soft.is == [0xcc]).map(|soft| soft.at).collect();
        let hardware = self.hard.iter().map(|hard| (hard.at, hard.watch)).collect();
        DebugControl { step: false, int3, hardware, traps }
    }

    /// `data`, read from `gpa` on, as it would be without them.
    pub fn hide(&self, gpa: Gpa, data: &mut [u8]) {
        for soft in &self.soft {
            for (n, byte) in soft.was.iter().enumerate() {
                let at = (soft.gpa.0 + n as u64).checked_sub(gpa.0).and_then(|at| usize::try_from(at).ok());
                if let Some(place) = at.and_then(|at| data.get_mut(at)) {
                    *place = *byte;
                }
            }
        }
    }

    /// For a person.
    pub fn words(&self, support: &Result<DebugSupport, String>) -> String {
        let kind = match self.patch {
            Patch::Best => "are what stops a guest here",
            Patch::Out => "are an OUT, which exits on every KVM, but not in programs",
            Patch::Int3 => "are INT3, where that stops a guest",
        };
        let mut text = format!("Breakpoints in code {kind} (monitor breakpoints best|out|int3)\n");
        for Soft { at, gpa, was, is } in &self.soft {
            let _ = writeln!(text, "  {at:#x} at physical {gpa}: {is:02x?} for {was:02x?}");
        }
        let _ = writeln!(text, "Of {HARDWARE_COUNT} hardware breakpoints {} are in use", self.hard.len());
        for Hard { at, watch, is_soft } in &self.hard {
            let _ = writeln!(text, "  {at:#x} {watch:?}{}", if *is_soft { ", for one in code" } else { "" });
        }
        match support {
            Ok(support) => {
                for (whose, stopping) in [("kernel (level 0) ", support.kernel), ("program (level 3)", support.program)]
                {
                    let _ = writeln!(text, "What stops a {whose} on this KVM: {}", kinds(stopping));
                }
            }
            Err(why) => _ = writeln!(text, "{why}"),
        }
        if let Some(why) = &self.refused {
            let _ = writeln!(text, "Refused: {why}");
        }
        text
    }
}

/// What works.
fn kinds(Stopping { int3, execute, write, step }: Stopping) -> String {
    let all = [(int3, "INT3"), (execute, "hardware breakpoints"), (write, "watchpoints"), (step, "steps")];
    let works: Vec<_> = all.into_iter().filter(|(works, _)| *works).map(|(_, name)| name).collect();
    if works.is_empty() { "nothing".into() } else { works.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axvm_arch::paging::Rights;
    use axvm_memory::RamConfig;

    const ALL: Stopping = Stopping { int3: true, execute: true, write: true, step: true };
    const NONE: Stopping = Stopping { int3: false, execute: false, write: false, step: false };

    fn place(at: u64, user: bool, stopping: Stopping) -> Place {
        let rights = Rights { write: false, user, execute: true };
        let page = Ok(Page { gpa: Gpa(at & 0xffff), len: 0x1000, rights, global: false });
        // What the other level has must not matter.
        let other = if stopping == ALL { NONE } else { ALL };
        let (kernel, program) = if user { (other, stopping) } else { (stopping, other) };
        Place { at, page, bits: 64, support: Ok(DebugSupport { kernel, program }) }
    }

    fn put(breakpoints: &mut Breakpoints, place: &Place) -> Vec<u8> {
        let ram = GuestRam::allocate(&RamConfig::new(2 << 20)).unwrap();
        ram.write(Gpa(0x1000), &[0x48, 0x89, 0xe5]).unwrap();
        breakpoints.add_soft(&ram, place);
        let mut code = [0; 3];
        ram.read(Gpa(0x1000), &mut code).unwrap();
        code.to_vec()
    }

    #[test]
    fn a_breakpoint_in_code_is_what_stops_a_guest_there() {
        let only_hardware = Stopping { execute: true, ..NONE };
        for (user, stopping, code, hard, refused) in [
            (false, ALL, [0xcc, 0x89, 0xe5], 0, ""),
            (true, ALL, [0xcc, 0x89, 0xe5], 0, ""),
            (false, only_hardware, [0xe6, 0x80, 0xe5], 0, ""),
            (false, NONE, [0xe6, 0x80, 0xe5], 0, ""),
            (true, only_hardware, [0x48, 0x89, 0xe5], 1, ""),
            (true, NONE, [0x48, 0x89, 0xe5], 0, "hardware breakpoints do not stop programs (privilege level 3)"),
        ] {
            let mut all = Breakpoints::default();
            let place = place(0x1000, user, stopping);
            assert_eq!((put(&mut all, &place), all.hard.len()), (code.to_vec(), hard), "{user} {stopping:?}");
            assert_eq!(all.is_soft(0x1000), refused.is_empty());
            let words = all.words(&place.support);
            assert!(words.contains(refused) && words.contains("Refused") != refused.is_empty(), "{words}");
        }
    }

    #[test]
    fn a_kind_that_would_not_be_met_is_refused() {
        let only = |patch| Breakpoints { patch, ..Breakpoints::default() };
        assert_eq!(put(&mut only(Patch::Out), &place(0x1000, true, ALL)), [0x48, 0x89, 0xe5]);
        assert_eq!(put(&mut only(Patch::Out), &place(0x1000, false, ALL)), [0xe6, 0x80, 0xe5]);
        assert_eq!(put(&mut only(Patch::Int3), &place(0x1000, false, NONE)), [0x48, 0x89, 0xe5]);
        let mut all = Breakpoints::default();
        let unknown = Place { support: Err("why".into()), ..place(0x1000, false, ALL) };
        assert_eq!(put(&mut all, &unknown), [0xe6, 0x80, 0xe5], "an OUT exits on every KVM");
        for watch in [Watch::Execute, Watch::Write(4), Watch::Access(4)] {
            assert!(all.add_hard(&place(0x1000, false, ALL), watch) && all.refused.is_none());
            assert!(!all.add_hard(&place(0x1000, false, NONE), watch) && all.refused.is_some());
            assert!(!all.add_hard(&unknown, watch) && all.refused.as_deref() == Some("0x1000: why"));
        }
        assert!(all.add_hard(&place(0x1000, true, ALL), Watch::Execute));
        assert!(!all.add_hard(&place(0x1000, true, ALL), Watch::Execute), "there are four");
    }

    #[test]
    fn code_that_is_not_there_yet_has_one_of_the_processors() {
        let ram = GuestRam::allocate(&RamConfig::new(2 << 20)).unwrap();
        let mut all = Breakpoints::default();
        let unmapped = Place { page: Err("not mapped".into()), ..place(0xffff_ffff_8100_0000, false, ALL) };
        let zeroes = place(0x2000, false, ALL);
        assert!(all.add_soft(&ram, &unmapped) && all.add_soft(&ram, &zeroes));
        let control = all.control();
        assert_eq!(control.hardware, [(unmapped.at, Watch::Execute), (zeroes.at, Watch::Execute)]);
        assert!(all.is_soft(unmapped.at) && control.traps.is_empty() && control.int3.is_empty());
        assert!(all.remove_soft(&ram, unmapped.at) && all.remove_soft(&ram, zeroes.at) && all.hard.is_empty());
        // gdb sets it anew at each stop: now the code is there.
        ram.write(Gpa(0x2000), &[0x55]).unwrap();
        assert!(all.add_soft(&ram, &zeroes) && all.hard.is_empty() && all.control().int3 == [zeroes.at]);
        let unmapped = Place { page: Err("not mapped".into()), ..place(0x40_0000, true, NONE) };
        assert!(!all.add_soft(&ram, &unmapped));
        let why = "0x400000: not mapped; and hardware breakpoints do not stop programs (privilege level 3) on this KVM";
        assert_eq!(all.refused.as_deref(), Some(why));
    }
}
