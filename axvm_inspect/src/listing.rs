//! Bytes of memory as lines for people: hexadecimal digits with the characters that they may be, or instructions.
//!
//! ```text
//!   0xffffffff81000000  48 8d 25 51 3f 60 01 48  8d 3d f2 ff ff ff b9 01  H.%Q?`.H.=......
//!   0xffffffff81000000  48 8d 25 51 3f 60 01          lea rsp, [0xffffffff82603f58]
//! ```

use std::fmt::Write;

use iced_x86::{Decoder, DecoderOptions};

use crate::crash::assembly;

/// Bytes in a line of digits.
const ROW: usize = 16;
/// Room for the digits of an instruction: those of nearly all. The longest has 15 bytes.
const DIGITS: usize = 3 * 10;

/// Digits and characters, sixteen bytes a line.
pub fn bytes(bytes: &[u8], address: u64) -> String {
    let mut text = String::new();
    for (at, row) in bytes.chunks(ROW).enumerate() {
        let digits = row.iter().enumerate().fold(String::new(), |mut digits, (n, byte)| {
            let _ = write!(digits, "{}{byte:02x} ", if n == ROW / 2 { " " } else { "" });
            digits
        });
        let character = |byte: &u8| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' };
        let characters: String = row.iter().map(character).collect();
        let address = address.wrapping_add((at * ROW) as u64);
        let _ = writeln!(text, "{address:#018x}  {digits:<width$} {characters}", width = 3 * ROW + 1);
    }
    text
}

/// An instruction a line, of code of so many bits: 16, 32 or 64. One that the bytes have only the beginning of is left out;
/// what is no instruction is told as that, byte by byte.
pub fn instructions(bytes: &[u8], address: u64, bits: u32) -> String {
    let mut text = String::new();
    let bits = if matches!(bits, 16 | 32) { bits } else { 64 };
    let mut decoder = Decoder::with_ip(bits, bytes, address, DecoderOptions::NONE);
    while decoder.can_decode() {
        let start = decoder.position();
        let decoded = decoder.decode();
        if decoded.is_invalid() && bytes.len() - start < 15 {
            break;
        }
        let len = if decoded.is_invalid() { 1 } else { decoded.len() };
        if decoder.set_position(start + len).is_err() {
            break;
        }
        decoder.set_ip(decoded.ip().wrapping_add(len as u64));
        let digits = bytes[start..start + len].iter().fold(String::new(), |mut digits, byte| {
            let _ = write!(digits, "{byte:02x} ");
            digits
        });
        let words = if decoded.is_invalid() { "(no instruction)".to_owned() } else { assembly(&decoded) };
        let _ = writeln!(text, "{:#018x}  {digits:<DIGITS$} {words}", decoded.ip());
    }
    text
}

/// Bytes of the first instruction, if it is one.
pub fn first_len(bytes: &[u8], bits: u32) -> Option<usize> {
    let bits = if matches!(bits, 16 | 32) { bits } else { 64 };
    let decoded = Decoder::new(bits, bytes, DecoderOptions::NONE).decode();
    (!decoded.is_invalid()).then(|| decoded.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_digits_and_characters_and_nothing_else() {
        let text = bytes(b"Linux\x1b[2J\xff\0 version 6", 0xff8);
        let expected = "0x0000000000000ff8  4c 69 6e 75 78 1b 5b 32  4a ff 00 20 76 65 72 73  Linux.[2J.. vers\n\
                        0x0000000000001008  69 6f 6e 20 36                                    ion 6\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn code_is_listed_to_the_last_whole_instruction() {
        let code = [0xf4, 0x48, 0x8d, 0x25, 0x51, 0x3f, 0x60, 0x01, 0x48, 0x8d];
        let text = instructions(&code, 0xffff_ffff_8100_0000, 64);
        let expected = "0xffffffff81000000  f4                             hlt\n\
                        0xffffffff81000001  48 8d 25 51 3f 60 01           lea rsp, [0xffffffff82603f59]\n";
        assert_eq!(text, expected);
        let real = instructions(&[0xea, 0, 0, 0, 0x10], 0xffff0, 16);
        assert!(real.ends_with("jmp 0x1000:0\n") || real.contains("jmp"), "{real}");
    }

    #[test]
    fn what_is_no_instruction_is_said_and_the_next_one_found() {
        let code = [&[0x06, 0xf4][..], &[0x90; 14]].concat();
        let text = instructions(&code, 0, 64);
        assert!(
            text.starts_with("0x0000000000000000  06 ") && text.contains("(no instruction)\n0x0000000000000001  f4 ")
        );
        assert_eq!(text.lines().count(), 16);
        assert!(instructions(&[0xff; 4096], 0, 64).lines().count() > 4000);
    }
}
