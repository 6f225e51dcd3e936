//! The names that a Linux kernel carries of its own functions: kallsyms.
//!
//! ```text
//!   until 6.3:  offsets, base, count, names, markers, [seqs,] tokens, token index
//!   since 6.4:                 count, names, markers, tokens, token index, offsets, base, seqs
//!
//!   names:   length, then so many bytes, each of which stands for one of 256 tokens:  05 54 b7 e0 73 12 --> T + "do_" ...
//!   markers: where every 256th name begins
//! ```
//!
//! A kernel says nowhere where its tables are, so they are searched for: the tokens of the ten digits are the digits
//! themselves, one after the other; the index behind the tokens and the markers behind the names tell whether what was
//! found is true. So a stock kernel has names without the package with its debug information.
//!
//! Spec: Linux `scripts/kallsyms.c` (`write_src`, `compress_symbols`) and `kernel/kallsyms.c` of 6.1 to 6.12. Left out:
//! kernels of fewer than 256 symbols, or with absolute addresses (KALLSYMS_BASE_RELATIVE=n, which no x86-64 kernel has);
//! modules.

/// One name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// Where it is linked to, or its place in a processor's own area.
    pub address: u64,
    /// The letter by which nm calls its kind: T and t are code.
    pub kind: u8,
    /// The name itself.
    pub name: Box<str>,
}

/// Most names that are believed: five times what large kernels have.
const MOST: usize = 1 << 20;
/// How far names may lie before their tokens: the largest kernels have a fifth of it.
const FARTHEST: usize = 32 << 20;
/// The longest name (KSYM_NAME_LEN), and so the longest token.
const LONGEST: usize = 512;
/// All tokens are no longer than this: their index has 16 bits.
const TOKENS: usize = 64 << 10;
/// Places where the tokens may be that are looked at, and names that are read in search of those of the kernel. A kernel
/// needs one place and some more than it has names; a file that is made to be searched for ever is given up.
const PLACES: usize = 64;
const PATIENCE: usize = 8 * MOST;
/// Letters of all names: ten times what large kernels have.
const ROOM: usize = 64 << 20;
/// Every so many names have a marker.
const STRIDE: usize = 256;
/// Linux lies above this address.
const LOWEST_BASE: u64 = 0xffff_ffff_8000_0000;
/// The ten digits, each a token.
const DIGITS: &[u8; 20] = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\0";

/// All names in the kernel whose unpacked image this is; none if it carries none.
pub fn names(image: &[u8]) -> Option<Vec<Name>> {
    let mut patience = PATIENCE;
    let mut places = memchr::memmem::find_iter(image, DIGITS).take(PLACES);
    places.find_map(|digits| names_of(image, &Tokens::around(image, digits)?, &mut patience))
}

fn names_of(image: &[u8], tokens: &Tokens<'_>, patience: &mut usize) -> Option<Vec<Name>> {
    let lowest = tokens.start.saturating_sub(FARTHEST);
    let mut places = (lowest..tokens.start).rev().filter(|at| at.is_multiple_of(8));
    let (at, count, names) = places.find_map(|at| {
        let count = usize::try_from(u64_at(image, at)?).ok().filter(|count| (STRIDE..MOST).contains(count))?;
        Some((at, count, compressed(image, at + 8, tokens.start, count, patience)?))
    })?;
    let offsets_len = (count * 4).next_multiple_of(8);
    let before = at.checked_sub(8).and_then(|base| Some((base.checked_sub(offsets_len)?, base)));
    let behind = Some((tokens.end, tokens.end + offsets_len));
    let (offsets, base) = [before, behind].into_iter().flatten().find_map(|(offsets, base)| {
        let base = u64_at(image, base).filter(|&base| base >= LOWEST_BASE)?;
        Some((image.get(offsets..offsets + count * 4)?, base))
    })?;
    let offsets: Vec<i32> =
        offsets.chunks_exact(4).map(|bytes| i32::from_le_bytes(bytes.try_into().unwrap_or_default())).collect();
    // Until 6.14 what is not an address in a processor's own area is kept as minus its distance, less one.
    let marked = offsets.iter().any(|&offset| offset < 0);
    let address = |offset: i32| match (marked, offset) {
        (true, 0..) => u64::from(offset.cast_unsigned()),
        (true, _) => base.wrapping_add(u64::from((-1 - offset).cast_unsigned())),
        (false, _) => base.wrapping_add(u64::from(offset.cast_unsigned())),
    };
    let mut room = ROOM;
    let named = offsets.iter().zip(names).map(|(&offset, name)| {
        let (kind, name) = tokens.expand(name)?;
        room = usize::checked_sub(room, name.len())?;
        Some(Name { address: address(offset), kind, name: name.into() })
    });
    named.collect()
}

