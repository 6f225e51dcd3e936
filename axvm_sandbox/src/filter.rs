//! The table, compiled into programs that the kernel runs before each system call.
//!
//! ```text
//!   main's program:   its calls that get an error, its rows; the rest is trapped
//!   role's program:   the same with its own lists, on top of main's
//! ```
//!
//! The kernel runs all programs of a thread and takes the strictest answer: trap, then error, then allow. So a call
//! that is refused must not be trapped by another program. Calls without conditions cost next to nothing: the kernel
//! keeps a bitmap of those that are allowed whatever their arguments. For the others, ioctl above all, each program
//! is a price: one for each role, not one for each answer, and each way into the guest decided first.
//!
//! A program is made when the first thread of its role begins. The flag SECCOMP_FILTER_FLAG_SPEC_ALLOW is not set: it
//! changes nothing since Linux 5.16, and before that it takes a protection (against speculative store bypass) from a
//! process that handles a guest's data.
//!
//! Spec: Linux `Documentation/userspace-api/seccomp_filter.rst`; seccomp(2).
#![allow(unsafe_code, reason = "seccomp takes a pointer to the program")]

use std::fs;
use std::io;
use std::sync::OnceLock;

use libc::{sock_filter, sock_fprog};

use crate::program::{Answer, Condition, Verdict, Verdicts, compile};
use crate::report::Protection;
use crate::table::{CONNECTOR, REFUSED, Row, TABLE, When};
use crate::{Role, SandboxError, has_pci, kvm};

/// The program of every role that has had a thread.
#[derive(Default)]
pub(crate) struct Filters([OnceLock<Vec<sock_filter>>; Role::ALL.len()]);

impl Filters {
    /// Puts the filter of `role` on this thread, on top of those it inherited.
    pub(crate) fn install(&self, role: Role) -> Result<(), SandboxError> {
        install(self.0[role as usize].get_or_init(|| of_role(role)))
    }
}

/// Puts `program` on this thread, which has given up new privileges.
pub(crate) fn install(program: &[sock_filter]) -> Result<(), SandboxError> {
    let len = program.len().try_into().unwrap_or(u16::MAX);
    let program = sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel reads `len` instructions at `filter`, which outlive the call, and writes nothing.
    match unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) } {
        0 => Ok(()),
        _ => Err(SandboxError::Install(io::Error::last_os_error())),
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
pub(crate) fn of_connector() -> Vec<sock_filter> {
    let mut verdicts = allowed(Role::Ram);
    add(&mut verdicts, CONNECTOR.iter());
    refuse(&mut verdicts, Role::Ram);
    compile(verdicts, None)
}

/// The rows, and the calls that get an error: these count more. Calls that only other roles get an error for, and that
/// this one has no row for, are trapped.
fn of_role(role: Role) -> Vec<sock_filter> {
    let mut verdicts = allowed(role);
    refuse(&mut verdicts, role);
    // Each way into the guest passes the programs of main and of the vCPU.
    let enters_guest = matches!(role, Role::Main | Role::Vcpu);
    compile(verdicts, enters_guest.then_some((libc::SYS_ioctl, kvm::VCPU[0] as u32)))
}

/// The rows of one role. Several rows of one call: any may match.
fn allowed(role: Role) -> Verdicts {
    let mut verdicts = Verdicts::new();
    let is_there = |row: &Row| !matches!(row.2, When::OnPci(..)) || has_pci();
    let may = |row: &&Row| is_there(row) && (role == Role::Main || row.1 & (1 << role as u8) != 0);
    add(&mut verdicts, TABLE.iter().filter(may));
    verdicts
}

fn add<'a>(verdicts: &mut Verdicts, rows: impl Iterator<Item = &'a Row>) {
    for Row(call, _, when, _) in rows {
        let verdict = verdicts.entry(*call as u32).or_insert_with(|| Verdict::If(Vec::new()));
        match (condition(when), verdict) {
            (None, verdict) => *verdict = Verdict::Always(Answer::Allow),
            (Some(_), Verdict::Always(_)) => {}
            (Some(condition), Verdict::If(conditions)) => join(conditions, condition),
        }
    }
}

/// One more condition. Lists of values become one, which stays the last.
fn join(conditions: &mut Vec<Condition>, one: Condition) {
    match (conditions.last_mut(), one) {
        (Some(Condition::OneOf(argument, values)), Condition::OneOf(other, more)) => {
            assert_eq!(*argument, other, "one argument of a call has lists of values");
            values.extend(more);
        }
        (Some(Condition::OneOf(..)), one) => conditions.insert(conditions.len() - 1, one),
        (_, one) => conditions.push(one),
    }
}

