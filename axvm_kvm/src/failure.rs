//! What KVM says when a vCPU cannot go on, in words.
//!
//! ```text
//!   KVM_EXIT_FAIL_ENTRY      hardware_entry_failure_reason    VMX: bit 31 and a basic reason, or VMLAUNCH's error number
//!                                                             SVM: the exit code, -1 for an invalid state
//!   KVM_EXIT_INTERNAL_ERROR  suberror, ndata, data[ ]         1 emulation: flags, length, 15 bytes of code, exit info
//!                                                             2 simultaneous exceptions
//!                                                             3 event delivery: vectoring info, exit reason, details
//!                                                             4 unexpected exit reason: the reason
//!   KVM_EXIT_SYSTEM_EVENT    type                             1 shutdown, 2 reset, 3 crash, 4 wakeup, 5 suspend, ...
//! ```
//!
//! Spec: KVM API chapter 5 "The kvm_run structure"; Intel SDM volume 3C, 27.8 "VM-Entry Failures During or After Loading
//! Guest State", 31.4 "VM Instruction Error Numbers", appendix C "VMX Basic Exit Reasons"; AMD APM volume 2, appendix C
//! "SVM Intercept Exit Codes". Left out: what data KVM adds behind these, for its own developers.

use std::fmt;

use axvm_arch::cpuid::Vendor;
use axvm_arch::exception::Vector;
use serde::Serialize;

use crate::Exit;

/// A reason for a vCPU not to go on that is neither the guest's wish nor a device's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failure {
    /// A triple fault.
    TripleFault,
    /// The processor refused to enter the guest.
    Entry(EntryFailure),
    /// KVM gave up.
    Internal(InternalError),
    /// KVM reports an event of the whole machine, by its number.
    SystemEvent(u32),
    /// An exit that AxVM does not ask KVM for, by its number.
    Other(u32),
}

impl Failure {
    /// The failure that an exit is, if it is one.
    pub fn of(exit: &Exit<'_>) -> Option<Failure> {
        Some(match exit {
            Exit::Shutdown => Failure::TripleFault,
            Exit::FailEntry { reason, cpu } => Failure::Entry(EntryFailure { reason: *reason, host_cpu: *cpu }),
            Exit::Internal { suberror, data } => Failure::Internal(InternalError::decode(*suberror, data)),
            Exit::SystemEvent { kind } => Failure::SystemEvent(*kind),
            Exit::Other { reason } => Failure::Other(*reason),
            _ => return None,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::TripleFault => f.write_str("triple fault"),
            Failure::Entry(failure) => write!(f, "the processor did not enter the guest: {failure}"),
            Failure::Internal(error) => write!(f, "KVM gave up: {error}"),
            Failure::SystemEvent(kind) => write!(f, "KVM reports system event {kind}{}", system_event(*kind)),
            Failure::Other(reason) => write!(f, "KVM stopped it for exit reason {reason}, which AxVM does not handle"),
        }
    }
}

/// What `KVM_EXIT_SYSTEM_EVENT` means.
fn system_event(kind: u32) -> &'static str {
    match kind {
        1 => " (shutdown)",
        2 => " (reset)",
        3 => " (crash)",
        4 => " (wakeup)",
        5 => " (suspend)",
        6 => " (end of an SEV guest)",
        7 => " (fatal error of a TDX guest)",
        _ => "",
    }
}

/// Why the processor did not enter the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct EntryFailure {
    /// `hardware_entry_failure_reason`.
    pub reason: u64,
    /// Host CPU on which it happened.
    pub host_cpu: u32,
}

/// VMX: the entry failed after controls and host state were found good.
const VMX_FAILED_ENTRY: u64 = 1 << 31;

impl EntryFailure {
    /// Whether the guest's registers are what was refused: the lint can say which.
    pub fn blames_guest_state(&self) -> bool {
        self.is_svm_invalid() || self.reason == VMX_FAILED_ENTRY | 33
    }

    /// VMEXIT_INVALID is -1, of 32 bits or of 64 by the kernel's version.
    fn is_svm_invalid(&self) -> bool {
        matches!(self.reason, 0xffff_ffff | u64::MAX)
    }
}

impl fmt::Display for EntryFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = self.reason;
        let basic = reason & 0xffff;
        match reason {
            _ if self.is_svm_invalid() => f.write_str("invalid guest state (VMEXIT_INVALID)")?,
            _ if reason & VMX_FAILED_ENTRY != 0 => match basic {
                33 => f.write_str("invalid guest state (VMX basic reason 33)")?,
                34 => f.write_str("an MSR could not be loaded (VMX basic reason 34)")?,
                41 => f.write_str("a machine check (VMX basic reason 41)")?,
                _ => write!(f, "VMX basic reason {basic}")?,
            },
            7 => f.write_str("invalid control fields (VM-instruction error 7), a matter of KVM")?,
            8 => f.write_str("invalid host state (VM-instruction error 8), a matter of KVM")?,
            1..=28 => write!(f, "VM-instruction error {reason}, a matter of KVM")?,
            _ => f.write_str("an unknown reason")?,
        }
        write!(f, ", hardware entry failure {reason:#x}")
    }
}

