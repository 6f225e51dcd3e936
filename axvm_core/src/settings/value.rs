//! The small languages inside of values: sizes, names, lists of CPUs. What is shown can be read again.
//!
//! ```text
//!   "4G"         Size   digits, then K, M, G or T; MiB without
//!   "5m"         Time   digits, then s, m or h; seconds without
//!   "web-1"      Name   letters, digits, _ . -
//!   "0-9,20"     Pins   host CPUs and ranges of them
//! ```
//!
//! The errors say why, and what would be right; the caller says where.

use std::fmt;
use std::str::FromStr;

use super::text::is_text;

/// The size of guest RAM in bytes: one that a guest can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];
/// What the address map and page tables have room for: 2 MiB to 64 TiB, in whole MiB.
const SIZES: std::ops::RangeInclusive<u64> = 2 << 20..=1 << 46;

/// Digits, and what follows them.
fn split(text: &str) -> (&str, &str) {
    text.split_at(text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len())
}

/// Bytes; what does not fit into 64 bits is a large number all the same.
fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let shift = match unit.to_ascii_lowercase().as_str() {
        _ if number.is_empty() => None,
        "k" | "kb" | "kib" => Some(10),
        "" | "m" | "mb" | "mib" => Some(20),
        "g" | "gb" | "gib" => Some(30),
        "t" | "tb" | "tib" => Some(40),
        _ => None,
    };
    let shift = shift.ok_or("not a size; write a number with K, M, G or T, such as 512M or 4G")?;
    Ok(number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift)).unwrap_or(u64::MAX))
}

/// A size in whole MiB that may be 0, such as what a balloon takes.
pub fn mebibytes(text: &str) -> Result<u32, String> {
    let bytes = bytes(text)?;
    if !bytes.is_multiple_of(1 << 20) && bytes != u64::MAX {
        return Err("not a multiple of 1 MiB; write whole MiB, such as 512M or 4G".into());
    }
    u32::try_from(bytes >> 20).map_err(|_| "too large; no guest has so much".into())
}

/// A number, hexadecimal with 0x.
pub fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// So many bytes: a number, or one with K, M or G.
pub fn len(text: &str) -> Result<u64, String> {
    let number =
        number(text).or_else(|| bytes(text).ok()).ok_or("not a length; write bytes, such as 128, 0x80 or 4K")?;
    if number > 1 << 30 { Err("too much; at most 1G, or all of it: axvm ctl MACHINE dump".into()) } else { Ok(number) }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let bytes = bytes(text)?;
        if bytes > *SIZES.end() {
            return Err("too large; at most 64 TiB is possible, and what the host has is sensible: try 4G".into());
        }
        if bytes < *SIZES.start() {
            return Err("too small; a guest needs at least 2 MiB, and Linux some 64M: try 512M".into());
        }
        if !bytes.is_multiple_of(1 << 20) {
            return Err("not a multiple of 1 MiB; write whole MiB, such as 512M or 4G".into());
        }
        Ok(Size(bytes))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = UNITS.iter().find(|(_, shift)| self.0.is_multiple_of(1 << shift));
        let (unit, shift) = whole.copied().unwrap_or(('K', 10));
        write!(to, "{}{unit}", self.0 >> shift)
    }
}

/// A time in whole seconds, more than none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(pub u32);

const TIME_UNITS: [(&str, u32); 3] = [("h", 3600), ("m", 60), ("s", 1)];

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Time, String> {
        let (number, unit) = split(text);
        let unit = if unit.is_empty() { "s" } else { unit };
        let seconds = TIME_UNITS.iter().find(|(name, _)| *name == unit).filter(|_| !number.is_empty());
        let (_, seconds) = seconds.ok_or("not a time; write a number with s, m or h, such as 90s or 5m")?;
        match number.parse::<u32>().ok().and_then(|number| number.checked_mul(*seconds)) {
            None => Err("too long; leave it out for no limit".into()),
            Some(0) => Err("no time at all; try 5m, or leave it out for no limit".into()),
            Some(seconds) => Ok(Time(seconds)),
        }
    }
}

