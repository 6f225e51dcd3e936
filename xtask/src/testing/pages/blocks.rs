//! The sessions of a page: what is typed, and what must come.
//!
//! ```text
//!   ```console numbers         "numbers" is a word: how to compare, or where it runs
//!   $ axvm ps                  typed
//!   > ...                      (more lines of the same command, as a shell asks for them)
//!   PID  NAME                  expected
//!
//!   ```c kernel.c              a file, which is there before anything is typed
//! ```

/// One fenced block of a page.
#[derive(Debug, PartialEq, Eq)]
pub struct Block {
    /// Its first line in the page, from 1.
    pub line: usize,
    /// What follows `console`.
    pub words: Vec<String>,
    /// What is typed.
    pub steps: Vec<Step>,
}

/// One command and what it prints.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    /// Its line in the page, from 1.
    pub line: usize,
    /// The command; may have many lines.
    pub command: String,
    /// What must come.
    pub expected: Vec<String>,
}

impl Block {
    /// Why it is not for this shell.
    pub fn elsewhere(&self) -> Option<&'static str> {
        let has = |word: &str| self.words.iter().any(|other| other == word);
        match () {
            () if has("lab") => Some("needs Linux under AxVM; the layer lab boots it"),
            () if has("cargo") => Some("builds and tests all; it is a layer itself"),
            () => None,
        }
    }

    /// Whether numbers and spaces may differ.
    pub fn numbers_vary(&self) -> bool {
        self.words.iter().any(|word| word == "numbers")
    }
}

/// All `console` blocks of a page.
pub fn find(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut inside: Option<Block> = None;
    for (number, line) in page.lines().enumerate().map(|(number, line)| (number + 1, line)) {
        match &mut inside {
            Some(_) if line == "```" => blocks.extend(inside.take()),
            Some(block) => add(block, number, line),
            None => {
                let words = line.strip_prefix("```console").map(|words| words.split_whitespace());
                inside = words.map(|words| Block {
                    line: number,
                    words: words.map(str::to_owned).collect(),
                    steps: Vec::new(),
                });
            }
        }
    }
    blocks
}

/// The files that a page shows whole, with their names: blocks with a second word that is one.
pub fn files(page: &str) -> Vec<(String, String)> {
    let mut files = Vec::new();
    // The name of the block's file, if it is one.
    let mut inside: Option<Option<(String, String)>> = None;
    for line in page.lines() {
        match &mut inside {
            Some(_) if line == "```" => files.extend(inside.take().flatten()),
            Some(Some((_, text))) => text.extend([line, "\n"]),
            Some(None) => {}
            None => {
                let words = line.strip_prefix("```").map(|words| words.split_whitespace().nth(1));
                let is_name = |word: &&str| word.contains('.') && !word.contains('/');
                inside = words.map(|word| Some((word.filter(is_name)?.to_owned(), String::new())));
            }
        }
    }
    files
}

fn add(block: &mut Block, number: usize, line: &str) {
    if let Some(command) = line.strip_prefix("$ ") {
        block.steps.push(Step { line: number, command: command.to_owned(), expected: Vec::new() });
    } else if let Some(step) = block.steps.last_mut() {
        match line.strip_prefix("> ").or_else(|| (line == ">").then_some("")) {
            Some(more) if step.expected.is_empty() => step.command.extend(["\n", more]),
            _ => step.expected.push(line.to_owned()),
        }
    }
}

/// Whether what came is what the page shows.
pub fn agrees(expected: &[String], came: &[String], numbers_vary: bool) -> bool {
    let Some((first, rest)) = expected.split_first() else { return came.is_empty() };
    if first.trim() == "..." {
        return (0..=came.len()).any(|skipped| agrees(rest, &came[skipped..], numbers_vary));
    }
    came.split_first().is_some_and(|(line, more)| {
        let same = match numbers_vary {
            true => like(&plain(first), &plain(line)),
            false => like(first.trim_end(), line.trim_end()),
        };
        same && agrees(rest, more, numbers_vary)
    })
}