/// So many compressed names that begin at `start`, if markers behind them say that these are names.
fn compressed<'a>(
    image: &'a [u8],
    start: usize,
    end: usize,
    count: usize,
    patience: &mut usize,
) -> Option<Vec<&'a [u8]>> {
    let all = image.get(start..end)?;
    let (mut names, mut markers, mut at) = (Vec::new(), Vec::new(), 0);
    for number in 0..count {
        if number.is_multiple_of(STRIDE) {
            markers.push(at);
        }
        *patience = patience.checked_sub(1)?;
        let first = usize::from(*all.get(at)?);
        // Of longer ones the length takes two bytes, low bits first (since 6.1).
        let (begin, len) = match first {
            0x80.. => (at + 2, (first & 0x7f) | usize::from(*all.get(at + 1)?) << 7),
            _ => (at + 1, first),
        };
        names.push(all.get(begin..begin + len).filter(|name| !name.is_empty())?);
        at = begin + len;
    }
    let mut said = all.get(at.next_multiple_of(8)..)?.chunks_exact(4);
    let agree =
        markers.iter().all(|&at| said.next().is_some_and(|said| said == u32::try_from(at).unwrap_or(0).to_le_bytes()));
    agree.then_some(names)
}

/// The 256 pieces that names are put together from.
struct Tokens<'a> {
    /// Where they begin in the image.
    start: usize,
    /// Where what is behind them and their index begins.
    end: usize,
    all: Vec<&'a [u8]>,
}