impl fmt::Display for Time {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = TIME_UNITS.iter().find(|(_, seconds)| self.0.is_multiple_of(*seconds));
        let (unit, seconds) = whole.copied().unwrap_or(("s", 1));
        write!(to, "{}{unit}", self.0 / seconds)
    }
}

/// The first of the I/O ports of a device that has four.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoPort(pub u16);

impl FromStr for IoPort {
    type Err = String;

    fn from_str(text: &str) -> Result<IoPort, String> {
        let number = match text.strip_prefix("0x") {
            Some(digits) => u16::from_str_radix(digits, 16),
            None => text.parse(),
        };
        let port = number.ok().filter(|&port| (1..=0xfffc).contains(&port) && !text.contains('+'));
        port.map(IoPort).ok_or_else(|| "not a port; write a number up to 0xfffc, such as 0xf4 or 0x501".into())
    }
}

impl fmt::Display for IoPort {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{:#x}", self.0)
    }
}

/// The name of a machine: never mistaken for a path, an option or a process id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(pub String);

/// The longest name.
const NAME_LEN: usize = 64;

fn may_be_in_name(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '_' | '.' | '-')
}

impl Name {
    /// What can be kept of the kernel's file name.
    pub fn from_file(file: &str) -> Name {
        let known = file.trim_start_matches(|letter: char| !letter.is_ascii_alphabetic());
        let name: String = known.chars().filter(|&letter| may_be_in_name(letter)).take(NAME_LEN).collect();
        Name(if name.is_empty() { "axvm".into() } else { name })
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Name, String> {
        if !text.starts_with(|letter: char| letter.is_ascii_alphabetic()) {
            return Err("a name begins with a letter, so that it is no process id and no path; try web-1".into());
        }
        if let Some(letter) = text.chars().find(|&letter| !may_be_in_name(letter)) {
            return Err(format!("{letter:?} cannot be in a name; use A-Z a-z 0-9 _ . -"));
        }
        if text.len() > NAME_LEN {
            return Err(format!("{} characters; a name has at most {NAME_LEN}", text.len()));
        }
        Ok(Name(text.to_owned()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(&self.0)
    }
}

/// Host CPUs in the order of vCPUs: ranges, both ends included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins(Vec<(usize, usize)>);

/// Width of the kernel's default `cpu_set_t`.
const MAX_HOST_CPUS: usize = 1024;

impl Pins {
    /// One host CPU for each of `cpus` vCPUs.
    pub fn each(&self, cpus: u32) -> Result<Vec<usize>, String> {
        let count: usize = self.0.iter().map(|(first, last)| last - first + 1).sum();
        if count != cpus as usize {
            return Err(format!("it names {count} host CPUs for {cpus} vCPUs; give one for each"));
        }
        Ok(self.0.iter().flat_map(|&(first, last)| first..=last).collect())
    }
}

impl Pins {
    /// Whether host CPU `cpu` is among them.
    pub fn contains(&self, cpu: usize) -> bool {
        self.0.iter().any(|(first, last)| (first..=last).contains(&&cpu))
    }
}

impl FromStr for Pins {
    type Err = String;

    fn from_str(text: &str) -> Result<Pins, String> {
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            match (first.parse::<usize>(), last.parse::<usize>()) {
                (Ok(first), Ok(last)) if first <= last && last < MAX_HOST_CPUS => Ok((first, last)),
                _ => Err(format!("'{part}' is no host CPU or range; write for example 0-3,8")),
            }
        };
        text.split(',').map(range).collect::<Result<_, _>>().map(Pins)
    }
}

impl fmt::Display for Pins {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |&(first, last): &(usize, usize)| {
            if first == last { first.to_string() } else { format!("{first}-{last}") }
        };
        to.write_str(&self.0.iter().map(show).collect::<Vec<_>>().join(","))
    }
}

is_text!(IoPort, Name, Pins, Size, Time);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_what_people_write() {
        for (text, bytes) in
            [("512M", 512 << 20), ("4G", 4 << 30), ("4GiB", 4 << 30), ("2048k", 2 << 20), ("128", 128 << 20)]
        {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
            assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn impossible_sizes_say_which_way() {
        for (text, word) in [
            ("", "not a size"),
            ("G", "not a size"),
            ("-1", "not a size"),
            ("1.5G", "not a size"),
            ("4X", "not a size"),
            ("4 G", "not a size"),
            ("99999999999G", "too large"),
            ("99999999999999999999999999", "too large"),
            ("65T", "too large"),
            ("0", "too small"),
            ("1M", "too small"),
            ("2049K", "multiple of 1 MiB"),
        ] {
            let error = text.parse::<Size>().unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn times_are_what_people_write() {
        for (text, seconds) in [("90", 90), ("90s", 90), ("5m", 300), ("2h", 7200), ("4294967295", u32::MAX)] {
            assert_eq!(text.parse(), Ok(Time(seconds)), "{text}");
            assert_eq!(Time(seconds).to_string().parse(), Ok(Time(seconds)), "{text}");
        }
        assert_eq!([300, 7200, 90].map(|seconds| Time(seconds).to_string()), ["5m", "2h", "90s"]);
        for (text, word) in [("", "not a time"), ("m", "not a time"), ("5d", "not a time"), ("-1", "not a time")] {
            assert!(text.parse::<Time>().unwrap_err().contains(word), "{text}");
        }
        assert!("0".parse::<Time>().unwrap_err().contains("no time at all"));
        assert!("99999999h".parse::<Time>().unwrap_err().contains("too long"));
    }

    #[test]
    fn ports_are_numbers_of_either_kind() {
        for (text, port) in [("0xf4", 0xf4), ("244", 0xf4), ("0x501", 0x501), ("0xfffc", 0xfffc)] {
            assert_eq!(text.parse(), Ok(IoPort(port)), "{text}");
            assert_eq!(IoPort(port).to_string().parse(), Ok(IoPort(port)), "{text}");
        }
        for text in ["", "0", "0xfffd", "65536", "-1", "0x", "0x+4", "f4"] {
            assert!(text.parse::<IoPort>().unwrap_err().contains("such as 0xf4"), "{text}");
        }
    }

    #[test]
    fn a_balloon_takes_whole_mib() {
        assert_eq!(["0", "512", "512M", "1G", "2048K"].map(mebibytes), [0, 512, 512, 1024, 2].map(Ok));
        for (text, word) in [("x", "not a size"), ("1K", "multiple of 1 MiB"), ("99999999999999999999", "too large")] {
            assert!(mebibytes(text).unwrap_err().contains(word), "{text}");
        }
    }

    #[test]
    fn names_are_no_paths_options_or_process_ids() {
        for text in ["web", "Web-1_a.b", &"a".repeat(64)] {
            assert_eq!(text.parse(), Ok(Name(text.to_owned())));
        }
        for text in ["", "1234", "-v", "./web", "a/b", "a b", "ä", &"a".repeat(65)] {
            assert!(text.parse::<Name>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_name_can_be_made_of_any_file() {
        for (file, name) in
            [("vmlinuz-6.1.0", "vmlinuz-6.1.0"), ("6.1 (old)bzImage", "oldbzImage"), ("ä", "axvm"), ("", "axvm")]
        {
            assert_eq!(Name::from_file(file).to_string(), name);
            assert!(name.parse::<Name>().is_ok());
        }
        assert_eq!(Name::from_file(&"k".repeat(300)).0.len(), NAME_LEN);
    }

    #[test]
    fn pins_name_one_host_cpu_per_vcpu() {
        let pins: Pins = "0-2,8".parse().unwrap();
        assert_eq!((pins.each(4), pins.to_string()), (Ok(vec![0, 1, 2, 8]), "0-2,8".into()));
        assert!(pins.each(3).unwrap_err().contains("4 host CPUs for 3"));
        for text in ["a", "3-1", "", "0-99999999", "1,", "1-2-3"] {
            assert!(text.parse::<Pins>().unwrap_err().contains("0-3,8"), "{text}");
        }
    }
}