/// Whether `text` is the pattern, in which `...` is any text.
fn like(pattern: &str, text: &str) -> bool {
    match pattern.split_once("...") {
        None => pattern == text,
        Some((before, rest)) => text.strip_prefix(before).is_some_and(|text| {
            let ends = text.char_indices().map(|(at, _)| at).chain([text.len()]);
            ends.into_iter().any(|at| like(rest, &text[at..]))
        }),
    }
}

/// Without what numbers are, and how wide: each is a zero, and each hexadecimal one `0x0`.
fn plain(line: &str) -> String {
    let mut plain = String::new();
    for word in line.split_whitespace() {
        let mut rest = word;
        while let Some(char) = rest.chars().next() {
            let hexadecimal =
                rest.strip_prefix("0x").map_or("", |digits| run(digits, |digit| digit.is_ascii_hexdigit()));
            let decimal = run(rest, |digit| digit.is_ascii_digit());
            let (shown, taken) = match (hexadecimal, decimal) {
                ("", "") => (&rest[..char.len_utf8()], char.len_utf8()),
                ("", whole) => {
                    match rest[whole.len()..].strip_prefix('.').map(|part| run(part, |d| d.is_ascii_digit())) {
                        None | Some("") => ("0", whole.len()),
                        Some(part) => ("0", whole.len() + 1 + part.len()),
                    }
                }
                (digits, _) => ("0x0", 2 + digits.len()),
            };
            plain.push_str(shown);
            rest = &rest[taken..];
        }
        plain.push(' ');
    }
    plain
}

/// What `text` begins with of this kind of digits.
fn run(text: &str, is_digit: impl Fn(&char) -> bool) -> &str {
    &text[..text.chars().take_while(is_digit).count()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn sessions_are_found_with_their_words_and_lines() {
        let page =
            "# A\n```sh\n$ not this\n```\n```console numbers\n$ cat > f <<END\n> one\n> END\n$ cat f\none\n```\n";
        let blocks = find(page);
        assert_eq!((blocks.len(), blocks[0].line, blocks[0].numbers_vary()), (1, 5, true));
        assert_eq!(blocks[0].steps[0].command, "cat > f <<END\none\nEND");
        assert_eq!(blocks[0].steps[1], Step { line: 9, command: "cat f".into(), expected: lines("one") });
    }

    #[test]
    fn files_are_found_by_their_names() {
        let page = "```c\nint x;\n```\n```c a.c\nint\n\nmain;\n```\n```console numbers\n$ ls\n```\n```asm b.s\n```\n";
        let file = |name: &str, text: &str| (name.to_owned(), text.to_owned());
        assert_eq!(files(page), [file("a.c", "int\n\nmain;\n"), file("b.s", "")]);
    }

    #[test]
    fn a_wrong_output_does_not_agree() {
        let agree = |expected: &str, came: &str| agrees(&lines(expected), &lines(came), false);
        assert!(agree("a\nb", "a\nb") && agree("up for ...s", "up for 12s") && agree("a\n...\nz", "a\nb\nc\nz"));
        assert!(!agree("a", "b") && !agree("a", "a\nb") && !agree("a\nb", "a") && !agree("", "said something"));
        assert!(!agree("ended with 3", "ended with 4") && !agree("a\n...\nz", "a\nb"));
    }

    #[test]
    fn where_numbers_vary_words_do_not() {
        let agree = |expected: &str, came: &str| agrees(&lines(expected), &lines(came), true);
        assert!(agree("ok  pit   1.5 ms", "ok  pit  104.2 ms"));
        assert!(
            agree("RIP 0x104d80; 43 exits", "RIP 0x10482f; 7 exits") && agree("at 0x..., 1.2.3", "at 0xfe, 1.22.3")
        );
        assert!(!agree("RIP 0x104d80;", "RIP 104;") && !agree("0x10 bad", "0x10 bead") && !agree("a.1", "a1"));
        assert!(!agree("ok  pit   1.5 ms", "FAILED  pit  104.2 ms") && !agree("1 vCPU", "1 vCPU."));
    }
}
