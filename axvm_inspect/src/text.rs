//! Text of a guest or a file, made harmless for a terminal and a page.
//!
//! ```text
//!   "\x1b[31mred\ttext"  --clean-->  "�[31mred text"
//! ```
//!
//! What is taken out leaves a mark, so that a reader sees that there was something, and where.
//!
//! Spec: Unicode 15, general category Cc (control); UAX 9 "Unicode Bidirectional Algorithm" for the characters that turn
//! the direction of writing. Left out: letters that only look like others.

/// `text` on one line, as anything may show it: a tab becomes a space; other control characters, and characters that are
/// invisible or turn the direction of writing, each become U+FFFD. It has as many characters as before.
pub fn clean(text: &str) -> String {
    text.chars().map(harmless).collect()
}

fn harmless(letter: char) -> char {
    match letter {
        '\t' => ' ',
        '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' => {
            char::REPLACEMENT_CHARACTER
        }
        letter if letter.is_control() => char::REPLACEMENT_CHARACTER,
        letter => letter,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_a_cursor_or_turns_text_is_marked_and_the_rest_stays() {
        for (given, shown) in [
            ("Grüße, 世界 🦀", "Grüße, 世界 🦀"),
            ("a\tb", "a b"),
            ("\u{1b}[2Jgone", "\u{fffd}[2Jgone"),
            ("one\r\ntwo\0", "one\u{fffd}\u{fffd}two\u{fffd}"),
            ("\u{7f}\u{9b}31m", "\u{fffd}\u{fffd}31m"),
            ("exe\u{202e}txt\u{2066}\u{61c}", "exe\u{fffd}txt\u{fffd}\u{fffd}"),
            ("\u{feff}\u{200b}\u{2028}", "\u{fffd}\u{fffd}\u{fffd}"),
        ] {
            assert_eq!(clean(given), shown);
            assert_eq!(clean(shown), shown, "once is enough");
        }
    }
}
