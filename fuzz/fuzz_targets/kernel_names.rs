//! The names that a kernel carries: whatever the tables say, they are names or none, and found or given up soon.
//!
//! The bytes are what lies around a table of tokens that is right, for without one nothing is looked at: the first two say
//! how many of them lie before it, and the bytes of one token.
//!
//! Run: `cargo xtask fuzz kernel_names`.
#![no_main]

use axvm_inspect::kernel::kallsyms::names;
use libfuzzer_sys::fuzz_target;

/// Names and tokens are no longer than this.
const LONGEST: usize = 512;

/// 256 tokens, of which the printable ones are themselves, and the index behind them.
fn tokens(long: &[u8]) -> Vec<u8> {
    let (mut tokens, mut index) = (Vec::new(), Vec::new());
    for code in 0..=255u8 {
        index.extend((tokens.len() as u16).to_le_bytes());
        match code {
            1 => tokens.extend(long.iter().filter(|&&byte| byte != 0)),
            b' '..=b'~' => tokens.push(code),
            _ => {}
        }
        tokens.push(0);
    }
    tokens.resize(tokens.len().next_multiple_of(8), 0);
    [tokens, index].concat()
}

fuzz_target!(|data: &[u8]| {
    let [first, second, long, rest @ ..] = data else { return };
    let before = usize::from(u16::from_le_bytes([*first, *second])).min(rest.len());
    let (before, behind) = rest.split_at(before);
    let mut image = before.to_vec();
    image.resize(image.len().next_multiple_of(8), 0);
    image.extend(tokens(&before[..before.len().min(usize::from(*long))]));
    image.extend(behind);
    for name in names(&image).into_iter().flatten() {
        assert!(name.name.chars().count() <= LONGEST);
    }
});