/// Why KVM gave up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum InternalError {
    /// It met an instruction that it has to carry out itself, and cannot.
    Emulation {
        /// What it had read at RIP, up to 15 bytes: the instruction and what follows. Empty if it could read none, or
        /// does not tell.
        code: Vec<u8>,
        /// The processor's exit reason that led there, where it is told.
        exit_reason: Option<u64>,
    },
    /// Exceptions that it could not put in an order.
    SimultaneousExceptions,
    /// The processor came back while an event was being delivered, for a reason that cannot be.
    Delivery {
        /// What was being delivered.
        event: VectoringInfo,
        /// The processor's exit reason.
        exit_reason: u64,
    },
    /// The processor came back for a reason that KVM does not know.
    UnexpectedExit {
        /// The reason.
        exit_reason: u64,
    },
    /// A suberror that AxVM does not know.
    Unknown {
        /// Its number.
        suberror: u32,
        /// Its data.
        data: Vec<u64>,
    },
}

/// The flag in the first word of an emulation failure: length and bytes follow.
const HAS_CODE: u64 = 1 << 0;

impl InternalError {
    /// `suberror` with what KVM says beside it. A KVM that says less than another leaves out what comes last.
    pub fn decode(suberror: u32, data: &[u64]) -> InternalError {
        let word = |n: usize| data.get(n).copied();
        match suberror {
            1 => {
                let has_code = word(0).is_some_and(|flags| flags & HAS_CODE != 0);
                let bytes: Vec<u8> = data.iter().skip(1).take(2).flat_map(|word| word.to_le_bytes()).collect();
                let code = match bytes.split_first() {
                    Some((&len, bytes)) if has_code => bytes[..bytes.len().min(len.into())].to_vec(),
                    _ => Vec::new(),
                };
                let exit_reason = word(if has_code { 3 } else { 1 }).map(|reason| reason & 0xffff_ffff);
                InternalError::Emulation { code, exit_reason }
            }
            2 => InternalError::SimultaneousExceptions,
            3 => InternalError::Delivery {
                event: VectoringInfo(word(0).unwrap_or(0) as u32),
                exit_reason: word(1).unwrap_or(0),
            },
            4 => InternalError::UnexpectedExit { exit_reason: word(0).unwrap_or(0) },
            suberror => InternalError::Unknown { suberror, data: data.to_vec() },
        }
    }
}

impl fmt::Display for InternalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InternalError::Emulation { code, .. } if code.is_empty() => {
                f.write_str("it could not emulate an instruction, and read none (suberror 1)")
            }
            InternalError::Emulation { code, .. } => {
                f.write_str("it met an instruction that it cannot emulate (suberror 1), at bytes")?;
                code.iter().try_for_each(|byte| write!(f, " {byte:02x}"))
            }
            InternalError::SimultaneousExceptions => {
                f.write_str("an exception arrived while another was being delivered (suberror 2)")
            }
            InternalError::Delivery { event, exit_reason } => {
                write!(f, "exit reason {exit_reason:#x} while {event} was being delivered (suberror 3)")
            }
            InternalError::UnexpectedExit { exit_reason } => {
                write!(f, "the processor reported exit reason {exit_reason:#x}, which KVM does not know (suberror 4)")
            }
            InternalError::Unknown { suberror, data } => {
                write!(f, "internal error (suberror {suberror}")?;
                data.iter().try_for_each(|word| write!(f, ", {word:#x}"))?;
                f.write_str(")")
            }
        }
    }
}

/// An event that was being delivered: the IDT-vectoring information of VMX, EXITINTINFO of SVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct VectoringInfo(pub u32);

impl VectoringInfo {
    /// Its vector.
    pub fn vector(self) -> Vector {
        Vector(self.0 as u8)
    }
}

impl fmt::Display for VectoringInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vector = self.vector();
        match self.0 >> 8 & 7 {
            _ if self.0 >> 31 == 0 => f.write_str("nothing"),
            0 => write!(f, "interrupt {:#x}", vector.0),
            2 => f.write_str("an NMI"),
            4 => write!(f, "INT {:#x}", vector.0),
            _ => write!(f, "{vector}"),
        }
    }
}

