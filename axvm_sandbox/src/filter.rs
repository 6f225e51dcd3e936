//! The table, compiled into programs that the kernel runs before each system call.
//!
//! ```text
//!   main's program:   refuse its calls with an error -> allow its rows -> trap the rest
//!   role's program:   the same with its own lists, on top of main's
//! ```
//!
//! The kernel runs all programs of a thread and takes the strictest answer: trap, then error, then allow. So a call
//! that is refused must not be trapped by another program. Calls without conditions cost next to nothing: the kernel
//! keeps a bitmap of those that are allowed whatever their arguments. For the others, ioctl above all, each program
//! is a price: one for each role, not one for each answer.
//!
//! Spec: Linux `Documentation/userspace-api/seccomp_filter.rst`.

use std::collections::BTreeMap;
use std::fs;

use seccompiler::SeccompCmpArgLen::{Dword, Qword};
use seccompiler::SeccompCmpOp::{Eq, MaskedEq, Ne};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCondition, SeccompFilter, SeccompRule, TargetArch, apply_filter,
    sock_filter,
};

use crate::report::Protection;
use crate::table::{CONNECTOR, REFUSED, Row, TABLE, When};
use crate::{Role, SandboxError, has_pci, kvm};

/// Not in the libc crate.
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The program of every role, ready before the first thread needs them.
pub(crate) struct Filters([BpfProgram; Role::ALL.len()]);

impl Filters {
    pub(crate) fn compile() -> Result<Filters, SandboxError> {
        let mut all = Filters(Default::default());
        for role in Role::ALL {
            all.0[role as usize] = of_role(role).map_err(SandboxError::Compile)?;
        }
        Ok(all)
    }

    /// Puts the filter of `role` on this thread, on top of those it inherited.
    pub(crate) fn install(&self, role: Role) -> Result<(), SandboxError> {
        apply_filter(&self.0[role as usize]).map_err(SandboxError::Install)
    }
}

/// What the kernel offers.
pub(crate) fn probe() -> Protection {
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    match actions.split_whitespace().any(|action| action == "trap") {
        true => Protection::on("system calls", format!("{} of them, fewer in each thread", TABLE.len())),
        false => Protection::missing("system calls", "this kernel has no seccomp filters: 3.5 or newer has them"),
    }
}

/// The program of the process that connects for a socket device: what every thread may, and its own few calls.
pub(crate) fn of_connector() -> Result<BpfProgram, BackendError> {
    let mut rules = allowed(Role::Ram)?;
    add(&mut rules, CONNECTOR.iter())?;
    whole(Role::Ram, rules)
}

/// First the calls that get an error, then the rows. Calls that only other roles get an error for, and that this one has
/// no row for, are trapped.
fn of_role(role: Role) -> Result<BpfProgram, BackendError> {
    whole(role, allowed(role)?)
}

fn whole(role: Role, allowed: Rules) -> Result<BpfProgram, BackendError> {
    let mut whole = if matches!(role, Role::Main | Role::Vcpu) { enter_guest().to_vec() } else { BpfProgram::new() };
    for (errno, roles, calls) in REFUSED {
        if roles & (1 << role as u8) != 0 {
            let rules = calls.iter().map(|&call| (call, Vec::new())).collect();
            whole = join(whole, program(rules, SeccompAction::Allow, SeccompAction::Errno(*errno))?);
        }
    }
    Ok(join(whole, program(allowed, SeccompAction::Trap, SeccompAction::Allow)?))
}

/// Each way into the guest passes the programs of main and of the vCPU: they allow it before they look at anything else.
/// What is not KVM_RUN comes through to the last instruction, as in each program that is joined.
fn enter_guest() -> [sock_filter; 8] {
    let step = |code: u32, jf, k| sock_filter { code: code as u16, jt: 0, jf, k };
    let load = |offset| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, offset);
    let equals = |k, or_skip| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, or_skip, k);
    // Offsets in `seccomp_data`: number, architecture, the low half of the second argument.
    [
        load(4),
        equals(AUDIT_ARCH_X86_64, 5),
        load(0),
        equals(libc::SYS_ioctl as u32, 3),
        load(24),
        equals(kvm::VCPU[0] as u32, 1),
        step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
        step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

/// What `first` does not decide, `second` does. A program's last instruction answers all that came through to it.
fn join(mut first: BpfProgram, second: BpfProgram) -> BpfProgram {
    first.pop();
    first.extend(second);
    first
}

/// The rows of one role. Several rows of one call: any may match.
fn allowed(role: Role) -> Result<Rules, BackendError> {
    let mut rules = Rules::new();
    let is_there = |row: &Row| !matches!(row.2, When::OnPci(..)) || has_pci();
    let may = |row: &&Row| is_there(row) && (role == Role::Main || row.1 & (1 << role as u8) != 0);
    add(&mut rules, TABLE.iter().filter(may))?;
    Ok(rules)
}

fn add<'a>(rules: &mut Rules, rows: impl Iterator<Item = &'a Row>) -> Result<(), BackendError> {
    for Row(call, _, when, _) in rows {
        rules.entry(*call).or_default().extend(conditions(when)?);
    }
    Ok(())
}

fn conditions(when: &When) -> Result<Vec<SeccompRule>, BackendError> {
    let rule = |condition| SeccompRule::new(vec![condition?]);
    match *when {
        When::Always => Ok(Vec::new()),
        When::Bits(argument, mask, value) => {
            Ok(vec![rule(SeccompCondition::new(argument, Dword, MaskedEq(mask), value))?])
        }
        When::OneOf(argument, values) | When::OnPci(argument, values) => {
            values.iter().map(|&value| rule(SeccompCondition::new(argument, Dword, Eq, value))).collect()
        }
        When::Not(argument, value) => Ok(vec![rule(SeccompCondition::new(argument, Dword, Ne, value))?]),
        When::Null(argument) => Ok(vec![rule(SeccompCondition::new(argument, Qword, Eq, 0))?]),
        // 0 is how prlimit64 and getrusage say "myself".
        When::Own(argument) => [0, u64::from(std::process::id())]
            .iter()
            .map(|&value| rule(SeccompCondition::new(argument, Qword, Eq, value)))
            .collect(),
    }
}

fn program(rules: Rules, otherwise: SeccompAction, matched: SeccompAction) -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(rules, otherwise, matched, TargetArch::x86_64)?.try_into()
}
