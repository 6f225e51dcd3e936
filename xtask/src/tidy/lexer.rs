//! Rust source, taken apart as far as the rules need it: code, comments and strings.
//!
//! ```text
//!   let x = "a {b}"; // why      --> code      let x = ;
//!                                    strings   a {b}
//! ```
//!
//! Spec: The Rust Reference, "Tokens". Left out: nothing is parsed beyond tokens.

/// A source taken apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// What is neither comment nor string; lines stay lines.
    pub code: String,
    /// String literals, escapes resolved, in order.
    pub strings: Vec<String>,
}

/// Takes `text` apart.
pub fn parts(text: &str) -> Parts {
    let mut parts = Parts::default();
    let mut rest = text;
    while let Some(char) = rest.chars().next() {
        let (taken, string) = next(rest, parts.code.chars().next_back());
        match string {
            Some(string) => parts.strings.push(string),
            None if taken == char.len_utf8() => parts.code.push(char),
            // A comment, or a character literal.
            None => {}
        }
        if taken > char.len_utf8() {
            parts.code.extend(rest[..taken].chars().filter(|&c| c == '\n'));
        }
        rest = &rest[taken..];
    }
    parts
}

/// How many bytes the next token has, and the string if it is one; `before` is the last character of code.
fn next(rest: &str, before: Option<char>) -> (usize, Option<String>) {
    let char = rest.chars().next().map_or(0, char::len_utf8);
    if rest.starts_with("//") {
        return (rest.find('\n').unwrap_or(rest.len()), None);
    }
    if rest.starts_with("/*") {
        return (rest.find("*/").map_or(rest.len(), |at| at + 2), None);
    }
    if let Some(inside) = rest.strip_prefix('"') {
        let (len, string) = quoted(inside);
        return (len + 1, Some(string));
    }
    let in_word = before.is_some_and(|before| before.is_alphanumeric() || before == '_');
    if !in_word && rest.starts_with('r') {
        let hashes = rest[1..].chars().take_while(|&c| c == '#').count();
        if let Some(inside) = rest[1 + hashes..].strip_prefix('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let len = inside.find(&end).unwrap_or(inside.len());
            return ((2 + hashes + len + end.len()).min(rest.len()), Some(inside[..len].to_owned()));
        }
    }
    // A character; a lifetime has no second quote so near.
    if let Some(escape) = rest.strip_prefix("'\\") {
        return (escape.char_indices().skip(1).find(|(_, c)| *c == '\'').map_or(2, |(at, _)| at + 3), None);
    }
    if let Some(inside) = rest.strip_prefix('\'') {
        let len = inside.chars().next().map_or(0, char::len_utf8);
        if inside[len..].starts_with('\'') {
            return (len + 2, None);
        }
    }
    (char, None)
}

/// The string that begins here, and its length with the closing quote.
fn quoted(inside: &str) -> (usize, String) {
    let mut string = String::new();
    let mut chars = inside.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return (at + 1, string),
            '\\' => match chars.next() {
                Some((_, 'n')) => string.push('\n'),
                // A line that goes on: its end and the next one's indentation do not count.
                Some((_, '\n')) => {
                    let more = chars.as_str();
                    let indentation = more.len() - more.trim_start().len();
                    chars.by_ref().take(more[..indentation].chars().count()).for_each(drop);
                }
                Some((_, other)) => string.push(other),
                None => {}
            },
            other => string.push(other),
        }
    }
    (inside.len(), string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_found_and_comments_are_not_code() {
        let text = "let a = \"one \\\"two\\\" \\\n         three\"; // \"no\" unsafe\nlet b = r#\"raw \"x\"\"#; /* \"no\" */ f('\"', '\\'', \"c\");\n";
        let parts = parts(text);
        assert_eq!(parts.strings, ["one \"two\" three", "raw \"x\"", "c"]);
        assert_eq!(parts.code, "let a = \n; \nlet b = ;  f(, , );\n");
    }

    #[test]
    fn lifetimes_and_names_that_end_in_r_are_code() {
        let text = "fn f<'a>(x: &'a str, for_r: &'static u8) -> Foo<'a> { bar(\"s\") }";
        assert_eq!(parts(text).strings, ["s"]);
        assert!(parts(text).code.contains("fn f<'a>(x: &'a str"));
    }
}
