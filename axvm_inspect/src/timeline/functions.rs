//! Which functions of the guest exit, and for what.
//!
//! ```text
//!   exits: RIP ---- slide ----> Symbols --> io_serial_out   1204 exits, 0.4 ms, COM1 THR
//!   entry for system calls --'
//! ```
//!
//! Without names each address is a row of its own.

use std::collections::HashMap;

use super::read::{Name, Timeline};
use crate::symbols::Symbols;

/// Where Linux has its modules, whose functions no file names (Documentation/arch/x86/x86_64/mm.rst).
const MODULES: u64 = 0xffff_ffff_a000_0000;

/// One function's exits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name, or an address.
    pub name: String,
    /// What it accessed most often.
    pub register: Name,
    /// How often it exited.
    pub count: usize,
    /// How long AxVM took in all, in nanoseconds.
    pub total: u64,
}

/// Functions by how often they exit, the one with the most first; exits whose place is not known are left out.
pub fn functions(timeline: &Timeline, symbols: Option<&Symbols>) -> Vec<Function> {
    let located = symbols.and_then(|symbols| symbols.moved(timeline.entry));
    let mut places: HashMap<u64, HashMap<Name, (usize, u64)>> = HashMap::new();
    for exit in timeline.exits.iter().filter(|exit| exit.rip != 0 && timeline.word(exit.reason) != "kick") {
        let (count, total) = places.entry(exit.rip).or_default().entry(exit.name).or_default();
        *count += 1;
        *total = total.saturating_add(exit.took);
    }
    let mut named: HashMap<String, HashMap<Name, (usize, u64)>> = HashMap::new();
    for (rip, registers) in places {
        let name = located.and_then(|located| Some(located.function(rip)?.0));
        let nameless = || if located.is_some() && rip >= MODULES { "module " } else { "" };
        let function = named.entry(name.unwrap_or_else(|| format!("{}{rip:#x}", nameless()))).or_default();
        for (register, (count, total)) in registers {
            let all = function.entry(register).or_default();
            *all = (all.0 + count, all.1.saturating_add(total));
        }
    }
    let function = |(name, registers): (String, HashMap<Name, (usize, u64)>)| {
        let (count, total) =
            registers.values().fold((0, 0u64), |(count, total), all| (count + all.0, total.saturating_add(all.1)));
        let register = registers.iter().max_by_key(|(register, all)| (all.0, **register)).map_or(0, |most| *most.0);
        Function { name, register, count, total }
    };
    let mut functions: Vec<Function> = named.into_iter().map(function).collect();
    functions.sort_by(|one, other| (other.count, &one.name).cmp(&(one.count, &other.name)));
    functions
}

#[cfg(test)]
mod tests {
    use super::*;
    use axvm_events::tape::{Kind, Record};

    use crate::timeline::chrome::{Chrome, Scale};

    /// A kernel that was moved by 64 MiB writes and reads, and something else exits.
    fn timeline() -> Timeline {
        let mut chrome = Chrome::new(Scale { start: 0, tick: 1.0 }, u64::MAX);
        let lane = chrome.lane("vcpu0");
        let name = |_, address| Some(format!("COM1 {address}"));
        let write = Record { at: 1, took: 8, kind: Kind::PortWrite, size: 1, count: 1, address: 0, value: 0, rip: 0 };
        for (rip, address) in
            [(0xffff_ffff_8500_0010, 1), (0xffff_ffff_8500_0014, 2), (0xffff_ffff_8500_0010, 1), (0x1000, 3), (0, 4)]
        {
            chrome.record(lane, &Record { rip, address, ..write }, name);
        }
        chrome.record(lane, &Record { kind: Kind::Kick, rip: 0x1000, ..write }, name);
        chrome.record(lane, &Record { kind: Kind::Entry, address: 0xffff_ffff_8580_0000, ..write }, name);
        chrome.end(9);
        Timeline::read(&*chrome.take()).unwrap()
    }

    #[test]
    fn exits_are_their_functions_where_the_kernel_is() {
        let map = b"ffffffff81000000 T io_serial_out\nffffffff81000020 T other\nffffffff81800000 T entry_SYSCALL_64\n";
        let symbols = Symbols::read(&&map[..]).unwrap();
        let timeline = timeline();
        let found = functions(&timeline, Some(&symbols));
        let told: Vec<_> = found.iter().map(|row| (&*row.name, timeline.word(row.register), row.count)).collect();
        assert_eq!(told, [("io_serial_out", "COM1 1", 3), ("0x1000", "COM1 3", 1)]);
        assert_eq!(found[0].total, 24);
        let bare = functions(&timeline, None);
        assert_eq!(bare.iter().map(|row| row.count).collect::<Vec<_>>(), [2, 1, 1]);
    }
}
