//! Breakpoints: those of the processor, and those that are bytes in the guest's code.
//!
//! ```text
//!   code   55  48 89 e5 ...        kept: 55 48, and where that is in RAM
//!   put    e6  80 89 e5 ...        OUT 0x80, AL: exits everywhere, changes nothing
//! ```
//!
//! The bytes are put where the page tables of the stopped vCPU lead at that moment, read-only or not, and taken out again if
//! they are still there. An instruction of one byte gets a shorter OUT, to the port that DX names: one that KVM serves
//! itself (interrupt controllers, PIT) would not exit, so the longer one is taken where it fits. At privilege level 3 an OUT
//! is a fault of the guest's, and such a place is refused; INT3 is no way there either on every KVM, so it is the user's
//! choice (`monitor breakpoints int3`).
//!
//! Spec: Intel SDM volume 2, "OUT", "INT3"; GDB manual, "Packets", `z0` to `z4`.

use std::fmt::Write;

use axvm_arch::Gpa;
use axvm_arch::paging::Page;
use axvm_inspect::listing;
use axvm_kvm::{DebugControl, HARDWARE_COUNT, LONG_TRAP, SHORT_TRAP, Trap, Watch};
use axvm_memory::GuestRam;

/// What is put into code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Patch {
    /// An OUT.
    #[default]
    Out,
    /// INT3.
    Int3,
}

/// A breakpoint that is in the guest's code.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Soft {
    at: u64,
    gpa: Gpa,
    was: Vec<u8>,
    is: Vec<u8>,
}

/// All that there are.
#[derive(Debug, Default)]
pub struct Breakpoints {
    /// What new ones are made of.
    pub patch: Patch,
    soft: Vec<Soft>,
    hard: Vec<(u64, Watch)>,
    /// Why the last one was refused.
    refused: Option<String>,
}

impl Breakpoints {
    /// Puts one into the code at `at`, which is in `page`; whether that was possible.
    pub fn add_soft(&mut self, ram: &GuestRam, at: u64, page: Result<Page, String>, bits: u32) -> bool {
        let added = self.put(ram, at, page, bits);
        self.refused = added.err().map(|why| format!("{at:#x}: {why}"));
        self.refused.is_none()
    }

    fn put(&mut self, ram: &GuestRam, at: u64, page: Result<Page, String>, bits: u32) -> Result<(), String> {
        if self.soft.iter().any(|soft| soft.at == at) {
            return Ok(());
        }
        let page = page?;
        let no_ram = |_| format!("at physical {} is no RAM", page.gpa);
        let mut code = [0; 15];
        let left = (page.len - page.gpa.0 % page.len).min(15) as usize;
        ram.read(page.gpa, &mut code[..left]).map_err(no_ram)?;
        let is: &[u8] = match self.patch {
            Patch::Int3 => &[0xcc],
            Patch::Out if page.rights.user && bits == 64 => {
                return Err("programs (privilege level 3) have no OUT; try hbreak, or monitor breakpoints int3".into());
            }
            Patch::Out if left > 1 && listing::first_len(&code[..left], bits).is_some_and(|len| len > 1) => &LONG_TRAP,
            Patch::Out => &SHORT_TRAP,
        };
        ram.write(page.gpa, is).map_err(no_ram)?;
        self.soft.push(Soft { at, gpa: page.gpa, was: code[..is.len()].to_vec(), is: is.to_vec() });
        Ok(())
    }

    /// Takes one out of the code.
    pub fn remove_soft(&mut self, ram: &GuestRam, at: u64) -> bool {
        let Some(n) = self.soft.iter().position(|soft| soft.at == at) else { return false };
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
        self.soft.iter().any(|soft| soft.at == at)
    }

    /// One of the processor's; false if all are in use.
    pub fn add_hard(&mut self, at: u64, watch: Watch) -> bool {
        if self.hard.len() == HARDWARE_COUNT {
            self.refused =
                Some(format!("{at:#x}: a processor has {HARDWARE_COUNT} hardware breakpoints, all are in use"));
            return false;
        }
        self.hard.push((at, watch));
        true
    }

    /// Takes one of these back.
    pub fn remove_hard(&mut self, at: u64, watch: Watch) -> bool {
        let found = self.hard.iter().position(|own| *own == (at, watch));
        found.map(|n| self.hard.remove(n)).is_some()
    }

    /// The one whose bit is set in debug register 6.
    pub fn met(&self, dr6: u64) -> Option<(u64, Watch)> {
        self.hard.iter().enumerate().find(|(n, _)| dr6 >> n & 1 != 0).map(|(_, own)| *own)
    }

    /// What a vCPU is told that runs on.
    pub fn control(&self) -> DebugControl {
        let traps = self.soft.iter().filter(|soft| soft.is != [0xcc]);
        let traps = traps.map(|soft| Trap { at: soft.at, len: soft.is.len() as u8 }).collect();
        let int3 = self.soft.iter().any(|soft| soft.is == [0xcc]);
        DebugControl { step: false, int3, hardware: self.hard.clone(), traps }
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
    pub fn words(&self) -> String {
        let kind = match self.patch {
            Patch::Out => "an OUT, which exits on every KVM (`monitor breakpoints int3` changes that)",
            Patch::Int3 => "INT3, which not every KVM intercepts (`monitor breakpoints out` changes that)",
        };
        let mut text = format!("Breakpoints in code are {kind}\n");
        for Soft { at, gpa, was, is } in &self.soft {
            let _ = writeln!(text, "  {at:#x} at physical {gpa}: {is:02x?} for {was:02x?}");
        }
        let _ = writeln!(text, "Of {HARDWARE_COUNT} hardware breakpoints {} are in use", self.hard.len());
        for (at, watch) in &self.hard {
            let _ = writeln!(text, "  {at:#x} {watch:?}");
        }
        if let Some(why) = &self.refused {
            let _ = writeln!(text, "Refused: {why}");
        }
        text
    }
}