/// The name of a processor's exit reason, for those that a crash is likely to meet.
pub fn exit_reason(vendor: Vendor, reason: u64) -> Option<&'static str> {
    let names: &[(u64, &str)] = match vendor {
        Vendor::Intel => &[
            (0, "exception or NMI"),
            (2, "triple fault"),
            (9, "task switch"),
            (10, "CPUID"),
            (12, "HLT"),
            (28, "access to a control register"),
            (30, "I/O instruction"),
            (31, "RDMSR"),
            (32, "WRMSR"),
            (33, "entry failure: guest state"),
            (44, "APIC access"),
            (48, "EPT violation"),
            (49, "EPT misconfiguration"),
        ],
        Vendor::Amd => &[
            (0x46, "#UD"),
            (0x4d, "#GP"),
            (0x4e, "#PF"),
            (0x72, "CPUID"),
            (0x78, "HLT"),
            (0x7b, "I/O instruction"),
            (0x7c, "RDMSR or WRMSR"),
            (0x7d, "task switch"),
            (0x7f, "shutdown"),
            (0x400, "nested page fault"),
        ],
        Vendor::Unknown => &[],
    };
    let basic = if vendor == Vendor::Intel { reason & 0xffff } else { reason };
    names.iter().find(|(number, _)| *number == basic).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(reason: u64) -> EntryFailure {
        EntryFailure { reason, host_cpu: 0 }
    }

    #[test]
    fn entry_failures_are_named() {
        for (reason, words, blames) in [
            (0x8000_0021, "invalid guest state (VMX basic reason 33), hardware entry failure 0x80000021", true),
            (0x8000_0022, "an MSR could not be loaded", false),
            (0x8000_0029, "a machine check", false),
            (0x8000_0030, "VMX basic reason 48", false),
            (0xffff_ffff, "VMEXIT_INVALID", true),
            (u64::MAX, "VMEXIT_INVALID", true),
            (7, "invalid control fields", false),
            (8, "invalid host state", false),
            (12, "VM-instruction error 12", false),
            (0x4000, "unknown reason", false),
        ] {
            assert!(entry(reason).to_string().contains(words), "{}", entry(reason));
            assert_eq!(entry(reason).blames_guest_state(), blames, "{reason:#x}");
        }
    }

    #[test]
    fn an_instruction_that_kvm_cannot_emulate_comes_with_its_bytes() {
        // As seen: flags, then length 15 and the bytes; then the exit's information.
        let data = [1, 0x6548_fdeb_f4fa_cc0f, 0x1111_1111_1111_1111, 0x4e, 0, 0];
        let error = InternalError::decode(1, &data);
        let InternalError::Emulation { code, exit_reason } = &error else { panic!("{error:?}") };
        assert_eq!((&code[..4], code.len(), *exit_reason), (&[0xcc, 0xfa, 0xf4, 0xeb][..], 15, Some(0x4e)));
        assert!(
            error.to_string().starts_with("it met an instruction that it cannot emulate (suberror 1), at bytes cc fa")
        );
        for data in [&[][..], &[0], &[0, 0x30], &[1], &[1, 0x00]] {
            let error = InternalError::decode(1, data);
            assert!(matches!(&error, InternalError::Emulation { code, .. } if code.is_empty()), "{data:?}: {error:?}");
            assert!(error.to_string().contains("read none"));
        }
        let long = InternalError::decode(1, &[1, u64::MAX]);
        assert!(matches!(&long, InternalError::Emulation { code, .. } if code.len() == 7), "no more than there is");
    }

    #[test]
    fn other_suberrors_say_what_they_have() {
        for (suberror, data, words) in [
            (2, &[][..], "an exception arrived while another was being delivered"),
            (3, &[0x8000_0b0e, 0x31, 0], "exit reason 0x31 while #PF (14, page fault) was being delivered"),
            (3, &[0x8000_0030], "exit reason 0x0 while interrupt 0x30 was"),
            (3, &[0x8000_0202], "while an NMI was"),
            (3, &[0x8000_0480], "while INT 0x80 was"),
            (3, &[], "while nothing was"),
            (4, &[0x33, 1], "exit reason 0x33, which KVM does not know"),
            (9, &[5, 6], "internal error (suberror 9, 0x5, 0x6)"),
        ] {
            let said = InternalError::decode(suberror, data).to_string();
            assert!(said.contains(words), "{said}");
        }
    }

    #[test]
    fn failures_are_made_of_exits() {
        let fail = Exit::FailEntry { reason: 0x8000_0021, cpu: 3 };
        assert_eq!(Failure::of(&fail), Some(Failure::Entry(EntryFailure { reason: 0x8000_0021, host_cpu: 3 })));
        assert_eq!(Failure::of(&Exit::Halted), None);
        for (exit, words) in [
            (Exit::Shutdown, "triple fault"),
            (Exit::SystemEvent { kind: 3 }, "KVM reports system event 3 (crash)"),
            (Exit::SystemEvent { kind: 99 }, "KVM reports system event 99"),
            (Exit::Other { reason: 77 }, "KVM stopped it for exit reason 77, which AxVM does not handle"),
        ] {
            assert_eq!(Failure::of(&exit).unwrap().to_string(), words);
        }
    }

    #[test]
    fn exit_reasons_are_the_makers() {
        assert_eq!(exit_reason(Vendor::Intel, 0x8000_0021), Some("entry failure: guest state"));
        assert_eq!(exit_reason(Vendor::Amd, 0x400), Some("nested page fault"));
        assert_eq!(exit_reason(Vendor::Unknown, 48), None);
    }
}