fn refuse(verdicts: &mut Verdicts, role: Role) {
    for (errno, _, calls) in REFUSED.iter().filter(|(_, roles, _)| roles & (1 << role as u8) != 0) {
        verdicts.extend(calls.iter().map(|&call| (call as u32, Verdict::Always(Answer::Errno(*errno)))));
    }
}

/// None: always.
fn condition(when: &When) -> Option<Condition> {
    Some(match *when {
        When::Always => return None,
        When::Bits(argument, mask, value) => Condition::Bits(argument, mask as u32, value as u32),
        When::OneOf(argument, values) | When::OnPci(argument, values) => {
            Condition::OneOf(argument, values.iter().map(|&value| value as u32).collect())
        }
        When::Not(argument, value) => Condition::Not(argument, value as u32),
        When::Null(argument) => Condition::Whole(argument, vec![0]),
        // 0 is how prlimit64 and getrusage say "myself".
        When::Own(argument) => Condition::Whole(argument, vec![0, std::process::id()]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::tests::{call, run};

    /// Values that the rows of a call name for an argument, their neighbours, and some that no row names.
    fn interesting(number: i64, argument: usize) -> Vec<u64> {
        let named = TABLE.iter().chain(CONNECTOR).filter(|row| row.0 == number).flat_map(|row| match row.2 {
            When::Bits(at, mask, value) if at as usize == argument => vec![value, !mask | value, mask],
            When::OneOf(at, values) | When::OnPci(at, values) if at as usize == argument => values.to_vec(),
            When::Not(at, value) if at as usize == argument => vec![value],
            _ => Vec::new(),
        });
        let some = [0, 1, u64::MAX, 1 << 32, std::process::id().into(), 0xae80, 0x5412];
        let all: Vec<u64> = named.chain(some).flat_map(|value| [value, value ^ 1, value ^ 1 << 31]).collect();
        all.iter().flat_map(|&value| [value, value ^ 1 << 40]).collect()
    }

    /// The table as it is read: row after row.
    fn by_the_table(role: Role, extra: &[Row], number: i64, arguments: [u64; 6]) -> Answer {
        let bit = 1 << role as u8;
        if let Some(refused) = REFUSED.iter().find(|(_, roles, calls)| roles & bit != 0 && calls.contains(&number)) {
            return Answer::Errno(refused.0);
        }
        let low = |argument: u8| arguments[argument as usize] & 0xffff_ffff;
        let holds = |when: &When| match *when {
            When::Always => true,
            When::Bits(argument, mask, value) => low(argument) & mask == value & 0xffff_ffff,
            When::OneOf(argument, values) => values.contains(&low(argument)),
            When::OnPci(..) => false,
            When::Not(argument, value) => low(argument) != value,
            When::Null(argument) => arguments[argument as usize] == 0,
            When::Own(argument) => [0, std::process::id().into()].contains(&arguments[argument as usize]),
        };
        let may = |row: &&Row| role == Role::Main || row.1 & bit != 0;
        let allows = TABLE.iter().filter(may).chain(extra).any(|row| row.0 == number && holds(&row.2));
        if allows { Answer::Allow } else { Answer::Trap }
    }

    #[test]
    fn a_program_answers_as_the_table_says() {
        let roles = Role::ALL.into_iter().map(|role| (role, of_role(role), &[][..]));
        for (role, program, extra) in roles.chain([(Role::Ram, of_connector(), CONNECTOR)]) {
            for number in 0..500 {
                for argument in 0..6 {
                    for value in interesting(number, argument) {
                        for rest in [0, 1, u64::MAX] {
                            let mut arguments = [rest; 6];
                            arguments[argument] = value;
                            let (told, _) = run(&program, &call(number as u32, arguments));
                            let expected = by_the_table(role, extra, number, arguments);
                            assert_eq!(told, expected.code(), "{role:?}: call {number} with {arguments:x?}");
                        }
                    }
                }
            }
        }
    }

    /// What a call without conditions takes is walked once for each number when a thread starts, and at each call on a
    /// kernel that keeps no bitmap.
    #[test]
    fn programs_are_short_and_their_ways_too() {
        for role in Role::ALL {
            let program = of_role(role);
            let longest = (0..500).map(|number| run(&program, &call(number, [0; 6])).1).max().unwrap();
            assert!(program.len() <= 300 && longest <= 20, "{role:?}: {} instructions, {longest} steps", program.len());
        }
    }
}
