//! Programs for the kernel's filter machine: which answer a system call gets.
//!
//! ```text
//!   another architecture? ---> the end of the process
//!   ioctl? ---> the one argument that counts (KVM_RUN)? ---> allowed
//!          '--> its other arguments                                       the hottest call decides first
//!   number < 96? --+--> number < 32? ...                                  then halves, and halves of halves:
//!                  '--> number < 202? ... --> these ten numbers, one by one
//! ```
//!
//! The kernel walks a program once for each number when it is installed, to learn which calls are allowed whatever their
//! arguments, and translates it into machine code: so a short walk and few instructions are a quick start, for every
//! thread. All jumps lead forward, so a program is written from its end.
//!
//! Spec: Linux `Documentation/userspace-api/seccomp_filter.rst`, `Documentation/networking/filter.rst` (classic BPF).

use std::collections::BTreeMap;

use libc::{c_long, sock_filter};

/// Not in the libc crate.
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

/// So many numbers or values are compared one after the other; more are halved.
const FEW: usize = 10;

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Allow,
    /// SIGSYS to the thread.
    Trap,
    /// This error.
    Errno(u32),
    /// The end of the process.
    Kill,
}

impl Answer {
    pub(crate) fn code(self) -> u32 {
        match self {
            Answer::Allow => libc::SECCOMP_RET_ALLOW,
            Answer::Trap => libc::SECCOMP_RET_TRAP,
            Answer::Errno(errno) => libc::SECCOMP_RET_ERRNO | errno & libc::SECCOMP_RET_DATA,
            Answer::Kill => libc::SECCOMP_RET_KILL_PROCESS,
        }
    }
}

/// What must hold for an argument, by its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// Of its low half, the bits `.1` are `.2`.
    Bits(u8, u32, u32),
    /// Its low half is another number.
    Not(u8, u32),
    /// All of it is one of these, which fit into the low half.
    Whole(u8, Vec<u32>),
    /// Its low half is one of these. The last in a list: no other follows it.
    OneOf(u8, Vec<u32>),
}

/// What a call gets: an answer, or this if one of the conditions holds, and the trap if none does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Always(Answer),
    If(Vec<Condition>),
}

/// The verdicts on calls by their number; what is not there is trapped.
pub(crate) type Verdicts = BTreeMap<u32, Verdict>;

/// The program for `verdicts`. `first` is a call and the low half of its second argument: these are allowed first of all.
pub(crate) fn compile(mut verdicts: Verdicts, first: Option<(c_long, u32)>) -> Vec<sock_filter> {
    let mut program = Program::default();
    match first {
        None => program.search(&sorted(&verdicts)),
        Some((call, argument)) => {
            let others = verdicts.remove(&(call as u32)).unwrap_or(Verdict::Always(Answer::Trap));
            let hot = |program: &mut Program| {
                program.verdict(&others);
                program.put([load(low_half(1)), jump(libc::BPF_JEQ, argument, 0, 1), answer(Answer::Allow)]);
            };
            program.branch(libc::BPF_JEQ, call as u32, hot, |program| program.search(&sorted(&verdicts)));
        }
    }
    program.put([load(ARCHITECTURE), jump(libc::BPF_JEQ, AUDIT_ARCH_X86_64, 1, 0), answer(Answer::Kill), load(NUMBER)]);
    program.0.reverse();
    program.0
}

fn sorted(verdicts: &Verdicts) -> Vec<(u32, &Verdict)> {
    verdicts.iter().map(|(&number, verdict)| (number, verdict)).collect()
}

/// A program that is written from its end, the last instruction first: what an instruction may jump over is there when it
/// is written. Each method puts its piece before all that is there.
#[derive(Default)]
struct Program(Vec<sock_filter>);

impl Program {
    /// Puts instructions that follow each other.
    fn put<const N: usize>(&mut self, piece: [sock_filter; N]) {
        self.0.extend(piece.into_iter().rev());
    }

    /// Finds the verdict on the number that was loaded, among `calls`, which are sorted.
    fn search(&mut self, calls: &[(u32, &Verdict)]) {
        if calls.len() > FEW {
            let (low, high) = calls.split_at(calls.len() / 2);
            return self.branch(libc::BPF_JGE, high[0].0, |yes| yes.search(high), |no| no.search(low));
        }
        let (allowed, others): (Vec<_>, Vec<_>) =
            calls.iter().partition(|(_, verdict)| **verdict == Verdict::Always(Answer::Allow));
        let allowed: Vec<u32> = allowed.iter().map(|(number, _)| *number).collect();
        self.compare(&others, &allowed);
    }

