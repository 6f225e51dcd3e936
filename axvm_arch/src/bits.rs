//! Registers as bits with names: what a person reads where a program has a number.
//!
//! ```text
//!   0x80000011  --CR0's names-->  "0x80000011 PE ET PG"          one line
//!                                 PE  protected mode ...         one clause for each bit that is set
//!   0x3002      --RFLAGS'  -->    "0x3002 IOPL=3"                fields of more than one bit have a value
//! ```
//!
//! No specification: each table of names cites its own. Left out: registers of 128 bits and more.

use std::fmt;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

/// A bit of a register, or a field of some, with its name in the manual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bit {
    /// Where it is.
    pub mask: u64,
    /// Its name in the manual.
    pub name: &'static str,
    /// What it means when it is set, in one clause.
    pub means: &'static str,
}

impl Bit {
    /// Its value in `register`, moved to bit 0.
    pub const fn of(&self, register: u64) -> u64 {
        (register & self.mask) >> self.mask.trailing_zeros()
    }

    /// Whether it is a field of more than one bit.
    const fn is_field(&self) -> bool {
        self.mask.count_ones() > 1
    }
}

/// A register's value with the names of its bits. Shown as `0x80000011 PE ET PG`; bits without a name are in the number
/// only.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Bits {
    /// The register.
    pub value: u64,
    names: &'static [Bit],
}

impl Bits {
    /// `value`, whose bits are called as in `names`.
    pub const fn new(value: u64, names: &'static [Bit]) -> Bits {
        Bits { value, names }
    }

    /// The named bits and fields that are not zero, in ascending order.
    pub fn set(&self) -> impl Iterator<Item = &'static Bit> {
        let value = self.value;
        self.names.iter().filter(move |bit| value & bit.mask != 0)
    }

    /// What is set and has no name: reserved, or newer than this table.
    pub fn unnamed(&self) -> u64 {
        self.names.iter().fold(self.value, |rest, bit| rest & !bit.mask)
    }

    /// The names of what is set, without the number: `PE ET PG`, and `-` for none.
    pub fn names(&self) -> String {
        let words: Vec<String> = self.set().map(|bit| self.word(bit)).collect();
        if words.is_empty() { "-".into() } else { words.join(" ") }
    }

    fn word(&self, bit: &Bit) -> String {
        match bit.is_field() {
            true => format!("{}={}", bit.name, bit.of(self.value)),
            false => bit.name.into(),
        }
    }
}

impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.value)?;
        if self.set().next().is_some() { write!(f, " {}", self.names()) } else { Ok(()) }
    }
}

impl fmt::Debug for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Bits {
    /// `{"value": 2147483665, "set": ["PE", "ET", "PG"]}`
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let set: Vec<String> = self.set().map(|bit| self.word(bit)).collect();
        let mut object = serializer.serialize_struct("Bits", 2)?;
        object.serialize_field("value", &self.value)?;
        object.serialize_field("set", &set)?;
        object.end()
    }
}

/// A module of one register: a constant for each bit, and all of them as a table, `BITS`.
macro_rules! bits {
    ($(#[$doc:meta])* $module:ident { $($name:ident = $mask:expr, $means:literal;)* }) => {
        $(#[$doc])*
        pub mod $module {
            use crate::bits::{Bit, Bits};

            $(#[doc = $means] pub const $name: u64 = $mask;)*
            /// Every bit that has a name, in ascending order.
            pub const BITS: &[Bit] = &[$(Bit { mask: $name, name: stringify!($name), means: $means }),*];

            /// `value` with the names of its bits.
            pub const fn bits(value: u64) -> Bits {
                Bits::new(value, BITS)
            }
        }
    };
}
pub(crate) use bits;

#[cfg(test)]
mod tests {
    use crate::control;

    #[test]
    fn a_register_is_its_number_and_the_names_of_its_bits() {
        assert_eq!(control::cr0::bits(0x8000_0011).to_string(), "0x80000011 PE ET PG");
        assert_eq!(control::rflags::bits(0x3202).to_string(), "0x3202 IF IOPL=3");
        assert_eq!(control::cr4::bits(0).to_string(), "0x0");
        assert_eq!(control::cr4::bits(0).names(), "-");
        let odd = control::efer::bits(1 << 40 | 1);
        assert_eq!((odd.to_string(), odd.unnamed()), ("0x10000000001 SCE".into(), 1 << 40));
        let json = serde_json::to_string(&control::rflags::bits(0x1200)).unwrap();
        assert_eq!(json, r#"{"value":4608,"set":["IF","IOPL=1"]}"#);
    }

    #[test]
    fn no_two_names_of_a_register_share_a_bit_and_all_are_in_order() {
        use control::{cr0, cr3, cr4, dr6, dr7, efer, page_fault, rflags};
        let tables =
            [cr0::BITS, cr3::BITS, cr4::BITS, efer::BITS, rflags::BITS, dr6::BITS, dr7::BITS, page_fault::BITS];
        for table in tables.into_iter().chain([crate::paging::entry::BITS]) {
            for pair in table.windows(2) {
                assert!(pair[0].mask & pair[1].mask == 0 && pair[0].mask < pair[1].mask, "{pair:?}");
            }
            for bit in table {
                let lowest = bit.mask.trailing_zeros();
                assert!((bit.mask >> lowest).trailing_ones() == bit.mask.count_ones(), "{bit:?} has a gap");
                assert!(!bit.means.ends_with('.') && bit.means.len() < 80, "{bit:?}");
            }
        }
    }
}