impl<'a> Tokens<'a> {
    /// Those whose digits are there, if the index behind them agrees.
    fn around(image: &'a [u8], digits: usize) -> Option<Tokens<'a>> {
        let before = usize::from(b'0');
        // As many ends of tokens lie before the digits. The first token begins somewhere before its end.
        let head = &image[digits.saturating_sub(TOKENS)..digits];
        let first_end = digits - head.len() + memchr::memrchr_iter(0, head).nth(before - 1)?;
        (first_end.saturating_sub(LONGEST)..=first_end).filter(|start| start.is_multiple_of(8)).find_map(|start| {
            if memchr::memchr(0, &image[start..first_end]).is_some() {
                return None;
            }
            let room = &image[start..image.len().min(start + TOKENS)];
            let all: Vec<&[u8]> = room.split(|&byte| byte == 0).take(256).collect();
            let ends = all.iter().scan(0, |at, text| {
                let begin = *at;
                *at += text.len() + 1;
                Some(begin)
            });
            let len: usize = all.iter().map(|text| text.len() + 1).sum();
            let index = (start + len).next_multiple_of(8);
            let said = image.get(index..index + 512)?.chunks_exact(2);
            let agree = ends.zip(said).all(|(at, said)| u16::try_from(at).is_ok_and(|at| at.to_le_bytes() == said));
            (agree && all.len() == 256).then_some(Tokens { start, end: index + 512, all })
        })
    }

    /// The letter of the kind, and the name.
    fn expand(&self, name: &[u8]) -> Option<(u8, String)> {
        let letters = name.iter().flat_map(|&code| self.all[usize::from(code)]).copied();
        let bytes: Vec<u8> = letters.take(LONGEST + 2).collect();
        let (kind, name) = bytes.split_first().filter(|(_, name)| name.len() <= LONGEST)?;
        Some((*kind, String::from_utf8_lossy(name).into_owned()))
    }
}

fn u64_at(image: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(image.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BASE: u64 = 0xffff_ffff_8100_0000;

    /// How a kernel lays its tables out.
    #[derive(Clone, Copy)]
    struct Layout {
        addresses_first: bool,
        per_cpu_marked: bool,
        seqs: bool,
    }

    const LAYOUTS: [Layout; 4] = [
        Layout { addresses_first: true, per_cpu_marked: true, seqs: false }, // 6.1
        Layout { addresses_first: true, per_cpu_marked: true, seqs: true },  // 6.2
        Layout { addresses_first: false, per_cpu_marked: true, seqs: true }, // 6.4
        Layout { addresses_first: false, per_cpu_marked: false, seqs: true }, // 6.15
    ];

    fn name(number: usize) -> (String, u64) {
        // One is longer than a byte can tell.
        let long = if number == 300 { "_and_so_on".repeat(20) } else { String::new() };
        (format!("do_step_{number}{long}"), BASE + number as u64 * 0x20)
    }

    /// The tables of a kernel of so many names, with something before and behind them. Codes are ASCII, but for `_step_`.
    fn tables(count: usize, layout: Layout) -> Vec<u8> {
        let (mut names, mut markers, mut offsets) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..count {
            if number % STRIDE == 0 {
                markers.extend((names.len() as u32).to_le_bytes());
            }
            let (text, address) = name(number);
            let codes: Vec<u8> = format!("T{text}").replace("_step_", "\x01").into_bytes();
            match u8::try_from(codes.len()) {
                Ok(short @ ..0x80) => names.push(short),
                _ => names.extend([codes.len() as u8 | 0x80, (codes.len() >> 7) as u8]),
            }
            names.extend(codes);
            let away = (address - BASE) as i32;
            offsets.extend(if layout.per_cpu_marked { -1 - away } else { away }.to_le_bytes());
        }
        let (mut tokens, mut index) = (Vec::new(), Vec::new());
        for code in 0..=255u8 {
            index.extend((tokens.len() as u16).to_le_bytes());
            match code {
                1 => tokens.extend(b"_step_"),
                b' '..=b'~' => tokens.push(code),
                _ => {}
            }
            tokens.push(0);
        }
        let addresses = [offsets, BASE.to_le_bytes().to_vec()];
        let mut parts = vec![b"before0\x001\x002\x003\x004\x005\x006\x007\x008\x009\0".to_vec()];
        parts.extend(addresses.iter().filter(|_| layout.addresses_first).cloned());
        parts.extend([(count as u64).to_le_bytes().to_vec(), names, markers]);
        parts.extend((layout.seqs && layout.addresses_first).then(|| vec![7; count * 3]));
        parts.extend([tokens, index]);
        parts.extend(addresses.into_iter().filter(|_| !layout.addresses_first));
        parts.push(vec![9; 64]);
        let mut image = Vec::new();
        for part in parts {
            image.resize(image.len().next_multiple_of(8), 0);
            image.extend(part);
        }
        image
    }

    #[test]
    fn names_are_found_in_each_layout() {
        for layout in LAYOUTS {
            let found = names(&tables(700, layout)).unwrap();
            assert_eq!(found.len(), 700);
            for (number, found) in found.into_iter().enumerate() {
                let (name, address) = name(number);
                assert_eq!(found, Name { address, kind: b'T', name: name.into() });
            }
        }
    }

    #[test]
    fn what_does_not_agree_is_none() {
        let whole = tables(700, LAYOUTS[0]);
        let digits = memchr::memmem::rfind(&whole, DIGITS).unwrap();
        let Tokens { start, end, .. } = Tokens::around(&whole, digits).unwrap();
        // The last marker, the index of tokens, and the number of names.
        let count = memchr::memmem::find(&whole, &700u64.to_le_bytes()).unwrap();
        for at in [start - 8, end - 1, count] {
            let mut broken = whole.clone();
            broken[at] ^= 1;
            assert!(names(&broken).is_none(), "{at:#x}");
        }
        assert!(names(&whole[..end - 1]).is_none() && names(&[]).is_none() && names(DIGITS).is_none());
        assert!(names(&tables(STRIDE - 1, LAYOUTS[0])).is_none());
    }

    proptest! {
        #[test]
        fn damage_is_no_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), layout in 0..4usize) {
            let mut image = tables(300, LAYOUTS[layout]);
            for (at, value) in changes {
                let at = at.index(image.len());
                image[at] = value;
            }
            let _ = names(&image);
        }
    }
}