    /// Compares with `others` one by one, then with the numbers that are always allowed.
    fn compare(&mut self, others: &[(u32, &Verdict)], allowed: &[u32]) {
        match others {
            [] => self.one_of(allowed),
            [rest @ .., (number, verdict)] => {
                self.branch(libc::BPF_JEQ, *number, |yes| yes.verdict(verdict), |no| no.compare(rest, allowed));
            }
        }
    }

    fn verdict(&mut self, verdict: &Verdict) {
        match verdict {
            Verdict::Always(one) => self.put([answer(*one)]),
            Verdict::If(conditions) => {
                // The last answers itself.
                if !matches!(conditions.last(), Some(Condition::OneOf(..))) {
                    self.put([answer(Answer::Trap)]);
                }
                conditions.iter().rev().for_each(|condition| self.condition(condition));
            }
        }
    }

    /// Allows the call if the condition holds; otherwise the next instruction follows.
    fn condition(&mut self, condition: &Condition) {
        match condition {
            Condition::Bits(argument, mask, value) => self.put([
                load(low_half(*argument)),
                step(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, *mask),
                jump(libc::BPF_JEQ, *value, 0, 1),
                answer(Answer::Allow),
            ]),
            Condition::Not(argument, value) => {
                self.put([load(low_half(*argument)), jump(libc::BPF_JEQ, *value, 1, 0), answer(Answer::Allow)]);
            }
            Condition::Whole(argument, values) => {
                let behind = self.0.len();
                for value in values.iter().rev() {
                    self.put([jump(libc::BPF_JEQ, *value, 0, 1), answer(Answer::Allow)]);
                }
                self.put([load(low_half(*argument))]);
                // A high half with something in it: past the rest.
                let rest = short(self.0.len() - behind);
                self.put([load(low_half(*argument) + 4), jump(libc::BPF_JEQ, 0, 0, rest)]);
            }
            Condition::OneOf(argument, values) => {
                let mut values = values.clone();
                values.sort_unstable();
                values.dedup();
                self.one_of(&values);
                self.put([load(low_half(*argument))]);
            }
        }
    }

    /// Allows what was loaded if it is one of `values`, which are sorted; traps the rest.
    fn one_of(&mut self, values: &[u32]) {
        if values.len() > FEW {
            let (low, high) = values.split_at(values.len() / 2);
            return self.branch(libc::BPF_JGE, high[0], |yes| yes.one_of(high), |no| no.one_of(low));
        }
        if values.is_empty() {
            return self.put([answer(Answer::Trap)]);
        }
        self.put([answer(Answer::Trap), answer(Answer::Allow)]);
        for (behind, &value) in values.iter().rev().enumerate() {
            self.put([jump(libc::BPF_JEQ, value, short(behind + 1), 0)]);
        }
    }

    /// `yes` if what was loaded compares so with `value`, else `no`; both answer in the end.
    fn branch(&mut self, compare: u32, value: u32, yes: impl FnOnce(&mut Self), no: impl FnOnce(&mut Self)) {
        yes(self);
        let behind = self.0.len();
        no(self);
        let past = self.0.len() - behind;
        match u8::try_from(past) {
            Ok(past) => self.put([jump(compare, value, past, 0)]),
            // A condition jumps 255 instructions at most.
            Err(_) => {
                let past = past.try_into().expect("a program has 4096 instructions at most");
                self.put([jump(compare, value, 0, 1), step(libc::BPF_JMP | libc::BPF_JA, past)]);
            }
        }
    }
}

// `seccomp_data`: number, architecture, address, arguments.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

fn low_half(argument: u8) -> u32 {
    16 + 8 * u32::from(argument)
}

