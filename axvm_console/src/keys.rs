//! The keys that AxVM keeps for itself, told from those that go to the guest.
//!
//! ```text
//!   Ctrl-A x       quit                   Ctrl-A h       help
//!   Ctrl-A p       power button           Ctrl-A Ctrl-A  one Ctrl-A for the guest
//!   Ctrl-A b       BREAK on a serial line  Ctrl-A d      diagnosis
//! ```

use crate::input::Input;

/// What a typed key asks of AxVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// Ctrl-A x: end the machine at once.
    Quit,
    /// Ctrl-A p: press the power button.
    PowerButton,
    /// Ctrl-A d: tell what the guest does.
    Explain,
}

/// What Ctrl-A h tells; `quit` is what the key to quit does.
pub fn help(quit: &str, has_break: bool) -> String {
    let sends_break = if has_break { ", Ctrl-A b sends BREAK (SysRq)" } else { "" };
    format!(
        "Ctrl-A x {quit}, Ctrl-A p presses the power button{sends_break}, Ctrl-A d tells what the guest does, \
         Ctrl-A Ctrl-A sends Ctrl-A"
    )
}

const CTRL_A: u8 = 0x01;

/// What was typed, sorted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Typed {
    /// For the guest.
    pub input: Input,
    /// For AxVM, in the order typed.
    pub keys: Vec<Key>,
    /// Ctrl-A h was among it.
    pub help: bool,
}

/// Remembers a Ctrl-A until the next key.
#[derive(Default)]
pub struct Escape {
    escaped: bool,
}

impl Escape {
    /// Sorts what a terminal gave. An unknown key after Ctrl-A goes to the guest without it.
    pub fn sort(&mut self, bytes: &[u8]) -> Typed {
        let mut typed = Typed::default();
        for &byte in bytes {
            match (std::mem::take(&mut self.escaped), byte) {
                (false, CTRL_A) => self.escaped = true,
                (true, b'x' | b'X') => typed.keys.push(Key::Quit),
                (true, b'p' | b'P') => typed.keys.push(Key::PowerButton),
                (true, b'd' | b'D') => typed.keys.push(Key::Explain),
                (true, b'h' | b'H' | b'?') => typed.help = true,
                (true, b'b' | b'B') => typed.input.push_break(),
                (_, byte) => typed.input.extend(&[byte]),
            }
        }
        typed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(bytes: &[u8]) -> (Vec<u8>, Vec<Key>, bool) {
        let typed = Escape::default().sort(bytes);
        (typed.input.parts().0, typed.keys, typed.help)
    }

    #[test]
    fn keys_for_axvm_do_not_reach_the_guest() {
        assert_eq!(typed(b"a\x01pb"), (b"ab".to_vec(), vec![Key::PowerButton], false));
        assert_eq!(typed(b"ls\x01X"), (b"ls".to_vec(), vec![Key::Quit], false));
        assert_eq!(typed(b"\x01h"), (vec![], vec![], true));
        assert_eq!(typed(b"\x01d\x01D"), (vec![], vec![Key::Explain; 2], false));
    }

    #[test]
    fn a_break_keeps_its_place() {
        let typed = Escape::default().sort(b"ab\x01bc\x01B");
        assert_eq!(typed.input.parts(), (b"abc".to_vec(), vec![2, 3]));
    }

    #[test]
    fn control_keys_reach_the_guest() {
        assert_eq!(typed(b"\x03\x1a\x1c"), (b"\x03\x1a\x1c".to_vec(), vec![], false));
        assert_eq!(typed(b"\x01\x01x"), (b"\x01x".to_vec(), vec![], false));
    }

    #[test]
    fn the_escape_may_arrive_in_two_reads() {
        let mut escape = Escape::default();
        assert_eq!(escape.sort(b"\x01"), Typed::default());
        assert_eq!(escape.sort(b"x").keys, [Key::Quit]);
    }
}