fn load(offset: u32) -> sock_filter {
    step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

fn answer(answer: Answer) -> sock_filter {
    step(libc::BPF_RET | libc::BPF_K, answer.code())
}

fn step(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn jump(compare: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: (libc::BPF_JMP | compare | libc::BPF_K) as u16, jt, jf, k }
}

fn short(count: usize) -> u8 {
    count.try_into().expect("conditions are short")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What the kernel is told of a call.
    #[derive(Clone, Copy)]
    pub(crate) struct Call {
        pub(crate) number: u32,
        pub(crate) architecture: u32,
        pub(crate) arguments: [u64; 6],
    }

    pub(crate) const fn call(number: u32, arguments: [u64; 6]) -> Call {
        Call { number, architecture: AUDIT_ARCH_X86_64, arguments }
    }

    /// Runs a program as the kernel does: its answer, and how many instructions that took.
    pub(crate) fn run(program: &[sock_filter], call: &Call) -> (u32, usize) {
        let word = |offset: u32| match offset {
            NUMBER => call.number,
            ARCHITECTURE => call.architecture,
            _ => (call.arguments[(offset as usize - 16) / 8] >> (8 * (offset % 8))) as u32,
        };
        let (mut a, mut at, mut steps) = (0, 0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            (at, steps) = (at + 1, steps + 1);
            let chosen = |holds: bool| usize::from(if holds { jt } else { jf });
            match u32::from(code) {
                code if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => a = word(k),
                code if code == libc::BPF_ALU | libc::BPF_AND | libc::BPF_K => a &= k,
                code if code == libc::BPF_JMP | libc::BPF_JA => at += k as usize,
                code if code == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => at += chosen(a == k),
                code if code == libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K => at += chosen(a >= k),
                code if code == libc::BPF_RET | libc::BPF_K => return (k, steps),
                code => panic!("unknown instruction {code:#x}"),
            }
        }
    }

    fn answer_of(program: &[sock_filter], number: u32, arguments: [u64; 6]) -> u32 {
        run(program, &call(number, arguments)).0
    }

    #[test]
    fn every_number_gets_its_verdict_and_no_other() {
        let verdicts: Verdicts = (0..600).filter(|n| n % 3 != 1).map(|n| (n, of(n))).collect();
        let program = compile(verdicts.clone(), Some((300, 7)));
        assert!(program.len() > 600, "long jumps are tried, too: {}", program.len());
        for number in 0..1000 {
            let expected = verdicts.get(&number).map_or(Answer::Trap, |_| match number % 3 {
                0 => Answer::Allow,
                _ => Answer::Errno(number),
            });
            assert_eq!(answer_of(&program, number, [0; 6]), expected.code(), "{number}");
        }
        assert_eq!(answer_of(&program, 0x4000_0000, [0; 6]), Answer::Trap.code(), "a call of the x32 ABI");
        assert_eq!(run(&program, &Call { architecture: 0x4000_0003, ..call(0, [0; 6]) }).0, Answer::Kill.code());

        fn of(n: u32) -> Verdict {
            Verdict::Always(if n.is_multiple_of(3) { Answer::Allow } else { Answer::Errno(n) })
        }
    }

    #[test]
    fn conditions_look_at_the_halves_that_they_name() {
        let conditions = [
            Condition::Bits(0, 0xf0, 0x30),
            Condition::Not(1, 31),
            Condition::Whole(2, vec![0, 77]),
            Condition::OneOf(3, (0..40).map(|n| n * 3).rev().collect()),
        ];
        let alone = |condition| {
            let verdicts = Verdicts::from([(5, Verdict::If(vec![condition]))]);
            compile(verdicts, None)
        };
        let [bits, not, whole, one_of] = conditions.map(alone);
        let allows = |program: &[sock_filter], argument: usize, value: u64| {
            let mut arguments = [u64::MAX; 6];
            arguments[argument] = value;
            answer_of(program, 5, arguments) == Answer::Allow.code()
        };
        assert!(allows(&bits, 0, 0xf_ff3f) && !allows(&bits, 0, 0x20));
        assert!(allows(&not, 1, 30) && !allows(&not, 1, 31) && !allows(&not, 1, 1 << 32 | 31));
        assert!(allows(&whole, 2, 0) && allows(&whole, 2, 77) && !allows(&whole, 2, 78));
        assert!(!allows(&whole, 2, 1 << 32) && !allows(&whole, 2, 1 << 32 | 77));
        for value in 0..130 {
            assert_eq!(allows(&one_of, 3, value), value % 3 == 0 && value < 120, "{value}");
        }
    }

    #[test]
    fn the_first_call_is_decided_in_seven_instructions() {
        let verdicts = Verdicts::from([(16, Verdict::If(vec![Condition::OneOf(1, vec![1, 2])]))]);
        let program = compile(verdicts, Some((16, 0xae80)));
        let with = |argument| run(&program, &call(16, [0, argument, 0, 0, 0, 0]));
        assert_eq!(with(0xae80), (Answer::Allow.code(), 7));
        assert_eq!(
            [1, 2, 3].map(|argument| with(argument).0),
            [Answer::Allow, Answer::Allow, Answer::Trap].map(Answer::code)
        );
    }
}
